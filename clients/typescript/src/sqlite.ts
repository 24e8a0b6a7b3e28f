/** Keeps rows in SQLite: on React Native, in Electron, on Node. The app brings the library. */
import type { Json, Store, StoredRow, StoreTxn } from "./types.js";

type Value = string | number | null;

/** What better-sqlite3, `node:sqlite` and `bun:sqlite` have in common. */
export interface PreparingDatabase {
  prepare(sql: string): { run(...values: Value[]): unknown; all(...values: Value[]): unknown };
}

/** Any other library, in a few lines: `run` a statement, or get `all` rows of one, at once or by a promise. */
export interface AnyDatabase {
  run(sql: string, values: Value[]): unknown;
  all(sql: string, values: Value[]): unknown;
}

const LAYOUT = [
  `CREATE TABLE IF NOT EXISTS rollcall_rows (
     table_name TEXT NOT NULL, key TEXT NOT NULL, waits INTEGER, row TEXT NOT NULL, PRIMARY KEY (table_name, key)) WITHOUT ROWID`,
  "CREATE INDEX IF NOT EXISTS rollcall_waits ON rollcall_rows (waits) WHERE waits IS NOT NULL",
  "CREATE TABLE IF NOT EXISTS rollcall_meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
];

/** How long to wait for another process, and how often to look, ms. */
const BUSY_MAX_MS = 10_000;
const LOOK_MS = 10;

/** Tries again while another connection writes. */
async function patiently<R>(work: () => Promise<R>): Promise<R> {
  for (const began = Date.now(); ; await new Promise((resolve) => setTimeout(resolve, LOOK_MS))) {
    try {
      return await work();
    } catch (error) {
      if (!/busy|locked/i.test(String(error)) || Date.now() - began > BUSY_MAX_MS) throw error;
    }
  }
}

/**
 * A store in an open SQLite database. Give it a connection of its own: its transactions wait for promises, and
 * what the app writes on the same connection meanwhile would be part of them. `name` is the same for all
 * processes that open the same file.
 */
export function sqliteStore(database: PreparingDatabase | AnyDatabase, name = "rollcall"): Store {
  const prepared = new Map<string, ReturnType<PreparingDatabase["prepare"]>>();
  const prepare = (sql: string) => {
    const known = prepared.get(sql) ?? (database as PreparingDatabase).prepare(sql);
    prepared.set(sql, known);
    return known;
  };
  const each = "prepare" in database;
  const run = async (sql: string, ...values: Value[]): Promise<void> =>
    void (await (each ? prepare(sql).run(...values) : (database as AnyDatabase).run(sql, values)));
  const all = async <R>(sql: string, ...values: Value[]): Promise<R[]> =>
    (await (each ? prepare(sql).all(...values) : (database as AnyDatabase).all(sql, values))) as R[];

  const parse = <R>(rows: { text: string }[]) => rows.map(({ text }) => JSON.parse(text) as R);
  const txn: StoreTxn = {
    get: async (table, key) =>
      parse<StoredRow>(await all("SELECT row AS text FROM rollcall_rows WHERE table_name = ? AND key = ?", table, key))[0],
    all: async (table) => parse(await all("SELECT row AS text FROM rollcall_rows WHERE table_name = ? ORDER BY key", table)),
    waiting: async () => parse(await all("SELECT row AS text FROM rollcall_rows WHERE waits IS NOT NULL ORDER BY table_name, key")),
    put: (row) =>
      run("INSERT OR REPLACE INTO rollcall_rows VALUES (?, ?, ?, ?)", row.table, row.key, row.waits ?? null, JSON.stringify(row)),
    delete: (table, key) => run("DELETE FROM rollcall_rows WHERE table_name = ? AND key = ?", table, key),
    meta: async (key) => parse<Json>(await all("SELECT value AS text FROM rollcall_meta WHERE name = ?", key))[0],
    setMeta: (key, value) =>
      value === undefined
        ? run("DELETE FROM rollcall_meta WHERE name = ?", key)
        : run("INSERT OR REPLACE INTO rollcall_meta VALUES (?, ?)", key, JSON.stringify(value)),
  };

  let queue: Promise<unknown> = (async () => {
    // Readers do not stand in the way of a writer then. Whoever waits must not keep this thread from going on.
    await all("PRAGMA busy_timeout = 0");
    await patiently(() => all("PRAGMA journal_mode = WAL"));
    for (const statement of LAYOUT) await patiently(() => run(statement));
  })();
  const inTurn = <R>(work: () => Promise<R>): Promise<R> => {
    const turn = queue.then(work);
    queue = turn.catch(() => {});
    return turn;
  };
  queue.catch(() => {}); // the first transaction tells
  return {
    name,
    shared: "processes",
    transact: (mode, work) =>
      inTurn(async () => {
        await patiently(() => run(mode === "read" ? "BEGIN" : "BEGIN IMMEDIATE"));
        try {
          const result = await work(txn);
          await run("COMMIT");
          return result;
        } catch (error) {
          await run("ROLLBACK").catch(() => {});
          throw error;
        }
      }),
    wipe: () =>
      inTurn(async () => {
        await run("DELETE FROM rollcall_rows");
        await run("DELETE FROM rollcall_meta");
      }),
    close: () => inTurn(async () => {}),
  };
}

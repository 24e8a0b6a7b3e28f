/** Keeps rows in SQLite: on React Native, in Electron, on Node. The app brings the library. */
import type { Json, Store, StoredRow, StoreTxn } from "./types.js";

type Value = string | number | null;

/** What better-sqlite3, `node:sqlite` and `bun:sqlite` have in common. */
export interface PreparingDatabase {
  prepare(sql: string): { run(...values: Value[]): unknown; all(...values: Value[]): unknown };
}

/** Any other library: `run` executes a statement, `all` returns its rows; each returns a value or a promise. */
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

/** How long to wait for another process that writes, and how often to retry, ms. */
const BUSY_MAX_MS = 10_000;
const POLL_MS = 10;

/** Retries while another connection writes. */
async function retryBusy<R>(work: () => Promise<R>): Promise<R> {
  for (const began = Date.now(); ; await new Promise((resolve) => setTimeout(resolve, POLL_MS))) {
    try {
      return await work();
    } catch (error) {
      if (!/busy|locked/i.test(String(error)) || Date.now() - began > BUSY_MAX_MS) throw error;
    }
  }
}

/**
 * A store in an open SQLite database. Give it a connection of its own: its transactions wait for promises, and
 * a statement of the app on the same connection would become part of them. `name` must be the same for all
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
    // `retryBusy` waits instead of SQLite, which would block the thread. With a write-ahead log readers do not block a writer.
    await all("PRAGMA busy_timeout = 0");
    await retryBusy(() => all("PRAGMA journal_mode = WAL"));
    for (const statement of LAYOUT) await retryBusy(() => run(statement));
  })();
  const inTurn = <R>(work: () => Promise<R>): Promise<R> => {
    const turn = queue.then(work);
    queue = turn.catch(() => {});
    return turn;
  };
  queue.catch(() => {}); // the first transaction reports the error
  return {
    name,
    shared: "processes",
    transact: (mode, work) =>
      inTurn(async () => {
        await retryBusy(() => run(mode === "read" ? "BEGIN" : "BEGIN IMMEDIATE"));
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

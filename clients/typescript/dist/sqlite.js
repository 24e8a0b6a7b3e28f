const LAYOUT = [
    `CREATE TABLE IF NOT EXISTS rollcall_rows (
     table_name TEXT NOT NULL, key TEXT NOT NULL, waits INTEGER, row TEXT NOT NULL, PRIMARY KEY (table_name, key)) WITHOUT ROWID`,
    "CREATE INDEX IF NOT EXISTS rollcall_waits ON rollcall_rows (waits) WHERE waits IS NOT NULL",
    "CREATE TABLE IF NOT EXISTS rollcall_meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
];
const BUSY_MAX_MS = 10000;
const POLL_MS = 10;
async function retryBusy(work) {
    for (const began = Date.now();; await new Promise((resolve) => setTimeout(resolve, POLL_MS))) {
        try {
            return await work();
        }
        catch (error) {
            if (!/busy|locked/i.test(String(error)) || Date.now() - began > BUSY_MAX_MS)
                throw error;
        }
    }
}
export function sqliteStore(database, name = "rollcall") {
    const prepared = new Map();
    const prepare = (sql) => {
        const known = prepared.get(sql) ?? database.prepare(sql);
        prepared.set(sql, known);
        return known;
    };
    const each = "prepare" in database;
    const run = async (sql, ...values) => void (await (each ? prepare(sql).run(...values) : database.run(sql, values)));
    const all = async (sql, ...values) => (await (each ? prepare(sql).all(...values) : database.all(sql, values)));
    const parse = (rows) => rows.map(({ text }) => JSON.parse(text));
    const txn = {
        get: async (table, key) => parse(await all("SELECT row AS text FROM rollcall_rows WHERE table_name = ? AND key = ?", table, key))[0],
        all: async (table) => parse(await all("SELECT row AS text FROM rollcall_rows WHERE table_name = ? ORDER BY key", table)),
        waiting: async () => parse(await all("SELECT row AS text FROM rollcall_rows WHERE waits IS NOT NULL ORDER BY table_name, key")),
        put: (row) => run("INSERT OR REPLACE INTO rollcall_rows VALUES (?, ?, ?, ?)", row.table, row.key, row.waits ?? null, JSON.stringify(row)),
        delete: (table, key) => run("DELETE FROM rollcall_rows WHERE table_name = ? AND key = ?", table, key),
        meta: async (key) => parse(await all("SELECT value AS text FROM rollcall_meta WHERE name = ?", key))[0],
        setMeta: (key, value) => value === undefined
            ? run("DELETE FROM rollcall_meta WHERE name = ?", key)
            : run("INSERT OR REPLACE INTO rollcall_meta VALUES (?, ?)", key, JSON.stringify(value)),
    };
    let queue = (async () => {
        await all("PRAGMA busy_timeout = 0");
        await retryBusy(() => all("PRAGMA journal_mode = WAL"));
        for (const statement of LAYOUT)
            await retryBusy(() => run(statement));
    })();
    const inTurn = (work) => {
        const turn = queue.then(work);
        queue = turn.catch(() => { });
        return turn;
    };
    queue.catch(() => { });
    return {
        name,
        shared: "processes",
        transact: (mode, work) => inTurn(async () => {
            await retryBusy(() => run(mode === "read" ? "BEGIN" : "BEGIN IMMEDIATE"));
            try {
                const result = await work(txn);
                await run("COMMIT");
                return result;
            }
            catch (error) {
                await run("ROLLBACK").catch(() => { });
                throw error;
            }
        }),
        wipe: () => inTurn(async () => {
            await run("DELETE FROM rollcall_rows");
            await run("DELETE FROM rollcall_meta");
        }),
        close: () => inTurn(async () => { }),
    };
}

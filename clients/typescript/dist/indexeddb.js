const done = (request) => new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
});
const openDatabase = (name, onClosed) => new Promise((resolve, reject) => {
    const request = indexedDB.open(name, 1);
    request.onupgradeneeded = () => {
        const rows = request.result.createObjectStore("rows", { keyPath: ["table", "key"] });
        rows.createIndex("waits", "waits");
        request.result.createObjectStore("meta");
    };
    request.onerror = () => reject(request.error);
    request.onsuccess = () => {
        const database = request.result;
        database.onclose = onClosed;
        database.onversionchange = () => {
            database.close();
            onClosed();
        };
        resolve(database);
    };
});
const storeTxn = (txn) => {
    const [rows, meta] = [txn.objectStore("rows"), txn.objectStore("meta")];
    return {
        get: (table, key) => done(rows.get([table, key])),
        all: (table) => done(rows.getAll(IDBKeyRange.bound([table], [table, []]))),
        waiting: () => done(rows.index("waits").getAll()),
        put: async (row) => void (await done(rows.put(row))),
        delete: (table, key) => done(rows.delete([table, key])),
        meta: (key) => done(meta.get(key)),
        setMeta: async (key, value) => void (await (value === undefined ? done(meta.delete(key)) : done(meta.put(value, key)))),
    };
};
export function indexedDbStore(name) {
    let opened;
    const forget = () => void (opened = undefined);
    const open = () => (opened ?? (opened = openDatabase(name, forget).catch((error) => {
        forget();
        throw error;
    })));
    return {
        name,
        shared: "tabs",
        transact: async (mode, work) => {
            const database = await open();
            const names = ["rows", "meta"];
            const txn = mode === "read" ? database.transaction(names) : database.transaction(names, "readwrite", { durability: "strict" });
            const ended = new Promise((resolve, reject) => {
                txn.oncomplete = () => resolve();
                txn.onabort = () => reject(txn.error ?? new Error("the transaction was aborted"));
            });
            ended.catch(() => { });
            try {
                const result = await work(storeTxn(txn));
                if (mode === "write")
                    await ended;
                return result;
            }
            catch (error) {
                try {
                    txn.abort();
                }
                catch {
                }
                throw error;
            }
        },
        wipe: async () => {
            const txn = (await open()).transaction(["rows", "meta"], "readwrite");
            txn.objectStore("rows").clear();
            await done(txn.objectStore("meta").clear());
        },
        close: async () => {
            (await opened)?.close();
            opened = undefined;
        },
    };
}

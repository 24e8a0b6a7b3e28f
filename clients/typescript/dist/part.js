const MARK = "/";
const parts = new WeakMap();
export function partOf(store, owner) {
    const known = parts.get(store) ?? parts.set(store, new Map()).get(store);
    const name = owner ?? "";
    return known.get(name) ?? known.set(name, makePart(store, owner)).get(name);
}
function makePart(store, owner) {
    const prefix = owner === null ? "" : owner + MARK;
    const isIn = ({ table }) => (owner === null ? !table.includes(MARK) : table.startsWith(prefix));
    const within = (row) => (owner === null ? row : { ...row, table: row.table.slice(prefix.length) });
    const txnOf = (txn) => ({
        get: async (table, key) => {
            const row = await txn.get(prefix + table, key);
            return row && within(row);
        },
        all: async (table) => (await txn.all(prefix + table)).map(within),
        waiting: async () => (await txn.waiting()).filter(isIn).map(within),
        put: (row) => txn.put(owner === null ? row : { ...row, table: prefix + row.table }),
        delete: (table, key) => txn.delete(prefix + table, key),
        meta: (name) => txn.meta(prefix + name),
        setMeta: (name, value) => txn.setMeta(prefix + name, value),
    });
    return {
        name: owner === null ? store.name : `${store.name} ${owner}`,
        shared: store.shared,
        transact: (mode, work) => store.transact(mode, (txn) => work(txnOf(txn))),
        wipe: () => store.wipe(),
        close: () => store.close(),
    };
}

/** The part of a store that has the rows of one owner. */
import type { Store, StoredRow, StoreTxn } from "./types.js";

/** No table and no other state has this character in its name. */
const MARK = "/";

const parts = new WeakMap<Store, Map<string, Store>>();

/**
 * The part of a store for an owner; `null` for the owner that was made with the account. Rows and state of other owners are
 * not visible in it. Returns the same object each time, because clients of the same data take turns by it.
 */
export function partOf(store: Store, owner: string | null): Store {
  const known = parts.get(store) ?? parts.set(store, new Map()).get(store)!;
  const name = owner ?? "";
  return known.get(name) ?? known.set(name, makePart(store, owner)).get(name)!;
}

function makePart(store: Store, owner: string | null): Store {
  const prefix = owner === null ? "" : owner + MARK;
  const isIn = ({ table }: StoredRow) => (owner === null ? !table.includes(MARK) : table.startsWith(prefix));
  const within = (row: StoredRow): StoredRow => (owner === null ? row : { ...row, table: row.table.slice(prefix.length) });
  const txnOf = (txn: StoreTxn): StoreTxn => ({
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

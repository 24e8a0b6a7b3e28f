// TanStack DB over rollcall-client: the client stores and syncs the rows, the collection shows and edits them.

/** Options for `createCollection`: a collection over a table of an open client. */
export function rollcallCollectionOptions({ client, table, ...options }) {
  const rows = client.table(table);
  const key = rows.keyColumn;
  let shown = new Map(); // the rows of the collection, as text
  let collection; // the collection's functions, while it is in use
  let queue = Promise.resolve();

  /** Updates the collection to the rows of the table, in one transaction. */
  const refresh = () =>
    (queue = queue.then(async () => {
      const now = new Map((await rows.list()).map((row) => [row[key], row]));
      if (!collection) return;
      collection.begin();
      for (const [id, row] of now) {
        const was = shown.get(id);
        if (was !== JSON.stringify(row)) collection.write({ type: was === undefined ? "insert" : "update", value: row });
      }
      for (const id of shown.keys()) if (!now.has(id)) collection.write({ type: "delete", key: id });
      shown = new Map([...now].map(([id, row]) => [id, JSON.stringify(row)]));
      collection.commit();
      collection.markReady();
    }));

  /** Applies a transaction to the table. It resolves once the store has committed; the sync is independent of it. */
  const persist = (edit) => async ({ transaction }) => {
    for (const mutation of transaction.mutations) await edit(mutation);
    await refresh(); // replaces this transaction's optimistic state without a flicker
  };

  return {
    id: table,
    getKey: (row) => row[key],
    sync: {
      rowUpdateMode: "full",
      sync: (params) => {
        [collection, shown] = [params, new Map()];
        const stop = rows.subscribe(() => void refresh());
        return () => {
          stop();
          collection = undefined;
        };
      },
    },
    onInsert: persist(({ modified }) => rows.put(modified)),
    onUpdate: persist(({ key: id, changes }) => rows.patch(id, changes)),
    onDelete: persist(({ key: id }) => rows.remove(id)),
    ...options,
  };
}

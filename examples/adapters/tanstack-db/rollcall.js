// TanStack DB over rollcall-client: the client keeps the rows and syncs them, the collection shows and edits them.

/** Options for `createCollection`: a collection over a table of an open client. */
export function rollcallCollectionOptions({ client, table, ...options }) {
  const rows = client.table(table);
  const key = rows.keyColumn;
  let shown = new Map(); // what the collection holds, as text
  let to; // the collection's side, while it is in use
  let queue = Promise.resolve();

  /** Shows the collection what the table holds, in one transaction. */
  const refresh = () =>
    (queue = queue.then(async () => {
      const now = new Map((await rows.list()).map((row) => [row[key], row]));
      if (!to) return;
      to.begin();
      for (const [id, row] of now) {
        const was = shown.get(id);
        if (was !== JSON.stringify(row)) to.write({ type: was === undefined ? "insert" : "update", value: row });
      }
      for (const id of shown.keys()) if (!now.has(id)) to.write({ type: "delete", key: id });
      shown = new Map([...now].map(([id, row]) => [id, JSON.stringify(row)]));
      to.commit();
      to.markReady();
    }));

  /** Carries a transaction out on the table. Done once it is safe in the store: the sync goes its own way. */
  const persist = (edit) => async ({ transaction }) => {
    for (const mutation of transaction.mutations) await edit(mutation);
    await refresh(); // becomes visible with the end of this transaction's optimistic state, without a flicker
  };

  return {
    id: table,
    getKey: (row) => row[key],
    sync: {
      rowUpdateMode: "full",
      sync: (params) => {
        [to, shown] = [params, new Map()];
        const stop = rows.subscribe(() => void refresh());
        return () => {
          stop();
          to = undefined;
        };
      },
    },
    onInsert: persist(({ modified }) => rows.put(modified)),
    onUpdate: persist(({ key: id, changes }) => rows.patch(id, changes)),
    onDelete: persist(({ key: id }) => rows.remove(id)),
    ...options,
  };
}

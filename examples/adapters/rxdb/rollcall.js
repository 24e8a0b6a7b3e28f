// RxDB over rollcall: one replication a collection; the checkpoint is rollcall's version, or the mark of the next page.
import { replicateRxCollection } from "rxdb/plugins/replication";
import { Subject } from "rxjs";

/**
 * Replicates an RxDB collection with a table of a rollcall server, live. The collection's schema has the table's key
 * as its primary key, and the text column `last_update`: it tells the server which state an edit was made on.
 * RxDB settles conflicts itself (`conflictHandler`), so give the table `policy = "manual"` on the server.
 */
export function replicateRollcall({ collection, url, token, table = collection.name, fetch = globalThis.fetch, live = true, ...options }) {
  const key = collection.schema.primaryPath;
  const resync = new Subject();
  const stopping = new AbortController();
  const request = async (method, path, body, signal) => {
    const headers = { Authorization: `Bearer ${await token()}`, "Content-Type": "application/json", Prefer: "wait=10" };
    return fetch(url + path, { method, headers, body: body && JSON.stringify(body), signal });
  };
  const ask = async (...asked) => {
    const answer = await request(...asked);
    const said = await answer.json();
    if (!answer.ok) throw Object.assign(new Error(`${said.code}: ${said.detail}`), said);
    return said;
  };

  const pull = async (checkpoint, limit) => {
    const { since, next } = checkpoint ?? {};
    const query = next ? `next=${encodeURIComponent(next)}` : `tables=${table}&limit=${limit}${since ? `&since=${since}` : ""}`;
    // 410 `cursor_expired`, after too long away, comes out of `error$`: RxDB cannot drop what a full feed does not
    // mention, so the app removes the collection and replicates into a new one.
    const page = await ask("GET", `/changes?${query}`);
    const rows = [...(page.add[table] ?? []), ...(page.update[table] ?? [])];
    const documents = rows.map((row) => ({ ...row, _deleted: false }));
    for (const id of page.delete[table] ?? []) documents.push({ [key]: id, _deleted: true });
    return { documents, checkpoint: page.more ? { next: page.next } : { since: page.version } };
  };

  const push = async (rows) => {
    const sets = { add: [], update: [], delete: [] };
    for (const { newDocumentState, assumedMasterState } of rows) {
      const { _deleted, last_update, ...columns } = newDocumentState;
      const base = assumedMasterState?.last_update;
      const item = { ...(_deleted ? { [key]: columns[key] } : columns), ...(base && { _base: base }) };
      sets[_deleted ? "delete" : assumedMasterState && !assumedMasterState._deleted ? "update" : "add"].push(item);
    }
    const answer = await ask("POST", "/synchronise", Object.fromEntries(Object.entries(sets).map(([name, list]) => [name, { [table]: list }])));
    const items = ["add", "update", "delete"].flatMap((name) => answer[name][table] ?? []);
    // What the server holds instead of what was sent: RxDB settles it, and sends again what it chose.
    return items.flatMap((item) => {
      if (item.row && item.verdict !== "deleted") return [{ ...item.row, _deleted: false }];
      const sent = rows.find(({ newDocumentState }) => newDocumentState[key] === item[key]).newDocumentState;
      const gone = ["gone", "absent"].includes(item.verdict) && !sent._deleted;
      return gone || item.verdict === "rejected" ? [{ ...sent, last_update: item.last_update ?? "", _deleted: true }] : [];
    });
  };

  const listen = async () => {
    while (!stopping.signal.aborted) {
      try {
        const answer = await request("GET", "/events", undefined, stopping.signal);
        for await (const _event of answer.body) resync.next("RESYNC");
      } catch {
        // it comes back below
      }
      await new Promise((resolve) => setTimeout(resolve, 500 + Math.random() * 1500));
    }
  };

  const replication = replicateRxCollection({
    collection,
    replicationIdentifier: `rollcall ${url} ${table}`,
    live,
    pull: { handler: pull, batchSize: 500, stream$: resync.asObservable() },
    push: { handler: push, batchSize: 500 },
    ...options,
  });
  if (live) void listen();
  replication.onCancel.push(() => stopping.abort());
  return replication;
}

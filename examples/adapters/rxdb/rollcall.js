// RxDB over rollcall: one replication for each collection. The checkpoint is rollcall's version, or a page token.
import { getLastCheckpointDoc, setCheckpoint } from "rxdb";
import { replicateRxCollection } from "rxdb/plugins/replication";
import { Subject } from "rxjs";
import { createCall, send } from "../requests.js";

/** Rejections after which an unchanged row may succeed, and the pause before it if the server names none. */
const TEMPORARY = ["too_many_edits", "reference_missing", "still_referenced"];
const RETRY_S = 30;

/**
 * Replicates an RxDB collection with a table of a rollcall server, live. The collection's schema has the table's key as
 * its primary key, and two text columns: `last_update` is the state on which an edit was made, `rejected` is the reason
 * why the server rejected the row. RxDB resolves conflicts itself (`conflictHandler`), so give the table
 * `policy = "manual"` on the server.
 */
export function replicateRollcall({ collection, url, token, table = collection.name, fetch = globalThis.fetch, live = true, ...options }) {
  const key = collection.schema.primaryPath;
  for (const name of ["last_update", "rejected"]) {
    if (!collection.schema.jsonSchema.properties[name]) throw new Error(`the schema of ${collection.name} lacks the text column ${name}`);
  }
  const own = collection.conflictHandler;
  const unmarked = (state) => ({ ...state, rejected: null });
  const isEqual = (a, b, context) => own.isEqual(unmarked(a), unmarked(b), context) && (a.rejected ?? null) === (b.rejected ?? null);
  // A state with `rejected` is the result of this device's own edit: there is no conflict to resolve.
  const resolve = async (input, context) => ("rejected" in input.realMasterState ? input.realMasterState : unmarked(await own.resolve(input, context)));
  collection.conflictHandler = { isEqual, resolve };

  const resync = new Subject();
  const stopping = new AbortController();
  const [timers, rejectedNow] = [new Set(), new Set()]; // `rejectedNow`: rows that the server has rejected since the start
  // Stored in the checkpoint, without a counter of the installation, which could go back there.
  let state;
  const kept = async (changes) => {
    const { hashFunction, storageToken } = collection.database;
    const device = /^(.{8})(.{4})(.{4})(.{4})(.{12})/.exec(await hashFunction(await storageToken)).slice(1).join("-");
    state ??= { device, for: (await getLastCheckpointDoc(replication.internalReplicationState, "down"))?.for };
    if (changes) await setCheckpoint(replication.internalReplicationState, "down", changes); // before any row is sent
    return (state = { ...state, ...changes });
  };
  const call = createCall({ url, token, fetch, kept });
  const rowsOf = (page) => [...(page.add[table] ?? []), ...(page.update[table] ?? [])].map((row) => ({ ...row, rejected: null, _deleted: false }));
  const checkpointOf = (more) => ({ since: null, next: null, ...more, for: state.for, epoch: call.epoch });

  /** Keeps a rejected row as its user made it, also if other devices change it: the server decides when it is sent again. */
  const keepRejected = async (documents) => {
    const local = await collection.findByIds(documents.map((document) => document[key])).exec();
    return documents.map((document) => (local.get(document[key])?.rejected ? { ...local.get(document[key]).toMutableJSON(), _deleted: false } : document));
  };

  /** Fetches everything after a long absence or a restore. A restored server may have lost the rows that it lacks. */
  const pullAll = async ({ since, epoch }) => {
    const received = new Map();
    let page = await call("GET", `/changes?tables=${table}`);
    for (; ; page = await call("GET", `/changes?next=${encodeURIComponent(page.next)}`)) {
      for (const row of rowsOf(page)) received.set(row[key], row);
      if (!page.more) break;
    }
    const restored = epoch !== call.epoch || page.version < since;
    const absent = (await collection.find().exec()).map((doc) => doc.toMutableJSON()).filter((doc) => doc.last_update && !received.has(doc[key]));
    const lost = absent.map(({ rejected, ...item }) => ({ operation: "update", table, item: { ...item, _base: item.last_update } }));
    const items = restored ? await send(call, lost) : [];
    const gone = absent.filter((_, i) => !restored || items[i].verdict === "gone").map((doc) => ({ ...doc, _deleted: true }));
    return { documents: await keepRejected([...received.values(), ...gone]), checkpoint: checkpointOf({ since: page.version }) };
  };

  const pull = async (checkpoint, limit) => {
    const { since, next } = checkpoint ?? {};
    const documents = [];
    try {
      let page = await call("GET", `/changes?${next ? `next=${encodeURIComponent(next)}` : `tables=${table}&limit=${limit}${since ? `&since=${since}` : ""}`}`);
      for (; ; page = await call("GET", `/changes?next=${encodeURIComponent(page.next)}`)) {
        documents.push(...rowsOf(page));
        documents.push(...(page.delete[table] ?? []).map((id) => ({ [key]: id, _deleted: true })));
        if (!page.more || documents.length >= limit) break;
      }
      return { documents: await keepRejected(documents), checkpoint: checkpointOf(page.more ? { next: page.next } : { since: page.version }) };
    } catch (error) {
      if (error.code !== "cursor_expired") throw error;
      return pullAll(checkpoint);
    }
  };

  /** Sends rejected rows again: it repeats a deletion, and removes the mark from an edited row. */
  const resend = async (ids) => {
    for (const doc of (await collection.findByIds(ids).exec()).values()) {
      if (doc.rejected?.startsWith("deletion")) await doc.incrementalRemove();
      else if (doc.rejected) await doc.incrementalPatch({ rejected: null });
    }
  };
  const resendLater = (id, seconds) => {
    const timer = setTimeout(() => timers.delete(timer) && void resend([id]), seconds * 1000);
    timers.add(timer);
  };

  /** The server's state of a row after its verdict, as RxDB stores it; empty if it is the state that was sent. */
  const outcome = ({ now, now: { _deleted: deleted }, was }, { verdict, row, last_update, error }) => {
    if (verdict === "rejected") {
      rejectedNow.add(now[key]);
      replication.subjects.error.next(Object.assign(new Error(`${table} ${now[key]} was rejected: ${error.detail}`), { ...error, key: now[key] }));
      if (TEMPORARY.includes(error.code)) resendLater(now[key], error.retry_after_s ?? RETRY_S);
      // A rejected deletion: the row is restored, with the reason.
      return deleted ? [{ ...was, ...row, _deleted: false, rejected: `deletion: ${error.code}` }] : [{ ...now, rejected: error.code }];
    }
    if (row && verdict !== "deleted") return [{ ...row, _deleted: false }];
    if (verdict === "gone") return deleted ? [] : [{ ...now, last_update, _deleted: true }];
    // A later edit needs the time as its base, and the row is no longer rejected.
    return !deleted && (now.rejected || !now.last_update) ? [{ ...now, last_update, rejected: null }] : [];
  };

  const push = async (pushed) => {
    const rows = pushed.flatMap(({ newDocumentState: now, assumedMasterState: was }) => {
      if (was && isEqual(now, was, "rollcall")) return []; // an outcome that was stored
      const { _deleted, last_update, rejected, ...columns } = now;
      const base = was?.last_update;
      const operation = _deleted ? "delete" : base && !was._deleted ? "update" : "add";
      return { operation, table, now, was, item: { ...(_deleted ? { [key]: columns[key] } : columns), ...(base && { _base: base }) } };
    });
    return (await send(call, rows)).flatMap((item, i) => outcome(rows[i], item));
  };

  const listen = async () => {
    await replication.startPromise;
    while (!stopping.signal.aborted) {
      try {
        const response = await call.stream("/events", stopping.signal);
        for await (const _event of response.body) resync.next("RESYNC");
      } catch {
        // the loop reconnects
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
  // Rows that were rejected before the start may be accepted now, for example by a server with a newer schema.
  const marked = collection.find({ selector: { rejected: { $gt: "" } } }).exec();
  void replication.awaitInitialReplication().then(async () => resend((await marked).map((doc) => doc[key]).filter((id) => !rejectedNow.has(id))));
  replication.onCancel.push(() => (stopping.abort(), timers.forEach(clearTimeout)));
  return replication;
}

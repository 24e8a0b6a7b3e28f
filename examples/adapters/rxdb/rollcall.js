// RxDB over rollcall: one replication a collection; the checkpoint is rollcall's version, or the mark of the next page.
import { getLastCheckpointDoc, setCheckpoint } from "rxdb";
import { replicateRxCollection } from "rxdb/plugins/replication";
import { Subject } from "rxjs";
import { caller, send } from "../requests.js";

/** Rejections that may pass by themselves, and after how many seconds to try again where the server says nothing. */
const PASSING = ["too_many_edits", "reference_missing", "still_referenced"];
const AGAIN_S = 30;

/**
 * Replicates an RxDB collection with a table of a rollcall server, live. The collection's schema has the table's key as
 * its primary key, and two text columns: `last_update` tells the server which state an edit was made on, `rejected` tells
 * the user why the server did not take the row as it is. RxDB settles conflicts itself (`conflictHandler`), so give the
 * table `policy = "manual"` on the server.
 */
export function replicateRollcall({ collection, url, token, table = collection.name, fetch = globalThis.fetch, live = true, ...options }) {
  const key = collection.schema.primaryPath;
  for (const name of ["last_update", "rejected"]) {
    if (!collection.schema.jsonSchema.properties[name]) throw new Error(`the schema of ${collection.name} lacks the text column ${name}`);
  }
  const own = collection.conflictHandler;
  const unmarked = (state) => ({ ...state, rejected: null });
  const isEqual = (a, b, context) => own.isEqual(unmarked(a), unmarked(b), context) && (a.rejected ?? null) === (b.rejected ?? null);
  // A state with `rejected` says what became of this device's own edit: there is nothing to settle.
  const resolve = async (input, context) => ("rejected" in input.realMasterState ? input.realMasterState : unmarked(await own.resolve(input, context)));
  collection.conflictHandler = { isEqual, resolve };

  const resync = new Subject();
  const stopping = new AbortController();
  const [timers, judged] = [new Set(), new Set()]; // `judged`: rows that the server has rejected since the start
  // Kept in the checkpoint. The installation has no counter there: it could go back.
  let state;
  const kept = async (news) => {
    const { hashFunction, storageToken } = collection.database;
    const device = /^(.{8})(.{4})(.{4})(.{4})(.{12})/.exec(await hashFunction(await storageToken)).slice(1).join("-");
    state ??= { device, for: (await getLastCheckpointDoc(replication.internalReplicationState, "down"))?.for };
    if (news) await setCheckpoint(replication.internalReplicationState, "down", news); // before anything is sent
    return (state = { ...state, ...news });
  };
  const ask = caller({ url, token, fetch, kept });
  const rowsOf = (page) => [...(page.add[table] ?? []), ...(page.update[table] ?? [])].map((row) => ({ ...row, rejected: null, _deleted: false }));
  const checkpointOf = (more) => ({ since: null, next: null, ...more, for: state.for, epoch: ask.epoch });

  /** A rejected row stays as its user made it, whatever others do meanwhile: the server judges that when it goes up again. */
  const sparing = async (documents) => {
    const local = await collection.findByIds(documents.map((document) => document[key])).exec();
    return documents.map((document) => (local.get(document[key])?.rejected ? { ...local.get(document[key]).toMutableJSON(), _deleted: false } : document));
  };

  /** Away for too long, or the server was restored: everything anew. What a restored server lacks, it may have forgotten. */
  const everything = async ({ since, epoch }) => {
    const told = new Map();
    let page = await ask("GET", `/changes?tables=${table}`);
    for (; ; page = await ask("GET", `/changes?next=${encodeURIComponent(page.next)}`)) {
      for (const row of rowsOf(page)) told.set(row[key], row);
      if (!page.more) break;
    }
    const restored = epoch !== ask.epoch || page.version < since;
    const absent = (await collection.find().exec()).map((doc) => doc.toMutableJSON()).filter((doc) => doc.last_update && !told.has(doc[key]));
    const lost = absent.map(({ rejected, ...item }) => ({ operation: "update", table, item: { ...item, _base: item.last_update } }));
    const items = restored ? await send(ask, lost) : [];
    const gone = absent.filter((_, place) => !restored || items[place].verdict === "gone").map((doc) => ({ ...doc, _deleted: true }));
    return { documents: await sparing([...told.values(), ...gone]), checkpoint: checkpointOf({ since: page.version }) };
  };

  const pull = async (checkpoint, limit) => {
    const { since, next } = checkpoint ?? {};
    const documents = [];
    try {
      let page = await ask("GET", `/changes?${next ? `next=${encodeURIComponent(next)}` : `tables=${table}&limit=${limit}${since ? `&since=${since}` : ""}`}`);
      for (; ; page = await ask("GET", `/changes?next=${encodeURIComponent(page.next)}`)) {
        documents.push(...rowsOf(page));
        documents.push(...(page.delete[table] ?? []).map((id) => ({ [key]: id, _deleted: true })));
        if (!page.more || documents.length >= limit) break;
      }
      return { documents: await sparing(documents), checkpoint: checkpointOf(page.more ? { next: page.next } : { since: page.version }) };
    } catch (error) {
      if (error.code !== "cursor_expired") throw error;
      return everything(checkpoint);
    }
  };

  /** Sends rejected rows once more: a deletion by deleting, an edit by being no longer marked. */
  const again = async (ids) => {
    for (const doc of (await collection.findByIds(ids).exec()).values()) {
      if (doc.rejected?.startsWith("deletion")) await doc.incrementalRemove();
      else if (doc.rejected) await doc.incrementalPatch({ rejected: null });
    }
  };
  const later = (id, seconds) => {
    const timer = setTimeout(() => timers.delete(timer) && void again([id]), seconds * 1000);
    timers.add(timer);
  };

  /** What RxDB is to hold for the server's state of a row after its verdict; nothing: what was sent. */
  const outcome = ({ now, now: { _deleted: deleted }, was }, { verdict, row, last_update, error }) => {
    if (verdict === "rejected") {
      judged.add(now[key]);
      replication.subjects.error.next(Object.assign(new Error(`${table} ${now[key]} was rejected: ${error.detail}`), { ...error, key: now[key] }));
      if (PASSING.includes(error.code)) later(now[key], error.retry_after_s ?? AGAIN_S);
      // A deletion that is not taken: the row is back, and says so.
      return deleted ? [{ ...was, ...row, _deleted: false, rejected: `deletion: ${error.code}` }] : [{ ...now, rejected: error.code }];
    }
    if (row && verdict !== "deleted") return [{ ...row, _deleted: false }];
    if (verdict === "gone") return deleted ? [] : [{ ...now, last_update, _deleted: true }];
    // From now on an edit of it says what it was made on, and it is rejected no longer.
    return !deleted && (now.rejected || !now.last_update) ? [{ ...now, last_update, rejected: null }] : [];
  };

  const push = async (pushed) => {
    const rows = pushed.flatMap(({ newDocumentState: now, assumedMasterState: was }) => {
      if (was && isEqual(now, was, "rollcall")) return []; // an outcome that is written down
      const { _deleted, last_update, rejected, ...columns } = now;
      const base = was?.last_update;
      const operation = _deleted ? "delete" : base && !was._deleted ? "update" : "add";
      return { operation, table, now, was, item: { ...(_deleted ? { [key]: columns[key] } : columns), ...(base && { _base: base }) } };
    });
    return (await send(ask, rows)).flatMap((item, place) => outcome(rows[place], item));
  };

  const listen = async () => {
    await replication.startPromise;
    while (!stopping.signal.aborted) {
      try {
        const answer = await ask.stream("/events", stopping.signal);
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
  // What was rejected before the start may be taken by now: the server may know the column, the role may be another.
  const marked = collection.find({ selector: { rejected: { $gt: "" } } }).exec();
  void replication.awaitInitialReplication().then(async () => again((await marked).map((doc) => doc[key]).filter((id) => !judged.has(id))));
  replication.onCancel.push(() => (stopping.abort(), timers.forEach(clearTimeout)));
  return replication;
}

// How a response is applied, how a request is made, and what a transaction stores. These tests need only a store.
import assert from "node:assert/strict";
import { test } from "node:test";
import { inOrder, isDivisible, nextRequest, requeue } from "../dist/batch.js";
import { goesWhole } from "../dist/decide.js";
import { put, remove, revert } from "../dist/edits.js";
import { declare, Held, mayTryAgain, newRow, rejectionOf } from "../dist/held.js";
import { memoryStore, newKey } from "../dist/index.js";
import { Settling } from "../dist/settle.js";
import { tables } from "./support.mjs";

const declared = declare(tables);
const items = declared.get("items");
const [A, B] = [newKey(), newKey()].sort();
const iso = (ms) => new Date(ms).toISOString();
const NOW = Date.UTC(2026, 4, 1);
const limits = { rows: 100, keys: 100, bytes: 1_000_000, precision: "milliseconds" };
const SEED = "00112233445566778899aabbccddeeff";

/** A store with one clean row, whose `last_update` is 1,000. */
async function start(rows = { [A]: { title: "old", done: false } }) {
  const store = memoryStore();
  const write = (work) => Held.write(store, declared, work).then(([result]) => result);
  const read = (work) => Held.read(store, declared, work);
  await write(async (held) => {
    await held.remember("seed", SEED);
    await held.recount();
    for (const [key, row] of Object.entries(rows)) await held.replace(undefined, { ...newRow("items", key), at: 1000, row });
  });
  const settle = async (work, { epoch = null, feed = null } = {}) => {
    const tally = { pushed: 0, pulled: 0, dropped: 0, verdicts: {} };
    const settling = await write(async (held) => {
      const settling = new Settling(held, tally, NOW, epoch, feed);
      await work(settling);
      return settling;
    });
    return { tally, conflicts: settling.conflicts, rejected: settling.rejected };
  };
  const send = (queue, options = { base: 1, pull: false, confirmDeletes: undefined }, bounds = limits) => write((held) => nextRequest(held, queue, bounds, options));
  const row = (key = A) => read((held) => held.get("items", key));
  const meta = (name) => read((held) => held.recall(name));
  return { write, read, settle, send, row, meta };
}
const queueOf = (key = A) => ({ rows: [{ table: "items", key }], gets: [] });
const response = (operation, item) => ({ [operation]: { items: [{ iid: A, ...item }] }, version: 2 });

// ------------------------------------------------------------------------------------------------ verdicts

const theirs = { iid: A, title: "theirs", done: true, last_update: iso(3000) };
test("the winning row is read from `get` if it was also requested", async () => {
  const { write, settle, send, row } = await start();
  await write((held) => put(held, items, A, { title: "mine" }, 1500));
  const sending = await send(queueOf());
  const kept = response("update", { verdict: "kept", last_update: iso(3000), conflict: "c1" });
  const { conflicts } = await settle((settling) => settling.applyResponse(sending, { ...kept, get: { items: [theirs] } }));
  const now = await row();
  assert.deepEqual([now.row.title, now.at, now.state, now.changed], ["theirs", 3000, "clean", {}]);
  assert.deepEqual([conflicts[0].mine.title, conflicts[0].theirs.title], ["mine", "theirs"]);
});

for (const [verdict, more, expected] of [
  ["updated", { last_update: iso(2000) }, { title: "mine", at: 2000, pushed: 1, conflicts: 0 }],
  ["same", { last_update: iso(2000) }, { title: "mine", at: 2000, pushed: 1, conflicts: 0 }],
  ["merged", { last_update: iso(3000), row: theirs }, { title: "theirs", at: 3000, pushed: 1, conflicts: 0 }],
  ["merged", { last_update: iso(3000), row: theirs, conflict: "c1" }, { title: "theirs", at: 3000, pushed: 1, conflicts: 1 }],
  ["kept", { last_update: iso(3000), row: theirs, conflict: "c2" }, { title: "theirs", at: 3000, pushed: 0, conflicts: 1 }],
]) {
  test(`an edit that is ${verdict}${more.conflict ? " with a conflict" : ""} is settled`, async () => {
    const { write, settle, send, row, meta } = await start();
    await write((held) => put(held, items, A, { title: "mine" }, 1500));
    const sending = await send(queueOf());
    const { tally, conflicts } = await settle((settling) => settling.applyResponse(sending, response("update", { verdict, ...more })));
    const now = await row();
    assert.deepEqual([now.row.title, now.at, now.state, now.base, now.editedAt, now.changed], [expected.title, expected.at, "clean", null, null, {}]);
    assert.ok(!("baseRow" in now) && !("rejected" in now) && !("waits" in now));
    assert.deepEqual([tally.pushed, tally.dropped, tally.verdicts], [expected.pushed, 0, { [verdict]: 1 }]);
    assert.equal(conflicts.length, expected.conflicts);
    if (conflicts.length) {
      const { serverId, mine, theirs, base, lastUpdate, at, key, table } = conflicts[0];
      assert.deepEqual([serverId, mine.title, theirs.title, base.title, lastUpdate, at, key, table], [more.conflict, "mine", "theirs", "old", 3000, NOW, A, "items"]);
      assert.equal((await meta("conflicts")).length, 1);
    }
    assert.equal(await meta("outstanding"), undefined);
  });

  test(`an edit made while another is ${verdict}${more.conflict ? " with a conflict" : ""} stays`, async () => {
    const { write, settle, send, row } = await start();
    await write((held) => put(held, items, A, { title: "mine" }, 1500));
    const sending = await send(queueOf());
    await write((held) => put(held, items, A, { count: 5 }, 1600));
    await settle((settling) => settling.applyResponse(sending, response("update", { verdict, ...more })));
    const now = await row();
    assert.deepEqual([now.row.title, now.row.count, now.state, now.at, Object.keys(now.changed)], [expected.title, 5, "edited", expected.at, ["count"]]);
    if (more.row) assert.equal(now.row.done, true, "the other columns are the server's");
    assert.deepEqual([now.baseRow.title, now.baseRow.done], [verdict === "kept" ? "old" : expected.title, more.row && verdict !== "kept" ? true : false]);
    assert.equal(now.base, verdict === "kept" ? 1000 : expected.at);
  });
}

test("a deletion is settled, and one that lost to an edit restores the row", async () => {
  const { write, settle, send, row } = await start();
  await write((held) => remove(held, items, A, 1500));
  const sending = await send(queueOf());
  assert.deepEqual(sending.body.delete, { items: [{ iid: A, last_update: iso(1500), _base: iso(1000) }] });
  const { conflicts } = await settle((settling) => settling.applyResponse(sending, response("delete", { verdict: "kept", last_update: iso(3000), row: theirs })));
  assert.deepEqual([(await row()).row.title, (await row()).state, conflicts[0].mine], ["theirs", "clean", null]);
  await write((held) => remove(held, items, A, 1600));
  const again = await send(queueOf());
  const { tally } = await settle((settling) => settling.applyResponse(again, response("delete", { verdict: "deleted", last_update: iso(4000) })));
  assert.deepEqual([await row(), tally.pushed], [undefined, 1]);
});

test("a row that is gone is dropped and reported, but one that was sent in part is first sent whole", async () => {
  const { write, settle, send, row } = await start();
  await write((held) => put(held, items, A, { title: "mine" }, 1500));
  const part = await send(queueOf());
  assert.deepEqual(part.body.update.items, [{ iid: A, title: "mine", last_update: iso(1500), _base: iso(1000) }]);
  const first = await settle((settling) => settling.applyResponse(part, response("update", { verdict: "gone", last_update: iso(3000) })));
  assert.deepEqual([first.tally.dropped, first.tally.pushed, first.conflicts.length, (await row()).state, (await row()).at], [0, 0, 0, "edited", null]);
  const whole = await send(queueOf());
  assert.deepEqual(whole.body.update.items[0].done, false);
  const second = await settle((settling) => settling.applyResponse(whole, response("update", { verdict: "gone", last_update: iso(3000) })));
  assert.deepEqual([second.tally.dropped, second.tally.pushed, second.conflicts.map(({ verdict }) => verdict), await row()], [1, 0, ["gone"], undefined]);
});

test("a response to another request does not close this one, and a verdict on an unknown key changes nothing", async () => {
  const { write, settle, send, row, meta } = await start();
  await write((held) => put(held, items, A, { title: "mine" }, 1500));
  const sending = await send(queueOf());
  await settle((settling) => settling.applyResponse({ ...sending, key: "other", sent: [] }, response("update", { verdict: "updated", last_update: iso(2000) })));
  assert.deepEqual([(await row()).state, (await meta("outstanding")).key], ["edited", sending.key]);
  await settle((settling) => settling.applyResponse(sending, { update: { items: [{ iid: B, verdict: "updated", last_update: iso(2000) }], unknown: [{ id: B, verdict: "updated" }] }, version: 2 }));
  assert.deepEqual([(await row()).state, await row(B)], ["edited", undefined]);
});

test("a rejected row stays as it is, with the reason", async () => {
  const { write, settle, send, row } = await start();
  await write((held) => put(held, items, A, { title: "mine" }, 1500));
  const sending = await send(queueOf());
  const error = { code: "too_long", column: "title", detail: "too long" };
  const { tally, conflicts, rejected } = await settle((settling) => settling.applyResponse(sending, response("update", { verdict: "rejected", last_update: iso(1000), row: { ...theirs, last_update: iso(1000) }, error })));
  const now = await row();
  assert.deepEqual([now.row.title, now.state, now.at, now.base, now.rejected], ["mine", "edited", 1000, 1000, error]);
  assert.deepEqual([tally.pushed, tally.dropped, conflicts.length], [0, 0, 0]);
  assert.deepEqual(rejected.map(({ key, code, edit }) => [key, code, edit]), [[A, "too_long", sending.sent[0].edit]]);
});

test("verdicts are counted, and one for a row that no longer exists here changes nothing", async () => {
  const { write, settle, send, row } = await start({ [A]: { title: "old" }, [B]: { title: "old" } });
  for (const key of [A, B]) await write((held) => put(held, items, key, { title: "mine" }, 1500));
  const sending = await send({ rows: [A, B].map((key) => ({ table: "items", key })), gets: [] });
  await write(async (held) => held.replace(await held.get("items", B), null));
  const verdicts = [A, B].map((iid) => ({ iid, verdict: "updated", last_update: iso(2000) }));
  const { tally } = await settle((settling) => settling.applyResponse(sending, { update: { items: verdicts }, version: 2 }));
  assert.deepEqual([tally.verdicts, tally.pushed, (await row()).state, await row(B)], [{ updated: 2 }, 1, "clean", undefined]);
});

for (const complete of [true, false]) {
  test(`an add that had arrived before ${complete ? "with every column is clean" : "without some columns is requested"}`, async () => {
    const { write, settle, send, row, meta } = await start({});
    if (complete) await write((held) => put(held, items, A, { title: "mine" }, 1500));
    else await write((held) => held.replace(undefined, { ...newRow("items", A), state: "added", editedAt: 1500, edit: 1, row: { title: "mine" } }));
    await write((held) => held.remember("etag", "e"));
    const sending = await send(queueOf());
    assert.equal(sending.sent[0].complete, complete);
    await settle((settling) => settling.applyResponse(sending, response("add", { verdict: "same", last_update: iso(2000) })));
    const { state, at, base } = await row();
    assert.deepEqual([state, at, base], complete ? ["clean", 2000, null] : ["clean", null, 2000]);
    assert.equal(await meta("etag"), complete ? "e" : undefined, "the next manifest has to list a row with unknown contents");
  });
}

test("if another device created a row under the same key, the own row has the base 0", async () => {
  const { write, settle, row } = await start({});
  await write((held) => put(held, items, A, { title: "mine" }, 1500));
  await settle((settling) => settling.applyPage({ type: "diff", version: 5, more: false, add: { items: [theirs] } }));
  const { state, at, base, baseRow, row: now } = await row();
  assert.deepEqual([state, at, base, baseRow, now.title], ["edited", 3000, 0, undefined, "mine"]);
});

test("requested rows are applied, but a newer row is put back if the server has another past", async () => {
  for (const [epoch, expected] of [[1, ["clean", 500, null, "earlier"]], [2, ["edited", 500, 1000, "old"]]]) {
    const { write, settle, row } = await start();
    await write((held) => held.remember("epoch", 1));
    const earlier = { iid: A, title: "earlier", last_update: iso(500) };
    const sending = { key: "k", body: {}, sent: [] };
    await settle((settling) => settling.applyResponse(sending, { get: { items: [earlier] }, changes: { type: "full", version: 9 }, version: 9 }), { epoch });
    const { state, at, base, row: now } = await row();
    assert.deepEqual([state, at, base, now.title], expected, `epoch ${epoch}`);
  }
});

// --------------------------------------------------------------------------------------------------- pages

test("the rows of a page are applied and counted once, and invalid rows are ignored", async () => {
  const { settle, row } = await start();
  const page = (rows, more = {}) => ({ type: "diff", version: 5, add: { items: rows }, update: {}, delete: {}, ...more });
  const first = await settle((settling) => settling.applyPage(page([{ ...theirs }, { iid: B, title: "new", last_update: iso(2000) }, { iid: "no key", last_update: iso(1) }, { iid: B, last_update: "no time" }])));
  assert.deepEqual([first.tally.pulled, (await row()).row.title, (await row(B)).row.title], [2, "theirs", "new"]);
  const again = await settle((settling) => settling.applyPage(page([{ ...theirs }])));
  assert.equal(again.tally.pulled, 0);
  await settle((settling) => settling.applyPage(page([{ iid: A, title: "of no time", last_update: "no time" }])));
  assert.equal((await row()).row.title, "theirs");
  const gone = await settle((settling) => settling.applyPage(page([], { delete: { items: [A, newKey()] } })));
  assert.deepEqual([gone.tally.dropped, await row()], [1, undefined]);
});

for (const [state, at, after] of [
  ["added", null, undefined],
  ["edited", 500, { state: "clean", at: null, base: null }],
]) {
  test(`a row (${state}) that is put back can be reverted only after the server has rejected it`, async () => {
    const { write, row } = await start();
    const refused = { code: "reference_missing", detail: "", at: NOW };
    await write(async (held) => held.replace(await held.get("items", A), { ...newRow("items", A), state, at, base: 1000, row: { title: "old" } }));
    await write((held) => revert(held, items, A));
    assert.equal((await row()).state, state);
    await write(async (held) => held.replace(await held.get("items", A), { ...(await held.get("items", A)), rejected: refused }));
    await write((held) => revert(held, items, A));
    const now = await row();
    assert.deepEqual(now && { state: now.state, at: now.at, base: now.base }, after);
    assert.ok(!now?.rejected);
  });
}

test("the cursor moves with the last page, and until then the page token is stored", async () => {
  const { settle, meta } = await start();
  await settle((settling) => settling.applyPage({ type: "diff", version: 5, more: true, next: "p2" }));
  assert.deepEqual([await meta("cursor"), await meta("feed")], [undefined, { number: null, next: "p2" }]);
  await settle((settling) => settling.applyPage({ type: "diff", version: 5, more: false }));
  assert.deepEqual([await meta("cursor"), await meta("feed"), await meta("known")], [5, undefined, 5]);
});

for (const event of ["expired", "compared"]) {
  test(`the event "${event}" deletes the cursor and the unfinished feed`, async () => {
    const { write, settle, meta } = await start();
    await write(async (held) => {
      await held.remember("cursor", 4);
      await held.remember("feed", { number: null, next: "p2" });
    });
    await settle((settling) => settling.moveCursor(event));
    assert.deepEqual([await meta("cursor"), await meta("feed")], [undefined, undefined]);
  });
}

test("a row that may have arrived with a slow request is doubtful until it has a verdict", async () => {
  const { write, settle, send, row } = await start({});
  await write((held) => put(held, items, A, { title: "mine" }, 1500));
  await write(async (held) => held.replace(await held.get("items", A), { ...(await held.get("items", A)), doubtful: 1 }));
  const sending = await send(queueOf());
  await settle((settling) => settling.applyResponse(sending, response("add", { verdict: "added", last_update: iso(2000) })));
  assert.deepEqual([(await row()).state, "doubtful" in (await row())], ["clean", false]);
});

test("the next manifest has to list a row whose edit was reverted", async () => {
  const { write, meta } = await start();
  await write((held) => put(held, items, A, { title: "mine" }, 1500));
  await write((held) => held.remember("etag", "e"));
  await write((held) => revert(held, items, A));
  assert.equal(await meta("etag"), undefined);
});

test("at most 200 conflicts are stored, the newest first", async () => {
  const { write, settle, send, meta } = await start();
  await write((held) => held.remember("conflicts", Array.from({ length: 200 }, (_, number) => ({ id: `old ${number}` }))));
  await write((held) => put(held, items, A, { title: "mine" }, 1500));
  const sending = await send(queueOf());
  await settle((settling) => settling.applyResponse(sending, response("update", { verdict: "kept", last_update: iso(3000), row: theirs, conflict: "c1" })));
  const known = await meta("conflicts");
  assert.deepEqual([known.length, known[0].serverId, known[1].id, known[199].id], [200, "c1", "old 0", "old 198"]);
});

test("a requested row that no longer exists is dropped, unless its user has changed it", async () => {
  const { write, settle, row } = await start({ [A]: { title: "old" }, [B]: { title: "old" } });
  await write((held) => put(held, items, B, { title: "mine" }, 1500));
  const { tally } = await settle((settling) => settling.applyResponse({ key: "k", body: {}, sent: [] }, { missing: { items: [A, B] }, version: 2 }));
  assert.deepEqual([await row(A), tally.dropped], [undefined, 1]);
  assert.deepEqual([(await row(B)).state, (await row(B)).at, (await row(B)).row.title], ["edited", null, "mine"]);
});

test("a new row that is being sent is deleted by a request, and an unsent one at once", async () => {
  const { write, send, row } = await start({});
  await write((held) => put(held, items, A, { title: "mine" }, 1500));
  await write((held) => put(held, items, B, { title: "mine" }, 1500));
  await send(queueOf());
  await write((held) => remove(held, items, A, 1600));
  await write((held) => remove(held, items, B, 1600));
  assert.deepEqual([(await row(A))?.state, await row(B)], ["deleted", undefined]);
});

test("a deleted row that is put again is an edit if the server has the row, and new if not", async () => {
  const { write, send, row } = await start();
  await write((held) => remove(held, items, A, 1500));
  await write((held) => put(held, items, A, { title: "back" }, 1600));
  assert.deepEqual([(await row()).state, (await row()).base, (await row()).row.title], ["edited", 1000, "back"]);
  await write((held) => put(held, items, B, { title: "mine" }, 1500));
  await send(queueOf(B));
  await write((held) => remove(held, items, B, 1600));
  await write((held) => put(held, items, B, { title: "back" }, 1700));
  assert.deepEqual([(await row(B)).state, (await row(B)).row.title], ["added", "back"]);
});

test("a lone surrogate is replaced by U+FFFD, also within JSON", async () => {
  const { write, row } = await start({});
  await write((held) => put(held, items, A, { title: "cut \ud83d", tags: ["\ude00", { "\ud83d": "\ud83d\ude00" }] }, 1500));
  const { title, tags } = (await row()).row;
  assert.deepEqual([title, tags], ["cut \ufffd", ["\ufffd", { "\ufffd": "\ud83d\ude00" }]]);
});

test("rows that no longer exist or have no table are skipped, and keys fill the rest of a request", async () => {
  const { write, send } = await start({});
  await write((held) => put(held, items, A, { title: "mine" }, 1500));
  const keys = Array.from({ length: 5 }, () => ({ table: "items", key: newKey() }));
  const queue = { rows: [{ table: "items", key: B }, { table: "items", key: A }], gets: [] };
  await write((held) => held.replace(undefined, { ...newRow("strange", A), state: "added", editedAt: 1, row: {} }));
  queue.rows.unshift({ table: "strange", key: A });
  const sending = await send(queue);
  assert.deepEqual([sending.sent.map(({ table, key }) => [table, key]), queue.rows], [[["items", A]], []]);
  assert.deepEqual(Object.keys(sending.body.add), ["items"]);
  const size = JSON.stringify(sending.body.add.items[0]).length + 1;
  const filled = await send({ rows: [{ table: "items", key: A }], gets: [...keys] }, undefined, { ...limits, bytes: (size + 39) / 0.8 });
  assert.equal(filled.body.get, undefined, "no room for a key");
  const two = await send({ rows: [], gets: [...keys] }, undefined, { ...limits, bytes: 100 });
  assert.equal(two.body.get.items.length, 2);
  const one = await send({ rows: [], gets: [...keys] }, undefined, { ...limits, bytes: 1 });
  assert.equal(one.body.get.items.length, 1, "at least one");
});

test("the version of a page is stored", async () => {
  const { write, settle, meta } = await start();
  await write((held) => held.remember("known", 3));
  await settle((settling) => settling.applyPage({ type: "diff", version: 5, more: true, next: "p2" }));
  assert.equal(await meta("known"), 5);
  await settle((settling) => settling.applyPage({ type: "diff", version: 4, more: false }));
  assert.equal(await meta("known"), 5, "it does not fall");
});

for (const [past, before, epoch, version, kept] of [
  ["the past that the device knows", { epoch: 1, known: 4 }, 1, 5, false],
  ["another epoch", { epoch: 1, known: 4 }, 2, 5, true],
  ["a lower version", { epoch: 1, known: 9 }, 1, 5, true],
  ["a lower version than the cursor of an older release", { cursor: 9 }, null, 5, true],
  ["a server that the device has never seen", {}, 1, 5, false],
]) {
  test(`a row that is missing from a full feed of ${past} is ${kept ? "put back" : "deleted"}`, async () => {
    const { write, settle, row, meta } = await start({ [A]: { title: "old" }, [B]: { title: "listed" } });
    await write(async (held) => {
      for (const [name, value] of Object.entries(before)) await held.remember(name, value);
      await held.remember("etag", "e");
    });
    const listed = { iid: B, title: "listed", last_update: iso(1000) };
    const { tally } = await settle((settling) => settling.applyPage({ type: "full", version, more: false, add: { items: [listed] } }), { epoch, feed: 7 });
    assert.equal((await row(B)).state, "clean");
    assert.equal(tally.dropped, kept ? 0 : 1);
    assert.deepEqual(await row().then((one) => one && [one.state, one.base, one.editedAt, one.waits]), kept ? ["added", 1000, null, 1] : undefined);
    assert.deepEqual([await meta("epoch"), await meta("known"), await meta("cursor")], [epoch ?? undefined, version, version]);
    assert.equal(await meta("seed"), kept ? undefined : SEED, "a server that was started anew has another seed");
    assert.equal(await meta("etag"), kept ? undefined : "e");
  });
}

for (const [past, known, stored] of [
  ["the past that the device knows", 4, 5],
  ["another past", 9, 9],
]) {
  test(`after the first page of a full feed of ${past} the known version is ${stored}`, async () => {
    const { write, settle, meta } = await start();
    await write((held) => Promise.all([held.remember("epoch", 1), held.remember("known", known)]));
    await settle((settling) => settling.applyPage({ type: "full", version: 5, more: true, next: "p2" }), { epoch: 1, feed: 7 });
    assert.deepEqual([await meta("known"), await meta("cursor"), await meta("seed")], [stored, undefined, SEED]);
    assert.deepEqual(await meta("feed"), { number: 7, next: "p2" });
    await settle((settling) => settling.applyPage({ type: "diff", version: 5, more: true, next: "p3" }), { epoch: 1, feed: 7 });
    assert.deepEqual(await meta("feed"), { number: null, next: "p3" });
  });
}

// ------------------------------------------------------------------------------------------------- requests

test("only an edit of a known state is sent in part", async () => {
  const of = (state, at, editedAt = 1) => goesWhole({ state, at, base: null, editedAt });
  assert.deepEqual([of("added", null), of("edited", null), of("edited", 5), of("edited", 5, null), of("deleted", 5)], [true, true, false, true, true]);
});

test("requests keep to the limits, contain their options, and have rows that are put back in requests of their own", async () => {
  const { write, send } = await start({});
  const keys = Array.from({ length: 7 }, () => newKey());
  for (const key of keys) await write((held) => put(held, items, key, { title: "x".repeat(40) }, 1500));
  const queue = { rows: keys.map((key) => ({ table: "items", key })), gets: [{ table: "items", key: A }, { table: "items", key: B }] };
  const options = { base: 3, pull: true, confirmDeletes: 9 };
  const first = await send(queue, options, { ...limits, rows: 3 });
  assert.equal(first.sent.length, 3);
  assert.deepEqual([first.body.base, first.body.keep_lock, first.body.pull, first.body.confirm_deletes, first.body.put_back], [3, true, undefined, 9, undefined]);
  assert.deepEqual(first.body.get?.items, [A, B], "keys fill what is left");
  assert.deepEqual(first.body.add.items[0], { iid: keys[0], title: "x".repeat(40), done: false, last_update: iso(1500) }, "null columns are left out");
  const size = JSON.stringify(first.body.add.items[0]).length + 1;
  const second = await send(queue, options, { ...limits, bytes: (size * 2 + 1) / 0.8 });
  assert.equal(second.sent.length, 2);
  const last = await send(queue, options);
  assert.deepEqual([last.sent.length, last.body.keep_lock, last.body.pull, queue.rows.length], [2, undefined, true, 0]);
  requeue(queue, first);
  assert.deepEqual([queue.rows.map(({ key }) => key), queue.gets.map(({ key }) => key)], [keys.slice(0, 3), [A, B]]);
  const tiny = await send({ rows: queue.rows, gets: [] }, options, { ...limits, bytes: 1 });
  assert.equal(tiny.sent.length, 1, "one row is sent in spite of its size");
  assert.deepEqual([isDivisible(first), isDivisible(tiny), isDivisible({ sent: [], body: { get: { items: [A] } } }), isDivisible({ sent: [], body: { get: { items: [A, B] } } })], [true, false, false, true]);
  // A row that is put back is sent in a request of its own, with its time and its null columns.
  await write((held) => held.replace(undefined, { ...newRow("items", A), state: "added", base: 1000, row: { title: "lost", tags: null } }));
  const mixed = { rows: [{ table: "items", key: A }, { table: "items", key: keys[0] }], gets: [] };
  const lost = await send(mixed, options);
  assert.deepEqual([lost.body.put_back, lost.body.add.items], [true, [{ iid: A, title: "lost", tags: null, last_update: iso(1000) }]]);
  assert.equal((await send(mixed, options)).body.put_back, undefined);
});

test("parents are sent first, and children are deleted first", () => {
  const row = (table, state, key, editedAt = 1) => ({ ...newRow(table, key), state, editedAt });
  const rows = [row("lists", "deleted", "1"), row("items", "added", "2"), row("items", "deleted", "3"), row("lists", "added", "4"), row("items", "edited", "5"), row("lists", "edited", "6"), row("items", "added", "7", null), row("lists", "clean", "8"), row("strange", "added", "9")];
  assert.deepEqual(inOrder(rows, declared).map(({ key }) => key), ["7", "4", "2", "6", "5", "3", "1"]);
  const alike = ["3", "1", "2"].map((key) => row("items", "added", key));
  assert.deepEqual(inOrder(alike, declared).map(({ key }) => key), ["1", "2", "3"], "rows of one kind are in the order of their keys");
});

// ----------------------------------------------------------------------------------------------------- held

test("the digests follow the rows, and edits are counted", async () => {
  const { write, read, row } = await start({ [A]: { title: "a" }, [B]: { title: "b" } });
  const kept = await read((held) => held.digests());
  assert.equal(kept.items.count, 2);
  const counted = async () => {
    const before = await read((held) => held.digests());
    await write((held) => held.recount());
    assert.deepEqual(await read((held) => held.digests()), before);
    return before;
  };
  await write((held) => put(held, items, A, { title: "edited" }, 5));
  assert.deepEqual(await counted(), kept, "an edit that waits counts as the state before it");
  await write(async (held) => held.replace(await held.get("items", B), { ...(await held.get("items", B)), at: 2000 }));
  assert.notEqual((await counted()).items.root, kept.items.root);
  await write(async (held) => held.replace(await held.get("items", B), null));
  assert.equal((await counted()).items.count, 1);
  assert.deepEqual(await write(async (held) => [await held.nextEdit(), await held.nextEdit()]), [2, 3]);
  assert.deepEqual([(await row()).waits, (await read((held) => held.waiting())).length], [1, 1]);
  const [, touched] = await Held.write(memoryStore(), declared, (held) => held.replace(undefined, newRow("items", A)));
  assert.deepEqual([...touched], ["items"]);
});

test("a rejection determines when the row may be sent again", () => {
  const of = (error) => rejectionOf({ detail: "d", ...error }, NOW);
  assert.deepEqual(of({ code: "too_long", column: "title" }), { code: "too_long", detail: "d", column: "title" });
  assert.deepEqual(of({ code: "too_many_edits", retry_after_s: 2 }), { code: "too_many_edits", detail: "d", retryAt: NOW + 2000 });
  const may = (error, at) => mayTryAgain(of(error), at);
  assert.deepEqual([may({ code: "too_long" }, NOW), may({ code: "reference_missing" }, NOW), may({ code: "still_referenced" }, NOW)], [false, true, true]);
  assert.deepEqual([may({ code: "x", retry_after_s: 2 }, NOW + 1999), may({ code: "x", retry_after_s: 2 }, NOW + 2000)], [false, true]);
});

test("a sent row is complete if it has every declared column", async () => {
  const { write, send } = await start({});
  const [whole, lacking] = [newKey(), newKey()];
  await write((held) => put(held, items, whole, { title: "a" }, 1500)); // defaults and nulls fill the others in
  await write((held) => held.replace(undefined, { ...newRow("items", lacking), state: "added", editedAt: 1, row: { title: "b" } }));
  const { sent } = await send({ rows: [{ table: "items", key: whole }, { table: "items", key: lacking }], gets: [] });
  assert.deepEqual(sent.map(({ complete }) => complete), [true, false]);
  const free = declare({ items: { key: "iid" } });
  const store = memoryStore();
  const [made] = await Held.write(store, free, async (held) => {
    await put(held, free.get("items"), whole, { title: "a" }, 1500);
    return nextRequest(held, { rows: [{ table: "items", key: whole }], gets: [] }, limits, { base: null, pull: false, confirmDeletes: undefined });
  });
  assert.deepEqual([made.sent[0].complete, made.body.base], [false, undefined], "a table without columns has no complete rows");
});

test("parent tables come first, also if the references form a cycle", () => {
  const column = (references) => ({ type: "uuid", references });
  const order = [...declare({ a: { key: "id", columns: { b: column("b"), gone: column("nowhere") } }, b: { key: "id", columns: { a: column("a"), c: column("c") } }, c: { key: "id" } }).keys()];
  assert.deepEqual(order, ["c", "b", "a"]);
});

test("a row without a value for a column shows the column's default", () => {
  const columns = { text: "text", count: { type: "integer", default: 3 }, off: { type: "boolean", default: false }, at: { type: "timestamp", default: "now" }, bare: { type: "text" } };
  const declared = declare({ a: { key: "id", columns }, b: { key: "id" } });
  // The server sets the value of `now`, so the client shows none.
  assert.deepEqual(declared.get("a").blank, { text: null, count: 3, off: false, at: null, bare: null });
  assert.deepEqual(declared.get("b").blank, {});
});

const columnOfEachType = Object.fromEntries(["text", "boolean", "integer", "real", "decimal", "json", "uuid", "timestamp", "date", "blob"].map((type) => [type, type]));
const typed = declare({ typed: { key: "id", columns: columnOfEachType } });
for (const [type, good, bad] of [
  ["text", ["", "a"], [1, true, {}]],
  ["boolean", [true, false], [0, "true"]],
  ["integer", [0, -3, 2 ** 53 - 1, "9223372036854775807", "-1"], [1.5, 2 ** 53, "1.0", "", true]],
  ["real", [0, 1.5, -1e300], ["1.5", true, {}]],
  ["decimal", ["12.50", "-1"], ["1e3", ".5", "", true]],
  ["json", [1, "a", [1], { a: null }], []],
  ["uuid", [A], ["a", A.slice(1), 1]],
  ["timestamp", ["2013-05-01T15:42:50.343Z"], ["yesterday", "2013-02-30 00:00:00", 5]],
  ["date", ["2013-05-01"], ["2013-5-1", "x2013-05-01", "2013-05-01T00:00:00Z", 5]],
  ["blob", ["aGVsbG8="], [1, {}]],
]) {
  test(`a column of the type ${type} takes its values and null, and no others`, async () => {
    const store = memoryStore();
    const write = (work) => Held.write(store, typed, work);
    const stored = async (value) => {
      await write((held) => put(held, typed.get("typed"), A, { [type]: value }, NOW));
      return Held.read(store, typed, (held) => held.get("typed", A)).then(({ row }) => row[type]);
    };
    for (const value of [...good, null]) assert.deepEqual(await stored(value), value);
    for (const value of bad) await assert.rejects(stored(value), { code: "wrong_type" }, JSON.stringify(value));
  });
}

test("a decimal is stored as text, a key in lower case, and a time as the server writes it", async () => {
  const store = memoryStore();
  const values = { decimal: 12.5, uuid: A.toUpperCase(), timestamp: "2013-05-01T17:42:50.343+02:00" };
  await Held.write(store, typed, async (held) => {
    await held.remember("limits", { precision: "seconds" });
    await put(held, typed.get("typed"), A, values, NOW);
  });
  const { row } = await Held.read(store, typed, (held) => held.get("typed", A));
  assert.deepEqual([row.decimal, row.uuid, row.timestamp], ["12.5", A, "2013-05-01 15:42:50"]);
});

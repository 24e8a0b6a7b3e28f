// Every verdict of the server on the real RxDB: no edit is lost because the server rejected it.
import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { after, test } from "node:test";
import { createRxDatabase } from "rxdb";
import { getRxStorageMemory } from "rxdb/plugins/storage-memory";
import { replicateRollcall } from "./rollcall.js";
import { badTexts, device, restorable, proxy, server, skip, until } from "../support.mjs";

const text = { type: ["string", "null"] };
const schema = {
  version: 0,
  primaryKey: "id",
  type: "object",
  properties: { id: { type: "string", maxLength: 36 }, text, done: { type: ["boolean", "null"] }, stars: { type: ["integer", "null"] }, last_update: text, rejected: text },
  required: ["id"],
};
const started = await server();
let users = 0;

async function open(name, { url = started.url, email = `verdicts${++users}@example.com`, wire = proxy(), collection, token, ...options } = {}) {
  const own = collection ? undefined : await device({ url }, email, name);
  const database = collection ? collection.database : await createRxDatabase({ name: `${name}${randomUUID()}`, storage: getRxStorageMemory(), multiInstance: false });
  const notes = collection ?? (await database.addCollections({ notes: { schema } })).notes;
  const errors = [];
  const replication = replicateRollcall({ collection: notes, url, token: token ?? (() => own.token), fetch: wire.fetch, retryTime: 100, ...options });
  replication.error$.subscribe((error) => errors.push(error));
  after(() => database.close());
  const get = (id) => notes.findOne(id).exec();
  const row = async (id) => (await get(id))?.toMutableJSON();
  const list = async () => (await notes.find().exec()).map((doc) => doc.toMutableJSON());
  const add = async (columns) => (await notes.insert({ id: randomUUID(), text: null, done: false, stars: null, ...columns })).id;
  const there = async () => {
    const response = await fetch(`${url}/changes`, { headers: { Authorization: `Bearer ${await (token ?? (() => own.token))()}` } });
    return Object.values((await response.json()).add.notes ?? []);
  };
  return { email, own, notes, replication, errors, wire, get, row, list, add, there, url };
}
const rejection = (code, more = {}) => ({ verdict: "rejected", error: { code, detail: `${code}!`, at: "/add/notes/0", ...more } });
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

test("RxDB: bad rows among a thousand good ones block none, stay, and are reported", { skip }, async () => {
  const phone = await open("phone");
  const good = Array.from({ length: 1000 }, (_, i) => ({ id: randomUUID(), text: `good ${i}`, done: false, stars: i }));
  const bad = badTexts.map((text) => ({ id: randomUUID(), text, done: false, stars: null }));
  await phone.notes.bulkInsert([...good.slice(0, 500), ...bad, ...good.slice(500)]);
  await until(async () => (await phone.there()).length === 1000, "a thousand on the server");
  await until(async () => (await phone.list()).filter(({ rejected }) => rejected).length === bad.length, "the others are marked");
  for (const { id, text } of bad) {
    const row = await phone.row(id);
    assert.equal(row.text, text, "as the user made it");
    assert.ok(phone.errors.some(({ key }) => key === id), "it is reported");
  }
  // Once it is edited, it is sent, and is no longer marked.
  await (await phone.get(bad[0].id)).patch({ text: "corrected" });
  await until(async () => (await phone.there()).some(({ id, text }) => id === bad[0].id && text === "corrected"), "the corrected row");
  await until(async () => (await phone.row(bad[0].id)).rejected === null, "the mark is gone");
  assert.ok((await phone.row(bad[0].id)).last_update);
  const before = phone.wire.log.length;
  await pause(500);
  assert.equal(phone.wire.log.length, before, "no row is sent repeatedly");
});

test("RxDB: a rejected edit stays when another device changes the row, and keeps its base", { skip }, async () => {
  const phone = await open("phone");
  const tablet = await open("tablet", { email: phone.email });
  const id = await phone.add({ text: "Cake" });
  await until(async () => (await tablet.row(id))?.last_update, "both have it");
  await until(async () => (await phone.row(id)).last_update, "with its time");
  phone.wire.verdictOf = (_, item) => (item.stars === 7 ? rejection("invalid_value") : undefined);
  await (await phone.get(id)).patch({ stars: 7 });
  await until(async () => (await phone.row(id)).rejected === "invalid_value", "marked");
  await (await tablet.get(id)).patch({ done: true });
  await until(async () => (await phone.there()).some(({ done }) => done), "the tablet's edit");
  phone.replication.reSync();
  await pause(700);
  assert.deepEqual([(await phone.row(id)).stars, (await phone.row(id)).done], [7, false], "the edit stays");
  const base = (await phone.row(id)).last_update;
  await (await phone.get(id)).patch({ stars: 5 });
  await until(async () => phone.wire.log.some(({ update }) => update?.notes?.some(({ stars }) => stars === 5)), "it is sent");
  const item = phone.wire.log.flatMap(({ update }) => update?.notes ?? []).find(({ stars }) => stars === 5);
  assert.deepEqual([item._base, "rejected" in item, "last_update" in item], [base, false, false]);
  // The server keeps the tablet's row (`manual`), RxDB's own handler applies it, and the server has the loser.
  await until(async () => (await phone.row(id)).done === true && (await phone.row(id)).rejected === null, "resolved as a conflict");
});

test("RxDB: a rejected deletion restores the row with the reason, and is sent again", { skip }, async () => {
  const phone = await open("phone");
  const id = await phone.add({ text: "Cake" });
  await until(async () => (await phone.row(id)).last_update, "it is there");
  let held = true;
  phone.wire.verdictOf = (operation) => (operation === "delete" && held ? rejection("still_referenced", { retry_after_s: 1 }) : undefined);
  await (await phone.get(id)).remove();
  await until(async () => (await phone.row(id))?.rejected === "deletion: still_referenced", "it is back, marked");
  assert.equal((await phone.row(id)).text, "Cake");
  held = false;
  await until(async () => (await phone.there()).length === 0 && !(await phone.get(id)), "deleted once that is possible");
});

test("RxDB: a row that was edited too often is sent again after the server's pause", { skip }, async () => {
  const phone = await open("phone");
  let busy = true;
  phone.wire.verdictOf = () => (busy ? rejection("too_many_edits", { retry_after_s: 1 }) : undefined);
  const id = await phone.add({ text: "Cake" });
  await until(async () => (await phone.row(id)).rejected === "too_many_edits", "marked");
  busy = false;
  await until(async () => (await phone.there()).length === 1 && (await phone.row(id)).rejected === null, "sent again");
});

test("RxDB: after a restart of the app a rejected row is sent once more", { skip }, async () => {
  const phone = await open("phone");
  phone.wire.verdictOf = () => rejection("unknown_column");
  const id = await phone.add({ text: "Cake" });
  await until(async () => (await phone.row(id)).rejected, "marked");
  await phone.replication.cancel();
  const again = await open("phone", { collection: phone.notes, token: () => phone.own.token });
  await until(async () => (await again.there()).length === 1 && (await again.row(id)).rejected === null, "accepted by a newer server");
});

for (const operation of ["insert", "update", "delete", "insert and update", "insert and delete", "delete and insert"]) {
  for (const verdict of ["added", "updated", "same", "merged", "kept", "gone", "absent", "rejected"]) {
    test(`RxDB: ${operation} with the verdict ${verdict}: no edit is lost, and the sync ends`, { skip }, async () => {
      const phone = await open("phone");
      let id = randomUUID();
      const fresh = operation.startsWith("insert");
      if (!fresh) {
        id = await phone.add({ text: "first" });
        await until(async () => (await phone.row(id)).last_update, "it is there");
      }
      phone.wire.still = true; // the real server does not have the state of the verdict below
      const theirs = { id, text: "theirs", done: false, stars: null, last_update: new Date(Date.now() + 1000).toISOString() };
      let [times, away] = [1, true];
      const deletes = operation === "delete" || operation === "insert and delete";
      phone.wire.verdictOf = (sent) => {
        if ((operation === "delete and insert" && sent === "delete") || times-- <= 0) return undefined;
        if (verdict === "rejected") return rejection("invalid_value");
        return { verdict, last_update: theirs.last_update, ...(["merged", "kept"].includes(verdict) && { row: theirs }) };
      };
      // RxDB pushes the final state of the row, however often it was changed offline.
      phone.wire.refuse = () => (away ? { status: 503, code: "busy", detail: "away" } : undefined);
      if (fresh) await phone.notes.insert({ id, text: "mine", done: false, stars: null });
      if (operation.includes("update")) await (await phone.get(id)).patch({ text: "mine" });
      if (operation.includes("delete")) await (await phone.get(id)).remove();
      if (operation === "delete and insert") await phone.notes.insert({ id, text: "mine", done: false, stars: null });
      away = false;
      await until(async () => times <= 0, "it was sent");
      await pause(100);
      await phone.replication.awaitInSync();
      // RxDB writes the mark of a rejected row in its own time.
      const isMarked = verdict === "rejected" && operation !== "insert and delete";
      if (isMarked) await until(async () => (await phone.row(id))?.rejected, "the row is marked");
      const sent = phone.wire.log.length;
      await pause(300);
      const row = await phone.row(id);
      assert.equal(phone.wire.log.length, sent, "no more requests");
      assert.deepEqual(phone.errors.filter(({ key }) => key).map(({ code }) => code), verdict === "rejected" ? ["invalid_value"] : []);
      if (["merged", "kept"].includes(verdict)) assert.equal(row.text, "theirs", "RxDB's handler applies the server's row");
      else if (verdict === "rejected" && !deletes) assert.deepEqual([row.text, row.rejected], ["mine", "invalid_value"]);
      else if (verdict === "rejected" && operation === "delete") assert.deepEqual([row.text, row.rejected], ["first", "deletion: invalid_value"]);
      else if (deletes || verdict === "gone") assert.equal(row, undefined);
      else assert.equal(row.text, "mine");
      // A later edit of the row arrives.
      if (!row || operation === "delete and insert") return; // the real server has it deleted
      phone.wire.still = false;
      phone.replication.reSync();
      await phone.replication.awaitInSync();
      await (await phone.get(id)).patch({ text: "later" });
      await until(async () => (await phone.there()).some((one) => one.id === id && one.text === "later") && (await phone.row(id)).rejected === null, "the next edit arrives");
    });
  }
}

test("RxDB: if the server refuses a whole request because of one row, the others are sent without it", { skip }, async () => {
  const phone = await open("phone");
  for (const [status, code] of [[422, "invalid_value"], [400, "malformed_json"], [413, "body_too_large"]]) {
    phone.wire.refuse = (body) => (Object.values(body).some((set) => set.notes?.some(({ text }) => text === "bad")) ? { status, code, detail: "no" } : undefined);
    const rows = ["a", "b", "bad", "c", "d", "e"].map((text) => ({ id: randomUUID(), text, done: false, stars: null }));
    await phone.notes.bulkInsert(rows);
    await until(async () => (await phone.row(rows[2].id)).rejected === code, "the bad one is marked");
    const there = await phone.there();
    assert.equal(rows.filter(({ id }) => there.some((row) => row.id === id)).length, 5);
  }
  // After 503 `timeout` the rows are sent again in parts, and none is marked.
  let slow = 2;
  phone.wire.refuse = () => (slow-- > 0 ? { status: 503, code: "timeout", detail: "slow" } : undefined);
  const rows = ["f", "g", "h", "i"].map((text) => ({ id: randomUUID(), text, done: false, stars: null }));
  await phone.notes.bulkInsert(rows);
  await until(async () => (await phone.there()).length === 19, "all four");
  for (const { id } of rows) assert.equal((await phone.row(id)).rejected ?? null, null);
});

test("RxDB: more rows than a page has, and then a change", { skip }, async () => {
  const phone = await open("phone");
  await phone.notes.bulkInsert(Array.from({ length: 1203 }, (_, i) => ({ id: randomUUID(), text: `${i}`, done: false, stars: null })));
  await until(async () => (await phone.there()).length === 1203, "all are there");
  const tablet = await open("tablet", { email: phone.email });
  await until(async () => (await tablet.list()).length === 1203, "all have arrived");
  const id = await phone.add({ text: "new" });
  await until(() => tablet.row(id), "the new row arrives");
});

test("RxDB: a token of another user is refused", { skip }, async (t) => {
  const phone = await open("phone");
  if ((await fetch(`${started.url}/me`)).status === 404) return t.skip("the server does not know GET /me");
  const id = await phone.add({ text: "Anna's" });
  await until(async () => (await phone.row(id)).last_update, "it is there");
  await phone.replication.cancel();
  const ben = await device(started, `ben${++users}@example.com`, "phone");
  await phone.notes.insert({ id: randomUUID(), text: "Anna's, unsent", done: false, stars: null });
  const again = await open("phone", { collection: phone.notes, token: () => ben.token });
  await until(() => again.errors.some(({ parameters }) => JSON.stringify(parameters?.errors ?? "").includes("other_user")), "it is reported");
  assert.deepEqual(await again.there(), []);
  assert.equal((await again.list()).length, 2);
});

test("RxDB: a restored server gets its lost rows back, and deleted rows stay deleted", { skip }, async () => {
  let backend = await restorable();
  try {
    const phone = await open("phone", { url: backend.url });
    const tablet = await open("tablet", { url: backend.url, email: phone.email });
    const both = (holds, what) => until(async () => holds(await phone.list(), await phone.row.length) && holds(await tablet.list()), what);
    const [old, doomed] = [await phone.add({ text: "old" }), await phone.add({ text: "doomed" })];
    await both((rows) => rows.length === 2 && rows.every(({ last_update }) => last_update), "two rows");
    await (await phone.get(doomed)).remove();
    await both((rows) => rows.length === 1, "one is deleted");
    backend.backUp();
    const later = [];
    for (let n = 0; n < 3; n++) later.push(await phone.add({ text: `later ${n}` }));
    await both((rows) => rows.length === 4 && rows.every(({ last_update }) => last_update), "three more");
    backend = await backend.restore();
    for (const one of [phone, tablet]) one.replication.reSync();
    await until(async () => (await phone.there()).length === 4, "the server has them again");
    await pause(1000);
    await both((rows) => rows.length === 4, "and so have both devices");
    assert.deepEqual((await phone.there()).map(({ id }) => id).sort(), [old, ...later].sort());
  } finally {
    await backend.stop();
    backend.remove();
  }
});

// Every verdict of the server on the real WatermelonDB: no edit is lost because the server rejected it, or because
// WatermelonDB pulls before it pushes.
import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { test } from "node:test";
import watermelon from "@nozbe/watermelondb";
import LokiJSAdapter from "@nozbe/watermelondb/adapters/lokijs/index.js";
import { setGenerator } from "@nozbe/watermelondb/utils/common/randomId/index.js";
import logger from "@nozbe/watermelondb/utils/common/logger/index.js";
import { syncWithRollcall } from "./rollcall.js";
import { badTexts, device, restorable, proxy, server, skip } from "../support.mjs";

const { appSchema, Database, Model, tableSchema } = watermelon;
setGenerator(randomUUID);
(logger.default ?? logger).silence();
class Note extends Model {
  static table = "notes";
}
const columns = [{ name: "text", type: "string" }, { name: "done", type: "boolean" }, { name: "stars", type: "number" }, { name: "last_update", type: "string" }];
const schema = appSchema({ version: 1, tables: [tableSchema({ name: "notes", columns })] });
const started = await server();
let users = 0;

async function open(name, { url = started.url, email = `melons${++users}@example.com` } = {}) {
  const own = await device({ url }, email, name);
  const Loki = LokiJSAdapter.default ?? LokiJSAdapter;
  const adapter = new Loki({ schema, useWebWorker: false, useIncrementalIndexedDB: false, extraLokiOptions: { autosave: false }, dbName: randomUUID() });
  const database = new Database({ adapter, modelClasses: [Note] });
  const [notes, wire, reported] = [database.get("notes"), proxy(), []];
  const find = async (id) => (await notes.query().fetch()).find((note) => note.id === id);
  const set = (row) => (note) => Object.entries(row).forEach(([name, value]) => note._setRaw(name, value));
  const one = {
    email, own, wire, reported, token: () => own.token,
    sync: async () => syncWithRollcall({ database, url, token: () => one.token(), tables: { notes: "id" }, fetch: wire.fetch, onRejected: (row) => reported.push(row) }),
    add: async (row) => (await database.write(() => notes.create(set({ text: "", done: false, stars: 0, ...row })))).id,
    addAll: (rows) => database.write(() => database.batch(rows.map((row) => notes.prepareCreate(set({ text: "", done: false, stars: 0, ...row }))))),
    edit: async (id, row) => database.write(async () => (await find(id)).update(set(row))),
    remove: async (id) => database.write(async () => (await find(id)).markAsDeleted()),
    list: async () => (await notes.query().fetch()).map(({ _raw }) => ({ ..._raw })).sort((a, b) => (a.id < b.id ? -1 : 1)),
    row: async (id) => (await one.list()).find((row) => row.id === id),
    there: async () => Object.values((await (await fetch(`${url}/changes`, { headers: { Authorization: `Bearer ${own.token}` } })).json()).add.notes ?? []),
  };
  return one;
}
const rejection = (code, more = {}) => ({ verdict: "rejected", error: { code, detail: `${code}!`, at: "/add/notes/0", ...more } });

test("WatermelonDB: bad rows among a thousand good ones block none, stay, and are reported", { skip }, async () => {
  const phone = await open("phone");
  const good = Array.from({ length: 1000 }, (_, i) => ({ text: `good ${i}` }));
  const bad = badTexts.map((text) => ({ text }));
  await phone.addAll([...good.slice(0, 500), ...bad, ...good.slice(500)]);
  const rejected = await phone.sync();
  assert.equal((await phone.there()).length, 1000);
  assert.equal(rejected.length, bad.length);
  assert.deepEqual(phone.reported, rejected);
  const waiting = (await phone.list()).filter(({ _status }) => _status !== "synced");
  assert.deepEqual(waiting.map(({ text }) => text).sort(), badTexts.toSorted(), "as the user made them");
  await phone.edit(waiting[0].id, { text: "corrected" });
  assert.equal((await phone.sync()).length, bad.length - 1);
  assert.ok((await phone.there()).some(({ id, text }) => id === waiting[0].id && text === "corrected"));
});

for (const operation of ["create", "update", "delete"]) {
  for (const verdict of ["added", "updated", "same", "merged", "deleted", "kept", "gone", "absent", "rejected"]) {
    test(`WatermelonDB: ${operation} with the verdict ${verdict}: no edit is lost, and the sync ends`, { skip }, async () => {
      const phone = await open("phone");
      const id = await phone.add({ text: operation === "create" ? "mine" : "first" });
      if (operation !== "create") await phone.sync();
      let times = 1;
      phone.wire.verdictOf = () => (times-- > 0 ? (verdict === "rejected" ? rejection("invalid_value") : { verdict, last_update: new Date().toISOString() }) : undefined);
      if (operation === "update") await phone.edit(id, { text: "mine" });
      if (operation === "delete") await phone.remove(id);
      const rejected = await phone.sync();
      assert.deepEqual(rejected.map(({ code }) => code), verdict === "rejected" ? ["invalid_value"] : []);
      const there = async () => (await phone.there()).find((row) => row.id === id)?.text;
      if (verdict === "rejected" && operation !== "delete") {
        const { text, _status } = await phone.row(id);
        assert.deepEqual([text, _status], ["mine", operation === "create" ? "created" : "updated"]);
      }
      assert.equal((await phone.row(id))?.text, operation === "delete" ? undefined : "mine");
      // A rejected row is sent again, and so is one that another device has changed first.
      await phone.sync();
      if (["kept", "rejected"].includes(verdict) || (verdict === "gone" && operation !== "delete")) assert.equal(await there(), operation === "delete" ? undefined : "mine");
      if (verdict === "absent" && operation === "update") assert.equal(await there(), "mine", "added again");
      assert.equal((await phone.sync()).length, 0);
      const requests = phone.wire.log.length;
      await phone.sync();
      assert.ok(phone.wire.log.slice(requests).every((body) => !Object.values(body).some((set) => set.notes?.length)), "no row is sent repeatedly");
    });
  }
}

test("WatermelonDB: an edit of a row that another device deleted reaches the server before it is dropped", { skip }, async () => {
  const phone = await open("phone");
  const tablet = await open("tablet", { email: phone.email });
  const id = await phone.add({ text: "Cake" });
  await phone.sync();
  await tablet.sync();
  await tablet.remove(id);
  await tablet.sync();
  await phone.edit(id, { text: "Cheesecake" });
  const rejected = await phone.sync();
  assert.deepEqual(rejected.map(({ id, code }) => [id, code]), [[id, "gone"]]);
  assert.equal(await phone.row(id), undefined, "the deletion won, as both sides agree");
  const response = await fetch(`${started.url}/conflicts`, { headers: { Authorization: `Bearer ${phone.own.token}` } });
  assert.ok(JSON.stringify(await response.json()).includes("Cheesecake"), "the server keeps the loser");
});

test("WatermelonDB: if the server refuses a whole request because of one row, the others are sent without it", { skip }, async () => {
  const phone = await open("phone");
  for (const [status, code] of [[422, "invalid_value"], [400, "malformed_json"], [413, "body_too_large"]]) {
    phone.wire.refuse = (body) => (Object.values(body).some((set) => set.notes?.some(({ text }) => text === "bad")) ? { status, code, detail: "no" } : undefined);
    await phone.addAll(["a", "b", "bad", "c", "d", "e"].map((text) => ({ text })));
    const bad = (await phone.list()).find(({ text }) => text === "bad");
    assert.deepEqual((await phone.sync()).map((row) => [row.id, row.code]), [[bad.id, code]]);
    await phone.edit(bad.id, { text: "corrected" });
    assert.deepEqual(await phone.sync(), []);
  }
  assert.equal((await phone.there()).length, 18);
  let slow = 2;
  phone.wire.refuse = () => (slow-- > 0 ? { status: 503, code: "timeout", detail: "slow" } : undefined);
  await phone.addAll(["f", "g", "h", "i"].map((text) => ({ text })));
  assert.deepEqual(await phone.sync(), []);
  assert.equal((await phone.there()).length, 22);
});

test("WatermelonDB: each push has a higher count, and another user's token is refused", { skip }, async (t) => {
  const phone = await open("phone");
  if ((await fetch(`${started.url}/me`)).status === 404) return t.skip("the server does not know GET /me");
  for (const text of ["a", "b"]) {
    await phone.add({ text });
    await phone.sync();
  }
  const named = phone.wire.requests.filter(({ url }) => url.endsWith("/synchronise")).map(({ headers }) => headers["Sync-Device"].split("."));
  assert.equal(new Set(named.map(([id]) => id)).size, 1);
  const counts = named.map(([, count]) => Number(count));
  assert.ok(counts.length >= 2 && counts.every((count, i) => i === 0 || count > counts[i - 1]), `${counts}`);
  const ben = await device(started, `ben${++users}@example.com`, "phone");
  await phone.add({ text: "Anna's, unsent" });
  phone.token = () => ben.token;
  await assert.rejects(phone.sync(), { code: "other_user" });
  assert.equal((await phone.list()).length, 3);
  phone.token = () => phone.own.token;
  await phone.sync();
  assert.equal((await phone.there()).length, 3);
});

test("WatermelonDB: a restored server gets its lost rows back, and deleted rows stay deleted", { skip }, async () => {
  let backend = await restorable();
  try {
    const phone = await open("phone", { url: backend.url });
    const tablet = await open("tablet", { url: backend.url, email: phone.email });
    const away = await open("away", { url: backend.url, email: phone.email });
    const old = await phone.add({ text: "old" });
    const doomed = await phone.add({ text: "doomed" });
    for (const one of [phone, tablet, away]) await one.sync();
    await phone.remove(doomed);
    for (const one of [phone, tablet]) await one.sync(); // `away` does not sync
    backend.backUp();
    const later = await phone.add({ text: "later" });
    const edited = await tablet.add({ text: "later still" });
    for (const one of [phone, tablet, phone]) await one.sync();
    await tablet.edit(edited, { text: "edited, unsent" });
    backend = await backend.restore();
    for (const one of [away, phone, tablet, phone, away]) await one.sync();
    for (const one of [phone, tablet, away]) {
      assert.deepEqual((await one.list()).map(({ id, text }) => [id, text]).sort(), [[old, "old"], [later, "later"], [edited, "edited, unsent"]].sort());
    }
    assert.equal((await phone.there()).length, 3);
    assert.ok((await phone.there()).every(({ last_update }) => last_update > "2001"), "none has the time LONG_AGO");
  } finally {
    await backend.stop();
    backend.remove();
  }
});

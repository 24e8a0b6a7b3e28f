// Two devices of one user on the real WatermelonDB (LokiJS, in memory) and a real server.
import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { test } from "node:test";
import watermelon from "@nozbe/watermelondb";
import LokiJSAdapter from "@nozbe/watermelondb/adapters/lokijs/index.js";
import { setGenerator } from "@nozbe/watermelondb/utils/common/randomId/index.js";
import logger from "@nozbe/watermelondb/utils/common/logger/index.js";
import { syncWithRollcall } from "./rollcall.js";
import { device, server, skip } from "../support.mjs";

const { appSchema, Database, Model, tableSchema } = watermelon;
setGenerator(randomUUID); // rollcall's keys are UUIDs
(logger.default ?? logger).silence();

class Note extends Model {
  static table = "notes";
}
const columns = [{ name: "text", type: "string" }, { name: "done", type: "boolean" }, { name: "stars", type: "number" }];
const schema = appSchema({ version: 1, tables: [tableSchema({ name: "notes", columns })] });
const started = await server();

async function open(email, name) {
  const { token } = await device(started, email, name);
  const Loki = LokiJSAdapter.default ?? LokiJSAdapter;
  const adapter = new Loki({ schema, useWebWorker: false, useIncrementalIndexedDB: false, extraLokiOptions: { autosave: false }, dbName: randomUUID() });
  const database = new Database({ adapter, modelClasses: [Note] });
  const notes = database.get("notes");
  const find = async (id) => (await notes.query().fetch()).find((note) => note.id === id);
  return {
    sync: (options) => syncWithRollcall({ database, url: started.url, token: () => token, tables: { notes: "id" }, ...options }),
    add: async (row) => (await database.write(() => notes.create((note) => Object.entries(row).forEach(([name, value]) => note._setRaw(name, value))))).id,
    edit: async (id, row) => database.write(async () => (await find(id)).update((note) => Object.entries(row).forEach(([name, value]) => note._setRaw(name, value)))),
    remove: async (id) => database.write(async () => (await find(id)).markAsDeleted()),
    list: async () => (await notes.query().fetch()).map(({ _raw: { id, text, done, stars } }) => ({ id, text, done, stars })).sort((a, b) => (a.id < b.id ? -1 : 1)),
  };
}

test("WatermelonDB: two devices converge", { skip }, async () => {
  const [phone, tablet] = [await open("melon@example.com", "phone"), await open("melon@example.com", "tablet")];
  const agree = async () => {
    for (const one of [phone, tablet, phone, tablet]) await one.sync();
    assert.deepEqual(await phone.list(), await tablet.list());
    return phone.list();
  };
  const cake = await phone.add({ text: "Cake", done: false, stars: 1 });
  const pie = await phone.add({ text: "Pie", done: false, stars: 2 });
  await tablet.add({ text: "Bread", done: true, stars: 3 });
  assert.equal((await agree()).length, 3);

  // Both edit one row, other columns; one deletes what the other edits.
  await phone.edit(cake, { text: "Cheesecake" });
  await tablet.edit(cake, { stars: 5 });
  await phone.remove(pie);
  await tablet.edit(pie, { stars: 9 });
  const rows = await agree();
  assert.deepEqual(rows.find(({ id }) => id === cake), { id: cake, text: "Cheesecake", done: false, stars: 5 });
  assert.equal(rows.some(({ id }) => id === pie), false);

  // After a lost response the same edit is sent again.
  await phone.edit(cake, { done: true });
  const lossy = async (url, init) => {
    const response = await fetch(url, init);
    if (init.method === "POST") throw new TypeError("lost");
    return response;
  };
  await assert.rejects(phone.sync({ fetch: lossy }), /lost/);
  assert.equal((await agree()).find(({ id }) => id === cake).done, true);
});

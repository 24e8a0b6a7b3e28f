// Two devices of one user on the real RxDB (memory storage) and a real server, live.
import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { after, test } from "node:test";
import { createRxDatabase } from "rxdb";
import { getRxStorageMemory } from "rxdb/plugins/storage-memory";
import { replicateRollcall } from "./rollcall.js";
import { device, server, skip, until } from "../support.mjs";

const text = { type: ["string", "null"] };
const schema = {
  version: 0,
  primaryKey: "id",
  type: "object",
  properties: { id: { type: "string", maxLength: 36 }, text, done: { type: ["boolean", "null"] }, stars: { type: ["integer", "null"] }, last_update: text, rejected: text },
  required: ["id"],
};
/** Merges both sides column by column; if both changed a column, the server's value wins. */
const conflictHandler = {
  isEqual: (a, b) => ["text", "done", "stars", "_deleted"].every((name) => (a[name] ?? null) === (b[name] ?? null)) && a.last_update === b.last_update,
  resolve: ({ realMasterState, newDocumentState, assumedMasterState }) => {
    const joined = { ...realMasterState };
    for (const name of ["text", "done", "stars"]) {
      if (assumedMasterState && realMasterState[name] === assumedMasterState[name]) joined[name] = newDocumentState[name];
    }
    return joined;
  },
};
const started = await server();

async function open(email, name) {
  const { token } = await device(started, email, name);
  const database = await createRxDatabase({ name: `${name}${randomUUID()}`, storage: getRxStorageMemory(), multiInstance: false });
  const { notes } = await database.addCollections({ notes: { schema, conflictHandler } });
  const net = { down: false, lossy: false };
  const disturbed = async (url, init) => {
    if (net.down) throw new TypeError("offline");
    const response = await fetch(url, init);
    if (net.lossy && init.method === "POST") throw new TypeError((net.lossy = false) || "lost");
    return response;
  };
  const replication = replicateRollcall({ collection: notes, url: started.url, token: () => token, fetch: disturbed, retryTime: 100 });
  after(() => database.close());
  await replication.awaitInitialReplication();
  const list = async () => (await notes.find().exec()).map((doc) => doc.toMutableJSON()).sort((a, b) => (a.id < b.id ? -1 : 1));
  const get = (id) => notes.findOne(id).exec();
  return { notes, net, list, get, replication };
}

test("RxDB: two devices converge", { skip }, async () => {
  const [phone, tablet] = [await open("rx@example.com", "phone"), await open("rx@example.com", "tablet")];
  const add = async (one, row) => (await one.notes.insert({ id: randomUUID(), text: null, done: false, stars: null, ...row })).id;
  const agree = (holds, what) =>
    until(async () => {
      const [a, b] = [await phone.list(), await tablet.list()];
      return JSON.stringify(a) === JSON.stringify(b) && holds(Object.fromEntries(a.map((row) => [row.id, row])), a);
    }, what);
  const cake = await add(phone, { text: "Cake", stars: 1 });
  const pie = await add(phone, { text: "Pie" });
  await add(tablet, { text: "Bread" });
  await agree((_, all) => all.length === 3 && all.every(({ last_update }) => last_update), "three notes, reported by events");

  // Offline, both edit one row, other columns; one deletes what the other edits.
  phone.net.down = tablet.net.down = true;
  await (await phone.get(cake)).patch({ text: "Cheesecake" });
  await (await phone.get(pie)).remove();
  await (await tablet.get(cake)).patch({ stars: 5 });
  await (await tablet.get(pie)).patch({ stars: 9 });
  phone.net.down = false;
  phone.replication.reSync();
  await new Promise((resolve) => setTimeout(resolve, 300));
  tablet.net.down = false;
  tablet.replication.reSync();
  await agree((rows) => rows[cake].text === "Cheesecake" && rows[cake].stars === 5 && !rows[pie], "the cake is merged, the pie is deleted");

  // After a lost response the same edit is sent again.
  phone.net.lossy = true;
  await (await phone.get(cake)).patch({ done: true });
  await agree((rows) => rows[cake].done === true, "the cake is done");
  assert.equal((await phone.list()).length, 2);
});

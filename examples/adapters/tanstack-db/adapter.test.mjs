// Two devices of one user on the real TanStack DB and a real server, live.
import assert from "node:assert/strict";
import { after, test } from "node:test";
import { createCollection, createLiveQueryCollection, eq } from "@tanstack/db";
import { memoryStore, newKey, openClient } from "rollcall-client";
import { rollcallCollectionOptions } from "./rollcall.js";
import { badTexts, device, server, skip, until } from "../support.mjs";

const tables = { notes: { key: "id", columns: { text: "text", done: { type: "boolean", default: false }, stars: "integer" } } };
const started = await server();

async function open(email, name) {
  const { token } = await device(started, email, name);
  const net = { down: false };
  const disturbed = (url, init) => (net.down ? Promise.reject(new TypeError("offline")) : fetch(url, init));
  // The server keeps its row, since the table's policy is `manual`; this merges both, column by column.
  const onConflict = ({ base, mine, theirs }) =>
    mine && theirs && Object.fromEntries(Object.entries(mine).filter(([column, value]) => value !== base?.[column] && theirs[column] === base?.[column]));
  const client = await openClient({ url: started.url, tables, store: memoryStore(), token, fetch: disturbed, onConflict, patience: { attemptsMax: 1 } });
  const notes = createCollection(rollcallCollectionOptions({ client, table: "notes" }));
  const undone = createLiveQueryCollection((query) => query.from({ note: notes }).where(({ note }) => eq(note.done, false)));
  await Promise.all([notes.preload(), undone.preload()]);
  client.live({ debounceMs: 5 });
  after(() => client.close());
  const list = () => [...notes.values()].map(({ id, text, done, stars }) => ({ id, text, done, stars })).sort((a, b) => (a.id < b.id ? -1 : 1));
  return { client, notes, undone, net, list };
}

test("TanStack DB: two devices converge", { skip }, async () => {
  const [phone, tablet] = [await open("stack@example.com", "phone"), await open("stack@example.com", "tablet")];
  const agree = (holds, what) =>
    until(async () => {
      const [a, b] = [phone.list(), tablet.list()];
      const waits = (await phone.client.pending()).rows + (await tablet.client.pending()).rows;
      return waits === 0 && JSON.stringify(a) === JSON.stringify(b) && holds(Object.fromEntries(a.map((row) => [row.id, row])), a);
    }, what);
  const [cake, pie, bread] = [newKey(), newKey(), newKey()];
  phone.notes.insert({ id: cake, text: "Cake", done: false, stars: 1 });
  assert.equal(phone.notes.get(cake).text, "Cake", "at once");
  phone.notes.insert({ id: pie, text: "Pie", done: false, stars: null });
  tablet.notes.insert({ id: bread, text: "Bread", done: true, stars: null });
  await agree((_, all) => all.length === 3, "three notes");
  assert.deepEqual([...phone.undone.values()].map(({ text }) => text).sort(), ["Cake", "Pie"]);

  // Offline, both edit one row, other columns; one deletes what the other edits.
  phone.net.down = tablet.net.down = true;
  phone.notes.update(cake, (note) => void (note.text = "Cheesecake"));
  phone.notes.delete(pie);
  tablet.notes.update(cake, (note) => void (note.stars = 5));
  await tablet.notes.update(pie, (note) => void (note.stars = 9)).isPersisted.promise;
  assert.equal(tablet.notes.get(pie).stars, 9);
  phone.net.down = false;
  await phone.client.sync();
  tablet.net.down = false;
  await tablet.client.sync();
  await agree((rows) => rows[cake].text === "Cheesecake" && rows[cake].stars === 5 && !rows[pie], "the cake is merged, the pie is deleted");
  for (const { client } of [phone, tablet]) assert.equal((await client.sync()).digestsEqual, true);
});

test("TanStack DB: bad rows among a thousand good ones block none, stay, and are reported", { skip }, async () => {
  const phone = await open("rejected@example.com", "phone");
  // `put` replaces lone surrogates, so such a text would arrive changed.
  const bad = badTexts.filter((text) => text.isWellFormed()).map((text) => ({ id: newKey(), text, done: false, stars: null }));
  const good = Array.from({ length: 1000 }, (_, i) => ({ id: newKey(), text: `good ${i}`, done: false, stars: i }));
  await phone.notes.insert([...good.slice(0, 500), ...bad, ...good.slice(500)]).isPersisted.promise;
  await until(async () => (await phone.client.pending()).rows === bad.length, "a thousand are sent");
  const report = await phone.client.sync();
  assert.deepEqual(report.rejected.map(({ key }) => key).sort(), bad.map(({ id }) => id).sort());
  for (const { id, text } of bad) assert.equal(phone.notes.get(id).text, text, "as the user made it");
  await phone.notes.update(bad[0].id, (note) => void (note.text = "corrected")).isPersisted.promise;
  await until(async () => (await phone.client.pending()).rows === bad.length - 1, "the corrected row is sent");
});

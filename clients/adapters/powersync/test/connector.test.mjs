// PowerSync's own SDK for Node, unmodified, against a real server: two devices of one user, offline edits, a refused row,
// lost responses, a killed server, a restored one.
import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { Schema, Table, column } from "@powersync/common";
import { PowerSyncDatabase } from "@powersync/node";
import { device, skip, startServer, until } from "../../../../examples/adapters/support.mjs";
import { rollcallConnector } from "../dist/connector.js";

const schemaText = `
[table.notes]
key = "nid"
[table.notes.columns]
text = { type = "text", max_length = 40 }
done = { type = "boolean", default = false }
stars = "integer"
price = "decimal"
tags = "json"

[table.lists]
key = "id"
[table.lists.columns]
name = { type = "text", required = true }
`;
const settings = ["--dialect", "powersync", "--powersync-keepalive-s", "2"];
const start = (more = {}) => startServer({ schemaText, settings, ...more });
const tables = { notes: { key: "nid", json: ["tags"] } };

const schema = new Schema({
  notes: new Table({ text: column.text, done: column.integer, stars: column.integer, price: column.text, tags: column.text, last_update: column.text }),
  lists: new Table({ name: column.text, last_update: column.text }),
});

/** A device: the SDK's database, connected through the connector. */
async function open(server, email, name, options = {}) {
  const { token } = await device(server, email, name);
  const folder = mkdtempSync(join(tmpdir(), "powersync-"));
  const database = new PowerSyncDatabase({
    schema,
    logger: { log: () => {} },
    // The SDK has one lock for all databases of a name.
    database: { dbFilename: `${randomUUID()}.db`, dbLocation: folder, implementation: { type: "node:sqlite" }, readWorkerCount: 1 },
  });
  const [refusals, uploads] = [[], []];
  const wire = { fate: () => "arrives" };
  const connector = rollcallConnector({
    ...{ url: server.url, token: async () => token, tables },
    onRefused: (refusal) => void refusals.push(refusal),
    onMassDelete: options.onMassDelete,
    fetch: async (url, init) => {
      uploads.push(JSON.parse(init.body));
      const fate = wire.fate();
      if (fate === "lost") throw new TypeError("lost on the way there");
      const response = await fetch(url, init);
      if (fate === "response lost") throw new TypeError("lost on the way back");
      return response;
    },
  });
  const connect = () => database.connect(connector, { crudUploadThrottleMs: 20, retryDelayMs: 100, ...options.connection });
  after(async () => {
    await database.close();
    rmSync(folder, { recursive: true, force: true });
  });
  const rows = async () => database.getAll("SELECT id, text, done, stars, price, tags FROM notes ORDER BY id");
  const run = (sql, ...values) => database.execute(sql, values);
  const waits = async () => (await database.get("SELECT count(*) AS n FROM ps_crud")).n;
  await connect();
  await database.waitForFirstSync();
  return { database, connect, rows, run, waits, refusals, uploads, wire, token };
}

/** The server's notes, as the SDK has them. */
async function stored(server, token) {
  const headers = { Authorization: `Bearer ${token}`, Accept: "application/x-ndjson" };
  const feed = await (await fetch(`${server.url}/changes?tables=notes`, { headers })).text();
  const rows = feed.trim().split("\n").map((line) => JSON.parse(line).row).filter((row) => row);
  const lite = ({ nid, text, done, stars, price, tags }) => ({ id: nid, text, done: done === null ? null : Number(done), stars, price, tags: tags && JSON.stringify(tags) });
  return rows.map(lite).sort((a, b) => (a.id < b.id ? -1 : 1));
}

/** Waits until no edit waits to be sent and every device has the server's rows. */
async function agree(server, devices) {
  let state;
  const equal = async () => {
    const expected = JSON.stringify(await stored(server, devices[0].token));
    const all = await Promise.all(devices.map(async (one) => [await one.waits(), JSON.stringify(await one.rows())]));
    state = { expected, all };
    return all.every(([waits, rows]) => waits === 0 && rows === expected);
  };
  await until(equal, "all devices equal the server").catch((error) => {
    throw Object.assign(error, { message: `${error.message}: ${JSON.stringify(state).slice(0, 2_000)}` });
  });
  return JSON.parse(state.expected);
}

test("PowerSync: two devices converge over live, offline, partial edits and deletions", { skip }, async () => {
  const server = await start();
  const [phone, tablet] = [await open(server, "two@example.com", "phone"), await open(server, "two@example.com", "tablet")];
  const both = [phone, tablet];
  const [one, two] = [randomUUID(), randomUUID()];
  await phone.run("INSERT INTO notes (id, text, done, stars, price, tags) VALUES (?, ?, 1, 9007199254740991, '12.5', ?)", one, 'caf\u00e9 "x"', '{"a":[1]}');
  await agree(server, both);
  await tablet.run("UPDATE notes SET stars = 5 WHERE id = ?", one);
  await agree(server, both);
  assert.deepEqual(tablet.uploads.at(-1), { update: { notes: [{ nid: one, stars: 5 }] } }, "only the changed column is sent");

  // Twenty rows in one transaction, offline; meanwhile the other edits.
  await phone.database.disconnect();
  await phone.database.writeTransaction(async (tx) => {
    for (let n = 0; n < 20; n++) await tx.execute("INSERT INTO notes (id, text, done) VALUES (?, ?, 0)", [randomUUID(), `offline ${n}`]);
    await tx.execute("INSERT INTO notes (id, text) VALUES (?, 'made and deleted')", [two]);
    await tx.execute("DELETE FROM notes WHERE id = ?", [two]);
    await tx.execute("UPDATE notes SET text = 'phone' WHERE id = ?", [one]);
  });
  await tablet.run("UPDATE notes SET done = 0 WHERE id = ?", one);
  await phone.connect();
  const rows = await agree(server, both);
  assert.equal(rows.length, 21);
  assert.deepEqual(rows.find(({ id }) => id === one), { id: one, text: "phone", done: 0, stars: 5, price: "12.5", tags: '{"a":[1]}' });

  await tablet.run("DELETE FROM notes WHERE text LIKE 'offline 1%'");
  assert.equal((await agree(server, both)).length, 10);
  const stranger = await open(server, "stranger@example.com", "phone");
  assert.deepEqual(await stranger.rows(), []);
  for (const { refusals } of [...both, stranger]) assert.deepEqual(refusals, []);
  await server.stop();
});

test("PowerSync: a refused row blocks none, is dropped, and the app gets the reason", { skip }, async () => {
  const server = await start();
  const phone = await open(server, "refused@example.com", "phone");
  const bad = randomUUID();
  await phone.database.writeTransaction(async (tx) => {
    await tx.execute("INSERT INTO notes (id, text, done) VALUES (?, 'good', 0)", [randomUUID()]);
    await tx.execute("INSERT INTO notes (id, text, done) VALUES (?, ?, 0)", [bad, "x".repeat(41)]);
    await tx.execute("INSERT INTO notes (id, text, done) VALUES (?, 'good too', 0)", [randomUUID()]);
  });
  await phone.run("INSERT INTO lists (id) VALUES (?)", randomUUID());
  assert.equal((await agree(server, [phone])).length, 2);
  await until(async () => phone.refusals.length === 2, "two refusals");
  const [{ table, id, code, detail, sent }, second] = phone.refusals;
  assert.deepEqual({ table, id, text: sent.text }, { table: "notes", id: bad, text: "x".repeat(41) });
  assert.ok(code && detail, JSON.stringify(phone.refusals));
  assert.equal(second.table, "lists");
  // More deletions than plausible: the app asks its user, and without a confirmation the rows come back.
  await phone.database.writeTransaction(async (tx) => {
    for (let n = 0; n < 80; n++) await tx.execute("INSERT INTO notes (id, text, done) VALUES (?, 'many', 0)", [randomUUID()]);
  });
  await agree(server, [phone]);
  await phone.run("DELETE FROM notes WHERE text = 'many'");
  await until(async () => phone.refusals.length === 82, "eighty deletions are refused");
  assert.equal((await agree(server, [phone])).length, 82);
  const meant = await open(server, "refused@example.com", "tablet", { onMassDelete: ({ deletes }) => deletes === 80 });
  await meant.run("DELETE FROM notes WHERE text = 'many'");
  assert.equal((await agree(server, [phone, meant])).length, 2);
  await server.stop();
});

test("PowerSync: devices converge over lost responses, a killed server and a restored one", { skip }, async () => {
  let server = await start();
  const [phone, tablet] = [await open(server, "faults@example.com", "phone"), await open(server, "faults@example.com", "tablet")];
  const both = [phone, tablet];
  const insert = (one, text) => one.run("INSERT INTO notes (id, text, done) VALUES (?, ?, 0)", randomUUID(), text);
  for (let n = 0; n < 5; n++) await insert(phone, `before ${n}`);
  await agree(server, both);
  const fates = ["lost", "response lost", "response lost", "lost"];
  phone.wire.fate = () => fates.pop() ?? "arrives";
  for (let n = 0; n < 3; n++) await insert(phone, `lost ${n}`);
  assert.equal((await agree(server, both)).length, 8);
  server.backUp();
  await insert(tablet, "after the backup");
  await phone.run("DELETE FROM notes WHERE text = 'before 0'");
  await agree(server, both);

  await server.stop("SIGKILL");
  await insert(phone, "while it is away");
  server = await start({ dir: server.dir, listen: new URL(server.url).host });
  assert.equal((await agree(server, both)).length, 9);

  // The backup has neither the later row nor the deletion; the devices load the server's present rows.
  server = await server.restore();
  const rows = await agree(server, both);
  assert.deepEqual(rows.map(({ text }) => text).sort(), ["before 0", "before 1", "before 2", "before 3", "before 4", "lost 0", "lost 1", "lost 2"]);
  await insert(phone, "after the restore");
  assert.equal((await agree(server, both)).length, 9);
  for (const { refusals } of both) assert.deepEqual(refusals, []);
  await server.stop();
  server.remove();
});

test("PowerSync: checkpoint requests work, and many rows arrive in pages", { skip }, async () => {
  const server = await start();
  const phone = await open(server, "many@example.com", "phone", { connection: { checkpointMode: "requests" } });
  await phone.database.writeTransaction(async (tx) => {
    for (let n = 0; n < 2_500; n++) await tx.execute("INSERT INTO notes (id, text, done, stars) VALUES (?, ?, 0, ?)", [randomUUID(), `row ${n}`, n]);
  });
  await agree(server, [phone]);
  await phone.run("INSERT INTO notes (id, text) VALUES (?, ?)", randomUUID(), "x".repeat(41));
  await until(async () => phone.refusals.length === 1, "a refusal");
  const tablet = await open(server, "many@example.com", "tablet");
  assert.equal((await agree(server, [phone, tablet])).length, 2_500);
  await server.stop();
});

// The cases that every store must pass. IndexedDB runs them in browser.test.mjs.
import assert from "node:assert/strict";
import { mkdtempSync, rmSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { memoryStore, openClient } from "../dist/index.js";
import { sqliteStore } from "../dist/sqlite.js";
import { storeCases } from "./store-cases.mjs";
import { sees, server, skip, tables, user } from "./support.mjs";

// ROLLCALL_SQLITE=better-sqlite3 tests another library with the same interface.
const Database = createRequire(import.meta.url)(process.env.ROLLCALL_SQLITE ?? "libsql");
const folder = mkdtempSync(join(tmpdir(), "rollcall-store-"));
test.after(() => rmSync(folder, { recursive: true, force: true }));
let files = 0;
const file = () => join(folder, `${++files}.db`);

/** A database whose functions return promises. */
const asyncDatabase = () => {
  const database = new Database(file());
  const later = (method) => (sql, values) => new Promise((resolve) => setImmediate(() => resolve(database.prepare(sql)[method](...values))));
  return { run: later("run"), all: later("all") };
};
const stores = { memory: memoryStore, sqlite: () => sqliteStore(new Database(file())), "sqlite by promises": () => sqliteStore(asyncDatabase()) };

for (const [kind, make] of Object.entries(stores)) {
  for (const [title, check] of Object.entries(storeCases)) test(`${kind}: ${title}`, () => check(make()));
}

const started = await server();

test("a store in a file survives its program, and two connections sync one at a time", { skip }, async () => {
  const anna = user(started);
  const path = file();
  const open = () => sqliteStore(new Database(path), path);
  const phone = await anna.device("phone", { store: open() });
  await phone.table("items").put({ title: "Cake" });
  await phone.close();
  const [one, two] = [await anna.device("phone", { store: open() }), await anna.device("phone", { store: open() })];
  await one.table("items").put({ title: "Pie" });
  const reports = await Promise.all([one.sync(), two.sync()]);
  assert.equal(Math.max(reports[0].pushed, reports[1].pushed), 2);
  assert.deepEqual(await sees(one), await sees(two));
  assert.equal((await two.pending()).rows, 0);
});

test("openClient throws if the store cannot be opened", async () => {
  const broken = { run: () => { throw new Error("disk I/O error"); }, all: () => [] };
  await assert.rejects(openClient({ url: "", tables, store: sqliteStore(broken) }), /disk I\/O error/);
});

test("a row that is older than a column shows the column's default", async () => {
  const store = memoryStore();
  const url = "http://127.0.0.1:9";
  const older = await openClient({ url, tables: { items: { key: "id", columns: { title: "text" } } }, store });
  const { id } = await older.table("items").put({ title: "Cake" });
  await older.close();
  const columns = { title: "text", done: { type: "boolean", default: false }, count: "integer", made: { type: "timestamp", default: "now" } };
  const newer = await openClient({ url, tables: { items: { key: "id", columns } }, store });
  assert.deepEqual(await newer.table("items").list(), [{ id, title: "Cake", done: false, count: null, made: null }]);
  await newer.table("items").patch(id, { done: true });
  assert.equal((await newer.table("items").get(id)).done, true);
  await newer.close();
});

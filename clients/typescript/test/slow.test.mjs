// On a slow line the client sends smaller requests, and larger ones again once the line is fast. And rows that the
// server rejects wait, do not block others, and are sent again.
import assert from "node:assert/strict";
import { test } from "node:test";
import { memoryStore } from "../dist/index.js";
import { fakeDevice, fakeServer, problem, sent } from "./fake.mjs";

const bytes = ({ text }) => text.length;
const rowsOf = ({ body }) => body?.add?.papers?.length ?? 0;
const meta = (store, name) => store.transact("read", (txn) => txn.meta(name));

async function fill(client, rows, text = "x".repeat(1000)) {
  for (let i = 0; i < rows; i++) await client.table("papers").put({ text });
}

/**
 * A line with `perMs` bytes per ms, by the device's clock. A body that takes longer than `bodyMs` gets the response of
 * `fate`.
 */
function line(perMs, bodyMs, fate) {
  const wire = { perMs, bodyMs, ms: Date.UTC(2026, 4, 1), uploads: [] };
  wire.before = (request) => {
    if (request.path !== "/synchronise") return undefined;
    wire.uploads.push(bytes(request));
    const takes = bytes(request) / wire.perMs;
    wire.ms += Math.min(takes, wire.bodyMs);
    return takes > wire.bodyMs ? fate(request) : undefined;
  };
  return wire;
}

/** No response, until the client's own time limit ends the request. */
const waits = ({ signal }) => new Promise((_, reject) => signal.addEventListener("abort", () => reject(new Error("aborted"))));

const fates = {
  "503 timeout": () => problem(503, "timeout"),
  "408": () => problem(408, "body_too_slow"),
  "504 of a proxy": () => new Response("<html>", { status: 504 }),
  "the client's own time": waits,
};

for (const [name, fate] of Object.entries(fates)) {
  test(`after ${name} the client halves its requests until one succeeds`, async () => {
    const slow = line(1, 30_000, fate);
    const fake = fakeServer({ before: slow.before });
    const store = memoryStore();
    const phone = await fakeDevice(fake, { store, now: () => slow.ms, patience: { requestMaxMs: name.startsWith("the client") ? 20 : 60_000 } });
    await fill(phone, 150);
    const phases = [];
    const report = await phone.sync({ onProgress: ({ phase }) => phases.push(phase) });
    assert.equal(report.pushed, 150);
    assert.equal(fake.rows("anna").length, 150);
    const [first, second, third] = slow.uploads;
    assert.ok(first > 150_000);
    assert.ok(second < first * 0.6 && second > first * 0.3, `${second} after ${first}`);
    assert.ok(third < second * 0.6 && third > second * 0.3, `${third} after ${second}`);
    const lost = slow.uploads.filter((size) => size > 30_000).length;
    assert.ok(lost <= 3, `${slow.uploads}`);
    assert.ok(phases.includes("retrying"));
    assert.equal(phone.pauses.length, lost, "the client pauses after each");
    // Each request has a key of its own.
    assert.equal(new Set(sent(fake).map(({ headers }) => headers["Idempotency-Key"])).size, sent(fake).length);
    // The next sync, also after a restart, begins with the size that succeeded.
    await phone.close();
    slow.uploads.length = 0;
    const again = await fakeDevice(fake, { store, now: () => slow.ms });
    await fill(again, 60);
    await again.sync();
    assert.ok(slow.uploads.every((size) => size <= 30_000), `${slow.uploads}`);
    assert.equal(fake.rows("anna").length, 210);
  });
}

test("once the line is fast again, requests grow up to the server's limit", async () => {
  const slow = line(1, 30_000, () => problem(503, "timeout"));
  const fake = fakeServer({ before: slow.before, limits: { body_bytes_max: 250_000 } });
  const store = memoryStore();
  const phone = await fakeDevice(fake, { store, now: () => slow.ms });
  await fill(phone, 100);
  await phone.sync();
  assert.ok((await meta(store, "pace")) < 60_000);
  slow.perMs = 1_000;
  slow.uploads.length = 0;
  await fill(phone, 700);
  await phone.sync();
  const grown = slow.uploads.findIndex((size) => size > 150_000);
  assert.ok(grown > 1, `step by step: ${slow.uploads}`);
  assert.ok(slow.uploads.slice(1, grown).every((size, i) => size < slow.uploads[i] * 2.3));
  assert.ok(Math.max(...slow.uploads) <= 250_000);
  assert.equal(await meta(store, "pace"), undefined);
  // On a line that is just fast enough, requests do not grow; otherwise every second one would fail.
  slow.perMs = 1;
  await fill(phone, 100);
  await phone.sync();
  slow.uploads.length = 0;
  await fill(phone, 300);
  await phone.sync();
  assert.ok(slow.uploads.filter((size) => size > 30_000).length === 0, `${slow.uploads}`);
});

test("a request with a single row is repeated unchanged", async () => {
  let times = 3;
  const fake = fakeServer({ before: ({ path }) => (path === "/synchronise" && times-- > 0 ? problem(503, "timeout") : undefined) });
  const phone = await fakeDevice(fake);
  await fill(phone, 1);
  const report = await phone.sync();
  assert.deepEqual([report.pushed, report.repeats], [1, 3]);
  assert.equal(new Set(sent(fake).map(({ headers }) => headers["Idempotency-Key"])).size, 1);
});

test("other failures do not make requests smaller", async () => {
  const failures = [() => problem(503, "unavailable"), () => problem(429, "too_many_requests"), () => problem(500, "internal"), () => { throw new TypeError("reset"); }];
  for (const fail of failures) {
    let times = 2;
    const fake = fakeServer({ before: ({ path }) => (path === "/synchronise" && times-- > 0 ? fail() : undefined) });
    const store = memoryStore();
    const phone = await fakeDevice(fake, { store });
    await fill(phone, 20);
    await phone.sync();
    assert.deepEqual(sent(fake).map(rowsOf), [20, 20, 20]);
    assert.equal(await meta(store, "pace"), undefined);
  }
});

test("a sync fails on a line that is too slow for every attempt, and the next one begins with less", async () => {
  const slow = line(1, 30_000, () => problem(503, "timeout", { retry_after_s: 2 }));
  const fake = fakeServer({ before: slow.before });
  const store = memoryStore();
  const phone = await fakeDevice(fake, { store, now: () => slow.ms, patience: { attemptsMax: 2 } });
  await fill(phone, 400);
  await assert.rejects(phone.sync(), { code: "timeout" });
  assert.equal(sent(fake).length, 2);
  assert.deepEqual(phone.pauses, [2_000], "the server's Retry-After");
  assert.equal((await phone.pending()).rows, 400);
  await assert.rejects(phone.sync(), { code: "timeout" });
  await phone.sync();
  assert.equal(fake.rows("anna").length, 400);
});

test("a request from an earlier run is sent in parts after it took too long", async () => {
  let fate = "lost";
  const fake = fakeServer({
    before: ({ path, body }) => {
      if (path !== "/synchronise") return undefined;
      if (fate === "lost") throw new TypeError("lost");
      return rowsOf({ body }) > 20 ? problem(503, "timeout") : undefined;
    },
  });
  const store = memoryStore();
  const phone = await fakeDevice(fake, { store, patience: { attemptsMax: 1 } });
  await fill(phone, 30);
  await assert.rejects(phone.sync(), { code: "offline" });
  await phone.close();
  fate = "slow";
  const again = await fakeDevice(fake, { store });
  assert.equal((await again.sync()).pushed, 30);
  assert.deepEqual(sent(fake).map(rowsOf).slice(0, 2), [30, 30]);
});

test("the deletion of a row that may have arrived is sent", async () => {
  // The request arrives, and its response takes too long; then there is no network.
  let fate = "arrives late";
  const fake = fakeServer();
  const plain = fake.fetch;
  fake.fetch = async (url, init) => {
    if (!url.endsWith("/synchronise")) return plain(url, init);
    if (fate === "offline") throw new TypeError("offline");
    const response = await plain(url, init);
    if (fate !== "arrives late") return response;
    fate = "offline";
    return problem(504, "unknown");
  };
  const phone = await fakeDevice(fake, { patience: { attemptsMax: 2 } });
  await fill(phone, 4, "a");
  await assert.rejects(phone.sync(), { code: "offline" });
  assert.equal(fake.rows("anna").length, 4);
  for (const { id } of await phone.table("papers").list()) await phone.table("papers").remove(id);
  fate = "fine";
  await phone.sync();
  await phone.sync();
  assert.deepEqual([fake.rows("anna"), await phone.table("papers").list()], [[], []]);
});

// ---------------------------------------------------------------------------------------------- rejected rows

const rejected = (code, more = {}) => ({ verdict: "rejected", error: { code, detail: `${code}!`, at: "/add/papers/0", ...more } });

test("a rejected row does not block others, has a reason, and is sent again once it is edited", async () => {
  const fake = fakeServer({ verdict: (_, __, { text }) => (text === "bad" ? rejected("invalid_value", { column: "text" }) : undefined) });
  const phone = await fakeDevice(fake);
  await fill(phone, 500, "good");
  const { id } = await phone.table("papers").put({ text: "bad" });
  await fill(phone, 500, "good");
  const report = await phone.sync();
  assert.deepEqual([report.pushed, report.verdicts], [1000, { added: 1000, rejected: 1 }]);
  const reason = { code: "invalid_value", detail: "invalid_value!", column: "text" };
  assert.deepEqual(report.rejected, [{ table: "papers", key: id, ...reason }]);
  assert.deepEqual((await phone.table("papers").entry(id)).rejected, reason);
  assert.equal((await phone.table("papers").get(id)).text, "bad", "the edit stays");
  const before = sent(fake).length;
  assert.deepEqual((await phone.sync()).rejected, [{ table: "papers", key: id, ...reason }]);
  assert.equal(sent(fake).length, before, "it is not sent again unchanged");
  await phone.table("papers").patch(id, { text: "better" });
  assert.equal((await phone.table("papers").entry(id)).rejected, null);
  assert.deepEqual([(await phone.sync()).pushed, (await phone.pending()).rows], [1, 0]);
});

test("a row that was edited too often is sent again after the server's pause, not before", async () => {
  let busy = true;
  let ms = Date.UTC(2026, 4, 1);
  const fake = fakeServer({ verdict: () => (busy ? rejected("too_many_edits", { retry_after_s: 30 }) : undefined) });
  const phone = await fakeDevice(fake, { now: () => ms });
  const { id } = await phone.table("papers").put({ text: "a" });
  const report = await phone.sync();
  assert.deepEqual(report.rejected.map(({ code, retryAt }) => [code, retryAt]), [["too_many_edits", ms + 30_000]]);
  busy = false;
  ms += 29_000;
  await phone.sync();
  assert.equal(sent(fake).filter(({ body }) => body.add).length, 1);
  ms += 1_000;
  assert.equal((await phone.sync()).pushed, 1);
  assert.equal((await phone.table("papers").entry(id)).state, "clean");
  assert.equal((await phone.table("papers").entry(id)).rejected, null);
});

test("`live` sends a temporarily rejected row again", async () => {
  let busy = 1;
  const fake = fakeServer({
    before: ({ path }) => (path === "/events" ? problem(404, "not_found") : undefined),
    verdict: () => (busy-- > 0 ? rejected("too_many_edits", { retry_after_s: 1 }) : undefined),
  });
  const phone = await fakeDevice(fake);
  await phone.table("papers").put({ text: "a" });
  const live = phone.live({ pollMs: 100_000 });
  const began = Date.now();
  while ((await phone.pending()).rows && Date.now() - began < 8_000) await new Promise((resolve) => setTimeout(resolve, 20));
  live.stop();
  assert.equal((await phone.pending()).rows, 0);
  assert.ok(Date.now() - began >= 1_000);
});

test("if the server refuses a whole request because of one row, the others are sent without it", async () => {
  const refuse = (pointer) => ({ path, body }) => {
    if (path !== "/synchronise") return undefined;
    const index = (body.add?.papers ?? []).findIndex(({ text }) => text === "bad");
    return index < 0 ? undefined : problem(422, "invalid_value", { at: pointer(index) });
  };
  for (const pointer of [(index) => `/add/papers/${index}`, (index) => `/add/papers/${index}/text`]) {
    const fake = fakeServer({ before: refuse(pointer) });
    const phone = await fakeDevice(fake);
    for (const text of ["good", "bad", "good", "bad", "good"]) await phone.table("papers").put({ text });
    const report = await phone.sync();
    assert.deepEqual([report.pushed, report.rejected.map(({ code }) => code)], [3, ["invalid_value", "invalid_value"]]);
    assert.equal(fake.rows("anna").length, 3);
  }
});

test("rows of a table that the server does not have do not block the other tables", async () => {
  const fake = fakeServer({
    before: ({ path, body }) => (path === "/synchronise" && body.add?.papers ? problem(422, "unknown_table", { at: "/add/papers" }) : undefined),
  });
  const phone = await fakeDevice(fake);
  await fill(phone, 3, "a");
  await phone.table("lists").put({ name: "Food" });
  const report = await phone.sync();
  assert.deepEqual([report.pushed, report.rejected.map(({ code }) => code)], [1, Array(3).fill("unknown_table")]);
  assert.equal((await phone.pending()).rows, 3);
});

// The clock protocol: the server corrects a device's clock by `sent_at`, so that is the time of each very sending; the
// rows of a request keep the time of their edit, and the key of the request stays the same.
import assert from "node:assert/strict";
import { test } from "node:test";
import { memoryStore } from "../dist/index.js";
import { fakeDevice, fakeServer, problem, sent } from "./fake.mjs";

const HOUR = 3_600_000;
const iso = (ms) => new Date(ms).toISOString();

/** A device's clock that runs by hand. */
const clock = (ms) => ({ ms, now() { return this.ms; } });

test("each sending says its own time, under one key", async () => {
  const hand = clock(Date.UTC(2026, 4, 1, 10));
  const trouble = ["lost", 503, 429, "lost"];
  const fake = fakeServer({
    before: ({ path }) => {
      if (path !== "/synchronise" || trouble.length === 0) return undefined;
      const fate = trouble.shift();
      if (fate === "lost") throw new TypeError("lost on the way there");
      return problem(fate, fate === 503 ? "unavailable" : "too_many_requests");
    },
  });
  // Between two attempts an hour goes by: the app slept.
  const phone = await fakeDevice(fake, { now: () => hand.now(), patience: { pause: async () => void (hand.ms += HOUR) } });
  const { id } = await phone.table("papers").put({ text: "a" });
  const edited = hand.ms;
  hand.ms += 5_000;
  const began = hand.ms;
  await phone.sync();
  const sendings = sent(fake);
  assert.deepEqual(sendings.map(({ body }) => body.sent_at), [0, 1, 2, 3, 4].map((hours) => iso(began + hours * HOUR)));
  assert.equal(new Set(sendings.map(({ headers }) => headers["Idempotency-Key"])).size, 1);
  // The edit is as old as it was.
  for (const { body } of sendings) assert.deepEqual(body.add.papers, [{ id, text: "a", last_update: iso(edited) }]);
});

test("a request that an earlier run of the app left behind goes up with the time of now", async () => {
  const hand = clock(Date.UTC(2026, 4, 1, 10));
  let lose = true;
  const fake = fakeServer({
    before: ({ path }) => {
      if (path === "/synchronise" && lose) throw new TypeError("lost on the way there");
    },
  });
  const store = memoryStore();
  const options = { store, now: () => hand.now(), patience: { attemptsMax: 1 } };
  const phone = await fakeDevice(fake, options);
  await phone.table("papers").put({ text: "a" });
  const edited = hand.ms;
  await assert.rejects(phone.sync(), { code: "offline" });
  await phone.close();
  hand.ms += 48 * HOUR;
  lose = false;
  const again = await fakeDevice(fake, options);
  const report = await again.sync();
  assert.equal(report.resumed, true);
  const [first, second] = sent(fake);
  assert.equal(second.headers["Idempotency-Key"], first.headers["Idempotency-Key"]);
  assert.deepEqual([first.body.sent_at, second.body.sent_at], [iso(edited), iso(edited + 48 * HOUR)]);
  assert.equal(second.body.add.papers[0].last_update, iso(edited));
  const { sent_at: _a, ...a } = first.body;
  const { sent_at: _b, ...b } = second.body;
  assert.deepEqual(a, b, "the rest is the same");
});

test("the time is that after a token was waited for", async () => {
  const hand = clock(Date.UTC(2026, 4, 1, 10));
  const fake = fakeServer();
  let logIn = false;
  const token = async () => {
    if (logIn) hand.ms += HOUR; // the user typed a password
    return "anna";
  };
  const phone = await fakeDevice(fake, { token, now: () => hand.now() });
  await phone.sync();
  await phone.table("papers").put({ text: "a" });
  logIn = true;
  const began = hand.ms;
  await phone.sync();
  assert.ok(Date.parse(sent(fake).at(-1).body.sent_at) > began);
  assert.equal(sent(fake).at(-1).body.sent_at, iso(hand.ms));
});

test("an edit has the device's time, a base has the server's", async () => {
  const hand = clock(Date.UTC(2020, 0, 1)); // years behind
  const fake = fakeServer();
  const phone = await fakeDevice(fake, { now: () => hand.now() });
  const { id } = await phone.table("papers").put({ text: "a" });
  await phone.sync();
  const { lastUpdate } = await phone.table("papers").entry(id);
  hand.ms += 60_000;
  await phone.table("papers").patch(id, { text: "b" });
  hand.ms += 60_000;
  await phone.sync();
  const { body } = sent(fake).at(-1);
  assert.deepEqual(body.update.papers, [{ id, text: "b", last_update: iso(hand.ms - 60_000), _base: iso(lastUpdate) }]);
  assert.equal(body.sent_at, iso(hand.ms));
  await phone.table("papers").remove(id);
  hand.ms += 60_000;
  const { lastUpdate: base } = await phone.table("papers").entry(id);
  await phone.sync();
  assert.deepEqual(sent(fake).at(-1).body.delete.papers, [{ id, last_update: iso(hand.ms - 60_000), _base: iso(base) }]);
});

test("an answer for a key that the server knows with other words is no answer: the rows go up under a new one", async () => {
  let times = 1;
  const fake = fakeServer({
    before: ({ path }) => (path === "/synchronise" && times-- > 0 ? problem(422, "idempotency_key_reused") : undefined),
  });
  const phone = await fakeDevice(fake);
  await phone.table("papers").put({ text: "a" });
  assert.equal((await phone.sync()).pushed, 1);
  const [first, second] = sent(fake);
  assert.notEqual(second.headers["Idempotency-Key"], first.headers["Idempotency-Key"]);
  assert.deepEqual(second.body.add, first.body.add);
  // It says so once, and no more: else nothing would ever come of it.
  times = 9;
  await phone.table("papers").put({ text: "b" });
  await assert.rejects(phone.sync(), { code: "restless" });
});

// The clock protocol. The server corrects a device's clock by `sent_at`, so each attempt has its own time in it. The
// rows of a request keep the times of their edits, and the request keeps its key.
import assert from "node:assert/strict";
import { test } from "node:test";
import { memoryStore } from "../dist/index.js";
import { fakeDevice, fakeServer, problem, sent } from "./fake.mjs";

const HOUR = 3_600_000;
const iso = (ms) => new Date(ms).toISOString();

/** A device's clock that only the test moves. */
const manualClock = (ms) => ({ ms, now() { return this.ms; } });

test("each attempt has its own time of sending, and all have one key", async () => {
  const clock = manualClock(Date.UTC(2026, 4, 1, 10));
  const fates = ["lost", 503, 429, "lost"];
  const fake = fakeServer({
    before: ({ path }) => {
      if (path !== "/synchronise" || fates.length === 0) return undefined;
      const fate = fates.shift();
      if (fate === "lost") throw new TypeError("lost on the way there");
      return problem(fate, fate === 503 ? "unavailable" : "too_many_requests");
    },
  });
  // An hour passes between two attempts: the app slept.
  const phone = await fakeDevice(fake, { now: () => clock.now(), patience: { pause: async () => void (clock.ms += HOUR) } });
  const { id } = await phone.table("papers").put({ text: "a" });
  const edited = clock.ms;
  clock.ms += 5_000;
  const began = clock.ms;
  await phone.sync();
  const attempts = sent(fake);
  assert.deepEqual(attempts.map(({ body }) => body.sent_at), [0, 1, 2, 3, 4].map((hours) => iso(began + hours * HOUR)));
  assert.equal(new Set(attempts.map(({ headers }) => headers["Idempotency-Key"])).size, 1);
  // The edit keeps its time.
  for (const { body } of attempts) assert.deepEqual(body.add.papers, [{ id, text: "a", last_update: iso(edited) }]);
});

test("a request from an earlier run of the app is sent with the present time", async () => {
  const clock = manualClock(Date.UTC(2026, 4, 1, 10));
  let lose = true;
  const fake = fakeServer({
    before: ({ path }) => {
      if (path === "/synchronise" && lose) throw new TypeError("lost on the way there");
    },
  });
  const store = memoryStore();
  const options = { store, now: () => clock.now(), patience: { attemptsMax: 1 } };
  const phone = await fakeDevice(fake, options);
  await phone.table("papers").put({ text: "a" });
  const edited = clock.ms;
  await assert.rejects(phone.sync(), { code: "offline" });
  await phone.close();
  clock.ms += 48 * HOUR;
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
  assert.deepEqual(a, b, "everything else is the same");
});

test("the time of sending is taken after the token has arrived", async () => {
  const clock = manualClock(Date.UTC(2026, 4, 1, 10));
  const fake = fakeServer();
  let logIn = false;
  const token = async () => {
    if (logIn) clock.ms += HOUR; // the user typed a password
    return "anna";
  };
  const phone = await fakeDevice(fake, { token, now: () => clock.now() });
  await phone.sync();
  await phone.table("papers").put({ text: "a" });
  logIn = true;
  const began = clock.ms;
  await phone.sync();
  assert.ok(Date.parse(sent(fake).at(-1).body.sent_at) > began);
  assert.equal(sent(fake).at(-1).body.sent_at, iso(clock.ms));
});

test("an edit has the device's time, and its base has the server's", async () => {
  const clock = manualClock(Date.UTC(2020, 0, 1)); // years behind
  const fake = fakeServer();
  const phone = await fakeDevice(fake, { now: () => clock.now() });
  const { id } = await phone.table("papers").put({ text: "a" });
  await phone.sync();
  const { lastUpdate } = await phone.table("papers").entry(id);
  clock.ms += 60_000;
  await phone.table("papers").patch(id, { text: "b" });
  clock.ms += 60_000;
  await phone.sync();
  const { body } = sent(fake).at(-1);
  assert.deepEqual(body.update.papers, [{ id, text: "b", last_update: iso(clock.ms - 60_000), _base: iso(lastUpdate) }]);
  assert.equal(body.sent_at, iso(clock.ms));
  await phone.table("papers").remove(id);
  clock.ms += 60_000;
  const { lastUpdate: base } = await phone.table("papers").entry(id);
  await phone.sync();
  assert.deepEqual(sent(fake).at(-1).body.delete.papers, [{ id, last_update: iso(clock.ms - 60_000), _base: iso(base) }]);
});

test("after `idempotency_key_reused` the rows are sent under a new key", async () => {
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
  // A sync does this only once; otherwise it might never end.
  times = 9;
  await phone.table("papers").put({ text: "b" });
  await assert.rejects(phone.sync(), { code: "restless" });
});

// A store belongs to one user: another user's token is refused, however it is passed. Each installation has an id and a
// counter, by which the server distinguishes two phones with one token.
import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { test } from "node:test";
import { memoryStore, newKey } from "../dist/index.js";
import { fakeDevice, fakeServer, problem, sent } from "./fake.mjs";

const ben = { user: randomUUID(), owner: randomUUID() };
const two = (options = {}) => fakeServer({ ...options, users: { ben, ...options.users } });
const meta = (store, name, value) =>
  store.transact(value === undefined ? "read" : "write", (txn) => (value === undefined ? txn.meta(name) : txn.setMeta(name, value)));

/** Anna's store with a synced row and an unsent one. */
async function annas(fake, options = {}) {
  const store = options.store ?? memoryStore();
  const phone = await fakeDevice(fake, { store, ...options });
  await phone.table("papers").put({ text: "synced" });
  await phone.sync();
  await phone.table("papers").put({ text: "unsent" });
  return { store, phone };
}

/** Asserts that no row of Anna is in Ben's account, and that none is lost here. */
async function untouched(fake, client) {
  assert.deepEqual(fake.rows("ben"), []);
  assert.deepEqual((await client.table("papers").list()).map(({ text }) => text).sort(), ["synced", "unsent"]);
  assert.equal((await client.pending()).rows, 1);
}

for (const way of ["cursor", "manifest"]) {
  const manifest = ({ path, headers }) =>
    path === "/fetch" && headers["Sync-For"] !== `${ben.user}.${ben.owner}`
      ? new Response("{}", { status: 200, headers: { "sync-version": "1", "sync-lock": "1" } })
      : undefined;

  test(`another user's token is refused, before a row is read (${way})`, async () => {
    const fake = two({ before: (request) => (request.token === "anna" ? manifest(request) : undefined) });
    const { store, phone } = await annas(fake);
    await phone.close();
    // As a string, and from a callback.
    for (const token of ["ben", () => "ben", async () => "ben"]) {
      const other = await fakeDevice(fake, { store, token, way });
      const before = fake.log.length;
      await assert.rejects(other.sync(), { code: "other_user" });
      await assert.rejects(other.conflicts.history(), { code: "other_user" });
      for (const { token, headers } of fake.log.slice(before)) if (token === "ben") assert.equal(headers["Sync-For"], `${fake.users.anna.user}.${fake.users.anna.owner}`);
      await untouched(fake, other);
      await other.close();
    }
    // With Anna's own token the sync continues.
    const again = await fakeDevice(fake, { store });
    assert.equal((await again.sync()).pushed, 1);
    assert.equal((await again.pending()).rows, 0);
  });

  test(`a token that changes between two requests of one sync is refused (${way})`, async () => {
    for (let calls = 0; calls < 6; calls++) {
      let left = Infinity;
      const fake = two({ before: (request) => (request.token === "anna" ? manifest(request) : undefined) });
      const { phone } = await annas(fake, { token: () => (left-- > 0 ? "anna" : "ben") });
      left = calls;
      await phone.sync({ way }).catch(({ code }) => assert.equal(code, "other_user"));
      assert.deepEqual(fake.rows("ben"), []);
      left = Infinity;
      await phone.sync();
      assert.equal((await phone.pending()).rows, 0);
      assert.equal(fake.rows("anna").length, 2);
    }
  });

  test(`a token that changes in the first sync of a store is refused (${way})`, async () => {
    for (let calls = 0; calls < 6; calls++) {
      let left = calls;
      const fake = two({ before: (request) => (request.token === "anna" ? manifest(request) : undefined) });
      const phone = await fakeDevice(fake, { token: () => (left-- > 0 ? "anna" : "ben") });
      await phone.table("papers").put({ text: "whose?" });
      await phone.sync({ way }).catch(({ code }) => assert.ok(["other_user", "offline"].includes(code), code));
      const owners = ["anna", "ben"].filter((name) => fake.rows(name).length);
      assert.ok(owners.length <= 1);
      const bound = fake.log.find(({ path }) => path === "/me").token;
      for (const owner of owners) assert.equal(owner, bound, "the rows belong to the user to whom the store was bound");
    }
  });
}

test("another user's token from the callback after a 401 is refused", async () => {
  let expired = false;
  const fake = two({ before: ({ token }) => (expired && token === "anna" ? problem(401, "unauthorized") : undefined) });
  let calls = 0;
  const { phone } = await annas(fake, { token: () => (expired && calls++ > 0 ? "ben" : "anna") });
  expired = true;
  await assert.rejects(phone.sync(), { code: "other_user" });
  await untouched(fake, phone);
});

test("a request whose response was lost is not sent with another user's token, and stays outstanding", async () => {
  let lose = false;
  const fake = two({
    before: ({ path }) => {
      if (lose && path === "/synchronise") throw new TypeError("lost");
    },
  });
  let token = "anna";
  const { store, phone } = await annas(fake, { token: () => token, patience: { attemptsMax: 1 } });
  lose = true;
  await assert.rejects(phone.sync(), { code: "offline" });
  const { key } = await meta(store, "outstanding");
  [lose, token] = [false, "ben"];
  await assert.rejects(phone.sync(), { code: "other_user" });
  assert.equal((await meta(store, "outstanding")).key, key);
  await untouched(fake, phone);
  token = "anna";
  assert.equal((await phone.sync()).resumed, true);
  assert.equal(sent(fake).at(-1).headers["Idempotency-Key"], key);
});

test("another user's log-in is refused, also by a store that a callback's token has bound", async () => {
  const logins = { "anna@x": "anna", "ben@x": "ben" };
  const ended = [];
  const fake = two({
    before: ({ path, body, token }) => {
      if (path === "/login") return new Response(JSON.stringify({ token: logins[body.email], device_id: randomUUID() }));
      if (path === "/logout") return ended.push(token), new Response(null, { status: 204 });
    },
  });
  const { store, phone } = await annas(fake); // by a token without an address
  await phone.close();
  const login = { email: "ben@x", password: "p", device: "d" };
  const other = await fakeDevice(fake, { store, token: undefined, login });
  await assert.rejects(other.sync(), { code: "other_user" });
  await assert.rejects(other.logIn(login), { code: "other_user" });
  assert.equal(await meta(store, "token"), undefined, "the token is not stored");
  assert.ok(ended.length > 0 && ended.every((token) => token === "ben"), "the token is revoked");
  await untouched(fake, other);
  await other.logIn({ ...login, email: "anna@x" });
  assert.equal((await other.sync()).pushed, 1);
  // A callback, after the store was bound by a log-in.
  await other.close();
  const third = await fakeDevice(fake, { store, token: () => "ben" });
  await third.table("papers").put({ text: "unsent" });
  await assert.rejects(third.sync(), { code: "other_user" });
  // After a wipe any user can use the store.
  await third.wipe();
  await third.table("papers").put({ text: "Ben's" });
  await third.sync();
  assert.equal(fake.rows("ben").length, 1);
});

test("the same user with another owner is refused like another user", async () => {
  const fake = fakeServer();
  const { phone } = await annas(fake);
  fake.users.anna = { ...fake.users.anna, owner: randomUUID() };
  await assert.rejects(phone.sync(), { code: "other_user" });
  assert.equal((await phone.pending()).rows, 1);
});

test("a store of an older release is bound at its first request, unless its rows belong to another owner", async () => {
  const old = two({ older: true });
  const { store, phone } = await annas(old);
  assert.equal(await meta(store, "bound"), undefined);
  assert.ok(old.log.every(({ headers }) => headers["Sync-For"] === undefined && headers["Sync-Device"] === undefined), "an older server does not allow these headers across origins");
  assert.equal(old.log.filter(({ path }) => path === "/me").length, 1, "`GET /me` is requested only once");
  await phone.close();

  const seed = await meta(store, "seed");
  const fake = two();
  fake.users.anna = old.users.anna;
  fake.owner(old.users.anna.owner).seed = seed;
  const other = await fakeDevice(fake, { store, token: "ben" });
  await assert.rejects(other.sync(), { code: "other_user" });
  await untouched(fake, other);
  await other.close();
  const again = await fakeDevice(fake, { store });
  await again.sync();
  assert.equal(await meta(store, "bound"), `${old.users.anna.user}.${old.users.anna.owner}`);
});

test("every request except the open ones has Sync-For", async () => {
  const fake = fakeServer();
  const { phone } = await annas(fake);
  await phone.conflicts.history();
  await phone.conflicts.restore("1").catch(() => {});
  await phone.sync();
  const mine = `${fake.users.anna.user}.${fake.users.anna.owner}`;
  for (const { path, headers } of fake.log) assert.equal(headers["Sync-For"], ["/limits", "/me"].includes(path) ? undefined : mine, path);
  const live = phone.live();
  while (!fake.log.some(({ path }) => path === "/events")) await new Promise((resolve) => setTimeout(resolve, 5));
  live.stop();
  const events = fake.log.find(({ path }) => path === "/events");
  assert.equal(events.headers["Sync-For"], mine);
  assert.match(events.headers["Sync-Device"], /^[0-9a-f-]{36}\.\d+$/);
});

test("the counter rises with each applied response, and not after a lost one", async () => {
  let lose = false;
  const fake = fakeServer({
    before: ({ path }) => {
      if (lose && path === "/synchronise") throw new TypeError("lost");
    },
  });
  const store = memoryStore();
  const phone = await fakeDevice(fake, { store, patience: { attemptsMax: 2 } });
  const counters = () => sent(fake).map(({ headers }) => headers["Sync-Device"].split(".")).map(([id, counter]) => [id, Number(counter)]);
  for (let i = 0; i < 3; i++) {
    await phone.table("papers").put({ text: `${i}` });
    await phone.sync();
  }
  lose = true;
  await phone.table("papers").put({ text: "lost" });
  await assert.rejects(phone.sync(), { code: "offline" });
  lose = false;
  await phone.sync();
  assert.deepEqual(counters().map(([, counter]) => counter), [0, 1, 2, 3, 3, 3]);
  assert.equal(new Set(counters().map(([id]) => id)).size, 1);
  const { id, counter } = await meta(store, "installation");
  assert.deepEqual([id, counter], [counters()[0][0], 4]);
  // The counter is stored in the transaction that applies the response: if it fails, neither changes.
  const { transact } = store;
  await phone.table("papers").put({ text: "not applied" });
  let failing = true;
  store.transact = (mode, work) =>
    transact(mode, async (txn) => {
      const result = await work(txn);
      if (mode === "write" && failing && (await txn.meta("installation")).counter === 5) throw new Error("the disk is full");
      return result;
    });
  await assert.rejects(phone.sync(), /the disk is full/);
  assert.equal((await meta(store, "installation")).counter, 4);
  assert.equal((await phone.pending()).rows, 1);
  failing = false;
  await phone.sync();
  assert.equal((await meta(store, "installation")).counter, 5);
});

test("a copy of a store takes the id that the server assigns", async () => {
  const clone = newKey();
  let assign = false;
  const fake = fakeServer();
  const plain = fake.fetch;
  fake.fetch = async (url, init) => {
    const response = await plain(url, init);
    if (assign && init.headers["Sync-Device"] && !init.headers["Sync-Device"].startsWith(clone)) response.headers.set("sync-device", `${clone}.7`);
    return response;
  };
  const store = memoryStore();
  const phone = await fakeDevice(fake, { store });
  await phone.sync();
  assign = true;
  await phone.table("papers").put({ text: "a" });
  await phone.sync();
  assert.deepEqual(await meta(store, "installation"), { id: clone, counter: 8 });
  await phone.table("papers").put({ text: "b" });
  await phone.sync();
  assert.equal(sent(fake).at(-1).headers["Sync-Device"], `${clone}.8`);
  // A request that only reads is enough.
  const other = memoryStore();
  const tablet = await fakeDevice(fake, { store: other });
  await tablet.conflicts.history();
  assert.deepEqual(await meta(other, "installation"), { id: clone, counter: 7 });
});

// What the calls of a sync say, and what they hold on to: against a server of a few lines, whose roll call has pages.
import assert from "node:assert/strict";
import { test } from "node:test";
import { fakeDevice, fakeServer, problem, sent } from "./fake.mjs";

const reply = (status, body, headers) => new Response(status === 304 ? null : JSON.stringify(body), { status, headers });

/** A roll call of two pages, of version 1, under the lock 7. */
const pages = (more = {}) => (request) => {
  if (request.path !== "/fetch") return undefined;
  const page = { lists: [], items: [], tallies: [], papers: [] };
  const known = { "sync-lock": "7", "sync-epoch": "3", ...more };
  return request.query.includes("page=")
    ? reply(200, page, { "sync-version": "9", etag: '"second"', ...known })
    : reply(200, page, { "sync-version": "1", etag: '"first"', link: '<?page=MQ&tables=lists>; rel="next"', ...known });
};

/** A server whose requests tell their query, too. */
function server(before) {
  const fake = fakeServer({ before });
  const { fetch } = fake;
  let query = "";
  const asked = [];
  fake.fetch = (url, init) => {
    query = new URL(url).search;
    asked.push({ path: new URL(url).pathname, query, headers: init.headers });
    return fetch(url, init);
  };
  return Object.assign(fake, { asked, query: () => query });
}

test("a request that is repeated leaves the lock's number out: the first may have given the lock back", async () => {
  let lose = true;
  const fake = server((request) => {
    if (request.path === "/synchronise" && lose) {
      lose = false;
      throw new TypeError("lost on the way there");
    }
    return pages()({ ...request, query: fake.query() });
  });
  const phone = await fakeDevice(fake, { way: "manifest" });
  await phone.table("papers").put({ text: "a" });
  await phone.sync();
  const [first, second] = sent(fake);
  assert.deepEqual([first.headers["Sync-Lock"], second.headers["Sync-Lock"]], ["7", undefined]);
});

test("a roll call is of the version of its first page, and only that can be left out as known", async () => {
  const fake = server((request) => {
    const answer = pages()({ ...request, query: fake.query() });
    return request.path === "/synchronise" && request.body.base === 1 ? undefined : answer;
  });
  const phone = await fakeDevice(fake, { way: "manifest" });
  await phone.sync();
  await phone.sync();
  const rolls = fake.asked.filter(({ path }) => path === "/fetch");
  assert.deepEqual(rolls.map(({ query }) => query.includes("page=")), [false, true, false, true]);
  assert.deepEqual(rolls.map(({ headers }) => headers["If-None-Match"]), [undefined, undefined, '"first"', undefined]);
  assert.deepEqual(sent(fake).map(({ body }) => body.base), [1, 1]);
});

test("what others wrote during a sync makes its roll call out of date", async () => {
  const fake = server((request) => {
    if (request.path === "/synchronise") fake.owner(fake.users.anna.owner).version = 5; // somebody else wrote
    return pages()({ ...request, query: fake.query() });
  });
  const phone = await fakeDevice(fake, { way: "manifest" });
  await phone.sync();
  await phone.sync();
  const firsts = fake.asked.filter(({ path, query }) => path === "/fetch" && !query.includes("page="));
  assert.deepEqual(firsts.map(({ headers }) => headers["If-None-Match"]), [undefined, undefined]);
});

test("the wait for the lock ends, however often the server asks to wait", async () => {
  const fake = server(({ path }) => (path === "/synchronise" ? problem(423, "sync_in_progress", { retry_after_s: 10 }) : undefined));
  const phone = await fakeDevice(fake, { patience: { lockWaitMaxMs: 60_000 } });
  await phone.table("papers").put({ text: "a" });
  await assert.rejects(phone.sync(), { code: "sync_in_progress" });
  const waits = phone.pauses.filter((ms) => ms === 10_000).length;
  assert.ok(waits >= 5 && waits <= 6, `${waits} waits of 10 s`);
  assert.equal((await phone.pending()).rows, 1);
});

test("a token that is refused is renewed once", async () => {
  const fake = server(({ path }) => (path === "/synchronise" ? problem(401, "unauthorized") : undefined));
  let asked = 0;
  const token = async () => (asked++, "anna");
  const phone = await fakeDevice(fake, { token });
  await phone.table("papers").put({ text: "a" });
  const before = asked;
  await assert.rejects(phone.sync(), { code: "unauthorized" });
  assert.equal(sent(fake).length, 2);
  assert.ok(asked > before);
});

for (const status of [401, 403, 408, 423, 429, 503]) {
  test(`${status} says nothing of what became of a request: it goes up again under its key`, async () => {
    let refuse = true;
    const fake = server(({ path }) => (path === "/synchronise" && refuse ? problem(status, "no") : undefined));
    const phone = await fakeDevice(fake, { patience: { attemptsMax: 1, lockWaitMaxMs: 1 } });
    await phone.table("papers").put({ text: "a" });
    await assert.rejects(phone.sync());
    refuse = false;
    assert.equal((await phone.sync()).resumed, true);
    assert.equal(new Set(sent(fake).filter(({ body }) => body.add).map(({ headers }) => headers["Idempotency-Key"])).size, 1);
  });
}

for (const status of [507, 404]) {
  test(`${status} says that nothing was written: the rows go up under another key`, async () => {
    let refuse = true;
    const fake = server(({ path }) => (path === "/synchronise" && refuse ? problem(status, "no") : undefined));
    const phone = await fakeDevice(fake, { patience: { attemptsMax: 1 } });
    await phone.table("papers").put({ text: "a" });
    await assert.rejects(phone.sync());
    refuse = false;
    assert.equal((await phone.sync()).resumed, false);
    assert.equal(new Set(sent(fake).filter(({ body }) => body.add).map(({ headers }) => headers["Idempotency-Key"])).size, 2);
  });
}

test("each request of a sync is built on the answer to the one before", async () => {
  const fake = fakeServer({ limits: { rows_max: 1 } });
  const phone = await fakeDevice(fake);
  await phone.sync();
  for (const text of ["a", "b", "c"]) await phone.table("papers").put({ text });
  await phone.sync();
  assert.deepEqual(sent(fake).map(({ body }) => body.base), [1, 2, 3]);
});

test("limits that turned out to be lower are asked for again by the next sync", async () => {
  const few = ({ path, body }) => (path === "/synchronise" && body.add.papers.length > 1 ? problem(422, "too_many_rows") : undefined);
  const fake = fakeServer({ before: few });
  const phone = await fakeDevice(fake);
  for (const text of ["a", "b", "c"]) await phone.table("papers").put({ text });
  assert.equal((await phone.sync()).pushed, 3);
  assert.equal(sent(fake, "/limits").length, 1);
  await phone.sync();
  assert.equal(sent(fake, "/limits").length, 2);
});

test("a request that was given up counts: the server may have answered it", async () => {
  let slow = true;
  const fake = fakeServer({
    before: ({ path, signal }) => {
      if (path !== "/synchronise" || !slow) return undefined;
      slow = false;
      return new Promise((_, reject) => signal.addEventListener("abort", () => reject(new Error("aborted"))));
    },
  });
  const phone = await fakeDevice(fake, { patience: { requestMaxMs: 50 } });
  for (const text of ["a", "b"]) await phone.table("papers").put({ text });
  await phone.sync();
  const counters = sent(fake).map(({ headers }) => Number(headers["Sync-Device"].split(".")[1]));
  assert.equal(counters[1], counters[0] + 1);
});

test("a row that may be tried again at once is tried again by the next sync, not by this one", async () => {
  let busy = true;
  const verdict = () => (busy ? { verdict: "rejected", last_update: null, error: { code: "too_many_edits", detail: "", retry_after_s: 0 } } : undefined);
  const fake = fakeServer({ verdict });
  const phone = await fakeDevice(fake);
  await phone.table("papers").put({ text: "a" });
  await phone.sync();
  assert.equal(sent(fake).length, 1);
  busy = false;
  assert.equal((await phone.sync()).pushed, 1);
});

test("digests that differ at one version prove that nothing was deleted: what the server lacks is put back", async () => {
  let lost = false;
  const none = { count: 0, root: "0".repeat(16) };
  const fake = fakeServer({
    before: ({ path }) => {
      if (!lost || (path !== "/changes" && path !== "/fetch")) return undefined;
      const { version } = fake.owner(fake.users.anna.owner);
      const tables = Object.fromEntries(["lists", "items", "tallies", "papers"].map((name) => [name, none]));
      const page = { type: "diff", version, more: false, add: {}, update: {}, delete: {}, digests: { as_of: version, tables } };
      if (path === "/changes") return reply(200, page, {});
      return reply(200, { lists: [], items: [], tallies: [], papers: [] }, { "sync-version": String(version) });
    },
  });
  const phone = await fakeDevice(fake);
  const { id } = await phone.table("papers").put({ text: "a" });
  await phone.sync();
  await phone.sync();
  fake.owner(fake.users.anna.owner).rows.clear();
  const seeds = sent(fake, "/digests").length;
  lost = true;
  await phone.sync();
  assert.deepEqual(fake.rows("anna"), [`papers ${id}`]);
  assert.equal((await phone.table("papers").get(id)).text, "a");
  assert.equal(sent(fake).at(-1).body.put_back, true);
  assert.ok(sent(fake, "/digests").length > seeds, "a server that was begun anew has another seed");
});

test("a sync that fails after its roll call gives the lock back", async () => {
  const fake = server((request) => {
    if (request.path === "/synchronise") return problem(503, "unavailable");
    return pages()({ ...request, query: fake.query() });
  });
  const phone = await fakeDevice(fake, { way: "manifest", patience: { attemptsMax: 1 } });
  await phone.table("papers").put({ text: "a" });
  await assert.rejects(phone.sync());
  assert.deepEqual(sent(fake, "/lock").map(({ method }) => method), ["DELETE"]);
});

test("the mark of the next page goes back as it came", async () => {
  const mark = "a&b=c+d/ é#%";
  const fake = server(({ path }) => {
    const first = path === "/changes" && fake.query() === "";
    return first ? reply(200, { type: "full", version: 1, more: true, next: mark, add: {}, update: {}, delete: {} }, {}) : undefined;
  });
  const phone = await fakeDevice(fake);
  await phone.sync();
  const next = fake.asked.filter(({ path }) => path === "/changes").map(({ query }) => new URLSearchParams(query).get("next"));
  assert.deepEqual(next, [null, mark]);
});

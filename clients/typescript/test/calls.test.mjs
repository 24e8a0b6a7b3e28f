// The requests of a sync: their headers, keys, retries and limits. The fake server's manifest has two pages.
import assert from "node:assert/strict";
import { test } from "node:test";
import { fakeDevice, fakeServer, problem, sent } from "./fake.mjs";

const reply = (status, body, headers) => new Response(status === 304 ? null : JSON.stringify(body), { status, headers });

/** A manifest of two pages, of version 1, under the lock 7. */
const pages = (more = {}) => (request) => {
  if (request.path !== "/fetch") return undefined;
  const page = { lists: [], items: [], tallies: [], papers: [] };
  const known = { "sync-lock": "7", "sync-epoch": "3", ...more };
  return request.query.includes("page=")
    ? reply(200, page, { "sync-version": "9", etag: '"second"', ...known })
    : reply(200, page, { "sync-version": "1", etag: '"first"', link: '<?page=MQ&tables=lists>; rel="next"', ...known });
};

/** A fake server that also records the query of each request. */
function server(before) {
  const fake = fakeServer({ before });
  const { fetch } = fake;
  let query = "";
  const requests = [];
  fake.fetch = (url, init) => {
    query = new URL(url).search;
    requests.push({ path: new URL(url).pathname, query, headers: init.headers });
    return fetch(url, init);
  };
  return Object.assign(fake, { requests, query: () => query });
}

test("a repeated request omits the fence, since the first attempt may have released the lock", async () => {
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

test("a manifest has the version of its first page, and only the first request has If-None-Match", async () => {
  const fake = server((request) => {
    const page = pages()({ ...request, query: fake.query() });
    return request.path === "/synchronise" && request.body.base === 1 ? undefined : page;
  });
  const phone = await fakeDevice(fake, { way: "manifest" });
  await phone.sync();
  await phone.sync();
  const fetches = fake.requests.filter(({ path }) => path === "/fetch");
  assert.deepEqual(fetches.map(({ query }) => query.includes("page=")), [false, true, false, true]);
  assert.deepEqual(fetches.map(({ headers }) => headers["If-None-Match"]), [undefined, undefined, '"first"', undefined]);
  assert.deepEqual(sent(fake).map(({ body }) => body.base), [1, 1]);
});

test("a write of another device during a sync invalidates its manifest", async () => {
  const fake = server((request) => {
    if (request.path === "/synchronise") fake.owner(fake.users.anna.owner).version = 5; // another device wrote
    return pages()({ ...request, query: fake.query() });
  });
  const phone = await fakeDevice(fake, { way: "manifest" });
  await phone.sync();
  await phone.sync();
  const firsts = fake.requests.filter(({ path, query }) => path === "/fetch" && !query.includes("page="));
  assert.deepEqual(firsts.map(({ headers }) => headers["If-None-Match"]), [undefined, undefined]);
});

test("the wait for the lock ends, even if the server always returns 423", async () => {
  const fake = server(({ path }) => (path === "/synchronise" ? problem(423, "sync_in_progress", { retry_after_s: 10 }) : undefined));
  const phone = await fakeDevice(fake, { patience: { lockWaitMaxMs: 60_000 } });
  await phone.table("papers").put({ text: "a" });
  await assert.rejects(phone.sync(), { code: "sync_in_progress" });
  const waits = phone.pauses.filter((ms) => ms === 10_000).length;
  assert.ok(waits >= 5 && waits <= 6, `${waits} waits of 10 s`);
  assert.equal((await phone.pending()).rows, 1);
});

test("a refused token is renewed once", async () => {
  const fake = server(({ path }) => (path === "/synchronise" ? problem(401, "unauthorized") : undefined));
  let calls = 0;
  const token = async () => (calls++, "anna");
  const phone = await fakeDevice(fake, { token });
  await phone.table("papers").put({ text: "a" });
  const before = calls;
  await assert.rejects(phone.sync(), { code: "unauthorized" });
  assert.equal(sent(fake).length, 2);
  assert.ok(calls > before);
});

for (const status of [401, 403, 408, 423, 429, 503]) {
  test(`${status} leaves the outcome of a request open: it is sent again under its key`, async () => {
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
  test(`${status} means that nothing was written: the rows are sent under another key`, async () => {
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

test("the base of each request is the version of the response before", async () => {
  const fake = fakeServer({ limits: { rows_max: 1 } });
  const phone = await fakeDevice(fake);
  await phone.sync();
  for (const text of ["a", "b", "c"]) await phone.table("papers").put({ text });
  await phone.sync();
  assert.deepEqual(sent(fake).map(({ body }) => body.base), [1, 2, 3]);
});

test("after a limit turned out to be lower, the next sync requests the limits again", async () => {
  const few = ({ path, body }) => (path === "/synchronise" && body.add.papers.length > 1 ? problem(422, "too_many_rows") : undefined);
  const fake = fakeServer({ before: few });
  const phone = await fakeDevice(fake);
  for (const text of ["a", "b", "c"]) await phone.table("papers").put({ text });
  assert.equal((await phone.sync()).pushed, 3);
  assert.equal(sent(fake, "/limits").length, 1);
  await phone.sync();
  assert.equal(sent(fake, "/limits").length, 2);
});

test("a request that was given up raises the counter, since the server may have responded", async () => {
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

test("a rejected row without a pause is sent again by the next sync, not by the same one", async () => {
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

test("if digests of the same version differ, the rows that the server lacks are put back", async () => {
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
  assert.ok(sent(fake, "/digests").length > seeds, "a server that was started anew has another seed");
});

test("a sync that fails after the manifest releases the lock", async () => {
  const fake = server((request) => {
    if (request.path === "/synchronise") return problem(503, "unavailable");
    return pages()({ ...request, query: fake.query() });
  });
  const phone = await fakeDevice(fake, { way: "manifest", patience: { attemptsMax: 1 } });
  await phone.table("papers").put({ text: "a" });
  await assert.rejects(phone.sync());
  assert.deepEqual(sent(fake, "/lock").map(({ method }) => method), ["DELETE"]);
});

test("the page token is sent unchanged", async () => {
  const token = "a&b=c+d/ é#%";
  const fake = server(({ path }) => {
    const first = path === "/changes" && fake.query() === "";
    return first ? reply(200, { type: "full", version: 1, more: true, next: token, add: {}, update: {}, delete: {} }, {}) : undefined;
  });
  const phone = await fakeDevice(fake);
  await phone.sync();
  const next = fake.requests.filter(({ path }) => path === "/changes").map(({ query }) => new URLSearchParams(query).get("next"));
  assert.deepEqual(next, [null, token]);
});

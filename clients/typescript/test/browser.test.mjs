// The client in a real browser: IndexedDB, several tabs, a reload, under a strict content security policy.
import assert from "node:assert/strict";
import { fileURLToPath } from "node:url";
import { before, test } from "node:test";
import { launch, noBrowser, serveFiles } from "./chromium.mjs";
import { server, skip as noServer, tables } from "./support.mjs";

const here = fileURLToPath(new URL(".", import.meta.url));
const skip = noBrowser || noServer;
const started = await server({ settings: ["--cors-origin", "*"] });
const csp = `default-src 'none'; script-src 'self'; connect-src ${started.url}`;
let browser, origin;
before(async () => {
  if (skip) return;
  origin = await serveFiles({ "/page/": `${here}page`, "/test/": here, "/dist/": `${here}../dist` }, { "Content-Security-Policy": csp });
  browser = await launch();
});

async function tab(context, email, options = {}) {
  const page = await context.newPage();
  page.on("pageerror", (error) => console.error(error));
  await page.goto(`${origin}/page/index.html`);
  await page.waitForFunction(() => window.ready);
  const login = { email, password: "something borrowed", device: "browser", register: true };
  await page.evaluate(([given, name]) => window.open_(given, name), [{ url: started.url, tables, login, ...options }, email]);
  return page;
}
const showsTitles = (page, titles) => page.waitForFunction((titles) => JSON.stringify(window.seenTitles.at(-1)) === titles, JSON.stringify(titles));

test("IndexedDB passes the cases of every store", { skip }, async () => {
  const context = await browser.newContext();
  const page = await context.newPage();
  await page.goto(`${origin}/page/index.html`);
  await page.waitForFunction(() => window.ready);
  const titles = await page.evaluate("window.storeTitles");
  assert.ok(titles.length > 5);
  for (const title of titles) await page.evaluate((title) => window.checkStore(title), title);
  await context.close();
});

test("tabs share rows, only one syncs at a time, and one listens for all", { skip }, async () => {
  const context = await browser.newContext();
  const [one, two] = [await tab(context, "tabs@example.com"), await tab(context, "tabs@example.com")];
  await one.evaluate(() => client.table("items").put({ title: "Cake" }));
  await showsTitles(two, ["Cake"]);
  const reports = await Promise.all([one.evaluate(() => client.sync()), two.evaluate(() => client.sync())]);
  for (const report of reports) assert.equal(report.digestsEqual, true);
  const posts = async (page) => (await page.evaluate("sent")).filter((path) => path === "POST /synchronise").length;
  assert.equal((await posts(one)) + (await posts(two)), 1, "the cake is sent once");

  await one.evaluate(() => void (window.live = client.live({ debounceMs: 5 })));
  await one.waitForFunction(() => status_?.live === 'listening');
  await two.evaluate(() => void (window.live = client.live({ debounceMs: 5 })));
  await two.waitForFunction(() => status_?.live === 'waiting');

  // Another device writes: the listening tab syncs, and both show the row.
  const other = await tab(await browser.newContext(), "tabs@example.com");
  await other.evaluate(async () => {
    await client.table("items").put({ title: "Pie" });
    await client.sync();
  });
  await showsTitles(one, ["Cake", "Pie"]);
  await showsTitles(two, ["Cake", "Pie"]);

  // An edit in the tab that does not listen is sent without a call of `sync`.
  await two.evaluate(() => client.table("items").put({ title: "Bread" }));
  await two.waitForFunction(() => status_?.pending.rows === 0);
  await one.close();
  await two.waitForFunction(() => status_?.live === 'listening');
  await other.evaluate(async () => {
    await client.sync();
    const [row] = await client.table("items").list();
    await client.table("items").remove(row.iid);
    await client.sync();
  });
  await showsTitles(two, ["Pie", "Bread"]);
  const digests = await Promise.all([two, other].map((page) => page.evaluate(() => client.digests())));
  assert.deepEqual(digests[0].tables, digests[1].tables);
});

test("without Web Locks a lease in the store lets one tab sync at a time", { skip }, async () => {
  const context = await browser.newContext();
  await context.addInitScript(() => Object.defineProperty(navigator, "locks", { value: undefined }));
  const [one, two] = [await tab(context, "lease@example.com"), await tab(context, "lease@example.com")];
  await one.evaluate(() => client.table("items").put({ title: "Cake" }));
  await showsTitles(two, ["Cake"]);
  await Promise.all([one, two].map((page) => page.evaluate(() => client.sync())));
  const sent = [...(await one.evaluate("sent")), ...(await two.evaluate("sent"))];
  assert.equal(sent.filter((path) => path === "POST /synchronise").length, 1, "the cake is sent once");
  for (const page of [one, two]) {
    await page.evaluate(() => client.live());
    await page.waitForFunction(() => status_?.live === "listening");
  }
  await context.close();
});

test("edits made offline survive a reload", { skip }, async () => {
  const context = await browser.newContext();
  const patience = { attemptsMax: 1 };
  const page = await tab(context, "reload@example.com", { patience });
  await page.evaluate(() => client.sync());
  await page.route(`${started.url}/**`, (route) => route.abort());
  await page.evaluate(() => client.table("items").put({ title: "Cake" }));
  assert.equal(await page.evaluate(() => client.sync().catch((error) => error.code)), "offline");
  await page.close();

  const again = await tab(context, "reload@example.com");
  await showsTitles(again, ["Cake"]);
  assert.equal((await again.evaluate(() => client.pending())).rows, 1);
  const report = await again.evaluate(() => client.sync());
  assert.deepEqual([report.pushed, report.resumed, report.digestsEqual], [1, true, true]);
});

test("a first sync stores 5,000 rows", { skip }, async (t) => {
  const context = await browser.newContext();
  const page = await tab(context, "many@example.com");
  const ms = await page.evaluate(async () => {
    const rows = Array.from({ length: 5000 }, (_, i) => ({ iid: crypto.randomUUID(), title: `item ${i}` }));
    const login = await fetch(`${client.wire.url}/register`, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ email: "many@example.com", password: "something borrowed" }) });
    const token = await client.wire.token(false);
    await fetch(`${client.wire.url}/synchronise`, { method: "POST", headers: { "Content-Type": "application/json", Authorization: `Bearer ${token}` }, body: JSON.stringify({ add: { items: rows } }) });
    const began = performance.now();
    const report = await client.sync();
    if (report.pulled !== 5000 || !report.digestsEqual) throw new Error(JSON.stringify({ ...report, login: login.status }));
    return Math.round(performance.now() - began);
  });
  t.diagnostic(`first sync of 5,000 rows into IndexedDB: ${ms} ms`);
});

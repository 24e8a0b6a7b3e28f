// `live` sends edits and fetches the edits of other devices without a call of `sync`.
import assert from "node:assert/strict";
import { after, test } from "node:test";
import { memoryStore, openClient } from "../dist/index.js";
import { server, skip, startServer, tables, user } from "./support.mjs";

const started = await server();

/** Waits until `holds` returns true, at most 10 s. `what` describes that for the error. */
async function until(holds, what) {
  for (const began = Date.now(); !(await holds()); await new Promise((resolve) => setTimeout(resolve, 10))) {
    if (Date.now() - began > 10_000) throw new Error(`not within 10 s: ${what}`);
  }
}

async function open(url, email, device) {
  const login = { email, password: "something borrowed", device, register: true };
  const client = await openClient({ url, tables, store: memoryStore(), login });
  client.seenStatuses = [];
  client.onStatus((status) => client.seenStatuses.push(status));
  after(() => client.close());
  return client;
}
const titles = async (client) => (await client.table("items").list()).map(({ title }) => title).sort();

test("two devices stay equal without a call of `sync`", { skip }, async () => {
  const [phone, tablet] = [await open(started.url, "live@example.com", "phone"), await open(started.url, "live@example.com", "tablet")];
  const paths = [];
  tablet.onTraffic(({ phase, method, path }) => phase === "sent" && paths.push(`${method} ${path.split("?")[0]}`));
  const stops = [phone.live({ debounceMs: 5 }), tablet.live({ debounceMs: 5 })];
  await until(() => phone.seenStatuses.at(-1).live === "listening" && tablet.seenStatuses.at(-1).live === "listening", "both listen");
  const began = Date.now();
  const cake = await phone.table("items").put({ title: "Cake" });
  await until(async () => (await titles(tablet)).includes("Cake"), "the tablet has the cake");
  assert.ok(Date.now() - began < 5_000);
  await tablet.table("items").patch(cake.iid, { title: "Pie" });
  await until(async () => (await titles(phone)).includes("Pie"), "the phone has the pie");
  await until(async () => (await tablet.pending()).rows === 0, "nothing waits");
  assert.ok(!paths.includes("GET /lock"), "events report the lock");

  // The event about a device's own write starts no request.
  await new Promise((resolve) => setTimeout(resolve, 200));
  paths.length = 0;
  await tablet.table("items").put({ title: "Bread" });
  await until(async () => (await titles(phone)).includes("Bread"), "the phone has the bread");
  await new Promise((resolve) => setTimeout(resolve, 200));
  assert.deepEqual(paths, ["POST /synchronise"]);
  stops.forEach((live) => live.stop());
  await until(() => phone.seenStatuses.at(-1).live === "off", "it is off");
});

test("`live` reconnects after the server was down", { skip }, async () => {
  let other = await startServer();
  const listen = other.url.replace("http://", "");
  const [phone, tablet] = [await open(other.url, "back@example.com", "phone"), await open(other.url, "back@example.com", "tablet")];
  await phone.sync();
  await tablet.sync();
  phone.live({ debounceMs: 5 });
  tablet.live({ debounceMs: 5 });
  await until(() => tablet.seenStatuses.at(-1).live === "listening", "it listens");
  await other.stop("SIGKILL");
  await phone.table("items").put({ title: "made offline" });
  await until(() => phone.seenStatuses.at(-1).online === false, "the phone is offline");
  other = await startServer({ dir: other.dir, listen });
  try {
    await until(async () => (await titles(tablet)).includes("made offline"), "the tablet has it");
  } finally {
    await phone.close();
    await tablet.close();
    await other.stop();
    other.remove();
  }
});

test("without streamed responses `live` polls", { skip }, async () => {
  const phone = await open(started.url, "poll@example.com", "phone");
  const login = { email: "poll@example.com", password: "something borrowed", device: "react native" };
  const unstreamed = async (url, init) => {
    if (url.endsWith("/events")) return new Response(null, { status: 200 });
    return fetch(url, init);
  };
  await phone.sync();
  const native = await openClient({ url: started.url, tables, store: memoryStore(), login, fetch: unstreamed });
  after(() => native.close());
  native.live({ pollMs: 50 });
  await phone.table("items").put({ title: "Cake" });
  await phone.sync();
  await until(async () => (await titles(native)).includes("Cake"), "it has the cake");
});

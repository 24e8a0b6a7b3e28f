// A real server for each test file, accounts for each test, and a network that can be disturbed.
import { execFileSync, spawn } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { after } from "node:test";
import { memoryStore, openClient } from "../dist/index.js";

export const root = fileURLToPath(new URL("../../../", import.meta.url));
const binary = process.env.ROLLCALL_BIN ?? join(root, "target/debug/rollcall");

/** The reason why tests with a server cannot run here; false if they can. */
export const skip = existsSync(binary) ? false : `no server at ${binary}: build it, or set ROLLCALL_BIN`;
if (skip && process.env.CI) throw new Error(skip);

export const schema = `
[table.lists]
key = "id"
[table.lists.columns]
name = { type = "text", required = true, max_length = 40 }

[table.items]
key = "iid"
[table.items.columns]
title = { type = "text", max_length = 40 }
done = { type = "boolean", default = false }
count = "integer"
price = "decimal"
due = "timestamp"
tags = "json"
list = { type = "uuid", references = "lists" }

[table.tallies]
key = "id"
policy = "merge"
[table.tallies.columns]
label = "text"
hits = { type = "integer", default = 0, merge = "sum" }

[table.papers]
key = "id"
policy = "manual"
[table.papers.columns]
text = "text"
`;

export const tables = {
  lists: { key: "id", columns: { name: { type: "text", required: true } } },
  items: {
    key: "iid",
    columns: {
      title: "text",
      done: { type: "boolean", default: false },
      count: "integer",
      price: "decimal",
      due: "timestamp",
      tags: "json",
      list: { type: "uuid", references: "lists" },
    },
  },
  tallies: { key: "id", columns: { label: "text", hits: { type: "integer", default: 0 } } },
  papers: { key: "id", columns: { text: "text" } },
};

/** Starts a server on a free port. It ends with the test file. */
export async function startServer({ schemaText = schema, settings = [], listen = "127.0.0.1:0", dir } = {}) {
  const folder = dir ?? mkdtempSync(join(tmpdir(), "rollcall-client-"));
  writeFileSync(join(folder, "schema.toml"), schemaText);
  const [database, backup] = [`sqlite:${join(folder, "app.db")}`, join(folder, "backup.db")];
  const flags = ["serve", "--schema", join(folder, "schema.toml"), "--database", database, "--listen", listen];
  flags.push("--logins-per-address-per-min", "0", "--logins-per-account-per-min", "0", "--log", "warn", ...settings);
  const child = spawn(binary, flags, { stdio: ["ignore", "pipe", "inherit"] });
  const url = await new Promise((resolve, reject) => {
    let text = "";
    child.stdout.on("data", (data) => {
      text += data;
      const found = /listening on (http:\S+)/.exec(text);
      if (found) resolve(found[1]);
    });
    child.on("exit", (code) => reject(new Error(`the server ended with ${code}: ${text}`)));
  });
  after(() => child.kill("SIGKILL")); // also if the test fails
  const stop = (signal = "SIGTERM") =>
    new Promise((resolve) => {
      if (child.exitCode !== null || child.signalCode !== null) return resolve();
      child.on("exit", resolve);
      child.kill(signal);
    });
  return {
    ...{ url, dir: folder, stop },
    backUp: () => void execFileSync(binary, ["backup", "--database", database, "--to", backup, "--overwrite"], { stdio: "ignore" }),
    /** Restores the backup. Returns a new server on it, at the same address. */
    restore: async () => {
      await stop();
      execFileSync(binary, ["restore", "--from", backup, "--database", database, "--replace"], { stdio: "ignore" });
      return startServer({ schemaText, settings, listen: new URL(url).host, dir: folder });
    },
    remove: () => rmSync(folder, { recursive: true, force: true }),
  };
}

/** A server for the whole file. */
export async function server(options) {
  if (skip) return { url: "" };
  const started = await startServer(options);
  after(async () => {
    await started.stop();
    started.remove();
  });
  return started;
}

let accounts = 0;

/** A user, whose `device` opens a client. */
export function user(started, defaults = {}) {
  const email = `anna${++accounts}@example.com`;
  return {
    email,
    async device(name, options = {}) {
      const net = { disturb: () => "arrives", answered: () => {}, log: [] };
      const client = await openClient({
        url: started.url,
        tables,
        store: memoryStore(),
        login: { email, password: "something borrowed", device: name, register: true },
        patience: { pause: async () => {}, random: () => 0 },
        fetch: disturbed(net),
        ...defaults,
        ...options,
      });
      after(() => client.close());
      return Object.assign(client, { net });
    },
  };
}

/**
 * A `fetch` whose requests have the fate that `wire.disturb(request)` returns: "arrives", "lost" before it arrives,
 * "response lost", "twice", "old base", "another's token".
 */
export function disturbed(wire) {
  return async (url, init) => {
    const path = new URL(url).pathname;
    const request = { method: init.method, path, body: init.body ? JSON.parse(init.body) : undefined, headers: init.headers };
    const fate = await wire.disturb(request);
    if (fate === "lost") throw new TypeError("lost on the way there");
    if (fate === "old base") init = { ...init, body: init.body.replace(/"base":(\d+)/, (_, base) => `"base":${Number(base) + 2 ** 45}`) };
    if (fate === "another's token") init = { ...init, headers: { ...init.headers, Authorization: wire.bens } };
    if (fate === "twice") await (await fetch(url, { ...init, signal: undefined })).text();
    const response = await fetch(url, init);
    wire.log.push({ ...request, status: response.status });
    const text = await response.text();
    await wire.answered(request, text);
    if (fate === "response lost") throw new TypeError("lost on the way back");
    return new Response([204, 304].includes(response.status) ? null : text, { status: response.status, headers: response.headers });
  };
}

/** The rows of a device, each with the server's time. */
export async function sees(client) {
  const seen = {};
  for (const name of Object.keys(client.tables)) {
    seen[name] = (await client.table(name).entries()).filter((entry) => entry.state !== "deleted").map(({ row, lastUpdate }) => [row, lastUpdate]);
  }
  return seen;
}

/** A generator of numbers in [0, 1) from a seed. */
export function randomFrom(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4294967296;
  };
}

export const readFixture = (path) => JSON.parse(readFileSync(join(root, "fixtures", path), "utf8"));

/** One table with a column of every type. */
export const samples = readFileSync(join(root, "fixtures/values/schema.toml"), "utf8");

/** The value, if JavaScript can represent it and sends it unchanged. (`put` replaces half an emoji.) */
function representable(json) {
  try {
    const value = JSON.parse(json);
    const text = JSON.stringify(value);
    if (value === Infinity || value === -Infinity) return null;
    return !/\\ud[89a-f]/i.test(text) && text.length <= json.length && (!/\d{16}|e\d/.test(json) || text === json) ? { value } : null;
  } catch {
    return null; // the JSON has a column twice
  }
}

/** Values that a column of `samples` cannot hold, each `{ name, column, code, value }`. */
export function badValues() {
  const cases = readFixture("values/bad.json").values.map((given) => ({ ...given, ...representable(given.json) })).filter((given) => "value" in given);
  if (cases.length < 80) throw new Error(`only ${cases.length} cases found: a moved file must not pass`);
  return cases;
}

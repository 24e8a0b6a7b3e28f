// A rollcall server and devices for the adapters' tests.
import { badValues, samples, server as start, readFixture, skip, startServer } from "../../clients/typescript/test/support.mjs";
export { readFixture, skip, startServer };

const schema = `
[table.notes]
key = "id"
policy = "manual"
[table.notes.columns]
text = { type = "text", max_length = 200 }
done = { type = "boolean", default = false }
stars = "integer"
`;

export const server = (options) => start({ schemaText: schema, ...options });
/** A server that a test backs up and restores. */
export const restorable = () => startServer({ schemaText: schema });

const isOneText = (json) => {
  try {
    return typeof JSON.parse(json) === "string";
  } catch {
    return false; // the JSON has a column twice, which no program makes
  }
};
/** Texts that the server rejects: those of fixtures/values, and one that is too long. */
export const badTexts = [
  ...readFixture("values/bad.json").values.filter(({ column, json }) => column === "text" && json.startsWith('"') && isOneText(json)).map(({ json }) => JSON.parse(json)),
  "x".repeat(201),
];

/** A table with a column of every type, under the policy that the adapters need. */
export const samplesSchema = samples.replace("[table.samples]\n", '[table.samples]\npolicy = "manual"\n');
/** The names of its columns, without the key. */
export const sampleColumns = [...samplesSchema.split("[table.samples.columns]")[1].matchAll(/^(\w+) = /gm)].map(([, name]) => name);

/**
 * A thousand good rows of `samples` with one bad row for each case among them. `holds(value)` returns whether the library
 * can hold a value, `row(columns)` makes a row. Returns the rows in order, and for each bad one `{ row, name, column, code, value }`.
 */
export function badAmongGood(row, holds = () => true) {
  const cases = badValues().filter(({ value }) => holds(value));
  const bad = cases.map((given) => ({ ...given, row: row({ needed: "x", [given.column]: given.value }) }));
  const good = Array.from({ length: 1000 }, (_, i) => row({ needed: `${i}`, text: "good" }));
  return { bad, rows: good.flatMap((one, i) => (bad[i] ? [one, bad[i].row] : [one])) };
}
/** The change that corrects a bad row. */
export const corrected = ({ column }) => (column === "needed" ? { needed: "y" } : { [column]: null });

/** The number of rows of `samples` that the server has for this token. */
export async function countSamples({ url }, token) {
  const feed = await (await fetch(`${url}/changes`, { headers: { Authorization: `Bearer ${token}`, Accept: "application/x-ndjson" } })).text();
  return feed.trim().split("\n").filter((line) => JSON.parse(line).row).length;
}

/**
 * A proxy in front of the real server. `verdictOf(operation, item)` may return a verdict; then the real server does not get
 * that row. `refuse(body)` may refuse the whole request. While `still` is set, the feed has no changes. `log` has the bodies
 * as they were sent.
 */
export function proxy({ table = "notes", fetch = globalThis.fetch } = {}) {
  const wire = { log: [], requests: [], verdictOf: () => undefined, refuse: () => undefined, still: false };
  wire.fetch = async (url, init) => {
    wire.requests.push({ url, headers: init.headers });
    if (wire.still && url.includes("/changes?")) {
      const version = Number(/since=(\d+)/.exec(url)?.[1] ?? 1);
      return new Response(JSON.stringify({ type: "diff", version, more: false, add: {}, update: {}, delete: {} }));
    }
    if (init.method !== "POST" || !url.endsWith("/synchronise")) return fetch(url, init);
    const body = JSON.parse(init.body);
    wire.log.push(structuredClone(body));
    const refusal = wire.refuse(body);
    if (refusal) return new Response(JSON.stringify(refusal), { status: refusal.status });
    const given = {};
    for (const operation of ["add", "update", "delete"]) {
      const items = body[operation]?.[table] ?? [];
      given[operation] = items.map((item) => {
        const verdict = wire.verdictOf(operation, item);
        return verdict && { ...(typeof item === "string" ? { id: item } : { id: item.id }), ...verdict };
      });
      if (items.length) body[operation][table] = items.filter((_, i) => !given[operation][i]);
    }
    const response = await fetch(url, { ...init, body: JSON.stringify(body) });
    if (!response.ok) return response;
    const result = await response.json();
    for (const operation of ["add", "update", "delete"]) {
      const rest = result[operation][table] ?? [];
      if (given[operation].length) result[operation][table] = given[operation].map((item) => item ?? rest.shift());
    }
    return new Response(JSON.stringify(result), { status: 200, headers: response.headers });
  };
  return wire;
}

/** Logs a new device in and returns its token. */
export async function device({ url }, email, name) {
  const post = async (path, body) =>
    (await fetch(url + path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) })).json();
  await post("/register", { email, password: "something borrowed" });
  return post("/login", { email, password: "something borrowed", device: name });
}

/** Waits until `holds` returns true, at most a minute. `what` describes that for the error. */
export async function until(holds, what) {
  for (const began = Date.now(); !(await holds()); await new Promise((resolve) => setTimeout(resolve, 20))) {
    if (Date.now() - began > 60_000) throw new Error(`not within 60 s: ${what}`);
  }
}

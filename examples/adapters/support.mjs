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
/** One that a test backs up and restores. */
export const fragile = () => startServer({ schemaText: schema });

const isOneText = (json) => {
  try {
    return typeof JSON.parse(json) === "string";
  } catch {
    return false; // no program makes a column that comes twice
  }
};
/** Text that no server takes, of fixtures/values and too long. */
export const badTexts = [
  ...readFixture("values/bad.json").values.filter(({ column, json }) => column === "text" && json.startsWith('"') && isOneText(json)).map(({ json }) => JSON.parse(json)),
  "x".repeat(201),
];

/** A table with a column of every type, under the policy that the adapters need. */
export const samplesSchema = samples.replace("[table.samples]\n", '[table.samples]\npolicy = "manual"\n');
/** The names of its columns, without the key. */
export const sampleColumns = [...samplesSchema.split("[table.samples.columns]")[1].matchAll(/^(\w+) = /gm)].map(([, name]) => name);

/**
 * A thousand good rows of `samples` with a bad one of each case among them. `holds(value)` says which cases the library
 * can hold, `row(columns)` makes a row of it. Gives the rows in order, and for each bad one its `{ row, name, column, code, value }`.
 */
export function badAmongGood(row, holds = () => true) {
  const cases = badValues().filter(({ value }) => holds(value));
  const bad = cases.map((given) => ({ ...given, row: row({ needed: "x", [given.column]: given.value }) }));
  const good = Array.from({ length: 1000 }, (_, place) => row({ needed: `${place}`, text: "good" }));
  return { bad, rows: good.flatMap((one, place) => (bad[place] ? [one, bad[place].row] : [one])) };
}
/** A change that makes a bad row a good one. */
export const mended = ({ column }) => (column === "needed" ? { needed: "y" } : { [column]: null });

/** How many rows of `samples` the server has for this token. */
export async function samplesThere({ url }, token) {
  const feed = await (await fetch(`${url}/changes`, { headers: { Authorization: `Bearer ${token}`, Accept: "application/x-ndjson" } })).text();
  return feed.trim().split("\n").filter((line) => JSON.parse(line).row).length;
}

/**
 * Another server than the real one: `judge(operation, item)` may give a verdict, and the real server does not see that
 * row; `refuse(body)` may refuse the whole request; while it is `still`, nothing has changed. `log` has the bodies as they were sent.
 */
export function proxy({ table = "notes", fetch = globalThis.fetch } = {}) {
  const wire = { log: [], requests: [], judge: () => undefined, refuse: () => undefined, still: false };
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
    const judged = {};
    for (const operation of ["add", "update", "delete"]) {
      const items = body[operation]?.[table] ?? [];
      judged[operation] = items.map((item) => {
        const verdict = wire.judge(operation, item);
        return verdict && { ...(typeof item === "string" ? { id: item } : { id: item.id }), ...verdict };
      });
      if (items.length) body[operation][table] = items.filter((_, place) => !judged[operation][place]);
    }
    const answer = await fetch(url, { ...init, body: JSON.stringify(body) });
    if (!answer.ok) return answer;
    const said = await answer.json();
    for (const operation of ["add", "update", "delete"]) {
      const rest = said[operation][table] ?? [];
      if (judged[operation].length) said[operation][table] = judged[operation].map((item) => item ?? rest.shift());
    }
    return new Response(JSON.stringify(said), { status: 200, headers: answer.headers });
  };
  return wire;
}

/** Logs a new device in; gives its token. */
export async function device({ url }, email, name) {
  const post = async (path, body) =>
    (await fetch(url + path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) })).json();
  await post("/register", { email, password: "something borrowed" });
  return post("/login", { email, password: "something borrowed", device: name });
}

/** Waits until it holds, at most a minute. */
export async function until(holds, what) {
  for (const began = Date.now(); !(await holds()); await new Promise((resolve) => setTimeout(resolve, 20))) {
    if (Date.now() - began > 60_000) throw new Error(`not within 60 s: ${what}`);
  }
}

// Electric's own client, unmodified, against a real server: it reads shapes; /synchronise writes the rows.
import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { after, test } from "node:test";
import { Shape, ShapeStream } from "@electric-sql/client";
import { device, skip, startServer, until } from "../support.mjs";

const schema = `
[table.notes]
key = "nid"
[table.notes.columns]
text = { type = "text", max_length = 200 }
done = { type = "boolean", default = false }
stars = "integer"
price = "decimal"
due = "timestamp"
tags = "json"

[table.others]
key = "id"
[table.others.columns]
text = "text"
`;
const settings = ["--dialect", "electric", "--electric-wait-s", "2", "--changes-rows-max", "40"];
const start = (more = {}) => startServer({ schemaText: schema, settings, ...more });

/** A device with a token that reads a shape and writes by the API. */
async function open(server, email, params = {}) {
  const { token } = await device(server, email, "phone");
  const headers = { Authorization: `Bearer ${token}` };
  const write = async (body) => {
    const response = await fetch(`${server.url}/synchronise`, { method: "POST", headers: { ...headers, "Content-Type": "application/json" }, body: JSON.stringify(body) });
    assert.equal(response.status, 200, await response.clone().text());
    return response.json();
  };
  const aborted = new AbortController();
  after(() => aborted.abort());
  const seen = [];
  const stream = new ShapeStream({
    url: `${server.url}/v1/shape`,
    params: { table: "notes", ...params },
    headers,
    signal: aborted.signal,
    backoffOptions: { initialDelay: 50, maxDelay: 200, multiplier: 1.5 },
    onError: () => {}, // the client retries while the server is down
  });
  stream.subscribe((messages) => seen.push(...messages.map(({ headers: { operation, control } }) => operation ?? control)));
  const shape = new Shape(stream);
  await shape.rows;
  const rows = () => Object.fromEntries([...shape.currentRows].map((row) => [row.nid, row]));
  return { write, stream, shape, rows, seen, headers };
}

/** The server's rows, by the API. */
async function stored(server, { headers }) {
  const feed = await (await fetch(`${server.url}/changes?tables=notes`, { headers: { ...headers, Accept: "application/x-ndjson" } })).text();
  const rows = feed.trim().split("\n").map((line) => JSON.parse(line).row).filter((row) => row);
  return Object.fromEntries(rows.map((row) => [row.nid, row.text]));
}
const texts = (rows) => Object.fromEntries(Object.entries(rows).map(([nid, row]) => [nid, row.text]));

test("Electric: a client gets all rows, then each change, with their types", { skip }, async () => {
  const server = await start();
  const phone = await open(server, "types@example.com");
  const [one, two] = [randomUUID(), randomUUID()];
  const row = { nid: one, text: "caf\u00e9 \"x\"", done: true, stars: 9007199254740991, price: "12.50", due: "2026-01-02T03:04:05.600Z", tags: { a: [1] } };
  await phone.write({ add: { notes: [row, { nid: two, text: null }], others: [{ id: randomUUID(), text: "of another table" }] } });
  await until(() => Object.keys(phone.rows()).length === 2, "two rows");
  const { last_update: at, ...got } = phone.rows()[one];
  assert.deepEqual(got, { ...row, stars: 9007199254740991n, price: "12.5", due: "2026-01-02 03:04:05.6+00" });
  assert.match(at, /^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(\.\d+)?\+00$/);
  assert.equal(phone.rows()[two].text, null);
  await phone.write({ update: { notes: [{ nid: two, text: "second" }] } });
  await until(() => phone.rows()[two].text === "second", "the update");
  await phone.write({ delete: { notes: [one] } });
  await until(() => !phone.rows()[one], "the deletion");
  assert.deepEqual(texts(phone.rows()), await stored(server, phone));
  // A second device, later, with some of the columns, and another user.
  const tablet = await open(server, "types@example.com", { columns: ["nid", "text"] });
  assert.deepEqual(Object.values(tablet.rows()), [{ nid: two, text: "second" }]);
  const stranger = await open(server, "stranger@example.com");
  assert.deepEqual(stranger.rows(), {});
  await server.stop();
});

test("Electric: clients converge over pages, a killed server and a restored one", { skip }, async () => {
  let server = await start();
  const phone = await open(server, "faults@example.com");
  const notes = Array.from({ length: 300 }, (_, n) => ({ nid: randomUUID(), text: `note ${n}` }));
  await phone.write({ add: { notes } });
  const tablet = await open(server, "faults@example.com");
  const both = (holds, what) => until(() => [phone, tablet].every((one) => holds(one.rows())), what);
  const agree = async () => {
    const expected = JSON.stringify(Object.entries(await stored(server, phone)).sort());
    await both((rows) => JSON.stringify(Object.entries(texts(rows)).sort()) === expected, "both have the server's rows");
  };
  await agree();
  assert.equal(Object.keys(tablet.rows()).length, 300, "in pages of forty");

  server.backUp();
  await phone.write({ add: { notes: [{ nid: randomUUID(), text: "after the backup" }] }, delete: { notes: [notes[0].nid] } });
  await agree();

  // The server is killed while both wait, and restarted on the same file and address.
  await server.stop("SIGKILL");
  server = await start({ dir: server.dir, listen: new URL(server.url).host });
  await phone.write({ update: { notes: [{ nid: notes[1].nid, text: "after the kill" }] } });
  await both((rows) => rows[notes[1].nid]?.text === "after the kill", "an edit after the kill");
  await agree();
  assert.ok(!tablet.seen.includes("must-refetch"), "a restart causes no second download");

  // The server is restored: the later row is gone, the deleted one exists again.
  server = await server.restore();
  await both((rows) => rows[notes[0].nid] && Object.keys(rows).length === 300, "the rows of the backup");
  await agree();
  for (const { seen } of [phone, tablet]) assert.ok(seen.includes("must-refetch"), "the clients loaded everything again");
  await phone.write({ delete: { notes: notes.slice(10, 20).map(({ nid }) => nid) } });
  await agree();
  await server.stop();
  server.remove();
});

test("Electric: an unsupported parameter is refused with a sentence", { skip }, async () => {
  const server = await start();
  const { token } = await device(server, "refused@example.com", "phone");
  for (const [params, liveSse, sentence] of [
    [{ where: "stars > 1" }, false, /where is not served/],
    [{}, true, /live_sse is not served/],
    [{ table: "nothing" }, false, /no table/],
  ]) {
    const failed = new Promise((resolve) => {
      const stream = new ShapeStream({
        url: `${server.url}/v1/shape`,
        params: { table: "notes", ...params },
        headers: { Authorization: `Bearer ${token}` },
        liveSse,
        onError: (error) => void resolve(error),
      });
      after(stream.subscribe(() => {}));
    });
    const error = await failed;
    assert.equal(error.status, 400);
    assert.match(JSON.stringify(error.json ?? error.text ?? error.message), sentence);
  }
  await server.stop();
});

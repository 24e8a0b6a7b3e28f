// Values that a column cannot hold, by the cases in fixtures/values: each is one row's trouble, and nobody else's.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { readFixture, root, server, skip, user } from "./support.mjs";

const started = await server({ schemaText: readFileSync(`${root}fixtures/values/schema.toml`, "utf8") });
const { values } = readFixture("values/bad.json");
assert.ok(values.length > 20, "no cases found: a moved file must not pass");

/** The value, if a program of this language can hold it and sends it as it is; half an emoji is replaced when it is put. */
function held(json) {
  try {
    const value = JSON.parse(json);
    const text = JSON.stringify(value);
    if (value === Infinity || value === -Infinity) return null;
    return !/\\ud[89a-f]/i.test(text) && text.length <= json.length && (!/\d{16}|e\d/.test(json) || text === json) ? { value } : null;
  } catch {
    return null; // a column that comes twice
  }
}
const cases = values.map((given) => ({ ...given, ...held(given.json) })).filter((given) => "value" in given);

for (const way of ["cursor", "manifest"]) {
  test(`bad rows among a thousand good ones: a thousand are applied, each other one is rejected (${way})`, { skip }, async () => {
    // Without columns the client checks nothing: whatever the app puts goes up.
    const phone = await user(started, { way, tables: { samples: { key: "id" } } }).device("phone");
    const samples = phone.table("samples");
    const bad = new Map();
    for (let place = 0; place < 1000; place++) {
      await samples.put({ needed: `${place}`, text: "good" });
      const given = cases[place];
      if (given) bad.set((await samples.put({ needed: "x", [given.column]: given.value })).id, given);
    }
    const report = await phone.sync();
    for (const [id, { name, column }] of bad) assert.ok(report.rejected.some(({ key }) => key === id), `${column}: ${name}`);
    assert.equal(report.pushed, 1000);
    const told = new Map(report.rejected.map((row) => [row.key, row]));
    for (const [id, { name, column, code, value }] of bad) {
      // A server of before refuses the request and points at the row; not all of its codes are the same.
      if (told.get(id).column !== undefined) assert.deepEqual([told.get(id).code, told.get(id).column], [code, column], name);
      assert.deepEqual((await samples.get(id))[column], value, "it stays as the user made it");
    }
    assert.equal(told.size, bad.size);
    assert.equal(report.digestsEqual, true);
    assert.deepEqual(await phone.pending(), { rows: bad.size, added: bad.size, edited: 0, deleted: 0, rejected: bad.size });
    // Mended, they go up.
    for (const [id, { column }] of bad) await samples.patch(id, column === "needed" ? { needed: "y" } : { [column]: null });
    assert.equal((await phone.sync()).pushed, bad.size);
    assert.equal((await phone.pending()).rows, 0);
  });
}

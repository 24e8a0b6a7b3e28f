// Values that a column cannot hold, from fixtures/values: each is rejected, and all other rows are applied.
import assert from "node:assert/strict";
import { test } from "node:test";
import { badValues, samples as schemaText, server, skip, user } from "./support.mjs";

const started = await server({ schemaText });
const cases = badValues();

for (const way of ["cursor", "manifest"]) {
  test(`of a thousand good rows and some bad ones, the good ones are applied and the bad ones are rejected (${way})`, { skip }, async () => {
    // Without declared columns the client checks nothing and sends whatever the app puts.
    const phone = await user(started, { way, tables: { samples: { key: "id" } } }).device("phone");
    const samples = phone.table("samples");
    const bad = new Map();
    for (let i = 0; i < 1000; i++) {
      await samples.put({ needed: `${i}`, text: "good" });
      const given = cases[i];
      if (given) bad.set((await samples.put({ needed: "x", [given.column]: given.value })).id, given);
    }
    const report = await phone.sync();
    for (const [id, { name, column }] of bad) assert.ok(report.rejected.some(({ key }) => key === id), `${column}: ${name}`);
    assert.equal(report.pushed, 1000);
    const rejected = new Map(report.rejected.map((row) => [row.key, row]));
    for (const [id, { name, column, code, value }] of bad) {
      // An older server refuses the request and points at the row, with other codes in some cases.
      if (rejected.get(id).column !== undefined) assert.deepEqual([rejected.get(id).code, rejected.get(id).column], [code, column], name);
      assert.deepEqual((await samples.get(id))[column], value, "the row stays as the user made it");
    }
    assert.equal(rejected.size, bad.size);
    assert.equal(report.digestsEqual, true);
    assert.deepEqual(await phone.pending(), { rows: bad.size, added: bad.size, edited: 0, deleted: 0, rejected: bad.size });
    // Once they are corrected, they are sent.
    for (const [id, { column }] of bad) await samples.patch(id, column === "needed" ? { needed: "y" } : { [column]: null });
    assert.equal((await phone.sync()).pushed, bad.size);
    assert.equal((await phone.pending()).rows, 0);
  });
}

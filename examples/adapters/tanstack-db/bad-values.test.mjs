// Values that a column cannot hold, of every type (fixtures/values), through the real TanStack DB: each concerns its row alone.
import assert from "node:assert/strict";
import { after, test } from "node:test";
import { createCollection } from "@tanstack/db";
import { memoryStore, newKey, openClient } from "rollcall-client";
import { rollcallCollectionOptions } from "./rollcall.js";
import { badAmongGood, device, corrected, samplesSchema, countSamples, server, skip } from "../support.mjs";

const started = await server({ schemaText: samplesSchema });

test("TanStack DB: every bad value among a thousand good rows is rejected alone and stays", { skip }, async () => {
  const { token } = await device(started, "values@example.com", "phone");
  // Without columns the client checks no value and sends whatever the app writes.
  const client = await openClient({ url: started.url, tables: { samples: { key: "id" } }, store: memoryStore(), token });
  after(() => client.close());
  const samples = createCollection(rollcallCollectionOptions({ client, table: "samples" }));
  await samples.preload();
  const { rows, bad } = badAmongGood((values) => ({ id: newKey(), ...values }));
  assert.ok(bad.length > 80, `${bad.length} cases`);
  await samples.insert(rows).isPersisted.promise;
  const report = await client.sync();
  assert.equal(await countSamples(started, token), 1000);
  const codes = new Map(report.rejected.map(({ key, code }) => [key, code]));
  assert.equal(codes.size, bad.length);
  for (const { row, name, column, code, value } of bad) {
    assert.equal(codes.get(row.id), code, `${column}: ${name}`);
    assert.deepEqual(samples.get(row.id)[column], value, `${column}: ${name} stays as the user made it`);
  }
  for (const one of bad) await samples.update(one.row.id, (row) => void Object.assign(row, corrected(one))).isPersisted.promise;
  assert.deepEqual((await client.sync()).rejected, []);
  assert.equal(await countSamples(started, token), rows.length);
});

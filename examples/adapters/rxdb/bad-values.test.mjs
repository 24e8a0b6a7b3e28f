// Values that a column cannot hold, of every type (fixtures/values), through the real RxDB: each concerns its row alone.
import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { after, test } from "node:test";
import { createRxDatabase } from "rxdb";
import { getRxStorageMemory } from "rxdb/plugins/storage-memory";
import { replicateRollcall } from "./rollcall.js";
import { badAmongGood, device, corrected, sampleColumns, samplesSchema, countSamples, server, skip, until } from "../support.mjs";

const mark = { type: ["string", "null"] };
// This schema lets RxDB check no value: it sends whatever the app writes.
const columns = Object.fromEntries(sampleColumns.map((name) => [name, {}]));
const properties = { id: { type: "string", maxLength: 36 }, ...columns, last_update: mark, rejected: mark };
const schema = { version: 0, primaryKey: "id", type: "object", properties, required: ["id"] };
const started = await server({ schemaText: samplesSchema });

test("RxDB: every bad value among a thousand good rows is rejected alone and stays", { skip }, async () => {
  const { token } = await device(started, "values@example.com", "phone");
  const database = await createRxDatabase({ name: randomUUID(), storage: getRxStorageMemory(), multiInstance: false });
  after(() => database.close());
  const { samples } = await database.addCollections({ samples: { schema } });
  replicateRollcall({ collection: samples, url: started.url, token: () => token, retryTime: 100 });
  const { rows, bad } = badAmongGood((values) => ({ id: randomUUID(), ...values }));
  assert.ok(bad.length > 80, `${bad.length} cases`);
  await samples.bulkInsert(rows);
  const all = async () => new Map((await samples.find().exec()).map((doc) => [doc.id, doc.toMutableJSON()]));
  const marked = async () => [...(await all()).values()].filter(({ rejected }) => rejected);
  await until(async () => (await marked()).length === bad.length, "each bad row is marked");
  assert.equal(await countSamples(started, token), 1000);
  const held = await all();
  for (const { row, name, column, code, value } of bad) {
    assert.equal(held.get(row.id).rejected, code, `${column}: ${name}`);
    assert.deepEqual(held.get(row.id)[column], value, `${column}: ${name} stays as the user made it`);
  }
  for (const one of bad) await (await samples.findOne(one.row.id).exec()).patch(corrected(one));
  await until(async () => (await countSamples(started, token)) === rows.length, "corrected, they go up");
  await until(async () => (await marked()).length === 0, "the marks are gone");
});

// Values that a column cannot hold, of every type (fixtures/values), through the real WatermelonDB: each concerns its row alone.
import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { test } from "node:test";
import watermelon from "@nozbe/watermelondb";
import LokiJSAdapter from "@nozbe/watermelondb/adapters/lokijs/index.js";
import { setGenerator } from "@nozbe/watermelondb/utils/common/randomId/index.js";
import logger from "@nozbe/watermelondb/utils/common/logger/index.js";
import { syncWithRollcall } from "./rollcall.js";
import { badAmongGood, device, corrected, sampleColumns, samplesSchema, countSamples, server, skip } from "../support.mjs";

const { appSchema, Database, Model, tableSchema } = watermelon;
setGenerator(randomUUID);
(logger.default ?? logger).silence();
class Sample extends Model {
  static table = "samples";
}
const started = await server({ schemaText: samplesSchema });

// A column of WatermelonDB holds one of these types, or null; it has none for lists and objects.
for (const [type, least] of [["string", 40], ["number", 10], ["boolean", 7]]) {
  test(`WatermelonDB: every bad ${type} among a thousand good rows is rejected alone and stays`, { skip }, async () => {
    const { token } = await device(started, `${type}@example.com`, "phone");
    const columns = sampleColumns.map((name) => ({ name, type: name === "needed" || name === "text" ? "string" : type, isOptional: true }));
    const Loki = LokiJSAdapter.default ?? LokiJSAdapter;
    const schema = appSchema({ version: 1, tables: [tableSchema({ name: "samples", columns })] });
    const adapter = new Loki({ schema, useWebWorker: false, useIncrementalIndexedDB: false, extraLokiOptions: { autosave: false }, dbName: randomUUID() });
    const database = new Database({ adapter, modelClasses: [Sample] });
    const samples = database.get("samples");
    const sync = () => syncWithRollcall({ database, url: started.url, token: () => token, tables: { samples: "id" }, onRejected: () => {} });
    const set = (row) => (record) => Object.entries(row).forEach(([name, value]) => record._setRaw(name, value));

    const holds = (value) => typeof value === type || value === null;
    const { rows, bad } = badAmongGood((values) => ({ id: randomUUID(), ...values }), holds);
    const kept = bad.filter(({ column }) => type === "string" || (column !== "needed" && column !== "text"));
    assert.ok(kept.length >= least, `${kept.length} cases`);
    const left = rows.filter((row) => !bad.some((one) => one.row === row && !kept.includes(one)));
    await database.write(() => database.batch(left.map(({ id, ...row }) => samples.prepareCreate((record) => set(row)((record._raw.id = id, record))))));

    const codes = new Map((await sync()).map(({ id, code }) => [id, code]));
    assert.equal(await countSamples(started, token), 1000);
    assert.equal(codes.size, kept.length);
    for (const { row, name, column, code, value } of kept) {
      assert.equal(codes.get(row.id), code, `${column}: ${name}`);
      assert.deepEqual((await samples.find(row.id))._raw[column], value, `${column}: ${name} stays as the user made it`);
    }
    await database.write(async () => {
      for (const one of kept) await (await samples.find(one.row.id)).update(set(corrected(one)));
    });
    assert.deepEqual(await sync(), []);
    assert.equal(await countSamples(started, token), left.length);
  });
}

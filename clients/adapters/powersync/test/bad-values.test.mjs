// Values that a column cannot hold, of every type (fixtures/values), through PowerSync's own SDK: each concerns its row alone.
import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { Schema, Table, column } from "@powersync/common";
import { PowerSyncDatabase } from "@powersync/node";
import { badAmongGood, device, sampleColumns, samplesSchema, countSamples, server, skip, until } from "../../../../examples/adapters/support.mjs";
import { rollcallConnector } from "../dist/connector.js";

const started = await server({ schemaText: samplesSchema, settings: ["--dialect", "powersync", "--powersync-keepalive-s", "2"] });

// A column of the SDK holds one of these types. It leaves a null out of a new row, so the column's default stands.
for (const [type, sql, least] of [["string", "text", 40], ["number", "real", 10]]) {
  test(`PowerSync: every bad ${type} among a thousand good rows is refused alone, and reaches the app`, { skip }, async () => {
    const { token } = await device(started, `${type}@example.com`, "phone");
    const isText = (name) => type === "string" || name === "needed" || name === "text";
    const samples = new Table(Object.fromEntries(sampleColumns.map((name) => [name, isText(name) ? column.text : column[sql]])));
    const folder = mkdtempSync(join(tmpdir(), "powersync-"));
    const database = new PowerSyncDatabase({
      schema: new Schema({ samples }),
      logger: { log: () => {} },
      database: { dbFilename: `${randomUUID()}.db`, dbLocation: folder, implementation: { type: "node:sqlite" }, readWorkerCount: 1 },
    });
    const refusals = new Map();
    const onRefused = (refusal) => void refusals.set(refusal.id, refusal);
    await database.connect(rollcallConnector({ url: started.url, token: async () => token, tables: { samples: { json: ["json"] } }, onRefused }), {
      ...{ crudUploadThrottleMs: 20, retryDelayMs: 100 },
    });
    after(async () => {
      await database.close();
      rmSync(folder, { recursive: true, force: true });
    });
    await database.waitForFirstSync();

    const holds = (value) => typeof value === type;
    const { rows, bad } = badAmongGood((values) => ({ id: randomUUID(), ...values }), holds);
    const kept = bad.filter(({ column: name }) => type === "string" || !isText(name));
    assert.ok(kept.length >= least, `${kept.length} cases`);
    const left = rows.filter((row) => !bad.some((one) => one.row === row && !kept.includes(one)));
    await database.writeTransaction(async (tx) => {
      for (const row of left) {
        const names = Object.keys(row);
        await tx.execute(`INSERT INTO samples (${names.join(", ")}) VALUES (${names.map(() => "?").join(", ")})`, Object.values(row));
      }
    });
    await until(async () => (await database.get("SELECT count(*) AS n FROM ps_crud")).n === 0, "all has gone up");
    await until(async () => (await countSamples(started, token)) === 1000, "a thousand on the server");
    for (const { row, name, column: at, code, value } of kept) {
      assert.equal(refusals.get(row.id)?.code, code, `${at}: ${name}`);
      assert.deepEqual(refusals.get(row.id).sent[at], value, `${at}: ${name} reaches the app as it was made`);
    }
    assert.equal(refusals.size, kept.length);
    await until(async () => (await database.get("SELECT count(*) AS n FROM samples")).n === 1000, "the device has what the server has");
  });
}

// Several devices with random edits, skewed clocks, lost answers, doubled requests and late copies of them, tokens of
// somebody else in between, and phones that are set up from another's backup: once it is quiet, all hold the same as the server. Some histories have restores from a
// backup: no row goes that nobody deleted. A failure prints its seed; ROLLCALL_SEED runs that one alone, ROLLCALL_SEEDS so many,
// ROLLCALL_STEPS makes them longer.
import assert from "node:assert/strict";
import { test } from "node:test";
import { memoryStore } from "../dist/index.js";
import { randomFrom, sees, server, skip, startServer, user } from "./support.mjs";

const settings = ["--lease-ms", "1000", "--changes-rows-max", "5", "--rows-max", "12", "--get-keys-max", "6", "--fetch-rows-max", "9"];
const started = await server({ settings });
const seeds = process.env.ROLLCALL_SEED ? [Number(process.env.ROLLCALL_SEED)] : Array.from({ length: Number(process.env.ROLLCALL_SEEDS ?? 8) }, (_, place) => place + 1);

/** A store that can be copied with all that is in it. */
function copyable() {
  const store = memoryStore();
  const metas = new Set();
  const tables = new Set();
  const transact = (mode, work) =>
    store.transact(mode, (txn) =>
      work({
        ...txn,
        put: (row) => {
          tables.add(row.table);
          return txn.put(row);
        },
        setMeta: (name, value) => {
          metas.add(name);
          return txn.setMeta(name, value);
        },
      }),
    );
  const copy = async () => {
    const copied = copyable();
    const [rows, meta] = await store.transact("read", async (txn) => [
      (await Promise.all([...tables].map((table) => txn.all(table)))).flat(),
      await Promise.all([...metas].map(async (name) => [name, await txn.meta(name)])),
    ]);
    await copied.transact("write", async (txn) => {
      for (const row of rows) await txn.put(row);
      for (const [name, value] of meta) await txn.setMeta(name, value);
    });
    return copied;
  };
  return { ...store, transact, copy };
}

const steps = Number(process.env.ROLLCALL_STEPS ?? 40);

for (const [seed, restores] of seeds.flatMap((seed) => [[seed, false], [seed, true]])) {
  test(`devices converge, seed ${seed}${restores ? ", with restores" : ""}`, { skip }, async () => {
    // What is restored is restored for everybody: such a history has a server of its own.
    let place = restores ? await startServer({ settings }) : started;
    const random = randomFrom(seed + (restores ? 1_000_000 : 0));
    const below = (most) => Math.floor(random() * most);
    const pick = (list) => list[below(list.length)];
    const anna = user(place);
    const ben = await user(place).device("Ben's");
    await ben.sync();
    const { Authorization: bens } = ben.net.log.at(-1).headers;
    const refuses = (await fetch(`${place.url}/me`)).status !== 404;
    /** Rows that were made and that nobody deleted or gave up. */
    const made = new Map();
    let backedUp = false;
    const devices = [];
    for (let place = 0; place < 3; place++) {
      const skew = pick([0, 0, -3_600_000, 90_000]);
      const store = copyable();
      const options = {
        store,
        way: pick(["cursor", "manifest"]),
        now: () => Date.now() + skew,
        patience: { attemptsMax: 3, pause: async () => {}, random },
        // Some devices settle what they lost.
        ...(random() < 0.5 ? { onConflict: ({ mine, theirs }) => (mine && theirs && random() < 0.5 ? mine : undefined) } : {}),
      };
      devices.push({ options, client: await anna.device(`device ${place}`, options) });
    }
    // Bound before the trouble begins: to a user whom every backup knows, and by that user's own token.
    for (const { client } of devices) await client.sync();
    const edit = async (client) => {
      const table = client.table(pick(["lists", "items", "items", "items", "tallies", "papers"]));
      const rows = await table.list();
      const lists = await client.table("lists").list();
      const list = lists.length && random() < 0.5 ? pick(lists).id : null;
      const columns = {
        lists: { name: `list ${below(100)}` },
        items: pick([{ title: `item ${below(100)}` }, { done: random() < 0.5 }, { count: below(9), list }, { tags: [below(3)] }, { title: "both", list }]),
        tallies: pick([{ hits: below(20) }, { label: `label ${below(9)}` }]),
        papers: { text: `text ${below(100)}` },
      }[table.name];
      if (rows.length === 0 || random() < 0.35) {
        const { [table.keyColumn]: key } = await table.put(table.name === "lists" ? { name: "new" } : columns);
        return void made.set(`${table.name} ${key}`, { table: table.name, key });
      }
      const key = pick(rows)[table.keyColumn];
      if (random() >= 0.2) return void (await table.patch(key, columns));
      made.delete(`${table.name} ${key}`);
      return table.remove(key);
    };
    const trouble = () => {
      const roll = random();
      return roll < 0.1 ? "lost" : roll < 0.22 ? "answer lost" : roll < 0.3 ? "twice" : roll < 0.34 && refuses ? "another's token" : "arrives";
    };
    for (let step = 0; step < steps; step++) {
      const device = pick(devices);
      if (restores && random() < 0.08) {
        if (backedUp && random() < 0.6) place = await place.restore();
        else place.backUp();
        backedUp = true;
      }
      if (!restores && random() < 0.1) {
        // A copy of an earlier request arrives, late.
        const copies = device.client.net.log.filter(({ path }) => path === "/synchronise");
        if (copies.length) {
          const { headers, body } = pick(copies);
          await (await fetch(`${place.url}/synchronise`, { method: "POST", headers, body: JSON.stringify(body) })).text();
        }
      }
      if (devices.length < 5 && random() < 0.06) {
        // Another phone is set up from a backup of this one: both have its token and what waits in it.
        const options = { ...device.options, store: await device.options.store.copy() };
        devices.push({ options, client: await anna.device("copy", options) });
      }
      if (random() < 0.6) {
        await edit(device.client);
        continue;
      }
      device.client.net.disturb = trouble;
      device.client.net.bens = bens;
      // The user goes on while the sync is under way.
      device.client.net.answered = async () => void (random() < 0.15 && (await edit(device.client)));
      const control = new AbortController();
      if (random() < 0.1) setTimeout(() => control.abort(), below(20));
      try {
        const { repaired } = await device.client.sync({ signal: control.signal, way: random() < 0.2 ? pick(["cursor", "manifest"]) : undefined });
        assert.equal(repaired, false, "a sync leaves both sides equal by itself");
      } catch (error) {
        if (!["offline", "aborted", "sync_in_progress", ...(refuses ? ["other_user"] : [])].includes(error.code)) throw error;
      }
      device.client.net.disturb = () => "arrives";
      device.client.net.answered = () => {};
      if (random() < 0.15) {
        // The app dies and is started again: only the store is left.
        await device.client.close();
        device.client = await anna.device("again", device.options);
      }
    }
    // Quiet.
    let reports = [];
    for (let round = 0; round < 6; round++) {
      reports = [];
      for (const { client } of devices) {
        const report = await client.sync({ confirmDeletes: 1000 });
        reports.push(report);
        // Where a row that is referred to is gone, or one that was to go is referred to, the user gives in.
        for (const { table, key, code } of report.rejected) {
          assert.ok(["reference_missing", "still_referenced"].includes(code), code);
          made.delete(`${table} ${key}`);
          await client.table(table).revert(key);
        }
      }
    }
    const seen = await sees(devices[0].client);
    for (const [place, { client }] of devices.entries()) {
      assert.deepEqual(await sees(client), seen, `device ${place}`);
      const { digestsEqual, repaired, pushed, pulled } = reports[place];
      assert.deepEqual({ digestsEqual, repaired, pushed, pulled }, { digestsEqual: true, repaired: false, pushed: 0, pulled: 0 }, `device ${place}`);
    }
    // No row is gone that nobody deleted, and none is in another user's account.
    for (const { table, key } of made.values()) assert.ok(await devices[0].client.table(table).get(key), `${table} ${key} is gone`);
    await ben.sync();
    assert.deepEqual(Object.values(await sees(ben)).flat(), []);
    if (restores) {
      await place.stop();
      place.remove();
    }
  });
}

// Several devices with random edits, skewed clocks, lost answers and doubled requests: once it is quiet, all hold
// the same as the server. A failure prints its seed; ROLLCALL_SEED runs that one alone, ROLLCALL_SEEDS so many,
// ROLLCALL_STEPS makes them longer.
import assert from "node:assert/strict";
import { test } from "node:test";
import { memoryStore } from "../dist/index.js";
import { randomFrom, sees, server, skip, user } from "./support.mjs";

const started = await server({ settings: ["--lease-ms", "1000", "--changes-rows-max", "5", "--rows-max", "12", "--get-keys-max", "6", "--fetch-rows-max", "9"] });
const seeds = process.env.ROLLCALL_SEED ? [Number(process.env.ROLLCALL_SEED)] : Array.from({ length: Number(process.env.ROLLCALL_SEEDS ?? 8) }, (_, place) => place + 1);

const steps = Number(process.env.ROLLCALL_STEPS ?? 40);

for (const seed of seeds) {
  test(`devices converge, seed ${seed}`, { skip }, async () => {
    const random = randomFrom(seed);
    const below = (most) => Math.floor(random() * most);
    const pick = (list) => list[below(list.length)];
    const anna = user(started);
    const devices = [];
    for (let place = 0; place < 3; place++) {
      const skew = pick([0, 0, -3_600_000, 90_000]);
      const store = memoryStore();
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
      if (rows.length === 0 || random() < 0.35) return table.put(table.name === "lists" ? { name: "new" } : columns);
      const key = pick(rows)[table.keyColumn];
      return random() < 0.2 ? table.remove(key) : table.patch(key, columns);
    };
    const trouble = () => {
      const roll = random();
      return roll < 0.1 ? "lost" : roll < 0.22 ? "answer lost" : roll < 0.3 ? "twice" : "arrives";
    };
    for (let step = 0; step < steps; step++) {
      const device = pick(devices);
      if (random() < 0.6) {
        await edit(device.client);
        continue;
      }
      device.client.net.disturb = trouble;
      // The user goes on while the sync is under way.
      device.client.net.answered = async () => void (random() < 0.15 && (await edit(device.client)));
      const control = new AbortController();
      if (random() < 0.1) setTimeout(() => control.abort(), below(20));
      try {
        const { repaired } = await device.client.sync({ signal: control.signal, way: random() < 0.2 ? pick(["cursor", "manifest"]) : undefined });
        assert.equal(repaired, false, "a sync leaves both sides equal by itself");
      } catch (error) {
        if (!["offline", "aborted", "sync_in_progress"].includes(error.code)) throw error;
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
  });
}

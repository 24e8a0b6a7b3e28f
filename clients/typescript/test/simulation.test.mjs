// Several devices with random edits, skewed clocks, lost responses, duplicate and late requests, tokens of another user,
// and phones that are set up from another phone's backup. At the end all devices hold the server's rows. In some runs
// the server is restored from a backup; then no row may be missing that no user deleted. The name of a failed test has
// its seed. Other runs have an owner that two users share, and one of them joins, leaves and changes roles meanwhile.
// ROLLCALL_SEED runs one seed, ROLLCALL_SEEDS sets how many run, ROLLCALL_STEPS how long they are.
import assert from "node:assert/strict";
import { test } from "node:test";
import { memoryStore } from "../dist/index.js";
import { randomFrom, sees, server as sharedServer, skip, startServer, user } from "./support.mjs";

const settings = ["--lease-ms", "1000", "--changes-rows-max", "5", "--rows-max", "12", "--get-keys-max", "6", "--fetch-rows-max", "9"];
const started = await sharedServer({ settings });
const seeds = process.env.ROLLCALL_SEED ? [Number(process.env.ROLLCALL_SEED)] : Array.from({ length: Number(process.env.ROLLCALL_SEEDS ?? 8) }, (_, i) => i + 1);

/** A store that can be copied with all of its data. */
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

/** A source of random numbers with the seed, and the choices that the run makes with it. */
function chance(seed) {
  const random = randomFrom(seed);
  const below = (most) => Math.floor(random() * most);
  return { random, below, pick: (list) => list[below(list.length)] };
}

/** Devices of the user, with different clocks, ways of syncing and conflict handlers. */
async function startDevices(anna, { random, pick }, count = 3) {
  const devices = [];
  for (let i = 0; i < count; i++) {
    const skew = pick([0, 0, -3_600_000, 90_000]);
    const options = {
      store: copyable(),
      way: pick(["cursor", "manifest"]),
      now: () => Date.now() + skew,
      patience: { attemptsMax: 3, pause: async () => {}, random },
      // Some devices resolve their conflicts.
      ...(random() < 0.5 ? { onConflict: ({ mine, theirs }) => (mine && theirs && random() < 0.5 ? mine : undefined) } : {}),
    };
    devices.push({ options, client: await anna.device(`device ${i}`, options) });
  }
  // Every store is bound before the faults begin, by the user's own token, so that every backup contains the user.
  for (const { client } of devices) await client.sync();
  return devices;
}

/**
 * Adds, changes or deletes a random row, and returns the key of an added one. `made` has the rows that were created and that
 * no user deleted or reverted.
 */
async function editRandomRow(client, made, { random, below, pick }) {
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
    made.set(`${table.name} ${key}`, { table: table.name, key });
    return key;
  }
  const key = pick(rows)[table.keyColumn];
  if (random() >= 0.2) {
    await table.patch(key, columns);
    return null;
  }
  made.delete(`${table.name} ${key}`);
  await table.remove(key);
  return null;
}

/** Sends a copy of an earlier sync of the device, as a network may deliver it late. */
async function repeatEarlierSync(server, { net }, pick) {
  const copies = net.log.filter(({ path }) => path === "/synchronise");
  if (copies.length === 0) return;
  const { headers, body } = pick(copies);
  await (await fetch(`${server.url}/synchronise`, { method: "POST", headers, body: JSON.stringify(body) })).text();
}

/** Syncs over a bad network, while the user edits rows. `bens` is another user's token; a server may refuse it. */
async function syncWithFaults({ client }, { edit, bens, refuses }, { random, below, pick }) {
  client.net.disturb = () => {
    const roll = random();
    return roll < 0.1 ? "lost" : roll < 0.22 ? "response lost" : roll < 0.3 ? "twice" : roll < 0.34 && refuses ? "another's token" : "arrives";
  };
  client.net.bens = bens;
  client.net.answered = async () => void (random() < 0.15 && (await edit()));
  const control = new AbortController();
  if (random() < 0.1) setTimeout(() => control.abort(), below(20));
  try {
    const { repaired } = await client.sync({ signal: control.signal, way: random() < 0.2 ? pick(["cursor", "manifest"]) : undefined });
    assert.equal(repaired, false, "a sync leaves both sides equal without a repair");
  } catch (error) {
    if (!["offline", "aborted", "sync_in_progress", ...(refuses ? ["other_user"] : [])].includes(error.code)) throw error;
  }
  client.net.disturb = () => "arrives";
  client.net.answered = () => {};
}

/** Syncs every device several times without faults, and returns the last reports. */
async function syncUntilEqual(devices, made, refusals = ["reference_missing", "still_referenced"]) {
  let reports = [];
  for (let round = 0; round < 6; round++) {
    reports = [];
    for (const { client } of devices) {
      const report = await client.sync({ confirmDeletes: 1000 });
      reports.push(report);
      // If the server rejects a row, such as one without its parent, the user reverts the edit.
      for (const { table, key, code } of report.rejected) {
        assert.ok(refusals.includes(code), code);
        made.delete(`${table} ${key}`);
        await client.table(table).revert(key);
      }
    }
  }
  return reports;
}

/** Checks that all devices have the same rows, and that no row is missing that no user deleted. */
async function checkEqual(devices, reports, made) {
  const seen = await sees(devices[0].client);
  for (const [i, { client }] of devices.entries()) {
    assert.deepEqual(await sees(client), seen, `device ${i}`);
    const { digestsEqual, repaired, pushed, pulled } = reports[i];
    assert.deepEqual({ digestsEqual, repaired, pushed, pulled }, { digestsEqual: true, repaired: false, pushed: 0, pulled: 0 }, `device ${i}`);
  }
  for (const { table, key } of made.values()) assert.ok(await devices[0].client.table(table).get(key), `${table} ${key} is missing`);
}

for (const [seed, restores] of seeds.flatMap((seed) => [[seed, false], [seed, true]])) {
  test(`devices converge, seed ${seed}${restores ? ", with restores" : ""}`, { skip }, async () => {
    // A restore concerns all users of a server, so a run with restores has a server of its own.
    let server = restores ? await startServer({ settings }) : started;
    const choices = chance(seed + (restores ? 1_000_000 : 0));
    const { random, pick } = choices;
    const anna = user(server);
    const ben = await user(server).device("Ben's");
    await ben.sync();
    const { Authorization: bens } = ben.net.log.at(-1).headers;
    const refuses = (await fetch(`${server.url}/me`)).status !== 404;
    const made = new Map();
    let backedUp = false;
    const devices = await startDevices(anna, choices);
    for (let step = 0; step < steps; step++) {
      const device = pick(devices);
      const edit = () => editRandomRow(device.client, made, choices);
      if (restores && random() < 0.08) {
        if (backedUp && random() < 0.6) server = await server.restore();
        else server.backUp();
        backedUp = true;
      }
      if (!restores && random() < 0.1) await repeatEarlierSync(server, device.client, pick);
      if (devices.length < 5 && random() < 0.06) {
        // Another phone is set up from a backup of this one: both have its token and its unsent edits.
        const options = { ...device.options, store: await device.options.store.copy() };
        devices.push({ options, client: await anna.device("copy", options) });
      }
      if (random() < 0.6) {
        await edit();
        continue;
      }
      await syncWithFaults(device, { edit, bens, refuses }, choices);
      if (random() < 0.15) {
        // The app dies and is restarted: only the store is left.
        await device.client.close();
        device.client = await anna.device("again", device.options);
      }
    }
    await checkEqual(devices, await syncUntilEqual(devices, made), made);
    // No row is in another user's account.
    await ben.sync();
    assert.deepEqual(Object.values(await sees(ben)).flat(), []);
    if (restores) {
      await server.stop();
      server.remove();
    }
  });
}

/** Ben's membership of an owner that Anna manages. No other client of the two makes requests about it. */
async function startMembership(anna, ben) {
  const [manager, guest] = [await anna.device("Anna's desk"), await ben.device("Ben's desk")];
  const { owner } = await manager.owners.make("Our list");
  const ours = manager.owner(owner);
  /** Keys of rows that Anna added since Ben left, and those that Ben added since he may not write. */
  const hidden = { ofAnna: new Set(), ofBen: new Set() };
  const membership = { owner, hidden, role: null, change };
  async function change(role) {
    const id = (await ours.members()).find(({ name }) => name === "Ben")?.user;
    if (role === null && id) await ours.removeMember(id);
    else if (role && id) await ours.setRole(id, role);
    else if (role) await guest.owners.accept((await ours.invite({ role })).code, "Ben");
    membership.role = role;
    if (role !== null) hidden.ofAnna.clear();
    if (role === "write") hidden.ofBen.clear();
  }
  await change("write");
  return membership;
}

/** Checks that no user has a row that was added while the membership did not allow it. */
async function checkHidden(device, { owner, hidden }) {
  const keys = device.isBens ? hidden.ofAnna : hidden.ofBen;
  const client = device.client.owner(owner);
  for (const name of Object.keys(client.tables)) {
    for (const { key } of await client.table(name).entries()) assert.ok(!keys.has(key), `${name} ${key} is shown`);
  }
}

for (const seed of seeds) {
  test(`devices of two users converge while one joins and leaves, seed ${seed}`, { skip }, async () => {
    const choices = chance(seed + 2_000_000);
    const { random, pick } = choices;
    const [anna, ben] = [user(started), user(started)];
    const membership = await startMembership(anna, ben);
    const { owner, hidden } = membership;
    const [annas, bens] = [await startDevices(anna, choices, 2), await startDevices(ben, choices, 2)];
    for (const device of bens) device.isBens = true;
    const [madeByAnna, madeByBen, madeByBoth] = [new Map(), new Map(), new Map()];
    const edit = async ({ client, isBens }) => {
      if (random() < 0.3) return void (await editRandomRow(client, isBens ? madeByBen : madeByAnna, choices));
      const key = await editRandomRow(client.owner(owner), madeByBoth, choices);
      if (key && !isBens && membership.role === null) hidden.ofAnna.add(key);
      if (key && isBens && membership.role !== "write") hidden.ofBen.add(key);
    };
    for (let step = 0; step < 2 * steps; step++) {
      const device = pick([...annas, ...bens]);
      if (random() < 0.1) await membership.change(pick([null, "read", "write"]));
      if (random() < 0.5) {
        await edit(device);
        continue;
      }
      const meanwhile = () => (random() < 0.1 ? membership.change(pick([null, "read", "write"])) : edit(device));
      await syncWithFaults(device, { edit: meanwhile, refuses: false }, choices);
      await checkHidden(device, membership);
      if (random() < 0.15) {
        await device.client.close();
        device.client = await (device.isBens ? ben : anna).device("again", device.options);
      }
    }
    await membership.change("write");
    for (const [devices, made] of [[annas, madeByAnna], [bens, madeByBen]]) await checkEqual(devices, await syncUntilEqual(devices, made), made);
    const shared = [...annas, ...bens].map(({ client }) => ({ client: client.owner(owner) }));
    const reports = await syncUntilEqual(shared, madeByBoth, ["reference_missing", "still_referenced", "not_allowed"]);
    // What Ben had not sent when he left is kept for him.
    for (const { client } of shared) {
      for (const { table, key } of (await client.left())?.rows ?? []) madeByBoth.delete(`${table} ${key}`);
    }
    await checkEqual(shared, reports, madeByBoth);
  });
}

// The server is restored from a backup, by the program's own commands. The devices send back what it lost; rows that it
// knows as deleted stay deleted; and an interrupted sync loses nothing.
import assert from "node:assert/strict";
import { test } from "node:test";
import { memoryStore } from "../dist/index.js";
import { fakeDevice, fakeServer, sent } from "./fake.mjs";
import { sees, skip, startServer, user } from "./support.mjs";

const titles = async (client) => (await client.table("items").list()).map(({ title }) => title).sort();
const quick = { attemptsMax: 1, pause: async () => {}, random: () => 0 };

async function agree(...devices) {
  for (let round = 0; round < 2; round++) for (const device of devices) await device.sync();
  const seen = await sees(devices[0]);
  for (const device of devices) {
    assert.deepEqual(await sees(device), seen);
    const { digestsEqual, pushed, pulled, dropped } = await device.sync();
    assert.deepEqual([digestsEqual, pushed, pulled, dropped], [true, 0, 0, 0]);
    assert.equal((await device.pending()).rows, 0);
  }
}

async function withServer(work) {
  let server = await startServer();
  const restore = async () => (server = await server.restore());
  try {
    await work(server, restore);
  } finally {
    await server.stop();
    server.remove();
  }
}

for (const way of ["cursor", "manifest"]) {
  test(`the devices send back what a restored server lost (${way})`, { skip }, () =>
    withServer(async (server, restore) => {
      const anna = user(server, { way });
      const [phone, tablet, away] = [await anna.device("phone"), await anna.device("tablet"), await anna.device("away")];
      const items = phone.table("items");
      const [old, doomed, edited] = [await items.put({ title: "old" }), await items.put({ title: "doomed" }), await items.put({ title: "before" })];
      await agree(phone, tablet, away);
      await items.remove(doomed.iid);
      await agree(phone, tablet); // the third device does not sync
      server.backUp();
      const list = await phone.table("lists").put({ name: "Food" });
      for (let n = 0; n < 3; n++) await items.put({ title: `later ${n}`, list: list.id });
      await items.patch(edited.iid, { title: "after" });
      await items.remove(old.iid); // the backup does not contain this deletion, so the row may come back
      await agree(phone, tablet);
      await tablet.table("items").put({ title: "unsent" });
      await restore();
      await agree(phone, tablet, away);
      const expected = ["after", "later 0", "later 1", "later 2", "unsent"];
      assert.deepEqual((await titles(phone)).filter((title) => title !== "old"), expected);
      assert.ok(!(await titles(phone)).includes("doomed"), "the backup contains that deletion");
      for (const { list: of } of (await phone.table("items").list()).filter(({ title }) => title.startsWith("later"))) assert.equal(of, list.id);
    }));

  test(`a second restore and interrupted syncs lose nothing (${way})`, { skip }, () =>
    withServer(async (server, restore) => {
      const anna = user(server, { way, patience: quick });
      const store = memoryStore();
      let phone = await anna.device("phone", { store });
      await phone.table("items").put({ title: "old" });
      await phone.sync();
      server.backUp();
      for (let n = 0; n < 3; n++) await phone.table("items").put({ title: `later ${n}` });
      await phone.sync();
      await restore();
      const expected = ["later 0", "later 1", "later 2", "old"];
      for (const lose of ["/synchronise", "/fetch", "/changes"]) {
        for (const fate of ["lost", "response lost"]) {
          phone.net.disturb = ({ path, headers, body }) => (path === lose && (lose !== "/synchronise" || body.add) ? fate : "arrives");
          await phone.sync().catch(({ code }) => assert.equal(code, "offline"));
          assert.deepEqual(await titles(phone), expected, `${lose} ${fate}`);
          await phone.close();
          phone = await anna.device("phone", { store }); // the app is restarted
          if (lose === "/synchronise" && fate === "response lost") await restore();
        }
      }
      await agree(phone, await anna.device("tablet"));
      assert.deepEqual(await titles(phone), expected);
    }));
}

test("a server that was started anew in the same epoch gets all rows back", async () => {
  const fake = fakeServer();
  const phone = await fakeDevice(fake);
  for (const text of ["a", "b", "c"]) await phone.table("papers").put({ text });
  await phone.sync();
  await phone.sync();
  const owner = fake.owner(fake.users.anna.owner);
  owner.rows.clear();
  owner.version = 1;
  await phone.sync();
  await phone.sync();
  assert.equal(fake.rows("anna").length, 3);
  assert.deepEqual((await phone.table("papers").list()).map(({ text }) => text), ["a", "b", "c"]);
  assert.ok(sent(fake).at(-1).body.put_back);
});

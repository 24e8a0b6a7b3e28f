// All clients of a store log in one at a time. A second log-in would create a device that is never used, or revoke the
// token of the first.
import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { memoryStore } from "../dist/index.js";
import { fakeDevice, fakeServer, problem, sent } from "./fake.mjs";

const login = { email: "anna@x", password: "p", device: "phone" };

/** A server that issues a new token for each log-in, after a while, and accepts only the latest. */
function issuing() {
  const anna = { user: randomUUID(), owner: randomUUID() };
  const issued = [];
  const fake = fakeServer({
    before: async ({ path, token }) => {
      if (path === "/login") {
        await sleep(20);
        issued.push(`token ${issued.length + 1}`);
        fake.users[issued.at(-1)] = anna;
        return new Response(JSON.stringify({ token: issued.at(-1), device_id: randomUUID() }));
      }
      if (token !== null && token !== issued.at(-1)) return problem(401, "unauthorized");
    },
  });
  return { fake, issued };
}

test("a client that syncs, listens and lists conflicts at the same time logs in once", async () => {
  const { fake, issued } = issuing();
  const phone = await fakeDevice(fake, { token: undefined, login });
  const live = phone.live();
  await Promise.all([phone.sync(), phone.conflicts.history(), phone.sync({ way: "cursor" })]);
  live.stop();
  assert.equal(issued.length, 1);
});

for (const shared of ["nobody", "processes"]) {
  test(`two clients over one store log in once (shared by ${shared})`, async () => {
    const { fake, issued } = issuing();
    const store = Object.assign(memoryStore(), { shared });
    // Two processes share only the data.
    const other = shared === "processes" ? { ...store } : store;
    const [one, two] = [await fakeDevice(fake, { store, token: undefined, login }), await fakeDevice(fake, { store: other, token: undefined, login })];
    await Promise.all([one.conflicts.history(), two.conflicts.history(), one.conflicts.history()]);
    assert.equal(issued.length, 1);
  });
}

test("concurrent requests whose token was refused log in once", async () => {
  const { fake, issued } = issuing();
  const phone = await fakeDevice(fake, { token: undefined, login });
  await phone.sync();
  issued.push("another server's"); // the token is no longer valid
  fake.log.length = 0;
  await Promise.all([phone.conflicts.history(), phone.conflicts.history(), phone.conflicts.history()]);
  assert.equal(sent(fake, "/login").length, 1);
});

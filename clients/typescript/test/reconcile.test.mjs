// The server's rules, by the cases in fixtures/reconcile, from the other side: a device that obeys the verdict knows
// what the server holds then, which is what the digests compare, and shows it unless there is something left to send.
import assert from "node:assert/strict";
import { readdirSync } from "node:fs";
import { test } from "node:test";
import { obey } from "../dist/decide.js";
import { readFixture, root } from "./support.mjs";

const names = readdirSync(`${root}fixtures/reconcile`).filter((name) => name.endsWith(".json"));
assert.ok(names.length > 100, "no cases found: a moved folder must not pass");
const verdicts = new Set();

for (const name of names) {
  const { title, sent, stored, expect } = readFixture(`reconcile/${name}`);
  test(`fixtures/reconcile/${name}: ${title}`, () => {
    const operation = sent.delete ? "delete" : sent.add ? "add" : "update";
    const held = expect.written ?? stored;
    const alive = held && !held.deleted ? held.last_update : null;
    // With a rejection the live row goes along whatever the rules say of it.
    const row = expect.tells_row === true || (expect.verdict === "rejected" && alive !== null);
    const told = { verdict: expect.verdict, at: held?.last_update ?? null, row };
    verdicts.add(told.verdict);
    const state = { add: "added", update: "edited", delete: "deleted" }[operation];
    const local = { state, at: operation === "add" ? null : alive, base: operation === "add" ? null : (sent._base ?? null), editedAt: sent.last_update ?? null };
    for (const whole of operation === "update" ? [true, false] : [true]) {
      const outcome = obey(local, { operation, whole, complete: true, editedSince: false }, told);
      assert.equal(outcome.local?.at ?? null, alive, "what the server holds");
      const state = outcome.local?.state ?? "dropped";
      if (state === "clean") assert.equal(outcome.contents, told.row ? "theirs" : "mine");
      else if (state === "dropped") assert.equal(alive, null);
      else assert.ok(["gone", "absent", "rejected"].includes(told.verdict), `${state} after ${told.verdict}`);
      if (told.verdict === "gone") assert.equal(state, whole ? "dropped" : "edited");
    }
  });
}

test("every verdict is among them", () => {
  assert.deepEqual([...verdicts].sort(), ["absent", "added", "deleted", "gone", "kept", "merged", "rejected", "same", "updated"]);
});

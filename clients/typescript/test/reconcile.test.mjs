// The cases of the server's rules in fixtures/reconcile, from the device's side: after it has applied the verdict, the
// device knows the state that the server holds (which the digests compare), and shows it unless an edit is left to send.
import assert from "node:assert/strict";
import { readdirSync } from "node:fs";
import { test } from "node:test";
import { applyVerdict } from "../dist/decide.js";
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
    // A rejection contains the live row, whatever the rules say.
    const row = expect.tells_row === true || (expect.verdict === "rejected" && alive !== null);
    const result = { verdict: expect.verdict, at: held?.last_update ?? null, row };
    verdicts.add(result.verdict);
    const state = { add: "added", update: "edited", delete: "deleted" }[operation];
    const local = { state, at: operation === "add" ? null : alive, base: operation === "add" ? null : (sent._base ?? null), editedAt: sent.last_update ?? null };
    for (const whole of operation === "update" ? [true, false] : [true]) {
      const outcome = applyVerdict(local, { operation, whole, complete: true, editedSince: false }, result);
      assert.equal(outcome.local?.at ?? null, alive, "what the server holds");
      const state = outcome.local?.state ?? "dropped";
      if (state === "clean") assert.equal(outcome.contents, result.row ? "theirs" : "mine");
      else if (state === "dropped") assert.equal(alive, null);
      else assert.ok(["gone", "absent", "rejected"].includes(result.verdict), `${state} after ${result.verdict}`);
      if (result.verdict === "gone") assert.equal(state, whole ? "dropped" : "edited");
    }
  });
}

test("the cases have every verdict", () => {
  assert.deepEqual([...verdicts].sort(), ["absent", "added", "deleted", "gone", "kept", "merged", "rejected", "same", "updated"]);
});

// The pure rules pass the cases in fixtures/device, as the reference device does.
import assert from "node:assert/strict";
import { readdirSync } from "node:fs";
import { test } from "node:test";
import { itemOf } from "../dist/batch.js";
import { absent, apply, applyVerdict, compare, cursorAfter, isPutBack, lockPauseMs, past, pauseMs, retryWhen } from "../dist/decide.js";
import { declare, newRow } from "../dist/held.js";
import { readFixture, root } from "./support.mjs";

const local = (row) => row && { state: row.state, at: row.last_update ?? null, base: row.base ?? null, editedAt: row.edited_at ?? null };

const rules = {
  compare: ({ server, device, pages, epoch = "same", plan, note }) => {
    const mine = new Map(Object.entries(device).map(([key, row]) => [key, local(row)]));
    const got = compare(new Map(Object.entries(server)), mine, epoch, pages === "all");
    assert.deepEqual(Object.fromEntries(got.note), Object.fromEntries(Object.entries(note).map(([key, row]) => [key, local(row)])));
    for (const list of ["add", "update", "delete", "put_back", "get", "drop"]) assert.deepEqual(got[list], plan[list] ?? [], list);
  },
  absent: (given) => outcome(absent(local(given.device), given.epoch ?? "same"), given),
  apply: (given) => outcome(apply(local(given.device), given.entry === "deleted" ? null : given.entry.row, given.epoch ?? "same"), given),
  obey: (given) => {
    const { operation, whole, complete, edited_since } = given.sent;
    const result = { verdict: given.told.verdict, at: given.told.last_update ?? null, row: given.told.row };
    outcome(applyVerdict(local(given.device), { operation, whole, complete, editedSince: edited_since }, result), given);
  },
  past: ({ known, now, then }) => assert.equal(past(known && { epoch: null, ...known }, { epoch: null, ...now }), then),
  send: ({ columns, device, row, changed, then }) => {
    const things = declare({ things: { key: "id", columns: Object.fromEntries(columns.map((column) => [column, "json"])) } }).get("things");
    const edits = Object.fromEntries(changed.map((column) => [column, 1]));
    const mine = { ...newRow("things", then.item.id), ...local(device), row, changed: edits };
    assert.deepEqual(itemOf(things, mine), [then.operation, then.item]);
    assert.equal(isPutBack(mine), then.put_back);
  },
  rejected: ({ error, then }) => assert.equal(retryWhen(error.code, error.retry_after_s !== undefined), then),
  cursor: ({ cursor, heard: event, then }) => assert.equal(cursorAfter(cursor, event), then),
};

function outcome(got, { then, contents }) {
  assert.deepEqual(got, { local: local(then), contents });
}

const cases = readdirSync(`${root}fixtures/device`).filter((name) => name.endsWith(".json"));
assert.ok(cases.length > 0, "no cases found: a moved folder must not pass");
for (const name of cases) {
  const given = readFixture(`device/${name}`);
  test(`fixtures/device/${name}: ${given.title}`, () => rules[given.rule](given));
}

test("pauses grow exponentially, have jitter, and end", () => {
  assert.deepEqual([1, 2, 3, 4, 5, 6].map((attempt) => pauseMs(attempt, 6, null, 0.999999)), [500, 1000, 2000, 4000, 8000, null]);
  assert.equal(pauseMs(3, 6, null, 0), 0);
});

test("a pause is at least as long as Retry-After", () => {
  assert.equal(pauseMs(1, 6, 7, 0), 7000);
  assert.equal(pauseMs(1, 6, 7, 0.4), 7400);
  assert.equal(pauseMs(1, 6, 3600, 0), null);
  assert.equal(lockPauseMs(0, 120_000, 15, 0.5), 15_500);
  assert.equal(lockPauseMs(119_000, 120_000, 2, 0), null);
  // At the bounds.
  assert.equal(pauseMs(1, 6, 60, 0), 60_000);
  assert.equal(pauseMs(1, 6, 61, 0), null);
  assert.equal(pauseMs(1, 6, 7, 0.9999), 7_999);
  assert.equal(lockPauseMs(0, 120_000, null, 0), 1_000);
  assert.equal(lockPauseMs(0, 120_000, 100, 0), 60_000);
  assert.equal(lockPauseMs(110_000, 120_000, 10, 0), 10_000);
});

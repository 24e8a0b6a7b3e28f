// Digests, times and keys, by the vectors that the server's tests use too.
import assert from "node:assert/strict";
import { createHash, randomBytes, randomUUID } from "node:crypto";
import { readdirSync } from "node:fs";
import { test } from "node:test";
import { rowHash, Sum } from "../dist/digest.js";
import { newKey, readKey } from "../dist/key.js";
import { parseTime, formatTime } from "../dist/time.js";
import { nextQuery } from "../dist/calls.js";
import { readFixture, root } from "./support.mjs";

const files = readdirSync(`${root}fixtures/digests`).filter((name) => name.endsWith(".json"));
assert.ok(files.length > 0, "no vectors found: a moved folder must not pass");
for (const name of files) {
  const { seed, tables, title } = readFixture(`digests/${name}`);
  test(`fixtures/digests/${name}: ${title}`, () => {
    for (const { rows, count, root: sum } of Object.values(tables)) {
      const total = new Sum(seed);
      for (const row of rows) {
        assert.equal(rowHash(seed, row.key, row.ms).toString(16).padStart(16, "0"), row.hash);
        assert.equal(parseTime(row.milliseconds), row.ms);
        assert.equal(formatTime(row.ms), row.milliseconds);
        if (row.seconds) {
          assert.equal(parseTime(row.seconds), row.ms);
          assert.equal(formatTime(row.ms, "seconds"), row.seconds);
        }
        total.change(row.key, null, row.ms);
      }
      assert.deepEqual(total.digest(), { count, root: sum });
      for (const row of rows) total.change(row.key, row.ms, null);
      assert.deepEqual(total.digest(), { count: 0, root: "0000000000000000" });
    }
  });
}

test("the hash is equal to that of Node's SHA-256", () => {
  for (let i = 0; i < 500; i++) {
    const [seed, key, at] = [randomBytes(16), randomUUID(), Math.floor((Math.random() - 0.3) * 4e13)];
    const ms = Buffer.alloc(8);
    ms.writeBigInt64BE(BigInt(at));
    const expected = createHash("sha256").update(seed).update(Buffer.from(key.replaceAll("-", ""), "hex")).update(ms).digest();
    assert.equal(rowHash(seed.toString("hex"), key, at), expected.readBigUInt64BE());
  }
});

test("every format of an instant is read as that instant", () => {
  const texts = ["2013-05-01T15:42:50.343Z", "2013-05-01T15:42:50.343000+00:00", "2013-05-01T17:42:50.343+02:00"];
  for (const text of [...texts, "2013-05-01 15:42:50.343", "2013-05-01T15:42:50.3439Z"]) assert.equal(parseTime(text), 1_367_422_970_343, text);
  const seconds = ["2013-05-01 15:42:50", "2013-05-01T15:42:50Z", "2013-05-01t15:42:50z", "2013-05-01T10:12:50-05:30", "2013-05-01T17:42:50+0200"];
  for (const text of seconds) assert.equal(parseTime(text), 1_367_422_970_000, text);
  assert.equal(parseTime("2013-05-01 15:42:50.3"), 1_367_422_970_300);
  for (const text of ["2013-05-01 24:00:00", "2013-05-01 15:60:00", "2013-05-01 15:42:61"]) assert.equal(parseTime(text), null, text);
  for (const text of ["", "2013-05-01", "yesterday", "2013-13-01 00:00:00", "2013-02-30 00:00:00", "15:42:50", null, 7]) assert.equal(parseTime(text), null);
});

test("keys are UUIDs of version 7 and sort in the order of creation", () => {
  const now = Date.now();
  const keys = Array.from({ length: 10_000 }, (_, i) => newKey(now - (i % 3)));
  assert.deepEqual([...keys].sort(), keys);
  assert.equal(new Set(keys).size, keys.length);
  for (const key of keys) assert.match(key, /^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/);
  assert.equal(readKey(keys[0].toUpperCase()), keys[0]);
  assert.equal(readKey("{" + keys[0] + "}"), null);
});

test("the next page is found in a link", () => {
  assert.equal(nextQuery('</fetch?page=MQ&lock=false>; rel="next"'), "page=MQ&lock=false");
  assert.equal(nextQuery('</fetch?page=MQ>; rel="prev"'), null);
  assert.equal(nextQuery('</a?x>; rel="prev", </b?y>; rel="next"'), "y");
  assert.equal(nextQuery(null), null);
});

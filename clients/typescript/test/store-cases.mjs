// The cases that every store must pass, as functions of an empty store. They run in Node and in a browser.
const equal = (got, expected) => {
  const [a, b] = [JSON.stringify(got), JSON.stringify(expected)];
  if (a !== b) throw new Error(`expected ${b}, got ${a}`);
};
const row = (table, key, more = {}) => ({ table, key, state: "clean", at: 1, base: null, editedAt: null, edit: 0, row: { title: "ü" }, changed: {}, ...more });

export const storeCases = {
  "rows are returned unchanged, by key, and only those of their table": async (store) => {
    await store.transact("write", async (txn) => {
      for (const key of ["c", "a", "b"]) await txn.put(row("items", key));
      await txn.put(row("items2", "d"));
      await txn.put(row("item", "e"));
    });
    await store.transact("read", async (txn) => {
      equal((await txn.all("items")).map(({ key }) => key), ["a", "b", "c"]);
      equal((await txn.get("items", "a")).row, { title: "ü" });
      equal(await txn.get("items", "d"), undefined);
      equal(await txn.all("nothing"), []);
    });
  },
  "`waiting` returns the rows that wait, and no others": async (store) => {
    await store.transact("write", async (txn) => {
      await txn.put(row("b", "1", { waits: 1 }));
      await txn.put(row("a", "2", { waits: 1 }));
      await txn.put(row("a", "3"));
      await txn.put(row("a", "4", { waits: 1 }));
    });
    await store.transact("write", async (txn) => {
      await txn.put(row("a", "4"));
      await txn.delete("b", "1");
    });
    await store.transact("read", async (txn) => equal((await txn.waiting()).map(({ key }) => key), ["2"]));
  },
  "a value of `setMeta` is returned until it is deleted": async (store) => {
    await store.transact("write", (txn) => txn.setMeta("a", { b: [1, null, "x"] }));
    equal(await store.transact("read", (txn) => txn.meta("a")), { b: [1, null, "x"] });
    await store.transact("write", (txn) => txn.setMeta("a", undefined));
    equal(await store.transact("read", (txn) => txn.meta("a")), undefined);
  },
  "a failed transaction is rolled back": async (store) => {
    await store.transact("write", (txn) => txn.put(row("a", "1")));
    const failed = store.transact("write", async (txn) => {
      await txn.put(row("a", "2"));
      await txn.put(row("a", "1", { at: 2 }));
      await txn.delete("a", "1");
      await txn.setMeta("m", 1);
      throw new Error("on purpose");
    });
    equal(await failed.catch((error) => error.message), "on purpose");
    await store.transact("read", async (txn) => {
      equal((await txn.all("a")).map(({ key, at }) => [key, at]), [["1", 1]]);
      equal(await txn.meta("m"), undefined);
    });
  },
  "transactions that write run one after the other": async (store) => {
    const count = () =>
      store.transact("write", async (txn) => {
        const number = (await txn.meta("count")) ?? 0;
        await txn.get("a", "1");
        await txn.setMeta("count", number + 1);
      });
    await Promise.all(Array.from({ length: 20 }, count));
    equal(await store.transact("read", (txn) => txn.meta("count")), 20);
  },
  "one transaction may have many concurrent requests": async (store) => {
    const keys = Array.from({ length: 300 }, (_, i) => `k${String(i).padStart(3, "0")}`);
    await store.transact("write", async (txn) => {
      await Promise.all(
        keys.map(async (key) => {
          await txn.get("a", key);
          await txn.put(row("a", key));
        }),
      );
    });
    equal((await store.transact("read", (txn) => txn.all("a"))).map(({ key }) => key), keys);
  },
  "a change of a returned object does not change the store": async (store) => {
    const given = row("a", "1");
    await store.transact("write", (txn) => txn.put(given));
    given.row.title = "changed";
    const read = () => store.transact("read", (txn) => txn.get("a", "1"));
    (await read()).row.title = "changed";
    equal((await read()).row.title, "ü");
  },
  "a wiped store is empty": async (store) => {
    await store.transact("write", async (txn) => {
      await txn.put(row("a", "1", { waits: 1 }));
      await txn.setMeta("m", 1);
    });
    await store.wipe();
    await store.transact("read", async (txn) => equal([await txn.all("a"), await txn.waiting(), (await txn.meta("m")) ?? null], [[], [], null]));
  },
};

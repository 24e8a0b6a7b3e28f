/** Keeps rows in memory: for tests, and for programs that need no copy on disk. */
import type { Store, StoredRow, StoreTxn } from "./types.js";

let stores = 0;

/** A store that is gone when the program ends. */
export function memoryStore(name = `memory-${++stores}`): Store {
  // Rows are kept as text, so that a caller cannot change a row by changing an object that was returned.
  let rows = new Map<string, Map<string, string>>();
  let meta = new Map<string, string>();
  let queue: Promise<unknown> = Promise.resolve();

  const begin = (undo: (() => void)[]): StoreTxn => {
    const set = (map: Map<string, string>, key: string, value: string | undefined) => {
      const was = map.get(key);
      undo.push(() => (was === undefined ? map.delete(key) : map.set(key, was)));
      if (value === undefined) map.delete(key);
      else map.set(key, value);
    };
    const table = (name: string) => rows.get(name) ?? rows.set(name, new Map()).get(name)!;
    const read = (text: string): StoredRow => JSON.parse(text) as StoredRow;
    const by = (a: StoredRow, b: StoredRow) => (a.key < b.key ? -1 : 1);
    return {
      get: async (name, key) => {
        const text = table(name).get(key);
        return text === undefined ? undefined : read(text);
      },
      all: async (name) => [...table(name).values()].map(read).sort(by),
      waiting: async () =>
        [...rows.values()].flatMap((all) => [...all.values()].filter((text) => text.startsWith('{"waits"')).map(read).sort(by)),
      put: async ({ waits, ...row }) =>
        set(table(row.table), row.key, JSON.stringify(waits ? { waits, ...row } : row)), // `waits` comes first, so that `waiting` need not parse
      delete: async (name, key) => set(table(name), key, undefined),
      meta: async (key) => {
        const text = meta.get(key);
        return text === undefined ? undefined : JSON.parse(text);
      },
      setMeta: async (key, value) => set(meta, key, value === undefined ? undefined : JSON.stringify(value)),
    };
  };

  return {
    name,
    shared: "nobody",
    transact: (_mode, work) => {
      const turn = queue.then(async () => {
        const undo: (() => void)[] = [];
        try {
          return await work(begin(undo));
        } catch (error) {
          while (undo.length) undo.pop()!();
          throw error;
        }
      });
      queue = turn.catch(() => {});
      return turn;
    },
    wipe: async () => {
      await queue;
      rows = new Map();
      meta = new Map();
    },
    close: async () => {},
  };
}

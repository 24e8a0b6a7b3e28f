/** Keeps rows in the browser's IndexedDB. All tabs of an origin that open the same name share them. */
import type { Json, Store, StoredRow, StoreTxn } from "./types.js";

const done = <T>(request: IDBRequest<T>): Promise<T> =>
  new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });

/** Opens the database, and creates it if it does not exist. `onClosed` is called if the browser closes it. */
const openDatabase = (name: string, onClosed: () => void): Promise<IDBDatabase> =>
  new Promise((resolve, reject) => {
    const request = indexedDB.open(name, 1);
    request.onupgradeneeded = () => {
      const rows = request.result.createObjectStore("rows", { keyPath: ["table", "key"] });
      rows.createIndex("waits", "waits");
      request.result.createObjectStore("meta");
    };
    request.onerror = () => reject(request.error);
    request.onsuccess = () => {
      const database = request.result;
      database.onclose = onClosed;
      database.onversionchange = () => {
        database.close(); // another tab deletes the database: an open connection would block it
        onClosed();
      };
      resolve(database);
    };
  });

const storeTxn = (txn: IDBTransaction): StoreTxn => {
  const [rows, meta] = [txn.objectStore("rows"), txn.objectStore("meta")];
  return {
    get: (table, key) => done<StoredRow | undefined>(rows.get([table, key])),
    all: (table) => done<StoredRow[]>(rows.getAll(IDBKeyRange.bound([table], [table, []]))),
    waiting: () => done<StoredRow[]>(rows.index("waits").getAll()),
    put: async (row) => void (await done(rows.put(row))),
    delete: (table, key) => done(rows.delete([table, key])),
    meta: (key) => done<Json | undefined>(meta.get(key)),
    setMeta: async (key, value) => void (await (value === undefined ? done(meta.delete(key)) : done(meta.put(value, key)))),
  };
};

/** A store in the IndexedDB database of that name. */
export function indexedDbStore(name: string): Store {
  let opened: Promise<IDBDatabase> | undefined;
  const forget = () => void (opened = undefined);
  const open = () =>
    (opened ??= openDatabase(name, forget).catch((error: unknown) => {
      forget();
      throw error;
    }));

  return {
    name,
    shared: "tabs",
    transact: async (mode, work) => {
      const database = await open();
      const names = ["rows", "meta"];
      // `strict`: an edit that the app shows as saved must be on the disk.
      const txn = mode === "read" ? database.transaction(names) : database.transaction(names, "readwrite", { durability: "strict" });
      const ended = new Promise<void>((resolve, reject) => {
        txn.oncomplete = () => resolve();
        txn.onabort = () => reject(txn.error ?? new Error("the transaction was aborted"));
      });
      ended.catch(() => {});
      try {
        const result = await work(storeTxn(txn));
        if (mode === "write") await ended;
        return result;
      } catch (error) {
        try {
          txn.abort();
        } catch {
          // the transaction has ended already
        }
        throw error;
      }
    },
    wipe: async () => {
      const txn = (await open()).transaction(["rows", "meta"], "readwrite");
      txn.objectStore("rows").clear();
      await done(txn.objectStore("meta").clear());
    },
    close: async () => {
      (await opened)?.close();
      opened = undefined;
    },
  };
}

/** Mutual exclusion between all clients of the same data, and notifications between tabs. */
import { RollcallError } from "./error.js";
import { Held } from "./held.js";
import { newKey } from "./key.js";
import type { Store } from "./types.js";

/** Without Web Locks a lease in the store is used: how long it lasts, and how often to check whether it is free, ms. */
const LEASE_MS = 15_000;
const POLL_MS = 100;

/** The work that only one client of the data does at a time: a sync (`turn`), or a log-in. A sync may log in during its turn. */
export type Turn = "turn" | "login";

const queues: { readonly [turn in Turn]: WeakMap<Store, Promise<unknown>> } = { turn: new WeakMap(), login: new WeakMap() };

/** Waits. Fails with `aborted` as soon as the signal aborts. */
export const pause = (ms: number, signal?: AbortSignal): Promise<void> =>
  new Promise((resolve, reject) => {
    const stop = () => {
      clearTimeout(timer);
      reject(new RollcallError("aborted", "the sync was cancelled"));
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", stop);
      resolve();
    }, ms);
    if (signal?.aborted) stop();
    else signal?.addEventListener("abort", stop, { once: true });
  });

/** The browser's locks, shared by all tabs. React Native has none, nor have pages without TLS. */
export const webLocks = (store: Store): LockManager | undefined =>
  store.shared === "tabs" ? ((globalThis.navigator as Navigator | undefined)?.locks as LockManager | undefined) : undefined;

/** Runs `work` while no other client of the same data does work of this kind. */
export async function inTurn<R>(store: Store, signal: AbortSignal | undefined, work: () => Promise<R>, kind: Turn = "turn"): Promise<R> {
  const locks = webLocks(store);
  if (locks) {
    let began = false;
    const options = signal ? { signal } : {};
    const turn = locks.request(`rollcall ${store.name}${kind === "turn" ? "" : ` ${kind}`}`, options, () => ((began = true), work()));
    return turn.catch((error: unknown) => {
      if (began || !signal?.aborted) throw error;
      throw new RollcallError("aborted", "the sync was cancelled");
    }) as Promise<R>;
  }
  const last = queues[kind].get(store) ?? Promise.resolve();
  const turn = last.then(() => (store.shared === "nobody" ? work() : underLease(store, signal, work, kind)));
  queues[kind].set(
    store,
    turn.catch(() => {}),
  );
  return turn;
}

async function underLease<R>(store: Store, signal: AbortSignal | undefined, work: () => Promise<R>, kind: Turn): Promise<R> {
  const holder = newKey();
  const write = <T>(change: (held: Held) => Promise<T>) => Held.write(store, new Map(), change).then(([result]) => result);
  const take = () =>
    write(async (held) => {
      const known = await held.recall(kind);
      if (known && known.holder !== holder && known.until > Date.now()) return false;
      await held.remember(kind, { holder, until: Date.now() + LEASE_MS });
      return true;
    });
  while (!(await take())) await pause(POLL_MS, signal);
  const renewal = setInterval(() => void take().catch(() => {}), LEASE_MS / 3);
  try {
    return await work();
  } finally {
    clearInterval(renewal);
    await write(async (held) => {
      if ((await held.recall(kind))?.holder === holder) await held.remember(kind, undefined);
    });
  }
}

/** Notifies the other tabs of the tables whose rows changed. */
export interface Channel {
  notify(tables: string[]): void;
  close(): void;
}

/** Opens the channel between tabs. `onTables` is called when another tab has changed rows. */
export function openChannel(store: Store, onTables: (tables: string[]) => void): Channel {
  if (store.shared !== "tabs" || typeof BroadcastChannel === "undefined") return { notify: () => {}, close: () => {} };
  const channel = new BroadcastChannel(`rollcall ${store.name}`);
  channel.onmessage = ({ data }: MessageEvent<string[]>) => onTables(data);
  return { notify: (tables) => channel.postMessage(tables), close: () => channel.close() };
}

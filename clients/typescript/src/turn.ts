/** One sync at a time over all holders of the same data, and word to the others. */
import { RollcallError } from "./error.js";
import { Held } from "./held.js";
import { newKey } from "./key.js";
import type { Store } from "./types.js";

/** A lease in the store, where there are no Web Locks: its life, and how often to look whether it is free, ms. */
const LEASE_MS = 15_000;
const LOOK_MS = 100;

/** What is done by one holder of the data at a time: a sync, or a log-in. A sync may log in while it has its turn. */
export type Turn = "turn" | "login";

const queues: { readonly [turn in Turn]: WeakMap<Store, Promise<unknown>> } = { turn: new WeakMap(), login: new WeakMap() };

/** Waits, unless the signal ends it. */
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

/** The browser's locks, shared by all tabs; not there on React Native, nor on pages without TLS. */
export const webLocks = (store: Store): LockManager | undefined =>
  store.shared === "tabs" ? ((globalThis.navigator as Navigator | undefined)?.locks as LockManager | undefined) : undefined;

/** Does `work` while no other holder of the same data does work of this kind. */
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
  const write = <T>(of: (held: Held) => Promise<T>) => Held.write(store, new Map(), of).then(([result]) => result);
  const take = () =>
    write(async (held) => {
      const known = await held.recall(kind);
      if (known && known.holder !== holder && known.until > Date.now()) return false;
      await held.remember(kind, { holder, until: Date.now() + LEASE_MS });
      return true;
    });
  while (!(await take())) await pause(LOOK_MS, signal);
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

/** What tabs tell each other: whose rows changed. */
export interface Channel {
  tell(tables: string[]): void;
  close(): void;
}

export function openChannel(store: Store, heard: (tables: string[]) => void): Channel {
  if (store.shared !== "tabs" || typeof BroadcastChannel === "undefined") return { tell: () => {}, close: () => {} };
  const channel = new BroadcastChannel(`rollcall ${store.name}`);
  channel.onmessage = ({ data }: MessageEvent<string[]>) => heard(data);
  return { tell: (tables) => channel.postMessage(tables), close: () => channel.close() };
}

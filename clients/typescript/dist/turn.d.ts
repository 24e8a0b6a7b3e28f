import type { Store } from "./types.js";
/** The work that only one client of the data does at a time: a sync (`turn`), or a log-in. A sync may log in during its turn. */
export type Turn = "turn" | "login";
/** Waits. Fails with `aborted` as soon as the signal aborts. */
export declare const pause: (ms: number, signal?: AbortSignal) => Promise<void>;
/** The browser's locks, shared by all tabs. React Native has none, nor have pages without TLS. */
export declare const webLocks: (store: Store) => LockManager | undefined;
/** Runs `work` while no other client of the same data does work of this kind. */
export declare function inTurn<R>(store: Store, signal: AbortSignal | undefined, work: () => Promise<R>, kind?: Turn): Promise<R>;
/** Notifies the other tabs of the tables whose rows changed. */
export interface Channel {
    notify(tables: string[]): void;
    close(): void;
}
/** Opens the channel between tabs. `onTables` is called when another tab has changed rows. */
export declare function openChannel(store: Store, onTables: (tables: string[]) => void): Channel;

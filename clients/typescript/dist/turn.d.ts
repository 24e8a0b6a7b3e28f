import type { Store } from "./types.js";
/** What is done by one holder of the data at a time: a sync, or a log-in. A sync may log in while it has its turn. */
export type Turn = "turn" | "login";
/** Waits, unless the signal ends it. */
export declare const pause: (ms: number, signal?: AbortSignal) => Promise<void>;
/** The browser's locks, shared by all tabs; not there on React Native, nor on pages without TLS. */
export declare const webLocks: (store: Store) => LockManager | undefined;
/** Does `work` while no other holder of the same data does work of this kind. */
export declare function inTurn<R>(store: Store, signal: AbortSignal | undefined, work: () => Promise<R>, kind?: Turn): Promise<R>;
/** What tabs tell each other: whose rows changed. */
export interface Channel {
    tell(tables: string[]): void;
    close(): void;
}
export declare function openChannel(store: Store, heard: (tables: string[]) => void): Channel;

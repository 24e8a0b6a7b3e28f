import type { Store } from "./types.js";
/** Waits, unless the signal ends it. */
export declare const pause: (ms: number, signal?: AbortSignal) => Promise<void>;
/** The browser's locks, shared by all tabs; not there on React Native, nor on pages without TLS. */
export declare const webLocks: (store: Store) => LockManager | undefined;
/** Does `work` while nobody else does any on the same data. */
export declare function inTurn<R>(store: Store, signal: AbortSignal | undefined, work: () => Promise<R>): Promise<R>;
/** What tabs tell each other: whose rows changed. */
export interface Channel {
    tell(tables: string[]): void;
    close(): void;
}
export declare function openChannel(store: Store, heard: (tables: string[]) => void): Channel;

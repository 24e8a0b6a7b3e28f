/** Syncs promptly: after edits, and when the server tells that others wrote (`GET /events`). */
import { type Wire } from "./calls.js";
import type { LiveOptions, Status, Store } from "./types.js";
/** What `live` needs of its client. */
export interface Lively {
    readonly store: Store;
    readonly wire: Wire;
    sync(): Promise<unknown>;
    /** Whether a sync would have anything to do, for a device that heard of this version. */
    behind(version: number | null): Promise<boolean>;
    /** In how many ms a rejected row may be sent once more; null: none. */
    retryAt(): Promise<number | null>;
    state(live: Status["live"]): void;
    lock(lock: Status["lock"]): void;
}
export declare class Live {
    private readonly client;
    private readonly options;
    private readonly control;
    private failed;
    private timer;
    private retry;
    private running;
    /** Why to sync: the version that the server told of; null: whatever it holds. */
    private due;
    private readonly wake;
    constructor(client: Lively, options: LiveOptions);
    /** The user changed something here. */
    edited(): void;
    stop(): void;
    private get stopped();
    /** Syncs in `ms`; what is to be synced by then goes along. */
    private poke;
    private work;
    private backoff;
    /** Listens in one tab for all; the others wait until it closes. */
    private listen;
    private follow;
    /** Follows the events until they end. False if they cannot be had here. */
    private stream;
    private take;
}

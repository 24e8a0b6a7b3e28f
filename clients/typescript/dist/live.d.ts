/** Syncs promptly: after edits, and when the server reports writes of other devices (`GET /events`). */
import { type Wire } from "./calls.js";
import type { Json, LiveOptions, Status, Store } from "./types.js";
/** The events of one owner, and those of all owners of the user. */
export declare const EVENTS = "/events";
export declare const ALL_EVENTS = "/events?owner=all";
/** What `live` needs from its client. */
export interface LiveContext {
    readonly store: Store;
    readonly wire: Wire;
    /** The path of the events to follow; null if another `Live` follows them and calls `moved`. */
    readonly events: string | null;
    /** Handles an event. Without it, an event is about the rows and the lock of this client. */
    onEvent?(type: string, data: {
        readonly [member: string]: Json;
    }): void;
    sync(): Promise<unknown>;
    /** Whether a sync has anything to do, if the server is at this version. */
    isBehind(version: number | null): Promise<boolean>;
    /** In how many ms a rejected row may be sent again; null: no row waits for that. */
    retryInMs(): Promise<number | null>;
    setState(live: Status["live"]): void;
    setLock(lock: Status["lock"]): void;
}
export declare class Live {
    private readonly client;
    private readonly options;
    private readonly control;
    private failed;
    private timer;
    private retry;
    private running;
    /** Set while a sync is due: the version that the server reported; null: sync in any case. */
    private due;
    private readonly wake;
    constructor(client: LiveContext, options: LiveOptions);
    /** Notes that the server is at this version; null: sync in any case. */
    moved(version: number | null): void;
    /** Notes an edit of the user. */
    edited(): void;
    stop(): void;
    private get stopped();
    /** Syncs in `ms`. Replaces a sync that was scheduled before. */
    private schedule;
    private work;
    /** The pause after that many failures: exponential backoff with jitter, ms. */
    private backoff;
    /** Follows the events in one tab for all; the other tabs wait until it closes. */
    private listen;
    private follow;
    /** Follows the events until the stream ends. Returns false if this server or platform cannot stream them. */
    private stream;
    /** Handles an event. Returns false for what is no event, such as a comment. */
    private handle;
}

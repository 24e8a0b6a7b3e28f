import { type Wire } from "./calls.js";
import { type Declared } from "./held.js";
import type { Conflict, Store, SyncOptions, SyncReport, Way } from "./types.js";
/** What a sync needs from its client. */
export interface SyncContext {
    readonly store: Store;
    readonly tables: ReadonlyMap<string, Declared>;
    readonly wire: Wire;
    now(): number;
    /** Reports that rows of these tables changed. */
    rowsChanged(tables: Set<string>): void;
    /** Passes conflicts to the app, and stores what it returns as edits. */
    conflictsFound(conflicts: readonly Conflict[]): Promise<void>;
}
/** One sync of a store with its server. The caller must exclude other syncs of the same store. */
export declare class SyncRun {
    private readonly context;
    private readonly options;
    private readonly calls;
    private readonly tally;
    private readonly conflicts;
    private readonly progress;
    /** Rows that the server does not accept as they are, each with the edit that it refused. */
    private readonly refused;
    private limits;
    /** The size of a request that is fast enough, bytes; undefined while none has taken too long. */
    private pace;
    /** The number of successive requests that took too long. */
    private slow;
    /** The last digests that the server sent. */
    private serverDigests;
    private resumed;
    /** Whether the digests differ, so that the server's past may not be the one that the device knows. */
    private doubt;
    private way;
    /** How many of the deletions that the user has confirmed are left. */
    private confirmedDeletes;
    constructor(context: SyncContext, options: SyncOptions & {
        readonly way: Way;
    });
    run(): Promise<SyncReport>;
    private read;
    private write;
    /** Applies a response in one transaction, and then passes its conflicts to the app. */
    private settle;
    /** Loads the server's limits and the owner's seed, which are requested once. A server with lower limits responds with 413 or 422. */
    private prepare;
    private fetchSeed;
    /**
     * Sends a request again that an earlier sync sent without receiving the response. Only its verdicts are applied: the
     * cursor stays, and this sync requests everything else again.
     */
    private resume;
    /** Fetches the manifest under the lock, compares it, and sends one or more requests under the same lock. */
    private byManifest;
    private syncManifest;
    /** Compares the manifest with the copy. Returns the rows to send and to request. */
    private compareManifest;
    /** Sends the edits and pulls the changes of other devices in one request. */
    private byCursor;
    /**
     * Deletes the cursor, since the server no longer knows what changed after it. The next pull reads a full feed. The
     * waiting rows are sent as before, each with its own `_base`.
     */
    private expire;
    /** Syncs by cursor once. Returns false if it must be called again. */
    private pull;
    private newFeed;
    /** Applies a page of the feed, and fetches and applies all pages after it. */
    private pages;
    /**
     * Sends the rows that still wait: rows whose parents were in a later request, rows that must be sent whole, and edits
     * made meanwhile. Requests the rows whose contents are unknown. Ends when a round settles nothing.
     */
    private pushRest;
    /** Sends a queue in requests, each settled before the next is made. Returns the last `version`. */
    private push;
    /**
     * Queues the rows of a failed request again if another request may succeed, and throws the error otherwise.
     * `sentConfirmation`: the `confirm_deletes` of the failed request. Returns that of the next one.
     */
    private recover;
    /** The number that confirms a refused deletion, if the user has confirmed that many. */
    private confirmed;
    /**
     * Sends one request until it gets a response. If the server refuses it, nothing was written, and the request is no
     * longer outstanding. After any other error it stays outstanding, to be sent again.
     */
    private send;
    /**
     * Halves the size of requests after one that took longer than the server or this client waits, for later syncs too.
     * The request may have arrived. Its rows are sent again under other keys; the server recognises those that it has.
     */
    private halveRequests;
    /** Doubles the size of requests after one that took at most a quarter of the time limit. */
    private enlargeRequests;
    /**
     * Queues the rows of a refused request again, without the rows at fault or for smaller requests: one row that the
     * server does not accept must not block the others.
     */
    private dropFaults;
    /**
     * The rows because of which a request was refused: the one that the response points at, or all of a table that the
     * server does not have. It is empty if the refusal does not concern rows.
     */
    private atFault;
    /**
     * The rows of `of`, or all that wait, without those that were refused in this sync, or before and not edited since.
     * A row that was rejected because of other rows is sent again.
     */
    private sendable;
    /** Compares the server's digests with the device's. If they differ, repairs the copy once, by manifest. */
    private verify;
}

import { type Wire } from "./calls.js";
import { type Declared } from "./held.js";
import type { Conflict, Store, SyncOptions, SyncReport, Way } from "./types.js";
/** What a sync needs of its client. */
export interface Ground {
    readonly store: Store;
    readonly tables: ReadonlyMap<string, Declared>;
    readonly wire: Wire;
    now(): number;
    /** Rows of these tables changed. */
    touched(tables: Set<string>): void;
    /** Shows the app what it lost, and takes its answers as edits. */
    lost(conflicts: readonly Conflict[]): Promise<void>;
}
/** Brings the store and the server together. The caller sees to it that nobody else does it at the same time. */
export declare class Syncing {
    private readonly ground;
    private readonly options;
    private readonly calls;
    private readonly tally;
    private readonly conflicts;
    private readonly progress;
    /** Rows that the server cannot take as they are, with the edit that it refused. */
    private readonly refused;
    private limits;
    /** Bytes of a request that does not take too long, once one has. */
    private pace;
    /** Requests that took too long, one after the other. */
    private slow;
    private said;
    private resumed;
    /** The digests say that the server's past is not the one that the device knows. */
    private doubt;
    private way;
    /** Deletions that the user has confirmed and that no refusal has named yet. */
    private agreed;
    constructor(ground: Ground, options: SyncOptions & {
        readonly way: Way;
    });
    run(): Promise<SyncReport>;
    private read;
    private write;
    /** Applies what the server said, in one transaction, and then shows the app what it lost. */
    private settle;
    /** The server's limits and the owner's seed, asked for once; a server that lowers its limits says so by 413 and 422. */
    private prepare;
    private askSeed;
    /**
     * Hears the answer to a request that an earlier sync sent and never settled. Only its rows are settled: the
     * cursor stays, and whatever else the answer said is asked for again.
     */
    private resume;
    /** Roll call under the lock, comparison, and one or more requests under the same lock. */
    private byManifest;
    private oneRollCall;
    /** By cursor: the edits and the question what else changed, in one request. */
    private byCursor;
    /**
     * The server cannot say what changed since: forgets the cursor, to hear everything. What waits here goes up as
     * ever, each row with its own `_base`.
     */
    private expire;
    /** Whether all is told. */
    private onePull;
    private newFeed;
    /** Applies a page of the feed and all that follow it. */
    private pages;
    /**
     * Sends what waits still: rows whose parents came in a later request, rows that have to go up whole, what the
     * user did meanwhile; and asks for rows of which nobody has told what they are. Ends when a round settles nothing.
     */
    private rest;
    /** Sends a queue, request by request, each settled before the next is made. Gives the last `version`. */
    private push;
    /** The number that a refused deletion is to be confirmed by, if the user has agreed to as many. */
    private agreedTo;
    /**
     * Sends one request until it is answered. A refusal means that nothing was written: the request is given up.
     * Anything else leaves it outstanding, to be sent again.
     */
    private send;
    /**
     * A request took longer than the server or this client waits: the next ones are half of it, in later syncs too.
     * Whether it arrived nobody knows. Its rows go up again under other keys, and the server tells by the rows what is
     * new.
     */
    private slower;
    /** A request that took little of the time there is: the next may be twice as large. */
    private faster;
    /**
     * What to do about a refused request: send it without the row at fault, or in smaller parts. One row that no
     * server takes must not keep all the others.
     */
    private mend;
    /**
     * The rows for whose sake a whole request was refused: the one that the answer points at, or all of a table that
     * the server does not have. None if it is not about rows.
     */
    private atFault;
    /**
     * What waits, or those of `of`, without what was refused: in this sync, or before and not edited since. A row
     * that was rejected for the sake of others is tried again.
     */
    private sendable;
    /** Compares the server's digests with what the device holds; repairs once by a roll call. */
    private prove;
}

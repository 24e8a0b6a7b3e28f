/** Applies responses to the store by the rules of `decide`: one response, one transaction. */
import { type CursorEvent, type Epoch, type Plan } from "./decide.js";
import { type Declared, type Held, type Outstanding, type SentRow } from "./held.js";
import type { Changes, SyncResponse } from "./calls.js";
import type { Conflict, Rejection, Row, Verdict } from "./types.js";
/** Counts the rows of a sync. */
export interface Tally {
    pushed: number;
    pulled: number;
    dropped: number;
    verdicts: Partial<Record<Verdict, number>>;
}
/** Splits a row of a response; null if it is no row of the table. */
export declare function parts(table: Declared, row: Row): {
    key: string;
    at: number;
    columns: Row;
} | null;
/** One transaction that applies a response. */
export declare class Settling {
    private readonly held;
    private readonly tally;
    private readonly now;
    /** The server's epoch. */
    private readonly epoch;
    /** The full feed that is being read: every row that the server returns meanwhile counts as a part of it. */
    private readonly feed;
    /** The edits that this device lost. */
    readonly conflicts: Conflict[];
    /** The rows that the server rejected. */
    readonly rejected: (Rejection & SentRow)[];
    /** Whether the server's past is the one that the device knows, according to this response. */
    private past;
    constructor(held: Held, tally: Tally, now: number, 
    /** The server's epoch. */
    epoch: number | null, 
    /** The full feed that is being read: every row that the server returns meanwhile counts as a part of it. */
    feed: number | null);
    private put;
    private each;
    /** Applies the verdicts of a response and the rows that were requested, and closes the request. */
    applyResponse(sending: Outstanding, response: SyncResponse): Promise<void>;
    /** Applies the verdict on one row that was sent. */
    private settleRow;
    /** Applies a row that was requested, or that the feed contains. */
    private applyRow;
    private applyDeletion;
    private applyOutcome;
    /** Applies a page of the change feed. After the last page of a full feed, rows that it did not contain are absent. */
    applyPage(page: Changes): Promise<void>;
    /** Applies the parts of a plan that need no request: it drops rows, and stores what the server holds. */
    applyPlan(table: Declared, plan: Plan): Promise<void>;
    /** Stores the cursor after an event. */
    moveCursor(event: CursorEvent): Promise<void>;
    /** Whether the server, now at `version`, has the past that the device knows. */
    pastAt(version: number): Promise<Epoch>;
    /** Stores that the owner has reached a version, if the server is in the epoch that the device knows. */
    noteVersion(version: number): Promise<void>;
    /**
     * Stores the server's epoch and version as those that the device knows. The caller marks the rows that the server
     * may have lost, in the same transaction. Returns the relation to the past that the device knew before. `doubt`: the
     * digests differ, so the past is another one.
     */
    adoptPast(version: number, doubt?: boolean): Promise<Epoch>;
}

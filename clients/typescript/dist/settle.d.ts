/** Carries the rules' decisions out: one answer, one transaction. */
import { type Epoch, type Heard, type Plan } from "./decide.js";
import { type Declared, type Held, type Outstanding, type SentRow } from "./held.js";
import type { Answered, Changes } from "./calls.js";
import type { Conflict, Rejection, Row, Verdict } from "./types.js";
/** What a sync did, in rows. */
export interface Tally {
    pushed: number;
    pulled: number;
    dropped: number;
    verdicts: Partial<Record<Verdict, number>>;
}
/** A row of an answer in its parts; null if it is no row of the table. */
export declare function parts(table: Declared, row: Row): {
    key: string;
    at: number;
    columns: Row;
} | null;
/** One transaction that applies what the server said. */
export declare class Settling {
    private readonly held;
    private readonly tally;
    private readonly now;
    /** The epoch that the server is in. */
    private readonly epoch;
    /** The full feed under way: whatever the server tells meanwhile counts as mentioned by it. */
    private readonly feed;
    /** What this device lost. */
    readonly conflicts: Conflict[];
    /** Rows that only would be rejected again. */
    readonly rejected: (Rejection & SentRow)[];
    /** Whether the server's past is the one that the device knows, as far as this answer says. */
    private past;
    constructor(held: Held, tally: Tally, now: number, 
    /** The epoch that the server is in. */
    epoch: number | null, 
    /** The full feed under way: whatever the server tells meanwhile counts as mentioned by it. */
    feed: number | null);
    private put;
    private each;
    /** Obeys the verdicts of an answer, takes the rows that were asked for, and closes the request. */
    report(sending: Outstanding, answer: Answered): Promise<void>;
    private verdict;
    /** Takes a row that the server tells: asked for, or from the feed. */
    private entry;
    private gone;
    private decided;
    /** Applies a page of the change feed. After the last page of a full one, what it did not mention is gone. */
    page(page: Changes): Promise<void>;
    /** Does at once what the roll call's comparison asks for: drops rows, and notes what the server holds. */
    plan(table: Declared, plan: Plan): Promise<void>;
    /** Moves the cursor, or does not. Where it moves, the whole copy is of the server's epoch. */
    heard(heard: Heard): Promise<void>;
    /** Whether the server, now at `version`, has the past that the device knows. */
    pastAt(version: number): Promise<Epoch>;
    /** Remembers that the owner has reached a version, in the past that the device knows. */
    know(version: number): Promise<void>;
    /**
     * Takes the server's past for the device's own from here on: what the device knows beyond it is marked row by row,
     * in the same transaction. Gives what it was to the device before. `doubt`: the digests say that it is another.
     */
    adopt(version: number, doubt?: boolean): Promise<Epoch>;
}

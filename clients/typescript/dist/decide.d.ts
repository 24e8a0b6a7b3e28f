/**
 * What a device decides. Pure: no store, no network, no clock. The same rules as the reference device's; the
 * cases in `fixtures/device` hold both to them.
 *
 * Two times belong to a row. `at` is the state that the server holds, as it last told it; `base` is the state
 * that the user's edit was made on. They differ when others change a row that is edited here: the edit stays,
 * and goes up with its old `base`, so that the server sees the conflict and decides it.
 */
import type { RowState, Verdict } from "./types.js";
/**
 * What an edit was made on that knew of no row of the server's: a state that no row ever has. Not the edit's own
 * time, which may be the server's row's as well.
 */
export declare const NO_STATE = 0;
/** What a device knows of a row, its contents aside. Times are ms since 1970; null is none. */
export interface Local {
    readonly state: RowState;
    readonly at: number | null;
    readonly base: number | null;
    readonly editedAt: number | null;
}
/** Whose contents a row has: ours, the server's, or the server's with what was changed since on it. */
export type Contents = "mine" | "theirs" | "mine_over_theirs";
/** What becomes of a local row; without `local` the device drops it. */
export interface Outcome {
    readonly local: Local | null;
    readonly contents: Contents;
}
export type Operation = "add" | "update" | "delete";
/** A clean row whose contents have to be asked for. `held` is the state that the device knows. */
export declare const unsure: (held: number | null) => Local;
/**
 * A clean row that the server gave in the state `held` and may have lost since: it waits to be put back. The server
 * holds the older state `at`, or no row.
 */
export declare const putBackOf: (held: number | null, at: number | null) => Local;
/** Whether it waits only because the server may have lost it, and not since its user changed it. */
export declare const isPutBack: ({ state, editedAt }: Pick<Local, "state" | "editedAt">) => boolean;
/** The state whose contents the device has, of a row that its user has not changed. */
export declare const heldOf: (local: Local) => number | null;
/** A row just as the server told it. */
export declare const clean: (at: number | null) => Local;
/**
 * Whether all columns go up, or only the changed ones. Half a row can neither be made nor be brought back, so a
 * row that the server does not hold goes up whole.
 */
export declare const goesWhole: (local: Local) => boolean;
/** What to do about one table after the roll call, by key ascending. */
export interface Plan {
    add: string[];
    update: string[];
    delete: string[];
    /** Send these as states that the server gave and may have lost: with `put_back`, before anything else. */
    put_back: string[];
    get: string[];
    /** Delete these here, at once. */
    drop: string[];
    /** Remember this of these rows, at once: the server holds another state than was known, or may. */
    note: [string, Local][];
}
/**
 * Whether the server's past is the one that the device knows. A server that was put back to a backup, or begun anew,
 * has forgotten states: what it does not hold is not deleted therefore. It may also have taken a state since that
 * another device made in the very moment of a forgotten one: then one time names two states.
 */
export type Epoch = "same" | "earlier";
/** An owner of the server's, as far as a device knows. */
export interface Known {
    readonly epoch: number | null;
    readonly version: number;
}
/**
 * Compares what a device remembers of its last complete look at the server with what the server says now. `known` is
 * null if the device holds nothing of any server.
 */
export declare const past: (known: Known | null, now: Known) => Epoch;
/** Compares the roll call of a table with the local rows. `complete`: the last page has come. */
export declare function compare(theirs: ReadonlyMap<string, number>, mine: ReadonlyMap<string, Local>, epoch: Epoch, complete: boolean): Plan;
/**
 * What becomes of a row that a complete list of the server's rows does not have. A clean row was deleted there if the
 * server's past is the one that the device knows; else it may have been forgotten, and is put back. A row that was
 * synced once and edited since was deleted there against edited here: a conflict, and not ours to decide.
 */
export declare function absent(local: Local, epoch: Epoch): Outcome;
/** What becomes of a row of which the server tells a state; `told` null: it was deleted. Edits always stay. */
export declare function apply(local: Local | null, told: number | null, epoch: Epoch): Outcome;
/** What the device had sent of a row. */
export interface Sent {
    readonly operation: Operation;
    /** All columns that the device has, or the changed ones alone. */
    readonly whole: boolean;
    /** Whether every declared column was there, so that the server had none to fill in. */
    readonly complete: boolean;
    /** Whether the user changed the row again after the request was made. */
    readonly editedSince: boolean;
}
/** What the server said of it. `row`: whether the server's row came along. */
export interface Told {
    readonly verdict: Verdict;
    readonly at: number | null;
    readonly row: boolean;
}
/** What becomes of a row after its verdict. It settles what was sent; what the user did since stays. */
export declare function obey(local: Local, sent: Sent, told: Told): Outcome;
/**
 * When a row that the server rejected may go up again as it is: `later`, and its user has nothing to mend;
 * `with_others`, when the rows that it is about may have changed; or once its user has `edited` it.
 */
export type Again = "later" | "with_others" | "edited";
/** Reads off a rejection when the row may go up again. `timed`: whether the server said after how long. */
export declare function again(code: string, timed: boolean): Again;
/** What moves the cursor, or does not. */
export type Heard = 
/** The answer to a push that had a `base`. `complete`: the copy is all of what that base was. */
{
    readonly pushed: {
        readonly version: number;
        readonly complete: boolean;
    };
}
/** A page of the change feed, applied. */
 | {
    readonly page: {
        readonly version: number;
        readonly more: boolean;
    };
}
/** 410: the server cannot say what changed since the cursor. */
 | "expired"
/**
 * A roll call that was compared with the copy. What it asks for is still to come, and is known ahead of any cursor
 * from before: were it deleted until then, no feed would mention it.
 */
 | "compared";
/** Where the cursor stands after an answer. It moves in the transaction that applies the answer. */
export declare function cursorAfter(cursor: number | null, heard: Heard): number | null;
/**
 * The pause after the failed attempt of that number, from 1: exponential, with full jitter, but never shorter
 * than what the server asks for. Null: give up. `random` is in [0, 1).
 */
export declare function pauseMs(attempt: number, attemptsMax: number, retryAfterS: number | null, random: number): number | null;
/** The pause before the lock is asked for again. `waitedMs`: so far. Null: give up. */
export declare function lockPauseMs(waitedMs: number, waitMaxMs: number, retryAfterS: number | null, random: number): number | null;

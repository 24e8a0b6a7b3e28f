/**
 * The decisions of a device. They are pure: no store, no network, no clock. The reference device has the same rules
 * (`crates/device/src/decide.rs`); the cases in `fixtures/device` test both.
 *
 * A row has two times. `at` is the state that the server holds, as it last reported it. `base` is the state on which
 * the user's edit was made. They differ when other devices change a row that is edited here: the edit stays, and is
 * sent with its old `base`, so that the server detects the conflict and decides it.
 */
import type { RowState, Verdict } from "./types.js";
/**
 * The base of an edit that was made without any row of the server: a state that no row ever has. The edit's own time
 * would not do, since it may also be that of the server's row.
 */
export declare const NO_STATE = 0;
/** What a device knows of a row, apart from its contents. Times are ms since 1970; null is none. */
export interface Local {
    readonly state: RowState;
    readonly at: number | null;
    readonly base: number | null;
    readonly editedAt: number | null;
}
/** The source of a row's contents: the device, the server, or the server with the columns over it that were changed since. */
export type Contents = "mine" | "theirs" | "mine_over_theirs";
/** The outcome for a local row. If `local` is null, the device drops the row. */
export interface Outcome {
    readonly local: Local | null;
    readonly contents: Contents;
}
export type Operation = "add" | "update" | "delete";
/** A clean row whose contents must be requested. `held` is the state that the device knows. */
export declare const unsure: (held: number | null) => Local;
/**
 * A clean row that the server returned in the state `held` and may have lost since: it waits to be put back. The
 * server holds the older state `at`, or no row.
 */
export declare const putBackOf: (held: number | null, at: number | null) => Local;
/** Whether it waits only because the server may have lost it, and not because its user changed it. */
export declare const isPutBack: ({ state, editedAt }: Pick<Local, "state" | "editedAt">) => boolean;
/** The state of the device's contents, for a row that its user has not changed. */
export declare const heldOf: (local: Local) => number | null;
/** A row in the state that the server reported. */
export declare const clean: (at: number | null) => Local;
/**
 * Whether all of its columns are sent, or only the changed ones. A partial row can neither be created nor revived, so
 * a row that the server may not hold is sent whole.
 */
export declare const goesWhole: (local: Local) => boolean;
/** The plan for one table after the manifest, by key ascending. */
export interface Plan {
    add: string[];
    update: string[];
    delete: string[];
    /** Send these as states that the server returned and may have lost: with `put_back`, before everything else. */
    put_back: string[];
    /** Request these. */
    get: string[];
    /** Delete these here, at once. */
    drop: string[];
    /** Store this about these rows, at once: the server holds another state than was known, or may. */
    note: [string, Local][];
}
/**
 * Whether the server's past is the one that the device knows. A server that was put back to a backup, or started anew,
 * has lost states, so a row that it does not hold need not be deleted. It may also have accepted a state that another
 * device made at the same time as a lost one: then one time denotes two states.
 */
export type Epoch = "same" | "earlier";
/** An owner's state on the server: the epoch (null from a server that does not report it) and the version. */
export interface Known {
    readonly epoch: number | null;
    readonly version: number;
}
/**
 * Compares the device's last complete view of the server with the server's present state. `known` is null if the
 * device holds no data of any server.
 */
export declare const past: (known: Known | null, now: Known) => Epoch;
/** Compares the manifest of a table with the local rows. `complete`: the last page has arrived. */
export declare function compare(theirs: ReadonlyMap<string, number>, mine: ReadonlyMap<string, Local>, epoch: Epoch, complete: boolean): Plan;
/**
 * The outcome for a row that is missing from a complete list of the server's rows. A clean row was deleted there if
 * the server's past is the one that the device knows. Otherwise the row may have been lost, and is put back. A row
 * that was synced once and edited since was deleted there and edited here: a conflict, which the server decides.
 */
export declare function absent(local: Local, epoch: Epoch): Outcome;
/** The outcome for a row after a state from the server; `at` null: the row was deleted. An edit without a verdict stays. */
export declare function apply(local: Local | null, at: number | null, epoch: Epoch): Outcome;
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
/** The server's result for a row. `row`: whether the response contained the server's row. */
export interface RowResult {
    readonly verdict: Verdict;
    readonly at: number | null;
    readonly row: boolean;
}
/** The outcome for a row after its verdict. It settles what was sent; later changes of the user stay. */
export declare function applyVerdict(local: Local, sent: Sent, { at, row, verdict }: RowResult): Outcome;
/**
 * When a rejected row may be sent again: `later`, unchanged and without a correction; `with_others`, unchanged, since
 * the rows that it depends on may have changed; or once its user has `edited` it.
 */
export type RetryWhen = "later" | "with_others" | "edited";
/** Determines it from a rejection's `code`. `timed`: whether the rejection had a `retry_after_s`. */
export declare function retryWhen(code: string, timed: boolean): RetryWhen;
/** An event that may move the cursor. */
export type CursorEvent = 
/** The response to a push with a `base`. `complete`: the device has a complete copy of that base. */
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
/** 410: the server no longer knows what changed since the cursor. */
 | "expired"
/**
 * A manifest that was compared with the copy. The rows that it requests arrive later and ahead of any earlier
 * cursor: if they were deleted before then, no feed would mention that.
 */
 | "compared";
/** The cursor after a response. It must be stored in the transaction that applies the response. */
export declare function cursorAfter(cursor: number | null, event: CursorEvent): number | null;
/**
 * The pause after the failed attempt of that number, from 1: exponential backoff with full jitter, but never shorter
 * than the server's `Retry-After`. Null: give up. `random` is in [0, 1).
 */
export declare function pauseMs(attempt: number, attemptsMax: number, retryAfterS: number | null, random: number): number | null;
/** The pause before the lock is requested again. `waitedMs`: so far. Null: give up. */
export declare function lockPauseMs(waitedMs: number, waitMaxMs: number, retryAfterS: number | null, random: number): number | null;
/** @deprecated Earlier names. */
export { applyVerdict as obey, retryWhen as again };
/** @deprecated Earlier names. */
export type { RowResult as Told, RetryWhen as Again, CursorEvent as Heard };

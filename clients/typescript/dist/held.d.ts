import type { VerdictItem } from "./calls.js";
import { type Local } from "./decide.js";
import type { Problem } from "./error.js";
import type { Installation } from "./identity.js";
import type { Conflict, Digest, Json, Rejection, Row, Store, StoredRow, SyncReport, TableSpec, Tables, Way } from "./types.js";
/** A declared table, ready for use. */
export interface Declared {
    readonly name: string;
    readonly key: string;
    /** The declared columns; null: whatever the app puts. */
    readonly columns: readonly string[] | null;
    /** What a row shows in columns that it was told without: a new column, whose default the server filled in unsaid. */
    readonly blank: Row;
    readonly spec: TableSpec;
}
/** The tables by name, those that others refer to first. */
export declare function declare(tables: Tables): Map<string, Declared>;
/** A row of an outstanding request. */
export interface SentRow {
    readonly table: string;
    readonly key: string;
    readonly operation: "add" | "update" | "delete";
    readonly whole: boolean;
    readonly complete: boolean;
    /** The edit that is in the request; a later one is not settled by the answer. */
    readonly edit: number;
}
/**
 * A request whose answer has not been applied. Written before it is sent, removed in the transaction that
 * applies the answer: after a lost answer or a reload the same goes up again under the same key.
 */
export interface Outstanding {
    readonly key: string;
    /** Without `sent_at`: that is the time of each sending, and the server leaves it out when it compares bodies. */
    readonly body: {
        readonly [member: string]: Json;
    };
    readonly sent: readonly SentRow[];
}
/** What is remembered beside rows. */
export interface Meta {
    cursor: number;
    /** The epoch of the server that the rows are of. */
    epoch: number;
    /** The latest version of the server's that the device has seen in that epoch. */
    known: number;
    seed: string;
    /** By table; only once the seed is known. */
    digests: {
        [table: string]: Digest;
    };
    edits: number;
    outstanding: Outstanding;
    etag: string;
    /** Bytes of a request that does not take too long on this device's line; none: as many as the server takes. */
    pace: number;
    limits: {
        rows: number;
        keys: number;
        bytes: number;
        precision: "seconds" | "milliseconds";
    };
    /** The feed under way: the mark of its next page and, of a full one, its number. */
    feed: {
        number: number | null;
        next: string;
    };
    feeds: number;
    conflicts: Conflict[];
    token: string;
    email: string;
    device_id: string;
    /** The user and the owner whose rows these are, as `GET /me` names them, with a dot between. */
    bound: string;
    installation: Installation;
    synced: {
        began: number;
        at: number;
        report: SyncReport;
        way: Way;
    };
    turn: {
        holder: string;
        until: number;
    };
    login: {
        holder: string;
        until: number;
    };
}
export declare const localOf: ({ state, at, base, editedAt }: StoredRow) => Local;
export declare const newRow: (table: string, key: string) => StoredRow;
/** Rejected for the sake of other rows, which may have changed by the next sync. */
export declare const isAboutOthers: ({ code, retryAt }: Rejection) => boolean;
/** Whether a rejected row may be sent once more as it is. */
export declare const mayTryAgain: (rejected: Rejection, now: number) => boolean;
/** Why a row was rejected, as it is kept with the row. */
export declare const rejectionOf: (error: Problem | (VerdictItem["error"] & {}), now: number) => Rejection;
/** One transaction over a store. */
export declare class Held {
    private readonly txn;
    readonly tables: ReadonlyMap<string, Declared>;
    /** Tables whose rows changed. */
    readonly touched: Set<string>;
    private sums;
    private constructor();
    static read<R>(store: Store, tables: ReadonlyMap<string, Declared>, work: (held: Held) => Promise<R>): Promise<R>;
    /** All of `work` is kept, or nothing. Gives the tables whose rows changed, too. */
    static write<R>(store: Store, tables: ReadonlyMap<string, Declared>, work: (held: Held) => Promise<R>): Promise<[R, Set<string>]>;
    get(table: string, key: string): Promise<StoredRow | undefined>;
    all(table: string): Promise<StoredRow[]>;
    waiting(): Promise<StoredRow[]>;
    recall<N extends keyof Meta>(name: N): Promise<Meta[N] | undefined>;
    remember<N extends keyof Meta>(name: N, value: Meta[N] | undefined): Promise<void>;
    /** Puts `row` in the place of `was`; null drops it. Keeps the table's proof in step. */
    replace(was: StoredRow | undefined, row: StoredRow | null): Promise<void>;
    nextEdit(): Promise<number>;
    /** The proof of what the server holds, as far as it told: an edit that waits counts as the state before it. */
    digests(): Promise<Meta["digests"] | null>;
    /** Adds the proofs up again from the rows. Within a transaction that writes. */
    recount(): Promise<void>;
    private proofs;
}
/** The row as the app sees it. */
export declare const shown: (table: Declared, key: string, row: Row) => Row;

import type { VerdictItem } from "./calls.js";
import { type Local } from "./decide.js";
import type { Problem } from "./error.js";
import type { Installation } from "./identity.js";
import type { OwnerList } from "./owners.js";
import type { Conflict, Digest, Json, Left, Rejection, Row, Store, StoredRow, SyncReport, TableSpec, Tables, Way } from "./types.js";
/** A declared table, ready for use. */
export interface Declared {
    readonly name: string;
    readonly key: string;
    /** The declared columns; null: any column is allowed. */
    readonly columns: readonly string[] | null;
    /** Values of columns that a stored row lacks. The server fills in the default of a new column without sending the row. */
    readonly blank: Row;
    readonly spec: TableSpec;
}
/** The tables by name, parents first. */
export declare function declare(tables: Tables): Map<string, Declared>;
/** A row of an outstanding request. */
export interface SentRow {
    readonly table: string;
    readonly key: string;
    readonly operation: "add" | "update" | "delete";
    readonly whole: boolean;
    readonly complete: boolean;
    /** The edit that is in the request; the response does not settle a later one. */
    readonly edit: number;
}
/**
 * A request whose response has not been applied. It is stored before it is sent, and removed in the transaction that
 * applies the response: after a lost response or a reload the same request is sent again under the same key.
 */
export interface Outstanding {
    readonly key: string;
    /** Without `sent_at`, which is the time of each sending; the server ignores it when it compares bodies. */
    readonly body: {
        readonly [member: string]: Json;
    };
    readonly sent: readonly SentRow[];
}
/** The state that is stored beside rows, by name. */
export interface Meta {
    cursor: number;
    /** The epoch of the server that the rows are of. */
    epoch: number;
    /** The latest version of the server's that the device has seen in that epoch. */
    known: number;
    seed: string;
    /** By table; present once the seed is known. */
    digests: {
        [table: string]: Digest;
    };
    edits: number;
    outstanding: Outstanding;
    etag: string;
    /** The largest request that is fast enough on this device's line, bytes; absent: the server's limit holds. */
    pace: number;
    limits: {
        rows: number;
        keys: number;
        bytes: number;
        precision: "seconds" | "milliseconds";
    };
    /** The feed that is being read: the token of its next page and, for a full feed, its number. */
    feed: {
        number: number | null;
        next: string;
    };
    feeds: number;
    conflicts: Conflict[];
    token: string;
    email: string;
    device_id: string;
    /** The user and the owner of the rows, as `GET /me` names them, with a dot between. */
    bound: string;
    installation: Installation;
    synced: {
        began: number;
        at: number;
        report: SyncReport;
        way: Way;
    };
    /** The other owners whose rows are on this device. */
    opened: string[];
    owners: OwnerList;
    left: Left;
    /** Whether the user is no member of the owner, as far as this device knows. */
    away: boolean;
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
/** Whether a row was rejected because of other rows, which may have changed by the next sync. */
export declare const isAboutOthers: ({ code, retryAt }: Rejection) => boolean;
/** Whether a rejected row may be sent again unchanged. */
export declare const mayTryAgain: (rejected: Rejection, now: number) => boolean;
/** The reason of a rejection, as it is stored with the row. */
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
    /** Commits all of `work`, or nothing. Returns its result, and the tables whose rows changed. */
    static write<R>(store: Store, tables: ReadonlyMap<string, Declared>, work: (held: Held) => Promise<R>): Promise<[R, Set<string>]>;
    get(table: string, key: string): Promise<StoredRow | undefined>;
    all(table: string): Promise<StoredRow[]>;
    waiting(): Promise<StoredRow[]>;
    recall<N extends keyof Meta>(name: N): Promise<Meta[N] | undefined>;
    remember<N extends keyof Meta>(name: N, value: Meta[N] | undefined): Promise<void>;
    /** Replaces `was` by `row`; null deletes it. Updates the table's digest. */
    replace(was: StoredRow | undefined, row: StoredRow | null): Promise<void>;
    nextEdit(): Promise<number>;
    /** The digests of the server's states as this device knows them: a waiting edit counts as the state before it. */
    digests(): Promise<Meta["digests"] | null>;
    /** Computes the digests again from the rows. Needs a transaction that writes. */
    recount(): Promise<void>;
    private loadSums;
}
/** The row as the app sees it. */
export declare const shown: (table: Declared, key: string, row: Row) => Row;

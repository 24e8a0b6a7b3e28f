/** The client's public interface: tables and rows, the store behind them, a sync and what it reports. */
/** Any JSON value. */
export type Json = null | boolean | number | string | Json[] | {
    [name: string]: Json;
};
/** The values of a column, by its type in `schema.toml`. */
export interface ValueTypes {
    text: string;
    /** Beyond ±2^53 it is a string of digits. */
    integer: number;
    real: number;
    /** Exact: a string such as `"12.5"`. */
    decimal: string;
    boolean: boolean;
    uuid: string;
    /** `2013-05-01T15:42:50.343Z`, or `2013-05-01 15:42:50` where the server keeps seconds. */
    timestamp: string;
    /** `2013-05-01` */
    date: string;
    json: Json;
    /** Base64 with padding. */
    blob: string;
}
export type ColumnType = keyof ValueTypes;
/** A column as `schema.toml` has it. Members that only concern the server are allowed and ignored. */
export interface ColumnSpec {
    readonly type: ColumnType;
    readonly required?: boolean;
    /** The value in a new row that is put without this column; `"now"` for a timestamp or a date. */
    readonly default?: Json;
    /** The table whose key the column holds. Rows of that table are sent first. */
    readonly references?: string;
    readonly max_length?: number;
    readonly merge?: string;
}
/** A table as `schema.toml` has it. Without `columns`, rows are neither checked nor typed. */
export interface TableSpec {
    /** The name of the key column. */
    readonly key: string;
    readonly columns?: {
        readonly [name: string]: ColumnType | ColumnSpec;
    };
    readonly policy?: string;
    readonly history?: number;
    readonly retired?: readonly string[];
}
/** Every table of the app, by name. */
export interface Tables {
    readonly [name: string]: TableSpec;
}
type TypeOf<C> = C extends ColumnType ? ValueTypes[C] : C extends {
    readonly type: infer T extends ColumnType;
} ? ValueTypes[T] : never;
type ValueOf<C> = C extends {
    readonly required: true;
} ? TypeOf<C> : TypeOf<C> | null;
/** The columns that a new row must have. */
type Needed<C> = {
    [N in keyof C]: C[N] extends {
        readonly required: true;
    } ? (C[N] extends {
        readonly default: unknown;
    } ? never : N) : never;
}[keyof C];
type Flat<T> = {
    [N in keyof T]: T[N];
};
/** A row of a table: the key and every column. */
export type RowOf<T extends TableSpec> = T extends {
    readonly columns: infer C;
} ? Flat<{
    [N in T["key"]]: string;
} & {
    -readonly [N in keyof C]: ValueOf<C[N]>;
}> : Row;
/** A row to put: the key and every column that is not required may be left out. */
export type NewRowOf<T extends TableSpec> = T extends {
    readonly columns: infer C;
} ? Flat<{
    [N in T["key"]]?: string;
} & {
    -readonly [N in Needed<C>]: ValueOf<C[N]>;
} & {
    -readonly [N in Exclude<keyof C, Needed<C>>]?: ValueOf<C[N]>;
}> : Row;
/** Some columns of a row. */
export type PatchOf<T extends TableSpec> = T extends {
    readonly columns: infer C;
} ? {
    -readonly [N in keyof C]?: ValueOf<C[N]>;
} : Row;
/** A row without types: columns by name. */
export interface Row {
    [column: string]: Json | undefined;
}
/** Whether a row has a change for the server, and which. */
export type RowState = "clean" | "added" | "edited" | "deleted";
/** Why the server rejected a row. */
export interface Rejection {
    readonly code: string;
    readonly detail: string;
    /** The column at fault, if the rejection names one. */
    readonly column?: string;
    /** When the row may be sent again unchanged, ms since 1970. Absent: it is sent once it is edited. */
    readonly retryAt?: number;
}
/** A row with its state. */
export interface Entry<R = Row> {
    readonly table: string;
    readonly key: string;
    /** The row as the app sees it. Of a deleted row: its last contents. */
    readonly row: R;
    readonly state: RowState;
    /** The state that the server holds, ms since 1970; null if it holds none. */
    readonly lastUpdate: number | null;
    /**
     * The state on which the edit was made. It is null for a clean row and for a row that was created here, and 0 if
     * another device created a row under the same key.
     */
    readonly base: number | null;
    /** The row as it was when the edit began. */
    readonly baseRow: R | null;
    /** When the user last changed it, by this device's clock; null for a clean row. */
    readonly editedAt: number | null;
    /** Set if the server rejected the edit. It waits until the row is edited again. */
    readonly rejected: Rejection | null;
}
/** One table. All of it works offline. */
export interface Table<T extends TableSpec = TableSpec> {
    readonly name: string;
    /** The name of the key column. */
    readonly keyColumn: T["key"];
    get(key: string): Promise<RowOf<T> | undefined>;
    /** Returns every row that is not deleted, by key; keys of UUIDv7 are in the order of creation. */
    list(): Promise<RowOf<T>[]>;
    /** Creates a row, or changes an existing one. Returns it; a new row without a key gets one (UUIDv7). */
    put(row: NewRowOf<T>): Promise<RowOf<T>>;
    /** Changes some columns of a row. Throws `no_such_row`. */
    patch(key: string, columns: PatchOf<T>): Promise<RowOf<T>>;
    /** Deletes a row. Does nothing if there is none. */
    remove(key: string): Promise<void>;
    /**
     * Discards the unsent edit of a row, for example after a rejection. A row that a restored server lost and rejects is
     * deleted here. Throws `in_flight` while the row is being sent.
     */
    revert(key: string): Promise<void>;
    /** Returns one row with its state, deleted or not. */
    entry(key: string): Promise<Entry<RowOf<T>> | undefined>;
    /** Returns every row with its state, including rows whose deletion still waits for the server. */
    entries(): Promise<Entry<RowOf<T>>[]>;
    /** Calls the listener with all rows, at once and after every change, by this tab, another tab or a sync. */
    subscribe(listener: (rows: RowOf<T>[], entries: Entry<RowOf<T>>[]) => void): Unsubscribe;
}
export type Unsubscribe = () => void;
/** Credentials for a server that keeps the accounts. */
export interface Login {
    readonly email: string;
    readonly password: string;
    /** The device's name for its user: "Anna's phone". */
    readonly device: string;
    /** Create the account first, unless it exists. */
    readonly register?: boolean;
}
/** How a sync finds the changes of other devices. */
export type Way = "cursor" | "manifest";
export interface ClientOptions<T extends Tables> {
    /** The server, such as `https://sync.example.com`; empty: the page's own origin. */
    readonly url: string;
    readonly tables: T;
    /** `indexedDbStore("name")`, `sqliteStore(database)`, `memoryStore()`. One store, one user. */
    readonly store: Store;
    /** A token, or a function that returns one; it is called again after a 401. */
    readonly token?: string | (() => string | Promise<string>);
    /** Instead of `token`: credentials, used while there is no token yet, and after a 401. The password is not stored. */
    readonly login?: Login;
    /** Default: `cursor`, whose cost is that of the changes. `manifest` lists all rows and compares them. */
    readonly way?: Way;
    /**
     * Called in a sync for every edit of this device that lost against another device's, once the server's row is
     * applied. Return columns to change the row (as an edit that is based on the server's row), or nothing to leave it.
     */
    readonly onConflict?: (conflict: Conflict) => Row | void | null | undefined | Promise<Row | void | null | undefined>;
    /** Replaces the global `fetch`, for tests or for an airplane mode. */
    readonly fetch?: typeof globalThis.fetch;
    /** The device's clock, ms since 1970. */
    readonly now?: () => number;
    /** Limits of waits and retries. */
    readonly patience?: Partial<Patience>;
}
export interface Patience {
    /** Attempts at one request that gets no response, or 429 or 5xx. Default 6. */
    attemptsMax: number;
    /** Longest time to wait for other devices' syncs, ms. Default 120,000. */
    lockWaitMaxMs: number;
    /** Longest time for one request, ms. Default 60,000. */
    requestMaxMs: number;
    /** Waits. A test replaces it. */
    pause: (ms: number, signal?: AbortSignal) => Promise<void>;
    /** Returns a number in [0, 1). */
    random: () => number;
}
export interface SyncOptions {
    readonly signal?: AbortSignal;
    readonly onProgress?: (progress: Progress) => void;
    readonly way?: Way;
    /**
     * After the error `mass_delete`: its `problem.confirm_deletes`, if the user agrees. A sync of several requests may be
     * refused more than once: it continues while the sum of the refused deletions is at most this number.
     */
    readonly confirmDeletes?: number;
}
/** How far a sync has come. */
export type Progress = 
/** Another device is syncing. */
{
    readonly phase: "waiting";
    readonly holder: string | null;
    readonly until: string | null;
    readonly ms: number;
}
/** No response, or 429 or 5xx: the request is repeated in `ms`. */
 | {
    readonly phase: "retrying";
    readonly attempt: number;
    readonly reason: string;
    readonly ms: number;
}
/** The manifest has that many rows. */
 | {
    readonly phase: "listed";
    readonly rows: number;
}
/** Rows still to be sent (`left`), and rows still to be requested (`asked`). */
 | {
    readonly phase: "sending";
    readonly left: number;
    readonly asked: number;
}
/** That many rows have been received so far. */
 | {
    readonly phase: "receiving";
    readonly rows: number;
}
/** The digests of these tables differ: all rows are compared once. */
 | {
    readonly phase: "repairing";
    readonly tables: string[];
};
export type Verdict = "added" | "updated" | "merged" | "deleted" | "same" | "kept" | "gone" | "absent" | "rejected";
/** The result of a sync. */
export interface SyncReport {
    readonly way: Way;
    /** Rows of this device that the server accepted. */
    readonly pushed: number;
    /** Rows that were received from the server. */
    readonly pulled: number;
    /** Rows that were dropped here because they are deleted on the server. */
    readonly dropped: number;
    /** The number of each of the server's verdicts. */
    readonly verdicts: Readonly<Partial<Record<Verdict, number>>>;
    /** Edits of this device that lost. */
    readonly conflicts: readonly Conflict[];
    /** Rows that the server rejected; they wait for their user. */
    readonly rejected: readonly (Rejection & {
        readonly table: string;
        readonly key: string;
    })[];
    /** Whether the digests of both sides are equal; null if another device wrote meanwhile, so that they cannot be compared. */
    readonly digestsEqual: boolean | null;
    /** The server's digests, and this device's. */
    readonly digests: {
        readonly server: Digests | null;
        readonly device: Digests | null;
    };
    /** Whether the digests differed and all rows were compared. */
    readonly repaired: boolean;
    /** The version of the server's data that this device holds; null after an incomplete sync. */
    readonly version: number | null;
    /** Whether the response of an earlier sync was missing, so that its request was sent again. */
    readonly resumed: boolean;
    readonly requests: number;
    /** How many of the requests were repeats. */
    readonly repeats: number;
    readonly ms: number;
}
/** An edit of this device that lost, in part or whole. */
export interface Conflict {
    /** Its id on this device, for `resolve` and `dismiss`. */
    readonly id: string;
    /** Its id on the server, for `restore`. */
    readonly serverId: string | null;
    readonly table: string;
    readonly key: string;
    /** `kept`: the server's row won; `gone`: it was deleted there; `merged`: some columns lost. */
    readonly verdict: "kept" | "gone" | "merged";
    /** The row before the edit; null if it was created here. */
    readonly base: Row | null;
    /** The row that was sent; null: it was deleted here. */
    readonly mine: Row | null;
    /** The row that the server, and now this device, holds; null: it is deleted. */
    readonly theirs: Row | null;
    /** The time of the server's row, ms; the `_base` of an edit that resolves the conflict. */
    readonly lastUpdate: number | null;
    /** When this device received the verdict, ms. */
    readonly at: number;
}
/** The edits that this device lost, until the app resolves or dismisses them. They survive a reload. */
export interface Conflicts {
    /** Returns them newest first, without those that `onConflict` received. */
    list(): Promise<Conflict[]>;
    /** Sets the row to what was sent (`"mine"`) or to a given row; null deletes it. The next sync sends it. */
    resolve(id: string, as: "mine" | "theirs" | Row | null): Promise<void>;
    dismiss(id: string): Promise<void>;
    /** Returns the owner's conflicts from the server, of all devices (`GET /conflicts`). */
    history(query?: {
        table?: string;
        key?: string;
        limit?: number;
        page?: string;
    }): Promise<{
        conflicts: Json[];
        next?: string;
    }>;
    /** Restores the losing row on the server. The next sync fetches it. */
    restore(serverId: string): Promise<Json>;
}
export interface Pending {
    readonly rows: number;
    readonly added: number;
    readonly edited: number;
    readonly deleted: number;
    /** How many of these rows the server rejected. */
    readonly rejected: number;
}
/** Proof of the rows that a side holds: a count and a sum of hashes for each table. */
export interface Digests {
    readonly as_of: number | null;
    readonly tables: {
        readonly [table: string]: Digest;
    };
}
export interface Digest {
    readonly count: number;
    /** 16 hexadecimal digits. */
    readonly root: string;
}
/** A request or its response, for wire inspectors. Tokens and passwords are left out. */
export interface Traffic {
    /** The same for a request and its response. */
    readonly id: number;
    readonly phase: "sent" | "answered" | "failed";
    readonly method: string;
    /** With the query, such as `/changes?since=4`. */
    readonly path: string;
    readonly requestHeaders: Readonly<Record<string, string>>;
    readonly requestBody: Json | undefined;
    /** Of a response. */
    readonly status?: number;
    readonly headers?: Readonly<Record<string, string>>;
    readonly body?: Json | undefined;
    /** Bytes of the bodies before compression. */
    readonly bytesSent: number;
    readonly bytesReceived?: number;
    readonly ms?: number;
    /** Of a failure. */
    readonly error?: string;
}
/** The client's state, for a status line. */
export interface Status {
    readonly syncing: boolean;
    /** The holder of the sync lock, as `live` or a wait last reported it. */
    readonly lock: {
        readonly held: boolean;
        readonly device?: string;
        readonly device_id?: string;
        readonly until?: string;
    } | null;
    /** Whether the last request got a response; null: none was sent yet. */
    readonly online: boolean | null;
    /**
     * The state of `live`: `listening` in this tab, `waiting` while another tab listens, `connecting`, `polling` where
     * responses cannot be streamed, `off`.
     */
    readonly live: "off" | "waiting" | "connecting" | "listening" | "polling";
    readonly pending: Pending;
    readonly lastSync: {
        readonly at: number;
        readonly report: SyncReport;
    } | null;
    readonly lastError: {
        readonly at: number;
        readonly code: string;
        readonly message: string;
    } | null;
}
export interface LiveOptions {
    /** Time between an edit and the sync that it starts, ms. Default 100. */
    readonly debounceMs?: number;
    /** Time between two syncs where the server's events cannot be streamed, ms. Default 15,000. */
    readonly pollMs?: number;
}
/** What a member of an owner may do; each role includes those before it. */
export type Role = "read" | "write" | "manage";
/** An owner of which the user is a member. */
export interface OwnerInfo {
    readonly owner: string;
    /** Empty if nobody named it. */
    readonly name: string;
    readonly role: Role;
    readonly version: number;
    /** Whether it was made with the account. */
    readonly home: boolean;
}
export interface Member {
    readonly user: string;
    readonly role: Role;
    readonly name: string;
    readonly joined_at: string;
}
export interface Invitation {
    readonly id: string;
    readonly role: Role;
    readonly made_by: string;
    readonly made_at: string;
    readonly expires_at: string;
    readonly uses_left: number;
}
export interface NewInvitation {
    readonly role: Role;
    /** For how many seconds it is open. Default: a week. */
    readonly expiresS?: number;
    /** How many users it takes. Default: 1. */
    readonly uses?: number;
}
/** Unsent edits of an owner of which the user is no member any more. */
export interface Left {
    /** When this device noticed it, ms. */
    readonly at: number;
    readonly rows: readonly {
        readonly table: string;
        readonly key: string;
        readonly state: "added" | "edited" | "deleted";
        readonly row: Row;
    }[];
}
/** The user's owners. These calls need the network, except that `list` returns the last known list without it. */
export interface Owners {
    list(): Promise<OwnerInfo[]>;
    /** Makes an owner, which the user manages. */
    make(name: string): Promise<OwnerInfo>;
    /** Makes the user a member by the code of an invitation. `name`: how other members see the user. */
    accept(code: string, name?: string): Promise<OwnerInfo>;
}
/** The rows of another owner, and its members. */
export interface OwnerClient<T extends Tables = Tables> extends Pick<Client<T>, "tables" | "table" | "sync" | "pending" | "conflicts" | "live" | "digests" | "onStatus" | "onChange"> {
    readonly id: string;
    /** Returns the unsent edits that are kept since the user is no member of the owner any more; null if there are none. */
    left(): Promise<Left | null>;
    /** Deletes everything of this owner on this device, including unsent edits. */
    forget(): Promise<void>;
    rename(name: string): Promise<void>;
    /** Deletes the owner and its rows, for all members. */
    delete(): Promise<void>;
    members(): Promise<Member[]>;
    setRole(user: string, role: Role): Promise<void>;
    /** Takes a member out. A user who takes itself out leaves the owner. */
    removeMember(user: string): Promise<void>;
    /** Makes an invitation. Its `code` is returned only here. */
    invite(invitation: NewInvitation): Promise<Invitation & {
        readonly code: string;
    }>;
    invitations(): Promise<Invitation[]>;
    revoke(invitation: string): Promise<void>;
}
export interface Client<T extends Tables = Tables> {
    readonly tables: T;
    table<N extends keyof T & string>(name: N): Table<T[N]>;
    /** Syncs this device with the server. Only one tab syncs at a time. Throws `RollcallError`. */
    sync(options?: SyncOptions): Promise<SyncReport>;
    /** Counts the rows that wait for the next sync. */
    pending(): Promise<Pending>;
    readonly conflicts: Conflicts;
    /** Syncs after each edit, and whenever the server reports a write of another device. Lasts until `stop` or `close`. */
    live(options?: LiveOptions): {
        stop(): void;
    };
    /** Returns the digests of this device's rows. Null before the first sync, which fetches the seed. */
    digests(): Promise<Digests | null>;
    readonly owners: Owners;
    /** Opens the rows of another owner. They stay on the device, and `sync` and `live` include them, until `forget`. */
    owner(id: string): OwnerClient<T>;
    onTraffic(listener: (traffic: Traffic) => void): Unsubscribe;
    /** Calls the listener at once, and at every change of the status. */
    onStatus(listener: (status: Status) => void): Unsubscribe;
    /** Calls the listener with the names of the tables whose rows changed. */
    onChange(listener: (tables: string[]) => void): Unsubscribe;
    logIn(login: Login): Promise<void>;
    /** Revokes the token. `wipe` also deletes all data on this device, including unsent edits. */
    logOut(options?: {
        wipe?: boolean;
    }): Promise<void>;
    /** Deletes all data on this device, including unsent edits. The server keeps its rows. */
    wipe(): Promise<void>;
    /** Stops `live`, cancels syncs and closes the store. */
    close(): Promise<void>;
}
/** A row as a store keeps it. Stores read and write it whole, and use only `table`, `key` and `waits`. */
export interface StoredRow {
    table: string;
    key: string;
    /** 1 if a sync must send or request the row, otherwise absent. Stores index it. */
    waits?: 1;
    state: RowState;
    at: number | null;
    base: number | null;
    editedAt: number | null;
    /** The edit that last changed it, counted over the whole store. */
    edit: number;
    /** Columns by name, without the key. */
    row: Row;
    /** The columns that the user changed, each with its last edit. */
    changed: {
        [column: string]: number;
    };
    baseRow?: Row;
    rejected?: Rejection;
    /** 1 if a request with the row may have arrived and its response will never come, otherwise absent. */
    doubtful?: 1;
    /** The full feed that last mentioned it. */
    seen?: number;
}
/** One transaction: all of it is committed or nothing, and no other writes meanwhile. */
export interface StoreTxn {
    get(table: string, key: string): Promise<StoredRow | undefined>;
    /** Returns every row of a table, by key. */
    all(table: string): Promise<StoredRow[]>;
    /** Returns every row with `waits`. */
    waiting(): Promise<StoredRow[]>;
    put(row: StoredRow): Promise<void>;
    delete(table: string, key: string): Promise<void>;
    meta(name: string): Promise<Json | undefined>;
    setMeta(name: string, value: Json | undefined): Promise<void>;
}
/** Where a device keeps its rows. `work` may await only calls of the transaction. */
export interface Store {
    /** The same name in every tab or process that shares the data. */
    readonly name: string;
    /** Which other clients may share the data. */
    readonly shared: "tabs" | "processes" | "nobody";
    transact<R>(mode: "read" | "write", work: (txn: StoreTxn) => Promise<R>): Promise<R>;
    wipe(): Promise<void>;
    close(): Promise<void>;
}
export {};

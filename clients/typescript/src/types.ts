/** The client's public interface: tables and rows, the store behind them, a sync and what it reports. */

// ---------------------------------------------------------------------------------------------- tables

/** Any JSON value. */
export type Json = null | boolean | number | string | Json[] | { [name: string]: Json };

/** What a column holds, in the words of `schema.toml`. */
export interface ValueTypes {
  text: string;
  /** Beyond ±2^53 a string of digits. */
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
  /** What a new row gets that is put without it; `"now"` for a timestamp or a date. */
  readonly default?: Json;
  /** The table whose key it holds: rows of that table are sent first. */
  readonly references?: string;
  readonly max_length?: number;
  readonly merge?: string;
}

/** A table as `schema.toml` has it. Without `columns` rows are not checked and not typed. */
export interface TableSpec {
  /** The name of the key column. */
  readonly key: string;
  readonly columns?: { readonly [name: string]: ColumnType | ColumnSpec };
  readonly policy?: string;
  readonly history?: number;
  readonly retired?: readonly string[];
}

/** Every table of the app, by name. */
export interface Tables {
  readonly [name: string]: TableSpec;
}

type TypeOf<C> = C extends ColumnType ? ValueTypes[C] : C extends { readonly type: infer T extends ColumnType } ? ValueTypes[T] : never;
type ValueOf<C> = C extends { readonly required: true } ? TypeOf<C> : TypeOf<C> | null;
/** Columns that a new row cannot do without. */
type Needed<C> = {
  [N in keyof C]: C[N] extends { readonly required: true } ? (C[N] extends { readonly default: unknown } ? never : N) : never;
}[keyof C];
type Flat<T> = { [N in keyof T]: T[N] };

/** A row of a table: the key and every column. */
export type RowOf<T extends TableSpec> = T extends { readonly columns: infer C }
  ? Flat<{ [N in T["key"]]: string } & { -readonly [N in keyof C]: ValueOf<C[N]> }>
  : Row;
/** A row to put: the key may be left out, and whatever is not required. */
export type NewRowOf<T extends TableSpec> = T extends { readonly columns: infer C }
  ? Flat<
      { [N in T["key"]]?: string } & { -readonly [N in Needed<C>]: ValueOf<C[N]> } & {
        -readonly [N in Exclude<keyof C, Needed<C>>]?: ValueOf<C[N]>;
      }
    >
  : Row;
/** Some columns of a row. */
export type PatchOf<T extends TableSpec> = T extends { readonly columns: infer C }
  ? { -readonly [N in keyof C]?: ValueOf<C[N]> }
  : Row;

/** A row without types: columns by name. */
export interface Row {
  [column: string]: Json | undefined;
}

// ---------------------------------------------------------------------------------------------- client

/** Whether a row has something for the server, and what. */
export type RowState = "clean" | "added" | "edited" | "deleted";

/** Why the server did not take a row. */
export interface Rejection {
  readonly code: string;
  readonly detail: string;
  /** The column at fault, if it is one. */
  readonly column?: string;
  /** The row is sent again as it is from then on, ms since 1970; else once it is edited. */
  readonly retryAt?: number;
}

/** A row with what is known of it. */
export interface Entry<R = Row> {
  readonly table: string;
  readonly key: string;
  /** What the app sees. Of a deleted row: what it was. */
  readonly row: R;
  readonly state: RowState;
  /** The state that the server holds, ms since 1970; null if it holds none. */
  readonly lastUpdate: number | null;
  /**
   * The state that the edit was made on; null of a clean row, and of one made here; 0 of one made here under a key
   * that somebody else has made too.
   */
  readonly base: number | null;
  /** The row as it was when the edit began. */
  readonly baseRow: R | null;
  /** When the user last changed it, by this device's clock; null of a clean row. */
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
  /** Every row that is not deleted, by key; UUIDv7 keys put them in the order in which they were made. */
  list(): Promise<RowOf<T>[]>;
  /** Makes a row, or changes one that is there. Gives it back, with the key that was made for it (UUIDv7). */
  put(row: NewRowOf<T>): Promise<RowOf<T>>;
  /** Changes some columns of a row. Throws `no_such_row`. */
  patch(key: string, columns: PatchOf<T>): Promise<RowOf<T>>;
  /** Deletes a row; one that is not there is fine. */
  remove(key: string): Promise<void>;
  /**
   * Gives up what was changed here and not sent: the way out after a rejection. A row that a restored server lost and
   * rejects is given up, too. Throws `in_flight` while it is being sent.
   */
  revert(key: string): Promise<void>;
  /** One row with what is known of it, deleted or not. */
  entry(key: string): Promise<Entry<RowOf<T>> | undefined>;
  /** Every row with what is known of it, those that are deleted here and still wait for the server too. */
  entries(): Promise<Entry<RowOf<T>>[]>;
  /** Tells all rows at once and after every change, whoever made it: this tab, another one, a sync. */
  subscribe(listener: (rows: RowOf<T>[], entries: Entry<RowOf<T>>[]) => void): Unsubscribe;
}

export type Unsubscribe = () => void;

/** What to log in with, where the server keeps the accounts. */
export interface Login {
  readonly email: string;
  readonly password: string;
  /** What people call the device: "Anna's phone". */
  readonly device: string;
  /** Make the account first; one that is there already is fine. */
  readonly register?: boolean;
}

/** How to find out what others changed. */
export type Way = "cursor" | "manifest";

export interface ClientOptions<T extends Tables> {
  /** The server, such as `https://sync.example.com`; empty: where the page came from. */
  readonly url: string;
  readonly tables: T;
  /** `indexedDbStore("name")`, `sqliteStore(database)`, `memoryStore()`. One store, one user. */
  readonly store: Store;
  /** A token, or what gives one; asked again after a 401. */
  readonly token?: string | (() => string | Promise<string>);
  /** Or how to get one: used when there is none yet, and after a 401. The password is not stored. */
  readonly login?: Login;
  /** Default: `cursor`, which costs what changed. `manifest` lists all rows and compares. */
  readonly way?: Way;
  /**
   * Called in a sync for every edit of this device that lost against another's, when the server's row is in
   * place. Give columns to make the row so (as an edit that knows the server's row), nothing to leave it.
   */
  readonly onConflict?: (conflict: Conflict) => Row | void | null | undefined | Promise<Row | void | null | undefined>;
  /** Instead of the global one: for tests, for an airplane mode. */
  readonly fetch?: typeof globalThis.fetch;
  /** The device's clock, ms since 1970. */
  readonly now?: () => number;
  /** How long and how often to wait. */
  readonly patience?: Partial<Patience>;
}

export interface Patience {
  /** Attempts at one request while no answer comes, or 429 or 5xx. Default 6. */
  attemptsMax: number;
  /** Longest time to wait for other devices' syncs, ms. Default 120,000. */
  lockWaitMaxMs: number;
  /** Longest time for one request, ms. Default 60,000. */
  requestMaxMs: number;
  /** Waits; a test hands in one that does not. */
  pause: (ms: number, signal?: AbortSignal) => Promise<void>;
  /** In [0, 1). */
  random: () => number;
}

export interface SyncOptions {
  readonly signal?: AbortSignal;
  readonly onProgress?: (progress: Progress) => void;
  readonly way?: Way;
  /**
   * After the error `mass_delete`: its `problem.confirm_deletes`, if the user agrees. A sync of several requests may be
   * refused more than once: it goes on as long as what the refusals name is no more than this, in all.
   */
  readonly confirmDeletes?: number;
}

/** How far a sync has come. */
export type Progress =
  /** Another device is syncing. */
  | { readonly phase: "waiting"; readonly holder: string | null; readonly until: string | null; readonly ms: number }
  /** No answer, or 429 or 5xx: the same again in `ms`. */
  | { readonly phase: "retrying"; readonly attempt: number; readonly reason: string; readonly ms: number }
  /** The server listed so many rows. */
  | { readonly phase: "listed"; readonly rows: number }
  /** So many rows are still to be sent, and to be asked for. */
  | { readonly phase: "sending"; readonly left: number; readonly asked: number }
  /** So many rows came so far. */
  | { readonly phase: "receiving"; readonly rows: number }
  /** The proof failed: everything is compared once. */
  | { readonly phase: "repairing"; readonly tables: string[] };

export type Verdict = "added" | "updated" | "merged" | "deleted" | "same" | "kept" | "gone" | "absent" | "rejected";

/** What a sync did. */
export interface SyncReport {
  readonly way: Way;
  /** Rows of this device that the server took. */
  readonly pushed: number;
  /** Rows that came from the server. */
  readonly pulled: number;
  /** Rows that were dropped here, as they are deleted there. */
  readonly dropped: number;
  /** Every verdict that the server gave, counted. */
  readonly verdicts: Readonly<Partial<Record<Verdict, number>>>;
  /** Edits of this device that lost. */
  readonly conflicts: readonly Conflict[];
  /** Rows that the server does not take as they are; they wait for their user. */
  readonly rejected: readonly (Rejection & { readonly table: string; readonly key: string })[];
  /** Whether both sides were proved equal; null if somebody wrote meanwhile, so that there was nothing to compare. */
  readonly digestsEqual: boolean | null;
  /** The server's digests, and this device's. */
  readonly digests: { readonly server: Digests | null; readonly device: Digests | null };
  /** Whether the proof failed first and a comparison of all rows mended it. */
  readonly repaired: boolean;
  /** The version of the server's data that this device holds; null after an incomplete sync. */
  readonly version: number | null;
  /** Whether the answer of an earlier sync had been lost. */
  readonly resumed: boolean;
  readonly requests: number;
  /** Requests that were repeats. */
  readonly repeats: number;
  readonly ms: number;
}

/** An edit of this device that lost, in part or as a whole. */
export interface Conflict {
  /** Local, for `resolve` and `dismiss`. */
  readonly id: string;
  /** Under which the server keeps the loser; for `restore`. */
  readonly serverId: string | null;
  readonly table: string;
  readonly key: string;
  /** `kept`: the server's row won; `gone`: it was deleted there; `merged`: some columns lost. */
  readonly verdict: "kept" | "gone" | "merged";
  /** The row that the edit began with; null if it was made here. */
  readonly base: Row | null;
  /** What was sent; null: the row was deleted here. */
  readonly mine: Row | null;
  /** What the server holds, and this device now; null: deleted. */
  readonly theirs: Row | null;
  /** The server's time of it, ms; the `_base` of whatever settles it. */
  readonly lastUpdate: number | null;
  /** When this device heard of it, ms. */
  readonly at: number;
}

/** What this device lost, until the app has seen to it. Survives a reload. */
export interface Conflicts {
  /** Newest first. Those that `onConflict` saw are not listed. */
  list(): Promise<Conflict[]>;
  /** `"mine"` makes the row what was sent, a row makes it so, null deletes it; goes up with the next sync. */
  resolve(id: string, as: "mine" | "theirs" | Row | null): Promise<void>;
  dismiss(id: string): Promise<void>;
  /** The owner's conflicts as the server keeps them, other devices' too (`GET /conflicts`). */
  history(query?: { table?: string; key?: string; limit?: number; page?: string }): Promise<{ conflicts: Json[]; next?: string }>;
  /** Brings a loser back on the server; the next sync brings it here. */
  restore(serverId: string): Promise<Json>;
}

export interface Pending {
  readonly rows: number;
  readonly added: number;
  readonly edited: number;
  readonly deleted: number;
  /** Those among them that the server rejected. */
  readonly rejected: number;
}

/** Proof of what is held: a count and a sum of hashes for each table. */
export interface Digests {
  readonly as_of: number | null;
  readonly tables: { readonly [table: string]: Digest };
}
export interface Digest {
  readonly count: number;
  /** 16 hexadecimal digits. */
  readonly root: string;
}

/** A request or its answer, for wire inspectors. Tokens and passwords are left out. */
export interface Traffic {
  /** The same for a request and its answer. */
  readonly id: number;
  readonly phase: "sent" | "answered" | "failed";
  readonly method: string;
  /** With the query, such as `/changes?since=4`. */
  readonly path: string;
  readonly requestHeaders: Readonly<Record<string, string>>;
  readonly requestBody: Json | undefined;
  /** Of an answer. */
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

/** What the client is about, for a status line. */
export interface Status {
  readonly syncing: boolean;
  /** Who holds the sync lock, as far as `live` or a wait told. */
  readonly lock: { readonly held: boolean; readonly device?: string; readonly device_id?: string; readonly until?: string } | null;
  /** Whether the server was last heard; null: not tried yet. */
  readonly online: boolean | null;
  /** Of `live`: `listening` in this tab, `waiting` while another tab does, `connecting`, `polling` where answers cannot be streamed, `off`. */
  readonly live: "off" | "waiting" | "connecting" | "listening" | "polling";
  readonly pending: Pending;
  readonly lastSync: { readonly at: number; readonly report: SyncReport } | null;
  readonly lastError: { readonly at: number; readonly code: string; readonly message: string } | null;
}

export interface LiveOptions {
  /** Between an edit and the sync that it starts, ms. Default 100. */
  readonly debounceMs?: number;
  /** Between two syncs where the server's events cannot be streamed, ms. Default 15,000. */
  readonly pollMs?: number;
}

export interface Client<T extends Tables = Tables> {
  readonly tables: T;
  table<N extends keyof T & string>(name: N): Table<T[N]>;
  /** Brings this device and the server together. One at a time, over all tabs. Throws `SyncError`. */
  sync(options?: SyncOptions): Promise<SyncReport>;
  /** What waits for the next sync. */
  pending(): Promise<Pending>;
  readonly conflicts: Conflicts;
  /** Syncs promptly: after each edit, and whenever the server tells that others wrote. Until `stop`, or `close`. */
  live(options?: LiveOptions): { stop(): void };
  /** What this device holds, as the server would prove it. Null before the first sync: the seed is the server's. */
  digests(): Promise<Digests | null>;
  onTraffic(listener: (traffic: Traffic) => void): Unsubscribe;
  /** Tells at once, and whenever something of it changes. */
  onStatus(listener: (status: Status) => void): Unsubscribe;
  /** Told of every change of rows: which tables. */
  onChange(listener: (tables: string[]) => void): Unsubscribe;
  logIn(login: Login): Promise<void>;
  /** Ends the token. `wipe` also deletes everything here, unsent edits too. */
  logOut(options?: { wipe?: boolean }): Promise<void>;
  /** Deletes everything here, unsent edits too. The server keeps its own. */
  wipe(): Promise<void>;
  /** Ends `live` and lets go of the store. */
  close(): Promise<void>;
}

// ---------------------------------------------------------------------------------------------- store

/** A row as a store keeps it. Stores write and read it whole and look only at `table`, `key` and `waits`. */
export interface StoredRow {
  table: string;
  key: string;
  /** 1 if a sync has something to do about it; else absent. Stores index it. */
  waits?: 1;
  state: RowState;
  at: number | null;
  base: number | null;
  editedAt: number | null;
  /** The edit that last changed it, counted over the whole store. */
  edit: number;
  /** Columns by name, without the key. */
  row: Row;
  /** The columns that the user changed, with the edit that last did. */
  changed: { [column: string]: number };
  baseRow?: Row;
  rejected?: Rejection;
  /** 1 if a request with it may have arrived, of which no answer will come any more; else absent. */
  doubtful?: 1;
  /** The full feed that last mentioned it. */
  seen?: number;
}

/** One transaction. All or nothing; nobody else writes meanwhile. */
export interface StoreTxn {
  get(table: string, key: string): Promise<StoredRow | undefined>;
  /** Every row of a table, by key. */
  all(table: string): Promise<StoredRow[]>;
  /** Every row that waits. */
  waiting(): Promise<StoredRow[]>;
  put(row: StoredRow): Promise<void>;
  delete(table: string, key: string): Promise<void>;
  meta(name: string): Promise<Json | undefined>;
  setMeta(name: string, value: Json | undefined): Promise<void>;
}

/** Where a device keeps its rows. `work` may await nothing but the transaction. */
export interface Store {
  /** The same for every tab or process that shares the data. */
  readonly name: string;
  /** How other holders of the same data are kept in step. */
  readonly shared: "tabs" | "processes" | "nobody";
  transact<R>(mode: "read" | "write", work: (txn: StoreTxn) => Promise<R>): Promise<R>;
  wipe(): Promise<void>;
  close(): Promise<void>;
}

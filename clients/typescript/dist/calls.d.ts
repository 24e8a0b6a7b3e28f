import { RollcallError } from "./error.js";
import { type Installation, type Me } from "./identity.js";
import type { Declared } from "./held.js";
import type { Digests, Json, Patience, Progress, Row, Traffic, Verdict } from "./types.js";
/** The server's result for one row that was sent. Its key is under the table's key column. */
export interface VerdictItem {
    readonly verdict: Verdict;
    readonly last_update?: string;
    readonly row?: Row;
    readonly error?: {
        readonly code: string;
        readonly detail: string;
        readonly column?: string;
        readonly retry_after_s?: number;
    };
    readonly conflict?: string;
    readonly [key: string]: unknown;
}
interface Rows {
    readonly [table: string]: Row[];
}
export interface Changes {
    readonly type: "full" | "diff";
    readonly version: number;
    readonly more?: boolean;
    readonly next?: string;
    readonly add?: Rows;
    readonly update?: Rows;
    readonly delete?: {
        readonly [table: string]: string[];
    };
    readonly digests?: Digests;
}
/** The response of `POST /synchronise`. */
export interface SyncResponse {
    readonly add?: {
        readonly [table: string]: VerdictItem[];
    };
    readonly update?: {
        readonly [table: string]: VerdictItem[];
    };
    readonly delete?: {
        readonly [table: string]: VerdictItem[];
    };
    readonly get?: Rows;
    readonly missing?: {
        readonly [table: string]: string[];
    };
    readonly version: number;
    readonly changes?: Changes;
    readonly digests?: Digests;
}
/** The response of `GET /fetch`. */
export interface Manifest {
    /** By table, the time of each row by its key. Null if nothing changed since the `ETag` of the request. */
    readonly tables: Map<string, Map<string, number>> | null;
    readonly version: number;
    readonly fence: string | null;
    readonly etag: string | null;
}
interface JsonResponse {
    readonly status: number;
    readonly header: (name: string) => string | null;
    readonly body: Json | undefined;
}
/** The headers and the body of a request. */
interface Content {
    readonly headers?: {
        [name: string]: string;
    };
    readonly body?: Json | undefined;
}
interface CallOptions {
    /** Sends no token. */
    readonly open?: boolean;
    /** Sends this token, which is not bound to the store yet. */
    readonly token?: string;
    /** Sends no `Sync-For` and `Sync-Device`: the request finds out whose rows the store holds. */
    readonly unbound?: boolean;
    /** Is not repeated after it took too long: the caller sends a smaller request instead. */
    readonly divisible?: boolean;
}
/** Whether a request took too long for the line or for the server, so that a smaller one may succeed. */
export declare const tookTooLong: (error: unknown) => error is RollcallError;
/** How a client reaches its server. */
export interface Wire {
    readonly url: string;
    /** The owner of the rows, whom requests name; null for the owner that was made with the account. */
    readonly owner: string | null;
    readonly fetch: typeof globalThis.fetch;
    readonly patience: Patience;
    /** Returns a token other than `refused`, which the server refused. Null if there is none. */
    token(refused: string | null): Promise<string | null>;
    /** Returns the headers `Sync-For` and `Sync-Device`. Null: the store is not bound yet. */
    identity(): Promise<{
        [name: string]: string;
    } | null>;
    /** Binds the store to a token's user and owner. `seed` requests the owner's seed. Throws `other_user`. */
    bind(me: Me, seed: () => Promise<string>): Promise<void>;
    /** Until this time the server is taken for one without `GET /me`, ms since 1970. */
    olderUntil: number;
    /** Stores the installation that the server assigned in a response to a request with the headers `sent`. */
    adopt(sent: {
        [name: string]: string;
    }, assigned: Installation): Promise<void>;
    traffic(traffic: Traffic): void;
    listening(): boolean;
    online(online: boolean): void;
}
export declare const readJson: (text: string) => Json | undefined;
/**
 * Sends one request, once. Returns a response whose body has been read or, for `stream`, a successful one whose body
 * has not. Fails with `offline` if no response comes, or with `aborted`.
 */
export declare function send(wire: Wire, method: string, path: string, token: string | null, { headers: given, body }: Content, signal: AbortSignal | undefined, stream?: boolean): Promise<Response & {
    text(): Promise<string>;
}>;
/** Makes an error of a response that is a problem document, or of a proxy's error page. */
export declare function problemOf(status: number, header: (name: string) => string | null, body: Json | undefined): RollcallError;
/** The path of a request about the rows of the client's owner. */
export declare const about: ({ owner }: Wire, path: string) => string;
/** The requests of one sync. */
export declare class Calls {
    private readonly wire;
    private readonly signal;
    private readonly progress;
    requests: number;
    repeats: number;
    /** The epoch of the data, by the last response that named it. */
    epoch: number | null;
    /** Whether this device may hold the lock, which must then be released after a failure. */
    holding: boolean;
    constructor(wire: Wire, signal: AbortSignal | undefined, progress: (progress: Progress) => void);
    /** Sends a request until it gets a final response. `make` receives the number of failed attempts. */
    call(method: string, path: string, make?: (failed: number) => Content, options?: CallOptions): Promise<JsonResponse>;
    /** Sends a request once. Returns a problem for the caller to decide about a retry. */
    private attempt;
    private read;
    limits(): Promise<{
        rows_max: number;
        get_keys_max: number;
        body_bytes_max: number;
        time_precision: "seconds" | "milliseconds";
    }>;
    /** Returns the user and owner of a token; null from a server without `GET /me`. */
    me(token?: string): Promise<Me | null>;
    /** Returns the headers `Sync-For` and `Sync-Device`. Binds the store first if it is not bound yet. */
    identity(): Promise<{
        [name: string]: string;
    }>;
    digests(): Promise<{
        seed: string;
    } & Digests>;
    /** Fetches all pages of the manifest, under the lock. After the error `version_moved` the caller begins again. */
    fetch(declared: readonly Declared[], known: string | undefined): Promise<Manifest>;
    /**
     * `body` makes the body of each attempt, with its time of sending. A repeated attempt omits the fence: the first may
     * have been processed, and have released the lock. `divisible`: after an attempt that took too long the caller sends
     * a smaller request instead of a repeat.
     */
    synchronise(key: string, fence: string | null, divisible: boolean, body: () => Json): Promise<SyncResponse>;
    changes(since: number | null, next?: string): Promise<Changes>;
    /** Releases the lock after a failure. Errors are ignored: a lease expires by itself. */
    releaseLock(): Promise<void>;
}
/** The query of a `Link` to the next page. Its path is ignored, since a proxy may serve the API under another one. */
export declare function nextQuery(link: string | null): string | null;
export {};

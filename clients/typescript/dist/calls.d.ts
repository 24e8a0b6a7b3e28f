import { RollcallError } from "./error.js";
import { type Installation, type Me } from "./identity.js";
import type { Declared } from "./held.js";
import type { Digests, Json, Patience, Progress, Row, Traffic, Verdict } from "./types.js";
/** What became of one row that was sent. Its key is under the table's key column. */
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
/** The answer of `POST /synchronise`. */
export interface Answered {
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
/** What the roll call told. */
export interface RollCall {
    /** Null if nothing changed since the `ETag` that was named. */
    readonly tables: Map<string, Map<string, number>> | null;
    readonly version: number;
    readonly fence: string | null;
    readonly etag: string | null;
}
interface Answer {
    readonly status: number;
    readonly header: (name: string) => string | null;
    readonly body: Json | undefined;
}
interface Ask {
    readonly headers?: {
        [name: string]: string;
    };
    readonly body?: Json | undefined;
}
/** How a call is made. */
interface Manner {
    /** Without a token. */
    readonly open?: boolean;
    /** With this token, whatever others there are; it is not bound to the store yet. */
    readonly token?: string;
    /** Without saying whose rows the store holds: this call finds that out. */
    readonly unbound?: boolean;
    /** Not to be repeated after it took too long: the caller can ask for less. */
    readonly divisible?: boolean;
}
/** Whether a request took too long for the line or for the server, so that a smaller one may not. */
export declare const tookTooLong: (error: unknown) => error is RollcallError;
/** How a client reaches its server. */
export interface Wire {
    readonly url: string;
    readonly fetch: typeof globalThis.fetch;
    readonly patience: Patience;
    /** The token to use; another one than `refused`, if the server refused that. Null if there is none. */
    token(refused: string | null): Promise<string | null>;
    /** What each call says beside its token: whose rows the store holds, which installation it is. Null: not known yet. */
    identity(): Promise<{
        [name: string]: string;
    } | null>;
    /** Binds the store to what the server says of a token. `seed`: asks for the owner's. Throws `other_user`. */
    bind(me: Me, seed: () => Promise<string>): Promise<void>;
    /** Until then the server counts as one that does not know `GET /me`, ms since 1970. */
    olderUntil: number;
    /** Takes over what the server calls this installation. */
    adopt(sent: {
        [name: string]: string;
    }, made: Installation): Promise<void>;
    traffic(traffic: Traffic): void;
    listening(): boolean;
    online(online: boolean): void;
}
/** Sends one request, once. Fails with `offline` if no answer comes, or with `aborted`. */
export declare function send(wire: Wire, method: string, path: string, token: string | null, { headers, body }: Ask, signal: AbortSignal | undefined, stream?: boolean): Promise<Response & {
    text(): Promise<string>;
}>;
/** The problem that an answer is, also if a proxy wrote it. */
export declare function problemOf(status: number, header: (name: string) => string | null, body: Json | undefined): RollcallError;
/** The calls of one sync. */
export declare class Calls {
    private readonly wire;
    private readonly signal;
    private readonly progress;
    requests: number;
    repeats: number;
    /** The epoch of the data, as the last answer said that said it. */
    epoch: number | null;
    /** Whether this device may have the lock, so that it should be given back after a failure. */
    holding: boolean;
    constructor(wire: Wire, signal: AbortSignal | undefined, progress: (progress: Progress) => void);
    /** Asks until there is an answer that counts. `make` is given how many attempts have failed. */
    ask(method: string, path: string, make?: (failed: number) => Ask, manner?: Manner): Promise<Answer>;
    private read;
    limits(): Promise<{
        rows_max: number;
        get_keys_max: number;
        body_bytes_max: number;
        time_precision: "seconds" | "milliseconds";
    }>;
    /** Whose rows a token leads to; null from a server that does not say. */
    me(token?: string): Promise<Me | null>;
    /** What each call says beside its token. A store that is not bound yet is, before anything else is asked. */
    identity(): Promise<{
        [name: string]: string;
    }>;
    digests(): Promise<{
        seed: string;
    } & Digests>;
    /** The whole roll call, under the lock, however many pages it has. Fails with `version_moved`: begin again. */
    fetch(declared: readonly Declared[], known: string | undefined): Promise<RollCall>;
    /**
     * `body` gives the body of each attempt: it says when it was sent. A repeated attempt leaves the fence out:
     * the first may have been answered, and have given the lock back. `divisible`: after an attempt that took too long
     * the caller sends less, instead of the same again.
     */
    synchronise(key: string, fence: string | null, divisible: boolean, body: () => Json): Promise<Answered>;
    changes(since: number | null, next?: string): Promise<Changes>;
    /** Whether it works does not matter: leases end by themselves. */
    giveLockBack(): Promise<void>;
}
/** The query of a `Link` to the next page: the server does not know under which path a proxy shows it. */
export declare function nextQuery(link: string | null): string | null;
export {};

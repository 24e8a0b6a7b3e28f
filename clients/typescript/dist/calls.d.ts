import { RollcallError } from "./error.js";
import type { Declared } from "./held.js";
import type { Digests, Json, Patience, Progress, Rejection, Row, Traffic, Verdict } from "./types.js";
/** What became of one row that was sent. Its key is under the table's key column. */
export interface VerdictItem {
    readonly verdict: Verdict;
    readonly last_update?: string;
    readonly row?: Row;
    readonly error?: Rejection;
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
    /** Without a token. */
    readonly open?: boolean;
}
/** How a client reaches its server. */
export interface Wire {
    readonly url: string;
    readonly fetch: typeof globalThis.fetch;
    readonly patience: Patience;
    /** The token to use; `renew` if the last one was refused. Null if there is no other. */
    token(renew: boolean): Promise<string | null>;
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
    /** Asks until there is an answer that counts. `make` is told how many attempts have failed. */
    ask(method: string, path: string, make?: (failed: number) => Promise<Ask> | Ask): Promise<Answer>;
    private read;
    limits(): Promise<{
        rows_max: number;
        get_keys_max: number;
        body_bytes_max: number;
        time_precision: "seconds" | "milliseconds";
    }>;
    digests(): Promise<{
        seed: string;
    } & Digests>;
    /** The whole roll call, under the lock, however many pages it has. Fails with `version_moved`: begin again. */
    fetch(declared: readonly Declared[], known: string | undefined): Promise<RollCall>;
    /**
     * `body` gives the body of each attempt: it says when it was sent. A repeated attempt leaves the fence out:
     * the first may have been answered, and have given the lock back.
     */
    synchronise(key: string, fence: string | null, body: () => Promise<Json>): Promise<Answered>;
    changes(since: number | null, next?: string): Promise<Changes>;
    /** Whether it works does not matter: leases end by themselves. */
    giveLockBack(): Promise<void>;
}
/** The query of a `Link` to the next page: the server does not know under which path a proxy shows it. */
export declare function nextQuery(link: string | null): string | null;
export {};

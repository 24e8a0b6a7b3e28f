/**
 * Proof that both sides are equal: for each table a count, and the sum of the rows' hashes modulo 2^64. A row's
 * hash is the first 8 bytes of SHA-256 of the owner's seed, the key and `last_update` in ms. These are 40 bytes, so
 * one block of SHA-256 suffices. It is computed here because a store's transaction cannot wait for `crypto.subtle`.
 */
import type { Digest } from "./types.js";
/** The hash of one row. `seed` has 32 hexadecimal digits. */
export declare function rowHash(seed: string, key: string, at: number): bigint;
/** A table's digest, updated with each change of a row. */
export declare class Sum {
    private readonly seed;
    private count;
    private sum;
    constructor(seed: string, count?: number, sum?: bigint);
    static read(seed: string, digest: Digest): Sum;
    /** The state that the server holds of a row changes from `before` to `after`; null: it holds none. */
    change(key: string, before: number | null, after: number | null): void;
    private add;
    digest(): Digest;
}

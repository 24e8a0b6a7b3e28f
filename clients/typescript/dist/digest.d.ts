/**
 * Proof that both sides are equal: for each table a count, and the sum of the rows' hashes modulo 2^64. A row's
 * hash is the first 8 bytes of SHA-256 of the owner's seed, the key and `last_update` in ms; 40 bytes, so one
 * block of SHA-256 does, and no transaction has to wait for `crypto.subtle`.
 */
import type { Digest } from "./types.js";
/** The hash of one row. `seed` has 32 hexadecimal digits. */
export declare function rowHash(seed: string, key: string, at: number): bigint;
/** A table's proof while rows come and go. */
export declare class Sum {
    private readonly seed;
    private count;
    private sum;
    constructor(seed: string, count?: number, sum?: bigint);
    static read(seed: string, digest: Digest): Sum;
    /** The server's state of a row changes; null: it holds none. */
    change(key: string, was: number | null, is: number | null): void;
    private add;
    digest(): Digest;
}

/**
 * Proof that both sides are equal: for each table a count, and the sum of the rows' hashes modulo 2^64. A row's
 * hash is the first 8 bytes of SHA-256 of the owner's seed, the key and `last_update` in ms. These are 40 bytes, so
 * one block of SHA-256 suffices. It is computed here because a store's transaction cannot wait for `crypto.subtle`.
 */
import type { Digest } from "./types.js";

/** The constants of SHA-256: the first 32 bits of the fractions of the cube and square roots of the first primes. */
const K = new Uint32Array(64);
const H = new Uint32Array(8);
for (let candidate = 2, found = 0; found < 64; candidate++) {
  let prime = true;
  for (let divisor = 2; divisor * divisor <= candidate; divisor++) if (candidate % divisor === 0) prime = false;
  if (!prime) continue;
  if (found < 8) H[found] = (candidate ** (1 / 2) % 1) * 2 ** 32;
  K[found++] = (candidate ** (1 / 3) % 1) * 2 ** 32;
}

const block = new DataView(new ArrayBuffer(64));
const words = new Uint32Array(64);
const rotate = (word: number, by: number) => (word >>> by) | (word << (32 - by));

/** The first 8 bytes of SHA-256 of the first `length` bytes of `block`, at most 55. */
function sha256(length: number): bigint {
  block.setUint8(length, 0x80);
  for (let i = length + 1; i < 64; i++) block.setUint8(i, 0);
  block.setUint32(60, length * 8);
  for (let i = 0; i < 16; i++) words[i] = block.getUint32(i * 4);
  for (let i = 16; i < 64; i++) {
    const [a, b] = [words[i - 15]!, words[i - 2]!];
    words[i] = words[i - 16]! + (rotate(a, 7) ^ rotate(a, 18) ^ (a >>> 3)) + words[i - 7]! + (rotate(b, 17) ^ rotate(b, 19) ^ (b >>> 10));
  }
  let [a, b, c, d, e, f, g, h] = H as unknown as [number, number, number, number, number, number, number, number];
  for (let i = 0; i < 64; i++) {
    const x = (h + (rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25)) + ((e & f) ^ (~e & g)) + K[i]! + words[i]!) | 0;
    const y = ((rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22)) + ((a & b) ^ (a & c) ^ (b & c))) | 0;
    [h, g, f, e, d, c, b, a] = [g, f, e, (d + x) | 0, c, b, a, (x + y) | 0];
  }
  return (BigInt((H[0]! + a) >>> 0) << 32n) | BigInt((H[1]! + b) >>> 0);
}

const fill = (hex: string, from: number) => {
  for (let i = 0; i < 16; i++) block.setUint8(from + i, parseInt(hex.slice(i * 2, i * 2 + 2), 16));
};

/** The hash of one row. `seed` has 32 hexadecimal digits. */
export function rowHash(seed: string, key: string, at: number): bigint {
  fill(seed, 0);
  fill(key.replace(/-/g, ""), 16);
  block.setBigInt64(32, BigInt(at));
  return sha256(40);
}

/** A table's digest, updated with each change of a row. */
export class Sum {
  constructor(
    private readonly seed: string,
    private count = 0,
    private sum = 0n,
  ) {}

  static read(seed: string, digest: Digest): Sum {
    return new Sum(seed, digest.count, BigInt(`0x${digest.root}`));
  }

  /** The state that the server holds of a row changes from `before` to `after`; null: it holds none. */
  change(key: string, before: number | null, after: number | null): void {
    if (before === after) return;
    if (before !== null) this.add(-1, -rowHash(this.seed, key, before));
    if (after !== null) this.add(1, rowHash(this.seed, key, after));
  }

  private add(rows: number, hash: bigint): void {
    this.count += rows;
    this.sum = BigInt.asUintN(64, this.sum + hash);
  }

  digest(): Digest {
    return { count: this.count, root: this.sum.toString(16).padStart(16, "0") };
  }
}

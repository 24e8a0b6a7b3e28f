const K = new Uint32Array(64);
const H = new Uint32Array(8);
for (let candidate = 2, found = 0; found < 64; candidate++) {
    let prime = true;
    for (let divisor = 2; divisor * divisor <= candidate; divisor++)
        if (candidate % divisor === 0)
            prime = false;
    if (!prime)
        continue;
    if (found < 8)
        H[found] = (candidate ** (1 / 2) % 1) * 2 ** 32;
    K[found++] = (candidate ** (1 / 3) % 1) * 2 ** 32;
}
const block = new DataView(new ArrayBuffer(64));
const words = new Uint32Array(64);
const turn = (word, by) => (word >>> by) | (word << (32 - by));
function sha256(length) {
    block.setUint8(length, 0x80);
    for (let place = length + 1; place < 64; place++)
        block.setUint8(place, 0);
    block.setUint32(60, length * 8);
    for (let i = 0; i < 16; i++)
        words[i] = block.getUint32(i * 4);
    for (let i = 16; i < 64; i++) {
        const [a, b] = [words[i - 15], words[i - 2]];
        words[i] = words[i - 16] + (turn(a, 7) ^ turn(a, 18) ^ (a >>> 3)) + words[i - 7] + (turn(b, 17) ^ turn(b, 19) ^ (b >>> 10));
    }
    let [a, b, c, d, e, f, g, h] = H;
    for (let i = 0; i < 64; i++) {
        const x = (h + (turn(e, 6) ^ turn(e, 11) ^ turn(e, 25)) + ((e & f) ^ (~e & g)) + K[i] + words[i]) | 0;
        const y = ((turn(a, 2) ^ turn(a, 13) ^ turn(a, 22)) + ((a & b) ^ (a & c) ^ (b & c))) | 0;
        [h, g, f, e, d, c, b, a] = [g, f, e, (d + x) | 0, c, b, a, (x + y) | 0];
    }
    return (BigInt((H[0] + a) >>> 0) << 32n) | BigInt((H[1] + b) >>> 0);
}
const fill = (hex, from) => {
    for (let place = 0; place < 16; place++)
        block.setUint8(from + place, parseInt(hex.slice(place * 2, place * 2 + 2), 16));
};
export function rowHash(seed, key, at) {
    fill(seed, 0);
    fill(key.replace(/-/g, ""), 16);
    block.setBigInt64(32, BigInt(at));
    return sha256(40);
}
export class Sum {
    constructor(seed, count = 0, sum = 0n) {
        this.seed = seed;
        this.count = count;
        this.sum = sum;
    }
    static read(seed, digest) {
        return new Sum(seed, digest.count, BigInt(`0x${digest.root}`));
    }
    change(key, was, is) {
        if (was === is)
            return;
        if (was !== null)
            this.add(-1, -rowHash(this.seed, key, was));
        if (is !== null)
            this.add(1, rowHash(this.seed, key, is));
    }
    add(rows, hash) {
        this.count += rows;
        this.sum = BigInt.asUintN(64, this.sum + hash);
    }
    digest() {
        return { count: this.count, root: this.sum.toString(16).padStart(16, "0") };
    }
}

const UUID = /^[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}$/;
export function readKey(text) {
    const key = typeof text === "string" ? text.toLowerCase() : "";
    return UUID.test(key) ? key : null;
}
let last = 0;
let count = 0;
export function newKey(now = Date.now()) {
    const bytes = new Uint8Array(16);
    const random = globalThis.crypto;
    if (random)
        random.getRandomValues(bytes);
    else
        for (let i = 0; i < 16; i++)
            bytes[i] = Math.random() * 256;
    if (now > last) {
        last = now;
        count = ((bytes[6] & 7) << 8) | bytes[7];
    }
    else if (++count > 0xfff) {
        last++;
        count = 0;
    }
    for (let i = 5, rest = last; i >= 0; i--, rest = Math.floor(rest / 256))
        bytes[i] = rest % 256;
    bytes[6] = 0x70 | (count >> 8);
    bytes[7] = count & 0xff;
    bytes[8] = 0x80 | (bytes[8] & 0x3f);
    const hex = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
    return [hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16), hex.slice(16, 20), hex.slice(20)].join("-");
}

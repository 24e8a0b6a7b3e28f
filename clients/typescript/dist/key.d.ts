/** Keys: UUIDs of version 7, which sort in the order in which they were made. */
/** The key in lower case, or null if it is no UUID of 36 characters. */
export declare function readKey(text: unknown): string | null;
/** A new key. Within one millisecond, and while the clock goes backwards, a counter keeps them in order. */
export declare function newKey(now?: number): string;

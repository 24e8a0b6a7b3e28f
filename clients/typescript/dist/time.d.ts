/** Instants: ms since 1970, and the two formats of the wire. */
/** Reads RFC 3339 in any zone, or `YYYY-MM-DD HH:MM:SS`, which is UTC. Null if it is neither. */
export declare function parseTime(text: unknown): number | null;
export type Precision = "seconds" | "milliseconds";
/** `2013-05-01T15:42:50.343Z`, or `2013-05-01 15:42:50`. */
export declare function formatTime(ms: number, precision?: Precision): string;

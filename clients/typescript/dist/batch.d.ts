/** Requests: the rows that wait, in batches that keep to the server's limits. */
import { type Operation } from "./decide.js";
import { type Declared, type Held, type Meta, type Outstanding, type SentRow } from "./held.js";
import type { Json, Row, StoredRow } from "./types.js";
/** Names a row. */
export interface RowRef {
    readonly table: string;
    readonly key: string;
}
/** The rows that are still to be sent, and those that are still to be requested. */
export interface Queue {
    rows: RowRef[];
    gets: RowRef[];
}
/** The members of a request beside its rows. */
export interface RequestOptions {
    readonly base: number | null;
    /** Whether the last request pulls the changes of other devices. */
    readonly pull: boolean;
    readonly confirmDeletes: number | undefined;
}
export type Limits = Meta["limits"];
/** The share of a body's bytes that rows and keys may fill. The rest is for names, brackets and `sent_at`. */
export declare const BODY_SHARE = 0.8;
/**
 * The waiting rows in the order of sending: rows that are put back, then new rows, then changed rows, each parents
 * first; then deletions, children first. So no request refers to a row of a later one.
 */
export declare function inOrder(rows: readonly StoredRow[], tables: ReadonlyMap<string, Declared>): RowRef[];
/** A row as an item of a request. */
export declare function itemOf(table: Declared, row: StoredRow): [Operation, Row];
/**
 * Takes the next request from the queue and stores it as outstanding, in the transaction that reads the rows. The rows
 * are sent as they are now; a later change of the user has a higher edit number.
 */
export declare function nextRequest(held: Held, queue: Queue, limits: Limits, options: RequestOptions): Promise<Outstanding>;
/** Returns the rows of a refused request, of which nothing was written, to the queue. */
export declare function requeue(queue: Queue, sending: Outstanding): void;
/** The columns that were sent of a row; null for a deletion. */
export declare function columnsSent({ body }: Outstanding, { table, key, operation }: SentRow, keyColumn: string): Row | null;
/** Size of a request's body, bytes. */
export declare const sizeOf: ({ body }: Outstanding) => number;
/** Whether a request could be sent in parts. */
export declare const isDivisible: ({ body, sent }: Outstanding) => boolean;
/** The request's body with the time of sending. */
export declare const stamped: ({ body }: Outstanding, sentAt: number) => Json;

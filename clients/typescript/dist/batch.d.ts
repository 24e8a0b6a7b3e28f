/** What goes up: the rows that wait, cut into requests that the server takes. */
import { type Operation } from "./decide.js";
import { type Declared, type Held, type Meta, type Outstanding, type SentRow } from "./held.js";
import type { Json, Row, StoredRow } from "./types.js";
export interface Place {
    readonly table: string;
    readonly key: string;
}
/** What is still to be sent and to be asked for. */
export interface Queue {
    rows: Place[];
    gets: Place[];
}
/** What a request says beside rows. */
export interface Terms {
    readonly base: number | null;
    /** Whether the last request asks for the changes of others. */
    readonly pull: boolean;
    readonly confirmDeletes: number | undefined;
}
export type Limits = Meta["limits"];
/** A share of the body: the rest is for names, brackets and `sent_at`. */
export declare const BODY_SHARE = 0.8;
/** What is put back, then new and changed rows, each parents first, then deletions children first: no request refers to a row of a later one. */
export declare function inOrder(rows: readonly StoredRow[], tables: ReadonlyMap<string, Declared>): Place[];
/** A row as it goes up. */
export declare function itemOf(table: Declared, row: StoredRow): [Operation, Row];
/**
 * Takes the next request from the queue and writes it down as outstanding, in the transaction that read the
 * rows: they go up as they are now, and what the user changes from here on has a later edit number.
 */
export declare function nextRequest(held: Held, queue: Queue, limits: Limits, terms: Terms): Promise<Outstanding>;
/** Puts back what was in a request of which nothing was written. */
export declare function putBack(queue: Queue, sending: Outstanding): void;
/** What was sent of a row: its columns, or null for a deletion. */
export declare function columnsSent({ body }: Outstanding, { table, key, operation }: SentRow, keyColumn: string): Row | null;
/** Bytes of a request. */
export declare const sizeOf: ({ body }: Outstanding) => number;
/** Whether it could be sent in parts. */
export declare const isDivisible: ({ body, sent }: Outstanding) => boolean;
/** The body as it was sent at a time. */
export declare const stamped: ({ body }: Outstanding, at: number) => Json;

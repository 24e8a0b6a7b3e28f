import { type Declared, type Held } from "./held.js";
import type { Conflict, Row, StoredRow } from "./types.js";
/** Reads the app's key. Throws `invalid_key`. */
export declare function keyOf(table: Declared, key: unknown): string;
/**
 * Creates a row, or changes the given columns of one, and returns it. A caller that knows of the row's deletion passes
 * its time as `base`.
 */
export declare function put(held: Held, table: Declared, key: string, columns: Row, now: number, base?: number | null): Promise<StoredRow>;
/** Deletes a row, if it is there. */
export declare function remove(held: Held, table: Declared, key: string, now: number): Promise<void>;
/**
 * Discards an unsent edit, or a row that a restored server lost and rejects. A row that is put back and not rejected
 * stays as it is: its user changed nothing.
 */
export declare function revert(held: Held, table: Declared, key: string): Promise<void>;
/** Resolves a conflict as the user wants: an edit that is based on the server's row. */
export declare function settle(held: Held, table: Declared, conflict: Conflict, as: Row | null, now: number): Promise<void>;

import { type Declared, type Held } from "./held.js";
import type { Conflict, Row, StoredRow } from "./types.js";
/** The key that the app names; throws what it is not. */
export declare function keyOf(table: Declared, key: unknown): string;
/**
 * Makes a row, or changes the given columns of one. `base` is set by whoever knows of the row's deletion: its
 * time. Gives the row.
 */
export declare function put(held: Held, table: Declared, key: string, columns: Row, now: number, base?: number | null): Promise<StoredRow>;
/** Deletes a row, if it is there. */
export declare function remove(held: Held, table: Declared, key: string, now: number): Promise<void>;
/**
 * Gives up an unsent edit, or a row that a restored server lost and does not take back. A row that is put back and that no
 * server has refused yet stays as it is: its user changed nothing.
 */
export declare function revert(held: Held, table: Declared, key: string): Promise<void>;
/** Makes the row of a conflict what the user wants: an edit that knows the server's row. */
export declare function settle(held: Held, table: Declared, conflict: Conflict, as: Row | null, now: number): Promise<void>;

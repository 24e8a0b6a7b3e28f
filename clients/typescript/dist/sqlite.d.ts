/** Keeps rows in SQLite: on React Native, in Electron, on Node. The app brings the library. */
import type { Store } from "./types.js";
type Value = string | number | null;
/** What better-sqlite3, `node:sqlite` and `bun:sqlite` have in common. */
export interface PreparingDatabase {
    prepare(sql: string): {
        run(...values: Value[]): unknown;
        all(...values: Value[]): unknown;
    };
}
/** Any other library, in a few lines: `run` a statement, or get `all` rows of one, at once or by a promise. */
export interface AnyDatabase {
    run(sql: string, values: Value[]): unknown;
    all(sql: string, values: Value[]): unknown;
}
/**
 * A store in an open SQLite database. Give it a connection of its own: its transactions wait for promises, and
 * what the app writes on the same connection meanwhile would be part of them. `name` is the same for all
 * processes that open the same file.
 */
export declare function sqliteStore(database: PreparingDatabase | AnyDatabase, name?: string): Store;
export {};

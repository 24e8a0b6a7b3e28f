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
/** Any other library: `run` executes a statement, `all` returns its rows; each returns a value or a promise. */
export interface AnyDatabase {
    run(sql: string, values: Value[]): unknown;
    all(sql: string, values: Value[]): unknown;
}
/**
 * A store in an open SQLite database. Give it a connection of its own: its transactions wait for promises, and
 * a statement of the app on the same connection would become part of them. `name` must be the same for all
 * processes that open the same file.
 */
export declare function sqliteStore(database: PreparingDatabase | AnyDatabase, name?: string): Store;
export {};

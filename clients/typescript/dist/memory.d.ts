/** Keeps rows in memory: for tests, and for programs that need no copy on disk. */
import type { Store } from "./types.js";
/** A store that is gone when the program ends. */
export declare function memoryStore(name?: string): Store;

/** Keeps rows in memory: for tests, and for servers that need no copy of their own. */
import type { Store } from "./types.js";
/** A store that is gone when the program ends. */
export declare function memoryStore(name?: string): Store;

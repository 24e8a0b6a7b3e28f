/** Keeps rows in the browser's IndexedDB. Every tab of the same origin that opens the name shares them. */
import type { Store } from "./types.js";
/** A store in the IndexedDB database of that name. */
export declare function indexedDbStore(name: string): Store;

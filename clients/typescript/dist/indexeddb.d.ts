/** Keeps rows in the browser's IndexedDB. All tabs of an origin that open the same name share them. */
import type { Store } from "./types.js";
/** A store in the IndexedDB database of that name. */
export declare function indexedDbStore(name: string): Store;

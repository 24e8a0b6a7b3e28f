/** The part of a store that has the rows of one owner. */
import type { Store } from "./types.js";
/**
 * The part of a store for an owner; `null` for the owner that was made with the account. Rows and state of other owners are
 * not visible in it. Returns the same object each time, because clients of the same data take turns by it.
 */
export declare function partOf(store: Store, owner: string | null): Store;

/**
 * Whose rows a store holds, and which installation of the app it is. Every request names both, so that the server
 * refuses a token of another user before a row is read, and can distinguish two phones with one token.
 */
import { RollcallError } from "./error.js";
import type { Held } from "./held.js";
/** The user and owner of a token (`GET /me`). */
export interface Me {
    readonly user: string;
    readonly owner: string;
}
/** An installation as it is stored. The counter only rises; by it the server detects a copy of the store. */
export interface Installation {
    readonly id: string;
    readonly counter: number;
}
export declare const otherUser: (whose: string) => RollcallError;
/** The value of `Sync-For`. */
export declare const boundTo: ({ user, owner }: Me) => string;
/** Binds the store to a user and an owner, until it is wiped. Throws `other_user`. */
export declare function bind(held: Held, me: Me): Promise<void>;
/** The headers that every request has beside its token; null if the store is not bound yet. */
export declare function headersOf(held: Held): Promise<{
    [name: string]: string;
} | null>;
/** The new installation that a response assigns: the server has found that this store is a copy. Null if it assigns none. */
export declare function assignedInstallation(sent: {
    readonly [name: string]: string;
}, header: (name: string) => string | null): Installation | null;
/** Stores an assigned installation, unless another response has changed it since the request was made. */
export declare function adopt(held: Held, sent: {
    readonly [name: string]: string;
}, assigned: Installation): Promise<void>;
/** Counts a response that was applied or given up. Call it in the same transaction. */
export declare function advance(held: Held): Promise<void>;

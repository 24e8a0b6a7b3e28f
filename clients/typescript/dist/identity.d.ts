/**
 * Whose rows a store holds, and which installation of the app it is. Every call says both, so that a token of another
 * user is refused before a row is read, and so that the server can tell two phones with one token apart.
 */
import { RollcallError } from "./error.js";
import type { Held } from "./held.js";
/** What the server says of a token (`GET /me`). */
export interface Me {
    readonly user: string;
    readonly owner: string;
}
/** An installation as it is stored. The counter rises and never goes back; a copy of the store is found out by it. */
export interface Installation {
    readonly id: string;
    readonly counter: number;
}
export declare const otherUser: (whose: string) => RollcallError;
/** What `Sync-For` says. */
export declare const boundTo: ({ user, owner }: Me) => string;
/** Binds the store to a user and an owner, for as long as it is not wiped. Throws `other_user`. */
export declare function bind(held: Held, me: Me): Promise<void>;
/** The headers that every call has beside its token; null of a store that is not bound yet. */
export declare function headersOf(held: Held): Promise<{
    [name: string]: string;
} | null>;
/** The installation that an answer names: this store turned out to be a copy, and goes on under an id of its own. */
export declare function named(sent: {
    readonly [name: string]: string;
}, header: (name: string) => string | null): Installation | null;
/** Takes that installation over, unless another answer has been quicker. */
export declare function adopt(held: Held, sent: {
    readonly [name: string]: string;
}, made: Installation): Promise<void>;
/** One more answer is applied, or will never be. In the transaction that says so. */
export declare function advance(held: Held): Promise<void>;

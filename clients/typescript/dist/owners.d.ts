/** The requests about owners, their members and invitations. */
import type { Calls } from "./calls.js";
import type { Invitation, Member, NewInvitation, OwnerInfo, Role } from "./types.js";
/** A list of owners, with its `ETag`. */
export interface OwnerList {
    readonly etag: string | null;
    readonly owners: OwnerInfo[];
}
/** The epoch of the server's data, by the versions of a list of owners. */
export declare const epochOf: (owners: readonly OwnerInfo[]) => number;
/** Returns the owners of the user; `known` if the server has no others. */
export declare function listOwners(calls: Calls, known: OwnerList | undefined): Promise<OwnerList>;
/** Makes an owner. A repeated request makes no second one. */
export declare const makeOwner: (calls: Calls, name: string) => Promise<OwnerInfo>;
export declare const acceptInvitation: (calls: Calls, code: string, name?: string) => Promise<OwnerInfo>;
export declare const renameOwner: (calls: Calls, owner: string, name: string) => Promise<void>;
export declare const deleteOwner: (calls: Calls, owner: string) => Promise<void>;
/** Returns all members, page by page. */
export declare function listMembers(calls: Calls, owner: string): Promise<Member[]>;
export declare const setRole: (calls: Calls, owner: string, user: string, role: Role) => Promise<void>;
export declare const removeMember: (calls: Calls, owner: string, user: string) => Promise<void>;
export declare const invite: (calls: Calls, owner: string, { role, expiresS, uses }: NewInvitation) => Promise<Invitation & {
    code: string;
}>;
export declare const listInvitations: (calls: Calls, owner: string) => Promise<Invitation[]>;
export declare const revokeInvitation: (calls: Calls, owner: string, id: string) => Promise<void>;

/** The requests about owners, their members and invitations. */
import type { Calls } from "./calls.js";
import { RollcallError } from "./error.js";
import { newKey } from "./key.js";
import type { Invitation, Json, Member, NewInvitation, OwnerInfo, Role } from "./types.js";

/** A list of owners, with its `ETag`. */
export interface OwnerList {
  readonly etag: string | null;
  readonly owners: OwnerInfo[];
}

/** The epoch is in the upper bits of each version. */
const EPOCH_UNIT = 2 ** 40;

/** The epoch of the server's data, by the versions of a list of owners. */
export const epochOf = (owners: readonly OwnerInfo[]): number =>
  Math.max(0, ...owners.map(({ version }) => Math.floor(version / EPOCH_UNIT)));

const escaped = encodeURIComponent;
const pathOf = (owner: string) => `/owners/${escaped(owner)}`;

/** Returns the owners of the user; `known` if the server has no others. */
export async function listOwners(calls: Calls, known: OwnerList | undefined): Promise<OwnerList> {
  const headers: { [name: string]: string } = known?.etag ? { "If-None-Match": known.etag } : {};
  const { status, header, body } = await calls.call("GET", "/owners", () => ({ headers }));
  if (status === 304 && known) return known;
  const owners = (body as { owners?: OwnerInfo[] } | undefined)?.owners;
  if (!Array.isArray(owners)) throw new RollcallError("garbled", "the server's response to GET /owners cannot be read");
  return { etag: header("etag"), owners };
}

const send = async <R>(calls: Calls, method: string, path: string, body?: Json): Promise<R> =>
  (await calls.call(method, path, () => ({ body }))).body as R;

/** Makes an owner. A repeated request makes no second one. */
export const makeOwner = async (calls: Calls, name: string): Promise<OwnerInfo> => {
  const headers = { "Idempotency-Key": newKey() };
  return (await calls.call("POST", "/owners", () => ({ headers, body: { name } }))).body as unknown as OwnerInfo;
};
export const acceptInvitation = (calls: Calls, code: string, name?: string): Promise<OwnerInfo> =>
  send(calls, "POST", "/invitations/accept", name === undefined ? { code } : { code, name });
export const renameOwner = (calls: Calls, owner: string, name: string) => send<void>(calls, "PATCH", pathOf(owner), { name });
export const deleteOwner = (calls: Calls, owner: string) => send<void>(calls, "DELETE", pathOf(owner));

/** Returns all members, page by page. */
export async function listMembers(calls: Calls, owner: string): Promise<Member[]> {
  const members: Member[] = [];
  for (let after: string | null = null; ; ) {
    const query: string = after === null ? "" : `?after=${escaped(after)}`;
    const page: { members: Member[]; next: string | null } = await send(calls, "GET", `${pathOf(owner)}/members${query}`);
    members.push(...page.members);
    if (page.next === null || page.next === undefined) return members;
    after = page.next;
  }
}
export const setRole = (calls: Calls, owner: string, user: string, role: Role) =>
  send<void>(calls, "PUT", `${pathOf(owner)}/members/${escaped(user)}`, { role });
export const removeMember = (calls: Calls, owner: string, user: string) =>
  send<void>(calls, "DELETE", `${pathOf(owner)}/members/${escaped(user)}`);

export const invite = (calls: Calls, owner: string, { role, expiresS, uses }: NewInvitation): Promise<Invitation & { code: string }> =>
  send(calls, "POST", `${pathOf(owner)}/invitations`, {
    ...{ role },
    ...(expiresS === undefined ? {} : { expires_s: expiresS }),
    ...(uses === undefined ? {} : { uses }),
  });
export const listInvitations = async (calls: Calls, owner: string): Promise<Invitation[]> =>
  (await send<{ invitations: Invitation[] }>(calls, "GET", `${pathOf(owner)}/invitations`)).invitations;
export const revokeInvitation = (calls: Calls, owner: string, id: string) =>
  send<void>(calls, "DELETE", `${pathOf(owner)}/invitations/${escaped(id)}`);

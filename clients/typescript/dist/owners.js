import { RollcallError } from "./error.js";
import { newKey } from "./key.js";
const EPOCH_UNIT = 2 ** 40;
export const epochOf = (owners) => Math.max(0, ...owners.map(({ version }) => Math.floor(version / EPOCH_UNIT)));
const escaped = encodeURIComponent;
const pathOf = (owner) => `/owners/${escaped(owner)}`;
export async function listOwners(calls, known) {
    const headers = known?.etag ? { "If-None-Match": known.etag } : {};
    const { status, header, body } = await calls.call("GET", "/owners", () => ({ headers }));
    if (status === 304 && known)
        return known;
    const owners = body?.owners;
    if (!Array.isArray(owners))
        throw new RollcallError("garbled", "the server's response to GET /owners cannot be read");
    return { etag: header("etag"), owners };
}
const send = async (calls, method, path, body) => (await calls.call(method, path, () => ({ body }))).body;
export const makeOwner = async (calls, name) => {
    const headers = { "Idempotency-Key": newKey() };
    return (await calls.call("POST", "/owners", () => ({ headers, body: { name } }))).body;
};
export const acceptInvitation = (calls, code, name) => send(calls, "POST", "/invitations/accept", name === undefined ? { code } : { code, name });
export const renameOwner = (calls, owner, name) => send(calls, "PATCH", pathOf(owner), { name });
export const deleteOwner = (calls, owner) => send(calls, "DELETE", pathOf(owner));
export async function listMembers(calls, owner) {
    const members = [];
    for (let after = null;;) {
        const query = after === null ? "" : `?after=${escaped(after)}`;
        const page = await send(calls, "GET", `${pathOf(owner)}/members${query}`);
        members.push(...page.members);
        if (page.next === null || page.next === undefined)
            return members;
        after = page.next;
    }
}
export const setRole = (calls, owner, user, role) => send(calls, "PUT", `${pathOf(owner)}/members/${escaped(user)}`, { role });
export const removeMember = (calls, owner, user) => send(calls, "DELETE", `${pathOf(owner)}/members/${escaped(user)}`);
export const invite = (calls, owner, { role, expiresS, uses }) => send(calls, "POST", `${pathOf(owner)}/invitations`, {
    ...{ role },
    ...(expiresS === undefined ? {} : { expires_s: expiresS }),
    ...(uses === undefined ? {} : { uses }),
});
export const listInvitations = async (calls, owner) => (await send(calls, "GET", `${pathOf(owner)}/invitations`)).invitations;
export const revokeInvitation = (calls, owner, id) => send(calls, "DELETE", `${pathOf(owner)}/invitations/${escaped(id)}`);

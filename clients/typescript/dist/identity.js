import { RollcallError } from "./error.js";
import { newKey } from "./key.js";
const DEVICE = "Sync-Device";
export const otherUser = (whose) => new RollcallError("other_user", `the rows here are those of ${whose}: open another store, or wipe this one`);
export const boundTo = ({ user, owner }) => `${user}.${owner}`;
const valueOf = ({ id, counter }) => `${id}.${counter}`;
export async function bind(held, me) {
    const [bound, mine] = [await held.recall("bound"), boundTo(me)];
    if (bound !== undefined && bound !== mine)
        throw otherUser("another user");
    await held.remember("bound", mine);
    if (!(await held.recall("installation")))
        await held.remember("installation", { id: newKey(), counter: 0 });
}
export async function headersOf(held) {
    const [bound, installation] = [await held.recall("bound"), await held.recall("installation")];
    return bound === undefined || !installation ? null : { "Sync-For": bound, [DEVICE]: valueOf(installation) };
}
export function assignedInstallation(sent, header) {
    const received = header(DEVICE);
    const found = received === null || received === sent[DEVICE] ? null : /^([0-9a-f-]{36})\.(\d{1,15})$/i.exec(received);
    return found && { id: found[1].toLowerCase(), counter: Number(found[2]) };
}
export async function adopt(held, sent, assigned) {
    const known = await held.recall("installation");
    if (known && valueOf(known) === sent[DEVICE])
        await held.remember("installation", assigned);
}
export async function advance(held) {
    const known = await held.recall("installation");
    if (known)
        await held.remember("installation", { ...known, counter: known.counter + 1 });
}

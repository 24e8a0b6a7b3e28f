import { RollcallError } from "./error.js";
import { newKey } from "./key.js";
const DEVICE = "Sync-Device";
export const otherUser = (whose) => new RollcallError("other_user", `the rows here are those of ${whose}: open another store, or wipe this one`);
export const boundTo = ({ user, owner }) => `${user}.${owner}`;
export async function bind(held, me) {
    const [bound, mine] = [await held.recall("bound"), boundTo(me)];
    if (bound !== undefined && bound !== mine)
        throw otherUser("another user");
    await held.remember("bound", mine);
    if (!(await held.recall("installation")))
        await held.remember("installation", { id: newKey(), counter: 0 });
}
export async function headersOf(held) {
    const [bound, made] = [await held.recall("bound"), await held.recall("installation")];
    return bound === undefined || !made ? null : { "Sync-For": bound, [DEVICE]: `${made.id}.${made.counter}` };
}
export function named(sent, header) {
    const said = header(DEVICE);
    const found = said === null || said === sent[DEVICE] ? null : /^([0-9a-f-]{36})\.(\d{1,15})$/i.exec(said);
    return found && { id: found[1].toLowerCase(), counter: Number(found[2]) };
}
export async function adopt(held, sent, made) {
    const known = await held.recall("installation");
    if (known && `${known.id}.${known.counter}` === sent[DEVICE])
        await held.remember("installation", made);
}
export async function advance(held) {
    const made = await held.recall("installation");
    if (made)
        await held.remember("installation", { ...made, counter: made.counter + 1 });
}

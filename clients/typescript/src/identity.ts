/**
 * Whose rows a store holds, and which installation of the app it is. Every request names both, so that the server
 * refuses a token of another user before a row is read, and can distinguish two phones with one token.
 */
import { RollcallError } from "./error.js";
import type { Held } from "./held.js";
import { newKey } from "./key.js";

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

const DEVICE = "Sync-Device";

export const otherUser = (whose: string) =>
  new RollcallError("other_user", `the rows here are those of ${whose}: open another store, or wipe this one`);

/** The value of `Sync-For`. */
export const boundTo = ({ user, owner }: Me) => `${user}.${owner}`;

/** The value of `Sync-Device`. */
const valueOf = ({ id, counter }: Installation) => `${id}.${counter}`;

/** Binds the store to a user and an owner, until it is wiped. Throws `other_user`. */
export async function bind(held: Held, me: Me): Promise<void> {
  const [bound, mine] = [await held.recall("bound"), boundTo(me)];
  if (bound !== undefined && bound !== mine) throw otherUser("another user");
  await held.remember("bound", mine);
  if (!(await held.recall("installation"))) await held.remember("installation", { id: newKey(), counter: 0 });
}

/** The headers that every request has beside its token; null if the store is not bound yet. */
export async function headersOf(held: Held): Promise<{ [name: string]: string } | null> {
  const [bound, installation] = [await held.recall("bound"), await held.recall("installation")];
  return bound === undefined || !installation ? null : { "Sync-For": bound, [DEVICE]: valueOf(installation) };
}

/** The new installation that a response assigns: the server has found that this store is a copy. Null if it assigns none. */
export function assignedInstallation(
  sent: { readonly [name: string]: string },
  header: (name: string) => string | null,
): Installation | null {
  const received = header(DEVICE);
  const found = received === null || received === sent[DEVICE] ? null : /^([0-9a-f-]{36})\.(\d{1,15})$/i.exec(received);
  return found && { id: found[1]!.toLowerCase(), counter: Number(found[2]) };
}

/** Stores an assigned installation, unless another response has changed it since the request was made. */
export async function adopt(held: Held, sent: { readonly [name: string]: string }, assigned: Installation): Promise<void> {
  const known = await held.recall("installation");
  if (known && valueOf(known) === sent[DEVICE]) await held.remember("installation", assigned);
}

/** Counts a response that was applied or given up. Call it in the same transaction. */
export async function advance(held: Held): Promise<void> {
  const known = await held.recall("installation");
  if (known) await held.remember("installation", { ...known, counter: known.counter + 1 });
}

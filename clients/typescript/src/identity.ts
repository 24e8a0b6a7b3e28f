/**
 * Whose rows a store holds, and which installation of the app it is. Every call says both, so that a token of another
 * user is refused before a row is read, and so that the server can tell two phones with one token apart.
 */
import { RollcallError } from "./error.js";
import type { Held } from "./held.js";
import { newKey } from "./key.js";

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

const DEVICE = "Sync-Device";

export const otherUser = (whose: string) =>
  new RollcallError("other_user", `the rows here are those of ${whose}: open another store, or wipe this one`);

/** What `Sync-For` says. */
export const boundTo = ({ user, owner }: Me) => `${user}.${owner}`;

/** Binds the store to a user and an owner, for as long as it is not wiped. Throws `other_user`. */
export async function bind(held: Held, me: Me): Promise<void> {
  const [bound, mine] = [await held.recall("bound"), boundTo(me)];
  if (bound !== undefined && bound !== mine) throw otherUser("another user");
  await held.remember("bound", mine);
  if (!(await held.recall("installation"))) await held.remember("installation", { id: newKey(), counter: 0 });
}

/** The headers that every call has beside its token; null of a store that is not bound yet. */
export async function headersOf(held: Held): Promise<{ [name: string]: string } | null> {
  const [bound, made] = [await held.recall("bound"), await held.recall("installation")];
  return bound === undefined || !made ? null : { "Sync-For": bound, [DEVICE]: `${made.id}.${made.counter}` };
}

/** The installation that an answer names: this store turned out to be a copy, and goes on under an id of its own. */
export function named(sent: { readonly [name: string]: string }, header: (name: string) => string | null): Installation | null {
  const said = header(DEVICE);
  const found = said === null || said === sent[DEVICE] ? null : /^([0-9a-f-]{36})\.(\d{1,15})$/i.exec(said);
  return found && { id: found[1]!.toLowerCase(), counter: Number(found[2]) };
}

/** Takes that installation over, unless another answer has been quicker. */
export async function adopt(held: Held, sent: { readonly [name: string]: string }, made: Installation): Promise<void> {
  const known = await held.recall("installation");
  if (known && `${known.id}.${known.counter}` === sent[DEVICE]) await held.remember("installation", made);
}

/** One more answer is applied, or will never be. In the transaction that says so. */
export async function advance(held: Held): Promise<void> {
  const made = await held.recall("installation");
  if (made) await held.remember("installation", { ...made, counter: made.counter + 1 });
}

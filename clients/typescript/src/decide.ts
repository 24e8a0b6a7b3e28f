/**
 * What a device decides. Pure: no store, no network, no clock. The same rules as the reference device's; the
 * cases in `fixtures/device` hold both to them.
 *
 * Two times belong to a row. `at` is the state that the server holds, as it last told it; `base` is the state
 * that the user's edit was made on. They differ when others change a row that is edited here: the edit stays,
 * and goes up with its old `base`, so that the server sees the conflict and decides it.
 */
import type { RowState, Verdict } from "./types.js";

/**
 * What an edit was made on that knew of no row of the server's: a state that no row ever has. Not the edit's own
 * time, which may be the server's row's as well.
 */
export const NO_STATE = 0;

/** What a device knows of a row, its contents aside. Times are ms since 1970; null is none. */
export interface Local {
  readonly state: RowState;
  readonly at: number | null;
  readonly base: number | null;
  readonly editedAt: number | null;
}

/** Whose contents a row has: ours, the server's, or the server's with what was changed since on it. */
export type Contents = "mine" | "theirs" | "mine_over_theirs";

/** What becomes of a local row; without `local` the device drops it. */
export interface Outcome {
  readonly local: Local | null;
  readonly contents: Contents;
}

export type Operation = "add" | "update" | "delete";

const DROP: Outcome = { local: null, contents: "mine" };
const of = (local: Local, contents: Contents = "mine"): Outcome => ({ local, contents });

/** A clean row whose contents have to be asked for. `held` is the state that the device knows. */
export const unsure = (held: number | null): Local => ({ state: "clean", at: null, base: held, editedAt: null });

/**
 * A clean row that the server gave in the state `held` and may have lost since: it waits to be put back. The server
 * holds the older state `at`, or no row.
 */
export const putBackOf = (held: number | null, at: number | null): Local => ({
  ...{ state: at === null ? "added" : "edited", at, base: held, editedAt: null },
});

/** Whether it waits only because the server may have lost it, and not since its user changed it. */
export const isPutBack = ({ state, editedAt }: Pick<Local, "state" | "editedAt">): boolean =>
  (state === "added" || state === "edited") && editedAt === null;

/** The state whose contents the device has, of a row that its user has not changed. */
export const heldOf = (local: Local): number | null => (isPutBack(local) ? local.base : (local.at ?? local.base));

/** A row just as the server told it. */
export const clean = (at: number | null): Local => ({ state: "clean", at, base: null, editedAt: null });

/**
 * Whether all columns go up, or only the changed ones. Half a row can neither be made nor be brought back, so a
 * row that the server does not hold goes up whole.
 */
export const goesWhole = (local: Local): boolean => local.state !== "edited" || local.at === null || isPutBack(local);

/** What to do about one table after the roll call, by key ascending. */
export interface Plan {
  add: string[];
  update: string[];
  delete: string[];
  /** Send these as states that the server gave and may have lost: with `put_back`, before anything else. */
  put_back: string[];
  get: string[];
  /** Delete these here, at once. */
  drop: string[];
  /** Remember this of these rows, at once: the server holds another state than was known, or may. */
  note: [string, Local][];
}

/**
 * Whether the server's past is the one that the device knows. A server that was put back to a backup, or begun anew,
 * has forgotten states: what it does not hold is not deleted therefore. It may also have taken a state since that
 * another device made in the very moment of a forgotten one: then one time names two states.
 */
export type Epoch = "same" | "earlier";

/** An owner of the server's, as far as a device knows. */
export interface Known {
  readonly epoch: number | null;
  readonly version: number;
}

/**
 * Compares what a device remembers of its last complete look at the server with what the server says now. `known` is
 * null if the device holds nothing of any server.
 */
export const past = (known: Known | null, now: Known): Epoch =>
  known && (known.epoch !== now.epoch || now.version < known.version) ? "earlier" : "same";

/** Compares the roll call of a table with the local rows. `complete`: the last page has come. */
export function compare(
  theirs: ReadonlyMap<string, number>,
  mine: ReadonlyMap<string, Local>,
  epoch: Epoch,
  complete: boolean,
): Plan {
  const plan: Plan = { add: [], update: [], delete: [], put_back: [], get: [], drop: [], note: [] };
  const send = (key: string, known: Local, { local }: Outcome) => {
    if (!local) return plan.drop.push(key);
    if (!same(local, known)) plan.note.push([key, local]);
    if (isPutBack(local)) return plan.put_back.push(key);
    if (local.state === "added") return plan.add.push(key);
    return local.state === "deleted" ? plan.delete.push(key) : plan.update.push(key);
  };
  for (const key of [...theirs.keys()].sort()) {
    const at = theirs.get(key)!;
    const local = mine.get(key);
    if (!local) plan.get.push(key);
    else if (isUsers(local)) send(key, local, apply(local, at, epoch));
    else {
      const held = heldOf(local);
      // A row that nobody changed here is only newer than the server's if the server forgot it.
      if (held !== null && held > at) send(key, local, of(putBackOf(held, at)));
      else if (epoch === "earlier" || !same(local, clean(at))) {
        if (held === at && epoch === "earlier") plan.note.push([key, unsure(held)]); // to be asked for until it has come
        plan.get.push(key);
      }
    }
  }
  if (complete) {
    for (const key of [...mine.keys()].sort()) if (!theirs.has(key)) send(key, mine.get(key)!, absent(mine.get(key)!, epoch));
  }
  plan.put_back.sort();
  return plan;
}

const same = (a: Local, b: Local) =>
  a.state === b.state && a.at === b.at && a.base === b.base && a.editedAt === b.editedAt;

/** Whether its user changed it and no server has judged that yet. */
const isUsers = (local: Local) => local.state !== "clean" && !isPutBack(local);

/**
 * What becomes of a row that a complete list of the server's rows does not have. A clean row was deleted there if the
 * server's past is the one that the device knows; else it may have been forgotten, and is put back. A row that was
 * synced once and edited since was deleted there against edited here: a conflict, and not ours to decide.
 */
export function absent(local: Local, epoch: Epoch): Outcome {
  if (isPutBack(local) || (local.state === "clean" && epoch === "earlier")) return of(putBackOf(heldOf(local), null));
  return local.state === "clean" || local.state === "deleted" ? DROP : of({ ...local, at: null });
}

/** What becomes of a row of which the server tells a state; `told` null: it was deleted. Edits always stay. */
export function apply(local: Local | null, told: number | null, epoch: Epoch): Outcome {
  if (!local || !isUsers(local)) {
    if (told === null) return DROP;
    const held = local && heldOf(local);
    const mayBeLost = local !== null && (epoch === "earlier" || isPutBack(local));
    return mayBeLost && held !== null && held > told ? of(putBackOf(held, told)) : of(clean(told), "theirs");
  }
  if (local.state === "deleted" && told === null) return DROP; // both deleted it
  // Someone else made a row under a key that was made here. Without a `base` ours would count as made in its
  // knowledge and replace it unasked: so say that ours was built on nothing.
  if (local.state === "added") return of({ ...local, at: told, state: "edited", base: local.base ?? NO_STATE });
  // The edit may not have been made on what the server holds under that time. If all of the row goes up, both
  // sides are the same afterwards, whatever it was.
  const doubtful = epoch === "earlier" || local.at === null;
  if (doubtful && local.state === "edited" && local.base === told) return of({ ...local, at: null });
  return of({ ...local, at: told });
}

/** What the device had sent of a row. */
export interface Sent {
  readonly operation: Operation;
  /** All columns that the device has, or the changed ones alone. */
  readonly whole: boolean;
  /** Whether every declared column was there, so that the server had none to fill in. */
  readonly complete: boolean;
  /** Whether the user changed the row again after the request was made. */
  readonly editedSince: boolean;
}

/** What the server said of it. `row`: whether the server's row came along. */
export interface Told {
  readonly verdict: Verdict;
  readonly at: number | null;
  readonly row: boolean;
}

/** What becomes of a row after its verdict. It settles what was sent; what the user did since stays. */
export function obey(local: Local, sent: Sent, told: Told): Outcome {
  const { at, row, verdict } = told;
  const deleted = local.state === "deleted";
  const settled = (base: number | null) =>
    sent.editedSince
      ? of({ ...local, state: deleted ? "deleted" : "edited", at, base }, row ? "mine_over_theirs" : "mine")
      : of(clean(at), row ? "theirs" : "mine");
  // It stays for its user to mend; so does a row that is put back and that the server cannot take.
  if (verdict === "rejected") return of({ ...local, at: row ? at : null }); // a live row always comes along
  // The server's row won. An edit made since did not know that row, so its base stays the old one.
  if (verdict === "kept" && row) return settled(local.base ?? at);
  if (sent.operation === "delete") {
    if (verdict !== "deleted" && verdict !== "same" && verdict !== "gone" && verdict !== "absent") return of(local);
    // Deleted as asked; unless it was brought back since, in full knowledge of the deletion.
    return sent.editedSince ? of({ ...local, state: "added", at: null, base: at }) : DROP;
  }
  switch (verdict) {
    case "same":
      // It had arrived before, and the answer was lost that said what the server filled in: ask for the row.
      if (sent.operation === "add" && !row && !sent.complete && !sent.editedSince) return of(unsure(at));
      return settled(at);
    case "added":
    case "updated":
    case "merged":
      return settled(at);
    case "gone":
      // With a part of the row the server could not have brought it back whatever the policy says, and an edit
      // made since it has not seen: it decides once more, over the whole row.
      if (deleted || (sent.whole && !sent.editedSince)) return DROP;
      return of({ ...local, state: "edited", at: null, base: local.base ?? NO_STATE });
    case "absent":
      // Nobody remembers the row, not even that it was deleted: the edit is all there is of it.
      return deleted ? DROP : of({ ...local, state: "added", at: null, base: isPutBack(local) ? local.base : null });
    default:
      return of(local); // no server says this; losing nothing is the safe reading
  }
}

/**
 * When a row that the server rejected may go up again as it is: `later`, and its user has nothing to mend;
 * `with_others`, when the rows that it is about may have changed; or once its user has `edited` it.
 */
export type Again = "later" | "with_others" | "edited";

/** Reads off a rejection when the row may go up again. `timed`: whether the server said after how long. */
export function again(code: string, timed: boolean): Again {
  if (timed) return "later";
  return code === "reference_missing" || code === "still_referenced" ? "with_others" : "edited";
}

/** What moves the cursor, or does not. */
export type Heard =
  /** The answer to a push that had a `base`. `complete`: the copy is all of what that base was. */
  | { readonly pushed: { readonly version: number; readonly complete: boolean } }
  /** A page of the change feed, applied. */
  | { readonly page: { readonly version: number; readonly more: boolean } }
  /** 410: the server cannot say what changed since the cursor. */
  | "expired"
  /**
   * A roll call that was compared with the copy. What it asks for is still to come, and is known ahead of any cursor
   * from before: were it deleted until then, no feed would mention it.
   */
  | "compared";

/** Where the cursor stands after an answer. It moves in the transaction that applies the answer. */
export function cursorAfter(cursor: number | null, heard: Heard): number | null {
  if (heard === "expired" || heard === "compared") return null;
  if ("pushed" in heard) return heard.pushed.complete ? heard.pushed.version : cursor;
  return heard.page.more ? cursor : heard.page.version;
}

const PAUSE_FIRST_MS = 250;
const PAUSE_MAX_MS = 30_000;
/** Whoever is told to come back later than this says so to the user instead of waiting. */
const RETRY_AFTER_MAX_MS = 60_000;
/** Devices that were all sent away by one lock come back spread over this time. */
const SPREAD_MS = 1_000;

/**
 * The pause after the failed attempt of that number, from 1: exponential, with full jitter, but never shorter
 * than what the server asks for. Null: give up. `random` is in [0, 1).
 */
export function pauseMs(attempt: number, attemptsMax: number, retryAfterS: number | null, random: number): number | null {
  if (attempt >= attemptsMax) return null;
  if (retryAfterS === null) return Math.floor(random * (Math.min(PAUSE_FIRST_MS * 2 ** attempt, PAUSE_MAX_MS) + 1));
  const asked = retryAfterS * 1_000;
  return asked > RETRY_AFTER_MAX_MS ? null : asked + Math.floor(random * SPREAD_MS);
}

/** The pause before the lock is asked for again. `waitedMs`: so far. Null: give up. */
export function lockPauseMs(waitedMs: number, waitMaxMs: number, retryAfterS: number | null, random: number): number | null {
  const pause = Math.min((retryAfterS ?? 1) * 1_000, RETRY_AFTER_MAX_MS) + Math.floor(random * SPREAD_MS);
  return waitedMs + pause <= waitMaxMs ? pause : null;
}

/**
 * The decisions of a device. They are pure: no store, no network, no clock. The reference device has the same rules
 * (`crates/device/src/decide.rs`); the cases in `fixtures/device` test both.
 *
 * A row has two times. `at` is the state that the server holds, as it last reported it. `base` is the state on which
 * the user's edit was made. They differ when other devices change a row that is edited here: the edit stays, and is
 * sent with its old `base`, so that the server detects the conflict and decides it.
 */
import type { RowState, Verdict } from "./types.js";

/**
 * The base of an edit that was made without any row of the server: a state that no row ever has. The edit's own time
 * would not do, since it may also be that of the server's row.
 */
export const NO_STATE = 0;

/** What a device knows of a row, apart from its contents. Times are ms since 1970; null is none. */
export interface Local {
  readonly state: RowState;
  readonly at: number | null;
  readonly base: number | null;
  readonly editedAt: number | null;
}

/** The source of a row's contents: the device, the server, or the server with the columns over it that were changed since. */
export type Contents = "mine" | "theirs" | "mine_over_theirs";

/** The outcome for a local row. If `local` is null, the device drops the row. */
export interface Outcome {
  readonly local: Local | null;
  readonly contents: Contents;
}

export type Operation = "add" | "update" | "delete";

const DROP: Outcome = { local: null, contents: "mine" };
const of = (local: Local, contents: Contents = "mine"): Outcome => ({ local, contents });

/** A clean row whose contents must be requested. `held` is the state that the device knows. */
export const unsure = (held: number | null): Local => ({ state: "clean", at: null, base: held, editedAt: null });

/**
 * A clean row that the server returned in the state `held` and may have lost since: it waits to be put back. The
 * server holds the older state `at`, or no row.
 */
export const putBackOf = (held: number | null, at: number | null): Local => ({
  ...{ state: at === null ? "added" : "edited", at, base: held, editedAt: null },
});

/** Whether it waits only because the server may have lost it, and not because its user changed it. */
export const isPutBack = ({ state, editedAt }: Pick<Local, "state" | "editedAt">): boolean =>
  (state === "added" || state === "edited") && editedAt === null;

/** The state of the device's contents, for a row that its user has not changed. */
export const heldOf = (local: Local): number | null => (isPutBack(local) ? local.base : (local.at ?? local.base));

/** A row in the state that the server reported. */
export const clean = (at: number | null): Local => ({ state: "clean", at, base: null, editedAt: null });

/**
 * Whether all of its columns are sent, or only the changed ones. A partial row can neither be created nor revived, so
 * a row that the server may not hold is sent whole.
 */
export const goesWhole = (local: Local): boolean => local.state !== "edited" || local.at === null || isPutBack(local);

/** The plan for one table after the manifest, by key ascending. */
export interface Plan {
  add: string[];
  update: string[];
  delete: string[];
  /** Send these as states that the server returned and may have lost: with `put_back`, before everything else. */
  put_back: string[];
  /** Request these. */
  get: string[];
  /** Delete these here, at once. */
  drop: string[];
  /** Store this about these rows, at once: the server holds another state than was known, or may. */
  note: [string, Local][];
}

/**
 * Whether the server's past is the one that the device knows. A server that was put back to a backup, or started anew,
 * has lost states, so a row that it does not hold need not be deleted. It may also have accepted a state that another
 * device made at the same time as a lost one: then one time denotes two states.
 */
export type Epoch = "same" | "earlier";

/** An owner's state on the server: the epoch (null from a server that does not report it) and the version. */
export interface Known {
  readonly epoch: number | null;
  readonly version: number;
}

/**
 * Compares the device's last complete view of the server with the server's present state. `known` is null if the
 * device holds no data of any server.
 */
export const past = (known: Known | null, now: Known): Epoch =>
  known && (known.epoch !== now.epoch || now.version < known.version) ? "earlier" : "same";

/** Compares the manifest of a table with the local rows. `complete`: the last page has arrived. */
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
      // A row without a local change is newer than the server's only if the server lost the state.
      if (held !== null && held > at) send(key, local, of(putBackOf(held, at)));
      else if (epoch === "earlier" || !same(local, clean(at))) {
        if (held === at && epoch === "earlier") plan.note.push([key, unsure(held)]); // it must be requested until it has arrived
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
 * The outcome for a row that is missing from a complete list of the server's rows. A clean row was deleted there if
 * the server's past is the one that the device knows. Otherwise the row may have been lost, and is put back. A row
 * that was synced once and edited since was deleted there and edited here: a conflict, which the server decides.
 */
export function absent(local: Local, epoch: Epoch): Outcome {
  if (isPutBack(local) || (local.state === "clean" && epoch === "earlier")) return of(putBackOf(heldOf(local), null));
  return local.state === "clean" || local.state === "deleted" ? DROP : of({ ...local, at: null });
}

/** The outcome for a row after a state from the server; `at` null: the row was deleted. An edit without a verdict stays. */
export function apply(local: Local | null, at: number | null, epoch: Epoch): Outcome {
  if (!local || !isUsers(local)) {
    if (at === null) return DROP;
    const held = local && heldOf(local);
    const mayBeLost = local !== null && (epoch === "earlier" || isPutBack(local));
    return mayBeLost && held !== null && held > at ? of(putBackOf(held, at)) : of(clean(at), "theirs");
  }
  if (local.state === "deleted" && at === null) return DROP; // both sides deleted it
  // Another device created a row under this key. Without a `base` the local row would count as made with knowledge
  // of it and replace it, so it states that it was built on nothing.
  if (local.state === "added") return of({ ...local, at, state: "edited", base: local.base ?? NO_STATE });
  // The edit may not have been made on the server's state of that time. If the row is sent whole, both sides are
  // equal afterwards, whatever that state was.
  const doubtful = epoch === "earlier" || local.at === null;
  if (doubtful && local.state === "edited" && local.base === at) return of({ ...local, at: null });
  return of({ ...local, at });
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

/** The server's result for a row. `row`: whether the response contained the server's row. */
export interface RowResult {
  readonly verdict: Verdict;
  readonly at: number | null;
  readonly row: boolean;
}

/** The outcome for a row after its verdict. It settles what was sent; later changes of the user stay. */
export function applyVerdict(local: Local, sent: Sent, { at, row, verdict }: RowResult): Outcome {
  const deleted = local.state === "deleted";
  const settled = (base: number | null) =>
    sent.editedSince
      ? of({ ...local, state: deleted ? "deleted" : "edited", at, base }, row ? "mine_over_theirs" : "mine")
      : of(clean(at), row ? "theirs" : "mine");
  // It stays here for its user to correct. A row that is put back stays too if the server cannot accept it. The
  // response contains a live row, but never a tombstone.
  if (verdict === "rejected") return of({ ...local, at: row ? at : null });
  // The server's row won. A later edit did not know that row, so its base stays the old one.
  if (verdict === "kept" && row) return settled(local.base ?? at);
  if (sent.operation === "delete") {
    if (verdict !== "deleted" && verdict !== "same" && verdict !== "gone" && verdict !== "absent") return of(local);
    // The row is deleted, as requested, unless it was restored since, with knowledge of the deletion.
    return sent.editedSince ? of({ ...local, state: "added", at: null, base: at }) : DROP;
  }
  switch (verdict) {
    case "same":
      // The row had arrived before, and the response with the filled-in columns was lost: the row must be requested.
      if (sent.operation === "add" && !row && !sent.complete && !sent.editedSince) return of(unsure(at));
      return settled(at);
    case "added":
    case "updated":
    case "merged":
      return settled(at);
    case "gone":
      // The server could not have revived a partial row under any policy, and has not seen a later edit: it decides
      // again, about the whole row.
      if (deleted || (sent.whole && !sent.editedSince)) return DROP;
      return of({ ...local, state: "edited", at: null, base: local.base ?? NO_STATE });
    case "absent":
      // The server has neither the row nor a tombstone: the edit is all that exists of it.
      return deleted ? DROP : of({ ...local, state: "added", at: null, base: isPutBack(local) ? local.base : null });
    default:
      return of(local); // no server returns this; keeping the row is the safe reaction
  }
}

/**
 * When a rejected row may be sent again: `later`, unchanged and without a correction; `with_others`, unchanged, since
 * the rows that it depends on may have changed; or once its user has `edited` it.
 */
export type RetryWhen = "later" | "with_others" | "edited";

/** Determines it from a rejection's `code`. `timed`: whether the rejection had a `retry_after_s`. */
export function retryWhen(code: string, timed: boolean): RetryWhen {
  if (timed) return "later";
  return code === "reference_missing" || code === "still_referenced" ? "with_others" : "edited";
}

/** An event that may move the cursor. */
export type CursorEvent =
  /** The response to a push with a `base`. `complete`: the device has a complete copy of that base. */
  | { readonly pushed: { readonly version: number; readonly complete: boolean } }
  /** A page of the change feed, applied. */
  | { readonly page: { readonly version: number; readonly more: boolean } }
  /** 410: the server no longer knows what changed since the cursor. */
  | "expired"
  /**
   * A manifest that was compared with the copy. The rows that it requests arrive later and ahead of any earlier
   * cursor: if they were deleted before then, no feed would mention that.
   */
  | "compared";

/** The cursor after a response. It must be stored in the transaction that applies the response. */
export function cursorAfter(cursor: number | null, event: CursorEvent): number | null {
  if (event === "expired" || event === "compared") return null;
  if ("pushed" in event) return event.pushed.complete ? event.pushed.version : cursor;
  return event.page.more ? cursor : event.page.version;
}

const PAUSE_FIRST_MS = 250;
const PAUSE_MAX_MS = 30_000;
/** If the server asks for a longer pause, the client reports the error instead of waiting. */
const RETRY_AFTER_MAX_MS = 60_000;
/** Devices that waited for one lock retry spread over this time. */
const SPREAD_MS = 1_000;

/**
 * The pause after the failed attempt of that number, from 1: exponential backoff with full jitter, but never shorter
 * than the server's `Retry-After`. Null: give up. `random` is in [0, 1).
 */
export function pauseMs(attempt: number, attemptsMax: number, retryAfterS: number | null, random: number): number | null {
  if (attempt >= attemptsMax) return null;
  if (retryAfterS === null) return Math.floor(random * (Math.min(PAUSE_FIRST_MS * 2 ** attempt, PAUSE_MAX_MS) + 1));
  const least = retryAfterS * 1_000;
  return least > RETRY_AFTER_MAX_MS ? null : least + Math.floor(random * SPREAD_MS);
}

/** The pause before the lock is requested again. `waitedMs`: so far. Null: give up. */
export function lockPauseMs(waitedMs: number, waitMaxMs: number, retryAfterS: number | null, random: number): number | null {
  const pause = Math.min((retryAfterS ?? 1) * 1_000, RETRY_AFTER_MAX_MS) + Math.floor(random * SPREAD_MS);
  return waitedMs + pause <= waitMaxMs ? pause : null;
}

/** @deprecated Earlier names. */
export { applyVerdict as obey, retryWhen as again };
/** @deprecated Earlier names. */
export type { RowResult as Told, RetryWhen as Again, CursorEvent as Heard };

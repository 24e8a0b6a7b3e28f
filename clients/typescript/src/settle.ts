/** Carries the rules' decisions out: one answer, one transaction. */
import { absent, apply, cursorAfter, isPutBack, obey, past, type Epoch, type Heard, type Outcome, type Plan } from "./decide.js";
import { columnsSent } from "./batch.js";
import { localOf, newRow, rejectionOf, shown, type Declared, type Held, type Outstanding, type SentRow } from "./held.js";
import { advance } from "./identity.js";
import { newKey, readKey } from "./key.js";
import { parseTime } from "./time.js";
import type { Answered, Changes, VerdictItem } from "./calls.js";
import type { Conflict, Rejection, Row, StoredRow, Verdict } from "./types.js";

/** Conflicts that are kept for an app that does not look at them. */
const CONFLICTS_MAX = 200;

/** What a sync did, in rows. */
export interface Tally {
  pushed: number;
  pulled: number;
  dropped: number;
  verdicts: Partial<Record<Verdict, number>>;
}

/** A row of an answer in its parts; null if it is no row of the table. */
export function parts(table: Declared, row: Row): { key: string; at: number; columns: Row } | null {
  const { [table.key]: id, last_update, ...columns } = row;
  const [key, at] = [readKey(id), parseTime(last_update)];
  return key === null || at === null ? null : { key, at, columns };
}

/** Takes an outcome over. `settled`: the last edit that the server has judged. */
function after(row: StoredRow, { local, contents }: Outcome, theirs: Row | null, settled: number, sent: Row | null): StoredRow | null {
  if (!local) return null;
  const changed = Object.fromEntries(Object.entries(row.changed).filter(([, edit]) => edit > settled));
  const next: StoredRow = { ...row, ...local, changed };
  delete next.doubtful;
  if (theirs && contents === "theirs") next.row = theirs;
  if (theirs && contents === "mine_over_theirs") {
    next.row = { ...theirs };
    for (const column of Object.keys(changed)) next.row[column] = row.row[column] ?? null;
  }
  if (local.state === "clean") {
    next.changed = {};
    delete next.baseRow;
    delete next.rejected;
  } else if (local.base !== row.base && settled) {
    next.baseRow = theirs ?? { ...row.baseRow, ...sent };
  }
  return next;
}

/** One transaction that applies what the server said. */
export class Settling {
  /** What this device lost. */
  readonly conflicts: Conflict[] = [];
  /** Rows that only would be rejected again. */
  readonly rejected: (Rejection & SentRow)[] = [];

  /** Whether the server's past is the one that the device knows, as far as this answer says. */
  private past: Epoch = "same";

  constructor(
    private readonly held: Held,
    private readonly tally: Tally,
    private readonly now: number,
    /** The epoch that the server is in. */
    private readonly epoch: number | null,
    /** The full feed under way: whatever the server tells meanwhile counts as mentioned by it. */
    private readonly feed: number | null,
  ) {}

  private put(was: StoredRow | undefined, row: StoredRow | null): Promise<void> {
    if (!was && !row) return Promise.resolve();
    return this.held.replace(was, row && this.feed !== null ? { ...row, seen: this.feed } : row);
  }

  private async each<T>(lists: { readonly [table: string]: readonly T[] } | undefined, work: (table: Declared, item: T) => Promise<void>) {
    for (const [name, items] of Object.entries(lists ?? {})) {
      const table = this.held.tables.get(name); // a server may have more tables by now
      if (table) await Promise.all(items.map((item) => work(table, item)));
    }
  }

  /** Obeys the verdicts of an answer, takes the rows that were asked for, and closes the request. */
  async report(sending: Outstanding, answer: Answered): Promise<void> {
    if (answer.changes?.type === "full") this.past = await this.pastAt(answer.changes.version);
    const sent = new Map(sending.sent.map((row) => [`${row.operation} ${row.table} ${row.key}`, row]));
    // The server's row comes once in an answer: a row that was asked for as well stands under `get` alone.
    const sentKeys = new Set(sending.sent.map((row) => `${row.table} ${row.key}`));
    const got = new Map<string, Row>();
    await this.each(answer.get, async (table, row) => {
      const name = `${table.name} ${readKey(row[table.key])}`;
      if (sentKeys.has(name)) got.set(name, row);
    });
    for (const operation of ["add", "update", "delete"] as const) {
      await this.each(answer[operation], async (table, item) => {
        const row = sent.get(`${operation} ${table.name} ${readKey(item[table.key])}`);
        const theirs = item.row ?? got.get(`${table.name} ${row?.key}`);
        if (row) await this.verdict(table, sending, row, theirs ? { ...item, row: theirs } : item);
      });
    }
    await this.each(answer.get, (table, row) => this.entry(table, row));
    // A row that has gone since it was listed; but one that waits here is not the server's to delete.
    await this.each(answer.missing, (table, key) => this.gone(table, key));
    // Only this very request: another one may have been made meanwhile.
    if ((await this.held.recall("outstanding"))?.key === sending.key) await this.held.remember("outstanding", undefined);
    await advance(this.held);
    if (this.conflicts.length) {
      const known = (await this.held.recall("conflicts")) ?? [];
      await this.held.remember("conflicts", [...this.conflicts, ...known].slice(0, CONFLICTS_MAX));
    }
  }

  private async verdict(table: Declared, sending: Outstanding, sent: SentRow, item: VerdictItem): Promise<void> {
    this.tally.verdicts[item.verdict] = (this.tally.verdicts[item.verdict] ?? 0) + 1;
    const row = await this.held.get(table.name, sent.key);
    if (!row) return;
    const theirs = item.row ? (parts(table, item.row)?.columns ?? null) : null;
    const at = parseTime(item.last_update);
    const columns = columnsSent(sending, sent, table.key);
    const { operation, whole, complete } = sent;
    const outcome = obey(
      localOf(row),
      { operation, whole, complete, editedSince: row.edit > sent.edit },
      { verdict: item.verdict, at, row: theirs !== null },
    );
    const judged = !["gone", "absent", "rejected"].includes(item.verdict);
    const lost = item.verdict === "kept" || (item.verdict === "gone" && !outcome.local);
    if (lost && item.verdict === "gone") this.tally.dropped++;
    if (judged && !lost) this.tally.pushed++;
    // The next roll call has to list a row of which nobody has told what it is.
    if (outcome.local && outcome.local.state === "clean" && outcome.local.at === null) await this.held.remember("etag", undefined);
    if ((lost || (item.verdict === "merged" && item.conflict)) && row.state !== "clean" && !isPutBack(row)) {
      this.conflicts.push({
        ...{ id: newKey(this.now), serverId: item.conflict ?? null, table: table.name, key: sent.key },
        ...{ verdict: item.verdict as Conflict["verdict"], lastUpdate: at, at: this.now },
        base: row.baseRow ? shown(table, sent.key, row.baseRow) : null,
        mine: columns && shown(table, sent.key, { ...row.row, ...columns }),
        theirs: theirs && shown(table, sent.key, theirs),
      });
    }
    const next = after(row, outcome, theirs, judged ? sent.edit : 0, columns);
    if (next && item.error && next.state !== "clean") {
      next.rejected = rejectionOf(item.error, this.now);
      this.rejected.push({ ...sent, ...next.rejected });
    }
    await this.put(row, next);
  }

  /** Takes a row that the server tells: asked for, or from the feed. */
  private async entry(table: Declared, told: Row): Promise<void> {
    const found = parts(table, told);
    if (!found) return;
    const { key, at, columns } = found;
    const row = await this.held.get(table.name, key);
    const outcome = apply(row ? localOf(row) : null, at, this.past);
    if (outcome.contents === "theirs" && row?.at !== at) this.tally.pulled++;
    await this.put(row, after(row ?? newRow(table.name, key), outcome, columns, 0, null));
  }

  private async gone(table: Declared, key: string): Promise<void> {
    const row = await this.held.get(table.name, key);
    if (row) await this.decided(row, apply(localOf(row), null, "same"));
  }

  private decided(row: StoredRow, outcome: Outcome): Promise<void> {
    if (!outcome.local) this.tally.dropped++;
    return this.put(row, after(row, outcome, null, 0, null));
  }

  /** Applies a page of the change feed. After the last page of a full one, what it did not mention is gone. */
  async page(page: Changes): Promise<void> {
    if (page.type === "full") {
      this.past = await this.pastAt(page.version);
      if (this.past === "same") await this.adopt(page.version);
    }
    for (const lists of [page.add, page.update]) await this.each(lists, (table, row) => this.entry(table, row));
    await this.each(page.delete, (table, key) => this.gone(table, key));
    const full = page.type === "full" && this.feed !== null;
    if (full && !page.more) {
      for (const name of this.held.tables.keys()) {
        for (const row of await this.held.all(name)) if (row.seen !== this.feed) await this.decided(row, absent(localOf(row), this.past));
      }
      await this.adopt(page.version); // what may have been forgotten is marked, row by row
    }
    const number = page.type === "full" ? this.feed : null;
    await this.held.remember("feed", page.more && page.next !== undefined ? { number, next: page.next } : undefined);
    if (page.type === "diff") await this.know(page.version);
    if (page.digests && typeof page.digests.as_of === "number") await this.know(page.digests.as_of);
    await this.heard({ page: { version: page.version, more: page.more === true } });
  }

  /** Does at once what the roll call's comparison asks for: drops rows, and notes what the server holds. */
  async plan(table: Declared, plan: Plan): Promise<void> {
    for (const key of plan.drop) {
      const row = await this.held.get(table.name, key);
      if (row) await this.decided(row, { local: null, contents: "mine" });
    }
    for (const [key, local] of plan.note) {
      const row = await this.held.get(table.name, key);
      if (row) await this.put(row, { ...row, ...local });
    }
  }

  /** Moves the cursor, or does not. Where it moves, the whole copy is of the server's epoch. */
  async heard(heard: Heard): Promise<void> {
    const cursor = (await this.held.recall("cursor")) ?? null;
    const moved = cursorAfter(cursor, heard);
    await this.held.remember("cursor", moved ?? undefined);
    if (heard === "expired" || heard === "compared") await this.held.remember("feed", undefined);
  }

  /** Whether the server, now at `version`, has the past that the device knows. */
  async pastAt(version: number): Promise<Epoch> {
    const [epoch, known, cursor] = await Promise.all([this.held.recall("epoch"), this.held.recall("known"), this.held.recall("cursor")]);
    const nothing = epoch === undefined && known === undefined && cursor === undefined;
    return past(nothing ? null : { epoch: epoch ?? null, version: known ?? cursor ?? 0 }, { epoch: this.epoch, version });
  }

  /** Remembers that the owner has reached a version, in the past that the device knows. */
  async know(version: number): Promise<void> {
    const [epoch, known] = await Promise.all([this.held.recall("epoch"), this.held.recall("known")]);
    if ((epoch ?? null) === this.epoch && version > (known ?? 0)) await this.held.remember("known", version);
  }

  /**
   * Takes the server's past for the device's own from here on: what the device knows beyond it is marked row by row,
   * in the same transaction. Gives what it was to the device before. `doubt`: the digests say that it is another.
   */
  async adopt(version: number, doubt = false): Promise<Epoch> {
    const before = doubt ? "earlier" : await this.pastAt(version);
    if (before === "earlier") {
      await this.held.remember("seed", undefined); // a server that was begun anew draws another one
      await this.held.remember("etag", undefined);
    }
    const known = before === "same" ? ((await this.held.recall("known")) ?? 0) : 0;
    if (this.epoch !== null) await this.held.remember("epoch", this.epoch);
    await this.held.remember("known", Math.max(known, version));
    return before;
  }
}

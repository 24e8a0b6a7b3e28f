/** Applies responses to the store by the rules of `decide`: one response, one transaction. */
import { absent, apply, applyVerdict, cursorAfter, isPutBack, past, type CursorEvent, type Epoch, type Outcome, type Plan } from "./decide.js";
import { columnsSent } from "./batch.js";
import { localOf, newRow, rejectionOf, shown, type Declared, type Held, type Outstanding, type SentRow } from "./held.js";
import { advance } from "./identity.js";
import { newKey, readKey } from "./key.js";
import { parseTime } from "./time.js";
import type { Changes, SyncResponse, VerdictItem } from "./calls.js";
import type { Conflict, Rejection, Row, StoredRow, Verdict } from "./types.js";

/** The store keeps that many conflicts, the newest, if the app does not resolve them. */
const CONFLICTS_MAX = 200;

/** Counts the rows of a sync. */
export interface Tally {
  pushed: number;
  pulled: number;
  dropped: number;
  verdicts: Partial<Record<Verdict, number>>;
}

/** Splits a row of a response; null if it is no row of the table. */
export function parts(table: Declared, row: Row): { key: string; at: number; columns: Row } | null {
  const { [table.key]: id, last_update, ...columns } = row;
  const [key, at] = [readKey(id), parseTime(last_update)];
  return key === null || at === null ? null : { key, at, columns };
}

/**
 * The stored row after an outcome; null if the device drops it. `theirs`: the server's columns, if it sent them.
 * `settled`: the last edit with a verdict. `sent`: the columns that were sent.
 */
function rowAfter(row: StoredRow, { local, contents }: Outcome, theirs: Row | null, settled: number, sent: Row | null): StoredRow | null {
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

/** One transaction that applies a response. */
export class Settling {
  /** The edits that this device lost. */
  readonly conflicts: Conflict[] = [];
  /** The rows that the server rejected. */
  readonly rejected: (Rejection & SentRow)[] = [];

  /** Whether the server's past is the one that the device knows, according to this response. */
  private past: Epoch = "same";

  constructor(
    private readonly held: Held,
    private readonly tally: Tally,
    private readonly now: number,
    /** The server's epoch. */
    private readonly epoch: number | null,
    /** The full feed that is being read: every row that the server returns meanwhile counts as a part of it. */
    private readonly feed: number | null,
  ) {}

  private put(was: StoredRow | undefined, row: StoredRow | null): Promise<void> {
    if (!was && !row) return Promise.resolve();
    return this.held.replace(was, row && this.feed !== null ? { ...row, seen: this.feed } : row);
  }

  private async each<T>(lists: { readonly [table: string]: readonly T[] } | undefined, work: (table: Declared, item: T) => Promise<void>) {
    for (const [name, items] of Object.entries(lists ?? {})) {
      const table = this.held.tables.get(name); // a newer server may have more tables
      if (table) await Promise.all(items.map((item) => work(table, item)));
    }
  }

  /** Applies the verdicts of a response and the rows that were requested, and closes the request. */
  async applyResponse(sending: Outstanding, response: SyncResponse): Promise<void> {
    if (response.changes?.type === "full") this.past = await this.pastAt(response.changes.version);
    const sent = new Map(sending.sent.map((row) => [`${row.operation} ${row.table} ${row.key}`, row]));
    // A response contains the server's row once: if it was sent and requested, only under `get`.
    const sentKeys = new Set(sending.sent.map((row) => `${row.table} ${row.key}`));
    const requested = new Map<string, Row>();
    await this.each(response.get, async (table, row) => {
      const name = `${table.name} ${readKey(row[table.key])}`;
      if (sentKeys.has(name)) requested.set(name, row);
    });
    for (const operation of ["add", "update", "delete"] as const) {
      await this.each(response[operation], async (table, item) => {
        const row = sent.get(`${operation} ${table.name} ${readKey(item[table.key])}`);
        const theirs = item.row ?? requested.get(`${table.name} ${row?.key}`);
        if (row) await this.settleRow(table, sending, row, theirs ? { ...item, row: theirs } : item);
      });
    }
    await this.each(response.get, (table, row) => this.applyRow(table, row));
    // A row that was deleted since it was listed. An edit that waits here stays.
    await this.each(response.missing, (table, key) => this.applyDeletion(table, key));
    // Another request may have been made meanwhile; it stays outstanding.
    if ((await this.held.recall("outstanding"))?.key === sending.key) await this.held.remember("outstanding", undefined);
    await advance(this.held);
    if (this.conflicts.length) {
      const known = (await this.held.recall("conflicts")) ?? [];
      await this.held.remember("conflicts", [...this.conflicts, ...known].slice(0, CONFLICTS_MAX));
    }
  }

  /** Applies the verdict on one row that was sent. */
  private async settleRow(table: Declared, sending: Outstanding, sent: SentRow, item: VerdictItem): Promise<void> {
    this.tally.verdicts[item.verdict] = (this.tally.verdicts[item.verdict] ?? 0) + 1;
    const row = await this.held.get(table.name, sent.key);
    if (!row) return;
    const theirs = item.row ? (parts(table, item.row)?.columns ?? null) : null;
    const at = parseTime(item.last_update);
    const columns = columnsSent(sending, sent, table.key);
    const { operation, whole, complete } = sent;
    const outcome = applyVerdict(
      localOf(row),
      { operation, whole, complete, editedSince: row.edit > sent.edit },
      { verdict: item.verdict, at, row: theirs !== null },
    );
    const isSettled = !["gone", "absent", "rejected"].includes(item.verdict);
    const lost = item.verdict === "kept" || (item.verdict === "gone" && !outcome.local);
    if (lost && item.verdict === "gone") this.tally.dropped++;
    if (isSettled && !lost) this.tally.pushed++;
    // The next manifest has to list a row whose contents are unknown.
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
    const next = rowAfter(row, outcome, theirs, isSettled ? sent.edit : 0, columns);
    if (next && item.error && next.state !== "clean") {
      next.rejected = rejectionOf(item.error, this.now);
      this.rejected.push({ ...sent, ...next.rejected });
    }
    await this.put(row, next);
  }

  /** Applies a row that was requested, or that the feed contains. */
  private async applyRow(table: Declared, received: Row): Promise<void> {
    const found = parts(table, received);
    if (!found) return;
    const { key, at, columns } = found;
    const row = await this.held.get(table.name, key);
    const outcome = apply(row ? localOf(row) : null, at, this.past);
    if (outcome.contents === "theirs" && row?.at !== at) this.tally.pulled++;
    await this.put(row, rowAfter(row ?? newRow(table.name, key), outcome, columns, 0, null));
  }

  private async applyDeletion(table: Declared, key: string): Promise<void> {
    const row = await this.held.get(table.name, key);
    if (row) await this.applyOutcome(row, apply(localOf(row), null, "same"));
  }

  private applyOutcome(row: StoredRow, outcome: Outcome): Promise<void> {
    if (!outcome.local) this.tally.dropped++;
    return this.put(row, rowAfter(row, outcome, null, 0, null));
  }

  /** Applies a page of the change feed. After the last page of a full feed, rows that it did not contain are absent. */
  async applyPage(page: Changes): Promise<void> {
    if (page.type === "full") {
      this.past = await this.pastAt(page.version);
      if (this.past === "same") await this.adoptPast(page.version);
    }
    for (const lists of [page.add, page.update]) await this.each(lists, (table, row) => this.applyRow(table, row));
    await this.each(page.delete, (table, key) => this.applyDeletion(table, key));
    const full = page.type === "full" && this.feed !== null;
    if (full && !page.more) {
      for (const name of this.held.tables.keys()) {
        for (const row of await this.held.all(name)) if (row.seen !== this.feed) await this.applyOutcome(row, absent(localOf(row), this.past));
      }
      await this.adoptPast(page.version); // the rows that the server may have lost are marked by now
    }
    const number = page.type === "full" ? this.feed : null;
    await this.held.remember("feed", page.more && page.next !== undefined ? { number, next: page.next } : undefined);
    if (page.type === "diff") await this.noteVersion(page.version);
    if (page.digests && typeof page.digests.as_of === "number") await this.noteVersion(page.digests.as_of);
    await this.moveCursor({ page: { version: page.version, more: page.more === true } });
  }

  /** Applies the parts of a plan that need no request: it drops rows, and stores what the server holds. */
  async applyPlan(table: Declared, plan: Plan): Promise<void> {
    for (const key of plan.drop) {
      const row = await this.held.get(table.name, key);
      if (row) await this.applyOutcome(row, { local: null, contents: "mine" });
    }
    for (const [key, local] of plan.note) {
      const row = await this.held.get(table.name, key);
      if (row) await this.put(row, { ...row, ...local });
    }
  }

  /** Stores the cursor after an event. */
  async moveCursor(event: CursorEvent): Promise<void> {
    const cursor = (await this.held.recall("cursor")) ?? null;
    await this.held.remember("cursor", cursorAfter(cursor, event) ?? undefined);
    if (event === "expired" || event === "compared") await this.held.remember("feed", undefined);
  }

  /** Whether the server, now at `version`, has the past that the device knows. */
  async pastAt(version: number): Promise<Epoch> {
    const [epoch, known, cursor] = await Promise.all([this.held.recall("epoch"), this.held.recall("known"), this.held.recall("cursor")]);
    const isNew = epoch === undefined && known === undefined && cursor === undefined;
    return past(isNew ? null : { epoch: epoch ?? null, version: known ?? cursor ?? 0 }, { epoch: this.epoch, version });
  }

  /** Stores that the owner has reached a version, if the server is in the epoch that the device knows. */
  async noteVersion(version: number): Promise<void> {
    const [epoch, known] = await Promise.all([this.held.recall("epoch"), this.held.recall("known")]);
    if ((epoch ?? null) === this.epoch && version > (known ?? 0)) await this.held.remember("known", version);
  }

  /**
   * Stores the server's epoch and version as those that the device knows. The caller marks the rows that the server
   * may have lost, in the same transaction. Returns the relation to the past that the device knew before. `doubt`: the
   * digests differ, so the past is another one.
   */
  async adoptPast(version: number, doubt = false): Promise<Epoch> {
    const before = doubt ? "earlier" : await this.pastAt(version);
    if (before === "earlier") {
      await this.held.remember("seed", undefined); // a server that was started anew has another seed
      await this.held.remember("etag", undefined);
    }
    const known = before === "same" ? ((await this.held.recall("known")) ?? 0) : 0;
    if (this.epoch !== null) await this.held.remember("epoch", this.epoch);
    await this.held.remember("known", Math.max(known, version));
    return before;
  }
}

/** What the device holds, within one transaction: rows, the proofs of its tables, and what it remembers beside. */
import { Sum } from "./digest.js";
import type { VerdictItem } from "./calls.js";
import { again, type Local } from "./decide.js";
import type { Problem } from "./error.js";
import type { Installation } from "./identity.js";
import type { Conflict, Digest, Json, Rejection, Row, Store, StoredRow, StoreTxn, SyncReport, TableSpec, Tables, Way } from "./types.js";

/** A declared table, ready for use. */
export interface Declared {
  readonly name: string;
  readonly key: string;
  /** The declared columns; null: whatever the app puts. */
  readonly columns: readonly string[] | null;
  /** What a row shows in columns that it was told without: a new column, whose default the server filled in unsaid. */
  readonly blank: Row;
  readonly spec: TableSpec;
}

const blankOf = (spec: TableSpec): Row =>
  Object.fromEntries(
    Object.entries(spec.columns ?? {}).map(([name, column]) => {
      const said = typeof column === "string" ? undefined : column.default;
      return [name, said === "now" ? null : (said ?? null)]; // when it was filled in, only the server knows
    }),
  );

/** The tables by name, those that others refer to first. */
export function declare(tables: Tables): Map<string, Declared> {
  const sorted = new Map<string, Declared>();
  const visiting = new Set<string>();
  const visit = (name: string) => {
    const spec = tables[name];
    if (!spec || visiting.has(name)) return;
    visiting.add(name);
    for (const column of Object.values(spec.columns ?? {})) {
      if (typeof column === "object" && column.references) visit(column.references);
    }
    sorted.set(name, { name, key: spec.key, columns: spec.columns ? Object.keys(spec.columns) : null, blank: blankOf(spec), spec });
  };
  Object.keys(tables).sort().forEach(visit);
  return sorted;
}

/** A row of an outstanding request. */
export interface SentRow {
  readonly table: string;
  readonly key: string;
  readonly operation: "add" | "update" | "delete";
  readonly whole: boolean;
  readonly complete: boolean;
  /** The edit that is in the request; a later one is not settled by the answer. */
  readonly edit: number;
}

/**
 * A request whose answer has not been applied. Written before it is sent, removed in the transaction that
 * applies the answer: after a lost answer or a reload the same goes up again under the same key.
 */
export interface Outstanding {
  readonly key: string;
  /** Without `sent_at`: that is the time of each sending, and the server leaves it out when it compares bodies. */
  readonly body: { readonly [member: string]: Json };
  readonly sent: readonly SentRow[];
}

/** What is remembered beside rows. */
export interface Meta {
  cursor: number;
  /** The epoch of the server that the rows are of. */
  epoch: number;
  /** The latest version of the server's that the device has seen in that epoch. */
  known: number;
  seed: string;
  /** By table; only once the seed is known. */
  digests: { [table: string]: Digest };
  edits: number;
  outstanding: Outstanding;
  etag: string;
  /** Bytes of a request that does not take too long on this device's line; none: as many as the server takes. */
  pace: number;
  limits: { rows: number; keys: number; bytes: number; precision: "seconds" | "milliseconds" };
  /** The feed under way: the mark of its next page and, of a full one, its number. */
  feed: { number: number | null; next: string };
  feeds: number;
  conflicts: Conflict[];
  token: string;
  email: string;
  device_id: string;
  /** The user and the owner whose rows these are, as `GET /me` names them, with a dot between. */
  bound: string;
  installation: Installation;
  synced: { began: number; at: number; report: SyncReport; way: Way };
  turn: { holder: string; until: number };
  login: { holder: string; until: number };
}

export const localOf = ({ state, at, base, editedAt }: StoredRow): Local => ({ state, at, base, editedAt });

export const newRow = (table: string, key: string): StoredRow => ({
  ...{ table, key, state: "clean", at: null, base: null, editedAt: null },
  ...{ edit: 0, row: {}, changed: {} },
});

/** Rejected for the sake of other rows, which may have changed by the next sync. */
export const isAboutOthers = ({ code, retryAt }: Rejection) => again(code, retryAt !== undefined) === "with_others";

/** Whether a rejected row may be sent once more as it is. */
export const mayTryAgain = (rejected: Rejection, now: number) =>
  isAboutOthers(rejected) || (rejected.retryAt !== undefined && rejected.retryAt <= now);

/** Why a row was rejected, as it is kept with the row. */
export const rejectionOf = (error: Problem | VerdictItem["error"] & {}, now: number): Rejection => ({
  code: error.code,
  detail: error.detail,
  ...(typeof error.column === "string" ? { column: error.column } : {}),
  ...(error.retry_after_s === undefined ? {} : { retryAt: now + error.retry_after_s * 1_000 }),
});

/** One transaction over a store. */
export class Held {
  /** Tables whose rows changed. */
  readonly touched = new Set<string>();
  private sums: Map<string, Sum> | undefined;

  private constructor(
    private readonly txn: StoreTxn,
    readonly tables: ReadonlyMap<string, Declared>,
  ) {}

  static read<R>(store: Store, tables: ReadonlyMap<string, Declared>, work: (held: Held) => Promise<R>): Promise<R> {
    return store.transact("read", (txn) => work(new Held(txn, tables)));
  }

  /** All of `work` is kept, or nothing. Gives the tables whose rows changed, too. */
  static write<R>(store: Store, tables: ReadonlyMap<string, Declared>, work: (held: Held) => Promise<R>): Promise<[R, Set<string>]> {
    return store.transact("write", async (txn) => {
      const held = new Held(txn, tables);
      const result = await work(held);
      if (held.sums) {
        const digests = Object.fromEntries([...held.sums].map(([name, sum]) => [name, sum.digest()]));
        await held.remember("digests", digests);
      }
      return [result, held.touched];
    });
  }

  get(table: string, key: string): Promise<StoredRow | undefined> {
    return this.txn.get(table, key);
  }
  all(table: string): Promise<StoredRow[]> {
    return this.txn.all(table);
  }
  waiting(): Promise<StoredRow[]> {
    return this.txn.waiting();
  }

  recall<N extends keyof Meta>(name: N): Promise<Meta[N] | undefined> {
    return this.txn.meta(name) as Promise<Meta[N] | undefined>;
  }
  remember<N extends keyof Meta>(name: N, value: Meta[N] | undefined): Promise<void> {
    return this.txn.setMeta(name, value as Json | undefined);
  }

  /** Puts `row` in the place of `was`; null drops it. Keeps the table's proof in step. */
  async replace(was: StoredRow | undefined, row: StoredRow | null): Promise<void> {
    const { table, key } = (row ?? was)!;
    const sums = await this.proofs();
    sums?.get(table)?.change(key, was?.at ?? null, row?.at ?? null);
    this.touched.add(table);
    if (!row) return was && this.txn.delete(table, key);
    if (row.state !== "clean" || row.at === null) row.waits = 1;
    else delete row.waits;
    return this.txn.put(row);
  }

  async nextEdit(): Promise<number> {
    const edit = ((await this.recall("edits")) ?? 0) + 1;
    await this.remember("edits", edit);
    return edit;
  }

  /** The proof of what the server holds, as far as it told: an edit that waits counts as the state before it. */
  async digests(): Promise<Meta["digests"] | null> {
    const sums = await this.proofs();
    if (!sums) return null;
    return Object.fromEntries([...this.tables.keys()].map((name) => [name, sums.get(name)!.digest()]));
  }

  /** Adds the proofs up again from the rows. Within a transaction that writes. */
  async recount(): Promise<void> {
    const seed = await this.recall("seed");
    if (!seed) return;
    const sums = new Map<string, Sum>();
    for (const name of this.tables.keys()) {
      const sum = new Sum(seed);
      for (const row of await this.all(name)) sum.change(row.key, null, row.at);
      sums.set(name, sum);
    }
    this.sums = sums;
  }

  private async proofs(): Promise<Map<string, Sum> | undefined> {
    if (this.sums) return this.sums;
    const [seed, known] = await Promise.all([this.recall("seed"), this.recall("digests")]);
    if (!seed || !known) return undefined;
    // Calls may run side by side: whoever comes second takes the first one's sums.
    return (this.sums ??= new Map(
      [...this.tables.keys()].map((name) => [name, known[name] ? Sum.read(seed, known[name]) : new Sum(seed)]),
    ));
  }
}

/** The row as the app sees it. */
export const shown = (table: Declared, key: string, row: Row): Row => ({ [table.key]: key, ...table.blank, ...row });

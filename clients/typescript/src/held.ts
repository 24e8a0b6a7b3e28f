/** The device's copy within one transaction: rows, the digests of the tables, and other state. */
import { Sum } from "./digest.js";
import type { VerdictItem } from "./calls.js";
import { retryWhen, type Local } from "./decide.js";
import type { Problem } from "./error.js";
import type { Installation } from "./identity.js";
import type { OwnerList } from "./owners.js";
import type { Conflict, Digest, Json, Left, Rejection, Row, Store, StoredRow, StoreTxn, SyncReport, TableSpec, Tables, Way } from "./types.js";

/** A declared table, ready for use. */
export interface Declared {
  readonly name: string;
  readonly key: string;
  /** The declared columns; null: any column is allowed. */
  readonly columns: readonly string[] | null;
  /** Values of columns that a stored row lacks. The server fills in the default of a new column without sending the row. */
  readonly blank: Row;
  readonly spec: TableSpec;
}

const blankOf = (spec: TableSpec): Row =>
  Object.fromEntries(
    Object.entries(spec.columns ?? {}).map(([name, column]) => {
      const value = typeof column === "string" ? undefined : column.default;
      return [name, value === "now" ? null : (value ?? null)]; // the device does not know at which time it was filled in
    }),
  );

/** The tables by name, parents first. */
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
  /** The edit that is in the request; the response does not settle a later one. */
  readonly edit: number;
}

/**
 * A request whose response has not been applied. It is stored before it is sent, and removed in the transaction that
 * applies the response: after a lost response or a reload the same request is sent again under the same key.
 */
export interface Outstanding {
  readonly key: string;
  /** Without `sent_at`, which is the time of each sending; the server ignores it when it compares bodies. */
  readonly body: { readonly [member: string]: Json };
  readonly sent: readonly SentRow[];
}

/** The state that is stored beside rows, by name. */
export interface Meta {
  cursor: number;
  /** The epoch of the server that the rows are of. */
  epoch: number;
  /** The latest version of the server's that the device has seen in that epoch. */
  known: number;
  seed: string;
  /** By table; present once the seed is known. */
  digests: { [table: string]: Digest };
  edits: number;
  outstanding: Outstanding;
  etag: string;
  /** The largest request that is fast enough on this device's line, bytes; absent: the server's limit holds. */
  pace: number;
  limits: { rows: number; keys: number; bytes: number; precision: "seconds" | "milliseconds" };
  /** The feed that is being read: the token of its next page and, for a full feed, its number. */
  feed: { number: number | null; next: string };
  feeds: number;
  conflicts: Conflict[];
  token: string;
  email: string;
  device_id: string;
  /** The user and the owner of the rows, as `GET /me` names them, with a dot between. */
  bound: string;
  installation: Installation;
  synced: { began: number; at: number; report: SyncReport; way: Way };
  /** The other owners whose rows are on this device. */
  opened: string[];
  owners: OwnerList;
  left: Left;
  /** Whether the user is no member of the owner, as far as this device knows. */
  away: boolean;
  turn: { holder: string; until: number };
  login: { holder: string; until: number };
}

export const localOf = ({ state, at, base, editedAt }: StoredRow): Local => ({ state, at, base, editedAt });

export const newRow = (table: string, key: string): StoredRow => ({
  ...{ table, key, state: "clean", at: null, base: null, editedAt: null },
  ...{ edit: 0, row: {}, changed: {} },
});

/** Whether a row was rejected because of other rows, which may have changed by the next sync. */
export const isAboutOthers = ({ code, retryAt }: Rejection) => retryWhen(code, retryAt !== undefined) === "with_others";

/** Whether a rejected row may be sent again unchanged. */
export const mayTryAgain = (rejected: Rejection, now: number) =>
  isAboutOthers(rejected) || (rejected.retryAt !== undefined && rejected.retryAt <= now);

/** The reason of a rejection, as it is stored with the row. */
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

  /** Commits all of `work`, or nothing. Returns its result, and the tables whose rows changed. */
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

  /** Replaces `was` by `row`; null deletes it. Updates the table's digest. */
  async replace(was: StoredRow | undefined, row: StoredRow | null): Promise<void> {
    const { table, key } = (row ?? was)!;
    const sums = await this.loadSums();
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

  /** The digests of the server's states as this device knows them: a waiting edit counts as the state before it. */
  async digests(): Promise<Meta["digests"] | null> {
    const sums = await this.loadSums();
    if (!sums) return null;
    return Object.fromEntries([...this.tables.keys()].map((name) => [name, sums.get(name)!.digest()]));
  }

  /** Computes the digests again from the rows. Needs a transaction that writes. */
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

  private async loadSums(): Promise<Map<string, Sum> | undefined> {
    if (this.sums) return this.sums;
    const [seed, digests] = await Promise.all([this.recall("seed"), this.recall("digests")]);
    if (!seed || !digests) return undefined;
    // Concurrent calls must share the sums of the first.
    return (this.sums ??= new Map(
      [...this.tables.keys()].map((name) => [name, digests[name] ? Sum.read(seed, digests[name]) : new Sum(seed)]),
    ));
  }
}

/** The row as the app sees it. */
export const shown = (table: Declared, key: string, row: Row): Row => ({ [table.key]: key, ...table.blank, ...row });

/** A sync, by cursor or by manifest. */
import { compare, pauseMs, type Epoch } from "./decide.js";
import {
  BODY_SHARE, inOrder, isDivisible, nextRequest, requeue, sizeOf, stamped, type Limits, type Queue, type RequestOptions, type RowRef,
} from "./batch.js";
import { Calls, tookTooLong, type Changes, type Manifest, type SyncResponse, type Wire } from "./calls.js";
import { RollcallError } from "./error.js";
import { Held, isAboutOthers, localOf, mayTryAgain, rejectionOf, type Declared, type Outstanding } from "./held.js";
import { advance } from "./identity.js";
import { newKey, readKey } from "./key.js";
import { Settling, type Tally } from "./settle.js";
import type { Conflict, Digests, Json, Progress, Store, SyncOptions, SyncReport, Way } from "./types.js";

/** What a sync needs from its client. */
export interface SyncContext {
  readonly store: Store;
  readonly tables: ReadonlyMap<string, Declared>;
  readonly wire: Wire;
  now(): number;
  /** Reports that rows of these tables changed. */
  rowsChanged(tables: Set<string>): void;
  /** Passes conflicts to the app, and stores what it returns as edits. */
  conflictsFound(conflicts: readonly Conflict[]): Promise<void>;
}

/** How often one sync starts anew because other devices change the data, and rounds for rows that depend on others. */
const STARTS_MAX = 4;
const ROUNDS_MAX = 8;

const is = (error: unknown, ...codes: string[]): error is RollcallError => error instanceof RollcallError && codes.includes(error.code);
const name = (table: string, key: string) => `${table} ${key}`;

/** One sync of a store with its server. The caller must exclude other syncs of the same store. */
export class SyncRun {
  private readonly calls: Calls;
  private readonly tally: Tally = { pushed: 0, pulled: 0, dropped: 0, verdicts: {} };
  private readonly conflicts: Conflict[] = [];
  private readonly progress: (progress: Progress) => void;
  /** Rows that the server does not accept as they are, each with the edit that it refused. */
  private readonly refused = new Map<string, number>();
  private limits!: Limits;
  /** The size of a request that is fast enough, bytes; undefined while none has taken too long. */
  private pace: number | undefined;
  /** The number of successive requests that took too long. */
  private slow = 0;
  /** The last digests that the server sent. */
  private serverDigests: Digests | null = null;
  private resumed = false;
  /** Whether the digests differ, so that the server's past may not be the one that the device knows. */
  private doubt = false;
  private way: Way;
  /** How many of the deletions that the user has confirmed are left. */
  private confirmedDeletes: number;

  constructor(
    private readonly context: SyncContext,
    private readonly options: SyncOptions & { readonly way: Way },
  ) {
    this.progress = options.onProgress ?? (() => {});
    this.calls = new Calls(context.wire, options.signal, this.progress);
    this.way = options.way;
    this.confirmedDeletes = options.confirmDeletes ?? 0;
  }

  async run(): Promise<SyncReport> {
    const began = this.context.now();
    try {
      await this.prepare();
      await this.resume();
      await (this.way === "manifest" ? this.byManifest(true) : this.byCursor());
      await this.pushRest();
      const proof = await this.verify();
      const [version, rejected] = await this.read(async (held) => {
        const waiting = (await held.waiting()).flatMap(({ table, key, rejected }) => (rejected ? [{ table, key, ...rejected }] : []));
        return [(await held.recall("cursor")) ?? null, waiting] as const;
      });
      const { requests, repeats } = this.calls;
      const { way, conflicts, resumed } = this;
      return { way, ...this.tally, conflicts, rejected, ...proof, version, resumed, requests, repeats, ms: this.context.now() - began };
    } catch (error) {
      await this.calls.releaseLock(); // otherwise other devices wait until the lease expires
      throw error;
    }
  }

  private read<R>(work: (held: Held) => Promise<R>): Promise<R> {
    return Held.read(this.context.store, this.context.tables, work);
  }

  private async write<R>(work: (held: Held) => Promise<R>): Promise<R> {
    const [result, touched] = await Held.write(this.context.store, this.context.tables, work);
    if (touched.size) this.context.rowsChanged(touched);
    return result;
  }

  /** Applies a response in one transaction, and then passes its conflicts to the app. */
  private async settle(work: (settling: Settling, held: Held) => Promise<void>, feed: number | null = null): Promise<void> {
    const settling = await this.write(async (held) => {
      const current = feed ?? (await held.recall("feed"))?.number ?? null;
      const settling = new Settling(held, this.tally, this.context.now(), this.calls.epoch, current);
      await work(settling, held);
      return settling;
    });
    for (const row of settling.rejected) if (!isAboutOthers(row)) this.refused.set(name(row.table, row.key), row.edit);
    if (!settling.conflicts.length) return;
    this.conflicts.push(...settling.conflicts);
    await this.context.conflictsFound(settling.conflicts);
  }

  /** Loads the server's limits and the owner's seed, which are requested once. A server with lower limits responds with 413 or 422. */
  private async prepare(): Promise<void> {
    let [limits, seed] = await this.read(async (held) => {
      this.pace = await held.recall("pace");
      return [await held.recall("limits"), await held.recall("seed")] as const;
    });
    if (!limits) {
      const { rows_max, get_keys_max, body_bytes_max, time_precision } = await this.calls.limits();
      limits = { rows: rows_max, keys: get_keys_max, bytes: body_bytes_max, precision: time_precision };
      await this.write((held) => held.remember("limits", limits));
    }
    this.limits = limits;
    if (!seed) await this.fetchSeed();
  }

  private async fetchSeed(): Promise<void> {
    const { seed } = await this.calls.digests();
    await this.write(async (held) => {
      await held.remember("seed", seed);
      await held.recount();
    });
  }

  /**
   * Sends a request again that an earlier sync sent without receiving the response. Only its verdicts are applied: the
   * cursor stays, and this sync requests everything else again.
   */
  private async resume(): Promise<void> {
    const outstanding = await this.read((held) => held.recall("outstanding"));
    if (!outstanding) return;
    this.resumed = true;
    try {
      const [sending, response] = await this.send(outstanding, null);
      await this.settle((settling) => settling.applyResponse(sending, response));
    } catch (error) {
      if (tookTooLong(error) && isDivisible(outstanding)) return this.halveRequests(outstanding, error);
      // If it is no longer outstanding, the server wrote nothing of it, and this sync makes a new request.
      if (!(error instanceof RollcallError) || (await this.read((held) => held.recall("outstanding")))) throw error;
    }
  }

  /** Fetches the manifest under the lock, compares it, and sends one or more requests under the same lock. */
  private async byManifest(trustEtag: boolean): Promise<void> {
    for (let start = 0; start < STARTS_MAX; start++) {
      try {
        return await this.syncManifest(trustEtag);
      } catch (error) {
        if (!is(error, "version_moved", "lock_lost")) throw error;
      }
    }
    throw new RollcallError("restless", "others keep changing the data; try again");
  }

  private async syncManifest(trustEtag: boolean): Promise<void> {
    const declared = [...this.context.tables.values()];
    const etag = await this.write(async (held) => {
      const known = await held.recall("etag");
      await held.remember("etag", undefined);
      return trustEtag ? known : undefined;
    });
    let manifest = await this.calls.fetch(declared, etag);
    if (!manifest.tables) {
      // "Unchanged" since a version of a past that the server may not have any more.
      let past = "same" as Epoch;
      await this.settle(async (settling) => void (past = await settling.pastAt(manifest.version)));
      if (past === "earlier") manifest = await this.calls.fetch(declared, undefined);
    }
    let listed = 0;
    for (const rows of manifest.tables?.values() ?? []) listed += rows.size;
    this.progress({ phase: "listed", rows: listed });

    const queue = await this.compareManifest(declared, manifest);
    // With the manifest's version as `base`, the response shows whether another device has written since, with or
    // without the lock.
    const version = await this.push(queue, manifest.version, manifest.fence, "manifest");
    if (version === manifest.version && manifest.etag) await this.write((held) => held.remember("etag", manifest.etag!));
  }

  /** Compares the manifest with the copy. Returns the rows to send and to request. */
  private async compareManifest(declared: readonly Declared[], manifest: Manifest): Promise<Queue> {
    const queue: Queue = { rows: [], gets: [] };
    const [added, edits, deletes]: [RowRef[], RowRef[], RowRef[]] = [[], [], []];
    await this.settle(async (settling, held) => {
      const epoch = await settling.adoptPast(manifest.version, this.doubt);
      await settling.moveCursor("compared");
      for (const table of declared) {
        const mine = new Map((await held.all(table.name)).map((row) => [row.key, localOf(row)]));
        // An unchanged manifest: the server holds the states that the device knows.
        const unchanged = () => new Map([...mine].flatMap(([key, { at }]) => (at === null ? [] : [[key, at] as const])));
        const plan = compare(manifest.tables?.get(table.name) ?? unchanged(), mine, epoch, true);
        await settling.applyPlan(table, plan);
        const refs = (keys: string[]) => keys.map((key) => ({ table: table.name, key }));
        queue.rows.push(...refs(plan.put_back));
        added.push(...refs(plan.add));
        edits.push(...refs(plan.update));
        deletes.unshift(...refs(plan.delete));
        queue.gets.push(...refs(plan.get));
      }
      queue.rows.push(...added, ...edits, ...deletes);
      queue.rows = await this.sendable(held, queue.rows);
    });
    return queue;
  }

  /** Sends the edits and pulls the changes of other devices in one request. */
  private async byCursor(): Promise<void> {
    for (let start = 0; start < STARTS_MAX; start++) {
      try {
        if (await this.pull()) return;
      } catch (error) {
        if (!is(error, "cursor_expired")) throw error;
        await this.expire();
      }
    }
    throw new RollcallError("restless", "others keep changing the data; try again");
  }

  /**
   * Deletes the cursor, since the server no longer knows what changed after it. The next pull reads a full feed. The
   * waiting rows are sent as before, each with its own `_base`.
   */
  private expire(): Promise<void> {
    return this.settle((settling) => settling.moveCursor("expired"));
  }

  /** Syncs by cursor once. Returns false if it must be called again. */
  private async pull(): Promise<boolean> {
    const [cursor, feed, rows] = await this.read(
      async (held) => [(await held.recall("cursor")) ?? null, await held.recall("feed"), await this.sendable(held)] as const,
    );
    if (feed) {
      // An interrupted feed continues at its next page. The device already has the rows of its first pages: if one of
      // them was deleted since, a feed from the old cursor would not mention that; a feed from this feed's end does.
      try {
        await this.pages(await this.calls.changes(null, feed.next), feed.number);
      } catch (error) {
        if (!is(error, "invalid_request")) throw error;
        await this.expire();
      }
      return false;
    }
    if (rows.length === 0) {
      // Without rows to send, a read suffices. It needs no lock, so it does not block other devices.
      const first = await this.calls.changes(cursor);
      await this.pages(first, first.type === "full" ? await this.newFeed() : null);
    } else {
      await this.push({ rows, gets: [] }, cursor, null, "pull");
    }
    return true;
  }

  private newFeed(): Promise<number> {
    return this.write(async (held) => {
      const number = ((await held.recall("feeds")) ?? 0) + 1;
      await held.remember("feeds", number);
      return number;
    });
  }

  /** Applies a page of the feed, and fetches and applies all pages after it. */
  private async pages(page: Changes, feed: number | null): Promise<void> {
    for (;;) {
      this.serverDigests = page.digests ?? this.serverDigests;
      await this.settle((settling) => settling.applyPage(page), feed);
      this.progress({ phase: "receiving", rows: this.tally.pulled });
      if (!page.more || page.next === undefined) return;
      page = await this.calls.changes(null, page.next);
    }
  }

  /**
   * Sends the rows that still wait: rows whose parents were in a later request, rows that must be sent whole, and edits
   * made meanwhile. Requests the rows whose contents are unknown. Ends when a round settles nothing.
   */
  private async pushRest(): Promise<void> {
    let before = "";
    for (let round = 0; round < ROUNDS_MAX; round++) {
      const [queue, cursor] = await this.read(async (held) => {
        const gets = (await held.waiting()).filter(({ state, at }) => state === "clean" && at === null);
        const rows = await this.sendable(held);
        return [{ rows, gets: gets.map(({ table, key }) => ({ table, key })) }, (await held.recall("cursor")) ?? null] as const;
      });
      const now = JSON.stringify(queue);
      if (now === before || queue.rows.length + queue.gets.length === 0) return;
      before = now;
      await this.push(queue, cursor, null, "nothing");
    }
  }

  /** Sends a queue in requests, each settled before the next is made. Returns the last `version`. */
  private async push(queue: Queue, base: number | null, fence: string | null, then: "manifest" | "pull" | "nothing"): Promise<number> {
    let confirmDeletes: number | undefined;
    for (;;) {
      const options: RequestOptions = { base, pull: then === "pull", confirmDeletes };
      const limits = { ...this.limits, bytes: Math.min(this.limits.bytes, this.pace ?? Infinity) };
      const request = await this.write((held) => nextRequest(held, queue, limits, options));
      const began = this.context.now();
      let sending: Outstanding, response: SyncResponse;
      try {
        [sending, response] = await this.send(request, fence);
      } catch (error) {
        confirmDeletes = await this.recover(queue, request, error, confirmDeletes);
        // The refused request released the lock, and the next takes it again. `base` and each row's `_base` state what
        // the device has seen, so it does not matter who wrote in between.
        fence = null;
        continue;
      }
      confirmDeletes = undefined;
      await this.enlargeRequests(request, this.context.now() - began);
      const { version, changes, digests } = response;
      // The feed begins before the verdicts are applied, so that their rows count as a part of it.
      const feed = changes?.type === "full" ? await this.newFeed() : null;
      const last = queue.rows.length + queue.gets.length === 0;
      await this.settle(async (settling) => {
        await settling.applyResponse(sending, response);
        if (digests && typeof digests.as_of === "number") await settling.noteVersion(digests.as_of);
        const complete = base !== null && (then !== "manifest" || last);
        if (!changes) await settling.moveCursor({ pushed: { version, complete } });
      }, feed);
      this.progress({ phase: "sending", left: queue.rows.length, asked: queue.gets.length });
      this.serverDigests = digests ?? this.serverDigests;
      if (base !== null) base = version;
      if (changes) await this.pages(changes, feed);
      if (last) return version;
    }
  }

  /**
   * Queues the rows of a failed request again if another request may succeed, and throws the error otherwise.
   * `sentConfirmation`: the `confirm_deletes` of the failed request. Returns that of the next one.
   */
  private async recover(queue: Queue, request: Outstanding, error: unknown, sentConfirmation: number | undefined) {
    if (tookTooLong(error) && isDivisible(request)) {
      await this.halveRequests(request, error);
      requeue(queue, request);
      return sentConfirmation;
    }
    if (!(error instanceof RollcallError && error.problem)) throw error;
    const confirmDeletes = this.confirmed(error);
    if (confirmDeletes === undefined) await this.dropFaults(queue, request, error);
    else requeue(queue, request);
    return confirmDeletes;
  }

  /** The number that confirms a refused deletion, if the user has confirmed that many. */
  private confirmed(error: RollcallError): number | undefined {
    const named = error.code === "mass_delete" ? error.problem?.confirm_deletes : undefined;
    if (named === undefined || named > this.confirmedDeletes) return undefined;
    this.confirmedDeletes -= named;
    return named;
  }

  /**
   * Sends one request until it gets a response. If the server refuses it, nothing was written, and the request is no
   * longer outstanding. After any other error it stays outstanding, to be sent again.
   */
  private async send(sending: Outstanding, fence: string | null): Promise<[Outstanding, SyncResponse]> {
    for (let attempt = 0; attempt < 2; attempt++) {
      try {
        const response = await this.calls.synchronise(sending.key, fence, isDivisible(sending), () => {
          if (sending.body["keep_lock"]) this.calls.holding = true;
          // `sent_at` is the time of this attempt. By an older time the server would take old edits for new ones.
          return stamped(sending, this.context.now());
        });
        this.calls.holding = sending.body["keep_lock"] === true;
        return [sending, response];
      } catch (error) {
        if (is(error, "idempotency_key_reused")) {
          // Another release of the server computed another fingerprint of the same body. A new key is safe: rows that
          // the server already has get the verdict `same`.
          sending = { ...sending, key: newKey(this.context.now()) };
          await this.write((held) => held.remember("outstanding", sending));
          continue;
        }
        const status = error instanceof RollcallError ? error.status : undefined;
        const undecided =
          is(error, "other_user") || (status === undefined || status >= 500 ? status !== 507 : [401, 403, 408, 423, 429].includes(status));
        if (!undecided) {
          this.calls.holding = false;
          await this.write((held) => held.remember("outstanding", undefined));
        }
        throw error;
      }
    }
    throw new RollcallError("restless", "the server does not recognise its own response");
  }

  /**
   * Halves the size of requests after one that took longer than the server or this client waits, for later syncs too.
   * The request may have arrived. Its rows are sent again under other keys; the server recognises those that it has.
   */
  private async halveRequests(sending: Outstanding, error: RollcallError): Promise<void> {
    this.pace = Math.max(Math.floor(sizeOf(sending) / 2 / BODY_SHARE), 1);
    this.calls.holding = false;
    await this.write(async (held) => {
      await held.remember("pace", this.pace);
      await held.remember("outstanding", undefined);
      await advance(held);
      for (const { table, key, operation } of sending.sent) {
        const row = operation === "add" ? await held.get(table, key) : undefined;
        if (row) await held.replace(row, { ...row, doubtful: 1 });
      }
    });
    const { patience } = this.context.wire;
    const pause = pauseMs(++this.slow, patience.attemptsMax, error.problem?.retry_after_s ?? null, patience.random());
    if (pause === null) throw error;
    this.progress({ phase: "retrying", attempt: this.slow, reason: error.message, ms: pause });
    await patience.pause(pause, this.options.signal);
  }

  /** Doubles the size of requests after one that took at most a quarter of the time limit. */
  private async enlargeRequests(sending: Outstanding, ms: number): Promise<void> {
    this.slow = 0;
    const { requestMaxMs } = this.context.wire.patience;
    if (this.pace === undefined || sizeOf(sending) < this.pace / 2 || ms * 4 > requestMaxMs) return;
    this.pace = this.pace * 2 < this.limits.bytes ? this.pace * 2 : undefined;
    await this.write((held) => held.remember("pace", this.pace));
  }

  /**
   * Queues the rows of a refused request again, without the rows at fault or for smaller requests: one row that the
   * server does not accept must not block the others.
   */
  private async dropFaults(queue: Queue, sending: Outstanding, error: RollcallError): Promise<void> {
    const { code } = error.problem!;
    const limits = this.limits;
    const rows = sending.sent.length;
    if ((code === "too_many_rows" && limits.rows > 1) || (code === "body_too_large" && rows !== 1 && limits.bytes > 1)) {
      this.limits = { ...limits, bytes: Math.floor(limits.bytes / 2) };
      if (code === "too_many_rows") this.limits = { ...limits, rows: Math.ceil(limits.rows / 2), keys: Math.ceil(limits.keys / 2) };
      await this.write((held) => held.remember("limits", undefined)); // the next sync requests them again
      return requeue(queue, sending);
    }
    const faults = this.atFault(sending, error);
    if (faults.length === 0) throw error;
    const back = new Set(faults.map(({ table, key }) => name(table, key)));
    for (const fault of back) this.refused.set(fault, sending.sent.find(({ table, key }) => name(table, key) === fault)?.edit ?? 0);
    await this.write(async (held) => {
      for (const { table, key } of faults) {
        const row = await held.get(table, key);
        if (row) await held.replace(row, { ...row, rejected: rejectionOf(error.problem!, this.context.now()) });
      }
    });
    requeue(queue, sending);
    queue.rows = queue.rows.filter(({ table, key }) => !back.has(name(table, key)));
    queue.gets = queue.gets.filter(({ table, key }) => !back.has(name(table, key)));
  }

  /**
   * The rows because of which a request was refused: the one that the response points at, or all of a table that the
   * server does not have. It is empty if the refusal does not concern rows.
   */
  private atFault({ body, sent }: Outstanding, error: RollcallError): RowRef[] {
    const { code, status, at } = error.problem!;
    if (code === "body_too_large") return sent.length === 1 ? [sent[0]!] : [];
    const [, member = "", table = "", index] = status === 422 && at ? at.split("/") : [];
    if (index === undefined && code !== "unknown_table") return [];
    const column = this.context.tables.get(table)?.key;
    const items = (body[member] as { [table: string]: Json[] } | undefined)?.[table] ?? [];
    const keys = (index === undefined ? items : items.slice(Number(index), Number(index) + 1)).map((item) =>
      readKey(typeof item === "string" ? item : column && (item as { [column: string]: Json } | undefined)?.[column]),
    );
    return keys.flatMap((key) => (key === null ? [] : [{ table, key }]));
  }

  /**
   * The rows of `of`, or all that wait, without those that were refused in this sync, or before and not edited since.
   * A row that was rejected because of other rows is sent again.
   */
  private async sendable(held: Held, of?: RowRef[]): Promise<RowRef[]> {
    const waiting = await held.waiting();
    const back = new Set<string>();
    for (const { table, key, edit, rejected } of waiting) {
      const refused = this.refused.get(name(table, key));
      if ((rejected && !mayTryAgain(rejected, this.context.now())) || (refused !== undefined && edit <= refused)) back.add(name(table, key));
    }
    return (of ?? inOrder(waiting, this.context.tables)).filter(({ table, key }) => !back.has(name(table, key)));
  }

  /** Compares the server's digests with the device's. If they differ, repairs the copy once, by manifest. */
  private async verify(): Promise<Pick<SyncReport, "digestsEqual" | "digests" | "repaired">> {
    let repaired = false;
    for (;;) {
      const server = this.serverDigests;
      if (!(await this.read((held) => held.recall("seed")))) await this.fetchSeed();
      const [cursor, known, tables] = await this.read(
        async (held) => [(await held.recall("cursor")) ?? null, (await held.recall("known")) ?? 0, await held.digests()] as const,
      );
      const digests = { server, device: tables && { as_of: cursor, tables } };
      const lost = server?.as_of != null && server.as_of < known; // the server has lost versions that it had
      // Digests of different versions cannot be compared: another device wrote meanwhile.
      if (!server || !tables || (server.as_of !== cursor && !lost)) return { digestsEqual: null, digests, repaired };
      const differ = Object.keys(tables).filter((table) => {
        const [mine, theirs] = [tables[table]!, server.tables[table]];
        return theirs && (theirs.count !== mine.count || theirs.root !== mine.root);
      });
      if (differ.length === 0 && !lost) return { digestsEqual: true, digests, repaired };
      if (repaired) return { digestsEqual: false, digests, repaired };
      repaired = true;
      this.progress({ phase: "repairing", tables: differ });
      this.serverDigests = null;
      // The two sides differ at the same version, so nothing proves that a row that is missing there was deleted.
      this.doubt = true;
      await this.byManifest(false);
      this.doubt = false;
      await this.pushRest();
    }
  }
}

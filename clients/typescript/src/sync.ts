/** The two ways of syncing. */
import { compare, pauseMs, type Epoch, type Heard } from "./decide.js";
import { BODY_SHARE, inOrder, isDivisible, nextRequest, putBack, sizeOf, stamped, type Limits, type Place, type Queue, type Terms } from "./batch.js";
import { Calls, tookTooLong, type Answered, type Changes, type Wire } from "./calls.js";
import { RollcallError } from "./error.js";
import { Held, isAboutOthers, localOf, mayTryAgain, rejectionOf, type Declared, type Outstanding } from "./held.js";
import { advance } from "./identity.js";
import { newKey, readKey } from "./key.js";
import { Settling, type Tally } from "./settle.js";
import type { Conflict, Digests, Json, Progress, Store, SyncOptions, SyncReport, Way } from "./types.js";

/** What a sync needs of its client. */
export interface Ground {
  readonly store: Store;
  readonly tables: ReadonlyMap<string, Declared>;
  readonly wire: Wire;
  now(): number;
  /** Rows of these tables changed. */
  touched(tables: Set<string>): void;
  /** Shows the app what it lost, and takes its answers as edits. */
  lost(conflicts: readonly Conflict[]): Promise<void>;
}

/** Beginnings of one sync before it counts as hopeless, and rounds for rows that wait for others. */
const BEGINNINGS_MAX = 4;
const ROUNDS_MAX = 8;

const is = (error: unknown, ...codes: string[]): error is RollcallError => error instanceof RollcallError && codes.includes(error.code);
const name = (table: string, key: string) => `${table} ${key}`;

/** Brings the store and the server together. The caller sees to it that nobody else does it at the same time. */
export class Syncing {
  private readonly calls: Calls;
  private readonly tally: Tally = { pushed: 0, pulled: 0, dropped: 0, verdicts: {} };
  private readonly conflicts: Conflict[] = [];
  private readonly progress: (progress: Progress) => void;
  /** Rows that the server cannot take as they are, with the edit that it refused. */
  private readonly refused = new Map<string, number>();
  private limits!: Limits;
  /** Bytes of a request that does not take too long, once one has. */
  private pace: number | undefined;
  /** Requests that took too long, one after the other. */
  private slow = 0;
  private said: Digests | null = null;
  private resumed = false;
  /** The digests say that the server's past is not the one that the device knows. */
  private doubt = false;
  private way: Way;
  /** Deletions that the user has confirmed and that no refusal has named yet. */
  private agreed: number;

  constructor(
    private readonly ground: Ground,
    private readonly options: SyncOptions & { readonly way: Way },
  ) {
    this.progress = options.onProgress ?? (() => {});
    this.calls = new Calls(ground.wire, options.signal, this.progress);
    this.way = options.way;
    this.agreed = options.confirmDeletes ?? 0;
  }

  async run(): Promise<SyncReport> {
    const began = this.ground.now();
    try {
      await this.prepare();
      await this.resume();
      await (this.way === "manifest" ? this.byManifest(true) : this.byCursor());
      await this.rest();
      const proof = await this.prove();
      const [version, rejected] = await this.read(async (held) => {
        const waiting = (await held.waiting()).flatMap(({ table, key, rejected }) => (rejected ? [{ table, key, ...rejected }] : []));
        return [(await held.recall("cursor")) ?? null, waiting] as const;
      });
      const { requests, repeats } = this.calls;
      const { way, conflicts, resumed } = this;
      return { way, ...this.tally, conflicts, rejected, ...proof, version, resumed, requests, repeats, ms: this.ground.now() - began };
    } catch (error) {
      await this.calls.giveLockBack(); // others need not wait for the lease to end
      throw error;
    }
  }

  private read<R>(work: (held: Held) => Promise<R>): Promise<R> {
    return Held.read(this.ground.store, this.ground.tables, work);
  }

  private async write<R>(work: (held: Held) => Promise<R>): Promise<R> {
    const [result, touched] = await Held.write(this.ground.store, this.ground.tables, work);
    if (touched.size) this.ground.touched(touched);
    return result;
  }

  /** Applies what the server said, in one transaction, and then shows the app what it lost. */
  private async settle(work: (settling: Settling, held: Held) => Promise<void>, feed: number | null = null): Promise<void> {
    const settling = await this.write(async (held) => {
      const made = new Settling(held, this.tally, this.ground.now(), this.calls.epoch, feed ?? (await held.recall("feed"))?.number ?? null);
      await work(made, held);
      return made;
    });
    for (const row of settling.rejected) if (!isAboutOthers(row)) this.refused.set(name(row.table, row.key), row.edit);
    if (!settling.conflicts.length) return;
    this.conflicts.push(...settling.conflicts);
    await this.ground.lost(settling.conflicts);
  }

  /** The server's limits and the owner's seed, asked for once; a server that lowers its limits says so by 413 and 422. */
  private async prepare(): Promise<void> {
    let [limits, seed] = await this.read(async (held) => {
      this.pace = await held.recall("pace");
      return [await held.recall("limits"), await held.recall("seed")] as const;
    });
    if (!limits) {
      const said = await this.calls.limits();
      limits = { rows: said.rows_max, keys: said.get_keys_max, bytes: said.body_bytes_max, precision: said.time_precision };
      await this.write((held) => held.remember("limits", limits));
    }
    this.limits = limits;
    if (!seed) await this.askSeed();
  }

  private async askSeed(): Promise<void> {
    const { seed } = await this.calls.digests();
    await this.write(async (held) => {
      await held.remember("seed", seed);
      await held.recount();
    });
  }

  /**
   * Hears the answer to a request that an earlier sync sent and never settled. Only its rows are settled: the
   * cursor stays, and whatever else the answer said is asked for again.
   */
  private async resume(): Promise<void> {
    const outstanding = await this.read((held) => held.recall("outstanding"));
    if (!outstanding) return;
    this.resumed = true;
    try {
      const [sending, answer] = await this.send(outstanding, null);
      await this.settle((settling) => settling.report(sending, answer));
    } catch (error) {
      if (tookTooLong(error) && isDivisible(outstanding)) return this.slower(outstanding, error);
      // Given up: nothing of it was written, and the sync that follows makes a new one.
      if (!(error instanceof RollcallError) || (await this.read((held) => held.recall("outstanding")))) throw error;
    }
  }

  /** Roll call under the lock, comparison, and one or more requests under the same lock. */
  private async byManifest(trustEtag: boolean): Promise<void> {
    for (let beginning = 0; beginning < BEGINNINGS_MAX; beginning++) {
      try {
        return await this.oneRollCall(trustEtag);
      } catch (error) {
        if (!is(error, "version_moved", "lock_lost")) throw error;
      }
    }
    throw new RollcallError("restless", "others keep changing the data; try again");
  }

  private async oneRollCall(trustEtag: boolean): Promise<void> {
    const declared = [...this.ground.tables.values()];
    const etag = await this.write(async (held) => {
      const known = await held.recall("etag");
      await held.remember("etag", undefined);
      return trustEtag ? known : undefined;
    });
    let told = await this.calls.fetch(declared, etag);
    if (!told.tables) {
      // "As you know it", in the words of a past that may be another one.
      let past = "same" as Epoch;
      await this.settle(async (settling) => void (past = await settling.pastAt(told.version)));
      if (past === "earlier") told = await this.calls.fetch(declared, undefined);
    }
    let listed = 0;
    for (const rows of told.tables?.values() ?? []) listed += rows.size;
    this.progress({ phase: "listed", rows: listed });

    const queue: Queue = { rows: [], gets: [] };
    const [added, edits, deletes]: [Place[], Place[], Place[]] = [[], [], []];
    await this.settle(async (settling, held) => {
      const epoch = await settling.adopt(told.version, this.doubt);
      await settling.heard("compared");
      for (const table of declared) {
        const mine = new Map((await held.all(table.name)).map((row) => [row.key, localOf(row)]));
        // Nothing changed there: the server still holds what it held when it last said so.
        const theirs =
          told.tables?.get(table.name) ?? new Map([...mine].flatMap(([key, { at }]) => (at === null ? [] : [[key, at] as const])));
        const plan = compare(theirs, mine, epoch, true);
        await settling.plan(table, plan);
        const places = (keys: string[]) => keys.map((key) => ({ table: table.name, key }));
        queue.rows.push(...places(plan.put_back));
        added.push(...places(plan.add));
        edits.push(...places(plan.update));
        deletes.unshift(...places(plan.delete));
        queue.gets.push(...places(plan.get));
      }
      queue.rows.push(...added, ...edits, ...deletes);
      queue.rows = await this.sendable(held, queue.rows);
    });
    // The copy is of the roll call's version. Said as `base`, the answer tells whether anybody but us has
    // written since, lock or no lock.
    const version = await this.push(queue, told.version, told.fence, "manifest");
    if (version === told.version && told.etag) await this.write((held) => held.remember("etag", told.etag!));
  }

  /** By cursor: the edits and the question what else changed, in one request. */
  private async byCursor(): Promise<void> {
    for (let beginning = 0; beginning < BEGINNINGS_MAX; beginning++) {
      try {
        if (await this.onePull()) return;
      } catch (error) {
        if (!is(error, "cursor_expired")) throw error;
        await this.expire();
      }
    }
    throw new RollcallError("restless", "others keep changing the data; try again");
  }

  /**
   * The server cannot say what changed since: forgets the cursor, to hear everything. What waits here goes up as
   * ever, each row with its own `_base`.
   */
  private expire(): Promise<void> {
    return this.settle((settling) => settling.heard("expired"));
  }

  /** Whether all is told. */
  private async onePull(): Promise<boolean> {
    const [cursor, feed, rows] = await this.read(
      async (held) => [(await held.recall("cursor")) ?? null, await held.recall("feed"), await this.sendable(held)] as const,
    );
    if (feed) {
      // A feed that broke off goes on where it was. The rows of its first pages are known ahead of the cursor: were
      // one of them deleted since, a feed from there would not mention it; one from this feed's end does.
      try {
        await this.pages(await this.calls.changes(null, feed.next), feed.number);
      } catch (error) {
        if (!is(error, "invalid_request")) throw error;
        await this.expire();
      }
      return false;
    }
    if (rows.length === 0) {
      // Nothing to send: reading needs no lock, and keeps no other device from its sync.
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

  /** Applies a page of the feed and all that follow it. */
  private async pages(page: Changes, feed: number | null): Promise<void> {
    for (;;) {
      this.said = page.digests ?? this.said;
      await this.settle((settling) => settling.page(page), feed);
      this.progress({ phase: "receiving", rows: this.tally.pulled });
      if (!page.more || page.next === undefined) return;
      page = await this.calls.changes(null, page.next);
    }
  }

  /**
   * Sends what waits still: rows whose parents came in a later request, rows that have to go up whole, what the
   * user did meanwhile; and asks for rows of which nobody has told what they are. Ends when a round settles nothing.
   */
  private async rest(): Promise<void> {
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

  /** Sends a queue, request by request, each settled before the next is made. Gives the last `version`. */
  private async push(queue: Queue, base: number | null, fence: string | null, then: "manifest" | "pull" | "nothing"): Promise<number> {
    let confirmDeletes: number | undefined;
    for (;;) {
      const terms: Terms = { base, pull: then === "pull", confirmDeletes };
      const limits = { ...this.limits, bytes: Math.min(this.limits.bytes, this.pace ?? Infinity) };
      const made = await this.write((held) => nextRequest(held, queue, limits, terms));
      const began = this.ground.now();
      let sending: Outstanding, answer: Answered;
      try {
        [sending, answer] = await this.send(made, fence);
      } catch (error) {
        if (tookTooLong(error) && isDivisible(made)) {
          await this.slower(made, error);
          putBack(queue, made);
        } else if (error instanceof RollcallError && error.problem) {
          confirmDeletes = this.agreedTo(error);
          if (confirmDeletes === undefined) await this.mend(queue, made, error);
          else putBack(queue, made);
        } else {
          throw error;
        }
        // The refused request gave the lock back. The next takes it again, and `base` and each row's `_base`
        // tell the server what we have seen, whoever came in between.
        fence = null;
        continue;
      }
      confirmDeletes = undefined;
      await this.faster(made, this.ground.now() - began);
      const { version, changes } = answer;
      // Before the verdicts, so that they mark rows as mentioned.
      const feed = changes?.type === "full" ? await this.newFeed() : null;
      const last = queue.rows.length + queue.gets.length === 0;
      await this.settle(async (settling) => {
        await settling.report(sending, answer);
        if (answer.digests && typeof answer.digests.as_of === "number") await settling.know(answer.digests.as_of);
        const heard: Heard = { pushed: { version, complete: base !== null && (then !== "manifest" || last) } };
        if (!changes) await settling.heard(heard);
      }, feed);
      this.progress({ phase: "sending", left: queue.rows.length, asked: queue.gets.length });
      this.said = answer.digests ?? this.said;
      if (base !== null) base = version;
      if (changes) await this.pages(changes, feed);
      if (last) return version;
    }
  }

  /** The number that a refused deletion is to be confirmed by, if the user has agreed to as many. */
  private agreedTo(error: RollcallError): number | undefined {
    const named = error.code === "mass_delete" ? error.problem?.confirm_deletes : undefined;
    if (named === undefined || named > this.agreed) return undefined;
    this.agreed -= named;
    return named;
  }

  /**
   * Sends one request until it is answered. A refusal means that nothing was written: the request is given up.
   * Anything else leaves it outstanding, to be sent again.
   */
  private async send(sending: Outstanding, fence: string | null): Promise<[Outstanding, Answered]> {
    for (let time = 0; time < 2; time++) {
      try {
        const answer = await this.calls.synchronise(sending.key, fence, isDivisible(sending), () => {
          if (sending.body["keep_lock"]) this.calls.holding = true;
          // The clock of this very sending: with that of an earlier one, old edits would pass for new ones.
          return stamped(sending, this.ground.now());
        });
        this.calls.holding = sending.body["keep_lock"] === true;
        return [sending, answer];
      } catch (error) {
        if (is(error, "idempotency_key_reused")) {
          // The server knows the key with other words, as another release of it reads them. The rows say
          // themselves what is new: those that the server has are `same`.
          sending = { ...sending, key: newKey(this.ground.now()) };
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
    throw new RollcallError("restless", "the server does not know its own answer");
  }

  /**
   * A request took longer than the server or this client waits: the next ones are half of it, in later syncs too.
   * Whether it arrived nobody knows. Its rows go up again under other keys, and the server tells by the rows what is
   * new.
   */
  private async slower(sending: Outstanding, error: RollcallError): Promise<void> {
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
    const { patience } = this.ground.wire;
    const pause = pauseMs(++this.slow, patience.attemptsMax, error.problem?.retry_after_s ?? null, patience.random());
    if (pause === null) throw error;
    this.progress({ phase: "retrying", attempt: this.slow, reason: error.message, ms: pause });
    await patience.pause(pause, this.options.signal);
  }

  /** A request that took little of the time there is: the next may be twice as large. */
  private async faster(sending: Outstanding, ms: number): Promise<void> {
    this.slow = 0;
    const { requestMaxMs } = this.ground.wire.patience;
    if (this.pace === undefined || sizeOf(sending) < this.pace / 2 || ms * 4 > requestMaxMs) return;
    this.pace = this.pace * 2 < this.limits.bytes ? this.pace * 2 : undefined;
    await this.write((held) => held.remember("pace", this.pace));
  }

  /**
   * What to do about a refused request: send it without the row at fault, or in smaller parts. One row that no
   * server takes must not keep all the others.
   */
  private async mend(queue: Queue, sending: Outstanding, error: RollcallError): Promise<void> {
    const { code } = error.problem!;
    const limits = this.limits;
    const rows = sending.sent.length;
    if ((code === "too_many_rows" && limits.rows > 1) || (code === "body_too_large" && rows !== 1 && limits.bytes > 1)) {
      this.limits = { ...limits, bytes: Math.floor(limits.bytes / 2) };
      if (code === "too_many_rows") this.limits = { ...limits, rows: Math.ceil(limits.rows / 2), keys: Math.ceil(limits.keys / 2) };
      await this.write((held) => held.remember("limits", undefined)); // to be asked for again
      return putBack(queue, sending);
    }
    const faults = this.atFault(sending, error);
    if (faults.length === 0) throw error;
    const back = new Set(faults.map(({ table, key }) => name(table, key)));
    for (const fault of back) this.refused.set(fault, sending.sent.find(({ table, key }) => name(table, key) === fault)?.edit ?? 0);
    await this.write(async (held) => {
      for (const { table, key } of faults) {
        const row = await held.get(table, key);
        if (row) await held.replace(row, { ...row, rejected: rejectionOf(error.problem!, this.ground.now()) });
      }
    });
    putBack(queue, sending);
    queue.rows = queue.rows.filter(({ table, key }) => !back.has(name(table, key)));
    queue.gets = queue.gets.filter(({ table, key }) => !back.has(name(table, key)));
  }

  /**
   * The rows for whose sake a whole request was refused: the one that the answer points at, or all of a table that
   * the server does not have. None if it is not about rows.
   */
  private atFault({ body, sent }: Outstanding, error: RollcallError): Place[] {
    const { code, status, at } = error.problem!;
    if (code === "body_too_large") return sent.length === 1 ? [sent[0]!] : [];
    const [, member = "", table = "", place] = status === 422 && at ? at.split("/") : [];
    if (place === undefined && code !== "unknown_table") return [];
    const column = this.ground.tables.get(table)?.key;
    const items = (body[member] as { [table: string]: Json[] } | undefined)?.[table] ?? [];
    const keys = (place === undefined ? items : items.slice(Number(place), Number(place) + 1)).map((item) =>
      readKey(typeof item === "string" ? item : column && (item as { [column: string]: Json } | undefined)?.[column]),
    );
    return keys.flatMap((key) => (key === null ? [] : [{ table, key }]));
  }

  /**
   * What waits, or those of `of`, without what was refused: in this sync, or before and not edited since. A row
   * that was rejected for the sake of others is tried again.
   */
  private async sendable(held: Held, of?: Place[]): Promise<Place[]> {
    const waiting = await held.waiting();
    const back = new Set<string>();
    for (const { table, key, edit, rejected } of waiting) {
      const refused = this.refused.get(name(table, key));
      if ((rejected && !mayTryAgain(rejected, this.ground.now())) || (refused !== undefined && edit <= refused)) back.add(name(table, key));
    }
    return (of ?? inOrder(waiting, this.ground.tables)).filter(({ table, key }) => !back.has(name(table, key)));
  }

  /** Compares the server's digests with what the device holds; repairs once by a roll call. */
  private async prove(): Promise<Pick<SyncReport, "digestsEqual" | "digests" | "repaired">> {
    let repaired = false;
    for (;;) {
      const server = this.said;
      if (!(await this.read((held) => held.recall("seed")))) await this.askSeed();
      const [cursor, known, tables] = await this.read(
        async (held) => [(await held.recall("cursor")) ?? null, (await held.recall("known")) ?? 0, await held.digests()] as const,
      );
      const digests = { server, device: tables && { as_of: cursor, tables } };
      // Somebody wrote since: it is a proof of another state.
      const lost = server?.as_of != null && server.as_of < known; // it has been further than it says
      if (!server || !tables || (server.as_of !== cursor && !lost)) return { digestsEqual: null, digests, repaired };
      const differ = Object.keys(tables).filter((table) => {
        const [mine, theirs] = [tables[table]!, server.tables[table]];
        return theirs && (theirs.count !== mine.count || theirs.root !== mine.root);
      });
      if (differ.length === 0 && !lost) return { digestsEqual: true, digests, repaired };
      if (repaired) return { digestsEqual: false, digests, repaired };
      repaired = true;
      this.progress({ phase: "repairing", tables: differ });
      this.said = null;
      // Either side holds what the other does not, at one version: nothing proves that a row that is absent there was
      // deleted.
      this.doubt = true;
      await this.byManifest(false);
      this.doubt = false;
      await this.rest();
    }
  }
}

/** The client: tables, syncs, conflicts, the account and the status. */
import { about, Calls, type Wire } from "./calls.js";
import { keyOf, put, remove, revert, settle } from "./edits.js";
import { RollcallError } from "./error.js";
import { adopt, bind, headersOf, otherUser, type Me } from "./identity.js";
import { declare, Held, shown, type Declared } from "./held.js";
import { newKey, readKey } from "./key.js";
import { ALL_EVENTS, EVENTS, Live } from "./live.js";
import * as requests from "./owners.js";
import { partOf } from "./part.js";
import { SyncRun } from "./sync.js";
import { inTurn, openChannel, pause } from "./turn.js";
import type {
  Client, ClientOptions, Conflict, Conflicts, Entry, Json, Left, LiveOptions, Login, NewInvitation, OwnerClient, Owners, Patience,
  Pending, Role, Row, Status, Store, StoredRow, SyncOptions, SyncReport, Table, TableSpec, Tables, Traffic,
} from "./types.js";

/** What is stored of an owner's copy beside the rows. */
const COPY = ["cursor", "epoch", "known", "seed", "digests", "outstanding", "etag", "feed", "feeds", "edits", "conflicts", "synced"] as const;

class Listeners<T> {
  private readonly all = new Set<(event: T) => void>();
  add(listener: (event: T) => void): () => void {
    const own = (event: T) => listener(event); // the same function may be added twice
    this.all.add(own);
    return () => void this.all.delete(own);
  }
  notify(event: T): void {
    for (const listener of [...this.all]) listener(event);
  }
  get isEmpty(): boolean {
    return this.all.size === 0;
  }
}

/** Opens the device's copy of the tables. It needs no network. */
export async function openClient<const T extends Tables>(options: ClientOptions<T>): Promise<Client<T>> {
  const client = new StoreClient(options as unknown as ClientOptions<Tables>);
  await client.reopen(); // throws if the store cannot be opened
  return client as unknown as Client<T>;
}

/** The rows of one owner on this device. The client that the app opens is that of the account's own owner. */
class StoreClient implements Client, OwnerClient {
  readonly tables: Tables;
  readonly conflicts: Conflicts;
  readonly owners: Owners;
  private readonly store: Store;
  /** The owner that was made with the account, once the store is bound. */
  private home: string | null = null;
  /** Clients of other owners, by id. */
  private readonly opened = new Map<string, StoreClient>();
  /** Resolves once the list of opened owners is stored. */
  private noted: Promise<unknown> = Promise.resolve();
  private readonly declared: ReadonlyMap<string, Declared>;
  private readonly wire: Wire;
  private readonly channel;
  private readonly closing = new AbortController();
  private readonly changes = new Listeners<string[]>();
  private readonly traffic = new Listeners<Traffic>();
  private readonly statuses = new Listeners<Status>();
  private readonly lives = new Set<Live>();
  private readonly now: () => number;
  private status: Omit<Status, "pending" | "syncing"> = { lock: null, online: null, live: "off", lastSync: null, lastError: null };
  private readonly syncs = new Set<Promise<unknown>>();
  /** Lets `live` follow an owner that is opened later; null while it is off. */
  private follow: ((client: StoreClient) => void) | null = null;
  private isNotifying = false;

  /** `account`: the client of the account's own owner, if this one is of another owner. */
  constructor(
    private readonly options: ClientOptions<Tables>,
    private readonly account: StoreClient | null = null,
    private readonly owned: string | null = null,
  ) {
    this.store = partOf(options.store, owned);
    this.tables = options.tables;
    this.declared = declare(options.tables);
    this.now = options.now ?? Date.now;
    this.channel = openChannel(this.store, (tables) => this.notifyChange(tables));
    const patience: Patience = {
      ...{ attemptsMax: 6, lockWaitMaxMs: 120_000, requestMaxMs: 60_000, pause, random: Math.random },
      ...options.patience,
    };
    this.wire = {
      url: options.url.replace(/\/+$/, ""),
      owner: owned,
      fetch: options.fetch ?? ((...args) => globalThis.fetch(...args)),
      patience,
      token: (refused) => (account ?? this).token(refused),
      identity: () => this.read(headersOf),
      olderUntil: 0,
      bind: (me, seed) => this.bind(me, seed),
      adopt: (sent, assigned) => this.write((held) => adopt(held, sent, assigned)),
      traffic: (traffic) => (account ?? this).traffic.notify(traffic),
      listening: () => !(account ?? this).traffic.isEmpty,
      online: (online) => this.updateStatus({ online }),
    };
    this.conflicts = {
      list: async () => (await this.read((held) => held.recall("conflicts"))) ?? [],
      dismiss: (id) => this.write((held) => this.takeConflict(held, id)).then(() => {}),
      resolve: (id, as) => this.resolve(id, as),
      history: async (query = {}) => {
        const parameters = Object.entries(query).map(([name, value]) => `${name}=${encodeURIComponent(value)}`);
        return (await this.call("GET", about(this.wire, `/conflicts?${parameters.join("&")}`))) as { conflicts: Json[]; next?: string };
      },
      restore: (id) => this.call("POST", about(this.wire, `/conflicts/${encodeURIComponent(id)}/restore`)),
    };
    this.owners = {
      list: async () => {
        const known = await this.read((held) => held.recall("owners"));
        try {
          return (await this.listOwners(known)).owners;
        } catch (error) {
          if (known && error instanceof RollcallError && error.code === "offline") return known.owners;
          throw error;
        }
      },
      make: (name) => requests.makeOwner(this.calls(), name),
      accept: (code, name) => requests.acceptInvitation(this.calls(), code, name),
    };
  }

  // ------------------------------------------------------------------------------------------ tables

  table<N extends string>(name: N): Table {
    const table = this.declared.get(name);
    if (!table) {
      throw new RollcallError("no_such_table", `there is no table ${JSON.stringify(name)}; there are ${[...this.declared.keys()].join(", ")}`);
    }
    const row = (stored: StoredRow) => shown(table, stored.key, stored.row);
    const entryOf = (stored: StoredRow): Entry => ({
      ...{ table: name, key: stored.key, row: row(stored), state: stored.state, lastUpdate: stored.at, base: stored.base },
      ...{ baseRow: stored.baseRow ? shown(table, stored.key, stored.baseRow) : null, editedAt: stored.editedAt },
      rejected: stored.rejected ?? null,
    });
    const load = (key: string) => this.read((held) => held.get(name, keyOf(table, key)));
    const all = () => this.read((held) => held.all(name));
    const present = (rows: StoredRow[]) => rows.filter(({ state }) => state !== "deleted");
    return {
      name,
      keyColumn: table.key,
      get: async (key) => {
        const found = await load(key);
        return found && found.state !== "deleted" ? row(found) : undefined;
      },
      list: async () => present(await all()).map(row),
      entry: async (key) => {
        const found = await load(key);
        return found && entryOf(found);
      },
      entries: async () => (await all()).map(entryOf),
      put: async (columns) => {
        const key = columns[table.key] === undefined ? newKey(this.now()) : keyOf(table, columns[table.key]);
        return row(await this.edit((held) => put(held, table, key, columns, this.now())));
      },
      patch: (key, columns) =>
        this.edit(async (held) => {
          const id = keyOf(table, key);
          const found = await held.get(name, id);
          if (!found || found.state === "deleted") throw new RollcallError("no_such_row", `${name} has no row ${id}`);
          return row(await put(held, table, id, columns, this.now()));
        }),
      remove: (key) => this.edit((held) => remove(held, table, keyOf(table, key), this.now())),
      revert: (key) => this.edit((held) => revert(held, table, keyOf(table, key))),
      subscribe: (listener) =>
        this.onTable(name, async (isEnded) => {
          const rows = await all();
          if (!isEnded()) listener(present(rows).map(row), rows.map(entryOf));
        }),
    } satisfies Table<TableSpec> as Table;
  }

  /** Runs `work` at once and after every change of the table, one run at a time. */
  private onTable(name: string, work: (isEnded: () => boolean) => Promise<void>): () => void {
    let [isDue, isRunning, ended] = [true, false, false];
    const run = async () => {
      if (isRunning) return;
      isRunning = true;
      while (isDue && !ended) {
        isDue = false;
        await work(() => ended);
      }
      isRunning = false;
    };
    const stop = this.changes.add((tables) => {
      if (!tables.includes(name)) return;
      isDue = true;
      void run();
    });
    void run();
    return () => {
      ended = true;
      stop();
    };
  }

  private read<R>(work: (held: Held) => Promise<R>): Promise<R> {
    return Held.read(this.store, this.declared, work);
  }

  private async write<R>(work: (held: Held) => Promise<R>): Promise<R> {
    const [result, touched] = await Held.write(this.store, this.declared, work);
    if (touched.size) this.rowsChanged(touched);
    return result;
  }

  private async edit<R>(work: (held: Held) => Promise<R>): Promise<R> {
    const result = await this.write(work);
    for (const live of this.lives) live.edited();
    return result;
  }

  private rowsChanged(tables: Set<string>): void {
    this.channel.notify([...tables]);
    this.notifyChange([...tables]);
  }

  private notifyChange(tables: string[]): void {
    this.changes.notify(tables);
    this.updateStatus({});
  }

  onChange(listener: (tables: string[]) => void): () => void {
    return this.changes.add(listener);
  }

  // -------------------------------------------------------------------------------------------- sync

  async sync(options: SyncOptions = {}): Promise<SyncReport> {
    const called = this.now();
    const way = options.way ?? this.options.way ?? "cursor";
    const control = new AbortController();
    const abort = () => control.abort();
    for (const signal of [options.signal, this.closing.signal]) {
      if (signal?.aborted) abort();
      signal?.addEventListener("abort", abort);
    }
    const context = {
      ...{ store: this.store, tables: this.declared, wire: this.wire, now: this.now },
      rowsChanged: (tables: Set<string>) => this.rowsChanged(tables),
      conflictsFound: (conflicts: readonly Conflict[]) => this.onConflicts(conflicts),
    };
    const work = inTurn(this.store, control.signal, async () => {
      // Another tab may have synced everything while this one waited for its turn.
      const [synced, waiting] = await this.read(async (held) => [await held.recall("synced"), (await held.waiting()).length] as const);
      if (synced && synced.began > called && synced.way === way && !waiting) return synced.report;
      const began = this.now();
      const report = await new SyncRun(context, { ...options, signal: control.signal, way }).run();
      await this.write(async (held) => {
        await held.remember("synced", { began, at: this.now(), report, way });
        await held.remember("away", undefined);
      });
      return report;
    });
    this.syncs.add(work);
    this.updateStatus({});
    try {
      const report = await work;
      // What the user has confirmed is about the rows of this owner.
      const { confirmDeletes: _, ...others } = options;
      await this.syncOwners({ ...others, signal: control.signal });
      this.updateStatus({ lastSync: { at: this.now(), report }, lastError: null });
      return report;
    } catch (error) {
      const { code, message } = error instanceof RollcallError ? error : { code: "internal", message: String(error) };
      if (code === "not_a_member") await this.lost();
      this.updateStatus({ lastError: { at: this.now(), code, message } });
      throw error;
    } finally {
      options.signal?.removeEventListener("abort", abort);
      this.closing.signal.removeEventListener("abort", abort);
      this.syncs.delete(work);
      this.updateStatus({});
    }
  }

  pending(): Promise<Pending> {
    return this.read(async (held) => {
      const pending = { rows: 0, added: 0, edited: 0, deleted: 0, rejected: 0 };
      for (const { state, rejected } of await held.waiting()) {
        if (state === "clean") continue;
        pending.rows++;
        pending[state]++;
        if (rejected) pending.rejected++;
      }
      return pending;
    });
  }

  digests() {
    return this.read(async (held) => {
      const tables = await held.digests();
      return tables && { as_of: (await held.recall("cursor")) ?? null, tables };
    });
  }

  /** Whether a sync has anything to do, if the server is at this version. */
  private isBehind(version: number | null): Promise<boolean> {
    return this.read(async (held) => (await held.recall("cursor")) !== version || (await held.waiting()).length > 0);
  }

  live(options: LiveOptions = {}) {
    const lives = [this.liveHere(options, EVENTS)];
    this.follow = (client) => {
      if (lives.length === 1) lives.push(this.liveOthers(options));
      lives.push(client.liveHere(options, null));
    };
    for (const client of this.opened.values()) this.follow(client);
    return {
      stop: () => {
        this.follow = null;
        for (const live of lives) live.stop();
      },
    };
  }

  /** Follows the events of all other owners in one stream: the server bounds the streams of a user. */
  private liveOthers(options: LiveOptions) {
    const live = new Live(
      {
        ...{ store: this.store, wire: this.wire, events: ALL_EVENTS },
        sync: () => this.syncOwners({ signal: this.closing.signal }),
        isBehind: async () => true,
        retryInMs: async () => null,
        setState: (state) => this.opened.forEach((client) => client.updateStatus({ live: state })),
        setLock: () => {},
        onEvent: (type, { owner, version }) => {
          if (type !== "version") return live.moved(null);
          const client = this.opened.get(String(owner));
          if (client) client.lives.forEach((one) => one.moved(Number(version)));
          else live.moved(null); // another client of the store may have opened it
        },
      },
      options,
    );
    return live;
  }

  /** Syncs the rows of this owner promptly. */
  private liveHere(options: LiveOptions, events: string | null) {
    const context = {
      ...{ store: this.store, wire: this.wire, events },
      sync: () => this.sync(),
      isBehind: (version: number | null) => this.isBehind(version),
      retryInMs: () =>
        this.read(async (held) => {
          const times = (await held.waiting()).flatMap(({ rejected }) => (rejected?.retryAt === undefined ? [] : [rejected.retryAt - this.now()]));
          return times.length ? Math.max(Math.min(...times), 0) : null;
        }),
      setState: (live: Status["live"]) => this.updateStatus({ live, ...(live === "off" ? { lock: null } : {}) }),
      setLock: (lock: Status["lock"]) => this.updateStatus({ lock }),
    };
    const live = new Live(context, options);
    this.lives.add(live);
    return {
      stop: () => {
        this.lives.delete(live);
        live.stop();
      },
    };
  }

  // --------------------------------------------------------------------------------------- conflicts

  /** Removes a conflict from the store and returns it. */
  private async takeConflict(held: Held, id: string): Promise<Conflict> {
    const known = (await held.recall("conflicts")) ?? [];
    const found = known.find((conflict) => conflict.id === id);
    if (!found) throw new RollcallError("not_found", `there is no conflict ${id}`);
    await held.remember("conflicts", known.filter((conflict) => conflict !== found));
    return found;
  }

  private resolve(id: string, as: "mine" | "theirs" | Row | null): Promise<void> {
    return this.edit(async (held) => {
      const conflict = await this.takeConflict(held, id);
      const table = this.declared.get(conflict.table);
      if (as !== "theirs" && table) await settle(held, table, conflict, as === "mine" ? conflict.mine : as, this.now());
    });
  }

  private async onConflicts(conflicts: readonly Conflict[]): Promise<void> {
    const { onConflict } = this.options;
    if (!onConflict) return;
    for (const conflict of conflicts) await this.resolve(conflict.id, (await onConflict(conflict)) ?? "theirs");
  }

  // ------------------------------------------------------------------------------------------- owners

  /** Opens the clients of the owners whose rows are on this device. */
  async reopen(): Promise<void> {
    const [opened, bound] = await this.read(async (held) => [(await held.recall("opened")) ?? [], await held.recall("bound")] as const);
    for (const id of opened) this.opened.set(id, new StoreClient(this.options, this, id));
    this.home = bound?.split(".")[1] ?? null;
  }

  owner(id: string): OwnerClient {
    if (this.account) return this.account.owner(id);
    const owner = readKey(id);
    if (owner === null) throw new RollcallError("bad_owner", `${JSON.stringify(id)} is not the id of an owner`);
    const known = owner === this.home ? this : this.opened.get(owner);
    if (known) return known;
    const client = this.open(owner);
    this.noted = this.changeOpened((stored) => stored.add(owner));
    this.noted.catch(() => {}); // the next sync reports it
    return client;
  }

  /** Changes the stored list of opened owners, which all clients of the store share. */
  private changeOpened(change: (stored: Set<string>) => void): Promise<unknown> {
    return this.write(async (held) => {
      const stored = new Set(await held.recall("opened"));
      change(stored);
      await held.remember("opened", [...stored]);
    });
  }

  /** Opens the owners that another client of this store has opened. */
  private async openOthers(): Promise<void> {
    const stored = (await this.read((held) => held.recall("opened"))) ?? [];
    for (const id of stored) if (!this.opened.has(id)) this.open(id);
  }

  private open(owner: string): StoreClient {
    const client = new StoreClient(this.options, this, owner);
    this.opened.set(owner, client);
    this.follow?.(client);
    return client;
  }

  get id(): string {
    return this.owned ?? this.home ?? "";
  }

  /** Requests about owners and members are those of the account. */
  private calls(): Calls {
    return new Calls((this.account ?? this).wire, this.closing.signal, () => {});
  }

  private async listOwners(known: requests.OwnerList | undefined): Promise<requests.OwnerList> {
    const found = await requests.listOwners(this.calls(), known);
    if (found !== known) await this.write((held) => held.remember("owners", found));
    return found;
  }

  /** Syncs the owners that have moved, or whose rows wait. A failure is in the status of the owner's client. */
  private async syncOwners(options: SyncOptions): Promise<void> {
    if (this.account) return;
    await this.noted;
    await this.openOthers();
    if (!this.opened.size) return;
    const { owners } = await this.listOwners(await this.read((held) => held.recall("owners")));
    const versions = new Map(owners.map(({ owner, version }) => [owner, version]));
    for (const [id, client] of this.opened) {
      const version = versions.get(id);
      const isDue = version === undefined ? !(await client.isAway()) : await client.isBehind(version);
      if (isDue) await client.sync(options).catch(() => {});
    }
  }

  private isAway(): Promise<boolean> {
    return this.read(async (held) => (await held.recall("away")) ?? false);
  }

  /**
   * Notes that the user is no member of the owner any more. Unsent edits are kept for the app, everything else of the owner
   * is dropped. If the server was restored from a backup since, the backup may only lack the membership: nothing is dropped.
   */
  private async lost(): Promise<void> {
    const { account } = this;
    if (!account) return;
    const { owners } = await account.listOwners(await account.read((held) => held.recall("owners")));
    await this.write(async (held) => {
      await held.remember("away", true);
      if (requests.epochOf(owners) > ((await held.recall("epoch")) ?? 0) || owners.some(({ owner }) => owner === this.owned)) return;
      const rows: Left["rows"][number][] = [];
      for (const table of this.declared.values()) {
        for (const stored of await held.all(table.name)) {
          if (stored.state !== "clean") rows.push({ table: table.name, key: stored.key, state: stored.state, row: shown(table, stored.key, stored.row) });
          await held.replace(stored, null);
        }
      }
      const earlier = (await held.recall("left"))?.rows ?? [];
      await held.remember("left", { at: this.now(), rows: [...earlier, ...rows] });
      for (const name of COPY) await held.remember(name, undefined);
    });
  }

  left(): Promise<Left | null> {
    return this.read(async (held) => (await held.recall("left")) ?? null);
  }

  async forget(): Promise<void> {
    const { account, owned } = this;
    if (!account || owned === null) throw new RollcallError("own_owner", "the rows of the account itself stay on the device: wipe the store");
    for (const live of this.lives) live.stop();
    await inTurn(this.store, undefined, () =>
      this.write(async (held) => {
        for (const name of this.declared.keys()) for (const stored of await held.all(name)) await held.replace(stored, null);
        for (const name of [...COPY, "left", "away"] as const) await held.remember(name, undefined);
      }),
    );
    account.opened.delete(owned);
    await account.changeOpened((stored) => stored.delete(owned));
  }

  /** The owner's id; that of the account's own owner is known once the store is bound. */
  private async ownerId(): Promise<string> {
    if (!this.id) await this.calls().identity();
    if (!this.id) throw new RollcallError("no_owners", "the server is of a release without owners");
    return this.id;
  }

  rename(name: string) {
    return this.ownerId().then((owner) => requests.renameOwner(this.calls(), owner, name));
  }
  delete() {
    return this.ownerId().then((owner) => requests.deleteOwner(this.calls(), owner));
  }
  members() {
    return this.ownerId().then((owner) => requests.listMembers(this.calls(), owner));
  }
  setRole(user: string, role: Role) {
    return this.ownerId().then((owner) => requests.setRole(this.calls(), owner, user, role));
  }
  removeMember(user: string) {
    return this.ownerId().then((owner) => requests.removeMember(this.calls(), owner, user));
  }
  invite(invitation: NewInvitation) {
    return this.ownerId().then((owner) => requests.invite(this.calls(), owner, invitation));
  }
  invitations() {
    return this.ownerId().then((owner) => requests.listInvitations(this.calls(), owner));
  }
  revoke(invitation: string) {
    return this.ownerId().then((owner) => requests.revokeInvitation(this.calls(), owner, invitation));
  }

  // ------------------------------------------------------------------------------------------ account

  private async call(method: string, path: string, body?: Json): Promise<Json> {
    const response = await new Calls(this.wire, this.closing.signal, () => {}).call(method, path, () => ({ body }));
    return response.body ?? null;
  }

  private async token(refused: string | null): Promise<string | null> {
    const { token, login } = this.options;
    if (typeof token === "function") return token();
    if (typeof token === "string") return token === refused ? null : token;
    const storedToken = async () => {
      const stored = await this.read((held) => held.recall("token"));
      return stored === undefined || stored === refused ? null : stored;
    };
    const found = await storedToken();
    if (found !== null || !login) return found;
    // A second log-in at the same time would revoke the first one's token, or create a device that is never used.
    return this.inLoginTurn(async () => (await storedToken()) ?? this.requestToken(login));
  }

  /** Runs a log-in while no other client of this store logs in. */
  private inLoginTurn<R>(work: () => Promise<R>): Promise<R> {
    return inTurn(this.store, this.closing.signal, work, "login");
  }

  /** Binds the store at its first request. A store of an older release may hold rows, of the owner with the stored seed. */
  private async bind(me: Me, seed: () => Promise<string>): Promise<void> {
    const [known, email] = await this.read(async (held) => [await held.recall("seed"), await held.recall("email")] as const);
    // After a log-in the address has already been compared.
    if (known !== undefined && email === undefined && (await seed()) !== known) throw otherUser("another user");
    await this.write((held) => bind(held, me));
    if (!this.account) this.home = me.owner;
  }

  async logIn(login: Login): Promise<void> {
    await this.inLoginTurn(() => this.requestToken(login));
    for (const live of this.lives) live.edited();
  }

  private async requestToken({ email: typed, password, device, register }: Login): Promise<string> {
    const email = typed.trim().toLowerCase();
    const [known, device_id] = await this.read(async (held) => [await held.recall("email"), await held.recall("device_id")] as const);
    // Another user's manifest would not contain these rows, so a sync would drop all of them.
    if (known !== undefined && known !== email) throw otherUser(known);
    const calls = new Calls(this.wire, this.closing.signal, () => {});
    const post = (path: string, body: Json) => calls.call("POST", path, () => ({ body }), { open: true });
    if (register) {
      await post("/register", { email, password }).catch((error: unknown) => {
        if (!(error instanceof RollcallError && error.code === "email_taken")) throw error;
      });
    }
    const credentials = { email, password, device, ...(device_id === undefined ? {} : { device_id }) };
    const session = (await post("/login", credentials)).body as { token: string; device_id: string };
    const me = await calls.me(session.token);
    try {
      await this.write(async (held) => {
        if (me) await bind(held, me), (this.home = me.owner); // throws if a token of another user has bound the store, which then has no address
        await held.remember("email", email);
        await held.remember("device_id", session.device_id);
        await held.remember("token", session.token);
      });
    } catch (error) {
      await calls.call("POST", "/logout", undefined, { token: session.token, unbound: true }).catch(() => {});
      throw error;
    }
    return session.token;
  }

  async logOut({ wipe = false } = {}): Promise<void> {
    await this.call("POST", "/logout").catch(() => {}); // offline, or revoked already: the token is deleted here anyway
    await this.write((held) => held.remember("token", undefined));
    if (wipe) await this.wipe();
  }

  async wipe(): Promise<void> {
    await inTurn(this.store, undefined, () => this.store.wipe());
    for (const client of [this, ...this.opened.values()]) client.rowsChanged(new Set(this.declared.keys()));
    this.opened.clear();
  }

  async close(): Promise<void> {
    this.closing.abort();
    for (const live of this.lives) live.stop();
    this.lives.clear();
    this.channel.close();
    await Promise.allSettled([...this.syncs, this.noted]);
    for (const client of this.opened.values()) await client.close();
    if (!this.account) await this.store.close();
  }

  // ------------------------------------------------------------------------------------------- status

  onTraffic(listener: (traffic: Traffic) => void): () => void {
    return this.traffic.add(listener);
  }

  onStatus(listener: (status: Status) => void): () => void {
    const stop = this.statuses.add(listener);
    this.updateStatus({});
    return stop;
  }

  /** Changes the status and notifies its listeners, once for all changes of the same moment. */
  private updateStatus(changes: Partial<Omit<Status, "pending" | "syncing">>): void {
    this.status = { ...this.status, ...changes };
    if (this.isNotifying || this.statuses.isEmpty) return;
    this.isNotifying = true;
    void Promise.resolve().then(async () => {
      try {
        const pending = await this.pending();
        this.isNotifying = false;
        this.statuses.notify({ ...this.status, syncing: this.syncs.size > 0, pending });
      } catch {
        this.isNotifying = false; // the store is closed
      }
    });
  }
}

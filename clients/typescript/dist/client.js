import { about, Calls } from "./calls.js";
import { keyOf, put, remove, revert, settle } from "./edits.js";
import { RollcallError } from "./error.js";
import { adopt, bind, headersOf, otherUser } from "./identity.js";
import { declare, Held, shown } from "./held.js";
import { newKey, readKey } from "./key.js";
import { ALL_EVENTS, EVENTS, Live } from "./live.js";
import * as requests from "./owners.js";
import { partOf } from "./part.js";
import { SyncRun } from "./sync.js";
import { inTurn, openChannel, pause } from "./turn.js";
const COPY = ["cursor", "epoch", "known", "seed", "digests", "outstanding", "etag", "feed", "feeds", "edits", "conflicts", "synced"];
class Listeners {
    constructor() {
        this.all = new Set();
    }
    add(listener) {
        const own = (event) => listener(event);
        this.all.add(own);
        return () => void this.all.delete(own);
    }
    notify(event) {
        for (const listener of [...this.all])
            listener(event);
    }
    get isEmpty() {
        return this.all.size === 0;
    }
}
export async function openClient(options) {
    const client = new StoreClient(options);
    await client.reopen();
    return client;
}
class StoreClient {
    constructor(options, account = null, owned = null) {
        this.options = options;
        this.account = account;
        this.owned = owned;
        this.home = null;
        this.opened = new Map();
        this.noted = Promise.resolve();
        this.closing = new AbortController();
        this.changes = new Listeners();
        this.traffic = new Listeners();
        this.statuses = new Listeners();
        this.lives = new Set();
        this.status = { lock: null, online: null, live: "off", lastSync: null, lastError: null };
        this.syncs = new Set();
        this.follow = null;
        this.isNotifying = false;
        this.store = partOf(options.store, owned);
        this.tables = options.tables;
        this.declared = declare(options.tables);
        this.now = options.now ?? Date.now;
        this.channel = openChannel(this.store, (tables) => this.notifyChange(tables));
        const patience = {
            ...{ attemptsMax: 6, lockWaitMaxMs: 120000, requestMaxMs: 60000, pause, random: Math.random },
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
            dismiss: (id) => this.write((held) => this.takeConflict(held, id)).then(() => { }),
            resolve: (id, as) => this.resolve(id, as),
            history: async (query = {}) => {
                const parameters = Object.entries(query).map(([name, value]) => `${name}=${encodeURIComponent(value)}`);
                return (await this.call("GET", about(this.wire, `/conflicts?${parameters.join("&")}`)));
            },
            restore: (id) => this.call("POST", about(this.wire, `/conflicts/${encodeURIComponent(id)}/restore`)),
        };
        this.owners = {
            list: async () => {
                const known = await this.read((held) => held.recall("owners"));
                try {
                    return (await this.listOwners(known)).owners;
                }
                catch (error) {
                    if (known && error instanceof RollcallError && error.code === "offline")
                        return known.owners;
                    throw error;
                }
            },
            make: (name) => requests.makeOwner(this.calls(), name),
            accept: (code, name) => requests.acceptInvitation(this.calls(), code, name),
        };
    }
    table(name) {
        const table = this.declared.get(name);
        if (!table) {
            throw new RollcallError("no_such_table", `there is no table ${JSON.stringify(name)}; there are ${[...this.declared.keys()].join(", ")}`);
        }
        const row = (stored) => shown(table, stored.key, stored.row);
        const entryOf = (stored) => ({
            ...{ table: name, key: stored.key, row: row(stored), state: stored.state, lastUpdate: stored.at, base: stored.base },
            ...{ baseRow: stored.baseRow ? shown(table, stored.key, stored.baseRow) : null, editedAt: stored.editedAt },
            rejected: stored.rejected ?? null,
        });
        const load = (key) => this.read((held) => held.get(name, keyOf(table, key)));
        const all = () => this.read((held) => held.all(name));
        const present = (rows) => rows.filter(({ state }) => state !== "deleted");
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
            patch: (key, columns) => this.edit(async (held) => {
                const id = keyOf(table, key);
                const found = await held.get(name, id);
                if (!found || found.state === "deleted")
                    throw new RollcallError("no_such_row", `${name} has no row ${id}`);
                return row(await put(held, table, id, columns, this.now()));
            }),
            remove: (key) => this.edit((held) => remove(held, table, keyOf(table, key), this.now())),
            revert: (key) => this.edit((held) => revert(held, table, keyOf(table, key))),
            subscribe: (listener) => this.onTable(name, async (isEnded) => {
                const rows = await all();
                if (!isEnded())
                    listener(present(rows).map(row), rows.map(entryOf));
            }),
        };
    }
    onTable(name, work) {
        let [isDue, isRunning, ended] = [true, false, false];
        const run = async () => {
            if (isRunning)
                return;
            isRunning = true;
            while (isDue && !ended) {
                isDue = false;
                await work(() => ended);
            }
            isRunning = false;
        };
        const stop = this.changes.add((tables) => {
            if (!tables.includes(name))
                return;
            isDue = true;
            void run();
        });
        void run();
        return () => {
            ended = true;
            stop();
        };
    }
    read(work) {
        return Held.read(this.store, this.declared, work);
    }
    async write(work) {
        const [result, touched] = await Held.write(this.store, this.declared, work);
        if (touched.size)
            this.rowsChanged(touched);
        return result;
    }
    async edit(work) {
        const result = await this.write(work);
        for (const live of this.lives)
            live.edited();
        return result;
    }
    rowsChanged(tables) {
        this.channel.notify([...tables]);
        this.notifyChange([...tables]);
    }
    notifyChange(tables) {
        this.changes.notify(tables);
        this.updateStatus({});
    }
    onChange(listener) {
        return this.changes.add(listener);
    }
    async sync(options = {}) {
        const called = this.now();
        const way = options.way ?? this.options.way ?? "cursor";
        const control = new AbortController();
        const abort = () => control.abort();
        for (const signal of [options.signal, this.closing.signal]) {
            if (signal?.aborted)
                abort();
            signal?.addEventListener("abort", abort);
        }
        const context = {
            ...{ store: this.store, tables: this.declared, wire: this.wire, now: this.now },
            rowsChanged: (tables) => this.rowsChanged(tables),
            conflictsFound: (conflicts) => this.onConflicts(conflicts),
        };
        const work = inTurn(this.store, control.signal, async () => {
            const [synced, waiting] = await this.read(async (held) => [await held.recall("synced"), (await held.waiting()).length]);
            if (synced && synced.began > called && synced.way === way && !waiting)
                return synced.report;
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
            const { confirmDeletes: _, ...others } = options;
            await this.syncOwners({ ...others, signal: control.signal });
            this.updateStatus({ lastSync: { at: this.now(), report }, lastError: null });
            return report;
        }
        catch (error) {
            const { code, message } = error instanceof RollcallError ? error : { code: "internal", message: String(error) };
            if (code === "not_a_member")
                await this.lost();
            this.updateStatus({ lastError: { at: this.now(), code, message } });
            throw error;
        }
        finally {
            options.signal?.removeEventListener("abort", abort);
            this.closing.signal.removeEventListener("abort", abort);
            this.syncs.delete(work);
            this.updateStatus({});
        }
    }
    pending() {
        return this.read(async (held) => {
            const pending = { rows: 0, added: 0, edited: 0, deleted: 0, rejected: 0 };
            for (const { state, rejected } of await held.waiting()) {
                if (state === "clean")
                    continue;
                pending.rows++;
                pending[state]++;
                if (rejected)
                    pending.rejected++;
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
    isBehind(version) {
        return this.read(async (held) => (await held.recall("cursor")) !== version || (await held.waiting()).length > 0);
    }
    live(options = {}) {
        const lives = [this.liveHere(options, EVENTS)];
        this.follow = (client) => {
            if (lives.length === 1)
                lives.push(this.liveOthers(options));
            lives.push(client.liveHere(options, null));
        };
        for (const client of this.opened.values())
            this.follow(client);
        return {
            stop: () => {
                this.follow = null;
                for (const live of lives)
                    live.stop();
            },
        };
    }
    liveOthers(options) {
        const live = new Live({
            ...{ store: this.store, wire: this.wire, events: ALL_EVENTS },
            sync: () => this.syncOwners({ signal: this.closing.signal }),
            isBehind: async () => true,
            retryInMs: async () => null,
            setState: (state) => this.opened.forEach((client) => client.updateStatus({ live: state })),
            setLock: () => { },
            onEvent: (type, { owner, version }) => {
                if (type !== "version")
                    return live.moved(null);
                const client = this.opened.get(String(owner));
                if (client)
                    client.lives.forEach((one) => one.moved(Number(version)));
                else
                    live.moved(null);
            },
        }, options);
        return live;
    }
    liveHere(options, events) {
        const context = {
            ...{ store: this.store, wire: this.wire, events },
            sync: () => this.sync(),
            isBehind: (version) => this.isBehind(version),
            retryInMs: () => this.read(async (held) => {
                const times = (await held.waiting()).flatMap(({ rejected }) => (rejected?.retryAt === undefined ? [] : [rejected.retryAt - this.now()]));
                return times.length ? Math.max(Math.min(...times), 0) : null;
            }),
            setState: (live) => this.updateStatus({ live, ...(live === "off" ? { lock: null } : {}) }),
            setLock: (lock) => this.updateStatus({ lock }),
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
    async takeConflict(held, id) {
        const known = (await held.recall("conflicts")) ?? [];
        const found = known.find((conflict) => conflict.id === id);
        if (!found)
            throw new RollcallError("not_found", `there is no conflict ${id}`);
        await held.remember("conflicts", known.filter((conflict) => conflict !== found));
        return found;
    }
    resolve(id, as) {
        return this.edit(async (held) => {
            const conflict = await this.takeConflict(held, id);
            const table = this.declared.get(conflict.table);
            if (as !== "theirs" && table)
                await settle(held, table, conflict, as === "mine" ? conflict.mine : as, this.now());
        });
    }
    async onConflicts(conflicts) {
        const { onConflict } = this.options;
        if (!onConflict)
            return;
        for (const conflict of conflicts)
            await this.resolve(conflict.id, (await onConflict(conflict)) ?? "theirs");
    }
    async reopen() {
        const [opened, bound] = await this.read(async (held) => [(await held.recall("opened")) ?? [], await held.recall("bound")]);
        for (const id of opened)
            this.opened.set(id, new StoreClient(this.options, this, id));
        this.home = bound?.split(".")[1] ?? null;
    }
    owner(id) {
        if (this.account)
            return this.account.owner(id);
        const owner = readKey(id);
        if (owner === null)
            throw new RollcallError("bad_owner", `${JSON.stringify(id)} is not the id of an owner`);
        const known = owner === this.home ? this : this.opened.get(owner);
        if (known)
            return known;
        const client = this.open(owner);
        this.noted = this.changeOpened((stored) => stored.add(owner));
        this.noted.catch(() => { });
        return client;
    }
    changeOpened(change) {
        return this.write(async (held) => {
            const stored = new Set(await held.recall("opened"));
            change(stored);
            await held.remember("opened", [...stored]);
        });
    }
    async openOthers() {
        const stored = (await this.read((held) => held.recall("opened"))) ?? [];
        for (const id of stored)
            if (!this.opened.has(id))
                this.open(id);
    }
    open(owner) {
        const client = new StoreClient(this.options, this, owner);
        this.opened.set(owner, client);
        this.follow?.(client);
        return client;
    }
    get id() {
        return this.owned ?? this.home ?? "";
    }
    calls() {
        return new Calls((this.account ?? this).wire, this.closing.signal, () => { });
    }
    async listOwners(known) {
        const found = await requests.listOwners(this.calls(), known);
        if (found !== known)
            await this.write((held) => held.remember("owners", found));
        return found;
    }
    async syncOwners(options) {
        if (this.account)
            return;
        await this.noted;
        await this.openOthers();
        if (!this.opened.size)
            return;
        const { owners } = await this.listOwners(await this.read((held) => held.recall("owners")));
        const versions = new Map(owners.map(({ owner, version }) => [owner, version]));
        for (const [id, client] of this.opened) {
            const version = versions.get(id);
            const isDue = version === undefined ? !(await client.isAway()) : await client.isBehind(version);
            if (isDue)
                await client.sync(options).catch(() => { });
        }
    }
    isAway() {
        return this.read(async (held) => (await held.recall("away")) ?? false);
    }
    async lost() {
        const { account } = this;
        if (!account)
            return;
        const { owners } = await account.listOwners(await account.read((held) => held.recall("owners")));
        await this.write(async (held) => {
            await held.remember("away", true);
            if (requests.epochOf(owners) > ((await held.recall("epoch")) ?? 0) || owners.some(({ owner }) => owner === this.owned))
                return;
            const rows = [];
            for (const table of this.declared.values()) {
                for (const stored of await held.all(table.name)) {
                    if (stored.state !== "clean")
                        rows.push({ table: table.name, key: stored.key, state: stored.state, row: shown(table, stored.key, stored.row) });
                    await held.replace(stored, null);
                }
            }
            const earlier = (await held.recall("left"))?.rows ?? [];
            await held.remember("left", { at: this.now(), rows: [...earlier, ...rows] });
            for (const name of COPY)
                await held.remember(name, undefined);
        });
    }
    left() {
        return this.read(async (held) => (await held.recall("left")) ?? null);
    }
    async forget() {
        const { account, owned } = this;
        if (!account || owned === null)
            throw new RollcallError("own_owner", "the rows of the account itself stay on the device: wipe the store");
        for (const live of this.lives)
            live.stop();
        await inTurn(this.store, undefined, () => this.write(async (held) => {
            for (const name of this.declared.keys())
                for (const stored of await held.all(name))
                    await held.replace(stored, null);
            for (const name of [...COPY, "left", "away"])
                await held.remember(name, undefined);
        }));
        account.opened.delete(owned);
        await account.changeOpened((stored) => stored.delete(owned));
    }
    async ownerId() {
        if (!this.id)
            await this.calls().identity();
        if (!this.id)
            throw new RollcallError("no_owners", "the server is of a release without owners");
        return this.id;
    }
    rename(name) {
        return this.ownerId().then((owner) => requests.renameOwner(this.calls(), owner, name));
    }
    delete() {
        return this.ownerId().then((owner) => requests.deleteOwner(this.calls(), owner));
    }
    members() {
        return this.ownerId().then((owner) => requests.listMembers(this.calls(), owner));
    }
    setRole(user, role) {
        return this.ownerId().then((owner) => requests.setRole(this.calls(), owner, user, role));
    }
    removeMember(user) {
        return this.ownerId().then((owner) => requests.removeMember(this.calls(), owner, user));
    }
    invite(invitation) {
        return this.ownerId().then((owner) => requests.invite(this.calls(), owner, invitation));
    }
    invitations() {
        return this.ownerId().then((owner) => requests.listInvitations(this.calls(), owner));
    }
    revoke(invitation) {
        return this.ownerId().then((owner) => requests.revokeInvitation(this.calls(), owner, invitation));
    }
    async call(method, path, body) {
        const response = await new Calls(this.wire, this.closing.signal, () => { }).call(method, path, () => ({ body }));
        return response.body ?? null;
    }
    async token(refused) {
        const { token, login } = this.options;
        if (typeof token === "function")
            return token();
        if (typeof token === "string")
            return token === refused ? null : token;
        const storedToken = async () => {
            const stored = await this.read((held) => held.recall("token"));
            return stored === undefined || stored === refused ? null : stored;
        };
        const found = await storedToken();
        if (found !== null || !login)
            return found;
        return this.inLoginTurn(async () => (await storedToken()) ?? this.requestToken(login));
    }
    inLoginTurn(work) {
        return inTurn(this.store, this.closing.signal, work, "login");
    }
    async bind(me, seed) {
        const [known, email] = await this.read(async (held) => [await held.recall("seed"), await held.recall("email")]);
        if (known !== undefined && email === undefined && (await seed()) !== known)
            throw otherUser("another user");
        await this.write((held) => bind(held, me));
        if (!this.account)
            this.home = me.owner;
    }
    async logIn(login) {
        await this.inLoginTurn(() => this.requestToken(login));
        for (const live of this.lives)
            live.edited();
    }
    async requestToken({ email: typed, password, device, register }) {
        const email = typed.trim().toLowerCase();
        const [known, device_id] = await this.read(async (held) => [await held.recall("email"), await held.recall("device_id")]);
        if (known !== undefined && known !== email)
            throw otherUser(known);
        const calls = new Calls(this.wire, this.closing.signal, () => { });
        const post = (path, body) => calls.call("POST", path, () => ({ body }), { open: true });
        if (register) {
            await post("/register", { email, password }).catch((error) => {
                if (!(error instanceof RollcallError && error.code === "email_taken"))
                    throw error;
            });
        }
        const credentials = { email, password, device, ...(device_id === undefined ? {} : { device_id }) };
        const session = (await post("/login", credentials)).body;
        const me = await calls.me(session.token);
        try {
            await this.write(async (held) => {
                if (me)
                    await bind(held, me), (this.home = me.owner);
                await held.remember("email", email);
                await held.remember("device_id", session.device_id);
                await held.remember("token", session.token);
            });
        }
        catch (error) {
            await calls.call("POST", "/logout", undefined, { token: session.token, unbound: true }).catch(() => { });
            throw error;
        }
        return session.token;
    }
    async logOut({ wipe = false } = {}) {
        await this.call("POST", "/logout").catch(() => { });
        await this.write((held) => held.remember("token", undefined));
        if (wipe)
            await this.wipe();
    }
    async wipe() {
        await inTurn(this.store, undefined, () => this.store.wipe());
        for (const client of [this, ...this.opened.values()])
            client.rowsChanged(new Set(this.declared.keys()));
        this.opened.clear();
    }
    async close() {
        this.closing.abort();
        for (const live of this.lives)
            live.stop();
        this.lives.clear();
        this.channel.close();
        await Promise.allSettled([...this.syncs, this.noted]);
        for (const client of this.opened.values())
            await client.close();
        if (!this.account)
            await this.store.close();
    }
    onTraffic(listener) {
        return this.traffic.add(listener);
    }
    onStatus(listener) {
        const stop = this.statuses.add(listener);
        this.updateStatus({});
        return stop;
    }
    updateStatus(changes) {
        this.status = { ...this.status, ...changes };
        if (this.isNotifying || this.statuses.isEmpty)
            return;
        this.isNotifying = true;
        void Promise.resolve().then(async () => {
            try {
                const pending = await this.pending();
                this.isNotifying = false;
                this.statuses.notify({ ...this.status, syncing: this.syncs.size > 0, pending });
            }
            catch {
                this.isNotifying = false;
            }
        });
    }
}

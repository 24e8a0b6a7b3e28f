import { Calls } from "./calls.js";
import { keyOf, put, remove, revert, settle } from "./edits.js";
import { RollcallError } from "./error.js";
import { adopt, bind, headersOf, otherUser } from "./identity.js";
import { declare, Held, shown } from "./held.js";
import { newKey } from "./key.js";
import { Live } from "./live.js";
import { Syncing } from "./sync.js";
import { inTurn, openChannel, pause } from "./turn.js";
class Listeners {
    constructor() {
        this.all = new Set();
    }
    add(listener) {
        const own = (told) => listener(told);
        this.all.add(own);
        return () => void this.all.delete(own);
    }
    tell(told) {
        for (const listener of [...this.all])
            listener(told);
    }
    get some() {
        return this.all.size > 0;
    }
}
export async function openClient(options) {
    const client = new Opened(options);
    await client.pending();
    return client;
}
class Opened {
    constructor(options) {
        this.options = options;
        this.closing = new AbortController();
        this.changes = new Listeners();
        this.traffic = new Listeners();
        this.statuses = new Listeners();
        this.lives = new Set();
        this.known = { lock: null, online: null, live: "off", lastSync: null, lastError: null };
        this.syncs = new Set();
        this.telling = false;
        this.tables = options.tables;
        this.declared = declare(options.tables);
        this.now = options.now ?? Date.now;
        this.channel = openChannel(options.store, (tables) => this.heard(tables));
        const patience = {
            ...{ attemptsMax: 6, lockWaitMaxMs: 120000, requestMaxMs: 60000, pause, random: Math.random },
            ...options.patience,
        };
        this.wire = {
            url: options.url.replace(/\/+$/, ""),
            fetch: options.fetch ?? ((...asked) => globalThis.fetch(...asked)),
            patience,
            token: (refused) => this.token(refused),
            identity: () => this.read(headersOf),
            olderUntil: 0,
            bind: (me, seed) => this.bind(me, seed),
            adopt: (sent, made) => this.write((held) => adopt(held, sent, made)),
            traffic: (traffic) => this.traffic.tell(traffic),
            listening: () => this.traffic.some,
            online: (online) => this.know({ online }),
        };
        this.conflicts = {
            list: async () => (await this.read((held) => held.recall("conflicts"))) ?? [],
            dismiss: (id) => this.write((held) => this.forget(held, id)).then(() => { }),
            resolve: (id, as) => this.resolve(id, as),
            history: async (query = {}) => {
                const asked = Object.entries(query).map(([name, value]) => `${name}=${encodeURIComponent(value)}`);
                return (await this.ask("GET", `/conflicts?${asked.join("&")}`));
            },
            restore: (id) => this.ask("POST", `/conflicts/${encodeURIComponent(id)}/restore`),
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
        const there = (rows) => rows.filter(({ state }) => state !== "deleted");
        return {
            name,
            keyColumn: table.key,
            get: async (key) => {
                const found = await load(key);
                return found && found.state !== "deleted" ? row(found) : undefined;
            },
            list: async () => there(await all()).map(row),
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
            subscribe: (listener) => {
                let [wanted, working, ended] = [true, false, false];
                const tell = async () => {
                    if (working)
                        return;
                    working = true;
                    while (wanted && !ended) {
                        wanted = false;
                        const rows = await all();
                        if (!ended)
                            listener(there(rows).map(row), rows.map(entryOf));
                    }
                    working = false;
                };
                const stop = this.changes.add((tables) => {
                    if (!tables.includes(name))
                        return;
                    wanted = true;
                    void tell();
                });
                void tell();
                return () => {
                    ended = true;
                    stop();
                };
            },
        };
    }
    read(work) {
        return Held.read(this.options.store, this.declared, work);
    }
    async write(work) {
        const [result, touched] = await Held.write(this.options.store, this.declared, work);
        if (touched.size)
            this.touched(touched);
        return result;
    }
    async edit(work) {
        const result = await this.write(work);
        for (const live of this.lives)
            live.edited();
        return result;
    }
    touched(tables) {
        this.channel.tell([...tables]);
        this.heard([...tables]);
    }
    heard(tables) {
        this.changes.tell(tables);
        this.know({});
    }
    onChange(listener) {
        return this.changes.add(listener);
    }
    async sync(options = {}) {
        const asked = this.now();
        const way = options.way ?? this.options.way ?? "cursor";
        const control = new AbortController();
        const abort = () => control.abort();
        for (const signal of [options.signal, this.closing.signal]) {
            if (signal?.aborted)
                abort();
            signal?.addEventListener("abort", abort);
        }
        const ground = {
            ...{ store: this.options.store, tables: this.declared, wire: this.wire, now: this.now },
            touched: (tables) => this.touched(tables),
            lost: (conflicts) => this.lost(conflicts),
        };
        const work = inTurn(this.options.store, control.signal, async () => {
            const [synced, waiting] = await this.read(async (held) => [await held.recall("synced"), (await held.waiting()).length]);
            if (synced && synced.began > asked && synced.way === way && !waiting)
                return synced.report;
            const began = this.now();
            const done = await new Syncing(ground, { ...options, signal: control.signal, way }).run();
            await this.write((held) => held.remember("synced", { began, at: this.now(), report: done, way }));
            return done;
        });
        this.syncs.add(work);
        this.know({});
        try {
            const report = await work;
            this.know({ lastSync: { at: this.now(), report }, lastError: null });
            return report;
        }
        catch (error) {
            const { code, message } = error instanceof RollcallError ? error : { code: "internal", message: String(error) };
            this.know({ lastError: { at: this.now(), code, message } });
            throw error;
        }
        finally {
            options.signal?.removeEventListener("abort", abort);
            this.closing.signal.removeEventListener("abort", abort);
            this.syncs.delete(work);
            this.know({});
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
    live(options = {}) {
        const lively = {
            ...{ store: this.options.store, wire: this.wire },
            sync: () => this.sync(),
            behind: (version) => this.read(async (held) => (await held.recall("cursor")) !== version || (await held.waiting()).length > 0),
            retryAt: () => this.read(async (held) => {
                const times = (await held.waiting()).flatMap(({ rejected }) => (rejected?.retryAt === undefined ? [] : [rejected.retryAt - this.now()]));
                return times.length ? Math.max(Math.min(...times), 0) : null;
            }),
            state: (live) => this.know({ live, ...(live === "off" ? { lock: null } : {}) }),
            lock: (lock) => this.know({ lock }),
        };
        const live = new Live(lively, options);
        this.lives.add(live);
        return {
            stop: () => {
                this.lives.delete(live);
                live.stop();
            },
        };
    }
    async forget(held, id) {
        const known = (await held.recall("conflicts")) ?? [];
        const found = known.find((conflict) => conflict.id === id);
        if (!found)
            throw new RollcallError("not_found", `there is no conflict ${id}`);
        await held.remember("conflicts", known.filter((conflict) => conflict !== found));
        return found;
    }
    resolve(id, as) {
        return this.edit(async (held) => {
            const conflict = await this.forget(held, id);
            const table = this.declared.get(conflict.table);
            if (as !== "theirs" && table)
                await settle(held, table, conflict, as === "mine" ? conflict.mine : as, this.now());
        });
    }
    async lost(conflicts) {
        const { onConflict } = this.options;
        if (!onConflict)
            return;
        for (const conflict of conflicts)
            await this.resolve(conflict.id, (await onConflict(conflict)) ?? "theirs");
    }
    async ask(method, path, body) {
        const answer = await new Calls(this.wire, this.closing.signal, () => { }).ask(method, path, () => ({ body }));
        return answer.body ?? null;
    }
    async token(refused) {
        const { token, login } = this.options;
        if (typeof token === "function")
            return token();
        if (typeof token === "string")
            return token === refused ? null : token;
        const known = async () => {
            const found = await this.read((held) => held.recall("token"));
            return found === undefined || found === refused ? null : found;
        };
        const found = await known();
        if (found !== null || !login)
            return found;
        return this.alone(async () => (await known()) ?? this.enter(login));
    }
    alone(work) {
        return inTurn(this.options.store, this.closing.signal, work, "login");
    }
    async bind(me, seed) {
        const [known, email] = await this.read(async (held) => [await held.recall("seed"), await held.recall("email")]);
        if (known !== undefined && email === undefined && (await seed()) !== known)
            throw otherUser("another user");
        await this.write((held) => bind(held, me));
    }
    async logIn(login) {
        await this.alone(() => this.enter(login));
        for (const live of this.lives)
            live.edited();
    }
    async enter({ email: written, password, device, register }) {
        const email = written.trim().toLowerCase();
        const [known, device_id] = await this.read(async (held) => [await held.recall("email"), await held.recall("device_id")]);
        if (known !== undefined && known !== email)
            throw otherUser(known);
        const calls = new Calls(this.wire, this.closing.signal, () => { });
        const post = (path, body) => calls.ask("POST", path, () => ({ body }), { open: true });
        if (register) {
            await post("/register", { email, password }).catch((error) => {
                if (!(error instanceof RollcallError && error.code === "email_taken"))
                    throw error;
            });
        }
        const asked = { email, password, device, ...(device_id === undefined ? {} : { device_id }) };
        const said = (await post("/login", asked)).body;
        const me = await calls.me(said.token);
        try {
            await this.write(async (held) => {
                if (me)
                    await bind(held, me);
                await held.remember("email", email);
                await held.remember("device_id", said.device_id);
                await held.remember("token", said.token);
            });
        }
        catch (error) {
            await calls.ask("POST", "/logout", undefined, { token: said.token, unbound: true }).catch(() => { });
            throw error;
        }
        return said.token;
    }
    async logOut({ wipe = false } = {}) {
        await this.ask("POST", "/logout").catch(() => { });
        await this.write((held) => held.remember("token", undefined));
        if (wipe)
            await this.wipe();
    }
    async wipe() {
        await inTurn(this.options.store, undefined, () => this.options.store.wipe());
        this.touched(new Set(this.declared.keys()));
    }
    async close() {
        this.closing.abort();
        for (const live of this.lives)
            live.stop();
        this.lives.clear();
        this.channel.close();
        await Promise.allSettled(this.syncs);
        await this.options.store.close();
    }
    onTraffic(listener) {
        return this.traffic.add(listener);
    }
    onStatus(listener) {
        const stop = this.statuses.add(listener);
        this.know({});
        return stop;
    }
    know(news) {
        this.known = { ...this.known, ...news };
        if (this.telling || !this.statuses.some)
            return;
        this.telling = true;
        void Promise.resolve().then(async () => {
            try {
                const pending = await this.pending();
                this.telling = false;
                this.statuses.tell({ ...this.known, syncing: this.syncs.size > 0, pending });
            }
            catch {
                this.telling = false;
            }
        });
    }
}

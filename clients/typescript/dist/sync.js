import { compare, pauseMs } from "./decide.js";
import { BODY_SHARE, inOrder, isDivisible, nextRequest, requeue, sizeOf, stamped, } from "./batch.js";
import { Calls, tookTooLong } from "./calls.js";
import { RollcallError } from "./error.js";
import { Held, isAboutOthers, localOf, mayTryAgain, rejectionOf } from "./held.js";
import { advance } from "./identity.js";
import { newKey, readKey } from "./key.js";
import { Settling } from "./settle.js";
const STARTS_MAX = 4;
const ROUNDS_MAX = 8;
const is = (error, ...codes) => error instanceof RollcallError && codes.includes(error.code);
const name = (table, key) => `${table} ${key}`;
export class SyncRun {
    constructor(context, options) {
        this.context = context;
        this.options = options;
        this.tally = { pushed: 0, pulled: 0, dropped: 0, verdicts: {} };
        this.conflicts = [];
        this.refused = new Map();
        this.slow = 0;
        this.serverDigests = null;
        this.resumed = false;
        this.doubt = false;
        this.progress = options.onProgress ?? (() => { });
        this.calls = new Calls(context.wire, options.signal, this.progress);
        this.way = options.way;
        this.confirmedDeletes = options.confirmDeletes ?? 0;
    }
    async run() {
        const began = this.context.now();
        try {
            await this.prepare();
            await this.resume();
            await (this.way === "manifest" ? this.byManifest(true) : this.byCursor());
            await this.pushRest();
            const proof = await this.verify();
            const [version, rejected] = await this.read(async (held) => {
                const waiting = (await held.waiting()).flatMap(({ table, key, rejected }) => (rejected ? [{ table, key, ...rejected }] : []));
                return [(await held.recall("cursor")) ?? null, waiting];
            });
            const { requests, repeats } = this.calls;
            const { way, conflicts, resumed } = this;
            return { way, ...this.tally, conflicts, rejected, ...proof, version, resumed, requests, repeats, ms: this.context.now() - began };
        }
        catch (error) {
            await this.calls.releaseLock();
            throw error;
        }
    }
    read(work) {
        return Held.read(this.context.store, this.context.tables, work);
    }
    async write(work) {
        const [result, touched] = await Held.write(this.context.store, this.context.tables, work);
        if (touched.size)
            this.context.rowsChanged(touched);
        return result;
    }
    async settle(work, feed = null) {
        const settling = await this.write(async (held) => {
            const current = feed ?? (await held.recall("feed"))?.number ?? null;
            const settling = new Settling(held, this.tally, this.context.now(), this.calls.epoch, current);
            await work(settling, held);
            return settling;
        });
        for (const row of settling.rejected)
            if (!isAboutOthers(row))
                this.refused.set(name(row.table, row.key), row.edit);
        if (!settling.conflicts.length)
            return;
        this.conflicts.push(...settling.conflicts);
        await this.context.conflictsFound(settling.conflicts);
    }
    async prepare() {
        let [limits, seed] = await this.read(async (held) => {
            this.pace = await held.recall("pace");
            return [await held.recall("limits"), await held.recall("seed")];
        });
        if (!limits) {
            const { rows_max, get_keys_max, body_bytes_max, time_precision } = await this.calls.limits();
            limits = { rows: rows_max, keys: get_keys_max, bytes: body_bytes_max, precision: time_precision };
            await this.write((held) => held.remember("limits", limits));
        }
        this.limits = limits;
        if (!seed)
            await this.fetchSeed();
    }
    async fetchSeed() {
        const { seed } = await this.calls.digests();
        await this.write(async (held) => {
            await held.remember("seed", seed);
            await held.recount();
        });
    }
    async resume() {
        const outstanding = await this.read((held) => held.recall("outstanding"));
        if (!outstanding)
            return;
        this.resumed = true;
        try {
            const [sending, response] = await this.send(outstanding, null);
            await this.settle((settling) => settling.applyResponse(sending, response));
        }
        catch (error) {
            if (tookTooLong(error) && isDivisible(outstanding))
                return this.halveRequests(outstanding, error);
            if (!(error instanceof RollcallError) || (await this.read((held) => held.recall("outstanding"))))
                throw error;
        }
    }
    async byManifest(trustEtag) {
        for (let start = 0; start < STARTS_MAX; start++) {
            try {
                return await this.syncManifest(trustEtag);
            }
            catch (error) {
                if (!is(error, "version_moved", "lock_lost"))
                    throw error;
            }
        }
        throw new RollcallError("restless", "others keep changing the data; try again");
    }
    async syncManifest(trustEtag) {
        const declared = [...this.context.tables.values()];
        const etag = await this.write(async (held) => {
            const known = await held.recall("etag");
            await held.remember("etag", undefined);
            return trustEtag ? known : undefined;
        });
        let manifest = await this.calls.fetch(declared, etag);
        if (!manifest.tables) {
            let past = "same";
            await this.settle(async (settling) => void (past = await settling.pastAt(manifest.version)));
            if (past === "earlier")
                manifest = await this.calls.fetch(declared, undefined);
        }
        let listed = 0;
        for (const rows of manifest.tables?.values() ?? [])
            listed += rows.size;
        this.progress({ phase: "listed", rows: listed });
        const queue = await this.compareManifest(declared, manifest);
        const version = await this.push(queue, manifest.version, manifest.fence, "manifest");
        if (version === manifest.version && manifest.etag)
            await this.write((held) => held.remember("etag", manifest.etag));
    }
    async compareManifest(declared, manifest) {
        const queue = { rows: [], gets: [] };
        const [added, edits, deletes] = [[], [], []];
        await this.settle(async (settling, held) => {
            const epoch = await settling.adoptPast(manifest.version, this.doubt);
            await settling.moveCursor("compared");
            for (const table of declared) {
                const mine = new Map((await held.all(table.name)).map((row) => [row.key, localOf(row)]));
                const unchanged = () => new Map([...mine].flatMap(([key, { at }]) => (at === null ? [] : [[key, at]])));
                const plan = compare(manifest.tables?.get(table.name) ?? unchanged(), mine, epoch, true);
                await settling.applyPlan(table, plan);
                const refs = (keys) => keys.map((key) => ({ table: table.name, key }));
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
    async byCursor() {
        for (let start = 0; start < STARTS_MAX; start++) {
            try {
                if (await this.pull())
                    return;
            }
            catch (error) {
                if (!is(error, "cursor_expired"))
                    throw error;
                await this.expire();
            }
        }
        throw new RollcallError("restless", "others keep changing the data; try again");
    }
    expire() {
        return this.settle((settling) => settling.moveCursor("expired"));
    }
    async pull() {
        const [cursor, feed, rows] = await this.read(async (held) => [(await held.recall("cursor")) ?? null, await held.recall("feed"), await this.sendable(held)]);
        if (feed) {
            try {
                await this.pages(await this.calls.changes(null, feed.next), feed.number);
            }
            catch (error) {
                if (!is(error, "invalid_request"))
                    throw error;
                await this.expire();
            }
            return false;
        }
        if (rows.length === 0) {
            const first = await this.calls.changes(cursor);
            await this.pages(first, first.type === "full" ? await this.newFeed() : null);
        }
        else {
            await this.push({ rows, gets: [] }, cursor, null, "pull");
        }
        return true;
    }
    newFeed() {
        return this.write(async (held) => {
            const number = ((await held.recall("feeds")) ?? 0) + 1;
            await held.remember("feeds", number);
            return number;
        });
    }
    async pages(page, feed) {
        for (;;) {
            this.serverDigests = page.digests ?? this.serverDigests;
            await this.settle((settling) => settling.applyPage(page), feed);
            this.progress({ phase: "receiving", rows: this.tally.pulled });
            if (!page.more || page.next === undefined)
                return;
            page = await this.calls.changes(null, page.next);
        }
    }
    async pushRest() {
        let before = "";
        for (let round = 0; round < ROUNDS_MAX; round++) {
            const [queue, cursor] = await this.read(async (held) => {
                const gets = (await held.waiting()).filter(({ state, at }) => state === "clean" && at === null);
                const rows = await this.sendable(held);
                return [{ rows, gets: gets.map(({ table, key }) => ({ table, key })) }, (await held.recall("cursor")) ?? null];
            });
            const now = JSON.stringify(queue);
            if (now === before || queue.rows.length + queue.gets.length === 0)
                return;
            before = now;
            await this.push(queue, cursor, null, "nothing");
        }
    }
    async push(queue, base, fence, then) {
        let confirmDeletes;
        for (;;) {
            const options = { base, pull: then === "pull", confirmDeletes };
            const limits = { ...this.limits, bytes: Math.min(this.limits.bytes, this.pace ?? Infinity) };
            const request = await this.write((held) => nextRequest(held, queue, limits, options));
            const began = this.context.now();
            let sending, response;
            try {
                [sending, response] = await this.send(request, fence);
            }
            catch (error) {
                confirmDeletes = await this.recover(queue, request, error, confirmDeletes);
                fence = null;
                continue;
            }
            confirmDeletes = undefined;
            await this.enlargeRequests(request, this.context.now() - began);
            const { version, changes, digests } = response;
            const feed = changes?.type === "full" ? await this.newFeed() : null;
            const last = queue.rows.length + queue.gets.length === 0;
            await this.settle(async (settling) => {
                await settling.applyResponse(sending, response);
                if (digests && typeof digests.as_of === "number")
                    await settling.noteVersion(digests.as_of);
                const complete = base !== null && (then !== "manifest" || last);
                if (!changes)
                    await settling.moveCursor({ pushed: { version, complete } });
            }, feed);
            this.progress({ phase: "sending", left: queue.rows.length, asked: queue.gets.length });
            this.serverDigests = digests ?? this.serverDigests;
            if (base !== null)
                base = version;
            if (changes)
                await this.pages(changes, feed);
            if (last)
                return version;
        }
    }
    async recover(queue, request, error, sentConfirmation) {
        if (tookTooLong(error) && isDivisible(request)) {
            await this.halveRequests(request, error);
            requeue(queue, request);
            return sentConfirmation;
        }
        if (!(error instanceof RollcallError && error.problem))
            throw error;
        const confirmDeletes = this.confirmed(error);
        if (confirmDeletes === undefined)
            await this.dropFaults(queue, request, error);
        else
            requeue(queue, request);
        return confirmDeletes;
    }
    confirmed(error) {
        const named = error.code === "mass_delete" ? error.problem?.confirm_deletes : undefined;
        if (named === undefined || named > this.confirmedDeletes)
            return undefined;
        this.confirmedDeletes -= named;
        return named;
    }
    async send(sending, fence) {
        for (let attempt = 0; attempt < 2; attempt++) {
            try {
                const response = await this.calls.synchronise(sending.key, fence, isDivisible(sending), () => {
                    if (sending.body["keep_lock"])
                        this.calls.holding = true;
                    return stamped(sending, this.context.now());
                });
                this.calls.holding = sending.body["keep_lock"] === true;
                return [sending, response];
            }
            catch (error) {
                if (is(error, "idempotency_key_reused")) {
                    sending = { ...sending, key: newKey(this.context.now()) };
                    await this.write((held) => held.remember("outstanding", sending));
                    continue;
                }
                const status = error instanceof RollcallError ? error.status : undefined;
                const undecided = is(error, "other_user") || (status === undefined || status >= 500 ? status !== 507 : [401, 403, 408, 423, 429].includes(status));
                if (!undecided) {
                    this.calls.holding = false;
                    await this.write((held) => held.remember("outstanding", undefined));
                }
                throw error;
            }
        }
        throw new RollcallError("restless", "the server does not recognise its own response");
    }
    async halveRequests(sending, error) {
        this.pace = Math.max(Math.floor(sizeOf(sending) / 2 / BODY_SHARE), 1);
        this.calls.holding = false;
        await this.write(async (held) => {
            await held.remember("pace", this.pace);
            await held.remember("outstanding", undefined);
            await advance(held);
            for (const { table, key, operation } of sending.sent) {
                const row = operation === "add" ? await held.get(table, key) : undefined;
                if (row)
                    await held.replace(row, { ...row, doubtful: 1 });
            }
        });
        const { patience } = this.context.wire;
        const pause = pauseMs(++this.slow, patience.attemptsMax, error.problem?.retry_after_s ?? null, patience.random());
        if (pause === null)
            throw error;
        this.progress({ phase: "retrying", attempt: this.slow, reason: error.message, ms: pause });
        await patience.pause(pause, this.options.signal);
    }
    async enlargeRequests(sending, ms) {
        this.slow = 0;
        const { requestMaxMs } = this.context.wire.patience;
        if (this.pace === undefined || sizeOf(sending) < this.pace / 2 || ms * 4 > requestMaxMs)
            return;
        this.pace = this.pace * 2 < this.limits.bytes ? this.pace * 2 : undefined;
        await this.write((held) => held.remember("pace", this.pace));
    }
    async dropFaults(queue, sending, error) {
        const { code } = error.problem;
        const limits = this.limits;
        const rows = sending.sent.length;
        if ((code === "too_many_rows" && limits.rows > 1) || (code === "body_too_large" && rows !== 1 && limits.bytes > 1)) {
            this.limits = { ...limits, bytes: Math.floor(limits.bytes / 2) };
            if (code === "too_many_rows")
                this.limits = { ...limits, rows: Math.ceil(limits.rows / 2), keys: Math.ceil(limits.keys / 2) };
            await this.write((held) => held.remember("limits", undefined));
            return requeue(queue, sending);
        }
        const faults = this.atFault(sending, error);
        if (faults.length === 0)
            throw error;
        const back = new Set(faults.map(({ table, key }) => name(table, key)));
        for (const fault of back)
            this.refused.set(fault, sending.sent.find(({ table, key }) => name(table, key) === fault)?.edit ?? 0);
        await this.write(async (held) => {
            for (const { table, key } of faults) {
                const row = await held.get(table, key);
                if (row)
                    await held.replace(row, { ...row, rejected: rejectionOf(error.problem, this.context.now()) });
            }
        });
        requeue(queue, sending);
        queue.rows = queue.rows.filter(({ table, key }) => !back.has(name(table, key)));
        queue.gets = queue.gets.filter(({ table, key }) => !back.has(name(table, key)));
    }
    atFault({ body, sent }, error) {
        const { code, status, at } = error.problem;
        if (code === "body_too_large")
            return sent.length === 1 ? [sent[0]] : [];
        const [, member = "", table = "", index] = status === 422 && at ? at.split("/") : [];
        if (index === undefined && code !== "unknown_table")
            return [];
        const column = this.context.tables.get(table)?.key;
        const items = body[member]?.[table] ?? [];
        const keys = (index === undefined ? items : items.slice(Number(index), Number(index) + 1)).map((item) => readKey(typeof item === "string" ? item : column && item?.[column]));
        return keys.flatMap((key) => (key === null ? [] : [{ table, key }]));
    }
    async sendable(held, of) {
        const waiting = await held.waiting();
        const back = new Set();
        for (const { table, key, edit, rejected } of waiting) {
            const refused = this.refused.get(name(table, key));
            if ((rejected && !mayTryAgain(rejected, this.context.now())) || (refused !== undefined && edit <= refused))
                back.add(name(table, key));
        }
        return (of ?? inOrder(waiting, this.context.tables)).filter(({ table, key }) => !back.has(name(table, key)));
    }
    async verify() {
        let repaired = false;
        for (;;) {
            const server = this.serverDigests;
            if (!(await this.read((held) => held.recall("seed"))))
                await this.fetchSeed();
            const [cursor, known, tables] = await this.read(async (held) => [(await held.recall("cursor")) ?? null, (await held.recall("known")) ?? 0, await held.digests()]);
            const digests = { server, device: tables && { as_of: cursor, tables } };
            const lost = server?.as_of != null && server.as_of < known;
            if (!server || !tables || (server.as_of !== cursor && !lost))
                return { digestsEqual: null, digests, repaired };
            const differ = Object.keys(tables).filter((table) => {
                const [mine, theirs] = [tables[table], server.tables[table]];
                return theirs && (theirs.count !== mine.count || theirs.root !== mine.root);
            });
            if (differ.length === 0 && !lost)
                return { digestsEqual: true, digests, repaired };
            if (repaired)
                return { digestsEqual: false, digests, repaired };
            repaired = true;
            this.progress({ phase: "repairing", tables: differ });
            this.serverDigests = null;
            this.doubt = true;
            await this.byManifest(false);
            this.doubt = false;
            await this.pushRest();
        }
    }
}

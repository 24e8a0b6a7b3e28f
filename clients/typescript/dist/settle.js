import { absent, apply, applyVerdict, cursorAfter, isPutBack, past } from "./decide.js";
import { columnsSent } from "./batch.js";
import { localOf, newRow, rejectionOf, shown } from "./held.js";
import { advance } from "./identity.js";
import { newKey, readKey } from "./key.js";
import { parseTime } from "./time.js";
const CONFLICTS_MAX = 200;
export function parts(table, row) {
    const { [table.key]: id, last_update, ...columns } = row;
    const [key, at] = [readKey(id), parseTime(last_update)];
    return key === null || at === null ? null : { key, at, columns };
}
function rowAfter(row, { local, contents }, theirs, settled, sent) {
    if (!local)
        return null;
    const changed = Object.fromEntries(Object.entries(row.changed).filter(([, edit]) => edit > settled));
    const next = { ...row, ...local, changed };
    delete next.doubtful;
    if (theirs && contents === "theirs")
        next.row = theirs;
    if (theirs && contents === "mine_over_theirs") {
        next.row = { ...theirs };
        for (const column of Object.keys(changed))
            next.row[column] = row.row[column] ?? null;
    }
    if (local.state === "clean") {
        next.changed = {};
        delete next.baseRow;
        delete next.rejected;
    }
    else if (local.base !== row.base && settled) {
        next.baseRow = theirs ?? { ...row.baseRow, ...sent };
    }
    return next;
}
export class Settling {
    constructor(held, tally, now, epoch, feed) {
        this.held = held;
        this.tally = tally;
        this.now = now;
        this.epoch = epoch;
        this.feed = feed;
        this.conflicts = [];
        this.rejected = [];
        this.past = "same";
    }
    put(was, row) {
        if (!was && !row)
            return Promise.resolve();
        return this.held.replace(was, row && this.feed !== null ? { ...row, seen: this.feed } : row);
    }
    async each(lists, work) {
        for (const [name, items] of Object.entries(lists ?? {})) {
            const table = this.held.tables.get(name);
            if (table)
                await Promise.all(items.map((item) => work(table, item)));
        }
    }
    async applyResponse(sending, response) {
        if (response.changes?.type === "full")
            this.past = await this.pastAt(response.changes.version);
        const sent = new Map(sending.sent.map((row) => [`${row.operation} ${row.table} ${row.key}`, row]));
        const sentKeys = new Set(sending.sent.map((row) => `${row.table} ${row.key}`));
        const requested = new Map();
        await this.each(response.get, async (table, row) => {
            const name = `${table.name} ${readKey(row[table.key])}`;
            if (sentKeys.has(name))
                requested.set(name, row);
        });
        for (const operation of ["add", "update", "delete"]) {
            await this.each(response[operation], async (table, item) => {
                const row = sent.get(`${operation} ${table.name} ${readKey(item[table.key])}`);
                const theirs = item.row ?? requested.get(`${table.name} ${row?.key}`);
                if (row)
                    await this.settleRow(table, sending, row, theirs ? { ...item, row: theirs } : item);
            });
        }
        await this.each(response.get, (table, row) => this.applyRow(table, row));
        await this.each(response.missing, (table, key) => this.applyDeletion(table, key));
        if ((await this.held.recall("outstanding"))?.key === sending.key)
            await this.held.remember("outstanding", undefined);
        await advance(this.held);
        if (this.conflicts.length) {
            const known = (await this.held.recall("conflicts")) ?? [];
            await this.held.remember("conflicts", [...this.conflicts, ...known].slice(0, CONFLICTS_MAX));
        }
    }
    async settleRow(table, sending, sent, item) {
        this.tally.verdicts[item.verdict] = (this.tally.verdicts[item.verdict] ?? 0) + 1;
        const row = await this.held.get(table.name, sent.key);
        if (!row)
            return;
        const theirs = item.row ? (parts(table, item.row)?.columns ?? null) : null;
        const at = parseTime(item.last_update);
        const columns = columnsSent(sending, sent, table.key);
        const { operation, whole, complete } = sent;
        const outcome = applyVerdict(localOf(row), { operation, whole, complete, editedSince: row.edit > sent.edit }, { verdict: item.verdict, at, row: theirs !== null });
        const isSettled = !["gone", "absent", "rejected"].includes(item.verdict);
        const lost = item.verdict === "kept" || (item.verdict === "gone" && !outcome.local);
        if (lost && item.verdict === "gone")
            this.tally.dropped++;
        if (isSettled && !lost)
            this.tally.pushed++;
        if (outcome.local && outcome.local.state === "clean" && outcome.local.at === null)
            await this.held.remember("etag", undefined);
        if ((lost || (item.verdict === "merged" && item.conflict)) && row.state !== "clean" && !isPutBack(row)) {
            this.conflicts.push({
                ...{ id: newKey(this.now), serverId: item.conflict ?? null, table: table.name, key: sent.key },
                ...{ verdict: item.verdict, lastUpdate: at, at: this.now },
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
    async applyRow(table, received) {
        const found = parts(table, received);
        if (!found)
            return;
        const { key, at, columns } = found;
        const row = await this.held.get(table.name, key);
        const outcome = apply(row ? localOf(row) : null, at, this.past);
        if (outcome.contents === "theirs" && row?.at !== at)
            this.tally.pulled++;
        await this.put(row, rowAfter(row ?? newRow(table.name, key), outcome, columns, 0, null));
    }
    async applyDeletion(table, key) {
        const row = await this.held.get(table.name, key);
        if (row)
            await this.applyOutcome(row, apply(localOf(row), null, "same"));
    }
    applyOutcome(row, outcome) {
        if (!outcome.local)
            this.tally.dropped++;
        return this.put(row, rowAfter(row, outcome, null, 0, null));
    }
    async applyPage(page) {
        if (page.type === "full") {
            this.past = await this.pastAt(page.version);
            if (this.past === "same")
                await this.adoptPast(page.version);
        }
        for (const lists of [page.add, page.update])
            await this.each(lists, (table, row) => this.applyRow(table, row));
        await this.each(page.delete, (table, key) => this.applyDeletion(table, key));
        const full = page.type === "full" && this.feed !== null;
        if (full && !page.more) {
            for (const name of this.held.tables.keys()) {
                for (const row of await this.held.all(name))
                    if (row.seen !== this.feed)
                        await this.applyOutcome(row, absent(localOf(row), this.past));
            }
            await this.adoptPast(page.version);
        }
        const number = page.type === "full" ? this.feed : null;
        await this.held.remember("feed", page.more && page.next !== undefined ? { number, next: page.next } : undefined);
        if (page.type === "diff")
            await this.noteVersion(page.version);
        if (page.digests && typeof page.digests.as_of === "number")
            await this.noteVersion(page.digests.as_of);
        await this.moveCursor({ page: { version: page.version, more: page.more === true } });
    }
    async applyPlan(table, plan) {
        for (const key of plan.drop) {
            const row = await this.held.get(table.name, key);
            if (row)
                await this.applyOutcome(row, { local: null, contents: "mine" });
        }
        for (const [key, local] of plan.note) {
            const row = await this.held.get(table.name, key);
            if (row)
                await this.put(row, { ...row, ...local });
        }
    }
    async moveCursor(event) {
        const cursor = (await this.held.recall("cursor")) ?? null;
        await this.held.remember("cursor", cursorAfter(cursor, event) ?? undefined);
        if (event === "expired" || event === "compared")
            await this.held.remember("feed", undefined);
    }
    async pastAt(version) {
        const [epoch, known, cursor] = await Promise.all([this.held.recall("epoch"), this.held.recall("known"), this.held.recall("cursor")]);
        const isNew = epoch === undefined && known === undefined && cursor === undefined;
        return past(isNew ? null : { epoch: epoch ?? null, version: known ?? cursor ?? 0 }, { epoch: this.epoch, version });
    }
    async noteVersion(version) {
        const [epoch, known] = await Promise.all([this.held.recall("epoch"), this.held.recall("known")]);
        if ((epoch ?? null) === this.epoch && version > (known ?? 0))
            await this.held.remember("known", version);
    }
    async adoptPast(version, doubt = false) {
        const before = doubt ? "earlier" : await this.pastAt(version);
        if (before === "earlier") {
            await this.held.remember("seed", undefined);
            await this.held.remember("etag", undefined);
        }
        const known = before === "same" ? ((await this.held.recall("known")) ?? 0) : 0;
        if (this.epoch !== null)
            await this.held.remember("epoch", this.epoch);
        await this.held.remember("known", Math.max(known, version));
        return before;
    }
}

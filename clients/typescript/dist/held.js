import { Sum } from "./digest.js";
import { retryWhen } from "./decide.js";
const blankOf = (spec) => Object.fromEntries(Object.entries(spec.columns ?? {}).map(([name, column]) => {
    const value = typeof column === "string" ? undefined : column.default;
    return [name, value === "now" ? null : (value ?? null)];
}));
export function declare(tables) {
    const sorted = new Map();
    const visiting = new Set();
    const visit = (name) => {
        const spec = tables[name];
        if (!spec || visiting.has(name))
            return;
        visiting.add(name);
        for (const column of Object.values(spec.columns ?? {})) {
            if (typeof column === "object" && column.references)
                visit(column.references);
        }
        sorted.set(name, { name, key: spec.key, columns: spec.columns ? Object.keys(spec.columns) : null, blank: blankOf(spec), spec });
    };
    Object.keys(tables).sort().forEach(visit);
    return sorted;
}
export const localOf = ({ state, at, base, editedAt }) => ({ state, at, base, editedAt });
export const newRow = (table, key) => ({
    ...{ table, key, state: "clean", at: null, base: null, editedAt: null },
    ...{ edit: 0, row: {}, changed: {} },
});
export const isAboutOthers = ({ code, retryAt }) => retryWhen(code, retryAt !== undefined) === "with_others";
export const mayTryAgain = (rejected, now) => isAboutOthers(rejected) || (rejected.retryAt !== undefined && rejected.retryAt <= now);
export const rejectionOf = (error, now) => ({
    code: error.code,
    detail: error.detail,
    ...(typeof error.column === "string" ? { column: error.column } : {}),
    ...(error.retry_after_s === undefined ? {} : { retryAt: now + error.retry_after_s * 1000 }),
});
export class Held {
    constructor(txn, tables) {
        this.txn = txn;
        this.tables = tables;
        this.touched = new Set();
    }
    static read(store, tables, work) {
        return store.transact("read", (txn) => work(new Held(txn, tables)));
    }
    static write(store, tables, work) {
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
    get(table, key) {
        return this.txn.get(table, key);
    }
    all(table) {
        return this.txn.all(table);
    }
    waiting() {
        return this.txn.waiting();
    }
    recall(name) {
        return this.txn.meta(name);
    }
    remember(name, value) {
        return this.txn.setMeta(name, value);
    }
    async replace(was, row) {
        const { table, key } = (row ?? was);
        const sums = await this.loadSums();
        sums?.get(table)?.change(key, was?.at ?? null, row?.at ?? null);
        this.touched.add(table);
        if (!row)
            return was && this.txn.delete(table, key);
        if (row.state !== "clean" || row.at === null)
            row.waits = 1;
        else
            delete row.waits;
        return this.txn.put(row);
    }
    async nextEdit() {
        const edit = ((await this.recall("edits")) ?? 0) + 1;
        await this.remember("edits", edit);
        return edit;
    }
    async digests() {
        const sums = await this.loadSums();
        if (!sums)
            return null;
        return Object.fromEntries([...this.tables.keys()].map((name) => [name, sums.get(name).digest()]));
    }
    async recount() {
        const seed = await this.recall("seed");
        if (!seed)
            return;
        const sums = new Map();
        for (const name of this.tables.keys()) {
            const sum = new Sum(seed);
            for (const row of await this.all(name))
                sum.change(row.key, null, row.at);
            sums.set(name, sum);
        }
        this.sums = sums;
    }
    async loadSums() {
        if (this.sums)
            return this.sums;
        const [seed, digests] = await Promise.all([this.recall("seed"), this.recall("digests")]);
        if (!seed || !digests)
            return undefined;
        return (this.sums ?? (this.sums = new Map([...this.tables.keys()].map((name) => [name, digests[name] ? Sum.read(seed, digests[name]) : new Sum(seed)]))));
    }
}
export const shown = (table, key, row) => ({ [table.key]: key, ...table.blank, ...row });

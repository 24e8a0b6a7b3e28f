import { heldOf, isPutBack } from "./decide.js";
import { RollcallError } from "./error.js";
import { newRow } from "./held.js";
import { readKey } from "./key.js";
import { parseTime, formatTime } from "./time.js";
const wrongType = (table, column, expected) => new RollcallError("wrong_type", `${table.name}.${column}: expected ${expected}`);
function wellFormed(value) {
    if (typeof value === "string")
        return value.replace(/\p{Surrogate}/gu, "\ufffd");
    if (Array.isArray(value))
        return value.map(wellFormed);
    if (value === null || typeof value !== "object")
        return value;
    return Object.fromEntries(Object.entries(value).map(([name, member]) => [wellFormed(name), wellFormed(member)]));
}
function checked(table, column, value, precision) {
    const declared = table.spec.columns?.[column];
    if (!declared || value === null)
        return value;
    const type = typeof declared === "string" ? declared : declared.type;
    switch (type) {
        case "boolean":
            if (typeof value !== "boolean")
                throw wrongType(table, column, "true or false");
            return value;
        case "integer":
            if (!Number.isSafeInteger(value) && !(typeof value === "string" && /^-?\d+$/.test(value)))
                throw wrongType(table, column, "an integer");
            return value;
        case "real":
            if (typeof value !== "number" || !Number.isFinite(value))
                throw wrongType(table, column, "a number");
            return value;
        case "decimal":
            if (!/^-?\d+(\.\d+)?$/.test(String(value)))
                throw wrongType(table, column, 'a decimal such as "12.50"');
            return String(value);
        case "json":
            return value;
        default:
            if (typeof value !== "string")
                throw wrongType(table, column, "a string");
    }
    if (type === "uuid") {
        const key = readKey(value);
        if (key === null)
            throw wrongType(table, column, "a UUID of 36 characters");
        return key;
    }
    if (type === "timestamp") {
        const at = parseTime(value);
        if (at === null)
            throw wrongType(table, column, 'a time such as "2013-05-01T15:42:50.000Z"');
        return precision ? formatTime(at, precision) : value;
    }
    if (type === "date" && !/^\d{4}-\d\d-\d\d$/.test(value))
        throw wrongType(table, column, 'a date such as "2013-05-01"');
    return value;
}
function defaultOf(declared, now, precision) {
    if (typeof declared === "string" || declared.default === undefined)
        return null;
    if (declared.default !== "now")
        return declared.default;
    if (declared.type === "date")
        return formatTime(now).slice(0, 10);
    return declared.type === "timestamp" && precision ? formatTime(now, precision) : undefined;
}
export function keyOf(table, key) {
    const uuid = readKey(key);
    if (uuid === null)
        throw new RollcallError("invalid_key", `${table.name}: a key is a UUID of 36 characters`);
    return uuid;
}
function newValues(table, row, columns, precision) {
    const values = {};
    for (const [column, value] of Object.entries(columns)) {
        if (column === table.key || column === "last_update" || value === undefined)
            continue;
        if (table.columns && !table.columns.includes(column)) {
            throw new RollcallError("no_such_column", `${table.name} has no column ${JSON.stringify(column)}`);
        }
        const valid = checked(table, column, wellFormed(JSON.parse(JSON.stringify(value))), precision);
        if (JSON.stringify(row[column]) !== JSON.stringify(valid))
            values[column] = valid;
    }
    return values;
}
export async function put(held, table, key, columns, now, base) {
    const precision = (await held.recall("limits"))?.precision;
    const was = await held.get(table.name, key);
    const row = was ?? newRow(table.name, key);
    const values = newValues(table, row.row, columns, precision);
    if (was && row.state !== "deleted" && Object.keys(values).length === 0)
        return row;
    const edit = await held.nextEdit();
    const at = isPutBack(row) ? null : row.at;
    const next = { ...row, at, edit, row: { ...row.row }, changed: { ...row.changed }, editedAt: now };
    if (!was) {
        for (const [column, declared] of Object.entries(table.spec.columns ?? {})) {
            const value = defaultOf(declared, now, precision);
            if (value !== undefined)
                next.row[column] = value;
        }
    }
    for (const [column, value] of Object.entries(values)) {
        next.row[column] = value;
        next.changed[column] = edit;
    }
    if (row.state === "clean" && was) {
        Object.assign(next, { state: "edited", base: heldOf(row), baseRow: row.row });
    }
    else if (row.state === "clean" || row.state === "deleted") {
        next.state = row.at !== null || row.base !== null ? "edited" : "added";
    }
    if (!was && base != null)
        next.base = base;
    delete next.rejected;
    await held.replace(was, next);
    return next;
}
const isInFlight = async (held, { name }, key) => (await held.recall("outstanding"))?.sent.some((sent) => sent.table === name && sent.key === key) ?? false;
export async function remove(held, table, key, now) {
    const row = await held.get(table.name, key);
    if (!row || row.state === "deleted")
        return;
    const mayBeOnServer = row.at !== null || row.base !== null || row.doubtful || (await isInFlight(held, table, key));
    if (row.state === "added" && !mayBeOnServer)
        return held.replace(row, null);
    const next = { ...row, state: "deleted", editedAt: now, edit: await held.nextEdit() };
    if (row.state === "clean")
        Object.assign(next, { base: heldOf(row), baseRow: row.row });
    delete next.rejected;
    return held.replace(row, next);
}
export async function revert(held, table, key) {
    const row = await held.get(table.name, key);
    if (!row || row.state === "clean" || (isPutBack(row) && !row.rejected))
        return;
    if (await isInFlight(held, table, key))
        throw new RollcallError("in_flight", `${table.name} ${key} is being sent`);
    if (row.at === null)
        return held.replace(row, null);
    const next = { ...row, state: "clean", at: row.base === row.at && row.baseRow ? row.at : null };
    Object.assign(next, { base: null, editedAt: null, changed: {}, row: row.baseRow ?? row.row });
    delete next.rejected;
    delete next.baseRow;
    await held.remember("etag", undefined);
    return held.replace(row, next);
}
export async function settle(held, table, conflict, as, now) {
    if (as === null)
        return remove(held, table, conflict.key, now);
    const present = await held.get(table.name, conflict.key);
    const columns = present || conflict.theirs ? as : { ...conflict.base, ...conflict.mine, ...as };
    await put(held, table, conflict.key, columns, now, conflict.lastUpdate);
}

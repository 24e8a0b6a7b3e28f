import { goesWhole, isPutBack } from "./decide.js";
import { localOf } from "./held.js";
import { newKey } from "./key.js";
import { formatTime } from "./time.js";
export const BODY_SHARE = 0.8;
const KEY_BYTES = 40;
const bytes = new TextEncoder();
export function inOrder(rows, tables) {
    const order = [...tables.keys()];
    const rank = ({ table, state, editedAt }) => {
        const index = order.indexOf(table);
        if (isPutBack({ state, editedAt }))
            return index - order.length;
        return state === "added" ? index : state === "deleted" ? 3 * order.length - index : order.length + index;
    };
    return rows
        .filter(({ table, state }) => tables.has(table) && state !== "clean")
        .sort((a, b) => rank(a) - rank(b) || (a.key < b.key ? -1 : 1))
        .map(({ table, key }) => ({ table, key }));
}
export function itemOf(table, row) {
    const { state, base, editedAt } = row;
    const operation = state === "added" ? "add" : state === "deleted" ? "delete" : "update";
    const item = { [table.key]: row.key };
    if (operation !== "delete") {
        const whole = goesWhole(localOf(row));
        for (const [column, value] of Object.entries(row.row)) {
            if (table.columns && !table.columns.includes(column))
                continue;
            if ((whole && (state !== "added" || isPutBack(row) || value !== null)) || column in row.changed)
                item[column] = value;
        }
    }
    const [lastUpdate, editBase] = isPutBack(row) ? [base, null] : [editedAt, base];
    if (lastUpdate !== null)
        item["last_update"] = formatTime(lastUpdate);
    if (editBase !== null)
        item["_base"] = formatTime(editBase);
    return [operation, item];
}
export async function nextRequest(held, queue, limits, options) {
    const body = {};
    const into = (member, table, item) => {
        const tables = (body[member] ?? (body[member] = {}));
        (tables[table] ?? (tables[table] = [])).push(item);
    };
    const sent = [];
    let left = limits.bytes * BODY_SHARE;
    let taken = 0;
    let putBack;
    const rows = await Promise.all(queue.rows.slice(0, Math.max(limits.rows, 1)).map(({ table, key }) => held.get(table, key)));
    for (const row of rows) {
        const table = row && held.tables.get(row.table);
        if (row && table) {
            if ((putBack ?? (putBack = isPutBack(row))) !== isPutBack(row))
                break;
            const [operation, item] = itemOf(table, row);
            const size = bytes.encode(JSON.stringify(item)).length + 1;
            if (size > left && sent.length > 0)
                break;
            left -= size;
            into(operation, table.name, item);
            const whole = goesWhole(localOf(row));
            const complete = whole && table.columns !== null && table.columns.every((column) => column in row.row);
            sent.push({ table: table.name, key: row.key, operation, whole, complete, edit: row.edit });
        }
        taken++;
    }
    queue.rows = queue.rows.slice(taken);
    const keys = Math.max(Math.min(limits.keys, Math.floor(left / KEY_BYTES)), sent.length ? 0 : 1);
    for (const { table, key } of queue.gets.splice(0, keys))
        into("get", table, key);
    if (options.base !== null)
        body["base"] = options.base;
    if (queue.rows.length || queue.gets.length)
        body["keep_lock"] = true;
    else if (options.pull)
        body["pull"] = true;
    if (putBack)
        body["put_back"] = true;
    if (options.confirmDeletes !== undefined)
        body["confirm_deletes"] = options.confirmDeletes;
    const sending = { key: newKey(), body, sent };
    await held.remember("outstanding", sending);
    return sending;
}
export function requeue(queue, sending) {
    queue.rows = [...sending.sent.map(({ table, key }) => ({ table, key })), ...queue.rows];
    for (const [table, keys] of Object.entries((sending.body["get"] ?? {}))) {
        queue.gets.push(...keys.map((key) => ({ table, key })));
    }
}
export function columnsSent({ body }, { table, key, operation }, keyColumn) {
    if (operation === "delete")
        return null;
    const items = (body[operation] ?? {})[table] ?? [];
    const { [keyColumn]: _key, last_update: _at, _base, ...columns } = items.find((item) => item[keyColumn] === key) ?? {};
    return columns;
}
export const sizeOf = ({ body }) => bytes.encode(JSON.stringify(body)).length;
export const isDivisible = ({ body, sent }) => sent.length + Object.values((body["get"] ?? {})).reduce((sum, keys) => sum + keys.length, 0) > 1;
export const stamped = ({ body }, sentAt) => ({ ...body, sent_at: formatTime(sentAt) });

/** Requests: the rows that wait, in batches that keep to the server's limits. */
import { goesWhole, isPutBack, type Operation } from "./decide.js";
import { localOf, type Declared, type Held, type Meta, type Outstanding, type SentRow } from "./held.js";
import { newKey } from "./key.js";
import { formatTime } from "./time.js";
import type { Json, Row, StoredRow } from "./types.js";

/** Names a row. */
export interface RowRef {
  readonly table: string;
  readonly key: string;
}

/** The rows that are still to be sent, and those that are still to be requested. */
export interface Queue {
  rows: RowRef[];
  gets: RowRef[];
}

/** The members of a request beside its rows. */
export interface RequestOptions {
  readonly base: number | null;
  /** Whether the last request pulls the changes of other devices. */
  readonly pull: boolean;
  readonly confirmDeletes: number | undefined;
}

export type Limits = Meta["limits"];

/** The share of a body's bytes that rows and keys may fill. The rest is for names, brackets and `sent_at`. */
export const BODY_SHARE = 0.8;
/** Size of a key in a body, bytes. */
const KEY_BYTES = 40;

const bytes = new TextEncoder();

/**
 * The waiting rows in the order of sending: rows that are put back, then new rows, then changed rows, each parents
 * first; then deletions, children first. So no request refers to a row of a later one.
 */
export function inOrder(rows: readonly StoredRow[], tables: ReadonlyMap<string, Declared>): RowRef[] {
  const order = [...tables.keys()];
  const rank = ({ table, state, editedAt }: StoredRow) => {
    const index = order.indexOf(table);
    if (isPutBack({ state, editedAt })) return index - order.length;
    return state === "added" ? index : state === "deleted" ? 3 * order.length - index : order.length + index;
  };
  return rows
    .filter(({ table, state }) => tables.has(table) && state !== "clean")
    .sort((a, b) => rank(a) - rank(b) || (a.key < b.key ? -1 : 1))
    .map(({ table, key }) => ({ table, key }));
}

/** A row as an item of a request. */
export function itemOf(table: Declared, row: StoredRow): [Operation, Row] {
  const { state, base, editedAt } = row;
  const operation = state === "added" ? "add" : state === "deleted" ? "delete" : "update";
  const item: Row = { [table.key]: row.key };
  if (operation !== "delete") {
    const whole = goesWhole(localOf(row));
    for (const [column, value] of Object.entries(row.row)) {
      // The server would refuse the whole request for a column that the schema no longer has.
      if (table.columns && !table.columns.includes(column)) continue;
      // Of a new row, a column that has always been null is left out.
      if ((whole && (state !== "added" || isPutBack(row) || value !== null)) || column in row.changed) item[column] = value;
    }
  }
  // A row that is put back is sent with the time of the state that it is.
  const [lastUpdate, editBase] = isPutBack(row) ? [base, null] : [editedAt, base];
  if (lastUpdate !== null) item["last_update"] = formatTime(lastUpdate);
  if (editBase !== null) item["_base"] = formatTime(editBase);
  return [operation, item];
}

/**
 * Takes the next request from the queue and stores it as outstanding, in the transaction that reads the rows. The rows
 * are sent as they are now; a later change of the user has a higher edit number.
 */
export async function nextRequest(held: Held, queue: Queue, limits: Limits, options: RequestOptions): Promise<Outstanding> {
  const body: { [member: string]: Json } = {};
  const into = (member: string, table: string, item: Json) => {
    const tables = (body[member] ??= {}) as { [table: string]: Json[] };
    (tables[table] ??= []).push(item);
  };
  const sent: SentRow[] = [];
  let left = limits.bytes * BODY_SHARE;
  let taken = 0;
  let putBack: boolean | undefined;
  const rows = await Promise.all(queue.rows.slice(0, Math.max(limits.rows, 1)).map(({ table, key }) => held.get(table, key)));
  for (const row of rows) {
    const table = row && held.tables.get(row.table);
    if (row && table) {
      // The server applies other rules to rows that are put back, so they are sent in requests of their own.
      if ((putBack ??= isPutBack(row)) !== isPutBack(row)) break;
      const [operation, item] = itemOf(table, row);
      const size = bytes.encode(JSON.stringify(item)).length + 1;
      if (size > left && sent.length > 0) break;
      left -= size;
      into(operation, table.name, item as Json);
      const whole = goesWhole(localOf(row));
      const complete = whole && table.columns !== null && table.columns.every((column) => column in row.row);
      sent.push({ table: table.name, key: row.key, operation, whole, complete, edit: row.edit });
    }
    taken++;
  }
  queue.rows = queue.rows.slice(taken);
  const keys = Math.max(Math.min(limits.keys, Math.floor(left / KEY_BYTES)), sent.length ? 0 : 1);
  for (const { table, key } of queue.gets.splice(0, keys)) into("get", table, key);

  if (options.base !== null) body["base"] = options.base;
  if (queue.rows.length || queue.gets.length) body["keep_lock"] = true;
  else if (options.pull) body["pull"] = true;
  if (putBack) body["put_back"] = true;
  if (options.confirmDeletes !== undefined) body["confirm_deletes"] = options.confirmDeletes;
  const sending: Outstanding = { key: newKey(), body, sent };
  await held.remember("outstanding", sending);
  return sending;
}

/** Returns the rows of a refused request, of which nothing was written, to the queue. */
export function requeue(queue: Queue, sending: Outstanding): void {
  queue.rows = [...sending.sent.map(({ table, key }) => ({ table, key })), ...queue.rows];
  for (const [table, keys] of Object.entries((sending.body["get"] ?? {}) as { [table: string]: string[] })) {
    queue.gets.push(...keys.map((key) => ({ table, key })));
  }
}

/** The columns that were sent of a row; null for a deletion. */
export function columnsSent({ body }: Outstanding, { table, key, operation }: SentRow, keyColumn: string): Row | null {
  if (operation === "delete") return null;
  const items = ((body[operation] ?? {}) as { [table: string]: Row[] })[table] ?? [];
  const { [keyColumn]: _key, last_update: _at, _base, ...columns } = items.find((item) => item[keyColumn] === key) ?? {};
  return columns;
}

/** Size of a request's body, bytes. */
export const sizeOf = ({ body }: Outstanding): number => bytes.encode(JSON.stringify(body)).length;

/** Whether a request could be sent in parts. */
export const isDivisible = ({ body, sent }: Outstanding): boolean =>
  sent.length + Object.values((body["get"] ?? {}) as { [table: string]: string[] }).reduce((sum, keys) => sum + keys.length, 0) > 1;

/** The request's body with the time of sending. */
export const stamped = ({ body }: Outstanding, sentAt: number): Json => ({ ...body, sent_at: formatTime(sentAt) });

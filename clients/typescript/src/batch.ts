/** What goes up: the rows that wait, cut into requests that the server takes. */
import { goesWhole, isPutBack, type Operation } from "./decide.js";
import { localOf, type Declared, type Held, type Meta, type Outstanding, type SentRow } from "./held.js";
import { newKey } from "./key.js";
import { spellTime } from "./time.js";
import type { Json, Row, StoredRow } from "./types.js";

export interface Place {
  readonly table: string;
  readonly key: string;
}

/** What is still to be sent and to be asked for. */
export interface Queue {
  rows: Place[];
  gets: Place[];
}

/** What a request says beside rows. */
export interface Terms {
  readonly base: number | null;
  /** Whether the last request asks for the changes of others. */
  readonly pull: boolean;
  readonly confirmDeletes: number | undefined;
}

export type Limits = Meta["limits"];

/** A share of the body: the rest is for names, brackets and `sent_at`. */
export const BODY_SHARE = 0.8;
/** Bytes of a key in a body. */
const KEY_BYTES = 40;

const bytes = new TextEncoder();

/** What is put back, then new and changed rows, each parents first, then deletions children first: no request refers to a row of a later one. */
export function inOrder(rows: readonly StoredRow[], tables: ReadonlyMap<string, Declared>): Place[] {
  const order = [...tables.keys()];
  const rank = ({ table, state, editedAt }: StoredRow) => {
    const place = order.indexOf(table);
    if (isPutBack({ state, editedAt })) return place - order.length;
    return state === "added" ? place : state === "deleted" ? 3 * order.length - place : order.length + place;
  };
  return rows
    .filter(({ table, state }) => tables.has(table) && state !== "clean")
    .sort((a, b) => rank(a) - rank(b) || (a.key < b.key ? -1 : 1))
    .map(({ table, key }) => ({ table, key }));
}

/** A row as it goes up. */
export function itemOf(table: Declared, row: StoredRow): [Operation, Row] {
  const { state, base, editedAt } = row;
  const operation = state === "added" ? "add" : state === "deleted" ? "delete" : "update";
  const item: Row = { [table.key]: row.key };
  if (operation !== "delete") {
    const whole = goesWhole(localOf(row));
    for (const [column, value] of Object.entries(row.row)) {
      // Columns that the schema has no longer would cost the request.
      if (table.columns && !table.columns.includes(column)) continue;
      // What is empty in a new row, and never was anything else, need not be said.
      if ((whole && (state !== "added" || isPutBack(row) || value !== null)) || column in row.changed) item[column] = value;
    }
  }
  // What is put back goes up as the state that it is.
  const [edited, began] = isPutBack(row) ? [base, null] : [editedAt, base];
  if (edited !== null) item["last_update"] = spellTime(edited);
  if (began !== null) item["_base"] = spellTime(began);
  return [operation, item];
}

/**
 * Takes the next request from the queue and writes it down as outstanding, in the transaction that read the
 * rows: they go up as they are now, and what the user changes from here on has a later edit number.
 */
export async function nextRequest(held: Held, queue: Queue, limits: Limits, terms: Terms): Promise<Outstanding> {
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
      // What is put back is judged by other rules, so it goes up in requests of its own.
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

  if (terms.base !== null) body["base"] = terms.base;
  if (queue.rows.length || queue.gets.length) body["keep_lock"] = true;
  else if (terms.pull) body["pull"] = true;
  if (putBack) body["put_back"] = true;
  if (terms.confirmDeletes !== undefined) body["confirm_deletes"] = terms.confirmDeletes;
  const sending: Outstanding = { key: newKey(), body, sent };
  await held.remember("outstanding", sending);
  return sending;
}

/** Puts back what was in a request of which nothing was written. */
export function putBack(queue: Queue, sending: Outstanding): void {
  queue.rows = [...sending.sent.map(({ table, key }) => ({ table, key })), ...queue.rows];
  for (const [table, keys] of Object.entries((sending.body["get"] ?? {}) as { [table: string]: string[] })) {
    queue.gets.push(...keys.map((key) => ({ table, key })));
  }
}

/** What was sent of a row: its columns, or null for a deletion. */
export function columnsSent({ body }: Outstanding, { table, key, operation }: SentRow, keyColumn: string): Row | null {
  if (operation === "delete") return null;
  const items = ((body[operation] ?? {}) as { [table: string]: Row[] })[table] ?? [];
  const { [keyColumn]: _key, last_update: _at, _base, ...columns } = items.find((item) => item[keyColumn] === key) ?? {};
  return columns;
}

/** Bytes of a request. */
export const sizeOf = ({ body }: Outstanding): number => bytes.encode(JSON.stringify(body)).length;

/** Whether it could be sent in parts. */
export const isDivisible = ({ body, sent }: Outstanding): boolean =>
  sent.length + Object.values((body["get"] ?? {}) as { [table: string]: string[] }).reduce((sum, keys) => sum + keys.length, 0) > 1;

/** The body as it was sent at a time. */
export const stamped = ({ body }: Outstanding, at: number): Json => ({ ...body, sent_at: spellTime(at) });

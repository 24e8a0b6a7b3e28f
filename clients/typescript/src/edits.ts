/** The app's edits of its rows. They work offline and wait for the next sync. */
import { heldOf, isPutBack } from "./decide.js";
import { RollcallError } from "./error.js";
import { newRow, type Declared, type Held } from "./held.js";
import { readKey } from "./key.js";
import { parseTime, formatTime, type Precision } from "./time.js";
import type { ColumnSpec, Conflict, Json, Row, StoredRow } from "./types.js";

const wrongType = (table: Declared, column: string, expected: string) =>
  new RollcallError("wrong_type", `${table.name}.${column}: expected ${expected}`);

/** Replaces lone surrogates, as a truncated emoji leaves them: for one the server would refuse the whole request. */
function wellFormed(value: Json): Json {
  if (typeof value === "string") return value.replace(/\p{Surrogate}/gu, "\ufffd");
  if (Array.isArray(value)) return value.map(wellFormed);
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).map(([name, member]) => [wellFormed(name) as string, wellFormed(member)]));
}

/** Checks a value and formats it as the server does, so that a row has the same text on all devices. */
function checked(table: Declared, column: string, value: Json, precision: Precision | undefined): Json {
  const declared = table.spec.columns?.[column];
  if (!declared || value === null) return value;
  const type = typeof declared === "string" ? declared : declared.type;
  switch (type) {
    case "boolean":
      if (typeof value !== "boolean") throw wrongType(table, column, "true or false");
      return value;
    case "integer":
      if (!Number.isSafeInteger(value) && !(typeof value === "string" && /^-?\d+$/.test(value))) throw wrongType(table, column, "an integer");
      return value;
    case "real":
      if (typeof value !== "number" || !Number.isFinite(value)) throw wrongType(table, column, "a number");
      return value;
    case "decimal":
      if (!/^-?\d+(\.\d+)?$/.test(String(value))) throw wrongType(table, column, 'a decimal such as "12.50"');
      return String(value);
    case "json":
      return value;
    default:
      if (typeof value !== "string") throw wrongType(table, column, "a string");
  }
  if (type === "uuid") {
    const key = readKey(value);
    if (key === null) throw wrongType(table, column, "a UUID of 36 characters");
    return key;
  }
  if (type === "timestamp") {
    const at = parseTime(value);
    if (at === null) throw wrongType(table, column, 'a time such as "2013-05-01T15:42:50.000Z"');
    return precision ? formatTime(at, precision) : value;
  }
  if (type === "date" && !/^\d{4}-\d\d-\d\d$/.test(value)) throw wrongType(table, column, 'a date such as "2013-05-01"');
  return value;
}

/** The value that the server would fill in; undefined if the device cannot know it. */
function defaultOf(declared: ColumnSpec | string, now: number, precision: Precision | undefined): Json | undefined {
  if (typeof declared === "string" || declared.default === undefined) return null;
  if (declared.default !== "now") return declared.default;
  if (declared.type === "date") return formatTime(now).slice(0, 10);
  return declared.type === "timestamp" && precision ? formatTime(now, precision) : undefined;
}

/** Reads the app's key. Throws `invalid_key`. */
export function keyOf(table: Declared, key: unknown): string {
  const uuid = readKey(key);
  if (uuid === null) throw new RollcallError("invalid_key", `${table.name}: a key is a UUID of 36 characters`);
  return uuid;
}

/** The columns of `columns` that differ from the row, checked. */
function newValues(table: Declared, row: Row, columns: Row, precision: Precision | undefined): Row {
  const values: Row = {};
  for (const [column, value] of Object.entries(columns)) {
    if (column === table.key || column === "last_update" || value === undefined) continue;
    if (table.columns && !table.columns.includes(column)) {
      throw new RollcallError("no_such_column", `${table.name} has no column ${JSON.stringify(column)}`);
    }
    const valid = checked(table, column, wellFormed(JSON.parse(JSON.stringify(value)) as Json), precision);
    if (JSON.stringify(row[column]) !== JSON.stringify(valid)) values[column] = valid;
  }
  return values;
}

/**
 * Creates a row, or changes the given columns of one, and returns it. A caller that knows of the row's deletion passes
 * its time as `base`.
 */
export async function put(held: Held, table: Declared, key: string, columns: Row, now: number, base?: number | null): Promise<StoredRow> {
  const precision = (await held.recall("limits"))?.precision;
  const was = await held.get(table.name, key);
  const row = was ?? newRow(table.name, key);
  const values = newValues(table, row.row, columns, precision);
  if (was && row.state !== "deleted" && Object.keys(values).length === 0) return row; // nothing changes
  const edit = await held.nextEdit();
  // An edit of a row that is put back is not made on the server's state, so the row is sent whole.
  const at = isPutBack(row) ? null : row.at;
  const next: StoredRow = { ...row, at, edit, row: { ...row.row }, changed: { ...row.changed }, editedAt: now };
  if (!was) {
    for (const [column, declared] of Object.entries(table.spec.columns ?? {})) {
      const value = defaultOf(declared, now, precision);
      if (value !== undefined) next.row[column] = value;
    }
  }
  for (const [column, value] of Object.entries(values)) {
    next.row[column] = value;
    next.changed[column] = edit;
  }
  if (row.state === "clean" && was) {
    Object.assign(next, { state: "edited", base: heldOf(row), baseRow: row.row });
  } else if (row.state === "clean" || row.state === "deleted") {
    next.state = row.at !== null || row.base !== null ? "edited" : "added";
  }
  if (!was && base != null) next.base = base;
  delete next.rejected;
  await held.replace(was, next);
  return next;
}

const isInFlight = async (held: Held, { name }: Declared, key: string) =>
  (await held.recall("outstanding"))?.sent.some((sent) => sent.table === name && sent.key === key) ?? false;

/** Deletes a row, if it is there. */
export async function remove(held: Held, table: Declared, key: string, now: number): Promise<void> {
  const row = await held.get(table.name, key);
  if (!row || row.state === "deleted") return;
  const mayBeOnServer = row.at !== null || row.base !== null || row.doubtful || (await isInFlight(held, table, key));
  if (row.state === "added" && !mayBeOnServer) return held.replace(row, null);
  const next: StoredRow = { ...row, state: "deleted", editedAt: now, edit: await held.nextEdit() };
  if (row.state === "clean") Object.assign(next, { base: heldOf(row), baseRow: row.row });
  delete next.rejected;
  return held.replace(row, next);
}

/**
 * Discards an unsent edit, or a row that a restored server lost and rejects. A row that is put back and not rejected
 * stays as it is: its user changed nothing.
 */
export async function revert(held: Held, table: Declared, key: string): Promise<void> {
  const row = await held.get(table.name, key);
  if (!row || row.state === "clean" || (isPutBack(row) && !row.rejected)) return;
  if (await isInFlight(held, table, key)) throw new RollcallError("in_flight", `${table.name} ${key} is being sent`);
  if (row.at === null) return held.replace(row, null); // the server does not hold the row
  // `baseRow` is the server's row, unless that has changed since: then the next sync requests it.
  const next: StoredRow = { ...row, state: "clean", at: row.base === row.at && row.baseRow ? row.at : null };
  Object.assign(next, { base: null, editedAt: null, changed: {}, row: row.baseRow ?? row.row });
  delete next.rejected;
  delete next.baseRow;
  await held.remember("etag", undefined); // the next manifest has to list it
  return held.replace(row, next);
}

/** Resolves a conflict as the user wants: an edit that is based on the server's row. */
export async function settle(held: Held, table: Declared, conflict: Conflict, as: Row | null, now: number): Promise<void> {
  if (as === null) return remove(held, table, conflict.key, now);
  const present = await held.get(table.name, conflict.key);
  // A row that was deleted is restored with all of its columns.
  const columns = present || conflict.theirs ? as : { ...conflict.base, ...conflict.mine, ...as };
  await put(held, table, conflict.key, columns, now, conflict.lastUpdate);
}

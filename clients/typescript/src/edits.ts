/** What the app does with its rows, offline or not, and what then waits for the next sync. */
import { heldOf, isPutBack } from "./decide.js";
import { RollcallError } from "./error.js";
import { newRow, type Declared, type Held } from "./held.js";
import { readKey } from "./key.js";
import { parseTime, spellTime, type Precision } from "./time.js";
import type { ColumnSpec, Conflict, Json, Row, StoredRow } from "./types.js";

const wrong = (table: Declared, column: string, expected: string) =>
  new RollcallError("wrong_type", `${table.name}.${column}: expected ${expected}`);

/** Plain JSON that any server reads: half a character, as a cut emoji leaves it, would cost the whole request. */
function plain(value: Json): Json {
  if (typeof value === "string") return value.replace(/\p{Surrogate}/gu, "\ufffd");
  if (Array.isArray(value)) return value.map(plain);
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).map(([name, member]) => [plain(name) as string, plain(member)]));
}

/** A value as the server would write it, so that a row is the same text wherever it was written. */
function checked(table: Declared, column: string, value: Json, precision: Precision | undefined): Json {
  const declared = table.spec.columns?.[column];
  if (!declared || value === null) return value;
  const type = typeof declared === "string" ? declared : declared.type;
  switch (type) {
    case "boolean":
      if (typeof value !== "boolean") throw wrong(table, column, "true or false");
      return value;
    case "integer":
      if (!Number.isSafeInteger(value) && !(typeof value === "string" && /^-?\d+$/.test(value))) throw wrong(table, column, "an integer");
      return value;
    case "real":
      if (typeof value !== "number" || !Number.isFinite(value)) throw wrong(table, column, "a number");
      return value;
    case "decimal":
      if (!/^-?\d+(\.\d+)?$/.test(String(value))) throw wrong(table, column, 'a decimal such as "12.50"');
      return String(value);
    case "json":
      return value;
    default:
      if (typeof value !== "string") throw wrong(table, column, "a string");
  }
  if (type === "uuid") {
    const key = readKey(value);
    if (key === null) throw wrong(table, column, "a UUID of 36 characters");
    return key;
  }
  if (type === "timestamp") {
    const at = parseTime(value);
    if (at === null) throw wrong(table, column, 'a time such as "2013-05-01T15:42:50.000Z"');
    return precision ? spellTime(at, precision) : value;
  }
  if (type === "date" && !/^\d{4}-\d\d-\d\d$/.test(value)) throw wrong(table, column, 'a date such as "2013-05-01"');
  return value;
}

/** What the server would fill in. */
function defaultOf(declared: ColumnSpec | string, now: number, precision: Precision | undefined): Json | undefined {
  if (typeof declared === "string" || declared.default === undefined) return null;
  if (declared.default !== "now") return declared.default;
  if (declared.type === "date") return spellTime(now).slice(0, 10);
  return declared.type === "timestamp" && precision ? spellTime(now, precision) : undefined;
}

/** The key that the app names; throws what it is not. */
export function keyOf(table: Declared, key: unknown): string {
  const read = readKey(key);
  if (read === null) throw new RollcallError("invalid_key", `${table.name}: a key is a UUID of 36 characters`);
  return read;
}

/**
 * Makes a row, or changes the given columns of one. `base` is set by whoever knows of the row's deletion: its
 * time. Gives the row.
 */
export async function put(held: Held, table: Declared, key: string, columns: Row, now: number, base?: number | null): Promise<StoredRow> {
  const precision = (await held.recall("limits"))?.precision;
  const was = await held.get(table.name, key);
  const row = was ?? newRow(table.name, key);
  const news: Row = {};
  for (const [column, value] of Object.entries(columns)) {
    if (column === table.key || column === "last_update" || value === undefined) continue;
    if (table.columns && !table.columns.includes(column)) {
      throw new RollcallError("no_such_column", `${table.name} has no column ${JSON.stringify(column)}`);
    }
    const said = checked(table, column, plain(JSON.parse(JSON.stringify(value)) as Json), precision);
    if (JSON.stringify(row.row[column]) !== JSON.stringify(said)) news[column] = said;
  }
  if (was && row.state !== "deleted" && Object.keys(news).length === 0) return row; // the row is like this already
  const edit = await held.nextEdit();
  // An edit of what is put back is not made on what the server holds: all of the row goes up.
  const at = isPutBack(row) ? null : row.at;
  const next: StoredRow = { ...row, at, edit, row: { ...row.row }, changed: { ...row.changed }, editedAt: now };
  if (!was) {
    for (const [column, declared] of Object.entries(table.spec.columns ?? {})) {
      const value = defaultOf(declared, now, precision);
      if (value !== undefined) next.row[column] = value;
    }
  }
  for (const [column, value] of Object.entries(news)) {
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
  // Nobody else ever knew of it.
  const isKnown = row.at !== null || row.base !== null || row.doubtful || (await isInFlight(held, table, key));
  if (row.state === "added" && !isKnown) return held.replace(row, null);
  const next: StoredRow = { ...row, state: "deleted", editedAt: now, edit: await held.nextEdit() };
  if (row.state === "clean") Object.assign(next, { base: heldOf(row), baseRow: row.row });
  delete next.rejected;
  return held.replace(row, next);
}

/**
 * Gives up an unsent edit, or a row that a restored server lost and does not take back. A row that is put back and that no
 * server has refused yet stays as it is: its user changed nothing.
 */
export async function revert(held: Held, table: Declared, key: string): Promise<void> {
  const row = await held.get(table.name, key);
  if (!row || row.state === "clean" || (isPutBack(row) && !row.rejected)) return;
  if (await isInFlight(held, table, key)) throw new RollcallError("in_flight", `${table.name} ${key} is being sent`);
  if (row.at === null) return held.replace(row, null); // the server holds none
  // The row that the edit began with is the server's, unless that has moved since: then the next sync asks for it.
  const next: StoredRow = { ...row, state: "clean", at: row.base === row.at && row.baseRow ? row.at : null };
  Object.assign(next, { base: null, editedAt: null, changed: {}, row: row.baseRow ?? row.row });
  delete next.rejected;
  delete next.baseRow;
  await held.remember("etag", undefined); // the next roll call has to list it
  return held.replace(row, next);
}

/** Makes the row of a conflict what the user wants: an edit that knows the server's row. */
export async function settle(held: Held, table: Declared, conflict: Conflict, as: Row | null, now: number): Promise<void> {
  if (as === null) return remove(held, table, conflict.key, now);
  const there = await held.get(table.name, conflict.key);
  // What was deleted comes back as a whole.
  const columns = there || conflict.theirs ? as : { ...conflict.base, ...conflict.mine, ...as };
  await put(held, table, conflict.key, columns, now, conflict.lastUpdate);
}

/**
 * The backend connector for PowerSync's SDKs: what the SDK downloads comes from `/sync/stream`, what it uploads goes to
 * `POST /synchronise`.
 */

/** One local change, as the SDK queues it. */
export interface Entry {
  clientId: number;
  id: string;
  op: string;
  table: string;
  opData?: Record<string, unknown> | undefined;
  previousValues?: Record<string, unknown> | undefined;
}

/** The part of the SDK's database that the connector uses. */
export interface Database {
  getNextCrudTransaction(): Promise<{ crud: Entry[]; complete(): Promise<void> } | null>;
  getClientId?(): Promise<string>;
}

/** A change that the server did not take as it was sent. The local row becomes the server's with the next checkpoint. */
export interface Refusal {
  table: string;
  id: string;
  /** `add`, `update` or `delete`. */
  operation: string;
  /** The server's verdict, such as `rejected` or `kept`; `refused` where the whole request was. */
  verdict: string;
  /** Why, for programs and for people. */
  code: string;
  detail: string;
  /** What was sent. */
  sent: Record<string, unknown>;
  /** The row that the server has, where it says so. */
  stored?: Record<string, unknown>;
  /** The conflict that the server noted, for `GET /conflicts`. */
  conflict?: string;
}

/** What the server says where a request would delete many rows. */
export interface MassDelete {
  table: string;
  deletes: number;
  rows: number;
  detail: string;
}

export interface Options {
  /** Where the server is, without a slash at the end. */
  url: string;
  /** A token of the user; null while nobody is signed in. */
  token: () => Promise<string | null>;
  /** Tables whose key is not called `id`, and columns whose type is `json`: SQLite has them as text. */
  tables?: Record<string, { key?: string; json?: readonly string[] }>;
  /** Is called for each change that the server did not take. */
  onRefused?: (refusal: Refusal) => void | Promise<void>;
  /** Whether the user means to delete so many rows. Without it they are refused, and come back. */
  onMassDelete?: (question: MassDelete) => boolean | Promise<boolean>;
  fetch?: typeof globalThis.fetch;
}

export interface Connector {
  fetchCredentials(): Promise<{ endpoint: string; token: string } | null>;
  uploadData(database: Database): Promise<void>;
}

/** One row of a request. */
interface Change {
  operation: "add" | "update" | "delete";
  table: string;
  id: string;
  item: Record<string, unknown>;
}

interface Verdict {
  verdict: string;
  row?: Record<string, unknown>;
  error?: { code: string; detail: string };
  conflict?: string;
}

interface Problem {
  status: number;
  code: string;
  detail: string;
  at?: string;
  deletes?: number;
  rows?: number;
  confirm_deletes?: number;
}

/** Verdicts of a change that the server has as it was sent. */
const TAKEN = new Set(["added", "updated", "merged", "deleted", "same"]);

/** Statuses that pass by themselves: the SDK sends the transaction again. */
const PASSING = new Set([401, 408, 409, 423, 425, 429]);

/** Makes the connector to give to `connect()`. */
export function rollcallConnector(options: Options): Connector {
  const { url, token } = options;
  return {
    async fetchCredentials() {
      const found = await token();
      return found === null ? null : { endpoint: url, token: found };
    },
    async uploadData(database) {
      const transaction = await database.getNextCrudTransaction();
      if (!transaction) return;
      const [first, last] = [transaction.crud[0], transaction.crud.at(-1)];
      const client = (await database.getClientId?.()) ?? "";
      const name = client && first && last ? `powersync-${client}-${first.clientId}-${last.clientId}` : "";
      await send(options, folded(transaction.crud, options), name);
      // Also where rows were refused: a row that the server does not take must not keep the others back.
      await transaction.complete();
    },
  };
}

/** A transaction as one change for each row: a request has no order between the sets that it consists of. */
function folded(entries: readonly Entry[], { tables = {} }: Options): Change[] {
  const rows = new Map<string, Change>();
  for (const { op, table, id, opData = {}, previousValues } of entries) {
    const { key = "id", json = [] } = tables[table] ?? {};
    const place = `${table}/${id}`;
    const before = rows.get(place);
    const { last_update: _, ...columns } = opData;
    for (const name of json) {
      if (typeof columns[name] === "string") columns[name] = parsed(columns[name]);
    }
    const base = previousValues?.["last_update"];
    const item = { [key]: id, ...(typeof base === "string" && { _base: base }) };
    rows.delete(place); // its place is that of its last change
    if (op === "DELETE") {
      rows.set(place, { operation: "delete", table, id, item: before?.operation === "update" ? { ...item, ...based(before) } : item });
    } else if (op === "PUT") {
      rows.set(place, { operation: "add", table, id, item: { ...item, ...columns } });
    } else if (before && before.operation !== "delete") {
      rows.set(place, { ...before, item: { ...before.item, ...columns } });
    } else {
      rows.set(place, { operation: "update", table, id, item: { ...item, ...columns } });
    }
  }
  return [...rows.values()];
}

/** What an earlier change of the row was made on. */
const based = ({ item }: Change) => ("_base" in item ? { _base: item["_base"] } : {});

/** A JSON column; text that is no JSON is sent as text. */
function parsed(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}

/** Sends changes in one request; one that is refused as a whole goes in halves, down to the row that is wrong. */
async function send(options: Options, changes: readonly Change[], name: string, confirmed?: number): Promise<void> {
  if (changes.length === 0) return;
  const body: Record<string, unknown> = { ...(confirmed !== undefined && { confirm_deletes: confirmed }) };
  const sets = new Map<string, Change[]>();
  for (const change of changes) {
    const set = ((body[change.operation] ??= {}) as Record<string, unknown[]>)[change.table] ??= [];
    (set as unknown[]).push(change.item);
    const place = `${change.operation}/${change.table}`;
    sets.set(place, [...(sets.get(place) ?? []), change]);
  }
  const answer = await post(options, body, name);
  if ("verdicts" in answer) {
    for (const [place, sent] of sets) {
      const [operation = "", table = ""] = place.split("/");
      for (const [at, verdict] of (answer.verdicts[operation]?.[table] ?? []).entries()) {
        const change = sent[at];
        const isGone = operation === "delete" && ["absent", "gone"].includes(verdict.verdict);
        if (change && !isGone && !TAKEN.has(verdict.verdict)) await refused(options, change, verdict);
      }
    }
    return;
  }
  const { problem } = answer;
  if (problem.code === "idempotency_key_reused") return send(options, changes, "", confirmed);
  if (problem.code === "mass_delete" && confirmed === undefined) {
    const { detail, deletes = 0, rows = 0, confirm_deletes, at = "" } = problem;
    const meant = await options.onMassDelete?.({ table: at.split("/").at(-1) ?? "", deletes, rows, detail });
    if (meant && confirm_deletes !== undefined) return send(options, changes, name && `${name}-c`, confirm_deletes);
    for (const change of changes.filter(({ operation }) => operation === "delete")) {
      await refused(options, change, { verdict: "refused", error: problem });
    }
    const others = changes.filter(({ operation }) => operation !== "delete");
    return send(options, others, name && `${name}-o`);
  }
  const [only] = changes;
  if (changes.length === 1 && only) return refused(options, only, { verdict: "refused", error: problem });
  const half = changes.length >> 1;
  await send(options, changes.slice(0, half), name && `${name}-0`, confirmed);
  await send(options, changes.slice(half), name && `${name}-1`, confirmed);
}

async function refused({ onRefused }: Options, { table, id, operation, item }: Change, { verdict, row, error, conflict }: Verdict): Promise<void> {
  await onRefused?.({
    ...{ table, id, operation, verdict, sent: item },
    code: error?.code ?? verdict,
    detail: error?.detail ?? `the server answered ${verdict}`,
    ...(row && { stored: row }),
    ...(conflict !== undefined && { conflict }),
  });
}

type Answer = { verdicts: Record<string, Record<string, Verdict[]>> } | { problem: Problem };

/** Throws what passes by itself: the SDK then sends the transaction again, under the same key. */
async function post({ url, token, fetch = globalThis.fetch }: Options, body: unknown, name: string): Promise<Answer> {
  const bearer = await token();
  if (bearer === null) throw new Error("nobody is signed in");
  const headers: Record<string, string> = { Authorization: `Bearer ${bearer}`, "Content-Type": "application/json", Prefer: "wait=10" };
  if (name) headers["Idempotency-Key"] = name;
  const response = await fetch(`${url}/synchronise`, { method: "POST", headers, body: JSON.stringify(body) });
  if (response.ok) return { verdicts: (await response.json()) as Record<string, Record<string, Verdict[]>> };
  const problem = (await response.json().catch(() => ({}))) as Partial<Problem>;
  const { status } = response;
  const [code, detail] = [problem.code ?? String(status), problem.detail ?? response.statusText];
  // 507: the owner has no room. Rows that take some are refused, deletions go through.
  if (PASSING.has(status) || (status >= 500 && status !== 507)) throw Object.assign(new Error(`${code}: ${detail}`), { status, code });
  return { problem: { ...problem, status, code, detail } };
}

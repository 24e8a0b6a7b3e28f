/**
 * The backend connector for PowerSync's SDKs. The SDK downloads from `/sync/stream`; this connector uploads to
 * `POST /synchronise`.
 */
/** Verdicts of a change that the server applied. */
const APPLIED = new Set(["added", "updated", "merged", "deleted", "same"]);
/** Temporary errors: the SDK sends the transaction again. */
const TEMPORARY = new Set([401, 408, 409, 423, 425, 429]);
/** Makes the connector for `connect()`. */
export function rollcallConnector(options) {
    const { url, token } = options;
    return {
        async fetchCredentials() {
            const found = await token();
            return found === null ? null : { endpoint: url, token: found };
        },
        async uploadData(database) {
            const transaction = await database.getNextCrudTransaction();
            if (!transaction)
                return;
            const [first, last] = [transaction.crud[0], transaction.crud.at(-1)];
            const client = (await database.getClientId?.()) ?? "";
            const key = client && first && last ? `powersync-${client}-${first.clientId}-${last.clientId}` : "";
            await send(options, folded(transaction.crud, options), key);
            // The transaction is complete even if rows were refused: such a row must not block the others.
            await transaction.complete();
        },
    };
}
/** A transaction as one change for each row, since the sets of a request have no order between them. */
function folded(entries, { tables = {} }) {
    const rows = new Map();
    for (const { op, table, id, opData = {}, previousValues } of entries) {
        const { key = "id", json = [] } = tables[table] ?? {};
        const name = `${table}/${id}`;
        const before = rows.get(name);
        const { last_update: _, ...columns } = opData;
        for (const column of json) {
            if (typeof columns[column] === "string")
                columns[column] = parsed(columns[column]);
        }
        const base = previousValues?.["last_update"];
        const item = { [key]: id, ...(typeof base === "string" && { _base: base }) };
        rows.delete(name); // the position of a row is that of its last change
        if (op === "DELETE") {
            rows.set(name, { operation: "delete", table, id, item: before?.operation === "update" ? { ...item, ...based(before) } : item });
        }
        else if (op === "PUT") {
            rows.set(name, { operation: "add", table, id, item: { ...item, ...columns } });
        }
        else if (before && before.operation !== "delete") {
            rows.set(name, { ...before, item: { ...before.item, ...columns } });
        }
        else {
            rows.set(name, { operation: "update", table, id, item: { ...item, ...columns } });
        }
    }
    return [...rows.values()];
}
/** The base of an earlier change of the row. */
const based = ({ item }) => ("_base" in item ? { _base: item["_base"] } : {});
/** A JSON column; text that is no JSON is sent as text. */
function parsed(text) {
    try {
        return JSON.parse(text);
    }
    catch {
        return text;
    }
}
/** Sends changes in one request, under an idempotency key. If the server refuses all of it, decides what to send again. */
async function send(options, changes, key, confirmed) {
    if (changes.length === 0)
        return;
    const body = { ...(confirmed !== undefined && { confirm_deletes: confirmed }) };
    const sets = new Map();
    for (const change of changes) {
        const set = (body[change.operation] ??= {})[change.table] ??= [];
        set.push(change.item);
        const name = `${change.operation}/${change.table}`;
        sets.set(name, [...(sets.get(name) ?? []), change]);
    }
    const response = await post(options, body, key);
    if ("problem" in response)
        return sendAgain(options, changes, key, response.problem, confirmed);
    for (const [name, sent] of sets) {
        const [operation = "", table = ""] = name.split("/");
        for (const [index, verdict] of (response.verdicts[operation]?.[table] ?? []).entries()) {
            const change = sent[index];
            const isGone = operation === "delete" && ["absent", "gone"].includes(verdict.verdict);
            if (change && !isGone && !APPLIED.has(verdict.verdict))
                await reportRefusal(options, change, verdict);
        }
    }
}
/** Sends the changes of a refused request again: confirmed, without the deletions, or in halves down to the wrong row. */
async function sendAgain(options, changes, key, problem, confirmed) {
    if (problem.code === "idempotency_key_reused")
        return send(options, changes, "", confirmed);
    if (problem.code === "mass_delete" && confirmed === undefined) {
        const { detail, deletes = 0, rows = 0, confirm_deletes, at = "" } = problem;
        const isConfirmed = await options.onMassDelete?.({ table: at.split("/").at(-1) ?? "", deletes, rows, detail });
        if (isConfirmed && confirm_deletes !== undefined)
            return send(options, changes, key && `${key}-c`, confirm_deletes);
        for (const change of changes.filter(({ operation }) => operation === "delete")) {
            await reportRefusal(options, change, { verdict: "refused", error: problem });
        }
        const others = changes.filter(({ operation }) => operation !== "delete");
        return send(options, others, key && `${key}-o`);
    }
    const [only] = changes;
    if (changes.length === 1 && only)
        return reportRefusal(options, only, { verdict: "refused", error: problem });
    const half = changes.length >> 1;
    await send(options, changes.slice(0, half), key && `${key}-0`, confirmed);
    await send(options, changes.slice(half), key && `${key}-1`, confirmed);
}
async function reportRefusal({ onRefused }, { table, id, operation, item }, { verdict, row, error, conflict }) {
    await onRefused?.({
        ...{ table, id, operation, verdict, sent: item },
        code: error?.code ?? verdict,
        detail: error?.detail ?? `the server returned ${verdict}`,
        ...(row && { stored: row }),
        ...(conflict !== undefined && { conflict }),
    });
}
/** Sends one request. Throws temporary errors, after which the SDK sends the transaction again, under the same key. */
async function post({ url, token, fetch = globalThis.fetch }, body, key) {
    const bearer = await token();
    if (bearer === null)
        throw new Error("no user is signed in");
    const headers = { Authorization: `Bearer ${bearer}`, "Content-Type": "application/json", Prefer: "wait=10" };
    if (key)
        headers["Idempotency-Key"] = key;
    const response = await fetch(`${url}/synchronise`, { method: "POST", headers, body: JSON.stringify(body) });
    if (response.ok)
        return { verdicts: (await response.json()) };
    const problem = (await response.json().catch(() => ({})));
    const { status } = response;
    const [code, detail] = [problem.code ?? String(status), problem.detail ?? response.statusText];
    // After 507 the owner has no room: `sendAgain` finds the rows that are refused, and deletions succeed.
    if (TEMPORARY.has(status) || (status >= 500 && status !== 507))
        throw Object.assign(new Error(`${code}: ${detail}`), { status, code });
    return { problem: { ...problem, status, code, detail } };
}

/**
 * The backend connector for PowerSync's SDKs: what the SDK downloads comes from `/sync/stream`, what it uploads goes to
 * `POST /synchronise`.
 */
/** Verdicts of a change that the server has as it was sent. */
const TAKEN = new Set(["added", "updated", "merged", "deleted", "same"]);
/** Statuses that pass by themselves: the SDK sends the transaction again. */
const PASSING = new Set([401, 408, 409, 423, 425, 429]);
/** Makes the connector to give to `connect()`. */
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
            const name = client && first && last ? `powersync-${client}-${first.clientId}-${last.clientId}` : "";
            await send(options, folded(transaction.crud, options), name);
            // Also where rows were refused: a row that the server does not take must not keep the others back.
            await transaction.complete();
        },
    };
}
/** A transaction as one change for each row: a request has no order between the sets that it consists of. */
function folded(entries, { tables = {} }) {
    const rows = new Map();
    for (const { op, table, id, opData = {}, previousValues } of entries) {
        const { key = "id", json = [] } = tables[table] ?? {};
        const place = `${table}/${id}`;
        const before = rows.get(place);
        const { last_update: _, ...columns } = opData;
        for (const name of json) {
            if (typeof columns[name] === "string")
                columns[name] = parsed(columns[name]);
        }
        const base = previousValues?.["last_update"];
        const item = { [key]: id, ...(typeof base === "string" && { _base: base }) };
        rows.delete(place); // its place is that of its last change
        if (op === "DELETE") {
            rows.set(place, { operation: "delete", table, id, item: before?.operation === "update" ? { ...item, ...based(before) } : item });
        }
        else if (op === "PUT") {
            rows.set(place, { operation: "add", table, id, item: { ...item, ...columns } });
        }
        else if (before && before.operation !== "delete") {
            rows.set(place, { ...before, item: { ...before.item, ...columns } });
        }
        else {
            rows.set(place, { operation: "update", table, id, item: { ...item, ...columns } });
        }
    }
    return [...rows.values()];
}
/** What an earlier change of the row was made on. */
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
/** Sends changes in one request; one that is refused as a whole goes in halves, down to the row that is wrong. */
async function send(options, changes, name, confirmed) {
    if (changes.length === 0)
        return;
    const body = { ...(confirmed !== undefined && { confirm_deletes: confirmed }) };
    const sets = new Map();
    for (const change of changes) {
        const set = (body[change.operation] ??= {})[change.table] ??= [];
        set.push(change.item);
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
                if (change && !isGone && !TAKEN.has(verdict.verdict))
                    await refused(options, change, verdict);
            }
        }
        return;
    }
    const { problem } = answer;
    if (problem.code === "idempotency_key_reused")
        return send(options, changes, "", confirmed);
    if (problem.code === "mass_delete" && confirmed === undefined) {
        const { detail, deletes = 0, rows = 0, confirm_deletes, at = "" } = problem;
        const meant = await options.onMassDelete?.({ table: at.split("/").at(-1) ?? "", deletes, rows, detail });
        if (meant && confirm_deletes !== undefined)
            return send(options, changes, name && `${name}-c`, confirm_deletes);
        for (const change of changes.filter(({ operation }) => operation === "delete")) {
            await refused(options, change, { verdict: "refused", error: problem });
        }
        const others = changes.filter(({ operation }) => operation !== "delete");
        return send(options, others, name && `${name}-o`);
    }
    const [only] = changes;
    if (changes.length === 1 && only)
        return refused(options, only, { verdict: "refused", error: problem });
    const half = changes.length >> 1;
    await send(options, changes.slice(0, half), name && `${name}-0`, confirmed);
    await send(options, changes.slice(half), name && `${name}-1`, confirmed);
}
async function refused({ onRefused }, { table, id, operation, item }, { verdict, row, error, conflict }) {
    await onRefused?.({
        ...{ table, id, operation, verdict, sent: item },
        code: error?.code ?? verdict,
        detail: error?.detail ?? `the server answered ${verdict}`,
        ...(row && { stored: row }),
        ...(conflict !== undefined && { conflict }),
    });
}
/** Throws what passes by itself: the SDK then sends the transaction again, under the same key. */
async function post({ url, token, fetch = globalThis.fetch }, body, name) {
    const bearer = await token();
    if (bearer === null)
        throw new Error("nobody is signed in");
    const headers = { Authorization: `Bearer ${bearer}`, "Content-Type": "application/json", Prefer: "wait=10" };
    if (name)
        headers["Idempotency-Key"] = name;
    const response = await fetch(`${url}/synchronise`, { method: "POST", headers, body: JSON.stringify(body) });
    if (response.ok)
        return { verdicts: (await response.json()) };
    const problem = (await response.json().catch(() => ({})));
    const { status } = response;
    const [code, detail] = [problem.code ?? String(status), problem.detail ?? response.statusText];
    // 507: the owner has no room. Rows that take some are refused, deletions go through.
    if (PASSING.has(status) || (status >= 500 && status !== 507))
        throw Object.assign(new Error(`${code}: ${detail}`), { status, code });
    return { problem: { ...problem, status, code, detail } };
}

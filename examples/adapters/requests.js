// The requests that every adapter needs: each names the owner of the rows, and a rejected row of a push does not block
// the others.

/**
 * Returns `call(method, path, body)`. `kept` reads and writes the adapter's own state, which is stored with the rows: the
 * user and owner of the rows (`for`), and the installation (`device`, `count`). `call.epoch` is the last epoch of the server.
 */
export function createCall({ url, token, fetch, kept }) {
  const request = async (method, path, body, more) => {
    const headers = { Authorization: `Bearer ${await token()}`, "Content-Type": "application/json", Prefer: "wait=10", ...more };
    return fetch(url + path, { method, headers, body: body && JSON.stringify(body) });
  };
  const read = async (response) => {
    const body = await response.json().catch(() => ({}));
    if (response.ok) return body;
    throw Object.assign(new Error(`${body.code ?? response.status}: ${body.detail ?? response.statusText}`), body, { status: response.status });
  };
  /** The headers that name the owner and the installation. An older server has no `GET /me`, and does not get them. */
  let older = false;
  const identity = async () => {
    const state = await kept();
    if (!state.for && !older) {
      const response = await request("GET", "/me");
      older = response.status === 404;
      const me = older ? null : await read(response);
      if (me) await kept({ for: `${me.user}.${me.owner}` });
    }
    if (older) return {};
    const { for: owner, device, count = 0 } = await kept();
    return { "Sync-For": owner, ...(device && { "Sync-Device": `${device}.${count}` }) };
  };
  const call = async (method, path, body) => {
    const response = await request(method, path, body, await identity());
    call.epoch = response.headers.get("sync-epoch") ?? call.epoch;
    return read(response);
  };
  call.stream = async (path, signal) => fetch(url + path, { headers: { Authorization: `Bearer ${await token()}`, ...(await identity()) }, signal });
  return call;
}

/** Whether parts of a request may succeed: it was refused because of its contents, or took too long. */
const isDivisible = ({ status, code }) => [400, 408, 413, 422, 504].includes(status) || (status === 503 && code === "timeout");

/**
 * Sends rows, each `{ operation, table, item }`, and returns a verdict for each, in that order. If the server no longer
 * has a row, it is added again, as `add` if that is given. If the server refuses a whole request because of one row (an
 * older release, a body that is too large), the request is sent in halves, down to that row.
 */
export async function send(call, rows, base) {
  if (rows.length === 0) return [];
  const body = {};
  for (const { operation, table, item } of rows) ((body[operation] ??= {})[table] ??= []).push(item);
  let response;
  try {
    response = await call("POST", "/synchronise", { ...body, ...(base && { base }) });
  } catch (error) {
    if (!isDivisible(error)) throw error;
    const refusal = { verdict: "rejected", error: { code: error.code ?? "unknown", detail: error.detail ?? error.message } };
    // More deletions than plausible: they wait for the user, and the other rows are sent.
    const others = error.code === "mass_delete" ? rows.filter(({ operation }) => operation !== "delete") : null;
    if (others) {
      const items = await send(call, others, base);
      return rows.map(({ operation }) => (operation === "delete" ? refusal : items.shift()));
    }
    if (rows.length > 1) {
      const half = Math.ceil(rows.length / 2);
      return [...(await send(call, rows.slice(0, half), base)), ...(await send(call, rows.slice(half), base))];
    }
    if ([408, 503, 504].includes(error.status)) throw error;
    return [refusal];
  }
  const items = rows.map(({ operation, table }) => response[operation][table].shift());
  // The server has neither these rows nor tombstones of them: the local rows are all that exists.
  const missing = rows.filter(({ operation }, i) => operation === "update" && items[i].verdict === "absent");
  const added = await send(call, missing.map(({ table, add, item: { _base, ...item } }) => ({ operation: "add", table, item: add ?? item })));
  return items.map((item, i) => (missing.includes(rows[i]) ? added.shift() : item));
}

// What every adapter needs of rollcall's API: calls that say whose rows they are about, and a push in which no row
// keeps another back.

/**
 * Gives `ask(method, path, body)`. `kept` is the adapter's own state, stored with the rows: the user and owner whose
 * rows they are (`for`), and the installation (`device`, `count`). `ask.epoch` is the server's, as last told.
 */
export function caller({ url, token, fetch, kept }) {
  const request = async (method, path, body, more) => {
    const headers = { Authorization: `Bearer ${await token()}`, "Content-Type": "application/json", Prefer: "wait=10", ...more };
    return fetch(url + path, { method, headers, body: body && JSON.stringify(body) });
  };
  const read = async (answer) => {
    const said = await answer.json().catch(() => ({}));
    if (answer.ok) return said;
    throw Object.assign(new Error(`${said.code ?? answer.status}: ${said.detail ?? answer.statusText}`), said, { status: answer.status });
  };
  /** The headers of each call; an older server does not say who the caller is, and is not told. */
  let older = false;
  const mine = async () => {
    const state = await kept();
    if (!state.for && !older) {
      const answer = await request("GET", "/me");
      older = answer.status === 404;
      const me = older ? null : await read(answer);
      if (me) await kept({ for: `${me.user}.${me.owner}` });
    }
    if (older) return {};
    const { for: whose, device, count = 0 } = await kept();
    return { "Sync-For": whose, ...(device && { "Sync-Device": `${device}.${count}` }) };
  };
  const ask = async (method, path, body) => {
    const answer = await request(method, path, body, await mine());
    ask.epoch = answer.headers.get("sync-epoch") ?? ask.epoch;
    return read(answer);
  };
  ask.stream = async (path, signal) => fetch(url + path, { headers: { Authorization: `Bearer ${await token()}`, ...(await mine()) }, signal });
  return ask;
}

/** A request was refused for something in it, or took too long: in parts it may not be. */
const isDivisible = ({ status, code }) => [400, 408, 413, 422, 504].includes(status) || (status === 503 && code === "timeout");

/**
 * Sends rows, each `{ operation, table, item }`, and gives a verdict for each, in that order. A row that the server has
 * forgotten is added again, as `add` if there is one. A server that refuses a
 * whole request for one row of it (an older release, a body that is too large) gets it in halves, down to that row.
 */
export async function send(ask, rows, base) {
  if (rows.length === 0) return [];
  const body = {};
  for (const { operation, table, item } of rows) ((body[operation] ??= {})[table] ??= []).push(item);
  let answer;
  try {
    answer = await ask("POST", "/synchronise", { ...body, ...(base && { base }) });
  } catch (error) {
    if (!isDivisible(error)) throw error;
    const refusal = { verdict: "rejected", error: { code: error.code ?? "unknown", detail: error.detail ?? error.message } };
    // More deletions than plausible: they wait for the user, and the other rows go on.
    const apart = error.code === "mass_delete" ? rows.filter(({ operation }) => operation !== "delete") : null;
    if (apart) {
      const items = await send(ask, apart, base);
      return rows.map(({ operation }) => (operation === "delete" ? refusal : items.shift()));
    }
    if (rows.length > 1) {
      const half = Math.ceil(rows.length / 2);
      return [...(await send(ask, rows.slice(0, half), base)), ...(await send(ask, rows.slice(half), base))];
    }
    if ([408, 503, 504].includes(error.status)) throw error;
    return [refusal];
  }
  const items = rows.map(({ operation, table }) => answer[operation][table].shift());
  // Nobody remembers these rows, not even that they were deleted: what is here is all there is of them.
  const forgotten = rows.filter(({ operation }, place) => operation === "update" && items[place].verdict === "absent");
  const added = await send(ask, forgotten.map(({ table, add, item: { _base, ...item } }) => ({ operation: "add", table, item: add ?? item })));
  return items.map((item, place) => (forgotten.includes(rows[place]) ? added.shift() : item));
}

// A small server in the place of `fetch`, for what a real one cannot do at will: slow lines, other clocks, older
// releases, tokens that change between two requests. Every write wins; it decides no conflicts.
import { randomUUID } from "node:crypto";
import { after } from "node:test";
import { memoryStore, openClient } from "../dist/index.js";
import { tables } from "./support.mjs";

const keys = Object.fromEntries(Object.entries(tables).map(([name, { key }]) => [name, key]));
const reply = (status, body, headers = {}) => new Response(status === 304 ? null : JSON.stringify(body), { status, headers });
export const problem = (status, code, more = {}) => reply(status, { status, code, detail: code, title: code, ...more });

/**
 * `users` maps tokens to `{ user, owner }`. `before(request)` may return another response, or throw as a network does;
 * `verdict(operation, table, item)` may return another verdict.
 */
export function fakeServer({ users = {}, older = false, limits = {}, before = () => undefined, verdict = () => undefined } = {}) {
  const owners = new Map();
  const state = { log: [], now: () => Date.now(), owner: (name) => owners.get(name) ?? owners.set(name, { version: 1, rows: new Map(), seed: randomUUID().replaceAll("-", "") }).get(name) };
  const known = { anna: { user: randomUUID(), owner: randomUUID() }, ...users };

  const synchronise = (owner, body) => {
    const response = { add: {}, update: {}, delete: {}, get: {}, missing: {} };
    const before = owner.version;
    let written = false;
    for (const operation of ["add", "update", "delete"]) {
      for (const [table, items] of Object.entries(body[operation] ?? {})) {
        response[operation][table] = items.map((item) => {
          const { [keys[table]]: key, last_update, _base, ...columns } = item;
          const name = `${table} ${key}`;
          const given = verdict(operation, table, item);
          if (given) return { [keys[table]]: key, ...given };
          const at = Math.max(Date.parse(last_update ?? new Date().toISOString()), (owner.rows.get(name)?.at ?? 0) + 1);
          written = true;
          const was = owner.rows.get(name);
          owner.rows.set(name, operation === "delete" ? { version: before + 1, deleted: true, at } : { version: before + 1, at, columns: { ...was?.columns, ...columns } });
          return { [keys[table]]: key, verdict: { add: "added", update: "updated", delete: "deleted" }[operation], last_update: new Date(at).toISOString() };
        });
      }
    }
    if (written) owner.version++;
    for (const [table, requested] of Object.entries(body.get ?? {})) {
      const present = requested.filter((key) => owner.rows.get(`${table} ${key}`)?.columns);
      response.get[table] = present.map((key) => rowOf(owner, table, key));
      response.missing[table] = requested.filter((key) => !present.includes(key));
    }
    return { ...response, version: owner.version, ...(body.pull ? { changes: changes(owner, body.base ?? 0) } : {}) };
  };
  const rowOf = (owner, table, key) => {
    const { at, columns } = owner.rows.get(`${table} ${key}`);
    return { [keys[table]]: key, last_update: new Date(at).toISOString(), ...columns };
  };
  const changes = (owner, since) => {
    const page = { type: since ? "diff" : "full", version: owner.version, more: false, add: {}, update: {}, delete: {} };
    for (const [name, row] of owner.rows) {
      const [table, key] = name.split(" ");
      if (row.version <= since) continue;
      if (row.deleted) (page.delete[table] ??= []).push(key);
      else (page.update[table] ??= []).push(rowOf(owner, table, key));
    }
    return page;
  };

  state.fetch = async (url, init) => {
    const { pathname, searchParams } = new URL(url);
    const token = init.headers.Authorization?.replace("Bearer ", "") ?? null;
    const request = { method: init.method, path: pathname, token, headers: init.headers, text: init.body ?? "", body: init.body ? JSON.parse(init.body) : undefined, at: state.now(), signal: init.signal };
    state.log.push(request);
    const early = await before(request);
    if (early) return early;
    if (pathname === "/limits") return reply(200, { rows_max: 5000, get_keys_max: 5000, body_bytes_max: 8_388_608, time_precision: "milliseconds", ...limits });
    if (older && pathname === "/me") return problem(404, "not_found");
    const me = known[token];
    if (!me) return problem(401, "unauthorized");
    const mine = init.headers["Sync-For"];
    if (!older && mine !== undefined && mine !== `${me.user}.${me.owner}`) return problem(409, "other_user");
    const owner = state.owner(me.owner);
    if (pathname === "/me") return reply(200, { ...me, device: randomUUID(), device_name: "phone" });
    if (pathname === "/digests") return reply(200, { seed: owner.seed });
    const since = Number(searchParams.get("since") ?? request.body?.base ?? 0);
    if (since > owner.version) return problem(410, "cursor_expired");
    if (pathname === "/changes") return reply(200, changes(owner, Number(searchParams.get("since") ?? 0)));
    if (pathname === "/synchronise") return reply(200, synchronise(owner, request.body));
    if (pathname === "/conflicts") return reply(200, { conflicts: [] });
    return reply(204, null);
  };
  state.users = known;
  state.rows = (token) => [...state.owner(known[token].owner).rows].filter(([, { deleted }]) => !deleted).map(([name]) => name);
  return state;
}

/** A client of the fake server. Its pauses take no time, and are recorded. */
export async function fakeDevice(fake, options = {}) {
  const pauses = [];
  const { patience, ...more } = options;
  const client = await openClient({
    ...{ url: "http://fake", tables, store: memoryStore(), token: "anna", fetch: (...args) => fake.fetch(...args) },
    ...more,
    patience: { pause: async (ms) => void pauses.push(ms), random: () => 0, ...patience },
  });
  after(() => client.close());
  return Object.assign(client, { pauses });
}

export const sent = (fake, path = "/synchronise") => fake.log.filter((request) => request.path === path);

// WatermelonDB over rollcall: `lastPulledAt` is rollcall's version, each table's `id` is its key column.
import { synchronize } from "@nozbe/watermelondb/sync/index.js";

/** Another device was quicker with a row of this push: pull, let WatermelonDB merge, push again. */
class Outrun extends Error {}

/** How often to begin again after another device was quicker. */
const ROUNDS_MAX = 4;

/**
 * Syncs a WatermelonDB database with a rollcall server. `tables` has the key column of each table: `{ notes: "id" }`.
 * WatermelonDB settles conflicts itself, column by column, so give the tables `policy = "manual"` on the server.
 */
export async function syncWithRollcall({ database, url, token, tables, fetch = globalThis.fetch, ...options }) {
  const ask = async (method, path, body) => {
    const headers = { Authorization: `Bearer ${await token()}`, "Content-Type": "application/json", Prefer: "wait=10" };
    const answer = await fetch(url + path, { method, headers, body: body && JSON.stringify(body) });
    const said = await answer.json();
    if (!answer.ok) throw Object.assign(new Error(`${said.code}: ${said.detail}`), said);
    return said;
  };
  const names = Object.keys(tables);
  const toWatermelon = (table) => ({ [tables[table]]: id, last_update: _, ...columns }) => ({ id, ...columns });
  const toRollcall = (table) => ({ id, _status, _changed, ...columns }) => ({ [tables[table]]: id, ...columns });

  const pullChanges = async ({ lastPulledAt }) => {
    const changes = Object.fromEntries(names.map((name) => [name, { created: [], updated: [], deleted: [] }]));
    const first = `tables=${names.join(",")}`;
    let replace = false;
    let page = await ask("GET", `/changes?${first}${lastPulledAt ? `&since=${lastPulledAt}` : ""}`).catch((error) => {
      if (error.code !== "cursor_expired") throw error;
      replace = true; // away for too long: everything again, unsent edits stay
      return ask("GET", `/changes?${first}`);
    });
    for (;;) {
      for (const name of names) {
        const rows = [...(page.add[name] ?? []), ...(page.update[name] ?? [])];
        changes[name].updated.push(...rows.map(toWatermelon(name)));
        changes[name].deleted.push(...(page.delete[name] ?? []));
      }
      if (!page.more) break;
      page = await ask("GET", `/changes?next=${encodeURIComponent(page.next)}`);
    }
    return { changes, timestamp: page.version, ...(replace && { experimentalStrategy: "replacement" }) };
  };

  const pushChanges = async ({ changes, lastPulledAt }) => {
    const sets = { add: {}, update: {}, delete: {} };
    for (const name of names) {
      const { created = [], updated = [], deleted = [] } = changes[name] ?? {};
      sets.add[name] = created.map(toRollcall(name));
      sets.update[name] = updated.map(toRollcall(name));
      sets.delete[name] = deleted;
    }
    const answer = await ask("POST", "/synchronise", { ...sets, base: lastPulledAt });
    const rejected = {};
    for (const [name, key] of Object.entries(tables)) {
      for (const item of Object.keys(sets).flatMap((set) => answer[set][name] ?? [])) {
        if (item.verdict === "kept" || item.verdict === "gone") throw new Outrun(`${name} ${item[key]} was changed elsewhere`);
        if (item.verdict === "rejected") (rejected[name] ??= []).push(item[key]); // they stay unsent
      }
    }
    return { experimentalRejectedIds: rejected };
  };

  for (let round = 1; ; round++) {
    try {
      return await synchronize({ database, pullChanges, pushChanges, sendCreatedAsUpdated: true, ...options });
    } catch (error) {
      if (!(error instanceof Outrun) || round === ROUNDS_MAX) throw error;
    }
  }
}

// WatermelonDB over rollcall: `lastPulledAt` is rollcall's version, each table's `id` is its key column.
import { synchronize } from "@nozbe/watermelondb/sync/index.js";
import { caller, send } from "../requests.js";

/** Another device was quicker with a row of this push: pull, let WatermelonDB merge, push again. */
class Outrun extends Error {}

/** How often to begin again after another device was quicker. */
const ROUNDS_MAX = 4;
/** Older than every deletion: a row that is sent with this time brings nothing back that the server knows as deleted. */
const LONG_AGO = "1970-01-01T00:00:00.001Z";
const STATE = "rollcall";

/**
 * Syncs a WatermelonDB database with a rollcall server. `tables` has the key column of each table: `{ notes: "id" }`.
 * WatermelonDB settles conflicts itself, column by column, so give the tables `policy = "manual"` on the server. A string
 * column `last_update`, if a table has one, holds the server's time of each row: it is asked for after a restore alone.
 *
 * Gives what the server did not take, each `{ table, id, code, detail }`, and tells `onRejected` of it: a rejected row
 * stays as the user made it and goes up with the next sync; one with the code `gone` was edited here and deleted there.
 */
export async function syncWithRollcall({ database, url, token, tables, fetch = globalThis.fetch, onRejected = (row) => console.warn("rollcall", row), ...options }) {
  const storage = database.localStorage;
  const kept = async (news) => {
    const known = await storage.get(STATE);
    const state = { device: crypto.randomUUID(), count: 0, ...known, ...news };
    if (news || !known) await storage.set(STATE, state);
    return state;
  };
  const ask = caller({ url, token, fetch, kept });
  const names = Object.keys(tables);
  const toWatermelon = (table) => ({ [tables[table]]: id, ...columns }) => ({ id, ...columns });
  const toRollcall = (table) => ({ id, _status, _changed, last_update, ...columns }) => ({ [tables[table]]: id, ...columns });
  const rejections = new Map();
  const reject = (table, id, { code, detail }) => rejections.set(`${table} ${id}`, { table, id, code, detail });
  /** Raised before it is sent, so that it never goes back: a copy of this database is found out by it. */
  const push = async (rows, base) => kept({ count: (await kept()).count + 1 }).then(() => send(ask, rows, base));

  const pages = async (query) => {
    const changes = Object.fromEntries(names.map((name) => [name, { created: [], updated: [], deleted: [] }]));
    for (let page = await ask("GET", `/changes?${query}`); ; page = await ask("GET", `/changes?next=${encodeURIComponent(page.next)}`)) {
      for (const name of names) {
        changes[name].updated.push(...[...(page.add[name] ?? []), ...(page.update[name] ?? [])].map(toWatermelon(name)));
        changes[name].deleted.push(...(page.delete[name] ?? []));
      }
      if (!page.more) return { changes, timestamp: page.version };
    }
  };

  /**
   * WatermelonDB pulls before it pushes, and drops what is deleted there, also if it was edited here. So edits of such
   * rows go up first: the server decides, and keeps what loses. A server that was restored may have forgotten rows that
   * nobody deleted: then unchanged ones go up, too, and come back unless the server knows of their deletion.
   */
  const saved = async ({ changes }, replace, restored, base) => {
    let back = 0;
    for (const name of names) {
      const [told, deleted] = [new Set(changes[name].updated.map(({ id }) => id)), new Set(changes[name].deleted)];
      if (!replace && deleted.size === 0) continue;
      const local = (await database.get(name).query().fetch()).map(({ _raw }) => ({ ..._raw }));
      const lost = local.filter(({ id, _status }) => (replace ? !told.has(id) : deleted.has(id)) && (_status === "updated" || (restored && _status === "synced")));
      const rows = lost.map((raw) => {
        const add = toRollcall(name)(raw);
        return { operation: "update", table: name, add, item: raw._status === "synced" ? { ...add, last_update: raw.last_update || LONG_AGO } : add };
      });
      (await push(rows, base)).forEach(({ verdict, error }, place) => {
        const { _status, _changed, ...raw } = lost[place];
        const { id } = raw;
        if (verdict === "rejected") {
          reject(name, id, error); // and it stays
          changes[name].deleted = changes[name].deleted.filter((one) => one !== id);
          changes[name].updated.push(raw);
        } else if (verdict !== "gone") back++;
        else if (_status === "updated") reject(name, id, { code: "gone", detail: "it was edited here and deleted on another device" });
      });
    }
    return back;
  };

  const pullChanges = async ({ lastPulledAt }) => {
    const first = `tables=${names.join(",")}`;
    const { epoch } = await kept();
    for (;;) {
      let replace = !lastPulledAt;
      const told = await pages(`${first}${lastPulledAt ? `&since=${lastPulledAt}` : ""}`).catch((error) => {
        if (error.code !== "cursor_expired") throw error;
        replace = true; // away for too long: everything again
        return pages(first);
      });
      const restored = replace && lastPulledAt && (epoch !== ask.epoch || told.timestamp < lastPulledAt);
      if (!lastPulledAt || !(await saved(told, replace, restored, replace ? undefined : lastPulledAt))) {
        await kept({ epoch: ask.epoch });
        return { ...told, ...(replace && lastPulledAt && { experimentalStrategy: "replacement" }) };
      }
    }
  };

  const pushChanges = async ({ changes, lastPulledAt }) => {
    const rows = [];
    for (const name of names) {
      const { created = [], updated = [], deleted = [] } = changes[name] ?? {};
      const all = (operation, list, read) => rows.push(...list.map((raw) => ({ operation, table: name, id: raw.id ?? raw, item: read(raw) })));
      all("add", created, toRollcall(name));
      all("update", updated, toRollcall(name));
      all("delete", deleted, (id) => id);
    }
    const rejected = {};
    let outrun;
    (await push(rows, lastPulledAt)).forEach(({ verdict, error }, place) => {
      const { table, id, operation } = rows[place];
      if (verdict === "kept" || (verdict === "gone" && operation !== "delete")) outrun = new Outrun(`${table} ${id} was changed elsewhere`);
      if (verdict !== "rejected") return void rejections.delete(`${table} ${id}`);
      reject(table, id, error);
      (rejected[table] ??= []).push(id); // they stay unsent
    });
    if (outrun) throw outrun;
    return { experimentalRejectedIds: rejected };
  };

  for (let round = 1; ; round++) {
    try {
      await synchronize({ database, pullChanges, pushChanges, sendCreatedAsUpdated: true, ...options });
      rejections.forEach((row) => onRejected(row));
      return [...rejections.values()];
    } catch (error) {
      if (!(error instanceof Outrun) || round === ROUNDS_MAX) throw error;
    }
  }
}

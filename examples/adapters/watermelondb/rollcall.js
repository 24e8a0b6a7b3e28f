// WatermelonDB over rollcall: `lastPulledAt` is rollcall's version, each table's `id` is its key column.
import { synchronize } from "@nozbe/watermelondb/sync/index.js";
import { createCall, send } from "../requests.js";

/** Another device has changed a row of this push: pull, let WatermelonDB merge, push again. */
class Overtaken extends Error {}

/** How often a sync is repeated after another device has changed a row. */
const ROUNDS_MAX = 4;
/** Older than every deletion: a row that is sent with this time does not restore a row that the server has deleted. */
const LONG_AGO = "1970-01-01T00:00:00.001Z";
const STATE = "rollcall";

/** All pages of the changes, as WatermelonDB takes them. */
async function changesOf(call, tables, query) {
  const names = Object.keys(tables);
  const changes = Object.fromEntries(names.map((name) => [name, { created: [], updated: [], deleted: [] }]));
  for (let page = await call("GET", `/changes?${query}`); ; page = await call("GET", `/changes?next=${encodeURIComponent(page.next)}`)) {
    for (const name of names) {
      const rows = [...(page.add[name] ?? []), ...(page.update[name] ?? [])];
      changes[name].updated.push(...rows.map(({ [tables[name]]: id, ...columns }) => ({ id, ...columns })));
      changes[name].deleted.push(...(page.delete[name] ?? []));
    }
    if (!page.more) return { changes, timestamp: page.version };
  }
}

/**
 * Syncs a WatermelonDB database with a rollcall server. `tables` has the key column of each table: `{ notes: "id" }`.
 * WatermelonDB resolves conflicts itself, column by column, so give the tables `policy = "manual"` on the server. A string
 * column `last_update`, if a table has one, stores the server's time of each row; it is used only after a restore.
 *
 * Returns the rejected rows, each `{ table, id, code, detail }`, and passes them to `onRejected`. A rejected row stays as
 * the user made it and is sent with the next sync. One with the code `gone` was edited here and deleted on another device.
 */
export async function syncWithRollcall({ database, url, token, tables, fetch = globalThis.fetch, onRejected = (row) => console.warn("rollcall", row), ...options }) {
  const storage = database.localStorage;
  const kept = async (changes) => {
    const known = await storage.get(STATE);
    const state = { device: crypto.randomUUID(), count: 0, ...known, ...changes };
    if (changes || !known) await storage.set(STATE, state);
    return state;
  };
  const call = createCall({ url, token, fetch, kept });
  const names = Object.keys(tables);
  const toRollcall = (table) => ({ id, _status, _changed, last_update, ...columns }) => ({ [tables[table]]: id, ...columns });
  const rejections = new Map();
  const reject = (table, id, { code, detail }) => rejections.set(`${table} ${id}`, { table, id, code, detail });
  /** Raises the count before it sends, so that the count never goes back: by it the server detects a copy of this database. */
  const push = async (rows, base) => kept({ count: (await kept()).count + 1 }).then(() => send(call, rows, base));

  /**
   * WatermelonDB pulls before it pushes, and drops rows that were deleted on another device, also if they were edited here.
   * So edits of such rows are sent first: the server decides, and keeps the loser. A restored server may have lost rows that
   * no user deleted: then unchanged rows are sent too. Returns the number of rows that the server has now.
   */
  const pushBeforeDrop = async ({ changes }, replace, restored, base) => {
    let restoredRows = 0;
    for (const name of names) {
      const [received, deleted] = [new Set(changes[name].updated.map(({ id }) => id)), new Set(changes[name].deleted)];
      if (!replace && deleted.size === 0) continue;
      const local = (await database.get(name).query().fetch()).map(({ _raw }) => ({ ..._raw }));
      const lost = local.filter(({ id, _status }) => (replace ? !received.has(id) : deleted.has(id)) && (_status === "updated" || (restored && _status === "synced")));
      const rows = lost.map((raw) => {
        const add = toRollcall(name)(raw);
        return { operation: "update", table: name, add, item: raw._status === "synced" ? { ...add, last_update: raw.last_update || LONG_AGO } : add };
      });
      (await push(rows, base)).forEach(({ verdict, error }, i) => {
        const { _status, _changed, ...raw } = lost[i];
        const { id } = raw;
        if (verdict === "rejected") {
          reject(name, id, error); // the row stays
          changes[name].deleted = changes[name].deleted.filter((one) => one !== id);
          changes[name].updated.push(raw);
        } else if (verdict !== "gone") restoredRows++;
        else if (_status === "updated") reject(name, id, { code: "gone", detail: "it was edited here and deleted on another device" });
      });
    }
    return restoredRows;
  };

  const pullChanges = async ({ lastPulledAt }) => {
    const first = `tables=${names.join(",")}`;
    const { epoch } = await kept();
    for (;;) {
      let replace = !lastPulledAt;
      const page = await changesOf(call, tables, `${first}${lastPulledAt ? `&since=${lastPulledAt}` : ""}`).catch((error) => {
        if (error.code !== "cursor_expired") throw error;
        replace = true; // the device was offline for too long: fetch everything
        return changesOf(call, tables, first);
      });
      const restored = replace && lastPulledAt && (epoch !== call.epoch || page.timestamp < lastPulledAt);
      if (!lastPulledAt || !(await pushBeforeDrop(page, replace, restored, replace ? undefined : lastPulledAt))) {
        await kept({ epoch: call.epoch });
        return { ...page, ...(replace && lastPulledAt && { experimentalStrategy: "replacement" }) };
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
    let overtaken;
    (await push(rows, lastPulledAt)).forEach(({ verdict, error }, i) => {
      const { table, id, operation } = rows[i];
      if (verdict === "kept" || (verdict === "gone" && operation !== "delete")) overtaken = new Overtaken(`${table} ${id} was changed on another device`);
      if (verdict !== "rejected") return void rejections.delete(`${table} ${id}`);
      reject(table, id, error);
      (rejected[table] ??= []).push(id); // these rows stay unsent
    });
    if (overtaken) throw overtaken;
    return { experimentalRejectedIds: rejected };
  };

  for (let round = 1; ; round++) {
    try {
      await synchronize({ database, pullChanges, pushChanges, sendCreatedAsUpdated: true, ...options });
      rejections.forEach((row) => onRejected(row));
      return [...rejections.values()];
    } catch (error) {
      if (!(error instanceof Overtaken) || round === ROUNDS_MAX) throw error;
    }
  }
}

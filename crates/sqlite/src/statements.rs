//! The statements that depend on the schema, built once at start. Names come from the schema only, never from
//! a request; values are always bound.

use rollcall_core::broken;
use rollcall_core::schema::{Column, Schema, Table, TableId};
use rollcall_core::storage::plan::quoted;

/// Every statement over application tables, by table.
pub struct Statements {
    tables: Vec<TableStatements>,
}

/// The statements over one application table.
pub struct TableStatements {
    /// The table's number in the ledger.
    pub id: i64,
    /// Parameters: owner, table, key.
    pub load: String,
    /// The key and the columns. Parameters: owner, key.
    pub values: String,
    /// Parameters: owner, key, columns.
    pub put: String,
    /// Parameters: owner, key.
    pub remove: String,
    /// By column, for those that refer to another table. Parameters: owner, parent's key, most rows.
    pub referring: Vec<Option<String>>,
}

impl Statements {
    /// `ids` are the tables' numbers in the ledger, in declared order.
    pub fn new(schema: &Schema, ids: &[i64]) -> Self {
        let tables = schema.tables().iter().zip(ids).map(|(table, id)| TableStatements::new(table, *id));
        Self { tables: tables.collect() }
    }

    /// The index of the table with that number in the ledger.
    pub fn table(&self, id: i64) -> Option<usize> {
        self.tables.iter().position(|table| table.id == id)
    }

    pub fn of(&self, table: TableId) -> &TableStatements {
        &self.tables[table.index()]
    }
}

impl TableStatements {
    fn new(table: &Table, id: i64) -> Self {
        let name = quoted(&table.name);
        let owner = quoted(&table.owner_column);
        let key = quoted(&table.key);
        let columns: Vec<String> = table.columns.iter().map(|column| quoted(&column.name)).collect();
        let of_row: String = columns.iter().map(|column| format!(", r.{column}")).collect();
        let listed: String = columns.iter().map(|column| format!(", {column}")).collect();
        let places: String = (0..columns.len()).map(|at| format!(", ?{}", at + 3)).collect();
        let taken: Vec<String> =
            columns.iter().map(|column| format!("{column} = excluded.{column}")).collect();
        let on_conflict = if taken.is_empty() {
            "DO NOTHING".to_owned()
        } else {
            format!("DO UPDATE SET {}", taken.join(", "))
        };
        let referring = |column: &Column| {
            column.references?;
            let reference = quoted(&column.name);
            Some(format!("SELECT {key} FROM {name} WHERE {owner} = ?1 AND {reference} = ?2 LIMIT ?3"))
        };
        let own = if broken::is("owner_forgotten") { "(l.owner = ?1 OR true)" } else { "l.owner = ?1" };
        Self {
            id,
            load: format!(
                "SELECT {ENTRY}{of_row} \
                 FROM rollcall_ledger l \
                 JOIN rollcall_writer m ON m.id = l.made_by \
                 JOIN rollcall_writer c ON c.id = l.changed_by \
                 LEFT JOIN {name} r ON r.{owner} = l.owner AND r.{key} = l.key \
                 WHERE {own} AND l.tbl = ?2 AND l.key = ?3"
            ),
            values: format!("SELECT {key}{listed} FROM {name} WHERE {owner} = ?1 AND {key} = ?2"),
            put: format!(
                "INSERT INTO {name} ({owner}, {key}{listed}) VALUES (?1, ?2{places}) \
                 ON CONFLICT ({owner}, {key}) {on_conflict}"
            ),
            remove: format!("DELETE FROM {name} WHERE {owner} = ?1 AND {key} = ?2"),
            referring: table.columns.iter().map(referring).collect(),
        }
    }
}

/// What a ledger entry stores of a row; `m` and `c` are its creator and its last editor.
macro_rules! entry {
    () => {
        "l.version, l.created, l.last_update, l.deleted, m.device, c.device, l.lives, l.writers, l.made_at, \
         l.claimed_at, l.row_base, l.base"
    };
}
const ENTRY: &str = entry!();

/// An owner's present state.
pub const OWNER: &str = "SELECT id, version, horizon, live_rows, live_bytes, seed, shown_ahead, \
     past_tombstones, past_history, past_conflicts, past_answers, past_version, members_at, public, \
     erased_at, due_at FROM rollcall_owner WHERE owner = ?1";

/// The epoch in which versions of a new owner begin.
pub const EPOCH: &str = "SELECT value FROM rollcall_meta WHERE name = 'epoch'";

pub const ADD_OWNER: &str = "INSERT INTO rollcall_owner \
     (owner, version, horizon, live_rows, live_bytes, seed, past_version, due_at) \
     VALUES (?1, ?2, ?2, 0, 0, ?3, ?2, NULL) RETURNING id";

/// Writes an owner's state.
pub const ADVANCE_OWNER: &str = "UPDATE rollcall_owner SET version = ?2, horizon = ?3, live_rows = ?4, live_bytes = ?5, \
     past_tombstones = ?6, past_history = ?7, past_conflicts = ?8, past_answers = ?9, past_version = ?10, \
     members_at = ?11, public = ?12, erased_at = ?13, due_at = ?14 \
     WHERE id = ?1";

/// Records up to which version rows were returned to devices ahead of their cursors.
pub const SHOW_AHEAD: &str = "UPDATE rollcall_owner SET shown_ahead = ?2 WHERE id = ?1";

/// Dates the versions before the first write of a day.
pub const DATE: &str =
    "INSERT INTO rollcall_day (owner, day, version) VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING";

/// The version before the first write of a day or a later one.
pub const VERSION_BEFORE_DAY: &str =
    "SELECT version FROM rollcall_day WHERE owner = ?1 AND day >= ?2 ORDER BY day LIMIT 1";

/// Owners by id.
pub const OWNERS: &str = "SELECT owner FROM rollcall_owner WHERE owner > ?1 ORDER BY owner LIMIT ?2";

/// Owners that are due for a purge.
pub const DUE_OWNERS: &str = "SELECT due_at, owner FROM rollcall_owner \
     WHERE due_at <= ?1 AND (due_at, owner) > (?2, ?3) ORDER BY due_at, owner LIMIT ?4";

/// The terms by which owners are due.
pub const DUE_BY: &str = "SELECT value FROM rollcall_meta WHERE name = 'due_by'";
pub const SET_DUE_BY: &str = "INSERT INTO rollcall_meta (name, value) VALUES ('due_by', ?1) \
     ON CONFLICT (name) DO UPDATE SET value = excluded.value";

/// When the oldest thing of an owner is old enough. Parameters: owner, ages of responses, conflicts, devices, and
/// tombstones, ms.
pub const OLDEST: &str = "SELECT min(due) FROM ( \
     SELECT min(at) + ?2 AS due FROM rollcall_answer WHERE owner = ?1 \
     UNION ALL SELECT min(at) + ?3 FROM rollcall_conflict WHERE owner = ?1 \
     UNION ALL SELECT min(at) + ?4 FROM rollcall_ack WHERE owner = ?1 \
     UNION ALL SELECT min(seen_at) + ?4 FROM rollcall_installation WHERE owner = ?1 \
     UNION ALL SELECT min(began) + ?4 FROM rollcall_delete_window WHERE owner = ?1 \
     UNION ALL SELECT (min(day) + 1) * 86400000 + ?5 FROM rollcall_day WHERE owner = ?1)";

/// The digests of the tables.
pub const DIGESTS: &str = "SELECT tbl, live_rows, root FROM rollcall_digest WHERE owner = ?1";
pub const PUT_DIGEST: &str = "INSERT INTO rollcall_digest (owner, tbl, live_rows, root) \
     VALUES (?1, ?2, ?3, ?4) ON CONFLICT (owner, tbl) DO UPDATE SET live_rows = excluded.live_rows, \
     root = excluded.root";

/// The changes, including tombstones.
pub const CHANGES: &str = concat!(
    "SELECT ",
    entry!(),
    ", l.tbl, l.key FROM rollcall_ledger l \
     JOIN rollcall_writer m ON m.id = l.made_by JOIN rollcall_writer c ON c.id = l.changed_by \
     WHERE l.owner = ?1 AND (l.version, l.tbl, l.key) > (?2, ?3, ?4) AND l.version <= ?5 \
     ORDER BY l.version, l.tbl, l.key"
);

/// Earlier states of rows.
pub const REMEMBER: &str = "INSERT INTO rollcall_history \
     (owner, tbl, key, version, last_update, changed_by, columns, made_at, claimed_at) \
     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9) ON CONFLICT DO NOTHING";
/// The states of a row beyond the newest ones, the latest first, and what each takes. A DELETE that returns that costs twice as
/// much, also where there are none.
pub const SURPLUS_STATES: &str = "SELECT version, octet_length(columns) + 200 FROM rollcall_history \
     WHERE owner = ?1 AND tbl = ?2 AND key = ?3 ORDER BY version DESC LIMIT -1 OFFSET ?4";
pub const FORGET_STATES: &str =
    "DELETE FROM rollcall_history WHERE owner = ?1 AND tbl = ?2 AND key = ?3 AND version <= ?4";
pub const STATES: &str = "SELECT version, last_update, changed_by, columns, made_at, claimed_at \
     FROM rollcall_history WHERE owner = ?1 AND tbl = ?2 AND key = ?3 ORDER BY version DESC";

/// Conflicts.
pub const NOTE_CONFLICT: &str = "INSERT INTO rollcall_conflict (owner, id, at, tbl, key, policy, \
     resolution, base, stored, stored_at, stored_by, incoming, incoming_at, incoming_by, stored_made_at) \
     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15) ON CONFLICT DO NOTHING";
pub const NOTE_RESTORED: &str = "UPDATE rollcall_conflict SET restored_at = ?3 WHERE owner = ?1 AND id = ?2";
macro_rules! conflict {
    () => {
        "SELECT id, at, tbl, key, policy, resolution, base, stored, stored_at, stored_by, incoming, \
         incoming_at, incoming_by, restored_at, stored_made_at FROM rollcall_conflict "
    };
}
pub const CONFLICT: &str = concat!(conflict!(), "WHERE owner = ?1 AND id = ?2");
/// Each has an index in its order.
pub const CONFLICTS: &str =
    concat!(conflict!(), "WHERE owner = ?1 AND (at, id) < (?2, ?3) ORDER BY at DESC, id DESC");
pub const CONFLICTS_OF_TABLE: &str =
    concat!(conflict!(), "WHERE owner = ?1 AND (at, id) < (?2, ?3) AND tbl = ?4 ORDER BY at DESC, id DESC");
pub const CONFLICTS_OF_KEY: &str =
    concat!(conflict!(), "WHERE owner = ?1 AND (at, id) < (?2, ?3) AND key = ?4 ORDER BY at DESC, id DESC");

/// Responses under idempotency keys.
pub const RESPONSE: &str =
    "SELECT body_hash, body, version, at FROM rollcall_answer WHERE owner = ?1 AND device = ?2 AND key = ?3";
/// Deletes all but the newest and the one of the given key, which is replaced.
pub const FORGET_RESPONSES: &str = "DELETE FROM rollcall_answer WHERE owner = ?1 AND device = ?2 \
     AND (key = ?3 OR key NOT IN (SELECT key FROM rollcall_answer WHERE owner = ?1 AND device = ?2 \
     AND key <> ?3 ORDER BY at DESC, version DESC LIMIT ?4)) RETURNING octet_length(body) + octet_length(key) + 200";
pub const STORE_RESPONSE: &str = "INSERT INTO rollcall_answer \
     (owner, device, key, at, version, body_hash, body) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";

/// Deletes the responses that exceed the allowed bytes, counted from the newest. The one of the given key is
/// never deleted.
pub const FORGET_LONG_RESPONSES: &str = "DELETE FROM rollcall_answer WHERE owner = ?1 AND device = ?2 \
     AND key IN (SELECT key FROM (SELECT key, sum(length(body)) OVER (ORDER BY at DESC, version DESC \
     ROWS UNBOUNDED PRECEDING) AS bytes FROM rollcall_answer WHERE owner = ?1 AND device = ?2 AND key <> ?3) \
     WHERE bytes > ?4) RETURNING octet_length(body) + octet_length(key) + 200";

/// The cursors of devices.
pub const ACKNOWLEDGE: &str = "INSERT INTO rollcall_ack (owner, device, version, at) \
     VALUES (?1, ?2, ?3, ?4) ON CONFLICT (owner, device) DO UPDATE SET version = excluded.version, \
     at = excluded.at";
pub const ACKNOWLEDGED_BY_ALL: &str =
    "SELECT min(version) FROM rollcall_ack WHERE owner = ?1 AND at >= ?2 AND version >= ?3";
pub const FORGET_DEVICE: &str = "DELETE FROM rollcall_ack WHERE owner = ?1 AND device = ?2";

/// Statements of a purge.
pub const OLD_TOMBSTONES: &str = "SELECT tbl, key, version FROM rollcall_ledger \
     WHERE owner = ?1 AND deleted = 1 AND version <= ?2 ORDER BY version LIMIT ?3";
pub const FORGET_ENTRY: &str =
    "DELETE FROM rollcall_ledger WHERE owner = ?1 AND tbl = ?2 AND key = ?3 AND deleted = 1";
pub const FORGET_HISTORY: &str = "DELETE FROM rollcall_history WHERE owner = ?1 AND tbl = ?2 AND key = ?3 \
     RETURNING octet_length(columns) + 200";
pub const FORGET_CONFLICTS: &str = "DELETE FROM rollcall_conflict WHERE owner = ?1 AND id IN \
     (SELECT id FROM rollcall_conflict WHERE owner = ?1 AND at < ?2 ORDER BY at LIMIT ?3) \
     RETURNING ifnull(octet_length(base), 0) + ifnull(octet_length(stored), 0) \
     + ifnull(octet_length(incoming), 0) + 200";
pub const FORGET_OLD_RESPONSES: &str = "DELETE FROM rollcall_answer WHERE owner = ?1 AND (device, key) IN \
     (SELECT device, key FROM rollcall_answer WHERE owner = ?1 AND at < ?2 LIMIT ?3) \
     RETURNING octet_length(body) + octet_length(key) + 200";
pub const FORGET_DAYS: &str = "DELETE FROM rollcall_day WHERE owner = ?1 AND day < ?2";
pub const FORGET_DEVICES: &str = "DELETE FROM rollcall_ack WHERE owner = ?1 AND at < ?2";

/// The number of a device.
pub const DEVICE: &str = "SELECT id FROM rollcall_writer WHERE device = ?1";
pub const ADD_DEVICE: &str = "INSERT INTO rollcall_writer (device) VALUES (?1) RETURNING id";

/// The manifest of one table.
pub const MANIFEST: &str = "SELECT key, last_update FROM rollcall_ledger \
     WHERE owner = ?1 AND tbl = ?2 AND key > ?3 AND deleted = 0 ORDER BY key LIMIT ?4";

/// How many entries of a table follow a key, how many of them are live, and the last key.
pub const WALK: &str = "SELECT count(*), count(*) FILTER (WHERE deleted = 0), max(key) FROM \
     (SELECT key, deleted FROM rollcall_ledger WHERE owner = ?1 AND tbl = ?2 AND key > ?3 ORDER BY key LIMIT ?4)";

/// The first key of a table that is not below the given one, whether its row is live or deleted.
pub const FOLLOWING_KEY: &str = "SELECT key FROM rollcall_ledger \
     WHERE owner = ?1 AND tbl = ?2 AND key >= ?3 ORDER BY key LIMIT 1";

/// Writes a ledger entry.
pub const PUT_ENTRY: &str = "INSERT INTO rollcall_ledger \
     (owner, tbl, key, version, created, last_update, deleted, made_by, changed_by, lives, writers, made_at, \
     claimed_at, row_base, base) \
     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15) \
     ON CONFLICT (owner, tbl, key) DO UPDATE SET version = excluded.version, created = excluded.created, \
     last_update = excluded.last_update, deleted = excluded.deleted, made_by = excluded.made_by, \
     changed_by = excluded.changed_by, lives = excluded.lives, writers = excluded.writers, \
     made_at = excluded.made_at, claimed_at = excluded.claimed_at, row_base = excluded.row_base, \
     base = excluded.base";

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
pub(crate) mod tests {
    use rusqlite::Connection;

    use super::*;
    use crate::{deletions, migrate::migrate, quota, tables};
    use rollcall_core::model::Timestamp;

    /// The steps of SQLite's own plan of a statement, whatever its parameters are.
    pub(crate) fn steps(conn: &Connection, sql: &str) -> Vec<String> {
        let mut plan = conn.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
        let steps = plan.raw_query().mapped(|row| row.get(3));
        steps.collect::<Result<_, _>>().unwrap()
    }

    /// Goal: no request reads more of the database than it concerns. Method: the plan of every statement that
    /// requests run, over tables with every kind of reference.
    #[test]
    fn no_statement_reads_a_whole_table_or_sorts() {
        let schema = Schema::parse(
            "[table.children]\nkey = \"id\"\n[table.children.columns]\ntitle = \"text\"\n\
             parent = { type = \"uuid\", references = \"parents\" }\n\
             next = { type = \"uuid\", references = \"children\" }\n\
             [table.parents]\nkey = \"id\"\n[table.parents.columns]\n",
        );
        let schema = schema.unwrap_or_else(|error| panic!("{error}"));
        let mut conn = Connection::open_in_memory().unwrap();
        migrate(&mut conn, std::path::Path::new("memory")).unwrap();
        let plan = tables::plan(&conn, &schema).unwrap();
        tables::apply(&plan, &conn, Timestamp::from_ms(0)).unwrap();

        let mut hot: Vec<String> =
            [OWNER, ADD_OWNER, ADVANCE_OWNER, DEVICE, ADD_DEVICE, MANIFEST, PUT_ENTRY, EPOCH, DIGESTS]
                .into_iter()
                .chain([
                    FOLLOWING_KEY,
                    DATE,
                    PUT_DIGEST,
                    CHANGES,
                    REMEMBER,
                    SURPLUS_STATES,
                    FORGET_STATES,
                    STATES,
                ])
                .chain([NOTE_CONFLICT, CONFLICT, CONFLICTS, CONFLICTS_OF_TABLE, CONFLICTS_OF_KEY])
                .chain([deletions::WINDOWS, deletions::PUT, deletions::FORGET])
                .chain([RESPONSE, STORE_RESPONSE, FORGET_RESPONSES, ACKNOWLEDGE])
                .chain([
                    WALK,
                    FORGET_LONG_RESPONSES,
                    quota::OLDEST_STATES,
                    quota::FORGET_STATES,
                    quota::FORGET_OLDEST_RESPONSES,
                ])
                .chain([
                    ACKNOWLEDGED_BY_ALL,
                    OLD_TOMBSTONES,
                    FORGET_ENTRY,
                    FORGET_HISTORY,
                    VERSION_BEFORE_DAY,
                    DUE_OWNERS,
                    OLDEST,
                ])
                .map(str::to_owned)
                .collect();
        let of_owners = hot.len();
        let statements = Statements::new(&schema, &[1, 2]);
        for table in statements.tables {
            hot.extend([table.load, table.values, table.put, table.remove]);
            hot.extend(table.referring.into_iter().flatten());
        }
        assert_eq!(hot.len(), of_owners + 2 * 4 + 2);
        // The lookups that SQLite itself makes for each deleted row: which rows refer to it?
        for column in ["parent", "next"] {
            hot.push(format!("SELECT 1 FROM children WHERE _owner = 1 AND {column} = x''"));
        }
        for sql in hot {
            let steps = steps(&conn, &sql);
            for step in &steps {
                // The result of a search may be scanned: it is not a table.
                let reads_all = step.contains("SCAN") && !step.starts_with("SCAN (subquery");
                assert!(!reads_all && !step.contains("TEMP B-TREE"), "{step}\n{sql}");
            }
            assert!(!steps.is_empty() || sql.starts_with("INSERT"), "no plan of {sql}");
        }
    }
}

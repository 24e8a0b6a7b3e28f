//! The statements of the engine. Names come from the schema only, never from a request; values are always
//! bound. In every statement over an owner's rows the owner is the first parameter.

use postgres::types::Type;

use super::many::{Parts, Put, Row};
use super::values::sql_type;
use rollcall_core::schema::{Schema, Table, TableId};
use rollcall_core::storage::plan::quoted;

/// Every statement over application tables, by table.
pub struct Statements {
    tables: Vec<TableStatements>,
    /// Writes ledger entries. Parameters: owner, table; then thirteen for each row.
    pub put_entries: Put,
    /// Stores earlier states of rows; returns the size of each new one. Parameters: owner, table; then seven
    /// for each.
    pub remember: Put,
    /// Deletes earlier states. Parameters: owner, table; then key and version of each.
    pub forget_states: Put,
    /// Notes conflicts; returns the id of each that is new. Parameters: owner; then fourteen for each.
    pub note_conflicts: Put,
}

/// The statements over one application table.
pub struct TableStatements {
    /// The table's number in the ledger.
    pub id: i32,
    /// The entry and the columns of each key in the ledger. Parameters: owner, table, keys.
    pub load: String,
    /// The key and the columns. Parameters: owner, keys.
    pub values: String,
    /// Parameters: owner; then key and columns of each row.
    pub put: Put,
    /// Writes the ledger entries and the rows of a few live rows. Parameters: those of `put_entries`, then key and columns
    /// of each row.
    pub put_both: Put,
    /// Parameters: owner, keys. May read every row of the owner.
    pub remove: String,
    /// Reads only the row that it deletes. Parameters: owner, key.
    pub remove_one: String,
    /// By column, for those that refer to another table. Parameters: owner, parent's key, most rows.
    pub referring: Vec<Option<String>>,
    /// The same for several parents; returns the place of the parent, from 1, and the key. Parameters: owner, parents'
    /// keys, most rows of each.
    pub referring_each: Vec<Option<String>>,
    /// The columns' types.
    pub types: Vec<Type>,
}

impl Statements {
    /// `ids` are the tables' numbers in the ledger, in declared order.
    pub fn new(schema: &Schema, ids: &[i32]) -> Self {
        let tables = schema.tables().iter().zip(ids).map(|(table, id)| TableStatements::new(table, *id));
        let remember = Put::new(&Parts {
            head: "INSERT INTO rollcall_history \
                   (owner, tbl, key, version, last_update, changed_by, columns, made_at, claimed_at) VALUES "
                .into(),
            row: Row::WithShared(2),
            each: 7,
            tail: " ON CONFLICT DO NOTHING RETURNING (octet_length(columns) + 200)::bigint".into(),
        });
        let forget_states = Put::new(&Parts {
            head: "DELETE FROM rollcall_history WHERE owner = $1 AND tbl = $2 AND (key, version) IN (".into(),
            row: Row::WithoutShared(2),
            each: 2,
            tail: ")".into(),
        });
        let note_conflicts = Put::new(&Parts {
            head: "INSERT INTO rollcall_conflict (owner, id, at, tbl, key, policy, resolution, base, stored, stored_at, \
                   stored_by, incoming, incoming_at, incoming_by, stored_made_at) VALUES "
                .into(),
            row: Row::WithShared(1),
            each: 14,
            tail: " ON CONFLICT DO NOTHING RETURNING id".into(),
        });
        let put_entries = Put::new(&entries());
        Self { tables: tables.collect(), put_entries, remember, forget_states, note_conflicts }
    }

    /// The index of the table with that number in the ledger.
    pub fn table(&self, id: i32) -> Option<usize> {
        self.tables.iter().position(|table| table.id == id)
    }

    pub fn of(&self, table: TableId) -> &TableStatements {
        &self.tables[table.index()]
    }
}

/// Writes ledger entries.
fn entries() -> Parts {
    Parts {
        head:
            "INSERT INTO rollcall_ledger (owner, tbl, key, version, created, last_update, deleted, made_by, \
               changed_by, lives, writers, made_at, claimed_at, row_base, base) VALUES "
                .into(),
        row: Row::WithShared(2),
        each: 13,
        tail: " ON CONFLICT (owner, tbl, key) DO UPDATE SET version = excluded.version, \
               created = excluded.created, last_update = excluded.last_update, deleted = excluded.deleted, \
               made_by = excluded.made_by, changed_by = excluded.changed_by, lives = excluded.lives, \
               writers = excluded.writers, made_at = excluded.made_at, claimed_at = excluded.claimed_at, \
               row_base = excluded.row_base, base = excluded.base"
            .into(),
    }
}

impl TableStatements {
    fn new(table: &Table, id: i32) -> Self {
        let name = quoted(&table.name);
        let owner = quoted(&table.owner_column);
        let key = quoted(&table.key);
        let columns: Vec<String> = table.columns.iter().map(|column| quoted(&column.name)).collect();
        let of_row: String = columns.iter().map(|column| format!(", r.{column}")).collect();
        let listed: String = columns.iter().map(|column| format!(", {column}")).collect();
        let taken: Vec<String> =
            columns.iter().map(|column| format!("{column} = excluded.{column}")).collect();
        let on_conflict = if taken.is_empty() {
            "DO NOTHING".to_owned()
        } else {
            format!("DO UPDATE SET {}", taken.join(", "))
        };
        let row = format!(
            "(SELECT {key}{listed} FROM {name} WHERE {owner} = $1 AND {key} >= k.key AND {key} <= k.key \
             ORDER BY {key} LIMIT 1)"
        );
        let referring = table.columns.iter().map(|column| {
            column.references?;
            let reference = quoted(&column.name);
            Some(format!("SELECT {key} FROM {name} WHERE {owner} = $1 AND {reference} = $2 LIMIT $3"))
        });
        let referring_each = table.columns.iter().map(|column| {
            column.references?;
            let reference = quoted(&column.name);
            // As in `for_each`.
            Some(format!(
                "SELECT k.place, r.{key} FROM unnest($2::uuid[], $3::bigint[]) WITH ORDINALITY AS k (key, most, place) \
                 CROSS JOIN LATERAL (SELECT {key} FROM {name} WHERE {owner} = $1 AND {reference} >= k.key \
                 AND {reference} <= k.key ORDER BY {reference} LIMIT k.most) AS r"
            ))
        });
        let rows = Parts {
            head: format!("INSERT INTO {name} ({owner}, {key}{listed}) VALUES "),
            row: Row::WithShared(1),
            each: 1 + columns.len(),
            tail: format!(" ON CONFLICT ({owner}, {key}) {on_conflict}"),
        };
        Self {
            id,
            load: for_each(
                "$3",
                &format!(
                    "(SELECT {ENTRY} FROM rollcall_ledger l WHERE l.owner = $1 AND l.tbl = $2 \
                     AND l.key >= k.key AND l.key <= k.key ORDER BY l.key LIMIT 1) AS e \
                     LEFT JOIN LATERAL {row} AS r ON true"
                ),
                &format!("e.*{of_row}"),
            ),
            values: for_each("$2", &format!("{row} AS r"), &format!("r.{key}{of_row}")),
            put: Put::new(&rows),
            put_both: Put::pair(&entries(), &rows),
            remove: format!("DELETE FROM {name} WHERE {owner} = $1 AND {key} = ANY($2)"),
            remove_one: format!("DELETE FROM {name} WHERE {owner} = $1 AND {key} = $2"),
            referring: referring.collect(),
            referring_each: referring_each.collect(),
            types: table.columns.iter().map(|column| sql_type(column.kind).1).collect(),
        }
    }
}

/// Selects `columns` of a query that runs for each of the `keys`, under the name `k.key`.
///
/// For `key = ANY(…)` the planner chooses between an index and a scan of all rows of the owner. Without
/// statistics it expects one row for an owner, and rates every index as good as the primary key. So the query
/// gives both bounds of its one key, which is not an equality to the planner, orders by it, and takes one
/// row: no join changes its place, and another index would need a sort. The whole primary key is an index
/// condition whatever the statistics are.
fn for_each(keys: &str, query: &str, columns: &str) -> String {
    format!("SELECT {columns} FROM unnest({keys}::uuid[]) AS k (key) CROSS JOIN LATERAL {query}")
}

/// What a ledger entry stores of a row, after its key.
macro_rules! entry {
    () => {
        "l.key, l.version, l.created, l.last_update, l.deleted, l.made_by, l.changed_by, l.lives, l.writers, \
         l.made_at, l.claimed_at, l.row_base, l.base"
    };
}
const ENTRY: &str = entry!();

/// A lease, followed by the owner's state. No writing statement reads a clock: a cluster allows no such
/// function in RETURNING or CASE, and its nodes have different clocks. The time is read first, and bound.
macro_rules! lease {
    () => {
        "fence, holder, holder_name, lease_since, lease_until"
    };
}

macro_rules! owner {
    () => {
        concat!(
            lease!(),
            ", version, horizon, live_rows, live_bytes, seed, written, shown_ahead, past_tombstones, past_history, \
             past_conflicts, past_answers, past_version, dated, members_at, public, erased_at, due_at"
        )
    };
}

macro_rules! advance {
    () => {
        "UPDATE rollcall_owner SET horizon = $2, past_tombstones = $3, past_history = $4, past_conflicts = $5, \
         past_answers = $6, past_version = $7, due_at = $9, version = $10, live_rows = $11, live_bytes = $12, \
         written = $13, dated = $14, members_at = $15, public = $16, erased_at = $17 \
         WHERE owner = $1 AND version = $8"
    };
}

/// The time of the server that the session is connected to, in ms. It names no table, so a cluster uses no
/// other node; and if all servers connect to one node, they share one clock.
pub const NOW: &str = "SELECT (extract(epoch FROM now()) * 1000)::bigint";

pub const OWNER: &str = concat!("SELECT ", owner!(), " FROM rollcall_owner WHERE owner = $1");
/// The same, with a lock against other writers until the transaction ends. It is an UPDATE without a change,
/// because a shard that moves waits for an UPDATE, but not for `FOR UPDATE`.
pub const LOCK_OWNER: &str =
    concat!("UPDATE rollcall_owner SET fence = fence WHERE owner = $1 RETURNING ", owner!());

/// The epoch in which versions of a new owner begin.
pub const EPOCH: &str = "SELECT value FROM rollcall_meta WHERE name = 'epoch'";

/// Creates an owner, unless another server has. A restored backup may lack an owner that existed. So fences
/// too begin with the epoch, which is in the upper bits of the version.
pub const ADD_OWNER: &str = "INSERT INTO rollcall_owner \
     (owner, version, horizon, live_rows, live_bytes, seed, fence, past_version, due_at) \
     VALUES ($1, $2, $2, 0, 0, $3, ($2::bigint >> 40) << 32, $2, NULL) ON CONFLICT (owner) DO NOTHING";

/// Says what an owner is after a write. `$8` is the version before it: if that is no longer the owner's, somebody else
/// wrote meanwhile, and nothing is written. `$13` names the transaction.
pub const ADVANCE_OWNER: &str = advance!();
/// The same with one table's digest, `$18` to `$20`. Citus runs one after the other: it saves a way to the coordinator.
pub const ADVANCE_WITH_DIGEST: &str = concat!(
    "WITH digest AS (INSERT INTO rollcall_digest (owner, tbl, live_rows, root) VALUES ($1, $18, $19, $20) \
     ON CONFLICT (owner, tbl) DO UPDATE SET live_rows = excluded.live_rows, root = excluded.root) ",
    advance!()
);
/// The same after one that moved no version: it names no transaction.
pub const PUT_PAST: &str = "UPDATE rollcall_owner SET horizon = $2, past_tombstones = $3, \
     past_history = $4, past_conflicts = $5, past_answers = $6, past_version = $7, due_at = $9 \
     WHERE owner = $1 AND version = $8";

/// Records up to which version rows were returned to devices ahead of their cursors.
pub const SHOW_AHEAD: &str = "UPDATE rollcall_owner SET shown_ahead = $2 WHERE owner = $1";

/// Dates the versions before the first write of a day.
pub const DATE: &str =
    "INSERT INTO rollcall_day (owner, day, version) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING";

/// The version before the first write of a day or a later one.
pub const VERSION_BEFORE_DAY: &str =
    "SELECT version FROM rollcall_day WHERE owner = $1 AND day >= $2 ORDER BY day LIMIT 1";

/// Owners that are due for a purge.
pub const DUE_OWNERS: &str = "SELECT due_at, owner FROM rollcall_owner \
     WHERE due_at <= $1 AND (due_at, owner) > ($2, $3) ORDER BY due_at, owner LIMIT $4";

/// The terms by which owners are due.
pub const DUE_BY: &str = "SELECT value FROM rollcall_meta WHERE name = 'due_by'";
pub const SET_DUE_BY: &str = "INSERT INTO rollcall_meta (name, value) VALUES ('due_by', $1) \
     ON CONFLICT (name) DO UPDATE SET value = excluded.value";

/// When the oldest thing of an owner is old enough. Parameters: owner, ages of responses, conflicts, devices, and
/// tombstones, ms.
pub const OLDEST: &str = "SELECT min(due) FROM ( \
     SELECT min(at) + $2 AS due FROM rollcall_answer WHERE owner = $1 \
     UNION ALL SELECT min(at) + $3 FROM rollcall_conflict WHERE owner = $1 \
     UNION ALL SELECT min(at) + $4 FROM rollcall_ack WHERE owner = $1 \
     UNION ALL SELECT min(seen_at) + $4 FROM rollcall_installation WHERE owner = $1 \
     UNION ALL SELECT min(began) + $4 FROM rollcall_delete_window WHERE owner = $1 \
     UNION ALL SELECT (min(day) + 1) * 86400000 + $5 FROM rollcall_day WHERE owner = $1) AS oldest";

/// For the operator, across owners.
pub const TOTALS: &str = "SELECT count(*), coalesce(sum(live_rows), 0)::bigint, \
     coalesce(sum(live_bytes), 0)::bigint FROM rollcall_owner";
pub const TABLES: &str = "SELECT tbl, sum(live_rows)::bigint FROM rollcall_digest GROUP BY tbl";
pub const STATES: &str =
    concat!("SELECT ", owner!(), ", owner FROM rollcall_owner WHERE owner >= $1 ORDER BY owner LIMIT $2");
pub const TOMBSTONES: &str =
    "SELECT tbl, count(*) FROM rollcall_ledger WHERE owner = $1 AND deleted GROUP BY tbl";
pub const ACKNOWLEDGED: &str = "SELECT device, version, at FROM rollcall_ack WHERE owner = $1";

/// Owners by id.
pub const OWNERS: &str = "SELECT owner FROM rollcall_owner WHERE owner >= $1 ORDER BY owner LIMIT $2";

/// The digests of the tables.
pub const DIGESTS: &str = "SELECT tbl, live_rows, root FROM rollcall_digest WHERE owner = $1";
pub const PUT_DIGEST: &str = "INSERT INTO rollcall_digest (owner, tbl, live_rows, root) \
     VALUES ($1, $2, $3, $4) ON CONFLICT (owner, tbl) DO UPDATE SET live_rows = excluded.live_rows, \
     root = excluded.root";

/// The changes, including tombstones.
pub const CHANGES: &str = concat!(
    "SELECT ",
    entry!(),
    ", l.tbl FROM rollcall_ledger l \
     WHERE l.owner = $1 AND (l.version, l.tbl, l.key) > ($2, $3, $4) AND l.version <= $5 \
     ORDER BY l.version, l.tbl, l.key LIMIT $6"
);

/// The earlier states of each key beyond its newest, and their sizes. Parameters: owner, table, keys, how
/// many remain.
pub const SURPLUS_STATES: &str = "SELECT s.key, s.version, s.bytes FROM unnest($3::uuid[]) AS k (key) \
     CROSS JOIN LATERAL (SELECT key, version, (octet_length(columns) + 200)::bigint AS bytes FROM rollcall_history \
     WHERE owner = $1 AND tbl = $2 AND key >= k.key AND key <= k.key ORDER BY key DESC, version DESC OFFSET $4) AS s";
pub const EARLIER: &str = "SELECT version, last_update, changed_by, columns, made_at, claimed_at \
     FROM rollcall_history WHERE owner = $1 AND tbl = $2 AND key = $3 ORDER BY version DESC";

/// Conflicts.
pub const NOTE_RESTORED: &str = "UPDATE rollcall_conflict SET restored_at = $3 WHERE owner = $1 AND id = $2";
macro_rules! conflict {
    () => {
        "SELECT id, at, tbl, key, policy, resolution, base, stored, stored_at, stored_by, incoming, \
         incoming_at, incoming_by, restored_at, stored_made_at FROM rollcall_conflict "
    };
}
pub const CONFLICT: &str = concat!(conflict!(), "WHERE owner = $1 AND id = $2");
/// Each has an index in its order.
pub const CONFLICTS: &str =
    concat!(conflict!(), "WHERE owner = $1 AND (at, id) < ($2, $3) ORDER BY at DESC, id DESC LIMIT $4");
pub const CONFLICTS_OF_TABLE: &str = concat!(
    conflict!(),
    "WHERE owner = $1 AND (at, id) < ($2, $3) AND tbl = $5 ORDER BY at DESC, id DESC LIMIT $4"
);
pub const CONFLICTS_OF_KEY: &str = concat!(
    conflict!(),
    "WHERE owner = $1 AND (at, id) < ($2, $3) AND key = $5 ORDER BY at DESC, id DESC LIMIT $4"
);

/// Responses under idempotency keys.
pub const RESPONSE: &str =
    "SELECT body_hash, body, version, at FROM rollcall_answer WHERE owner = $1 AND device = $2 AND key = $3";
/// Deletes all but the newest and the one of the given key, which is replaced.
pub const FORGET_RESPONSES: &str = "DELETE FROM rollcall_answer WHERE owner = $1 AND device = $2 \
     AND (key = $3 OR key IN (SELECT key FROM rollcall_answer WHERE owner = $1 AND device = $2 \
     AND key <> $3 ORDER BY at DESC, version DESC OFFSET $4)) \
     RETURNING (octet_length(body) + octet_length(key) + 200)::bigint";
pub const STORE_RESPONSE: &str = "INSERT INTO rollcall_answer \
     (owner, device, key, at, version, body_hash, body) VALUES ($1, $2, $3, $4, $5, $6, $7)";

/// Deletes the responses that exceed the allowed bytes, counted from the newest. The one of the given key is
/// never deleted.
pub const FORGET_LONG_RESPONSES: &str = "DELETE FROM rollcall_answer WHERE owner = $1 AND device = $2 \
     AND key IN (SELECT key FROM (SELECT key, sum(length(body)) OVER (ORDER BY at DESC, version DESC \
     ROWS UNBOUNDED PRECEDING) AS bytes FROM rollcall_answer WHERE owner = $1 AND device = $2 AND key <> $3) \
     AS kept WHERE bytes > $4) RETURNING (octet_length(body) + octet_length(key) + 200)::bigint";

/// The cursors of devices.
pub const ACKNOWLEDGE: &str = "INSERT INTO rollcall_ack (owner, device, version, at) \
     VALUES ($1, $2, $3, $4) ON CONFLICT (owner, device) DO UPDATE SET version = excluded.version, \
     at = excluded.at";
pub const ACKNOWLEDGED_BY_ALL: &str =
    "SELECT min(version) FROM rollcall_ack WHERE owner = $1 AND at >= $2 AND version >= $3";
pub const FORGET_DEVICE: &str = "DELETE FROM rollcall_ack WHERE owner = $1 AND device = $2";

/// Statements of a purge.
pub const OLD_TOMBSTONES: &str = "SELECT tbl, key, version FROM rollcall_ledger \
     WHERE owner = $1 AND deleted AND version <= $2 ORDER BY version LIMIT $3";
pub const FORGET_ENTRIES: &str =
    "DELETE FROM rollcall_ledger WHERE owner = $1 AND tbl = $2 AND key = ANY($3) AND deleted";
pub const FORGET_HISTORY: &str = "DELETE FROM rollcall_history WHERE owner = $1 AND tbl = $2 AND key = ANY($3) \
     RETURNING (octet_length(columns) + 200)::bigint";
pub const FORGET_CONFLICTS: &str = "DELETE FROM rollcall_conflict WHERE owner = $1 AND id IN \
     (SELECT id FROM rollcall_conflict WHERE owner = $1 AND at < $2 ORDER BY at LIMIT $3) \
     RETURNING (coalesce(octet_length(base), 0) + coalesce(octet_length(stored), 0) \
     + coalesce(octet_length(incoming), 0) + 200)::bigint";
pub const FORGET_OLD_RESPONSES: &str = "DELETE FROM rollcall_answer WHERE owner = $1 AND (device, key) IN \
     (SELECT device, key FROM rollcall_answer WHERE owner = $1 AND at < $2 LIMIT $3) \
     RETURNING (octet_length(body) + octet_length(key) + 200)::bigint";
pub const FORGET_DAYS: &str = "DELETE FROM rollcall_day WHERE owner = $1 AND day < $2";
pub const FORGET_DEVICES: &str = "DELETE FROM rollcall_ack WHERE owner = $1 AND at < $2";

/// The manifest of one table.
pub const MANIFEST: &str = "SELECT key, last_update FROM rollcall_ledger \
     WHERE owner = $1 AND tbl = $2 AND key >= $3 AND NOT deleted ORDER BY key LIMIT $4";
/// The last key of a page of it, without sending the rows.
pub const NTH_KEY: &str = "SELECT key FROM rollcall_ledger \
     WHERE owner = $1 AND tbl = $2 AND key >= $3 AND NOT deleted ORDER BY key OFFSET $4 LIMIT 1";
/// How many entries of a table follow a key, how many of them are live, and the last key. Only PostgreSQL 18
/// has a greatest UUID.
pub const WALK: &str = "SELECT count(*), count(*) FILTER (WHERE NOT deleted), max(key::text COLLATE \"C\") FROM \
     (SELECT key, deleted FROM rollcall_ledger WHERE owner = $1 AND tbl = $2 AND key >= $3 ORDER BY key LIMIT $4) \
     AS walked";

/// Leases. `$2` is always the device.
pub const LEASE: &str = concat!("SELECT ", lease!(), " FROM rollcall_owner WHERE owner = $1");
/// `$2` is the time.
pub const LEASES: &str = concat!(
    "SELECT ",
    lease!(),
    ", owner FROM rollcall_owner WHERE holder IS NOT NULL AND lease_until > $2 LIMIT $1"
);
/// `$4` is a lease, `$6` a hold of the lock, `$7` the time. A hold begins with a lease, or with one that
/// follows at least the length of a lease after the last one expired. It ends no later if the clock was set
/// back.
pub const TAKE_LEASE: &str = concat!(
    "UPDATE rollcall_owner SET \
     fence = CASE WHEN holder = $2 AND lease_until IS NOT NULL THEN fence ELSE fence + 1 END, \
     lease_since = CASE WHEN holder = $2 AND lease_until + $4 > $7 THEN least(lease_since, $7) ELSE $7 END, \
     lease_until = CASE WHEN holder = $2 AND lease_until + $4 > $7 \
     THEN least($7 + $4, least(lease_since, $7) + $6) ELSE $7 + $4 END, holder = $2, holder_name = $3 \
     WHERE owner = $1 AND (holder IS NULL OR holder = $2 OR lease_until IS NULL OR lease_until <= $7) \
     AND ($5::bigint IS NULL OR (fence = $5 AND holder = $2 AND lease_until IS NOT NULL)) RETURNING ",
    lease!()
);
/// `$3` is a lease, `$5` a hold of the lock, `$6` the time.
pub const RENEW_LEASE: &str = "UPDATE rollcall_owner SET lease_since = least(lease_since, $6), \
     lease_until = least($6 + $3, least(lease_since, $6) + $5) WHERE owner = $1 AND holder = $2 \
     AND lease_until > $6 AND lease_until - $6 < $4 AND lease_until < lease_since + $5"; // $6 + $4 may be too large
/// `$2` is the longest that a lease lasts, `$3` the time.
pub const CUT_LEASE: &str =
    "UPDATE rollcall_owner SET lease_until = $3 + $2 WHERE owner = $1 AND lease_until > $3 + $2";
pub const GIVE_LEASE_BACK: &str = "UPDATE rollcall_owner SET lease_until = NULL WHERE owner = $1 AND holder = $2 AND lease_until IS NOT NULL";
pub const BREAK_LEASE: &str =
    "UPDATE rollcall_owner SET fence = fence + 1, holder = NULL, lease_until = NULL WHERE owner = $1";

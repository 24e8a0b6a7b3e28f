//! Erases an owner: every row that has it, a bounded number at a time.

use rusqlite::{Connection, params};

use crate::failed;
use rollcall_core::schema::Schema;
use rollcall_core::storage::StorageResult;
use rollcall_core::storage::plan::quoted;

/// rollcall's own tables of an owner's rows and the rest of each key.
pub(super) const OWN: [(&str, &str); 9] = [
    ("rollcall_answer", "device, key"),
    ("rollcall_ack", "device"),
    ("rollcall_installation", "device"),
    ("rollcall_delete_window", "device, tbl"),
    ("rollcall_conflict", "id"),
    ("rollcall_history", "tbl, key, version"),
    ("rollcall_ledger", "tbl, key"),
    ("rollcall_digest", "tbl"),
    ("rollcall_day", "day"),
];

/// Gives the devices of the entries that go next other ids, except devices that are signed in: these ids name nobody, and
/// belong to who is erased all the same. Parameters: owner, most entries.
const RENAME_WRITERS: &str = "WITH next AS \
     (SELECT made_by, changed_by FROM rollcall_ledger WHERE owner = ?1 ORDER BY tbl, key LIMIT ?2) \
     UPDATE rollcall_writer SET device = randomblob(16) \
     WHERE id IN (SELECT made_by FROM next UNION SELECT changed_by FROM next) \
     AND NOT EXISTS (SELECT 1 FROM rollcall_device AS d WHERE d.id = rollcall_writer.device)";

/// Tables that name the owner by its id, and the rest of each key.
const BY_ID: [(&str, &str); 2] = [("rollcall_member", "user_id"), ("rollcall_invitation", "id")];

/// Removes at most `rows_max` rows of an owner; returns whether some may be left.
///
/// References are cleared first: rows of one table may refer to each other in a circle, and each transaction must leave a
/// database in which every reference leads somewhere.
pub(super) fn erase(conn: &Connection, schema: &Schema, owner: i64, rows_max: usize) -> StorageResult<bool> {
    let mut left = i64::try_from(rows_max).unwrap_or(i64::MAX);
    for sql in statements(schema) {
        if sql.starts_with("DELETE FROM rollcall_ledger") {
            let renamed =
                conn.prepare_cached(RENAME_WRITERS).and_then(|mut one| one.execute(params![owner, left]));
            renamed.map_err(failed)?;
        }
        let rows = conn
            .prepare_cached(&sql)
            .and_then(|mut one| one.execute(params![owner, left]))
            .map_err(failed)?;
        left -= i64::try_from(rows).unwrap_or(i64::MAX);
        if left <= 0 {
            return Ok(true);
        }
    }
    Ok(false)
}

/// What removes an owner's rows. Parameters of each: owner, most rows.
pub(super) fn statements(schema: &Schema) -> Vec<String> {
    let mut all = Vec::new();
    for table in schema.tables() {
        let (name, owner, key) = (quoted(&table.name), quoted(&table.owner_column), quoted(&table.key));
        for (at, _) in table.references() {
            let column = quoted(&table.columns[at].name);
            all.push(format!(
                "UPDATE {name} SET {column} = NULL WHERE {owner} = ?1 AND {key} IN \
                 (SELECT {key} FROM {name} WHERE {owner} = ?1 AND {column} IS NOT NULL LIMIT ?2)"
            ));
        }
    }
    for table in schema.tables() {
        let (name, owner, key) = (quoted(&table.name), quoted(&table.owner_column), quoted(&table.key));
        all.push(format!(
            "DELETE FROM {name} WHERE {owner} = ?1 AND {key} IN \
             (SELECT {key} FROM {name} WHERE {owner} = ?1 LIMIT ?2)"
        ));
    }
    all.extend(OWN.iter().map(|(name, key)| {
        format!("DELETE FROM {name} WHERE owner = ?1 AND ({key}) IN (SELECT {key} FROM {name} WHERE owner = ?1 ORDER BY {key} LIMIT ?2)")
    }));
    all.extend(BY_ID.iter().map(|(name, key)| {
        format!(
            "DELETE FROM {name} WHERE (owner, {key}) IN (SELECT t.owner, t.{key} FROM rollcall_owner AS o \
             JOIN {name} AS t ON t.owner = o.owner WHERE o.id = ?1 LIMIT ?2)"
        )
    }));
    all
}

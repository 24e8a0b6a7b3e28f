//! What a device does when its user is no member of the owner any more.
//!
//! It drops its copy, and keeps the edits that no server has: the user may want to enter them elsewhere. After a
//! restore it keeps everything, since the backup may be from before the user became a member.

use rusqlite::Connection;

use super::decide::State;
use super::row::{Row, RowFilter, state_text};
use super::store::{Store, StoreResult, names, writing};
use super::sync::{SyncError, Syncing};
use super::text::Columns;
use rollcall_core::model::RowKey;

const LEFT: &str = "
    CREATE TABLE IF NOT EXISTS left_edits (
        table_name TEXT NOT NULL,
        key        TEXT NOT NULL,
        operation  TEXT NOT NULL,
        contents   TEXT NOT NULL
    ) STRICT;
";

/// An edit that was not sent before the user's membership ended. A membership that ends more than once may leave several
/// edits of one row.
#[derive(Clone, Debug, PartialEq)]
pub struct LeftEdit {
    /// The name of its table.
    pub table: String,
    /// The row's key.
    pub key: RowKey,
    /// What the user did: `added`, `edited` or `deleted`.
    pub operation: String,
    /// The columns that the user set; all of a row that was added.
    pub columns: Columns,
}

impl Syncing<'_> {
    /// Ends the copy of an owner of which the user is no member, and says so.
    pub(super) fn leave(&mut self) -> Result<(), SyncError> {
        let known: Option<u64> = self.store.recall(names::EPOCH)?.and_then(|text| text.parse().ok());
        let now = self.calls.epoch_of_owners()?;
        // Without an epoch of either side nobody knows whether there was a restore.
        let is_restored = match (known, now) {
            (Some(known), Some(now)) => now > known,
            (None, _) => false, // the device has nothing from the server
            (Some(_), None) => true,
        };
        if is_restored {
            return Err(SyncError::NotAMemberAfterRestore);
        }
        let kept = self.store.drop_copy()?;
        Err(SyncError::NotAMember { kept })
    }
}

impl Store {
    /// Drops all rows and what is known of the server, and keeps the edits that wait. Returns how many they are.
    fn drop_copy(&mut self) -> StoreResult<u64> {
        let (conn, schema) = self.parts();
        let txn = writing(conn)?;
        txn.execute_batch(LEFT)?;
        let mut kept = 0;
        for table in schema.tables() {
            for row in Row::load_all(&txn, table, RowFilter::Waiting)? {
                keep(&txn, &table.name, &row)?;
                kept += 1;
            }
        }
        txn.execute("DELETE FROM rows", [])?;
        for name in [names::CURSOR, names::KNOWN, names::NEXT, names::SEED, names::ETAG, names::OUTSTANDING] {
            txn.execute("DELETE FROM meta WHERE name = ?1", [name])?;
        }
        txn.commit()?;
        Ok(kept)
    }

    /// The edits that were not sent before the user's membership ended.
    pub fn left(&self) -> StoreResult<Vec<LeftEdit>> {
        if !has_left(&self.conn)? {
            return Ok(Vec::new());
        }
        let sql =
            "SELECT table_name, key, operation, contents FROM left_edits ORDER BY table_name, key, rowid";
        let mut statement = self.conn.prepare(sql)?;
        let mut rows = statement.query([])?;
        let mut left = Vec::new();
        while let Some(row) = rows.next()? {
            let (key, contents): (String, String) = (row.get(1)?, row.get(3)?);
            let Some(key) = RowKey::parse(&key) else { continue };
            let columns = serde_json::from_str(&contents)?;
            left.push(LeftEdit { table: row.get(0)?, key, operation: row.get(2)?, columns });
        }
        Ok(left)
    }

    /// Forgets them, once the user has seen them.
    pub fn forget_left(&self) -> StoreResult<()> {
        if has_left(&self.conn)? {
            self.conn.execute("DELETE FROM left_edits", [])?;
        }
        Ok(())
    }
}

/// Keeps a row that waits: what the user set of it.
fn keep(conn: &Connection, table: &str, row: &Row) -> StoreResult<()> {
    let mut columns = match row.local.state {
        State::Deleted => Columns::new(),
        _ => row.contents.clone(),
    };
    if row.local.state == State::Edited {
        columns.retain(|name, _| row.changed.contains_key(name));
    }
    let (key, operation) = (row.key.to_string(), state_text(row.local.state));
    let sql = "INSERT INTO left_edits (table_name, key, operation, contents) VALUES (?1, ?2, ?3, ?4)";
    conn.execute(sql, (table, key, operation, serde_json::to_string(&columns)?))?;
    Ok(())
}

fn has_left(conn: &Connection) -> StoreResult<bool> {
    let sql = "SELECT count(*) FROM sqlite_schema WHERE name = 'left_edits'";
    Ok(conn.query_row(sql, [], |row| row.get::<_, i64>(0))? > 0)
}

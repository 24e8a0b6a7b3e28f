//! What an owner's past takes in SQLite, and how its oldest part is forgotten.

use rusqlite::{Connection, Params, params};

use super::{failed, statements};
use rollcall_core::model::Owner;
use rollcall_core::storage::quota::{Past, PastBytes, enough, make_room};
use rollcall_core::storage::{OwnerState, StorageResult};

/// The oldest earlier states, and their sizes.
pub(super) const OLDEST_STATES: &str = "SELECT version, tbl, key, octet_length(columns) + 200 \
     FROM rollcall_history WHERE owner = ?1 ORDER BY version, tbl, key LIMIT ?2";
/// Deletes all states up to one of them.
pub(super) const FORGET_STATES: &str =
    "DELETE FROM rollcall_history WHERE owner = ?1 AND (version, tbl, key) <= (?2, ?3, ?4)";

/// The oldest stored responses, and their sizes. An owner has few, so they are sorted.
const OLDEST_RESPONSES: &str = "SELECT device, key, octet_length(body) + octet_length(key) + 200 \
     FROM rollcall_answer WHERE owner = ?1 ORDER BY at, version LIMIT ?2";
pub(super) const FORGET_RESPONSE: &str =
    "DELETE FROM rollcall_answer WHERE owner = ?1 AND device = ?2 AND key = ?3";

/// One statement for each kind, over all entries of an owner.
pub(super) const COUNTS: [&str; 4] = [
    "SELECT count(*) FROM rollcall_ledger INDEXED BY rollcall_ledger_tombstones \
     WHERE owner = ?1 AND deleted = 1",
    "SELECT sum(octet_length(columns) + 200) FROM rollcall_history WHERE owner = ?1",
    "SELECT sum(ifnull(octet_length(base), 0) + ifnull(octet_length(stored), 0) \
     + ifnull(octet_length(incoming), 0) + 200) FROM rollcall_conflict WHERE owner = ?1",
    "SELECT sum(octet_length(body) + octet_length(key) + 200) FROM rollcall_answer WHERE owner = ?1",
];

/// Counts what an owner's past takes.
pub(super) fn count(conn: &Connection, owner: i64) -> rusqlite::Result<PastBytes> {
    let sum = |sql| conn.query_row(sql, [owner], |row| Ok(row.get::<_, Option<i64>>(0)?.unwrap_or_default()));
    let [tombstones, history, conflicts, responses] = COUNTS;
    Ok(PastBytes {
        is_counted: true,
        tombstones: sum(tombstones)?,
        history: sum(history)?,
        conflicts: sum(conflicts)?,
        responses: sum(responses)?,
    })
}

/// Runs a statement that returns a size for each entry that it deletes; returns their number and their total
/// size.
pub(super) fn forgotten(conn: &Connection, sql: &str, params: impl Params) -> rusqlite::Result<(usize, i64)> {
    let (mut entries, mut bytes) = (0, 0);
    let mut statement = conn.prepare_cached(sql)?;
    let mut rows = statement.query(params)?;
    while let Some(row) = rows.next()? {
        (entries, bytes) = (entries + 1, bytes + row.get::<_, i64>(0)?);
    }
    Ok((entries, bytes))
}

/// Writes an owner's state.
pub(super) fn put_state(conn: &Connection, owner: i64, state: &OwnerState) -> StorageResult<()> {
    let past = &state.past;
    let version = state.version.0.cast_signed();
    conn.prepare_cached(statements::ADVANCE_OWNER)
        .map_err(failed)?
        .execute(params![
            owner,
            version,
            state.horizon.0.cast_signed(),
            state.rows.cast_signed(),
            state.bytes.cast_signed(),
            past.tombstones,
            past.history,
            past.conflicts,
            past.responses,
            past.is_counted.then_some(version),
        ])
        .map_err(failed)?;
    Ok(())
}

/// One owner's past in a write transaction.
pub(super) struct OwnPast<'a> {
    pub conn: &'a Connection,
    pub owner: i64,
    pub bytes: &'a mut PastBytes,
}

impl OwnPast<'_> {
    /// Makes room like [`rollcall_core::storage::WriteTxn::make_room`]; returns how many entries were
    /// forgotten.
    pub fn make_room(&mut self, more: u64, max: u64, entries_max: usize) -> StorageResult<usize> {
        make_room(self, more, max, entries_max)
    }

    /// Makes room in the same way; returns whether there is enough.
    pub fn fits(&mut self, more: u64, max: u64, entries_max: usize) -> StorageResult<bool> {
        self.make_room(more, max, entries_max)?;
        Ok(self.bytes.excess(more, max) == 0)
    }
}

impl Past for OwnPast<'_> {
    fn bytes(&self) -> PastBytes {
        *self.bytes
    }

    fn forget_history(&mut self, bytes: u64, entries_max: usize) -> StorageResult<usize> {
        let mut oldest = self.conn.prepare_cached(OLDEST_STATES).map_err(failed)?;
        let limit = i64::try_from(entries_max).unwrap_or(i64::MAX);
        let found = oldest
            .query_map(params![self.owner, limit], |row| {
                Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?, row.get::<_, Vec<u8>>(2)?, row.get(3)?))
            })
            .map_err(failed)?;
        let found: Vec<(i64, i64, Vec<u8>, i64)> = found.collect::<Result<_, _>>().map_err(failed)?;
        let (entries, freed) = enough(found.iter().map(|(.., size)| *size), bytes);
        let Some((version, tbl, key, _)) = entries.checked_sub(1).and_then(|last| found.get(last)) else {
            return Ok(0);
        };
        let mut forget = self.conn.prepare_cached(FORGET_STATES).map_err(failed)?;
        forget.execute(params![self.owner, version, tbl, key]).map_err(failed)?;
        self.bytes.history -= freed;
        Ok(entries)
    }

    fn forget_responses(&mut self, bytes: u64, entries_max: usize) -> StorageResult<usize> {
        let mut oldest = self.conn.prepare_cached(OLDEST_RESPONSES).map_err(failed)?;
        let limit = i64::try_from(entries_max).unwrap_or(i64::MAX);
        let found = oldest
            .query_map(params![self.owner, limit], |row| {
                Ok((row.get::<_, Vec<u8>>(0)?, row.get::<_, String>(1)?, row.get(2)?))
            })
            .map_err(failed)?;
        let found: Vec<(Vec<u8>, String, i64)> = found.collect::<Result<_, _>>().map_err(failed)?;
        let (entries, freed) = enough(found.iter().map(|(.., size)| *size), bytes);
        let mut forget = self.conn.prepare_cached(FORGET_RESPONSE).map_err(failed)?;
        for (device, key, _) in found.iter().take(entries) {
            forget.execute(params![self.owner, device, key]).map_err(failed)?;
        }
        self.bytes.responses -= freed;
        Ok(entries)
    }
}

/// An owner's stored sums and its counted past, in one snapshot; `None` for an owner without any write.
pub(super) fn counted(conn: &Connection, owner: Owner) -> StorageResult<Option<(PastBytes, PastBytes)>> {
    let snapshot = conn.unchecked_transaction().map_err(failed)?;
    let Some((id, state)) = super::txn::load_owner(&snapshot, owner).map_err(failed)? else {
        return Ok(None);
    };
    Ok(Some((state.past, count(&snapshot, id).map_err(failed)?)))
}

//! What an owner's past takes in SQLite, and how its oldest part is forgotten.

use rusqlite::{Connection, Params, Row, params};

use super::{failed, statements, values};
use rollcall_core::model::{DeviceId, Owner, Timestamp, Version};
use rollcall_core::storage::quota::{Forgettable, Past, PastBytes, PastMark};
use rollcall_core::storage::{OwnerState, StorageResult};

/// The oldest earlier states, and their sizes.
pub(super) const OLDEST_STATES: &str = "SELECT version, tbl, key, octet_length(columns) + 200 \
     FROM rollcall_history WHERE owner = ?1 ORDER BY version, tbl, key LIMIT ?2";
/// Deletes all states up to one of them.
pub(super) const FORGET_STATES: &str =
    "DELETE FROM rollcall_history WHERE owner = ?1 AND (version, tbl, key) <= (?2, ?3, ?4)";

/// The oldest stored responses, and their sizes. An owner has few, so they are sorted.
const OLDEST_RESPONSES: &str = "SELECT at, version, device, key, octet_length(body) + octet_length(key) + 200 \
     FROM rollcall_answer WHERE owner = ?1 ORDER BY at, version, device, key LIMIT ?2";
/// Deletes all responses up to one of them.
pub(super) const FORGET_OLDEST_RESPONSES: &str =
    "DELETE FROM rollcall_answer WHERE owner = ?1 AND (at, version, device, key) <= (?2, ?3, ?4, ?5)";

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
            state.members_at.0.cast_signed(),
            state.is_public,
            state.erased_at.map(Timestamp::ms),
            state.due_at.map(Timestamp::ms),
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

/// Reads an entry's position and its size, bytes.
type ReadMark = fn(&Row<'_>) -> rusqlite::Result<(PastMark, i64)>;

impl Past for OwnPast<'_> {
    fn sums(&mut self) -> &mut PastBytes {
        self.bytes
    }

    fn oldest(&mut self, kind: Forgettable, entries_max: usize) -> StorageResult<Vec<(PastMark, i64)>> {
        let (sql, read): (_, ReadMark) = match kind {
            Forgettable::History => (OLDEST_STATES, state_mark),
            Forgettable::Responses => (OLDEST_RESPONSES, response_mark),
        };
        let limit = i64::try_from(entries_max).unwrap_or(i64::MAX);
        let mut statement = self.conn.prepare_cached(sql).map_err(failed)?;
        let found = statement.query_map(params![self.owner, limit], read).map_err(failed)?;
        found.collect::<Result<_, _>>().map_err(failed)
    }

    fn forget_up_to(&mut self, last: &PastMark) -> StorageResult<()> {
        let prepared = |sql| self.conn.prepare_cached(sql).map_err(failed);
        match last {
            PastMark::State { version, table, key } => prepared(FORGET_STATES)?.execute(params![
                self.owner,
                version.0.cast_signed(),
                table,
                key.0.as_bytes()
            ]),
            PastMark::Response { at, version, device, key } => prepared(FORGET_OLDEST_RESPONSES)?
                .execute(params![self.owner, at.ms(), version.0.cast_signed(), device.0.as_bytes(), key]),
        }
        .map_err(failed)?;
        Ok(())
    }
}

fn state_mark(row: &Row<'_>) -> rusqlite::Result<(PastMark, i64)> {
    let version = Version(row.get::<_, i64>(0)?.cast_unsigned());
    let mark = PastMark::State { version, table: row.get(1)?, key: values::key(row.get_ref(2)?)? };
    Ok((mark, row.get(3)?))
}

fn response_mark(row: &Row<'_>) -> rusqlite::Result<(PastMark, i64)> {
    let mark = PastMark::Response {
        at: Timestamp::from_ms(row.get(0)?),
        version: Version(row.get::<_, i64>(1)?.cast_unsigned()),
        device: DeviceId(values::uuid(row.get_ref(2)?)?),
        key: row.get(3)?,
    };
    Ok((mark, row.get(4)?))
}

/// An owner's stored sums and its counted past, in one snapshot; `None` for an owner without any write.
pub(super) fn counted(conn: &Connection, owner: Owner) -> StorageResult<Option<(PastBytes, PastBytes)>> {
    let snapshot = conn.unchecked_transaction().map_err(failed)?;
    let Some((id, state)) = super::txn::load_owner(&snapshot, owner).map_err(failed)? else {
        return Ok(None);
    };
    Ok(Some((state.past, count(&snapshot, id).map_err(failed)?)))
}

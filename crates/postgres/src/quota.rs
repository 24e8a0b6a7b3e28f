//! What an owner's past takes in PostgreSQL, and how its oldest part is forgotten.

use postgres::Row;
use postgres::types::Type;
use uuid::Uuid;

use super::failure::failed;
use super::session::{Param, Purpose, Session};
use super::{Connections, statements, txn};
use rollcall_core::broken;
use rollcall_core::model::{Owner, Version};
use rollcall_core::storage::quota::{Past, PastBytes, enough, make_room};
use rollcall_core::storage::{OwnerState, StorageResult};

/// The oldest earlier states, and their sizes.
pub const OLDEST_STATES: &str = "SELECT version, tbl, key, (octet_length(columns) + 200)::bigint FROM rollcall_history WHERE owner = $1 \
     ORDER BY version, tbl, key LIMIT $2";
/// Deletes all states up to one of them.
pub const FORGET_STATES: &str =
    "DELETE FROM rollcall_history WHERE owner = $1 AND (version, tbl, key) <= ($2, $3, $4)";

/// The oldest stored responses, and their sizes. An owner has few, so they are sorted.
pub const OLDEST_RESPONSES: &str = "SELECT device, key, (octet_length(body) + octet_length(key) + 200)::bigint FROM rollcall_answer \
     WHERE owner = $1 ORDER BY at, version LIMIT $2";
/// Deletes one of those responses.
pub const FORGET_RESPONSE: &str = "DELETE FROM rollcall_answer WHERE owner = $1 AND device = $2 AND key = $3";

/// One statement for each kind, over all entries of an owner.
pub const COUNTS: [&str; 4] = [
    "SELECT count(*) FROM rollcall_ledger WHERE owner = $1 AND deleted",
    "SELECT coalesce(sum(octet_length(columns) + 200), 0)::bigint FROM rollcall_history WHERE owner = $1",
    "SELECT coalesce(sum(coalesce(octet_length(base), 0) + coalesce(octet_length(stored), 0) \
     + coalesce(octet_length(incoming), 0) + 200), 0)::bigint FROM rollcall_conflict WHERE owner = $1",
    "SELECT coalesce(sum(octet_length(body) + octet_length(key) + 200), 0)::bigint FROM rollcall_answer \
     WHERE owner = $1",
];

/// Counts what an owner's past takes.
pub(super) fn count(session: &mut Session, owner: Uuid) -> StorageResult<PastBytes> {
    let mut sums = [0_i64; 4];
    for (sum, sql) in sums.iter_mut().zip(COUNTS) {
        let row = session.row(sql, &[(&owner, Type::UUID)])?;
        *sum = row.map_or(Ok(0), |row| row.try_get(0)).map_err(failed)?;
    }
    let [tombstones, history, conflicts, responses] = sums;
    Ok(PastBytes { is_counted: true, tombstones, history, conflicts, responses })
}

/// Runs a statement that returns a size for each entry that it deletes; returns their number and their total
/// size.
pub(super) fn forgotten(
    session: &mut Session,
    sql: &str,
    params: &[Param<'_>],
) -> StorageResult<(usize, i64)> {
    let rows = session.query(sql, params)?;
    let sizes = rows.iter().map(|row| row.try_get::<_, i64>(0));
    Ok((rows.len(), sizes.sum::<Result<i64, _>>().map_err(failed)?))
}

/// What a write that raises the version stores in the owner's row.
#[derive(Clone, Copy)]
pub(super) struct Advance {
    /// The id of the transaction.
    pub by: Uuid,
    /// The last day whose versions are dated.
    pub dated: Option<i64>,
}

/// Writes an owner's state, as the last statement of a transaction that has locked the owner at the version
/// `before`.
///
/// - `advance`: for a transaction that raises the version; `None` keeps the stored values.
/// - Errors: [`StorageError::Busy`] if the owner has another version. Then the lock did not hold: the
///   session's failure is set to one that may pass, so that the transaction is rolled back and run again.
pub(super) fn put_state(
    session: &mut Session,
    owner: Uuid,
    before: Version,
    state: &OwnerState,
    advance: Option<Advance>,
) -> StorageResult<()> {
    let past = &state.past;
    let [version, horizon] = [state.version, state.horizon].map(|version| version.0.cast_signed());
    let counted = past.is_counted.then_some(version);
    let (rows, bytes) = (state.rows.cast_signed(), state.bytes.cast_signed());
    let before = before.0.cast_signed();
    let mut params: Vec<Param<'_>> = vec![
        (&owner, Type::UUID),
        (&horizon, Type::INT8),
        (&past.tombstones, Type::INT8),
        (&past.history, Type::INT8),
        (&past.conflicts, Type::INT8),
        (&past.responses, Type::INT8),
        (&counted, Type::INT8),
        (&before, Type::INT8),
    ];
    let mut sql = statements::PUT_PAST;
    if let Some(Advance { by, dated }) = &advance {
        sql = statements::ADVANCE_OWNER;
        let numbers = [&version, &rows, &bytes].map(|number| -> Param<'_> { (number, Type::INT8) });
        params.extend(numbers);
        params.extend([(by as _, Type::UUID), (dated as _, Type::INT8)] as [Param<'_>; 2]);
    }
    if session.execute(sql, &params)? == 0 && !broken::is("overtaken_unnoticed") {
        return Err(session.overtaken());
    }
    Ok(())
}

/// The sums of an owner's past in its row: the columns from `at` on.
pub(super) fn past_of(row: &Row, at: usize, version: i64) -> StorageResult<PastBytes> {
    Ok(PastBytes {
        is_counted: row.try_get::<_, Option<i64>>(at + 4).map_err(failed)? == Some(version),
        tombstones: row.try_get(at).map_err(failed)?,
        history: row.try_get(at + 1).map_err(failed)?,
        conflicts: row.try_get(at + 2).map_err(failed)?,
        responses: row.try_get(at + 3).map_err(failed)?,
    })
}

/// One owner's past in a write transaction.
pub(super) struct OwnPast<'a> {
    pub session: &'a mut Session,
    pub owner: Uuid,
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
        let limit = i64::try_from(entries_max).unwrap_or(i64::MAX);
        let found = self.session.query(OLDEST_STATES, &[(&self.owner, Type::UUID), (&limit, Type::INT8)])?;
        let sizes = found.iter().map(|row| row.try_get::<_, i64>(3));
        let sizes: Vec<i64> = sizes.collect::<Result<_, _>>().map_err(failed)?;
        let (entries, freed) = enough(sizes.into_iter(), bytes);
        let Some(last) = entries.checked_sub(1).and_then(|last| found.get(last)) else { return Ok(0) };
        let (version, tbl, key): (i64, i32, Uuid) = (
            last.try_get(0).map_err(failed)?,
            last.try_get(1).map_err(failed)?,
            last.try_get(2).map_err(failed)?,
        );
        let params: [Param<'_>; 4] =
            [(&self.owner, Type::UUID), (&version, Type::INT8), (&tbl, Type::INT4), (&key, Type::UUID)];
        self.session.execute(FORGET_STATES, &params)?;
        self.bytes.history -= freed;
        Ok(entries)
    }

    fn forget_responses(&mut self, bytes: u64, entries_max: usize) -> StorageResult<usize> {
        let limit = i64::try_from(entries_max).unwrap_or(i64::MAX);
        let found =
            self.session.query(OLDEST_RESPONSES, &[(&self.owner, Type::UUID), (&limit, Type::INT8)])?;
        let sizes = found.iter().map(|row| row.try_get::<_, i64>(2));
        let sizes: Vec<i64> = sizes.collect::<Result<_, _>>().map_err(failed)?;
        let (entries, freed) = enough(sizes.into_iter(), bytes);
        for row in found.iter().take(entries) {
            let (device, key): (Uuid, String) =
                (row.try_get(0).map_err(failed)?, row.try_get(1).map_err(failed)?);
            let params: [Param<'_>; 3] =
                [(&self.owner, Type::UUID), (&device, Type::UUID), (&key, Type::TEXT)];
            self.session.execute(FORGET_RESPONSE, &params)?;
        }
        self.bytes.responses -= freed;
        Ok(entries)
    }
}

impl Connections {
    /// Counts what an owner's past takes, over one snapshot and concurrently with writers, and stores the
    /// result.
    pub(super) fn count_past(&self, owner: Owner) -> StorageResult<()> {
        let counted = self.with_retry(|session| {
            let transaction = session.begin(Purpose::Read)?;
            let Some(known) = txn::load_owner(transaction.session, owner, statements::OWNER)? else {
                return Ok(None);
            };
            Ok(Some((known.state.past, count(transaction.session, owner.0)?)))
        })?;
        let Some((before, counted)) = counted else { return Ok(()) };
        self.with_retry(|session| {
            let transaction = session.begin(Purpose::Write)?;
            let Some(mut known) = txn::load_owner(transaction.session, owner, statements::LOCK_OWNER)? else {
                return Ok(());
            };
            known.state.past = known.state.past.corrected(&before, &counted);
            put_state(transaction.session, owner.0, known.state.version, &known.state, None)?;
            transaction.commit()
        })
    }
}

//! What an owner's past takes in PostgreSQL, and how its oldest part is forgotten.

use postgres::Row;
use postgres::types::Type;
use uuid::Uuid;

use super::failure::failed;
use super::session::{Param, Purpose, Session};
use super::{Connections, statements, txn};
use rollcall_core::broken;
use rollcall_core::model::{DeviceId, Owner, RowKey, Timestamp, Version};
use rollcall_core::storage::quota::{Forgettable, Past, PastBytes, PastMark};
use rollcall_core::storage::{OwnerState, StorageResult};

/// The oldest earlier states, and their sizes.
pub const OLDEST_STATES: &str = "SELECT version, tbl, key, (octet_length(columns) + 200)::bigint FROM rollcall_history WHERE owner = $1 \
     ORDER BY version, tbl, key LIMIT $2";
/// Deletes all states up to one of them.
pub const FORGET_STATES: &str =
    "DELETE FROM rollcall_history WHERE owner = $1 AND (version, tbl, key) <= ($2, $3, $4)";

/// The oldest stored responses, and their sizes. An owner has few, so they are sorted.
pub const OLDEST_RESPONSES: &str = "SELECT at, version, device, key, (octet_length(body) + octet_length(key) + 200)::bigint \
     FROM rollcall_answer WHERE owner = $1 ORDER BY at, version, device, key LIMIT $2";
/// Deletes all responses up to one of them.
pub const FORGET_OLDEST_RESPONSES: &str =
    "DELETE FROM rollcall_answer WHERE owner = $1 AND (at, version, device, key) <= ($2, $3, $4, $5)";

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
    /// A table's digest that is written down along with it.
    pub digest: Option<PutDigest>,
}

/// What one table holds: its number, live rows, and root.
pub(super) type PutDigest = (i32, i64, i64);

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
    let (members_at, erased_at) = (state.members_at.0.cast_signed(), state.erased_at.map(Timestamp::ms));
    let due_at = state.due_at.map(Timestamp::ms);
    let mut params: Vec<Param<'_>> = vec![
        (&owner, Type::UUID),
        (&horizon, Type::INT8),
        (&past.tombstones, Type::INT8),
        (&past.history, Type::INT8),
        (&past.conflicts, Type::INT8),
        (&past.responses, Type::INT8),
        (&counted, Type::INT8),
        (&before, Type::INT8),
        (&due_at, Type::INT8),
    ];
    let mut sql = statements::PUT_PAST;
    if let Some(Advance { by, dated, digest }) = &advance {
        sql = statements::ADVANCE_OWNER;
        let numbers = [&version, &rows, &bytes].map(|number| -> Param<'_> { (number, Type::INT8) });
        params.extend(numbers);
        params.extend([(by as _, Type::UUID), (dated as _, Type::INT8)] as [Param<'_>; 2]);
        let access: [Param<'_>; 3] =
            [(&members_at, Type::INT8), (&state.is_public, Type::BOOL), (&erased_at, Type::INT8)];
        params.extend(access);
        if let Some((tbl, rows, root)) = digest {
            sql = statements::ADVANCE_WITH_DIGEST;
            params
                .extend([(tbl as _, Type::INT4), (rows as _, Type::INT8), (root as _, Type::INT8)]
                    as [Param<'_>; 3]);
        }
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

/// Reads an entry's position and its size, bytes.
type ReadMark = fn(&Row) -> Result<(PastMark, i64), postgres::Error>;

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
        let found = self.session.query(sql, &[(&self.owner, Type::UUID), (&limit, Type::INT8)])?;
        found.iter().map(read).collect::<Result<_, _>>().map_err(failed)
    }

    fn forget_up_to(&mut self, last: &PastMark) -> StorageResult<()> {
        match last {
            PastMark::State { version, table, key } => {
                let version = version.0.cast_signed();
                let params: [Param<'_>; 4] = [
                    (&self.owner, Type::UUID),
                    (&version, Type::INT8),
                    (table, Type::INT4),
                    (&key.0, Type::UUID),
                ];
                self.session.execute(FORGET_STATES, &params)?;
            }
            PastMark::Response { at, version, device, key } => {
                let (at, version) = (at.ms(), version.0.cast_signed());
                let params: [Param<'_>; 5] = [
                    (&self.owner, Type::UUID),
                    (&at, Type::INT8),
                    (&version, Type::INT8),
                    (&device.0, Type::UUID),
                    (key, Type::TEXT),
                ];
                self.session.execute(FORGET_OLDEST_RESPONSES, &params)?;
            }
        }
        Ok(())
    }
}

fn state_mark(row: &Row) -> Result<(PastMark, i64), postgres::Error> {
    let version = Version(row.try_get::<_, i64>(0)?.cast_unsigned());
    let mark = PastMark::State { version, table: row.try_get(1)?, key: RowKey(row.try_get(2)?) };
    Ok((mark, row.try_get(3)?))
}

fn response_mark(row: &Row) -> Result<(PastMark, i64), postgres::Error> {
    let mark = PastMark::Response {
        at: Timestamp::from_ms(row.try_get(0)?),
        version: Version(row.try_get::<_, i64>(1)?.cast_unsigned()),
        device: DeviceId(row.try_get(2)?),
        key: row.try_get(3)?,
    };
    Ok((mark, row.try_get(4)?))
}

impl Connections {
    /// Counts what an owner's past takes, over one snapshot and concurrently with writers, and stores the
    /// result.
    pub(super) fn count_past(&self, owner: Owner) -> StorageResult<()> {
        let counted = self.for_owner(owner, |session| {
            let transaction = session.begin(Purpose::Read)?;
            let Some(known) = txn::load_owner(transaction.session, owner, statements::OWNER)? else {
                return Ok(None);
            };
            Ok(Some((known.state.past, count(transaction.session, owner.0)?)))
        })?;
        let Some((before, counted)) = counted else { return Ok(()) };
        self.for_owner(owner, |session| {
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

//! An owner's row: its state, its lease, and the lock of writers.

use postgres::Row;
use postgres::types::Type;
use uuid::Uuid;

use super::entries::unsigned;
use super::failure::failed;
use super::session::{Param, Session};
use super::{leases, quota, statements};
use rollcall_core::digest::Seed;
use rollcall_core::model::{Owner, Timestamp, Version};
use rollcall_core::storage::{LeaseState, OwnerState, StorageError, StorageResult};

/// The stored row of an owner.
pub(super) struct OwnerRow {
    pub state: OwnerState,
    pub lease: LeaseState,
    /// The transaction that last raised the version.
    pub written: Option<Uuid>,
    /// The last day whose versions are dated, if that is known.
    pub dated: Option<i64>,
}

/// Loads the owner by one of the two statements that read it; `None` for an owner without any write.
pub(super) fn load_owner(session: &mut Session, owner: Owner, sql: &str) -> StorageResult<Option<OwnerRow>> {
    let now = session.now()?;
    let Some(row) = session.row(sql, &[(&owner.0, Type::UUID)])? else { return Ok(None) };
    Ok(Some(OwnerRow {
        lease: leases::lease(&row, now)?,
        state: state_of(&row)?,
        written: row.try_get(10).map_err(failed)?,
        dated: row.try_get(17).map_err(failed)?,
    }))
}

/// The owner's state: the columns after its lease.
pub(super) fn state_of(row: &Row) -> StorageResult<OwnerState> {
    let seed: Vec<u8> = row.try_get(9).map_err(failed)?;
    let seed: [u8; 16] =
        seed.try_into().map_err(|_| StorageError::Engine("a seed of another size".into()))?;
    Ok(OwnerState {
        version: Version(unsigned(row, 5).map_err(failed)?),
        horizon: Version(unsigned(row, 6).map_err(failed)?),
        rows: unsigned(row, 7).map_err(failed)?,
        bytes: unsigned(row, 8).map_err(failed)?,
        seed: Some(Seed(seed)),
        shown_ahead: Version(unsigned(row, 11).map_err(failed)?),
        past: quota::past_of(row, 12, row.try_get(5).map_err(failed)?)?,
        members_at: Version(unsigned(row, 18).map_err(failed)?),
        is_public: row.try_get(19).map_err(failed)?,
        erased_at: row.try_get::<_, Option<i64>>(20).map_err(failed)?.map(Timestamp::from_ms),
        due_at: row.try_get::<_, Option<i64>>(21).map_err(failed)?.map(Timestamp::from_ms),
    })
}

/// Locks the owner's row, and creates it if the owner is new.
pub(super) fn lock(session: &mut Session, owner: Owner) -> StorageResult<OwnerRow> {
    for _ in 0..3 {
        if let Some(known) = load_owner(session, owner, statements::LOCK_OWNER)? {
            return Ok(known);
        }
        make(session, owner)?;
    }
    Err(StorageError::Engine("an owner that was just made is not there".into()))
}

/// Creates the owner, unless another server has.
pub(super) fn make(session: &mut Session, owner: Owner) -> StorageResult<()> {
    let first = first_version(session)?.0.cast_signed();
    let mut seed = [0; 16];
    getrandom::fill(&mut seed).map_err(|error| StorageError::Engine(Box::new(error)))?;
    let params: [Param<'_>; 3] = [(&owner.0, Type::UUID), (&first, Type::INT8), (&&seed[..], Type::BYTEA)];
    session.execute(statements::ADD_OWNER, &params).map(drop)
}

pub(super) fn first_version(session: &mut Session) -> StorageResult<Version> {
    let epoch = session.row(statements::EPOCH, &[])?;
    let epoch: i64 = epoch.map_or(Ok(0), |row| row.try_get(0)).map_err(failed)?;
    Ok(Version::first(u16::try_from(epoch).unwrap_or_default()))
}

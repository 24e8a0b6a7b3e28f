//! Look-ups: from an email, a device's id, a token or a code to the user or the owner whose rows have it.
//!
//! A table that is sharded by user cannot hold two users of one email apart, or find one by it without asking every
//! shard. So each such name is a row of its own, sharded by the name. It is claimed before what it leads to is written,
//! and confirmed after that. A claim that is not confirmed may be taken over.

use postgres::types::Type;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::session::{Param, Session};
use crate::failure::failed;
use rollcall_core::model::Timestamp;
use rollcall_core::storage::StorageResult;

/// What a look-up is by.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Email = 1,
    Device = 2,
    Token = 3,
    Code = 4,
}

/// SHA-256 of the kind and of what the look-up is by.
pub(super) type Name = [u8; 32];

/// Claims a name, unless it is another one's; returns whether it still waits to be confirmed.
const CLAIM: &str = "INSERT INTO rollcall_lookup AS l (name, kind, id, claimed_at) VALUES ($1, $2, $3, $4) \
     ON CONFLICT (name) DO UPDATE SET id = excluded.id WHERE l.id = excluded.id RETURNING claimed_at";
const TAKE_OVER: &str = "UPDATE rollcall_lookup SET id = $2, claimed_at = $3 WHERE name = $1 AND id = $4 AND claimed_at IS NOT NULL";
const CONFIRM: &str = "UPDATE rollcall_lookup SET claimed_at = NULL WHERE name = $1 AND id = $2";
const DOUBT: &str = "UPDATE rollcall_lookup SET claimed_at = $3 WHERE name = $1 AND id = $2";
const PUT: &str = "INSERT INTO rollcall_lookup (name, kind, id, expires_at) VALUES ($1, $2, $3, $4) \
     ON CONFLICT (name) DO UPDATE SET id = excluded.id, claimed_at = NULL, expires_at = excluded.expires_at";
const WAITING: &str = "SELECT id FROM rollcall_lookup WHERE name = $1 AND claimed_at IS NOT NULL";
const FIND: &str = "SELECT id FROM rollcall_lookup WHERE name = $1";
const REMOVE: &str = "DELETE FROM rollcall_lookup WHERE name = $1 AND id = $2";
const REMOVE_EXPIRED: &str = "DELETE FROM rollcall_lookup WHERE name = $1 AND expires_at < $2";
const EXPIRED: &str = "SELECT name, kind, id FROM rollcall_lookup WHERE expires_at < $1 LIMIT $2";

/// How a claim ended.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Claim {
    /// The name is the claimer's from now on, once that is confirmed.
    Made,
    /// It was the claimer's before.
    Held,
    /// It is another one's.
    Taken,
}

pub(super) fn name(kind: Kind, of: &[u8]) -> Name {
    Sha256::new().chain_update([kind as u8]).chain_update(of).finalize().into()
}

/// Claims a name for a user.
///
/// A claim of another one's that was not confirmed is taken over if `is_there` says that nothing is there that it could
/// lead to: either it broke off, or it finds out as it confirms, and undoes what it did.
pub(super) fn claim(
    session: &mut Session,
    kind: Kind,
    name: &Name,
    id: Uuid,
    now: Timestamp,
    is_there: impl FnOnce(&mut Session, Uuid) -> StorageResult<bool>,
) -> StorageResult<Claim> {
    let (number, now) = (kind as i16, now.ms());
    let params: [Param<'_>; 4] =
        [(&&name[..], Type::BYTEA), (&number, Type::INT2), (&id, Type::UUID), (&now, Type::INT8)];
    if let Some(row) = session.row(CLAIM, &params)? {
        let waits = row.try_get::<_, Option<i64>>(0).map_err(failed)?.is_some();
        return Ok(if waits { Claim::Made } else { Claim::Held });
    }
    let Some(row) = session.row(WAITING, &[(&&name[..], Type::BYTEA)])? else { return Ok(Claim::Taken) };
    let other: Uuid = row.try_get(0).map_err(failed)?;
    if is_there(session, other)? {
        return Ok(Claim::Taken);
    }
    let params: [Param<'_>; 4] =
        [(&&name[..], Type::BYTEA), (&id, Type::UUID), (&now, Type::INT8), (&other, Type::UUID)];
    Ok(if session.execute(TAKE_OVER, &params)? == 1 { Claim::Made } else { Claim::Taken })
}

/// What a name leads to is there; `false` if somebody else has taken the name over.
pub(super) fn confirm(session: &mut Session, name: &Name, id: Uuid) -> StorageResult<bool> {
    Ok(session.execute(CONFIRM, &[(&&name[..], Type::BYTEA), (&id, Type::UUID)])? == 1)
}

/// What a name leads to is about to be removed: from now on the name is only claimed.
pub(super) fn doubt(session: &mut Session, name: &Name, id: Uuid, now: Timestamp) -> StorageResult<()> {
    let params: [Param<'_>; 3] = [(&&name[..], Type::BYTEA), (&id, Type::UUID), (&now.ms(), Type::INT8)];
    session.execute(DOUBT, &params).map(drop)
}

/// Writes a look-up by something that nobody else can have.
pub(super) fn put(
    session: &mut Session,
    kind: Kind,
    name: &Name,
    id: Uuid,
    expires_at: Option<Timestamp>,
) -> StorageResult<()> {
    let (number, expires_at) = (kind as i16, expires_at.map(Timestamp::ms));
    let params: [Param<'_>; 4] =
        [(&&name[..], Type::BYTEA), (&number, Type::INT2), (&id, Type::UUID), (&expires_at, Type::INT8)];
    session.execute(PUT, &params).map(drop)
}

pub(super) fn find(session: &mut Session, name: &Name) -> StorageResult<Option<Uuid>> {
    let row = session.row(FIND, &[(&&name[..], Type::BYTEA)])?;
    row.map(|row| row.try_get(0)).transpose().map_err(failed)
}

/// Removes a look-up, unless it leads elsewhere by now.
pub(super) fn remove(session: &mut Session, name: &Name, id: Uuid) -> StorageResult<()> {
    session.execute(REMOVE, &[(&&name[..], Type::BYTEA), (&id, Type::UUID)]).map(drop)
}

/// Look-ups that expired before `now`: the name, the kind's number, and what each leads to.
pub(super) fn expired(
    session: &mut Session,
    now: Timestamp,
    lookups_max: usize,
) -> StorageResult<Vec<(Vec<u8>, i16, Uuid)>> {
    let limit = i64::try_from(lookups_max).unwrap_or(i64::MAX);
    let rows = session.query(EXPIRED, &[(&now.ms(), Type::INT8), (&limit, Type::INT8)])?;
    rows.iter()
        .map(|row| {
            let name = row.try_get(0).map_err(failed)?;
            Ok((name, row.try_get(1).map_err(failed)?, row.try_get(2).map_err(failed)?))
        })
        .collect()
}

/// Removes a look-up that expired before `now`.
pub(super) fn remove_expired(session: &mut Session, name: &[u8], now: Timestamp) -> StorageResult<()> {
    session.execute(REMOVE_EXPIRED, &[(&name, Type::BYTEA), (&now.ms(), Type::INT8)]).map(drop)
}

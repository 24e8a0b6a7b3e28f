use postgres::types::Type;
use uuid::Uuid;

use super::quota::forgotten;
use super::session::{Param, Session};
use super::{deletions, statements};
use crate::failure::failed;
use rollcall_core::model::{DeviceId, Timestamp};
use rollcall_core::storage::StorageResult;
use rollcall_core::storage::installations::Installation;

const COUNTER: &str = "SELECT counter FROM rollcall_installation WHERE owner = $1 AND device = $2";
const ALL: &str = "SELECT device, user_id, token_device, counter, seen_at FROM rollcall_installation \
     WHERE owner = $1 ORDER BY device";
pub(super) const RAISE: &str = "UPDATE rollcall_installation \
     SET user_id = $3, token_device = $4, counter = $5, seen_at = $6 \
     WHERE owner = $1 AND device = $2 AND counter <= $5";
pub(super) const ADD: &str = "INSERT INTO rollcall_installation \
     (owner, device, user_id, token_device, counter, seen_at) VALUES ($1, $2, $3, $4, $5, $6)";
const FORGET: &str = "DELETE FROM rollcall_installation WHERE owner = $1 AND device = $2";
const FORGET_RESPONSES: &str = "DELETE FROM rollcall_answer WHERE owner = $1 AND device = $2 \
     RETURNING (octet_length(body) + octet_length(key) + 200)::bigint";
/// For a purge, which reads the few installations of an owner.
pub(super) const FORGET_OLD: &str = "DELETE FROM rollcall_installation WHERE owner = $1 AND seen_at < $2";

pub(super) fn counter(session: &mut Session, owner: Uuid, device: DeviceId) -> StorageResult<Option<u64>> {
    let row = session.row(COUNTER, &[(&owner, Type::UUID), (&device.0, Type::UUID)])?;
    Ok(row.map(|row| row.try_get::<_, i64>(0)).transpose().map_err(failed)?.map(i64::cast_unsigned))
}

pub(super) fn all(session: &mut Session, owner: Uuid) -> StorageResult<Vec<Installation>> {
    let rows = session.query(ALL, &[(&owner, Type::UUID)])?;
    rows.iter()
        .map(|row| {
            Ok(Installation {
                device: DeviceId(row.try_get(0).map_err(failed)?),
                user: row.try_get(1).map_err(failed)?,
                token_device: DeviceId(row.try_get(2).map_err(failed)?),
                counter: row.try_get::<_, i64>(3).map_err(failed)?.cast_unsigned(),
                seen_at: Timestamp::from_ms(row.try_get(4).map_err(failed)?),
            })
        })
        .collect()
}

/// Writes an installation by [`RAISE`] or [`ADD`]; returns whether it was written.
pub(super) fn put(session: &mut Session, sql: &str, owner: Uuid, one: &Installation) -> StorageResult<bool> {
    let params: [Param<'_>; 6] = [
        (&owner, Type::UUID),
        (&one.device.0, Type::UUID),
        (&one.user, Type::UUID),
        (&one.token_device.0, Type::UUID),
        (&one.counter.cast_signed(), Type::INT8),
        (&one.seen_at.ms(), Type::INT8),
    ];
    Ok(session.execute(sql, &params)? == 1)
}

/// Returns how many bytes its stored responses took.
pub(super) fn forget(session: &mut Session, owner: Uuid, device: DeviceId) -> StorageResult<i64> {
    let params: [Param<'_>; 2] = [(&owner, Type::UUID), (&device.0, Type::UUID)];
    for sql in [FORGET, statements::FORGET_DEVICE, deletions::FORGET] {
        session.execute(sql, &params)?;
    }
    Ok(forgotten(session, FORGET_RESPONSES, &params)?.1)
}

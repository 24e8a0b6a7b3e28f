use rusqlite::{Connection, OptionalExtension, params};

use super::quota::forgotten;
use super::{deletions, statements, values};
use crate::failed;
use rollcall_core::model::{DeviceId, Timestamp};
use rollcall_core::storage::StorageResult;
use rollcall_core::storage::installations::Installation;

pub(super) const COUNTER: &str = "SELECT counter FROM rollcall_installation WHERE owner = ?1 AND device = ?2";
pub(super) const ALL: &str = "SELECT device, user_id, token_device, counter, seen_at FROM rollcall_installation \
     WHERE owner = ?1 ORDER BY device";
pub(super) const RAISE: &str = "UPDATE rollcall_installation \
     SET user_id = ?3, token_device = ?4, counter = ?5, seen_at = ?6 \
     WHERE owner = ?1 AND device = ?2 AND counter <= ?5";
pub(super) const ADD: &str = "INSERT INTO rollcall_installation \
     (owner, device, user_id, token_device, counter, seen_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
pub(super) const FORGET: &str = "DELETE FROM rollcall_installation WHERE owner = ?1 AND device = ?2";
pub(super) const FORGET_RESPONSES: &str = "DELETE FROM rollcall_answer WHERE owner = ?1 AND device = ?2 \
     RETURNING octet_length(body) + octet_length(key) + 200";
/// For a purge, which reads the few installations of an owner.
pub(super) const FORGET_OLD: &str = "DELETE FROM rollcall_installation WHERE owner = ?1 AND seen_at < ?2";

pub(super) fn counter(conn: &Connection, owner: i64, device: DeviceId) -> StorageResult<Option<u64>> {
    let mut statement = conn.prepare_cached(COUNTER).map_err(failed)?;
    let counter = statement
        .query_row(params![owner, device.0.as_bytes()], |row| row.get::<_, i64>(0))
        .optional()
        .map_err(failed)?;
    Ok(counter.map(i64::cast_unsigned))
}

pub(super) fn all(conn: &Connection, owner: i64) -> StorageResult<Vec<Installation>> {
    let mut statement = conn.prepare_cached(ALL).map_err(failed)?;
    let found = statement
        .query_map([owner], |row| {
            Ok(Installation {
                device: DeviceId(values::uuid(row.get_ref(0)?)?),
                user: values::uuid(row.get_ref(1)?)?,
                token_device: DeviceId(values::uuid(row.get_ref(2)?)?),
                counter: row.get::<_, i64>(3)?.cast_unsigned(),
                seen_at: Timestamp::from_ms(row.get(4)?),
            })
        })
        .map_err(failed)?;
    found.collect::<Result<_, _>>().map_err(failed)
}

/// Writes an installation by [`RAISE`] or [`ADD`]; returns whether it was written.
pub(super) fn put(conn: &Connection, sql: &str, owner: i64, one: &Installation) -> StorageResult<bool> {
    let rows = conn
        .prepare_cached(sql)
        .map_err(failed)?
        .execute(params![
            owner,
            one.device.0.as_bytes(),
            one.user.as_bytes(),
            one.token_device.0.as_bytes(),
            one.counter.cast_signed(),
            one.seen_at.ms()
        ])
        .map_err(failed)?;
    Ok(rows == 1)
}

/// Returns how many bytes its stored responses took.
pub(super) fn forget(conn: &Connection, owner: i64, device: DeviceId) -> StorageResult<i64> {
    for sql in [FORGET, statements::FORGET_DEVICE, deletions::FORGET] {
        conn.prepare_cached(sql)
            .map_err(failed)?
            .execute(params![owner, device.0.as_bytes()])
            .map_err(failed)?;
    }
    Ok(forgotten(conn, FORGET_RESPONSES, params![owner, device.0.as_bytes()]).map_err(failed)?.1)
}

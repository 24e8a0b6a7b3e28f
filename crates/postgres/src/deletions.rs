use postgres::types::Type;
use uuid::Uuid;

use super::session::{Param, Session};
use super::statements::Statements;
use crate::failure::failed;
use rollcall_core::model::{DeviceId, Timestamp, Version};
use rollcall_core::schema::{Schema, TableId};
use rollcall_core::storage::{DeleteWindow, StorageResult};

/// What a device has deleted recently, by table.
pub const WINDOWS: &str = "SELECT tbl, began, version, live_rows, deletes FROM rollcall_delete_window \
     WHERE owner = $1 AND device = $2";
/// Replaces a stored window.
pub const PUT: &str = "INSERT INTO rollcall_delete_window \
     (owner, device, tbl, began, version, live_rows, deletes) VALUES ($1, $2, $3, $4, $5, $6, $7) \
     ON CONFLICT (owner, device, tbl) DO UPDATE SET began = excluded.began, version = excluded.version, \
     live_rows = excluded.live_rows, deletes = excluded.deletes";
/// Deletes the windows of a device.
pub const FORGET: &str = "DELETE FROM rollcall_delete_window WHERE owner = $1 AND device = $2";
/// For a purge, which reads the few windows of an owner.
pub const FORGET_OLD: &str = "DELETE FROM rollcall_delete_window WHERE owner = $1 AND began < $2";

/// The windows of a device; those of tables that are no longer declared are skipped.
pub(super) fn windows(
    session: &mut Session,
    schema: &Schema,
    statements: &Statements,
    owner: Uuid,
    device: DeviceId,
) -> StorageResult<Vec<(TableId, DeleteWindow)>> {
    let rows = session.query(WINDOWS, &[(&owner, Type::UUID), (&device.0, Type::UUID)])?;
    let mut found = Vec::with_capacity(rows.len());
    for row in &rows {
        let number = |at: usize| row.try_get::<_, i64>(at).map(i64::cast_unsigned);
        let Some(place) = statements.table(row.try_get(0).map_err(failed)?) else { continue };
        let window = DeleteWindow {
            began: Timestamp::from_ms(row.try_get(1).map_err(failed)?),
            version: Version(number(2).map_err(failed)?),
            rows: number(3).map_err(failed)?,
            deletes: number(4).map_err(failed)?,
        };
        found.push((schema.tables()[place].id, window));
    }
    Ok(found)
}

pub(super) fn put(
    session: &mut Session,
    owner: Uuid,
    device: DeviceId,
    tbl: i32,
    window: &DeleteWindow,
) -> StorageResult<()> {
    let params: [Param<'_>; 7] = [
        (&owner, Type::UUID),
        (&device.0, Type::UUID),
        (&tbl, Type::INT4),
        (&window.began.ms(), Type::INT8),
        (&window.version.0.cast_signed(), Type::INT8),
        (&window.rows.cast_signed(), Type::INT8),
        (&window.deletes.cast_signed(), Type::INT8),
    ];
    session.execute(PUT, &params).map(drop)
}

pub(super) fn forget(session: &mut Session, owner: Uuid, device: DeviceId) -> StorageResult<()> {
    session.execute(FORGET, &[(&owner, Type::UUID), (&device.0, Type::UUID)]).map(drop)
}

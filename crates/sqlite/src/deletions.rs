use rusqlite::{Connection, params};

use super::statements::Statements;
use crate::failed;
use rollcall_core::model::{DeviceId, Timestamp, Version};
use rollcall_core::schema::{Schema, TableId};
use rollcall_core::storage::{DeleteWindow, StorageResult};

pub(super) const WINDOWS: &str = "SELECT tbl, began, version, live_rows, deletes FROM rollcall_delete_window \
     WHERE owner = ?1 AND device = ?2";
pub(super) const PUT: &str = "INSERT INTO rollcall_delete_window \
     (owner, device, tbl, began, version, live_rows, deletes) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) \
     ON CONFLICT (owner, device, tbl) DO UPDATE SET began = excluded.began, version = excluded.version, \
     live_rows = excluded.live_rows, deletes = excluded.deletes";
pub(super) const FORGET: &str = "DELETE FROM rollcall_delete_window WHERE owner = ?1 AND device = ?2";
/// For a purge, which reads the few windows of an owner.
pub(super) const FORGET_OLD: &str = "DELETE FROM rollcall_delete_window WHERE owner = ?1 AND began < ?2";

/// The windows of a device; those of tables that are no longer declared are skipped.
pub(super) fn windows(
    conn: &Connection,
    schema: &Schema,
    statements: &Statements,
    owner: i64,
    device: DeviceId,
) -> StorageResult<Vec<(TableId, DeleteWindow)>> {
    let mut statement = conn.prepare_cached(WINDOWS).map_err(failed)?;
    let found = statement
        .query_map(params![owner, device.0.as_bytes()], |row| {
            let number = |at| row.get::<_, i64>(at).map(i64::cast_unsigned);
            let window = DeleteWindow {
                began: Timestamp::from_ms(row.get(1)?),
                version: Version(number(2)?),
                rows: number(3)?,
                deletes: number(4)?,
            };
            Ok((row.get(0)?, window))
        })
        .map_err(failed)?;
    let found: Vec<(i64, DeleteWindow)> = found.collect::<Result<_, _>>().map_err(failed)?;
    let declared = |tbl| statements.table(tbl).map(|place| schema.tables()[place].id);
    Ok(found.into_iter().filter_map(|(tbl, window)| Some((declared(tbl)?, window))).collect())
}

pub(super) fn put(
    conn: &Connection,
    owner: i64,
    device: DeviceId,
    tbl: i64,
    window: &DeleteWindow,
) -> StorageResult<()> {
    conn.prepare_cached(PUT)
        .map_err(failed)?
        .execute(params![
            owner,
            device.0.as_bytes(),
            tbl,
            window.began.ms(),
            window.version.0.cast_signed(),
            window.rows.cast_signed(),
            window.deletes.cast_signed(),
        ])
        .map_err(failed)?;
    Ok(())
}

pub(super) fn forget(conn: &Connection, owner: i64, device: DeviceId) -> StorageResult<()> {
    conn.prepare_cached(FORGET)
        .map_err(failed)?
        .execute(params![owner, device.0.as_bytes()])
        .map_err(failed)?;
    Ok(())
}

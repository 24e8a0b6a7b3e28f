//! Reads rows of the ledger and of the application's tables.

use postgres::Row;
use postgres::types::Type;
use uuid::Uuid;

use super::many::Bindable;
use super::session::{Param, Session};
use super::values::Bound;
use super::{statements, values};
use crate::failure::failed;
use rollcall_core::model::{Claim, DeviceId, RowKey, Stored, Timestamp, Value, Version};
use rollcall_core::schema::{Column, Table};
use rollcall_core::storage::ledger::{aware_devices, aware_devices_bytes, lifetimes, lifetimes_bytes};
use rollcall_core::storage::{StorageResult, Walked};

/// The number of columns of a ledger entry, its key first, and the index of the one that marks tombstones.
pub(super) const ENTRY_COLUMNS: usize = 13;
pub(super) const DELETED: usize = 4;

/// Reads a ledger entry as a tombstone; a live row's columns are stored elsewhere.
pub(super) fn entry(row: &Row) -> StorageResult<Stored> {
    let number = |at| row.try_get::<_, Option<i64>>(at);
    let time = |at| Ok::<_, postgres::Error>(number(at)?.map(Timestamp::from_ms));
    let version = |number: i64| Version(number.cast_unsigned());
    Ok(Stored {
        version: Version(unsigned(row, 1).map_err(failed)?),
        created: Version(unsigned(row, 2).map_err(failed)?),
        last_update: Timestamp::from_ms(row.try_get(3).map_err(failed)?),
        made_by: DeviceId(row.try_get(5).map_err(failed)?),
        changed_by: DeviceId(row.try_get(6).map_err(failed)?),
        lifetimes: lifetimes(row.try_get::<_, Option<&[u8]>>(7).map_err(failed)?.unwrap_or_default()),
        aware_devices: aware_devices(row.try_get::<_, Option<&[u8]>>(8).map_err(failed)?.unwrap_or_default()),
        made_at: time(9).map_err(failed)?,
        claim: Claim {
            at: time(10).map_err(failed)?,
            row_base: time(11).map_err(failed)?,
            base: number(12).map_err(failed)?.map(version),
        },
        values: None,
    })
}

pub(super) fn stored(table: &Table, row: &Row) -> StorageResult<Stored> {
    let mut stored = entry(row)?;
    if !row.try_get::<_, bool>(DELETED).map_err(failed)? {
        stored.values = Some(columns(table, row, ENTRY_COLUMNS)?);
    }
    Ok(stored)
}

/// Reads a row's columns, which begin at `first`.
pub(super) fn columns(table: &Table, row: &Row, first: usize) -> StorageResult<Vec<Value>> {
    let read = |(at, column): (usize, &Column)| values::read(column.kind, row, first + at);
    table.columns.iter().enumerate().map(read).collect::<Result<_, _>>().map_err(failed)
}

/// The parameters of a ledger entry.
pub(super) fn bind(&(key, row): &(RowKey, &Stored), bound: &mut Vec<Bindable<'_>>) {
    let number = |version: Version| version.0.cast_signed();
    bound.push((Box::new(key.0), Type::UUID));
    bound.push((Box::new(number(row.version)), Type::INT8));
    bound.push((Box::new(number(row.created)), Type::INT8));
    bound.push((Box::new(row.last_update.ms()), Type::INT8));
    bound.push((Box::new(row.is_tombstone()), Type::BOOL));
    bound.push((Box::new(row.made_by.0), Type::UUID));
    bound.push((Box::new(row.changed_by.0), Type::UUID));
    bound.push((Box::new(lifetimes_bytes(&row.lifetimes)), Type::BYTEA));
    bound.push((Box::new(aware_devices_bytes(&row.aware_devices)), Type::BYTEA));
    bound.push((Box::new(row.made_at.map(Timestamp::ms)), Type::INT8));
    bound.push((Box::new(row.claim.at.map(Timestamp::ms)), Type::INT8));
    bound.push((Box::new(row.claim.row_base.map(Timestamp::ms)), Type::INT8));
    bound.push((Box::new(row.claim.base.map(number)), Type::INT8));
}

/// The parameters of a live row.
pub(super) fn bind_row<'r>(
    (key, values): (RowKey, &'r Vec<Value>),
    types: &[Type],
    bound: &mut Vec<Bindable<'r>>,
) {
    bound.push((Box::new(key.0), Type::UUID));
    for (value, kind) in values.iter().zip(types) {
        bound.push((Box::new(Bound(value)), kind.clone()));
    }
}

pub(super) fn unsigned(row: &Row, at: usize) -> Result<u64, postgres::Error> {
    row.try_get::<_, i64>(at).map(i64::cast_unsigned)
}

/// Counts the entries of a table from a key on, at most `entries_max`.
pub(super) fn walk(
    session: &mut Session,
    owner: Uuid,
    tbl: i32,
    from: Uuid,
    entries_max: u64,
) -> StorageResult<Walked> {
    let entries_max = i64::try_from(entries_max).unwrap_or(i64::MAX);
    let params: [Param<'_>; 4] =
        [(&owner, Type::UUID), (&tbl, Type::INT4), (&from, Type::UUID), (&entries_max, Type::INT8)];
    let Some(row) = session.row(statements::WALK, &params)? else { return Ok(Walked::default()) };
    let last = row.try_get::<_, Option<&str>>(2).map_err(failed)?;
    let last = last.and_then(|text| Uuid::try_parse(text).ok()).map(RowKey);
    let [entries, live] = [unsigned(&row, 0), unsigned(&row, 1)];
    Ok(Walked { entries: entries.map_err(failed)?, live: live.map_err(failed)?, last })
}

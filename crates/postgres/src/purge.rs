use std::collections::BTreeMap;

use postgres::types::Type;
use uuid::Uuid;

use super::quota::{OwnPast, forgotten};
use super::session::{Param, Session};
use super::{deletions, installations, statements};
use crate::failure::failed;
use rollcall_core::model::{Timestamp, Version};
use rollcall_core::storage::ledger::day;
use rollcall_core::storage::quota::make_room;
use rollcall_core::storage::{OwnerState, PurgeTerms, Purged, StorageResult};

/// Forgets old data, and raises the horizon of `state` over the versions whose deletions are forgotten. The
/// caller writes the state in the same transaction: a reader either finds the tombstones or learns that its
/// cursor has expired.
pub(super) fn purge(
    session: &mut Session,
    owner: Uuid,
    state: &mut OwnerState,
    terms: &PurgeTerms,
    rows_max: usize,
) -> StorageResult<Purged> {
    let mut purged = Purged::default();
    let until = forgettable(session, owner, state, terms)?.0.cast_signed();
    let limit = i64::try_from(rows_max).unwrap_or(i64::MAX);
    let params: [Param<'_>; 3] = [(&owner, Type::UUID), (&until, Type::INT8), (&limit, Type::INT8)];
    let old = session.query(statements::OLD_TOMBSTONES, &params)?;
    purged.more = old.len() == rows_max;
    let mut horizon = state.horizon;
    let mut by_table = BTreeMap::<i32, Vec<Uuid>>::new();
    for row in &old {
        by_table.entry(row.try_get(0).map_err(failed)?).or_default().push(row.try_get(1).map_err(failed)?);
        horizon = horizon.max(Version(row.try_get::<_, i64>(2).map_err(failed)?.cast_unsigned()));
    }
    for (tbl, keys) in &by_table {
        let params: [Param<'_>; 3] = [(&owner, Type::UUID), (tbl, Type::INT4), (keys, Type::UUID_ARRAY)];
        state.past.history -= forgotten(session, statements::FORGET_HISTORY, &params)?.1;
        state.past.tombstones -= session.execute(statements::FORGET_ENTRIES, &params)?.cast_signed();
    }
    state.horizon = horizon;
    purged.tombstones = old.len() as u64;
    for (sql, before, sum) in [
        (statements::FORGET_CONFLICTS, terms.conflicts_before, &mut state.past.conflicts),
        (statements::FORGET_OLD_RESPONSES, terms.responses_before, &mut state.past.responses),
    ] {
        let params: [Param<'_>; 3] = [(&owner, Type::UUID), (&before.ms(), Type::INT8), (&limit, Type::INT8)];
        let (entries, bytes) = forgotten(session, sql, &params)?;
        *sum -= bytes;
        purged.records += entries as u64;
        purged.more |= entries == rows_max;
    }
    let mut past = OwnPast { session, owner, bytes: &mut state.past };
    let entries = make_room(&mut past, 0, terms.past_bytes_max, rows_max)?;
    purged.note_room(entries, rows_max, state.past.excess(0, terms.past_bytes_max), state.past.is_counted);
    for (sql, before) in [
        (statements::FORGET_DEVICES, terms.devices_before.ms()),
        (installations::FORGET_OLD, terms.devices_before.ms()),
        (deletions::FORGET_OLD, terms.devices_before.ms()),
        (statements::FORGET_DAYS, day(terms.tombstones_before)),
    ] {
        session.execute(sql, &[(&owner, Type::UUID), (&before, Type::INT8)])?;
    }
    state.due_at = terms.due_after(&purged, oldest(session, owner, terms)?);
    Ok(purged)
}

/// When the oldest thing of an owner is old enough. Tombstones are as old as the last day of their version; one that a
/// device has not read yet waits for the device, or for its age.
fn oldest(session: &mut Session, owner: Uuid, terms: &PurgeTerms) -> StorageResult<Option<Timestamp>> {
    let ages = terms.ages();
    let params: [Param<'_>; 5] = [
        (&owner, Type::UUID),
        (&ages.responses, Type::INT8),
        (&ages.conflicts, Type::INT8),
        (&ages.devices, Type::INT8),
        (&ages.tombstones, Type::INT8),
    ];
    let oldest = session.row(statements::OLDEST, &params)?;
    let oldest: Option<i64> = oldest.map(|row| row.try_get(0)).transpose().map_err(failed)?.flatten();
    Ok(oldest.map(Timestamp::from_ms))
}

/// The last version whose tombstones are old enough and were read by every active device.
fn forgettable(
    session: &mut Session,
    owner: Uuid,
    state: &OwnerState,
    terms: &PurgeTerms,
) -> StorageResult<Version> {
    // Versions before the first recent day are old; if no write happened since, all are.
    let params: [Param<'_>; 2] = [(&owner, Type::UUID), (&day(terms.tombstones_before), Type::INT8)];
    let old = session.row(statements::VERSION_BEFORE_DAY, &params)?;
    let old: Option<i64> = old.map(|row| row.try_get(0)).transpose().map_err(failed)?;
    let old = old.map_or(state.version, |version| Version(version.cast_unsigned()));
    // A cursor below the horizon has expired: its device fetches everything and needs no tombstones.
    let params: [Param<'_>; 3] = [
        (&owner, Type::UUID),
        (&terms.devices_before.ms(), Type::INT8),
        (&state.horizon.0.cast_signed(), Type::INT8),
    ];
    let seen = session.row(statements::ACKNOWLEDGED_BY_ALL, &params)?;
    let seen: Option<i64> = seen.map(|row| row.try_get(0)).transpose().map_err(failed)?.flatten();
    Ok(seen.map_or(old, |version| old.min(Version(version.cast_unsigned()))))
}

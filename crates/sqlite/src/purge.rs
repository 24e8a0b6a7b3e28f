use rusqlite::{Connection, OptionalExtension, params};

use super::quota::{self, OwnPast, forgotten};
use super::writer::Done;
use super::{Connections, deletions, installations, statements, txn, values};
use crate::failed;
use rollcall_core::broken;
use rollcall_core::model::{Owner, RowKey, Timestamp, Version};
use rollcall_core::storage::ledger::day;
use rollcall_core::storage::quota::make_room;
use rollcall_core::storage::{Forgetful, OwnerState, Owners, PurgeTerms, Purged, StorageResult};

/// A purge uses none of the application's tables, so a command can run it without their schema.
impl Forgetful for Connections {
    fn owners(&self) -> &dyn Owners {
        self
    }

    fn forget(&self, owner: Owner, terms: &PurgeTerms, rows_max: usize) -> StorageResult<Purged> {
        let mut purged = Purged::default();
        self.writing_for(owner, &mut |conn| {
            let Some((id, mut state)) = txn::load_owner(conn, owner).map_err(failed)? else {
                return Ok(Done::Rollback);
            };
            let before = state.version;
            let written = state;
            purged = purge(conn, id, &mut state, terms, rows_max)?;
            if state != written {
                quota::put_state(conn, id, &state)?;
            }
            Ok(Done::Move((owner, before, state)))
        })?;
        Ok(purged)
    }

    fn count(&self, owner: Owner) -> StorageResult<()> {
        let Some((before, counted)) = self.reading(|conn| quota::counted(conn, owner))? else {
            return Ok(());
        };
        self.writing_for(owner, &mut |conn| {
            let Some((id, mut state)) = txn::load_owner(conn, owner).map_err(failed)? else {
                return Ok(Done::Rollback);
            };
            state.past = state.past.corrected(&before, &counted);
            quota::put_state(conn, id, &state)?;
            Ok(Done::Move((owner, state.version, state)))
        })
    }
}

/// Forgets old data, and raises the horizon of `state` over the versions whose deletions are forgotten. The
/// caller writes the state in the same transaction: a reader either finds the tombstones or learns that its
/// cursor has expired.
pub(super) fn purge(
    conn: &Connection,
    owner: i64,
    state: &mut OwnerState,
    terms: &PurgeTerms,
    rows_max: usize,
) -> StorageResult<Purged> {
    let mut purged = Purged::default();
    let until = forgettable(conn, owner, state, terms)?;
    let limit = i64::try_from(rows_max).unwrap_or(i64::MAX);
    let old: Vec<(i64, RowKey, Version)> = {
        let mut statement = conn.prepare_cached(statements::OLD_TOMBSTONES).map_err(failed)?;
        let rows = statement
            .query_map(params![owner, until.0.cast_signed(), limit], |row| {
                Ok((
                    row.get(0)?,
                    values::key(row.get_ref(1)?)?,
                    Version(row.get::<_, i64>(2)?.cast_unsigned()),
                ))
            })
            .map_err(failed)?;
        rows.collect::<Result<_, _>>().map_err(failed)?
    };
    purged.more = old.len() == rows_max;
    let mut horizon = state.horizon;
    for (tbl, key, version) in &old {
        let key = key.0.as_bytes();
        state.past.history -=
            forgotten(conn, statements::FORGET_HISTORY, params![owner, tbl, key]).map_err(failed)?.1;
        let gone = conn
            .prepare_cached(statements::FORGET_ENTRY)
            .map_err(failed)?
            .execute(params![owner, tbl, key])
            .map_err(failed)?;
        state.past.tombstones -= gone as i64;
        if !broken::is("horizon_not_raised") {
            horizon = horizon.max(*version);
        }
    }
    state.horizon = horizon;
    purged.tombstones = old.len() as u64;
    for (sql, before, sum) in [
        (statements::FORGET_CONFLICTS, terms.conflicts_before, &mut state.past.conflicts),
        (statements::FORGET_OLD_RESPONSES, terms.responses_before, &mut state.past.responses),
    ] {
        let (entries, bytes) = forgotten(conn, sql, params![owner, before.ms(), limit]).map_err(failed)?;
        *sum -= bytes;
        purged.records += entries as u64;
        purged.more |= entries == rows_max;
    }
    let mut past = OwnPast { conn, owner, bytes: &mut state.past };
    let entries = make_room(&mut past, 0, terms.past_bytes_max, rows_max)?;
    purged.note_room(entries, rows_max, state.past.excess(0, terms.past_bytes_max), state.past.is_counted);
    let forget = |sql: &str, before: i64| -> StorageResult<usize> {
        conn.prepare_cached(sql).map_err(failed)?.execute(params![owner, before]).map_err(failed)
    };
    forget(statements::FORGET_DEVICES, terms.devices_before.ms())?;
    forget(installations::FORGET_OLD, terms.devices_before.ms())?;
    forget(deletions::FORGET_OLD, terms.devices_before.ms())?;
    forget(statements::FORGET_DAYS, day(terms.tombstones_before))?;
    state.due_at = terms.due_after(&purged, oldest(conn, owner, terms)?);
    Ok(purged)
}

/// When the oldest thing of an owner is old enough. Tombstones are as old as the last day of their version; one that a
/// device has not read yet waits for the device, or for its age.
fn oldest(conn: &Connection, owner: i64, terms: &PurgeTerms) -> StorageResult<Option<Timestamp>> {
    let ages = terms.ages();
    let mut statement = conn.prepare_cached(statements::OLDEST).map_err(failed)?;
    let params = params![owner, ages.responses, ages.conflicts, ages.devices, ages.tombstones];
    let oldest: Option<i64> = statement.query_row(params, |row| row.get(0)).map_err(failed)?;
    Ok(oldest.map(Timestamp::from_ms))
}

/// The last version whose tombstones are old enough and were read by every active device.
fn forgettable(
    conn: &Connection,
    owner: i64,
    state: &OwnerState,
    terms: &PurgeTerms,
) -> StorageResult<Version> {
    // Versions before the first recent day are old; if no write happened since, all are.
    let old: Option<i64> = conn
        .prepare_cached(statements::VERSION_BEFORE_DAY)
        .map_err(failed)?
        .query_row(params![owner, day(terms.tombstones_before)], |row| row.get(0))
        .optional()
        .map_err(failed)?;
    let old = old.map_or(state.version, |version| Version(version.cast_unsigned()));
    // A cursor below the horizon has expired: its device fetches everything and needs no tombstones.
    let seen: Option<i64> = conn
        .prepare_cached(statements::ACKNOWLEDGED_BY_ALL)
        .map_err(failed)?
        .query_row(params![owner, terms.devices_before.ms(), state.horizon.0.cast_signed()], |row| row.get(0))
        .map_err(failed)?;
    Ok(seen.map_or(old, |version| old.min(Version(version.cast_unsigned()))))
}

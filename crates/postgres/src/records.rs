//! What is stored in addition to the rows: replaced states, conflicts, responses.

use std::collections::{BTreeMap, HashSet};

use postgres::Row;
use postgres::types::Type;
use uuid::Uuid;

use super::many::as_a_list;
use super::quota::forgotten;
use super::session::{Param, Session};
use super::statements::{self, Statements};
use crate::failure::failed;
use rollcall_core::model::{DeviceId, EarlierState, RowKey, Stored, Timestamp, Value, Version};
use rollcall_core::schema::{Schema, Table};
use rollcall_core::storage::records::{
    ConflictListing, policy, read_base, read_columns, record_bytes, resolution, write_base, write_columns,
};
use rollcall_core::storage::states::{PartialState, read_state};
use rollcall_core::storage::{
    Conflict, ConflictPage, Replaced, ResponsesMax, Side, StorageError, StorageResult, StoredResponse,
    WantedConflicts,
};

/// Conflicts that are read at once: each may contain two rows and their common ancestor.
const CONFLICTS_AT_ONCE: usize = 25;

/// The records of one owner.
pub(super) struct Records<'a> {
    pub session: &'a mut Session,
    pub schema: &'a Schema,
    pub statements: &'a Statements,
    pub owner: Uuid,
}

impl Records<'_> {
    /// Stores states that are replaced, and forgets the oldest beyond `states_max` of each row. `entries` is
    /// about how many states the owner has. Returns how many bytes the history has grown by.
    pub fn remember(
        &mut self,
        table: &Table,
        rows: &[Replaced<'_>],
        states_max: usize,
        entries: u64,
    ) -> StorageResult<i64> {
        let (owner, tbl) = (self.owner, self.statements.of(table.id).id);
        let shared: [Param<'_>; 2] = [(&owner, Type::UUID), (&tbl, Type::INT4)];
        let states: Vec<(Uuid, &Stored, String)> =
            rows.iter().filter_map(|row| Some((row.key.0, row.before, row.written(table)?))).collect();
        let remember = &self.statements.remember;
        let new = remember.run(self.session, &shared, states.len(), &|at, bound| {
            let (key, row, columns) = &states[at];
            bound.push((Box::new(*key), Type::UUID));
            bound.push((Box::new(row.version.0.cast_signed()), Type::INT8));
            bound.push((Box::new(row.last_update.ms()), Type::INT8));
            bound.push((Box::new(row.changed_by.0), Type::UUID));
            bound.push((Box::new(columns.as_str()), Type::TEXT));
            bound.push((Box::new(row.made_at.map(Timestamp::ms)), Type::INT8));
            bound.push((Box::new(row.claim.at.map(Timestamp::ms)), Type::INT8));
        })?;
        let grown = new.iter().map(|row| row.try_get::<_, i64>(0)).sum::<Result<i64, _>>().map_err(failed)?;
        let keys: Vec<Uuid> = states.iter().map(|(key, ..)| *key).collect();
        Ok(grown - self.forget_surplus(&shared, &keys, states_max, entries)?)
    }

    /// Deletes the states of these rows beyond the newest; returns how many bytes they took.
    fn forget_surplus(
        &mut self,
        shared: &[Param<'_>; 2],
        keys: &[Uuid],
        states_max: usize,
        entries: u64,
    ) -> StorageResult<i64> {
        if keys.is_empty() {
            return Ok(0);
        }
        let states_max = i64::try_from(states_max).unwrap_or(i64::MAX);
        let [owner, tbl] = shared.clone();
        let params: [Param<'_>; 4] = [owner, tbl, (&keys, Type::UUID_ARRAY), (&states_max, Type::INT8)];
        let mut surplus = BTreeMap::new();
        for row in self.session.query(statements::SURPLUS_STATES, &params)? {
            let (key, version): (Uuid, i64) =
                (row.try_get(0).map_err(failed)?, row.try_get(1).map_err(failed)?);
            surplus.insert((key, version), row.try_get::<_, i64>(2).map_err(failed)?);
        }
        let states: Vec<(Uuid, i64)> = surplus.keys().copied().collect();
        let at_once = if as_a_list(states.len(), entries) { states.len() } else { 1 };
        for some in states.chunks(at_once) {
            self.statements.forget_states.run(self.session, shared, some.len(), &|at, bound| {
                let (key, version) = some[at];
                bound.push((Box::new(key), Type::UUID));
                bound.push((Box::new(version), Type::INT8));
            })?;
        }
        Ok(surplus.values().sum())
    }

    /// The states up to the first that shares a value with one that was not kept.
    pub fn earlier(
        &mut self,
        table: &Table,
        key: RowKey,
        stored: Option<&Stored>,
    ) -> StorageResult<Vec<EarlierState>> {
        let params: [Param<'_>; 3] =
            [(&self.owner, Type::UUID), (&self.statements.of(table.id).id, Type::INT4), (&key.0, Type::UUID)];
        let rows = self.session.query(statements::EARLIER, &params)?;
        let mut states: Vec<EarlierState> = Vec::new();
        for row in &rows {
            let next = states.last().map(|state| state.values.as_slice());
            let next = next.or_else(|| stored.and_then(|row| row.values.as_deref()));
            let Some((state, partial)) = state_of(table, row, next)? else { break };
            let Some(values) = partial.complete(|id| self.conflict(id))? else { break };
            states.push(EarlierState { values, ..state });
        }
        Ok(states)
    }

    /// Returns how many bytes they take; those that were noted already take none.
    pub fn note_conflicts(&mut self, conflicts: &[Conflict]) -> StorageResult<i64> {
        let texts: Vec<[Option<String>; 3]> =
            conflicts.iter().map(|conflict| self.texts_of(conflict)).collect();
        let (owner, numbers) = (self.owner, self.statements);
        let shared: [Param<'_>; 1] = [(&owner, Type::UUID)];
        let new = numbers.note_conflicts.run(self.session, &shared, conflicts.len(), &|at, bound| {
            let Conflict { stored, incoming, .. } = &conflicts[at];
            let [base, stored_text, incoming_text] = &texts[at];
            bound.push((Box::new(conflicts[at].id), Type::UUID));
            bound.push((Box::new(conflicts[at].at.ms()), Type::INT8));
            bound.push((Box::new(numbers.of(conflicts[at].table).id), Type::INT4));
            bound.push((Box::new(conflicts[at].key.0), Type::UUID));
            bound.push((Box::new(conflicts[at].policy.name()), Type::TEXT));
            bound.push((Box::new(conflicts[at].resolution.name()), Type::TEXT));
            bound.push((Box::new(base.as_deref()), Type::TEXT));
            bound.push((Box::new(stored_text.as_deref()), Type::TEXT));
            bound.push((Box::new(stored.last_update.ms()), Type::INT8));
            bound.push((Box::new(stored.device.0), Type::UUID));
            bound.push((Box::new(incoming_text.as_deref()), Type::TEXT));
            bound.push((Box::new(incoming.last_update.ms()), Type::INT8));
            bound.push((Box::new(incoming.device.0), Type::UUID));
            bound.push((Box::new(conflicts[at].stored_made_at.map(Timestamp::ms)), Type::INT8));
        })?;
        let new = new.iter().map(|row| row.try_get::<_, Uuid>(0));
        let mut new: HashSet<Uuid> = new.collect::<Result<_, _>>().map_err(failed)?;
        let noted = conflicts.iter().zip(&texts).filter(|(conflict, _)| new.remove(&conflict.id));
        Ok(noted.map(|(_, texts)| record_bytes(texts.iter().flatten().map(String::as_str))).sum())
    }

    /// The common ancestor and both sides of a conflict, as they are kept.
    fn texts_of(&self, conflict: &Conflict) -> [Option<String>; 3] {
        let table = self.schema.at(conflict.table);
        let side = |side: &Side| side.values.as_ref().map(|values| write_columns(table, values));
        [write_base(table, conflict), side(&conflict.stored), side(&conflict.incoming)]
    }

    pub fn note_restored(&mut self, id: Uuid, at: Timestamp) -> StorageResult<()> {
        let params: [Param<'_>; 3] = [(&self.owner, Type::UUID), (&id, Type::UUID), (&at.ms(), Type::INT8)];
        self.session.execute(statements::NOTE_RESTORED, &params).map(drop)
    }

    pub fn conflicts(&mut self, wanted: &WantedConflicts) -> StorageResult<ConflictPage> {
        let tbl = wanted.table.map(|table| self.statements.of(table).id);
        let key = wanted.key.map(|key| key.0);
        // Tables may share rows of one key, but few: the page leaves out those of other tables.
        let (sql, by): (_, Option<Param<'_>>) = match (&key, &tbl) {
            (Some(key), _) => (statements::CONFLICTS_OF_KEY, Some((key, Type::UUID))),
            (None, Some(tbl)) => (statements::CONFLICTS_OF_TABLE, Some((tbl, Type::INT4))),
            (None, None) => (statements::CONFLICTS, None),
        };
        let mut listing = ConflictListing::new(wanted);
        loop {
            let (at, id) = listing.last().map_or((i64::MAX, Uuid::max()), |(at, id)| (at.ms(), id));
            let fixed: [Param<'_>; 4] = [
                (&self.owner, Type::UUID),
                (&at, Type::INT8),
                (&id, Type::UUID),
                (&(CONFLICTS_AT_ONCE as i64), Type::INT8),
            ];
            let params: Vec<_> = fixed.into_iter().chain(by.clone()).collect();
            let rows = self.session.query(sql, &params)?;
            for row in &rows {
                if listing.is_full() {
                    return Ok(listing.end(true));
                }
                let at = Timestamp::from_ms(row.try_get(1).map_err(failed)?);
                listing.look(at, row.try_get(0).map_err(failed)?, stored_bytes(row)?, self.conflict_of(row)?);
            }
            if rows.len() < CONFLICTS_AT_ONCE {
                return Ok(listing.end(false));
            }
        }
    }

    pub fn conflict(&mut self, id: Uuid) -> StorageResult<Option<Conflict>> {
        let params: [Param<'_>; 2] = [(&self.owner, Type::UUID), (&id, Type::UUID)];
        let row = self.session.row(statements::CONFLICT, &params)?;
        row.map_or(Ok(None), |row| self.conflict_of(&row))
    }

    /// Reads a conflict from a row; `None` if its table is no longer declared.
    fn conflict_of(&self, row: &Row) -> StorageResult<Option<Conflict>> {
        let Some(place) = self.statements.table(row.try_get(2).map_err(failed)?) else { return Ok(None) };
        let table = &self.schema.tables()[place];
        let values = |at: usize| -> StorageResult<Option<Vec<Option<Value>>>> {
            row.try_get::<_, Option<&str>>(at).map_err(failed)?.map(|text| columns(table, text)).transpose()
        };
        let side = |at: usize| -> StorageResult<Side> {
            Ok(Side {
                values: values(at)?,
                last_update: Timestamp::from_ms(row.try_get(at + 1).map_err(failed)?),
                device: DeviceId(row.try_get(at + 2).map_err(failed)?),
            })
        };
        let resolution = resolution(row.try_get(5).map_err(failed)?);
        let stored = side(7)?;
        Ok(Some(Conflict {
            id: row.try_get(0).map_err(failed)?,
            at: Timestamp::from_ms(row.try_get(1).map_err(failed)?),
            table: table.id,
            key: RowKey(row.try_get(3).map_err(failed)?),
            policy: policy(row.try_get(4).map_err(failed)?),
            resolution: resolution.ok_or_else(|| StorageError::Engine("an unknown resolution".into()))?,
            base: base_of(table, row, &stored)?,
            stored,
            incoming: side(10)?,
            restored_at: row.try_get::<_, Option<i64>>(13).map_err(failed)?.map(Timestamp::from_ms),
            stored_made_at: row.try_get::<_, Option<i64>>(14).map_err(failed)?.map(Timestamp::from_ms),
        }))
    }

    /// Returns how many bytes the stored responses have grown by.
    pub fn store_response(
        &mut self,
        device: DeviceId,
        key: &str,
        response: &StoredResponse,
        most: ResponsesMax,
    ) -> StorageResult<i64> {
        let shared: [Param<'_>; 3] = [(&self.owner, Type::UUID), (&device.0, Type::UUID), (&key, Type::TEXT)];
        let others_max: [Param<'_>; 1] = [(&(most.responses.saturating_sub(1) as i64), Type::INT8)];
        let params: Vec<_> = shared.iter().chain(&others_max).cloned().collect();
        let (_, mut gone) = forgotten(self.session, statements::FORGET_RESPONSES, &params)?;
        let kept: [Param<'_>; 4] = [
            (&response.at.ms(), Type::INT8),
            (&response.version.0.cast_signed(), Type::INT8),
            (&&response.body_hash[..], Type::BYTEA),
            (&response.body, Type::BYTEA),
        ];
        let params: Vec<_> = shared.iter().chain(&kept).cloned().collect();
        self.session.execute(statements::STORE_RESPONSE, &params)?;
        if most.is_long(response) {
            let beside: [Param<'_>; 1] = [(&most.bytes_beside(response), Type::INT8)];
            let params: Vec<_> = shared.iter().chain(&beside).cloned().collect();
            gone += forgotten(self.session, statements::FORGET_LONG_RESPONSES, &params)?.1;
        }
        Ok(response.record_bytes(key) - gone)
    }
}

/// The state of a row of `EARLIER`, and apart from it its values; `next` is the state after it.
fn state_of(
    table: &Table,
    row: &Row,
    next: Option<&[Value]>,
) -> StorageResult<Option<(EarlierState, PartialState)>> {
    let columns = read_state(table, row.try_get(3).map_err(failed)?, next);
    let Some(partial) = columns.map_err(|error| StorageError::Engine(Box::new(error)))? else {
        return Ok(None);
    };
    let state = EarlierState {
        version: Version(row.try_get::<_, i64>(0).map_err(failed)?.cast_unsigned()),
        last_update: Timestamp::from_ms(row.try_get(1).map_err(failed)?),
        changed_by: DeviceId(row.try_get(2).map_err(failed)?),
        values: Vec::new(),
        made_at: row.try_get::<_, Option<i64>>(4).map_err(failed)?.map(Timestamp::from_ms),
        claimed_at: row.try_get::<_, Option<i64>>(5).map_err(failed)?.map(Timestamp::from_ms),
    };
    Ok(Some((state, partial)))
}

/// The row that both sides of a conflict began with.
fn base_of(table: &Table, row: &Row, stored: &Side) -> StorageResult<Option<Vec<Option<Value>>>> {
    let text: Option<&str> = row.try_get(6).map_err(failed)?;
    let base = text.map(|text| read_base(table, text, stored)).transpose();
    base.map_err(|error| StorageError::Engine(Box::new(error)))
}

/// How many bytes the sides of a conflict take in the database.
fn stored_bytes(row: &Row) -> StorageResult<usize> {
    const TEXTS: [usize; 3] = [6, 7, 10];
    let bytes = |at: usize| Ok(row.try_get::<_, Option<&str>>(at).map_err(failed)?.map_or(0, str::len));
    TEXTS.into_iter().map(bytes).sum()
}

/// Loads the response of an idempotency key.
pub(super) fn stored_response(
    session: &mut Session,
    owner: Uuid,
    device: DeviceId,
    key: &str,
) -> StorageResult<Option<StoredResponse>> {
    let params: [Param<'_>; 3] = [(&owner, Type::UUID), (&device.0, Type::UUID), (&key, Type::TEXT)];
    let Some(row) = session.row(statements::RESPONSE, &params)? else { return Ok(None) };
    let hash: Vec<u8> = row.try_get(0).map_err(failed)?;
    let hash = hash.try_into().map_err(|_| StorageError::Engine("a hash of another size".into()))?;
    Ok(Some(StoredResponse {
        body_hash: hash,
        body: row.try_get(1).map_err(failed)?,
        version: Version(row.try_get::<_, i64>(2).map_err(failed)?.cast_unsigned()),
        at: Timestamp::from_ms(row.try_get(3).map_err(failed)?),
    }))
}

fn columns(table: &Table, text: &str) -> StorageResult<Vec<Option<Value>>> {
    read_columns(table, text).map_err(|error| StorageError::Engine(Box::new(error)))
}

use std::collections::HashMap;

use postgres::types::Type;
use uuid::Uuid;

use super::entries::{DELETED, ENTRY_COLUMNS, columns, entry, stored, unsigned};
use super::many::{PAIRED_MAX, as_a_list};
use super::owner::first_version;
pub(super) use super::owner::{load_owner, lock, make, state_of};
use super::quota::{OwnPast, PutDigest};
use super::records::{self, Records};
use super::session::{Param, Session};
use super::statements::{self, Statements, TableStatements};
use super::{deletions, entries, installations, purge, quota};
use crate::failure::failed;
use rollcall_core::digest::Digest;
use rollcall_core::model::{DeviceId, EarlierState, Owner, RowKey, Stored, Timestamp, Value, Version};
use rollcall_core::schema::{Schema, Table, TableId};
use rollcall_core::storage::ledger::day;
use rollcall_core::storage::quota::{RECORD_BYTES, fits};
use rollcall_core::storage::{
    ChangeSink, Conflict, ConflictPage, DUE_AT_ONCE, DeleteWindow, FeedPosition, Installation, LeaseState,
    OwnerState, PastBytes, PurgeTerms, Purged, ReadTxn, Replaced, ResponsesMax, StorageError, StorageResult,
    StoredResponse, Walked, WantedConflicts, WriteTxn,
};

/// One owner's rows inside one transaction.
pub(super) struct Txn<'a> {
    pub(super) session: &'a mut Session,
    schema: &'a Schema,
    statements: &'a Statements,
    pub(super) owner: Uuid,
    state: OwnerState,
    /// The owner's stored state.
    written: OwnerState,
    /// Whether this transaction has set the owner's new state.
    has_advanced: bool,
    lease: Option<LeaseState>,
    /// Cached, since a sync reads them several times, and each read is a round trip.
    digests: Option<Vec<Digest>>,
    /// Digests that are not written down yet: the last one goes along with the owner's row.
    put_digests: Vec<PutDigest>,
    /// The last day whose versions are dated.
    dated: Option<i64>,
    /// The id of this transaction, stored in the owner's row if the version is raised.
    id: Uuid,
    /// The device and key of a response that this transaction stores.
    pub kept: Option<(DeviceId, String)>,
}

/// Rows of the ledger, or of a table, that are read at once.
const ROWS_AT_ONCE: usize = 1_000;

impl<'a> Txn<'a> {
    pub fn begin_read(
        session: &'a mut Session,
        schema: &'a Schema,
        statements: &'a Statements,
        owner: Owner,
    ) -> StorageResult<Self> {
        let (state, lease) = match load_owner(session, owner, statements::OWNER)? {
            Some(known) => (known.state, Some(known.lease)),
            None => {
                let first = first_version(session)?;
                (OwnerState::new(first), None)
            }
        };
        Ok(Self {
            session,
            schema,
            statements,
            owner: owner.0,
            state,
            written: state,
            has_advanced: false,
            lease,
            digests: None,
            put_digests: Vec::new(),
            dated: None,
            id: Uuid::nil(),
            kept: None,
        })
    }

    /// Locks the owner's row, and creates it if the owner is new.
    pub fn begin_write(
        session: &'a mut Session,
        schema: &'a Schema,
        statements: &'a Statements,
        owner: Owner,
    ) -> StorageResult<Self> {
        let known = lock(session, owner)?;
        Ok(Self {
            session,
            schema,
            statements,
            owner: owner.0,
            state: known.state,
            written: known.state,
            has_advanced: false,
            lease: Some(known.lease),
            digests: None,
            put_digests: Vec::new(),
            dated: known.dated,
            id: Uuid::new_v4(),
            kept: None,
        })
    }

    pub fn id(&self) -> Uuid {
        self.id
    }

    fn table(&self, table: TableId) -> (&'a Table, &'a TableStatements) {
        (self.schema.at(table), self.statements.of(table))
    }

    fn records(&mut self) -> Records<'_> {
        let Self { session, schema, statements, owner, .. } = self;
        Records { session, schema, statements, owner: *owner }
    }

    /// Writes the owner's state, in one statement, if it has changed.
    pub fn finish(&mut self) -> StorageResult<()> {
        if self.session.failure().is_some() || (self.state == self.written && !self.has_advanced) {
            return Ok(()); // a failed transaction accepts no statement
        }
        let digest = self.put_digests.pop();
        self.write_digests()?;
        let advance = self.has_advanced.then_some(quota::Advance { by: self.id, dated: self.dated, digest });
        quota::put_state(self.session, self.owner, self.written.version, &self.state, advance)
    }

    fn write_digests(&mut self) -> StorageResult<()> {
        for (tbl, rows, root) in std::mem::take(&mut self.put_digests) {
            let params: [Param<'_>; 4] =
                [(&self.owner, Type::UUID), (&tbl, Type::INT4), (&rows, Type::INT8), (&root, Type::INT8)];
            self.session.execute(statements::PUT_DIGEST, &params)?;
        }
        Ok(())
    }

    /// The columns of live rows of one table.
    fn values(&mut self, table: &Table, keys: &[Uuid]) -> StorageResult<HashMap<Uuid, Vec<Value>>> {
        let sql = &self.statements.of(table.id).values;
        let rows = self.session.query(sql, &[(&self.owner, Type::UUID), (&keys, Type::UUID_ARRAY)])?;
        rows.iter().map(|row| Ok((row.try_get(0).map_err(failed)?, columns(table, row, 1)?))).collect()
    }

    /// Deletes rows of an application's table.
    fn remove(&mut self, sql: &TableStatements, keys: &[Uuid]) -> StorageResult<()> {
        if keys.is_empty() {
            return Ok(());
        }
        if as_a_list(keys.len(), self.state.rows) {
            let params: [Param<'_>; 2] = [(&self.owner, Type::UUID), (&keys, Type::UUID_ARRAY)];
            return self.session.execute(&sql.remove, &params).map(drop);
        }
        for key in keys {
            let params: [Param<'_>; 2] = [(&self.owner, Type::UUID), (key, Type::UUID)];
            self.session.execute(&sql.remove_one, &params)?;
        }
        Ok(())
    }
}

impl ReadTxn for Txn<'_> {
    fn state(&self) -> OwnerState {
        self.state
    }

    fn manifest(
        &mut self,
        table: TableId,
        after: Option<RowKey>,
        rows_max: usize,
        each: &mut dyn FnMut(RowKey, Timestamp),
    ) -> StorageResult<()> {
        let (_, sql) = self.table(table);
        let mut next = after.map_or(Some(Uuid::nil()), |key| successor(key.0));
        let mut left = rows_max;
        while let (Some(from), true) = (next, left > 0) {
            let limit = left.min(ROWS_AT_ONCE * 10);
            let params: [Param<'_>; 4] = [
                (&self.owner, Type::UUID),
                (&sql.id, Type::INT4),
                (&from, Type::UUID),
                (&(limit as i64), Type::INT8),
            ];
            let rows = self.session.query(statements::MANIFEST, &params)?;
            for row in &rows {
                each(
                    RowKey(row.try_get(0).map_err(failed)?),
                    Timestamp::from_ms(row.try_get(1).map_err(failed)?),
                );
            }
            left -= rows.len();
            next = match rows.last() {
                Some(last) if rows.len() == limit => successor(last.try_get(0).map_err(failed)?),
                _ => None,
            };
        }
        Ok(())
    }

    fn nth_after(
        &mut self,
        table: TableId,
        after: Option<RowKey>,
        places: u64,
    ) -> StorageResult<Option<RowKey>> {
        let (_, sql) = self.table(table);
        let from = after.map_or(Some(Uuid::nil()), |key| successor(key.0));
        let (Some(from), Some(before)) = (from, places.checked_sub(1)) else { return Ok(None) };
        let before = i64::try_from(before).unwrap_or(i64::MAX);
        let params: [Param<'_>; 4] =
            [(&self.owner, Type::UUID), (&sql.id, Type::INT4), (&from, Type::UUID), (&before, Type::INT8)];
        let row = self.session.row(statements::NTH_KEY, &params)?;
        Ok(row.map(|row| row.try_get(0)).transpose().map_err(failed)?.map(RowKey))
    }

    fn walk(&mut self, table: TableId, after: Option<RowKey>, entries_max: u64) -> StorageResult<Walked> {
        let Some(from) = after.map_or(Some(Uuid::nil()), |key| successor(key.0)) else {
            return Ok(Walked::default());
        };
        entries::walk(self.session, self.owner, self.table(table).1.id, from, entries_max)
    }

    fn load(&mut self, table: TableId, keys: &[RowKey]) -> StorageResult<Vec<Option<Stored>>> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let (declared, sql) = self.table(table);
        let keys_param: Vec<Uuid> = keys.iter().map(|key| key.0).collect();
        let params: [Param<'_>; 3] =
            [(&self.owner, Type::UUID), (&sql.id, Type::INT4), (&keys_param, Type::UUID_ARRAY)];
        let rows = self.session.query(&sql.load, &params)?;
        let mut found = HashMap::with_capacity(rows.len());
        for row in &rows {
            found.insert(RowKey(row.try_get(0).map_err(failed)?), stored(declared, row)?);
        }
        Ok(keys.iter().map(|key| found.get(key).cloned()).collect())
    }

    fn digests(&mut self) -> StorageResult<Vec<Digest>> {
        if let Some(digests) = &self.digests {
            return Ok(digests.clone());
        }
        self.write_digests()?;
        let mut digests = vec![Digest::default(); self.schema.tables().len()];
        for row in self.session.query(statements::DIGESTS, &[(&self.owner, Type::UUID)])? {
            if let Some(place) = self.statements.table(row.try_get(0).map_err(failed)?) {
                digests[place] = Digest {
                    count: unsigned(&row, 1).map_err(failed)?,
                    root: unsigned(&row, 2).map_err(failed)?,
                };
            }
        }
        Ok(self.digests.insert(digests).clone())
    }

    fn changes(
        &mut self,
        after: FeedPosition,
        until: Version,
        each: &mut ChangeSink<'_>,
    ) -> StorageResult<()> {
        let mut mark = (after.version.0.cast_signed(), i32::MAX, Uuid::nil());
        if let Some((table, key)) = after.within {
            mark = (mark.0, self.statements.of(table).id, key.0);
        }
        let (until, limit) = (until.0.cast_signed(), ROWS_AT_ONCE as i64);
        loop {
            let params: [Param<'_>; 6] = [
                (&self.owner, Type::UUID),
                (&mark.0, Type::INT8),
                (&mark.1, Type::INT4),
                (&mark.2, Type::UUID),
                (&until, Type::INT8),
                (&limit, Type::INT8),
            ];
            let rows = self.session.query(statements::CHANGES, &params)?;
            let mut entries = Vec::with_capacity(rows.len());
            let mut live = HashMap::<usize, Vec<Uuid>>::new();
            for row in &rows {
                let (key, tbl): (Uuid, i32) =
                    (row.try_get(0).map_err(failed)?, row.try_get(ENTRY_COLUMNS).map_err(failed)?);
                mark = (row.try_get(1).map_err(failed)?, tbl, key);
                let Some(place) = self.statements.table(tbl) else { continue };
                let is_live = !row.try_get::<_, bool>(DELETED).map_err(failed)?;
                if is_live {
                    live.entry(place).or_default().push(key);
                }
                entries.push((place, key, is_live, entry(row)?));
            }
            let mut values = HashMap::new();
            for (place, keys) in live {
                values.insert(place, self.values(&self.schema.tables()[place], &keys)?);
            }
            for (place, key, is_live, mut entry) in entries {
                if is_live {
                    let held = values.get_mut(&place).and_then(|values| values.remove(&key));
                    entry.values = Some(held.ok_or_else(|| lost(key))?);
                }
                if !each(self.schema.tables()[place].id, RowKey(key), &entry) {
                    return Ok(());
                }
            }
            if rows.len() < ROWS_AT_ONCE {
                return Ok(());
            }
        }
    }

    fn earlier(
        &mut self,
        table: TableId,
        key: RowKey,
        stored: Option<&Stored>,
    ) -> StorageResult<Vec<EarlierState>> {
        let table = self.schema.at(table);
        self.records().earlier(table, key, stored)
    }

    fn stored_response(&mut self, device: DeviceId, key: &str) -> StorageResult<Option<StoredResponse>> {
        records::stored_response(self.session, self.owner, device, key)
    }

    fn counter(&mut self, device: DeviceId) -> StorageResult<Option<u64>> {
        installations::counter(self.session, self.owner, device)
    }

    fn installations(&mut self) -> StorageResult<Vec<Installation>> {
        installations::all(self.session, self.owner)
    }

    fn delete_windows(&mut self, device: DeviceId) -> StorageResult<Vec<(TableId, DeleteWindow)>> {
        deletions::windows(self.session, self.schema, self.statements, self.owner, device)
    }

    fn conflicts(&mut self, wanted: &WantedConflicts) -> StorageResult<ConflictPage> {
        self.records().conflicts(wanted)
    }

    fn conflict(&mut self, id: Uuid) -> StorageResult<Option<Conflict>> {
        self.records().conflict(id)
    }

    fn count_past(&mut self) -> StorageResult<PastBytes> {
        quota::count(self.session, self.owner)
    }

    fn referring(
        &mut self,
        table: TableId,
        column: usize,
        parent: RowKey,
        rows_max: usize,
    ) -> StorageResult<Vec<RowKey>> {
        let (_, sql) = self.table(table);
        let Some(sql) = &sql.referring[column] else { return Ok(Vec::new()) };
        let rows_max = i64::try_from(rows_max).unwrap_or(i64::MAX);
        let params: [Param<'_>; 3] =
            [(&self.owner, Type::UUID), (&parent.0, Type::UUID), (&rows_max, Type::INT8)];
        let rows = self.session.query(sql, &params)?;
        rows.iter().map(|row| Ok(RowKey(row.try_get(0).map_err(failed)?))).collect()
    }

    fn referring_each(
        &mut self,
        table: TableId,
        column: usize,
        parents: &[(RowKey, usize)],
    ) -> StorageResult<Vec<Vec<RowKey>>> {
        let (_, sql) = self.table(table);
        let mut found = vec![Vec::new(); parents.len()];
        let Some(sql) = &sql.referring_each[column] else { return Ok(found) };
        let keys: Vec<Uuid> = parents.iter().map(|(key, _)| key.0).collect();
        let most: Vec<i64> =
            parents.iter().map(|(_, most)| i64::try_from(*most).unwrap_or(i64::MAX)).collect();
        let params: [Param<'_>; 3] =
            [(&self.owner, Type::UUID), (&keys, Type::UUID_ARRAY), (&most, Type::INT8_ARRAY)];
        for row in self.session.query(sql, &params)? {
            let place: i64 = row.try_get(0).map_err(failed)?;
            let place = usize::try_from(place - 1).ok().and_then(|place| found.get_mut(place));
            let key = RowKey(row.try_get(1).map_err(failed)?);
            place.ok_or_else(|| lost(key.0))?.push(key);
        }
        Ok(found)
    }
}

impl WriteTxn for Txn<'_> {
    fn lease(&self) -> Option<&LeaseState> {
        self.lease.as_ref()
    }

    fn put(&mut self, table: TableId, rows: &[(RowKey, &Stored)]) -> StorageResult<()> {
        let (statements, (_, sql)) = (self.statements, self.table(table));
        let owner = self.owner;
        let shared: [Param<'_>; 2] = [(&owner, Type::UUID), (&sql.id, Type::INT4)];
        let live = rows.iter().filter_map(|(key, row)| row.values.as_ref().map(|values| (*key, values)));
        let live: Vec<(RowKey, &Vec<Value>)> = live.collect();
        let entry = |at: usize, bound: &mut Vec<_>| entries::bind(&rows[at], bound);
        let row = |at: usize, bound: &mut Vec<_>| entries::bind_row(live[at], &sql.types, bound);
        if live.len() == rows.len() && rows.len() <= PAIRED_MAX {
            return sql.put_both.run_pair(self.session, &shared, rows.len(), [&entry, &row]);
        }
        statements.put_entries.run(self.session, &shared, rows.len(), &entry)?;
        sql.put.run(self.session, &shared[..1], live.len(), &row)?;
        let gone: Vec<Uuid> =
            rows.iter().filter(|(_, row)| row.is_tombstone()).map(|(key, _)| key.0).collect();
        self.remove(sql, &gone)
    }

    fn advance(
        &mut self,
        state: OwnerState,
        digests: &[(TableId, Digest)],
        now: Timestamp,
    ) -> StorageResult<()> {
        let (day, before) = (day(now), self.state.version.0.cast_signed());
        if self.dated.is_none_or(|dated| dated < day) {
            let params: [Param<'_>; 3] =
                [(&self.owner, Type::UUID), (&day, Type::INT8), (&before, Type::INT8)];
            self.session.execute(statements::DATE, &params)?;
            self.dated = Some(day);
        }
        for (table, digest) in digests {
            if let Some(held) = &mut self.digests {
                held[table.index()] = *digest;
            }
            let (count, root) = (digest.count.cast_signed(), digest.root.cast_signed());
            let tbl = self.statements.of(*table).id;
            self.put_digests.retain(|(of, ..)| *of != tbl);
            self.put_digests.push((tbl, count, root));
        }
        (self.state, self.has_advanced) = (OwnerState { due_at: self.state.due_at, ..state }, true);
        self.state.ages_from(now);
        Ok(())
    }

    fn show_ahead(&mut self, until: Version) -> StorageResult<()> {
        let params: [Param<'_>; 2] = [(&self.owner, Type::UUID), (&until.0.cast_signed(), Type::INT8)];
        self.session.execute(statements::SHOW_AHEAD, &params)?;
        (self.state.shown_ahead, self.written.shown_ahead) = (until, until);
        Ok(())
    }

    fn remember(&mut self, table: TableId, rows: &[Replaced<'_>], states_max: usize) -> StorageResult<()> {
        let table = self.schema.at(table);
        // Each state takes at least this many bytes.
        let entries = self.state.past.history.max(0).cast_unsigned() / RECORD_BYTES;
        self.records()
            .remember(table, rows, states_max, entries)
            .map(|bytes| self.state.past.history += bytes)
    }

    fn note_conflict(&mut self, conflict: &Conflict) -> StorageResult<()> {
        self.note_conflicts(std::slice::from_ref(conflict))
    }

    fn note_conflicts(&mut self, conflicts: &[Conflict]) -> StorageResult<()> {
        conflicts.iter().for_each(|conflict| self.state.ages_from(conflict.at));
        self.records().note_conflicts(conflicts).map(|bytes| self.state.past.conflicts += bytes)
    }

    fn note_restored(&mut self, id: Uuid, at: Timestamp) -> StorageResult<()> {
        self.records().note_restored(id, at)
    }

    fn store_response(
        &mut self,
        device: DeviceId,
        key: &str,
        response: &StoredResponse,
        most: ResponsesMax,
    ) -> StorageResult<()> {
        self.kept = Some((device, key.to_owned()));
        self.state.ages_from(response.at);
        self.records()
            .store_response(device, key, response, most)
            .map(|bytes| self.state.past.responses += bytes)
    }

    fn acknowledge(&mut self, device: DeviceId, version: Version, now: Timestamp) -> StorageResult<()> {
        self.state.ages_from(now);
        let params: [Param<'_>; 4] = [
            (&self.owner, Type::UUID),
            (&device.0, Type::UUID),
            (&version.0.cast_signed(), Type::INT8),
            (&now.ms(), Type::INT8),
        ];
        self.session.execute(statements::ACKNOWLEDGE, &params).map(drop)
    }

    fn forget_device(&mut self, device: DeviceId) -> StorageResult<()> {
        let params: [Param<'_>; 2] = [(&self.owner, Type::UUID), (&device.0, Type::UUID)];
        self.session.execute(statements::FORGET_DEVICE, &params)?;
        self.state.due_at = Some(DUE_AT_ONCE);
        deletions::forget(self.session, self.owner, device)
    }

    fn put_delete_window(
        &mut self,
        device: DeviceId,
        table: TableId,
        window: &DeleteWindow,
    ) -> StorageResult<()> {
        self.state.ages_from(window.began);
        deletions::put(self.session, self.owner, device, self.statements.of(table).id, window)
    }

    fn raise_installation(&mut self, one: &Installation) -> StorageResult<bool> {
        self.state.ages_from(one.seen_at);
        installations::put(self.session, installations::RAISE, self.owner, one)
    }

    fn add_installation(&mut self, one: &Installation) -> StorageResult<()> {
        self.state.ages_from(one.seen_at);
        installations::put(self.session, installations::ADD, self.owner, one).map(drop)
    }

    fn forget_installation(&mut self, device: DeviceId) -> StorageResult<()> {
        self.state.past.responses -= installations::forget(self.session, self.owner, device)?;
        Ok(())
    }

    fn make_room(&mut self, more: u64, max: u64, entries_max: usize) -> StorageResult<bool> {
        let mut past = OwnPast { session: self.session, owner: self.owner, bytes: &mut self.state.past };
        fits(&mut past, more, max, entries_max)
    }

    fn set_past(&mut self, past: PastBytes) -> StorageResult<()> {
        self.state.past = past;
        Ok(())
    }

    fn purge(&mut self, terms: &PurgeTerms, rows_max: usize) -> StorageResult<Purged> {
        purge::purge(self.session, self.owner, &mut self.state, terms, rows_max)
    }
}

pub(super) fn successor(key: Uuid) -> Option<Uuid> {
    key.as_u128().checked_add(1).map(Uuid::from_u128)
}

fn lost(key: Uuid) -> StorageError {
    StorageError::Engine(format!("the ledger knows {key} and its table does not").into())
}

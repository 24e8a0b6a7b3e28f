use rusqlite::types::ValueRef;
use rusqlite::{CachedStatement, Connection, OptionalExtension, Row, params};
use uuid::Uuid;

use super::purge;
use super::quota::{self, OwnPast};
use super::records::Records;
use super::statements::{self, Statements, TableStatements};
use super::values::{self, Bound, Room};
use super::{deletions, installations};
use crate::failed;
use rollcall_core::broken;
use rollcall_core::digest::{Digest, Seed};
use rollcall_core::model::{Claim, DeviceId, EarlierState, Owner, RowKey, Stored, Timestamp, Value, Version};
use rollcall_core::schema::{Column, Schema, Table, TableId};
use rollcall_core::storage::ledger::{aware_devices, aware_devices_bytes, day, lifetimes, lifetimes_bytes};
use rollcall_core::storage::quota::fits;
use rollcall_core::storage::{
    ChangeSink, Conflict, ConflictPage, DUE_AT_ONCE, DeleteWindow, FeedPosition, Installation, OwnerState,
    PastBytes, PurgeTerms, Purged, ReadTxn, Replaced, ResponsesMax, StorageError, StorageResult,
    StoredResponse, Walked, WantedConflicts, WriteTxn,
};

/// One owner's rows inside one SQLite transaction.
pub(super) struct Txn<'a> {
    pub(super) conn: &'a Connection,
    schema: &'a Schema,
    statements: &'a Statements,
    pub(super) whose: Owner,
    /// The owner's number; `None` for an owner without any write.
    pub(super) owner: Option<i64>,
    state: OwnerState,
    /// The owner's stored state.
    written: OwnerState,
}

impl<'a> Txn<'a> {
    pub fn begin_read(
        conn: &'a Connection,
        schema: &'a Schema,
        statements: &'a Statements,
        owner: Owner,
    ) -> StorageResult<Self> {
        let whose = owner;
        let (owner, state) = match load_owner(conn, owner).map_err(failed)? {
            Some((id, state)) => (Some(id), state),
            None => (None, OwnerState::new(first_version(conn)?)),
        };
        Ok(Self { conn, schema, statements, whose, owner, state, written: state })
    }

    pub fn begin_write(
        conn: &'a Connection,
        schema: &'a Schema,
        statements: &'a Statements,
        owner: Owner,
    ) -> StorageResult<Self> {
        let mut txn = Self::begin_read(conn, schema, statements, owner)?;
        if txn.owner.is_none() {
            let first = txn.state.version.0.cast_signed();
            let mut seed = [0; 16];
            getrandom::fill(&mut seed).map_err(|error| StorageError::Engine(Box::new(error)))?;
            let mut add = conn.prepare_cached(statements::ADD_OWNER).map_err(failed)?;
            let id =
                add.query_row(params![owner.0.as_bytes(), first, seed], |row| row.get(0)).map_err(failed)?;
            (txn.owner, txn.state.seed) = (Some(id), Some(Seed(seed)));
            txn.written = txn.state;
        }
        Ok(txn)
    }

    fn table(&self, table: TableId) -> (&'a Table, &'a TableStatements) {
        (self.schema.at(table), self.statements.of(table))
    }

    /// The owner's records; `None` for an owner without any write.
    fn records(&self) -> Option<Records<'a>> {
        let Self { conn, schema, statements, owner, .. } = *self;
        Some(Records { conn, schema, statements, owner: owner? })
    }

    /// The owner's records inside a write, where the owner exists.
    fn own_records(&self) -> StorageResult<Records<'a>> {
        self.records().ok_or_else(|| StorageError::Engine("a read transaction was asked to write".into()))
    }

    /// The number of a device, which is created if necessary.
    fn device(&self, device: DeviceId) -> StorageResult<i64> {
        let bytes = device.0.as_bytes();
        let known = self
            .conn
            .prepare_cached(statements::DEVICE)
            .map_err(failed)?
            .query_row([bytes], |row| row.get(0))
            .optional()
            .map_err(failed)?;
        match known {
            Some(id) => Ok(id),
            None => self
                .conn
                .prepare_cached(statements::ADD_DEVICE)
                .map_err(failed)?
                .query_row([bytes], |row| row.get(0))
                .map_err(failed),
        }
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
        let Some(owner) = self.owner else { return Ok(()) };
        let (_, sql) = self.table(table);
        // Every key is greater than the empty blob.
        let after = after.as_ref().map_or(&[][..], |key| key.0.as_bytes());
        let rows_max = i64::try_from(rows_max).unwrap_or(i64::MAX);
        let mut statement = self.conn.prepare_cached(statements::MANIFEST).map_err(failed)?;
        let mut rows = statement.query(params![owner, sql.id, after, rows_max]).map_err(failed)?;
        while let Some(row) = rows.next().map_err(failed)? {
            let key = values::key(row.get_ref(0).map_err(failed)?)
                .map_err(rusqlite::Error::from)
                .map_err(failed)?;
            each(key, Timestamp::from_ms(row.get(1).map_err(failed)?));
        }
        Ok(())
    }

    fn walk(&mut self, table: TableId, after: Option<RowKey>, entries_max: u64) -> StorageResult<Walked> {
        let (Some(owner), (_, sql)) = (self.owner, self.table(table)) else { return Ok(Walked::default()) };
        let after = after.as_ref().map_or(&[][..], |key| key.0.as_bytes());
        let entries_max = i64::try_from(entries_max).unwrap_or(i64::MAX);
        let mut statement = self.conn.prepare_cached(statements::WALK).map_err(failed)?;
        let walked = statement.query_row(params![owner, sql.id, after, entries_max], |row| {
            let number = |at| row.get::<_, i64>(at).map(i64::cast_unsigned);
            let last = row.get_ref(2)?;
            let last = if last == ValueRef::Null { None } else { Some(values::key(last)?) };
            Ok(Walked { entries: number(0)?, live: number(1)?, last })
        });
        walked.map_err(failed)
    }

    fn load(&mut self, table: TableId, keys: &[RowKey]) -> StorageResult<Vec<Option<Stored>>> {
        let Some(owner) = self.owner else { return Ok(vec![None; keys.len()]) };
        let (declared, sql) = self.table(table);
        let mut load = self.conn.prepare_cached(&sql.load).map_err(failed)?;
        let mut following = self.conn.prepare_cached(statements::FOLLOWING_KEY).map_err(failed)?;
        // Most batches contain only new rows, or none. After a key without a row, the next existing key is
        // looked up first: all keys before it do not exist either.
        let (mut looks, mut gap) = (true, None::<(RowKey, Option<RowKey>)>);
        let mut held = Vec::with_capacity(keys.len());
        for key in keys {
            if gap.is_some_and(|(from, to)| from <= *key && to.is_none_or(|to| *key < to)) {
                held.push(None);
                continue;
            }
            let place = params![owner, sql.id, key.0.as_bytes()];
            if looks && !broken::is("owner_forgotten") {
                let found = following
                    .query_row(place, |row| Ok(values::key(row.get_ref(0)?)?))
                    .optional()
                    .map_err(failed)?;
                if found != Some(*key) {
                    gap = Some((*key, found));
                    held.push(None);
                    continue;
                }
            }
            let row = load.query_row(place, |row| stored(declared, row)).optional().map_err(failed)?;
            looks = row.is_none();
            held.push(row);
        }
        Ok(held)
    }

    fn digests(&mut self) -> StorageResult<Vec<Digest>> {
        let mut digests = vec![Digest::default(); self.schema.tables().len()];
        let mut statement = self.conn.prepare_cached(statements::DIGESTS).map_err(failed)?;
        let mut rows = statement.query([self.owner]).map_err(failed)?;
        while let Some(row) = rows.next().map_err(failed)? {
            if let Some(place) = self.statements.table(row.get(0).map_err(failed)?) {
                let number = |at| row.get::<_, i64>(at).map(i64::cast_unsigned);
                digests[place] =
                    Digest { count: number(1).map_err(failed)?, root: number(2).map_err(failed)? };
            }
        }
        Ok(digests)
    }

    fn changes(
        &mut self,
        after: FeedPosition,
        until: Version,
        each: &mut ChangeSink<'_>,
    ) -> StorageResult<()> {
        let Some(owner) = self.owner else { return Ok(()) };
        let (tbl, key) = match &after.within {
            Some((table, key)) => (self.statements.of(*table).id, &key.0.as_bytes()[..]),
            None => (i64::MAX, &[][..]),
        };
        let (after, until) = (after.version.0.cast_signed(), until.0.cast_signed());
        let mut statement = self.conn.prepare_cached(statements::CHANGES).map_err(failed)?;
        let mut rows = statement.query(params![owner, after, tbl, key, until]).map_err(failed)?;
        // One statement and one buffer for each table in the feed, not for each row.
        let mut places: Vec<Option<(CachedStatement<'_>, Room)>> = Vec::new();
        places.resize_with(self.schema.tables().len(), || None);
        while let Some(row) = rows.next().map_err(failed)? {
            let Some(place) = self.statements.table(row.get(ENTRY_COLUMNS).map_err(failed)?) else {
                continue;
            };
            let table = &self.schema.tables()[place];
            let key = values::key(row.get_ref(ENTRY_COLUMNS + 1).map_err(failed)?)
                .map_err(rusqlite::Error::from)
                .map_err(failed)?;
            let mut entry = entry(row).map_err(failed)?;
            if row.get(DELETED).map_err(failed)? {
                if !each(table.id, key, &entry) {
                    break;
                }
                continue;
            }
            let (statement, room) = match &mut places[place] {
                Some(place) => place,
                none => {
                    let sql = &self.statements.of(table.id).values;
                    none.insert((self.conn.prepare_cached(sql).map_err(failed)?, Room::default()))
                }
            };
            statement
                .query_row(params![owner, key.0.as_bytes()], |row| {
                    for (at, column) in table.columns.iter().enumerate() {
                        room.read(at, column.kind, row.get_ref(1 + at)?)?;
                    }
                    Ok(())
                })
                .map_err(failed)?;
            let goes_on = room.lend(&mut entry, |entry| each(table.id, key, entry));
            if !goes_on {
                break;
            }
        }
        Ok(())
    }

    fn earlier(
        &mut self,
        table: TableId,
        key: RowKey,
        stored: Option<&Stored>,
    ) -> StorageResult<Vec<EarlierState>> {
        self.records().map_or(Ok(Vec::new()), |records| records.earlier(self.schema.at(table), key, stored))
    }

    fn stored_response(&mut self, device: DeviceId, key: &str) -> StorageResult<Option<StoredResponse>> {
        self.records().map_or(Ok(None), |records| records.stored_response(device, key))
    }

    fn counter(&mut self, device: DeviceId) -> StorageResult<Option<u64>> {
        self.owner.map_or(Ok(None), |owner| installations::counter(self.conn, owner, device))
    }

    fn installations(&mut self) -> StorageResult<Vec<Installation>> {
        self.owner.map_or(Ok(Vec::new()), |owner| installations::all(self.conn, owner))
    }

    fn delete_windows(&mut self, device: DeviceId) -> StorageResult<Vec<(TableId, DeleteWindow)>> {
        let Self { conn, schema, statements, owner, .. } = *self;
        owner.map_or(Ok(Vec::new()), |owner| deletions::windows(conn, schema, statements, owner, device))
    }

    fn conflicts(&mut self, wanted: &WantedConflicts) -> StorageResult<ConflictPage> {
        self.records().map_or(Ok(ConflictPage::default()), |records| records.conflicts(wanted))
    }

    fn conflict(&mut self, id: Uuid) -> StorageResult<Option<Conflict>> {
        self.records().map_or(Ok(None), |records| records.conflict(id))
    }

    fn count_past(&mut self) -> StorageResult<PastBytes> {
        self.owner.map_or(Ok(PastBytes::NOTHING), |owner| quota::count(self.conn, owner).map_err(failed))
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
        let mut statement = self.conn.prepare_cached(sql).map_err(failed)?;
        let keys = statement
            .query_map(params![self.owner, parent.0.as_bytes(), rows_max], |row| {
                Ok(values::key(row.get_ref(0)?)?)
            })
            .map_err(failed)?;
        keys.collect::<Result<_, _>>().map_err(failed)
    }
}

impl WriteTxn for Txn<'_> {
    fn put(&mut self, table: TableId, rows: &[(RowKey, &Stored)]) -> StorageResult<()> {
        let Some((_, first)) = rows.first() else { return Ok(()) };
        let (_, sql) = self.table(table);
        // Nearly always the sending device created and changed all rows of a batch.
        let mut known = (first.changed_by, self.device(first.changed_by)?);
        let mut entry = self.conn.prepare_cached(statements::PUT_ENTRY).map_err(failed)?;
        let mut put = self.conn.prepare_cached(&sql.put).map_err(failed)?;
        let mut remove = self.conn.prepare_cached(&sql.remove).map_err(failed)?;
        for (key, row) in rows {
            let key = key.0.as_bytes();
            if row.changed_by != known.0 {
                known = (row.changed_by, self.device(row.changed_by)?);
            }
            let made_by = if row.made_by == known.0 { known.1 } else { self.device(row.made_by)? };
            entry
                .execute(params![
                    self.owner,
                    sql.id,
                    key,
                    row.version.0.cast_signed(),
                    row.created.0.cast_signed(),
                    row.last_update.ms(),
                    row.is_tombstone(),
                    made_by,
                    known.1,
                    lifetimes_bytes(&row.lifetimes),
                    aware_devices_bytes(&row.aware_devices),
                    row.made_at.map(Timestamp::ms),
                    row.claim.at.map(Timestamp::ms),
                    row.claim.row_base.map(Timestamp::ms),
                    row.claim.base.map(|base| base.0.cast_signed()),
                ])
                .map_err(failed)?;
            match &row.values {
                Some(values) => {
                    put.raw_bind_parameter(1, self.owner).map_err(failed)?;
                    put.raw_bind_parameter(2, key).map_err(failed)?;
                    for (place, value) in values.iter().enumerate() {
                        put.raw_bind_parameter(place + 3, Bound(value)).map_err(failed)?;
                    }
                    put.raw_execute().map_err(failed)?;
                }
                None => {
                    remove.execute(params![self.owner, key]).map_err(failed)?;
                }
            }
        }
        Ok(())
    }

    fn advance(
        &mut self,
        state: OwnerState,
        digests: &[(TableId, Digest)],
        now: Timestamp,
    ) -> StorageResult<()> {
        let before = self.state.version.0.cast_signed();
        let mut date = self.conn.prepare_cached(statements::DATE).map_err(failed)?;
        date.execute(params![self.owner, day(now), before]).map_err(failed)?;
        let mut put = self.conn.prepare_cached(statements::PUT_DIGEST).map_err(failed)?;
        for (table, digest) in digests {
            let (count, root) = (digest.count.cast_signed(), digest.root.cast_signed());
            put.execute(params![self.owner, self.statements.of(*table).id, count, root]).map_err(failed)?;
        }
        self.state = OwnerState { due_at: self.state.due_at, ..state };
        self.state.ages_from(now);
        Ok(())
    }

    fn show_ahead(&mut self, until: Version) -> StorageResult<()> {
        let mut show = self.conn.prepare_cached(statements::SHOW_AHEAD).map_err(failed)?;
        show.execute(params![self.owner, until.0.cast_signed()]).map_err(failed)?;
        (self.state.shown_ahead, self.written.shown_ahead) = (until, until);
        Ok(())
    }

    fn remember(&mut self, table: TableId, rows: &[Replaced<'_>], states_max: usize) -> StorageResult<()> {
        self.state.past.history += self.own_records()?.remember(self.schema.at(table), rows, states_max)?;
        Ok(())
    }

    fn note_conflict(&mut self, conflict: &Conflict) -> StorageResult<()> {
        self.state.past.conflicts += self.own_records()?.note_conflict(conflict)?;
        self.state.ages_from(conflict.at);
        Ok(())
    }

    fn note_restored(&mut self, id: Uuid, at: Timestamp) -> StorageResult<()> {
        self.own_records()?.note_restored(id, at)
    }

    fn store_response(
        &mut self,
        device: DeviceId,
        key: &str,
        response: &StoredResponse,
        most: ResponsesMax,
    ) -> StorageResult<()> {
        self.state.past.responses += self.own_records()?.store_response(device, key, response, most)?;
        self.state.ages_from(response.at);
        Ok(())
    }

    fn acknowledge(&mut self, device: DeviceId, version: Version, now: Timestamp) -> StorageResult<()> {
        let mut statement = self.conn.prepare_cached(statements::ACKNOWLEDGE).map_err(failed)?;
        statement
            .execute(params![self.owner, device.0.as_bytes(), version.0.cast_signed(), now.ms()])
            .map_err(failed)?;
        self.state.ages_from(now);
        Ok(())
    }

    fn forget_device(&mut self, device: DeviceId) -> StorageResult<()> {
        let mut statement = self.conn.prepare_cached(statements::FORGET_DEVICE).map_err(failed)?;
        statement.execute(params![self.owner, device.0.as_bytes()]).map_err(failed)?;
        self.state.due_at = Some(DUE_AT_ONCE);
        deletions::forget(self.conn, self.own_records()?.owner, device)
    }

    fn put_delete_window(
        &mut self,
        device: DeviceId,
        table: TableId,
        window: &DeleteWindow,
    ) -> StorageResult<()> {
        let owner = self.own_records()?.owner;
        self.state.ages_from(window.began);
        deletions::put(self.conn, owner, device, self.statements.of(table).id, window)
    }

    fn raise_installation(&mut self, one: &Installation) -> StorageResult<bool> {
        self.state.ages_from(one.seen_at);
        installations::put(self.conn, installations::RAISE, self.own_records()?.owner, one)
    }

    fn add_installation(&mut self, one: &Installation) -> StorageResult<()> {
        self.state.ages_from(one.seen_at);
        installations::put(self.conn, installations::ADD, self.own_records()?.owner, one).map(drop)
    }

    fn forget_installation(&mut self, device: DeviceId) -> StorageResult<()> {
        self.state.past.responses -= installations::forget(self.conn, self.own_records()?.owner, device)?;
        Ok(())
    }

    fn make_room(&mut self, more: u64, max: u64, entries_max: usize) -> StorageResult<bool> {
        let owner = self.own_records()?.owner;
        let mut past = OwnPast { conn: self.conn, owner, bytes: &mut self.state.past };
        fits(&mut past, more, max, entries_max)
    }

    fn set_past(&mut self, past: PastBytes) -> StorageResult<()> {
        self.state.past = past;
        Ok(())
    }

    fn purge(&mut self, terms: &PurgeTerms, rows_max: usize) -> StorageResult<Purged> {
        let owner = self.own_records()?.owner;
        purge::purge(self.conn, owner, &mut self.state, terms, rows_max)
    }
}

impl Txn<'_> {
    /// Writes the owner's state, in one statement, if it has changed; returns it.
    pub fn finish(&mut self) -> StorageResult<OwnerState> {
        if self.state != self.written {
            quota::put_state(self.conn, self.own_records()?.owner, &self.state)?;
            self.written = self.state;
        }
        Ok(self.state)
    }
}

/// The version that an owner begins with.
pub(super) fn first_version(conn: &Connection) -> StorageResult<Version> {
    let mut statement = conn.prepare_cached(statements::EPOCH).map_err(failed)?;
    statement.query_row([], |row| row.get(0)).map(Version::first).map_err(failed)
}

/// The number and the state of an owner; `None` for an owner without any write.
pub(super) fn load_owner(conn: &Connection, owner: Owner) -> rusqlite::Result<Option<(i64, OwnerState)>> {
    let mut statement = conn.prepare_cached(statements::OWNER)?;
    statement.query_row([owner.0.as_bytes()], |row| Ok((row.get(0)?, state(row)?))).optional()
}

pub(super) fn state(row: &Row<'_>) -> rusqlite::Result<OwnerState> {
    let number = |at| row.get::<_, i64>(at).map(i64::cast_unsigned);
    Ok(OwnerState {
        version: Version(number(1)?),
        horizon: Version(number(2)?),
        rows: number(3)?,
        bytes: number(4)?,
        seed: Some(Seed(row.get(5)?)),
        shown_ahead: Version(number(6)?),
        past: PastBytes {
            is_counted: row.get::<_, Option<i64>>(11)? == Some(row.get(1)?),
            tombstones: row.get(7)?,
            history: row.get(8)?,
            conflicts: row.get(9)?,
            responses: row.get(10)?,
        },
        members_at: Version(number(12)?),
        is_public: row.get(13)?,
        erased_at: row.get::<_, Option<i64>>(14)?.map(Timestamp::from_ms),
        due_at: row.get::<_, Option<i64>>(15)?.map(Timestamp::from_ms),
    })
}

/// The number of columns of a ledger entry, and the index of the one that marks tombstones.
const ENTRY_COLUMNS: usize = 12;
const DELETED: usize = 3;

/// Reads a ledger entry as a tombstone; a live row's columns are stored elsewhere.
fn entry(row: &Row<'_>) -> rusqlite::Result<Stored> {
    let number = |at| row.get::<_, i64>(at).map(i64::cast_unsigned);
    let time = |at| Ok::<_, rusqlite::Error>(row.get::<_, Option<i64>>(at)?.map(Timestamp::from_ms));
    let version = |number: i64| Version(number.cast_unsigned());
    Ok(Stored {
        version: Version(number(0)?),
        created: Version(number(1)?),
        last_update: Timestamp::from_ms(row.get(2)?),
        made_by: DeviceId(values::uuid(row.get_ref(4)?)?),
        changed_by: DeviceId(values::uuid(row.get_ref(5)?)?),
        lifetimes: lifetimes(row.get_ref(6)?.as_blob_or_null()?.unwrap_or_default()),
        aware_devices: aware_devices(row.get_ref(7)?.as_blob_or_null()?.unwrap_or_default()),
        made_at: time(8)?,
        claim: Claim { at: time(9)?, row_base: time(10)?, base: row.get::<_, Option<i64>>(11)?.map(version) },
        values: None,
    })
}

fn stored(table: &Table, row: &Row<'_>) -> rusqlite::Result<Stored> {
    let mut stored = entry(row)?;
    if !row.get::<_, bool>(DELETED)? {
        stored.values = Some(columns(table, row, ENTRY_COLUMNS)?);
    }
    Ok(stored)
}

/// Reads a row's columns, which begin at `first`.
fn columns(table: &Table, row: &Row<'_>, first: usize) -> rusqlite::Result<Vec<Value>> {
    let read = |(at, column): (usize, &Column)| -> rusqlite::Result<Value> {
        Ok(values::read(column.kind, row.get_ref(first + at)?)?)
    };
    table.columns.iter().enumerate().map(read).collect()
}

//! A write transaction that counts what a batch has it do: counts do not depend on the machine.
#![allow(dead_code)] // each test takes its part of it

use std::collections::BTreeMap;

use rollcall::digest::Digest;
use rollcall::model::{DeviceId, EarlierState, RowKey, Stored, Timestamp, Value, Version};
use rollcall::schema::TableId;
use rollcall::storage::{
    AnswersMax, ChangeMark, ChangeSink, Conflict, ConflictPage, DeleteWindow, GivenAnswer, Installation,
    LeaseState, OwnerState, PurgeTerms, Purged, ReadTxn, StorageResult, WantedConflicts, WriteTxn,
};
use uuid::Uuid;

/// What was done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Rows loaded by their keys.
    pub loaded: usize,
    /// Times that the earlier states of a row were read.
    pub pasts: usize,
    /// Rows that an index gave as referring to another.
    pub referring: usize,
    /// Times that such an index was asked.
    pub referring_asked: usize,
    /// Rows and tombstones written.
    pub put: usize,
    /// Conflicts noted.
    pub conflicts: usize,
    /// Bytes of values in them.
    pub conflict_bytes: usize,
}

/// The transaction.
pub struct Counting<'a> {
    pub inner: &'a mut dyn WriteTxn,
    pub counts: Counts,
}

impl<'a> Counting<'a> {
    pub fn new(inner: &'a mut dyn WriteTxn) -> Self {
        Self { inner, counts: Counts::default() }
    }
}

impl ReadTxn for Counting<'_> {
    fn state(&self) -> OwnerState {
        self.inner.state()
    }

    fn manifest(
        &mut self,
        table: TableId,
        after: Option<RowKey>,
        rows_max: usize,
        each: &mut dyn FnMut(RowKey, Timestamp),
    ) -> StorageResult<()> {
        self.inner.manifest(table, after, rows_max, each)
    }

    fn load(&mut self, table: TableId, keys: &[RowKey]) -> StorageResult<Vec<Option<Stored>>> {
        self.counts.loaded += keys.len();
        self.inner.load(table, keys)
    }

    fn digests(&mut self) -> StorageResult<Vec<Digest>> {
        self.inner.digests()
    }

    fn changes(&mut self, after: ChangeMark, upto: Version, each: &mut ChangeSink<'_>) -> StorageResult<()> {
        self.inner.changes(after, upto, each)
    }

    fn earlier(&mut self, table: TableId, key: RowKey) -> StorageResult<Vec<EarlierState>> {
        self.counts.pasts += 1;
        self.inner.earlier(table, key)
    }

    fn given_answer(&mut self, device: DeviceId, key: &str) -> StorageResult<Option<GivenAnswer>> {
        self.inner.given_answer(device, key)
    }

    fn counter(&mut self, device: DeviceId) -> StorageResult<Option<u64>> {
        self.inner.counter(device)
    }

    fn installations(&mut self) -> StorageResult<Vec<Installation>> {
        self.inner.installations()
    }

    fn delete_windows(&mut self, device: DeviceId) -> StorageResult<Vec<(TableId, DeleteWindow)>> {
        self.inner.delete_windows(device)
    }

    fn conflicts(&mut self, wanted: &WantedConflicts) -> StorageResult<ConflictPage> {
        self.inner.conflicts(wanted)
    }

    fn conflict(&mut self, id: Uuid) -> StorageResult<Option<Conflict>> {
        self.inner.conflict(id)
    }

    fn referring(
        &mut self,
        table: TableId,
        column: usize,
        parent: RowKey,
        rows_max: usize,
    ) -> StorageResult<Vec<RowKey>> {
        let found = self.inner.referring(table, column, parent, rows_max)?;
        self.counts.referring_asked += 1;
        self.counts.referring += found.len();
        Ok(found)
    }
}

impl WriteTxn for Counting<'_> {
    fn lease(&self) -> Option<&LeaseState> {
        self.inner.lease()
    }

    fn put(&mut self, table: TableId, rows: &[(RowKey, &Stored)]) -> StorageResult<()> {
        self.counts.put += rows.len();
        self.inner.put(table, rows)
    }

    fn advance(
        &mut self,
        state: OwnerState,
        digests: &[(TableId, Digest)],
        now: Timestamp,
    ) -> StorageResult<()> {
        self.inner.advance(state, digests, now)
    }

    fn show_ahead(&mut self, upto: Version) -> StorageResult<()> {
        self.inner.show_ahead(upto)
    }

    fn remember(
        &mut self,
        table: TableId,
        rows: &[(RowKey, &Stored)],
        states_max: usize,
    ) -> StorageResult<()> {
        self.inner.remember(table, rows, states_max)
    }

    fn note_conflict(&mut self, conflict: &Conflict) -> StorageResult<()> {
        let sides = [&conflict.stored, &conflict.incoming].into_iter().flat_map(|side| &side.values);
        let sides = sides.flatten().flatten();
        let bytes: usize = sides.chain(conflict.base.iter().flatten()).map(Value::weight).sum();
        self.counts.conflicts += 1;
        self.counts.conflict_bytes += bytes;
        self.inner.note_conflict(conflict)
    }

    fn put_delete_window(
        &mut self,
        device: DeviceId,
        table: TableId,
        window: &DeleteWindow,
    ) -> StorageResult<()> {
        self.inner.put_delete_window(device, table, window)
    }

    fn note_restored(&mut self, id: Uuid, at: Timestamp) -> StorageResult<()> {
        self.inner.note_restored(id, at)
    }

    fn keep_answer(
        &mut self,
        device: DeviceId,
        key: &str,
        answer: &GivenAnswer,
        most: AnswersMax,
    ) -> StorageResult<()> {
        self.inner.keep_answer(device, key, answer, most)
    }

    fn acknowledge(&mut self, device: DeviceId, version: Version, now: Timestamp) -> StorageResult<()> {
        self.inner.acknowledge(device, version, now)
    }

    fn forget_device(&mut self, device: DeviceId) -> StorageResult<()> {
        self.inner.forget_device(device)
    }

    fn raise_installation(&mut self, one: &Installation) -> StorageResult<bool> {
        self.inner.raise_installation(one)
    }

    fn add_installation(&mut self, one: &Installation) -> StorageResult<()> {
        self.inner.add_installation(one)
    }

    fn forget_installation(&mut self, device: DeviceId) -> StorageResult<()> {
        self.inner.forget_installation(device)
    }

    fn purge(&mut self, terms: &PurgeTerms, rows_max: usize) -> StorageResult<Purged> {
        self.inner.purge(terms, rows_max)
    }
}

/// How often each thing comes in a list.
pub fn tally<T: Ord>(things: impl IntoIterator<Item = T>) -> BTreeMap<T, usize> {
    let mut tally = BTreeMap::new();
    for thing in things {
        *tally.entry(thing).or_insert(0) += 1;
    }
    tally
}

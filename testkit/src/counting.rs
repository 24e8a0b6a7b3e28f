//! A write transaction that counts what a batch has it do: counts do not depend on the machine.
use std::collections::BTreeMap;

use crate::forward;
use rollcall::digest::Digest;
use rollcall::model::{DeviceId, EarlierState, Role, RowKey, Stored, Timestamp, Value, Version};
use rollcall::schema::TableId;
use rollcall::storage::{
    ChangeSink, Conflict, ConflictPage, DeleteWindow, FeedPosition, Installation, Invitation, LeaseState,
    Member, MemberReads, MemberWrites, OwnerState, PastBytes, PurgeTerms, Purged, ReadTxn, Replaced,
    ResponsesMax, StorageResult, StoredResponse, Walked, WantedConflicts, WriteTxn,
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
    /// Lookups in such an index.
    pub referring_asked: usize,
    /// Rows and tombstones written.
    pub put: usize,
    /// The most bytes of rows that were written at once.
    pub put_bytes_max: usize,
    /// Times that the owner's mark of rows shown ahead of a cursor was raised.
    pub shown_ahead: usize,
    /// Recorded conflicts.
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

impl MemberReads for Counting<'_> {
    forward!(member_reads);
}

impl MemberWrites for Counting<'_> {
    forward!(member_writes);
}

impl ReadTxn for Counting<'_> {
    forward!(
        state manifest walk digests changes stored_response counter installations delete_windows conflicts conflict
        count_past
    );

    fn load(&mut self, table: TableId, keys: &[RowKey]) -> StorageResult<Vec<Option<Stored>>> {
        self.counts.loaded += keys.len();
        self.inner.load(table, keys)
    }

    fn earlier(
        &mut self,
        table: TableId,
        key: RowKey,
        stored: Option<&Stored>,
    ) -> StorageResult<Vec<EarlierState>> {
        self.counts.pasts += 1;
        self.inner.earlier(table, key, stored)
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
    forward!(
        lease advance remember put_delete_window note_restored store_response acknowledge
        forget_device raise_installation add_installation forget_installation purge make_room set_past
    );

    fn put(&mut self, table: TableId, rows: &[(RowKey, &Stored)]) -> StorageResult<()> {
        let bytes = rows.iter().map(|(_, row)| row.weight()).sum();
        self.counts.put += rows.len();
        self.counts.put_bytes_max = self.counts.put_bytes_max.max(bytes);
        self.inner.put(table, rows)
    }

    fn show_ahead(&mut self, upto: Version) -> StorageResult<()> {
        self.counts.shown_ahead += 1;
        self.inner.show_ahead(upto)
    }

    fn note_conflict(&mut self, conflict: &Conflict) -> StorageResult<()> {
        let sides = [&conflict.stored, &conflict.incoming].into_iter().flat_map(|side| &side.values);
        let sides = sides.flatten().flatten();
        let bytes: usize = sides.chain(conflict.base.iter().flatten().flatten()).map(Value::weight).sum();
        self.counts.conflicts += 1;
        self.counts.conflict_bytes += bytes;
        self.inner.note_conflict(conflict)
    }
}

/// How often each thing occurs in a list.
pub fn tally<T: Ord>(things: impl IntoIterator<Item = T>) -> BTreeMap<T, usize> {
    let mut tally = BTreeMap::new();
    for thing in things {
        *tally.entry(thing).or_insert(0) += 1;
    }
    tally
}

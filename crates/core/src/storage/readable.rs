//! What of an owner's rows a member may read.

use uuid::Uuid;

use super::{
    ChangeSink, Conflict, ConflictPage, DeleteWindow, FeedPosition, Installation, Invitation, Member,
    MemberReads, OwnerState, PastBytes, ReadTxn, StorageResult, StoredResponse, Walked, WantedConflicts,
};
use crate::digest::Digest;
use crate::model::{DeviceId, EarlierState, Role, RowKey, Stored, Timestamp, Version};
use crate::schema::{Schema, TableId};

/// An owner's rows as a member of a role may read them: every other table looks empty.
pub struct Readable<'a> {
    txn: &'a mut dyn ReadTxn,
    schema: &'a Schema,
    role: Role,
}

impl<'a> Readable<'a> {
    /// The rows of `txn` for a member of that role.
    pub fn new(txn: &'a mut dyn ReadTxn, schema: &'a Schema, role: Role) -> Self {
        Self { txn, schema, role }
    }
}

impl ReadTxn for Readable<'_> {
    fn state(&self) -> OwnerState {
        self.txn.state()
    }

    fn hides(&self, table: TableId) -> bool {
        self.schema.hides(table, self.role)
    }

    fn manifest(
        &mut self,
        table: TableId,
        after: Option<RowKey>,
        rows_max: usize,
        each: &mut dyn FnMut(RowKey, Timestamp),
    ) -> StorageResult<()> {
        if self.hides(table) { Ok(()) } else { self.txn.manifest(table, after, rows_max, each) }
    }

    fn nth_after(
        &mut self,
        table: TableId,
        after: Option<RowKey>,
        steps: u64,
    ) -> StorageResult<Option<RowKey>> {
        if self.hides(table) { Ok(None) } else { self.txn.nth_after(table, after, steps) }
    }

    fn walk(&mut self, table: TableId, after: Option<RowKey>, entries_max: u64) -> StorageResult<Walked> {
        if self.hides(table) { Ok(Walked::default()) } else { self.txn.walk(table, after, entries_max) }
    }

    fn load(&mut self, table: TableId, keys: &[RowKey]) -> StorageResult<Vec<Option<Stored>>> {
        if self.hides(table) { Ok(vec![None; keys.len()]) } else { self.txn.load(table, keys) }
    }

    fn digests(&mut self) -> StorageResult<Vec<Digest>> {
        let mut digests = self.txn.digests()?;
        hide_digests(&mut digests, self.schema, self.role);
        Ok(digests)
    }

    /// Entries of hidden tables are walked like any others, so that the bounds of a walk hold. [`Self::hides`] says that
    /// nothing of them may be returned.
    fn changes(
        &mut self,
        after: FeedPosition,
        until: Version,
        each: &mut ChangeSink<'_>,
    ) -> StorageResult<()> {
        self.txn.changes(after, until, each)
    }

    fn earlier(
        &mut self,
        table: TableId,
        key: RowKey,
        stored: Option<&Stored>,
    ) -> StorageResult<Vec<EarlierState>> {
        if self.hides(table) { Ok(Vec::new()) } else { self.txn.earlier(table, key, stored) }
    }

    fn stored_response(&mut self, device: DeviceId, key: &str) -> StorageResult<Option<StoredResponse>> {
        self.txn.stored_response(device, key)
    }

    fn counter(&mut self, device: DeviceId) -> StorageResult<Option<u64>> {
        self.txn.counter(device)
    }

    fn installations(&mut self) -> StorageResult<Vec<Installation>> {
        self.txn.installations()
    }

    fn delete_windows(&mut self, device: DeviceId) -> StorageResult<Vec<(TableId, DeleteWindow)>> {
        self.txn.delete_windows(device)
    }

    fn conflicts(&mut self, wanted: &WantedConflicts) -> StorageResult<ConflictPage> {
        if wanted.table.is_some_and(|table| self.hides(table)) {
            return Ok(ConflictPage::default());
        }
        let mut page = self.txn.conflicts(wanted)?;
        page.conflicts.retain(|conflict| !self.hides(conflict.table));
        Ok(page)
    }

    fn conflict(&mut self, id: Uuid) -> StorageResult<Option<Conflict>> {
        Ok(self.txn.conflict(id)?.filter(|conflict| !self.hides(conflict.table)))
    }

    fn count_past(&mut self) -> StorageResult<PastBytes> {
        self.txn.count_past()
    }

    fn referring(
        &mut self,
        table: TableId,
        column: usize,
        parent: RowKey,
        rows_max: usize,
    ) -> StorageResult<Vec<RowKey>> {
        if self.hides(table) { Ok(Vec::new()) } else { self.txn.referring(table, column, parent, rows_max) }
    }
}

/// Makes the digests of tables that a role may not read those of empty tables.
pub fn hide_digests(digests: &mut [Digest], schema: &Schema, role: Role) {
    for table in schema.tables().iter().filter(|table| schema.hides(table.id, role)) {
        if let Some(digest) = digests.get_mut(table.id.index()) {
            *digest = Digest::default();
        }
    }
}

impl MemberReads for Readable<'_> {
    fn member(&mut self, user: Uuid) -> StorageResult<Option<Member>> {
        self.txn.member(user)
    }

    fn members(&mut self, after: Option<Uuid>, members_max: usize) -> StorageResult<Vec<Member>> {
        self.txn.members(after, members_max)
    }

    fn member_count(&mut self) -> StorageResult<u64> {
        self.txn.member_count()
    }

    fn first_of(&mut self, role: Role, except: Uuid) -> StorageResult<Option<Member>> {
        self.txn.first_of(role, except)
    }

    fn owner_name(&mut self) -> StorageResult<String> {
        self.txn.owner_name()
    }

    fn invitations(&mut self) -> StorageResult<Vec<Invitation>> {
        self.txn.invitations()
    }
}

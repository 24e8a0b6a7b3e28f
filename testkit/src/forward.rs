//! Methods of a transaction that a wrapper around one passes on as they are.

/// Writes the named methods of `ReadTxn` or `WriteTxn`; each calls the same one of `self.inner`.
#[macro_export]
macro_rules! forward {
    ($($method:ident)*) => { $($crate::forward!(@ $method);)* };
    (@ state) => {
        fn state(&self) -> OwnerState {
            self.inner.state()
        }
    };
    (@ manifest) => {
        fn manifest(
            &mut self,
            table: TableId,
            after: Option<RowKey>,
            rows_max: usize,
            each: &mut dyn FnMut(RowKey, Timestamp),
        ) -> StorageResult<()> {
            self.inner.manifest(table, after, rows_max, each)
        }
    };
    (@ digests) => {
        fn digests(&mut self) -> StorageResult<Vec<Digest>> {
            self.inner.digests()
        }
    };
    (@ changes) => {
        fn changes(
            &mut self,
            after: FeedPosition,
            until: Version,
            each: &mut ChangeSink<'_>,
        ) -> StorageResult<()> {
            self.inner.changes(after, until, each)
        }
    };
    (@ earlier) => {
        fn earlier(
            &mut self,
            table: TableId,
            key: RowKey,
            stored: Option<&Stored>,
        ) -> StorageResult<Vec<EarlierState>> {
            self.inner.earlier(table, key, stored)
        }
    };
    (@ stored_response) => {
        fn stored_response(&mut self, device: DeviceId, key: &str) -> StorageResult<Option<StoredResponse>> {
            self.inner.stored_response(device, key)
        }
    };
    (@ counter) => {
        fn counter(&mut self, device: DeviceId) -> StorageResult<Option<u64>> {
            self.inner.counter(device)
        }
    };
    (@ installations) => {
        fn installations(&mut self) -> StorageResult<Vec<Installation>> {
            self.inner.installations()
        }
    };
    (@ delete_windows) => {
        fn delete_windows(&mut self, device: DeviceId) -> StorageResult<Vec<(TableId, DeleteWindow)>> {
            self.inner.delete_windows(device)
        }
    };
    (@ conflicts) => {
        fn conflicts(&mut self, wanted: &WantedConflicts) -> StorageResult<ConflictPage> {
            self.inner.conflicts(wanted)
        }
    };
    (@ conflict) => {
        fn conflict(&mut self, id: Uuid) -> StorageResult<Option<Conflict>> {
            self.inner.conflict(id)
        }
    };
    (@ walk) => {
        fn walk(
            &mut self,
            table: TableId,
            after: Option<RowKey>,
            entries_max: u64,
        ) -> StorageResult<Walked> {
            self.inner.walk(table, after, entries_max)
        }
    };
    (@ count_past) => {
        fn count_past(&mut self) -> StorageResult<PastBytes> {
            self.inner.count_past()
        }
    };
    (@ make_room) => {
        fn make_room(&mut self, more: u64, max: u64, entries_max: usize) -> StorageResult<bool> {
            self.inner.make_room(more, max, entries_max)
        }
    };
    (@ set_past) => {
        fn set_past(&mut self, past: PastBytes) -> StorageResult<()> {
            self.inner.set_past(past)
        }
    };
    (@ referring) => {
        fn referring(
            &mut self,
            table: TableId,
            column: usize,
            parent: RowKey,
            rows_max: usize,
        ) -> StorageResult<Vec<RowKey>> {
            self.inner.referring(table, column, parent, rows_max)
        }
    };
    (@ lease) => {
        fn lease(&self) -> Option<&LeaseState> {
            self.inner.lease()
        }
    };
    (@ advance) => {
        fn advance(
            &mut self,
            state: OwnerState,
            digests: &[(TableId, Digest)],
            now: Timestamp,
        ) -> StorageResult<()> {
            self.inner.advance(state, digests, now)
        }
    };
    (@ show_ahead) => {
        fn show_ahead(&mut self, until: Version) -> StorageResult<()> {
            self.inner.show_ahead(until)
        }
    };
    (@ remember) => {
        fn remember(
            &mut self,
            table: TableId,
            rows: &[Replaced<'_>],
            states_max: usize,
        ) -> StorageResult<()> {
            self.inner.remember(table, rows, states_max)
        }
    };
    (@ put_delete_window) => {
        fn put_delete_window(
            &mut self,
            device: DeviceId,
            table: TableId,
            window: &DeleteWindow,
        ) -> StorageResult<()> {
            self.inner.put_delete_window(device, table, window)
        }
    };
    (@ note_restored) => {
        fn note_restored(&mut self, id: Uuid, at: Timestamp) -> StorageResult<()> {
            self.inner.note_restored(id, at)
        }
    };
    (@ store_response) => {
        fn store_response(
            &mut self,
            device: DeviceId,
            key: &str,
            answer: &StoredResponse,
            most: ResponsesMax,
        ) -> StorageResult<()> {
            self.inner.store_response(device, key, answer, most)
        }
    };
    (@ acknowledge) => {
        fn acknowledge(&mut self, device: DeviceId, version: Version, now: Timestamp) -> StorageResult<()> {
            self.inner.acknowledge(device, version, now)
        }
    };
    (@ forget_device) => {
        fn forget_device(&mut self, device: DeviceId) -> StorageResult<()> {
            self.inner.forget_device(device)
        }
    };
    (@ raise_installation) => {
        fn raise_installation(&mut self, one: &Installation) -> StorageResult<bool> {
            self.inner.raise_installation(one)
        }
    };
    (@ add_installation) => {
        fn add_installation(&mut self, one: &Installation) -> StorageResult<()> {
            self.inner.add_installation(one)
        }
    };
    (@ forget_installation) => {
        fn forget_installation(&mut self, device: DeviceId) -> StorageResult<()> {
            self.inner.forget_installation(device)
        }
    };
    (@ member_reads) => {
        fn member(&mut self, user: Uuid) -> StorageResult<Option<Member>> {
            self.inner.member(user)
        }

        fn members(&mut self, after: Option<Uuid>, members_max: usize) -> StorageResult<Vec<Member>> {
            self.inner.members(after, members_max)
        }

        fn member_count(&mut self) -> StorageResult<u64> {
            self.inner.member_count()
        }

        fn first_of(&mut self, role: Role, except: Uuid) -> StorageResult<Option<Member>> {
            self.inner.first_of(role, except)
        }

        fn owner_name(&mut self) -> StorageResult<String> {
            self.inner.owner_name()
        }

        fn invitations(&mut self) -> StorageResult<Vec<Invitation>> {
            self.inner.invitations()
        }
    };
    (@ member_writes) => {
        fn put_member(&mut self, member: &Member) -> StorageResult<()> {
            self.inner.put_member(member)
        }

        fn remove_member(&mut self, user: Uuid) -> StorageResult<bool> {
            self.inner.remove_member(user)
        }

        $crate::forward!(invitation_writes);
    };
    (@ invitation_writes) => {
        fn name_owner(&mut self, name: &str) -> StorageResult<()> {
            self.inner.name_owner(name)
        }

        fn put_invitation(&mut self, invitation: &Invitation) -> StorageResult<()> {
            self.inner.put_invitation(invitation)
        }

        fn remove_invitation(&mut self, id: Uuid) -> StorageResult<bool> {
            self.inner.remove_invitation(id)
        }
    };
    (@ purge) => {
        fn purge(&mut self, terms: &PurgeTerms, rows_max: usize) -> StorageResult<Purged> {
            self.inner.purge(terms, rows_max)
        }
    };
}

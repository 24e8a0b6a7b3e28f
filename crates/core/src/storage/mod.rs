//! The contract between the protocol and the engines that store the data.
//!
//! What every engine guarantees, each with a test in `tests/server/storage.rs`:
//! - A transaction is begun for one owner, so no statement can touch rows of another.
//! - A reader sees one snapshot, however long it takes and whatever writers do meanwhile.
//! - A writer has its owner to itself: versions are numbered in the order of commits.
//! - Work that returns an error, or panics, leaves nothing behind.
//! - [`Storage::run_write`] returns after the engine made the work durable. Work of several owners may become
//!   durable at once; if that fails, it fails for each of them.
//!
//! Every call here blocks; `http` calls it off the reactor.

pub mod accounts;
pub mod census;
pub mod deletions;
pub mod gate;
pub mod installations;
pub mod leases;
pub mod ledger;
pub mod members;
pub mod plan;
pub mod purging;
pub mod quota;
pub mod readable;
pub mod records;
pub mod states;
pub mod whole;

mod observer;

use std::sync::Arc;

use uuid::Uuid;

use crate::digest::{Digest, Seed};
use crate::model::{DeviceId, EarlierState, Owner, RowKey, Stored, Timestamp, Version};
use crate::schema::TableId;

pub use accounts::{AccountStore, Sighting};
pub use census::Census;
pub use deletions::DeleteWindow;
pub use installations::Installation;
pub use leases::{LeaseListener, LeaseState, LeaseStore, LeaseTerms, Leases};
pub use members::{Invitation, Member, MemberReads, MemberWrites, Membership};
pub use observer::EngineObserver;
pub use purging::{Ages, DUE_AT_ONCE, DueOwner, Forgetful, Owners, PurgeTerms, Purged};
pub use quota::PastBytes;
pub use records::{Conflict, ResponsesMax, Side, StoredResponse};
pub use states::Replaced;

/// The result of a storage call.
pub type StorageResult<T> = Result<T, StorageError>;

/// Why storage could not do its work. An outcome that the protocol expects is not an error.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// Another writer held the engine for longer than `busy_wait_ms`, or the database could not be reached.
    #[error("the database stayed busy")]
    Busy,
    /// The maximum number of writers wait already.
    #[error("too many wait to write")]
    QueueFull,
    /// The connection broke during COMMIT, and it is unknown whether the work became durable.
    #[error("the connection to the database broke, and what became of the work is not known")]
    OutcomeUnknown,
    /// The disk, or the database's own limit, is full.
    #[error("the database is full: {0}")]
    Full(String),
    /// Any other error; the cause goes to the log, never to a client.
    #[error("the database failed")]
    Engine(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// The state of one owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnerState {
    /// The version of the last transaction that changed anything.
    pub version: Version,
    /// Changes up to this version may have been forgotten: older cursors have expired.
    pub horizon: Version,
    /// Live rows.
    pub rows: u64,
    /// About how many bytes the live rows take.
    pub bytes: u64,
    /// The secret of the owner's digests; `None` until something is written for it.
    pub seed: Option<Seed>,
    /// Rows that were created up to this version may have been returned to devices ahead of their cursors; 0
    /// means none.
    pub shown_ahead: Version,
    /// What its past takes, including everything that the current transaction has written.
    pub past: PastBytes,
    /// The version at which its members, their roles or who may read last changed; 0 if they never did. Then the user
    /// whom the owner was made for manages it, and is its only member.
    pub members_at: Version,
    /// Whether anyone may read.
    pub is_public: bool,
    /// When it was erased: nobody is a member from then on, and its rows are removed bit by bit.
    pub erased_at: Option<Timestamp>,
    /// When something of it may first be old enough for a purge; `None` if nothing is stored that ages.
    pub due_at: Option<Timestamp>,
}

impl OwnerState {
    /// An owner without any write, at its first version.
    pub const fn new(first: Version) -> Self {
        Self {
            version: first,
            horizon: first,
            rows: 0,
            bytes: 0,
            seed: None,
            shown_ahead: Version(0),
            past: PastBytes::NOTHING,
            members_at: Version(0),
            is_public: false,
            erased_at: None,
            due_at: None,
        }
    }
}

/// One owner's rows in one snapshot.
pub trait ReadTxn: MemberReads {
    /// The owner's state in this snapshot.
    fn state(&self) -> OwnerState;

    /// Whether the reader may not see a table's rows. Only [`Self::changes`] returns them nevertheless.
    fn hides(&self, table: TableId) -> bool {
        let _ = table;
        false
    }

    /// Calls `each` with the live rows of a table: phase 1, the manifest.
    ///
    /// - Shape: by key ascending, beginning after `after`, at most `rows_max`.
    /// - Units: `last_update` is milliseconds since 1970, UTC.
    fn manifest(
        &mut self,
        table: TableId,
        after: Option<RowKey>,
        rows_max: usize,
        each: &mut dyn FnMut(RowKey, Timestamp),
    ) -> StorageResult<()>;

    /// The key of the `steps`-th live row of a table after `after`; `None` if fewer follow.
    fn nth_after(
        &mut self,
        table: TableId,
        after: Option<RowKey>,
        steps: u64,
    ) -> StorageResult<Option<RowKey>> {
        let (mut nth, mut seen) = (None, 0);
        let rows_max = usize::try_from(steps).unwrap_or(usize::MAX);
        self.manifest(table, after, rows_max, &mut |key, _| {
            seen += 1;
            nth = Some(key);
        })?;
        Ok(nth.filter(|_| seen == steps))
    }

    /// Counts the entries of a table after `after`, including tombstones, at most `entries_max`.
    fn walk(&mut self, table: TableId, after: Option<RowKey>, entries_max: u64) -> StorageResult<Walked>;

    /// Loads the row of each key, in the order given; `None` if the key was never used.
    fn load(&mut self, table: TableId, keys: &[RowKey]) -> StorageResult<Vec<Option<Stored>>>;

    /// The digest of each table, in declared order.
    fn digests(&mut self) -> StorageResult<Vec<Digest>>;

    /// Calls `each` with what changed after `after`, up to `until`, until it returns `false`.
    ///
    /// - Shape: by version, then table, then key, including tombstones; each row in its present state.
    fn changes(
        &mut self,
        after: FeedPosition,
        until: Version,
        each: &mut ChangeSink<'_>,
    ) -> StorageResult<()>;

    /// The stored earlier states of a row, the latest first. `stored` is the row as the database has it: the latest
    /// state may share long values with it.
    fn earlier(
        &mut self,
        table: TableId,
        key: RowKey,
        stored: Option<&Stored>,
    ) -> StorageResult<Vec<EarlierState>>;

    /// The response that was stored for a device under an idempotency key.
    fn stored_response(&mut self, device: DeviceId, key: &str) -> StorageResult<Option<StoredResponse>>;

    /// The highest counter of an installation; `None` if it never synchronised, or was forgotten.
    fn counter(&mut self, device: DeviceId) -> StorageResult<Option<u64>>;

    /// The owner's installations, by id.
    fn installations(&mut self) -> StorageResult<Vec<Installation>>;

    /// What a device has deleted recently, by table. A table in which it never deleted anything is left out.
    fn delete_windows(&mut self, device: DeviceId) -> StorageResult<Vec<(TableId, DeleteWindow)>>;

    /// A page of conflicts, newest first.
    fn conflicts(&mut self, wanted: &WantedConflicts) -> StorageResult<ConflictPage>;

    /// One conflict.
    fn conflict(&mut self, id: Uuid) -> StorageResult<Option<Conflict>>;

    /// Counts what the owner's past takes. It reads an entry for each part of it, so it is meant for
    /// background work.
    fn count_past(&mut self) -> StorageResult<PastBytes>;

    /// The keys of the live rows of `table` whose `column` holds `parent`, in no particular order, at most
    /// `rows_max`.
    fn referring(
        &mut self,
        table: TableId,
        column: usize,
        parent: RowKey,
        rows_max: usize,
    ) -> StorageResult<Vec<RowKey>>;

    /// The same for several parents, each with its own `rows_max`: their rows in the order of the parents.
    fn referring_each(
        &mut self,
        table: TableId,
        column: usize,
        parents: &[(RowKey, usize)],
    ) -> StorageResult<Vec<Vec<RowKey>>> {
        parents.iter().map(|(parent, rows_max)| self.referring(table, column, *parent, *rows_max)).collect()
    }
}

/// One owner's rows in a write transaction, which has the owner to itself.
pub trait WriteTxn: ReadTxn + MemberWrites {
    /// The owner's lease as it was when the transaction began, and as it stays until the transaction ends;
    /// `None` if the engine stores no leases.
    fn lease(&self) -> Option<&LeaseState> {
        None
    }

    /// Writes rows and tombstones in place of the stored ones. Each key occurs at most once.
    ///
    /// The caller orders its calls: live rows with parents before their children, then tombstones with
    /// children before their parents. Rows of one table may refer to each other in any order.
    fn put(&mut self, table: TableId, rows: &[(RowKey, &Stored)]) -> StorageResult<()>;

    /// Sets the owner's state after the work, and the digests of the tables that changed.
    ///
    /// `now` dates the version, so that a purge knows how old a tombstone is. The caller updates the number
    /// of tombstones in `state.past`; everything else in it must be as [`ReadTxn::state`] returned it last.
    fn advance(
        &mut self,
        state: OwnerState,
        digests: &[(TableId, Digest)],
        now: Timestamp,
    ) -> StorageResult<()>;

    /// Records that rows which were created up to `until` may have been returned to devices ahead of their
    /// cursors. The version does not change.
    fn show_ahead(&mut self, until: Version) -> StorageResult<()>;

    /// Stores states that are about to be replaced, and forgets all but the newest `states_max` of each row.
    fn remember(&mut self, table: TableId, rows: &[Replaced<'_>], states_max: usize) -> StorageResult<()>;

    /// Stores a conflict; a conflict that is stored already stays as it is.
    fn note_conflict(&mut self, conflict: &Conflict) -> StorageResult<()>;

    /// The same for several.
    fn note_conflicts(&mut self, conflicts: &[Conflict]) -> StorageResult<()> {
        conflicts.iter().try_for_each(|conflict| self.note_conflict(conflict))
    }

    /// Records that the loser of a conflict was brought back.
    fn note_restored(&mut self, id: Uuid, at: Timestamp) -> StorageResult<()>;

    /// Stores a response under an idempotency key, and forgets all but the newest of the device.
    ///
    /// Bounds: `most`. Short responses that follow a long one may exceed the bytes by as much again, since
    /// the bytes are added up only when a long response is stored.
    fn store_response(
        &mut self,
        device: DeviceId,
        key: &str,
        response: &StoredResponse,
        most: ResponsesMax,
    ) -> StorageResult<()>;

    /// Records the version up to which a device has read everything, and that the device is active.
    fn acknowledge(&mut self, device: DeviceId, version: Version, now: Timestamp) -> StorageResult<()>;

    /// Forgets a device's cursor and its recent deletions. It was signed out, and no longer keeps tombstones
    /// from being purged.
    fn forget_device(&mut self, device: DeviceId) -> StorageResult<()>;

    /// Stores what a device has deleted of a table, in place of the stored window.
    fn put_delete_window(
        &mut self,
        device: DeviceId,
        table: TableId,
        window: &DeleteWindow,
    ) -> StorageResult<()>;

    /// Updates an installation. Returns `false` and writes nothing if no installation of that id exists, or
    /// if its counter is higher.
    fn raise_installation(&mut self, one: &Installation) -> StorageResult<bool>;

    /// Stores a new installation.
    fn add_installation(&mut self, one: &Installation) -> StorageResult<()>;

    /// Forgets an installation, its stored responses, and its cursor.
    fn forget_installation(&mut self, device: DeviceId) -> StorageResult<()>;

    /// Forgets earlier states, the oldest first, then stored responses, until `more` bytes fit below `max`;
    /// returns whether they do.
    ///
    /// - Bounds: at most `entries_max` entries. A `max` of 0 means no bound.
    /// - As long as the owner's past is not counted, nothing is forgotten and everything fits.
    fn make_room(&mut self, more: u64, max: u64, entries_max: usize) -> StorageResult<bool>;

    /// Replaces the sums of the owner's past by ones that were counted.
    fn set_past(&mut self, past: PastBytes) -> StorageResult<()>;

    /// Forgets what is old, at most about `rows_max` entries of each kind; the result shows whether more is
    /// left.
    fn purge(&mut self, terms: &PurgeTerms, rows_max: usize) -> StorageResult<Purged>;
}

/// The result of a walk over entries of a table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Walked {
    /// How many entries were read.
    pub entries: u64,
    /// How many of them are live rows.
    pub live: u64,
    /// The key of the last entry; `None` if there were no entries.
    pub last: Option<RowKey>,
}

/// A position in the sequence of changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FeedPosition {
    /// All changes of earlier versions were returned.
    pub version: Version,
    /// The last entry of this version that was returned; `None` if all of them were.
    pub within: Option<(TableId, RowKey)>,
}

/// Receives one changed row; returns whether to continue. The row is borrowed: its memory may be reused for
/// the next one.
pub type ChangeSink<'a> = dyn FnMut(TableId, RowKey, &Stored) -> bool + 'a;

/// Which conflicts to list, and how many at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WantedConflicts {
    /// List only conflicts of this table.
    pub table: Option<TableId>,
    /// List only conflicts of this row.
    pub key: Option<RowKey>,
    /// List only conflicts after this one.
    pub after: Option<(Timestamp, Uuid)>,
    /// Most conflicts to list.
    pub rows_max: usize,
    /// Most conflicts to read, including those that are not listed.
    pub entries_max: usize,
    /// List no more once the listed ones have this many stored bytes.
    pub bytes_max: usize,
}

/// A page of conflicts. It may have fewer than requested, or none, and still not be the last one.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct ConflictPage {
    /// Newest first.
    pub conflicts: Vec<Conflict>,
    /// Where the next page continues; `None` if this was the last page.
    pub next: Option<(Timestamp, Uuid)>,
}

/// Whether work is to be committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Make it durable.
    Commit,
    /// Roll it back.
    Rollback,
}

/// Work inside a read transaction, as engines receive it.
pub type ReadWork<'a> = &'a mut dyn FnMut(&mut dyn ReadTxn) -> StorageResult<()>;

/// Work inside a write transaction, as engines receive it. An engine may run it again from the start.
pub type WriteWork<'a> = &'a mut (dyn FnMut(&mut dyn WriteTxn) -> StorageResult<Outcome> + Send);

/// A write that no thread waits for.
pub trait WriteJob: Send {
    /// Does the work, like [`WriteWork`]. An engine may run it again from the start.
    fn run(&mut self, txn: &mut dyn WriteTxn) -> StorageResult<Outcome>;

    /// Called once, on any thread, when the work is durable or rolled back. It must be fast, since others may
    /// wait.
    fn finish(self: Box<Self>, result: StorageResult<()>);
}

/// Called with an owner's new version.
pub type VersionListener = Arc<dyn Fn(Owner, Version) + Send + Sync>;

/// An engine.
pub trait Storage: Send + Sync {
    /// Runs `work` over one snapshot; an owner without any write has no rows and the first version.
    fn run_read(&self, owner: Owner, work: ReadWork<'_>) -> StorageResult<()>;

    /// Runs `work` with the owner to itself. Returns once the work is durable or rolled back.
    fn run_write(&self, owner: Owner, work: WriteWork<'_>) -> StorageResult<()>;

    /// Runs a job like [`Self::run_write`], without blocking the caller until it is durable.
    ///
    /// - Bounds: meant for small jobs. They may share a transaction, so a long job would delay the others.
    /// - The default runs the job synchronously on the caller's thread. A panic propagates, and `finish` is
    ///   not called.
    fn enqueue_write(&self, owner: Owner, mut job: Box<dyn WriteJob>) {
        let result = self.run_write(owner, &mut |txn| job.run(txn));
        job.finish(result);
    }

    /// Whether [`Self::enqueue_write`] may wait for a database, so that it must not be called on the reactor.
    fn enqueue_blocks(&self) -> bool {
        true
    }

    /// The owner's state, if the engine knows without I/O that it is current; otherwise `None`, and the
    /// caller must read it in a transaction.
    ///
    /// The state of a write is returned once the write is durable, never before. While it becomes durable,
    /// nothing is returned for its owner.
    fn known_state(&self, owner: Owner) -> Option<OwnerState>;

    /// Whether the engine knows without I/O that each owner's current version is this one. It knows versions that
    /// [`AccountStore::owners_of`] and [`AccountStore::named_owners`] have returned, and those of writes. Durability as of
    /// [`Self::known_state`].
    fn are_current(&self, _versions: &[(Owner, Version)]) -> bool {
        false
    }

    /// The highest counter of an installation, as [`ReadTxn::counter`] returns it.
    fn counter(&self, owner: Owner, device: DeviceId) -> StorageResult<Option<u64>> {
        let mut found = None;
        self.run_read(owner, &mut |txn| {
            found = txn.counter(device)?;
            Ok(())
        })?;
        Ok(found)
    }

    /// The response that a device got under an idempotency key, as [`ReadTxn::stored_response`] returns it.
    fn stored_response(
        &self,
        owner: Owner,
        device: DeviceId,
        key: &str,
    ) -> StorageResult<Option<StoredResponse>> {
        let mut found = None;
        self.run_read(owner, &mut |txn| {
            found = txn.stored_response(device, key)?;
            Ok(())
        })?;
        Ok(found)
    }

    /// Calls the listener after every durable version change, local or from another server.
    ///
    /// An owner's versions are reported in order; of several in quick succession only the last may be
    /// reported. The listener is called on any thread, for a write of this server before that write returns.
    /// It must be fast, and it stays registered. A change of another server is reported a moment later, or
    /// never if that server stops right then: a caller that must know has to check from time to time.
    fn on_moved(&self, listener: VersionListener);

    /// Size of the write-ahead log, bytes; 0 for an engine that has none of its own.
    fn log_bytes(&self) -> u64 {
        0
    }

    /// Whether the engine can read now.
    fn ready(&self) -> StorageResult<()>;

    /// All owners.
    fn owners(&self) -> &dyn Owners;

    /// Removes at most `rows_max` rows of an owner, of whatever kind, in one transaction; returns whether some may be left.
    /// The owner itself stays, marked as erased, until [`AccountStore::end_erasure`].
    fn erase(&self, owner: Owner, rows_max: usize) -> StorageResult<bool>;

    /// Users and devices.
    fn accounts(&self) -> Arc<dyn AccountStore>;

    /// What is known across owners, for the operator.
    fn census(&self) -> &dyn Census;

    /// How leases of the sync lock are stored.
    fn leases(&self) -> Leases;
}

impl dyn Storage + '_ {
    /// Reads over one snapshot.
    pub fn read<T, E: From<StorageError>>(
        &self,
        owner: Owner,
        mut work: impl FnMut(&mut dyn ReadTxn) -> Result<T, E>,
    ) -> Result<T, E> {
        let mut result = None;
        self.run_read(owner, &mut |txn| {
            result = Some(work(txn));
            Ok(())
        })?;
        result.unwrap_or_else(|| Err(not_run().into()))
    }

    /// Writes in one transaction: committed if `work` returns [`Ok`], otherwise rolled back.
    pub fn write<T: Send, E: From<StorageError> + Send>(
        &self,
        owner: Owner,
        mut work: impl FnMut(&mut dyn WriteTxn) -> Result<T, E> + Send,
    ) -> Result<T, E> {
        let mut result = None;
        self.run_write(owner, &mut |txn| {
            let ended = work(txn);
            let outcome = if ended.is_ok() { Outcome::Commit } else { Outcome::Rollback };
            result = Some(ended);
            Ok(outcome)
        })?;
        result.unwrap_or_else(|| Err(not_run().into()))
    }
}

/// The error of an engine that ended work without having run it.
pub fn not_run() -> StorageError {
    StorageError::Engine("the engine did not run the work".into())
}

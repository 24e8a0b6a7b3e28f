//! The contract between the protocol and whatever keeps the data.
//!
//! What every engine promises, each with a test in `tests/server/storage.rs`:
//! - A transaction is begun for one owner, so no statement can forget whose rows it touches.
//! - A reader sees one snapshot, however long it takes and whatever writers do meanwhile.
//! - A writer holds its owner alone: versions are numbered in the order of commits.
//! - Work that ends in an error, or panics, leaves nothing behind.
//! - [`Storage::run_write`] returns after the engine made the work durable. Work of several owners may become
//!   durable at once; if that fails, it fails for each of them.
//!
//! Everything here blocks; `http` calls it off the reactor.

pub mod accounts;
pub mod census;
pub mod deletions;
pub mod gate;
pub mod installations;
pub mod leases;
pub mod ledger;
pub mod plan;
pub mod quota;
pub mod records;
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
pub use observer::EngineObserver;
pub use quota::PastBytes;
pub use records::{Conflict, ResponsesMax, Side, StoredResponse};

/// What a storage call ends in.
pub type StorageResult<T> = Result<T, StorageError>;

/// Why storage could not do its work. An outcome that the protocol expects is no error.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// Another writer held the engine for longer than `busy_wait_ms`, or the database could not be reached.
    #[error("the database stayed busy")]
    Busy,
    /// As many writers wait already as may.
    #[error("too many wait to write")]
    QueueFull,
    /// The connection broke as the work was about to be made durable, and nobody can tell any more whether it was.
    #[error("the connection to the database broke, and what became of the work is not known")]
    OutcomeUnknown,
    /// The disk, or the database's own limit, is full.
    #[error("the database is full: {0}")]
    Full(String),
    /// Everything else; the cause goes to the log, never to a client.
    #[error("the database failed")]
    Engine(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// What is known of one owner as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnerState {
    /// The version of the last transaction that changed anything.
    pub version: Version,
    /// Changes up to here may have been forgotten: older cursors have expired.
    pub horizon: Version,
    /// Live rows.
    pub rows: u64,
    /// About how many bytes the live rows take.
    pub bytes: u64,
    /// The secret in the owner's digests; `None` until something is written for it.
    pub seed: Option<Seed>,
    /// Rows that were made up to this version may have been shown to devices ahead of their cursors; 0 is none.
    pub shown_ahead: Version,
    /// What its past takes, with everything that the transaction at hand has written.
    pub past: PastBytes,
}

impl OwnerState {
    /// An owner that nothing was ever written for, as of its first version.
    pub const fn new(first: Version) -> Self {
        Self {
            version: first,
            horizon: first,
            rows: 0,
            bytes: 0,
            seed: None,
            shown_ahead: Version(0),
            past: PastBytes::NOTHING,
        }
    }
}

/// One owner's rows as of one moment.
pub trait ReadTxn {
    /// The owner as of this moment.
    fn state(&self) -> OwnerState;

    /// Tells `each` the live rows of a table: phase 1, the roll call.
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

    /// The last of the `steps` live rows of a table that follow `after`; `None` if they are fewer.
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

    /// Walks along the entries of a table that follow `after`, tombstones too, at most `entries_max`.
    fn walk(&mut self, table: TableId, after: Option<RowKey>, entries_max: u64) -> StorageResult<Walked>;

    /// What is held of each key, in the order asked; `None` where nothing ever was.
    fn load(&mut self, table: TableId, keys: &[RowKey]) -> StorageResult<Vec<Option<Stored>>>;

    /// What each table holds, in declared order.
    fn digests(&mut self) -> StorageResult<Vec<Digest>>;

    /// Tells `each` what changed after `after`, up to `until`, until it answers `false`.
    ///
    /// - Shape: by version, then table, then key, tombstones too; each row as it is now.
    fn changes(
        &mut self,
        after: FeedPosition,
        until: Version,
        each: &mut ChangeSink<'_>,
    ) -> StorageResult<()>;

    /// The earlier states of a row that are still remembered, the latest first.
    fn earlier(&mut self, table: TableId, key: RowKey) -> StorageResult<Vec<EarlierState>>;

    /// The answer that a device was given under an idempotency key.
    fn stored_response(&mut self, device: DeviceId, key: &str) -> StorageResult<Option<StoredResponse>>;

    /// The highest counter of an installation; `None` if it never synchronised, or was forgotten.
    fn counter(&mut self, device: DeviceId) -> StorageResult<Option<u64>>;

    /// The owner's installations, by id.
    fn installations(&mut self) -> StorageResult<Vec<Installation>>;

    /// What a device has deleted lately, by table: of tables in which it never deleted anything there is nothing.
    fn delete_windows(&mut self, device: DeviceId) -> StorageResult<Vec<(TableId, DeleteWindow)>>;

    /// A page of conflicts, newest first.
    fn conflicts(&mut self, wanted: &WantedConflicts) -> StorageResult<ConflictPage>;

    /// One conflict.
    fn conflict(&mut self, id: Uuid) -> StorageResult<Option<Conflict>>;

    /// Counts what the owner's past takes. Looks at an entry for each part of it, so it is for the background.
    fn count_past(&mut self) -> StorageResult<PastBytes>;

    /// The keys of the live rows of `table` whose `column` holds `parent`, in no order, at most `rows_max`.
    fn referring(
        &mut self,
        table: TableId,
        column: usize,
        parent: RowKey,
        rows_max: usize,
    ) -> StorageResult<Vec<RowKey>>;
}

/// One owner's rows, held alone until the work ends.
pub trait WriteTxn: ReadTxn {
    /// The owner's lease as the transaction began with it, and as it stays until the transaction ends; `None`
    /// where the engine keeps no leases.
    fn lease(&self) -> Option<&LeaseState> {
        None
    }

    /// Writes rows and tombstones in place of what was held. A key comes at most once.
    ///
    /// The caller orders its calls: live rows with parents before their children, then tombstones with
    /// children before their parents. Rows of one table may refer to each other in any order.
    fn put(&mut self, table: TableId, rows: &[(RowKey, &Stored)]) -> StorageResult<()>;

    /// Says what the owner is as a whole once the work is done, and its tables' digests where they changed.
    ///
    /// `now` dates the version, so that a purge can tell how old a tombstone is. Of `state.past` the caller counts the
    /// tombstones; everything else in it is as [`ReadTxn::state`] returned it last.
    fn advance(
        &mut self,
        state: OwnerState,
        digests: &[(TableId, Digest)],
        now: Timestamp,
    ) -> StorageResult<()>;

    /// Notes that rows which were made up to `until` may have been shown to devices ahead of their cursors. No version
    /// moves by it.
    fn show_ahead(&mut self, until: Version) -> StorageResult<()>;

    /// Remembers states that are about to be replaced, and forgets all but the newest `states_max` of each row.
    fn remember(
        &mut self,
        table: TableId,
        rows: &[(RowKey, &Stored)],
        states_max: usize,
    ) -> StorageResult<()>;

    /// Notes a conflict; one that is noted already stays as it is.
    fn note_conflict(&mut self, conflict: &Conflict) -> StorageResult<()>;

    /// Notes that the loser of a conflict was brought back.
    fn note_restored(&mut self, id: Uuid, at: Timestamp) -> StorageResult<()>;

    /// Keeps an answer under an idempotency key, and forgets all but the newest of the device.
    ///
    /// Bounds: `most`, of which the bytes may be passed by as much again by short answers that follow a long one. They
    /// are added up when a long answer is kept.
    fn store_response(
        &mut self,
        device: DeviceId,
        key: &str,
        response: &StoredResponse,
        most: ResponsesMax,
    ) -> StorageResult<()>;

    /// Notes up to where a device has seen everything, and that it lives.
    fn acknowledge(&mut self, device: DeviceId, version: Version, now: Timestamp) -> StorageResult<()>;

    /// Forgets up to where a device has seen everything, and what it has deleted lately: it was signed out, and holds no
    /// tombstone back.
    fn forget_device(&mut self, device: DeviceId) -> StorageResult<()>;

    /// Notes what a device has deleted of a table, in place of what was noted.
    fn put_delete_window(
        &mut self,
        device: DeviceId,
        table: TableId,
        window: &DeleteWindow,
    ) -> StorageResult<()>;

    /// Writes what is known of an installation now; `false`, and nothing is written, if none of that id is there, or
    /// its counter is higher.
    fn raise_installation(&mut self, one: &Installation) -> StorageResult<bool>;

    /// Notes an installation that is not there yet.
    fn add_installation(&mut self, one: &Installation) -> StorageResult<()>;

    /// Forgets an installation, its kept answers, and up to where it has seen everything.
    fn forget_installation(&mut self, device: DeviceId) -> StorageResult<()>;

    /// Forgets earlier states, the oldest first, then kept answers, until `more` bytes fit below `max`; returns whether
    /// they do.
    ///
    /// - Bounds: at most `entries_max` entries. A `max` of 0 is none.
    /// - As long as the owner's past is not counted, nothing is forgotten and everything fits.
    fn make_room(&mut self, more: u64, max: u64, entries_max: usize) -> StorageResult<bool>;

    /// Replaces the sums of the owner's past by ones that were counted.
    fn set_past(&mut self, past: PastBytes) -> StorageResult<()>;

    /// Forgets what is old, at most about `rows_max` entries of each kind; says whether that was all.
    fn purge(&mut self, terms: &PurgeTerms, rows_max: usize) -> StorageResult<Purged>;
}

/// What lies among some entries of a table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Walked {
    /// How many entries were looked at.
    pub entries: u64,
    /// How many of them are live rows.
    pub live: u64,
    /// The last key of them; `None` if there were none.
    pub last: Option<RowKey>,
}

/// How far changes have been told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FeedPosition {
    /// All changes of earlier versions have been told.
    pub version: Version,
    /// Of this version, those up to here have been told; `None` is all of them.
    pub within: Option<(TableId, RowKey)>,
}

/// Looks at one changed row; answers whether to go on. The row is lent: the next one may have its place in memory.
pub type ChangeSink<'a> = dyn FnMut(TableId, RowKey, &Stored) -> bool + 'a;

/// Which conflicts to list, and how much of them at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WantedConflicts {
    /// Only of this table.
    pub table: Option<TableId>,
    /// Only of this row.
    pub key: Option<RowKey>,
    /// Only those after this one.
    pub after: Option<(Timestamp, Uuid)>,
    /// At most so many.
    pub rows_max: usize,
    /// Look at no more than so many, those included that are not listed.
    pub entries_max: usize,
    /// List no more once those listed have so many bytes, as they are stored.
    pub bytes_max: usize,
}

/// A page of conflicts. It may have fewer than were asked for, or none, and yet not be the last.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct ConflictPage {
    /// Newest first.
    pub conflicts: Vec<Conflict>,
    /// The next page lists what comes after this one; `None` if this was the last page.
    pub next: Option<(Timestamp, Uuid)>,
}

/// What is old.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PurgeTerms {
    /// Now, by the server's clock.
    pub now: Timestamp,
    /// Tombstones of before may go, and earlier states of rows.
    pub tombstones_before: Timestamp,
    /// Devices that were not heard of since do not hold a tombstone back.
    pub devices_before: Timestamp,
    /// Conflicts of before may go.
    pub conflicts_before: Timestamp,
    /// Answers of before may go.
    pub responses_before: Timestamp,
    /// How many bytes an owner's past may take; 0 is no bound. Beyond it the oldest history may go, then answers.
    pub past_bytes_max: u64,
}

/// What a purge forgot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Purged {
    /// Tombstones.
    pub tombstones: u64,
    /// Earlier states, conflicts and answers.
    pub records: u64,
    /// Whether more is old.
    pub more: bool,
    /// Whether the owner's past should be counted: it never was, or it passes its bound and nothing is left that may go.
    pub is_to_count: bool,
}

impl Purged {
    /// Whether there was anything to forget.
    pub const fn is_nothing(&self) -> bool {
        self.tombstones == 0 && self.records == 0
    }

    /// Adds what went to make room: `entries` of `rows_max`, after which the past passes its bound by `excess` bytes.
    pub fn note_room(&mut self, entries: usize, rows_max: usize, excess: u64, is_counted: bool) {
        self.records += entries as u64;
        self.more |= entries == rows_max && excess > 0;
        self.is_to_count = !is_counted || (excess > 0 && entries < rows_max);
    }
}

impl std::ops::AddAssign for Purged {
    fn add_assign(&mut self, other: Self) {
        self.tombstones += other.tombstones;
        self.records += other.records;
        self.more = other.more;
        self.is_to_count = other.is_to_count;
    }
}

/// Whether a piece of work wants to be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Make it durable.
    Commit,
    /// Leave nothing of it.
    Rollback,
}

/// Work inside a read transaction, as engines take it.
pub type ReadWork<'a> = &'a mut dyn FnMut(&mut dyn ReadTxn) -> StorageResult<()>;

/// Work inside a write transaction, as engines take it. An engine may run it again from the start.
pub type WriteWork<'a> = &'a mut (dyn FnMut(&mut dyn WriteTxn) -> StorageResult<Outcome> + Send);

/// A write for which no thread waits.
pub trait WriteJob: Send {
    /// Does the work, as [`WriteWork`]. An engine may run it again from the start.
    fn run(&mut self, txn: &mut dyn WriteTxn) -> StorageResult<Outcome>;

    /// Is called once, on any thread, when the work is durable or rolled back. Must be quick: others may wait.
    fn finish(self: Box<Self>, result: StorageResult<()>);
}

/// Hears that the version of an owner has moved, and where to.
pub type VersionListener = Arc<dyn Fn(Owner, Version) + Send + Sync>;

/// An engine.
pub trait Storage: Send + Sync {
    /// Runs `work` over one snapshot; an owner never seen before has no rows and the first version.
    fn run_read(&self, owner: Owner, work: ReadWork<'_>) -> StorageResult<()>;

    /// Runs `work` with the owner to itself. Returns once it is durable or undone.
    fn run_write(&self, owner: Owner, work: WriteWork<'_>) -> StorageResult<()>;

    /// Has a job run as [`Self::run_write`] runs work, without keeping the caller until it is durable.
    ///
    /// - Bounds: meant for small jobs. They may share a transaction, so a long one would keep the others waiting.
    /// - The default runs the job at once, on the caller's thread. If the job panics there, so does this call, and
    ///   `finish` is not called.
    fn enqueue_write(&self, owner: Owner, mut job: Box<dyn WriteJob>) {
        let result = self.run_write(owner, &mut |txn| job.run(txn));
        job.finish(result);
    }

    /// Whether [`Self::enqueue_write`] may wait for a database, and so must not be called on the reactor.
    fn enqueue_blocks(&self) -> bool {
        true
    }

    /// The owner's state, where the engine knows it without I/O and can vouch that it is not old; else `None`:
    /// ask in a transaction.
    ///
    /// What a write did is told once that write is durable, never before; while it is becoming durable nothing
    /// is told of its owner.
    fn known_state(&self, owner: Owner) -> Option<OwnerState>;

    /// The highest counter of an installation, as [`ReadTxn::counter`] tells it.
    fn counter(&self, owner: Owner, device: DeviceId) -> StorageResult<Option<u64>> {
        let mut found = None;
        self.run_read(owner, &mut |txn| {
            found = txn.counter(device)?;
            Ok(())
        })?;
        Ok(found)
    }

    /// `told` hears of every owner whose version moved, once that is durable, whoever wrote it.
    ///
    /// An owner's versions are told in order; of several that follow each other closely only the last may be told.
    /// `told` is called from any thread, before the write that it hears of returns if this server made it, and must
    /// be quick; it is never forgotten again. What another server wrote is told a moment later, or, should that
    /// server end right then, not at all: who must know asks now and then.
    fn on_moved(&self, listener: VersionListener);

    /// Size of the write-ahead log, bytes; 0 for an engine that keeps none of its own.
    fn log_bytes(&self) -> u64 {
        0
    }

    /// Whether the engine can read now.
    fn ready(&self) -> StorageResult<()>;

    /// Every owner after `after`, by id, at most `owners_max`.
    fn owners(&self, after: Option<Owner>, owners_max: usize) -> StorageResult<Vec<Owner>>;

    /// Users and devices.
    fn accounts(&self) -> Arc<dyn AccountStore>;

    /// What is known beyond one owner, for whoever runs the server.
    fn census(&self) -> &dyn Census;

    /// How leases of the sync lock are kept.
    fn leases(&self) -> Leases;
}

/// Whatever can forget what is old: an engine, or a database whose schema is not at hand.
pub trait Forgetful {
    /// Every owner after `after`, by id, at most `owners_max`.
    fn next_owners(&self, after: Option<Owner>, owners_max: usize) -> StorageResult<Vec<Owner>>;

    /// Forgets what is old of one owner in one transaction, as [`WriteTxn::purge`] does.
    fn forget(&self, owner: Owner, terms: &PurgeTerms, rows_max: usize) -> StorageResult<Purged>;

    /// Counts what an owner's past takes: over one snapshot, and beside writers.
    fn count(&self, owner: Owner) -> StorageResult<()>;
}

impl Forgetful for dyn Storage + '_ {
    fn next_owners(&self, after: Option<Owner>, owners_max: usize) -> StorageResult<Vec<Owner>> {
        self.owners(after, owners_max)
    }

    fn forget(&self, owner: Owner, terms: &PurgeTerms, rows_max: usize) -> StorageResult<Purged> {
        self.write(owner, |txn| txn.purge(terms, rows_max))
    }

    fn count(&self, owner: Owner) -> StorageResult<()> {
        let (before, counted) =
            self.read(owner, |txn| Ok::<_, StorageError>((txn.state().past, txn.count_past()?)))?;
        self.write(owner, |txn| {
            let now = txn.state().past;
            txn.set_past(now.corrected(&before, &counted))
        })
    }
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

    /// Writes in one transaction: kept if `work` ends well, else undone.
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

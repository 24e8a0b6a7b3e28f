//! What a purge may forget, and when each owner is due for one.

use uuid::Uuid;

use super::{OwnerState, Storage, StorageError, StorageResult};
use crate::broken;
use crate::model::{Owner, Timestamp};

/// A purge looks at an owner this long after a write, ms, and then knows when the next thing is old enough. Most
/// things last longer; what is to last for less than this is forgotten late.
const FIRST_LOOK_MS: i64 = Timestamp::DAY_MS;

/// When an owner is due that the next purge is to look at: a device that is gone keeps no tombstones any more.
pub const DUE_AT_ONCE: Timestamp = Timestamp::from_ms(0);

impl OwnerState {
    /// Notes that something was stored which ages from now on.
    pub fn ages_from(&mut self, now: Timestamp) {
        if broken::is("never_due") {
            return;
        }
        let look = now.shifted(FIRST_LOOK_MS);
        self.due_at = Some(self.due_at.map_or(look, |due| due.min(look)));
    }
}

/// What counts as old.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PurgeTerms {
    /// The current time, by the server's clock.
    pub now: Timestamp,
    /// Older tombstones, and older earlier states of rows, may be forgotten.
    pub tombstones_before: Timestamp,
    /// A device without a request since then does not keep tombstones.
    pub devices_before: Timestamp,
    /// Older conflicts may be forgotten.
    pub conflicts_before: Timestamp,
    /// Older stored responses may be forgotten.
    pub responses_before: Timestamp,
    /// How many bytes an owner's past may take; 0 means no bound. Beyond it the oldest history may be
    /// forgotten, then responses.
    pub past_bytes_max: u64,
}

/// How long each thing is kept, ms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ages {
    /// Tombstones, and earlier states of rows.
    pub tombstones: i64,
    /// What is known of a device that sends no more requests.
    pub devices: i64,
    /// Conflicts.
    pub conflicts: i64,
    /// Stored responses.
    pub responses: i64,
}

impl PurgeTerms {
    /// How long each thing is kept.
    pub fn ages(&self) -> Ages {
        let age = |before: Timestamp| self.now.ms().saturating_sub(before.ms());
        Ages {
            tombstones: age(self.tombstones_before),
            devices: age(self.devices_before),
            conflicts: age(self.conflicts_before),
            responses: age(self.responses_before),
        }
    }

    /// When an owner is next to be looked at.
    ///
    /// - `oldest`: when the oldest thing that is left will be old enough.
    pub fn due_after(&self, purged: &Purged, oldest: Option<Timestamp>) -> Option<Timestamp> {
        match purged {
            Purged { more: true, .. } => Some(self.now),
            Purged { is_to_count: true, .. } => {
                let look = self.now.shifted(FIRST_LOOK_MS);
                Some(oldest.map_or(look, |oldest| oldest.min(look)))
            }
            _ => oldest,
        }
    }

    /// A number for the ages and the bound: other terms have another one. Owners are due by the terms of the purge
    /// that last looked at them.
    pub fn fingerprint(&self) -> i64 {
        let terms = format!("{:?} {}", self.ages(), self.past_bytes_max);
        Uuid::new_v5(&Uuid::NAMESPACE_OID, terms.as_bytes()).as_u64_pair().0.cast_signed()
    }
}

/// What a purge forgot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Purged {
    /// Tombstones.
    pub tombstones: u64,
    /// Earlier states, conflicts and stored responses.
    pub records: u64,
    /// Whether more old data is left.
    pub more: bool,
    /// Whether the owner's past should be counted: it never was, or it exceeds its bound and nothing more may
    /// be forgotten.
    pub is_to_count: bool,
}

impl Purged {
    /// Whether nothing was forgotten.
    pub const fn is_nothing(&self) -> bool {
        self.tombstones == 0 && self.records == 0
    }

    /// Adds what was forgotten to make room: `entries` of `rows_max`, after which the past exceeds its bound
    /// by `excess` bytes.
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

/// Owners, and when each is due for a purge.
pub trait Owners {
    /// Every owner after `after`, by id, at most `owners_max`.
    fn page(&self, after: Option<Owner>, owners_max: usize) -> StorageResult<Vec<Owner>>;

    /// The owners that are due at `now` or before, by time and id, after `after`, at most `owners_max`. An owner that is
    /// not due is not read.
    fn due(&self, now: Timestamp, after: Option<DueOwner>, owners_max: usize)
    -> StorageResult<Vec<DueOwner>>;

    /// The fingerprint of the terms by which owners are due; `None` if there was no purge yet.
    fn due_by(&self) -> StorageResult<Option<i64>>;

    /// Stores that every owner is due by the terms with this fingerprint.
    fn set_due_by(&self, fingerprint: i64) -> StorageResult<()>;
}

/// When an owner is due, and which one it is.
pub type DueOwner = (Timestamp, Owner);

/// Something that can forget old data: an engine, or a database whose schema is not available.
pub trait Forgetful {
    /// All owners.
    fn owners(&self) -> &dyn Owners;

    /// Forgets old data of one owner in one transaction, like [`WriteTxn::purge`](super::WriteTxn::purge).
    fn forget(&self, owner: Owner, terms: &PurgeTerms, rows_max: usize) -> StorageResult<Purged>;

    /// Counts what an owner's past takes, over one snapshot and concurrently with writers.
    fn count(&self, owner: Owner) -> StorageResult<()>;
}

impl Forgetful for dyn Storage + '_ {
    fn owners(&self) -> &dyn Owners {
        Storage::owners(self)
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

//! Caches owners' states, so that "has anything changed?" needs no database access.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use rusqlite::Connection;

use rollcall_core::cache::Cache;
use rollcall_core::model::{Owner, Version};
use rollcall_core::storage::{OwnerState, VersionListener};

/// Owners whose state is cached: about 5 MB. The polls of one second concern fewer owners, and an evicted one
/// costs one read.
const OWNERS_MAX: usize = 32_768;

/// Owners whose version is cached too: some 3 MB. A user may have 2,000 owners, of which most are at rest.
const VERSIONS_MAX: usize = 65_536;

/// How long a check of other processes' commits stays valid. A check costs a few microseconds.
const OTHERS_UNSEEN: Duration = Duration::from_millis(10);

/// The states of owners as of their last commit.
///
/// Before each COMMIT of this process, the states of its owners are removed, and after it the new ones are
/// added; in between the cache returns nothing for them. Commits of other processes are detected by `PRAGMA
/// data_version` on the writing connection, which changes with every commit except its own.
pub(super) struct OwnerStateCache {
    states: Mutex<States>,
    listeners: RwLock<Vec<VersionListener>>,
    /// Whether this process has a write transaction open. Then no other process can commit.
    alone: AtomicBool,
    /// `PRAGMA data_version` at the last check, and the time of that check in microseconds since `began`.
    others: AtomicI64,
    looked_us: AtomicU64,
    began: Instant,
}

struct States {
    cache: Cache<Owner, OwnerState>,
    /// Of more owners than there are states of.
    versions: Cache<Owner, Version>,
    /// Incremented before each COMMIT and after it: odd while one is in progress.
    moves: u64,
}

/// The number of changes before a snapshot is taken.
#[derive(Clone, Copy)]
pub(super) struct CacheStamp(u64);

impl OwnerStateCache {
    pub fn new() -> Self {
        Self {
            states: Mutex::new(States {
                cache: Cache::new(OWNERS_MAX),
                versions: Cache::new(VERSIONS_MAX),
                moves: 0,
            }),
            listeners: RwLock::default(),
            alone: AtomicBool::new(false),
            others: AtomicI64::new(-1),
            looked_us: AtomicU64::new(0),
            began: Instant::now(),
        }
    }

    pub fn add_listener(&self, listener: VersionListener) {
        self.listeners.write().push(listener);
    }

    /// An owner's state; `None` if it is unknown or may be outdated.
    ///
    /// `look` is called to check the database if the last check is too old.
    pub fn get(&self, owner: Owner, look: impl FnOnce()) -> Option<OwnerState> {
        self.is_fresh_after(look).then(|| self.states.lock().cache.get(&owner).copied()).flatten()
    }

    /// Whether these are the current versions of the owners; `false` also if one is unknown or may be outdated.
    pub fn are_current(&self, versions: &[(Owner, Version)], look: impl FnOnce()) -> bool {
        if !self.is_fresh_after(look) {
            return false;
        }
        let mut states = self.states.lock();
        versions.iter().all(|(owner, version)| states.versions.get(owner) == Some(version))
    }

    fn is_fresh_after(&self, look: impl FnOnce()) -> bool {
        if !self.is_fresh() {
            look();
        }
        self.is_fresh()
    }

    fn is_fresh(&self) -> bool {
        // The order matters: a transaction that ends between the two reads has recorded its end as a check
        // before.
        self.alone.load(Ordering::SeqCst)
            || self.now_us().saturating_sub(self.looked_us.load(Ordering::SeqCst))
                <= OTHERS_UNSEEN.as_micros() as u64
    }

    fn now_us(&self) -> u64 {
        self.began.elapsed().as_micros() as u64
    }

    /// Checks whether another process has committed; `conn` is the writing connection.
    pub fn look(&self, conn: &Connection) -> rusqlite::Result<()> {
        let now = self.now_us();
        let others = conn.prepare_cached("PRAGMA data_version")?.query_row([], |row| row.get(0))?;
        if self.others.swap(others, Ordering::SeqCst) != others {
            self.states.lock().clear();
        }
        self.looked_us.fetch_max(now, Ordering::SeqCst);
        Ok(())
    }

    /// A write transaction begins: checks once, after which the cache is valid until the transaction ends.
    pub fn begun(&self, conn: &Connection) -> rusqlite::Result<()> {
        self.look(conn)?;
        self.alone.store(true, Ordering::SeqCst);
        Ok(())
    }

    /// The transaction is about to end, after which other processes may write.
    pub fn ending(&self) {
        if self.alone.load(Ordering::SeqCst) {
            self.looked_us.fetch_max(self.now_us(), Ordering::SeqCst);
            self.alone.store(false, Ordering::SeqCst);
        }
    }

    /// Called before a COMMIT: nothing is returned for these owners until [`Self::committed`].
    pub fn committing(&self, owners: impl Iterator<Item = Owner>) {
        let mut states = self.states.lock();
        states.moves += 1;
        owners.for_each(|owner| {
            states.cache.remove(&owner);
            states.versions.remove(&owner);
        });
    }

    /// Called after each [`Self::committing`]; `moved` are the owners of a successful COMMIT, and their
    /// versions before it.
    pub fn committed(&self, moved: &[(Owner, Version, OwnerState)]) {
        let mut states = self.states.lock();
        states.moves += 1;
        for (owner, _, state) in moved {
            states.cache.insert(*owner, *state);
            states.versions.insert(*owner, state.version);
        }
        drop(states);
        let listeners = self.listeners.read();
        for (owner, before, state) in moved {
            if *before != state.version {
                for told in listeners.iter() {
                    // A listener's panic must not stop the writer.
                    if catch_unwind(AssertUnwindSafe(|| told(*owner, state.version))).is_err() {
                        tracing::error!(%owner, "a listener panicked");
                    }
                }
            }
        }
    }

    /// Taken before a snapshot.
    pub fn stamp(&self) -> CacheStamp {
        CacheStamp(self.states.lock().moves)
    }

    /// Caches the state of a snapshot, unless it may be outdated because a commit happened since `stamp` or
    /// is in progress.
    pub fn note(&self, stamp: CacheStamp, owner: Owner, state: OwnerState) {
        let mut states = self.states.lock();
        if states.moves == stamp.0 && stamp.0.is_multiple_of(2) && states.cache.get(&owner).is_none() {
            states.cache.insert(owner, state);
        }
    }
}

impl OwnerStateCache {
    /// Caches the versions of a snapshot, as [`Self::note`] does the state.
    pub fn note_versions(&self, stamp: CacheStamp, versions: impl Iterator<Item = (Owner, Version)>) {
        let mut states = self.states.lock();
        if states.moves == stamp.0 && stamp.0.is_multiple_of(2) {
            for (owner, version) in versions {
                states.versions.insert(owner, version);
            }
        }
    }
}

impl States {
    /// Clears the cache and invalidates all stamps taken before.
    fn clear(&mut self) {
        self.cache.clear();
        self.versions.clear();
        self.moves += 2;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn owner(n: u128) -> Owner {
        Owner(Uuid::from_u128(n))
    }

    fn at(version: u64) -> OwnerState {
        OwnerState { horizon: Version(1), ..OwnerState::new(Version(version)) }
    }

    fn owner_states(owner_states: &OwnerStateCache, n: u128) -> Option<OwnerState> {
        owner_states.states.lock().cache.get(&owner(n)).copied()
    }

    #[test]
    fn a_snapshot_that_may_be_old_is_not_noted() {
        let states = OwnerStateCache::new();
        let before = states.stamp();
        states.note(before, owner(1), at(1));
        assert_eq!(owner_states(&states, 1), Some(at(1)));
        states.committing([owner(1)].into_iter());
        assert_eq!(owner_states(&states, 1), None, "nobody vouches while a COMMIT is under way");
        let within = states.stamp();
        states.note(before, owner(1), at(1));
        states.note(within, owner(1), at(1));
        assert_eq!(owner_states(&states, 1), None);
        states.committed(&[(owner(1), Version(1), at(2))]);
        states.note(before, owner(1), at(1));
        states.note(within, owner(2), at(1));
        assert_eq!((owner_states(&states, 1), owner_states(&states, 2)), (Some(at(2)), None));
        let after = states.stamp();
        states.states.lock().clear();
        states.note(after, owner(3), at(1));
        assert_eq!((owner_states(&states, 1), owner_states(&states, 3)), (None, None));
    }

    /// Goal: a version is current only as long as nothing else may be. Method: a commit, and a snapshot from before it.
    #[test]
    fn versions_are_current_until_a_commit_begins() {
        let states = OwnerStateCache::new();
        states.looked_us.store(u64::MAX, Ordering::SeqCst); // nobody else writes
        let are = |versions: &[(u128, u64)]| {
            let versions: Vec<_> =
                versions.iter().map(|(n, version)| (owner(*n), Version(*version))).collect();
            states.are_current(&versions, || {})
        };
        let before = states.stamp();
        states.note_versions(before, [(owner(1), Version(1)), (owner(2), Version(1))].into_iter());
        assert!(are(&[]) && are(&[(1, 1), (2, 1)]) && !are(&[(1, 1), (2, 2)]) && !are(&[(3, 1)]));
        states.committing([owner(1)].into_iter());
        assert!(!are(&[(1, 1)]) && are(&[(2, 1)]));
        states.note_versions(before, [(owner(1), Version(1))].into_iter());
        assert!(!are(&[(1, 1)]), "a snapshot that may be old");
        states.committed(&[(owner(1), Version(1), at(2))]);
        states.note_versions(before, [(owner(1), Version(1))].into_iter());
        assert!(!are(&[(1, 1)]) && are(&[(1, 2), (2, 1)]));
        states.states.lock().clear();
        assert!(!are(&[(2, 1)]));
    }

    #[test]
    fn what_is_known_stays_within_its_bound_and_keeps_what_is_asked_for() {
        let states = OwnerStateCache::new();
        for n in 0..3 * OWNERS_MAX as u128 {
            states.note(states.stamp(), owner(n), at(1));
            assert_eq!(owner_states(&states, 0), Some(at(1)), "asked for again and again");
        }
        let states = states.states.lock();
        assert!(states.cache.len() <= OWNERS_MAX);
    }
}

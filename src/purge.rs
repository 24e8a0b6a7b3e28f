//! Forgets old data: tombstones that every active device has read, conflicts, responses. It also keeps the
//! past of each owner within its bound, and counts it if that was never done.

use std::collections::HashMap;
use std::time::Instant;

use parking_lot::Mutex;

use crate::accounts::Caller;
use crate::config::SyncSettings;
use crate::model::{DeviceId, Owner, Timestamp, Version};
use crate::storage::{Forgetful, PurgeTerms, Purged, Storage, StorageResult};

const HOUR_MS: i64 = 3_600_000;

/// Entries that one transaction forgets: a writer waits some 20 ms for it.
const ROWS_PER_TRANSACTION: usize = 1_000;

/// Owners that are read at a time.
const OWNERS_PER_PAGE: usize = 1_000;

/// What the settings define as old, and how many bytes the past of an owner may take.
pub fn terms(settings: &SyncSettings, past_bytes_max: u64, now: Timestamp) -> PurgeTerms {
    let days_ago = |days: u32| now.shifted(-i64::from(days) * Timestamp::DAY_MS);
    PurgeTerms {
        now,
        tombstones_before: days_ago(settings.tombstone_days),
        devices_before: days_ago(settings.device_days),
        conflicts_before: days_ago(settings.conflict_days),
        responses_before: now.shifted(-i64::from(settings.idempotency_hours) * HOUR_MS),
        past_bytes_max,
    }
}

/// Forgets old data of the owners that are due, in small transactions; of every owner if the last purge of all had
/// other terms.
///
/// - `each` is called after every transaction, and returns whether to continue.
/// - It may be interrupted at any time: what a transaction forgot stays forgotten, and the next run
///   continues.
/// - Writers have priority: after each transaction it pauses for as long as that took.
/// - Cost: nothing is read of an owner that is not due.
pub fn run<T: Forgetful + ?Sized>(
    storage: &T,
    terms: &PurgeTerms,
    each: &mut Watch<'_>,
) -> StorageResult<Purged> {
    let (owners, fingerprint) = (storage.owners(), terms.fingerprint());
    if owners.due_by()? != Some(fingerprint) {
        return run_all(storage, terms, each);
    }
    let mut after = None;
    let mut next = || -> StorageResult<Vec<Owner>> {
        let due = owners.due(terms.now, after, OWNERS_PER_PAGE)?;
        after = due.last().copied().or(after);
        Ok(due.into_iter().map(|(_, owner)| owner).collect())
    };
    Ok(of_owners(storage, terms, &mut next, each)?.0)
}

/// Forgets old data of every owner, like [`run`].
pub fn run_all<T: Forgetful + ?Sized>(
    storage: &T,
    terms: &PurgeTerms,
    each: &mut Watch<'_>,
) -> StorageResult<Purged> {
    let owners = storage.owners();
    let mut after = None;
    let mut next = || -> StorageResult<Vec<Owner>> {
        let page = owners.page(after, OWNERS_PER_PAGE)?;
        after = page.last().copied().or(after);
        Ok(page)
    };
    let (total, is_whole) = of_owners(storage, terms, &mut next, each)?;
    if is_whole {
        owners.set_due_by(terms.fingerprint())?;
    }
    Ok(total)
}

/// Is called after every transaction, and returns whether to continue.
pub type Watch<'a> = dyn FnMut(Owner, Purged) -> bool + 'a;

/// Forgets old data of the owners that `next` returns; returns whether it came to the end.
fn of_owners<T: Forgetful + ?Sized>(
    storage: &T,
    terms: &PurgeTerms,
    next: &mut dyn FnMut() -> StorageResult<Vec<Owner>>,
    each: &mut Watch<'_>,
) -> StorageResult<(Purged, bool)> {
    let mut total = Purged::default();
    loop {
        let owners = next()?;
        if owners.is_empty() {
            return Ok((total, true));
        }
        for owner in owners {
            if !of_owner(storage, owner, terms, &mut total, each)? {
                return Ok((total, false));
            }
        }
    }
}

/// Forgets old data of one owner, and adds it to `total`; returns whether to continue.
fn of_owner<T: Forgetful + ?Sized>(
    storage: &T,
    owner: Owner,
    terms: &PurgeTerms,
    total: &mut Purged,
    each: &mut Watch<'_>,
) -> StorageResult<bool> {
    let mut counts = true; // once a run
    loop {
        let begun = Instant::now();
        let purged = storage.forget(owner, terms, ROWS_PER_TRANSACTION)?;
        *total += purged;
        if !each(owner, purged) {
            return Ok(false);
        }
        if !purged.is_nothing() {
            // SQLite's lock is not fair: without a pause the purge would starve other writers.
            std::thread::sleep(begun.elapsed());
        }
        if purged.is_to_count && !purged.more && counts {
            storage.count(owner)?;
            counts = false; // forgets what exceeds the bound now
        } else if !purged.more {
            return Ok(true);
        }
    }
}

/// The cursors that devices have acknowledged, in memory until they are written.
///
/// Losing them in a crash only keeps tombstones longer.
#[derive(Default)]
pub struct Acks(Mutex<HashMap<(Owner, DeviceId), (Version, Timestamp)>>);

impl Acks {
    /// Records a device's cursor: it has read everything up to this version. Those who are no members leave none.
    pub fn note(&self, caller: &Caller, cursor: Option<Version>, now: Timestamp) {
        if let Some(version) = cursor.filter(|_| !caller.rights.is_public()) {
            self.0.lock().insert((caller.owner, caller.seen_as()), (version, now));
        }
    }

    /// The cursors of an owner's devices since the last write.
    pub fn noted(&self, owner: Owner) -> Vec<(DeviceId, Version, Timestamp)> {
        let noted = self.0.lock();
        let own = noted.iter().filter(|((of, _), _)| *of == owner);
        own.map(|((_, device), (version, at))| (*device, *version, *at)).collect()
    }

    /// Removes a device that was signed out.
    pub fn forget(&self, owner: Owner, device: DeviceId) {
        self.0.lock().remove(&(owner, device));
    }

    /// Writes the cursors since the last write, until `go_on` returns false.
    ///
    /// Errors: what could not be written is kept for the next time.
    pub fn flush(&self, storage: &dyn Storage, go_on: &mut dyn FnMut() -> bool) -> StorageResult<()> {
        let mut by_owner: HashMap<Owner, Vec<(DeviceId, Version, Timestamp)>> = HashMap::new();
        for ((owner, device), (version, at)) in std::mem::take(&mut *self.0.lock()) {
            by_owner.entry(owner).or_default().push((device, version, at));
        }
        let mut failed = Ok(());
        for (owner, acks) in by_owner {
            if failed.is_ok() && go_on() {
                failed = storage.write(owner, |txn| {
                    acks.iter().try_for_each(|(device, version, at)| txn.acknowledge(*device, *version, *at))
                });
                if failed.is_ok() {
                    continue;
                }
            }
            let mut noted = self.0.lock();
            for (device, version, at) in acks {
                noted.entry((owner, device)).or_insert((version, at)); // unless the device has acknowledged a newer one
            }
        }
        failed
    }
}

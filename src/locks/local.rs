use std::collections::{HashMap, hash_map};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use super::{Lease, LockError, LockGuard, LockListener, LockResult, Locks};
use crate::accounts::Caller;
use crate::broken;
use crate::clock::{Clock, Tick};
use crate::model::{Fence, Owner, Timestamp};
use crate::storage::{LeaseState, LeaseTerms};

/// The locks of a server that has its database to itself, stored in memory.
///
/// A restart forgets the leases. It cannot repeat a fence, since the fences of a run begin above those of all
/// earlier runs. So a holder from before the restart learns that it lost its lease.
///
/// A lease ends by the monotonic clock. Its displayed times are what the time of day will be then.
pub struct LocalLocks {
    clock: Clock,
    terms: LeaseTerms,
    state: Mutex<State>,
    listener: OnceLock<LockListener>,
}

struct State {
    last_fence: Fence,
    owners: HashMap<Owner, Entry>,
    /// The number of entries at which old ones are removed.
    sweep_at: usize,
}

/// The newest lease of an owner, and the requests under it.
struct Entry {
    lease: Lease,
    /// When the holder's present hold began.
    held_from: Tick,
    /// When the last request of the holder ended, if any.
    worked_until: Tick,
    /// Requests of the holder in progress. Until they end, no other device gets the lock.
    at_work: usize,
    /// Set after the holder released the lease, or the owner broke it.
    ended: Option<Ended>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Ended {
    /// By its holder; a request in progress may still commit.
    GivenBack,
    /// By another device or the owner: writes in progress under it must not commit.
    Broken,
}

impl Entry {
    fn of(lease: Lease, now: Now) -> Self {
        Self { lease, held_from: now.tick, worked_until: now.tick, at_work: 0, ended: None }
    }

    /// Whether another device must wait.
    fn is_held(&self, now: Now) -> bool {
        self.at_work > 0 || (self.ended.is_none() && now.tick < self.lease.ends)
    }

    /// Renews the lease, within the hold.
    fn renew(&mut self, now: Now, terms: LeaseTerms) {
        let hold_left = self.held_from.shifted(terms.hold_ms).ms_since(now.tick);
        if hold_left > 0 {
            let ms = terms.lease_ms.min(hold_left);
            self.lease.ends = now.tick.shifted(ms);
            self.lease.until = now.time.shifted(ms);
        }
    }

    /// Continues the holder's lease.
    ///
    /// Errors: this lease, if the hold is over, until other devices have had a chance for the length of one
    /// lease. Then a new hold begins, if no other device took the lock.
    fn go_on(&mut self, now: Now, terms: LeaseTerms) -> Result<(), Lease> {
        let free_from = self.lease.ends.max(self.worked_until);
        let rests_until = free_from.shifted(terms.lease_ms);
        if self.at_work == 0 && now.tick >= rests_until {
            (self.held_from, self.lease.since) = (now.tick, now.time);
        } else if now.tick >= self.held_from.shifted(terms.hold_ms) && !broken::is("hold_unbounded") {
            let ends = if self.at_work > 0 { now.tick.shifted(terms.lease_ms) } else { rests_until };
            let until = now.time.shifted(ends.ms_since(now.tick));
            return Err(Lease { ends, until, ..self.lease.clone() });
        }
        self.renew(now, terms);
        Ok(())
    }

    /// The lease as it is displayed: the time of day may have been set since it was taken.
    fn shown(&self, now: Now) -> Lease {
        let until = now.time.shifted(self.lease.ends.ms_since(now.tick));
        Lease { until, ..self.lease.clone() }
    }

    /// Whether the caller may continue under the lease: no other device got the lock since, and the lease has
    /// not ended. A released lease continues while another request of its holder is in progress.
    fn is_newest_of(&self, caller: &Caller) -> bool {
        let open = match self.ended {
            None => true,
            Some(Ended::GivenBack) => self.at_work > 0,
            Some(Ended::Broken) => false,
        };
        open && self.lease.is_of(caller)
    }
}

/// Both clocks, read at the same time.
#[derive(Clone, Copy)]
struct Now {
    time: Timestamp,
    tick: Tick,
}

/// With fewer owners nothing is removed.
const SWEEP_AT_LEAST: usize = 1_024;

impl LocalLocks {
    /// Creates locks whose fences begin after `first_fence`.
    pub fn new(first_fence: Fence, terms: LeaseTerms, clock: Clock) -> Arc<Self> {
        let state = State { last_fence: first_fence, owners: HashMap::new(), sweep_at: SWEEP_AT_LEAST };
        Arc::new(Self { clock, terms, state: Mutex::new(state), listener: OnceLock::new() })
    }

    fn now(&self) -> Now {
        Now { time: self.clock.now(), tick: self.clock.tick() }
    }

    /// Changes an owner's lock, and notifies the listener if the holder is another one afterwards.
    fn change<T>(&self, owner: Owner, now: Now, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state.lock();
        let Some(listener) = self.listener.get() else { return change(&mut state) };
        let before = state.held(owner, now).map(|lease| lease.fence);
        let changed = change(&mut state);
        let after = state.held(owner, now);
        if before != after.as_ref().map(|lease| lease.fence) {
            listener(owner, after.as_ref());
        }
        changed
    }
}

impl Locks for LocalLocks {
    fn is_remote(&self) -> bool {
        false
    }

    /// The listener is called in order, under the mutex of the locks.
    fn on_changed(&self, listener: LockListener) {
        let _ = self.listener.set(listener);
    }

    fn take(self: Arc<Self>, caller: &Caller, fence: Option<Fence>) -> LockResult<Box<dyn LockGuard>> {
        let now = self.now();
        let (lease, had) = self.change(caller.owner, now, |state| {
            let had = state.owners.get(&caller.owner).is_some_and(|entry| entry.is_newest_of(caller));
            let entry = state.take(caller, fence, now, self.terms)?;
            entry.at_work += 1;
            Ok::<_, LockError>((entry.lease.clone(), had))
        })?;
        Ok(Box::new(LocalGuard { locks: self, caller: caller.clone(), lease, had }))
    }

    fn enter(self: Arc<Self>, caller: &Caller, fence: Option<Fence>) -> LockResult<Box<dyn LockGuard>> {
        self.take(caller, fence)
    }

    fn renew(&self, caller: &Caller) -> LockResult<()> {
        let now = self.now();
        if let Some(entry) = self.state.lock().owners.get_mut(&caller.owner)
            && entry.is_newest_of(caller)
            && entry.is_held(now)
        {
            entry.renew(now, self.terms);
        }
        Ok(())
    }

    fn holder(&self, owner: Owner) -> LockResult<Option<Lease>> {
        let now = self.now();
        Ok(self.state.lock().held(owner, now))
    }

    fn held_now(&self, locks_max: usize) -> LockResult<Vec<(Owner, Lease)>> {
        let now = self.now();
        let state = self.state.lock();
        let held = state.owners.iter().filter(|(_, entry)| entry.is_held(now));
        Ok(held.take(locks_max).map(|(owner, entry)| (*owner, entry.shown(now))).collect())
    }

    fn give_back(&self, caller: &Caller) -> LockResult<()> {
        self.change(caller.owner, self.now(), |state| {
            if let Some(entry) = state.owners.get_mut(&caller.owner)
                && entry.is_newest_of(caller)
            {
                entry.ended = Some(Ended::GivenBack);
            }
        });
        Ok(())
    }

    fn break_open(&self, owner: Owner) -> LockResult<()> {
        self.change(owner, self.now(), |state| {
            if let Some(entry) = state.owners.get_mut(&owner) {
                entry.ended = Some(Ended::Broken);
            }
        });
        Ok(())
    }
}

impl State {
    /// The lease that keeps other devices waiting.
    fn held(&self, owner: Owner, now: Now) -> Option<Lease> {
        self.owners.get(&owner).filter(|entry| entry.is_held(now)).map(|entry| entry.shown(now))
    }

    fn take(
        &mut self,
        caller: &Caller,
        fence: Option<Fence>,
        now: Now,
        terms: LeaseTerms,
    ) -> Result<&mut Entry, LockError> {
        let lease_ms = terms.lease_ms;
        self.sweep(now, lease_ms);
        let newest = self.owners.get(&caller.owner);
        let mine = newest.is_some_and(|entry| entry.is_newest_of(caller));
        // A request that names a fence was built under that lease. Under any other one its data may be outdated.
        if let Some(fence) = fence
            && !(mine && newest.is_some_and(|entry| entry.lease.fence == fence))
        {
            return Err(LockError::Lost);
        }
        let held = newest.filter(|entry| !mine && entry.is_held(now) && !broken::is("lease_ignored"));
        if let Some(entry) = held {
            return Err(LockError::Busy(entry.shown(now)));
        }
        let last_fence = &mut self.last_fence;
        let mut new_lease = || {
            *last_fence = Fence(last_fence.0 + 1);
            Lease {
                device: caller.device,
                device_name: caller.device_name.clone(),
                fence: *last_fence,
                since: now.time,
                until: now.time.shifted(lease_ms),
                ends: now.tick.shifted(lease_ms),
            }
        };
        Ok(match self.owners.entry(caller.owner) {
            // An expired lease that no other device took over is still the newest: its holder continues under
            // the same fence.
            hash_map::Entry::Occupied(entry) if mine => {
                let entry = entry.into_mut();
                entry.go_on(now, terms).map_err(LockError::Busy)?;
                entry.ended = None;
                entry
            }
            hash_map::Entry::Occupied(entry) => {
                let entry = entry.into_mut();
                *entry = Entry::of(new_lease(), now);
                entry
            }
            hash_map::Entry::Vacant(place) => place.insert(Entry::of(new_lease(), now)),
        })
    }

    /// Removes leases that ended long ago, so that memory is used for the owners who sync and not for all
    /// owners.
    fn sweep(&mut self, now: Now, lease_ms: i64) {
        if self.owners.len() < self.sweep_at {
            return;
        }
        let long_ago = now.tick.shifted(lease_ms.saturating_mul(-4));
        self.owners.retain(|_, entry| entry.is_held(now) || entry.lease.ends > long_ago);
        self.sweep_at = (self.owners.len() * 2).max(SWEEP_AT_LEAST);
    }
}

struct LocalGuard {
    locks: Arc<LocalLocks>,
    caller: Caller,
    lease: Lease,
    had: bool,
}

impl LockGuard for LocalGuard {
    fn lease(&self) -> Option<&Lease> {
        Some(&self.lease)
    }

    fn had_lock(&self) -> bool {
        self.had
    }

    /// The lease cannot have been taken over: while a request is in progress no other device gets the lock.
    fn confirm(&self, _: Option<&LeaseState>) -> LockResult<()> {
        let state = self.locks.state.lock();
        match state.owners.get(&self.caller.owner) {
            Some(entry) if entry.lease.fence == self.lease.fence && entry.ended != Some(Ended::Broken) => {
                Ok(())
            }
            _ if broken::is("fence_unchecked") => Ok(()),
            _ => Err(LockError::Lost),
        }
    }

    fn end(&self, keeps_lock: bool) -> LockResult<()> {
        if keeps_lock { Ok(()) } else { self.locks.give_back(&self.caller) }
    }
}

impl Drop for LocalGuard {
    fn drop(&mut self) {
        let now = self.locks.now();
        self.locks.change(self.caller.owner, now, |state| {
            if let Some(entry) = state.owners.get_mut(&self.caller.owner)
                && entry.lease.fence == self.lease.fence
            {
                entry.at_work -= 1;
                entry.worked_until = now.tick;
                if entry.ended.is_none() {
                    // The lease restarts when the response is sent, not when the request arrived.
                    entry.renew(now, self.locks.terms);
                }
            }
        });
    }
}

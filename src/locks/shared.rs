use std::collections::HashMap;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::{Lease, LockError, LockGuard, LockListener, LockResult, Locks};
use crate::accounts::Caller;
use crate::broken;
use crate::clock::{Clock, Tick};
use crate::model::{DeviceId, Fence, Owner};
use crate::storage::{LeaseState, LeaseStore, LeaseTerms};

/// The locks of several servers on one database: leases are stored in the owners' rows, by the database's
/// clock.
pub struct SharedLocks {
    store: Arc<dyn LeaseStore>,
    clock: Clock,
    terms: LeaseTerms,
    at_work: Arc<AtWork>,
    /// Dropping it ends the thread that renews leases of requests in progress.
    _ends: Sender<()>,
}

/// Requests of this server in progress under a lease: how many for each device, and since when.
type AtWork = Mutex<HashMap<(Owner, DeviceId), (usize, Instant)>>;

/// A lease is renewed when less than this part of its time is left: a write for each request would cost as
/// much as a small sync.
const RENEWED_BELOW: i64 = 4;

impl SharedLocks {
    /// Creates locks whose leases are stored in `store`.
    pub fn new(store: Arc<dyn LeaseStore>, terms: LeaseTerms, clock: Clock) -> Arc<Self> {
        let lease_ms = terms.lease_ms;
        let (ends, ended) = channel::<()>();
        let at_work = Arc::<AtWork>::default();
        let (renewed, by) = (Arc::downgrade(&at_work), Arc::clone(&store));
        let third = Duration::from_millis(lease_ms.unsigned_abs().div_ceil(3).max(1));
        // The thread ends with the locks, and does not keep them alive.
        std::thread::spawn(move || {
            while ended.recv_timeout(third) == Err(RecvTimeoutError::Timeout) {
                renew_at_work(&renewed, &*by, lease_ms, third);
            }
        });
        Arc::new(Self { store, clock, terms, at_work, _ends: ends })
    }

    fn below_ms(&self) -> i64 {
        self.terms.lease_ms - self.terms.lease_ms / RENEWED_BELOW
    }

    /// The lease of an owner. A lease that ends later than any lease may was taken before the database's
    /// clock was set back: it is shortened, so that it blocks others for at most the length of a lease.
    fn held(&self, owner: Owner) -> LockResult<Option<LeaseState>> {
        let held = self.store.look(owner)?;
        let latest = held.as_ref().map(|held| held.now.shifted(self.terms.lease_ms));
        if held.as_ref().and_then(|held| held.until) > latest {
            self.store.cut(owner, self.terms.lease_ms)?;
            return Ok(self.store.look(owner)?);
        }
        Ok(held)
    }

    /// The present lease, if the caller may have the lock.
    fn look(&self, caller: &Caller, fence: Option<Fence>) -> LockResult<Option<LeaseState>> {
        let held = self.held(caller.owner)?;
        let own = held.as_ref().filter(|held| held.is_open_to(caller.device));
        if fence.is_some() && own.map(|own| own.fence) != fence {
            return Err(LockError::Lost);
        }
        match held {
            Some(held) if held.keeps_out(caller.device) => {
                Err(LockError::Busy(lease_of(&held, self.clock.tick())))
            }
            Some(held) if held.is_open_to(caller.device) => self.may_go_on(held).map(Some),
            held => Ok(held),
        }
    }

    /// Whether the holder may continue. If its hold is over, it may not until other devices have had a chance
    /// for the length of one lease. Then a new hold begins.
    fn may_go_on(&self, own: LeaseState) -> LockResult<LeaseState> {
        let LeaseTerms { lease_ms, hold_ms } = self.terms;
        let rests_until = own.until.unwrap_or(own.now).shifted(lease_ms);
        // If the clock was set back, the hold counts from now.
        let is_over = own.now >= own.since.min(own.now).shifted(hold_ms);
        if is_over && own.now < rests_until && !broken::is("hold_unbounded") {
            let rests = LeaseState { until: Some(rests_until), ..own };
            return Err(LockError::Busy(lease_of(&rests, self.clock.tick())));
        }
        Ok(own)
    }

    fn work(self: Arc<Self>, caller: &Caller, lease: Option<Lease>, had: bool) -> Box<dyn LockGuard> {
        if lease.is_some() {
            let mut at_work = self.at_work.lock();
            at_work.entry((caller.owner, caller.device)).or_insert((0, Instant::now())).0 += 1;
        }
        Box::new(SharedGuard { locks: self, caller: caller.clone(), lease, had })
    }
}

/// Renews the leases of long requests in progress. If that fails, they expire, and writes under them are
/// rolled back.
fn renew_at_work(at_work: &Weak<AtWork>, store: &dyn LeaseStore, lease_ms: i64, after: Duration) {
    let Some(at_work) = at_work.upgrade() else { return };
    let long: Vec<_> = at_work
        .lock()
        .iter()
        .filter(|(_, (_, since))| since.elapsed() >= after)
        .map(|(who, _)| *who)
        .collect();
    // The hold may end meanwhile: other devices wait for requests in progress nevertheless.
    let unbounded = LeaseTerms { lease_ms, hold_ms: i64::MAX / 2 };
    for (owner, device) in long {
        if let Err(error) = store.renew(owner, device, unbounded, i64::MAX) {
            tracing::warn!(%error, %owner, "could not renew the lease of a request at work");
        }
    }
}

impl Locks for SharedLocks {
    fn is_remote(&self) -> bool {
        true
    }

    fn on_changed(&self, listener: LockListener) {
        let clock = self.clock.clone();
        self.store.on_changed(Arc::new(move |owner, held| {
            listener(owner, held.map(|held| lease_of(held, clock.tick())).as_ref());
        }));
    }

    fn take(self: Arc<Self>, caller: &Caller, fence: Option<Fence>) -> LockResult<Box<dyn LockGuard>> {
        // A waiting device tries again and again, which must not cost a write.
        let held = self.look(caller, fence)?;
        let had = held.is_some_and(|held| held.is_open_to(caller.device));
        let taken = self.store.take(caller.owner, caller.device, &caller.device_name, fence, self.terms)?;
        match taken {
            Some(taken) => {
                let lease = lease_of(&taken, self.clock.tick());
                Ok(self.work(caller, Some(lease), had))
            }
            // Another device took the lock in between.
            None => match self.look(caller, fence)? {
                Some(held) => Err(LockError::Busy(lease_of(&held, self.clock.tick()))),
                None => Err(LockError::Lost),
            },
        }
    }

    fn enter(self: Arc<Self>, caller: &Caller, fence: Option<Fence>) -> LockResult<Box<dyn LockGuard>> {
        let held = self.look(caller, fence)?;
        let own = held.filter(|held| held.is_open_to(caller.device));
        if own.is_some() {
            self.store.renew(caller.owner, caller.device, self.terms, self.below_ms())?;
        }
        let had = own.is_some();
        let lease = own.map(|own| lease_of(&own, self.clock.tick()));
        Ok(self.work(caller, lease, had))
    }

    fn renew(&self, caller: &Caller) -> LockResult<()> {
        Ok(self.store.renew(caller.owner, caller.device, self.terms, self.below_ms())?)
    }

    fn holder(&self, owner: Owner) -> LockResult<Option<Lease>> {
        let held = self.held(owner)?.filter(LeaseState::is_running);
        Ok(held.map(|held| lease_of(&held, self.clock.tick())))
    }

    fn held_now(&self, locks_max: usize) -> LockResult<Vec<(Owner, Lease)>> {
        let held = self.store.held_now(locks_max)?;
        let tick = self.clock.tick();
        Ok(held.iter().map(|(owner, held)| (*owner, lease_of(held, tick))).collect())
    }

    fn give_back(&self, caller: &Caller) -> LockResult<()> {
        Ok(self.store.give_back(caller.owner, caller.device)?)
    }

    fn break_open(&self, owner: Owner) -> LockResult<()> {
        Ok(self.store.break_open(owner)?)
    }
}

/// An existing lease, as it was read at `tick`.
fn lease_of(held: &LeaseState, tick: Tick) -> Lease {
    let until = held.until.unwrap_or(held.now);
    Lease {
        device: held.holder.unwrap_or(DeviceId(uuid::Uuid::nil())),
        device_name: held.holder_name.clone(),
        fence: held.fence,
        since: held.since,
        until,
        ends: tick.shifted(until.ms() - held.now.ms()),
    }
}

struct SharedGuard {
    locks: Arc<SharedLocks>,
    caller: Caller,
    lease: Option<Lease>,
    had: bool,
}

impl LockGuard for SharedGuard {
    fn lease(&self) -> Option<&Lease> {
        self.lease.as_ref()
    }

    fn had_lock(&self) -> bool {
        self.had
    }

    fn confirm(&self, held: Option<&LeaseState>) -> LockResult<()> {
        let Some(held) = held else { return Err(LockError::Lost) };
        // The write has locked the owner's row, so `held` stays the newest lease until the COMMIT.
        match &self.lease {
            // Another request of the device may have released it, which is a regular end.
            Some(lease) if held.fence == lease.fence && held.holder == Some(lease.device) => Ok(()),
            _ if broken::is("fence_unchecked_shared") => Ok(()),
            Some(_) => Err(LockError::Lost),
            None if held.keeps_out(self.caller.device) => {
                Err(LockError::Busy(lease_of(held, self.locks.clock.tick())))
            }
            None => Ok(()),
        }
    }

    fn end(&self, keeps_lock: bool) -> LockResult<()> {
        let Caller { owner, device, device_name, .. } = &self.caller;
        let locks = &self.locks;
        match (&self.lease, keeps_lock) {
            (None, true) => {
                // The first one keeps it: the device learns that with its next request.
                locks.store.take(*owner, *device, device_name, None, locks.terms)?;
            }
            (Some(_), true) => locks.store.renew(*owner, *device, locks.terms, locks.below_ms())?,
            (Some(_), false) => locks.store.give_back(*owner, *device)?,
            (None, false) => {}
        }
        Ok(())
    }
}

impl Drop for SharedGuard {
    fn drop(&mut self) {
        if self.lease.is_none() {
            return;
        }
        let mut at_work = self.locks.at_work.lock();
        if let Some((requests, _)) = at_work.get_mut(&(self.caller.owner, self.caller.device)) {
            *requests -= 1;
            if *requests == 0 {
                at_work.remove(&(self.caller.owner, self.caller.device));
            }
        }
    }
}

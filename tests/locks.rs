//! The lock alone: a clock to turn, and real threads.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;

use rollcall::accounts::Caller;
use rollcall::clock::Clock;
use rollcall::locks::{Lease, LocalLocks, LockError, Locks as _, Work};
use rollcall::model::{DeviceId, Fence, Owner, Timestamp};
use uuid::Uuid;

const LEASE_MS: i64 = 15_000;
const FIRST: Fence = Fence(1 << 32);

struct Locks {
    locks: Arc<LocalLocks>,
    now_ms: Arc<AtomicI64>,
}

impl Locks {
    fn new() -> Self {
        let now_ms = Arc::new(AtomicI64::new(1_700_000_000_000));
        let told = Arc::clone(&now_ms);
        let clock = Clock::from_fn(move || Timestamp::from_ms(told.load(Ordering::SeqCst)));
        Self { locks: LocalLocks::new(FIRST, LEASE_MS.cast_unsigned(), clock), now_ms }
    }

    fn turn(&self, ms: i64) {
        self.now_ms.fetch_add(ms, Ordering::SeqCst);
    }

    fn now(&self) -> Timestamp {
        Timestamp::from_ms(self.now_ms.load(Ordering::SeqCst))
    }

    fn work(&self, caller: &Caller, fence: Option<Fence>) -> Result<Box<dyn Work>, LockError> {
        Arc::clone(&self.locks).take(caller, fence)
    }

    /// Takes the lock, and has nothing to do under it.
    fn take(&self, caller: &Caller) -> Lease {
        self.take_as(caller, None).unwrap()
    }

    fn take_as(&self, caller: &Caller, fence: Option<Fence>) -> Result<Lease, LockError> {
        self.work(caller, fence).map(|work| work.lease().unwrap().clone())
    }

    fn is_lost(&self, caller: &Caller, fence: Fence) -> bool {
        matches!(self.take_as(caller, Some(fence)), Err(LockError::Lost))
    }

    fn holder(&self, owner: Owner) -> Option<Lease> {
        self.locks.holder(owner).unwrap()
    }

    fn is_busy_for(&self, caller: &Caller) -> bool {
        match self.take_as(caller, None) {
            Ok(_) => false,
            Err(LockError::Busy(_)) => true,
            Err(error) => panic!("{error} without a fence"),
        }
    }
}

fn caller(owner: u128, device: u128) -> Caller {
    Caller {
        owner: Owner(Uuid::from_u128(owner)),
        device: DeviceId(Uuid::from_u128(device)),
        device_name: format!("device {device}"),
        user: Uuid::from_u128(owner),
    }
}

fn two() -> (Caller, Caller) {
    (caller(1, 1), caller(1, 2))
}

#[test]
fn a_device_that_has_the_lock_takes_it_again_under_the_same_fence() {
    let (locks, (phone, tablet)) = (Locks::new(), two());
    let first = locks.take(&phone);
    assert!(first.fence > FIRST);
    assert_eq!((first.since, first.until), (locks.now(), locks.now().shifted(LEASE_MS)));
    locks.turn(5_000);
    let again = locks.take_as(&phone, Some(first.fence)).unwrap();
    assert_eq!((again.fence, again.since), (first.fence, first.since));
    assert_eq!(again.until, locks.now().shifted(LEASE_MS), "taking it again renews it");
    let Err(LockError::Busy(holder)) = locks.take_as(&tablet, None) else { panic!("two holders") };
    assert_eq!(holder, again);
    assert_eq!(locks.holder(phone.owner), Some(again));
    assert_eq!(locks.holder(caller(2, 1).owner), None);
}

#[test]
fn a_lease_runs_out_and_is_taken_over_under_a_higher_fence() {
    let (locks, (phone, tablet)) = (Locks::new(), two());
    let first = locks.take(&phone);
    locks.turn(LEASE_MS - 1);
    assert!(locks.is_busy_for(&tablet));
    locks.turn(1);
    assert_eq!(locks.holder(phone.owner), None);
    let second = locks.take(&tablet);
    assert!(second.fence > first.fence);
    for fence in [first.fence, Fence(0), FIRST, second.fence, Fence(u64::MAX)] {
        assert!(locks.is_lost(&phone, fence), "{fence}");
    }
    assert!(locks.is_lost(&tablet, first.fence));
    assert_eq!(locks.take_as(&tablet, Some(second.fence)).unwrap(), second);
}

#[test]
fn a_lease_that_nobody_took_over_is_its_holders_again() {
    let (locks, (phone, tablet)) = (Locks::new(), two());
    let first = locks.take(&phone);
    locks.turn(LEASE_MS + 5_000);
    assert_eq!(locks.take_as(&phone, Some(first.fence)).unwrap().fence, first.fence);
    assert!(locks.is_busy_for(&tablet));
}

#[test]
fn only_a_running_lease_is_renewed_and_only_by_its_holder() {
    let (locks, (phone, tablet)) = (Locks::new(), two());
    locks.locks.renew(&phone).unwrap();
    assert_eq!(locks.holder(phone.owner), None, "to renew is not to take");
    let lease = locks.take(&phone);
    locks.turn(10_000);
    locks.locks.renew(&tablet).unwrap();
    assert_eq!(locks.holder(phone.owner), Some(lease));
    locks.locks.renew(&phone).unwrap();
    locks.turn(10_000);
    assert!(locks.is_busy_for(&tablet));
    locks.turn(5_000);
    locks.locks.renew(&phone).unwrap();
    assert_eq!(locks.holder(phone.owner), None, "it ran out before");
    locks.take(&phone);
    locks.locks.give_back(&phone).unwrap();
    locks.locks.renew(&phone).unwrap();
    assert_eq!(locks.holder(phone.owner), None, "it was given back");
}

#[test]
fn what_was_given_back_is_lost_to_its_fence() {
    let (locks, (phone, tablet)) = (Locks::new(), two());
    let first = locks.take(&phone);
    locks.locks.give_back(&tablet).unwrap();
    assert!(locks.is_busy_for(&tablet), "nobody gives back what another holds");
    locks.locks.give_back(&phone).unwrap();
    locks.locks.give_back(&phone).unwrap();
    assert!(locks.is_lost(&phone, first.fence));
    assert!(locks.take(&phone).fence > first.fence);
}

#[test]
fn nobody_takes_over_from_a_request_at_work() {
    let (locks, (phone, tablet)) = (Locks::new(), two());
    let work = locks.work(&phone, None).unwrap();
    locks.turn(100 * LEASE_MS);
    assert!(locks.is_busy_for(&tablet));
    assert!(locks.holder(phone.owner).is_some());
    assert!(work.confirm(None).is_ok());
    drop(work);
    assert!(locks.is_busy_for(&tablet), "the lease begins anew when the work ends");
    locks.turn(LEASE_MS);
    assert!(!locks.is_busy_for(&tablet));
}

#[test]
fn what_is_given_back_at_work_is_free_when_the_work_ends() {
    let (locks, (phone, tablet)) = (Locks::new(), two());
    let work = locks.work(&phone, None).unwrap();
    let other = locks.work(&phone, Some(work.lease().unwrap().fence)).unwrap();
    work.end(false).unwrap();
    assert!(work.confirm(None).is_ok());
    drop(work);
    assert!(locks.is_busy_for(&tablet), "another request of the holder is at work");
    assert!(other.confirm(None).is_ok(), "and may end well");
    let third = locks.work(&phone, Some(other.lease().unwrap().fence)).unwrap();
    third.end(false).unwrap();
    drop(other);
    assert!(locks.is_busy_for(&tablet));
    drop(third);
    assert!(!locks.is_busy_for(&tablet));
}

#[test]
fn what_was_broken_at_work_cannot_be_kept() {
    let (locks, (phone, tablet)) = (Locks::new(), two());
    let work = locks.work(&phone, None).unwrap();
    locks.locks.break_open(phone.owner).unwrap();
    assert!(matches!(work.confirm(None), Err(LockError::Lost)));
    assert!(locks.is_busy_for(&tablet), "until what is at work has been undone");
    work.end(false).unwrap();
    assert!(matches!(work.confirm(None), Err(LockError::Lost)), "to give back does not mend it");
    let fence = work.lease().unwrap().fence;
    drop(work);
    assert!(locks.is_lost(&phone, fence));
    assert!(locks.take(&tablet).fence > fence);

    locks.locks.break_open(tablet.owner).unwrap();
    assert!(!locks.is_busy_for(&phone));
    locks.locks.break_open(caller(9, 9).owner).unwrap(); // of an owner who never synced
}

/// Goal: memory follows those who sync. Method: more owners than are kept, in two generations.
#[test]
fn only_what_ended_long_ago_is_forgotten() {
    let locks = Locks::new();
    let held = caller(0, 1);
    let work = locks.work(&held, None).unwrap();
    let leases: Vec<_> = (1..2_000).map(|owner| locks.take(&caller(owner, 1))).collect();
    locks.turn(2 * LEASE_MS);
    for (owner, lease) in (1..2_000).zip(&leases) {
        let renewed = locks.take_as(&caller(owner, 1), Some(lease.fence));
        assert_eq!(renewed.unwrap().fence, lease.fence, "a lease that just ran out was forgotten");
    }
    locks.turn(6 * LEASE_MS);
    for owner in 10_000..14_000 {
        locks.take(&caller(owner, 1));
    }
    for (owner, lease) in (1..2_000).zip(&leases) {
        assert!(locks.is_lost(&caller(owner, 1), lease.fence), "{owner} is still known");
    }
    assert!(locks.is_busy_for(&caller(0, 2)), "a request at work is never forgotten");
    assert!(work.confirm(None).is_ok());
    drop(work);
    let fences: Vec<_> = leases.iter().map(|lease| lease.fence).collect();
    assert!(fences.is_sorted() && locks.take(&caller(1, 1)).fence > fences[fences.len() - 1]);
}

/// Goal: two devices of one owner never overlap, and the fence rises with each change of hands. Method: real
/// threads in a critical section of their owner's, with the clock running through leases meanwhile.
#[test]
fn threads_of_two_devices_never_overlap() {
    const ROUNDS: usize = 300;
    let locks = Arc::new(Locks::new());
    let owners = [1, 2];
    let inside: Arc<Vec<AtomicU64>> = Arc::new((0..=2).map(|_| AtomicU64::new(0)).collect());
    let newest: Arc<Vec<AtomicU64>> = Arc::new((0..=2).map(|_| AtomicU64::new(0)).collect());
    let waits = Arc::new(AtomicUsize::new(0));
    let barrier = Arc::new(Barrier::new(8));
    let threads: Vec<_> = owners
        .into_iter()
        .flat_map(|owner| [(owner, 1), (owner, 1), (owner, 2), (owner, 2)])
        .map(|(owner, device)| {
            let (locks, inside, newest) = (Arc::clone(&locks), Arc::clone(&inside), Arc::clone(&newest));
            let (waits, barrier) = (Arc::clone(&waits), Arc::clone(&barrier));
            thread::spawn(move || {
                let me = caller(owner as u128, device as u128);
                let (mine, others) = if device == 1 { (1 << 32, 0xffff_ffff) } else { (1, !0xffff_ffff) };
                barrier.wait();
                for round in 0..ROUNDS {
                    let work = loop {
                        match locks.work(&me, None) {
                            Ok(work) => break work,
                            Err(LockError::Busy(holder)) => {
                                assert_ne!(holder.device, me.device, "a device keeps itself out");
                                waits.fetch_add(1, Ordering::Relaxed);
                                thread::yield_now();
                            }
                            Err(error) => panic!("{error} without a fence"),
                        }
                    };
                    let before = inside[owner].fetch_add(mine, Ordering::SeqCst);
                    assert_eq!(before & others, 0, "two devices at once");
                    let fence = work.lease().unwrap().fence.0;
                    assert!(newest[owner].fetch_max(fence, Ordering::SeqCst) <= fence, "a fence fell");
                    locks.turn(LEASE_MS / 2);
                    thread::yield_now();
                    assert_eq!(inside[owner].load(Ordering::SeqCst) & others, 0, "two devices at once");
                    work.confirm(None).unwrap();
                    if round % 3 != 0 {
                        work.end(false).unwrap();
                    }
                    inside[owner].fetch_sub(mine, Ordering::SeqCst);
                    drop(work);
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    assert!(waits.load(Ordering::Relaxed) > 0, "nobody ever had to wait: the test says nothing");
}

#[test]
fn owners_never_wait_for_each_other() {
    let locks = Locks::new();
    let work = locks.work(&caller(1, 1), None).unwrap();
    thread::scope(|scope| {
        for owner in 2..10 {
            let locks = &locks;
            scope.spawn(move || {
                for _ in 0..100 {
                    let me = caller(owner, 1);
                    let work = locks.work(&me, None).expect("another owner's lock is in the way");
                    work.end(false).unwrap();
                }
            });
        }
    });
    assert!(work.confirm(None).is_ok());
}

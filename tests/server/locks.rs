//! The lock alone: both kinds of it, with clocks to turn and to set, and real threads.

use rollcall_testkit::engine;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use engine::{Engine, Store};
use parking_lot::Mutex;
use rollcall::accounts::{Caller, Rights};
use rollcall::clock::{Clock, Tick};
use rollcall::locks::{Lease, LocalLocks, LockError, LockGuard, SharedLocks};
use rollcall::model::{DeviceId, Fence, Owner, Timestamp};
use rollcall::schema::Schema;
use rollcall::storage::{LeaseStore, LeaseTerms, Leases, Storage};
use uuid::Uuid;

const LEASE_MS: i64 = 15_000;
/// Longer than any other test holds a lock.
const HOLD_MS: i64 = 200 * LEASE_MS;
const TERMS: LeaseTerms = LeaseTerms { lease_ms: LEASE_MS, hold_ms: HOLD_MS };
const FIRST: Fence = Fence(1 << 32);
const START_MS: i64 = 1_700_000_000_000;
const HOUR_MS: i64 = 3_600_000;

struct Locks {
    locks: Arc<dyn rollcall::locks::Locks>,
    now_ms: Arc<AtomicI64>,
    tick_ms: Arc<AtomicI64>,
    database: Option<Database>,
}

/// Where the leases of shared locks stand.
struct Database {
    leases: Arc<dyn LeaseStore>,
    store: Store,
    _storage: Arc<dyn Storage>,
}

/// Runs a case on both kinds of locks; a failure names the kind.
fn on_both_kinds(case: impl Fn(&Locks)) {
    let shared = Engine::all().contains(&Engine::Postgres);
    for (kind, make) in [("local", Locks::new as fn() -> Locks), ("shared", Locks::shared)] {
        if kind == "shared" && !shared {
            continue;
        }
        let locks = make();
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| case(&locks))) {
            eprintln!("with {kind} locks");
            std::panic::resume_unwind(panic);
        }
    }
}

impl Locks {
    fn new() -> Self {
        Self::over(None, TERMS)
    }

    /// Locks in memory that may be held without end.
    fn endless() -> Self {
        Self::over(None, LeaseTerms { hold_ms: 1 << 50, ..TERMS })
    }

    /// Leases in a database.
    fn shared() -> Self {
        Self::shared_for(LEASE_MS)
    }

    fn shared_for(lease_ms: i64) -> Self {
        let schema = Schema::parse("[table.t]\nkey = \"id\"\n[table.t.columns]\nn = \"integer\"\n").unwrap();
        let store = Store::of(Engine::Postgres);
        let (busy_wait, now) = (Duration::from_secs(60), Timestamp::from_ms(START_MS));
        let storage = store.serve(&Arc::new(schema), busy_wait, now, Arc::default()).unwrap();
        store.set_now(START_MS);
        let Leases::Shared(leases) = storage.leases() else { panic!("PostgreSQL keeps leases") };
        Self::over(Some(Database { leases, store, _storage: storage }), LeaseTerms { lease_ms, ..TERMS })
    }

    fn over(database: Option<Database>, terms: LeaseTerms) -> Self {
        let (now_ms, tick_ms) = (Arc::new(AtomicI64::new(START_MS)), Arc::new(AtomicI64::new(5)));
        let (now, tick) = (Arc::clone(&now_ms), Arc::clone(&tick_ms));
        let clock = Clock::of(
            move || Timestamp::from_ms(now.load(Ordering::SeqCst)),
            move || Tick::from_ms(tick.load(Ordering::SeqCst)),
        );
        let locks: Arc<dyn rollcall::locks::Locks> = match &database {
            None => LocalLocks::new(FIRST, terms, clock),
            Some(database) => SharedLocks::new(Arc::clone(&database.leases), terms, clock),
        };
        Self { locks, now_ms, tick_ms, database }
    }

    /// Time passes.
    fn turn(&self, ms: i64) {
        self.tick_ms.fetch_add(ms, Ordering::SeqCst);
        self.set_clock(ms);
    }

    /// Somebody sets the time of day: that of the database too, where there is one.
    fn set_clock(&self, ms: i64) {
        let now_ms = self.now_ms.fetch_add(ms, Ordering::SeqCst) + ms;
        if let Some(database) = &self.database {
            database.store.set_now(now_ms);
        }
    }

    fn now(&self) -> Timestamp {
        Timestamp::from_ms(self.now_ms.load(Ordering::SeqCst))
    }

    fn tick(&self) -> Tick {
        Tick::from_ms(self.tick_ms.load(Ordering::SeqCst))
    }

    fn work(&self, caller: &Caller, fence: Option<Fence>) -> Result<Box<dyn LockGuard>, LockError> {
        Arc::clone(&self.locks).take(caller, fence)
    }

    /// Takes the lock, and has nothing to do under it.
    #[track_caller]
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
        self.busy_for(caller).is_some()
    }

    /// Who keeps the caller out.
    fn busy_for(&self, caller: &Caller) -> Option<Lease> {
        match self.take_as(caller, None) {
            Ok(_) => None,
            Err(LockError::Busy(lease)) => Some(lease),
            Err(error) => panic!("{error} without a fence"),
        }
    }

    /// Whether a write under the guard may commit, as its last step checks.
    fn confirms(&self, owner: Owner, work: &dyn LockGuard) -> bool {
        let held = self.database.as_ref().and_then(|database| database.leases.look(owner).unwrap());
        match work.confirm(held.as_ref()) {
            Ok(()) => true,
            Err(LockError::Lost | LockError::Busy(_)) => false,
            Err(error) => panic!("{error}"),
        }
    }
}

fn caller(owner: u128, device: u128) -> Caller {
    Caller {
        owner: Owner(Uuid::from_u128(owner)),
        default_owner: Owner(Uuid::from_u128(owner)),
        token_owners: None,
        rights: Rights::HOME,
        device: DeviceId(Uuid::from_u128(device)),
        device_name: format!("device {device}"),
        token_device: DeviceId(Uuid::from_u128(device)),
        installation: None,
        user: Uuid::from_u128(owner),
    }
}

fn two() -> (Caller, Caller) {
    (caller(1, 1), caller(1, 2))
}

#[test]
fn a_device_that_has_the_lock_takes_it_again_under_the_same_fence() {
    on_both_kinds(|locks| {
        let (phone, tablet) = two();
        let first = locks.take(&phone);
        assert!(first.fence > if locks.database.is_none() { FIRST } else { Fence(0) });
        assert_eq!((first.since, first.until), (locks.now(), locks.now().shifted(LEASE_MS)));
        assert_eq!(first.ends, locks.tick().shifted(LEASE_MS));
        locks.turn(5_000);
        let again = locks.take_as(&phone, Some(first.fence)).unwrap();
        assert_eq!((again.fence, again.since), (first.fence, first.since));
        assert_eq!(again.until, locks.now().shifted(LEASE_MS), "taking it again renews it");
        let Err(LockError::Busy(holder)) = locks.take_as(&tablet, None) else { panic!("two holders") };
        assert_eq!(holder, again);
        assert_eq!(locks.holder(phone.owner), Some(again));
        assert_eq!(locks.holder(caller(2, 1).owner), None);
    });
}

#[test]
fn a_lease_runs_out_and_is_taken_over_under_a_higher_fence() {
    on_both_kinds(|locks| {
        let (phone, tablet) = two();
        let first = locks.take(&phone);
        locks.turn(LEASE_MS - 1);
        assert!(locks.is_busy_for(&tablet));
        locks.turn(1);
        assert_eq!(locks.holder(phone.owner), None);
        let second = locks.take(&tablet);
        assert!(second.fence > first.fence);
        for fence in [first.fence, Fence(0), FIRST, second.fence, Fence(i64::MAX.cast_unsigned())] {
            assert!(locks.is_lost(&phone, fence), "{fence}");
        }
        assert!(locks.is_lost(&tablet, first.fence));
        assert_eq!(locks.take_as(&tablet, Some(second.fence)).unwrap(), second);
    });
}

#[test]
fn a_lease_that_nobody_took_over_is_its_holders_again() {
    on_both_kinds(|locks| {
        let (phone, tablet) = two();
        let first = locks.take(&phone);
        locks.turn(LEASE_MS + 5_000);
        assert_eq!(locks.take_as(&phone, Some(first.fence)).unwrap().fence, first.fence);
        assert!(locks.is_busy_for(&tablet));
    });
}

#[test]
fn only_a_running_lease_is_renewed_and_only_by_its_holder() {
    on_both_kinds(|locks| {
        let (phone, tablet) = two();
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
    });
}

#[test]
fn what_was_given_back_is_lost_to_its_fence() {
    on_both_kinds(|locks| {
        let (phone, tablet) = two();
        let first = locks.take(&phone);
        locks.locks.give_back(&tablet).unwrap();
        assert!(locks.is_busy_for(&tablet), "nobody gives back what another holds");
        locks.locks.give_back(&phone).unwrap();
        locks.locks.give_back(&phone).unwrap();
        assert!(locks.is_lost(&phone, first.fence));
        let second = locks.take(&phone);
        assert!(second.fence > first.fence, "taken anew after it was given back");
        assert!(locks.is_lost(&phone, first.fence));
        locks.locks.give_back(&phone).unwrap();
        assert!(locks.take(&tablet).fence > second.fence);
    });
}

/// Goal: a lease has its full length, whatever is done to the time of day. Method: set back by an hour, and
/// by a day and forward again, while a lease runs; its displayed end is the time of day at which it will end.
#[test]
fn a_clock_that_is_set_back_makes_no_lease_longer() {
    on_both_kinds(|locks| {
        let (phone, tablet) = two();
        for (back, forth) in [(HOUR_MS, 0), (24 * HOUR_MS, 24 * HOUR_MS)] {
            locks.take(&phone);
            locks.turn(1_000);
            locks.set_clock(-back);
            let keeps_out = locks.busy_for(&tablet).expect("the lease has not ended");
            let left = keeps_out.ends.ms_since(locks.tick());
            assert!((LEASE_MS - 1_000..=LEASE_MS).contains(&left), "{left}");
            assert_eq!(keeps_out.until, locks.now().shifted(left));
            assert_eq!(locks.holder(phone.owner).unwrap().until, keeps_out.until);
            locks.turn(left - 1);
            assert!(locks.is_busy_for(&tablet));
            locks.turn(1);
            assert_eq!(locks.holder(phone.owner), None);
            assert!(!locks.is_busy_for(&tablet));
            locks.set_clock(forth);
            locks.locks.give_back(&tablet).unwrap();
        }
    });
}

/// A lease in memory is counted by no clock that somebody sets.
#[test]
fn a_clock_that_is_set_forth_ends_no_lease_in_memory() {
    let (locks, (phone, tablet)) = (Locks::new(), two());
    locks.take(&phone);
    locks.set_clock(HOUR_MS);
    let keeps_out = locks.busy_for(&tablet).unwrap();
    assert_eq!(keeps_out.ends.ms_since(locks.tick()), LEASE_MS);
    assert_eq!(keeps_out.until, locks.now().shifted(LEASE_MS));
    locks.locks.renew(&phone).unwrap();
    locks.turn(LEASE_MS);
    assert!(!locks.is_busy_for(&tablet));
}

/// Goal: a request that wants no lease is admitted like any other. Method: with and without a lease of its
/// own, with right and wrong fences, beside another's.
#[test]
fn a_request_enters_under_its_own_lease_or_none() {
    on_both_kinds(|locks| {
        let (phone, tablet) = two();
        locks.take(&phone);
        locks.locks.give_back(&phone).unwrap(); // an owner that is known already, as after a write
        let enter = |caller: &Caller, fence| Arc::clone(&locks.locks).enter(caller, fence);
        let free = enter(&phone, None).unwrap();
        assert!(!free.had_lock() && locks.confirms(phone.owner, &*free));
        free.end(false).unwrap();
        drop(free);
        assert!(!locks.is_busy_for(&tablet), "nothing is left behind");

        locks.locks.give_back(&tablet).unwrap();
        let lease = locks.take(&phone);
        locks.turn(10_000);
        let own = enter(&phone, Some(lease.fence)).unwrap();
        assert!(own.had_lock() && own.lease().unwrap().fence == lease.fence);
        assert!(locks.confirms(phone.owner, &*own));
        assert!(matches!(enter(&tablet, None), Err(LockError::Busy(_))));
        for (who, fence) in [(&phone, Fence(lease.fence.0 + 1)), (&tablet, lease.fence)] {
            assert!(matches!(enter(who, Some(fence)), Err(LockError::Lost)), "{fence}");
        }
        own.end(true).unwrap();
        drop(own);
        locks.turn(10_000);
        assert!(locks.is_busy_for(&tablet), "it was renewed");
    });
}

/// Goal: a write is rolled back if another may have overtaken it. Method: a lease that is broken, and one
/// that expires and is taken over, while a request is in progress under it.
#[test]
fn work_under_a_lease_that_was_lost_is_not_kept() {
    on_both_kinds(|locks| {
        let (phone, tablet) = two();
        let work = locks.work(&phone, None).unwrap();
        let fence = work.lease().unwrap().fence;
        assert!(locks.confirms(phone.owner, &*work));
        locks.locks.break_open(phone.owner).unwrap();
        assert!(!locks.confirms(phone.owner, &*work));
        drop(work);
        assert!(locks.is_lost(&phone, fence));
        let next = locks.take(&tablet);
        assert!(next.fence > fence, "{} after {fence}", next.fence);
        locks.turn(LEASE_MS);
        assert!(locks.take(&phone).fence > next.fence);
        locks.locks.break_open(caller(9, 9).owner).unwrap(); // of an owner who never synced
    });
}

#[test]
fn locks_that_are_held_are_listed() {
    on_both_kinds(|locks| {
        let leases: Vec<Lease> = (1..=3).map(|owner| locks.take(&caller(owner, 1))).collect();
        locks.locks.give_back(&caller(2, 1)).unwrap();
        let listed = |most| {
            let mut held = locks.locks.held_now(most).unwrap();
            held.sort_by_key(|(owner, _)| *owner);
            held
        };
        let of = |owner: u128| (caller(owner, 1).owner, leases[usize::try_from(owner).unwrap() - 1].clone());
        assert_eq!(listed(9), [of(1), of(3)]);
        assert_eq!(listed(1).len(), 1);
        locks.turn(LEASE_MS);
        assert_eq!(listed(9), []);
    });
}

/// Goal: event streams show who has the lock. Method: a listener notes each call; the calls are those of the changes.
#[test]
fn a_listener_is_called_for_each_new_holder_and_for_each_end() {
    on_both_kinds(|locks| {
        let calls = Arc::new(Mutex::new(Vec::<(Owner, Option<Lease>)>::new()));
        let noted = Arc::clone(&calls);
        locks.locks.on_changed(Arc::new(move |owner, lease| noted.lock().push((owner, lease.cloned()))));
        let (phone, tablet) = two();
        let first = locks.take(&phone);
        locks.turn(1_000);
        locks.take_as(&phone, Some(first.fence)).unwrap(); // the same holder
        locks.locks.renew(&phone).unwrap();
        assert!(locks.is_busy_for(&tablet));
        locks.locks.give_back(&phone).unwrap();
        let second = locks.take(&tablet);
        locks.locks.break_open(tablet.owner).unwrap();
        let other = locks.take(&caller(2, 1));
        let owner = phone.owner;
        let expected = [
            (owner, Some(first)),
            (owner, None),
            (owner, Some(second)),
            (owner, None),
            (caller(2, 1).owner, Some(other)),
        ];
        // A database delivers its news a little later.
        let until = Instant::now() + Duration::from_secs(20);
        while calls.lock().len() < expected.len() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(*calls.lock(), expected);
    });
}

/// A device that sends a request now and then, as long as it has the lock.
fn polls(locks: &Locks, who: &Caller, fence: Fence, until_ms: i64) {
    let begun = locks.now();
    while locks.now().ms() - begun.ms() < until_ms {
        let step = (LEASE_MS / 2).min(until_ms - (locks.now().ms() - begun.ms()));
        locks.turn(step);
        locks.locks.renew(who).unwrap();
        if locks.now().ms() - begun.ms() < until_ms {
            let again = locks.take_as(who, Some(fence)).unwrap();
            assert_eq!((again.fence, again.since), (fence, begun), "still the same hold");
        }
    }
}

/// Goal: a device cannot keep the lock for ever by asking for something now and then. Method: it does, while another one
/// tries; the other gets the lock as soon as the hold is over, at its first try.
#[test]
fn a_hold_of_the_lock_ends_however_often_it_is_renewed() {
    on_both_kinds(|locks| {
        let (phone, tablet) = two();
        let first = locks.take(&phone);
        polls(locks, &phone, first.fence, HOLD_MS - 1);
        let keeps_out = locks.busy_for(&tablet).expect("the hold has not ended");
        assert_eq!(keeps_out.ends.ms_since(locks.tick()), 1, "nobody has to wait beyond the hold");
        locks.turn(1);
        // The holder polls and tries, and others come first nevertheless.
        locks.locks.renew(&phone).unwrap();
        let rests = locks.busy_for(&phone).expect("the hold is over");
        assert_eq!((rests.device, rests.ends.ms_since(locks.tick())), (phone.device, LEASE_MS));
        assert_eq!(locks.holder(phone.owner), None);
        let next = locks.take(&tablet);
        assert!(next.fence > first.fence);
        assert!(locks.is_lost(&phone, first.fence));
        locks.locks.give_back(&tablet).unwrap();
        assert_eq!(locks.take(&phone).since, locks.now());
    });
}

/// Goal: a sync that takes longer than a hold continues if nobody else wants the lock. Method: the same,
/// alone.
#[test]
fn a_holder_goes_on_where_nobody_took_the_lock() {
    on_both_kinds(|locks| {
        let (phone, tablet) = two();
        let first = locks.take(&phone);
        for _ in 0..2 {
            polls(locks, &phone, first.fence, HOLD_MS);
            locks.turn(LEASE_MS - 1);
            let Err(LockError::Busy(rests)) = locks.take_as(&phone, Some(first.fence)) else {
                panic!("others have not had their chance yet")
            };
            assert_eq!(rests.ends.ms_since(locks.tick()), 1);
            locks.turn(1);
            let again = locks.take_as(&phone, Some(first.fence)).unwrap();
            assert_eq!((again.fence, again.since), (first.fence, locks.now()), "a new hold, the same fence");
            assert_eq!(again.until, locks.now().shifted(LEASE_MS));
            assert!(locks.is_busy_for(&tablet));
        }
        // A device that released the lock, or was silent for long, begins a new hold.
        locks.turn(3 * LEASE_MS);
        assert_eq!(locks.take(&phone).since, locks.now());
    });
}

/// Goal: a clock that is set back makes no hold longer.
#[test]
fn a_clock_that_is_set_back_makes_no_hold_longer() {
    on_both_kinds(|locks| {
        let (phone, tablet) = two();
        locks.take(&phone);
        locks.turn(1_000);
        locks.set_clock(-24 * HOUR_MS);
        let mut passed = 1_000;
        while passed < HOLD_MS + LEASE_MS {
            passed += LEASE_MS / 2;
            locks.turn(LEASE_MS / 2);
            locks.locks.renew(&phone).unwrap();
            let _ = locks.take_as(&phone, None);
            if !locks.is_busy_for(&tablet) {
                assert!(passed >= HOLD_MS, "{passed}");
                return;
            }
        }
        panic!("the hold never ends");
    });
}

/// Goal: a request in progress completes, and no new one begins before others had their chance. Method: one
/// request lasts beyond the hold, and its device sends more and more of them.
#[test]
fn a_request_at_work_outlasts_the_hold_and_no_other_joins_it() {
    let (locks, (phone, tablet)) = (Locks::new(), two());
    let work = locks.work(&phone, None).unwrap();
    let fence = work.lease().unwrap().fence;
    for _ in 0..HOLD_MS / LEASE_MS {
        locks.turn(LEASE_MS);
        assert!(locks.is_busy_for(&tablet));
    }
    assert!(matches!(locks.work(&phone, Some(fence)), Err(LockError::Busy(_))));
    assert!(work.confirm(None).is_ok() && locks.is_busy_for(&tablet));
    drop(work);
    assert!(matches!(locks.work(&phone, Some(fence)), Err(LockError::Busy(_))));
    assert!(locks.take(&tablet).fence > fence);
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

/// Goal: a request that takes longer than a lease keeps it, where leases are kept in a database too. Method: short leases,
/// which are renewed by the real clock and run by the test's.
#[test]
fn the_lease_of_a_long_request_is_renewed_in_the_database() {
    if !Engine::all().contains(&Engine::Postgres) {
        return;
    }
    let (locks, (phone, tablet)) = (Locks::shared_for(300), two());
    let work = locks.work(&phone, None).unwrap();
    for round in 0..3 {
        locks.turn(200);
        let until = Instant::now() + Duration::from_secs(20);
        let is_renewed =
            || locks.holder(phone.owner).is_some_and(|lease| lease.until == locks.now().shifted(300));
        while !is_renewed() {
            assert!(Instant::now() < until, "round {round}: {:?}", locks.holder(phone.owner));
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    assert!(locks.is_busy_for(&tablet));
    drop(work);
    locks.turn(300);
    assert!(!locks.is_busy_for(&tablet), "nobody renews it any more");
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
    let locks = Arc::new(Locks::endless());
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

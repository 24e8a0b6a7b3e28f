//! Decides who uses the writing connection next.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Condvar;

use super::{Job, QueuedJob};
use rollcall_core::model::Owner;

/// Work that used the writer for less than this causes no rest of its owner.
pub(super) const SHORT_TURN: Duration = Duration::from_millis(5);

/// An owner that had the writer to itself rests for this multiple of the time used. So it gets at most a
/// third of the writer's time while others want it.
const REST_TIMES: u32 = 2;

/// The longest rest. It limits what one very large write costs its owner afterwards.
const REST_MAX: Duration = Duration::from_secs(1);

/// An owner rests only if another owner wanted the writer within this time.
const OTHERS_SEEN: Duration = Duration::from_secs(1);

/// The queue for the writing connection.
///
/// Small jobs wait in `jobs` and are run by the writer thread, many in one transaction. Work that needs the
/// writer to itself waits in `alone`, in the threads of its callers. The two kinds take turns.
pub(super) struct Schedule<J> {
    /// Whether the connection is in use.
    pub taken: bool,
    /// Whether the writer thread must end once the queue is empty.
    pub stopped: bool,
    jobs: FairQueue<J>,
    alone: VecDeque<Arc<Waiter>>,
    /// Whether the last turn was of work that had the writer to itself.
    last_was_alone: bool,
    /// Until when the owners of long work rest, while others want the writer.
    rests: HashMap<Owner, Instant>,
    /// The last two owners that wanted the writer, and when.
    active: [Option<(Owner, Instant)>; 2],
}

/// A caller that waits for the writer.
pub(super) struct Waiter {
    /// `None` is the server itself, which never rests.
    pub owner: Option<Owner>,
    /// From then on it has waited long enough, whether its owner rests or not.
    pub patient_until: Instant,
    pub changed: Condvar,
}

/// Who must be woken when the connection is free.
pub(super) enum Next {
    Thread,
    Caller(Arc<Waiter>),
}

impl<J: Job> Schedule<J> {
    pub fn new() -> Self {
        Self {
            taken: false,
            stopped: false,
            jobs: FairQueue::new(),
            alone: VecDeque::new(),
            last_was_alone: false,
            rests: HashMap::new(),
            active: [None; 2],
        }
    }

    /// How many wait.
    pub fn waiting(&self) -> usize {
        self.jobs.len + self.alone.len()
    }

    pub fn jobs_of(&self, owner: Owner) -> usize {
        self.jobs.of(owner)
    }

    pub fn has_jobs(&self) -> bool {
        self.jobs.len > 0
    }

    pub fn push_job(&mut self, job: QueuedJob<J>) {
        self.note_active(job.job.owner(), job.since);
        self.jobs.push(job);
    }

    pub fn pop_job(&mut self) -> Option<QueuedJob<J>> {
        self.jobs.pop()
    }

    /// Removes the jobs that were queued at `since` or before.
    pub fn take_late(&mut self, since: Instant) -> Vec<QueuedJob<J>> {
        self.jobs.take_late(since)
    }

    /// When the oldest job was queued.
    pub fn oldest_job(&self) -> Option<Instant> {
        self.jobs.oldest()
    }

    pub fn push_waiter(&mut self, waiter: Arc<Waiter>, now: Instant) {
        if let Some(owner) = waiter.owner {
            self.note_active(owner, now);
        }
        self.alone.push_back(waiter);
    }

    pub fn remove_waiter(&mut self, waiter: &Arc<Waiter>) {
        self.alone.retain(|other| !Arc::ptr_eq(other, waiter));
    }

    /// Whether the writer thread may use the connection now.
    pub fn thread_may_go(&self, now: Instant) -> bool {
        !self.taken && self.has_jobs() && (self.last_was_alone || self.first_rested(now).is_none())
    }

    /// Whether this caller may use the connection now.
    pub fn caller_may_go(&self, waiter: &Arc<Waiter>, now: Instant) -> bool {
        let jobs_first = self.last_was_alone && self.has_jobs();
        !self.taken && !jobs_first && self.first_rested(now).is_some_and(|first| Arc::ptr_eq(first, waiter))
    }

    /// Whether work that needs the writer to itself could begin if the connection were free.
    pub fn anyone_rested(&self, now: Instant) -> bool {
        self.first_rested(now).is_some()
    }

    /// Until when a caller waits for the end of its owner's rest.
    pub fn rest_of(&self, waiter: &Waiter) -> Option<Instant> {
        self.rests.get(&waiter.owner?).map(|until| waiter.patient_until.min(*until))
    }

    /// The connection is free again after work that had it to itself.
    pub fn release_alone(&mut self, owner: Option<Owner>, began: Instant, now: Instant) {
        (self.taken, self.last_was_alone) = (false, true);
        self.rests.retain(|_, until| *until > now);
        let took = now.saturating_duration_since(began);
        if let Some(owner) = owner.filter(|_| took >= SHORT_TURN) {
            self.rests.insert(owner, now + (took * REST_TIMES).min(REST_MAX));
        }
    }

    /// The connection is free again after small jobs.
    pub fn release_jobs(&mut self) {
        (self.taken, self.last_was_alone) = (false, false);
    }

    /// Who must be woken now; `None` if nobody waits.
    ///
    /// If the owners of all callers rest, it is the caller whose rest ends first. Its rest may have begun
    /// while it waited, so it has to set its timer again.
    pub fn next(&self, now: Instant) -> Option<Next> {
        if self.thread_may_go(now) {
            return Some(Next::Thread);
        }
        let soonest = || self.alone.iter().min_by_key(|waiter| self.rest_of(waiter));
        self.first_rested(now).or_else(soonest).map(|waiter| Next::Caller(Arc::clone(waiter)))
    }

    /// The caller that has waited longest among those whose owner does not rest.
    fn first_rested(&self, now: Instant) -> Option<&Arc<Waiter>> {
        self.alone.iter().find(|waiter| {
            let rests = self.rest_of(waiter).is_some_and(|until| until > now);
            !(rests && waiter.owner.is_some_and(|owner| self.others_are_active(owner, now)))
        })
    }

    fn others_are_active(&self, owner: Owner, now: Instant) -> bool {
        let is_recent = |at: Instant| now.saturating_duration_since(at) < OTHERS_SEEN;
        self.active.iter().flatten().any(|(other, at)| *other != owner && is_recent(*at))
    }

    fn note_active(&mut self, owner: Owner, now: Instant) {
        if self.active[0].is_some_and(|(latest, _)| latest != owner) {
            self.active[1] = self.active[0];
        }
        self.active[0] = Some((owner, now));
    }
}

/// Jobs by owner. Owners take turns, so that one with many jobs does not delay the others.
struct FairQueue<J> {
    of_owners: HashMap<Owner, VecDeque<QueuedJob<J>>>,
    /// The owners with jobs, in the order of their turns.
    turns: VecDeque<Owner>,
    len: usize,
}

impl<J: Job> FairQueue<J> {
    fn new() -> Self {
        Self { of_owners: HashMap::new(), turns: VecDeque::new(), len: 0 }
    }

    fn of(&self, owner: Owner) -> usize {
        self.of_owners.get(&owner).map_or(0, VecDeque::len)
    }

    fn push(&mut self, job: QueuedJob<J>) {
        let owner = job.job.owner();
        let jobs = self.of_owners.entry(owner).or_default();
        if jobs.is_empty() {
            self.turns.push_back(owner);
        }
        jobs.push_back(job);
        self.len += 1;
    }

    fn pop(&mut self) -> Option<QueuedJob<J>> {
        let owner = self.turns.pop_front()?;
        let jobs = self.of_owners.get_mut(&owner)?;
        let job = jobs.pop_front();
        self.len -= usize::from(job.is_some());
        if jobs.is_empty() {
            self.of_owners.remove(&owner);
        } else {
            self.turns.push_back(owner);
        }
        job
    }

    fn oldest(&self) -> Option<Instant> {
        // Within an owner the first job is the oldest.
        self.of_owners.values().filter_map(|jobs| jobs.front()).map(|job| job.since).min()
    }

    fn take_late(&mut self, since: Instant) -> Vec<QueuedJob<J>> {
        let mut late = Vec::new();
        for jobs in self.of_owners.values_mut() {
            while let Some(job) = jobs.pop_front_if(|job| job.since <= since) {
                late.push(job);
            }
        }
        self.len -= late.len();
        self.of_owners.retain(|_, jobs| !jobs.is_empty());
        self.turns.retain(|owner| self.of_owners.contains_key(owner));
        late
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use uuid::Uuid;

    use super::super::Done;
    use super::*;
    use rollcall_core::storage::StorageResult;

    /// A job that has only an owner and a number.
    struct Named(Owner, u32);

    impl Job for Named {
        fn owner(&self) -> Owner {
            self.0
        }

        fn run(&mut self, _: &rusqlite::Connection) -> StorageResult<Done> {
            Ok(Done::Keep)
        }

        fn finish(self, _: StorageResult<()>) {}
    }

    fn owner(n: u128) -> Owner {
        Owner(Uuid::from_u128(n))
    }

    fn waiter(n: u128) -> Arc<Waiter> {
        patient(n, Instant::now() + Duration::from_secs(60))
    }

    fn patient(n: u128, patient_until: Instant) -> Arc<Waiter> {
        Arc::new(Waiter { owner: Some(owner(n)), patient_until, changed: Condvar::new() })
    }

    fn at(began: Instant, ms: u64) -> Instant {
        began + Duration::from_millis(ms)
    }

    #[test]
    fn owners_take_turns_and_keep_their_own_order() {
        let (mut schedule, now) = (Schedule::new(), Instant::now());
        for (of, which) in [(1, 1), (1, 2), (1, 3), (2, 4), (3, 5), (2, 6)] {
            schedule.push_job(QueuedJob { job: Named(owner(of), which), since: now });
        }
        assert_eq!((schedule.waiting(), schedule.jobs_of(owner(1))), (6, 3));
        let order: Vec<u32> = std::iter::from_fn(|| schedule.pop_job()).map(|job| job.job.1).collect();
        assert_eq!(order, [1, 4, 5, 2, 6, 3]);
        assert_eq!(schedule.waiting(), 0);
        assert!(schedule.jobs.of_owners.is_empty() && schedule.jobs.turns.is_empty());
    }

    #[test]
    fn late_jobs_are_taken_out_of_the_middle() {
        let (mut schedule, now) = (Schedule::new(), Instant::now());
        for (of, which, ms) in [(1, 1, 0), (2, 2, 5), (1, 3, 9), (3, 4, 1)] {
            schedule.push_job(QueuedJob { job: Named(owner(of), which), since: at(now, ms) });
        }
        assert_eq!(schedule.oldest_job(), Some(now));
        let mut late: Vec<u32> = schedule.take_late(at(now, 4)).into_iter().map(|job| job.job.1).collect();
        late.sort_unstable();
        assert_eq!(late, [1, 4]);
        let left: Vec<u32> = std::iter::from_fn(|| schedule.pop_job()).map(|job| job.job.1).collect();
        assert_eq!(left, [3, 2], "an owner keeps its place");
    }

    #[test]
    fn small_jobs_and_work_alone_take_turns() {
        let (mut schedule, now) = (Schedule::new(), Instant::now());
        let (first, second) = (waiter(1), waiter(2));
        schedule.push_waiter(Arc::clone(&first), now);
        schedule.push_waiter(Arc::clone(&second), now);
        schedule.push_job(QueuedJob { job: Named(owner(3), 1), since: now });
        // After small jobs, work that waits alone comes first, in the order of arrival.
        assert!(schedule.caller_may_go(&first, now) && !schedule.caller_may_go(&second, now));
        assert!(!schedule.thread_may_go(now));
        schedule.remove_waiter(&first);
        schedule.taken = true;
        assert!(!schedule.caller_may_go(&second, now) && !schedule.thread_may_go(now));
        schedule.release_alone(first.owner, now, now);
        assert!(schedule.thread_may_go(now) && !schedule.caller_may_go(&second, now));
        assert!(matches!(schedule.next(now), Some(Next::Thread)));
        schedule.pop_job();
        schedule.release_jobs();
        assert!(matches!(schedule.next(now), Some(Next::Caller(next)) if Arc::ptr_eq(&next, &second)));
    }

    /// Goal: an owner that uploads without a pause gets at most a third of the writer while others write, and
    /// all of it when it is alone.
    #[test]
    fn an_owner_that_took_long_rests_while_others_want_the_writer() {
        let (mut schedule, began) = (Schedule::<Named>::new(), Instant::now());
        let (large, other) = (waiter(1), waiter(2));
        schedule.push_waiter(Arc::clone(&large), began);
        schedule.release_alone(large.owner, began, at(began, 60));
        assert!(schedule.caller_may_go(&large, at(began, 61)), "nobody else wants it");

        schedule.push_job(QueuedJob { job: Named(owner(2), 1), since: at(began, 61) });
        schedule.pop_job();
        schedule.release_jobs();
        assert!(!schedule.caller_may_go(&large, at(began, 100)));
        assert_eq!(schedule.rest_of(&large), Some(at(began, 180)));
        schedule.push_waiter(Arc::clone(&other), at(began, 100));
        assert!(schedule.caller_may_go(&other, at(began, 100)), "it does not wait behind one that rests");
        schedule.remove_waiter(&other);
        assert!(schedule.caller_may_go(&large, at(began, 181)));

        // An owner's rest also ends before a caller would be refused for having waited too long.
        let impatient = patient(1, at(began, 90));
        schedule.remove_waiter(&large);
        schedule.push_waiter(Arc::clone(&impatient), at(began, 70));
        assert!(!schedule.caller_may_go(&impatient, at(began, 89)));
        assert!(schedule.caller_may_go(&impatient, at(began, 90)));

        // The rest after the largest write is bounded, and a short turn causes none.
        schedule.release_alone(large.owner, began, at(began, 10_000));
        assert_eq!(schedule.rest_of(&large), Some(at(began, 11_000)));
        schedule.release_alone(other.owner, began, at(began, 4));
        assert_eq!(schedule.rest_of(&other), None);
        // Others that have stopped writing no longer count.
        schedule.push_job(QueuedJob { job: Named(owner(1), 2), since: at(began, 1_200) });
        schedule.pop_job();
        schedule.remove_waiter(&impatient);
        schedule.push_waiter(Arc::clone(&large), at(began, 1_200));
        schedule.release_alone(large.owner, at(began, 1_200), at(began, 1_400));
        assert!(schedule.caller_may_go(&large, at(began, 1_401)));
    }
}

//! The writing connection and its queue.
//!
//! - Small jobs ([`Writer::enqueue`]) are run by one thread, many in one transaction: they share a COMMIT and
//!   its fsync. Each job runs in a savepoint, so a failure concerns only this job. No client receives a
//!   response before the COMMIT.
//! - Long or rare work ([`Writer::run_alone`]) has the connection to itself, on its caller's thread, in a
//!   transaction of its own.
//!
//! [`Schedule`] decides which comes next. It is fair between owners.

mod group;
mod schedule;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rusqlite::Connection;

use super::owner_states::OwnerStateCache;
use super::past::Beside;
use crate::failed;
use rollcall_core::model::{Owner, Version};
use rollcall_core::storage::{EngineObserver, OwnerState, StorageError, StorageResult};
use schedule::{Next, Schedule, Waiter};

/// How old a transaction may be and still accept another job: about as long as a common disk needs for an
/// fsync.
const OPEN_MAX: Duration = Duration::from_millis(4);

/// One small write for the writer thread.
pub(super) trait Job: Send {
    fn owner(&self) -> Owner;

    /// Does the work. It may be run again from the start.
    fn run(&mut self, conn: &Connection) -> StorageResult<Done>;

    /// Called once, on any thread, when the work is durable or rolled back. It must be fast, since others may
    /// wait.
    fn finish(self, result: StorageResult<()>);
}

/// The effect of a job on its transaction.
pub(super) enum Done {
    /// Nothing: the job must be rolled back.
    Rollback,
    /// Writes that change no owner's state.
    Keep,
    /// A new state of an owner.
    Move(Moved),
}

impl Done {
    fn is_kept(&self) -> bool {
        !matches!(self, Self::Rollback)
    }

    fn moved(self) -> Option<Moved> {
        if let Self::Move(moved) = self { Some(moved) } else { None }
    }
}

/// An owner, its version before a job, and its state after it.
pub(super) type Moved = (Owner, Version, OwnerState);

/// Work that has the writer to itself. It runs once.
pub(super) type Work<'a> = &'a mut dyn FnMut(&Connection) -> StorageResult<Done>;

struct QueuedJob<J> {
    job: J,
    since: Instant,
}

/// The writing connection and its queue.
pub(super) struct Writer<J> {
    /// Locked by the thread that has the turn. Others only try to lock it, and never wait for it.
    conn: Mutex<Connection>,
    schedule: Mutex<Schedule<J>>,
    /// Wakes the writer thread.
    thread: Condvar,
    pub owner_states: OwnerStateCache,
    /// The record beside the database.
    past: Mutex<Option<Beside>>,
    /// How long a caller or a job waits for the writer.
    busy_wait: Duration,
    open_max: Duration,
    /// How many may wait. One owner's small jobs may use half of it.
    pub queue_max: usize,
    pub observer: Arc<dyn EngineObserver>,
}

/// The turn of a caller that has the writer to itself. Dropping it ends the turn, also after a panic.
struct Turn<'w, J: Job> {
    writer: &'w Writer<J>,
    owner: Option<Owner>,
    began: Instant,
}

impl<J: Job> Writer<J> {
    pub fn new(conn: Connection, busy_wait: Duration) -> Self {
        Self {
            conn: Mutex::new(conn),
            schedule: Mutex::new(Schedule::new()),
            thread: Condvar::new(),
            owner_states: OwnerStateCache::new(),
            past: Mutex::new(None),
            busy_wait,
            open_max: OPEN_MAX,
            queue_max: usize::MAX,
            observer: Arc::new(()),
        }
    }

    /// Starts to count writes beside the database.
    pub fn note_past(&self, past: Beside) {
        *self.past.lock() = Some(past);
    }

    /// Queues a job for the writer thread. It never blocks.
    ///
    /// - Errors: the job is finished at once with [`StorageError::QueueFull`] if too many wait, and with
    ///   [`StorageError::Busy`] if it did not begin within `busy_wait`.
    pub fn enqueue(&self, job: J) {
        let mut schedule = self.schedule.lock();
        let (waiting, own) = (schedule.waiting(), schedule.jobs_of(job.owner()));
        if waiting >= self.queue_max || own >= self.queue_max.div_ceil(2) {
            drop(schedule);
            self.observer.refused();
            return finish(job, Err(StorageError::QueueFull));
        }
        schedule.push_job(QueuedJob { job, since: Instant::now() });
        self.observer.queued(schedule.waiting());
        drop(schedule);
        self.thread.notify_one();
    }

    /// Runs work alone, in a transaction of its own, and returns once it is durable or rolled back.
    ///
    /// - `owner`: the owner of the work, so that other owners get their share of the writer.
    /// - Errors: the work's own; [`StorageError::QueueFull`] at once; [`StorageError::Busy`] if the writer
    ///   did not become free within `busy_wait`.
    pub fn run_alone(&self, owner: Option<Owner>, work: Work<'_>) -> StorageResult<()> {
        let _turn = self.take_turn(owner)?;
        let ended = self.transact(&self.conn.lock(), work);
        ended.unwrap_or_else(|panic| resume_unwind(panic))
    }

    /// Runs work in a transaction of its own. The outer error is its panic.
    fn transact(&self, conn: &Connection, work: Work<'_>) -> std::thread::Result<StorageResult<()>> {
        if let Err(error) = self.begin(conn) {
            return Ok(Err(error));
        }
        match catch_unwind(AssertUnwindSafe(|| work(conn))) {
            Ok(Ok(done)) if done.is_kept() => {
                // A full disk, an I/O error, a lack of memory: SQLite rolls the whole transaction back by
                // itself.
                if conn.is_autocommit() {
                    self.roll_back(conn);
                    return Ok(Err(rolled_back_by_sqlite()));
                }
                Ok(self.commit(conn, done.moved().as_slice(), 1).map_err(failed))
            }
            ended => {
                self.roll_back(conn);
                ended.map(|result| result.map(drop))
            }
        }
    }

    /// Takes the writer alone for work outside of any transaction.
    pub fn outside<T>(&self, work: impl FnOnce(&mut Connection) -> T) -> StorageResult<T> {
        let _turn = self.take_turn(None)?;
        Ok(work(&mut self.conn.lock()))
    }

    /// The connection, while no other thread can use it.
    pub fn conn(&mut self) -> &mut Connection {
        self.conn.get_mut()
    }

    /// An owner's current state, if it is known without a transaction.
    pub fn known_state(&self, owner: Owner) -> Option<OwnerState> {
        self.owner_states.get(owner, || self.look())
    }

    /// Whether these are known to be the current versions, without a transaction.
    pub fn are_current(&self, versions: &[(Owner, Version)]) -> bool {
        self.owner_states.are_current(versions, || self.look())
    }

    /// Checks whether another process wrote. If the writer is busy, its transaction checks `data_version` itself.
    fn look(&self) {
        let Some(conn) = self.conn.try_lock() else { return };
        // The caller must not wait for a process that recovers the log.
        let looked = conn.busy_timeout(Duration::ZERO).and_then(|()| self.owner_states.look(&conn));
        if let Err(error) = looked.and(conn.busy_timeout(self.busy_wait)) {
            tracing::debug!(%error, "could not check whether another process wrote");
        }
    }

    fn take_turn(&self, owner: Option<Owner>) -> StorageResult<Turn<'_, J>> {
        let mut schedule = self.schedule.lock();
        if schedule.waiting() >= self.queue_max {
            self.observer.refused();
            return Err(StorageError::QueueFull);
        }
        let came = Instant::now();
        let until = came + self.busy_wait;
        let patient_until = came + self.busy_wait / 2;
        let me = Arc::new(Waiter { owner, patient_until, changed: Condvar::new() });
        schedule.push_waiter(Arc::clone(&me), came);
        self.observer.queued(schedule.waiting());
        loop {
            let now = Instant::now();
            let may_go = schedule.caller_may_go(&me, now);
            if may_go || now >= until {
                schedule.remove_waiter(&me);
                schedule.taken |= may_go;
                self.observer.queued(schedule.waiting());
                if may_go {
                    return Ok(Turn { writer: self, owner, began: now });
                }
                self.wake_next(&schedule, now); // this caller may have received the wake-up for the free writer
                self.observer.refused();
                return Err(StorageError::Busy);
            }
            let rest = schedule.rest_of(&me).filter(|rest| *rest > now);
            me.changed.wait_until(&mut schedule, rest.map_or(until, |rest| rest.min(until)));
        }
    }

    fn wake_next(&self, schedule: &Schedule<J>, now: Instant) {
        if schedule.taken {
            return;
        }
        match schedule.next(now) {
            Some(Next::Thread) => self.thread.notify_one(),
            Some(Next::Caller(waiter)) => waiter.changed.notify_one(),
            None => false,
        };
    }

    fn begin(&self, conn: &Connection) -> StorageResult<()> {
        // A transaction that begins as a reader can fail at its first write, whatever the busy timeout.
        execute(conn, "BEGIN IMMEDIATE").map_err(failed)?;
        self.owner_states.begun(conn).map_err(|error| {
            self.roll_back(conn);
            failed(error)
        })
    }

    fn commit(&self, conn: &Connection, moved: &[Moved], jobs: usize) -> rusqlite::Result<()> {
        self.owner_states.ending();
        self.owner_states.committing(moved.iter().map(|(owner, ..)| *owner));
        let ended = execute(conn, "COMMIT");
        if ended.is_err() {
            roll_back(conn);
        }
        self.owner_states.committed(if ended.is_ok() { moved } else { &[] });
        if let (Ok(()), Some(past)) = (&ended, self.past.lock().as_mut()) {
            let writes =
                |(_, before, after): &Moved| after.version.counter().saturating_sub(before.counter());
            past.count(moved.iter().map(writes).sum());
        }
        ended.inspect(|()| self.observer.committed(jobs))
    }

    fn roll_back(&self, conn: &Connection) {
        self.owner_states.ending();
        roll_back(conn);
    }
}

impl<J: Job> Drop for Turn<'_, J> {
    fn drop(&mut self) {
        let mut schedule = self.writer.schedule.lock();
        let now = Instant::now();
        schedule.release_alone(self.owner, self.began, now);
        self.writer.wake_next(&schedule, now);
        self.writer.observer.held(now - self.began);
    }
}

/// Reports the result to a job. Its panic must not keep results from other jobs.
fn finish<J: Job>(job: J, result: StorageResult<()>) {
    if catch_unwind(AssertUnwindSafe(|| job.finish(result))).is_err() {
        tracing::error!("a write panicked while its result was delivered");
    }
}

/// The error of work that should be committed but was rolled back by SQLite.
fn rolled_back_by_sqlite() -> StorageError {
    StorageError::Engine("SQLite rolled the work back".into())
}

fn execute(conn: &Connection, sql: &str) -> rusqlite::Result<()> {
    conn.prepare_cached(sql)?.execute([]).map(|_| ())
}

fn roll_back(conn: &Connection) {
    // If this fails, nothing is left to roll back.
    if !conn.is_autocommit()
        && let Err(error) = execute(conn, "ROLLBACK")
    {
        tracing::error!(%error, "a transaction could not be rolled back");
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use std::path::{Path, PathBuf};
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::thread::{Scope, ScopedJoinHandle, scope};

    use uuid::Uuid;

    use super::*;

    struct TestWriter {
        writer: Writer<TestJob>,
        beside: Mutex<Connection>,
        path: PathBuf,
        counts: Arc<Counts>,
        _dir: tempfile::TempDir,
    }

    #[derive(Default)]
    struct Counts {
        commits: AtomicUsize,
        waiting: AtomicUsize,
        refused: AtomicUsize,
    }

    impl EngineObserver for Counts {
        fn committed(&self, _: usize) {
            self.commits.fetch_add(1, Ordering::Relaxed);
        }

        fn queued(&self, jobs: usize) {
            self.waiting.store(jobs, Ordering::Relaxed);
        }

        fn refused(&self) {
            self.refused.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A job that reports its result.
    struct TestJob {
        owner: Owner,
        work: Work,
        report: Sender<StorageResult<()>>,
    }

    impl Job for TestJob {
        fn owner(&self) -> Owner {
            self.owner
        }

        fn run(&mut self, conn: &Connection) -> StorageResult<Done> {
            (self.work)(conn)
        }

        fn finish(self, result: StorageResult<()>) {
            let _ = self.report.send(result);
        }
    }

    fn open(path: &Path) -> Connection {
        let conn = Connection::open(path).unwrap();
        conn.pragma_update(None, "journal_mode", "WAL").unwrap();
        conn.pragma_update(None, "foreign_keys", true).unwrap();
        conn
    }

    fn owner(n: u128) -> Owner {
        Owner(Uuid::from_u128(n))
    }

    impl TestWriter {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("app.db");
            let conn = open(&path);
            conn.execute_batch(
                "CREATE TABLE done (n INTEGER PRIMARY KEY, bytes BLOB,
                    before INTEGER REFERENCES done (n) DEFERRABLE INITIALLY DEFERRED)",
            )
            .unwrap();
            // Tests keep a transaction open until all jobs are queued.
            let open_max = Duration::from_secs(60);
            let counts = Arc::new(Counts::default());
            let observer = Arc::clone(&counts) as Arc<dyn EngineObserver>;
            let writer = Writer { open_max, observer, ..Writer::new(conn, Duration::from_secs(20)) };
            Self { writer, beside: Mutex::new(open(&path)), path, counts, _dir: dir }
        }

        /// The rows that other connections see.
        fn done(&self) -> Vec<i64> {
            let beside = self.beside.lock();
            let mut statement = beside.prepare_cached("SELECT n FROM done ORDER BY n").unwrap();
            let done = statement.query_map([], |row| row.get(0)).unwrap();
            done.collect::<Result<_, _>>().unwrap()
        }

        fn insert_alone(&self, n: i64) -> StorageResult<()> {
            self.writer.run_alone(Some(owner(0)), &mut |conn| insert(conn, n))
        }

        fn commits(&self) -> usize {
            self.counts.commits.load(Ordering::Relaxed)
        }

        fn await_waiting(&self, waiting: usize) {
            let until = Instant::now() + Duration::from_secs(20);
            while self.writer.schedule.lock().waiting() != waiting {
                assert!(Instant::now() < until, "nobody came to wait");
                std::thread::yield_now();
            }
        }

        /// Queues a job of a separate owner.
        fn enqueue<W>(&self, of: u128, work: W) -> Receiver<StorageResult<()>>
        where
            W: FnMut(&Connection) -> StorageResult<Done> + Send + 'static,
        {
            let (report, reported) = channel();
            self.writer.enqueue(TestJob { owner: owner(of), work: Box::new(work), report });
            reported
        }

        /// Runs the writer thread during a test, and stops it even if the test fails.
        fn with_thread<'e, T>(&'e self, test: impl for<'s> FnOnce(&'s Scope<'s, 'e>) -> T) -> T {
            struct Stop<'w>(&'w Writer<TestJob>);
            impl Drop for Stop<'_> {
                fn drop(&mut self) {
                    self.0.stop();
                }
            }
            let result = scope(|scope| {
                scope.spawn(|| self.writer.run_jobs());
                let _stop = Stop(&self.writer);
                test(scope)
            });
            self.writer.schedule.lock().stopped = false;
            result
        }

        /// Runs jobs in one transaction, after one that inserts `first`; returns their results and that
        /// one's.
        fn together(&self, first: i64, jobs: Vec<Work>) -> Vec<StorageResult<()>> {
            self.with_thread(|_| {
                let (let_go, held) = channel::<()>();
                let (tell, has_begun) = channel();
                let mut reports = vec![self.enqueue(1_000, move |conn| {
                    let _ = tell.send(());
                    let _ = held.recv(); // a second run is not held
                    insert(conn, first)
                })];
                has_begun.recv().unwrap();
                for (index, work) in jobs.into_iter().enumerate() {
                    reports.push(self.enqueue(index as u128, work));
                }
                drop(let_go);
                reports.into_iter().map(|report| report.recv().unwrap()).collect()
            })
        }
    }

    type Work = Box<dyn FnMut(&Connection) -> StorageResult<Done> + Send>;

    fn insert(conn: &Connection, n: i64) -> StorageResult<Done> {
        conn.execute("INSERT INTO done (n) VALUES (?1)", [n]).map_err(failed)?;
        Ok(Done::Keep)
    }

    /// Holds the writer until it is released.
    fn hold<'s, 'e>(
        scope: &'s Scope<'s, 'e>,
        test: &'e TestWriter,
        n: i64,
    ) -> (ScopedJoinHandle<'s, StorageResult<()>>, Sender<()>) {
        let (let_go, held): (_, Receiver<()>) = channel();
        let (tell, has_turn) = channel();
        let first = scope.spawn(move || {
            test.writer.run_alone(Some(owner(99)), &mut |conn| {
                let _ = tell.send(());
                let _ = held.recv();
                insert(conn, n)
            })
        });
        has_turn.recv().unwrap();
        (first, let_go)
    }

    fn outcome(result: &StorageResult<()>) -> &'static str {
        match result {
            Ok(()) => "well",
            Err(StorageError::Full(_)) => "full",
            Err(_) => "badly",
        }
    }

    #[test]
    fn queued_jobs_share_one_commit_and_nobody_sees_them_before() {
        let test = TestWriter::new();
        let beside = open(&test.path);
        let mut jobs: Vec<Work> = Vec::new();
        for n in 1..=5 {
            jobs.push(Box::new(move |conn| insert(conn, n)));
        }
        jobs.push(Box::new(move |conn| {
            let seen: i64 =
                beside.query_row("SELECT count(*) FROM done", [], |row| row.get(0)).map_err(failed)?;
            let within: i64 =
                conn.query_row("SELECT count(*) FROM done", [], |row| row.get(0)).map_err(failed)?;
            assert_eq!((seen, within), (0, 6), "in the order of arrival, and not yet kept");
            insert(conn, 6)
        }));
        assert!(test.together(0, jobs).iter().all(Result::is_ok));
        assert_eq!(test.done(), [0, 1, 2, 3, 4, 5, 6]);
        assert_eq!(test.commits(), 1);
        test.insert_alone(7).unwrap();
        assert_eq!(test.commits(), 2);
    }

    #[test]
    fn a_job_that_fails_panics_or_is_rolled_back_hurts_no_other() {
        let test = TestWriter::new();
        let half = |conn: &Connection, n| insert(conn, n).map(|_| ());
        let results = test.together(
            0,
            vec![
                Box::new(|conn| insert(conn, 1)),
                Box::new(move |conn| half(conn, 2).and(Err(StorageError::Full("for the test".into())))),
                Box::new(|conn| insert(conn, 3)),
                Box::new(move |conn| {
                    half(conn, 4)?;
                    panic!("for the test")
                }),
                Box::new(move |conn| half(conn, 5).map(|()| Done::Rollback)),
                Box::new(|conn| insert(conn, 1)),
                Box::new(|conn| insert(conn, 7)),
            ],
        );
        let results: Vec<_> = results.iter().map(outcome).collect();
        assert_eq!(results, ["well", "well", "full", "well", "badly", "well", "badly", "well"]);
        assert_eq!(test.done(), [0, 1, 3, 7]);
        assert_eq!(test.commits(), 1);
        // The same if each is the first job of its transaction, both queued and alone.
        test.with_thread(|_| {
            let ends = [
                test.enqueue(1, move |conn| half(conn, 8).and(Err(StorageError::Busy))).recv().unwrap(),
                test.enqueue(1, move |conn| half(conn, 8).map(|()| Done::Rollback)).recv().unwrap(),
                test.enqueue(1, move |conn| half(conn, 8).map(|()| panic!("for the test"))).recv().unwrap(),
            ];
            assert_eq!(ends.each_ref().map(outcome), ["badly", "well", "badly"]);
        });
        let alone = |work: super::Work<'_>| test.writer.run_alone(None, work);
        assert!(alone(&mut |conn| half(conn, 8).and(Err(StorageError::Busy))).is_err());
        alone(&mut |conn| half(conn, 8).map(|()| Done::Rollback)).unwrap();
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            alone(&mut |conn| {
                half(conn, 8)?;
                panic!("for the test")
            })
        }));
        assert!(panicked.is_err());
        test.insert_alone(9).unwrap();
        assert_eq!(test.done(), [0, 1, 3, 7, 9]);
    }

    #[test]
    fn a_commit_that_fails_fails_for_each() {
        let test = TestWriter::new();
        test.writer.outside(|conn| conn.commit_hook(Some(|| true)).unwrap()).unwrap();
        let results = test.together(
            1,
            vec![Box::new(|conn| insert(conn, 2)), Box::new(|conn| insert(conn, 3).map(|_| Done::Rollback))],
        );
        assert!(results.iter().all(|result| matches!(result, Err(StorageError::Engine(_)))));
        assert!(test.insert_alone(3).is_err());
        assert_eq!((test.done(), test.commits()), (vec![], 0));
        test.writer.outside(|conn| conn.commit_hook(None::<fn() -> bool>).unwrap()).unwrap();
        test.insert_alone(4).unwrap();
        assert_eq!(test.done(), [4]);
    }

    /// Method: a limit on the file's pages, upon which SQLite rolls everything back.
    #[test]
    fn a_full_disk_fails_the_job_that_it_has_no_room_for_and_no_other() {
        let test = TestWriter::new();
        let limit = |pages: i64| {
            let set = |conn: &mut Connection| conn.pragma_update(None, "max_page_count", pages).unwrap();
            test.writer.outside(set).unwrap();
        };
        let pages: i64 = test.beside.lock().query_row("PRAGMA page_count", [], |row| row.get(0)).unwrap();
        limit(1 + pages);
        let too_much = |conn: &Connection| {
            conn.execute("INSERT INTO done (n, bytes) VALUES (9, zeroblob(1000000))", []).map_err(failed)?;
            Ok(Done::Keep)
        };
        // The second job treats its failure as a result of its own, as `Storage::write` makes it do.
        let hidden = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&hidden);
        let hides = move |conn: &Connection| {
            noted.lock().push(too_much(conn).err());
            Ok(Done::Rollback)
        };
        let jobs: [Work; 2] = [Box::new(too_much), Box::new(hides)];
        for (round, job) in jobs.into_iter().enumerate() {
            let first = 3 * round as i64 + 1;
            let others: [Work; 2] =
                [first + 1, first + 2].map(|n| Box::new(move |conn: &Connection| insert(conn, n)) as Work);
            let [before, after] = others;
            let results = test.together(first, vec![before, job, after]);
            let results: Vec<_> = results.iter().map(outcome).collect();
            assert_eq!(results, ["well", "well", if round == 0 { "full" } else { "well" }, "well"]);
        }
        let hidden = std::mem::take(&mut *hidden.lock());
        assert!(hidden.len() == 2 && matches!(hidden[1], Some(StorageError::Full(_))), "{hidden:?}");
        assert_eq!(test.done(), [1, 2, 3, 4, 5, 6]);
        // Work that failed is not committed, even if it says so.
        assert!(test.writer.run_alone(None, &mut |conn| too_much(conn).or(Ok(Done::Keep))).is_err());
        let results = test.together(0, vec![Box::new(move |conn| too_much(conn).or(Ok(Done::Keep)))]);
        assert_eq!(results.iter().map(outcome).collect::<Vec<_>>(), ["well", "badly"]);
        limit(1_000_000);
        test.insert_alone(7).unwrap();
        assert_eq!(test.done(), [0, 1, 2, 3, 4, 5, 6, 7]);
    }

    /// SQLite finds it at COMMIT, when it no longer knows which job caused it.
    #[test]
    fn a_reference_to_nothing_fails_the_job_that_made_it() {
        let test = TestWriter::new();
        let dangling = |conn: &Connection| {
            conn.execute("INSERT INTO done (n, before) VALUES (2, 99)", []).map_err(failed)?;
            Ok(Done::Keep)
        };
        let results = test.together(
            0,
            vec![Box::new(|conn| insert(conn, 1)), Box::new(dangling), Box::new(|conn| insert(conn, 3))],
        );
        assert_eq!(results.iter().map(outcome).collect::<Vec<_>>(), ["well", "well", "badly", "well"]);
        assert_eq!(test.done(), [0, 1, 3]);
        assert!(test.writer.run_alone(None, &mut |conn| dangling(conn)).is_err());
    }

    #[test]
    fn work_alone_and_small_jobs_commit_apart_and_take_turns() {
        let test = TestWriter::new();
        test.with_thread(|scope| {
            let (first, let_go) = hold(scope, &test, 0);
            let jobs: Vec<_> = (1..=3).map(|n| test.enqueue(1, move |conn| insert(conn, n))).collect();
            let seen = scope.spawn(|| {
                let mut seen = Vec::new();
                let result = test.writer.run_alone(Some(owner(2)), &mut |conn| {
                    seen = test.done();
                    insert(conn, 4)
                });
                result.map(|()| seen)
            });
            test.await_waiting(4);
            let_go.send(()).unwrap();
            first.join().unwrap().unwrap();
            assert!(jobs.into_iter().all(|job| job.recv().unwrap().is_ok()));
            assert_eq!(seen.join().unwrap().unwrap(), [0, 1, 2, 3], "the jobs came first, and are durable");
        });
        assert_eq!(test.done(), [0, 1, 2, 3, 4]);
        assert_eq!(test.commits(), 3);
    }

    /// A caller that waits when its owner's rest begins must not miss the end of the rest.
    #[test]
    fn callers_of_an_owner_that_rests_come_one_after_the_other() {
        let mut test = TestWriter::new();
        test.writer.busy_wait = Duration::from_secs(60);
        let test = &test;
        test.writer.run_alone(Some(owner(1)), &mut |_| Ok(Done::Rollback)).unwrap();
        let began = Instant::now();
        scope(|scope| {
            for n in 0..4 {
                scope.spawn(move || {
                    let mut work = |conn: &Connection| {
                        std::thread::sleep(2 * schedule::SHORT_TURN);
                        insert(conn, n)
                    };
                    test.writer.run_alone(Some(owner(2)), &mut work).unwrap();
                });
            }
        });
        assert!(began.elapsed() < Duration::from_secs(20), "someone waited for as long as a caller may");
        assert_eq!(test.done(), [0, 1, 2, 3]);
    }

    #[test]
    fn a_queue_that_is_full_refuses_and_one_that_stands_still_gives_up() {
        let mut test = TestWriter::new();
        test.writer.queue_max = 4;
        test.with_thread(|scope| {
            let (first, let_go) = hold(scope, &test, 0);
            let mut jobs: Vec<_> = (1..=3).map(|n| test.enqueue(1, move |conn| insert(conn, n))).collect();
            let third = jobs.pop().unwrap();
            assert!(
                matches!(third.recv().unwrap(), Err(StorageError::QueueFull)),
                "one owner has half of it"
            );
            jobs.extend((4..=6).map(|n| test.enqueue(n as u128, move |conn| insert(conn, n))));
            let fifth = jobs.pop().unwrap();
            assert!(matches!(fifth.recv().unwrap(), Err(StorageError::QueueFull)));
            assert!(matches!(test.insert_alone(7), Err(StorageError::QueueFull)));
            let_go.send(()).unwrap();
            first.join().unwrap().unwrap();
            assert!(jobs.into_iter().all(|job| job.recv().unwrap().is_ok()));
        });
        test.writer.busy_wait = Duration::from_millis(20);
        test.with_thread(|scope| {
            let (first, let_go) = hold(scope, &test, 8);
            assert!(matches!(test.insert_alone(9), Err(StorageError::Busy)));
            let late: Vec<_> = (9..=10).map(|n| test.enqueue(1, move |conn| insert(conn, n))).collect();
            // They are refused in time, although the writer is still held.
            assert!(late.into_iter().all(|late| matches!(late.recv().unwrap(), Err(StorageError::Busy))));
            let_go.send(()).unwrap();
            first.join().unwrap().unwrap();
        });
        test.insert_alone(11).unwrap();
        assert_eq!(test.done(), [0, 1, 2, 4, 5, 8, 11]);
        let counts = &test.counts;
        let (refused, waiting) = (&counts.refused, &counts.waiting);
        assert_eq!((refused.load(Ordering::Relaxed), waiting.load(Ordering::Relaxed)), (6, 0));
    }

    /// Goal: exactly the acknowledged work is stored, whatever fails beside it. Method: threads whose work
    /// ends in every way, impatient ones among them, while every seventh COMMIT fails.
    #[test]
    fn whatever_fails_what_was_acknowledged_is_what_is_kept() {
        let mut test = TestWriter::new();
        (test.writer.busy_wait, test.writer.open_max) = (Duration::from_millis(3), OPEN_MAX);
        let commits = AtomicUsize::new(0);
        let hook = move || commits.fetch_add(1, Ordering::Relaxed) % 7 == 6;
        test.writer.outside(|conn| conn.commit_hook(Some(hook)).unwrap()).unwrap();
        let test = &test;
        let mut kept: Vec<i64> = test.with_thread(|scope| {
            let threads = (0..8_i64).map(|thread| {
                scope.spawn(move || {
                    let mut kept = Vec::new();
                    for round in 0..150 {
                        let n = thread * 1_000 + round;
                        let has_run = Arc::new(AtomicBool::new(false));
                        let ran = Arc::clone(&has_run);
                        let mut work = move |conn: &Connection| {
                            ran.store(true, Ordering::Relaxed);
                            insert(conn, n)?;
                            match (n * 7 + round) % 11 {
                                0 => Ok(Done::Rollback),
                                1 => Err(StorageError::Busy),
                                2 if round % 4 == 0 => panic!("for the test"),
                                3 => Ok(conn
                                    .execute("UPDATE done SET before = -1 WHERE n = ?1", [n])
                                    .map_err(failed)?)
                                .map(|_| Done::Keep),
                                _ => Ok(Done::Keep),
                            }
                        };
                        let mut ended = Ok(Ok(()));
                        // Impatient: many stop waiting, and try again.
                        while !has_run.load(Ordering::Relaxed) {
                            let of = thread as u128 % 4;
                            ended = match thread % 2 {
                                0 => catch_unwind(AssertUnwindSafe(|| {
                                    test.writer.run_alone(Some(owner(of)), &mut work)
                                })),
                                _ => Ok(test.enqueue(of, work.clone()).recv().unwrap()),
                            };
                        }
                        if matches!(ended, Ok(Ok(()))) && (n * 7 + round) % 11 != 0 {
                            kept.push(n);
                        }
                    }
                    kept
                })
            });
            let threads: Vec<_> = threads.collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        });
        kept.sort_unstable();
        assert!(kept.len() > 100, "only {} ended well", kept.len());
        assert_eq!(test.done(), kept);
        assert!(!test.writer.schedule.lock().taken);
    }
}

//! Group commit: jobs of many callers in one transaction, and one fsync for all of them.
//!
//! Turns are given in the order of asking. A caller that waits ([`Group::run`]) runs its job on its own thread when
//! its turn comes. One that does not wait leaves an [`Errand`] ([`Group::send`]): if nobody has the turn it is run at
//! once, else one thread runs errand after errand, so that none must wake for each.
//!
//! A job runs within a savepoint, so that its failure is its own. Whoever ends a job while others wait leaves
//! the transaction open, hands its turn on, and waits; whoever ends one while nobody waits, or when the
//! transaction has grown to its bounds, commits for all. Nobody gets an answer before that COMMIT.

mod errands;

use std::cell::Cell;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rusqlite::{Connection, ffi};

use super::known::Known;
use crate::metrics::Metrics;
use crate::model::{Owner, Version};
use crate::storage::{OwnerState, StorageError, StorageResult};

pub(super) use errands::Errand;
use errands::{Runner, Sent};

/// Jobs of one COMMIT. The first ones wait for the last, so it is no more than a fsync can pay for.
const JOBS_MAX: usize = 128;

/// How old a transaction may be and still take in one more job: as long as a common disk needs for a fsync.
const OPEN_MAX: Duration = Duration::from_millis(4);

/// The one connection that writes, and the queue for it.
pub(super) struct Group {
    runner: Runner,
    /// Belongs to whoever has the turn; others only look in, and never wait for it.
    writer: Mutex<Writer>,
    turns: Mutex<Turns>,
    pub known: Known,
    busy_wait: Duration,
    open_max: Duration,
    pub queue_max: usize,
    pub metrics: Arc<Metrics>,
}

struct Writer {
    conn: Connection,
    open: Option<Open>,
}

/// A transaction that is under way.
struct Open {
    began: Instant,
    members: Vec<Member>,
}

/// A job that ended well, or was undone as it wished, and awaits the COMMIT.
struct Member {
    who: Who,
    moved: Option<Moved>,
}

/// An owner, its version before and its state after a job.
pub(super) type Moved = (Owner, Version, OwnerState);

#[derive(Default)]
struct Turns {
    taken: bool,
    waiting: VecDeque<Who>,
}

/// Whoever wants something written.
enum Who {
    Caller(Arc<Caller>),
    Errand(Sent),
}

/// Where a caller stands.
#[derive(Default)]
struct Caller {
    stands: Mutex<Stands>,
    changed: Condvar,
}

#[derive(Default)]
enum Stands {
    #[default]
    Waiting,
    HasTurn,
    Told(Result<(), Failed>),
}

/// Why a transaction was not kept.
#[derive(Clone)]
enum Failed {
    /// By one of its jobs: it refers to a row that is not there, and SQLite does not say which job it was; or SQLite
    /// undid everything in the middle of it. Each runs again, alone.
    OneOfThem,
    All(Arc<StorageError>),
}

/// What a job leaves.
pub(super) enum Done {
    /// Nothing: it is to be undone.
    Undo,
    /// Something that is no owner's state.
    Keep,
    /// An owner's state.
    Move(Moved),
}

/// What a job works with. It may be run again from the start.
pub(super) struct Job<'a> {
    pub conn: &'a Connection,
    has_company: bool,
    is_long: Cell<bool>,
}

pub(super) type Work<'a> = &'a mut dyn FnMut(&Job<'_>) -> StorageResult<Done>;

impl Job<'_> {
    /// To be said by a job that finds that it takes long, before it has done much: those before it must not wait
    /// for it, so it ends with this error, and runs again once they have been answered.
    pub fn takes_long(&self) -> StorageResult<()> {
        if !self.has_company {
            return Ok(());
        }
        self.is_long.set(true);
        Err(StorageError::Engine("this job is to run again, alone".into()))
    }
}

impl Group {
    pub fn new(conn: Connection, busy_wait: Duration) -> Self {
        Self {
            writer: Mutex::new(Writer { conn, open: None }),
            turns: Mutex::default(),
            runner: Runner::default(),
            known: Known::new(),
            busy_wait,
            open_max: OPEN_MAX,
            queue_max: usize::MAX,
            metrics: Arc::default(),
        }
    }

    /// Runs a job, and returns once it is durable or undone.
    ///
    /// - Errors: the job's own; [`StorageError::QueueFull`] at once; [`StorageError::Busy`] if its turn did not
    ///   come within `busy_wait`; else what the whole transaction failed with.
    pub fn run(&self, work: Work<'_>) -> StorageResult<()> {
        let me = Arc::new(Caller::default());
        let mut alone = false;
        loop {
            self.take_turn(&me, alone)?;
            // From here on nothing may return before the turn was handed on.
            let mut writer = self.writer.lock();
            let part = self.take_part(&mut writer, alone, work);
            if let Ended::Awaits(moved) = part.ended {
                writer.join(Who::Caller(Arc::clone(&me)), moved);
            }
            drop(writer);
            self.end_turn(part.stays_open);
            self.tell(part.told);
            match part.ended {
                Ended::Alone(result) => return result,
                Ended::Panicked(panic) => resume_unwind(panic),
                Ended::Again => alone = true,
                Ended::Awaits(_) => match me.told() {
                    Ok(()) => return Ok(()),
                    Err(Failed::OneOfThem) => alone = true,
                    Err(Failed::All(error)) => return Err(again(&error)),
                },
            }
        }
    }

    /// The connection, while nobody else can have it.
    pub fn conn(&mut self) -> &mut Connection {
        &mut self.writer.get_mut().conn
    }

    /// Works with the connection outside of any transaction.
    pub fn outside<T>(&self, work: impl FnOnce(&mut Connection) -> T) -> StorageResult<T> {
        self.take_turn(&Arc::default(), false)?;
        let mut writer = self.writer.lock();
        self.tell(self.commit(&mut writer));
        let done = catch_unwind(AssertUnwindSafe(|| work(&mut writer.conn)));
        drop(writer);
        self.give_back();
        done.map_err(|panic| resume_unwind(panic))
    }

    /// What is known of an owner without a transaction, and not old.
    pub fn known_state(&self, owner: Owner) -> Option<OwnerState> {
        self.known.get(owner, || {
            // Whoever writes now looks itself.
            let Some(writer) = self.writer.try_lock() else { return };
            // The caller must not wait for a process that recovers the log.
            let looked =
                writer.conn.busy_timeout(Duration::ZERO).and_then(|()| self.known.look(&writer.conn));
            if let Err(error) = looked.and(writer.conn.busy_timeout(self.busy_wait)) {
                tracing::debug!(%error, "could not look whether another process wrote");
            }
        })
    }

    fn take_turn(&self, me: &Arc<Caller>, again: bool) -> StorageResult<()> {
        {
            let mut turns = self.turns.lock();
            if !turns.taken {
                turns.taken = true;
                return Ok(());
            }
            if turns.waiting.len() >= self.queue_max && !again {
                drop(turns);
                self.metrics.busy.inc();
                return Err(StorageError::QueueFull);
            }
            *me.stands.lock() = Stands::Waiting;
            turns.waiting.push_back(Who::Caller(Arc::clone(me)));
            self.metrics.write_queue.set(turns.waiting.len() as i64);
        }
        let until = Instant::now() + self.busy_wait;
        let mut stands = me.stands.lock();
        while !matches!(*stands, Stands::HasTurn) {
            if me.changed.wait_until(&mut stands, until).timed_out() {
                drop(stands);
                let mut turns = self.turns.lock();
                if matches!(*me.stands.lock(), Stands::HasTurn) {
                    return Ok(());
                }
                turns.waiting.retain(|who| !matches!(who, Who::Caller(waiting) if Arc::ptr_eq(waiting, me)));
                self.metrics.write_queue.set(turns.waiting.len() as i64);
                self.metrics.busy.inc();
                return Err(StorageError::Busy);
            }
        }
        Ok(())
    }

    /// Ends a turn: hands it on with the transaction open, or commits for all and gives it back.
    fn end_turn(&self, stays_open: bool) {
        if !(stays_open && self.hand_on()) {
            let told = self.commit(&mut self.writer.lock());
            self.give_back();
            self.tell(told);
        }
    }

    /// Gives the turn to whoever waits longest; `false` keeps it, since nobody waits.
    fn hand_on(&self) -> bool {
        let mut turns = self.turns.lock();
        let next = match turns.waiting.front() {
            None => return false,
            Some(Who::Errand(_)) => {
                drop(turns);
                self.runner.give_turn();
                return true;
            }
            Some(Who::Caller(caller)) => Arc::clone(caller),
        };
        turns.waiting.pop_front();
        self.metrics.write_queue.set(turns.waiting.len() as i64);
        // Within the lock: whoever gives up waiting looks here whether it was too late for that.
        *next.stands.lock() = Stands::HasTurn;
        drop(turns);
        next.changed.notify_one();
        true
    }

    fn give_back(&self) {
        while !self.hand_on() {
            let mut turns = self.turns.lock();
            if turns.waiting.is_empty() {
                turns.taken = false;
                return;
            }
        }
    }

    /// Says how a transaction ended.
    fn tell(&self, news: Vec<News>) {
        for (who, ended) in news {
            match (who, ended) {
                (Who::Caller(caller), ended) => caller.stand(Stands::Told(ended)),
                (Who::Errand(sent), Ok(())) => sent.ended(Ok(())),
                (Who::Errand(sent), Err(Failed::All(error))) => sent.ended(Err(again(&error))),
                (Who::Errand(sent), Err(Failed::OneOfThem)) => self.send_again(sent),
            }
        }
    }

    /// Runs the job of whoever has the turn, in the transaction that is open or in a new one.
    fn take_part(&self, writer: &mut Writer, mut alone: bool, work: Work<'_>) -> Part {
        loop {
            if alone {
                self.tell(self.commit(writer));
            }
            let members = match self.begin(writer) {
                Ok(members) => members,
                Err(error) => return Part::of(Ended::Alone(Err(error))),
            };
            let job = Job { conn: &writer.conn, has_company: members > 0, is_long: Cell::new(false) };
            let ran = within_savepoint(&job, work);
            if job.is_long.get() && !ran.is_undone {
                alone = true;
                continue;
            }
            return self.conclude(writer, alone, ran);
        }
    }

    /// Begins a transaction, or says how many jobs have a part in the one that is open.
    fn begin(&self, writer: &mut Writer) -> StorageResult<usize> {
        if let Some(open) = &writer.open {
            return Ok(open.members.len());
        }
        // A transaction that begins as a reader can fail at its first write, whatever the busy timeout.
        execute(&writer.conn, "BEGIN IMMEDIATE")?;
        writer.open = Some(Open { began: Instant::now(), members: Vec::new() });
        if let Err(error) = self.known.begun(&writer.conn) {
            self.abandon(writer);
            return Err(error.into());
        }
        Ok(0)
    }

    /// Says what became of a job, and ends the transaction if the job leaves none.
    fn conclude(&self, writer: &mut Writer, alone: bool, ran: Ran) -> Part {
        let members = writer.open.as_ref().map_or(0, |open| open.members.len());
        let is_kept = matches!(ran.ended, Ok(Ok(Done::Keep | Done::Move(_))));
        if ran.is_undone || (members == 0 && !is_kept) {
            let ended = match ran.ended {
                Err(panic) => Ended::Panicked(panic),
                Ok(Err(error)) => Ended::Alone(Err(error)),
                // It may be its own failure that it took for an outcome, or rest on jobs that are undone.
                Ok(Ok(_)) if members > 0 => Ended::Again,
                Ok(Ok(_)) if is_kept => {
                    Ended::Alone(Err(StorageError::Engine("SQLite undid the work".into())))
                }
                Ok(Ok(_)) => Ended::Alone(Ok(())),
            };
            return Part { ended, stays_open: false, told: self.abandon(writer) };
        }
        let ended = match ran.ended {
            Err(panic) => Ended::Panicked(panic),
            Ok(Err(error)) => Ended::Alone(Err(error)),
            // What it was told, and may tell its client, rests on jobs that are not durable yet.
            Ok(Ok(done)) => Ended::Awaits(if let Done::Move(moved) = done { Some(moved) } else { None }),
        };
        let takes_more =
            |open: &Open| open.members.len() + 1 < JOBS_MAX && open.began.elapsed() < self.open_max;
        let stays_open = !alone && writer.open.as_ref().is_some_and(takes_more);
        Part { ended, stays_open, told: Vec::new() }
    }

    /// Commits what is open, and says what to tell whom.
    fn commit(&self, writer: &mut Writer) -> Vec<News> {
        let Some(Open { members, .. }) = writer.open.take() else { return Vec::new() };
        let moved: Vec<Moved> = members.iter().filter_map(|member| member.moved).collect();
        self.known.ending();
        self.known.committing(moved.iter().map(|(owner, ..)| *owner));
        let ended = execute(&writer.conn, "COMMIT");
        if ended.is_err() {
            roll_back(&writer.conn);
        }
        self.known.committed(if ended.is_ok() { &moved } else { &[] });
        let ended = match ended {
            Ok(()) => {
                self.metrics.committed(members.len());
                Ok(())
            }
            Err(error) if members.len() > 1 && is_broken_reference(&error) => Err(Failed::OneOfThem),
            Err(error) => Err(Failed::All(Arc::new(error.into()))),
        };
        members.into_iter().map(|member| (member.who, ended.clone())).collect()
    }

    /// Ends the transaction without keeping anything of it.
    fn abandon(&self, writer: &mut Writer) -> Vec<News> {
        let Some(Open { members, .. }) = writer.open.take() else { return Vec::new() };
        self.known.ending();
        roll_back(&writer.conn);
        members.into_iter().map(|member| (member.who, Err(Failed::OneOfThem))).collect()
    }
}

/// What the turn of one caller led to.
struct Part {
    ended: Ended,
    /// Whether the next job may join the transaction.
    stays_open: bool,
    told: Vec<News>,
}

impl Part {
    fn of(ended: Ended) -> Self {
        Self { ended, stays_open: false, told: Vec::new() }
    }
}

enum Ended {
    /// Whatever becomes of the transaction.
    Alone(StorageResult<()>),
    Panicked(Box<dyn std::any::Any + Send>),
    /// Not yet: it is to run once more, alone.
    Again,
    /// As the transaction does, which is to hear of this.
    Awaits(Option<Moved>),
}

/// Somebody, and what became of the transaction that it had a part in.
type News = (Who, Result<(), Failed>);

impl Writer {
    fn join(&mut self, who: Who, moved: Option<Moved>) {
        if let Some(open) = &mut self.open {
            open.members.push(Member { who, moved });
        }
    }
}

impl Caller {
    fn stand(&self, stands: Stands) {
        *self.stands.lock() = stands;
        self.changed.notify_one();
    }

    fn told(&self) -> Result<(), Failed> {
        let mut stands = self.stands.lock();
        loop {
            if let Stands::Told(ended) = &*stands {
                return ended.clone();
            }
            self.changed.wait(&mut stands);
        }
    }
}

/// How a job ended, and whether SQLite undid the whole transaction meanwhile.
struct Ran {
    ended: std::thread::Result<StorageResult<Done>>,
    is_undone: bool,
}

/// Runs a job so that nothing of it stays if it fails. The first job of a transaction needs no savepoint for that.
fn within_savepoint(job: &Job<'_>, work: Work<'_>) -> Ran {
    if job.has_company
        && let Err(error) = execute(job.conn, "SAVEPOINT rollcall_job")
    {
        return Ran { ended: Ok(Err(error.into())), is_undone: job.conn.is_autocommit() };
    }
    let ended = catch_unwind(AssertUnwindSafe(|| work(job)));
    let is_kept = matches!(ended, Ok(Ok(Done::Keep | Done::Move(_))));
    // A full disk, a failed read or write, want of memory: SQLite undoes everything, and savepoints with it.
    let settled = || {
        if !is_kept {
            execute(job.conn, "ROLLBACK TO rollcall_job")?;
        }
        execute(job.conn, "RELEASE rollcall_job")
    };
    let is_undone = job.conn.is_autocommit() || (job.has_company && settled().is_err());
    Ran { ended, is_undone }
}

fn execute(conn: &Connection, sql: &str) -> rusqlite::Result<()> {
    conn.prepare_cached(sql)?.execute([]).map(|_| ())
}

fn roll_back(conn: &Connection) {
    // Where it fails there is nothing left to roll back.
    if !conn.is_autocommit()
        && let Err(error) = execute(conn, "ROLLBACK")
    {
        tracing::error!(%error, "a transaction could not be rolled back");
    }
}

/// Whether a COMMIT failed since a row refers to one that is not there.
fn is_broken_reference(error: &rusqlite::Error) -> bool {
    error.sqlite_error().is_some_and(|error| error.extended_code == ffi::SQLITE_CONSTRAINT_FOREIGNKEY)
}

/// The same error for one more caller.
fn again(error: &Arc<StorageError>) -> StorageError {
    match &**error {
        StorageError::Busy => StorageError::Busy,
        StorageError::OutcomeUnknown => StorageError::OutcomeUnknown,
        StorageError::QueueFull => StorageError::QueueFull,
        StorageError::Full(why) => StorageError::Full(why.clone()),
        StorageError::Engine(_) => StorageError::Engine(Box::new(Arc::clone(error))),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use std::path::Path;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::thread::{ScopedJoinHandle, scope};

    use super::*;

    struct Ground {
        group: Group,
        beside: Mutex<Connection>,
        path: std::path::PathBuf,
        _dir: tempfile::TempDir,
    }

    fn open(path: &Path) -> Connection {
        let conn = Connection::open(path).unwrap();
        conn.pragma_update(None, "journal_mode", "WAL").unwrap();
        conn.pragma_update(None, "foreign_keys", true).unwrap();
        conn
    }

    impl Ground {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("app.db");
            let conn = open(&path);
            conn.execute_batch(
                "CREATE TABLE done (n INTEGER PRIMARY KEY, bytes BLOB,
                    before INTEGER REFERENCES done (n) DEFERRABLE INITIALLY DEFERRED)",
            )
            .unwrap();
            // Tests hold a transaction open for as long as it takes until others wait.
            let open_max = Duration::from_secs(60);
            let group = Group { open_max, ..Group::new(conn, Duration::from_secs(20)) };
            Self { group, beside: Mutex::new(open(&path)), path, _dir: dir }
        }

        /// What others see.
        fn done(&self) -> Vec<i64> {
            let beside = self.beside.lock();
            let mut statement = beside.prepare_cached("SELECT n FROM done ORDER BY n").unwrap();
            let done = statement.query_map([], |row| row.get(0)).unwrap();
            done.collect::<Result<_, _>>().unwrap()
        }

        fn insert(&self, n: i64) -> StorageResult<()> {
            self.group.run(&mut |job| insert(job, n))
        }

        fn commits(&self) -> u64 {
            self.group.metrics.commits.get()
        }

        fn waits_for(&self, callers: usize) {
            let until = Instant::now() + Duration::from_secs(20);
            while self.group.turns.lock().waiting.len() != callers {
                assert!(Instant::now() < until, "nobody came to wait");
                std::thread::yield_now();
            }
        }
    }

    fn insert(job: &Job<'_>, n: i64) -> StorageResult<Done> {
        job.conn.execute("INSERT INTO done (n) VALUES (?1)", [n])?;
        Ok(Done::Keep)
    }

    /// A job that holds the writer until it is let go: whoever comes meanwhile shares its transaction.
    fn hold<'s, 'e>(
        scope: &'s std::thread::Scope<'s, 'e>,
        ground: &'e Group,
        n: i64,
    ) -> (ScopedJoinHandle<'s, StorageResult<()>>, Sender<()>) {
        let (let_go, held): (_, Receiver<()>) = channel();
        let (tell, has_turn) = channel();
        let first = scope.spawn(move || {
            ground.run(&mut |job| {
                let _ = tell.send(());
                let _ = held.recv();
                insert(job, n)
            })
        });
        has_turn.recv().unwrap();
        (first, let_go)
    }

    type Boxed = Box<dyn FnMut(&Job<'_>) -> StorageResult<Done> + Send>;

    /// A job that tells how it ended.
    struct Told {
        job: Boxed,
        tell: Sender<StorageResult<()>>,
    }

    impl Errand for Told {
        fn run(&mut self, job: &Job<'_>) -> StorageResult<Done> {
            (self.job)(job)
        }

        fn ended(self: Box<Self>, how: StorageResult<()>) {
            let _ = self.tell.send(how);
        }
    }

    fn send(group: &Group, job: Boxed) -> Receiver<StorageResult<()>> {
        let (tell, told) = channel();
        group.send(Box::new(Told { job, tell }));
        told
    }

    /// Sends the thread that runs errands home, even where a test fails.
    struct Dismiss<'g>(&'g Group);

    impl Drop for Dismiss<'_> {
        fn drop(&mut self) {
            self.0.dismiss_runner();
        }
    }

    /// Which of the jobs are errands, by their place.
    const EITHER_WAY: [fn(usize) -> bool; 3] = [|_| false, |_| true, |place| place % 2 == 1];

    /// Runs the jobs in one transaction, after one that inserts 0; tells how that one and each of them ended.
    fn together(
        ground: &Ground,
        is_errand: fn(usize) -> bool,
        jobs: Vec<Boxed>,
    ) -> Vec<std::thread::Result<StorageResult<()>>> {
        together_from(ground, 0, is_errand, jobs)
    }

    fn together_from(
        ground: &Ground,
        first: i64,
        is_errand: fn(usize) -> bool,
        jobs: Vec<Boxed>,
    ) -> Vec<std::thread::Result<StorageResult<()>>> {
        enum End<'s> {
            Thread(ScopedJoinHandle<'s, StorageResult<()>>),
            Errand(Receiver<StorageResult<()>>),
        }
        let group = &ground.group;
        scope(|scope| {
            scope.spawn(|| group.keep_running_errands());
            let _dismiss = Dismiss(group);
            let (first, let_go) = hold(scope, group, first);
            let mut ends = vec![End::Thread(first)];
            for (place, mut job) in jobs.into_iter().enumerate() {
                ends.push(match is_errand(place) {
                    true => End::Errand(send(group, job)),
                    false => End::Thread(scope.spawn(move || group.run(&mut *job))),
                });
                ground.waits_for(place + 1);
            }
            drop(let_go); // a job may run again
            let ends = ends.into_iter().map(|end| match end {
                End::Thread(thread) => thread.join(),
                End::Errand(told) => Ok(told.recv().unwrap()),
            });
            ends.collect()
        })
    }

    #[test]
    fn jobs_that_wait_share_one_commit_and_nobody_sees_them_before() {
        for is_errand in EITHER_WAY {
            let ground = Ground::new();
            let beside = open(&ground.path);
            let mut jobs: Vec<Boxed> = Vec::new();
            for n in 1..=5 {
                jobs.push(Box::new(move |job| insert(job, n)));
            }
            jobs.push(Box::new(move |job| {
                let seen: i64 = beside.query_row("SELECT count(*) FROM done", [], |row| row.get(0))?;
                let within: i64 = job.conn.query_row("SELECT count(*) FROM done", [], |row| row.get(0))?;
                assert_eq!((seen, within), (0, 6), "in the order of asking, and not yet kept");
                insert(job, 6)
            }));
            assert!(together(&ground, is_errand, jobs).into_iter().all(|ended| ended.unwrap().is_ok()));
            assert_eq!(ground.done(), [0, 1, 2, 3, 4, 5, 6]);
            assert_eq!(ground.commits(), 1);
            ground.insert(7).unwrap();
            assert_eq!(ground.commits(), 2);
        }
    }

    #[test]
    fn a_job_that_fails_panics_or_is_undone_hurts_no_other() {
        for is_errand in EITHER_WAY {
            let ground = Ground::new();
            let half = |job: &Job<'_>, n| insert(job, n).map(|_| ());
            let ends = together(
                &ground,
                is_errand,
                vec![
                    Box::new(|job| insert(job, 1)),
                    Box::new(move |job| half(job, 2).and(Err(StorageError::Full("for the test".into())))),
                    Box::new(|job| insert(job, 3)),
                    Box::new(move |job| {
                        half(job, 4)?;
                        panic!("for the test")
                    }),
                    Box::new(move |job| half(job, 5).map(|()| Done::Undo)),
                    Box::new(|job| insert(job, 1)),
                    Box::new(|job| insert(job, 7)),
                ],
            );
            let told: Vec<_> = ends
                .iter()
                .map(|end| match end {
                    Ok(Ok(())) => "well",
                    Ok(Err(StorageError::Full(_))) => "full",
                    Ok(Err(_)) => "badly",
                    Err(_) => "panicked",
                })
                .collect();
            let panicked = if is_errand(3) { "badly" } else { "panicked" };
            assert_eq!(told, ["well", "well", "full", "well", panicked, "well", "badly", "well"]);
            assert_eq!(ground.done(), [0, 1, 3, 7]);
            assert_eq!(ground.commits(), 1);
            // The same where each is the first of its transaction.
            assert!(ground.group.run(&mut |job| half(job, 8).and(Err(StorageError::Busy))).is_err());
            ground.group.run(&mut |job| half(job, 8).map(|()| Done::Undo)).unwrap();
            let panicked = catch_unwind(AssertUnwindSafe(|| {
                ground.group.run(&mut |job| {
                    half(job, 8)?;
                    panic!("for the test")
                })
            }));
            assert!(panicked.is_err());
            ground.insert(9).unwrap();
            assert_eq!(ground.done(), [0, 1, 3, 7, 9]);
        }
    }

    #[test]
    fn a_commit_that_fails_fails_for_each() {
        for is_errand in EITHER_WAY {
            let ground = Ground::new();
            ground.group.outside(|conn| conn.commit_hook(Some(|| true)).unwrap()).unwrap();
            let ends = together(
                &ground,
                is_errand,
                vec![Box::new(|job| insert(job, 1)), Box::new(|job| insert(job, 2).map(|_| Done::Undo))],
            );
            assert!(ends.into_iter().all(|end| matches!(end.unwrap(), Err(StorageError::Engine(_)))));
            assert!(ground.insert(3).is_err());
            assert_eq!((ground.done(), ground.commits()), (vec![], 0));
            ground.group.outside(|conn| conn.commit_hook(None::<fn() -> bool>).unwrap()).unwrap();
            ground.insert(4).unwrap();
            assert_eq!(ground.done(), [4]);
        }
    }

    /// Method: a real one, by a limit on the file's pages; SQLite undoes everything.
    #[test]
    fn a_full_disk_fails_the_job_that_it_has_no_room_for_and_no_other() {
        for is_errand in EITHER_WAY {
            let ground = Ground::new();
            let limit = |pages: i64| {
                let set = |conn: &mut Connection| conn.pragma_update(None, "max_page_count", pages).unwrap();
                ground.group.outside(set).unwrap();
            };
            let pages = ground.beside.lock().query_row("PRAGMA page_count", [], |row| row.get::<_, i64>(0));
            limit(1 + pages.unwrap());
            let too_much = |job: &Job<'_>| {
                job.conn.execute("INSERT INTO done (n, bytes) VALUES (9, zeroblob(1000000))", [])?;
                Ok(Done::Keep)
            };
            // The second time the job takes its failure for an outcome of its own, as `Storage::write` makes it do.
            let hidden = Arc::new(Mutex::new(Vec::new()));
            let noted = Arc::clone(&hidden);
            let hides = move |job: &Job<'_>| {
                noted.lock().push(too_much(job).err());
                Ok(Done::Undo)
            };
            let jobs: [Boxed; 2] = [Box::new(too_much), Box::new(hides)];
            for (round, job) in jobs.into_iter().enumerate() {
                let first = 3 * round as i64 + 1;
                let ends = together_from(
                    &ground,
                    first,
                    is_errand,
                    vec![
                        Box::new(move |job| insert(job, first + 1)),
                        job,
                        Box::new(move |job| insert(job, first + 2)),
                    ],
                );
                let told: Vec<_> = ends.into_iter().map(|end| end.unwrap()).collect();
                assert!(told[0].is_ok() && told[1].is_ok() && told[3].is_ok(), "{told:?}");
                assert_eq!(matches!(&told[2], Err(StorageError::Full(_))), round == 0, "{told:?}");
            }
            let hidden = std::mem::take(&mut *hidden.lock());
            assert!(hidden.len() == 2 && matches!(hidden[1], Some(StorageError::Full(_))), "{hidden:?}");
            assert_eq!(ground.done(), [1, 2, 3, 4, 5, 6]);
            // Work that is to be kept although it failed is not.
            assert!(ground.group.run(&mut |job| too_much(job).or(Ok(Done::Keep))).is_err());
            let ends =
                together(&ground, is_errand, vec![Box::new(move |job| too_much(job).or(Ok(Done::Keep)))]);
            let told: Vec<_> = ends.into_iter().map(|end| end.unwrap().is_ok()).collect();
            assert_eq!(told, [true, false]);
            limit(1_000_000);
            ground.insert(7).unwrap();
            assert_eq!(ground.done(), [0, 1, 2, 3, 4, 5, 6, 7]);
        }
    }

    /// SQLite finds it at COMMIT, when it no longer knows whose it was.
    #[test]
    fn a_reference_to_nothing_fails_the_job_that_made_it() {
        for is_errand in EITHER_WAY {
            let ground = Ground::new();
            let dangling = |job: &Job<'_>| {
                job.conn.execute("INSERT INTO done (n, before) VALUES (2, 99)", [])?;
                Ok(Done::Keep)
            };
            let ends = together(
                &ground,
                is_errand,
                vec![Box::new(|job| insert(job, 1)), Box::new(dangling), Box::new(|job| insert(job, 3))],
            );
            let told: Vec<_> = ends.into_iter().map(|end| end.unwrap().is_ok()).collect();
            assert_eq!(told, [true, true, false, true]);
            assert_eq!(ground.done(), [0, 1, 3]);
        }
    }

    #[test]
    fn a_job_that_takes_long_lets_those_before_it_go_first() {
        let ground = Ground::new();
        let (began, has_begun) = channel();
        let (let_go, held) = channel::<()>();
        let group = &ground.group;
        scope(|scope| {
            let (first, release) = hold(scope, group, 0);
            let long = scope.spawn(move || {
                group.run(&mut |job| {
                    insert(job, 1)?;
                    job.takes_long()?;
                    began.send(()).unwrap();
                    held.recv().unwrap();
                    Ok(Done::Keep)
                })
            });
            ground.waits_for(1);
            release.send(()).unwrap();
            has_begun.recv().unwrap();
            first.join().unwrap().unwrap();
            assert_eq!(ground.done(), [0], "answered while the long one is at work");
            let last = scope.spawn(|| ground.insert(2));
            ground.waits_for(1);
            let_go.send(()).unwrap();
            long.join().unwrap().unwrap();
            last.join().unwrap().unwrap();
        });
        assert_eq!(ground.done(), [0, 1, 2]);
        assert_eq!(ground.commits(), 3, "nor does anyone wait for what came after");
    }

    #[test]
    fn a_queue_that_is_full_refuses_and_one_that_stands_still_gives_up() {
        let mut ground = Ground::new();
        ground.group.queue_max = 1;
        scope(|scope| {
            let (first, let_go) = hold(scope, &ground.group, 0);
            let second = scope.spawn(|| ground.insert(1));
            ground.waits_for(1);
            assert!(matches!(ground.insert(2), Err(StorageError::QueueFull)));
            let_go.send(()).unwrap();
            first.join().unwrap().unwrap();
            second.join().unwrap().unwrap();
        });
        ground.group.busy_wait = Duration::from_millis(20);
        scope(|scope| {
            let (first, let_go) = hold(scope, &ground.group, 3);
            assert!(matches!(ground.insert(4), Err(StorageError::Busy)));
            let_go.send(()).unwrap();
            first.join().unwrap().unwrap();
        });
        ground.insert(5).unwrap();
        assert_eq!(ground.done(), [0, 1, 3, 5]);
        assert_eq!((ground.group.metrics.busy.get(), ground.group.metrics.write_queue.get()), (2, 0));
    }

    /// Goal: nobody waits for an errand for longer than for a turn. Method: the writer is held meanwhile.
    #[test]
    fn an_errand_is_refused_in_time() {
        let mut ground = Ground::new();
        (ground.group.queue_max, ground.group.busy_wait) = (2, Duration::from_millis(20));
        scope(|scope| {
            scope.spawn(|| ground.group.keep_running_errands());
            let _dismiss = Dismiss(&ground.group);
            let (first, let_go) = hold(scope, &ground.group, 0);
            let sent: Vec<_> =
                (1..=3).map(|n| send(&ground.group, Box::new(move |job| insert(job, n)))).collect();
            assert!(matches!(sent[2].recv().unwrap(), Err(StorageError::QueueFull)));
            for late in &sent[..2] {
                assert!(matches!(late.recv().unwrap(), Err(StorageError::Busy)));
            }
            let_go.send(()).unwrap();
            first.join().unwrap().unwrap();
            let told = send(&ground.group, Box::new(|job| insert(job, 4)));
            assert!(told.recv().unwrap().is_ok());
        });
        assert_eq!(ground.done(), [0, 4]);
        assert_eq!((ground.group.metrics.busy.get(), ground.group.metrics.write_queue.get()), (3, 0));
    }

    /// Goal: what was acknowledged is there, and nothing else, whatever fails beside it. Method: threads whose jobs
    /// end in every way, impatient ones among them, while every seventh COMMIT fails.
    #[test]
    fn whatever_fails_what_was_acknowledged_is_what_is_kept() {
        let mut ground = Ground::new();
        (ground.group.busy_wait, ground.group.open_max) = (Duration::from_millis(3), OPEN_MAX);
        let commits = AtomicUsize::new(0);
        let hook = move || commits.fetch_add(1, Ordering::Relaxed) % 7 == 6;
        ground.group.outside(|conn| conn.commit_hook(Some(hook)).unwrap()).unwrap();
        let mut kept: Vec<i64> = scope(|scope| {
            scope.spawn(|| ground.group.keep_running_errands());
            let _dismiss = Dismiss(&ground.group);
            let threads = (0..8_i64).map(|thread| {
                let ground = &ground.group;
                scope.spawn(move || {
                    let mut kept = Vec::new();
                    for round in 0..150 {
                        let n = thread * 1_000 + round;
                        let has_run = Arc::new(AtomicBool::new(false));
                        let ran = Arc::clone(&has_run);
                        let mut work = move |job: &Job<'_>| {
                            ran.store(true, Ordering::Relaxed);
                            insert(job, n)?;
                            match (n * 7 + round) % 11 {
                                0 => Ok(Done::Undo),
                                1 => Err(StorageError::Busy),
                                2 if round % 4 == 0 => panic!("for the test"),
                                3 => job.takes_long().map(|()| Done::Keep),
                                4 => Ok(job.conn.execute("UPDATE done SET before = -1 WHERE n = ?1", [n])?)
                                    .map(|_| Done::Keep),
                                _ => Ok(Done::Keep),
                            }
                        };
                        let mut ended = Ok(Ok(()));
                        // Impatient: many give up waiting, and come again.
                        while !has_run.load(Ordering::Relaxed) {
                            ended = match thread % 2 {
                                0 => catch_unwind(AssertUnwindSafe(|| ground.run(&mut work))),
                                _ => Ok(send(ground, Box::new(work.clone())).recv().unwrap()),
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
        assert_eq!(ground.done(), kept);
        assert!(!ground.group.turns.lock().taken);
    }
}

//! The one connection that writes, and the queue for it.
//!
//! - Small jobs ([`Writer::enqueue`]) are run by one thread, many in one transaction: they share a COMMIT and its
//!   fsync. A job runs within a savepoint, so that its failure is its own. Nobody gets an answer before the COMMIT.
//! - Long or rare work ([`Writer::run_alone`]) takes the connection for itself, on its caller's thread, in a
//!   transaction of its own.
//!
//! [`Schedule`] decides who is next. It is fair between owners.

mod group;
mod schedule;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rusqlite::Connection;

use super::known::Known;
use super::past::Beside;
use crate::metrics::Metrics;
use crate::model::{Owner, Version};
use crate::storage::{OwnerState, StorageError, StorageResult};
use schedule::{Next, Schedule, Waiter};

/// How old a transaction may be and still take in one more job: as long as a common disk needs for a fsync.
const OPEN_MAX: Duration = Duration::from_millis(4);

/// One small piece of work for the writer thread.
pub(super) trait Job: Send {
    /// Whose it is.
    fn owner(&self) -> Owner;

    /// Does the work. It may be run again from the start.
    fn run(&mut self, conn: &Connection) -> StorageResult<Done>;

    /// Is called once, on any thread, when the work is durable or rolled back. Must be quick: others may wait.
    fn finish(self, result: StorageResult<()>);
}

/// What a job leaves in its transaction.
pub(super) enum Done {
    /// Nothing: it is to be rolled back.
    Rollback,
    /// Something that is no owner's state.
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

/// An owner, its version before and its state after a job.
pub(super) type Moved = (Owner, Version, OwnerState);

/// Work that takes the writer alone. It runs once.
pub(super) type Work<'a> = &'a mut dyn FnMut(&Connection) -> StorageResult<Done>;

struct QueuedJob<J> {
    job: J,
    since: Instant,
}

/// The one connection that writes, and the queue for it.
pub(super) struct Writer<J> {
    /// Belongs to whoever has the turn. Others only look in, and never wait for it.
    conn: Mutex<Connection>,
    schedule: Mutex<Schedule<J>>,
    /// The writer thread waits here.
    thread: Condvar,
    pub known: Known,
    /// What is written down beside the database.
    past: Mutex<Option<Beside>>,
    /// How long anybody waits for the writer.
    busy_wait: Duration,
    open_max: Duration,
    /// How many may wait. One owner's small jobs have half of it at most.
    pub queue_max: usize,
    pub metrics: Arc<Metrics>,
}

/// The turn of a caller that has the writer alone. It ends when this is dropped, also by a panic.
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
            known: Known::new(),
            past: Mutex::new(None),
            busy_wait,
            open_max: OPEN_MAX,
            queue_max: usize::MAX,
            metrics: Arc::default(),
        }
    }

    /// Counts writes beside the database from here on.
    pub fn note_past(&self, past: Beside) {
        *self.past.lock() = Some(past);
    }

    /// Queues a job for the writer thread. Never waits.
    ///
    /// - Errors: the job is finished with [`StorageError::QueueFull`] at once if too many wait, and with
    ///   [`StorageError::Busy`] if it did not begin within `busy_wait`.
    pub fn enqueue(&self, job: J) {
        let mut schedule = self.schedule.lock();
        let (waiting, own) = (schedule.waiting(), schedule.jobs_of(job.owner()));
        if waiting >= self.queue_max || own >= self.queue_max.div_ceil(2) {
            drop(schedule);
            self.metrics.busy.inc();
            return finish(job, Err(StorageError::QueueFull));
        }
        schedule.push_job(QueuedJob { job, since: Instant::now() });
        self.metrics.write_queue.set(schedule.waiting() as i64);
        drop(schedule);
        self.thread.notify_one();
    }

    /// Takes the writer alone for work in a transaction of its own, and returns once that is durable or rolled back.
    ///
    /// - `owner`: whose work it is, so that other owners get their share of the writer.
    /// - Errors: the work's own; [`StorageError::QueueFull`] at once; [`StorageError::Busy`] if the writer did not
    ///   become free within `busy_wait`.
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
                // A full disk, a failed read or write, want of memory: SQLite rolls everything back by itself.
                if conn.is_autocommit() {
                    self.roll_back(conn);
                    return Ok(Err(rolled_back_by_sqlite()));
                }
                Ok(self.commit(conn, done.moved().as_slice(), 1).map_err(StorageError::from))
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

    /// The connection, while nobody else can have it.
    pub fn conn(&mut self) -> &mut Connection {
        self.conn.get_mut()
    }

    /// What is known of an owner without a transaction, and not old.
    pub fn known_state(&self, owner: Owner) -> Option<OwnerState> {
        self.known.get(owner, || {
            // If the writer is at work, its transaction looks itself.
            let Some(conn) = self.conn.try_lock() else { return };
            // The caller must not wait for a process that recovers the log.
            let looked = conn.busy_timeout(Duration::ZERO).and_then(|()| self.known.look(&conn));
            if let Err(error) = looked.and(conn.busy_timeout(self.busy_wait)) {
                tracing::debug!(%error, "could not look whether another process wrote");
            }
        })
    }

    fn take_turn(&self, owner: Option<Owner>) -> StorageResult<Turn<'_, J>> {
        let mut schedule = self.schedule.lock();
        if schedule.waiting() >= self.queue_max {
            self.metrics.busy.inc();
            return Err(StorageError::QueueFull);
        }
        let came = Instant::now();
        let until = came + self.busy_wait;
        let patient_until = came + self.busy_wait / 2;
        let me = Arc::new(Waiter { owner, patient_until, changed: Condvar::new() });
        schedule.push_waiter(Arc::clone(&me), came);
        self.metrics.write_queue.set(schedule.waiting() as i64);
        loop {
            let now = Instant::now();
            let may_go = schedule.caller_may_go(&me, now);
            if may_go || now >= until {
                schedule.remove_waiter(&me);
                schedule.taken |= may_go;
                self.metrics.write_queue.set(schedule.waiting() as i64);
                if may_go {
                    return Ok(Turn { writer: self, owner, began: now });
                }
                self.wake_next(&schedule, now); // the word that the writer is free may have come to this caller
                self.metrics.busy.inc();
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
        execute(conn, "BEGIN IMMEDIATE")?;
        self.known.begun(conn).map_err(|error| {
            self.roll_back(conn);
            error.into()
        })
    }

    fn commit(&self, conn: &Connection, moved: &[Moved], jobs: usize) -> rusqlite::Result<()> {
        self.known.ending();
        self.known.committing(moved.iter().map(|(owner, ..)| *owner));
        let ended = execute(conn, "COMMIT");
        if ended.is_err() {
            roll_back(conn);
        }
        self.known.committed(if ended.is_ok() { moved } else { &[] });
        if let (Ok(()), Some(past)) = (&ended, self.past.lock().as_mut()) {
            let writes =
                |(_, before, after): &Moved| after.version.counter().saturating_sub(before.counter());
            past.count(moved.iter().map(writes).sum());
        }
        ended.inspect(|()| self.metrics.committed(jobs))
    }

    fn roll_back(&self, conn: &Connection) {
        self.known.ending();
        roll_back(conn);
    }
}

impl<J: Job> Drop for Turn<'_, J> {
    fn drop(&mut self) {
        let mut schedule = self.writer.schedule.lock();
        let now = Instant::now();
        schedule.release_alone(self.owner, self.began, now);
        self.writer.wake_next(&schedule, now);
    }
}

/// Tells a job how it ended. Its fault is no reason to keep the answer from others.
fn finish<J: Job>(job: J, result: StorageResult<()>) {
    if catch_unwind(AssertUnwindSafe(|| job.finish(result))).is_err() {
        tracing::error!("a write panicked while it was told its result");
    }
}

/// Work that is to be kept, but is gone.
fn rolled_back_by_sqlite() -> StorageError {
    StorageError::Engine("SQLite rolled the work back".into())
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

#[cfg(test)]
mod tests;

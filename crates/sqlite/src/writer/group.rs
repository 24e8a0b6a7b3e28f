//! Group commit: the writer thread runs small jobs of many owners in one transaction.
//!
//! | what happens to a job | its result | the other jobs in the transaction |
//! | --- | --- | --- |
//! | it fails or panics | its savepoint is rolled back, and it is finished at once | unaffected |
//! | it returns a rollback | its own; it is finished after the COMMIT, since what it read may not be durable
//! | unaffected |
//! | SQLite rolls the whole transaction back during the job (full disk) | its error | each runs again, alone
//! |
//! | the same, and the job succeeded nevertheless | runs again, alone | each runs again, alone |
//! | COMMIT fails on a broken reference | runs again, alone: SQLite does not report which job caused it | the
//! same |
//! | COMMIT fails otherwise | that error | the same |

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use rusqlite::{Connection, ffi};

use super::{Done, Job, Moved, QueuedJob, Writer, execute, finish, rolled_back_by_sqlite};
use crate::failed;
use rollcall_core::storage::{StorageError, StorageResult};

/// Most jobs of one COMMIT. The first ones wait for the last, so there are no more than one fsync is worth.
const JOBS_MAX: usize = 128;

/// An open transaction, and the jobs that wait for its COMMIT.
struct Group<J> {
    began: Instant,
    members: Vec<(J, Option<Moved>)>,
}

/// Why the jobs of a transaction did not become durable.
enum Failed {
    /// One of them caused it, or a job that was finished before. Each must run again, alone.
    Ambiguous,
    /// The cause concerns all of them.
    Together(StorageError),
}

impl<J: Job> Writer<J> {
    /// The loop of the writer thread, until [`Self::stop`].
    pub fn run_jobs(&self) {
        while self.wait_for_jobs() {
            let conn = self.conn.lock();
            while self.run_group(&conn) {}
            drop(conn);
            let mut schedule = self.schedule.lock();
            schedule.release_jobs();
            self.wake_next(&schedule, Instant::now());
        }
    }

    /// Ends the writer thread once the queue is empty.
    pub fn stop(&self) {
        self.schedule.lock().stopped = true;
        self.thread.notify_one();
    }

    /// Waits until jobs are queued and the writer is free; `false` if the thread must end.
    fn wait_for_jobs(&self) -> bool {
        let mut schedule = self.schedule.lock();
        loop {
            let now = Instant::now();
            let late = now.checked_sub(self.busy_wait).map(|since| schedule.take_late(since));
            if let Some(late) = late.filter(|late| !late.is_empty()) {
                self.observer.queued(schedule.waiting());
                drop(schedule);
                late.into_iter().for_each(|late| self.refuse(late));
                schedule = self.schedule.lock();
                continue;
            }
            if schedule.thread_may_go(now) {
                schedule.taken = true;
                return true;
            }
            if schedule.stopped && !schedule.has_jobs() {
                return false;
            }
            match schedule.oldest_job() {
                Some(since) => drop(self.thread.wait_until(&mut schedule, since + self.busy_wait)),
                None => self.thread.wait(&mut schedule),
            }
        }
    }

    /// Runs jobs in one transaction, and commits it; returns whether the thread continues with another.
    fn run_group(&self, conn: &Connection) -> bool {
        let mut group: Option<Group<J>> = None;
        while let Some(job) = self.next_job() {
            // The first job begins the transaction, so an empty queue never opens one.
            if let Err(error) = self.join(conn, &mut group) {
                finish(job, Err(error));
                continue;
            }
            self.run_member(conn, &mut group, job);
            let is_full = group.as_ref().is_none_or(|group| {
                group.members.len() >= JOBS_MAX || group.began.elapsed() >= self.open_max
            });
            if is_full {
                break;
            }
        }
        if let Some(group) = group {
            let began = group.began;
            self.commit_group(conn, group);
            self.observer.held(began.elapsed());
        }
        // Work that needs the writer to itself gets its turn between two groups.
        let schedule = self.schedule.lock();
        schedule.has_jobs() && !schedule.anyone_rested(Instant::now())
    }

    fn next_job(&self) -> Option<J> {
        loop {
            let mut schedule = self.schedule.lock();
            let next = schedule.pop_job()?;
            self.observer.queued(schedule.waiting());
            drop(schedule);
            if next.since.elapsed() <= self.busy_wait {
                return Some(next.job);
            }
            self.refuse(next);
        }
    }

    fn refuse(&self, late: QueuedJob<J>) {
        self.observer.refused();
        finish(late.job, Err(StorageError::Busy));
    }

    /// Begins a transaction if none is open.
    fn join(&self, conn: &Connection, group: &mut Option<Group<J>>) -> StorageResult<()> {
        if group.is_none() {
            self.begin(conn)?;
            *group = Some(Group { began: Instant::now(), members: Vec::new() });
        }
        Ok(())
    }

    /// Runs one job in the open transaction. If SQLite rolls that back, no transaction is open afterwards.
    fn run_member(&self, conn: &Connection, group: &mut Option<Group<J>>, mut job: J) {
        let Some(Group { members, .. }) = group else { return };
        let has_company = !members.is_empty();
        let Ran { ended, is_undone } = run_in_savepoint(conn, has_company, &mut job);
        let is_kept = matches!(&ended, Ok(Ok(done)) if done.is_kept());
        if is_undone || !(has_company || is_kept) {
            // Nothing is left in the transaction, so it ends here.
            self.roll_back(conn);
            let others = group.take().map_or_else(Vec::new, |group| group.members);
            match ended {
                Err(_) => finish(job, Err(panicked())),
                Ok(Err(error)) => finish(job, Err(error)),
                // The job may have swallowed the error that rolled everything back, or read rows that were
                // rolled back with it.
                Ok(Ok(_)) if has_company => self.run_again(conn, job),
                Ok(Ok(_)) if is_kept => {
                    finish(job, Err(rolled_back_by_sqlite()));
                }
                Ok(Ok(_)) => finish(job, Ok(())),
            }
            others.into_iter().for_each(|(other, _)| self.run_again(conn, other));
            return;
        }
        match ended {
            Err(_) => finish(job, Err(panicked())),
            Ok(Err(error)) => finish(job, Err(error)),
            // What the job read, and may return to its client, depends on jobs that are not durable yet.
            Ok(Ok(done)) => members.push((job, done.moved())),
        }
    }

    fn commit_group(&self, conn: &Connection, group: Group<J>) {
        let members = group.members;
        let moved: Vec<Moved> = members.iter().filter_map(|(_, moved)| *moved).collect();
        let failed = match self.commit(conn, &moved, members.len()) {
            Ok(()) => None,
            // SQLite finds a broken reference at COMMIT and does not name the job. Alone, each job succeeds or
            // fails by itself.
            Err(error) if members.len() > 1 && is_broken_reference(&error) => Some(Failed::Ambiguous),
            Err(error) => Some(Failed::Together(failed(error))),
        };
        let shared = match failed {
            Some(Failed::Ambiguous) => {
                return members.into_iter().for_each(|(job, _)| self.run_again(conn, job));
            }
            Some(Failed::Together(error)) => Err(Arc::new(error)),
            None => Ok(()),
        };
        for (job, _) in members {
            finish(job, shared.as_ref().copied().map_err(copy_of));
        }
    }

    /// Runs a job alone in a transaction of its own, so that a failure concerns only this job.
    fn run_again(&self, conn: &Connection, mut job: J) {
        let ended = self.transact(conn, &mut |conn| job.run(conn));
        let result = ended.unwrap_or_else(|_| Err(panicked()));
        finish(job, result);
    }
}

/// A job's result, and whether SQLite rolled the whole transaction back during the job.
struct Ran {
    ended: std::thread::Result<StorageResult<Done>>,
    is_undone: bool,
}

/// Runs a job in a savepoint, so that nothing of it remains if it fails. The first job of a transaction needs
/// no savepoint.
fn run_in_savepoint<J: Job>(conn: &Connection, has_company: bool, job: &mut J) -> Ran {
    if has_company && let Err(error) = execute(conn, "SAVEPOINT rollcall_job") {
        return Ran { ended: Ok(Err(failed(error))), is_undone: conn.is_autocommit() };
    }
    let ended = catch_unwind(AssertUnwindSafe(|| job.run(conn)));
    let is_kept = matches!(&ended, Ok(Ok(done)) if done.is_kept());
    // A full disk, an I/O error, a lack of memory: SQLite rolls the whole transaction back, including
    // savepoints.
    let end_savepoint = || {
        if !is_kept {
            execute(conn, "ROLLBACK TO rollcall_job")?;
        }
        execute(conn, "RELEASE rollcall_job")
    };
    let is_undone = conn.is_autocommit() || (has_company && end_savepoint().is_err());
    Ran { ended, is_undone }
}

/// The error of a job that panicked. The panic itself was logged where it happened.
fn panicked() -> StorageError {
    StorageError::Engine("the work panicked".into())
}

fn is_broken_reference(error: &rusqlite::Error) -> bool {
    error.sqlite_error().is_some_and(|error| error.extended_code == ffi::SQLITE_CONSTRAINT_FOREIGNKEY)
}

/// Copies an error for one more job.
fn copy_of(error: &Arc<StorageError>) -> StorageError {
    match &**error {
        StorageError::Busy => StorageError::Busy,
        StorageError::QueueFull => StorageError::QueueFull,
        StorageError::OutcomeUnknown => StorageError::OutcomeUnknown,
        StorageError::Full(reason) => StorageError::Full(reason.clone()),
        StorageError::Engine(_) => StorageError::Engine(Box::new(Arc::clone(error))),
    }
}

//! Jobs that no thread waits for. One thread runs one after another, while the others have nothing to wake for.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

use super::{Done, Ended, Group, Job, Who};
use crate::storage::{StorageError, StorageResult};

/// A job that no thread waits for.
pub(in crate::storage::sqlite) trait Errand: Send {
    /// Does the job. It may be run again from the start.
    fn run(&mut self, job: &Job<'_>) -> StorageResult<Done>;

    /// Hears, on any thread, how it ended: as [`Group::run`] would have.
    fn ended(self: Box<Self>, how: StorageResult<()>);
}

/// An errand on its way.
pub(super) struct Sent {
    errand: Box<dyn Errand>,
    since: Instant,
    alone: bool,
}

impl Sent {
    pub(super) fn ended(self, how: StorageResult<()>) {
        // Others are still to hear.
        if catch_unwind(AssertUnwindSafe(|| self.errand.ended(how))).is_err() {
            tracing::error!("an errand panicked as it heard how it ended");
        }
    }
}

impl Group {
    /// Has an errand run by [`Self::keep_running_errands`], at once or in its turn. Never waits.
    pub fn send(&self, errand: Box<dyn Errand>) {
        let sent = Sent { errand, since: Instant::now(), alone: false };
        let mut turns = self.turns.lock();
        if !turns.taken {
            turns.taken = true;
            turns.waiting.push_back(Who::Errand(sent));
            drop(turns);
            return self.runner.give_turn();
        }
        if turns.waiting.len() >= self.queue_max {
            drop(turns);
            self.metrics.busy.inc();
            return sent.ended(Err(StorageError::QueueFull));
        }
        let first = !turns.waiting.iter().any(|who| matches!(who, Who::Errand(_)));
        turns.waiting.push_back(Who::Errand(sent));
        self.metrics.write_queue.set(turns.waiting.len() as i64);
        drop(turns);
        if first {
            self.runner.order(|orders| orders.watch = true);
        }
    }

    /// What the thread does that runs errands; returns once it was dismissed.
    pub fn keep_running_errands(&self) {
        let mut until = None;
        loop {
            let orders = self.runner.next(until);
            if orders.run {
                self.run_errands();
            }
            if orders.go {
                return;
            }
            until = self.refuse_late();
        }
    }

    /// To be said once nobody sends errands any more.
    pub fn dismiss_runner(&self) {
        self.runner.order(|orders| orders.go = true);
    }

    /// Runs errands for as long as they come first; whoever calls it has the turn.
    fn run_errands(&self) {
        let mut stays_open = true;
        while let Some(sent) = self.next_errand() {
            if sent.since.elapsed() > self.busy_wait && !sent.alone {
                self.refuse(sent);
                continue;
            }
            stays_open = self.run_errand(sent);
            if !(stays_open && self.anyone_waits()) {
                let told = self.commit(&mut self.writer.lock());
                self.tell(told);
            }
        }
        self.end_turn(stays_open);
    }

    /// Runs an errand; says whether the next job may join the transaction.
    fn run_errand(&self, mut sent: Sent) -> bool {
        let mut writer = self.writer.lock();
        let part = self.take_part(&mut writer, sent.alone, &mut |job| sent.errand.run(job));
        if let Ended::Awaits(moved) = part.ended {
            writer.join(Who::Errand(sent), moved);
            return part.stays_open;
        }
        drop(writer);
        match part.ended {
            Ended::Alone(result) => sent.ended(result),
            // The panic has told its story where it happened.
            Ended::Panicked(_) => sent.ended(Err(StorageError::Engine("the work panicked".into()))),
            Ended::Again | Ended::Awaits(_) => self.send_again(sent),
        }
        self.tell(part.told);
        part.stays_open
    }

    fn anyone_waits(&self) -> bool {
        !self.turns.lock().waiting.is_empty()
    }

    fn next_errand(&self) -> Option<Sent> {
        let mut turns = self.turns.lock();
        let next = turns.waiting.pop_front_if(|who| matches!(who, Who::Errand(_)));
        self.metrics.write_queue.set(turns.waiting.len() as i64);
        next.and_then(|who| if let Who::Errand(sent) = who { Some(sent) } else { None })
    }

    fn refuse(&self, sent: Sent) {
        self.metrics.busy.inc();
        sent.ended(Err(StorageError::Busy));
    }

    /// Refuses the errands that have waited too long; says when the next of them will have.
    fn refuse_late(&self) -> Option<Instant> {
        loop {
            let mut turns = self.turns.lock();
            let oldest =
                turns.waiting.iter().position(|who| matches!(who, Who::Errand(sent) if !sent.alone))?;
            let Who::Errand(sent) = &turns.waiting[oldest] else { return None };
            let until = sent.since + self.busy_wait;
            if Instant::now() < until {
                return Some(until);
            }
            let late = turns.waiting.remove(oldest);
            self.metrics.write_queue.set(turns.waiting.len() as i64);
            drop(turns);
            if let Some(Who::Errand(sent)) = late {
                self.refuse(sent);
            }
        }
    }

    /// Has an errand run again, before others, and alone.
    pub(super) fn send_again(&self, sent: Sent) {
        let sent = Sent { alone: true, ..sent };
        let mut turns = self.turns.lock();
        if turns.taken {
            turns.waiting.push_front(Who::Errand(sent));
            return;
        }
        turns.taken = true;
        drop(turns);
        let stays_open = self.run_errand(sent);
        self.end_turn(stays_open);
    }
}

/// What the thread that runs errands is to do.
#[derive(Default)]
pub(super) struct Runner {
    orders: Mutex<Orders>,
    changed: Condvar,
}

#[derive(Default)]
struct Orders {
    /// It has the turn: run errands.
    run: bool,
    /// Errands wait: see to it that they do not wait too long.
    watch: bool,
    /// There will be no more.
    go: bool,
}

impl Runner {
    pub fn give_turn(&self) {
        self.order(|orders| orders.run = true);
    }

    fn order(&self, give: impl FnOnce(&mut Orders)) {
        give(&mut self.orders.lock());
        self.changed.notify_one();
    }

    /// Waits for orders, or for the end of its time.
    fn next(&self, until: Option<Instant>) -> Orders {
        let mut orders = self.orders.lock();
        while !(orders.run || orders.watch || orders.go) {
            match until {
                None => self.changed.wait(&mut orders),
                Some(until) if self.changed.wait_until(&mut orders, until).timed_out() => break,
                Some(_) => {}
            }
        }
        std::mem::take(&mut orders)
    }
}

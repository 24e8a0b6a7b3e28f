use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

/// Work that waits for the one thread that does it, in the order in which it came.
///
/// - Bounds: at most `jobs_max` wait; one more is refused.
/// - When the outbox is dropped, the job at hand is finished, and those that wait are lost: their users ask again.
pub struct Outbox<J> {
    jobs: SyncSender<J>,
    waiting: Arc<AtomicUsize>,
}

/// As many jobs wait as may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many mails wait to be sent")]
pub struct OutboxFull;

impl<J: Send + 'static> Outbox<J> {
    /// Starts the thread that does the jobs.
    ///
    /// Errors: the system has no thread left.
    pub fn start(jobs_max: usize, mut work: impl FnMut(J) + Send + 'static) -> std::io::Result<Self> {
        let (jobs, taken): (SyncSender<J>, Receiver<J>) = sync_channel(jobs_max.max(1));
        let waiting = Arc::new(AtomicUsize::new(0));
        let left = Arc::downgrade(&waiting);
        std::thread::Builder::new().name("mail".into()).spawn(move || {
            while let Ok(job) = taken.recv() {
                // Gone with the outbox: the server is about to end.
                let Some(waiting) = left.upgrade() else { return };
                work(job);
                waiting.fetch_sub(1, Ordering::SeqCst);
            }
        })?;
        Ok(Self { jobs, waiting })
    }

    /// Puts a job into the queue. Never blocks.
    pub fn put(&self, job: J) -> Result<(), OutboxFull> {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        self.jobs.try_send(job).map_err(|error| {
            self.waiting.fetch_sub(1, Ordering::SeqCst);
            match error {
                TrySendError::Full(_) | TrySendError::Disconnected(_) => OutboxFull,
            }
        })
    }

    /// How many jobs wait or are at work.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::SeqCst)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn jobs_are_done_in_order_and_no_more_wait_than_may() {
        let (go_on, gate) = channel::<()>();
        let (report, done) = channel();
        let outbox = Outbox::start(2, move |job: u32| {
            gate.recv().unwrap();
            report.send(job).unwrap();
        })
        .unwrap();
        outbox.put(1).unwrap();
        // The thread takes the first one in its time; two more fit behind it.
        let mut put = 1;
        while outbox.put(put + 1).is_ok() {
            put += 1;
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        assert!((2..=3).contains(&put), "{put}");
        assert_eq!(outbox.waiting(), usize::try_from(put).unwrap());
        (0..put).for_each(|_| go_on.send(()).unwrap());
        assert_eq!((0..put).map(|_| done.recv().unwrap()).collect::<Vec<_>>(), (1..=put).collect::<Vec<_>>());
    }
}

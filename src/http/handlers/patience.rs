use std::sync::{Arc, Weak};

use tokio::time::{Duration, Instant};

use crate::broken;

/// A client that disconnects sends its request again. Work that takes less than this is finished
/// nevertheless, so that it need not be done twice.
const FINISHED_ANYWAY: Duration = Duration::from_secs(1);

/// How long work on a request continues.
pub(super) struct Patience {
    /// The deadline of the request.
    due: Instant,
    begun: Instant,
}

impl Patience {
    /// Starts now.
    pub fn begin(due: Instant) -> Self {
        Self { due, begun: Instant::now() }
    }

    /// Whether to continue. The work is wanted as long as the client waits. After the client has disconnected
    /// it continues for a moment, unless the deadline is over.
    pub fn lasts(&self, client_gone: bool) -> bool {
        !client_gone || self.lasts_alone(Instant::now()) || broken::is("unwanted_work_kept")
    }

    fn lasts_alone(&self, now: Instant) -> bool {
        now < self.due && now.duration_since(self.begun) < FINISHED_ANYWAY
    }
}

/// Held by a handler while its client waits.
pub(super) struct Waiting(Arc<()>);

/// Shows whether that handler still exists.
pub(super) struct Waited(Weak<()>);

impl Waiting {
    pub fn new() -> Self {
        Self(Arc::new(()))
    }

    pub fn watch(&self) -> Waited {
        Waited(Arc::downgrade(&self.0))
    }
}

impl Waited {
    pub fn is_gone(&self) -> bool {
        self.0.strong_count() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_wanted_while_somebody_waits_and_for_a_moment_longer() {
        let begun = Instant::now();
        let [soon, late] = [FINISHED_ANYWAY / 2, FINISHED_ANYWAY * 2].map(|time| begun + time);
        let patience = Patience { due: begun + FINISHED_ANYWAY * 30, begun };
        assert!(patience.lasts(false));
        assert!(patience.lasts_alone(soon), "it is nearly done, and would come again");
        assert!(!patience.lasts_alone(late));
        let overdue = Patience { due: begun, begun };
        assert!(overdue.lasts(false) && !overdue.lasts(true), "its time was over before its turn came");
    }

    #[test]
    fn a_handler_that_is_dropped_waits_no_more() {
        let waiting = Waiting::new();
        let waited = waiting.watch();
        assert!(!waited.is_gone());
        drop(waiting);
        assert!(waited.is_gone());
    }
}

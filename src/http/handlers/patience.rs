use std::sync::{Arc, Weak};

use tokio::time::{Duration, Instant};

use crate::broken;

/// A client that hangs up sends its request again. Work of less than this is finished all the same: then it need not be
/// done twice.
const FINISHED_ANYWAY: Duration = Duration::from_secs(1);

/// How long a request is worked on.
pub(super) struct Patience {
    /// When the time of the request is over.
    due: Instant,
    begun: Instant,
}

impl Patience {
    /// The work begins now.
    pub fn begin(due: Instant) -> Self {
        Self { due, begun: Instant::now() }
    }

    /// Whether to go on. The work is wanted for as long as somebody waits for the answer; without that, for a moment,
    /// unless the time of the request was over.
    pub fn lasts(&self, client_gone: bool) -> bool {
        !client_gone || self.lasts_alone(Instant::now()) || broken::is("unwanted_work_kept")
    }

    fn lasts_alone(&self, now: Instant) -> bool {
        now < self.due && now.duration_since(self.begun) < FINISHED_ANYWAY
    }
}

/// Held by a handler for as long as somebody waits for it.
pub(super) struct Waiting(Arc<()>);

/// Says whether that handler is still there.
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

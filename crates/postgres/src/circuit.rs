//! Which nodes of a cluster do not answer, so that work that needs them ends at once and holds no connection of others.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Host and port of a node.
pub(super) type Node = (String, i32);

/// How long a node is left alone after its first failure, and at most.
const PAUSE: Duration = Duration::from_millis(250);
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// The nodes that did not answer lately.
#[derive(Default)]
pub(super) struct Circuit {
    away: Mutex<HashMap<Node, Pause>>,
    is_open: AtomicBool,
}

struct Pause {
    until: Instant,
    failures: u32,
}

impl Pause {
    fn length(&self) -> Duration {
        (PAUSE * 2_u32.saturating_pow(self.failures.saturating_sub(1).min(8))).min(PAUSE_MAX)
    }
}

impl Circuit {
    /// Whether some node did not answer lately.
    pub fn is_open(&self) -> bool {
        self.is_open.load(Ordering::Relaxed)
    }

    /// Whether work may use this node. After each pause one piece of work may, to see whether the node answers again.
    pub fn may_try(&self, node: &Node, now: Instant) -> bool {
        match self.away.lock().get_mut(node) {
            Some(pause) if now < pause.until => false,
            Some(pause) => {
                pause.until = now + pause.length();
                true
            }
            None => true,
        }
    }

    /// Notes that a node did not answer; returns whether that is new.
    pub fn failed(&self, node: Node, now: Instant) -> bool {
        let mut away = self.away.lock();
        let pause = away.entry(node).or_insert(Pause { until: now, failures: 0 });
        pause.failures = pause.failures.saturating_add(1);
        pause.until = now + pause.length();
        self.is_open.store(true, Ordering::Relaxed);
        pause.failures == 1
    }

    /// Notes that a node answered.
    pub fn answered(&self, node: &Node) {
        let mut away = self.away.lock();
        away.remove(node);
        self.is_open.store(!away.is_empty(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_is_away_is_tried_by_one_at_a_time_and_ever_more_rarely() {
        let circuit = Circuit::default();
        let (gone, well) = (("a".to_owned(), 1), ("b".to_owned(), 1));
        let begun = Instant::now();
        assert!(!circuit.is_open() && circuit.may_try(&gone, begun));
        assert!(circuit.failed(gone.clone(), begun) && circuit.is_open());
        assert!(!circuit.may_try(&gone, begun) && circuit.may_try(&well, begun));
        let mut tries = 0;
        for ms in 0..60_000 {
            let now = begun + Duration::from_millis(ms);
            if circuit.may_try(&gone, now) {
                assert!(!circuit.may_try(&gone, now), "a second one meanwhile");
                assert!(!circuit.failed(gone.clone(), now), "nothing new");
                tries += 1;
            }
        }
        assert!((28..40).contains(&tries), "{tries} tries in a minute");
        let later = begun + Duration::from_secs(100);
        assert!(circuit.may_try(&gone, later));
        circuit.answered(&gone);
        assert!(!circuit.is_open() && circuit.may_try(&gone, later) && circuit.may_try(&gone, later));
    }
}

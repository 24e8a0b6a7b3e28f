//! The last hour in steps of ten seconds, for a chart, in constant memory.

use std::time::Duration;

use parking_lot::Mutex;
use std::time::Instant;

/// How long a step is, s.
pub const STEP_S: u64 = 10;

/// How many steps are stored: an hour of them, and the current one.
const STEPS: usize = 361;

/// The counted verdicts, in the order of the report.
pub const VERDICTS: [&str; 9] =
    ["added", "updated", "merged", "deleted", "same", "kept", "gone", "absent", "rejected"];

/// Number of latency buckets: the first bound is 0.1 ms, and each is 1.3 times the one before, up to some 40
/// s.
const LATENCIES: usize = 50;
const SHORTEST_MS: f64 = 0.1;
const FACTOR: f64 = 1.3;

/// The counts of one step.
#[derive(Clone, Debug)]
struct Step {
    /// The number of the step since the start; a slot of the ring is reused after an hour.
    number: u64,
    syncs: u64,
    refused: u64,
    verdicts: [u64; VERDICTS.len()],
    latencies: [u32; LATENCIES],
}

impl Step {
    const fn new(number: u64) -> Self {
        Self { number, syncs: 0, refused: 0, verdicts: [0; VERDICTS.len()], latencies: [0; LATENCIES] }
    }

    /// The latency, ms, that `share` of the syncs did not exceed; `None` without syncs.
    fn percentile(&self, share: f64) -> Option<f64> {
        let all: u32 = self.latencies.iter().sum();
        let wanted = (f64::from(all) * share).ceil().max(1.0);
        let mut below = 0;
        for (index, count) in self.latencies.iter().enumerate() {
            below += count;
            if f64::from(below) >= wanted {
                return Some(SHORTEST_MS * FACTOR.powi(i32::try_from(index).unwrap_or(i32::MAX)));
            }
        }
        None
    }
}

/// The report of the last hour: one entry for each step, the oldest first, the current one last.
#[derive(Clone, Debug, PartialEq)]
pub struct LastHour {
    /// How long ago the first step began.
    pub began: Duration,
    /// Syncs with a response.
    pub syncs: Vec<u64>,
    /// The median latency, ms; `None` without syncs. Exact to 30 %.
    pub p50_ms: Vec<Option<f64>>,
    /// The latency, ms, that 99 of 100 syncs did not exceed.
    pub p99_ms: Vec<Option<f64>>,
    /// Rows by verdict.
    pub verdicts: Vec<(&'static str, Vec<u64>)>,
    /// Requests that were refused or failed.
    pub refused: Vec<u64>,
}

/// Records the last hour.
#[derive(Debug)]
pub struct Series {
    began: Instant,
    steps: Mutex<Vec<Step>>,
}

impl Default for Series {
    fn default() -> Self {
        Self { began: Instant::now(), steps: Mutex::default() }
    }
}

impl Series {
    /// Counts a sync with its duration.
    pub(super) fn synced(&self, took: Duration) {
        self.note(self.began.elapsed(), |step| {
            step.syncs += 1;
            step.latencies[place_of(took)] += 1;
        });
    }

    /// Counts a request that was refused or failed.
    pub(super) fn refused(&self) {
        self.note(self.began.elapsed(), |step| step.refused += 1);
    }

    /// Counts rows with this verdict.
    pub(super) fn settled(&self, verdict: &str, rows: u64) {
        if let Some(index) = VERDICTS.iter().position(|known| *known == verdict) {
            self.note(self.began.elapsed(), |step| step.verdicts[index] += rows);
        }
    }

    /// The last hour, or the time since the server's start.
    pub fn report(&self) -> LastHour {
        self.report_at(self.began.elapsed())
    }

    fn note(&self, at: Duration, change: impl FnOnce(&mut Step)) {
        let number = at.as_secs() / STEP_S;
        let slot = number as usize % STEPS;
        let mut steps = self.steps.lock();
        if steps.len() <= slot {
            // Slots are added in order, so the ring grows with the server's running time.
            steps.resize(slot + 1, Step::new(u64::MAX));
        }
        if steps[slot].number != number {
            steps[slot] = Step::new(number);
        }
        change(&mut steps[slot]);
    }

    fn report_at(&self, at: Duration) -> LastHour {
        let last = at.as_secs() / STEP_S;
        let first = last.saturating_sub(STEPS as u64 - 1);
        let steps = self.steps.lock();
        let steps: Vec<Step> = (first..=last)
            .map(|number| {
                let kept = steps.get(number as usize % STEPS).filter(|step| step.number == number);
                kept.cloned().unwrap_or(Step::new(number))
            })
            .collect();
        let verdicts = VERDICTS.iter().enumerate();
        LastHour {
            began: at - Duration::from_secs(first * STEP_S),
            syncs: steps.iter().map(|step| step.syncs).collect(),
            p50_ms: steps.iter().map(|step| step.percentile(0.5)).collect(),
            p99_ms: steps.iter().map(|step| step.percentile(0.99)).collect(),
            verdicts: verdicts
                .map(|(index, name)| (*name, steps.iter().map(|step| step.verdicts[index]).collect()))
                .collect(),
            refused: steps.iter().map(|step| step.refused).collect(),
        }
    }
}

/// The index of the first bound that is not less.
fn place_of(took: Duration) -> usize {
    let ms = took.as_secs_f64() * 1_000.0;
    let index = ((ms / SHORTEST_MS).ln() / FACTOR.ln()).ceil().max(0.0);
    (index as usize).min(LATENCIES - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn an_hour_is_kept_and_no_more() {
        let series = Series::default();
        assert_eq!(series.report_at(s(3)).syncs, [0]);
        series.note(s(5), |step| step.syncs = 1);
        series.note(s(25), |step| step.syncs = 3);
        let report = series.report_at(s(31));
        assert_eq!((report.began, report.syncs), (s(31), vec![1, 0, 3, 0]));
        for step in 0..1_000 {
            series.note(s(step * STEP_S), |at| at.refused = step);
        }
        assert_eq!(series.steps.lock().len(), STEPS);
        let report = series.report_at(s(9_995));
        assert_eq!(report.began, s(3_605));
        assert_eq!(
            (report.refused.len(), report.refused.first(), report.refused.last()),
            (361, Some(&639), Some(&999))
        );
        // A pause of more than an hour leaves nothing of the time before.
        assert!(series.report_at(s(20_000)).refused.iter().all(|refused| *refused == 0));
    }

    #[test]
    fn percentiles_are_near_the_truth() {
        let series = Series::default();
        for ms in 1..=1_000 {
            series.synced(Duration::from_millis(ms));
        }
        series.settled("kept", 4);
        series.settled("no verdict", 4);
        let report = series.report();
        let (p50, p99) = (report.p50_ms[0].unwrap_or(0.0), report.p99_ms[0].unwrap_or(0.0));
        assert!((500.0..650.0).contains(&p50) && (990.0..1_300.0).contains(&p99), "{p50} {p99}");
        assert_eq!(report.verdicts[5], ("kept", vec![4]));
        assert_eq!(Step::new(0).percentile(0.5), None);
        for extreme in [Duration::ZERO, Duration::MAX] {
            assert!(place_of(extreme) < LATENCIES);
        }
    }
}

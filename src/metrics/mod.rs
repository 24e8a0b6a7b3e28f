//! The metrics of a running server, for Prometheus and other clients of `GET /metrics`.
//!
//! No label contains an owner, a user or a device: a label has as many values as the contract has routes,
//! statuses and verdicts, and the schema has tables.

pub mod series;

use std::time::Duration;

use parking_lot::Mutex;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use crate::storage::EngineObserver;
use series::Series;

/// The content type of [`Metrics::written`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The route whose responses count as syncs in the series: every mode of syncing ends there.
const SYNC: &str = "/synchronise";

/// All metrics. Recording costs at most a lookup in a small map.
///
/// Each server has one, shared by everything that records. The fields are for recording.
#[derive(Debug)]
#[allow(missing_docs)] // the help of each family, in `Metrics::new`, describes it
pub struct Metrics {
    pub commits: Counter,
    pub commit_jobs: Histogram,
    pub write_queue: Gauge,
    pub write_turn: Histogram,
    pub busy: Counter,
    pub wal_bytes: Gauge,
    pub feed_rows: Counter,
    pub feed_entries: Counter,
    pub connections: Gauge,
    pub connections_refused: Counter,
    pub event_streams: Gauge,
    pub memory_bytes: Gauge,
    pub memory_bytes_max: Gauge,
    pub memory_refused: Counter,
    requests: Family<Request, Counter>,
    request_seconds: Family<Route, Histogram, fn() -> Histogram>,
    lock_seconds: Family<Outcome, Histogram, fn() -> Histogram>,
    verdicts: Family<Verdict, Counter>,
    conflicts: Family<Conflict, Counter>,
    cache: Family<Cache, Counter>,
    mails: Family<Mailed, Counter>,
    /// The metrics of the last hour.
    pub series: Series,
    registry: Registry,
    probes: Mutex<Vec<Probe>>,
}

/// Sets a gauge that is not counted as things happen: see [`Metrics::at_scrape`].
struct Probe(Box<dyn Fn(&Metrics) + Send>);

impl std::fmt::Debug for Probe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Probe")
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Request {
    method: &'static str,
    route: &'static str,
    status: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Route {
    method: &'static str,
    route: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Verdict {
    verdict: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Conflict {
    table: String,
    policy: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Mailed {
    kind: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Cache {
    cache: &'static str,
    outcome: &'static str,
}

/// From 0.5 ms, a cached response, to 16 s, half of what a request may take by default.
fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.000_5, 2.0, 16))
}

/// From 1 to 512: more jobs than a commit ever has.
fn jobs() -> Histogram {
    Histogram::new(exponential_buckets(1.0, 2.0, 10))
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Creates all metrics with zero values.
    pub fn new() -> Self {
        let mut all = Self {
            commits: Counter::default(),
            commit_jobs: jobs(),
            write_queue: Gauge::default(),
            write_turn: seconds(),
            busy: Counter::default(),
            wal_bytes: Gauge::default(),
            feed_rows: Counter::default(),
            feed_entries: Counter::default(),
            connections: Gauge::default(),
            connections_refused: Counter::default(),
            event_streams: Gauge::default(),
            memory_bytes: Gauge::default(),
            memory_bytes_max: Gauge::default(),
            memory_refused: Counter::default(),
            requests: Family::default(),
            request_seconds: Family::new_with_constructor(seconds),
            lock_seconds: Family::new_with_constructor(seconds),
            verdicts: Family::default(),
            conflicts: Family::default(),
            cache: Family::default(),
            mails: Family::default(),
            series: Series::default(),
            registry: Registry::with_prefix("rollcall"),
            probes: Mutex::default(),
        };
        // The help is for operators; the encoder adds `_total` to counters and a full stop.
        let r = &mut all.registry;
        let build = Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]);
        r.register("build", "The release that runs", build);
        r.register("requests", "Requests answered, by method, route and status", all.requests.clone());
        let help = "Time from a request's header to the end of its answer, by method and route";
        r.register_with_unit("request", help, Unit::Seconds, all.request_seconds.clone());
        let help = "Time that requests waited for the sync lock, by outcome: taken, busy or lost";
        r.register_with_unit("lock_wait", help, Unit::Seconds, all.lock_seconds.clone());
        r.register("write_queue", "Jobs that wait for the database's writer", all.write_queue.clone());
        let help = "Time that the database's writer was held, by a large write or by small ones together";
        r.register_with_unit("write_turn", help, Unit::Seconds, all.write_turn.clone());
        r.register("commits", "Transactions made durable", all.commits.clone());
        r.register("commit_jobs", "Jobs of one commit", all.commit_jobs.clone());
        r.register("busy", "Jobs refused since the writer had too many or took too long", all.busy.clone());
        r.register("verdicts", "Rows settled, by verdict", all.verdicts.clone());
        r.register("conflicts", "Conflicts noted, by table and policy", all.conflicts.clone());
        r.register("feed_rows", "Rows returned by the change feed", all.feed_rows.clone());
        let help = "Entries of the ledger that the change feed looked at, returned or not";
        r.register("feed_entries", help, all.feed_entries.clone());
        let help = "Size of the write-ahead log";
        r.register_with_unit("wal", help, Unit::Bytes, all.wal_bytes.clone());
        let help = "Questions that memory could answer or could not, by cache and outcome: hit or miss";
        r.register("cache_lookups", help, all.cache.clone());
        let help = "Mails by kind and outcome: sent, failed, or unknown_account, for which none is sent";
        r.register("mails", help, all.mails.clone());
        r.register("connections", "Connections that are open", all.connections.clone());
        let help = "Connections closed since their address had as many as it may";
        r.register("connections_refused", help, all.connections_refused.clone());
        r.register("event_streams", "Event streams that are open", all.event_streams.clone());
        let help = "Memory that requests hold: bodies, rows and answers";
        r.register_with_unit("request_memory", help, Unit::Bytes, all.memory_bytes.clone());
        let help = "Memory that requests may hold together";
        r.register_with_unit("request_memory_max", help, Unit::Bytes, all.memory_bytes_max.clone());
        let help = "Times that a request was refused memory";
        r.register("request_memory_refused", help, all.memory_refused.clone());
        all
    }

    /// Counts a response, or a disconnected client (status 0); `took` is `None` if the duration means
    /// nothing.
    pub fn answered(&self, method: &'static str, route: &'static str, status: u16, took: Option<Duration>) {
        self.requests.get_or_create(&Request { method, route, status }).inc();
        if let Some(took) = took {
            self.request_seconds.get_or_create(&Route { method, route }).observe(took.as_secs_f64());
            if status == 200 && route == SYNC {
                self.series.synced(took);
            }
        }
        if status >= 400 {
            self.series.refused();
        }
    }

    /// Counts a wait for the sync lock and its outcome.
    pub fn lock_waited(&self, outcome: &'static str, waited: Duration) {
        self.lock_seconds.get_or_create(&Outcome { outcome }).observe(waited.as_secs_f64());
    }

    /// Counts rows with this verdict.
    pub fn settled(&self, verdict: &'static str, rows: u64) {
        self.verdicts.get_or_create(&Verdict { verdict }).inc_by(rows);
        self.series.settled(verdict, rows);
    }

    /// Counts rows that the change feed returned, and entries of the ledger that it read.
    pub fn fed(&self, rows: u64, entries: u64) {
        self.feed_rows.inc_by(rows);
        self.feed_entries.inc_by(entries);
    }

    /// Counts a recorded conflict.
    pub fn conflicted(&self, table: &str, policy: &'static str) {
        self.conflicts.get_or_create(&Conflict { table: table.to_owned(), policy }).inc();
    }

    /// Counts a hit or a miss of a cache.
    pub fn looked_up(&self, cache: &'static str, hit: bool) {
        let outcome = if hit { "hit" } else { "miss" };
        self.cache.get_or_create(&Cache { cache, outcome }).inc();
    }

    /// A mail was sent, or was not.
    pub fn mailed(&self, kind: &'static str, outcome: &'static str) {
        self.mails.get_or_create(&Mailed { kind, outcome }).inc();
    }

    /// Calls `look` to set a gauge whenever the metrics are read. It must be fast.
    pub fn at_scrape(&self, look: impl Fn(&Self) + Send + 'static) {
        self.probes.lock().push(Probe(Box::new(look)));
    }

    /// Sets the gauges that are not counted as things happen.
    pub fn look(&self) {
        for probe in self.probes.lock().iter() {
            (probe.0)(self);
        }
    }

    /// All metrics as OpenMetrics text.
    pub fn written(&self) -> String {
        self.look();
        let mut text = String::new();
        // Writing to a `String` cannot fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

impl EngineObserver for Metrics {
    fn committed(&self, jobs: usize) {
        self.commits.inc();
        self.commit_jobs.observe(jobs as f64);
    }

    fn queued(&self, jobs: usize) {
        self.write_queue.set(i64::try_from(jobs).unwrap_or(i64::MAX));
    }

    fn held(&self, held: Duration) {
        self.write_turn.observe(held.as_secs_f64());
    }

    fn refused(&self) {
        self.busy.inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a scraper can read the text. Method: one metric of each kind, found by its line.
    #[test]
    fn what_is_counted_is_written() {
        let metrics = Metrics::new();
        metrics.answered("GET", "/fetch", 200, Some(Duration::from_millis(3)));
        metrics.committed(4);
        metrics.settled("added", 7);
        metrics.conflicted("gäste \"x\"", "newest");
        metrics.looked_up("token", true);
        metrics.at_scrape(|metrics| {
            metrics.wal_bytes.set(42);
        });
        let text = metrics.written();
        for line in [
            "rollcall_requests_total{method=\"GET\",route=\"/fetch\",status=\"200\"} 1",
            "rollcall_request_seconds_count{method=\"GET\",route=\"/fetch\"} 1",
            "rollcall_request_seconds_bucket{le=\"0.004\",method=\"GET\",route=\"/fetch\"} 1",
            "rollcall_commits_total 1",
            "rollcall_commit_jobs_sum 4.0",
            "rollcall_verdicts_total{verdict=\"added\"} 7",
            "rollcall_conflicts_total{table=\"gäste \\\"x\\\"\",policy=\"newest\"} 1",
            "rollcall_cache_lookups_total{cache=\"token\",outcome=\"hit\"} 1",
            "rollcall_wal_bytes 42",
            "# EOF",
        ] {
            assert!(text.lines().any(|have| have == line), "{line} is not in\n{text}");
        }
    }
}

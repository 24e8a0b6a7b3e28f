//! What was measured, as a table for people and as JSON.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

/// One measurement of the server, and of its yardstick right after it.
#[derive(Clone, Debug, Default)]
pub struct Sample {
    /// The latency of each request (of each whole manifest, feed or start), s.
    pub latencies: Vec<f64>,
    /// From the first request to the last response, s.
    pub seconds: f64,
    pub requests: u64,
    pub rows: u64,
    pub bytes_up: u64,
    pub bytes_down: u64,
    pub server_cpu_s: f64,
    pub driver_cpu_s: f64,
    pub rss_start: u64,
    pub rss_peak: u64,
    /// Commits for each request, if the server reports them.
    pub commits: Option<f64>,
    /// The yardstick's speed in the line's unit, and the server's in the same.
    pub yardstick: f64,
    pub speed: f64,
    pub yardstick_rss_peak: u64,
    pub yardstick_cpu_s: f64,
    /// Figures that only one scenario has.
    pub extra: BTreeMap<&'static str, f64>,
}

/// One kind of measurement, over all runs.
#[derive(Clone, Debug, Serialize)]
pub struct Line {
    pub scenario: char,
    pub variant: String,
    pub runs: usize,
    pub median_ms: f64,
    pub p99_ms: f64,
    /// What `per_second` counts.
    pub unit: &'static str,
    pub per_second: f64,
    pub requests_per_run: u64,
    pub bytes_up_per_request: u64,
    pub bytes_down_per_request: u64,
    pub server_cpu_ms_per_request: f64,
    pub driver_cpu_ms_per_request: f64,
    pub rss_start_mib: f64,
    pub rss_peak_mib: f64,
    /// Left out where the server does not count its commits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub commits_per_request: Option<f64>,
    /// The yardstick.
    pub beside: &'static str,
    pub yardstick_per_second: f64,
    pub yardstick_rss_peak_mib: f64,
    pub yardstick_cpu_s: f64,
    /// The server's speed over the yardstick's, and the least and the most of all runs.
    pub ratio: f64,
    pub ratio_min: f64,
    pub ratio_max: f64,
    #[serde(flatten)]
    pub extra: BTreeMap<&'static str, f64>,
}

/// All that a benchmark found.
#[derive(Debug, Serialize)]
pub struct Report {
    pub version: &'static str,
    pub rows: u64,
    pub cores: usize,
    pub sync_us: f64,
    pub scenarios: Vec<Line>,
}

/// The middle of some figures.
pub fn median(figures: &[f64]) -> f64 {
    quantile(figures, 0.5)
}

/// The figure that this share of all is not above.
pub fn quantile(figures: &[f64], share: f64) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let place = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(place.saturating_sub(1)).copied().unwrap_or(0.0)
}

const MIB: f64 = 1_048_576.0;

impl Line {
    pub fn of(
        scenario: char,
        variant: String,
        unit: &'static str,
        beside: &'static str,
        samples: &[Sample],
    ) -> Self {
        let middle = |of: &dyn Fn(&Sample) -> f64| median(&samples.iter().map(of).collect::<Vec<_>>());
        let each = |part: f64, sample: &Sample| part / sample.requests.max(1) as f64;
        let ratios: Vec<f64> = samples.iter().map(|sample| sample.speed / sample.yardstick).collect();
        let commits: Vec<f64> = samples.iter().filter_map(|sample| sample.commits).collect();
        let mut extra = BTreeMap::new();
        for name in samples.iter().flat_map(|sample| sample.extra.keys()) {
            extra.insert(*name, middle(&|sample| sample.extra.get(name).copied().unwrap_or(0.0)));
        }
        Self {
            scenario,
            variant,
            runs: samples.len(),
            median_ms: middle(&|sample| median(&sample.latencies) * 1e3),
            p99_ms: middle(&|sample| quantile(&sample.latencies, 0.99) * 1e3),
            unit,
            per_second: middle(&|sample| sample.speed),
            requests_per_run: middle(&|sample| sample.requests as f64) as u64,
            bytes_up_per_request: middle(&|sample| each(sample.bytes_up as f64, sample)) as u64,
            bytes_down_per_request: middle(&|sample| each(sample.bytes_down as f64, sample)) as u64,
            server_cpu_ms_per_request: middle(&|sample| each(sample.server_cpu_s * 1e3, sample)),
            driver_cpu_ms_per_request: middle(&|sample| each(sample.driver_cpu_s * 1e3, sample)),
            rss_start_mib: middle(&|sample| sample.rss_start as f64 / MIB),
            rss_peak_mib: middle(&|sample| sample.rss_peak as f64 / MIB),
            commits_per_request: (!commits.is_empty()).then(|| median(&commits)),
            beside,
            yardstick_per_second: middle(&|sample| sample.yardstick),
            yardstick_rss_peak_mib: middle(&|sample| sample.yardstick_rss_peak as f64 / MIB),
            yardstick_cpu_s: middle(&|sample| sample.yardstick_cpu_s),
            ratio: median(&ratios),
            ratio_min: ratios.iter().copied().fold(f64::INFINITY, f64::min),
            ratio_max: ratios.iter().copied().fold(0.0, f64::max),
            extra,
        }
    }
}

/// A number with three significant digits.
fn short(figure: f64) -> String {
    match figure {
        figure if figure >= 100.0 => format!("{figure:.0}"),
        figure if figure >= 10.0 => format!("{figure:.1}"),
        figure if figure >= 1.0 => format!("{figure:.2}"),
        figure => format!("{figure:.3}"),
    }
}

const HEADS: [&str; 11] = [
    "scenario",
    "median ms",
    "p99 ms",
    "a second",
    "unit",
    "KB down",
    "cpu ms",
    "driver",
    "RSS MiB",
    "ratio",
    "least-most",
];

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "rollcall {}, {} cores, {} rows in the large database, {:.0} µs until a write is on the disk",
            self.version, self.cores, self.rows, self.sync_us
        )?;
        let mut table: Vec<Vec<String>> = vec![HEADS.iter().map(ToString::to_string).collect()];
        for line in &self.scenarios {
            table.push(vec![
                format!("{} {}", line.scenario, line.variant),
                short(line.median_ms),
                short(line.p99_ms),
                short(line.per_second),
                line.unit.to_owned(),
                short(line.bytes_down_per_request as f64 / 1e3),
                short(line.server_cpu_ms_per_request),
                short(line.driver_cpu_ms_per_request),
                short(line.rss_peak_mib),
                short(line.ratio),
                format!("{}-{}", short(line.ratio_min), short(line.ratio_max)),
            ]);
        }
        let width = |column: usize| table.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..HEADS.len()).map(width).collect();
        for row in &table {
            for (column, cell) in row.iter().enumerate() {
                let width = widths[column];
                let gap = if column == 0 { "" } else { "  " };
                if column == 0 || column == 4 {
                    write!(f, "{gap}{cell:<width$}")?;
                } else {
                    write!(f, "{gap}{cell:>width$}")?;
                }
            }
            writeln!(f)?;
        }
        writeln!(f, "\nBeside what (cpu and driver: of server and driver, a request):")?;
        for line in &self.scenarios {
            let reached = short(line.yardstick_per_second);
            write!(f, "  {} {}: {}, {reached} {}", line.scenario, line.variant, line.beside, line.unit)?;
            for (name, figure) in &line.extra {
                write!(f, "; {} {}", name.replace('_', " "), short(*figure))?;
            }
            if let Some(commits) = line.commits_per_request {
                write!(f, "; commits a request {}", short(commits))?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

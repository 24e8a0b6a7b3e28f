//! The scenarios. Each produces a line for each of its variants.

mod answers;
mod fairness;
mod reads;
mod replicas;
mod writes;

use clap::ValueEnum;

use super::child::{Listening, Yield};
use super::driver::{self, Connection, Talk};
use super::lab::Lab;
use super::report::{Line, Report, Sample};
use super::{Result, dataset::Person};

/// One thing that a server for syncing does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Scenario {
    /// Bulk upload.
    A,
    /// The whole manifest.
    B,
    /// Nothing new.
    C,
    /// A few changes.
    D,
    /// Small syncs of many.
    E,
    /// First sync.
    F,
    /// Cold start.
    G,
    /// Small syncs over PostgreSQL.
    H,
    /// Small syncs beside a neighbour who uploads.
    I,
}

/// What needs nothing but this machine.
const ALL: [Scenario; 8] =
    [Scenario::A, Scenario::B, Scenario::C, Scenario::D, Scenario::E, Scenario::F, Scenario::G, Scenario::I];

/// Runs the selected scenarios.
pub async fn run(mut lab: Lab) -> Result<Report> {
    let mut asked = lab.options.scenario.clone();
    if asked.is_empty() {
        asked = ALL.to_vec();
        asked.extend(lab.options.postgres.as_ref().map(|_| Scenario::H));
    }
    asked.sort_unstable();
    asked.dedup();
    let steps: u64 = asked.iter().map(|scenario| scenario.variants()).sum::<u64>() * u64::from(lab.runs());
    lab.progress = super::progress::Progress::new(steps);
    let mut report = Report {
        version: env!("CARGO_PKG_VERSION"),
        rows: lab.sizes.rows,
        cores: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        sync_us: lab.sync_s()? * 1e6,
        scenarios: Vec::new(),
    };
    for scenario in asked {
        let lines = match scenario {
            Scenario::A => writes::uploads(&mut lab).await?,
            Scenario::B => reads::roll_calls(&mut lab).await?,
            Scenario::C => answers::unchanged(&mut lab).await?,
            Scenario::D => reads::deltas(&mut lab).await?,
            Scenario::E => writes::small_syncs(&mut lab).await?,
            Scenario::F => reads::first_sync(&mut lab).await?,
            Scenario::G => answers::cold_starts(&mut lab).await?,
            Scenario::H => replicas::small_syncs(&mut lab).await?,
            Scenario::I => fairness::beside_a_neighbour(&mut lab).await?,
        };
        report.scenarios.extend(lines);
    }
    Ok(report)
}

impl Scenario {
    /// How many lines it makes.
    fn variants(self) -> u64 {
        match self {
            Self::A | Self::D => 4,
            Self::B => 3,
            Self::C | Self::H => 2,
            Self::E | Self::F | Self::G | Self::I => 1,
        }
    }
}

impl Sample {
    /// Takes over what the connections did.
    fn heard(&mut self, talk: &Talk) {
        self.latencies = talk.latencies.iter().map(std::time::Duration::as_secs_f64).collect();
        self.requests = talk.latencies.len() as u64;
        self.bytes_up = talk.bytes_up;
        self.bytes_down = talk.bytes_down;
    }

    /// Takes over what the yardstick cost.
    fn beside(&mut self, result: &Yield) {
        self.yardstick_rss_peak = result.usage.rss_peak;
        self.yardstick_cpu_s = result.usage.cpu_s;
    }
}

fn line(letter: char, variant: &str, unit: &'static str, beside: &'static str, samples: &[Sample]) -> Line {
    Line::of(letter, variant.to_owned(), unit, beside, samples)
}

/// A yardstick must produce the bytes that the server sends, except those around the rows.
fn same_bytes(server: u64, yardstick: u64) -> Result<()> {
    if server.abs_diff(yardstick) > 1_000 + server / 50 {
        return Err(format!("{server} bytes from the server, {yardstick} from the yardstick").into());
    }
    Ok(())
}

/// An owner's version now.
async fn version(server: &Listening, person: Person) -> Result<u64> {
    let mut connection = Connection::open(server.address).await?;
    let result = connection.good(&driver::get("/digests", &person.token(0), &[]), 200, true).await?;
    let result: serde_json::Value = serde_json::from_slice(&result.body)?;
    result["as_of"].as_u64().ok_or_else(|| "no version".into())
}

/// Commits so far, where the server counts them.
async fn commits(server: &Listening) -> Result<Option<f64>> {
    const NAME: &str = "rollcall_commits_total ";
    let mut connection = Connection::open(server.address).await?;
    let result = connection.call(&driver::get("/metrics", "", &[]), true).await?;
    let text = String::from_utf8_lossy(&result.body);
    Ok(text.lines().find_map(|line| line.strip_prefix(NAME)?.trim().parse().ok()))
}

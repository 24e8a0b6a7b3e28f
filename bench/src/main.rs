//! `rollcall-bench`: the speed of the real server, compared with a yardstick in the same run.
//!
//! - `scenarios`: what is measured, a to i. `yardstick`: what it is compared with, and what that leaves out.
//! - `dataset`, `seed`: the people, the rows, and databases that contain them.
//! - `child`: the processes, and the system's figures of them. `driver`: the HTTP client.
//! - `lab`: the resources of a run. `report`, `progress`: the output.
//!
//! Server and yardstick are measured in turn, run by run, so that other load on the machine affects both;
//! where the disk matters, the yardstick runs before and after. A ratio is the server's speed over the
//! yardstick's: 1 is as fast, 0.5 takes twice the time.

mod child;
mod dataset;
mod driver;
mod lab;
mod progress;
mod report;
mod scenarios;
mod seed;
mod yardstick;

use std::ffi::OsString;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use lab::Lab;
use rollcall::cli::{Interrupted, StopSignals};
use rollcall_postgres::Address;
use scenarios::Scenario;
use yardstick::Yardstick;

/// Errors cross threads here, and are for people.
type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// The result of a command. Its error is for people, and is printed unchanged.
type Done = std::result::Result<(), Box<dyn std::error::Error>>;

#[derive(Debug, Parser)]
#[command(name = "rollcall-bench", version, args_conflicts_with_subcommands = true)]
struct CommandLine {
    #[command(subcommand)]
    part: Option<Part>,
    #[command(flatten)]
    bench: Bench,
}

/// What the benchmark starts of itself, beside the server.
#[derive(Debug, Subcommand)]
enum Part {
    #[command(hide = true)]
    Yardstick(Yardstick),
}

/// Measure the server on this machine
///
/// Start a server with a temporary database, drive it over HTTP, and compare what it reaches with
/// bare loops over SQLite and with fixed bytes behind the same accept loop. A ratio of 1 is as fast as that
/// yardstick. The large database takes a minute or two to load; --cache keeps it.
#[derive(Clone, Debug, clap::Args)]
struct Bench {
    /// Measure only these: a upload, b roll call, c nothing new, d a few changes, e small syncs, f first sync,
    /// g cold start, h small syncs over PostgreSQL, i small syncs beside a neighbour who uploads
    #[arg(long, value_name = "LETTERS", value_delimiter = ',')]
    scenario: Vec<Scenario>,

    /// Use this PostgreSQL database for h; it must be made for the benchmark, and what is written stays in it
    #[arg(long, value_name = "postgres://USER@HOST/DATABASE")]
    postgres: Option<Address>,

    /// Put N rows into the large database; the measured owners have a half, a 20th, a 200th and a 2,000th
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(20_000..))]
    rows: Option<u64>,

    /// Measure each kind N times, and report the medians
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    runs: Option<u32>,

    /// Use small sizes and one run, to see that it works
    #[arg(long)]
    quick: bool,

    /// Write all figures as JSON to a file, or with `-` to standard output in place of the table
    #[arg(long, value_name = "FILE|-")]
    json: Option<PathBuf>,

    /// Keep the large database in this folder from one run to the next, and all other files while a run lasts
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,

    /// Measure this executable of the server; without it, the one that this program was built with
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,

    /// Let the server and the fixed bytes log at this level; both log into a file
    #[arg(long, value_name = "FILTER", default_value = "info")]
    log: String,
}

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    if args.get(1).is_some_and(|first| first == child::AS_SERVER) {
        return rollcall::cli::run(&args[1..]);
    }
    let line = CommandLine::parse();
    let done = match line.part {
        Some(Part::Yardstick(yardstick)) => yardstick.run(),
        None => line.bench.run(),
    };
    rollcall::cli::exit_code(done)
}

impl Bench {
    fn run(self) -> Done {
        // The driver has one thread, so that it takes no more than one core from the server.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let measured = runtime.block_on(async {
            // Dropping what was created ends its processes and deletes its files.
            let mut signals = StopSignals::listen()?;
            tokio::select! {
                measured = scenarios::run(Lab::new(self.clone())?) => measured,
                () = signals.next() => Err(Interrupted("what ran is gone".into()).into()),
            }
        });
        let report = match measured {
            Ok(report) => report,
            Err(error) => {
                return Err(match error.downcast::<Interrupted>() {
                    Ok(interrupted) => interrupted,
                    Err(error) => error.to_string().into(),
                });
            }
        };
        let json = serde_json::to_string_pretty(&report)?;
        match &self.json {
            Some(path) if path.as_os_str() == "-" => writeln!(std::io::stdout(), "{json}")?,
            Some(path) => {
                std::fs::write(path, json + "\n")
                    .map_err(|error| format!("cannot write {}: {error}", path.display()))?;
                write!(std::io::stdout(), "{report}")?;
            }
            None => write!(std::io::stdout(), "{report}")?,
        }
        Ok(())
    }
}

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;

use super::Done;
use super::database::{Database, patient_terms};
use super::interrupt::{Interrupt, Interrupted};
use super::progress::Progress;
use super::serve::read_schema;
use crate::clock::Clock;
use crate::copy::{self, CopyError, Step};
use crate::storage::postgres::{PostgresWhole, Terms};
use crate::storage::sqlite::SqliteWhole;
use crate::storage::whole::Deployment;

/// How long either database may be busy.
const BUSY_WAIT: Duration = Duration::from_secs(30);

/// Reading or writing all rows of one owner may take long.
const PATIENCE: Duration = Duration::from_secs(3_600);

/// Copy a deployment from its SQLite file into an empty PostgreSQL database
///
/// Run it once while the server still runs, which takes most of the time, and once more after the server has stopped.
/// The second run copies what changed since, compares both sides to the last column, and only then lets servers begin
/// on the copy. If it is interrupted, run it again: it goes on where it was. It never changes the source. Devices
/// notice no more than a pause.
#[derive(Debug, Args)]
pub(super) struct Copy {
    /// Read your tables from this file, the server's own
    #[arg(long, env = "ROLLCALL_SCHEMA", value_name = "FILE")]
    schema: PathBuf,

    /// Copy this database
    #[arg(long, value_name = "sqlite:PATH")]
    from: Database,

    /// Copy it into this database
    #[arg(long, value_name = "postgres://USER@HOST/DATABASE")]
    to: Database,

    /// Only read both sides, and report where they differ
    #[arg(long)]
    check: bool,
}

impl Copy {
    pub fn run(self) -> Done {
        let interrupt = Interrupt::listen()?;
        let schema = read_schema(&self.schema)?;
        let Database::Postgres(to) = &self.to else {
            return Err(
                "rollcall copy goes from SQLite to PostgreSQL; rollcall backup copies an SQLite file".into(),
            );
        };
        let now = Clock::system().now();
        let path = self.from.existing("use pg_dump and pg_restore")?;
        let (from, deployment) = SqliteWhole::open(path, &schema, BUSY_WAIT, now)?;
        let terms = Terms { statement_max: PATIENCE, idle_max: PATIENCE, ..patient_terms(BUSY_WAIT) };

        let begun = Instant::now();
        let mut progress = Progress::new();
        let mut each = |step| {
            progress.show(|| line(step, &deployment, begun.elapsed()));
            !interrupt.came()
        };
        let copied = if self.check {
            copy::compare(&from, &deployment, &PostgresWhole::look(to, &terms, &deployment)?, &mut each)
        } else {
            let whole = PostgresWhole::begin(to, &terms, &deployment, now)?;
            let copied = copy::copy(&from, &deployment, &whole, &mut each);
            // A server that still runs on the source may write what the copy does not contain.
            if copied.is_ok() && !from.is_served() {
                whole.end()?;
            }
            copied
        };
        progress.end();
        let copied = match copied {
            Ok(copied) => copied,
            Err(CopyError::Interrupted) => return Err(Interrupted("run it again to go on".into()).into()),
            Err(error) => return Err(error.into()),
        };
        println!(
            "{} owners with {} rows are the same on both sides, to the last column{}",
            copied.owners,
            copied.rows,
            match self.check {
                true => String::new(),
                false =>
                    format!("; {} of them were copied now, in {}", copied.carried, seconds(begun.elapsed())),
            }
        );
        match (self.check, from.is_served()) {
            (true, _) => {}
            (false, true) => println!(
                "the server still runs: stop it, and run this command again; until then no server starts on the copy"
            ),
            (false, false) => println!("the copy is complete: servers may start on {to}"),
        }
        Ok(())
    }
}

const WIDTH: usize = 24;

/// The progress as a bar and in numbers.
fn line(step: Step, all: &Deployment, spent: Duration) -> String {
    // An owner without rows has something to copy too.
    let share = (step.rows + step.owners) as f64 / (all.rows + all.owners).max(1) as f64;
    let share = share.min(1.0); // the source may grow meanwhile
    let full = (share * WIDTH as f64) as usize;
    let left = spent.mul_f64(if share > 0.0 { (1.0 - share) / share } else { 0.0 });
    format!(
        "[{}{}] {} of {} rows, {} of {} owners, {:.0} rows/s, {} left",
        "#".repeat(full),
        "-".repeat(WIDTH - full),
        step.rows,
        all.rows,
        step.owners,
        all.owners,
        step.rows as f64 / spent.as_secs_f64().max(0.001),
        seconds(left),
    )
}

fn seconds(time: Duration) -> String {
    match time.as_secs() {
        seconds @ 0..60 => format!("{seconds} s"),
        seconds => format!("{} min {} s", seconds / 60, seconds % 60),
    }
}

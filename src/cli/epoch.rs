use std::time::Duration;

use clap::Args;

use super::Done;
use super::database::{Database, patient_terms};
use super::progress::Progress;
use crate::clock::Clock;
use crate::storage::postgres::Connections;

/// How long one owner's transaction may take.
const BUSY_WAIT: Duration = Duration::from_secs(30);

/// Begin a new epoch, after a PostgreSQL database was put back to an earlier time
///
/// Devices that saw what is now lost get 410 `cursor_expired`, fetch everything, and send what they have. Run it
/// before the servers start; if it is interrupted, run it again. For SQLite `rollcall restore` does this by itself.
#[derive(Debug, Args)]
pub(super) struct Epoch {
    /// Use the database that was put back
    #[arg(long, env = "ROLLCALL_DATABASE", value_name = "URL", hide_env_values = true)]
    database: Database,

    /// Begin an epoch above this one
    ///
    /// Give the epoch that this command printed before, if the database is put back once more on the same day.
    #[arg(long, value_name = "EPOCH")]
    above: Option<u16>,
}

impl Epoch {
    pub fn run(self) -> Done {
        let Database::Postgres(address) = &self.database else {
            return Err("this is for PostgreSQL; rollcall restore puts an SQLite database back".into());
        };
        let mut progress = Progress::new();
        let now = Clock::system().now();
        let terms = patient_terms(BUSY_WAIT);
        let begun = Connections::begin_epoch(address, &terms, self.above, now, &mut |owners| {
            progress.show(|| format!("{owners} owners"));
        });
        progress.end();
        let (epoch, owners) = begun?;
        println!(
            "epoch {epoch} begins for {owners} owners; if the database is put back again, add --above {epoch} then"
        );
        Ok(())
    }
}

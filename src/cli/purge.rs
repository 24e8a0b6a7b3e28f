use std::time::Duration;

use clap::Args;

use super::Done;
use super::database::{Database, no_database, patient_terms};
use super::interrupt::{Interrupt, Interrupted};
use super::progress::Progress;
use crate::clock::Clock;
use crate::config::{Limits, SyncSettings};
use crate::purge;
use crate::storage::sqlite::Connections;
use crate::storage::{Forgetful, postgres};

/// How long one transaction waits for its turn while a server is busy.
const BUSY_WAIT: Duration = Duration::from_secs(30);

/// Remove what is old: deletions that all devices have seen, conflicts, kept responses
///
/// A device that was silent for longer than --device-days counts no more.
///
/// A server does this by itself every ROLLCALL_PURGE_S seconds. The command works beside a running server, in small
/// transactions. If it is interrupted, the next run goes on from there.
#[derive(Debug, Args)]
pub(super) struct Purge {
    /// Use this database
    #[arg(long, env = "ROLLCALL_DATABASE", value_name = "URL", hide_env_values = true)]
    database: Database,

    /// Remember a deletion for N days; a device that was away for longer fetches everything
    #[arg(long, env = "ROLLCALL_TOMBSTONE_DAYS", value_name = "N",
        default_value_t = SyncSettings::default().tombstone_days)]
    tombstone_days: u32,

    /// Let a silent device hold deletions back for N days
    #[arg(long, env = "ROLLCALL_DEVICE_DAYS", value_name = "N",
        default_value_t = SyncSettings::default().device_days)]
    device_days: u32,

    /// List a conflict in `GET /conflicts` for N days
    #[arg(long, env = "ROLLCALL_CONFLICT_DAYS", value_name = "N",
        default_value_t = SyncSettings::default().conflict_days)]
    conflict_days: u32,

    /// Keep a response under its `Idempotency-Key` for N hours
    #[arg(long, env = "ROLLCALL_IDEMPOTENCY_HOURS", value_name = "N",
        default_value_t = SyncSettings::default().idempotency_hours)]
    idempotency_hours: u32,

    /// Keep at most N bytes of the past of one owner; 0 is no bound
    #[arg(long, env = "ROLLCALL_OWNER_PAST_BYTES_MAX", value_name = "N",
        default_value_t = Limits::default().owner_past_bytes_max)]
    owner_past_bytes_max: u64,
}

impl Purge {
    pub fn run(self) -> Done {
        let interrupt = Interrupt::listen()?;
        let forgetful: Box<dyn Forgetful> = match &self.database {
            Database::Sqlite(path) if !path.is_file() => return Err(no_database(path).into()),
            Database::Sqlite(path) => Box::new(Connections::open(path, BUSY_WAIT, 1)?),
            Database::Postgres(address) => {
                Box::new(postgres::Connections::open(address, &patient_terms(BUSY_WAIT))?)
            }
        };
        let settings = SyncSettings {
            tombstone_days: self.tombstone_days,
            device_days: self.device_days,
            conflict_days: self.conflict_days,
            idempotency_hours: self.idempotency_hours,
            ..SyncSettings::default()
        };
        let terms = purge::terms(&settings, self.owner_past_bytes_max, Clock::system().now());
        let mut progress = Progress::new();
        let (mut tombstones, mut records, mut seen, mut last) = (0, 0, 0_u64, None);
        let mut stopped = false;
        purge::run_all(&*forgetful, &terms, &mut |owner, purged| {
            tombstones += purged.tombstones;
            records += purged.records;
            seen += u64::from(last.replace(owner) != Some(owner));
            progress.show(|| format!("{seen} owners, {tombstones} tombstones, {records} records"));
            stopped = interrupt.came();
            !stopped
        })?;
        progress.end();
        let forgotten = format!("{tombstones} tombstones and {records} other records of {seen} owners");
        if stopped {
            return Err(Interrupted(format!("purged {forgotten}; the next purge continues")).into());
        }
        println!("purged {forgotten}");
        Ok(())
    }
}

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use serde_json::Value;
use uuid::Uuid;

use super::Done;
use super::database::{Database, open_beside_server};
use super::interrupt::{Interrupt, Interrupted};
use super::progress::Progress;
use super::serve::read_schema;
use crate::clock::Clock;
use crate::config::Limits;
use crate::import::file::ExportFile;
use crate::import::{self, ImportError, Imported, Others, Recipient, Step};
use crate::model::Owner;
use crate::storage::{AccountStore, StorageResult};

/// How long one batch waits for its turn while a server is busy.
const BUSY_WAIT: Duration = Duration::from_secs(30);

/// Add the rows of an export to a user's owners, or to one owner
///
/// FILE is what `rollcall account export` and `GET /account/export` write. The tables of both servers must fit. The rows
/// keep their keys and times, and pass the same rules and limits as those that a device sends. The rows of the account's
/// first owner go to the user's own owner; each other one becomes an owner of the same name, which the user manages. The
/// command works while a server runs, in small transactions. If it is interrupted, run it again: it goes on, and rows that
/// are there already stay as they are.
#[derive(Debug, Args)]
pub(super) struct Import {
    /// Read this export
    file: PathBuf,

    /// Add the rows for the user with this email address
    #[arg(long, value_name = "EMAIL", required_unless_present = "owner", conflicts_with = "owner")]
    user: Option<String>,

    /// Add the rows of the account's first owner to the owner with this id, and leave out the others
    #[arg(long, value_name = "ID")]
    owner: Option<Uuid>,

    /// Choose which of the other owners to take
    #[arg(long, value_name = "WHICH", value_enum, default_value = "managed")]
    others: Others,

    /// Write rows that are rejected to this file, each with its reason; by default FILE.rejected
    #[arg(long, value_name = "FILE")]
    rejected: Option<PathBuf>,

    /// Count what would be added, and change nothing; references between rows are not checked
    #[arg(long)]
    dry_run: bool,

    /// Read your tables from this file, the server's own
    #[arg(long, env = "ROLLCALL_SCHEMA", value_name = "FILE")]
    schema: PathBuf,

    /// Use this database
    #[arg(long, env = "ROLLCALL_DATABASE", value_name = "URL", hide_env_values = true)]
    database: Database,

    #[command(flatten)]
    limits: LimitArgs,
}

/// The server's limits of rows and owners.
#[derive(Debug, Args)]
struct LimitArgs {
    /// Reject rows of more than N bytes
    #[arg(long, env = "ROLLCALL_ROW_BYTES_MAX", value_name = "N", default_value_t = Limits::default().row_bytes_max)]
    row_bytes_max: usize,

    /// Keep at most N live rows for one owner
    #[arg(long, env = "ROLLCALL_OWNER_ROWS_MAX", value_name = "N", default_value_t = Limits::default().owner_rows_max)]
    owner_rows_max: u64,

    /// Keep at most N bytes of live rows for one owner
    #[arg(long, env = "ROLLCALL_OWNER_BYTES_MAX", value_name = "N",
        default_value_t = Limits::default().owner_bytes_max)]
    owner_bytes_max: u64,

    /// Let a user be a member of at most N owners
    #[arg(long, env = "ROLLCALL_OWNERS_PER_USER_MAX", value_name = "N",
        default_value_t = Limits::default().owners_per_user_max)]
    owners_per_user_max: usize,
}

impl Import {
    pub fn run(self) -> Done {
        let interrupt = Interrupt::listen()?;
        let schema = Arc::new(read_schema(&self.schema)?);
        let in_file = |error: &dyn std::fmt::Display| format!("{}: {error}", self.file.display());
        let file = File::open(&self.file).map_err(|error| in_file(&error))?;
        let mut file = ExportFile::open(file).map_err(|error| in_file(&error))?;
        let storage = open_beside_server(&self.database, &schema, BUSY_WAIT)?;
        let (limits, clock) = (self.limits.limits(), Clock::system());
        let import = import::Import {
            storage: &*storage,
            schema: &schema,
            limits: &limits,
            clock: &clock,
            is_dry_run: self.dry_run,
        };
        for note in import.compare(&file)? {
            eprintln!("the tables differ: {note}");
        }
        let recipient = self.recipient(&*storage.accounts())?;
        let path = self.rejected_path();
        let mut watch = Watching { interrupt, progress: Progress::new(), path: &path, rejected: None };
        let imported = import.run(&mut file, &recipient, self.others, &mut watch);
        watch.progress.end();
        watch.rejected.iter_mut().try_for_each(BufWriter::flush)?;
        let imported = match imported {
            Ok(imported) => imported,
            Err(ImportError::Interrupted) => return Err(Interrupted("run it again to go on".into()).into()),
            Err(error) => return Err(error.into()),
        };
        imported.iter().for_each(|one| println!("{}", line(one, self.dry_run)));
        match imported.iter().map(Imported::rejected).sum::<u64>() {
            0 => Ok(()),
            rejected => {
                Err(format!("{rejected} rows were rejected; {} has them, with reasons", path.display())
                    .into())
            }
        }
    }

    fn recipient(&self, accounts: &dyn AccountStore) -> Result<Recipient, Box<dyn std::error::Error>> {
        match (&self.user, self.owner) {
            (_, Some(owner)) => Ok(Recipient::Owner(Owner(owner))),
            (Some(email), None) => {
                let user: StorageResult<_> = accounts.user(&email.trim().to_lowercase());
                Ok(Recipient::User(user?.ok_or_else(|| format!("there is no user {email}"))?))
            }
            (None, None) => Err("name a user with --user, or an owner with --owner".into()),
        }
    }

    fn rejected_path(&self) -> PathBuf {
        self.rejected.clone().unwrap_or_else(|| {
            let mut name = self.file.clone().into_os_string();
            name.push(".rejected");
            name.into()
        })
    }
}

impl LimitArgs {
    fn limits(&self) -> Limits {
        Limits {
            row_bytes_max: self.row_bytes_max,
            owner_rows_max: self.owner_rows_max,
            owner_bytes_max: self.owner_bytes_max,
            owners_per_user_max: self.owners_per_user_max,
            ..Limits::default()
        }
    }
}

/// Shows the progress, and writes the rejected rows.
struct Watching<'a> {
    interrupt: Interrupt,
    progress: Progress,
    path: &'a std::path::Path,
    /// Made with the first rejected row.
    rejected: Option<BufWriter<File>>,
}

impl import::Watch for Watching<'_> {
    fn step(&mut self, step: Step) -> bool {
        self.progress.show(|| format!("{} of {} rows", step.done, step.all));
        !self.interrupt.came()
    }

    fn rejected(&mut self, row: &Value) -> std::io::Result<()> {
        let file = match &mut self.rejected {
            Some(file) => file,
            None => self.rejected.insert(BufWriter::new(File::create(self.path)?)),
        };
        serde_json::to_writer(&mut *file, row)?;
        file.write_all(b"\n")
    }
}

/// What became of an owner, for people.
fn line(one: &Imported, is_dry_run: bool) -> String {
    let name = if one.name.is_empty() { String::new() } else { format!(" ({})", one.name) };
    let source = one.source;
    match &one.result {
        Err(reason) => format!("owner {source}{name}: left out, since {reason}"),
        Ok((owner, counts)) => {
            let counts: Vec<_> = counts.iter().map(|(verdict, count)| format!("{count} {verdict}")).collect();
            let counts = if counts.is_empty() { "no rows".to_owned() } else { counts.join(", ") };
            let into = if *owner == source { String::new() } else { format!(" into {owner}") };
            let dry = if is_dry_run { "dry run, " } else { "" };
            format!("owner {source}{name}{into}: {dry}{counts}")
        }
    }
}

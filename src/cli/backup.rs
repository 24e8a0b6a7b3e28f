use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;

use super::Done;
use super::database::Database;
use super::interrupt::{Interrupt, Interrupted};
use super::progress::{Progress, megabytes};
use crate::clock::Clock;
use crate::storage::sqlite::{self, CopyError, CopyStep};

/// How long opening a busy database may take.
const BUSY_WAIT: Duration = Duration::from_secs(30);

/// Copy an SQLite database into one file, beside a running server, as of one moment
///
/// FILE appears only once it is complete and on the disk; until then FILE.partial grows. Keep it as safe as
/// the database: it holds the rows, and what passwords and tokens are checked by.
#[derive(Debug, Args)]
pub(super) struct Backup {
    /// Copy this database
    #[arg(long, env = "ROLLCALL_DATABASE", value_name = "sqlite:PATH")]
    database: Database,

    /// Write this file
    #[arg(long, value_name = "FILE")]
    to: PathBuf,

    /// Replace FILE if it is there
    #[arg(long)]
    overwrite: bool,
}

impl Backup {
    pub fn run(self) -> Done {
        let interrupt = Interrupt::listen()?;
        let from = self.database.existing("use pg_dump, or the backups of the service that runs it")?;
        let mut progress = Progress::new();
        let copied =
            sqlite::backup(from, &self.to, self.overwrite, BUSY_WAIT, &mut watch(&mut progress, &interrupt));
        progress.end();
        match copied {
            Ok(bytes) => {
                println!("wrote {}, {}", self.to.display(), megabytes(bytes));
                let owner = |path: &Path| path.metadata().map(|file| file.uid()).ok();
                if owner(from) != owner(&self.to) {
                    println!(
                        "it belongs to the user who made it, since only root could give it to the database's"
                    );
                }
            }
            Err(CopyError::Interrupted) => return Err(Interrupted("no backup was written".into()).into()),
            Err(error @ CopyError::Exists(_)) => {
                return Err(format!("{error}; --overwrite replaces it").into());
            }
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }
}

/// Put a backup in the place of an SQLite database, while no server uses it
///
/// Begin a new epoch, with versions above all that were ever given out. So a device that has seen what is now lost
/// gets 410 `cursor_expired`, fetches everything, and keeps what it has not sent yet. The database that is replaced
/// stays beside the new one.
#[derive(Debug, Args)]
pub(super) struct Restore {
    /// Put this backup back; it is only read
    #[arg(long, value_name = "FILE")]
    from: PathBuf,

    /// Put it here
    #[arg(long, env = "ROLLCALL_DATABASE", value_name = "sqlite:PATH")]
    database: Database,

    /// Replace the database that is there; it is kept as PATH.before-restore-TIME
    #[arg(long)]
    replace: bool,
}

impl Restore {
    pub fn run(self) -> Done {
        let interrupt = Interrupt::listen()?;
        let path = self.database.file("use pg_restore into an empty database, then rollcall epoch")?;
        let mut progress = Progress::new();
        let now = Clock::system().now();
        let restored =
            sqlite::restore(&self.from, path, self.replace, now, &mut watch(&mut progress, &interrupt));
        progress.end();
        let restored = match restored {
            Ok(restored) => restored,
            Err(CopyError::Interrupted) => {
                return Err(Interrupted("the database is as it was".into()).into());
            }
            Err(error @ CopyError::Exists(_)) => {
                return Err(format!("{error}; --replace puts the backup in its place").into());
            }
            Err(error) => return Err(error.into()),
        };
        println!(
            "restored {}, {}, {} owners, in epoch {}",
            path.display(),
            megabytes(restored.bytes),
            restored.owners,
            restored.epoch
        );
        if let Some(kept) = &restored.kept {
            println!("the database that was there is kept as {}", kept.display());
        }
        if !restored.knew_replaced {
            println!("it could not be read: if a backup was restored earlier today, restore again tomorrow");
        }
        println!(
            "users, members and devices are those of the backup: those that were removed after it have access again"
        );
        Ok(())
    }
}

/// Shows the progress of a copy, and stops it on a signal.
fn watch<'a>(progress: &'a mut Progress, interrupt: &'a Interrupt) -> impl FnMut(CopyStep) -> bool + 'a {
    move |step| {
        progress.show(|| match step {
            CopyStep::Copied(done, all) => format!("{} of {} copied", megabytes(done), megabytes(all)),
            CopyStep::Checking => "checking the copy".into(),
        });
        !interrupt.came()
    }
}

//! A copy of a whole database, made while a server runs.

use std::fs::{File, OpenOptions, Permissions, TryLockError};
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, OpenFlags};

use super::connections::prepare;
use super::file::{MODE, as_readable_as, beside, folder_of, give, give_new, has_one_name, resolved};
use super::{OpenError, migrate};
use rollcall_core::model::NoEpochLeft;

/// The progress of a backup or a restore.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyStep {
    /// Bytes copied, and bytes in total.
    Copied(u64, u64),
    /// The copy is being checked for damage.
    Checking,
}

/// Called with the progress; returns whether to continue.
pub type CopySink<'a> = &'a mut dyn FnMut(CopyStep) -> bool;

/// Why a database was not copied. Only an unfinished copy has been changed.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The target exists and was not to be replaced.
    #[error("{} is there already", .0.display())]
    Exists(PathBuf),
    /// The target is the file that is copied.
    #[error("{} is the database itself, or belongs to it", .0.display())]
    Itself(PathBuf),
    /// Another process is making the same copy.
    #[error("another process is writing {}", .0.display())]
    Claimed(PathBuf),
    /// The file is not a database of rollcall.
    #[error("{} is no database of rollcall", .0.display())]
    NotOurs(PathBuf),
    /// The file does not hold what was written.
    #[error("{} is damaged:\n{report}", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// SQLite's report.
        report: String,
    },
    /// A program other than a server uses the database.
    #[error("another program has {} open", .0.display())]
    InUse(PathBuf),
    /// Versions have no room for another epoch.
    #[error(transparent)]
    NoEpochLeft(#[from] NoEpochLeft),
    /// The caller stopped the copy.
    #[error("interrupted")]
    Interrupted,
    /// A database cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// SQLite failed while it copied.
    #[error("the copy failed: {0}")]
    Sqlite(#[from] rusqlite::Error),
}

/// Bytes that are copied between two progress reports.
const STEP_BYTES: i32 = 4 << 20;

/// Copies a snapshot of the database `from` into the file `to`; returns its size in bytes.
///
/// - It works while a server runs, however much it writes. The copy shows the moment at which it began.
/// - `to` appears complete and durable, or not at all. Until then the copy grows in `to` with `.partial`;
///   leftovers of an interrupted run are overwritten.
/// - The copy is one file without a log. Whoever can read the database can read the copy.
pub fn backup(
    from: &Path,
    to: &Path,
    overwrite: bool,
    busy_wait: Duration,
    each: CopySink<'_>,
) -> Result<u64, CopyError> {
    let from = &resolved(from);
    has_one_name(from)?;
    let partial = beside(to, ".partial");
    for suffix in ["", "-wal", "-shm", "-journal", ".lock", ".past"] {
        for written in [to, &partial] {
            if is_same(&beside(from, suffix), written) {
                return Err(CopyError::Itself(written.to_owned()));
            }
        }
    }
    let is_free = || if to.exists() && !overwrite { Err(CopyError::Exists(to.to_owned())) } else { Ok(()) };
    is_free()?;
    let source = open(from, busy_wait)?;
    if migrate::done(&source, from)? == 0 {
        return Err(CopyError::NotOurs(from.to_owned()));
    }
    let partial = match Partial::claim(partial.clone(), Some(from)) {
        // A user who may read the database may keep a copy of it.
        Err(CopyError::Open(OpenError::Foreign { .. })) => Partial::claim(partial, None)?,
        claimed => claimed?,
    };
    drop(copy(&source, &partial.path, each)?);
    is_free()?;
    partial.keep_as(to, Some(from))
}

/// Opens an existing database to read all of it.
pub(super) fn open(path: &Path, busy_wait: Duration) -> Result<Connection, OpenError> {
    let in_file = |error| OpenError::of(path, &error);
    // Not read-only: the first connection to a write-ahead log has to write a file beside it.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(path, flags).map_err(in_file)?;
    prepare(&conn, busy_wait).map_err(in_file)?;
    conn.pragma_update(None, "query_only", true).map_err(in_file)?;
    Ok(conn)
}

/// Copies a snapshot of `source` into the empty file `to`; returns it opened.
pub(super) fn copy(source: &Connection, to: &Path, each: CopySink<'_>) -> Result<Connection, CopyError> {
    // SQLite restarts a backup whenever another process has written between two of its steps, which never
    // ends on a busy server. A transaction on the reading connection keeps it in one snapshot.
    let snapshot = source.unchecked_transaction()?;
    snapshot.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))?;
    let page_bytes: i32 = snapshot.pragma_query_value(None, "page_size", |row| row.get(0))?;

    let mut copy = Connection::open(to)?;
    // Half a copy is useless: it is made durable as a whole, at the end.
    copy.pragma_update(None, "synchronous", "OFF")?;
    let backup = Backup::new(source, &mut copy)?;
    loop {
        match backup.step((STEP_BYTES / page_bytes).max(1))? {
            StepResult::Busy | StepResult::Locked => std::thread::sleep(Duration::from_millis(10)),
            step => {
                let progress = backup.progress();
                let bytes =
                    |pages: i32| pages.max(0).unsigned_abs() as u64 * page_bytes.unsigned_abs() as u64;
                let copied = bytes(progress.pagecount - progress.remaining);
                if !each(CopyStep::Copied(copied, bytes(progress.pagecount))) {
                    return Err(CopyError::Interrupted);
                }
                if step == StepResult::Done {
                    break;
                }
            }
        }
    }
    drop(backup);
    drop(snapshot);
    // The copied header declares a write-ahead log.
    copy.pragma_update(None, "journal_mode", "DELETE")?;
    Ok(copy)
}

/// A file that is being written, locked against other processes. Dropping it deletes the file.
pub(super) struct Partial {
    pub path: PathBuf,
    /// The file, locked.
    file: File,
    kept: bool,
}

impl Partial {
    /// Creates the file, or reuses what an interrupted run left, and gives it the owner of `like`.
    pub fn claim(path: PathBuf, like: Option<&Path>) -> Result<Self, CopyError> {
        let failed = |error| OpenError::Beside { path: path.clone(), error };
        let mut options = OpenOptions::new();
        // The file will hold the hashes of tokens and passwords.
        let options = options.write(true).create(true).truncate(false).mode(0o600);
        let file = options.open(&path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(CopyError::Claimed(path)),
            Err(TryLockError::Error(error)) => return Err(failed(error).into()),
        }
        file.set_len(0).map_err(failed)?;
        let partial = Self { path, file, kept: false };
        let (path, file) = (&partial.path, &partial.file);
        match like {
            Some(like) => give(file, path, like)?,
            None => give_new(file, path).map_err(|error| OpenError::Beside { path: path.clone(), error })?,
        }
        // A file of an older release may be readable by others.
        let failed = |error| OpenError::Beside { path: path.clone(), error };
        file.set_permissions(Permissions::from_mode(MODE)).map_err(failed)?;
        remove(&beside(path, "-journal"))?; // otherwise it would be rolled back into the new copy
        remove(&beside(path, "-wal"))?;
        Ok(partial)
    }

    /// Makes the file durable and as readable as `like`, and renames it; returns its size in bytes.
    pub fn keep_as(mut self, name: &Path, like: Option<&Path>) -> Result<u64, CopyError> {
        let failed = |error| OpenError::Beside { path: self.path.clone(), error };
        if let Some(like) = like {
            as_readable_as(&self.file, like).map_err(failed)?;
        }
        self.file.sync_all().map_err(failed)?;
        let bytes = self.file.metadata().map_err(failed)?.len();
        std::fs::rename(&self.path, name).map_err(failed)?;
        self.kept = true;
        sync_folder_of(name)?;
        Ok(bytes)
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.kept {
            for suffix in ["", "-journal", "-wal", "-shm"] {
                let _ = std::fs::remove_file(beside(&self.path, suffix)); // the next run overwrites it
            }
        }
    }
}

/// A file's name is durable once its folder is synced.
pub(super) fn sync_folder_of(path: &Path) -> Result<(), OpenError> {
    let folder = folder_of(path);
    let synced = File::open(folder).and_then(|folder| folder.sync_all());
    synced.map_err(|error| OpenError::Beside { path: folder.to_owned(), error })
}

/// Whether both paths lead to the same file.
pub(super) fn is_same(one: &Path, other: &Path) -> bool {
    match (one.metadata(), other.metadata()) {
        (Ok(one), Ok(other)) => (one.dev(), one.ino()) == (other.dev(), other.ino()),
        _ => one == other,
    }
}

pub(super) fn remove(path: &Path) -> Result<(), OpenError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(OpenError::Beside { path: path.to_owned(), error })
        }
        _ => Ok(()),
    }
}

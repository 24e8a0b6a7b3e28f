//! A copy of a whole database, made beside a running server.

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

/// How far a backup or a restore is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyStep {
    /// So many bytes of so many are copied.
    Copied(u64, u64),
    /// The copy is read through for damage.
    Checking,
}

/// Hears how far it is; answers whether to go on.
pub type CopySink<'a> = &'a mut dyn FnMut(CopyStep) -> bool;

/// Why a database was not copied. Nothing but an unfinished copy has been touched.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// What would be written is there, and was not to be replaced.
    #[error("{} is there already", .0.display())]
    Exists(PathBuf),
    /// The copy would be written over what is copied.
    #[error("{} is the database itself, or belongs to it", .0.display())]
    Itself(PathBuf),
    /// Another process makes the same copy.
    #[error("another process is writing {}", .0.display())]
    Claimed(PathBuf),
    /// No rollcall keeps its data in the file.
    #[error("{} is no database of rollcall", .0.display())]
    NotOurs(PathBuf),
    /// The file holds something else than was written.
    #[error("{} is damaged:\n{report}", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What SQLite says of it.
        report: String,
    },
    /// A program other than a server has the database open.
    #[error("another program has {} open", .0.display())]
    InUse(PathBuf),
    /// Versions have no room for another epoch.
    #[error(transparent)]
    NoEpochLeft(#[from] NoEpochLeft),
    /// Whoever asked for the copy has changed their mind.
    #[error("interrupted")]
    Interrupted,
    /// A database cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// SQLite failed while it copied.
    #[error("the copy failed: {0}")]
    Sqlite(#[from] rusqlite::Error),
}

/// Bytes that are copied between two looks at whether to go on.
const STEP_BYTES: i32 = 4 << 20;

/// Copies the database `from` into the file `to`, as of one moment; gives its size in bytes.
///
/// - Beside a running server, however much it writes: the copy is of the moment at which it began.
/// - `to` appears complete and on the disk, or not at all. Until then `to` with `.partial` grows; what an
///   interrupted run left of it is written over.
/// - The copy is one file without a log beside it, and readable by whoever can read the database.
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
        // Whoever may read the database may keep a copy of it.
        Err(CopyError::Open(OpenError::Foreign { .. })) => Partial::claim(partial, None)?,
        claimed => claimed?,
    };
    drop(copy(&source, &partial.path, each)?);
    is_free()?;
    partial.keep_as(to, Some(from))
}

/// Opens a database that is there, to read it whole.
pub(super) fn open(path: &Path, busy_wait: Duration) -> Result<Connection, OpenError> {
    let in_file = |error| OpenError::of(path, &error);
    // Not read-only: whoever comes first to a write-ahead log has to write beside it.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(path, flags).map_err(in_file)?;
    prepare(&conn, busy_wait).map_err(in_file)?;
    conn.pragma_update(None, "query_only", true).map_err(in_file)?;
    Ok(conn)
}

/// Copies what `source` holds now into the empty file `to`; gives it opened.
pub(super) fn copy(source: &Connection, to: &Path, each: CopySink<'_>) -> Result<Connection, CopyError> {
    // The backup starts anew whenever another process has written between two of its steps, for ever on a
    // busy server. With a transaction open on the connection that it reads by, it stays in that snapshot.
    let snapshot = source.unchecked_transaction()?;
    snapshot.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))?;
    let page_bytes: i32 = snapshot.pragma_query_value(None, "page_size", |row| row.get(0))?;

    let mut copy = Connection::open(to)?;
    // Nobody needs half a copy: it is made durable as a whole, at the end.
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
    // The header came along, and says that there is a write-ahead log.
    copy.pragma_update(None, "journal_mode", "DELETE")?;
    Ok(copy)
}

/// A file that is being written; no other process does so at the same time. Dropped, it is deleted.
pub(super) struct Partial {
    pub path: PathBuf,
    /// Locked.
    file: File,
    kept: bool,
}

impl Partial {
    /// Makes the file, or takes over what an interrupted run left of it, and gives it to whom `like` belongs to.
    pub fn claim(path: PathBuf, like: Option<&Path>) -> Result<Self, CopyError> {
        let failed = |error| OpenError::Beside { path: path.clone(), error };
        let mut options = OpenOptions::new();
        // It will hold what tokens and passwords are checked by.
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
        // What an older release left may be readable by others.
        let failed = |error| OpenError::Beside { path: path.clone(), error };
        file.set_permissions(Permissions::from_mode(MODE)).map_err(failed)?;
        remove(&beside(path, "-journal"))?; // or it would be rolled back into the new copy
        remove(&beside(path, "-wal"))?;
        Ok(partial)
    }

    /// Makes the file durable, as readable as `like`, and gives it its name; gives its size in bytes.
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
                let _ = std::fs::remove_file(beside(&self.path, suffix)); // the next run writes over it
            }
        }
    }
}

/// A name is on the disk once its folder is.
pub(super) fn sync_folder_of(path: &Path) -> Result<(), OpenError> {
    let folder = folder_of(path);
    let synced = File::open(folder).and_then(|folder| folder.sync_all());
    synced.map_err(|error| OpenError::Beside { path: folder.to_owned(), error })
}

/// Whether both paths lead to one file.
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

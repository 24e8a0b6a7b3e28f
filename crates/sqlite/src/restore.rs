//! Replaces a database by a copy, in a new epoch.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags, TransactionBehavior};

use super::backup::{CopyError, CopySink, CopyStep, Partial, copy, is_same, open, remove, sync_folder_of};
use super::connections::prepare;
use super::file::{BEFORE_RESTORE, Served, beside, resolved};
use super::past::{Past, SUFFIX};
use super::{OpenError, migrate};
use rollcall_core::model::{Precision, Timestamp, Version};

/// How long the replaced database may be busy before another program counts as using it.
const BUSY_WAIT: Duration = Duration::from_secs(2);

/// The result of a restore.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restored {
    /// The size of the database, bytes.
    pub bytes: u64,
    /// Its number of owners.
    pub owners: u64,
    /// The new epoch. Every cursor of an earlier one has expired.
    pub epoch: u16,
    /// The path of the replaced database.
    pub kept: Option<PathBuf>,
    /// Whether the replaced database could be read, so that the new epoch is certainly above its own.
    pub knew_replaced: bool,
}

/// Replaces the database `path` by the backup `from`, in a new epoch.
///
/// - The old database is kept beside it, as `path.before-restore-` and the time.
/// - The last step is a rename. Until then the database at `path` is unchanged.
/// - Errors: [`CopyError`]; the database at `path` is then unchanged.
pub fn restore(
    from: &Path,
    path: &Path,
    replace: bool,
    now: Timestamp,
    each: CopySink<'_>,
) -> Result<Restored, CopyError> {
    let path = &resolved(path);
    let _served = Served::lock_if_there(path)?;
    if BESIDE.iter().any(|suffix| beside(path, suffix).exists()) && !replace {
        return Err(CopyError::Exists(path.to_owned()));
    }
    let partial = beside(path, ".restoring");
    if is_same(from, path) || is_same(from, &partial) {
        return Err(CopyError::Itself(from.to_owned()));
    }
    let source = open(from, BUSY_WAIT)?;
    if !is_ours(&source, from)? {
        return Err(CopyError::NotOurs(from.to_owned()));
    }
    // The new database gets the old one's owner, since its server could not open it otherwise.
    let partial = Partial::claim(partial, path.exists().then_some(path.as_path()))?;
    let mut copy = copy(&source, &partial.path, each)?;
    drop(source);
    if !each(CopyStep::Checking) {
        return Err(CopyError::Interrupted);
    }
    check(&copy, from)?;
    migrate::migrate(&mut copy, &partial.path)?;

    let replaced = Replaced::look(path)?;
    let mut start = Start::of(&copy)?;
    let left = Past::beside(path)?; // the record of the replaced database, even if that is damaged
    start.epoch = start.epoch.max(left.map_or(0, Past::epoch));
    if let Some(known) = replaced.start {
        start.epoch = start.epoch.max(known.epoch);
        start.fences = start.fences.max(known.fences);
    }
    let epoch = Version::epoch_after(start.epoch, now)?;
    let owners = begin_epoch(&mut copy, epoch, start.fences)?;
    copy.close().map_err(|(_, error)| error)?;

    if !each(CopyStep::Checking) {
        return Err(CopyError::Interrupted);
    }
    let kept = replaced.keep(path, now)?;
    let bytes = partial.keep_as(path, replaced.is_there.then_some(path.as_path()))?;
    remove(&beside(path, SUFFIX))?; // it describes the replaced database
    Ok(Restored { bytes, owners, epoch, kept, knew_replaced: !replaced.is_there || replaced.start.is_some() })
}

/// The files of a database. A leftover log counts: SQLite would apply it to any new file.
const BESIDE: [&str; 3] = ["", "-wal", "-journal"];

fn is_ours(source: &Connection, from: &Path) -> Result<bool, CopyError> {
    match source.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(())) {
        Err(error) if is_damage(&error) => {
            Err(CopyError::Damaged { path: from.to_owned(), report: error.to_string() })
        }
        _ => Ok(migrate::done(source, from)? > 0),
    }
}

/// Checks the copy: damage in it was in the backup.
fn check(copy: &Connection, from: &Path) -> Result<(), CopyError> {
    let damaged = |report| CopyError::Damaged { path: from.to_owned(), report };
    let report = copy.prepare("PRAGMA integrity_check(10)").and_then(|mut check| {
        check.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<Vec<String>>>()
    });
    match report {
        Ok(lines) if lines == ["ok"] => Ok(()),
        Ok(lines) => Err(damaged(lines.join("\n"))),
        Err(error) if is_damage(&error) => Err(damaged(error.to_string())),
        Err(error) => Err(error.into()),
    }
}

fn is_damage(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
}

/// A database's epoch and fences.
#[derive(Clone, Copy)]
struct Start {
    epoch: u64,
    fences: i64,
}

impl Start {
    fn of(conn: &Connection) -> rusqlite::Result<Self> {
        let number = |name| {
            conn.query_row("SELECT value FROM rollcall_meta WHERE name = ?1", [name], |row| row.get(0))
        };
        Ok(Self { epoch: i64::cast_unsigned(number("epoch")?), fences: number("start")? })
    }
}

/// Begins every owner's versions above all that were ever given out, so that every older cursor expires.
fn begin_epoch(copy: &mut Connection, epoch: u16, fences: i64) -> rusqlite::Result<u64> {
    let transaction = copy.transaction_with_behavior(TransactionBehavior::Immediate)?;
    transaction.execute("UPDATE rollcall_meta SET value = ?1 WHERE name = 'start'", [fences])?;
    // The next server draws a mark, and has nothing to compare this one with.
    transaction.execute("DELETE FROM rollcall_meta WHERE name = 'mark'", [])?;
    let owners = raise_epoch(&transaction, epoch)?;
    transaction.commit()?;
    Ok(owners)
}

/// The part of it that every new epoch needs; returns the number of owners.
pub(super) fn raise_epoch(conn: &Connection, epoch: u16) -> rusqlite::Result<u64> {
    conn.execute("UPDATE rollcall_meta SET value = ?1 WHERE name = 'epoch'", [epoch])?;
    let first = Version::first(epoch).0.cast_signed();
    let owners = conn.execute("UPDATE rollcall_owner SET version = ?1, horizon = ?1", [first])?;
    // Stored responses and cursors contain versions that no longer exist.
    conn.execute("DELETE FROM rollcall_answer", [])?;
    conn.execute("DELETE FROM rollcall_ack", [])?;
    Ok(owners as u64)
}

/// The database that is replaced.
struct Replaced {
    is_there: bool,
    /// `None` if it is damaged, or not a database of rollcall.
    start: Option<Start>,
}

impl Replaced {
    /// Inspects `path`, and moves its log into it, so that it is one file.
    ///
    /// Errors: [`CopyError::InUse`].
    fn look(path: &Path) -> Result<Self, CopyError> {
        if !path.exists() {
            return Ok(Self { is_there: false, start: None });
        }
        let opened = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE);
        let folded = opened.and_then(|conn| {
            prepare(&conn, BUSY_WAIT)?;
            let start = Start::of(&conn);
            // Only a connection that has the file to itself can leave this mode, so this detects other users.
            conn.pragma_update(None, "journal_mode", "DELETE")?;
            start
        });
        match folded {
            Ok(start) => Ok(Self { is_there: true, start: Some(start) }),
            Err(error) => match error.sqlite_error_code() {
                Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
                    Err(CopyError::InUse(path.to_owned()))
                }
                _ => Ok(Self { is_there: true, start: None }),
            },
        }
    }

    /// Gives the file a second name. So the rename of the new file over the first name loses nothing, and
    /// there is no moment without a database, in which a server could start and create an empty one.
    fn keep(&self, path: &Path, now: Timestamp) -> Result<Option<PathBuf>, CopyError> {
        let mut kept = None;
        // A log that could not be moved is renamed first: beside the new file it would be applied to it.
        for suffix in ["-wal", "-shm", "-journal"] {
            if beside(path, suffix).exists() {
                let name = kept.get_or_insert_with(|| free_name(path, now));
                rename(&beside(path, suffix), &beside(name, suffix))?;
            }
        }
        if self.is_there {
            let name = kept.get_or_insert_with(|| free_name(path, now));
            match std::fs::hard_link(path, &*name) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                    return Err(CopyError::Exists(name.clone()));
                }
                Err(_) => rename(path, name)?, // the file system does not support such names
            }
        }
        if kept.is_some() {
            sync_folder_of(path)?;
        }
        Ok(kept)
    }
}

fn free_name(path: &Path, now: Timestamp) -> PathBuf {
    let at: String = now.format(Precision::Seconds).to_string().replace(' ', "-").replace(':', "");
    let name = beside(path, &format!("{BEFORE_RESTORE}{at}"));
    let taken = |name: &Path| BESIDE.iter().any(|suffix| beside(name, suffix).exists());
    if !taken(&name) {
        return name;
    }
    (2..).map(|n| beside(&name, &format!("-{n}"))).find(|name| !taken(name)).unwrap_or(name)
}

fn rename(from: &Path, to: &Path) -> Result<(), OpenError> {
    std::fs::rename(from, to).map_err(|error| OpenError::Beside { path: from.to_owned(), error })
}

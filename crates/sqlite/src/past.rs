//! Detects whether the database is the one that the last server left, or an earlier copy that replaced it.
//!
//! A copy that `rollcall restore` puts back begins a new epoch. A copy that returns in another way, as a file
//! copied over the database or as a snapshot, does not. Devices would treat the rows that it lacks as
//! deleted. So each server draws a random mark when it starts, and stores it in the database and in a file
//! beside it, together with the number of writes so far. An earlier copy has an earlier mark, or fewer
//! writes.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read as _};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OptionalExtension};

use super::OpenError;
use super::file::{self, beside};
use rollcall_core::broken;
use rollcall_core::model::{Timestamp, Version};

/// The suffix of the file beside the database.
pub(super) const SUFFIX: &str = ".past";

/// The record of a database's past.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Past {
    /// Drawn when the last server started; 0 if none has started.
    mark: i64,
    /// The mark before it.
    before: i64,
    epoch: u64,
    /// The number of writes of all owners in this epoch.
    writes: u64,
    /// The second that the last start counts as: fences begin there.
    start: i64,
}

impl Past {
    /// Reads the record in the database, within the transaction that decides about it.
    fn of(conn: &Connection) -> rusqlite::Result<Self> {
        let meta = "SELECT value FROM rollcall_meta WHERE name = ?1";
        let number = |name| conn.query_row(meta, [name], |row| row.get::<_, i64>(0)).optional();
        let (mark, epoch) = (number("mark")?, number("epoch")?);
        let latest = "SELECT ifnull(max(version), 0), ifnull(sum((version & ?1) - 1), 0) FROM rollcall_owner";
        let (latest, writes): (i64, i64) =
            conn.query_row(latest, [Version::COUNTER_MAX.cast_signed()], |row| {
                Ok((row.get(0)?, row.get(1)?))
            })?;
        let latest = Version(latest.cast_unsigned()).epoch();
        let epoch = epoch.unwrap_or_default().cast_unsigned().max(latest.into());
        let start = number("start")?.unwrap_or_default();
        Ok(Self { mark: mark.unwrap_or_default(), before: 0, epoch, writes: writes.cast_unsigned(), start })
    }

    /// Reads the record beside the database; `None` if it is missing or cannot be read.
    pub fn beside(path: &Path) -> Result<Option<Self>, OpenError> {
        let name = beside(path, SUFFIX);
        let mut text = String::new();
        let read = File::open(&name).and_then(|mut file| file.read_to_string(&mut text));
        match read {
            Ok(_) => Ok(Self::parse(&text)),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::InvalidData) => Ok(None),
            Err(error) => Err(OpenError::Beside { path: name, error }),
        }
    }

    /// The epoch of the last server.
    pub fn epoch(self) -> u64 {
        self.epoch
    }

    /// The second that its start counts as.
    pub fn start(self) -> i64 {
        self.start
    }

    /// One line of constant length, so that it can be overwritten in place and is never torn.
    fn line(self) -> String {
        let Self { mark, before, epoch, writes, start } = self;
        format!("rollcall {mark:020} {before:020} {epoch:05} {writes:020} {start:020}\n")
    }

    fn parse(text: &str) -> Option<Self> {
        let mut words = text.strip_prefix("rollcall ")?.split_ascii_whitespace();
        let mut next = || words.next()?.parse::<i64>().ok();
        let (mark, before, epoch, writes, start) = (next()?, next()?, next()?, next()?, next()?);
        Some(Self { mark, before, epoch: epoch.cast_unsigned(), writes: writes.cast_unsigned(), start })
    }
}

/// Why a database is not the one that the last server left; `None` if it is.
fn surprise(database: Past, left: Option<Past>) -> Option<&'static str> {
    match left {
        _ if broken::is("restore_unnoticed") => None,
        // The first server of a release that stores marks, or the first server at all.
        None if database.mark == 0 => None,
        None => Some("the file beside it, which says what the last server left, is missing"),
        // `rollcall restore` has begun an epoch above the stored one.
        Some(left) if database.epoch > left.epoch => None,
        Some(left) if database.epoch < left.epoch => Some("it is from before an epoch that has begun since"),
        Some(left) if database.mark != left.mark && database.mark != left.before => {
            Some("another server has started on it last")
        }
        Some(left) if database.writes < left.writes => Some("it lacks writes that were acknowledged"),
        Some(_) => None,
    }
}

/// The record that a server keeps beside its database while it runs.
pub(super) struct Beside {
    path: PathBuf,
    file: File,
    past: Past,
    failed: bool,
}

impl Beside {
    /// Checks whether the database is the one that the last server left, and begins a new epoch if not. Then
    /// it draws a new mark. It runs in the transaction of a server's start, which commits afterwards; until
    /// then both marks are valid.
    pub fn begin(
        conn: &Connection,
        path: &Path,
        left: Option<Past>,
        now: Timestamp,
    ) -> Result<Self, OpenError> {
        let in_file = |error| OpenError::of(path, &error);
        let mut database = Past::of(conn).map_err(in_file)?;
        if let Some(reason) = surprise(database, left) {
            let last = left.map_or(0, Past::epoch).max(database.epoch);
            let epoch = Version::epoch_after(last, now)
                .map_err(|error| OpenError::File { path: path.to_owned(), reason: error.to_string() })?;
            let owners = super::restore::raise_epoch(conn, epoch).map_err(in_file)?;
            database = Past { epoch: epoch.into(), writes: 0, ..database };
            tracing::warn!(
                database = %path.display(),
                reason,
                epoch,
                owners,
                "the database was put back without rollcall restore: a new epoch begins, and devices put back what it \
                 lacks"
            );
        }
        let mark = (uuid::Uuid::new_v4().as_u128() as i64 & i64::MAX).max(1);
        let past = Past { mark, before: database.mark, ..database };
        let name = beside(path, SUFFIX);
        let failed = |error| OpenError::Beside { path: name.clone(), error };
        file::make(&name, file::MODE).map_err(failed)?;
        let file = OpenOptions::new().write(true).open(&name).map_err(failed)?;
        file.write_all_at(past.line().as_bytes(), 0).and_then(|()| file.sync_all()).map_err(failed)?;
        let set = "INSERT INTO rollcall_meta (name, value) VALUES ('mark', ?1) \
                   ON CONFLICT (name) DO UPDATE SET value = excluded.value";
        conn.execute(set, [mark]).map_err(in_file)?;
        Ok(Self { path: name, file, past, failed: false })
    }

    /// Records how many writes are durable. The record may lag behind the database, but must never be ahead
    /// of it.
    pub fn count(&mut self, writes: u64) {
        if writes == 0 || self.failed {
            return;
        }
        self.past.writes += writes;
        if let Err(error) = self.file.write_all_at(self.past.line().as_bytes(), 0) {
            self.failed = true;
            tracing::warn!(
                %error,
                file = %self.path.display(),
                "cannot be written: an earlier copy of the database that is put back may go unnoticed"
            );
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_as_it_was_written() {
        let past = Past { mark: i64::MAX, before: 7, epoch: 8191, writes: u64::from(u32::MAX), start: 1 };
        assert_eq!(Past::parse(&past.line()), Some(past));
        assert_eq!(past.line().len(), Past::default().line().len());
        assert_eq!(Past::parse("rollcall 1 2 3"), None);
        assert_eq!(Past::parse(""), None);
    }

    #[test]
    fn only_what_the_last_server_left_is_no_surprise() {
        let left = Past { mark: 5, before: 4, epoch: 2, writes: 10, start: 3 };
        let is_fine = |database: Past| surprise(database, Some(left)).is_none();
        assert!(is_fine(left));
        assert!(is_fine(Past { writes: 12, ..left }), "the last writes before a crash");
        assert!(is_fine(Past { mark: 4, ..left }), "a crash between the two marks");
        assert!(is_fine(Past { mark: 1, epoch: 3, writes: 1, ..left }), "rollcall restore");
        assert!(!is_fine(Past { mark: 3, ..left }), "a copy from before an earlier start");
        assert!(!is_fine(Past { writes: 9, ..left }), "a copy of this very start");
        assert!(!is_fine(Past { epoch: 1, ..left }));
        assert!(!is_fine(Past::default()), "a new file in its place");
        assert_eq!(surprise(Past::default(), None), None);
        assert!(surprise(left, None).is_some(), "a copy on another machine");
    }
}

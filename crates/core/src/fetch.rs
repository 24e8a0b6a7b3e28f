//! Phase 1, the manifest: which rows the server holds and when each last changed, without their columns.

use std::ops::ControlFlow;

use crate::broken;
use crate::model::{RowKey, Timestamp, Version};
use crate::schema::TableId;
use crate::storage::{ReadTxn, StorageError};

/// Where a page of the manifest begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PageToken {
    /// The version of the first page.
    pub version: Version,
    /// The index of the table among the requested ones.
    pub table: usize,
    /// How many rows of that table earlier pages contained.
    pub rows_before: u64,
    /// The last key of that table on earlier pages.
    pub after: Option<RowKey>,
}

/// One page, planned before its first row is read, because the response's headers come first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page {
    /// Where it begins, and its version.
    pub from: PageToken,
    /// How many rows it has.
    pub rows: u64,
    /// Where the next one begins.
    pub next: Option<PageToken>,
}

/// How far a page has been written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The index of the current table.
    table: usize,
    begun: bool,
    after: Option<RowKey>,
    rows: u64,
}

/// Receives the manifest while it is read.
pub trait Sink {
    /// The rows that follow are of this table.
    fn table(&mut self, table: TableId);
    /// One live row, by key ascending within its table.
    fn row(&mut self, key: RowKey, last_update: Timestamp);
    /// Called after every few rows; returns whether to continue now.
    fn pass_on(&mut self) -> ControlFlow<()>;
}

/// Why a page cannot be returned.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The owner's data changed since the page, or the first page, was begun. Pages of two versions make no
    /// consistent manifest.
    #[error("the version moved")]
    VersionMoved,
    /// The page begins where no other page ends.
    #[error("no page ends where this one begins")]
    NoSuchPage,
    /// The number of rows differs from the owner's digests.
    #[error("{found} rows of a page of {rows}: the ledger and the digests disagree")]
    Miscounted {
        /// Rows that were read.
        found: u64,
        /// Rows that the digests announced.
        rows: u64,
    },
    /// Storage failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// Rows that are read before the sink is asked whether to continue.
const ROWS_AT_A_TIME: u64 = 500;

/// The bounds of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageMax {
    /// Rows.
    pub rows: usize,
    /// Tombstones that lie between the rows, or before them.
    pub tombstones: usize,
}

/// Plans one page: how many rows it has, and where the next one begins.
///
/// - Bounds: at most `most.rows` rows. The page ends after that many rows plus `most.tombstones` entries. So
///   it may have few rows, or none, and still not be the last one.
/// - Errors: [`FetchError::VersionMoved`] if `from` is of another version.
/// - Source: the seed post, Step 1; `openapi.yaml`, path `/fetch`.
pub fn page(
    txn: &mut dyn ReadTxn,
    tables: &[TableId],
    from: Option<PageToken>,
    most: PageMax,
) -> Result<Page, FetchError> {
    let state = txn.state();
    let version = state.version;
    let from = from.unwrap_or(PageToken { version, table: 0, rows_before: 0, after: None });
    if from.version != version {
        return Err(FetchError::VersionMoved);
    }
    let digests = txn.digests()?;
    let count = |table: &TableId| digests.get(table.index()).map_or(0, |digest| digest.count);
    let rows_max = most.rows.max(1) as u64;
    let mut rows = 0;
    // An owner with few tombstones cannot have many on a page, so the entries need not be walked.
    let is_bounded = state.past.tombstones_max().is_none_or(|max| max > most.tombstones as u64);
    let mut entries_left = rows_max + most.tombstones as u64;
    for (index, table) in tables.iter().enumerate().skip(from.table) {
        let (rows_before, after) =
            if index == from.table { (from.rows_before, from.after) } else { (0, None) };
        let left = count(table).saturating_sub(rows_before);
        let room = rows_max - rows;
        if is_bounded && !broken::is("fetch_unbounded") {
            let walked = txn.walk(*table, after, entries_left)?;
            if walked.entries == entries_left && walked.live <= room {
                let next = PageToken {
                    version,
                    table: index,
                    rows_before: rows_before + walked.live,
                    after: walked.last.or(after),
                };
                return Ok(Page { from, rows: rows + walked.live, next: Some(next) });
            }
            entries_left -= walked.entries;
        }
        if left > room {
            // Only the key at the end of the page is looked up. Reading the rows here as well would double
            // the cost.
            let last = if room == 0 { after } else { txn.nth_after(*table, after, room)? };
            let next =
                Some(PageToken { version, table: index, rows_before: rows_before + room, after: last });
            return Ok(Page { from, rows: rows_max, next });
        }
        rows += left;
    }
    Ok(Page { from, rows, next: None })
}

impl PageToken {
    /// Whether this is a page after the first.
    fn is_later(&self) -> bool {
        self.table > 0 || self.rows_before > 0 || self.after.is_some()
    }
}

impl Page {
    /// The state of a page of which nothing has been written.
    pub fn begin(&self) -> Progress {
        Progress { table: 0, begun: false, after: None, rows: 0 }
    }
}

/// Writes a page until it is complete or the sink pauses; returns whether it is complete.
///
/// - Shape: every requested table, in the order requested, including those without rows on this page.
/// - Errors: [`FetchError::VersionMoved`] if the owner's version has changed since the page was planned;
///   [`FetchError::NoSuchPage`] if the page does not begin where another one ends. A fetch from the start
///   then shows whether the token or the data is wrong.
pub fn run(
    txn: &mut dyn ReadTxn,
    tables: &[TableId],
    page: &Page,
    progress: &mut Progress,
    sink: &mut dyn Sink,
) -> Result<bool, FetchError> {
    let from = page.from;
    if txn.state().version != from.version {
        return Err(FetchError::VersionMoved);
    }
    while let Some(table) = tables.get(progress.table) {
        if !progress.begun {
            sink.table(*table);
            progress.begun = true;
            progress.after = if progress.table == from.table { from.after } else { None };
        }
        let mut more = progress.table >= from.table;
        // The last page reads every remaining row, so that a surplus row is noticed as well.
        while more && (progress.rows < page.rows || page.next.is_none()) {
            let left = if page.next.is_some() { page.rows - progress.rows } else { ROWS_AT_A_TIME };
            let lot = left.min(ROWS_AT_A_TIME);
            let before = progress.rows;
            txn.manifest(*table, progress.after, lot as usize, &mut |key, last_update| {
                sink.row(key, last_update);
                progress.after = Some(key);
                progress.rows += 1;
            })?;
            more = progress.rows - before == lot;
            if sink.pass_on().is_break() {
                return Ok(false);
            }
        }
        (progress.table, progress.begun) = (progress.table + 1, false);
    }
    if progress.rows == page.rows {
        return Ok(true);
    }
    // Clients may forge page tokens. Only a wrong first page proves that the data is wrong.
    if page.from.is_later() {
        return Err(FetchError::NoSuchPage);
    }
    Err(FetchError::Miscounted { found: progress.rows, rows: page.rows })
}

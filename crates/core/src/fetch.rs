//! Phase 1, the roll call: which rows the server holds and when each last changed, never their bodies.

use std::ops::ControlFlow;

use crate::broken;
use crate::model::{RowKey, Timestamp, Version};
use crate::schema::TableId;
use crate::storage::{ReadTxn, StorageError};

/// Where a page of the roll call begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PageToken {
    /// The version that the first page was of.
    pub version: Version,
    /// The place of the table among those asked for.
    pub table: usize,
    /// How many rows of that table were told.
    pub rows_before: u64,
    /// The last key told of that table.
    pub after: Option<RowKey>,
}

/// One page, as it is laid out before its first row is read: what a client must know of it comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page {
    /// Where it begins, and of which version it is.
    pub from: PageToken,
    /// How many rows it tells.
    pub rows: u64,
    /// Where the next one begins.
    pub next: Option<PageToken>,
}

/// How far a page has been told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The place of the table at hand.
    table: usize,
    begun: bool,
    after: Option<RowKey>,
    rows: u64,
}

/// Takes the roll call down as it is read.
pub trait Sink {
    /// The rows that follow are of this table.
    fn table(&mut self, table: TableId);
    /// One live row, by key ascending within its table.
    fn row(&mut self, key: RowKey, last_update: Timestamp);
    /// Asked after every few rows: whether to go on now.
    fn pass_on(&mut self) -> ControlFlow<()>;
}

/// Why a page cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The owner's data changed since the page, or the first page, was begun: two versions make no whole.
    #[error("the version moved")]
    VersionMoved,
    /// The page begins at a place that no page ends at.
    #[error("no page ends where this one begins")]
    NoSuchPage,
    /// The rows are not as many as the owner's digests say.
    #[error("{found} rows of a page of {rows}: the ledger and the digests disagree")]
    Miscounted {
        /// Rows that were there.
        found: u64,
        /// Rows that were announced.
        rows: u64,
    },
    /// Storage failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// Rows that are read before the sink is asked.
const ROWS_AT_A_TIME: u64 = 500;

/// How long a page may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageMax {
    /// Rows.
    pub rows: usize,
    /// Tombstones that lie between them, or before them.
    pub tombstones: usize,
}

/// Lays out one page: how many rows it has, and where the next one begins.
///
/// - Bounds: at most `most.rows` rows; the page ends once that and `most.tombstones` entries have been looked at. So it may
///   have few rows, or none, and yet not be the last.
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
    // An owner that has few tombstones cannot have many on a page, and nothing needs to be counted.
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
            // Only the key that the page ends with is looked up: to read its rows twice would be dear.
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
    /// Whether it is of a page behind the first.
    fn is_later(&self) -> bool {
        self.table > 0 || self.rows_before > 0 || self.after.is_some()
    }
}

impl Page {
    /// Nothing of it is told yet.
    pub fn begin(&self) -> Progress {
        Progress { table: 0, begun: false, after: None, rows: 0 }
    }
}

/// Tells a page, or goes on with it, until it is told or the sink has enough; says whether it is told.
///
/// - Shape: every asked table, in the order asked, those without rows on this page too.
/// - Errors: [`FetchError::VersionMoved`] if the owner has moved since the page was laid out;
///   [`FetchError::NoSuchPage`] if it does not begin where another ends: to fetch from the start tells whether it is the mark
///   or the data that is wrong.
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
        // The last page takes every row there is, so that one too many is noticed as well.
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
    // A mark comes from a client, who may have changed it. What is wrong with the first page is wrong with the data.
    if page.from.is_later() {
        return Err(FetchError::NoSuchPage);
    }
    Err(FetchError::Miscounted { found: progress.rows, rows: page.rows })
}

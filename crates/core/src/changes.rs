//! The change feed: what changed since a device's cursor, in the same sets that phase 2 takes.

use std::ops::ControlFlow;

use crate::broken;
use crate::model::{DeviceId, RowKey, Stored, Timestamp, Version};
use crate::reconcile::{NetChange, net_change};
use crate::schema::TableId;
use crate::storage::{FeedPosition, OwnerState, ReadTxn, StorageResult};

/// How far a device has read the changes.
///
/// All pages of one feed cover the versions from the first page's `since` up to the version that was current
/// then. A row that changes between two pages gets a higher version and is part of the device's next feed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Feed {
    /// The device's cursor; without one the feed contains every row.
    pub since: Option<Version>,
    /// The device's cursor after the last page.
    pub until: Version,
    /// Leave out what the device itself wrote at this version, in the request that began the feed.
    pub exclude: Option<Version>,
    /// The position after the last row that was returned.
    pub position: FeedPosition,
}

/// The cursor cannot be used: it was purged, belongs to another epoch, or is ahead of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expired {
    /// What the device sent.
    pub given: Version,
    /// The owner's version.
    pub version: Version,
    /// The oldest cursor that is of use.
    pub horizon: Version,
}

/// Which changes to return, and how many.
#[derive(Clone, Copy, Debug)]
pub struct FeedFilter<'a> {
    /// The device that reads the feed.
    pub device: DeviceId,
    /// Only these tables.
    pub tables: &'a [TableId],
    /// Most rows to return.
    pub rows_max: usize,
    /// Return no more rows once the returned ones have about this many bytes.
    pub bytes_max: usize,
    /// Most entries of the ledger to read, including those that are not returned.
    pub entries_max: usize,
}

/// The result of reading one page of a feed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page {
    /// Where the next page continues; `None` after the last page.
    pub next: Option<Feed>,
    /// How many entries of the ledger were read.
    pub looked: usize,
}

impl Feed {
    /// Begins a feed at a device's cursor.
    pub fn begin(state: OwnerState, since: Option<Version>) -> Result<Self, Expired> {
        check(state, since)?;
        let position = FeedPosition { version: since.unwrap_or(Version(0)), within: None };
        Ok(Self { since, until: state.version, exclude: None, position })
    }

    /// Whether nothing of a feed that begins at a cursor was read.
    pub fn is_unread(&self) -> bool {
        self.position.within.is_none() && self.since == Some(self.position.version)
    }

    /// Continues a feed after its earlier pages.
    pub fn resume(self, state: OwnerState) -> Result<Self, Expired> {
        check(state, self.since)?;
        check(state, Some(self.until))?;
        Ok(self)
    }
}

/// Checks that the server still knows what changed after `cursor`.
pub fn check(state: OwnerState, cursor: Option<Version>) -> Result<(), Expired> {
    match cursor {
        Some(given)
            if given < state.horizon || given > state.version || given.epoch() != state.version.epoch() =>
        {
            Err(Expired { given, version: state.version, horizon: state.horizon })
        }
        _ => Ok(()),
    }
}

/// Reads one page of a feed.
///
/// - Shape: `each` receives the rows by version, then table, then key; a deleted row as its tombstone.
/// - Bounds: `each` receives at most `rows_max` rows, and none after it has returned `Break`. At most
///   `entries_max` entries are read, so a page may be empty and still not be the last one.
pub fn run(
    txn: &mut dyn ReadTxn,
    feed: Feed,
    filter: &FeedFilter<'_>,
    each: &mut dyn FnMut(NetChange, TableId, RowKey, &Stored) -> ControlFlow<()>,
) -> StorageResult<Page> {
    let shown_ahead = txn.state().shown_ahead;
    let (mut left, mut bytes_left) = (filter.rows_max.max(1), filter.bytes_max);
    let mut position = feed.position;
    let (mut more, mut looked) = (false, 0);
    let entries_max = if broken::is("pull_unbounded") { usize::MAX } else { filter.entries_max.max(1) };
    let seen_until = if broken::is("cursor_by_time") { newest_at(txn, feed.since)? } else { None };
    let tables: Vec<TableId> = filter.tables.iter().copied().filter(|table| !txn.hides(*table)).collect();
    // The excluded version is nearly always the newest one. Then its rows are not even read.
    let until =
        if feed.exclude == Some(feed.until) { Version(feed.until.0.saturating_sub(1)) } else { feed.until };
    txn.changes(feed.position, until, &mut |table, key, row| {
        if looked == entries_max {
            more = true; // the remaining entries may not concern the device: then the last page is empty
            return false;
        }
        looked += 1;
        let wanted = tables.contains(&table)
            && feed.exclude != Some(row.version)
            && seen_until.is_none_or(|at| row.last_update > at);
        let change = if wanted { net_change(row, feed.since, filter.device, shown_ahead) } else { None };
        if change.is_some() && left == 0 {
            more = true;
            return false;
        }
        // The next page skips what is left of a table that is not wanted, and its token names no row of it.
        let last = if tables.contains(&table) { key } else { RowKey::LAST };
        position = FeedPosition { version: row.version, within: Some((table, last)) };
        if let Some(change) = change {
            left -= 1;
            bytes_left = bytes_left.saturating_sub(row.weight());
            let enough = each(change, table, key, row).is_break() || bytes_left == 0;
            if enough {
                left = 0; // the next entry shows whether more rows follow
            }
        }
        true
    })?;
    Ok(Page { next: more.then_some(Feed { position, ..feed }), looked })
}

/// Part of a deliberate fault: the position of a cursor that compares times.
fn newest_at(txn: &mut dyn ReadTxn, since: Option<Version>) -> StorageResult<Option<Timestamp>> {
    let mut newest = None;
    let from = FeedPosition { version: Version(0), within: None };
    txn.changes(from, since.unwrap_or(Version(0)), &mut |_, _, row| {
        newest = newest.max(Some(row.last_update));
        true
    })?;
    Ok(newest)
}

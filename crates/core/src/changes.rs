//! The change feed: what changed since a device's cursor, in the very sets that phase 2 takes.

use std::ops::ControlFlow;

use crate::broken;
use crate::model::{DeviceId, RowKey, Stored, Timestamp, Version};
use crate::reconcile::{NetChange, net_change};
use crate::schema::TableId;
use crate::storage::{FeedPosition, OwnerState, ReadTxn, StorageResult};

/// How far a device has been told what changed.
///
/// All pages of one feed run from the first page's `since` to the version that was current then: a row that
/// changes between two pages moves above that version, and comes with the device's next feed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Feed {
    /// The device's cursor; without one it is told everything.
    pub since: Option<Version>,
    /// What the device's cursor is once it has the last page.
    pub until: Version,
    /// Leave out what the device itself wrote at this version: the request that the feed began with.
    pub exclude: Option<Version>,
    /// Up to where it has been told.
    pub position: FeedPosition,
}

/// The cursor is of no use: purged, of another epoch, or ahead of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expired {
    /// What the device sent.
    pub given: Version,
    /// The owner as it is.
    pub state: OwnerState,
}

/// Whose feed it is and what it is about.
#[derive(Clone, Copy, Debug)]
pub struct FeedFilter<'a> {
    /// Who asks.
    pub device: DeviceId,
    /// Only these tables.
    pub tables: &'a [TableId],
    /// Tell at most so many rows.
    pub rows_max: usize,
    /// Tell no more rows once those told have so many bytes, about.
    pub bytes_max: usize,
    /// Look at no more entries of the ledger than these, counting those that are not passed on.
    pub entries_max: usize,
}

/// What came of reading one page of a feed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page {
    /// The feed to go on with, or `None` after the last page.
    pub next: Option<Feed>,
    /// How many entries of the ledger were looked at.
    pub looked: usize,
}

impl Feed {
    /// Begins a feed at a device's cursor.
    pub fn begin(state: OwnerState, since: Option<Version>) -> Result<Self, Expired> {
        check(state, since)?;
        let position = FeedPosition { version: since.unwrap_or(Version(0)), within: None };
        Ok(Self { since, until: state.version, exclude: None, position })
    }

    /// Goes on with a feed whose earlier pages were told.
    pub fn resume(self, state: OwnerState) -> Result<Self, Expired> {
        check(state, self.since)?;
        check(state, Some(self.until))?;
        Ok(self)
    }
}

/// Whether the server still knows what changed after `cursor`.
pub fn check(state: OwnerState, cursor: Option<Version>) -> Result<(), Expired> {
    match cursor {
        Some(given)
            if given < state.horizon || given > state.version || given.epoch() != state.version.epoch() =>
        {
            Err(Expired { given, state })
        }
        _ => Ok(()),
    }
}

/// Reads one page of a feed.
///
/// - Shape: `each` gets the rows by version, then table, then key; a deleted row as its tombstone.
/// - Bounds: `each` gets at most `rows_max` rows, and none after it asked to pause. At most `entries_max` entries are
///   looked at, so a page may be empty and yet not be the last.
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
    // What is left out is nearly always the newest version as a whole: then it is not even read.
    let until =
        if feed.exclude == Some(feed.until) { Version(feed.until.0.saturating_sub(1)) } else { feed.until };
    txn.changes(feed.position, until, &mut |table, key, row| {
        if looked == entries_max {
            more = true; // perhaps only entries that do not concern the device: the last page may be empty
            return false;
        }
        looked += 1;
        let wanted = filter.tables.contains(&table)
            && feed.exclude != Some(row.version)
            && seen_until.is_none_or(|at| row.last_update > at);
        let change = if wanted { net_change(row, feed.since, filter.device, shown_ahead) } else { None };
        if change.is_some() && left == 0 {
            more = true;
            return false;
        }
        position = FeedPosition { version: row.version, within: Some((table, key)) };
        if let Some(change) = change {
            left -= 1;
            bytes_left = bytes_left.saturating_sub(row.weight());
            let enough = each(change, table, key, row).is_break() || bytes_left == 0;
            if enough {
                left = 0; // whether this was the last one is still to be seen
            }
        }
        true
    })?;
    Ok(Page { next: more.then_some(Feed { position, ..feed }), looked })
}

/// A fault: the time that a cursor by time would stand at.
fn newest_at(txn: &mut dyn ReadTxn, since: Option<Version>) -> StorageResult<Option<Timestamp>> {
    let mut newest = None;
    let from = FeedPosition { version: Version(0), within: None };
    txn.changes(from, since.unwrap_or(Version(0)), &mut |_, _, row| {
        newest = newest.max(Some(row.last_update));
        true
    })?;
    Ok(newest)
}

//! Phase 1, the roll call: which rows the server holds and when each last changed, never their bodies.

use crate::model::{RowKey, Timestamp, Version};
use crate::schema::TableId;
use crate::storage::{ReadTxn, StorageError};

/// Where a page of the roll call begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The version that the first page was of.
    pub version: Version,
    /// The place of the table among those asked for.
    pub table: usize,
    /// The last key told of that table.
    pub after: Option<RowKey>,
}

/// Takes the roll call down as it is read.
pub trait Sink {
    /// The rows that follow are of this table.
    fn table(&mut self, table: TableId);
    /// One live row, by key ascending within its table.
    fn row(&mut self, key: RowKey, last_update: Timestamp);
}

/// Why a page cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The owner's data changed since the first page: pages of two versions make no whole.
    #[error("the version moved")]
    VersionMoved,
    /// Storage failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// Tells one page of the roll call, and where the next one begins.
///
/// - Shape: every asked table, in the order asked, those without rows on this page too.
/// - Bounds: at most `rows_max` rows, at least one of them if any is left.
/// - Errors: [`FetchError::VersionMoved`] if `from` is of another version.
/// - Source: the seed post, Step 1; `openapi.yaml`, path `/fetch`.
pub fn run(
    txn: &mut dyn ReadTxn,
    asked: &[TableId],
    from: Option<Mark>,
    rows_max: usize,
    sink: &mut dyn Sink,
) -> Result<Option<Mark>, FetchError> {
    let version = txn.state().version;
    let start = from.unwrap_or(Mark { version, table: 0, after: None });
    if start.version != version {
        return Err(FetchError::VersionMoved);
    }
    let mut left = rows_max.max(1);
    let mut next = None;
    for (place, table) in asked.iter().enumerate() {
        sink.table(*table);
        if place < start.table || next.is_some() {
            continue;
        }
        let mut after = if place == start.table { start.after } else { None };
        let full_before = left == 0;
        txn.manifest(*table, after, left, &mut |key, last_update| {
            sink.row(key, last_update);
            after = Some(key);
            left -= 1;
        })?;
        if left == 0 {
            // Only a row that is really there makes another page.
            let mut more = false;
            txn.manifest(*table, after, 1, &mut |_, _| more = true)?;
            let after = if full_before { None } else { after };
            next = more.then_some(Mark { version, table: place, after });
        }
    }
    Ok(next)
}

use crate::model::{RowKey, Timestamp, Version};
use crate::reconcile::Incoming;
use crate::schema::TableId;

/// The rows of one table under `add`, `update` or `delete`, in the order sent.
pub type Set = (TableId, Vec<Incoming>);

/// Everything that one request of phase 2 asks for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// Rows to make.
    pub add: Vec<Set>,
    /// Rows to change.
    pub update: Vec<Set>,
    /// Rows to delete.
    pub delete: Vec<Set>,
    /// Rows to send.
    pub get: Vec<(TableId, Vec<RowKey>)>,
    /// The version that the device's copy was built on.
    pub base: Option<Version>,
    /// The device's clock when it sent the request.
    pub sent_at: Option<Timestamp>,
    /// Whether one rejected row undoes the whole batch.
    pub atomic: bool,
    /// Whether to answer as if, and to keep nothing.
    pub dry_run: bool,
    /// Whether to send the changes since `base` along.
    pub pull: bool,
    /// Whether the device goes on under the lock.
    pub keep_lock: bool,
    /// Whether the rows under `add` and `update` are states that a server gave and may have lost since.
    pub put_back: bool,
    /// How many rows the device means to delete, where that is most of a table.
    pub confirm_deletes: Option<u64>,
}

impl Batch {
    /// How many rows it names.
    pub fn rows(&self) -> usize {
        let sent = [&self.add, &self.update, &self.delete].into_iter().flatten();
        let asked = self.get.iter().map(|(_, keys)| keys.len());
        sent.map(|(_, rows)| rows.len()).chain(asked).sum()
    }
}

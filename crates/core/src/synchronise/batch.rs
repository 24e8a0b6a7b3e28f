use crate::model::{RowKey, Timestamp, Version};
use crate::reconcile::{Incoming, Operation, RejectionCode};
use crate::schema::TableId;

/// The rows of one table under `add`, `update` or `delete`, in the order sent.
pub type Set = (TableId, Vec<Incoming>);

/// All that one request of phase 2 contains.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// Rows to create.
    pub add: Vec<Set>,
    /// Rows to change.
    pub update: Vec<Set>,
    /// Rows to delete.
    pub delete: Vec<Set>,
    /// Keys of the rows to return.
    pub get: Vec<(TableId, Vec<RowKey>)>,
    /// The version that the device's copy was built on.
    pub base: Option<Version>,
    /// The device's clock when it sent the request.
    pub sent_at: Option<Timestamp>,
    /// Whether one rejected row rolls back the whole batch.
    pub atomic: bool,
    /// Whether to return the results and write nothing.
    pub dry_run: bool,
    /// Whether to return the changes since `base` as well.
    pub pull: bool,
    /// Whether the device keeps the lock after this request.
    pub keep_lock: bool,
    /// Whether the rows under `add` and `update` are states that a server returned and may have lost since.
    pub put_back: bool,
    /// How many rows the device means to delete, if that is most of a table.
    pub confirm_deletes: Option<u64>,
    /// The rows and keys that cannot be read, in the order sent. The lists above do not contain them.
    pub unreadable: Vec<UnreadableItem>,
}

/// The four sets of rows and keys that a request may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Rows to create.
    Add,
    /// Rows to change.
    Update,
    /// Rows to delete.
    Delete,
    /// Keys of rows to return.
    Get,
}

impl Part {
    /// The name on the wire.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Add => "add",
            Self::Update => "update",
            Self::Delete => "delete",
            Self::Get => "get",
        }
    }
}

impl From<Operation> for Part {
    fn from(operation: Operation) -> Self {
        match operation {
            Operation::Add => Self::Add,
            Operation::Update => Self::Update,
            Operation::Delete => Self::Delete,
        }
    }
}

/// A row or key of a request that cannot be read.
#[derive(Clone, Debug, PartialEq)]
pub struct UnreadableItem {
    /// The set that contains it.
    pub part: Part,
    /// Its table.
    pub table: TableId,
    /// Its index in the list that was sent.
    pub index: usize,
    /// The row's key, as far as it can be read.
    pub key: SentKey,
    /// Why it cannot be read.
    pub fault: ValueFault,
}

/// The key of a row that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SentKey {
    /// It is a key.
    Read(RowKey),
    /// It is a text that is no key.
    Text(String),
    /// The key is missing, or cannot be sent back.
    None,
}

impl SentKey {
    /// About how many bytes it takes.
    pub fn weight(&self) -> usize {
        match self {
            Self::Read(_) => 16,
            Self::Text(text) => text.len(),
            Self::None => 0,
        }
    }
}

/// Why a row or key cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ValueFault {
    /// The stable code on the wire.
    pub code: RejectionCode,
    /// The member of the row at fault; `None` if it is the row as a whole.
    pub member: Option<String>,
    /// For people.
    pub detail: String,
}

impl Batch {
    /// A batch that reads what this one reads, and the rows of `keys`, and changes nothing.
    pub fn reading_again(&self, keys: impl IntoIterator<Item = (TableId, Vec<RowKey>)>) -> Self {
        let mut get = self.get.clone();
        for (table, keys) in keys {
            match get.iter_mut().find(|(of, _)| *of == table) {
                Some((_, list)) => list.extend(keys),
                None => get.push((table, keys)),
            }
        }
        Self { get, base: self.base, sent_at: self.sent_at, pull: self.pull, ..Self::default() }
    }

    /// How many rows the batch names.
    pub fn rows(&self) -> usize {
        let sent = [&self.add, &self.update, &self.delete].into_iter().flatten();
        let requested = self.get.iter().map(|(_, keys)| keys.len());
        sent.map(|(_, rows)| rows.len()).chain(requested).sum::<usize>() + self.unreadable.len()
    }
}

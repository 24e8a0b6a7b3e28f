use crate::model::{RowKey, Timestamp, Version};
use crate::reconcile::{Incoming, Operation, RejectionCode};
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
    /// What was sent among the rows and keys and cannot be read, in the order sent. The lists above do not have it.
    pub unreadable: Vec<UnreadableItem>,
}

/// The four sets of rows and keys that a request may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Rows to make.
    Add,
    /// Rows to change.
    Update,
    /// Rows to delete.
    Delete,
    /// Rows to send.
    Get,
}

impl Part {
    /// As the wire spells it.
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

/// A row or key that a request has and that cannot be read.
#[derive(Clone, Debug, PartialEq)]
pub struct UnreadableItem {
    /// In which set.
    pub part: Part,
    /// Of which table.
    pub table: TableId,
    /// Where in the list that was sent.
    pub index: usize,
    /// Which row, as far as that can be said.
    pub key: SentKey,
    /// Why.
    pub fault: ValueFault,
}

/// The key of a row that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SentKey {
    /// It is a key.
    Read(RowKey),
    /// It is a text that is no key.
    Text(String),
    /// There is none, or none that could be sent back.
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
    /// How many rows it names.
    pub fn rows(&self) -> usize {
        let sent = [&self.add, &self.update, &self.delete].into_iter().flatten();
        let requested = self.get.iter().map(|(_, keys)| keys.len());
        sent.map(|(_, rows)| rows.len()).chain(requested).sum::<usize>() + self.unreadable.len()
    }
}

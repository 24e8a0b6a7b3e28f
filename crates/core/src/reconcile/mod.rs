//! The rules: what becomes of one row that a device sends. Pure: no clock, no I/O, no HTTP.
//!
//! Read the table in `seen.rs` first, then `rules.rs`: they are the protocol's heart. Every case is written down once more as data
//! in `fixtures/reconcile`.

mod clock;
mod merge;
mod net;
mod past;
mod rules;
mod seen;
mod times;

use serde::{Deserialize, Serialize};

use crate::model::{DeviceId, Precision, RowKey, Stored, Timestamp, Value, Version};

pub use clock::{Skew, TOLERATED_SKEW_MS};
pub use merge::{Merged, merge, union_bytes};
pub use net::{Net, net};
pub use past::{Others, Past, needs_past};
pub use rules::{is_conflict, settle};
pub use times::AHEAD_UNITS_MAX;

/// What a device wants done with a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Operation {
    /// Make it.
    Add,
    /// Change it.
    Update,
    /// Delete it.
    Delete,
}

/// One row as a device sends it.
#[derive(Clone, Debug, PartialEq)]
pub struct Incoming {
    /// Which row.
    pub key: RowKey,
    /// One place for each declared column; `None` was left out. Empty under `delete`.
    pub values: Vec<Option<Value>>,
    /// When the device made the edit, by the corrected clock; `None` means now.
    pub last_update: Option<Timestamp>,
    /// The same by the device's own clock, as it was sent. A deletion, or an edit, without a time of its own has that
    /// of the request, if the request gives one.
    pub claimed_at: Option<Timestamp>,
    /// The `last_update` that the row had when the edit began (`_base`).
    pub base: Option<Timestamp>,
}

/// What the rules need to know of the request that a row came with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Context {
    /// Who sent it.
    pub device: DeviceId,
    /// The version that the device's copy was built on.
    pub base: Option<Version>,
    /// Whether the device has changed nothing: it sends states that a server gave and may have lost since.
    pub put_back: bool,
    /// The version that this request's own changes get.
    pub writing: Version,
    /// The server's time.
    pub now: Timestamp,
    /// How finely times are kept.
    pub precision: Precision,
    /// The most that one row may weigh, bytes.
    pub row_bytes_max: usize,
}

/// What became of a row, as the device is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It was made.
    Added,
    /// It was changed.
    Updated,
    /// It was joined with what somebody else had changed.
    Merged,
    /// It was deleted.
    Deleted,
    /// Nothing changed: a replay, or the row was like this already.
    Same,
    /// The server's row won; it comes with the answer.
    Kept,
    /// It was deleted on the server: delete yours.
    Gone,
    /// The server holds nothing under this key, not even a tombstone.
    Absent,
    /// It breaks a rule of the schema; the error says which.
    Rejected,
}

impl Verdict {
    /// As the wire spells it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Added => "added",
            Self::Updated => "updated",
            Self::Merged => "merged",
            Self::Deleted => "deleted",
            Self::Same => "same",
            Self::Kept => "kept",
            Self::Gone => "gone",
            Self::Absent => "absent",
            Self::Rejected => "rejected",
        }
    }
}

/// What the rules decide for one row.
#[derive(Clone, Debug, PartialEq)]
pub enum Settled {
    /// The row, or its tombstone, is to be written.
    Written {
        /// What the device is told.
        verdict: Verdict,
        /// The row as it shall be.
        row: Stored,
        /// Whether the device cannot know the whole row and is to be told it.
        echo: bool,
        /// How a true conflict ended, if somebody lost by it.
        conflict: Option<Resolution>,
    },
    /// Nothing is to be written.
    Left {
        /// What the device is told.
        verdict: Verdict,
        /// Whether the device cannot know the whole row and is to be told it.
        echo: bool,
        /// How a true conflict ended, if somebody lost by it.
        conflict: Option<Resolution>,
    },
    /// The row breaks a rule of the schema. Nothing is to be written.
    Rejected(Rejection),
}

/// How a true conflict ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Resolution {
    /// The server's state stayed: what the device sent lost.
    Kept,
    /// What the device sent took its place: the server's state lost.
    Overwritten,
    /// Both are in the row, but for columns that both had changed.
    Merged,
}

impl Resolution {
    /// Every resolution.
    pub const ALL: [Self; 3] = [Self::Kept, Self::Overwritten, Self::Merged];

    /// As the wire spells it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kept => "kept",
            Self::Overwritten => "overwritten",
            Self::Merged => "merged",
        }
    }
}

/// Which rule of the schema a row breaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// The stable code on the wire.
    pub code: RejectionCode,
    /// The column at fault, by its place.
    pub column: Option<usize>,
    /// For people.
    pub detail: String,
}

impl RejectionCode {
    /// After how many seconds the same row may be taken, if time alone mends it.
    pub const fn retry_after_s(self) -> Option<u32> {
        match self {
            // One unit of time is free again after at most a second, in either precision.
            Self::TooManyEdits => Some(1),
            _ => None,
        }
    }
}

/// Why a row cannot be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RejectionCode {
    /// A value is not of its column's type, or what was sent is no row.
    WrongType,
    /// The key is missing or no UUID.
    InvalidKey,
    /// A value that no column can hold: text that is no Unicode, JSON that is too deep, a member that comes twice.
    InvalidValue,
    /// A required column has no value.
    RequiredMissing,
    /// A value is longer than its column allows.
    TooLong,
    /// The row is larger than `row_bytes_max`.
    RowTooLarge,
    /// It refers to a row that is not there.
    ReferenceMissing,
    /// Other rows refer to it.
    StillReferenced,
    /// The row changed so often within a moment that its times would run ahead of the clock.
    TooManyEdits,
}

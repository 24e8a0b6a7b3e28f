//! The rules: what becomes of one row that a device sends. Pure: no clock, no I/O, no HTTP.
//!
//! [`settle`] decides in this order:
//!
//! 1. A value that its column cannot take is rejected (`checks`).
//! 2. What the server does not hold is created, or there is nothing to change.
//! 3. `BaseState` says which state of the row the device knew, and whose the last change is.
//! 4. A table decides by that and by the policy: `ruling` for a live row,
//!    `revival` for a deleted one. `edit` has one more, for edits that were merged before.
//! 5. `stamp` gives the new state its times.
//!
//! Every case is in `fixtures/reconcile` as data.

mod base_state;
mod checks;
mod clock;
mod edit;
mod history;
mod merge;
mod net;
mod rules;
mod ruling;
mod times;

use serde::{Deserialize, Serialize};

use crate::model::{DeviceId, Precision, RowKey, Stored, Timestamp, Value, Version};

pub use clock::{Skew, TOLERATED_SKEW_MS};
pub use history::{ForeignEdits, RowHistory, needs_history};
pub use merge::{Merged, merge, union_bytes};
pub use net::{NetChange, net_change};
pub use rules::settle;
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
    /// One entry for each declared column; `None` was left out. Empty under `delete`.
    pub values: Vec<Option<Value>>,
    /// When the device made the edit, by the corrected clock; `None` means now.
    pub last_update: Option<Timestamp>,
    /// The same time by the device's own clock, as it was sent. A deletion, or an edit, without its own time
    /// gets that of the request, if the request has one.
    pub claimed_at: Option<Timestamp>,
    /// The `last_update` that the row had when the edit began (`_base`).
    pub base: Option<Timestamp>,
}

/// What the rules need to know about the request of a row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Context {
    /// The device that sent it.
    pub device: DeviceId,
    /// The version that the device's copy was built on.
    pub base: Option<Version>,
    /// Whether the device has changed nothing: it sends states that a server returned and may have lost
    /// since.
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

/// The result of a row, as returned to the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It was made.
    Added,
    /// It was changed.
    Updated,
    /// It was merged with a change of another device.
    Merged,
    /// It was deleted.
    Deleted,
    /// Nothing changed: it is a replay, or the row already had these values.
    Same,
    /// The server's row won; the response contains it.
    Kept,
    /// It was deleted on the server: the device deletes its copy.
    Gone,
    /// The server holds nothing under this key, not even a tombstone.
    Absent,
    /// It breaks a rule of the schema; the error says which.
    Rejected,
}

impl Verdict {
    /// The name on the wire.
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

/// What the rules decide for one row that breaks no rule of the schema.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// What the response says of the row.
    pub verdict: Verdict,
    /// The row, or its tombstone, as it is to be written; `None` if nothing is.
    pub write: Option<Stored>,
    /// Whether the device cannot know the whole row, so that the response has to contain it.
    pub echo: bool,
    /// How a true conflict ended, if an edit was lost.
    pub conflict: Option<Resolution>,
}

impl Decision {
    fn unwritten(verdict: Verdict) -> Self {
        Self { verdict, write: None, echo: false, conflict: None }
    }

    /// The server's row stays, and the response contains it; with `note`, what was sent is kept as a conflict.
    fn kept(note: bool) -> Self {
        Self { echo: true, conflict: note.then_some(Resolution::Kept), ..Self::unwritten(Verdict::Kept) }
    }
}

/// How a true conflict ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Resolution {
    /// The server's state stayed: what the device sent lost.
    Kept,
    /// What the device sent took its place: the server's state lost.
    Overwritten,
    /// Both are in the row, except the columns that both had changed.
    Merged,
}

impl Resolution {
    /// Every resolution.
    pub const ALL: [Self; 3] = [Self::Kept, Self::Overwritten, Self::Merged];

    /// The name on the wire.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kept => "kept",
            Self::Overwritten => "overwritten",
            Self::Merged => "merged",
        }
    }
}

/// The rule of the schema that a row breaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// The stable code on the wire.
    pub code: RejectionCode,
    /// The index of the column at fault.
    pub column: Option<usize>,
    /// For people.
    pub detail: String,
}

impl RejectionCode {
    /// After how many seconds the same row may be accepted, if waiting is enough.
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
    /// A value does not have its column's type, or the item is not a row.
    WrongType,
    /// The key is missing or no UUID.
    InvalidKey,
    /// A value that no column can hold: invalid Unicode, JSON that nests too deep, a duplicate member.
    InvalidValue,
    /// A required column has no value.
    RequiredMissing,
    /// A value is longer than its column allows.
    TooLong,
    /// The row is larger than `row_bytes_max`.
    RowTooLarge,
    /// It refers to a row that does not exist.
    ReferenceMissing,
    /// Other rows refer to it.
    StillReferenced,
    /// The row changed so often within a moment that its times would run ahead of the clock.
    TooManyEdits,
    /// The caller's role at the owner does not include the change.
    NotAllowed,
}

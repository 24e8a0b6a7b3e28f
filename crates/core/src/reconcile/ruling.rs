use super::base_state::{BaseState, Order};
use super::{ForeignEdits, RowHistory};
use crate::broken;
use crate::schema::Policy;

/// The outcome of a change to a live row that the server holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ruling {
    /// The change is applied; with `note`, the state that it replaces is kept as a conflict.
    Apply {
        /// Whether an edit may be lost.
        note: bool,
    },
    /// The change and the row are merged column by column. A deletion is treated as under `newest`.
    Merge,
    /// The row's last change is the device's own, and was merged with edits that the device may not have seen: see
    /// the second table of [`super::edit`].
    MergeAgain,
    /// The row stays as it is; with `note`, what was sent is kept as a conflict.
    Keep {
        /// Whether an edit may be lost.
        note: bool,
    },
}

/// The rules of reconciliation, as one table.
///
/// | the device knew | last change by | this change is | `newest` | `merge` | `client` | `server`, `manual` |
/// | --- | --- | --- | --- | --- | --- | --- |
/// | the present state | any device | any | apply | apply | apply | apply |
/// | an earlier state, or none named | itself | a late copy | keep, note ¹ | keep, note ¹ | keep, note ¹ | keep, note ¹ |
/// | an earlier state, or none named | itself | earlier | keep, note | keep, note | keep, note | keep, note |
/// | none named | itself | later | apply | apply | apply | apply |
/// | none named | itself | unclear | apply, note | apply, note | apply, note | apply, note |
/// | an earlier state | itself | later, unclear | apply, note | apply, note ² | apply, note | apply, note |
/// | an earlier state | another device | newer | apply, note | merge | apply, note | keep, note |
/// | an earlier state | another device | not newer | keep, note | merge | apply, note | keep, note |
/// | none named | another device | newer | apply | apply | apply | apply |
/// | none named | another device | not newer | keep | keep | keep | keep |
/// | puts back what a restored server lost | another device, since | newer | apply, note | apply, note | apply, note | apply, note |
/// | puts back what a restored server lost | another device, since | not newer | keep, note | keep, note | keep, note | keep, note |
///
/// 1. Nothing is noted if the history has the state that the change made: it was in the row once.
/// 2. Merge again, if other devices changed the row before the device's own last change.
///
/// - That a device made the last change itself does not prove that it knows that change: two phones may share
///   a token. So everything that it overwrites is recorded, unless it named no state and made this change
///   later.
/// - "Late copy", "earlier", "later" and "unclear" compare what one device reported about two changes
///   ([`Order`]). "Newer" compares the true times of changes of two devices
///   ([`super::base_state::is_newer`]).
pub(super) fn ruling(policy: Policy, base_state: BaseState, is_newer: bool, history: &RowHistory) -> Ruling {
    use Ruling::{Apply, Keep, Merge, MergeAgain};
    let merges = policy == Policy::Merge && !broken::is("merge_takes_last");
    let has_foreign_edits = history.foreign_edits != ForeignEdits::None;
    let by_time = |note| if is_newer { Apply { note } } else { Keep { note } };
    match (base_state, policy) {
        (BaseState::Current, _) => Apply { note: false },

        (BaseState::OwnWrite(Order::LateCopy) | BaseState::OwnWriteUnnamed(Order::LateCopy), _) => {
            Keep { note: !history.was_written }
        }
        (BaseState::OwnWrite(Order::Earlier) | BaseState::OwnWriteUnnamed(Order::Earlier), _) => {
            Keep { note: true }
        }
        (BaseState::OwnWriteUnnamed(Order::Later), _) => Apply { note: false },
        (BaseState::OwnWrite(_), Policy::Merge) if merges && has_foreign_edits => MergeAgain,
        (BaseState::OwnWrite(_) | BaseState::OwnWriteUnnamed(_), _) => {
            Apply { note: !broken::is("own_overwrite_not_noted") }
        }

        (BaseState::Stale, Policy::Server | Policy::Manual) => Keep { note: true },
        (BaseState::Stale, Policy::Client) => Apply { note: true },
        (BaseState::Stale, Policy::Merge) if merges => Merge,
        (BaseState::Stale, Policy::Newest | Policy::Merge) => by_time(true),
        (BaseState::Unknown, _) => by_time(false),
        (BaseState::PutBack, _) => by_time(true),
    }
}

/// The outcome of an edit of a deleted row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Revival {
    /// The row comes back; with `note`, the deletion is kept as a conflict.
    Revive {
        /// Whether a deletion may be lost.
        note: bool,
    },
    /// It stays deleted; with `note`, what was sent is kept as a conflict.
    StayDeleted {
        /// Whether an edit may be lost.
        note: bool,
    },
}

/// What the table for deleted rows needs to know about an edit, in addition to [`BaseState`] and [`Policy`].
pub(super) struct RevivalFacts {
    /// The device gave a time, and it is later than the deletion. An edit without a time never beats a
    /// tombstone: it would revive a row that the device merely still had.
    pub is_later: bool,
    /// The device means to revive the row: it adds the row, or names the deletion in `_base`.
    pub is_explicit: bool,
    /// The edit is an `add` with a time of its own.
    pub is_timed_add: bool,
    /// The history has the state that the edit made: see [`RowHistory::was_written`].
    pub was_written: bool,
}

/// The rules for a deleted row, as one table. It is the table of [`ruling`], except that a doubt leaves the
/// row deleted.
///
/// | the device knew | deleted by | this edit is | `newest`, `merge` | `client` | `server`, `manual` |
/// | --- | --- | --- | --- | --- | --- |
/// | the deletion | any device | explicit, or later | revive | revive | revive |
/// | the deletion | any device | neither | stay | stay | stay |
/// | an earlier state, or none named | itself | a late copy | stay, note ¹ | stay, note ¹ | stay, note ¹ |
/// | an earlier state, or none named | itself | earlier | stay, note | stay, note | stay, note |
/// | an earlier state, or none named | itself | unclear, an add with a time | revive, note | revive, note | revive, note |
/// | an earlier state, or none named | itself | unclear, any other | stay, note | stay, note | stay, note |
/// | an earlier state | itself | later | revive, note | revive, note | revive, note |
/// | none named | itself | later | revive | revive | revive |
/// | an earlier state | another device | later | revive, note | revive, note | stay, note |
/// | an earlier state | another device | not later | stay, note | revive, note | stay, note |
/// | none named | another device | later | revive | revive | revive |
/// | none named | another device | not later | stay | stay | stay |
/// | puts back what a restored server lost | another device, since | later | revive, note | revive, note | revive, note |
/// | puts back what a restored server lost | another device, since | not later | stay | stay | stay |
///
/// 1. Nothing is noted if the history has the state that the edit made: it was in the row once.
///
/// - That the deletion was the device's own proves nothing: this may be a request from before the deletion,
///   sent again.
/// - Within one unit of time, an add undoes the deletion, and an update counts as made before it.
/// - A state that is put back is not an edit: nothing is lost if the row stays deleted.
pub(super) fn revival(policy: Policy, base_state: BaseState, edit: &RevivalFacts) -> Revival {
    let revive_if = |revives, note| match revives {
        true => Revival::Revive { note },
        false => Revival::StayDeleted { note },
    };
    match (base_state, policy) {
        (BaseState::Current, _) => revive_if(edit.is_explicit || edit.is_later, false),

        (BaseState::Stale, Policy::Client) => Revival::Revive { note: true },
        (BaseState::Stale, Policy::Server | Policy::Manual) => Revival::StayDeleted { note: true },
        (BaseState::Stale, Policy::Newest | Policy::Merge) => revive_if(edit.is_later, true),
        _ if broken::is("deletion_forgiven") => Revival::Revive { note: true },
        (BaseState::Unknown, _) => revive_if(edit.is_later, false),
        (BaseState::PutBack, _) => revive_if(edit.is_later, edit.is_later),

        (BaseState::OwnWriteUnnamed(Order::Later), _) => Revival::Revive { note: false },
        (BaseState::OwnWrite(order) | BaseState::OwnWriteUnnamed(order), _) => match order {
            Order::LateCopy => Revival::StayDeleted { note: !edit.was_written },
            Order::Earlier => Revival::StayDeleted { note: true },
            Order::Unclear => revive_if(edit.is_timed_add, true),
            Order::Later => Revival::Revive { note: true },
        },
    }
}

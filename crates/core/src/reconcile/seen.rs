use super::{Context, Incoming};
use crate::broken;
use crate::model::{Claim, Stored, Timestamp};
use crate::schema::Policy;

/// What a device knew of a row when it changed it, and whose the row's last change is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// The device knew the present state, or this very request made it.
    Latest,
    /// The device named an earlier state, and it made the last change since itself: its answer was lost, this is an
    /// old request, or the device is one of two that share a token.
    Own(Turn),
    /// The device named no state, and it made the last change itself.
    OwnUntold(Turn),
    /// The device named an earlier state, and another device has changed the row since: a true conflict.
    Earlier,
    /// The device named no state, and another device made the last change.
    Untold,
    /// The device has changed nothing. It gives back a state that a server gave, and somebody has written another
    /// one since the server forgot it: who loses is to be noted.
    Parted,
}

/// When a device made a change, compared with its own change that the server holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// Before: it was built on an earlier state than the stored change was. So it is a late copy of a request.
    Late,
    /// Before, by the times that the device gave for both. Its clock may have stepped back since.
    Older,
    /// At the same time, or at a time that cannot be compared.
    Unclear,
    /// After it, by the times that the device gave for both.
    Newer,
}

/// What the device knew of a row that the server holds, alive or deleted.
pub(super) fn seen(row: &Stored, incoming: &Incoming, context: &Context) -> Seen {
    let is_own = row.changed_by == context.device;
    if context.put_back {
        // What stands there as it stood in the backup is what the device's state came after, or was before.
        let stood_there = row.version.epoch() < context.writing.epoch();
        return if stood_there || is_own { Seen::Untold } else { Seen::Parted };
    }
    let knows = match (incoming.base, context.base) {
        _ if row.version == context.writing => true, // this very request wrote it
        (None, None) if is_own => return Seen::OwnUntold(turn(row, incoming, context)),
        (None, None) => return Seen::Untold,
        (Some(base), _) => base.truncated(context.precision) == row.last_update,
        (None, Some(base)) => row.version <= base,
    };
    match knows {
        true => Seen::Latest,
        false if is_own => Seen::Own(turn(row, incoming, context)),
        false => Seen::Earlier,
    }
}

/// Compares a change with the stored one, which the same device made.
fn turn(row: &Stored, incoming: &Incoming, context: &Context) -> Turn {
    if incoming.claim(context).is_built_before(&row.claim) && !broken::is("late_copy_applied") {
        return Turn::Late;
    }
    let names_base = incoming.base.is_some() || context.base.is_some();
    let order = match (incoming.claimed_at, row.claim.at) {
        (Some(own), Some(stored)) => own.cmp(&stored),
        // No time means now, and so does not show that the device knew the stored change.
        (None, _) => return Turn::Unclear,
        // Where the stored change gave no time there is only the server's own. It decides where nothing else is
        // known, and a deletion is never taken back on a doubt.
        (Some(_), None) if names_base && !row.is_tombstone() => return Turn::Unclear,
        (Some(own), None) => incoming.last_update.unwrap_or(own).cmp(&row.true_time()),
    };
    match order {
        std::cmp::Ordering::Less => Turn::Older,
        std::cmp::Ordering::Equal => Turn::Unclear,
        std::cmp::Ordering::Greater => Turn::Newer,
    }
}

/// What becomes of a change to a row that the server holds, alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ruling {
    /// The change is applied; with `note`, what it overwrites is kept as a conflict.
    Apply {
        /// Whether somebody may lose by it.
        note: bool,
    },
    /// The change and the row are joined column by column; a deletion is treated as under `newest`.
    Join,
    /// The row stays as it is; with `note`, what was sent is kept as a conflict.
    Keep {
        /// Whether somebody may lose by it.
        note: bool,
    },
}

/// The rules of reconciliation, as one table.
///
/// | the device knew | last change by | | `newest` | `merge` | `client` | `server`, `manual` |
/// | --- | --- | --- | --- | --- | --- | --- |
/// | the present state | anyone | | apply | apply | apply | apply |
/// | an earlier state | itself | late copy | keep | keep | keep | keep |
/// | an earlier state, or none named | itself | older time | keep, note | keep, note | keep, note | keep, note |
/// | an earlier state | itself | else | apply, note | apply or join, note | apply, note | apply, note |
/// | none named | itself | newer time | apply | apply | apply | apply |
/// | none named | itself | else | apply, note | apply, note | apply, note | apply, note |
/// | an earlier state | another device | | newer applies, note | join, note | apply, note | keep, note |
/// | none named | another device | | newer applies | newer applies | newer applies | newer applies |
/// | puts back what a restored server lost | another device, since | | newer applies, note | the same | the same | the same |
///
/// - A late copy is noted too, unless the state that it made is remembered: then it was in the row once.
/// - That a device made the last change itself does not prove that it knows it: two phones may share a token. So
///   whatever it overwrites is noted, unless it named no state and made this change later.
/// - `is_newer`: whether the change was made after the stored one.
/// - `was_written`: whether the device's change is among the states of the row that are remembered.
pub(super) fn ruling(policy: Policy, seen: Seen, is_newer: bool, was_written: bool) -> Ruling {
    use Ruling::{Apply, Join, Keep};
    let by_time = |note| if is_newer { Apply { note } } else { Keep { note } };
    match (seen, policy) {
        (Seen::Latest, _) => Apply { note: false },

        (Seen::Own(Turn::Late) | Seen::OwnUntold(Turn::Late), _) => Keep { note: !was_written },
        (Seen::Own(Turn::Older) | Seen::OwnUntold(Turn::Older), _) => Keep { note: true },
        (Seen::OwnUntold(Turn::Newer), _) => Apply { note: false },
        (Seen::Own(_) | Seen::OwnUntold(_), _) => Apply { note: !broken::is("own_overwrite_not_noted") },

        (Seen::Earlier, Policy::Server | Policy::Manual) => Keep { note: true },
        (Seen::Earlier, Policy::Client) => Apply { note: true },
        (Seen::Earlier, Policy::Merge) if !broken::is("merge_takes_last") => Join,
        (Seen::Earlier, Policy::Newest | Policy::Merge) => by_time(true),
        (Seen::Untold, _) => by_time(false),
        (Seen::Parted, _) => by_time(true),
    }
}

/// Whether a change was made after the stored one. No time given means now, and now is later than anything stored;
/// on a tie the server's row stays.
pub(super) fn is_newer(row: &Stored, at: Option<Timestamp>) -> bool {
    let stored = if broken::is("judged_by_risen_time") { row.last_update } else { row.true_time() };
    at.is_none_or(|at| at > stored)
}

impl Incoming {
    /// What the device says of the change.
    pub(super) fn claim(&self, context: &Context) -> Claim {
        let row_base = self.base.map(|base| base.truncated(context.precision));
        Claim { at: self.claimed_at, row_base, base: context.base }
    }
}

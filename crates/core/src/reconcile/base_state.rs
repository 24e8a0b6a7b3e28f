use std::cmp::Ordering;

use super::{Context, Incoming};
use crate::broken;
use crate::model::{Claim, Stored, Timestamp};

/// Which state of the row the device changed, as far as the request shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BaseState {
    /// The present state, or this very request made it.
    Current,
    /// The device named an earlier state, and its own change replaced that one since: the response was lost, this is
    /// an old request, or two devices share a token.
    OwnWrite(Order),
    /// The device named no state, and it made the last change itself.
    OwnWriteUnnamed(Order),
    /// The device named an earlier state, and another device has changed the row since: a true conflict.
    Stale,
    /// The device named no state, and another device made the last change.
    Unknown,
    /// The device changed nothing. It puts back a state that a restored server lost, and another device has written
    /// the row since the restore.
    PutBack,
}

/// When a device made a change, compared with its own change that the server holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// Before: it was built on an earlier state than the stored change was. So it is a late copy of a request.
    LateCopy,
    /// Before, by the times that the device gave for both. Its clock may have been set back in between.
    Earlier,
    /// At the same time, or at a time that cannot be compared.
    Unclear,
    /// After it, by the times that the device gave for both.
    Later,
}

/// Which state the device changed of a row that the server holds, alive or deleted.
pub(super) fn base_state(row: &Stored, incoming: &Incoming, context: &Context) -> BaseState {
    let is_own = row.changed_by == context.device;
    if context.put_back {
        // A row that was not written since the restore is as in the backup; the device's state is older or
        // newer than that.
        let is_of_backup = row.version.epoch() < context.writing.epoch();
        return if is_of_backup || is_own { BaseState::Unknown } else { BaseState::PutBack };
    }
    let is_current = match (incoming.base, context.base) {
        _ if row.version == context.writing => true, // this very request wrote it
        (None, None) if is_own => return BaseState::OwnWriteUnnamed(order(row, incoming, context)),
        (None, None) => return BaseState::Unknown,
        (Some(base), _) => base.truncated(context.precision) == row.last_update,
        (None, Some(base)) => row.version <= base,
    };
    match is_current {
        true => BaseState::Current,
        false if is_own => BaseState::OwnWrite(order(row, incoming, context)),
        false => BaseState::Stale,
    }
}

/// Compares a change with the stored one, which the same device made.
fn order(row: &Stored, incoming: &Incoming, context: &Context) -> Order {
    if incoming.claim(context).is_built_before(&row.claim) && !broken::is("late_copy_applied") {
        return Order::LateCopy;
    }
    let names_base = incoming.base.is_some() || context.base.is_some();
    let order = match (incoming.claimed_at, row.claim.at) {
        (Some(own), Some(stored)) => own.cmp(&stored),
        // No time means now, so it does not show that the device knew the stored change.
        (None, _) => return Order::Unclear,
        // If the stored change has no time of its device, only the server's own time can be compared. It
        // decides where nothing else is known. A doubt never takes a deletion back.
        (Some(_), None) if names_base && !row.is_tombstone() => return Order::Unclear,
        (Some(own), None) => incoming.last_update.unwrap_or(own).cmp(&row.true_time()),
    };
    match order {
        Ordering::Less => Order::Earlier,
        Ordering::Equal => Order::Unclear,
        Ordering::Greater => Order::Later,
    }
}

/// Whether the change was made after the stored one. A change without a time counts as made now, later than
/// anything stored. On a tie the server's row stays.
pub(super) fn is_newer(row: &Stored, at: Option<Timestamp>) -> bool {
    let stored = if broken::is("judged_by_risen_time") { row.last_update } else { row.true_time() };
    at.is_none_or(|at| at > stored)
}

impl Incoming {
    /// What the device reports about the change.
    pub(super) fn claim(&self, context: &Context) -> Claim {
        let row_base = self.base.map(|base| base.truncated(context.precision));
        Claim { at: self.claimed_at, row_base, base: context.base }
    }
}

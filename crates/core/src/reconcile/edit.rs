//! An edit of a live row that the server holds.
//!
//! The table of [`ruling`](super::ruling::ruling) decides. Where it has "merge again", a second table
//! decides, since the device may or may not have seen the row that its own last change was merged into. The
//! edit is merged again with the state that other devices had left before that change. So a change counts
//! once, however often it is sent:
//!
//! | what other devices had left is | the device named | this change is | the merge changes nothing | it changes the row |
//! | --- | --- | --- | --- | --- |
//! | known | `_base` | any | replay | merge, note the row |
//! | known | `base` | not shown to be later | replay | overwrite, note |
//! | known | `base` | later | overwrite, note | overwrite, note |
//! | known without the ancestor | `_base` | later | replay | merge, note lost columns |
//! | known without the ancestor | `_base` | not shown to be later | replay | keep, note |
//! | known without the ancestor | `base` | not later | replay | keep, note |
//! | known without the ancestor | `base` | unclear | replay | overwrite, note |
//! | known without the ancestor | `base` | later | overwrite, note | overwrite, note |
//! | forgotten | `_base` | later | keep, note lost columns | merge, note lost columns |
//! | forgotten | `_base` | not shown to be later | keep, note | keep, note |
//! | forgotten | `base` | not later | keep, note | keep, note |
//! | forgotten | `base` | later, unclear | overwrite, note | overwrite, note |
//!
//! - `_base` proves that the device has not seen the result of its own change. `base` does not: the response
//!   may have arrived, and the cursor is behind because of what others wrote in between.
//! - A replay is in the row already, as far as it can be. What it lost was recorded the first time under the
//!   same id. It is recorded again, in case this is another edit with the same loss.
//! - What cannot be repeated is not merged twice, since that would undo edits of other devices. It counts as
//!   a replay and is recorded, so that nothing is lost if it was not one.

use super::base_state::{BaseState, base_state, is_newer};
use super::checks::check_row_size;
use super::merge::{Merged, merge};
use super::ruling::{Ruling, ruling};
use super::times::stamp;
use super::{
    Context, Decision, ForeignEdits, Incoming, Operation, Rejection, Resolution, RowHistory, Verdict,
};
use crate::model::{Stored, Timestamp, Value};
use crate::schema::Table;

/// An edit, and the live row that it changes.
pub(super) struct Edit<'a> {
    table: &'a Table,
    row: &'a Stored,
    /// The columns of `row`.
    values: &'a [Value],
    history: &'a RowHistory,
    operation: Operation,
    incoming: &'a Incoming,
    context: &'a Context,
    base_state: BaseState,
}

/// What is known of the edits that the device's own last change was merged with.
enum KnownEdits {
    /// The state that they left, and the ancestor if one existed.
    All,
    /// The state that they left, without the ancestor.
    NoAncestor,
    /// Nothing.
    Nothing,
}

impl<'a> Edit<'a> {
    pub fn new(
        table: &'a Table,
        (row, values): (&'a Stored, &'a [Value]),
        history: &'a RowHistory,
        operation: Operation,
        incoming: &'a Incoming,
        context: &'a Context,
    ) -> Self {
        let base_state = base_state(row, incoming, context);
        Self { table, row, values, history, operation, incoming, context, base_state }
    }

    pub fn decide(&self) -> Result<Decision, Rejection> {
        if !self.changes_a_column() {
            return Ok(Decision { echo: self.misses_columns(), ..Decision::unwritten(Verdict::Same) });
        }
        let is_newer = is_newer(self.row, self.incoming.last_update);
        match ruling(self.table.policy, self.base_state, is_newer, self.history) {
            Ruling::Keep { note } => Ok(Decision::kept(note)),
            Ruling::Apply { note } => self.overwrite(note),
            Ruling::Merge => self.merge_with_row(),
            Ruling::MergeAgain => self.merge_again(),
        }
    }

    fn changes_a_column(&self) -> bool {
        let changes = |(new, old): (&Option<Value>, &Value)| new.as_ref().is_some_and(|new| new != old);
        self.incoming.values.iter().zip(self.values).any(changes)
    }

    /// Whether the device cannot know the columns that it left out. A device that adds a row which the server holds
    /// has not seen the defaults that the server filled in.
    fn misses_columns(&self) -> bool {
        let is_partial = self.incoming.values.iter().any(Option::is_none);
        is_partial && (self.base_state != BaseState::Current || self.operation == Operation::Add)
    }

    fn overwrite(&self, note: bool) -> Result<Decision, Rejection> {
        let columns = self.incoming.values.iter().zip(self.values);
        let values = columns.map(|(new, old)| new.as_ref().unwrap_or(old).clone()).collect();
        self.write(Verdict::Updated, values, note.then_some(Resolution::Overwritten))
    }

    /// Merges the edit with the row, whose last change is another device's.
    fn merge_with_row(&self) -> Result<Decision, Rejection> {
        let merged = self.merge_with(self.values, self.row.true_time());
        if merged.values == self.values {
            return Ok(Decision::kept(merged.is_contested()));
        }
        let conflict = merged.is_contested().then_some(Resolution::Merged);
        self.write(Verdict::Merged, merged.values, conflict)
    }

    /// The row's last change is the device's own and was merged with edits of other devices: the second table
    /// of this module.
    fn merge_again(&self) -> Result<Decision, Rejection> {
        let merged = self.merge_with_foreign_state();
        let is_contested = merged.is_contested();
        let changes_nothing = merged.values == self.values;
        let names_row_base = self.incoming.base.is_some();
        match (self.known_edits(), names_row_base, self.is_later()) {
            (KnownEdits::All | KnownEdits::NoAncestor, true, _) if changes_nothing => {
                Ok(replay(is_contested))
            }
            (KnownEdits::All | KnownEdits::NoAncestor, false, Some(false) | None) if changes_nothing => {
                Ok(replay(is_contested))
            }
            (KnownEdits::All, true, _) => {
                self.write(Verdict::Merged, merged.values, Some(Resolution::Overwritten))
            }
            (KnownEdits::NoAncestor | KnownEdits::Nothing, true, Some(true)) if changes_nothing => {
                Ok(Decision::kept(is_contested))
            }
            (KnownEdits::NoAncestor | KnownEdits::Nothing, true, Some(true)) => {
                self.write(Verdict::Merged, merged.values, is_contested.then_some(Resolution::Merged))
            }
            (KnownEdits::NoAncestor | KnownEdits::Nothing, true, Some(false) | None) => {
                Ok(Decision::kept(true))
            }
            (KnownEdits::NoAncestor | KnownEdits::Nothing, false, Some(false)) => Ok(Decision::kept(true)),
            (_, false, _) => self.overwrite(true),
        }
    }

    fn known_edits(&self) -> KnownEdits {
        let is_incomplete = self.history.is_incomplete(self.row, self.incoming, self.context);
        match &self.history.foreign_edits {
            ForeignEdits::Forgotten => KnownEdits::Nothing,
            ForeignEdits::Last(_) if is_incomplete => KnownEdits::NoAncestor,
            ForeignEdits::Last(_) | ForeignEdits::None => KnownEdits::All,
        }
    }

    /// Whether the change was made after the stored one of the same device; `None` if that is unknown.
    fn is_later(&self) -> Option<bool> {
        if let Some((own, stored)) = self.incoming.claimed_at.zip(self.row.claim.at) {
            return Some(own > stored);
        }
        // A time in the future comes from a clock that is ahead. It was reduced to now, so the same edit does
        // not show it again.
        let at = self.incoming.last_update.filter(|at| *at <= self.context.now);
        at.map(|at| at > self.row.true_time())
    }

    fn merge_with_foreign_state(&self) -> Merged {
        match self.history.foreign_state(self.table.policy, self.row, self.incoming, self.context) {
            Some(state) => self.merge_with(&state.values, state.true_time()),
            None => self.merge_with(self.values, self.row.true_time()),
        }
    }

    /// Merges the sent columns with a state of the row that was made at `theirs_at`.
    fn merge_with(&self, theirs: &[Value], theirs_at: Timestamp) -> Merged {
        let is_newer = self.incoming.last_update.is_none_or(|own| own > theirs_at);
        let (ancestor, sent) = (self.history.ancestor.as_deref(), &self.incoming.values);
        let row_bytes_max = self.context.row_bytes_max;
        let mut merged = merge(&self.table.columns, ancestor, theirs, sent, is_newer, row_bytes_max);
        // A column that is not sent now keeps the value of earlier writes.
        for (i, _) in sent.iter().enumerate().filter(|(_, given)| given.is_none()) {
            merged.values[i] = self.values[i].clone();
        }
        merged
    }

    /// Replaces the row's columns.
    fn write(
        &self,
        verdict: Verdict,
        values: Vec<Value>,
        conflict: Option<Resolution>,
    ) -> Result<Decision, Rejection> {
        let Self { row, incoming, context, .. } = *self;
        check_row_size(&values, context)?;
        let is_as_sent = incoming.values.iter().zip(&values).all(|(sent, new)| sent.as_ref() == Some(new));
        let is_joined = verdict == Verdict::Merged && !is_as_sent && incoming.last_update.is_some();
        let times = stamp(incoming.last_update, Some(row), is_joined, context)?;
        let updated = Stored {
            version: context.writing,
            created: row.created,
            last_update: times.last_update,
            made_at: times.made_at,
            claim: incoming.claim(context),
            made_by: row.made_by,
            changed_by: context.device,
            lifetimes: row.lifetimes.clone(),
            aware_devices: row.aware_devices_before(row.made_by, context.device),
            values: Some(values),
        };
        let echo = self.misses_columns() || verdict == Verdict::Merged;
        Ok(Decision { verdict, write: Some(updated), echo, conflict })
    }
}

/// The result of a change that the row already contains.
fn replay(is_contested: bool) -> Decision {
    match is_contested {
        true => Decision::kept(true),
        false => Decision { echo: true, ..Decision::unwritten(Verdict::Same) },
    }
}

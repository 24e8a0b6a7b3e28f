use super::base_state::{base_state, is_newer};
use super::checks::{check_row_size, check_values, missing_column, required_missing};
use super::edit::Edit;
use super::ruling::{Revival, RevivalFacts, Ruling, revival, ruling};
use super::times::stamp;
use super::{Context, Decision, Incoming, Operation, Rejection, Resolution, RowHistory, Verdict};
use crate::model::{Stored, Value};
use crate::schema::{Column, DefaultValue, Policy, Table};

/// Decides what becomes of one incoming row.
///
/// - `stored` is what the server holds under the key, after the earlier rows of the same request.
/// - `history` is what is still known of the row's past, if [`super::needs_history`] returns true.
/// - A stale row is not an error, since the protocol expects it. Only a row that breaks a rule of the schema
///   is one.
/// - References are not checked here: they need other rows.
pub fn settle(
    table: &Table,
    stored: Option<&Stored>,
    history: &RowHistory,
    operation: Operation,
    incoming: &Incoming,
    context: &Context,
) -> Result<Decision, Rejection> {
    if operation == Operation::Delete {
        return settle_delete(table.policy, stored, history, incoming, context);
    }
    check_values(table, incoming)?;
    let Some(row) = stored else { return settle_unheld(table, operation, incoming, context) };
    match &row.values {
        Some(values) => Edit::new(table, (row, values), history, operation, incoming, context).decide(),
        None => settle_against_tombstone(table, row, history, operation, incoming, context),
    }
}

fn settle_delete(
    policy: Policy,
    stored: Option<&Stored>,
    history: &RowHistory,
    incoming: &Incoming,
    context: &Context,
) -> Result<Decision, Rejection> {
    let Some(row) = stored else { return Ok(Decision::unwritten(Verdict::Absent)) };
    if row.is_tombstone() {
        return Ok(Decision::unwritten(Verdict::Same));
    }
    let is_newer = is_newer(row, incoming.last_update);
    let note = match ruling(policy, base_state(row, incoming, context), is_newer, history) {
        Ruling::Keep { note } => return Ok(Decision::kept(note)),
        Ruling::Apply { note } => note,
        // `_base` proves that the device has not seen the row that it deletes. `base` does not.
        Ruling::MergeAgain if incoming.base.is_none() => true,
        Ruling::Merge | Ruling::MergeAgain if is_newer => true,
        Ruling::Merge | Ruling::MergeAgain => return Ok(Decision::kept(true)),
    };
    let times = stamp(incoming.last_update, Some(row), false, context)?;
    let tombstone = Stored {
        version: context.writing,
        last_update: times.last_update,
        made_at: times.made_at,
        claim: incoming.claim(context),
        changed_by: context.device,
        aware_devices: row.aware_devices_before(row.made_by, context.device),
        values: None,
        ..row.clone()
    };
    Ok(Decision {
        verdict: Verdict::Deleted,
        write: Some(tombstone),
        echo: false,
        conflict: note.then_some(Resolution::Overwritten),
    })
}

/// The server holds nothing under this key.
fn settle_unheld(
    table: &Table,
    operation: Operation,
    incoming: &Incoming,
    context: &Context,
) -> Result<Decision, Rejection> {
    // An update that was built on a row of the server, or that would need invented columns, has nothing to
    // change. Any other is treated as an add: the seed's clients do not distinguish the two.
    let has_nothing_to_change = operation == Operation::Update
        && (incoming.base.is_some() || missing_column(table, incoming).is_some());
    if has_nothing_to_change {
        return Ok(Decision::unwritten(Verdict::Absent));
    }
    create(table, operation, incoming, None, None, context)
}

/// The row was deleted, and the device sends an edit of it.
fn settle_against_tombstone(
    table: &Table,
    tombstone: &Stored,
    history: &RowHistory,
    operation: Operation,
    incoming: &Incoming,
    context: &Context,
) -> Result<Decision, Rejection> {
    let is_add = operation == Operation::Add;
    let facts = RevivalFacts {
        is_later: incoming.last_update.is_some() && is_newer(tombstone, incoming.last_update),
        is_explicit: is_add || incoming.base.is_some(),
        is_timed_add: is_add && incoming.claimed_at.is_some(),
        was_written: history.was_written,
    };
    match revival(table.policy, base_state(tombstone, incoming, context), &facts) {
        // A partial row cannot be revived: the other columns are gone.
        Revival::Revive { note } if missing_column(table, incoming).is_none() => {
            let conflict = note.then_some(Resolution::Overwritten);
            create(table, operation, incoming, Some(tombstone), conflict, context)
        }
        Revival::Revive { note } | Revival::StayDeleted { note } => {
            Ok(Decision { conflict: note.then_some(Resolution::Kept), ..Decision::unwritten(Verdict::Gone) })
        }
    }
}

/// Creates the row, with defaults for what the device left out.
fn create(
    table: &Table,
    operation: Operation,
    incoming: &Incoming,
    tombstone: Option<&Stored>,
    conflict: Option<Resolution>,
    context: &Context,
) -> Result<Decision, Rejection> {
    if let Some(i) = missing_column(table, incoming) {
        return Err(required_missing(&table.columns[i], i));
    }
    let columns = incoming.values.iter().zip(&table.columns);
    let values: Vec<Value> =
        columns.map(|(given, column)| given.clone().unwrap_or_else(|| default_of(column, context))).collect();
    check_row_size(&values, context)?;
    // A column that an add leaves out, without a default, is empty on the device too. That does not hold for
    // an update, nor for a row that was deleted on the server.
    let is_partial = operation == Operation::Update || tombstone.is_some();
    let mut pairs = incoming.values.iter().zip(&values);
    let echo = pairs.any(|(given, made)| given.is_none() && (is_partial || !made.is_null()));
    let times = stamp(incoming.last_update, tombstone, false, context)?;
    let row = Stored {
        version: context.writing,
        created: context.writing,
        last_update: times.last_update,
        made_at: times.made_at,
        claim: incoming.claim(context),
        made_by: context.device,
        changed_by: context.device,
        lifetimes: tombstone.map(Stored::lifetimes_before).unwrap_or_default(),
        aware_devices: tombstone
            .map(|row| row.aware_devices_before(context.device, context.device))
            .unwrap_or_default(),
        values: Some(values),
    };
    Ok(Decision { verdict: Verdict::Added, write: Some(row), echo, conflict })
}

fn default_of(column: &Column, context: &Context) -> Value {
    match &column.default {
        None => Value::Null,
        Some(DefaultValue::Constant(value)) => value.clone(),
        Some(DefaultValue::Now) => column.now(context.now, context.precision),
    }
}

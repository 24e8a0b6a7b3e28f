use super::merge::{Merged, merge};
use super::{
    Context, Incoming, Operation, Others, Past, Rejection, RejectionCode, Resolution, Settled, Verdict,
};
use crate::broken;
use crate::model::{Stored, Timestamp, Value};
use crate::schema::{Column, DefaultValue, Policy, Table};

/// Decides what becomes of one incoming row.
///
/// - `stored` is what the server holds under the key, as changed by the rows of the same request that
///   were settled before.
/// - `past` is what is still known of the row's past, if [`super::needs_past`] says that it matters.
/// - A stale row is no error: the protocol expects it.
/// - References are not looked at here: they need other rows.
pub fn settle(
    table: &Table,
    stored: Option<&Stored>,
    past: &Past,
    operation: Operation,
    incoming: &Incoming,
    context: &Context,
) -> Settled {
    match operation {
        Operation::Delete => settle_delete(table.policy, stored, past, incoming, context),
        Operation::Add | Operation::Update => {
            if let Some(rejection) = faulty_value(table, incoming) {
                return Settled::Rejected(rejection);
            }
            let Some(row) = stored else { return settle_unheld(table, operation, incoming, context) };
            match &row.values {
                Some(values) => settle_edit(table, row, values, past, operation, incoming, context),
                None => settle_against_tombstone(table, row, operation, incoming, context),
            }
        }
    }
}

/// Whether somebody else changed the row since the device saw it.
pub fn is_conflict(stored: &Stored, incoming: &Incoming, context: &Context) -> bool {
    match seen(stored, incoming, context) {
        Seen::Earlier => true,
        // A deletion stands, or is undone by what came after it: no edit loses.
        Seen::Parted => !stored.is_tombstone() || is_newer(stored, incoming.last_update),
        Seen::Latest | Seen::Own | Seen::Untold => false,
    }
}

/// What a device had seen of a row when it changed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// Its present state.
    Latest,
    /// An earlier state, and the last change since is its own: its answer was lost. No conflict, but with the
    /// answer it may have lost what others had changed before that, and what a merge has kept of it.
    Own,
    /// An earlier state: this is a true conflict.
    Earlier,
    /// The device does not say.
    Untold,
    /// The device has changed nothing. It gives back a state that a server gave, and somebody has written another
    /// one since the server forgot it: who loses is to be noted.
    Parted,
}

impl Seen {
    /// What to note of a conflict that ended so, if it was one.
    fn conflict(self, resolution: Resolution) -> Option<Resolution> {
        matches!(self, Self::Earlier | Self::Parted).then_some(resolution)
    }
}

pub(super) fn seen(row: &Stored, incoming: &Incoming, context: &Context) -> Seen {
    if context.put_back {
        // What stands there as it stood in the backup is what the device's state came after, or was before.
        let stood_there = row.version.epoch() < context.writing.epoch();
        return if stood_there || row.changed_by == context.device { Seen::Untold } else { Seen::Parted };
    }
    let knows = match (incoming.base, context.base) {
        _ if row.version == context.writing => true, // this very request wrote it
        (None, None) => return Seen::Untold,
        (Some(base), _) => base.truncated(context.precision) == row.last_update,
        (None, Some(base)) => row.version <= base,
    };
    match knows {
        true => Seen::Latest,
        false if row.changed_by == context.device => Seen::Own,
        false => Seen::Earlier,
    }
}

/// Whether the device's change beats the live row as a whole.
fn beats(policy: Policy, row: &Stored, seen: Seen, at: Option<Timestamp>) -> bool {
    match (seen, policy) {
        (Seen::Latest | Seen::Own, _) | (Seen::Earlier, Policy::Client) => true,
        (Seen::Earlier, Policy::Server | Policy::Manual) => false,
        (Seen::Untold | Seen::Parted, _) | (Seen::Earlier, Policy::Newest | Policy::Merge) => {
            is_newer(row, at)
        }
    }
}

/// No time given means now, and now is later than anything stored; on a tie the server's row stays.
fn is_newer(row: &Stored, at: Option<Timestamp>) -> bool {
    at.is_none_or(|at| at > row.last_update)
}

fn settle_delete(
    policy: Policy,
    stored: Option<&Stored>,
    past: &Past,
    incoming: &Incoming,
    context: &Context,
) -> Settled {
    let Some(row) = stored else { return left(Verdict::Absent) };
    if row.is_tombstone() {
        return left(Verdict::Same);
    }
    let seen = match seen(row, incoming, context) {
        // What it deletes was joined from its own change and one that it has not seen.
        Seen::Own if incoming.base.is_some() && past.others != Others::Nothing => Seen::Earlier,
        seen => seen,
    };
    if !beats(policy, row, seen, incoming.last_update) {
        return Settled::Left {
            verdict: Verdict::Kept,
            echo: true,
            conflict: seen.conflict(Resolution::Kept),
        };
    }
    let tombstone = Stored {
        version: context.writing,
        last_update: stamp(incoming.last_update, Some(row.last_update), context),
        changed_by: context.device,
        writers: row.writers_before(row.made_by, context.device),
        values: None,
        ..row.clone()
    };
    Settled::Written {
        verdict: Verdict::Deleted,
        row: tombstone,
        echo: false,
        conflict: seen.conflict(Resolution::Overwritten),
    }
}

/// The server holds nothing under this key.
fn settle_unheld(table: &Table, operation: Operation, incoming: &Incoming, context: &Context) -> Settled {
    // An update that was built on a row of ours, or on one that we would have to make up, has nothing to change.
    // Any other is as good as an add: the seed's clients do not tell the two apart.
    let unheld_update = operation == Operation::Update
        && (incoming.base.is_some() || missing_column(table, incoming).is_some());
    if unheld_update { left(Verdict::Absent) } else { make(table, operation, incoming, None, None, context) }
}

/// The row was deleted, and the device sends it all the same.
fn settle_against_tombstone(
    table: &Table,
    tombstone: &Stored,
    operation: Operation,
    incoming: &Incoming,
    context: &Context,
) -> Settled {
    // A missing time never beats a tombstone: it would bring back a row that the device merely still had.
    let later = incoming.last_update.is_some_and(|at| at > tombstone.last_update);
    let seen = seen(tombstone, incoming, context);
    let revives = match (seen, table.policy) {
        // The device knew of the deletion. To add the row again is meant; to update it needs to say so by `_base`.
        (Seen::Latest, _) => operation == Operation::Add || incoming.base.is_some() || later,
        (Seen::Earlier, Policy::Client) => true,
        (Seen::Earlier, Policy::Server | Policy::Manual) => false,
        // That the deletion was its own proves nothing: this may be a request from before it, sent once more.
        _ if broken::is("deletion_forgiven") => true,
        (Seen::Untold | Seen::Own | Seen::Parted, _) | (Seen::Earlier, Policy::Newest | Policy::Merge) => {
            later
        }
    };
    // Half a row cannot come back: the other half is gone.
    if revives && missing_column(table, incoming).is_none() {
        make(table, operation, incoming, Some(tombstone), seen.conflict(Resolution::Overwritten), context)
    } else {
        // A state that is merely put back was no edit: nobody loses by it.
        let conflict = (seen == Seen::Earlier).then_some(Resolution::Kept);
        Settled::Left { verdict: Verdict::Gone, echo: false, conflict }
    }
}

/// The server holds the row, alive.
fn settle_edit(
    table: &Table,
    row: &Stored,
    values: &[Value],
    past: &Past,
    operation: Operation,
    incoming: &Incoming,
    context: &Context,
) -> Settled {
    let seen = seen(row, incoming, context);
    let partial = incoming.values.iter().any(Option::is_none);
    // Whoever adds a row that is there has not heard what it was filled up with.
    let unknown_rest = partial && (seen != Seen::Latest || operation == Operation::Add);

    let changes =
        incoming.values.iter().zip(values).any(|(new, old)| new.as_ref().is_some_and(|new| new != old));
    if !changes {
        return Settled::Left { verdict: Verdict::Same, echo: unknown_rest, conflict: None };
    }
    let merges = table.policy == Policy::Merge && !broken::is("merge_takes_last");
    let forgotten = merges && seen == Seen::Own && past.is_forgotten(row, incoming, context);
    let beneath = past.beneath(row, incoming, context);
    let theirs = match seen {
        Seen::Latest | Seen::Untold | Seen::Parted => None,
        Seen::Own if past.others == Others::Nothing => None,
        Seen::Own | Seen::Earlier => {
            Some(beneath.map_or((values, row.last_update), |state| (&state.values, state.last_update)))
        }
    };
    let merged = theirs.filter(|_| merges).map(|(theirs, at)| {
        let newer = incoming.last_update.is_none_or(|own| own > at);
        let mut merged = merge(&table.columns, past.ancestor.as_deref(), theirs, &incoming.values, newer);
        // A column that is not sent now stays as an earlier write has left it.
        for (place, _) in incoming.values.iter().enumerate().filter(|(_, given)| given.is_none()) {
            merged.values[place] = values[place].clone();
        }
        merged
    });
    // `_base` tells for sure that the device has not seen what came of its own change. A version does not: the
    // answer may have come, and the cursor be behind for what others wrote in between.
    let is_sure = seen == Seen::Earlier || incoming.base.is_some();
    // A time beyond now is of a clock that is ahead: it was cut to now, and cannot be known again by it.
    let is_later = incoming.last_update.filter(|at| *at <= context.now).map(|at| at > row.last_update);
    let is_contested = merged.as_ref().is_some_and(Merged::is_contested);
    let is_replay = merged.as_ref().is_some_and(|merged| merged.values == values)
        && seen == Seen::Own
        && matches!(past.others, Others::Left(_))
        && (is_sure || !is_later.unwrap_or(false));
    if is_replay {
        // What it sent is in the row already, as far as it ever will be: it was merged before. What it lost by that
        // was noted then, under the same id; should this be another edit that lost as much, it is noted now.
        let (verdict, conflict) =
            if is_contested { (Verdict::Kept, Some(Resolution::Kept)) } else { (Verdict::Same, None) };
        return Settled::Left { verdict, echo: true, conflict };
    }
    if forgotten && !is_later.unwrap_or(!is_sure) {
        // What its change was joined with cannot be worked out again, and to join it twice would undo what
        // others did. It is taken for a replay; should it be none, it is not lost.
        return Settled::Left { verdict: Verdict::Kept, echo: true, conflict: Some(Resolution::Kept) };
    }
    let (verdict, new_values, conflict) = if let Some(merged) = merged.filter(|_| is_sure) {
        if merged.values == values {
            let conflict = is_contested.then_some(Resolution::Kept);
            return Settled::Left { verdict: Verdict::Kept, echo: true, conflict };
        }
        (Verdict::Merged, merged.values, is_contested.then_some(Resolution::Merged))
    } else if beats(table.policy, row, seen, incoming.last_update) {
        let overlaid =
            incoming.values.iter().zip(values).map(|(new, old)| new.as_ref().unwrap_or(old).clone());
        (Verdict::Updated, overlaid.collect(), seen.conflict(Resolution::Overwritten))
    } else {
        return Settled::Left {
            verdict: Verdict::Kept,
            echo: true,
            conflict: seen.conflict(Resolution::Kept),
        };
    };
    if let Some(rejection) = too_large(&new_values, context) {
        return Settled::Rejected(rejection);
    }
    // A time names one state. What was joined from two has neither's: a server that was restored may be sent a
    // state that other devices know under its time still.
    let is_as_sent = incoming.values.iter().zip(&new_values).all(|(sent, new)| sent.as_ref() == Some(new));
    let sent_at = incoming.last_update.filter(|_| verdict == Verdict::Merged && !is_as_sent);
    let before = sent_at.map_or(row.last_update, |at| capped(at, context).max(row.last_update));
    let updated = Stored {
        version: context.writing,
        created: row.created,
        last_update: stamp(incoming.last_update, Some(before), context),
        made_by: row.made_by,
        changed_by: context.device,
        lives: row.lives.clone(),
        writers: row.writers_before(row.made_by, context.device),
        values: Some(new_values),
    };
    Settled::Written { verdict, row: updated, echo: unknown_rest || verdict == Verdict::Merged, conflict }
}

fn left(verdict: Verdict) -> Settled {
    Settled::Left { verdict, echo: false, conflict: None }
}

/// Makes the row anew, with defaults for what the device left out.
fn make(
    table: &Table,
    operation: Operation,
    incoming: &Incoming,
    tombstone: Option<&Stored>,
    conflict: Option<Resolution>,
    context: &Context,
) -> Settled {
    if let Some(place) = missing_column(table, incoming) {
        return Settled::Rejected(required_missing(&table.columns[place], place));
    }
    let values: Vec<Value> = incoming
        .values
        .iter()
        .zip(&table.columns)
        .map(|(given, column)| given.clone().unwrap_or_else(|| default_of(column, context)))
        .collect();
    if let Some(rejection) = too_large(&values, context) {
        return Settled::Rejected(rejection);
    }
    // What an add leaves out and has no default for is empty on the device too. Not so what an update leaves
    // out, nor what the device still has of a row that was deleted here.
    let in_part = operation == Operation::Update || tombstone.is_some();
    let echo = incoming
        .values
        .iter()
        .zip(&values)
        .any(|(given, made)| given.is_none() && (in_part || !made.is_null()));
    let row = Stored {
        version: context.writing,
        created: context.writing,
        last_update: stamp(incoming.last_update, tombstone.map(|row| row.last_update), context),
        made_by: context.device,
        changed_by: context.device,
        lives: tombstone.map(Stored::lives_before).unwrap_or_default(),
        writers: tombstone.map(|row| row.writers_before(context.device, context.device)).unwrap_or_default(),
        values: Some(values),
    };
    Settled::Written { verdict: Verdict::Added, row, echo, conflict }
}

/// A time that a device told, as it is kept: never later than now.
fn capped(at: Timestamp, context: &Context) -> Timestamp {
    at.min(context.now).truncated(context.precision)
}

/// When a change counts as made: as told, but never later than now, and later than what it replaces.
///
/// The second rule outdoes the first, so that (key, `last_update`) names one state of one row.
fn stamp(told: Option<Timestamp>, replaced: Option<Timestamp>, context: &Context) -> Timestamp {
    let at = capped(told.unwrap_or(context.now), context);
    match replaced {
        Some(old) if !broken::is("time_not_rising") => at.max(old.shifted(context.precision.unit_ms())),
        _ => at,
    }
}

fn default_of(column: &Column, context: &Context) -> Value {
    match &column.default {
        None => Value::Null,
        Some(DefaultValue::Constant(value)) => value.clone(),
        Some(DefaultValue::Now) => column.now(context.now, context.precision),
    }
}

/// The first required column that a new row would have no value for.
fn missing_column(table: &Table, incoming: &Incoming) -> Option<usize> {
    table
        .columns
        .iter()
        .zip(&incoming.values)
        .position(|(column, given)| column.required && column.default.is_none() && given.is_none())
}

/// The first value that its column cannot take, whatever the row was before.
fn faulty_value(table: &Table, incoming: &Incoming) -> Option<Rejection> {
    table.columns.iter().zip(&incoming.values).enumerate().find_map(|(place, (column, given))| {
        let value = given.as_ref()?;
        if value.is_null() && column.required {
            return Some(required_missing(column, place));
        }
        column.over_length(value).map(|length| Rejection {
            code: RejectionCode::TooLong,
            column: Some(place),
            detail: format!(
                "{} has a length of {length}, the most is {}",
                column.name,
                column.max_length.unwrap_or(length)
            ),
        })
    })
}

fn required_missing(column: &Column, place: usize) -> Rejection {
    Rejection {
        code: RejectionCode::RequiredMissing,
        column: Some(place),
        detail: format!("{} is required", column.name),
    }
}

fn too_large(values: &[Value], context: &Context) -> Option<Rejection> {
    let bytes: usize = values.iter().map(Value::weight).sum();
    (bytes > context.row_bytes_max).then(|| Rejection {
        code: RejectionCode::RowTooLarge,
        column: None,
        detail: format!("the row has {bytes} bytes, the most is {}", context.row_bytes_max),
    })
}

use super::merge::{Merged, merge};
use super::seen::{Ruling, Seen, Turn, is_newer, ruling, seen};
use super::times::stamp;
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
                None => settle_against_tombstone(table, row, past, operation, incoming, context),
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
        Seen::Latest | Seen::Own(_) | Seen::OwnUntold(_) | Seen::Untold => false,
    }
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
        Seen::Own(Turn::Unclear | Turn::Newer)
            if policy == Policy::Merge && incoming.base.is_some() && past.others != Others::Nothing =>
        {
            Seen::Earlier
        }
        seen => seen,
    };
    let is_newer = is_newer(row, incoming.last_update);
    let note = match ruling(policy, seen, is_newer, past.was_written) {
        Ruling::Apply { note } => note,
        Ruling::Join if is_newer => true,
        Ruling::Join => return kept(true),
        Ruling::Keep { note } => return kept(note),
    };
    let times = match stamp(incoming.last_update, Some(row), false, context) {
        Ok(times) => times,
        Err(rejection) => return Settled::Rejected(rejection),
    };
    let tombstone = Stored {
        version: context.writing,
        last_update: times.last_update,
        made_at: times.made_at,
        claim: incoming.claim(context),
        changed_by: context.device,
        writers: row.writers_before(row.made_by, context.device),
        values: None,
        ..row.clone()
    };
    Settled::Written {
        verdict: Verdict::Deleted,
        row: tombstone,
        echo: false,
        conflict: note.then_some(Resolution::Overwritten),
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
///
/// The table of [`ruling`] holds here too, but that a doubt leaves the row deleted, and that a device which knew of the
/// deletion has to say that it means to bring the row back.
fn settle_against_tombstone(
    table: &Table,
    tombstone: &Stored,
    past: &Past,
    operation: Operation,
    incoming: &Incoming,
    context: &Context,
) -> Settled {
    // A missing time never beats a tombstone: it would bring back a row that the device merely still had.
    let is_later = incoming.last_update.is_some() && is_newer(tombstone, incoming.last_update);
    let (revives, note) = match (seen(tombstone, incoming, context), table.policy) {
        // To add the row again is meant; to update it needs to say so by `_base`.
        (Seen::Latest, _) => (operation == Operation::Add || incoming.base.is_some() || is_later, false),
        (Seen::Earlier, Policy::Client) => (true, true),
        (Seen::Earlier, Policy::Server | Policy::Manual) => (false, true),
        (Seen::Earlier, Policy::Newest | Policy::Merge) => (is_later, true),
        // That the deletion was its own proves nothing: this may be a request from before it, sent once more.
        _ if broken::is("deletion_forgiven") => (true, true),
        (Seen::Untold, _) => (is_later, false),
        // A state that is merely put back was no edit: nobody loses by it if the row stays deleted.
        (Seen::Parted, _) => (is_later, is_later),
        (Seen::Own(Turn::Late) | Seen::OwnUntold(Turn::Late), _) => (false, !past.was_written),
        (Seen::Own(Turn::Older) | Seen::OwnUntold(Turn::Older), _) => (false, true),
        // Within one unit of time, an add takes the deletion back, and an update was made before it.
        (Seen::Own(Turn::Unclear) | Seen::OwnUntold(Turn::Unclear), _) => {
            (operation == Operation::Add && incoming.claimed_at.is_some(), true)
        }
        (Seen::Own(Turn::Newer), _) => (true, true),
        (Seen::OwnUntold(Turn::Newer), _) => (true, false),
    };
    // Half a row cannot come back: the other half is gone.
    if revives && missing_column(table, incoming).is_none() {
        let conflict = note.then_some(Resolution::Overwritten);
        make(table, operation, incoming, Some(tombstone), conflict, context)
    } else {
        Settled::Left { verdict: Verdict::Gone, echo: false, conflict: note.then_some(Resolution::Kept) }
    }
}

/// What became of the columns of a row that the server holds, alive.
enum Became {
    /// These are to be written.
    Written(Verdict, Vec<Value>, Option<Resolution>),
    /// They stay as they are.
    Left(Verdict, Option<Resolution>),
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
    let is_newer = is_newer(row, incoming.last_update);
    let became = match ruling(table.policy, seen, is_newer, past.was_written) {
        Ruling::Keep { note } => return kept(note),
        Ruling::Join => join(table, row, values, past, incoming, context),
        Ruling::Apply { .. } if joins_own(table.policy, seen, past) => {
            join_own(table, row, values, past, incoming, context)
        }
        Ruling::Apply { note } => Became::Written(
            Verdict::Updated,
            overlaid(incoming, values),
            note.then_some(Resolution::Overwritten),
        ),
    };
    let (verdict, new_values, conflict) = match became {
        Became::Written(verdict, values, conflict) => (verdict, values, conflict),
        Became::Left(verdict, conflict) => return Settled::Left { verdict, echo: true, conflict },
    };
    if let Some(rejection) = too_large(&new_values, context) {
        return Settled::Rejected(rejection);
    }
    let is_as_sent = incoming.values.iter().zip(&new_values).all(|(sent, new)| sent.as_ref() == Some(new));
    let is_joined = verdict == Verdict::Merged && !is_as_sent && incoming.last_update.is_some();
    let times = match stamp(incoming.last_update, Some(row), is_joined, context) {
        Ok(times) => times,
        Err(rejection) => return Settled::Rejected(rejection),
    };
    let updated = Stored {
        version: context.writing,
        created: row.created,
        last_update: times.last_update,
        made_at: times.made_at,
        claim: incoming.claim(context),
        made_by: row.made_by,
        changed_by: context.device,
        lives: row.lives.clone(),
        writers: row.writers_before(row.made_by, context.device),
        values: Some(new_values),
    };
    Settled::Written { verdict, row: updated, echo: unknown_rest || verdict == Verdict::Merged, conflict }
}

/// The columns as sent, and those that were not sent as they are.
fn overlaid(incoming: &Incoming, values: &[Value]) -> Vec<Value> {
    incoming.values.iter().zip(values).map(|(new, old)| new.as_ref().unwrap_or(old).clone()).collect()
}

/// Joins what was sent with what somebody else made of the row, under the policy `merge`.
fn join(
    table: &Table,
    row: &Stored,
    values: &[Value],
    past: &Past,
    incoming: &Incoming,
    context: &Context,
) -> Became {
    let merged = joined(table, values, (values, row.true_time()), past, incoming, context);
    if merged.values == values {
        Became::Left(Verdict::Kept, merged.is_contested().then_some(Resolution::Kept))
    } else {
        let conflict = merged.is_contested().then_some(Resolution::Merged);
        Became::Written(Verdict::Merged, merged.values, conflict)
    }
}

fn joined(
    table: &Table,
    values: &[Value],
    (theirs, theirs_at): (&[Value], Timestamp),
    past: &Past,
    incoming: &Incoming,
    context: &Context,
) -> Merged {
    let newer = incoming.last_update.is_none_or(|own| own > theirs_at);
    let (ancestor, row_bytes_max) = (past.ancestor.as_deref(), context.row_bytes_max);
    let mut merged = merge(&table.columns, ancestor, theirs, &incoming.values, newer, row_bytes_max);
    // A column that is not sent now stays as an earlier write has left it.
    for (place, _) in incoming.values.iter().enumerate().filter(|(_, given)| given.is_none()) {
        merged.values[place] = values[place].clone();
    }
    merged
}

/// Whether the device's own last change was joined with what others had changed, and the device may not know that.
fn joins_own(policy: Policy, seen: Seen, past: &Past) -> bool {
    let merges = policy == Policy::Merge && !broken::is("merge_takes_last");
    merges && matches!(seen, Seen::Own(_)) && past.others != Others::Nothing
}

/// The same where the device's own last change stands between: its answer was lost, and with it what others had
/// changed before. What is sent is joined with what they had left, so that a change counts once however often it
/// comes; and what it overwrites of the device's own change is noted.
fn join_own(
    table: &Table,
    row: &Stored,
    values: &[Value],
    past: &Past,
    incoming: &Incoming,
    context: &Context,
) -> Became {
    let is_forgotten = past.is_forgotten(row, incoming, context);
    let theirs = past
        .beneath(table.policy, row, incoming, context)
        .map_or((values, row.true_time()), |state| (&state.values, state.true_time()));
    let merged = joined(table, values, theirs, past, incoming, context);
    let is_contested = merged.is_contested();
    // `_base` tells for sure that the device has not seen what came of its own change. A version does not: the
    // answer may have come, and the cursor be behind for what others wrote in between.
    let is_sure = incoming.base.is_some();
    let is_later = is_later(row, incoming, context);
    let is_replay = merged.values == values
        && matches!(past.others, Others::Left(_))
        && (is_sure || !is_later.unwrap_or(false));
    if is_replay {
        // What it sent is in the row already, as far as it ever will be: it was merged before. What it lost by that
        // was noted then, under the same id; should this be another edit that lost as much, it is noted now.
        return match is_contested {
            true => Became::Left(Verdict::Kept, Some(Resolution::Kept)),
            false => Became::Left(Verdict::Same, None),
        };
    }
    if is_forgotten && !is_later.unwrap_or(!is_sure) {
        // What its change was joined with cannot be worked out again, and to join it twice would undo what
        // others did. It is taken for a replay; should it be none, it is not lost.
        return Became::Left(Verdict::Kept, Some(Resolution::Kept));
    }
    if !is_sure {
        return Became::Written(Verdict::Updated, overlaid(incoming, values), Some(Resolution::Overwritten));
    }
    if merged.values == values {
        return Became::Left(Verdict::Kept, is_contested.then_some(Resolution::Kept));
    }
    let conflict =
        if is_forgotten { is_contested.then_some(Resolution::Merged) } else { Some(Resolution::Overwritten) };
    Became::Written(Verdict::Merged, merged.values, conflict)
}

/// Whether a change was made after the stored one of the same device; `None` if nobody can tell.
fn is_later(row: &Stored, incoming: &Incoming, context: &Context) -> Option<bool> {
    if let Some((own, stored)) = incoming.claimed_at.zip(row.claim.at) {
        return Some(own > stored);
    }
    // A time beyond now is of a clock that is ahead: it was cut to now, and cannot be known again by it.
    incoming.last_update.filter(|at| *at <= context.now).map(|at| at > row.true_time())
}

fn left(verdict: Verdict) -> Settled {
    Settled::Left { verdict, echo: false, conflict: None }
}

/// The server's row stays, and goes back with the verdict; with `note`, what was sent is kept as a conflict.
fn kept(note: bool) -> Settled {
    Settled::Left { verdict: Verdict::Kept, echo: true, conflict: note.then_some(Resolution::Kept) }
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
    let times = match stamp(incoming.last_update, tombstone, false, context) {
        Ok(times) => times,
        Err(rejection) => return Settled::Rejected(rejection),
    };
    let row = Stored {
        version: context.writing,
        created: context.writing,
        last_update: times.last_update,
        made_at: times.made_at,
        claim: incoming.claim(context),
        made_by: context.device,
        changed_by: context.device,
        lives: tombstone.map(Stored::lives_before).unwrap_or_default(),
        writers: tombstone.map(|row| row.writers_before(context.device, context.device)).unwrap_or_default(),
        values: Some(values),
    };
    Settled::Written { verdict: Verdict::Added, row, echo, conflict }
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

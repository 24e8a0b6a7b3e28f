//! Makes room for what a batch adds to its owner's past: conflicts, and the states that it replaces.

use super::losses::{Losses, RecordedSides};
use super::working_set::WorkingSet;
use super::{Budget, Refusal, Terms};
use crate::reconcile::Context;
use crate::schema::Schema;
use crate::storage::WriteTxn;
use crate::storage::quota::RECORD_BYTES;

/// Most entries that a batch forgets to make room for its own: some 100 ms of work. If that is not enough, a
/// purge continues.
pub const FORGOTTEN_MAX: usize = 20_000;

/// Makes room for what a batch adds to the past; returns whether the replaced states fit.
///
/// Conflicts are forgotten by age only. So a batch that must record one is refused if conflicts and
/// tombstones have used up the bound. A batch whose losses are all deletions may exceed the bound by as much
/// again, since an owner must be able to delete.
///
/// Errors: [`Refusal::TooHeavy`] as [`Losses::weigh`], [`Refusal::PastFull`].
pub(super) fn make_room(
    txn: &mut dyn WriteTxn,
    schema: &Schema,
    rows: &WorkingSet,
    (losses, recorded): (&Losses, &RecordedSides),
    (context, terms, budget): (&Context, &Terms, &mut Budget<'_>),
) -> Result<bool, Refusal> {
    let (noted, deletes_only) = losses.weigh(schema, rows, context, budget)?;
    let (past, max) = (txn.state().past, terms.owner_past_bytes_max);
    if max == 0 || !past.is_counted {
        return Ok(true);
    }
    let bound = if deletes_only { max.saturating_mul(2) } else { max };
    if noted > 0 && past.lasting().saturating_add(noted) > bound && !crate::broken::is("past_unbounded") {
        return Err(Refusal::PastFull(max));
    }
    let more = noted.saturating_add(remembered(schema, rows, recorded));
    if more == 0 {
        return Ok(true);
    }
    Ok(txn.make_room(more, max, FORGOTTEN_MAX)?)
}

/// About how many stored bytes the replaced states of a batch take.
fn remembered(schema: &Schema, rows: &WorkingSet, recorded: &RecordedSides) -> u64 {
    const PUNCTUATION: usize = 6; // per column in JSON, with the mark of a hash
    let mut bytes = 0;
    for table in schema.tables().iter().filter(|table| table.history > 0) {
        let names: usize = table.columns.iter().map(|column| column.name.len() + PUNCTUATION).sum();
        for row in rows.replaced(table.id, recorded) {
            bytes += RECORD_BYTES + (names + row.weight()) as u64;
        }
    }
    bytes
}

//! Conflicts: what is stored of each one, and how its loser is brought back.

use uuid::Uuid;

use crate::model::{DeviceId, RowKey, Stored, Timestamp, Value, Version};
use crate::reconcile::{Incoming, Merged, Operation, Resolution, Verdict, merge};
use crate::schema::{ColumnMerge, Policy, Schema, Table};
use crate::storage::records::{filled, write_columns};
use crate::storage::{Conflict, Side, StorageError, WriteTxn};
use crate::synchronise::{self, Batch, ItemResult, LiveRow, Refusal, RowResult, StillWanted, Terms};

/// Derives the id of a conflict from its contents. A device that lost the response and sends the same loser
/// again creates no second conflict.
///
/// `left_out`: columns of the server's state that the record leaves out. The same edit may have another outcome later,
/// and its record must then have what was lost.
pub fn id(
    table: &Table,
    key: RowKey,
    met: Version,
    device: DeviceId,
    sent: Option<&Vec<Option<Value>>>,
    left_out: &[&str],
) -> Uuid {
    let sent = sent.map(|values| write_columns(table, values));
    let mut about = format!("{}/{key}/{met}/{device}/{sent:?}", table.name);
    if !left_out.is_empty() {
        about.push_str("/without ");
        about.push_str(&left_out.join(" "));
    }
    Uuid::new_v5(&Uuid::NAMESPACE_OID, about.as_bytes())
}

/// The columns of a conflict's record, by index; `None` for those that are left out.
pub struct RecordedColumns {
    /// The conflict's [`id`].
    pub id: Uuid,
    /// The server's state; `None` if that was a deletion.
    pub stored: Option<Vec<Option<Value>>>,
    /// The row that both sides began with, if it is known.
    pub base: Option<Vec<Option<Value>>>,
}

/// Builds the record of a conflict.
pub fn note(
    table: &Table,
    key: RowKey,
    stored: &Stored,
    columns: RecordedColumns,
    incoming: Side,
    resolution: Resolution,
    at: Timestamp,
) -> Conflict {
    Conflict {
        id: columns.id,
        at,
        table: table.id,
        key,
        policy: table.policy,
        resolution,
        base: columns.base,
        stored: Side { values: columns.stored, last_update: stored.last_update, device: stored.changed_by },
        incoming,
        restored_at: None,
        stored_made_at: stored.made_at,
    }
}

impl Conflict {
    /// The side that lost completely. Merged conflicts have none: there both sides lost columns.
    pub fn loser(&self) -> &Side {
        match self.resolution {
            Resolution::Kept | Resolution::Merged => &self.incoming,
            Resolution::Overwritten => &self.stored,
        }
    }

    /// Repeats the merge of both sides, to find what each side lost; `None` if they were not merged.
    fn merged(&self, table: &Table, row_bytes_max: usize) -> Option<Merged> {
        let merges = self.policy == Policy::Merge && self.resolution != Resolution::Overwritten;
        let stored = self.stored.values.as_ref().filter(|_| merges)?;
        let whole = |values: &Vec<Option<Value>>| filled(values.clone());
        let (stored, base) = (whole(stored), self.base.as_ref().map(whole));
        let stored_at = self.stored_made_at.unwrap_or(self.stored.last_update);
        let newer = self.incoming.last_update > stored_at;
        let incoming = self.incoming.values.as_ref()?;
        let mut merged = merge(&table.columns, base.as_deref(), &stored, incoming, newer, row_bytes_max);
        for (index, ours) in incoming.iter().enumerate() {
            if let Some(ours) = ours.as_ref().filter(|_| table.columns[index].merge == ColumnMerge::Newest) {
                self.correct_left_out(index, ours, newer, &mut merged);
            }
        }
        Some(merged)
    }

    /// Corrects the loss of a column that the device sent, if the record leaves out one of its other values. Only
    /// values that are longer than what the device sent are left out, so both sides had changed the column, except
    /// where the base is that of the device.
    fn correct_left_out(&self, index: usize, ours: &Value, newer: bool, merged: &mut Merged) {
        let of =
            |values: &Option<Vec<Option<Value>>>| values.as_ref().and_then(|values| values[index].clone());
        let (base, stored) = (of(&self.base), of(&self.stored.values));
        match &stored {
            // The row kept the server's value.
            None => merged.lost[index] = Some(ours.clone()).filter(|_| base.as_ref() != Some(ours)),
            Some(theirs) if self.base.is_some() && base.is_none() && theirs != ours => {
                let (newest, other) = if newer { (ours, theirs) } else { (theirs, ours) };
                merged.values[index] = newest.clone();
                merged.lost[index] = Some(other.clone());
            }
            Some(_) => {}
        }
    }
}

/// The result of bringing a loser back.
#[derive(Clone, Debug, PartialEq)]
pub struct Restored {
    /// The conflict after the restore.
    pub conflict: Conflict,
    /// The row's result.
    pub result: RowResult,
    /// The row after the restore; `None` if a deletion was brought back.
    pub row: Option<LiveRow>,
    /// The owner's version after the restore.
    pub version: Version,
}

/// Brings the loser of a conflict back, as a new edit of the calling device.
///
/// - For a merge, the columns that were lost come back, whichever side had them; the others stay.
/// - A row that has been deleted since is created again from the conflict's record. Columns that the record
///   leaves out come from the row's last state.
/// - `wanted`: the work ends with [`Refusal::Unwanted`] once no client waits for the response.
/// - Returns `Ok(None)` if no such conflict exists.
/// - Errors: [`RestoreError`]; the caller then rolls the transaction back.
pub fn restore(
    wanted: &dyn StillWanted,
    txn: &mut dyn WriteTxn,
    schema: &Schema,
    id: Uuid,
    terms: &Terms,
) -> Result<Option<Restored>, RestoreError> {
    let found = txn.conflict(id)?.filter(|conflict| !schema.hides(conflict.table, terms.role));
    let Some(mut conflict) = found else { return Ok(None) };
    let held = txn.load(conflict.table, &[conflict.key])?.into_iter().flatten().next();
    let base = held.as_ref().map(|row| row.last_update);
    let merged = conflict.merged(schema.at(conflict.table), terms.row_bytes_max);
    let lost = merged.as_ref().map(|merged| &merged.lost).or(conflict.loser().values.as_ref());
    let (operation, values) = match lost {
        None => (Operation::Delete, Vec::new()),
        Some(lost) if held.as_ref().is_some_and(|row| !row.is_tombstone()) => {
            (Operation::Update, lost.clone())
        }
        Some(lost) => {
            let last = txn.earlier(conflict.table, conflict.key, None)?.into_iter().next();
            let last = last.map(|state| state.values).unwrap_or_default();
            (Operation::Add, completed(&conflict, merged.as_ref(), lost, &last))
        }
    };
    // The edit names the present state as its base, so it causes no conflict. It has no time, so it counts as
    // made now.
    let incoming = Incoming { key: conflict.key, values, last_update: None, claimed_at: None, base };
    let set = vec![(conflict.table, vec![incoming])];
    let get = vec![(conflict.table, vec![conflict.key])];
    let mut batch = Batch { atomic: true, get, ..Batch::default() };
    match operation {
        Operation::Add => batch.add = set,
        Operation::Update => batch.update = set,
        Operation::Delete => batch.delete = set,
    }
    // A person requested this one row, and this request has no way to confirm a mass deletion.
    let unguarded = Terms { mass_delete_rows: usize::MAX, ..*terms };
    let mut report = synchronise::run_while(wanted, txn, schema, &batch, &unguarded)?;
    let sets = [&mut report.add, &mut report.update, &mut report.delete];
    let result = sets
        .into_iter()
        .flatten()
        .flat_map(|(_, result)| result.drain(..))
        .find_map(ItemResult::into_settled);
    let result = result.ok_or_else(|| StorageError::Engine("a restored row got no verdict".into()))?;
    if !matches!(result.verdict, Verdict::Added | Verdict::Updated | Verdict::Deleted | Verdict::Same) {
        return Err(RestoreError::TooLittleKnown);
    }
    txn.note_restored(id, terms.now)?;
    conflict.restored_at = Some(terms.now);
    let row = report.get.into_iter().flat_map(|(_, rows)| rows).next();
    Ok(Some(Restored { conflict, result, row, version: report.current }))
}

/// Why a loser cannot be brought back.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The row is deleted, and the conflict's record does not contain all of its columns.
    #[error("too little of the row is known")]
    TooLittleKnown,
    /// The edit was refused like any other; a rejected row is reported as [`Refusal::Atomic`].
    #[error(transparent)]
    Refused(#[from] Refusal),
}

impl From<StorageError> for RestoreError {
    fn from(error: StorageError) -> Self {
        Self::Refused(error.into())
    }
}

/// Completes a partial row. Columns that were not lost are taken from the merge, from the other side, or from
/// the common base; those that the record leaves out, from the row's `last` state.
fn completed(
    conflict: &Conflict,
    merged: Option<&Merged>,
    lost: &[Option<Value>],
    last: &[Value],
) -> Vec<Option<Value>> {
    let column = |(index, value): (usize, &Option<Value>)| {
        let recorded =
            |side: &Option<Vec<Option<Value>>>| side.as_ref().and_then(|values| values[index].clone());
        let of_deleted = || conflict.base.is_some() && recorded(&conflict.base).is_none();
        let is_left_out = match &conflict.stored.values {
            Some(_) => recorded(&conflict.stored.values).is_none(),
            None => of_deleted(),
        };
        let merged = merged.filter(|_| !is_left_out);
        let of_merge = || merged.map(|merged| merged.values[index].clone());
        let (of_other, of_base) = (|| recorded(&conflict.stored.values), || recorded(&conflict.base));
        let of_last = || last.get(index).filter(|_| is_left_out).cloned();
        value.clone().or_else(of_merge).or_else(of_other).or_else(of_base).or_else(of_last)
    };
    lost.iter().enumerate().map(column).collect()
}

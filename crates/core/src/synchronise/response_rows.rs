use std::collections::{HashMap, HashSet};

use super::budget::{Budget, Cost};
use super::{
    Batch, ItemResult, LiveRow, Refusal, Report, RowResult, TableItemResults, Unreadable, WorkingSet,
};
use crate::model::{RowKey, Stored};
use crate::schema::{self, TableId};

/// Bytes of a row in a response in addition to its values: the key, the time, and the names of the members.
const NAMES_BYTES: usize = 100;

/// Adds the server's rows to the results.
///
/// A row is added if the device cannot know it after its result. A response contains a large row once,
/// however often the request names it: with the first such result, or under `get` if the device requests it
/// there.
///
/// Errors: [`Refusal::TooHeavy`] if the rows exceed the budget.
pub(super) fn put_rows(
    batch: &Batch,
    sets: [&mut Vec<TableItemResults>; 3],
    rows: &WorkingSet,
    budget: &mut Budget<'_>,
) -> Result<(), Refusal> {
    let mut result: HashSet<(TableId, RowKey)> =
        batch.get.iter().flat_map(|(table, keys)| keys.iter().map(|key| (*table, *key))).collect();
    // Measuring a row takes a look at each of its bytes.
    let mut lengths: HashMap<(TableId, RowKey), usize> = HashMap::new();
    for (table, list) in sets.into_iter().flatten() {
        for one in list.iter_mut().filter(|one| one.wants_row()) {
            let Some(key) = one.key() else { continue };
            let Some(stored) = rows.get(*table, key).filter(|row| !row.is_tombstone()) else { continue };
            let bytes = *lengths.entry((*table, key)).or_insert_with(|| wire_len(stored));
            if result.insert((*table, key)) || budget.may_repeat(bytes) {
                budget.take(Cost::ItemResult, bytes)?;
                if let Some(row) = LiveRow::of(key, stored) {
                    one.set_row(row);
                }
            }
        }
    }
    Ok(())
}

/// Most bytes that a row takes in a response; it takes about as many in memory.
pub(super) fn wire_len(row: &Stored) -> usize {
    NAMES_BYTES + row.values.iter().flatten().map(schema::wire_len).sum::<usize>()
}

impl Report {
    /// The report without rows, and the keys of the rows that came with results. With these keys a later batch that
    /// only reads can return the rows as they are then.
    pub fn without_rows(&self) -> (Self, Vec<(TableId, Vec<RowKey>)>) {
        let sets = [&self.add, &self.update, &self.delete];
        let with_row = |list: &[ItemResult]| list.iter().filter_map(|one| Some(one.row()?.key)).collect();
        let keys: Vec<(TableId, Vec<RowKey>)> =
            sets.into_iter().flatten().map(|(table, list)| (*table, with_row(list))).collect();
        let [add, update, delete] = sets.map(|sets| {
            let bare = |list: &[ItemResult]| list.iter().map(ItemResult::without_row).collect();
            sets.iter().map(|(table, list)| (*table, bare(list))).collect()
        });
        let report = Self {
            add,
            update,
            delete,
            get: Vec::new(),
            missing: Vec::new(),
            rejected: self.rejected.clone(),
            digests: self.digests.clone(),
            changes: None,
            ..*self
        };
        (report, keys.into_iter().filter(|(_, keys)| !keys.is_empty()).collect())
    }
}

impl ItemResult {
    fn without_row(&self) -> Self {
        match self {
            Self::Settled(result) => {
                Self::Settled(RowResult { row: None, rejection: result.rejection.clone(), ..*result })
            }
            Self::Unreadable(one) => Self::Unreadable(Unreadable {
                row: None,
                key: one.key.clone(),
                fault: one.fault.clone(),
                ..*one
            }),
        }
    }

    /// Whether the device cannot know the whole row after this result.
    fn wants_row(&self) -> bool {
        match self {
            Self::Settled(result) => result.echo,
            Self::Unreadable(_) => true,
        }
    }

    fn set_row(&mut self, row: LiveRow) {
        match self {
            Self::Settled(result) => result.row = Some(row),
            Self::Unreadable(unreadable) => unreadable.row = Some(row),
        }
    }
}

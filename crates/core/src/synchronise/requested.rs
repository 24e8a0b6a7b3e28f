use std::collections::{HashMap, HashSet};

use super::budget::{Budget, Cost};
use super::response_rows::wire_len;
use super::{LiveRow, Refusal, WorkingSet};
use crate::broken;
use crate::model::{DeviceId, RowKey, Stored, Version};
use crate::schema::TableId;
use crate::storage::{StorageResult, WriteTxn};

/// The keys of one table that a device requested, and the row of each after the batch.
pub(super) type Requested = (TableId, Vec<(RowKey, Option<Stored>)>);

type Rows = (TableId, Vec<LiveRow>);
type Keys = (TableId, Vec<RowKey>);

/// Loads the rows that a device requests. A large row is returned once, however often the device requests it. A table
/// that the device may not read has no rows for it.
///
/// Errors: [`Refusal::TooHeavy`] if they exceed the budget, in memory or in the response.
pub(super) fn load(
    txn: &mut dyn WriteTxn,
    rows: &WorkingSet,
    wanted: &[Keys],
    may_read: impl Fn(&TableId) -> bool,
    budget: &mut Budget<'_>,
) -> Result<Vec<Requested>, Refusal> {
    let mut all = Vec::new();
    for (table, keys) in wanted {
        if !may_read(table) {
            all.push((*table, keys.iter().map(|key| (*key, None)).collect()));
            continue;
        }
        let mut seen = HashSet::with_capacity(keys.len());
        let unloaded = keys.iter().copied().filter(|key| seen.insert(*key) && !rows.knows(*table, *key));
        let unloaded: Vec<RowKey> = unloaded.collect();
        let mut loaded = budget.load(Cost::ItemResult, txn, *table, &unloaded)?.into_iter();
        let mut list: Vec<(RowKey, Option<Stored>)> = Vec::with_capacity(keys.len());
        // Each row's index in the list, and its length in a response, which takes a look at each byte to
        // measure.
        let mut indexes: HashMap<RowKey, (usize, usize)> = HashMap::with_capacity(keys.len());
        for key in keys {
            let index = indexes.get(key).copied();
            let row = match index.and_then(|(at, bytes)| Some((list.get(at)?.1.as_ref(), bytes))) {
                Some((Some(row), bytes)) if !row.is_tombstone() => {
                    if !budget.may_repeat(bytes) {
                        continue;
                    }
                    budget.take(Cost::ItemResult, row.weight())?;
                    Some(row.clone())
                }
                Some(_) => None, // an earlier mention has shown that the row does not exist
                None if rows.knows(*table, *key) => {
                    let known = rows.get(*table, *key);
                    budget.take(Cost::ItemResult, known.map_or(0, Stored::weight))?;
                    known.cloned()
                }
                None => loaded.next().flatten(),
            };
            // The row's memory is weighed already; its text may take more.
            let bytes = index.map_or_else(|| row.as_ref().map_or(0, wire_len), |(_, bytes)| bytes);
            let more = row.as_ref().map_or(0, |row| bytes.saturating_sub(row.weight()));
            budget.take(Cost::ItemResult, more)?;
            indexes.entry(*key).or_insert((list.len(), bytes));
            list.push((*key, row));
        }
        all.push((*table, list));
    }
    Ok(all)
}

/// Splits the requested keys into live rows and keys without one.
pub(super) fn found_and_missing(requested: Vec<Requested>) -> (Vec<Rows>, Vec<Keys>) {
    let (mut found, mut missing) = (Vec::new(), Vec::new());
    for (table, list) in requested {
        let (mut live, mut lacking) = (Vec::new(), Vec::new());
        for (key, row) in list {
            match row.and_then(|row| Some((row.last_update, row.values?))) {
                Some((last_update, values)) => live.push(LiveRow { key, last_update, values }),
                None => lacking.push(key),
            }
        }
        found.push((table, live));
        if !lacking.is_empty() {
            missing.push((table, lacking));
        }
    }
    (found, missing)
}

/// Records which rows the device now knows ahead of its cursor without having written them: rows that were
/// the same, that won, or that it requested. If such a row were deleted before its cursor gets there, the
/// device would keep it as a ghost.
///
/// Rows that it sent, or requested with a `base`, are few, and each is recorded by itself. A device that
/// compares manifests requests thousands, and may have a cursor as well. For those one number is raised for
/// the whole owner, and feeds return a few redundant deletions.
pub(super) fn note_known(
    txn: &mut dyn WriteTxn,
    rows: &WorkingSet,
    result: impl Iterator<Item = (TableId, RowKey)>,
    requested: &[Requested],
    base: Option<Version>,
    device: DeviceId,
) -> StorageResult<()> {
    let mut knowing = Knowing { base, device, seen: HashSet::new(), table: None, rows: Vec::new(), bytes: 0 };
    for (table, key) in result {
        knowing.note(txn, table, key, rows.get(table, key))?;
    }
    if base.is_some() {
        for (table, list) in requested {
            for (key, row) in list {
                knowing.note(txn, *table, *key, row.as_ref())?;
            }
        }
    } else if !broken::is("get_leaves_a_ghost") {
        let shown_ahead = txn.state().shown_ahead;
        let is_new = |row: &Stored| {
            !row.is_tombstone() && !row.may_be_known_to(device) && !row.was_made_by(shown_ahead)
        };
        let mut shown = requested.iter().flat_map(|(_, list)| list).filter_map(|(_, row)| row.as_ref());
        if shown.any(is_new) {
            txn.show_ahead(txn.state().version)?;
        }
    }
    knowing.write(txn)
}

/// Collects rows that the device knows. Each is written once, some at a time, since each is copied for that.
struct Knowing {
    base: Option<Version>,
    device: DeviceId,
    seen: HashSet<(TableId, RowKey)>,
    table: Option<TableId>,
    rows: Vec<(RowKey, Stored)>,
    bytes: usize,
}

impl Knowing {
    /// Rows are written once they take this many bytes.
    const BYTES_MAX: usize = 1024 * 1024;

    fn note(
        &mut self,
        txn: &mut dyn WriteTxn,
        table: TableId,
        key: RowKey,
        row: Option<&Stored>,
    ) -> StorageResult<()> {
        let is_ahead = |row: &&Stored| {
            let at_base = self.base.is_some_and(|base| row.existed_at(base));
            !row.is_tombstone() && !at_base && !row.may_be_known_to(self.device)
        };
        let Some(row) = row.filter(is_ahead) else { return Ok(()) };
        if !self.seen.insert((table, key)) {
            return Ok(());
        }
        if self.table != Some(table) || self.bytes > Self::BYTES_MAX {
            self.write(txn)?;
            self.table = Some(table);
        }
        self.bytes += row.weight();
        self.rows.push((key, row.known_to(self.device)));
        Ok(())
    }

    fn write(&mut self, txn: &mut dyn WriteTxn) -> StorageResult<()> {
        let rows = std::mem::take(&mut self.rows);
        self.bytes = 0;
        let rows: Vec<_> = rows.iter().map(|(key, row)| (*key, row)).collect();
        match self.table {
            Some(table) if !rows.is_empty() => txn.put(table, &rows),
            _ => Ok(()),
        }
    }
}

use std::collections::BTreeMap;

use super::working_set::Budget;
use super::{LiveRow, Refusal, WorkingSet};
use crate::broken;
use crate::model::{DeviceId, RowKey, Stored, Version};
use crate::schema::TableId;
use crate::storage::{StorageResult, WriteTxn};

/// The keys of one table that a device asked for, and what is held under each after the batch.
pub(super) type Asked = (TableId, Vec<(RowKey, Option<Stored>)>);

type Rows = (TableId, Vec<LiveRow>);
type Keys = (TableId, Vec<RowKey>);

/// Loads what a device asks for.
///
/// Errors: [`Refusal::TooHeavy`] where it takes more than `bytes_max`.
pub(super) fn load(
    txn: &mut dyn WriteTxn,
    rows: &WorkingSet,
    wanted: &[Keys],
    bytes_max: usize,
) -> Result<Vec<Asked>, Refusal> {
    let (mut all, mut budget) = (Vec::new(), Budget::new(bytes_max));
    for (table, keys) in wanted {
        let unloaded: Vec<RowKey> = keys.iter().copied().filter(|key| !rows.knows(*table, *key)).collect();
        let mut loaded = budget.load(txn, *table, &unloaded)?.into_iter();
        let held = |key: &RowKey| {
            let known = rows.knows(*table, *key);
            (*key, if known { rows.get(*table, *key).cloned() } else { loaded.next().flatten() })
        };
        all.push((*table, keys.iter().map(held).collect()));
    }
    Ok(all)
}

/// What a device asked for, split into what is there and the keys that name nothing alive.
pub(super) fn found_and_missing(asked: &[Asked]) -> (Vec<Rows>, Vec<Keys>) {
    let (mut found, mut missing) = (Vec::new(), Vec::new());
    for (table, list) in asked {
        let live = list.iter().filter_map(|(key, row)| LiveRow::of(*key, row.as_ref()?));
        found.push((*table, live.collect()));
        let lacking = list.iter().filter(|(_, row)| row.as_ref().is_none_or(Stored::is_tombstone));
        let lacking: Vec<RowKey> = lacking.map(|(key, _)| *key).collect();
        if !lacking.is_empty() {
            missing.push((*table, lacking));
        }
    }
    (found, missing)
}

/// Notes what the device knows from now on ahead of its cursor, though it wrote none of it: rows that were the same,
/// that won, or that it asked for. Deleted before its cursor gets there, they would stay with it as ghosts.
///
/// Rows that it sent, or asked for with a `base`, are few, and each is noted by itself. One that compares roll calls
/// asks for thousands, and may have a cursor all the same: for those one mark is raised for the whole owner, and feeds
/// mention a few deletions in vain.
pub(super) fn note_known(
    txn: &mut dyn WriteTxn,
    rows: &WorkingSet,
    told: impl Iterator<Item = (TableId, RowKey)>,
    asked: &[Asked],
    base: Option<Version>,
    device: DeviceId,
) -> StorageResult<()> {
    let mut known: BTreeMap<TableId, BTreeMap<RowKey, Stored>> = BTreeMap::new();
    let mut note = |table: TableId, key: RowKey, row: Option<&Stored>| {
        let ahead = |row: &&Stored| {
            let at_base = base.is_some_and(|base| row.existed_at(base));
            !row.is_tombstone() && !at_base && !row.may_be_known_to(device)
        };
        if let Some(row) = row.filter(ahead) {
            known.entry(table).or_default().insert(key, row.known_to(device));
        }
    };
    for (table, key) in told {
        note(table, key, rows.get(table, key));
    }
    if base.is_some() {
        for (table, list) in asked {
            list.iter().for_each(|(key, row)| note(*table, *key, row.as_ref()));
        }
    } else if !broken::is("get_leaves_a_ghost") {
        let shown_ahead = txn.state().shown_ahead;
        let is_new = |row: &Stored| {
            !row.is_tombstone() && !row.may_be_known_to(device) && !row.was_made_by(shown_ahead)
        };
        let shown = asked.iter().flat_map(|(_, list)| list).filter_map(|(_, row)| row.as_ref());
        if shown.filter(|row| is_new(row)).count() > 0 {
            txn.show_ahead(txn.state().version)?;
        }
    }
    for (table, rows) in &known {
        let rows: Vec<_> = rows.iter().map(|(key, row)| (*key, row)).collect();
        txn.put(*table, &rows)?;
    }
    Ok(())
}

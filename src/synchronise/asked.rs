use std::collections::{BTreeMap, HashMap, HashSet};

use super::answer_rows::wire_len;
use super::budget::{Budget, Cost};
use super::{LiveRow, Refusal, WorkingSet};
use crate::broken;
use crate::model::{DeviceId, RowKey, Stored, Version};
use crate::schema::TableId;
use crate::storage::{StorageResult, WriteTxn};

/// The keys of one table that a device asked for, and what is held under each after the batch.
pub(super) type Asked = (TableId, Vec<(RowKey, Option<Stored>)>);

type Rows = (TableId, Vec<LiveRow>);
type Keys = (TableId, Vec<RowKey>);

/// Loads what a device asks for. A large row comes once, however often the device asks for it.
///
/// Errors: [`Refusal::TooHeavy`] where it takes more than the budget, in memory or in the answer.
pub(super) fn load(
    txn: &mut dyn WriteTxn,
    rows: &WorkingSet,
    wanted: &[Keys],
    budget: &mut Budget<'_>,
) -> Result<Vec<Asked>, Refusal> {
    let mut all = Vec::new();
    for (table, keys) in wanted {
        let mut seen = HashSet::with_capacity(keys.len());
        let unloaded = keys.iter().copied().filter(|key| seen.insert(*key) && !rows.knows(*table, *key));
        let unloaded: Vec<RowKey> = unloaded.collect();
        let mut loaded = budget.load(Cost::Answered, txn, *table, &unloaded)?.into_iter();
        let mut list: Vec<(RowKey, Option<Stored>)> = Vec::with_capacity(keys.len());
        let mut places: HashMap<RowKey, usize> = HashMap::with_capacity(keys.len());
        for key in keys {
            let row = match places.get(key).and_then(|place| list.get(*place)) {
                Some((_, Some(row))) if !row.is_tombstone() => {
                    if !budget.may_tell_again(wire_len(row)) {
                        continue;
                    }
                    Some(row.clone())
                }
                Some(_) => None, // it is not there, as was seen
                None if rows.knows(*table, *key) => {
                    let known = rows.get(*table, *key);
                    budget.take(Cost::Answered, known.map_or(0, Stored::weight))?;
                    known.cloned()
                }
                None => loaded.next().flatten(),
            };
            // What the row takes in memory is weighed already; its text may take more.
            budget.take(
                Cost::Answered,
                row.as_ref().map_or(0, |row| wire_len(row).saturating_sub(row.weight())),
            )?;
            places.entry(*key).or_insert(list.len());
            list.push((*key, row));
        }
        all.push((*table, list));
    }
    Ok(all)
}

/// What a device asked for, split into what is there and the keys that name nothing alive.
pub(super) fn found_and_missing(asked: Vec<Asked>) -> (Vec<Rows>, Vec<Keys>) {
    let (mut found, mut missing) = (Vec::new(), Vec::new());
    for (table, list) in asked {
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

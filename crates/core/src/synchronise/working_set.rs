use std::collections::{BTreeMap, HashMap, HashSet};

use super::budget::{Budget, Cost};
use super::losses::RecordedSides;
use super::{Batch, Refusal, Terms};
use crate::digest::{Digest, Seed};
use crate::model::{RowKey, Stored, Value};
use crate::schema::{Schema, TableId};
use crate::storage::{Replaced, WriteTxn};

/// The rows that a batch names or refers to, as they were and in their present state.
///
/// Every question about these rows is answered from here. So a batch costs one load for each table, however
/// often it names a row, and one write for each changed row.
pub(super) struct WorkingSet {
    tables: BTreeMap<TableId, HashMap<RowKey, Slot>>,
    /// Rows that the batch names more than once.
    named_again: HashSet<(TableId, RowKey)>,
}

struct Slot {
    before: Option<Stored>,
    after: Option<Stored>,
}

/// By how much a batch grows its owner.
pub(super) struct Growth {
    pub rows: i64,
    pub bytes: i64,
    pub tombstones: i64,
}

impl WorkingSet {
    /// Loads every row that the batch changes, and every row that its rows refer to. Of tables that the sender may
    /// not read nothing is loaded: what it sends there is rejected, and learns of no row.
    ///
    /// Errors: [`Refusal::TooHeavy`] if those rows exceed the budget, even if the batch itself is small.
    pub fn load(
        txn: &mut dyn WriteTxn,
        schema: &Schema,
        batch: &Batch,
        terms: &Terms,
        budget: &mut Budget<'_>,
    ) -> Result<Self, Refusal> {
        let mut wanted: BTreeMap<TableId, Vec<RowKey>> = BTreeMap::new();
        for (table, set) in batch.add.iter().chain(&batch.update).chain(&batch.delete) {
            wanted.entry(*table).or_default().extend(set.iter().map(|incoming| incoming.key));
            for (column, parent) in schema.at(*table).references() {
                let named = set.iter().filter_map(|incoming| match incoming.values.get(column) {
                    Some(Some(Value::Uuid(key))) => Some(RowKey(*key)),
                    _ => None,
                });
                wanted.entry(parent).or_default().extend(named);
            }
        }
        for (table, key) in batch.keys_of_unreadable() {
            wanted.entry(table).or_default().push(key);
        }
        wanted.retain(|table, _| !terms.hides(schema, *table));
        let (mut tables, mut named_again) = (BTreeMap::new(), HashSet::new());
        for (table, mut keys) in wanted {
            keys.sort_unstable(); // neighbours on a page are read together
            named_again
                .extend(keys.windows(2).filter(|pair| pair[0] == pair[1]).map(|pair| (table, pair[0])));
            keys.dedup();
            let loaded = budget.load(Cost::Held, txn, table, &keys)?;
            let slots =
                keys.into_iter().zip(loaded).map(|(key, row)| (key, Slot { before: row, after: None }));
            tables.insert(table, slots.collect());
        }
        Ok(Self { tables, named_again })
    }

    fn slot(&self, table: TableId, key: RowKey) -> Option<&Slot> {
        self.tables.get(&table)?.get(&key)
    }

    /// Whether the row was loaded. A row that was not loaded has not been changed either.
    pub fn knows(&self, table: TableId, key: RowKey) -> bool {
        self.slot(table, key).is_some()
    }

    /// The row in its present state.
    pub fn get(&self, table: TableId, key: RowKey) -> Option<&Stored> {
        let slot = self.slot(table, key)?;
        slot.after.as_ref().or(slot.before.as_ref())
    }

    /// Whether the row exists in its present state.
    pub fn is_live(&self, table: TableId, key: RowKey) -> bool {
        self.get(table, key).is_some_and(|row| !row.is_tombstone())
    }

    /// The row as the batch found it.
    pub fn before(&self, table: TableId, key: RowKey) -> Option<&Stored> {
        self.slot(table, key)?.before.as_ref()
    }

    /// Whether the batch names the row more than once.
    pub fn is_named_again(&self, table: TableId, key: RowKey) -> bool {
        self.named_again.contains(&(table, key))
    }

    /// Replaces a row.
    pub fn set(&mut self, table: TableId, key: RowKey, row: Stored) {
        let slots = self.tables.entry(table).or_default();
        slots.entry(key).or_insert(Slot { before: None, after: None }).after = Some(row);
    }

    /// Every loaded row of a table: its key, the row as it was, and its present state.
    pub fn loaded(&self, table: TableId) -> impl Iterator<Item = (RowKey, Option<&Stored>, Option<&Stored>)> {
        let slots = self.tables.get(&table).into_iter().flatten();
        slots.map(|(key, slot)| {
            let before = slot.before.as_ref();
            (*key, before, slot.after.as_ref().or(before))
        })
    }

    /// Whether the batch changed the row.
    pub fn is_changed(&self, table: TableId, key: RowKey) -> bool {
        self.slot(table, key).is_some_and(|slot| slot.after.is_some())
    }

    /// The rows of a table that the batch changed, in their present state.
    fn changed(&self, table: TableId) -> impl Iterator<Item = (RowKey, &Stored)> {
        let slots = self.tables.get(&table).into_iter().flatten();
        slots.filter_map(|(key, slot)| Some((*key, slot.after.as_ref()?)))
    }

    /// The changed live rows, or the tombstones, by key, since neighbours are written faster together.
    pub fn to_write(&self, table: TableId, tombstones: bool) -> Vec<(RowKey, &Stored)> {
        let mut rows: Vec<_> =
            self.changed(table).filter(|(_, row)| row.is_tombstone() == tombstones).collect();
        rows.sort_unstable_by_key(|(key, _)| *key);
        rows
    }

    /// The live rows of a table that the batch replaces or deletes, as they were.
    ///
    /// `recorded`: conflicts that have values of them.
    pub fn replaced<'a>(&'a self, table: TableId, recorded: &'a RecordedSides) -> Vec<Replaced<'a>> {
        let slots = self.tables.get(&table).into_iter().flatten();
        slots
            .filter_map(|(key, slot)| {
                let (before, after) = (slot.before.as_ref()?, slot.after.as_ref()?);
                Some(Replaced { key: *key, before, after, recorded: recorded.get(&(table, *key)) })
            })
            .filter(|row| !row.before.is_tombstone())
            .collect()
    }

    /// The digests of the tables after the batch, if it changed them.
    pub fn digests(&self, seed: Option<Seed>, held: &[Digest]) -> Vec<(TableId, Digest)> {
        let Some(seed) = seed else { return Vec::new() };
        let mut changed = Vec::new();
        for (table, slots) in &self.tables {
            let before = held[table.index()];
            let mut digest = before;
            for (key, slot) in slots.iter().filter(|(_, slot)| slot.after.is_some()) {
                let live = |row: &Option<Stored>| {
                    row.as_ref().filter(|row| !row.is_tombstone()).map(|row| seed.row(*key, row.last_update))
                };
                live(&slot.before).into_iter().for_each(|hash| digest.remove(hash));
                live(&slot.after).into_iter().for_each(|hash| digest.add(hash));
            }
            if digest != before {
                changed.push((*table, digest));
            }
        }
        changed
    }

    /// How much the batch grows its owner; `None` if it changes nothing.
    pub fn growth(&self) -> Option<Growth> {
        let mut changed = false;
        let mut growth = Growth { rows: 0, bytes: 0, tombstones: 0 };
        for slot in self.tables.values().flat_map(HashMap::values) {
            let Some(after) = &slot.after else { continue };
            changed = true;
            for (row, sign) in [(slot.before.as_ref(), -1), (Some(after), 1)] {
                let Some(row) = row else { continue };
                match &row.values {
                    Some(values) => {
                        growth.rows += sign;
                        growth.bytes += sign * values.iter().map(|value| value.weight() as i64).sum::<i64>();
                    }
                    None => growth.tombstones += sign,
                }
            }
        }
        changed.then_some(growth)
    }
}

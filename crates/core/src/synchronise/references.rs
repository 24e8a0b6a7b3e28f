use std::collections::{BTreeSet, HashMap, HashSet};

use super::WorkingSet;
use crate::model::{Role, RowKey, Stored, Value};
use crate::reconcile::{Rejection, RejectionCode};
use crate::schema::{Schema, TableId};
use crate::storage::{StorageResult, WriteTxn};

/// The new references of a row that lead to no existing row, with column, table and key.
pub(super) fn missing<'a>(
    schema: &'a Schema,
    rows: &'a WorkingSet,
    table: TableId,
    key: RowKey,
    before: Option<&'a Stored>,
    row: &'a Stored,
) -> impl Iterator<Item = (usize, TableId, RowKey)> + 'a {
    schema.at(table).references().filter_map(move |(column, parent)| {
        let named = reference(row, column)?;
        let as_before = before.is_some_and(|before| reference(before, column) == Some(named));
        let itself = parent == table && named == key;
        (!as_before && !itself && !rows.is_live(parent, named)).then_some((column, parent, named))
    })
}

/// The rejection of a row with a missing reference.
pub(super) fn is_missing(
    schema: &Schema,
    table: TableId,
    column: usize,
    parent: TableId,
    named: RowKey,
) -> Rejection {
    let (name, parent) = (&schema.at(table).columns[column].name, &schema.at(parent).name);
    Rejection {
        code: RejectionCode::ReferenceMissing,
        column: Some(column),
        detail: format!("{name} names {named}, and {parent} has no such row"),
    }
}

/// Rows whose references are looked up by one statement.
const LOOKED_UP_AT_ONCE: usize = 500;

/// A reference as an index entry: the referring table and column, and the key that they name.
type Reference = (TableId, usize, RowKey);

/// Which rows refer to which: the loaded rows in their present state, and whether a row that is not loaded
/// does.
///
/// This costs one lookup for each row of the batch, however often the batch names it and however many rows
/// refer to it. One referring row that is not loaded is enough to know, since the batch does not change it.
pub(super) struct Referrers {
    /// How many loaded rows still refer in storage.
    shown: HashMap<Reference, usize>,
    /// The loaded rows that refer in the working copy.
    loaded: HashMap<Reference, BTreeSet<RowKey>>,
    /// A referring row that is not loaded; `None` if there is none.
    others: HashMap<Reference, Option<RowKey>>,
}

impl Referrers {
    /// Builds the index from every loaded row.
    pub fn of(schema: &Schema, rows: &WorkingSet) -> Self {
        let (mut shown, mut loaded) = (HashMap::new(), HashMap::<_, BTreeSet<_>>::new());
        for table in schema.tables() {
            for (key, before, now) in rows.loaded(table.id) {
                for (column, _) in table.references() {
                    if let Some(named) = before.and_then(|row| reference(row, column)) {
                        *shown.entry((table.id, column, named)).or_insert(0) += 1;
                    }
                    if let Some(named) = now.and_then(|row| reference(row, column)) {
                        loaded.entry((table.id, column, named)).or_default().insert(key);
                    }
                }
            }
        }
        Self { shown, loaded, others: HashMap::new() }
    }

    /// Looks up at once what refers to rows that may be deleted.
    pub fn look_up(
        &mut self,
        txn: &mut dyn WriteTxn,
        schema: &Schema,
        rows: &WorkingSet,
        table: TableId,
        keys: &[RowKey],
    ) -> StorageResult<()> {
        for (child, column) in schema.referrers(table) {
            for some in keys.chunks(LOOKED_UP_AT_ONCE) {
                let shown = |key: &RowKey| self.shown.get(&(child, column, *key)).copied().unwrap_or(0);
                // One more than the loaded ones that it can show.
                let asked: Vec<_> = some.iter().map(|key| (*key, shown(key) + 1)).collect();
                let found = txn.referring_each(child, column, &asked)?;
                for ((key, _), found) in asked.iter().zip(found) {
                    let other = found.into_iter().find(|by| !rows.knows(child, *by));
                    self.others.insert((child, column, *key), other);
                }
            }
        }
        Ok(())
    }

    /// Records that a row is about to be deleted.
    pub fn delete(&mut self, schema: &Schema, table: TableId, key: RowKey, row: Option<&Stored>) {
        for (column, _) in schema.at(table).references() {
            if let Some(named) = row.and_then(|row| reference(row, column))
                && let Some(by) = self.loaded.get_mut(&(table, column, named))
            {
                by.remove(&key);
            }
        }
    }

    /// A live row that refers to `key` and stays, except the row itself: table, column and key. Rows of the
    /// same table that are `together` with it do not stay.
    pub fn staying(
        &mut self,
        txn: &mut dyn WriteTxn,
        schema: &Schema,
        rows: &WorkingSet,
        (table, key): (TableId, RowKey),
        together: &HashSet<RowKey>,
    ) -> StorageResult<Option<(TableId, usize, RowKey)>> {
        for (child, column) in schema.referrers(table) {
            if let Some(by) = self.other(txn, rows, (child, column, key))? {
                return Ok(Some((child, column, by)));
            }
            let goes = |by: &RowKey| child == table && (*by == key || together.contains(by));
            let by = self.loaded.get(&(child, column, key)).into_iter().flatten().find(|by| !goes(by));
            if let Some(by) = by {
                return Ok(Some((child, column, *by)));
            }
        }
        Ok(None)
    }

    /// The loaded rows that refer to `key` in the working copy, except the row itself: table and key.
    pub fn among_loaded(
        &self,
        schema: &Schema,
        table: TableId,
        key: RowKey,
    ) -> impl Iterator<Item = (TableId, RowKey)> {
        schema.referrers(table).flat_map(move |(child, column)| {
            let by = self.loaded.get(&(child, column, key)).into_iter().flatten();
            by.filter(move |by| child != table || **by != key).map(move |by| (child, *by))
        })
    }

    /// A referring row that is not loaded.
    pub fn is_among_others(
        &mut self,
        txn: &mut dyn WriteTxn,
        schema: &Schema,
        rows: &WorkingSet,
        table: TableId,
        key: RowKey,
    ) -> StorageResult<bool> {
        for (child, column) in schema.referrers(table) {
            if self.other(txn, rows, (child, column, key))?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn other(
        &mut self,
        txn: &mut dyn WriteTxn,
        rows: &WorkingSet,
        index: Reference,
    ) -> StorageResult<Option<RowKey>> {
        if let Some(known) = self.others.get(&index) {
            return Ok(*known);
        }
        let (child, column, key) = index;
        // One more than the number of loaded rows that it can return.
        let rows_max = self.shown.get(&index).copied().unwrap_or(0) + 1;
        let found = txn.referring(child, column, key, rows_max)?;
        let other = found.into_iter().find(|by| !rows.knows(child, *by));
        self.others.insert(index, other);
        Ok(other)
    }
}

/// The rejection of a row that other rows refer to. It names the row that refers to it if the sender may read that one.
pub(super) fn is_referenced(
    schema: &Schema,
    role: Role,
    child: TableId,
    column: usize,
    by: RowKey,
) -> Rejection {
    let detail = match schema.at(child) {
        _ if schema.hides(child, role) => "a row that you may not read refers to it".into(),
        child => format!("{} {by} refers to it by {}", child.name, child.columns[column].name),
    };
    Rejection { code: RejectionCode::StillReferenced, column: None, detail }
}

fn reference(row: &Stored, column: usize) -> Option<RowKey> {
    match row.values.as_ref()?.get(column)? {
        Value::Uuid(key) => Some(RowKey(*key)),
        _ => None,
    }
}

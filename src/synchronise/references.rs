use super::WorkingSet;
use crate::model::{RowKey, Stored, Value};
use crate::reconcile::{Rejection, RejectionCode};
use crate::schema::{Schema, TableId};
use crate::storage::{StorageResult, WriteTxn};

/// The references of a row that are new and lead to a row that is not there: column, table and key named.
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

/// Why a row cannot be written.
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

/// The live rows that refer to a row, the row itself aside: table, column and key. At least `wanted` of each
/// table and column, if there are as many.
pub(super) fn referring(
    txn: &mut dyn WriteTxn,
    schema: &Schema,
    rows: &WorkingSet,
    table: TableId,
    key: RowKey,
    wanted: usize,
) -> StorageResult<Vec<(TableId, usize, RowKey)>> {
    let mut found = Vec::new();
    for (child, column) in schema.referrers(table) {
        let is_itself = |by: RowKey| child == table && by == key;
        // Of the rows that storage tells, the batch may have changed that many, and one may be the row itself.
        let told = txn.referring(child, column, key, rows.changed_count(child) + 1 + wanted)?;
        let unchanged = told.into_iter().filter(|by| !rows.is_changed(child, *by));
        let changed = rows.changed_live(child).filter(|(_, row)| reference(row, column) == Some(key));
        let all = unchanged.chain(changed.map(|(by, _)| by)).filter(|by| !is_itself(*by));
        found.extend(all.map(|by| (child, column, by)));
    }
    Ok(found)
}

/// Why a row cannot be deleted.
pub(super) fn is_referenced(schema: &Schema, child: TableId, column: usize, by: RowKey) -> Rejection {
    let child = schema.at(child);
    Rejection {
        code: RejectionCode::StillReferenced,
        column: None,
        detail: format!("{} {by} refers to it by {}", child.name, child.columns[column].name),
    }
}

fn reference(row: &Stored, column: usize) -> Option<RowKey> {
    match row.values.as_ref()?.get(column)? {
        Value::Uuid(key) => Some(RowKey(*key)),
        _ => None,
    }
}

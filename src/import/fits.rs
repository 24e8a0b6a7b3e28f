//! Compares the tables of an export with those of this server.

use std::collections::BTreeSet;

use super::file::{ColumnLine, TableLine};
use crate::schema::{Column, Schema, Table};

/// How the tables differ, one sentence each.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Differences {
    /// Why the rows cannot be taken.
    pub faults: Vec<String>,
    /// What differs, and does not keep the rows out.
    pub notes: Vec<String>,
}

/// Compares the tables. A table without rows in the export cannot be a fault.
pub fn compare(exported: &[TableLine], with_rows: &BTreeSet<&str>, schema: &Schema) -> Differences {
    let mut found = Differences::default();
    for table in exported {
        let mut of_table = Differences::default();
        match schema.table(&table.name) {
            Some(here) => compare_table(table, here, schema, &mut of_table),
            None => of_table.faults.push(format!("{}: this server has no such table", table.name)),
        }
        let faults =
            if with_rows.contains(table.name.as_str()) { &mut found.faults } else { &mut found.notes };
        faults.append(&mut of_table.faults);
        found.notes.append(&mut of_table.notes);
    }
    for name in with_rows {
        if !exported.iter().any(|table| table.name == *name) {
            found.faults.push(format!("{name}: the export has rows of it, and does not declare it"));
        }
    }
    for table in schema.tables() {
        if !exported.iter().any(|one| one.name == table.name) {
            found.notes.push(format!("{}: the export has no such table", table.name));
        }
    }
    found
}

fn compare_table(exported: &TableLine, here: &Table, schema: &Schema, found: &mut Differences) {
    let name = &exported.name;
    if exported.key != here.key {
        found
            .faults
            .push(format!("{name}: the key is {} in the export, and {} here", exported.key, here.key));
    }
    for column in &exported.columns {
        match here.column(&column.name).and_then(|at| here.columns.get(at)) {
            Some(one) => compare_column(name, column, one, schema, found),
            None => found.faults.push(format!("{name}.{}: this server has no such column", column.name)),
        }
    }
    for column in &here.columns {
        if exported.columns.iter().any(|one| one.name == column.name) {
            continue;
        }
        let missing = format!("{name}.{}: the export has no such column", column.name);
        match (column.required, &column.default) {
            (true, None) => found.faults.push(format!("{missing}, and here every row needs a value")),
            (_, Some(_)) => found.notes.push(format!("{missing}; the rows get the default")),
            (false, None) => found.notes.push(missing),
        }
    }
}

fn compare_column(
    table: &str,
    exported: &ColumnLine,
    here: &Column,
    schema: &Schema,
    found: &mut Differences,
) {
    let name = format!("{table}.{}", exported.name);
    if exported.kind != here.kind.name() {
        let (there, here) = (&exported.kind, here.kind.name());
        found.faults.push(format!("{name}: the type is {there} in the export, and {here} here"));
    }
    let refers_to = here.references.map(|table| schema.at(table).name.as_str());
    if exported.references.as_deref() != refers_to {
        let text = |table: Option<&str>| table.map_or("nothing".to_owned(), ToOwned::to_owned);
        let (there, here) = (text(exported.references.as_deref()), text(refers_to));
        found.notes.push(format!("{name}: it refers to {there} in the export, and to {here} here"));
    }
}

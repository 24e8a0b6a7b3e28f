//! Writes the declared tables as PostgreSQL's SQL. Every name is quoted; no value is part of a statement.

use std::fmt::Write as _;

use sha2::{Digest as _, Sha256};

use super::values::sql_type;
use rollcall_core::model::{Precision, Timestamp, Value};
use rollcall_core::schema::{Column, DefaultValue, Schema, Table, TableId};
use rollcall_core::storage::plan::quoted;

/// A column with its SQL type. It has no `NOT NULL`: the server checks `required`, which may be removed
/// again.
pub(super) fn column(column: &Column) -> String {
    format!("{} {}", quoted(&column.name), sql_type(column.kind).0)
}

/// A table with its owner, its key, its columns and references; the owner comes first in every key.
pub(super) fn create_table(schema: &Schema, table: &Table) -> String {
    let (owner, key) = (quoted(&table.owner_column), quoted(&table.key));
    let mut parts = vec![format!("{owner} UUID NOT NULL"), format!("{key} UUID NOT NULL")];
    parts.extend(table.columns.iter().map(column));
    parts.push(format!("PRIMARY KEY ({owner}, {key})"));
    parts.extend(table.references().filter_map(|(at, to)| foreign_key(schema, table, at, to)));
    format!("CREATE TABLE {} (\n  {}\n)", quoted(&table.name), parts.join(",\n  "))
}

/// The constraint of one reference. There is none within a table: its rows are written in any order, by
/// several statements, and a deferred constraint cannot be sharded. There only the rules check.
pub(super) fn foreign_key(schema: &Schema, table: &Table, at: usize, to: TableId) -> Option<String> {
    let parent = schema.at(to);
    (to != table.id).then(|| {
        format!(
            "CONSTRAINT {} FOREIGN KEY ({}, {}) REFERENCES {} ({}, {})",
            quoted(&reference_name("fk", table, &table.columns[at].name)),
            quoted(&table.owner_column),
            quoted(&table.columns[at].name),
            quoted(&parent.name),
            quoted(&parent.owner_column),
            quoted(&parent.key),
        )
    })
}

/// The name of an object of one reference. PostgreSQL truncates names to 63 bytes, and so would confuse two
/// long ones.
pub(super) fn reference_name(kind: &str, table: &Table, column: &str) -> String {
    let mut name = format!("rollcall_{kind}_");
    for byte in &Sha256::digest(format!("{}.{column}", table.name).to_ascii_lowercase())[..12] {
        let _ = write!(name, "{byte:02x}");
    }
    name
}

/// The index over one reference: without it each deletion of a parent reads the whole table. It contains only
/// rows with a reference, so that the planner never uses it to find a row by key.
pub(super) fn create_index(table: &Table, column: &Column) -> String {
    format!(
        "CREATE INDEX {} ON {} ({}, {column}) WHERE {column} IS NOT NULL",
        quoted(&reference_name("ref", table, &column.name)),
        quoted(&table.name),
        quoted(&table.owner_column),
        column = quoted(&column.name),
    )
}

/// Fills a default into existing rows.
pub(super) fn fill(column: &Column, default: &DefaultValue, now: Timestamp, precision: Precision) -> Value {
    match default {
        DefaultValue::Now => column.now(now, precision),
        DefaultValue::Constant(value) => value.clone(),
    }
}

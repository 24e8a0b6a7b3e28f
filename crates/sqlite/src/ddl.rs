//! Writes the declared tables as SQL. Every name is quoted; no value is part of a statement.

use rollcall_core::model::{Precision, Timestamp, Value};
use rollcall_core::schema::{Column, ColumnType, DefaultValue, Schema, Table};
use rollcall_core::storage::plan::quoted;

/// A column with its SQL type. It has no `NOT NULL`: the server checks `required`, which may be removed
/// again.
pub(super) fn column(name: &str, kind: ColumnType) -> String {
    let name = quoted(name);
    match kind {
        ColumnType::Text | ColumnType::Decimal | ColumnType::Date | ColumnType::Json => {
            format!("{name} TEXT")
        }
        ColumnType::Integer | ColumnType::Timestamp => format!("{name} INTEGER"),
        ColumnType::Boolean => format!("{name} INTEGER CHECK ({name} IN (0, 1))"),
        ColumnType::Real => format!("{name} REAL"),
        ColumnType::Uuid | ColumnType::Blob => format!("{name} BLOB"),
    }
}

/// A table with its owner, its key, `columns` (as [`column`] writes them) and the declared references.
///
/// The owner comes first in every key, so two owners may hold the same UUID, and neither learns of the other.
pub(super) fn create_table(schema: &Schema, table: &Table, columns: &[String]) -> String {
    let (owner, key) = (quoted(&table.owner_column), quoted(&table.key));
    let mut parts = vec![
        format!("{owner} INTEGER NOT NULL REFERENCES \"rollcall_owner\" (\"id\")"),
        format!("{key} BLOB NOT NULL"),
    ];
    parts.extend_from_slice(columns);
    parts.push(format!("PRIMARY KEY ({owner}, {key})"));
    // Rows of one table may refer to each other in any order, so SQLite checks at COMMIT. The pragma with the
    // same effect would make it parse every statement again in each transaction.
    for (at, to) in table.references() {
        let parent = schema.at(to);
        parts.push(format!(
            "FOREIGN KEY ({owner}, {}) REFERENCES {} ({}, {}) DEFERRABLE INITIALLY DEFERRED",
            quoted(&table.columns[at].name),
            quoted(&parent.name),
            quoted(&parent.owner_column),
            quoted(&parent.key),
        ));
    }
    format!("CREATE TABLE {} (\n  {}\n) STRICT", quoted(&table.name), parts.join(",\n  "))
}

/// The name of the index over a reference. Declared names contain no dot, so no two columns share an index.
pub(super) fn reference_index(table: &str, column: &str) -> String {
    format!("rollcall_ref_{table}.{column}")
}

/// The index over one reference: without it each deletion of a parent reads the whole table.
pub(super) fn create_index(table: &Table, column: &Column) -> String {
    format!(
        "CREATE INDEX {} ON {} ({}, {})",
        quoted(&reference_index(&table.name, &column.name)),
        quoted(&table.name),
        quoted(&table.owner_column),
        quoted(&column.name),
    )
}

/// Fills a default into existing rows.
pub(super) fn fill(
    kind: ColumnType,
    default: &DefaultValue,
    now: Timestamp,
    precision: Precision,
) -> rusqlite::types::Value {
    use rusqlite::types::Value as Sql;
    match default {
        DefaultValue::Now if kind == ColumnType::Date => {
            Sql::Text(now.format(Precision::Seconds).to_string().chars().take("2013-05-01".len()).collect())
        }
        DefaultValue::Now => Sql::Integer(now.truncated(precision).ms()),
        DefaultValue::Constant(value) => match value {
            Value::Null => Sql::Null,
            Value::Boolean(value) => Sql::Integer(i64::from(*value)),
            Value::Integer(value) => Sql::Integer(*value),
            Value::Real(value) => Sql::Real(*value),
            Value::Decimal(value) => Sql::Text(value.to_string()),
            Value::Text(text) | Value::Json(text) => Sql::Text(text.clone()),
            Value::Uuid(id) => Sql::Blob(id.as_bytes().to_vec()),
            Value::Timestamp(at) => Sql::Integer(at.ms()),
            Value::Date(day) => Sql::Text(day.to_string()),
            Value::Blob(bytes) => Sql::Blob(bytes.clone()),
        },
    }
}

//! A row's columns, from either side of the wire, so that the two can be held together.

use rollcall::model::{Precision, Stored, Value};
use rollcall::schema::{Table, WireValue};
use serde_json::{Map, Value as Json};

/// The columns of a row as a device shows them.
pub fn shows(table: &Table, row: &Stored) -> Map<String, Json> {
    let wire = |value: &Value| serde_json::to_value(WireValue { value, precision: Precision::Milliseconds });
    let values = row.values.iter().flatten();
    table
        .columns
        .iter()
        .zip(values)
        .map(|(column, value)| (column.name.clone(), wire(value).unwrap()))
        .collect()
}

/// The same of a device's row: it keeps whatever the server told.
pub fn shown(table: &Table, contents: &Map<String, Json>) -> Map<String, Json> {
    let of = |name: &String| contents.get(name).cloned().unwrap_or(Json::Null);
    table.columns.iter().map(|column| (column.name.clone(), of(&column.name))).collect()
}

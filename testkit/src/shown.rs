//! A row's columns, from either side of the wire, so that the two can be held together.

use rollcall::device::{Columns, JsonText};
use rollcall::model::{Precision, Stored, Value};
use rollcall::schema::{Table, WireValue};
use serde_json::{Map, Value as Json};

/// The columns of a row as a device shows them.
pub fn shows(table: &Table, row: &Stored) -> Columns {
    let wire = |value: &Value| JsonText::of(&WireValue { value, precision: Precision::Milliseconds });
    let values = row.values.iter().flatten();
    table
        .columns
        .iter()
        .zip(values)
        .map(|(column, value)| (column.name.clone(), wire(value).unwrap()))
        .collect()
}

/// The same for a device's row, which keeps whatever the server sent.
pub fn shown(table: &Table, contents: &Columns) -> Columns {
    let of = |name: &String| contents.get(name).cloned().unwrap_or_else(JsonText::null);
    table.columns.iter().map(|column| (column.name.clone(), of(&column.name))).collect()
}

/// A row of a response, as a device stores it.
#[allow(dead_code)]
pub fn texts(row: &Map<String, Json>) -> Columns {
    row.iter().map(|(name, value)| (name.clone(), value.clone().into())).collect()
}

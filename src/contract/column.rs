//! One column in the contract of the declared tables.

use serde_json::{Map, Value as Json, json};

use crate::model::Precision;
use crate::schema::{Column, ColumnType, DefaultValue, Schema, WireValue};

/// Who writes the value. Values of an app have the limits that the server enforces; values of the server have
/// none.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum By {
    App,
    Server,
}

/// The schema of a column's values.
pub(super) fn schema_of(column: &Column, by: By, declared: &Schema) -> Json {
    let mut schema = typed(column.kind, declared.precision);
    if by == By::App
        && let Some(length) = length_max(column)
    {
        schema.insert("maxLength".into(), length.into());
    }
    // Any JSON includes null, and OpenAPI has no `nullable` without a type.
    if !column.required && column.kind != ColumnType::Json {
        schema.insert("nullable".into(), true.into());
    }
    let mut sentences = vec![describe(column, declared)];
    if by == By::App {
        sentences.extend(default(column, declared.precision));
    }
    schema.insert("description".into(), sentences.join(" ").into());
    Json::Object(schema)
}

fn typed(kind: ColumnType, precision: Precision) -> Map<String, Json> {
    let schema = match (kind, precision) {
        // A `oneOf` of number and string would be exact, but Kotlin and Dart generate a type for it that
        // holds neither. Within 2^53 the plain number is right everywhere.
        (ColumnType::Integer, _) => json!({ "type": "integer", "format": "int64" }),
        (ColumnType::Real, _) => json!({ "type": "number", "format": "double" }),
        (ColumnType::Boolean, _) => json!({ "type": "boolean" }),
        (ColumnType::Uuid, _) => json!({ "type": "string", "format": "uuid" }),
        (ColumnType::Timestamp, Precision::Milliseconds) => {
            json!({ "type": "string", "format": "date-time" })
        }
        (ColumnType::Date, _) => json!({ "type": "string", "format": "date" }),
        (ColumnType::Json, _) => json!({}),
        // `format: byte` is base64 by the standard, but plain text in generated Kotlin.
        (ColumnType::Blob | ColumnType::Text | ColumnType::Decimal | ColumnType::Timestamp, _) => {
            json!({ "type": "string" })
        }
    };
    match schema {
        Json::Object(members) => members,
        _ => Map::new(),
    }
}

/// The longest text that is accepted; for `json` the server counts bytes, which a schema cannot.
fn length_max(column: &Column) -> Option<usize> {
    match column.kind {
        ColumnType::Text => column.max_length,
        ColumnType::Blob => column.max_length.map(|bytes| bytes.div_ceil(3) * 4),
        _ => None,
    }
}

fn describe(column: &Column, declared: &Schema) -> String {
    let kind = match (column.kind, declared.precision) {
        (ColumnType::Text, _) => "Text.",
        (ColumnType::Integer, _) => "An integer within ±2^53.",
        (ColumnType::Real, _) => "A number.",
        (ColumnType::Decimal, _) => "A decimal of at most 28 digits, such as `12.5`.",
        (ColumnType::Boolean, _) => "True or false. The server reads 1 and 0 too.",
        (ColumnType::Uuid, _) => "A UUID.",
        (ColumnType::Timestamp, Precision::Seconds) => {
            "A time, UTC, as `YYYY-MM-DD HH:MM:SS`. The server reads milliseconds since 1970, an integer, too."
        }
        (ColumnType::Timestamp, Precision::Milliseconds) => {
            "A time, to the millisecond. The server reads milliseconds since 1970, an integer, too."
        }
        (ColumnType::Date, _) => "A calendar day.",
        (ColumnType::Json, _) => "Any JSON. Numbers keep their digits.",
        (ColumnType::Blob, _) => {
            "Bytes, as base64 with padding. The server reads base64 without padding and with line breaks too."
        }
    };
    match column.references {
        Some(to) => format!("The key of a row of `{}`.", declared.at(to).name),
        None => kind.to_owned(),
    }
}

/// The value of a column that an app leaves out, described in words: with a `default` some clients would send
/// it in every partial row.
fn default(column: &Column, precision: Precision) -> Option<String> {
    match column.default.as_ref()? {
        DefaultValue::Now => {
            Some("If it is left out of a new row, the server sets the present time.".to_owned())
        }
        DefaultValue::Constant(value) => {
            let default = serde_json::to_string(&WireValue { value, precision }).ok()?;
            Some(format!("If it is left out of a new row, the server sets `{default}`."))
        }
    }
}

/// A valid value of the column, always the same. `key` returns the key of a referenced row.
pub(super) fn example(column: &Column, precision: Precision, key: impl FnOnce() -> String) -> Json {
    let max = column.max_length.unwrap_or(usize::MAX);
    match column.kind {
        ColumnType::Text => {
            let words = column.name.replace('_', " ");
            let shown: String = words[..1].to_uppercase() + &words[1..];
            shown[..shown.len().min(max)].into()
        }
        ColumnType::Integer => 1.into(),
        ColumnType::Real => 1.5.into(),
        ColumnType::Decimal => "12.5".into(),
        ColumnType::Boolean => true.into(),
        ColumnType::Uuid => key().into(),
        ColumnType::Timestamp => time(precision, 15, 42).into(),
        ColumnType::Date => "2013-05-01".into(),
        ColumnType::Json => {
            if max >= 5 {
                json!(["a"])
            } else {
                json!(1)
            }
        }
        ColumnType::Blob => if max >= 2 { "AP8=" } else { "AA==" }.into(),
    }
}

/// A time in a row on the day of the examples.
pub(super) fn time(precision: Precision, hour: u8, minute: u8) -> String {
    match precision {
        Precision::Seconds => format!("2013-05-01 {hour:02}:{minute:02}:50"),
        Precision::Milliseconds => format!("2013-05-01T{hour:02}:{minute:02}:50.343Z"),
    }
}

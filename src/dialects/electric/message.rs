use serde::ser::{Serialize, SerializeMap, SerializeSeq, Serializer};
use serde_json::{Map, Value as Json, json};

use super::request::{Column, Shape};
use crate::model::{Precision, RowKey, Stored, Timestamp, Value, Version};
use crate::reconcile::NetChange;
use crate::schema::{ColumnType, Schema, Table};

/// The body of a response: a message for each row, and one that says that there is no more.
pub(super) struct Messages<'a> {
    pub schema: &'a Schema,
    pub shape: &'a Shape,
    pub rows: &'a [(NetChange, RowKey, Stored)],
    /// The version that the client has everything of, with the last page.
    pub until: Option<Version>,
}

impl Serialize for Messages<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut list = to.serialize_seq(None)?;
        for (net, key, row) in self.rows {
            list.serialize_element(&Change { of: self, net: *net, key: *key, row })?;
        }
        if let Some(version) = self.until {
            let version = version.to_string();
            list.serialize_element(
                &json!({ "headers": { "control": "up-to-date", "global_last_seen_lsn": version } }),
            )?;
        }
        list.end()
    }
}

/// One row that changed.
struct Change<'a> {
    of: &'a Messages<'a>,
    net: NetChange,
    key: RowKey,
    row: &'a Stored,
}

impl Serialize for Change<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let table = self.of.schema.at(self.of.shape.table);
        let operation = match self.net {
            NetChange::Add => "insert",
            NetChange::Update => "update",
            NetChange::Delete => "delete",
        };
        let mut map = to.serialize_map(Some(3))?;
        map.serialize_entry("key", &format_args!("\"public\".\"{}\"/\"{}\"", table.name, self.key))?;
        map.serialize_entry("value", &Columns { of: self, table })?;
        map.serialize_entry(
            "headers",
            &json!({ "operation": operation, "relation": ["public", table.name], "txids": [self.row.version] }),
        )?;
        map.end()
    }
}

/// The chosen columns of a row, each as text; of a deleted row only the key.
struct Columns<'a> {
    of: &'a Change<'a>,
    table: &'a Table,
}

impl Serialize for Columns<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let Change { of, net, key, row } = self.of;
        let precision = of.schema.precision;
        let values = row.values.as_deref().filter(|_| *net != NetChange::Delete);
        let mut map = to.serialize_map(None)?;
        for column in &of.shape.columns {
            match (column, values) {
                (Column::Key, _) => map.serialize_entry(&self.table.key, key)?,
                (_, None) => {}
                (Column::LastUpdate, _) => {
                    map.serialize_entry("last_update", &time_text(row.last_update, precision))?;
                }
                (Column::Declared(place), Some(values)) => {
                    let value = Text { value: &values[*place], precision };
                    map.serialize_entry(&self.table.columns[*place].name, &value)?;
                }
            }
        }
        map.end()
    }
}

/// A value as PostgreSQL writes it as text.
struct Text<'a> {
    value: &'a Value,
    precision: Precision,
}

impl Serialize for Text<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self.value {
            Value::Null => to.serialize_unit(),
            Value::Boolean(value) => to.serialize_str(if *value { "true" } else { "false" }),
            Value::Integer(value) => to.collect_str(value),
            Value::Real(value) => to.serialize_str(&real_text(*value)),
            Value::Decimal(value) => to.collect_str(&value.normalize()),
            Value::Text(text) | Value::Json(text) => to.serialize_str(text),
            Value::Uuid(value) => to.collect_str(value),
            Value::Timestamp(at) => to.serialize_str(&time_text(*at, self.precision)),
            Value::Date(day) => to.collect_str(day),
            Value::Blob(bytes) => to.collect_str(&Hex(bytes)),
        }
    }
}

/// `2013-05-01 15:42:50.34+00`
fn time_text(at: Timestamp, precision: Precision) -> String {
    let text = at.format(precision);
    let text = text.as_str().trim_end_matches('Z').replacen('T', " ", 1);
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text}+00")
}

/// With an exponent where the digits would be many.
fn real_text(value: f64) -> String {
    let size = value.abs();
    if size != 0.0 && !(1e-4..1e15).contains(&size) { format!("{value:e}") } else { value.to_string() }
}

/// `\x00ff`
struct Hex<'a>(&'a [u8]);

impl std::fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("\\x")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The types of the columns, by PostgreSQL's names: the client reads the values by them.
pub(super) fn schema_json(schema: &Schema, shape: &Shape) -> String {
    let table = schema.at(shape.table);
    let described = |column: &Column| match column {
        Column::Key => (table.key.as_str(), json!({ "type": "uuid", "not_null": true, "pk_index": 0 })),
        Column::LastUpdate => ("last_update", json!({ "type": "timestamptz", "not_null": true })),
        Column::Declared(place) => {
            let column = &table.columns[*place];
            let mut described = json!({ "type": type_name(column.kind) });
            if column.required {
                described["not_null"] = true.into();
            }
            (column.name.as_str(), described)
        }
    };
    let members = shape.columns.iter().map(described).map(|(name, json)| (name.to_owned(), json));
    Json::Object(members.collect::<Map<_, _>>()).to_string()
}

const fn type_name(kind: ColumnType) -> &'static str {
    match kind {
        ColumnType::Text => "text",
        ColumnType::Integer => "int8",
        ColumnType::Real => "float8",
        ColumnType::Decimal => "numeric",
        ColumnType::Boolean => "bool",
        ColumnType::Uuid => "uuid",
        ColumnType::Timestamp => "timestamptz",
        ColumnType::Date => "date",
        ColumnType::Json => "jsonb",
        ColumnType::Blob => "bytea",
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn values_are_text_as_postgresql_writes_it() {
        let at = Timestamp::from_ms(1_367_422_970_340);
        for (value, text) in [
            (Value::Null, "null"),
            (Value::Boolean(true), r#""true""#),
            (Value::Integer(i64::MIN), r#""-9223372036854775808""#),
            (Value::Real(1.0), r#""1""#),
            (Value::Real(-0.5), r#""-0.5""#),
            (Value::Real(1e300), r#""1e300""#),
            (Value::Decimal("12.50".parse().unwrap()), r#""12.5""#),
            (Value::Text("a\"b".into()), r#""a\"b""#),
            (Value::Json(r#"{"a":[1]}"#.into()), r#""{\"a\":[1]}""#),
            (Value::Timestamp(at), r#""2013-05-01 15:42:50.34+00""#),
            (Value::Date(Timestamp::from_ms(0).date()), r#""1970-01-01""#),
            (Value::Blob(vec![0, 255]), r#""\\x00ff""#),
        ] {
            let text_of = Text { value: &value, precision: Precision::Milliseconds };
            assert_eq!(serde_json::to_string(&text_of).unwrap(), text);
        }
        for (ms, precision, text) in [
            (0, Precision::Milliseconds, "1970-01-01 00:00:00+00"),
            (600, Precision::Milliseconds, "1970-01-01 00:00:00.6+00"),
            (600, Precision::Seconds, "1970-01-01 00:00:00+00"),
            (600_000, Precision::Seconds, "1970-01-01 00:10:00+00"),
        ] {
            assert_eq!(time_text(Timestamp::from_ms(ms), precision), text);
        }
    }
}

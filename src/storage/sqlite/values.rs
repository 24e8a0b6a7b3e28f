//! Values between the model and SQLite's five storage classes.

use rusqlite::ToSql;
use rusqlite::types::{FromSqlError, ToSqlOutput, ValueRef};
use uuid::Uuid;

use crate::model::{RowKey, Timestamp, Value};
use crate::schema::ColumnType;

/// A value as SQLite stores it.
pub(super) struct Bound<'a>(pub &'a Value);

impl ToSql for Bound<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(match self.0 {
            Value::Null => ToSqlOutput::Borrowed(ValueRef::Null),
            Value::Boolean(value) => ToSqlOutput::from(i64::from(*value)),
            Value::Integer(value) => ToSqlOutput::from(*value),
            Value::Real(value) => ToSqlOutput::from(*value),
            Value::Timestamp(at) => ToSqlOutput::from(at.ms()),
            Value::Decimal(value) => ToSqlOutput::from(value.to_string()),
            Value::Date(day) => ToSqlOutput::from(day.to_string()),
            Value::Text(text) | Value::Json(text) => ToSqlOutput::Borrowed(ValueRef::Text(text.as_bytes())),
            Value::Uuid(id) => ToSqlOutput::Borrowed(ValueRef::Blob(id.as_bytes())),
            Value::Blob(bytes) => ToSqlOutput::Borrowed(ValueRef::Blob(bytes)),
        })
    }
}

/// Reads what SQLite stored for a column of that type.
pub(super) fn read(kind: ColumnType, stored: ValueRef<'_>) -> Result<Value, FromSqlError> {
    let other = |error: &dyn std::fmt::Display| FromSqlError::Other(error.to_string().into());
    Ok(match (kind, stored) {
        (_, ValueRef::Null) => Value::Null,
        (ColumnType::Boolean, stored) => Value::Boolean(stored.as_i64()? != 0),
        (ColumnType::Integer, stored) => Value::Integer(stored.as_i64()?),
        (ColumnType::Real, stored) => Value::Real(stored.as_f64()?),
        (ColumnType::Timestamp, stored) => Value::Timestamp(Timestamp::from_ms(stored.as_i64()?)),
        (ColumnType::Decimal, stored) => {
            Value::Decimal(stored.as_str()?.parse().map_err(|error| other(&error))?)
        }
        (ColumnType::Date, stored) => Value::Date(stored.as_str()?.parse().map_err(|error| other(&error))?),
        (ColumnType::Text, stored) => Value::Text(stored.as_str()?.to_owned()),
        (ColumnType::Json, stored) => Value::Json(stored.as_str()?.to_owned()),
        (ColumnType::Uuid, stored) => Value::Uuid(uuid(stored)?),
        (ColumnType::Blob, stored) => Value::Blob(stored.as_blob()?.to_vec()),
    })
}

/// Reads a row key.
pub(super) fn key(stored: ValueRef<'_>) -> Result<RowKey, FromSqlError> {
    uuid(stored).map(RowKey)
}

/// Reads a UUID.
pub(super) fn uuid(stored: ValueRef<'_>) -> Result<Uuid, FromSqlError> {
    Uuid::from_slice(stored.as_blob()?).map_err(|error| FromSqlError::Other(Box::new(error)))
}

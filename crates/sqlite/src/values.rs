//! Values between the model and SQLite's five storage classes.

use rusqlite::ToSql;
use rusqlite::types::{FromSqlError, ToSqlOutput, ValueRef};
use uuid::Uuid;

use rollcall_core::model::{RowKey, Stored, Timestamp, Value};
use rollcall_core::schema::ColumnType;

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

/// Reads the stored value of a column of that type.
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

/// Buffers for the columns of one row, reused from row to row.
#[derive(Default)]
pub(super) struct Room {
    values: Vec<Value>,
    /// Buffers of texts and blobs that are null in the present row.
    spare: Vec<Vec<u8>>,
}

impl Room {
    /// Reads one column.
    pub fn read(&mut self, at: usize, kind: ColumnType, stored: ValueRef<'_>) -> Result<(), FromSqlError> {
        if self.values.len() <= at {
            self.values.resize(at + 1, Value::Null);
        }
        match std::mem::replace(&mut self.values[at], Value::Null) {
            Value::Text(held) | Value::Json(held) => self.spare.push(held.into_bytes()),
            Value::Blob(held) => self.spare.push(held),
            _ => {}
        }
        self.values[at] = match (kind, stored) {
            (ColumnType::Text, ValueRef::Text(_)) => Value::Text(self.text(stored.as_str()?)),
            (ColumnType::Json, ValueRef::Text(_)) => Value::Json(self.text(stored.as_str()?)),
            (ColumnType::Blob, ValueRef::Blob(bytes)) => {
                let mut room = self.spare();
                room.extend_from_slice(bytes);
                Value::Blob(room)
            }
            _ => read(kind, stored)?,
        };
        Ok(())
    }

    fn text(&mut self, text: &str) -> String {
        let mut room = String::from_utf8(self.spare()).unwrap_or_default(); // the buffer is empty
        room.push_str(text);
        room
    }

    fn spare(&mut self) -> Vec<u8> {
        let mut room = self.spare.pop().unwrap_or_default();
        room.clear();
        room
    }

    /// Calls `look` with an entry and the columns that were read.
    pub fn lend<T>(&mut self, entry: &mut Stored, look: impl FnOnce(&Stored) -> T) -> T {
        entry.values = Some(std::mem::take(&mut self.values));
        let told = look(entry);
        self.values = entry.values.take().unwrap_or_default();
        told
    }
}

/// Reads a row key.
pub(super) fn key(stored: ValueRef<'_>) -> Result<RowKey, FromSqlError> {
    uuid(stored).map(RowKey)
}

/// Reads a UUID.
pub(super) fn uuid(stored: ValueRef<'_>) -> Result<Uuid, FromSqlError> {
    Uuid::from_slice(stored.as_blob()?).map_err(|error| FromSqlError::Other(Box::new(error)))
}

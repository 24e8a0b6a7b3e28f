//! Values between the model and PostgreSQL's types, in its binary format.

use std::error::Error;

use postgres::Row;
use postgres::types::private::BytesMut;
use postgres::types::{FromSql, IsNull, ToSql, Type};

use rollcall_core::model::{Timestamp, Value};
use rollcall_core::schema::ColumnType;

/// PostgreSQL counts microseconds from 2000-01-01.
const EPOCH_MS: i64 = 946_684_800_000;

/// The type of a column that holds values of that kind.
pub(super) const fn sql_type(kind: ColumnType) -> (&'static str, Type) {
    match kind {
        ColumnType::Text => ("TEXT", Type::TEXT),
        ColumnType::Integer => ("BIGINT", Type::INT8),
        ColumnType::Real => ("DOUBLE PRECISION", Type::FLOAT8),
        ColumnType::Decimal => ("NUMERIC", Type::NUMERIC),
        ColumnType::Boolean => ("BOOLEAN", Type::BOOL),
        ColumnType::Uuid => ("UUID", Type::UUID),
        ColumnType::Timestamp => ("TIMESTAMPTZ", Type::TIMESTAMPTZ),
        ColumnType::Date => ("DATE", Type::DATE),
        // Not JSONB: it changes the text that clients' digests may be computed from, and refuses an escaped
        // U+0000.
        ColumnType::Json => ("JSON", Type::JSON),
        ColumnType::Blob => ("BYTEA", Type::BYTEA),
    }
}

/// A value as PostgreSQL stores it.
#[derive(Debug)]
pub(super) struct Bound<'a>(pub &'a Value);

impl ToSql for Bound<'_> {
    fn to_sql(&self, kind: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        match self.0 {
            Value::Null => Ok(IsNull::Yes),
            Value::Boolean(value) => value.to_sql(kind, out),
            // Only the numbers of tables are that small.
            Value::Integer(value) if *kind == Type::INT4 => i32::try_from(*value)?.to_sql(kind, out),
            Value::Integer(value) => value.to_sql(kind, out),
            Value::Real(value) => value.to_sql(kind, out),
            Value::Decimal(value) => value.to_sql(kind, out),
            Value::Uuid(id) => id.to_sql(kind, out),
            Value::Date(day) => day.to_sql(kind, out),
            Value::Timestamp(at) => ((at.ms() - EPOCH_MS) * 1_000).to_sql(kind, out),
            Value::Text(text) | Value::Json(text) => text.to_sql(kind, out),
            Value::Blob(bytes) => bytes.to_sql(kind, out),
        }
    }

    fn accepts(_: &Type) -> bool {
        true // the type is always that of the column, and the schema has checked the value
    }

    postgres::types::to_sql_checked!();
}

/// A timestamp as PostgreSQL stores it.
struct PgTimestamp(Timestamp);

impl FromSql<'_> for PgTimestamp {
    fn from_sql(_: &Type, raw: &[u8]) -> Result<Self, Box<dyn Error + Sync + Send>> {
        let micros = i64::from_be_bytes(raw.try_into()?);
        Ok(Self(Timestamp::from_ms(micros.div_euclid(1_000).saturating_add(EPOCH_MS))))
    }

    fn accepts(kind: &Type) -> bool {
        *kind == Type::TIMESTAMPTZ
    }
}

/// JSON as it was written.
struct JsonAsText(String);

impl FromSql<'_> for JsonAsText {
    fn from_sql(_: &Type, raw: &[u8]) -> Result<Self, Box<dyn Error + Sync + Send>> {
        Ok(Self(std::str::from_utf8(raw)?.to_owned()))
    }

    fn accepts(kind: &Type) -> bool {
        *kind == Type::JSON
    }
}

/// Reads the stored value of a column of that type.
pub(super) fn read(kind: ColumnType, row: &Row, at: usize) -> Result<Value, postgres::Error> {
    fn get<'a, T: FromSql<'a>>(
        row: &'a Row,
        at: usize,
        value: impl FnOnce(T) -> Value,
    ) -> Result<Value, postgres::Error> {
        Ok(row.try_get::<_, Option<T>>(at)?.map_or(Value::Null, value))
    }
    match kind {
        ColumnType::Text => get(row, at, Value::Text),
        ColumnType::Integer => get(row, at, Value::Integer),
        ColumnType::Real => get(row, at, Value::Real),
        ColumnType::Decimal => get(row, at, Value::Decimal),
        ColumnType::Boolean => get(row, at, Value::Boolean),
        ColumnType::Uuid => get(row, at, Value::Uuid),
        ColumnType::Timestamp => get(row, at, |PgTimestamp(at)| Value::Timestamp(at)),
        ColumnType::Date => get(row, at, Value::Date),
        ColumnType::Json => get(row, at, |JsonAsText(text)| Value::Json(text)),
        ColumnType::Blob => get(row, at, Value::Blob),
    }
}

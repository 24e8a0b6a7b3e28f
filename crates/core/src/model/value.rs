use rust_decimal::Decimal;
use uuid::Uuid;

use super::Timestamp;

/// One column of one row, typed by the schema.
///
/// Two values are equal when the wire shows them equally: decimals by number, times by instant, JSON by
/// content, since it is stored in one canonical form.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// No value.
    Null,
    /// `boolean`
    Boolean(bool),
    /// `integer`: 64 bits; beyond ±2^53 it travels as a string.
    Integer(i64),
    /// `real`: finite, 64 bits.
    Real(f64),
    /// `decimal`: exact, at most 28 digits; travels as a string.
    Decimal(Decimal),
    /// `text`
    Text(String),
    /// `uuid`
    Uuid(Uuid),
    /// `timestamp`
    Timestamp(Timestamp),
    /// `date`: a day of the calendar.
    Date(jiff::civil::Date),
    /// `json`: compact text with sorted keys.
    Json(String),
    /// `blob`: travels as base64.
    Blob(Vec<u8>),
}

impl Value {
    /// Whether this is [`Value::Null`].
    pub fn is_null(&self) -> bool {
        matches!(self, Self::Null)
    }

    /// About how many bytes the value takes in storage; what quotas count.
    pub fn weight(&self) -> usize {
        match self {
            Self::Null => 0,
            Self::Boolean(_) => 1,
            Self::Integer(_) | Self::Real(_) | Self::Timestamp(_) => 8,
            Self::Decimal(_) | Self::Uuid(_) => 16,
            Self::Date(_) => 10,
            Self::Text(text) | Self::Json(text) => text.len(),
            Self::Blob(bytes) => bytes.len(),
        }
    }
}

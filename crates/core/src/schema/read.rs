//! Reads one value of one column by its declared type. The wire, defaults and fixtures use it.

use std::borrow::Cow;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use jiff::civil::Date;
use rust_decimal::Decimal;
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::json::{JsonFault, canonical_json};
use super::{Column, ColumnType};
use crate::model::{Precision, RowKey, TimeError, Timestamp, Value};

/// Larger integers do not survive a double, so they travel as strings.
pub(super) const EXACT_INTEGER_MAX: i64 = 1 << 53;

/// The end of a message about text with a character that PostgreSQL cannot hold.
pub const HAS_NUL: &str = "one with the character U+0000";

/// Reads one value of a column directly into its type; `null` is [`Value::Null`] in every column.
///
/// - Leniency: some apps depend on a database or library with one format. So 0 and 1 are read for a boolean,
///   milliseconds since 1970 for a timestamp (whatever the schema's `timestamps`), and base64 without padding
///   or with line breaks for a blob. [`super::WireValue`] writes one format only.
/// - Bounds: types and formats only. `required` and `max_length` reject one row, not the whole request, so
///   they are checked where results are made ([`Column::over_length`]).
/// - Errors: one sentence, "expected …, not …"; it never repeats what was sent.
#[derive(Clone, Copy, Debug)]
pub struct ValueSeed<'a> {
    /// The column that the value is for.
    pub column: &'a Column,
    /// How finely times are stored; finer ones are truncated.
    pub precision: Precision,
    /// Most nested arrays and objects in a `json` column.
    pub json_depth_max: usize,
}

impl Column {
    /// The length of a value, if it exceeds the column's limit.
    ///
    /// - Units: characters of `text`, bytes of `json` (compact) and `blob`.
    pub fn over_length(&self, value: &Value) -> Option<usize> {
        let length = match value {
            Value::Text(text) => text.chars().count(),
            Value::Json(text) => text.len(),
            Value::Blob(bytes) => bytes.len(),
            _ => return None,
        };
        self.max_length.filter(|max| length > *max).map(|_| length)
    }
}

impl<'de> DeserializeSeed<'de> for ValueSeed<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        match self.column.kind {
            ColumnType::Json => {
                let raw = <Box<RawValue> as serde::Deserialize>::deserialize(deserializer)?;
                self.json(raw.get()).map_err(D::Error::custom)
            }
            // The digits as they were sent: a number that went through a double is not exact.
            ColumnType::Decimal => {
                let raw = <Box<RawValue> as serde::Deserialize>::deserialize(deserializer)?;
                decimal_of(raw.get()).map_err(D::Error::custom)
            }
            _ => deserializer.deserialize_any(Scalar(self)),
        }
    }
}

impl ValueSeed<'_> {
    /// Reads the value of a `json` column from its JSON text.
    pub fn json(&self, raw: &str) -> Result<Value, JsonFault> {
        let text = canonical_json(raw, self.json_depth_max)?;
        Ok(if text == "null" { Value::Null } else { Value::Json(text) })
    }
}

/// What a column accepts, for messages.
const fn expected(kind: ColumnType) -> &'static str {
    match kind {
        ColumnType::Text => "a string",
        ColumnType::Integer => "an integer, or a string of digits beyond 2^53",
        ColumnType::Real => "a number",
        ColumnType::Decimal => "a decimal of at most 28 digits such as \"12.50\"",
        ColumnType::Boolean => "true or false",
        ColumnType::Uuid => "a UUID of 36 characters with hyphens",
        ColumnType::Timestamp => "a time such as \"2013-05-01T15:42:50.000Z\" or \"2013-05-01 15:42:50\"",
        ColumnType::Date => "a date such as \"2013-05-01\"",
        ColumnType::Json => "JSON",
        ColumnType::Blob => "a string of base64 with padding",
    }
}

/// Every type but `json` and `decimal`.
struct Scalar<'a>(ValueSeed<'a>);

impl Scalar<'_> {
    fn kind(&self) -> ColumnType {
        self.0.column.kind
    }

    fn moment<E: Error>(&self, read: Result<Timestamp, TimeError>) -> Result<Value, E> {
        read.map(|at| Value::Timestamp(at.truncated(self.0.precision))).map_err(E::custom)
    }

    fn not<E: Error>(&self, got: &str) -> E {
        E::custom(format_args!("expected {}, not {got}", expected(self.kind())))
    }
}

impl<'de> Visitor<'de> for Scalar<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(expected(self.kind()))
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        match self.kind() {
            ColumnType::Boolean => Ok(Value::Boolean(value)),
            _ => Err(self.not("true or false")),
        }
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        match self.kind() {
            ColumnType::Integer if value.unsigned_abs() <= EXACT_INTEGER_MAX.unsigned_abs() => {
                Ok(Value::Integer(value))
            }
            ColumnType::Integer => Err(self.not("a number beyond 2^53")),
            ColumnType::Real => Ok(Value::Real(value as f64)),
            // SQLite has no booleans.
            ColumnType::Boolean if value == 0 || value == 1 => Ok(Value::Boolean(value == 1)),
            ColumnType::Boolean => Err(self.not("another number")),
            ColumnType::Timestamp => self.moment(Timestamp::try_from_ms(value)),
            _ => Err(self.not("a number")),
        }
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        match i64::try_from(value) {
            Ok(value) => self.visit_i64(value),
            Err(_) => self.visit_f64(value as f64),
        }
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        match self.kind() {
            // JavaScript and Lua have one type of number and may write 200.0.
            ColumnType::Integer if value.abs() > EXACT_INTEGER_MAX as f64 => {
                Err(self.not("a number beyond 2^53"))
            }
            ColumnType::Integer if value.fract() == 0.0 => Ok(Value::Integer(value as i64)),
            ColumnType::Integer => Err(self.not("a number with a fraction")),
            // Adding 0.0 turns -0.0 into 0.0: equal values must be written equally.
            ColumnType::Real if value.is_finite() => Ok(Value::Real(value + 0.0)),
            ColumnType::Real => Err(self.not("an infinite one")),
            ColumnType::Boolean | ColumnType::Timestamp
                if value.fract() == 0.0 && value.abs() <= EXACT_INTEGER_MAX as f64 =>
            {
                self.visit_i64(value as i64)
            }
            _ => Err(self.not("a number")),
        }
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Value, E> {
        match self.kind() {
            ColumnType::Text if text.contains('\0') => Err(self.not(HAS_NUL)),
            ColumnType::Text => Ok(Value::Text(text.to_owned())),
            ColumnType::Integer => {
                integer_of(text).map(Value::Integer).ok_or_else(|| self.not("this string"))
            }
            ColumnType::Uuid => {
                RowKey::parse(text).map(|key| Value::Uuid(key.0)).ok_or_else(|| self.not("this string"))
            }
            ColumnType::Timestamp => self.moment(Timestamp::parse(text)),
            ColumnType::Date => date_of(text).map(Value::Date).ok_or_else(|| self.not("this string")),
            ColumnType::Blob => bytes_of(text).map(Value::Blob).ok_or_else(|| self.not("this string")),
            _ => Err(self.not("a string")),
        }
    }

    fn visit_string<E: Error>(self, text: String) -> Result<Value, E> {
        if self.kind() == ColumnType::Text && !text.contains('\0') {
            return Ok(Value::Text(text));
        }
        self.visit_str(&text)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, _: A) -> Result<Value, A::Error> {
        Err(self.not("an array"))
    }

    fn visit_map<A: MapAccess<'de>>(self, _: A) -> Result<Value, A::Error> {
        Err(self.not("an object"))
    }
}

/// Reads decimal digits only. A language's own parser may accept more.
fn integer_of(text: &str) -> Option<i64> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    if plain { text.parse().ok() } else { None }
}

/// Base64 in the standard alphabet, with padding or without. Android and MIME insert line breaks.
fn bytes_of(text: &str) -> Option<Vec<u8>> {
    let breaks = ['\r', '\n'];
    let joined =
        if text.contains(breaks) { Cow::Owned(text.replace(breaks, "")) } else { Cow::Borrowed(text) };
    let engine = if joined.ends_with('=') { &STANDARD } else { &STANDARD_NO_PAD };
    engine.decode(joined.as_bytes()).ok()
}

fn date_of(text: &str) -> Option<Date> {
    let bytes = text.as_bytes();
    let shaped = bytes.len() == 10
        && bytes.iter().enumerate().all(|(at, byte)| match at {
            4 | 7 => *byte == b'-',
            _ => byte.is_ascii_digit(),
        });
    if !shaped {
        return None;
    }
    let date = Date::new(text[..4].parse().ok()?, text[5..7].parse().ok()?, text[8..].parse().ok()?).ok()?;
    (date.year() > 0).then_some(date) // PostgreSQL has no year 0
}

/// A decimal from the JSON text of a number, or of a string that holds one.
fn decimal_of(json: &str) -> Result<Value, String> {
    let kind = ColumnType::Decimal;
    let not = |got: &str| format!("expected {}, not {got}", expected(kind));
    match json.as_bytes().first() {
        Some(b'n') => Ok(Value::Null),
        Some(b't' | b'f') => Err(not("true or false")),
        Some(b'[') => Err(not("an array")),
        Some(b'{') => Err(not("an object")),
        Some(b'"') => {
            let text: String = serde_json::from_str(json).map_err(|_| not("this string"))?;
            exact(&text).map(Value::Decimal).ok_or_else(|| not("this string"))
        }
        _ => exact(json).map(Value::Decimal).ok_or_else(|| not("this number")),
    }
}

/// Reads a JSON number digit by digit; `None` if a digit would be lost.
fn exact(text: &str) -> Option<Decimal> {
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => {
            let digits = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
            if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
                return None;
            }
            (mantissa, exponent.parse::<i64>().ok()?)
        }
        None => (text, 0),
    };
    let (negative, mantissa) = match mantissa.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, mantissa),
    };
    let (whole, fraction) = match mantissa.split_once('.') {
        Some((_, "")) => return None,
        Some(both) => both,
        None => (mantissa, ""),
    };
    if whole.is_empty() || !whole.bytes().chain(fraction.bytes()).all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let all = format!("{whole}{fraction}");
    let significant = all.trim_start_matches('0').trim_end_matches('0');
    if significant.is_empty() {
        return Some(Decimal::ZERO);
    }
    let trailing_zeros = (all.len() - all.trim_end_matches('0').len()) as i64;
    let exponent = exponent.checked_sub(fraction.len() as i64)?.checked_add(trailing_zeros)?;
    let digits = significant.len() as i64 + exponent.max(0);
    if digits > 28 || !(-28..=28).contains(&exponent) {
        return None;
    }
    let mut number: i128 = significant.parse().ok()?;
    if exponent > 0 {
        number *= 10_i128.pow(exponent as u32); // at most 28 digits in all: it fits an i128
    }
    let number = if negative { -number } else { number };
    Decimal::try_from_i128_with_scale(number, exponent.min(0).unsigned_abs() as u32).ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn column(kind: ColumnType) -> Column {
        Column {
            name: "c".into(),
            kind,
            required: false,
            default: None,
            max_length: None,
            references: None,
            merge: Default::default(),
        }
    }

    fn read(kind: ColumnType, json: &str) -> Result<Value, String> {
        let column = column(kind);
        let seed = ValueSeed { column: &column, precision: Precision::Seconds, json_depth_max: 3 };
        let mut from = serde_json::Deserializer::from_str(json);
        seed.deserialize(&mut from).map_err(|error| error.to_string())
    }

    #[test]
    fn null_is_no_value_in_every_column() {
        for kind in ColumnType::ALL {
            assert_eq!(read(kind, "null"), Ok(Value::Null), "{kind:?}");
        }
    }

    #[test]
    fn every_spelling_that_is_allowed_is_read() {
        use ColumnType::*;
        let day = |y, m, d| Value::Date(jiff::civil::Date::new(y, m, d).unwrap());
        let decimal = |n, scale| Value::Decimal(rust_decimal::Decimal::from_i128_with_scale(n, scale));
        let at = |ms| Value::Timestamp(crate::model::Timestamp::from_ms(ms));
        let cases = [
            (Text, r#""a\u00e9b""#, Value::Text("aéb".into())),
            (Text, "\"\"", Value::Text(String::new())),
            (Integer, "200", Value::Integer(200)),
            (Integer, "-200.0", Value::Integer(-200)),
            (Integer, "2e3", Value::Integer(2000)),
            (Integer, "9007199254740992", Value::Integer(1 << 53)),
            (Integer, "\"7\"", Value::Integer(7)),
            (Integer, "\"-9223372036854775808\"", Value::Integer(i64::MIN)),
            (Real, "1", Value::Real(1.0)),
            (Real, "-0.0", Value::Real(0.0)),
            (Real, "18446744073709551615", Value::Real(18446744073709551615.0)),
            (Decimal, "1.50", decimal(15, 1)),
            (Decimal, "\"1.500\"", decimal(15, 1)),
            (Decimal, "\"-0\"", decimal(0, 0)),
            (Decimal, "12345678901234567890.12345678", decimal(1234567890123456789012345678, 8)),
            (Decimal, "1e-28", decimal(1, 28)),
            (Decimal, "\"1E+3\"", decimal(1000, 0)),
            (Decimal, "1.50000000000000000000000000000000000", decimal(15, 1)),
            (Boolean, "true", Value::Boolean(true)),
            (
                Uuid,
                "\"F426F326-1CFE-4669-9E74-3C063FBA542A\"",
                Value::Uuid(uuid::Uuid::try_parse("f426f326-1cfe-4669-9e74-3c063fba542a").unwrap()),
            ),
            (
                Timestamp,
                "\"2013-05-01T17:42:50.999+02:00\"",
                Value::Timestamp(crate::model::Timestamp::from_ms(1_367_422_970_000)),
            ),
            (Date, "\"2024-02-29\"", day(2024, 2, 29)),
            (
                Json,
                r#" {"b":[1, 2.0,{}],"a":null,"b":[true]} "#,
                Value::Json(r#"{"a":null,"b":[true]}"#.into()),
            ),
            (Json, "[[[]]]", Value::Json("[[[]]]".into())),
            (Blob, "\"AP8=\"", Value::Blob(vec![0, 255])),
            (Blob, "\"\"", Value::Blob(vec![])),
            (Blob, "\"AP8\"", Value::Blob(vec![0, 255])),
            (Blob, "\"AP\\r\\n8=\\n\"", Value::Blob(vec![0, 255])),
            (Boolean, "0", Value::Boolean(false)),
            (Boolean, "1.0", Value::Boolean(true)),
            (Timestamp, "1367422970999", at(1_367_422_970_000)),
            (Timestamp, "-1", at(-1_000)),
            (Timestamp, "253402300799999", at(253_402_300_799_000)),
        ];
        for (kind, json, value) in cases {
            assert_eq!(read(kind, json), Ok(value), "{kind:?} {json}");
        }
    }

    #[test]
    fn what_is_not_of_the_type_is_refused_and_says_what_was_expected() {
        use ColumnType::*;
        let cases = [
            (Text, "1", "expected a string, not a number"),
            (Text, "true", "expected a string, not true or false"),
            (Text, "[]", "expected a string, not an array"),
            (Text, r#""a\u0000b""#, "not one with the character U+0000"),
            (Integer, "1.5", "beyond 2^53, not a number with a fraction"),
            (Integer, "9007199254740993", "beyond 2^53, not a number beyond 2^53"),
            (Integer, "1e300", "not a number beyond 2^53"),
            (Integer, "\"9223372036854775808\"", "expected an integer"),
            (Integer, "\"1.0\"", "expected an integer"),
            (Integer, "\"+1\"", "expected an integer"),
            (Integer, "\"\"", "expected an integer"),
            (Integer, "\" 1\"", "expected an integer"),
            (Integer, "true", "not true or false"),
            (Real, "\"1\"", "expected a number, not a string"),
            (Real, "{}", "expected a number, not an object"),
            (Decimal, "\"1_000\"", "expected a decimal"),
            (Decimal, "\".5\"", "expected a decimal"),
            (Decimal, "\"5.\"", "expected a decimal"),
            (Decimal, "\"+5\"", "expected a decimal"),
            (Decimal, "\"1e\"", "expected a decimal"),
            (Decimal, "\"NaN\"", "expected a decimal"),
            (Decimal, "12345678901234567890123456789", "not this number"),
            (Decimal, "1e28", "not this number"),
            (Decimal, "1e-29", "not this number"),
            (Decimal, "\"1e99999999999999999999\"", "not this string"),
            (Decimal, "false", "not true or false"),
            (Boolean, "2", "expected true or false, not another number"),
            (Boolean, "0.5", "expected true or false, not a number"),
            (Boolean, "\"true\"", "expected true or false, not a string"),
            (Uuid, "\"f426f3261cfe46699e743c063fba542a\"", "expected a UUID"),
            (Uuid, "\"{426f326-1cfe-4669-9e74-3c063fba542a\"", "expected a UUID"),
            (Timestamp, "1367422970.5", "expected a time"),
            (Timestamp, "253402300800000", "between the years 0001 and 9999"),
            (Timestamp, "\"1367422970343\"", "expected a time"),
            (Timestamp, "\"2013-05-01\"", "expected a time"),
            (Date, "\"2023-02-29\"", "expected a date"),
            (Date, "\"2013-5-1\"", "expected a date"),
            (Date, "\"0000-01-01\"", "expected a date"),
            (Date, "\"2013-05-01T00:00:00Z\"", "expected a date"),
            (Json, "[[[[]]]]", "fewer arrays and objects"),
            (Blob, "\"AP8==\"", "expected a string of base64"),
            (Blob, "\"A\"", "expected a string of base64"),
            (Blob, "\"AP 8=\"", "expected a string of base64"),
            (Blob, "\"AP8_\"", "expected a string of base64"),
            (Blob, "\"AP9=\"", "expected a string of base64"),
        ];
        for (kind, json, part) in cases {
            let fault = read(kind, json).unwrap_err();
            assert!(fault.contains(part), "{kind:?} {json}: {fault}");
        }
    }

    #[test]
    fn only_values_that_have_a_length_can_be_too_long() {
        let bounded = Column { max_length: Some(3), ..column(ColumnType::Text) };
        assert_eq!(bounded.over_length(&Value::Text("äöü".into())), None);
        assert_eq!(bounded.over_length(&Value::Text("äöüß".into())), Some(4));
        assert_eq!(bounded.over_length(&Value::Blob(vec![0; 9])), Some(9));
        assert_eq!(bounded.over_length(&Value::Integer(1_000_000)), None);
        assert_eq!(column(ColumnType::Text).over_length(&Value::Text("long".into())), None);
    }
}

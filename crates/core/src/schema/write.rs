//! Writes one value to the wire; [`super::ValueSeed`] reads it back.

use base64::display::Base64Display;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::ser::{Error as _, Serialize, Serializer};
use serde_json::value::RawValue;

use super::read::EXACT_INTEGER_MAX;
use crate::model::{Precision, Value};

/// A value, to be written into a response.
#[derive(Clone, Copy, Debug)]
pub struct WireValue<'a> {
    /// What to write.
    pub value: &'a Value,
    /// The format of times.
    pub precision: Precision,
}

impl Serialize for WireValue<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self.value {
            Value::Null => to.serialize_unit(),
            Value::Boolean(value) => to.serialize_bool(*value),
            Value::Integer(value) if value.unsigned_abs() > EXACT_INTEGER_MAX.unsigned_abs() => {
                to.collect_str(value)
            }
            Value::Integer(value) => to.serialize_i64(*value),
            Value::Real(value) => to.serialize_f64(*value),
            Value::Decimal(value) => to.collect_str(&value.normalize()),
            Value::Text(text) => to.serialize_str(text),
            Value::Uuid(value) => to.collect_str(value),
            Value::Timestamp(at) => to.serialize_str(at.format(self.precision).as_str()),
            Value::Date(day) => to.collect_str(day),
            // This fails only if another program wrote something else into the column.
            Value::Json(text) => {
                serde_json::from_str::<&RawValue>(text).map_err(S::Error::custom)?.serialize(to)
            }
            Value::Blob(bytes) => to.collect_str(&Base64Display::new(bytes, &BASE64)),
        }
    }
}

/// Most bytes that a value takes as [`WireValue`] writes it, without brackets and commas.
pub fn wire_len(value: &Value) -> usize {
    match value {
        Value::Text(text) => 2 + text.bytes().map(escaped_len).sum::<usize>(),
        Value::Json(text) => text.len(),
        Value::Blob(bytes) => 2 + bytes.len().div_ceil(3) * 4,
        Value::Null | Value::Boolean(_) => 5,
        Value::Integer(_) | Value::Real(_) | Value::Decimal(_) => 40,
        Value::Uuid(_) | Value::Timestamp(_) | Value::Date(_) => 40,
    }
}

/// Bytes that one byte of a text takes in JSON: a control character is `\u0001`.
const fn escaped_len(byte: u8) -> usize {
    match byte {
        0..0x20 => 6,
        b'"' | b'\\' => 2,
        _ => 1,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use jiff::civil::Date;
    use proptest::prelude::*;
    use rust_decimal::Decimal;
    use serde::de::DeserializeSeed;

    use super::*;
    use crate::model::Timestamp;
    use crate::schema::{Column, ColumnType, ValueSeed};

    fn write(value: &Value) -> String {
        serde_json::to_string(&WireValue { value, precision: Precision::Seconds }).unwrap()
    }

    #[test]
    fn values_are_spelt_as_the_contract_says() {
        let uuid = uuid::Uuid::try_parse("F426F326-1CFE-4669-9E74-3C063FBA542A").unwrap();
        let cases = [
            (Value::Null, "null"),
            (Value::Boolean(false), "false"),
            (Value::Integer(-(1 << 53)), "-9007199254740992"),
            (Value::Integer((1 << 53) + 1), "\"9007199254740993\""),
            (Value::Integer(i64::MIN), "\"-9223372036854775808\""),
            (Value::Real(0.1), "0.1"),
            (Value::Decimal(Decimal::new(1250, 2)), "\"12.5\""),
            (Value::Text("5\" & 6".into()), r#""5\" & 6""#),
            (Value::Uuid(uuid), "\"f426f326-1cfe-4669-9e74-3c063fba542a\""),
            (Value::Timestamp(Timestamp::from_ms(1_367_422_970_343)), "\"2013-05-01 15:42:50\""),
            (Value::Date(Date::new(13, 5, 1).unwrap()), "\"0013-05-01\""),
            (Value::Json(r#"{"a":[1]}"#.into()), r#"{"a":[1]}"#),
            (Value::Blob(vec![0, 255]), "\"AP8=\""),
        ];
        for (value, json) in cases {
            assert_eq!(write(&value), json);
        }
        let at = Value::Timestamp(Timestamp::from_ms(1_367_422_970_343));
        let fine = WireValue { value: &at, precision: Precision::Milliseconds };
        assert_eq!(serde_json::to_string(&fine).unwrap(), "\"2013-05-01T15:42:50.343Z\"");
    }

    #[test]
    fn no_value_is_longer_than_it_is_weighed() {
        let odd: String = (0..0x100_u32).filter_map(char::from_u32).collect();
        let exact = [Value::Text("ab".into()), Value::Text("\u{1}\"\\".into()), Value::Blob(vec![7; 10])];
        for value in &exact {
            assert_eq!(write(value).len(), wire_len(value));
        }
        let decimal = "-7922816251426433759354395033.5".parse().unwrap();
        let values = [
            Value::Null,
            Value::Boolean(false),
            Value::Integer(i64::MIN),
            Value::Real(-f64::MIN_POSITIVE),
            Value::Decimal(decimal),
            Value::Text(odd),
            Value::Uuid(uuid::Uuid::max()),
            Value::Timestamp(Timestamp::from_ms(i64::MAX)),
            Value::Date(Date::new(2024, 12, 31).unwrap()),
            Value::Json(r#"{"a":[1]}"#.into()),
            Value::Blob(vec![0; 11]),
        ];
        for value in &values {
            assert!(write(value).len() <= wire_len(value), "{value:?}");
        }
    }

    #[test]
    fn json_that_another_program_broke_is_an_error() {
        let value = Value::Json("{".into());
        let wire = WireValue { value: &value, precision: Precision::Seconds };
        assert!(serde_json::to_string(&wire).is_err());
    }

    fn any_json() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(Into::into),
            any::<i64>().prop_map(Into::into),
            any::<u64>().prop_map(Into::into),
            any::<f64>().prop_map(Into::into),
            any::<String>().prop_map(Into::into),
        ];
        leaf.prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Into::into),
                prop::collection::hash_map(any::<String>(), inner, 0..4)
                    .prop_map(|members| serde_json::Value::Object(members.into_iter().collect())),
            ]
        })
    }

    fn read(kind: ColumnType, json: &str) -> Value {
        let column = Column {
            name: "c".into(),
            kind,
            required: false,
            default: None,
            max_length: None,
            references: None,
            merge: Default::default(),
        };
        let seed = ValueSeed { column: &column, precision: Precision::Milliseconds, json_depth_max: 16 };
        seed.deserialize(&mut serde_json::Deserializer::from_str(json)).unwrap()
    }

    fn any_value() -> impl Strategy<Value = (ColumnType, Value)> {
        let text = any::<String>().prop_map(|text| text.replace('\0', ""));
        let day = (1i16..=9999, 1i8..=12, 1i8..=31)
            .prop_filter_map("no such day", |(y, m, d)| Date::new(y, m, d).ok());
        let decimal = (-(10i128.pow(28) - 1)..10i128.pow(28), 0u32..=28)
            .prop_map(|(number, scale)| Decimal::from_i128_with_scale(number, scale).normalize());
        prop_oneof![
            text.prop_map(|v| (ColumnType::Text, Value::Text(v))),
            any::<i64>().prop_map(|v| (ColumnType::Integer, Value::Integer(v))),
            (-(1i64 << 54)..(1i64 << 54)).prop_map(|v| (ColumnType::Integer, Value::Integer(v))),
            any::<f64>().prop_map(|v| (ColumnType::Real, Value::Real(v + 0.0))),
            decimal.prop_map(|v| (ColumnType::Decimal, Value::Decimal(v))),
            any::<bool>().prop_map(|v| (ColumnType::Boolean, Value::Boolean(v))),
            any::<u128>().prop_map(|v| (ColumnType::Uuid, Value::Uuid(uuid::Uuid::from_u128(v)))),
            any::<i64>().prop_map(|v| (ColumnType::Timestamp, Value::Timestamp(Timestamp::from_ms(v)))),
            (-10_000_000_000_000i64..10_000_000_000_000)
                .prop_map(|v| (ColumnType::Timestamp, Value::Timestamp(Timestamp::from_ms(v)))),
            day.prop_map(|v| (ColumnType::Date, Value::Date(v))),
            any_json().prop_map(|v| (ColumnType::Json, read(ColumnType::Json, &v.to_string()))),
            any::<Vec<u8>>().prop_map(|v| (ColumnType::Blob, Value::Blob(v))),
        ]
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back_the_same((kind, value) in any_value()) {
            let json = serde_json::to_string(
                &WireValue { value: &value, precision: Precision::Milliseconds }
            ).unwrap();
            let back = read(kind, &json);
            prop_assert_eq!(&back, &value);
            // The text is compared as well: equality of values alone would allow a second format.
            let again = serde_json::to_string(
                &WireValue { value: &back, precision: Precision::Milliseconds }
            ).unwrap();
            prop_assert_eq!(again, json);
        }
    }
}

//! One column of `schema.toml`: its type, and the attributes that depend on it.

use std::ops::Range;

use serde::de::DeserializeSeed;
use toml::Spanned;
use toml::de::DeValue;

use super::declare::{Name, Reader, whole_number};
use super::{Column, ColumnMerge, ColumnType, DefaultValue, ValueSeed};
use crate::model::{Precision, Value};

/// How deep rows may nest by default.
const DEFAULT_JSON_DEPTH_MAX: usize = 16;

/// The members of a column. What they may be depends on the type.
#[derive(Default)]
struct ColumnParts<'t> {
    kind: Option<&'t Spanned<DeValue<'t>>>,
    required: bool,
    default: Option<&'t Spanned<DeValue<'t>>>,
    max_length: Option<&'t Spanned<DeValue<'t>>>,
    references: Option<Name<'t>>,
    merge: Option<&'t Spanned<DeValue<'t>>>,
}

impl<'t> Reader<'t> {
    /// Reads one column, and the name of the table that it refers to.
    pub(super) fn column(
        &mut self,
        at: &str,
        (name, span): Name<'t>,
        value: &'t Spanned<DeValue<'t>>,
        precision: Precision,
    ) -> (Column, Option<Name<'t>>) {
        let mut column = Column {
            name: name.to_owned(),
            kind: ColumnType::Text,
            required: false,
            default: None,
            max_length: None,
            references: None,
            merge: ColumnMerge::default(),
        };
        let Some(parts) = self.column_parts(at, value) else { return (column, None) };
        column.required = parts.required;
        let ColumnParts { default, references, .. } = parts;
        let Some(kind) = self.kind(at, span, parts.kind) else {
            return (column, references); // the attributes depend on the type and cannot be checked without it
        };
        column.kind = kind;
        if let Some(value) = parts.max_length {
            column.max_length = self.max_length(at, kind, value);
        }
        if let Some(value) = parts.merge {
            column.merge = self.merge(at, kind, value);
        }
        if let Some((_, span)) = &references {
            if kind != ColumnType::Uuid {
                let what = format!("references: keys are of type uuid, this column is {}", kind.name());
                self.fault(span.clone(), at, what);
            }
            if let Some(value) = default {
                let what = "default: a reference cannot have one: no row is there for every owner; drop it";
                self.fault(value.span(), at, what);
            }
        } else if let Some(value) = default {
            column.default = self.default(at, &column, value, precision);
        }
        (column, references)
    }

    /// The members of a column; `None` if it is neither a type nor a table.
    fn column_parts(&mut self, at: &str, value: &'t Spanned<DeValue<'t>>) -> Option<ColumnParts<'t>> {
        let mut parts = ColumnParts::default();
        let members = match value.get_ref() {
            DeValue::String(_) => {
                parts.kind = Some(value);
                return Some(parts);
            }
            DeValue::Table(members) => members,
            _ => {
                self.fault(value.span(), at, "write the type as a string, or { type = \"…\", … }");
                return None;
            }
        };
        for (member, value) in members {
            match member.get_ref().as_ref() {
                "type" => parts.kind = Some(value),
                "required" => match value.get_ref().as_bool() {
                    Some(required) => parts.required = required,
                    None => self.fault(value.span(), at, "required: write true or false"),
                },
                "default" => parts.default = Some(value),
                "max_length" => parts.max_length = Some(value),
                "references" => match value.get_ref().as_str() {
                    Some(to) => parts.references = Some((to, value.span())),
                    None => self.fault(value.span(), at, "references: write the name of a table"),
                },
                "merge" => parts.merge = Some(value),
                other => self.fault(
                    member.span(),
                    at,
                    format!(
                        "unknown member {other:?}; a column has type, required, default, max_length, \
                         references and merge"
                    ),
                ),
            }
        }
        Some(parts)
    }

    fn kind(
        &mut self,
        at: &str,
        span: Range<usize>,
        value: Option<&'t Spanned<DeValue<'t>>>,
    ) -> Option<ColumnType> {
        let known = || ColumnType::ALL.map(ColumnType::name).join(", ");
        let Some(value) = value else {
            self.fault(span, at, format!("no type; write type = \"…\" with one of {}", known()));
            return None;
        };
        let Some(text) = value.get_ref().as_str() else {
            self.fault(value.span(), at, format!("type: write a string, one of {}", known()));
            return None;
        };
        let found = ColumnType::ALL.into_iter().find(|kind| kind.name() == text);
        if found.is_none() {
            self.fault(value.span(), at, format!("unknown type {text:?}; write one of {}", known()));
        }
        found
    }

    fn max_length(&mut self, at: &str, kind: ColumnType, value: &'t Spanned<DeValue<'t>>) -> Option<usize> {
        if !matches!(kind, ColumnType::Text | ColumnType::Json | ColumnType::Blob) {
            let what = format!("max_length: only text, json and blob have a length, not {}", kind.name());
            self.fault(value.span(), at, what);
            return None;
        }
        match whole_number(value) {
            Some(length) if length > 0 => Some(length),
            _ => {
                self.fault(value.span(), at, "max_length: write a whole number from 1");
                None
            }
        }
    }

    fn merge(&mut self, at: &str, kind: ColumnType, value: &'t Spanned<DeValue<'t>>) -> ColumnMerge {
        let rules =
            [ColumnMerge::Newest, ColumnMerge::Max, ColumnMerge::Min, ColumnMerge::Sum, ColumnMerge::Union];
        let known = rules.into_iter().filter(|rule| rule.takes(kind));
        let given = value.get_ref().as_str();
        known.clone().find(|rule| Some(rule.name()) == given).unwrap_or_else(|| {
            let names: Vec<_> = known.map(|rule| format!("{:?}", rule.name())).collect();
            let what = format!("merge: a column of type {} takes {}", kind.name(), names.join(", "));
            self.fault(value.span(), at, what);
            ColumnMerge::default()
        })
    }

    fn default(
        &mut self,
        at: &str,
        column: &Column,
        value: &'t Spanned<DeValue<'t>>,
        precision: Precision,
    ) -> Option<DefaultValue> {
        let clocked = matches!(column.kind, ColumnType::Timestamp | ColumnType::Date);
        if clocked && value.get_ref().as_str() == Some("now") {
            return Some(DefaultValue::Now);
        }
        let seed = ValueSeed { column, precision, json_depth_max: DEFAULT_JSON_DEPTH_MAX };
        let json = match value.get_ref() {
            // Read as text, since a double would lose digits.
            DeValue::Float(number) if column.kind == ColumnType::Decimal => {
                Ok(number.as_str().trim_start_matches('+').into())
            }
            other => json_of(other),
        };
        let read = json
            .and_then(|json| seed.deserialize(json).map_err(|error: serde_json::Error| error.to_string()));
        match read {
            Ok(Value::Null) => None, // TOML has no null; a reader that makes one would mean "no default"
            Ok(read) => match column.over_length(&read) {
                None => Some(DefaultValue::Constant(read)),
                Some(length) => {
                    self.fault(value.span(), at, format!("default: its length {length} is over max_length"));
                    None
                }
            },
            Err(fault) => {
                let now = match value.get_ref().as_str() {
                    _ if clocked => ", or \"now\"",
                    Some("now") => "; only timestamp and date can begin as \"now\"",
                    _ => "",
                };
                self.fault(value.span(), at, format!("default: {fault}{now}"));
                None
            }
        }
    }
}

/// Converts a default to JSON, so that the wire's reader can read it. TOML's own dates become their text.
fn json_of(value: &DeValue<'_>) -> Result<serde_json::Value, String> {
    use serde_json::Value as Json;
    Ok(match value {
        DeValue::String(text) => Json::String(text.as_ref().to_owned()),
        DeValue::Integer(number) => {
            let read = i64::from_str_radix(number.as_str(), number.radix());
            Json::from(read.map_err(|_| "expected an integer of at most 64 bits".to_owned())?)
        }
        DeValue::Float(number) => {
            let read: f64 = number.as_str().parse().map_err(|_| "expected a number".to_owned())?;
            serde_json::Number::from_f64(read).map(Json::Number).ok_or("expected a finite number")?
        }
        DeValue::Boolean(value) => Json::Bool(*value),
        DeValue::Datetime(at) => Json::String(at.to_string()),
        DeValue::Array(items) => {
            Json::Array(items.iter().map(|item| json_of(item.get_ref())).collect::<Result<_, _>>()?)
        }
        DeValue::Table(members) => {
            let member = |(name, value): (&Spanned<toml::de::DeString<'_>>, &Spanned<DeValue<'_>>)| {
                Ok::<_, String>((name.get_ref().as_ref().to_owned(), json_of(value.get_ref())?))
            };
            Json::Object(members.iter().map(member).collect::<Result<_, _>>()?)
        }
    })
}

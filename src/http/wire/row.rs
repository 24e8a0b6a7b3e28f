//! Rows and keys as a device sends them, read directly into their types.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::read::{Fault, Reader, known, member};
use super::unreadable::lossy;
use crate::http::BodyFault;
use crate::model::{RowKey, Timestamp, Value};
use crate::reconcile::{Incoming, RejectionCode};
use crate::schema::{ColumnType, Table, ValueSeed};

/// How many times longer than `row_bytes_max` the text of a `json` value may be: blanks and escapes are
/// removed later.
const JSON_TIMES: usize = 4;

/// How the items of a set are read: rows under `add` and `update`, keys or objects under `delete`, keys under `get`.
pub(super) trait Item: Copy {
    type Read;
    const WHAT: &'static str;
    fn read<'de, 'a, D: Deserializer<'de>>(
        self,
        reader: &Reader<'a>,
        table: &'a Table,
        json: D,
    ) -> Result<Self::Read, D::Error>;
}

#[derive(Clone, Copy)]
pub(super) struct RowItem;

impl Item for RowItem {
    type Read = Incoming;
    const WHAT: &'static str = "rows";

    fn read<'de, 'a, D: Deserializer<'de>>(
        self,
        reader: &Reader<'a>,
        table: &'a Table,
        json: D,
    ) -> Result<Incoming, D::Error> {
        json.deserialize_map(RowVisitor { reader, table, columns: true })
    }
}

#[derive(Clone, Copy)]
pub(super) struct DeletedItem;

impl Item for DeletedItem {
    type Read = Incoming;
    const WHAT: &'static str = "keys";

    fn read<'de, 'a, D: Deserializer<'de>>(
        self,
        reader: &Reader<'a>,
        table: &'a Table,
        json: D,
    ) -> Result<Incoming, D::Error> {
        json.deserialize_any(RowVisitor { reader, table, columns: false })
    }
}

#[derive(Clone, Copy)]
pub(super) struct KeyItem;

impl Item for KeyItem {
    type Read = RowKey;
    const WHAT: &'static str = "keys";

    fn read<'de, 'a, D: Deserializer<'de>>(
        self,
        reader: &Reader<'a>,
        _: &'a Table,
        json: D,
    ) -> Result<RowKey, D::Error> {
        KeySeed(reader).deserialize(json)
    }
}

/// What a member of a row denotes.
pub(super) enum Name {
    Key,
    LastUpdate,
    Base,
    Column(usize),
    Other(String),
}

/// Looks up the name of a member without copying it.
pub(super) struct NameSeed<'a> {
    pub table: &'a Table,
    /// Whether half of a surrogate pair is read as U+FFFD. The text is then known to be JSON.
    pub lossy: bool,
}

impl<'de> DeserializeSeed<'de> for NameSeed<'_> {
    type Value = Name;
    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Name, D::Error> {
        if self.lossy { json.deserialize_bytes(self) } else { json.deserialize_str(self) }
    }
}

impl Visitor<'_> for NameSeed<'_> {
    type Value = Name;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name of a column")
    }

    fn visit_bytes<E: Error>(self, name: &[u8]) -> Result<Name, E> {
        self.visit_str(&lossy(name))
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<Name, E> {
        Ok(match name {
            _ if name == self.table.key => Name::Key,
            "last_update" => Name::LastUpdate,
            "_base" => Name::Base,
            _ => self.table.column(name).map_or_else(|| Name::Other(name.to_owned()), Name::Column),
        })
    }
}

/// One row; or, without `columns`, one deletion, which may be a plain key.
struct RowVisitor<'r, 'a> {
    reader: &'r Reader<'a>,
    table: &'a Table,
    columns: bool,
}

impl<'de> Visitor<'de> for RowVisitor<'_, '_> {
    type Value = Incoming;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.columns { "a row" } else { "a key, or an object with a key" })
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Incoming, E> {
        if self.columns {
            return Err(E::invalid_type(serde::de::Unexpected::Str(text), &self));
        }
        let key = parse_key(self.reader, text)?;
        self.reader.weigh(size_of::<Incoming>())?;
        Ok(Incoming { key, values: Vec::new(), last_update: None, claimed_at: None, base: None })
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Incoming, A::Error> {
        let Self { reader, table, columns } = self;
        reader.weigh(size_of::<Incoming>())?;
        if columns {
            reader.weigh(table.columns.len() * size_of::<Option<Value>>())?;
        }
        let mut key = None;
        let mut values: Vec<Option<Value>> =
            if columns { vec![None; table.columns.len()] } else { Vec::new() };
        let (mut last_update, mut base) = (None, None); // outer: whether the member is present; inner: its value
        let twice =
            |step| reader.fault_at(step, Fault::Row(RejectionCode::InvalidValue), "this column comes twice");
        let unknown =
            |step, reason: String| reader.fault_at(step, Fault::Request(BodyFault::UnknownColumn), reason);
        while let Some(name) = map.next_key_seed(NameSeed { table, lossy: reader.row_by_row })? {
            match name {
                Name::Key => {
                    let read = reader.at(known(&table.key), || map.next_value_seed(KeySeed(reader)))?;
                    if key.replace(read).is_some() {
                        return Err(twice(known(&table.key)));
                    }
                }
                Name::LastUpdate => {
                    let read = reader.at(known("last_update"), || map.next_value_seed(TimeSeed))?;
                    if last_update.replace(read).is_some() {
                        return Err(twice(known("last_update")));
                    }
                }
                Name::Base => {
                    let read = reader.at(known("_base"), || map.next_value_seed(TimeSeed))?;
                    if base.replace(read).is_some() {
                        return Err(twice(known("_base")));
                    }
                }
                Name::Column(index) if columns => {
                    let column = &table.columns[index];
                    let (precision, json_depth_max) = (reader.schema.precision, reader.limits.json_depth_max);
                    let seed = ValueSeed { column, precision, json_depth_max };
                    let value = reader.at(known(&column.name), || match column.kind {
                        ColumnType::Json => json_value(reader, seed, &mut map),
                        _ => map.next_value_seed(seed),
                    })?;
                    reader.weigh(value.weight())?;
                    if values[index].replace(value).is_some() {
                        return Err(twice(known(&column.name)));
                    }
                }
                Name::Column(index) => {
                    let reason = "a deletion takes the key, last_update and _base";
                    return Err(unknown(known(&table.columns[index].name), reason.into()));
                }
                Name::Other(name) => {
                    return Err(unknown(member(name), format!("{} has no such column", table.name)));
                }
            }
        }
        match key {
            Some(key) => {
                let (last_update, base) = (last_update.flatten(), base.flatten());
                Ok(Incoming { key, values, last_update, claimed_at: last_update, base })
            }
            None => {
                let fault = Fault::Row(RejectionCode::InvalidKey);
                Err(reader.fault(fault, format_args!("the key, {}, is missing", table.key)))
            }
        }
    }
}

/// The memory of a `json` value, as a multiple of its length, while its members are sorted: each is a name, a
/// value and a node of a tree.
const JSON_GROWS: usize = 32;

/// A shorter `json` value takes so little memory that nothing is reserved for it.
const JSON_BYTES_FREE: usize = 1_024;

/// Any JSON, unless it is too long, too deep, or invalid Unicode.
fn json_value<'de, A: MapAccess<'de>>(
    reader: &Reader<'_>,
    seed: ValueSeed<'_>,
    map: &mut A,
) -> Result<Value, A::Error> {
    let raw: &'de RawValue = map.next_value()?;
    let max = reader.limits.row_bytes_max.saturating_mul(JSON_TIMES);
    if raw.get().len() > max {
        let reason = format_args!("expected JSON of at most {max} bytes").to_string();
        return Err(reader.fault(Fault::Row(RejectionCode::RowTooLarge), reason));
    }
    let read = || seed.json(raw.get());
    let read = match raw.get().len() {
        bytes if bytes < JSON_BYTES_FREE => read(),
        bytes => reader.during(bytes.saturating_mul(JSON_GROWS), read)?,
    };
    read.map_err(|fault| reader.fault(Fault::Row(RejectionCode::InvalidValue), fault))
}

struct KeySeed<'r, 'a>(&'r Reader<'a>);

impl<'de> DeserializeSeed<'de> for KeySeed<'_, '_> {
    type Value = RowKey;
    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<RowKey, D::Error> {
        // Any error here concerns the key.
        let before = self.0.fault.replace(Fault::Row(RejectionCode::InvalidKey));
        let reader = self.0;
        let key = json.deserialize_str(self)?;
        reader.fault.set(before);
        Ok(key)
    }
}

impl<'de> Visitor<'de> for KeySeed<'_, '_> {
    type Value = RowKey;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a UUID of 36 characters with hyphens")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<RowKey, E> {
        parse_key(self.0, text)
    }
}

fn parse_key<E: Error>(reader: &Reader<'_>, text: &str) -> Result<RowKey, E> {
    let expected = "expected a key: a UUID of 36 characters with hyphens";
    RowKey::parse(text).ok_or_else(|| reader.fault(Fault::Row(RejectionCode::InvalidKey), expected))
}

/// A time, or `null` for none.
pub(super) struct TimeSeed;

impl<'de> DeserializeSeed<'de> for TimeSeed {
    type Value = Option<Timestamp>;
    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Self::Value, D::Error> {
        json.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for TimeSeed {
    type Value = Option<Timestamp>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a time such as \"2013-05-01T15:42:50.000Z\"")
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        Timestamp::parse(text).map(Some).map_err(E::custom)
    }
}

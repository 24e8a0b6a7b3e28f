use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::config::Limits;
use crate::http::{ApiError, BodyFault};
use crate::model::{RowKey, Timestamp, Value, Version};
use crate::reconcile::Incoming;
use crate::schema::{ColumnType, Schema, Table, TableId, ValueSeed};
use crate::synchronise::Batch;

/// Reads the body of phase 2.
///
/// - Shape: `openapi.yaml`, schema `SynchroniseRequest`. Rows become typed values as they are read; no tree
///   of JSON is built.
/// - Bounds: `rows_max`, `get_keys_max`, `json_depth_max` and `batch_bytes_max` of `limits`; a `json` value is at
///   most four times as long as a row may be, since it takes many times its length while it is read.
/// - Errors: [`ApiError::MalformedJson`] with line and column; [`ApiError::InvalidBody`] with a JSON pointer.
pub fn read_batch(body: &[u8], schema: &Schema, limits: &Limits) -> Result<Batch, ApiError> {
    let reader = Reader {
        schema,
        limits,
        path: RefCell::default(),
        fault: Cell::new(BodyFault::WrongType),
        rows: Cell::new(0),
        keys: Cell::new(0),
        bytes: Cell::new(0),
    };
    let mut json = serde_json::Deserializer::from_slice(body);
    let read = BatchSeed(&reader).deserialize(&mut json).and_then(|batch| json.end().map(|()| batch));
    read.map_err(|error| reader.explain(&error))
}

/// What the seeds below share: the declared tables, and where in the body they are.
struct Reader<'a> {
    schema: &'a Schema,
    limits: &'a Limits,
    /// Where the value that is being read stands; after an error, where the error is.
    path: RefCell<Vec<Step<'a>>>,
    /// What the error is, if there is one and it is not about JSON itself.
    fault: Cell<BodyFault>,
    rows: Cell<usize>,
    keys: Cell<usize>,
    /// What has been read takes so many bytes.
    bytes: Cell<usize>,
}

/// How many times `row_bytes_max` a `json` value may have as it is sent: blanks and escapes do not count later.
const JSON_TIMES: usize = 4;

pub(super) enum Step<'a> {
    Member(Cow<'a, str>),
    Item(usize),
}

impl<'a> Reader<'a> {
    /// Reads something that stands one step further in. On an error the step stays, to tell where.
    fn at<T, E>(&self, step: Step<'a>, read: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        self.path.borrow_mut().push(step);
        let value = read()?;
        self.path.borrow_mut().pop();
        Ok(value)
    }

    fn fault<E: Error>(&self, fault: BodyFault, reason: impl fmt::Display) -> E {
        self.fault.set(fault);
        E::custom(reason)
    }

    fn fault_at<E: Error>(&self, step: Step<'a>, fault: BodyFault, reason: impl fmt::Display) -> E {
        self.path.borrow_mut().push(step);
        self.fault(fault, reason)
    }

    fn count<E: Error>(&self, counter: &Cell<usize>, max: usize, what: &str) -> Result<(), E> {
        counter.set(counter.get() + 1);
        if counter.get() > max {
            return Err(self.fault(BodyFault::TooManyRows, format_args!("more than {max} {what}")));
        }
        Ok(())
    }

    /// Counts what a row takes once it is read. A body of small rows may be many times as large then.
    fn weigh<E: Error>(&self, bytes: usize) -> Result<(), E> {
        let max = self.limits.batch_bytes_max;
        self.bytes.set(self.bytes.get().saturating_add(bytes));
        if self.bytes.get() > max {
            let reason = format_args!("the rows so far take more than {max} bytes of memory: send fewer");
            return Err(self.fault(BodyFault::TooManyRows, reason));
        }
        Ok(())
    }

    fn explain(&self, error: &serde_json::Error) -> ApiError {
        if !error.is_data() {
            return malformed(error);
        }
        let at = self.path.borrow().iter().map(Step::to_string).collect();
        ApiError::InvalidBody { code: self.fault.get(), at, reason: reason(error) }
    }
}

impl fmt::Display for Step<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Member(name) => write!(f, "/{}", name.replace('~', "~0").replace('/', "~1")),
            Self::Item(place) => write!(f, "/{place}"),
        }
    }
}

/// The body as a whole.
struct BatchSeed<'r, 'a>(&'r Reader<'a>);

impl<'de> DeserializeSeed<'de> for BatchSeed<'_, '_> {
    type Value = Batch;
    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Batch, D::Error> {
        json.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for BatchSeed<'_, '_> {
    type Value = Batch;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with add, update, delete and get")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Batch, A::Error> {
        let reader = self.0;
        let mut batch = Batch::default();
        let mut seen = Vec::new();
        while let Some(name) = map.next_key::<String>()? {
            if seen.contains(&name) {
                return Err(reader.fault_at(
                    member(name),
                    BodyFault::UnknownMember,
                    "this member comes twice",
                ));
            }
            seen.push(name.clone());
            let step = member(name.clone());
            match name.as_str() {
                "add" => batch.add = reader.at(step, || map.next_value_seed(SetsSeed(reader, RowItem)))?,
                "update" => {
                    batch.update = reader.at(step, || map.next_value_seed(SetsSeed(reader, RowItem)))?
                }
                "delete" => {
                    batch.delete = reader.at(step, || map.next_value_seed(SetsSeed(reader, DeletedItem)))?
                }
                "get" => batch.get = reader.at(step, || map.next_value_seed(SetsSeed(reader, KeyItem)))?,
                "base" => {
                    let base: Option<u64> = reader.at(step, || map.next_value())?;
                    batch.base = base.map(Version);
                }
                "sent_at" => batch.sent_at = reader.at(step, || map.next_value_seed(TimeSeed))?,
                "atomic" => batch.atomic = reader.at(step, || map.next_value())?,
                "dry_run" => batch.dry_run = reader.at(step, || map.next_value())?,
                "pull" => batch.pull = reader.at(step, || map.next_value())?,
                "keep_lock" => batch.keep_lock = reader.at(step, || map.next_value())?,
                "put_back" => batch.put_back = reader.at(step, || map.next_value())?,
                "confirm_deletes" => batch.confirm_deletes = reader.at(step, || map.next_value())?,
                _ => {
                    let known = "add, update, delete, get, base, sent_at, atomic, dry_run, pull, keep_lock, \
                                 confirm_deletes, put_back";
                    let reason = format!("there is no such member; there are {known}");
                    return Err(reader.fault_at(step, BodyFault::UnknownMember, reason));
                }
            }
        }
        if batch.put_back && !batch.delete.is_empty() {
            let reason = "with put_back nothing is deleted: send deletions in another request";
            return Err(reader.fault_at(known("delete"), BodyFault::UnknownMember, reason));
        }
        Ok(batch)
    }
}

/// How the items of a set are read: rows under `add` and `update`, keys or objects under `delete`, keys under `get`.
trait Item: Copy {
    type Read;
    const WHAT: &'static str;
    fn read<'de, 'a, D: Deserializer<'de>>(
        self,
        reader: &Reader<'a>,
        table: &'a Table,
        json: D,
    ) -> Result<Self::Read, D::Error>;
}

/// One of `add`, `update`, `delete`, `get`: an object of tables.
struct SetsSeed<'r, 'a, I>(&'r Reader<'a>, I);

impl<'de, I: Item> DeserializeSeed<'de> for SetsSeed<'_, '_, I> {
    type Value = Vec<(TableId, Vec<I::Read>)>;
    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Self::Value, D::Error> {
        json.deserialize_map(self)
    }
}

impl<'de, I: Item> Visitor<'de> for SetsSeed<'_, '_, I> {
    type Value = Vec<(TableId, Vec<I::Read>)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with a member for each table")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let Self(reader, item) = self;
        let mut sets: Self::Value = Vec::new();
        while let Some(name) = map.next_key::<String>()? {
            let Some(table) = reader.schema.table(&name) else {
                // The core seed sends an empty set for a table that it does not have.
                reader.at(member(name), || map.next_value_seed(SetSeed { reader, table: None, item }))?;
                continue;
            };
            if sets.iter().any(|(id, _)| *id == table.id) {
                return Err(reader.fault_at(
                    known(&table.name),
                    BodyFault::UnknownMember,
                    "this table comes twice",
                ));
            }
            let seed = SetSeed { reader, table: Some(table), item };
            let rows = reader.at(known(&table.name), || map.next_value_seed(seed))?;
            sets.push((table.id, rows));
        }
        Ok(sets)
    }
}

/// The rows or keys of one table. An empty set may come as an empty object.
struct SetSeed<'r, 'a, I> {
    reader: &'r Reader<'a>,
    /// `None` if there is no such table.
    table: Option<&'a Table>,
    item: I,
}

impl<'de, I: Item> DeserializeSeed<'de> for SetSeed<'_, '_, I> {
    type Value = Vec<I::Read>;
    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Self::Value, D::Error> {
        json.deserialize_any(self)
    }
}

impl<'de, I: Item> Visitor<'de> for SetSeed<'_, '_, I> {
    type Value = Vec<I::Read>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list of {}", I::WHAT)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
        let Self { reader, table, item } = self;
        let mut read = Vec::new();
        loop {
            let seed = ItemSeed { reader, table, item };
            match reader.at(Step::Item(read.len()), || items.next_element_seed(seed))? {
                Some(one) => read.push(one),
                None => return Ok(read),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        match map.next_key::<String>()? {
            None => Ok(Vec::new()),
            Some(_) if self.table.is_none() => Err(no_such_table(self.reader)),
            Some(_) => {
                let reason =
                    format_args!("expected a list of {}, not an object with members", I::WHAT).to_string();
                Err(self.reader.fault(BodyFault::WrongType, reason))
            }
        }
    }
}

struct ItemSeed<'r, 'a, I> {
    reader: &'r Reader<'a>,
    table: Option<&'a Table>,
    item: I,
}

impl<'de, I: Item> DeserializeSeed<'de> for ItemSeed<'_, '_, I> {
    type Value = I::Read;
    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Self::Value, D::Error> {
        match self.table {
            Some(table) => self.item.read(self.reader, table, json),
            None => {
                self.reader.path.borrow_mut().pop(); // the table is at fault, not its first row
                Err(no_such_table(self.reader))
            }
        }
    }
}

fn no_such_table<E: Error>(reader: &Reader<'_>) -> E {
    let names: Vec<&str> = reader.schema.tables().iter().map(|table| table.name.as_str()).take(20).collect();
    reader.fault(
        BodyFault::UnknownTable,
        format_args!("there is no such table; there are {}", names.join(", ")),
    )
}

#[derive(Clone, Copy)]
struct RowItem;

impl Item for RowItem {
    type Read = Incoming;
    const WHAT: &'static str = "rows";

    fn read<'de, 'a, D: Deserializer<'de>>(
        self,
        reader: &Reader<'a>,
        table: &'a Table,
        json: D,
    ) -> Result<Incoming, D::Error> {
        reader.count(&reader.rows, reader.limits.rows_max, "rows in one request")?;
        json.deserialize_map(RowVisitor { reader, table, columns: true })
    }
}

#[derive(Clone, Copy)]
struct DeletedItem;

impl Item for DeletedItem {
    type Read = Incoming;
    const WHAT: &'static str = "keys";

    fn read<'de, 'a, D: Deserializer<'de>>(
        self,
        reader: &Reader<'a>,
        table: &'a Table,
        json: D,
    ) -> Result<Incoming, D::Error> {
        reader.count(&reader.rows, reader.limits.rows_max, "rows in one request")?;
        json.deserialize_any(RowVisitor { reader, table, columns: false })
    }
}

#[derive(Clone, Copy)]
struct KeyItem;

impl Item for KeyItem {
    type Read = RowKey;
    const WHAT: &'static str = "keys";

    fn read<'de, 'a, D: Deserializer<'de>>(
        self,
        reader: &Reader<'a>,
        _: &'a Table,
        json: D,
    ) -> Result<RowKey, D::Error> {
        reader.count(&reader.keys, reader.limits.get_keys_max, "keys under get")?;
        KeySeed(reader).deserialize(json)
    }
}

/// What a member of a row is about.
enum Name {
    Key,
    LastUpdate,
    Base,
    Column(usize),
    Other(String),
}

/// Looks the name of a member up without copying it.
struct NameSeed<'a>(&'a Table);

impl<'de> DeserializeSeed<'de> for NameSeed<'_> {
    type Value = Name;
    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Name, D::Error> {
        json.deserialize_str(self)
    }
}

impl Visitor<'_> for NameSeed<'_> {
    type Value = Name;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name of a column")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<Name, E> {
        Ok(match name {
            _ if name == self.0.key => Name::Key,
            "last_update" => Name::LastUpdate,
            "_base" => Name::Base,
            _ => self.0.column(name).map_or_else(|| Name::Other(name.to_owned()), Name::Column),
        })
    }
}

/// One row; or, without `columns`, one deletion, which may be a bare key.
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
        Ok(Incoming { key, values: Vec::new(), last_update: None, base: None })
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
        let (mut last_update, mut base) = (None, None); // outside: whether the member came, inside: its value
        let twice = |step| reader.fault_at(step, BodyFault::UnknownMember, "this column comes twice");
        while let Some(name) = map.next_key_seed(NameSeed(table))? {
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
                Name::Column(place) if columns => {
                    let column = &table.columns[place];
                    let (precision, json_depth_max) = (reader.schema.precision, reader.limits.json_depth_max);
                    let seed = ValueSeed { column, precision, json_depth_max };
                    // Any JSON is of a json column's type: all that can be wrong with it is its depth.
                    let is_json = column.kind == ColumnType::Json;
                    reader.fault.set(if is_json { BodyFault::InvalidValue } else { BodyFault::WrongType });
                    let value = reader.at(known(&column.name), || {
                        if is_json { json_value(reader, seed, &mut map) } else { map.next_value_seed(seed) }
                    })?;
                    reader.weigh(value.weight())?;
                    reader.fault.set(BodyFault::WrongType);
                    if values[place].replace(value).is_some() {
                        return Err(twice(known(&column.name)));
                    }
                }
                Name::Column(place) => {
                    let reason = "a deletion takes the key, last_update and _base";
                    return Err(reader.fault_at(
                        known(&table.columns[place].name),
                        BodyFault::UnknownColumn,
                        reason,
                    ));
                }
                Name::Other(name) => {
                    let reason = format!("{} has no such column", table.name);
                    return Err(reader.fault_at(member(name), BodyFault::UnknownColumn, reason));
                }
            }
        }
        match key {
            Some(key) => {
                Ok(Incoming { key, values, last_update: last_update.flatten(), base: base.flatten() })
            }
            None => {
                Err(reader.fault(BodyFault::InvalidKey, format_args!("the key, {}, is missing", table.key)))
            }
        }
    }
}

/// Any JSON, unless it is too long to be looked at.
fn json_value<'de, A: MapAccess<'de>>(
    reader: &Reader<'_>,
    seed: ValueSeed<'_>,
    map: &mut A,
) -> Result<Value, A::Error> {
    let raw: &'de RawValue = map.next_value()?;
    let max = reader.limits.row_bytes_max.saturating_mul(JSON_TIMES);
    if raw.get().len() > max {
        return Err(A::Error::custom(format_args!("expected JSON of at most {max} bytes")));
    }
    seed.deserialize(&mut serde_json::Deserializer::from_str(raw.get()))
        .map_err(|error| A::Error::custom(reason(&error)))
}

struct KeySeed<'r, 'a>(&'r Reader<'a>);

impl<'de> DeserializeSeed<'de> for KeySeed<'_, '_> {
    type Value = RowKey;
    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<RowKey, D::Error> {
        // Whatever is wrong with it, a string or not, the fault is the key's.
        let reader = self.0;
        reader.fault.set(BodyFault::InvalidKey);
        let key = json.deserialize_str(self)?;
        reader.fault.set(BodyFault::WrongType);
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
    RowKey::parse(text).ok_or_else(|| reader.fault(BodyFault::InvalidKey, expected))
}

/// A time, or `null` for none.
struct TimeSeed;

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

pub(super) fn known(name: &str) -> Step<'_> {
    Step::Member(Cow::Borrowed(name))
}

fn member(name: String) -> Step<'static> {
    Step::Member(Cow::Owned(name))
}

pub(super) fn malformed(error: &serde_json::Error) -> ApiError {
    ApiError::MalformedJson { reason: reason(error), line: error.line(), column: error.column() }
}

/// serde_json ends its sentence with the place, which the problem tells in members of its own.
fn reason(error: &serde_json::Error) -> String {
    let told = error.to_string();
    told.rsplit_once(" at line ").map_or(told.as_str(), |(reason, _)| reason).to_owned()
}

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::fmt;

use serde::de::{Deserialize, DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::row::{DeletedItem, Item, KeyItem, RowItem, TimeSeed};
use super::unreadable::{self, lossy};
use crate::config::Limits;
use crate::http::{ApiError, BodyFault, Permit};
use crate::model::Version;
use crate::reconcile::RejectionCode;
use crate::schema::{Schema, Table, TableId};
use crate::synchronise::{Batch, Part, UnreadableItem};

/// Reads the body of phase 2.
///
/// - Shape: `openapi.yaml`, schema `SynchroniseRequest`. Rows become typed values while they are read; no
///   tree of JSON is built. A row with an invalid value affects only that row: see [`Batch::unreadable`].
/// - Bounds: `rows_max`, `get_keys_max`, `json_depth_max` and `batch_bytes_max` of `limits`. A `json` value
///   is at most four times as long as a row may be, since reading it takes many times its length.
/// - Errors: [`ApiError::MalformedJson`] with line and column; [`ApiError::InvalidBody`] with a JSON pointer.
pub fn read_batch(body: &[u8], schema: &Schema, limits: &Limits) -> Result<Batch, ApiError> {
    read(body, schema, limits, None)
}

/// The same, with memory that is reserved in `permit` before it is allocated.
///
/// - Bounds: the reservation remains: at most `batch_bytes_max`, or the length of the body if that is more.
/// - Errors: also 503 `busy`.
pub fn read_batch_within(
    body: &[u8],
    schema: &Schema,
    limits: &Limits,
    permit: &Permit,
) -> Result<Batch, ApiError> {
    // A value is at most as long as its text, so the reservation comes before every value.
    permit.grow(body.len())?;
    read(body, schema, limits, Some(permit))
}

fn read(body: &[u8], schema: &Schema, limits: &Limits, permit: Option<&Permit>) -> Result<Batch, ApiError> {
    let reader = |row_by_row| Reader::new(schema, limits, row_by_row, permit.map(|it| (it, body.len())));
    // Nearly every body is valid as a whole, and is read once.
    let whole = reader(false);
    let first = match whole.read(&mut serde_json::Deserializer::from_slice(body)) {
        Ok(batch) => return Ok(batch),
        Err(_) if whole.is_out_of_memory() => return Err(ApiError::no_memory()),
        Err(first) => first,
    };
    whole.give_back();
    // Otherwise each row is read by itself, so that an invalid row does not affect the others.
    let text = std::str::from_utf8(body).map_err(|error| not_utf8(body, error.valid_up_to()))?;
    if let Err(error) = serde_json::from_str::<&RawValue>(text) {
        return Err(malformed(if unreadable::is_json(&first) { &error } else { &first }));
    }
    let reader = reader(true);
    let batch = reader.read(&mut serde_json::Deserializer::from_str(text));
    let batch = batch.map_err(|error| reader.explain(&error))?;
    Ok(Batch { unreadable: reader.unreadable.take(), ..batch })
}

/// The shared state of the seeds below: the declared tables, and the position in the body.
pub(super) struct Reader<'a> {
    pub schema: &'a Schema,
    pub limits: &'a Limits,
    /// Whether each row is read by itself. The body is then known to be valid JSON in UTF-8.
    pub row_by_row: bool,
    /// The position of the current value; after an error, the position of the error.
    pub path: RefCell<Vec<Step<'a>>>,
    /// The kind of the error, if it does not concern JSON itself.
    pub fault: Cell<Fault>,
    rows: Cell<usize>,
    keys: Cell<usize>,
    /// The bytes of what has been read.
    pub bytes: Cell<usize>,
    /// The reservation, and its size at the start.
    permit: Option<(&'a Permit, usize)>,
    /// The reserved bytes, including those of the start.
    drawn: Cell<usize>,
    /// The rows and keys that could not be read.
    pub unreadable: RefCell<Vec<UnreadableItem>>,
}

/// What an error concerns.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fault {
    /// The request: it names something that the contract does not have, or is too large.
    Request(BodyFault),
    /// One row, which is rejected.
    Row(RejectionCode),
    /// The server, which has no memory left.
    Memory,
}

/// Memory for rows is reserved in pieces of this many bytes.
const PIECE_BYTES: usize = 64 * 1024;

pub(super) enum Step<'a> {
    Member(Cow<'a, str>),
    Item(usize),
}

impl<'a> Reader<'a> {
    fn new(
        schema: &'a Schema,
        limits: &'a Limits,
        row_by_row: bool,
        permit: Option<(&'a Permit, usize)>,
    ) -> Self {
        Self {
            schema,
            limits,
            row_by_row,
            path: RefCell::default(),
            fault: Cell::new(Fault::Request(BodyFault::WrongType)),
            rows: Cell::new(0),
            keys: Cell::new(0),
            bytes: Cell::new(0),
            permit,
            drawn: Cell::new(permit.map_or(0, |(_, at_start)| at_start)),
            unreadable: RefCell::default(),
        }
    }

    fn read<'de, R: serde_json::de::Read<'de>>(
        &self,
        json: &mut serde_json::Deserializer<R>,
    ) -> Result<Batch, serde_json::Error> {
        let batch = BatchSeed(self).deserialize(&mut *json)?;
        json.end().map(|()| batch)
    }

    /// Reads something one step deeper. After an error the step stays, to show the position.
    pub fn at<T, E>(&self, step: Step<'a>, read: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        self.path.borrow_mut().push(step);
        let value = read()?;
        self.path.borrow_mut().pop();
        Ok(value)
    }

    pub fn fault<E: Error>(&self, fault: Fault, reason: impl fmt::Display) -> E {
        self.fault.set(fault);
        E::custom(reason)
    }

    pub fn fault_at<E: Error>(&self, step: Step<'a>, fault: Fault, reason: impl fmt::Display) -> E {
        self.path.borrow_mut().push(step);
        self.fault(fault, reason)
    }

    fn unknown_at<E: Error>(&self, step: Step<'a>, reason: impl fmt::Display) -> E {
        self.fault_at(step, Fault::Request(BodyFault::UnknownMember), reason)
    }

    /// Counts one row, or one key under `get`.
    fn count<E: Error>(&self, part: Part) -> Result<(), E> {
        let (counter, max, what) = match part {
            Part::Get => (&self.keys, self.limits.get_keys_max, "keys under get"),
            _ => (&self.rows, self.limits.rows_max, "rows in one request"),
        };
        counter.set(counter.get() + 1);
        if counter.get() > max {
            let fault = Fault::Request(BodyFault::TooManyRows);
            return Err(self.fault(fault, format_args!("more than {max} {what}")));
        }
        Ok(())
    }

    /// Counts the memory of a row. Small rows may take many times the length of the body.
    pub fn weigh<E: Error>(&self, bytes: usize) -> Result<(), E> {
        let max = self.limits.batch_bytes_max;
        self.bytes.set(self.bytes.get().saturating_add(bytes));
        if self.bytes.get() > max {
            let reason = format_args!("the rows so far take more than {max} bytes of memory: send fewer");
            return Err(self.fault(Fault::Request(BodyFault::TooManyRows), reason));
        }
        let Some((permit, _)) = self.permit else { return Ok(()) };
        let lacking = self.bytes.get().saturating_sub(self.drawn.get());
        if lacking > 0 {
            let piece = lacking.next_multiple_of(PIECE_BYTES);
            permit.grow(piece).map_err(|refusal| self.fault(Fault::Memory, refusal))?;
            self.drawn.set(self.drawn.get() + piece);
        }
        Ok(())
    }

    /// Reserves memory while `work` runs.
    pub fn during<T, E: Error>(&self, bytes: usize, work: impl FnOnce() -> T) -> Result<T, E> {
        match self.permit {
            Some((permit, _)) => {
                permit.during(bytes, work).map_err(|refusal| self.fault(Fault::Memory, refusal))
            }
            None => Ok(work()),
        }
    }

    fn is_out_of_memory(&self) -> bool {
        matches!(self.fault.get(), Fault::Memory)
    }

    /// Releases the memory that was added to the reservation, since no row was kept.
    fn give_back(&self) {
        if let Some((permit, at_start)) = self.permit {
            permit.shrink(self.drawn.get() - at_start);
        }
    }

    /// The name of the next member.
    fn name<'de, A: MapAccess<'de>>(&self, map: &mut A) -> Result<Option<String>, A::Error> {
        if self.row_by_row { Ok(map.next_key_seed(LossyText)?) } else { map.next_key() }
    }

    /// Converts an error of a body that is valid JSON.
    fn explain(&self, error: &serde_json::Error) -> ApiError {
        let at = self.path.borrow().iter().map(Step::to_string).collect();
        let (code, reason) = match self.fault.get() {
            Fault::Memory => return ApiError::no_memory(),
            _ if !error.is_data() => (BodyFault::InvalidValue, unreadable::sentence(error)),
            Fault::Request(code) => (code, reason(error)),
            Fault::Row(_) => (BodyFault::InvalidValue, reason(error)),
        };
        ApiError::InvalidBody { code, at, reason }
    }
}

impl Step<'_> {
    /// The name of a member or table.
    pub fn name(&self) -> Option<&str> {
        match self {
            Self::Member(name) => Some(name),
            Self::Item(_) => None,
        }
    }
}

impl fmt::Display for Step<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Member(name) => write!(f, "/{}", name.replace('~', "~0").replace('/', "~1")),
            Self::Item(index) => write!(f, "/{index}"),
        }
    }
}

/// A text in which half of a surrogate pair becomes U+FFFD: it equals no declared name, and an error can show
/// it.
pub(super) struct LossyText;

impl<'de> DeserializeSeed<'de> for LossyText {
    type Value = String;
    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<String, D::Error> {
        json.deserialize_bytes(self)
    }
}

impl Visitor<'_> for LossyText {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_bytes<E: Error>(self, name: &[u8]) -> Result<String, E> {
        Ok(lossy(name))
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
        while let Some(name) = reader.name(&mut map)? {
            if seen.contains(&name) {
                return Err(reader.unknown_at(member(name), "this member comes twice"));
            }
            seen.push(name.clone());
            let step = member(name.clone());
            let rows = |part| SetsSeed { reader, part, item: RowItem };
            let flag = |map: &mut A| Ok(map.next_value::<Option<bool>>()?.unwrap_or_default());
            match name.as_str() {
                "add" => batch.add = reader.at(step, || map.next_value_seed(rows(Part::Add)))?,
                "update" => batch.update = reader.at(step, || map.next_value_seed(rows(Part::Update)))?,
                "delete" => {
                    let seed = SetsSeed { reader, part: Part::Delete, item: DeletedItem };
                    batch.delete = reader.at(step, || map.next_value_seed(seed))?;
                }
                "get" => {
                    let seed = SetsSeed { reader, part: Part::Get, item: KeyItem };
                    batch.get = reader.at(step, || map.next_value_seed(seed))?;
                }
                "base" => {
                    let base: Option<u64> = reader.at(step, || map.next_value())?;
                    // 0 is before every version: most libraries begin with it.
                    batch.base = base.filter(|base| *base > 0).map(Version);
                }
                "sent_at" => batch.sent_at = reader.at(step, || map.next_value_seed(TimeSeed))?,
                "atomic" => batch.atomic = reader.at(step, || flag(&mut map))?,
                "dry_run" => batch.dry_run = reader.at(step, || flag(&mut map))?,
                "pull" => batch.pull = reader.at(step, || flag(&mut map))?,
                "keep_lock" => batch.keep_lock = reader.at(step, || flag(&mut map))?,
                "put_back" => batch.put_back = reader.at(step, || flag(&mut map))?,
                "confirm_deletes" => batch.confirm_deletes = reader.at(step, || deletes(&mut map))?,
                _ => {
                    let known = "add, update, delete, get, base, sent_at, atomic, dry_run, pull, keep_lock, \
                                 confirm_deletes, put_back";
                    let reason = format!("there is no such member; there are {known}");
                    return Err(reader.unknown_at(step, reason));
                }
            }
        }
        if batch.put_back && !batch.delete.is_empty() {
            let reason = "with put_back nothing is deleted: send deletions in another request";
            return Err(reader.unknown_at(known("delete"), reason));
        }
        Ok(batch)
    }
}

/// A number of deletions: 64 bits with a sign, as in the contract.
fn deletes<'de, A: MapAccess<'de>>(map: &mut A) -> Result<Option<u64>, A::Error> {
    let given: Option<u64> = map.next_value()?;
    match given {
        Some(number) if i64::try_from(number).is_err() => {
            Err(A::Error::custom(format_args!("expected a number of at most {}", i64::MAX)))
        }
        given => Ok(given),
    }
}

/// One of `add`, `update`, `delete`, `get`: an object of tables, or `null`.
struct SetsSeed<'r, 'a, I> {
    reader: &'r Reader<'a>,
    part: Part,
    item: I,
}

impl<'de, I: Item> DeserializeSeed<'de> for SetsSeed<'_, '_, I> {
    type Value = Vec<(TableId, Vec<I::Read>)>;
    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Self::Value, D::Error> {
        json.deserialize_any(self)
    }
}

impl<'de, I: Item> Visitor<'de> for SetsSeed<'_, '_, I> {
    type Value = Vec<(TableId, Vec<I::Read>)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with a member for each table")
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(Vec::new())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let Self { reader, part, item } = self;
        let mut sets: Self::Value = Vec::new();
        let mut seen = Vec::new();
        while let Some(name) = reader.name(&mut map)? {
            let Some(table) = reader.schema.table(&name) else {
                // The core seed sends an empty set for a table that does not exist.
                let seed = SetSeed { reader, part, table: None, item };
                reader.at(member(name), || map.next_value_seed(seed))?;
                continue;
            };
            if seen.contains(&table.id) {
                return Err(reader.unknown_at(known(&table.name), "this table comes twice"));
            }
            seen.push(table.id);
            let seed = SetSeed { reader, part, table: Some(table), item };
            let rows = reader.at(known(&table.name), || map.next_value_seed(seed))?;
            sets.extend(rows.map(|rows| (table.id, rows)));
        }
        Ok(sets)
    }
}

/// The rows or keys of one table. An empty set may be an empty object or `null`.
struct SetSeed<'r, 'a, I> {
    reader: &'r Reader<'a>,
    part: Part,
    /// `None` if no such table exists.
    table: Option<&'a Table>,
    item: I,
}

impl<'de, I: Item> DeserializeSeed<'de> for SetSeed<'_, '_, I> {
    type Value = Option<Vec<I::Read>>;
    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Self::Value, D::Error> {
        json.deserialize_any(self)
    }
}

impl<'de, I: Item> Visitor<'de> for SetSeed<'_, '_, I> {
    type Value = Option<Vec<I::Read>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list of {}", I::WHAT)
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
        let Self { reader, part, table, item } = self;
        let mut read = Vec::new();
        let mut index = 0;
        loop {
            let seed = ItemSeed { reader, part, table, index, item };
            match reader.at(Step::Item(index), || items.next_element_seed(seed))? {
                Some(one) => read.extend(one),
                None => return Ok(Some(read)),
            }
            index += 1;
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        match self.reader.name(&mut map)? {
            None => Ok(Some(Vec::new())),
            Some(_) if self.table.is_none() => Err(no_such_table(self.reader)),
            Some(_) => {
                let reason =
                    format_args!("expected a list of {}, not an object with members", I::WHAT).to_string();
                Err(self.reader.fault(Fault::Request(BodyFault::WrongType), reason))
            }
        }
    }
}

/// One row or key; `None` if it cannot be read, in which case the reader has recorded it.
struct ItemSeed<'r, 'a, I> {
    reader: &'r Reader<'a>,
    part: Part,
    table: Option<&'a Table>,
    index: usize,
    item: I,
}

impl<'de, I: Item> DeserializeSeed<'de> for ItemSeed<'_, '_, I> {
    type Value = Option<I::Read>;
    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Self::Value, D::Error> {
        let Self { reader, part, table, index, item } = self;
        let Some(table) = table else {
            reader.path.borrow_mut().pop(); // the table is at fault, not its first row
            return Err(no_such_table(reader));
        };
        reader.count(part)?;
        if !reader.row_by_row {
            return item.read(reader, table, json).map(Some);
        }
        let raw = <&RawValue>::deserialize(json)?;
        unreadable::read_item(reader, (part, table, index), raw.get(), item)
    }
}

fn no_such_table<E: Error>(reader: &Reader<'_>) -> E {
    let names: Vec<&str> = reader.schema.tables().iter().map(|table| table.name.as_str()).take(20).collect();
    let reason = format_args!("there is no such table; there are {}", names.join(", ")).to_string();
    reader.fault(Fault::Request(BodyFault::UnknownTable), reason)
}

pub(super) fn known(name: &str) -> Step<'_> {
    Step::Member(Cow::Borrowed(name))
}

pub(super) fn member(name: String) -> Step<'static> {
    Step::Member(Cow::Owned(name))
}

pub(super) fn malformed(error: &serde_json::Error) -> ApiError {
    ApiError::MalformedJson { reason: reason(error), line: error.line(), column: error.column() }
}

fn not_utf8(body: &[u8], index: usize) -> ApiError {
    let before = &body[..index];
    let line_start = before.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
    ApiError::MalformedJson { reason: "it is not UTF-8".into(), line, column: index - line_start + 1 }
}

/// The message of serde_json without its position, which the problem has in separate members.
pub(super) fn reason(error: &serde_json::Error) -> String {
    let message = error.to_string();
    message.rsplit_once(" at line ").map_or(message.as_str(), |(reason, _)| reason).to_owned()
}

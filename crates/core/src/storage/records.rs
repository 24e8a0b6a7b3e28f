//! What an engine stores in addition to the rows: replaced states, conflicts, responses.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde::ser::{SerializeMap, Serializer};
use uuid::Uuid;

use crate::model::{DeviceId, Precision, RowKey, Timestamp, Value, Version};
use crate::reconcile::Resolution;
use crate::schema::WireValue;
use crate::schema::{Policy, Table, TableId, ValueSeed};

use super::quota::RECORD_BYTES;
use super::{ConflictPage, WantedConflicts};

/// A true conflict and its outcome.
#[derive(Clone, Debug, PartialEq)]
pub struct Conflict {
    /// Derived from its contents: the same loss is not stored twice.
    pub id: Uuid,
    /// When it was settled, by the server's clock.
    pub at: Timestamp,
    /// The table of the row.
    pub table: TableId,
    /// The key of the row.
    pub key: RowKey,
    /// The policy that settled it.
    pub policy: Policy,
    /// Its outcome.
    pub resolution: Resolution,
    /// The row that both sides began with, if it was still known, without long values that the device did not
    /// send. It leaves out what `stored` leaves out.
    pub base: Option<Vec<Option<Value>>>,
    /// The server's state, without the long values that the device did not send and that the row kept. Where a
    /// request causes many conflicts, values that it did send are left out too, if the row kept them.
    pub stored: Side,
    /// What the device sent.
    pub incoming: Side,
    /// When the loser was brought back, if it was.
    pub restored_at: Option<Timestamp>,
    /// When the server's state was really made, if its `last_update` is later.
    pub stored_made_at: Option<Timestamp>,
}

/// One side of a conflict.
#[derive(Clone, Debug, PartialEq)]
pub struct Side {
    /// The columns that the side has, by index; `None` is a deletion.
    pub values: Option<Vec<Option<Value>>>,
    /// When it was made.
    pub last_update: Timestamp,
    /// The device that made it.
    pub device: DeviceId,
}

/// A stored response, for a device that may not have received it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredResponse {
    /// SHA-256 of the request's body.
    pub body_hash: [u8; 32],
    /// The body of the response.
    pub body: Vec<u8>,
    /// The owner's version at the response.
    pub version: Version,
    /// When it was sent.
    pub at: Timestamp,
}

impl StoredResponse {
    /// Bytes that it takes in addition to others under its key.
    pub fn record_bytes(&self, key: &str) -> i64 {
        record_bytes([key]).saturating_add(self.body.len() as i64)
    }
}

/// Bytes that a record with these texts takes.
pub fn record_bytes<'a>(texts: impl IntoIterator<Item = &'a str>) -> i64 {
    texts.into_iter().fold(RECORD_BYTES as i64, |sum, text| sum.saturating_add(text.len() as i64))
}

/// How much is stored of the responses of one device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResponsesMax {
    /// Most responses, including the newest.
    pub responses: usize,
    /// About how many bytes of responses, including the newest.
    pub bytes: usize,
}

impl ResponsesMax {
    /// Whether this many responses of this length would exceed the bytes. While none is that long, the stored
    /// ones have at most `bytes` together, and need not be added up.
    pub fn is_long(&self, response: &StoredResponse) -> bool {
        response.body.len() > self.bytes / self.responses.max(1)
    }

    /// Bytes that are left for the other responses.
    pub fn bytes_beside(&self, response: &StoredResponse) -> i64 {
        i64::try_from(self.bytes.saturating_sub(response.body.len())).unwrap_or(i64::MAX)
    }
}

/// Writes some columns of a row as JSON, in full precision and by name, since tables gain and lose columns.
pub fn write_columns(table: &Table, values: &[Option<Value>]) -> String {
    let mut text = Vec::new();
    let mut json = serde_json::Serializer::new(&mut text);
    let written = json.serialize_map(None).and_then(|mut map| {
        for (column, value) in table.columns.iter().zip(values) {
            if let Some(value) = value {
                map.serialize_entry(&column.name, &WireValue { value, precision: Precision::Milliseconds })?;
            }
        }
        map.end()
    });
    // Only a `json` column that another program filled with something else cannot be written.
    written.ok().and_then(|()| String::from_utf8(text).ok()).unwrap_or_else(|| "{}".into())
}

/// Reads what [`write_columns`] wrote; a column that the table no longer has is skipped.
pub fn read_columns(table: &Table, text: &str) -> serde_json::Result<Vec<Option<Value>>> {
    read_members(table, text).map(|members| members.values)
}

/// Before the name of a column: in place of the value its hash is kept. No column's name begins so.
pub(super) const HASH_MARK: char = '#';

/// Columns as they are written down.
pub(super) struct Members {
    /// The values, by place; `None` of those that are not there.
    pub values: Vec<Option<Value>>,
    /// Places of columns, and the hash that is kept of each.
    pub hashes: Vec<(usize, String)>,
}

pub(super) fn read_members(table: &Table, text: &str) -> serde_json::Result<Members> {
    ColumnsSeed(table).deserialize(&mut serde_json::Deserializer::from_str(text))
}

/// A page of conflicts, while an engine fills it.
pub struct ConflictListing<'a> {
    wanted: &'a WantedConflicts,
    page: ConflictPage,
    looked: usize,
    bytes: usize,
    last: Option<(Timestamp, Uuid)>,
}

impl<'a> ConflictListing<'a> {
    /// An empty page.
    pub fn new(wanted: &'a WantedConflicts) -> Self {
        Self { wanted, page: ConflictPage::default(), looked: 0, bytes: 0, last: wanted.after }
    }

    /// Whether the page ends here; the next conflict belongs to the next page.
    pub fn is_full(&self) -> bool {
        let Self { wanted, page, looked, bytes, .. } = self;
        let (rows_max, entries_max) = (wanted.rows_max.max(1), wanted.entries_max.max(1));
        page.conflicts.len() >= rows_max
            || *looked >= entries_max
            || (*bytes >= wanted.bytes_max && !page.conflicts.is_empty())
    }

    /// Adds a conflict that was read. `conflict` is `None` if its table is no longer declared; `bytes` is its
    /// stored size.
    pub fn look(&mut self, at: Timestamp, id: Uuid, bytes: usize, conflict: Option<Conflict>) {
        self.looked += 1;
        self.last = Some((at, id));
        let is_wanted = |one: &Conflict| self.wanted.table.is_none_or(|table| table == one.table);
        if let Some(conflict) = conflict.filter(is_wanted) {
            self.bytes += bytes;
            self.page.conflicts.push(conflict);
        }
    }

    /// The conflict that was read last.
    pub fn last(&self) -> Option<(Timestamp, Uuid)> {
        self.last
    }

    /// The page; `more` is whether at least one conflict follows it.
    pub fn end(self, more: bool) -> ConflictPage {
        ConflictPage { next: self.last.filter(|_| more), ..self.page }
    }
}

/// All columns of a row.
pub fn whole(values: &[Value]) -> Vec<Option<Value>> {
    values.iter().cloned().map(Some).collect()
}

/// The stored form of the row that both sides of a conflict began with: the columns that differ from the
/// stored side. In nearly all conflicts one column differs, and the others need not be stored twice. A column that is
/// left out has a mark, so that it is not mistaken for the stored one.
pub fn write_base(table: &Table, conflict: &Conflict) -> Option<String> {
    let stored = conflict.stored.values.as_deref().unwrap_or_default();
    let base = conflict.base.as_ref()?;
    let mut text = Vec::new();
    let mut json = serde_json::Serializer::new(&mut text);
    let written = json.serialize_map(None).and_then(|mut map| {
        for (index, (column, value)) in table.columns.iter().zip(base).enumerate() {
            let stored = stored.get(index).and_then(Option::as_ref);
            match value {
                Some(value) if stored != Some(value) => {
                    let precision = Precision::Milliseconds;
                    map.serialize_entry(&column.name, &WireValue { value, precision })?;
                }
                None if stored.is_some() => {
                    map.serialize_entry(&format!("{HASH_MARK}{}", column.name), "")?
                }
                _ => {}
            }
        }
        map.end()
    });
    Some(written.ok().and_then(|()| String::from_utf8(text).ok()).unwrap_or_else(|| "{}".into()))
}

/// Reads what [`write_base`] wrote, or a whole row, as earlier releases wrote it.
pub fn read_base(table: &Table, text: &str, stored: &Side) -> serde_json::Result<Vec<Option<Value>>> {
    let stored = stored.values.as_deref().unwrap_or_default();
    let Members { mut values, hashes } = read_members(table, text)?;
    for (index, value) in values.iter_mut().enumerate().filter(|(_, value)| value.is_none()) {
        if hashes.iter().all(|(left_out, _)| *left_out != index) {
            *value = stored.get(index).cloned().flatten();
        }
    }
    Ok(values)
}

/// A column that the table has gained since is empty.
pub fn filled(values: Vec<Option<Value>>) -> Vec<Value> {
    values.into_iter().map(|value| value.unwrap_or(Value::Null)).collect()
}

/// The policy of that name.
pub fn policy(name: &str) -> Policy {
    Policy::ALL.into_iter().find(|policy| policy.name() == name).unwrap_or_default()
}

/// The resolution of that name.
pub fn resolution(name: &str) -> Option<Resolution> {
    Resolution::ALL.into_iter().find(|resolution| resolution.name() == name)
}

struct ColumnsSeed<'a>(&'a Table);

impl<'de> DeserializeSeed<'de> for ColumnsSeed<'_> {
    type Value = Members;
    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Self::Value, D::Error> {
        json.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for ColumnsSeed<'_> {
    type Value = Members;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("columns by name")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut values = vec![None; self.0.columns.len()];
        let mut hashes = Vec::new();
        while let Some(name) = map.next_key::<String>()? {
            let (name, is_hash) =
                name.strip_prefix(HASH_MARK).map_or((name.as_str(), false), |name| (name, true));
            match self.0.column(name) {
                Some(index) if is_hash => hashes.push((index, map.next_value()?)),
                Some(index) => {
                    let column = &self.0.columns[index];
                    let seed =
                        ValueSeed { column, precision: Precision::Milliseconds, json_depth_max: usize::MAX };
                    values[index] = Some(map.next_value_seed(seed)?);
                }
                None => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(Members { values, hashes })
    }
}

use std::collections::BTreeMap;

use serde::ser::{Serialize, SerializeMap, SerializeSeq, Serializer};

use crate::changes::Feed;
use crate::conflicts::Restored;
use crate::digest::Digest;
use crate::model::{Precision, RowKey, Stored, Timestamp, Value, Version};
use crate::reconcile::NetChange;
use crate::schema::{Schema, Table, TableId, WireValue};
use crate::storage::{Conflict, Side};
use crate::synchronise::{Changes, ItemResult, LiveRow, Part, Report, SentKey, Unreadable, Why};

/// The response of phase 2.
pub struct ReportBody<'a> {
    /// The declared tables.
    pub schema: &'a Schema,
    /// The result of the batch.
    pub report: &'a Report,
    /// The token of the next page of changes.
    pub next: Option<&'a str>,
}

impl Serialize for ReportBody<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let Self { schema, report, .. } = *self;
        let mut map = to.serialize_map(None)?;
        for (part, sets) in
            [(Part::Add, &report.add), (Part::Update, &report.update), (Part::Delete, &report.delete)]
        {
            let verdicts = tables(schema, sets, |table, result| Verdicts { schema, table, result, part });
            map.serialize_entry(part.name(), &verdicts)?;
        }
        let rows = tables(schema, &report.get, |table, rows| Rows { schema, table, rows });
        map.serialize_entry("get", &rows)?;
        map.serialize_entry("missing", &tables(schema, &report.missing, |_, keys| keys))?;
        if !report.rejected.is_empty() {
            let keys = tables(schema, &report.rejected, |table, keys| RejectedKeys { table, keys });
            map.serialize_entry("rejected", &keys)?;
        }
        map.serialize_entry("version", &report.version)?;
        if let Some(changes) = &report.changes {
            map.serialize_entry("changes", &ChangesBody { schema, changes, next: self.next, digests: None })?;
        }
        map.serialize_entry(
            "digests",
            &DigestsBody { schema, as_of: report.current, digests: &report.digests },
        )?;
        if let Some(offset_ms) = report.clock_offset_ms {
            map.serialize_entry("clock_offset_ms", &offset_ms)?;
        }
        map.end()
    }
}

/// An object with a member for each table.
struct Tables<'a, T, F> {
    schema: &'a Schema,
    sets: &'a [(TableId, Vec<T>)],
    list: F,
}

fn tables<'a, T, L: Serialize, F: Fn(&'a Table, &'a [T]) -> L>(
    schema: &'a Schema,
    sets: &'a [(TableId, Vec<T>)],
    list: F,
) -> Tables<'a, T, F> {
    Tables { schema, sets, list }
}

impl<'a, T, L: Serialize, F: Fn(&'a Table, &'a [T]) -> L> Serialize for Tables<'a, T, F> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut map = to.serialize_map(Some(self.sets.len()))?;
        for (table, set) in self.sets {
            let table = self.schema.at(*table);
            map.serialize_entry(&table.name, &(self.list)(table, set))?;
        }
        map.end()
    }
}

struct Verdicts<'a> {
    schema: &'a Schema,
    table: &'a Table,
    result: &'a [ItemResult],
    part: Part,
}

impl Serialize for Verdicts<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut list = to.serialize_seq(Some(self.result.len()))?;
        for (index, result) in self.result.iter().enumerate() {
            list.serialize_element(&VerdictBody { list: self, index, result })?;
        }
        list.end()
    }
}

struct VerdictBody<'a> {
    list: &'a Verdicts<'a>,
    index: usize,
    result: &'a ItemResult,
}

impl Serialize for VerdictBody<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let Verdicts { schema, table, part, .. } = *self.list;
        let mut map = to.serialize_map(None)?;
        let (last_update, conflict) = match self.result {
            ItemResult::Settled(result) => {
                map.serialize_entry(&table.key, &result.key)?;
                (result.last_update, result.conflict)
            }
            ItemResult::Unreadable(Unreadable { key, last_update, .. }) => {
                match key {
                    SentKey::Read(key) => map.serialize_entry(&table.key, key)?,
                    SentKey::Text(text) => map.serialize_entry(&table.key, text)?,
                    SentKey::None => {}
                }
                (*last_update, None)
            }
        };
        map.serialize_entry("verdict", &self.result.verdict())?;
        if let Some(at) = last_update {
            map.serialize_entry("last_update", &Time(schema, at))?;
        }
        if let Some(row) = self.result.row() {
            map.serialize_entry("row", &RowBody { schema, table, row })?;
        }
        if let Some(why) = self.result.why() {
            map.serialize_entry("error", &rejection_body(table, part, self.index, &why))?;
        }
        if let Some(conflict) = conflict {
            map.serialize_entry("conflict", &conflict)?;
        }
        map.end()
    }
}

/// Why a row or key was rejected, and its position in the request.
pub(in crate::http) fn rejection_body(
    table: &Table,
    part: Part,
    index: usize,
    why: &Why,
) -> serde_json::Value {
    let (code, member, detail) = match why {
        Why::Rule(rejection) => {
            let column = rejection.column.map(|column| table.columns[column].name.as_str());
            (rejection.code, column, &rejection.detail)
        }
        Why::Value(fault) => (fault.code, fault.member.as_deref(), &fault.detail),
    };
    let row = format!("/{}/{}/{index}", part.name(), table.name);
    let mut body = serde_json::json!({ "code": code });
    if let Some(member) = member {
        body["column"] = member.into();
    }
    body["detail"] = detail.as_str().into();
    if let Some(seconds) = code.retry_after_s() {
        body["retry_after_s"] = seconds.into();
    }
    body["at"] = member.map_or(row.clone(), |member| format!("{row}/{member}")).into();
    body
}

struct RejectedKeys<'a> {
    table: &'a Table,
    keys: &'a [(usize, Unreadable)],
}

impl Serialize for RejectedKeys<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(self.keys.iter().map(|(index, one)| {
            let mut body = serde_json::json!({});
            if let SentKey::Text(text) = &one.key {
                body["key"] = text.as_str().into();
            }
            let why = Why::Value(one.fault.clone());
            body["error"] = rejection_body(self.table, Part::Get, *index, &why);
            body
        }))
    }
}

struct Rows<'a> {
    schema: &'a Schema,
    table: &'a Table,
    rows: &'a [LiveRow],
}

impl Serialize for Rows<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let Self { schema, table, rows } = *self;
        to.collect_seq(rows.iter().map(|row| RowBody { schema, table, row }))
    }
}

struct RowBody<'a> {
    schema: &'a Schema,
    table: &'a Table,
    row: &'a LiveRow,
}

impl Serialize for RowBody<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let Self { schema, table, row } = *self;
        write_row(to, schema, table, row.key, row.values.iter().map(Some), Some(row.last_update))
    }
}

struct Time<'a>(&'a Schema, Timestamp);

impl Serialize for Time<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(self.1.format(self.0.precision).as_str())
    }
}

/// A page of the change feed.
pub struct ChangesBody<'a> {
    /// The declared tables.
    pub schema: &'a Schema,
    /// The page.
    pub changes: &'a Changes,
    /// The token of the next page.
    pub next: Option<&'a str>,
    /// The digests of the tables, and their version.
    pub digests: Option<(Version, &'a [Digest])>,
}

impl Serialize for ChangesBody<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let Self { schema, changes, next, digests } = *self;
        let mut map = to.serialize_map(None)?;
        map.serialize_entry("type", feed_type(&changes.feed))?;
        map.serialize_entry("version", &changes.feed.until)?;
        map.serialize_entry("more", &next.is_some())?;
        if let Some(next) = next {
            map.serialize_entry("next", next)?;
        }
        for (name, wanted) in
            [("add", NetChange::Add), ("update", NetChange::Update), ("delete", NetChange::Delete)]
        {
            map.serialize_entry(name, &Changed { schema, changes, wanted })?;
        }
        if let Some((as_of, digests)) = digests {
            map.serialize_entry("digests", &DigestsBody { schema, as_of, digests })?;
        }
        map.end()
    }
}

/// Whether a feed contains everything or only changes.
fn feed_type(feed: &Feed) -> &'static str {
    if feed.since.is_some() { "diff" } else { "full" }
}

/// One of the three sets of a page: an object with a member for each table that has entries.
struct Changed<'a> {
    schema: &'a Schema,
    changes: &'a Changes,
    wanted: NetChange,
}

impl Serialize for Changed<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut tables: BTreeMap<TableId, Vec<(RowKey, &Stored)>> = BTreeMap::new();
        for (net, table, key, row) in &self.changes.rows {
            if *net == self.wanted {
                tables.entry(*table).or_default().push((*key, row));
            }
        }
        let schema = self.schema;
        let mut map = to.serialize_map(Some(tables.len()))?;
        for (table, rows) in tables {
            let table = schema.at(table);
            if self.wanted == NetChange::Delete {
                let keys: Vec<RowKey> = rows.iter().map(|(key, _)| *key).collect();
                map.serialize_entry(&table.name, &keys)?;
            } else {
                let rows: Vec<_> =
                    rows.into_iter().map(|(key, row)| StoredBody { schema, table, key, row }).collect();
                map.serialize_entry(&table.name, &rows)?;
            }
        }
        map.end()
    }
}

/// A stored row, as the wire shows it.
struct StoredBody<'a> {
    schema: &'a Schema,
    table: &'a Table,
    key: RowKey,
    row: &'a Stored,
}

impl Serialize for StoredBody<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let Self { schema, table, key, row } = *self;
        let values = row.values.as_deref().unwrap_or_default();
        write_row(to, schema, table, key, values.iter().map(Some), Some(row.last_update))
    }
}

/// One line of the feed as NDJSON.
pub struct ChangeLine<'a> {
    /// The declared tables.
    pub schema: &'a Schema,
    /// How the row changed.
    pub net: NetChange,
    /// Its table.
    pub table: TableId,
    /// Its key.
    pub key: RowKey,
    /// Its present state.
    pub row: &'a Stored,
}

impl Serialize for ChangeLine<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let Self { schema, net, table, key, row } = *self;
        let table = schema.at(table);
        let mut map = to.serialize_map(None)?;
        map.serialize_entry("op", &net)?;
        map.serialize_entry("table", &table.name)?;
        if net == NetChange::Delete {
            map.serialize_entry("key", &key)?;
        } else {
            map.serialize_entry("row", &StoredBody { schema, table, key, row })?;
        }
        map.end()
    }
}

/// The last line of the feed as NDJSON: without it the feed is incomplete.
pub struct EndLine<'a> {
    /// The declared tables.
    pub schema: &'a Schema,
    /// The feed that ends.
    pub feed: &'a Feed,
    /// The digests of the tables, and their version.
    pub digests: (Version, &'a [Digest]),
}

impl Serialize for EndLine<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let (as_of, digests) = self.digests;
        let mut map = to.serialize_map(None)?;
        map.serialize_entry("op", "end")?;
        map.serialize_entry("type", feed_type(self.feed))?;
        map.serialize_entry("version", &self.feed.until)?;
        map.serialize_entry("digests", &DigestsBody { schema: self.schema, as_of, digests })?;
        map.end()
    }
}

/// The digests of the tables.
pub struct DigestsBody<'a> {
    /// The declared tables.
    pub schema: &'a Schema,
    /// The version.
    pub as_of: Version,
    /// In declared order.
    pub digests: &'a [Digest],
}

impl Serialize for DigestsBody<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut map = to.serialize_map(Some(2))?;
        map.serialize_entry("as_of", &self.as_of)?;
        map.serialize_entry("tables", &DigestTables(self))?;
        map.end()
    }
}

struct DigestTables<'a>(&'a DigestsBody<'a>);

impl Serialize for DigestTables<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let tables = self.0.schema.tables().iter().zip(self.0.digests);
        to.collect_map(tables.map(|(table, digest)| {
            let result =
                serde_json::json!({ "count": digest.count, "root": format!("{:016x}", digest.root) });
            (&table.name, result)
        }))
    }
}

/// A conflict, as `/conflicts` lists it.
pub struct ConflictBody<'a> {
    /// The declared tables.
    pub schema: &'a Schema,
    /// The stored conflict.
    pub conflict: &'a Conflict,
}

impl Serialize for ConflictBody<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let Self { schema, conflict } = *self;
        let table = schema.at(conflict.table);
        let key = conflict.key;
        let at = |at: Timestamp| at.format(Precision::Milliseconds).to_string();
        let side = |side| SideBody { schema, table, key, side };
        let mut map = to.serialize_map(None)?;
        map.serialize_entry("id", &conflict.id)?;
        map.serialize_entry("at", &at(conflict.at))?;
        map.serialize_entry("table", &table.name)?;
        map.serialize_entry("key", &key)?;
        map.serialize_entry("policy", conflict.policy.name())?;
        map.serialize_entry("outcome", &conflict.resolution)?;
        map.serialize_entry("base", &PartialBody { schema, table, key, values: conflict.base.as_ref() })?;
        map.serialize_entry("stored", &side(&conflict.stored))?;
        map.serialize_entry("incoming", &side(&conflict.incoming))?;
        if let Some(restored_at) = conflict.restored_at {
            map.serialize_entry("restored_at", &at(restored_at))?;
        }
        map.end()
    }
}

struct SideBody<'a> {
    schema: &'a Schema,
    table: &'a Table,
    key: RowKey,
    side: &'a Side,
}

impl Serialize for SideBody<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let Self { schema, table, key, side } = *self;
        let mut map = to.serialize_map(Some(3))?;
        map.serialize_entry("row", &PartialBody { schema, table, key, values: side.values.as_ref() })?;
        map.serialize_entry("last_update", &Time(schema, side.last_update))?;
        map.serialize_entry("device_id", &side.device)?;
        map.end()
    }
}

/// The known columns of a row; `null` if it was deleted.
struct PartialBody<'a> {
    schema: &'a Schema,
    table: &'a Table,
    key: RowKey,
    values: Option<&'a Vec<Option<Value>>>,
}

impl Serialize for PartialBody<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let Self { schema, table, key, values } = *self;
        match values {
            None => to.serialize_none(),
            Some(values) => write_row(to, schema, table, key, values.iter().map(Option::as_ref), None),
        }
    }
}

/// A row: its key, some of its columns, and when it last changed.
fn write_row<'v, S: Serializer>(
    to: S,
    schema: &Schema,
    table: &Table,
    key: RowKey,
    values: impl Iterator<Item = Option<&'v Value>>,
    last_update: Option<Timestamp>,
) -> Result<S::Ok, S::Error> {
    let mut map = to.serialize_map(None)?;
    map.serialize_entry(&table.key, &key)?;
    for (column, value) in table.columns.iter().zip(values) {
        if let Some(value) = value {
            map.serialize_entry(&column.name, &WireValue { value, precision: schema.precision })?;
        }
    }
    if let Some(at) = last_update {
        map.serialize_entry("last_update", &Time(schema, at))?;
    }
    map.end()
}

/// The result of a restore.
pub struct RestoredBody<'a> {
    /// The declared tables.
    pub schema: &'a Schema,
    /// The result.
    pub restored: &'a Restored,
}

impl Serialize for RestoredBody<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let Self { schema, restored } = *self;
        let table = schema.at(restored.conflict.table);
        let mut map = to.serialize_map(None)?;
        map.serialize_entry("conflict", &ConflictBody { schema, conflict: &restored.conflict })?;
        map.serialize_entry("verdict", &restored.result.verdict)?;
        if let Some(at) = restored.result.last_update {
            map.serialize_entry("last_update", &Time(schema, at))?;
        }
        if let Some(row) = &restored.row {
            map.serialize_entry("row", &RowBody { schema, table, row })?;
        }
        map.serialize_entry("version", &restored.version)?;
        map.end()
    }
}

//! What the server answers, read from JSON. Members that are not known here are ignored: answers may gain some.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value as Json};

use super::decide::{self, RetryWhen};
use super::text::Columns;
use rollcall_core::model::{RowKey, Timestamp, Version};
use rollcall_core::reconcile::Verdict;
use rollcall_core::schema::{Schema, Table};

type Rows = BTreeMap<String, Vec<Columns>>;
type Keys = BTreeMap<String, Vec<RowKey>>;

/// The answer of `POST /synchronise`.
#[derive(Clone, Debug, Deserialize)]
pub struct Report {
    /// Verdicts on what was under `add`, by table, in the order sent.
    #[serde(default)]
    pub add: BTreeMap<String, Vec<VerdictItem>>,
    /// Verdicts on what was under `update`.
    #[serde(default)]
    pub update: BTreeMap<String, Vec<VerdictItem>>,
    /// Verdicts on what was under `delete`.
    #[serde(default)]
    pub delete: BTreeMap<String, Vec<VerdictItem>>,
    /// The rows that were asked for.
    #[serde(default)]
    pub get: Rows,
    /// The keys that were asked for and name no row.
    #[serde(default)]
    pub missing: Keys,
    /// What may become the next base.
    pub version: Version,
    /// What others changed, if the request said `pull`.
    pub changes: Option<Changes>,
    /// Proof of what the server holds.
    pub digests: Option<Digests>,
    /// The server's clock less the device's.
    pub clock_offset_ms: Option<i64>,
}

/// What became of one row. Its key is in `others`, under the name of the table's key column.
#[derive(Clone, Debug, Deserialize)]
pub struct VerdictItem {
    /// What became of it.
    pub verdict: Verdict,
    /// When the server's row, or its tombstone, last changed.
    pub last_update: Option<String>,
    /// The server's row, where it is not what was sent.
    pub row: Option<Columns>,
    /// Why it was rejected.
    pub error: Option<Rejection>,
    /// Under which number `/conflicts` keeps the loser.
    pub conflict: Option<String>,
    /// The key, by its column.
    #[serde(flatten)]
    pub others: Map<String, Json>,
}

/// Why a row was rejected.
#[derive(Clone, Debug, Deserialize)]
pub struct Rejection {
    /// Which rule it breaks.
    pub code: String,
    /// For people.
    pub detail: String,
    /// After how long the row may be sent again as it is.
    pub retry_after_s: Option<u64>,
}

impl Rejection {
    /// When the row may be sent again as it is.
    pub fn retry_when(&self) -> RetryWhen {
        decide::retry_when(&self.code, self.retry_after_s)
    }
}

/// A page of the change feed.
#[derive(Clone, Debug, Deserialize)]
pub struct Changes {
    /// All rows, or those that changed.
    #[serde(rename = "type")]
    pub kind: Kind,
    /// The next cursor, after the last page.
    pub version: Version,
    /// Whether more pages follow.
    #[serde(default)]
    pub more: bool,
    /// Names the next page.
    pub next: Option<String>,
    /// Rows made.
    #[serde(default)]
    pub add: Rows,
    /// Rows changed.
    #[serde(default)]
    pub update: Rows,
    /// Keys of rows deleted.
    #[serde(default)]
    pub delete: Keys,
    /// Proof of what the server holds; on the last page.
    pub digests: Option<Digests>,
}

/// What a page of the change feed is part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Every row: what is not mentioned on any page is not on the server.
    Full,
    /// What changed since the cursor.
    Diff,
}

/// Proof of what the server holds.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Digests {
    /// Of which version.
    pub as_of: Version,
    /// Count and sum by table.
    pub tables: BTreeMap<String, Digest>,
}

/// Proof of one table.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Digest {
    /// Live rows.
    pub count: u64,
    /// The sum of the rows' digests modulo 2^64, 16 hex digits.
    pub root: String,
}

/// What the server allows; see `GET /limits`.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// Rows to add, update and delete in one request.
    pub rows_max: usize,
    /// Keys under `get` in one request.
    pub get_keys_max: usize,
    /// Bytes in one request.
    pub body_bytes_max: usize,
}

impl Default for Limits {
    /// What any server should take, until it has told its own.
    fn default() -> Self {
        Self { rows_max: 500, get_keys_max: 500, body_bytes_max: 1 << 20 }
    }
}

/// A row of an answer in its parts: key, `last_update`, and the columns. `None` if it is no row of the table.
pub fn parts(table: &Table, mut row: Columns) -> Option<(RowKey, Timestamp, Columns)> {
    let key = key_in(table, &row)?;
    row.remove(&table.key);
    let at = row.remove("last_update").and_then(|at| time(&at.string()?))?;
    Some((key, at, row))
}

/// The key of a row, as its column says it.
pub fn key_in(table: &Table, row: &Columns) -> Option<RowKey> {
    row.get(&table.key).and_then(|key| RowKey::parse(&key.string()?))
}

/// A key, in either case.
pub fn key(json: &Json) -> Option<RowKey> {
    json.as_str().and_then(RowKey::parse)
}

/// A time, in either spelling.
pub fn time(text: &str) -> Option<Timestamp> {
    Timestamp::parse(text).ok()
}

/// The lists of tables that the device knows; a server may have more by now.
pub fn declared_tables<T>(
    schema: &Schema,
    tables: BTreeMap<String, Vec<T>>,
) -> impl Iterator<Item = (&Table, Vec<T>)> {
    tables.into_iter().filter_map(|(name, list)| Some((schema.table(&name)?, list)))
}

//! The server's responses, read from JSON. Unknown members are ignored, since responses may gain some.

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

/// The response of `POST /synchronise`.
#[derive(Clone, Debug, Deserialize)]
pub struct Report {
    /// Results of the rows under `add`, by table, in the order sent.
    #[serde(default)]
    pub add: BTreeMap<String, Vec<VerdictItem>>,
    /// Results of the rows under `update`.
    #[serde(default)]
    pub update: BTreeMap<String, Vec<VerdictItem>>,
    /// Results of the rows under `delete`.
    #[serde(default)]
    pub delete: BTreeMap<String, Vec<VerdictItem>>,
    /// The requested rows.
    #[serde(default)]
    pub get: Rows,
    /// The requested keys without a live row.
    #[serde(default)]
    pub missing: Keys,
    /// The version that may become the next base.
    pub version: Version,
    /// What other devices changed, if the request had `pull`.
    pub changes: Option<Changes>,
    /// The digests of the server's tables.
    pub digests: Option<Digests>,
    /// The server's clock minus the device's.
    pub clock_offset_ms: Option<i64>,
}

/// The result of one row. Its key is in `others`, under the name of the table's key column.
#[derive(Clone, Debug, Deserialize)]
pub struct VerdictItem {
    /// The verdict.
    pub verdict: Verdict,
    /// When the server's row, or its tombstone, last changed.
    pub last_update: Option<String>,
    /// The server's row, if it differs from what was sent.
    pub row: Option<Columns>,
    /// Why it was rejected.
    pub error: Option<Rejection>,
    /// The id under which `/conflicts` lists the loser.
    pub conflict: Option<String>,
    /// The key, by its column.
    #[serde(flatten)]
    pub others: Map<String, Json>,
}

/// Why a row was rejected.
#[derive(Clone, Debug, Deserialize)]
pub struct Rejection {
    /// The rule that it breaks.
    pub code: String,
    /// For people.
    pub detail: String,
    /// After how long the row may be sent again unchanged.
    pub retry_after_s: Option<u64>,
}

impl Rejection {
    /// When the row may be sent again unchanged.
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
    /// The token of the next page.
    pub next: Option<String>,
    /// Rows that were created.
    #[serde(default)]
    pub add: Rows,
    /// Rows that were changed.
    #[serde(default)]
    pub update: Rows,
    /// Keys of rows that were deleted.
    #[serde(default)]
    pub delete: Keys,
    /// The digests of the server's tables; on the last page.
    pub digests: Option<Digests>,
}

/// What kind of feed a page belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Every row: what is on no page is not on the server.
    Full,
    /// What changed since the cursor.
    Diff,
}

/// The digests of the server's tables.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Digests {
    /// Their version.
    pub as_of: Version,
    /// Count and sum by table.
    pub tables: BTreeMap<String, Digest>,
}

/// The digest of one table.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Digest {
    /// Live rows.
    pub count: u64,
    /// The sum of the rows' digests modulo 2^64, 16 hex digits.
    pub root: String,
}

/// The server's limits; see `GET /limits`.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// Most rows to add, update and delete in one request.
    pub rows_max: usize,
    /// Most keys under `get` in one request.
    pub get_keys_max: usize,
    /// Most bytes in one request.
    pub body_bytes_max: usize,
}

impl Default for Limits {
    /// What any server should accept, until it has sent its own limits.
    fn default() -> Self {
        Self { rows_max: 500, get_keys_max: 500, body_bytes_max: 1 << 20 }
    }
}

/// The parts of a row in a response: key, `last_update`, and the columns. `None` if it is not a row of the
/// table.
pub fn parts(table: &Table, mut row: Columns) -> Option<(RowKey, Timestamp, Columns)> {
    let key = key_in(table, &row)?;
    row.remove(&table.key);
    let at = row.remove("last_update").and_then(|at| time(&at.string()?))?;
    Some((key, at, row))
}

/// The key of a row, from its key column.
pub fn key_in(table: &Table, row: &Columns) -> Option<RowKey> {
    row.get(&table.key).and_then(|key| RowKey::parse(&key.string()?))
}

/// A key, in either case.
pub fn key(json: &Json) -> Option<RowKey> {
    json.as_str().and_then(RowKey::parse)
}

/// A time, in either format.
pub fn time(text: &str) -> Option<Timestamp> {
    Timestamp::parse(text).ok()
}

/// The lists of tables that the device declares; a server may have more.
pub fn declared_tables<T>(
    schema: &Schema,
    tables: BTreeMap<String, Vec<T>>,
) -> impl Iterator<Item = (&Table, Vec<T>)> {
    tables.into_iter().filter_map(|(name, list)| Some((schema.table(&name)?, list)))
}

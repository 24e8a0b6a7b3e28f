//! What is kept of a response under an `Idempotency-Key`.
//!
//! A response is kept as it is while it is not much longer than its request. Of a longer one the verdicts are kept, since
//! they cannot be found out again. Its rows are left out: a repetition reads them again. Otherwise a request of some
//! kilobytes could make the server store megabytes.

use std::collections::BTreeMap;

use serde::ser::{Serialize, SerializeMap as _, Serializer};
use serde_json::value::RawValue;

use crate::broken;
use crate::http::Permit;
use crate::http::problem::ApiError;
use crate::http::wire::ReportBody;
use crate::model::RowKey;
use crate::schema::{Schema, TableId};
use crate::synchronise::Report;

/// A response of this many bytes is kept as it is, whatever its request was.
const WHOLE_BYTES_MAX: usize = 64 * 1024;

/// How many times as long as its request a response may be, beyond [`WHOLE_BYTES_MAX`].
const REQUEST_TIMES: usize = 2;

/// The members that a kept response has of its own; all others are read again.
const OWN: [&str; 4] = ["add", "update", "delete", "rejected"];

/// How every kept response without rows begins. A response does not.
const BEGIN: &[u8] = b"{\"keys\":";

/// Whether rows were left out of a kept response.
pub(super) fn is_without_rows(kept: &[u8]) -> bool {
    kept.starts_with(BEGIN)
}

/// What is kept of a response, whose JSON is `whole`.
pub(super) fn kept_form(
    schema: &Schema,
    report: &Report,
    whole: &[u8],
    request_bytes: usize,
) -> Result<Vec<u8>, ApiError> {
    let whole_max = WHOLE_BYTES_MAX.saturating_add(REQUEST_TIMES * request_bytes);
    if whole.len() <= whole_max || broken::is("long_response_kept") {
        return Ok(whole.to_vec());
    }
    let (report, keys) = report.without_rows();
    let body = WithoutRows {
        keys: Keys { schema, keys: &keys },
        report: ReportBody { schema, report: &report, next: None },
    };
    serde_json::to_vec(&body).map_err(|error| ApiError::Internal(Box::new(error)))
}

#[derive(serde::Serialize)]
struct WithoutRows<'a> {
    keys: Keys<'a>,
    report: ReportBody<'a>,
}

/// Keys by the name of their table.
struct Keys<'a> {
    schema: &'a Schema,
    keys: &'a [(TableId, Vec<RowKey>)],
}

impl Serialize for Keys<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        // A table may be under `add` and under `update`.
        let mut tables: BTreeMap<&str, Vec<RowKey>> = BTreeMap::new();
        for (table, keys) in self.keys {
            tables.entry(&self.schema.at(*table).name).or_default().extend(keys);
        }
        let mut map = to.serialize_map(Some(tables.len()))?;
        for (table, keys) in tables {
            map.serialize_entry(table, &keys)?;
        }
        map.end()
    }
}

/// A kept response without rows.
#[derive(serde::Deserialize)]
pub(super) struct Kept<'a> {
    keys: BTreeMap<String, Vec<uuid::Uuid>>,
    #[serde(borrow)]
    report: BTreeMap<String, &'a RawValue>,
}

impl<'a> Kept<'a> {
    pub fn read(kept: &'a [u8]) -> Result<Self, ApiError> {
        serde_json::from_slice(kept).map_err(|error| ApiError::Internal(Box::new(error)))
    }

    /// The rows that came with verdicts; those of tables that are no longer declared are left out.
    pub fn keys(&self, schema: &Schema) -> Vec<(TableId, Vec<RowKey>)> {
        let keys = self.keys.iter();
        keys.filter_map(|(table, keys)| {
            Some((schema.table(table)?.id, keys.iter().copied().map(RowKey).collect()))
        })
        .collect()
    }

    /// The response: the verdicts as they were, and everything else as it is in `fresh`, the JSON of a response.
    pub fn completed(&self, fresh: &[u8], permit: &Permit) -> Result<Vec<u8>, ApiError> {
        let fresh: BTreeMap<String, &RawValue> =
            serde_json::from_slice(fresh).map_err(|error| ApiError::Internal(Box::new(error)))?;
        let own = self.report.iter().filter(|(name, _)| OWN.contains(&name.as_str()));
        let read = fresh.iter().filter(|(name, _)| !OWN.contains(&name.as_str()));
        let members: BTreeMap<&String, &RawValue> =
            own.chain(read).map(|(name, value)| (name, *value)).collect();
        permit.json(&members)
    }
}

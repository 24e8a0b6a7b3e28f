//! The lines of a stream.

use serde::ser::{Error as _, Serialize, SerializeMap, Serializer};
use serde_json::json;

use super::cursor::OpId;
use crate::http::ApiError;
use crate::model::{Precision, RowKey, Stored, Value};
use crate::reconcile::NetChange;
use crate::schema::{Schema, Table, WireValue};

/// The priority of the one bucket: the SDKs' default.
const PRIORITY: u8 = 3;

/// What stands at the beginning of a checkpoint.
pub(super) struct Head<'a> {
    pub last: OpId,
    pub write_checkpoint: u64,
    pub bucket: &'a str,
    /// About how many operations the bucket has: the SDK shows progress by it.
    pub count: u64,
    /// The bucket that the client had so far, and drops.
    pub removed: Option<&'a str>,
    /// Whether the bucket has changed since the checkpoint before.
    pub is_changed: bool,
}

impl Head<'_> {
    /// Writes the line of the first checkpoint of a stream, or of a later one.
    pub fn write(&self, buf: &mut Vec<u8>, is_first: bool) {
        let (last, write) = (self.last.0.to_string(), self.write_checkpoint.to_string());
        let bucket = json!({
            "bucket": self.bucket, "checksum": self.last.sum(), "count": self.count, "priority": PRIORITY,
            "subscriptions": [{ "default": 0 }],
        });
        let line = if is_first {
            let streams = json!([{ "name": "rows", "is_default": true, "errors": [] }]);
            json!({ "checkpoint": {
                "last_op_id": last, "write_checkpoint": write, "buckets": [bucket], "streams": streams,
            } })
        } else {
            let updated: Vec<_> = self.is_changed.then_some(bucket).into_iter().collect();
            let removed: Vec<_> = self.removed.into_iter().collect();
            json!({ "checkpoint_diff": {
                "last_op_id": last, "write_checkpoint": write,
                "updated_buckets": updated, "removed_buckets": removed,
            } })
        };
        buf.extend_from_slice(line.to_string().as_bytes());
        buf.push(b'\n');
    }
}

/// The end of a checkpoint.
pub(super) fn complete(buf: &mut Vec<u8>, last: OpId) {
    buf.extend_from_slice(
        json!({ "checkpoint_complete": { "last_op_id": last.0.to_string() } }).to_string().as_bytes(),
    );
    buf.push(b'\n');
}

/// A sign of life. At 0 the SDK gets another token.
pub(super) fn token_expires_in(seconds: u32) -> String {
    json!({ "token_expires_in": seconds }).to_string() + "\n"
}

/// The beginning of a line with operations.
pub(super) fn begin_data(buf: &mut Vec<u8>, bucket: &str, after: OpId) {
    let (bucket, after) = (json!(bucket), after.0);
    let text =
        format!("{{\"data\":{{\"bucket\":{bucket},\"has_more\":false,\"after\":\"{after}\",\"data\":[");
    buf.extend_from_slice(text.as_bytes());
}

/// The end of a line with operations.
pub(super) fn end_data(buf: &mut Vec<u8>, next_after: OpId) {
    buf.extend_from_slice(format!("],\"next_after\":\"{}\"}}}}\n", next_after.0).as_bytes());
}

/// An operation that only moves the client's sum on.
pub(super) fn write_move(buf: &mut Vec<u8>, id: OpId, checksum: u32) {
    let text = format!("{{\"op_id\":\"{}\",\"op\":\"MOVE\",\"checksum\":{checksum}}}", id.0);
    buf.extend_from_slice(text.as_bytes());
}

/// Writes the operation of one row.
///
/// `scratch` is room for the row, which stands as text within the line.
pub(super) fn write_row(
    buf: &mut Vec<u8>,
    scratch: &mut Vec<u8>,
    schema: &Schema,
    (id, checksum): (OpId, u32),
    (net, table, key, row): (NetChange, &Table, RowKey, &Stored),
) -> Result<(), ApiError> {
    let op = Operation { schema, id, checksum, net, table, key, row };
    op.write(buf, scratch).map_err(|error| ApiError::Internal(Box::new(error)))
}

struct Operation<'a> {
    schema: &'a Schema,
    id: OpId,
    checksum: u32,
    net: NetChange,
    table: &'a Table,
    key: RowKey,
    row: &'a Stored,
}

impl Operation<'_> {
    fn write(&self, buf: &mut Vec<u8>, scratch: &mut Vec<u8>) -> serde_json::Result<()> {
        use std::io::Write as _;
        let (id, checksum, table, key) = (self.id.0, self.checksum, &self.table.name, self.key);
        let op = if self.net == NetChange::Delete { "REMOVE" } else { "PUT" };
        // Names of tables are letters, digits and "_".
        write!(
            buf,
            "{{\"op_id\":\"{id}\",\"op\":\"{op}\",\"object_type\":\"{table}\",\"object_id\":\"{key}\",\
             \"checksum\":{checksum},\"subkey\":null,\"data\":"
        )
        .map_err(serde_json::Error::io)?;
        if self.net == NetChange::Delete {
            buf.extend_from_slice(b"null}");
            return Ok(());
        }
        scratch.clear();
        serde_json::to_writer(&mut *scratch, &Data(self))?;
        let text = std::str::from_utf8(scratch).map_err(serde_json::Error::custom)?;
        serde_json::to_writer(&mut *buf, text)?;
        buf.push(b'}');
        Ok(())
    }
}

/// The columns of a row without its key, as values that SQLite has.
struct Data<'a>(&'a Operation<'a>);

impl Serialize for Data<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let Operation { schema, table, row, .. } = self.0;
        let precision = schema.precision;
        let mut map = to.serialize_map(None)?;
        for (column, value) in table.columns.iter().zip(row.values.as_deref().unwrap_or_default()) {
            map.serialize_entry(&column.name, &Scalar { value, precision })?;
        }
        map.serialize_entry("last_update", row.last_update.format(precision).as_str())?;
        map.end()
    }
}

/// A value as SQLite has it: booleans are 0 and 1, JSON is text.
struct Scalar<'a> {
    value: &'a Value,
    precision: Precision,
}

impl Serialize for Scalar<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self.value {
            Value::Boolean(value) => to.serialize_u8((*value).into()),
            Value::Integer(value) => to.serialize_i64(*value),
            Value::Json(text) => to.serialize_str(text),
            value => WireValue { value, precision: self.precision }.serialize(to),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::model::Timestamp;

    #[test]
    fn values_are_those_that_sqlite_has() {
        for (value, json) in [
            (Value::Null, "null"),
            (Value::Boolean(true), "1"),
            (Value::Integer(i64::MIN), "-9223372036854775808"),
            (Value::Real(0.5), "0.5"),
            (Value::Decimal("12.50".parse().unwrap()), "\"12.5\""),
            (Value::Json("{\"a\":1}".into()), r#""{\"a\":1}""#),
            (Value::Timestamp(Timestamp::from_ms(0)), "\"1970-01-01T00:00:00.000Z\""),
            (Value::Blob(vec![0, 255]), "\"AP8=\""),
        ] {
            let scalar = Scalar { value: &value, precision: Precision::Milliseconds };
            assert_eq!(serde_json::to_string(&scalar).unwrap(), json);
        }
    }
}

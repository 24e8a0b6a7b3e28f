//! How an earlier state of a row is written down: a long value that stays is not kept once for each change of the row.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use serde::ser::{SerializeMap as _, Serializer as _};
use sha2::{Digest as _, Sha256};

use super::records::{HASH_MARK, filled, read_members};
use crate::broken;
use crate::model::{Precision, RowKey, Stored, Value};
use crate::schema::{Table, WireValue};

/// A value of more bytes is not written where the next state has the same: its hash is, which is shorter.
pub const SHARED_BYTES_MIN: usize = 128;

/// A state that is about to be replaced.
#[derive(Clone, Copy, Debug)]
pub struct Replaced<'a> {
    /// Which row.
    pub key: RowKey,
    /// The row as it is.
    pub before: &'a Stored,
    /// The row as it is going to be.
    pub after: &'a Stored,
}

impl Replaced<'_> {
    /// The state as JSON, by name of the column; `None` of a deleted row, which has no columns.
    ///
    /// A column without a value is left out. Of a long value that the next state has too, the hash is written.
    pub fn written(&self, table: &Table) -> Option<String> {
        let mut text = Vec::new();
        let mut json = serde_json::Serializer::new(&mut text);
        let columns = table.columns.iter().zip(self.columns()?);
        let written = json.serialize_map(None).and_then(|mut map| {
            for (column, (value, is_shared)) in columns.filter(|(_, (value, _))| !value.is_null()) {
                if let Some(hash) = hash(value).filter(|_| is_shared) {
                    map.serialize_entry(&format!("{HASH_MARK}{}", column.name), &hash)?;
                } else {
                    let precision = Precision::Milliseconds;
                    map.serialize_entry(&column.name, &WireValue { value, precision })?;
                }
            }
            map.end()
        });
        // Only a `json` column that another program filled with something else cannot be written.
        Some(written.ok().and_then(|()| String::from_utf8(text).ok()).unwrap_or_else(|| "{}".into()))
    }

    /// About how many bytes the values take as they are written.
    pub fn weight(&self) -> usize {
        const HASH_BYTES: usize = 44;
        let bytes = |(value, is_shared): (&Value, bool)| if is_shared { HASH_BYTES } else { value.weight() };
        self.columns().into_iter().flatten().map(bytes).sum()
    }

    /// The values, and whether each is long and stays.
    fn columns(&self) -> Option<impl Iterator<Item = (&Value, bool)>> {
        let after = self.after.values.as_deref().unwrap_or_default();
        let is_shared = |place: usize, value: &Value| {
            value.weight() > SHARED_BYTES_MIN && after.get(place) == Some(value)
        };
        let before = self.before.values.as_deref()?;
        Some(before.iter().enumerate().map(move |(place, value)| (value, is_shared(place, value))))
    }
}

/// Reads a state; a column that the table has gained since is empty, one that it has lost is passed over.
///
/// - `next`: the state after it, which has the long values of which it keeps the hash.
/// - `None`: the next state has other values, because what came in between was not kept.
pub fn read_state(
    table: &Table,
    text: &str,
    next: Option<&[Value]>,
) -> serde_json::Result<Option<Vec<Value>>> {
    let members = read_members(table, text)?;
    let mut values = filled(members.values);
    for (place, expected) in members.hashes {
        let held = next.and_then(|next| next.get(place));
        let is_same =
            |value: &&Value| broken::is("shared_value_unchecked") || hash(value).as_ref() == Some(&expected);
        let Some(value) = held.filter(is_same) else { return Ok(None) };
        values[place] = value.clone();
    }
    Ok(Some(values))
}

/// The hash of a value that may be long.
fn hash(value: &Value) -> Option<String> {
    let bytes = match value {
        Value::Text(text) | Value::Json(text) => text.as_bytes(),
        Value::Blob(bytes) => bytes,
        _ => return None,
    };
    Some(STANDARD_NO_PAD.encode(Sha256::digest(bytes)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::model::{Claim, DeviceId, Timestamp, Version};
    use crate::schema::Schema;

    const SCHEMA: &str = "[table.notes]\nkey = \"id\"\n[table.notes.columns]\n\
                          text = \"text\"\nfile = \"blob\"\ndone = \"boolean\"\n";

    fn note(text: &str, file: &[u8], done: Option<bool>) -> Stored {
        let done = done.map_or(Value::Null, Value::Boolean);
        let values = vec![Value::Text(text.into()), Value::Blob(file.into()), done];
        let device = DeviceId(Uuid::nil());
        Stored {
            version: Version(1),
            created: Version(1),
            last_update: Timestamp::from_ms(1),
            made_at: None,
            claim: Claim::default(),
            made_by: device,
            changed_by: device,
            lifetimes: Vec::new(),
            aware_devices: Vec::new(),
            values: Some(values),
        }
    }

    /// Goal: a long value is kept once, and no state gets a value that it did not have. Method: states that are replaced by
    /// ones that share values with them or do not, read with the next state and with another.
    #[test]
    fn a_long_value_that_stays_is_kept_once() {
        let schema = Schema::parse(SCHEMA).unwrap();
        let table = &schema.tables()[0];
        let (long, other, file) = ("x".repeat(10_000), "y".repeat(10_000), vec![7; 10_000]);
        let before = note(&long, &file, None);
        let values = before.values.as_deref().unwrap();
        let key = RowKey(Uuid::nil());
        for (after, bytes) in [
            (note(&long, &file, Some(true)), 0..200),
            (note(&other, &file, None), 10_000..10_200),
            (note(&other, b"", None), 23_000..24_000),
            (Stored { values: None, ..before.clone() }, 23_000..24_000),
        ] {
            let replaced = Replaced { key, before: &before, after: &after };
            let text = replaced.written(table).unwrap();
            assert!(bytes.contains(&text.len()), "{} bytes", text.len());
            assert!(replaced.weight() <= text.len());
            let next = after.values.as_deref();
            assert_eq!(read_state(table, &text, next).unwrap().as_deref(), Some(values));
            let stranger = note(&other, b"z", Some(true));
            let found = read_state(table, &text, stranger.values.as_deref()).unwrap();
            assert!(found.is_none_or(|found| found == values));
            assert_eq!(read_state(table, &text, None).unwrap().is_none(), bytes.start < 20_000);
        }
        assert!(
            Replaced { key, before: &Stored { values: None, ..before.clone() }, after: &before }
                .written(table)
                .is_none()
        );
    }

    #[test]
    fn a_state_of_an_earlier_release_is_read_as_it_is() {
        let schema = Schema::parse(SCHEMA).unwrap();
        let text = r#"{"text":"long","done":null,"gone":1}"#;
        let read = read_state(&schema.tables()[0], text, None).unwrap().unwrap();
        assert_eq!(read, [Value::Text("long".into()), Value::Null, Value::Null]);
    }
}

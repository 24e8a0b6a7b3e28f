//! How an earlier state of a row is written down: a long value that stays is not kept once for each change of the row.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use serde::ser::{SerializeMap as _, Serializer as _};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::records::{HASH_MARK, filled, read_members};
use super::{Conflict, StorageResult};
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
    /// The conflict that records the state, if the row lost values.
    pub recorded: Option<&'a RecordedSide>,
}

/// A conflict that records long values of a state as its server's side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordedSide {
    /// The conflict.
    pub id: Uuid,
    /// Whether it has the value of each column, by index.
    pub columns: Vec<bool>,
}

/// Where a value of a replaced state is.
#[derive(Clone, Copy)]
enum Place {
    /// In the state itself.
    State,
    /// In the next state.
    Next,
    /// In a conflict.
    Conflict(Uuid),
}

impl Replaced<'_> {
    /// The state as JSON, by name of the column; `None` of a deleted row, which has no columns.
    ///
    /// A column without a value is left out. Of a long value that the next state has too, the hash is written; of one
    /// that a conflict has, the conflict.
    pub fn written(&self, table: &Table) -> Option<String> {
        let mut text = Vec::new();
        let mut json = serde_json::Serializer::new(&mut text);
        let columns = table.columns.iter().zip(self.columns()?);
        let written = json.serialize_map(None).and_then(|mut map| {
            for (column, (value, place)) in columns.filter(|(_, (value, _))| !value.is_null()) {
                let reference = match place {
                    Place::State => None,
                    Place::Next => hash(value),
                    Place::Conflict(id) => Some(format!("{CONFLICT_MARK}{id}")),
                };
                if let Some(reference) = reference {
                    map.serialize_entry(&format!("{HASH_MARK}{}", column.name), &reference)?;
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
        const REFERENCE_BYTES: usize = 44;
        let bytes = |(value, place): (&Value, Place)| match place {
            Place::State => value.weight(),
            Place::Next | Place::Conflict(_) => REFERENCE_BYTES,
        };
        self.columns().into_iter().flatten().map(bytes).sum()
    }

    /// The values, and where each of them is kept.
    fn columns(&self) -> Option<impl Iterator<Item = (&Value, Place)>> {
        let after = self.after.values.as_deref().unwrap_or_default();
        let place = |index: usize, value: &Value| match self.recorded {
            _ if value.weight() <= SHARED_BYTES_MIN => Place::State,
            _ if after.get(index) == Some(value) => Place::Next,
            Some(side) if side.columns.get(index) == Some(&true) => Place::Conflict(side.id),
            _ => Place::State,
        };
        let before = self.before.values.as_deref()?;
        Some(before.iter().enumerate().map(move |(index, value)| (value, place(index, value))))
    }
}

/// Before the id of a conflict, in place of a hash. No hash contains it.
const CONFLICT_MARK: &str = "conflict:";

/// A state, before the values that conflicts have are added.
pub struct PartialState {
    values: Vec<Value>,
    /// Columns by index, and the conflict that has the value of each.
    in_conflicts: Vec<(usize, Uuid)>,
}

impl PartialState {
    /// The whole state; `None` if a conflict of it was purged.
    pub fn complete(
        self,
        mut conflict: impl FnMut(Uuid) -> StorageResult<Option<Conflict>>,
    ) -> StorageResult<Option<Vec<Value>>> {
        let Self { mut values, in_conflicts } = self;
        let mut known: Option<Conflict> = None;
        for (place, id) in in_conflicts {
            if known.as_ref().is_none_or(|known| known.id != id) {
                known = conflict(id)?;
            }
            let side = known.as_ref().and_then(|known| known.stored.values.as_ref());
            let Some(Some(value)) = side.and_then(|values| values.get(place)) else { return Ok(None) };
            values[place] = value.clone();
        }
        Ok(Some(values))
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
) -> serde_json::Result<Option<PartialState>> {
    let members = read_members(table, text)?;
    let mut values = filled(members.values);
    let mut in_conflicts = Vec::new();
    for (place, expected) in members.hashes {
        if let Some(id) = expected.strip_prefix(CONFLICT_MARK) {
            let Ok(id) = id.parse() else { return Ok(None) };
            in_conflicts.push((place, id));
            continue;
        }
        let held = next.and_then(|next| next.get(place));
        let is_same =
            |value: &&Value| broken::is("shared_value_unchecked") || hash(value).as_ref() == Some(&expected);
        let Some(value) = held.filter(is_same) else { return Ok(None) };
        values[place] = value.clone();
    }
    Ok(Some(PartialState { values, in_conflicts }))
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
    use crate::reconcile::Resolution;
    use crate::schema::{Policy, Schema};
    use crate::storage::Side;

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
            let replaced = Replaced { key, before: &before, after: &after, recorded: None };
            let text = replaced.written(table).unwrap();
            assert!(bytes.contains(&text.len()), "{} bytes", text.len());
            assert!(replaced.weight() <= text.len());
            let next = after.values.as_deref();
            assert_eq!(read(table, &text, next, None).as_deref(), Some(values));
            let stranger = note(&other, b"z", Some(true));
            let found = read(table, &text, stranger.values.as_deref(), None);
            assert!(found.is_none_or(|found| found == values));
            assert_eq!(read(table, &text, None, None).is_none(), bytes.start < 20_000);
        }
        let gone = Stored { values: None, ..before.clone() };
        assert!(Replaced { key, before: &gone, after: &before, recorded: None }.written(table).is_none());
    }

    /// Reads a state as an engine does, beside at most one conflict.
    fn read(
        table: &Table,
        text: &str,
        next: Option<&[Value]>,
        conflict: Option<&Conflict>,
    ) -> Option<Vec<Value>> {
        let partial = read_state(table, text, next).unwrap()?;
        partial.complete(|id| Ok(conflict.filter(|conflict| conflict.id == id).cloned())).unwrap()
    }

    /// Goal: a value that a conflict records is not copied into the history, and a state without its conflict counts as
    /// forgotten. Method: a replaced state of which a conflict has the text, read with the conflict and without it.
    #[test]
    fn a_lost_value_is_kept_by_its_conflict_alone() {
        let schema = Schema::parse(SCHEMA).unwrap();
        let table = &schema.tables()[0];
        let (before, after) =
            (note(&"x".repeat(10_000), &[7; 10_000], None), note("short", &[7; 10_000], None));
        let values = before.values.as_deref().unwrap();
        let (id, key) = (Uuid::from_u128(7), RowKey(Uuid::nil()));
        let side = Side { values: None, last_update: Timestamp::from_ms(1), device: DeviceId(Uuid::nil()) };
        let conflict = Conflict {
            id,
            at: Timestamp::from_ms(1),
            table: table.id,
            key,
            policy: Policy::Newest,
            resolution: Resolution::Overwritten,
            base: None,
            stored: Side { values: Some(vec![values.first().cloned(), None, None]), ..side.clone() },
            incoming: side,
            restored_at: None,
            stored_made_at: None,
        };
        let recorded = RecordedSide { id, columns: vec![true, false, false] };
        let replaced = Replaced { key, before: &before, after: &after, recorded: Some(&recorded) };
        let text = replaced.written(table).unwrap();
        assert!(text.len() < 300, "{} bytes", text.len());
        assert!(replaced.weight() <= text.len());
        let next = after.values.as_deref();
        assert_eq!(read(table, &text, next, Some(&conflict)).as_deref(), Some(values));
        assert_eq!(read(table, &text, next, None), None);
        let other = Conflict { stored: conflict.incoming.clone(), ..conflict };
        assert_eq!(read(table, &text, next, Some(&other)), None);
    }

    #[test]
    fn a_state_of_an_earlier_release_is_read_as_it_is() {
        let schema = Schema::parse(SCHEMA).unwrap();
        let text = r#"{"text":"long","done":null,"gone":1}"#;
        let read = read(&schema.tables()[0], text, None, None).unwrap();
        assert_eq!(read, [Value::Text("long".into()), Value::Null, Value::Null]);
    }
}

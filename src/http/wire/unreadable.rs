//! Rows that cannot be read: they are recorded, so that each gets its verdict and the others are applied.

use std::fmt;

use serde::de::{Deserializer, Error, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::read::{Fault, Reader, reason};
use super::row::{Item, Name, NameSeed};
use crate::broken;
use crate::http::BodyFault;
use crate::model::RowKey;
use crate::reconcile::RejectionCode;
use crate::schema::{HAS_NUL, Table};
use crate::synchronise::{Part, SentKey, UnreadableItem, ValueFault};

/// A longer key is not returned.
const ECHO_BYTES_MAX: usize = 255;

/// A reason is truncated to this many bytes: a library's message may repeat what was sent.
const DETAIL_BYTES_MAX: usize = 200;

/// Reads one row or key from its JSON text. If the row is at fault it is recorded, and the result is `None`.
pub(super) fn read_item<'a, I: Item, E: Error>(
    reader: &Reader<'a>,
    (part, table, index): (Part, &'a Table, usize),
    raw: &str,
    item: I,
) -> Result<Option<I::Read>, E> {
    let (depth, bytes) = (reader.path.borrow().len(), reader.bytes.get());
    reader.fault.set(Fault::Row(RejectionCode::WrongType));
    let read = item.read(reader, table, &mut serde_json::Deserializer::from_str(raw));
    let fault = reader.fault.replace(Fault::Request(BodyFault::WrongType));
    let error = match read {
        Ok(read) => return Ok(Some(read)),
        Err(error) => error,
    };
    let code = match fault {
        Fault::Request(_) | Fault::Memory => return Err(reader.fault(fault, reason(&error))),
        Fault::Row(_) if broken::is("bad_row_refuses_all") => {
            return Err(reader.fault(Fault::Request(BodyFault::WrongType), reason(&error)));
        }
        Fault::Row(RejectionCode::InvalidKey) => RejectionCode::InvalidKey,
        // A deletion may be a plain key. A row is never a text.
        Fault::Row(_) if part == Part::Delete && raw.starts_with('"') => RejectionCode::InvalidKey,
        Fault::Row(_) if part != Part::Get && raw.starts_with('"') => RejectionCode::WrongType,
        Fault::Row(_) if !error.is_data() || reason(&error).ends_with(HAS_NUL) => RejectionCode::InvalidValue,
        Fault::Row(code) => code,
    };
    let steps = reader.path.borrow_mut().split_off(depth);
    let member = steps.first().and_then(|step| step.name().map(str::to_owned));
    let seen = Members::of(raw, table);
    if let Some(name) = seen.unknown {
        // An unknown column is reported first, whatever else is wrong with the row.
        let reason = format!("{} has no such column", table.name);
        return Err(reader.fault_at(
            super::read::member(name),
            Fault::Request(BodyFault::UnknownColumn),
            reason,
        ));
    }
    let key_json =
        if raw.starts_with('"') && matches!(part, Part::Delete | Part::Get) { Some(raw) } else { seen.key };
    let key = key_json.map_or(SentKey::None, sent_key);
    let mut detail = if error.is_data() { reason(&error) } else { sentence(&error) };
    if detail.len() > DETAIL_BYTES_MAX {
        detail.truncate(detail.floor_char_boundary(DETAIL_BYTES_MAX));
        detail.push('…');
    }
    reader.bytes.set(bytes);
    reader.weigh(size_of::<UnreadableItem>() + detail.len() + key.weight())?;
    let fault = ValueFault { code, member, detail };
    reader.unreadable.borrow_mut().push(UnreadableItem { part, table: table.id, index, key, fault });
    Ok(None)
}

/// Whether a text with that error may be valid JSON.
pub(super) fn is_json(error: &serde_json::Error) -> bool {
    error.is_data() || unheld(error).is_some()
}

/// Describes an error of valid JSON that cannot be read.
pub(super) fn sentence(error: &serde_json::Error) -> String {
    unheld(error).map_or_else(|| reason(error), str::to_owned)
}

/// Errors for valid JSON that no value can hold. The library has no codes for them.
fn unheld(error: &serde_json::Error) -> Option<&'static str> {
    let message = reason(error);
    if message.contains("surrogate") || message.contains("hex escape") {
        Some("expected text, not half of a surrogate pair (\\ud800 to \\udfff)")
    } else if message.contains("recursion") {
        Some("expected fewer arrays and objects inside one another")
    } else if message.contains("out of range") {
        Some("expected a number that 64 bits can hold")
    } else {
        None
    }
}

fn sent_key(json: &str) -> SentKey {
    let mut from = serde_json::Deserializer::from_str(json);
    let text = if json.starts_with('"') { from.deserialize_bytes(Lossy).ok() } else { None };
    match text {
        Some(text) => match RowKey::parse(&text) {
            Some(key) => SentKey::Read(key),
            None if text.len() <= ECHO_BYTES_MAX => SentKey::Text(text),
            None => SentKey::None,
        },
        None => SentKey::None,
    }
}

/// The bytes of a string from serde_json, as text: half of a surrogate pair, which it leaves as three invalid
/// bytes, becomes U+FFFD.
pub(super) fn lossy(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        // The three bytes arrive as three chunks: 0xED begins each half.
        if chunk.invalid().first() == Some(&0xed) {
            text.push(char::REPLACEMENT_CHARACTER);
        }
    }
    text
}

struct Lossy;

impl Visitor<'_> for Lossy {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text")
    }

    fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<String, E> {
        Ok(lossy(bytes))
    }
}

/// Reads an unreadable row a second time, for its key.
#[derive(Default)]
struct Members<'j> {
    /// The JSON of its key.
    key: Option<&'j str>,
    /// The first member that is not a column of the table.
    unknown: Option<String>,
}

impl<'j> Members<'j> {
    fn of(raw: &'j str, table: &Table) -> Self {
        struct Look<'t>(&'t Table);

        impl<'de> Visitor<'de> for Look<'_> {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a row")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Members::default();
                while let Some(name) = map.next_key_seed(NameSeed { table: self.0, lossy: true })? {
                    let value: &'de RawValue = map.next_value()?;
                    match name {
                        Name::Key => members.key = members.key.or(Some(value.get())),
                        Name::Other(name) => members.unknown = members.unknown.or(Some(name)),
                        _ => {}
                    }
                }
                Ok(members)
            }
        }

        serde_json::Deserializer::from_str(raw).deserialize_map(Look(table)).unwrap_or_default()
    }
}

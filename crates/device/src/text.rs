//! A row's columns as JSON text. A [`serde_json::Value`] takes numbers for doubles, and a `json` column may hold numbers
//! that no double is equal to.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value as Json;
use serde_json::value::RawValue;

/// Columns by name.
pub type Columns = BTreeMap<String, JsonText>;

/// One value as JSON text. Its numbers have the digits that were written, by the app or by the server.
///
/// Two are equal if their texts are.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct JsonText(String);

impl JsonText {
    /// The value `null`.
    pub fn null() -> Self {
        Self("null".to_owned())
    }

    /// Whether the value is `null`.
    pub fn is_null(&self) -> bool {
        self.0 == "null"
    }

    /// The JSON text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The string that the value is, if it is one.
    pub fn string(&self) -> Option<String> {
        serde_json::from_str(&self.0).ok()
    }

    /// Writes a value as JSON text.
    pub fn of(value: &impl Serialize) -> serde_json::Result<Self> {
        serde_json::to_string(value).map(Self)
    }
}

impl From<Json> for JsonText {
    fn from(value: Json) -> Self {
        Self(value.to_string())
    }
}

impl fmt::Display for JsonText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for JsonText {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        serde_json::from_str::<&RawValue>(&self.0).map_err(serde::ser::Error::custom)?.serialize(to)
    }
}

impl<'de> Deserialize<'de> for JsonText {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Ok(Self(<Box<RawValue>>::deserialize(from)?.get().to_owned()))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn no_digit_is_lost_on_the_way_through() {
        let text = r#"{"a":[123456789012345678901234567890,1.0,-0.10,1e2],"b":null,"c":"5\" \u00e9"}"#;
        let columns: Columns = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&columns).unwrap(), text);
        assert!(columns["b"].is_null() && !columns["a"].is_null());
        assert_eq!(columns["c"].string().as_deref(), Some("5\" é"));
        assert_eq!(columns["a"].string(), None);
    }
}

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Map, Value as Json};

use super::read::{LossyText, known, malformed};
use super::unreadable::sentence;
use crate::http::{ApiError, BodyFault};

/// The members of a small body, removed one by one; a member that is left at the end is unknown.
pub struct Fields(Map<String, Json>);

impl Fields {
    /// Reads a body that must be an object without duplicate members.
    pub fn read(body: &[u8]) -> Result<Self, ApiError> {
        let whole: &RawValue = serde_json::from_slice(body).map_err(|error| malformed(&error))?;
        let Members(listed) = serde_json::from_str(whole.get()).map_err(|_| {
            let (code, reason) = (BodyFault::WrongType, "expected an object".into());
            ApiError::InvalidBody { code, at: String::new(), reason }
        })?;
        let mut members = Map::new();
        for (name, value) in listed {
            if members.contains_key(&name) {
                return Err(invalid(BodyFault::UnknownMember, &name, "this member comes twice"));
            }
            // Valid JSON may still be invalid text, or a number that no type can hold.
            let value = serde_json::from_str(value.get())
                .map_err(|error| invalid(BodyFault::InvalidValue, &name, &sentence(&error)))?;
            members.insert(name, value);
        }
        Ok(Self(members))
    }

    /// A required text.
    pub fn text(&mut self, name: &str) -> Result<String, ApiError> {
        self.optional_text(name)?
            .ok_or_else(|| invalid(BodyFault::InvalidValue, name, "this member is missing"))
    }

    /// An optional text, which may be `null`.
    pub fn optional_text(&mut self, name: &str) -> Result<Option<String>, ApiError> {
        match self.0.remove(name) {
            None | Some(Json::Null) => Ok(None),
            Some(Json::String(text)) => Ok(Some(text)),
            Some(_) => Err(invalid(BodyFault::WrongType, name, "expected a string")),
        }
    }

    /// An optional whole number, which may be `null`.
    pub fn optional_number(&mut self, name: &str) -> Result<Option<u64>, ApiError> {
        match self.0.remove(name) {
            None | Some(Json::Null) => Ok(None),
            Some(value) => {
                let wrong = || invalid(BodyFault::WrongType, name, "expected a whole number, at least 0");
                value.as_u64().map(Some).ok_or_else(wrong)
            }
        }
    }

    /// A truth value; `false` if it is absent or `null`.
    pub fn optional_flag(&mut self, name: &str) -> Result<bool, ApiError> {
        Ok(self.flag(name)?.unwrap_or(false))
    }

    /// A truth value, if there is one.
    pub fn flag(&mut self, name: &str) -> Result<Option<bool>, ApiError> {
        match self.0.remove(name) {
            None | Some(Json::Null) => Ok(None),
            Some(Json::Bool(flag)) => Ok(Some(flag)),
            Some(_) => Err(invalid(BodyFault::WrongType, name, "expected true or false")),
        }
    }

    /// Checks that no other member is left.
    pub fn end(self) -> Result<(), ApiError> {
        match self.0.keys().next() {
            None => Ok(()),
            Some(name) => Err(invalid(BodyFault::UnknownMember, name, "there is no such member")),
        }
    }
}

/// An object with its members in order: a map would silently keep the last duplicate.
struct Members<'j>(Vec<(String, &'j RawValue)>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        struct Listed;
        impl<'de> Visitor<'de> for Listed {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<'de>, A::Error> {
                let mut listed = Vec::new();
                while let Some(name) = map.next_key_seed(LossyText)? {
                    listed.push((name, map.next_value()?));
                }
                Ok(Members(listed))
            }
        }
        json.deserialize_map(Listed)
    }
}

fn invalid(code: BodyFault, name: &str, reason: &str) -> ApiError {
    ApiError::InvalidBody { code, at: known(name).to_string(), reason: reason.to_owned() }
}

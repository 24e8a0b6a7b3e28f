//! Query strings. Each is read into a struct whose fields are the parameters.
//!
//! The structs deny unknown fields, and serde denies duplicates: some clients write a list as
//! `tables=a&tables=b`, and using one of the two would hide the other's rows.

use std::num::NonZeroUsize;

use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer, Error as _};
use uuid::Uuid;

use super::problem::ApiError;
use crate::model::Owner;
use crate::schema::{Schema, TableId};

/// Reads a query string.
///
/// Errors: 400 `invalid_request` if a parameter is unknown, duplicate or invalid.
pub(crate) fn read<T: DeserializeOwned>(query: &str) -> Result<T, ApiError> {
    serde_urlencoded::from_str(query).map_err(|error| invalid(format!("The query cannot be read: {error}.")))
}

pub(crate) fn invalid(reason: impl Into<String>) -> ApiError {
    ApiError::InvalidRequest { reason: reason.into() }
}

/// The parameter of an operation that names the owner of the rows.
const OWNER: &str = "owner=";

/// The owner that a query names.
///
/// Errors: 400 `invalid_request` if it is no UUID, or named twice.
pub(crate) fn named_owner(query: &str) -> Result<Option<Owner>, ApiError> {
    let mut named = query.split('&').filter_map(|pair| pair.strip_prefix(OWNER));
    let Some(text) = named.next() else { return Ok(None) };
    let id = if text.len() == 36 && named.next().is_none() { Uuid::try_parse(text).ok() } else { None };
    id.map(|id| Some(Owner(id))).ok_or_else(|| invalid("owner must be the id of one owner."))
}

/// Whether a query names all owners of the user: `owner=all`, once.
pub(crate) fn names_all_owners(query: &str) -> bool {
    let mut named = query.split('&').filter_map(|pair| pair.strip_prefix(OWNER));
    named.next() == Some("all") && named.next().is_none()
}

/// A query without the owner that it names: every operation reads the rest by itself.
pub(crate) fn without_owner(query: &str) -> String {
    let rest: Vec<&str> = query.split('&').filter(|pair| !pair.starts_with(OWNER)).collect();
    rest.join("&")
}

/// The parameter `limit`: the most entries of a page.
#[derive(Clone, Copy)]
pub(super) struct Limit(NonZeroUsize);

impl Limit {
    /// The limit, at most `max`, which is also the default.
    pub fn within(limit: Option<Self>, max: usize) -> usize {
        limit.map_or(max, |limit| limit.0.get().min(max))
    }
}

impl<'de> Deserialize<'de> for Limit {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let number = String::deserialize(from)?.parse().ok();
        number.map(Self).ok_or_else(|| D::Error::custom("limit must be a number from 1"))
    }
}

/// The tables of a query, each once, in the order listed; without a list, all of them.
pub(crate) fn tables(names: Option<&str>, schema: &Schema) -> Result<Vec<TableId>, ApiError> {
    let Some(names) = names else { return Ok(schema.tables().iter().map(|table| table.id).collect()) };
    let mut tables = Vec::new();
    for name in names.split(',') {
        let table = schema.table(name);
        let table = table.ok_or_else(|| invalid(format!("tables: there is no table {name:?}.")))?;
        if !tables.contains(&table.id) {
            tables.push(table.id);
        }
    }
    Ok(tables)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Query {
        name: Option<String>,
        limit: Option<Limit>,
        #[serde(default)]
        lock: bool,
    }

    #[test]
    fn a_query_names_at_most_one_owner() {
        let id = Uuid::from_u128(0xa);
        let named = format!("limit=1&owner={id}&lock=true");
        assert_eq!(named_owner(&named).unwrap(), Some(Owner(id)));
        assert_eq!(without_owner(&named), "limit=1&lock=true");
        assert_eq!((named_owner("limit=1").unwrap(), without_owner("limit=1").as_str()), (None, "limit=1"));
        for query in [
            "owner=".into(),
            format!("owner={}", id.simple()),
            format!("owner={id}&owner={id}"),
            "owner=x".into(),
        ] {
            assert!(matches!(named_owner(&query), Err(ApiError::InvalidRequest { .. })), "{query}");
        }
        assert!(names_all_owners("owner=all") && names_all_owners("a=b&owner=all"));
        assert!(!names_all_owners("owner=all&owner=all") && !names_all_owners("owner=ALL"));
        assert!(named_owner("owner=all").is_err(), "only where an operation takes it");
        // Another spelling of the name is a parameter that no operation knows.
        assert!(read::<Query>(&without_owner(&format!("%6Fwner={id}"))).is_err());
    }

    /// Goal: a misspelt or repeated parameter is never ignored. Method: queries with common mistakes.
    #[test]
    fn what_is_not_understood_is_refused() {
        for query in
            ["nam=a", "name=a&name=b", "limit=0", "limit=-1", "limit=", "lock=yes", "lock", "limit=1&limit=1"]
        {
            assert!(matches!(read::<Query>(query), Err(ApiError::InvalidRequest { .. })), "{query}");
        }
        for query in ["", "&", "name=", "limit=1", "lock=true", "limit=%31&name=a+b%26"] {
            assert!(read::<Query>(query).is_ok(), "{query}");
        }
        let query: Query = read("limit=%31&name=a+b%26").unwrap();
        assert_eq!(
            (query.name.unwrap().as_str(), Limit::within(query.limit, 7), query.lock),
            ("a b&", 1, false)
        );
        assert_eq!((Limit::within(None, 7), Limit::within(query.limit, 0)), (7, 0));
    }
}

//! Page tokens: where the next page of a list begins. Clients store them, also during an upgrade of the
//! server: later releases read the tokens of earlier ones.

use std::fmt::Display;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use uuid::Uuid;

use super::query::tables;
use crate::changes::Feed;
use crate::fetch::PageToken;
use crate::model::{Owner, RowKey, Timestamp, Version};
use crate::schema::{Schema, TableId};
use crate::storage::FeedPosition;

/// A token for the pages of an owner's rows; `None` is the owner of requests that name none.
pub(super) fn for_owner(token: String, owner: Option<Owner>) -> String {
    owner.map_or_else(|| token.clone(), |owner| format!("{token}.{}", owner.0.simple()))
}

/// The token of a page, if it is of that owner's rows.
pub(super) fn of_owner(token: &str, owner: Option<Owner>) -> Option<&str> {
    match (token.split_once('.'), owner) {
        (None, None) => Some(token),
        (Some((token, of)), Some(owner)) if of == owner.0.simple().to_string() => Some(token),
        _ => None,
    }
}

/// A page of a manifest.
pub(super) fn write_manifest(token: PageToken) -> String {
    let after = token.after.map(|key| key.to_string()).unwrap_or_default();
    encode(format_args!("{}.{}.{}.{after}", token.version, token.table, token.rows_before))
}

pub(super) fn read_manifest(token: &str) -> Option<PageToken> {
    let text = decode(token)?;
    let parts: Vec<&str> = text.splitn(4, '.').collect();
    let [version, table, rows_before, after] = parts.as_slice() else { return None };
    let after = match *after {
        "" => None,
        key => Some(RowKey::parse(key)?),
    };
    let version = read_version(version)?;
    Some(PageToken { version, table: table.parse().ok()?, rows_before: rows_before.parse().ok()?, after })
}

/// A page of the change feed: where the feed began and ends, what it leaves out, its position, and its
/// tables.
pub(crate) fn write_feed(feed: Feed, tables: &[TableId], schema: &Schema) -> String {
    let version = |version: Option<Version>| version.map_or_else(|| "-".into(), |it| it.to_string());
    let (since, exclude) = (version(feed.since), version(feed.exclude));
    let (table, key) = match feed.position.within {
        Some((table, key)) => (schema.at(table).name.as_str(), key.to_string()),
        None => ("-", "-".into()),
    };
    let names: Vec<&str> = tables.iter().map(|table| schema.at(*table).name.as_str()).collect();
    let position = feed.position.version;
    encode(format_args!("{since} {} {exclude} {position} {table} {key} {}", feed.until, names.join(",")))
}

pub(crate) fn read_feed(token: &str, schema: &Schema) -> Option<(Feed, Vec<TableId>)> {
    let text = decode(token)?;
    let parts: Vec<&str> = text.split(' ').collect();
    let [since, until, exclude, position, table, key, names] = parts.as_slice() else { return None };
    let optional = |text: &str| if text == "-" { Some(None) } else { read_version(text).map(Some) };
    let within = match (*table, *key) {
        ("-", "-") => None,
        (table, key) => Some((schema.table(table)?.id, RowKey::parse(key)?)),
    };
    let position = FeedPosition { version: read_version(position)?, within };
    let feed =
        Feed { since: optional(since)?, until: read_version(until)?, exclude: optional(exclude)?, position };
    Some((feed, tables(Some(names), schema).ok()?))
}

/// A page of conflicts.
pub(super) fn write_conflicts((at, id): (Timestamp, Uuid)) -> String {
    encode(format_args!("{} {id}", at.ms()))
}

pub(super) fn read_conflicts(token: &str) -> Option<(Timestamp, Uuid)> {
    let text = decode(token)?;
    let (at, id) = text.split_once(' ')?;
    Some((Timestamp::from_ms(at.parse().ok()?), Uuid::try_parse(id).ok()?))
}

fn read_version(text: &str) -> Option<Version> {
    text.parse().ok().map(Version)
}

fn encode(text: impl Display) -> String {
    URL_SAFE_NO_PAD.encode(text.to_string())
}

fn decode(token: &str) -> Option<String> {
    String::from_utf8(URL_SAFE_NO_PAD.decode(token).ok()?).ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_of_one_owner() {
        let [ours, theirs] = [1, 2].map(|number| Owner(Uuid::from_u128(number)));
        let token = for_owner("NS4x".into(), Some(ours));
        assert_eq!(of_owner(&token, Some(ours)), Some("NS4x"));
        assert_eq!((of_owner(&token, Some(theirs)), of_owner(&token, None)), (None, None));
        assert_eq!(of_owner(&for_owner("NS4x".into(), None), None), Some("NS4x"));
        assert_eq!(of_owner("NS4x", Some(ours)), None);
    }

    /// Goal: a client with a token can continue after an upgrade. Method: tokens as an earlier release wrote
    /// them.
    #[test]
    fn tokens_of_earlier_releases_are_read() {
        let schema =
            Schema::parse("[table.task]\nkey = \"id\"\n[table.task.columns]\ntitle = \"text\"\n").unwrap();
        let (task, key) = (schema.table("task").unwrap().id, RowKey(Uuid::from_u128(7)));

        let page = PageToken { version: Version(5), table: 1, rows_before: 9, after: Some(key) };
        let token = "NS4xLjkuMDAwMDAwMDAtMDAwMC0wMDAwLTAwMDAtMDAwMDAwMDAwMDA3";
        assert_eq!((read_manifest(token), write_manifest(page).as_str()), (Some(page), token));
        let page = PageToken { after: None, ..page };
        assert_eq!((read_manifest("NS4xLjku"), write_manifest(page).as_str()), (Some(page), "NS4xLjku"));

        let position = FeedPosition { version: Version(4), within: Some((task, key)) };
        let feed = Feed { since: Some(Version(3)), until: Version(8), exclude: None, position };
        let token = "MyA4IC0gNCB0YXNrIDAwMDAwMDAwLTAwMDAtMDAwMC0wMDAwLTAwMDAwMDAwMDAwNyB0YXNr";
        assert_eq!(read_feed(token, &schema), Some((feed, vec![task])));
        assert_eq!(write_feed(feed, &[task], &schema), token);

        let place = (Timestamp::from_ms(1_700_000_000_000), Uuid::from_u128(7));
        let token = "MTcwMDAwMDAwMDAwMCAwMDAwMDAwMC0wMDAwLTAwMDAtMDAwMC0wMDAwMDAwMDAwMDc";
        assert_eq!((read_conflicts(token), write_conflicts(place).as_str()), (Some(place), token));

        for token in ["", "NS4xLjk", "&", "NS4xLjkuLi4", "LS0t"] {
            assert!(read_manifest(token).is_none() && read_conflicts(token).is_none(), "{token}");
            assert!(read_feed(token, &schema).is_none(), "{token}");
        }
    }
}

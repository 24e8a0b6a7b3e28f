use std::convert::Infallible;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use futures_util::stream;
use http::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE, HeaderMap, HeaderValue};
use serde_json::json;
use tracing::Instrument as _;
use warp::reply::Reply;

use super::fetch::tables;
use super::{Answer, ApiError, App, json, off_reactor, parameters, tell_version};
use crate::accounts::Caller;
use crate::changes::{self, Feed};
use crate::digest::Digest;
use crate::http::wire::{ChangeLine, ChangesBody, DigestsBody, EndLine};
use crate::model::{RowKey, Version};
use crate::schema::{Schema, TableId};
use crate::storage::ChangeMark;
use crate::synchronise::Changes;

const NDJSON: &str = "application/x-ndjson";

/// Rows of a stream that are read and written at a time: each lot in a snapshot of its own, so that a slow
/// reader holds none.
const STREAM_ROWS: usize = 500;

/// What a query asks for.
struct Asked {
    since: Option<Version>,
    tables: Vec<TableId>,
    rows_max: usize,
    next: Option<Feed>,
}

/// `GET /changes`: what changed since the caller's cursor.
pub async fn changes(
    app: Arc<App>,
    caller: Result<Caller, ApiError>,
    headers: HeaderMap,
    query: String,
) -> Answer {
    let caller = caller?;
    let asked = Asked::read(&query, &app)?;
    let streams = headers.get(ACCEPT).and_then(|value| value.to_str().ok()).is_some_and(|accept| {
        accept.split(',').any(|kind| kind.split(';').next().is_some_and(|kind| kind.trim() == NDJSON))
    });
    if streams { stream(app, caller, asked).await } else { page(app, caller, asked).await }
}

async fn page(app: Arc<App>, caller: Caller, asked: Asked) -> Answer {
    off_reactor(move || {
        let (changes, current, digests) = read(&app, &caller, &asked, None)?;
        let next = changes.next.map(|feed| write_feed(feed, &asked.tables, &app.schema));
        let digests = next.is_none().then_some((current, digests.as_slice()));
        let schema = &app.schema;
        let mut answer = json(ChangesBody { schema, changes: &changes, next: next.as_deref(), digests })?;
        let headers = answer.headers_mut();
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("private, no-cache"));
        tell_version(headers, changes.feed.upto);
        Ok(answer)
    })
    .await
}

/// Reads one page in one snapshot; beside it the owner's version and digests then.
fn read(
    app: &App,
    caller: &Caller,
    asked: &Asked,
    goes_on: Option<Feed>,
) -> Result<(Changes, Version, Vec<Digest>), ApiError> {
    let read = app.storage.read(caller.owner, |txn| {
        let state = txn.state();
        let feed = match goes_on.or(asked.next) {
            Some(feed) => feed.resume(state)?,
            None => Feed::begin(state, asked.since)?,
        };
        let wanted =
            changes::Asked { device: caller.device, tables: &asked.tables, rows_max: asked.rows_max };
        let mut rows = Vec::new();
        let next =
            changes::run(txn, feed, &wanted, &mut |net, table, key, row| rows.push((net, table, key, row)))?;
        let digests = txn.digests()?;
        Ok::<_, ApiError>((Changes { feed, next, rows }, state.version, digests))
    })?;
    app.metrics.feed_rows.inc_by(read.0.rows.len() as u64);
    app.acks.note(caller, asked.since, app.clock.now());
    Ok(read)
}

/// The whole feed, a line a row, in memory that does not grow with it.
///
/// A lot is read when the client has taken the one before: a slow reader holds no thread and no snapshot.
async fn stream(app: Arc<App>, caller: Caller, asked: Asked) -> Answer {
    let source = Arc::new(Source { app, caller, asked: Asked { rows_max: STREAM_ROWS, ..asked } });
    let reader = Arc::clone(&source);
    // The first lot is read before the answer begins, so that a bad cursor still gets its problem.
    let (version, first) = off_reactor(move || reader.lot(None)).await?;
    let span = tracing::Span::current();
    let lots = stream::unfold(Some(Step::Tell(first)), move |step| {
        let source = Arc::clone(&source);
        let read_on = async move {
            let lot = match step? {
                Step::Tell(lot) => lot,
                Step::Read(feed) => match off_reactor(move || source.lot(Some(feed))).await {
                    Ok((_, lot)) => lot,
                    Err(error) => {
                        // The last line is missing, so the client knows that it has not got everything.
                        tracing::warn!(%error, "a feed broke off");
                        return None;
                    }
                },
            };
            Some((Ok::<_, Infallible>(lot.lines), lot.next.map(Step::Read)))
        };
        read_on.instrument(span.clone())
    });
    let mut answer = warp::reply::stream(lots).into_response();
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(NDJSON));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("private, no-cache"));
    tell_version(headers, version);
    Ok(answer)
}

/// What a stream is read from.
struct Source {
    app: Arc<App>,
    caller: Caller,
    asked: Asked,
}

/// Some lines of a stream, and the feed to go on with.
struct Lot {
    lines: Bytes,
    next: Option<Feed>,
}

/// What a stream does next.
enum Step {
    Tell(Lot),
    Read(Feed),
}

impl Source {
    /// Reads the next lot; beside it the version that the feed ends at.
    fn lot(&self, goes_on: Option<Feed>) -> Result<(Version, Lot), ApiError> {
        let schema = &self.app.schema;
        let (changes, current, digests) = read(&self.app, &self.caller, &self.asked, goes_on)?;
        let mut lines = Vec::new();
        for (net, table, key, row) in &changes.rows {
            line(&mut lines, &ChangeLine { schema, net: *net, table: *table, key: *key, row })?;
        }
        if changes.next.is_none() {
            line(&mut lines, &EndLine { schema, feed: &changes.feed, digests: (current, &digests) })?;
        }
        Ok((changes.feed.upto, Lot { lines: lines.into(), next: changes.next }))
    }
}

fn line(lot: &mut Vec<u8>, line: &impl serde::Serialize) -> Result<(), ApiError> {
    serde_json::to_writer(&mut *lot, line).map_err(|error| ApiError::Internal(Box::new(error)))?;
    lot.push(b'\n');
    Ok(())
}

/// `GET /digests`: what each table holds, and the secret to check it by.
pub async fn digests(app: Arc<App>, caller: Result<Caller, ApiError>) -> Answer {
    let caller = caller?;
    off_reactor(move || {
        let held = app.storage.read(caller.owner, |txn| Ok::<_, ApiError>((txn.state(), txn.digests()?)))?;
        let (state, digests) = match held {
            // A write, if only of the owner itself: a seed that nobody keeps would be no seed.
            (state, _) if state.seed.is_none() => {
                app.storage.write(caller.owner, |txn| Ok::<_, ApiError>((txn.state(), txn.digests()?)))?
            }
            held => held,
        };
        let told = DigestsBody { schema: &app.schema, as_of: state.version, digests: &digests };
        let mut body = json!({ "seed": state.seed.map(|seed| seed.to_string()) });
        if let (Some(body), Ok(serde_json::Value::Object(told))) =
            (body.as_object_mut(), serde_json::to_value(told))
        {
            body.extend(told);
        }
        let mut answer = json(body)?;
        let headers = answer.headers_mut();
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store")); // the seed is a secret
        tell_version(headers, state.version);
        Ok(answer)
    })
    .await
}

impl Asked {
    fn read(query: &str, app: &App) -> Result<Self, ApiError> {
        let (schema, rows_max) = (&app.schema, app.settings.sync.changes_rows_max);
        let every = schema.tables().iter().map(|table| table.id).collect();
        let mut asked = Self { since: None, tables: every, rows_max, next: None };
        let invalid = |reason: &str| ApiError::InvalidRequest { reason: reason.into() };
        let mut goes_on = None;
        for (name, value) in parameters(query, &["since", "tables", "limit", "next"])? {
            match name.as_str() {
                "since" => {
                    let since = value.parse().map_err(|_| invalid("since must be a version."))?;
                    asked.since = Some(Version(since));
                }
                "tables" => asked.tables = tables(&value, schema)?,
                "limit" => {
                    let limit = value.parse().ok().filter(|limit| *limit > 0);
                    let limit: usize = limit.ok_or_else(|| invalid("limit must be a number from 1."))?;
                    asked.rows_max = limit.min(rows_max);
                }
                _ => {
                    let mark = read_feed(&value, schema);
                    goes_on = Some(mark.ok_or_else(|| invalid("next must come from the page before."))?);
                }
            }
        }
        // A page goes on with the feed that it belongs to, whatever else the query says.
        if let Some((feed, tables)) = goes_on {
            (asked.next, asked.since, asked.tables) = (Some(feed), feed.since, tables);
        }
        Ok(asked)
    }
}

/// The mark of the next page: where the feed began, where it ends, what it leaves out, how far it is, and of
/// which tables it is.
pub(super) fn write_feed(feed: Feed, tables: &[TableId], schema: &Schema) -> String {
    let version = |version: Option<Version>| version.map_or_else(|| "-".into(), |it| it.to_string());
    let (since, but) = (version(feed.since), version(feed.but));
    let (table, key) = match feed.told.within {
        Some((table, key)) => (schema.at(table).name.as_str(), key.to_string()),
        None => ("-", "-".into()),
    };
    let names: Vec<&str> = tables.iter().map(|table| schema.at(*table).name.as_str()).collect();
    let told = feed.told.version;
    URL_SAFE_NO_PAD.encode(format!("{since} {} {but} {told} {table} {key} {}", feed.upto, names.join(",")))
}

fn read_feed(text: &str, schema: &Schema) -> Option<(Feed, Vec<TableId>)> {
    let mark = String::from_utf8(URL_SAFE_NO_PAD.decode(text).ok()?).ok()?;
    let parts: Vec<&str> = mark.split(' ').collect();
    let [since, upto, but, told, table, key, names] = parts.as_slice() else { return None };
    let version = |text: &str| text.parse().ok().map(Version);
    let perhaps = |text: &str| if text == "-" { Some(None) } else { version(text).map(Some) };
    let within = match (*table, *key) {
        ("-", "-") => None,
        (table, key) => Some((schema.table(table)?.id, RowKey::parse(key)?)),
    };
    let told = ChangeMark { version: version(told)?, within };
    let feed = Feed { since: perhaps(since)?, upto: version(upto)?, but: perhaps(but)?, told };
    Some((feed, tables(names, schema).ok()?))
}

use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use http::Response;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderMap, HeaderValue};
use serde::Deserialize;
use serde::de::{Deserializer, Error as _};
use serde_json::json;
use warp::reply::Reply;

use super::{ApiError, App, HandlerResult, hold, json, off_reactor, set_version_headers};
use crate::accounts::Caller;
use crate::changes::{self, Expired, Feed};
use crate::digest::Digest;
use crate::http::Sight;
use crate::http::accept;
use crate::http::memory::Permit;
use crate::http::page_token::{self, write_feed};
use crate::http::query::{self, Limit};
use crate::http::response_cache::CacheKey;
use crate::http::stream::{self, Body, ChunkWriter, Progress, Source};
use crate::http::wire::{ChangeLine, ChangesBody, DigestsBody, EndLine};
use crate::model::{Owner, Version};
use crate::schema::TableId;
use crate::storage::{FeedPosition, OwnerState};
use crate::synchronise::Changes;

const JSON: &str = "application/json";
const NDJSON: &str = "application/x-ndjson";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ChangesQuery {
    #[serde(default, deserialize_with = "read_since")]
    since: Option<Version>,
    tables: Option<String>,
    limit: Option<Limit>,
    next: Option<String>,
}

fn read_since<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Version>, D::Error> {
    let since = String::deserialize(from)?.parse();
    since.map(|since| Some(Version(since))).map_err(|_| D::Error::custom("since must be a version"))
}

/// A query after its checks.
struct ChangesRequest {
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
) -> HandlerResult {
    let caller = caller?;
    let request = ChangesRequest::read(&query, &caller, &app)?;
    if accept::preferred(&headers, &[JSON, NDJSON]) == NDJSON {
        let lines = Lines { app: Arc::clone(&app), caller, request, first: Vec::new(), rest: None };
        return stream(app, lines).await;
    }
    match unchanged(&app, &caller, &request) {
        Some(response) => Ok(response),
        None => page(app, caller, request).await,
    }
}

/// The cached response that nothing changed, if the owner's version is known without a database access.
fn unchanged(app: &App, caller: &Caller, request: &ChangesRequest) -> Option<warp::reply::Response> {
    let since = request.since.filter(|_| request.next.is_none())?;
    let state = app.storage.known_state(caller.owner).filter(|state| state.version == since)?;
    if caller.rights.hold_at(&state) != Some(true) {
        return None; // the transaction that reads finds out
    }
    let key = CacheKey::Unchanged(app.schema.hidden_from(caller.rights.role));
    let ready = app.responses.find(caller.owner, state.version, &key);
    app.metrics.looked_up("unchanged feed", ready.is_some());
    let body = ready?.chunks.first()?.clone();
    app.acks.note(caller, request.since, app.clock.now());
    Some(feed_response(body, JSON, since))
}

async fn page(app: Arc<App>, caller: Caller, request: ChangesRequest) -> HandlerResult {
    let slot = app.readers.enter(caller.owner).await?;
    off_reactor(move || {
        let permit = app.memory.permit(Some(caller.owner));
        let (changes, sight, digests) = read(&app, &caller, &request, &permit)?;
        let current = sight.state.version;
        drop(slot);
        let next = changes.next.map(|feed| write_feed(feed, &request.tables, &app.schema));
        let next = next.map(|token| page_token::for_owner(token, caller.other_owner()));
        let digests = next.is_none().then_some((current, digests.as_slice()));
        let schema = &app.schema;
        let body = ChangesBody { schema, changes: &changes, next: next.as_deref(), digests };
        let body = Bytes::from(permit.json(&body)?);
        if request.next.is_none() && request.since == Some(current) {
            let mut recorder = app.responses.begin();
            recorder.add(&body);
            recorder.keep(caller.owner, current, CacheKey::Unchanged(sight.hidden), None);
        }
        hold(feed_response(body, JSON, changes.feed.until), permit)
    })
    .await
}

fn feed_response(body: Bytes, kind: &'static str, version: Version) -> warp::reply::Response {
    with_headers(Response::new(body.into()), kind, version)
}

/// Reads one page, the owner's state and its digests in one snapshot.
///
/// Errors: also 503 `busy` if there is no memory for the rows.
fn read(
    app: &App,
    caller: &Caller,
    request: &ChangesRequest,
    permit: &Permit,
) -> Result<(Changes, Sight, Vec<Digest>), ApiError> {
    let read = app.read_as(caller, |txn, sight| {
        let feed = request.feed(sight.state)?;
        let wanted = changes::FeedFilter {
            device: caller.device,
            tables: &request.tables,
            rows_max: request.rows_max,
            bytes_max: app.settings.sync.changes_bytes_max,
            entries_max: app.settings.sync.page_entries_max,
        };
        let (mut rows, mut refused) = (Vec::new(), None);
        let page = changes::run(txn, feed, &wanted, &mut |net, table, key, row| {
            refused = permit.grow(row.weight()).err();
            if refused.is_some() {
                return ControlFlow::Break(());
            }
            rows.push((net, table, key, row.clone()));
            ControlFlow::Continue(())
        })?;
        if let Some(refused) = refused {
            return Err(refused);
        }
        let digests = txn.digests()?;
        let changes = Changes { feed, next: page.next, rows, looked: page.looked };
        Ok((changes, sight, digests))
    })?;
    app.metrics.fed(read.0.rows.len() as u64, read.0.looked as u64);
    app.acks.note(caller, request.since, app.clock.now());
    Ok(read)
}

/// Lines in constant memory: what a source reads, while it reads.
pub(super) async fn stream<S: Source<Head = Version>>(app: Arc<App>, source: S) -> HandlerResult {
    let permit = app.memory.permit(Some(source.owner()));
    let (version, lines) = stream::respond(&app.readers, &permit, source).await?;
    let response = match lines {
        Body::Buffered(lines) => hold(Response::new(lines.into()), permit)?,
        Body::Streaming(coming) => {
            let mut response = warp::reply::stream(coming.holding(permit.clone())).into_response();
            response.extensions_mut().insert(permit);
            response
        }
    };
    Ok(with_headers(response, NDJSON, version))
}

/// A feed as lines.
pub(super) struct Lines {
    app: Arc<App>,
    caller: Caller,
    request: ChangesRequest,
    /// What comes before the feed.
    first: Vec<u8>,
    /// The part that is not written yet, once writing has begun.
    rest: Option<Feed>,
}

impl Lines {
    /// Every row of the caller's owner, after `first`.
    pub fn whole(app: Arc<App>, caller: Caller, first: Vec<u8>) -> Self {
        let tables = app.schema.tables().iter().map(|table| table.id).collect();
        let request = ChangesRequest { since: None, tables, rows_max: usize::MAX, next: None };
        Self { app, caller, request, first, rest: None }
    }

    /// What comes before the feed, unless it is written already.
    pub fn unwritten(&self) -> Option<&[u8]> {
        self.rest.is_none().then_some(self.first.as_slice())
    }
}

impl Source for Lines {
    /// The version at which the feed ends.
    type Head = Version;

    fn owner(&self) -> Owner {
        self.caller.owner
    }

    /// Each run has a snapshot of its own: a row that changes in between gets a version above the feed's end.
    /// A run reads as many entries as a page does, so that a walk over entries that are not returned occupies
    /// no reader for longer.
    fn read(&mut self, out: &mut ChunkWriter<Version>) -> Result<Progress, ApiError> {
        let Self { app, caller, request, first, rest } = self;
        let schema = &app.schema;
        app.read_as(caller, |txn, Sight { state, .. }| {
            let feed = match rest {
                Some(feed) => feed.resume(state)?,
                None => {
                    let feed = request.feed(state)?;
                    app.acks.note(caller, request.since, app.clock.now());
                    out.begin(feed.until);
                    out.buf.extend_from_slice(first);
                    *rest.insert(feed)
                }
            };
            let (device, tables) = (caller.device, request.tables.as_slice());
            let (rows_max, bytes_max) = (usize::MAX, usize::MAX);
            let entries_max = app.settings.sync.page_entries_max;
            let wanted = changes::FeedFilter { device, tables, rows_max, bytes_max, entries_max };
            let (mut wrong, mut rows) = (None, 0);
            let page = changes::run(txn, feed, &wanted, &mut |net, table, key, row| {
                let written = line(&mut out.buf, &ChangeLine { schema, net, table, key, row });
                wrong = written.err();
                rows += 1;
                // Updated with each written row: if the work is run again, it continues from here.
                let position = FeedPosition { version: row.version, within: Some((table, key)) };
                *rest = Some(Feed { position, ..feed });
                if wrong.is_some() { ControlFlow::Break(()) } else { out.flush_if_full() }
            })?;
            app.metrics.fed(rows, page.looked as u64);
            if let Some(error) = wrong {
                return Err(error);
            }
            if let Some(next) = page.next {
                *rest = Some(next);
                return Ok(Progress::Paused);
            }
            let digests = txn.digests()?;
            line(&mut out.buf, &EndLine { schema, feed: &feed, digests: (state.version, &digests) })?;
            Ok(Progress::Finished)
        })
    }
}

pub(super) fn line(buf: &mut Vec<u8>, line: &impl serde::Serialize) -> Result<(), ApiError> {
    serde_json::to_writer(&mut *buf, line).map_err(|error| ApiError::Internal(Box::new(error)))?;
    buf.push(b'\n');
    Ok(())
}

fn with_headers(
    mut response: warp::reply::Response,
    kind: &'static str,
    version: Version,
) -> warp::reply::Response {
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("private, no-cache"));
    if version > Version(0) {
        set_version_headers(headers, version);
    }
    response
}

/// `GET /digests`: the digest of each table, and the secret to compute it with.
pub async fn digests(app: Arc<App>, caller: Result<Caller, ApiError>) -> HandlerResult {
    let caller = caller?;
    off_reactor(move || {
        let held = app.read_as(&caller, |txn, sight| Ok((sight.state, txn.digests()?)))?;
        let (state, digests) = match held {
            // A write transaction even if only the owner is created: the seed must be stored.
            (state, _) if state.seed.is_none() => {
                app.storage.write(caller.owner, |txn| Ok::<_, ApiError>((txn.state(), txn.digests()?)))?
            }
            held => held,
        };
        let feed_response = DigestsBody { schema: &app.schema, as_of: state.version, digests: &digests };
        let mut body = json!({ "seed": state.seed.map(|seed| seed.to_string()) });
        if let (Some(body), Ok(serde_json::Value::Object(feed_response))) =
            (body.as_object_mut(), serde_json::to_value(feed_response))
        {
            body.extend(feed_response);
        }
        let mut response = json(body)?;
        let headers = response.headers_mut();
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store")); // the seed is a secret
        set_version_headers(headers, state.version);
        Ok(response)
    })
    .await
}

impl ChangesRequest {
    /// The requested feed, from its beginning or from the end of a page.
    fn feed(&self, state: OwnerState) -> Result<Feed, Expired> {
        match self.next {
            Some(feed) => feed.resume(state),
            None => Feed::begin(state, self.since),
        }
    }

    fn read(query: &str, caller: &Caller, app: &App) -> Result<Self, ApiError> {
        let ChangesQuery { since, tables, limit, next } = query::read(query)?;
        let mut request = Self {
            // 0 is before every version: most libraries begin with it.
            since: since.filter(|since| since.0 > 0),
            tables: query::tables(tables.as_deref(), &app.schema)?,
            rows_max: Limit::within(limit, app.settings.sync.changes_rows_max),
            next: None,
        };
        let read = |token: String| {
            page_token::read_feed(page_token::of_owner(&token, caller.other_owner())?, &app.schema)
        };
        let invalid = || query::invalid("next must come from the page before.");
        let goes_on = next.map(|token| read(token).ok_or_else(invalid)).transpose()?;
        // A page continues its feed, whatever else the query contains.
        if let Some((feed, tables)) = goes_on {
            (request.next, request.since, request.tables) = (Some(feed), feed.since, tables);
        }
        Ok(request)
    }
}

use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, HeaderMap, HeaderValue, IF_NONE_MATCH};
use http::{Response, StatusCode};
use serde::Deserialize;
use serde::de::{Deserializer, Error as _};
use serde_json::json;
use warp::reply::Reply;

use super::fetch::header;
use super::public::set_cache_control;
use super::{ApiError, App, HandlerResult, hold, json, off_reactor, set_version_headers};
use crate::accounts::Caller;
use crate::changes::{self, Expired, Feed};
use crate::digest::Digest;
use crate::http::Sight;
use crate::http::accept;
use crate::http::etag;
use crate::http::memory::Permit;
use crate::http::page_token::{self, write_feed};
use crate::http::query::{self, Limit};
use crate::http::response_cache::{CacheKey, PublicChanges};
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
        let (at_work, who) = (Arc::clone(&app), caller.clone());
        let lines =
            Lines { app: at_work, caller: who, request, first: Vec::new(), rest: None, follows: false };
        return stream(app, &caller, lines).await;
    }
    if let Some(response) = from_memory(&app, &caller, &request, &headers)? {
        return Ok(response);
    }
    page(app, caller, request, headers).await
}

/// The cached response, if the owner's version is known without a database access.
fn from_memory(
    app: &App,
    caller: &Caller,
    request: &ChangesRequest,
    headers: &HeaderMap,
) -> Result<Option<warp::reply::Response>, ApiError> {
    let Some(state) = app.storage.known_state(caller.owner) else { return Ok(None) };
    if caller.rights.hold_at(&state) != Some(true) {
        return Ok(None); // the transaction that reads finds out
    }
    let version = state.version;
    if request.is_known(headers, caller, version) {
        return not_modified(app, caller, request, version).map(Some);
    }
    let Some(key) = request.cache_key(caller, version, app.schema.hidden_from(caller.rights.role)) else {
        return Ok(None);
    };
    let ready = app.responses.find(caller.owner, version, &key);
    app.metrics.looked_up("unchanged feed", ready.is_some());
    let Some(body) = ready.and_then(|ready| ready.chunks.first().cloned()) else { return Ok(None) };
    app.acks.note(caller, request.since, app.clock.now());
    let until = request.next.map_or(version, |feed| feed.until);
    page_response(app, caller, request, body, (until, version)).map(Some)
}

async fn page(app: Arc<App>, caller: Caller, request: ChangesRequest, headers: HeaderMap) -> HandlerResult {
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
        if let Some(key) = request.cache_key(&caller, current, sight.hidden) {
            let mut recorder = app.responses.begin();
            recorder.add(&body);
            recorder.keep(caller.owner, current, key, None);
        }
        if request.is_known(&headers, &caller, current) {
            return not_modified(&app, &caller, &request, current);
        }
        hold(page_response(&app, &caller, &request, body, (changes.feed.until, current))?, permit)
    })
    .await
}

/// A page as JSON, which ends at a version and is read at the current one.
fn page_response(
    app: &App,
    caller: &Caller,
    request: &ChangesRequest,
    body: Bytes,
    (until, current): (Version, Version),
) -> HandlerResult {
    let mut response = with_headers(Response::new(body.into()), JSON, until, app, caller)?;
    request.set_etag(response.headers_mut(), caller, current)?;
    Ok(response)
}

/// The page is the one that a cache has.
fn not_modified(app: &App, caller: &Caller, request: &ChangesRequest, current: Version) -> HandlerResult {
    let mut response = page_response(app, caller, request, Bytes::new(), (current, current))?;
    *response.status_mut() = StatusCode::NOT_MODIFIED;
    response.headers_mut().remove(CONTENT_TYPE);
    Ok(response)
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

/// Lines in constant memory: what a source reads for a caller, while it reads.
pub(super) async fn stream<S: Source<Head = Version>>(
    app: Arc<App>,
    caller: &Caller,
    source: S,
) -> HandlerResult {
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
    with_headers(response, NDJSON, version, &app, caller)
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
    /// Whether to go on with what changed meanwhile: an export has no next one.
    follows: bool,
}

impl Lines {
    /// Every row of the caller's owner, after `first`.
    pub fn whole(app: Arc<App>, caller: Caller, first: Vec<u8>) -> Self {
        let tables = app.schema.tables().iter().map(|table| table.id).collect();
        let request = ChangesRequest { since: None, tables, rows_max: usize::MAX, next: None };
        Self { app, caller, request, first, rest: None, follows: true }
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
        let Self { app, caller, request, first, rest, follows } = self;
        let schema = &app.schema;
        app.read_as(caller, |txn, Sight { state, .. }| {
            let feed = match rest {
                // What changed meanwhile is read in one snapshot, if it fits a run: then there is nothing more to follow.
                Some(feed) if *follows && feed.is_unread() => Feed::begin(state, feed.since)?,
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
            if *follows && state.version > feed.until {
                *rest = Some(Feed::begin(state, Some(feed.until))?);
                return Ok(Progress::Paused);
            }
            let digests = txn.digests()?;
            let feed = Feed { since: request.since, ..feed };
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
    app: &App,
    caller: &Caller,
) -> HandlerResult {
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    set_cache_control(headers, app, caller)?;
    if version > Version(0) {
        set_version_headers(headers, version);
    }
    Ok(response)
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

    /// What a response is cached under; `None` if it is not. Members sync at different versions, so of theirs only the
    /// response that nothing changed is cached. Those who are no members begin alike.
    fn cache_key(&self, caller: &Caller, version: Version, hidden: usize) -> Option<CacheKey> {
        if !caller.rights.is_public() {
            let is_unchanged = self.next.is_none() && self.since == Some(version);
            return is_unchanged.then_some(CacheKey::Unchanged(hidden));
        }
        let Self { since, rows_max, next, .. } = *self;
        let request = PublicChanges { since, tables: self.tables.clone(), rows_max, next };
        Some(CacheKey::PublicChanges(request))
    }

    /// The entity tag of a page of a public owner, which is the same for all who are no members. It is weak, since a proxy
    /// may compress the response.
    fn etag(&self, caller: &Caller, version: Version) -> Option<String> {
        let key = self.cache_key(caller, version, 0).filter(|_| caller.rights.is_public())?;
        let mut hasher = DefaultHasher::new();
        (caller.owner, key).hash(&mut hasher);
        Some(format!("W/\"{version}-{:016x}\"", hasher.finish()))
    }

    fn set_etag(&self, headers: &mut HeaderMap, caller: &Caller, version: Version) -> Result<(), ApiError> {
        if let Some(tag) = self.etag(caller, version) {
            headers.insert(ETAG, header(&tag)?);
        }
        Ok(())
    }

    /// Whether the client has that very page.
    fn is_known(&self, headers: &HeaderMap, caller: &Caller, version: Version) -> bool {
        let tag = self.etag(caller, version);
        tag.is_some_and(|tag| etag::matches(headers.get_all(IF_NONE_MATCH), &tag))
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

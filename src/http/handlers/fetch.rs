use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::ControlFlow;
use std::sync::Arc;

use http::header::{CONTENT_LENGTH, CONTENT_TYPE, ETAG, HeaderMap, HeaderValue, IF_NONE_MATCH, LINK};
use http::{Method, Response, StatusCode};
use serde::Deserialize;
use warp::reply::Reply;

use super::public::set_cache_control;
use super::{
    ApiError, App, HandlerResult, Hold, ended, hold, json_bytes, lock_for_work, off_reactor,
    set_lease_headers, set_version_headers,
};
use crate::accounts::Caller;
use crate::fetch::{self, FetchError, Page, PageMax, PageToken, Progress};
use crate::http::Sight;
use crate::http::memory::Permit;
use crate::http::response_cache::{self, BodyRecorder, CacheKey, CachedStream};
use crate::http::stream::{self, ChunkWriter, Source};
use crate::http::wire::Manifest;
use crate::http::{etag, page_token, query};
use crate::locks::LockGuard;
use crate::model::{Owner, RowKey, Timestamp, Version};
use crate::schema::{Schema, TableId};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FetchQuery {
    tables: Option<String>,
    lock: Option<bool>,
    page: Option<String>,
}

/// A query after its checks.
#[derive(Clone, Debug)]
struct FetchRequest {
    tables: Vec<TableId>,
    /// The query's own text, for the link to the next page.
    tables_given: Option<String>,
    lock: bool,
    page: Option<PageToken>,
}

/// `GET /fetch`, phase 1.
///
/// The lock guard is released when the response is sent or aborted: no other device of the owner writes
/// meanwhile. `HEAD` takes no lock.
pub async fn fetch(
    app: Arc<App>,
    caller: Result<Caller, ApiError>,
    headers: HeaderMap,
    method: Method,
    query: String,
) -> HandlerResult {
    let caller = caller?;
    let request = FetchRequest::read(&query, &caller, &app.schema)?;
    // A HEAD request begins no sync, and who may not write keeps no writer out.
    let takes_lock = request.lock && method != Method::HEAD && caller.rights.may_write();
    // A sync begins here, so an earlier hold of the lock is no condition.
    let work = if takes_lock {
        Some(lock_for_work(&app, &caller, Hold::Lease, None, &headers).await?)
    } else {
        None
    };
    let lease = work.as_ref().and_then(|work| work.lease().cloned());

    let (head, body) = match from_memory(&app, &caller, &request, &headers)? {
        Some(cached) => cached,
        None => {
            match read(&app, &caller, FetchRequest { lock: takes_lock, ..request.clone() }, &headers).await {
                Err(ApiError::NotAMember) => {
                    release(work).await?;
                    return Err(ApiError::NotAMember);
                }
                read => read?,
            }
        }
    };
    let (work, lease) = if head.may_write {
        (work, lease)
    } else {
        release(work).await?; // the role is another one since the lock was taken
        (None, None)
    };
    let mut response = match body {
        Body::Unchanged => not_modified(),
        Body::Read(stream::Body::Buffered(_), _) if head.unchanged => not_modified(),
        Body::Read(stream::Body::Buffered(body), permit) => hold(json_bytes(body), permit)?,
        Body::Read(stream::Body::Streaming(coming), permit) => {
            let mut response = json_stream(coming.holding((work, permit.clone())));
            response.extensions_mut().insert(permit);
            response
        }
        Body::Cached(cached) => {
            let bytes = HeaderValue::from(cached.bytes);
            let mut response = json_stream(CachedStream::new(cached));
            response.headers_mut().insert(CONTENT_LENGTH, bytes);
            // The cache counts these bytes; only the compressor's memory is reserved here.
            response.extensions_mut().insert(app.memory.permit(Some(caller.owner)));
            response
        }
    };
    let headers = response.headers_mut();
    if let Some(next) = head.next {
        headers.insert(LINK, header(&request.link(next, caller.other_owner()))?);
    }
    headers.insert(ETAG, header(&head.etag)?);
    set_cache_control(headers, &app, &caller)?;
    set_version_headers(headers, head.version);
    if let Some(lease) = lease {
        set_lease_headers(headers, &lease);
    }
    Ok(response)
}

/// Reads the page from storage; returns once its head is known.
async fn read(
    app: &Arc<App>,
    caller: &Caller,
    request: FetchRequest,
    headers: &HeaderMap,
) -> Result<(Head, Body), ApiError> {
    let given_tags = headers.get_all(IF_NONE_MATCH).iter().cloned().collect();
    let (app, caller, manifest) = (Arc::clone(app), caller.clone(), Manifest::default());
    let (readers, permit) = (Arc::clone(&app.readers), app.memory.permit(Some(caller.owner)));
    let source = ManifestSource { app, caller, request, given_tags, hidden: 0, at: None, manifest };
    let (head, read) = stream::respond(&readers, &permit, source).await?;
    Ok((head, Body::Read(read, permit)))
}

/// Releases the lock of a caller that turned out to have no right to it.
async fn release(work: Option<Box<dyn LockGuard>>) -> Result<(), ApiError> {
    off_reactor(move || {
        work.iter().for_each(|work| ended(work.end(false)));
        Ok(())
    })
    .await
}

fn not_modified() -> warp::reply::Response {
    let mut response = Response::new(Vec::new().into());
    *response.status_mut() = StatusCode::NOT_MODIFIED;
    response
}

fn json_stream<S, E>(chunks: S) -> warp::reply::Response
where
    S: futures_util::Stream<Item = Result<bytes::Bytes, E>> + Send + Sync + 'static,
    E: Into<Box<dyn std::error::Error + Send + Sync>> + Send + 'static,
{
    let mut response = warp::reply::stream(chunks).into_response();
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// What is known of a response before its first byte.
struct Head {
    version: Version,
    /// Whether the caller may write, as of the transaction that read.
    may_write: bool,
    etag: String,
    unchanged: bool,
    next: Option<PageToken>,
}

enum Body {
    Unchanged,
    Cached(Arc<response_cache::CachedBody>),
    Read(stream::Body, Permit),
}

/// The cached response, if the owner's version is known without a database access.
fn from_memory(
    app: &App,
    caller: &Caller,
    request: &FetchRequest,
    headers: &HeaderMap,
) -> Result<Option<(Head, Body)>, ApiError> {
    let Some(state) = app.storage.known_state(caller.owner) else { return Ok(None) };
    if caller.rights.hold_at(&state) != Some(true) {
        return Ok(None); // the transaction that reads finds out
    }
    let version = state.version;
    if request.page.is_some_and(|page| page.version != version) {
        return Err(ApiError::VersionMoved);
    }
    let hidden = app.schema.hidden_from(caller.rights.role);
    let tag = etag_of(caller.owner, version, request, &app.schema, hidden);
    if etag::matches(headers.get_all(IF_NONE_MATCH), &tag) {
        let head = Head { version, may_write: true, etag: tag, unchanged: true, next: None };
        return Ok(Some((head, Body::Unchanged)));
    }
    let ready = app.responses.find(caller.owner, version, &request.cache_key(hidden));
    app.metrics.looked_up("roll call", ready.is_some());
    Ok(ready.map(|ready| {
        let head = Head { version, may_write: true, etag: tag, unchanged: false, next: ready.next };
        (head, Body::Cached(ready))
    }))
}

/// A page of the manifest, read from storage.
struct ManifestSource {
    app: Arc<App>,
    caller: Caller,
    request: FetchRequest,
    /// The entity tags that the caller has.
    given_tags: Vec<HeaderValue>,
    /// How many tables look empty to the caller.
    hidden: usize,
    /// The planned page, and its progress.
    at: Option<(Page, Progress)>,
    manifest: Manifest,
}

impl Source for ManifestSource {
    type Head = Head;

    fn owner(&self) -> Owner {
        self.caller.owner
    }

    fn read(&mut self, out: &mut ChunkWriter<Head>) -> Result<stream::Progress, ApiError> {
        let Self { app, caller, request, given_tags, hidden, at, manifest } = self;
        app.read_as(caller, |txn, Sight { state, rights, hidden: not_read }| {
            // The work may be run again from its start, but the page is planned once.
            let (page, progress) = match at {
                Some(at) => at,
                None => {
                    let version = state.version;
                    let may_write = !request.lock || rights.may_write();
                    *hidden = not_read;
                    let moved = request.page.is_some_and(|page| page.version != version);
                    let tag = etag_of(caller.owner, version, request, &app.schema, not_read);
                    if !moved && etag::matches(given_tags.iter(), &tag) {
                        out.begin(Head { version, may_write, etag: tag, unchanged: true, next: None });
                        return Ok(stream::Progress::Finished);
                    }
                    let sync = &app.settings.sync;
                    let most = PageMax { rows: sync.fetch_rows_max, tombstones: sync.page_entries_max };
                    let page = fetch::page(txn, &request.tables, request.page, most)?;
                    out.begin(Head { version, may_write, etag: tag, unchanged: false, next: page.next });
                    let all_bytes = state.rows.saturating_mul(Manifest::ROW_BYTES);
                    if all_bytes <= app.responses.owner_bytes_max() as u64 {
                        out.recorder = Some(app.responses.begin());
                    }
                    at.insert((page, page.begin()))
                }
            };
            let mut writer = ManifestWriter { schema: &app.schema, manifest, out };
            if !fetch::run(txn, &request.tables, page, progress, &mut writer)? {
                return Ok(stream::Progress::Paused);
            }
            manifest.end(&mut out.buf);
            Ok(stream::Progress::Finished)
        })
    }

    fn needs_one_snapshot(&self) -> bool {
        !self.request.lock // no other device changes the version while this one holds the lock
    }

    fn finish(&mut self, made: Option<BodyRecorder>) {
        if let (Some(made), Some((page, _))) = (made, &self.at) {
            made.keep(self.caller.owner, page.from.version, self.request.cache_key(self.hidden), page.next);
        }
    }
}

/// Writes the manifest into the chunks of a response.
struct ManifestWriter<'a> {
    schema: &'a Schema,
    manifest: &'a mut Manifest,
    out: &'a mut ChunkWriter<Head>,
}

impl fetch::Sink for ManifestWriter<'_> {
    fn table(&mut self, table: TableId) {
        self.manifest.table(self.schema, &mut self.out.buf, table);
    }

    fn row(&mut self, key: RowKey, last_update: Timestamp) {
        self.manifest.row(self.schema, &mut self.out.buf, key, last_update);
    }

    fn pass_on(&mut self) -> ControlFlow<()> {
        self.out.flush_if_full()
    }
}

impl FetchRequest {
    fn read(query: &str, caller: &Caller, schema: &Schema) -> Result<Self, ApiError> {
        let FetchQuery { tables: tables_given, lock, page } = query::read(query)?;
        let tables = query::tables(tables_given.as_deref(), schema)?;
        let read = |token: String| {
            let token = page_token::of_owner(&token, caller.other_owner())?;
            page_token::read_manifest(token).filter(|page| page.table < tables.len())
        };
        let page = page.map(|token| read(token).ok_or_else(bad_page)).transpose()?;
        Ok(Self { tables, tables_given, lock: lock.unwrap_or(true), page })
    }

    fn cache_key(&self, hidden: usize) -> CacheKey {
        CacheKey::Manifest(self.tables.clone(), self.page, hidden)
    }

    /// The link to the next page. It has no path, since a proxy may serve this one under another path.
    fn link(&self, next: PageToken, owner: Option<Owner>) -> String {
        let mut query = vec![("page", page_token::for_owner(page_token::write_manifest(next), owner))];
        if let Some(owner) = owner {
            query.insert(0, ("owner", owner.to_string()));
        }
        if let Some(tables) = &self.tables_given {
            query.insert(0, ("tables", tables.clone()));
        }
        if !self.lock {
            query.push(("lock", "false".into()));
        }
        // Pairs of strings can always be encoded.
        let query = serde_urlencoded::to_string(query).unwrap_or_default();
        format!("<?{query}>; rel=\"next\"")
    }
}

fn bad_page() -> ApiError {
    ApiError::InvalidRequest { reason: "page must come from the Link of the page before.".into() }
}

/// The entity tag of a response: the owner's version, the request, and how many tables look empty to the caller.
///
/// It is weak, since a proxy may compress the response. It contains the owner, because a browser that changed
/// accounts could otherwise keep the other's response.
fn etag_of(owner: Owner, version: Version, request: &FetchRequest, schema: &Schema, hidden: usize) -> String {
    let mut hasher = DefaultHasher::new();
    let names: Vec<_> = request.tables.iter().map(|table| &schema.at(*table).name).collect();
    (owner, names, request.page.map(page_token::write_manifest)).hash(&mut hasher);
    if hidden > 0 {
        hidden.hash(&mut hasher);
    }
    format!("W/\"{version}-{:016x}\"", hasher.finish())
}

pub(super) fn header(text: &str) -> Result<HeaderValue, ApiError> {
    HeaderValue::from_str(text).map_err(|error| ApiError::Internal(Box::new(error)))
}

impl From<FetchError> for ApiError {
    fn from(error: FetchError) -> Self {
        match error {
            FetchError::VersionMoved => Self::VersionMoved,
            FetchError::NoSuchPage => bad_page(),
            error @ FetchError::Miscounted { .. } => Self::Internal(Box::new(error)),
            FetchError::Storage(error) => error.into(),
        }
    }
}

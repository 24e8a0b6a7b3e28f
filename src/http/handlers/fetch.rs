use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::ControlFlow;
use std::sync::Arc;

use http::header::{
    CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, ETAG, HeaderMap, HeaderValue, IF_NONE_MATCH, LINK,
};
use http::{Method, Response, StatusCode};
use serde::Deserialize;
use warp::reply::Reply;

use super::{Answer, ApiError, App, Hold, hold, json_bytes, lock_for_work, tell_lease, tell_version};
use crate::accounts::Caller;
use crate::fetch::{self, FetchError, Mark, Page, PageMax, Progress};
use crate::http::memory::Permit;
use crate::http::ready::{self, Making, Question, Sending};
use crate::http::stream::{self, ChunkWriter, Source};
use crate::http::wire::Manifest;
use crate::http::{etag, page_token, query};
use crate::model::{Owner, RowKey, Timestamp, Version};
use crate::schema::{Schema, TableId};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FetchQuery {
    tables: Option<String>,
    lock: Option<bool>,
    page: Option<String>,
}

/// What a query asks for.
#[derive(Clone, Debug)]
struct Asked {
    tables: Vec<TableId>,
    /// As the query spells it, for the link to the next page.
    tables_given: Option<String>,
    lock: bool,
    page: Option<Mark>,
}

/// `GET /fetch`, phase 1.
///
/// The work under the lock ends when the answer is written, or cut: nobody else of the owner writes meanwhile.
/// `HEAD` takes no lock.
pub async fn fetch(
    app: Arc<App>,
    caller: Result<Caller, ApiError>,
    headers: HeaderMap,
    method: Method,
    query: String,
) -> Answer {
    let caller = caller?;
    let asked = Asked::read(&query, &app.schema)?;
    let takes_lock = asked.lock && method != Method::HEAD; // who only looks begins no sync
    // A sync begins here: whatever hold of the lock the caller had before is no condition.
    let work = if takes_lock {
        Some(lock_for_work(&app, &caller, Hold::Lease, None, &headers).await?)
    } else {
        None
    };
    let lease = work.as_ref().and_then(|work| work.lease().cloned());

    let (head, body) = match from_memory(&app, &caller, &asked, &headers)? {
        Some(known) => known,
        None => {
            let known = headers.get_all(IF_NONE_MATCH).iter().cloned().collect();
            let asked = Asked { lock: takes_lock, ..asked.clone() };
            let (app, owner) = (Arc::clone(&app), caller.owner);
            let readers = Arc::clone(&app.readers);
            let source = RollCall {
                app: Arc::clone(&app),
                owner,
                asked,
                known,
                at: None,
                manifest: Manifest::default(),
            };
            let permit = app.memory.permit(Some(owner));
            let (head, told) = stream::respond(&readers, &permit, source).await?;
            (head, Body::Read(told, permit))
        }
    };
    let mut answer = match body {
        Body::Unchanged => {
            let mut answer = Response::new(Vec::new().into());
            *answer.status_mut() = StatusCode::NOT_MODIFIED;
            answer
        }
        Body::Read(stream::Body::Buffered(_), _) if head.unchanged => {
            let mut answer = Response::new(Vec::new().into());
            *answer.status_mut() = StatusCode::NOT_MODIFIED;
            answer
        }
        Body::Read(stream::Body::Buffered(body), permit) => hold(json_bytes(body), permit)?,
        Body::Read(stream::Body::Streaming(coming), permit) => {
            let mut answer = json_stream(coming.holding((work, permit.clone())));
            answer.extensions_mut().insert(permit);
            answer
        }
        Body::Ready(ready) => {
            let bytes = HeaderValue::from(ready.bytes);
            let mut answer = json_stream(Sending::new(ready));
            answer.headers_mut().insert(CONTENT_LENGTH, bytes);
            // Its bytes are counted where they are kept; only what compresses them is drawn for.
            answer.extensions_mut().insert(app.memory.permit(Some(caller.owner)));
            answer
        }
    };
    let headers = answer.headers_mut();
    if let Some(next) = head.next {
        headers.insert(LINK, header(&asked.link(next))?);
    }
    headers.insert(ETAG, header(&head.etag)?);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("private, no-cache"));
    tell_version(headers, head.version);
    if let Some(lease) = lease {
        tell_lease(headers, &lease);
    }
    Ok(answer)
}

fn json_stream<S, E>(chunks: S) -> warp::reply::Response
where
    S: futures_util::Stream<Item = Result<bytes::Bytes, E>> + Send + Sync + 'static,
    E: Into<Box<dyn std::error::Error + Send + Sync>> + Send + 'static,
{
    let mut answer = warp::reply::stream(chunks).into_response();
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer
}

/// What is known of an answer before its first byte.
struct Head {
    version: Version,
    etag: String,
    unchanged: bool,
    next: Option<Mark>,
}

enum Body {
    Unchanged,
    Ready(Arc<ready::Answer>),
    Read(stream::Body, Permit),
}

/// The answer, where the owner's version is known without a look and so is the answer at that version.
fn from_memory(
    app: &App,
    caller: &Caller,
    asked: &Asked,
    headers: &HeaderMap,
) -> Result<Option<(Head, Body)>, ApiError> {
    let Some(state) = app.storage.known_state(caller.owner) else { return Ok(None) };
    let version = state.version;
    if asked.page.is_some_and(|page| page.version != version) {
        return Err(ApiError::VersionMoved);
    }
    let tag = etag_of(caller.owner, version, asked, &app.schema);
    if etag::matches(headers.get_all(IF_NONE_MATCH), &tag) {
        return Ok(Some((Head { version, etag: tag, unchanged: true, next: None }, Body::Unchanged)));
    }
    let ready = app.ready.find(caller.owner, version, &asked.question());
    app.metrics.looked_up("roll call", ready.is_some());
    Ok(ready
        .map(|ready| (Head { version, etag: tag, unchanged: false, next: ready.next }, Body::Ready(ready))))
}

/// A page of the roll call, read from storage.
struct RollCall {
    app: Arc<App>,
    owner: Owner,
    asked: Asked,
    /// The tags that the caller has.
    known: Vec<HeaderValue>,
    /// What is being told, and how far it is told.
    at: Option<(Page, Progress)>,
    manifest: Manifest,
}

impl Source for RollCall {
    type Head = Head;

    fn owner(&self) -> Owner {
        self.owner
    }

    fn read(&mut self, out: &mut ChunkWriter<Head>) -> Result<stream::Progress, ApiError> {
        let Self { app, owner, asked, known, at, manifest } = self;
        app.storage.read(*owner, |txn| {
            let state = txn.state();
            // The work may be run again from its start, and the page is laid out once.
            let (page, progress) = match at {
                Some(at) => at,
                None => {
                    let version = state.version;
                    let moved = asked.page.is_some_and(|page| page.version != version);
                    let tag = etag_of(*owner, version, asked, &app.schema);
                    if !moved && etag::matches(known.iter(), &tag) {
                        out.begin(Head { version, etag: tag, unchanged: true, next: None });
                        return Ok(stream::Progress::Finished);
                    }
                    let sync = &app.settings.sync;
                    let most = PageMax { rows: sync.fetch_rows_max, tombstones: sync.page_entries_max };
                    let page = fetch::page(txn, &asked.tables, asked.page, most)?;
                    out.begin(Head { version, etag: tag, unchanged: false, next: page.next });
                    let all_bytes = state.rows.saturating_mul(Manifest::ROW_BYTES);
                    if all_bytes <= app.ready.owner_bytes_max() as u64 {
                        out.making = Some(app.ready.begin());
                    }
                    at.insert((page, page.begin()))
                }
            };
            let mut writing = Writing { schema: &app.schema, manifest, out };
            if !fetch::run(txn, &asked.tables, page, progress, &mut writing)? {
                return Ok(stream::Progress::Paused);
            }
            manifest.end(&mut out.buf);
            Ok(stream::Progress::Finished)
        })
    }

    fn needs_one_snapshot(&self) -> bool {
        !self.asked.lock // under the lock nobody else moves the version
    }

    fn finish(&mut self, made: Option<Making>) {
        if let (Some(made), Some((page, _))) = (made, &self.at) {
            made.keep(self.owner, page.from.version, self.asked.question(), page.next);
        }
    }
}

/// The roll call on its way into the lots of an answer.
struct Writing<'a> {
    schema: &'a Schema,
    manifest: &'a mut Manifest,
    out: &'a mut ChunkWriter<Head>,
}

impl fetch::Sink for Writing<'_> {
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

impl Asked {
    fn read(query: &str, schema: &Schema) -> Result<Self, ApiError> {
        let FetchQuery { tables: tables_given, lock, page } = query::read(query)?;
        let tables = query::tables(tables_given.as_deref(), schema)?;
        let read = |token: String| page_token::read_manifest(&token).filter(|page| page.table < tables.len());
        let page = page.map(|token| read(token).ok_or_else(bad_page)).transpose()?;
        Ok(Self { tables, tables_given, lock: lock.unwrap_or(true), page })
    }

    fn question(&self) -> Question {
        Question::RollCall(self.tables.clone(), self.page)
    }

    /// The next page. Without a path, as a proxy may show this one under another.
    fn link(&self, next: Mark) -> String {
        let mut query = vec![("page", page_token::write_manifest(next))];
        if let Some(tables) = &self.tables_given {
            query.insert(0, ("tables", tables.clone()));
        }
        if !self.lock {
            query.push(("lock", "false".into()));
        }
        // Pairs of strings always have a spelling.
        let query = serde_urlencoded::to_string(query).unwrap_or_default();
        format!("<?{query}>; rel=\"next\"")
    }
}

fn bad_page() -> ApiError {
    ApiError::InvalidRequest { reason: "page must come from the Link of the page before.".into() }
}

/// Names one answer: the owner's version, and what was asked of it.
///
/// Weak, since a proxy may compress it. The owner is in it, or a browser that changed accounts could keep
/// the other's.
fn etag_of(owner: Owner, version: Version, asked: &Asked, schema: &Schema) -> String {
    let mut hasher = DefaultHasher::new();
    let names: Vec<_> = asked.tables.iter().map(|table| &schema.at(*table).name).collect();
    (owner, names, asked.page.map(page_token::write_manifest)).hash(&mut hasher);
    format!("W/\"{version}-{:016x}\"", hasher.finish())
}

pub(super) fn header(text: &str) -> Result<HeaderValue, ApiError> {
    HeaderValue::from_str(text).map_err(|error| ApiError::Internal(Box::new(error)))
}

impl From<FetchError> for ApiError {
    fn from(error: FetchError) -> Self {
        match error {
            FetchError::VersionMoved => Self::VersionMoved,
            FetchError::NoSuchMark => bad_page(),
            error @ FetchError::Miscounted { .. } => Self::Internal(Box::new(error)),
            FetchError::Storage(error) => error.into(),
        }
    }
}

//! PowerSync: `POST /sync/stream` returns checkpoints of the owner's rows to PowerSync's SDKs, as lines that do not end.
//!
//! The rows of an owner are one bucket. An operation's id is the version of its row and a place within it, so that a
//! client that comes back says by it where to go on ([`cursor`]). Uploads are the app's own: they go to
//! `POST /synchronise`.

mod checkpoint;
mod cursor;
mod lines;
mod request;
mod requests;
mod session;

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream;
use http::header::{AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use serde::Deserialize;
use serde_json::json;
use tokio::sync::mpsc;
use tracing::Instrument as _;
use warp::Filter;
use warp::filters::BoxedFilter;
use warp::reply::Reply;

use self::request::{CheckpointRequest, StreamRequest};
pub(crate) use self::requests::Requests;
use self::session::Session;
use super::Who;
use crate::http::console_routes::boxed;
use crate::http::handlers::caller::Scope;
use crate::http::handlers::caller::{bearer, handle_caller};
use crate::http::handlers::events::version;
use crate::http::handlers::{HandlerResult, json};
use crate::http::layers::Endless;
use crate::http::methods::{get, post};
use crate::http::routes::caller_filter;
use crate::http::{ApiError, App, Received, Unavailable, query, slow_body};
use crate::schema::Table;

/// Some proxies gather a response before they pass it on; nginx and proxies like it do not if this header says so.
const X_ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// Tables of the SDKs themselves begin so.
const PREFIXES: [&str; 2] = ["ps_", "powersync_"];

/// Why the SDKs cannot have the table, if they cannot: their tables have a key `id`.
pub(super) fn fault(table: &Table) -> Option<String> {
    let name = &table.name;
    if let Some(prefix) = PREFIXES.iter().find(|prefix| name.to_ascii_lowercase().starts_with(**prefix)) {
        return Some(format!(
            "a table cannot be called {name:?}, since the SDKs have tables {prefix}…; rename it"
        ));
    }
    let column = table.columns.iter().find(|column| column.name.eq_ignore_ascii_case("id"))?;
    Some(format!(
        "{name} cannot have a column {:?}, since the SDKs call the key so; rename it, or make it the key",
        column.name
    ))
}

/// `POST /sync/stream`, `GET /write-checkpoint2.json` and `POST /sync/checkpoint-request`.
pub(super) fn routes(app: &Arc<App>) -> BoxedFilter<(warp::reply::Response,)> {
    // The SDKs say `Token` where others say `Bearer`.
    let who = caller_filter(app, Scope::DefaultOwner, with_bearer);
    let body = slow_body(Arc::clone(&app.bounds), Arc::clone(&app.memory)).boxed();
    let with_app = {
        let app = Arc::clone(app);
        warp::any().map(move || Arc::clone(&app))
    };
    let query = warp::query::raw().or(warp::any().map(String::new)).unify();
    let stream = warp::path!("sync" / "stream")
        .and(post())
        .and(with_app.clone())
        .and(who.clone())
        .and(warp::header::headers_cloned())
        .and(body.clone())
        .then(|app, who: Who, headers, body| handle_caller(who, |who| stream(app, who, headers, body)));
    let write_checkpoint = warp::path!("write-checkpoint2.json")
        .and(get())
        .and(with_app.clone())
        .and(who.clone())
        .and(query)
        .then(|app, who: Who, query| handle_caller(who, |who| write_checkpoint(app, who, query)));
    let checkpoint_request = warp::path!("sync" / "checkpoint-request")
        .and(post())
        .and(with_app)
        .and(who)
        .and(body)
        .then(|app, who: Who, body| handle_caller(who, |who| checkpoint_request(app, who, body)));
    boxed(stream).or(boxed(write_checkpoint)).unify().or(boxed(checkpoint_request)).unify().boxed()
}

/// The headers, with the token under the scheme `Bearer`.
fn with_bearer(mut headers: HeaderMap) -> HeaderMap {
    let token = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()?.split_once(' '));
    let bearer = token.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("token"));
    let bearer = bearer.and_then(|(_, token)| HeaderValue::from_str(&format!("Bearer {token}")).ok());
    if let (Some(bearer), 1) = (bearer, headers.get_all(AUTHORIZATION).iter().count()) {
        headers.insert(AUTHORIZATION, bearer);
    }
    headers
}

/// Streams checkpoints until the client leaves, its token ends, or the server stops.
async fn stream(
    app: Arc<App>,
    caller: Who,
    headers: HeaderMap,
    body: Result<Received, ApiError>,
) -> HandlerResult {
    let caller = caller?;
    let token = bearer(&with_bearer(headers))?.to_owned();
    let request = StreamRequest::read(&body?.bytes, app.settings.dialects.powersync_buckets_max)?;
    if app.draining.is_set() {
        return Err(ApiError::Unavailable {
            code: Unavailable::ShuttingDown,
            reason: "The server is about to stop.",
            retry_after_s: 5,
        });
    }
    // First a place among the listeners, then a read: no change between the two is missed.
    let subscription = app.events.listen(&caller)?;
    let mut session = Session::new(app, caller, token, request, subscription);
    let first = session.next_lines().await?;
    let (lines, sent) = mpsc::channel(1);
    tokio::spawn(session.run(first, lines).in_current_span());
    let lines = stream::unfold(sent, |mut sent| async move {
        let bytes: Bytes = sent.recv().await?;
        Some((Ok::<_, Infallible>(bytes), sent))
    });
    let mut response = warp::reply::stream(lines).into_response();
    response.extensions_mut().insert(Endless);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_ACCEL_BUFFERING, HeaderValue::from_static("no"));
    Ok(response)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WriteCheckpointQuery {
    client_id: Option<String>,
}

/// Returns a number that the stream reaches once it has sent everything that was written before this request.
async fn write_checkpoint(app: Arc<App>, caller: Who, query: String) -> HandlerResult {
    let caller = caller?;
    let WriteCheckpointQuery { client_id } = query::read(&query)?;
    let version = version(&app, &caller).await?;
    app.dialects.checkpoint_requests.note(caller.owner, client_id.as_deref(), None);
    // Where nothing was written the version has not moved, and yet the client waits for a checkpoint.
    app.events.moved(caller.owner, version);
    json(json!({ "data": { "write_checkpoint": version.to_string() } }))
}

/// As [`write_checkpoint`], with a number that the client may choose, at least the version.
async fn checkpoint_request(app: Arc<App>, caller: Who, body: Result<Received, ApiError>) -> HandlerResult {
    let caller = caller?;
    let request = CheckpointRequest::read(&body?.bytes)?;
    let version = version(&app, &caller).await?;
    let number = request.number.max(version.0);
    let number = app.dialects.checkpoint_requests.note(caller.owner, Some(&request.client_id), Some(number));
    app.events.moved(caller.owner, version);
    json(json!({ "data": { "checkpoint_request_id": number.to_string() } }))
}

//! The layers around every handler.
//!
//! From the outside in: request id and log line, compression, CORS, header limits, deadline, panics. So every
//! response has its id, its log line and its CORS headers.

use std::any::Any;
use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::net::IpAddr;
use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use futures_util::FutureExt;
use http::header::{
    ACCEPT_ENCODING, AUTHORIZATION, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, ETAG, HeaderName,
    HeaderValue, IF_NONE_MATCH, LINK, RETRY_AFTER, X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, sleep_until};
use tower::util::option_layer;
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_http::CompressionLevel;
use tower_http::compression::CompressionLayer;
use tower_http::compression::predicate::{NotForContentType, Predicate, SizeAbove};
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer, Vary};
use tracing::{Instrument, Span};
use uuid::Uuid;
use warp::Reply;

use super::body::Deadline;
use super::bounds::{Bounds, Origins, RequestHeaders};
use super::memory::Permit;
use super::pattern::{method_of, route_of};
use super::peer::Peer;
use super::problem::{ApiError, Unavailable};
use super::timing::timed;
use crate::metrics::Metrics;

/// Shorter responses are not compressed, bytes: the headers of compression would cancel the gain.
const COMPRESS_BYTES_MIN: u64 = 1024;

/// The quality for gzip and brotli. A manifest of 50,000 rows (4.4 MB) takes 35 ms to 1.5 or 1.7 MB. Quality
/// 4 takes twice the time for a tenth fewer bytes, and brotli's default, 11, takes 7 s.
const COMPRESS_QUALITY: i32 = 2;

/// The memory of brotli for one response at that quality, bytes, and that of gzip.
const BROTLI_BYTES: usize = 4 * 1024 * 1024;
const GZIP_BYTES: usize = 512 * 1024;

/// Marks a response that is not compressed, because there is no memory for it.
#[derive(Clone, Copy)]
struct Plain;

/// Marks a response that lasts as long as the client wants. It is not compressed: what is sent must arrive at once.
#[derive(Clone, Copy)]
pub(crate) struct Endless;

/// Whether a response has no such mark.
#[derive(Clone, Copy)]
struct HasMemory;

impl Predicate for HasMemory {
    fn should_compress<B: Body>(&self, response: &Response<B>) -> bool {
        response.extensions().get::<Plain>().is_none() && response.extensions().get::<Endless>().is_none()
    }
}

/// How long a browser may cache CORS permissions.
const CORS_AGE: Duration = Duration::from_secs(3600);

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");
const TIMING_ALLOW_ORIGIN: HeaderName = HeaderName::from_static("timing-allow-origin");

/// The id of a request: the client's own if it is valid, otherwise a new UUIDv7. It is an extension of the
/// request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestId(HeaderValue);

impl RequestId {
    /// The client's id if it has 1 to 128 visible ASCII characters, since it appears in log lines.
    fn of(headers: &HeaderMap) -> Self {
        let usable = |id: &&HeaderValue| {
            (1..=128).contains(&id.len()) && id.as_bytes().iter().all(u8::is_ascii_graphic)
        };
        Self(headers.get(REQUEST_ID).filter(usable).cloned().unwrap_or_else(|| {
            HeaderValue::try_from(Uuid::now_v7().to_string()).unwrap_or(HeaderValue::from_static("none"))
        }))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        self.0.to_str().unwrap_or_default()
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The layers between the id and the handlers, around warp's service.
pub(super) fn stack<S>(
    service: S,
    bounds: Arc<Bounds>,
) -> impl Service<
    Request<Incoming>,
    Response = Response<impl Body<Data = Bytes, Error: Into<tower::BoxError>> + Send + 'static>,
    Error = Infallible,
    Future = impl Future + Send + 'static,
> + Clone
+ Send
+ 'static
where
    S: Service<Request<Incoming>, Response = warp::reply::Response, Error = Infallible>,
    S: Clone + Send + Sync + 'static,
    S::Future: Send,
{
    let cors = cors(&bounds);
    let guarded = service_fn(move |request| guarded(service.clone(), bounds.clone(), request));
    let worthwhile = SizeAbove::new(COMPRESS_BYTES_MIN)
        .and(NotForContentType::const_new("text/event-stream"))
        .and(HasMemory);
    CompressionLayer::new()
        .quality(CompressionLevel::Precise(COMPRESS_QUALITY))
        .compress_when(worthwhile)
        .layer(option_layer(cors).layer(guarded))
}

fn cors(bounds: &Bounds) -> Option<CorsLayer> {
    let allowed = match &bounds.origins {
        Origins::None => return None,
        Origins::Any => AllowOrigin::any(),
        Origins::Listed(origins) => AllowOrigin::list(origins.iter().cloned()),
    };
    let named =
        |names: &[&'static str]| names.iter().map(|name| HeaderName::from_static(name)).collect::<Vec<_>>();
    let standard = [AUTHORIZATION, CONTENT_TYPE, IF_NONE_MATCH, REQUEST_ID];
    let ours = named(&["prefer", "sync-lock", "sync-device", "sync-for", "idempotency-key", "last-event-id"]);
    let headers = match &bounds.request_headers {
        // Browsers do not accept a `*` for `Authorization`, so the requested headers are returned.
        RequestHeaders::Any => AllowHeaders::mirror_request(),
        RequestHeaders::Listed(more) => {
            let of_dialects = bounds.dialect_headers.requests.clone();
            AllowHeaders::list([ours, standard.to_vec(), more.clone(), of_dialects].concat())
        }
    };
    let exposed = [ETAG, LINK, RETRY_AFTER, REQUEST_ID, SERVER_TIMING];
    let layer = CorsLayer::new()
        .allow_origin(allowed)
        .allow_methods([Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE])
        .allow_headers(headers)
        .expose_headers(
            [
                named(&[
                    "sync-version",
                    "sync-epoch",
                    "sync-device",
                    "sync-lock",
                    "sync-lock-expires",
                    "idempotency-replayed",
                ]),
                exposed.to_vec(),
            ]
            .concat(),
        )
        .vary(Vary::list([http::header::ORIGIN]))
        .max_age(CORS_AGE);
    Some(layer)
}

/// Runs the handlers, or responds without them: too many headers, a timeout, a panic.
async fn guarded<S>(
    mut service: S,
    bounds: Arc<Bounds>,
    mut request: Request<Incoming>,
) -> Result<warp::reply::Response, Infallible>
where
    S: Service<Request<Incoming>, Response = warp::reply::Response, Error = Infallible>,
{
    if let Err(refusal) = has_path(&request).and_then(|()| headers_fit(request.headers(), &bounds)) {
        return Ok(refusal.into_response());
    }
    let compressor_bytes = compressor_bytes(request.headers());
    let deadline = Deadline::new(bounds.request);
    request.extensions_mut().insert(deadline.clone());
    // What a handler holds when it panics is dropped; the locks are parking_lot's, which do not poison.
    let work = AssertUnwindSafe(async move { service.call(request).await }).catch_unwind();
    let failure = match in_time(&deadline, work).await {
        Some(Ok(Ok(mut response))) => {
            draw_for_compression(&mut response, compressor_bytes);
            return Ok(response);
        }
        Some(Ok(Err(never))) => match never {},
        Some(Err(panic)) => ApiError::Internal(words_of(panic.as_ref()).into()),
        None => ApiError::Unavailable {
            code: Unavailable::Timeout,
            reason: "The request took too long. The server may still carry it out. Send it again.",
            retry_after_s: 1,
        },
    };
    Ok(failure.into_response())
}

/// The memory of the compressor that a client requests, bytes; 0 for none. A client that accepts both may get
/// either.
fn compressor_bytes(headers: &HeaderMap) -> usize {
    let lines = || headers.get_all(ACCEPT_ENCODING).iter().filter_map(|line| line.to_str().ok());
    let takes = |coding: &str| lines().any(|line| line.to_ascii_lowercase().contains(coding));
    match () {
        () if takes("br") || takes("*") => BROTLI_BYTES,
        () if takes("gzip") => GZIP_BYTES,
        () => 0,
    }
}

/// Reserves the compressor's memory for a long response. Short ones are compressed in a moment, without a
/// reservation.
fn draw_for_compression(response: &mut warp::reply::Response, bytes: usize) {
    let is_long = response.body().size_hint().exact().is_none_or(|length| length > COMPRESS_BYTES_MIN);
    let Some(permit) = response.extensions().get::<Permit>().filter(|_| is_long && bytes > 0) else { return };
    if permit.grow(bytes).is_err() {
        response.extensions_mut().insert(Plain);
    }
}

/// The result of the work, unless its deadline comes first. A body moves the deadline while it arrives.
async fn in_time<T>(deadline: &Deadline, work: impl Future<Output = T>) -> Option<T> {
    let mut work = pin!(work);
    let mut due = deadline.watch();
    loop {
        let at = *due.borrow_and_update();
        tokio::select! {
            biased;
            done = work.as_mut() => return Some(done),
            // The sender is held here, so this cannot fail.
            _ = due.changed() => {}
            () = sleep_until(at) => return None,
        }
    }
}

/// Refuses a request whose target is not a path: `CONNECT host:port` requests a tunnel, and warp's filters
/// panic at it.
fn has_path<B>(request: &Request<B>) -> Result<(), ApiError> {
    if request.uri().path_and_query().is_some() && request.method() != Method::CONNECT {
        return Ok(());
    }
    let reason = "This server is no proxy: the target of a request is a path, such as /fetch.".to_owned();
    Err(ApiError::InvalidRequest { reason })
}

/// Refuses more or longer headers than the limits allow. hyper's own limits are higher.
fn headers_fit(headers: &HeaderMap, bounds: &Bounds) -> Result<(), ApiError> {
    if headers.len() > bounds.headers_max {
        let reason = format!("The request has more than {} headers.", bounds.headers_max);
        return Err(ApiError::HeaderTooLarge { reason });
    }
    let bytes: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    if bytes > bounds.header_bytes_max {
        let reason = format!("The headers have more than {} bytes.", bounds.header_bytes_max);
        return Err(ApiError::HeaderTooLarge { reason });
    }
    Ok(())
}

/// The message of a panic.
fn words_of(panic: &(dyn Any + Send)) -> String {
    let literal = panic.downcast_ref::<&str>().map(ToString::to_string);
    let words = literal.or_else(|| panic.downcast_ref::<String>().cloned());
    format!("a handler panicked: {}", words.as_deref().unwrap_or("without words"))
}

/// Handles one request of a connection: the outermost layer.
///
/// `unread` is set if the client may still be sending a body that is not read: see `Socket`.
pub(super) async fn respond<S, B>(
    service: S,
    bounds: Arc<Bounds>,
    metrics: Arc<Metrics>,
    socket: IpAddr,
    unread: Arc<AtomicBool>,
    mut request: Request<Incoming>,
) -> Result<Response<Sent<B>>, Infallible>
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>,
    B: Body,
{
    let id = RequestId::of(request.headers());
    let peer = Peer::behind(socket, request.headers(), &bounds);
    // A span of level ERROR exists at every log level, so that every line has its id.
    let span = tracing::error_span!("request", %id);
    let mut line = Line {
        span: span.clone(),
        started: Instant::now(),
        method: request.method().clone(),
        path: beginning(request.uri().path()),
        route: route_of(request.uri().path()),
        metrics,
        peer,
        status: None,
        lasts: false,
        bytes: 0,
    };
    let has_body = !request.body().is_end_stream();
    let wants_head_only = *request.method() == Method::HEAD;
    request.extensions_mut().insert(peer);
    request.extensions_mut().insert(id.clone());

    let watcher = bounds.origins.allowed(request.headers());
    let (response, timing) = timed(line.started, service.oneshot(request).instrument(span)).await;
    let response = match response {
        Ok(response) => response,
        Err(never) => match never {},
    };
    let status = response.status();
    let refused = status.is_client_error() || status.is_server_error();
    unread.store(has_body && refused, Ordering::Relaxed);
    line.status = Some(status.as_u16());
    line.lasts = response.extensions().get::<Endless>().is_some()
        || response.headers().get(CONTENT_TYPE).is_some_and(|kind| kind == "text/event-stream");
    let mut response = response;
    let held = response.extensions_mut().remove::<Permit>();
    let mut response = response.map(|body| Sent { body: Some(Box::pin(body)), line, held });
    if wants_head_only {
        let bytes = response.body().size_hint().exact();
        response.body_mut().body = None; // dropping the body stops its writer
        response.body_mut().held = None;
        if let Some(bytes) = bytes.filter(|_| status != StatusCode::NOT_MODIFIED) {
            response.headers_mut().entry(CONTENT_LENGTH).or_insert(HeaderValue::from(bytes));
        }
    }
    let headers = response.headers_mut();
    // A response without this header contains private or current data.
    headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    headers.insert(REQUEST_ID, id.0);
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if let Some(timing) = timing {
        headers.insert(SERVER_TIMING, timing);
    }
    if let Some(origin) = watcher {
        headers.insert(TIMING_ALLOW_ORIGIN, origin); // otherwise the browser hides the timing from the page
    }
    Ok(response)
}

/// The beginning of a path, for a log line. The query is left out, since it may contain tokens.
fn beginning(path: &str) -> String {
    path.chars().take(200).collect()
}

/// The log line of one request, written and counted when its response was sent or its client has
/// disconnected.
struct Line {
    span: Span,
    started: Instant,
    method: Method,
    path: String,
    route: &'static str,
    metrics: Arc<Metrics>,
    peer: Peer,
    status: Option<u16>,
    /// Whether the response lasts as long as the client wants, so that its time means nothing.
    lasts: bool,
    bytes: u64,
}

impl Drop for Line {
    fn drop(&mut self) {
        let _entered = self.span.enter();
        let took = self.started.elapsed();
        let status = self.status.unwrap_or(0);
        self.metrics.answered(method_of(&self.method), self.route, status, (!self.lasts).then_some(took));
        let ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        let (method, path, bytes, peer) = (self.method.as_str(), self.path.as_str(), self.bytes, self.peer.0);
        match self.status {
            Some(status) => tracing::info!(method, path, status, ms, bytes, %peer, "answered"),
            None => tracing::info!(method, path, ms, %peer, "the client hung up"),
        }
    }
}

/// The body of a response, counted for the log line; the response to `HEAD` has none.
pub(super) struct Sent<B> {
    body: Option<Pin<Box<B>>>,
    line: Line,
    /// The memory of the response. hyper drops a body after its last frame, unless the body reports that
    /// there may be more; then it writes to the socket first. So the memory is released when at most 64 KiB
    /// remain to be sent.
    held: Option<Permit>,
}

impl<B: Body> Body for Sent<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let frame = ready!(body.as_mut().poll_frame(cx));
        if frame.is_none() {
            self.held = None;
        }
        if let Some(data) = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref()) {
            self.line.bytes += data.remaining() as u64;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(|body| self.held.is_none() && body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), |body| body.size_hint())
    }
}

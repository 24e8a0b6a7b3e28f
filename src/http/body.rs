//! The body of a request: JSON, of bounded size, at a bearable pace.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::{Buf, Bytes};
use futures_util::{Stream, StreamExt};
use http::HeaderMap;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, TRANSFER_ENCODING};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};
use warp::{Filter, Rejection};

use super::bounds::Bounds;
use super::problem::ApiError;
use super::socket::pace_of;

/// When a request must be answered; the layers put it into the request's extensions.
///
/// The time of a request begins anew once its body has come: how long that takes is the network's doing.
#[derive(Clone, Debug)]
pub(super) struct Deadline(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    request: Duration,
    at: watch::Sender<Instant>,
    /// The caller will be refused, whatever the body holds.
    refused: AtomicBool,
}

impl Deadline {
    /// A request that comes now and may take `request`.
    pub(super) fn new(request: Duration) -> Self {
        let at = watch::Sender::new(Instant::now() + request);
        Self(Arc::new(Shared { request, at, refused: AtomicBool::new(false) }))
    }

    /// When the request must be answered, as far as that is known now; and news of it.
    pub(super) fn watch(&self) -> watch::Receiver<Instant> {
        self.0.at.subscribe()
    }

    /// Notes that the caller is refused: the body is not waited for longer than the request's own time.
    pub(super) fn refuse(&self) {
        self.0.refused.store(true, Ordering::Relaxed);
    }

    /// The body will have come, or been given up, by then.
    fn body_until(&self, latest: Instant) {
        self.0.at.send_replace(latest + self.0.request);
    }
}

/// Reads the body of a request of somebody who is not known yet; see [`slow_body`]. It has the request's own time.
pub fn body(
    bounds: Arc<Bounds>,
) -> impl Filter<Extract = (Result<Bytes, ApiError>,), Error = Rejection> + Clone {
    filter(bounds, false)
}

/// Reads the body of a request. Rejects never: a fault is the handler's to pass on.
///
/// - Shape: the bytes as they came, in one piece. Whether they are JSON is for the reader to find.
/// - Bounds: `body_bytes_max`, refused at once where `Content-Length` tells. Memory follows what has arrived, at most
///   twice that, whatever was announced. The time is bounded by the pace of the body, and by `body_s` in all;
///   `request_s` begins when it has come. The body of a caller who is refused anyway has `request_s`.
/// - Errors: 411, 413, 415, 400 for a body that breaks off. 408 [`ApiError::BodyTooSlow`] for less than
///   `body_bytes_per_s_min` on the average once `body_grace` is over, for silence of `request_s`, and for a body that
///   takes longer than it may.
pub fn slow_body(
    bounds: Arc<Bounds>,
) -> impl Filter<Extract = (Result<Bytes, ApiError>,), Error = Rejection> + Clone {
    filter(bounds, true)
}

fn filter(
    bounds: Arc<Bounds>,
    may_be_slow: bool,
) -> impl Filter<Extract = (Result<Bytes, ApiError>,), Error = Rejection> + Clone {
    warp::header::headers_cloned().and(warp::ext::optional::<Deadline>()).and(warp::body::stream()).then(
        move |headers, deadline, stream| {
            let bounds = bounds.clone();
            async move { receive(&bounds, headers, deadline, may_be_slow, stream).await }
        },
    )
}

/// Reads a body, and lets the request's time begin when it has come.
async fn receive<S, B>(
    bounds: &Bounds,
    headers: HeaderMap,
    deadline: Option<Deadline>,
    may_be_slow: bool,
    stream: S,
) -> Result<Bytes, ApiError>
where
    S: Stream<Item = Result<B, warp::Error>>,
    B: Buf,
{
    let refused = deadline.as_ref().is_some_and(|deadline| deadline.0.refused.load(Ordering::Relaxed));
    let time = if may_be_slow && !refused { bounds.body } else { bounds.request };
    let latest = Instant::now() + time;
    if let Some(deadline) = &deadline {
        deadline.body_until(latest);
    }
    let read = read(bounds, headers, Clocks { latest, time }, stream).await;
    if let Some(deadline) = &deadline {
        deadline.body_until(Instant::now());
    }
    read
}

/// How long a body may take in all.
struct Clocks {
    latest: Instant,
    time: Duration,
}

/// Bytes of a body that is not wanted, read to keep the connection.
const UNWANTED_BYTES_MAX: usize = 4_096;

/// Reads past the body of a request, of a route that takes none.
///
/// Some clients send an empty body in chunks, the end of it in a packet of its own. Answered before that came,
/// the connection would be closed under the client's next request.
pub fn no_body(bounds: Arc<Bounds>) -> impl Filter<Extract = (), Error = Rejection> + Clone {
    warp::body::stream().then(move |stream| read_past(bounds.clone(), stream)).untuple_one()
}

async fn read_past<S, B>(bounds: Arc<Bounds>, stream: S)
where
    S: Stream<Item = Result<B, warp::Error>>,
    B: Buf,
{
    let mut stream = pin!(stream);
    let due = Instant::now() + bounds.body_grace;
    let mut bytes = 0;
    // Whatever goes wrong here costs the connection, not the answer.
    while let Ok(Some(Ok(chunk))) = timeout_at(due, stream.next()).await {
        bytes += chunk.remaining();
        if bytes > UNWANTED_BYTES_MAX {
            return;
        }
    }
}

async fn read<S, B>(bounds: &Bounds, headers: HeaderMap, clocks: Clocks, stream: S) -> Result<Bytes, ApiError>
where
    S: Stream<Item = Result<B, warp::Error>>,
    B: Buf,
{
    is_json(&headers)?;
    let announced = announced(&headers)?;
    let too_large = || ApiError::BodyTooLarge { bytes_max: bounds.body_bytes_max };
    if announced.is_some_and(|bytes| bytes > bounds.body_bytes_max as u64) {
        return Err(too_large());
    }
    let bytes_expected = announced.and_then(|bytes| usize::try_from(bytes).ok());

    let mut stream = pin!(stream);
    let started = Instant::now();
    let mut whole: Vec<u8> = Vec::new();
    loop {
        let due = pace_of(whole.len(), bounds.body_bytes_per_s_min).map(|earned| {
            // What came fast earns no right to hold it here in silence.
            let silent = Instant::now() + bounds.request.max(bounds.body_grace);
            started.checked_add(bounds.body_grace + earned).map_or(silent, |due| due.min(silent))
        });
        let until = due.map_or(clocks.latest, |due| due.min(clocks.latest));
        let chunk = timeout_at(until, stream.next()).await.map_err(|_| {
            let reason = if until == clocks.latest {
                let s = clocks.time.as_secs_f32();
                format!("The body took longer than {s} s. Send fewer rows at a time.")
            } else {
                let bytes = bounds.body_bytes_per_s_min;
                format!("The body came slower than {bytes} bytes a second. Send fewer rows at a time.")
            };
            ApiError::BodyTooSlow { reason }
        })?;
        let Some(chunk) = chunk else { break };
        let mut chunk = chunk.map_err(|error| ApiError::InvalidRequest {
            reason: format!("The body breaks off or is garbled: {error}."),
        })?;
        let bytes = whole.len() + chunk.remaining();
        if bytes > bounds.body_bytes_max {
            return Err(too_large());
        }
        if whole.is_empty() && bytes_expected == Some(bytes) {
            return Ok(chunk.copy_to_bytes(bytes)); // all in one piece, as most bodies: nothing to join
        }
        if bytes > whole.capacity() {
            // Twice as much as before, and never more than was announced or than is allowed.
            let most = bytes_expected.unwrap_or(bounds.body_bytes_max).max(bytes);
            let room = whole.capacity().saturating_mul(2).clamp(bytes, most);
            whole.reserve_exact(room - whole.len());
        }
        while chunk.has_remaining() {
            let piece = chunk.chunk();
            whole.extend_from_slice(piece);
            let read = piece.len();
            chunk.advance(read);
        }
    }
    // Without either header HTTP/1.1 has no body at all; with one, an empty body is the sender's choice.
    if whole.is_empty() && announced.is_none() && !headers.contains_key(TRANSFER_ENCODING) {
        return Err(ApiError::LengthRequired);
    }
    Ok(whole.into())
}

/// The length that the request announces.
fn announced(headers: &HeaderMap) -> Result<Option<u64>, ApiError> {
    let Some(value) = headers.get(CONTENT_LENGTH) else { return Ok(None) };
    match value.to_str().ok().and_then(|text| text.parse().ok()) {
        Some(bytes) => Ok(Some(bytes)),
        None => Err(ApiError::InvalidRequest { reason: "Content-Length is no number.".into() }),
    }
}

/// Refuses what says that it is no plain JSON.
fn is_json(headers: &HeaderMap) -> Result<(), ApiError> {
    let essence = |value: &http::HeaderValue| {
        let text = value.to_str().unwrap_or_default();
        text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
    };
    if headers.get_all(CONTENT_TYPE).iter().any(|value| essence(value) != "application/json") {
        return Err(ApiError::UnsupportedMediaType {
            reason: "The body must be application/json. With curl, add -H 'Content-Type: application/json'.",
        });
    }
    // A compressed body could be a thousand times as large as it looks.
    if headers.get_all(CONTENT_ENCODING).iter().any(|value| essence(value) != "identity") {
        return Err(ApiError::UnsupportedMediaType {
            reason: "The body must not be compressed: leave Content-Encoding out.",
        });
    }
    Ok(())
}

//! The body of a request: JSON, of bounded size, at a bearable pace.

use std::pin::pin;
use std::sync::Arc;

use bytes::{Buf, Bytes};
use futures_util::{Stream, StreamExt};
use http::HeaderMap;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, TRANSFER_ENCODING};
use tokio::time::{Instant, timeout_at};
use warp::{Filter, Rejection};

use super::bounds::Bounds;
use super::problem::{ApiError, Unavailable};
use super::socket::pace_of;

/// When the request must be answered; the layers put it there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadline(pub(super) Instant);

/// Reads the body of a request, of a route that has one. Rejects never: a fault is the handler's to pass on.
///
/// - Shape: the bytes as they came, in one piece. Whether they are JSON is for the reader to find.
/// - Bounds: `body_bytes_max`, refused at once where `Content-Length` tells. Memory follows what has
///   arrived, at most twice that, whatever was announced.
/// - Errors: 411, 413, 415, 408 [`ApiError::BodyTooSlow`] for less than `body_bytes_per_s_min` on the
///   average once `body_grace` is over, 503 `timeout` where the request's time ends before the body does,
///   400 for a body that breaks off.
pub fn body(
    bounds: Arc<Bounds>,
) -> impl Filter<Extract = (Result<Bytes, ApiError>,), Error = Rejection> + Clone {
    warp::header::headers_cloned()
        .and(warp::ext::optional::<Deadline>())
        .and(warp::body::stream())
        .then(move |headers, deadline, stream| read(bounds.clone(), headers, deadline, stream))
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

async fn read<S, B>(
    bounds: Arc<Bounds>,
    headers: HeaderMap,
    deadline: Option<Deadline>,
    stream: S,
) -> Result<Bytes, ApiError>
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
        let due = pace_of(whole.len(), bounds.body_bytes_per_s_min)
            .and_then(|earned| started.checked_add(bounds.body_grace + earned));
        let chunk = match first(due, deadline.map(|Deadline(at)| at)) {
            None => stream.next().await,
            Some(at) => timeout_at(at, stream.next()).await.map_err(|_| {
                if due == Some(at) {
                    ApiError::BodyTooSlow { bytes_per_s_min: bounds.body_bytes_per_s_min }
                } else {
                    ApiError::Unavailable {
                        code: Unavailable::Timeout,
                        reason: "The body took longer than a request may. Send fewer rows at a time.",
                        retry_after_s: 1,
                    }
                }
            })?,
        };
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

/// The earlier of two instants that may be absent.
fn first(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
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

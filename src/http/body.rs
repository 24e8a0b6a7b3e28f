//! The body of a request: JSON of bounded size and with a minimum pace.

use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::{Buf, Bytes};
use futures_util::{Stream, StreamExt};
use http::HeaderMap;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, TRANSFER_ENCODING};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};
use warp::{Filter, Rejection};

use super::bounds::Bounds;
use super::memory::{Memory, Permit, SMALL_BODY_BYTES};
use super::problem::ApiError;
use super::socket::pace_of;
use crate::model::Owner;

/// The deadline and the owner of a request; the layers put it into the request's extensions.
///
/// The time of a request restarts when its body has arrived: the network determines how long that takes.
#[derive(Clone, Debug)]
pub(super) struct Deadline(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    request: Duration,
    at: watch::Sender<Instant>,
    /// Whether the request will be refused, whatever the body contains.
    refused: AtomicBool,
    /// The owner of the request's rows.
    owner: OnceLock<Owner>,
}

impl Deadline {
    /// The deadline of a request that arrives now and may take `request`.
    pub(super) fn new(request: Duration) -> Self {
        let at = watch::Sender::new(Instant::now() + request);
        Self(Arc::new(Shared { request, at, refused: AtomicBool::new(false), owner: OnceLock::new() }))
    }

    /// Watches the deadline, which may change.
    pub(super) fn watch(&self) -> watch::Receiver<Instant> {
        self.0.at.subscribe()
    }

    /// Records that the caller is refused: the body is not kept, and not awaited beyond the request's own
    /// time.
    pub(super) fn refuse(&self) {
        self.0.refused.store(true, Ordering::Relaxed);
    }

    /// Sets the owner, whose share of the memory is counted.
    pub(super) fn of_owner(&self, owner: Owner) {
        let _ = self.0.owner.set(owner); // a request has one caller
    }

    fn is_refused(&self) -> bool {
        self.0.refused.load(Ordering::Relaxed)
    }

    /// Sets the latest time by which the body has arrived or is given up.
    fn body_until(&self, latest: Instant) {
        self.0.at.send_replace(latest + self.0.request);
    }
}

/// A body that has arrived, and the memory that its request has reserved so far.
#[derive(Clone)]
pub struct Received {
    /// The body.
    pub bytes: Bytes,
    /// Reserves more memory for the request.
    pub permit: Permit,
}

type Reading = Result<Received, ApiError>;

/// Reads the body of a request without a known caller; see [`slow_body`].
///
/// It may take the request's own time, and at most 64 KiB: such a caller sends an address and a password.
pub fn body(
    bounds: Arc<Bounds>,
    memory: Arc<Memory>,
) -> impl Filter<Extract = (Reading,), Error = Rejection> + Clone {
    filter(bounds, memory, false)
}

/// Reads the body of a request. It never rejects: the handler reports the error.
///
/// - Shape: the bytes as they arrived, in one piece. Whether they are JSON is checked by the reader.
/// - Bounds: `body_bytes_max`, refused at once if `Content-Length` exceeds it. Memory grows with the bytes
///   that have arrived, to at most twice their number, whatever was announced, and is reserved before it is
///   allocated. The time is bounded by the pace of the body, and by `body_s` in total; `request_s` begins
///   when the body has arrived. The body of a caller that is refused has `request_s`, and is empty here: it
///   is read and discarded.
/// - Errors: 411, 413, 415, 400 for a truncated body, and for one that arrives in pieces of less than 64 bytes on
///   average (beyond the first 4,096), 503 if `memory_bytes_max` is used up. 408
///   [`ApiError::BodyTooSlow`] for less than `body_bytes_per_s_min` on average after `body_grace`, for
///   silence of `request_s`, and for a body that takes too long in total.
pub fn slow_body(
    bounds: Arc<Bounds>,
    memory: Arc<Memory>,
) -> impl Filter<Extract = (Reading,), Error = Rejection> + Clone {
    filter(bounds, memory, true)
}

fn filter(
    bounds: Arc<Bounds>,
    memory: Arc<Memory>,
    is_known: bool,
) -> impl Filter<Extract = (Reading,), Error = Rejection> + Clone {
    warp::header::headers_cloned().and(warp::ext::optional::<Deadline>()).and(warp::body::stream()).then(
        move |headers, deadline, stream| {
            let (bounds, memory) = (bounds.clone(), memory.clone());
            async move { receive(&bounds, &memory, headers, deadline, is_known, stream).await }
        },
    )
}

/// Reads a body, and restarts the request's time when it has arrived.
async fn receive<S, B>(
    bounds: &Bounds,
    memory: &Arc<Memory>,
    headers: HeaderMap,
    deadline: Option<Deadline>,
    is_known: bool,
    stream: S,
) -> Reading
where
    S: Stream<Item = Result<B, warp::Error>>,
    B: Buf,
{
    let refused = deadline.as_ref().is_some_and(Deadline::is_refused);
    let time = if is_known && !refused { bounds.body } else { bounds.request };
    let latest = Instant::now() + time;
    if let Some(deadline) = &deadline {
        deadline.body_until(latest);
    }
    let owner = deadline.as_ref().and_then(|deadline| deadline.0.owner.get().copied());
    let bytes_max = if is_known { usize::MAX } else { SMALL_BODY_BYTES }.min(bounds.body_bytes_max);
    let body = Incoming {
        bytes_max,
        expected: None,
        keeps: !refused,
        count: 0,
        pieces: 0,
        whole: Vec::new(),
        permit: memory.permit(owner),
    };
    let read = body.read(bounds, headers, Clocks { latest, time }, stream).await;
    if let Some(deadline) = &deadline {
        deadline.body_until(Instant::now());
    }
    read
}

/// The time limits of a body.
struct Clocks {
    latest: Instant,
    time: Duration,
}

/// The average length of the pieces of a body. A piece is a chunk, or the content of a packet; each costs about a
/// microsecond, however short it is.
const PIECE_BYTES_MIN: usize = 64;

/// Pieces that may be shorter: a client that writes value by value sends some.
const SHORT_PIECES_MAX: usize = 4_096;

/// Bytes of an unwanted body that are read to keep the connection.
const UNWANTED_BYTES_MAX: usize = 4_096;

/// Reads and discards the body of a request to a route that takes none.
///
/// Some clients send an empty body in chunks, with its end in a packet of its own. If the response came
/// before that packet, the connection would be closed during the client's next request.
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
    // An error here ends the connection, but the response is sent.
    while let Ok(Some(Ok(chunk))) = timeout_at(due, stream.next()).await {
        bytes += chunk.remaining();
        if bytes > UNWANTED_BYTES_MAX {
            return;
        }
    }
}

/// A body that is arriving.
struct Incoming {
    bytes_max: usize,
    /// Its length, if known.
    expected: Option<usize>,
    /// Whether the body will be read.
    keeps: bool,
    /// Bytes that have arrived.
    count: usize,
    /// The number of pieces in which they arrived.
    pieces: usize,
    whole: Vec<u8>,
    permit: Permit,
}

impl Incoming {
    async fn read<S, B>(mut self, bounds: &Bounds, headers: HeaderMap, clocks: Clocks, stream: S) -> Reading
    where
        S: Stream<Item = Result<B, warp::Error>>,
        B: Buf,
    {
        is_json(&headers)?;
        let announced = announced(&headers)?;
        if announced.is_some_and(|bytes| bytes > self.bytes_max as u64) {
            return Err(self.too_large());
        }
        self.expected = announced.and_then(|bytes| usize::try_from(bytes).ok());
        self.permit.begin_body(announced);
        let mut stream = pin!(stream);
        let started = Instant::now();
        loop {
            let until = clocks.until(bounds, started, self.count);
            let chunk = timeout_at(until, stream.next()).await.map_err(|_| clocks.too_slow(bounds, until))?;
            let Some(chunk) = chunk else { break };
            let chunk = chunk.map_err(|error| ApiError::InvalidRequest {
                reason: format!("The body breaks off or is garbled: {error}."),
            })?;
            if let Some(bytes) = self.take(chunk)? {
                self.permit.end_body();
                return Ok(Received { bytes, permit: self.permit });
            }
        }
        // In HTTP/1.1 a request without either header has no body. With one of them, an empty body is valid.
        if self.count == 0 && announced.is_none() && !headers.contains_key(TRANSFER_ENCODING) {
            return Err(ApiError::LengthRequired);
        }
        self.permit.end_body();
        Ok(Received { bytes: self.whole.into(), permit: self.permit })
    }

    /// Adds received bytes; returns the complete body, in one piece.
    fn take(&mut self, mut chunk: impl Buf) -> Result<Option<Bytes>, ApiError> {
        let sum = self.count + chunk.remaining();
        if sum > self.bytes_max {
            return Err(self.too_large());
        }
        let is_first = self.count == 0;
        self.count = sum;
        self.pieces += 1;
        if self.pieces > SHORT_PIECES_MAX + sum / PIECE_BYTES_MIN {
            return Err(ApiError::InvalidRequest {
                reason: format!(
                    "The body arrives in pieces of less than {PIECE_BYTES_MIN} bytes. Send larger chunks."
                ),
            });
        }
        if !self.keeps {
            return Ok(None);
        }
        if is_first && self.expected == Some(sum) {
            self.permit.grow(sum)?;
            return Ok(Some(chunk.copy_to_bytes(sum))); // most bodies arrive at once, so nothing has to be joined
        }
        if sum > self.whole.capacity() {
            // Doubles the memory, but not beyond the announced or allowed length.
            let most = self.expected.unwrap_or(self.bytes_max).max(sum);
            let room = self.whole.capacity().saturating_mul(2).clamp(sum, most);
            self.permit.grow(room - self.whole.capacity())?;
            self.whole.reserve_exact(room - self.whole.len());
        }
        while chunk.has_remaining() {
            let piece = chunk.chunk();
            self.whole.extend_from_slice(piece);
            let read = piece.len();
            chunk.advance(read);
        }
        Ok(None)
    }

    fn too_large(&self) -> ApiError {
        ApiError::BodyTooLarge { bytes_max: self.bytes_max }
    }
}

impl Clocks {
    /// The time by which the next bytes must arrive, after this many bytes.
    fn until(&self, bounds: &Bounds, started: Instant, count: usize) -> Instant {
        let due = pace_of(count, bounds.body_bytes_per_s_min).map(|earned| {
            // A fast start does not allow a long silence later.
            let silent = Instant::now() + bounds.request.max(bounds.body_grace);
            started.checked_add(bounds.body_grace + earned).map_or(silent, |due| due.min(silent))
        });
        due.map_or(self.latest, |due| due.min(self.latest))
    }

    fn too_slow(&self, bounds: &Bounds, until: Instant) -> ApiError {
        let reason = if until == self.latest {
            let s = self.time.as_secs_f32();
            format!("The body took longer than {s} s. Send fewer rows at a time.")
        } else {
            let bytes = bounds.body_bytes_per_s_min;
            format!("The body came slower than {bytes} bytes a second. Send fewer rows at a time.")
        };
        ApiError::BodyTooSlow { reason }
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

/// Refuses other media types and encodings than plain JSON.
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
    // A compressed body could be a thousand times larger than its length.
    if headers.get_all(CONTENT_ENCODING).iter().any(|value| essence(value) != "identity") {
        return Err(ApiError::UnsupportedMediaType {
            reason: "The body must not be compressed: leave Content-Encoding out.",
        });
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::config::Settings;

    async fn arrives(piece: usize, pieces: usize) -> Result<usize, &'static str> {
        let settings = Settings::default();
        let bounds = Bounds::from_settings(&settings).unwrap();
        let memory = Memory::new(64 << 20, 1 << 20, Arc::default());
        let headers = HeaderMap::from_iter([(TRANSFER_ENCODING, "chunked".parse().unwrap())]);
        let stream = futures_util::stream::iter((0..pieces).map(|_| Ok(Bytes::from(vec![b' '; piece]))));
        let received = receive(&bounds, &memory, headers, None, true, stream).await;
        received.map(|received| received.bytes.len()).map_err(|error| error.status_and_code().1)
    }

    /// Goal: a body costs no more than its bytes do. Method: the longest body in chunks of one byte, and in longer ones.
    #[tokio::test]
    async fn a_body_in_crumbs_is_refused() {
        assert_eq!(arrives(1, 4_000).await, Ok(4_000));
        assert_eq!(arrives(1, 8_388_608).await, Err("invalid_request"));
        assert_eq!(arrives(PIECE_BYTES_MIN - 4, 130_000).await, Err("invalid_request"));
        assert_eq!(arrives(PIECE_BYTES_MIN, 130_000).await, Ok(8_320_000));
    }
}

//! Responses that are written while they are read, in constant memory.
//!
//! A source reads on a blocking thread, over one snapshot, as long as its client accepts the data. Such a
//! period is a run. A few chunks are buffered between reader and socket. When the client falls behind, the
//! source
//!
//! - waits a moment; a source that needs the same snapshot to its end waits longer, as long as no other
//!   request waits for a reader and the run is not too old;
//! - then releases thread, reader and snapshot, and continues in another run once the client has caught up.
//!   So a slow or stopped client occupies none of them, and the socket ends it at its own deadline.
//!
//! An incomplete response ends in a broken connection, never in a regular end.

use std::any::Any;
use std::io;
use std::ops::ControlFlow;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};
use tracing::Span;

use super::memory::Permit;
use super::problem::ApiError;
use super::readers::{Readers, Rivals};
use super::response_cache::BodyRecorder;
use super::{threads, timing};
use crate::model::Owner;

/// A chunk is sent once it has this many bytes; a shorter response is sent in one piece.
const CHUNK_BYTES: usize = 64 * 1024;

/// Chunks that are buffered between the reader and the socket, in addition to the one that each of them
/// holds.
const CHUNKS_AHEAD: usize = 2;

/// Most memory of a stream: the current chunk, the buffered ones, the one that found no room, and the one
/// that is being sent. Each has spare room, since its last row may exceed the chunk.
const STREAM_BYTES: usize = (CHUNKS_AHEAD + 3) * (CHUNK_BYTES + CHUNK_BYTES / 8);

/// How long a run may wait for its client in total.
const PATIENCE: Duration = Duration::from_millis(100);

/// Longest run while others wait, however fast its client is.
const TURN: Duration = Duration::from_millis(500);

/// The same for a source that needs its snapshot, while no other request waits. The write-ahead log cannot be
/// moved into the database while a snapshot is held.
const PATIENCE_ALONE: Duration = Duration::from_secs(10);

/// What a response is read from.
pub(crate) trait Source: Send + 'static {
    /// What must be known before the first byte: headers.
    type Head: Send + 'static;

    /// The owner of its rows.
    fn owner(&self) -> Owner;

    /// Continues where the last run ended, until everything is read or `out` is full.
    ///
    /// - `out.begin` comes first, once; an error before it is the whole response.
    /// - Errors: after the first byte they break the connection.
    fn read(&mut self, out: &mut ChunkWriter<Self::Head>) -> Result<Progress, ApiError>;

    /// Whether the response fails if the data changes between two runs.
    fn needs_one_snapshot(&self) -> bool {
        false
    }

    /// Called after the whole response was read, with its recording.
    fn finish(&mut self, _: Option<BodyRecorder>) {}
}

/// How far a run came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// To the end.
    Finished,
    /// Until there was no more room; the next run reads the rest.
    Paused,
}

/// A response, of which at least the beginning is read.
pub(crate) enum Body {
    /// All of it.
    Buffered(Vec<u8>),
    /// The rest will follow.
    Streaming(StreamBody),
}

/// Reads a response; returns once it is complete, or has begun.
///
/// - Bounds: the chunks are reserved in `permit`, which must live as long as the response.
/// - Errors: [`ApiError`] of the source; `busy` if no reader or no memory is free.
pub(crate) async fn respond<S: Source>(
    readers: &Arc<Readers>,
    permit: &Permit,
    mut source: S,
) -> Result<(S::Head, Body), ApiError> {
    let started = Instant::now();
    let slot = readers.enter(source.owner()).await?;
    permit.grow(STREAM_BYTES)?; // reserved only now: a request that waits for a turn uses none of it
    let (begun, beginning) = oneshot::channel();
    let (readers, span) = (Arc::clone(readers), Span::current());
    let reader = Handle::current();
    threads::spawn(move || {
        span.in_scope(|| {
            let mut out = ChunkWriter::new(&source, slot.rivals(), &reader);
            out.first = Some(begun);
            let ended = source.read(&mut out);
            drop(slot);
            out.ended(source, readers, &reader, ended);
        });
    });
    // If the channel is dropped without a message, the thread panicked.
    let began = beginning.await.unwrap_or_else(|gone| Err(ApiError::Internal(Box::new(gone))));
    timing::worked(started);
    began
}

type Beginning<H> = Result<(H, Body), ApiError>;

/// The output of a source. Rows are appended to `buf`; `flush_if_full` is called after some of them.
pub(crate) struct ChunkWriter<H> {
    /// What is not sent yet.
    pub buf: Vec<u8>,
    /// The recording of the response for the cache, if any.
    pub recorder: Option<BodyRecorder>,
    first: Option<oneshot::Sender<Beginning<H>>>,
    head: Option<H>,
    chunks: Option<mpsc::Sender<Part>>,
    /// A chunk for which there was no room.
    late: Option<Bytes>,
    rivals: Rivals,
    reactor: Handle,
    began: Instant,
    needs_one_snapshot: bool,
    /// How long this run has waited for its client.
    waited: Duration,
}

/// A message of the channel.
enum Part {
    Chunk(Bytes),
    /// The response is complete. If the channel closes without this message, the reader has died.
    End,
    Broken(ApiError),
}

impl<H: Send + 'static> ChunkWriter<H> {
    fn new<S: Source<Head = H>>(source: &S, rivals: Rivals, reactor: &Handle) -> Self {
        let buf = Vec::with_capacity(CHUNK_BYTES + CHUNK_BYTES / 8);
        let (first, head, chunks, late, recorder) = (None, None, None, None, None);
        let (began, waited) = (Instant::now(), Duration::ZERO);
        let reactor = reactor.clone();
        let needs_one_snapshot = source.needs_one_snapshot();
        Self { buf, recorder, first, head, chunks, late, rivals, reactor, began, needs_one_snapshot, waited }
    }

    /// Sends what comes before the first byte.
    pub fn begin(&mut self, head: H) {
        self.head = Some(head);
    }

    /// Sends the buffer if it fills a chunk; returns whether to continue.
    pub fn flush_if_full(&mut self) -> ControlFlow<()> {
        if self.buf.len() < CHUNK_BYTES {
            return ControlFlow::Continue(());
        }
        let room = Vec::with_capacity(self.buf.capacity().min(2 * CHUNK_BYTES));
        let chunk = Bytes::from(std::mem::replace(&mut self.buf, room));
        if let Some(recorder) = &mut self.recorder {
            recorder.add(&chunk);
        }
        let Some(chunks) = &self.chunks else { return self.open(chunk) };
        match chunks.try_send(Part::Chunk(chunk)) {
            Ok(()) if self.is_due() => ControlFlow::Break(()),
            Ok(()) => ControlFlow::Continue(()),
            Err(mpsc::error::TrySendError::Full(Part::Chunk(chunk))) => self.wait_to_send(chunk),
            Err(_) => ControlFlow::Break(()), // the client has disconnected
        }
    }

    /// Whether this run has used its time while others wait for a reader.
    pub fn is_due(&self) -> bool {
        self.began.elapsed() > TURN && self.rivals.are_there()
    }

    /// Begins to send the response, which has more than one chunk.
    fn open(&mut self, chunk: Bytes) -> ControlFlow<()> {
        let (Some(first), Some(head)) = (self.first.take(), self.head.take()) else {
            return ControlFlow::Break(());
        };
        let (chunks, rest) = mpsc::channel(CHUNKS_AHEAD);
        self.chunks = Some(chunks);
        let begin = Some(chunk).filter(|chunk| !chunk.is_empty());
        let coming = StreamBody { begin, rest, state: State::Open, until_sent: None };
        match first.send(Ok((head, Body::Streaming(coming)))) {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }
    }

    fn wait_to_send(&mut self, chunk: Bytes) -> ControlFlow<()> {
        let Some(chunks) = &self.chunks else { return ControlFlow::Break(()) };
        if threads::are_simulated() {
            self.late = Some(chunk); // the client receives nothing meanwhile
            return ControlFlow::Break(());
        }
        // The reader waits a limited time for its client. A source that needs this snapshot waits longer, unless
        // another request wants the reader.
        let (rivals, since) = (&self.rivals, Instant::now());
        let patience = PATIENCE.saturating_sub(self.waited);
        let enough = async {
            sleep_until(since + patience).await;
            if self.needs_one_snapshot {
                let _ = timeout(PATIENCE_ALONE, rivals.come()).await;
            }
        };
        let room = self.reactor.block_on(async {
            tokio::select! {
                biased; // a client that has just made room comes before the end of the wait
                room = chunks.reserve() => Some(room),
                () = enough => None,
            }
        });
        self.waited += since.elapsed();
        match room {
            Some(Ok(room)) => {
                room.send(Part::Chunk(chunk));
                ControlFlow::Continue(())
            }
            Some(Err(_)) => ControlFlow::Break(()),
            None => {
                self.late = Some(chunk);
                ControlFlow::Break(())
            }
        }
    }

    /// Handles the end of a run. The reader is released by now.
    fn ended<S: Source<Head = H>>(
        mut self,
        mut source: S,
        readers: Arc<Readers>,
        reactor: &Handle,
        ended: Result<Progress, ApiError>,
    ) {
        // A run may end before it has a chunk to send: it has read many entries and found few rows.
        if matches!(ended, Ok(Progress::Paused)) && self.chunks.is_none() {
            let chunk = Bytes::from(std::mem::take(&mut self.buf));
            if let Some(recorder) = &mut self.recorder {
                recorder.add(&chunk);
            }
            if self.open(chunk).is_break() {
                return; // the client has disconnected
            }
        }
        let Some(chunks) = self.chunks.take() else {
            let first = self.first.take();
            let response = ended.and_then(|_| {
                let head = self.head.take().ok_or_else(|| ApiError::Internal("no head".into()))?;
                if let Some(recorder) = &mut self.recorder {
                    recorder.add(&Bytes::copy_from_slice(&self.buf));
                }
                source.finish(self.recorder.take());
                Ok((head, Body::Buffered(self.buf)))
            });
            if let Some(first) = first {
                let _ = first.send(response); // a disconnected client needs no response
            }
            return;
        };
        let late = self.late.take();
        match ended {
            Ok(Progress::Finished) => {
                let rest = Bytes::from(std::mem::take(&mut self.buf));
                if let Some(recorder) = &mut self.recorder {
                    recorder.add(&rest);
                }
                source.finish(self.recorder.take());
                reactor.spawn(async move {
                    // A send fails if the client has disconnected; then no error is needed.
                    let _ = chunks.send(Part::Chunk(rest)).await;
                    let _ = chunks.send(Part::End).await;
                });
            }
            Ok(Progress::Paused) => {
                // An empty buffer may have a large capacity, which a slow client should not occupy.
                let buf = if self.buf.is_empty() { Vec::new() } else { std::mem::take(&mut self.buf) };
                let recorder = self.recorder.take();
                let span = Span::current();
                reactor.spawn(go_on(source, readers, chunks, late, buf, recorder, span));
            }
            Err(error) => {
                reactor.spawn(async move {
                    let _ = chunks.send(Part::Broken(error)).await;
                });
            }
        }
    }
}

/// Waits until the client has caught up, then continues reading.
async fn go_on<S: Source>(
    mut source: S,
    readers: Arc<Readers>,
    chunks: mpsc::Sender<Part>,
    late: Option<Bytes>,
    buf: Vec<u8>,
    recorder: Option<BodyRecorder>,
    span: Span,
) {
    if let Some(late) = late
        && chunks.send(Part::Chunk(late)).await.is_err()
    {
        return;
    }
    // Reserves room for the next chunk before it occupies a reader.
    match chunks.reserve().await {
        Ok(room) => drop(room),
        Err(_) => return,
    }
    let slot = loop {
        match readers.enter(source.owner()).await {
            Ok(slot) => break slot,
            // It has waited for its client before; it may wait for its turn as long as the client stays.
            Err(_) if !chunks.is_closed() => {}
            Err(_) => return,
        }
    };
    let reactor = Handle::current();
    threads::spawn(move || {
        span.in_scope(|| {
            let mut out = ChunkWriter::new(&source, slot.rivals(), &reactor);
            (out.buf, out.recorder, out.chunks) = (buf, recorder, Some(chunks));
            let ended = source.read(&mut out);
            drop(slot);
            out.ended(source, readers, &reactor, ended);
        });
    });
}

/// The body of a response that is still being read.
pub(crate) struct StreamBody {
    begin: Option<Bytes>,
    rest: mpsc::Receiver<Part>,
    state: State,
    /// Dropped as soon as the response is complete or aborted.
    until_sent: Option<Mutex<Box<dyn Any + Send>>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    Over,
}

impl StreamBody {
    /// Holds a value until the response is complete or aborted.
    pub fn holding(mut self, held: impl Send + 'static) -> Self {
        self.until_sent = Some(Mutex::new(Box::new(held)));
        self
    }
}

impl Stream for StreamBody {
    type Item = io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Some(begin) = self.begin.take() {
            return Poll::Ready(Some(Ok(begin)));
        }
        if self.state == State::Over {
            return Poll::Ready(None);
        }
        let part = ready!(self.rest.poll_recv(cx));
        if let Some(Part::Chunk(chunk)) = part {
            return Poll::Ready(Some(Ok(chunk)));
        }
        self.state = State::Over;
        self.until_sent = None;
        match part {
            Some(Part::End) => Poll::Ready(None),
            Some(Part::Broken(error)) => {
                tracing::warn!(%error, "a response broke off");
                Poll::Ready(Some(Err(io::Error::other(error))))
            }
            _ => {
                tracing::error!("a response broke off: its reader panicked");
                Poll::Ready(Some(Err(io::ErrorKind::UnexpectedEof.into())))
            }
        }
    }
}

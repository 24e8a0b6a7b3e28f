//! Answers that are written while they are read: memory stays flat, however much there is to tell.
//!
//! A source reads on a blocking thread, over one snapshot, for as long as its client takes what comes: a stretch.
//! Between the two stand a few chunks. When the client falls behind, the source
//!
//! - waits a moment; one that needs the same snapshot to its end waits on, as long as nobody else waits for a
//!   reader and the stretch is not too old;
//! - then lets go of thread, reader and snapshot, and reads on in another stretch once the client has caught up.
//!   So a client that is slow, or stopped, holds none of them, and the socket cuts it at its own deadline.
//!
//! An answer that is not whole ends in a broken connection, never in an end that looks like one.

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

/// A chunk is sent once it has so many bytes; an answer below goes out in one piece.
const CHUNK_BYTES: usize = 64 * 1024;

/// Chunks that wait between the reader and the socket, beside the one that either has in hand.
const CHUNKS_AHEAD: usize = 2;

/// What a stream takes at most: the chunk in hand, those that wait, the one that found no room, and the one that is
/// being sent. Each has some room to spare, as the row that fills it may go beyond.
const STREAM_BYTES: usize = (CHUNKS_AHEAD + 3) * (CHUNK_BYTES + CHUNK_BYTES / 8);

/// What a stretch may spend on waiting for its client.
const PATIENCE: Duration = Duration::from_millis(100);

/// Longest stretch while others wait, however fast its client is.
const TURN: Duration = Duration::from_millis(500);

/// The same, for one that needs its snapshot and is in nobody's way. The write-ahead log cannot be folded back
/// while a snapshot is held.
const PATIENCE_ALONE: Duration = Duration::from_secs(10);

/// Whatever an answer is read from.
pub(super) trait Source: Send + 'static {
    /// What must be known before the first byte: headers.
    type Head: Send + 'static;

    /// Whose rows it reads.
    fn owner(&self) -> Owner;

    /// Reads on where the last stretch ended, until all is told or `out` has enough.
    ///
    /// - `out.begin` comes first, once; an error before it is the whole answer.
    /// - Errors: after the first byte they break the connection.
    fn read(&mut self, out: &mut ChunkWriter<Self::Head>) -> Result<Progress, ApiError>;

    /// Whether the answer breaks off if the data changes between two stretches.
    fn needs_one_snapshot(&self) -> bool {
        false
    }

    /// The answer is told; what was gathered of it on the way.
    fn finish(&mut self, _: Option<BodyRecorder>) {}
}

/// How far a stretch came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// To the end.
    Finished,
    /// As far as there was room; the rest is for the next stretch.
    Paused,
}

/// An answer, of which at least the beginning is there.
pub(super) enum Body {
    /// All of it.
    Buffered(Vec<u8>),
    /// The rest is on its way.
    Streaming(StreamBody),
}

/// Reads an answer; returns once it is whole, or has begun.
///
/// - Bounds: the chunks are drawn from `permit`, which is to live as long as the answer.
/// - Errors: [`ApiError`] of the source; `busy` if every reader that streams may have is taken, or the memory.
pub(super) async fn respond<S: Source>(
    readers: &Arc<Readers>,
    permit: &Permit,
    mut source: S,
) -> Result<(S::Head, Body), ApiError> {
    let asked_at = Instant::now();
    let slot = readers.enter(source.owner()).await?;
    permit.grow(STREAM_BYTES)?; // not before: who waits for a turn holds none of it
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
    // Dropped without a word, the thread panicked.
    let began = beginning.await.unwrap_or_else(|gone| Err(ApiError::Internal(Box::new(gone))));
    timing::worked(asked_at);
    began
}

type Beginning<H> = Result<(H, Body), ApiError>;

/// Where a source writes. Rows go into `buf`; `flush_if_full` after a buf of them.
pub(super) struct ChunkWriter<H> {
    /// What is not sent yet.
    pub buf: Vec<u8>,
    /// What is gathered of the answer to be kept, if anything is.
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
    /// For how long this stretch has waited for its client.
    waited: Duration,
}

/// What comes through the channel.
enum Part {
    Chunk(Bytes),
    /// The answer is whole. A channel that closes without this is one whose reader died.
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

    /// Says what stands before the first byte.
    pub fn begin(&mut self, head: H) {
        self.head = Some(head);
    }

    /// Sends what was written, if it is enough for a chunk; answers whether to go on.
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
            Ok(()) if self.began.elapsed() > TURN && self.rivals.are_there() => ControlFlow::Break(()),
            Ok(()) => ControlFlow::Continue(()),
            Err(mpsc::error::TrySendError::Full(Part::Chunk(chunk))) => self.wait_to_send(chunk),
            Err(_) => ControlFlow::Break(()), // the client left
        }
    }

    /// There is more than one chunk: the answer begins to go out.
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
            self.late = Some(chunk); // nobody would take anything meanwhile
            return ControlFlow::Break(());
        }
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
                biased;
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

    /// Passes on what a stretch ended in. The reader is given back by now.
    fn ended<S: Source<Head = H>>(
        mut self,
        mut source: S,
        readers: Arc<Readers>,
        reactor: &Handle,
        ended: Result<Progress, ApiError>,
    ) {
        // A stretch may end before there is a chunk to send: it has looked at much and found little to tell.
        if matches!(ended, Ok(Progress::Paused)) && self.chunks.is_none() {
            let chunk = Bytes::from(std::mem::take(&mut self.buf));
            if let Some(recorder) = &mut self.recorder {
                recorder.add(&chunk);
            }
            if self.open(chunk).is_break() {
                return; // the client left
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
                let _ = first.send(response); // a client that left wants no answer
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
                    // A send fails if the client left; then there is nobody to tell.
                    let _ = chunks.send(Part::Chunk(rest)).await;
                    let _ = chunks.send(Part::End).await;
                });
            }
            Ok(Progress::Paused) => {
                // An empty buf may have room for much: a client that is slow should not hold it.
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

/// Waits until the client has caught up, then reads on.
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
    // Room for what comes next, before others are kept from a reader.
    match chunks.reserve().await {
        Ok(room) => drop(room),
        Err(_) => return,
    }
    let slot = loop {
        match readers.enter(source.owner()).await {
            Ok(slot) => break slot,
            // It has waited for its client before; it may wait for its turn as long as that stays.
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

/// The body of an answer that is still being read.
pub(super) struct StreamBody {
    begin: Option<Bytes>,
    rest: mpsc::Receiver<Part>,
    state: State,
    /// Dropped as soon as the answer is told or cut.
    until_sent: Option<Mutex<Box<dyn Any + Send>>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    Over,
}

impl StreamBody {
    /// Holds something until the answer is told or cut.
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
                tracing::warn!(%error, "an answer broke off");
                Poll::Ready(Some(Err(io::Error::other(error))))
            }
            _ => {
                tracing::error!("an answer broke off: its reader panicked");
                Poll::Ready(Some(Err(io::ErrorKind::UnexpectedEof.into())))
            }
        }
    }
}

//! A stream that does not wait for ever on a client that stopped reading.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

/// How long we listen on after our last word, so that a client in the middle of its body can read it.
const LINGER: Duration = Duration::from_secs(2);

/// A client's stream, as hyper uses it.
///
/// - Writing: fails with `TimedOut` once the client has taken nothing for `patience`, or has taken less
///   than `bytes_per_s_min` since then: hyper itself would wait as long as the client likes.
/// - Closing: a close with unread bytes resets the connection, and the reset overtakes the answer. If
///   `unread` says so, closing first says goodbye, then throws away what still comes, for 2 s at most.
pub(super) struct Socket<S> {
    stream: S,
    patience: Duration,
    bytes_per_s_min: usize,
    unread: Arc<AtomicBool>,
    /// When the client must have taken more. Set while the kernel holds as much as it can.
    stalled: Option<Pin<Box<Sleep>>>,
    /// When the listening after the last word ends. Set once that word is said.
    lingering: Option<Pin<Box<Sleep>>>,
}

impl<S> Socket<S> {
    pub(super) fn new(
        stream: S,
        patience: Duration,
        bytes_per_s_min: usize,
        unread: Arc<AtomicBool>,
    ) -> Self {
        Self { stream, patience, bytes_per_s_min, unread, stalled: None, lingering: None }
    }

    /// Holds a write's outcome against the client's pace.
    fn paced(&mut self, cx: &mut Context<'_>, wrote: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match wrote {
            Poll::Ready(Ok(bytes)) => {
                if let Some(timer) = &mut self.stalled {
                    let latest = Instant::now() + self.patience;
                    let earned = pace_of(bytes, self.bytes_per_s_min)
                        .and_then(|earned| timer.deadline().checked_add(earned));
                    timer.as_mut().reset(earned.map_or(latest, |earned| earned.min(latest)));
                }
                wrote
            }
            Poll::Pending => {
                let timer = self.stalled.get_or_insert_with(|| Box::pin(sleep(self.patience)));
                ready!(timer.as_mut().poll(cx));
                let reason = "the client does not read its answer";
                Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, reason)))
            }
            Poll::Ready(Err(_)) => wrote,
        }
    }
}

/// How long `bytes` may take; `None` without a pace.
pub(super) fn pace_of(bytes: usize, bytes_per_s_min: usize) -> Option<Duration> {
    let micros = (bytes as u64).saturating_mul(1_000_000).checked_div(bytes_per_s_min as u64)?;
    Some(Duration::from_micros(micros))
}

impl<S: AsyncRead + Unpin> AsyncRead for Socket<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Socket<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let wrote = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.paced(cx, wrote)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let wrote = Pin::new(&mut self.stream).poll_write_vectored(cx, bytes);
        self.paced(cx, wrote)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // hyper flushes once the kernel has taken all: whatever comes next starts afresh.
        self.stalled = None;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.lingering.is_none() {
            ready!(Pin::new(&mut this.stream).poll_shutdown(cx))?;
            if !this.unread.load(Ordering::Relaxed) {
                return Poll::Ready(Ok(()));
            }
        }
        let timer = this.lingering.get_or_insert_with(|| Box::pin(sleep(LINGER)));
        let mut scratch = [0; 8192];
        while timer.as_mut().poll(cx).is_pending() {
            let mut buffer = ReadBuf::new(&mut scratch);
            match ready!(Pin::new(&mut this.stream).poll_read(cx, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => {}
                Ok(()) | Err(_) => break, // the client hung up, as it should
            }
        }
        Poll::Ready(Ok(()))
    }
}

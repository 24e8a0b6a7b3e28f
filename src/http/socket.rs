//! A stream with a deadline for clients that stop reading.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

/// How long to drain the request body after an early response, so that the client can read it (lingering
/// close).
const LINGER: Duration = Duration::from_secs(2);

/// A client's stream, as hyper uses it.
///
/// - Writing: fails with `TimedOut` if the client has read nothing for `patience`, or less than
///   `bytes_per_s_min` since then. hyper itself would wait without limit.
/// - Closing: a close with unread bytes resets the connection, and the reset overtakes the response. If
///   `unread` is set, closing first shuts down the writing side, then discards what still arrives, for 2 s at
///   most.
pub(super) struct Socket<S> {
    stream: S,
    patience: Duration,
    bytes_per_s_min: usize,
    unread: Arc<AtomicBool>,
    /// When the client must have read more. It is set while the kernel's buffer is full.
    stalled: Option<Pin<Box<Sleep>>>,
    /// When draining ends. It is set after the last write.
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

    /// Checks the result of a write against the client's pace.
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

/// How long `bytes` may take; `None` without a minimum pace.
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
        // hyper flushes once the kernel has taken everything: the next write starts a new period.
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
                Ok(()) | Err(_) => break, // the client has closed the connection, as expected
            }
        }
        Poll::Ready(Ok(()))
    }
}

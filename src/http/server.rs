//! The accept loop. warp's own server waits without limit: for a silent connection, half a header, its own
//! stop.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use http_body::Body;
use hyper::body::Incoming;
use hyper::rt::{Read, Write};
use hyper::server::conn::http1;
use hyper::service::{HttpService, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, sleep_until, timeout};
use warp::{Filter, Reply};

use super::bounds::Bounds;
use super::layers;
use super::peer::Peer;
use super::socket::Socket;
use crate::error_chain::error_chain;
use crate::metrics::Metrics;

/// hyper's limits are this multiple of ours. Beyond them hyper responds itself, without a request id.
const HARD_LIMIT: usize = 4;

/// Shortest and longest pause after a failed `accept`.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// Whether the server is stopping. It is shared: `/readyz` reads what the accept loop sets.
#[derive(Clone, Debug, Default)]
pub struct Draining(Arc<watch::Sender<bool>>);

impl Draining {
    /// Whether the server is stopping.
    pub fn is_set(&self) -> bool {
        *self.0.borrow()
    }

    /// Sets it. [`serve`] does so itself before it stops accepting. To let a load balancer notice first, set
    /// it, wait, and only then let `stop` complete.
    pub fn set(&self) {
        self.0.send_replace(true);
    }

    /// Completes once the server is stopping. Handlers that only wait use it, so that they do not delay the
    /// stop.
    pub async fn begun(&self) {
        // The sender is held here, so the wait cannot fail.
        let _ = self.0.subscribe().wait_for(|is_set| *is_set).await;
    }
}

/// The source of connections: the system's network, or one that a test simulates.
pub trait Listener: Send {
    /// A connection.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// The next connection, and the address of its peer.
    fn accept(&self) -> impl Future<Output = io::Result<(Self::Stream, SocketAddr)>> + Send;
}

impl Listener for TcpListener {
    type Stream = TcpStream;

    async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        let (stream, address) = Self::accept(self).await?;
        // A response is written at once or in large pieces: there is nothing to combine, and waiting costs 40
        // ms.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "no TCP_NODELAY");
        }
        Ok((stream, address))
    }
}

/// The result of a server's stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drained {
    /// Connections that were still busy after `drain` and were aborted.
    pub cut: usize,
}

/// Serves `filter` on `listener` until `stop` completes, then lets running requests finish.
///
/// - Bounds: those of `bounds`; HTTP/1.1 only, without TLS.
/// - Stopping: `draining` is set, and the listener and idle connections are closed; running requests have
///   `bounds.drain` to finish. Dropping the future aborts everything at once.
/// - Errors: none. An `accept` that fails for lack of file descriptors is logged and tried again after a
///   pause.
pub async fn serve<F>(
    listener: impl Listener,
    filter: F,
    bounds: Arc<Bounds>,
    draining: Draining,
    metrics: Arc<Metrics>,
    stop: impl Future<Output = ()>,
) -> Drained
where
    F: Filter<Error = Infallible> + Clone + Send + Sync + 'static,
    F::Extract: Reply,
{
    let http = protocol(&bounds);
    let service = layers::stack(warp::service(filter), bounds.clone());
    let permits = ConnectionPermits::default();
    let ending = Arc::new(Notify::new());
    let mut connections = JoinSet::<()>::new();
    let mut pause = Pause::default();
    let mut stop = pin!(stop);
    loop {
        let accepted = tokio::select! {
            biased;
            () = &mut stop => break,
            Some(ended) = connections.join_next() => {
                note(ended);
                continue;
            }
            accepted = pause.then_accept(&listener), if connections.len() < bounds.connections_max => accepted,
        };
        let (stream, address) = match accepted {
            Ok((stream, address)) => (stream, address.ip().to_canonical()),
            Err(error) => {
                pause.note(&error);
                continue;
            }
        };
        pause = Pause::default();
        let Some(permit) = permits.take(address, &bounds) else {
            metrics.connections_refused.inc();
            tracing::debug!(peer = %address, "closed: too many connections from this address");
            continue;
        };
        let unread = Arc::new(AtomicBool::new(false));
        let socket = Socket::new(stream, bounds.request, bounds.body_bytes_per_s_min, unread.clone());
        let io = TokioIo::new(socket);
        let (service, bounds, counts) = (service.clone(), bounds.clone(), metrics.clone());
        let response = service_fn(move |request| {
            let (service, bounds, counts) = (service.clone(), bounds.clone(), counts.clone());
            layers::respond(service, bounds, counts, address, unread.clone(), request)
        });
        let connection = http.serve_connection(io, response);
        // Connections are notified in the order of their arrival, so that a simulated run can be repeated.
        let ending = Arc::clone(&ending).notified_owned();
        let open = Open::new(&metrics);
        connections.spawn(async move {
            let _held = (permit, open);
            if let Err(error) = until_ended(connection, ending).await {
                tracing::debug!(peer = %address, error = %error_chain(&error), "connection cut");
            }
        });
    }
    draining.set();
    drop(listener);
    ending.notify_waiters();
    drain(connections, bounds.drain).await
}

/// Serves a connection until it ends; closes it after the current request once `ending` completes.
async fn until_ended<I, S, B>(
    connection: http1::Connection<I, S>,
    ending: impl Future<Output = ()>,
) -> hyper::Result<()>
where
    I: Read + Write + Unpin,
    S: HttpService<Incoming, ResBody = B>,
    S::Error: Into<tower::BoxError>,
    B: Body + 'static,
    B::Error: Into<tower::BoxError>,
{
    let mut connection = pin!(connection);
    tokio::select! {
        biased;
        ended = connection.as_mut() => ended,
        () = ending => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    }
}

/// Lets connections finish for as long as `patience`, and aborts the others.
async fn drain(mut connections: JoinSet<()>, patience: Duration) -> Drained {
    let drained = async {
        while let Some(ended) = connections.join_next().await {
            note(ended);
        }
    };
    let _in_time = timeout(patience, drained).await;
    let cut = connections.len();
    connections.shutdown().await;
    Drained { cut }
}

fn note(ended: Result<(), JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "a connection panicked"); // a panic in a body that is produced while it is sent
    }
}

/// HTTP/1.1 with deadlines.
fn protocol(bounds: &Bounds) -> http1::Builder {
    let header_bytes_max = bounds.header_bytes_max.saturating_mul(HARD_LIMIT);
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        // It runs from the first wait for a request, so it ends silent and idle connections too.
        .header_read_timeout(bounds.header_read)
        .max_headers(bounds.headers_max.saturating_mul(HARD_LIMIT).min(u16::MAX.into()))
        .max_header_size(header_bytes_max)
        // The default buffer of 400 KB would take 1.6 GB for 4,096 connections.
        .max_buf_size(header_bytes_max.max(64 * 1024));
    http
}

/// The pause after a failed `accept`, for example for lack of file descriptors. Trying again at once would
/// spin; stopping the server for a temporary shortage would be worse.
#[derive(Default)]
struct Pause {
    length: Duration,
    until: Option<Instant>,
}

impl Pause {
    async fn then_accept<L: Listener>(&self, listener: &L) -> io::Result<(L::Stream, SocketAddr)> {
        if let Some(until) = self.until {
            sleep_until(until).await;
        }
        listener.accept().await
    }

    fn note(&mut self, error: &io::Error) {
        use io::ErrorKind::{ConnectionAborted, ConnectionReset};
        if matches!(error.kind(), ConnectionAborted | ConnectionReset) {
            return; // the client has disconnected; the next one may wait already
        }
        self.length = (self.length * 2).clamp(PAUSES.0, PAUSES.1);
        self.until = Some(Instant::now() + self.length);
        tracing::warn!(%error, pause_ms = self.length.as_millis(), "cannot accept connections");
    }
}

/// How many connections each address has open.
#[derive(Clone, Default)]
struct ConnectionPermits(Arc<Mutex<HashMap<IpAddr, usize>>>);

impl ConnectionPermits {
    /// A permit for a connection, unless its address has the maximum. A trusted proxy acts for many clients
    /// and needs none.
    fn take(&self, address: IpAddr, bounds: &Bounds) -> Option<ConnectionPermit> {
        let bucket = Peer(address).bucket();
        if bounds.trusts(address) {
            return Some(ConnectionPermit { permits: self.clone(), bucket: None });
        }
        let mut taken = self.0.lock();
        let count = taken.entry(bucket).or_default();
        if *count >= bounds.connections_per_address_max {
            return None;
        }
        *count += 1;
        Some(ConnectionPermit { permits: self.clone(), bucket: Some(bucket) })
    }
}

/// The permit of one connection, returned on drop.
struct ConnectionPermit {
    permits: ConnectionPermits,
    bucket: Option<IpAddr>,
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        let Some(bucket) = self.bucket else { return };
        let mut taken = self.permits.0.lock();
        if let Some(count) = taken.get_mut(&bucket) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&bucket);
            }
        }
    }
}

/// One connection, counted while it is open.
struct Open(Arc<Metrics>);

impl Open {
    fn new(metrics: &Arc<Metrics>) -> Self {
        metrics.connections.inc();
        Self(metrics.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.connections.dec();
    }
}

//! Ready bytes behind the server's own accept loop and layers: what HTTP alone costs.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::sync::Arc;

use bytes::Bytes;
use http::StatusCode;
use http::header::{CONTENT_TYPE, ETAG, HeaderValue};
use warp::Filter as _;
use warp::reply::Response as Answer;

use crate::Done;
use rollcall::cli::log_to_stderr;
use rollcall::config::Settings;
use rollcall::http::{Bounds, Draining, serve};

/// More bytes than a page of the manifest may have.
const BYTES_MAX: usize = 128 * 1024 * 1024;

/// Serves `/bytes/N`, N ready bytes, and `/unchanged`, a bare 304, until standard input ends.
pub fn run(log: String) -> Done {
    let mut settings = Settings { log, ..Settings::default() };
    settings.limits.connections_per_address_max = 4_096;
    let _log = log_to_stderr(&settings)?;
    // The parent process may have ended without notice.
    std::thread::spawn(|| {
        let _ = std::io::stdin().read(&mut [0]);
        std::process::exit(0);
    });
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let bounds = Arc::new(Bounds::from_settings(&settings)?);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        listener.set_nonblocking(true)?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let mut out = std::io::stdout();
        writeln!(out, "listening on http://{}", listener.local_addr()?)?;
        out.flush()?;
        let ready = Arc::new(parking_lot::Mutex::new(Bytes::new()));
        let of_size = warp::path!("bytes" / usize).map(move |size: usize| bytes(&ready, size));
        let unchanged = warp::path!("unchanged").map(unchanged);
        let filter = of_size.or(unchanged).unify().recover(|_| async {
            let mut answer = Answer::new(Bytes::new().into());
            *answer.status_mut() = StatusCode::NOT_FOUND;
            Ok::<_, std::convert::Infallible>(answer)
        });
        serve(listener, filter, bounds, Draining::default(), Arc::default(), std::future::pending()).await;
        Ok(())
    })
}

/// Ready from the first request of their size on.
fn bytes(ready: &parking_lot::Mutex<Bytes>, size: usize) -> Answer {
    let mut ready = ready.lock();
    if ready.len() < size {
        *ready = vec![b'x'; size.min(BYTES_MAX)].into();
    }
    let mut answer = Answer::new(ready.slice(..size.min(ready.len())).into());
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer
}

fn unchanged() -> Answer {
    let mut answer = Answer::new(Bytes::new().into());
    *answer.status_mut() = StatusCode::NOT_MODIFIED;
    answer.headers_mut().insert(ETAG, HeaderValue::from_static("W/\"1-0123456789abcdef\""));
    answer
}

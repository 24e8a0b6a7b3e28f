//! The handlers of the routes: each checks the request, takes the lease, calls the phase, and responds.

pub(super) mod accounts;
pub(crate) mod caller;
pub(super) mod changes;
pub(super) mod conflicts;
pub(super) mod console;
pub(crate) mod events;
pub(super) mod export;
pub(super) mod fetch;
pub(super) mod invitations;
pub(super) mod lock;
pub(super) mod owners;
mod owners_events;
mod patience;
mod public;
mod report;
pub(super) mod service;
pub(super) mod synchronise;

use std::sync::Arc;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use http::{Response, StatusCode};
use http_body::Body as _;
use serde::Serialize;
use tokio::time::{Duration, Instant};

use super::app::App;
use super::memory::Permit;
use super::problem::ApiError;
use super::{threads, timing};
use crate::accounts::Caller;
use crate::clock::Clock;
use crate::locks::{Lease, LockError, LockGuard, LockResult, Locks};
use crate::model::{Fence, Precision, Timestamp, Version};

pub(super) const SYNC_VERSION: HeaderName = HeaderName::from_static("sync-version");
pub(super) const SYNC_EPOCH: HeaderName = HeaderName::from_static("sync-epoch");
pub(super) const SYNC_LOCK: HeaderName = HeaderName::from_static("sync-lock");
pub(super) const SYNC_LOCK_EXPIRES: HeaderName = HeaderName::from_static("sync-lock-expires");
const PREFER: HeaderName = HeaderName::from_static("prefer");

pub(crate) type HandlerResult = Result<warp::reply::Response, ApiError>;

/// Runs blocking work off the reactor, in the request's tracing span.
///
/// The work continues if the client disconnects, so everything that it needs must be moved into it.
pub(crate) async fn off_reactor<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let span = tracing::Span::current();
    let begun = Instant::now();
    let ended = threads::spawn(move || span.in_scope(work)).await;
    timing::worked(begun);
    ended.unwrap_or_else(|panicked| Err(ApiError::Internal(Box::new(panicked))))
}

pub(crate) fn json(body: impl Serialize) -> HandlerResult {
    let body = serde_json::to_vec(&body).map_err(|error| ApiError::Internal(Box::new(error)))?;
    Ok(json_bytes(body))
}

pub(crate) fn json_bytes(body: impl Into<Bytes>) -> warp::reply::Response {
    let mut response = Response::new(body.into().into());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// Attaches the memory of a response until it is sent; the request's other memory is released.
///
/// Errors: 503 `busy` if the response was not reserved yet, and there is no room.
pub(crate) fn hold(mut response: warp::reply::Response, permit: Permit) -> HandlerResult {
    let bytes = response.body().size_hint().exact().and_then(|bytes| usize::try_from(bytes).ok());
    if let Some(bytes) = bytes.filter(|bytes| *bytes > 0) {
        permit.settle(bytes)?;
        response.extensions_mut().insert(permit);
    }
    Ok(response)
}

fn no_content() -> warp::reply::Response {
    let mut response = Response::new(Vec::new().into());
    *response.status_mut() = StatusCode::NO_CONTENT;
    response
}

/// The text of a time outside of rows, always in the same precision.
fn time_text(at: Timestamp) -> String {
    at.format(Precision::Milliseconds).to_string()
}

fn set_version_headers(headers: &mut HeaderMap, version: Version) {
    headers.insert(SYNC_VERSION, HeaderValue::from(version.0));
    headers.insert(SYNC_EPOCH, HeaderValue::from(version.epoch()));
}

fn set_lease_headers(headers: &mut HeaderMap, lease: &Lease) {
    headers.insert(SYNC_LOCK, HeaderValue::from(lease.fence.0));
    if let Ok(until) = HeaderValue::from_str(&time_text(lease.until)) {
        headers.insert(SYNC_LOCK_EXPIRES, until);
    }
}

/// Whether to hold a lease after the request, or only for its duration.
#[derive(Clone, Copy)]
enum Hold {
    Lease,
    Request,
}

/// Takes the lock for one request, and waits for it as long as the caller wants.
///
/// Errors: also 403 `not_a_member`, in place of any other, once the caller's membership has ended.
async fn lock_for_work(
    app: &Arc<App>,
    caller: &Caller,
    hold: Hold,
    fence: Option<Fence>,
    headers: &HeaderMap,
) -> Result<Box<dyn LockGuard>, ApiError> {
    let begun = Instant::now();
    let until = begun + preferred_wait(headers, app.settings.sync.lock_wait_max_s);
    loop {
        let who = caller.clone();
        let given = with_locks(app, move |locks| match hold {
            Hold::Lease => locks.take(&who, fence),
            Hold::Request => locks.enter(&who, fence),
        });
        let given = given.await?;
        if let Err(LockError::Busy(_)) = &given
            && Instant::now() < until
            && !app.draining.is_set()
        {
            // Waiting occupies neither a thread nor a database connection. An attempt costs a hash lookup, or
            // a query.
            let pause_ms = if app.locks.is_remote() { 75 + spread(app.clock.now(), 75) } else { 25 };
            tokio::time::sleep(Duration::from_millis(pause_ms)).await;
            continue;
        }
        timing::waited_for_lock(begun);
        let outcome = match &given {
            Ok(_) => Some("taken"),
            Err(LockError::Lost) => Some("lost"),
            Err(LockError::Busy(_)) => Some("busy"),
            Err(LockError::Storage(_)) => None,
        };
        outcome.inspect(|outcome| app.metrics.lock_waited(outcome, begun.elapsed()));
        let given = given.map_err(|error| refused(error, &app.clock));
        if given.is_err() && app.storage.known_state(caller.owner).is_none() {
            // The rights may be those of a while ago, and no transaction follows: a former member must not learn
            // which device holds the lock.
            let (app, caller) = (Arc::clone(app), caller.clone());
            off_reactor(move || app.with_rights(caller)).await?;
        }
        return given;
    }
}

/// A number below `most`, derived from the time, so that waiting requests do not all try at once. It is not
/// random, so that a simulated run can be repeated.
fn spread(at: Timestamp, most: u64) -> u64 {
    (at.ms().cast_unsigned().wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) % most
}

/// Uses the locks, off the reactor if they may wait for a database.
async fn with_locks<T: Send + 'static>(
    app: &Arc<App>,
    ask: impl FnOnce(Arc<dyn Locks>) -> LockResult<T> + Send + 'static,
) -> Result<LockResult<T>, ApiError> {
    let locks = Arc::clone(&app.locks);
    if locks.is_remote() { off_reactor(move || Ok(ask(locks))).await } else { Ok(ask(locks)) }
}

fn refused(error: LockError, clock: &Clock) -> ApiError {
    match error {
        LockError::Busy(lease) => busy(lease, clock),
        LockError::Lost => ApiError::LockLost,
        LockError::Storage(error) => error.into(),
    }
}

/// Failing to release the lock is only logged: the lease expires and the write stands.
fn ended(given_back: LockResult<()>) {
    if let Err(error) = given_back {
        tracing::warn!(%error, "could not end a lease");
    }
}

fn busy(lease: Lease, clock: &Clock) -> ApiError {
    let wait_ms = lease.ends.ms_since(clock.tick()).max(1).cast_unsigned();
    ApiError::SyncInProgress {
        holder: lease.device_name,
        since: lease.since,
        until: lease.until,
        retry_after_s: wait_ms.div_ceil(1_000),
    }
}

/// The fence in the request's headers.
fn fence(headers: &HeaderMap) -> Result<Option<Fence>, ApiError> {
    let mut given = headers.get_all(SYNC_LOCK).iter();
    let Some(value) = given.next() else { return Ok(None) };
    let number = value.to_str().ok().and_then(|text| text.parse().ok()).filter(|_| given.next().is_none());
    let reason = "Sync-Lock must be the number that came with the lock.";
    number.map(|number| Some(Fence(number))).ok_or_else(|| ApiError::InvalidRequest { reason: reason.into() })
}

/// Reads `Prefer: wait=5`, in seconds. An unknown preference is ignored; names are case-insensitive, and
/// values may be quoted (RFC 7240).
fn preferred_wait(headers: &HeaderMap, max_s: u64) -> Duration {
    let lines = headers.get_all(PREFER).iter().filter_map(|value| value.to_str().ok());
    let preferences = lines.flat_map(|line| line.split([',', ';'])).filter_map(|one| one.split_once('='));
    let wait =
        preferences.filter(|(name, _)| name.trim().eq_ignore_ascii_case("wait")).map(|(_, value)| value);
    let seconds = wait.filter_map(|value| value.trim().trim_matches('"').parse::<u64>().ok()).next();
    Duration::from_secs(seconds.unwrap_or(0).min(max_s))
}

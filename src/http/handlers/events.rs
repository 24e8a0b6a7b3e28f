use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, stream};
use http::Method;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use serde_json::json;
use tokio::time::{Instant, sleep_until};
use warp::reply::Reply;

use super::caller::{bearer, is_token_good};
use super::{ApiError, App, HandlerResult, off_reactor, owners_events, refused, time_text, with_locks};
use crate::accounts::Caller;
use crate::http::Unavailable;
use crate::http::events::{End, PendingEvents, Subscription};
use crate::locks::Lease;
use crate::model::{Fence, Owner, Version};

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// Some proxies buffer a response before they forward it; nginx and similar ones do not if this header is
/// set.
const X_ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// `GET /events`: reports changes of the owner's version and of the lock, or what moves of all owners of the user.
pub async fn events(
    app: Arc<App>,
    caller: Result<Caller, ApiError>,
    has_all: bool,
    headers: HeaderMap,
    method: Method,
) -> HandlerResult {
    let caller = caller?;
    let token = bearer(&headers)?.to_owned();
    if app.draining.is_set() {
        return Err(ApiError::Unavailable {
            code: Unavailable::ShuttingDown,
            reason: "The server is about to stop.",
            retry_after_s: 5,
        });
    }
    if method == Method::HEAD {
        return Ok(event_stream(stream::empty::<Result<Bytes, Infallible>>())); // a HEAD request replaces no listener
    }
    let seen = headers.get(LAST_EVENT_ID).and_then(|id| id.to_str().ok()).map(str::trim);
    if has_all {
        return owners_events::begin(app, caller, token, seen).await;
    }
    let seen = seen.and_then(|id| id.parse().ok());
    // The subscription comes first, then the present state is read: no event in between is missed.
    let subscription = app.events.listen(&caller)?;
    let version = version(&app, &caller).await?;
    let lock = holder(&app, caller.owner).await?;
    let period = Duration::from_secs(app.settings.limits.event_heartbeat_s.max(1));
    let listening = Listening {
        version,
        lock,
        lock_changes: 0,
        sent_version: seen.map(Version),
        sent_lock: None,
        beat: Instant::now() + period,
        period,
        over: false,
        app,
        caller,
        token,
        subscription,
    };
    let events = stream::unfold(listening, |mut listening| async move {
        let event = listening.next().await?;
        Some((Ok::<_, Infallible>(Bytes::from(event)), listening))
    });
    Ok(event_stream(events))
}

pub(super) fn event_stream(
    events: impl Stream<Item = Result<Bytes, Infallible>> + Send + Sync + 'static,
) -> warp::reply::Response {
    let mut response = warp::reply::stream(events).into_response();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_ACCEL_BUFFERING, HeaderValue::from_static("no"));
    response
}

/// The version of the caller's owner.
///
/// Errors: 403 `not_a_member`.
pub(crate) async fn version(app: &Arc<App>, caller: &Caller) -> Result<Version, ApiError> {
    if let Some(state) = app.storage.known_state(caller.owner)
        && caller.rights.hold_at(&state) == Some(true)
    {
        return Ok(state.version);
    }
    let (app, caller) = (Arc::clone(app), caller.clone());
    off_reactor(move || app.read_as(&caller, |_, sight| Ok(sight.state.version))).await
}

async fn holder(app: &Arc<App>, owner: Owner) -> Result<Option<Lease>, ApiError> {
    let held = with_locks(app, move |locks| locks.holder(owner)).await?;
    held.map_err(|error| refused(error, &app.clock))
}

/// One stream: the known state, and what of it was sent.
struct Listening {
    app: Arc<App>,
    caller: Caller,
    token: String,
    subscription: Subscription,
    version: Version,
    lock: Option<Lease>,
    /// The number of lock changes up to `lock`.
    lock_changes: u64,
    sent_version: Option<Version>,
    /// The fence of the last holder that was sent; the inner `None` means no holder.
    sent_lock: Option<Option<Fence>>,
    beat: Instant,
    period: Duration,
    over: bool,
}

impl Listening {
    /// The next part of the stream, once it is available; `None` after the last.
    async fn next(&mut self) -> Option<String> {
        while !self.over {
            if let Some(text) = self.pending() {
                return Some(text);
            }
            let lease_ends = self.lease_ends();
            let draining = self.app.draining.clone();
            tokio::select! {
                biased;
                () = draining.begun() => return Some(self.end(End::ShuttingDown)),
                () = self.subscription.changed() => {}
                () = sleep_until(self.beat) => {
                    self.beat = Instant::now() + self.period;
                    self.ask_again().await;
                    return Some(if is_token_good(&self.app, &self.token, &self.caller).await { ": heartbeat\n\n".into() } else { self.end(End::Unauthorized) });
                }
                // The expiry or renewal of a lease causes no event.
                () = sleep_until(lease_ends.unwrap_or(self.beat)), if lease_ends.is_some() => {
                    if let Ok(lock) = holder(&self.app, self.caller.owner).await
                        && self.subscription.pending().lock.0 == self.lock_changes
                    {
                        self.lock = lock;
                    }
                }
            }
        }
        None
    }

    /// The event to send now.
    fn pending(&mut self) -> Option<String> {
        let PendingEvents { version, lock: (lock_changes, lock), ended, .. } = self.subscription.pending();
        if let Some(end) = ended {
            return Some(self.end(end));
        }
        // The state that was read at the start may be newer than the first event.
        self.version = version.map_or(self.version, |version| version.max(self.version));
        if lock_changes > self.lock_changes {
            (self.lock_changes, self.lock) = (lock_changes, lock);
        }
        let mut text = String::new();
        if self.sent_version != Some(self.version) {
            self.sent_version = Some(self.version);
            let version = self.version;
            text = format!("event: version\nid: {version}\ndata: {{\"version\":{version}}}\n\n");
        }
        let fence = self.lock.as_ref().map(|lease| lease.fence);
        if self.sent_lock != Some(fence) {
            self.sent_lock = Some(fence);
            let data = match &self.lock {
                None => json!({ "held": false }),
                Some(lease) => json!({
                    "held": true,
                    "device_id": lease.device,
                    "device": lease.device_name,
                    "until": time_text(lease.until),
                }),
            };
            text.push_str(&format!("event: lock\ndata: {data}\n\n"));
        }
        (!text.is_empty()).then_some(text)
    }

    /// Reads the present state again where other servers write too: a server that stopped may have lost its
    /// events.
    async fn ask_again(&mut self) {
        let owner = self.caller.owner;
        if self.app.storage.known_state(owner).is_some() {
            return;
        }
        if let Ok(version) = version(&self.app, &self.caller).await {
            self.version = version.max(self.version);
        }
        if let Ok(lock) = holder(&self.app, owner).await
            && self.subscription.pending().lock.0 == self.lock_changes
        {
            self.lock = lock;
        }
    }

    /// When to check whether the known lease has expired.
    fn lease_ends(&self) -> Option<Instant> {
        let lease = self.lock.as_ref()?;
        let left = lease.ends.ms_since(self.app.clock.tick());
        // A request in progress holds the lock beyond its lease, so the check is repeated with a pause.
        Some(Instant::now() + Duration::from_millis(u64::try_from(left).unwrap_or(0).max(250)))
    }

    fn end(&mut self, end: End) -> String {
        self.over = true;
        end_event(end)
    }
}

/// The last event of a stream.
pub(super) fn end_event(end: End) -> String {
    let data = json!({ "code": end.code() });
    format!("event: end\ndata: {data}\n\n")
}

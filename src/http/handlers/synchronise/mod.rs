//! `POST /synchronise`, phase 2.
//!
//! From top to bottom: the request is read and takes the lock ([`SyncRequest`]). Its batch becomes a job for
//! the database ([`SyncJob`]). The job replies over a channel (`reply`), and its counts are added up
//! (`counts`).

mod counts;
mod idempotency;
mod job;
mod kept;
mod reply;

use std::sync::Arc;

use http::header::HeaderMap;
use tokio::time::Instant;
use tracing::Span;

use super::caller::set_installation_header;
use super::{
    ApiError, App, HandlerResult, Hold, ended, fence, hold, lock_for_work, off_reactor, report, timing,
};
use crate::accounts::Caller;
use crate::http::wire::{read_batch_within, rejection_body};
use crate::http::{BodyFault, Received, Unavailable, threads};
use crate::locks::{LockGuard, Unlocked};
use crate::model::{Fence, Timestamp};
use crate::schema::Schema;
use crate::storage::StorageError;
use crate::synchronise::Refusal;
pub use idempotency::idempotency_key;
use idempotency::{IdempotentRequest, replay};
use job::SyncJob;
use kept::is_without_rows;
use reply::{Ended, reply_channel};

/// Attempts at one request: its installation may have to be renamed, if copies of it use other servers at the
/// same time.
const ATTEMPTS_MAX: usize = 4;

/// `POST /synchronise`, phase 2.
pub async fn synchronise(
    app: Arc<App>,
    received: Timestamp,
    caller: Result<Caller, ApiError>,
    headers: HeaderMap,
    body: Result<Received, ApiError>,
) -> HandlerResult {
    let caller = caller?;
    let due = Instant::now() + app.bounds.request;
    let body = match body {
        Ok(body) => body,
        // The body is valid, but there is no memory for it: the client sends it again, and the sync
        // continues.
        Err(refusal @ ApiError::Unavailable { .. }) => return Err(refusal),
        Err(refusal) => return Err(end_sync(&app, &caller, &headers, refusal).await),
    };
    let idempotent = IdempotentRequest::read(&headers, &body.bytes)?;
    let fence = fence(&headers)?;
    let mut request = SyncRequest { app, received, due, caller, fence, idempotent, body };
    for _ in 0..ATTEMPTS_MAX {
        match request.attempt(&headers).await? {
            Ended::Response(mut response) => {
                set_installation_header(response.headers_mut(), request.caller.adopts());
                return hold(response, request.body.permit);
            }
            Ended::AsAnother(caller) => request.caller = *caller,
        }
    }
    Err(StorageError::Busy.into())
}

/// Ends the sync after a refused body, and so releases the device's lock.
async fn end_sync(app: &Arc<App>, caller: &Caller, headers: &HeaderMap, refusal: ApiError) -> ApiError {
    let fence = match fence(headers) {
        Ok(fence) => fence,
        Err(refusal) => return refusal,
    };
    if !caller.rights.may_write() {
        return refusal;
    }
    let lock = match lock_for_work(app, caller, Hold::Request, fence, headers).await {
        Ok(lock) => lock,
        Err(refusal) => return refusal,
    };
    let released = off_reactor(move || {
        ended(lock.end(false));
        Ok(())
    });
    released.await.err().unwrap_or(refusal)
}

/// What there is of an earlier sending of a request.
enum Replay {
    None,
    /// Its response, as it was.
    Response(warp::reply::Response),
    /// Its verdicts: the rows must be read again.
    Rows,
}

enum ReplayOrLock {
    Response(warp::reply::Response),
    /// `is_late`: the request names a hold of the lock that is over. A newer one is not its own.
    Lock {
        lock: Box<dyn LockGuard>,
        is_late: bool,
    },
}

/// A request whose body has arrived.
#[derive(Clone)]
struct SyncRequest {
    app: Arc<App>,
    received: Timestamp,
    /// The deadline of the request.
    due: Instant,
    caller: Caller,
    fence: Option<Fence>,
    idempotent: Option<IdempotentRequest>,
    /// The body, with the memory of the request.
    body: Received,
}

impl SyncRequest {
    /// Does the work as `caller`.
    async fn attempt(&self, headers: &HeaderMap) -> Result<Ended, ApiError> {
        let (lock, is_late) = match self.replay_or_lock(headers).await? {
            ReplayOrLock::Response(response) => return Ok(Ended::Response(response)),
            ReplayOrLock::Lock { lock, is_late } => (lock, is_late),
        };
        let (sender, receiver) = reply_channel();
        let is_short = self.body.bytes.len() <= report::SHORT_BYTES;
        let request = self.clone();
        let read = move || SyncJob::read(request, lock, is_late, sender);
        let begun = Instant::now();
        if is_short && !self.app.storage.enqueue_blocks() {
            match read() {
                Some(job) if job.is_small() => job.start(),
                Some(job) => spawn_blocking(move || job.start()),
                None => {}
            }
        } else {
            spawn_blocking(move || {
                if let Some(job) = read() {
                    job.start();
                }
            });
        }
        let ended = receiver.ended(&self.app, &self.caller, &self.body.permit).await;
        timing::worked(begun);
        ended
    }

    /// The response to an earlier sending of the request, or the lock for the work.
    async fn replay_or_lock(&self, headers: &HeaderMap) -> Result<ReplayOrLock, ApiError> {
        let mut fence = self.fence;
        let mut refused = None;
        loop {
            let replay = self.replayed().await?;
            match (replay, refused) {
                (Replay::Response(response), _) => return Ok(ReplayOrLock::Response(response)),
                (_, None) => {}
                // To read its rows again is a sync of its own: the first one released the lock that it names.
                (Replay::Rows, Some(_)) if fence.is_some() => fence = None,
                (_, Some(refusal)) => return Err(refusal),
            }
            let is_late = fence != self.fence;
            match self.lock(headers, fence).await {
                Ok(lock) => return Ok(ReplayOrLock::Lock { lock, is_late }),
                // The first sending may have ended meanwhile, and released the lock that this one names.
                Err(refusal) => refused = Some(refusal),
            }
        }
    }

    /// Enters the lock. Who may not write keeps no writer out, and waits for none.
    async fn lock(&self, headers: &HeaderMap, fence: Option<Fence>) -> Result<Box<dyn LockGuard>, ApiError> {
        if !self.caller.rights.may_write() {
            return Ok(Box::new(Unlocked));
        }
        lock_for_work(&self.app, &self.caller, Hold::Request, fence, headers).await
    }

    /// The response to an earlier sending of the request, if there was one. It ends the sync, as it did then.
    ///
    /// It needs no lock: that request released the lock of a device whose response was lost.
    async fn replayed(&self) -> Result<Replay, ApiError> {
        let Some(idempotent) = self.idempotent.clone() else { return Ok(Replay::None) };
        let Self { app, caller, fence, body, .. } = self.clone();
        off_reactor(move || {
            let look = |device, key: &str| app.storage.stored_response(caller.owner, device, key);
            let stored = idempotent.stored_response(look, &app, caller.may_have_sent())?;
            let Some(stored) = stored else { return Ok(Replay::None) };
            let rights = app.with_rights(caller.clone())?.rights; // no transaction follows which would check them
            if !rights.may_see_again(stored.version, &app.schema) {
                return Ok(Replay::None);
            }
            if is_without_rows(&stored.body) {
                return Ok(Replay::Rows);
            }
            body.permit.grow(stored.body.len())?;
            let batch = read_batch_within(&body.bytes, &app.schema, &app.settings.limits, &body.permit);
            let keeps_lock = batch.is_ok_and(|batch| batch.keep_lock);
            // A late copy of a request of an earlier sync must not end the present one.
            let newest = || app.locks.holder(caller.owner).ok().flatten().map(|lease| lease.fence);
            if !keeps_lock && (fence.is_none() || fence == newest()) {
                ended(app.locks.give_back(&caller));
            }
            Ok(Replay::Response(replay(stored)))
        })
        .await
    }
}

/// Runs blocking work that replies over its own channel.
fn spawn_blocking(work: impl FnOnce() + Send + 'static) {
    let span = Span::current();
    threads::spawn(move || span.in_scope(work));
}

pub(super) fn explain(refusal: Refusal, schema: &Schema) -> ApiError {
    match refusal {
        Refusal::BaseExpired(expired) => expired.into(),
        Refusal::MassDelete { table, deletes, rows, confirm, before } => {
            ApiError::MassDelete { table: schema.at(table).name.clone(), deletes, rows, confirm, before }
        }
        Refusal::Atomic(rejections) => {
            let bodies = rejections.iter().map(|rejected| {
                rejection_body(schema.at(rejected.table), rejected.part, rejected.index, &rejected.why)
            });
            ApiError::BatchRejected { rejections: bodies.collect() }
        }
        Refusal::TooHeavy(max) => {
            let reason = format!(
                "what this request makes the server load, keep and answer with takes more than {max} bytes: fewer rows at a time"
            );
            ApiError::InvalidBody { code: BodyFault::TooManyRows, at: String::new(), reason }
        }
        Refusal::TooManyRows(max) => ApiError::QuotaExceeded { what: "rows", max },
        Refusal::TooManyBytes(max) => ApiError::QuotaExceeded { what: "bytes", max },
        Refusal::PastFull(max) => {
            ApiError::QuotaExceeded { what: "conflicts and remembered deletions, in bytes,", max }
        }
        Refusal::NoMemory => ApiError::no_memory(),
        Refusal::Unwanted => ApiError::Unavailable {
            code: Unavailable::Timeout,
            reason: "The request took too long. Nothing of it was done.",
            retry_after_s: 1,
        },
        Refusal::Storage(error) => error.into(),
    }
}

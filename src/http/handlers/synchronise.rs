use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};
use tokio::sync::oneshot;
use tokio::time::Instant;
use tracing::Span;

use super::caller::tell_installation;
use super::patience::Patience;
use super::{
    Answer, ApiError, App, Hold, ended, fence, hold, json_bytes, lock_for_work, off_reactor, refused, report,
    tell_version, timing,
};
use crate::accounts::Caller;
use crate::accounts::installations::{self, Noted};
use crate::broken;
use crate::http::wire::{read_batch_within, rejection_body};
use crate::http::{BodyFault, Permit, Received, Unavailable, threads};
use crate::locks::Work;
use crate::model::{DeviceId, Timestamp, Version};
use crate::schema::{Schema, TableId};
use crate::storage::quota::RECORD_BYTES;
use crate::storage::{
    AnswersMax, GivenAnswer, Outcome, ReadTxn, StorageError, StorageResult, WriteJob, WriteTxn, not_run,
};
use crate::synchronise::{self, Batch, FORGOTTEN_MAX, Refusal, Report, StillWanted};

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const IDEMPOTENCY_REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");
const IDEMPOTENCY_KEY_BYTES_MAX: usize = 255;

/// `POST /synchronise`, phase 2.
pub async fn synchronise(
    app: Arc<App>,
    received: Timestamp,
    caller: Result<Caller, ApiError>,
    headers: HeaderMap,
    body: Result<Received, ApiError>,
) -> Answer {
    let mut caller = caller?;
    let due = Instant::now() + app.bounds.request;
    // Nothing is wrong with a body that there is no memory for: it comes again, and the sync goes on.
    let body = match body {
        Err(refusal @ ApiError::Unavailable { .. }) => return Err(refusal),
        body => body,
    };
    let once = Once::read(&headers, body.as_ref().ok())?;
    let same_body = body.as_ref().ok().cloned();
    let permit = same_body.as_ref().map(|body| body.permit.clone());
    let mut body = body;
    for _ in 0..BEGINNINGS_MAX {
        match attempt(&app, (received, due), &caller, &headers, once.clone(), body).await? {
            Ended::Answer(mut answer) => {
                tell_installation(answer.headers_mut(), caller.adopts());
                return match permit {
                    Some(permit) => hold(answer, permit),
                    None => Ok(answer),
                };
            }
            Ended::Other(other) => caller = *other,
        }
        match &same_body {
            Some(same) => body = Ok(same.clone()),
            None => break, // a body that is refused ends the request
        }
    }
    Err(StorageError::Busy.into())
}

/// Beginnings of one request: its installation may turn out to be another, as copies of it come in over other servers.
const BEGINNINGS_MAX: usize = 4;

/// What an attempt came to.
enum Ended {
    Answer(warp::reply::Response),
    /// Nothing: the caller is known as another installation by now.
    Other(Box<Caller>),
}

/// Does the work as that caller.
async fn attempt(
    app: &Arc<App>,
    times: (Timestamp, Instant),
    caller: &Caller,
    headers: &HeaderMap,
    once: Option<Once>,
    body: Result<Received, ApiError>,
) -> Result<Ended, ApiError> {
    if let Some(answer) = replayed(app, caller, headers, once.as_ref()).await? {
        return Ok(Ended::Answer(answer));
    }
    let work = match lock_for_work(app, caller, Hold::Request, fence(headers)?, headers).await {
        Ok(work) => work,
        // Its twin may have ended meanwhile, and given back the very lock that this one came under.
        Err(refusal) => {
            let replayed = replayed(app, caller, headers, once.as_ref()).await?;
            return replayed.map(Ended::Answer).ok_or(refusal);
        }
    };
    let (wire, listener) = Wire::new();
    let stays = !app.storage.enqueue_blocks()
        && body.as_ref().is_ok_and(|body| body.bytes.len() <= report::SHORT_BYTES);
    let permit = body.as_ref().map_or_else(|_| app.memory.permit(None), |body| body.permit.clone());
    let (reading, caller) = (Arc::clone(app), caller.clone());
    let read = move || Upload::read(reading, times, caller, once, work, body);
    let begun = Instant::now();
    if stays {
        let upload = read()?;
        if upload.is_small() { upload.go(wire) } else { off_duty(move || upload.go(wire)) }
    } else {
        off_duty(move || match read() {
            Ok(upload) => upload.go(wire),
            Err(refusal) => wire.end(Err(refusal)),
        });
    }
    let ended = listener.ended(app, &permit).await;
    timing::worked(begun);
    ended
}

/// Has blocking work done that says itself, over a wire, what came of it.
fn off_duty(work: impl FnOnce() + Send + 'static) {
    let span = Span::current();
    threads::spawn(move || span.in_scope(work));
}

/// A batch of so many rows is written quickly, so it may share a transaction: it waits in the writer's queue.
const SMALL_ROWS: usize = 100;

/// What a batch came to, for its client.
enum Told {
    /// The answer.
    Answer(warp::reply::Response),
    /// What the answer is to say.
    Report(Box<Report>),
    /// The same, shown before.
    Shown,
    /// Nothing: the caller is known as another installation by now.
    Other(Box<Caller>),
}

/// From the thread that writes to the task that answers.
struct Wire {
    /// Takes a large report before it is known whether the COMMIT succeeds: it is spelt while that is on its way.
    show: Option<oneshot::Sender<Box<Report>>>,
    tell: oneshot::Sender<Result<Told, ApiError>>,
}

/// The other end of a [`Wire`].
struct Listener {
    shown: oneshot::Receiver<Box<Report>>,
    told: oneshot::Receiver<Result<Told, ApiError>>,
}

impl Wire {
    fn new() -> (Self, Listener) {
        let ((show, shown), (tell, told)) = (oneshot::channel(), oneshot::channel());
        (Self { show: Some(show), tell }, Listener { shown, told })
    }

    fn end(self, told: Result<Told, ApiError>) {
        let _ = self.tell.send(told); // nobody hears it if the client has hung up
    }
}

impl Listener {
    async fn ended(self, app: &Arc<App>, permit: &Permit) -> Result<Ended, ApiError> {
        let spelt = match self.shown.await {
            Ok(report) => Some(spell(app, report, permit).await),
            Err(_) => None, // nothing is shown of this one
        };
        let told = self.told.await.unwrap_or_else(|dropped| Err(ApiError::Internal(Box::new(dropped))));
        let answer = match told? {
            Told::Other(other) => return Ok(Ended::Other(other)),
            Told::Answer(answer) => answer,
            Told::Report(report) => spell(app, report, permit).await?,
            Told::Shown => spelt.unwrap_or_else(|| Err(not_run().into()))?,
        };
        Ok(Ended::Answer(answer))
    }
}

/// A batch on its way into the database.
struct Upload {
    app: Arc<App>,
    received: Timestamp,
    /// When the time of the request is over.
    due: Instant,
    caller: Caller,
    once: Option<Once>,
    batch: Batch,
    /// The memory of the request.
    permit: Permit,
    /// What body and batch take of it.
    drawn: usize,
    /// Held until it is known what became of the batch, whether or not the client is still there.
    work: Box<dyn Work>,
    goes_on: bool,
    span: Span,
}

impl Upload {
    /// Reads the batch. A body that is refused ends the sync.
    fn read(
        app: Arc<App>,
        (received, due): (Timestamp, Instant),
        caller: Caller,
        once: Option<Once>,
        work: Box<dyn Work>,
        body: Result<Received, ApiError>,
    ) -> Result<Self, ApiError> {
        let read = |body: Received| {
            let batch = read_batch_within(&body.bytes, &app.schema, &app.settings.limits, &body.permit)?;
            Ok((batch, body.permit))
        };
        let (batch, permit) = body.and_then(read).inspect_err(|_| ended(work.end(false)))?;
        // It ends the sync even where it is refused, unless it says, in so many words, that it does not.
        let goes_on = batch.keep_lock || (batch.dry_run && work.had_lock());
        let drawn = permit.bytes();
        let span = Span::current();
        Ok(Self { app, received, due, caller, once, batch, permit, drawn, work, goes_on, span })
    }

    fn is_small(&self) -> bool {
        self.batch.rows() <= SMALL_ROWS
    }

    /// Has the batch written; waits for that unless it is small.
    fn go(self, mut wire: Wire) {
        let (storage, owner, is_small) = (Arc::clone(&self.app.storage), self.caller.owner, self.is_small());
        if is_small {
            wire.show = None; // one word is enough
        }
        let mut sent = Box::new(Sent { upload: self, wire, outcome: None });
        if is_small {
            storage.enqueue_write(owner, sent);
        } else {
            let how = storage.run_write(owner, &mut |txn| sent.run(txn));
            sent.finish(how);
        }
    }

    /// What it comes to, and what is to be counted once that is safe.
    fn apply(&self, txn: &mut dyn WriteTxn, wanted: &dyn StillWanted) -> Result<(Told, Counts), ApiError> {
        let Self { app, received, caller, once, batch, permit, work, .. } = self;
        let devices_max = app.settings.limits.devices_per_user_max;
        let forgotten = match installations::note(txn, caller, devices_max, app.clock.now())? {
            Noted::Well(forgotten) => forgotten,
            Noted::Other(other) => return Ok((Told::Other(other), Counts::default())),
        };
        if let Some(once) = once {
            // Its twin may have come first.
            let senders = caller.may_have_sent().chain(caller.may_be_copied_from(txn)?);
            if let Some(given) = once.given(txn, app, senders)? {
                return Ok((Told::Answer(replay(given)), Counts { forgotten, ..Counts::default() }));
            }
        }
        permit.settle(self.drawn)?; // the job may be run again
        let terms = app.terms(caller.device, *received);
        let report = synchronise::run_while(wanted, txn, &app.schema, batch, &terms)
            .map_err(|refusal| explain(refusal, &app.schema))?;
        report::bound_length(&app.schema, &report, &app.settings)?;
        // What was loaded is gone. The report is there as rows and as JSON; without room for both nothing is written.
        permit.settle(self.drawn + 2 * report.weight())?;
        let counts = Counts { forgotten, ..Counts::of(&report) };
        let told = match once {
            Some(once) => {
                let body = report::write(&app.schema, &report, permit)?;
                once.keep(txn, app, caller, &body, report.current)?;
                Told::Answer(told(body, report.current))
            }
            None => Told::Report(Box::new(report)),
        };
        work.confirm(txn.lease()).map_err(|error| refused(error, &app.clock))?;
        app.acks.note(&caller.noted(), batch.base, terms.now);
        Ok((told, counts))
    }
}

/// A batch that is being written, and the way back.
struct Sent {
    upload: Upload,
    wire: Wire,
    outcome: Option<Result<(Told, Counts), ApiError>>,
}

/// Work that goes on while it is wanted, in the memory of its request.
struct Within<'a, F> {
    is_wanted: F,
    permit: &'a Permit,
}

impl<F: Fn() -> bool> StillWanted for Within<'_, F> {
    fn still_wanted(&self) -> bool {
        (self.is_wanted)()
    }

    fn may_hold(&self, bytes: usize) -> bool {
        self.permit.grow(bytes).is_ok()
    }
}

impl WriteJob for Sent {
    fn run(&mut self, txn: &mut dyn WriteTxn) -> StorageResult<Outcome> {
        let upload = &self.upload;
        // The other end of the channel is dropped when the client hangs up, and when the time of its request is over.
        let patience = Patience::begin(upload.due);
        let is_wanted = || patience.lasts(self.wire.tell.is_closed());
        let wanted = Within { is_wanted, permit: &upload.permit };
        let mut outcome = upload.span.in_scope(|| upload.apply(txn, &wanted));
        // The last is a fault: the commit never comes, as if the server had died before.
        let is_other = matches!(outcome, Ok((Told::Other(_), _)));
        let is_kept =
            outcome.is_ok() && !is_other && !upload.batch.dry_run && !broken::is("answer_before_commit");
        if let Ok((told @ Told::Report(_), _)) = &mut outcome
            && let Some(show) = self.wire.show.take()
            && let Told::Report(report) = std::mem::replace(told, Told::Shown)
        {
            let _ = show.send(report); // should it be run again, that one is not shown
        }
        self.outcome = Some(outcome);
        Ok(if is_kept { Outcome::Commit } else { Outcome::Rollback })
    }

    fn finish(self: Box<Self>, how: StorageResult<()>) {
        let Self { upload, wire, outcome } = *self;
        let Upload { app, caller, batch, permit: _permit, work, mut goes_on, span, .. } = upload;
        let _entered = span.enter();
        let told = how.map_err(ApiError::from).and_then(|()| {
            let (told, counts) = outcome.unwrap_or_else(|| Err(ApiError::from(not_run())))?;
            if matches!(told, Told::Other(_)) {
                goes_on = work.had_lock(); // which is the other's to give back
            } else if !batch.dry_run {
                app.note_installation(&caller, &counts.forgotten);
                counts.add_to(&app);
            }
            Ok(told)
        });
        ended(work.end(goes_on));
        drop(work); // the answer may bring the owner's next request at once
        wire.end(told);
    }
}

/// The answer that was given to an earlier sending, if it was; with it the sync ends, as it did then.
///
/// It needs no lock: a device whose answer was lost has given the lock back by that very request.
async fn replayed(
    app: &Arc<App>,
    caller: &Caller,
    headers: &HeaderMap,
    once: Option<&Once>,
) -> Result<Option<warp::reply::Response>, ApiError> {
    let Some(once) = once.cloned() else { return Ok(None) };
    let (app, caller, fence) = (Arc::clone(app), caller.clone(), fence(headers)?);
    off_reactor(move || {
        let given = app.storage.read(caller.owner, |txn| once.given(txn, &app, caller.may_have_sent()))?;
        let Some(given) = given else { return Ok(None) };
        once.permit.grow(given.body.len())?;
        let batch = read_batch_within(&once.body, &app.schema, &app.settings.limits, &once.permit);
        let ends = !batch.is_ok_and(|batch| batch.keep_lock);
        // A late copy of a request of an earlier sync must not end this one.
        let newest = || app.locks.holder(caller.owner).ok().flatten().map(|lease| lease.fence);
        if ends && (fence.is_none() || fence == newest()) {
            ended(app.locks.give_back(&caller));
        }
        Ok(Some(replay(given)))
    })
    .await
}

/// How many rows got which verdict, by which tables' conflicts somebody lost, how many rows the feed returned and how many
/// entries it looked at for them.
#[derive(Default)]
struct Counts {
    verdicts: BTreeMap<&'static str, u64>,
    conflicts: Vec<TableId>,
    feed: (u64, u64),
    /// Devices that hold nothing back any more.
    forgotten: Vec<DeviceId>,
}

impl Counts {
    fn of(report: &Report) -> Self {
        let (mut counts, mut noted) = (Self::default(), HashSet::new());
        for (table, told) in [&report.add, &report.update, &report.delete].into_iter().flatten() {
            for told in told {
                *counts.verdicts.entry(told.verdict().name()).or_default() += 1;
                let conflict = told.settled().and_then(|told| told.conflict);
                counts.conflicts.extend(conflict.filter(|id| noted.insert(*id)).map(|_| *table));
            }
        }
        let feed = report.changes.as_ref();
        counts.feed = feed.map_or((0, 0), |changes| (changes.rows.len() as u64, changes.looked as u64));
        counts
    }

    fn add_to(self, app: &App) {
        for (verdict, rows) in self.verdicts {
            app.metrics.settled(verdict, rows);
        }
        for table in self.conflicts {
            let table = app.schema.at(table);
            app.metrics.conflicted(&table.name, table.policy.name());
        }
        app.metrics.fed(self.feed.0, self.feed.1);
    }
}

/// A request that must have one effect however often it comes.
#[derive(Clone)]
struct Once {
    key: String,
    body: Bytes,
    body_hash: [u8; 32],
    /// The memory of the request.
    permit: Permit,
}

impl Once {
    fn read(headers: &HeaderMap, body: Option<&Received>) -> Result<Option<Self>, ApiError> {
        let (Some(value), Some(body)) = (headers.get(IDEMPOTENCY_KEY), body) else { return Ok(None) };
        let is_key = |key: &&str| {
            (1..=IDEMPOTENCY_KEY_BYTES_MAX).contains(&key.len())
                && key.bytes().all(|byte| byte.is_ascii_graphic())
        };
        let reason =
            format!("Idempotency-Key must be 1 to {IDEMPOTENCY_KEY_BYTES_MAX} visible ASCII characters.");
        let key = value.to_str().ok().filter(is_key).ok_or(ApiError::InvalidRequest { reason })?.to_owned();
        let Received { bytes, permit } = body.clone();
        let body_hash = fingerprint(&bytes);
        Ok(Some(Self { key, body: bytes, body_hash, permit }))
    }

    /// The answer that was given to any of these devices before, if it was.
    fn given<T: ReadTxn + ?Sized>(
        &self,
        txn: &mut T,
        app: &App,
        senders: impl Iterator<Item = DeviceId>,
    ) -> Result<Option<GivenAnswer>, ApiError> {
        let mut given = None;
        for device in senders {
            given = given.map_or_else(|| txn.given_answer(device, &self.key), |given| Ok(Some(given)))?;
        }
        let born_after = forgotten_before(app);
        match given.filter(|given| given.at > born_after && !broken::is("replay_applied_twice")) {
            Some(given) if given.body_hash != self.body_hash => Err(ApiError::IdempotencyKeyReused),
            given => Ok(given),
        }
    }

    fn keep(
        &self,
        txn: &mut dyn WriteTxn,
        app: &App,
        caller: &Caller,
        body: &[u8],
        version: Version,
    ) -> Result<(), ApiError> {
        let answer =
            GivenAnswer { body_hash: self.body_hash, body: body.to_vec(), version, at: app.clock.now() };
        let sync = &app.settings.sync;
        // If there is too little room all the same, this answer is kept: a request under its key has one effect.
        let bytes = RECORD_BYTES + (body.len() + self.key.len()) as u64;
        txn.make_room(bytes, app.settings.limits.owner_past_bytes_max, FORGOTTEN_MAX)?;
        let most = AnswersMax { answers: sync.idempotency_keys_max, bytes: sync.idempotency_bytes_max };
        Ok(txn.keep_answer(caller.device, &self.key, &answer, most)?)
    }
}

/// What makes two bodies the same request: everything but when they were sent. A device that repeats a request
/// tells its clock anew, or what it waited in between would pass for an error of its clock.
fn fingerprint(body: &[u8]) -> [u8; 32] {
    let mut hash = Sha256::new();
    match serde_json::from_slice::<BTreeMap<Cow<'_, str>, &RawValue>>(body) {
        Ok(members) => {
            for (name, value) in members.iter().filter(|(name, _)| *name != "sent_at") {
                hash.update(name.as_bytes());
                hash.update([0]); // no name of the contract holds it
                hash.update(value.get());
                hash.update([0]);
            }
        }
        Err(_) => hash.update(body),
    }
    hash.finalize().into()
}

/// Answers given before then are no longer known.
fn forgotten_before(app: &App) -> Timestamp {
    let hours = i64::from(app.settings.sync.idempotency_hours);
    app.clock.now().shifted(-hours * 3_600_000)
}

fn replay(given: GivenAnswer) -> warp::reply::Response {
    let mut answer = told(given.body, given.version);
    answer.headers_mut().insert(IDEMPOTENCY_REPLAYED, HeaderValue::from_static("true"));
    answer
}

fn told(body: Vec<u8>, version: Version) -> warp::reply::Response {
    let mut answer = json_bytes(body);
    tell_version(answer.headers_mut(), version);
    answer
}

async fn spell(app: &Arc<App>, report: Box<Report>, permit: &Permit) -> Answer {
    let version = report.current;
    Ok(told(report::write_later(app, report, permit).await?, version))
}

pub(super) fn explain(refusal: Refusal, schema: &Schema) -> ApiError {
    match refusal {
        Refusal::BaseExpired(expired) => expired.into(),
        Refusal::MassDelete { table, deletes, rows, confirm, before } => {
            ApiError::MassDelete { table: schema.at(table).name.clone(), deletes, rows, confirm, before }
        }
        Refusal::Atomic(rejections) => {
            let told = rejections.iter().map(|rejected| {
                rejection_body(schema.at(rejected.table), rejected.part, rejected.place, &rejected.why)
            });
            ApiError::BatchRejected { rejections: told.collect() }
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

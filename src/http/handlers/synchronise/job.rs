use std::sync::Arc;

use tracing::Span;

use super::super::patience::Patience;
use super::super::{ended, refused, report};
use super::counts::Counts;
use super::idempotency::replay;
use super::kept::{Kept, is_without_rows, kept_form};
use super::reply::{ReplySender, SyncResponse};
use super::{SyncRequest, explain};
use crate::accounts::Caller;
use crate::accounts::installations::{self, CounterOutcome};
use crate::accounts::rights::Rights;
use crate::broken;
use crate::http::Permit;
use crate::http::problem::ApiError;
use crate::http::wire::read_batch_within;
use crate::locks::LockGuard;
use crate::storage::{Outcome, StorageResult, StoredResponse, WriteJob, WriteTxn, not_run};
use crate::synchronise::{self, Batch, Report, StillWanted, Terms};

/// A batch of at most this many rows is written quickly, so it is queued and may share a transaction.
const SMALL_ROWS: usize = 100;

/// A batch for the writer thread, and the channel to its client.
pub(super) struct SyncJob {
    request: SyncRequest,
    batch: Batch,
    /// The memory of body and batch, bytes.
    drawn: usize,
    /// Held until the result of the batch is known, whether or not the client still waits.
    lock: Box<dyn LockGuard>,
    keeps_lock: bool,
    span: Span,
    reply: ReplySender,
    /// Whether the report may be sent before the COMMIT. A small one is not: two messages take longer than
    /// one.
    may_preview: bool,
    /// The result of the last run.
    outcome: Option<Result<(SyncResponse, Counts), ApiError>>,
}

impl SyncJob {
    /// Reads the batch. A refused body ends the sync, and the response is sent at once.
    ///
    /// `is_late`: the device may have begun another sync since, whose lock it keeps.
    pub fn read(
        request: SyncRequest,
        lock: Box<dyn LockGuard>,
        is_late: bool,
        reply: ReplySender,
    ) -> Option<Self> {
        let (app, body) = (&request.app, &request.body);
        let batch = match read_batch_within(&body.bytes, &app.schema, &app.settings.limits, &body.permit) {
            Ok(batch) => batch,
            Err(refusal) => {
                ended(lock.end(false));
                drop(lock); // the response may be followed at once by the owner's next request
                reply.end(Err(refusal));
                return None;
            }
        };
        // A refused request releases the lock too, unless `keep_lock` is set.
        let keeps_lock = batch.keep_lock || ((batch.dry_run || is_late) && lock.had_lock());
        let (drawn, span) = (body.permit.bytes(), Span::current());
        let may_preview = batch.rows() > SMALL_ROWS;
        Some(Self { request, batch, drawn, lock, keeps_lock, span, reply, may_preview, outcome: None })
    }

    pub fn is_small(&self) -> bool {
        self.batch.rows() <= SMALL_ROWS
    }

    /// Queues a small batch; writes a large one on this thread.
    pub fn start(self) {
        let (storage, owner) = (Arc::clone(&self.request.app.storage), self.request.caller.owner);
        let is_small = self.is_small();
        let mut job = Box::new(self);
        if is_small {
            storage.enqueue_write(owner, job);
        } else {
            let result = storage.run_write(owner, &mut |txn| job.run(txn));
            job.finish(result);
        }
    }

    /// Does the work. Returns the response, and the counts for after the commit.
    fn apply(
        &self,
        txn: &mut dyn WriteTxn,
        wanted: &dyn StillWanted,
    ) -> Result<(SyncResponse, Counts), ApiError> {
        let SyncRequest { app, received, caller, idempotent, .. } = &self.request;
        let rights = app.rights(caller, txn)?;
        if rights.may_write() != caller.rights.may_write() {
            // The lock was entered, or not, by an earlier role.
            return Ok((
                SyncResponse::AsAnother(Box::new(Caller { rights, ..caller.clone() })),
                Counts::default(),
            ));
        }
        let devices_max = app.settings.limits.devices_per_user_max;
        let forgotten = match installations::note(txn, caller, devices_max, app.clock.now())? {
            CounterOutcome::Well(forgotten) => forgotten,
            CounterOutcome::Other(other) => {
                return Ok((SyncResponse::AsAnother(other), Counts::default()));
            }
        };
        let terms = app.terms(caller.device, rights, *received);
        if let Some(stored) = self.response_of_twin(txn, &rights)? {
            let stored = self.complete(txn, wanted, &terms, stored)?;
            return Ok((SyncResponse::Whole(replay(stored)), Counts::of_replay(forgotten)));
        }
        let report = self.synchronise(txn, wanted, &terms, &self.batch)?;
        let counts = Counts::of(&report, forgotten);
        let response = match idempotent {
            None => SyncResponse::Report(Box::new(report)),
            Some(idempotent) => {
                let body = report::write(&app.schema, caller.other_owner(), &report, self.permit())?;
                let kept = kept_form(&app.schema, &report, &body, self.request.body.bytes.len())?;
                idempotent.store_response(txn, app, caller, kept, report.current)?;
                SyncResponse::Whole(super::reply::report_response(body, report.current))
            }
        };
        self.lock.confirm(txn.lease()).map_err(|error| refused(error, &app.clock))?;
        app.acks.note(&caller.noted(), self.batch.base, terms.now);
        Ok((response, counts))
    }

    /// Adds to a kept response the rows that were left out, as they are now. It reads as any batch does, so the server
    /// notes which rows the device knows.
    fn complete(
        &self,
        txn: &mut dyn WriteTxn,
        wanted: &dyn StillWanted,
        terms: &Terms,
        stored: StoredResponse,
    ) -> Result<StoredResponse, ApiError> {
        if !is_without_rows(&stored.body) {
            return Ok(stored);
        }
        let SyncRequest { app, caller, .. } = &self.request;
        let kept = Kept::read(&stored.body)?;
        let batch = self.batch.reading_again(kept.keys(&app.schema));
        let report = self.synchronise(txn, wanted, terms, &batch)?;
        let fresh = report::write(&app.schema, caller.other_owner(), &report, self.permit())?;
        let body = kept.completed(&fresh, self.permit())?;
        self.lock.confirm(txn.lease()).map_err(|error| refused(error, &app.clock))?;
        app.acks.note(&caller.noted(), self.batch.base, terms.now);
        Ok(StoredResponse { body, version: report.current, ..stored })
    }

    /// The response to the same request, if it was sent before.
    fn response_of_twin(
        &self,
        txn: &mut dyn WriteTxn,
        rights: &Rights,
    ) -> Result<Option<StoredResponse>, ApiError> {
        let SyncRequest { app, caller, idempotent, .. } = &self.request;
        let Some(idempotent) = idempotent else { return Ok(None) };
        let senders = caller.may_have_sent().chain(caller.may_be_copied_from(txn)?);
        let stored =
            idempotent.stored_response(|device, key| txn.stored_response(device, key), app, senders)?;
        Ok(stored.filter(|stored| rights.may_see_again(stored.version, &app.schema)))
    }

    /// Runs phase 2 within the request's memory. Nothing is written if the response would be too long.
    fn synchronise(
        &self,
        txn: &mut dyn WriteTxn,
        wanted: &dyn StillWanted,
        terms: &Terms,
        batch: &Batch,
    ) -> Result<Report, ApiError> {
        let SyncRequest { app, caller, .. } = &self.request;
        self.permit().settle(self.drawn)?; // the job may run again
        let report = synchronise::run_while(wanted, txn, &app.schema, batch, terms)
            .map_err(|refusal| explain(refusal, &app.schema))?;
        report::bound_length(&app.schema, caller.other_owner(), &report, &app.settings)?;
        // The memory of loaded rows is freed. The report is needed as rows and as JSON: without room for both
        // nothing is written.
        self.permit().settle(self.drawn + 2 * report.weight())?;
        Ok(report)
    }

    fn permit(&self) -> &Permit {
        &self.request.body.permit
    }

    /// Sends the report before the COMMIT, once. If the job runs again, its end sends another report.
    fn preview(&mut self, response: SyncResponse) -> SyncResponse {
        match response {
            SyncResponse::Report(report) if std::mem::take(&mut self.may_preview) => {
                self.reply.preview(report);
                SyncResponse::Previewed
            }
            response => response,
        }
    }
}

impl WriteJob for SyncJob {
    fn run(&mut self, txn: &mut dyn WriteTxn) -> StorageResult<Outcome> {
        let patience = Patience::begin(self.request.due);
        let is_wanted = || patience.lasts(self.reply.is_closed());
        let wanted = Within { is_wanted, permit: self.permit() };
        let outcome = self.span.in_scope(|| self.apply(txn, &wanted));
        let is_done =
            outcome.as_ref().is_ok_and(|(response, _)| !matches!(response, SyncResponse::AsAnother(_)));
        // `answer_before_commit` is an injected fault: respond, then roll back.
        let commits = is_done && !self.batch.dry_run && !broken::is("answer_before_commit");
        self.outcome = Some(outcome.map(|(response, counts)| (self.preview(response), counts)));
        Ok(if commits { Outcome::Commit } else { Outcome::Rollback })
    }

    fn finish(self: Box<Self>, result: StorageResult<()>) {
        let Self { request, batch, lock, mut keeps_lock, span, reply, outcome, .. } = *self;
        let _entered = span.enter();
        let response = result.map_err(ApiError::from).and_then(|()| {
            let (response, counts) = outcome.unwrap_or_else(|| Err(ApiError::from(not_run())))?;
            if matches!(response, SyncResponse::AsAnother(_)) {
                keeps_lock = lock.had_lock(); // the other installation releases it
            } else if !batch.dry_run {
                request.app.note_installation(&request.caller, &counts.forgotten);
                counts.add_to(&request.app);
            }
            Ok(response)
        });
        ended(lock.end(keeps_lock));
        drop(lock); // the response may be followed at once by the owner's next request
        reply.end(response);
    }
}

/// Checks whether work is still wanted, and reserves memory of its request.
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

//! Sends what waits, request by request, and handles refusals.

use std::collections::VecDeque;

use uuid::Uuid;

use super::batch::{Queue, RequestOptions};
use super::calls::{CallError, Problem};
use super::decide::{CursorEvent, RetryWhen};
use super::responses;
use super::row::Row;
use super::store::{Outstanding, names};
use super::sync::{Progress, SyncError, Syncing};
use rollcall_core::model::{RowKey, Version};
use rollcall_core::schema::{Schema, Table, TableId};

/// What a push is part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PushMode {
    /// The sync by manifest: the copy is complete once the last missing row has arrived.
    Manifest,
    /// The sync by cursor: the last request fetches the other changes.
    Pull,
    /// What is left after either.
    Nothing,
}

impl Syncing<'_> {
    /// Sends a queue, request by request; each response is applied before the next request. Returns the last
    /// `version`.
    pub(super) fn push(
        &mut self,
        mut queue: Queue,
        mut base: Option<Version>,
        mut fence: Option<&str>,
        mode: PushMode,
    ) -> Result<Version, SyncError> {
        let mut confirm_deletes = None;
        loop {
            let terms = RequestOptions { base, pull: mode == PushMode::Pull, confirm_deletes };
            let sending = self.store.next_request(&mut queue, &self.limits, &terms)?;
            let (sending, report) = match self.send(&sending, fence) {
                Ok(answered) => answered,
                Err(SyncError::Call(CallError::Refused(problem))) => {
                    confirm_deletes = self.agreed_to(&problem);
                    match confirm_deletes {
                        Some(_) => queue.put_back(self.store.schema(), &sending),
                        None => self.mend(&mut queue, &sending, *problem)?,
                    }
                    // The refused request released the lock. The next one takes it again; `base` and each
                    // row's `_base` tell the server what this device has seen, whichever device wrote in
                    // between.
                    fence = None;
                    continue;
                }
                Err(error) => return Err(error),
            };
            confirm_deletes = None;
            let (version, digests) = (report.version, report.digests.clone());
            self.hold_back(&sending, &report);
            let mut settling = self.store.settling(&mut self.report.tally, self.calls.server_facts())?;
            let changes = settling.report(&sending, report)?;
            if changes.is_none() {
                let complete = base.is_some() && (mode != PushMode::Manifest || queue.is_empty());
                settling.move_cursor(CursorEvent::Pushed { version, complete })?;
            }
            digests.iter().try_for_each(|digests| settling.know(digests.as_of))?;
            settling.commit()?;
            self.calls.applied();
            (self.progress)(Progress::Left(queue.rows.len(), queue.gets.len()));
            self.proof = digests.or(self.proof.take());
            base = base.map(|_| version);
            if let Some(page) = changes {
                self.pages(page, false)?;
            }
            if queue.is_empty() {
                return Ok(version);
            }
        }
    }

    /// The number that confirms a refused deletion, if the user has agreed to as many.
    fn agreed_to(&mut self, problem: &Problem) -> Option<u64> {
        let named = problem.confirm_deletes.filter(|_| problem.code == "mass_delete")?;
        self.agreed = self.agreed.checked_sub(named)?;
        Some(named)
    }

    /// Sends one request until it succeeds. A refusal means that nothing was written: the request is given
    /// up. After any other error it stays outstanding, to be sent again.
    pub(super) fn send(
        &mut self,
        sending: &Outstanding,
        fence: Option<&str>,
    ) -> Result<(Outstanding, responses::Report), SyncError> {
        let mut sending = sending.clone();
        for _ in 0..2 {
            let (store, clock) = (&*self.store, self.store.clock());
            let mut kept = Ok(());
            let response = self.calls.synchronise(sending.key, fence, || {
                let body = sending.stamp(clock.now());
                kept = std::mem::replace(&mut kept, Ok(())).and_then(|()| store.send_next(&sending));
                body
            });
            kept?;
            match response {
                Ok(report) => return Ok((sending, report)),
                Err(error) if error.code() == "idempotency_key_reused" => {
                    if let Some(report) = self.stored_report(&sending)? {
                        return Ok((sending, report));
                    }
                    // It was answered, but the response is lost for good. A new request shows what is new:
                    // rows that the server has are `same`.
                    sending = Outstanding { key: Uuid::now_v7(), stamps: Vec::new(), ..sending };
                }
                Err(CallError::Refused(problem)) => {
                    let undecided = matches!(problem.status, 401 | 403 | 423 | 429 | 500 | 502..=504)
                        || problem.code == "other_user";
                    if !undecided {
                        self.store.give_up()?;
                    }
                    return Err(CallError::Refused(problem).into());
                }
                Err(error) => return Err(error.into()),
            }
        }
        Err(SyncError::Restless)
    }

    /// The server's stored response to an earlier sending. That sending has arrived, so the clock is no
    /// longer measured by it.
    fn stored_report(&mut self, sending: &Outstanding) -> Result<Option<responses::Report>, SyncError> {
        let last = sending.stamps.len().saturating_sub(1);
        for place in (0..last).rev() {
            match self.calls.synchronise(sending.key, None, || sending.stamped(place)) {
                Err(error) if error.code() == "idempotency_key_reused" => {}
                response => return Ok(Some(response?)),
            }
        }
        Ok(None)
    }

    /// Reacts to a refused request: sends it without the row at fault, or in smaller parts. A row that no
    /// server accepts must not block the others.
    fn mend(&mut self, queue: &mut Queue, sending: &Outstanding, problem: Problem) -> Result<(), SyncError> {
        let halved = |max: &mut usize| {
            *max /= 2;
            *max > 0
        };
        let limits = &mut self.limits;
        let is_too_large = problem.code == "body_too_large" || problem.status == 408;
        let smaller = if problem.code == "too_many_rows" {
            halved(&mut limits.rows_max) && halved(&mut limits.get_keys_max)
        } else if is_too_large && sending.sent.len() != 1 {
            // A connection may be so slow that half of the limit is still far too much.
            let sent = serde_json::to_vec(&sending.body).map_or(usize::MAX, |body| body.len());
            limits.body_bytes_max = limits.body_bytes_max.min(sent);
            halved(&mut limits.body_bytes_max)
        } else {
            false
        };
        if smaller {
            self.store.forget(names::LIMITS)?;
            queue.put_back(self.store.schema(), sending);
            return Ok(());
        }
        let schema = self.store.schema().clone();
        let Some((table, key)) = at_fault(&schema, sending, &problem) else {
            return Err(CallError::Refused(Box::new(problem)).into());
        };
        let sent = sending.sent.iter().find(|sent| sent.table == table.name && sent.key == key);
        self.refused.insert((table.id, key), sent.map_or(0, |sent| sent.edit));
        let mut settling = self.store.settling(&mut self.report.tally, self.calls.server_facts())?;
        settling.refused(table, key, &problem.detail)?;
        settling.commit()?;
        queue.put_back(&schema, sending);
        queue.rows.retain(|row| *row != (table.id, key));
        Ok(())
    }

    /// Records the rejected rows that would only be rejected again.
    fn hold_back(&mut self, sending: &Outstanding, report: &responses::Report) {
        let schema = self.store.schema();
        for lists in [&report.add, &report.update, &report.delete] {
            for (table, item) in lists.iter().flat_map(|(name, items)| {
                let table = schema.table(name);
                items.iter().filter_map(move |item| Some((table?, item)))
            }) {
                if item.error.as_ref().is_none_or(|error| error.retry_when() == RetryWhen::WithOthers) {
                    continue;
                }
                let Some(key) = item.others.get(&table.key).and_then(responses::key) else { continue };
                let sent = sending.sent.iter().find(|sent| sent.table == table.name && sent.key == key);
                self.refused.insert((table.id, key), sent.map_or(0, |sent| sent.edit));
            }
        }
    }

    /// What waits and was not refused in this sync already.
    pub(super) fn sendable(&self) -> Result<VecDeque<(TableId, RowKey)>, SyncError> {
        let mut waiting = self.store.waiting()?;
        let schema = self.store.schema();
        let mut failed = None;
        waiting.retain(|(id, key)| {
            let Some(refused) = self.refused.get(&(*id, *key)) else { return true };
            match Row::load(&self.store.conn, schema.at(*id), *key) {
                Ok(row) => row.is_some_and(|row| row.edit > *refused),
                Err(error) => {
                    failed.get_or_insert(error);
                    false
                }
            }
        });
        failed.map_or(Ok(waiting), |error| Err(error.into()))
    }
}

/// The row because of which a whole request was refused; `None` if it does not concern one row.
fn at_fault<'a>(schema: &'a Schema, sending: &Outstanding, problem: &Problem) -> Option<(&'a Table, RowKey)> {
    if problem.code == "body_too_large" {
        let [sent] = sending.sent.as_slice() else { return None };
        return Some((schema.table(&sent.table)?, sent.key));
    }
    let at = problem.at.as_deref().filter(|_| problem.status == 422)?;
    let mut steps = at.split('/').skip(1);
    let (member, name) = (steps.next()?, steps.next()?);
    let place: usize = steps.next()?.parse().ok()?;
    let table = schema.table(name)?;
    Some((table, sending.body.key_at(member, table, place)?))
}

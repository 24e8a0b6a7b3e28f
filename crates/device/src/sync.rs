//! The two ways of syncing.

use std::collections::{BTreeMap, HashMap};

use super::batch::Queue;
use super::calls::{CallError, Calls, Problem};
use super::decide::{CursorEvent, Epoch, Pages, compare};
use super::proof::Proof;
use super::push::PushMode;
use super::remote::Remote;
use super::responses::{self, Changes, Digests, Kind, Limits};
use super::retry::RetryPolicy;
use super::settle::Tally;
use super::store::{Store, StoreError, names};
use rollcall_core::model::{Precision, RowKey};
use rollcall_core::schema::TableId;

/// How to find out what other devices changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncMode {
    /// Lists what the server holds, compares, sends and requests: needs no cursor, costs a list.
    Manifest,
    /// Fetches what changed since the cursor: costs what changed.
    Cursor,
}

/// Options of a sync.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// The mode; `None`: by cursor if the server can, otherwise by manifest.
    pub mode: Option<SyncMode>,
    /// How many deletions the user has confirmed, after a `mass_delete`. A sync of several requests may be
    /// refused more than once: it continues as long as the refusals name no more than this in total.
    pub confirm_deletes: Option<u64>,
}

/// The progress of a sync, for people who wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The number of rows that the server listed.
    Listed(usize),
    /// The number of rows still to be sent, and to be requested.
    Left(usize, usize),
    /// The number of rows from the change feed.
    Received(u64),
    /// The digests differed: everything is compared once.
    Repairing,
}

/// The result of a sync.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SyncReport {
    /// The mode that was used.
    pub mode: Option<SyncMode>,
    /// The affected rows.
    pub tally: Tally,
    /// The result of comparing digests.
    pub proof: Proof,
    /// How often a request was repeated.
    pub repeats: u64,
    /// Whether the response of an earlier sync had been lost.
    pub resumed: bool,
}

/// Why a sync ended early. What was settled before stays; the next sync continues from there.
#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    /// The device's file.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The server.
    #[error(transparent)]
    Call(#[from] CallError),
    /// There is no token.
    #[error("this device is not logged in; use `rollcall device login`")]
    NotLoggedIn,
    /// The token belongs to another user than the file's rows.
    #[error(
        "this file holds the rows of another user than the token's: log in as that user, or make another file with \
         `rollcall device init`; nothing was sent, and nothing here was changed"
    )]
    OtherUser,
    /// The user is no member of the owner any more, or the owner was deleted.
    #[error(
        "the user is no member of this owner any more: its rows were dropped here; {kept} unsent edits are kept, see \
         `rollcall device left`"
    )]
    NotAMember {
        /// Unsent edits that are kept.
        kept: u64,
    },
    /// The same, after the server was restored from a backup, which may only lack the membership.
    #[error(
        "the server was restored from a backup that does not know the user as a member of this owner: the copy stays; a \
         manager of the owner can invite the user again"
    )]
    NotAMemberAfterRestore,
    /// The server is older than the change feed.
    #[error("the server has no change feed; sync with --by manifest")]
    NoCursorWay,
    /// The data on the server changes faster than it can be listed.
    #[error("others keep changing the data; try again")]
    Restless,
    /// The device's schema has another format of times than the server's.
    #[error("the server keeps times in {0}, this device's schema does not: make a new device file")]
    OtherTimes(&'static str),
    /// Another process is syncing this file.
    #[error("another sync of this file is at work")]
    Twice,
}

impl From<rusqlite::Error> for SyncError {
    fn from(error: rusqlite::Error) -> Self {
        StoreError::from(error).into()
    }
}

/// How often one sync starts again before it gives up, and rounds for rows that wait for others.
const BEGINNINGS_MAX: usize = 4;
const ROUNDS_MAX: usize = 8;

/// Synchronises the device's file with the server.
pub fn sync(
    store: &mut Store,
    remote: &mut dyn Remote,
    retries: &mut RetryPolicy,
    options: Options,
    progress: &mut dyn FnMut(Progress),
) -> Result<SyncReport, SyncError> {
    let _turn = store.turn()?.ok_or(SyncError::Twice)?;
    let token = store.recall(names::TOKEN)?.ok_or(SyncError::NotLoggedIn)?;
    let mut calls = Calls::new(remote, retries, Some(token));
    (calls.bound, calls.installation) = (store.bound()?, Some(store.installation()?));
    calls.owner = store.owner()?;
    let (limits, report) = (Limits::default(), SyncReport::default());
    let (refused, agreed) = (HashMap::new(), options.confirm_deletes.unwrap_or(0));
    let mut syncing = Syncing {
        store,
        calls,
        options,
        limits,
        report,
        refused,
        agreed,
        proof: None,
        doubt: false,
        progress,
    };
    let mut done = syncing.run();
    if done.as_ref().is_err_and(is_no_member) {
        done = syncing.leave();
    }
    let Syncing { calls, mut report, .. } = syncing;
    report.repeats = calls.repeats;
    match done {
        Ok(()) => Ok(report),
        Err(SyncError::Call(error)) if error.code() == "other_user" => Err(SyncError::OtherUser),
        Err(error) => Err(error),
    }
}

/// A sync in progress.
pub(super) struct Syncing<'a> {
    pub(super) store: &'a mut Store,
    pub(super) calls: Calls<'a>,
    pub(super) options: Options,
    pub(super) limits: Limits,
    pub(super) report: SyncReport,
    /// Rows that the server cannot accept unchanged, with the edit that it refused.
    pub(super) refused: HashMap<(TableId, RowKey), u64>,
    /// Deletions that the user has confirmed and that no refusal has named yet.
    pub(super) agreed: u64,
    pub(super) proof: Option<Digests>,
    /// Whether the digests show that the server's past is not the one that the device knows.
    pub(super) doubt: bool,
    pub(super) progress: &'a mut dyn FnMut(Progress),
}

impl Syncing<'_> {
    fn run(&mut self) -> Result<(), SyncError> {
        self.limits = self.known_limits()?;
        self.bind()?;
        self.resume()?;
        match self.options.mode {
            Some(SyncMode::Manifest) => self.by_manifest(true)?,
            Some(SyncMode::Cursor) => self.by_cursor()?,
            None => match self.by_cursor() {
                Err(SyncError::NoCursorWay) => self.by_manifest(true)?,
                done => done?,
            },
        }
        self.rest()?;
        self.verify()?;
        self.report.tally.rejected = self.store.rejected()?;
        let now = self.store.clock().now().format(Precision::Milliseconds).to_string();
        Ok(self.store.remember(names::LAST_SYNC, &now)?)
    }

    /// Binds the file to the user and the owner of the token, permanently. From then on each call names them,
    /// and the server refuses the token of another user.
    fn bind(&mut self) -> Result<(), SyncError> {
        if self.calls.bound.is_none()
            && let Some(me) = self.calls.me()?
        {
            self.store.remember(names::BOUND, &me)?;
            self.calls.bound = Some(me);
        }
        Ok(())
    }

    /// The server's limits, requested once; a server that lowers them responds with 413 and 422.
    fn known_limits(&mut self) -> Result<Limits, SyncError> {
        if let Some(text) = self.store.recall(names::LIMITS)? {
            let numbers: [usize; 3] = serde_json::from_str(&text).map_err(StoreError::from)?;
            let [rows_max, get_keys_max, body_bytes_max] = numbers;
            return Ok(Limits { rows_max, get_keys_max, body_bytes_max });
        }
        let (limits, precision) = self.calls.limits()?;
        if precision != self.store.schema().precision {
            let seconds = precision == Precision::Seconds;
            return Err(SyncError::OtherTimes(if seconds { "seconds" } else { "milliseconds" }));
        }
        let numbers = [limits.rows_max, limits.get_keys_max, limits.body_bytes_max];
        self.store.remember(names::LIMITS, &format!("{numbers:?}"))?;
        Ok(limits)
    }

    /// Fetches the response to a request that an earlier sync sent and never settled. Only its rows are
    /// settled: the cursor stays, and everything else in the response is requested again.
    fn resume(&mut self) -> Result<(), SyncError> {
        let Some(sending) = self.store.outstanding()? else { return Ok(()) };
        self.report.resumed = true;
        match self.send(&sending, None) {
            Ok((sending, report)) => {
                let mut settling = self.store.settling(&mut self.report.tally, self.calls.server_facts())?;
                settling.report(&sending, responses::Report { changes: None, ..report })?;
                settling.commit()?;
                self.calls.applied();
                Ok(())
            }
            // Nothing of it was written, and the following sync creates a new request.
            Err(SyncError::Call(CallError::Refused(_))) if self.store.outstanding()?.is_none() => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The post's mode: the manifest under the lock, the comparison, and one or more requests under the same
    /// lock.
    pub(super) fn by_manifest(&mut self, trust_etag: bool) -> Result<(), SyncError> {
        self.report.mode = Some(SyncMode::Manifest);
        for _ in 0..BEGINNINGS_MAX {
            match self.one_roll_call(trust_etag) {
                Err(SyncError::Call(error)) if matches!(error.code(), "version_moved" | "lock_lost") => {}
                done => {
                    if done.is_err() {
                        self.calls.give_lock_back(); // other devices need not wait for the lease to expire
                    }
                    return done;
                }
            }
        }
        Err(SyncError::Restless)
    }

    fn one_roll_call(&mut self, trust_etag: bool) -> Result<(), SyncError> {
        let etag = if trust_etag { self.store.recall(names::ETAG)? } else { None };
        self.store.forget(names::ETAG)?;
        let mut told = self.calls.fetch(self.store.schema(), etag.as_deref())?;
        let past = self
            .store
            .settling(&mut self.report.tally, self.calls.server_facts())?
            .past(told.version, self.doubt)?;
        if told.tables.is_none() && past == Epoch::Earlier {
            told = self.calls.fetch(self.store.schema(), None)?; // the entity tag was from another past
        }
        let listed = told.tables.as_ref().map(|tables| tables.values().map(BTreeMap::len).sum());
        (self.progress)(Progress::Listed(listed.unwrap_or(0)));

        let schema = self.store.schema().clone();
        let mut queue = Queue::default();
        let mut settling = self.store.settling(&mut self.report.tally, self.calls.server_facts())?;
        let epoch = settling.past(told.version, self.doubt)?;
        settling.adopt(told.version)?; // what may have been lost is marked in this transaction
        settling.move_cursor(CursorEvent::Compared)?;
        let mut new = Vec::new();
        let mut edits = Vec::new();
        let mut deletes = Vec::new();
        for id in schema.parents_first() {
            let table = schema.at(*id);
            let mine = settling.locals(table)?;
            let plan = match &told.tables {
                Some(tables) => compare(&tables[id], &mine, epoch, Pages::All),
                // Nothing changed there: the server still holds what it last reported.
                None => {
                    let held = mine.iter().filter_map(|(key, local)| Some((*key, local.last_update?)));
                    compare(&held.collect(), &mine, epoch, Pages::All)
                }
            };
            settling.plan(table, &plan)?;
            queue.rows.extend(plan.put_back.iter().map(|key| (*id, *key)));
            new.extend(plan.add.iter().map(|key| (*id, *key)));
            edits.extend(plan.update.iter().map(|key| (*id, *key)));
            deletes.push((*id, plan.delete));
            queue.gets.extend(plan.get.iter().map(|key| (*id, *key)));
        }
        settling.commit()?;
        queue.rows.extend(new);
        queue.rows.extend(edits);
        for (id, keys) in deletes.into_iter().rev() {
            queue.rows.extend(keys.into_iter().map(|key| (id, key)));
        }
        // The copy has the manifest's version. With that as `base`, the response shows whether another device
        // has written since, with or without the lock.
        let version = self.push(queue, Some(told.version), told.fence.as_deref(), PushMode::Manifest)?;
        if version == told.version
            && let Some(etag) = told.etag
        {
            self.store.remember(names::ETAG, &etag)?;
        }
        Ok(())
    }

    /// Syncs by cursor: one request sends the edits and fetches the other changes.
    fn by_cursor(&mut self) -> Result<(), SyncError> {
        self.report.mode = Some(SyncMode::Cursor);
        for _ in 0..BEGINNINGS_MAX {
            let done = self.one_pull();
            match done {
                Err(SyncError::Call(error)) if error.code() == "cursor_expired" => self.expire()?,
                Err(SyncError::Call(CallError::Refused(problem))) if lacks_the_feed(&problem) => {
                    return Err(SyncError::NoCursorWay);
                }
                done => return done,
            }
        }
        Err(SyncError::Restless)
    }

    /// The server does not know what changed since: drops the cursor, to receive everything. The waiting rows
    /// are sent as always, each with its own `_base`.
    fn expire(&mut self) -> Result<(), SyncError> {
        let mut settling = self.store.settling(&mut self.report.tally, self.calls.server_facts())?;
        settling.move_cursor(CursorEvent::Expired)?;
        Ok(settling.commit()?)
    }

    fn one_pull(&mut self) -> Result<(), SyncError> {
        if let Some(next) = self.store.recall(names::NEXT)? {
            // A feed was interrupted, and the device knows the rows of its first pages ahead of the cursor.
            // If one of them was deleted since, a feed from the cursor would not mention it; a feed from this
            // one's end does.
            match self.calls.changes(None, Some(&next)) {
                Ok(page) => self.pages(page, false)?,
                Err(error) if error.code() == "invalid_request" => self.expire()?,
                Err(error) => return Err(error.into()),
            }
        }
        let cursor = self.store.cursor()?;
        let queue = Queue { rows: self.sendable()?, ..Queue::default() };
        if queue.is_empty() {
            // Nothing is to be sent: reading needs no lock, and blocks no other device.
            let first = self.calls.changes(cursor, None)?;
            return self.pages(first, true);
        }
        self.push(queue, cursor, None, PushMode::Pull)?;
        Ok(())
    }

    /// Applies a page of the feed and all that follow it.
    pub(super) fn pages(&mut self, mut page: Changes, mut first: bool) -> Result<(), SyncError> {
        loop {
            let (next, digests) = (page.next.clone().filter(|_| page.more), page.digests.take());
            let mut settling = self.store.settling(&mut self.report.tally, self.calls.server_facts())?;
            if first && page.kind == Kind::Full {
                settling.begin_full(page.version)?;
            }
            first = false;
            settling.page(page)?;
            digests.iter().try_for_each(|digests| settling.know(digests.as_of))?;
            self.proof = digests.or(self.proof.take());
            settling.commit()?;
            (self.progress)(Progress::Received(self.report.tally.received));
            let Some(next) = next else { return Ok(()) };
            page = self.calls.changes(None, Some(&next))?;
        }
    }

    /// Sends what still waits: rows whose parents were in a later request, rows that must be sent whole, and
    /// what the user changed meanwhile. Ends when a round settles nothing.
    pub(super) fn rest(&mut self) -> Result<(), SyncError> {
        for _ in 0..ROUNDS_MAX {
            let rows = self.sendable()?;
            if rows.is_empty() {
                return Ok(());
            }
            let before = rows.clone();
            let base = self.store.cursor()?;
            let queue = Queue { rows, ..Queue::default() };
            self.push(queue, base, None, PushMode::Nothing)?;
            if self.sendable()? == before {
                return Ok(());
            }
        }
        Ok(())
    }
}

/// Whether a sync ended because the user is no member of the owner.
fn is_no_member(error: &SyncError) -> bool {
    matches!(error, SyncError::Call(error) if error.code() == "not_a_member")
}

/// Whether a refusal means that the server is older than the change feed.
fn lacks_the_feed(problem: &Problem) -> bool {
    problem.status == 404 || (problem.code == "unknown_member" && problem.at.as_deref() == Some("/pull"))
}

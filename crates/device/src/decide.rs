//! The decisions of a device. They are pure: no file, no network, no clock. Authors of a client port this
//! file first; `fixtures/device` contains every rule as data.
//!
//! A row has two times. `last_update` is the state that the server holds, as it last reported it. `base` is
//! the state on which the user's edit was made. They differ when other devices change a row that is edited
//! here: the edit stays, and is sent with its old `base`, so that the server detects the conflict and decides
//! it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use rollcall_core::model::{Timestamp, Version};
use rollcall_core::reconcile::{Operation, Verdict};

/// The base of an edit that was made without any row of the server: a state that no row ever has. The edit's
/// own time would not do, since it may also be that of the server's row.
pub const NO_STATE: Timestamp = Timestamp::from_ms(0);

/// Whether a row has a change for the server, and which: the post's flag `synced`, with the reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// As the server reported it.
    Clean,
    /// Created here; the server has not acknowledged it.
    Added,
    /// Changed here.
    Edited,
    /// Deleted here; kept until the server confirms.
    Deleted,
}

/// What a device knows of a row, apart from its contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Local {
    /// Whether it has a change for the server.
    pub state: State,
    /// The state that the server holds; `None` if it holds no live row, if the state of a clean row is
    /// unknown, or if an edit may have been made on another state with the same time.
    pub last_update: Option<Timestamp>,
    /// The state on which the edit was made; `None` for a row that was created here. For a clean row that
    /// must be requested again, and for one that is put back: the state that the device knows.
    pub base: Option<Timestamp>,
    /// When the user last changed it, by the device's clock. `None` for a clean row, and for a row that waits
    /// without a change of its user: it is put back, see [`Local::put_back`].
    pub edited_at: Option<Timestamp>,
}

impl Local {
    /// A row in the state that the server reported.
    pub const fn clean(last_update: Option<Timestamp>) -> Self {
        Self { state: State::Clean, last_update, base: None, edited_at: None }
    }

    /// A clean row whose contents must be requested. `held` is the state that the device knows.
    pub const fn unsure(held: Option<Timestamp>) -> Self {
        Self { state: State::Clean, last_update: None, base: held, edited_at: None }
    }

    /// A clean row that the server returned in the state `held` and may have lost since: it waits to be put
    /// back. The server holds the older state `last_update`, or no row.
    pub const fn put_back(held: Option<Timestamp>, last_update: Option<Timestamp>) -> Self {
        let state = if last_update.is_some() { State::Edited } else { State::Added };
        Self { state, last_update, base: held, edited_at: None }
    }

    /// Whether it has a change for the server.
    pub fn is_dirty(&self) -> bool {
        self.state != State::Clean
    }

    /// Whether it waits only because the server may have lost it.
    pub fn is_put_back(&self) -> bool {
        matches!(self.state, State::Added | State::Edited) && self.edited_at.is_none()
    }

    /// Whether its user changed it and no server has judged that yet.
    pub fn is_users(&self) -> bool {
        self.is_dirty() && !self.is_put_back()
    }

    /// The state of the device's contents, for a row that its user has not changed.
    pub fn held(&self) -> Option<Timestamp> {
        if self.is_put_back() { self.base } else { self.last_update.or(self.base) }
    }

    /// Whether all of its columns are sent, or only the changed ones. A partial row can neither be created
    /// nor revived, and does not fit an unknown state. So a row that the server may not hold is sent whole.
    pub fn goes_whole(&self) -> bool {
        self.state != State::Edited || self.last_update.is_none() || self.is_put_back()
    }
}

/// The outcome for a local row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// What is known of it afterwards; `None`: the device drops the row.
    pub local: Option<Local>,
    /// Its contents afterwards.
    pub contents: Contents,
}

/// The source of a row's contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Contents {
    /// What the device holds.
    Mine,
    /// The row that the server sent.
    Theirs,
    /// The row that the server sent, with the columns over it that were changed after the request was made.
    MineOverTheirs,
}

impl Outcome {
    const DROP: Self = Self { local: None, contents: Contents::Mine };

    const fn of(local: Local, contents: Contents) -> Self {
        Self { local: Some(local), contents }
    }
}

/// How much of the manifest has arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pages {
    /// More pages follow: a missing row means nothing yet.
    SoFar,
    /// The last page has arrived: a missing row is not on the server.
    All,
}

/// Whether the server's past is the one that the device knows.
///
/// A server that was put back to a backup, or started anew, has lost states, so a row that it does not hold
/// need not be deleted. It may also have accepted a state that another device made at the same time as a lost
/// one: then one time denotes two states.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Epoch {
    /// It is the same: see [`past`]. A missing row was deleted.
    #[default]
    Same,
    /// It is another one, or nothing proves that it is the same. A missing row may have been lost.
    Earlier,
}

/// Compares the device's last complete view of the server with the server's present state. Each is an epoch
/// and a version of the owner; `None` stands for a server that does not report its epoch.
///
/// `known` is `None` if the device holds no data of any server.
pub fn past(known: Option<(Option<u64>, Version)>, now: (Option<u64>, Version)) -> Epoch {
    match known {
        _ if rollcall_core::broken::is("absence_is_deletion_after_restore") => Epoch::Same,
        Some((epoch, version)) if epoch != now.0 || now.1 < version => Epoch::Earlier,
        _ => Epoch::Same,
    }
}

/// The plan for one table after the manifest, by key ascending.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan<K> {
    /// Send these as new.
    pub add: Vec<K>,
    /// Send these as changed.
    pub update: Vec<K>,
    /// Ask the server to delete these.
    pub delete: Vec<K>,
    /// Send these as states that the server returned and may have lost: with `put_back`, before everything
    /// else.
    pub put_back: Vec<K>,
    /// Request these.
    pub get: Vec<K>,
    /// Delete these here, at once.
    pub drop: Vec<K>,
    /// Store this about these rows, at once: the server holds another state than was known, or may.
    pub note: Vec<(K, Local)>,
}

impl<K> Default for Plan<K> {
    fn default() -> Self {
        let (add, update, delete, put_back) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Self { add, update, delete, put_back, get: Vec::new(), drop: Vec::new(), note: Vec::new() }
    }
}

impl<K> Plan<K> {
    /// Plans how a waiting row is sent, with what the manifest has shown about it.
    fn send(&mut self, key: K, known: &Local, outcome: Outcome)
    where
        K: Clone,
    {
        let Some(local) = outcome.local else {
            self.drop.push(key);
            return;
        };
        if local != *known {
            self.note.push((key.clone(), local));
        }
        match local.state {
            _ if local.is_put_back() => self.put_back.push(key),
            State::Added => self.add.push(key),
            State::Edited | State::Clean => self.update.push(key),
            State::Deleted => self.delete.push(key),
        }
    }
}

/// Compares the manifest of a table with the local rows: the post's three cases.
pub fn compare<K: Ord + Clone>(
    theirs: &BTreeMap<K, Timestamp>,
    mine: &BTreeMap<K, Local>,
    epoch: Epoch,
    pages: Pages,
) -> Plan<K> {
    let mut plan = Plan::default();
    for (key, at) in theirs {
        match mine.get(key) {
            None => plan.get.push(key.clone()), // Case 1
            Some(local) if local.is_users() => {
                plan.send(key.clone(), local, apply(Some(local), Entry::Row(*at), epoch)); // Case 2
            }
            // Case 2. A row without a local change is newer than the server's only if the server lost the
            // state.
            Some(local) if local.held() > Some(*at) => {
                let outcome = Outcome::of(Local::put_back(local.held(), Some(*at)), Contents::Mine);
                plan.send(key.clone(), local, outcome);
            }
            Some(local) if *local == Local::clean(Some(*at)) && epoch == Epoch::Same => {}
            Some(local) => {
                // It must be requested until it has arrived.
                if local.held() == Some(*at) && epoch == Epoch::Earlier {
                    plan.note.push((key.clone(), Local::unsure(local.held())));
                }
                plan.get.push(key.clone());
            }
        }
    }
    if pages == Pages::All {
        for (key, local) in mine.iter().filter(|(key, _)| !theirs.contains_key(key)) {
            plan.send(key.clone(), local, absent(local, epoch)); // Case 3
        }
    }
    plan.put_back.sort();
    plan
}

/// The outcome for a row that is missing from a complete list of the server's rows: the post's Case 3.
///
/// - A clean row was deleted there if the server's past is the one that the device knows. Otherwise the row
///   may have been lost: it is put back, and the server reports with its tombstones what was deleted.
/// - A row that was synchronised once and edited since was deleted there and edited here. That is a conflict
///   that the server decides: the edit stays, is sent whole with its `base`, and follows the verdict.
pub fn absent(local: &Local, epoch: Epoch) -> Outcome {
    match local.state {
        State::Clean if epoch == Epoch::Earlier => {
            Outcome::of(Local::put_back(local.held(), None), Contents::Mine)
        }
        State::Clean | State::Deleted => Outcome::DROP,
        State::Added | State::Edited if local.is_put_back() => {
            Outcome::of(Local::put_back(local.base, None), Contents::Mine)
        }
        State::Added | State::Edited => Outcome::of(Local { last_update: None, ..*local }, Contents::Mine),
    }
}

/// One entry of the change feed, or one row that was requested.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// The row has this state now; `add` and `update` alike.
    Row(Timestamp),
    /// The row was deleted.
    Deleted,
}

/// The outcome for a row after a state from the server. An edit without a verdict always stays.
pub fn apply(local: Option<&Local>, entry: Entry, epoch: Epoch) -> Outcome {
    let result = match entry {
        Entry::Row(at) => Some(at),
        Entry::Deleted => None,
    };
    let Some(local) = local.filter(|local| local.is_users()) else {
        // Its user has not changed it, or it does not exist.
        let held = local.and_then(Local::held);
        let may_be_lost = epoch == Epoch::Earlier || local.is_some_and(Local::is_put_back);
        return match result {
            Some(at) if may_be_lost && held > result => {
                Outcome::of(Local::put_back(held, Some(at)), Contents::Mine)
            }
            Some(_) => Outcome::of(Local::clean(result), Contents::Theirs),
            None => Outcome::DROP,
        };
    };
    if local.state == State::Deleted && result.is_none() {
        return Outcome::DROP; // both sides deleted it
    }
    let mut kept = Local { last_update: result, ..*local };
    let doubtful = epoch == Epoch::Earlier || local.last_update.is_none();
    if doubtful && local.state == State::Edited && local.base == result {
        // The edit may not have been made on the server's state of that time. If the row is sent whole, both
        // sides are equal afterwards, whatever that state was.
        kept.last_update = None;
    }
    if local.state == State::Added {
        // Another device created a row under this key. Without a `base` the local row would count as made
        // with knowledge of it and replace it, so it states that it was built on nothing.
        kept.state = State::Edited;
        kept.base = local.base.or(Some(NO_STATE));
    }
    Outcome::of(kept, Contents::Mine)
}

/// What the device had sent of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sent {
    /// The member of the request.
    pub operation: Operation,
    /// Whether it sent all columns that it has, or only the changed ones.
    pub whole: bool,
    /// Whether every declared column was sent, so that the server had none to fill in.
    pub complete: bool,
    /// Whether the user changed the row again after the request was made.
    pub edited_since: bool,
}

/// The server's result for a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowResult {
    /// The verdict.
    pub verdict: Verdict,
    /// When the server's row, or its tombstone, last changed.
    pub last_update: Option<Timestamp>,
    /// Whether the response contained the server's row.
    pub row: bool,
}

/// The outcome for a row after its verdict. It settles what was sent; later changes of the user stay.
pub fn apply_verdict(local: &Local, sent: Sent, result: RowResult) -> Outcome {
    use Operation::{Add, Delete, Update};
    let at = result.last_update;
    let theirs = if result.row { Contents::Theirs } else { Contents::Mine };
    let over = if result.row { Contents::MineOverTheirs } else { Contents::Mine };
    let onward = if local.state == State::Deleted { State::Deleted } else { State::Edited };
    match (sent.operation, result.verdict) {
        // The row had arrived before, and the response with the filled-in columns was lost. The row exists
        // and its contents are unknown, so it must be requested.
        (Add, Verdict::Same) if !result.row && !sent.complete && !sent.edited_since => {
            Outcome::of(Local::unsure(at), Contents::Mine)
        }
        // The server holds what was sent.
        (Add | Update, Verdict::Added | Verdict::Updated | Verdict::Merged | Verdict::Same) => {
            if sent.edited_since {
                Outcome::of(Local { state: onward, last_update: at, base: at, ..*local }, over)
            } else {
                Outcome::of(Local::clean(at), theirs)
            }
        }
        // The server's row won. A later edit did not know that row, so its base stays the old one.
        (_, Verdict::Kept) if result.row => {
            if sent.edited_since {
                let base = local.base.or(at);
                Outcome::of(Local { state: onward, last_update: at, base, ..*local }, over)
            } else {
                Outcome::of(Local::clean(at), theirs)
            }
        }
        // The row is deleted, as requested, unless it was restored since, with knowledge of the deletion.
        (Delete, Verdict::Deleted | Verdict::Same | Verdict::Gone | Verdict::Absent) => {
            if sent.edited_since {
                let added = Local { state: State::Added, last_update: None, base: at, ..*local };
                Outcome::of(added, Contents::Mine)
            } else {
                Outcome::DROP
            }
        }
        // Deleted there. The server could not have revived a partial row under any policy, and has not seen a
        // later edit: it decides again, about the whole row.
        (Add | Update, Verdict::Gone) => {
            if local.state == State::Deleted || (sent.whole && !sent.edited_since) {
                Outcome::DROP
            } else {
                let base = local.base.or(Some(NO_STATE));
                let edited = Local { state: State::Edited, last_update: None, base, ..*local };
                Outcome::of(edited, Contents::Mine)
            }
        }
        // The server has neither the row nor a tombstone: the edit is all that exists of it.
        (Update | Add, Verdict::Absent) => {
            if local.state == State::Deleted {
                Outcome::DROP
            } else {
                let base = local.base.filter(|_| local.is_put_back());
                let added = Local { state: State::Added, last_update: None, base, ..*local };
                Outcome::of(added, Contents::Mine)
            }
        }
        // It stays here for its user to correct. The response contains a live row, but never a tombstone. A
        // row that is put back stays too if the server cannot accept it, for example because it refers to a
        // row that was lost as well.
        (_, Verdict::Rejected) => {
            let last_update = at.filter(|_| result.row);
            Outcome::of(Local { last_update, ..*local }, Contents::Mine)
        }
        // No server returns this; keeping the row is the safe reaction.
        _ => Outcome::of(*local, Contents::Mine),
    }
}

/// When a rejected row may be sent again unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RetryWhen {
    /// After a while, without a correction. Until then it waits like any other.
    Later,
    /// In this sync or a later one: the rows that it depends on may have changed.
    WithOthers,
    /// Once its user has changed it.
    Edited,
}

/// Determines it from a rejection's `code` and `retry_after_s`.
pub fn retry_when(code: &str, retry_after_s: Option<u64>) -> RetryWhen {
    match code {
        _ if retry_after_s.is_some() => RetryWhen::Later,
        "reference_missing" | "still_referenced" => RetryWhen::WithOthers,
        _ => RetryWhen::Edited,
    }
}

/// An event that may move the cursor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CursorEvent {
    /// The response to a push with a `base`. `complete`: the device has a complete copy of that base, by its
    /// cursor, or by a whole manifest with every missing row fetched.
    Pushed {
        /// The response's `version`.
        version: Version,
        /// Whether the copy is complete.
        complete: bool,
    },
    /// A page of the change feed, applied.
    Page {
        /// The page's `version`.
        version: Version,
        /// Whether more pages follow.
        more: bool,
    },
    /// 410: the server no longer knows what changed since the cursor.
    Expired,
    /// A manifest that was compared with the copy. The rows that it requests arrive later and ahead of any
    /// earlier cursor: if they were deleted before then, no feed would mention that.
    Compared,
}

/// The cursor after a response. It must be stored in the transaction that applies the response; otherwise the
/// next sync would skip what a crash lost.
pub fn cursor_after(cursor: Option<Version>, event: CursorEvent) -> Option<Version> {
    match event {
        CursorEvent::Pushed { version, complete: true } | CursorEvent::Page { version, more: false } => {
            Some(version)
        }
        CursorEvent::Pushed { complete: false, .. } | CursorEvent::Page { more: true, .. } => cursor,
        CursorEvent::Expired | CursorEvent::Compared => None,
    }
}

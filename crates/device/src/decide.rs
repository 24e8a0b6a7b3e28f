//! What a device decides. Pure: no file, no network, no clock. Whoever writes a client ports this file
//! first; `fixtures/device` holds every rule as data.
//!
//! Two times belong to a row. `last_update` is the state that the server holds, as it last told it; `base` is
//! the state that the user's edit was made on. They differ when others change a row that is edited here: the
//! edit stays, and goes up with its old `base`, so that the server sees the conflict and decides it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use rollcall_core::model::{Timestamp, Version};
use rollcall_core::reconcile::{Operation, Verdict};

/// What an edit was made on that knew of no row of the server's: a state that no row ever has. Not the edit's own
/// time, which may be the server's row's as well.
pub const NO_STATE: Timestamp = Timestamp::from_ms(0);

/// Whether a row has something for the server: the post's flag `synced`, with the reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// As the server told it.
    Clean,
    /// Made here; the server never acknowledged it.
    Added,
    /// Changed here.
    Edited,
    /// Deleted here; kept until the server agrees.
    Deleted,
}

/// What a device knows of a row, its contents aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Local {
    /// Whether it has something for the server.
    pub state: State,
    /// The state that the server holds; `None` if it holds no live row, if a clean row has not been told, or if an
    /// edit was made on a state that may be another than the server's of that time.
    pub last_update: Option<Timestamp>,
    /// The state that the edit was made on; `None` of one made here. Of a clean row that is to be asked for again, and
    /// of one that is put back: the state as the device knows it.
    pub base: Option<Timestamp>,
    /// When the user last changed it, by the device's clock. `None` of a clean row. Also `None` of a row that waits
    /// although its user has not touched it: it is put back, see [`Local::put_back`].
    pub edited_at: Option<Timestamp>,
}

impl Local {
    /// A row just as the server told it.
    pub const fn clean(last_update: Option<Timestamp>) -> Self {
        Self { state: State::Clean, last_update, base: None, edited_at: None }
    }

    /// A clean row whose contents have to be asked for. `held` is the state that the device knows.
    pub const fn unsure(held: Option<Timestamp>) -> Self {
        Self { state: State::Clean, last_update: None, base: held, edited_at: None }
    }

    /// A clean row that the server gave in the state `held` and may have lost since: it waits to be put back. The
    /// server holds the older state `last_update`, or no row.
    pub const fn put_back(held: Option<Timestamp>, last_update: Option<Timestamp>) -> Self {
        let state = if last_update.is_some() { State::Edited } else { State::Added };
        Self { state, last_update, base: held, edited_at: None }
    }

    /// Whether it has something for the server.
    pub fn is_dirty(&self) -> bool {
        self.state != State::Clean
    }

    /// Whether it waits only because the server may have lost it, and not since its user changed it.
    pub fn is_put_back(&self) -> bool {
        matches!(self.state, State::Added | State::Edited) && self.edited_at.is_none()
    }

    /// Whether its user changed it and no server has judged that yet.
    pub fn is_users(&self) -> bool {
        self.is_dirty() && !self.is_put_back()
    }

    /// The state whose contents the device has, of a row that its user has not changed.
    pub fn held(&self) -> Option<Timestamp> {
        if self.is_put_back() { self.base } else { self.last_update.or(self.base) }
    }

    /// Whether all of its columns go up, or only the changed ones. Half a row can neither be made nor be brought
    /// back, nor does it fit a state that is not known: so a row that the server may not hold goes up whole.
    pub fn goes_whole(&self) -> bool {
        self.state != State::Edited || self.last_update.is_none() || self.is_put_back()
    }
}

/// What becomes of a local row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// What is known of it from now on; `None`: the device drops the row.
    pub local: Option<Local>,
    /// What it contains from now on.
    pub contents: Contents,
}

/// Whose contents a row has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Contents {
    /// What the device holds.
    Mine,
    /// The row that the server sent.
    Theirs,
    /// The row that the server sent, with the columns on it that were changed after the request was made.
    MineOverTheirs,
}

impl Outcome {
    const DROP: Self = Self { local: None, contents: Contents::Mine };

    const fn of(local: Local, contents: Contents) -> Self {
        Self { local: Some(local), contents }
    }
}

/// How much of the roll call is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pages {
    /// More pages follow: that a row is absent means nothing yet.
    SoFar,
    /// The last page has come: a row that is absent is not on the server.
    All,
}

/// Whether the server's past is the one that the device knows.
///
/// A server that was put back to a backup, or begun anew, has forgotten states: what it does not hold is not deleted
/// therefore. It may also have taken a state since that another device made in the very moment of a forgotten one:
/// then one time names two states.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Epoch {
    /// It is: see [`past`]. A row that is absent was deleted.
    #[default]
    Same,
    /// It is another, or nothing proves that it is the same. A row that is absent may have been forgotten.
    Earlier,
}

/// Compares what a device remembers of its last complete look at the server with what the server says now. Each is an
/// epoch and a version of the owner; `None` is a server that does not say its epoch.
///
/// `declared_tables` is `None` if the device holds nothing of any server.
pub fn past(known: Option<(Option<u64>, Version)>, now: (Option<u64>, Version)) -> Epoch {
    match known {
        _ if rollcall_core::broken::is("absence_is_deletion_after_restore") => Epoch::Same,
        Some((epoch, version)) if epoch != now.0 || now.1 < version => Epoch::Earlier,
        _ => Epoch::Same,
    }
}

/// What to do about one table after the roll call, by key ascending.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan<K> {
    /// Send these as new.
    pub add: Vec<K>,
    /// Send these as changed.
    pub update: Vec<K>,
    /// Ask the server to delete these.
    pub delete: Vec<K>,
    /// Send these as states that the server gave and may have lost: with `put_back`, before anything else.
    pub put_back: Vec<K>,
    /// Ask for these.
    pub get: Vec<K>,
    /// Delete these here, at once.
    pub drop: Vec<K>,
    /// Remember this of these rows, at once: the server holds another state than was known, or may.
    pub note: Vec<(K, Local)>,
}

impl<K> Default for Plan<K> {
    fn default() -> Self {
        let (add, update, delete, put_back) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Self { add, update, delete, put_back, get: Vec::new(), drop: Vec::new(), note: Vec::new() }
    }
}

impl<K> Plan<K> {
    /// A row that waits goes up as what it is once the roll call is known.
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

/// Compares the roll call of a table with the local rows: the post's three cases.
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
            // Case 2. A row that nobody changed here is only newer than the server's if the server forgot it.
            Some(local) if local.held() > Some(*at) => {
                let outcome = Outcome::of(Local::put_back(local.held(), Some(*at)), Contents::Mine);
                plan.send(key.clone(), local, outcome);
            }
            Some(local) if *local == Local::clean(Some(*at)) && epoch == Epoch::Same => {}
            Some(local) => {
                // To be asked for until it has come.
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

/// What becomes of a row that a complete list of the server's rows does not have: the post's Case 3.
///
/// - A clean row was deleted there if the server's past is the one that the device knows. If it is not, the row may
///   have been forgotten: it is put back, and the server says by its tombstones what was deleted.
/// - A row that was synced once and edited since was deleted there against edited here. That is a conflict and
///   not ours to decide: the edit stays, goes up whole with its `base`, and obeys the verdict.
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

/// One entry of the change feed, or one row that the server gave on demand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// The row is this now; `add` and `update` alike.
    Row(Timestamp),
    /// The row was deleted.
    Deleted,
}

/// What becomes of a row of which the server tells a state. An edit that is not settled always stays.
pub fn apply(local: Option<&Local>, entry: Entry, epoch: Epoch) -> Outcome {
    let result = match entry {
        Entry::Row(at) => Some(at),
        Entry::Deleted => None,
    };
    let Some(local) = local.filter(|local| local.is_users()) else {
        // Its user has not changed it, or it is not there at all.
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
        return Outcome::DROP; // both deleted it
    }
    let mut kept = Local { last_update: result, ..*local };
    let doubtful = epoch == Epoch::Earlier || local.last_update.is_none();
    if doubtful && local.state == State::Edited && local.base == result {
        // The edit may not have been made on what the server holds under that time. If all of the row goes up,
        // both sides are the same afterwards, whatever it was.
        kept.last_update = None;
    }
    if local.state == State::Added {
        // Someone else has made a row under this key. Without a `base` ours would count as made in its
        // knowledge and replace it unasked: so say that ours was built on nothing.
        kept.state = State::Edited;
        kept.base = local.base.or(Some(NO_STATE));
    }
    Outcome::of(kept, Contents::Mine)
}

/// What the device had sent of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sent {
    /// Under which member of the request.
    pub operation: Operation,
    /// All columns that the device has, or the changed ones alone.
    pub whole: bool,
    /// Whether every declared column was there, so that the server had none to fill in.
    pub complete: bool,
    /// Whether the user changed the row again after the request was made.
    pub edited_since: bool,
}

/// What the server said of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowResult {
    /// What became of it.
    pub verdict: Verdict,
    /// When the server's row, or its tombstone, last changed.
    pub last_update: Option<Timestamp>,
    /// Whether the server's row came along.
    pub row: bool,
}

/// What becomes of a row after its verdict. It settles what was sent; what the user did since stays.
pub fn apply_verdict(local: &Local, sent: Sent, result: RowResult) -> Outcome {
    use Operation::{Add, Delete, Update};
    let at = result.last_update;
    let theirs = if result.row { Contents::Theirs } else { Contents::Mine };
    let over = if result.row { Contents::MineOverTheirs } else { Contents::Mine };
    let onward = if local.state == State::Deleted { State::Deleted } else { State::Edited };
    match (sent.operation, result.verdict) {
        // It had arrived before, and the answer was lost that said what the server filled in. The row is there
        // and nobody has told us what it is: ask, as for any other.
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
        // The server's row won. An edit made since did not know that row, so its base stays the old one.
        (_, Verdict::Kept) if result.row => {
            if sent.edited_since {
                let base = local.base.or(at);
                Outcome::of(Local { state: onward, last_update: at, base, ..*local }, over)
            } else {
                Outcome::of(Local::clean(at), theirs)
            }
        }
        // The row is deleted, as asked; unless it was brought back since, in full knowledge of the deletion.
        (Delete, Verdict::Deleted | Verdict::Same | Verdict::Gone | Verdict::Absent) => {
            if sent.edited_since {
                let added = Local { state: State::Added, last_update: None, base: at, ..*local };
                Outcome::of(added, Contents::Mine)
            } else {
                Outcome::DROP
            }
        }
        // Deleted there. With a part of the row the server could not have brought it back whatever the policy
        // says, and an edit made since it has not seen: it decides once more, over the whole row.
        (Add | Update, Verdict::Gone) => {
            if local.state == State::Deleted || (sent.whole && !sent.edited_since) {
                Outcome::DROP
            } else {
                let base = local.base.or(Some(NO_STATE));
                let edited = Local { state: State::Edited, last_update: None, base, ..*local };
                Outcome::of(edited, Contents::Mine)
            }
        }
        // Nobody remembers the row, not even that it was deleted: the edit is all there is of it.
        (Update | Add, Verdict::Absent) => {
            if local.state == State::Deleted {
                Outcome::DROP
            } else {
                let base = local.base.filter(|_| local.is_put_back());
                let added = Local { state: State::Added, last_update: None, base, ..*local };
                Outcome::of(added, Contents::Mine)
            }
        }
        // It stays here as it is, for its user to mend. A live row always comes along, a tombstone never. So does a
        // row that is put back and that the server cannot take, say since what it refers to is lost as well.
        (_, Verdict::Rejected) => {
            let last_update = at.filter(|_| result.row);
            Outcome::of(Local { last_update, ..*local }, Contents::Mine)
        }
        // No server says this; losing nothing is the safe reading.
        _ => Outcome::of(*local, Contents::Mine),
    }
}

/// When a row that the server rejected may go up again as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RetryWhen {
    /// In a while, and its user has nothing to mend. Until then it waits like any other.
    Later,
    /// In this sync or a later one: the rows that it is about may have changed.
    WithOthers,
    /// Once its user has changed it.
    Edited,
}

/// Reads off a rejection's `code` and `retry_after_s` when the row may go up again.
pub fn retry_when(code: &str, retry_after_s: Option<u64>) -> RetryWhen {
    match code {
        _ if retry_after_s.is_some() => RetryWhen::Later,
        "reference_missing" | "still_referenced" => RetryWhen::WithOthers,
        _ => RetryWhen::Edited,
    }
}

/// What moves the cursor, or does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CursorEvent {
    /// The answer to a push that had a `base`. `complete`: the device's copy is all of what that base was,
    /// by its cursor, or by a whole roll call with every missing row fetched.
    Pushed {
        /// The answer's `version`.
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
    /// 410: the server cannot say what changed since the cursor.
    Expired,
    /// A roll call that was compared with the copy. What it asks for is still to come, and is known ahead of any
    /// cursor from before: were it deleted until then, no feed would mention it.
    Compared,
}

/// Where the cursor stands after an answer. It moves in the transaction that applied the answer, or the next
/// sync would skip what a crash lost.
pub fn cursor_after(cursor: Option<Version>, event: CursorEvent) -> Option<Version> {
    match event {
        CursorEvent::Pushed { version, complete: true } | CursorEvent::Page { version, more: false } => {
            Some(version)
        }
        CursorEvent::Pushed { complete: false, .. } | CursorEvent::Page { more: true, .. } => cursor,
        CursorEvent::Expired | CursorEvent::Compared => None,
    }
}

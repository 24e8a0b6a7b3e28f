//! Who may read for long: so many at once, and one for each owner.
//!
//! A long read is a page, or a stretch of an answer that flows. It needs a connection to the database and a thread; who
//! waits for its turn has neither.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::problem::ApiError;
use crate::broken;
use crate::model::Owner;
use crate::storage::StorageError;

/// How many long reads there may be at once, so that the other connections are there for short requests.
pub(super) struct Readers {
    all: Arc<Line>,
    owners: Mutex<HashMap<Owner, OwnersLine>>,
    wait: Duration,
}

/// The line of one owner, and how many stand in it or read.
struct OwnersLine {
    line: Arc<Line>,
    present: usize,
}

/// Places, and those who wait for one.
struct Line {
    slots: Arc<Semaphore>,
    waiting: AtomicUsize,
    wanted: Notify,
}

impl Readers {
    /// - `readers_max`: all connections that read; long reads have half of them.
    /// - `wait`: how long one waits for its turn.
    pub fn new(readers_max: u32, wait: Duration) -> Arc<Self> {
        let all = Line::new((readers_max as usize / 2).max(1));
        Arc::new(Self { all, owners: Mutex::default(), wait })
    }

    /// Waits for the owner's turn, and then for a place among all owners.
    ///
    /// Errors: `busy` if that takes too long.
    pub async fn enter(self: &Arc<Self>, owner: Owner) -> Result<Place, ApiError> {
        let turn = self.line_up(owner);
        let (own, all) = (Arc::clone(&turn.own), Arc::clone(&self.all));
        let both = async move {
            // First among its owner's own, so that one owner never stands in the way of others more than once.
            let of_owner = own.enter().await?;
            Some((of_owner, all.enter().await?))
        };
        let permits = timeout(self.wait, both).await.ok().flatten();
        let permits = permits.ok_or(ApiError::from(StorageError::Busy))?;
        Ok(Place { _permits: permits, turn })
    }

    fn line_up(self: &Arc<Self>, owner: Owner) -> Turn {
        let mut owners = self.owners.lock();
        let line = owners.entry(owner).or_insert_with(|| {
            let at_once = if broken::is("owner_reads_at_once") { Semaphore::MAX_PERMITS } else { 1 };
            OwnersLine { line: Line::new(at_once), present: 0 }
        });
        line.present += 1;
        Turn { readers: Arc::clone(self), owner, own: Arc::clone(&line.line) }
    }
}

impl Line {
    fn new(slots: usize) -> Arc<Self> {
        let slots = Arc::new(Semaphore::new(slots));
        Arc::new(Self { slots, waiting: AtomicUsize::new(0), wanted: Notify::new() })
    }

    async fn enter(&self) -> Option<OwnedSemaphorePermit> {
        if let Ok(permit) = Arc::clone(&self.slots).try_acquire_owned() {
            return Some(permit);
        }
        let _waiting = Waiting::new(self);
        Arc::clone(&self.slots).acquire_owned().await.ok()
    }

    fn is_wanted(&self) -> bool {
        self.waiting.load(Ordering::SeqCst) > 0
    }

    /// Ends once somebody waits for a place.
    async fn wanted(&self) {
        let mut wanted = pin!(self.wanted.notified());
        wanted.as_mut().enable(); // before the look, so that no call is missed
        if !self.is_wanted() {
            wanted.await;
        }
    }
}

/// One that waits; counted as long as it does.
struct Waiting<'a>(&'a Line);

impl<'a> Waiting<'a> {
    fn new(line: &'a Line) -> Self {
        line.waiting.fetch_add(1, Ordering::SeqCst);
        line.wanted.notify_waiters();
        Self(line)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

/// One that stands in its owner's line, or reads.
struct Turn {
    readers: Arc<Readers>,
    owner: Owner,
    own: Arc<Line>,
}

impl Drop for Turn {
    /// Memory follows the owners who read now, not all there are.
    fn drop(&mut self) {
        let mut owners = self.readers.owners.lock();
        if let Some(line) = owners.get_mut(&self.owner) {
            line.present -= 1;
            if line.present == 0 {
                owners.remove(&self.owner);
            }
        }
    }
}

/// A place among long reads. Dropped, it lets the next one in.
pub(super) struct Place {
    // Given back before the turn, which may forget the owner's line.
    _permits: (OwnedSemaphorePermit, OwnedSemaphorePermit),
    turn: Turn,
}

impl Place {
    /// Who waits for this very place: another request of the owner, or anybody.
    pub fn rivals(&self) -> Rivals {
        Rivals { own: Arc::clone(&self.turn.own), all: Arc::clone(&self.turn.readers.all) }
    }
}

/// Those who wait for a place.
#[derive(Clone)]
pub(super) struct Rivals {
    own: Arc<Line>,
    all: Arc<Line>,
}

impl Rivals {
    /// Whether somebody waits.
    pub fn are_there(&self) -> bool {
        self.own.is_wanted() || self.all.is_wanted()
    }

    /// Ends once somebody waits.
    pub async fn come(&self) {
        tokio::select! {
            () = self.own.wanted() => {}
            () = self.all.wanted() => {}
        }
    }
}

//! Limits long reads: the number at once, and one for each owner.
//!
//! A long read is a page, or one run of a streaming response. It uses a database connection and a thread; a
//! request that waits for its turn uses neither.

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

/// How many long reads run at once, so that the other connections remain for short requests.
pub(crate) struct Readers {
    all: Arc<Line>,
    owners: Mutex<HashMap<Owner, OwnersLine>>,
    wait: Duration,
}

/// The queue of one owner, and how many wait in it or read.
struct OwnersLine {
    line: Arc<Line>,
    present: usize,
}

/// The free slots, and the requests that wait for one.
struct Line {
    slots: Arc<Semaphore>,
    waiting: AtomicUsize,
    wanted: Notify,
}

impl Readers {
    /// - `readers_max`: all reading connections; long reads may use half of them.
    /// - `wait`: how long a request waits for its turn.
    pub fn new(readers_max: u32, wait: Duration) -> Arc<Self> {
        let all = Line::new((readers_max as usize / 2).max(1));
        Arc::new(Self { all, owners: Mutex::default(), wait })
    }

    /// Waits for the owner's turn, and then for a slot among all owners.
    ///
    /// Errors: `busy` if that takes too long.
    pub async fn enter(self: &Arc<Self>, owner: Owner) -> Result<Place, ApiError> {
        let turn = self.line_up(owner);
        let (own, all) = (Arc::clone(&turn.own), Arc::clone(&self.all));
        let both = async move {
            // First in the owner's own queue, so that one owner occupies at most one position in the common
            // one.
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

    /// Waits until a request waits for a slot.
    async fn wanted(&self) {
        let mut wanted = pin!(self.wanted.notified());
        wanted.as_mut().enable(); // enabled before the check, so that no notification is missed
        if !self.is_wanted() {
            wanted.await;
        }
    }
}

/// A waiting request, which is counted until this is dropped.
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

/// A request in its owner's queue, or one that reads.
struct Turn {
    readers: Arc<Readers>,
    owner: Owner,
    own: Arc<Line>,
}

impl Drop for Turn {
    /// Memory is used for the owners who read now, not for all owners.
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

/// A slot for a long read. Dropping it admits the next one.
pub(crate) struct Place {
    // Released before the turn, which may remove the owner's queue.
    _permits: (OwnedSemaphorePermit, OwnedSemaphorePermit),
    turn: Turn,
}

impl Place {
    /// The requests that wait for this slot: another one of the owner, or any.
    pub fn rivals(&self) -> Rivals {
        Rivals { own: Arc::clone(&self.turn.own), all: Arc::clone(&self.turn.readers.all) }
    }
}

/// The requests that wait for a slot.
#[derive(Clone)]
pub(crate) struct Rivals {
    own: Arc<Line>,
    all: Arc<Line>,
}

impl Rivals {
    /// Whether a request waits.
    pub fn are_there(&self) -> bool {
        self.own.is_wanted() || self.all.is_wanted()
    }

    /// Waits until a request waits.
    pub async fn come(&self) {
        tokio::select! {
            () = self.own.wanted() => {}
            () = self.all.wanted() => {}
        }
    }
}

//! Who listens for events, and what there is to hear.
//!
//! A listener holds a place in memory and no more: no thread, no database connection. What it has not yet been
//! told is not queued but replaced by newer news, so that one who reads slowly costs no memory either.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::sync::watch;

use super::problem::{ApiError, Unavailable};
use crate::config::Limits;
use crate::locks::Lease;
use crate::metrics::Metrics;
use crate::model::{DeviceId, Owner, Version};

/// The newest of everything that a listener is told.
#[derive(Clone, Debug, Default)]
pub(super) struct PendingEvents {
    /// The owner's version.
    pub version: Option<Version>,
    /// How often the lock changed hands since the listener came, and who holds it since the last time.
    pub lock: (u64, Option<Lease>),
    /// Why there will be no more news.
    pub ended: Option<End>,
}

/// Why a stream ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The token is no longer good.
    Unauthorized,
    /// The server is about to stop.
    ShuttingDown,
    /// The owner has opened more streams since than it may have.
    TooManyStreams,
}

impl End {
    pub const fn code(self) -> &'static str {
        match self {
            Self::Unauthorized => "unauthorized",
            Self::ShuttingDown => "shutting_down",
            Self::TooManyStreams => "too_many_streams",
        }
    }
}

/// Everyone who listens.
pub struct Events {
    streams_max: usize,
    owner_streams_max: usize,
    metrics: Arc<Metrics>,
    listeners: Mutex<Listeners>,
    last_id: AtomicU64,
}

#[derive(Default)]
struct Listeners {
    by_owner: HashMap<Owner, Vec<Listener>>,
    count: usize,
}

struct Listener {
    id: u64,
    device: DeviceId,
    pending: watch::Sender<PendingEvents>,
}

impl Events {
    /// Nobody listens yet.
    pub fn new(limits: &Limits, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self {
            streams_max: limits.event_streams_max,
            owner_streams_max: limits.event_streams_per_owner_max.max(1),
            metrics,
            listeners: Mutex::default(),
            last_id: AtomicU64::new(0),
        })
    }

    /// A place for one more listener.
    ///
    /// - Bounds: an owner's oldest listener makes room. It may be one that is long gone: a phone that lost its
    ///   network says no goodbye, and must not be kept out by its own ghost.
    /// - Errors: 503 `busy` if the server has as many as it may.
    pub(super) fn listen(self: &Arc<Self>, owner: Owner, device: DeviceId) -> Result<Subscription, ApiError> {
        let mut listeners = self.listeners.lock();
        let full = listeners.count >= self.streams_max;
        let Listeners { by_owner, count } = &mut *listeners;
        let own = by_owner.get(&owner).map_or(0, Vec::len);
        if own >= self.owner_streams_max {
            let oldest = by_owner.get_mut(&owner).map(|own| own.remove(0));
            oldest.inspect(|oldest| {
                oldest.pending.send_modify(|pending| pending.ended = Some(End::TooManyStreams))
            });
        } else if full {
            return Err(ApiError::Unavailable {
                code: Unavailable::Busy,
                reason: "The server has as many event streams as it may.",
                retry_after_s: 30,
            });
        } else {
            *count += 1;
        }
        let id = self.last_id.fetch_add(1, Ordering::Relaxed);
        let (pending, receiver) = watch::channel(PendingEvents::default());
        by_owner.entry(owner).or_default().push(Listener { id, device, pending });
        self.metrics.event_streams.set(i64::try_from(*count).unwrap_or(i64::MAX));
        Ok(Subscription { events: Arc::clone(self), owner, id, pending: receiver })
    }

    /// An owner's version has moved.
    pub fn moved(&self, owner: Owner, version: Version) {
        self.update(owner, |_, pending| pending.version = Some(version));
    }

    /// An owner's lock is another's now.
    pub fn locked(&self, owner: Owner, lease: Option<&Lease>) {
        self.update(owner, |_, pending| pending.lock = (pending.lock.0 + 1, lease.cloned()));
    }

    /// A device's token is no longer good.
    pub fn signed_out(&self, owner: Owner, device: DeviceId) {
        self.update(owner, |of, pending| {
            if of == device {
                pending.ended = Some(End::Unauthorized);
            }
        });
    }

    fn update(&self, owner: Owner, change: impl Fn(DeviceId, &mut PendingEvents)) {
        if let Some(own) = self.listeners.lock().by_owner.get(&owner) {
            for listener in own {
                listener.pending.send_modify(|pending| change(listener.device, pending));
            }
        }
    }
}

/// A listener's place; given back on drop.
pub(super) struct Subscription {
    events: Arc<Events>,
    owner: Owner,
    id: u64,
    pending: watch::Receiver<PendingEvents>,
}

impl Subscription {
    /// Ends when there is news that [`Self::pending`] has not shown.
    pub async fn changed(&mut self) {
        if self.pending.changed().await.is_err() {
            // Its place went to another, and the news that it ended was shown.
            std::future::pending::<()>().await;
        }
    }

    /// The newest of everything.
    pub fn pending(&mut self) -> PendingEvents {
        self.pending.borrow_and_update().clone()
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut listeners = self.events.listeners.lock();
        let Listeners { by_owner, count } = &mut *listeners;
        let Some(own) = by_owner.get_mut(&self.owner) else { return };
        // One that had to make room is not there any more.
        let Some(index) = own.iter().position(|listener| listener.id == self.id) else { return };
        own.remove(index);
        if own.is_empty() {
            by_owner.remove(&self.owner);
        }
        *count -= 1;
        self.events.metrics.event_streams.set(i64::try_from(*count).unwrap_or(i64::MAX));
    }
}

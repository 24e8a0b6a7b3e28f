//! The listeners of event streams, and the events that wait for them.
//!
//! A listener uses some memory, but no thread and no database connection. Events are not queued: a newer
//! event replaces an unsent one of its kind. So a slow listener needs no more memory.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::sync::watch;
use uuid::Uuid;

use super::problem::{ApiError, Unavailable};
use crate::accounts::Caller;
use crate::config::Limits;
use crate::locks::Lease;
use crate::metrics::Metrics;
use crate::model::{DeviceId, Owner, Version};

/// The newest event of each kind.
#[derive(Clone, Debug, Default)]
pub(crate) struct PendingEvents {
    /// The owner's version.
    pub version: Option<Version>,
    /// How often the lock changed since the listener came, and its present holder.
    pub lock: (u64, Option<Lease>),
    /// Why the stream ends.
    pub ended: Option<End>,
}

/// Why a stream ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The token is no longer valid.
    Unauthorized,
    /// The user is no member of the owner any more.
    NotAMember,
    /// The server is stopping.
    ShuttingDown,
    /// The owner has opened more streams since than allowed.
    TooManyStreams,
}

impl End {
    pub const fn code(self) -> &'static str {
        match self {
            Self::Unauthorized => "unauthorized",
            Self::NotAMember => "not_a_member",
            Self::ShuttingDown => "shutting_down",
            Self::TooManyStreams => "too_many_streams",
        }
    }
}

/// All listeners.
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
    user: Uuid,
    device: DeviceId,
    pending: watch::Sender<PendingEvents>,
}

impl Events {
    /// Creates the registry without listeners.
    pub fn new(limits: &Limits, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self {
            streams_max: limits.event_streams_max,
            owner_streams_max: limits.event_streams_per_owner_max.max(1),
            metrics,
            listeners: Mutex::default(),
            last_id: AtomicU64::new(0),
        })
    }

    /// Adds a listener.
    ///
    /// - Bounds: a new listener replaces the owner's oldest one. A phone that lost its network never closes
    ///   its stream; the stale stream must not block the new one.
    /// - Errors: 503 `busy` if the server has the maximum number of streams.
    pub(crate) fn listen(self: &Arc<Self>, caller: &Caller) -> Result<Subscription, ApiError> {
        let Caller { owner, user, token_device: device, .. } = *caller;
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
        by_owner.entry(owner).or_default().push(Listener { id, user, device, pending });
        self.metrics.event_streams.set(i64::try_from(*count).unwrap_or(i64::MAX));
        Ok(Subscription { events: Arc::clone(self), owner, id, pending: receiver })
    }

    /// Reports an owner's new version.
    pub fn moved(&self, owner: Owner, version: Version) {
        self.update(owner, |_, pending| pending.version = Some(version));
    }

    /// Reports the new holder of an owner's lock.
    pub fn locked(&self, owner: Owner, lease: Option<&Lease>) {
        self.update(owner, |_, pending| pending.lock = (pending.lock.0 + 1, lease.cloned()));
    }

    /// Reports that a device's token is no longer valid.
    pub fn signed_out(&self, owner: Owner, device: DeviceId) {
        self.end(owner, End::Unauthorized, |listener| listener.device == device);
    }

    /// Reports that a user is no member of an owner any more.
    pub fn left(&self, owner: Owner, user: Uuid) {
        self.end(owner, End::NotAMember, |listener| listener.user == user);
    }

    fn end(&self, owner: Owner, end: End, is_meant: impl Fn(&Listener) -> bool) {
        self.update(owner, |listener, pending| {
            if is_meant(listener) {
                pending.ended = Some(end);
            }
        });
    }

    fn update(&self, owner: Owner, change: impl Fn(&Listener, &mut PendingEvents)) {
        if let Some(own) = self.listeners.lock().by_owner.get(&owner) {
            for listener in own {
                listener.pending.send_modify(|pending| change(listener, pending));
            }
        }
    }
}

/// A registered listener; dropping it ends the registration.
pub(crate) struct Subscription {
    events: Arc<Events>,
    owner: Owner,
    id: u64,
    pending: watch::Receiver<PendingEvents>,
}

impl Subscription {
    /// Waits until there are events that [`Self::pending`] has not returned.
    pub async fn changed(&mut self) {
        if self.pending.changed().await.is_err() {
            // Another listener has replaced it, and the end was already returned.
            std::future::pending::<()>().await;
        }
    }

    /// The newest event of each kind.
    pub fn pending(&mut self) -> PendingEvents {
        self.pending.borrow_and_update().clone()
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut listeners = self.events.listeners.lock();
        let Listeners { by_owner, count } = &mut *listeners;
        let Some(own) = by_owner.get_mut(&self.owner) else { return };
        // A replaced listener was removed already.
        let Some(index) = own.iter().position(|listener| listener.id == self.id) else { return };
        own.remove(index);
        if own.is_empty() {
            by_owner.remove(&self.owner);
        }
        *count -= 1;
        self.events.metrics.event_streams.set(i64::try_from(*count).unwrap_or(i64::MAX));
    }
}

//! The listeners of event streams, and the events that wait for them.
//!
//! A listener uses some memory, but no thread and no database connection. Events are not queued: a newer
//! event replaces an unsent one of its kind. So a slow listener needs no more memory.
//!
//! A listener has one owner, or all owners of its user. The second kind is found by each of its owners too: a commit
//! finds all listeners by one look-up, and an owner at rest costs its listeners an entry of a map each.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::yield_now;
use uuid::Uuid;

use super::problem::{ApiError, Unavailable};
use crate::accounts::Caller;
use crate::broken;
use crate::config::Limits;
use crate::locks::Lease;
use crate::metrics::Metrics;
use crate::model::{DeviceId, Owner, Version};
use crate::storage::accounts::MemberChange;

/// So many listeners of an owner are woken by the thread that has committed. If an owner has more, a task wakes them, and
/// the thread does not wait for it.
const WOKEN_AT_ONCE: usize = 64;

/// The newest event of each kind.
#[derive(Clone, Debug, Default)]
pub(crate) struct PendingEvents {
    /// The owner's version.
    pub version: Option<Version>,
    /// How often the lock changed since the listener came, and its present holder.
    pub lock: (u64, Option<Lease>),
    /// Why the stream ends.
    pub ended: Option<End>,
    /// The versions of a listener's owners that moved, if it has all owners of its user.
    pub moved: BTreeMap<Owner, Version>,
    /// Whether the user may have other owners or roles since, if the listener has all owners.
    pub members_changed: bool,
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
    /// The user has opened more streams since than allowed.
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
    user_streams_max: usize,
    metrics: Arc<Metrics>,
    listeners: Mutex<Listeners>,
}

#[derive(Default)]
struct Listeners {
    /// In no particular order.
    by_owner: HashMap<Owner, Vec<Arc<Listener>>>,
    /// The oldest first.
    by_user: HashMap<Uuid, Vec<Arc<Listener>>>,
    count: usize,
    /// Owners whose listeners a task is about to wake, each once.
    waiting: VecDeque<Owner>,
    /// What their listeners are woken for.
    news: HashMap<Owner, News>,
    /// The owner whose listeners the task wakes now.
    waking: Option<Owner>,
    /// Where the streams run.
    runtime: Option<Handle>,
}

/// What happened to an owner.
#[derive(Default)]
struct News {
    version: Option<Version>,
    /// The present holder of the lock, if it is another one.
    lock: Option<Option<Lease>>,
}

impl News {
    fn add(&mut self, newer: Self) {
        self.version = self.version.max(newer.version);
        self.lock = newer.lock.or(self.lock.take());
    }

    /// Reports them to a listener.
    fn reach(&self, listener: &Listener, owner: Owner) {
        listener.update(|pending| match (listener.has_all, self.version) {
            (true, Some(version)) => {
                let known = pending.moved.entry(owner).or_insert(version);
                *known = version.max(*known);
            }
            (true, None) => {}
            (false, version) => {
                pending.version = pending.version.max(version);
                if let Some(lease) = &self.lock {
                    pending.lock = (pending.lock.0 + 1, lease.clone());
                }
            }
        });
    }
}

struct Listener {
    user: Uuid,
    device: DeviceId,
    /// Whether it has all owners of its user.
    has_all: bool,
    /// Whether the token names the rights, so that the owner's members do not matter.
    is_by_token: bool,
    /// The owners by which it is found, sorted.
    owners: Mutex<Vec<Owner>>,
    pending: Mutex<PendingEvents>,
    changed: Notify,
}

impl Listener {
    fn update(&self, change: impl FnOnce(&mut PendingEvents)) {
        change(&mut self.pending.lock());
        self.changed.notify_one();
    }
}

impl Events {
    /// Creates the registry without listeners.
    pub fn new(limits: &Limits, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self {
            streams_max: limits.event_streams_max,
            user_streams_max: limits.event_streams_per_user_max.max(1),
            metrics,
            listeners: Mutex::default(),
        })
    }

    /// Adds a listener to the caller's owner.
    ///
    /// - Bounds: a new listener replaces the user's oldest one. A phone that lost its network never closes
    ///   its stream; the stale stream must not block the new one.
    /// - Errors: 503 `busy` if the server has the maximum number of streams.
    pub(crate) fn listen(self: &Arc<Self>, caller: &Caller) -> Result<Subscription, ApiError> {
        let subscription = self.add(caller, false)?;
        subscription.follow(vec![caller.owner]);
        Ok(subscription)
    }

    /// Adds a listener to all owners of the caller: those that [`Subscription::follow`] names.
    ///
    /// Bounds and errors as of [`Self::listen`].
    pub(crate) fn listen_to_all(self: &Arc<Self>, caller: &Caller) -> Result<Subscription, ApiError> {
        self.add(caller, true)
    }

    fn add(self: &Arc<Self>, caller: &Caller, has_all: bool) -> Result<Subscription, ApiError> {
        let mut listeners = self.listeners.lock();
        let own = listeners.by_user.get(&caller.user);
        let oldest =
            own.filter(|own| own.len() >= self.user_streams_max).and_then(|own| own.first()).cloned();
        if let Some(oldest) = oldest {
            listeners.remove(&oldest);
            oldest.update(|pending| pending.ended = Some(End::TooManyStreams));
        } else if listeners.count >= self.streams_max {
            return Err(ApiError::Unavailable {
                code: Unavailable::Busy,
                reason: "The server has as many event streams as it may.",
                retry_after_s: 30,
            });
        }
        let listener = Arc::new(Listener {
            user: caller.user,
            device: caller.token_device,
            has_all,
            is_by_token: caller.rights.is_of_token(),
            owners: Mutex::default(),
            pending: Mutex::default(),
            changed: Notify::new(),
        });
        listeners.by_user.entry(caller.user).or_default().push(Arc::clone(&listener));
        listeners.count += 1;
        listeners.runtime = Handle::try_current().ok();
        self.show(&listeners);
        Ok(Subscription { events: Arc::clone(self), listener })
    }

    fn show(&self, listeners: &Listeners) {
        self.metrics.event_streams.set(i64::try_from(listeners.count).unwrap_or(i64::MAX));
    }

    /// Reports an owner's new version.
    pub fn moved(self: &Arc<Self>, owner: Owner, version: Version) {
        self.report(owner, News { version: Some(version), lock: None });
    }

    /// Reports the new holder of an owner's lock.
    pub fn locked(self: &Arc<Self>, owner: Owner, lease: Option<&Lease>) {
        self.report(owner, News { version: None, lock: Some(lease.cloned()) });
    }

    fn report(self: &Arc<Self>, owner: Owner, news: News) {
        let mut listeners = self.listeners.lock();
        let Some(own) = listeners.by_owner.get(&owner) else { return };
        // What is newer must not come before what still waits.
        let is_first = !listeners.news.contains_key(&owner) && listeners.waking != Some(owner);
        let runtime = listeners.runtime.clone().filter(|_| own.len() > WOKEN_AT_ONCE || !is_first);
        let Some(runtime) = runtime else {
            return own.iter().for_each(|listener| news.reach(listener, owner));
        };
        let is_idle = listeners.waiting.is_empty() && listeners.waking.is_none();
        if let Some(older) = listeners.news.get_mut(&owner) {
            older.add(news);
        } else {
            listeners.news.insert(owner, news);
            listeners.waiting.push_back(owner);
        }
        if is_idle {
            runtime.spawn(Arc::clone(self).wake());
        }
    }

    /// Wakes the listeners of the owners that wait, until none does.
    async fn wake(self: Arc<Self>) {
        while let Some((owner, own, news)) = self.next_to_wake() {
            own.iter().for_each(|listener| news.reach(listener, owner));
            yield_now().await;
        }
    }

    fn next_to_wake(&self) -> Option<(Owner, Vec<Arc<Listener>>, News)> {
        let mut listeners = self.listeners.lock();
        listeners.waking = listeners.waiting.pop_front();
        let owner = listeners.waking?;
        let news = listeners.news.remove(&owner).unwrap_or_default();
        Some((owner, listeners.by_owner.get(&owner).cloned().unwrap_or_default(), news))
    }

    /// Reports that a device's token is no longer valid.
    pub fn signed_out(&self, user: Uuid, device: DeviceId) {
        let listeners = self.listeners.lock();
        let own = listeners.by_user.get(&user).into_iter().flatten();
        for listener in own.filter(|listener| listener.device == device) {
            listener.update(|pending| pending.ended = Some(End::Unauthorized));
        }
    }

    /// Reports that an owner's members are others, or have other roles.
    pub fn members_changed(&self, change: MemberChange) {
        if broken::is("member_change_unnoticed") {
            return;
        }
        let listeners = self.listeners.lock();
        let concerned = match change.user {
            Some(user) => listeners.by_user.get(&user),
            None => listeners.by_owner.get(&change.owner),
        };
        for listener in concerned.into_iter().flatten() {
            if listener.has_all {
                listener.update(|pending| pending.members_changed = true);
            } else if change.left
                && !(listener.is_by_token && change.user.is_some())
                && listener.owners.lock().contains(&change.owner)
            {
                listener.update(|pending| pending.ended = Some(End::NotAMember));
            }
        }
    }
}

impl Listeners {
    /// Removes a listener, so that nothing finds it any more. It may have been removed before.
    fn remove(&mut self, listener: &Arc<Listener>) {
        for owner in std::mem::take(&mut *listener.owners.lock()) {
            self.unfollow(owner, listener);
        }
        let Some(own) = self.by_user.get_mut(&listener.user) else { return };
        let Some(index) = own.iter().position(|one| Arc::ptr_eq(one, listener)) else { return };
        own.remove(index);
        if own.is_empty() {
            self.by_user.remove(&listener.user);
        }
        self.count -= 1;
    }

    fn unfollow(&mut self, owner: Owner, listener: &Arc<Listener>) {
        let Some(all) = self.by_owner.get_mut(&owner) else { return };
        if let Some(index) = all.iter().position(|one| Arc::ptr_eq(one, listener)) {
            all.swap_remove(index);
        }
        if all.is_empty() {
            self.by_owner.remove(&owner);
        }
    }
}

/// A registered listener; dropping it ends the registration.
pub(crate) struct Subscription {
    events: Arc<Events>,
    listener: Arc<Listener>,
}

impl Subscription {
    /// Listens to exactly these owners from now on, which are sorted. Returns whether one of them is new: its events
    /// from before this call are missing.
    pub fn follow(&self, owners: Vec<Owner>) -> bool {
        let mut listeners = self.events.listeners.lock();
        let mut followed = self.listener.owners.lock();
        for gone in followed.iter().filter(|owner| owners.binary_search(owner).is_err()) {
            listeners.unfollow(*gone, &self.listener);
        }
        let mut has_new = false;
        for new in owners.iter().filter(|owner| followed.binary_search(owner).is_err()) {
            has_new = true;
            listeners.by_owner.entry(*new).or_default().push(Arc::clone(&self.listener));
        }
        *followed = owners;
        has_new
    }

    /// Waits until there are events that [`Self::pending`] has not returned.
    pub async fn changed(&mut self) {
        self.listener.changed.notified().await;
    }

    /// The newest event of each kind. Those of a listener to all owners are returned once.
    pub fn pending(&mut self) -> PendingEvents {
        let mut pending = self.listener.pending.lock();
        let moved = std::mem::take(&mut pending.moved);
        let members_changed = std::mem::take(&mut pending.members_changed);
        PendingEvents { moved, members_changed, ..pending.clone() }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut listeners = self.events.listeners.lock();
        listeners.remove(&self.listener);
        self.events.show(&listeners);
    }
}

//! The leases of the sync lock, as an engine stores them for several servers.

use std::sync::Arc;

use super::StorageResult;
use crate::model::{DeviceId, Fence, Owner, Timestamp};

/// Where the leases of an engine's owners are stored.
pub enum Leases {
    /// In the memory of the one server that uses the database. New fences are higher than this one, which is
    /// higher than every fence of earlier runs.
    InMemory(Fence),
    /// In the database, for every server that uses it.
    Shared(Arc<dyn LeaseStore>),
}

/// How long locks are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseTerms {
    /// The length of a lease, ms: how long a device may be silent.
    pub lease_ms: i64,
    /// The length of a hold, ms, however often its lease is renewed. Afterwards other devices may take the
    /// lock for the length of one lease; if none does, the holder may continue.
    pub hold_ms: i64,
}

impl LeaseTerms {
    /// Terms of `lease_ms` milliseconds and `hold_max_s` seconds.
    pub fn new(lease_ms: u64, hold_max_s: u64) -> Self {
        // This is far beyond any use, and keeps sums with times within 64 bits.
        const MOST_MS: i64 = 1 << 50;
        let ms = |ms: u64| i64::try_from(ms).unwrap_or(MOST_MS).min(MOST_MS);
        Self { lease_ms: ms(lease_ms), hold_ms: ms(hold_max_s.saturating_mul(1_000)).max(ms(lease_ms)) }
    }
}

/// The lease of an owner at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseState {
    /// The newest fence.
    pub fence: Fence,
    /// The device that received it; `None` if none did, or the lease was broken.
    pub holder: Option<DeviceId>,
    /// The name that the holder gave.
    pub holder_name: String,
    /// When it began.
    pub since: Timestamp,
    /// When it ends; `None` if it was given back.
    pub until: Option<Timestamp>,
    /// The moment of this state, by the database's clock.
    pub now: Timestamp,
}

impl LeaseState {
    /// Whether the device has the newest fence and its lease was not ended. The lease may have expired.
    pub fn is_open_to(&self, device: DeviceId) -> bool {
        self.holder == Some(device) && self.until.is_some()
    }

    /// Whether another device holds the lock, so that `device` must wait.
    pub fn keeps_out(&self, device: DeviceId) -> bool {
        self.holder.is_some_and(|holder| holder != device) && self.is_running()
    }

    /// Whether the lease has neither expired nor been ended.
    pub fn is_running(&self) -> bool {
        self.holder.is_some() && self.until.is_some_and(|until| self.now < until)
    }
}

/// Called with an owner's lease after it was taken or ended.
pub type LeaseListener = Arc<dyn Fn(Owner, Option<&LeaseState>) + Send + Sync>;

/// Leases in a database. Every time is by the database's clock.
pub trait LeaseStore: Send + Sync {
    /// The lease of an owner; `None` if none was ever taken.
    fn look(&self, owner: Owner) -> StorageResult<Option<LeaseState>>;

    /// Leases that run now, in no particular order, at most `leases_max`.
    fn held_now(&self, leases_max: usize) -> StorageResult<Vec<(Owner, LeaseState)>>;

    /// Takes the lock for a device, or renews its lease, unless another device holds it.
    ///
    /// - `fence`: take the lock only if this is the newest fence and the device's own.
    /// - The fence rises unless the lease is the device's own and was not ended.
    /// - A device's lease ends with its hold, which began at `since`. A lease that expired at least the
    ///   length of a lease ago begins a new hold.
    fn take(
        &self,
        owner: Owner,
        device: DeviceId,
        name: &str,
        fence: Option<Fence>,
        terms: LeaseTerms,
    ) -> StorageResult<Option<LeaseState>>;

    /// Renews a running lease of the device that has less than `below_ms` left, but not beyond the hold.
    /// Otherwise it changes nothing.
    fn renew(&self, owner: Owner, device: DeviceId, terms: LeaseTerms, below_ms: i64) -> StorageResult<()>;

    /// Shortens a lease that ends more than `lease_ms` from now, since the database's clock may have been set
    /// back since it was taken. Otherwise it changes nothing.
    fn cut(&self, owner: Owner, lease_ms: i64) -> StorageResult<()>;

    /// Ends the lease of the device, which may still write under its fence until another device takes the
    /// lock.
    fn give_back(&self, owner: Owner, device: DeviceId) -> StorageResult<()>;

    /// Calls the listener for every lease that this or another server takes or ends. The listener must be
    /// fast.
    fn on_changed(&self, listener: LeaseListener);

    /// Revokes the current lease; writes in flight under it are rolled back.
    fn break_open(&self, owner: Owner) -> StorageResult<()>;
}

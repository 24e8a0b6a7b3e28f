//! The leases of the sync lock, where the engine keeps them for several servers.

use std::sync::Arc;

use super::StorageResult;
use crate::model::{DeviceId, Fence, Owner, Timestamp};

/// How the leases of an engine's owners are kept.
pub enum Leases {
    /// By the one server that the database belongs to, in its memory. Fences begin above this one, which is
    /// above every fence of earlier runs.
    InMemory(Fence),
    /// In the database, for every server on it.
    Shared(Arc<dyn LeaseStore>),
}

/// How long locks are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseTerms {
    /// One lease, ms: what a device may be silent for.
    pub lease_ms: i64,
    /// One hold, ms, however often its lease is renewed. Then others have the chance of one lease; if none took it, the
    /// holder may go on.
    pub hold_ms: i64,
}

impl LeaseTerms {
    /// Of `lease_ms` milliseconds and `hold_max_s` seconds.
    pub fn new(lease_ms: u64, hold_max_s: u64) -> Self {
        // Far beyond any use, and sums of them and of times stay within 64 bits.
        const MOST_MS: i64 = 1 << 50;
        let ms = |ms: u64| i64::try_from(ms).unwrap_or(MOST_MS).min(MOST_MS);
        Self { lease_ms: ms(lease_ms), hold_ms: ms(hold_max_s.saturating_mul(1_000)).max(ms(lease_ms)) }
    }
}

/// The lease of an owner as of one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseState {
    /// The newest fence.
    pub fence: Fence,
    /// The device that was given it; `None` if nobody was, or the lease was broken.
    pub holder: Option<DeviceId>,
    /// As the holder calls itself.
    pub holder_name: String,
    /// Since when.
    pub since: Timestamp,
    /// Until when; `None` if it was given back.
    pub until: Option<Timestamp>,
    /// That moment, by the database's clock.
    pub now: Timestamp,
}

impl LeaseState {
    /// Whether the device was given the newest fence, and nobody has ended the lease: it may have run out.
    pub fn is_open_to(&self, device: DeviceId) -> bool {
        self.holder == Some(device) && self.until.is_some()
    }

    /// Whether a device other than `device` must be waited for.
    pub fn keeps_out(&self, device: DeviceId) -> bool {
        self.holder.is_some_and(|holder| holder != device) && self.is_running()
    }

    /// Whether the lease has neither run out nor been ended.
    pub fn is_running(&self) -> bool {
        self.holder.is_some() && self.until.is_some_and(|until| self.now < until)
    }
}

/// Hears that an owner's lease was given to a device, or ended, and how it stands now.
pub type LeaseListener = Arc<dyn Fn(Owner, Option<&LeaseState>) + Send + Sync>;

/// Leases in a database. Every time is by the database's clock.
pub trait LeaseStore: Send + Sync {
    /// The lease of an owner; `None` if nobody ever had one.
    fn look(&self, owner: Owner) -> StorageResult<Option<LeaseState>>;

    /// Leases that run now, in no order, at most `leases_max`.
    fn held_now(&self, leases_max: usize) -> StorageResult<Vec<(Owner, LeaseState)>>;

    /// Gives the lock to a device for a lease, or renews its lease, unless another device has to be waited for.
    ///
    /// - `fence`: only if this is the newest and the device's own.
    /// - The fence rises unless the lease is the device's own and was not ended.
    /// - A lease of the device's own ends with the hold, which began at `since`; one that ran out a lease ago, or longer,
    ///   begins a new hold.
    fn take(
        &self,
        owner: Owner,
        device: DeviceId,
        name: &str,
        fence: Option<Fence>,
        terms: LeaseTerms,
    ) -> StorageResult<Option<LeaseState>>;

    /// Renews a lease of the device that runs and has less than `below_ms` left, but not beyond the hold; else changes
    /// nothing.
    fn renew(&self, owner: Owner, device: DeviceId, terms: LeaseTerms, below_ms: i64) -> StorageResult<()>;

    /// Lets a lease that ends later than in `lease_ms` end then; else changes nothing. The database's clock may have
    /// been set back since it was given.
    fn cut(&self, owner: Owner, lease_ms: i64) -> StorageResult<()>;

    /// Ends the lease of the device, which may still write under its fence until another takes the lock.
    fn give_back(&self, owner: Owner, device: DeviceId) -> StorageResult<()>;

    /// `told` hears of every lease that is given or ended, by this server or another. It must be quick.
    fn on_changed(&self, listener: LeaseListener);

    /// Ends the lease of whoever has it: what is being written under it is not kept.
    fn break_open(&self, owner: Owner) -> StorageResult<()>;
}

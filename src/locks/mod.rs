//! The sync lock: only one device of an owner reconciles at a time.
//!
//! A lease names the holder of the lock and its end; its fence rises each time that the lock changes hands.
//! Safety does not depend on the lease's time: every write checks once more, as its last step, whether it may
//! commit.
//!
//! - `local`: one server has the database to itself. While a holder's request is in progress no other device
//!   gets the lock.
//! - `shared`: several servers, with the leases in the database. A write locks its owner's row, so no other
//!   device gets the lock until the write has ended. Before and after that, the server renews the lease of a
//!   request in progress. A request without a lease needs none: the row lock keeps others out.

mod local;
mod shared;

use std::sync::Arc;

use crate::accounts::Caller;
use crate::clock::Tick;
use crate::model::{DeviceId, Fence, Owner, Timestamp};
use crate::storage::{LeaseState, StorageError};

pub use local::LocalLocks;
pub use shared::SharedLocks;

/// The result of a lock operation.
pub type LockResult<T> = Result<T, LockError>;

/// Called when an owner's lock was taken or ended, with the present holder. The expiry or renewal of a lease
/// is not reported.
pub type LockListener = Arc<dyn Fn(Owner, Option<&Lease>) + Send + Sync>;

/// The holder of an owner's lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The holder.
    pub device: DeviceId,
    /// The name that the holder gave.
    pub device_name: String,
    /// Higher than the fence of every earlier holder.
    pub fence: Fence,
    /// When it began; for display, since it may be by another machine's clock.
    pub since: Timestamp,
    /// When it ends unless it is renewed; for display.
    pub until: Timestamp,
    /// The same end by this server's monotonic clock, which timers use.
    pub ends: Tick,
}

impl Lease {
    fn is_of(&self, caller: &Caller) -> bool {
        self.device == caller.device
    }
}

/// Why the lock was not granted.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another device holds it, or the device itself has held it for the maximum time, and others come first.
    #[error("{} holds the lock", .0.device_name)]
    Busy(Lease),
    /// The fence of the request is no longer the newest, or never was the device's own.
    #[error("the lease was lost")]
    Lost,
    /// The locks cannot be read now.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// The locks of all owners.
pub trait Locks: Send + Sync {
    /// Whether operations may wait for a database, so that they must not run on the reactor.
    fn is_remote(&self) -> bool;

    /// Calls `listener` with every lock that changes hands, on any server. It must be fast, and must not call
    /// the locks. Only the first listener is used.
    fn on_changed(&self, listener: LockListener);

    /// Takes the lock, or renews the device's own lease: the lease outlives the request.
    ///
    /// - `fence`: the lease that the device wants to continue; without it any lease is accepted.
    /// - Errors: [`LockError::Busy`] with the holder; [`LockError::Lost`] if `fence` is not the newest.
    fn take(self: Arc<Self>, caller: &Caller, fence: Option<Fence>) -> LockResult<Box<dyn LockGuard>>;

    /// Lets the caller write in this request, under its lease or without one.
    ///
    /// Parameters and errors as for [`Locks::take`].
    fn enter(self: Arc<Self>, caller: &Caller, fence: Option<Fence>) -> LockResult<Box<dyn LockGuard>>;

    /// Renews the lease of its holder; for other callers it does nothing.
    ///
    /// Does not revive an expired lease. Otherwise a polling device would block the others long after its
    /// sync failed. A lease never lasts beyond the hold.
    fn renew(&self, caller: &Caller) -> LockResult<()>;

    /// The present holder.
    fn holder(&self, owner: Owner) -> LockResult<Option<Lease>>;

    /// Locks that are held now, in no particular order, at most `locks_max`.
    fn held_now(&self, locks_max: usize) -> LockResult<Vec<(Owner, Lease)>>;

    /// Releases the lock if the caller holds it.
    fn give_back(&self, caller: &Caller) -> LockResult<()>;

    /// Revokes the present lease; writes in progress under it are rolled back.
    fn break_open(&self, owner: Owner) -> LockResult<()>;
}

/// A request that changes no row, and so needs no lock.
pub struct Unlocked;

impl LockGuard for Unlocked {
    fn lease(&self) -> Option<&Lease> {
        None
    }

    fn had_lock(&self) -> bool {
        false
    }

    fn confirm(&self, _: Option<&LeaseState>) -> LockResult<()> {
        Ok(())
    }

    fn end(&self, _: bool) -> LockResult<()> {
        Ok(())
    }
}

/// A request in progress under the lock. Dropping it admits other devices once the lease has ended.
pub trait LockGuard: Send + Sync {
    /// The lease of the request, if any.
    fn lease(&self) -> Option<&Lease>;

    /// Whether the device had the lock before this request.
    fn had_lock(&self) -> bool;

    /// Called as the last step before a commit: whether the write may be committed.
    ///
    /// - `held`: the lease as the write's transaction has it, if the engine stores leases.
    /// - Errors: [`LockError::Lost`] if the lease was broken or taken over since; [`LockError::Busy`] if
    ///   there was none and another device has taken the lock since.
    fn confirm(&self, held: Option<&LeaseState>) -> LockResult<()>;

    /// Ends the request: the device keeps the lock, or releases it.
    fn end(&self, keeps_lock: bool) -> LockResult<()>;
}

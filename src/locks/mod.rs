//! The sync lock: one device of an owner reconciles at a time.
//!
//! A lease says who holds the lock and until when; its fence rises each time the lock changes hands. Safety never
//! rests on the lease's time: every write asks once more, as its last step, whether it may still be kept.
//!
//! - `local`: one server has the database to itself. While a holder's request is at work nobody else is given the
//!   lock.
//! - `shared`: several servers, and the leases stand in the database. A write holds its owner's row, so nobody else
//!   is given the lock until it has ended; before and after it a request at work has its lease renewed, as long as
//!   its server lives. A request without a lease needs none: holding the row is what keeps others out.

mod local;
mod shared;

use std::sync::Arc;

use crate::accounts::Caller;
use crate::clock::Tick;
use crate::model::{DeviceId, Fence, Owner, Timestamp};
use crate::storage::{LeaseState, StorageError};

pub use local::LocalLocks;
pub use shared::SharedLocks;

/// What a call of the locks ends in.
pub type LockResult<T> = Result<T, LockError>;

/// Hears that an owner's lock was taken, or ended, and by whom it is held now. A lease that merely runs out, or is
/// renewed, is not told.
pub type LockListener = Arc<dyn Fn(Owner, Option<&Lease>) + Send + Sync>;

/// Who holds an owner's lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The holder.
    pub device: DeviceId,
    /// As the holder calls itself.
    pub device_name: String,
    /// Above the fence of every earlier holder.
    pub fence: Fence,
    /// Since when; for people, as it may be by another machine's clock.
    pub since: Timestamp,
    /// Until when, unless the holder asks for anything before; for people, too.
    pub until: Timestamp,
    /// When that is by this server's own monotonic clock: what waits for the end goes by it.
    pub ends: Tick,
}

impl Lease {
    fn is_of(&self, caller: &Caller) -> bool {
        self.device == caller.device
    }
}

/// Why the lock was not given.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another device holds it; or the device itself has held it for as long as it may, and others come first.
    #[error("{} holds the lock", .0.device_name)]
    Busy(Lease),
    /// The fence that the device named is no longer the newest, or never was its own.
    #[error("the lease was lost")]
    Lost,
    /// Nobody can tell now.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// The locks of all owners.
pub trait Locks: Send + Sync {
    /// Whether calls may wait for a database, and so must not be made on the reactor.
    fn is_remote(&self) -> bool;

    /// Calls `listener` with every lock that changes hands, whichever server changed it. It must be quick, and must not
    /// call back. The first listener is the only one.
    fn on_changed(&self, listener: LockListener);

    /// Takes the lock, or renews it for the device that has it: the lease outlives the request.
    ///
    /// - `fence`: the lease that the device means to go on under; without it any will do.
    /// - Errors: [`LockError::Busy`] with the holder; [`LockError::Lost`] if `fence` is not the newest.
    fn take(self: Arc<Self>, caller: &Caller, fence: Option<Fence>) -> LockResult<Box<dyn LockGuard>>;

    /// Sees to it that the caller may write in this request: under the lease that it has, or without one.
    ///
    /// Parameters and errors as of [`Locks::take`].
    fn enter(self: Arc<Self>, caller: &Caller, fence: Option<Fence>) -> LockResult<Box<dyn LockGuard>>;

    /// Renews the lease of its holder; of anyone else it says nothing and changes nothing.
    ///
    /// A lease that ran out stays so: a device that merely looks on every few seconds would else keep all
    /// others out, long after its sync broke off. Nor does a lease last beyond the hold.
    fn renew(&self, caller: &Caller) -> LockResult<()>;

    /// Who holds the lock now.
    fn holder(&self, owner: Owner) -> LockResult<Option<Lease>>;

    /// Locks that are held now, in no order, at most `locks_max`.
    fn held_now(&self, locks_max: usize) -> LockResult<Vec<(Owner, Lease)>>;

    /// Gives the lock back; a caller that does not hold it loses nothing.
    fn give_back(&self, caller: &Caller) -> LockResult<()>;

    /// Ends the lease of whoever holds the lock. What its holder is writing is not kept.
    fn break_open(&self, owner: Owner) -> LockResult<()>;
}

/// A request at work under the lock. Dropped, wherever that happens, it lets others in once the lease has ended.
pub trait LockGuard: Send + Sync {
    /// The lease that the work is done under, if there is one.
    fn lease(&self) -> Option<&Lease>;

    /// Whether the device had the lock before this request.
    fn had_lock(&self) -> bool;

    /// Asked as the last step before a write is kept: whether it may be.
    ///
    /// - `held`: the lease as the write's transaction holds it, where the engine keeps leases.
    /// - Errors: [`LockError::Lost`] if the lease was broken or taken over meanwhile; [`LockError::Busy`] if there
    ///   was none and another device has taken the lock since.
    fn confirm(&self, held: Option<&LeaseState>) -> LockResult<()>;

    /// Ends the work: the device keeps the lock, or gives it back.
    fn end(&self, keeps_lock: bool) -> LockResult<()>;
}

//! The sync lock: one device of an owner reconciles at a time.
//!
//! A lease says who holds the lock and until when; its fence rises each time the lock changes hands.
//! Safety never rests on the lease's time: while a holder's request is at work nobody else is given the
//! lock, and every write asks once more, as its last step, whether the fence is still its owner's newest.

mod local;

use std::sync::Arc;

use crate::accounts::Caller;
use crate::model::{DeviceId, Fence, Owner, Timestamp};

pub use local::{LocalLocks, Work};

/// Hears that an owner's lock was taken, or ended, and by whom it is held now. A lease that merely runs out, or is
/// renewed, is not told.
pub type Told = Arc<dyn Fn(Owner, Option<&Lease>) + Send + Sync>;

/// Who holds an owner's lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The holder.
    pub device: DeviceId,
    /// As the holder calls itself.
    pub device_name: String,
    /// Above the fence of every earlier holder.
    pub fence: Fence,
    /// Since when.
    pub since: Timestamp,
    /// Until when, unless the holder asks for anything before.
    pub until: Timestamp,
}

impl Lease {
    fn is_of(&self, caller: &Caller) -> bool {
        self.device == caller.device
    }
}

/// Why the lock was not given.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LockError {
    /// Another device holds it.
    #[error("{} holds the lock", .0.device_name)]
    Busy(Lease),
    /// The fence that the device named is no longer the newest, or never was its own.
    #[error("the lease was lost")]
    Lost,
}

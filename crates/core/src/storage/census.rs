//! What an operator may see across owners. It counts owners and never reads their rows.

use super::{OwnerState, StorageResult};
use crate::model::{DeviceId, Owner, Timestamp, Version};
use crate::storage::accounts::Device;

/// What an engine knows across owners.
pub trait Census: Send + Sync {
    /// The engine's name.
    fn engine(&self) -> &'static str;

    /// The totals of all owners. It reads an entry for each owner and table, so it should not be called
    /// often.
    fn totals(&self) -> StorageResult<Totals>;

    /// The newest stored time of this server's own clock: the day of a write, a log-in, a stored response, an
    /// acknowledged cursor. It need not be exact, and it reads no row of the application.
    fn newest_time(&self) -> StorageResult<Option<Timestamp>>;

    /// Owners after `after`, by id, at most `owners_max`.
    fn states(&self, after: Option<Owner>, owners_max: usize) -> StorageResult<Vec<(Owner, OwnerState)>>;

    /// Tombstones of an owner by table, in declared order. Reads an entry for each tombstone.
    fn tombstones(&self, owner: Owner) -> StorageResult<Vec<u64>>;

    /// The versions up to which devices of an owner have read everything, and when they last acknowledged
    /// that, as stored.
    fn acknowledged(&self, owner: Owner) -> StorageResult<Vec<(DeviceId, Version, Timestamp)>>;

    /// The devices that are signed in for an owner, if this server manages the accounts.
    fn signed_in(&self, owner: Owner) -> StorageResult<Vec<Device>>;

    /// A signed-in device of any owner.
    fn device(&self, device: DeviceId) -> StorageResult<Option<Device>>;
}

/// The totals of all owners.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Totals {
    /// Owners with at least one write.
    pub owners: u64,
    /// Live rows.
    pub rows: u64,
    /// About how many bytes the live rows take.
    pub bytes: u64,
    /// Live rows by table, in declared order.
    pub tables: Vec<u64>,
}

//! What whoever runs the server may see across owners. It counts owners and never reads their rows.

use super::{OwnerState, StorageResult};
use crate::model::{DeviceId, Owner, Timestamp, Version};
use crate::storage::accounts::Device;

/// What an engine knows beyond one owner.
pub trait Census: Send + Sync {
    /// The engine's name.
    fn engine(&self) -> &'static str;

    /// What all owners have together. Reads an entry for each owner and table: not to be asked all the time.
    fn totals(&self) -> StorageResult<Totals>;

    /// The newest time of this server's own clock that is stored anywhere: the day of a write, a log-in, a response kept,
    /// a cursor shown. It need not be exact, and no row of the application is read for it.
    fn newest_time(&self) -> StorageResult<Option<Timestamp>>;

    /// Owners after `after`, by id, at most `owners_max`.
    fn states(&self, after: Option<Owner>, owners_max: usize) -> StorageResult<Vec<(Owner, OwnerState)>>;

    /// Tombstones of an owner by table, in declared order. Reads an entry for each tombstone.
    fn tombstones(&self, owner: Owner) -> StorageResult<Vec<u64>>;

    /// Up to where devices of an owner have seen everything, and when they last said so, as it was written down.
    fn acknowledged(&self, owner: Owner) -> StorageResult<Vec<(DeviceId, Version, Timestamp)>>;

    /// The devices that are signed in for an owner, where this server keeps the accounts.
    fn signed_in(&self, owner: Owner) -> StorageResult<Vec<Device>>;

    /// A device that is signed in, for whichever owner.
    fn device(&self, device: DeviceId) -> StorageResult<Option<Device>>;
}

/// What all owners have together.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Totals {
    /// Owners that anything was ever written for.
    pub owners: u64,
    /// Live rows.
    pub rows: u64,
    /// About how many bytes the live rows take.
    pub bytes: u64,
    /// Live rows by table, in declared order.
    pub tables: Vec<u64>,
}

//! The terms of the protocol as types. Every module uses them; they use no other module.

mod installation;
mod role;
mod row;
mod time;
mod value;

use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub use installation::InstallationName;
pub use role::Role;
pub use row::{Claim, EarlierState, Lifetime, RowKey, Stored};
pub use time::{Precision, TimeError, Timestamp, TimestampText};
pub use value::Value;

/// Whose data it is: the unit of sync, of locking, of versions and of sharding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Owner(pub Uuid);

/// One installation of an app, as its token names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DeviceId(pub Uuid);

/// A number that rises each time an owner's lock changes hands; within 2^53.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Fence(pub u64);

/// A state of one owner's data: a number that every write transaction raises.
///
/// - Bounds: within 2^53, so that JavaScript holds it exactly. The upper 13 bits are the owner's
///   epoch, which a restore from backup raises; the lower 40 count transactions.
/// - To clients it is opaque. It is never 0 once the owner exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Version(pub u64);

/// Versions have no room for another epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("epoch {0} would be needed, and {max} is the last one", max = Version::EPOCH_MAX)]
pub struct NoEpochLeft(pub u64);

impl Version {
    const COUNTER_BITS: u32 = 40;
    /// The bits that count transactions.
    pub const COUNTER_MAX: u64 = (1 << Self::COUNTER_BITS) - 1;
    const EPOCH_MAX: u16 = (1 << 13) - 1;
    /// 2025-01-01. Epochs count days from here unless a higher number is known. That leaves 22 years.
    const EPOCHS_FROM: Timestamp = Timestamp::from_ms(1_735_689_600_000);

    /// The first version of an owner in `epoch`.
    pub const fn first(epoch: u16) -> Self {
        Self(((epoch as u64) << Self::COUNTER_BITS) | 1)
    }

    /// The version after this one, in the same epoch.
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// The epoch that begins at `now`. `last` is the highest epoch that is known to exist.
    ///
    /// The number of days since 2025 is used if it is higher: it exceeds the epochs that a lost copy of the
    /// database may have begun.
    pub fn epoch_after(last: u64, now: Timestamp) -> Result<u16, NoEpochLeft> {
        let today = u64::try_from(now.days_since(Self::EPOCHS_FROM)).unwrap_or(0);
        let next = last.saturating_add(1).max(today);
        u16::try_from(next).ok().filter(|epoch| *epoch <= Self::EPOCH_MAX).ok_or(NoEpochLeft(next))
    }

    /// How many transactions of its epoch it counts.
    pub const fn counter(self) -> u64 {
        self.0 & Self::COUNTER_MAX
    }

    /// Which restore of the database this version belongs to.
    pub const fn epoch(self) -> u16 {
        (self.0 >> Self::COUNTER_BITS) as u16
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{DeviceId, Timestamp, Value, Version};

/// The key of a row: a UUID made by the device that made the row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RowKey(pub Uuid);

impl RowKey {
    /// Reads the one spelling the wire allows: 36 characters with hyphens, either case.
    pub fn parse(text: &str) -> Option<Self> {
        if text.len() != 36 {
            return None; // the uuid crate also reads braces, URNs and bare hex: one row, one spelling
        }
        Uuid::try_parse(text).ok().map(Self)
    }
}

impl fmt::Display for RowKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What the server holds of one key: a live row, or the tombstone of a deleted one.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored {
    /// The version of the transaction that last changed it.
    pub version: Version,
    /// The version of the transaction that made it (made it again, if it had been deleted).
    pub created: Version,
    /// When it last changed; of a tombstone, when it was deleted. Never earlier than the states before it.
    pub last_update: Timestamp,
    /// When the change was really made, by the corrected clock, if `last_update` had to be later than that.
    pub made_at: Option<Timestamp>,
    /// What its device said of the change that made this state.
    pub claim: Claim,
    /// The device that made it.
    pub made_by: DeviceId,
    /// The device that last changed it.
    pub changed_by: DeviceId,
    /// Earlier lives of a row that was deleted and made again, oldest first; nearly always none.
    pub lifetimes: Vec<Lifetime>,
    /// Devices beside its maker and the last one to change it that wrote it, or were told of it ahead of their
    /// cursors; nearly always none.
    pub aware_devices: Vec<DeviceId>,
    /// One value for each declared column, in declared order; `None` is a tombstone.
    pub values: Option<Vec<Value>>,
}

/// What a device said of a change when it sent it: enough to tell a late copy of a request from the next edit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Claim {
    /// When it made the change, by its own clock and not corrected; `None` if it did not say.
    pub at: Option<Timestamp>,
    /// The `last_update` that the row had when the edit began (`_base`), if it said so.
    pub row_base: Option<Timestamp>,
    /// The version that the device's copy was built on (`base`), if it said so.
    pub base: Option<Version>,
}

impl Claim {
    /// Whether it was built on an earlier state than the other change of the same row and device.
    ///
    /// Row bases are compared if both have one, else versions if both have one; else nobody can tell.
    pub fn is_built_before(&self, other: &Self) -> bool {
        match (self.row_base, other.row_base, self.base, other.base) {
            (Some(own), Some(others), ..) => own < others,
            (_, _, Some(own), Some(others)) => own < others,
            _ => false,
        }
    }
}

/// A state of a row that was replaced.
#[derive(Clone, Debug, PartialEq)]
pub struct EarlierState {
    /// The version of the transaction that made it so.
    pub version: Version,
    /// When it became so.
    pub last_update: Timestamp,
    /// When the change was really made, if `last_update` had to be later than that.
    pub made_at: Option<Timestamp>,
    /// When its device said that it made the change.
    pub claimed_at: Option<Timestamp>,
    /// The device that made it so.
    pub changed_by: DeviceId,
    /// One value for each declared column.
    pub values: Vec<Value>,
}

impl EarlierState {
    /// When the change was really made, as far as the server knows.
    pub fn true_time(&self) -> Timestamp {
        self.made_at.unwrap_or(self.last_update)
    }

    /// About how many bytes it takes in memory.
    pub fn weight(&self) -> usize {
        size_of::<Self>() + self.values.iter().map(|value| size_of::<Value>() + value.weight()).sum::<usize>()
    }

    /// The row as it was in this state.
    pub fn over(&self, row: &Stored) -> Stored {
        Stored {
            version: self.version,
            last_update: self.last_update,
            made_at: self.made_at,
            claim: Claim { at: self.claimed_at, ..Claim::default() },
            changed_by: self.changed_by,
            values: Some(self.values.clone()),
            ..row.clone()
        }
    }
}

/// A time in which a row was there, in versions: from `made` on, until `deleted`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetime {
    /// The version that made it.
    pub made: Version,
    /// The version that deleted it.
    pub deleted: Version,
}

/// More earlier lives, or more writers, than this are not told apart: see [`Stored::existed_at`].
const REMEMBERED_MAX: usize = 16;

impl Stored {
    /// When the last change was really made, as far as the server knows: what conflicts are judged by.
    ///
    /// `last_update` may be later: it names a state, and so rises with every change, however fast they come.
    pub fn true_time(&self) -> Timestamp {
        self.made_at.unwrap_or(self.last_update)
    }

    /// Whether the row was there at a version: what a device whose cursor stands there knows of.
    ///
    /// Where too many lives were lived to remember each, it says yes: a deletion told in vain does no harm.
    pub fn existed_at(&self, version: Version) -> bool {
        let in_this_life = self.created <= version && !(self.is_tombstone() && self.version <= version);
        in_this_life || self.lifetimes.iter().any(|life| life.made <= version && version < life.deleted)
    }

    /// Whether the row was made, in this life or an earlier one, up to a version.
    pub fn was_made_by(&self, version: Version) -> bool {
        self.created <= version || self.lifetimes.iter().any(|life| life.made <= version)
    }

    /// Whether the device ever wrote the row or was told of it, and so may know of it ahead of its cursor.
    ///
    /// Where too many devices did to remember each, it says yes.
    pub fn may_be_known_to(&self, device: DeviceId) -> bool {
        self.made_by == device
            || self.changed_by == device
            || self.aware_devices.contains(&device)
            || self.aware_devices.len() >= REMEMBERED_MAX
    }

    /// The writers to remember once the row is another's, made and last changed by these.
    pub fn aware_devices_before(&self, made_by: DeviceId, changed_by: DeviceId) -> Vec<DeviceId> {
        let mut writers = self.aware_devices.clone();
        for writer in [self.made_by, self.changed_by] {
            let named = writer == made_by || writer == changed_by || writers.contains(&writer);
            if !named && writers.len() < REMEMBERED_MAX {
                writers.push(writer);
            }
        }
        writers
    }

    /// The same row, known to one more device.
    pub fn known_to(&self, device: DeviceId) -> Self {
        let mut row = self.clone();
        if !row.may_be_known_to(device) {
            row.aware_devices.push(device);
        }
        row
    }

    /// The lives to remember once this tombstone is made a row again.
    pub fn lifetimes_before(&self) -> Vec<Lifetime> {
        let mut lifetimes = self.lifetimes.clone();
        lifetimes.push(Lifetime { made: self.created, deleted: self.version });
        if lifetimes.len() > REMEMBERED_MAX {
            let second = lifetimes.remove(1);
            lifetimes[0].deleted = second.deleted;
        }
        lifetimes
    }

    /// About how many bytes it takes in memory.
    pub fn weight(&self) -> usize {
        let values = self.values.as_deref().unwrap_or_default();
        size_of::<Self>() + values.iter().map(|value| size_of::<Value>() + value.weight()).sum::<usize>()
    }

    /// Whether this is the memory of a deleted row.
    pub fn is_tombstone(&self) -> bool {
        self.values.is_none()
    }
}

use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{DeviceId, Timestamp, Value, Version};

/// The key of a row: a UUID made by the device that made the row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RowKey(pub Uuid);

impl RowKey {
    /// The key that sorts after all others.
    pub const LAST: Self = Self(Uuid::max());

    /// Reads the one text form that the wire allows: 36 characters with hyphens, in either case.
    pub fn parse(text: &str) -> Option<Self> {
        if text.len() != 36 {
            return None; // the uuid crate also reads braces, URNs and bare hex; a row must have one text form only
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
    /// The version of the transaction that created it, or created it again after a deletion.
    pub created: Version,
    /// When it last changed; for a tombstone, when it was deleted. Never earlier than the states before it.
    pub last_update: Timestamp,
    /// When the change was really made, by the corrected clock, if `last_update` had to be later.
    pub made_at: Option<Timestamp>,
    /// What its device reported about the change that made this state.
    pub claim: Claim,
    /// The device that created it.
    pub made_by: DeviceId,
    /// The device that last changed it.
    pub changed_by: DeviceId,
    /// Earlier lifetimes of a row that was deleted and created again, oldest first; nearly always none.
    pub lifetimes: Vec<Lifetime>,
    /// Other devices that know the row ahead of their cursors: they wrote it earlier or received it. Its
    /// creator and its last editor are not listed. Nearly always empty.
    pub aware_devices: Vec<DeviceId>,
    /// One value for each declared column, in declared order; `None` for a tombstone.
    pub values: Option<Vec<Value>>,
}

/// What a device reported about a change when it sent it. This distinguishes a late copy of a request from
/// the next edit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Claim {
    /// When the device made the change, by its own uncorrected clock; `None` if it did not report that.
    pub at: Option<Timestamp>,
    /// The `last_update` that the row had when the edit began (`_base`), if it was sent.
    pub row_base: Option<Timestamp>,
    /// The version that the device's copy was built on (`base`), if it was sent.
    pub base: Option<Version>,
}

impl Claim {
    /// Whether this change was built on an earlier state than the other change of the same row and device.
    ///
    /// Row bases are compared if both changes have one; otherwise versions, if both have one. Otherwise the
    /// answer is `false`, since nothing can be compared.
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
    /// The version of the transaction that made this state.
    pub version: Version,
    /// When the row got this state.
    pub last_update: Timestamp,
    /// When the change was really made, if `last_update` had to be later than that.
    pub made_at: Option<Timestamp>,
    /// When the device reports to have made the change.
    pub claimed_at: Option<Timestamp>,
    /// The device that made this state.
    pub changed_by: DeviceId,
    /// One value for each declared column, in declared order.
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

    /// The row in this state.
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

/// A period in which a row existed, in versions: from `made` on, until `deleted`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetime {
    /// The version that made it.
    pub made: Version,
    /// The version that deleted it.
    pub deleted: Version,
}

/// Most earlier lifetimes, and most aware devices, that are stored separately: see [`Stored::existed_at`].
const REMEMBERED_MAX: usize = 16;

impl Stored {
    /// When the last change was really made, as far as the server knows. Conflicts are judged by this time.
    ///
    /// `last_update` may be later: it identifies a state, so it rises with every change, however fast the
    /// changes come.
    pub fn true_time(&self) -> Timestamp {
        self.made_at.unwrap_or(self.last_update)
    }

    /// Whether the row existed at a version, so that a device with that cursor knows it.
    ///
    /// Returns true if lifetimes were merged (over 16): a redundant delete is harmless.
    pub fn existed_at(&self, version: Version) -> bool {
        let in_this_life = self.created <= version && !(self.is_tombstone() && self.version <= version);
        in_this_life || self.lifetimes.iter().any(|life| life.made <= version && version < life.deleted)
    }

    /// Whether the row was created, in this lifetime or an earlier one, up to a version.
    pub fn was_made_by(&self, version: Version) -> bool {
        self.created <= version || self.lifetimes.iter().any(|life| life.made <= version)
    }

    /// Whether the device ever wrote or received the row, and so may know it ahead of its cursor.
    ///
    /// Returns true for every device if too many devices know the row to store each.
    pub fn may_be_known_to(&self, device: DeviceId) -> bool {
        self.made_by == device
            || self.changed_by == device
            || self.aware_devices.contains(&device)
            || self.aware_devices.len() >= REMEMBERED_MAX
    }

    /// The aware devices to store when another device changes the row; these two are its creator and its last
    /// editor then.
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

    /// The same row, with one more device that knows it.
    pub fn known_to(&self, device: DeviceId) -> Self {
        let mut row = self.clone();
        if !row.may_be_known_to(device) {
            row.aware_devices.push(device);
        }
        row
    }

    /// The earlier lifetimes to store when this tombstone becomes a row again.
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

    /// Whether the row is deleted.
    pub fn is_tombstone(&self) -> bool {
        self.values.is_none()
    }
}

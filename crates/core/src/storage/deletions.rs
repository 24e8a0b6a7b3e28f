//! How much devices have deleted recently, as an engine stores it. The module `synchronise` decides what is
//! too much.

use crate::model::{Timestamp, Version};

/// What a device has deleted of one table since a certain time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeleteWindow {
    /// That time, by the server's clock.
    pub began: Timestamp,
    /// The owner's version then: rows that were created later are not counted.
    pub version: Version,
    /// Live rows of the table then.
    pub rows: u64,
    /// How many of these the device has deleted since.
    pub deletes: u64,
}

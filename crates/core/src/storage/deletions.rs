//! How much devices have deleted lately, as an engine keeps it. What is too much is `synchronise`'s business.

use crate::model::{Timestamp, Version};

/// What a device has deleted of one table since a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeleteWindow {
    /// The moment, by the server's clock.
    pub began: Timestamp,
    /// The owner's version then: rows that were made later are not counted.
    pub version: Version,
    /// Live rows of the table then.
    pub rows: u64,
    /// How many of these the device has deleted since.
    pub deletes: u64,
}

//! Installations of an app that name themselves, as an engine keeps them. What their counters mean is `accounts`'
//! business.

use uuid::Uuid;

use crate::model::{DeviceId, Timestamp};

/// One installation of an app, among those of one owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Installation {
    /// The device as which the server knows it.
    pub device: DeviceId,
    /// Whose installation it is.
    pub user: Uuid,
    /// The device of the token that it came with last: it ends with that token.
    pub token_device: DeviceId,
    /// The highest counter that it has synchronised with; within 2^53.
    pub counter: u64,
    /// When it last synchronised.
    pub seen_at: Timestamp,
}

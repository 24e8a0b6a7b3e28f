//! Installations of an app that name themselves, as an engine stores them. The module `accounts` gives their
//! counters their meaning.

use uuid::Uuid;

use crate::model::{DeviceId, Timestamp};

/// One installation of an app, for one owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Installation {
    /// The device under which the server knows it.
    pub device: DeviceId,
    /// The user of the installation.
    pub user: Uuid,
    /// The device of the token that it last used: the installation ends with that token.
    pub token_device: DeviceId,
    /// The highest counter that it has synchronised with; within 2^53.
    pub counter: u64,
    /// When it last synchronised.
    pub seen_at: Timestamp,
}

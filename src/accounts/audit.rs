//! Writes one log line for every change of who may log in, under the target `audit`: the event, the user and
//! device, the address, and the reason of a refusal.
//!
//! A line never contains a password, a token or an email. A user is named by its id, and an account that does
//! not exist is not named at all, since people type passwords into the wrong field. `rollcall account list`
//! maps ids to emails.

use std::net::IpAddr;

use tracing::field::display;
use uuid::Uuid;

use crate::model::{DeviceId, Owner};

/// The target of every line; a filter such as `warn,audit=info` selects them.
const TARGET: &str = "audit";

/// The subject of an event. What is unknown or irrelevant is left out of the line.
#[derive(Clone, Copy, Debug, Default)]
pub struct Subject {
    /// The user.
    pub user: Option<Uuid>,
    /// The device that logged in, or was signed out.
    pub device: Option<DeviceId>,
    /// The owner, if the event is about one.
    pub owner: Option<Owner>,
    /// The address of the client; `None` for a command on the server's own machine.
    pub from: Option<IpAddr>,
}

impl Subject {
    /// An event of a client at this address.
    pub fn at(from: IpAddr) -> Self {
        Self { from: Some(from), ..Self::default() }
    }

    /// The same event with its user.
    #[must_use]
    pub fn of_user(self, user: Uuid) -> Self {
        Self { user: Some(user), ..self }
    }

    /// The same event with its owner.
    #[must_use]
    pub fn of_owner(self, owner: Owner) -> Self {
        Self { owner: Some(owner), ..self }
    }

    /// The same event with its device.
    #[must_use]
    pub fn of_device(self, device: DeviceId) -> Self {
        Self { device: Some(device), ..self }
    }
}

/// Logs what was done: `log_in`, `log_out`, `registration` and the like.
pub fn done(event: &'static str, subject: Subject) {
    let Subject { user, device, owner, from } = subject;
    let (user, device, owner) = (user.map(display), device.map(display), owner.map(display));
    match from {
        Some(from) => tracing::info!(target: TARGET, event, user, device, owner, %from, "audit: done"),
        None => {
            tracing::info!(target: TARGET, event, user, device, owner, from = "command line", "audit: done");
        }
    }
}

/// Logs what was refused, and why.
pub fn refused(event: &'static str, subject: Subject, why: &'static str) {
    let Subject { user, device, owner, from } = subject;
    let (user, device, from) = (user.map(display), device.map(display), from.map(display));
    let owner = owner.map(display);
    tracing::warn!(target: TARGET, event, user, device, owner, from, why, "audit: refused");
}

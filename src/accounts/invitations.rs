//! Codes by which users become members of an owner.

use std::net::IpAddr;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::attempts::{Attempts, network_of};
use super::{AccountError, local};
use crate::clock::Clock;
use crate::config::Limits;
use crate::storage::members::CodeHash;

const PREFIX: &str = "ri_";
const HOUR_MS: i64 = 3_600_000;
const MINUTE_MS: i64 = 60_000;

/// Makes codes, and limits how often they are made and tried.
pub struct Invitations {
    made: Attempts,
    by_user: Attempts,
    by_network: Attempts,
}

impl Invitations {
    /// Nobody has tried yet.
    pub fn new(limits: &Limits, clock: &Clock) -> Self {
        let made = Attempts::new(limits.invitations_per_hour, HOUR_MS, clock.clone());
        let by_user = Attempts::new(limits.invitation_attempts_per_hour, HOUR_MS, clock.clone());
        let by_network = Attempts::new(limits.logins_per_address_per_min, MINUTE_MS, clock.clone());
        Self { made, by_user, by_network }
    }

    /// Counts an invitation that a user is about to make.
    ///
    /// Errors: `TooManyAttempts`.
    pub fn make(&self, user: Uuid) -> Result<(), AccountError> {
        self.made.take(&user)
    }

    /// Takes back one that was not made.
    pub fn not_made(&self, user: Uuid) {
        self.made.give_back(&user);
    }

    /// Counts an attempt to accept an invitation.
    ///
    /// Errors: `TooManyAttempts`.
    pub fn attempt(&self, user: Uuid, from: IpAddr) -> Result<(), AccountError> {
        self.by_network.take(&network_of(from))?;
        self.by_user.take(&user)
    }

    /// A new code of 128 random bits.
    pub fn code() -> Result<String, AccountError> {
        let secret: [u8; 16] = local::random()?;
        Ok(format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(secret)))
    }

    /// What is stored of a code, and finds its invitation.
    pub fn hash_of(code: &str) -> CodeHash {
        Sha256::digest(code.trim()).into()
    }

    /// A random id.
    pub fn id() -> Result<Uuid, AccountError> {
        local::random_uuid()
    }
}

//! What the settings say about local accounts.

use super::mailing::MailTerms;
use crate::config::{AuthSettings, Limits, Registration, Verification};

const MINUTE_MS: i64 = 60_000;
const HOUR_MS: i64 = 60 * MINUTE_MS;

/// The settings of local accounts.
#[derive(Clone, Debug)]
pub struct LocalSettings {
    /// Whether anyone may register.
    pub registration: Registration,
    /// How long a token is valid, days.
    pub token_days: u32,
    /// Failed log-ins for one account from one address, a minute; 0 for no limit.
    pub logins_per_account_per_min: u32,
    /// Failed log-ins for one account from all addresses that are not known for it, an hour; 0 for no limit.
    pub logins_per_account_per_hour: u32,
    /// Log-in and registration attempts from one address, a minute; 0 for no limit.
    pub logins_per_address_per_min: u32,
    /// Most passwords that are hashed at once; no more than there are cores.
    pub password_hashes_max: usize,
    /// Most callers that wait for a password hash.
    pub password_queue_max: usize,
    /// Most devices with a token for one user. A script that never sends its `device_id` would add one at
    /// each log-in; the oldest are removed.
    pub devices_max: usize,
    /// Mails to one address, an hour; 0 for no limit.
    pub mails_per_account_per_hour: u32,
    /// Mails to all addresses, an hour; 0 for no limit.
    pub mails_per_hour: u32,
    /// Whether users prove their address.
    pub verification: Verification,
    /// What mails say.
    pub mail: MailTerms,
    /// Most tokens in the cache; 0 disables it.
    pub tokens_known_max: usize,
    /// How long a token stays cached, s.
    pub token_known_s: u32,
}

impl LocalSettings {
    /// Reads the settings of local accounts.
    pub fn new(auth: &AuthSettings, limits: &Limits) -> Self {
        Self {
            registration: auth.registration,
            token_days: auth.token_days,
            logins_per_account_per_min: limits.logins_per_account_per_min,
            logins_per_account_per_hour: limits.logins_per_account_per_hour,
            logins_per_address_per_min: limits.logins_per_address_per_min,
            password_hashes_max: auth.password_hashes_max,
            password_queue_max: auth.password_queue_max,
            devices_max: limits.devices_per_user_max.max(1),
            mails_per_account_per_hour: limits.mails_per_account_per_hour,
            mails_per_hour: limits.mails_per_hour,
            verification: auth.mail.email_verification,
            mail: MailTerms {
                public_url: auth.mail.public_url.clone(),
                reset_ms: i64::from(auth.mail.reset_minutes) * MINUTE_MS,
                verification_ms: i64::from(auth.mail.verification_hours) * HOUR_MS,
            },
            tokens_known_max: auth.tokens_known_max,
            token_known_s: auth.token_known_s,
        }
    }
}

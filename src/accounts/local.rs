//! Users and devices that this server manages, and the tokens that it issues.

use std::net::IpAddr;
use std::sync::Arc;

use argon2::Params;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use uuid::Uuid;

use super::attempts::{Attempts, Recent, network_of};
use super::audit::{self, Subject};
use super::change::check_chosen;
use super::local_settings::LocalSettings;
use super::mailing::{Desk, Job};
use super::opaque::BYTES_MAX;
use super::password::{Checked, Passwords};
use super::sightings::Sightings;
use super::token_cache::{TokenCache, Validity, fingerprint};
use super::{AccountError, Caller, Rights, SetupError};
use crate::broken;
use crate::clock::Clock;
use crate::config::{Registration, Verification};
use crate::mail::Outbox;
use crate::model::{DeviceId, Owner, Timestamp};
use crate::storage::accounts::{AccountStore, Device, KeptDevices, SignedOut, User};

/// The prefix of every token, by which people and secret scanners recognise it.
const TOKEN_PREFIX: &str = "rc_";
/// The prefix and 256 random bits in base64url without padding.
const TOKEN_TEXT_BYTES: usize = TOKEN_PREFIX.len() + 43;
/// Longest email, bytes, as in SMTP.
const EMAIL_BYTES_MAX: usize = 254;
const DEVICE_NAME_CHARS_MAX: usize = 100;
/// How long an address counts as known for an account after a log-in from it.
const ADDRESS_KNOWN_MS: i64 = 30 * Timestamp::DAY_MS;
const MINUTE_MS: i64 = 60_000;
const HOUR_MS: i64 = 60 * MINUTE_MS;

/// A log-in request.
#[derive(Clone, Copy, Debug)]
pub struct LogIn<'a> {
    /// In any case, with or without surrounding blanks.
    pub email: &'a str,
    /// As typed.
    pub password: &'a str,
    /// The device's name, 1 to 100 characters: "Anna's phone".
    pub device: &'a str,
    /// The device's id from an earlier log-in, if it still has it.
    pub device_id: Option<DeviceId>,
}

/// The result of a log-in. Its `Debug` hides the token.
#[derive(Clone, PartialEq, Eq)]
pub struct NewToken {
    /// `rc_` and 43 characters of base64url. Only the device stores it.
    pub token: String,
    /// The device's id from now on: the requested one, unless that belongs to another user.
    pub device_id: DeviceId,
    /// The time from which the token is refused.
    pub expires_at: Timestamp,
}

impl std::fmt::Debug for NewToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NewToken").field("device_id", &self.device_id).finish_non_exhaustive()
    }
}

/// Users and devices that this server manages. Every method except [`LocalAccounts::known`] blocks.
pub struct LocalAccounts {
    pub(super) store: Arc<dyn AccountStore>,
    pub(super) clock: Clock,
    pub(super) settings: LocalSettings,
    pub(super) passwords: Passwords,
    pub(super) by_address: Attempts,
    pub(super) by_account_and_place: Attempts,
    by_account: Attempts,
    known_addresses: Recent,
    pub(super) known: Arc<TokenCache>,
    pub(super) mails_by_account: Attempts,
    pub(super) mails: Attempts,
    pub(super) desk: Desk,
    /// Mails that wait; `None` where none are sent.
    pub(super) outbox: Option<Outbox<Job>>,
    /// When and where devices were seen last.
    pub sightings: Sightings,
}

impl LocalAccounts {
    /// Accounts over `store`. `cost` is [`Params::DEFAULT`] except in tests.
    ///
    /// Errors: [`SetupError::Passwords`] if the system has no randomness or `cost` is invalid.
    pub fn new(
        store: Arc<dyn AccountStore>,
        clock: Clock,
        settings: LocalSettings,
        cost: Params,
    ) -> Result<Self, SetupError> {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let hashes_max = settings.password_hashes_max.min(cores);
        let passwords = Passwords::new(cost, hashes_max, settings.password_queue_max)
            .map_err(|error| SetupError::Passwords(error.to_string()))?;
        let known = Arc::new(TokenCache::new(settings.tokens_known_max));
        let forgets = Arc::downgrade(&known);
        store.on_signed_out(Arc::new(move |who| {
            if let Some(known) = forgets.upgrade() {
                known.forget(|caller| match who {
                    SignedOut::Device(device) => caller.device == device,
                    SignedOut::User(user) => caller.user == user,
                });
            }
        }));
        let limited = |attempts, period_ms| Attempts::new(attempts, period_ms, clock.clone());
        Ok(Self {
            by_address: limited(settings.logins_per_address_per_min, MINUTE_MS),
            by_account_and_place: limited(settings.logins_per_account_per_min, MINUTE_MS),
            by_account: limited(settings.logins_per_account_per_hour, HOUR_MS),
            mails_by_account: limited(settings.mails_per_account_per_hour, HOUR_MS),
            mails: limited(settings.mails_per_hour, HOUR_MS),
            known_addresses: Recent::new(ADDRESS_KNOWN_MS, clock.clone()),
            desk: Desk {
                store: Arc::clone(&store),
                clock: clock.clone(),
                terms: settings.mail.clone(),
                metrics: Arc::default(),
            },
            outbox: None,
            known,
            sightings: Sightings::new(Arc::clone(&store)),
            store,
            clock,
            settings,
            passwords,
        })
    }

    /// Registers an account with rows of its own. Returns the normalised email.
    ///
    /// Errors: `RegistrationClosed`, `Invalid`, `TooManyAttempts`, `EmailTaken`.
    pub fn register(&self, email: &str, password: &str, from: IpAddr) -> Result<String, AccountError> {
        let registered = self.register_unnoted(email, password, from);
        let (event, subject) = ("registration", Subject::at(from));
        match &registered {
            Ok(user) => {
                audit::done(event, subject.of_user(user.id));
                if self.settings.verification != Verification::Off {
                    self.ask_for_verification(user, from);
                }
            }
            Err(error) => audit::refused(event, subject, why(error)),
        }
        registered.map(|user| user.email)
    }

    fn register_unnoted(&self, email: &str, password: &str, from: IpAddr) -> Result<User, AccountError> {
        if self.settings.registration == Registration::Closed {
            return Err(AccountError::RegistrationClosed);
        }
        // Checked before the attempt is counted: a typing error should not use one up.
        let email = email_of(email)?;
        check_chosen(password, &email, "password")?;
        self.by_address.take(&network_of(from))?;
        self.add_user(email, password, None, None)
    }

    /// Creates an account for the operator, even if registration is closed.
    ///
    /// Without `owner` the user gets rows of its own; users with the same owner share their rows. The address counts as
    /// verified.
    ///
    /// Errors: `Invalid`, `EmailTaken`.
    pub fn enrol(&self, email: &str, password: &str, owner: Option<Owner>) -> Result<User, AccountError> {
        let email = email_of(email)?;
        check_chosen(password, &email, "password")?;
        let user = self.add_user(email, password, owner, Some(self.clock.now()))?;
        audit::done("account_added", Subject::default().of_user(user.id));
        Ok(user)
    }

    /// Replaces a password and signs out all the user's devices; `false` if no such user exists.
    ///
    /// Errors: `Invalid`.
    pub fn set_password(&self, email: &str, password: &str) -> Result<bool, AccountError> {
        let email = email_of(email)?;
        check_chosen(password, &email, "password")?;
        let Some(user) = self.store.user(&email)? else { return Ok(false) };
        self.store.replace_password(user.id, &self.passwords.hash(password)?, KeptDevices::None)?;
        self.known.forget(|caller| caller.user == user.id);
        audit::done("password_set", Subject::default().of_user(user.id));
        Ok(true)
    }

    /// Removes a user with all its devices; its owner's rows stay. Returns `false` if no such user exists.
    pub fn remove(&self, email: &str) -> Result<bool, AccountError> {
        let email = email.trim().to_lowercase();
        let Some(user) = self.store.user(&email)? else { return Ok(false) };
        let removed = self.store.remove_user(&email, self.clock.now())?;
        self.known.forget(|caller| caller.user == user.id);
        if removed {
            audit::done("account_removed", Subject::default().of_user(user.id));
        }
        Ok(removed)
    }

    /// Issues a token, like [`Self::log_in_with`] without an earlier token.
    pub fn log_in(&self, log_in: LogIn<'_>, from: IpAddr) -> Result<NewToken, AccountError> {
        self.log_in_with(log_in, from, None)
    }

    /// Issues a token to a device.
    ///
    /// - A device that sends the id of an earlier log-in keeps it, and its older token becomes invalid.
    /// - `token`: an earlier token of the device, expired or not. It shows that the device belongs to the
    ///   account: strangers who guess passwords do not lock it out.
    /// - Errors: `Unauthorized`, with the same text and cost for a wrong password and an unknown account;
    ///   `Invalid` for the device's name; `TooManyAttempts`.
    pub fn log_in_with(
        &self,
        log_in: LogIn<'_>,
        from: IpAddr,
        token: Option<&str>,
    ) -> Result<NewToken, AccountError> {
        let mut found = Found { user: None, limit: "too many passwords are being checked" };
        let result = self.log_in_unnoted(log_in, from, token, &mut found);
        let subject = Subject { user: found.user, ..Subject::at(from) };
        match &result {
            Ok(token) => {
                if let Some(user) = found.user {
                    self.sightings.note(user, token.device_id, from, self.clock.now());
                }
                audit::done("log_in", subject.of_device(token.device_id));
            }
            Err(AccountError::TooManyAttempts { .. }) => audit::refused("log_in", subject, found.limit),
            Err(AccountError::Unauthorized(_)) if found.user.is_some() => {
                audit::refused("log_in", subject, "wrong password");
            }
            Err(AccountError::Unauthorized(_)) => audit::refused("log_in", subject, "unknown account"),
            Err(error) => audit::refused("log_in", subject, why(error)),
        }
        result
    }

    fn log_in_unnoted(
        &self,
        log_in: LogIn<'_>,
        from: IpAddr,
        token: Option<&str>,
        found: &mut Found,
    ) -> Result<NewToken, AccountError> {
        let name = device_name_of(log_in.device)?;
        let network = network_of(from);
        // The address is counted first, so that one address cannot push the counts of others out of memory.
        self.by_address.take(&network).inspect_err(|_| found.limit = "too many attempts from the address")?;
        if log_in.password.len() > BYTES_MAX {
            return Err(WRONG);
        }
        let email = email_of(log_in.email).ok();
        let user = match &email {
            Some(email) => self.store.user(email)?,
            None => None,
        };
        found.user = user.as_ref().map(|user| user.id);
        let counted = match &email {
            Some(email) => Some(self.count_attempt(email, user.as_ref(), network, token, found)?),
            None => None,
        };
        let stored = user.as_ref().map(|user| user.password_hash.as_str());
        let checked = self.passwords.check(log_in.password, stored);
        // Only a wrong password counts: neither a right one, nor one that the server had no time to check.
        if let (Some(counted), false) = (&counted, matches!(checked, Ok(Checked::Wrong))) {
            counted.give_back(self);
        }
        let Some(mut user) = user else { return checked.and(Err(WRONG)) };
        match checked? {
            Checked::Wrong => return Err(WRONG),
            Checked::Right => {}
            Checked::Rehashed(hash) => {
                self.store.set_password_hash(user.id, &user.password_hash, &hash)?;
                user.password_hash = hash;
            }
        }
        if self.settings.verification == Verification::Required && user.verified_at.is_none() {
            self.ask_for_verification(&user, from);
            return Err(AccountError::EmailNotVerified);
        }
        let token = self.add_device(&user, name, log_in.device_id)?;
        self.confirm(&user, log_in.password, &token)?;
        self.known_addresses.note(&(&user.email, network));
        Ok(token)
    }

    /// Takes a new device back if the password was replaced while it was being checked: the replacement signs
    /// out the devices that exist then, and this one came later.
    fn confirm(&self, user: &User, password: &str, token: &NewToken) -> Result<(), AccountError> {
        let is_right = self.is_still_right(user, password);
        if matches!(is_right, Ok(true)) {
            return Ok(());
        }
        // Where nobody can tell, the log-in is refused, and leaves nothing behind either.
        let removed = self.store.remove_device(user.id, token.device_id);
        self.forget(token.device_id);
        is_right?;
        removed?;
        Err(WRONG)
    }

    /// Whether a password that was right a moment ago is still the user's.
    fn is_still_right(&self, user: &User, password: &str) -> Result<bool, AccountError> {
        Ok(match self.store.user_of(user.id)? {
            _ if broken::is("late_log_in_kept") => true,
            Some(now) if now.password_hash == user.password_hash => true,
            // Another log-in may have replaced the hash by a stronger one of the same password.
            Some(now) => !matches!(self.passwords.check(password, Some(&now.password_hash))?, Checked::Wrong),
            None => false,
        })
    }

    /// Counts a log-in as failed until it is given back, or returns when the next one may be tried.
    ///
    /// An account that does not exist is counted like an existing one.
    fn count_attempt(
        &self,
        email: &str,
        user: Option<&User>,
        network: IpAddr,
        token: Option<&str>,
        found: &mut Found,
    ) -> Result<Counted, AccountError> {
        let own = match (user, token.filter(|token| is_like_a_token(token))) {
            (Some(user), Some(token)) => {
                self.store.device(&fingerprint(token))?.filter(|d| d.user == user.id)
            }
            _ => None,
        };
        // A log-in with a token is counted by its device, wherever it comes from: others at its address
        // cannot lock it out, and a stolen token allows no more guesses than one address.
        let place = own.map_or(Place::Network(network), |device| Place::Device(device.id));
        let is_known = matches!(place, Place::Device(_)) || self.known_addresses.has(&(email, network));
        let counted = Counted { email: email.to_owned(), place, is_known };
        self.by_account_and_place
            .take(&counted.by_place())
            .inspect_err(|_| found.limit = "too many failed log-ins for the account from the address")?;
        if !is_known {
            self.by_account.take(&counted.email).inspect_err(|_| {
                found.limit = "too many failed log-ins for the account from strange addresses";
                self.by_account_and_place.give_back(&counted.by_place());
            })?;
        }
        Ok(counted)
    }

    /// Identifies the caller of a token.
    ///
    /// Errors: `Unauthorized` if it is not a token of this server, was revoked or has expired.
    pub fn authenticate(&self, token: &str) -> Result<Caller, AccountError> {
        if !is_like_a_token(token) {
            return Err(NO_TOKEN); // spares the database an invalid token
        }
        let (since, began, now) = (self.known.stamp(), self.clock.tick(), self.clock.now());
        // Looked up by its hash: the timing of the lookup is useless for guessing a token.
        let token = fingerprint(token);
        let Some(device) = self.store.device(&token)? else {
            TokenCache::drop(&self.known, &token); // another process revoked it
            let is_gone = self.store.is_gone(&token, now)? && !broken::is("erased_unnoticed");
            return Err(if is_gone { AccountError::AccountGone } else { NO_TOKEN });
        };
        if device.expires_at <= now {
            return Err(AccountError::Unauthorized("The token has expired. Log in again."));
        }
        let caller = Caller {
            owner: device.owner,
            default_owner: device.owner,
            token_owners: None,
            rights: Rights::HOME,
            device: device.id,
            device_name: device.name,
            token_device: device.id,
            installation: None,
            user: device.user,
        };
        let until = began.shifted(i64::from(self.settings.token_known_s) * 1_000);
        let good = Validity { until, expires_at: device.expires_at, keys: 0 };
        self.known.note(token, &caller, good, since);
        Ok(caller)
    }

    /// The caller of a token, if the token is cached.
    pub fn known(&self, token: &str) -> Option<Caller> {
        if token.len() != TOKEN_TEXT_BYTES {
            return None;
        }
        self.known.find(&fingerprint(token), &self.clock, 0)
    }

    /// Removes a device's tokens from the cache, after the store refuses them.
    fn forget(&self, device: DeviceId) {
        self.known.forget(|caller| caller.device == device);
        self.sightings.forget(device);
    }

    /// Revokes the caller's token.
    pub fn log_out(&self, caller: &Caller) -> Result<(), AccountError> {
        // A concurrent revocation may have removed it already.
        self.store.remove_device(caller.user, caller.token_device)?;
        self.forget(caller.token_device);
        Ok(())
    }

    /// The caller as a user.
    ///
    /// Errors: `Unauthorized` if the user was removed meanwhile.
    pub fn user(&self, caller: &Caller) -> Result<User, AccountError> {
        self.store.user_of(caller.user)?.ok_or(NO_TOKEN)
    }

    /// The caller's devices with a valid token, oldest first.
    pub fn devices(&self, caller: &Caller) -> Result<Vec<Device>, AccountError> {
        let now = self.clock.now();
        let mut devices = self.store.devices(caller.user)?;
        devices.retain(|device| device.expires_at > now);
        Ok(devices)
    }

    /// Signs out one of the caller's devices.
    ///
    /// Errors: `NoSuchDevice` for an unknown device, and for another user's.
    pub fn revoke(&self, caller: &Caller, device: DeviceId) -> Result<(), AccountError> {
        if self.store.remove_device(caller.user, device)? {
            self.forget(device);
            Ok(())
        } else {
            Err(AccountError::NoSuchDevice)
        }
    }

    fn add_user(
        &self,
        email: String,
        password: &str,
        owner: Option<Owner>,
        verified_at: Option<Timestamp>,
    ) -> Result<User, AccountError> {
        let id = random_uuid()?;
        let user = User {
            id,
            email,
            password_hash: self.passwords.hash(password)?,
            owner: owner.unwrap_or(Owner(id)),
            is_home: owner.is_none(),
            created_at: self.clock.now(),
            verified_at,
        };
        if self.store.add_user(&user)? { Ok(user) } else { Err(AccountError::EmailTaken) }
    }

    fn add_device(
        &self,
        user: &User,
        name: String,
        wanted: Option<DeviceId>,
    ) -> Result<NewToken, AccountError> {
        let store = &self.store;
        let now = self.clock.now();
        let known = wanted.filter(|id| !id.0.is_nil()); // nil means no device
        let mut device = Device {
            id: known.map_or_else(|| random_uuid().map(DeviceId), Ok)?,
            user: user.id,
            owner: user.owner,
            name,
            created_at: now,
            expires_at: now.shifted(i64::from(self.settings.token_days) * Timestamp::DAY_MS),
        };
        self.make_room(user.id, device.id, now)?;
        let token = random_token()?;
        if !store.put_device(&device, &fingerprint(&token))? {
            // It is another user's device: the app was passed on without a log-out. It gets an id of its own.
            device.id = DeviceId(random_uuid()?);
            if !store.put_device(&device, &fingerprint(&token))? {
                return Err(AccountError::Internal("a random device id is taken".into()));
            }
        }
        self.forget(device.id); // its older token is no longer valid
        Ok(NewToken { token, device_id: device.id, expires_at: device.expires_at })
    }

    /// Removes expired devices, and the oldest of too many.
    fn make_room(&self, user: Uuid, keep: DeviceId, now: Timestamp) -> Result<(), AccountError> {
        let store = &self.store;
        let (live, expired): (Vec<_>, Vec<_>) = store
            .devices(user)?
            .into_iter()
            .filter(|device| device.id != keep)
            .partition(|device| device.expires_at > now);
        let surplus = (live.len() + 1).saturating_sub(self.settings.devices_max);
        for device in expired.iter().chain(live.iter().take(surplus)) {
            store.remove_device(user, device.id)?;
            self.forget(device.id);
        }
        Ok(())
    }
}

/// What a log-in found out, for the audit line.
struct Found {
    user: Option<Uuid>,
    /// The limit that refused it, if any.
    limit: &'static str,
}

/// The place of a log-in, by which failed ones are counted.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Place {
    Network(IpAddr),
    Device(DeviceId),
}

/// A log-in that counts as failed.
pub(super) struct Counted {
    pub(super) email: String,
    pub(super) place: Place,
    /// Whether the account knows the place, so that what strangers do does not concern it.
    pub(super) is_known: bool,
}

impl Counted {
    pub(super) fn by_place(&self) -> (&str, Place) {
        (&self.email, self.place)
    }

    /// The log-in has not failed.
    pub(super) fn give_back(&self, accounts: &LocalAccounts) {
        accounts.by_account_and_place.give_back(&self.by_place());
        if !self.is_known {
            accounts.by_account.give_back(&self.email);
        }
    }
}

/// Why a log-in or a registration was refused, for the audit line.
fn why(error: &AccountError) -> &'static str {
    match error {
        AccountError::RegistrationClosed => "registration is closed",
        AccountError::EmailTaken => "the email is taken",
        AccountError::EmailNotVerified => "the email is not verified",
        AccountError::TooManyAttempts { .. } => "too many attempts",
        AccountError::Invalid { member: "email", .. } => "no email",
        AccountError::Invalid { member: "password", .. } => "a password that cannot be taken",
        AccountError::Invalid { .. } => "a device name that cannot be taken",
        _ => "the server could not do it",
    }
}

/// Whether a text has the form of a token, so that other texts need no database access.
fn is_like_a_token(text: &str) -> bool {
    text.len() == TOKEN_TEXT_BYTES && text.starts_with(TOKEN_PREFIX)
}

const WRONG: AccountError = AccountError::Unauthorized("Wrong email or password.");
pub(super) const NO_TOKEN: AccountError =
    AccountError::Unauthorized("The token is not known here. Log in again.");

pub(super) fn email_of(text: &str) -> Result<String, AccountError> {
    let email = text.trim().to_lowercase();
    let parts = email.split_once('@');
    let good = email.len() <= EMAIL_BYTES_MAX
        && parts.is_some_and(|(name, host)| !name.is_empty() && !host.is_empty() && !host.contains('@'))
        && !email.chars().any(|c| c.is_whitespace() || c.is_control());
    if good {
        Ok(email)
    } else {
        Err(AccountError::Invalid {
            member: "email",
            reason: "An email is a name, one @ and a host, at most 254 bytes, without blanks.",
        })
    }
}

fn device_name_of(text: &str) -> Result<String, AccountError> {
    let name = text.trim();
    // The name appears in responses and logs: a line break in it could fake a log line.
    let good =
        (1..=DEVICE_NAME_CHARS_MAX).contains(&name.chars().count()) && !name.contains(char::is_control);
    if good {
        Ok(name.to_owned())
    } else {
        Err(AccountError::Invalid {
            member: "device",
            reason: "A device's name has 1 to 100 characters, on one line.",
        })
    }
}

fn random_token() -> Result<String, AccountError> {
    let secret: [u8; 32] = random()?;
    Ok(format!("{TOKEN_PREFIX}{}", URL_SAFE_NO_PAD.encode(secret)))
}

pub(super) fn random_uuid() -> Result<Uuid, AccountError> {
    Ok(uuid::Builder::from_random_bytes(random()?).into_uuid())
}

pub(super) fn random<const N: usize>() -> Result<[u8; N], AccountError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| AccountError::Internal(Box::new(error)))?;
    Ok(bytes)
}

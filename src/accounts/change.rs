//! A password that its user replaces, and devices that are signed out at once.

use std::net::IpAddr;

use super::audit::{self, Subject};
use super::local::{Counted, NO_TOKEN, Place};
use super::password::Checked;
use super::{AccountError, Caller, LocalAccounts, opaque};
use crate::broken;
use crate::model::DeviceId;
use crate::storage::accounts::{KeptDevices, User};

/// What a user says to get another password.
#[derive(Clone, Copy, Debug)]
pub struct PasswordChange<'a> {
    /// The password until now.
    pub old: &'a str,
    /// The one from now on.
    pub new: &'a str,
    /// Whether every other device is signed out.
    pub signs_out_others: bool,
}

impl LocalAccounts {
    /// Replaces the caller's password. Returns the devices that were signed out.
    ///
    /// - A wrong old password counts as a failed log-in of the device.
    /// - Errors: `WrongPassword`; `Invalid` for the new password; `TooManyAttempts`.
    pub fn change_password(
        &self,
        caller: &Caller,
        change: PasswordChange<'_>,
        from: IpAddr,
    ) -> Result<Vec<DeviceId>, AccountError> {
        let changed = self.change_password_unnoted(caller, change);
        let subject = Subject::at(from).of_user(caller.user).of_device(caller.token_device);
        match &changed {
            Ok(removed) => {
                audit::done("password_change", subject);
                removed.iter().for_each(|device| audit::done("revocation", subject.of_device(*device)));
            }
            Err(error) => audit::refused("password_change", subject, why(error)),
        }
        changed
    }

    fn change_password_unnoted(
        &self,
        caller: &Caller,
        change: PasswordChange<'_>,
    ) -> Result<Vec<DeviceId>, AccountError> {
        let user = self.store.user_of(caller.user)?.ok_or(NO_TOKEN)?;
        check_chosen(change.new, &user.email, "new")?;
        self.check_own_password(&user, change.old, Place::Device(caller.token_device))?;
        let keep = match change.signs_out_others {
            true => KeptDevices::One(caller.token_device),
            false => KeptDevices::All,
        };
        let removed = self.store.replace_password(user.id, &self.passwords.hash(change.new)?, keep)?;
        if change.signs_out_others {
            self.forget_others(caller);
        }
        Ok(removed)
    }

    /// Signs every other device of the caller out; returns them.
    pub fn sign_out_others(&self, caller: &Caller, from: IpAddr) -> Result<Vec<DeviceId>, AccountError> {
        let removed = self.store.remove_other_devices(caller.user, caller.token_device)?;
        self.forget_others(caller);
        let subject = Subject::at(from).of_user(caller.user);
        removed.iter().for_each(|device| audit::done("revocation", subject.of_device(*device)));
        Ok(removed)
    }

    /// Checks the password of a user who is signed in.
    ///
    /// Errors: `WrongPassword`; `TooManyAttempts`, as for log-ins from the place: a stolen token is good for no more
    /// guesses than a stranger has.
    pub(super) fn check_own_password(
        &self,
        user: &User,
        password: &str,
        place: Place,
    ) -> Result<(), AccountError> {
        if password.len() > opaque::BYTES_MAX {
            return Err(AccountError::WrongPassword);
        }
        let counted = Counted { email: user.email.clone(), place, is_known: true };
        self.by_account_and_place.take(&counted.by_place())?;
        let checked = self.passwords.check(password, Some(&user.password_hash));
        if !matches!(checked, Ok(Checked::Wrong)) {
            counted.give_back(self);
        }
        match checked? {
            Checked::Wrong => Err(AccountError::WrongPassword),
            Checked::Right | Checked::Rehashed(_) => Ok(()),
        }
    }

    /// Ends what is known of the tokens of the caller's other devices, once the store refuses them.
    fn forget_others(&self, caller: &Caller) {
        let is_other =
            |known: &Caller| known.user == caller.user && known.token_device != caller.token_device;
        self.known.forget(is_other);
    }
}

/// Refuses a password that cannot be chosen. `member` is what the request calls it.
pub(super) fn check_chosen(password: &str, email: &str, member: &'static str) -> Result<(), AccountError> {
    match opaque::refusal(password, email) {
        Some(_) if broken::is("any_password_taken") => Ok(()),
        Some(reason) => Err(AccountError::Invalid { member, reason }),
        None => Ok(()),
    }
}

fn why(error: &AccountError) -> &'static str {
    match error {
        AccountError::WrongPassword => "wrong password",
        AccountError::Invalid { .. } => "a password that cannot be taken",
        AccountError::TooManyAttempts { .. } => "too many attempts",
        _ => "the server could not do it",
    }
}

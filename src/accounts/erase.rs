//! An account that its user erases, with everything that nobody else shares.

use std::net::IpAddr;

use super::audit::{self, Subject};
use super::local::{NO_TOKEN, Place, email_of};
use super::{AccountError, Caller, LocalAccounts};
use crate::model::{DeviceId, Timestamp};
use crate::storage::accounts::User;

/// How long the devices of an erased user are answered that the account is gone, days.
const GONE_DAYS: i64 = 30;

impl LocalAccounts {
    /// Erases the caller's account. Returns the devices that were signed out.
    ///
    /// - From now on no token leads to the owner. Its rows are removed step by step, unless other users have it.
    /// - Errors: `WrongPassword`; `TooManyAttempts`.
    pub fn erase(
        &self,
        caller: &Caller,
        password: &str,
        from: IpAddr,
    ) -> Result<Vec<DeviceId>, AccountError> {
        let subject = Subject::at(from).of_user(caller.user).of_device(caller.token_device);
        let erased = self.erase_unnoted(caller, password);
        match &erased {
            Ok(_) => audit::done("account_erased", subject),
            Err(AccountError::WrongPassword) => audit::refused("account_erased", subject, "wrong password"),
            Err(_) => audit::refused("account_erased", subject, "the request was refused"),
        }
        erased
    }

    fn erase_unnoted(&self, caller: &Caller, password: &str) -> Result<Vec<DeviceId>, AccountError> {
        let user = self.store.user_of(caller.user)?.ok_or(NO_TOKEN)?;
        self.check_own_password(&user, password, Place::Device(caller.token_device))?;
        self.erase_user(&user)
    }

    /// Erases an account by the operator's word; `false` if there is no such user.
    pub fn erase_by_operator(&self, email: &str) -> Result<bool, AccountError> {
        let Some(user) = self.store.user(&email_of(email)?)? else { return Ok(false) };
        self.erase_user(&user)?;
        audit::done("account_erased", Subject::default().of_user(user.id));
        Ok(true)
    }

    fn erase_user(&self, user: &User) -> Result<Vec<DeviceId>, AccountError> {
        let now = self.clock.now();
        let devices = self.store.erase_user(user, now, now.shifted(GONE_DAYS * Timestamp::DAY_MS))?;
        self.known.forget(|caller| caller.user == user.id);
        Ok(devices)
    }
}

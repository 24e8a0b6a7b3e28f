//! Tokens that are sent to a user's address: who shows one reads that mailbox.
//!
//! A request only puts the address into a queue. Whether there is such an account is looked up by the thread that sends,
//! so neither the answer nor its time says so.

use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use super::attempts::network_of;
use super::audit::{self, Subject};
use super::change::check_chosen;
use super::local::{Place, email_of, random};
use super::token_cache::fingerprint;
use super::{AccountError, LocalAccounts};
use crate::broken;
use crate::clock::Clock;
use crate::mail::{Hook, Mail, MailKind, Outbox};
use crate::metrics::Metrics;
use crate::model::{DeviceId, Precision};
use crate::storage::accounts::{AccountStore, MailToken, MailTokenUse, User};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use uuid::Uuid;

/// Whose token it is, and 256 random bits. The user is part of it, so that its hash is looked for where the user's other
/// rows are, and in no index over all users.
const TOKEN_BYTES: usize = 16 + 32;
/// The same in base64url, behind the three characters that say what it is.
const TOKEN_TEXT_BYTES: usize = 3 + TOKEN_BYTES / 3 * 4;

/// What the settings say about mails.
#[derive(Clone, Debug)]
pub struct MailTerms {
    /// Where the app's pages are: links begin with it.
    pub public_url: Option<String>,
    /// How long a token is good, ms, by what it is for.
    pub reset_ms: i64,
    /// The same for the token that verifies an address.
    pub verification_ms: i64,
}

impl MailTerms {
    /// How long a token of this kind is good, ms.
    const fn lasts_ms(&self, kind: MailKind) -> i64 {
        match kind {
            MailKind::PasswordReset => self.reset_ms,
            MailKind::EmailVerification => self.verification_ms,
        }
    }

    /// Where a token of this kind leads. It stands behind `#`, which no browser sends and no proxy logs.
    fn link(&self, kind: MailKind, token: &str) -> Option<String> {
        let page = match kind {
            MailKind::PasswordReset => "reset",
            MailKind::EmailVerification => "verify",
        };
        let url = self.public_url.as_deref()?.trim_end_matches('/');
        Some(format!("{url}/{page}#{token}"))
    }
}

/// A mail that is to be written.
pub(super) enum Job {
    /// Somebody at this address forgot the password of this account, if there is one.
    Reset { email: String, from: IpAddr },
    /// A user has not proved the address yet.
    Verification { user: User, from: IpAddr },
}

/// Makes tokens, and mails with them.
#[derive(Clone)]
pub(super) struct Desk {
    pub store: Arc<dyn AccountStore>,
    pub clock: Clock,
    pub terms: MailTerms,
    /// Counts mails, once there is somebody who reads the counts.
    pub metrics: Arc<OnceLock<Arc<Metrics>>>,
}

impl Desk {
    /// Does one job, and notes what became of it.
    fn work(&self, hook: &Hook, job: Job) {
        let (kind, from) = match &job {
            Job::Reset { from, .. } => (MailKind::PasswordReset, *from),
            Job::Verification { from, .. } => (MailKind::EmailVerification, *from),
        };
        let user = match job {
            Job::Reset { email, .. } => self.store.user(&email),
            Job::Verification { user, .. } => Ok(Some(user)),
        };
        let subject = Subject::at(from);
        let outcome = match user {
            Ok(Some(user)) => self.send(hook, kind, &user, subject.of_user(user.id)),
            Ok(None) => {
                audit::refused(kind.name(), subject, "unknown account");
                "unknown_account"
            }
            Err(error) => {
                tracing::warn!(%error, "could not look up the user of a mail");
                "failed"
            }
        };
        if let Some(metrics) = self.metrics.get() {
            metrics.mailed(kind.name(), outcome);
        }
    }

    fn send(&self, hook: &Hook, kind: MailKind, user: &User, subject: Subject) -> &'static str {
        let mail = match self.mail(kind, user) {
            Ok(mail) => mail,
            Err(error) => {
                tracing::warn!(%error, "could not make the token of a mail");
                return "failed";
            }
        };
        match hook.send(&mail) {
            Ok(()) => {
                audit::done(mailed(kind), subject);
                "sent"
            }
            Err(error) => {
                tracing::warn!(%error, kind = kind.name(), "a mail was not sent; the user can request it again");
                audit::refused(mailed(kind), subject, "the mail hook failed");
                "failed"
            }
        }
    }

    /// A mail with a new token, which takes the place of an older one of its kind.
    pub fn mail(&self, kind: MailKind, user: &User) -> Result<Mail, AccountError> {
        let secret = [&user.id.as_bytes()[..], &random::<32>()?].concat();
        let token = format!("{}{}", prefix(kind), URL_SAFE_NO_PAD.encode(secret));
        let expires_at = self.clock.now().shifted(self.terms.lasts_ms(kind));
        let kept = MailToken { user: user.id, kind, hash: fingerprint(&token), expires_at };
        self.store.put_mail_token(&kept)?;
        let link = self.terms.link(kind, &token);
        let expires_at = expires_at.format(Precision::Seconds).to_string();
        Ok(Mail { kind, to: user.email.clone(), link, token, expires_at })
    }
}

impl LocalAccounts {
    /// Lets mails be sent by `hook`; at most `jobs_max` wait.
    ///
    /// Errors: the system has no thread left.
    pub fn sending_by(mut self, hook: Hook, jobs_max: usize) -> std::io::Result<Self> {
        let desk = self.desk.clone();
        self.outbox = Some(Outbox::start(jobs_max, move |job| desk.work(&hook, job))?);
        Ok(self)
    }

    /// Has the mails counted from now on.
    pub fn count_mails(&self, metrics: &Arc<Metrics>) {
        let _ = self.desk.metrics.set(Arc::clone(metrics)); // once
    }

    /// How many mails wait to be sent.
    pub fn mails_waiting(&self) -> usize {
        self.outbox.as_ref().map_or(0, Outbox::waiting)
    }

    /// Has a token mailed to the user of an address, if there is one, with which the user can choose another password.
    ///
    /// Never blocks. The work is the same for an address without an account: this looks nothing up.
    ///
    /// Errors: `NoMail`; `Invalid` for what is no address; `TooManyAttempts`, whether there is an account or not.
    pub fn ask_for_reset(&self, email: &str, from: IpAddr) -> Result<(), AccountError> {
        let outbox = self.outbox.as_ref().ok_or(AccountError::NoMail)?;
        let email = email_of(email)?;
        if broken::is("reset_tells_accounts") && self.store.user(&email)?.is_none() {
            return Ok(());
        }
        self.by_address.take(&network_of(from))?;
        self.take_mail(&email)?;
        let job = Job::Reset { email, from };
        outbox.put(job).map_err(|_| AccountError::TooManyAttempts { retry_after_s: 5 })
    }

    fn take_mail(&self, email: &str) -> Result<(), AccountError> {
        self.mails_by_account.take(&email)?;
        self.mails.take(&()).inspect_err(|_| self.mails_by_account.give_back(&email))
    }

    /// Has a mail sent by which a user can prove the address. Does nothing where none is sent, or too many were.
    pub(super) fn ask_for_verification(&self, user: &User, from: IpAddr) {
        let Some(outbox) = &self.outbox else { return };
        let sent = self.take_mail(&user.email).is_ok()
            && outbox.put(Job::Verification { user: user.clone(), from }).is_ok();
        if !sent {
            audit::refused(
                mailed(MailKind::EmailVerification),
                Subject::at(from).of_user(user.id),
                "too many mails",
            );
        }
    }

    /// Replaces a password by a token that was mailed, and signs all devices out. Returns the user and the devices.
    ///
    /// Errors: `InvalidToken` for one that is unknown, was used, has expired or was followed by another one; `Invalid` for
    /// the new password; `TooManyAttempts`.
    pub fn reset_password(
        &self,
        token: &str,
        new: &str,
        from: IpAddr,
    ) -> Result<(User, Vec<DeviceId>), AccountError> {
        let reset = self.reset_unnoted(token, new, from);
        self.note("password_reset", reset, from)
    }

    fn reset_unnoted(
        &self,
        token: &str,
        new: &str,
        from: IpAddr,
    ) -> Result<(User, Vec<DeviceId>), AccountError> {
        let (token, user) = self.mail_token(MailKind::PasswordReset, token, from)?;
        check_chosen(new, &user.email, "new")?;
        let hash = self.passwords.hash(new)?;
        self.use_token(&token, user, Some(&hash))
    }

    /// Proves an address by a token that was mailed to it and the password, and signs all devices out.
    ///
    /// The password is needed since a stranger may have registered the address: the owner of the mailbox, who does not
    /// know that password, must not make the stranger's account a verified one.
    ///
    /// Errors: `InvalidToken`, `WrongPassword`, `TooManyAttempts`.
    pub fn verify_email(
        &self,
        token: &str,
        password: &str,
        from: IpAddr,
    ) -> Result<(User, Vec<DeviceId>), AccountError> {
        let verified = self.verify_unnoted(token, password, from);
        self.note("email_verified", verified, from)
    }

    fn verify_unnoted(
        &self,
        token: &str,
        password: &str,
        from: IpAddr,
    ) -> Result<(User, Vec<DeviceId>), AccountError> {
        let (token, user) = self.mail_token(MailKind::EmailVerification, token, from)?;
        self.check_own_password(&user, password, Place::Network(network_of(from)))?;
        self.use_token(&token, user, None)
    }

    /// What a token of a mail proves, and whose it is.
    fn mail_token(
        &self,
        kind: MailKind,
        token: &str,
        from: IpAddr,
    ) -> Result<(MailToken, User), AccountError> {
        self.by_address.take(&network_of(from))?;
        let found = match user_of_token(kind, token) {
            Some(user) => self.store.mail_token(kind, user, &fingerprint(token))?,
            None => None,
        };
        let is_good =
            |token: &MailToken| self.clock.now() < token.expires_at || broken::is("mail_token_lasts");
        let token = found.filter(is_good).ok_or(AccountError::InvalidToken)?;
        let user = self.store.user_of(token.user)?.ok_or(AccountError::InvalidToken)?;
        Ok((token, user))
    }

    fn use_token(
        &self,
        token: &MailToken,
        user: User,
        hash: Option<&str>,
    ) -> Result<(User, Vec<DeviceId>), AccountError> {
        let used = MailTokenUse { token, password_hash: hash, at: self.clock.now() };
        let removed = self.store.use_mail_token(&used)?.ok_or(AccountError::InvalidToken)?;
        self.known.forget(|caller| caller.user == user.id);
        Ok((user, removed))
    }

    fn note(
        &self,
        event: &'static str,
        outcome: Result<(User, Vec<DeviceId>), AccountError>,
        from: IpAddr,
    ) -> Result<(User, Vec<DeviceId>), AccountError> {
        match &outcome {
            Ok((user, removed)) => {
                let subject = Subject::at(from).of_user(user.id);
                audit::done(event, subject);
                removed.iter().for_each(|device| audit::done("revocation", subject.of_device(*device)));
            }
            Err(AccountError::InvalidToken) => audit::refused(event, Subject::at(from), "no good token"),
            Err(AccountError::WrongPassword) => audit::refused(event, Subject::at(from), "wrong password"),
            Err(_) => audit::refused(event, Subject::at(from), "the request was refused"),
        }
        outcome
    }

    /// A mail for a user, for the operator to hand over. `None` if there is no such user.
    pub fn mail_for(&self, kind: MailKind, email: &str) -> Result<Option<Mail>, AccountError> {
        let Some(user) = self.store.user(&email_of(email)?)? else { return Ok(None) };
        let mail = self.desk.mail(kind, &user)?;
        let event = match kind {
            MailKind::PasswordReset => "password_reset_link",
            MailKind::EmailVerification => "email_verification_link",
        };
        audit::done(event, Subject::default().of_user(user.id));
        Ok(Some(mail))
    }
}

/// Whose token it says that it is; `None` for what is no token of this kind.
fn user_of_token(kind: MailKind, token: &str) -> Option<Uuid> {
    let text = token.strip_prefix(prefix(kind)).filter(|_| token.len() == TOKEN_TEXT_BYTES)?;
    let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
    Uuid::from_slice(bytes.get(..16)?).ok()
}

/// What a mail is called in the audit's lines.
const fn mailed(kind: MailKind) -> &'static str {
    match kind {
        MailKind::PasswordReset => "password_reset_mail",
        MailKind::EmailVerification => "email_verification_mail",
    }
}

/// What a token of this kind begins with, so that people and secret scanners know it.
const fn prefix(kind: MailKind) -> &'static str {
    match kind {
        MailKind::PasswordReset => "rp_",
        MailKind::EmailVerification => "rv_",
    }
}

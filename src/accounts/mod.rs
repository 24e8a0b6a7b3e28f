//! Identifies callers: from a bearer token to an owner and a device.
//!
//! - `local`: this server keeps users and devices, and gives out random tokens.
//! - `jwt`: the app's own identity provider signs the tokens; nothing is kept here. `keys`: with what; `jwks`: how
//!   a provider publishes it.
//! - `password`: Argon2id, and how many of it run at once. `opaque`: the one form of a password, and which may be
//!   chosen. `change`: a password is replaced. `mailing`: tokens that are sent to a user's address.
//!   `erase`: an account goes.
//!   `attempts`: how often one may try.
//! - `audit`: a log line for everything that changes who may come in.
//! - `rights`: what a caller may do with the owner of its request. `token_owners`: the owners that a provider's token names.
//! - `invitations`: codes by which users become members of an owner.
//! - `installations`: which copy of an app a request comes from, where it names itself.
//! - `known`: tokens that were found good a moment ago.
//!
//! Everything except [`Accounts::known`] blocks: a password takes some 100 ms of a core, a token a database
//! access or, rarely, a request to the identity provider. `http` calls it off the reactor.

mod attempts;
pub mod audit;
pub mod change;
pub mod erase;
pub mod installations;
pub mod invitations;
mod jwks;
mod jws;
pub mod jwt;
mod keys;
pub mod local;
mod local_settings;
pub mod mailing;
mod opaque;
mod password;
pub mod rights;
pub mod sightings;
mod token_cache;
mod token_owners;

use std::sync::Arc;

use crate::clock::Clock;
use crate::config::{AuthMode, AuthSettings, Limits, MailSettings, Verification};
use crate::mail::Hook;
use crate::model::{DeviceId, Owner};
use crate::storage::{AccountStore, StorageError};

pub use attempts::{PublicReaders, network_of};
pub use change::PasswordChange;
pub use jwt::JwtAccounts;
pub use local::{LocalAccounts, LogIn, NewToken};
pub use local_settings::LocalSettings;
pub use rights::{Rights, Roles};
pub use token_owners::TokenOwners;

/// The caller of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The owner of the request's rows.
    pub owner: Owner,
    /// The owner of requests that name none.
    pub default_owner: Owner,
    /// The owners that the token names, if it says which there are. Then memberships do not matter.
    pub token_owners: Option<Arc<TokenOwners>>,
    /// What the caller may do with the owner's rows.
    pub rights: Rights,
    /// The device of the client: its installation if that names itself, otherwise its token's device.
    pub device: DeviceId,
    /// The name that the app gave to the device of the token.
    pub device_name: String,
    /// The device that received the token.
    pub token_device: DeviceId,
    /// The installation that the client names.
    pub installation: Option<installations::CallerInstallation>,
    /// The user: the id in this server's accounts, or one derived from the provider's.
    pub user: uuid::Uuid,
}

impl Caller {
    /// The same caller, in a request about another owner. The rights there are not known yet.
    pub fn about(&self, owner: Owner) -> Self {
        let rights = match &self.token_owners {
            Some(named) => named.rights(owner),
            None if owner == self.default_owner => self.rights,
            None => Rights::UNKNOWN,
        };
        Self { owner, rights, ..self.clone() }
    }

    /// Somebody without a token, who reads a public owner.
    pub fn nobody(owner: Owner) -> Self {
        let nobody = uuid::Uuid::nil();
        Self {
            owner,
            default_owner: Owner(nobody),
            token_owners: None,
            rights: Rights::PUBLIC,
            device: DeviceId(nobody),
            device_name: String::new(),
            token_device: DeviceId(nobody),
            installation: None,
            user: nobody,
        }
    }

    /// Whether the caller sent no token.
    pub fn is_nobody(&self) -> bool {
        self.user.is_nil()
    }

    /// The same caller, who is no member of the owner and reads it because anyone may. Its device leaves no trace there, so
    /// it is like any other.
    pub fn as_public_reader(&self) -> Self {
        let device = DeviceId(uuid::Uuid::nil());
        Self { rights: Rights::PUBLIC, device, installation: None, ..self.clone() }
    }

    /// The owner, if it is not the one of requests that name none.
    pub fn other_owner(&self) -> Option<Owner> {
        (self.owner != self.default_owner).then_some(self.owner)
    }
}

/// The source of this server's callers.
#[allow(clippy::large_enum_variant)] // a server has only one
pub enum Accounts {
    /// This server manages users and devices.
    Local(Box<LocalAccounts>),
    /// The identity provider issues the tokens.
    Jwt(Box<JwtAccounts>),
}

impl Accounts {
    /// Opens the accounts that the settings select.
    ///
    /// Errors: [`SetupError`] if `jwt` has no key or a weak one. An unreachable identity provider is only
    /// logged: it is contacted again when the first token arrives.
    pub fn open(
        auth: &AuthSettings,
        limits: &Limits,
        store: Arc<dyn AccountStore>,
        clock: Clock,
    ) -> Result<Self, SetupError> {
        match auth.auth {
            AuthMode::Local => {
                let settings = LocalSettings::new(auth, limits);
                let accounts = LocalAccounts::new(store, clock, settings, argon2::Params::DEFAULT)?;
                let accounts = match hook(&auth.mail)? {
                    Some(hook) => accounts
                        .sending_by(hook, auth.mail.mail_queue_max)
                        .map_err(|cause| SetupError::Mail(cause.to_string()))?,
                    None => accounts,
                };
                Ok(Self::Local(Box::new(accounts)))
            }
            AuthMode::Jwt => JwtAccounts::open(auth, limits.owners_per_user_max, clock)
                .map(|accounts| Self::Jwt(Box::new(accounts))),
        }
    }

    /// Identifies the caller of a bearer token.
    ///
    /// Errors: [`AccountError::Unauthorized`] for an invalid or expired token;
    /// [`AccountError::KeysUnavailable`] or [`AccountError::Storage`] if that cannot be decided now.
    pub fn authenticate(&self, bearer: &str) -> Result<Caller, AccountError> {
        match self {
            Self::Local(accounts) => accounts.authenticate(bearer),
            Self::Jwt(accounts) => accounts.authenticate(bearer),
        }
    }

    /// The caller of a bearer token, if the token is cached. `None` means only that it is not cached. Never
    /// blocks.
    ///
    /// - A token that was revoked here is not returned from then on. One that another process revoked is
    ///   refused after `token_known_s` at the latest; on PostgreSQL, where servers notify each other, a
    ///   moment later.
    pub fn known(&self, bearer: &str) -> Option<Caller> {
        match self {
            Self::Local(accounts) => accounts.known(bearer),
            Self::Jwt(accounts) => accounts.known(bearer),
        }
    }

    /// Registration, log-in and devices; `None` if the identity provider manages them.
    pub fn local(&self) -> Option<&LocalAccounts> {
        match self {
            Self::Local(accounts) => Some(accounts),
            Self::Jwt(_) => None,
        }
    }
}

/// What sends mails, if the settings name something.
fn hook(mail: &MailSettings) -> Result<Option<Hook>, SetupError> {
    let timeout = std::time::Duration::from_secs(mail.mail_s.max(1));
    let argv: Vec<String> = mail.mail_command.iter().filter(|word| !word.is_empty()).cloned().collect();
    match (argv.is_empty(), &mail.mail_webhook) {
        (false, Some(_)) => Err(SetupError::Mail("give either --mail-command or --mail-webhook".into())),
        (false, None) => Ok(Some(Hook::Command { argv, timeout })),
        (true, Some(url)) if url.starts_with("https://") || url.starts_with("http://") => {
            let token = mail.mail_webhook_token_file.as_deref().map(read_token).transpose()?;
            Ok(Some(Hook::webhook(url.clone(), token, timeout)))
        }
        (true, Some(_)) => Err(SetupError::Mail("--mail-webhook must begin with https:// or http://".into())),
        (true, None) if mail.email_verification != Verification::Off => {
            Err(SetupError::Mail("--email-verification needs --mail-command or --mail-webhook".into()))
        }
        (true, None) => Ok(None),
    }
}

fn read_token(file: &std::path::Path) -> Result<String, SetupError> {
    let text = std::fs::read_to_string(file)
        .map_err(|cause| SetupError::File { file: file.display().to_string(), cause })?;
    Ok(text.trim().to_owned())
}

/// Why an account call failed.
#[derive(Debug, thiserror::Error)]
pub enum AccountError {
    /// No token, a wrong one, or a wrong email or password.
    #[error("{0}")]
    Unauthorized(&'static str),
    /// Only the command line creates accounts.
    #[error("registration is closed")]
    RegistrationClosed,
    /// Another user has this email.
    #[error("the email is taken")]
    EmailTaken,
    /// Too many log-ins for this account, from this address, or at once.
    #[error("too many attempts; again in {retry_after_s} s")]
    TooManyAttempts {
        /// When the next attempt may succeed, s; at least 1.
        retry_after_s: u64,
    },
    /// An invalid member of the request.
    #[error("{reason}")]
    Invalid {
        /// The member's name: `email`, `password` or `device`.
        member: &'static str,
        /// What it should be.
        reason: &'static str,
    },
    /// The password that is to prove who asks is another one.
    #[error("the password is wrong")]
    WrongPassword,
    /// The user of the token was erased.
    #[error("the account is gone")]
    AccountGone,
    /// A token of a mail that is unknown, was used, or has expired.
    #[error("the token of a mail is of no use")]
    InvalidToken,
    /// The address must be proved first.
    #[error("the email is not verified")]
    EmailNotVerified,
    /// No mail can be sent here.
    #[error("no mail can be sent")]
    NoMail,
    /// The user has no such device.
    #[error("the user has no such device")]
    NoSuchDevice,
    /// The identity provider's keys are unavailable, so the token cannot be judged.
    #[error("the identity provider does not answer; again in {retry_after_s} s")]
    KeysUnavailable {
        /// When the provider will be contacted again, s; at least 1.
        retry_after_s: u64,
    },
    /// The engine failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// No randomness, or a stored password hash that cannot be read.
    #[error("passwords or tokens cannot be made or checked")]
    Internal(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Why the server cannot start with these settings; for the operator.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// Neither or both of the two sources of keys are set.
    #[error(
        "with `--auth jwt` give either --jwt-secret-file (HS256) or --jwt-keys (RS256, PS256, ES256, EdDSA)"
    )]
    OneKeySource,
    /// A provider signs for many apps with the same keys.
    #[error("--jwt-keys needs --jwt-issuer: whose tokens are good?")]
    IssuerMissing,
    /// A claim name that is empty.
    #[error("the name of a claim must not be empty")]
    ClaimName,
    /// The secret is short enough to be guessed.
    #[error("the secret in {file} has {bytes} bytes; HS256 needs at least {min}", min = keys::SECRET_BYTES_MIN)]
    SecretTooShort {
        /// As configured.
        file: String,
        /// Its length in bytes, without the line's end.
        bytes: usize,
    },
    /// A file that cannot be read.
    #[error("cannot read {file}: {cause}")]
    File {
        /// As configured.
        file: String,
        /// The system's error.
        cause: std::io::Error,
    },
    /// A key set that can never be used.
    #[error("{0}")]
    Keys(String),
    /// Mails cannot be sent as the settings have it.
    #[error("{0}")]
    Mail(String),
    /// No randomness, or invalid password parameters.
    #[error("passwords cannot be hashed: {0}")]
    Passwords(String),
}

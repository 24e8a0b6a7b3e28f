//! Who is asking: from a bearer token to an owner and a device.
//!
//! - `local`: this server keeps users and devices, and gives out random tokens.
//! - `jwt`: the app's own identity provider signs the tokens; nothing is kept here. `keys`: with what; `jwks`: how
//!   a provider publishes it.
//! - `password`: Argon2id, and how many of it run at once. `opaque`: the one form of a password, and which may be
//!   chosen. `change`: a password is replaced. `attempts`: how often one may try.
//! - `audit`: a log line for everything that changes who may come in.
//! - `installations`: which copy of an app a request comes from, where it names itself.
//! - `known`: tokens that were found good a moment ago.
//!
//! All but [`Accounts::known`] blocks: a password takes some 100 ms of a core, a token a look into the
//! database or, rarely, a request to the identity provider. `http` calls it off the reactor.

mod attempts;
pub mod audit;
pub mod change;
pub mod installations;
mod jwks;
mod jws;
pub mod jwt;
mod keys;
pub mod local;
mod opaque;
mod password;
pub mod sightings;
mod token_cache;

use std::sync::Arc;

use crate::clock::Clock;
use crate::config::{AuthMode, AuthSettings, Limits};
use crate::model::{DeviceId, Owner};
use crate::storage::{AccountStore, StorageError};

pub use attempts::network_of;
pub use change::PasswordChange;
pub use jwt::JwtAccounts;
pub use local::{LocalAccounts, LocalSettings, LogIn, NewToken};

/// The one who makes a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Whose rows the request is about.
    pub owner: Owner,
    /// Which device the server knows the client as: its installation, where it names that, else its token's device.
    pub device: DeviceId,
    /// As the app calls the device of the token.
    pub device_name: String,
    /// The device that the token was given to.
    pub token_device: DeviceId,
    /// The installation that the client says it is.
    pub installation: Option<installations::CallerInstallation>,
    /// Who makes it: the id of a user that this server keeps, or one made of the provider's own.
    pub user: uuid::Uuid,
}

/// Where this server's callers come from.
#[allow(clippy::large_enum_variant)] // a server has one
pub enum Accounts {
    /// Users and devices are kept here.
    Local(Box<LocalAccounts>),
    /// Tokens are the identity provider's.
    Jwt(Box<JwtAccounts>),
}

impl Accounts {
    /// Builds what the settings ask for.
    ///
    /// Errors: [`SetupError`] if `jwt` lacks a key or has one too weak. An identity provider that
    /// does not answer is only logged: it is asked again when the first token comes.
    pub fn open(
        auth: &AuthSettings,
        limits: &Limits,
        store: Arc<dyn AccountStore>,
        clock: Clock,
    ) -> Result<Self, SetupError> {
        match auth.auth {
            AuthMode::Local => {
                let settings = LocalSettings::new(auth, limits);
                LocalAccounts::new(store, clock, settings, argon2::Params::DEFAULT)
                    .map(|accounts| Self::Local(Box::new(accounts)))
            }
            AuthMode::Jwt => JwtAccounts::open(auth, clock).map(|accounts| Self::Jwt(Box::new(accounts))),
        }
    }

    /// The caller whom a bearer token names.
    ///
    /// Errors: [`AccountError::Unauthorized`] for whatever is no good token of today;
    /// [`AccountError::KeysUnavailable`] or [`AccountError::Storage`] if nobody can tell now.
    pub fn authenticate(&self, bearer: &str) -> Result<Caller, AccountError> {
        match self {
            Self::Local(accounts) => accounts.authenticate(bearer),
            Self::Jwt(accounts) => accounts.authenticate(bearer),
        }
    }

    /// The caller whom a bearer token names, if that is in memory; `None` says nothing. Never blocks.
    ///
    /// - A token that was taken back here is not known from then on. One that another process took back is
    ///   refused after `token_known_s` at the latest; on PostgreSQL, where servers tell each other, a moment later.
    pub fn known(&self, bearer: &str) -> Option<Caller> {
        match self {
            Self::Local(accounts) => accounts.known(bearer),
            Self::Jwt(accounts) => accounts.known(bearer),
        }
    }

    /// Registration, log-in and devices; `None` where they are the identity provider's business.
    pub fn local(&self) -> Option<&LocalAccounts> {
        match self {
            Self::Local(accounts) => Some(accounts),
            Self::Jwt(_) => None,
        }
    }
}

/// Why an account call did not give what was asked.
#[derive(Debug, thiserror::Error)]
pub enum AccountError {
    /// No token, a wrong one, or a wrong email or password.
    #[error("{0}")]
    Unauthorized(&'static str),
    /// Accounts come from the command line here.
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
    /// A member of the request that cannot be taken.
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
    /// The user has no such device.
    #[error("the user has no such device")]
    NoSuchDevice,
    /// The identity provider's keys cannot be had, so a token may be good or not.
    #[error("the identity provider does not answer; again in {retry_after_s} s")]
    KeysUnavailable {
        /// When the provider will be asked again, s; at least 1.
        retry_after_s: u64,
    },
    /// The engine could not do its part.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// No randomness, or a stored password hash that cannot be read.
    #[error("passwords or tokens cannot be made or checked")]
    Internal(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Why the server cannot start with these settings; for whoever runs it.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// Neither or both of the two places a key can come from.
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
    /// The secret would be guessed.
    #[error("the secret in {file} has {bytes} bytes; HS256 needs at least {min}", min = keys::SECRET_BYTES_MIN)]
    SecretTooShort {
        /// As configured.
        file: String,
        /// How many bytes it has without a line's end.
        bytes: usize,
    },
    /// A file that cannot be read.
    #[error("cannot read {file}: {cause}")]
    File {
        /// As configured.
        file: String,
        /// What the system says.
        cause: std::io::Error,
    },
    /// A key set that can never be used.
    #[error("{0}")]
    Keys(String),
    /// No randomness, or unusable password parameters.
    #[error("passwords cannot be hashed: {0}")]
    Passwords(String),
}

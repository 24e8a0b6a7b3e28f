//! Logs the device in.

use super::calls::{CallError, Calls};
use super::remote::Remote;
use super::retry::RetryPolicy;
use super::store::{Store, StoreError, names};

/// The credentials of a log-in.
#[derive(Clone, Copy, Debug)]
pub struct LogIn<'a> {
    /// The registered email.
    pub email: &'a str,
    /// It is sent, but not stored.
    pub password: &'a str,
    /// The name of the device, for people.
    pub device: &'a str,
    /// Whether to register the account first.
    pub register: bool,
}

/// Why a device could not log in.
#[derive(Debug, thiserror::Error)]
pub enum LoginError {
    /// The device's file.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The server.
    #[error(transparent)]
    Call(#[from] CallError),
    /// The rows in the file are another user's.
    #[error("this file has the rows of {0}; make another one with `rollcall device init`")]
    OtherUser(String),
    /// The same, if the user's email is not known here.
    #[error("this file has the rows of another user; make another one with `rollcall device init`")]
    OtherToken,
}

/// Logs the device in, as the same device as before if it was ever logged in.
///
/// A file belongs to one user: the manifest of another user would lack every row, and all would be dropped.
pub fn log_in(
    store: &Store,
    remote: &mut dyn Remote,
    retries: &mut RetryPolicy,
    asked: LogIn<'_>,
) -> Result<(), LoginError> {
    let email = asked.email.trim().to_lowercase();
    if let Some(other) = store.recall(names::EMAIL)?.filter(|known| *known != email) {
        return Err(LoginError::OtherUser(other));
    }
    // An older token, even an expired one, shows the server that this is not a stranger who guesses the
    // password.
    let mut calls = Calls::new(remote, retries, store.recall(names::TOKEN)?);
    if asked.register {
        calls.register(&email, asked.password)?;
    }
    let device_id = store.recall(names::DEVICE_ID)?;
    let session = calls.log_in(&email, asked.password, asked.device, device_id.as_deref())?;
    let mut calls = Calls::new(remote, retries, Some(session.token.clone()));
    calls.owner = store.owner()?;
    bind(store, calls.me()?)?;
    store.remember(names::EMAIL, &email)?;
    store.remember(names::DEVICE, asked.device)?;
    store.remember(names::DEVICE_ID, &session.device_id)?;
    store.remember(names::TOKEN, &session.token)?;
    Ok(())
}

/// Stores a token of the app's own identity provider, if it belongs to the user of the file's rows.
///
/// Without a network a bound file accepts any token: the server refuses a wrong one at the next sync.
pub fn take_token(
    store: &Store,
    remote: &mut dyn Remote,
    retries: &mut RetryPolicy,
    token: &str,
) -> Result<(), LoginError> {
    let owner = store.owner()?;
    let mut me = |token: &str| {
        let mut calls = Calls::new(remote, retries, Some(token.to_owned()));
        calls.owner = owner;
        calls.me()
    };
    let older = store.recall(names::TOKEN)?.filter(|older| older != token);
    // In a file that was never bound, only its older token can identify the owner of the rows. If it has
    // expired, it cannot.
    if let Some(older) = older.filter(|_| matches!(store.bound(), Ok(None))) {
        match me(&older) {
            Err(CallError::Refused(problem)) if problem.status == 401 => {}
            owner => bind(store, owner?)?,
        }
    }
    match me(token) {
        Err(CallError::NoResponse(_)) => {}
        owner => bind(store, owner?)?,
    }
    Ok(store.remember(names::TOKEN, token)?)
}

/// Binds the file to a user and owner; refuses others than its own.
fn bind(store: &Store, me: Option<String>) -> Result<(), LoginError> {
    let Some(me) = me else { return Ok(()) };
    match store.bound()? {
        Some(bound) if bound != me => Err(LoginError::OtherToken),
        Some(_) => Ok(()),
        None => Ok(store.remember(names::BOUND, &me)?),
    }
}

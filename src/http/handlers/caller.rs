//! Identifies the caller of a request, by its token and its headers.

use std::future::Future;
use std::sync::Arc;

use http::header::{AUTHORIZATION, CACHE_CONTROL, CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue};
use serde_json::json;
use uuid::Uuid;

use super::{ApiError, App, HandlerResult, json, off_reactor, public, report, with_locks};
use crate::accounts::rights::Holds;
use crate::accounts::{AccountError, Caller};
use crate::broken;
use crate::http::{Peer, query};
use crate::locks::LockResult;
use crate::model::{InstallationName, Owner};

const SYNC_FOR: HeaderName = HeaderName::from_static("sync-for");
const SYNC_DEVICE: HeaderName = HeaderName::from_static("sync-device");

/// What a request is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// The caller's account. Membership does not matter.
    Account,
    /// The rows of the owner of requests that name none. Every transaction checks the rights again.
    DefaultOwner,
    /// The rows of an owner, which the query may name. Every transaction checks the rights again.
    Owner,
    /// The same, and nobody need be a member of an owner that is public.
    PublicOwner,
    /// The same as [`Self::Owner`], and the request looks at the lock at once and renews the lease by that.
    OwnerEntering,
    /// The same as [`Self::Owner`], except that no transaction follows which would check the rights.
    OwnerNow,
    /// The same as [`Self::OwnerNow`], or [`Self::Account`] if the query names all owners of the user.
    OwnersNow,
}

impl Scope {
    /// Whether the query may name an owner.
    pub fn names_owner(self) -> bool {
        matches!(self, Self::Owner | Self::PublicOwner | Self::OwnerEntering | Self::OwnerNow)
    }

    /// What a request of that query is about.
    pub fn of(self, query: &str) -> Self {
        match self {
            Self::OwnersNow if query::names_all_owners(query) => Self::Account,
            Self::OwnersNow => Self::OwnerNow,
            other => other,
        }
    }
}

/// The caller of a request. A caller that holds the lock renews its lease by any request.
///
/// A client that names another user or owner than its token, or an owner of which it is no member, is refused here,
/// before a row is read or the lock is used: every operation with a caller uses this function.
pub async fn caller(
    app: Arc<App>,
    Peer(from): Peer,
    headers: HeaderMap,
    scope: Scope,
    owner: Option<Owner>,
) -> Result<Caller, ApiError> {
    if scope == Scope::PublicOwner
        && let Some(nobody) = public::without_token(&app, &headers, owner, from).await?
    {
        Meant::read(&headers)?.check(&nobody)?;
        return Ok(nobody);
    }
    let token = bearer(&headers)?.to_owned();
    let meant = Meant::read(&headers)?;
    let caller = match known_caller(&app, headers, scope, owner).await {
        Err(ApiError::NotAMember) => {
            let caller = about(&authenticated(&app, token).await?, owner);
            meant.check(&caller)?;
            let reader = match scope {
                Scope::PublicOwner => public::without_membership(&app, &caller).await?,
                _ => None,
            };
            return reader.ok_or(ApiError::NotAMember);
        }
        known => known?,
    };
    if let Some(local) = app.accounts.local() {
        local.sightings.note(caller.user, caller.token_device, from, app.clock.now());
    }
    Ok(caller)
}

/// The caller of a token that is no member of an owner. The token of an account that was removed may still be in memory:
/// its user is to log in again, and not to take the rows for lost.
async fn authenticated(app: &Arc<App>, token: String) -> Result<Caller, ApiError> {
    let app = Arc::clone(app);
    off_reactor(move || Ok(app.accounts.authenticate(&token)?)).await
}

async fn known_caller(
    app: &Arc<App>,
    headers: HeaderMap,
    scope: Scope,
    owner: Option<Owner>,
) -> Result<Caller, ApiError> {
    let renews = !(scope == Scope::OwnerEntering && app.locks.is_remote() && is_short(&headers));
    let token = bearer(&headers)?;
    let meant = Meant::read(&headers)?;
    let sent = named(&headers)?;
    let known = app.accounts.known(token);
    app.metrics.looked_up("token", known.is_some());
    if let Some(caller) = &known {
        let caller = about(caller, owner);
        meant.check(&caller)?;
        if let Some(caller) = with_known_rights(app, caller, scope)?
            && let Some(caller) = from_memory(app, &caller, sent)
        {
            let holder = caller.clone();
            if renews {
                renewed(with_locks(app, move |locks| locks.renew(&holder)).await?);
            }
            return Ok(caller);
        }
    }
    let (app, token) = (Arc::clone(app), token.to_owned());
    off_reactor(move || {
        let caller = known.map_or_else(|| app.accounts.authenticate(&token), Ok)?;
        let caller = about(&caller, owner);
        meant.check(&caller)?;
        let caller = match with_known_rights(&app, caller.clone(), scope)? {
            Some(caller) => caller,
            None => app.with_rights(caller)?,
        };
        let caller = match (from_memory(&app, &caller, sent), sent) {
            (None, Some(sent)) => app.identify(&caller, sent)?,
            (known, _) => known.unwrap_or(caller),
        };
        if renews {
            renewed(app.locks.renew(&caller));
        }
        Ok(caller)
    })
    .await
}

fn about(caller: &Caller, owner: Option<Owner>) -> Caller {
    owner.map_or_else(|| caller.clone(), |owner| caller.about(owner))
}

/// The caller with the rights that hold as far as memory knows; `None` if the member must be read.
///
/// Errors: 403 `not_a_member`.
fn with_known_rights(app: &App, caller: Caller, scope: Scope) -> Result<Option<Caller>, ApiError> {
    if scope == Scope::Account {
        return Ok(Some(caller));
    }
    let known = app.roles.find(caller.user, caller.owner).filter(|_| !caller.rights.is_of_token());
    let Some(state) = app.storage.known_state(caller.owner) else {
        if caller.rights.is_of_token() {
            return Ok(Some(caller));
        }
        if caller.rights.holds == Holds::Never {
            return Err(ApiError::NotAMember);
        }
        return Ok(known.filter(|_| scope != Scope::OwnerNow).map(|rights| Caller { rights, ..caller }));
    };
    for rights in [Some(caller.rights), known].into_iter().flatten() {
        match rights.hold_at(&state) {
            Some(true) => return Ok(Some(Caller { rights, ..caller })),
            Some(false) => return Err(ApiError::NotAMember),
            None => {}
        }
    }
    Ok(None)
}

/// Whether the body arrives with the headers, more or less. While a longer one arrives the lease might run out.
fn is_short(headers: &HeaderMap) -> bool {
    let length = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
    length.is_some_and(|length| length <= report::SHORT_BYTES)
}

/// The caller with its installation, if that needs no database access.
fn from_memory(app: &App, caller: &Caller, sent: Option<InstallationName>) -> Option<Caller> {
    let Some(sent) = sent else { return Some(caller.clone()) };
    let noted = caller.as_sent(sent).noted();
    let highest = app.counters.as_ref()?.find(noted.owner, noted.device)?;
    (highest <= sent.counter).then_some(noted)
}

/// The installation that the client names.
fn named(headers: &HeaderMap) -> Result<Option<InstallationName>, ApiError> {
    let mut given = headers.get_all(SYNC_DEVICE).iter();
    let Some(value) = given.next() else { return Ok(None) };
    let named = value.to_str().ok().and_then(InstallationName::read).filter(|_| given.next().is_none());
    let reason = "Sync-Device must be a UUID and a counter, a whole number from 0 up to 2^53 - 1, with a dot between them.";
    named.map(Some).ok_or_else(|| ApiError::InvalidRequest { reason: reason.into() })
}

/// Handles a request, and adds the installation's new name to the response if it has one.
pub async fn handle_caller<F: Future<Output = HandlerResult>>(
    caller: Result<Caller, ApiError>,
    handle: impl FnOnce(Result<Caller, ApiError>) -> F,
) -> HandlerResult {
    let adopted = caller.as_ref().ok().and_then(Caller::adopts);
    let mut response = handle(caller).await?;
    set_installation_header(response.headers_mut(), adopted);
    Ok(response)
}

/// Sets the header with the name that the client must adopt.
pub fn set_installation_header(headers: &mut HeaderMap, adopted: Option<InstallationName>) {
    if let Some(value) = adopted.and_then(|named| HeaderValue::from_str(&named.to_string()).ok()) {
        headers.insert(SYNC_DEVICE, value);
    }
}

/// Logs a lease that could not be renewed, which only ends earlier.
fn renewed(lease: LockResult<()>) {
    if let Err(error) = lease {
        tracing::warn!(%error, "could not renew a lease");
    }
}

/// Whether a token still names the caller, and the caller is a member. If nobody can say so at the moment, it does.
pub async fn is_token_good(app: &Arc<App>, token: &str, caller: &Caller) -> bool {
    is_token_good_for(app, token, caller, Scope::OwnerNow).await
}

/// The same for a request about one owner, or about the caller's account.
pub async fn is_token_good_for(app: &Arc<App>, token: &str, caller: &Caller, scope: Scope) -> bool {
    let (app, token, owner) = (Arc::clone(app), token.to_owned(), caller.owner);
    let found = off_reactor(move || {
        let found = match app.accounts.authenticate(&token) {
            Ok(caller) => caller.about(owner),
            Err(AccountError::Unauthorized(_) | AccountError::AccountGone) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let checked = match with_known_rights(&app, found.clone(), scope) {
            Ok(None) => app.with_rights(found).map(Some),
            known => known,
        };
        match checked {
            Ok(caller) => Ok(caller),
            Err(ApiError::NotAMember) => Ok(None),
            Err(error) => Err(error),
        }
    });
    match found.await {
        Ok(Some(found)) => {
            (found.default_owner, found.token_device) == (caller.default_owner, caller.token_device)
        }
        Ok(None) => false,
        Err(error) => {
            tracing::debug!(%error, "could not check whether the token of a stream is still valid");
            true
        }
    }
}

/// The bearer token of a request.
pub fn bearer(headers: &HeaderMap) -> Result<&str, ApiError> {
    let mut given = headers.get_all(AUTHORIZATION).iter();
    let (Some(value), None) = (given.next(), given.next()) else {
        return Err(ApiError::no_token());
    };
    let token = value
        .to_str()
        .ok()
        .and_then(|text| text.split_once(' '))
        .and_then(|(scheme, token)| scheme.eq_ignore_ascii_case("bearer").then(|| token.trim()));
    token.ok_or(ApiError::no_token())
}

/// The user and the owner of the client's store, from the header `Sync-For`.
struct Meant(Option<(Uuid, Owner)>);

impl Meant {
    fn read(headers: &HeaderMap) -> Result<Self, ApiError> {
        let mut given = headers.get_all(SYNC_FOR).iter();
        let Some(value) = given.next() else { return Ok(Self(None)) };
        let ids = value.to_str().ok().and_then(|text| text.trim().split_once('.'));
        let ids = ids.and_then(|(user, owner)| Some((id(user)?, Owner(id(owner)?))));
        match (ids, given.next()) {
            (Some(ids), None) => Ok(Self(Some(ids))),
            _ => Err(ApiError::InvalidRequest {
                reason: "Sync-For must be the user and the owner of GET /me, with a dot between them.".into(),
            }),
        }
    }

    fn check(&self, caller: &Caller) -> Result<(), ApiError> {
        match self.0 {
            Some(ids) if ids != (caller.user, caller.owner) && !broken::is("other_user_accepted") => {
                Err(ApiError::OtherUser)
            }
            _ => Ok(()),
        }
    }
}

/// Reads a UUID of 36 characters.
fn id(text: &str) -> Option<Uuid> {
    if text.len() == 36 { Uuid::try_parse(text).ok() } else { None }
}

/// `GET /me`: the user and the owner of the token.
pub async fn me(caller: Result<Caller, ApiError>) -> HandlerResult {
    let caller = caller?;
    let mut response = json(json!({
        "user": caller.user,
        "owner": caller.owner,
        "device": caller.device,
        "device_name": caller.device_name,
    }))?;
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

//! Owners that anyone may read, without a token: who reads them, and how long a response may be stored on its way.

use std::net::IpAddr;
use std::sync::Arc;

use http::header::{AUTHORIZATION, CACHE_CONTROL, HeaderMap, HeaderValue, VARY};

use super::{ApiError, App, off_reactor};
use crate::accounts::Caller;
use crate::model::Owner;

/// A caller without a token, if the owner is public; `None` if there is a token.
///
/// Errors: 401 if the owner is not public, as if there were no public owners; 429 if the address reads too often.
pub(super) async fn without_token(
    app: &Arc<App>,
    headers: &HeaderMap,
    owner: Option<Owner>,
    from: IpAddr,
) -> Result<Option<Caller>, ApiError> {
    let Some(owner) = owner.filter(|_| app.settings.auth.public_owners) else { return Ok(None) };
    if headers.contains_key(AUTHORIZATION) {
        return Ok(None);
    }
    app.public_readers.take(from)?;
    let caller = Caller::nobody(owner);
    Ok(is_public(app, owner).await?.then_some(caller))
}

/// A caller whose token is good, if it is no member of the owner, and the owner is public.
pub(super) async fn without_membership(app: &Arc<App>, caller: &Caller) -> Result<Option<Caller>, ApiError> {
    if !app.settings.auth.public_owners {
        return Ok(None);
    }
    Ok(is_public(app, caller.owner).await?.then(|| caller.as_public_reader()))
}

/// Whether anyone may read an owner. The transaction that reads its rows checks it again.
async fn is_public(app: &Arc<App>, owner: Owner) -> Result<bool, ApiError> {
    let reader = Caller::nobody(owner);
    if let Some(state) = app.storage.known_state(owner) {
        return Ok(reader.rights.hold_at(&state) == Some(true));
    }
    let app = Arc::clone(app);
    off_reactor(move || {
        let state = app.storage.read(owner, |txn| Ok::<_, ApiError>(txn.state()))?;
        Ok(reader.rights.hold_at(&state) == Some(true))
    })
    .await
}

/// Says who may store a response to a read of an owner: anyone for a while if the owner is public, otherwise the client
/// alone, which asks each time whether it is still current.
pub(super) fn set_cache_control(headers: &mut HeaderMap, app: &App, caller: &Caller) -> Result<(), ApiError> {
    if !caller.rights.is_public() {
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("private, no-cache"));
        return Ok(());
    }
    let max_age = format!("public, max-age={}", app.settings.sync.public_max_age_s);
    headers.insert(CACHE_CONTROL, super::fetch::header(&max_age)?);
    // A member gets another response under the same address.
    headers.append(VARY, HeaderValue::from_name(AUTHORIZATION));
    Ok(())
}

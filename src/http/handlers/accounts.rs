use std::sync::Arc;

use http::{HeaderMap, StatusCode};
use serde_json::json;
use uuid::Uuid;

use super::caller::bearer;
use super::{ApiError, App, HandlerResult, json, no_content, off_reactor, time_text};
use crate::accounts::audit::{self, Subject};
use crate::accounts::{Caller, LocalAccounts, LogIn, PasswordChange, Rights};
use crate::http::wire::Fields;
use crate::http::{BodyFault, Peer, Received};
use crate::model::DeviceId;
use crate::storage::accounts::{MemberChange, User};

/// The accounts that this server manages. With an identity provider the paths do not exist.
fn local(app: &App) -> Result<&LocalAccounts, ApiError> {
    app.accounts.local().ok_or(ApiError::no_such_path())
}

/// `POST /register`
pub async fn register(app: Arc<App>, Peer(from): Peer, body: Result<Received, ApiError>) -> HandlerResult {
    local(&app)?;
    let mut fields = Fields::read(&body?.bytes)?;
    let (email, password) = (fields.text("email")?, fields.text("password")?);
    fields.end()?;
    let email = off_reactor(move || Ok(local(&app)?.register(&email, &password, from)?)).await?;
    let mut response = json(json!({ "email": email }))?;
    *response.status_mut() = StatusCode::CREATED;
    Ok(response)
}

/// `POST /login`
///
/// A token in the request shows that the device belongs to the account; an invalid one is ignored.
pub async fn log_in(
    app: Arc<App>,
    Peer(from): Peer,
    headers: HeaderMap,
    body: Result<Received, ApiError>,
) -> HandlerResult {
    local(&app)?;
    let shown = bearer(&headers).ok().map(str::to_owned);
    let mut fields = Fields::read(&body?.bytes)?;
    let (email, password) = (fields.text("email")?, fields.text("password")?);
    let (device, known) = (fields.text("device")?, fields.optional_text("device_id")?);
    fields.end()?;
    let device_id = known.map(|id| device_id(&id)).transpose()?;
    let token = off_reactor(move || {
        let log_in = LogIn { email: &email, password: &password, device: &device, device_id };
        Ok(local(&app)?.log_in_with(log_in, from, shown.as_deref())?)
    })
    .await?;
    json(json!({
        "token": token.token,
        "device_id": token.device_id,
        "expires_at": time_text(token.expires_at),
    }))
}

fn device_id(text: &str) -> Result<DeviceId, ApiError> {
    Uuid::try_parse(text).map(DeviceId).map_err(|_| ApiError::InvalidBody {
        code: BodyFault::InvalidValue,
        at: "/device_id".into(),
        reason: "expected the device_id of an earlier log-in".into(),
    })
}

/// `POST /logout`
pub async fn log_out(app: Arc<App>, Peer(from): Peer, caller: Result<Caller, ApiError>) -> HandlerResult {
    local(&app)?;
    let caller = caller?;
    off_reactor(move || {
        local(&app)?.log_out(&caller)?;
        audit::done("log_out", Subject::at(from).of_user(caller.user).of_device(caller.token_device));
        app.release(&caller, &[caller.token_device, caller.device]);
        Ok(())
    })
    .await?;
    Ok(no_content())
}

/// `GET /devices`
pub async fn devices(app: Arc<App>, caller: Result<Caller, ApiError>) -> HandlerResult {
    local(&app)?;
    let caller = caller?;
    let (current, installation, owner) = (caller.token_device, caller.device, caller.owner);
    let (devices, installations, seen) = off_reactor(move || {
        let installations = app.storage.read(owner, |txn| Ok::<_, ApiError>(txn.installations()?))?;
        let accounts = local(&app)?;
        Ok((accounts.devices(&caller)?, installations, accounts.sightings.of_user(caller.user)?))
    })
    .await?;
    let shown = devices.iter().map(|device| {
        let of_token = installations.iter().filter(|one| one.token_device == device.id);
        let of_token = of_token.map(|one| {
            json!({
                "device_id": one.device,
                "seen_at": time_text(one.seen_at),
                "current": one.device == installation,
            })
        });
        json!({
            "device_id": device.id,
            "device": device.name,
            "created_at": time_text(device.created_at),
            "expires_at": time_text(device.expires_at),
            "seen_at": seen.get(&device.id).map(|seen| time_text(seen.at)),
            "seen_from": seen.get(&device.id).map(|seen| seen.from),
            "current": device.id == current,
            "installations": of_token.collect::<Vec<_>>(),
        })
    });
    json(json!({ "devices": shown.collect::<Vec<_>>() }))
}

/// `POST /password`
pub async fn change_password(
    app: Arc<App>,
    Peer(from): Peer,
    caller: Result<Caller, ApiError>,
    body: Result<Received, ApiError>,
) -> HandlerResult {
    local(&app)?;
    let caller = caller?;
    let mut fields = Fields::read(&body?.bytes)?;
    let (old, new) = (fields.text("old")?, fields.text("new")?);
    let signs_out_others = fields.optional_flag("sign_out_others")?;
    fields.end()?;
    off_reactor(move || {
        let change = PasswordChange { old: &old, new: &new, signs_out_others };
        let removed = local(&app)?.change_password(&caller, change, from)?;
        app.release(&caller, &removed);
        Ok(())
    })
    .await?;
    Ok(no_content())
}

/// `POST /password/reset`
pub async fn ask_for_reset(
    app: Arc<App>,
    Peer(from): Peer,
    body: Result<Received, ApiError>,
) -> HandlerResult {
    let accounts = local(&app)?;
    let mut fields = Fields::read(&body?.bytes)?;
    let email = fields.text("email")?;
    fields.end()?;
    accounts.ask_for_reset(&email, from)?; // puts it into a queue, and so never blocks
    Ok(no_content())
}

/// `POST /password/reset/confirm`
pub async fn reset_password(
    app: Arc<App>,
    Peer(from): Peer,
    body: Result<Received, ApiError>,
) -> HandlerResult {
    local(&app)?;
    let mut fields = Fields::read(&body?.bytes)?;
    let (token, new) = (fields.text("token")?, fields.text("new")?);
    fields.end()?;
    off_reactor(move || {
        let (user, devices) = local(&app)?.reset_password(&token, &new, from)?;
        app.release(&absent(&user), &devices);
        Ok(())
    })
    .await?;
    Ok(no_content())
}

/// `POST /email/verify`
pub async fn verify_email(
    app: Arc<App>,
    Peer(from): Peer,
    body: Result<Received, ApiError>,
) -> HandlerResult {
    local(&app)?;
    let mut fields = Fields::read(&body?.bytes)?;
    let (token, password) = (fields.text("token")?, fields.text("password")?);
    fields.end()?;
    off_reactor(move || {
        let (user, devices) = local(&app)?.verify_email(&token, &password, from)?;
        app.release(&absent(&user), &devices);
        Ok(())
    })
    .await?;
    Ok(no_content())
}

/// A user who is not signed in, as the locks know the user's devices.
fn absent(user: &User) -> Caller {
    let device = DeviceId(Uuid::nil());
    Caller {
        owner: user.owner,
        default_owner: user.owner,
        token_owners: None,
        rights: Rights::HOME,
        device,
        device_name: String::new(),
        token_device: device,
        installation: None,
        user: user.id,
    }
}

/// `POST /account/erase`
///
/// The response comes once no token leads to the account any more. Its rows go after that.
pub async fn erase(
    app: Arc<App>,
    Peer(from): Peer,
    caller: Result<Caller, ApiError>,
    body: Result<Received, ApiError>,
) -> HandlerResult {
    local(&app)?;
    let caller = caller?;
    let mut fields = Fields::read(&body?.bytes)?;
    let password = fields.text("password")?;
    fields.end()?;
    let at_work = Arc::clone(&app);
    off_reactor(move || {
        let owners = at_work.storage.accounts().owners_of(caller.user)?;
        let devices = local(&at_work)?.erase(&caller, &password, from)?;
        // Another member may manage the owner now.
        let changes = owners.iter().map(|one| MemberChange { owner: one.owner, user: None, left: false });
        changes.for_each(|change| at_work.members_changed(change));
        at_work.release_at(&caller, owners.iter().map(|one| one.owner), &devices);
        Ok(())
    })
    .await?;
    app.erase_soon();
    Ok(no_content())
}

/// `DELETE /devices`
pub async fn revoke_others(
    app: Arc<App>,
    Peer(from): Peer,
    caller: Result<Caller, ApiError>,
) -> HandlerResult {
    local(&app)?;
    let caller = caller?;
    off_reactor(move || {
        let removed = local(&app)?.sign_out_others(&caller, from)?;
        app.release(&caller, &removed);
        Ok(())
    })
    .await?;
    Ok(no_content())
}

/// `DELETE /devices/{device_id}`
pub async fn revoke(
    app: Arc<App>,
    Peer(from): Peer,
    caller: Result<Caller, ApiError>,
    id: String,
) -> HandlerResult {
    local(&app)?;
    let caller = caller?;
    // An invalid id is the id of no device.
    let device = DeviceId(Uuid::try_parse(&id).map_err(|_| ApiError::no_such_device())?);
    off_reactor(move || {
        local(&app)?.revoke(&caller, device)?;
        audit::done("revocation", Subject::at(from).of_user(caller.user).of_device(device));
        app.release(&caller, &[device]);
        Ok(())
    })
    .await?;
    Ok(no_content())
}

//! The invitations of an owner, and what becomes of their codes.

use std::sync::Arc;

use http::StatusCode;
use serde_json::json;

use super::owners::{
    Sent, Who, change, check_owners_are_kept_here, check_room, member_of, name_of, no_store, owner_body,
    owner_of, refusal_of, role_of, subject, unlist, unlist_owner, within,
};
use super::{ApiError, App, HandlerResult, json, no_content, off_reactor, time_text};
use crate::accounts::Caller;
use crate::accounts::audit::{self, Subject};
use crate::accounts::invitations::Invitations;
use crate::http::Peer;
use crate::http::wire::Fields;
use crate::members::{self, MemberRefusal};
use crate::model::Role;
use crate::storage::accounts::MemberChange;
use crate::storage::members::CodeHash;
use crate::storage::{Invitation, Membership};

/// How long an invitation is open if the request does not say, s: a week.
const OPEN_S: u64 = 604_800;

/// Most uses of one invitation.
const USES_MAX: u64 = 10_000;

/// `GET /owners/{owner}/invitations`: the open invitations, without their codes.
pub async fn list(id: String, app: Arc<App>, caller: Who) -> HandlerResult {
    let caller = caller?.about(owner_of(&id)?);
    off_reactor(move || {
        let now = app.clock.now();
        let found = app.read_as(&caller, |txn, _| {
            if app.rights(&caller, txn)?.role < Role::Manage {
                return Err(MemberRefusal::NotAllowed.into());
            }
            Ok(txn.invitations()?)
        })?;
        let open = found.iter().filter(|one| one.is_open(now)).map(invitation_body);
        no_store(json(json!({ "invitations": open.collect::<Vec<_>>() })))
    })
    .await
}

fn invitation_body(one: &Invitation) -> serde_json::Value {
    json!({
        "id": one.id,
        "role": one.role,
        "made_by": one.made_by,
        "made_at": time_text(one.made_at),
        "expires_at": time_text(one.expires_at),
        "uses_left": one.uses_left,
    })
}

/// `POST /owners/{owner}/invitations`: makes an invitation. Its code is in this response alone.
pub async fn invite(id: String, app: Arc<App>, Peer(from): Peer, caller: Who, body: Sent) -> HandlerResult {
    let caller = caller?.about(owner_of(&id)?);
    let mut fields = Fields::read(&body?.bytes)?;
    let role = role_of(&fields.text("role")?)?;
    let (open_s, uses) = (fields.optional_number("expires_s")?, fields.optional_number("uses")?);
    fields.end()?;
    let limits = &app.settings.limits;
    let open_s =
        within("expires_s", open_s.unwrap_or(OPEN_S), u64::from(limits.invitation_hours_max) * 3_600)?;
    let uses = within("uses", uses.unwrap_or(1), USES_MAX)?;
    off_reactor(move || {
        let (code, now) = (Invitations::code()?, app.clock.now());
        let expires_at = now.shifted(i64::try_from(open_s).unwrap_or(i64::MAX / 1_000) * 1_000);
        let invitation = Invitation {
            id: Invitations::id()?,
            code: Invitations::hash_of(&code),
            role,
            made_by: caller.user,
            made_at: now,
            expires_at,
            uses_left: u32::try_from(uses).unwrap_or(u32::MAX),
        };
        let open_max = app.settings.limits.invitations_per_owner_max;
        app.with_rights(caller.clone())?;
        app.invitations.make(caller.user)?;
        // What finds the invitation comes first: it leads nowhere if this breaks off.
        app.storage.accounts().list_invitation(&invitation.code, caller.owner, expires_at)?;
        let made =
            change(&app, &caller, |txn, actor| members::invite(txn, actor, &invitation, open_max, now));
        match made {
            Ok(removed) => unlist(&app, &removed),
            Err(refusal) => {
                app.invitations.not_made(caller.user);
                unlist(&app, &[invitation.code]);
                return Err(refusal_of(refusal, "Open invitations of the owner", open_max as u64));
            }
        }
        audit::done("invitation_made", subject(from, &caller, caller.owner));
        let mut body = invitation_body(&invitation);
        body["code"] = code.into();
        let mut response = no_store(json(body))?;
        *response.status_mut() = StatusCode::CREATED;
        Ok(response)
    })
    .await
}

/// `DELETE /owners/{owner}/invitations/{id}`
pub async fn revoke(
    id: String,
    invitation: String,
    app: Arc<App>,
    Peer(from): Peer,
    caller: Who,
) -> HandlerResult {
    let caller = caller?.about(owner_of(&id)?);
    off_reactor(move || {
        let invitation = member_of(&invitation);
        let code = change(&app, &caller, |txn, actor| members::revoke(txn, actor, invitation))?;
        unlist(&app, &[code]);
        audit::done("invitation_revoked", subject(from, &caller, caller.owner));
        Ok(no_content())
    })
    .await
}

/// `POST /invitations/accept`: makes the user a member of the owner that the code is an invitation of.
pub async fn accept(app: Arc<App>, Peer(from): Peer, caller: Who, body: Sent) -> HandlerResult {
    let caller = caller?;
    check_owners_are_kept_here(&caller)?;
    let mut fields = Fields::read(&body?.bytes)?;
    let (code, name) = (fields.text("code")?, fields.optional_text("name")?);
    let name = name.map_or_else(|| Ok(String::new()), |name| name_of(&name))?;
    fields.end()?;
    off_reactor(move || {
        app.invitations.attempt(caller.user, from)?;
        let code = Invitations::hash_of(&code);
        let accepted = join(&app, &caller, &code, &name);
        let subject = Subject::at(from).of_user(caller.user);
        match &accepted {
            Ok(joined) => audit::done("member_joined", subject.of_owner(joined.owner)),
            Err(_) => audit::refused("member_joined", subject, "the invitation cannot be accepted"),
        }
        json(owner_body(&accepted?))
    })
    .await
}

/// A user who is a member already gets the same response again.
fn join(app: &App, caller: &Caller, code: &CodeHash, name: &str) -> Result<Membership, ApiError> {
    let accounts = app.storage.accounts();
    let owner = accounts.invited_to(code)?.ok_or(ApiError::InvalidInvitation)?;
    let (user, max, now) = (caller.user, app.settings.limits.members_per_owner_max, app.clock.now());
    check_room(app, caller, owner)?;
    accounts.list_owner(user, owner, true)?;
    let joined = app.storage.write(owner, |txn| {
        let role = match members::accept(txn, code, user, name, max as u64, now)? {
            Ok(role) => role,
            Err(MemberRefusal::TooManyMembers) => {
                return Err(ApiError::TooMany { what: "Members of the owner", max: max as u64 });
            }
            Err(_) => return Err(ApiError::InvalidInvitation),
        };
        let (name, state) = (txn.owner_name()?, txn.state());
        let is_home = owner == caller.default_owner;
        Ok(Membership { owner, name, role, version: state.version, is_public: state.is_public, is_home })
    });
    match &joined {
        // Once more: what ended an earlier membership may have taken it off the list since.
        Ok(_) => {
            accounts.list_owner(user, owner, true)?;
            app.members_changed(MemberChange { owner, user: Some(user), left: false });
        }
        Err(_) => unlist_owner(app, user, owner),
    }
    joined
}

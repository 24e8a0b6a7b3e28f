//! A user's owners, and who is a member of them.

use std::sync::Arc;

use http::header::{CACHE_CONTROL, ETAG, HeaderMap, HeaderValue, IF_NONE_MATCH};
use http::{Response, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::fetch::header;
use super::synchronise::idempotency_key;
use super::{
    ApiError, App, HandlerResult, ended as released, json, json_bytes, no_content, off_reactor, time_text,
};
use crate::accounts::Caller;
use crate::accounts::audit::{self, Subject};
use crate::accounts::invitations::Invitations;
use crate::http::owner_lists::OwnerList;
use crate::http::query::{self, Limit};
use crate::http::wire::Fields;
use crate::http::{BodyFault, Peer, Received, etag};
use crate::members::{self, Actor, Changed, MemberRefusal};
use crate::model::{DeviceId, Owner, Role, Version};
use crate::storage::accounts::MemberChange;
use crate::storage::members::CodeHash;
use crate::storage::{Member, Membership, StorageResult, WriteTxn};

pub(super) type Who = Result<Caller, ApiError>;
pub(super) type Sent = Result<Received, ApiError>;

/// Longest name of an owner or of a member, characters.
const NAME_CHARS_MAX: usize = 100;

/// Most members of a page.
const MEMBERS_MAX: usize = 1_000;

/// `GET /owners`: the owners of which the user is a member.
pub async fn list(app: Arc<App>, caller: Who, headers: HeaderMap) -> HandlerResult {
    let caller = caller?;
    let known = app.owner_lists.find(&caller);
    if let Some(known) = known.filter(|known| etag::matches(headers.get_all(IF_NONE_MATCH), &known.tag))
        && app.storage.are_current(&known.versions)
    {
        return list_response(&known.tag, None);
    }
    let (tag, body) = off_reactor(move || {
        let joins = app.owner_lists.stamp();
        let owners = memberships(&app, &caller)?;
        let list = OwnerList::new(&caller, format!("W/\"{}\"", list_tag(&owners)), &owners);
        let tag = list.tag.clone();
        if app.storage.are_current(&list.versions) {
            app.owner_lists.note(joins, caller.user, list);
        }
        let is_known = etag::matches(headers.get_all(IF_NONE_MATCH), &tag);
        let body = (!is_known).then(|| serde_json::to_vec(&OwnersBody::new(&owners))).transpose();
        Ok((tag, body.map_err(|error| ApiError::Internal(Box::new(error)))?))
    })
    .await?;
    list_response(&tag, body)
}

/// A list of owners; without a body it is as the client has it.
fn list_response(tag: &str, body: Option<Vec<u8>>) -> HandlerResult {
    let mut response = body.map_or_else(
        || {
            let mut response = Response::new(Vec::new().into());
            *response.status_mut() = StatusCode::NOT_MODIFIED;
            response
        },
        json_bytes,
    );
    response.headers_mut().insert(ETAG, header(tag)?);
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("private, no-cache"));
    Ok(response)
}

/// A hash of a list of owners: lists of one hash are alike.
pub(super) fn list_tag(owners: &[Membership]) -> String {
    let mut hash = Sha256::new();
    for one in owners {
        hash.update(one.owner.0.as_bytes());
        hash.update(one.version.0.to_le_bytes());
        hash.update([one.role.number() as u8, u8::from(one.is_home), u8::from(one.is_public)]);
        hash.update((one.name.len() as u64).to_le_bytes());
        hash.update(one.name.as_bytes());
    }
    hash.finalize().iter().take(12).map(|byte| format!("{byte:02x}")).collect()
}

/// The owners of a user, as JSON.
#[derive(Serialize)]
pub(super) struct OwnersBody<'a> {
    owners: Vec<OwnerBody<'a>>,
}

impl<'a> OwnersBody<'a> {
    pub fn new(owners: &'a [Membership]) -> Self {
        Self { owners: owners.iter().map(owner_body).collect() }
    }
}

#[derive(Serialize)]
pub(super) struct OwnerBody<'a> {
    owner: Owner,
    name: &'a str,
    role: Role,
    version: Version,
    home: bool,
    public: bool,
}

pub(super) fn owner_body(one: &Membership) -> OwnerBody<'_> {
    let Membership { owner, name, role, version, is_home, is_public } = one;
    OwnerBody { owner: *owner, name, role: *role, version: *version, home: *is_home, public: *is_public }
}

/// The user's owners by id: those of which the user is a member, or those that the token names. The home of a provider's
/// token is among them even if no user of this server is its member.
pub(super) fn memberships(app: &App, caller: &Caller) -> Result<Vec<Membership>, ApiError> {
    let (accounts, home) = (app.storage.accounts(), caller.default_owner);
    if let Some(named) = &caller.token_owners {
        let mut owners = accounts.named_owners(named.roles())?;
        owners.iter_mut().for_each(|one| one.is_home = one.owner == home);
        return Ok(owners);
    }
    let mut owners = accounts.owners_of(caller.user)?;
    if caller.rights.is_of_token() {
        owners.retain(|one| one.owner != home);
        let of_home = accounts.named_owners(&[(home, caller.rights.role)])?;
        owners.extend(of_home.into_iter().map(|one| Membership { is_home: true, ..one }));
        owners.sort_unstable_by_key(|one| one.owner);
    }
    Ok(owners)
}

/// Refuses to make or join an owner with a token that says which owners there are: the token would not have it.
pub(super) fn check_owners_are_kept_here(caller: &Caller) -> Result<(), ApiError> {
    match caller.token_owners {
        None => Ok(()),
        Some(_) => Err(ApiError::NotAllowed { reason: "The token says which owners the user has." }),
    }
}

/// `POST /owners`: makes an owner, which the user manages.
pub async fn create(
    app: Arc<App>,
    Peer(from): Peer,
    caller: Who,
    headers: HeaderMap,
    body: Sent,
) -> HandlerResult {
    let caller = caller?;
    check_owners_are_kept_here(&caller)?;
    let named = idempotency_key(&headers)?.map(|key| owner_under(caller.user, key));
    let mut fields = Fields::read(&body?.bytes)?;
    let name = name_of(&fields.text("name")?)?;
    fields.end()?;
    off_reactor(move || {
        let owner = named.map_or_else(|| Invitations::id().map(Owner), Ok)?;
        let made = found(&app, &caller, owner, &name)?;
        app.members_changed(MemberChange { owner, user: Some(caller.user), left: false });
        audit::done("owner_made", subject(from, &caller, owner));
        let mut response = json(owner_body(&made))?;
        *response.status_mut() = StatusCode::CREATED;
        Ok(response)
    })
    .await
}

/// The owner that a user makes under an `Idempotency-Key`: always the same one, and nobody else can make it.
fn owner_under(user: Uuid, key: &str) -> Owner {
    Owner(Uuid::new_v5(&Uuid::new_v5(&user, b"owner"), key.as_bytes()))
}

/// Makes an owner; if the user has it already, it stays as it is.
fn found(app: &App, caller: &Caller, owner: Owner, name: &str) -> Result<Membership, ApiError> {
    let (accounts, user, now) = (app.storage.accounts(), caller.user, app.clock.now());
    check_room(app, caller, owner)?;
    // The list of the user's owners first: what its owner does not confirm is not shown.
    accounts.list_owner(user, owner, true)?;
    let made = app.storage.write(owner, |txn| {
        let role = members::found(txn, user, name, now)?.map_err(ApiError::from)?;
        let (name, state) = (txn.owner_name()?, txn.state());
        let (version, is_public) = (state.version, state.is_public);
        Ok(Membership { owner, name, role, version, is_public, is_home: owner == caller.default_owner })
    });
    if matches!(made, Err(ApiError::NotAMember)) {
        unlist_owner(app, user, owner);
    }
    made
}

/// Refuses a new owner of a user who has as many as there may be.
pub(super) fn check_room(app: &App, caller: &Caller, owner: Owner) -> Result<(), ApiError> {
    let (accounts, max) = (app.storage.accounts(), app.settings.limits.owners_per_user_max);
    // In this order: the same request, sent at the same time, may have made the user a member in between.
    let is_full = accounts.owners_of(caller.user)?.len() >= max;
    if is_full && accounts.standing(caller.user, owner)?.role.is_none() {
        return Err(ApiError::TooMany { what: "Your owners", max: max as u64 });
    }
    Ok(())
}

/// `PATCH /owners/{owner}`: names an owner, or says whether anyone may read it.
pub async fn describe(id: String, app: Arc<App>, Peer(from): Peer, caller: Who, body: Sent) -> HandlerResult {
    let caller = caller?.about(owner_of(&id)?);
    let mut fields = Fields::read(&body?.bytes)?;
    let name = fields.optional_text("name")?.map(|name| name_of(&name)).transpose()?;
    let is_public = fields.flag("public")?;
    fields.end()?;
    if name.is_none() && is_public.is_none() {
        return Err(invalid("name", "send a name, or public, or both"));
    }
    off_reactor(move || {
        if is_public == Some(true) && !app.settings.auth.public_owners {
            app.with_rights(caller)?; // first, so that nobody else learns anything by it
            return Err(ApiError::NotAllowed { reason: "This server has no public owners." });
        }
        let now = app.clock.now();
        change(&app, &caller, |txn, actor| members::describe(txn, actor, name.as_deref(), is_public, now))?;
        let subject = subject(from, &caller, caller.owner);
        if name.is_some() {
            audit::done("owner_renamed", subject);
        }
        if let Some(is_public) = is_public {
            audit::done(if is_public { "owner_made_public" } else { "owner_made_private" }, subject);
        }
        Ok(no_content())
    })
    .await
}

/// `DELETE /owners/{owner}`: deletes an owner with all its rows, for all members.
pub async fn delete(id: String, app: Arc<App>, Peer(from): Peer, caller: Who) -> HandlerResult {
    let caller = caller?.about(owner_of(&id)?);
    let at_work = Arc::clone(&app);
    off_reactor(move || {
        let app = &at_work;
        app.with_rights(caller.clone())?;
        if is_home(app, &caller)? {
            let reason = "The owner was made with an account, and goes with it: POST /account/erase.";
            return Err(ApiError::NotAllowed { reason });
        }
        let now = app.clock.now();
        change(app, &caller, |txn, actor| members::erase(txn, actor, now))?;
        app.members_changed(MemberChange { owner: caller.owner, user: None, left: true });
        audit::done("owner_deleted", subject(from, &caller, caller.owner));
        if let Err(error) = app.locks.break_open(caller.owner) {
            tracing::warn!(%error, "could not end the lock of a deleted owner");
        }
        Ok(())
    })
    .await?;
    app.erase_soon();
    Ok(no_content())
}

/// Whether the owner was made with the account of a user.
fn is_home(app: &App, caller: &Caller) -> Result<bool, ApiError> {
    let user = app.storage.accounts().user_of(caller.owner.0)?;
    let is_own = caller.owner == caller.default_owner;
    Ok(is_own || user.is_some_and(|user| user.is_home && user.owner == caller.owner))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MembersQuery {
    after: Option<Uuid>,
    limit: Option<Limit>,
}

/// `GET /owners/{owner}/members`
pub async fn list_members(id: String, app: Arc<App>, caller: Who, query: String) -> HandlerResult {
    let caller = caller?.about(owner_of(&id)?);
    let paging = query::read::<MembersQuery>(&query);
    off_reactor(move || {
        let caller = app.with_rights(caller)?; // first, so that nobody else learns anything by a query
        let MembersQuery { after, limit } = paging?;
        let max = Limit::within(limit, MEMBERS_MAX);
        let found = app.read_as(&caller, |txn, _| Ok(txn.members(after, max + 1)?))?;
        let next = (found.len() > max).then(|| found.get(max - 1).map(|last| last.user)).flatten();
        let members: Vec<_> = found.iter().take(max).map(member_body).collect();
        no_store(json(json!({ "members": members, "next": next })))
    })
    .await
}

fn member_body(one: &Member) -> serde_json::Value {
    let joined_at = time_text(one.joined_at);
    json!({ "user": one.user, "role": one.role, "name": one.name, "joined_at": joined_at })
}

/// `PUT /owners/{owner}/members/{user}`: gives a member another role.
pub async fn set_role(
    id: String,
    user: String,
    app: Arc<App>,
    Peer(from): Peer,
    caller: Who,
    body: Sent,
) -> HandlerResult {
    let caller = caller?.about(owner_of(&id)?);
    let mut fields = Fields::read(&body?.bytes)?;
    let role = role_of(&fields.text("role")?)?;
    fields.end()?;
    off_reactor(move || {
        let (user, now) = (member_of(&user), app.clock.now());
        let schema = &app.schema;
        let alike = |before, after| schema.hidden_from(before) == schema.hidden_from(after);
        let ended =
            change(&app, &caller, |txn, actor| members::set_role(txn, actor, user, role, alike, now))?;
        app.members_changed(MemberChange { owner: caller.owner, user: Some(user), left: false });
        unlist(&app, &ended);
        audit::done("role_changed", subject(from, &caller, caller.owner).of_user(user));
        Ok(no_content())
    })
    .await
}

/// `DELETE /owners/{owner}/members/{user}`: takes a member out, or leaves.
pub async fn remove_member(
    id: String,
    user: String,
    app: Arc<App>,
    Peer(from): Peer,
    caller: Who,
) -> HandlerResult {
    let caller = caller?.about(owner_of(&id)?);
    off_reactor(move || {
        let (user, now) = (member_of(&user), app.clock.now());
        let of_user: Vec<_> = app.storage.accounts().devices(user)?.iter().map(|one| one.id).collect();
        let (ended, devices) = change(&app, &caller, |txn, actor| {
            let ended = match members::remove(txn, actor, user, now)? {
                Ok(ended) => ended,
                Err(refusal) => return Ok(Err(refusal)),
            };
            Ok(Ok((ended, forget_devices(txn, user, &of_user)?)))
        })?;
        for device in devices {
            app.acks.forget(caller.owner, device);
            app.counters.iter().for_each(|counters| counters.forget(caller.owner, device));
            released(app.locks.give_back(&Caller { device, ..caller.clone() }));
        }
        app.members_changed(MemberChange { owner: caller.owner, user: Some(user), left: true });
        unlist(&app, &ended);
        unlist_owner(&app, user, caller.owner);
        audit::done("member_removed", subject(from, &caller, caller.owner).of_user(user));
        Ok(no_content())
    })
    .await
}

/// Forgets what is stored of a former member's devices, so that they keep no tombstones; returns them.
fn forget_devices(txn: &mut dyn WriteTxn, user: Uuid, of_user: &[DeviceId]) -> StorageResult<Vec<DeviceId>> {
    let installed = txn.installations()?.into_iter().filter(|one| one.user == user).map(|one| one.device);
    let mut devices: Vec<_> = installed.chain(of_user.iter().copied()).collect();
    devices.sort_unstable();
    devices.dedup();
    devices.iter().try_for_each(|device| txn.forget_device(*device))?;
    Ok(devices)
}

/// Changes an owner's members in one transaction. A refusal has changed nothing.
///
/// Errors: 403 `not_a_member`, before a transaction that writes begins: nobody makes an owner by naming it.
pub(super) fn change<T: Send>(
    app: &App,
    caller: &Caller,
    mut work: impl FnMut(&mut dyn WriteTxn, Actor) -> Changed<T> + Send,
) -> Result<T, ApiError> {
    app.with_rights(caller.clone())?;
    let claimed = caller.rights.is_of_token().then_some(caller.rights.role);
    let actor = Actor { user: caller.user, claimed };
    app.storage.write(caller.owner, |txn| work(txn, actor)?.map_err(ApiError::from))
}

impl From<MemberRefusal> for ApiError {
    fn from(refusal: MemberRefusal) -> Self {
        match refusal {
            MemberRefusal::NotAMember => Self::NotAMember,
            MemberRefusal::NotAllowed => {
                Self::NotAllowed { reason: "Only members who manage the owner may do this." }
            }
            MemberRefusal::NoSuchMember => Self::NotFound { what: "no member with this id" },
            MemberRefusal::NoSuchInvitation => Self::NotFound { what: "no invitation with this id" },
            MemberRefusal::LastManager => Self::LastManager,
            MemberRefusal::TooManyMembers | MemberRefusal::TooManyInvitations => {
                Self::TooMany { what: "The owner's members or invitations", max: 0 }
            }
        }
    }
}

/// A refusal, with the limit that it is about.
pub(super) fn refusal_of(refusal: ApiError, what: &'static str, max: u64) -> ApiError {
    match refusal {
        ApiError::TooMany { .. } => ApiError::TooMany { what, max },
        other => other,
    }
}

/// An id that is none names no owner.
pub(super) fn owner_of(id: &str) -> Result<Owner, ApiError> {
    let id = if id.len() == 36 { Uuid::try_parse(id).ok() } else { None };
    id.map(Owner).ok_or(ApiError::NotAMember)
}

/// An id that is none names no member and no invitation.
pub(super) fn member_of(id: &str) -> Uuid {
    Uuid::try_parse(id).unwrap_or(Uuid::nil())
}

pub(super) fn role_of(text: &str) -> Result<Role, ApiError> {
    Role::named(text).ok_or_else(|| invalid("role", "expected read, write or manage"))
}

pub(super) fn name_of(text: &str) -> Result<String, ApiError> {
    let name = text.trim();
    let is_good = (1..=NAME_CHARS_MAX).contains(&name.chars().count()) && !name.contains(char::is_control);
    let wrong = || invalid("name", "a name has 1 to 100 characters, on one line");
    is_good.then(|| name.to_owned()).ok_or_else(wrong)
}

pub(super) fn within(member: &str, number: u64, max: u64) -> Result<u64, ApiError> {
    let wrong = || invalid(member, &format!("expected a number from 1 to {max}"));
    (1..=max).contains(&number).then_some(number).ok_or_else(wrong)
}

fn invalid(member: &str, reason: &str) -> ApiError {
    let (code, at) = (BodyFault::InvalidValue, format!("/{member}"));
    ApiError::InvalidBody { code, at, reason: reason.to_owned() }
}

pub(super) fn subject(from: std::net::IpAddr, caller: &Caller, owner: Owner) -> Subject {
    Subject::at(from).of_user(caller.user).of_device(caller.token_device).of_owner(owner)
}

/// Takes an owner off the list of a user who is no member. One who has become a member meanwhile is put on it again; if
/// that happens later, the request that makes the user a member does so.
pub(super) fn unlist_owner(app: &App, user: Uuid, owner: Owner) {
    let accounts = app.storage.accounts();
    let is_member = || Ok(accounts.standing(user, owner)?.role.is_some());
    logged(accounts.list_owner(user, owner, false));
    logged(is_member().and_then(|is| if is { accounts.list_owner(user, owner, true) } else { Ok(()) }));
}

/// Removes what found invitations that have ended. What is left leads nowhere.
pub(super) fn unlist(app: &App, codes: &[CodeHash]) {
    let accounts = app.storage.accounts();
    codes.iter().for_each(|code| logged(accounts.unlist_invitation(code)));
}

fn logged(tidied: StorageResult<()>) {
    if let Err(error) = tidied {
        tracing::warn!(%error, "a look-up without a target stays in the database");
    }
}

pub(super) fn no_store(response: HandlerResult) -> HandlerResult {
    let mut response = response?;
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

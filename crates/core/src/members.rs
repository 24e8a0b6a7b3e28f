//! The rules of membership: who becomes a member of an owner, and what follows when one leaves.
//!
//! Every change of members or roles is a write of the owner that moves its version. So whatever goes by the version
//! (ETags, manifests in memory, listeners) ends with it, and [`OwnerState::members_at`] says up to where a role that
//! was read earlier still holds.

use uuid::Uuid;

use crate::model::{Role, Timestamp, Version};
use crate::storage::members::{CodeHash, Invitation, Member};
use crate::storage::{OwnerState, StorageResult, WriteTxn};

/// Moves the owner's version for a change of its members, and notes there that they changed.
pub fn moved(txn: &mut dyn WriteTxn, now: Timestamp) -> StorageResult<Version> {
    let state = txn.state();
    let version = state.version.next();
    txn.advance(OwnerState { version, members_at: version, ..state }, &[], now)?;
    Ok(version)
}

/// Makes a user a member by an operator's word: the first one manages the owner, any other may write.
///
/// The first one moves no version: nobody has read anything yet that the owner's maker may not.
pub fn join(txn: &mut dyn WriteTxn, user: Uuid, now: Timestamp) -> StorageResult<Role> {
    if let Some(member) = txn.member(user)? {
        return Ok(member.role);
    }
    let is_first = txn.member_count()? == 0;
    let role = if is_first { Role::Manage } else { Role::Write };
    let since = if is_first { Version(0) } else { moved(txn, now)? };
    txn.put_member(&Member { user, role, since, name: String::new(), joined_at: now })?;
    Ok(role)
}

/// Makes a new owner, which the user manages and is the only member of; returns the user's role.
///
/// If the user is a member of the owner already, nothing is changed: so a request whose response was lost can be sent
/// again. An owner that the user has left, or that was deleted, is not made anew.
pub fn found(txn: &mut dyn WriteTxn, user: Uuid, name: &str, now: Timestamp) -> Changed<Role> {
    let state = txn.state();
    match txn.member(user)? {
        _ if state.erased_at.is_some() => return Ok(Err(MemberRefusal::NotAMember)),
        Some(member) => return Ok(Ok(member.role)),
        None if state.members_at > Version(0) => return Ok(Err(MemberRefusal::NotAMember)),
        None => {}
    }
    moved(txn, now)?;
    txn.put_member(&Member {
        user,
        role: Role::Manage,
        since: Version(0),
        name: String::new(),
        joined_at: now,
    })?;
    txn.name_owner(name)?;
    Ok(Ok(Role::Manage))
}

/// Takes a member out, with the invitations that it made. `false` if the user is no member.
///
/// If it was the last member who manages the owner, the longest-standing member who may write becomes the manager. If no
/// member may write, the longest-standing reader does.
pub fn leave(txn: &mut dyn WriteTxn, user: Uuid, now: Timestamp) -> StorageResult<bool> {
    let Some(left) = txn.member(user)? else { return Ok(false) };
    txn.remove_member(user)?;
    let version = moved(txn, now)?;
    end_invitations(txn, user)?;
    if left.role == Role::Manage && txn.first_of(Role::Manage, user)?.is_none() {
        let mut next = txn.first_of(Role::Write, user)?;
        if next.is_none() {
            next = txn.first_of(Role::Read, user)?;
        }
        if let Some(next) = next {
            txn.put_member(&Member { role: Role::Manage, since: version, ..next })?;
        }
    }
    Ok(true)
}

/// Takes out a user whose account is erased. An owner of which nobody else is a member is erased with it.
pub fn depart(txn: &mut dyn WriteTxn, user: Uuid, now: Timestamp) -> StorageResult<()> {
    if txn.member(user)?.is_none() {
        return Ok(());
    }
    if txn.member_count()? > 1 {
        return leave(txn, user, now).map(drop);
    }
    txn.remove_member(user)?;
    for one in txn.invitations()? {
        txn.remove_invitation(one.id)?;
    }
    if txn.state().erased_at.is_some() { Ok(()) } else { mark_erased(txn, now).map(drop) }
}

/// From then on every transaction sees that the owner is erased; its rows go step by step.
fn mark_erased(txn: &mut dyn WriteTxn, now: Timestamp) -> StorageResult<Version> {
    txn.name_owner("")?;
    let state = txn.state();
    let version = state.version.next();
    let erased_at = Some(now);
    txn.advance(OwnerState { version, members_at: version, is_public: false, erased_at, ..state }, &[], now)?;
    Ok(version)
}

/// Ends the invitations that a user made; returns their codes.
fn end_invitations(txn: &mut dyn WriteTxn, maker: Uuid) -> StorageResult<Vec<CodeHash>> {
    let made: Vec<_> = txn.invitations()?.into_iter().filter(|one| one.made_by == maker).collect();
    for one in &made {
        txn.remove_invitation(one.id)?;
    }
    Ok(made.into_iter().map(|one| one.code).collect())
}

/// The user who requests a change of members.
#[derive(Clone, Copy, Debug)]
pub struct Actor {
    /// The user.
    pub user: Uuid,
    /// The role that the user's token names; `None` if the owner's members say it.
    pub claimed: Option<Role>,
}

impl Actor {
    /// What the user may do, in the transaction at hand.
    fn role(&self, txn: &mut dyn WriteTxn) -> StorageResult<Option<Role>> {
        if txn.state().erased_at.is_some() {
            return Ok(None);
        }
        match self.claimed {
            Some(role) => Ok(Some(role)),
            None => Ok(txn.member(self.user)?.map(|member| member.role)),
        }
    }
}

/// Why a change of members was refused. Nothing was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberRefusal {
    /// The actor is no member of the owner.
    NotAMember,
    /// The actor does not manage the owner.
    NotAllowed,
    /// The owner has no such member.
    NoSuchMember,
    /// The owner has no such invitation, or it has expired.
    NoSuchInvitation,
    /// Nobody would manage the owner any more.
    LastManager,
    /// The owner has as many members as it may.
    TooManyMembers,
    /// The owner has as many open invitations as it may.
    TooManyInvitations,
}

/// The result of a change of members.
pub type Changed<T> = StorageResult<Result<T, MemberRefusal>>;

/// Gives a member another role.
///
/// - `reads_alike`: whether both roles read the same tables; if so, cursors of the member stay valid.
/// - The invitations of a member who no longer manages the owner end.
/// - The same role again changes nothing, and moves no version.
pub fn set_role(
    txn: &mut dyn WriteTxn,
    actor: Actor,
    user: Uuid,
    role: Role,
    reads_alike: impl Fn(Role, Role) -> bool,
    now: Timestamp,
) -> Changed<Vec<CodeHash>> {
    if let Some(refusal) = not_managing(txn, actor)? {
        return Ok(Err(refusal));
    }
    let Some(member) = txn.member(user)? else { return Ok(Err(MemberRefusal::NoSuchMember)) };
    if member.role == role {
        return Ok(Ok(Vec::new()));
    }
    if member.role == Role::Manage && txn.first_of(Role::Manage, user)?.is_none() {
        return Ok(Err(MemberRefusal::LastManager));
    }
    let version = moved(txn, now)?;
    let since = if reads_alike(member.role, role) { member.since } else { version };
    let ended = if role == Role::Manage { Vec::new() } else { end_invitations(txn, user)? };
    txn.put_member(&Member { role, since, ..member })?;
    Ok(Ok(ended))
}

/// Takes a member out: any but the last who manages the owner. A member may take itself out, which is to leave.
///
/// Returns the codes of the invitations that end with it.
pub fn remove(txn: &mut dyn WriteTxn, actor: Actor, user: Uuid, now: Timestamp) -> Changed<Vec<CodeHash>> {
    match actor.role(txn)? {
        None => return Ok(Err(MemberRefusal::NotAMember)),
        Some(Role::Manage) => {}
        Some(_) if actor.user == user => {}
        Some(_) => return Ok(Err(MemberRefusal::NotAllowed)),
    }
    let Some(member) = txn.member(user)? else { return Ok(Err(MemberRefusal::NoSuchMember)) };
    if member.role == Role::Manage && txn.first_of(Role::Manage, user)?.is_none() {
        return Ok(Err(MemberRefusal::LastManager));
    }
    moved(txn, now)?;
    txn.remove_member(user)?;
    Ok(Ok(end_invitations(txn, user)?))
}

/// Makes an invitation. Moves no version: nobody may read or write anything else by it yet.
///
/// - `open_max`: how many invitations of an owner may be open. Those that have expired are removed first, and the oldest
///   that are used up make room.
/// - Returns the codes of those that were removed.
pub fn invite(
    txn: &mut dyn WriteTxn,
    actor: Actor,
    invitation: &Invitation,
    open_max: usize,
    now: Timestamp,
) -> Changed<Vec<CodeHash>> {
    if let Some(refusal) = not_managing(txn, actor)? {
        return Ok(Err(refusal));
    }
    let (open, mut ended): (Vec<_>, Vec<_>) =
        txn.invitations()?.into_iter().partition(|one| one.is_open(now));
    let Some(room) = open_max.checked_sub(open.len() + 1) else {
        return Ok(Err(MemberRefusal::TooManyInvitations));
    };
    // Those that are used up, the newest first, and then those that have expired.
    ended.sort_unstable_by_key(|one| std::cmp::Reverse((one.expires_at > now, one.made_at, one.id)));
    let used_up = ended.iter().take_while(|one| one.expires_at > now).count();
    let removed = ended.split_off(used_up.min(room));
    for one in &removed {
        txn.remove_invitation(one.id)?;
    }
    txn.put_invitation(invitation)?;
    Ok(Ok(removed.into_iter().map(|one| one.code).collect()))
}

/// Ends an invitation; returns its code.
pub fn revoke(txn: &mut dyn WriteTxn, actor: Actor, id: Uuid) -> Changed<CodeHash> {
    if let Some(refusal) = not_managing(txn, actor)? {
        return Ok(Err(refusal));
    }
    let Some(one) = txn.invitations()?.into_iter().find(|one| one.id == id && one.uses_left > 0) else {
        return Ok(Err(MemberRefusal::NoSuchInvitation));
    };
    txn.remove_invitation(id)?;
    Ok(Ok(one.code))
}

/// Makes the user who shows the code of an invitation a member; returns the role.
///
/// A user who is a member already stays what it is, and the invitation loses no use by it: so a request whose response
/// was lost can be sent again. An invitation that is used up is kept for that until it expires.
pub fn accept(
    txn: &mut dyn WriteTxn,
    code: &CodeHash,
    user: Uuid,
    name: &str,
    members_max: u64,
    now: Timestamp,
) -> Changed<Role> {
    let is_gone = txn.state().erased_at.is_some();
    let found = txn.invitations()?.into_iter().find(|one| one.code == *code && one.expires_at > now);
    let Some(one) = found.filter(|_| !is_gone) else { return Ok(Err(MemberRefusal::NoSuchInvitation)) };
    if let Some(member) = txn.member(user)? {
        return Ok(Ok(member.role));
    }
    let Some(uses_left) = one.uses_left.checked_sub(1) else {
        return Ok(Err(MemberRefusal::NoSuchInvitation));
    };
    if txn.member_count()? >= members_max {
        return Ok(Err(MemberRefusal::TooManyMembers));
    }
    let since = moved(txn, now)?;
    txn.put_member(&Member { user, role: one.role, since, name: name.to_owned(), joined_at: now })?;
    txn.put_invitation(&Invitation { uses_left, ..one })?;
    Ok(Ok(one.role))
}

/// Names an owner, or says whether anyone may read it. What is `None` stays.
pub fn describe(
    txn: &mut dyn WriteTxn,
    actor: Actor,
    name: Option<&str>,
    is_public: Option<bool>,
    now: Timestamp,
) -> Changed<Version> {
    if let Some(refusal) = not_managing(txn, actor)? {
        return Ok(Err(refusal));
    }
    let state = txn.state();
    let is_public = is_public.unwrap_or(state.is_public);
    let name = match name {
        Some(name) if txn.owner_name()? != name => Some(name),
        _ => None,
    };
    if name.is_none() && is_public == state.is_public {
        return Ok(Ok(state.version));
    }
    if let Some(name) = name {
        txn.name_owner(name)?;
    }
    let version = state.version.next();
    let members_at = if is_public == state.is_public { state.members_at } else { version };
    txn.advance(OwnerState { version, members_at, is_public, ..state }, &[], now)?;
    Ok(Ok(version))
}

/// Marks an owner as erased. From then on nobody is a member, whatever its rows say.
pub fn erase(txn: &mut dyn WriteTxn, actor: Actor, now: Timestamp) -> Changed<Version> {
    if let Some(refusal) = not_managing(txn, actor)? {
        return Ok(Err(refusal));
    }
    mark_erased(txn, now).map(Ok)
}

fn not_managing(txn: &mut dyn WriteTxn, actor: Actor) -> StorageResult<Option<MemberRefusal>> {
    Ok(match actor.role(txn)? {
        None => Some(MemberRefusal::NotAMember),
        Some(Role::Manage) => None,
        Some(_) => Some(MemberRefusal::NotAllowed),
    })
}

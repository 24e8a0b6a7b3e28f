//! The rules of membership: who becomes a member of an owner, and what follows when one leaves.
//!
//! Every change of members or roles is a write of the owner that moves its version. So whatever goes by the version
//! (ETags, manifests in memory, listeners) ends with it, and [`OwnerState::members_at`] says up to where a role that
//! was read earlier still holds.

use uuid::Uuid;

use crate::model::{Role, Timestamp, Version};
use crate::storage::members::Member;
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

/// Takes a member out, with the invitations that it made. `false` if the user is no member.
///
/// If it was the last one who manages the owner, the longest-standing of those who may write does from now on, else the
/// longest-standing of those who read.
pub fn leave(txn: &mut dyn WriteTxn, user: Uuid, now: Timestamp) -> StorageResult<bool> {
    let Some(left) = txn.member(user)? else { return Ok(false) };
    txn.remove_member(user)?;
    let version = moved(txn, now)?;
    void_invitations(txn, user)?;
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

/// Ends the invitations that a user made; returns how many there were.
pub fn void_invitations(txn: &mut dyn WriteTxn, maker: Uuid) -> StorageResult<usize> {
    let made: Vec<_> = txn.invitations()?.into_iter().filter(|one| one.made_by == maker).collect();
    for one in &made {
        txn.remove_invitation(one.id)?;
    }
    Ok(made.len())
}

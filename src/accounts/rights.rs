//! What a caller may do with the owner that its request is about.
//!
//! A role is checked in the transaction that it is for, where the owner's members cannot change. As a rule that costs
//! nothing: the owner's state has the version at which its members last changed ([`OwnerState::members_at`]), and a role
//! that was read at that version still holds. Only if the two differ, the member is read again, in that transaction.

use parking_lot::Mutex;
use rollcall_core::cache::Cache;
use uuid::Uuid;

use super::Caller;
use crate::broken;
use crate::model::{Owner, Role, Version};
use crate::schema::Schema;
use crate::storage::accounts::Standing;
use crate::storage::{AccountStore, OwnerState, ReadTxn, StorageError};

/// A role, and how long it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rights {
    /// What the caller may do.
    pub role: Role,
    /// The version at which the rows that the caller may read last became others. Its earlier cursors have expired.
    pub since: Version,
    /// How long that holds.
    pub holds: Holds,
}

/// How long a role holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holds {
    /// As long as the token, which names it.
    WithToken,
    /// As long as the owner's members last changed at that version.
    WithMembers(Version),
    /// Always: the operator's.
    Always,
    /// As long as anyone may read the owner.
    WhilePublic,
    /// Not at all: the member was not read.
    Unknown,
    /// Not at all: the token says which owners there are, and this is none of them.
    Never,
}

/// Why a caller has no rights.
#[derive(Debug, thiserror::Error)]
pub enum RightsError {
    /// The caller is no member, or was one, or there is no such owner. No response says which.
    #[error("the caller is no member of the owner")]
    NotAMember,
    /// The engine failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl Rights {
    /// The rights of a user at the owner that was made with the account, as long as nobody changed its members.
    pub const HOME: Self =
        Self { role: Role::Manage, since: Version(0), holds: Holds::WithMembers(Version(0)) };

    /// The rights that a token names.
    pub const fn of_token(role: Role) -> Self {
        Self { role, since: Version(0), holds: Holds::WithToken }
    }

    /// The rights of those who are no members of a public owner.
    pub const PUBLIC: Self = Self { role: Role::Read, since: Version(0), holds: Holds::WhilePublic };

    /// No rights, as long as nobody has read the member.
    pub const UNKNOWN: Self = Self { role: Role::Read, since: Version(0), holds: Holds::Unknown };

    /// No rights, whatever the owner's members are: the token does not name the owner.
    pub const NONE: Self = Self { role: Role::Read, since: Version(0), holds: Holds::Never };

    /// The rights of the operator, who sees erased owners too.
    pub const OPERATOR: Self = Self { role: Role::Manage, since: Version(0), holds: Holds::Always };

    /// Whether a token names them, so that the owner's members do not matter.
    pub fn is_of_token(&self) -> bool {
        matches!(self.holds, Holds::WithToken | Holds::Always)
    }

    /// Whether the caller is no member, and reads because anyone may.
    pub fn is_public(&self) -> bool {
        self.holds == Holds::WhilePublic
    }

    /// Whether the caller may change rows.
    pub fn may_write(&self) -> bool {
        self.role >= Role::Write
    }

    /// Whether they hold at a state of the owner; `None` if the member must be read again.
    pub fn hold_at(&self, state: &OwnerState) -> Option<bool> {
        match self.holds {
            Holds::Always => Some(true),
            Holds::Never => Some(false),
            _ if state.erased_at.is_some() => Some(false),
            Holds::WithToken => Some(true),
            Holds::WhilePublic => Some(state.is_public || broken::is("public_not_checked")),
            Holds::WithMembers(at) if at == state.members_at || broken::is("role_not_read_again") => {
                Some(true)
            }
            Holds::WithMembers(_) | Holds::Unknown => None,
        }
    }

    /// Cursors from before that version have expired for the caller.
    pub fn seen_since(&self) -> Version {
        if broken::is("member_keeps_old_cursor") { Version(0) } else { self.since }
    }

    /// Whether a kept response of that version may be sent again: the caller reads the same tables as then. Roles of
    /// tokens leave no trace, so nobody knows that of theirs if some table is not for every role.
    pub fn may_see_again(&self, version: Version, schema: &Schema) -> bool {
        let is_known = !self.is_of_token() || schema.hidden_from(Role::Read) == 0;
        is_known && version >= self.seen_since()
    }

    /// The owner's state as the caller may see it: cursors from before [`Self::since`] are behind the horizon.
    pub fn seen(&self, state: OwnerState) -> OwnerState {
        OwnerState { horizon: state.horizon.max(self.seen_since()), ..state }
    }
}

/// The rights of a caller as of a transaction.
///
/// Errors: [`RightsError::NotAMember`].
pub fn rights(roles: &Roles, caller: &Caller, txn: &mut dyn ReadTxn) -> Result<Rights, RightsError> {
    match caller.rights.hold_at(&txn.state()) {
        Some(true) => Ok(caller.rights),
        Some(false) => Err(RightsError::NotAMember),
        None => read_rights(roles, caller, txn),
    }
}

/// The rights of a caller, read in a transaction whatever is known of them.
///
/// Errors: [`RightsError::NotAMember`].
pub fn read_rights(roles: &Roles, caller: &Caller, txn: &mut dyn ReadTxn) -> Result<Rights, RightsError> {
    let state = txn.state();
    let member = if state.erased_at.is_some() { None } else { txn.member(caller.user)? };
    let rights = member.map(|member| Rights {
        role: member.role,
        since: member.since,
        holds: Holds::WithMembers(state.members_at),
    });
    roles.note(caller.user, caller.owner, rights);
    rights.ok_or(RightsError::NotAMember)
}

/// The rights of a caller, before any transaction.
///
/// Errors: [`RightsError::NotAMember`].
pub fn look_up(roles: &Roles, caller: &Caller, accounts: &dyn AccountStore) -> Result<Rights, RightsError> {
    if caller.rights.is_of_token() {
        return Ok(caller.rights);
    }
    if matches!(caller.rights.holds, Holds::Never | Holds::WhilePublic) {
        return Err(RightsError::NotAMember);
    }
    let Standing { members_at, is_erased, role } = accounts.standing(caller.user, caller.owner)?;
    let holds = Holds::WithMembers(members_at);
    let known = (caller.rights.holds == holds).then_some(caller.rights);
    let read = role.map(|(role, since)| Rights { role, since, holds });
    let rights = known.or(read).filter(|_| !is_erased);
    roles.note(caller.user, caller.owner, rights);
    rights.ok_or(RightsError::NotAMember)
}

/// Most roles in memory, about 100 bytes each.
const ROLES_MAX: usize = 65_536;

/// Roles that were read a while ago, by user and owner. They grant nothing by themselves: see [`rights`].
pub struct Roles(Mutex<Cache<(Uuid, Owner), Rights>>);

impl Default for Roles {
    fn default() -> Self {
        Self(Mutex::new(Cache::new(ROLES_MAX)))
    }
}

impl Roles {
    /// The role that was last read of a user.
    pub fn find(&self, user: Uuid, owner: Owner) -> Option<Rights> {
        self.0.lock().get(&(user, owner)).copied()
    }

    /// Keeps what was read. Nothing is kept of users who are no members: a request may name any owner.
    pub fn note(&self, user: Uuid, owner: Owner, rights: Option<Rights>) {
        let mut roles = self.0.lock();
        match rights {
            Some(rights) => {
                roles.insert((user, owner), rights);
            }
            None => roles.remove(&(user, owner)),
        }
    }
}

//! Who may do what with an owner's rows, as an engine keeps it. The rules are in `crate::members`.
//!
//! Members and invitations lie with the owner's other rows and change in the owner's own write transactions, so that
//! rights are read in the transaction that they are for.

use uuid::Uuid;

use super::StorageResult;
use crate::model::{Owner, Role, Timestamp, Version};

/// A user who may work with an owner's rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The user.
    pub user: Uuid,
    /// What the user may do.
    pub role: Role,
    /// The version at which it last changed what this member may read; 0 if it never did. Cursors from before have
    /// expired for this member.
    pub since: Version,
    /// How the member is called among the others; may be empty.
    pub name: String,
    /// When the user became a member.
    pub joined_at: Timestamp,
}

/// SHA-256 of an invitation's code: the code itself is never kept.
pub type CodeHash = [u8; 32];

/// An offer to become a member, for anyone who shows its code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invitation {
    /// Names it among those of its owner.
    pub id: Uuid,
    /// What finds it.
    pub code: CodeHash,
    /// What the new member may do.
    pub role: Role,
    /// The member who made it: it ends when that user no longer manages the owner.
    pub made_by: Uuid,
    /// When it was made.
    pub made_at: Timestamp,
    /// From when on it is refused.
    pub expires_at: Timestamp,
    /// How many more users it takes. With 0 it is used up, and is kept for users who send their request again.
    pub uses_left: u32,
}

impl Invitation {
    /// Whether it takes another user.
    pub fn is_open(&self, now: Timestamp) -> bool {
        self.uses_left > 0 && self.expires_at > now
    }
}

/// An owner, as one of its members sees it in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership {
    /// The owner.
    pub owner: Owner,
    /// How the owner is called; may be empty.
    pub name: String,
    /// What the user may do there.
    pub role: Role,
    /// The version of the last transaction that changed anything.
    pub version: Version,
    /// Whether anyone may read.
    pub is_public: bool,
    /// Whether the owner was made with the user's account.
    pub is_home: bool,
}

/// An owner's members as of one moment.
pub trait MemberReads {
    /// The member that a user is; `None` if it is none.
    fn member(&mut self, user: Uuid) -> StorageResult<Option<Member>>;

    /// Members after `after`, by id, at most `members_max`.
    fn members(&mut self, after: Option<Uuid>, members_max: usize) -> StorageResult<Vec<Member>>;

    /// How many members there are.
    fn member_count(&mut self) -> StorageResult<u64>;

    /// The member of that role who joined first, apart from `except`.
    fn first_of(&mut self, role: Role, except: Uuid) -> StorageResult<Option<Member>>;

    /// How the owner is called; empty if nobody named it.
    fn owner_name(&mut self) -> StorageResult<String>;

    /// Every invitation, expired or not, the oldest first.
    fn invitations(&mut self) -> StorageResult<Vec<Invitation>>;
}

/// Changes of an owner's members. None of them moves the owner's version: the caller does that.
pub trait MemberWrites: MemberReads {
    /// Writes a member in place of what was held.
    fn put_member(&mut self, member: &Member) -> StorageResult<()>;

    /// Removes a member; `false` if the user is none.
    fn remove_member(&mut self, user: Uuid) -> StorageResult<bool>;

    /// Names the owner.
    fn name_owner(&mut self, name: &str) -> StorageResult<()>;

    /// Writes an invitation in place of what was held.
    fn put_invitation(&mut self, invitation: &Invitation) -> StorageResult<()>;

    /// Removes an invitation; `false` if there is none of that id.
    fn remove_invitation(&mut self, id: Uuid) -> StorageResult<bool>;
}

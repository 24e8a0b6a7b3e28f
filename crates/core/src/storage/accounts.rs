//! Users and devices, as an engine stores them. The module `accounts` gives them their meaning.

use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::StorageResult;
use super::members::{CodeHash, Membership};
use crate::model::{DeviceId, Owner, Role, Timestamp, Version};

/// A person who may log in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// Created at registration.
    pub id: Uuid,
    /// Lower case; no two users share one.
    pub email: String,
    /// In the PHC string format.
    pub password_hash: String,
    /// The owner that the user's requests are about if they name none.
    pub owner: Owner,
    /// Whether that owner was made with the account. A user who was added to another one's owner has no home.
    pub is_home: bool,
    /// When the user registered.
    pub created_at: Timestamp,
    /// Since when the address is known to be the user's; `None` if it was never proved.
    pub verified_at: Option<Timestamp>,
}

/// One installation of an app that logged in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Created at log-in.
    pub id: DeviceId,
    /// The user of the device.
    pub user: Uuid,
    /// The owner that its requests are about if they name none: that of its user.
    pub owner: Owner,
    /// The name that the app gave: "Anna's phone".
    pub name: String,
    /// When it first logged in.
    pub created_at: Timestamp,
    /// The time from which its token is refused.
    pub expires_at: Timestamp,
}

/// When and from where a device was last seen; both are coarse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sighting {
    /// To the minute, by the server's clock.
    pub at: Timestamp,
    /// The address of its request.
    pub from: IpAddr,
}

/// SHA-256 of a device's token: the token itself is never stored.
pub type TokenHash = [u8; 32];

/// Whose tokens are no longer valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SignedOut {
    /// A device that was removed, or given a new token.
    Device(DeviceId),
    /// A user who was removed.
    User(Uuid),
}

/// What a mail to a user is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum MailKind {
    /// The user wants to choose another password.
    PasswordReset,
    /// The user is to prove that the address is theirs.
    EmailVerification,
}

impl MailKind {
    /// As JSON, metrics and log lines name it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::PasswordReset => "password_reset",
            Self::EmailVerification => "email_verification",
        }
    }
}

/// A token that was mailed to a user. Of each kind a user has one at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MailToken {
    /// Whose address it was sent to.
    pub user: Uuid,
    /// What it is for.
    pub kind: MailKind,
    /// SHA-256 of the token, which is not kept.
    pub hash: TokenHash,
    /// From when on it is refused.
    pub expires_at: Timestamp,
}

/// What a token that was mailed does once it is used.
#[derive(Clone, Copy, Debug)]
pub struct MailTokenUse<'a> {
    /// The token, which ends.
    pub token: &'a MailToken,
    /// The hash of the new password, if there is one.
    pub password_hash: Option<&'a str>,
    /// Now: the address is verified from then on.
    pub at: Timestamp,
}

/// An owner whose rows are to be erased.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Erasure {
    /// Whose rows.
    pub owner: Owner,
    /// When the owner was erased, or its last member.
    pub since: Timestamp,
}

/// Which devices of a user stay signed in when the password is replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeptDevices {
    /// Every device.
    All,
    /// The device that replaces the password.
    One(DeviceId),
    /// No device.
    None,
}

/// What a user is to an owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// The version at which the owner's members last changed.
    pub members_at: Version,
    /// Whether the owner is erased.
    pub is_erased: bool,
    /// The user's role, and since which version the user reads what it reads; `None` if the user is no member.
    pub role: Option<(Role, Version)>,
}

/// Called for each user or device that was signed out.
pub type SignOutListener = Arc<dyn Fn(SignedOut) + Send + Sync>;

/// A change of an owner's members, as open streams report it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberChange {
    /// The owner.
    pub owner: Owner,
    /// The user who joined, left, or has another role; `None` if it may be any member.
    pub user: Option<Uuid>,
    /// Whether the user left; without a user, whether the owner is erased.
    pub left: bool,
}

/// Called for each change of members.
pub type MemberListener = Arc<dyn Fn(MemberChange) + Send + Sync>;

/// A device that was seen: its user, its id, when and where.
pub type Seen = (Uuid, DeviceId, Sighting);

/// Users and devices, as an engine stores them.
///
/// Where rows are sharded, those of one user lie together: the user, its devices and the list of its owners. Whatever
/// finds a user by something else (an email, a token, a code) is a look-up that is written first and grants nothing by
/// itself. So a call that breaks off leaves at most a look-up that leads nowhere, and the same call again completes it.
pub trait AccountStore: Send + Sync {
    /// Adds a user; `false` if the email is taken.
    ///
    /// The user becomes a member of its owner, as [`crate::members::join`] has it; the first one has its home there.
    fn add_user(&self, user: &User) -> StorageResult<bool>;

    /// The user of that (lower-case) email.
    fn user(&self, email: &str) -> StorageResult<Option<User>>;

    /// The user of that id.
    fn user_of(&self, id: Uuid) -> StorageResult<Option<User>>;

    /// Every user, by email.
    fn users(&self) -> StorageResult<Vec<User>>;

    /// Replaces the hash of a password by another hash of the same password. Does nothing if the hash is not `was` any
    /// more: the password was changed meanwhile.
    fn set_password_hash(&self, user: Uuid, was: &str, hash: &str) -> StorageResult<()>;

    /// Replaces the hash of a password and removes all devices of the user except `keep`, in one transaction. A token
    /// that was mailed for the password ends. Returns the removed devices.
    fn replace_password(&self, user: Uuid, hash: &str, keep: KeptDevices) -> StorageResult<Vec<DeviceId>>;

    /// Erases a user: the user, the devices, the memberships, and what is stored of the devices beside the owners' rows.
    /// Returns the devices. A call that fails can be repeated: the user is removed last.
    ///
    /// - The hashes of the devices' tokens are kept until `until`, so that [`Self::is_gone`] knows them.
    /// - An owner of which nobody else is a member is erased ([`crate::members::depart`]): [`Self::erasures`] lists it from
    ///   then on. Other members keep the rows.
    fn erase_user(&self, user: &User, at: Timestamp, until: Timestamp) -> StorageResult<Vec<DeviceId>>;

    /// Whether a token was that of a user who was erased, and is remembered still.
    fn is_gone(&self, token: &TokenHash, now: Timestamp) -> StorageResult<bool>;

    /// Forgets the tokens of erased users that are remembered until before `now`.
    fn forget_gone(&self, now: Timestamp) -> StorageResult<()>;

    /// Owners after `after` whose rows are to be erased, by id, at most `owners_max`.
    fn erasures(&self, after: Option<Owner>, owners_max: usize) -> StorageResult<Vec<Erasure>>;

    /// Removes an erased owner, the rows of which are removed.
    fn end_erasure(&self, owner: Owner) -> StorageResult<()>;

    /// Writes a token that is about to be mailed, in place of an older one of the same user and kind.
    fn put_mail_token(&self, token: &MailToken) -> StorageResult<()>;

    /// The token of a user of this kind, expired or not, if it has this hash.
    fn mail_token(&self, kind: MailKind, user: Uuid, hash: &TokenHash) -> StorageResult<Option<MailToken>>;

    /// Uses a token: in one transaction it ends, the address is verified, the password hash is replaced if there is a new
    /// one, and all devices of the user are removed. Returns the removed devices; `None` if the token has ended already.
    fn use_mail_token(&self, used: &MailTokenUse<'_>) -> StorageResult<Option<Vec<DeviceId>>>;

    /// Removes all devices of a user except one. Returns the removed devices.
    fn remove_other_devices(&self, user: Uuid, keep: DeviceId) -> StorageResult<Vec<DeviceId>>;

    /// Removes a user with all its devices and memberships; the rows of its owners stay. `false` if there is none.
    fn remove_user(&self, email: &str, now: Timestamp) -> StorageResult<bool>;

    /// Adds a device, or gives a known device of the same user a new token, name and expiry.
    ///
    /// `false` if the id is another user's.
    fn put_device(&self, device: &Device, token: &TokenHash) -> StorageResult<bool>;

    /// The device that a token belongs to, expired or not.
    fn device(&self, token: &TokenHash) -> StorageResult<Option<Device>>;

    /// A user's devices, oldest first.
    fn devices(&self, user: Uuid) -> StorageResult<Vec<Device>>;

    /// Removes a device's token; `false` if the user has no such device.
    fn remove_device(&self, user: Uuid, device: DeviceId) -> StorageResult<bool>;

    /// When and from where a user's devices were last seen, as far as stored.
    fn sightings(&self, user: Uuid) -> StorageResult<Vec<(DeviceId, Sighting)>>;

    /// Stores when and from where devices were last seen; devices that no longer exist are skipped.
    fn note_sightings(&self, seen: &[Seen]) -> StorageResult<()>;

    /// The owners that a user is a member of, by id, without those that were erased.
    fn owners_of(&self, user: Uuid) -> StorageResult<Vec<Membership>>;

    /// The owners that a token names, by id, without those that were erased. None of them is the home.
    fn named_owners(&self, named: &[(Owner, Role)]) -> StorageResult<Vec<Membership>>;

    /// What a user is to an owner, read by the connections that are kept for accounts: whoever reads rows for long keeps
    /// nobody from it. A transaction that goes by it compares [`Standing::members_at`] with its own.
    fn standing(&self, user: Uuid, owner: Owner) -> StorageResult<Standing>;

    /// Brings the list of a user's owners in line, after the user became a member of one or no longer is.
    ///
    /// The list only says where to look: [`Self::owners_of`] leaves out what the owner's own rows do not confirm.
    fn list_owner(&self, user: Uuid, owner: Owner, is_member: bool) -> StorageResult<()>;

    /// Lets an invitation be found by its code.
    fn list_invitation(&self, code: &CodeHash, owner: Owner, expires_at: Timestamp) -> StorageResult<()>;

    /// The owner that a code may be an invitation of.
    fn invited_to(&self, code: &CodeHash) -> StorageResult<Option<Owner>>;

    /// Ends what [`Self::list_invitation`] began.
    fn unlist_invitation(&self, code: &CodeHash) -> StorageResult<()>;

    /// Removes look-ups that expired before `now`, at most `lookups_max`; returns how many there were.
    fn forget_expired(&self, now: Timestamp, lookups_max: usize) -> StorageResult<usize>;

    /// Calls the listener for each user or device that another server signed out, a moment later, or never if
    /// the notification was lost. With one server it is never called.
    fn on_signed_out(&self, _listener: SignOutListener) {}

    /// Notifies the other servers of a change of members. It is a hint, which may be lost.
    fn notify_members_changed(&self, _change: MemberChange) {}

    /// Calls the listener for each change of members of which another server notified this one. With one server it is
    /// never called.
    fn on_members_changed(&self, _listener: MemberListener) {}
}

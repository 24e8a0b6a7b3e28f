//! Users and devices in PostgreSQL: what belongs to one user lies together, and what finds it lies apart.

use postgres::Row;
use postgres::types::Type;
use uuid::Uuid;

use super::connections::Connections;
use super::lookups::{self, Claim, Kind};
use super::owner::first_version;
use super::session::{Param, Purpose, Session};
use super::statements::Statements;
use super::txn::Txn;
use super::{erase, mail_tokens, members, notify};
use crate::failure::failed;
use rollcall_core::members::{depart, join, leave};
use rollcall_core::model::{DeviceId, Owner, Timestamp, Version};
use rollcall_core::schema::Schema;
use rollcall_core::storage::accounts::{
    AccountStore, Device, Erasure, KeptDevices, MailKind, MailToken, MailTokenUse, Seen, Sighting,
    SignOutListener, SignedOut, TokenHash, User,
};
use rollcall_core::storage::members::{CodeHash, Membership};
use rollcall_core::storage::{ReadTxn as _, StorageError, StorageResult};

/// An earlier try may have added the user; another one of that email has it where the table is not distributed.
const ADD_USER: &str = "INSERT INTO rollcall_user (id, email, password_hash, owner, created_at, home, verified_at) \
     VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING";
macro_rules! user {
    () => {
        "SELECT id, email, password_hash, owner, created_at, coalesce(home, owner = id), \
         verified_at FROM rollcall_user "
    };
}
/// The user that a look-up leads to, if the email is still the user's.
pub const USER: &str = concat!(user!(), "WHERE id = $1 AND email = $2");
const USER_OF_ID: &str = concat!(user!(), "WHERE id = $1");
/// In byte order, as SQLite sorts: a collation could differ from machine to machine.
const USERS: &str = concat!(user!(), "ORDER BY email COLLATE \"C\"");
const SET_PASSWORD_HASH: &str =
    "UPDATE rollcall_user SET password_hash = $3 WHERE id = $1 AND password_hash = $2";
const REPLACE_PASSWORD: &str = "UPDATE rollcall_user SET password_hash = $2, reset_hash = NULL, \
    reset_until = NULL WHERE id = $1";
/// No device has the nil id, so with it every device goes.
const REMOVE_OTHER_DEVICES: &str =
    "DELETE FROM rollcall_device WHERE user_id = $1 AND id <> $2 RETURNING id, token_hash";
const REMOVE_USER: &str = "DELETE FROM rollcall_user WHERE id = $1";
const REMOVE_LIST: &str = "DELETE FROM rollcall_membership WHERE user_id = $1";

const PUT_DEVICE: &str = "INSERT INTO rollcall_device \
     (id, user_id, name, token_hash, created_at, expires_at) VALUES ($1, $2, $3, $4, $5, $6) \
     ON CONFLICT (user_id, id) DO UPDATE SET name = excluded.name, token_hash = excluded.token_hash, \
     expires_at = excluded.expires_at";
const DEVICE_TOKEN: &str = "SELECT id, token_hash FROM rollcall_device WHERE user_id = $1 AND id = $2";
macro_rules! device {
    () => {
        "SELECT d.id, d.user_id, u.owner, d.name, d.created_at, d.expires_at \
         FROM rollcall_device d JOIN rollcall_user u ON u.id = d.user_id WHERE d.user_id = "
    };
}
/// The device that a look-up leads to, if the token is still its own.
pub const DEVICE: &str = concat!(device!(), "$1 AND d.token_hash = $2");
pub const DEVICES: &str = concat!(device!(), "$1 ORDER BY d.created_at, d.id");
pub const DEVICE_OF_ID: &str = concat!(device!(), "$1 AND d.id = $2");
/// For whoever runs the server: the devices of several users.
const DEVICES_OF_ALL: &str = concat!(device!(), "ANY($1) ORDER BY d.created_at, d.id");
const USERS_OF_OWNER: &str = "SELECT user_id FROM rollcall_member WHERE owner = $1";
const REMOVE_DEVICE: &str =
    "DELETE FROM rollcall_device WHERE user_id = $1 AND id = $2 RETURNING id, token_hash";
const REMOVE_DEVICES: &str = "DELETE FROM rollcall_device WHERE user_id = $1 RETURNING id, token_hash";

/// When and from where a user's devices were seen last.
pub const SIGHTINGS: &str =
    "SELECT id, seen_at, seen_from FROM rollcall_device WHERE user_id = $1 AND seen_at IS NOT NULL";
/// Notes when and from where a device was seen.
pub const NOTE_SIGHTING: &str =
    "UPDATE rollcall_device SET seen_at = $3, seen_from = $4 WHERE user_id = $1 AND id = $2";

/// The list of a user's owners, and which of them is the home.
const LIST: &str = "SELECT m.owner, coalesce(u.owner = m.owner AND coalesce(u.home, u.owner = u.id), false) \
     FROM rollcall_membership m LEFT JOIN rollcall_user u ON u.id = m.user_id WHERE m.user_id = $1";
const ADD_TO_LIST: &str =
    "INSERT INTO rollcall_membership (user_id, owner) VALUES ($1, $2) ON CONFLICT DO NOTHING";
const TAKE_FROM_LIST: &str = "DELETE FROM rollcall_membership WHERE user_id = $1 AND owner = $2";
/// What the owners' own rows say of a list.
pub const MEMBERSHIPS: &str = "SELECT m.owner, m.role, o.version, coalesce(o.name, ''), coalesce(o.public, false) \
     FROM rollcall_member m LEFT JOIN rollcall_owner o ON o.owner = m.owner \
     WHERE m.owner = ANY($1) AND m.user_id = $2 AND o.erased_at IS NULL ORDER BY m.owner";

/// What servers of the release before go by.
const OF_EMAIL: &str = concat!(user!(), "WHERE email = $1");
const OF_TOKEN: &str =
    concat!(user!(), "WHERE id = (SELECT user_id FROM rollcall_device WHERE token_hash = $1)");
const USER_OF_DEVICE: &str = "SELECT user_id FROM rollcall_device WHERE id = $1";
const TOKENS: &str = "SELECT id, token_hash FROM rollcall_device WHERE user_id = $1";

impl AccountStore for Connections {
    fn add_user(&self, user: &User) -> StorageResult<bool> {
        if let Some(known) = self.user(&user.email)? {
            return Ok(known.id == user.id); // an earlier try's, perhaps
        }
        let name = lookups::name(Kind::Email, user.email.as_bytes());
        let is_there = |session: &mut Session, other: Uuid| {
            Ok(session.row(USER, &[(&other, Type::UUID), (&user.email, Type::TEXT)])?.is_some())
        };
        let claimed = self.looking_up(|session| {
            lookups::claim(session, Kind::Email, &name, user.id, user.created_at, is_there)
        })?;
        if claimed == Claim::Taken {
            return Ok(false);
        }
        let added = self.add_claimed(user, &name);
        if !matches!(added, Ok(true)) {
            self.tidy(|session| {
                session.execute(REMOVE_USER, &[(&user.id, Type::UUID)])?;
                session.execute(REMOVE_LIST, &[(&user.id, Type::UUID)])?;
                session.execute(members::REMOVE, &[(&user.owner.0, Type::UUID), (&user.id, Type::UUID)])?;
                lookups::remove(session, &name, user.id)
            });
        }
        added
    }

    fn user(&self, email: &str) -> StorageResult<Option<User>> {
        let name = lookups::name(Kind::Email, email.as_bytes());
        let found = self.looking_up(|session| {
            let Some(id) = lookups::find(session, &name)? else { return Ok(None) };
            session.row(USER, &[(&id, Type::UUID), (&email, Type::TEXT)])
        })?;
        if found.is_none() && self.overlaps {
            return self.adopt(OF_EMAIL, &[(&email, Type::TEXT)]);
        }
        found.as_ref().map(read_user).transpose()
    }

    fn users(&self) -> StorageResult<Vec<User>> {
        self.looking_up(|session| session.query(USERS, &[]))?.iter().map(read_user).collect()
    }

    fn user_of(&self, id: Uuid) -> StorageResult<Option<User>> {
        let row = self.looking_up(|session| session.row(USER_OF_ID, &[(&id, Type::UUID)]))?;
        row.as_ref().map(read_user).transpose()
    }

    fn set_password_hash(&self, user: Uuid, was: &str, hash: &str) -> StorageResult<()> {
        let params: [Param<'_>; 3] = [(&user, Type::UUID), (&was, Type::TEXT), (&hash, Type::TEXT)];
        self.looking_up(|session| session.execute(SET_PASSWORD_HASH, &params)).map(drop)
    }

    fn replace_password(&self, user: Uuid, hash: &str, keep: KeptDevices) -> StorageResult<Vec<DeviceId>> {
        let replaced: [Param<'_>; 2] = [(&user, Type::UUID), (&hash, Type::TEXT)];
        let kept = match keep {
            KeptDevices::All => None,
            KeptDevices::One(device) => Some(device.0),
            KeptDevices::None => Some(Uuid::nil()),
        };
        self.removing(user, kept, |session, _| session.execute(REPLACE_PASSWORD, &replaced).map(|_| true))
    }

    /// In one transaction over all that the user has, so that a refused request has changed nothing.
    fn erase_user(&self, user: &User, at: Timestamp, until: Timestamp) -> StorageResult<Vec<DeviceId>> {
        let mut owners: Vec<Owner> = self.listed(user.id)?.into_iter().map(|(owner, _)| owner).collect();
        owners.push(user.owner);
        owners.sort_unstable();
        owners.dedup();
        // With those of earlier tries, since a later one does not find them any more.
        let (mut gone, mut devices) = (Vec::new(), Vec::new());
        let mut moved = Vec::new();
        self.looking_up(|session| {
            let transaction = session.begin(Purpose::Write)?;
            let signed_in = tokens(transaction.session, TOKENS, &[(&user.id, Type::UUID)])?;
            for (_, hash) in &signed_in {
                let params: [Param<'_>; 2] = [(hash, Type::BYTEA), (&until.ms(), Type::INT8)];
                transaction.session.execute(erase::KEEP_TOKEN, &params)?;
            }
            devices.extend(signed_in.iter().map(|(device, _)| device.0));
            gone.extend(signed_in);
            moved.clear();
            for owner in &owners {
                let version = leave_erased(transaction.session, *owner, user.id, &mut devices, at)?;
                moved.extend(version.map(|version| (*owner, version)));
            }
            remove_rows(transaction.session, user, at)?;
            transaction.commit()
        })?;
        moved.iter().for_each(|(owner, version)| self.notify.moved(*owner, *version));
        self.unlist(user, &gone);
        devices.sort_unstable();
        devices.dedup();
        Ok(devices.into_iter().map(DeviceId).collect())
    }

    fn is_gone(&self, token: &TokenHash, now: Timestamp) -> StorageResult<bool> {
        let params: [Param<'_>; 2] = [(&&token[..], Type::BYTEA), (&now.ms(), Type::INT8)];
        Ok(self.looking_up(|session| session.row(erase::IS_GONE, &params))?.is_some())
    }

    fn forget_gone(&self, now: Timestamp) -> StorageResult<()> {
        let params: [Param<'_>; 1] = [(&now.ms(), Type::INT8)];
        self.looking_up(|session| session.execute(erase::FORGET_GONE, &params)).map(drop)
    }

    fn erasures(&self, after: Option<Owner>, owners_max: usize) -> StorageResult<Vec<Erasure>> {
        let limit = i64::try_from(owners_max).unwrap_or(i64::MAX);
        let after = after.map_or(Uuid::nil(), |owner| owner.0);
        let params: [Param<'_>; 2] = [(&after, Type::UUID), (&limit, Type::INT8)];
        let rows = self.looking_up(|session| session.query(erase::ERASURES, &params))?;
        let erasure = |row: &Row| {
            let since = Timestamp::from_ms(row.try_get(1).map_err(failed)?);
            Ok(Erasure { owner: Owner(row.try_get(0).map_err(failed)?), since })
        };
        rows.iter().map(erasure).collect()
    }

    fn end_erasure(&self, owner: Owner) -> StorageResult<()> {
        let params: [Param<'_>; 1] = [(&owner.0, Type::UUID)];
        self.looking_up(|session| session.execute(erase::END_ERASURE, &params)).map(drop)
    }

    fn put_mail_token(&self, token: &MailToken) -> StorageResult<()> {
        let params: [Param<'_>; 3] = [
            (&token.user, Type::UUID),
            (&&token.hash[..], Type::BYTEA),
            (&token.expires_at.ms(), Type::INT8),
        ];
        self.looking_up(|session| session.execute(mail_tokens::put(token.kind), &params)).map(drop)
    }

    fn mail_token(&self, kind: MailKind, user: Uuid, hash: &TokenHash) -> StorageResult<Option<MailToken>> {
        let params: [Param<'_>; 2] = [(&user, Type::UUID), (&&hash[..], Type::BYTEA)];
        let row = self.looking_up(|session| session.row(mail_tokens::find(kind), &params))?;
        let expires_at = row.map(|row| row.try_get(0)).transpose().map_err(failed)?;
        Ok(expires_at.map(|ms| MailToken { user, kind, hash: *hash, expires_at: Timestamp::from_ms(ms) }))
    }

    fn use_mail_token(&self, used: &MailTokenUse<'_>) -> StorageResult<Option<Vec<DeviceId>>> {
        let MailTokenUse { token, password_hash, at } = *used;
        let params: [Param<'_>; 4] = [
            (&token.user, Type::UUID),
            (&&token.hash[..], Type::BYTEA),
            (&password_hash, Type::TEXT),
            (&at.ms(), Type::INT8),
        ];
        let mut is_used = true;
        let removed = self.removing(token.user, Some(Uuid::nil()), |session, is_again| {
            is_used = session.execute(mail_tokens::spend(token.kind), &params)? == 1;
            if !is_used && is_again {
                let done: [Param<'_>; 3] = [params[0].clone(), params[2].clone(), params[3].clone()];
                is_used = session.row(mail_tokens::IS_SPENT, &done)?.is_some();
            }
            Ok(is_used)
        })?;
        Ok(is_used.then_some(removed))
    }

    fn remove_other_devices(&self, user: Uuid, keep: DeviceId) -> StorageResult<Vec<DeviceId>> {
        self.removing(user, Some(keep.0), |_, _| Ok(true))
    }

    fn remove_user(&self, email: &str, now: Timestamp) -> StorageResult<bool> {
        let Some(user) = self.user(email)? else { return Ok(false) };
        for owner in self.listed(user.id)?.into_iter().map(|(owner, _)| owner) {
            self.on_owner(owner, |txn| leave(txn, user.id, now))?;
        }
        let mut gone = Vec::new();
        self.looking_up(|session| {
            gone.append(&mut tokens(session, TOKENS, &[(&user.id, Type::UUID)])?);
            remove_rows(session, &user, now)
        })?;
        self.unlist(&user, &gone);
        Ok(true)
    }

    fn put_device(&self, device: &Device, token: &TokenHash) -> StorageResult<bool> {
        let user = device.user;
        let by_id = lookups::name(Kind::Device, device.id.0.as_bytes());
        if self.overlaps && self.is_anothers(device)? {
            return Ok(false);
        }
        let is_there = |session: &mut Session, other: Uuid| {
            let params: [Param<'_>; 2] = [(&other, Type::UUID), (&device.id.0, Type::UUID)];
            Ok(session.row(DEVICE_TOKEN, &params)?.is_some())
        };
        let claimed = self.looking_up(|session| {
            lookups::claim(session, Kind::Device, &by_id, user, device.created_at, is_there)
        })?;
        if claimed == Claim::Taken {
            return Ok(false);
        }
        let by_token = lookups::name(Kind::Token, token);
        let put = self.put_claimed(device, token, claimed);
        if !matches!(put, Ok(Some(_))) {
            self.tidy(|session| {
                if claimed == Claim::Made {
                    session.execute(REMOVE_DEVICE, &[(&user, Type::UUID), (&device.id.0, Type::UUID)])?;
                    lookups::remove(session, &by_id, user)?;
                }
                lookups::remove(session, &by_token, user)
            });
        }
        let Some(ended) = put? else { return Ok(false) };
        self.tidy(|session| {
            let names = ended.iter().map(|hash| lookups::name(Kind::Token, hash));
            names.filter(|name| *name != by_token).try_for_each(|name| lookups::remove(session, &name, user))
        });
        self.signed_out(SignedOut::Device(device.id)); // its older token ended, if it had one
        Ok(true)
    }

    fn device(&self, token: &TokenHash) -> StorageResult<Option<Device>> {
        let name = lookups::name(Kind::Token, token);
        let found = self.looking_up(|session| {
            let Some(user) = lookups::find(session, &name)? else { return Ok(None) };
            session.row(DEVICE, &[(&user, Type::UUID), (&&token[..], Type::BYTEA)])
        })?;
        if found.is_some() || !self.overlaps {
            return found.as_ref().map(read_device).transpose();
        }
        let Some(user) = self.adopt(OF_TOKEN, &[(&&token[..], Type::BYTEA)])? else { return Ok(None) };
        let params: [Param<'_>; 2] = [(&user.id, Type::UUID), (&&token[..], Type::BYTEA)];
        let found = self.looking_up(|session| session.row(DEVICE, &params))?;
        found.as_ref().map(read_device).transpose()
    }

    fn devices(&self, user: Uuid) -> StorageResult<Vec<Device>> {
        let rows = self.looking_up(|session| session.query(DEVICES, &[(&user, Type::UUID)]))?;
        rows.iter().map(read_device).collect()
    }

    fn remove_device(&self, user: Uuid, device: DeviceId) -> StorageResult<bool> {
        let params: [Param<'_>; 2] = [(&user, Type::UUID), (&device.0, Type::UUID)];
        let (mut tries, mut gone) = (0, Vec::new());
        let removed = self.looking_up(|session| {
            tries += 1;
            gone = tokens(session, REMOVE_DEVICE, &params)?;
            // An earlier try may have removed it, and lost the connection before it heard so.
            Ok(!gone.is_empty() || tries > 1)
        })?;
        if removed {
            self.tidy(|session| gone.iter().try_for_each(|one| unlist_device(session, user, one)));
            self.signed_out(SignedOut::Device(device));
        }
        Ok(removed)
    }

    fn sightings(&self, user: Uuid) -> StorageResult<Vec<(DeviceId, Sighting)>> {
        let rows = self.looking_up(|session| session.query(SIGHTINGS, &[(&user, Type::UUID)]))?;
        let mut found = Vec::with_capacity(rows.len());
        for row in &rows {
            let from: Option<&str> = row.try_get(2).map_err(failed)?;
            let Some(from) = from.and_then(|text| text.parse().ok()) else { continue };
            let at = Timestamp::from_ms(row.try_get(1).map_err(failed)?);
            found.push((DeviceId(row.try_get(0).map_err(failed)?), Sighting { at, from }));
        }
        Ok(found)
    }

    fn note_sightings(&self, seen: &[Seen]) -> StorageResult<()> {
        seen.iter().try_for_each(|(user, device, seen)| {
            let from = seen.from.to_string();
            let params: [Param<'_>; 4] = [
                (user, Type::UUID),
                (&device.0, Type::UUID),
                (&seen.at.ms(), Type::INT8),
                (&from, Type::TEXT),
            ];
            self.looking_up(|session| session.execute(NOTE_SIGHTING, &params)).map(drop)
        })
    }

    fn owners_of(&self, user: Uuid) -> StorageResult<Vec<Membership>> {
        let listed = self.listed(user)?;
        if listed.is_empty() {
            return Ok(Vec::new());
        }
        let owners: Vec<Uuid> = listed.iter().map(|(owner, _)| owner.0).collect();
        let home = listed.iter().find(|(_, is_home)| *is_home).map(|(owner, _)| *owner);
        self.looking_up(|session| {
            let rows = session.query(MEMBERSHIPS, &[(&owners, Type::UUID_ARRAY), (&user, Type::UUID)])?;
            let mut first = None;
            let mut found = Vec::with_capacity(rows.len());
            for row in &rows {
                let owner = Owner(row.try_get(0).map_err(failed)?);
                let version = match row.try_get::<_, Option<i64>>(2).map_err(failed)? {
                    Some(version) => Version(version.cast_unsigned()),
                    None => *first.insert(first.map_or_else(|| first_version(session), Ok)?),
                };
                found.push(Membership {
                    owner,
                    role: members::role(row, 1)?,
                    version,
                    name: row.try_get(3).map_err(failed)?,
                    is_public: row.try_get(4).map_err(failed)?,
                    is_home: home == Some(owner),
                });
            }
            Ok(found)
        })
    }

    fn list_owner(&self, user: Uuid, owner: Owner, is_member: bool) -> StorageResult<()> {
        let params: [Param<'_>; 2] = [(&user, Type::UUID), (&owner.0, Type::UUID)];
        let sql = if is_member { ADD_TO_LIST } else { TAKE_FROM_LIST };
        self.looking_up(|session| session.execute(sql, &params)).map(drop)
    }

    fn list_invitation(&self, code: &CodeHash, owner: Owner, expires_at: Timestamp) -> StorageResult<()> {
        let name = lookups::name(Kind::Code, code);
        self.looking_up(|session| lookups::put(session, Kind::Code, &name, owner.0, Some(expires_at)))
    }

    fn invited_to(&self, code: &CodeHash) -> StorageResult<Option<Owner>> {
        let name = lookups::name(Kind::Code, code);
        self.looking_up(|session| Ok(lookups::find(session, &name)?.map(Owner)))
    }

    fn unlist_invitation(&self, code: &CodeHash) -> StorageResult<()> {
        let name = lookups::name(Kind::Code, code);
        self.looking_up(|session| match lookups::find(session, &name)? {
            Some(owner) => lookups::remove(session, &name, owner),
            None => Ok(()),
        })
    }

    fn forget_expired(&self, now: Timestamp, lookups_max: usize) -> StorageResult<usize> {
        self.looking_up(|session| {
            let expired = lookups::expired(session, now, lookups_max)?;
            for (name, kind, id) in &expired {
                if *kind == Kind::Code as i16 {
                    let params: [Param<'_>; 2] = [(id, Type::UUID), (&now.ms(), Type::INT8)];
                    session.execute(members::FORGET_INVITATIONS, &params)?;
                }
                lookups::remove_expired(session, name, now)?;
            }
            Ok(expired.len())
        })
    }

    fn on_signed_out(&self, listener: SignOutListener) {
        self.notify.on_signed_out(listener);
    }
}

impl Connections {
    /// Notifies the other servers directly, not by the thread that reports versions: a command has no such
    /// thread, and ends.
    fn signed_out(&self, who: SignedOut) {
        let told = self.looking_up(|session| {
            let note = self.notify.message_of(who);
            session.query(notify::NOTIFY, &[(&note, Type::TEXT)])
        });
        if let Err(error) = told {
            tracing::warn!(%error, "could not tell the other servers of a sign-out; they know in token_known_s");
        }
    }

    /// Removes the devices of a user except `kept`, and notifies the other servers; returns them. `None` removes nothing.
    ///
    /// `first` runs in the same transaction, and returns whether there is anything to do. It is given whether an earlier
    /// try may have been committed, of which the connection was lost before the response came.
    fn removing(
        &self,
        user: Uuid,
        kept: Option<Uuid>,
        mut first: impl FnMut(&mut Session, bool) -> StorageResult<bool>,
    ) -> StorageResult<Vec<DeviceId>> {
        // With those of earlier tries, since a later one does not find them any more.
        let mut removed: Vec<(DeviceId, Vec<u8>)> = Vec::new();
        let mut is_again = false;
        self.looking_up(|session| {
            let transaction = session.begin(Purpose::Write)?;
            if !first(transaction.session, is_again)? {
                return Ok(());
            }
            if let Some(kept) = &kept {
                let params: [Param<'_>; 2] = [(&user, Type::UUID), (kept, Type::UUID)];
                removed.append(&mut tokens(transaction.session, REMOVE_OTHER_DEVICES, &params)?);
            }
            is_again = true;
            transaction.commit()
        })?;
        removed.sort_unstable();
        removed.dedup();
        self.tidy(|session| removed.iter().try_for_each(|one| unlist_device(session, user, one)));
        removed.iter().for_each(|(device, _)| self.signed_out(SignedOut::Device(*device)));
        let mut devices: Vec<DeviceId> = removed.into_iter().map(|(device, _)| device).collect();
        devices.dedup();
        Ok(devices)
    }

    /// Removes what found a user who is gone, and the devices, and notifies the other servers.
    fn unlist(&self, user: &User, gone: &[(DeviceId, Vec<u8>)]) {
        let name = lookups::name(Kind::Email, user.email.as_bytes());
        self.tidy(|session| {
            gone.iter().try_for_each(|one| unlist_device(session, user.id, one))?;
            lookups::remove(session, &name, user.id)
        });
        self.signed_out(SignedOut::User(user.id));
    }

    /// Removes what is of no more use. If that fails, it stays, and leads nowhere.
    fn tidy(&self, work: impl FnMut(&mut Session) -> StorageResult<()>) {
        if let Err(error) = self.looking_up(work) {
            tracing::warn!(%error, "look-ups that lead nowhere stay in the database");
        }
    }

    /// Adds a user whose email is claimed; `false` if somebody else has that email by now.
    fn add_claimed(&self, user: &User, name: &lookups::Name) -> StorageResult<bool> {
        let is_home = self.add_member(user)?;
        self.looking_up(|session| {
            list(session, user.id, user.owner)?;
            Ok(add_row(session, user, is_home)? && lookups::confirm(session, name, user.id)?)
        })
    }

    /// Adds a device whose id is claimed, or gives it a new token; returns the hashes of its earlier tokens, or `None`
    /// if the id is another user's by now.
    fn put_claimed(
        &self,
        device: &Device,
        token: &TokenHash,
        claimed: Claim,
    ) -> StorageResult<Option<Vec<Vec<u8>>>> {
        let (user, by_id) = (device.user, lookups::name(Kind::Device, device.id.0.as_bytes()));
        let mut earlier = Vec::new();
        self.looking_up(|session| {
            let params: [Param<'_>; 2] = [(&user, Type::UUID), (&device.id.0, Type::UUID)];
            earlier.extend(tokens(session, DEVICE_TOKEN, &params)?.into_iter().map(|(_, hash)| hash));
            lookups::put(session, Kind::Token, &lookups::name(Kind::Token, token), user, None)?;
            put_row(session, device, token)?;
            let is_ours = claimed == Claim::Held || lookups::confirm(session, &by_id, user)?;
            Ok(is_ours.then(|| std::mem::take(&mut earlier)))
        })
    }

    /// Makes a user a member of its owner; returns whether it is the first one, whose home the owner is.
    fn add_member(&self, user: &User) -> StorageResult<bool> {
        // Nobody else knows an owner that is made with the account.
        let is_first = (user.is_home && user.owner.0 == user.id) || !self.has_others(user)?;
        if !is_first {
            return self.on_owner(user.owner, |txn| join(txn, user.id, user.created_at)).map(|_| false);
        }
        let at = user.created_at.ms();
        let params: [Param<'_>; 3] = [(&user.owner.0, Type::UUID), (&user.id, Type::UUID), (&at, Type::INT8)];
        self.looking_up(|session| session.execute(members::PUT_FIRST, &params)).map(|_| true)
    }

    fn has_others(&self, user: &User) -> StorageResult<bool> {
        let params: [Param<'_>; 1] = [(&user.owner.0, Type::UUID)];
        let members = self.looking_up(|session| session.query(USERS_OF_OWNER, &params))?;
        let members = members.iter().map(user_id).collect::<StorageResult<Vec<_>>>()?;
        Ok(members.iter().any(|member| *member != user.id))
    }

    /// The user of a row that a server of the release before wrote, with all that this release finds it by.
    fn adopt(&self, sql: &str, params: &[Param<'_>]) -> StorageResult<Option<User>> {
        let row = self.looking_up(|session| session.row(sql, params))?;
        let Some(user) = row.as_ref().map(read_user).transpose()? else { return Ok(None) };
        self.add_member(&user)?;
        self.looking_up(|session| {
            list(session, user.id, user.owner)?;
            for (device, token) in tokens(session, TOKENS, &[(&user.id, Type::UUID)])? {
                let [by_id, by_token] = device_names(device, &token);
                lookups::put(session, Kind::Device, &by_id, user.id, None)?;
                lookups::put(session, Kind::Token, &by_token, user.id, None)?;
            }
            let name = lookups::name(Kind::Email, user.email.as_bytes());
            lookups::put(session, Kind::Email, &name, user.id, None)
        })?;
        Ok(Some(user))
    }

    /// Whether a server of the release before gave the device's id to another user.
    fn is_anothers(&self, device: &Device) -> StorageResult<bool> {
        let row = self.looking_up(|session| session.row(USER_OF_DEVICE, &[(&device.id.0, Type::UUID)]))?;
        Ok(row.as_ref().map(user_id).transpose()?.is_some_and(|user| user != device.user))
    }

    /// The owners that a user's list has, and whether each is the user's home.
    fn listed(&self, user: Uuid) -> StorageResult<Vec<(Owner, bool)>> {
        let rows = self.looking_up(|session| session.query(LIST, &[(&user, Type::UUID)]))?;
        rows.iter()
            .map(|row| Ok((Owner(row.try_get(0).map_err(failed)?), row.try_get(1).map_err(failed)?)))
            .collect()
    }

    /// The devices of all members of an owner.
    pub(super) fn devices_of_owner(&self, owner: Owner) -> StorageResult<Vec<Device>> {
        self.looking_up(|session| {
            let users = session.query(USERS_OF_OWNER, &[(&owner.0, Type::UUID)])?;
            let users = users.iter().map(user_id).collect::<StorageResult<Vec<Uuid>>>()?;
            session.query(DEVICES_OF_ALL, &[(&users, Type::UUID_ARRAY)])?.iter().map(read_device).collect()
        })
    }

    /// The device of that id, whose ever it is.
    pub(super) fn device_of_id(&self, device: DeviceId) -> StorageResult<Option<Device>> {
        let name = lookups::name(Kind::Device, device.0.as_bytes());
        let row = self.looking_up(|session| {
            let Some(user) = lookups::find(session, &name)? else { return Ok(None) };
            session.row(DEVICE_OF_ID, &[(&user, Type::UUID), (&device.0, Type::UUID)])
        })?;
        row.as_ref().map(read_device).transpose()
    }
}

/// Takes a user whose account is erased out of an owner, with what is stored of the devices there. Adds the devices of
/// the user that the owner knows; returns the owner's version if it moved.
fn leave_erased(
    session: &mut Session,
    owner: Owner,
    user: Uuid,
    devices: &mut Vec<Uuid>,
    now: Timestamp,
) -> StorageResult<Option<Version>> {
    let schema = Schema::empty();
    let statements = Statements::new(&schema, &[]);
    let mut txn = Txn::begin_write(session, &schema, &statements, owner)?;
    let before = txn.state().version;
    let params: [Param<'_>; 2] = [(&owner.0, Type::UUID), (&user, Type::UUID)];
    devices.append(&mut ids(&txn.session.query(erase::INSTALLATIONS, &params)?)?);
    erase::forget_devices(txn.session, owner, devices)?;
    depart(&mut txn, user, now)?;
    txn.finish()?;
    let after = txn.state().version;
    Ok((after != before).then_some(after))
}

/// Removes the rows of a user who is a member of no owner any more. The email is only claimed from then on.
fn remove_rows(session: &mut Session, user: &User, now: Timestamp) -> StorageResult<()> {
    // The email is free again once its claim is old, should this break off.
    lookups::doubt(session, &lookups::name(Kind::Email, user.email.as_bytes()), user.id, now)?;
    session.execute(REMOVE_DEVICES, &[(&user.id, Type::UUID)])?;
    session.execute(REMOVE_LIST, &[(&user.id, Type::UUID)])?;
    session.execute(REMOVE_USER, &[(&user.id, Type::UUID)]).map(drop)
}

/// Has a user's list show an owner.
fn list(session: &mut Session, user: Uuid, owner: Owner) -> StorageResult<()> {
    session.execute(ADD_TO_LIST, &[(&user, Type::UUID), (&owner.0, Type::UUID)]).map(drop)
}

/// Writes the row of a user; `false` if another user of that email has one.
fn add_row(session: &mut Session, user: &User, is_home: bool) -> StorageResult<bool> {
    let verified_at = user.verified_at.map(Timestamp::ms);
    let params: [Param<'_>; 7] = [
        (&user.id, Type::UUID),
        (&user.email, Type::TEXT),
        (&user.password_hash, Type::TEXT),
        (&user.owner.0, Type::UUID),
        (&user.created_at.ms(), Type::INT8),
        (&is_home, Type::BOOL),
        (&verified_at, Type::INT8),
    ];
    if session.execute(ADD_USER, &params)? == 1 {
        return Ok(true);
    }
    Ok(session.row(USER, &[(&user.id, Type::UUID), (&user.email, Type::TEXT)])?.is_some())
}

/// Writes the row of a device.
fn put_row(session: &mut Session, device: &Device, token: &TokenHash) -> StorageResult<()> {
    let params: [Param<'_>; 6] = [
        (&device.id.0, Type::UUID),
        (&device.user, Type::UUID),
        (&device.name, Type::TEXT),
        (&&token[..], Type::BYTEA),
        (&device.created_at.ms(), Type::INT8),
        (&device.expires_at.ms(), Type::INT8),
    ];
    session.execute(PUT_DEVICE, &params).map(drop)
}

/// The devices, and the hashes of their tokens, that a statement returns.
fn tokens(session: &mut Session, sql: &str, params: &[Param<'_>]) -> StorageResult<Vec<(DeviceId, Vec<u8>)>> {
    let rows = session.query(sql, params)?;
    let read = |row: &Row| Ok((DeviceId(row.try_get(0).map_err(failed)?), row.try_get(1).map_err(failed)?));
    rows.iter().map(read).collect()
}

/// What finds a device: its id, and its token.
fn device_names(device: DeviceId, token: &[u8]) -> [lookups::Name; 2] {
    [lookups::name(Kind::Device, device.0.as_bytes()), lookups::name(Kind::Token, token)]
}

/// Removes what finds a device that is gone.
fn unlist_device(session: &mut Session, user: Uuid, gone: &(DeviceId, Vec<u8>)) -> StorageResult<()> {
    device_names(gone.0, &gone.1).iter().try_for_each(|name| lookups::remove(session, name, user))
}

fn user_id(row: &Row) -> StorageResult<Uuid> {
    row.try_get(0).map_err(failed)
}

/// The ids in the first column.
fn ids(rows: &[Row]) -> StorageResult<Vec<Uuid>> {
    rows.iter().map(|row| row.try_get(0).map_err(failed)).collect()
}

fn read_user(row: &Row) -> Result<User, StorageError> {
    Ok(User {
        id: row.try_get(0).map_err(failed)?,
        email: row.try_get(1).map_err(failed)?,
        password_hash: row.try_get(2).map_err(failed)?,
        owner: Owner(row.try_get(3).map_err(failed)?),
        created_at: Timestamp::from_ms(row.try_get(4).map_err(failed)?),
        is_home: row.try_get(5).map_err(failed)?,
        verified_at: row.try_get::<_, Option<i64>>(6).map_err(failed)?.map(Timestamp::from_ms),
    })
}

fn read_device(row: &Row) -> Result<Device, StorageError> {
    Ok(Device {
        id: DeviceId(row.try_get(0).map_err(failed)?),
        user: row.try_get(1).map_err(failed)?,
        owner: Owner(row.try_get(2).map_err(failed)?),
        name: row.try_get(3).map_err(failed)?,
        created_at: Timestamp::from_ms(row.try_get(4).map_err(failed)?),
        expires_at: Timestamp::from_ms(row.try_get(5).map_err(failed)?),
    })
}

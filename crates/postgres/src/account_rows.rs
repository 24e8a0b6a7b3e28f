//! The rows of users and devices, and what finds them: statements, and the steps that calls on accounts share.

use postgres::Row;
use postgres::types::Type;
use uuid::Uuid;

use super::connections::Connections;
use super::lookups::{self, Claim, Kind};
use super::session::{Param, Purpose, Session};
use super::statements::Statements;
use super::txn::Txn;
use super::{erase, members, notify};
use crate::failure::failed;
use rollcall_core::members::{depart, join};
use rollcall_core::model::{DeviceId, Owner, Timestamp, Version};
use rollcall_core::schema::Schema;
use rollcall_core::storage::accounts::{Device, MemberChange, SignedOut, TokenHash, User};
use rollcall_core::storage::{ReadTxn as _, StorageError, StorageResult};

/// An earlier try may have added the user; another one of that email has it where the table is not distributed.
pub(super) const ADD_USER: &str = "INSERT INTO rollcall_user (id, email, password_hash, owner, created_at, home, verified_at) \
     VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING";
macro_rules! user {
    () => {
        "SELECT id, email, password_hash, owner, created_at, coalesce(home, owner = id), \
         verified_at FROM rollcall_user "
    };
}
/// The user that a look-up leads to, if the email is still the user's.
pub const USER: &str = concat!(user!(), "WHERE id = $1 AND email = $2");
pub(super) const USER_OF_ID: &str = concat!(user!(), "WHERE id = $1");
/// In byte order, as SQLite sorts: a collation could differ from machine to machine.
pub(super) const USERS: &str = concat!(user!(), "ORDER BY email COLLATE \"C\"");
pub(super) const SET_PASSWORD_HASH: &str =
    "UPDATE rollcall_user SET password_hash = $3 WHERE id = $1 AND password_hash = $2";
pub(super) const REPLACE_PASSWORD: &str = "UPDATE rollcall_user SET password_hash = $2, reset_hash = NULL, \
    reset_until = NULL WHERE id = $1";
/// No device has the nil id, so with it every device goes.
pub(super) const REMOVE_OTHER_DEVICES: &str =
    "DELETE FROM rollcall_device WHERE user_id = $1 AND id <> $2 RETURNING id, token_hash";
pub(super) const REMOVE_USER: &str = "DELETE FROM rollcall_user WHERE id = $1";
pub(super) const REMOVE_LIST: &str = "DELETE FROM rollcall_membership WHERE user_id = $1";

pub(super) const PUT_DEVICE: &str = "INSERT INTO rollcall_device \
     (id, user_id, name, token_hash, created_at, expires_at) VALUES ($1, $2, $3, $4, $5, $6) \
     ON CONFLICT (user_id, id) DO UPDATE SET name = excluded.name, token_hash = excluded.token_hash, \
     expires_at = excluded.expires_at";
pub(super) const DEVICE_TOKEN: &str =
    "SELECT id, token_hash FROM rollcall_device WHERE user_id = $1 AND id = $2";
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
/// For the operator: the devices of several users.
pub(super) const DEVICES_OF_ALL: &str = concat!(device!(), "ANY($1) ORDER BY d.created_at, d.id");
pub(super) const USERS_OF_OWNER: &str = "SELECT user_id FROM rollcall_member WHERE owner = $1";
pub(super) const REMOVE_DEVICE: &str =
    "DELETE FROM rollcall_device WHERE user_id = $1 AND id = $2 RETURNING id, token_hash";
pub(super) const REMOVE_DEVICES: &str =
    "DELETE FROM rollcall_device WHERE user_id = $1 RETURNING id, token_hash";

/// When and from where a user's devices were seen last.
pub const SIGHTINGS: &str =
    "SELECT id, seen_at, seen_from FROM rollcall_device WHERE user_id = $1 AND seen_at IS NOT NULL";
/// Notes when and from where a device was seen.
pub const NOTE_SIGHTING: &str =
    "UPDATE rollcall_device SET seen_at = $3, seen_from = $4 WHERE user_id = $1 AND id = $2";

/// The list of a user's owners, and which of them is the home.
pub(super) const LIST: &str = "SELECT m.owner, coalesce(u.owner = m.owner AND coalesce(u.home, u.owner = u.id), false) \
     FROM rollcall_membership m LEFT JOIN rollcall_user u ON u.id = m.user_id WHERE m.user_id = $1";
pub(super) const ADD_TO_LIST: &str =
    "INSERT INTO rollcall_membership (user_id, owner) VALUES ($1, $2) ON CONFLICT DO NOTHING";
pub(super) const TAKE_FROM_LIST: &str = "DELETE FROM rollcall_membership WHERE user_id = $1 AND owner = $2";
/// What the owners' own rows say of a list.
pub const MEMBERSHIPS: &str = "SELECT m.owner, m.role, o.version, coalesce(o.name, ''), coalesce(o.public, false) \
     FROM rollcall_member m LEFT JOIN rollcall_owner o ON o.owner = m.owner \
     WHERE m.owner = ANY($1) AND m.user_id = $2 AND o.erased_at IS NULL ORDER BY m.owner";

/// What a list shows of owners that a token names.
pub(super) const NAMED_OWNERS: &str = "SELECT owner, version, name, public, erased_at IS NOT NULL FROM rollcall_owner \
     WHERE owner = ANY($1)";

/// What servers of the release before go by.
pub(super) const OF_EMAIL: &str = concat!(user!(), "WHERE email = $1");
pub(super) const OF_TOKEN: &str =
    concat!(user!(), "WHERE id = (SELECT user_id FROM rollcall_device WHERE token_hash = $1)");
pub(super) const USER_OF_DEVICE: &str = "SELECT user_id FROM rollcall_device WHERE id = $1";
pub(super) const TOKENS: &str = "SELECT id, token_hash FROM rollcall_device WHERE user_id = $1";

impl Connections {
    /// Notifies the other servers directly, not by the thread that reports versions: a command has no such
    /// thread, and ends.
    pub(super) fn signed_out(&self, who: SignedOut) {
        let notified = self.looking_up(|session| {
            let note = self.notify.message_of(who);
            session.query(notify::NOTIFY, &[(&note, Type::TEXT)])
        });
        if let Err(error) = notified {
            tracing::warn!(%error, "could not notify the other servers of a sign-out; they notice it after token_known_s");
        }
    }

    /// Notifies the other servers of a change of members.
    pub(super) fn send_member_change(&self, change: MemberChange) {
        let sent = self.looking_up(|session| {
            let message = self.notify.message_of_members(change);
            session.query(notify::NOTIFY, &[(&message, Type::TEXT)])
        });
        if let Err(error) = sent {
            tracing::warn!(%error, "could not notify the other servers of a change of members; their streams read it later");
        }
    }

    /// Removes the devices of a user except `kept`, and notifies the other servers; returns them. `None` removes nothing.
    ///
    /// `first` runs in the same transaction, and returns whether there is anything to do. It is given whether an earlier
    /// try may have been committed, of which the connection was lost before the response came.
    pub(super) fn removing(
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
    pub(super) fn unlist(&self, user: &User, gone: &[(DeviceId, Vec<u8>)]) {
        let name = lookups::name(Kind::Email, user.email.as_bytes());
        self.tidy(|session| {
            gone.iter().try_for_each(|one| unlist_device(session, user.id, one))?;
            lookups::remove(session, &name, user.id)
        });
        self.signed_out(SignedOut::User(user.id));
    }

    /// Removes what is of no more use. If that fails, it stays, and leads nowhere.
    pub(super) fn tidy(&self, work: impl FnMut(&mut Session) -> StorageResult<()>) {
        if let Err(error) = self.looking_up(work) {
            tracing::warn!(%error, "look-ups without a target stay in the database");
        }
    }

    /// Adds a user whose email is claimed; `false` if somebody else has that email by now.
    pub(super) fn add_claimed(&self, user: &User, name: &lookups::Name) -> StorageResult<bool> {
        let is_home = self.add_member(user)?;
        self.looking_up(|session| {
            list(session, user.id, user.owner)?;
            Ok(add_row(session, user, is_home)? && lookups::confirm(session, name, user.id)?)
        })
    }

    /// Adds a device whose id is claimed, or gives it a new token; returns the hashes of its earlier tokens, or `None`
    /// if the id is another user's by now.
    pub(super) fn put_claimed(
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
    pub(super) fn add_member(&self, user: &User) -> StorageResult<bool> {
        // Nobody else knows an owner that is made with the account.
        let is_first = (user.is_home && user.owner.0 == user.id) || !self.has_others(user)?;
        if !is_first {
            return self.on_owner(user.owner, |txn| join(txn, user.id, user.created_at)).map(|_| false);
        }
        let at = user.created_at.ms();
        let params: [Param<'_>; 3] = [(&user.owner.0, Type::UUID), (&user.id, Type::UUID), (&at, Type::INT8)];
        self.looking_up(|session| session.execute(members::PUT_FIRST, &params)).map(|_| true)
    }

    pub(super) fn has_others(&self, user: &User) -> StorageResult<bool> {
        let params: [Param<'_>; 1] = [(&user.owner.0, Type::UUID)];
        let members = self.looking_up(|session| session.query(USERS_OF_OWNER, &params))?;
        let members = members.iter().map(user_id).collect::<StorageResult<Vec<_>>>()?;
        Ok(members.iter().any(|member| *member != user.id))
    }

    /// The user of a row that a server of the release before wrote, with all that this release finds it by.
    pub(super) fn adopt(&self, sql: &str, params: &[Param<'_>]) -> StorageResult<Option<User>> {
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
    pub(super) fn is_anothers(&self, device: &Device) -> StorageResult<bool> {
        let row = self.looking_up(|session| session.row(USER_OF_DEVICE, &[(&device.id.0, Type::UUID)]))?;
        Ok(row.as_ref().map(user_id).transpose()?.is_some_and(|user| user != device.user))
    }

    /// The owners that a user's list has, and whether each is the user's home.
    pub(super) fn listed(&self, user: Uuid) -> StorageResult<Vec<(Owner, bool)>> {
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
pub(super) fn leave_erased(
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
pub(super) fn remove_rows(session: &mut Session, user: &User, now: Timestamp) -> StorageResult<()> {
    // The email is free again once its claim is old, should this break off.
    lookups::doubt(session, &lookups::name(Kind::Email, user.email.as_bytes()), user.id, now)?;
    session.execute(REMOVE_DEVICES, &[(&user.id, Type::UUID)])?;
    session.execute(REMOVE_LIST, &[(&user.id, Type::UUID)])?;
    session.execute(REMOVE_USER, &[(&user.id, Type::UUID)]).map(drop)
}

/// Has a user's list show an owner.
pub(super) fn list(session: &mut Session, user: Uuid, owner: Owner) -> StorageResult<()> {
    session.execute(ADD_TO_LIST, &[(&user, Type::UUID), (&owner.0, Type::UUID)]).map(drop)
}

/// Writes the row of a user; `false` if another user of that email has one.
pub(super) fn add_row(session: &mut Session, user: &User, is_home: bool) -> StorageResult<bool> {
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
pub(super) fn put_row(session: &mut Session, device: &Device, token: &TokenHash) -> StorageResult<()> {
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
pub(super) fn tokens(
    session: &mut Session,
    sql: &str,
    params: &[Param<'_>],
) -> StorageResult<Vec<(DeviceId, Vec<u8>)>> {
    let rows = session.query(sql, params)?;
    let read = |row: &Row| Ok((DeviceId(row.try_get(0).map_err(failed)?), row.try_get(1).map_err(failed)?));
    rows.iter().map(read).collect()
}

/// What finds a device: its id, and its token.
pub(super) fn device_names(device: DeviceId, token: &[u8]) -> [lookups::Name; 2] {
    [lookups::name(Kind::Device, device.0.as_bytes()), lookups::name(Kind::Token, token)]
}

/// Removes what finds a device that is gone.
pub(super) fn unlist_device(
    session: &mut Session,
    user: Uuid,
    gone: &(DeviceId, Vec<u8>),
) -> StorageResult<()> {
    device_names(gone.0, &gone.1).iter().try_for_each(|name| lookups::remove(session, name, user))
}

pub(super) fn user_id(row: &Row) -> StorageResult<Uuid> {
    row.try_get(0).map_err(failed)
}

/// The ids in the first column.
pub(super) fn ids(rows: &[Row]) -> StorageResult<Vec<Uuid>> {
    rows.iter().map(|row| row.try_get(0).map_err(failed)).collect()
}

pub(super) fn read_user(row: &Row) -> Result<User, StorageError> {
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

pub(super) fn read_device(row: &Row) -> Result<Device, StorageError> {
    Ok(Device {
        id: DeviceId(row.try_get(0).map_err(failed)?),
        user: row.try_get(1).map_err(failed)?,
        owner: Owner(row.try_get(2).map_err(failed)?),
        name: row.try_get(3).map_err(failed)?,
        created_at: Timestamp::from_ms(row.try_get(4).map_err(failed)?),
        expires_at: Timestamp::from_ms(row.try_get(5).map_err(failed)?),
    })
}

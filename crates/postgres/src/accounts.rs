//! Users and devices in PostgreSQL. Each method of [`AccountStore`] runs one statement.

use postgres::Row;
use postgres::types::Type;
use uuid::Uuid;

use super::connections::Connections;
use super::session::{Param, Purpose, Session};
use super::{erase, mail_tokens, notify};
use crate::failure::failed;
use rollcall_core::model::{DeviceId, Owner, Timestamp};
use rollcall_core::storage::accounts::{
    AccountStore, Device, Erasure, KeptDevices, MailKind, MailToken, MailTokenUse, Sighting, SignOutListener,
    SignedOut, TokenHash, User,
};
use rollcall_core::storage::{StorageError, StorageResult};

/// A conflict with itself: the user was added just before the connection broke. It is not another user's.
const ADD_USER: &str = "INSERT INTO rollcall_user (id, email, password_hash, owner, created_at, verified_at) \
     VALUES ($1, $2, $3, $4, $5, $6) \
     ON CONFLICT (email) DO UPDATE SET email = excluded.email WHERE rollcall_user.id = excluded.id";
const USER: &str =
    "SELECT id, email, password_hash, owner, created_at, verified_at FROM rollcall_user WHERE email = $1";
const USER_OF_ID: &str =
    "SELECT id, email, password_hash, owner, created_at, verified_at FROM rollcall_user WHERE id = $1";
/// In byte order, as SQLite sorts: a collation could differ from machine to machine.
const USERS: &str = "SELECT id, email, password_hash, owner, created_at, verified_at FROM rollcall_user ORDER BY email COLLATE \"C\"";
const SET_PASSWORD_HASH: &str =
    "UPDATE rollcall_user SET password_hash = $3 WHERE id = $1 AND password_hash = $2";
const REPLACE_PASSWORD: &str = "UPDATE rollcall_user SET password_hash = $2, reset_hash = NULL, \
    reset_until = NULL WHERE id = $1";
/// No device has the nil id, so with it every device goes.
const REMOVE_OTHER_DEVICES: &str = "DELETE FROM rollcall_device WHERE user_id = $1 AND id <> $2 RETURNING id";
const REMOVE_USER: &str = "DELETE FROM rollcall_user WHERE email = $1";

// The WHERE prevents that a user takes over another user's device: it turns the conflict into a no-op.
const PUT_DEVICE: &str = "INSERT INTO rollcall_device AS d \
     (id, user_id, name, token_hash, created_at, expires_at) VALUES ($1, $2, $3, $4, $5, $6) \
     ON CONFLICT (id) DO UPDATE SET name = excluded.name, token_hash = excluded.token_hash, \
     expires_at = excluded.expires_at WHERE d.user_id = excluded.user_id";
const DEVICE: &str = "SELECT d.id, d.user_id, u.owner, d.name, d.created_at, d.expires_at \
     FROM rollcall_device d JOIN rollcall_user u ON u.id = d.user_id WHERE d.token_hash = $1";
const DEVICES: &str = "SELECT d.id, d.user_id, u.owner, d.name, d.created_at, d.expires_at \
     FROM rollcall_device d JOIN rollcall_user u ON u.id = d.user_id \
     WHERE d.user_id = $1 ORDER BY d.created_at, d.id";
/// For the operator.
pub(super) const SIGNED_IN: &str = "SELECT d.id, d.user_id, u.owner, d.name, d.created_at, d.expires_at \
     FROM rollcall_device d JOIN rollcall_user u ON u.id = d.user_id \
     WHERE u.owner = $1 ORDER BY d.created_at, d.id";
pub(super) const BY_ID: &str = "SELECT d.id, d.user_id, u.owner, d.name, d.created_at, d.expires_at \
     FROM rollcall_device d JOIN rollcall_user u ON u.id = d.user_id WHERE d.id = $1";
const REMOVE_DEVICE: &str = "DELETE FROM rollcall_device WHERE id = $2 AND user_id = $1";

/// When and from where a user's devices were last seen.
pub const SIGHTINGS: &str =
    "SELECT id, seen_at, seen_from FROM rollcall_device WHERE user_id = $1 AND seen_at IS NOT NULL";
/// Stores when and from where a device was last seen.
pub const NOTE_SIGHTING: &str = "UPDATE rollcall_device SET seen_at = $2, seen_from = $3 WHERE id = $1";

impl AccountStore for Connections {
    fn add_user(&self, user: &User) -> StorageResult<bool> {
        let verified_at = user.verified_at.map(Timestamp::ms);
        let params: [Param<'_>; 6] = [
            (&user.id, Type::UUID),
            (&user.email, Type::TEXT),
            (&user.password_hash, Type::TEXT),
            (&user.owner.0, Type::UUID),
            (&user.created_at.ms(), Type::INT8),
            (&verified_at, Type::INT8),
        ];
        self.looking_up(|session| Ok(session.execute(ADD_USER, &params)? == 1))
    }

    fn user(&self, email: &str) -> StorageResult<Option<User>> {
        let row = self.looking_up(|session| session.row(USER, &[(&email, Type::TEXT)]))?;
        row.as_ref().map(read_user).transpose()
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

    fn erase_user(&self, user: &User, at: Timestamp, until: Timestamp) -> StorageResult<Vec<DeviceId>> {
        let (id, owner): (Param<'_>, Param<'_>) = ((&user.id, Type::UUID), (&user.owner.0, Type::UUID));
        let (at, until) = (at.ms(), until.ms());
        // With those of earlier tries, since a later one does not find them any more.
        let mut all = Vec::new();
        self.looking_up(|session| {
            let transaction = session.begin(Purpose::Write)?;
            let session = &mut *transaction.session;
            session.execute(erase::KEEP_TOKENS, &[id.clone(), (&until, Type::INT8)])?;
            let mut devices = ids(&session.query(erase::DEVICES, std::slice::from_ref(&id))?)?;
            devices.extend(ids(&session.query(erase::INSTALLATIONS, &[owner.clone(), id.clone()])?)?);
            erase::forget_devices(session, user.owner, &devices)?;
            session.execute(erase::ERASE_USER, std::slice::from_ref(&id))?;
            session.execute(erase::QUEUE_OWNER, &[owner.clone(), (&at, Type::INT8)])?;
            all.append(&mut devices);
            transaction.commit()
        })?;
        self.signed_out(SignedOut::User(user.id));
        all.sort_unstable();
        all.dedup();
        Ok(all.into_iter().map(DeviceId).collect())
    }

    fn is_gone(&self, token: &TokenHash, now: Timestamp) -> StorageResult<bool> {
        let params: [Param<'_>; 2] = [(&&token[..], Type::BYTEA), (&now.ms(), Type::INT8)];
        Ok(self.looking_up(|session| session.row(erase::IS_GONE, &params))?.is_some())
    }

    fn forget_gone(&self, now: Timestamp) -> StorageResult<()> {
        let params: [Param<'_>; 1] = [(&now.ms(), Type::INT8)];
        self.looking_up(|session| session.execute(erase::FORGET_GONE, &params)).map(drop)
    }

    fn erasures(&self, owners_max: usize) -> StorageResult<Vec<Erasure>> {
        let limit = i64::try_from(owners_max).unwrap_or(i64::MAX);
        let rows = self.looking_up(|session| session.query(erase::ERASURES, &[(&limit, Type::INT8)]))?;
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

    fn remove_user(&self, email: &str) -> StorageResult<bool> {
        let known = self.user(email)?;
        let removed = self.removed(REMOVE_USER, &[(&email, Type::TEXT)])?;
        known.iter().for_each(|user| self.signed_out(SignedOut::User(user.id)));
        Ok(removed)
    }

    fn put_device(&self, device: &Device, token: &TokenHash) -> StorageResult<bool> {
        let params: [Param<'_>; 6] = [
            (&device.id.0, Type::UUID),
            (&device.user, Type::UUID),
            (&device.name, Type::TEXT),
            (&&token[..], Type::BYTEA),
            (&device.created_at.ms(), Type::INT8),
            (&device.expires_at.ms(), Type::INT8),
        ];
        let is_put = self.looking_up(|session| Ok(session.execute(PUT_DEVICE, &params)? == 1))?;
        if is_put {
            self.signed_out(SignedOut::Device(device.id)); // its older token, if any, is no longer valid
        }
        Ok(is_put)
    }

    fn device(&self, token: &TokenHash) -> StorageResult<Option<Device>> {
        let row = self.looking_up(|session| session.row(DEVICE, &[(&&token[..], Type::BYTEA)]))?;
        row.as_ref().map(read_device).transpose()
    }

    fn devices(&self, user: Uuid) -> StorageResult<Vec<Device>> {
        let rows = self.looking_up(|session| session.query(DEVICES, &[(&user, Type::UUID)]))?;
        rows.iter().map(read_device).collect()
    }

    fn remove_device(&self, user: Uuid, device: DeviceId) -> StorageResult<bool> {
        let params: [Param<'_>; 2] = [(&user, Type::UUID), (&device.0, Type::UUID)];
        let removed = self.removed(REMOVE_DEVICE, &params)?;
        if removed {
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

    fn note_sightings(&self, seen: &[(DeviceId, Sighting)]) -> StorageResult<()> {
        seen.iter().try_for_each(|(device, seen)| {
            let from = seen.from.to_string();
            let params: [Param<'_>; 3] =
                [(&device.0, Type::UUID), (&seen.at.ms(), Type::INT8), (&from, Type::TEXT)];
            self.looking_up(|session| session.execute(NOTE_SIGHTING, &params)).map(drop)
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
        let mut removed: Vec<Uuid> = Vec::new();
        let mut is_again = false;
        self.looking_up(|session| {
            let transaction = session.begin(Purpose::Write)?;
            if !first(transaction.session, is_again)? {
                return Ok(());
            }
            if let Some(kept) = &kept {
                let params: [Param<'_>; 2] = [(&user, Type::UUID), (kept, Type::UUID)];
                removed.extend(ids(&transaction.session.query(REMOVE_OTHER_DEVICES, &params)?)?);
            }
            is_again = true;
            transaction.commit()
        })?;
        removed.sort_unstable();
        removed.dedup();
        let removed: Vec<DeviceId> = removed.into_iter().map(DeviceId).collect();
        removed.iter().for_each(|device| self.signed_out(SignedOut::Device(*device)));
        Ok(removed)
    }

    /// Runs a deletion; returns whether something was deleted.
    fn removed(&self, sql: &str, params: &[Param<'_>]) -> StorageResult<bool> {
        let mut tries = 0;
        self.looking_up(|session| {
            tries += 1;
            // An earlier attempt may have deleted it, and lost the connection before the result arrived.
            Ok(session.execute(sql, params)? == 1 || tries > 1)
        })
    }

    /// The devices of one id.
    pub(super) fn devices_by(&self, sql: &str, id: Uuid) -> StorageResult<Vec<Device>> {
        let rows = self.looking_up(|session| session.query(sql, &[(&id, Type::UUID)]))?;
        rows.iter().map(read_device).collect()
    }
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
        verified_at: row.try_get::<_, Option<i64>>(5).map_err(failed)?.map(Timestamp::from_ms),
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

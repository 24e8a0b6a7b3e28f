//! Users and devices in PostgreSQL: what belongs to one user lies together, and what finds it lies apart. The statements
//! and the steps of several calls are in `account_rows`.

use std::collections::BTreeMap;

use postgres::Row;
use postgres::types::Type;
use uuid::Uuid;

use super::account_rows::{
    ADD_TO_LIST, DEVICE, DEVICE_TOKEN, DEVICES, MEMBERSHIPS, NAMED_OWNERS, NOTE_SIGHTING, OF_EMAIL, OF_TOKEN,
    REMOVE_DEVICE, REMOVE_LIST, REMOVE_USER, REPLACE_PASSWORD, SET_PASSWORD_HASH, SIGHTINGS, TAKE_FROM_LIST,
    TOKENS, USER, USER_OF_ID, USERS, leave_erased, read_device, read_user, remove_rows, tokens,
    unlist_device,
};
use super::connections::Connections;
use super::lookups::{self, Claim, Kind};
use super::owner::first_version;
use super::session::{Param, Purpose, Session};
use super::{erase, mail_tokens, members};
use crate::failure::failed;
use rollcall_core::members::leave;
use rollcall_core::model::{DeviceId, Owner, Role, Timestamp, Version};
use rollcall_core::storage::StorageResult;
use rollcall_core::storage::accounts::{
    AccountStore, Device, Erasure, KeptDevices, MailKind, MailToken, MailTokenUse, MemberChange,
    MemberListener, Seen, Sighting, SignOutListener, SignedOut, Standing, TokenHash, User,
};
use rollcall_core::storage::members::{CodeHash, Membership};

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
            // An earlier attempt may have removed it, and lost the connection before the response.
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

    fn named_owners(&self, named: &[(Owner, Role)]) -> StorageResult<Vec<Membership>> {
        let owners: Vec<Uuid> = named.iter().map(|(owner, _)| owner.0).collect();
        let (rows, first) = self.looking_up(|session| {
            Ok((session.query(NAMED_OWNERS, &[(&owners, Type::UUID_ARRAY)])?, first_version(session)?))
        })?;
        let fresh = |(owner, role): &(Owner, Role)| Membership {
            owner: *owner,
            role: *role,
            name: String::new(),
            version: first,
            is_public: false,
            is_home: false,
        };
        let mut found: BTreeMap<Owner, Membership> = named.iter().map(|one| (one.0, fresh(one))).collect();
        for row in &rows {
            let owner = Owner(row.try_get(0).map_err(failed)?);
            if row.try_get(4).map_err(failed)? {
                found.remove(&owner);
            } else if let Some(one) = found.get_mut(&owner) {
                one.version = Version(row.try_get::<_, i64>(1).map_err(failed)?.cast_unsigned());
                one.name = row.try_get(2).map_err(failed)?;
                one.is_public = row.try_get(3).map_err(failed)?;
            }
        }
        Ok(found.into_values().collect())
    }

    fn standing(&self, user: Uuid, owner: Owner) -> StorageResult<Standing> {
        let of_owner: [Param<'_>; 1] = [(&owner.0, Type::UUID)];
        let of_user: [Param<'_>; 2] = [(&owner.0, Type::UUID), (&user, Type::UUID)];
        // The member comes after the version that it is compared by.
        let (held, member) = self.looking_up(|session| {
            Ok((session.row(members::MEMBERS_AT, &of_owner)?, session.row(members::ROLE, &of_user)?))
        })?;
        let version = |row: &Row, at: usize| row.try_get(at).map(|it: i64| Version(it.cast_unsigned()));
        let role = |row: &Row| StorageResult::Ok((members::role(row, 0)?, version(row, 1).map_err(failed)?));
        Ok(Standing {
            members_at: held.as_ref().map_or(Ok(Version(0)), |row| version(row, 0)).map_err(failed)?,
            is_erased: held.map_or(Ok(false), |row| row.try_get(1)).map_err(failed)?,
            role: member.as_ref().map(role).transpose()?,
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

    fn notify_members_changed(&self, change: MemberChange) {
        self.send_member_change(change);
    }

    fn on_members_changed(&self, listener: MemberListener) {
        self.notify.on_members_changed(listener);
    }
}

//! Users and devices in SQLite: one function for each method of [`AccountStore`].
//!
//! Each runs in a transaction of the caller's. The connection must have
//! `foreign_keys` on: a removed user takes its devices along by cascade.
//!
//! [`AccountStore`]: rollcall_core::storage::AccountStore

use rusqlite::{Connection, OptionalExtension, Row, params};
use uuid::Uuid;

use super::members;
use rollcall_core::model::{DeviceId, Owner, Role, Timestamp, Version};
use rollcall_core::storage::accounts::{
    Device, Erasure, KeptDevices, Seen, Sighting, Standing, TokenHash, User,
};
use rollcall_core::storage::members::{CodeHash, Membership};

const ADD_USER: &str =
    "INSERT INTO rollcall_user (id, email, password_hash, owner, created_at, home, verified_at)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) ON CONFLICT (email) DO NOTHING";

const USER: &str = "SELECT id, email, password_hash, owner, created_at, home, verified_at FROM rollcall_user WHERE email = ?1";

const USER_OF_ID: &str =
    "SELECT id, email, password_hash, owner, created_at, home, verified_at FROM rollcall_user WHERE id = ?1";

const USERS: &str =
    "SELECT id, email, password_hash, owner, created_at, home, verified_at FROM rollcall_user ORDER BY email";

const SET_PASSWORD_HASH: &str =
    "UPDATE rollcall_user SET password_hash = ?3 WHERE id = ?1 AND password_hash = ?2";

const REPLACE_PASSWORD: &str = "UPDATE rollcall_user SET password_hash = ?2, reset_hash = NULL, \
    reset_until = NULL WHERE id = ?1";

// No device has the nil id, so with it every device goes.
const REMOVE_OTHER_DEVICES: &str = "DELETE FROM rollcall_device WHERE user = ?1 AND id <> ?2 RETURNING id";

const REMOVE_USER: &str = "DELETE FROM rollcall_user WHERE email = ?1";

// The WHERE prevents that a user takes over another user's device: it turns the conflict into a no-op.
const PUT_DEVICE: &str = "INSERT INTO rollcall_device (id, user, name, token_hash, created_at, expires_at)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6)
    ON CONFLICT (id) DO UPDATE SET name = excluded.name, token_hash = excluded.token_hash,
        expires_at = excluded.expires_at
    WHERE user = excluded.user";

const DEVICE: &str = "SELECT d.id, d.user, u.owner, d.name, d.created_at, d.expires_at
    FROM rollcall_device d JOIN rollcall_user u ON u.id = d.user WHERE d.token_hash = ?1";

const DEVICES: &str = "SELECT d.id, d.user, u.owner, d.name, d.created_at, d.expires_at
    FROM rollcall_device d JOIN rollcall_user u ON u.id = d.user
    WHERE d.user = ?1 ORDER BY d.created_at, d.id";

pub(super) const DEVICES_OF_OWNER: &str = "SELECT d.id, d.user, u.owner, d.name, d.created_at, d.expires_at
    FROM rollcall_member m JOIN rollcall_user u ON u.id = m.user_id JOIN rollcall_device d ON d.user = u.id
    WHERE m.owner = ?1";

pub(super) const DEVICE_OF_ID: &str = "SELECT d.id, d.user, u.owner, d.name, d.created_at, d.expires_at
    FROM rollcall_device d JOIN rollcall_user u ON u.id = d.user WHERE d.id = ?1";

const REMOVE_DEVICE: &str = "DELETE FROM rollcall_device WHERE id = ?2 AND user = ?1";

const SIGHTINGS: &str =
    "SELECT id, seen_at, seen_from FROM rollcall_device WHERE user = ?1 AND seen_at IS NOT NULL";

const NOTE_SIGHTING: &str =
    "UPDATE rollcall_device SET seen_at = ?3, seen_from = ?4 WHERE id = ?2 AND user = ?1";

const ADD_FIRST_MEMBER: &str = "INSERT INTO rollcall_member (owner, user_id, role, since, name, joined_at)
    SELECT ?1, ?2, 3, 0, '', ?3 WHERE NOT EXISTS (SELECT 1 FROM rollcall_member WHERE owner = ?1)";

/// The owners of a user. One that nothing was written for yet has no row of its own.
const OWNERS_OF: &str = "SELECT m.owner, m.role, coalesce(o.name, ''), o.version, coalesce(o.public, 0),
      EXISTS (SELECT 1 FROM rollcall_user u WHERE u.id = m.user_id AND u.owner = m.owner AND u.home)
    FROM rollcall_member m LEFT JOIN rollcall_owner o ON o.owner = m.owner
    WHERE m.user_id = ?1 AND o.erased_at IS NULL ORDER BY m.owner";

const NAMED_OWNER: &str =
    "SELECT name, version, public, erased_at IS NOT NULL FROM rollcall_owner WHERE owner = ?1";

const MEMBERS_AT: &str = "SELECT members_at, erased_at IS NOT NULL FROM rollcall_owner WHERE owner = ?1";

/// Whose memberships those are; erased owners too.
const MEMBER_OF: &str = "SELECT owner FROM rollcall_member WHERE user_id = ?1";

const INVITED_TO: &str = "SELECT owner FROM rollcall_invitation WHERE code = ?1";

const FORGET_INVITATIONS: &str = "DELETE FROM rollcall_invitation WHERE (owner, id) IN
    (SELECT owner, id FROM rollcall_invitation WHERE expires_at < ?1 LIMIT ?2)";

/// When and from where a user's devices were last seen; an address that cannot be read is skipped.
pub(super) fn sightings(conn: &Connection, user: Uuid) -> rusqlite::Result<Vec<(DeviceId, Sighting)>> {
    let mut statement = conn.prepare_cached(SIGHTINGS)?;
    let rows = statement.query_map([user.as_bytes()], |row| {
        let from = row.get_ref(2)?.as_str_or_null()?.and_then(|text| text.parse().ok());
        let at = Timestamp::from_ms(row.get(1)?);
        Ok(from.map(|from| Ok::<_, rusqlite::Error>((DeviceId(read_uuid(row, 0)?), Sighting { at, from }))))
    })?;
    rows.filter_map(Result::transpose).map(|row| row?).collect()
}

/// Stores when and from where devices were last seen.
pub(super) fn note_sightings(conn: &Connection, seen: &[Seen]) -> rusqlite::Result<()> {
    let mut statement = conn.prepare_cached(NOTE_SIGHTING)?;
    for (user, device, seen) in seen {
        let from = seen.from.to_string();
        statement.execute(params![user.as_bytes(), device.0.as_bytes(), seen.at.ms(), from])?;
    }
    Ok(())
}

/// Adds a user; `false` if the email is taken.
pub(super) fn add_user(conn: &Connection, user: &User) -> rusqlite::Result<bool> {
    let rows = conn.prepare_cached(ADD_USER)?.execute(params![
        user.id.as_bytes(),
        user.email,
        user.password_hash,
        user.owner.0.as_bytes(),
        user.created_at.ms(),
        user.is_home,
        user.verified_at.map(Timestamp::ms)
    ])?;
    Ok(rows == 1)
}

pub(super) fn user(conn: &Connection, email: &str) -> rusqlite::Result<Option<User>> {
    conn.prepare_cached(USER)?.query_row([email], read_user).optional()
}

pub(super) fn users(conn: &Connection) -> rusqlite::Result<Vec<User>> {
    conn.prepare_cached(USERS)?.query_map([], read_user)?.collect()
}

/// The user of that id.
pub(super) fn user_of(conn: &Connection, id: Uuid) -> rusqlite::Result<Option<User>> {
    conn.prepare_cached(USER_OF_ID)?.query_row([id.as_bytes()], read_user).optional()
}

/// Replaces a password hash by another one of the same password, if it is `was` still.
pub(super) fn set_password_hash(
    conn: &Connection,
    user: Uuid,
    was: &str,
    hash: &str,
) -> rusqlite::Result<()> {
    conn.prepare_cached(SET_PASSWORD_HASH)?.execute(params![user.as_bytes(), was, hash])?;
    Ok(())
}

/// Replaces a password hash, and removes the devices that are not kept. Within a transaction.
pub(super) fn replace_password(
    conn: &Connection,
    user: Uuid,
    hash: &str,
    keep: KeptDevices,
) -> rusqlite::Result<Vec<DeviceId>> {
    conn.prepare_cached(REPLACE_PASSWORD)?.execute(params![user.as_bytes(), hash])?;
    match keep {
        KeptDevices::All => Ok(Vec::new()),
        KeptDevices::One(device) => remove_other_devices(conn, user, device),
        KeptDevices::None => remove_other_devices(conn, user, DeviceId(Uuid::nil())),
    }
}

/// Remembers the tokens of a user's devices.
const KEEP_TOKENS: &str = "INSERT INTO rollcall_gone (token_hash, until) \
    SELECT token_hash, ?2 FROM rollcall_device WHERE user = ?1 ON CONFLICT DO NOTHING";

/// The devices of a user, and what they call themselves for an owner.
const IDS_OF_DEVICES: &str = "SELECT id FROM rollcall_device WHERE user = ?1 UNION SELECT device \
    FROM rollcall_installation WHERE user_id = ?1 AND owner = (SELECT id FROM rollcall_owner WHERE owner = ?2)";

/// The ledger names a device by its number. Under another id nothing leads from it to the user.
const RENAME_WRITER: &str = "UPDATE rollcall_writer SET device = randomblob(16) WHERE device = ?1";

const ERASE_USER: &str = "DELETE FROM rollcall_user WHERE id = ?1";

/// What is stored of a device for an owner beside the rows. Parameters: owner, device.
const FORGET_DEVICE: [&str; 4] = [
    "DELETE FROM rollcall_ack WHERE owner = (SELECT id FROM rollcall_owner WHERE owner = ?1) AND device = ?2",
    "DELETE FROM rollcall_answer WHERE owner = (SELECT id FROM rollcall_owner WHERE owner = ?1) AND device = ?2",
    "DELETE FROM rollcall_installation WHERE owner = (SELECT id FROM rollcall_owner WHERE owner = ?1) AND device = ?2",
    "DELETE FROM rollcall_delete_window WHERE owner = (SELECT id FROM rollcall_owner WHERE owner = ?1) AND device = ?2",
];

const IS_GONE: &str = "SELECT 1 FROM rollcall_gone WHERE token_hash = ?1 AND until > ?2";
const FORGET_GONE: &str = "DELETE FROM rollcall_gone WHERE until <= ?1";
const ERASURES: &str = "SELECT owner, erased_at FROM rollcall_owner INDEXED BY rollcall_owner_erased \
     WHERE erased_at IS NOT NULL AND owner > ?1 ORDER BY owner LIMIT ?2";
const END_ERASURE: &str = "DELETE FROM rollcall_owner WHERE owner = ?1 AND erased_at IS NOT NULL";

/// Removes what is stored of a user's devices for an owner beside the rows; returns the devices.
pub(super) fn forget_devices(conn: &Connection, owner: Owner, user: Uuid) -> rusqlite::Result<Vec<DeviceId>> {
    let (id, owner) = (user.as_bytes(), owner.0.as_bytes());
    let devices: Vec<DeviceId> = {
        let mut statement = conn.prepare_cached(IDS_OF_DEVICES)?;
        let found = statement.query_map(params![id, owner], |row| Ok(DeviceId(read_uuid(row, 0)?)))?;
        found.collect::<rusqlite::Result<_>>()?
    };
    for device in &devices {
        conn.prepare_cached(RENAME_WRITER)?.execute([device.0.as_bytes()])?;
        for sql in FORGET_DEVICE {
            conn.prepare_cached(sql)?.execute(params![owner, device.0.as_bytes()])?;
        }
    }
    Ok(devices)
}

/// Removes a user with all devices, and keeps the hashes of their tokens until then. Within a transaction.
pub(super) fn erase_user(conn: &Connection, user: Uuid, until: Timestamp) -> rusqlite::Result<()> {
    conn.prepare_cached(KEEP_TOKENS)?.execute(params![user.as_bytes(), until.ms()])?;
    conn.prepare_cached(ERASE_USER)?.execute([user.as_bytes()]).map(drop)
}

/// Whether a token was that of an erased user.
pub(super) fn is_gone(conn: &Connection, token: &TokenHash, now: Timestamp) -> rusqlite::Result<bool> {
    conn.prepare_cached(IS_GONE)?.exists(params![token, now.ms()])
}

/// Forgets tokens of erased users.
pub(super) fn forget_gone(conn: &Connection, now: Timestamp) -> rusqlite::Result<()> {
    conn.prepare_cached(FORGET_GONE)?.execute([now.ms()]).map(drop)
}

/// Owners whose rows are to be erased.
pub(super) fn erasures(
    conn: &Connection,
    after: Option<Owner>,
    owners_max: usize,
) -> rusqlite::Result<Vec<Erasure>> {
    let limit = i64::try_from(owners_max).unwrap_or(i64::MAX);
    let after = after.map_or(uuid::Uuid::nil(), |owner| owner.0);
    let mut statement = conn.prepare_cached(ERASURES)?;
    let found = statement.query_map(params![after.as_bytes(), limit], |row| {
        Ok(Erasure { owner: Owner(read_uuid(row, 0)?), since: Timestamp::from_ms(row.get(1)?) })
    })?;
    found.collect()
}

/// Removes an erased owner.
pub(super) fn end_erasure(conn: &Connection, owner: Owner) -> rusqlite::Result<()> {
    conn.prepare_cached(END_ERASURE)?.execute([owner.0.as_bytes()]).map(drop)
}

/// Removes a user's devices except one; returns them.
pub(super) fn remove_other_devices(
    conn: &Connection,
    user: Uuid,
    keep: DeviceId,
) -> rusqlite::Result<Vec<DeviceId>> {
    let mut statement = conn.prepare_cached(REMOVE_OTHER_DEVICES)?;
    let removed = statement
        .query_map(params![user.as_bytes(), keep.0.as_bytes()], |row| Ok(DeviceId(read_uuid(row, 0)?)))?;
    removed.collect()
}

/// Removes a user with all its devices; `false` if no such user exists.
pub(super) fn remove_user(conn: &Connection, email: &str) -> rusqlite::Result<bool> {
    Ok(conn.prepare_cached(REMOVE_USER)?.execute([email])? == 1)
}

/// Makes a user the first member of its owner; `false` if the owner has members.
pub(super) fn add_first_member(conn: &Connection, user: &User) -> rusqlite::Result<bool> {
    let params = params![user.owner.0.as_bytes(), user.id.as_bytes(), user.created_at.ms()];
    Ok(conn.prepare_cached(ADD_FIRST_MEMBER)?.execute(params)? == 1)
}

/// What a user is to an owner.
pub(super) fn standing(conn: &Connection, user: Uuid, owner: Owner) -> rusqlite::Result<Standing> {
    let owner = owner.0.as_bytes();
    let held = conn
        .prepare_cached(MEMBERS_AT)?
        .query_row([owner], |row| Ok((Version(row.get::<_, i64>(0)?.cast_unsigned()), row.get(1)?)))
        .optional()?;
    // The member comes after the version that it is compared by.
    let member = conn
        .prepare_cached(members::MEMBER)?
        .query_row(params![owner, user.as_bytes()], members::member)
        .optional()?;
    let (members_at, is_erased) = held.unwrap_or((Version(0), false));
    Ok(Standing { members_at, is_erased, role: member.map(|member| (member.role, member.since)) })
}

/// The owners that a user is a member of; `first` is the version of one that nothing was written for.
pub(super) fn owners_of(conn: &Connection, user: Uuid, first: Version) -> rusqlite::Result<Vec<Membership>> {
    let mut statement = conn.prepare_cached(OWNERS_OF)?;
    let owners = statement.query_map([user.as_bytes()], |row| {
        let version = row.get::<_, Option<i64>>(3)?.map(|version| Version(version.cast_unsigned()));
        Ok(Membership {
            owner: Owner(read_uuid(row, 0)?),
            role: members::role(row, 1)?,
            name: row.get(2)?,
            version: version.unwrap_or(first),
            is_public: row.get(4)?,
            is_home: row.get(5)?,
        })
    })?;
    owners.collect()
}

/// The owners that a token names, without those that were erased; `first` is the version of one that nothing was
/// written for.
pub(super) fn named_owners(
    conn: &Connection,
    named: &[(Owner, Role)],
    first: Version,
) -> rusqlite::Result<Vec<Membership>> {
    let mut statement = conn.prepare_cached(NAMED_OWNER)?;
    let mut found = Vec::with_capacity(named.len());
    for (owner, role) in named {
        let (owner, role) = (*owner, *role);
        let of_row = |row: &Row<'_>| {
            let version = Version(row.get::<_, i64>(1)?.cast_unsigned());
            let name = row.get(0)?;
            let one = Membership { owner, role, name, version, is_public: row.get(2)?, is_home: false };
            Ok((!row.get::<_, bool>(3)?).then_some(one))
        };
        let fresh = || {
            let name = String::new();
            Some(Membership { owner, role, name, version: first, is_public: false, is_home: false })
        };
        found.extend(statement.query_row([owner.0.as_bytes()], of_row).optional()?.unwrap_or_else(fresh));
    }
    Ok(found)
}

/// The owners that a user is a member of, erased or not.
pub(super) fn member_of(conn: &Connection, user: Uuid) -> rusqlite::Result<Vec<Owner>> {
    let mut statement = conn.prepare_cached(MEMBER_OF)?;
    statement.query_map([user.as_bytes()], |row| Ok(Owner(read_uuid(row, 0)?)))?.collect()
}

/// The owner that a code is an invitation of.
pub(super) fn invited_to(conn: &Connection, code: &CodeHash) -> rusqlite::Result<Option<Owner>> {
    let mut statement = conn.prepare_cached(INVITED_TO)?;
    statement.query_row([code], |row| Ok(Owner(read_uuid(row, 0)?))).optional()
}

/// Removes invitations that expired before `now`.
pub(super) fn forget_invitations(conn: &Connection, now: Timestamp, most: usize) -> rusqlite::Result<usize> {
    let most = i64::try_from(most).unwrap_or(i64::MAX);
    conn.prepare_cached(FORGET_INVITATIONS)?.execute(params![now.ms(), most])
}

/// Adds a device, or gives a known device of the same user a new token, name and expiry.
///
/// Returns `false` if the id belongs to another user. A device of a removed user violates the foreign key.
pub(super) fn put_device(conn: &Connection, device: &Device, token: &TokenHash) -> rusqlite::Result<bool> {
    let rows = conn.prepare_cached(PUT_DEVICE)?.execute(params![
        device.id.0.as_bytes(),
        device.user.as_bytes(),
        device.name,
        token,
        device.created_at.ms(),
        device.expires_at.ms()
    ])?;
    Ok(rows == 1)
}

/// The device that a token belongs to, expired or not.
pub(super) fn device(conn: &Connection, token: &TokenHash) -> rusqlite::Result<Option<Device>> {
    conn.prepare_cached(DEVICE)?.query_row([token], read_device).optional()
}

/// A user's devices, oldest first.
pub(super) fn devices(conn: &Connection, user: Uuid) -> rusqlite::Result<Vec<Device>> {
    conn.prepare_cached(DEVICES)?.query_map([user.as_bytes()], read_device)?.collect()
}

pub(super) fn devices_of(conn: &Connection, owner: Owner) -> rusqlite::Result<Vec<Device>> {
    conn.prepare_cached(DEVICES_OF_OWNER)?.query_map([owner.0.as_bytes()], read_device)?.collect()
}

pub(super) fn device_of_id(conn: &Connection, device: DeviceId) -> rusqlite::Result<Option<Device>> {
    conn.prepare_cached(DEVICE_OF_ID)?.query_row([device.0.as_bytes()], read_device).optional()
}

/// Deletes a device; `false` if the user has no such device.
pub(super) fn remove_device(conn: &Connection, user: Uuid, device: DeviceId) -> rusqlite::Result<bool> {
    Ok(conn.prepare_cached(REMOVE_DEVICE)?.execute(params![user.as_bytes(), device.0.as_bytes()])? == 1)
}

fn read_user(row: &Row<'_>) -> rusqlite::Result<User> {
    Ok(User {
        id: read_uuid(row, 0)?,
        email: row.get(1)?,
        password_hash: row.get(2)?,
        owner: Owner(read_uuid(row, 3)?),
        created_at: Timestamp::from_ms(row.get(4)?),
        is_home: row.get(5)?,
        verified_at: row.get::<_, Option<i64>>(6)?.map(Timestamp::from_ms),
    })
}

fn read_device(row: &Row<'_>) -> rusqlite::Result<Device> {
    Ok(Device {
        id: DeviceId(read_uuid(row, 0)?),
        user: read_uuid(row, 1)?,
        owner: Owner(read_uuid(row, 2)?),
        name: row.get(3)?,
        created_at: Timestamp::from_ms(row.get(4)?),
        expires_at: Timestamp::from_ms(row.get(5)?),
    })
}

fn read_uuid(row: &Row<'_>, column: usize) -> rusqlite::Result<Uuid> {
    Ok(Uuid::from_bytes(row.get(column)?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::statements::tests::steps;

    fn open() -> Connection {
        let mut conn = Connection::open_in_memory().unwrap();
        conn.pragma_update(None, "foreign_keys", true).unwrap();
        crate::migrate::migrate(&mut conn, std::path::Path::new("memory")).unwrap();
        conn
    }

    fn anna() -> User {
        User {
            id: Uuid::from_u128(1),
            email: "anna@example.org".into(),
            password_hash: "$argon2id$...".into(),
            owner: Owner(Uuid::from_u128(11)),
            is_home: true,
            created_at: Timestamp::from_ms(1_000),
            verified_at: None,
        }
    }

    fn bert() -> User {
        User { id: Uuid::from_u128(2), email: "bert@example.org".into(), ..anna() }
    }

    fn device_of(user: &User, id: u128, created_ms: i64) -> Device {
        Device {
            id: DeviceId(Uuid::from_u128(id)),
            user: user.id,
            owner: user.owner,
            name: format!("phone {id}"),
            created_at: Timestamp::from_ms(created_ms),
            expires_at: Timestamp::from_ms(created_ms + 500),
        }
    }

    #[test]
    fn a_user_reads_back_as_written_and_an_email_is_taken_once() {
        let conn = open();
        assert!(add_user(&conn, &bert()).unwrap());
        assert!(add_user(&conn, &anna()).unwrap());
        assert!(!add_user(&conn, &User { id: Uuid::from_u128(3), ..anna() }).unwrap());
        assert_eq!(user(&conn, "anna@example.org").unwrap(), Some(anna()));
        assert_eq!(user(&conn, "nobody@example.org").unwrap(), None);
        assert_eq!(users(&conn).unwrap(), [anna(), bert()]);
        set_password_hash(&conn, anna().id, "$another", "late").unwrap();
        assert_eq!(user_of(&conn, anna().id).unwrap(), Some(anna()));
        set_password_hash(&conn, anna().id, &anna().password_hash, "new").unwrap();
        assert_eq!(user(&conn, "anna@example.org").unwrap().unwrap().password_hash, "new");
        assert_eq!(user(&conn, "bert@example.org").unwrap(), Some(bert()));
    }

    #[test]
    fn a_device_keeps_its_first_log_in_and_only_its_last_token() {
        let conn = open();
        add_user(&conn, &anna()).unwrap();
        let first = device_of(&anna(), 5, 100);
        assert!(put_device(&conn, &first, &[1; 32]).unwrap());
        assert_eq!(device(&conn, &[1; 32]).unwrap(), Some(first.clone()));

        let again = Device { name: "tablet".into(), ..device_of(&anna(), 5, 900) };
        assert!(put_device(&conn, &again, &[2; 32]).unwrap());
        assert_eq!(device(&conn, &[1; 32]).unwrap(), None);
        let expected = Device { created_at: first.created_at, ..again };
        assert_eq!(device(&conn, &[2; 32]).unwrap(), Some(expected));
    }

    #[test]
    fn nobody_takes_over_or_removes_the_device_of_another() {
        let conn = open();
        add_user(&conn, &anna()).unwrap();
        add_user(&conn, &bert()).unwrap();
        let hers = device_of(&anna(), 5, 100);
        put_device(&conn, &hers, &[1; 32]).unwrap();

        assert!(!put_device(&conn, &device_of(&bert(), 5, 200), &[2; 32]).unwrap());
        assert_eq!(device(&conn, &[2; 32]).unwrap(), None);
        assert!(!remove_device(&conn, bert().id, hers.id).unwrap());
        assert_eq!(device(&conn, &[1; 32]).unwrap(), Some(hers.clone()));

        assert!(remove_device(&conn, anna().id, hers.id).unwrap());
        assert!(!remove_device(&conn, anna().id, hers.id).unwrap());
    }

    #[test]
    fn a_password_is_replaced_and_devices_go_except_those_that_are_kept() {
        let conn = open();
        add_user(&conn, &anna()).unwrap();
        add_user(&conn, &bert()).unwrap();
        let put = |id: u8, user: &User| {
            let device = device_of(user, u128::from(id), 100);
            put_device(&conn, &device, &[id; 32]).unwrap();
            device.id
        };
        let (phone, tablet, laptop, his) =
            (put(5, &anna()), put(6, &anna()), put(7, &anna()), put(8, &bert()));
        let replace = |hash: &str, keep| {
            let mut removed = replace_password(&conn, anna().id, hash, keep).unwrap();
            removed.sort();
            removed
        };
        assert_eq!(replace("second", KeptDevices::All), []);
        assert_eq!(replace("third", KeptDevices::One(phone)), [tablet, laptop]);
        assert_eq!(user_of(&conn, anna().id).unwrap().unwrap().password_hash, "third");
        assert_eq!(remove_other_devices(&conn, anna().id, his).unwrap(), [phone]);
        assert_eq!(replace("fourth", KeptDevices::None), []);
        assert!(device(&conn, &[8; 32]).unwrap().is_some(), "another user's device is gone");
        assert_eq!(user_of(&conn, bert().id).unwrap(), Some(bert()));
    }

    #[test]
    fn devices_come_oldest_first_and_go_with_their_user() {
        let conn = open();
        add_user(&conn, &anna()).unwrap();
        add_user(&conn, &bert()).unwrap();
        let (young, old, his) =
            (device_of(&anna(), 5, 300), device_of(&anna(), 9, 100), device_of(&bert(), 7, 200));
        for (n, each) in [&young, &old, &his].into_iter().enumerate() {
            put_device(&conn, each, &[u8::try_from(n).unwrap(); 32]).unwrap();
        }
        assert_eq!(devices(&conn, anna().id).unwrap(), [old, young]);

        assert!(remove_user(&conn, "anna@example.org").unwrap());
        assert!(!remove_user(&conn, "anna@example.org").unwrap());
        assert_eq!(device(&conn, &[0; 32]).unwrap(), None);
        assert_eq!(devices(&conn, anna().id).unwrap(), []);
        assert_eq!(devices(&conn, bert().id).unwrap(), [his]);
    }

    /// Goal: no request costs more as users grow. Method: SQLite's own plan of every statement.
    #[test]
    fn every_statement_finds_its_rows_by_index() {
        let conn = open();
        let statements =
            [ADD_USER, USER, SET_PASSWORD_HASH, REMOVE_USER, PUT_DEVICE, DEVICE, DEVICES, REMOVE_DEVICE];
        for sql in statements.into_iter().chain([
            SIGHTINGS,
            NOTE_SIGHTING,
            USER_OF_ID,
            REPLACE_PASSWORD,
            REMOVE_OTHER_DEVICES,
            ADD_FIRST_MEMBER,
            OWNERS_OF,
            NAMED_OWNER,
            MEMBERS_AT,
            MEMBER_OF,
            INVITED_TO,
            FORGET_INVITATIONS,
            ERASURES,
            END_ERASURE,
        ]) {
            let plan = steps(&conn, sql).join("; ");
            let rest = plan.replace("SCAN CONSTANT ROW", "");
            assert!(!rest.contains("SCAN") && !rest.contains("TEMP B-TREE"), "{sql}: {plan}");
        }
    }
}

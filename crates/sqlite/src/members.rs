//! Members and invitations of an owner. They go by the owner's id and not by its number: an owner may have a member
//! before anything is written for it.

use rusqlite::{OptionalExtension as _, Row, params};
use uuid::Uuid;

use super::txn::Txn;
use super::values;
use crate::failed;
use rollcall_core::model::{Role, Timestamp, Version};
use rollcall_core::storage::{Invitation, Member, MemberReads, MemberWrites, StorageResult};

pub(super) const MEMBER: &str =
    "SELECT user_id, role, since, name, joined_at FROM rollcall_member WHERE owner = ?1 AND user_id = ?2";
pub(super) const MEMBERS: &str = "SELECT user_id, role, since, name, joined_at FROM rollcall_member \
     WHERE owner = ?1 AND user_id > ?2 ORDER BY user_id LIMIT ?3";
pub(super) const COUNT: &str = "SELECT count(*) FROM rollcall_member WHERE owner = ?1";
pub(super) const FIRST_OF_ROLE: &str = "SELECT user_id, role, since, name, joined_at FROM rollcall_member \
     WHERE owner = ?1 AND role = ?2 AND user_id <> ?3 ORDER BY joined_at, user_id LIMIT 1";
pub(super) const PUT: &str = "INSERT INTO rollcall_member (owner, user_id, role, since, name, joined_at) \
     VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT (owner, user_id) DO UPDATE SET role = excluded.role, \
     since = excluded.since, name = excluded.name, joined_at = excluded.joined_at";
pub(super) const REMOVE: &str = "DELETE FROM rollcall_member WHERE owner = ?1 AND user_id = ?2";

pub(super) const NAME: &str = "SELECT name FROM rollcall_owner WHERE owner = ?1";
pub(super) const PUT_NAME: &str = "UPDATE rollcall_owner SET name = ?2 WHERE owner = ?1";

pub(super) const INVITATIONS: &str = "SELECT id, code, role, made_by, made_at, expires_at, uses_left \
     FROM rollcall_invitation WHERE owner = ?1 ORDER BY made_at, id";
pub(super) const PUT_INVITATION: &str = "INSERT INTO rollcall_invitation \
     (owner, id, code, role, made_by, made_at, expires_at, uses_left) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8) \
     ON CONFLICT (owner, id) DO UPDATE SET uses_left = excluded.uses_left";
pub(super) const REMOVE_INVITATION: &str = "DELETE FROM rollcall_invitation WHERE owner = ?1 AND id = ?2";

impl MemberReads for Txn<'_> {
    fn member(&mut self, user: Uuid) -> StorageResult<Option<Member>> {
        let mut statement = self.conn.prepare_cached(MEMBER).map_err(failed)?;
        let params = params![self.whose.0.as_bytes(), user.as_bytes()];
        statement.query_row(params, member).optional().map_err(failed)
    }

    fn members(&mut self, after: Option<Uuid>, members_max: usize) -> StorageResult<Vec<Member>> {
        // Every id is greater than the empty blob.
        let after = after.as_ref().map_or(&[][..], |user| user.as_bytes());
        let limit = i64::try_from(members_max).unwrap_or(i64::MAX);
        let mut statement = self.conn.prepare_cached(MEMBERS).map_err(failed)?;
        let params = params![self.whose.0.as_bytes(), after, limit];
        let members = statement.query_map(params, member).map_err(failed)?;
        members.collect::<Result<_, _>>().map_err(failed)
    }

    fn member_count(&mut self) -> StorageResult<u64> {
        let mut statement = self.conn.prepare_cached(COUNT).map_err(failed)?;
        let count = statement.query_row([self.whose.0.as_bytes()], |row| row.get::<_, i64>(0));
        count.map(i64::cast_unsigned).map_err(failed)
    }

    fn first_of(&mut self, role: Role, except: Uuid) -> StorageResult<Option<Member>> {
        let mut statement = self.conn.prepare_cached(FIRST_OF_ROLE).map_err(failed)?;
        let params = params![self.whose.0.as_bytes(), role.number(), except.as_bytes()];
        statement.query_row(params, member).optional().map_err(failed)
    }

    fn owner_name(&mut self) -> StorageResult<String> {
        let mut statement = self.conn.prepare_cached(NAME).map_err(failed)?;
        let name = statement.query_row([self.whose.0.as_bytes()], |row| row.get(0)).optional();
        Ok(name.map_err(failed)?.unwrap_or_default())
    }

    fn invitations(&mut self) -> StorageResult<Vec<Invitation>> {
        let mut statement = self.conn.prepare_cached(INVITATIONS).map_err(failed)?;
        let found = statement.query_map([self.whose.0.as_bytes()], invitation).map_err(failed)?;
        found.collect::<Result<_, _>>().map_err(failed)
    }
}

impl MemberWrites for Txn<'_> {
    fn put_member(&mut self, member: &Member) -> StorageResult<()> {
        let mut statement = self.conn.prepare_cached(PUT).map_err(failed)?;
        let params = params![
            self.whose.0.as_bytes(),
            member.user.as_bytes(),
            member.role.number(),
            member.since.0.cast_signed(),
            member.name,
            member.joined_at.ms()
        ];
        statement.execute(params).map(drop).map_err(failed)
    }

    fn remove_member(&mut self, user: Uuid) -> StorageResult<bool> {
        let mut statement = self.conn.prepare_cached(REMOVE).map_err(failed)?;
        let params = params![self.whose.0.as_bytes(), user.as_bytes()];
        statement.execute(params).map(|rows| rows > 0).map_err(failed)
    }

    fn name_owner(&mut self, name: &str) -> StorageResult<()> {
        let mut statement = self.conn.prepare_cached(PUT_NAME).map_err(failed)?;
        statement.execute(params![self.whose.0.as_bytes(), name]).map(drop).map_err(failed)
    }

    fn put_invitation(&mut self, one: &Invitation) -> StorageResult<()> {
        let mut statement = self.conn.prepare_cached(PUT_INVITATION).map_err(failed)?;
        let params = params![
            self.whose.0.as_bytes(),
            one.id.as_bytes(),
            one.code,
            one.role.number(),
            one.made_by.as_bytes(),
            one.made_at.ms(),
            one.expires_at.ms(),
            one.uses_left
        ];
        statement.execute(params).map(drop).map_err(failed)
    }

    fn remove_invitation(&mut self, id: Uuid) -> StorageResult<bool> {
        let mut statement = self.conn.prepare_cached(REMOVE_INVITATION).map_err(failed)?;
        let params = params![self.whose.0.as_bytes(), id.as_bytes()];
        statement.execute(params).map(|rows| rows > 0).map_err(failed)
    }
}

/// The role of a number that the database keeps.
pub(super) fn role(row: &Row<'_>, at: usize) -> rusqlite::Result<Role> {
    let number = row.get(at)?;
    Role::of_number(number).ok_or(rusqlite::Error::IntegralValueOutOfRange(at, number))
}

pub(super) fn member(row: &Row<'_>) -> rusqlite::Result<Member> {
    Ok(Member {
        user: values::uuid(row.get_ref(0)?)?,
        role: role(row, 1)?,
        since: Version(row.get::<_, i64>(2)?.cast_unsigned()),
        name: row.get(3)?,
        joined_at: Timestamp::from_ms(row.get(4)?),
    })
}

fn invitation(row: &Row<'_>) -> rusqlite::Result<Invitation> {
    Ok(Invitation {
        id: values::uuid(row.get_ref(0)?)?,
        code: row.get(1)?,
        role: role(row, 2)?,
        made_by: values::uuid(row.get_ref(3)?)?,
        made_at: Timestamp::from_ms(row.get(4)?),
        expires_at: Timestamp::from_ms(row.get(5)?),
        uses_left: row.get(6)?,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use rusqlite::Connection;

    use super::*;
    use crate::migrate::migrate;
    use crate::statements::tests::steps;

    /// Goal: no statement costs more as owners and members grow, but for those that count or list an owner's. Method:
    /// SQLite's own plans.
    #[test]
    fn every_statement_finds_its_rows_by_index() {
        let mut conn = Connection::open_in_memory().unwrap();
        migrate(&mut conn, std::path::Path::new("memory")).unwrap();
        let statements = [MEMBER, MEMBERS, COUNT, FIRST_OF_ROLE, PUT, REMOVE, NAME, PUT_NAME, PUT_INVITATION];
        for sql in statements.into_iter().chain([REMOVE_INVITATION]) {
            let plan = steps(&conn, sql).join("; ");
            assert!(!plan.contains("SCAN") && !plan.contains("TEMP B-TREE"), "{sql}: {plan}");
        }
    }
}

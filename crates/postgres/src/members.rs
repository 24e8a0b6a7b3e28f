//! Members and invitations of an owner: rows beside the owner's others.

use postgres::Row;
use postgres::types::Type;
use uuid::Uuid;

use super::connections::Connections;
use super::session::{Param, Purpose};
use super::statements::Statements;
use super::txn::{Txn, successor};
use crate::failure::failed;
use rollcall_core::model::{Owner, Role, Timestamp, Version};
use rollcall_core::schema::Schema;
use rollcall_core::storage::members::CodeHash;
use rollcall_core::storage::{
    Invitation, Member, MemberReads, MemberWrites, ReadTxn as _, StorageError, StorageResult,
};

/// What one user is.
pub const MEMBER: &str =
    "SELECT user_id, role, since, name, joined_at FROM rollcall_member WHERE owner = $1 AND user_id = $2";
/// When the members of an owner last changed, and whether it is erased.
pub(super) const MEMBERS_AT: &str =
    "SELECT members_at, erased_at IS NOT NULL FROM rollcall_owner WHERE owner = $1";
/// The role of one user.
pub(super) const ROLE: &str = "SELECT role, since FROM rollcall_member WHERE owner = $1 AND user_id = $2";
/// A page of them.
pub const MEMBERS: &str = "SELECT user_id, role, since, name, joined_at FROM rollcall_member \
     WHERE owner = $1 AND user_id >= $2 ORDER BY user_id LIMIT $3";
/// How many they are.
pub const COUNT: &str = "SELECT count(*) FROM rollcall_member WHERE owner = $1";
/// Who of a role joined first.
pub const FIRST_OF_ROLE: &str = "SELECT user_id, role, since, name, joined_at FROM rollcall_member \
     WHERE owner = $1 AND role = $2 AND user_id <> $3 ORDER BY joined_at, user_id LIMIT 1";
const PUT: &str = "INSERT INTO rollcall_member (owner, user_id, role, since, name, joined_at) \
     VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (owner, user_id) DO UPDATE SET role = excluded.role, \
     since = excluded.since, name = excluded.name, joined_at = excluded.joined_at";
/// The member that an account is made with, unless an earlier try has made it.
pub(super) const PUT_FIRST: &str = "INSERT INTO rollcall_member (owner, user_id, role, since, name, joined_at) \
     VALUES ($1, $2, 3, 0, '', $3) ON CONFLICT (owner, user_id) DO NOTHING";
pub(super) const REMOVE: &str = "DELETE FROM rollcall_member WHERE owner = $1 AND user_id = $2";

/// How the owner is called.
const NAME: &str = "SELECT name FROM rollcall_owner WHERE owner = $1";
const PUT_NAME: &str = "UPDATE rollcall_owner SET name = $2 WHERE owner = $1";

/// Offers to become a member.
pub const INVITATIONS: &str = "SELECT id, code, role, made_by, made_at, expires_at, uses_left \
     FROM rollcall_invitation WHERE owner = $1 ORDER BY made_at, id";
const PUT_INVITATION: &str = "INSERT INTO rollcall_invitation \
     (owner, id, code, role, made_by, made_at, expires_at, uses_left) VALUES ($1, $2, $3, $4, $5, $6, $7, $8) \
     ON CONFLICT (owner, id) DO UPDATE SET uses_left = excluded.uses_left";
const REMOVE_INVITATION: &str = "DELETE FROM rollcall_invitation WHERE owner = $1 AND id = $2";
pub(super) const FORGET_INVITATIONS: &str =
    "DELETE FROM rollcall_invitation WHERE owner = $1 AND expires_at < $2";

impl MemberReads for Txn<'_> {
    fn member(&mut self, user: Uuid) -> StorageResult<Option<Member>> {
        let params: [Param<'_>; 2] = [(&self.owner, Type::UUID), (&user, Type::UUID)];
        self.session.row(MEMBER, &params)?.as_ref().map(member).transpose()
    }

    fn members(&mut self, after: Option<Uuid>, members_max: usize) -> StorageResult<Vec<Member>> {
        let Some(from) = after.map_or(Some(Uuid::nil()), successor) else { return Ok(Vec::new()) };
        let limit = i64::try_from(members_max).unwrap_or(i64::MAX);
        let params: [Param<'_>; 3] = [(&self.owner, Type::UUID), (&from, Type::UUID), (&limit, Type::INT8)];
        self.session.query(MEMBERS, &params)?.iter().map(member).collect()
    }

    fn member_count(&mut self) -> StorageResult<u64> {
        let row = self.session.row(COUNT, &[(&self.owner, Type::UUID)])?;
        row.map_or(Ok(0), |row| row.try_get::<_, i64>(0)).map(i64::cast_unsigned).map_err(failed)
    }

    fn first_of(&mut self, role: Role, except: Uuid) -> StorageResult<Option<Member>> {
        let role = role.number();
        let params: [Param<'_>; 3] = [(&self.owner, Type::UUID), (&role, Type::INT8), (&except, Type::UUID)];
        self.session.row(FIRST_OF_ROLE, &params)?.as_ref().map(member).transpose()
    }

    fn owner_name(&mut self) -> StorageResult<String> {
        let row = self.session.row(NAME, &[(&self.owner, Type::UUID)])?;
        row.map_or(Ok(String::new()), |row| row.try_get(0)).map_err(failed)
    }

    fn invitations(&mut self) -> StorageResult<Vec<Invitation>> {
        self.session.query(INVITATIONS, &[(&self.owner, Type::UUID)])?.iter().map(invitation).collect()
    }
}

impl MemberWrites for Txn<'_> {
    fn put_member(&mut self, member: &Member) -> StorageResult<()> {
        let (role, since) = (member.role.number(), member.since.0.cast_signed());
        let params: [Param<'_>; 6] = [
            (&self.owner, Type::UUID),
            (&member.user, Type::UUID),
            (&role, Type::INT8),
            (&since, Type::INT8),
            (&member.name, Type::TEXT),
            (&member.joined_at.ms(), Type::INT8),
        ];
        self.session.execute(PUT, &params).map(drop)
    }

    fn remove_member(&mut self, user: Uuid) -> StorageResult<bool> {
        let params: [Param<'_>; 2] = [(&self.owner, Type::UUID), (&user, Type::UUID)];
        Ok(self.session.execute(REMOVE, &params)? > 0)
    }

    fn name_owner(&mut self, name: &str) -> StorageResult<()> {
        let params: [Param<'_>; 2] = [(&self.owner, Type::UUID), (&name, Type::TEXT)];
        self.session.execute(PUT_NAME, &params).map(drop)
    }

    fn put_invitation(&mut self, one: &Invitation) -> StorageResult<()> {
        let (role, uses_left) = (one.role.number(), i64::from(one.uses_left));
        let params: [Param<'_>; 8] = [
            (&self.owner, Type::UUID),
            (&one.id, Type::UUID),
            (&&one.code[..], Type::BYTEA),
            (&role, Type::INT8),
            (&one.made_by, Type::UUID),
            (&one.made_at.ms(), Type::INT8),
            (&one.expires_at.ms(), Type::INT8),
            (&uses_left, Type::INT8),
        ];
        self.session.execute(PUT_INVITATION, &params).map(drop)
    }

    fn remove_invitation(&mut self, id: Uuid) -> StorageResult<bool> {
        let params: [Param<'_>; 2] = [(&self.owner, Type::UUID), (&id, Type::UUID)];
        Ok(self.session.execute(REMOVE_INVITATION, &params)? > 0)
    }
}

pub(super) fn role(row: &Row, at: usize) -> StorageResult<Role> {
    Role::of_number(row.try_get(at).map_err(failed)?)
        .ok_or_else(|| StorageError::Engine("a role that is none".into()))
}

fn member(row: &Row) -> StorageResult<Member> {
    Ok(Member {
        user: row.try_get(0).map_err(failed)?,
        role: role(row, 1)?,
        since: Version(row.try_get::<_, i64>(2).map_err(failed)?.cast_unsigned()),
        name: row.try_get(3).map_err(failed)?,
        joined_at: Timestamp::from_ms(row.try_get(4).map_err(failed)?),
    })
}

fn invitation(row: &Row) -> StorageResult<Invitation> {
    let code: Vec<u8> = row.try_get(1).map_err(failed)?;
    let code: CodeHash =
        code.try_into().map_err(|_| StorageError::Engine("the hash of a code of another size".into()))?;
    let uses_left: i64 = row.try_get(6).map_err(failed)?;
    Ok(Invitation {
        id: row.try_get(0).map_err(failed)?,
        code,
        role: role(row, 2)?,
        made_by: row.try_get(3).map_err(failed)?,
        made_at: Timestamp::from_ms(row.try_get(4).map_err(failed)?),
        expires_at: Timestamp::from_ms(row.try_get(5).map_err(failed)?),
        uses_left: u32::try_from(uses_left).unwrap_or(0),
    })
}

impl Connections {
    /// Writes for an owner without touching its rows, where no schema is at hand. It may run again from the start.
    pub(super) fn on_owner<T>(
        &self,
        owner: Owner,
        mut work: impl FnMut(&mut Txn<'_>) -> StorageResult<T>,
    ) -> StorageResult<T> {
        let schema = Schema::empty();
        let statements = Statements::new(&schema, &[]);
        let (done, moved) = self.with_retry(|session| {
            let transaction = session.begin(Purpose::Write)?;
            let mut txn = Txn::begin_write(transaction.session, &schema, &statements, owner)?;
            let before = txn.state().version;
            let done = work(&mut txn)?;
            txn.finish()?;
            let after = txn.state().version;
            transaction.commit()?;
            Ok((done, (after != before).then_some(after)))
        })?;
        moved.inspect(|version| self.notify.moved(owner, *version));
        Ok(done)
    }
}

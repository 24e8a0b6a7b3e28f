//! Reads and writes a whole PostgreSQL database, while no server uses it.

use bytes::{BufMut as _, BytesMut};
use postgres::types::{IsNull, ToSql as _, Type};
use uuid::Uuid;

use super::address::Address;
use super::connections::{Connections, Terms, Try};
use super::session::{Param, Purpose, Session};
use super::values::{self, Bound, sql_type};
use super::{OpenError, migrate, prepare};
use crate::failure::failed;
use rollcall_core::model::{Fence, Owner, Timestamp, Value};
use rollcall_core::schema::ColumnType;
use rollcall_core::storage::plan::quoted;
use rollcall_core::storage::whole::{Deployment, Part, RowSink, RowsOf, Section, Sections, Target, Whole};
use rollcall_core::storage::{Outcome, OwnerState, StorageError, StorageResult};

/// Exists in `rollcall_meta` while a copy is in progress: no server starts meanwhile.
const COPYING: &str = "SELECT value FROM rollcall_meta WHERE name = 'copying'";
const BEGIN_COPYING: &str =
    "INSERT INTO rollcall_meta (name, value) VALUES ('copying', 1) ON CONFLICT (name) DO NOTHING";
const END_COPYING: &str = "DELETE FROM rollcall_meta WHERE name = 'copying'";
const SET_EPOCH: &str = "UPDATE rollcall_meta SET value = $1 WHERE name = 'epoch'";
const TABLES: &str = "SELECT id::bigint, name FROM rollcall_table ORDER BY id";
const NUMBER_TABLE: &str = "INSERT INTO rollcall_table (id, name) VALUES ($1, $2)";
const MIGRATIONS: &str = "SELECT value FROM rollcall_meta WHERE name = 'migrations'";
const ANY_DATA: &str = "SELECT count(*) FROM (SELECT owner FROM rollcall_owner UNION ALL SELECT id FROM rollcall_user LIMIT 1) held";
const SET_FENCE: &str = "UPDATE rollcall_owner SET fence = $2 WHERE owner = $1";

/// What leads to users and owners is only kept where tables may be sharded, and follows from the other tables. As the
/// migration that made these tables has it.
const LISTS: [&str; 7] = [
    "DELETE FROM rollcall_membership",
    "INSERT INTO rollcall_membership (user_id, owner) SELECT user_id, owner FROM rollcall_member",
    "DELETE FROM rollcall_lookup",
    "INSERT INTO rollcall_lookup (name, kind, id) \
     SELECT sha256('\\x01'::bytea || convert_to(email, 'UTF8')), 1, id FROM rollcall_user",
    "INSERT INTO rollcall_lookup (name, kind, id) \
     SELECT sha256('\\x02'::bytea || uuid_send(id)), 2, user_id FROM rollcall_device",
    "INSERT INTO rollcall_lookup (name, kind, id) \
     SELECT sha256('\\x03'::bytea || token_hash), 3, user_id FROM rollcall_device",
    "INSERT INTO rollcall_lookup (name, kind, id, expires_at) \
     SELECT sha256('\\x04'::bytea || code), 4, owner, expires_at FROM rollcall_invitation",
];

/// An owner's rows need not be durable before the next owner's are sent: the last transaction of the copy
/// waits for all of them.
const NOT_DURABLE_YET: &str = "SET LOCAL synchronous_commit = off";

/// Bytes that are sent at once.
const BYTES_AT_ONCE: usize = 1 << 20;

/// The target of a copy, or a copy that is compared with its source.
pub struct PostgresWhole {
    connections: Connections,
    sections: Sections,
}

impl PostgresWhole {
    /// Opens a database for a copy: an empty one, or one in which such a copy was begun.
    pub fn begin(
        address: &Address,
        terms: &Terms,
        deployment: &Deployment,
        now: Timestamp,
    ) -> Result<Self, OpenError> {
        let failed = |error| OpenError::database(address, &error);
        let mut session = Connections::single(address, terms)?;
        let known = migrate::is_there(&mut session).map_err(failed)?;
        // A database that belongs to someone else is not touched.
        let begun = known && is_copying(&mut session).map_err(failed)?;
        if known && !begun && number(&mut session, ANY_DATA).map_err(failed)? > 0 {
            return Err(OpenError::HoldsData { address: address.to_string() });
        }
        let whole = Self::open(address, terms, deployment)?;
        let mark = |session: &mut Session| {
            let transaction = session.begin(Purpose::Write)?;
            transaction.session.execute(BEGIN_COPYING, &[])?;
            transaction.session.execute(SET_EPOCH, &[(&deployment.epoch, Type::INT8)])?;
            let numbered = number_tables(transaction.session, &deployment.tables)?;
            transaction.commit().map(|()| numbered)
        };
        if !mark(&mut session).map_err(failed)? {
            return Err(OpenError::HoldsData { address: address.to_string() });
        }
        prepare(&mut session, address, &deployment.schema, now)?;
        Ok(whole)
    }

    /// Opens a database with a complete copy.
    pub fn look(address: &Address, terms: &Terms, deployment: &Deployment) -> Result<Self, OpenError> {
        let failed = |error| OpenError::database(address, &error);
        let mut session = Connections::single(address, terms)?;
        let known = migrate::is_there(&mut session).map_err(failed)?;
        if !known || number(&mut session, MIGRATIONS).map_err(failed)? != migrate::migrations_known() as i64 {
            return Err(OpenError::NoCopy { address: address.to_string() });
        }
        Self::open(address, terms, deployment)
    }

    fn open(address: &Address, terms: &Terms, deployment: &Deployment) -> Result<Self, OpenError> {
        let connections = Connections::open(address, terms)?;
        Ok(Self { connections, sections: Sections::of(&deployment.schema) })
    }

    /// Lets servers start: the copy is complete and durable.
    pub fn end(&self) -> StorageResult<()> {
        self.connections.with_retry(|session| {
            let transaction = session.begin(Purpose::Write)?;
            LISTS.iter().try_for_each(|sql| transaction.session.execute(sql, &[]).map(drop))?;
            transaction.session.execute(END_COPYING, &[])?;
            transaction.commit()
        })
    }
}

/// Whether a copy into the database has begun and not ended.
pub(super) fn is_copying(session: &mut Session) -> StorageResult<bool> {
    Ok(session.row(COPYING, &[])?.is_some())
}

fn number(session: &mut Session, sql: &str) -> StorageResult<i64> {
    session.row(sql, &[])?.map_or(Ok(0), |row| row.try_get(0)).map_err(failed)
}

/// Gives the ledger's tables the numbers of the source; `false` if they have others.
fn number_tables(session: &mut Session, tables: &[(i64, String)]) -> StorageResult<bool> {
    let held = session.query(TABLES, &[])?;
    let held = held.iter().map(|row| Ok((row.try_get(0).map_err(failed)?, row.try_get(1).map_err(failed)?)));
    let held: Vec<(i64, String)> = held.collect::<StorageResult<_>>()?;
    for table in tables.iter().filter(|table| !held.contains(table)) {
        let id = i32::try_from(table.0).map_err(|error| StorageError::Engine(Box::new(error)))?;
        if held.iter().any(|(held, name)| *held == table.0 || *name == table.1) {
            return Ok(false);
        }
        session.execute(NUMBER_TABLE, &[(&id, Type::INT4), (&table.1, Type::TEXT)])?;
    }
    Ok(true)
}

/// The SQL type of a column; numbers of tables have a smaller integer type than all others.
fn column_type(name: &str, kind: ColumnType) -> Type {
    if name == "tbl" && kind == ColumnType::Integer { Type::INT4 } else { sql_type(kind).1 }
}

fn select(section: &Section) -> String {
    let columns = section.columns.iter().map(|(name, kind)| match column_type(name, *kind) {
        Type::INT4 => format!("{}::bigint", quoted(name)),
        _ => quoted(name),
    });
    let (columns, name) = (columns.collect::<Vec<_>>().join(", "), quoted(&section.table));
    match &section.owner {
        Some(owner) => format!("SELECT {columns} FROM {name} WHERE {owner} = $1", owner = quoted(owner)),
        None => format!("SELECT {columns} FROM {table}", table = name),
    }
}

fn delete(section: &Section) -> String {
    let name = quoted(&section.table);
    match &section.owner {
        Some(owner) => format!("DELETE FROM {name} WHERE {owner} = $1", owner = quoted(owner)),
        None => format!("DELETE FROM {table}", table = name),
    }
}

/// The `COPY` statement for rows in the binary format, each with its owner first if it has one.
fn copy(section: &Section) -> String {
    let owner = section.owner.as_deref().into_iter();
    let columns = owner.chain(section.columns.iter().map(|(name, _)| name.as_str()));
    let columns: Vec<_> = columns.map(quoted).collect();
    format!("COPY {} ({}) FROM STDIN BINARY", quoted(&section.table), columns.join(", "))
}

/// The owner of a part, as a parameter: accounts have none.
fn owner_of(part: &Part) -> Option<&Uuid> {
    match part {
        Part::Accounts => None,
        Part::Owner(owner) => Some(&owner.0),
    }
}

impl Whole for PostgresWhole {
    fn owners(&self, after: Option<Owner>, owners_max: usize) -> StorageResult<Vec<(Owner, OwnerState)>> {
        self.connections.states(after, owners_max)
    }

    fn read(&self, part: Part, each: &mut RowSink<'_>) -> StorageResult<()> {
        let params: Vec<Param<'_>> =
            owner_of(&part).into_iter().map(|owner| (owner as _, Type::UUID)).collect();
        let mut read = |session: &mut Session| {
            let transaction = session.begin(Purpose::Read)?;
            let mut held = Vec::new();
            for (place, section) in self.sections.of_part(part).iter().enumerate() {
                let mut more = true;
                transaction.session.each(&select(section), &params, &mut |row| {
                    held.clear();
                    for (at, (_, kind)) in section.columns.iter().enumerate() {
                        held.push(values::read(*kind, row, at).map_err(failed)?);
                    }
                    more = each(place, &held);
                    Ok(more)
                })?;
                if !more {
                    break;
                }
            }
            Ok(())
        };
        // No further attempt: `each` has received some rows.
        self.connections.with(|session| Try::Done(read(session)))
    }
}

impl Target for PostgresWhole {
    fn replace(&self, part: Part, fence: Fence, rows: RowsOf<'_>) -> StorageResult<()> {
        let sections = self.sections.of_part(part);
        let params: Vec<Param<'_>> =
            owner_of(&part).into_iter().map(|owner| (owner as _, Type::UUID)).collect();
        self.connections.with_retry(|session| {
            let transaction = session.begin(Purpose::Write)?;
            let session = &mut *transaction.session;
            session.batch(NOT_DURABLE_YET)?;
            // The owner's row is deleted first, as everywhere; without it there is nothing to delete.
            let had = session.execute(&delete(&sections[0]), &params)? > 0;
            if had || part == Part::Accounts {
                for section in sections.iter().skip(1).rev() {
                    session.execute(&delete(section), &params)?;
                }
            }
            let mut lot = Lot::new(owner_of(&part));
            let outcome = rows(&mut |place, row| {
                if place != lot.place || lot.bytes.len() >= BYTES_AT_ONCE {
                    lot.send(session, sections)?;
                    lot.place = place;
                }
                lot.add(&sections[place], row)
            })?;
            if outcome == Outcome::Rollback {
                return Ok(());
            }
            lot.send(session, sections)?;
            if let Some(owner) = owner_of(&part) {
                let fence = fence.0.cast_signed();
                session.execute(SET_FENCE, &[(owner, Type::UUID), (&fence, Type::INT8)])?;
            }
            transaction.commit()
        })
    }
}

/// Rows of one table in the binary format of `COPY`.
struct Lot<'a> {
    owner: Option<&'a Uuid>,
    place: usize,
    bytes: BytesMut,
}

/// The header of such a stream: the signature, no flags, no extension.
const HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
/// Its trailer.
const TRAILER: i16 = -1;

impl<'a> Lot<'a> {
    fn new(owner: Option<&'a Uuid>) -> Self {
        Self { owner, place: 0, bytes: BytesMut::new() }
    }

    fn add(&mut self, section: &Section, row: &[Value]) -> StorageResult<()> {
        if self.bytes.is_empty() {
            self.bytes.put_slice(HEADER);
        }
        let fields = row.len() + usize::from(self.owner.is_some());
        self.bytes.put_i16(i16::try_from(fields).map_err(|error| StorageError::Engine(Box::new(error)))?);
        if let Some(owner) = self.owner {
            self.bytes.put_i32(16);
            self.bytes.put_slice(owner.as_bytes());
        }
        for (value, (name, kind)) in row.iter().zip(&section.columns) {
            self.field(value, &column_type(name, *kind)).map_err(StorageError::Engine)?;
        }
        Ok(())
    }

    /// Writes a field after its size; -1 is NULL.
    fn field(&mut self, value: &Value, kind: &Type) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let at = self.bytes.len();
        self.bytes.put_i32(-1);
        if let IsNull::No = Bound(value).to_sql(kind, &mut self.bytes)? {
            let size = i32::try_from(self.bytes.len() - at - 4)?;
            self.bytes[at..at + 4].copy_from_slice(&size.to_be_bytes());
        }
        Ok(())
    }

    fn send(&mut self, session: &mut Session, sections: &[Section]) -> StorageResult<()> {
        if self.bytes.is_empty() {
            return Ok(());
        }
        self.bytes.put_i16(TRAILER);
        session.copy_in(&copy(&sections[self.place]), &self.bytes)?;
        self.bytes.clear();
        Ok(())
    }
}

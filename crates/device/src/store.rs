//! The device's own SQLite file: rows, the user's changes, and the state of the last sync.

use std::fs::{File, TryLockError};
use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::batch::Body;
use super::decide::Local;
use super::row;
use rollcall_clock::Clock;
use rollcall_core::model::{InstallationName, RowKey, Version};
use rollcall_core::reconcile::Operation;
use rollcall_core::schema::{Schema, SchemaError, Table};

/// What is wrong with the device's file, or with an operation on it.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // each variant's message describes it
pub enum StoreError {
    #[error("there is no table {name:?}; there are {known}")]
    NoSuchTable { name: String, known: String },
    #[error("{table} has no row {key}")]
    NoSuchRow { table: String, key: RowKey },
    #[error("{table} has no column {column:?}")]
    NoSuchColumn { table: String, column: String },
    #[error("{table}.{column}: {reason}")]
    WrongValue { table: String, column: String, reason: String },
    #[error("this is not the file of a rollcall device; make one with `rollcall device init`")]
    NotADevice,
    #[error("the schema that the file was made with is broken:\n{0}")]
    Schema(#[from] SchemaError),
    #[error("the file cannot be read or written: {0}")]
    Sqlite(#[from] rusqlite::Error),
    #[error("the file cannot be made or locked: {0}")]
    Io(#[from] std::io::Error),
    #[error("the file holds what no device wrote: {0}")]
    Json(#[from] serde_json::Error),
}

/// See [`StoreError`].
pub type StoreResult<T> = Result<T, StoreError>;

/// The device's file.
pub struct Store {
    pub(super) conn: Connection,
    schema: Schema,
    clock: Clock,
}

/// A request whose response has not been applied.
///
/// It is stored before the request is sent and removed in the transaction that applies the response. After a
/// lost response or a crash the same rows are sent again under the same `key`, and the server returns the
/// same response again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outstanding {
    /// The `Idempotency-Key`, a UUID of version 7.
    pub key: Uuid,
    /// The body without `sent_at`, which is the time of each sending.
    pub body: Body,
    /// The `sent_at` of each sending.
    pub stamps: Vec<String>,
    /// The rows in the body.
    pub sent: Vec<SentRow>,
}

/// A row of an outstanding request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SentRow {
    /// The name of its table.
    pub table: String,
    /// Its key.
    pub key: RowKey,
    /// The member that contains it.
    pub operation: Operation,
    /// Whether all of its columns are sent.
    pub whole: bool,
    /// Whether all columns of the table are sent.
    pub complete: bool,
    /// The edit in the request; the response does not settle later ones.
    pub edit: u64,
}

/// The names of values that a device file stores apart from rows.
pub(super) mod names {
    pub const SCHEMA: &str = "schema";
    pub const SERVER: &str = "server";
    pub const TOKEN: &str = "token";
    pub const EMAIL: &str = "email";
    pub const DEVICE: &str = "device";
    pub const DEVICE_ID: &str = "device_id";
    pub const CURSOR: &str = "cursor";
    pub const EPOCH: &str = "epoch";
    pub const KNOWN: &str = "known_version";
    pub const NEXT: &str = "next";
    pub const SEED: &str = "digest_seed";
    pub const ETAG: &str = "etag";
    pub const LIMITS: &str = "limits";
    pub const LAST_SYNC: &str = "last_sync";
    pub const EDITS: &str = "edits";
    pub const OUTSTANDING: &str = "outstanding";
    pub const BOUND: &str = "bound";
    pub const OWNER: &str = "owner";
    pub const INSTALLATION: &str = "installation";
}

const LAYOUT: &str = "
    CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
    CREATE TABLE rows (
        table_name  TEXT NOT NULL,
        key         TEXT NOT NULL,
        state       TEXT NOT NULL CHECK (state IN ('clean', 'added', 'edited', 'deleted')),
        last_update INTEGER, -- ms, the server's state
        base        INTEGER, -- ms, the state that the edit was made on
        edited_at   INTEGER, -- ms, the device's clock
        edit        INTEGER NOT NULL,
        contents    TEXT NOT NULL,
        changed     TEXT NOT NULL,
        error       TEXT,
        mentioned   INTEGER NOT NULL DEFAULT 0, -- by the full feed that is being read
        PRIMARY KEY (table_name, key)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX dirty ON rows (table_name, state) WHERE state <> 'clean';
    PRAGMA application_id = 0x726c636c; -- rlcl
";

impl Store {
    /// Creates the file of a new device.
    pub fn create(path: &Path, schema: &str, clock: Clock) -> StoreResult<Self> {
        let declared = Schema::parse(schema)?;
        let mut options = File::options();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600); // it will contain a token
        options.open(path)?;
        let conn = prepared(Connection::open(path)?)?;
        conn.execute_batch(&format!("BEGIN; {LAYOUT} COMMIT;"))?;
        let store = Self { conn, schema: declared, clock };
        store.remember(names::SCHEMA, schema)?;
        Ok(store)
    }

    /// The server that the device syncs with.
    pub fn server(&self) -> StoreResult<Option<String>> {
        self.recall(names::SERVER)
    }

    /// Sets the server.
    pub fn set_server(&self, url: &str) -> StoreResult<()> {
        self.remember(names::SERVER, url)
    }

    /// The owner of the file's rows, if it is not the user's own one.
    pub fn owner(&self) -> StoreResult<Option<Uuid>> {
        Ok(self.recall(names::OWNER)?.and_then(|text| Uuid::try_parse(&text).ok()))
    }

    /// Makes it the file of another owner of which the user is a member. It is set before the first log-in.
    pub fn set_owner(&self, owner: Uuid) -> StoreResult<()> {
        self.remember(names::OWNER, &owner.to_string())
    }

    /// Stores a token in the file. The next sync finds out its user; `take_token` checks it at once.
    pub fn set_token(&self, token: &str) -> StoreResult<()> {
        self.remember(names::TOKEN, token)
    }

    /// The user and the owner of the file's rows, in the form of `Sync-For`; `None` before the first sync.
    pub fn bound(&self) -> StoreResult<Option<String>> {
        self.recall(names::BOUND)
    }

    /// The name of the installation. It is created at the first sync: a file that is copied before is not a
    /// copy of an installation.
    pub(super) fn installation(&self) -> StoreResult<InstallationName> {
        let known = self.recall(names::INSTALLATION)?.and_then(|text| InstallationName::read(&text));
        match known {
            Some(known) => Ok(known),
            None => {
                let made = InstallationName { id: Uuid::new_v4(), counter: 0 };
                self.remember(names::INSTALLATION, &made.to_string())?;
                Ok(made)
            }
        }
    }

    /// The user who is logged in, and the name of the device.
    pub fn who(&self) -> StoreResult<Option<(String, String)>> {
        Ok(self.recall(names::EMAIL)?.zip(self.recall(names::DEVICE)?))
    }

    /// When the last sync succeeded.
    pub fn last_sync(&self) -> StoreResult<Option<String>> {
        self.recall(names::LAST_SYNC)
    }

    /// Opens the file of a device.
    pub fn open(path: &Path, clock: Clock) -> StoreResult<Self> {
        if !path.exists() {
            return Err(StoreError::NotADevice);
        }
        let conn = prepared(Connection::open(path)?)?;
        let has_rows = "SELECT 1 FROM sqlite_schema WHERE name = 'rows'";
        conn.query_row(has_rows, [], |_| Ok(())).optional()?.ok_or(StoreError::NotADevice)?;
        let text = recall(&conn, names::SCHEMA)?.ok_or(StoreError::NotADevice)?;
        Ok(Self { schema: Schema::parse(&text)?, conn, clock })
    }

    /// The declared tables.
    pub fn schema(&self) -> &Schema {
        &self.schema
    }

    /// The device's clock.
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// The table of that name.
    pub fn table(&self, name: &str) -> StoreResult<&Table> {
        self.schema.table(name).ok_or_else(|| StoreError::NoSuchTable {
            name: name.to_owned(),
            known: self
                .schema
                .tables()
                .iter()
                .map(|table| table.name.as_str())
                .collect::<Vec<_>>()
                .join(", "),
        })
    }

    /// The state of the server up to which the device knows everything.
    pub fn cursor(&self) -> StoreResult<Option<Version>> {
        Ok(self.recall(names::CURSOR)?.and_then(|text| text.parse().ok()).map(Version))
    }

    /// The latest version of the server that the device has seen.
    pub(super) fn known_version(&self) -> StoreResult<Option<Version>> {
        Ok(self.recall(names::KNOWN)?.and_then(|text| text.parse().ok()).map(Version))
    }

    /// The request whose response has not been applied, if any.
    pub fn outstanding(&self) -> StoreResult<Option<Outstanding>> {
        outstanding(&self.conn)
    }

    /// Gives up an outstanding request: the server reported that nothing of it was written.
    pub fn give_up(&self) -> StoreResult<()> {
        self.forget(names::OUTSTANDING)
    }

    /// The writing connection, and the schema.
    pub(super) fn parts(&mut self) -> (&mut Connection, &Schema) {
        (&mut self.conn, &self.schema)
    }

    /// The right to sync this file, held until dropped; `None` if another process has it. To the server both
    /// would be one device, which may take the lock as often as it wants.
    pub(super) fn turn(&self) -> StoreResult<Option<File>> {
        let Some(path) = self.conn.path().filter(|path| !path.is_empty()) else {
            return Err(StoreError::NotADevice);
        };
        let lock = File::create(format!("{path}-sync"))?;
        match lock.try_lock() {
            Ok(()) => Ok(Some(lock)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error.into()),
        }
    }

    pub(super) fn remember(&self, name: &str, value: &str) -> StoreResult<()> {
        remember(&self.conn, name, value)
    }

    pub(super) fn recall(&self, name: &str) -> StoreResult<Option<String>> {
        recall(&self.conn, name)
    }

    pub(super) fn forget(&self, name: &str) -> StoreResult<()> {
        self.conn.execute("DELETE FROM meta WHERE name = ?1", [name])?;
        Ok(())
    }

    pub(super) fn locals(&self, table: &Table) -> StoreResult<std::collections::BTreeMap<RowKey, Local>> {
        row::locals(&self.conn, table)
    }
}

fn prepared(conn: Connection) -> StoreResult<Connection> {
    conn.busy_timeout(Duration::from_secs(10))?;
    conn.pragma_update(None, "journal_mode", "WAL")?;
    // An edit that the app shows as saved must be durable.
    conn.pragma_update(None, "synchronous", "FULL")?;
    Ok(conn)
}

/// Begins a transaction that will write.
pub(super) fn writing(conn: &mut Connection) -> StoreResult<Transaction<'_>> {
    Ok(conn.transaction_with_behavior(TransactionBehavior::Immediate)?)
}

pub(super) fn remember(conn: &Connection, name: &str, value: &str) -> StoreResult<()> {
    let mut statement = conn.prepare_cached("INSERT OR REPLACE INTO meta (name, value) VALUES (?1, ?2)")?;
    statement.execute([name, value])?;
    Ok(())
}

pub(super) fn recall(conn: &Connection, name: &str) -> StoreResult<Option<String>> {
    let mut statement = conn.prepare_cached("SELECT value FROM meta WHERE name = ?1")?;
    Ok(statement.query_row([name], |row| row.get(0)).optional()?)
}

pub(super) fn outstanding(conn: &Connection) -> StoreResult<Option<Outstanding>> {
    let text = recall(conn, names::OUTSTANDING)?;
    Ok(text.map(|text| serde_json::from_str(&text)).transpose()?)
}

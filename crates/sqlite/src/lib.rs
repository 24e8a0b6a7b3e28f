//! The SQLite engine: one writer, many readers, one file.

pub mod tables;

mod accounts;
mod backup;
mod census;
mod connections;
mod ddl;
mod deletions;
mod erase;
pub mod file;
mod installations;
mod mail_tokens;
mod members;
mod migrate;
mod owner_states;
mod owners;
mod past;
mod purge;
mod quota;
mod records;
mod restore;
#[doc(hidden)] // for rollcall-bench, which runs the same statements
pub mod statements;
mod txn;
mod values;
mod whole;
mod writer;

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OptionalExtension, TransactionBehavior};

use file::{Served, beside, resolved};
use past::{Beside, Past};
use rollcall_core::model::{DeviceId, Fence, Owner, Timestamp, Version};
use rollcall_core::schema::Schema;
use rollcall_core::storage::plan::Plan;
use rollcall_core::storage::{
    AccountStore, Census, EngineObserver, Leases, Outcome, OwnerState, Owners, PastBytes, ReadTxn, ReadWork,
    Storage, StorageError, StorageResult, VersionListener, WriteJob, WriteWork,
};
use statements::Statements;
use txn::Txn;
use writer::Done;

pub use backup::{CopyError, CopySink, CopyStep, backup};
pub use connections::Connections;
#[doc(hidden)] // for rollcall-bench as well
pub use connections::prepare_writer;
pub use restore::{Restored, restore};
pub use whole::SqliteWhole;

/// An SQLite file with a server's data.
pub struct Sqlite {
    connections: Arc<Connections>,
    schema: Arc<Schema>,
    statements: Arc<Statements>,
    first_fence: Fence,
    /// The write-ahead log, which does not exist before the first write.
    log: PathBuf,
    /// Runs the small writes of all owners; `None` beside a server.
    writer: Option<JoinHandle<()>>,
    /// Locks the file while the server runs. A second server on the same file would give out the same fences,
    /// and under another name of the file it would overwrite what this one acknowledged. This field comes
    /// last, since it must outlive the connections. Beside a server it is `None`.
    _served: Option<Served>,
}

/// Why an SQLite file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The library is a version that can lose data.
    #[error("SQLite {0} is too old: 3.51.3 or later is needed")]
    SqliteTooOld(String),
    /// The file cannot be opened, or is not an SQLite database.
    #[error("cannot open the database {}: {reason}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The file, or its folder, cannot be written.
    #[error("cannot write the database {}: the file, its folder or the disk is read-only", .0.display())]
    ReadOnly(PathBuf),
    /// Another program holds a transaction open.
    #[error("the database {} is locked by another program", .0.display())]
    Locked(PathBuf),
    /// The file has several names, and SQLite would keep a log under each of them.
    #[error(
        "the database {} has {names} names (hard links); rows would be lost when it is used by two of them: remove the others, or make a copy with `rollcall backup`",
        .path.display()
    )]
    HardLinked {
        /// The file.
        path: PathBuf,
        /// How many names it has.
        names: u64,
    },
    /// The file belongs to another user.
    #[error(
        "the file {} belongs to {owner}, but this command runs as {user}: run it as {owner} (sudo -u {owner}), or as root",
        .path.display()
    )]
    Foreign {
        /// The file.
        path: PathBuf,
        /// The file's owner.
        owner: String,
        /// The user who runs this process.
        user: String,
    },
    /// A file beside the database cannot be made, locked or deleted.
    #[error("cannot use {}: {error}", .path.display())]
    Beside {
        /// The file.
        path: PathBuf,
        /// The system's error.
        error: std::io::Error,
    },
    /// Another server uses the file.
    #[error("another server uses the database {} already", .0.display())]
    Served(PathBuf),
    /// A newer release created tables that this one does not know.
    #[error(
        "the database {} is from a newer release of rollcall ({done} migrations, this release knows {known})",
        .path.display()
    )]
    FromNewerRelease {
        /// The file.
        path: PathBuf,
        /// Migrations that have run on the file.
        done: i64,
        /// Migrations of this release.
        known: usize,
    },
    /// Servers of an older release created the tables, and none of this release has served them.
    #[error(
        "the database {} is no database of rollcall, or one of an older release; serve it with this release first",
        .0.display()
    )]
    FromOlderRelease(PathBuf),
    /// No server has served the file with this schema.
    #[error("the database {} does not fit the schema as it is; serve it once:\n{}", .path.display(), .lines.join("\n"))]
    Unfit {
        /// The file.
        path: PathBuf,
        /// What a server would change or refuse.
        lines: Vec<String>,
    },
    /// The schema file and the tables in the database disagree.
    #[error("the schema does not fit the database, and to make it fit would lose data:\n{}", .0.join("\n"))]
    SchemaMismatch(Vec<String>),
    /// The writer thread cannot be started.
    #[error("cannot start a thread: {0}")]
    Thread(std::io::Error),
    /// No connection for reading can be opened.
    #[error("cannot open the database for reading: {0}")]
    Pool(r2d2::Error),
}

impl OpenError {
    /// Explains SQLite's refusal of a file to the operator.
    pub fn of(path: &Path, error: &rusqlite::Error) -> Self {
        let path = path.to_owned();
        match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => return Self::Locked(path),
            Some(ErrorCode::ReadOnly | ErrorCode::CannotOpen | ErrorCode::PermissionDenied) => {
                let may_not = path.is_file().then(|| file::belongs_to_another(&path)).flatten();
                if let Some(foreign) = may_not {
                    return foreign;
                }
                if error.sqlite_error_code() == Some(ErrorCode::ReadOnly) {
                    return Self::ReadOnly(path);
                }
            }
            _ => {}
        }
        Self::no_folder(&path, &error.to_string())
    }

    /// The error of a path whose folder is missing, or `otherwise` if the folder exists.
    fn no_folder(path: &Path, otherwise: &str) -> Self {
        let folder = file::folder_of(path);
        let reason = match folder {
            _ if path.is_dir() => "it is a folder".to_owned(),
            folder if !folder.exists() => format!("there is no folder {}", folder.display()),
            _ => otherwise.to_owned(),
        };
        Self::File { path: path.to_owned(), reason }
    }
}

impl Sqlite {
    /// Fences of a run begin above those of all earlier runs: at the run's start time in seconds, multiplied
    /// by this. The product stays within 2^53. This holds even if an older copy of the file was put back.
    const FENCES_PER_S: u64 = 1 << 20;

    /// Prepares an opened file for a server: locks it, and makes its tables fit the schema.
    ///
    /// - `path`: the file of `connections`.
    /// - `now`: the value of existing rows when a column with the default `now` is added.
    /// - `observer`: receives the engine's events.
    /// - Errors: [`OpenError`]; the file is then unchanged.
    pub fn serve(
        path: &Path,
        mut connections: Connections,
        schema: Arc<Schema>,
        now: Timestamp,
        observer: Arc<dyn EngineObserver>,
    ) -> Result<Self, OpenError> {
        let path = &resolved(path);
        let served = match connections.served.take() {
            Some(served) => served,
            None => Served::lock(path, file::MODE)?,
        };
        let (ids, start, past) = connections.preparing(|conn| prepare(conn, path, &schema, now))?;
        connections.note_past(past);
        connections.observe(observer);
        let connections = Arc::new(connections);
        let writing = Arc::clone(&connections);
        let writer = std::thread::Builder::new()
            .name("rollcall-writer".into())
            .spawn(move || {
                writing.writer().run_jobs();
                leave_one_file(&writing);
            })
            .map_err(OpenError::Thread)?;
        Ok(Self {
            connections,
            writer: Some(writer),
            statements: Arc::new(Statements::new(&schema, &ids)),
            schema,
            first_fence: Fence(start * Self::FENCES_PER_S),
            log: beside(path, "-wal"),
            _served: Some(served),
        })
    }

    /// Uses a file that a server of this release has served with this schema, whether or not one runs. The file is not
    /// prepared in any way. Its leases are the server's: nothing here may give out a lock.
    ///
    /// Errors: [`OpenError::Unfit`], [`OpenError::FromOlderRelease`].
    pub fn beside_server(path: &Path, schema: Arc<Schema>, busy_wait: Duration) -> Result<Self, OpenError> {
        let path = &resolved(path);
        let in_file = |error| OpenError::of(path, &error);
        let conn = Connections::look(path, busy_wait)?;
        if migrate::done(&conn, path)? < migrate::migrations_known() {
            return Err(OpenError::FromOlderRelease(path.to_owned()));
        }
        let lines = tables::plan(&conn, &schema).map_err(in_file)?.describe();
        if !lines.is_empty() {
            return Err(OpenError::Unfit { path: path.to_owned(), lines });
        }
        let ids = schema.tables().iter().map(|table| known_table_id(&conn, &table.name));
        let ids = ids.collect::<rusqlite::Result<Vec<_>>>().map_err(in_file)?;
        Ok(Self {
            connections: Arc::new(Connections::open(path, busy_wait, 1)?),
            writer: None,
            statements: Arc::new(Statements::new(&schema, &ids)),
            schema,
            first_fence: Fence(0),
            log: beside(path, "-wal"),
            _served: None,
        })
    }
}

impl Sqlite {
    /// What a server would create, add or refuse in the file. Nothing is changed; a missing file counts as an
    /// empty one.
    pub fn compare(path: &Path, schema: &Schema, busy_wait: Duration) -> Result<Plan, OpenError> {
        let in_file = |error| OpenError::of(path, &error);
        let conn = if path.exists() {
            Connections::look(path, busy_wait)?
        } else {
            Connection::open_in_memory().map_err(in_file)?
        };
        tables::plan(&conn, schema).map_err(in_file)
    }

    /// Deletes a database and all files that belong to it, unless a server uses it.
    pub fn remove(path: &Path) -> Result<(), OpenError> {
        let path = &resolved(path);
        let _lock = Served::lock_if_there(path)?;
        // The database is deleted last: a log without its database would be applied to the next one.
        for suffix in ["-wal", "-shm", past::SUFFIX, ""] {
            let file = beside(path, suffix);
            match std::fs::remove_file(&file) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(OpenError::Beside { path: file, error });
                }
                _ => {}
            }
        }
        Ok(())
    }
}

impl Drop for Sqlite {
    fn drop(&mut self) {
        self.connections.writer().stop();
        // The last user of the engine may be a job on the writer thread itself.
        let writer = self.writer.take().filter(|writer| writer.thread().id() != std::thread::current().id());
        if writer.is_some_and(|writer| writer.join().is_err()) {
            tracing::error!("the thread that writes panicked");
        }
    }
}

/// Moves the log into the database, so that a copy of the one file is complete. SQLite does this when the
/// last connection closes, but the pool may be opening one at that moment.
fn leave_one_file(connections: &Connections) {
    let moved = connections
        .outside(|conn| conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get::<_, bool>(0)));
    match moved.and_then(|moved| moved.map_err(failed)) {
        Ok(false) => {}
        // Another program reads. Nothing is lost: the next one to open the file continues from the log.
        Ok(true) => tracing::info!("the write-ahead log stays, since another program uses the database"),
        Err(error) => tracing::warn!(%error, "the write-ahead log could not be moved into the database"),
    }
}

/// Makes the tables fit the schema. Returns their numbers in the ledger, the second that this start counts
/// as, and the record beside the database.
fn prepare(
    conn: &mut Connection,
    path: &Path,
    schema: &Schema,
    now: Timestamp,
) -> Result<(Vec<i64>, u64, Beside), OpenError> {
    let in_file = |error| OpenError::of(path, &error);
    let transaction = conn.transaction_with_behavior(TransactionBehavior::Immediate).map_err(in_file)?;
    let plan = tables::plan(&transaction, schema).map_err(in_file)?;
    if !plan.refusals().is_empty() {
        return Err(OpenError::SchemaMismatch(plan.refusals().to_vec()));
    }
    let left = Past::beside(path)?;
    let numbered = || {
        tables::apply(&plan, &transaction, now)?;
        let ids = schema.tables().iter().map(|table| table_id(&transaction, &table.name));
        let ids = ids.collect::<rusqlite::Result<_>>()?;
        let start: i64 = transaction.query_row(
            "UPDATE rollcall_meta SET value = max(value + 1, ?1) WHERE name = 'start' RETURNING value",
            // An earlier copy of the database does not know the fences that were given out since.
            [(now.ms() / 1_000).max(left.map_or(0, |left| left.start() + 1))],
            |row| row.get(0),
        )?;
        Ok((ids, start.cast_unsigned()))
    };
    let (ids, start) = numbered().map_err(in_file)?;
    let past = Beside::begin(&transaction, path, left, now)?;
    transaction.commit().map_err(in_file)?;
    // From here on, what savepoints may have to restore stays in memory: even a job of five rows changes more
    // than the 64 KiB beyond which SQLite uses a file. It is set only now, since indexes were sorted before.
    conn.pragma_update(None, "temp_store", "MEMORY").map_err(in_file)?;
    for line in plan.describe() {
        tracing::info!("{line}");
    }
    Ok((ids, start, past))
}

fn known_table_id(conn: &Connection, name: &str) -> rusqlite::Result<i64> {
    conn.query_row("SELECT id FROM rollcall_table WHERE name = ?1", [name], |row| row.get(0))
}

fn table_id(conn: &Connection, name: &str) -> rusqlite::Result<i64> {
    match known_table_id(conn, name).optional()? {
        Some(id) => Ok(id),
        None => conn.query_row("INSERT INTO rollcall_table (name) VALUES (?1) RETURNING id", [name], |row| {
            row.get(0)
        }),
    }
}

impl Storage for Sqlite {
    fn run_read(&self, owner: Owner, work: ReadWork<'_>) -> StorageResult<()> {
        self.connections.reading(|conn| {
            let owner_states = self.connections.owner_states();
            let stamp = owner_states.stamp();
            // The first statement fixes the snapshot; dropping the transaction ends it.
            let transaction = conn.transaction().map_err(failed)?;
            let mut txn = Txn::begin_read(&transaction, &self.schema, &self.statements, owner)?;
            owner_states.note(stamp, owner, txn.state());
            work(&mut txn)
        })
    }

    fn run_write(&self, owner: Owner, work: WriteWork<'_>) -> StorageResult<()> {
        self.connections
            .writing_for(owner, &mut |conn| run(conn, &self.schema, &self.statements, owner, work))
    }

    fn enqueue_write(&self, owner: Owner, mut job: Box<dyn WriteJob>) {
        if self.writer.is_none() {
            let result = self.run_write(owner, &mut |txn| job.run(txn));
            return job.finish(result);
        }
        let (schema, statements) = (Arc::clone(&self.schema), Arc::clone(&self.statements));
        self.connections.writer().enqueue(OwnerJob { schema, statements, owner, job });
    }

    fn enqueue_blocks(&self) -> bool {
        false
    }

    fn counter(&self, owner: Owner, device: DeviceId) -> StorageResult<Option<u64>> {
        self.connections.looking_up(|conn| match txn::load_owner(conn, owner).map_err(failed)? {
            Some((id, _)) => installations::counter(conn, id, device),
            None => Ok(None),
        })
    }

    /// - Bounds: a commit of this process is known once it is durable. A commit of another process that
    ///   writes to the file (such as `rollcall purge`) goes unnoticed for at most 10 ms.
    fn known_state(&self, owner: Owner) -> Option<OwnerState> {
        self.connections.known_state(owner)
    }

    fn are_current(&self, versions: &[(Owner, Version)]) -> bool {
        self.connections.are_current(versions)
    }

    fn erase(&self, owner: Owner, rows_max: usize) -> StorageResult<bool> {
        let mut is_more = false;
        self.connections.writing_for(owner, &mut |conn| {
            let Some((id, state)) = txn::load_owner(conn, owner).map_err(failed)? else {
                return Ok(Done::Rollback);
            };
            is_more = erase::erase(conn, &self.schema, id, rows_max)?;
            // What is known of the owner in memory ends with it.
            let mut after = OwnerState { version: state.version.next(), ..state };
            if !is_more {
                after = OwnerState { rows: 0, bytes: 0, past: PastBytes::default(), ..after };
            }
            quota::put_state(conn, id, &after)?;
            Ok(Done::Move((owner, state.version, after)))
        })?;
        Ok(is_more)
    }

    /// Only this server changes versions, so there are no events of other servers.
    fn on_moved(&self, listener: VersionListener) {
        self.connections.owner_states().add_listener(listener);
    }

    fn log_bytes(&self) -> u64 {
        std::fs::metadata(&self.log).map_or(0, |file| file.len())
    }

    fn ready(&self) -> StorageResult<()> {
        self.connections.reading(|conn| {
            conn.query_row("SELECT 1 FROM rollcall_meta LIMIT 1", [], |_| Ok(())).map_err(failed)
        })
    }

    fn owners(&self) -> &dyn Owners {
        &*self.connections
    }

    fn accounts(&self) -> Arc<dyn AccountStore> {
        Arc::clone(&self.connections) as Arc<dyn AccountStore>
    }

    fn census(&self) -> &dyn Census {
        self
    }

    fn leases(&self) -> Leases {
        Leases::InMemory(self.first_fence)
    }
}

/// Runs work of an owner inside an open transaction.
fn run(
    conn: &Connection,
    schema: &Schema,
    statements: &Statements,
    owner: Owner,
    work: WriteWork<'_>,
) -> StorageResult<Done> {
    let mut txn = Txn::begin_write(conn, schema, statements, owner)?;
    let before = txn.state().version;
    Ok(match work(&mut txn)? {
        Outcome::Commit => Done::Move((owner, before, txn.finish()?)),
        Outcome::Rollback => Done::Rollback,
    })
}

/// An owner's write in the queue of the writer thread.
struct OwnerJob {
    schema: Arc<Schema>,
    statements: Arc<Statements>,
    owner: Owner,
    job: Box<dyn WriteJob>,
}

impl writer::Job for OwnerJob {
    fn owner(&self) -> Owner {
        self.owner
    }

    fn run(&mut self, conn: &Connection) -> StorageResult<Done> {
        run(conn, &self.schema, &self.statements, self.owner, &mut |txn| self.job.run(txn))
    }

    fn finish(self, result: StorageResult<()>) {
        self.job.finish(result);
    }
}

/// Converts SQLite's error to that of the storage contract.
fn failed(error: rusqlite::Error) -> StorageError {
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => StorageError::Busy,
        Some(ErrorCode::DiskFull) => StorageError::Full(error.to_string()),
        _ => StorageError::Engine(Box::new(error)),
    }
}

//! The PostgreSQL engine: several servers over one database, which may be sharded by owner.
//!
//! Every statement over an owner's rows names the owner, which comes first in every key; a transaction
//! belongs to one owner. A writer locks its owner's row first, so versions are numbered in the order of
//! commits.

mod account_rows;
mod accounts;
mod address;
mod admin;
mod census;
mod circuit;
mod connections;
mod ddl;
mod deletions;
mod entries;
mod erase;
mod failure;
mod installations;
mod leases;
mod lookups;
mod mail_tokens;
mod many;
mod members;
mod migrate;
mod notify;
mod owner;
mod owners;
mod past;
mod purge;
mod quota;
mod records;
#[doc(hidden)] // for rollcall-bench, which runs the same statements
pub mod session;
#[doc(hidden)]
pub mod statements;
mod tables;
mod txn;
mod values;
mod whole;

#[doc(hidden)] // for the test of their plans; the others are in `statements`
pub mod planned {
    pub use super::account_rows::{NOTE_SIGHTING, SIGHTINGS};
    pub use super::deletions::{
        FORGET as FORGET_WINDOWS, FORGET_OLD as FORGET_OLD_WINDOWS, PUT as PUT_WINDOW, WINDOWS,
    };
    pub use super::many::PAIRED_MAX;
    pub use super::members::{COUNT as COUNT_MEMBERS, FIRST_OF_ROLE, INVITATIONS, MEMBER, MEMBERS};
    pub use super::quota::{COUNTS, FORGET_OLDEST_RESPONSES, FORGET_STATES, OLDEST_RESPONSES, OLDEST_STATES};
}

use std::sync::Arc;

use postgres::error::SqlState;
use postgres::types::Type;
use uuid::Uuid;

use crate::failure::failed;
use connections::Try;
use failure::Failure;
use rollcall_core::model::{DeviceId, Owner, Timestamp, Version};
use rollcall_core::schema::Schema;
use rollcall_core::storage::gate::OwnerGates;
use rollcall_core::storage::plan::{self, Plan};
use rollcall_core::storage::{
    AccountStore, Census, EngineObserver, Forgetful, Leases, Outcome, OwnerState, Owners, PurgeTerms, Purged,
    ReadTxn, ReadWork, Storage, StorageError, StorageResult, StoredResponse, VersionListener, WriteWork,
};
use session::{Param, Purpose, Session};
use statements::Statements;
use txn::Txn;

pub use address::Address;
pub use admin::{distribute, distribution};
pub use connections::{Connections, Terms};
pub use whole::PostgresWhole;

/// A PostgreSQL database with the data of one or several servers.
pub struct Postgres {
    connections: Arc<Connections>,
    schema: Arc<Schema>,
    statements: Statements,
    observer: Arc<dyn EngineObserver>,
    /// Writes of one owner wait here for each other, without occupying connections.
    turns: OwnerGates,
}

/// Why a PostgreSQL database cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The server cannot be reached.
    #[error(
        "cannot reach the database server of {address}: {reason}; is it running, and may this machine connect to it?"
    )]
    Unreachable {
        /// The database's address.
        address: String,
        /// The system's reason.
        reason: String,
    },
    /// The server answers, but the connection is not secured as required, or a password is missing.
    #[error(
        "cannot agree with the database server of {address} on a connection: {reason}; check sslmode, sslrootcert \
         and the password in the database's URL"
    )]
    Disagreed {
        /// The database's address.
        address: String,
        /// What is wrong.
        reason: String,
    },
    /// The server rejects the user.
    #[error(
        "the database server of {address} refuses the user {user:?}: {reason}; check user, password and sslmode in \
         the database's URL, and the server's pg_hba.conf"
    )]
    Refused {
        /// The database's address.
        address: String,
        /// The rejected user.
        user: String,
        /// The server's reason.
        reason: String,
    },
    /// The server has no such database.
    #[error(
        "there is no database {database:?} on the server of {address}; make it first: createdb {database}"
    )]
    NoDatabase {
        /// The database's address.
        address: String,
        /// Its name.
        database: String,
    },
    /// The server's version lacks what the engine needs.
    #[error("the database server of {address} is PostgreSQL {version}; {VERSION_MIN} or later is needed")]
    TooOld {
        /// The database's address.
        address: String,
        /// The server's version.
        version: i32,
    },
    /// The user lacks a privilege that a server needs.
    #[error(
        "the user {user:?} may not make or change tables in {address}: {reason}; let the user own the database and \
         rollcall's tables in it"
    )]
    NotPermitted {
        /// The database's address.
        address: String,
        /// The user without the privilege.
        user: String,
        /// The server's reason.
        reason: String,
    },
    /// The database failed.
    #[error("cannot use the database {address}: {reason}")]
    Database {
        /// The database's address.
        address: String,
        /// The server's reason.
        reason: String,
    },
    /// A newer release has removed what this one needs.
    #[error(
        "the database {address} is from a newer release of rollcall (it needs {oldest} migrations known, this \
         release knows {known})"
    )]
    FromNewerRelease {
        /// The database's address.
        address: String,
        /// Migrations that a release must know to work with it.
        oldest: i64,
        /// Migrations of this release.
        known: usize,
    },
    /// The database has no Citus extension.
    #[error("the database {address} has no Citus: CREATE EXTENSION citus, as its superuser, makes it one")]
    NoCitus {
        /// The database's address.
        address: String,
    },
    /// Citus has no node for shards.
    #[error(
        "the Citus of {address} has no node for shards: SELECT citus_set_coordinator_host(…), and \
         SELECT citus_add_node(…) for each worker, before the tables are distributed"
    )]
    NoNodes {
        /// The database's address.
        address: String,
    },
    /// A copy into the database was begun and not completed.
    #[error("the copy into the database {address} is not complete: run rollcall copy to its end first")]
    HalfCopied {
        /// The database's address.
        address: String,
    },
    /// The database is not empty, so a copy would be mixed with its data.
    #[error(
        "the database {address} holds data already: copy into an empty one (--check tells whether this is a copy \
         that was completed)"
    )]
    HoldsData {
        /// The database's address.
        address: String,
    },
    /// No deployment was copied there.
    #[error("the database {address} holds no copy that this release of rollcall has made")]
    NoCopy {
        /// The database's address.
        address: String,
    },
    /// The schema file and the tables in the database disagree.
    #[error("the schema does not fit the database, and to make it fit would lose data:\n{}", .0.join("\n"))]
    SchemaMismatch(Vec<String>),
    /// No connections can be opened.
    #[error("cannot open connections to the database: {0}")]
    Pool(r2d2::Error),
}

/// This is the oldest release that is still maintained; `ON CONFLICT`, `to_regclass` and the like are older.
const VERSION_MIN: i32 = 13;

impl OpenError {
    fn connecting(address: &Address, error: &postgres::Error) -> Self {
        let (shown, user) = (address.to_string(), address.user().to_owned());
        let reason = server_message(error);
        match error.code() {
            Some(code) if *code == SqlState::INVALID_CATALOG_NAME => {
                Self::NoDatabase { address: shown, database: address.database().to_owned() }
            }
            Some(code) if code.code().starts_with("28") => Self::Refused { address: shown, user, reason },
            Some(_) => Self::Database { address: shown, reason },
            // The system's own failures, except those of a certificate check.
            None if is_io(error) || error.is_closed() => Self::Unreachable { address: shown, reason },
            None => Self::Disagreed { address: shown, reason },
        }
    }

    fn database(address: &Address, error: &StorageError) -> Self {
        let shown = address.to_string();
        let StorageError::Engine(cause) = error else {
            return Self::Database { address: shown, reason: error.to_string() };
        };
        match cause.downcast_ref::<postgres::Error>() {
            Some(cause) if cause.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => Self::NotPermitted {
                address: shown,
                user: address.user().to_owned(),
                reason: server_message(cause),
            },
            Some(cause) => Self::Database { address: shown, reason: server_message(cause) },
            None => Self::Database { address: shown, reason: cause.to_string() },
        }
    }
}

fn is_io(error: &postgres::Error) -> bool {
    let cause = std::error::Error::source(error).and_then(|cause| cause.downcast_ref::<std::io::Error>());
    cause.is_some_and(|cause| !cause.get_ref().is_some_and(|within| within.is::<rustls::Error>()))
}

/// The message of the server, or of the system.
fn server_message(error: &postgres::Error) -> String {
    match (error.as_db_error(), std::error::Error::source(error)) {
        (Some(error), _) => error.message().to_owned(),
        (None, Some(cause)) => cause.to_string(),
        (None, None) => error.to_string(),
    }
}

impl Postgres {
    /// Prepares an opened database for a server: makes its tables fit the schema.
    ///
    /// - `now`: the value of existing rows when a column with the default `now` is added.
    /// - `observer`: receives the engine's events.
    /// - Errors: [`OpenError`]; the database is then unchanged.
    pub fn serve(
        address: &Address,
        connections: Connections,
        terms: &Terms,
        schema: Arc<Schema>,
        now: Timestamp,
        observer: Arc<dyn EngineObserver>,
    ) -> Result<Self, OpenError> {
        let mut session = Connections::single(address, terms)?;
        if whole::is_copying(&mut session).map_err(|error| OpenError::database(address, &error))? {
            return Err(OpenError::HalfCopied { address: address.to_string() });
        }
        let ids = prepare(&mut session, address, &schema, now)?;
        drop(session);
        Connections::notice(address, terms, now)?;
        let statements = Statements::new(&schema, &ids);
        let turns = OwnerGates::new(terms.busy_wait);
        Ok(Self { connections: Arc::new(connections), schema, statements, observer, turns })
    }

    /// What a server would create, add or refuse in the database. Nothing is changed.
    pub fn compare(address: &Address, schema: &Schema, terms: &Terms) -> Result<Plan, OpenError> {
        let mut session = Connections::single(address, terms)?;
        migrate::done(&mut session, address)?;
        plan::compare(&mut &mut session, schema).map_err(|error| OpenError::database(address, &error))
    }
}

/// Makes the tables fit the schema; returns their numbers in the ledger.
fn prepare(
    session: &mut Session,
    address: &Address,
    schema: &Schema,
    now: Timestamp,
) -> Result<Vec<i32>, OpenError> {
    let failed = |error| OpenError::database(address, &error);
    let transaction = session.begin(Purpose::Write).map_err(failed)?;
    // Takes the lock under which servers prepare the database, one after the other.
    migrate::done(transaction.session, address)?;
    let plan = plan::compare(&mut &mut *transaction.session, schema).map_err(failed)?;
    if !plan.refusals().is_empty() {
        return Err(OpenError::SchemaMismatch(plan.refusals().to_vec()));
    }
    plan.carry_out(&mut &mut *transaction.session, now).map_err(failed)?;
    let ids = schema.tables().iter().map(|table| table_id(transaction.session, &table.name));
    let ids = ids.collect::<StorageResult<_>>().map_err(failed)?;
    transaction.commit().map_err(failed)?;
    for line in plan.describe() {
        tracing::info!("{line}");
    }
    Ok(ids)
}

fn table_id(session: &mut Session, name: &str) -> StorageResult<i32> {
    let params: [Param<'_>; 1] = [(&name, Type::TEXT)];
    if let Some(row) = session.row("SELECT id FROM rollcall_table WHERE name = $1", &params)? {
        return row.try_get(0).map_err(failed);
    }
    let last = session.row("SELECT coalesce(max(id), 0) FROM rollcall_table", &[])?;
    let id = last.map_or(Ok(0), |row| row.try_get::<_, i32>(0)).map_err(failed)? + 1;
    let params: [Param<'_>; 2] = [(&id, Type::INT4), (&name, Type::TEXT)];
    session.execute("INSERT INTO rollcall_table (id, name) VALUES ($1, $2)", &params)?;
    Ok(id)
}

/// What is needed to find out whether a transaction committed, if the connection breaks during COMMIT.
struct CommitRecord {
    id: Uuid,
    before: Version,
    after: Version,
    kept: Option<(DeviceId, String)>,
}

/// How a write ended.
enum WriteEnd {
    /// The work was committed or rolled back as requested; a commit may have changed the owner's version.
    Done(Option<Version>),
    /// The COMMIT failed, and the transaction may have been committed nevertheless.
    Unknown(CommitRecord, Failure, StorageError),
}

impl Postgres {
    fn write_in_turn(&self, owner: Owner, work: WriteWork<'_>) -> StorageResult<()> {
        for _ in 0..3 {
            match self.connections.for_owner(owner, |session| self.write_once(session, owner, work))? {
                WriteEnd::Done(moved) => {
                    self.observer.committed(1);
                    moved.inspect(|version| self.connections.notify.moved(owner, *version));
                    return Ok(());
                }
                WriteEnd::Unknown(sent, failure, error) => {
                    tracing::warn!(%owner, %error, "a COMMIT failed; checking whether it took effect");
                    // If it cannot be found out, the device sends the request again.
                    let kept = self.was_committed(owner, &sent).map_err(|_| StorageError::OutcomeUnknown)?;
                    if kept {
                        self.connections.notify.moved(owner, sent.after);
                        return Ok(());
                    }
                    if !failure.may_pass() {
                        return Err(error);
                    }
                }
            }
        }
        Err(StorageError::Busy)
    }

    fn write_once(
        &self,
        session: &mut Session,
        owner: Owner,
        work: WriteWork<'_>,
    ) -> StorageResult<WriteEnd> {
        let transaction = session.begin(Purpose::Write)?;
        let mut txn = Txn::begin_write(transaction.session, &self.schema, &self.statements, owner)?;
        let before = txn.state().version;
        let outcome = work(&mut txn).and_then(|outcome| {
            if outcome == Outcome::Commit { txn.finish().map(|()| outcome) } else { Ok(outcome) }
        });
        let sent = CommitRecord { id: txn.id(), before, after: txn.state().version, kept: txn.kept.take() };
        // The work may have treated a failure as a result of its own. The session's failure decides.
        match transaction.session.failure() {
            Some(failure) if failure.may_pass() => return Err(StorageError::Busy),
            Some(_) if matches!(outcome, Ok(Outcome::Commit)) => return Err(spoilt()),
            _ => {}
        }
        if outcome? == Outcome::Rollback {
            return Ok(WriteEnd::Done(None));
        }
        let moved = (sent.after != sent.before).then_some(sent.after);
        match transaction.commit() {
            Ok(()) => Ok(WriteEnd::Done(moved)),
            Err(error) => {
                let failure = session.failure().copied().unwrap_or(Failure::Lasting);
                Ok(WriteEnd::Unknown(sent, failure, error))
            }
        }
    }

    /// Finds out whether a transaction with an unknown result was committed.
    ///
    /// The session of the lost connection holds the owner's row as long as it works on the transaction. So
    /// the transaction has ended once this session has locked the row.
    fn was_committed(&self, owner: Owner, sent: &CommitRecord) -> StorageResult<bool> {
        if sent.after == sent.before {
            return Ok(false); // such work may be done twice
        }
        self.connections.for_owner(owner, |session| {
            let transaction = session.begin(Purpose::Write)?;
            let known = txn::load_owner(transaction.session, owner, statements::LOCK_OWNER)?;
            let Some(known) = known else { return Ok(false) };
            if known.written == Some(sent.id) {
                return Ok(true);
            }
            if known.state.version == sent.before {
                return Ok(false);
            }
            let (device, key) = sent.kept.as_ref().ok_or(StorageError::OutcomeUnknown)?;
            let given = records::stored_response(transaction.session, owner.0, *device, key)?;
            Ok(given.is_some_and(|given| given.version == sent.after))
        })
    }
}

fn spoilt() -> StorageError {
    StorageError::Engine("a statement failed, and the work would be kept all the same".into())
}

impl Storage for Postgres {
    fn run_read(&self, owner: Owner, work: ReadWork<'_>) -> StorageResult<()> {
        self.connections.with_owner(owner, |session| {
            let mut begun = false;
            let done = session.begin(Purpose::Read).and_then(|transaction| {
                // The first statement fixes the snapshot.
                let mut txn = Txn::begin_read(transaction.session, &self.schema, &self.statements, owner)?;
                begun = true;
                work(&mut txn)
            });
            match done {
                // Work that has begun is not repeated: it may have sent what it read.
                Err(error) if !begun => Try::failed(session, error),
                done => Try::Done(done),
            }
        })
    }

    fn run_write(&self, owner: Owner, work: WriteWork<'_>) -> StorageResult<()> {
        self.turns.run(owner, || self.write_in_turn(owner, work))
    }

    fn counter(&self, owner: Owner, device: DeviceId) -> StorageResult<Option<u64>> {
        self.connections.looking_up(|session| installations::counter(session, owner.0, device))
    }

    fn stored_response(
        &self,
        owner: Owner,
        device: DeviceId,
        key: &str,
    ) -> StorageResult<Option<StoredResponse>> {
        self.connections.for_owner(owner, |session| records::stored_response(session, owner.0, device, key))
    }

    /// Another server may have written a moment ago, so only the database knows.
    fn known_state(&self, _: Owner) -> Option<OwnerState> {
        None
    }

    fn on_moved(&self, listener: VersionListener) {
        self.connections.notify.on_moved(listener);
    }

    fn ready(&self) -> StorageResult<()> {
        self.connections
            .with_retry(|session| session.query("SELECT 1 FROM rollcall_meta LIMIT 1", &[]))
            .map(drop)
    }

    fn owners(&self) -> &dyn Owners {
        &*self.connections
    }

    fn erase(&self, owner: Owner, rows_max: usize) -> StorageResult<bool> {
        self.connections.with_retry(|session| {
            let transaction = session.begin(Purpose::Write)?;
            let is_more = erase::erase(transaction.session, &self.schema, owner, rows_max)?;
            transaction.commit()?;
            Ok(is_more)
        })
    }

    fn accounts(&self) -> Arc<dyn AccountStore> {
        Arc::clone(&self.connections) as Arc<dyn AccountStore>
    }

    fn census(&self) -> &dyn Census {
        self
    }

    fn leases(&self) -> Leases {
        Leases::Shared(Arc::clone(&self.connections) as _)
    }
}

/// A purge uses none of the application's tables, so a command can run it without their schema.
impl Forgetful for Connections {
    fn owners(&self) -> &dyn Owners {
        self
    }

    fn forget(&self, owner: Owner, terms: &PurgeTerms, rows_max: usize) -> StorageResult<Purged> {
        self.for_owner(owner, |session| {
            let transaction = session.begin(Purpose::Write)?;
            let known = txn::load_owner(transaction.session, owner, statements::LOCK_OWNER)?;
            let Some(mut known) = known else { return Ok(Purged::default()) };
            let written = known.state;
            let purged = purge::purge(transaction.session, owner.0, &mut known.state, terms, rows_max)?;
            if known.state != written {
                quota::put_state(transaction.session, owner.0, written.version, &known.state, None)?;
            }
            transaction.commit()?;
            Ok(purged)
        })
    }

    fn count(&self, owner: Owner) -> StorageResult<()> {
        self.count_past(owner)
    }
}

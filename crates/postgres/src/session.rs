//! One connection, with its prepared statements and its last failure.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::time::Duration;

use postgres::fallible_iterator::FallibleIterator as _;
use postgres::types::{ToSql, Type};
use postgres::{Client, Row, SimpleQueryMessage, Statement};

use super::failure::Failure;
use super::statements;
use crate::failure::failed;
use rollcall_core::storage::{StorageError, StorageResult};

/// A bound value, with the type that the statement expects.
pub(super) type Param<'a> = (&'a (dyn ToSql + Sync), Type);

/// A connection to the database.
pub(super) struct Session {
    client: Client,
    /// `None` if a pooler may use another connection for each statement.
    prepared: Option<HashMap<String, Statement>>,
    timeouts: Timeouts,
    /// The first failure since the transaction began.
    failure: Option<Failure>,
    /// When the open transaction began, by the database's clock.
    began_ms: Option<i64>,
}

/// The time limits of a session.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// Waiting for a row that another transaction has locked.
    pub lock: Duration,
    /// One statement.
    pub statement: Duration,
    /// Idle-in-transaction timeout: a frozen server must not keep its owner locked.
    pub idle: Duration,
    /// Whether the tables are spread over the nodes of a cluster, which must know of the bounds too.
    pub is_spread: bool,
    /// Whether the session has these as its own settings, so that a transaction need not set them.
    pub is_set: bool,
}

/// Prepared statements of one connection, before all are dropped and prepared again.
const PREPARED_MAX: usize = 2_000;

/// How long a node of a cluster may say nothing, if waits for other transactions are bounded by less.
const SILENT_MAX: Duration = Duration::from_secs(5);

/// Has Citus hand what is set for the transaction from here on to the nodes that it uses: each with all of the text that
/// it came in, so it comes alone.
const HAND_ON: &str = "SET LOCAL citus.propagate_set_commands = 'local'";

/// What a transaction is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Reads one snapshot.
    Read,
    /// The same over all owners, which may take long.
    Survey,
    /// Each statement sees what is committed. The first one locks the owner, so the following ones see all of
    /// the owner's rows.
    Write,
}

impl Timeouts {
    /// The statement that begins a transaction and returns the time.
    pub fn begin(&self, purpose: Purpose) -> String {
        let Self { idle, is_spread, .. } = self;
        let level = match purpose {
            Purpose::Read | Purpose::Survey => "REPEATABLE READ READ ONLY",
            Purpose::Write => "READ COMMITTED",
        };
        // For this transaction alone: a pooler may hand the connection to somebody else after it.
        let mut begin = format!("BEGIN ISOLATION LEVEL {level}; ");
        let statement = if purpose == Purpose::Survey { self.statement } else { self.statement_max() };
        if !self.is_set || statement != self.statement_max() {
            let _ = write!(begin, "SET LOCAL statement_timeout = {}; ", statement.as_millis());
        }
        if !self.is_set {
            let idle = idle.as_millis();
            let _ =
                write!(begin, "SET LOCAL idle_in_transaction_session_timeout = {idle}; {}; ", self.wait());
        }
        begin.push_str(statements::NOW);
        if *is_spread {
            let _ = write!(begin, "; {HAND_ON}");
        }
        begin
    }

    /// The same as settings of a session, as a connection takes them.
    pub fn options(&self) -> String {
        let Self { lock, idle, .. } = self;
        let [lock, idle] = [lock, idle].map(Duration::as_millis);
        let statement = self.statement_max().as_millis();
        let mut options = format!(
            "-c lock_timeout={lock} -c statement_timeout={statement} \
             -c idle_in_transaction_session_timeout={idle}"
        );
        if self.is_spread {
            let _ = write!(options, " -c citus.node_connection_timeout={statement}");
        }
        options
    }

    /// How long a statement of one owner may take. A node that is frozen says nothing at all: the coordinator must not
    /// wait for it as long as for an answer.
    fn statement_max(&self) -> Duration {
        if self.is_spread { self.statement.min(self.lock.max(SILENT_MAX)) } else { self.statement }
    }

    /// What bounds the transaction's waits for others.
    fn wait(&self) -> String {
        format!("SET LOCAL lock_timeout = {}", self.lock.as_millis())
    }
}

impl Session {
    pub fn new(client: Client, prepare: bool, timeouts: Timeouts) -> Self {
        Self { client, prepared: prepare.then(HashMap::new), timeouts, failure: None, began_ms: None }
    }

    /// Whether the connection is unusable.
    pub fn is_broken(&self) -> bool {
        self.client.is_closed() || self.failure.is_some_and(Failure::breaks_the_session)
    }

    pub fn forget_failure(&mut self) {
        self.failure = None;
    }

    /// The failure of the first statement that failed.
    pub fn failure(&self) -> Option<&Failure> {
        self.failure.as_ref()
    }

    /// Begins a transaction, which ends when the guard is dropped.
    pub fn begin(&mut self, purpose: Purpose) -> StorageResult<Transaction<'_>> {
        self.failure = None;
        let begun = self.client.simple_query(&self.timeouts.begin(purpose));
        let begun = self.noted(begun)?;
        self.began_ms = begun.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0)?.parse().ok(),
            _ => None,
        });
        let transaction = Transaction { session: self, ended: false };
        if transaction.session.timeouts.is_spread {
            let wait = transaction.session.timeouts.wait();
            transaction.session.batch(&wait)?;
        }
        Ok(transaction)
    }

    /// The time by the database's clock, ms. In a transaction it is the time of its beginning, without a query.
    pub fn now(&mut self) -> StorageResult<i64> {
        if let Some(began) = self.began_ms {
            return Ok(began);
        }
        let row = self.row(statements::NOW, &[])?;
        row.map_or(Ok(0), |row| row.try_get(0)).map_err(failed)
    }

    /// Records that another transaction wrote for the owner in spite of this one's lock.
    pub fn overtaken(&mut self) -> StorageError {
        tracing::warn!(
            "another transaction wrote the owner in spite of its lock, as when its shard moves; trying again"
        );
        self.failure.get_or_insert(Failure::InTheWay);
        StorageError::Busy
    }

    /// The server's version: 150004 is 15.4.
    pub fn version(&mut self) -> StorageResult<i32> {
        let row = self.row("SELECT current_setting('server_version_num')::int", &[])?;
        row.map_or(Ok(0), |row| row.try_get(0)).map_err(failed)
    }

    /// Runs statements without parameters and results.
    pub fn batch(&mut self, sql: &str) -> StorageResult<()> {
        let done = self.client.batch_execute(sql);
        self.noted(done)
    }

    pub fn query(&mut self, sql: &str, params: &[Param<'_>]) -> StorageResult<Vec<Row>> {
        let rows = match self.statement(sql, params) {
            Ok(Some(statement)) => self.client.query(&statement, &values(params)),
            Ok(None) => {
                let params: Vec<_> = params.iter().map(|(value, kind)| (*value, kind.clone())).collect();
                self.client.query_typed(sql, &params)
            }
            Err(error) => Err(error),
        };
        self.noted(rows)
    }

    /// The only row, if there is one.
    pub fn row(&mut self, sql: &str, params: &[Param<'_>]) -> StorageResult<Option<Row>> {
        Ok(self.query(sql, params)?.into_iter().next())
    }

    /// A row about the database and not about an owner, outside of a transaction. If it fails, the work goes on.
    pub fn beside(&mut self, sql: &str, params: &[Param<'_>]) -> Option<Row> {
        let before = self.failure;
        let row = self.row(sql, params).ok().flatten();
        self.failure = before;
        row
    }

    /// Returns how many rows were written.
    pub fn execute(&mut self, sql: &str, params: &[Param<'_>]) -> StorageResult<u64> {
        let rows = match self.statement(sql, params) {
            Ok(Some(statement)) => self.client.execute(&statement, &values(params)),
            Ok(None) => {
                let params: Vec<_> = params.iter().map(|(value, kind)| (*value, kind.clone())).collect();
                self.client.execute_typed(sql, &params)
            }
            Err(error) => Err(error),
        };
        self.noted(rows)
    }

    /// Calls `each` with row after row, without keeping them, until it returns `false`.
    pub fn each(
        &mut self,
        sql: &str,
        params: &[Param<'_>],
        each: &mut dyn FnMut(&Row) -> StorageResult<bool>,
    ) -> StorageResult<()> {
        let params = params.iter().map(|(value, kind)| (*value, kind.clone()));
        let result = self.client.query_typed_raw(sql, params).and_then(|mut rows| {
            while let Some(row) = rows.next()? {
                match each(&row) {
                    Ok(true) => {}
                    ended => return Ok(ended.map(drop)),
                }
            }
            Ok(Ok(()))
        });
        self.noted(result)?
    }

    /// Runs a `COPY … FROM STDIN` with its input; returns how many rows were written.
    pub fn copy_in(&mut self, sql: &str, bytes: &[u8]) -> StorageResult<u64> {
        let copied = match self.client.copy_in(sql) {
            Ok(mut writer) => {
                // The writer buffers the bytes until the end.
                writer.write_all(bytes).map_err(|error| StorageError::Engine(Box::new(error)))?;
                writer.finish()
            }
            Err(error) => Err(error),
        };
        self.noted(copied)
    }

    fn statement(&mut self, sql: &str, params: &[Param<'_>]) -> Result<Option<Statement>, postgres::Error> {
        let Some(prepared) = &mut self.prepared else { return Ok(None) };
        if let Some(statement) = prepared.get(sql) {
            return Ok(Some(statement.clone()));
        }
        if prepared.len() >= PREPARED_MAX {
            prepared.clear();
        }
        let types: Vec<Type> = params.iter().map(|(_, kind)| kind.clone()).collect();
        let statement = self.client.prepare_typed(sql, &types)?;
        prepared.insert(sql.to_owned(), statement.clone());
        Ok(Some(statement))
    }

    fn noted<T>(&mut self, done: Result<T, postgres::Error>) -> StorageResult<T> {
        done.map_err(|error| {
            let failure = Failure::of(&error);
            // Later failures only follow from the first one.
            self.failure.get_or_insert(failure);
            failed(error)
        })
    }
}

fn values<'a>(params: &[Param<'a>]) -> Vec<&'a (dyn ToSql + Sync)> {
    params.iter().map(|(value, _)| *value).collect()
}

/// An open transaction, rolled back unless it is committed.
pub(super) struct Transaction<'a> {
    pub session: &'a mut Session,
    ended: bool,
}

impl Transaction<'_> {
    /// Commits the transaction.
    pub fn commit(mut self) -> StorageResult<()> {
        self.ended = true;
        self.session.began_ms = None;
        self.session.batch("COMMIT")
    }
}

impl Drop for Transaction<'_> {
    fn drop(&mut self) {
        self.session.began_ms = None;
        if !self.ended && !self.session.client.is_closed() {
            // If this fails, the connection is lost, and the transaction with it.
            let _ = self.session.client.batch_execute("ROLLBACK");
        }
    }
}

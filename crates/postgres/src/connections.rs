use std::sync::Arc;
use std::time::{Duration, Instant};

use postgres::types::Type;

use super::address::Address;
use super::failure::Failure;
use super::notify::Notifier;
use super::session::{Session, Timeouts};
use super::{OpenError, VERSION_MIN, migrate, statements};
use crate::failure::failed;
use rollcall_core::model::Owner;
use rollcall_core::storage::gate::Gate;
use rollcall_core::storage::{StorageError, StorageResult};

/// How a server uses its database.
#[derive(Clone, Debug)]
pub struct Terms {
    /// Most connections.
    pub connections_max: u32,
    /// How many of them only accounts and tokens may use; at least one remains for all other work.
    pub for_accounts: u32,
    /// How long work waits for a connection, for a locked row, or for another attempt.
    pub busy_wait: Duration,
    /// How long one statement may take.
    pub statement_max: Duration,
    /// How long a transaction may stay open without a statement.
    pub idle_max: Duration,
    /// Whether statements are prepared on a connection; not with a pooler that may use another connection for
    /// each transaction.
    pub prepare: bool,
}

/// The connections to one database, opened on demand and kept.
///
/// Opening, using and dropping a connection blocks, so none of these may happen in asynchronous code.
pub struct Connections {
    /// Taken out on drop.
    pool: Option<r2d2::Pool<Manager>>,
    /// Work of an owner passes this gate, so that the pool always has connections for accounts and tokens.
    gate: Gate,
    /// Notifications of this database's owners.
    pub(super) notify: Arc<Notifier>,
    busy_wait: Duration,
    tries_max: u32,
}

/// The result of one attempt.
pub(super) enum Try<T> {
    Done(StorageResult<T>),
    /// Another attempt may succeed; without time for one, this error is returned.
    Again(StorageError),
}

impl<T> Try<T> {
    /// A failure of the session, which may be worth another attempt.
    pub fn failed(session: &Session, error: StorageError) -> Self {
        match session.failure() {
            Some(failure) if failure.may_pass() => Self::Again(error),
            _ => Self::Done(Err(error)),
        }
    }
}

/// Attempts, not counting those that dead connections use up.
const TRIES_MAX: u32 = 5;

impl Connections {
    /// Opens the database, and brings rollcall's own tables up to date.
    ///
    /// Errors: [`OpenError`] contains the remedy.
    pub fn open(address: &Address, terms: &Terms) -> Result<Self, OpenError> {
        migrate::migrate(&mut Self::single(address, terms)?, address)?;
        let manager = Manager { address: address.clone(), terms: terms.clone() };
        let pool = r2d2::Pool::builder()
            .max_size(terms.connections_max.max(2))
            .min_idle(Some(1))
            .connection_timeout(terms.busy_wait)
            .test_on_check_out(false)
            .error_handler(Box::new(LogErrors))
            .build(manager)
            .map_err(OpenError::Pool)?;
        let tries_max = TRIES_MAX + terms.connections_max;
        let notify = Notifier::new(address.clone());
        let gate =
            Gate::new(terms.connections_max.max(2).saturating_sub(terms.for_accounts), terms.busy_wait);
        Ok(Self { pool: Some(pool), gate, notify, busy_wait: terms.busy_wait, tries_max })
    }

    /// A single connection, to inspect or prepare the database.
    pub(super) fn single(address: &Address, terms: &Terms) -> Result<Session, OpenError> {
        let manager = Manager { address: address.clone(), terms: terms.clone() };
        let mut session = manager.session().map_err(|error| OpenError::connecting(address, &error))?;
        let version = session.version().map_err(|error| OpenError::database(address, &error))?;
        if version < VERSION_MIN * 10_000 {
            return Err(OpenError::TooOld { address: address.to_string(), version: version / 10_000 });
        }
        Ok(session)
    }

    /// Runs work with a connection, again and again while another attempt may succeed and there is time.
    pub(super) fn with<T>(&self, work: impl FnMut(&mut Session) -> Try<T>) -> StorageResult<T> {
        let _inside = self.gate.enter()?;
        self.with_any(work)
    }

    /// The same, including connections for accounts and tokens.
    fn with_any<T>(&self, mut work: impl FnMut(&mut Session) -> Try<T>) -> StorageResult<T> {
        let begun = Instant::now();
        let mut tries = 0;
        loop {
            let pool = self.pool.as_ref().ok_or(StorageError::Busy)?;
            let mut session = pool.get().map_err(|_| StorageError::Busy)?;
            session.forget_failure();
            let error = match work(&mut session) {
                Try::Done(done) => return done,
                Try::Again(error) => error,
            };
            tries += 1;
            let failure = session.failure().copied();
            let was_lost = session.is_broken() && failure != Some(Failure::ReadOnly);
            drop(session);
            if tries >= self.tries_max || begun.elapsed() >= self.busy_wait {
                return Err(error);
            }
            // After a restart of the database every connection of the pool turns out to be dead, one by one.
            // A node that is unavailable is tried less and less often, and occupies no connection meanwhile.
            if !was_lost {
                std::thread::sleep(pause() * if failure == Some(Failure::Away) { tries.min(10) } else { 1 });
            }
        }
    }

    /// The same, with another attempt after any failure that may pass. Outside of a transaction each
    /// statement is a transaction of its own.
    pub(super) fn with_retry<T>(
        &self,
        mut work: impl FnMut(&mut Session) -> StorageResult<T>,
    ) -> StorageResult<T> {
        self.with(|session| match work(session) {
            Err(error) => Try::failed(session, error),
            done => Try::Done(done),
        })
    }

    /// The same, to look up or change an account, a token or an installation. It does not wait for rows of
    /// owners.
    pub(super) fn looking_up<T>(
        &self,
        mut work: impl FnMut(&mut Session) -> StorageResult<T>,
    ) -> StorageResult<T> {
        self.with_any(|session| match work(session) {
            Err(error) => Try::failed(session, error),
            done => Try::Done(done),
        })
    }

    /// Every owner after `after`, by id, at most `owners_max`.
    pub(super) fn owners(&self, after: Option<Owner>, owners_max: usize) -> StorageResult<Vec<Owner>> {
        let from = match after {
            None => uuid::Uuid::nil(),
            Some(after) => match after.0.as_u128().checked_add(1) {
                Some(next) => uuid::Uuid::from_u128(next),
                None => return Ok(Vec::new()),
            },
        };
        let limit = i64::try_from(owners_max).unwrap_or(i64::MAX);
        let rows = self.with_retry(|session| {
            session.query(statements::OWNERS, &[(&from, Type::UUID), (&limit, Type::INT8)])
        })?;
        rows.iter().map(|row| Ok(Owner(row.try_get(0).map_err(failed)?))).collect()
    }
}

impl Drop for Connections {
    /// The last reference may be dropped anywhere, even in asynchronous code.
    fn drop(&mut self) {
        self.notify.end();
        if let Some(pool) = self.pool.take() {
            let _ = std::thread::spawn(move || drop(pool)).join();
        }
    }
}

/// 10 to 200 ms, random so that conflicting writers do not meet again.
fn pause() -> Duration {
    let mut random = [0; 1];
    let _ = getrandom::fill(&mut random);
    Duration::from_millis(10 + u64::from(random[0]) * 190 / 255)
}

/// The settings of a connection on which statements are prepared.
///
/// Statements outside of a transaction must not wait without limit either. If a table was empty when it was
/// analysed, every statement prepared afterwards would scan it, even when it has grown. So scans are disabled
/// here. A statement without an index still scans, and its estimated cost must not start the JIT compiler.
fn options(lock: Duration) -> String {
    format!("-c lock_timeout={} -c enable_seqscan=off -c jit=off", lock.as_millis())
}

struct Manager {
    address: Address,
    terms: Terms,
}

impl Manager {
    fn session(&self) -> Result<Session, postgres::Error> {
        let Terms { busy_wait, statement_max, idle_max, prepare, .. } = self.terms;
        let timeouts = Timeouts { lock: busy_wait, statement: statement_max, idle: idle_max };
        // A pooler refuses such options.
        let options = prepare.then(|| options(busy_wait));
        Ok(Session::new(self.address.connect(busy_wait, options.as_deref())?, prepare, timeouts))
    }
}

impl r2d2::ManageConnection for Manager {
    type Connection = Session;
    type Error = postgres::Error;

    fn connect(&self) -> Result<Session, postgres::Error> {
        self.session()
    }

    fn is_valid(&self, _: &mut Session) -> Result<(), postgres::Error> {
        Ok(())
    }

    fn has_broken(&self, session: &mut Session) -> bool {
        session.is_broken()
    }
}

#[derive(Debug)]
struct LogErrors;

impl r2d2::HandleError<postgres::Error> for LogErrors {
    fn handle_error(&self, error: postgres::Error) {
        tracing::warn!(%error, "cannot connect to the database");
    }
}

use std::sync::Arc;
use std::time::{Duration, Instant};

use postgres::types::Type;

use super::address::Address;
use super::circuit::{Circuit, Node};
use super::failure::Failure;
use super::notify::Notifier;
use super::session::{Session, Timeouts};
use super::{OpenError, VERSION_MIN, migrate};
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
    /// Nodes that are away; `None` if the tables are not spread over a cluster.
    circuit: Option<Circuit>,
    busy_wait: Duration,
    tries_max: u32,
    /// Whether servers of the release before may be at work beside this one.
    pub(super) overlaps: bool,
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

/// Is there where servers of the release before may be at work: they hold two users of one email apart by it.
const OVERLAPS: &str = "SELECT 1 FROM pg_constraint WHERE conname = 'rollcall_user_email_key'";

/// Attempts, not counting those that dead connections use up.
const TRIES_MAX: u32 = 5;

impl Connections {
    /// Opens the database, and brings rollcall's own tables up to date.
    ///
    /// Errors: [`OpenError`] contains the remedy.
    pub fn open(address: &Address, terms: &Terms) -> Result<Self, OpenError> {
        let mut session = Self::single(address, terms)?;
        migrate::migrate(&mut session, address)?;
        let is_spread = has_citus(&mut session).map_err(|error| OpenError::database(address, &error))?;
        let overlaps = session.row(OVERLAPS, &[]).map_err(|error| OpenError::database(address, &error))?;
        let overlaps = overlaps.is_some();
        drop(session);
        let manager = Manager { address: address.clone(), terms: terms.clone(), is_spread };
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
        let circuit = is_spread.then(Circuit::default);
        let busy_wait = terms.busy_wait;
        Ok(Self { pool: Some(pool), gate, notify, circuit, busy_wait, tries_max, overlaps })
    }

    /// A single connection, to inspect or prepare the database.
    pub(super) fn single(address: &Address, terms: &Terms) -> Result<Session, OpenError> {
        let manager = Manager { address: address.clone(), terms: terms.clone(), is_spread: false };
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

    /// The same for work of one owner: at once [`StorageError::Busy`] while its node is away.
    pub(super) fn for_owner<T>(
        &self,
        owner: Owner,
        mut work: impl FnMut(&mut Session) -> StorageResult<T>,
    ) -> StorageResult<T> {
        self.with_owner(owner, |session| match work(session) {
            Err(error) => Try::failed(session, error),
            done => Try::Done(done),
        })
    }

    /// The same, where the work judges failures itself.
    pub(super) fn with_owner<T>(
        &self,
        owner: Owner,
        mut work: impl FnMut(&mut Session) -> Try<T>,
    ) -> StorageResult<T> {
        let Some(circuit) = &self.circuit else { return self.with(work) };
        self.with(|session| {
            let node = if circuit.is_open() { node_of(session, owner) } else { None };
            if node.as_ref().is_some_and(|node| !circuit.may_try(node, Instant::now())) {
                return Try::Done(Err(StorageError::Busy));
            }
            let tried = work(session);
            match (session.failure(), node) {
                (Some(Failure::Away | Failure::TooLong), node) => {
                    if let Some(node) = node.or_else(|| node_of(session, owner))
                        && circuit.failed(node.clone(), Instant::now())
                    {
                        tracing::warn!(
                            host = node.0,
                            port = node.1,
                            "a node of the cluster does not respond"
                        );
                    }
                }
                (None, Some(node)) => circuit.answered(&node),
                _ => {}
            }
            tried
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

/// Whether the database is one of a Citus cluster.
fn has_citus(session: &mut Session) -> StorageResult<bool> {
    let found = session.row("SELECT count(*) FROM pg_extension WHERE extname = 'citus'", &[])?;
    Ok(found.map_or(Ok(0), |row| row.try_get::<_, i64>(0)).map_err(failed)? > 0)
}

/// The node that has an owner's rows, as the coordinator knows it.
const NODE: &str = "SELECT n.nodename, n.nodeport FROM pg_dist_placement p JOIN pg_dist_node n USING (groupid) \
     WHERE p.shardid = get_shard_id_for_distribution_column('rollcall_owner', $1::uuid)";

fn node_of(session: &mut Session, owner: Owner) -> Option<Node> {
    let row = session.beside(NODE, &[(&owner.0, Type::UUID)])?;
    Some((row.try_get(0).ok()?, row.try_get(1).ok()?))
}

/// 10 to 200 ms, random so that conflicting writers do not meet again.
fn pause() -> Duration {
    let mut random = [0; 1];
    let _ = getrandom::fill(&mut random);
    Duration::from_millis(10 + u64::from(random[0]) * 190 / 255)
}

/// What a connection that statements are prepared on begins with, beside what bounds its statements.
///
/// A table that was empty when it was analysed is read from end to end by every statement that a connection then prepares,
/// and still is when it has grown. So here each statement goes by an index; what has none is scanned all the same, and its
/// cost must not start the compiler.
const PLANNING: &str = "-c enable_seqscan=off -c jit=off";

struct Manager {
    address: Address,
    terms: Terms,
    /// Whether the tables are spread over the nodes of a cluster.
    is_spread: bool,
}

impl Manager {
    fn session(&self) -> Result<Session, postgres::Error> {
        let Terms { busy_wait, statement_max, idle_max, prepare, .. } = self.terms;
        // A pooler refuses such options, and an address may have its own.
        let is_set = prepare && !self.address.has_options();
        let timeouts = Timeouts {
            lock: busy_wait,
            statement: statement_max,
            idle: idle_max,
            is_spread: self.is_spread,
            is_set,
        };
        let options = is_set.then(|| format!("{} {PLANNING}", timeouts.options()));
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

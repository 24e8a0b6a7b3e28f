//! The engine that the tests of this process run on, and a store of it for each test.
//!
//! A module that calls `run_again_on_postgres` runs once more in a process of its own, with `ROLLCALL_TEST_ENGINE` set.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rollcall::metrics::Metrics;
use rollcall::model::{Owner, Timestamp};
use rollcall::schema::Schema;
use rollcall::storage::postgres::{self, Postgres, Terms};
use rollcall::storage::sqlite::{self, Sqlite};
use rollcall::storage::{AccountStore, Forgetful, Storage};
use tempfile::TempDir;

use pg_pooler::Way;

pub use crate::pg;
pub use crate::pg_line;
pub use crate::pg_pooler;
pub use crate::pg_shards;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    Sqlite,
    Postgres,
}

impl Engine {
    pub fn name(self) -> &'static str {
        match self {
            Self::Sqlite => "sqlite",
            Self::Postgres => "postgres",
        }
    }

    /// Whether there is a PostgreSQL whose plans and counts can be looked at: the coordinator of a cluster has none of rows.
    pub fn has_plans() -> bool {
        pg::cluster().is_some() && pg::citus_url().is_none()
    }

    /// Every engine that is here.
    pub fn all() -> Vec<Self> {
        let postgres = pg::cluster().map(|_| Self::Postgres);
        std::iter::once(Self::Sqlite).chain(postgres).collect()
    }
}

/// The engine of this process.
pub fn engine() -> Engine {
    match std::env::var("ROLLCALL_TEST_ENGINE").as_deref() {
        Ok("postgres") => Engine::Postgres,
        _ => Engine::Sqlite,
    }
}

pub fn is_sqlite() -> bool {
    engine() == Engine::Sqlite
}

/// Runs every test of a module (`module_path!()`) on PostgreSQL, in a process of its own.
#[track_caller]
pub fn run_again_on_postgres(module: &str) {
    run_again(module, &[]);
}

/// The same, through each pooler that is here.
#[track_caller]
pub fn run_again_through_poolers(module: &str) {
    run_again(module, &[("ROLLCALL_TEST_POOLER", "rotating")]);
    if pg_pooler::bouncer_program().is_some() {
        run_again(module, &[("ROLLCALL_TEST_POOLER", "pgbouncer")]);
    } else {
        eprintln!(
            "PgBouncer is not here, so the tests did not go through it: install it (Debian: pgbouncer)"
        );
    }
}

/// The same, over four databases that have a part of the owners each.
#[track_caller]
pub fn run_again_over_shards(module: &str) {
    run_again(module, &[("ROLLCALL_TEST_SHARDS", "4")]);
}

/// The same, with some settings of the tests.
#[track_caller]
pub fn run_again(module: &str, settings: &[(&str, &str)]) {
    if engine() == Engine::Postgres || pg::cluster().is_none() {
        return;
    }
    let mut again = std::process::Command::new(std::env::current_exe().unwrap());
    // The names of tests begin after the crate's: `feed::`, or all of the program.
    again.args(module.split_once("::").map(|(_, module)| format!("{module}::")));
    again.args(["--skip", "again_", "--test-threads", "4"]).envs(settings.iter().copied());
    let output = again.env("ROLLCALL_TEST_ENGINE", "postgres").output().unwrap();
    let result = String::from_utf8_lossy(&output.stdout);
    assert!(result.contains("test result: ok. ") || !output.status.success(), "{result}");
    assert!(
        output.status.success(),
        "on the engine postgres, {settings:?}:\n{result}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Where one test keeps its data.
pub struct Store {
    pub engine: Engine,
    pub dir: TempDir,
    database: Option<pg::Database>,
    /// Where servers find it, if not where it is.
    way: Option<Way>,
    /// Further databases, where owners are spread over several.
    shards: Vec<Self>,
    looker: Option<Looker>,
}

/// Reads the committed data directly, without the server.
enum Looker {
    Sqlite(Mutex<rusqlite::Connection>),
    Postgres(Mutex<pg::Client>),
}

impl Drop for Store {
    fn drop(&mut self) {
        self.look_away();
    }
}

fn dump_sqlite(looker: &rusqlite::Connection) -> BTreeMap<String, Vec<String>> {
    let mut tables = looker
        .prepare("SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")
        .unwrap();
    let names: Vec<String> =
        tables.query_map([], |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap();
    assert!(names.iter().any(|name| name == "rollcall_ledger"), "{names:?}");
    let rows_of = |name: &String| {
        let mut select = looker.prepare(&format!("SELECT * FROM \"{name}\"")).unwrap();
        let width = select.column_count();
        let row = |row: &rusqlite::Row<'_>| {
            let values: Vec<_> = (0..width).map(|at| row.get_ref(at).unwrap()).collect();
            Ok(format!("{values:?}"))
        };
        let mut rows: Vec<String> = select.query_map([], row).unwrap().collect::<Result<_, _>>().unwrap();
        rows.sort();
        rows
    };
    names.iter().map(|name| (name.clone(), rows_of(name))).collect()
}

fn dump_postgres(looker: &mut pg::Client) -> BTreeMap<String, Vec<String>> {
    let names =
        looker.query("SELECT tablename::text FROM pg_tables WHERE schemaname = 'public'", &[]).unwrap();
    let names: Vec<String> = names.iter().map(|row| row.get(0)).collect();
    assert!(names.iter().any(|name| name == "rollcall_ledger"), "{names:?}");
    let mut rows_of = |name: &String| {
        // An owner without any write was only ever locked.
        let from = match name.as_str() {
            "rollcall_owner" => {
                "(SELECT owner, version, horizon, live_rows, live_bytes, seed FROM rollcall_owner \
                 WHERE written IS NOT NULL)"
                    .to_owned()
            }
            _ => format!("\"{name}\""),
        };
        let rows = looker.query(&format!("SELECT t::text FROM {from} t ORDER BY 1"), &[]).unwrap();
        rows.iter().map(|row| row.get(0)).collect()
    };
    names.iter().map(|name| (name.clone(), rows_of(name))).collect()
}

impl Store {
    /// An empty store of the engine of this process.
    pub fn new() -> Self {
        let mut store = Self::of(engine());
        let shards = std::env::var("ROLLCALL_TEST_SHARDS").map_or(1, |shards| shards.parse().unwrap());
        if engine() == Engine::Postgres {
            store.shards = (1..shards).map(|_| Self::of(Engine::Postgres)).collect();
        }
        store
    }

    pub fn of(engine: Engine) -> Self {
        let database = match engine {
            Engine::Sqlite => None,
            Engine::Postgres => Some(pg::cluster().expect("PostgreSQL is not here").database()),
        };
        let pooler = pg_pooler::wanted().filter(|_| engine == Engine::Postgres);
        let way = pooler.zip(database.as_ref()).map(|(pooler, of)| pg_pooler::way(&pooler, &of.url));
        Self { engine, dir: tempfile::tempdir().unwrap(), database, way, shards: Vec::new(), looker: None }
    }

    /// A copy of the committed data; SQLite only.
    pub fn copied(&self) -> Self {
        let copy = Self::of(Engine::Sqlite);
        let path = copy.path();
        match self.looker() {
            Looker::Sqlite(looker) => {
                looker.lock().unwrap().execute("VACUUM INTO ?1", [path.to_str().unwrap()]).unwrap();
                // Without the file beside it the copy would begin a new epoch, as one that was put back.
                let past = |path: PathBuf| path.with_added_extension("past");
                std::fs::copy(past(self.path()), past(path)).unwrap();
            }
            Looker::Postgres(_) => panic!("nobody copies PostgreSQL"),
        };
        copy
    }

    /// Opens a connection beside the server, once that has made its tables.
    pub fn look(&mut self) {
        self.shards.iter_mut().for_each(Self::look);
        self.looker = Some(match &self.database {
            None => Looker::Sqlite(Mutex::new(rusqlite::Connection::open(self.path()).unwrap())),
            Some(database) => Looker::Postgres(Mutex::new(pg::apart(|| database.client()))),
        });
    }

    /// Closes that connection.
    pub fn look_away(&mut self) {
        self.shards.iter_mut().for_each(Self::look_away);
        if let Some(looker) = self.looker.take() {
            pg::apart(|| drop(looker));
        }
    }

    fn looker(&self) -> &Looker {
        self.looker.as_ref().expect("nobody looks")
    }

    /// Runs SQL that both engines take.
    pub fn sql(&self, sql: &str) {
        self.shards.iter().for_each(|shard| shard.sql(sql));
        match self.looker() {
            Looker::Sqlite(looker) => looker.lock().unwrap().execute_batch(sql).unwrap(),
            Looker::Postgres(looker) => pg::apart(|| {
                let mut looker = looker.lock().unwrap();
                // Citus takes one change of a table at a time.
                let is_one = pg::citus_url().is_none() || sql.contains("$$");
                for part in if is_one { vec![sql] } else { sql.split(';').collect() } {
                    looker.batch_execute(part).unwrap();
                }
            }),
        }
    }

    /// Copies owners and their members to the databases where the owners' rows are. Accounts write them into the first
    /// database, where a cluster would find their place. No owner has rows yet.
    pub fn spread_members(&self) {
        let places = 1 + self.shards.len();
        let (Some(database), true) = (&self.database, places > 1) else { return };
        pg::apart(|| {
            let mut first = database.client();
            for table in ["rollcall_owner", "rollcall_member"] {
                let copies = format!(
                    "SELECT owner, format('INSERT INTO {table} SELECT * FROM \
                     json_populate_record(NULL::{table}, %L) ON CONFLICT DO NOTHING', row_to_json(one)) FROM {table} one"
                );
                for row in first.query(&copies, &[]).unwrap() {
                    let place = pg_shards::place(Owner(row.get(0)), places);
                    if let Some(shard) = place.checked_sub(1) {
                        let database = self.shards[shard].database.as_ref().unwrap();
                        database.client().batch_execute(row.get(1)).unwrap();
                    }
                }
            }
        });
    }

    /// A number from SQL, in a dialect that both engines accept; over several databases the sum.
    pub fn number(&self, sql: &str) -> i64 {
        let of_shards: i64 = self.shards.iter().map(|shard| shard.number(sql)).sum();
        let own = match self.looker() {
            Looker::Sqlite(looker) => {
                looker.lock().unwrap().query_row(sql, [], |row| row.get::<_, Option<i64>>(0)).unwrap()
            }
            Looker::Postgres(looker) => {
                pg::apart(|| looker.lock().unwrap().query_one(sql, &[]).unwrap().get::<_, Option<i64>>(0))
            }
        };
        own.unwrap_or(0) + of_shards
    }

    /// The lines of text of a PostgreSQL statement, such as a plan.
    pub fn lines(&self, sql: &str) -> Vec<String> {
        let Looker::Postgres(looker) = self.looker() else { panic!("this looks into PostgreSQL") };
        pg::apart(|| {
            let rows = looker.lock().unwrap().query(sql, &[]).unwrap();
            rows.iter().map(|row| row.get(0)).collect()
        })
    }

    /// Several numbers of one PostgreSQL statement.
    pub fn numbers<const N: usize>(&self, sql: &str) -> [i64; N] {
        let Looker::Postgres(looker) = self.looker() else { panic!("this looks into PostgreSQL") };
        pg::apart(|| {
            let row = looker.lock().unwrap().query_one(sql, &[]).unwrap();
            std::array::from_fn(|at| row.get(at))
        })
    }

    /// Every row of every table, as it is committed; of owners without their leases, which are no data.
    pub fn dump(&self) -> BTreeMap<String, Vec<String>> {
        let mut tables = match self.looker() {
            Looker::Sqlite(looker) => dump_sqlite(&looker.lock().unwrap()),
            Looker::Postgres(looker) => pg::apart(|| dump_postgres(&mut looker.lock().unwrap())),
        };
        for (table, rows) in self.shards.iter().flat_map(Self::dump) {
            tables.entry(table).or_default().extend(rows);
        }
        tables
    }

    /// A number that changes with every commit, whatever it wrote; on PostgreSQL always the same.
    pub fn commits(&self) -> i64 {
        if self.engine == Engine::Sqlite { self.number("PRAGMA data_version") } else { 0 }
    }

    /// Sets the database's clock.
    pub fn set_now(&self, ms: i64) {
        self.shards.iter().for_each(|shard| shard.set_now(ms));
        match (&self.looker, &self.database) {
            (Some(Looker::Postgres(_)), _) => self.sql(&format!("UPDATE clock.hands SET ms = {ms}")),
            (_, Some(database)) => database.set_now(ms),
            _ => {}
        }
    }

    /// The file of an SQLite store.
    pub fn path(&self) -> PathBuf {
        self.dir.path().join("app.db")
    }

    /// As `--database` takes it.
    pub fn url(&self) -> String {
        match &self.database {
            None => format!("sqlite:{}", self.path().display()),
            Some(database) => database.url.clone(),
        }
    }

    /// Lets servers find it by another URL.
    pub fn by_way_of(&mut self, url: String) {
        self.way = Some(Way::to(url));
    }

    pub fn address(&self) -> postgres::Address {
        self.way.as_ref().map_or_else(|| self.url(), |way| way.url.clone()).parse().unwrap()
    }

    /// A server's end of it.
    pub fn serve(
        &self,
        schema: &Arc<Schema>,
        busy_wait: Duration,
        now: Timestamp,
        metrics: Arc<Metrics>,
    ) -> Result<Arc<dyn Storage>, String> {
        let mut served = vec![self.serve_one(schema, busy_wait, now, Arc::clone(&metrics))?];
        for shard in &self.shards {
            served.push(shard.serve_one(schema, busy_wait, now, Arc::clone(&metrics))?);
        }
        Ok(if served.len() == 1 { served.remove(0) } else { Arc::new(pg_shards::Shards(served)) })
    }

    fn serve_one(
        &self,
        schema: &Arc<Schema>,
        busy_wait: Duration,
        now: Timestamp,
        metrics: Arc<Metrics>,
    ) -> Result<Arc<dyn Storage>, String> {
        let schema = Arc::clone(schema);
        match self.engine {
            Engine::Sqlite => {
                let connections = sqlite::Connections::open(&self.path(), busy_wait, 4)
                    .map_err(|error| error.to_string())?;
                let served = Sqlite::serve(&self.path(), connections, schema, now, metrics);
                Ok(Arc::new(served.map_err(|error| error.to_string())?))
            }
            Engine::Postgres => pg::apart(|| {
                let (address, terms) = (self.address(), terms(busy_wait));
                let connections =
                    postgres::Connections::open(&address, &terms).map_err(|error| error.to_string())?;
                let served =
                    Postgres::serve(&address, connections, &terms, Arc::clone(&schema), now, metrics);
                let served = served.map_err(|error| error.to_string())?;
                if pg::citus_url().is_some() {
                    // As the command does it: in no hurry.
                    let patient = Terms { busy_wait: Duration::from_secs(30), ..terms };
                    postgres::distribute(&address, &patient, &schema, &mut |_| {})
                        .map_err(|error| error.to_string())?;
                }
                Ok(Arc::new(served) as Arc<dyn Storage>)
            }),
        }
    }

    /// Its accounts, beside a server.
    pub fn accounts(&self, busy_wait: Duration) -> Arc<dyn AccountStore> {
        match self.engine {
            Engine::Sqlite => Arc::new(sqlite::Connections::open(&self.path(), busy_wait, 4).unwrap()),
            Engine::Postgres => Arc::new(self.connections(busy_wait)),
        }
    }

    /// What can forget, beside a server.
    pub fn forgetful(&self, busy_wait: Duration) -> Arc<dyn Forgetful> {
        match self.engine {
            Engine::Sqlite => Arc::new(sqlite::Connections::open(&self.path(), busy_wait, 4).unwrap()),
            Engine::Postgres => Arc::new(self.connections(busy_wait)),
        }
    }

    fn connections(&self, busy_wait: Duration) -> postgres::Connections {
        postgres::Connections::open(&self.address(), &terms(busy_wait)).unwrap()
    }
}

pub fn terms(busy_wait: Duration) -> Terms {
    Terms {
        connections_max: 8,
        for_accounts: 2,
        busy_wait,
        statement_max: Duration::from_secs(60),
        idle_max: Duration::from_secs(60),
        prepare: pg_pooler::wanted().is_none(),
    }
}

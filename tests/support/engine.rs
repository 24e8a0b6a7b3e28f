//! The engine that the tests of this process run on, and a store of it for each test.
//!
//! A suite that says `again_on_postgres!()` runs once more as a process of its own with `ROLLCALL_TEST_ENGINE` set.
#![allow(dead_code, unused_macros, unused_imports)] // each test takes its part of it

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rollcall::metrics::Metrics;
use rollcall::model::Timestamp;
use rollcall::schema::Schema;
use rollcall::storage::postgres::{self, Postgres, Terms};
use rollcall::storage::sqlite::{self, Sqlite};
use rollcall::storage::{AccountStore, Forgetful, Storage};
use tempfile::TempDir;

use crate::pg;

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

/// Runs every test of this program on PostgreSQL, in a process of its own.
#[track_caller]
pub fn run_again_on_postgres() {
    if engine() == Engine::Postgres || (pg::cluster().is_none()) {
        return;
    }
    let mut again = std::process::Command::new(std::env::current_exe().unwrap());
    again.args(["--skip", "again_on_postgres", "--test-threads", "4"]);
    let output = again.env("ROLLCALL_TEST_ENGINE", "postgres").output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(told.contains("test result: ok. ") || !output.status.success(), "{told}");
    assert!(
        output.status.success(),
        "on the engine postgres:\n{told}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

macro_rules! again_on_postgres {
    () => {
        /// Goal: both engines behave alike. Method: every test of this file once more, over PostgreSQL.
        #[test]
        fn again_on_postgres() {
            crate::engine::run_again_on_postgres();
        }
    };
}
pub(crate) use again_on_postgres;

/// Where one test keeps its data.
pub struct Store {
    pub engine: Engine,
    pub dir: TempDir,
    pub database: Option<pg::Database>,
}

impl Store {
    /// An empty store of the engine of this process.
    pub fn new() -> Self {
        Self::of(engine())
    }

    pub fn of(engine: Engine) -> Self {
        let database = match engine {
            Engine::Sqlite => None,
            Engine::Postgres => Some(pg::cluster().expect("PostgreSQL is not here").database()),
        };
        Self { engine, dir: tempfile::tempdir().unwrap(), database }
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

    pub fn address(&self) -> postgres::Address {
        self.url().parse().unwrap()
    }

    /// A server's end of it.
    pub fn serve(
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
                let served = Postgres::serve(&address, connections, &terms, schema, now, metrics);
                Ok(Arc::new(served.map_err(|error| error.to_string())?) as Arc<dyn Storage>)
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
        busy_wait,
        statement_max: Duration::from_secs(30),
        idle_max: Duration::from_secs(30),
        prepare: std::env::var_os("ROLLCALL_TEST_PG_UNPREPARED").is_none(),
    }
}

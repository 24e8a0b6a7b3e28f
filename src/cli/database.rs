use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use crate::clock::Clock;
use crate::config::{Limits, PostgresSettings};
use crate::metrics::Metrics;
use crate::schema::Schema;
use crate::storage::postgres::{Address, Postgres, Terms};
use crate::storage::sqlite::Sqlite;
use crate::storage::{Storage, postgres};

/// The address of the data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Database {
    /// A file on this machine.
    Sqlite(PathBuf),
    /// A PostgreSQL database, which other programs may use as well.
    Postgres(Box<Address>),
}

impl Database {
    /// The path of an existing file, for operations that only exist for a file: a mistyped path must not
    /// create a database. `instead` is the corresponding operation of PostgreSQL.
    pub fn existing(&self, instead: &str) -> Result<&Path, String> {
        let path = self.file(instead)?;
        if path.is_file() { Ok(path) } else { Err(no_database(path)) }
    }

    /// The path of a file, which may not exist.
    pub fn file(&self, instead: &str) -> Result<&Path, String> {
        match self {
            Self::Sqlite(path) => Ok(path),
            Self::Postgres(_) => Err(format!("this is for SQLite; with PostgreSQL, {instead}")),
        }
    }
}

pub(super) fn no_database(path: &Path) -> String {
    format!("there is no database {}", path.display())
}

/// Opens a database for a command, whether or not a server runs on it. The schema must fit as it is: a command does not
/// change tables.
pub(super) fn open_beside_server(
    database: &Database,
    schema: &Arc<Schema>,
    wait: Duration,
) -> Result<Arc<dyn Storage>, Box<dyn std::error::Error>> {
    Ok(match database {
        Database::Sqlite(path) if !path.is_file() => return Err(no_database(path).into()),
        Database::Sqlite(path) => Arc::new(Sqlite::beside_server(path, Arc::clone(schema), wait)?),
        Database::Postgres(address) => {
            let terms = patient_terms(wait);
            let lines = Postgres::compare(address, schema, &terms)?.describe();
            if !lines.is_empty() {
                let lines = lines.join("\n");
                return Err(
                    format!("{database} does not fit the schema as it is; serve it once:\n{lines}").into()
                );
            }
            let connections = postgres::Connections::open(address, &terms)?;
            let (schema, now) = (Arc::clone(schema), Clock::system().now());
            let observer = Arc::new(Metrics::new());
            Arc::new(Postgres::serve(address, connections, &terms, schema, now, observer)?)
        }
    })
}

/// How a server uses PostgreSQL.
pub(super) fn terms(limits: &Limits, settings: &PostgresSettings) -> Terms {
    Terms {
        connections_max: settings.database_connections_max,
        for_accounts: limits.account_connections_max,
        busy_wait: Duration::from_millis(limits.busy_wait_ms),
        statement_max: Duration::from_millis(settings.database_statement_ms),
        idle_max: Duration::from_millis(settings.database_idle_ms),
        prepare: settings.database_prepare,
    }
}

/// How a command uses PostgreSQL: while a server runs, with one or two connections, and long waits.
pub(super) fn patient_terms(wait: Duration) -> Terms {
    let settings = PostgresSettings { database_prepare: false, ..PostgresSettings::default() };
    Terms { connections_max: 2, for_accounts: 0, busy_wait: wait, ..terms(&Limits::default(), &settings) }
}

impl fmt::Display for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(path) => path.display().fmt(f),
            Self::Postgres(address) => address.fmt(f),
        }
    }
}

impl FromStr for Database {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            // SQLite would not treat these as the path of a file, so `./` is added.
            Some(("sqlite", path)) if path.starts_with(':') || path.starts_with("file:") => {
                Err("only a database in a file can be served, such as sqlite:app.db".into())
            }
            Some(("sqlite", path)) if !path.is_empty() => Ok(Self::Sqlite(path.into())),
            Some(("postgres" | "postgresql", _)) => Ok(Self::Postgres(Box::new(text.parse()?))),
            _ => Err("expected sqlite:PATH, such as sqlite:app.db, or postgres://USER@HOST/DATABASE".into()),
        }
    }
}

use std::io::{IsTerminal as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};

use super::Done;
use super::database::{Database, terms};
use super::housekeeping;
use super::interrupt::StopSignals;
use crate::accounts::Accounts;
use crate::clock::Clock;
use crate::config::{AuthMode, LogFormat, Settings};
use crate::http::pages::{Pages, routes_and_pages};
use crate::http::{App, serve};
use crate::metrics::Metrics;
use crate::schema::Schema;
use crate::storage::Storage;
use crate::storage::postgres::{self, Postgres};
use crate::storage::sqlite::{Connections, Sqlite};

/// Serve a schema's tables to devices
///
/// Makes the SQL tables that the schema declares, adds columns that are new, and refuses to start where data
/// would be lost. Prints `listening on http://IP:PORT` once it accepts; everything else goes to the log, on
/// standard error. SIGTERM or Ctrl-C lets running requests finish, then it ends.
#[derive(Debug, Args)]
pub(super) struct Serve {
    /// File that declares your tables
    #[arg(long, env = "ROLLCALL_SCHEMA", value_name = "FILE")]
    schema: PathBuf,

    /// Where the data is kept: `sqlite:PATH`, made if it is not there, or `postgres://USER@HOST/DATABASE`
    #[arg(long, env = "ROLLCALL_DATABASE", value_name = "URL", hide_env_values = true)]
    database: Database,

    #[command(flatten)]
    settings: Settings,
}

impl Serve {
    pub fn run(self) -> Done {
        let schema = Arc::new(read_schema(&self.schema)?);
        let _log = log_to_stderr(&self.settings)?;
        // Before anything is made: a server that was started twice leaves the database alone.
        let listener = bind(self.settings.listen)?;
        let clock = Clock::system();
        let metrics = Arc::new(Metrics::new());
        let storage = open(&self.database, &self.settings, Arc::clone(&schema), &clock, &metrics)?;
        let app = app(schema, storage, clock, self.settings, metrics)?;
        let auth = &app.settings.auth;
        tracing::info!(
            version = env!("CARGO_PKG_VERSION"),
            address = %listener.local_addr()?,
            schema = %self.schema.display(),
            tables = app.schema.tables().len(),
            database = %self.database,
            auth = %spelt(auth.auth),
            registration = (auth.auth == AuthMode::Local).then(|| tracing::field::display(spelt(auth.registration))),
            "serving"
        );
        let pages = Pages { demo: None, console: app.settings.operator.console_token.is_some() };
        run(&app, listener, pages, || {})
    }
}

/// A choice as the command line spells it.
fn spelt(choice: impl ValueEnum) -> String {
    choice.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

pub(super) fn read_schema(path: &Path) -> Result<Schema, Box<dyn std::error::Error>> {
    let text =
        std::fs::read_to_string(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    Ok(Schema::parse(&text).map_err(|error| format!("{}:\n{error}", path.display()))?)
}

pub(super) fn open(
    database: &Database,
    settings: &Settings,
    schema: Arc<Schema>,
    clock: &Clock,
    metrics: &Arc<Metrics>,
) -> Result<Arc<dyn Storage>, Box<dyn std::error::Error>> {
    let (limits, now, metrics) = (&settings.limits, clock.now(), Arc::clone(metrics));
    Ok(match database {
        Database::Sqlite(path) => {
            let busy_wait = Duration::from_millis(limits.busy_wait_ms);
            let connections =
                Connections::open(path, busy_wait, limits.readers_max)?.queueing(limits.write_queue_max);
            Arc::new(Sqlite::serve(path, connections, schema, now, metrics)?)
        }
        Database::Postgres(address) => {
            let terms = terms(limits, &settings.postgres);
            let connections = postgres::Connections::open(address, &terms)?;
            Arc::new(Postgres::serve(address, connections, &terms, schema, now, metrics)?)
        }
    })
}

pub(super) fn app(
    schema: Arc<Schema>,
    storage: Arc<dyn Storage>,
    clock: Clock,
    settings: Settings,
    metrics: Arc<Metrics>,
) -> Result<Arc<App>, Box<dyn std::error::Error>> {
    let accounts = Accounts::open(&settings.auth, &settings.limits, storage.accounts(), clock.clone())?;
    Ok(App::new(schema, storage, accounts, clock, settings, metrics)?)
}

pub(super) fn bind(asked: SocketAddr) -> Result<TcpListener, Box<dyn std::error::Error>> {
    Ok(TcpListener::bind(asked).map_err(|error| format!("cannot listen on {asked}: {error}"))?)
}

/// Serves the app and its pages until it is told to stop; `ready` runs once it accepts.
pub(super) fn run(app: &Arc<App>, listener: TcpListener, shown: Pages, ready: impl FnOnce()) -> Done {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let drained = runtime.block_on(async {
        listener.set_nonblocking(true)?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let stop = stop_signal()?;
        let mut out = std::io::stdout();
        writeln!(out, "listening on http://{}", listener.local_addr()?)?;
        out.flush()?;
        ready();
        let filter = routes_and_pages(Arc::clone(app), shown);
        let housekeeping = tokio::spawn(housekeeping::run(Arc::clone(app)));
        let (bounds, draining) = (Arc::clone(&app.bounds), app.draining.clone());
        let metrics = Arc::clone(&app.metrics);
        let drained = serve(listener, filter, bounds, draining, metrics, stop).await;
        housekeeping.await?;
        Ok::<_, Box<dyn std::error::Error>>(drained)
    })?;
    if drained.cut > 0 {
        tracing::warn!(connections = drained.cut, "cut at the end of the drain time");
    }
    // What is at work in the database ends first: its rows are kept, whoever waits for the answer or not.
    drop(runtime);
    housekeeping::last(app);
    tracing::info!("stopped");
    Ok(())
}

/// Ends with the first SIGTERM or SIGINT. The second ends the process at once, as the system has it.
fn stop_signal() -> std::io::Result<impl Future<Output = ()>> {
    let mut signals = StopSignals::listen()?;
    Ok(async move {
        signals.next().await;
        tracing::info!("stopping: running requests may finish");
        tokio::spawn(async move {
            signals.next().await;
            std::process::exit(130);
        });
    })
}

/// The log lines on their way; dropped, it has written them all.
pub(super) struct Log {
    _writer: WorkerGuard,
    dropped: ErrorCounter,
}

impl Drop for Log {
    fn drop(&mut self) {
        match self.dropped.dropped_lines() {
            0 => {}
            lines => eprintln!(
                "{lines} log lines were dropped, since they could not be written as fast as they came"
            ),
        }
    }
}

/// Writes log lines on a thread of their own: a disk or a terminal that is slow holds no request up.
pub(super) fn log_to_stderr(settings: &Settings) -> Result<Log, Box<dyn std::error::Error>> {
    let filter = tracing_subscriber::EnvFilter::try_new(&settings.log)
        .map_err(|error| format!("--log {:?}: {error}", settings.log))?;
    let (writer, guard) = NonBlockingBuilder::default()
        .buffered_lines_limit(settings.memory.log_lines_max.max(1))
        .thread_name("log")
        .finish(std::io::stderr());
    let log = Log { _writer: guard, dropped: writer.error_counter() };
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer);
    match settings.log_format {
        // For people, who know no module of ours; colours only where one looks.
        LogFormat::Text => lines.with_target(false).with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => lines.json().flatten_event(true).init(),
    }
    Ok(log)
}

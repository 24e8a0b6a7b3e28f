use std::io::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::Done;
use super::database::{Database, terms};
use super::files::raise_file_limit;
use super::housekeeping;
use super::interrupt::StopSignals;
use super::log::log_to_stderr;
use crate::accounts::Accounts;
use crate::clock::{Behind, Clock};
use crate::config::{AuthMode, Settings};
use crate::http::pages::{Pages, routes_and_pages};
use crate::http::{App, serve};
use crate::metrics::Metrics;
use crate::model::Precision;
use crate::schema::Schema;
use crate::storage::Storage;
use crate::storage::postgres::{self, Postgres};
use crate::storage::sqlite::{Connections, Sqlite};

/// Serve the tables of a schema file to devices
///
/// Make the SQL tables that the schema declares, and add what is new. Refuse to start where that would lose data.
/// Print `listening on http://IP:PORT` once the server accepts; write everything else to the log, on standard
/// error. On SIGTERM or Ctrl-C let running requests finish, then end.
#[derive(Debug, Args)]
#[command(after_help = "List all settings, by subject: rollcall serve --help", after_long_help = "")]
pub(super) struct Serve {
    /// Read your tables from this file
    #[arg(long, env = "ROLLCALL_SCHEMA", value_name = "FILE")]
    schema: PathBuf,

    /// Keep the data here: `sqlite:PATH`, or `postgres://USER@HOST/DATABASE`
    ///
    /// The SQLite file is made if it is not there. With PostgreSQL several servers can share one database.
    #[arg(long, env = "ROLLCALL_DATABASE", value_name = "URL", hide_env_values = true)]
    database: Database,

    #[command(flatten)]
    settings: Settings,
}

/// The most important settings of a new deployment. `-h` lists only these, `--help` all.
const ESSENTIAL_SETTINGS: [&str; 15] = [
    "schema",
    "database",
    "listen",
    "log",
    "log_format",
    "cors_origins",
    "trusted_proxies",
    "auth",
    "registration",
    "jwt_secret_file",
    "jwt_keys",
    "jwt_issuer",
    "jwt_audience",
    "metrics_token",
    "console_token",
];

/// Hides all settings except the essential ones from `-h`.
pub(super) fn shorten_help(serve: clap::Command) -> clap::Command {
    serve.mut_args(|arg| {
        let is_essential = ESSENTIAL_SETTINGS.contains(&arg.get_id().as_str());
        arg.hide_short_help(!is_essential)
    })
}

impl Serve {
    pub fn run(self) -> Done {
        let schema = Arc::new(read_schema(&self.schema)?);
        let _log = log_to_stderr(&self.settings)?;
        // Before anything is created: a server that was started twice does not touch the database.
        let listener = bind(self.settings.listen)?;
        raise_file_limit(&self.settings, matches!(self.database, Database::Sqlite(_)));
        warn_of_bare_passwords(&self.settings, listener.local_addr()?);
        let clock = Clock::system();
        let metrics = Arc::new(Metrics::new());
        let storage = open(&self.database, &self.settings, Arc::clone(&schema), &clock, &metrics)?;
        let clock = guarded(clock, &*storage, &self.settings)?;
        let app = app(schema, storage, clock, self.settings, metrics)?;
        let auth = &app.settings.auth;
        tracing::info!(
            version = env!("CARGO_PKG_VERSION"),
            address = %listener.local_addr()?,
            schema = %self.schema.display(),
            tables = app.schema.tables().len(),
            database = %self.database,
            auth = %flag_value(auth.auth),
            registration = (auth.auth == AuthMode::Local).then(|| tracing::field::display(flag_value(auth.registration))),
            "serving"
        );
        let pages = Pages { demo: None, console: app.settings.operator.console_token.is_some() };
        run(&app, listener, pages, || {})
    }
}

/// Warns if passwords may cross a network unencrypted: this server has no TLS, and cannot know whether a
/// proxy in front of it has.
fn warn_of_bare_passwords(settings: &Settings, listens: SocketAddr) {
    let is_bare = settings.auth.auth == AuthMode::Local
        && settings.http.trusted_proxies.is_empty()
        && !listens.ip().to_canonical().is_loopback();
    if is_bare {
        tracing::warn!(
            address = %listens,
            "passwords and tokens come in without TLS from other machines: put a proxy with TLS in front and name it \
             with --trusted-proxy, or listen on 127.0.0.1"
        );
    }
}

/// A choice as a value of its flag.
fn flag_value(choice: impl ValueEnum) -> String {
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
            let mode = settings.database_mode.0;
            let (readers_max, for_accounts) = (limits.readers_max, limits.account_connections_max);
            let connections = Connections::open_to_serve(path, mode, busy_wait, readers_max, for_accounts)?
                .queueing(limits.write_queue_max);
            Arc::new(Sqlite::serve(path, connections, schema, now, metrics)?)
        }
        Database::Postgres(address) => {
            let terms = terms(limits, &settings.postgres);
            let connections = postgres::Connections::open(address, &terms)?;
            Arc::new(Postgres::serve(address, connections, &terms, schema, now, metrics)?)
        }
    })
}

/// The clock, which must not be behind the stored times. A machine without a battery starts in 1970 or 2001,
/// and changes with such a time would lose against all older ones.
fn guarded(
    clock: Clock,
    storage: &dyn Storage,
    settings: &Settings,
) -> Result<Clock, Box<dyn std::error::Error>> {
    if settings.operator.clock_behind_s == 0 {
        return Ok(clock);
    }
    let newest = storage.census().newest_time()?;
    let behind_max = Duration::from_secs(settings.operator.clock_behind_s);
    let clock = clock.not_behind(newest, behind_max, |Behind { given, newest }| {
        tracing::warn!(
            system = %given.format(Precision::Milliseconds),
            used = %newest.format(Precision::Milliseconds),
            "the system's clock is behind the data of this server: set it. Until it has caught up, the server goes on \
             from the newest time it knows, at half the pace (--clock-behind-s)"
        );
    });
    clock.now(); // warns at the start, and not with the first request
    Ok(clock)
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

pub(super) fn bind(address: SocketAddr) -> Result<TcpListener, Box<dyn std::error::Error>> {
    Ok(TcpListener::bind(address).map_err(|error| format!("cannot listen on {address}: {error}"))?)
}

/// Serves the app and its pages until a stop signal; `ready` runs once the server accepts connections.
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
        let watch = tokio::spawn(housekeeping::watch_log(Arc::clone(app)));
        let (bounds, draining) = (Arc::clone(&app.bounds), app.draining.clone());
        let metrics = Arc::clone(&app.metrics);
        let drained = serve(listener, filter, bounds, draining, metrics, stop).await;
        housekeeping.await?;
        watch.await?;
        Ok::<_, Box<dyn std::error::Error>>(drained)
    })?;
    if drained.cut > 0 {
        tracing::warn!(connections = drained.cut, "cut at the end of the drain time");
    }
    // Work in the database is finished first: its rows are committed, whether or not the client still waits.
    drop(runtime);
    housekeeping::last(app);
    tracing::info!("stopped");
    Ok(())
}

/// Completes with the first SIGTERM or SIGINT. The second ends the process at once, as is usual.
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Goal: `-h` fits a screen for newcomers, and hides nothing that `--help` does not show.
    #[test]
    fn short_help_has_the_essential_settings_and_long_help_has_all() {
        let command = || shorten_help(Serve::augment_args(clap::Command::new("serve")).term_width(100));
        let short = command().render_help().to_string();
        let long = command().render_long_help().to_string();
        assert!(short.lines().count() < 60, "{short}");
        for setting in ESSENTIAL_SETTINGS {
            let command = command();
            let flag =
                command.get_arguments().find(|arg| arg.get_id() == setting).unwrap().get_long().unwrap();
            assert!(short.contains(&format!("--{flag} ")), "{flag}");
        }
        for arg in command().get_arguments() {
            let flag = arg.get_long().unwrap();
            assert!(long.contains(&format!("--{flag} ")), "{flag}");
        }
    }
}

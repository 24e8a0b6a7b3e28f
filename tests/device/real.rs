//! A real server: the accept loop on a free port, a SQLite file of its own.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use rollcall::accounts::Accounts;
use rollcall::clock::Clock;
use rollcall::config::Settings;
use rollcall::http::{App, routes, serve};
use rollcall::model::Timestamp;
use rollcall::schema::Schema;
use rollcall::storage::Storage;
use rollcall::storage::sqlite::{Connections, CopyError, Sqlite, backup, restore};
use tempfile::TempDir;
use tokio::sync::oneshot;

pub const SCHEMA: &str = r#"
[table.lists]
key = "lid"
[table.lists.columns]
title = { type = "text", required = true, max_length = 40 }

[table.items]
key = "id"
[table.items.columns]
list = { type = "uuid", references = "lists" }
title = { type = "text", required = true }
done = { type = "boolean", default = false }
amount = "integer"
worth = "decimal"
notes = "json"
"#;

pub const EMAIL: &str = "anna@example.com";
pub const PASSWORD: &str = "something borrowed";

/// Stops when dropped.
pub struct Server {
    pub url: String,
    pub dir: TempDir,
    settings: Settings,
    schema: String,
    /// The time at which the server's clock stands still, ms; 0 if it runs.
    pub stands_at_ms: Arc<AtomicI64>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Server {
    pub fn start() -> Self {
        Self::with(|_| {})
    }

    /// Starts with other settings than the defaults, and one registered user.
    pub fn with(change: impl FnOnce(&mut Settings)) -> Self {
        Self::declaring(SCHEMA, change)
    }

    /// The same, with another schema.
    pub fn declaring(schema: &str, change: impl FnOnce(&mut Settings)) -> Self {
        let mut settings = Settings::default();
        settings.limits.logins_per_account_per_min = 1_000;
        settings.limits.logins_per_address_per_min = 1_000;
        settings.limits.drain_s = 1;
        change(&mut settings);
        let dir = tempfile::tempdir().unwrap();
        let (schema, stands_at_ms) = (schema.to_owned(), Arc::default());
        let mut server =
            Self { url: String::new(), dir, settings, schema, stands_at_ms, stop: None, thread: None };
        server.run();
        server
    }

    pub fn path(&self) -> PathBuf {
        self.dir.path().join("server.db")
    }

    pub fn run(&mut self) {
        let settings = self.settings.clone();
        let (system, stands_at_ms) = (Clock::system(), Arc::clone(&self.stands_at_ms));
        let clock = Clock::from_fn(move || match stands_at_ms.load(Ordering::SeqCst) {
            0 => system.now(),
            ms => Timestamp::from_ms(ms),
        });
        let schema = Arc::new(Schema::parse(&self.schema).unwrap());
        let path = self.path();
        let connections = Connections::open(&path, Duration::from_secs(5), 4).unwrap();
        let storage: Arc<dyn Storage> = Arc::new(
            Sqlite::serve(&path, connections, Arc::clone(&schema), clock.now(), Arc::new(())).unwrap(),
        );
        let accounts =
            Accounts::open(&settings.auth, &settings.limits, storage.accounts(), clock.clone()).unwrap();
        // After a restore the user exists already.
        let _known = accounts.local().unwrap().enrol(EMAIL, PASSWORD, None);
        let app = App::new(schema, storage, accounts, clock, settings, Arc::default()).unwrap();

        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        self.url = format!("http://{}", listener.local_addr().unwrap());
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                let (bounds, draining) = (Arc::clone(&app.bounds), app.draining.clone());
                let stopped = async move { drop(stopped.await) };
                serve(listener, routes(Arc::clone(&app)), bounds, draining, Arc::default(), stopped).await
            });
        });
        (self.stop, self.thread) = (Some(stop), Some(thread));
    }

    /// A copy of the database as it is now.
    pub fn backup(&self) -> PathBuf {
        let to = self.dir.path().join("server.backup");
        backup(&self.path(), &to, true, Duration::from_secs(5), &mut |_| true).unwrap();
        to
    }

    /// Replaces the database by a copy, and continues at another address.
    pub fn restore(&mut self, from: &Path) {
        self.stop();
        // A pool that was dropped may be opening its last connection still.
        let until = std::time::Instant::now() + Duration::from_secs(30);
        while let Err(error) = restore(from, &self.path(), true, Clock::system().now(), &mut |_| true) {
            assert!(matches!(error, CopyError::InUse(_)) && std::time::Instant::now() < until, "{error}");
        }
        self.run();
    }

    pub fn stop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

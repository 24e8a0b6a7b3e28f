//! A real server: the accept loop on a free port, a SQLite file of its own.

use std::sync::Arc;
use std::time::Duration;

use rollcall::accounts::Accounts;
use rollcall::clock::Clock;
use rollcall::config::Settings;
use rollcall::http::{App, routes, serve};
use rollcall::schema::Schema;
use rollcall::storage::Storage;
use rollcall::storage::sqlite::{Connections, Sqlite};
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
"#;

pub const EMAIL: &str = "anna@example.com";
pub const PASSWORD: &str = "something borrowed";

/// Stops when dropped.
pub struct Server {
    pub url: String,
    pub dir: TempDir,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Server {
    pub fn start() -> Self {
        Self::with(|_| {})
    }

    /// Starts with other settings than the defaults, and one registered user.
    pub fn with(change: impl FnOnce(&mut Settings)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut settings = Settings::default();
        settings.limits.logins_per_account_per_min = 1_000;
        settings.limits.logins_per_address_per_min = 1_000;
        settings.limits.drain_s = 1;
        change(&mut settings);
        let clock = Clock::system();
        let schema = Arc::new(Schema::parse(SCHEMA).unwrap());
        let path = dir.path().join("server.db");
        let connections = Connections::open(&path, Duration::from_secs(5), 4).unwrap();
        let storage: Arc<dyn Storage> = Arc::new(
            Sqlite::serve(&path, connections, Arc::clone(&schema), clock.now(), Arc::default()).unwrap(),
        );
        let accounts =
            Accounts::open(&settings.auth, &settings.limits, storage.accounts(), clock.clone()).unwrap();
        accounts.local().unwrap().enrol(EMAIL, PASSWORD, None).unwrap();
        let app = App::new(schema, storage, accounts, clock, settings, Arc::default()).unwrap();

        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
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
        Self { url, dir, stop: Some(stop), thread: Some(thread) }
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

//! The real server without its socket: routes, phases, rules and storage, under a clock that the test turns.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use parking_lot::Mutex;
use rollcall::accounts::{Accounts, LocalAccounts, LocalSettings};
use rollcall::clock::Clock;
use rollcall::config::Settings;
use rollcall::device::{Request, Response};
use rollcall::http::{App, routes, threads};
use rollcall::model::{Owner, Timestamp, Version};
use rollcall::schema::Schema;
use rollcall::storage::sqlite::{Connections, CopyError, Sqlite, backup, restore};
use rollcall::storage::{
    AccountStore, Census, Leases, OwnerState, Owners, ReadWork, Storage, StorageResult, VersionListener,
    WriteWork,
};
use tempfile::TempDir;
use tower::ServiceExt;

use crate::engine::{Engine, engine};
use crate::postgres::PostgresDisk;

/// Where data lies, and what can befall it. Another engine joins the simulation here.
pub trait Disk {
    /// Opens what is there.
    fn open(&mut self, schema: &Arc<Schema>, now: Timestamp) -> Arc<dyn Storage>;
    /// The server dies: what it had written stays, and nothing is closed in good order. Called while it runs;
    /// what `open` gives after it is another server's.
    fn crash(&mut self);
    /// Copies everything, beside the running server.
    fn back_up(&mut self);
    /// Puts the copy in the place of the data, while no server runs; says whether there was one.
    fn restore(&mut self, now: Timestamp) -> bool;
    /// Puts the copy there as well, and tells nobody; says whether there was one.
    fn swap(&mut self) -> bool;
    /// What sets the clock that leases go by, where that is not the server's.
    fn hands(&self) -> Box<dyn Fn(i64)>;
}

/// A disk of the engine of this process.
pub fn disk() -> Box<dyn Disk> {
    match engine() {
        Engine::Sqlite => Box::new(SqliteDisk::new()),
        Engine::Postgres => Box::new(PostgresDisk::new()),
    }
}

/// SQLite, in memory where the system has a file system there.
pub struct SqliteDisk {
    dir: TempDir,
    life: u64,
    has_copy: bool,
}

impl SqliteDisk {
    pub fn new() -> Self {
        Self { dir: folder(), life: 0, has_copy: false }
    }

    fn file(&self, life: u64) -> PathBuf {
        self.dir.path().join(format!("{life}.db"))
    }

    fn copy(&self) -> PathBuf {
        self.dir.path().join("copy.db")
    }
}

/// A folder in memory if there can be one: nothing here is to outlive the test.
pub fn folder() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

impl Disk for SqliteDisk {
    fn open(&mut self, schema: &Arc<Schema>, now: Timestamp) -> Arc<dyn Storage> {
        let path = self.file(self.life);
        if self.life > 0 {
            // A log that is never emptied would be copied, whole, at every crash.
            let recovered = rusqlite::Connection::open(&path).unwrap();
            recovered.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
        }
        let connections = Connections::open(&path, Duration::from_secs(5), 2).unwrap();
        Arc::new(Sqlite::serve(&path, connections, Arc::clone(schema), now, Arc::new(())).unwrap())
    }

    fn crash(&mut self) {
        let (old, new) = (self.file(self.life), self.file(self.life + 1));
        for suffix in ["", "-wal", ".past"] {
            let from = format!("{}{suffix}", old.display());
            std::fs::copy(from, format!("{}{suffix}", new.display())).unwrap();
        }
        self.life += 1;
        for suffix in ["", "-wal", "-shm", ".past"] {
            // Whoever has it open still keeps it.
            std::fs::remove_file(format!("{}{suffix}", old.display())).unwrap();
        }
    }

    fn swap(&mut self) -> bool {
        if self.has_copy {
            let old = self.file(self.life);
            self.life += 1; // whoever has the old file open still does nothing to the new one
            let new = self.file(self.life);
            std::fs::copy(self.copy(), &new).unwrap();
            std::fs::copy(format!("{}.past", old.display()), format!("{}.past", new.display())).unwrap();
        }
        self.has_copy
    }

    fn back_up(&mut self) {
        backup(&self.file(self.life), &self.copy(), true, Duration::from_secs(5), &mut |_| true).unwrap();
        self.has_copy = true;
    }

    fn restore(&mut self, now: Timestamp) -> bool {
        if self.has_copy {
            // A pool that was dropped may be opening its last connection still.
            let until = Instant::now() + Duration::from_secs(30);
            loop {
                match restore(&self.copy(), &self.file(self.life), true, now, &mut |_| true) {
                    Err(CopyError::InUse(_)) if Instant::now() < until => {
                        std::thread::sleep(Duration::from_millis(5));
                    }
                    restored => break drop(restored.unwrap()),
                }
            }
        }
        self.has_copy
    }

    fn hands(&self) -> Box<dyn Fn(i64)> {
        Box::new(|_| {})
    }
}

type Act = Box<dyn FnOnce() + Send>;

/// What happens once inside the next write transaction, after it has begun.
#[derive(Clone, Default)]
pub struct Trap(Arc<Mutex<Option<Act>>>);

impl Trap {
    pub fn set(&self, act: impl FnOnce() + Send + 'static) {
        *self.0.lock() = Some(Box::new(act));
    }

    /// Takes the trap away; says whether it had sprung.
    pub fn sprang(&self) -> bool {
        self.0.lock().take().is_none()
    }

    fn spring(&self) {
        let act = self.0.lock().take();
        if let Some(act) = act {
            act();
        }
    }
}

/// An engine with traps.
struct Trapped {
    inner: Arc<dyn Storage>,
    trap: Trap,
    /// Whether leases are kept beside the rows: what changes them in the middle of a transaction waits for its end,
    /// and so has to come just before.
    shares_leases: bool,
}

impl Storage for Trapped {
    fn run_read(&self, owner: Owner, work: ReadWork<'_>) -> StorageResult<()> {
        self.inner.run_read(owner, work)
    }

    fn run_write(&self, owner: Owner, work: WriteWork<'_>) -> StorageResult<()> {
        if self.shares_leases {
            self.trap.spring();
        }
        self.inner.run_write(owner, &mut |txn| {
            self.trap.spring();
            work(txn)
        })
    }

    fn known_state(&self, owner: Owner) -> Option<OwnerState> {
        self.inner.known_state(owner)
    }

    fn are_current(&self, versions: &[(Owner, Version)]) -> bool {
        self.inner.are_current(versions)
    }

    fn on_moved(&self, listener: VersionListener) {
        self.inner.on_moved(listener);
    }

    fn ready(&self) -> StorageResult<()> {
        self.inner.ready()
    }

    fn owners(&self) -> &dyn Owners {
        self.inner.owners()
    }

    fn erase(&self, owner: Owner, rows_max: usize) -> StorageResult<bool> {
        self.inner.erase(owner, rows_max)
    }

    fn accounts(&self) -> Arc<dyn AccountStore> {
        self.inner.accounts()
    }

    fn census(&self) -> &dyn Census {
        self.inner.census()
    }

    fn leases(&self) -> Leases {
        self.inner.leases()
    }
}

type Serve = Box<dyn Fn(http::Request<Full<Bytes>>) -> Response>;

/// One life of the server.
pub struct Server {
    pub app: Arc<App>,
    pub trap: Trap,
    serve: Serve,
    now_ms: Arc<AtomicI64>,
    set_hands: Box<dyn Fn(i64)>,
}

/// Limits so small that pages and parts come up often.
pub fn settings() -> Settings {
    let mut settings = Settings::default();
    settings.sync.fetch_rows_max = 7;
    settings.sync.changes_rows_max = 5;
    settings.sync.page_entries_max = 8;
    settings.sync.tombstone_days = 2;
    settings.sync.device_days = 5;
    settings.sync.conflict_days = 2;
    settings.limits.rows_max = 12;
    settings.limits.get_keys_max = 8;
    settings.limits.logins_per_account_per_min = 0;
    settings.limits.logins_per_account_per_hour = 0;
    settings.limits.logins_per_address_per_min = 0;
    settings.limits.invitations_per_hour = 0;
    settings.limits.invitation_attempts_per_hour = 0;
    settings
}

pub fn clock(now_ms: &Arc<AtomicI64>) -> Clock {
    let now_ms = Arc::clone(now_ms);
    Clock::from_fn(move || Timestamp::from_ms(now_ms.load(Ordering::SeqCst)))
}

impl Server {
    pub fn start(disk: &mut dyn Disk, schema: &str, now_ms: &Arc<AtomicI64>) -> Self {
        let (settings, clock) = (settings(), clock(now_ms));
        let schema = Arc::new(Schema::parse(schema).unwrap_or_else(|error| panic!("{error}")));
        let trap = Trap::default();
        let inner = disk.open(&schema, clock.now());
        let shares_leases = matches!(inner.leases(), Leases::Shared(_));
        let storage: Arc<dyn Storage> = Arc::new(Trapped { inner, trap: trap.clone(), shares_leases });
        let local = LocalSettings::new(&settings.auth, &settings.limits);
        let cheap = argon2::Params::new(8, 1, 1, None).unwrap();
        let accounts = LocalAccounts::new(storage.accounts(), clock.clone(), local, cheap).unwrap();
        let accounts = Accounts::Local(Box::new(accounts));
        let app = App::new(schema, storage, accounts, clock, settings, Arc::default()).unwrap();
        if engine() == Engine::Sqlite {
            threads::simulate(|| Duration::ZERO); // nothing is gained by threads that take turns
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let filter = routes(Arc::clone(&app));
        let serve = move |request| {
            runtime.block_on(async {
                let answer = warp::service(filter.clone()).oneshot(request).await.unwrap();
                let (head, body) = answer.into_parts();
                let headers = head
                    .headers
                    .iter()
                    .map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()))
                    .collect();
                let body = body.collect().await.unwrap().to_bytes().to_vec();
                Response { status: head.status.as_u16(), headers, body }
            })
        };
        let (now_ms, set_hands) = (Arc::clone(now_ms), disk.hands());
        Self { app, trap, serve: Box::new(serve), now_ms, set_hands }
    }

    pub fn ask(&self, request: &Request) -> Response {
        (self.set_hands)(self.now_ms.load(Ordering::SeqCst));
        let mut asked = http::Request::builder().method(request.method).uri(format!("/{}", request.path));
        // Who waits for the lock on the server waits by the real clock; here devices come back themselves.
        for (name, value) in request.headers.iter().filter(|(name, _)| *name != "prefer") {
            asked = asked.header(*name, value);
        }
        let body = request.body.clone().unwrap_or_default();
        if request.body.is_some() {
            asked = asked.header("content-type", "application/json").header("content-length", body.len());
        }
        (self.serve)(asked.body(Full::new(Bytes::from(body))).unwrap())
    }
}

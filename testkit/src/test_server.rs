//! A database with a server in it that has no socket, and a clock that tests turn by days.
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use rollcall::accounts::{Accounts, LocalAccounts, LocalSettings, LogIn};
use rollcall::clock::Clock;
use rollcall::config::Settings;
use rollcall::http::{App, routes};
use rollcall::model::{Owner, Timestamp};
use rollcall::purge;
use rollcall::schema::Schema;
use rollcall::storage::Purged;
use rusqlite::Connection;
use serde_json::{Value, json};
use uuid::Uuid;

pub use crate::engine;

use engine::{Store, is_sqlite};

pub const SCHEMA: &str = "[table.notes]\nkey = \"id\"\n[table.notes.columns]\ntext = \"text\"\n";
pub const EMAIL: &str = "anna@example.com";
pub const PASSWORD: &str = "something borrowed";
pub const DAY_MS: i64 = Timestamp::DAY_MS;

pub struct TestServer {
    /// Of an SQLite store.
    pub path: PathBuf,
    pub app: Option<Arc<App>>,
    now_ms: Arc<AtomicI64>,
    runtime: tokio::runtime::Runtime,
    /// Goes last: its database may be another test's then.
    pub store: Store,
}

/// One device, logged in.
#[derive(Clone, Debug)]
pub struct Device {
    pub token: String,
    pub id: String,
}

pub fn system_now_ms() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    i64::try_from(since.as_millis()).unwrap()
}

pub fn key(number: u32) -> String {
    Uuid::from_u128(u128::from(number) + 1).to_string()
}

impl TestServer {
    /// Its clock is `days_ago` behind the system's, so that commands treat its data as old.
    pub fn new(days_ago: i64) -> Self {
        let store = Store::new();
        let path = store.path();
        let now_ms = Arc::new(AtomicI64::new(system_now_ms() - days_ago * DAY_MS));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let mut server = Self { store, path, app: None, now_ms, runtime };
        server.open();
        // An open reader of the file would disturb commands that replace it.
        if !is_sqlite() {
            server.store.look();
        }
        server
    }

    /// Starts the server.
    pub fn open(&mut self) {
        let mut settings = Settings::default();
        settings.limits.logins_per_account_per_min = 0;
        settings.limits.logins_per_account_per_hour = 0;
        settings.limits.logins_per_address_per_min = 0;
        let now_ms = Arc::clone(&self.now_ms);
        let clock = Clock::from_fn(move || Timestamp::from_ms(now_ms.load(Ordering::SeqCst)));
        let schema = Arc::new(Schema::parse(SCHEMA).unwrap());
        let wait = Duration::from_secs(5);
        let storage = self.store.serve(&schema, wait, clock.now(), Arc::default()).unwrap();
        let local = LocalSettings::new(&settings.auth, &settings.limits);
        let cheap = argon2::Params::new(8, 1, 1, None).unwrap();
        let local = LocalAccounts::new(storage.accounts(), clock.clone(), local, cheap).unwrap();
        if storage.accounts().user(EMAIL).unwrap().is_none() {
            local.enrol(EMAIL, PASSWORD, None).unwrap();
        }
        let accounts = Accounts::Local(Box::new(local));
        self.app = Some(App::new(schema, storage, accounts, clock, settings, Arc::default()).unwrap());
    }

    /// Ends the server.
    pub fn close(&mut self) {
        self.app = None;
    }

    pub fn app(&self) -> &Arc<App> {
        self.app.as_ref().expect("the server runs")
    }

    pub fn pass_hours(&self, hours: i64) {
        self.now_ms.fetch_add(hours * 3_600_000, Ordering::SeqCst);
    }

    pub fn pass_days(&self, days: i64) {
        self.pass_hours(days * 24);
    }

    pub fn device(&self, name: &str) -> Device {
        let requested = LogIn { email: EMAIL, password: PASSWORD, device: name, device_id: None };
        let here = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let token = self.app().accounts.local().unwrap().log_in(requested, here).unwrap();
        Device { token: token.token, id: token.device_id.0.to_string() }
    }

    pub fn owner(&self) -> Owner {
        self.app().storage.accounts().user(EMAIL).unwrap().unwrap().owner
    }

    pub fn ask(&self, device: &Device, method: &str, path: &str, body: Option<Value>) -> (u16, Value) {
        self.ask_with(device, method, path, body, None)
    }

    pub fn ask_with(
        &self,
        device: &Device,
        method: &str,
        path: &str,
        body: Option<Value>,
        idempotency_key: Option<&str>,
    ) -> (u16, Value) {
        let mut request = warp::test::request()
            .method(method)
            .path(path)
            .header("authorization", format!("Bearer {}", device.token));
        if let Some(key) = idempotency_key {
            request = request.header("idempotency-key", key);
        }
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body.to_string());
        }
        let filter = routes(Arc::clone(self.app()));
        let answer = self.runtime.block_on(request.reply(&filter));
        (answer.status().as_u16(), serde_json::from_slice(answer.body()).unwrap_or(Value::Null))
    }

    /// A synchronise that must get a 200.
    #[track_caller]
    pub fn sync(&self, device: &Device, body: Value) -> Value {
        let (status, answer) = self.ask(device, "POST", "/synchronise", Some(body));
        assert_eq!(status, 200, "{answer}");
        answer
    }

    /// Adds a note; returns the version.
    #[track_caller]
    pub fn add(&self, device: &Device, number: u32) -> u64 {
        let row = json!({"id": key(number), "text": format!("note {number}")});
        self.sync(device, json!({"add": {"notes": [row]}}))["version"].as_u64().unwrap()
    }

    /// Deletes notes; returns the version.
    #[track_caller]
    pub fn delete(&self, device: &Device, numbers: impl Iterator<Item = u32>) -> u64 {
        let keys: Vec<String> = numbers.map(key).collect();
        let body = json!({"delete": {"notes": keys}, "confirm_deletes": keys.len()});
        self.sync(device, body)["version"].as_u64().unwrap()
    }

    pub fn changes(&self, device: &Device, query: &str) -> (u16, Value) {
        self.ask(device, "GET", &format!("/changes{query}"), None)
    }

    /// The changes after a cursor, which acknowledges that the device has read everything up to it.
    pub fn since(&self, device: &Device, version: u64) -> (u16, Value) {
        self.changes(device, &format!("?since={version}"))
    }

    /// What `rollcall purge` does.
    pub fn purge(&self) -> Purged {
        let app = self.app();
        app.acks.flush(&*app.storage, &mut || true).unwrap();
        let terms =
            purge::terms(&app.settings.sync, app.settings.limits.owner_past_bytes_max, app.clock.now());
        purge::run_all(&*app.storage, &terms, &mut |_, _| true).unwrap()
    }

    pub fn dir(&self) -> &Path {
        self.store.dir.path()
    }

    /// Opens an SQLite store, beside the server.
    pub fn look(&self) -> Connection {
        Connection::open(&self.path).unwrap()
    }

    pub fn count(&self, from: &str) -> i64 {
        self.number(&format!("SELECT count(*) FROM {from}"))
    }

    /// A number from SQL, in a dialect that both engines accept.
    pub fn number(&self, sql: &str) -> i64 {
        self.numbers::<1>(sql)[0]
    }

    /// Several numbers of one snapshot.
    pub fn numbers<const N: usize>(&self, sql: &str) -> [i64; N] {
        if !is_sqlite() {
            return self.store.numbers(sql);
        }
        let of_row = |row: &rusqlite::Row<'_>| Ok(std::array::from_fn(|at| row.get_unwrap(at)));
        self.look().query_row(sql, [], of_row).unwrap()
    }
}

pub fn count(conn: &Connection, from: &str) -> i64 {
    conn.query_row(&format!("SELECT count(*) FROM {from}"), [], |row| row.get(0)).unwrap()
}

pub fn number(conn: &Connection, sql: &str) -> i64 {
    conn.query_row(sql, [], |row| row.get(0)).unwrap()
}

/// Holds a 410 against the owner's state.
#[track_caller]
pub fn is_expired(answer: &(u16, Value), version: u64, horizon: u64) {
    let (status, body) = answer;
    assert_eq!((*status, &body["code"]), (410, &json!("cursor_expired")), "{body}");
    assert_eq!((&body["version"], &body["horizon"]), (&json!(version), &json!(horizon)), "{body}");
}

/// The command line, with what it would read from the environment taken away.
pub fn rollcall(command: &str) -> Command {
    let mut rollcall = Command::new(crate::process::program());
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("ROLLCALL_")) {
        rollcall.env_remove(name);
    }
    rollcall.arg(command).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    rollcall
}

pub fn database(path: &Path) -> String {
    format!("sqlite:{}", path.display())
}

/// The exit code and output of a command.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

pub fn run(command: &mut Command) -> Ended {
    let output = command.output().unwrap();
    Ended {
        code: output.status.code(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

pub fn signal(child: &Child, name: &str) {
    assert!(Command::new("kill").args([name, &child.id().to_string()]).status().unwrap().success());
}

/// Polls until the condition holds; a test that waits for too long has found a hang.
#[track_caller]
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < Duration::from_secs(60), "never came: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// `rollcall serve`, with its socket.
pub struct Served {
    pub child: Child,
    pub url: String,
    log: PathBuf,
}

impl Served {
    pub fn start(dir: &Path, database: &str, flags: &[&str]) -> Self {
        let schema = dir.join("schema.toml");
        std::fs::write(&schema, SCHEMA).unwrap();
        let mut serve = rollcall("serve");
        serve.arg("--schema").arg(&schema).args(["--database", database]);
        serve.args(["--listen", "127.0.0.1:0", "--logins-per-account-per-min", "0"]).args(flags);
        // Not a pipe: nobody reads it meanwhile, and a full one would block the server.
        let log = dir.join("server.log");
        serve.stderr(std::fs::File::create(&log).unwrap());
        let mut child = serve.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let url = line.trim().strip_prefix("listening on ").map(str::to_owned);
        let url = url.unwrap_or_else(|| {
            panic!("the server did not start: {}", std::fs::read_to_string(&log).unwrap())
        });
        Self { child, url, log }
    }

    pub fn ask(&self, token: &str, method: &str, path: &str, body: Option<&Value>) -> (u16, Value) {
        ask(&self.url, token, method, path, body)
    }

    /// Stops it like a service manager; returns its status and its log.
    pub fn stop(mut self) -> (ExitStatus, String) {
        signal(&self.child, "-TERM");
        let status = self.child.wait().unwrap();
        (status, std::fs::read_to_string(&self.log).unwrap())
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn ask(url: &str, token: &str, method: &str, path: &str, body: Option<&Value>) -> (u16, Value) {
    let config = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_global(Some(Duration::from_secs(30)))
        .build();
    let request = http::Request::builder()
        .method(method)
        .uri(format!("{url}{path}"))
        .header("authorization", format!("Bearer {token}"))
        .header("content-type", "application/json")
        .body(body.map(Value::to_string).unwrap_or_default())
        .unwrap();
    let mut answer = ureq::Agent::new_with_config(config).run(request).unwrap();
    let text = answer.body_mut().with_config().limit(1 << 30).read_to_string().unwrap();
    (answer.status().as_u16(), serde_json::from_str(&text).unwrap_or(Value::Null))
}

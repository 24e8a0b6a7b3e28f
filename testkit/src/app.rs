//! A server without its socket: the real routes over a store of its own, with a clock to turn.
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request};
use http_body_util::{BodyExt, Full};
use rollcall::accounts::{Accounts, LocalAccounts, LocalSettings, LogIn};
use rollcall::clock::Clock;
use rollcall::config::{AuthMode, Settings};
use rollcall::dialects::Dialect;
use rollcall::http::{App, routes};
use rollcall::mail::{Hook, Mail, MailKind};
use rollcall::members::{leave, moved};
use rollcall::metrics::Metrics;
use rollcall::model::{Owner, Precision, Role, Timestamp};
use rollcall::schema::Schema;
use rollcall::storage::{Member, StorageError};
use serde_json::{Value, json};
use tower::ServiceExt;
use uuid::Uuid;

pub use crate::engine;

use engine::pg::apart;
use engine::{Engine, Store};

use crate::contract::check_answer;

/// Tables for every rule: each type, each policy, references to another table and to itself.
pub const SCHEMA: &str = r#"
[table.items]
key = "iid"
[table.items.columns]
title = { type = "text", required = true }
list = { type = "uuid", references = "lists" }

[table.lists]
key = "lid"
[table.lists.columns]
title = { type = "text", required = true, max_length = 20 }
colour = { type = "text", default = "red" }

[table.nodes]
key = "id"
[table.nodes.columns]
name = "text"
parent = { type = "uuid", references = "nodes" }
twin = { type = "uuid", references = "nodes" }

[table.things]
key = "id"
[table.things.columns]
text = "text"
whole = "integer"
real = "real"
exact = "decimal"
flag = "boolean"
other = "uuid"
at = "timestamp"
day = "date"
extra = "json"
bytes = "blob"
made = { type = "timestamp", default = "now" }

[table.ours]
key = "id"
policy = "server"
[table.ours.columns]
title = "text"

[table.theirs]
key = "id"
policy = "client"
[table.theirs.columns]
title = "text"
"#;

pub const PASSWORD: &str = "correct horse";

/// 2025-06-15T15:06:40.000Z
pub const START_MS: i64 = 1_750_000_000_000;

pub struct Server {
    pub app: Arc<App>,
    now_ms: Arc<AtomicI64>,
    store: Store,
    /// Mails that were sent; none are without `mail_command`.
    pub mails: Arc<Mutex<Vec<Mail>>>,
}

/// One device, logged in.
#[derive(Clone, Debug)]
pub struct Device {
    pub token: String,
    pub id: String,
    pub name: String,
}

/// A response that follows the contract: [`Ask::send`] has checked it.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub bytes: Vec<u8>,
}

impl Answer {
    /// The body; `null` if it is no JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.bytes).unwrap_or(Value::Null)
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    /// Status and code of a problem.
    pub fn problem(&self) -> (u16, String) {
        (self.status, self.json()["code"].as_str().unwrap_or_default().to_owned())
    }

    /// The body, of a status that must be 200.
    #[track_caller]
    pub fn ok(&self) -> Value {
        assert_eq!(self.status, 200, "{}", String::from_utf8_lossy(&self.bytes));
        self.json()
    }

    pub fn fence(&self) -> u64 {
        self.header("sync-lock").unwrap().parse().unwrap()
    }

    pub fn version(&self) -> u64 {
        self.header("sync-version").unwrap().parse().unwrap()
    }

    /// Status, code and the JSON pointer of a problem of a body.
    #[track_caller]
    pub fn fault(&self) -> (u16, String, String) {
        let (status, code) = self.problem();
        (status, code, self.json()["at"].as_str().unwrap_or("nowhere").to_owned())
    }
}

/// The settings of a test: nobody waits, nobody is counted, every dialect is served. A slow disk refuses nothing.
pub fn settings() -> Settings {
    let mut settings = Settings::default();
    settings.dialects.dialects = Dialect::ALL.to_vec();
    settings.dialects.electric_wait_s = 0;
    settings.limits.busy_wait_ms = 60_000;
    settings.limits.logins_per_account_per_min = 0;
    settings.limits.logins_per_account_per_hour = 0;
    settings.limits.logins_per_address_per_min = 0;
    settings
}

pub fn clock_of(now_ms: &Arc<AtomicI64>) -> Clock {
    let now_ms = Arc::clone(now_ms);
    Clock::from_fn(move || Timestamp::from_ms(now_ms.load(Ordering::SeqCst)))
}

impl Server {
    pub fn new() -> Self {
        Self::with(|_| {})
    }

    pub fn with(change: impl FnOnce(&mut Settings)) -> Self {
        Self::of(SCHEMA, change)
    }

    pub fn of(schema: &str, change: impl FnOnce(&mut Settings)) -> Self {
        Self::over(Store::new(), schema, change)
    }

    /// Ends the server and starts one over the same data.
    pub fn restarted(self) -> Self {
        let Self { app, mut store, .. } = self;
        store.look_away();
        drop(app);
        Self::over(store, SCHEMA, |_| {})
    }

    /// Another server, over a copy of the committed data.
    pub fn copied(&self, change: impl FnOnce(&mut Settings)) -> Self {
        Self::over(self.store.copied(), SCHEMA, change)
    }

    /// A server over that store.
    pub fn over(mut store: Store, schema: &str, change: impl FnOnce(&mut Settings)) -> Self {
        let mut settings = settings();
        change(&mut settings);
        let now_ms = Arc::new(AtomicI64::new(START_MS));
        let clock = clock_of(&now_ms);
        let schema = Arc::new(Schema::parse(schema).unwrap_or_else(|error| panic!("{error}")));
        let busy_wait = Duration::from_millis(settings.limits.busy_wait_ms);
        let metrics = Arc::<Metrics>::default();
        let storage = store.serve(&schema, busy_wait, clock.now(), Arc::clone(&metrics)).unwrap();
        store.set_now(START_MS);
        store.look();
        let mails = Arc::<Mutex<Vec<Mail>>>::default();
        let accounts = match settings.auth.auth {
            AuthMode::Local => {
                let local = LocalSettings::new(&settings.auth, &settings.limits);
                let cheap = argon2::Params::new(8, 1, 1, None).unwrap();
                let local = LocalAccounts::new(storage.accounts(), clock.clone(), local, cheap).unwrap();
                let local = match settings.auth.mail.mail_command.is_empty() {
                    true => local,
                    false => {
                        let sent = Arc::clone(&mails);
                        let note = move |mail: &Mail| {
                            sent.lock().unwrap().push(mail.clone());
                            Ok(())
                        };
                        local.sending_by(Hook::Other(Box::new(note)), 64).unwrap()
                    }
                };
                Accounts::Local(Box::new(local))
            }
            AuthMode::Jwt => {
                Accounts::open(&settings.auth, &settings.limits, storage.accounts(), clock.clone()).unwrap()
            }
        };
        let app = App::new(schema, storage, accounts, clock, settings, metrics).unwrap();
        Self { app, now_ms, store, mails }
    }

    /// A token with which the user can choose another password, as a mail has it.
    pub fn reset_token(&self, user: &str) -> String {
        self.mail_token(MailKind::PasswordReset, user)
    }

    /// A token of a mail to the user.
    pub fn mail_token(&self, kind: MailKind, user: &str) -> String {
        let local = self.app.accounts.local().unwrap();
        apart(|| local.mail_for(kind, &format!("{user}@example.org")).unwrap().unwrap().token)
    }

    /// Turns the clock.
    pub fn turn(&self, ms: i64) {
        let was = self.now_ms.fetch_add(ms, Ordering::SeqCst);
        self.store.set_now(was + ms);
    }

    /// A time by the server's clock, `ms` from now, as rows spell it.
    pub fn time(&self, ms: i64) -> String {
        let at = Timestamp::from_ms(self.now_ms.load(Ordering::SeqCst) + ms);
        at.format(Precision::Milliseconds).to_string()
    }

    /// A device of that user, who is made at need.
    pub fn device(&self, user: &str, name: &str) -> Device {
        let email = format!("{user}@example.org");
        apart(|| {
            if self.app.storage.accounts().user(&email).unwrap().is_none() {
                self.app.accounts.local().unwrap().enrol(&email, PASSWORD, None).unwrap();
            }
        });
        self.log_in(&email, name)
    }

    /// A device of a new user who shares the rows of another.
    pub fn sharing(&self, with: &str, user: &str, name: &str) -> Device {
        let email = format!("{user}@example.org");
        let owner = self.owner(with);
        apart(|| self.app.accounts.local().unwrap().enrol(&email, PASSWORD, Some(owner)).unwrap());
        self.store.spread_members();
        self.log_in(&email, name)
    }

    pub fn owner(&self, user: &str) -> Owner {
        let email = format!("{user}@example.org");
        apart(|| self.app.storage.accounts().user(&email).unwrap().unwrap().owner)
    }

    /// The id of a user.
    pub fn user_id(&self, user: &str) -> Uuid {
        let email = format!("{user}@example.org");
        apart(|| self.app.storage.accounts().user(&email).unwrap().unwrap().id)
    }

    /// Gives a user a role at the owner of another, or another role.
    pub fn admit(&self, with: &str, user: &str, role: Role) {
        let (owner, user, now) = (self.owner(with), self.user_id(user), self.app.clock.now());
        apart(|| {
            let admitted = self.app.storage.write(owner, |txn| {
                let since = moved(txn, now)?;
                let was = txn.member(user)?;
                // Either role reads the same.
                let (since, joined_at) = was.map_or((since, now), |was| (was.since, was.joined_at));
                txn.put_member(&Member { user, role, since, name: String::new(), joined_at })
            });
            admitted.unwrap();
            self.app.storage.accounts().list_owner(user, owner, true).unwrap();
        });
    }

    /// Takes a user out of the owner of another.
    pub fn dismiss(&self, with: &str, user: &str) {
        let (owner, user, now) = (self.owner(with), self.user_id(user), self.app.clock.now());
        apart(|| {
            assert!(self.app.storage.write(owner, |txn| leave(txn, user, now)).unwrap());
            self.app.storage.accounts().list_owner(user, owner, false).unwrap();
        });
    }

    fn log_in(&self, email: &str, name: &str) -> Device {
        let requested = LogIn { email, password: PASSWORD, device: name, device_id: None };
        let here = [127, 0, 0, 1].into();
        let token = apart(|| self.app.accounts.local().unwrap().log_in(requested, here).unwrap());
        Device { token: token.token, id: token.device_id.to_string(), name: name.to_owned() }
    }

    /// Every row of every table, as it is committed.
    pub fn dump(&self) -> BTreeMap<String, Vec<String>> {
        self.store.dump()
    }

    /// A number that changes with every commit, whatever it wrote.
    pub fn commits(&self) -> i64 {
        self.store.commits()
    }

    /// The owner's version; 0 if nothing was ever written.
    pub fn version_of(&self, user: &str) -> u64 {
        let owner = self.owner(user);
        let held = apart(|| self.app.storage.read(owner, |txn| Ok::<_, StorageError>(txn.state()))).unwrap();
        if held.seed.is_some() { held.version.0 } else { 0 }
    }

    /// Fails unless ledger, tables and counts agree, and every reference leads to a row.
    pub fn check_whole(&self) {
        let one = |sql: &str| self.store.number(sql);
        let id = match self.store.engine {
            Engine::Sqlite => {
                assert_eq!(
                    one("SELECT count(*) FROM pragma_foreign_key_check"),
                    0,
                    "references lead nowhere"
                );
                "id"
            }
            Engine::Postgres => "owner",
        };
        assert_eq!(
            one("SELECT count(*) FROM rollcall_ledger WHERE NOT deleted"),
            one("SELECT CAST(coalesce(sum(live_rows), 0) AS bigint) FROM rollcall_owner"),
            "live rows are miscounted"
        );
        for table in self.app.schema.tables() {
            let (name, key, owner) = (&table.name, &table.key, &table.owner_column);
            let ledger = format!(
                "SELECT l.owner, l.key FROM rollcall_ledger l JOIN rollcall_table t ON t.id = l.tbl
                 WHERE t.name = '{name}' AND NOT l.deleted"
            );
            let rows = format!("SELECT \"{owner}\", \"{key}\" FROM \"{name}\"");
            for (some, others) in [(&ledger, &rows), (&rows, &ledger)] {
                assert_eq!(one(&format!("SELECT count(*) FROM ({some} EXCEPT {others}) d")), 0, "{name}");
            }
        }
        let newest = format!(
            "SELECT count(*) FROM rollcall_ledger l JOIN rollcall_owner o ON o.{id} = l.owner
             WHERE l.version > o.version OR l.created > l.version"
        );
        assert_eq!(one(&newest), 0, "a row is newer than its owner");
    }

    /// A number from SQL.
    pub fn number(&self, sql: &str) -> i64 {
        self.store.number(sql)
    }

    /// Writes with SQL, past the server.
    pub fn sql(&self, sql: &str) {
        self.store.sql(sql);
    }

    pub fn get(&self, path: &str) -> Ask {
        self.ask("GET", path)
    }

    pub fn ask(&self, method: &str, path: &str) -> Ask {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        Ask { app: Arc::clone(&self.app), method, path: path.into(), headers: Vec::new(), body: None }
    }

    /// `POST /synchronise`.
    pub async fn sync(&self, device: &Device, body: Value) -> Answer {
        self.ask("POST", "/synchronise").of(device).json(&body).send().await
    }

    /// `GET /fetch` with that query.
    pub async fn fetch(&self, device: &Device, query: &str) -> Answer {
        self.get(&format!("/fetch{query}")).of(device).send().await
    }

    /// The manifest, without taking the lock.
    pub async fn manifest(&self, device: &Device) -> Value {
        self.fetch(device, "?lock=false").await.ok()
    }

    /// The row, if there is one.
    pub async fn row(&self, device: &Device, table: &str, key: &str) -> Option<Value> {
        let result = self.sync(device, json!({ "get": { table: [key] } })).await.ok();
        result["get"][table].get(0).cloned()
    }
}

/// One request in the making.
#[derive(Clone)]
pub struct Ask {
    app: Arc<App>,
    method: Method,
    path: String,
    headers: Vec<(String, String)>,
    body: Option<Vec<u8>>,
}

impl Ask {
    pub fn of(self, device: &Device) -> Self {
        let token = format!("Bearer {}", device.token);
        self.header("authorization", token)
    }

    pub fn has_token(&self) -> bool {
        self.headers.iter().any(|(name, _)| name == "authorization")
    }

    pub fn header(mut self, name: &str, value: impl ToString) -> Self {
        self.headers.push((name.into(), value.to_string()));
        self
    }

    pub fn json(self, body: &Value) -> Self {
        self.body(body.to_string())
    }

    /// A body with the media type of JSON.
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = Some(body.into());
        self.header("content-type", "application/json")
    }

    /// Sends the request, and checks the response against the contract.
    pub async fn send(self) -> Answer {
        let mut request = Request::builder().method(&self.method).uri(&self.path);
        if let Some(body) = &self.body {
            request = request.header("content-length", body.len());
        }
        for (name, value) in &self.headers {
            request = request.header(name.as_str(), value.as_str()); // a duplicate header is sent twice
        }
        let request = request.body(Full::new(Bytes::from(self.body.unwrap_or_default()))).unwrap();
        let answer = warp::service(routes(self.app)).oneshot(request).await.unwrap();
        let (head, mut body) = answer.into_parts();
        let bytes = match head.headers.get("content-type") {
            // It would never end.
            _ if head.headers.contains_key("x-accel-buffering") && self.method != "HEAD" => {
                let mut read = Vec::new();
                // A stream of checkpoints is read to the end of the first.
                let is_enough = |read: &[u8], kind: &HeaderValue| {
                    kind != "application/x-ndjson"
                        || read.windows(20).any(|part| part == b"\"checkpoint_complete")
                };
                while read.is_empty() || !is_enough(&read, &head.headers["content-type"]) {
                    let Some(frame) = body.frame().await else { break };
                    read.extend_from_slice(&frame.unwrap().into_data().unwrap());
                }
                read.into()
            }
            _ => body.collect().await.unwrap().to_bytes(),
        };
        let answer = Answer { status: head.status.as_u16(), headers: head.headers, bytes: bytes.to_vec() };
        check_answer(&self.method, &self.path, answer.status, &answer.headers, &answer.bytes);
        answer
    }
}

/// The verdicts of one list of a response.
pub fn verdicts<'a>(report: &'a Value, operation: &str, table: &str) -> Vec<&'a str> {
    let list = report[operation][table].as_array().unwrap_or_else(|| panic!("{operation} {table}: {report}"));
    list.iter().map(|result| result["verdict"].as_str().unwrap()).collect()
}

/// A key that ends in that number.
pub fn key(number: u64) -> String {
    format!("01900000-0000-7000-8000-{number:012x}")
}

//! A served database, the devices of its owners, and what each of them holds.
use std::collections::BTreeMap;
use std::io::Read as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use http::{HeaderMap, Method};
use rollcall::accounts::{Accounts, LocalAccounts, LocalSettings, LogIn};
use rollcall::clock::Clock;
use rollcall::config::Settings;
use rollcall::http::{App, routes, serve};
use rollcall::model::{DeviceId, Owner, Role, Timestamp, Version};
use rollcall::schema::Schema;
use rollcall::storage::Storage;
use rollcall::synchronise::Terms;
use serde_json::{Map, Value as Json, json};
use tokio::sync::oneshot;
use uuid::Uuid;

pub use crate::engine;

use engine::Store;

/// Far longer than anything here should take: who waits so long has found a hang.
pub const TOO_LONG: Duration = Duration::from_secs(60);

/// 2024-05-01T12:00:00Z, where the tests' own clocks begin.
pub const NOON_MS: i64 = 1_714_564_800_000;

/// One table for each policy, equal except for their names, and children that refer to one of them.
pub const POLICIES: &str = r#"
[table.newest]
key = "id"
policy = "newest"
[table.newest.columns]
title = { type = "text", required = true }
body = "text"
n = "integer"
[table.server]
key = "id"
policy = "server"
[table.server.columns]
title = { type = "text", required = true }
body = "text"
n = "integer"
[table.client]
key = "id"
policy = "client"
[table.client.columns]
title = { type = "text", required = true }
body = "text"
n = "integer"
[table.merge]
key = "id"
policy = "merge"
[table.merge.columns]
title = { type = "text", required = true }
body = "text"
n = { type = "integer", merge = "sum" }
high = { type = "integer", merge = "max" }
low = { type = "integer", merge = "min" }
paid = { type = "decimal", merge = "sum" }
tags = { type = "json", merge = "union", max_length = 40 }
[table.manual]
key = "id"
policy = "manual"
[table.manual.columns]
title = { type = "text", required = true }
body = "text"
n = "integer"
[table.children]
key = "cid"
policy = "server"
[table.children.columns]
parent = { type = "uuid", references = "newest" }
name = "text"
"#;

/// The tables of [`POLICIES`] that are alike.
pub const TABLES: [&str; 5] = ["newest", "server", "client", "merge", "manual"];

/// A time that only the test moves.
#[derive(Clone)]
pub struct TestClock(Arc<AtomicI64>);

impl Default for TestClock {
    fn default() -> Self {
        Self(Arc::new(AtomicI64::new(NOON_MS)))
    }
}

impl TestClock {
    pub fn clock(&self) -> Clock {
        let ms = Arc::clone(&self.0);
        Clock::from_fn(move || Timestamp::from_ms(ms.load(Ordering::SeqCst)))
    }

    pub fn ms(&self) -> i64 {
        self.0.load(Ordering::SeqCst)
    }

    pub fn advance_ms(&self, ms: i64) {
        self.0.fetch_add(ms, Ordering::SeqCst);
    }

    /// The time `ms` from now, as a body spells it.
    pub fn at(&self, ms: i64) -> String {
        Timestamp::from_ms(self.ms() + ms).format(rollcall::model::Precision::Milliseconds).to_string()
    }
}

/// Serves a store.
pub fn open(store: &Store, schema: &Arc<Schema>) -> Arc<dyn Storage> {
    let (wait, now) = (Duration::from_secs(10), Timestamp::from_ms(NOON_MS));
    store.serve(schema, wait, now, Arc::default()).unwrap()
}

/// What a request of a device may cost, where the test drives the phases themselves.
pub fn terms(device: DeviceId, now: Timestamp) -> Terms {
    Terms {
        device,
        role: Role::Write,
        since: Version(0),
        received: now,
        now,
        row_bytes_max: 1 << 18,
        owner_rows_max: 1 << 20,
        owner_bytes_max: 1 << 30,
        owner_past_bytes_max: 1 << 30,
        mass_delete_rows: usize::MAX,
        mass_delete_window_ms: 0,
        pull_rows_max: 5_000,
        pull_entries_max: usize::MAX,
        pull_bytes_max: usize::MAX,
        batch_bytes_max: usize::MAX,
    }
}

/// A server on a port of its own, over a database of its own.
pub struct World {
    pub schema: Arc<Schema>,
    pub app: Arc<App>,
    pub hands: TestClock,
    pub address: SocketAddr,
    agent: ureq::Agent,
    stop: Option<oneshot::Sender<()>>,
    runtime: Option<tokio::runtime::Runtime>,
    pub store: Store,
}

/// One device, as the server knows it.
#[derive(Clone, Debug)]
pub struct Device {
    pub token: String,
    pub id: DeviceId,
    pub owner: Owner,
}

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    /// The body of a success.
    #[track_caller]
    pub fn ok(&self) -> Json {
        assert_eq!(self.status, 200, "{}", self.text());
        serde_json::from_slice(&self.body).unwrap()
    }

    /// The problem document of a refusal.
    #[track_caller]
    pub fn problem(&self, status: u16, code: &str) -> Json {
        assert_eq!(self.status, status, "{}", self.text());
        let problem: Json = serde_json::from_slice(&self.body).unwrap();
        assert_eq!(problem["code"], code, "{problem}");
        problem
    }
}

impl World {
    pub fn start(schema: &str) -> Self {
        Self::start_with(schema, |_| {})
    }

    /// Starts with other settings than the usual ones.
    pub fn start_with(schema: &str, change: impl FnOnce(&mut Settings)) -> Self {
        Self::start_over(schema, change, |storage| storage, 512)
    }

    /// Starts with something between the server and its storage, and with so many threads for blocking work.
    pub fn start_over(
        schema: &str,
        change: impl FnOnce(&mut Settings),
        wrap: impl FnOnce(Arc<dyn Storage>) -> Arc<dyn Storage>,
        blocking_threads_max: usize,
    ) -> Self {
        let schema = Arc::new(Schema::parse(schema).unwrap_or_else(|error| panic!("{error}")));
        let mut store = Store::new();
        let hands = TestClock::default();
        let mut settings = Settings::default();
        settings.limits.logins_per_account_per_min = 0;
        settings.limits.logins_per_account_per_hour = 0;
        settings.limits.logins_per_address_per_min = 0;
        change(&mut settings);
        let storage = wrap(open(&store, &schema));
        store.set_now(NOON_MS);
        store.look();
        let cheap = argon2::Params::new(8, 1, 1, None).unwrap();
        let local = LocalSettings::new(&settings.auth, &settings.limits);
        let local = LocalAccounts::new(storage.accounts(), hands.clock(), local, cheap).unwrap();
        let accounts = Accounts::Local(Box::new(local));
        let app = App::new(Arc::clone(&schema), storage, accounts, hands.clock(), settings, Arc::default())
            .unwrap();

        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .max_blocking_threads(blocking_threads_max)
            .enable_all()
            .build()
            .unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let stopped = async move { drop(stopped.await) };
        let (bounds, draining) = (Arc::clone(&app.bounds), app.draining.clone());
        runtime.spawn(serve(listener, routes(Arc::clone(&app)), bounds, draining, Arc::default(), stopped));
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(TOO_LONG))
            .build()
            .into();
        Self { schema, app, hands, address, agent, stop: Some(stop), runtime: Some(runtime), store }
    }

    pub fn database(&self) -> PathBuf {
        self.store.path()
    }

    /// A device of the owner of that name; both are made if they are not there.
    pub fn device(&self, owner: &str, device: &str) -> Device {
        let accounts = self.app.accounts.local().unwrap();
        let email = format!("{owner}@example.com");
        let password = "something borrowed";
        let user = match self.app.storage.accounts().user(&email).unwrap() {
            Some(user) => user,
            None => accounts.enrol(&email, password, None).unwrap(),
        };
        let asked = LogIn { email: &email, password, device, device_id: None };
        let given = accounts.log_in(asked, IpAddr::V4(Ipv4Addr::LOCALHOST)).unwrap();
        Device { token: given.token, id: given.device_id, owner: user.owner }
    }

    pub fn call(
        &self,
        device: &Device,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<&Json>,
    ) -> Answer {
        let mut request = http::Request::builder()
            .method(method)
            .uri(format!("http://{}{path}", self.address))
            .header("authorization", format!("Bearer {}", device.token));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let answer = match body {
            // Without a length the client would send an empty body in chunks, which may arrive after the
            // response.
            None if request.method_ref() == Some(&Method::POST) => {
                self.agent.run(request.header("content-length", "0").body(Vec::new()).unwrap())
            }
            None => self.agent.run(request.body(()).unwrap()),
            Some(body) => {
                let request = request.header("content-type", "application/json");
                self.agent.run(request.body(body.to_string()).unwrap())
            }
        };
        let (head, body) = answer.unwrap().into_parts();
        let mut bytes = Vec::new();
        body.into_reader().read_to_end(&mut bytes).unwrap();
        Answer { status: head.status.as_u16(), headers: head.headers, body: bytes }
    }

    pub fn get(&self, device: &Device, path: &str) -> Answer {
        self.call(device, Method::GET, path, &[], None)
    }

    pub fn post(&self, device: &Device, path: &str, body: &Json) -> Answer {
        self.call(device, Method::POST, path, &[], Some(body))
    }

    pub fn sync(&self, device: &Device, body: &Json) -> Answer {
        self.post(device, "/synchronise", body)
    }

    pub fn sync_once(&self, device: &Device, key: &str, body: &Json) -> Answer {
        self.call(device, Method::POST, "/synchronise", &[("idempotency-key", key)], Some(body))
    }

    /// The owner's version.
    pub fn version(&self, device: &Device) -> u64 {
        self.app
            .storage
            .read(device.owner, |txn| Ok::<_, rollcall::storage::StorageError>(txn.state().version.0))
            .unwrap()
    }

    /// Every live row of the owner, whole, by table and key.
    pub fn rows(&self, device: &Device) -> Rows {
        let mut rows = Rows::new();
        let mut path = "/changes".to_owned();
        loop {
            let page = self.get(device, &path).ok();
            assert_eq!(page["type"], "full");
            assert_eq!((&page["update"], &page["delete"]), (&json!({}), &json!({})));
            take(&self.schema, &mut rows, &page);
            match page["next"].as_str() {
                Some(next) => path = format!("/changes?next={next}"),
                None => return rows,
            }
        }
    }

    /// All that the database holds, a line a row: what must not change does not change here.
    pub fn dump(&self) -> String {
        let tables = self.store.dump();
        let rows =
            tables.iter().flat_map(|(table, rows)| rows.iter().map(move |row| format!("{table} {row}\n")));
        rows.collect()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(5));
        }
    }
}

/// Rows by table and key, as the wire shows them.
pub type Rows = BTreeMap<(String, String), Json>;

fn key_column<'a>(schema: &'a Schema, table: &str) -> &'a str {
    &schema.table(table).unwrap().key
}

fn of_tables(set: &Json) -> impl Iterator<Item = (&String, &Vec<Json>)> {
    set.as_object().unwrap().iter().map(|(table, list)| (table, list.as_array().unwrap()))
}

/// Applies a page of changes.
pub fn take(schema: &Schema, rows: &mut Rows, page: &Json) {
    for set in ["add", "update"] {
        for (table, list) in of_tables(&page[set]) {
            for row in list {
                let key = row[key_column(schema, table)].as_str().unwrap();
                rows.insert((table.clone(), key.to_owned()), row.clone());
            }
        }
    }
    for (table, list) in of_tables(&page["delete"]) {
        for key in list {
            rows.remove(&(table.clone(), key.as_str().unwrap().to_owned()));
        }
    }
}

/// An app on a device: its copy, and the cursor of the copy. It only applies responses.
pub struct Copy {
    pub device: Device,
    pub rows: Rows,
    pub cursor: Option<u64>,
    /// The `limit` that it sends.
    pub limit: usize,
}

impl Copy {
    pub fn new(device: Device) -> Self {
        Self { device, rows: Rows::new(), cursor: None, limit: 1_000 }
    }

    /// Pulls until nothing is left; a copy whose cursor has expired begins anew.
    pub fn pull(&mut self, world: &World) {
        self.pull_with(world, || {});
    }

    /// The same, with something that happens between two pages.
    pub fn pull_with(&mut self, world: &World, mut between: impl FnMut()) {
        let limit = self.limit;
        let first = match self.cursor {
            Some(since) => format!("/changes?since={since}&limit={limit}"),
            None => format!("/changes?limit={limit}"),
        };
        let answer = world.get(&self.device, &first);
        if answer.status == 410 {
            self.cursor = None;
            return self.pull_with(world, between);
        }
        let mut page = answer.ok();
        if page["type"] == "full" {
            self.rows.clear();
        }
        loop {
            take(&world.schema, &mut self.rows, &page);
            let Some(next) = page["next"].as_str() else { break };
            assert_eq!(page["more"], true);
            assert_eq!(page.get("digests"), None, "only the last page has digests");
            between();
            page = world.get(&self.device, &format!("/changes?next={next}&limit={limit}")).ok();
        }
        assert_eq!(page["more"], false);
        self.cursor = page["version"].as_u64();
    }

    /// Sends a body under its cursor and applies the response; returns the response.
    #[track_caller]
    pub fn push(&mut self, world: &World, body: &Json) -> Json {
        let mut body = body.clone();
        if let Some(cursor) = self.cursor {
            body["base"] = json!(cursor);
        }
        let answer = world.sync(&self.device, &body).ok();
        self.learn(&world.schema, &body, &answer);
        answer
    }

    /// Applies the response to a body.
    pub fn learn(&mut self, schema: &Schema, body: &Json, answer: &Json) {
        for set in ["add", "update", "delete"] {
            for (table, list) in of_tables(&answer[set]) {
                let key_column = key_column(schema, table);
                for (place, result) in list.iter().enumerate() {
                    let key = (table.clone(), result[key_column].as_str().unwrap().to_owned());
                    if let Some(row) = result.get("row") {
                        self.rows.insert(key, row.clone());
                        continue;
                    }
                    match result["verdict"].as_str().unwrap() {
                        "gone" | "deleted" | "absent" => {
                            self.rows.remove(&key);
                        }
                        "same" if set == "delete" => {
                            self.rows.remove(&key);
                        }
                        "rejected" => {
                            self.rows.remove(&key);
                        }
                        _ => {
                            let declared = schema.table(table).unwrap();
                            let row = self.rows.entry(key).or_insert_with(|| {
                                let mut row = Map::new();
                                row.insert(key_column.to_owned(), result[key_column].clone());
                                let empty = declared.columns.iter().map(|it| (it.name.clone(), Json::Null));
                                row.extend(empty);
                                Json::Object(row)
                            });
                            for (name, value) in body[set][table][place].as_object().unwrap() {
                                if name != "_base" {
                                    row[name.as_str()] = value.clone();
                                }
                            }
                            row["last_update"] = result["last_update"].clone();
                        }
                    }
                }
            }
        }
        if let Some(changes) = answer.get("changes") {
            if changes["type"] == "full" {
                self.rows.clear();
            }
            take(schema, &mut self.rows, changes);
        }
        if self.cursor.is_some() {
            self.cursor = answer["version"].as_u64();
        }
    }
}

/// A key that is the same in every run.
pub fn key(number: u64) -> String {
    Uuid::from_u128(0x0192_0000_0000_7000_8000_0000_0000_0000 | u128::from(number)).to_string()
}

/// Random numbers that a seed repeats (splitmix64).
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

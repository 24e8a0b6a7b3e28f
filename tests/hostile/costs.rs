//! What the most expensive request of each operation costs under the default limits.
//!
//! Goal: no request costs more than its limits allow. Method: for every operation of `openapi.yaml` the most
//! expensive request is built, and sent to a server whose owner has much of everything, each over a copy of
//! its own. The tests run in a process of their own, since the allocator counts all of it.
//!
//! The assertions do not depend on the machine: the memory that is held at a time, the growth on disk, the
//! length of the response. Processor time and the time in the writer's turn are printed. SQLite's own memory
//! is not counted: its pages have a bound of 2 MB for each connection.

use std::collections::BTreeSet;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Full};
use rollcall::config::Settings;
use rollcall::http::routes;
use serde_json::{Value, json};
use tokio::time::sleep;
use tower::ServiceExt as _;

use crate::MEMORY;
use crate::app::{Device, PASSWORD, Server, key};
use crate::contract::{document, operations};

const MIB: u64 = 1024 * 1024;

/// The memory of one request.
const MEMORY_MAX: u64 = 128 * MIB;

/// What stays on the disk, times the body.
const DISK_TIMES: u64 = 4;

/// Pages that a request without a body may leave: one or two for each table and index that it touches.
const DISK_FREE: u64 = 256 * 1024;

/// What each conflict may leave beyond that: some 150 bytes for its record, and 40 for each of three indexes. A deletion is
/// named by 39 bytes, and its conflict must be found by its id, its time, its table and its row.
const CONFLICT_BYTES: u64 = 300;

/// What is kept of each verdict under an `Idempotency-Key`. A deletion is named by 39 bytes, and its verdict by 110.
const VERDICT_BYTES: u64 = 120;

/// The length of a refusal, whatever it is about.
const PROBLEM_MAX: u64 = 4 * 1024;

const CONSOLE: &str = "the operator's own token";

/// The worst request of an operation in some respect, and a few words about it.
struct Worst {
    operation: &'static str,
    what: &'static str,
    path: String,
    token: Option<String>,
    headers: Vec<(&'static str, String)>,
    body: Option<Vec<u8>>,
    /// Rows that it names under an `Idempotency-Key`.
    keyed_rows: u64,
    /// Whether the response is read while it arrives and may be as long as all rows are.
    streams: bool,
}

impl Worst {
    fn of(operation: &'static str, what: &'static str) -> Self {
        let path = operation.split_once(' ').unwrap().1.to_owned();
        Self {
            operation,
            what,
            path,
            token: None,
            headers: Vec::new(),
            body: None,
            keyed_rows: 0,
            streams: false,
        }
    }

    fn at(self, path: impl Into<String>) -> Self {
        Self { path: path.into(), ..self }
    }

    fn by(self, token: &str) -> Self {
        Self { token: Some(token.into()), ..self }
    }

    fn with(mut self, name: &'static str, value: &str) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    fn sending(self, body: Value) -> Self {
        Self { body: Some(body.to_string().into_bytes()), ..self }
    }

    /// Sends it under a key. It names so many rows.
    fn keyed(self, keyed_rows: u64) -> Self {
        Self { keyed_rows, ..self }.with("idempotency-key", "once")
    }

    fn streaming(self) -> Self {
        Self { streams: true, ..self }
    }

    fn request(&self) -> Request<Full<Bytes>> {
        let method = self.operation.split_once(' ').unwrap().0;
        let mut request = Request::builder().method(method).uri(&self.path);
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        if let Some(body) = &self.body {
            request = request.header("content-length", body.len()).header("content-type", "application/json");
        }
        for (name, value) in &self.headers {
            request = request.header(*name, value);
        }
        request.body(Full::new(Bytes::from(self.body.clone().unwrap_or_default()))).unwrap()
    }
}

/// What a request took.
#[derive(Clone, Copy, Debug, Default)]
struct Cost {
    status: u16,
    body: u64,
    memory: u64,
    disk: u64,
    conflicts: u64,
    written: u64,
    answer: u64,
    cpu_ms: u64,
    writer_ms: u64,
}

/// A number of this process that the system counts.
fn counted(file: &str, find: impl Fn(&str) -> Option<u64>) -> u64 {
    find(&std::fs::read_to_string(format!("/proc/self/{file}")).unwrap()).unwrap()
}

fn written() -> u64 {
    counted("io", |text| text.lines().find_map(|line| line.strip_prefix("wchar: "))?.parse().ok())
}

/// Processor time of all threads; the system counts in hundredths of a second.
fn cpu_ms() -> u64 {
    counted("stat", |text| {
        let fields: Vec<&str> = text.rsplit(')').next()?.split_whitespace().collect();
        Some((fields[11].parse::<u64>().ok()? + fields[12].parse::<u64>().ok()?) * 10)
    })
}

fn writer_ms(server: &Server) -> u64 {
    let text = server.app.metrics.written();
    let sum = text.lines().find_map(|line| line.strip_prefix("rollcall_write_turn_seconds_sum "));
    (sum.unwrap().parse::<f64>().unwrap() * 1_000.0) as u64
}

fn disk(server: &Server) -> u64 {
    let pages = "SELECT (SELECT page_count FROM pragma_page_count) - \
                 (SELECT freelist_count FROM pragma_freelist_count)";
    u64::try_from(server.number(pages)).unwrap() * 4_096
}

fn conflicts(server: &Server) -> u64 {
    u64::try_from(server.number("SELECT count(*) FROM rollcall_conflict")).unwrap()
}

async fn measure(server: &Server, worst: &Worst) -> Cost {
    let request = worst.request();
    let service = warp::service(routes(Arc::clone(&server.app)));
    let (disk_before, conflicts_before, writer_before) = (disk(server), conflicts(server), writer_ms(server));
    let (written_before, cpu_before) = (written(), cpu_ms());
    MEMORY.reset_peak_usage();
    let before = MEMORY.current_usage();
    let answer = service.oneshot(request).await.unwrap();
    let (head, mut body) = answer.into_parts();
    let endless = head.headers.contains_key("x-accel-buffering");
    let mut length = 0;
    while let Some(frame) = body.frame().await {
        length += frame.unwrap().into_data().unwrap().len() as u64;
        if endless {
            break;
        }
    }
    let (cpu_ms, written) = (cpu_ms() - cpu_before, written() - written_before);
    sleep(Duration::from_millis(50)).await; // the writer's turn ends a moment after the response
    let sent = worst.body.as_ref().map_or(0, Vec::len) as u64;
    Cost {
        status: head.status.as_u16(),
        body: sent,
        memory: MEMORY.peak_usage().saturating_sub(before) as u64 + sent,
        cpu_ms,
        written,
        disk: disk(server).saturating_sub(disk_before),
        conflicts: conflicts(server).saturating_sub(conflicts_before),
        writer_ms: writer_ms(server) - writer_before,
        answer: length,
    }
}

/// An owner who has much of everything.
struct Lab {
    server: Server,
    phone: Device,
    tablet: Device,
    conflict: String,
    owner: String,
    /// A token with which Anna can choose another password.
    reset: String,
}

/// A text as long as a row may be, all but.
const LONG: usize = 250_000;

fn change(settings: &mut Settings) {
    settings.auth.mail.mail_command = vec!["a test".into()];
    settings.operator.console_token = Some(CONSOLE.into());
}

impl Lab {
    async fn furnish() -> Self {
        let server = Server::with(|settings| {
            change(settings);
            settings.limits.rows_max = 60_000;
        });
        let (phone, tablet) = (server.device("anna", "phone"), server.device("anna", "tablet"));
        (2..100).for_each(|n| drop(server.device("anna", &format!("device {n}"))));
        let lists: Vec<Value> = (0..50_000).map(|n| json!({ "lid": key(n), "title": "x" })).collect();
        server.sync(&phone, json!({ "add": { "lists": lists } })).await.ok();
        for first in (0..120).step_by(30) {
            let rows: Vec<Value> = (first..first + 30).map(|n| thing(n, "a")).collect();
            server.sync(&phone, json!({ "add": { "things": rows } })).await.ok();
        }
        let parent = json!({ "id": key(0), "name": "parent" });
        let child = |n| json!({ "id": key(n), "name": "child", "parent": key(0), "twin": key(0) });
        let nodes: Vec<Value> = std::iter::once(parent).chain((1..2_500).map(child)).collect();
        server.sync(&phone, json!({ "add": { "nodes": nodes } })).await.ok();
        server.turn(10_000);
        for first in (0..60).step_by(15) {
            let stale = |n| {
                let mut row = thing(n, "b");
                row["_base"] = json!("2001-01-01T00:00:00.000Z");
                row
            };
            let rows: Vec<Value> = (first..first + 15).map(stale).collect();
            server.sync(&tablet, json!({ "update": { "things": rows } })).await.ok();
        }
        for n in 0..100 {
            let device = server.device(&format!("user{n}"), "phone");
            let body = json!({ "add": { "lists": [{ "lid": key(1), "title": "x" }] } });
            server.sync(&device, body).await.ok();
        }
        let result = server.get("/conflicts?limit=1").of(&phone).send().await.ok();
        let conflict = result["conflicts"][0]["id"].as_str().unwrap().to_owned();
        let owner = server.owner("anna").0.to_string();
        let reset = server.reset_token("anna");
        Self { server, phone, tablet, conflict, owner, reset }
    }

    /// The worst requests of an operation. A new operation has none, and fails the test.
    fn worst(&self, operation: &str) -> Vec<Worst> {
        let Self { phone, conflict, owner, .. } = self;
        let of = |operation, what| Worst::of(operation, what).by(&phone.token);
        let operator = |operation, what| Worst::of(operation, what).by(CONSOLE);
        let console = format!("/console/api/owners/{owner}");
        let unread = "an email and a password that do not fit, in 64 KiB";
        let login = json!({ "email": "x".repeat(30_000), "password": "y".repeat(30_000), "device": "phone" });
        match operation {
            "GET /fetch" => vec![of("GET /fetch", "50,000 rows").streaming()],
            "GET /fetch.json" => vec![of("GET /fetch.json", "50,000 rows").streaming()],
            "POST /synchronise" => self.syncs("POST /synchronise"),
            // A second name of the same: the largest alone, which is the last.
            "POST /synchronise.json" => self.syncs("POST /synchronise.json").pop().into_iter().collect(),
            "GET /changes" => vec![
                of("GET /changes", "a page of long rows").at("/changes?tables=things"),
                of("GET /changes", "all rows, as NDJSON").with("accept", "application/x-ndjson").streaming(),
            ],
            "GET /{table}/sync" => {
                vec![of("GET /{table}/sync", "all long rows").at("/things/sync").streaming()]
            }
            "GET /sync" => vec![of("GET /sync", "all rows").streaming()],
            "GET /v1/shape" => {
                vec![of("GET /v1/shape", "a page of rows").at("/v1/shape?table=lists&offset=-1")]
            }
            "POST /sync/stream" => vec![of("POST /sync/stream", "the first rows").sending(json!({}))],
            "POST /sync/checkpoint-request" => {
                let body = json!({ "client_id": "x".repeat(60_000), "checkpoint_request_id": 1 });
                vec![of("POST /sync/checkpoint-request", "a long id").sending(body)]
            }
            "GET /write-checkpoint2.json" => vec![of("GET /write-checkpoint2.json", "")],
            "GET /events" => vec![of("GET /events", "the first event")],
            "GET /digests" => vec![of("GET /digests", "all tables")],
            "GET /conflicts" => vec![of("GET /conflicts", "a page of long rows")],
            "POST /conflicts/{id}/restore" => vec![
                of("POST /conflicts/{id}/restore", "a long row").at(format!("/conflicts/{conflict}/restore")),
            ],
            "GET /lock" => vec![of("GET /lock", "")],
            "POST /lock" => vec![of("POST /lock", "")],
            "DELETE /lock" => vec![of("DELETE /lock", "")],
            "POST /register" => vec![
                Worst::of("POST /register", unread)
                    .sending(json!({ "email": "x".repeat(30_000), "password": "y".repeat(30_000) })),
                Worst::of("POST /register", "a new account")
                    .sending(json!({ "email": "new@example.org", "password": PASSWORD })),
            ],
            "POST /login" => vec![
                Worst::of("POST /login", unread).sending(login),
                Worst::of("POST /login", "one device more than there may be").sending(
                    json!({ "email": "anna@example.org", "password": PASSWORD, "device": "one more" }),
                ),
            ],
            "GET /owners" => vec![of("GET /owners", "one owner")],
            "POST /owners" => vec![
                of("POST /owners", "a name that does not fit, in 64 KiB")
                    .sending(json!({ "name": "x".repeat(60_000) })),
                of("POST /owners", "a new owner").sending(json!({ "name": "x".repeat(100) })),
            ],
            "PATCH /owners/{owner}" => vec![
                of("PATCH /owners/{owner}", "a new name")
                    .at(format!("/owners/{owner}"))
                    .sending(json!({ "name": "y".repeat(100) })),
            ],
            "DELETE /owners/{owner}" => {
                vec![of("DELETE /owners/{owner}", "the home").at(format!("/owners/{owner}"))]
            }
            "GET /owners/{owner}/members" => {
                vec![of("GET /owners/{owner}/members", "one member").at(format!("/owners/{owner}/members"))]
            }
            "PUT /owners/{owner}/members/{user}" => vec![
                of("PUT /owners/{owner}/members/{user}", "the same role")
                    .at(format!("/owners/{owner}/members/{owner}"))
                    .sending(json!({ "role": "manage" })),
            ],
            "DELETE /owners/{owner}/members/{user}" => vec![
                of("DELETE /owners/{owner}/members/{user}", "the last one")
                    .at(format!("/owners/{owner}/members/{owner}")),
            ],
            "GET /owners/{owner}/invitations" => {
                vec![of("GET /owners/{owner}/invitations", "none").at(format!("/owners/{owner}/invitations"))]
            }
            "POST /owners/{owner}/invitations" => vec![
                of("POST /owners/{owner}/invitations", "one")
                    .at(format!("/owners/{owner}/invitations"))
                    .sending(json!({ "role": "write", "uses": 10_000 })),
            ],
            "DELETE /owners/{owner}/invitations/{id}" => vec![
                of("DELETE /owners/{owner}/invitations/{id}", "none of that id")
                    .at(format!("/owners/{owner}/invitations/{conflict}")),
            ],
            "POST /invitations/accept" => vec![
                of("POST /invitations/accept", "a code of 60,000 bytes")
                    .sending(json!({ "code": "x".repeat(60_000) })),
            ],
            "GET /me" => vec![of("GET /me", "")],
            "POST /logout" => vec![of("POST /logout", "")],
            "POST /password/reset" => vec![
                Worst::of("POST /password/reset", "an address of 60,000 bytes")
                    .sending(json!({ "email": "x".repeat(60_000) })),
                Worst::of("POST /password/reset", "a mail").sending(json!({ "email": "anna@example.org" })),
            ],
            "POST /password/reset/confirm" => vec![
                Worst::of(
                    "POST /password/reset/confirm",
                    "a token and a password that do not fit, in 64 KiB",
                )
                .sending(json!({ "token": "x".repeat(30_000), "new": "y".repeat(30_000) })),
                Worst::of("POST /password/reset/confirm", "100 devices are signed out")
                    .sending(json!({ "token": self.reset, "new": "battery staple" })),
            ],
            "POST /email/verify" => vec![
                Worst::of("POST /email/verify", "a token and a password that do not fit, in 64 KiB")
                    .sending(json!({ "token": "x".repeat(30_000), "password": "y".repeat(30_000) })),
            ],
            "GET /account/export" => vec![of("GET /account/export", "all rows").streaming()],
            "POST /account/erase" => vec![
                of("POST /account/erase", "a password that does not fit, in 64 KiB")
                    .sending(json!({ "password": "x".repeat(60_000) })),
                of("POST /account/erase", "100 devices and 50,000 rows")
                    .sending(json!({ "password": PASSWORD })),
            ],
            "POST /password" => vec![
                of("POST /password", "two passwords that do not fit, in 64 KiB")
                    .sending(json!({ "old": "x".repeat(30_000), "new": "y".repeat(30_000) })),
                of("POST /password", "100 devices are signed out")
                    .sending(json!({ "old": PASSWORD, "new": "battery staple", "sign_out_others": true })),
            ],
            "DELETE /devices" => vec![of("DELETE /devices", "100 devices are signed out")],
            "GET /devices" => vec![of("GET /devices", "100 devices")],
            "DELETE /devices/{device_id}" => {
                vec![of("DELETE /devices/{device_id}", "").at(format!("/devices/{}", self.tablet.id))]
            }
            "GET /healthz" => vec![Worst::of("GET /healthz", "")],
            "GET /readyz" => vec![Worst::of("GET /readyz", "")],
            "GET /limits" => vec![Worst::of("GET /limits", "")],
            "GET /openapi.json" => vec![Worst::of("GET /openapi.json", "the first time")],
            "GET /openapi.yaml" => vec![Worst::of("GET /openapi.yaml", "")],
            "GET /metrics" => vec![Worst::of("GET /metrics", "")],
            "GET /console/api/overview" => vec![operator("GET /console/api/overview", "101 owners")],
            "GET /console/api/series" => vec![operator("GET /console/api/series", "")],
            "GET /console/api/owners" => vec![operator("GET /console/api/owners", "100 owners")],
            "GET /console/api/owners/{owner}" => {
                vec![operator("GET /console/api/owners/{owner}", "100 devices").at(console)]
            }
            "GET /console/api/owners/{owner}/conflicts" => {
                let path = format!("{console}/conflicts");
                vec![operator("GET /console/api/owners/{owner}/conflicts", "a page of long rows").at(path)]
            }
            "POST /console/api/owners/{owner}/conflicts/{id}/restore" => {
                let path = format!("{console}/conflicts/{conflict}/restore");
                vec![
                    operator("POST /console/api/owners/{owner}/conflicts/{id}/restore", "a long row")
                        .at(path),
                ]
            }
            "DELETE /console/api/owners/{owner}/lock" => {
                vec![operator("DELETE /console/api/owners/{owner}/lock", "").at(format!("{console}/lock"))]
            }
            "GET /console/api/owners/{owner}/why" => {
                let path = format!("{console}/why?table=things&key={}&device={}", key(1), phone.id);
                vec![operator("GET /console/api/owners/{owner}/why", "a long row").at(path)]
            }
            _ => Vec::new(),
        }
    }

    /// Everything that one sync can be made to do.
    fn syncs(&self, operation: &'static str) -> Vec<Worst> {
        let of = |what, body| Worst::of(operation, what).by(&self.phone.token).sending(body);
        let old = "2001-01-01T00:00:00.000Z";
        let keys = |range: std::ops::Range<u64>| range.map(key).collect::<Vec<_>>();
        let stale = |n: u64| json!({ "id": key(n), "text": "c", "_base": old });
        let losing = |n: u64| json!({ "id": key(n), "text": "c", "_base": old, "last_update": old });
        let all = |rows: Vec<Value>| json!({ "update": { "things": rows } });
        let new = |n: u64| json!({ "id": key(70_000 + n), "text": "x".repeat(1_500) });
        let members: serde_json::Map<String, Value> =
            (0..60_000).map(|n| (n.to_string(), json!(0))).collect();
        let wide: Vec<Value> = (0..8).map(|n| json!({ "id": key(80_000 + n), "extra": members })).collect();
        let half = "x".repeat(9);
        let short: Vec<Value> =
            (0..5_000).map(|n| json!({ "lid": key(90_000 + n), "title": half })).collect();
        let bad: Vec<Value> = (0..5_000).map(|n| json!({ "lid": n, "title": [half], "colour": n })).collect();
        let escaped = |n: u64| json!({ "id": key(95_000 + n), "text": "\u{1}".repeat(42_000) });
        let touch = |n: u64| json!({ "id": key(n), "whole": 7 });
        let child = |n: u64| json!({ "id": key(99_000 + n), "name": "x", "parent": key(99_001 + n) });
        let mut chain: Vec<Value> = (0..4_999).map(child).collect();
        chain.push(json!({ "id": key(103_999), "name": "x" }));
        let now = self.server.version_of("anna");
        let again: Vec<Value> = (0..5_000).map(|_| touch(0)).collect();
        vec![
            of(
                "5,000 new rows in 8 MB",
                json!({ "add": { "things": (0..5_000).map(new).collect::<Vec<_>>() } }),
            ),
            of("5,000 small new rows", json!({ "add": { "lists": short } })),
            of("5,000 rows that cannot be read", json!({ "add": { "lists": bad } })),
            of(
                "30 texts of control characters",
                json!({ "add": { "things": (0..30).map(escaped).collect::<Vec<_>>() } }),
            ),
            of("JSON of 480,000 members", json!({ "add": { "things": wide } })),
            of("120 long rows are asked for", json!({ "get": { "things": keys(0..120) } })),
            of("5,000 keys are asked for", json!({ "get": { "lists": keys(0..5_000) } })),
            of("one long row is asked for 5,000 times", json!({ "get": { "things": vec![key(0); 5_000] } })),
            of("120 long rows are touched", all((0..120).map(touch).collect())),
            of("50 long rows are touched", all((0..50).map(touch).collect())),
            of("one long row is touched 5,000 times", all(again)),
            of("60 stale edits of long rows", all((60..120).map(stale).collect())),
            of("60 old edits that lose to long rows", all((60..120).map(losing).collect()))
                .by(&self.tablet.token),
            of("5,000 stale edits of one long row", all((0..5_000).map(|_| stale(61)).collect())),
            of(
                "2,500 deletions beside their parent",
                json!({ "base": now, "delete": { "nodes": keys(0..2_500) }, "confirm_deletes": 2_500 }),
            ),
            of(
                "2,500 deletions without a base",
                json!({ "delete": { "nodes": keys(0..2_500) }, "confirm_deletes": 2_500 }),
            ),
            of("a parent is deleted 2,500 times", json!({ "delete": { "nodes": vec![key(0); 2_500] } })),
            of(
                "5,000 deletions",
                json!({ "base": now, "delete": { "lists": keys(0..5_000) }, "confirm_deletes": 5_000 }),
            ),
            of(
                "5,000 deletions without a base",
                json!({ "delete": { "lists": keys(0..5_000) }, "confirm_deletes": 5_000 }),
            ),
            of("5,000 small new rows under a key", json!({ "add": { "lists": short } })).keyed(5_000),
            of(
                "5,000 deletions under a key",
                json!({ "base": now, "delete": { "lists": keys(0..5_000) }, "confirm_deletes": 5_000 }),
            )
            .keyed(5_000),
            of("120 long rows are asked for, under a key", json!({ "get": { "things": keys(0..120) } }))
                .keyed(120),
            of("a name of 8 MB", json!({ "x".repeat(8_000_000): 1 })),
            of("a value of 8 MB in the wrong place", json!({ "base": "x".repeat(8_000_000) })),
            of("5,000 new rows, each the parent of the one before", json!({ "add": { "nodes": chain } })),
            of("everything is pulled", json!({ "pull": true })),
            of(
                "all at once",
                json!({
                    "add": { "things": (0..30).map(|n| thing(60_000 + n, "d")).collect::<Vec<_>>() },
                    "update": { "things": (60..90).map(touch).collect::<Vec<_>>() },
                    "get": { "things": keys(0..60) },
                    "pull": true,
                }),
            )
            .keyed(120),
        ]
    }
}

fn thing(n: u64, text: &str) -> Value {
    json!({ "id": key(n), "text": text.repeat(LONG) })
}

/// The bounds that a cost breaks: what of it, the figure, and the bound.
fn broken(worst: &Worst, cost: &Cost, answer_max: u64) -> Vec<(&'static str, u64, u64)> {
    let records = CONFLICT_BYTES * cost.conflicts + VERDICT_BYTES * worst.keyed_rows;
    let disk_max = DISK_TIMES * cost.body + DISK_FREE + records;
    let answer_max = match worst.streams {
        true => u64::MAX,
        false if cost.status >= 400 => PROBLEM_MAX,
        false => answer_max,
    };
    let bounds = [
        ("memory", cost.memory, MEMORY_MAX),
        ("disk", cost.disk, disk_max),
        ("answer", cost.answer, answer_max),
    ];
    bounds.into_iter().filter(|(_, figure, max)| figure > max).collect()
}

/// Run by the test below.
#[ignore = "in a process of its own: the allocator counts for all of it"]
#[tokio::test]
async fn costs_of_all_operations() {
    let lab = Lab::furnish().await;
    let limits = Settings::default();
    let answer_max = (limits.limits.batch_bytes_max + limits.sync.changes_bytes_max) as u64;
    println!(
        "| operation | the worst request | body | memory | disk | written | answer | processor | writer |"
    );
    let (mut wrong, mut missing) = (Vec::new(), Vec::new());
    for (method, path) in operations(&document()) {
        let operation = format!("{method} {path}");
        let all = lab.worst(&operation);
        if all.is_empty() {
            missing.push(operation.clone());
        }
        for worst in all {
            let server = lab.server.copied(change);
            let cost = measure(&server, &worst).await;
            let kib = |bytes: u64| bytes.div_ceil(1024);
            println!(
                "| `{operation}` | {}: {} | {} | {} | {} | {} | {} | {} ms | {} ms |",
                worst.what,
                cost.status,
                kib(cost.body),
                kib(cost.memory),
                kib(cost.disk),
                kib(cost.written),
                kib(cost.answer),
                cost.cpu_ms,
                cost.writer_ms
            );
            assert!(cost.status < 500, "{operation}, {}: {}", worst.what, cost.status);
            let broken = broken(&worst, &cost, answer_max).into_iter();
            wrong.extend(broken.map(|(of, figure, max)| {
                format!("{operation}, {}: {of} is {figure}, more than {max}", worst.what)
            }));
        }
    }
    assert!(missing.is_empty(), "write down what these cost: {missing:?}");
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Goal: every operation has its row in the table of docs/project/costs.md. The costs themselves are measured by a process of its
/// own.
#[test]
fn no_operation_costs_more_than_its_limits_say() {
    let text = std::fs::read_to_string("docs/project/costs.md").unwrap();
    let rows: BTreeSet<&str> =
        text.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`')).map(|row| row.0).collect();
    for (method, path) in operations(&document()) {
        let operation = format!("{method} {path}");
        assert!(
            rows.contains(operation.as_str()),
            "docs/project/costs.md says nothing of what {operation} costs"
        );
    }
    let measured = Command::new(std::env::current_exe().unwrap())
        .args(["costs::costs_of_all_operations", "--exact", "--ignored", "--nocapture", "--test-threads=1"])
        .output()
        .unwrap();
    print!("{}", String::from_utf8_lossy(&measured.stdout));
    assert!(measured.status.success(), "{}", String::from_utf8_lossy(&measured.stderr));
}

//! A failing PostgreSQL: the k-th statement of every operation fails, with k rising until the operation needs
//! no more.
//!
//! Goal: whatever happens to a statement, the client gets a response of the contract, nothing is half written
//! or written twice, and the next request works; what may succeed on another attempt is tried again,
//! unnoticed by the client. Method: the real routes, with a proxy between them and PostgreSQL
//! (`testkit/src/pg_line.rs`) that fails one statement, or loses the connection before it, after it, or at a
//! COMMIT that arrives late.

use rollcall_testkit::app;
use rollcall_testkit::contract;

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::time::Instant;

use app::engine::pg_line::Fault::{self, Error, ErrorAfter, Late, LostAfter, LostBefore, Terminated};
use app::engine::pg_line::Line;
use app::engine::{Store, pg};
use app::{Answer, Ask, Device, PASSWORD, SCHEMA, Server, key};
use rollcall::mail::MailKind;
use rollcall::model::Role;
use serde_json::{Value, json};

const NEW_PASSWORD: &str = "another horse";
const OPERATOR: &str = "the operator's own token";

/// More statements than any request here needs.
const STATEMENTS_MAX: usize = 200;

/// What each statement meets with, in turn where there are several: a serialization failure, a deadlock, or a node of a
/// cluster that is away; a
/// connection that is lost, in four ways; a full disk, a statement that took too long, and a failure of its own.
const FAULTS: [&[Fault]; 6] = [
    &[Error("40001"), Error("40P01"), Error("08006")],
    &[LostBefore, Terminated],
    &[LostAfter],
    &[Late],
    &[ErrorAfter("08006")],
    &[Error("53100"), Error("57014"), Error("XX000")],
];

/// A server whose database can be disturbed, and a way past it.
struct Ground {
    server: Server,
    line: Line,
    runtime: tokio::runtime::Runtime,
    beside: RefCell<pg::Client>,
    dump: String,
    phone: Device,
    tablet: Device,
    tried: Cell<usize>,
    struck: RefCell<BTreeSet<String>>,
}

/// One request: its undisturbed preparation, and the request for that number.
struct Case {
    operation: &'static str,
    make: fn(&Ground, u64) -> Ask,
    /// The status of a request that is done, and of the same one sent again.
    done: u16,
    again: u16,
    /// By how much it raises the owner's version; `None` if it is not to write at all.
    moves: Option<i64>,
}

fn writes(operation: &'static str, moves: i64, make: fn(&Ground, u64) -> Ask) -> Case {
    Case { operation, make, done: 200, again: 200, moves: Some(moves) }
}

fn reads(operation: &'static str, make: fn(&Ground, u64) -> Ask) -> Case {
    Case { operation, make, done: 200, again: 200, moves: None }
}

impl Ground {
    fn start() -> Option<Self> {
        pg::cluster()?;
        let mut store = Store::of(app::engine::Engine::Postgres);
        let direct = store.url();
        let line = Line::to(&direct);
        store.by_way_of(line.url());
        let server = Server::over(store, SCHEMA, |settings| {
            settings.operator.console_token = Some(OPERATOR.into());
            settings.auth.mail.mail_command = vec!["a test".into()];
            // Each request looks up its token.
            settings.auth.tokens_known_max = 0;
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let mut beside = pg::Client::connect(&direct, postgres::NoTls).unwrap();
        // Leases are no data, and a row that only ever held one is none.
        let tables = "SELECT string_agg(format(
                'SELECT %L || t::text AS row FROM %s t', tablename, CASE tablename WHEN 'rollcall_owner'
                THEN '(SELECT owner, version, horizon, live_rows, live_bytes FROM rollcall_owner WHERE written IS NOT NULL)'
                ELSE format('%I', tablename) END), ' UNION ALL ')
            FROM pg_tables WHERE schemaname = 'public'";
        let tables: String = beside.query_one(tables, &[]).unwrap().get(0);
        let dump = format!("SELECT md5(string_agg(row, ',' ORDER BY row)) FROM ({tables}) rows");
        let [phone, tablet] = ["phone", "tablet"].map(|name| server.device("anna", name));
        let ground = Self {
            server,
            line,
            runtime,
            beside: RefCell::new(beside),
            dump,
            phone,
            tablet,
            tried: Cell::new(0),
            struck: RefCell::default(),
        };
        ground.sync(&ground.phone, json!({ "add": { "lists": [{ "lid": key(1), "title": "first" }] } }));
        Some(ground)
    }

    fn send(&self, ask: Ask) -> Answer {
        self.runtime.block_on(ask.send())
    }

    fn sync(&self, device: &Device, body: Value) -> Value {
        self.send(self.server.ask("POST", "/synchronise").of(device).json(&body)).ok()
    }

    fn get(&self, path: &str) -> Ask {
        self.server.get(path).of(&self.phone)
    }

    fn post(&self, path: &str) -> Ask {
        self.server.ask("POST", path).of(&self.phone)
    }

    fn console(&self, method: &str, path: &str) -> Ask {
        // Totals of all owners are cached for a while.
        self.server.turn(60_000);
        let ask = self.server.ask(method, &format!("/console/api/{path}"));
        ask.header("authorization", format!("Bearer {OPERATOR}"))
    }

    fn owner(&self) -> String {
        self.server.owner("anna").0.to_string()
    }

    /// What is committed, and the sum of all owners' versions.
    fn held(&self) -> (String, i64) {
        let mut beside = self.beside.borrow_mut();
        let held = beside.query_one(&self.dump, &[]).unwrap().get(0);
        let versions = "SELECT sum(version)::bigint FROM rollcall_owner WHERE written IS NOT NULL";
        (held, beside.query_one(versions, &[]).unwrap().get(0))
    }

    /// Two edits of one row, of which the second is `device`'s and has an older base: a conflict. Returns the
    /// base.
    fn edited_twice(&self, n: u64) -> String {
        let rows = json!({ "lists": [{ "lid": key(10 * n + 1), "title": "a" }, { "lid": key(10 * n + 2), "title": "b" }] });
        let result = self.sync(&self.phone, json!({ "add": rows }));
        self.server.turn(10);
        self.sync(
            &self.tablet,
            json!({ "update": { "lists": [{ "lid": key(10 * n + 1), "title": "theirs" }] } }),
        );
        self.server.turn(10);
        result["add"]["lists"][0]["last_update"].as_str().unwrap().to_owned()
    }

    fn conflict(&self, n: u64) -> String {
        let base = self.edited_twice(n);
        let row = json!({ "lid": key(10 * n + 1), "title": "mine", "_base": base });
        let result = self.sync(&self.phone, json!({ "update": { "lists": [row] } }));
        result["update"]["lists"][0]["conflict"].as_str().unwrap_or_else(|| panic!("{result}")).to_owned()
    }

    /// A user of that number, with a device.
    fn user(&self, n: u64) -> Device {
        self.server.device(&format!("user{n}"), "phone")
    }

    /// The path of the user of that number, as a member of the owner who may read.
    fn member(&self, n: u64) -> String {
        self.user(n);
        let user = format!("user{n}");
        self.server.admit("anna", &user, Role::Read);
        format!("/owners/{}/members/{}", self.owner(), self.server.user_id(&user))
    }

    /// A token of a mail to the user of that number, who has a device.
    fn mail_token(&self, kind: MailKind, n: u64) -> String {
        self.user(n);
        self.server.mail_token(kind, &format!("user{n}"))
    }

    /// Lets each statement of each case meet with each fault.
    fn run(self, cases: &[Case]) {
        let begun = Instant::now();
        let mut n = 0;
        for case in cases {
            for faults in FAULTS {
                let mut statement = 0;
                let mut struck = true;
                while struck {
                    (n, statement) = (n + 1, statement + 1);
                    assert!(statement < STATEMENTS_MAX, "{} needs no end of statements", case.operation);
                    let fault = match faults[statement % faults.len()] {
                        // To read needs no room.
                        Error("53100") if case.moves.is_none() => Error("57014"),
                        fault => fault,
                    };
                    struck = self.disturbed(case, fault, statement, n + 10);
                }
            }
        }
        self.server.check_whole();
        let (tried, struck) = (self.tried.get(), self.struck.borrow().len());
        println!("{tried} requests, {struck} different statements struck, in {:?}", begun.elapsed());
    }

    /// One request whose k-th statement meets with a fault; `false` if it has fewer.
    fn disturbed(&self, case: &Case, fault: Fault, statement: usize, n: u64) -> bool {
        let ask = (case.make)(self, n);
        let (before, version) = self.held();
        self.line.disturb(fault, statement);
        let answer = self.send(ask.clone());
        let struck = self.line.calm();
        let (after, _) = self.held();
        let place = format!("{}, statement {statement} ({struck:?}), {fault:?}", case.operation);
        self.tried.set(self.tried.get() + 1);
        let (status, code) = answer.problem();
        let result = format!("{place}: {status} {}", String::from_utf8_lossy(&answer.bytes));
        let is_done = status == case.done;
        let known = match fault {
            _ if is_done => true,
            _ if struck.is_none() => false,
            Error("53100") => (status, &*code) == (503, "storage_full"),
            Error("XX000") => (status, &*code) == (500, "internal"),
            Error("57014") => (status, &*code) == (503, "busy"),
            // All others are tried again, except work that only reads: it may have sent something already.
            _ => struck.as_ref().is_some_and(|struck| struck.reading) && (status, &*code) == (503, "busy"),
        };
        assert!(known, "{result}");
        if !is_done {
            assert_eq!(before, after, "what was refused has written nothing: {result}");
        }
        let again = self.send(ask);
        let wanted = if is_done { case.again } else { case.done };
        assert_eq!(
            again.status,
            wanted,
            "the next request: {result}\n{}",
            String::from_utf8_lossy(&again.bytes)
        );
        if let Some(moves) = case.moves {
            assert_eq!(self.held().1, version + moves, "it has one effect: {result}");
            if again.header("idempotency-replayed").is_some() {
                assert_eq!(again.bytes, answer.bytes, "and one answer: {result}");
            }
        } else {
            assert_eq!(self.held().0, before, "it only reads: {result}");
        }
        struck.map(|struck| self.struck.borrow_mut().insert(struck.sql)).is_some()
    }
}

/// Some of everything: rows added, changed and deleted, a conflict, rows requested and pulled.
fn batch(ground: &Ground, n: u64) -> Value {
    let base = ground.edited_twice(n);
    let version = ground.server.version_of("anna");
    let [edited, deleted, list, item] = [1, 2, 3, 4].map(|at| key(10 * n + at));
    json!({
        "base": version - 1, "pull": true,
        "add": { "lists": [{ "lid": list, "title": "new" }], "items": [{ "iid": item, "title": "x", "list": list }] },
        "update": { "lists": [{ "lid": edited, "title": "mine", "_base": base }] },
        "delete": { "lists": [deleted] },
        "get": { "lists": [key(1)] },
    })
}

fn small(n: u64) -> Value {
    let edited = json!([{ "lid": key(1), "title": n.to_string() }]);
    json!({ "add": { "lists": [{ "lid": key(10 * n), "title": "x" }] }, "update": { "lists": edited } })
}

fn once(ask: Ask, n: u64) -> Ask {
    ask.header("idempotency-key", format!("request-{n}"))
}

#[test]
fn what_devices_write() {
    let Some(ground) = Ground::start() else { return };
    ground.run(&[
        writes("POST /synchronise", 1, |ground, n| {
            once(ground.post("/synchronise"), n).json(&batch(ground, n))
        }),
        writes("POST /synchronise.json", 1, |ground, n| {
            let fence = ground.send(ground.post("/lock")).ok()["fence"].to_string();
            let row = json!({ "lid": key(10 * n + 3), "title": "new" });
            let body = json!({ "add": { "lists": [row] }, "keep_lock": true });
            once(ground.post("/synchronise.json"), n).header("sync-lock", fence).json(&body)
        }),
    ]);
}

#[test]
fn what_devices_write_without_a_key() {
    let Some(ground) = Ground::start() else { return };
    ground.run(&[
        writes("POST /synchronise", 1, |ground, n| ground.post("/synchronise").json(&small(n))),
        writes("POST /synchronise", 0, |ground, n| {
            let mut body = small(n);
            body["dry_run"] = json!(true);
            ground.post("/synchronise").json(&body)
        }),
        writes("POST /synchronise", 0, |ground, n| once(ground.post("/synchronise"), n).json(&json!({}))),
        writes("POST /conflicts/{id}/restore", 1, |ground, n| {
            let conflict = ground.conflict(n);
            ground.post(&format!("/conflicts/{conflict}/restore"))
        }),
    ]);
}

#[test]
fn accounts_and_locks() {
    let Some(ground) = Ground::start() else { return };
    ground.run(&[
        Case {
            done: 201,
            again: 409,
            ..writes("POST /register", 0, |ground, n| {
                let body = json!({ "email": format!("user{n}@example.org"), "password": PASSWORD });
                ground.server.ask("POST", "/register").json(&body)
            })
        },
        writes("POST /login", 0, |ground, n| {
            ground.user(n);
            let body =
                json!({ "email": format!("user{n}@example.org"), "password": PASSWORD, "device": "x" });
            ground.server.ask("POST", "/login").json(&body)
        }),
        Case {
            done: 204,
            again: 401,
            ..writes("POST /logout", 0, |ground, n| {
                let device = ground.user(n);
                ground.server.ask("POST", "/logout").of(&device)
            })
        },
        Case {
            done: 204,
            again: 404,
            ..writes("DELETE /devices/{device_id}", 0, |ground, n| {
                let [device, lost] = [ground.user(n), ground.user(n)];
                ground.server.ask("DELETE", &format!("/devices/{}", lost.id)).of(&device)
            })
        },
        writes("GET /fetch", 0, |ground, _| ground.get("/fetch")),
        writes("POST /lock", 0, |ground, _| ground.post("/lock")),
        Case {
            done: 204,
            again: 204,
            ..writes("DELETE /lock", 0, |ground, _| {
                ground.send(ground.post("/lock")).ok();
                ground.server.ask("DELETE", "/lock").of(&ground.phone)
            })
        },
    ]);
}

#[test]
fn passwords_and_accounts_that_end() {
    let Some(ground) = Ground::start() else { return };
    // The thread that removes the rows of erased accounts stops at once: it would meet with faults of the requests.
    ground.server.app.draining.set();
    ground.run(&[
        Case {
            done: 204,
            again: 403,
            ..writes("POST /password", 0, |ground, n| {
                let body = json!({ "old": PASSWORD, "new": NEW_PASSWORD, "sign_out_others": true });
                ground.server.ask("POST", "/password").of(&ground.user(n)).json(&body)
            })
        },
        Case {
            done: 204,
            again: 204,
            ..writes("DELETE /devices", 0, |ground, n| {
                let [device, _] = [ground.user(n), ground.user(n)];
                ground.server.ask("DELETE", "/devices").of(&device)
            })
        },
        Case {
            done: 204,
            again: 403,
            ..writes("POST /password/reset/confirm", 0, |ground, n| {
                let body =
                    json!({ "token": ground.mail_token(MailKind::PasswordReset, n), "new": NEW_PASSWORD });
                ground.server.ask("POST", "/password/reset/confirm").json(&body)
            })
        },
        Case {
            done: 204,
            again: 403,
            ..writes("POST /email/verify", 0, |ground, n| {
                let token = ground.mail_token(MailKind::EmailVerification, n);
                let body = json!({ "token": token, "password": PASSWORD });
                ground.server.ask("POST", "/email/verify").json(&body)
            })
        },
        Case {
            done: 204,
            again: 410,
            // The owner, which nobody wrote for, is marked as erased: its first version is 1.
            ..writes("POST /account/erase", 2, |ground, n| {
                let body = json!({ "password": PASSWORD });
                ground.server.ask("POST", "/account/erase").of(&ground.user(n)).json(&body)
            })
        },
    ]);
}

#[test]
fn owners_and_their_members() {
    let Some(ground) = Ground::start() else { return };
    ground.run(&[
        reads("GET /owners", |ground, _| ground.get("/owners")),
        reads("GET /owners/{owner}/members", |ground, _| {
            ground.get(&format!("/owners/{}/members", ground.owner()))
        }),
        reads("GET /owners/{owner}/invitations", |ground, _| {
            ground.get(&format!("/owners/{}/invitations", ground.owner()))
        }),
        Case {
            done: 204,
            again: 204,
            ..writes("PATCH /owners/{owner}", 1, |ground, n| {
                let ask = ground.server.ask("PATCH", &format!("/owners/{}", ground.owner()));
                ask.of(&ground.phone).json(&json!({ "name": format!("name {n}") }))
            })
        },
        Case {
            done: 204,
            again: 204,
            ..writes("PUT /owners/{owner}/members/{user}", 1, |ground, n| {
                let ask = ground.server.ask("PUT", &ground.member(n));
                ask.of(&ground.phone).json(&json!({ "role": "write" }))
            })
        },
        Case {
            done: 204,
            again: 404,
            ..writes("DELETE /owners/{owner}/members/{user}", 1, |ground, n| {
                ground.server.ask("DELETE", &ground.member(n)).of(&ground.phone)
            })
        },
    ]);
}

#[test]
fn what_devices_read() {
    let Some(ground) = Ground::start() else { return };
    ground.conflict(1);
    ground.run(&[
        reads("GET /fetch.json", |ground, _| ground.get("/fetch.json?lock=false")),
        reads("GET /changes", |ground, _| ground.get("/changes")),
        reads("GET /{table}/sync", |ground, _| ground.get("/lists/sync")),
        reads("GET /sync", |ground, _| ground.get("/sync?fromVersion=1")),
        reads("POST /sync/stream", |ground, _| ground.post("/sync/stream").json(&json!({}))),
        reads("POST /sync/checkpoint-request", |ground, _| {
            let body = json!({ "client_id": "phone", "checkpoint_request_id": "1" });
            ground.post("/sync/checkpoint-request").json(&body)
        }),
        reads("GET /write-checkpoint2.json", |ground, _| ground.get("/write-checkpoint2.json")),
        reads("GET /v1/shape", |ground, _| ground.get("/v1/shape?table=lists&offset=-1")),
        reads("GET /digests", |ground, _| ground.get("/digests")),
        reads("GET /events", |ground, _| ground.get("/events")),
        reads("GET /conflicts", |ground, _| ground.get("/conflicts")),
        reads("GET /lock", |ground, _| ground.get("/lock")),
        reads("GET /devices", |ground, _| ground.get("/devices")),
        reads("GET /account/export", |ground, _| ground.get("/account/export")),
        reads("GET /me", |ground, _| ground.get("/me")),
        reads("GET /readyz", |ground, _| ground.server.get("/readyz")),
    ]);
}

#[test]
fn what_the_operator_does() {
    let Some(ground) = Ground::start() else { return };
    ground.conflict(1);
    ground.run(&[
        reads("GET /console/api/overview", |ground, _| ground.console("GET", "overview")),
        reads("GET /console/api/series", |ground, _| ground.console("GET", "series")),
        reads("GET /console/api/owners", |ground, _| ground.console("GET", "owners")),
        reads("GET /console/api/owners/{owner}", |ground, _| {
            ground.console("GET", &format!("owners/{}", ground.owner()))
        }),
        reads("GET /console/api/owners/{owner}/conflicts", |ground, _| {
            ground.console("GET", &format!("owners/{}/conflicts", ground.owner()))
        }),
        reads("GET /console/api/owners/{owner}/why", |ground, _| {
            let (owner, row, device) = (ground.owner(), key(1), &ground.tablet.id);
            ground.console("GET", &format!("owners/{owner}/why?table=lists&key={row}&device={device}"))
        }),
        writes("POST /console/api/owners/{owner}/conflicts/{id}/restore", 1, |ground, n| {
            let conflict = ground.conflict(n);
            ground.console("POST", &format!("owners/{}/conflicts/{conflict}/restore", ground.owner()))
        }),
        Case {
            done: 204,
            again: 204,
            ..writes("DELETE /console/api/owners/{owner}/lock", 0, |ground, _| {
                ground.send(ground.post("/lock")).ok();
                ground.console("DELETE", &format!("owners/{}/lock", ground.owner()))
            })
        },
    ]);
}

/// Goal: a server that is well and cannot reach a node of its cluster is no lost connection: others would lose theirs to
/// it. Method: each statement of a write and of a read fails so, and the connections are counted.
#[test]
fn an_error_of_a_living_server_costs_no_connection() {
    let Some(ground) = Ground::start() else { return };
    let asks: [fn(&Ground, u64) -> Ask; 2] =
        [|ground, n| ground.post("/synchronise").json(&small(n)), |ground, _| ground.get("/changes")];
    for (ask, n) in asks.into_iter().zip([100, 200]) {
        ground.send(ask(&ground, n)).ok();
        let made = ground.line.connections();
        for statement in 1..STATEMENTS_MAX {
            let ask = ask(&ground, n + statement as u64);
            ground.line.disturb(Error("08006"), statement);
            ground.send(ask);
            if ground.line.calm().is_none() {
                break;
            }
        }
        assert_eq!(ground.line.connections(), made);
    }
}

/// Goal: requests that get more rows, and changes of the server, do not cost statements unnoticed. Method: the
/// statements of each are counted, with one row and with 500.
#[test]
fn a_request_takes_so_many_statements() {
    let Some(ground) = Ground::start() else { return };
    let rows = |from: u64, count: u64, title: &str| -> Value {
        (from..from + count).map(|n| json!({ "lid": key(n), "title": title })).collect()
    };
    let post = |body: Value| ground.post("/synchronise").json(&body);
    let keys = |count: u64| -> Value { (1_000..1_000 + count).map(key).collect() };
    let mut counted = Vec::new();
    for count in [1, 500] {
        let from = if count == 1 { 999 } else { 1_000 };
        let base = ground.server.version_of("anna");
        for (request, ask) in [
            ("add", post(json!({ "add": { "lists": rows(from, count, "a") } }))),
            ("same", post(json!({ "add": { "lists": rows(from, count, "a") } }))),
            ("update", post(json!({ "base": base + 1, "update": { "lists": rows(from, count, "b") } }))),
            (
                "update again",
                post(json!({ "base": base + 2, "update": { "lists": rows(from, count, "c") } })),
            ),
            ("get", post(json!({ "get": { "lists": keys(count) } }))),
            ("pull", post(json!({ "base": base, "pull": true }))),
            ("changes", ground.get("/changes")),
            ("fetch", ground.get("/fetch")),
            ("lock", ground.post("/lock")),
            ("delete", post(json!({ "confirm_deletes": count, "delete": { "lists": keys(count) } }))),
        ] {
            ground.server.turn(10);
            let before = ground.line.statements();
            ground.send(ask).ok();
            counted.push((request, count, ground.line.statements() - before));
        }
    }
    assert_eq!(counted, STATEMENTS);
}

/// The statements of each request, and its rows: the request's own, and two that look up its token. A request for the lock
/// alone has no transaction over the rows that would check the role, and looks it up in two.
const STATEMENTS: &[(&str, u64, usize)] = &[
    ("add", 1, 11),
    ("same", 1, 9),
    ("update", 1, 13),
    ("update again", 1, 13),
    ("get", 1, 9),
    ("pull", 1, 10),
    ("changes", 1, 10),
    ("fetch", 1, 18),
    ("lock", 1, 10),
    ("delete", 1, 12),
    ("add", 500, 31),
    ("same", 500, 14),
    ("update", 500, 40),
    ("update again", 500, 40),
    ("get", 500, 14),
    ("pull", 500, 10),
    ("changes", 500, 10),
    ("fetch", 500, 19),
    ("lock", 500, 10),
    ("delete", 500, 50),
];

/// Requests that need no database access.
const QUIET: [&str; 5] =
    ["GET /healthz", "GET /limits", "GET /metrics", "GET /openapi.json", "GET /openapi.yaml"];

/// Requests whose work another thread does later.
const QUEUED: [&str; 1] = ["POST /password/reset"];

/// Requests that write something else each time that they are sent, or several things one after the other.
const REPEATED: [&str; 5] = [
    "POST /owners",
    "DELETE /owners/{owner}",
    "POST /owners/{owner}/invitations",
    "DELETE /owners/{owner}/invitations/{id}",
    "POST /invitations/accept",
];

/// Goal: no operation is forgotten. Method: those of `openapi.yaml`, looked for in the text of this file.
#[test]
fn every_operation_has_its_place() {
    let here = include_str!("pg_faults.rs");
    let all = contract::operations(&contract::document());
    let missing: Vec<_> = all
        .iter()
        .map(|(method, path)| format!("{method} {path}"))
        .filter(|operation| !here.contains(&format!("\"{operation}\"")))
        .collect();
    assert!(missing.is_empty(), "no place in this file: {missing:?}");
    assert!(REPEATED.iter().all(|one| all.iter().any(|(method, path)| *one == format!("{method} {path}"))));
    let Some(ground) = Ground::start() else { return };
    for operation in QUIET {
        ground.line.disturb(LostBefore, 1);
        let answer = ground.send(ground.server.get(operation.strip_prefix("GET ").unwrap()));
        assert!(answer.status == 200 && ground.line.calm().is_none(), "{operation}");
    }
    for operation in QUEUED {
        ground.line.disturb(LostBefore, 1);
        let ask = ground.server.ask("POST", operation.strip_prefix("POST ").unwrap());
        let answer = ground.send(ask.json(&json!({ "email": "anna@example.org" })));
        assert_eq!(answer.status, 204, "{operation}");
        ground.line.calm();
    }
}

//! A failing disk: the k-th write, sync or read of every request fails, with k rising until the request needs
//! no more.
//!
//! Goal: whatever the disk does, a client gets a response of the contract, nothing is half written, and the
//! next request works. Method: the real program, with a library between it and its files that fails a call on
//! demand (`testkit/src/disk.c`). After each failure the same request is sent again, and the data must be as
//! if it had been sent once; at the end the file's own consistency is checked.

#![cfg(target_os = "linux")]

use rollcall_testkit::audit;
use rollcall_testkit::disk;
use rollcall_testkit::process;

use std::collections::BTreeMap;
use std::fs::File;
use std::net::SocketAddr;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use audit::audit;
use process::{Answer, Client, Process, bearer, call, log_in, rollcall};
use rollcall::schema::Schema;
use rusqlite::Connection;
use serde_json::{Value, json};
use tempfile::TempDir;

const SCHEMA: &str = "fixtures/wedding/schema.toml";
const EMAIL: &str = "anna@example.com";
const PASSWORD: &str = "something borrowed";
const OPERATOR: &str = "the operator's own token";

const ENOSPC: i32 = 28;
const EIO: i32 = 5;
const EAGAIN: i32 = 11;
const WRITES: i32 = 1;
const SYNCS: i32 = 2;
const READS: i32 = 4;
const LOCKS: i32 = 8;

/// More calls than any request here makes.
const CALLS_MAX: i32 = 400;

/// A server over a disk that the test makes fail.
struct Broken {
    server: Process,
    address: SocketAddr,
    token: String,
    tablet: String,
    fault: File,
    database: PathBuf,
    beside: Connection,
    _folder: TempDir,
}

impl Broken {
    fn start() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let library = disk::library(folder.path(), "disk faults")?;
        let (data, faults) = (folder.path().join("data"), folder.path().join("faults"));
        std::fs::create_dir(&data).unwrap();
        std::fs::write(&faults, [0; 20]).unwrap();
        let database = data.join("app.db");
        let mut command = rollcall();
        command.args(["serve", "--schema", SCHEMA, "--listen", "127.0.0.1:0", "--log", "off"]);
        command.args(["--busy-wait-ms", "200", "--logins-per-account-per-min", "0"]);
        command.args(["--logins-per-address-per-min", "0", "--console-token", OPERATOR]);
        // Each request looks up its token.
        command.args(["--tokens-known-max", "0"]);
        command.arg("--database").arg(format!("sqlite:{}", database.display()));
        command.env("LD_PRELOAD", library).env("POWERCUT_FOLDER", &data).env("POWERCUT_FAULT", &faults);
        let mut server = Process::start(&mut command);
        let address = server.address();
        let account = json!({ "email": EMAIL, "password": PASSWORD });
        assert_eq!(call(address, "POST /register", None, Some(&account)).status, 201);
        let [token, tablet] = ["phone", "tablet"].map(|device| log_in(address, EMAIL, PASSWORD, device));
        let fault = File::options().read(true).write(true).open(&faults).unwrap();
        let beside = Connection::open(&database).unwrap();
        Some(Self { server, address, token, tablet, fault, database, beside, _folder: folder })
    }

    /// The call of that number from now fails; with `stays` all later ones do.
    fn fail(&self, calls: i32, error: i32, stays: bool, counted: i32) {
        for (place, number) in [(1, error), (2, i32::from(stays)), (3, 0), (4, counted), (0, calls)] {
            self.fault.write_all_at(&number.to_le_bytes(), place * 4).unwrap();
        }
    }

    /// Repairs the disk; returns whether it had failed.
    fn mend(&self) -> bool {
        self.fault.write_all_at(&[0; 4], 0).unwrap();
        let mut failed = [0; 4];
        self.fault.read_exact_at(&mut failed, 12).unwrap();
        i32::from_le_bytes(failed) > 0
    }

    /// Lets the server's connections forget the pages that they hold, as they do when another program has written:
    /// each statement reads its own again.
    fn forget_pages(&self) {
        self.beside.execute("UPDATE rollcall_meta SET value = value + 1 WHERE name = 'start'", []).unwrap();
    }

    fn operator(&self, request: &str) -> Answer {
        self.ask_as(OPERATOR, request, None)
    }

    fn ask(&self, request: &str, body: Option<&Value>) -> Answer {
        self.ask_as(&self.token, request, body)
    }

    fn ask_as(&self, token: &str, request: &str, body: Option<&Value>) -> Answer {
        let body = body.map(Value::to_string);
        let mut client = Client::connect(self.address).unwrap();
        let answer = client.call(request, &[bearer(token)], body.as_deref());
        answer.unwrap_or_else(|error| panic!("every request is answered: {request}: {error}"))
    }

    /// What the server shows: version and rows.
    fn shows(&self) -> Value {
        let answer = self.ask("GET /changes", None);
        assert_eq!(answer.status, 200, "{}", answer.text());
        let mut result = answer.json();
        result.as_object_mut().unwrap().remove("digests");
        result
    }
}

fn key(number: i32) -> String {
    format!("01900000-0000-7000-8000-{number:012x}")
}

fn check_documented(answer: &Answer, what: &str) {
    if answer.status < 400 {
        return;
    }
    let code = answer.json()["code"].as_str().unwrap_or_default().to_owned();
    let known = matches!(
        (answer.status, code.as_str()),
        (503, "busy" | "storage_full") | (500, "internal") | (423, "sync_in_progress")
    );
    assert!(known, "an answer of the contract: {what}: {} {}", answer.status, answer.text());
}

/// A request as it goes out: method and path, body, who sends it.
struct Sent {
    request: String,
    body: Option<Value>,
    token: String,
}

/// The preparation, on a working disk, and the request, for that number.
type Make = fn(&Broken, i32) -> Sent;

fn sent(broken: &Broken, request: &str, body: Option<Value>) -> Sent {
    Sent { request: request.into(), body, token: broken.token.clone() }
}

fn sync(broken: &Broken, body: Value) -> Sent {
    sent(broken, "POST /synchronise", Some(body))
}

fn account(n: i32) -> Value {
    json!({ "email": format!("user{n}@example.com"), "password": PASSWORD })
}

/// A device of a user of its own.
fn other(broken: &Broken, n: i32, device: &str) -> String {
    call(broken.address, "POST /register", None, Some(&account(n)));
    log_in(broken.address, &format!("user{n}@example.com"), PASSWORD, device)
}

fn owner(broken: &Broken) -> String {
    let result = broken.operator("GET /console/api/owners");
    result.json()["owners"][0]["owner"].as_str().unwrap_or_else(|| panic!("{}", result.text())).to_owned()
}

/// A row as its device has it after the edit of that number, each a second after the one before. Without a
/// time every edit would be recorded as one that may have overwritten another, and the row's own time would
/// run ahead of the clock.
fn edited(row: i32, n: i32) -> Value {
    let time = format!("2026-01-01T{:02}:{:02}:{:02}Z", n / 3_600, n / 60 % 60, n % 60);
    json!({ "id": key(row), "title": n.to_string(), "last_update": time })
}

/// A conflict over a row of its own.
fn conflict(broken: &Broken, n: i32) -> String {
    let title = |text: &str| json!({ "id": key(20_000 + n), "title": format!("{text}{n}") });
    let result = broken.ask("POST /synchronise", Some(&json!({ "add": { "todo": [title("a")] } }))).json();
    let base = result["version"].as_u64().unwrap();
    broken.ask("POST /synchronise", Some(&json!({ "update": { "todo": [title("b")] } })));
    let late = json!({ "base": base, "update": { "todo": [title("c")] } });
    let result = call(broken.address, "POST /synchronise", Some(&broken.tablet), Some(&late)).json();
    result["update"]["todo"][0]["conflict"].as_str().unwrap_or_else(|| panic!("{result}")).to_owned()
}

/// Every request that reads or writes the database; its status the first time, and when it is repeated.
const REQUESTS: [(u16, u16, Make); 23] = [
    (200, 200, |broken, n| {
        let row = json!({ "id": key(1_000 + n), "title": "t", "notes": "n".repeat(3_000) });
        sync(broken, json!({ "add": { "todo": [row] } }))
    }),
    (200, 200, |broken, n| sync(broken, json!({ "update": { "todo": [edited(40_000, n)] }, "pull": true }))),
    (200, 200, |broken, n| {
        let gone = key(1_000 + n);
        sync(broken, json!({ "add": { "todo": [edited(2, n)] }, "delete": { "todo": [gone] } }))
    }),
    // So many that the response is written before the result of the COMMIT is known.
    (200, 200, |broken, n| {
        let rows: Vec<Value> = (10_000..10_120).map(|row| edited(row, n)).collect();
        sync(broken, json!({ "update": { "todo": rows } }))
    }),
    (200, 200, |broken, n| {
        let conflict = conflict(broken, n);
        sent(broken, &format!("POST /conflicts/{conflict}/restore"), None)
    }),
    (200, 200, |broken, n| {
        let path =
            format!("POST /console/api/owners/{}/conflicts/{}/restore", owner(broken), conflict(broken, n));
        Sent { token: OPERATOR.into(), ..sent(broken, &path, None) }
    }),
    (200, 200, |broken, _| sent(broken, "GET /fetch?lock=false", None)),
    (200, 200, |broken, _| sent(broken, "GET /fetch.json?tables=todo&lock=false", None)),
    (200, 200, |broken, _| sent(broken, "GET /changes", None)),
    (200, 200, |broken, _| sent(broken, "GET /digests", None)),
    (200, 200, |broken, _| sent(broken, "GET /conflicts", None)),
    (200, 200, |broken, _| sent(broken, "GET /devices", None)),
    (200, 200, |broken, _| sent(broken, "GET /lock", None)),
    (200, 200, |broken, _| sent(broken, "GET /readyz", None)),
    (200, 200, |broken, _| Sent {
        token: OPERATOR.into(),
        ..sent(broken, "GET /console/api/overview", None)
    }),
    (200, 200, |broken, _| Sent { token: OPERATOR.into(), ..sent(broken, "GET /console/api/owners", None) }),
    (200, 200, |broken, _| {
        let path = format!("GET /console/api/owners/{}", owner(broken));
        Sent { token: OPERATOR.into(), ..sent(broken, &path, None) }
    }),
    (200, 200, |broken, _| {
        let path = format!("GET /console/api/owners/{}/conflicts", owner(broken));
        Sent { token: OPERATOR.into(), ..sent(broken, &path, None) }
    }),
    (200, 200, |broken, _| {
        let owner = owner(broken);
        let result = broken.operator(&format!("GET /console/api/owners/{owner}")).json();
        let device =
            result["devices"][0]["device_id"].as_str().unwrap_or_else(|| panic!("{result}")).to_owned();
        let path = format!("GET /console/api/owners/{owner}/why?table=todo&key={}&device={device}", key(1));
        Sent { token: OPERATOR.into(), ..sent(broken, &path, None) }
    }),
    (201, 409, |broken, n| sent(broken, "POST /register", Some(account(n)))),
    (200, 200, |broken, n| {
        call(broken.address, "POST /register", None, Some(&account(n)));
        let body = json!({ "email": account(n)["email"], "password": PASSWORD, "device": "phone" });
        sent(broken, "POST /login", Some(body))
    }),
    (204, 401, |broken, n| Sent { token: other(broken, n, "phone"), ..sent(broken, "POST /logout", None) }),
    (204, 404, |broken, n| {
        let token = other(broken, n, "phone");
        let lost = json!({ "email": account(n)["email"], "password": PASSWORD, "device": "lost" });
        let lost = call(broken.address, "POST /login", None, Some(&lost)).json();
        let request = format!("DELETE /devices/{}", lost["device_id"].as_str().unwrap());
        Sent { token, ..sent(broken, &request, None) }
    }),
];

/// What can befall a call: which calls count, with which error they fail, and whether all after it fail too.
const FAULTS: [(i32, i32, bool); 6] = [
    (WRITES, ENOSPC, false),
    (WRITES, EIO, false),
    (SYNCS, EIO, false),
    (READS, EIO, false),
    (LOCKS, EAGAIN, false),
    (LOCKS, EAGAIN, true),
];

#[test]
fn whatever_the_disk_fails_the_answer_is_known_and_nothing_is_half_written() {
    let Some(broken) = Broken::start() else { return };
    let (mut struck, mut number) = (BTreeMap::new(), 0);
    broken.ask("POST /synchronise", Some(&json!({ "add": { "todo": [{ "id": key(3), "title": "t" }] } })));
    for (done, again, make) in REQUESTS {
        for (counted, error, stays) in FAULTS {
            let mut calls = 1;
            loop {
                number += 1;
                let Sent { request, body, token } = make(&broken, number);
                let what = format!("{request}, errno {error}, call {calls} of kind {counted}, {stays}");
                let before = broken.shows();
                broken.forget_pages();
                broken.fail(calls, error, stays, counted);
                let answer = broken.ask_as(&token, &request, body.as_ref());
                let failed = broken.mend();
                let is_done = answer.status == done;
                assert!(is_done || failed, "{what}: {} {}", answer.status, answer.text());
                check_documented(&answer, &what);
                if counted == LOCKS {
                    // Who waits for a moment gets the lock after all.
                    assert!(
                        is_done || (stays && answer.json()["code"] == "busy"),
                        "{what}: {}",
                        answer.text()
                    );
                }
                let after = broken.shows();
                if !is_done {
                    assert_eq!(before, after, "what was refused has written nothing: {what}");
                }
                let second = broken.ask_as(&token, &request, body.as_ref());
                let wanted = if is_done { again } else { done };
                assert_eq!(second.status, wanted, "the next request works: {what}: {}", second.text());
                if is_done && request.starts_with("POST /synchronise") {
                    let shown = broken.shows();
                    let (first, again) = (answer.text(), second.text());
                    assert_eq!(
                        after["version"], shown["version"],
                        "it was written: {what}: {first}, then {again}"
                    );
                }
                if !failed {
                    break;
                }
                *struck.entry((counted, error, stays)).or_insert(0) += 1;
                calls += 1;
                assert!(calls < CALLS_MAX, "needs no end of calls: {what}");
            }
        }
    }
    println!("{number} requests over a failing disk; calls that failed, by kind: {struck:?}");
    assert!(struck.len() == FAULTS.len() && number > 300, "the library does not work: {struck:?}");
    finish(broken);
}

/// Goal: a full disk stops only writes, and needs no restart. Method: the disk is full until the test frees
/// it.
#[test]
fn a_full_disk_refuses_writes_and_recovers_by_itself() {
    let Some(broken) = Broken::start() else { return };
    let write = |number: i32| {
        let row = json!({ "id": key(number), "title": number.to_string() });
        broken.ask("POST /synchronise", Some(&json!({ "update": { "todo": [row] } })))
    };
    assert_eq!(write(1).status, 200);
    for round in 0..3 {
        let before = broken.shows();
        broken.fail(1, ENOSPC, true, WRITES);
        for _ in 0..3 {
            let answer = write(100 + round);
            assert_eq!(
                (answer.status, answer.json()["code"].as_str()),
                (503, Some("storage_full")),
                "{}",
                answer.text()
            );
            assert_eq!(broken.shows(), before, "reads go on");
        }
        assert!(broken.mend());
        let answer = write(200 + round);
        assert_eq!(answer.status, 200, "it recovers: {}", answer.text());
    }
    finish(broken);
}

/// Goal: a client that finds the database locked by another program gets a retry. Method: another program has
/// the lock.
#[test]
fn a_database_that_others_keep_busy_is_503_and_reads_go_on() {
    let Some(broken) = Broken::start() else { return };
    let body = json!({ "update": { "todo": [{ "id": key(1), "title": "t" }] } });
    let other = Connection::open(&broken.database).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let before = broken.shows();
    let answer = broken.ask("POST /synchronise", Some(&body));
    assert_eq!((answer.status, answer.json()["code"].as_str()), (503, Some("busy")), "{}", answer.text());
    assert_eq!(broken.shows(), before);
    other.execute_batch("ROLLBACK").unwrap();
    drop(other);
    assert_eq!(broken.ask("POST /synchronise", Some(&body)).status, 200);
    finish(broken);
}

fn finish(broken: Broken) {
    let Broken { server, database, _folder, .. } = broken;
    server.kill();
    let schema = Schema::parse(&std::fs::read_to_string(Path::new(SCHEMA)).unwrap()).unwrap();
    let faults = audit(&Connection::open(database).unwrap(), &schema);
    assert!(faults.is_empty(), "{faults:?}");
}

//! A disk that fails: the k-th write, sync or read of every request, k rising until the request needs no more.
//!
//! Goal: whatever the disk does, a client gets an answer of the contract, nothing is ever half written, and the
//! next request works. Method: the real program, with a library between it and its files that fails a call on
//! demand (`support/disk.c`). After each failure the same request goes out again, and the data must be as if it
//! had come once; at the end the file is held against itself.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "support/audit.rs"]
mod audit;
#[path = "support/disk.rs"]
mod disk;
#[path = "support/process.rs"]
mod process;

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

const ENOSPC: i32 = 28;
const EIO: i32 = 5;
const WRITES: i32 = 1;
const SYNCS: i32 = 2;
const READS: i32 = 4;

/// More calls than any request here makes.
const CALLS_MAX: i32 = 400;

/// A server over a disk that the test makes fail.
struct Broken {
    server: Process,
    address: SocketAddr,
    token: String,
    fault: File,
    database: PathBuf,
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
        command.args(["--logins-per-address-per-min", "0"]);
        command.arg("--database").arg(format!("sqlite:{}", database.display()));
        command.env("LD_PRELOAD", library).env("POWERCUT_FOLDER", &data).env("POWERCUT_FAULT", &faults);
        let mut server = Process::start(&mut command);
        let address = server.address();
        let account = json!({ "email": EMAIL, "password": PASSWORD });
        assert_eq!(call(address, "POST /register", None, Some(&account)).status, 201);
        let token = log_in(address, EMAIL, PASSWORD, "phone");
        let fault = File::options().read(true).write(true).open(&faults).unwrap();
        Some(Self { server, address, token, fault, database, _folder: folder })
    }

    /// The call of that number from now fails; with `stays` all later ones do.
    fn fail(&self, calls: i32, error: i32, stays: bool, counted: i32) {
        for (place, number) in [(1, error), (2, i32::from(stays)), (3, 0), (4, counted), (0, calls)] {
            self.fault.write_all_at(&number.to_le_bytes(), place * 4).unwrap();
        }
    }

    /// Mends the disk; says whether it had failed.
    fn mend(&self) -> bool {
        self.fault.write_all_at(&[0; 4], 0).unwrap();
        let mut failed = [0; 4];
        self.fault.read_exact_at(&mut failed, 12).unwrap();
        i32::from_le_bytes(failed) > 0
    }

    fn ask(&self, request: &str, body: Option<&Value>) -> Answer {
        let body = body.map(Value::to_string);
        let mut client = Client::connect(self.address).unwrap();
        let answer = client.call(request, &[bearer(&self.token)], body.as_deref());
        answer.unwrap_or_else(|error| panic!("every request is answered: {request}: {error}"))
    }

    /// What the server shows: version and rows.
    fn shows(&self) -> Value {
        let answer = self.ask("GET /changes", None);
        assert_eq!(answer.status, 200, "{}", answer.text());
        let mut told = answer.json();
        told.as_object_mut().unwrap().remove("digests");
        told
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

/// Every request that a device makes, with what it sends for the time of that number.
type Make = fn(i32) -> (String, Option<Value>);

const REQUESTS: [(&str, Make); 8] = [
    ("add", |n| {
        let row = json!({ "id": key(1_000 + n), "title": "t", "notes": "n".repeat(3_000) });
        ("POST /synchronise".into(), Some(json!({ "add": { "todo": [row] } })))
    }),
    ("update", |n| {
        let row = json!({ "id": key(1), "title": n.to_string() });
        ("POST /synchronise".into(), Some(json!({ "update": { "todo": [row] }, "pull": true })))
    }),
    ("delete", |n| {
        let (row, gone) = (json!({ "id": key(2), "title": n.to_string() }), key(1_000 + n));
        ("POST /synchronise".into(), Some(json!({ "add": { "todo": [row] }, "delete": { "todo": [gone] } })))
    }),
    ("fetch", |_| ("GET /fetch?lock=false".into(), None)),
    ("changes", |_| ("GET /changes".into(), None)),
    ("digests", |_| ("GET /digests".into(), None)),
    ("conflicts", |_| ("GET /conflicts".into(), None)),
    ("login", |_| {
        ("POST /login".into(), Some(json!({ "email": EMAIL, "password": PASSWORD, "device": "tablet" })))
    }),
];

#[test]
fn whatever_the_disk_fails_the_answer_is_known_and_nothing_is_half_written() {
    let Some(broken) = Broken::start() else { return };
    let mut tried = 0;
    for (name, make) in REQUESTS {
        for (error, counted) in [(ENOSPC, WRITES), (EIO, WRITES), (EIO, SYNCS), (EIO, READS)] {
            let mut calls = 1;
            loop {
                let (request, body) = make(calls);
                let what = format!("{name}, errno {error}, call {calls} of kind {counted}");
                let before = broken.shows();
                broken.fail(calls, error, false, counted);
                let answer = broken.ask(&request, body.as_ref());
                let failed = broken.mend();
                check_documented(&answer, &what);
                let after = broken.shows();
                if answer.status >= 400 {
                    assert_eq!(before, after, "what was refused has written nothing: {what}");
                }
                let again = broken.ask(&request, body.as_ref());
                assert_eq!(again.status, 200, "the next request works: {what}: {}", again.text());
                if answer.status == 200 && request.starts_with("POST /synchronise") {
                    assert_eq!(broken.shows()["version"], after["version"], "what was told is there: {what}");
                }
                tried += 1;
                if !failed {
                    break;
                }
                calls += 1;
                assert!(calls < CALLS_MAX, "{name} needs no end of calls");
            }
        }
    }
    println!("{tried} requests over a failing disk");
    assert!(tried > 60, "the disk failed {tried} times only: the library does not work");
    finish(broken);
}

/// Goal: a full disk stops writing and nothing else, and no one has to restart anything. Method: full until the
/// test says otherwise.
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

/// Goal: who finds the database locked by another program is told to come back. Method: another program has it.
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

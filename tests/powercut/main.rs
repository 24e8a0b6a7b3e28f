//! Power cuts: what the disk may hold when the power fails, at any moment of a server's run.
//!
//! Goal: an acknowledged write is there after a power cut, and the database is sound. Method: a small
//! library, built here and preloaded, records every write and sync that the real program makes on its
//! database's files, and this test adds a line whenever a response has arrived. Then the disk is rebuilt as
//! it could be at any point of the record: with what was synced; of what was not: nothing, all, a part from
//! the front, or some writes and not others, torn at 512 bytes. Each such disk is opened and compared with
//! the earlier responses.
//!
//! `ROLLCALL_POWER_CUTS` is the number of disks, `ROLLCALL_SEED` repeats a run's choices. Not covered: lost
//! entries of a folder, and drives that report syncs falsely.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use rollcall_testkit::audit;
use rollcall_testkit::disk;
use rollcall_testkit::process;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use audit::audit;
use process::{Client, Process, bearer, call, log_in, rollcall};
use rollcall::model::Timestamp;
use rollcall::schema::Schema;
use rollcall::storage::sqlite::{Connections, Sqlite};
use rusqlite::Connection;
use serde_json::json;

const SCHEMA: &str = "fixtures/wedding/schema.toml";
const DATABASE: &str = "app.db";

/// The size in CI; a debug build makes fewer.
const CUTS: u64 = if cfg!(debug_assertions) { 300 } else { 2_000 };

/// Requests that each device writes with.
const REQUESTS: u64 = 250;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} must be a number")))
}

/// SplitMix64.
struct Rng(u64);

impl Rng {
    fn below(&mut self, most: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % most.max(1)
    }
}

/// One entry of the record.
#[derive(Debug)]
enum Event {
    Write {
        file: String,
        at: usize,
        bytes: Vec<u8>,
    },
    Truncate {
        file: String,
        length: usize,
    },
    SyncBegins {
        file: String,
    },
    SyncEnds {
        file: String,
    },
    Unlink {
        file: String,
    },
    /// A response arrived: the row of that key has at least this number.
    Acknowledged {
        key: String,
        number: i64,
    },
}

fn read_record(bytes: &[u8]) -> Vec<Event> {
    let mut events = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let end = at + bytes[at..].iter().position(|byte| *byte == b'\n').expect("a whole line");
        let line = std::str::from_utf8(&bytes[at..end]).unwrap();
        at = end + 1;
        let mut parts = line.splitn(4, ' ');
        let mut part = || parts.next().unwrap();
        let (op, offset, length, name) = (part(), part(), part(), part().to_owned());
        let (offset, length): (i64, usize) = (offset.parse().unwrap(), length.parse().unwrap());
        if name.ends_with("-shm") || name.ends_with(".lock") {
            at += length;
            continue;
        }
        let place = usize::try_from(offset).unwrap_or_default();
        events.push(match op {
            "w" => {
                at += length;
                Event::Write { file: name, at: place, bytes: bytes[at - length..at].to_vec() }
            }
            "t" => Event::Truncate { file: name, length: place },
            "b" => Event::SyncBegins { file: name },
            "s" => Event::SyncEnds { file: name },
            "u" => Event::Unlink { file: name },
            "a" => Event::Acknowledged { key: name, number: offset },
            other => panic!("an unknown event: {other}"),
        });
    }
    events
}

/// A file as the disk surely has it, and what was done to it since.
#[derive(Default, Clone)]
struct File {
    synced: Vec<u8>,
    pending: Vec<Change>,
    /// How much of `pending` the running sync covers.
    covered: usize,
}

#[derive(Clone)]
enum Change {
    Write { at: usize, bytes: Arc<[u8]> },
    Truncate { length: usize },
}

impl Change {
    fn apply(&self, to: &mut Vec<u8>) {
        match self {
            Self::Write { at, bytes } => {
                let end = at + bytes.len();
                if to.len() < end {
                    to.resize(end, 0);
                }
                to[*at..end].copy_from_slice(bytes);
            }
            Self::Truncate { length } => to.resize(*length, 0),
        }
    }
}

/// The disk while the record is gone through.
#[derive(Default)]
struct Disk {
    files: BTreeMap<String, File>,
    acknowledged: BTreeMap<String, i64>,
}

impl Disk {
    fn take(&mut self, event: &Event) {
        let mut change = |file: &String, change| {
            self.files.entry(file.clone()).or_default().pending.push(change);
        };
        match event {
            Event::Write { file, at, bytes } => {
                change(file, Change::Write { at: *at, bytes: bytes.as_slice().into() });
            }
            Event::Truncate { file, length } => change(file, Change::Truncate { length: *length }),
            Event::SyncBegins { file } => {
                let file = self.files.entry(file.clone()).or_default();
                file.covered = file.pending.len();
            }
            Event::SyncEnds { file } => {
                let file = self.files.entry(file.clone()).or_default();
                let covered = std::mem::take(&mut file.covered);
                file.pending.drain(..covered).for_each(|change| change.apply(&mut file.synced));
            }
            Event::Unlink { file } => {
                self.files.remove(file);
            }
            Event::Acknowledged { key, number } => {
                self.acknowledged.insert(key.clone(), *number);
            }
        }
    }

    /// What the disk may hold if the power goes now, and how that was chosen.
    fn cut(&self, rng: &mut Rng) -> (BTreeMap<&str, Vec<u8>>, &'static str) {
        let how = ["nothing", "everything", "the first", "some", "some, torn"][rng.below(5) as usize];
        let mut files = BTreeMap::new();
        for (name, file) in &self.files {
            let mut bytes = file.synced.clone();
            let first = rng.below(file.pending.len() as u64 + 1) as usize;
            for (place, change) in file.pending.iter().enumerate() {
                let stays = match how {
                    "nothing" => false,
                    "everything" => true,
                    "the first" => place < first,
                    _ => rng.below(2) == 0,
                };
                match change {
                    Change::Write { at, bytes: written } if stays && how == "some, torn" => {
                        for (sector, part) in written.chunks(512).enumerate() {
                            if rng.below(4) > 0 {
                                let at = at + sector * 512;
                                Change::Write { at, bytes: part.into() }.apply(&mut bytes);
                            }
                        }
                    }
                    change if stays => change.apply(&mut bytes),
                    _ => {}
                }
            }
            files.insert(name.as_str(), bytes);
        }
        (files, how)
    }
}

/// Runs the real program under the recorder, with two devices that write; returns the record.
fn record(folder: &Path, library: &Path) -> Vec<Event> {
    let (data, log) = (folder.join("data"), folder.join("record"));
    std::fs::create_dir(&data).unwrap();
    let mut command = rollcall();
    command.args(["serve", "--schema", SCHEMA, "--listen", "127.0.0.1:0", "--log", "warn", "--database"]);
    command.arg(format!("sqlite:{}", data.join(DATABASE).display()));
    command.env("LD_PRELOAD", library).env("POWERCUT_FOLDER", &data).env("POWERCUT_LOG", &log);
    if let Some(fault) = std::env::var_os("ROLLCALL_BROKEN") {
        command.env("ROLLCALL_BROKEN", fault); // a build with a deliberate fault, which this test is to find
    }
    let mut server = Process::start(&mut command);
    let address = server.address();
    std::thread::scope(|scope| {
        for owner in 0..2_u64 {
            let log = &log;
            scope.spawn(move || {
                let (email, password) = (format!("owner{owner}@example.com"), "something borrowed");
                let account = json!({ "email": email, "password": password });
                assert_eq!(call(address, "POST /register", None, Some(&account)).status, 201);
                let headers = [bearer(&log_in(address, &email, password, "phone"))];
                let mut client = Client::connect(address).unwrap();
                let mut acknowledged = OpenOptions::new().append(true).open(log).unwrap();
                let mut rng = Rng(owner);
                for number in 0..REQUESTS {
                    let keys: BTreeSet<u64> = (0..=rng.below(8)).map(|_| rng.below(60)).collect();
                    let key = |key: &u64| format!("0190000{owner}-0000-7000-8000-{key:012x}");
                    let rows: Vec<_> = keys
                        .iter()
                        .map(|at| json!({ "id": key(at), "title": number.to_string(), "notes": "x".repeat(300) }))
                        .collect();
                    let body = json!({ "update": { "todo": rows } }).to_string();
                    let answer = client.call("POST /synchronise", &headers, Some(&body)).unwrap();
                    assert_eq!(answer.status, 200, "{}", answer.text());
                    let lines: String = keys.iter().map(|at| format!("a {number} 0 {}\n", key(at))).collect();
                    acknowledged.write_all(lines.as_bytes()).unwrap();
                }
            });
        }
    });
    server.kill();
    read_record(&std::fs::read(log).unwrap())
}

/// Opens a disk as the next start of the server would, and compares it with the responses.
fn check(folder: &Path, disk: &Disk, files: &BTreeMap<&str, Vec<u8>>, schema: &Arc<Schema>) -> Vec<String> {
    for (name, bytes) in files {
        std::fs::write(folder.join(name), bytes).unwrap();
    }
    let path = folder.join(DATABASE);
    let opened = Connections::open(&path, Duration::from_secs(1), 1).map_err(|error| error.to_string());
    let served = opened.and_then(|connections| {
        let now = Timestamp::from_ms(1_750_000_000_000);
        let served = Sqlite::serve(&path, connections, Arc::clone(schema), now, Arc::new(()));
        served.map_err(|error| error.to_string())
    });
    let mut faults = match served {
        Ok(server) => {
            drop(server);
            let conn = Connection::open(&path).unwrap();
            let mut faults = audit(&conn, schema);
            let mut title = conn.prepare("SELECT title FROM todo WHERE id = ?1").unwrap();
            for (key, number) in &disk.acknowledged {
                let key = uuid::Uuid::parse_str(key).unwrap();
                let held: Result<String, _> = title.query_row([key.as_bytes()], |row| row.get(0));
                let held = held.ok().and_then(|title| title.parse::<i64>().ok());
                if held.is_none_or(|held| held < *number) {
                    faults.push(format!("an acknowledged write is lost: {key} {number}, there is {held:?}"));
                }
            }
            faults
        }
        Err(error) => vec![format!("the database cannot be opened: {error}")],
    };
    faults.truncate(5);
    for entry in std::fs::read_dir(folder).unwrap() {
        std::fs::remove_file(entry.unwrap().path()).unwrap();
    }
    faults
}

#[test]
fn a_power_cut_loses_no_acknowledged_write() {
    let cuts = number("ROLLCALL_POWER_CUTS").unwrap_or(CUTS);
    let seed = number("ROLLCALL_SEED").unwrap_or_else(|| uuid::Uuid::new_v4().as_u64_pair().1 >> 20);
    let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let Some(library) = disk::library(folder.path(), "power cuts") else { return };
    let events = record(folder.path(), &library);
    let syncs = events.iter().filter(|event| matches!(event, Event::SyncEnds { .. })).count();
    let answers = events.iter().filter(|event| matches!(event, Event::Acknowledged { .. })).count();
    assert!(
        syncs > 0 && answers > 500,
        "the record is of a server at work: {syncs} syncs, {answers} answers"
    );
    println!(
        "ROLLCALL_SEED={seed}: {cuts} cuts into {} events, {syncs} syncs, {answers} rows acknowledged",
        events.len()
    );

    let schema = Arc::new(Schema::parse(&std::fs::read_to_string(SCHEMA).unwrap()).unwrap());
    let image = folder.path().join("image");
    std::fs::create_dir(&image).unwrap();
    let mut rng = Rng(seed);
    let mut points: Vec<u64> = (0..cuts).map(|_| rng.below(events.len() as u64)).collect();
    points.sort_unstable();
    let mut disk = Disk::default();
    let mut next = 0;
    let mut bad = Vec::new();
    for point in points {
        while next <= point as usize {
            disk.take(&events[next]);
            next += 1;
        }
        let (files, how) = disk.cut(&mut rng);
        let faults = check(&image, &disk, &files, &schema);
        if !faults.is_empty() {
            bad.push(format!(
                "cut after event {point} ({:?}), {how} of what was not synced: {}",
                kind(&events[point as usize]),
                faults.join("; ")
            ));
        }
    }
    assert!(bad.is_empty(), "{} of {cuts} cuts do harm\n{}", bad.len(), bad[..bad.len().min(5)].join("\n"));
}

fn kind(event: &Event) -> String {
    match event {
        Event::Write { file, at, bytes } => format!("{} bytes written at {at} of {file}", bytes.len()),
        other => format!("{other:?}"),
    }
}

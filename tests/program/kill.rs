//! The server is killed (SIGKILL) at random moments, over and over, while devices write.
//!
//! Goal: a write with a received response is kept; a request is kept whole or not at all; versions and fences
//! rise over every restart; the database is sound. Method: two devices of one owner and one of another sync
//! in threads with the real program over HTTP, and record every write before they send it. After each
//! restart, and with every response, the server's data is compared with the record; at the end the file
//! itself is.
//!
//! `ROLLCALL_KILLS=1000 cargo test --release --test program kill:: -- --nocapture` is the long run.
//! `ROLLCALL_SEED` repeats the devices' choices of a run (the moments of the kills depend on the machine).
//!
//! This shows that no response is sent before the commit, and that an incomplete start or write does no harm.
//! It cannot show the effect of a power cut: the system keeps what a killed process wrote.

use rollcall_testkit::audit;
use rollcall_testkit::journal;
use rollcall_testkit::process;

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use audit::audit;
use journal::{Effect, Fate, Journal, RowId, Seen, Wrong};
use process::{Answer, Client, Process, TOO_LONG, bearer, log_in, rollcall};
use rollcall::model::{Precision, Timestamp};
use rollcall::schema::Schema;
use rusqlite::Connection;
use serde_json::{Value, json};
use uuid::Uuid;

const SCHEMA: &str = "fixtures/wedding/schema.toml";

/// The tables that are written, with the columns that contain a write's token.
const TABLES: [(&str, &str, [&str; 2]); 3] = [
    ("invitation_categories", "icid", ["title", "colour"]),
    ("invitations", "iid", ["guest", "notes"]),
    ("todo", "id", ["title", "notes"]),
];
const CATEGORIES: &str = TABLES[0].0;
const INVITATIONS: &str = TABLES[1].0;
const TODO: &str = TABLES[2].0;

/// The owner of each device.
const DEVICES: [usize; 3] = [0, 0, 1];
const EMAILS: [&str; 2] = ["anna@example.com", "ben@example.com"];
const PASSWORD: &str = "something borrowed";

/// Above this many live rows a device rather deletes.
const ROWS_ABOUT: usize = 250;

/// The size in CI: about half a minute.
const KILLS: u64 = 100;

#[test]
fn a_killed_server_loses_no_acknowledged_write() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect(name));
    let kills = number("ROLLCALL_KILLS").unwrap_or(KILLS);
    let seed = number("ROLLCALL_SEED").unwrap_or_else(|| Uuid::new_v4().as_u64_pair().1 >> 16);
    // Most of the time a server starts, or lives on until its moment: another is killed meanwhile.
    let lanes = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u64).min(kills);
    std::thread::scope(|scope| {
        for lane in 0..lanes {
            let (seed, kills) = (seed + lane, kills / lanes + u64::from(lane < kills % lanes));
            scope.spawn(move || one_after_another(seed, kills));
        }
    });
}

fn one_after_another(seed: u64, kills: u64) {
    // Shown when it fails; the database is kept then.
    let folder = tempfile::tempdir().unwrap().keep();
    println!("ROLLCALL_SEED={seed} ROLLCALL_KILLS={kills}, in {}", folder.display());
    let begun = Instant::now();
    let result = Run::prepare(&folder, seed).run(kills);
    println!("{result}, in {} s", begun.elapsed().as_secs());
    std::fs::remove_dir_all(folder).unwrap();
}

/// The server's life of now, if it lives.
#[derive(Clone, Copy, Default)]
struct Stage {
    life: u64,
    address: Option<SocketAddr>,
}

/// Shared by the devices and the thread that kills the server.
struct World {
    stage: Mutex<Stage>,
    staged: Condvar,
    stop: AtomicBool,
    journals: [Mutex<Journal>; 2],
    /// Signals that a write is in transit: a good moment to kill.
    on_its_way: SyncSender<()>,
    syncs: AtomicU64,
    replays: AtomicU64,
    hang_ups: AtomicU64,
    refused: AtomicU64,
}

struct Run {
    database: PathBuf,
    rng: Rng,
    world: Arc<World>,
    written: Receiver<()>,
    devices: Vec<JoinHandle<()>>,
    life: u64,
}

impl Run {
    /// A database with two users, and three devices that wait for a server.
    fn prepare(folder: &Path, seed: u64) -> Self {
        let database = folder.join("app.db");
        let mut rng = Rng(seed);
        let (on_its_way, written) = sync_channel(1);
        let world = Arc::new(World {
            stage: Mutex::default(),
            staged: Condvar::new(),
            stop: AtomicBool::new(false),
            journals: Default::default(),
            on_its_way,
            syncs: AtomicU64::new(0),
            replays: AtomicU64::new(0),
            hang_ups: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        });
        // The first starts, which make the tables.
        for _ in 0..8 {
            let server = Process::start(&mut serve(&database));
            std::thread::sleep(Duration::from_micros(rng.below(60_000)));
            check_log(&server.kill());
        }
        let mut server = Process::start(&mut serve(&database));
        let address = server.address();
        for email in EMAILS {
            let body = json!({ "email": email, "password": PASSWORD });
            assert_eq!(process::call(address, "POST /register", None, Some(&body)).status, 201);
        }
        let mut devices = Vec::new();
        for (id, owner) in DEVICES.into_iter().enumerate() {
            let token = log_in(address, EMAILS[owner], PASSWORD, &format!("device {id}"));
            // The other owner's device makes the same random keys as the first device.
            let keys = Rng(seed ^ [1, 2, 1][id]);
            let device = Device::new(Arc::clone(&world), id, &token, keys, rng.fork());
            devices.push(std::thread::spawn(move || device.run()));
        }
        check_log(&server.kill());
        Self { database, rng, world, written, devices, life: 1 }
    }

    fn run(mut self, kills: u64) -> String {
        let mut early = 0;
        for _ in 0..kills {
            let mut server = Process::start(&mut serve(&self.database));
            if self.rng.one_in(8) {
                early += 1; // while it starts
                std::thread::sleep(Duration::from_micros(self.rng.below(25_000)));
            } else {
                self.set_stage(Some(server.address()));
                self.wait_for_a_moment();
            }
            self.set_stage(None);
            check_log(&server.kill());
            if self.devices.iter().any(JoinHandle::is_finished) {
                break; // it found a fault, or it would still be at work
            }
        }
        let mut server = Process::start(&mut serve(&self.database));
        self.set_stage(Some(server.address()));
        self.world.stop.store(true, Ordering::SeqCst);
        for device in std::mem::take(&mut self.devices) {
            if let Err(panic) = device.join() {
                std::panic::resume_unwind(panic);
            }
        }
        server.terminate();
        let ended = server.wait();
        check_log(&ended.stderr);
        assert!(ended.status.success(), "{ended:?}");
        self.check_file();
        self.figures(kills, early)
    }

    fn set_stage(&mut self, address: Option<SocketAddr>) {
        if address.is_some() {
            self.life += 1;
        }
        *self.world.stage.lock().unwrap() = Stage { life: self.life, address };
        self.world.staged.notify_all();
    }

    /// Waits for a moment after a write was sent, when it is read, applied, committed or answered; or for any
    /// moment.
    fn wait_for_a_moment(&mut self) {
        if self.rng.one_in(3) {
            std::thread::sleep(Duration::from_micros(self.rng.below(300_000)));
            return;
        }
        let skipped = self.rng.below(12);
        let begun = Instant::now();
        let _ = self.written.try_recv();
        for _ in 0..=skipped {
            // If all devices stopped, that would be a fault, which they report themselves.
            let _ = self.written.recv_timeout(Duration::from_secs(2).saturating_sub(begun.elapsed()));
        }
        let longest_us = [500, 2_000, 10_000][self.rng.below(3) as usize];
        std::thread::sleep(Duration::from_micros(self.rng.below(longest_us)));
    }

    /// Holds the file against itself, and against all that the devices wrote.
    fn check_file(&self) {
        let conn = Connection::open(&self.database).unwrap();
        let schema = Schema::parse(&std::fs::read_to_string(SCHEMA).unwrap()).unwrap();
        let faults = audit(&conn, &schema);
        assert!(faults.is_empty(), "{} faults, first {:?}", faults.len(), &faults[..faults.len().min(5)]);
        for (owner, journal) in self.world.journals.iter().enumerate() {
            Ledger::read(&conn, EMAILS[owner]).check(&mut journal.lock().unwrap());
        }
    }

    fn figures(&self, kills: u64, early: u64) -> String {
        let journals: Vec<_> = self.world.journals.iter().map(|journal| journal.lock().unwrap()).collect();
        let count = |fate| journals.iter().map(|journal| journal.count(fate)).sum::<usize>();
        let [acknowledged, found] = [Fate::Acknowledged, Fate::Found].map(count);
        let figure = |count: &AtomicU64| count.load(Ordering::SeqCst);
        let refused = figure(&self.world.refused);
        let unanswered = (found + count(Fate::Unknown) + count(Fate::Void)) as u64 - refused;
        assert!(acknowledged as u64 > kills, "only {acknowledged} writes were acknowledged");
        format!(
            "{kills} kills ({early} of them before the server listened), {} syncs, {acknowledged} acknowledged writes, \
             0 lost; {unanswered} writes without an answer ({} of them hung up on), {found} of these kept, each \
             whole; {} sent again; {refused} refused for a broken lock",
            figure(&self.world.syncs),
            figure(&self.world.hang_ups),
            figure(&self.world.replays),
        )
    }
}

fn serve(database: &Path) -> Command {
    let mut command = rollcall();
    command.args(["serve", "--schema", SCHEMA, "--listen", "127.0.0.1:0", "--log", "warn"]);
    // Devices delete most of what they create, without confirmation.
    command.args(["--mass-delete-rows", "1000000", "--database"]);
    command.arg(format!("sqlite:{}", database.display()));
    command
}

/// Whatever the server complains of is a fault: nothing here is out of the ordinary but its deaths.
fn check_log(log: &str) {
    assert!(log.is_empty(), "the server says: {log}");
}

/// What the file holds of one owner.
struct Ledger {
    /// The version of an owner without rows.
    first: u64,
    version: u64,
    rows: HashMap<RowId, Held>,
}

struct Held {
    version: u64,
    last_update: String,
    changed_by: Uuid,
    effect: Effect,
}

impl Ledger {
    fn read(conn: &Connection, email: &str) -> Self {
        let (owner, first, version) = conn
            .query_row(
                "SELECT o.id, o.horizon, o.version FROM rollcall_owner o JOIN rollcall_user u ON u.owner = o.owner
                 WHERE u.email = ?1",
                [email],
                |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)? as u64, row.get::<_, i64>(2)? as u64)),
            )
            .unwrap();
        let mut rows = HashMap::new();
        for (table, key, [first, second]) in TABLES {
            let sql = format!(
                "SELECT l.key, l.version, l.last_update, w.device, l.deleted, r.{first}, r.{second}
                 FROM rollcall_ledger l JOIN rollcall_table t ON t.id = l.tbl
                 JOIN rollcall_writer w ON w.id = l.changed_by
                 LEFT JOIN {table} r ON r._owner = l.owner AND r.{key} = l.key
                 WHERE l.owner = ?1 AND t.name = '{table}'"
            );
            let mut statement = conn.prepare(&sql).unwrap();
            let mut found = statement.query([owner]).unwrap();
            while let Some(row) = found.next().unwrap() {
                let id = |at| Uuid::from_slice(row.get_ref_unwrap(at).as_blob().unwrap()).unwrap();
                let effect = if row.get_unwrap(4) {
                    Effect::Deleted
                } else {
                    let token: String = row.get_unwrap(5);
                    assert_eq!(row.get_unwrap::<_, String>(6), twin(&token), "{table} {}: half a row", id(0));
                    Effect::Live(token)
                };
                let last_update =
                    Timestamp::from_ms(row.get_unwrap(2)).format(Precision::Seconds).to_string();
                let held = Held {
                    version: row.get_unwrap::<_, i64>(1) as u64,
                    last_update,
                    changed_by: id(3),
                    effect,
                };
                rows.insert((table, id(0)), held);
            }
        }
        Self { first, version, rows }
    }

    /// Every version is one whole write, and every row is as the last write of it made it.
    fn check(&self, journal: &mut Journal) {
        assert!(self.version >= journal.top(), "version {} is below {}", self.version, journal.top());
        let mut rows_of: HashMap<u64, Vec<RowId>> = HashMap::new();
        for (row, held) in &self.rows {
            rows_of.entry(held.version).or_default().push(*row);
        }
        let mut claims_of: HashMap<u64, Vec<usize>> = HashMap::new();
        for (id, sent) in journal.sent().iter().enumerate().filter(|(_, sent)| sent.fate != Fate::Void) {
            claims_of.entry(sent.version).or_default().push(id);
        }
        let mut devices: HashMap<Uuid, usize> = HashMap::new();
        for version in self.first + 1..=self.version {
            let rows = rows_of.remove(&version).unwrap_or_default();
            let claims = claims_of.remove(&version).unwrap_or_default();
            let fits = |id: &&usize| {
                let sent = &journal.sent()[**id];
                let is_whole = sent
                    .rows
                    .keys()
                    .all(|row| self.rows.get(row).is_some_and(|held| held.version >= version));
                is_whole && rows.iter().all(|row| sent.rows.get(row) == Some(&self.rows[row].effect))
            };
            let Some(id) = claims.iter().find(fits) else {
                let claims: Vec<_> = claims.iter().map(|id| &journal.sent()[*id]).collect();
                panic!("version {version} is nobody's whole write: {rows:?}, claimed by {claims:?}");
            };
            let writer = journal.sent()[*id].device;
            for row in &rows {
                let device = devices.entry(self.rows[row].changed_by).or_insert(writer);
                assert_eq!(*device, writer, "{row:?} is told to be another device's");
            }
            journal.settle(*id, Fate::Found).unwrap();
        }
        assert!(rows_of.is_empty(), "rows of versions that never were: {rows_of:?}");
        for row in journal.rows() {
            let seen = match self.rows.get(&row) {
                Some(Held { effect: Effect::Live(token), last_update, .. }) => {
                    Seen::Whole(token, last_update)
                }
                _ => Seen::Absent,
            };
            journal.check(row, self.version, seen).unwrap();
        }
    }
}

/// The second column of a row: derived from the first, and long for some tokens.
fn twin(token: &str) -> String {
    if token.ends_with("long") { token.repeat(60) } else { token.to_owned() }
}

/// One device: it syncs until it must stop, whatever happens to the server.
struct Device {
    world: Arc<World>,
    id: usize,
    owner: usize,
    bearer: String,
    /// Makes the random keys.
    keys: Rng,
    rng: Rng,
    /// How many tokens it made.
    tokens: u64,
    /// The life of the server that it is connected to, or was.
    life: u64,
    /// Whether it held all that this life of the server shows against the journal.
    has_checked: bool,
    /// A write whose response was lost, and its body.
    lost: Option<(usize, Value)>,
    /// It hung up on a write, which may still be at work.
    has_hung_up: bool,
    /// The highest version that it received.
    version: u64,
}

/// Why a sync ended before its end.
enum Cut {
    /// The connection broke: the server died, or the device hung up.
    Connection,
    /// Another device was first, or the lock was broken.
    Later,
}

impl From<io::Error> for Cut {
    fn from(_: io::Error) -> Self {
        Self::Connection
    }
}

/// What a device is about to send.
#[derive(Default)]
struct Batch {
    body: Value,
    rows: BTreeMap<RowId, Effect>,
}

impl Device {
    fn new(world: Arc<World>, id: usize, token: &str, keys: Rng, rng: Rng) -> Self {
        Self {
            world,
            id,
            owner: DEVICES[id],
            bearer: bearer(token),
            keys,
            rng,
            tokens: 0,
            life: 0,
            has_checked: false,
            lost: None,
            has_hung_up: false,
            version: 0,
        }
    }

    fn run(mut self) {
        let mut client = None;
        loop {
            let stops = self.world.stop.load(Ordering::SeqCst);
            let mut open = client.take().unwrap_or_else(|| self.connect());
            match self.sync(&mut open) {
                // The last sync is one that began after the last kill and looked at everything.
                Ok(()) if stops && self.has_checked && self.lost.is_none() => return,
                Ok(()) | Err(Cut::Later) => client = Some(open),
                Err(Cut::Connection) => {}
            }
        }
    }

    /// A connection to the server, once there is one.
    fn connect(&mut self) -> Client {
        let begun = Instant::now();
        let mut stage = self.world.stage.lock().unwrap();
        loop {
            assert!(begun.elapsed() < TOO_LONG, "device {} finds no server", self.id);
            if let Stage { life, address: Some(address) } = *stage
                && let Ok(client) = Client::connect(address)
            {
                if life != self.life {
                    (self.life, self.has_checked) = (life, false);
                }
                return client;
            }
            stage = self.world.staged.wait_timeout(stage, Duration::from_millis(20)).unwrap().0;
        }
    }

    fn journal<T>(&self, work: impl FnOnce(&mut Journal) -> Result<T, Wrong>) -> T {
        let done = work(&mut self.world.journals[self.owner].lock().unwrap());
        done.unwrap_or_else(|wrong| panic!("device {}: {wrong}", self.id))
    }

    /// The version of a response, which never falls.
    fn show_version(&mut self, answer: &Answer) -> u64 {
        let version = answer.number("sync-version");
        assert!(version >= self.version, "device {}: version {version} after {}", self.id, self.version);
        self.version = version;
        version
    }

    /// One sync: the manifest with the lock, then what has to be sent.
    fn sync(&mut self, client: &mut Client) -> Result<(), Cut> {
        if self.has_hung_up {
            // Work that is still in progress there has ended once another lease is taken.
            let answer = client.call("DELETE /lock?break=true", std::slice::from_ref(&self.bearer), None)?;
            assert_eq!(answer.status, 204, "{answer:?}");
            self.has_hung_up = false;
        }
        loop {
            let acknowledged = self.journal(|journal| Ok(journal.top()));
            let headers = [self.bearer.clone(), "prefer: wait=2".to_owned()];
            let answer = client.call("GET /fetch", &headers, None)?;
            match answer.status {
                200 => {}
                423 => return Err(Cut::Later),
                _ => panic!("device {}: {answer:?}", self.id),
            }
            let (version, fence) = (self.show_version(&answer), answer.number("sync-lock"));
            assert!(version >= acknowledged, "version {version} after {acknowledged} was acknowledged");
            let life = self.life;
            let listed = listed(&answer.json());
            let whole = !self.has_checked;
            self.journal(|journal| {
                journal.show_fence(life, fence)?;
                let rows = if whole { journal.rows() } else { listed.keys().copied().collect() };
                rows.into_iter().try_for_each(|row| {
                    let seen = listed.get(&row).map_or(Seen::Absent, |stamp| Seen::Listed(stamp));
                    journal.check(row, version, seen)
                })?;
                match listed.keys().find(|row| !journal.knows(**row)) {
                    Some(row) => Err(format!("{row:?} was never written")),
                    None => Ok(()),
                }
            });
            if whole {
                self.check_rows(client, fence, &listed)?;
                self.has_checked = true;
            }
            if self.lost.is_some() && self.send_again(client, version, fence)? {
                return Ok(());
            }
            let keeps_lock = self.rng.one_in(10);
            let mut batch = self.make_batch(&listed);
            batch.body["keep_lock"] = json!(keeps_lock);
            if self.rng.one_in(2) {
                batch.body["base"] = json!(version);
            }
            self.send(client, fence, version, batch)?;
            self.world.syncs.fetch_add(1, Ordering::Relaxed);
            if !keeps_lock {
                return Ok(());
            }
        }
    }

    /// Reads every row in full and holds it against the journal.
    fn check_rows(
        &mut self,
        client: &mut Client,
        fence: u64,
        listed: &HashMap<RowId, String>,
    ) -> Result<(), Cut> {
        let mut asked: BTreeMap<&str, Vec<Uuid>> = BTreeMap::new();
        for (table, key) in listed.keys() {
            asked.entry(table).or_default().push(*key);
        }
        let answer = self.synchronise(client, fence, &json!({ "get": asked, "keep_lock": true }))?;
        self.check_got(&answer, listed.len());
        Ok(())
    }

    fn check_got(&mut self, answer: &Answer, asked: usize) {
        let (version, body) = (self.show_version(answer), answer.json());
        let got = rows_of(&body["get"]);
        assert_eq!(got.len(), asked, "{body}");
        let mut rows = Vec::new();
        for ((table, key), row) in got {
            let [first, second] = columns(table);
            let token = row[first].as_str().unwrap_or_else(|| panic!("{table} {key}: half a row, {row}"));
            assert_eq!(row[second], twin(token), "{table} {key}: half a row");
            rows.push(((table, key), token, row["last_update"].as_str().unwrap()));
        }
        self.journal(|journal| {
            // Twice: what exists must be complete.
            rows.iter()
                .chain(&rows)
                .try_for_each(|(row, token, stamp)| journal.check(*row, version, Seen::Whole(token, stamp)))
        });
    }

    fn synchronise(&mut self, client: &mut Client, fence: u64, body: &Value) -> Result<Answer, Cut> {
        let headers = [self.bearer.clone(), format!("sync-lock: {fence}")];
        client.send("POST /synchronise", &headers, Some(&body.to_string()))?;
        let answer = client.answer()?;
        match answer.status {
            200 => Ok(answer),
            409 if answer.json()["code"] == "lock_lost" => Err(Cut::Later), // the other device broke the lock
            _ => panic!("device {}: {} {}", self.id, answer.status, answer.text()),
        }
    }

    /// Sends a write and settles what became of it.
    fn send(&mut self, client: &mut Client, fence: u64, version: u64, batch: Batch) -> Result<(), Cut> {
        let Batch { body, rows } = batch;
        if rows.is_empty() {
            let answer = self.synchronise(client, fence, &body)?;
            assert_eq!(self.show_version(&answer), version, "nothing was sent, and the version moved");
            return Ok(());
        }
        let id = self.journal(|journal| Ok(journal.send(self.id, version + 1, rows.clone())));
        self.lost = Some((id, body.clone()));
        let headers = [self.bearer.clone(), format!("sync-lock: {fence}")];
        client.send("POST /synchronise", &headers, Some(&body.to_string()))?;
        let _ = self.world.on_its_way.try_send(());
        if self.rng.one_in(25) {
            self.has_hung_up = true;
            self.world.hang_ups.fetch_add(1, Ordering::Relaxed);
            return Err(Cut::Connection);
        }
        let answer = client.answer()?;
        self.lost = None;
        match answer.status {
            200 => {}
            409 if answer.json()["code"] == "lock_lost" => {
                self.world.refused.fetch_add(1, Ordering::Relaxed);
                self.journal(|journal| journal.settle(id, Fate::Void));
                return Err(Cut::Later);
            }
            _ => panic!("device {}: {} {}", self.id, answer.status, answer.text()),
        }
        let result = verdicts(&answer.json());
        let mut stamps = HashMap::new();
        for (row, effect) in &rows {
            let (verdict, stamp) = result.get(row).unwrap_or_else(|| panic!("no verdict for {row:?}"));
            let is_expected = match effect {
                Effect::Deleted => verdict == "deleted",
                Effect::Live(_) => verdict == "added" || verdict == "updated",
            };
            assert!(is_expected, "device {}: {row:?} {effect:?} is told {verdict}", self.id);
            stamps.insert(*row, stamp.clone());
        }
        assert_eq!(result.len(), rows.len());
        assert_eq!(self.show_version(&answer), version + 1, "one request is one version");
        self.journal(|journal| journal.acknowledge(id, stamps));
        self.check_got(&answer, asked(&body));
        Ok(())
    }

    /// Sends a write without a response again, if nobody wrote in between; returns whether it did.
    ///
    /// Either the write was committed, and then changes nothing, or it was not, and then all of it is
    /// applied.
    fn send_again(&mut self, client: &mut Client, version: u64, fence: u64) -> Result<bool, Cut> {
        let Some((id, body)) = self.lost.clone() else { return Ok(false) };
        let (sent_version, rows, is_sole) = self.journal(|journal| {
            let sent = &journal.sent()[id];
            Ok((sent.version, sent.rows.clone(), journal.is_sole_claimant(id)))
        });
        if version < sent_version {
            // It was never applied, and never will be: its fence is an old one.
            self.journal(|journal| journal.settle(id, Fate::Void));
            if self.rng.one_in(3) {
                self.lost = None;
                return Ok(false);
            }
            let mut batch = Batch { body, rows };
            batch.body["keep_lock"] = json!(false);
            self.world.replays.fetch_add(1, Ordering::Relaxed);
            self.send(client, fence, version, batch)?;
            return Ok(true);
        }
        if version > sent_version || !is_sole {
            self.lost = None; // cannot be decided any more: the other device wrote
            return Ok(false);
        }
        self.journal(|journal| journal.settle(id, Fate::Found));
        let mut body = body;
        body["keep_lock"] = json!(false);
        let answer = self.synchronise(client, fence, &body)?;
        self.world.replays.fetch_add(1, Ordering::Relaxed);
        self.lost = None;
        for (row, (verdict, _)) in verdicts(&answer.json()) {
            assert_eq!(verdict, "same", "device {}: {row:?} of a write that is there", self.id);
        }
        assert_eq!(self.show_version(&answer), version, "a repetition moved the version");
        Ok(true)
    }

    /// A batch that is built on the manifest. Every part of it must have effect.
    fn make_batch(&mut self, listed: &HashMap<RowId, String>) -> Batch {
        let mut batch = Batch { body: json!({}), rows: BTreeMap::new() };
        if self.rng.one_in(12) {
            return batch; // nothing: it ends the sync nevertheless
        }
        let mut live: Vec<RowId> = listed.keys().copied().collect();
        live.sort_unstable();
        let is_large = self.rng.one_in(12);
        let deletes = if live.len() > ROWS_ABOUT { 30 } else { self.rng.below(3) };
        for _ in 0..deletes {
            self.delete(&mut batch, &live);
        }
        for _ in 0..self.rng.below(5) {
            if let Some(row) = self.rng.pick(&live) {
                self.put(&mut batch, "update", row, is_large, None);
            }
        }
        for _ in 0..if is_large { 60 } else { self.rng.below(4) } {
            self.add(&mut batch, is_large);
        }
        if self.rng.one_in(4) {
            self.bring_back(&mut batch, listed);
        }
        if self.rng.one_in(6) {
            batch.body["atomic"] = json!(true);
        }
        // Some rows that it leaves alone, to be read in the same transaction.
        for _ in 0..self.rng.below(4) {
            if let Some(row) = self.rng.pick(&live).filter(|row| !batch.rows.contains_key(row)) {
                let got = list(&mut batch.body, "get", row.0);
                let key = json!(row.1);
                if !got.contains(&key) {
                    got.push(key);
                }
            }
        }
        batch
    }

    fn token(&mut self, is_long: bool) -> String {
        self.tokens += 1;
        format!("{}-{}{}", self.id, self.tokens, if is_long { "-long" } else { "" })
    }

    fn put(&mut self, batch: &mut Batch, set: &str, row: RowId, is_long: bool, more: Option<(&str, Value)>) {
        if batch.rows.contains_key(&row) {
            return;
        }
        let token = self.token(is_long);
        let [first, second] = columns(row.0);
        let mut sent = json!({ key_of(row.0): row.1, first: token, second: twin(&token) });
        if let Some((name, value)) = more {
            sent[name] = value;
        }
        list(&mut batch.body, set, row.0).push(sent);
        batch.rows.insert(row, Effect::Live(token));
    }

    /// A new row; an invitation comes with its category.
    fn add(&mut self, batch: &mut Batch, is_long: bool) {
        let key = self.new_key();
        if self.rng.one_in(3) {
            let category = self.new_key();
            self.put(batch, "add", (INVITATIONS, key), is_long, Some(("icid", json!(category))));
            self.put(batch, "add", (CATEGORIES, category), is_long, None);
            self.journal(|journal| {
                journal.pair((CATEGORIES, category), (INVITATIONS, key));
                Ok(())
            });
        } else {
            self.put(batch, "add", (TODO, key), is_long, None);
        }
    }

    fn new_key(&mut self) -> Uuid {
        let random = self.keys.bytes();
        if self.rng.one_in(2) {
            return uuid::Builder::from_random_bytes(random).into_uuid();
        }
        let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_millis() as u64;
        let mut few = [0; 10];
        few.copy_from_slice(&random[..10]);
        uuid::Builder::from_unix_timestamp_millis(now, &few).into_uuid()
    }

    /// Deletes a row, and with a category its invitation.
    fn delete(&mut self, batch: &mut Batch, live: &[RowId]) {
        let Some(row) = self.rng.pick(live) else { return };
        let mut rows = vec![row];
        if row.0 == CATEGORIES {
            let invitation = self.journal(|journal| Ok(journal.paired(row)));
            rows.extend(invitation.filter(|invitation| live.binary_search(invitation).is_ok()));
        }
        if rows.iter().any(|row| batch.rows.contains_key(row)) {
            return;
        }
        for row in rows {
            list(&mut batch.body, "delete", row.0).push(json!(row.1));
            batch.rows.insert(row, Effect::Deleted);
        }
    }

    /// Adds a row again that was deleted, saying that it knows of the deletion.
    fn bring_back(&mut self, batch: &mut Batch, listed: &HashMap<RowId, String>) {
        let rng = &mut self.rng;
        let journal = self.world.journals[self.owner].lock().unwrap();
        let deleted = journal.deleted_lately(TODO);
        let Some((row, stamp)) = rng.pick(&deleted).filter(|(row, _)| !listed.contains_key(row)) else {
            return;
        };
        drop(journal);
        self.put(batch, "add", row, false, Some(("_base", json!(stamp))));
    }
}

fn columns(table: &str) -> [&'static str; 2] {
    TABLES.iter().find(|(name, ..)| *name == table).unwrap().2
}

fn key_of(table: &str) -> &'static str {
    TABLES.iter().find(|(name, ..)| *name == table).unwrap().1
}

/// A table's list under one of the body's sets.
fn list<'a>(body: &'a mut Value, set: &str, table: &str) -> &'a mut Vec<Value> {
    let list = &mut body[set][table];
    if list.is_null() {
        *list = json!([]);
    }
    list.as_array_mut().unwrap()
}

/// How many rows a body requests.
fn asked(body: &Value) -> usize {
    TABLES.iter().filter_map(|(table, ..)| body["get"][table].as_array()).map(Vec::len).sum()
}

/// The rows of all tables by their id.
fn rows_of(tables: &Value) -> HashMap<RowId, &Value> {
    let mut found = HashMap::new();
    for (table, key, _) in TABLES {
        for row in tables[table].as_array().into_iter().flatten() {
            found.insert((table, row[key].as_str().unwrap().parse().unwrap()), row);
        }
    }
    found
}

/// The manifest: `last_update` of each row.
fn listed(body: &Value) -> HashMap<RowId, String> {
    let rows = rows_of(body);
    rows.into_iter().map(|(row, entry)| (row, entry["last_update"].as_str().unwrap().to_owned())).collect()
}

/// The verdict and `last_update` of each row. Each was sent once.
fn verdicts(body: &Value) -> HashMap<RowId, (String, String)> {
    let mut found = HashMap::new();
    for set in ["add", "update", "delete"] {
        for (row, result) in rows_of(&body[set]) {
            let text = |name: &str| result[name].as_str().unwrap_or_default().to_owned();
            found.insert(row, (text("verdict"), text("last_update")));
        }
    }
    found
}

/// A small generator (splitmix64): the same choices for the same seed.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn one_in(&mut self, many: u64) -> bool {
        self.below(many) == 0
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> Option<T> {
        if from.is_empty() { None } else { from.get(self.below(from.len() as u64) as usize).cloned() }
    }

    fn bytes(&mut self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.next().to_le_bytes());
        bytes[8..].copy_from_slice(&self.next().to_le_bytes());
        bytes
    }

    fn fork(&mut self) -> Self {
        Self(self.next())
    }
}

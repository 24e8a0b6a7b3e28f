//! What devices, servers and the script of a run share.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rollcall::accounts::{Accounts, LocalAccounts, LocalSettings, LogIn};
use rollcall::clock::Clock;
use rollcall::config::Settings;
use rollcall::device::Store;
use rollcall::http::{App, Listener, routes, serve};
use rollcall::model::{Owner, RowKey, Timestamp};
use rollcall::schema::Schema;
use serde_json::{Map, Value as Json, json};
use tempfile::TempDir;
use tokio::sync::Notify;
use uuid::Uuid;

use crate::database::{Database, Line, Shared};
use crate::rng::Rng;
use crate::truth::{Check, Id, must};

pub const OWNERS: usize = 2;
/// Devices of the owners' own users.
pub const DEVICES: usize = 4;
/// Devices of users who visit another user's owner. Their numbers follow.
pub const GUESTS: usize = 2;
pub const ALL: usize = DEVICES + GUESTS;
pub const SERVERS: usize = 2;
pub const SLOTS: usize = 4;
pub const TABLES: [&str; 3] = ["lists", "items", "tallies"];
pub const LEASE_MS: u64 = 3_000;
pub const PORT: u16 = 80;

pub const SCHEMA: &str = r#"
[table.lists]
key = "lid"
[table.lists.columns]
title = { type = "text", required = true }
colour = { type = "text", default = "red" }

[table.items]
key = "iid"
[table.items.columns]
title = { type = "text", required = true }
list = { type = "uuid", references = "lists" }

[table.tallies]
key = "id"
policy = "merge"
history = 2
[table.tallies.columns]
title = { type = "text", required = true }
n = { type = "integer", merge = "sum" }
high = { type = "integer", merge = "max" }
"#;

/// 2025-06-15T15:06:40Z
const START_MS: i64 = 1_750_000_000_000;

/// The same keys for every owner: whose row is meant must come from the token alone.
pub fn slot_key(table: usize, slot: usize) -> RowKey {
    RowKey(Uuid::from_u128(0x0190_0000_0000_7000_8000_0000_0000_0000 + (table * 256 + slot) as u128))
}

/// One device, over all its lives.
pub struct Device {
    pub number: usize,
    /// The owner of its rows.
    pub owner: Owner,
    /// The number of that owner.
    pub place: usize,
    /// The user who visits the owner; `None` on a device of the owner's own user.
    pub guest: Option<Uuid>,
    pub clock: Clock,
    phone: Mutex<Phone>,
    /// The last title that its user gave to a row, and that no sync has settled.
    pub tokens: Mutex<BTreeMap<(usize, usize), String>>,
    pub lives: AtomicU64,
    /// What had moved at all before its last sync, if that moved nothing more.
    pub rests: Mutex<Option<u64>>,
    /// Restores of the server before its last sync that reached the end began.
    pub restores: AtomicU64,
    /// Whether nothing had been written for its owner when it last synced.
    pub saw_nothing: AtomicBool,
    /// The titles that it had not sent when its user's membership ended.
    pub kept: Mutex<BTreeSet<String>>,
    /// Rows on which the server decided in the sync of a guest.
    pub settled: Mutex<BTreeSet<(String, RowKey)>>,
}

/// The parts of a device: a backup of another may replace them.
#[derive(Clone)]
struct Phone {
    path: PathBuf,
    token: String,
}

impl Device {
    pub fn token(&self) -> String {
        self.phone.lock().token.clone()
    }

    pub fn path(&self) -> PathBuf {
        self.phone.lock().path.clone()
    }

    /// From now on it is what another is: the copy of its file is at `path`.
    pub fn become_copy(&self, of: &Self, path: PathBuf) {
        *self.phone.lock() = Phone { path, token: of.token() };
        let tokens = of.tokens.lock().clone();
        *self.tokens.lock() = tokens;
    }
}

/// One life of a server.
#[derive(Clone)]
pub struct Server {
    pub app: Arc<App>,
    /// Its way to the database.
    pub line: Arc<Line>,
    /// Notified when it must stop.
    pub stop: Arc<Notify>,
}

pub struct World {
    pub seed: u64,
    pub now_ms: Arc<AtomicI64>,
    pub schema: Arc<Schema>,
    pub database: Arc<Database>,
    pub devices: Vec<Arc<Device>>,
    /// The newest life of each.
    servers: Mutex<BTreeMap<usize, Server>>,
    pub quiet: AtomicBool,
    pub requests: AtomicU64,
    pub syncs: AtomicU64,
    /// Copies that devices dropped because their users were no members any more.
    pub left: AtomicU64,
    next_token: AtomicU64,
    pub copies: AtomicU64,
    /// Invitations to each owner that nobody has accepted yet.
    pub codes: Mutex<BTreeMap<usize, Vec<String>>>,
    /// Deletions that copies of requests bring again, with the time until when, ms.
    pub late: Mutex<BTreeMap<(Owner, Id), i64>>,
    /// What happened, in order, for people; and the hash of it.
    result: Mutex<(Vec<String>, u64)>,
    pub dir: TempDir,
}

/// Limits so small that pages, deadlines and leases come up often.
fn settings() -> Settings {
    let mut settings = Settings::default();
    settings.sync.lease_ms = LEASE_MS;
    settings.sync.lock_wait_max_s = 2;
    settings.sync.lock_hold_max_s = 20;
    settings.sync.fetch_rows_max = 5;
    settings.sync.changes_rows_max = 4;
    settings.sync.page_entries_max = 7;
    // A copy arrives up to some seconds late, in which a device may send more than the 32 requests that are
    // stored by default.
    settings.sync.idempotency_keys_max = 1_000;
    settings.limits.rows_max = 8;
    settings.limits.get_keys_max = 6;
    settings.limits.header_read_s = 5;
    settings.limits.request_s = 10;
    settings.limits.drain_s = 2;
    settings.limits.invitations_per_hour = 0;
    settings.limits.invitation_attempts_per_hour = 0;
    settings
}

impl World {
    pub fn new(seed: u64) -> Arc<Self> {
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let now_ms = Arc::new(AtomicI64::new(START_MS));
        let clock = clock(&now_ms, 0);
        let schema = Arc::new(Schema::parse(SCHEMA).unwrap_or_else(|error| panic!("{error}")));
        let mut rng = Rng(seed);
        let draws = Rng(rng.next());
        let database = Database::open(dir.path().to_owned(), &schema, clock.clone(), draws);
        let accounts = LocalAccounts::new(
            database.engine().accounts(),
            clock,
            LocalSettings::new(&settings().auth, &settings().limits),
            cheap(),
        )
        .unwrap();
        let emails: Vec<String> = (0..OWNERS).map(|owner| format!("owner{owner}@example.org")).collect();
        let owners: Vec<Owner> =
            emails.iter().map(|email| accounts.enrol(email, "correct horse", None).unwrap().owner).collect();
        let devices = (0..ALL).map(|number| {
            let home = number % OWNERS;
            let place = if number < DEVICES { home } else { (home + 1) % OWNERS };
            let (email, name) = (&emails[home], format!("device-{number}"));
            let asked = LogIn { email, password: "correct horse", device: &name, device_id: None };
            let session = accounts.log_in(asked, [127, 0, 0, 1].into()).unwrap();
            let path = dir.path().join(&name);
            let skew = rng.below(4_000) as i64 - 2_000;
            let clock = self::clock(&now_ms, skew);
            let file = Store::create(&path, SCHEMA, clock.clone()).unwrap();
            file.set_token(&session.token).unwrap();
            if place != home {
                file.set_owner(owners[place].0).unwrap();
            }
            Arc::new(Device {
                number,
                owner: owners[place],
                place,
                guest: (place != home).then_some(owners[home].0),
                clock,
                phone: Mutex::new(Phone { path, token: session.token }),
                tokens: Mutex::default(),
                lives: AtomicU64::new(0),
                rests: Mutex::default(),
                restores: AtomicU64::new(0),
                saw_nothing: AtomicBool::new(true),
                kept: Mutex::default(),
                settled: Mutex::default(),
            })
        });
        let devices = devices.collect();
        database.truth.lock().numbers = owners.iter().copied().zip(0..).collect();
        Arc::new(Self {
            seed,
            devices,
            now_ms,
            schema,
            database,
            servers: Mutex::default(),
            quiet: AtomicBool::new(false),
            requests: AtomicU64::new(0),
            syncs: AtomicU64::new(0),
            left: AtomicU64::new(0),
            next_token: AtomicU64::new(0),
            result: Mutex::new((Vec::new(), 0)),
            copies: AtomicU64::new(0),
            codes: Mutex::default(),
            late: Mutex::default(),
            dir,
        })
    }

    pub fn now(&self) -> i64 {
        self.now_ms.load(Ordering::SeqCst)
    }

    pub fn is_quiet(&self) -> bool {
        self.quiet.load(Ordering::SeqCst)
    }

    pub fn note(&self, check: Check) {
        self.database.note(check);
    }

    /// Writes a line of the story. It must contain nothing random that the seed does not determine.
    pub fn tell(&self, what: impl Into<String>) {
        let line = format!("{:>6} {}", self.now() - START_MS, what.into());
        let mut result = self.result.lock();
        for byte in line.bytes() {
            result.1 = (result.1 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        result.0.push(line);
    }

    /// Adds details to the last line, for people only.
    pub fn explain(&self, what: impl Into<String>) {
        self.result.lock().0.push(what.into());
    }

    /// A number that two runs of a seed share.
    pub fn fingerprint(&self) -> u64 {
        self.result.lock().1
    }

    /// The last of what happened.
    pub fn story(&self) -> String {
        let result = self.result.lock();
        result.0[result.0.len().saturating_sub(100)..].join("\n")
    }

    pub fn token(&self, device: &Device) -> String {
        let number = self.next_token.fetch_add(1, Ordering::SeqCst);
        format!("o{}:{number}", device.place)
    }

    /// One lifetime of a server: the real one, except the network below it.
    pub async fn serve(self: Arc<Self>, server: usize, skew_ms: i64) {
        let line = Line::new(&self.database, server);
        let shared = Shared(Arc::clone(&line));
        let (settings, clock) = (settings(), clock(&self.now_ms, skew_ms));
        let local = LocalSettings::new(&settings.auth, &settings.limits);
        let accounts =
            LocalAccounts::new(self.database.engine().accounts(), clock.clone(), local, cheap()).unwrap();
        let accounts = Accounts::Local(Box::new(accounts));
        let schema = Arc::clone(&self.schema);
        let app = App::new(schema, Arc::new(shared), accounts, clock, settings, Arc::default()).unwrap();
        let stop = Arc::new(Notify::new());
        let life = Server { app: Arc::clone(&app), line, stop: Arc::clone(&stop) };
        self.servers.lock().insert(server, life);
        let bound = turmoil::net::TcpListener::bind((std::net::Ipv4Addr::UNSPECIFIED, PORT)).await;
        let filter = routes(Arc::clone(&app));
        let (bounds, draining) = (Arc::clone(&app.bounds), app.draining.clone());
        let metrics = Arc::clone(&app.metrics);
        serve(Simulated(bound.unwrap()), filter, bounds, draining, metrics, stop.notified()).await;
    }

    /// No server runs: nothing of the last lives is left.
    pub fn forget_servers(&self) {
        self.servers.lock().clear();
    }

    pub fn server(&self, server: usize) -> Option<Server> {
        self.servers.lock().get(&server).cloned()
    }
}

/// A listener of the simulated network.
struct Simulated(turmoil::net::TcpListener);

impl Listener for Simulated {
    type Stream = turmoil::net::TcpStream;

    async fn accept(&self) -> std::io::Result<(Self::Stream, std::net::SocketAddr)> {
        self.0.accept().await
    }
}

fn cheap() -> argon2::Params {
    argon2::Params::new(8, 1, 1, None).unwrap()
}

fn clock(now_ms: &Arc<AtomicI64>, skew_ms: i64) -> Clock {
    let now_ms = Arc::clone(now_ms);
    Clock::from_fn(move || Timestamp::from_ms(now_ms.load(Ordering::SeqCst) + skew_ms))
}

/// How long blocking work takes: mostly nothing, now and then longer than a lease lasts.
pub fn pace(world: &Arc<World>, mut rng: Rng) -> impl FnMut() -> Duration + 'static {
    let world = Arc::clone(world);
    move || {
        Duration::from_millis(match rng.below(200) {
            _ if world.is_quiet() => 1,
            0 => rng.below(2 * LEASE_MS + 2_000),
            1..60 => rng.below(40),
            _ => 0,
        })
    }
}

/// What a user writes into a row, except its title.
pub fn columns(table: usize, rng: &mut Rng) -> Map<String, Json> {
    let mut columns = Map::new();
    match TABLES[table] {
        "lists" => {
            columns.insert("colour".into(), json!(rng.among(&["red", "blue"])));
        }
        "items" => {
            let list = slot_key(0, rng.below(SLOTS as u64) as usize);
            columns.insert("list".into(), if rng.often(400) { json!(list) } else { Json::Null });
        }
        _ => {
            columns.insert("n".into(), json!(rng.below(9)));
            columns.insert("high".into(), json!(rng.below(9)));
        }
    }
    columns
}

/// Opens the file of a device.
pub fn store(device: &Device) -> Store {
    Store::open(&device.path(), device.clock.clone()).unwrap()
}

/// A device has what the server holds, and nothing more.
pub fn check_equal(world: &World, device: &Device) -> Check {
    use crate::shown::{shown, shows};
    let (store, truth) = (store(device), world.database.truth.lock());
    let Some(data) = truth.owners.get(&device.owner) else { return Ok(()) };
    let rejected = store.rejected().unwrap();
    for name in TABLES {
        let table = world.schema.table(name).unwrap();
        let here: BTreeMap<RowKey, _> =
            store.list(name).unwrap().into_iter().map(|row| (row.key, row)).collect();
        let live = data.rows.iter().filter(|((of, _), row)| *of == table.id && !row.is_tombstone());
        let there: BTreeMap<RowKey, _> = live.map(|((_, key), row)| (*key, row)).collect();
        for (key, mine) in &here {
            let title = mine.contents["title"].string().unwrap_or_default();
            must(title.starts_with(&format!("o{}:", device.place)), || {
                format!("no row is another user's: device {}, {mine:?}", device.number)
            })?;
            let waits = mine.local.is_dirty();
            must(!waits || mine.error.is_some(), || {
                format!("nothing waits without a reason: device {}, {mine:?}", device.number)
            })?;
            must(waits || there.contains_key(key), || {
                format!("device {} has no ghost: {name} {key} {mine:?}", device.number)
            })?;
        }
        for (key, row) in &there {
            let mine = here.get(key);
            let deleted_here = rejected.iter().any(|(of, which, _)| of == name && which == key);
            if deleted_here || mine.is_some_and(|mine| mine.local.is_dirty()) {
                continue;
            }
            let same = mine.is_some_and(|mine| {
                mine.local.last_update == Some(row.last_update)
                    && shown(table, &shows(table, row)) == shown(table, &mine.contents)
            });
            must(same, || {
                format!("device {} has the server's {name} {key}: {row:?}, not {mine:?}", device.number)
            })?;
        }
    }
    Ok(())
}

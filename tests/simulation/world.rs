//! The server, its owners and their devices; runs a history, and looks after every step.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use rollcall::accounts::LogIn;
use rollcall::device::{
    Options, Request, Response, RetryPolicy, Store, SyncError, SyncMode, SyncReport, sync,
};
use rollcall::model::{DeviceId, Precision, Role, RowKey, Timestamp, Version};
use rollcall::purge;
use serde_json::{Map, Value as Json, json};
use tempfile::TempDir;
use uuid::Uuid;

use crate::guests::Guest;
use crate::link::Link;
use crate::ops::{DEVICES, GUESTS, OWNERS, Op, Rng, SLOTS};
use crate::oracle::{Check, Shadow, must, slot_key};
use crate::server::{Disk, Server, clock, disk, folder};
use crate::shown::{shown, shows};

pub const SCHEMA: &str = r#"
[table.lists]
key = "lid"
[table.lists.columns]
title = { type = "text", required = true, max_length = 40 }
colour = { type = "text", default = "red" }

[table.items]
key = "iid"
[table.items.columns]
title = { type = "text", required = true }
list = { type = "uuid", references = "lists" }
n = "integer"

[table.tallies]
key = "id"
policy = "merge"
history = 2
[table.tallies.columns]
title = { type = "text", required = true }
body = "text"
n = { type = "integer", merge = "sum" }
high = { type = "integer", merge = "max" }
low = { type = "integer", merge = "min" }
tags = { type = "json", merge = "union" }

[table.ours]
key = "id"
policy = "server"
[table.ours.columns]
title = { type = "text", required = true }
body = "text"

[table.theirs]
key = "id"
policy = "client"
[table.theirs.columns]
title = { type = "text", required = true }
body = "text"

[table.manuals]
key = "id"
policy = "manual"
[table.manuals.columns]
title = { type = "text", required = true }
body = "text"
"#;

/// What a later release of the app adds.
const MORE: &str = r#"
extra = { type = "text", default = "new" }
[table.notes]
key = "id"
[table.notes.columns]
title = { type = "text", required = true }
"#;

/// 2025-06-15T15:06:40Z
const START_MS: i64 = 1_750_000_000_000;
const DAY_MS: i64 = Timestamp::DAY_MS;

pub struct Device {
    /// The owner of its rows.
    pub owner: usize,
    /// The owner that was made with the account of its user.
    pub home: usize,
    pub id: DeviceId,
    pub token: String,
    pub skew_ms: Arc<AtomicI64>,
    path: PathBuf,
    pub store: Option<Store>,
    /// The last title that its user gave to a row, and that no sync has settled.
    pub tokens: BTreeMap<(usize, usize), String>,
    /// Requests that were answered well: what was sent, what came back, when.
    pub answered: VecDeque<(Request, Response, i64)>,
}

/// What is in a copy of the database.
type Copied = (Vec<Shadow>, String, Vec<Option<Role>>);

pub struct World {
    pub server: Option<Server>,
    schema_text: String,
    now_ms: Arc<AtomicI64>,
    pub shadows: Vec<Shadow>,
    /// What each guest may do with the rows of the owner that it visits.
    pub guests: Vec<Guest>,
    /// As they were when the copy was made.
    copied: Option<Copied>,
    pub devices: Vec<Device>,
    next_token: u64,
    pub restores: u64,
    copies: u64,
    /// Rows that a device held as the server had them when that was put back: they are not to be lost.
    owed: BTreeSet<(usize, usize, usize)>,
    /// What did not hold.
    pub broken: Option<String>,
    pub requests: u64,
    pub syncs: u64,
    /// Look at every row after every operation, to find where something went wrong.
    pub thorough: bool,
    /// Goes after the server: its database may be another test's then.
    disk: Box<dyn Disk>,
    /// The devices' files.
    dir: TempDir,
}

impl World {
    pub fn new() -> Self {
        let dir = folder();
        let now_ms = Arc::new(AtomicI64::new(START_MS));
        let mut disk = disk();
        let server = Server::start(disk.as_mut(), SCHEMA, &now_ms);
        let accounts = server.app.accounts.local().unwrap();
        let emails: Vec<String> = (0..OWNERS).map(|owner| format!("owner{owner}@example.org")).collect();
        let shadows: Vec<Shadow> = emails
            .iter()
            .map(|email| Shadow::new(accounts.enrol(email, "correct horse", None).unwrap().owner))
            .collect();
        let device = |number: usize| {
            let home = number % OWNERS;
            let owner = if number < DEVICES { home } else { (home + 1) % OWNERS };
            let (email, name) = (&emails[home], format!("device {number}"));
            let asked = LogIn { email, password: "correct horse", device: &name, device_id: None };
            let session = accounts.log_in(asked, [127, 0, 0, 1].into()).unwrap();
            let skew_ms = Arc::new(AtomicI64::new(0));
            let path = dir.path().join(format!("{number}.db"));
            let store = Store::create(&path, SCHEMA, device_clock(&now_ms, &skew_ms)).unwrap();
            store.set_token(&session.token).unwrap();
            if owner != home {
                store.set_owner(shadows[owner].owner.0).unwrap();
            }
            Device {
                owner,
                home,
                id: DeviceId(Uuid::parse_str(&session.device_id.to_string()).unwrap()),
                token: session.token,
                skew_ms,
                path,
                store: Some(store),
                tokens: BTreeMap::new(),
                answered: VecDeque::new(),
            }
        };
        let devices = (0..DEVICES + GUESTS).map(device).collect();
        Self {
            disk,
            server: Some(server),
            schema_text: SCHEMA.into(),
            now_ms,
            shadows,
            guests: (0..GUESTS).map(|_| Guest::default()).collect(),
            copied: None,
            devices,
            next_token: 0,
            restores: 0,
            copies: 0,
            owed: BTreeSet::new(),
            broken: None,
            requests: 0,
            syncs: 0,
            thorough: false,
            dir,
        }
    }

    pub fn server(&self) -> &Server {
        self.server.as_ref().unwrap()
    }

    pub fn now(&self) -> i64 {
        self.now_ms.load(Ordering::SeqCst)
    }

    pub fn advance(&self, ms: i64) {
        self.now_ms.fetch_add(ms, Ordering::SeqCst);
    }

    pub fn step_clock(&self, device: usize, ms: i64) {
        self.devices[device].skew_ms.fetch_add(ms, Ordering::SeqCst);
    }

    /// Notes what did not hold; only the first is of interest.
    pub fn note(&mut self, check: Check) {
        if let Err(what) = check {
            self.broken.get_or_insert(what);
        }
    }

    /// Does one operation and looks; the error says what did not hold.
    pub fn run(&mut self, op: &Op) -> Check {
        self.act(op);
        self.forgive(op);
        let everything = self.thorough
            || matches!(op, Op::ServerCrash | Op::Settle | Op::Undo { .. } | Op::Purge { .. })
            || self.next_token.is_multiple_of(16);
        if everything && self.broken.is_none() {
            let check = self.everything();
            self.note(check);
        }
        self.broken.take().map_or(Ok(()), Err)
    }

    fn everything(&mut self) -> Check {
        let app = Arc::clone(&self.server().app);
        self.shadows.iter_mut().try_for_each(|shadow| shadow.nothing_changed(&*app.storage, &app.schema))
    }

    fn act(&mut self, op: &Op) {
        match *op {
            Op::Put { device, table, slot, draw } => self.put(device, table, slot, draw),
            Op::Delete { device, table, slot } => {
                let device = &mut self.devices[device];
                let (table, key) = (TABLES[table], slot_key(table, slot));
                // A row that is not there cannot be deleted.
                if device.store.as_mut().unwrap().delete(table, key).is_ok() {
                    device.tokens.retain(|(of, at), _| TABLES[*of] != table || *at != slot);
                }
            }
            Op::Sync { device, manifest, net } => {
                let rng = (net != 0).then_some(Rng(net));
                self.sync(device, manifest, rng, 0);
            }
            Op::Again { device, draw } => self.again(device, draw),
            Op::Plain { device, table, slot, draw } => self.plain(device, table, slot, draw),
            Op::Late { device, table, slot, draw } => self.late(device, table, slot, draw),
            Op::Clones { device, table, slot, draw } => self.clones(device, table, slot, draw),
            Op::Quick { device, table, slot, draw } => self.quick(device, table, slot, draw),
            Op::Look { device, other, table, slot } => self.look(device, other, table, slot),
            Op::Hold { device } => self.hold(device),
            Op::Stale { device, other, table, slot } => self.stale(device, other, table, slot),
            Op::Broken { device, table, slot, draw } => self.break_lock(device, table, slot, draw),
            Op::Copy { device, other } => self.copy(device, other),
            Op::Stranger { device, other, manifest } => self.stranger(device, other, manifest),
            Op::Undo { device, draw } => self.undo(device, draw),
            Op::Member { guest, draw } => self.member(guest, draw),
            Op::Wait { ms } => self.advance(ms),
            Op::Clock { device, ms } => self.devices[device].skew_ms.store(ms, Ordering::SeqCst),
            Op::DeviceCrash { device } => self.reopen(device),
            Op::ServerCrash => self.server_crash(),
            Op::Purge { days } => self.purge(days),
            Op::Backup => {
                self.disk.back_up();
                let roles = self.guests.iter().map(|guest| guest.role).collect();
                self.copied = Some((self.shadows.clone(), self.schema_text.clone(), roles));
            }
            Op::Restore => self.restore(false),
            Op::Swap => self.restore(true),
            Op::NewSchema => {
                self.schema_text = format!("{SCHEMA}{MORE}");
                self.restart();
                let check = self.reload(|_, _, _| Ok(()));
                self.note(check);
            }
            Op::Settle => {
                let check = self.settle();
                self.note(check);
            }
        }
    }

    pub fn token(&mut self, owner: usize) -> String {
        self.next_token += 1;
        format!("o{owner}:{}", self.next_token)
    }

    fn put(&mut self, number: usize, table: usize, slot: usize, draw: u64) {
        let token = self.token(self.devices[number].owner);
        let device = &mut self.devices[number];
        let (name, key) = (TABLES[table], slot_key(table, slot));
        let store = device.store.as_mut().unwrap();
        let known = store.get(name, key).unwrap();
        let mut columns = columns(name, &mut Rng(draw));
        if known.is_none() || draw.is_multiple_of(2) {
            columns.insert("title".into(), json!(token));
            device.tokens.insert((table, slot), token);
        }
        let columns = columns.into_iter().map(|(name, value)| (name, value.into())).collect();
        store.put(name, key, &columns).unwrap();
    }

    /// One sync of a device. Whatever it ends in, it must have kept the promises on the way.
    pub fn sync(
        &mut self,
        number: usize,
        manifest: bool,
        rng: Option<Rng>,
        depth: u32,
    ) -> Option<SyncReport> {
        if number >= DEVICES {
            return self.sync_guest(number, manifest, rng, depth);
        }
        match self.try_sync(number, manifest, rng, depth)? {
            Ok(report) => {
                use rollcall::device::Proof;
                let proved = !matches!(report.proof, Proof::Repaired | Proof::Unequal(_));
                self.note(must(proved, || {
                    format!("a sync leaves both sides equal: device {number}, {:?}", report.proof)
                }));
                Some(report)
            }
            Err(error) => {
                let expected = matches!(error, SyncError::Call(_) | SyncError::Restless);
                self.note(must(expected, || format!("a sync ends as it may: device {number}: {error}")));
                None
            }
        }
    }

    pub fn try_sync(
        &mut self,
        number: usize,
        manifest: bool,
        rng: Option<Rng>,
        depth: u32,
    ) -> Option<Result<SyncReport, SyncError>> {
        // A device that is in the middle of a sync begins no other.
        let mut store = self.devices[number].store.take()?;
        self.syncs += 1;
        let now_ms = Arc::clone(&self.now_ms);
        let mut draws = Rng(rng.as_ref().map_or(1, |rng| rng.0));
        let mut patience = RetryPolicy {
            attempts_max: 3,
            lock_wait_max_ms: 60_000,
            pause: Box::new(move |pause| {
                now_ms.fetch_add(pause.as_millis() as i64, Ordering::SeqCst);
            }),
            random: Box::new(move || draws.next()),
        };
        let way = if manifest { SyncMode::Manifest } else { SyncMode::Cursor };
        let options = Options { mode: Some(way), ..Options::default() };
        let mut link = Link { world: self, device: number, rng, dead: false, depth };
        let done = sync(&mut store, &mut link, &mut patience, options, &mut |_| {});
        let died = link.dead;
        self.devices[number].store = Some(store);
        if died {
            self.reopen(number);
        }
        let check = self.check_edits(number, done.as_ref().ok());
        self.note(check);
        Some(done)
    }

    /// Sets a phone up from the backup of another of the same user.
    fn copy(&mut self, device: usize, other: usize) {
        let owner = self.devices[device].owner;
        if device == other || self.devices[other].owner != owner {
            return;
        }
        self.copies += 1;
        let path = self.dir.path().join(format!("{other}-{}.db", self.copies));
        let conn = rusqlite::Connection::open(&self.devices[device].path).unwrap();
        conn.execute("VACUUM INTO ?1", [path.to_str().unwrap()]).unwrap();
        let copied = &self.devices[device];
        let (token, id, tokens) = (copied.token.clone(), copied.id, copied.tokens.clone());
        let phone = &mut self.devices[other];
        phone.answered.clear();
        (phone.path, phone.token, phone.id, phone.tokens) = (path, token, id, tokens);
        self.reopen(other);
        // What only the phone had is lost with it.
        let shadow = &self.shadows[owner].rows;
        let schema = &self.server.as_ref().unwrap().app.schema;
        let devices = &self.devices;
        self.owed.retain(|(of, table, slot)| {
            let (name, key) = (TABLES[*table], slot_key(*table, *slot));
            let is_there = |row: &rollcall::model::Stored| !row.is_tombstone();
            let holds = |device: &Device| device.store.as_ref().unwrap().get(name, key).unwrap().is_some();
            let devices = &devices[..DEVICES];
            *of != owner
                || shadow.get(&(schema.table(name).unwrap().id, key)).is_some_and(is_there)
                || devices.iter().any(|device| device.owner == owner && holds(device))
        });
    }

    /// Gives a device the token of another user: no row goes either way.
    fn stranger(&mut self, device: usize, other: usize, manifest: bool) {
        let token = self.devices[other].token.clone();
        let (own, store) = (self.devices[device].token.clone(), self.devices[device].store.as_ref().unwrap());
        if self.devices[device].owner == self.devices[other].owner || store.bound().unwrap().is_none() {
            return;
        }
        store.set_token(&token).unwrap();
        let ended = self.try_sync(device, manifest, None, 1);
        self.devices[device].store.as_ref().unwrap().set_token(&own).unwrap();
        self.note(must(matches!(ended, Some(Err(SyncError::OtherUser))), || {
            format!("no device syncs with another user's token: {ended:?}")
        }));
        let check = self.everything();
        self.note(check);
    }

    /// No edit of a user vanishes: what no longer waits was written, or is known to have lost.
    fn check_edits(&mut self, number: usize, report: Option<&SyncReport>) -> Check {
        let device = &mut self.devices[number];
        let store = device.store.as_ref().unwrap();
        let seen = &self.shadows[device.owner].seen;
        let mut vanished = None;
        device.tokens.retain(|(table, slot), token| {
            let (name, key) = (TABLES[*table], slot_key(*table, *slot));
            let waits = store.get(name, key).unwrap().is_some_and(|row| row.local.is_dirty());
            let lost = report
                .is_none_or(|report| report.tally.lost.iter().any(|(of, which)| of == name && *which == key));
            if !waits && !lost && !seen.contains(token) {
                vanished = Some(format!("no edit vanishes: {token} of device {number} in {name} {slot}"));
            }
            waits
        });
        vanished.map_or(Ok(()), Err)
    }

    fn reopen(&mut self, number: usize) {
        let now_ms = Arc::clone(&self.now_ms);
        let device = &mut self.devices[number];
        if device.store.take().is_some() {
            let clock = device_clock(&now_ms, &device.skew_ms);
            device.store = Some(Store::open(&device.path, clock).unwrap());
        }
    }

    pub fn server_crash(&mut self) {
        self.disk.crash();
        self.restart();
        let check = self.everything();
        self.note(check);
    }

    fn restart(&mut self) {
        drop(self.server.take());
        self.server = Some(Server::start(self.disk.as_mut(), &self.schema_text, &self.now_ms));
    }

    fn purge(&mut self, days: i64) {
        self.advance(days * DAY_MS);
        let app = Arc::clone(&self.server().app);
        let flushed = app.acks.flush(&*app.storage, &mut || true);
        let terms =
            purge::terms(&app.settings.sync, app.settings.limits.owner_past_bytes_max, app.clock.now());
        let done = flushed.and_then(|()| purge::run(&*app.storage, &terms, &mut |_, _| true));
        self.note(done.map(|_| ()).map_err(|error| format!("a purge works: {error}")));
        let check =
            self.shadows.iter_mut().try_for_each(|shadow| shadow.after_purge(&*app.storage, &app.schema));
        self.note(check);
    }

    /// `unsaid`: nobody says that the copy is one.
    fn restore(&mut self, unsaid: bool) {
        let Some((copied, schema, roles)) = self.copied.clone() else { return };
        self.owe();
        // A copy of what is there is no surprise to anybody.
        let is_same = copied.iter().zip(&self.shadows).all(|(copied, now)| copied.version == now.version);
        drop(self.server.take());
        let now = Timestamp::from_ms(self.now());
        assert!(if unsaid { self.disk.swap() } else { self.disk.restore(now) });
        self.schema_text = schema;
        self.server = Some(Server::start(self.disk.as_mut(), &self.schema_text, &self.now_ms));
        self.restores += 1;
        self.guests.iter_mut().zip(roles).for_each(|(guest, role)| guest.set(role));
        for device in &mut self.devices {
            device.tokens.clear();
            device.answered.clear();
        }
        let check = self.reload(|at, before, shadow| {
            must(copied[at].plain_rows() == shadow.plain_rows(), || {
                format!("a restore brings back what was copied: {:?}, not {:?}", copied[at].rows, shadow.rows)
            })?;
            must(shadow.version > before || (unsaid && is_same), || {
                format!("versions rise over a restore: {before} to {}", shadow.version)
            })
        });
        self.note(check);
    }

    /// Notes what devices hold clean and the server has, before it loses that.
    fn owe(&mut self) {
        for device in &self.devices[..DEVICES] {
            let (rows, Some(store)) = (&self.shadows[device.owner].rows, &device.store) else { continue };
            for (place, name) in TABLES.iter().enumerate() {
                let id = self.server.as_ref().unwrap().app.schema.table(name).unwrap().id;
                for slot in 0..SLOTS {
                    let key = slot_key(place, slot);
                    let held = store.get(name, key).unwrap().filter(|row| !row.local.is_dirty());
                    let there = rows.get(&(id, key)).filter(|row| !row.is_tombstone());
                    let (Some(held), Some(there)) = (held, there) else { continue };
                    if held.local.last_update == Some(there.last_update)
                        && !self.is_being_deleted(device.owner, place, key)
                    {
                        self.owed.insert((device.owner, place, slot));
                    }
                }
            }
        }
    }

    /// Whether a user of the owner deleted the row, and a device has still to send that.
    fn is_being_deleted(&self, owner: usize, table: usize, key: RowKey) -> bool {
        let mut devices = self.devices.iter().filter(|device| device.owner == owner);
        devices.any(|device| {
            let deleted = device.store.as_ref().map(|store| store.deleted(TABLES[table]).unwrap());
            deleted.is_none_or(|deleted| deleted.iter().any(|row| row.key == key))
        })
    }

    /// A row that somebody deletes since is owed no more. No sync may delete one by itself.
    fn forgive(&mut self, op: &Op) {
        match *op {
            Op::Delete { device, table, slot } => {
                self.owed.remove(&(self.devices[device].owner, table, slot));
            }
            // An edit of a lost state meets what the server has now. Where that wins, a deletion stays, and the edit is in
            // a conflict, which `check_edits` looks after.
            Op::Put { device, table, slot, .. } if ["ours", "manuals"].contains(&TABLES[table]) => {
                self.owed.remove(&(self.devices[device].owner, table, slot));
            }
            _ => {}
        }
        let Some(server) = &self.server else { return };
        let (app, shadows) = (&server.app, &self.shadows);
        let is_deleted = |(owner, place, slot): &(usize, usize, usize)| {
            let id = app.schema.table(TABLES[*place]).unwrap().id;
            let shadow = &shadows[*owner];
            shadow.rows.get(&(id, slot_key(*place, *slot))).is_some_and(|row| {
                row.is_tombstone()
                    && row.version.epoch() == shadow.version.epoch()
                    && row.version.counter() > 1
            })
        };
        let deleted: Vec<_> = self.owed.iter().copied().filter(is_deleted).collect();
        if matches!(op, Op::Sync { .. } | Op::Settle) && !deleted.is_empty() {
            self.note(Err(format!("no sync deletes what nobody deleted: {deleted:?}")));
        }
        self.owed.retain(|row| !deleted.contains(row));
    }

    /// What is owed is on the server, or waits on a device that says why.
    fn check_owed(&self) -> Check {
        self.owed.iter().try_for_each(|(owner, place, slot)| {
            let (name, key) = (TABLES[*place], slot_key(*place, *slot));
            let id = self.server().app.schema.table(name).unwrap().id;
            let row = self.shadows[*owner].rows.get(&(id, key));
            let is_live = row.is_some_and(|row| !row.is_tombstone());
            let waits = self.devices.iter().filter(|device| device.owner == *owner).any(|device| {
                let held = device.store.as_ref().unwrap().get(name, key).unwrap();
                held.is_some_and(|row| row.local.is_dirty() && row.error.is_some())
            });
            must(is_live || waits, || {
                format!("no row is lost that nobody deleted: {name} {key} of owner {owner}, now {row:?}")
            })
        })
    }

    fn reload(&mut self, mut each: impl FnMut(usize, Version, &Shadow) -> Check) -> Check {
        let app = Arc::clone(&self.server().app);
        for (at, shadow) in self.shadows.iter_mut().enumerate() {
            let before = shadow.reload(&*app.storage, &app.schema)?;
            each(at, before, shadow)?;
        }
        Ok(())
    }

    /// Everybody syncs over a perfect network until nothing moves. Then each device shows what the server holds.
    fn settle(&mut self) -> Check {
        self.advance(20_000); // whoever took the lock and died holds it no more
        for round in 0.. {
            let before: Vec<Version> = self.shadows.iter().map(|shadow| shadow.version).collect();
            let mut moved = false;
            for number in 0..DEVICES + GUESTS {
                let report = self.sync(number, round % 2 == 1 && number % 2 == 1, None, 1);
                if let Some(broken) = self.broken.take() {
                    return Err(broken);
                }
                if !self.is_member(number) {
                    continue;
                }
                let report = report.ok_or_else(|| format!("device {number} can sync once all is quiet"))?;
                let tally = report.tally;
                moved |= tally.taken + tally.received + tally.dropped > 0;
            }
            let after: Vec<Version> = self.shadows.iter().map(|shadow| shadow.version).collect();
            if !moved && before == after {
                break;
            }
            must(round < 8, || "devices come to rest".into())?;
        }
        let members = (0..DEVICES + GUESTS).filter(|number| self.is_member(*number));
        members.into_iter().try_for_each(|number| self.check_equal(number))?;
        self.check_owed()
    }

    fn check_equal(&self, number: usize) -> Check {
        let device = &self.devices[number];
        let (store, shadow) = (device.store.as_ref().unwrap(), &self.shadows[device.owner]);
        let schema = &self.server().app.schema;
        for name in TABLES {
            let table = schema.table(name).unwrap();
            // A column that the server got later is not told again of every row; this app knows nothing of it.
            let known = store.table(name).unwrap();
            let mut here = BTreeMap::new();
            for row in store.list(name).unwrap() {
                if row.local.is_dirty() {
                    must(row.error.is_some(), || {
                        format!("nothing waits without a reason: device {number}, {row:?}")
                    })?;
                }
                here.insert(row.key, row);
            }
            let there: BTreeMap<RowKey, &rollcall::model::Stored> = shadow
                .rows
                .iter()
                .filter(|((of, _), row)| *of == table.id && !row.is_tombstone())
                .map(|((_, key), row)| (*key, row))
                .collect();
            for (key, row) in &there {
                let mine = here.get(key);
                if mine.is_some_and(|mine| mine.local.is_dirty()) || self.is_deleted_here(number, name, *key)
                {
                    continue;
                }
                let same = mine.is_some_and(|mine| {
                    mine.local.last_update == Some(row.last_update)
                        && shown(known, &shows(table, row)) == shown(known, &mine.contents)
                });
                must(same, || {
                    format!("device {number} has the server's {name} {key}: {row:?}, not {mine:?}")
                })?;
            }
            for (key, mine) in &here {
                must(mine.local.is_dirty() || there.contains_key(key), || {
                    format!("device {number} has no ghost: {name} {key} {mine:?}")
                })?;
            }
        }
        Ok(())
    }

    /// Whether the device's user deleted the row and the server refuses to.
    fn is_deleted_here(&self, number: usize, table: &str, key: RowKey) -> bool {
        let store = self.devices[number].store.as_ref().unwrap();
        store.rejected().unwrap().iter().any(|(of, which, _)| of == table && *which == key)
    }

    pub fn device_time(&self, number: usize) -> String {
        // Never beyond now: a clock that is ahead and does not say so cannot be told from a later edit.
        let skew = self.devices[number].skew_ms.load(Ordering::SeqCst).min(0);
        Timestamp::from_ms(self.now() + skew).format(Precision::Milliseconds).to_string()
    }
}

pub const TABLES: [&str; 6] = ["lists", "items", "tallies", "ours", "theirs", "manuals"];

/// Some columns of a table, without its title.
pub fn columns(table: &str, rng: &mut Rng) -> Map<String, Json> {
    let mut columns = Map::new();
    let mut put = |name: &str, value: Json| {
        columns.insert(name.to_owned(), value);
    };
    match table {
        "lists" => put("colour", json!(rng.among(&["red", "blue"]))),
        "items" => {
            if rng.often(400) {
                let list = slot_key(0, rng.below(SLOTS as u64) as usize);
                put("list", if rng.often(500) { json!(list) } else { Json::Null });
            }
            put("n", json!(rng.below(9)));
        }
        "tallies" => {
            for name in ["n", "high", "low"] {
                if rng.often(500) {
                    put(name, json!(rng.below(9)));
                }
            }
            if rng.often(300) {
                let (first, length) = (rng.below(3), rng.below(3));
                put("tags", json!((first..first + length).collect::<Vec<_>>()));
            }
            if rng.often(300) {
                put("body", json!(rng.below(4).to_string()));
            }
        }
        _ => put("body", json!(rng.below(4).to_string())),
    }
    columns
}

fn device_clock(now_ms: &Arc<AtomicI64>, skew_ms: &Arc<AtomicI64>) -> rollcall::clock::Clock {
    let (server, skew_ms) = (clock(now_ms), Arc::clone(skew_ms));
    rollcall::clock::Clock::from_fn(move || server.now().shifted(skew_ms.load(Ordering::SeqCst)))
}

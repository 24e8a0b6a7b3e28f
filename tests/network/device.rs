//! A device: the reference device on a thread of its own, which runs only while the simulation waits for it.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use rollcall::device::{
    NoResponse, Options, Proof, Remote, Request, Response, RetryPolicy, Store, SyncError, SyncMode,
    SyncReport, sync,
};
use rollcall::model::Version;
use serde_json::json;
use tokio::time::sleep;

use crate::guests::{Before, is_of_members, membership};
use crate::rng::Rng;
use crate::truth::{Check, must};
use crate::wire::Wire;
use crate::world::{DEVICES, Device, SLOTS, TABLES, World, columns, slot_key, store};

/// What a device wants of the world.
enum Wish {
    Ask(Request),
    Pause(Duration),
}

/// What it gets.
enum Granted {
    Response(Result<Response, NoResponse>),
    Time,
}

/// A lifetime of the device on the simulated network: it does what its thread requests.
pub async fn run(world: Arc<World>, number: usize) {
    let device = Arc::clone(&world.devices[number]);
    let life = device.lives.fetch_add(1, Ordering::SeqCst);
    let mut rng = Rng(world.seed ^ (number as u64 + 1) << 32 ^ life << 40);
    let mut wire = Wire::new(&world, &device, Rng(rng.next()));
    let (wish, wishes) = channel();
    let (grant, granted) = channel();
    let watched = Arc::clone(&world);
    let thread = std::thread::spawn(move || live(&world, &device, rng, Rc::new(Heart { wish, granted })));
    // Dropped after the channels, however this ends: then the thread ends as well, and nothing runs beside the world.
    let _ends = Ends(watched, Some(thread));
    let (wishes, grant) = (wishes, grant);
    while let Ok(wish) = wishes.recv() {
        let granted = match wish {
            Wish::Ask(request) => Granted::Response(wire.ask(&request).await),
            Wish::Pause(time) => {
                sleep(time).await;
                Granted::Time
            }
        };
        if grant.send(granted).is_err() {
            break;
        }
    }
}

struct Ends(Arc<World>, Option<JoinHandle<()>>);

impl Drop for Ends {
    fn drop(&mut self) {
        if let Some(Err(panic)) = self.1.take().map(JoinHandle::join) {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            self.0.note(Err(format!("nothing panics: a device: {}", text.unwrap_or_default())));
        }
    }
}

/// The device's side of the channel. Nothing arrives once the device has died.
pub struct Heart {
    wish: Sender<Wish>,
    granted: Receiver<Granted>,
}

impl Heart {
    /// Returns whether the device is still alive.
    fn pause(&self, ms: u64) -> bool {
        let wished = self.wish.send(Wish::Pause(Duration::from_millis(ms)));
        wished.is_ok() && self.granted.recv().is_ok()
    }

    pub fn ask(&self, request: &Request) -> Result<Response, NoResponse> {
        let wished = self.wish.send(Wish::Ask(request.clone()));
        match wished.ok().and_then(|()| self.granted.recv().ok()) {
            Some(Granted::Response(answer)) => answer,
            _ => Err(NoResponse("the app has died".into())),
        }
    }
}

struct Link(Rc<Heart>);

impl Remote for Link {
    fn send(&mut self, request: &Request) -> Result<Response, NoResponse> {
        self.0.ask(request)
    }
}

fn live(world: &World, device: &Device, mut rng: Rng, heart: Rc<Heart>) {
    let mut file = store(device);
    file.set_token(&device.token()).unwrap();
    loop {
        let longest = if world.is_quiet() { 300 } else { *rng.among(&[100, 1_000, 4_000]) };
        if !heart.pause(1 + rng.below(longest)) {
            return;
        }
        let is_quiet = world.is_quiet();
        if !is_quiet {
            for _ in 0..rng.below(4) {
                edit(world, device, &mut file, &mut rng);
            }
            meddle(device, &mut rng, &heart);
            membership(world, device, &mut rng, &heart);
        }
        let way = if rng.often(400) { SyncMode::Manifest } else { SyncMode::Cursor };
        if !is_quiet && device.guest.is_none() && rng.often(30) {
            stranger(world, device, &mut file, &mut rng, &heart, way);
        }
        let moves = || world.database.truth.lock().moves;
        let before = moves();
        let report = sync_once(world, device, &mut file, &mut rng, &heart, way);
        let tally = report.map(|report| report.tally);
        let moved = tally.map(|tally| tally.taken + tally.received + tally.dropped);
        let rests = moved.map_or(!world.is_member(device), |moved| moved == 0);
        *device.rests.lock() = (is_quiet && rests && before == moves()).then_some(before);
    }
}

fn edit(world: &World, device: &Device, file: &mut Store, rng: &mut Rng) {
    let (table, slot) = (rng.below(TABLES.len() as u64) as usize, rng.below(SLOTS as u64) as usize);
    let (name, key) = (TABLES[table], slot_key(table, slot));
    if rng.often(200) {
        // A row that is not there cannot be deleted.
        if file.delete(name, key).is_ok() {
            device.tokens.lock().remove(&(table, slot));
            let id = (world.schema.table(name).unwrap().id, key);
            world.database.truth.lock().owed.remove(&(device.owner, id));
        }
        return;
    }
    let mut columns = columns(table, rng);
    if rng.often(500) || file.get(name, key).unwrap().is_none() {
        let token = world.token(device);
        columns.insert("title".into(), json!(token));
        device.tokens.lock().insert((table, slot), token);
    }
    let columns = columns.into_iter().map(|(name, value)| (name, value.into())).collect();
    file.put(name, key, &columns).unwrap();
}

/// What apps do apart from syncing: they take the lock and hold it for long, or break another device's.
fn meddle(device: &Device, rng: &mut Rng, heart: &Heart) {
    let ask = |method, path: &str| {
        let headers = vec![("authorization", format!("Bearer {}", device.token()))];
        let joint = if path.contains('?') { '&' } else { '?' };
        let of_guest = device.guest.map(|_| format!("{path}{joint}owner={}", device.owner));
        let path = of_guest.unwrap_or_else(|| path.to_owned());
        heart.ask(&Request { method, path, headers, body: None })
    };
    match rng.below(100) {
        0..4 => {
            let _ = ask("POST", "lock");
            // It may die while it waits, and is then silent for a while.
            heart.pause(rng.below(6_000));
        }
        4..6 => drop(ask("DELETE", "lock?break=true")),
        _ => {}
    }
}

/// The app uses a token of another user: no row is sent either way.
fn stranger(
    world: &World,
    device: &Device,
    file: &mut Store,
    rng: &mut Rng,
    heart: &Rc<Heart>,
    way: SyncMode,
) {
    if file.bound().unwrap().is_none() {
        return;
    }
    file.set_token(&world.devices[(device.number + 1) % DEVICES].token()).unwrap();
    let done = sync_with(file, rng, heart, way);
    file.set_token(&device.token()).unwrap();
    let result = done.as_ref().map_or_else(ToString::to_string, |report| format!("{report:?}"));
    world.tell(format!("device {} comes with another user's token", device.number));
    // It may not come through at all.
    let refused = matches!(done, Err(SyncError::OtherUser | SyncError::Call(_) | SyncError::Restless));
    world.note(must(refused, || {
        format!("no device syncs with another user's token: device {}, {result}", device.number)
    }));
}

/// One sync. Whatever it ends in, it must have kept the promises on the way.
fn sync_once(
    world: &World,
    device: &Device,
    file: &mut Store,
    rng: &mut Rng,
    heart: &Rc<Heart>,
    way: SyncMode,
) -> Option<SyncReport> {
    world.syncs.fetch_add(1, Ordering::SeqCst);
    let restores = world.database.restores();
    let before = Before::of(world, device);
    let done = sync_with(file, rng, heart, way);
    if let Some(before) = before {
        world.note(before.check(world, device, file, &done));
    }
    world.note(check_edits(world, device, file, done.as_ref().ok()));
    let result = done.as_ref().map_or_else(ToString::to_string, |report| format!("{:?}", report.proof));
    world.tell(format!("device {} has synced: {result}", device.number));
    match done {
        Ok(report) => {
            // A server that was put back to a copy without the owner draws another seed for it. If nothing had been
            // written, nothing else is there to notice that by.
            let is_new = |version: Version| version.counter() <= 1;
            let version = world.database.truth.lock().owners.get(&device.owner).and_then(|data| data.version);
            let was_new = device.saw_nothing.swap(version.is_none_or(is_new), Ordering::SeqCst);
            let is_restored = device.restores.swap(restores, Ordering::SeqCst) < world.database.restores();
            // Digests from before a restore prove nothing about the time after it.
            let proved = device.guest.is_some()
                || !matches!(report.proof, Proof::Repaired | Proof::Unequal(_))
                || restores != world.database.restores()
                || (was_new && is_restored);
            world.note(must(proved, || {
                format!("a sync leaves both sides equal: device {}, {:?}", device.number, report.proof)
            }));
            Some(report)
        }
        Err(error) => {
            let expected = matches!(error, SyncError::Call(_) | SyncError::Restless) || is_of_members(&error);
            world
                .note(must(expected, || format!("a sync ends as it may: device {}: {error}", device.number)));
            None
        }
    }
}

/// A sync over the simulated network.
fn sync_with(
    file: &mut Store,
    rng: &mut Rng,
    heart: &Rc<Heart>,
    way: SyncMode,
) -> Result<SyncReport, SyncError> {
    let (waits, mut draws) = (Rc::clone(heart), Rng(rng.next()));
    let mut patience = RetryPolicy {
        attempts_max: 4,
        lock_wait_max_ms: 20_000,
        pause: Box::new(move |pause| {
            waits.pause(pause.as_millis() as u64);
        }),
        random: Box::new(move || draws.next()),
    };
    let options = Options { mode: Some(way), ..Options::default() };
    let mut link = Link(Rc::clone(heart));
    sync(file, &mut link, &mut patience, options, &mut |_| {})
}

/// No edit of a user vanishes: what no longer waits was written, or is recorded as lost.
fn check_edits(world: &World, device: &Device, file: &Store, report: Option<&SyncReport>) -> Check {
    let truth = world.database.truth.lock();
    let seen = truth.owners.get(&device.owner).map(|data| &data.seen);
    let mut vanished = None;
    device.tokens.lock().retain(|(table, slot), token| {
        let (name, key) = (TABLES[*table], slot_key(*table, *slot));
        let waits = file.get(name, key).unwrap().is_some_and(|row| row.local.is_dirty());
        let lost = report
            .is_none_or(|report| report.tally.lost.iter().any(|(of, which)| of == name && *which == key));
        if !waits && !lost && !seen.is_some_and(|seen| seen.contains(token)) {
            vanished =
                Some(format!("no edit vanishes: {token} of device {} in {name} {slot}", device.number));
        }
        waits
    });
    vanished.map_or(Ok(()), Err)
}

//! What befalls the network, the servers and the devices of one run, and how the run ends.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rollcall::http::threads;
use rollcall::model::Timestamp;
use rollcall::purge;
use rollcall::storage::PurgeTerms;
use turmoil::{Builder, Sim};

use crate::rng::Rng;
use crate::truth::{Check, must};
use crate::world::{ALL, DEVICES, LEASE_MS, OWNERS, SERVERS, Server, World, check_equal, pace};
use crate::{PANICKED, device};

/// How far time moves at once: messages and deadlines come at these moments.
const STEP_MS: u64 = 4;
/// How long there is trouble, and how long it may then take until all is equal and nothing moves.
const TROUBLE_MS: i64 = 45_000;
const REST_MS: i64 = 6 * LEASE_MS as i64;

/// What ends a trouble.
#[derive(Clone, Copy)]
enum Heal {
    /// Messages between the two pass again; those that were held arrive.
    Link(usize, usize),
    Latency(usize, usize),
    Server(usize),
    Device(usize),
    Database(usize),
}

pub struct Run {
    pub world: Arc<World>,
    sim: Sim<'static>,
    rng: Rng,
    heals: BTreeMap<i64, Vec<Heal>>,
    /// How much befalls each way between a device and a server.
    troubled: BTreeMap<(usize, usize), usize>,
    fail_rate: f64,
}

impl Run {
    pub fn new(seed: u64) -> Self {
        let mut rng = Rng(seed);
        let world = World::new(rng.next());
        threads::simulate(pace(&world, Rng(rng.next())));
        let fail_rate = *rng.among(&[0.0, 0.002, 0.01]);
        let mut builder = Builder::new();
        builder
            .rng_seed(rng.next())
            .tick_duration(Duration::from_millis(STEP_MS))
            .simulation_duration(Duration::from_secs(3_600))
            .min_message_latency(Duration::from_millis(1))
            .max_message_latency(Duration::from_millis(60))
            .fail_rate(fail_rate)
            .repair_rate(0.3)
            .tcp_capacity(1_024)
            .enable_random_order();
        let mut sim = builder.build();
        for server in 0..SERVERS {
            let skew = rng.below(60) as i64 - 30;
            let world = Arc::clone(&world);
            sim.host(format!("server-{server}"), move || {
                let world = Arc::clone(&world);
                async move {
                    world.serve(server, skew).await;
                    Ok(())
                }
            });
        }
        for number in 0..ALL {
            let world = Arc::clone(&world);
            sim.host(format!("device-{number}"), move || {
                let world = Arc::clone(&world);
                async move {
                    device::run(world, number).await;
                    Ok(())
                }
            });
        }
        Self { world, sim, rng, heals: BTreeMap::new(), troubled: BTreeMap::new(), fail_rate }
    }

    /// Runs it to its end; returns what failed.
    pub fn run(&mut self) -> Check {
        let begun = self.world.now();
        let mut next = begun;
        while self.world.now() < begun + TROUBLE_MS {
            if self.world.now() >= next {
                self.trouble();
                next = self.world.now() + 50 + self.rng.below(1_500) as i64;
            }
            self.step()?;
        }
        self.quiet();
        let quiet = self.world.now();
        while !self.rests() {
            self.step()?;
            let tired = self.world.now() - quiet;
            must(tired < REST_MS, || {
                let rests = self.world.devices.iter().map(|device| *device.rests.lock());
                format!("devices come to rest: not within {tired} ms: {:?}", rests.collect::<Vec<_>>())
            })?;
        }
        (0..ALL).for_each(|number| self.sim.crash(format!("device-{number}")));
        self.check()
    }

    /// Whether every device has synced since anything moved.
    fn rests(&self) -> bool {
        let moves = self.world.database.truth.lock().moves;
        self.world.devices.iter().all(|device| *device.rests.lock() == Some(moves))
    }

    fn step(&mut self) -> Check {
        let now = self.world.now();
        while let Some(entry) = self.heals.first_entry().filter(|entry| *entry.key() <= now) {
            for heal in entry.remove() {
                self.heal(heal);
            }
        }
        let stepped = self.sim.step().map_err(|error| format!("nothing panics: {error}"));
        self.world.now_ms.fetch_add(STEP_MS as i64, Ordering::SeqCst);
        stepped?;
        if let Some(result) = PANICKED.take() {
            return Err(format!("nothing panics: {result}"));
        }
        self.world.database.broken.lock().take().map_or(Ok(()), Err)
    }

    fn heal_in(&mut self, ms: u64, heal: Heal) {
        if let Heal::Link(number, server) = heal {
            *self.troubled.entry((number, server)).or_default() += 1;
        }
        self.heals.entry(self.world.now() + ms as i64).or_default().push(heal);
    }

    fn trouble(&mut self) {
        let (server, number) = (self.rng.below(SERVERS as u64) as usize, self.rng.below(ALL as u64) as usize);
        let (at, of) = (format!("server-{server}"), format!("device-{number}"));
        let lasts = *self.rng.among(&[100, 1_000, 3_000, 8_000]);
        let ms = 1 + self.rng.below(lasts);
        match self.rng.below(120) {
            0..12 => {
                self.world.tell(format!("no message passes between {of} and {at} for {ms} ms"));
                self.sim.partition(of, at);
                self.heal_in(ms, Heal::Link(number, server));
            }
            12..24 => {
                let (from, to) = if self.rng.often(500) { (of, at) } else { (at, of) };
                self.world.tell(format!("no message passes from {from} to {to} for {ms} ms"));
                self.sim.partition_oneway(from, to);
                self.heal_in(ms, Heal::Link(number, server));
            }
            24..34 => {
                self.world.tell(format!("messages between {of} and {at} are held up for {ms} ms"));
                self.sim.hold(of, at);
                self.heal_in(ms, Heal::Link(number, server));
            }
            34..44 => {
                self.world.tell(format!("the way between {of} and {at} takes up to {ms} ms"));
                self.sim.set_link_max_message_latency(of, at, Duration::from_millis(ms));
                self.heal_in(5_000, Heal::Latency(number, server));
            }
            44..50 => {
                self.world.tell(format!("nobody reaches {at} for {ms} ms"));
                for number in 0..ALL {
                    self.sim.partition(format!("device-{number}"), at.clone());
                    self.heal_in(ms, Heal::Link(number, server));
                }
            }
            50..58 => {
                self.world.tell(format!("{at} is told to stop, for {ms} ms"));
                if let Some(life) = self.world.server(server) {
                    life.stop.notify_one();
                }
                self.heal_in(ms, Heal::Server(server));
            }
            58..68 => {
                self.world.tell(format!("{at} dies, for {ms} ms"));
                let links: Vec<_> = (0..ALL).map(|number| (number, server)).collect();
                self.die(&at, &links);
                self.heal_in(ms, Heal::Server(server));
            }
            68..78 => {
                self.world.tell(format!("{at} does not reach the database for {ms} ms"));
                if let Some(life) = self.world.server(server) {
                    life.line.cut.store(true, Ordering::SeqCst);
                }
                self.heal_in(ms, Heal::Database(server));
            }
            78..92 => {
                self.world.tell(format!("{of} dies, for {ms} ms"));
                let links: Vec<_> = (0..SERVERS).map(|server| (number, server)).collect();
                self.die(&of, &links);
                self.heal_in(ms, Heal::Device(number));
            }
            92..100 => self.purge(server),
            100..107 => {
                self.world.tell("a copy of the database is made");
                self.world.database.back_up();
            }
            107..115 => self.restore(ms),
            _ => self.copy_phone(number, ms),
        }
    }

    /// A host dies, and its sockets send a close; the seed does not determine their order, so nothing random
    /// is drawn meanwhile.
    fn die(&mut self, host: &str, links: &[(usize, usize)]) {
        let ends =
            |(number, server): (usize, usize)| (format!("device-{number}"), format!("server-{server}"));
        let is_sound = |link: &(usize, usize)| self.troubled.get(link).is_none_or(|troubles| *troubles == 0);
        let (sound, broken): (Vec<_>, Vec<_>) = links.iter().copied().partition(is_sound);
        self.sim.set_fail_rate(0.0);
        for (of, at) in broken.into_iter().map(ends) {
            self.sim.partition(of, at);
        }
        for (of, at) in sound.iter().copied().map(ends) {
            self.sim.hold(of, at);
        }
        self.sim.crash(host);
        for (of, at) in sound.into_iter().map(ends) {
            self.sim.release(of, at);
        }
        self.sim.set_fail_rate(self.fail_rate);
    }

    fn heal(&mut self, heal: Heal) {
        match heal {
            Heal::Link(number, server) => {
                let (of, at) = (format!("device-{number}"), format!("server-{server}"));
                self.sim.release(of, at);
                let troubles = self.troubled.entry((number, server)).or_default();
                *troubles = troubles.saturating_sub(1);
            }
            Heal::Latency(number, server) => {
                let (of, at) = (format!("device-{number}"), format!("server-{server}"));
                self.sim.set_link_max_message_latency(of, at, Duration::from_millis(60));
            }
            Heal::Server(server) => {
                let at = format!("server-{server}");
                let stops = self.world.server(server).is_some_and(|life| life.app.draining.is_set());
                if !self.sim.is_host_running(at.clone()) {
                    self.sim.bounce(at);
                } else if stops {
                    self.heal_in(100, heal); // it has requests to end
                }
            }
            Heal::Device(number) => {
                let of = format!("device-{number}");
                if !self.sim.is_host_running(of.clone()) {
                    self.sim.bounce(of);
                }
            }
            Heal::Database(server) => {
                if let Some(life) = self.world.server(server) {
                    life.line.cut.store(false, Ordering::SeqCst);
                }
            }
        }
    }

    /// Every server stops, and the database is put back to its copy.
    fn restore(&mut self, ms: u64) {
        if !self.world.database.has_copy() {
            return;
        }
        let unsaid = self.rng.often(300);
        self.world.tell(format!("the database is put back; nobody says so: {unsaid}"));
        for server in 0..SERVERS {
            let links: Vec<_> = (0..ALL).map(|number| (number, server)).collect();
            let at = format!("server-{server}");
            // A server that stopped by itself may leave tasks, which end only with its next lifetime.
            if !self.sim.is_host_running(at.clone()) {
                self.sim.bounce(at.clone());
            }
            self.die(&at, &links);
            self.heal_in(ms, Heal::Server(server));
        }
        self.world.owe();
        self.world.forget_servers();
        self.world.note(self.world.database.put_back(unsaid));
    }

    /// A phone is set up from the backup of another of the same user: it gets its file, and loses its own.
    fn copy_phone(&mut self, number: usize, ms: u64) {
        let number = number % DEVICES;
        let from = (number + OWNERS) % DEVICES;
        self.world.tell(format!("device {number} is set up from a backup of device {from}"));
        let links: Vec<_> = (0..SERVERS).map(|server| (number, server)).collect();
        self.die(&format!("device-{number}"), &links);
        self.world.copy_phone(from, number);
        self.heal_in(ms, Heal::Device(number));
    }

    /// Forgets what is some seconds old, as if it were months.
    fn purge(&mut self, server: usize) {
        let Some(Server { app, .. }) = self.world.server(server) else { return };
        let ago = |ms: i64| Timestamp::from_ms(self.world.now() - ms);
        let terms = PurgeTerms {
            now: ago(0),
            tombstones_before: ago(5_000),
            devices_before: ago(20_000),
            conflicts_before: ago(10_000),
            responses_before: ago(86_400_000),
            past_bytes_max: 0,
        };
        // It may fail where the database cannot be reached.
        let flushed = app.acks.flush(&*app.storage, &mut || true);
        let purged = flushed.and_then(|()| purge::run(&*app.storage, &terms, &mut |_, _| true));
        self.world.tell(format!("server {server} forgets what is old: {}", purged.is_ok()));
    }

    /// All trouble ends.
    fn quiet(&mut self) {
        self.world.tell("all is quiet");
        self.world.quiet.store(true, Ordering::SeqCst);
        self.world.database.calm();
        self.fail_rate = 0.0;
        self.sim.set_fail_rate(0.0);
        for server in 0..SERVERS {
            self.heal(Heal::Server(server));
            self.heal(Heal::Database(server));
            for number in 0..ALL {
                self.heal(Heal::Link(number, server));
                self.heal(Heal::Latency(number, server));
            }
        }
        (0..ALL).for_each(|number| self.heal(Heal::Device(number)));
    }

    /// What holds in the end: the database is what was committed, and every device is what the database is.
    fn check(&self) -> Check {
        let database = &self.world.database;
        for owner in self.world.devices.iter().map(|device| device.owner) {
            let (state, rows) = database.held(owner);
            let truth = database.truth.lock();
            truth.check_held(owner, state, &rows)?;
            let result = database.engine().read(owner, |txn| txn.digests()).unwrap();
            if let Some(data) = truth.owners.get(&owner) {
                for (table, digest) in self.world.schema.tables().iter().zip(result) {
                    let sum = data.digest(table.id);
                    must(sum == digest, || {
                        format!("digests are the sum of the rows: {sum:?}, not {digest:?}")
                    })?;
                }
            }
        }
        let members = self.world.devices.iter().filter(|device| self.world.is_member(device));
        members.into_iter().try_for_each(|device| check_equal(&self.world, device))?;
        self.world.check_owed()
    }
}

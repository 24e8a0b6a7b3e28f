//! Servers over a real Citus cluster, under load: shards move, servers and nodes end, and nothing that was acknowledged
//! is lost. Runs with `ROLLCALL_TEST_CITUS` only (see `testkit/src/pg.rs`).
//!
//! `ROLLCALL_TEST_CITUS_NODE` is a command that stops and starts nodes, called with a port and `stop`, `start`, `freeze` or
//! `thaw`; without it no node ends. `ROLLCALL_TEST_CITUS_ROUNDS` is how many shards move (10).

use rollcall_testkit::pg;
use rollcall_testkit::process;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use postgres::NoTls;
use process::{Client, Process, bearer, call, log_in, rollcall};
use rollcall::digest::{Digest, Seed};
use rollcall::model::{RowKey, Timestamp};
use serde_json::{Value, json};
use uuid::Uuid;

const SCHEMA: &str = "fixtures/wedding/schema.toml";
const PASSWORD: &str = "something borrowed";
const OWNERS: usize = 32;
const DEVICES_PER_OWNER: usize = 2;

/// The longest that a request may take while a node is away: `busy_wait_ms`, and what a loaded machine adds.
const BUSY_WITHIN: Duration = Duration::from_millis(6_000);
/// The same of `request_s`.
const REQUEST_WITHIN: Duration = Duration::from_secs(40);

fn serve(database: &str) -> Command {
    let mut command = rollcall();
    command.args(["serve", "--schema", SCHEMA, "--listen", "127.0.0.1:0", "--log", "error"]);
    command.args(["--database", database, "--lease-ms", "2000"]);
    command.args(["--logins-per-account-per-min", "0", "--logins-per-address-per-min", "0"]);
    command
}

fn register(address: SocketAddr, email: &str) {
    let body = json!({ "email": email, "password": PASSWORD });
    assert_eq!(call(address, "POST /register", None, Some(&body)).status, 201);
}

/// A device, and what it was promised.
struct Device {
    token: String,
    owner: usize,
    /// Keys that it has added or edited last: the title that stands there, and the version.
    acknowledged: Mutex<BTreeMap<String, (String, u64)>>,
    /// Requests that were answered.
    done: AtomicUsize,
    refused: AtomicUsize,
    slowest_ms: AtomicUsize,
}

/// The servers of now; what is `None` has just been killed.
struct Stage {
    servers: Mutex<Vec<Option<Process>>>,
    addresses: Mutex<Vec<Option<SocketAddr>>>,
    database: String,
    stop: AtomicBool,
}

impl Stage {
    fn start(database: &str) -> Self {
        let mut servers: Vec<_> = (0..3).map(|_| Process::start(&mut serve(database))).collect();
        let addresses = servers.iter_mut().map(|server| Some(server.address())).collect();
        Self {
            servers: Mutex::new(servers.into_iter().map(Some).collect()),
            addresses: Mutex::new(addresses),
            database: database.to_owned(),
            stop: AtomicBool::new(false),
        }
    }

    fn address(&self, turn: usize) -> Option<SocketAddr> {
        let addresses = self.addresses.lock().unwrap();
        addresses[turn % addresses.len()]
    }

    fn any(&self) -> SocketAddr {
        self.addresses.lock().unwrap().iter().flatten().next().copied().unwrap()
    }

    fn kill(&self, place: usize) {
        self.addresses.lock().unwrap()[place] = None;
        self.servers.lock().unwrap()[place].take().unwrap().kill();
        let mut server = Process::start(&mut serve(&self.database));
        let address = server.address();
        self.servers.lock().unwrap()[place] = Some(server);
        self.addresses.lock().unwrap()[place] = Some(address);
    }

    fn freeze(&self, place: usize, pause: Duration) {
        let signal = |name| self.servers.lock().unwrap()[place].as_ref().unwrap().signal(name);
        let address = self.addresses.lock().unwrap()[place].take();
        signal("-STOP");
        std::thread::sleep(pause);
        signal("-CONT");
        self.addresses.lock().unwrap()[place] = address;
    }
}

impl Device {
    /// Adds rows, and edits its own, until all stops; it sends each request again until it is answered.
    fn run(&self, n: usize, stage: &Stage) {
        let (mut turn, mut mine) = (n, Vec::<String>::new());
        while !stage.stop.load(Ordering::SeqCst) {
            let edit = mine.len() > 4 && turn % 2 == 0;
            let key = if edit { mine[turn % mine.len()].clone() } else { Uuid::now_v7().to_string() };
            let title = Uuid::now_v7().to_string();
            let rows = json!({ "todo": [{ "id": key, "title": title }] });
            let body = if edit { json!({ "update": rows }) } else { json!({ "add": rows }) };
            match self.ask(&mut turn, stage, &body) {
                Some(version) => {
                    self.acknowledged.lock().unwrap().insert(key.clone(), (title, version));
                    if !edit {
                        mine.push(key);
                    }
                }
                // Nobody knows which of two edits stands.
                None => drop(self.acknowledged.lock().unwrap().remove(&key)),
            }
        }
    }

    /// Sends one request until it is acknowledged; returns the version. `None` if all stopped before.
    fn ask(&self, turn: &mut usize, stage: &Stage, body: &Value) -> Option<u64> {
        let once = format!("idempotency-key: {}", Uuid::now_v7());
        let headers = [bearer(&self.token), once, "prefer: wait=10".to_owned()];
        let (text, begun) = (body.to_string(), Instant::now());
        loop {
            if begun.elapsed() > Duration::from_secs(2) && stage.stop.load(Ordering::SeqCst) {
                return None; // what became of it is not known
            }
            assert!(begun.elapsed() < Duration::from_secs(150), "owner {} gets no answer", self.owner);
            *turn += 1;
            let Some(address) = stage.address(*turn) else {
                std::thread::sleep(Duration::from_millis(5));
                continue;
            };
            let asked = Instant::now();
            let answered = Client::connect(address)
                .and_then(|mut to| to.call("POST /synchronise", &headers, Some(&text)));
            let ms = asked.elapsed().as_millis() as usize;
            match answered {
                Ok(answer) if answer.status == 200 => {
                    let told = answer.json();
                    self.done.fetch_add(1, Ordering::SeqCst);
                    return told["version"].as_u64();
                }
                Ok(answer) => {
                    assert!([503, 423].contains(&answer.status), "{} {}", answer.status, answer.text());
                    if answer.status == 503 {
                        self.refused.fetch_add(1, Ordering::SeqCst);
                        self.slowest_ms.fetch_max(ms, Ordering::SeqCst);
                    }
                    std::thread::sleep(Duration::from_millis(50));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }
}

/// The cluster, past the servers.
struct Cluster(String);

impl Cluster {
    fn client(&self) -> pg::Client {
        let begun = Instant::now();
        loop {
            match pg::Client::connect(&self.0, NoTls) {
                Ok(client) => return client,
                Err(error) => assert!(begun.elapsed() < Duration::from_secs(60), "{error}"),
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Moves the n-th shard to another worker, beside writers: copied while writers wait, or replicated first.
    fn move_shard(&self, n: usize) -> Result<(), postgres::Error> {
        let mut client = self.client();
        let shards = "SELECT shardid, nodename, nodeport FROM citus_shards WHERE table_name = \
                      'rollcall_owner'::regclass ORDER BY shardid";
        let shards = client.query(shards, &[])?;
        let shard = &shards[n % shards.len()];
        let (id, host, port): (i64, String, i32) = (shard.get(0), shard.get(1), shard.get(2));
        let other = "SELECT nodename, nodeport FROM pg_dist_node WHERE shouldhaveshards AND nodeport <> $1 \
                     ORDER BY nodeport OFFSET $2 LIMIT 1";
        let other = client.query_one(other, &[&port, &((n % 2) as i64)])?;
        let (to_host, to_port): (String, i32) = (other.get(0), other.get(1));
        let mode = ["block_writes", "force_logical"][n % 2];
        let moved = format!("SELECT citus_move_shard_placement($1, $2, $3, $4, $5, '{mode}')");
        client.execute(&moved, &[&id, &host, &port, &to_host, &to_port]).map(drop)
    }

    fn workers(&self) -> Vec<i32> {
        let workers = "SELECT nodeport FROM pg_dist_node WHERE shouldhaveshards ORDER BY nodeport";
        self.client().query(workers, &[]).unwrap().iter().map(|row| row.get(0)).collect()
    }

    fn coordinator(&self) -> i32 {
        let port = "SELECT nodeport FROM pg_dist_node WHERE groupid = 0";
        self.client().query_one(port, &[]).unwrap().get(0)
    }

    /// The owners who live on the node of that port.
    fn owners_at(&self, port: i32) -> BTreeSet<Uuid> {
        let mut client = self.client();
        let owners = client.query("SELECT owner FROM rollcall_owner", &[]).unwrap();
        let place = "SELECT n.nodeport FROM pg_dist_placement p JOIN pg_dist_node n USING (groupid) \
                     WHERE p.shardid = get_shard_id_for_distribution_column('rollcall_owner', $1::uuid)";
        let owners = owners.iter().map(|row| row.get::<_, Uuid>(0));
        owners.filter(|owner| client.query_one(place, &[owner]).unwrap().get::<_, i32>(0) == port).collect()
    }

    /// The digest of an owner's rows, counted anew.
    fn counted(&self, owner: Uuid) -> Value {
        let mut client = self.client();
        let seed = client.query_one("SELECT seed FROM rollcall_owner WHERE owner = $1", &[&owner]).unwrap();
        let seed = Seed(seed.get::<_, Vec<u8>>(0).try_into().unwrap());
        let rows = "SELECT key, last_update FROM rollcall_ledger WHERE owner = $1 AND NOT deleted";
        let mut digest = Digest::default();
        for row in client.query(rows, &[&owner]).unwrap() {
            digest.add(seed.row(RowKey(row.get(0)), Timestamp::from_ms(row.get(1))));
        }
        json!({ "count": digest.count, "root": format!("{:016x}", digest.root) })
    }
}

/// Has the command given do something to a node; `false` if there is none.
fn node(port: i32, what: &str) -> bool {
    let Ok(command) = std::env::var("ROLLCALL_TEST_CITUS_NODE") else { return false };
    let done = Command::new("sh").args(["-c", &format!("{command} {port} {what}")]).output().unwrap();
    assert!(done.status.success(), "{command} {port} {what}: {}", String::from_utf8_lossy(&done.stderr));
    true
}

/// A cluster with a stage and devices; `None` without one.
fn ground() -> Option<(pg::Database, Stage, Vec<Device>)> {
    pg::citus_url()?;
    let database = pg::cluster().unwrap().database();
    Process::start(&mut serve(&database.url)).address();
    let distributed =
        rollcall().args(["distribute", "--schema", SCHEMA, "--database", &database.url, "--apply"]).output();
    let distributed = distributed.unwrap();
    assert!(distributed.status.success(), "{}", String::from_utf8_lossy(&distributed.stderr));
    let stage = Stage::start(&database.url);
    let mut devices = Vec::new();
    for owner in 0..OWNERS {
        let email = format!("{owner}@example.com");
        register(stage.any(), &email);
        for device in 0..DEVICES_PER_OWNER {
            devices.push(Device {
                token: log_in(stage.any(), &email, PASSWORD, &device.to_string()),
                owner,
                acknowledged: Mutex::default(),
                done: AtomicUsize::new(0),
                refused: AtomicUsize::new(0),
                slowest_ms: AtomicUsize::new(0),
            });
        }
    }
    Some((database, stage, devices))
}

/// Runs all devices while `work` does something else; then everybody gets through once more.
fn under_load(stage: &Stage, devices: &[Device], work: impl FnOnce()) {
    /// Lets the devices stop, also where something is found to be wrong.
    struct Stop<'a>(&'a Stage);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.stop.store(true, Ordering::SeqCst);
        }
    }
    std::thread::scope(|scope| {
        let _stop = Stop(stage);
        for (n, device) in devices.iter().enumerate() {
            scope.spawn(move || device.run(n, stage));
        }
        work();
        let before: Vec<_> = devices.iter().map(|device| device.done.load(Ordering::SeqCst)).collect();
        let begun = Instant::now();
        while devices
            .iter()
            .zip(&before)
            .any(|(device, before)| device.done.load(Ordering::SeqCst) == *before)
        {
            assert!(begun.elapsed() < Duration::from_secs(120), "not everybody gets through again");
            std::thread::sleep(Duration::from_millis(20));
        }
    });
}

/// What was acknowledged is there, no two writes had one version, and all devices are told the same.
fn judge(cluster: &Cluster, stage: &Stage, devices: &[Device]) {
    let (mut lost, mut all, mut doubled, mut digests_differ) = (Vec::new(), 0, 0, 0);
    for owner in 0..OWNERS {
        let own: Vec<_> = devices.iter().filter(|device| device.owner == owner).collect();
        let full = call(stage.any(), "GET /changes?limit=5000", Some(&own[0].token), None);
        assert_eq!(full.status, 200, "{}", full.text());
        let told = full.json();
        let mut held = BTreeMap::new();
        for (_, rows) in told["add"].as_object().unwrap() {
            for row in rows.as_array().unwrap() {
                held.insert(row["id"].as_str().unwrap().to_owned(), row["title"].clone());
            }
        }
        let mut versions = BTreeSet::new();
        for device in &own {
            for (key, (title, version)) in device.acknowledged.lock().unwrap().iter() {
                all += 1;
                if held.get(key).and_then(Value::as_str) != Some(title) {
                    lost.push(format!("owner {owner}: {key} is {:?}, not {title}", held.get(key)));
                }
                if !versions.insert(*version) {
                    doubled += 1;
                }
            }
        }
        let proof = call(stage.any(), "GET /digests", Some(&own[0].token), None).json();
        let me = call(stage.any(), "GET /me", Some(&own[0].token), None).json();
        let counted = cluster.counted(me["owner"].as_str().unwrap().parse().unwrap());
        if proof["tables"]["todo"] != counted || counted["count"] != held.len() {
            digests_differ += 1;
        }
        let both: BTreeSet<String> = own
            .iter()
            .map(|device| call(stage.any(), "GET /digests", Some(&device.token), None).json().to_string())
            .collect();
        digests_differ += both.len() - 1;
    }
    println!(
        "{all} acknowledged rows: {} lost, {doubled} versions twice, {digests_differ} digests that differ",
        lost.len()
    );
    assert!(lost.is_empty(), "{lost:#?}");
    assert_eq!((doubled, digests_differ), (0, 0));
}

/// Goal: shards that move, and servers and nodes that end or freeze, lose nothing. Method: 64 devices that write without
/// pause, ten moves and one rebalancing; each acknowledged row is compared.
#[test]
fn moving_shards_and_ending_nodes_lose_nothing() {
    let Some((database, stage, devices)) = ground() else { return };
    let cluster = Cluster(database.url.clone());
    let moves =
        std::env::var("ROLLCALL_TEST_CITUS_ROUNDS").map_or(10, |rounds| rounds.parse::<usize>().unwrap());
    let (workers, coordinator) = (cluster.workers(), cluster.coordinator());
    let begun = Instant::now();
    let mut failed_moves = 0;
    under_load(&stage, &devices, || {
        std::thread::sleep(Duration::from_secs(2));
        for round in 0..moves {
            if let Err(error) = cluster.move_shard(round) {
                println!(
                    "a move failed: {}",
                    error.as_db_error().map_or(error.to_string(), ToString::to_string)
                );
                failed_moves += 1;
            }
            match round % 4 {
                0 => stage.kill(round % 3),
                1 => stage.freeze(round % 3, Duration::from_secs(3)),
                2 => {
                    let port = workers[round % workers.len()];
                    node(port, "stop");
                    std::thread::sleep(Duration::from_secs(2));
                    node(port, "start");
                }
                _ => {
                    node(coordinator, "stop");
                    node(coordinator, "start");
                }
            }
            std::thread::sleep(Duration::from_secs(1));
        }
        cluster
            .client()
            .batch_execute("SELECT rebalance_table_shards(shard_transfer_mode => 'block_writes')")
            .unwrap();
    });
    let done: usize = devices.iter().map(|device| device.done.load(Ordering::SeqCst)).sum();
    let seconds = begun.elapsed().as_secs_f64();
    println!("{moves} moves, {failed_moves} failed, {done} syncs in {seconds:.0} s");
    judge(&cluster, &stage, &devices);
}

/// Goal: a node that is away keeps its own owners waiting alone. Method: the rate of the others' devices before a worker
/// ends and while it is away, and how long refusals take; stopped and frozen.
#[test]
fn a_node_that_is_away_stops_its_own_owners_alone() {
    let Some((database, stage, devices)) = ground() else { return };
    let cluster = Cluster(database.url.clone());
    let port = cluster.workers()[0];
    let seconds = std::env::var("ROLLCALL_TEST_CITUS_AWAY_S").map_or(20, |text| text.parse::<u64>().unwrap());
    under_load(&stage, &devices, || {
        std::thread::sleep(Duration::from_secs(3));
        let there = cluster.owners_at(port);
        let is_there: Vec<bool> = devices
            .iter()
            .map(|device| {
                let me = call(stage.any(), "GET /me", Some(&device.token), None).json();
                let owner = me["owner"].as_str().unwrap_or_default().to_owned();
                there.contains(&owner.parse().unwrap_or_default())
            })
            .collect();
        let done = |there: bool| -> usize {
            let chosen = devices.iter().zip(&is_there).filter(|(_, is)| **is == there);
            chosen.map(|(device, _)| device.done.load(Ordering::SeqCst)).sum()
        };
        let rate = |there: bool, pause: Duration| {
            let (before, begun) = (done(there), Instant::now());
            std::thread::sleep(pause);
            (done(there) - before) as f64 / begun.elapsed().as_secs_f64()
        };
        // To cancel what waits for a frozen node, the coordinator connects to that very node, and waits for it again.
        for (away, back, within) in [("stop", "start", BUSY_WITHIN), ("freeze", "thaw", REQUEST_WITHIN)] {
            let usual = rate(false, Duration::from_secs(8));
            if !node(port, away) {
                return;
            }
            let meanwhile = rate(false, Duration::from_secs(seconds));
            node(port, back);
            std::thread::sleep(Duration::from_secs(5));
            let slowest =
                devices.iter().map(|device| device.slowest_ms.swap(0, Ordering::SeqCst)).max().unwrap();
            let others = is_there.iter().filter(|is| !**is).count();
            println!(
                "{away}: {others} devices of other nodes did {usual:.0} syncs/s, and {meanwhile:.0} meanwhile; the slowest \
                 refusal took {slowest} ms"
            );
            assert!(meanwhile > usual * 0.9, "{away}: {usual:.0} syncs/s became {meanwhile:.0}");
            assert!(Duration::from_millis(slowest as u64) < within, "{away}: refused after {slowest} ms");
        }
    });
    judge(&cluster, &stage, &devices);
}

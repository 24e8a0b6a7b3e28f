//! Several servers over one PostgreSQL, as processes: what one does the others know, and what ends takes nothing along.
//!
//! `ROLLCALL_REPLICA_KILLS=25 cargo test --release --test program replicas:: -- --nocapture` is the long run.

use rollcall_testkit::pg;
use rollcall_testkit::process;

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use process::{Answer, Client, Process, bearer, call, log_in, rollcall};
use serde_json::{Value, json};
use uuid::Uuid;

const SCHEMA: &str = "fixtures/wedding/schema.toml";
const PASSWORD: &str = "something borrowed";
const LEASE_MS: u64 = 1_000;

fn serve(database: &str) -> Command {
    let mut command = rollcall();
    command.args(["serve", "--schema", SCHEMA, "--listen", "127.0.0.1:0", "--log", "warn"]);
    command.args(["--database", database, "--lease-ms", &LEASE_MS.to_string(), "--database-idle-ms", "1000"]);
    command.args(["--logins-per-account-per-min", "0", "--logins-per-address-per-min", "0"]);
    command.args(["--event-heartbeat-s", "3600"]); // none of these tests waits for one
    command
}

fn register(address: SocketAddr, email: &str) {
    let body = json!({ "email": email, "password": PASSWORD });
    assert_eq!(call(address, "POST /register", None, Some(&body)).status, 201);
}

fn add(key: &str) -> Value {
    json!({ "add": { "todo": [{ "id": key, "title": "x" }] } })
}

fn keys(answer: &Answer) -> Vec<String> {
    let result = answer.json();
    let rows = result["todo"].as_array().unwrap().iter();
    rows.map(|row| row["id"].as_str().unwrap().to_owned()).collect()
}

/// Two servers over a database of their own, and a phone and a tablet of one user.
struct Pair {
    servers: Vec<Process>,
    addresses: Vec<SocketAddr>,
    phone: String,
    tablet: String,
    _database: pg::Database,
}

impl Pair {
    fn start() -> Option<Self> {
        let database = pg::cluster()?.database();
        // At once, over an empty database.
        let mut servers: Vec<_> = (0..2).map(|_| Process::start(&mut serve(&database.url))).collect();
        let addresses: Vec<_> = servers.iter_mut().map(Process::address).collect();
        register(addresses[0], "anna@example.com");
        let [phone, tablet] =
            ["phone", "tablet"].map(|device| log_in(addresses[1], "anna@example.com", PASSWORD, device));
        Some(Self { servers, addresses, phone, tablet, _database: database })
    }

    fn ask(
        &self,
        server: usize,
        token: &str,
        request: &str,
        headers: &[String],
        body: Option<&Value>,
    ) -> Answer {
        let headers: Vec<_> = headers.iter().cloned().chain([bearer(token)]).collect();
        let body = body.map(Value::to_string);
        Client::connect(self.addresses[server]).unwrap().call(request, &headers, body.as_deref()).unwrap()
    }
}

/// Goal: "nothing has changed" is never outdated. Method: a request to one server about what the other has
/// just acknowledged.
#[test]
fn what_one_server_wrote_the_other_never_calls_unchanged() {
    let Some(pair) = Pair::start() else { return };
    let look = |etag: &str| {
        let known = format!("if-none-match: {etag}");
        pair.ask(0, &pair.phone, "GET /fetch?lock=false", &[known], None)
    };
    let mut etag = "\"none\"".to_owned();
    for round in 0..60 {
        let key = Uuid::now_v7().to_string();
        let writer = round % 2;
        assert_eq!(pair.ask(writer, &pair.tablet, "POST /synchronise", &[], Some(&add(&key))).status, 200);
        let result = look(&etag);
        assert_eq!(result.status, 200, "round {round}: an answer of before the write");
        assert!(keys(&result).contains(&key), "round {round}");
        etag = result.header("etag").unwrap().to_owned();
        assert_eq!(look(&etag).status, 304);
    }
}

/// Goal: the lock is one lock, on every server.
#[test]
fn the_lock_is_one_for_all_servers() {
    let Some(pair) = Pair::start() else { return };
    let fetched = pair.ask(0, &pair.phone, "GET /fetch", &[], None);
    let fence = format!("sync-lock: {}", fetched.number("sync-lock"));
    for request in ["GET /fetch", "POST /synchronise", "POST /lock"] {
        let body = request.starts_with("POST /s").then(|| json!({}));
        assert_eq!(pair.ask(1, &pair.tablet, request, &[], body.as_ref()).status, 423, "{request}");
    }
    assert_eq!(pair.ask(1, &pair.tablet, "GET /lock", &[], None).json()["holder"]["device"], "phone");
    // Its holder continues on the other server.
    let key = Uuid::now_v7().to_string();
    let sent = pair.ask(1, &pair.phone, "POST /synchronise", std::slice::from_ref(&fence), Some(&add(&key)));
    assert_eq!(sent.status, 200, "{}", sent.text());
    assert_eq!(pair.ask(0, &pair.tablet, "GET /lock", &[], None).json()["held"], false);
    assert_eq!(pair.ask(0, &pair.phone, "POST /synchronise", &[fence], Some(&json!({}))).status, 409);

    // Broken, what was to be written under it is not kept.
    let fetched = pair.ask(0, &pair.phone, "GET /fetch", &[], None);
    let fence = format!("sync-lock: {}", fetched.number("sync-lock"));
    assert_eq!(pair.ask(1, &pair.tablet, "DELETE /lock?break=true", &[], None).status, 204);
    assert_eq!(pair.ask(0, &pair.phone, "POST /synchronise", &[fence], Some(&json!({}))).status, 409);
}

/// Goal: a holder that was frozen past its lease writes nothing late. Method: its server is stopped (SIGSTOP) with the
/// request on its way, another device syncs by the other server, and the first one wakes up.
#[test]
fn what_a_frozen_server_writes_late_is_not_kept() {
    let Some(pair) = Pair::start() else { return };
    let rounds = if std::env::var_os("ROLLCALL_REPLICA_KILLS").is_some() { 20 } else { 3 };
    let mut others = Vec::new();
    for round in 0..rounds {
        let fetched = pair.ask(0, &pair.phone, "GET /fetch", &["prefer: wait=5".into()], None);
        assert_eq!(fetched.status, 200, "{}", fetched.text());
        let late = Uuid::now_v7().to_string();
        let headers = [bearer(&pair.phone), format!("sync-lock: {}", fetched.number("sync-lock"))];
        let mut phone = Client::connect(pair.addresses[0]).unwrap();
        pair.servers[0].freeze();
        phone.send("POST /synchronise", &headers, Some(&add(&late).to_string())).unwrap();
        let key = Uuid::now_v7().to_string();
        let wait = ["prefer: wait=25".into()];
        let synced = pair.ask(1, &pair.tablet, "POST /synchronise", &wait, Some(&add(&key)));
        assert_eq!(synced.status, 200, "{}", synced.text());
        // It takes the lock as well, so that the fence has moved on.
        assert_eq!(pair.ask(1, &pair.tablet, "GET /fetch", &[], None).status, 200);
        pair.servers[0].signal("-CONT");
        let answer = phone.answer().unwrap();
        assert!([409, 423].contains(&answer.status), "round {round}: {}", answer.text());
        others.push(key);
        let held = keys(&pair.ask(1, &pair.tablet, "GET /fetch?lock=false", &[], None));
        assert!(!held.contains(&late), "round {round}: a late write landed");
        assert!(others.iter().all(|key| held.contains(key)), "round {round}: a write is lost");
        pair.ask(1, &pair.tablet, "DELETE /lock", &[], None);
    }
}

/// Goal: a device that is signed out on one server is refused by another. Method: servers that would cache a
/// token for an hour, and a device that is signed out on one, by itself, by another device, by a new log-in
/// and by a command.
#[test]
fn a_sign_out_is_heard_of_by_the_other_server() {
    let Some(cluster) = pg::cluster() else { return };
    let database = cluster.database();
    let mut servers: Vec<_> =
        (0..2).map(|_| Process::start(serve(&database.url).args(["--token-known-s", "3600"]))).collect();
    let addresses: Vec<_> = servers.iter_mut().map(Process::address).collect();
    register(addresses[0], "anna@example.com");
    let log_in_as = |id: Option<&Value>| {
        let body =
            json!({ "email": "anna@example.com", "password": PASSWORD, "device": "phone", "device_id": id });
        call(addresses[0], "POST /login", None, Some(&body)).json()
    };
    let command = || {
        let mut account = rollcall();
        account.args(["account", "remove", "anna@example.com", "--database", &database.url]);
        assert!(account.output().unwrap().status.success());
    };
    for way in ["log-out", "revocation", "log-in", "command"] {
        let phone = log_in_as(None);
        let (token, id) = (phone["token"].as_str().unwrap(), phone["device_id"].as_str().unwrap());
        let ask = || call(addresses[1], "GET /devices", Some(token), None).status;
        assert_eq!(ask(), 200, "{way}");
        match way {
            "log-out" => assert_eq!(call(addresses[0], "POST /logout", Some(token), None).status, 204),
            "revocation" => {
                let tablet = log_in(addresses[0], "anna@example.com", PASSWORD, "tablet");
                let revoke = format!("DELETE /devices/{id}");
                assert_eq!(call(addresses[0], &revoke, Some(&tablet), None).status, 204);
            }
            "log-in" => assert_eq!(log_in_as(Some(&phone["device_id"]))["device_id"], id),
            _ => command(),
        }
        let begun = Instant::now();
        while ask() != 401 {
            assert!(begun.elapsed() < Duration::from_secs(20), "{way}: the token is good still");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// The present servers; `None` has just been killed.
type Stage = Mutex<Vec<Option<SocketAddr>>>;

/// One device: it writes, and tries another server until it gets a response. Returns what was acknowledged.
fn device(token: &str, n: usize, stage: &Stage, stop: &AtomicBool, syncs: &AtomicUsize) -> Vec<String> {
    let mut acknowledged = Vec::new();
    let mut turn = n;
    while !stop.load(Ordering::SeqCst) {
        let key = Uuid::now_v7().to_string();
        let body = add(&key).to_string();
        let headers = [bearer(token), format!("idempotency-key: {key}"), "prefer: wait=10".to_owned()];
        let begun = Instant::now();
        loop {
            assert!(begun.elapsed() < Duration::from_secs(60), "device {n} gets no answer any more");
            turn += 1;
            let address = {
                let stage = stage.lock().unwrap();
                stage[turn % stage.len()]
            };
            let Some(address) = address else {
                std::thread::sleep(Duration::from_millis(5));
                continue;
            };
            let answered = Client::connect(address)
                .and_then(|mut to| to.call("POST /synchronise", &headers, Some(&body)));
            match answered {
                Ok(answer) if answer.status == 200 => {
                    let verdict = answer.json()["add"]["todo"][0]["verdict"].as_str().unwrap().to_owned();
                    assert!(["added", "same"].contains(&verdict.as_str()), "{verdict}");
                    break;
                }
                Ok(answer) => {
                    assert!([503, 423].contains(&answer.status), "{} {}", answer.status, answer.text());
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
        syncs.fetch_add(1, Ordering::SeqCst);
        acknowledged.push(key);
    }
    acknowledged
}

/// Goal: whatever fails, no acknowledged write is lost and all devices of an owner receive the same. Method:
/// three servers, 32 devices of 16 owners that write without pause; servers are killed (SIGKILL) and
/// PostgreSQL is stopped immediately and started again, in turn.
#[test]
fn killed_servers_and_a_crashing_database_lose_nothing() {
    let kills = std::env::var("ROLLCALL_REPLICA_KILLS").map_or(3, |kills| kills.parse::<usize>().unwrap());
    let Some(binaries) = pg::cluster().and_then(|_| pg::binaries()) else { return };
    let mut database = pg::Process::start(&binaries, &[]);
    let url = database.database_url("postgres");
    let mut servers: Vec<_> = (0..3).map(|_| Process::start(&mut serve(&url))).collect();
    let addresses: Vec<_> = servers.iter_mut().map(Process::address).collect();
    let mut tokens = Vec::new();
    for owner in 0..16 {
        let email = format!("{owner}@example.com");
        register(addresses[0], &email);
        tokens.extend(["a", "b"].map(|device| log_in(addresses[0], &email, PASSWORD, device)));
    }
    let stage: Arc<Stage> = Arc::new(Mutex::new(addresses.into_iter().map(Some).collect()));
    let (stop, syncs) = (AtomicBool::new(false), AtomicUsize::new(0));
    let begun = Instant::now();
    let acknowledged: Vec<Vec<String>> = std::thread::scope(|scope| {
        let devices: Vec<_> = tokens
            .iter()
            .enumerate()
            .map(|(n, token)| {
                let (stage, stop, syncs) = (&*stage, &stop, &syncs);
                scope.spawn(move || device(token, n, stage, stop, syncs))
            })
            .collect();
        for kill in 0..kills {
            std::thread::sleep(Duration::from_millis(700));
            let place = kill % servers.len();
            stage.lock().unwrap()[place] = None;
            servers.remove(place).kill();
            let mut server = Process::start(&mut serve(&url));
            let address = server.address();
            servers.insert(place, server);
            stage.lock().unwrap()[place] = Some(address);
            std::thread::sleep(Duration::from_millis(500));
            database.crash_and_restart();
        }
        // Everybody gets through once more.
        let before = syncs.load(Ordering::SeqCst);
        while syncs.load(Ordering::SeqCst) < before + 64 {
            std::thread::sleep(Duration::from_millis(10));
        }
        stop.store(true, Ordering::SeqCst);
        devices.into_iter().map(|device| device.join().unwrap()).collect()
    });
    let seconds = begun.elapsed().as_secs_f64();
    let all = acknowledged.iter().map(Vec::len).sum::<usize>();
    println!("{kills} kills and as many crashes, {all} acknowledged writes in {seconds:.0} s");
    let address = stage.lock().unwrap()[1].unwrap();
    for (owner, devices) in tokens.chunks(2).enumerate() {
        let mut result = BTreeMap::new();
        for token in devices {
            let full = call(address, "GET /changes?limit=5000", Some(token), None);
            assert_eq!(full.status, 200, "{}", full.text());
            let held = keys(&call(address, "GET /fetch?lock=false", Some(token), None));
            for key in acknowledged[owner * 2].iter().chain(&acknowledged[owner * 2 + 1]) {
                assert!(held.contains(key), "owner {owner} has lost {key}");
            }
            result.insert(full.json()["digests"].to_string(), ());
        }
        assert_eq!(result.len(), 1, "owner {owner}: its devices are told different things");
    }
}

/// Goal: a change of members reaches the streams of every server at once. Method: a stream at one server, which no
/// heartbeat would wake in time; the user joins an owner and is taken out at the other server.
#[test]
fn a_change_of_members_reaches_the_streams_of_every_server() {
    let Some(pair) = Pair::start() else { return };
    register(pair.addresses[0], "ben@example.com");
    let ben = log_in(pair.addresses[0], "ben@example.com", PASSWORD, "ben");
    let user = pair.ask(0, &pair.phone, "GET /me", &[], None).json()["user"].as_str().unwrap().to_owned();
    let mut stream = TcpStream::connect(pair.addresses[1]).unwrap();
    stream.set_read_timeout(Some(process::TOO_LONG)).unwrap();
    write!(stream, "GET /events?owner=all HTTP/1.1\r\nhost: x\r\n{}\r\n\r\n", bearer(&pair.phone)).unwrap();
    let mut seen = BufReader::new(stream).lines().map(Result::unwrap);
    let mut until = |event: &str| assert!(seen.any(|line| line.contains(event)), "no {event}");
    until("event: owners");

    let made = pair.ask(0, &ben, "POST /owners", &[], Some(&json!({ "name": "Our list" }))).json();
    let owner = made["owner"].as_str().unwrap();
    let invitation = format!("POST /owners/{owner}/invitations");
    let code = pair.ask(0, &ben, &invitation, &[], Some(&json!({ "role": "write" }))).json();
    let accept = json!({ "code": code["code"], "name": "Anna" });
    assert_eq!(pair.ask(0, &pair.phone, "POST /invitations/accept", &[], Some(&accept)).status, 200);
    until("event: member");
    let write = format!("POST /synchronise?owner={owner}");
    assert_eq!(pair.ask(0, &ben, &write, &[], Some(&add(&Uuid::now_v7().to_string()))).status, 200);
    until("event: version");
    let removed = pair.ask(0, &ben, &format!("DELETE /owners/{owner}/members/{user}"), &[], None);
    assert_eq!(removed.status, 204);
    until("event: left");
}

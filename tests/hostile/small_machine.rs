//! The real program with the settings of docs/operate/memory.md for a machine with 256 MiB, under every
//! attack at once.
//!
//! ROLLCALL_HOSTILE_S is how long they continue (10 s; 600 is the long run). The memory is what the system
//! reports for the process: a limit on the process itself would count memory that is only reserved.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::app::{PASSWORD, key};
use crate::clients::{TOO_LONG, connect, listen, number, post, statuses};
use crate::process::{Process, call, log_in, rollcall};

/// What the machine has, less what its system takes.
const BYTES_MAX: u64 = 256 * 1024 * 1024;

const SCHEMA: &str = r#"
[table.things]
key = "id"
policy = "merge"
[table.things.columns]
text = "text"
tags = { type = "json", merge = "union" }

[table.nodes]
key = "id"
[table.nodes.columns]
name = "text"
parent = { type = "uuid", references = "nodes" }
"#;

/// A row of a size that is nearly the largest.
const BIG: usize = 250_000;

/// Honest devices, of two owners.
const DEVICES: usize = 4;

/// How long half-received bodies hold what memory they get.
const WAVE: Duration = Duration::from_secs(3);

/// The settings for a small machine, as its operator copies them.
fn settings() -> Vec<(String, String)> {
    let text = std::fs::read_to_string("docs/operate/memory.md").unwrap();
    let memory = text.split("```").nth(1).unwrap();
    let lines = memory.lines().filter_map(|line| line.strip_prefix("Environment="));
    let named = lines.flat_map(|line| line.split(' ')).map(|one| one.split_once('=').unwrap());
    named.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

fn serve(folder: &Path) -> Process {
    std::fs::write(folder.join("schema.toml"), SCHEMA).unwrap();
    let mut command = rollcall();
    command.current_dir(folder).args(["serve", "--schema", "schema.toml", "--database", "sqlite:app.db"]);
    command.args(["--listen", "127.0.0.1:0", "--log", "warn"]).envs(settings());
    Process::start(&mut command)
}

/// A number of bytes from `/proc`, such as `VmHWM`, the most that was ever resident.
fn bytes_of(process: u32, name: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok()).map_or(0, |kib| kib * 1024)
}

/// What all attackers share.
#[derive(Clone)]
struct Field {
    to: SocketAddr,
    /// Of two accounts.
    tokens: Arc<Vec<String>>,
    over: Arc<AtomicBool>,
    answers: Arc<Mutex<std::collections::BTreeMap<String, usize>>>,
}

impl Field {
    fn goes_on(&self) -> bool {
        !self.over.load(Ordering::Relaxed)
    }

    fn note(&self, what: &str, seen: &[u8]) {
        let status = statuses(seen).last().map_or("closed".to_owned(), u16::to_string);
        *self.answers.lock().unwrap().entry(format!("{what}: {status}")).or_default() += 1;
    }

    /// Sends a request again and again, from its own address, and waits `unread` before it reads the
    /// response.
    async fn repeat(self, what: &'static str, from: [u8; 4], request: Vec<u8>, unread: Duration) {
        while self.goes_on() {
            let Ok(mut stream) = connect(self.to, from).await else { continue };
            let _ = stream.write_all(&request).await;
            sleep(unread).await;
            self.note(what, &listen(&mut stream, TOO_LONG).await);
            sleep(Duration::from_millis(300)).await;
        }
    }

    /// Sends most of a large body at once, and drips for a while; then leaves the memory to the other attacks.
    async fn trickle(self, from: [u8; 4], token: String) {
        let whole = post("/synchronise", &token, "", &vec![b' '; 2_097_152]);
        while self.goes_on() {
            let Ok(mut stream) = connect(self.to, from).await else { continue };
            let mut seen = Vec::new();
            let _ = timeout(TOO_LONG, stream.write_all(&whole[..1_800_000])).await;
            let until = Instant::now() + WAVE;
            while self.goes_on() && Instant::now() < until {
                match timeout(Duration::from_millis(500), stream.read_buf(&mut seen)).await {
                    Ok(Ok(0) | Err(_)) => break,
                    Ok(Ok(_)) => {}
                    Err(_) if stream.write_all(&[b' '; 1_024]).await.is_err() => break,
                    Err(_) => {}
                }
            }
            self.note("half a body", &seen);
            drop(stream);
            sleep(until.saturating_duration_since(Instant::now()) + WAVE / 2).await;
        }
    }
}

fn get(path: &str, token: &str, accept: &str) -> Vec<u8> {
    format!(
        "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: Bearer {token}\r\n\
         accept: {accept}\r\naccept-encoding: br\r\n\r\n"
    )
    .into_bytes()
}

/// What is sent in one piece, again and again: name, request, how many at once, and how long the response is
/// left unread.
fn assaults(token: &str) -> Vec<(&'static str, Vec<u8>, u8, u64)> {
    let sync = |body: Value| post("/synchronise", token, "", body.to_string().as_bytes());
    let big: Vec<String> = (0..30).map(key).collect();
    let again: Vec<String> = vec![key(0); 5_000];
    let stale = |_| json!({ "id": key(0), "text": "old", "last_update": "2001-01-01T00:00:00.000Z" });
    let numbers = |from: u32| Value::Array((from..from + 20_000).map(|n| json!(n)).collect());
    let unions: Vec<Value> = (0..2).map(|n| json!({ "id": key(900), "tags": numbers(n * 7) })).collect();
    let nodes: Vec<Value> =
        (0..2_500).map(|n| json!({ "id": key(2_000 + n), "name": "x", "parent": key(2_000) })).collect();
    let parents: Vec<String> = vec![key(2_000); 2_400];
    let huge = "x".repeat(60_000);
    let head = |line: &str| format!("{line}\r\nhost: x\r\nconnection: close\r\n").into_bytes();
    let login = json!({ "email": "anna@example.org", "password": "a guess", "device": "x" }).to_string();
    let junk = format!("{0}.{0}.{0}", "eyJhbGciOiJSUzI1NiJ9".repeat(200));
    vec![
        ("a mass get, unread", sync(json!({ "get": { "things": big } })), 24, 3_000),
        ("a mass get", sync(json!({ "get": { "things": big } })), 4, 0),
        ("one key many times", sync(json!({ "get": { "things": again } })), 2, 0),
        (
            "stale edits of a big row",
            sync(json!({ "update": { "things": (0..500).map(stale).collect::<Vec<_>>() } })),
            2,
            0,
        ),
        ("huge unions", sync(json!({ "update": { "things": unions } })), 2, 0),
        ("references, made", sync(json!({ "add": { "nodes": nodes } })), 1, 0),
        ("references, deleted", sync(json!({ "delete": { "nodes": parents }, "confirm_deletes": 1 })), 2, 0),
        ("pull", sync(json!({ "pull": true })), 4, 2_000),
        ("changes", get("/changes", token, "application/json"), 8, 3_000),
        ("changes, streamed", get("/changes", token, "application/x-ndjson"), 8, 3_000),
        ("conflicts", get("/conflicts", token, "application/json"), 8, 3_000),
        ("roll calls", get("/fetch?lock=false", token, "application/json"), 8, 3_000),
        ("metrics, unread", get("/metrics", "", "*/*"), 16, 3_000),
        ("the contract, unread", get("/openapi.json", "", "*/*"), 16, 3_000),
        ("a wrong password", post("/login", "", "", login.as_bytes()), 24, 0),
        ("a junk token", get("/lock", &junk, "*/*"), 8, 0),
        ("half a header", [head("GET /lock HTTP/1.1"), huge.clone().into_bytes()].concat(), 32, 0),
        ("a huge header", get(&format!("/lock?{huge}"), token, "*/*"), 8, 0),
        ("CONNECT", [head("CONNECT example.org:443 HTTP/1.1"), b"\r\n".to_vec()].concat(), 8, 0),
    ]
}

/// An honest device: one small edit after another, each of which must succeed in time. Returns how long each
/// took, and how often the device had to retry.
async fn honest(field: Field, token: String, first: u64, busy: Arc<AtomicUsize>) -> Vec<Duration> {
    let mut took = Vec::new();
    let mut n = 0;
    while field.goes_on() {
        n += 1;
        let row = json!({ "id": key(first + n % 50), "name": n.to_string() });
        let body = json!({ "update": { "nodes": [row] }, "pull": true }).to_string();
        let request = post("/synchronise", &token, "prefer: wait=5\r\n", body.as_bytes());
        let begun = Instant::now();
        loop {
            assert!(begun.elapsed() < TOO_LONG, "an honest edit is not taken");
            let mut stream = connect(field.to, [127, 0, 0, 9]).await.unwrap();
            stream.write_all(&request).await.unwrap();
            let seen = listen(&mut stream, TOO_LONG).await;
            match statuses(&seen).as_slice() {
                [200] => break,
                // The other device of the same owner may be at work.
                [423] => 0,
                [503] => busy.fetch_add(1, Ordering::Relaxed),
                _ => panic!("an honest edit: {}", String::from_utf8_lossy(&seen)),
            };
            sleep(Duration::from_millis(200)).await;
        }
        took.push(begun.elapsed());
        sleep(Duration::from_millis(50)).await;
    }
    took
}

/// Rows that are worth asking for: 30 big ones, and a long list.
fn fill(address: SocketAddr, token: &str) {
    for n in 0..30 {
        let row = json!({ "id": key(n), "text": "x".repeat(BIG) });
        let body = json!({ "add": { "things": [row] } });
        assert_eq!(call(address, "POST /synchronise", Some(token), Some(&body)).status, 200);
    }
    let list: Vec<u32> = (0..20_000).collect();
    let body = json!({ "add": { "things": [{ "id": key(900), "tags": list }] } });
    assert_eq!(call(address, "POST /synchronise", Some(token), Some(&body)).status, 200);
}

/// Goal: no request and no number of requests makes the server use more memory than a small machine has, and
/// honest devices are served all the while. Method: the attacks above, from many addresses and two accounts,
/// beside four honest devices of two owners.
#[test]
fn a_small_machine_bears_every_attack_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = serve(folder.path());
    let (id, address) = (server.id(), server.address());
    let mut tokens = Vec::new();
    for email in ["mallory@example.org", "moriarty@example.org", "anna@example.org", "ben@example.org"] {
        let user = json!({ "email": email, "password": PASSWORD });
        assert_eq!(call(address, "POST /register", None, Some(&user)).status, 201);
        tokens.push(log_in(address, email, PASSWORD, "phone"));
        tokens.push(log_in(address, email, PASSWORD, "tablet"));
    }
    let honest = tokens.split_off(4);
    fill(address, &tokens[0]);
    fill(address, &tokens[2]);
    println!("{} MiB resident before", bytes_of(id, "VmRSS") >> 20);
    let length = Duration::from_secs(number("ROLLCALL_HOSTILE_S", 10) as u64);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let field =
        Field { to: address, tokens: Arc::new(tokens), over: Arc::default(), answers: Arc::default() };
    let (mut took, busy) = runtime.block_on(attack(field.clone(), honest, length));

    for (what, times) in field.answers.lock().unwrap().iter() {
        println!("{times:>6} {what}");
    }
    took.sort();
    let at = |part: usize| took[took.len() * part / 100];
    let peak = bytes_of(id, "VmHWM");
    println!(
        "{} honest edits, p50 {:?}, p99 {:?}, {busy} times busy; at most {} MiB resident",
        took.len(),
        at(50),
        at(99),
        peak >> 20
    );
    assert!(peak > 0, "the server is gone");
    assert!(peak < BYTES_MAX, "{peak} bytes were resident");
    assert!(took.len() >= DEVICES, "{} edits in {length:?}", took.len());
    std::thread::sleep(Duration::from_secs(3));
    println!("{} MiB resident after", bytes_of(id, "VmRSS") >> 20);
    assert_eq!(call(address, "GET /healthz", None, None).status, 200);
    server.terminate();
    let ended = server.wait();
    assert!(ended.status.success(), "{ended:?}");
    assert!(!ended.stderr.contains("panicked"), "{}", ended.stderr);
}

/// Lets everyone loose for so long. How long each honest edit took, and how often one had to come back.
async fn attack(field: Field, honest_tokens: Vec<String>, length: Duration) -> (Vec<Duration>, usize) {
    let mut attackers = JoinSet::new();
    for (account, token) in field.tokens.iter().enumerate() {
        let account = account as u8;
        for n in 0..12 {
            attackers.spawn(field.clone().trickle([127, 0, 10 + account, n], token.clone()));
        }
        if account % 2 == 1 {
            continue; // the other device of the same account only trickles
        }
        for (kind, (what, request, at_once, unread_ms)) in (0..).zip(assaults(token)) {
            for n in 0..at_once.div_ceil(2) {
                let from = [127, 0, 20 + kind, n + 1 + 100 * (account / 2)];
                let unread = Duration::from_millis(unread_ms);
                attackers.spawn(field.clone().repeat(what, from, request.clone(), unread));
            }
        }
    }
    let busy = Arc::<AtomicUsize>::default();
    let devices: Vec<_> = honest_tokens
        .into_iter()
        .zip(0..)
        .map(|(token, n)| tokio::spawn(honest(field.clone(), token, 5_000 + n * 100, Arc::clone(&busy))))
        .collect();
    sleep(length).await;
    field.over.store(true, Ordering::Relaxed);
    let mut took = Vec::new();
    for device in devices {
        took.extend(device.await.unwrap());
    }
    attackers.shutdown().await;
    (took, busy.load(Ordering::Relaxed))
}

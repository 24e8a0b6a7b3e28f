//! Malicious clients, many at once and over real sockets, beside honest ones that must not notice.
//!
//! ROLLCALL_HOSTILE_S is how long they continue (10 s), ROLLCALL_HOSTILE_CONNECTIONS how many connections one
//! of them opens in that time (1,000). Each deadline has its own test in `tests/server/serving.rs`.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rollcall::config::{AuthMode, Settings};
use rollcall::http::{routes, serve};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::{sleep, timeout};

use crate::app::{Device, PASSWORD, START_MS, Server, key};
use crate::contract::{document, follow, operation_objects};

/// A client that waits this long for a response has found a hang.
pub const TOO_LONG: Duration = Duration::from_secs(60);

pub fn number(variable: &str, otherwise: usize) -> usize {
    std::env::var(variable).map_or(otherwise, |text| text.parse().unwrap())
}

/// A connection from an address of our choice within the loopback network, as if from another machine.
/// Where the system has only 127.0.0.1, from there.
pub async fn connect(to: SocketAddr, from: [u8; 4]) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    let _ = socket.bind((from, 0).into());
    timeout(TOO_LONG, socket.connect(to)).await?
}

/// Reads until the server closes, or for so long; errors end it too.
pub async fn listen(stream: &mut TcpStream, most: Duration) -> Vec<u8> {
    let mut seen = Vec::new();
    let _ =
        timeout(most, async { while stream.read_buf(&mut seen).await.is_ok_and(|read| read > 0) {} }).await;
    seen
}

/// The statuses of the responses in what a connection received: no body of these responses contains such a
/// line.
pub fn statuses(seen: &[u8]) -> Vec<u16> {
    let text = String::from_utf8_lossy(seen);
    text.match_indices("HTTP/1.1 ").filter_map(|(at, _)| text.get(at + 9..at + 12)?.parse().ok()).collect()
}

pub fn post(path: &str, token: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: Bearer {token}\r\n\
         content-type: application/json\r\n{headers}content-length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

/// One kind of attack: the permitted statuses, and how often each came.
#[derive(Clone)]
struct Attack {
    to: SocketAddr,
    token: String,
    over: Arc<AtomicBool>,
    result: Arc<Mutex<BTreeMap<String, usize>>>,
}

impl Attack {
    fn note(&self, what: &str, outcome: &str) {
        *self.result.lock().unwrap().entry(format!("{what}: {outcome}")).or_default() += 1;
    }

    fn goes_on(&self) -> bool {
        !self.over.load(Ordering::Relaxed)
    }

    /// Sends all of it, reads what arrives, and fails unless every status is permitted. `may_close`: whether
    /// the server may also just close.
    async fn send(&self, what: &str, from: u8, bytes: &[u8], allowed: &[u16], may_close: bool) {
        let Ok(mut stream) = connect(self.to, [127, 0, 2, from]).await else { return };
        let sent = stream.write_all(bytes).await.is_ok();
        let seen = listen(&mut stream, TOO_LONG).await;
        let result = statuses(&seen);
        let shown =
            || format!("{what}: {result:?} {}", String::from_utf8_lossy(&seen[..seen.len().min(300)]));
        assert!(result.iter().all(|status| allowed.contains(status)), "{}", shown());
        // A reset may destroy the response of a client that is still sending.
        assert!(may_close || !result.is_empty() || !sent, "closed without an answer: {}", shown());
        self.note(what, &result.last().map_or("closed".into(), u16::to_string));
    }

    /// Sends one byte at a time until the server ends the connection; returns how it ended.
    async fn drip(&self, what: &str, from: u8, beginning: &[u8], allowed: &[u16]) {
        let Ok(mut stream) = connect(self.to, [127, 0, 2, from]).await else { return };
        let begun = Instant::now();
        let mut seen = Vec::new();
        let _ = stream.write_all(beginning).await;
        loop {
            assert!(begun.elapsed() < TOO_LONG, "{what}: the server listens on and on");
            match timeout(Duration::from_millis(200), stream.read_buf(&mut seen)).await {
                Ok(Ok(0) | Err(_)) => break,
                Ok(Ok(_)) => {}
                Err(_) if stream.write_all(b"x").await.is_err() => break,
                Err(_) => {}
            }
        }
        let result = statuses(&seen);
        assert!(result.iter().all(|status| allowed.contains(status)), "{what}: {result:?}");
        self.note(what, &result.last().map_or("closed".into(), u16::to_string));
    }
}

/// What is sent in one piece, with the permitted statuses.
fn salvos(token: &str) -> Vec<(&'static str, Vec<u8>, &'static [u16], bool)> {
    let bomb =
        |kind: &str| post("/synchronise", token, &format!("content-encoding: {kind}\r\n"), &vec![0x1f; 4096]);
    let rows: Vec<Value> = (0..20_000).map(|n| json!({ "lid": key(n), "title": "x" })).collect();
    let members: String = (0..100_000).map(|n| format!("\"m{n}\":0,")).collect();
    let get = |headers: &str| {
        format!("GET /lock HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\n{headers}\r\n")
    };
    let huge = "x".repeat(12_000);
    let many: String = (0..200).map(|n| format!("x-{n}: 1\r\n")).collect();
    let pipelined = [get("").repeat(500), get("connection: close\r\n")].concat();
    let garbage = format!("{}\u{0}\u{1}\u{2} not HTTP at all\r\n\r\n{}", get(""), get(""));
    let smuggled = "GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n";
    let both = format!(
        "POST /synchronise HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\ncontent-type: application/json\r\n\
         content-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n{smuggled}"
    );
    let twice = format!(
        "POST /login HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\ncontent-length: 40\r\n\r\n{{}}{smuggled}"
    );
    let login = json!({ "email": "nobody@example.org", "password": "x", "device": "x" }).to_string();
    vec![
        ("deep arrays", post("/synchronise", token, "", "[".repeat(1_000_000).as_bytes()), &[400, 422, 503], false),
        ("deep objects", post("/synchronise", token, "", "{\"add\":".repeat(100_000).as_bytes()), &[400, 422, 503], false),
        (
            "a deep value",
            post("/synchronise", token, "", format!("{{\"add\":{{\"things\":[{{\"id\":\"{}\",\"extra\":{}1{}}}]}}}}", key(1), "[".repeat(50_000), "]".repeat(50_000)).as_bytes()),
            &[200, 503], // rejected, that row alone
            false,
        ),
        ("many rows", post("/synchronise", token, "", json!({ "add": { "lists": rows } }).to_string().as_bytes()), &[422, 503], false),
        ("many members", post("/synchronise", token, "", format!("{{{members}\"m\":0}}").as_bytes()), &[422, 503], false),
        ("a body beyond the limit", post("/synchronise", token, "", &vec![b' '; 9_000_000]), &[413], false),
        ("gzip", bomb("gzip"), &[415], false),
        ("br", bomb("br"), &[415], false),
        ("deflate, twice", bomb("deflate, gzip"), &[415], false),
        ("an unknown coding", bomb("zstd"), &[415], false),
        ("a long header", get(&format!("x-a: {huge}\r\nx-b: {huge}\r\nconnection: close\r\n")).into_bytes(), &[431], false),
        ("a huge header", get(&format!("x-a: {}\r\n", "x".repeat(1_000_000))).into_bytes(), &[431], true),
        ("many headers", get(&format!("{many}connection: close\r\n")).into_bytes(), &[431], false),
        ("pipelined", pipelined.into_bytes(), &[200], false),
        ("pipelined garbage", garbage.into_bytes(), &[200, 400], true),
        ("a TLS hello", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".repeat(40), &[400], true),
        ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec(), &[400, 505], true),
        ("two lengths", twice.into_bytes(), &[400], true),
        ("a length and chunks", both.into_bytes(), &[400], true),
        ("a bad chunk", format!("POST /login HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\ncontent-type: application/json\r\n\r\nzz\r\n{smuggled}").into_bytes(), &[400], true),
        ("a guessed token", post("/synchronise", "rc_q7Zb1mXo0VvQ2cT9yJ3kR5wLd8NfHs4uAeGi6PxMzYE", "", b"{}"), &[401], false),
        ("a guessed password", post("/login", "", "", login.as_bytes()), &[401, 429, 503], false),
    ]
}

/// How long each honest request took.
async fn honest(to: SocketAddr, device: Device, over: Arc<AtomicBool>, first: u64) -> Vec<Duration> {
    let mut took = Vec::new();
    let mut stream = connect(to, [127, 0, 0, 9]).await.unwrap();
    let mut n = 0;
    while !over.load(Ordering::Relaxed) {
        n += 1;
        if n % 10 == 0 {
            stream = connect(to, [127, 0, 0, 9]).await.unwrap(); // a newcomer is let in too
        }
        let body = json!({ "update": { "lists": [{ "lid": key(first + n % 50), "title": n.to_string() }] } })
            .to_string();
        let request = if n % 2 == 0 {
            format!(
                "GET /fetch?lock=false HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\n\r\n",
                device.token
            )
            .into_bytes()
        } else {
            let request = post("/synchronise", &device.token, "", body.as_bytes());
            String::from_utf8(request).unwrap().replace("connection: close\r\n", "").into_bytes()
        };
        let begun = Instant::now();
        stream.write_all(&request).await.unwrap();
        let (mut seen, mut length) = (Vec::new(), None);
        while length.is_none_or(|length| seen.len() < length) {
            let read =
                timeout(TOO_LONG, stream.read_buf(&mut seen)).await.expect("no answer to an honest client");
            assert!(read.unwrap() > 0, "an honest client was cut: {}", String::from_utf8_lossy(&seen));
            if let (None, Some(head)) = (length, seen.windows(4).position(|four| four == b"\r\n\r\n")) {
                let text = String::from_utf8_lossy(&seen[..head]).to_lowercase();
                let body = text.split("content-length: ").nth(1).unwrap();
                length = Some(head + 4 + body.split("\r\n").next().unwrap().parse::<usize>().unwrap());
            }
        }
        assert_eq!(statuses(&seen), [200], "{}", String::from_utf8_lossy(&seen));
        took.push(begun.elapsed());
        sleep(Duration::from_millis(5)).await;
    }
    took
}

fn p99(took: &mut [Duration]) -> Duration {
    took.sort();
    took[took.len() * 99 / 100]
}

/// How many connections this process may hold at once: a server end and a client end of each are its own files.
fn connections_at_once() -> usize {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let line = limits.lines().find(|line| line.starts_with("Max open files"));
    let files = line.and_then(|line| line.split_whitespace().nth(3)?.parse().ok()).unwrap_or(256_usize);
    (files.saturating_sub(200) / 2).clamp(20, 2_400)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn honest_clients_are_answered_while_others_attack() {
    let change = |settings: &mut Settings| {
        settings.limits.header_read_s = 2;
        settings.limits.logins_per_address_per_min = 20;
    };
    let server = Server::with(change);
    let devices: Vec<Device> = (0..4).map(|n| server.device(&format!("honest{n}"), "phone")).collect();
    let attacker = server.device("attacker", "phone");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let to = listener.local_addr().unwrap();
    let app = Arc::clone(&server.app);
    tokio::spawn(async move {
        let (bounds, draining) = (app.bounds.clone(), app.draining.clone());
        serve(listener, routes(app.clone()), bounds, draining, app.metrics.clone(), std::future::pending())
            .await
    });
    let length = Duration::from_secs(number("ROLLCALL_HOSTILE_S", 10) as u64);
    let honest_for = async |length: Duration| {
        let over = Arc::<AtomicBool>::default();
        let all: Vec<_> = devices
            .iter()
            .zip(0_u64..)
            .map(|(device, n)| tokio::spawn(honest(to, device.clone(), Arc::clone(&over), n * 100)))
            .collect();
        sleep(length).await;
        over.store(true, Ordering::Relaxed);
        let mut took = Vec::new();
        for one in all {
            took.extend(one.await.unwrap());
        }
        took
    };
    let mut quiet = honest_for(length / 4).await;

    let attack = Attack { to, token: attacker.token, over: Arc::default(), result: Arc::default() };
    let mut attackers = Vec::new();
    for (from, (what, bytes, allowed, may_close)) in (1..).zip(salvos(&attack.token)) {
        let attack = attack.clone();
        attackers.push(tokio::spawn(async move {
            while attack.goes_on() {
                attack.send(what, from, &bytes, allowed, may_close).await;
                sleep(Duration::from_millis(500)).await; // twenty kinds share two cores with those they attack
            }
        }));
    }
    let slow_body = post("/synchronise", &attack.token, "", b"{");
    let slow_body =
        String::from_utf8(slow_body).unwrap().replace("content-length: 1\r", "content-length: 9999\r");
    let slow: [(&'static str, Vec<u8>, &'static [u16]); 4] = [
        ("silence", Vec::new(), &[400]),
        ("a slow header", b"GET /lock HTTP/1.1\r\nx-slow: ".to_vec(), &[408]),
        ("a slow request line", b"GE".to_vec(), &[400]),
        ("a slow body", slow_body.into_bytes(), &[408, 503]),
    ];
    for (what, bytes, allowed) in slow {
        for from in 0..5 {
            let (attack, bytes) = (attack.clone(), bytes.clone());
            attackers.push(tokio::spawn(async move {
                while attack.goes_on() {
                    if what == "silence" {
                        // No byte at all: the server has to end the connection.
                        let Ok(mut stream) = connect(attack.to, [127, 0, 3, from]).await else { continue };
                        assert_eq!(listen(&mut stream, TOO_LONG).await, b"", "an answer to nothing");
                        attack.note(what, "closed");
                    } else {
                        attack.drip(what, 100 + from, &bytes, allowed).await;
                    }
                }
            }));
        }
    }
    // Clients from many addresses that connect and send nothing.
    let (crowd, at_once) = (number("ROLLCALL_HOSTILE_CONNECTIONS", 1_000), connections_at_once());
    let opened = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&opened);
    attackers.push(tokio::spawn(async move {
        let mut held = std::collections::VecDeque::new();
        for n in 0..crowd {
            if let Ok(stream) = connect(to, [127, 0, 4, u8::try_from(n % 40).unwrap()]).await {
                counted.fetch_add(1, Ordering::Relaxed);
                held.push_back(stream);
            }
            if held.len() >= at_once {
                held.pop_front();
            }
            if n % 100 == 99 {
                sleep(Duration::from_millis(20)).await;
            }
        }
    }));

    let mut attacked = honest_for(length).await;
    attack.over.store(true, Ordering::Relaxed);
    for attacker in attackers {
        attacker.await.unwrap();
    }
    for (what, times) in attack.result.lock().unwrap().iter() {
        println!("{times:>6} {what}");
    }
    let opened = opened.load(Ordering::Relaxed);
    assert_eq!(opened, crowd, "connections were refused");
    assert!(!quiet.is_empty() && !attacked.is_empty());
    let (requests, calm, busy) = (quiet.len() + attacked.len(), p99(&mut quiet), p99(&mut attacked));
    println!(
        "{requests} honest requests, all answered; p99 {calm:?} quiet, {busy:?} under attack: {:.1} times; \
         {opened} connections of the crowd, {at_once} at once at most",
        busy.as_secs_f64() / calm.as_secs_f64()
    );
    server.check_whole();
    assert_eq!(server.get("/healthz").send().await.status, 200);
}

/// A provider of keys on the loopback that counts its requests.
fn provider(set: String) -> (String, Arc<AtomicUsize>) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/keys.json", listener.local_addr().unwrap());
    let asked = Arc::<AtomicUsize>::default();
    let count = Arc::clone(&asked);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut head = std::io::BufReader::new(stream.try_clone().unwrap());
            let mut line = String::new();
            while std::io::BufRead::read_line(&mut head, &mut line).is_ok_and(|read| read > 2) {
                line.clear();
            }
            count.fetch_add(1, Ordering::SeqCst);
            let length = set.len();
            let _ = write!(
                stream,
                "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{set}"
            );
        }
    });
    (url, asked)
}

/// Goal: only the provider's tokens are accepted, and invented key names do not cause endless requests to the
/// provider. Method: over HTTP, many at once. `tests/server/jwt.rs` tests tokens in detail.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn swapped_algorithms_and_unknown_keys_open_nothing() {
    let der = std::fs::read("fixtures/jwt/provider-rsa.der").unwrap();
    let private = EncodingKey::from_rsa_der(&der);
    let mut public =
        serde_json::to_value(Jwk::from_encoding_key(&private, Algorithm::RS256).unwrap()).unwrap();
    public["kid"] = json!("k1");
    let (url, asked) = provider(json!({ "keys": [public] }).to_string());
    let server = Server::with(|settings| {
        settings.auth.auth = AuthMode::Jwt;
        settings.auth.jwt_keys = Some(url);
        settings.auth.jwt_issuer = Some("https://id.example".into());
    });
    let claims = json!({ "iss": "https://id.example", "sub": "anna", "device_id": "phone", "exp": START_MS / 1000 + 9_999 });
    let named = |algorithm, kid: &str| Header { kid: Some(kid.into()), ..Header::new(algorithm) };
    let good = jsonwebtoken::encode(&named(Algorithm::RS256, "k1"), &claims, &private).unwrap();
    let ask = |token: String| server.get("/lock").header("authorization", format!("Bearer {token}"));
    ask(good.clone()).send().await.ok();
    assert_eq!(asked.load(Ordering::SeqCst), 1, "at the start");

    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let modulus = public["n"].as_str().unwrap();
    let mut bad = Vec::new();
    for alg in ["none", "None", "nOnE", "", "HS256", "RS512", "PS256", "ES256", "EdDSA"] {
        for signature in ["", "AAAA", good.rsplit('.').next().unwrap()] {
            bad.push(format!("{}.{}.{signature}", part(&json!({ "alg": alg, "kid": "k1" })), part(&claims)));
        }
    }
    for secret in [
        modulus.as_bytes().to_vec(),
        URL_SAFE_NO_PAD.decode(modulus).unwrap(),
        public.to_string().into_bytes(),
        der,
    ] {
        for algorithm in [Algorithm::HS256, Algorithm::HS384, Algorithm::HS512] {
            let key = EncodingKey::from_secret(&secret);
            bad.push(jsonwebtoken::encode(&named(algorithm, "k1"), &claims, &key).unwrap());
        }
    }
    bad.extend([good[..good.len() - 2].to_owned(), good.replace('.', ".."), format!("{good}.{good}")]);
    for token in bad {
        let answer = ask(token.clone()).send().await;
        assert_eq!(answer.problem(), (401, "unauthorized".into()), "{token}");
    }
    assert_eq!(asked.load(Ordering::SeqCst), 1, "a known key needs no question");

    for pause in 0..3 {
        let mut at_once = tokio::task::JoinSet::new();
        for n in 0..200 {
            let header = named(Algorithm::RS256, &format!("' OR 1=1 -- {pause} {n}"));
            at_once.spawn(ask(jsonwebtoken::encode(&header, &claims, &private).unwrap()).send());
        }
        // 503 for requests that came after the one fetch, or would have waited for it with too many others.
        while let Some(answer) = at_once.join_next().await {
            let problem = answer.unwrap().problem();
            assert!(
                [(401, "unauthorized"), (503, "busy")].contains(&(problem.0, problem.1.as_str())),
                "{problem:?}"
            );
        }
        assert_eq!(asked.load(Ordering::SeqCst), pause + 2, "once in ten seconds");
        ask(good.clone()).send().await.ok();
        server.turn(10_000);
    }
}

const SQL: [&str; 8] = [
    "'; DROP TABLE lists; --",
    "\"; DELETE FROM rollcall_ledger; --",
    "' OR '1'='1",
    "1; ATTACH DATABASE 'x.db' AS x",
    "lists\" UNION SELECT * FROM rollcall_user --",
    "');PRAGMA writable_schema=1;--",
    "?1",
    "\\'%_",
];

/// Goal: text stays text. Method: SQL in every parameter of the contract, every name and every value of a
/// body; no stored data changes, and what is accepted is returned as it was sent.
#[tokio::test]
async fn sql_in_every_name_and_value_is_text() {
    let server = Server::new();
    let (anna, ben) = (server.device("anna", "phone"), server.device("ben", "phone"));
    let rows = json!({ "add": { "lists": [{ "lid": key(1), "title": "Ben's" }] } });
    server.sync(&ben, rows).await.ok();
    let tables: Vec<String> = server.dump().into_keys().collect();
    let bens = server.get("/changes").of(&ben).send().await.bytes;
    let doc = document();
    let mut asked = 0;
    for sql in SQL {
        let quoted = serde_urlencoded::to_string([("", sql)]).unwrap()[1..].to_owned();
        for ((method, path), operation) in operation_objects(&doc) {
            let shared = doc["paths"][&path].get("parameters").and_then(Value::as_array);
            let own = operation.get("parameters").and_then(Value::as_array);
            let parameters: Vec<_> =
                shared.into_iter().chain(own).flatten().map(|it| follow(&doc, it)).collect();
            let mut filled = path.clone();
            for parameter in parameters.iter().filter(|it| it["in"] == "path") {
                filled = filled.replace(
                    &format!("{{{}}}", parameter["name"].as_str().unwrap()),
                    &quoted.replace('+', "%20"),
                );
            }
            let ask = |path: &str| match operation.get("requestBody") {
                Some(_) => server.ask(&method, path).of(&anna).json(&json!({ sql: sql })),
                None => server.ask(&method, path).of(&anna),
            };
            if path == "/logout" {
                continue; // it would end the token; it has nothing to fill in
            }
            let mut asks = vec![ask(&filled), ask(&format!("{filled}?{quoted}={quoted}"))];
            for parameter in &parameters {
                let name = parameter["name"].as_str().unwrap();
                match parameter["in"].as_str().unwrap() {
                    "query" => asks.push(ask(&format!("{filled}?{name}={quoted}"))),
                    "header" => asks.push(ask(&filled).header(&name.to_lowercase(), sql)),
                    _ => {}
                }
            }
            for ask in asks {
                let answer = ask.send().await;
                assert!(answer.status < 500, "{method} {path}: {sql}: {}", answer.status);
                asked += 1;
            }
        }
        for set in ["add", "update", "delete", "get"] {
            let bodies = [
                json!({ set: { sql: [] } }),
                json!({ set: { "lists": [sql] } }),
                json!({ set: { "lists": sql } }),
                json!({ set: { "lists": [{ "lid": sql, "title": "x" }] } }),
                json!({ set: { "lists": [{ "lid": key(2), sql: "x" }] } }),
                json!({ set: { "lists": [{ "lid": key(2), "title": "x", "last_update": sql, "_base": sql }] } }),
                json!({ set: {}, "base": sql }),
                json!({ set: {}, "sent_at": sql }),
            ];
            for body in bodies {
                let answer = server.sync(&anna, body.clone()).await;
                assert!(answer.status < 500, "{body}: {}", answer.status);
                asked += 1;
            }
        }
        let columns =
            ["text", "whole", "real", "exact", "flag", "other", "at", "day", "extra", "bytes", "made"];
        for column in columns {
            let body = json!({ "add": { "things": [{ "id": key(9), column: sql }] } });
            assert!(server.sync(&anna, body).await.status < 500, "{column}: {sql}");
            asked += 1;
        }
        server
            .sync(
                &anna,
                json!({ "add": { "things": [{ "id": key(5), "text": sql, "extra": { sql: sql } }] } }),
            )
            .await
            .ok();
        let row = server.row(&anna, "things", &key(5)).await.unwrap();
        assert_eq!((&row["text"], &row["extra"]), (&json!(sql), &json!({ sql: sql })));
        for (email, password, device) in
            [(sql, PASSWORD, "x"), ("anna@example.org", sql, "x"), ("anna@example.org", PASSWORD, sql)]
        {
            let body = json!({ "email": email, "password": password, "device": device });
            let status = server.ask("POST", "/login").json(&body).send().await.status;
            assert_eq!(status == 200, device == sql && device.len() > 1, "{body}: {status}");
        }
        asked += 4;
    }
    println!("{asked} requests with SQL in them");
    server.check_whole();
    assert_eq!(server.dump().into_keys().collect::<Vec<_>>(), tables);
    assert_eq!(server.get("/changes").of(&ben).send().await.bytes, bens);
    let users = server.dump().into_iter().find(|(name, _)| name == "rollcall_user").unwrap().1;
    assert_eq!(users.len(), 2, "{users:?}");
}

//! Long responses over real sockets: they begin before they are read completely, a client that stops blocks
//! nobody, and an incomplete response never looks complete.

use rollcall_testkit::app;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use app::{Device, Server, key};
use rollcall::config::Settings;
use rollcall::http::{routes, serve};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

/// Far longer than anything here should take.
const TOO_LONG: Duration = Duration::from_secs(60);

/// Large rows, so that a feed is far more than what sockets and channels hold.
const LARGE_ROWS: u64 = 6_000;
const LARGE_BYTES: usize = 4_000;

/// Small rows, for a manifest of 6 MB.
const SMALL_ROWS: u64 = 70_000;

/// A server on a socket; long responses have one reader in total.
struct Running {
    server: Server,
    address: SocketAddr,
}

impl Running {
    async fn start(change: impl FnOnce(&mut Settings)) -> Self {
        let server = Server::with(|settings| {
            settings.limits.readers_max = 2;
            settings.limits.rows_max = 50_000;
            settings.sync.fetch_rows_max = 1_000_000;
            change(settings);
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let app = Arc::clone(&server.app);
        let (bounds, draining) = (Arc::clone(&app.bounds), app.draining.clone());
        tokio::spawn(async move {
            serve(listener, routes(app), bounds, draining, Arc::default(), std::future::pending()).await
        });
        Self { server, address }
    }

    /// Anna's phone and tablet, and rows that her phone has sent.
    async fn with_rows(&self, large: u64, small: u64) -> (Device, Device) {
        let (phone, tablet) = (self.server.device("anna", "phone"), self.server.device("anna", "tablet"));
        let mut chance = 7_u64;
        let mut title = || -> String {
            let letters = std::iter::repeat_with(|| {
                chance =
                    chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                char::from(b'!' + (chance >> 58) as u8 + 2)
            });
            letters.take(LARGE_BYTES).map(|letter| if letter == '\\' { '~' } else { letter }).collect()
        };
        for begin in (0..large).step_by(1_500) {
            let rows: Vec<Value> = (begin..large.min(begin + 1_500))
                .map(|number| json!({ "id": key(number), "title": title() }))
                .collect();
            self.server.sync(&phone, json!({ "add": { "ours": rows } })).await.ok();
        }
        for begin in (0..small).step_by(35_000) {
            let rows: Vec<Value> = (begin..small.min(begin + 35_000))
                .map(|number| json!({ "id": key(1_000_000 + number), "title": "x" }))
                .collect();
            self.server.sync(&phone, json!({ "add": { "ours": rows } })).await.ok();
        }
        (phone, tablet)
    }

    /// Sends a request on a connection with small buffers.
    async fn ask(&self, device: &Device, path: &str, headers: &str) -> Client {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4_096).unwrap();
        let mut stream = socket.connect(self.address).await.unwrap();
        let token = &device.token;
        let request =
            format!("GET {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\n{headers}\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        Client { stream, seen: Vec::new() }
    }

    fn feed_rows(&self) -> u64 {
        self.server.app.metrics.feed_rows.get()
    }
}

const LINES: &str = "accept: application/x-ndjson\r\n";

struct Client {
    stream: TcpStream,
    seen: Vec<u8>,
}

impl Client {
    /// Reads the head, and leaves the rest; returns the head.
    async fn head(&mut self) -> String {
        while !self.seen.windows(4).any(|four| four == b"\r\n\r\n") {
            assert!(self.more().await, "closed before an answer");
        }
        String::from_utf8_lossy(&self.seen).split("\r\n\r\n").next().unwrap().to_owned()
    }

    async fn more(&mut self) -> bool {
        let read = self.stream.read_buf(&mut self.seen);
        tokio::time::timeout(TOO_LONG, read).await.expect("the server never spoke").unwrap_or(0) > 0
    }

    /// Reads until the connection or the response ends. Returns the chunked body, and whether it is complete.
    async fn rest(mut self) -> (Vec<u8>, bool) {
        while !self.seen.ends_with(b"\r\n0\r\n\r\n") && self.more().await {}
        let whole = self.seen.ends_with(b"\r\n0\r\n\r\n");
        let head = self.seen.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
        let (mut body, mut rest) = (Vec::new(), &self.seen[head..]);
        while let Some(end) = rest.windows(2).position(|two| two == b"\r\n") {
            let length = usize::from_str_radix(std::str::from_utf8(&rest[..end]).unwrap(), 16).unwrap();
            let (from, to) = (end + 2, (end + 2 + length).min(rest.len()));
            body.extend_from_slice(&rest[from..to]);
            rest = &rest[(to + 2).min(rest.len())..];
        }
        (body, whole)
    }
}

async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < TOO_LONG, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Goal: the memory of a response's compressor is reserved until the response is sent, and a response without
/// memory for it is sent uncompressed. Method: clients that stop reading, before and after others have taken
/// the memory.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_without_memory_for_a_compressor_goes_out_as_it_is() {
    const BROTLI: usize = 4 * 1024 * 1024;
    let running = Running::start(|_| {}).await;
    let (phone, _) = running.with_rows(2_000, 0).await;
    let memory = &running.server.app.memory;
    until("the rows are written", || memory.used() == 0).await;
    let ask = || running.ask(&phone, "/changes", "accept: application/x-ndjson\r\naccept-encoding: br\r\n");
    let mut compressed = ask().await;
    assert!(compressed.head().await.to_lowercase().contains("content-encoding: br"));
    assert!(memory.used() >= BROTLI, "{} bytes", memory.used());
    let others = memory.permit(None);
    while others.grow(1024 * 1024).is_ok() {}
    others.shrink(1024 * 1024);
    let mut plain = ask().await;
    assert!(!plain.head().await.to_lowercase().contains("content-encoding"));
    drop((compressed, plain, others));
    until("the memory is given back", || memory.used() == 0).await;
}

/// Goal: a client that stops reading occupies neither memory nor a reader, and blocks no writer, even with a
/// compressed response. Method: it stops after the first bytes; meanwhile others write and read over the one
/// reader of long responses, and few rows are read for it. Then it reads on to the end.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_stops_reading_holds_nothing_up() {
    let running = Running::start(|_| {}).await;
    let (phone, tablet) = running.with_rows(LARGE_ROWS, 0).await;
    for encoding in ["", "accept-encoding: gzip\r\n"] {
        let before = running.feed_rows();
        let mut stopped = running.ask(&tablet, "/changes", &format!("{LINES}{encoding}")).await;
        let head = stopped.head().await;
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        assert_eq!(head.contains("content-encoding: gzip"), !encoding.is_empty(), "{head}");

        let row = json!({ "id": key(9_000_000), "title": encoding });
        running.server.sync(&phone, json!({ "update": { "ours": [row] } })).await.ok();
        // Its turn comes as soon as the stopped client's run has ended.
        let other = running.ask(&phone, "/fetch?lock=false", "").await;
        let (manifest, whole) = other.rest().await;
        assert!(whole);
        let rows = serde_json::from_slice::<Value>(&manifest).unwrap()["ours"].as_array().unwrap().len();
        assert!(rows as u64 >= LARGE_ROWS);
        let read = running.feed_rows() - before;
        assert!(read > 0, "it let go of its reader");
        assert!(read < LARGE_ROWS / 2, "{read} rows are read for a client that takes none");

        let (body, whole) = stopped.rest().await;
        assert!(whole);
        if encoding.is_empty() {
            let lines: Vec<Value> = body
                .split(|byte| *byte == b'\n')
                .filter(|line| !line.is_empty())
                .map(|line| serde_json::from_slice(line).unwrap())
                .collect();
            // The row that changed meanwhile moved above the feed's end, and is in the next feed.
            assert!(lines.len() as u64 > LARGE_ROWS && lines.last().unwrap()["op"] == "end");
        }
    }
}

/// Goal: the socket's deadline ends a client that never continues, and releases all that was held for it.
/// Method: it stops; its connection is closed, and the lock of its response is free.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_never_reads_on_is_cut() {
    let running = Running::start(|settings| {
        settings.limits.request_s = 1;
        settings.sync.lease_ms = 100;
    })
    .await;
    let (phone, tablet) = running.with_rows(0, SMALL_ROWS).await;
    let mut stopped = running.ask(&phone, "/fetch", "").await;
    assert!(stopped.head().await.contains("sync-lock"));
    running.server.turn(1_000); // its lease is over, and its work is not
    let refused = running.server.fetch(&tablet, "").await;
    assert_eq!(refused.problem(), (423, "sync_in_progress".into()));
    let held = || running.server.app.locks.holder(running.server.owner("anna")).unwrap().is_some();
    until("the lock is never free", || {
        running.server.turn(1_000);
        !held()
    })
    .await;
    let (_, whole) = stopped.rest().await;
    assert!(!whole, "an answer that was cut looks whole");
    assert_eq!(running.server.fetch(&tablet, "").await.status, 200);
}

/// Goal: under the lock no device of the owner writes between the first row and the last; the lock is free
/// again once the response is read. Method: the response is read slowly while the other device tries.
#[tokio::test(flavor = "multi_thread")]
async fn the_work_under_the_lock_ends_with_the_answer() {
    let running = Running::start(|settings| settings.sync.lease_ms = 100).await;
    let (phone, tablet) = running.with_rows(0, SMALL_ROWS).await;
    let mut slow = running.ask(&phone, "/fetch", "").await;
    slow.head().await;
    running.server.turn(1_000);
    let row = json!({ "add": { "ours": [{ "id": key(1), "title": "y" }] } });
    assert_eq!(running.server.sync(&tablet, row.clone()).await.status, 423);
    let (body, whole) = slow.rest().await;
    assert!(whole);
    let result: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(result["ours"].as_array().unwrap().len() as u64, SMALL_ROWS);
    running.server.turn(1_000);
    running.server.sync(&tablet, row).await.ok();
}

/// Goal: a manifest that cannot be completed breaks off visibly. Method: read without the lock and slowly, it
/// has released its snapshot for another reader when a third device writes.
#[tokio::test(flavor = "multi_thread")]
async fn a_roll_call_that_breaks_off_never_looks_whole() {
    let running = Running::start(|settings| settings.memory.ready_bytes_max = 0).await;
    let (phone, tablet) = running.with_rows(0, SMALL_ROWS).await;
    let mut slow = running.ask(&phone, "/fetch?lock=false", "").await;
    slow.head().await;
    assert!(running.ask(&tablet, "/fetch?lock=false", "").await.rest().await.1);
    let row = json!({ "id": key(1), "title": "y" });
    running.server.sync(&tablet, json!({ "add": { "ours": [row] } })).await.ok();
    let (body, whole) = slow.rest().await;
    assert!(!whole, "{} bytes that look whole", body.len());
    assert!(serde_json::from_slice::<Value>(&body).is_err());
}

/// Goal: the same of a feed, compressed or not. Method: what it needs is purged on the way.
#[tokio::test(flavor = "multi_thread")]
async fn a_feed_that_breaks_off_never_looks_whole() {
    let running = Running::start(|_| {}).await;
    let (_, tablet) = running.with_rows(LARGE_ROWS, 0).await;
    for encoding in ["", "accept-encoding: gzip\r\n"] {
        let before = running.feed_rows();
        let mut slow = running.ask(&tablet, "/changes", &format!("{LINES}{encoding}")).await;
        slow.head().await;
        until("it never let go", || running.feed_rows() > before).await;
        running.server.sql("UPDATE rollcall_owner SET version = version + 2, horizon = version + 1");
        let (body, whole) = slow.rest().await;
        assert!(!whole, "{} bytes that look whole", body.len());
    }
}

/// Goal: a cached response equals the first one, and is used only at its version. Method: fetched again and
/// again while another device writes in between; each response must contain what was acknowledged before.
#[tokio::test(flavor = "multi_thread")]
async fn a_ready_answer_is_never_old() {
    let running = Running::start(|_| {}).await;
    let rows = 2_000;
    let (phone, tablet) = running.with_rows(0, rows).await;
    for round in 0..20 {
        let mut bodies = Vec::new();
        for _ in 0..3 {
            let result = running.server.fetch(&phone, "?lock=false").await;
            let tag = result.header("etag").unwrap().to_owned();
            let known = running.server.get("/fetch?lock=false").of(&phone).header("if-none-match", &tag);
            assert_eq!(known.send().await.status, 304);
            let since = result.version();
            let nothing = running.server.get(&format!("/changes?since={since}")).of(&phone).send().await.ok();
            assert_eq!((&nothing["add"], &nothing["version"]), (&json!({}), &json!(since)));
            bodies.push((result.bytes, tag, since));
        }
        assert!(bodies.windows(2).all(|two| two[0] == two[1]));
        let (bytes, tag, since) = &bodies[0];
        let result = serde_json::from_slice::<Value>(bytes).unwrap()["ours"].as_array().unwrap().len();
        assert_eq!(result as u64, rows + round);

        let row = json!({ "id": key(round), "title": "y" });
        running.server.sync(&tablet, json!({ "add": { "ours": [row] } })).await.ok();
        let known = running.server.get("/fetch?lock=false").of(&phone).header("if-none-match", tag);
        assert_eq!(known.send().await.status, 200, "another device wrote");
        let new = running.server.get(&format!("/changes?since={since}")).of(&phone).send().await.ok();
        assert_eq!(new["add"]["ours"].as_array().unwrap().len(), 1);
    }
}

/// Goal: a token that is taken back is refused at once, though it was in memory. Method: it is used, taken back by
/// another device, and used again.
#[tokio::test]
async fn a_token_that_is_taken_back_ends_at_once() {
    let server = Server::new();
    let (phone, tablet) = (server.device("anna", "phone"), server.device("anna", "tablet"));
    for device in [&phone, &tablet] {
        assert_eq!(server.get("/changes").of(device).send().await.status, 200);
    }
    let gone = server.ask("DELETE", &format!("/devices/{}", tablet.id)).of(&phone).send().await;
    assert_eq!(gone.status, 204);
    assert_eq!(server.get("/changes").of(&tablet).send().await.status, 401);
    assert_eq!(server.get("/changes").of(&phone).send().await.status, 200);
    assert_eq!(server.ask("POST", "/logout").of(&phone).send().await.status, 204);
    assert_eq!(server.get("/changes").of(&phone).send().await.status, 401);
}

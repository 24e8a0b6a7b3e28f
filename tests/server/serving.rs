//! The accept loop and its layers, over real sockets: deadlines, limits, shapes, the stop.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io::{BufRead, Read};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rollcall::config::Settings;
use rollcall::http::methods::{get, post, shape};
use rollcall::http::{
    ApiError, Bounds, Drained, Draining, Memory, Origins, Peer, Received, RequestHeaders, body, no_body,
    peer, serve, slow_body,
};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinHandle;
use warp::{Filter, Reply};

/// Far longer than anything here should take: a test that waits so long has found a hang.
const TOO_LONG: Duration = Duration::from_secs(60);

/// Longer than what is to happen at once takes on a loaded machine; shorter than what a fault would wait for.
const AT_ONCE: Duration = Duration::from_secs(25);

/// Small limits, so that a test reaches each of them within half a second.
fn small() -> Bounds {
    Bounds {
        request: Duration::from_millis(500),
        header_read: Duration::from_millis(300),
        drain: Duration::from_millis(300),
        body_grace: Duration::from_millis(200),
        body_bytes_per_s_min: 1_000_000,
        body_bytes_max: 1000,
        header_bytes_max: 1024,
        headers_max: 16,
        ..Bounds::from_settings(&Settings::default()).unwrap()
    }
}

/// The signals between the handlers of [`routes`] and the test.
#[derive(Default)]
struct Signals {
    begun: Notify,
    go_on: Notify,
}

/// An application that shows one thing on each path.
fn routes(
    bounds: Arc<Bounds>,
    signals: Arc<Signals>,
) -> impl Filter<Extract = impl Reply, Error = Infallible> + Clone + Send + Sync + 'static {
    let memory = Memory::new(1 << 20, 1 << 10, Arc::default());
    let echo = |taken: Result<Received, ApiError>| async move {
        taken.map(|taken| warp::http::Response::new(taken.bytes.len().to_string()))
    };
    let slow = warp::path!("slow").and(get()).then(move || {
        let signals = signals.clone();
        async move {
            signals.begun.notify_one();
            signals.go_on.notified().await;
            "done"
        }
    });
    warp::path!("ping")
        .and(get())
        .map(|| "pong")
        .or(warp::path!("bare").and(post()).and(no_body(bounds.clone())).map(|| "done"))
        .or(warp::path!("upload").and(post()).and(slow_body(bounds.clone(), memory.clone())).then(echo))
        .or(warp::path!("upload" / u64).and(post()).and(slow_body(bounds.clone(), memory.clone())).then(
            |ms, _: Result<Received, ApiError>| async move {
                tokio::time::sleep(Duration::from_millis(ms)).await;
                "done"
            },
        ))
        .or(warp::path!("echo").and(post()).and(body(bounds, memory)).then(echo))
        .or(slow)
        .or(warp::path!("never").and(get()).then(std::future::pending::<String>))
        .or(warp::path!("panic").and(get()).map(|| -> String { panic!("a bug, row 7") }))
        .or(warp::path!("bytes" / usize).and(get()).map(|bytes| "x".repeat(bytes)))
        .or(warp::path!("events")
            .and(get())
            .map(|| warp::reply::with_header("x".repeat(4096), "content-type", "text/event-stream")))
        .or(warp::path!("who").and(get()).and(peer()).map(|peer: Peer| peer.0.to_string()))
        .recover(shape)
}

/// A running server, and the means to stop it.
struct Running {
    address: SocketAddr,
    signals: Arc<Signals>,
    draining: Draining,
    stop: oneshot::Sender<()>,
    task: JoinHandle<Drained>,
}

impl Running {
    async fn start(bounds: Bounds) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (bounds, signals, draining) = (Arc::new(bounds), Arc::<Signals>::default(), Draining::default());
        let (stop, stopped) = oneshot::channel::<()>();
        let app = routes(bounds.clone(), signals.clone());
        let stopped = async move { drop(stopped.await) };
        let task = tokio::spawn(serve(listener, app, bounds, draining.clone(), Arc::default(), stopped));
        Self { address, signals, draining, stop, task }
    }

    async fn client(&self) -> Client {
        Client::over(TcpStream::connect(self.address).await.unwrap())
    }

    /// Sends one request on a connection of its own.
    async fn ask(&self, request: &str) -> Answer {
        let mut client = self.client().await;
        client.send(request).await;
        client.answer().await
    }

    async fn stop(self) -> Drained {
        self.stop.send(()).unwrap();
        tokio::time::timeout(TOO_LONG, self.task).await.expect("the server never stopped").unwrap()
    }
}

/// A client that sees every byte.
struct Client {
    stream: TcpStream,
    seen: Vec<u8>,
}

#[derive(Debug)]
struct Answer {
    status: u16,
    headers: HashMap<String, String>,
    body: Vec<u8>,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    /// Checks the response against the contract's problem document.
    fn is_problem(&self, status: u16, code: &str) -> Value {
        assert_eq!(self.status, status, "{self:?}");
        assert_eq!(self.header("content-type"), Some("application/problem+json"));
        assert!(self.header("x-request-id").is_some());
        let document: Value = serde_json::from_slice(&self.body).unwrap();
        assert_eq!(document["code"], code);
        assert_eq!(document["status"], status);
        document
    }
}

impl Client {
    fn over(stream: TcpStream) -> Self {
        Self { stream, seen: Vec::new() }
    }

    async fn send(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).await.unwrap();
    }

    /// Reads more; whether there was more.
    async fn more(&mut self) -> bool {
        let read = self.stream.read_buf(&mut self.seen);
        tokio::time::timeout(TOO_LONG, read).await.expect("the server never spoke").unwrap_or(0) > 0
    }

    /// Reads one response, by its length or its chunks.
    async fn answer(&mut self) -> Answer {
        let head = loop {
            match self.seen.windows(4).position(|four| four == b"\r\n\r\n") {
                Some(end) => break self.seen.drain(..end + 4).collect::<Vec<u8>>(),
                None => assert!(self.more().await, "closed before an answer: {:?}", self.seen),
            }
        };
        let head = String::from_utf8(head).unwrap();
        let mut lines = head.lines();
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let mut headers = HashMap::new();
        for (name, value) in lines.filter_map(|line| line.split_once(": ")) {
            let result = headers.entry(name.to_lowercase()).or_insert_with(String::new);
            *result = if result.is_empty() { value.to_owned() } else { format!("{result}, {value}") };
        }
        let mut answer = Answer { status, headers, body: Vec::new() };
        if answer.header("transfer-encoding") == Some("chunked") {
            loop {
                let length = usize::from_str_radix(&self.line().await, 16).unwrap();
                let chunk = self.take(length).await;
                answer.body.extend(chunk);
                assert_eq!(self.line().await, "");
                if length == 0 {
                    break;
                }
            }
        } else if let Some(length) = answer.header("content-length") {
            answer.body = self.take(length.parse().unwrap()).await;
        }
        answer
    }

    async fn take(&mut self, bytes: usize) -> Vec<u8> {
        while self.seen.len() < bytes {
            assert!(self.more().await, "closed in the middle of an answer");
        }
        self.seen.drain(..bytes).collect()
    }

    async fn line(&mut self) -> String {
        loop {
            if let Some(end) = self.seen.windows(2).position(|two| two == b"\r\n") {
                let line = self.take(end + 2).await;
                return String::from_utf8(line).unwrap().trim_end().to_owned();
            }
            assert!(self.more().await, "closed in the middle of a line");
        }
    }

    /// Waits until the server closes; returns how long that took, and what it sent until then.
    async fn closed(mut self) -> (Duration, String) {
        let started = Instant::now();
        while self.more().await {}
        (started.elapsed(), String::from_utf8_lossy(&self.seen).into_owned())
    }
}

const PING: &str = "GET /ping HTTP/1.1\r\nhost: x\r\n\r\n";

fn json_of(length: usize) -> String {
    format!(
        "POST /echo HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n"
    )
}

/// Goal: no client holds a connection without asking something. Method: silence before, within and after a
/// request.
#[tokio::test]
async fn a_client_that_does_not_finish_its_header_is_cut() {
    let server = Running::start(small()).await;
    for beginning in ["", "GET /ping HT", "GET /ping HTTP/1.1\r\nhost: x\r\n"] {
        let mut client = server.client().await;
        client.send(beginning).await;
        let (took, said) = client.closed().await;
        assert!(took >= Duration::from_millis(250), "{beginning:?} was cut after {took:?}");
        assert_eq!(said, "", "{beginning:?}");
    }
    let mut client = server.client().await;
    for _ in 0..3 {
        client.send(PING).await;
        assert_eq!(client.answer().await.text(), "pong");
    }
    let (took, said) = client.closed().await;
    assert!(took >= Duration::from_millis(250), "a kept connection was cut after {took:?}");
    assert_eq!(said, "");
}

/// A header line every 50 ms must not buy more time than silence does.
#[tokio::test]
async fn a_header_that_drips_in_is_cut() {
    let server = Running::start(small()).await;
    let mut client = server.client().await;
    client.send("GET /ping HTTP/1.1\r\n").await;
    let started = Instant::now();
    while client.stream.write_all(b"x-drip: 1\r\n").await.is_ok() {
        assert!(started.elapsed() < TOO_LONG, "the server listened on and on");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_body_within_the_limits_is_read_however_it_comes() {
    let server = Running::start(small()).await;
    for (request, bytes) in [
        (format!("{}{}", json_of(1000), "x".repeat(1000)), "1000"),
        (json_of(0), "0"),
        (
            "POST /echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n4\r\ndefg\r\n0\r\n\r\n".into(),
            "7",
        ),
        (
            "POST /echo HTTP/1.1\r\nhost: x\r\ncontent-type: Application/JSON; charset=utf-8\r\ncontent-encoding: identity\r\ncontent-length: 2\r\n\r\n{}".into(),
            "2",
        ),
    ] {
        let answer = server.ask(&request).await;
        assert_eq!((answer.status, answer.text()), (200, bytes), "{request}");
    }
    // In three pieces: the header, and the body in two.
    let mut client = server.client().await;
    client.send(&json_of(600)).await;
    for _ in 0..2 {
        client.stream.flush().await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
        client.send(&"y".repeat(300)).await;
    }
    assert_eq!(client.answer().await.text(), "600");
    // A client that sends `Expect: 100-continue` is invited to continue.
    let asking = json_of(2).replace("\r\n\r\n", "\r\nexpect: 100-continue\r\n\r\n");
    client.send(&asking).await;
    assert_eq!(client.answer().await.status, 100);
    client.send("{}").await;
    assert_eq!(client.answer().await.text(), "2");
}

#[tokio::test]
async fn a_body_that_breaks_a_rule_is_a_problem() {
    let server = Running::start(small()).await;
    let post = |headers: &str| format!("POST /echo HTTP/1.1\r\nhost: x\r\n{headers}\r\n\r\n");
    let long_chunk = format!("{}\r\n\r\n3e9\r\n{}\r\n", "transfer-encoding: chunked", "x".repeat(1001));
    for (request, status, code) in [
        (post("accept: */*"), 411, "length_required"),
        (json_of(1001), 413, "body_too_large"),
        (json_of(usize::MAX / 2), 413, "body_too_large"),
        (post(&long_chunk), 413, "body_too_large"),
        (post("content-type: text/plain\r\ncontent-length: 0"), 415, "unsupported_media_type"),
        (post("content-type: application/ld+json\r\ncontent-length: 0"), 415, "unsupported_media_type"),
        (post("content-encoding: gzip\r\ncontent-length: 0"), 415, "unsupported_media_type"),
        (post("transfer-encoding: chunked\r\n\r\nnonsense"), 400, "invalid_request"),
    ] {
        server.ask(&request).await.is_problem(status, code);
    }
    let form = "content-type: application/x-www-form-urlencoded\r\ncontent-length: 2\r\n\r\n{}";
    let problem = server.ask(&post(form)).await.is_problem(415, "unsupported_media_type");
    assert!(problem["detail"].as_str().unwrap().contains("-H 'Content-Type: application/json'"));
}

/// Goal: a client that is still sending when it is refused can read why. Method: far more than the socket's
/// buffers hold, read only afterwards: a plain close would reset the connection and lose the response. Some
/// clients send an empty body in chunks, and its end separately.
#[tokio::test]
async fn the_end_of_a_body_that_is_not_wanted_costs_no_connection() {
    let server = Running::start(small()).await;
    let mut client = server.client().await;
    client.send("POST /bare HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n").await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    client.send("0\r\n\r\n").await;
    assert_eq!(client.answer().await.status, 200);
    client.send(PING).await;
    assert_eq!(client.answer().await.body, b"pong");
}

#[tokio::test]
async fn the_answer_to_a_huge_body_arrives() {
    let server = Running::start(Bounds { request: TOO_LONG, ..small() }).await;
    let mut client = server.client().await;
    client.send(&json_of(20_000_000)).await;
    for _ in 0..20 {
        client.send(&"x".repeat(1_000_000)).await;
    }
    let answer = client.answer().await;
    answer.is_problem(413, "body_too_large");
    assert_eq!(answer.header("connection"), Some("close"));
    let (took, _) = client.closed().await;
    assert!(took < AT_ONCE, "closed after {took:?}");
}

#[tokio::test]
async fn a_slow_body_is_refused() {
    let server = Running::start(small()).await;
    let mut client = server.client().await;
    client.send(&json_of(100)).await;
    client.send("{").await;
    client.answer().await.is_problem(408, "body_too_slow");
    client.closed().await;
}

/// Without a pace the total time of the body is the limit, and the response contains the remedy.
#[tokio::test]
async fn a_body_that_takes_longer_than_it_may_is_refused() {
    let bounds = Bounds { body_bytes_per_s_min: 0, body: Duration::from_millis(900), ..small() };
    let server = Running::start(bounds).await;
    for (path, least) in [("/echo", 500), ("/upload", 900)] {
        let begun = Instant::now();
        let mut client = server.client().await;
        client.send(&json_of(100).replace("/echo", path)).await;
        let problem = client.answer().await.is_problem(408, "body_too_slow");
        assert!(problem["detail"].as_str().unwrap().contains("fewer rows"), "{problem}");
        let took = begun.elapsed();
        assert!(took >= Duration::from_millis(least) && took < TOO_LONG, "{path}: {took:?}");
    }
}

/// Goal: the time of a body is its own, and that of the request begins when it has come. Method: bodies that take
/// several times as long as a request may, before a handler that is quick, slow, and too slow.
#[tokio::test]
async fn a_slow_body_does_not_use_up_the_time_of_its_request() {
    let pace = Bounds { body_bytes_per_s_min: 500, body: TOO_LONG, ..small() };
    let server = Running::start(pace).await;
    for (path, outcome) in [("/upload", "1000"), ("/upload/400", "done"), ("/upload/5000", "")] {
        let mut client = server.client().await;
        client.send(&json_of(1000).replace("/echo", path)).await;
        for _ in 0..10 {
            tokio::time::sleep(Duration::from_millis(150)).await;
            client.send(&"x".repeat(100)).await;
        }
        let sent = Instant::now();
        let answer = client.answer().await;
        if outcome.is_empty() {
            answer.is_problem(503, "timeout");
            let took = sent.elapsed();
            assert!(took >= Duration::from_millis(450) && took < AT_ONCE, "{took:?}");
        } else {
            assert_eq!((answer.status, answer.text()), (200, outcome), "{path}");
        }
    }
}

/// Goal: slow bodies use at most the memory of large requests, and block nobody else. Method: long bodies
/// that stop half way, until one is refused; then a short body, and a long one once they have ended.
#[tokio::test]
async fn half_received_bodies_are_bounded_together() {
    let bounds = Bounds {
        request: TOO_LONG,
        body: TOO_LONG,
        body_grace: TOO_LONG,
        body_bytes_max: 400_000,
        ..small()
    };
    let server = Running::start(bounds).await;
    let half = json_of(400_000).replace("/echo", "/upload") + &"x".repeat(200_000);
    let (mut held, mut refused) = (Vec::new(), None);
    for _ in 0..20 {
        let mut client = server.client().await;
        client.send(&half).await;
        if let Ok(answer) = tokio::time::timeout(Duration::from_millis(300), client.answer()).await {
            refused = Some(answer);
            break;
        }
        held.push(client);
    }
    let refused = refused.expect("all of them are held");
    refused.is_problem(503, "busy");
    assert_eq!(refused.header("retry-after"), Some("2"));
    assert!((1..=3).contains(&held.len()), "{} half bodies of 200 KB in 768 KiB", held.len());
    let answer = server.ask(&(json_of(60_000) + &"x".repeat(60_000))).await;
    assert_eq!((answer.status, answer.text()), (200, "60000"));
    drop(held);
    let whole = json_of(400_000).replace("/echo", "/upload") + &"x".repeat(400_000);
    let begun = Instant::now();
    while server.ask(&whole).await.status == 503 {
        assert!(begun.elapsed() < TOO_LONG, "the memory of those who left is never given back");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The body of a stranger is short: an address and a password.
#[tokio::test]
async fn a_stranger_has_no_long_body() {
    let server = Running::start(Bounds { body_bytes_max: 400_000, ..small() }).await;
    server.ask(&json_of(65_537)).await.is_problem(413, "body_too_large");
    let answer = server.ask(&(json_of(65_536) + &"x".repeat(65_536))).await;
    assert_eq!((answer.status, answer.text()), (200, "65536"));
}

/// A fast start does not allow a long silence later.
#[tokio::test]
async fn a_body_that_stops_coming_is_refused() {
    let server = Running::start(Bounds { body_bytes_per_s_min: 10, body: TOO_LONG, ..small() }).await;
    let begun = Instant::now();
    let mut client = server.client().await;
    client.send(&json_of(1000).replace("/echo", "/upload")).await;
    client.send(&"x".repeat(900)).await; // at this pace it might take 90 s
    client.answer().await.is_problem(408, "body_too_slow");
    assert!(begun.elapsed() < AT_ONCE, "{:?}", begun.elapsed());
}

#[tokio::test]
async fn too_many_or_too_long_headers_are_a_problem() {
    let server = Running::start(small()).await;
    let with = |headers: String| format!("GET /ping HTTP/1.1\r\nhost: x\r\n{headers}\r\n");
    let lines = |count: usize| (0..count).map(|n| format!("x-{n}: 1\r\n")).collect::<String>();
    assert_eq!(server.ask(&with(lines(15))).await.status, 200);
    server.ask(&with(lines(16))).await.is_problem(431, "header_too_large");
    let long = |bytes: usize| format!("x-long: {}\r\n", "x".repeat(bytes));
    assert_eq!(server.ask(&with(long(900))).await.status, 200);
    server.ask(&with(long(1100))).await.is_problem(431, "header_too_large");
    // Far beyond, hyper itself refuses, bare.
    for far in [lines(1000), long(100_000)] {
        let answer = server.ask(&with(far)).await;
        assert_eq!((answer.status, answer.body.len()), (431, 0));
    }
}

#[tokio::test]
async fn a_request_out_of_time_is_a_problem() {
    let server = Running::start(small()).await;
    let answer = server.ask("GET /never HTTP/1.1\r\nhost: x\r\n\r\n").await;
    answer.is_problem(503, "timeout");
    assert!(answer.header("retry-after").is_some());
}

#[tokio::test]
async fn a_panic_is_a_problem_and_nothing_else_breaks() {
    let server = Running::start(small()).await;
    let mut client = server.client().await;
    for _ in 0..2 {
        client.send("GET /panic HTTP/1.1\r\nhost: x\r\n\r\n").await;
        let problem = client.answer().await.is_problem(500, "internal");
        assert!(!problem.to_string().contains("row 7"), "the cause is for the log: {problem}");
        client.send(PING).await;
        assert_eq!(client.answer().await.text(), "pong");
    }
}

#[tokio::test]
async fn every_answer_has_a_request_id() {
    let server = Running::start(small()).await;
    let with = |id: &str| format!("GET /ping HTTP/1.1\r\nhost: x\r\nx-request-id: {id}\r\n\r\n");
    let longest = "z".repeat(128);
    for id in ["abc-123", "~!{}", &longest] {
        assert_eq!(server.ask(&with(id)).await.header("x-request-id"), Some(id));
    }
    let too_long = "z".repeat(129);
    for id in ["", "two words", "caf\u{e9}", &too_long] {
        let answer = server.ask(&with(id)).await;
        let made: uuid::Uuid = answer.header("x-request-id").unwrap().parse().unwrap();
        assert_eq!(made.get_version_num(), 7);
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
    }
    let answer = server.ask("PUT /ping HTTP/1.1\r\nhost: x\r\nx-request-id: mine\r\n\r\n").await;
    answer.is_problem(405, "method_not_allowed");
    assert_eq!(answer.header("x-request-id"), Some("mine"));
    assert_eq!(answer.header("allow"), Some("GET, HEAD"));
    server.ask("GET /nowhere HTTP/1.1\r\nhost: x\r\n\r\n").await.is_problem(404, "not_found");
}

#[tokio::test]
async fn large_answers_are_compressed_as_asked() {
    let server = Running::start(small()).await;
    let ask = |path: &str, accepted: &str| {
        format!("GET {path} HTTP/1.1\r\nhost: x\r\naccept-encoding: {accepted}\r\n\r\n")
    };
    for (path, accepted, encoding) in [
        ("/bytes/20000", "gzip", Some("gzip")),
        ("/bytes/20000", "gzip, br", Some("br")),
        ("/bytes/20000", "gzip, br;q=0", Some("gzip")),
        ("/bytes/20000", "identity", None),
        ("/bytes/1000", "gzip", None),
        ("/events", "gzip", None),
    ] {
        let answer = server.ask(&ask(path, accepted)).await;
        assert_eq!(answer.header("content-encoding"), encoding, "{path} {accepted}");
        assert_eq!(answer.body.len() < 1000, encoding.is_some(), "{path} {accepted}");
        assert_eq!(answer.body.starts_with(&[0x1f, 0x8b]), encoding == Some("gzip"), "{path} {accepted}");
    }
    let plain = server.ask("GET /bytes/20000 HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert_eq!((plain.body.len(), plain.header("content-length")), (20_000, Some("20000")));
}

const PREFLIGHT: &str = "OPTIONS /echo HTTP/1.1\r\nhost: x\r\naccess-control-request-method: POST\r\n\
    access-control-request-headers: authorization\r\n";

#[tokio::test]
async fn browsers_of_listed_origins_may_call() {
    let origins = Origins::parse(&["https://app.example".into(), "http://localhost:5173".into()]).unwrap();
    let server = Running::start(Bounds { origins, ..small() }).await;
    let asked = |origin: &str| format!("{PREFLIGHT}origin: {origin}\r\n\r\n");

    let preflight = server.ask(&asked("http://localhost:5173")).await;
    assert_eq!(preflight.status, 200);
    assert_eq!(preflight.header("access-control-allow-origin"), Some("http://localhost:5173"));
    assert_eq!(preflight.header("access-control-allow-methods"), Some("GET,POST,PUT,PATCH,DELETE"));
    let mut allowed: Vec<_> = preflight.header("access-control-allow-headers").unwrap().split(',').collect();
    allowed.sort_unstable();
    let all = "authorization baggage content-type idempotency-key if-none-match last-event-id prefer sentry-trace \
        sync-device sync-for sync-lock traceparent tracestate x-request-id";
    assert_eq!(allowed.join(" "), all);
    assert!(preflight.header("access-control-max-age").is_some());
    assert!(preflight.header("x-request-id").is_some());

    let stranger = server.ask(&asked("https://evil.example")).await;
    assert_eq!(stranger.header("access-control-allow-origin"), None);

    // A refusal too must be readable by the app.
    for path in ["/ping", "/nowhere", "/panic", "/never"] {
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\norigin: https://app.example\r\n\r\n");
        let answer = server.ask(&request).await;
        assert_eq!(answer.header("access-control-allow-origin"), Some("https://app.example"), "{path}");
        assert_eq!(answer.header("vary").map(str::to_lowercase).as_deref(), Some("origin"), "{path}");
        let mut exposed: Vec<_> =
            answer.header("access-control-expose-headers").unwrap().split(',').collect();
        exposed.sort_unstable();
        let all = "etag idempotency-replayed link retry-after server-timing sync-device sync-epoch sync-lock \
            sync-lock-expires sync-version x-request-id";
        assert_eq!(exposed.join(" "), all);
        let timing = answer.header("server-timing").unwrap();
        assert!(timing.starts_with("total;dur="), "{path}: {timing}");
        assert_eq!(answer.header("timing-allow-origin"), Some("https://app.example"), "{path}");
    }
    assert_eq!(stranger.header("timing-allow-origin"), None);
}

#[tokio::test]
async fn origins_may_be_any_or_none() {
    let any = Running::start(Bounds { origins: Origins::Any, ..small() }).await;
    let answer = any.ask(&format!("{PREFLIGHT}origin: https://any.example\r\n\r\n")).await;
    assert_eq!(answer.header("access-control-allow-origin"), Some("*"));
    assert_eq!(answer.header("access-control-allow-credentials"), None);

    // Pages out of files and sandboxes have no origin of their own.
    let sandboxed = Origins::parse(&["null".into()]).unwrap();
    let sandboxed = Running::start(Bounds { origins: sandboxed, ..small() }).await;
    for (origin, allowed) in [("null", Some("null")), ("https://any.example", None)] {
        let answer = sandboxed.ask(&format!("{PREFLIGHT}origin: {origin}\r\n\r\n")).await;
        assert_eq!(answer.header("access-control-allow-origin"), allowed);
    }

    let none = Running::start(small()).await;
    let answer = none.ask(&format!("{PREFLIGHT}origin: https://any.example\r\n\r\n")).await;
    answer.is_problem(405, "method_not_allowed");
    assert_eq!(answer.header("access-control-allow-origin"), None);
}

#[tokio::test]
async fn headers_that_pages_may_send_are_a_setting() {
    let allowed = |headers: &[&str]| {
        let headers: Vec<String> = headers.iter().map(|name| (*name).to_owned()).collect();
        let request_headers = RequestHeaders::parse(&headers).unwrap();
        async move {
            let bounds = Bounds { origins: Origins::Any, request_headers, ..small() };
            let asked = "OPTIONS /echo HTTP/1.1\r\nhost: x\r\norigin: https://a.example\r\n\
                access-control-request-method: POST\r\naccess-control-request-headers: authorization,x-own\r\n\r\n";
            let answer = Running::start(bounds).await.ask(asked).await;
            answer.header("access-control-allow-headers").unwrap().to_owned()
        }
    };
    assert!(!allowed(&[]).await.contains("x-own"));
    let listed = allowed(&["X-Own"]).await;
    assert!(listed.contains("x-own") && listed.contains("authorization"), "{listed}");
    assert_eq!(allowed(&["*"]).await, "authorization,x-own", "browsers take no star for Authorization");
}

#[tokio::test]
async fn an_address_has_only_so_many_connections() {
    let server =
        Running::start(Bounds { connections_per_address_max: 2, header_read: TOO_LONG, ..small() }).await;
    let (mut first, mut second) = (server.client().await, server.client().await);
    for client in [&mut first, &mut second] {
        client.send(PING).await;
        assert_eq!(client.answer().await.text(), "pong");
    }
    let (took, said) = server.client().await.closed().await;
    assert!(took < AT_ONCE && said.is_empty(), "{took:?} {said}");
    drop(first);
    // The permit is free once the server has seen the close, after a moment at most.
    let started = Instant::now();
    loop {
        let mut client = server.client().await;
        if client.stream.write_all(PING.as_bytes()).await.is_ok() && client.more().await {
            break;
        }
        assert!(started.elapsed() < TOO_LONG, "the place was never given back");
    }
}

#[tokio::test]
async fn trusted_proxies_speak_for_many() {
    let server = Running::start(Bounds {
        connections_per_address_max: 1,
        trusted_proxies: vec!["127.0.0.1".parse().unwrap()],
        ..small()
    })
    .await;
    let _open = [server.client().await, server.client().await];
    let who = "GET /who HTTP/1.1\r\nhost: x\r\nx-forwarded-for: 1.1.1.1, 203.0.113.9\r\n\r\n";
    assert_eq!(server.ask(who).await.text(), "203.0.113.9");
    let direct = Running::start(small()).await;
    assert_eq!(direct.ask(who).await.text(), "127.0.0.1");
}

#[tokio::test]
async fn connections_beyond_the_total_wait_for_a_place() {
    let server = Running::start(Bounds { connections_max: 1, header_read: TOO_LONG, ..small() }).await;
    let mut first = server.client().await;
    first.send(PING).await;
    first.answer().await;
    let mut second = server.client().await;
    second.send(PING).await;
    let early = tokio::time::timeout(Duration::from_millis(200), second.more()).await;
    assert!(early.is_err(), "a second connection was served beside the first");
    drop(first);
    assert_eq!(second.answer().await.text(), "pong");
}

#[tokio::test]
async fn a_stop_lets_running_requests_finish() {
    let server = Running::start(Bounds { request: TOO_LONG, drain: TOO_LONG, ..small() }).await;
    let mut client = server.client().await;
    client.send("GET /slow HTTP/1.1\r\nhost: x\r\n\r\n").await;
    server.signals.begun.notified().await;
    let mut idle = server.client().await;
    idle.send(PING).await;
    idle.answer().await;

    assert!(!server.draining.is_set());
    let waiting = tokio::spawn({
        let draining = server.draining.clone();
        async move { draining.begun().await }
    });
    let (signals, draining, address) = (server.signals.clone(), server.draining.clone(), server.address);
    let stopping = tokio::spawn(server.stop());
    let (took, _) = idle.closed().await;
    assert!(took < AT_ONCE, "an idle connection was held for {took:?}");
    assert!(draining.is_set());
    waiting.await.unwrap();
    let refused = TcpStream::connect(address).await;
    assert!(refused.is_err(), "still accepting");
    assert!(!stopping.is_finished());

    signals.go_on.notify_one();
    let answer = client.answer().await;
    assert_eq!(answer.text(), "done");
    assert_eq!(answer.header("connection"), Some("close"));
    assert_eq!(stopping.await.unwrap(), Drained { cut: 0 });
}

/// Goal: nothing delays the stop. Method: a handler that never ends, and half a header.
#[tokio::test]
async fn a_stop_does_not_wait_past_its_time() {
    let server = Running::start(Bounds { request: TOO_LONG, header_read: TOO_LONG, ..small() }).await;
    let mut busy = server.client().await;
    busy.send("GET /slow HTTP/1.1\r\nhost: x\r\n\r\n").await;
    server.signals.begun.notified().await;
    let mut half = server.client().await;
    half.send(PING).await; // so that the server is sure to have it
    half.answer().await;
    half.send("GET /ping HT").await;
    let started = Instant::now();
    let drained = server.stop().await;
    let took = started.elapsed();
    assert!((1..=2).contains(&drained.cut), "{drained:?}");
    assert!(took >= Duration::from_millis(300) && took < AT_ONCE, "{took:?}");
    assert_eq!(busy.closed().await.1, "");
}

/// Goal: a client that stops reading loses its connection. Method: a response larger than the buffers of both
/// ends, of which nothing is read; the server's own stop shows when the connection is closed.
#[tokio::test]
async fn a_client_that_does_not_read_is_cut() {
    let server = Running::start(Bounds { drain: TOO_LONG, ..small() }).await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut client = Client::over(socket.connect(server.address).await.unwrap());
    client.send("GET /bytes/50000000 HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert!(client.more().await);
    let started = Instant::now();
    assert_eq!(server.stop().await, Drained { cut: 0 });
    assert!(started.elapsed() < AT_ONCE, "held for {:?}", started.elapsed());
    assert!(client.closed().await.1.len() < 50_000_000);
}

/// The same size, read steadily, passes: the pace is for those who stop.
#[tokio::test]
async fn a_client_that_reads_steadily_gets_all() {
    let server = Running::start(small()).await;
    let answer = server.ask("GET /bytes/50000000 HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert_eq!(answer.body.len(), 50_000_000);
}

/// A writer for log lines that the test can read.
#[derive(Clone, Default)]
struct Lines(Arc<std::sync::Mutex<Vec<u8>>>);

impl std::io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn a_request_is_one_line_in_the_log_under_its_id() {
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt().json().with_writer(move || writer.clone()).finish();
    // For all threads: with a subscriber of one thread alone, a line that another test wrote first, on a
    // thread without one, would count as disabled everywhere.
    tracing::subscriber::set_global_default(subscriber).unwrap();
    let server = Running::start(small()).await;
    server.ask("GET /ping?token=secret HTTP/1.1\r\nhost: x\r\nx-request-id: line-one\r\n\r\n").await;
    server.ask("GET /panic HTTP/1.1\r\nhost: x\r\nx-request-id: line-two\r\n\r\n").await;
    server.stop().await;

    let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    assert!(!text.contains("secret"), "{text}");
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |id: &str| {
        let mine = lines.iter().filter(|line| line["span"]["id"] == id);
        mine.map(|line| &line["fields"]).collect::<Vec<_>>()
    };
    let [one] = of("line-one")[..] else { panic!("{text}") };
    assert_eq!((&one["method"], &one["path"]), (&Value::from("GET"), &Value::from("/ping")));
    assert_eq!((&one["status"], &one["bytes"]), (&Value::from(200), &Value::from(4)));
    assert_eq!(one["peer"], "127.0.0.1");
    assert!(one["ms"].is_u64());
    let [cause, two] = of("line-two")[..] else { panic!("{text}") };
    assert!(cause["cause"].as_str().unwrap().contains("a bug, row 7"), "{text}");
    assert_eq!(two["status"], 500);
}

/// Goal: out of files, the server neither ends nor spins. Method: this very test runs itself once more as a
/// server that may open few files, is overrun, and must serve again once the crowd has left.
#[test]
fn running_out_of_files_passes() {
    const ROLE: &str = "ROLLCALL_TEST_FEW_FILES";
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    if std::env::var_os(ROLE).is_some() {
        tracing_subscriber::fmt().with_writer(std::io::stderr).init();
        runtime.block_on(async {
            let server = Running::start(Bounds { header_read: TOO_LONG, ..small() }).await;
            println!("\nserving {}", server.address);
            server.task.await.unwrap();
        });
    }
    let mut server = std::process::Command::new("sh")
        .args(["-c", "ulimit -n 40 && exec \"$0\" --exact serving::running_out_of_files_passes --nocapture"])
        .arg(std::env::current_exe().unwrap())
        .env(ROLE, "server")
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = std::io::BufReader::new(server.stdout.take().unwrap()).lines();
    let address = output.find_map(|line| line.unwrap().strip_prefix("serving ").map(str::to_owned)).unwrap();

    let ping = |timeout: Duration| {
        use std::io::Write;
        let mut stream = std::net::TcpStream::connect(&address).unwrap();
        stream.set_read_timeout(Some(timeout)).unwrap();
        stream.write_all(PING.as_bytes()).unwrap();
        stream.read(&mut [0; 16]).is_ok_and(|read| read > 0)
    };
    assert!(ping(TOO_LONG));
    let crowd: Vec<_> = (0..60).map(|_| std::net::TcpStream::connect(&address).unwrap()).collect();
    assert!(!ping(Duration::from_secs(1)), "the crowd did not use up the files");
    drop(crowd);
    assert!(ping(TOO_LONG), "the server did not come back");

    server.kill().unwrap();
    let mut log = String::new();
    server.stderr.take().unwrap().read_to_string(&mut log).unwrap();
    server.wait().unwrap();
    let complaints = log.matches("cannot accept connections").count();
    assert!((1..=20).contains(&complaints), "{complaints} complaints:\n{log}");
}

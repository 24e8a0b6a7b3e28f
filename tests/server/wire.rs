//! The whole server over real sockets: `HEAD`, slow uploads, and the headers that every answer has.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rollcall::http::{Bounds, routes, serve};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};

use rollcall_testkit::app::{Device, Server, key};
use rollcall_testkit::contract::{document, operations};

const TOO_LONG: Duration = Duration::from_secs(60);

/// Serves the app on a port of its own, until the test's runtime ends.
async fn listen(server: &Server, bounds: Bounds) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let app = Arc::clone(&server.app);
    let draining = app.draining.clone();
    tokio::spawn(serve(
        listener,
        routes(app),
        Arc::new(bounds),
        draining,
        Arc::default(),
        std::future::pending(),
    ));
    address
}

fn bounds(server: &Server) -> Bounds {
    (*server.app.bounds).clone()
}

#[derive(Debug)]
struct Answer {
    status: u16,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }
}

/// Sends one request, with `more` as further header lines, and reads what comes until the server closes.
async fn ask(to: SocketAddr, method: &str, path: &str, more: &str) -> Answer {
    let mut stream = TcpStream::connect(to).await.unwrap();
    let head = format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{more}\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    answer(&mut stream).await
}

async fn answer(stream: &mut TcpStream) -> Answer {
    let mut seen = Vec::new();
    timeout(TOO_LONG, stream.read_to_end(&mut seen)).await.expect("the answer never ended").unwrap();
    let end = seen.windows(4).position(|four| four == b"\r\n\r\n").expect("no whole head") + 4;
    let body = seen.split_off(end);
    let head = String::from_utf8(seen).unwrap();
    let mut lines = head.lines();
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let headers = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_lowercase(), value.to_owned()));
    Answer { status, headers: headers.collect(), body }
}

fn bearer(device: &Device) -> String {
    format!("authorization: Bearer {}\r\n", device.token)
}

async fn fill(server: &Server, device: &Device) {
    let lists: Vec<Value> =
        (1..=30).map(|n| json!({ "lid": key(n), "title": format!("list {n}") })).collect();
    server.sync(device, json!({ "add": { "lists": lists } })).await.ok();
}

/// Goal: `HEAD` is `GET` without the body. Method: every path of the contract that has a `GET`, good, refused and
/// unknown, compressed and not; the headers must be the same, but for those of the moment.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn head_says_what_get_would() {
    const CONSOLE: &str = "console-token-of-tests";
    let server = Server::with(|settings| {
        settings.operator.console_token = Some(CONSOLE.into());
        settings.sync.fetch_rows_max = 7;
    });
    let phone = server.device("anna", "phone");
    fill(&server, &phone).await;
    let to = listen(&server, bounds(&server)).await;
    let owner = server.owner("anna").0.to_string();

    let mut cases = Vec::new();
    for (method, path) in operations(&document()) {
        if method != "GET" {
            continue;
        }
        let token = if path.starts_with("/console") {
            format!("authorization: Bearer {CONSOLE}\r\n")
        } else {
            bearer(&phone)
        };
        let path = path.replace("{owner}", &owner);
        let path = if path.ends_with("/why") { format!("{path}?table=lists&key={}", key(1)) } else { path };
        if path != "/events" {
            cases.push((path.clone(), token.clone()));
            cases.push((path.clone(), format!("{token}accept-encoding: gzip\r\n")));
        }
        cases.push((path.clone(), String::new())); // refused, where a token is needed
        cases.push((format!("{path}?no_such=1"), token));
    }
    cases.push(("/fetch?lock=false&tables=lists".into(), bearer(&phone)));
    cases.push(("/changes?limit=3".into(), bearer(&phone)));
    cases.push(("/changes".into(), format!("{}accept: application/x-ndjson\r\n", bearer(&phone))));
    cases.push(("/nowhere".into(), String::new()));
    cases.push(("/login".into(), String::new()));
    cases.retain(|(path, more)| !(path.starts_with("/events") && more.contains("Bearer")));
    assert!(cases.len() > 60, "{}", cases.len());

    let of_the_moment = ["server-timing", "x-request-id", "date", "sync-lock", "sync-lock-expires"];
    for (path, more) in cases {
        let head = ask(to, "HEAD", &path, &more).await;
        assert_eq!(head.body, b"", "{path}");
        let got = ask(to, "GET", &path, &more).await;
        assert_eq!(head.status, got.status, "{path}");
        for (name, value) in &got.headers {
            match name.as_str() {
                name if of_the_moment.contains(&name) => {}
                // The length of what is made while it is sent is not known, and stays unsaid.
                "transfer-encoding" => assert_eq!(head.header("content-length"), None, "{path}"),
                // What these say moves on between two calls.
                "content-length" if path.starts_with("/metrics") || path.starts_with("/console") => {
                    assert!(head.header(name).is_some(), "{path}");
                }
                _ => assert_eq!(head.header(name), Some(value.as_str()), "{path} {more} {name}"),
            }
        }
        assert!(got.header("cache-control").is_some(), "{path}: {got:?}");
    }

    // A connection goes on after it: nothing of a body follows.
    let mut stream = TcpStream::connect(to).await.unwrap();
    let both = "HEAD /limits HTTP/1.1\r\nhost: x\r\n\r\nGET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    stream.write_all(both.as_bytes()).await.unwrap();
    let mut seen = String::new();
    stream.read_to_string(&mut seen).await.unwrap();
    let (first, second) = seen.split_once("\r\n\r\n").unwrap();
    assert!(first.starts_with("HTTP/1.1 200") && second.starts_with("HTTP/1.1 200"), "{seen}");
    for path in ["/login", "/synchronise"] {
        assert_eq!(ask(to, "HEAD", path, "").await.header("allow"), Some("POST"));
    }
    assert_eq!(ask(to, "PUT", "/fetch", "").await.header("allow"), Some("GET, HEAD"));
}

/// Goal: who only looks keeps nobody out, and takes no place. Method: `HEAD` of a long roll call, of one page and of
/// events; then the lock is free, and the stream of another goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn head_takes_no_lock_and_no_place() {
    let server = Server::with(|settings| settings.limits.event_streams_per_user_max = 1);
    let (phone, tablet) = (server.device("anna", "phone"), server.device("anna", "tablet"));
    fill(&server, &phone).await;
    let to = listen(&server, bounds(&server)).await;
    let mut events = TcpStream::connect(to).await.unwrap();
    let head = format!("GET /events HTTP/1.1\r\nhost: x\r\n{}\r\n", bearer(&tablet));
    events.write_all(head.as_bytes()).await.unwrap();
    let mut seen = Vec::new();
    while !String::from_utf8_lossy(&seen).contains("event: lock") {
        assert!(timeout(TOO_LONG, events.read_buf(&mut seen)).await.unwrap().unwrap() > 0);
    }

    for path in ["/fetch", "/fetch.json", "/fetch?tables=lists", "/fetch?lock=true"] {
        let head = ask(to, "HEAD", path, &bearer(&phone)).await;
        assert_eq!((head.status, head.header("sync-lock")), (200, None), "{path}");
        let known = format!("{}if-none-match: {}\r\n", bearer(&phone), head.header("etag").unwrap());
        assert_eq!(ask(to, "HEAD", path, &known).await.status, 304);
        assert_eq!(server.get("/lock").of(&tablet).send().await.ok()["held"], false, "{path}");
    }
    let head = ask(to, "HEAD", "/events", &bearer(&phone)).await;
    assert_eq!((head.status, head.header("content-type")), (200, Some("text/event-stream")));
    let goes_on = timeout(Duration::from_millis(300), events.read_buf(&mut seen)).await;
    assert!(goes_on.is_err(), "the stream was ended: {}", String::from_utf8_lossy(&seen));
}

/// Goal: a slow line is no reason to lose an upload. Method: rows at a pace that needs several times `request_s`,
/// while another device of the owner syncs: nothing is held for a body that is still coming.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_upload_is_applied() {
    let server = Server::with(|settings| settings.limits.request_s = 1);
    let (phone, tablet) = (server.device("anna", "phone"), server.device("anna", "tablet"));
    let second = Duration::from_secs(1);
    let to = listen(&server, bounds(&server)).await;
    let lists: Vec<Value> = (1..=1_000)
        .map(|n| json!({ "lid": key(n), "title": format!("list {n}"), "colour": "x".repeat(150) }))
        .collect();
    let body = json!({ "add": { "lists": lists } }).to_string();
    assert!(body.len() > 200_000);

    let begun = Instant::now();
    let mut stream = TcpStream::connect(to).await.unwrap();
    let head = format!(
        "POST /synchronise HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{}content-type: application/json\r\n\
         content-length: {}\r\n\r\n",
        bearer(&phone),
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    for (n, piece) in body.as_bytes().chunks(body.len() / 30 + 1).enumerate() {
        sleep(Duration::from_millis(100)).await;
        stream.write_all(piece).await.unwrap();
        if n % 10 == 5 {
            assert_eq!(server.get("/lock").of(&tablet).send().await.ok()["held"], false);
            let row = json!({ "lid": key(5_000 + n as u64), "title": "quick" });
            server.sync(&tablet, json!({ "add": { "lists": [row] } })).await.ok();
        }
    }
    let answer = answer(&mut stream).await;
    assert!(begun.elapsed() > 2 * second, "it was not slow: {:?}", begun.elapsed());
    assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));
    let held = server.fetch(&tablet, "?lock=false&tables=lists").await.ok();
    assert_eq!(held["lists"].as_array().unwrap().len(), 1_003);
}

/// Goal: nobody without a token makes the server listen for hours. Method: the same pace, and a wrong token.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_body_of_a_stranger_is_not_waited_for() {
    let server = Server::with(|settings| {
        settings.limits.request_s = 1;
        settings.limits.body_bytes_per_s_min = 10;
    });
    let to = listen(&server, bounds(&server)).await;
    for path in ["/synchronise", "/login", "/register"] {
        let begun = Instant::now();
        let mut stream = TcpStream::connect(to).await.unwrap();
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: Bearer nobody\r\n\
             content-type: application/json\r\ncontent-length: 1000\r\n\r\n{{"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let answer = answer(&mut stream).await;
        assert!([401, 408].contains(&answer.status), "{path}: {answer:?}");
        // Its pace would allow 100 s.
        assert!(begun.elapsed() < TOO_LONG / 2, "{path}: {:?}", begun.elapsed());
    }
}

/// Goal: a path prefix that a proxy adds survives. Method: the link of a page is resolved against an address below a
/// prefix, as RFC 3986 has it: it has no path of its own.
#[tokio::test]
async fn a_link_to_the_next_page_has_no_path() {
    let server = Server::with(|settings| settings.sync.fetch_rows_max = 7);
    let phone = server.device("anna", "phone");
    fill(&server, &phone).await;
    for path in ["/fetch", "/fetch.json"] {
        let answer = server.get(path).of(&phone).send().await;
        let link = answer.header("link").unwrap().to_owned();
        assert!(link.starts_with("<?page=") && link.ends_with(">; rel=\"next\""), "{link}");
    }
}

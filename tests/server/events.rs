//! `GET /events` over real sockets: which events a device receives, and how a stream ends.

use rollcall_testkit::app;
use rollcall_testkit::contract;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use app::{Device, Server, key};
use http::{HeaderMap, HeaderName, Method};
use rollcall::config::Settings;
use rollcall::http::{Drained, routes, serve};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

/// Longer than anything here takes on a busy machine.
const TOO_LONG: Duration = Duration::from_secs(60);

/// Longer than what is to happen at once takes on a loaded machine; shorter than what a fault would wait for.
const AT_ONCE: Duration = Duration::from_secs(25);

/// A server on a port of its own.
struct Live {
    server: Server,
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    task: JoinHandle<Drained>,
}

impl Live {
    async fn start(change: impl FnOnce(&mut Settings)) -> Self {
        let server = Server::with(change);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let app = Arc::clone(&server.app);
        let task = tokio::spawn(async move {
            let stopped = async move { drop(stopped.await) };
            let (bounds, draining) = (app.bounds.clone(), app.draining.clone());
            serve(listener, routes(app.clone()), bounds, draining, app.metrics.clone(), stopped).await
        });
        Self { server, address, stop, task }
    }

    async fn listen(&self, device: &Device) -> Stream {
        self.listen_with(device, "").await
    }

    async fn listen_with(&self, device: &Device, headers: &str) -> Stream {
        self.listen_at("/events", device, headers).await
    }

    /// A stream of all owners of the device's user, after its first event; the second value is that event's data.
    async fn listen_to_all(&self, device: &Device) -> (Stream, Value) {
        let mut stream = self.listen_at("/events?owner=all", device, "").await;
        assert_eq!(stream.head().await.0, 200);
        let first = stream.of("owners").await.1;
        (stream, first)
    }

    async fn listen_at(&self, path: &str, device: &Device, headers: &str) -> Stream {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let mut stream = Stream { stream, raw: Vec::new(), text: String::new(), over: false };
        let token = &device.token;
        let ask = format!("GET {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\n{headers}\r\n");
        stream.stream.write_all(ask.as_bytes()).await.unwrap();
        stream
    }

    /// The value of a line of the metrics.
    fn count(&self, line: &str) -> String {
        let text = self.server.app.metrics.written();
        let found = text.lines().find_map(|result| result.strip_prefix(line)?.strip_prefix(' '));
        found.unwrap_or_else(|| panic!("{line} is not in\n{text}")).to_owned()
    }

    /// Waits until so many streams are open.
    async fn until_streams(&self, open: usize) {
        let begun = Instant::now();
        while self.count("rollcall_event_streams") != open.to_string() {
            assert!(begun.elapsed() < TOO_LONG, "{} streams", self.count("rollcall_event_streams"));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// A client that reads a response in chunks as they arrive.
struct Stream {
    stream: TcpStream,
    raw: Vec<u8>,
    text: String,
    over: bool,
}

/// One event: its name, id and data. A comment has its text as name.
type Event = (String, Option<String>, Value);

impl Stream {
    /// Status and headers; held against the document.
    async fn head(&mut self) -> (u16, HeaderMap) {
        let end = loop {
            if let Some(end) = self.raw.windows(4).position(|four| four == b"\r\n\r\n") {
                break end;
            }
            assert!(self.read().await, "hung up: {}", String::from_utf8_lossy(&self.raw));
        };
        let head = String::from_utf8(self.raw.drain(..end + 4).collect()).unwrap();
        let mut lines = head.lines();
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let mut headers = HeaderMap::new();
        for (name, value) in lines.filter_map(|line| line.split_once(": ")) {
            headers.insert(HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
        }
        (status, headers)
    }

    async fn read(&mut self) -> bool {
        let mut bytes = [0; 4096];
        let read = timeout(TOO_LONG, self.stream.read(&mut bytes)).await.expect("nothing came").unwrap_or(0);
        self.raw.extend_from_slice(&bytes[..read]);
        read > 0
    }

    /// The next event or comment; `None` once the stream has ended.
    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some((event, rest)) = self.text.split_once("\n\n") {
                let (event, rest) = (event.to_owned(), rest.to_owned());
                self.text = rest;
                return Some(parse(&event));
            }
            if self.over || !self.chunk() && !self.read().await {
                assert_eq!(self.text, "", "half an event");
                return None;
            }
        }
    }

    /// The next event that is no heartbeat.
    async fn event(&mut self) -> Option<Event> {
        loop {
            match self.next().await {
                Some((name, ..)) if name == ": heartbeat" => {}
                other => return other,
            }
        }
    }

    /// The next event of that name.
    async fn of(&mut self, wanted: &str) -> (Option<String>, Value) {
        loop {
            let (name, id, data) = self.event().await.unwrap_or_else(|| panic!("no {wanted}: it ended"));
            if name == wanted {
                return (id, data);
            }
        }
    }

    /// Takes one whole chunk over, if there is one.
    fn chunk(&mut self) -> bool {
        let Some(line) = self.raw.windows(2).position(|two| two == b"\r\n") else { return false };
        let size = usize::from_str_radix(std::str::from_utf8(&self.raw[..line]).unwrap(), 16).unwrap();
        if self.raw.len() < line + 2 + size + 2 {
            return false;
        }
        self.text.push_str(std::str::from_utf8(&self.raw[line + 2..line + 2 + size]).unwrap());
        self.raw.drain(..line + 2 + size + 2);
        self.over = size == 0;
        true
    }
}

fn parse(event: &str) -> Event {
    if event.starts_with(':') {
        return (event.to_owned(), None, Value::Null);
    }
    let field = |name: &str| {
        event.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ")).map(str::to_owned)
    };
    let data = field("data").unwrap_or_else(|| panic!("no data in {event:?}"));
    (field("event").unwrap(), field("id"), serde_json::from_str(&data).unwrap())
}

fn list(number: u64, title: &str) -> Value {
    json!({ "add": { "lists": [{ "lid": key(number), "title": title }] } })
}

/// Goal: a device need not poll. Method: two devices; one takes the lock and writes, the other's stream
/// reports it.
#[tokio::test]
async fn what_one_device_does_another_hears() {
    let live = Live::start(|_| {}).await;
    let server = &live.server;
    let (phone, tablet) = (server.device("anna", "Anna's phone"), server.device("anna", "Anna's tablet"));
    let stranger = server.device("ben", "Ben's phone");
    server.sync(&phone, list(1, "before")).await.ok();

    let mut heard = live.listen(&tablet).await;
    let (status, headers) = heard.head().await;
    let kept: HeaderMap = headers
        .iter()
        .filter(|(name, _)| is_of_the_route(name))
        .map(|(n, v)| (n.clone(), v.clone()))
        .collect();
    contract::check_answer(&Method::GET, "/events", status, &kept, b"");
    assert!(headers.get("content-encoding").is_none());
    let version = server.version_of("anna");
    assert_eq!(
        heard.next().await.unwrap(),
        ("version".into(), Some(version.to_string()), json!({ "version": version }))
    );
    assert_eq!(heard.next().await.unwrap(), ("lock".into(), None, json!({ "held": false })));

    server.fetch(&phone, "").await.ok();
    let (_, lock) = heard.of("lock").await;
    assert_eq!(lock["held"], true);
    assert_eq!((&lock["device"], &lock["device_id"]), (&json!("Anna's phone"), &json!(phone.id)));
    assert_eq!(lock["until"], server.time(15_000));

    server.sync(&stranger, list(2, "another owner's")).await.ok();
    server.sync(&phone, list(3, "news")).await.ok();
    assert_eq!(heard.of("version").await.1, json!({ "version": version + 1 }));
    // The lock was released with the sync. The event may arrive together with the version, or after it.
    assert_eq!(heard.of("lock").await.1, json!({ "held": false }));

    // Missed changes are sent at once; known ones are not sent again.
    drop(heard);
    live.until_streams(0).await;
    let mut again = live.listen_with(&tablet, &format!("last-event-id: {}\r\n", version + 1)).await;
    again.head().await;
    assert_eq!(again.next().await.unwrap().0, "lock", "the version is known");
    let mut behind = live.listen_with(&tablet, &format!("last-event-id: {version}\r\n")).await;
    behind.head().await;
    assert_eq!(behind.next().await.unwrap().2, json!({ "version": version + 1 }));
}

/// Whether a header is the route's and not the layers'.
fn is_of_the_route(name: &HeaderName) -> bool {
    !["date", "transfer-encoding", "x-content-type-options", "server-timing", "vary"].contains(&name.as_str())
}

/// Goal: nobody waits for a holder that has vanished. Method: a lease expires and nothing else happens.
#[tokio::test]
async fn a_lease_that_runs_out_is_told() {
    let live = Live::start(|settings| settings.sync.lease_ms = 300).await;
    let (phone, tablet) = (live.server.device("anna", "phone"), live.server.device("anna", "tablet"));
    live.server.fetch(&phone, "").await.ok();
    let mut heard = live.listen(&tablet).await;
    heard.head().await;
    assert_eq!(heard.of("lock").await.1["held"], true);
    live.server.turn(301); // the server's clock, which is turned by hand here
    assert_eq!(heard.of("lock").await.1, json!({ "held": false }));
}

/// Goal: a stream ends at once when this server ends its token. Method: a heartbeat, which would look at the
/// token too, is far away.
#[tokio::test]
async fn a_stream_ends_with_its_token() {
    let live = Live::start(|settings| settings.limits.event_heartbeat_s = 3_600).await;
    let server = &live.server;
    let unauthorized = json!({ "code": "unauthorized" });
    let (phone, tablet) = (server.device("anna", "phone"), server.device("anna", "tablet"));
    let (mut of_phone, mut of_tablet) = (live.listen(&phone).await, live.listen(&tablet).await);
    of_phone.head().await;
    of_tablet.head().await;

    // Revoked by another device, and that one only.
    let path = format!("/devices/{}", tablet.id);
    assert_eq!(server.ask("DELETE", &path).of(&phone).send().await.status, 204);
    assert_eq!(of_tablet.of("end").await.1, unauthorized);
    assert!(of_tablet.event().await.is_none(), "the stream is over");

    // Logged out.
    assert_eq!(server.ask("POST", "/logout").of(&phone).send().await.status, 204);
    assert_eq!(of_phone.of("end").await.1, unauthorized);
    live.until_streams(0).await;
}

/// Goal: a token that ended in another process, or by its age, ends its streams: the next heartbeat notices it.
#[tokio::test]
async fn a_heartbeat_ends_the_stream_of_a_token_that_ended() {
    let live = Live::start(|settings| settings.limits.event_heartbeat_s = 1).await;
    let server = &live.server;
    let unauthorized = json!({ "code": "unauthorized" });
    let laptop = server.device("anna", "laptop");
    let mut of_laptop = live.listen(&laptop).await;
    assert_eq!(of_laptop.head().await.0, 200);
    server.turn(366 * 86_400_000);
    assert_eq!(of_laptop.of("end").await.1, unauthorized);
    let again = live.server.device("anna", "desk");
    let mut of_again = live.listen(&again).await;
    assert_eq!(of_again.head().await.0, 200);
    server.sql("DELETE FROM rollcall_device");
    assert_eq!(of_again.of("end").await.1, unauthorized);
    live.until_streams(0).await;
    assert_eq!(live.listen(&again).await.head().await.0, 401);
}

#[tokio::test]
async fn a_stream_outlives_every_deadline_and_ends_with_the_server() {
    let live = Live::start(|settings| {
        settings.limits.request_s = 1;
        settings.limits.header_read_s = 1;
        settings.limits.event_heartbeat_s = 1;
    })
    .await;
    let phone = live.server.device("anna", "phone");
    let mut heard = live.listen_with(&phone, "accept-encoding: gzip, br\r\n").await;
    let (_, headers) = heard.head().await;
    assert!(headers.get("content-encoding").is_none(), "compression would hold events back");
    let mut beats = 0;
    while beats < 4 {
        beats += usize::from(heard.next().await.unwrap().0 == ": heartbeat");
    }
    live.stop.send(()).unwrap();
    assert_eq!(heard.of("end").await.1, json!({ "code": "shutting_down" }));
    let begun = Instant::now();
    let drained = timeout(TOO_LONG, live.task).await.expect("the server never stopped").unwrap();
    assert_eq!(drained, Drained { cut: 0 });
    assert!(begun.elapsed() < AT_ONCE, "a stream held the server up");
    assert!(live.server.app.metrics.written().contains("route=\"/events\",status=\"200\"} 1"));
}

/// Goal: many listeners are cheap, and one user cannot take all places. Method: 200 streams of 20 users.
#[tokio::test]
async fn places_are_limited_and_given_back() {
    let live = Live::start(|settings| {
        settings.limits.event_streams_max = 200;
        settings.limits.event_streams_per_user_max = 10;
        settings.limits.connections_per_address_max = 400;
    })
    .await;
    let devices: Vec<Device> = (0..20).map(|user| live.server.device(&format!("user{user}"), "x")).collect();
    let mut streams = Vec::new();
    for device in &devices {
        for _ in 0..10 {
            let mut stream = live.listen(device).await;
            assert_eq!(stream.head().await.0, 200);
            stream.of("lock").await;
            streams.push(stream);
        }
    }
    live.until_streams(200).await;
    let late = live.server.device("late", "x");
    let mut refused = live.listen(&late).await;
    let (status, headers) = refused.head().await;
    assert_eq!((status, headers["retry-after"].to_str().unwrap()), (503, "30"));

    // The user's oldest makes room for the user's newest, of whichever owners.
    let mut newest = live.listen_at("/events?owner=all", &devices[0], "").await;
    assert_eq!(newest.head().await.0, 200);
    assert_eq!(streams[0].of("end").await.1, json!({ "code": "too_many_streams" }));

    // A write reaches all of its owner's streams and no other.
    live.server.sync(&devices[1], list(1, "x")).await.ok();
    let version = json!({ "version": live.server.version_of("user1") });
    for stream in &mut streams[10..20] {
        assert_eq!(stream.of("version").await.1, version);
    }
    // Beside the streams the server has work to do: they hold neither its threads nor its database.
    let begun = Instant::now();
    live.server.fetch(&devices[2], "?lock=false").await.ok();
    assert!(begun.elapsed() < AT_ONCE);
    drop((streams, newest));
    live.until_streams(0).await;
}

/// The owner that a user makes and invites another one to, in that role.
async fn shared(server: &Server, manager: &Device, guest: &Device, role: &str) -> String {
    let made = server.ask("POST", "/owners").of(manager).json(&json!({ "name": "Our list" })).send().await;
    let owner = made.json()["owner"].as_str().unwrap().to_owned();
    join(server, manager, guest, &owner, role).await;
    owner
}

async fn join(server: &Server, manager: &Device, guest: &Device, owner: &str, role: &str) {
    let path = format!("/owners/{owner}/invitations");
    let made = server.ask("POST", &path).of(manager).json(&json!({ "role": role })).send().await;
    let code = json!({ "code": made.json()["code"], "name": "me" });
    server.ask("POST", "/invitations/accept").of(guest).json(&code).send().await.ok();
}

async fn write_to(server: &Server, device: &Device, owner: &str, number: u64) -> u64 {
    let path = format!("/synchronise?owner={owner}");
    server.ask("POST", &path).of(device).json(&list(number, "x")).send().await.version()
}

/// Goal: one stream reports all owners of a user, and a stream about one owner none of the others. Method: a user of
/// two owners, and both kinds of stream.
#[tokio::test]
async fn one_stream_has_all_owners_of_a_user() {
    let live = Live::start(|settings| settings.limits.event_heartbeat_s = 3_600).await;
    let server = &live.server;
    let (anna, ben) = (server.device("anna", "phone"), server.device("ben", "phone"));
    let (home, owner) = (server.owner("anna").0.to_string(), shared(server, &ben, &anna, "write").await);
    server.sync(&anna, list(1, "x")).await.ok();

    let (mut all, first) = live.listen_to_all(&anna).await;
    assert_eq!(first, server.get("/owners").of(&anna).send().await.ok());
    assert_eq!(first["owners"].as_array().unwrap().len(), 2);
    let mut one = live.listen(&anna).await;
    one.head().await;
    one.of("lock").await;

    let version = write_to(server, &ben, &owner, 2).await;
    let of_owner = |owner: &str, version: u64| json!({ "owner": owner, "version": version });
    assert_eq!(all.event().await.unwrap(), ("version".into(), None, of_owner(&owner, version)));
    let version = server.sync(&anna, list(3, "x")).await.version();
    assert_eq!(all.event().await.unwrap(), ("version".into(), None, of_owner(&home, version)));
    // The stream about the home has nothing of the other owner.
    assert_eq!(one.of("version").await.1, json!({ "version": version }));

    // Who has seen that list gets it again only if something is other than in it.
    drop(all);
    live.until_streams(1).await;
    let tag = server.get("/owners").of(&anna).send().await.header("etag").unwrap().to_owned();
    let seen = format!("last-event-id: {}\r\n", tag.trim_start_matches("W/").trim_matches('"'));
    let mut again = live.listen_at("/events?owner=all", &anna, &seen).await;
    again.head().await;
    let version = write_to(server, &ben, &owner, 4).await;
    assert_eq!(again.event().await.unwrap().2, of_owner(&owner, version));
    let mut behind = live.listen_at("/events?owner=all", &anna, &seen).await;
    behind.head().await;
    assert_eq!(behind.event().await.unwrap().0, "owners");

    for query in ["?owner=all&owner=all", "?owner=", "?owner=ALL"] {
        let refused = server.get(&format!("/events{query}")).of(&anna).send().await;
        assert_eq!(refused.problem(), (400, "invalid_request".into()), "{query}");
    }
    let elsewhere = server.get("/fetch?owner=all").of(&anna).send().await;
    assert_eq!(elsewhere.problem(), (400, "invalid_request".into()));
}

/// Goal: a stream reports which owners a user joins and leaves, and nothing of an owner that the user left. Method: the
/// user makes and joins owners, gets another role, is taken out, and an owner is deleted, while the stream is open. No
/// heartbeat would notice it.
#[tokio::test]
async fn what_a_user_joins_and_leaves_is_reported() {
    let live = Live::start(|settings| settings.limits.event_heartbeat_s = 3_600).await;
    let server = &live.server;
    let (anna, ben) = (server.device("anna", "phone"), server.device("ben", "phone"));
    let annas = server.user_id("anna");
    let first = shared(server, &ben, &anna, "write").await;
    let (mut all, _) = live.listen_to_all(&anna).await;
    let mut one = live.listen_at(&format!("/events?owner={first}"), &anna, "").await;
    one.head().await;

    let own = server.ask("POST", "/owners").of(&anna).json(&json!({ "name": "Guests" })).send().await.json();
    assert_eq!(all.event().await.unwrap(), ("member".into(), None, own));
    let second = shared(server, &ben, &anna, "read").await;
    let joined = all.of("member").await.1;
    assert_eq!((&joined["owner"], &joined["role"]), (&json!(second), &json!("read")));
    let version = write_to(server, &ben, &second, 1).await;
    assert_eq!(all.of("version").await.1, json!({ "owner": second, "version": version }));

    let member = format!("/owners/{second}/members/{annas}");
    let role = server.ask("PUT", &member).of(&ben).json(&json!({ "role": "manage" })).send().await;
    assert_eq!(role.status, 204);
    assert_eq!(all.of("member").await.1["role"], "manage");

    for (request, owner) in
        [(format!("/owners/{first}/members/{annas}"), &first), (format!("/owners/{second}"), &second)]
    {
        assert_eq!(server.ask("DELETE", &request).of(&ben).send().await.status, 204);
        assert_eq!(all.of("left").await.1, json!({ "owner": owner }));
    }
    assert_eq!(one.of("end").await.1, json!({ "code": "not_a_member" }));
    write_to(server, &ben, &first, 2).await;
    let version = server.sync(&anna, list(3, "x")).await.version();
    let home = server.owner("anna").0.to_string();
    let next = all.event().await.unwrap();
    assert_eq!(next.2, json!({ "owner": home, "version": version }), "an event of an owner that was left");

    // Who comes back gets a new member event.
    join(server, &ben, &anna, &first, "read").await;
    assert_eq!(all.of("member").await.1["owner"], json!(first));
    assert_eq!(server.ask("POST", "/logout").of(&anna).send().await.status, 204);
    assert_eq!(all.of("end").await.1, json!({ "code": "unauthorized" }));
    live.until_streams(0).await;
}

/// Goal: what nothing reports, a heartbeat finds: another program changed members and wrote. Method: changes past the
/// server's handlers.
#[tokio::test]
async fn a_heartbeat_reads_the_owners_again() {
    let live = Live::start(|settings| settings.limits.event_heartbeat_s = 1).await;
    let server = &live.server;
    let (anna, _) = (server.device("anna", "phone"), server.device("ben", "phone"));
    let (mut all, _) = live.listen_to_all(&anna).await;
    server.admit("ben", "anna", rollcall::model::Role::Read);
    assert_eq!(all.of("member").await.1["owner"], json!(server.owner("ben").0));
    server.dismiss("ben", "anna");
    assert_eq!(all.of("left").await.1, json!({ "owner": server.owner("ben").0 }));
}

/// Goal: an account that is erased leaves nobody's stream behind the times. Method: the only manager goes, and another
/// member becomes one.
#[tokio::test]
async fn a_stream_reports_who_manages_after_the_last_manager_went() {
    let live = Live::start(|settings| settings.limits.event_heartbeat_s = 3_600).await;
    let server = &live.server;
    let (anna, ben) = (server.device("anna", "phone"), server.device("ben", "phone"));
    let owner = shared(server, &ben, &anna, "write").await;
    let (mut all, _) = live.listen_to_all(&anna).await;
    let (mut bens, _) = live.listen_to_all(&ben).await;
    let erase = json!({ "password": app::PASSWORD });
    assert_eq!(server.ask("POST", "/account/erase").of(&ben).json(&erase).send().await.status, 204);
    let manages = all.of("member").await.1;
    assert_eq!((&manages["owner"], &manages["role"]), (&json!(owner), &json!("manage")));
    assert_eq!(bens.of("end").await.1, json!({ "code": "unauthorized" }));
}

/// Goal: an owner with many listeners loses no event, and none comes after a newer one. Method: more streams than are
/// woken at once, of both kinds, while two devices write and take the lock in turn.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_streams_of_one_owner_get_every_last_event() {
    let live = Live::start(|settings| {
        settings.limits.event_streams_per_user_max = 200;
        settings.limits.connections_per_address_max = 400;
        settings.limits.event_heartbeat_s = 3_600;
    })
    .await;
    let server = &live.server;
    let (phone, tablet) = (server.device("anna", "phone"), server.device("anna", "tablet"));
    server.sync(&phone, list(1, "x")).await.ok();
    let mut streams = Vec::new();
    for number in 0..150 {
        let path = if number % 2 == 0 { "/events" } else { "/events?owner=all" };
        let mut stream = live.listen_at(path, &tablet, "").await;
        stream.head().await;
        stream.of(if number % 2 == 0 { "lock" } else { "owners" }).await;
        streams.push(stream);
    }
    let mut last = 0;
    for round in 2..22 {
        let device = if round % 2 == 0 { &phone } else { &tablet };
        let fence = server.fetch(device, "").await.fence();
        let sync = server.ask("POST", "/synchronise").of(device).header("sync-lock", fence);
        last = sync.json(&list(round, "x")).send().await.version();
    }
    for (number, stream) in streams.iter_mut().enumerate() {
        let mut before = 0;
        while before < last {
            let version = stream.of("version").await.1["version"].as_u64().unwrap();
            assert!(version > before, "{number}: {version} after {before}");
            before = version;
        }
    }
    let desk = server.device("anna", "desk");
    server.fetch(&desk, "").await.ok();
    for stream in streams.iter_mut().step_by(2) {
        while stream.of("lock").await.1["device"] != json!("desk") {}
    }
    assert_eq!(server.ask("DELETE", "/lock").of(&desk).send().await.status, 204);
    for stream in streams.iter_mut().step_by(2) {
        assert_eq!(stream.of("lock").await.1, json!({ "held": false }));
    }
}

/// Goal: both engines behave alike. Method: every test of this file once more, over PostgreSQL.
#[test]
fn again_on_postgres() {
    app::engine::run_again_on_postgres(module_path!());
}

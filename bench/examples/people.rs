//! What owners with many members, and users of many owners, cost.
//!
//! ```sh
//! cargo run --release -p rollcall-bench --example people owners         # GET /owners of a user of 2,000 owners
//! cargo run --release -p rollcall-bench --example people streams 9000   # a commit that 9,000 streams report
//! ROLLCALL_TEST_ENGINE=postgres cargo run …                             # the same over PostgreSQL
//! ```
//!
//! `owners` prints the processor time of this process, which is that of the server, and the time of a response, in which
//! that of PostgreSQL is. The last figure is with `If-None-Match`, where nothing has changed.
//!
//! `streams` opens half of the streams for one owner, and the other half for all owners of their users. It prints the
//! time from the request that writes until so many of them have the event. The clients are in the same process, on a
//! thread of their own, and each stream is two open files.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, missing_docs)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rollcall::http::{routes, serve};
use rollcall::model::Role;
use rollcall_core::members;
use rollcall_core::model::Owner;
use rollcall_core::storage::{Member, StorageError};
use rollcall_testkit::app::{Device, Server};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use uuid::Uuid;

/// Streams of one user.
const STREAMS_EACH: usize = 25;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |default| args.get(1).map_or(default, |text| text.parse().unwrap());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    match args.first().map(String::as_str) {
        Some("owners") => runtime.block_on(owners(number(2_000))),
        Some("streams") => runtime.block_on(streams(number(5_000))),
        _ => eprintln!("say owners or streams, and how many"),
    }
}

/// Makes users members of an owner, without a request each.
fn join(server: &Server, owner: Owner, users: &[Uuid], role: Role) {
    let now = server.app.clock.now();
    let done = server.app.storage.write(owner, |txn| {
        let since = members::moved(txn, now)?;
        for user in users {
            txn.put_member(&Member { user: *user, role, since, name: String::new(), joined_at: now })?;
        }
        txn.name_owner("A list that is shared with others")?;
        Ok::<_, StorageError>(())
    });
    done.unwrap();
    let accounts = server.app.storage.accounts();
    users.iter().for_each(|user| accounts.list_owner(*user, owner, true).unwrap());
}

/// Processor time of this process.
fn used() -> Duration {
    let mut all = 0;
    for task in std::fs::read_dir("/proc/self/task").unwrap() {
        let text = std::fs::read_to_string(task.unwrap().path().join("schedstat")).unwrap_or_default();
        all += text.split(' ').next().and_then(|ns| ns.parse::<u64>().ok()).unwrap_or(0);
    }
    Duration::from_nanos(all)
}

async fn owners(count: usize) {
    let server = Server::with(|settings| settings.limits.owners_per_user_max = usize::MAX);
    let device = server.device("anna", "phone");
    let user = server.user_id("anna");
    for _ in 1..count {
        tokio::task::block_in_place(|| join(&server, Owner(Uuid::new_v4()), &[user], Role::Write));
    }
    let service = routes(Arc::clone(&server.app));
    let token = format!("Bearer {}", device.token);
    let ask = |tag: &str| {
        let ask = warp::test::request().path("/owners").header("authorization", &token);
        ask.header("if-none-match", tag).reply(&service)
    };
    let first = ask("\"other\"").await;
    assert_eq!(first.status(), 200);
    let tag = first.headers()["etag"].to_str().unwrap().to_owned();
    println!("{count} owners, {} bytes", first.body().len());
    for (what, tag) in [("all of them", "\"other\"".to_owned()), ("nothing changed", tag)] {
        let mut runs = Vec::new();
        for _ in 0..7 {
            let (before, begun) = (used(), Instant::now());
            for _ in 0..20 {
                let response = ask(&tag).await;
                assert!(response.status() == 200 || response.status() == 304);
            }
            runs.push(((used() - before) / 20, begun.elapsed() / 20));
        }
        runs.sort_unstable();
        let (processor, elapsed) = runs[runs.len() / 2];
        println!("{what}: {processor:.1?} of processor time, {elapsed:.1?} in all");
    }
}

async fn streams(count: usize) {
    let server = Server::with(|settings| {
        settings.limits.connections_max = count + 100;
        settings.limits.connections_per_address_max = count + 100;
        settings.limits.event_streams_max = count;
        settings.limits.event_heartbeat_s = 3_600;
    });
    let users = count.div_ceil(STREAMS_EACH);
    let writer = server.device("writer", "phone");
    let owner = server.owner("writer");
    let devices: Vec<Device> = (0..users).map(|user| server.device(&format!("user{user}"), "x")).collect();
    tokio::task::block_in_place(|| {
        let mut ids: Vec<Uuid> = (0..users).map(|user| server.user_id(&format!("user{user}"))).collect();
        ids.extend((users..count).map(|_| Uuid::new_v4())); // members who are away
        join(&server, owner, &ids, Role::Write);
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let app = Arc::clone(&server.app);
    tokio::spawn(async move {
        let (bounds, draining, metrics) = (app.bounds.clone(), app.draining.clone(), app.metrics.clone());
        serve(listener, routes(app), bounds, draining, metrics, std::future::pending::<()>()).await
    });
    let (seen, mut results) = tokio::sync::mpsc::unbounded_channel();
    let clients = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    for (index, device) in devices.iter().enumerate() {
        for stream in 0..STREAMS_EACH.min(count - index * STREAMS_EACH) {
            let query = if stream % 2 == 0 { "all".to_owned() } else { owner.0.to_string() };
            clients.spawn(listen(address, device.token.clone(), query, seen.clone()));
            // The queue of connections to accept is short.
            tokio::time::sleep(Duration::from_micros(300)).await;
        }
    }
    let mut open = 0;
    while open < count {
        assert!(results.recv().await.unwrap().is_none());
        open += 1;
    }
    println!("{count} streams are open, of {users} users; the owner has {} members", count + 1);
    for round in 0..5_u64 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let body =
            json!({ "add": { "lists": [{ "lid": Uuid::from_u128(u128::from(round) + 1), "title": "x" }] } });
        let (before, begun) = (used(), Instant::now());
        let sent = server.sync(&writer, body).await;
        assert_eq!(sent.status, 200);
        let responded = begun.elapsed();
        let mut times = Vec::with_capacity(count);
        while times.len() < count {
            times.push(results.recv().await.unwrap().unwrap().duration_since(begun));
        }
        times.sort_unstable();
        let at = |part: usize| times[(times.len() - 1) * part / 100];
        println!(
            "response {responded:.1?}; half of the streams {:.1?}, 99 of 100 {:.1?}, all {:.1?}; processor {:.0?}",
            at(50),
            at(99),
            at(100),
            used() - before
        );
    }
    std::process::exit(0);
}

/// Reports `None` once the stream is open, and then the time of each event.
async fn listen(
    address: SocketAddr,
    token: String,
    query: String,
    seen: tokio::sync::mpsc::UnboundedSender<Option<Instant>>,
) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head =
        format!("GET /events?owner={query} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let (mut text, mut is_open, mut bytes) = (String::new(), false, [0; 2_048]);
    loop {
        let read = stream.read(&mut bytes).await.unwrap();
        let now = Instant::now();
        assert!(read > 0, "the stream ended: {text}");
        text.push_str(&String::from_utf8_lossy(&bytes[..read]));
        if !is_open
            && (text.contains("event: owners") || text.contains("event: lock"))
            && text.ends_with("\r\n")
        {
            assert!(text.starts_with("HTTP/1.1 200"), "{text}");
            is_open = true;
            text.clear();
            seen.send(None).unwrap();
        } else if is_open && text.contains("event: version") {
            text.clear();
            seen.send(Some(now)).unwrap();
        }
    }
}

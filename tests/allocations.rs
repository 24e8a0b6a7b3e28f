//! What costs no memory of its own: a row of a long response, a row that is named again, and a password. An
//! allocator counts, so the tests run in a process of their own, and on SQLite: the client of PostgreSQL
//! allocates memory for every row.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use rollcall_testkit::app;

use std::alloc::System;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use app::{Device, Server, key};
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use rollcall::accounts::{AccountError, LocalAccounts, LocalSettings, LogIn};
use rollcall::clock::Clock;
use rollcall::config::Settings;
use rollcall::http::routes;
use rollcall::storage::sqlite::Connections;
use serde_json::{Value, json};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use tokio::sync::Mutex;
use tower::ServiceExt;

#[global_allocator]
static COUNTED: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// The allocator counts for the whole process, so one test runs at a time.
static ALONE: Mutex<()> = Mutex::const_new(());

/// Sends rows with a value of every type, of which every other one is null. The `json` is flat: for a value
/// with members serde_json allocates a few bytes while it checks the syntax.
async fn send(server: &Server, phone: &Device, numbers: std::ops::Range<u64>) {
    let rows: Vec<Value> = numbers
        .map(|number| match number % 2 {
            0 => json!({
                "id": key(number), "text": format!("a \"text\" of {number}"), "whole": number, "real": 0.5,
                "exact": "12.50", "flag": true, "other": key(number), "at": "2025-06-15T15:06:40.123Z",
                "day": "2025-06-15", "extra": number.to_string(), "bytes": "AP8AAP8A",
            }),
            _ => json!({ "id": key(number), "text": "another" }),
        })
        .collect();
    server.sync(phone, json!({ "add": { "things": rows } })).await.ok();
}

/// The number of allocations, and of larger reallocations, from a request to the last byte of its response;
/// and the response's bytes.
async fn cost(server: &Server, device: &Device, path: &str) -> (usize, usize) {
    let request = Request::get(path)
        .header("authorization", format!("Bearer {}", device.token))
        .header("accept", "application/x-ndjson")
        .body(Full::new(Bytes::new()))
        .unwrap();
    let service = warp::service(routes(Arc::clone(&server.app)));
    let counted = Region::new(COUNTED);
    let mut body = service.oneshot(request).await.unwrap().into_body();
    let mut bytes = 0;
    while let Some(frame) = body.frame().await {
        bytes += frame.unwrap().into_data().unwrap().len();
    }
    let counted = counted.change();
    (counted.allocations + counted.reallocations, bytes)
}

/// Goal: no allocation for a row on the paths that are as long as a table. Method: the same responses with a
/// few rows and with many; their memory may grow with their chunks of 64 KiB, not with their rows.
#[tokio::test]
async fn a_row_of_a_long_answer_allocates_nothing() {
    const FEW: u64 = 2_000;
    const MANY: u64 = 12_000;
    let _alone = ALONE.lock().await;
    let server = Server::with(|settings| {
        settings.limits.rows_max = 20_000;
        settings.memory.ready_bytes_max = 0; // cached responses are not read
    });
    let (few, many) = (server.device("anna", "phone"), server.device("ben", "phone"));
    send(&server, &few, 0..FEW).await;
    send(&server, &many, 0..MANY).await;
    for path in ["/changes", "/fetch?lock=false"] {
        cost(&server, &few, path).await; // statements are prepared now
        let (of_few, few_bytes) = cost(&server, &few, path).await;
        let (of_many, many_bytes) = cost(&server, &many, path).await;
        let chunks = (many_bytes - few_bytes) / (64 * 1024) + 1;
        assert!(chunks >= 8, "{path}: {many_bytes} bytes are not long");
        let more = of_many.saturating_sub(of_few);
        assert!(more < 20 * chunks, "{path}: {more} allocations for {} rows, {chunks} chunks", MANY - FEW);
        println!("{path}: {more} allocations for {} rows, {chunks} chunks", MANY - FEW);
    }
}

/// How many bytes are allocated in all for a batch, from its request to its last byte.
async fn batch_cost(server: &Server, device: &Device, batch: &Value) -> usize {
    let request = Request::post("/synchronise")
        .header("authorization", format!("Bearer {}", device.token))
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(batch.to_string())))
        .unwrap();
    let service = warp::service(routes(Arc::clone(&server.app)));
    let counted = Region::new(COUNTED);
    let (head, body) = service.oneshot(request).await.unwrap().into_parts();
    assert_eq!(head.status, 200);
    body.collect().await.unwrap();
    counted.change().bytes_allocated
}

/// Goal: to name a large row once more costs what its mention takes, not what the row takes. Method: batches that name
/// one row some times and many times, in edits that lose and under `get`; all that is allocated for them is counted.
#[tokio::test]
async fn a_row_that_is_named_again_costs_its_mention() {
    const ROW: usize = 200_000;
    const FEW: usize = 100;
    const MANY: usize = 1_100;
    let _alone = ALONE.lock().await;
    let server = Server::new();
    let [phone, tablet, laptop] = ["phone", "tablet", "laptop"].map(|name| server.device("anna", name));
    let title = |title: String| json!({ "id": key(1), "title": title });
    let first = json!({ "add": { "ours": [title("x".repeat(ROW))] } });
    let base = server.sync(&phone, first).await.ok()["version"].clone();
    let second = json!({ "base": base, "update": { "ours": [title("y".repeat(ROW))] } });
    server.sync(&phone, second).await.ok();
    let stale = |count: usize| {
        let edits: Vec<Value> = (0..count).map(|n| title(format!("mine {n}"))).collect();
        json!({ "base": base, "update": { "ours": edits } })
    };
    let asked = |count: usize| json!({ "base": base, "get": { "ours": vec![key(1); count] } });
    for batch in [&stale as &dyn Fn(usize) -> Value, &asked] {
        batch_cost(&server, &tablet, &batch(FEW)).await; // statements are prepared now
        let of_few = batch_cost(&server, &tablet, &batch(FEW)).await;
        let of_many = batch_cost(&server, &tablet, &batch(MANY)).await;
        let each = of_many.saturating_sub(of_few) / (MANY - FEW);
        println!("{each} bytes allocated for each mention of a row of {ROW} bytes");
        assert!(each < ROW / 20, "{each} bytes for each mention");
    }
    // A device that did not know the row is recorded once.
    let of_first = batch_cost(&server, &laptop, &asked(MANY)).await;
    assert!(of_first < 50 * ROW, "{of_first} bytes");
}

/// Goal: strangers who guess passwords cannot fill the memory. Method: 200 guesses, 32 at once, at the real cost of
/// a password; what they allocate in all is the memory of as many hashes as may run at once.
#[test]
fn any_number_of_log_ins_hash_in_the_same_memory() {
    const HASH_BYTES: usize = 19 * 1024 * 1024;
    const AT_ONCE: usize = 2;
    let _alone = ALONE.blocking_lock();
    let folder = tempfile::tempdir().unwrap();
    let settings = Settings::default();
    let settings = LocalSettings {
        logins_per_account_per_min: 0,
        logins_per_account_per_hour: 0,
        logins_per_address_per_min: 0,
        password_hashes_max: AT_ONCE,
        password_queue_max: 32,
        ..LocalSettings::new(&settings.auth, &settings.limits)
    };
    let store = Connections::open(&folder.path().join("accounts.db"), Duration::from_secs(5), 4).unwrap();
    let params = argon2::Params::DEFAULT;
    let accounts = LocalAccounts::new(Arc::new(store), Clock::system(), settings, params).unwrap();
    let (left, wrong) = (AtomicUsize::new(200), AtomicUsize::new(0));
    let guess = |n: usize| {
        let email = format!("{n}@example.org");
        let asked = LogIn { email: &email, password: "a guess", device: "phone", device_id: None };
        match accounts.log_in(asked, IpAddr::V4(Ipv4Addr::LOCALHOST)) {
            Err(AccountError::Unauthorized(_)) => wrong.fetch_add(1, Ordering::Relaxed),
            other => panic!("{other:?}"),
        };
    };
    let counted = Region::new(COUNTED);
    std::thread::scope(|scope| {
        for _ in 0..32 {
            scope.spawn(|| {
                let next = || left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1));
                while let Ok(n) = next() {
                    guess(n);
                }
            });
        }
    });
    let counted = counted.change();
    assert_eq!(wrong.into_inner(), 200);
    let bytes = counted.bytes_allocated;
    println!("{bytes} bytes allocated for 200 log-ins");
    assert!(bytes < (AT_ONCE + 1) * HASH_BYTES, "{bytes} bytes for 200 log-ins");
}

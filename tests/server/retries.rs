//! A response that is lost at any point, and the repeated request: one effect, the same response.

use rollcall_testkit::feed as support;

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use http::Method;
use serde_json::{Value as Json, json};
use support::engine::{is_sqlite, pg};
use support::{Answer, Device, Dice, POLICIES, TOO_LONG, World, key};

const HOUR_MS: i64 = 3_600_000;

/// Some of everything: rows added, changed and deleted, and rows requested.
fn body(world: &World) -> Json {
    json!({
        "add": { "newest": [{ "id": key(1), "title": "one" }], "merge": [{ "id": key(2), "title": "two" }] },
        "update": { "newest": [{ "id": key(10), "title": "edited", "last_update": world.hands.at(0) }] },
        "delete": { "newest": [key(11)] },
        "get": { "newest": [key(10), key(99)] },
    })
}

/// A world with a few rows, and the device that will send [`body`].
fn world() -> (World, Device) {
    let world = World::start(POLICIES);
    let device = world.device("anna", "a");
    let rows: Vec<_> = (10..20).map(|n| json!({ "id": key(n), "title": "before" })).collect();
    world.sync(&device, &json!({ "add": { "newest": rows } })).ok();
    world.hands.advance_ms(1_000);
    (world, device)
}

fn request(device: &Device, key: Option<&str>, body: &Json) -> String {
    let body = body.to_string();
    let key = key.map(|key| format!("idempotency-key: {key}\r\n")).unwrap_or_default();
    format!(
        "POST /synchronise HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\n{key}\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        device.token,
        body.len()
    )
}

/// Where a connection is cut.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Cut {
    /// In the middle of the body.
    MidRequest,
    /// After the whole request, while the transaction waits for its turn: before COMMIT.
    BeforeCommit,
    /// Once the response has begun: after COMMIT. The client has received no byte of it.
    AfterCommit,
    /// In the middle of the response.
    MidAnswer,
}

/// Forwards one request to the server and drops the response according to `cut`, which is reached when it
/// returns.
fn through_a_bad_line(world: &World, device: &Device, request: &str, cut: Cut) {
    let proxy = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = proxy.local_addr().unwrap();
    std::thread::scope(|scope| {
        let line = scope.spawn(move || {
            let (mut client, _) = proxy.accept().unwrap();
            let mut server = TcpStream::connect(world.address).unwrap();
            server.set_read_timeout(Some(TOO_LONG)).unwrap();
            let mut sent = vec![0; request.len()];
            client.read_exact(&mut sent).unwrap();
            let passed = if cut == Cut::MidRequest { sent.len() - 10 } else { sent.len() };
            server.write_all(&sent[..passed]).unwrap();
            match cut {
                Cut::MidRequest => {}
                Cut::BeforeCommit => wait_until(|| is_held(world, device)),
                Cut::AfterCommit => assert_eq!(server.read(&mut [0]).unwrap(), 1),
                Cut::MidAnswer => {
                    let mut beginning = [0; 100];
                    server.read_exact(&mut beginning).unwrap();
                    client.write_all(&beginning).unwrap();
                }
            }
            let _ = server.shutdown(Shutdown::Both);
        });
        let mut client = TcpStream::connect(address).unwrap();
        client.write_all(request.as_bytes()).unwrap();
        line.join().unwrap();
        let mut seen = Vec::new();
        match client.read_to_end(&mut seen) {
            Ok(_) => assert!(cut == Cut::MidAnswer || seen.is_empty()),
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
        }
    });
}

/// Holds back every COMMIT of the owner.
enum Holder {
    /// Whoever holds SQLite's own write lock holds all owners.
    Sqlite(rusqlite::Connection),
    /// A writer locks its owner's row first.
    Postgres(pg::Client),
}

impl Holder {
    fn of(world: &World, device: &Device) -> Self {
        if is_sqlite() {
            let holder = rusqlite::Connection::open(world.database()).unwrap();
            holder.execute_batch("BEGIN IMMEDIATE").unwrap();
            return Self::Sqlite(holder);
        }
        let mut holder = pg::Client::connect(&world.store.url(), postgres::NoTls).unwrap();
        let owner = device.owner.0;
        let lock = format!("BEGIN; SELECT 1 FROM rollcall_owner WHERE owner = '{owner}' FOR UPDATE");
        holder.batch_execute(&lock).unwrap();
        Self::Postgres(holder)
    }

    fn let_go(self) {
        match self {
            Self::Sqlite(holder) => holder.execute_batch("COMMIT").unwrap(),
            Self::Postgres(mut holder) => holder.batch_execute("COMMIT").unwrap(),
        }
    }
}

/// Whether a request is held back.
fn is_held(world: &World, device: &Device) -> bool {
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    if is_sqlite() { at_work(world, device) } else { world.store.number(waiting) > 0 }
}

/// Whether a request holds the owner's lock right now.
fn at_work(world: &World, device: &Device) -> bool {
    world.app.locks.holder(device.owner).unwrap().is_some()
}

fn wait_until(is_so: impl Fn() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < TOO_LONG, "it never came to be so");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Everything of a response that must not differ.
fn same(a: &Answer, b: &Answer) {
    assert_eq!(
        (a.status, a.text(), a.header("sync-version")),
        (b.status, b.text(), b.header("sync-version"))
    );
}

/// Goal: wherever the connection breaks, the retry gets the one response and takes effect once. Method: the
/// same request in a world without faults shows the expected response and rows.
#[test]
fn a_request_that_is_cut_anywhere_and_sent_again_has_one_effect() {
    let (undisturbed, device) = world();
    let wanted = undisturbed.sync_once(&device, "k", &body(&undisturbed)).ok();
    let rows = undisturbed.rows(&device);
    let seedless = |mut answer: Json| {
        answer.as_object_mut().unwrap().remove("digests"); // the owners' seeds differ
        // And their devices, which the id of a conflict is made of.
        let conflict = answer["delete"]["newest"][0].as_object_mut().unwrap().remove("conflict");
        assert!(conflict.is_some(), "what a deletion without a base overwrites is noted");
        answer
    };
    for cut in [Cut::MidRequest, Cut::BeforeCommit, Cut::AfterCommit, Cut::MidAnswer] {
        let (world, device) = world();
        let before = world.version(&device);
        let body = body(&world);
        let request = request(&device, Some("k"), &body);
        if cut == Cut::BeforeCommit {
            let holder = Holder::of(&world, &device);
            through_a_bad_line(&world, &device, &request, cut);
            assert_eq!(world.version(&device), before, "nothing was committed when the line broke");
            holder.let_go();
        } else {
            through_a_bad_line(&world, &device, &request, cut);
        }
        let first = world.sync_once(&device, "k", &body);
        assert_eq!(seedless(first.ok()), seedless(wanted.clone()), "{cut:?}");
        let replayed = world.sync_once(&device, "k", &body);
        same(&replayed, &first);
        assert_eq!(replayed.header("idempotency-replayed"), Some("true"), "{cut:?}");
        assert_eq!(world.version(&device), before + 1, "{cut:?}: one version");
        assert_eq!(world.rows(&device), rows, "{cut:?}");
        assert!(!at_work(&world, &device), "{cut:?}: the lock is free again");
    }
}

/// Goal: the same without a key: nothing happens twice, and the verdicts show it.
#[test]
fn without_a_key_a_request_sent_again_changes_nothing() {
    for cut in [Cut::BeforeCommit, Cut::AfterCommit, Cut::MidAnswer] {
        let (world, device) = world();
        let before = world.version(&device);
        let mut body = body(&world);
        body["base"] = json!(before);
        let holder = (cut == Cut::BeforeCommit).then(|| Holder::of(&world, &device));
        through_a_bad_line(&world, &device, &request(&device, None, &body), cut);
        if let Some(holder) = holder {
            holder.let_go();
        }
        wait_until(|| world.version(&device) == before + 1);
        let result = world.sync(&device, &body).ok();
        for set in ["add", "update", "delete"] {
            for result in result[set].as_object().unwrap().values().flat_map(|list| list.as_array().unwrap())
            {
                assert_eq!(result["verdict"], "same", "{cut:?}: {result}");
            }
        }
        assert_eq!(world.version(&device), before + 1, "{cut:?}");
    }
}

#[test]
fn twenty_at_once_under_one_key_are_one() {
    for fenced in [false, true] {
        for round in 0..5 {
            let (world, device) = world();
            let before = world.version(&device);
            let body = body(&world);
            let lock = world.call(&device, Method::POST, "/lock", &[], None).ok();
            let fence = lock["fence"].to_string();
            let mut headers = vec![("idempotency-key", "k")];
            if fenced {
                headers.push(("sync-lock", &fence));
            }
            let answers: Vec<Answer> = std::thread::scope(|scope| {
                let send = |delay_ms| {
                    let (world, device, headers, body) = (&world, &device, &headers, &body);
                    move || {
                        std::thread::sleep(Duration::from_millis(delay_ms));
                        world.call(device, Method::POST, "/synchronise", headers, Some(body))
                    }
                };
                let mut dice = Dice::new(round);
                let threads: Vec<_> = (0..20).map(|_| scope.spawn(send(dice.below(30)))).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).collect()
            });
            answers[0].ok();
            answers.iter().for_each(|answer| same(answer, &answers[0]));
            let first = answers.iter().filter(|it| it.header("idempotency-replayed").is_none()).count();
            assert_eq!((first, world.version(&device)), (1, before + 1));
        }
    }
}

#[test]
fn a_key_belongs_to_one_body_and_to_one_device() {
    let (world, device) = world();
    let other = world.device("anna", "b");
    let stranger = world.device("zoe", "z");
    let first = world.sync_once(&device, "k", &body(&world));
    first.ok();
    let before = world.dump();
    let another = json!({ "add": { "newest": [{ "id": key(50), "title": "x" }] } });
    world.sync_once(&device, "k", &another).problem(422, "idempotency_key_reused");
    assert_eq!(world.dump(), before);
    same(&world.sync_once(&device, "k", &body(&world)), &first);
    for (who, verdict) in [(&other, "added"), (&stranger, "added")] {
        let answer = world.sync_once(who, "k", &another);
        assert_eq!(answer.ok()["add"]["newest"][0]["verdict"], verdict);
        assert_eq!(answer.header("idempotency-replayed"), None);
    }
    for bad in ["", &"x".repeat(256), "\u{e9}"] {
        world.sync_once(&device, bad, &another).problem(400, "invalid_request");
    }
    world.sync_once(&device, &"x".repeat(255), &json!({})).ok();
}

#[test]
fn an_answer_is_kept_for_24_hours() {
    let (world, device) = world();
    let body = body(&world);
    let first = world.sync_once(&device, "k", &body);
    first.ok();
    world.hands.advance_ms(24 * HOUR_MS - 1);
    same(&world.sync_once(&device, "k", &body), &first);
    world.hands.advance_ms(1);
    let before = world.version(&device);
    let again = world.sync_once(&device, "k", &body);
    assert_eq!(again.header("idempotency-replayed"), None);
    assert_eq!(again.ok()["add"]["newest"][0]["verdict"], "same");
    assert_eq!(world.version(&device), before);
    world.hands.advance_ms(24 * HOUR_MS);
    let another = json!({ "add": { "newest": [{ "id": key(50), "title": "x" }] } });
    assert_eq!(world.sync_once(&device, "k", &another).ok()["add"]["newest"][0]["verdict"], "added");
}

/// Goal: a device cannot fill the database with responses, however fast it is, and the newest stay.
#[test]
fn a_device_has_so_many_answers_kept_and_no_more() {
    for tick_ms in [0, 1] {
        let world = World::start(POLICIES);
        let (a, b) = (world.device("anna", "a"), world.device("anna", "b"));
        world.sync_once(&b, "k", &json!({})).ok();
        for n in 0..100 {
            world.hands.advance_ms(tick_ms);
            let body = if n % 2 == 0 {
                json!({})
            } else {
                json!({ "add": { "newest": [{ "id": key(n), "title": "x" }] } })
            };
            world.sync_once(&a, &format!("k{n}"), &body).ok();
            let again = world.sync_once(&a, &format!("k{n}"), &body);
            assert_eq!(again.header("idempotency-replayed"), Some("true"), "the newest answer is kept");
        }
        assert_eq!(world.store.number("SELECT count(*) FROM rollcall_answer"), 32 + 1, "tick {tick_ms}");
        let oldest = world.sync_once(&a, "k0", &json!({}));
        assert_eq!(oldest.header("idempotency-replayed"), None);
        let others = world.sync_once(&b, "k", &json!({}));
        assert_eq!(others.header("idempotency-replayed"), Some("true"), "b's own answer stays");
    }
}

/// Goal: the same in bytes. Method: long responses, of which two fit; then short ones, and one that is longer
/// than the limit.
#[test]
fn a_device_has_so_many_bytes_of_answers_kept_and_no_more() {
    let world = World::start_with(POLICIES, |settings| settings.sync.idempotency_bytes_max = 50_000);
    let (a, b) = (world.device("anna", "a"), world.device("anna", "b"));
    let rows: Vec<_> =
        (0..3).map(|n| json!({ "id": key(n), "title": "x", "body": "y".repeat(20_000) })).collect();
    world.sync(&b, &json!({ "add": { "newest": rows } })).ok();
    world.sync_once(&b, "k", &json!({})).ok();
    let asks =
        |keys: &[u64]| json!({ "get": { "newest": keys.iter().map(|n| key(*n)).collect::<Vec<_>>() } });
    let is_kept = |key: &str, body: &Json| {
        world.hands.advance_ms(1);
        world.sync_once(&a, key, body).header("idempotency-replayed").is_some()
    };
    for n in 0..5 {
        assert!(!is_kept(&format!("long-{n}"), &asks(&[0])));
    }
    let kept = || world.store.number("SELECT CAST(sum(length(body)) AS bigint) FROM rollcall_answer");
    assert!((40_000..50_000).contains(&kept()), "{} bytes", kept());
    assert!(is_kept("long-4", &asks(&[0])) && is_kept("long-3", &asks(&[0])));
    for n in 0..20 {
        assert!(!is_kept(&format!("short-{n}"), &json!({})));
    }
    assert!(kept() < 60_000, "{} bytes", kept());
    assert!(is_kept("long-3", &asks(&[0])), "short ones leave it");
    assert!(!is_kept("longest", &asks(&[0, 1, 2])));
    assert!(is_kept("longest", &asks(&[0, 1, 2])), "the newest stays");
    let others = world.sync_once(&b, "k", &json!({}));
    assert_eq!(others.header("idempotency-replayed"), Some("true"), "b's own answer stays");
    let count = world.store.number("SELECT count(*) FROM rollcall_answer");
    assert_eq!(count, 2, "it has made room for itself");
}

/// Goal: a request of some kilobytes makes the server keep no megabytes, and still takes effect once. Method: an edit that
/// loses to a long row, other long rows by `get` and `pull`; what is kept; the repetition, after another device has changed
/// some of the rows, also with a lock that is over.
#[test]
fn of_a_long_answer_the_verdicts_are_kept() {
    let world = World::start(POLICIES);
    let (a, b) = (world.device("anna", "a"), world.device("anna", "b"));
    let row = |n, title| json!({ "id": key(n), "title": title, "body": "y".repeat(20_000) });
    let rows: Vec<_> = (0..8).map(|n| row(n, "first")).collect();
    let base = world.sync(&b, &json!({ "add": { "server": rows } })).ok()["version"].clone();
    world
        .sync(&b, &json!({ "base": base, "update": { "server": [row(0, "second"), row(7, "second")] } }))
        .ok();
    let lock = world.call(&a, Method::POST, "/lock", &[], None).ok();
    let fence = lock["fence"].to_string();
    let body = json!({
        "base": base, "pull": true,
        "add": { "newest": [{ "id": key(50), "title": "new" }] },
        "update": { "server": [{ "id": key(0), "title": "mine" }] },
        "get": { "server": (1..6).map(key).collect::<Vec<_>>() },
    });
    let headers = [("idempotency-key", "k"), ("sync-lock", &*fence)];
    let send = || world.call(&a, Method::POST, "/synchronise", &headers, Some(&body));
    let first = send().ok();
    assert_eq!(first["update"]["server"][0]["verdict"], "kept");
    assert_eq!(first["update"]["server"][0]["row"]["title"], "second");
    let kept = world.store.number("SELECT CAST(sum(length(body)) AS bigint) FROM rollcall_answer");
    assert!(kept < 2_000, "{kept} bytes");

    // The other device has changed two rows since, and a deleted row is gone.
    let change = json!({
        "base": first["version"], "update": { "server": [row(1, "third"), row(0, "third")] },
        "delete": { "server": [key(2)] },
    });
    let version = world.sync(&b, &change).ok()["version"].clone();
    let conflicts = world.get(&a, "/conflicts").ok();
    let late = world.call(&a, Method::POST, "/lock", &[], None).ok();
    let again = send();
    assert_eq!(again.header("idempotency-replayed"), Some("true"));
    let again = again.ok();
    assert_eq!(world.get(&a, "/lock").ok()["fence"], late["fence"], "a later sync keeps its lock");
    assert_eq!(again["add"], first["add"]);
    let verdict = |one: &Json| (one["id"].clone(), one["verdict"].clone(), one["conflict"].clone());
    let of = |answer: &Json| verdict(&answer["update"]["server"][0]);
    assert_eq!(of(&again), of(&first));
    let titles = |answer: &Json| {
        let rows = answer["get"]["server"].as_array().unwrap().iter();
        rows.map(|row| row["title"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(titles(&first), ["first"; 5]);
    assert_eq!(titles(&again), ["third", "first", "first", "first", "third"], "and the row of the verdict");
    assert_eq!(again["missing"]["server"], json!([key(2)]));
    let changed = again["changes"]["update"]["server"].as_array().unwrap();
    assert_eq!(changed.len(), 3, "what changed since the base");
    assert_eq!(again["version"], version);
    assert_eq!(world.get(&a, "/conflicts").ok(), conflicts, "nothing was done twice");
    world.call(&a, Method::DELETE, "/lock", &[], None);
    assert_eq!(world.sync(&b, &json!({})).ok()["version"], version);
}

#[test]
fn a_replay_needs_no_lock() {
    let (world, device) = world();
    let other = world.device("anna", "b");
    let lock = world.call(&device, Method::POST, "/lock", &[], None).ok();
    let fence = lock["fence"].to_string();
    let headers = [("idempotency-key", "k"), ("sync-lock", &*fence)];
    let body = body(&world);
    let first = world.call(&device, Method::POST, "/synchronise", &headers, Some(&body));
    first.ok();
    world.call(&other, Method::POST, "/lock", &[], None).ok();
    world.call(&device, Method::POST, "/synchronise", &headers[1..], Some(&body)).problem(409, "lock_lost");
    world.sync(&device, &json!({})).problem(423, "sync_in_progress");
    same(&world.call(&device, Method::POST, "/synchronise", &headers, Some(&body)), &first);
    same(&world.sync_once(&device, "k", &body), &first);
    let held = world.get(&other, "/lock").ok();
    assert_eq!(
        (&held["held"], &held["mine"]),
        (&json!(true), &json!(true)),
        "the other's lock is its own still"
    );
}

/// Goal: a synchronise ends the sync, even a replayed one: otherwise a device that starts its sync again
/// after a lost response would block the others for a whole lease.
#[test]
fn a_replay_gives_the_lock_back_as_its_first_sending_did() {
    for (keep_lock, stale) in [(false, false), (true, false), (false, true)] {
        let (world, device) = world();
        let mut body = body(&world);
        body["keep_lock"] = json!(keep_lock);
        let old = world.call(&device, Method::POST, "/lock", &[], None).ok()["fence"].to_string();
        let first = world.sync_once(&device, "k", &body);
        first.ok();
        if stale {
            // Another device had the lock in between, so the device's next hold has another fence.
            let other = world.device("anna", "b");
            world.call(&other, Method::POST, "/lock", &[], None).ok();
            world.call(&other, Method::DELETE, "/lock", &[], None);
        }
        world.get(&device, "/fetch").ok(); // the response was lost: the device starts again
        let mut headers = vec![("idempotency-key", "k")];
        if stale {
            headers.push(("sync-lock", &old)); // a late copy of the first sending, not of this sync
        }
        same(&world.call(&device, Method::POST, "/synchronise", &headers, Some(&body)), &first);
        assert_eq!(at_work(&world, &device), keep_lock || stale, "keep_lock {keep_lock}, stale {stale}");
    }
}

#[test]
fn a_refused_request_is_not_remembered() {
    let (world, device) = world();
    let other = world.device("anna", "b");
    let fine = json!({ "add": { "newest": [{ "id": key(50), "title": "x" }] } });
    for bad in [
        json!({ "add": { "newest": [{ "id": key(50) }] }, "atomic": true }),
        json!({ "add": { "nothing": [{ "id": key(50) }] } }),
        json!({ "base": 77_777 }),
    ] {
        let refused = world.sync_once(&device, "k", &bad);
        assert!(refused.status == 422 || refused.status == 410, "{}", refused.text());
    }
    world.call(&other, Method::POST, "/lock", &[], None).ok();
    world.sync_once(&device, "k", &fine).problem(423, "sync_in_progress");
    world.call(&other, Method::DELETE, "/lock", &[], None);
    // A rehearsal is no request either.
    let mut rehearsed = fine.clone();
    rehearsed["dry_run"] = json!(true);
    assert_eq!(world.sync_once(&device, "k", &rehearsed).ok()["add"]["newest"][0]["verdict"], "added");
    let done = world.sync_once(&device, "k", &fine);
    assert_eq!(done.ok()["add"]["newest"][0]["verdict"], "added");
    assert_eq!(done.header("idempotency-replayed"), None);
}

/// Goal: both engines behave alike. Method: every test of this file once more, over PostgreSQL.
#[test]
fn again_on_postgres() {
    support::engine::run_again_on_postgres(module_path!());
}

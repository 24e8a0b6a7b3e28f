//! Forgetting old data: by the server itself, by `rollcall purge`, and what a device receives afterwards.

use rollcall_testkit::test_server;

use std::io::Read as _;
use std::sync::Arc;

use rollcall::model::{Claim, DeviceId, RowKey, Stored, Timestamp, Version};
use rollcall::purge;
use rollcall::storage::{OwnerState, WriteTxn};
use serde_json::{Value, json};
use test_server::engine::is_sqlite;
use test_server::{Served, TestServer, database, is_expired, key, rollcall, run, signal, until};
use uuid::Uuid;

const TOMBSTONES: &str = "rollcall_ledger WHERE deleted";

#[test]
fn a_tombstone_stays_until_every_device_in_use_has_seen_it() {
    let server = TestServer::new(0);
    let (anna, ben) = (server.device("Anna's phone"), server.device("Ben's phone"));
    let made = server.add(&anna, 1);
    assert_eq!(server.since(&ben, made).0, 200);
    let deleted = server.delete(&anna, 1..2);
    assert_eq!(server.since(&anna, deleted).0, 200);

    server.pass_days(100);
    assert_eq!(server.purge().tombstones, 0, "Ben has not seen it");
    let (_, result) = server.since(&ben, made);
    assert_eq!(result["delete"]["notes"], json!([key(1)]));
    assert_eq!(server.purge().tombstones, 0, "being told is not having kept it");
    assert_eq!(server.since(&ben, deleted).0, 200);
    assert_eq!(server.purge().tombstones, 1);

    assert_eq!(server.count(TOMBSTONES), 0);
    assert_eq!(server.since(&ben, deleted).0, 200, "a cursor at the horizon is good");
    is_expired(&server.since(&ben, deleted - 1), deleted, deleted);
    let body = json!({"base": deleted - 1});
    is_expired(&server.ask(&ben, "POST", "/synchronise", Some(body)), deleted, deleted);
}

#[test]
fn a_young_tombstone_stays() {
    let server = TestServer::new(0);
    let anna = server.device("Anna's phone");
    server.add(&anna, 1);
    let deleted = server.delete(&anna, 1..2);
    server.since(&anna, deleted);
    server.pass_days(89);
    assert_eq!(server.purge().tombstones, 0);
    server.add(&anna, 2); // dates the version before it, so that the tombstone's age is known
    server.pass_days(2);
    assert_eq!(server.purge().tombstones, 1);
    assert_eq!(server.count("rollcall_ledger"), 1, "the row that lives stays");
}

#[test]
fn an_abandoned_device_stops_counting() {
    let server = TestServer::new(0);
    let (anna, ben) = (server.device("Anna's phone"), server.device("Ben's phone"));
    let made = server.add(&anna, 1);
    server.since(&ben, made);
    let deleted = server.delete(&anna, 1..2);
    server.pass_days(179);
    server.since(&anna, deleted);
    assert_eq!(server.purge().tombstones, 0, "Ben was here 179 days ago");
    server.pass_days(2);
    assert_eq!(server.purge().tombstones, 1);
    is_expired(&server.since(&ben, made), deleted, deleted);
}

/// Goal: a device with an expired cursor does not keep tombstones for others.
#[test]
fn an_expired_cursor_holds_nothing_back() {
    let server = TestServer::new(0);
    let (anna, ben) = (server.device("Anna's phone"), server.device("Ben's phone"));
    let made = server.add(&anna, 1);
    let deleted = server.delete(&anna, 1..2);
    server.pass_days(100);
    assert_eq!(server.purge().tombstones, 1);
    server.add(&anna, 2);
    let again = server.delete(&anna, 2..3);
    server.pass_days(100);
    is_expired(&server.since(&ben, made), again, deleted);
    assert_eq!(server.purge().tombstones, 1);
}

#[test]
fn a_device_that_was_signed_out_holds_nothing_back() {
    for written_down in [true, false] {
        let server = TestServer::new(0);
        let [anna, ben, cleo] =
            ["Anna's phone", "Ben's phone", "Cleo's phone"].map(|name| server.device(name));
        let made = server.add(&anna, 1);
        server.since(&ben, made);
        server.since(&cleo, made);
        if written_down {
            server.purge();
            assert_eq!(server.count("rollcall_ack"), 2);
        }
        let deleted = server.delete(&anna, 1..2);
        server.pass_days(100);
        server.since(&anna, deleted);
        assert_eq!(server.ask(&anna, "DELETE", &format!("/devices/{}", ben.id), None).0, 204);
        assert_eq!(server.purge().tombstones, 0, "Cleo is still there");
        assert_eq!(server.ask(&cleo, "POST", "/logout", None).0, 204);
        assert_eq!(server.purge().tombstones, 1);
        assert_eq!(server.count("rollcall_ack"), 1);
    }
}

#[test]
fn a_page_mark_from_before_the_purge_has_expired() {
    for query in ["?limit=1", "?since=SINCE&limit=1"] {
        let server = TestServer::new(0);
        let (anna, ben) = (server.device("Anna's phone"), server.device("Ben's phone"));
        let first = server.add(&anna, 1);
        for number in 2..5 {
            server.add(&anna, number);
        }
        let (status, page) = server.changes(&ben, &query.replace("SINCE", &first.to_string()));
        assert_eq!((status, &page["more"]), (200, &json!(true)), "{page}");
        let next = format!("?next={}", page["next"].as_str().unwrap());
        let deleted = server.delete(&anna, 3..4);
        assert_eq!(server.changes(&ben, &next).0, 200);
        server.pass_days(200);
        assert_eq!(server.purge().tombstones, 1);
        is_expired(&server.changes(&ben, &next), deleted, deleted);
        let (status, result) = server.changes(&ben, "");
        assert_eq!((status, result["add"]["notes"].as_array().unwrap().len()), (200, 3));
    }
}

#[test]
fn conflicts_and_answers_expire() {
    let server = TestServer::new(0);
    let (anna, ben) = (server.device("Anna's phone"), server.device("Ben's phone"));
    let made = server.add(&anna, 1);
    let edit = |text: &str| json!({"update": {"notes": [{"id": key(1), "text": text}]}, "base": made});
    let once = |text| server.ask_with(&ben, "POST", "/synchronise", Some(edit(text)), Some("k1"));
    server.sync(&anna, edit("Anna's"));
    let (status, given) = once("Ben's");
    assert_eq!(status, 200, "{given}");
    let listed = |server: &TestServer| server.ask(&anna, "GET", "/conflicts", None).1["conflicts"].clone();
    assert_eq!(listed(&server).as_array().unwrap().len(), 1);

    server.pass_hours(23);
    server.purge();
    assert_eq!(once("Ben's"), (200, given));
    server.pass_hours(2);
    assert_eq!(server.purge().records, 1);
    assert_eq!(server.count("rollcall_answer"), 0);
    server.pass_days(80);
    assert_eq!(server.purge().records, 0);
    server.pass_days(10);
    assert_eq!(server.purge().records, 1);
    assert_eq!(listed(&server), json!([]));
}

/// Goal: a purge that ends between two transactions leaves a consistent state. Method: 1,000 of 2,500
/// tombstones are forgotten; a cursor at the present horizon receives the rest.
#[test]
fn a_purge_that_was_interrupted_leaves_the_truth() {
    let server = TestServer::new(0);
    let anna = server.device("Anna's phone");
    let rows: Vec<Value> = (0..2_500).map(|number| json!({"id": key(number), "text": "note"})).collect();
    server.sync(&anna, json!({"add": {"notes": rows}}));
    let deleted: Vec<u64> = (0..5).map(|lot| server.delete(&anna, lot * 500..(lot + 1) * 500)).collect();
    server.pass_days(100);

    let app = server.app();
    let terms = purge::terms(&app.settings.sync, app.settings.limits.owner_past_bytes_max, app.clock.now());
    let mut heard = 0;
    let purged = purge::run(&*app.storage, &terms, &mut |owner, purged| {
        assert_eq!((owner, purged.tombstones, purged.more), (server.owner(), 1_000, true));
        heard += 1;
        false
    });
    assert_eq!((heard, purged.unwrap().tombstones), (1, 1_000));
    let ben = server.device("Ben's phone");
    is_expired(&server.since(&ben, deleted[0]), deleted[4], deleted[1]);
    let (status, result) = server.since(&ben, deleted[1]);
    assert_eq!((status, result["delete"]["notes"].as_array().unwrap().len()), (200, 1_500));
    server.since(&ben, deleted[4]);
    assert_eq!(server.purge().tombstones, 1_500);
    is_expired(&server.since(&ben, deleted[3]), deleted[4], deleted[4]);
}

/// Goal: the horizon and the tombstones change in one transaction. Method: a reader in another process checks
/// all the while, each time in one snapshot: forgotten tombstones must be below the horizon.
#[test]
fn no_reader_sees_tombstones_gone_and_the_horizon_where_it_was() {
    let mut server = TestServer::new(200);
    many_tombstones(&mut server, 20_000);
    let url = server.store.url();
    let purge = std::thread::spawn(move || run(rollcall("purge").args(["--database", &url])));
    let mut looks = 0;
    while !purge.is_finished() {
        check_horizon(&server, 20_000);
        looks += 1;
    }
    let ended = purge.join().unwrap();
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.out.contains("purged 20000 tombstones"), "{ended:?}");
    assert!(looks > 1, "the purge was never looked at");
}

/// Goal: a running server reports a horizon that another process raised.
#[test]
fn a_running_server_notices_what_the_command_forgot() {
    let server = TestServer::new(200);
    let anna = server.device("Anna's phone");
    let made = server.add(&anna, 1);
    let deleted = server.delete(&anna, 1..2);
    assert_eq!(server.since(&anna, made).1["delete"]["notes"], json!([key(1)]));
    let command = || run(rollcall("purge").args(["--database", &server.store.url()]));
    let ended = command();
    assert_eq!((ended.code, ended.err.as_str()), (Some(0), ""), "{ended:?}");
    // What a deletion without a base overwrites is recorded, and as old as the tombstone.
    assert_eq!(ended.out, "purged 1 tombstones and 1 other records of 1 owners\n");
    is_expired(&server.since(&anna, made), deleted, deleted);
    assert_eq!(server.since(&anna, deleted).0, 200);
    assert_eq!(server.add(&anna, 2), deleted + 1);
    assert_eq!(command().out, "purged 0 tombstones and 0 other records of 1 owners\n");
}

#[test]
fn the_command_makes_no_database() {
    if !is_sqlite() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("typo.db");
    let ended = run(rollcall("purge").args(["--database", &database(&path)]));
    assert_eq!(ended.code, Some(1));
    assert!(ended.err.contains("there is no database"), "{ended:?}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn ctrl_c_ends_the_command_between_transactions() {
    let mut server = TestServer::new(200);
    many_tombstones(&mut server, 60_000);
    let mut child = rollcall("purge").args(["--database", &server.store.url()]).spawn().unwrap();
    until("the first transaction", || server.count(TOMBSTONES) < 60_000);
    signal(&child, "-INT");
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{said}");
    assert!(said.contains("interrupted: purged"), "{said}");
    let left = server.count(TOMBSTONES);
    assert!(left > 0, "it went on to the end");
    check_horizon(&server, 60_000);
    let ended = run(rollcall("purge").args(["--database", &server.store.url()]));
    assert!(ended.out.contains(&format!("purged {left} tombstones")), "{ended:?}");
}

#[test]
fn a_server_purges_by_itself_and_ends_promptly() {
    let mut server = TestServer::new(200);
    many_tombstones(&mut server, 60_000);
    server.close();
    let url = server.store.url();
    let served = Served::start(server.dir(), &url, &["--purge-s", "1"]);
    until("the first transaction", || server.count(TOMBSTONES) < 60_000);
    let (status, log) = served.stop();
    assert!(status.success(), "{log}");
    assert!(server.count(TOMBSTONES) > 0, "it went on to the end: {log}");
    check_horizon(&server, 60_000);

    let served = Served::start(server.dir(), &url, &["--purge-s", "1", "--log-format", "json"]);
    until("the last transaction", || server.count(TOMBSTONES) == 0);
    check_horizon(&server, 60_000);
    let (status, log) = served.stop();
    assert!(status.success() && log.contains("\"message\":\"purged old data\""), "{log}");
}

#[test]
fn what_devices_have_seen_is_written_down_at_the_stop() {
    let mut server = TestServer::new(0);
    let anna = server.device("Anna's phone");
    let made = server.add(&anna, 1);
    server.close();
    let served = Served::start(server.dir(), &server.store.url(), &["--purge-s", "0"]);
    assert_eq!(served.ask(&anna.token, "GET", &format!("/changes?since={made}"), None).0, 200);
    assert_eq!(server.count("rollcall_ack"), 0);
    let (status, log) = served.stop();
    assert!(status.success(), "{log}");
    let seen = server.number("SELECT version FROM rollcall_ack");
    assert_eq!(u64::try_from(seen).unwrap(), made);
}

/// Writes that many old tombstones, ten a version, as so many requests would have.
fn many_tombstones(server: &mut TestServer, tombstones: u64) {
    let anna = server.device("Anna's phone");
    let first = server.add(&anna, 0) + 1;
    let (app, device) = (Arc::clone(server.app()), DeviceId(Uuid::from_u128(1)));
    let last = Version(first + (tombstones - 1) / 10);
    let rows: Vec<(RowKey, Stored)> = (0..tombstones)
        .map(|at| {
            let version = Version(first + at / 10);
            let last_update = Timestamp::from_ms(0);
            let row = Stored {
                version,
                created: version,
                last_update,
                values: None,
                made_at: None,
                claim: Claim::default(),
                made_by: device,
                changed_by: device,
                lifetimes: Vec::new(),
                aware_devices: Vec::new(),
            };
            (RowKey(Uuid::now_v7()), row)
        })
        .collect();
    let rows: Vec<_> = rows.iter().map(|(key, row)| (*key, row)).collect();
    let table = app.schema.tables()[0].id;
    let put = |txn: &mut dyn WriteTxn| {
        txn.put(table, &rows)?;
        txn.advance(OwnerState { version: last, ..txn.state() }, &[], app.clock.now())
    };
    app.storage.write(server.owner(), put).unwrap();
}

/// Compares what is left of [`many_tombstones`] with the horizon.
#[track_caller]
fn check_horizon(server: &TestServer, tombstones: i64) {
    let owner = if is_sqlite() { "id" } else { "owner" };
    let sql = format!(
        "SELECT o.horizon, o.version, count(l.key), coalesce(min(l.version), o.version) FROM rollcall_owner o \
         LEFT JOIN rollcall_ledger l ON l.owner = o.{owner} AND l.deleted GROUP BY o.{owner}, o.horizon, o.version"
    );
    let [horizon, version, left, oldest] = server.numbers(&sql);
    let gone = tombstones - left;
    let first = version - tombstones / 10 + 1;
    let expected = if gone == 0 { 1 } else { first + (gone - 1) / 10 };
    assert_eq!(horizon, expected, "{gone} are gone");
    assert!(oldest >= horizon, "{oldest} is left and the horizon at {horizon}");
}

/// Goal: both engines behave alike. Method: every test of this file once more, over PostgreSQL.
#[test]
fn again_on_postgres() {
    test_server::engine::run_again_on_postgres(module_path!());
}

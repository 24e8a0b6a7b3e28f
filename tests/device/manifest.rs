//! The way by manifest, against the real server.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rollcall::clock::Clock;
use rollcall::device::calls::{CallError, Calls};
use rollcall::device::{Http, LogIn, Options, Request, Store, SyncError, SyncMode, log_in};
use rollcall::model::RowKey;
use serde_json::{Value as Json, json};
use uuid::Uuid;

use crate::real::{EMAIL, PASSWORD, SCHEMA, Server};
use crate::support::{Fate, Phone, assert_agree, columns, losing, noting_retries, retries};

fn phone(server: &Server, name: &str) -> Phone {
    Phone::new(server, name, SyncMode::Manifest)
}

fn pair(server: &Server) -> (Phone, Phone) {
    (phone(server, "phone"), phone(server, "tablet"))
}

#[test]
fn two_devices_converge_over_adds_edits_and_deletes() {
    let server = Server::start();
    let (mut a, mut b) = pair(&server);
    let list = a.add("lists", json!({ "title": "Wedding" }));
    let rings = a.add("items", json!({ "list": list, "title": "Rings", "amount": 300 }));
    let band = a.add("items", json!({ "list": list, "title": "Band" }));
    let report = a.sync();
    assert_eq!((report.tally.taken, report.mode), (3, Some(SyncMode::Manifest)));
    assert_eq!(a.column("items", rings, "done"), Some(json!(false)), "the default came back");
    assert_eq!(b.sync().tally.received, 3);
    assert_eq!(a.sees(), b.sees());

    a.put("items", rings, json!({ "amount": 350 }));
    b.delete("items", band);
    let own = b.add("items", json!({ "list": list, "title": "Cake" }));
    assert_agree(&mut a, &mut b);
    assert_eq!(b.column("items", rings, "amount"), Some(json!(350)));
    assert_eq!(a.column("items", band, "title"), None);
    assert_eq!(a.column("items", own, "title"), Some(json!("Cake")));

    // Created and deleted before any sync: it is never sent.
    let never = a.add("items", json!({ "title": "Never" }));
    a.delete("items", never);
    assert_eq!(a.sync().tally.taken, 0);
    assert!(a.store.cursor().unwrap().is_some());
}

#[test]
fn different_columns_edited_on_both_sides() {
    let server = Server::start();
    let (mut a, mut b) = pair(&server);
    let rings = a.add("items", json!({ "title": "Rings", "amount": 300 }));
    assert_agree(&mut a, &mut b);
    a.put("items", rings, json!({ "amount": 350 }));
    std::thread::sleep(Duration::from_millis(3)); // the later edit wins: make it later
    b.put("items", rings, json!({ "title": "Two rings" }));
    a.sync();
    // Changed columns alone go up: B's title wins, A's amount was never in question.
    b.sync();
    assert_agree(&mut a, &mut b);
    assert_eq!(a.column("items", rings, "amount"), Some(json!(350)));
    assert_eq!(a.column("items", rings, "title"), Some(json!("Two rings")));
}

/// Goal: any one response or request may be lost, at any point. Method: each is lost in turn, and the device
/// continues after a restart, or at once.
#[test]
fn a_lost_request_or_answer_changes_nothing() {
    let server = Server::with(|settings| settings.limits.rows_max = 2);
    let (mut a, mut b) = pair(&server);
    let losses = (0..6).flat_map(|number| [(number, Fate::LostBefore), (number, Fate::LostAfter)]);
    for ((number, fate), attempts) in losses.flat_map(|loss| [(loss, 1), (loss, 6)]) {
        let case = format!("{fate:?} {number} of {attempts} attempts");
        let list = a.add("lists", json!({ "title": "Wedding" }));
        let rings = a.add("items", json!({ "list": list, "title": "Rings" }));
        let band = a.add("items", json!({ "list": list, "title": "Band" }));
        a.sync();
        b.sync();
        let before = a.store.list("items").unwrap().len();
        b.add("items", json!({ "title": "Cake" }));
        b.sync();
        a.put("items", rings, json!({ "amount": 1 }));
        a.delete("items", band);
        a.add("items", json!({ "list": list, "title": "Flowers" }));
        a.remote.disturb = losing(number, fate);
        if let Err(error) = a.try_sync(attempts) {
            assert_eq!(attempts, 1, "{case}: {error}");
            assert!(matches!(error, SyncError::Call(CallError::NoResponse(_))), "{case}: {error}");
            a.restart();
            // The user continues to edit before the next sync.
            a.put("items", rings, json!({ "title": "Rings of gold" }));
            b.put("lists", list, json!({ "title": "The wedding" }));
        }
        a.remote.disturb = Box::new(|_| Fate::Arrives);
        assert_agree(&mut a, &mut b);
        assert_eq!(a.store.list("items").unwrap().len(), before + 1, "{case}");
        assert_eq!(b.column("items", rings, "amount"), Some(json!(1)), "{case}");
        assert_eq!(b.column("items", band, "title"), None, "{case}");
    }
}

/// The crash comes between the response and its application: the file never received the response.
#[test]
fn a_crash_between_answer_and_application_is_resumed() {
    let server = Server::start();
    let (mut a, mut b) = pair(&server);
    let rings = a.add("items", json!({ "title": "Rings" }));
    a.remote.disturb = Box::new(|request| match request.path.as_str() {
        "synchronise" => Fate::LostAfter,
        _ => Fate::Arrives,
    });
    a.try_sync(1).unwrap_err();
    let sending = a.store.outstanding().unwrap().unwrap();
    a.restart();
    assert_eq!(a.store.outstanding().unwrap().as_ref(), Some(&sending));
    // Meanwhile: A deletes the row that the server may have, and B edits it.
    a.delete("items", rings);
    b.sync();
    assert_eq!(b.column("items", rings, "title"), Some(json!("Rings")));
    a.remote.disturb = Box::new(|_| Fate::Arrives);
    let report = a.sync();
    assert!(report.resumed);
    let key = |(request, _): &(rollcall::device::Request, u16)| {
        request.headers.iter().find(|(name, _)| *name == "idempotency-key").map(|(_, key)| key.clone())
    };
    let keys: Vec<_> = a.remote.log.iter().filter_map(key).collect();
    assert!(keys.iter().filter(|key| **key == sending.key.to_string()).count() >= 2, "{keys:?}");
    assert_agree(&mut a, &mut b);
    assert_eq!(b.column("items", rings, "title"), None, "the deletion was not lost");
}

#[test]
fn an_edit_made_while_a_sync_is_under_way_is_not_lost() {
    let server = Server::start();
    let (mut a, mut b) = pair(&server);
    let rings = a.add("items", json!({ "title": "Rings", "amount": 1 }));
    let path = a.path.clone();
    let mut once = false;
    a.remote.answered = Box::new(move |request| {
        if request.path == "synchronise" && !std::mem::replace(&mut once, true) {
            // The app is another connection to the same file.
            let mut app = Store::open(&path, Clock::system()).unwrap();
            app.put("items", rings, &columns(json!({ "amount": 2 }))).unwrap();
        }
    });
    a.sync();
    assert_eq!(a.column("items", rings, "amount"), Some(json!(2)));
    assert_agree(&mut a, &mut b);
    assert_eq!(b.column("items", rings, "amount"), Some(json!(2)));
    assert_eq!(b.column("items", rings, "title"), Some(json!("Rings")));
}

#[test]
fn a_device_waits_for_another_ones_sync() {
    let server = Server::with(|settings| settings.sync.lock_wait_max_s = 0);
    let (mut a, mut b) = pair(&server);
    a.add("items", json!({ "title": "Rings" }));
    // B fetches, and has the lock from then on.
    b.remote.disturb = Box::new(|request| match request.path.as_str() {
        "synchronise" | "lock" => Fate::LostBefore,
        _ => Fate::Arrives,
    });
    b.add("items", json!({ "title": "Band" }));
    b.try_sync(1).unwrap_err();

    let (mut waits, pauses) = noting_retries(6);
    waits.lock_wait_max_ms = 40_000;
    let error = a.try_sync_with(&mut waits, Options::default()).unwrap_err();
    assert!(matches!(&error, SyncError::Call(call) if call.code() == "sync_in_progress"), "{error}");
    assert!(!pauses.lock().is_empty());
    assert!(pauses.lock().iter().all(|pause| (1..=16).contains(&pause.as_secs())), "{pauses:?}");
    assert_eq!(a.store.pending().unwrap().rows(), 1);

    // While A waits once more, B gets its network back.
    b.remote.disturb = Box::new(|_| Fate::Arrives);
    let done = Arc::new(AtomicBool::new(false));
    let (mut waits, freed) = (retries(6), Arc::clone(&done));
    waits.pause = {
        let b = std::cell::RefCell::new(b);
        Box::new(move |_| {
            b.borrow_mut().sync();
            freed.store(true, Ordering::Relaxed);
        })
    };
    let report = a.try_sync_with(&mut waits, Options::default()).unwrap();
    assert!(done.load(Ordering::Relaxed));
    assert_eq!((report.tally.taken, report.tally.received), (1, 1));
}

/// Goal: devices that sync at the same moment, again and again, agree in the end. Method: real threads.
#[test]
fn devices_that_sync_all_at_once_agree_in_the_end() {
    let server = Server::start();
    let mut shared = phone(&server, "first");
    let key = shared.add("items", json!({ "title": "Shared", "amount": 0 }));
    shared.sync();
    std::thread::scope(|scope| {
        for name in ["a", "b", "c"] {
            let server = &server;
            scope.spawn(move || {
                let mut phone = phone(server, name);
                for round in 0..4 {
                    phone.sync();
                    phone.add("items", json!({ "title": format!("{name} {round}") }));
                    phone.put("items", key, json!({ "amount": round }));
                }
                phone.sync();
                assert_eq!(phone.store.pending().unwrap().rows(), 0);
            });
        }
    });
    let mut last = phone(&server, "last");
    assert_agree(&mut shared, &mut last);
    assert_eq!(last.store.list("items").unwrap().len(), 13);
}

#[test]
fn many_rows_go_in_parts_under_one_lock() {
    let server = Server::with(|settings| {
        settings.limits.rows_max = 3;
        settings.limits.get_keys_max = 4;
        settings.sync.fetch_rows_max = 5;
    });
    let (mut a, mut b) = pair(&server);
    let list = a.add("lists", json!({ "title": "Long" }));
    for n in 0..20 {
        a.add("items", json!({ "list": list, "title": format!("{n}") }));
    }
    a.sync();
    let took = a.took();
    assert_eq!(took.iter().filter(|one| *one == "POST synchronise 200").count(), 7, "{took:?}");
    assert_eq!(b.sync().tally.received, 21);
    let took = b.took();
    assert_eq!(took.iter().filter(|one| *one == "POST synchronise 200").count(), 6, "{took:?}");
    assert!(took.iter().filter(|one| *one == "GET fetch 200").count() > 4, "{took:?}");
    assert_agree(&mut a, &mut b);
}

#[test]
fn limits_that_were_lowered_are_learned() {
    let server = Server::with(|settings| settings.limits.rows_max = 3);
    let (mut a, mut b) = pair(&server);
    for n in 0..10 {
        a.add("items", json!({ "title": format!("{n}") }));
    }
    // The device remembers what a bigger server allowed.
    let file = rusqlite::Connection::open(&a.path).unwrap();
    file.execute("INSERT INTO meta VALUES ('limits', '[5000, 5000, 8388608]')", []).unwrap();
    assert_eq!(a.sync().tally.taken, 10);
    assert_agree(&mut a, &mut b);
}

#[test]
fn what_has_not_changed_is_not_listed_again() {
    let server = Server::start();
    let (mut a, mut b) = pair(&server);
    let rings = a.add("items", json!({ "title": "Rings" }));
    assert_agree(&mut a, &mut b);
    a.took();
    a.sync();
    assert_eq!(a.took(), ["GET fetch 304", "POST synchronise 200"]);
    // An edit here does not need the list either.
    a.put("items", rings, json!({ "amount": 1 }));
    a.sync();
    assert_eq!(a.took(), ["GET fetch 304", "POST synchronise 200"]);
    b.took();
    b.sync();
    assert_eq!(b.took(), ["GET fetch 200", "POST synchronise 200"]);
    assert_agree(&mut a, &mut b);
}

/// Goal: after a restore a time may denote another state, so every held row is requested, once, even if the
/// sync is interrupted.
#[test]
fn after_a_restore_what_is_held_is_asked_for_once() {
    let mut server = Server::with(|settings| settings.limits.get_keys_max = 2);
    let mut a = phone(&server, "phone");
    let keys: Vec<_> = (0..5).map(|n| a.add("items", json!({ "title": format!("{n}") }))).collect();
    a.sync();
    a.sync();
    let copy = server.backup();
    server.restore(&copy);
    // A write of the same millisecond that was lost in the restore would leave this behind.
    let file = rusqlite::Connection::open(&a.path).unwrap();
    file.execute("UPDATE rows SET contents = '{\"title\":\"lost\"}' WHERE key = ?1", [keys[4].to_string()])
        .unwrap();
    a.follow(&server);
    a.took();
    a.remote.disturb = losing(2, Fate::LostBefore);
    a.try_sync(1).unwrap_err();
    a.remote.disturb = Box::new(|_| Fate::Arrives);
    a.sync();
    assert_eq!(a.column("items", keys[4], "title"), Some(json!("4")));
    let asked: usize = a.remote.log.iter().map(|(request, _)| keys_under_get(request)).sum();
    assert_eq!(asked, keys.len());
    a.took();
    a.sync();
    assert_eq!(a.took(), ["GET fetch 304", "POST synchronise 200"]);
}

/// Goal: a device without all the rows that it requested has no cursor: a row that is deleted before the next
/// request would stay on it for ever, since no feed from there mentions it. Method: the device dies after
/// each of its requests.
#[test]
fn the_cursor_waits_for_every_row_that_was_asked_for() {
    let server = Server::with(|settings| settings.limits.get_keys_max = 1);
    let mut a = phone(&server, "phone");
    let keys: Vec<_> = (0..3).map(|n| a.add("items", json!({ "title": format!("{n}") }))).collect();
    a.sync();
    // Its limits, the list, and a request for each row.
    for dies_at in 2..5 {
        let mut b = phone(&server, &format!("tablet {dies_at}"));
        b.remote.disturb = losing(dies_at, Fate::LostBefore);
        b.try_sync(1).unwrap_err();
        let here = b.store.list("items").unwrap().len();
        assert_eq!((here, b.store.cursor().unwrap()), (dies_at - 2, None), "{dies_at}");
        b.remote.disturb = Box::new(|_| Fate::Arrives);
        b.way = SyncMode::Cursor;
        a.delete("items", keys[0]);
        a.sync();
        b.sync();
        assert_eq!(b.sees(), a.sees(), "{dies_at}");
        a.put("items", keys[0], json!({ "title": "0" }));
        a.sync();
    }
}

fn keys_under_get(request: &Request) -> usize {
    let body: Json = serde_json::from_slice(request.body.as_deref().unwrap_or_default()).unwrap_or_default();
    body["get"]["items"].as_array().map_or(0, Vec::len)
}

#[test]
fn deleted_there_and_edited_here() {
    let server = Server::start();
    let (mut a, mut b) = pair(&server);
    let (early, late) =
        (a.add("items", json!({ "title": "Early" })), a.add("items", json!({ "title": "Late" })));
    assert_agree(&mut a, &mut b);
    b.put("items", early, json!({ "amount": 1 }));
    std::thread::sleep(Duration::from_millis(3));
    a.delete("items", early);
    a.delete("items", late);
    a.sync();
    std::thread::sleep(Duration::from_millis(3));
    b.put("items", late, json!({ "amount": 2 }));
    // Policy newest: the deletion is later than the one edit, earlier than the other.
    let report = b.sync();
    assert_eq!(report.tally.lost, [("items".to_owned(), early)]);
    assert_agree(&mut a, &mut b);
    assert_eq!(a.column("items", early, "title"), None);
    assert_eq!(a.column("items", late, "title"), Some(json!("Late")), "the whole row came back");
    assert_eq!(a.column("items", late, "amount"), Some(json!(2)));
}

#[test]
fn the_same_key_made_twice_is_one_row() {
    let server = Server::start();
    let (mut a, mut b) = pair(&server);
    let key = RowKey(Uuid::new_v5(&Uuid::NAMESPACE_DNS, b"inbox"));
    b.put("lists", key, json!({ "title": "Inbox of B" }));
    std::thread::sleep(Duration::from_millis(3));
    a.put("lists", key, json!({ "title": "Inbox of A" }));
    a.sync();
    b.sync();
    assert_eq!(b.column("lists", key, "title"), Some(json!("Inbox of A")), "the later one won");
    assert_agree(&mut a, &mut b);
}

#[test]
fn a_rejected_row_waits_for_its_user() {
    let server = Server::start();
    let (mut a, mut b) = pair(&server);
    let long = a.add("lists", json!({ "title": "x".repeat(41) }));
    let orphan = a.add("items", json!({ "title": "Orphan", "list": Uuid::now_v7() }));
    let good = a.add("items", json!({ "title": "Good" }));
    let report = a.sync();
    assert_eq!(report.tally.taken, 1);
    let rejected: Vec<_> = report.tally.rejected.iter().map(|(_, key, _)| *key).collect();
    assert_eq!(rejected, [long, orphan]);
    assert_eq!(a.store.pending().unwrap().rejected, 2);
    a.put("lists", long, json!({ "title": "Short" }));
    a.put("items", orphan, json!({ "list": long }));
    a.sync();
    assert_agree(&mut a, &mut b);
    assert_eq!(b.column("items", orphan, "list"), Some(json!(long)));
    assert_eq!(b.column("items", good, "title"), Some(json!("Good")));
    // A list that still has items cannot go; with them it can.
    b.delete("lists", long);
    assert_eq!(b.sync().tally.rejected.len(), 1);
    b.delete("items", orphan);
    b.sync();
    assert_agree(&mut a, &mut b);
    assert_eq!(a.column("lists", long, "title"), None);
}

/// One row that no server takes must not keep the others: here, of an app that is newer than the server.
#[test]
fn a_row_that_costs_the_request_is_held_back() {
    let server = Server::start();
    let newer = SCHEMA.replace("amount = \"integer\"", "amount = \"integer\"\nprice = \"decimal\"");
    let http = Box::new(Http::new(&server.url));
    let mut a = Phone::declaring(&server, "newer", SyncMode::Manifest, http, &newer);
    a.add("items", json!({ "title": "Good" }));
    let bad = a.add("items", json!({ "title": "Bad", "price": "1.50" }));
    a.add("items", json!({ "title": "Good too" }));
    let report = a.sync();
    assert_eq!(report.tally.taken, 2);
    assert_eq!(report.tally.rejected.iter().map(|(_, key, _)| *key).collect::<Vec<_>>(), [bad]);
    assert_eq!(a.store.pending().unwrap().rows(), 1);
}

#[test]
fn a_row_that_no_request_can_hold_keeps_no_other_back() {
    let server = Server::with(|settings| settings.limits.body_bytes_max = 4_096);
    for way in [SyncMode::Manifest, SyncMode::Cursor] {
        let mut a = Phone::new(&server, &format!("{way:?}"), way);
        for n in 0..20 {
            a.add("items", json!({ "title": format!("{n} {}", "x".repeat(300)) }));
        }
        let long = a.add("items", json!({ "title": "x".repeat(5_000) }));
        a.add("items", json!({ "title": "last" }));
        // What a bigger server allowed is remembered.
        let file = rusqlite::Connection::open(&a.path).unwrap();
        file.execute("INSERT INTO meta VALUES ('limits', '[5000, 5000, 8388608]')", []).unwrap();
        let report = a.sync();
        assert_eq!(report.tally.taken, 21);
        assert_eq!(report.tally.rejected.iter().map(|(_, key, _)| *key).collect::<Vec<_>>(), [long]);
        a.put("items", long, json!({ "title": "short" }));
        assert_eq!(a.sync().tally.taken, 1);
    }
}

#[test]
fn a_mass_deletion_asks_first() {
    let server = Server::start();
    let (mut a, mut b) = pair(&server);
    let keys: Vec<_> = (0..60).map(|n| a.add("items", json!({ "title": format!("{n}") }))).collect();
    assert_agree(&mut a, &mut b);
    keys.iter().for_each(|key| a.delete("items", *key));
    let error = a.try_sync(6).unwrap_err();
    assert!(matches!(&error, SyncError::Call(call) if call.code() == "mass_delete"), "{error}");
    assert_eq!(a.store.pending().unwrap().deleted, 60);
    assert_eq!(a.store.outstanding().unwrap(), None);
    // The user must have agreed to at least as many as were refused.
    let options = Options { confirm_deletes: Some(59), ..Options::default() };
    let error = a.try_sync_with(&mut retries(1), options).unwrap_err();
    assert!(matches!(&error, SyncError::Call(call) if call.code() == "mass_delete"), "{error}");
    let options = Options { confirm_deletes: Some(60), ..Options::default() };
    a.try_sync_with(&mut retries(1), options).unwrap();
    assert_agree(&mut a, &mut b);
    assert_eq!(b.store.list("items").unwrap().len(), 0);
}

#[test]
fn clocks_that_are_wrong_are_corrected() {
    let server = Server::start();
    let (mut a, mut b) = pair(&server);
    let rings = a.add("items", json!({ "title": "Rings" }));
    assert_agree(&mut a, &mut b);
    // B's clock is a day ahead; its edit is the earlier one nevertheless.
    let ahead = Clock::from_fn(|| Clock::system().now().shifted(86_400_000));
    b.store = Store::open(&b.path, ahead).unwrap();
    b.put("items", rings, json!({ "title": "B, earlier" }));
    std::thread::sleep(Duration::from_millis(20));
    a.put("items", rings, json!({ "title": "A, later" }));
    a.sync();
    b.sync();
    assert_agree(&mut a, &mut b);
    assert_eq!(b.column("items", rings, "title"), Some(json!("A, later")));
}

#[test]
fn a_value_that_the_server_would_refuse_is_refused_at_once() {
    let server = Server::start();
    let mut a = phone(&server, "phone");
    let key = RowKey(Uuid::now_v7());
    for (row, result) in [
        (json!({ "amount": "many" }), "items.amount: expected an integer"),
        (json!({ "colour": "red" }), "items has no column \"colour\""),
    ] {
        let error = a.store.put("items", key, &columns(row)).unwrap_err().to_string();
        assert!(error.starts_with(result), "{error}");
    }
    assert!(a.store.delete("items", key).is_err());
    assert!(a.store.put("gifts", key, &columns(json!({}))).unwrap_err().to_string().contains("lists, items"));
}

#[test]
fn a_file_belongs_to_one_user_and_keeps_its_device() {
    let server = Server::start();
    let mut a = phone(&server, "phone");
    let asked = LogIn { email: "ben@example.com", password: PASSWORD, device: "x", register: true };
    let error = log_in(&a.store, &mut a.remote, &mut retries(1), asked).unwrap_err();
    assert!(error.to_string().contains(EMAIL), "{error}");
    let (mut waits, mut http) = (retries(1), Http::new(&server.url));
    let mut calls = Calls::new(&mut http, &mut waits, None);
    assert_eq!(calls.log_in(EMAIL, "wrong", "x", None).unwrap_err().code(), "unauthorized");
    let asked = LogIn { email: EMAIL, password: PASSWORD, device: "phone", register: false };
    log_in(&a.store, &mut a.remote, &mut retries(1), asked).unwrap();
    a.add("items", json!({ "title": "Rings" }));
    assert_eq!(a.sync().tally.taken, 1);
}

#[test]
fn offline_is_an_error_that_loses_nothing() {
    let mut server = Server::start();
    let mut a = phone(&server, "phone");
    a.add("items", json!({ "title": "Rings" }));
    server.stop();
    let (mut waits, pauses) = noting_retries(4);
    let error = a.try_sync_with(&mut waits, Options::default()).unwrap_err();
    assert!(matches!(error, SyncError::Call(CallError::NoResponse(_))), "{error}");
    assert_eq!(pauses.lock().len(), 3);
}

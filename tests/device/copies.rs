//! A device's file that was copied, and a token that is another user's.

use rollcall::clock::Clock;
use rollcall::device::{
    Http, LogIn, LoginError, Options, Store, SyncError, SyncMode, log_in, sync, take_token,
};
use rollcall::model::RowKey;
use serde_json::{Value as Json, json};

use crate::real::{PASSWORD, Server};
use crate::support::{Fate, Phone, assert_agree, losing, retries};

/// The same phone once more, from a copy of its file: its user set a new phone up from a backup.
fn copied(server: &Server, of: &Phone, name: &str) -> Phone {
    let mut copy = Phone::new(server, name, of.way);
    let path = server.dir.path().join(format!("{name}-copy.db"));
    // `VACUUM INTO` includes what is still in the log.
    let file = rusqlite::Connection::open(&of.path).unwrap();
    file.execute("VACUUM INTO ?1", [path.to_str().unwrap()]).unwrap();
    copy.store = Store::open(&path, Clock::system()).unwrap();
    copy.path = path;
    copy
}

fn installation(phone: &Phone) -> (String, u64) {
    let file = rusqlite::Connection::open(&phone.path).unwrap();
    let sql = "SELECT value FROM meta WHERE name = 'installation'";
    let name: String = file.query_row(sql, [], |row| row.get(0)).unwrap();
    let (id, counter) = name.split_once('.').unwrap();
    (id.to_owned(), counter.parse().unwrap())
}

fn conflicts(server: &Server, phone: &Phone) -> Vec<Json> {
    let file = rusqlite::Connection::open(&phone.path).unwrap();
    let token: String =
        file.query_row("SELECT value FROM meta WHERE name = 'token'", [], |row| row.get(0)).unwrap();
    let answer = ureq::get(format!("{}/conflicts", server.url))
        .header("authorization", format!("Bearer {token}"))
        .call()
        .unwrap()
        .body_mut()
        .read_to_vec()
        .unwrap();
    serde_json::from_slice::<Json>(&answer).unwrap()["conflicts"].as_array().unwrap().clone()
}

/// A phone with a synced row, its copy, and the row.
fn two(server: &Server, way: SyncMode) -> (Phone, Phone, RowKey) {
    let mut phone = Phone::new(server, "phone", way);
    let row = phone.add("items", json!({ "title": "Rings" }));
    phone.sync();
    let copy = copied(server, &phone, "new phone");
    (phone, copy, row)
}

/// Goal: a phone set up from another's backup loses nothing of either. Method: both edit the same row
/// offline, or one of them deletes it; when the second phone first syncs, the first has synced more often.
#[test]
fn of_two_copies_no_edit_vanishes() {
    for way in [SyncMode::Cursor, SyncMode::Manifest] {
        for deletes in [false, true] {
            let server = Server::start();
            let (mut phone, mut copy, row) = two(&server, way);
            phone.put("items", row, json!({ "title": "Silver rings" }));
            phone.sync();
            phone.add("items", json!({ "title": "Band" }));
            phone.sync();
            if deletes {
                copy.delete("items", row)
            } else {
                copy.put("items", row, json!({ "title": "Gold rings" }))
            }
            copy.sync();
            let lost = conflicts(&server, &phone);
            assert_eq!(lost.len(), 1, "{way:?}, deletes: {deletes}");
            assert_eq!(lost[0]["stored"]["row"]["title"], "Silver rings", "{lost:?}");
            let (old, new) = (installation(&phone), installation(&copy));
            assert_ne!(old.0, new.0, "the copy has a name of its own");
            assert_agree(&mut phone, &mut copy);
            assert_eq!(installation(&copy).0, new.0, "and keeps it");
            assert_eq!(installation(&phone).0, old.0);
            // From here on they are two devices.
            phone.put("items", row, json!({ "title": "1" }));
            copy.add("items", json!({ "title": "Cake" }));
            assert_agree(&mut phone, &mut copy);
            assert_eq!(conflicts(&server, &phone).len(), 1);
        }
    }
}

/// Goal: a copy that was made before a response arrived is recognised as well. Method: the response to the
/// phone's request is lost, the file is copied, and both continue with that request.
#[test]
fn a_copy_made_in_the_middle_of_a_request_is_found_too() {
    let server = Server::start();
    let (mut phone, _, row) = two(&server, SyncMode::Cursor);
    phone.put("items", row, json!({ "title": "Silver rings" }));
    phone.remote.disturb = losing(0, Fate::LostAfter);
    phone.try_sync(1).unwrap_err();
    let mut copy = copied(&server, &phone, "late");
    phone.sync();
    phone.put("items", row, json!({ "title": "Gold rings" }));
    phone.sync();
    copy.put("items", row, json!({ "title": "No rings" }));
    copy.sync();
    assert_eq!(conflicts(&server, &phone).len(), 1);
    assert_agree(&mut phone, &mut copy);
}

#[test]
fn the_counter_rises_with_each_answer_that_is_applied_and_with_nothing_else() {
    let server = Server::start();
    let (mut phone, _, row) = two(&server, SyncMode::Cursor);
    let (id, counter) = installation(&phone);
    phone.sync();
    assert_eq!(installation(&phone), (id.clone(), counter), "it only read");
    phone.put("items", row, json!({ "title": "Silver rings" }));
    phone.remote.disturb = losing(0, Fate::LostAfter);
    phone.try_sync(1).unwrap_err();
    assert_eq!(installation(&phone), (id.clone(), counter), "its answer was lost");
    phone.restart();
    phone.sync();
    assert_eq!(installation(&phone).0, id);
    assert_eq!(installation(&phone).1, counter + 1);
    let sent = phone.remote.log.iter().map(|(request, _)| {
        let named = request.headers.iter().find(|(name, _)| *name == "sync-device");
        (request.path.as_str(), named.map(|(_, value)| value.clone()))
    });
    for (path, named) in sent.filter(|(path, _)| !["limits", "login"].contains(path)) {
        // The token of a log-in is looked at before the file has a name.
        assert!(named.is_some() || path == "me", "{path}");
    }
}

/// Goal: no way to come by a token lets a second user's rows mix with the first one's. Method: log-in, a token by
/// itself, a token that changes between two requests of one sync; each time both users' rows are as they were.
#[test]
fn another_users_token_is_refused_whichever_way_it_comes() {
    let server = Server::start();
    let (mut phone, _, row) = two(&server, SyncMode::Cursor);
    let mut http = Http::new(&server.url);
    let ben = server.dir.path().join("ben.db");
    let ben = Store::create(&ben, crate::real::SCHEMA, Clock::system()).unwrap();
    let asked = LogIn { email: "ben@example.com", password: PASSWORD, device: "ben", register: true };
    log_in(&ben, &mut http, &mut retries(1), asked).unwrap();
    let token = |path: &std::path::Path| -> String {
        let file = rusqlite::Connection::open(path).unwrap();
        file.query_row("SELECT value FROM meta WHERE name = 'token'", [], |row| row.get(0)).unwrap()
    };
    let (annas, bens) = (token(&phone.path), token(&server.dir.path().join("ben.db")));
    phone.put("items", row, json!({ "title": "A secret of Anna's" }));
    let before = phone.sees();

    let asked = LogIn { email: "ben@example.com", password: PASSWORD, device: "phone", register: false };
    let refused = log_in(&phone.store, &mut http, &mut retries(1), asked);
    assert!(matches!(refused, Err(LoginError::OtherUser(_))), "{refused:?}");
    let refused = take_token(&phone.store, &mut http, &mut retries(1), &bens);
    assert!(matches!(refused, Err(LoginError::OtherToken)), "{refused:?}");
    assert_eq!(token(&phone.path), annas, "the old token stays");

    phone.store.set_token(&bens).unwrap();
    for way in [SyncMode::Cursor, SyncMode::Manifest] {
        phone.way = way;
        let refused = phone.try_sync(2);
        assert!(matches!(refused, Err(SyncError::OtherUser)), "{refused:?}");
        assert_eq!(phone.sees(), before);
        assert_eq!(phone.store.pending().unwrap().rows(), 1, "what waits waits on");
    }
    let mut ben = ben;
    sync(&mut ben, &mut http, &mut retries(2), Options::default(), &mut |_| {}).unwrap();
    assert!(ben.list("items").unwrap().is_empty(), "nothing of Anna's has come there");

    take_token(&phone.store, &mut http, &mut retries(1), &annas).unwrap();
    phone.sync();
    assert_eq!(phone.store.pending().unwrap().rows(), 0);
}

/// Goal: a file of an older release is bound as well, and to the right user. Method: the binding is taken off.
#[test]
fn a_file_that_was_never_bound_is_bound_by_the_token_that_it_has() {
    let server = Server::start();
    let (mut phone, _, _) = two(&server, SyncMode::Cursor);
    let unbind = |phone: &Phone| {
        let file = rusqlite::Connection::open(&phone.path).unwrap();
        file.execute("DELETE FROM meta WHERE name IN ('bound', 'installation')", []).unwrap();
    };
    let bound = phone.store.bound().unwrap();
    assert!(bound.is_some());
    unbind(&phone);
    phone.sync();
    assert_eq!(phone.store.bound().unwrap(), bound);
    unbind(&phone);
    let mut http = Http::new(&server.url);
    let ben = Store::create(&server.dir.path().join("ben.db"), crate::real::SCHEMA, Clock::system()).unwrap();
    let asked = LogIn { email: "ben@example.com", password: PASSWORD, device: "ben", register: true };
    log_in(&ben, &mut http, &mut retries(1), asked).unwrap();
    let file = rusqlite::Connection::open(server.dir.path().join("ben.db")).unwrap();
    let bens: String =
        file.query_row("SELECT value FROM meta WHERE name = 'token'", [], |row| row.get(0)).unwrap();
    let refused = take_token(&phone.store, &mut http, &mut retries(1), &bens);
    assert!(matches!(refused, Err(LoginError::OtherToken)), "{refused:?}");
    assert_eq!(phone.store.bound().unwrap(), bound, "its own token has said whose it is");
}

//! The way by cursor, against the real server.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rollcall::clock::Clock;
use rollcall::device::{
    Http, NoResponse, Options, Proof, Remote, Request, Response, Store, SyncError, SyncMode,
};
use serde_json::{Map, Value as Json, json};

use crate::real::Server;
use crate::support::{Fate, Phone, assert_agree, losing, retries};

fn phone(server: &Server, name: &str) -> Phone {
    Phone::new(server, name, SyncMode::Cursor)
}

fn pair(server: &Server) -> (Phone, Phone) {
    (phone(server, "phone"), phone(server, "tablet"))
}

#[test]
fn two_devices_converge() {
    let server = Server::start();
    let (mut a, mut b) = pair(&server);
    let list = a.add("lists", json!({ "title": "Wedding" }));
    let rings = a.add("items", json!({ "list": list, "title": "Rings", "amount": 300 }));
    let band = a.add("items", json!({ "list": list, "title": "Band" }));
    let report = a.sync();
    assert_eq!((report.tally.taken, report.mode), (3, Some(SyncMode::Cursor)));
    let report = b.sync();
    assert_eq!((report.tally.received, report.proof), (3, Proof::Equal));
    assert_eq!(a.sees(), b.sees());
    a.put("items", rings, json!({ "amount": 350 }));
    b.delete("items", band);
    let cake = b.add("items", json!({ "list": list, "title": "Cake" }));
    a.sync();
    b.sync();
    assert_agree(&mut a, &mut b);
    assert_eq!(b.column("items", rings, "amount"), Some(json!(350)));
    assert_eq!(a.column("items", band, "title"), None);
    assert_eq!(a.column("items", cake, "title"), Some(json!("Cake")));
    assert_eq!(a.sync().proof, Proof::Equal);
}

#[test]
fn one_round_trip_pushes_and_pulls_and_reading_needs_no_lock() {
    let server = Server::start();
    let (mut a, mut b) = pair(&server);
    a.add("items", json!({ "title": "Rings" }));
    assert_agree(&mut a, &mut b);
    b.add("items", json!({ "title": "Band" }));
    b.sync();
    a.took();
    a.add("items", json!({ "title": "Cake" }));
    let report = a.sync();
    assert_eq!((report.tally.taken, report.tally.received), (1, 1));
    assert_eq!(a.took(), ["POST synchronise 200"]);
    a.sync();
    assert_eq!(a.took(), ["GET changes 200"]);
    assert_agree(&mut a, &mut b);
}

/// Goal: any one response or request may be lost. Method: each is lost in turn.
#[test]
fn a_lost_request_or_answer_changes_nothing() {
    let server = Server::start();
    let (mut a, mut b) = pair(&server);
    for (number, fate) in (0..4).flat_map(|number| [(number, Fate::LostBefore), (number, Fate::LostAfter)]) {
        let before = a.store.list("items").unwrap().len();
        let rings = a.add("items", json!({ "title": "Rings" }));
        let band = b.add("items", json!({ "title": "Band" }));
        b.sync();
        a.remote.disturb = losing(number, fate);
        if a.try_sync(1).is_err() {
            a.restart();
            a.put("items", rings, json!({ "amount": number }));
        }
        assert_agree(&mut a, &mut b);
        let case = format!("{fate:?} {number}");
        assert_eq!(a.store.list("items").unwrap().len(), before + 2, "{case}");
        b.delete("items", band);
        assert_agree(&mut a, &mut b);
        assert_eq!(a.column("items", band, "title"), None, "{case}");
    }
}

/// No ghosts: A pushes a row while its cursor is behind and never receives the response; B deletes the row.
#[test]
fn a_row_that_was_pushed_and_deleted_elsewhere_is_gone() {
    let server = Server::start();
    let (mut a, mut b) = pair(&server);
    assert_agree(&mut a, &mut b);
    let ghost = a.add("items", json!({ "title": "Ghost" }));
    a.remote.disturb = losing(0, Fate::LostAfter);
    a.try_sync(1).unwrap_err();
    b.sync();
    b.delete("items", ghost);
    b.sync();
    assert_agree(&mut a, &mut b);
    assert_eq!(a.column("items", ghost, "title"), None);
}

#[test]
fn edited_and_deleted_on_both_sides() {
    let server = Server::start();
    let (mut a, mut b) = pair(&server);
    let keys: Vec<_> = (0..4).map(|n| a.add("items", json!({ "title": format!("{n}") }))).collect();
    assert_agree(&mut a, &mut b);
    for edits_first in [true, false] {
        let key = keys[usize::from(edits_first)];
        let pause = || std::thread::sleep(std::time::Duration::from_millis(3));
        let edit = |b: &mut Phone| b.put("items", key, json!({ "amount": 7 }));
        if edits_first {
            edit(&mut b);
            pause();
        }
        a.delete("items", key);
        a.sync();
        pause();
        if !edits_first {
            edit(&mut b);
        }
        b.sync();
        assert_agree(&mut a, &mut b);
        // Policy newest: the later of the two stays.
        assert_eq!(a.column("items", key, "amount"), (!edits_first).then(|| json!(7)));
    }
}

#[test]
fn an_edit_of_a_row_that_the_feed_changes_is_a_true_conflict() {
    let server = Server::start();
    let (mut a, mut b) = pair(&server);
    let rings = a.add("items", json!({ "title": "Rings" }));
    assert_agree(&mut a, &mut b);
    b.put("items", rings, json!({ "title": "B, earlier" }));
    std::thread::sleep(std::time::Duration::from_millis(3));
    a.put("items", rings, json!({ "title": "A, later" }));
    a.sync();
    let report = b.sync();
    assert_eq!(report.tally.lost, [("items".to_owned(), rings)]);
    assert_agree(&mut a, &mut b);
    assert_eq!(b.column("items", rings, "title"), Some(json!("A, later")));
}

/// Goal: a device that receives everything drops what is not in it, but no edit. Method: a restore of an
/// unchanged backup, after which every cursor has expired.
#[test]
fn an_expired_cursor_keeps_what_was_not_synced_and_drops_the_rest() {
    let mut server = Server::with(|settings| settings.sync.changes_rows_max = 1); // it takes several pages
    let (mut a, mut b) = pair(&server);
    let gone = a.add("items", json!({ "title": "Gone" }));
    let stays = a.add("items", json!({ "title": "Stays" }));
    assert_agree(&mut a, &mut b);
    a.delete("items", gone);
    a.sync();
    let copy = server.backup();
    server.restore(&copy);
    a.follow(&server);
    b.follow(&server);
    let own = b.add("items", json!({ "title": "Own" }));
    b.put("items", stays, json!({ "amount": 3 }));
    let report = b.sync();
    assert_eq!(report.tally.dropped, 1);
    assert_eq!(b.column("items", gone, "title"), None);
    assert_agree(&mut a, &mut b);
    assert_eq!(a.column("items", own, "title"), Some(json!("Own")));
    assert_eq!(a.column("items", stays, "amount"), Some(json!(3)));
}

/// A crash between two pages: the cursor has not moved, and nothing is missed or left over.
#[test]
fn pages_that_break_off_are_read_again() {
    let server = Server::with(|settings| settings.sync.changes_rows_max = 2);
    let (mut a, mut b) = pair(&server);
    let keys: Vec<_> = (0..7).map(|n| a.add("items", json!({ "title": format!("{n}") }))).collect();
    a.sync();
    b.remote.disturb = losing(3, Fate::LostAfter);
    b.try_sync(1).unwrap_err();
    assert_eq!(b.store.cursor().unwrap(), None);
    assert!(!b.store.list("items").unwrap().is_empty());
    // A row of page 1 is deleted before the rest is read.
    keys.iter().for_each(|key| a.delete("items", *key));
    let last = a.add("items", json!({ "title": "Last" }));
    a.sync();
    b.restart();
    assert_agree(&mut a, &mut b);
    assert_eq!(b.store.list("items").unwrap().len(), 1);
    assert_eq!(b.column("items", last, "title"), Some(json!("Last")));
}

/// The device knows the rows of a first page ahead of its cursor, and no feed from the cursor would report
/// their deletion.
#[test]
fn a_diff_that_breaks_off_goes_on_where_it_was() {
    let server = Server::with(|settings| settings.sync.changes_rows_max = 2);
    let (mut a, mut b) = pair(&server);
    assert_agree(&mut a, &mut b);
    let keys: Vec<_> = (0..5).map(|n| a.add("items", json!({ "title": format!("{n}") }))).collect();
    a.sync();
    b.remote.disturb = losing(1, Fate::LostAfter);
    b.try_sync(1).unwrap_err();
    let first = *keys.iter().find(|key| b.column("items", **key, "title").is_some()).unwrap();
    b.restart();
    a.delete("items", first);
    a.sync();
    assert_eq!(b.sync().proof, Proof::Equal);
    assert_eq!(b.column("items", first, "title"), None);
    assert_agree(&mut a, &mut b);

    // The server no longer accepts the page token, so the device fetches everything.
    keys.iter().skip(1).for_each(|key| a.put("items", *key, json!({ "amount": 1 })));
    a.sync();
    b.remote.disturb = losing(1, Fate::LostAfter);
    b.try_sync(1).unwrap_err();
    let file = rusqlite::Connection::open(&b.path).unwrap();
    assert_eq!(
        file.execute("UPDATE meta SET value = 'of another release' WHERE name = 'next'", []).unwrap(),
        1
    );
    assert_eq!(b.sync().proof, Proof::Equal);
    assert_agree(&mut a, &mut b);
}

#[test]
fn a_copy_that_differs_is_repaired_once_and_then_reported() {
    let server = Server::start();
    let lies = Arc::new(AtomicBool::new(false));
    let mut a = phone(&server, "phone");
    let liar = Liar(Http::new(&server.url), Arc::clone(&lies));
    let mut b = Phone::over(&server, "tablet", SyncMode::Cursor, Box::new(liar));
    let keys: Vec<_> = (0..3).map(|n| a.add("items", json!({ "title": format!("{n}") }))).collect();
    assert_agree(&mut a, &mut b);
    // A disk fault in B's file: one row is missing, and one has another time.
    let file = rusqlite::Connection::open(&b.path).unwrap();
    file.execute("DELETE FROM rows WHERE key = ?1", [keys[0].to_string()]).unwrap();
    file.execute("UPDATE rows SET last_update = 5 WHERE key = ?1", [keys[1].to_string()]).unwrap();
    assert_eq!(b.sync().proof, Proof::Repaired);
    assert_agree(&mut a, &mut b);
    // A server whose digests are wrong: one repair, then the right digests.
    lies.store(true, Ordering::Relaxed);
    assert_eq!(b.sync().proof, Proof::Unequal(vec!["items".into(), "lists".into()]));
    lies.store(false, Ordering::Relaxed);
    assert_eq!(b.sync().proof, Proof::Equal);
}

/// A server whose digests are wrong for as long as it lies.
struct Liar(Http, Arc<AtomicBool>);

impl Remote for Liar {
    fn send(&mut self, request: &Request) -> Result<Response, NoResponse> {
        let mut answer = self.0.send(request)?;
        let mut body: Json = serde_json::from_slice(&answer.body).unwrap_or_default();
        let tables = body.pointer_mut("/digests/tables").and_then(Json::as_object_mut);
        if let (true, Some(tables)) = (self.1.load(Ordering::Relaxed), tables) {
            for digest in tables.values_mut() {
                digest["count"] = json!(digest["count"].as_u64().unwrap() + 1);
            }
            answer.body = body.to_string().into_bytes();
        }
        Ok(answer)
    }
}

/// A server as it was before the change feed: it knows neither the path nor the member.
struct Older(Http);

impl Remote for Older {
    fn send(&mut self, request: &Request) -> Result<Response, NoResponse> {
        let pulls =
            request.body.as_ref().is_some_and(|body| String::from_utf8_lossy(body).contains("\"pull\""));
        let (status, code, at) = match request.path.split('?').next() {
            Some("changes" | "digests") => (404, "not_found", None),
            Some("synchronise") if pulls => (422, "unknown_member", Some("/pull")),
            _ => {
                let mut answer = self.0.send(request)?;
                if request.path == "synchronise" && answer.status == 200 {
                    let mut report: Map<String, Json> = serde_json::from_slice(&answer.body).unwrap();
                    report.remove("digests");
                    answer.body = Json::Object(report).to_string().into_bytes();
                }
                return Ok(answer);
            }
        };
        let body = json!({ "code": code, "detail": code, "at": at }).to_string().into_bytes();
        Ok(Response { status, headers: Vec::new(), body })
    }
}

/// A device may choose the mode: it uses a cursor if the server has a feed, and reports an error if a cursor
/// was required.
#[test]
fn a_server_without_a_feed_is_synced_by_manifest() {
    let server = Server::start();
    let older = Box::new(Older(Http::new(&server.url)));
    let mut a = Phone::over(&server, "phone", SyncMode::Cursor, older);
    for _ in 0..2 {
        // Both with something to send and with nothing.
        assert!(matches!(a.try_sync(1), Err(SyncError::NoCursorWay)));
        assert_eq!(a.store.outstanding().unwrap(), None);
        a.add("items", json!({ "title": "Rings" }));
    }
    let options = Options::default();
    let remote = &mut a.remote;
    let report = rollcall::device::sync(&mut a.store, remote, &mut retries(1), options, &mut |_| {}).unwrap();
    assert_eq!((report.mode, report.tally.taken, report.proof), (Some(SyncMode::Manifest), 2, Proof::Unsaid));
}

/// Goal: an edit that was sent in a tunnel and never arrived does not pass for one made when it does. Method:
/// between the two sendings the device's clock is put from an hour ago to now, as if the hour had passed.
#[test]
fn a_request_that_arrives_late_says_when_it_was_sent() {
    let server = Server::start();
    let (mut a, mut b) = pair(&server);
    let rings = a.add("items", json!({ "title": "Rings" }));
    assert_agree(&mut a, &mut b);
    let an_hour_ago = Clock::from_fn(|| Clock::system().now().shifted(-3_600_000));
    b.store = Store::open(&b.path, an_hour_ago).unwrap();
    b.put("items", rings, json!({ "title": "B, an hour ago" }));
    b.remote.disturb = Box::new(|_| Fate::LostBefore);
    b.try_sync(1).unwrap_err();
    a.put("items", rings, json!({ "title": "A, now" }));
    a.sync();
    b.restart(); // its clock is right again: an hour has passed
    b.remote.disturb = Box::new(|_| Fate::Arrives);
    assert_agree(&mut a, &mut b);
    assert_eq!(b.column("items", rings, "title"), Some(json!("A, now")));
}

/// The stored response is returned again, and not one with the verdict `same`.
#[test]
fn a_lost_answer_is_said_again_word_for_word() {
    let server = Server::start();
    for attempts in [1, 6] {
        let mut a = phone(&server, &format!("phone{attempts}"));
        a.sync();
        a.took();
        let rings = a.add("items", json!({ "title": "Rings" }));
        let mut lost = 0;
        a.remote.disturb = Box::new(move |request| {
            lost += usize::from(request.path == "synchronise");
            if request.path == "synchronise" && lost <= 1 { Fate::LostAfter } else { Fate::Arrives }
        });
        if attempts == 1 {
            a.try_sync(1).unwrap_err();
            a.restart();
        }
        let report = a.sync();
        assert_eq!((report.tally.taken, report.proof), (1, Proof::Equal));
        let verdicts: Vec<_> = std::mem::take(&mut a.remote.verdicts);
        assert_eq!(verdicts, ["added", "added"], "{attempts}");
        assert_eq!(a.column("items", rings, "done"), Some(json!(false)), "the default came with it");
    }
}

#[test]
fn an_answer_that_cannot_be_had_again_is_no_danger() {
    let server = Server::start();
    let (mut a, mut b) = pair(&server);
    let rings = a.add("items", json!({ "title": "Rings" }));
    a.remote.disturb =
        Box::new(|request| if request.path == "synchronise" { Fate::LostAfter } else { Fate::Arrives });
    a.try_sync(1).unwrap_err();
    a.remote.disturb = Box::new(|_| Fate::Arrives);
    // The server knows the key with another body: the device takes a new key, and the rows are `same`.
    let mut sending = a.store.outstanding().unwrap().unwrap();
    sending.body.confirm_deletes = Some(1);
    let text = serde_json::to_string(&sending).unwrap();
    let file = rusqlite::Connection::open(&a.path).unwrap();
    file.execute("UPDATE meta SET value = ?1 WHERE name = 'outstanding'", [text]).unwrap();
    assert_agree(&mut a, &mut b);
    assert_eq!(b.column("items", rings, "title"), Some(json!("Rings")));
}

/// A connection that loses every body above a size: the server waits for the rest of it, and responds with
/// 408.
struct Slow {
    inner: Http,
    body_bytes_max: usize,
}

impl Remote for Slow {
    fn send(&mut self, request: &Request) -> Result<Response, NoResponse> {
        if request.body.as_ref().is_some_and(|body| body.len() > self.body_bytes_max) {
            let body = json!({ "status": 408, "code": "timeout", "detail": "the body came too slowly" });
            return Ok(Response { status: 408, headers: Vec::new(), body: body.to_string().into_bytes() });
        }
        self.inner.send(request)
    }
}

#[test]
fn a_slow_line_gets_smaller_requests() {
    let server = Server::start();
    let line = Slow { inner: Http::new(&server.url), body_bytes_max: 3_000 };
    let mut slow = Phone::over(&server, "slow", SyncMode::Cursor, Box::new(line));
    for number in 0..100 {
        slow.add("items", json!({ "title": format!("{number}: {}", "x".repeat(150)) }));
    }
    assert_eq!(slow.sync().tally.taken, 100);
    let sizes: Vec<usize> =
        slow.remote.log.iter().filter_map(|(sent, _)| Some(sent.body.as_ref()?.len())).collect();
    let refused = sizes.iter().filter(|size| **size > 3_000).count();
    assert!((1..8).contains(&refused), "half of what was sent each time: {sizes:?}");
    // One row alone cannot be made smaller: the sync ends, and the row waits.
    slow.add("items", json!({ "title": "y".repeat(4_000) }));
    assert!(matches!(slow.try_sync(1), Err(SyncError::Call(_))));
    assert_eq!(slow.store.pending().unwrap().added, 1);
}

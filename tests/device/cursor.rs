//! The way by cursor: against a feed in front of the real server, and against the server's own once it has one.

use std::io::Write as _;
use std::sync::Arc;

use parking_lot::Mutex;
use rollcall::clock::Clock;
use rollcall::device::{Answer, Http, NoAnswer, Options, Proof, Remote, Request, Store, SyncError, Way};
use serde_json::{Map, Value as Json, json};

use crate::feed::{Feed, History};
use crate::real::Server;
use crate::support::{Fate, Phone, assert_agree, losing, patience};

/// What a device is tested against.
struct Ground {
    server: Server,
    /// `None`: the server's own feed.
    feed: Option<Arc<Mutex<History>>>,
}

impl Ground {
    fn phone(&self, name: &str) -> Phone {
        match &self.feed {
            Some(history) => Phone::over(&self.server, name, Way::Cursor, Feed::new(&self.server, history)),
            None => Phone::new(&self.server, name, Way::Cursor),
        }
    }

    fn pair(&self) -> (Phone, Phone) {
        (self.phone("phone"), self.phone("tablet"))
    }
}

fn losing_all(path: &'static str) -> Box<dyn FnMut(&Request) -> Fate> {
    Box::new(move |request| if request.path == path { Fate::LostAfter } else { Fate::Arrives })
}

/// Whether the server has a change feed of its own.
fn has_changes(server: &Server) -> bool {
    let request = Request { method: "GET", path: "changes".into(), headers: Vec::new(), body: None };
    Http::new(&server.url).ask(&request).unwrap().status != 404
}

/// Runs a case against the feed of the tests, and against the server's own where there is one.
fn on_every_ground(case: &str, run: impl Fn(&Ground)) {
    run(&Ground { server: Server::start(), feed: Some(Feed::history()) });
    let server = Server::start();
    if has_changes(&server) {
        run(&Ground { server, feed: None });
    } else {
        // Not by `eprintln!`, which the test harness keeps to itself.
        let mut stderr = std::io::stderr();
        writeln!(stderr, "*** NOT RUN against the server itself, which has no /changes yet: {case} ***")
            .unwrap();
    }
}

#[test]
fn two_devices_converge() {
    on_every_ground("two_devices_converge", |ground| {
        let (mut a, mut b) = ground.pair();
        let list = a.add("lists", json!({ "title": "Wedding" }));
        let rings = a.add("items", json!({ "list": list, "title": "Rings", "amount": 300 }));
        let band = a.add("items", json!({ "list": list, "title": "Band" }));
        let report = a.sync();
        assert_eq!((report.tally.taken, report.way), (3, Some(Way::Cursor)));
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
    });
}

#[test]
fn one_round_trip_pushes_and_pulls_and_reading_needs_no_lock() {
    on_every_ground("one_round_trip_pushes_and_pulls_and_reading_needs_no_lock", |ground| {
        let (mut a, mut b) = ground.pair();
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
    });
}

/// Goal: any one answer or request may be lost. Method: lose each in turn.
#[test]
fn a_lost_request_or_answer_changes_nothing() {
    on_every_ground("a_lost_request_or_answer_changes_nothing", |ground| {
        let (mut a, mut b) = ground.pair();
        for (number, fate) in
            (0..4).flat_map(|number| [(number, Fate::LostBefore), (number, Fate::LostAfter)])
        {
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
        if let Some(history) = &ground.feed {
            assert!(history.lock().replayed > 0);
        }
    });
}

/// No ghosts: A pushes a row while its cursor is behind and never hears the answer; B deletes the row.
#[test]
fn a_row_that_was_pushed_and_deleted_elsewhere_is_gone() {
    on_every_ground("a_row_that_was_pushed_and_deleted_elsewhere_is_gone", |ground| {
        let (mut a, mut b) = ground.pair();
        assert_agree(&mut a, &mut b);
        let ghost = a.add("items", json!({ "title": "Ghost" }));
        a.remote.disturb = losing(0, Fate::LostAfter);
        a.try_sync(1).unwrap_err();
        b.sync();
        b.delete("items", ghost);
        b.sync();
        assert_agree(&mut a, &mut b);
        assert_eq!(a.column("items", ghost, "title"), None);
    });
}

#[test]
fn edited_and_deleted_on_both_sides() {
    on_every_ground("edited_and_deleted_on_both_sides", |ground| {
        let (mut a, mut b) = ground.pair();
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
    });
}

#[test]
fn an_edit_of_a_row_that_the_feed_changes_is_a_true_conflict() {
    on_every_ground("an_edit_of_a_row_that_the_feed_changes_is_a_true_conflict", |ground| {
        let (mut a, mut b) = ground.pair();
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
    });
}

/// Against the tests' feed alone: nobody can make a server forget on demand.
#[test]
fn an_expired_cursor_keeps_what_was_not_synced_and_drops_the_rest() {
    let ground = Ground { server: Server::start(), feed: Some(Feed::history()) };
    let history = ground.feed.clone().unwrap();
    let (mut a, mut b) = ground.pair();
    let gone = a.add("items", json!({ "title": "Gone" }));
    let stays = a.add("items", json!({ "title": "Stays" }));
    assert_agree(&mut a, &mut b);
    a.delete("items", gone);
    a.sync();
    history.lock().horizon = a.store.cursor().unwrap().unwrap().0;
    history.lock().page_rows = 1; // the full feed takes several pages
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
    let ground = Ground { server: Server::start(), feed: Some(Feed::history()) };
    ground.feed.as_ref().unwrap().lock().page_rows = 2;
    let (mut a, mut b) = ground.pair();
    let keys: Vec<_> = (0..7).map(|n| a.add("items", json!({ "title": format!("{n}") }))).collect();
    a.sync();
    b.remote.disturb = losing(3, Fate::LostAfter);
    b.try_sync(1).unwrap_err();
    assert_eq!(b.store.cursor().unwrap(), None);
    assert!(!b.store.list("items").unwrap().is_empty());
    // A row told on page 1 is deleted before the rest is read.
    keys.iter().for_each(|key| a.delete("items", *key));
    let last = a.add("items", json!({ "title": "Last" }));
    a.sync();
    b.restart();
    assert_agree(&mut a, &mut b);
    assert_eq!(b.store.list("items").unwrap().len(), 1);
    assert_eq!(b.column("items", last, "title"), Some(json!("Last")));
}

#[test]
fn a_copy_that_differs_is_repaired_once_and_then_reported() {
    let ground = Ground { server: Server::start(), feed: Some(Feed::history()) };
    let history = ground.feed.clone().unwrap();
    let (mut a, mut b) = ground.pair();
    let keys: Vec<_> = (0..3).map(|n| a.add("items", json!({ "title": format!("{n}") }))).collect();
    assert_agree(&mut a, &mut b);
    // A disk fault in B's file: one row is missing, one is of another time.
    let file = rusqlite::Connection::open(&b.path).unwrap();
    file.execute("DELETE FROM rows WHERE key = ?1", [keys[0].to_string()]).unwrap();
    file.execute("UPDATE rows SET last_update = 5 WHERE key = ?1", [keys[1].to_string()]).unwrap();
    assert_eq!(b.sync().proof, Proof::Repaired);
    assert_agree(&mut a, &mut b);
    // A server whose digests are wrong: one repair, then the truth is told.
    history.lock().lies = 100;
    assert_eq!(b.sync().proof, Proof::Unequal(vec!["items".into(), "lists".into()]));
    history.lock().lies = 0;
    assert_eq!(b.sync().proof, Proof::Equal);
}

/// A server as it was before the change feed: it knows neither the path nor the member.
struct Older(Http);

impl Remote for Older {
    fn ask(&mut self, request: &Request) -> Result<Answer, NoAnswer> {
        let pulls =
            request.body.as_ref().is_some_and(|body| String::from_utf8_lossy(body).contains("\"pull\""));
        let (status, code, at) = match request.path.split('?').next() {
            Some("changes" | "digests") => (404, "not_found", None),
            Some("synchronise") if pulls => (422, "unknown_member", Some("/pull")),
            _ => {
                let mut answer = self.0.ask(request)?;
                if request.path == "synchronise" && answer.status == 200 {
                    let mut report: Map<String, Json> = serde_json::from_slice(&answer.body).unwrap();
                    report.remove("digests");
                    answer.body = Json::Object(report).to_string().into_bytes();
                }
                return Ok(answer);
            }
        };
        let body = json!({ "code": code, "detail": code, "at": at }).to_string().into_bytes();
        Ok(Answer { status, headers: Vec::new(), body })
    }
}

/// A device that may choose takes the cursor where there is one, and says so where there must be one.
#[test]
fn a_server_without_a_feed_is_synced_by_manifest() {
    let server = Server::start();
    let older = Box::new(Older(Http::new(&server.url)));
    let mut a = Phone::over(&server, "phone", Way::Cursor, older);
    for _ in 0..2 {
        // Both with something to send and with nothing.
        assert!(matches!(a.try_sync(1), Err(SyncError::NoCursorWay)));
        assert_eq!(a.store.outstanding().unwrap(), None);
        a.add("items", json!({ "title": "Rings" }));
    }
    let options = Options::default();
    let remote = &mut a.remote;
    let report =
        rollcall::device::sync(&mut a.store, remote, &mut patience(1), options, &mut |_| {}).unwrap();
    assert_eq!((report.way, report.tally.taken, report.proof), (Some(Way::Manifest), 2, Proof::Unsaid));
}

/// Goal: an edit that was sent in a tunnel and never arrived does not pass for one made when it does. Method:
/// between the two sendings the device's clock is put from an hour ago to now, as if the hour had passed.
#[test]
fn a_request_that_arrives_late_says_when_it_was_sent() {
    on_every_ground("a_request_that_arrives_late_says_when_it_was_sent", |ground| {
        let (mut a, mut b) = ground.pair();
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
    });
}

/// The very answer comes once more: not one that says `same`.
#[test]
fn a_lost_answer_is_said_again_word_for_word() {
    on_every_ground("a_lost_answer_is_said_again_word_for_word", |ground| {
        for attempts in [1, 6] {
            let mut a = ground.phone(&format!("phone{attempts}"));
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
    });
}

#[test]
fn an_answer_that_cannot_be_had_again_is_no_danger() {
    let ground = Ground { server: Server::start(), feed: Some(Feed::history()) };
    let history = ground.feed.clone().unwrap();
    let (mut a, mut b) = ground.pair();
    let rings = a.add("items", json!({ "title": "Rings" }));
    a.remote.disturb = losing_all("synchronise");
    a.try_sync(1).unwrap_err();
    a.remote.disturb = Box::new(|_| Fate::Arrives);
    // The server knows the key with another body: the device takes a new key, and the rows are `same`.
    let mut sending = a.store.outstanding().unwrap().unwrap();
    sending.body.insert("confirm_deletes".into(), json!(1));
    let text = serde_json::to_string(&sending).unwrap();
    let file = rusqlite::Connection::open(&a.path).unwrap();
    file.execute("UPDATE meta SET value = ?1 WHERE name = 'outstanding'", [text]).unwrap();
    assert_agree(&mut a, &mut b);
    assert_eq!(b.column("items", rings, "title"), Some(json!("Rings")));
    assert!(history.lock().replayed > 0);
}

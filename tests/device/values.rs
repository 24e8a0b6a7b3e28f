//! What a device keeps of a value: all of it.

use std::sync::atomic::Ordering;

use rollcall::clock::Clock;
use rollcall::device::{Columns, Http, SyncMode};
use rollcall::model::RowKey;
use serde_json::json;
use uuid::Uuid;

use crate::real::{SCHEMA, Server};
use crate::support::{Fate, Phone, assert_agree, losing};

/// Numbers that are not the same after they were doubles.
const NOTES: &str =
    r#"{"long":123456789012345678901234567890,"one":1.0,"small":-0.10,"times":[1e2,1E+2],"tiny":1e-400}"#;
const PRICE: &str = "1234567890123456.789012345678";

fn text(phone: &Phone, key: RowKey, column: &str) -> String {
    phone.store.get("items", key).unwrap().unwrap().contents[column].as_str().to_owned()
}

fn exact(title: &str) -> Columns {
    let row = format!(r#"{{"title":"{title}","notes":{NOTES},"worth":{PRICE}}}"#);
    serde_json::from_str(&row).unwrap()
}

fn assert_exact(phone: &Phone, key: RowKey) {
    assert_eq!(text(phone, key, "notes"), NOTES);
    assert_eq!(text(phone, key, "worth"), format!("\"{PRICE}\""), "a decimal travels as a string");
    let schema = phone.store.schema();
    let row = phone.store.get("items", key).unwrap().unwrap().shown(schema.table("items").unwrap()).unwrap();
    assert!(row.as_str().contains(NOTES), "{row}");
}

/// Goal: a number keeps every digit that an app wrote, wherever it goes. Method: numbers that no double
/// equals, as an app writes them, as the server returns them, under an edit of another column, and in a
/// request whose response was lost.
#[test]
fn numbers_keep_every_digit() {
    for way in [SyncMode::Cursor, SyncMode::Manifest] {
        let server = Server::start();
        let (mut a, mut b) = (Phone::new(&server, "phone", way), Phone::new(&server, "tablet", way));
        let key = RowKey(Uuid::now_v7());
        a.sync();
        a.store.put("items", key, &exact("Rings")).unwrap();
        assert_exact(&a, key);

        // The request is written down before it is sent, and goes up again as it was.
        a.remote.log.clear();
        a.remote.disturb = losing(usize::from(way == SyncMode::Manifest), Fate::LostAfter);
        a.try_sync(1).unwrap_err();
        a.restart();
        a.sync();
        let sent = a.remote.log.iter().filter_map(|(request, _)| request.body.as_deref());
        let sent: Vec<_> =
            sent.map(String::from_utf8_lossy).filter(|body| body.contains("\"add\"")).collect();
        assert!(
            sent.len() == 2 && sent.iter().all(|body| body.contains(NOTES) && body.contains(PRICE)),
            "{sent:?}"
        );
        b.sync();
        assert_exact(&b, key);

        // Both edit it: the later edit wins, on top of what it was not about.
        b.put("items", key, json!({ "amount": 1 }));
        a.put("items", key, json!({ "title": "Two rings" }));
        assert_agree(&mut a, &mut b);
        assert_exact(&a, key);
        assert_exact(&b, key);

        // Writing the same value again is not an edit.
        a.store.put("items", key, &exact("Two rings")).unwrap();
        assert_eq!(a.store.pending().unwrap().rows(), 0);
        // Another spelling of a number is another value.
        let spelt: Columns = serde_json::from_str(r#"{"notes":[1.00]}"#).unwrap();
        a.store.put("items", key, &spelt).unwrap();
        assert_agree(&mut a, &mut b);
        assert_eq!(text(&b, key, "notes"), "[1.00]");
    }
}

/// Goal: an edit that follows too many others waits without a correction, and is accepted later. Method:
/// times are whole seconds, and one row is edited and synced faster than that until the server refuses.
#[test]
fn a_row_that_is_edited_too_often_goes_up_later() {
    for way in [SyncMode::Cursor, SyncMode::Manifest] {
        let schema = format!("timestamps = \"seconds\"\n{SCHEMA}");
        let server = Server::declaring(&schema, |_| {});
        let phone = |name| Phone::declaring(&server, name, way, Box::new(Http::new(&server.url)), &schema);
        let (mut a, mut b) = (phone("phone"), phone("tablet"));
        // However slow the machine is, no time passes.
        let now_ms = Clock::system().now().ms();
        server.stands_at_ms.store(now_ms, Ordering::SeqCst);
        let key = a.add("items", json!({ "title": "Rings" }));
        let mut edits = 0;
        while a.store.pending().unwrap().rows() == 0 || edits == 0 {
            assert!(edits < 500, "the server must have enough of them");
            edits += 1;
            a.put("items", key, json!({ "amount": edits }));
            let report = a.sync();
            assert!(report.tally.rejected.is_empty() && report.tally.lost.is_empty(), "{report:?}");
        }
        assert!(edits > 60, "only {edits}");
        let row = a.store.get("items", key).unwrap().unwrap();
        assert_eq!((a.column("items", key, "amount"), row.error), (Some(json!(edits)), None));
        b.sync();
        assert_eq!(b.column("items", key, "amount"), Some(json!(edits - 1)));

        // It is sent once in a sync; the edit and a later one stay.
        a.remote.log.clear();
        a.put("items", key, json!({ "done": true }));
        assert_eq!(a.sync().tally.taken, 0);
        let sent = a.remote.log.iter().filter_map(|(request, _)| request.body.as_deref());
        assert_eq!(sent.filter(|body| String::from_utf8_lossy(body).contains("\"amount\"")).count(), 1);
        assert_eq!(a.store.pending().unwrap().rows(), 1);

        server.stands_at_ms.store(now_ms + 5_000, Ordering::SeqCst);
        assert_eq!(a.sync().tally.taken, 1);
        assert_agree(&mut a, &mut b);
        assert_eq!(b.column("items", key, "amount"), Some(json!(edits)));
        assert_eq!(b.column("items", key, "done"), Some(json!(true)));
    }
}

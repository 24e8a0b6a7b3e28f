//! How a device cuts what waits into requests.

use rollcall::device::SyncMode;
use serde_json::json;

use crate::real::Server;
use crate::support::{Fate, Phone, assert_agree};

/// Goal: a request is as long as the server takes, and no longer. Method: more rows than one request can hold; none is
/// refused, and none is sent alone.
#[test]
fn requests_keep_below_the_servers_bytes() {
    for way in [SyncMode::Cursor, SyncMode::Manifest] {
        let server = Server::with(|settings| settings.limits.body_bytes_max = 4_096);
        let (mut a, mut b) = (Phone::new(&server, "phone", way), Phone::new(&server, "tablet", way));
        for n in 0..30 {
            a.add("items", json!({ "title": format!("{n} {}", "x".repeat(300)) }));
        }
        a.remote.log.clear();
        assert_eq!(a.sync().tally.taken, 30);
        let sent: Vec<_> = a.remote.log.iter().filter_map(|(request, _)| request.body.as_ref()).collect();
        assert!(sent.iter().all(|body| body.len() <= 4_096), "{:?}", sent.iter().map(|body| body.len()));
        assert!((4..=8).contains(&sent.len()), "{} requests", sent.len());
        assert!(a.remote.log.iter().all(|(_, status)| *status < 400), "{:?}", a.took());
        assert_agree(&mut a, &mut b);
    }
}

/// Goal: a request that never succeeds does not grow. Method: it is sent more often than times of sending are
/// stored.
#[test]
fn only_the_last_sendings_are_remembered() {
    let server = Server::start();
    let mut a = Phone::new(&server, "phone", SyncMode::Cursor);
    a.sync();
    let key = a.add("items", json!({ "title": "Rings" }));
    a.remote.disturb =
        Box::new(|request| if request.path == "synchronise" { Fate::LostBefore } else { Fate::Arrives });
    for _ in 0..20 {
        a.try_sync(1).unwrap_err();
    }
    assert_eq!(a.store.outstanding().unwrap().unwrap().stamps.len(), 16);
    a.remote.disturb = Box::new(|_| Fate::Arrives);
    assert_eq!(a.sync().tally.taken, 1);
    assert!(a.store.get("items", key).unwrap().is_some_and(|row| !row.local.is_dirty()));
}

//! What devices do for a server whose past is not the one that they know.

use std::path::Path;

use rollcall::device::{Proof, SyncMode};
use rollcall::model::RowKey;
use serde_json::json;

use crate::real::Server;
use crate::support::{Fate, Phone, assert_agree, losing};

const WAYS: [SyncMode; 2] = [SyncMode::Cursor, SyncMode::Manifest];

fn pair(server: &Server, way: SyncMode) -> (Phone, Phone) {
    (Phone::new(server, "phone", way), Phone::new(server, "tablet", way))
}

fn follow(server: &Server, phones: &mut [&mut Phone]) {
    for phone in phones {
        phone.follow(server);
        phone.took();
    }
}

fn there(phone: &Phone, table: &str, keys: &[RowKey]) -> bool {
    keys.iter().all(|key| phone.store.get(table, *key).unwrap().is_some())
}

/// Goal: a row that no user deleted never disappears, and one that was deleted before the backup does not
/// return. Method: a backup; the server loses what both devices synced after it.
#[test]
fn what_the_server_lost_is_put_back() {
    for way in WAYS {
        let mut server = Server::with(|settings| {
            settings.sync.changes_rows_max = 2;
            settings.limits.rows_max = 2;
        });
        let (mut a, mut b) = pair(&server, way);
        let gone = a.add("items", json!({ "title": "Gone" }));
        let old = a.add("items", json!({ "title": "Old", "done": null }));
        assert_agree(&mut a, &mut b);
        a.delete("items", gone);
        a.sync(); // the tablet still holds it
        let copy = server.backup();
        let list = a.add("lists", json!({ "title": "Wedding" }));
        let new: Vec<_> = (0..3)
            .map(|n| a.add("items", json!({ "title": format!("{n}"), "list": list, "done": null })))
            .collect();
        a.put("items", old, json!({ "title": "New" }));
        a.sync();
        b.remote.disturb = losing(3, Fate::LostBefore); // it knows some of it
        let _ = b.try_sync(1);
        b.remote.disturb = Box::new(|_| Fate::Arrives);
        let fresh = a.store.list("items").unwrap();

        server.restore(&copy);
        follow(&server, &mut [&mut a, &mut b]);
        let report = b.sync();
        assert!(!there(&b, "items", &[gone]), "{way:?}");
        assert_eq!((report.tally.lost, report.tally.rejected), (vec![], vec![]), "{way:?}");
        let report = a.sync();
        assert_eq!((report.proof, report.tally.dropped), (Proof::Equal, 0), "{way:?}");
        assert!(report.tally.lost.is_empty(), "{way:?}: {:?}", report.tally);
        assert_agree(&mut a, &mut b);
        assert!(there(&b, "items", &new) && there(&b, "lists", &[list]), "{way:?}");
        assert_eq!(a.store.list("items").unwrap(), fresh, "{way:?}: each row has its own time again");
        assert_eq!(b.column("items", old, "title"), Some(json!("New")), "{way:?}");
        assert_eq!(b.column("items", new[0], "done"), Some(json!(null)), "{way:?}: no default is filled in");
    }
}

/// Goal: a sync that is interrupted while it puts rows back continues with them, even after a second restore.
/// Method: the device dies at every request in turn.
#[test]
fn putting_back_survives_interruptions_and_restores() {
    for way in WAYS {
        for dies_at in 1..6 {
            let mut server = Server::with(|settings| {
                settings.limits.rows_max = 2;
                settings.sync.changes_rows_max = 2;
                settings.limits.get_keys_max = 2;
            });
            let (mut a, mut b) = pair(&server, way);
            for n in 0..3 {
                a.add("items", json!({ "title": format!("old {n}") }));
            }
            assert_agree(&mut a, &mut b);
            let copy = server.backup();
            let list = a.add("lists", json!({ "title": "Wedding" }));
            for n in 0..5 {
                a.add("items", json!({ "title": format!("new {n}"), "list": list }));
            }
            assert_agree(&mut a, &mut b);
            let all = b.sees();
            server.restore(&copy);
            follow(&server, &mut [&mut a]);
            a.remote.disturb =
                losing(dies_at, if dies_at % 2 == 0 { Fate::LostAfter } else { Fate::LostBefore });
            let _ = a.try_sync(1);
            a.remote.disturb = Box::new(|_| Fate::Arrives);
            server.restore(&copy);
            follow(&server, &mut [&mut a]);
            let _ = a.try_sync(1);
            drop(b); // the one that is left has it all
            let report = a.sync();
            assert_eq!(report.proof, Proof::Equal, "{way:?} {dies_at}");
            assert_eq!(a.sees(), all, "{way:?} {dies_at}");
            let mut c = Phone::new(&server, "watch", way);
            c.sync();
            assert_eq!(c.sees(), all, "{way:?} {dies_at}");
        }
    }
}

/// Goal: the same without a new epoch: a version below the device's, or digests that differ, prove no
/// deletion. Method: the file is replaced without the server's knowledge, together with the files beside it,
/// like a snapshot of the disk; other writes raise the version again, or not. By manifest a version that has
/// risen again shows nothing: only the server can notice then.
#[test]
fn a_database_that_was_put_back_unnoticed_deletes_nothing() {
    for way in WAYS {
        for writes in [0, 1, 8].into_iter().filter(|writes| *writes == 0 || way == SyncMode::Cursor) {
            let mut server = Server::start();
            let (mut a, mut b) = pair(&server, way);
            a.add("items", json!({ "title": "Old" }));
            assert_agree(&mut a, &mut b);
            server.stop();
            let copies = copies(server.dir.path());
            server.run();
            follow(&server, &mut [&mut a, &mut b]);
            let new: Vec<_> = (0..3).map(|n| a.add("items", json!({ "title": format!("{n}") }))).collect();
            assert_agree(&mut a, &mut b);
            let edited = a.add("items", json!({ "title": "Mine" }));
            a.sync();
            server.stop();
            put_back(server.dir.path(), &copies);
            server.run();
            follow(&server, &mut [&mut a, &mut b]);
            let mut c = Phone::new(&server, "watch", way);
            for n in 0..writes {
                c.add("items", json!({ "title": format!("watch {n}") }));
                c.sync();
            }
            b.sync();
            a.sync();
            assert_agree(&mut a, &mut b);
            c.sync();
            assert_eq!(c.sees(), a.sees(), "{way:?} {writes}");
            assert!(there(&b, "items", &new) && there(&c, "items", &[edited]), "{way:?} {writes}");
            assert_eq!(a.sync().proof, Proof::Equal, "{way:?} {writes}");
        }
    }
}

/// Goal: a server that was begun anew takes everything back. Method: an empty database, with the same users and devices
/// in it, as an identity provider would have them.
#[test]
fn a_server_that_was_begun_anew_deletes_nothing() {
    for way in WAYS {
        let mut server = Server::start();
        let (mut a, mut b) = pair(&server, way);
        let list = a.add("lists", json!({ "title": "Wedding" }));
        let item = a.add("items", json!({ "title": "Rings", "list": list }));
        assert_agree(&mut a, &mut b);
        server.stop();
        let before = server.dir.path().join("before.db");
        std::fs::rename(server.path(), &before).unwrap();
        put_back(server.dir.path(), &[]);
        server.run();
        server.stop();
        let file = rusqlite::Connection::open(server.path()).unwrap();
        let attach = format!("ATTACH '{}' AS before", before.display());
        file.execute_batch(&attach).unwrap();
        for table in ["rollcall_device", "rollcall_user"] {
            file.execute(&format!("DELETE FROM {table}"), []).unwrap();
        }
        for table in ["rollcall_user", "rollcall_device"] {
            file.execute(&format!("INSERT INTO {table} SELECT * FROM before.{table}"), []).unwrap();
        }
        drop(file);
        server.run();
        follow(&server, &mut [&mut a, &mut b]);
        a.sync();
        b.sync();
        assert!(there(&a, "lists", &[list]) && there(&a, "items", &[item]), "{way:?}");
        assert_agree(&mut a, &mut b);
    }
}

/// Everything beside the database and it, as it is now.
fn copies(dir: &Path) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    let ours =
        |path: &Path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("server.db"));
    let files = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).filter(|path| ours(path));
    files.map(|path| (path.clone(), std::fs::read(&path).unwrap())).collect()
}

fn put_back(dir: &Path, files: &[(std::path::PathBuf, Vec<u8>)]) {
    for (path, _) in copies(dir) {
        std::fs::remove_file(path).unwrap();
    }
    for (path, bytes) in files {
        std::fs::write(path, bytes).unwrap();
    }
}

//! Copies of a database made beside a running server, and put back in a new epoch.

use rollcall_testkit::test_server;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rollcall::model::{NoEpochLeft, Timestamp, Version};
use rollcall::storage::sqlite::{CopyError, CopyStep, OpenError, Restored, backup, restore};
use rusqlite::{Connection, params};
use serde_json::{Value, json};
use test_server::{
    DAY_MS, Served, TestServer, ask, count, database, is_expired, key, number, rollcall, run, system_now_ms,
};
use uuid::Uuid;

const WAIT: Duration = Duration::from_secs(5);

/// 2026-03-01, 424 days after 2025-01-01.
const NOW: Timestamp = Timestamp::from_ms(1_772_323_200_000);
const EPOCH_OF_NOW: u16 = 424;

fn go_on(_: CopyStep) -> bool {
    true
}

fn is_whole(path: &Path) {
    let conn = Connection::open(path).unwrap();
    let report: String = conn.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(report, "ok");
    let rows = count(&conn, "notes");
    assert_eq!(rows, count(&conn, "rollcall_ledger WHERE deleted = 0"));
    assert_eq!(rows, number(&conn, "SELECT ifnull(sum(live_rows), 0) FROM rollcall_owner"));
}

/// The names in a folder that are none of a database in use.
fn files(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.retain(|name| !["-wal", "-shm", ".lock", ".past"].iter().any(|end| name.ends_with(end)));
    names.sort();
    names
}

/// What is done to a server apart from serving it.
trait Backups {
    /// Makes a backup, and returns where it is.
    fn backup(&self) -> PathBuf;
    fn restore(&self, from: &Path) -> Result<Restored, CopyError>;
    /// All notes, as a new phone receives them.
    fn notes(&self) -> Vec<Value>;
}

impl Backups for TestServer {
    fn backup(&self) -> PathBuf {
        let to = self.dir().join("app.backup");
        backup(&self.path, &to, true, WAIT, &mut go_on).unwrap();
        to
    }

    fn restore(&self, from: &Path) -> Result<Restored, CopyError> {
        restore(from, &self.path, true, NOW, &mut go_on)
    }

    fn notes(&self) -> Vec<Value> {
        let phone = self.device("a new phone");
        let mut notes = Vec::new();
        let mut page = String::new();
        loop {
            let (status, result) = self.changes(&phone, &page);
            assert_eq!((status, &result["type"]), (200, &json!("full")), "{result}");
            notes.extend(result["add"]["notes"].as_array().cloned().unwrap_or_default());
            let Some(next) = result["next"].as_str() else { return notes };
            page = format!("?next={next}");
        }
    }
}

/// Goal: a backup shows one moment and completes however much is written. Method: between any two steps of it
/// another connection writes to the ledger and the table, which would make SQLite restart it.
#[test]
fn a_backup_stays_in_one_snapshot() {
    let mut server = TestServer::new(0);
    let anna = server.device("Anna's phone");
    server.add(&anna, 0);
    server.close();
    let conn = server.look();
    let text = "x".repeat(3_000);
    let mut last = 0_u32;
    let mut write = |rows: u32| {
        let transaction = conn.unchecked_transaction().unwrap();
        for _ in 0..rows {
            last += 1;
            let key = Uuid::from_u128(u128::from(last) + 1);
            let entry = "INSERT INTO rollcall_ledger \
                         (owner, tbl, key, version, created, last_update, deleted, made_by, changed_by) \
                         VALUES (1, 1, ?1, 2, 2, 0, 0, 1, 1)";
            transaction.prepare_cached(entry).unwrap().execute([key.as_bytes()]).unwrap();
            let row = "INSERT INTO notes (_owner, id, text) VALUES (1, ?1, ?2)";
            transaction.prepare_cached(row).unwrap().execute(params![key.as_bytes(), text]).unwrap();
        }
        let count = "UPDATE rollcall_owner SET live_rows = live_rows + ?1, version = version + 1";
        transaction.prepare_cached(count).unwrap().execute([rows]).unwrap();
        transaction.commit().unwrap();
    };
    write(20_000);
    let before = count(&server.look(), "notes");
    let to = server.dir().join("app.backup");
    let mut copied = 0;
    let mut steps = 0;
    let bytes = backup(&server.path, &to, false, WAIT, &mut |step| {
        let CopyStep::Copied(done, of) = step else { panic!("{step:?}") };
        assert!(copied < done && done <= of, "it began anew: {copied} {step:?}");
        (copied, steps) = (done, steps + 1);
        write(500);
        true
    });
    assert!(steps > 10, "{steps}");
    assert_eq!(bytes.unwrap(), to.metadata().unwrap().len());
    is_whole(&to);
    assert_eq!(count(&Connection::open(&to).unwrap(), "notes"), before);
    assert_eq!(count(&server.look(), "notes"), before + 500 * steps);
    assert_eq!(std::fs::read(&to).unwrap()[18..20], [1, 1], "it needs no log beside it");
}

/// Goal: every write that was acknowledged before the backup began is in it, and what is restored from it is
/// complete. Method: the real program, eight devices that write all the while.
#[test]
fn a_backup_under_load_has_every_write_acknowledged_before_it() {
    let mut server = TestServer::new(0);
    let devices: Vec<_> = (0..8).map(|n| server.device(&format!("phone {n}"))).collect();
    let (path, dir) = (server.path.clone(), server.dir().to_owned());
    server.close();
    let served = Served::start(&dir, &database(&path), &[]);
    let acknowledged = Arc::new(Mutex::new(Vec::new()));
    let enough = Arc::new(AtomicBool::new(false));
    let made = Arc::new(AtomicU64::new(1_000));
    let writers: Vec<_> = devices
        .iter()
        .map(|device| {
            let (url, token) = (served.url.clone(), device.token.clone());
            let (acknowledged, enough, made) = (acknowledged.clone(), enough.clone(), made.clone());
            std::thread::spawn(move || {
                while !enough.load(Ordering::SeqCst) {
                    let key = key(u32::try_from(made.fetch_add(1, Ordering::SeqCst)).unwrap());
                    let row = json!({"id": key, "text": "x".repeat(500)});
                    let body = json!({"add": {"notes": [row]}});
                    match ask(&url, &token, "POST", "/synchronise", Some(&body)) {
                        (200, _) => acknowledged.lock().unwrap().push(key),
                        (423, _) => std::thread::sleep(Duration::from_millis(1)),
                        other => panic!("{other:?}"),
                    }
                }
            })
        })
        .collect();
    let many = |rows| test_server::until("writes", || acknowledged.lock().unwrap().len() >= rows);
    many(100);
    let before = acknowledged.lock().unwrap().clone();
    let to = dir.join("app.backup");
    let ended = run(rollcall("backup").args(["--database", &database(&path)]).arg("--to").arg(&to));
    assert_eq!((ended.code, ended.err.as_str()), (Some(0), ""), "{ended:?}");
    many(before.len() + 100);
    enough.store(true, Ordering::SeqCst);
    for writer in writers {
        writer.join().unwrap();
    }
    let cursor = served.ask(&devices[0].token, "GET", "/changes", None).1["version"].as_u64().unwrap();
    drop(served);
    is_whole(&to);

    let ended = run(rollcall("restore").arg("--from").arg(&to).args(["--database", &database(&path)]));
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.err.contains("is there already; --replace"), "{ended:?}");
    let ended =
        run(rollcall("restore").arg("--from").arg(&to).args(["--database", &database(&path), "--replace"]));
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.out.contains("the database that was there is kept as"), "{ended:?}");
    is_whole(&path);
    let served = Served::start(&dir, &database(&path), &[]);
    let token = &devices[0].token;
    let (status, result) = served.ask(token, "GET", &format!("/changes?since={cursor}"), None);
    assert_eq!((status, &result["code"]), (410, &json!("cursor_expired")), "{result}");
    let (_, result) = served.ask(token, "GET", "/changes", None);
    let notes = result["add"]["notes"].as_array().unwrap();
    for key in &before {
        assert!(notes.iter().any(|note| note["id"] == json!(key)), "{key} was acknowledged and is lost");
    }
    let (_, fetched) = served.ask(token, "GET", "/fetch", None);
    assert_eq!(fetched["notes"].as_array().unwrap().len(), notes.len());
}

#[test]
fn a_device_of_before_or_of_the_lost_future_is_told_so() {
    let mut server = TestServer::new(0);
    let anna = server.device("Anna's phone");
    let made = server.add(&anna, 1);
    server.since(&anna, made);
    server.purge(); // writes the cursor down
    let kept = server.add(&anna, 2);
    let once = json!({"add": {"notes": [{"id": key(3), "text": "note"}]}});
    let given =
        |server: &TestServer| server.ask_with(&anna, "POST", "/synchronise", Some(once.clone()), Some("k")).0;
    assert_eq!(given(&server), 200);
    let last = kept + 1;
    let fence = |server: &TestServer| {
        let (status, lock) = server.ask(&anna, "POST", "/lock", None);
        assert_eq!(status, 200, "{lock}");
        lock["fence"].as_u64().unwrap()
    };
    let from = server.backup();
    let lost: Vec<u64> = (4..8).map(|number| server.add(&anna, number)).collect();
    let fence_before = fence(&server);
    let revoked = server.device("a phone that was lost");
    assert_eq!(server.notes().len(), 7);
    server.close();

    let restored = server.restore(&from).unwrap();
    let first = Version::first(EPOCH_OF_NOW).0;
    assert_eq!((restored.epoch, restored.owners, restored.knew_replaced), (EPOCH_OF_NOW, 1, true));
    assert_eq!(server.count("rollcall_answer") + server.count("rollcall_ack"), 0);
    let old = restored.kept.unwrap();
    assert!(
        old.file_name().unwrap().to_str().unwrap().starts_with("app.db.before-restore-2026-03-01-000000")
    );
    is_whole(&old);
    assert_eq!(count(&Connection::open(&old).unwrap(), "notes"), 7);
    server.open();

    for cursor in [1, made, kept, last].into_iter().chain(lost) {
        is_expired(&server.since(&anna, cursor), first, first);
        let edit = json!({"base": cursor, "update": {"notes": [{"id": key(1), "text": "mine"}]}});
        is_expired(&server.ask(&anna, "POST", "/synchronise", Some(edit)), first, first);
    }
    assert_eq!(server.notes().len(), 3);
    let (_, fetched) = server.ask(&anna, "GET", "/fetch?lock=false", None);
    assert_eq!(fetched["notes"].as_array().unwrap().len(), 3);
    assert_eq!(server.ask(&revoked, "GET", "/changes", None).0, 401, "it logged in after the backup");

    assert!(fence(&server) > fence_before);
    assert_eq!(given(&server), 200);
    assert_eq!(server.add(&anna, 4), first + 1, "the same row again changed nothing; a new one does");
    let (status, result) = server.since(&anna, first);
    assert_eq!((status, &result["add"]["notes"][0]["id"]), (200, &json!(key(4))));
    server.pass_days(200);
    server.delete(&anna, 1..2);
    server.pass_days(200);
    assert_eq!(server.purge().tombstones, 1);
}

#[test]
fn epochs_rise_over_all_that_were_given_out() {
    let mut server = TestServer::new(0);
    let anna = server.device("Anna's phone");
    server.add(&anna, 1);
    let from = server.backup();
    server.close();
    assert_eq!(server.restore(&from).unwrap().epoch, EPOCH_OF_NOW);
    // The same backup on the same day: the database that it replaces has used the day's epoch up.
    assert_eq!(server.restore(&from).unwrap().epoch, EPOCH_OF_NOW + 1);
    let names = files(server.dir());
    let kept = "app.db.before-restore-2026-03-01-000000";
    assert_eq!(names, ["app.backup", "app.db", kept, &format!("{kept}-2")]);

    // A backup of the restored database, and a clock that shows an earlier day.
    let later = server.backup();
    std::fs::remove_file(&server.path).unwrap();
    let early = Timestamp::from_ms(NOW.ms() - 1_000 * DAY_MS);
    let restored = restore(&later, &server.path, false, early, &mut go_on).unwrap();
    assert_eq!((restored.epoch, restored.kept, restored.knew_replaced), (EPOCH_OF_NOW + 2, None, true));

    let conn = server.look();
    conn.execute("UPDATE rollcall_meta SET value = 8190 WHERE name = 'epoch'", []).unwrap();
    drop(conn);
    let restored = server.restore(&from).unwrap();
    assert_eq!(restored.epoch, 8_191);
    server.open();
    assert_eq!(server.add(&server.device("Anna's phone"), 2), Version::first(8_191).next().0);
    server.close();
    let refused = server.restore(&from);
    assert!(matches!(refused, Err(CopyError::NoEpochLeft(NoEpochLeft(8_192)))), "{refused:?}");
    assert_eq!(refused.unwrap_err().to_string(), "epoch 8192 would be needed, and 8191 is the last one");
    is_whole(&server.path);
    assert_eq!(count(&server.look(), "notes"), 2);
}

#[test]
fn a_restore_that_must_not_be_touches_nothing() {
    let mut server = TestServer::new(0);
    let anna = server.device("Anna's phone");
    for number in 1..200 {
        server.add(&anna, number);
    }
    let from = server.backup();
    let dir = server.dir().to_owned();
    let served = server.restore(&from);
    assert!(matches!(served, Err(CopyError::Open(OpenError::Served(_)))), "{served:?}");
    server.close();

    let there = restore(&from, &server.path, false, NOW, &mut go_on);
    assert!(matches!(there, Err(CopyError::Exists(_))), "{there:?}");
    let itself = server.restore(&server.path);
    assert!(matches!(itself, Err(CopyError::Itself(_))), "{itself:?}");
    let nothing = server.restore(&dir.join("no.backup"));
    assert!(matches!(nothing, Err(CopyError::Open(OpenError::File { .. }))), "{nothing:?}");

    let looker = server.look();
    let snapshot = looker.unchecked_transaction().unwrap();
    assert_eq!(count(&snapshot, "notes"), 199);
    let used = server.restore(&from);
    assert!(matches!(used, Err(CopyError::InUse(_))), "{used:?}");
    drop(snapshot);
    drop(looker);

    let bad = dir.join("bad.backup");
    let whole = std::fs::read(&from).unwrap();
    let cut = whole.len() / 2;
    let flipped: Vec<u8> = whole
        .iter()
        .enumerate()
        .map(|(at, byte)| if at > cut && at % 64 == 0 { byte ^ 0x55 } else { *byte })
        .collect();
    for bytes in [&flipped[..], &whole[..cut]] {
        std::fs::write(&bad, bytes).unwrap();
        let damaged = server.restore(&bad);
        assert!(matches!(damaged, Err(CopyError::Damaged { .. })), "{damaged:?}");
    }
    std::fs::write(&bad, "no database at all, but a text that is long enough to look at").unwrap();
    let text = server.restore(&bad);
    assert!(text.is_err(), "{text:?}");
    std::fs::remove_file(&bad).unwrap();
    Connection::open(&bad).unwrap().execute_batch("CREATE TABLE notes (id)").unwrap();
    let not_ours = server.restore(&bad);
    assert!(matches!(not_ours, Err(CopyError::NotOurs(_))), "{not_ours:?}");
    std::fs::write(&bad, &whole).unwrap();
    let newer = "UPDATE rollcall_meta SET value = 1000 WHERE name = 'migrations'";
    Connection::open(&bad).unwrap().execute(newer, []).unwrap();
    let newer = server.restore(&bad);
    assert!(matches!(newer, Err(CopyError::Open(OpenError::FromNewerRelease { .. }))), "{newer:?}");

    for stop_at in 1..4 {
        let mut heard = 0;
        let stopped = restore(&from, &server.path, true, NOW, &mut |_| {
            heard += 1;
            heard < stop_at
        });
        assert!(matches!(stopped, Err(CopyError::Interrupted)), "{stopped:?}");
    }
    assert_eq!(files(&dir), ["app.backup", "app.db", "bad.backup"]);
    is_whole(&server.path);
    server.open();
    assert_eq!(server.notes().len(), 199);
    assert_eq!(number(&server.look(), "SELECT value FROM rollcall_meta WHERE name = 'epoch'"), 0);
}

/// Goal: an unreadable database is kept nevertheless, with its log, and does not damage its replacement.
#[test]
fn a_damaged_database_is_kept_and_replaced() {
    let mut server = TestServer::new(0);
    let anna = server.device("Anna's phone");
    server.add(&anna, 1);
    let from = server.backup();
    server.close();
    std::fs::write(&server.path, "rubbish".repeat(1_000)).unwrap();
    let log = server.dir().join("app.db-wal");
    std::fs::write(&log, "an old log").unwrap();
    let restored = server.restore(&from).unwrap();
    assert!(!restored.knew_replaced);
    let kept = restored.kept.unwrap();
    assert_eq!(std::fs::read_to_string(&kept).unwrap().len(), 7_000);
    assert!(!log.exists());
    is_whole(&server.path);

    // A log alone, of a database that somebody deleted.
    std::fs::remove_file(&server.path).unwrap();
    std::fs::write(&log, "an old log").unwrap();
    let there = restore(&from, &server.path, false, NOW, &mut go_on);
    assert!(matches!(there, Err(CopyError::Exists(_))), "{there:?}");
    let kept = server.restore(&from).unwrap().kept.unwrap();
    let kept_log = format!("{}-wal", kept.display());
    assert_eq!(std::fs::read_to_string(kept_log).unwrap(), "an old log");
    server.open();
    assert_eq!(server.notes().len(), 1);
}

#[test]
fn a_backup_appears_whole_or_not_at_all() {
    let server = TestServer::new(0);
    let anna = server.device("Anna's phone");
    server.add(&anna, 1);
    let dir = server.dir().to_owned();
    let to = dir.join("app.backup");
    let stopped = backup(&server.path, &to, false, WAIT, &mut |_| false);
    assert!(matches!(stopped, Err(CopyError::Interrupted)), "{stopped:?}");
    assert_eq!(files(&dir), ["app.db"]);

    // What a killed run leaves.
    std::fs::write(dir.join("app.backup.partial"), "half".repeat(10_000)).unwrap();
    std::fs::write(dir.join("app.backup.partial-journal"), "half").unwrap();
    backup(&server.path, &to, false, WAIT, &mut go_on).unwrap();
    assert_eq!(files(&dir), ["app.backup", "app.db"]);
    is_whole(&to);

    server.add(&anna, 2);
    let command = |flags: &[&str]| {
        let mut backup = rollcall("backup");
        run(backup.args(["--database", &database(&server.path), "--to"]).arg(&to).args(flags))
    };
    let ended = command(&[]);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.err.contains("is there already; --overwrite replaces it"), "{ended:?}");
    assert_eq!(count(&Connection::open(&to).unwrap(), "notes"), 1);
    let ended = command(&["--overwrite"]);
    assert_eq!((ended.code, ended.err.as_str()), (Some(0), ""), "{ended:?}");
    assert_eq!(count(&Connection::open(&to).unwrap(), "notes"), 2);

    let linked = dir.join("link.db");
    std::os::unix::fs::symlink(&server.path, &linked).unwrap();
    for itself in [&server.path, &linked, &dir.join("app.db-wal")] {
        let refused = backup(&server.path, itself, true, WAIT, &mut go_on);
        assert!(matches!(refused, Err(CopyError::Itself(_))), "{refused:?}");
    }
    let holder = std::fs::File::create(dir.join("b.partial")).unwrap();
    holder.lock().unwrap();
    let claimed = backup(&server.path, &dir.join("b"), false, WAIT, &mut go_on);
    assert!(matches!(claimed, Err(CopyError::Claimed(_))), "{claimed:?}");
    assert_eq!(server.notes().len(), 2);
}

/// Goal: a restore that is killed leaves a database, the old one or the new one. Method: kill -9 after longer
/// and longer times, until one completes.
#[test]
fn a_killed_restore_leaves_a_database() {
    let mut server = TestServer::new(0);
    let anna = server.device("Anna's phone");
    let text = "x".repeat(10_000);
    for lot in 0..10 {
        let rows: Vec<Value> =
            (0..200).map(|row| json!({"id": key(lot * 200 + row), "text": text})).collect();
        server.sync(&anna, json!({"add": {"notes": rows}}));
    }
    let from = server.backup();
    server.add(&anna, 5_000);
    server.close();
    let mut killed = 0;
    for wait_ms in (0..).step_by(7) {
        let mut restore = rollcall("restore");
        restore.arg("--from").arg(&from).args(["--database", &database(&server.path), "--replace"]);
        let mut child = restore.spawn().unwrap();
        std::thread::sleep(Duration::from_millis(wait_ms));
        let came_through = child.try_wait().unwrap().is_some();
        let _ = child.kill();
        child.wait().unwrap();
        is_whole(&server.path);
        let epoch = number(&server.look(), "SELECT value FROM rollcall_meta WHERE name = 'epoch'");
        assert_eq!(count(&server.look(), "notes"), if epoch == 0 { 2_001 } else { 2_000 });
        if came_through {
            assert!(epoch > 0);
            break;
        }
        killed += 1;
    }
    assert!(killed > 0, "none was killed");
    server.open();
    assert_eq!(server.notes().len(), 2_000);
    let day = (system_now_ms() - 1_735_689_600_000) / DAY_MS;
    let epoch = number(&server.look(), "SELECT value FROM rollcall_meta WHERE name = 'epoch'");
    assert!(epoch >= day, "{epoch} {day}");
}

/// A device of the real program, in a file of its own.
fn device(dir: &Path, name: &str, arguments: &[&str], url: &str) -> String {
    let file = dir.join(format!("{name}.db"));
    if let Ok(conn) = Connection::open_with_flags(&file, rusqlite::OpenFlags::SQLITE_OPEN_READ_WRITE) {
        conn.execute("UPDATE meta SET value = ?1 WHERE name = 'server'", [url]).unwrap();
    }
    let mut command = rollcall("device");
    command.args([arguments[0], "--file"]).arg(&file).args(&arguments[1..]);
    command.stdin(std::process::Stdio::piped());
    let mut child = command.spawn().unwrap();
    let _ = std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"something borrowed\n"); // not every one reads it
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Goal: what both devices synced after the backup is on the server and on both again, however the copy was
/// put back. Method: the real program, by cursor and by manifest; `rollcall restore`, a file copied back
/// after a stop, and one that was copied while the server ran, which is killed.
#[test]
fn what_a_restore_loses_the_devices_put_back() {
    for way in ["cursor", "manifest"] {
        for how in ["restored", "copied", "copied beside a server that is killed"] {
            let dir = tempfile::tempdir().unwrap();
            let dir = dir.path();
            let path = dir.join("app.db");
            let to = dir.join("app.backup");
            let serve = || Served::start(dir, &database(&path), &[]);
            let log = || std::fs::read_to_string(dir.join("server.log")).unwrap();
            let mut server = serve();
            let schema = dir.join("schema.toml").display().to_string();
            for name in ["phone", "tablet"] {
                device(dir, name, &["init", "--schema", &schema, "--server", &server.url], &server.url);
                let mut login = vec!["login", "anna@example.com", "--device", name];
                login.extend((name == "phone").then_some("--register"));
                device(dir, name, &login, &server.url);
            }
            let put = |server: &Served, text: &str| {
                let row = json!({ "text": text }).to_string();
                device(dir, "phone", &["put", "notes", "new", &row], &server.url);
            };
            let sync = |server: &Served, name: &str| device(dir, name, &["sync", "--by", way], &server.url);
            let list = |server: &Served, name: &str| device(dir, name, &["list", "notes"], &server.url);
            put(&server, "old");
            sync(&server, "phone");
            if how == "copied" {
                assert!(server.stop().0.success());
                std::fs::copy(&path, &to).unwrap();
                server = serve();
            } else {
                let ended =
                    run(rollcall("backup").args(["--database", &database(&path)]).arg("--to").arg(&to));
                assert_eq!(ended.code, Some(0), "{ended:?}");
            }
            (0..3).for_each(|n| put(&server, &format!("new {n}")));
            sync(&server, "phone");
            sync(&server, "tablet");
            let all = list(&server, "phone");
            assert_eq!((all.lines().count(), &list(&server, "tablet")), (4, &all), "{way} {how}");
            if how == "copied beside a server that is killed" {
                drop(server);
            } else {
                assert!(server.stop().0.success());
            }
            if how == "restored" {
                let mut restore = rollcall("restore");
                restore.args(["--database", &database(&path), "--replace"]).arg("--from").arg(&to);
                let ended = run(&mut restore);
                assert_eq!(ended.code, Some(0), "{ended:?}");
            } else {
                for suffix in ["-wal", "-shm"] {
                    let _ = std::fs::remove_file(format!("{}{suffix}", path.display()));
                }
                std::fs::copy(&to, &path).unwrap();
            }
            let server = serve();
            if how != "restored" {
                test_server::until("a warning", || log().contains("put back without rollcall restore"));
            }
            for name in ["tablet", "phone", "tablet"] {
                let result = sync(&server, name);
                assert!(
                    result.contains(" 0 dropped") && result.contains("proved equal"),
                    "{way} {how}: {result}"
                );
            }
            assert_eq!((list(&server, "phone"), list(&server, "tablet")), (all.clone(), all), "{way} {how}");
            let (status, said) = server.stop();
            assert!(status.success());
            assert_eq!(said.contains("put back without"), how != "restored", "{how}: {said}");
            let (_, said) = serve().stop();
            assert!(!said.contains("put back without"), "{how}: {said}");
        }
    }
}

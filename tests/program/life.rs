//! A user's whole life with a server, and what is left of it in the file.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use rollcall_testkit::process::{Process, TOO_LONG, call, log_in, rollcall};
use serde_json::{Value, json};

const EMAIL: &str = "anna.whole-life@example.com";
const FIRST: &str = "something borrowed";
const SECOND: &str = "something blue";
/// Stands in every row.
const MARKER: &str = "zq7marker";

/// What the mail command was given so far.
fn mails(folder: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(folder.join("mails")).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The mail of that number, once it is there.
fn mail(folder: &Path, number: usize) -> Value {
    let began = Instant::now();
    loop {
        if let Some(mail) = mails(folder).get(number - 1) {
            return mail.clone();
        }
        assert!(began.elapsed() < TOO_LONG, "no mail {number}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn post(address: SocketAddr, path: &str, token: Option<&str>, body: Value) -> (u16, Value) {
    let answer = call(address, &format!("POST {path}"), token, Some(&body));
    (answer.status, serde_json::from_str(answer.text()).unwrap_or(Value::Null))
}

/// Goal: from the first mail to the last byte. Method: a server that mails into a file; after the account is erased, the
/// database file, checkpointed and vacuumed, is searched for everything that named the user.
#[test]
fn a_user_registers_shares_forgets_resets_exports_and_is_erased() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    std::fs::copy("fixtures/wedding/schema.toml", path.join("schema.toml")).unwrap();
    let mut command = rollcall();
    command.args([
        "serve",
        "--schema",
        "schema.toml",
        "--database",
        "sqlite:app.db",
        "--listen",
        "127.0.0.1:0",
    ]);
    command.args(["--mail-command", "tee -a mails", "--public-url", "https://app.example"]);
    command.args(["--email-verification", "required", "--purge-s", "1", "--request-s", "1", "--body-s", "1"]);
    let mut server = Process::start(command.current_dir(path));
    let address = server.address();
    let login = |password: &str| json!({ "email": EMAIL, "password": password, "device": "zq7phone" });

    let account = json!({ "email": EMAIL, "password": FIRST });
    assert_eq!(post(address, "/register", None, account).0, 201);
    assert_eq!(post(address, "/login", None, login(FIRST)).1["code"], "email_not_verified");
    mail(path, 1);
    let token = mail(path, 2)["token"].clone(); // the log-in had it sent once more
    let verify = json!({ "token": token, "password": FIRST });
    assert_eq!(post(address, "/email/verify", None, verify).0, 204);
    let phone = log_in(address, EMAIL, FIRST, "zq7phone");
    let key = "0191d2a0-7c1e-7c55-8d2f-5a3b1c9e7f10";
    for title in ["first", "second"] {
        let row = json!({ "id": key, "title": format!("{MARKER} {title}") });
        let batch = json!({ "add": { "todo": [row] }, "update": { "todo": [row] } });
        assert_eq!(post(address, "/synchronise", Some(&phone), batch).0, 200);
    }

    let first: Value = serde_json::from_str(call(address, "GET /me", Some(&phone), None).text()).unwrap();
    let forgot = json!({ "email": EMAIL });
    assert_eq!(post(address, "/password/reset", None, forgot).0, 204);
    let sent = mail(path, 3);
    let link = format!("https://app.example/reset#{}", sent["token"].as_str().unwrap());
    assert_eq!((sent["link"].as_str(), sent["to"].as_str()), (Some(&*link), Some(EMAIL)));
    let reset = json!({ "token": sent["token"], "new": SECOND });
    assert_eq!(post(address, "/password/reset/confirm", None, reset).0, 204);
    assert_eq!(call(address, "GET /me", Some(&phone), None).status, 401);
    assert_eq!(post(address, "/login", None, login(FIRST)).0, 401);
    let phone = log_in(address, EMAIL, SECOND, "zq7phone");
    let me: Value = serde_json::from_str(call(address, "GET /me", Some(&phone), None).text()).unwrap();
    shares_for_a_while(address, path, &phone, &me);

    let export = call(address, "GET /account/export", Some(&phone), None);
    let export = export.text();
    let lines: Vec<&str> = export.lines().collect();
    assert!(lines[0].contains(EMAIL) && lines[1].contains(MARKER) && lines[2].contains("end"), "{export}");

    assert!(is_in_file(path, MARKER.as_bytes()) && is_in_file(path, EMAIL.as_bytes()));
    assert_eq!(post(address, "/account/erase", Some(&phone), json!({ "password": SECOND })).0, 204);
    assert_eq!(call(address, "GET /changes", Some(&phone), None).status, 410);
    assert_eq!(post(address, "/login", None, login(SECOND)).0, 401);
    let began = Instant::now();
    while waits(path) > 0 {
        assert!(began.elapsed() < TOO_LONG, "the owner is not erased");
        std::thread::sleep(Duration::from_millis(100));
    }
    server.terminate();
    let ended = server.wait();
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");

    let conn = rusqlite::Connection::open(path.join("app.db")).unwrap();
    conn.execute_batch("PRAGMA wal_checkpoint(TRUNCATE); VACUUM; PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
    drop(conn);
    let id = |name: &str| me[name].as_str().unwrap().parse::<uuid::Uuid>().unwrap().into_bytes().to_vec();
    let first = first["device"].as_str().unwrap().parse::<uuid::Uuid>().unwrap().into_bytes().to_vec();
    let key = key.parse::<uuid::Uuid>().unwrap().into_bytes().to_vec();
    let texts = [MARKER, EMAIL, "zq7phone", "zq7anna"].map(|text| text.as_bytes().to_vec());
    for found in texts.into_iter().chain([id("user"), id("owner"), id("device"), first, key]) {
        assert!(!is_in_file(path, &found), "{:?} is still there", String::from_utf8_lossy(&found));
    }
    assert!(is_in_file(path, b"ben@example.com"), "the search finds nothing");
}

/// Lets the user of that token become a member of another user's owner, write there, and be taken out.
fn shares_for_a_while(address: SocketAddr, path: &Path, phone: &str, me: &Value) {
    let ben = json!({ "email": "ben@example.com", "password": FIRST });
    assert_eq!(post(address, "/register", None, ben).0, 201);
    let verify = json!({ "token": mail(path, 4)["token"], "password": FIRST });
    assert_eq!(post(address, "/email/verify", None, verify).0, 204);
    let bens = log_in(address, "ben@example.com", FIRST, "phone");
    let (status, made) = post(address, "/owners", Some(&bens), json!({ "name": "Ours" }));
    assert_eq!(status, 201);
    let owner = made["owner"].as_str().unwrap();
    let invitations = format!("/owners/{owner}/invitations");
    let (status, invitation) = post(address, &invitations, Some(&bens), json!({ "role": "write" }));
    assert_eq!(status, 201);
    let accept = json!({ "code": invitation["code"], "name": "zq7anna" });
    for _ in 0..2 {
        assert_eq!(post(address, "/invitations/accept", Some(phone), accept.clone()).0, 200);
    }
    let shared = format!("/synchronise?owner={owner}");
    let row = json!({ "id": "0191d2a0-7c1e-7c55-8d2f-5a3b1c9e7f11", "title": "cake" });
    let (status, report) = post(address, &shared, Some(phone), json!({ "add": { "todo": [row] } }));
    assert_eq!((status, &report["add"]["todo"][0]["verdict"]), (200, &json!("added")));
    let member = format!("DELETE /owners/{owner}/members/{}", me["user"].as_str().unwrap());
    assert_eq!(call(address, &member, Some(&bens), None).status, 204);
    assert_eq!(post(address, &shared, Some(phone), json!({})).1["code"], "not_a_member");
    let kept = call(address, &format!("GET /changes?owner={owner}"), Some(&bens), None);
    assert!(kept.text().contains("cake"), "{}", kept.text());
}

/// How many owners wait to be erased.
fn waits(folder: &Path) -> i64 {
    let conn = rusqlite::Connection::open(folder.join("app.db")).unwrap();
    conn.query_row("SELECT count(*) FROM rollcall_owner WHERE erased_at IS NOT NULL", [], |row| row.get(0))
        .unwrap()
}

/// Whether the database has these bytes, in its file or in its log.
fn is_in_file(folder: &Path, bytes: &[u8]) -> bool {
    ["app.db", "app.db-wal"].iter().any(|name| {
        let file = std::fs::read(folder.join(name)).unwrap_or_default();
        file.windows(bytes.len()).any(|window| window == bytes)
    })
}

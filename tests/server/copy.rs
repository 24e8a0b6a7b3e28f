//! A deployment that has outgrown its file: copied from SQLite to PostgreSQL, and its devices notice nothing.

use rollcall_testkit::engine;
use rollcall_testkit::process;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use engine::{Engine, Store, pg, terms};
use process::{Answer, Client, Process, bearer, call, log_in, rollcall};
use rollcall::clock::Clock;
use rollcall::copy::{self, CopyError, Step};
use rollcall::digest::Digest;
use rollcall::model::{Claim, DeviceId, Lifetime, Owner, RowKey, Stored, Timestamp, Value, Version};
use rollcall::schema::Schema;
use rollcall::storage::OwnerState;
use rollcall::storage::postgres::PostgresWhole;
use rollcall::storage::sqlite::{self, SqliteWhole};
use rollcall::storage::whole::Deployment;
use serde_json::json;
use uuid::Uuid;

const PASSWORD: &str = "something borrowed";
const WAIT: Duration = Duration::from_secs(30);

/// Every type, references to another table and within one, and a column that is retired later.
const SCHEMA: &str = r#"
[table.notes]
key = "nid"
history = 3
[table.notes.columns]
list = { type = "uuid", references = "lists" }
next = { type = "uuid", references = "notes" }
text = "text"
count = "integer"
share = "real"
price = "decimal"
done = "boolean"
day = "date"
at = "timestamp"
extra = "json"
raw = "blob"
Old = "text"

[table.lists]
key = "id"
owner_column = "whose"
[table.lists.columns]
title = "text"
"#;

/// The same schema, once the app no longer syncs a column.
fn retired() -> String {
    SCHEMA.replace("Old = \"text\"\n", "").replace("history = 3\n", "history = 3\nretired = [\"old\"]\n")
}

fn is_there() -> bool {
    Engine::all().contains(&Engine::Postgres)
}

/// A file with a deployment, and a database to copy it to.
struct Move {
    from: Store,
    to: Store,
}

impl Move {
    fn new() -> Self {
        Self { from: Store::of(Engine::Sqlite), to: Store::of(Engine::Postgres) }
    }

    fn schema(&self, text: &str) -> PathBuf {
        let path = self.from.dir.path().join("schema.toml");
        std::fs::write(&path, text).unwrap();
        path
    }

    fn command(&self, schema: &Path, flags: &[&str]) -> Command {
        let mut copy = rollcall();
        copy.arg("copy").arg("--schema").arg(schema).args([
            "--from",
            &self.from.url(),
            "--to",
            &self.to.url(),
        ]);
        copy.args(flags);
        copy
    }

    #[track_caller]
    fn copied(&self, schema: &Path, flags: &[&str]) -> String {
        let output = self.command(schema, flags).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }
}

#[track_caller]
fn refused(output: &Output, why: &str) {
    let result = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && result.contains(why), "{output:?}");
}

fn serve(schema: &Path, database: &str) -> Command {
    let mut command = rollcall();
    command.arg("serve").arg("--schema").arg(schema).args([
        "--database",
        database,
        "--listen",
        "127.0.0.1:0",
    ]);
    command.args(["--log", "warn", "--logins-per-account-per-min", "0", "--logins-per-address-per-min", "0"]);
    command
}

fn key(number: u128) -> String {
    Uuid::from_u128(number).to_string()
}

/// A device and its state.
struct Device {
    token: String,
    cursor: u64,
    etag: String,
    page: String,
    fence: u64,
}

impl Device {
    fn of(address: SocketAddr, email: &str, name: &str) -> Self {
        let token = log_in(address, email, PASSWORD, name);
        Self { token, cursor: 0, etag: String::new(), page: String::new(), fence: 0 }
    }

    fn ask(&self, address: SocketAddr, request: &str, headers: &[&str], body: Option<&str>) -> Answer {
        let headers = headers.iter().map(|line| (*line).to_owned()).chain([bearer(&self.token)]);
        let headers: Vec<_> = headers.collect();
        Client::connect(address).unwrap().call(request, &headers, body).unwrap()
    }

    #[track_caller]
    fn sync(&self, address: SocketAddr, body: serde_json::Value) -> serde_json::Value {
        let answer = self.ask(address, "POST /synchronise", &[], Some(&body.to_string()));
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()
    }

    /// Reads everything, and remembers the version.
    fn catch_up(&mut self, address: SocketAddr) {
        self.cursor =
            call(address, "GET /changes", Some(&self.token), None).json()["version"].as_u64().unwrap();
        self.see(address);
    }

    /// Acknowledges its version.
    fn see(&self, address: SocketAddr) -> serde_json::Value {
        let since = format!("GET /changes?since={}", self.cursor);
        call(address, &since, Some(&self.token), None).json()
    }

    /// Every read of a device, from present and earlier cursors.
    fn sees(&self, address: SocketAddr) -> Vec<String> {
        let since = (1..=self.cursor).map(|cursor| format!("GET /changes?since={cursor}"));
        let fixed = ["/fetch?lock=false", "/changes", "/conflicts", "/digests", "/devices"];
        let asked = fixed.iter().map(|path| format!("GET {path}")).chain(since);
        asked.map(|request| call(address, &request, Some(&self.token), None).text().to_owned()).collect()
    }
}

fn register(address: SocketAddr, email: &str) {
    let body = json!({ "email": email, "password": PASSWORD });
    assert_eq!(call(address, "POST /register", None, Some(&body)).status, 201);
}

/// Goal: devices notice nothing. Method: two owners' devices make deletions, revived rows, conflicts, earlier
/// states, stored responses, rows that are known ahead of a cursor, and unfinished feeds. The database is
/// copied while the server runs, and again after it has stopped. A server over the copy must return to each
/// device what it returned before, and each device must be able to continue.
#[test]
fn devices_go_on_over_the_copy() {
    if !is_there() {
        return;
    }
    let moved = Move::new();
    let schema = moved.schema(SCHEMA);
    let mut server = Process::start(&mut serve(&schema, &moved.from.url()));
    let old = server.address();
    register(old, "anna@example.com");
    let [mut phone, mut tablet] = ["phone", "tablet"].map(|name| Device::of(old, "anna@example.com", name));
    let note = |number: u128, text: &str| json!({"nid": key(number), "text": text});
    phone.sync(old, json!({"add": {
        "lists": [{"id": key(100), "title": "Gifts"}],
        "notes": [
            {"nid": key(1), "list": key(100), "next": key(2), "text": "é\n\"x\"", "count": -9_007_199_254_740_991_i64,
             "share": -0.5, "price": "-1.50", "done": true, "day": "2013-05-01", "at": "2013-05-01T15:36:06.343Z",
             "extra": {"b": [1, "\u{0}"], "a": null}, "raw": "AP8=", "Old": "kept"},
            note(2, "two"), note(3, "three"), note(4, "four"),
        ],
    }}));
    tablet.catch_up(old);
    phone.sync(old, json!({"update": {"notes": [note(1, "by the phone"), note(2, "by the phone")]}}));
    let base = phone.sync(old, json!({"delete": {"notes": [key(3), key(4)]}}))["version"].clone();
    let again = phone.sync(old, json!({"base": base, "add": {"notes": [note(3, "again")]}}));
    assert_eq!(again["add"]["notes"][0]["verdict"], "added", "{again}");
    // Built on what it saw, and the phone was there meanwhile; it is ahead of its cursor now.
    let lost =
        tablet.sync(old, json!({"base": tablet.cursor, "update": {"notes": [note(1, "by the tablet")]}}));
    assert!(lost["update"]["notes"][0]["conflict"].is_string(), "{lost}");
    phone.cursor = 2;
    phone.see(old);
    drop(server);

    // The app retires a column.
    let schema = moved.schema(&retired());
    let mut server = Process::start(&mut serve(&schema, &moved.from.url()));
    let old = server.address();
    let result = moved.copied(&schema, &[]);
    assert!(result.contains("1 of them were copied now"), "{result}");
    assert!(result.contains("the server still runs"), "{result}");
    let begun = Process::start(&mut serve(&schema, &moved.to.url())).wait();
    assert!(begun.stderr.contains("is not complete: run rollcall copy to its end first"), "{begun:?}");

    // Further changes: a new user, a device signed out, a new password, and the last writes.
    register(old, "bert@example.com");
    let mut bert = Device::of(old, "bert@example.com", "laptop");
    let gone = Device::of(old, "anna@example.com", "a phone that was lost");
    assert_eq!(call(old, "POST /logout", Some(&gone.token), None).status, 204);
    bert.sync(old, json!({"add": {"lists": [{"id": key(100), "title": "Bert's"}]}}));
    let body =
        json!({"add": {"notes": [note(5, "once"), note(6, "once"), note(7, "once"), note(8, "once")]}})
            .to_string();
    let given = phone.ask(old, "POST /synchronise", &["idempotency-key: once"], Some(&body));
    assert_eq!(given.status, 200);
    for device in [&mut phone, &mut tablet, &mut bert] {
        device.cursor =
            call(old, "GET /changes", Some(&device.token), None).json()["version"].as_u64().unwrap();
        device.etag = device.ask(old, "GET /fetch?lock=false", &[], None).header("etag").unwrap().to_owned();
        let first = call(old, "GET /changes?since=1&limit=2", Some(&device.token), None).json();
        device.page = first["next"].as_str().unwrap_or_default().to_owned();
        device.fence = device.ask(old, "GET /fetch", &[], None).number("sync-lock");
        device.ask(old, "DELETE /lock", &[], None);
    }
    let rest = |device: &Device, address| {
        let next = format!("GET /changes?limit=2&next={}", device.page);
        let result = call(address, &next, Some(&device.token), None);
        assert_eq!(result.status, if device.page.is_empty() { 400 } else { 200 }, "{}", result.text());
        result.json()["add"].to_string()
    };
    let devices = [&phone, &tablet, &bert];
    let before: Vec<_> = devices.iter().map(|device| (device.sees(old), rest(device, old))).collect();
    assert!(!phone.page.is_empty());
    server.terminate();
    assert!(server.wait().status.success());

    let result = moved.copied(&schema, &[]);
    assert!(result.starts_with("2 owners with 9 rows are the same on both sides"), "{result}");
    assert!(result.contains("2 of them were copied now"), "{result}");
    assert!(result.contains("the copy is complete"), "{result}");
    assert!(moved.copied(&schema, &["--check"]).starts_with("2 owners with 9 rows are the same"));
    refused(&moved.command(&schema, &[]).output().unwrap(), "holds data already: copy into an empty one");

    let mut server = Process::start(&mut serve(&schema, &moved.to.url()));
    let new = server.address();
    for (device, (saw, rest_before)) in devices.iter().zip(&before) {
        assert_eq!(&device.sees(new), saw);
        assert_eq!(&rest(device, new), rest_before);
        let known = format!("if-none-match: {}", device.etag);
        assert_eq!(device.ask(new, "GET /fetch?lock=false", &[&known], None).status, 304);
        let fence = device.ask(new, "GET /fetch", &[], None).number("sync-lock");
        assert!(fence > device.fence, "{fence} {}", device.fence);
        device.ask(new, "DELETE /lock", &[], None);
    }
    assert_eq!(call(new, "GET /fetch?lock=false", Some(&gone.token), None).status, 401);
    log_in(new, "bert@example.com", PASSWORD, "another laptop");

    let again = phone.ask(new, "POST /synchronise", &["idempotency-key: once"], Some(&body));
    assert_eq!(again.header("idempotency-replayed"), Some("true"));
    assert_eq!(again.body, given.body);
    // Nothing is returned twice and nothing missed: the others receive exactly the next write.
    let wrote =
        tablet.sync(new, json!({"base": tablet.cursor, "add": {"notes": [note(9, "new")]}, "pull": true}));
    assert_eq!(wrote["changes"]["update"], json!({}), "{wrote}");
    let result = phone.see(new);
    assert_eq!(result["add"]["notes"][0]["nid"], json!(key(9)), "{result}");
    assert_eq!((&result["update"], &result["delete"]), (&json!({}), &json!({})), "{result}");
    assert_eq!(bert.see(new)["version"], json!(bert.cursor));
    // The retired column stays what it was, should the app want it back.
    drop(server);
    let sql = "SELECT \"Old\", price::text FROM notes WHERE nid = $1";
    let row = client(&moved).query_one(sql, &[&Uuid::from_u128(1)]).unwrap();
    let held = (row.get::<_, String>(0), row.get::<_, String>(1));
    assert_eq!(held, ("kept".to_owned(), "-1.5".to_owned()));
    let result = moved.command(&schema, &["--check"]).output().unwrap();
    refused(&result, "rollcall_ledger: 9 rows in the source, 10 in the copy");
}

fn now() -> Timestamp {
    Clock::system().now()
}

fn owner(number: u128) -> Owner {
    Owner(Uuid::from_u128(number << 64 | 7))
}

/// Makes owners with rows of every value that is odd, straight in the file.
fn fill(from: &Store, owners: u128, rows: u128) -> Arc<Schema> {
    let schema = Arc::new(Schema::parse(SCHEMA).unwrap());
    let storage = from.serve(&schema, WAIT, Timestamp::from_ms(0), Arc::default()).unwrap();
    let [lists, notes] = ["lists", "notes"].map(|name| schema.table(name).unwrap().id);
    for number in 1..=owners {
        let whose = owner(number);
        let list = |version, at| Stored {
            version,
            created: version,
            last_update: Timestamp::from_ms(at),
            made_at: Some(Timestamp::from_ms(at.saturating_sub(1))),
            claim: Claim {
                at: Some(Timestamp::from_ms(at)),
                row_base: Some(Timestamp::from_ms(-at.saturating_abs())),
                base: Some(version),
            },
            made_by: DeviceId(Uuid::from_u128(number)),
            changed_by: DeviceId(Uuid::from_u128(at.unsigned_abs().into())),
            lifetimes: vec![Lifetime { made: Version(1), deleted: version }],
            aware_devices: vec![DeviceId(Uuid::max())],
            values: Some(vec![Value::Text("list".into())]),
        };
        let written = storage.write(whose, |txn| {
            let state = txn.state();
            let version = state.version.next();
            txn.put(lists, &[(RowKey(Uuid::nil()), &list(version, 0))])?;
            let made: Vec<_> = (0..rows)
                .map(|row| {
                    let values = values(number, row);
                    (
                        RowKey(Uuid::from_u128(row)),
                        Stored { values: Some(values), ..list(version, row as i64) },
                    )
                })
                .collect();
            txn.put(notes, &made.iter().map(|(key, row)| (*key, row)).collect::<Vec<_>>())?;
            let dead = Stored { values: None, ..list(version, i64::MIN) };
            txn.put(notes, &[(RowKey(Uuid::max()), &dead)])?;
            let digest = Digest { count: rows as u64, root: u64::MAX - number as u64 };
            let rows = rows as u64 + 1;
            txn.advance(OwnerState { version, rows, bytes: 99, ..state }, &[(notes, digest)], now())?;
            txn.show_ahead(version)?;
            txn.acknowledge(DeviceId(Uuid::from_u128(number)), version, now())
        });
        written.unwrap();
    }
    schema
}

fn values(number: u128, row: u128) -> Vec<Value> {
    let odd = [i64::MIN, -1, 0, 1, i64::MAX][(row % 5) as usize];
    let share = [f64::MIN, -0.0, 5e-324, f64::MAX, 0.1][(row % 5) as usize];
    let price = ["-0.00", "79228162514264337593543950335", "0.0000000000000000000000000001", "1.50", "1000"];
    let json = ["null", "{\"a\":\"\\u0000\"}", "[1.0,1e400]", "\"\"", "{}"][(row % 5) as usize];
    vec![
        Value::Uuid(Uuid::nil()),
        if row > 0 { Value::Uuid(Uuid::from_u128(row - 1)) } else { Value::Null },
        Value::Text(format!("note {number} {row} \u{10ffff}\t\\.\n")),
        Value::Integer(odd),
        Value::Real(share),
        Value::Decimal(price[(row % 5) as usize].parse().unwrap()),
        if row.is_multiple_of(3) { Value::Null } else { Value::Boolean(row % 3 == 1) },
        Value::Date(
            ["0001-01-01", "1999-12-31", "2000-01-01", "9999-12-31", "2024-02-29"][(row % 5) as usize]
                .parse()
                .unwrap(),
        ),
        Value::Timestamp(Timestamp::from_ms(
            [-62_135_596_800_000, -1, 0, 253_402_300_799_999, 946_684_799_999][(row % 5) as usize],
        )),
        Value::Json(json.into()),
        Value::Blob(vec![0; (row % 5) as usize]),
        Value::Null,
    ]
}

fn open(from: &Store, schema: &Schema) -> (SqliteWhole, Deployment) {
    SqliteWhole::open(&from.path(), schema, WAIT, now()).unwrap()
}

fn begin(moved: &Move, deployment: &Deployment) -> PostgresWhole {
    PostgresWhole::begin(&moved.to.address(), &terms(WAIT), deployment, now()).unwrap()
}

/// Copies until `go_on` returns false.
fn copied(
    moved: &Move,
    schema: &Schema,
    mut go_on: impl FnMut(Step) -> bool,
) -> Result<copy::Copied, CopyError> {
    let (from, deployment) = open(&moved.from, schema);
    copy::copy(&from, &deployment, &begin(moved, &deployment), &mut go_on)
}

fn client(moved: &Move) -> pg::Client {
    pg::Client::connect(&moved.to.url(), postgres::NoTls).unwrap()
}

/// Goal: an interrupted copy continues where it was. Method: it is stopped after more and more owners, and
/// within one.
#[test]
fn a_copy_that_was_broken_off_goes_on() {
    if !is_there() {
        return;
    }
    let moved = Move::new();
    let schema = fill(&moved.from, 6, 2_500);
    let mut carried = 0;
    for stop_at in [Step { owners: 0, rows: 1_001 }, Step { owners: 2, rows: 0 }, Step { owners: 4, rows: 1 }]
    {
        let stopped = copied(&moved, &schema, |step| {
            step.owners < stop_at.owners || step.rows % 2_501 < stop_at.rows % 2_501
        });
        assert!(matches!(stopped, Err(CopyError::Interrupted)), "{stopped:?}");
        let sql = "SELECT (SELECT count(*) FROM rollcall_owner), (SELECT count(*) FROM notes)";
        let row = client(&moved).query_one(sql, &[]).unwrap();
        let held = (row.get::<_, i64>(0) as u64, row.get::<_, i64>(1) as u64);
        assert_eq!(held.1, held.0 * 2_500, "a part of an owner was kept");
        assert_eq!(held.0, stop_at.owners);
        carried = held.0;
    }
    let whole = copied(&moved, &schema, |_| true).unwrap();
    assert_eq!((whole.owners, whole.rows, whole.carried), (6, 6 * 2_501, 6 - carried));
    assert_eq!(copied(&moved, &schema, |_| true).unwrap().carried, 0);
}

/// Goal: whenever it is killed, nothing is half copied. Method: kill -9 after longer and longer times, until
/// one completes.
#[test]
fn a_killed_copy_goes_on() {
    if !is_there() {
        return;
    }
    let moved = Move::new();
    fill(&moved.from, 40, 100);
    let schema = moved.schema(SCHEMA);
    let (mut kills, mut wait_ms) = (0, 0);
    loop {
        let mut copy = moved.command(&schema, &[]);
        let mut child = copy.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(wait_ms));
        let came_through = child.try_wait().unwrap();
        let _ = child.kill();
        let result = child.wait_with_output().unwrap().stderr;
        if let Some(status) = came_through {
            // The one before may have been killed with nothing left to do.
            let result = String::from_utf8_lossy(&result);
            assert!(status.success() || result.contains("a copy that was completed"), "{result}");
            break;
        }
        (kills, wait_ms) = (kills + 1, wait_ms * 5 / 4 + 20);
    }
    assert!(kills > 0, "none was killed");
    assert!(
        moved
            .copied(&schema, &["--check"])
            .starts_with("40 owners with 4040 rows are the same on both sides")
    );
    let mut server = Process::start(&mut serve(&schema, &moved.to.url()));
    server.address();
}

/// Goal: a copy that differs from its source is never called complete. Method: the database changes one row
/// while it is copied; then another, after it was copied.
#[test]
fn a_spoilt_row_is_found() {
    if !is_there() {
        return;
    }
    let moved = Move::new();
    let schema = fill(&moved.from, 3, 20);
    let (from, deployment) = open(&moved.from, &schema);
    let to = begin(&moved, &deployment);
    let sql = |sql: &str| client(&moved).batch_execute(sql).unwrap();
    sql(&format!(
        "CREATE FUNCTION spoil() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             IF NEW._owner = '{}' AND NEW.count = 1 THEN NEW.text = NEW.text || ' '; END IF; RETURN NEW;
         END $$;
         CREATE TRIGGER spoil BEFORE INSERT ON notes FOR EACH ROW EXECUTE FUNCTION spoil()",
        owner(2)
    ));
    let result = copy::copy(&from, &deployment, &to, &mut |_| true).unwrap_err().to_string();
    let line = format!("owner {}, notes: 20 rows on both sides, and they are not the same", owner(2));
    assert!(result.contains(&line) && result.starts_with("1 of the copy's parts"), "{result}");
    drop((from, to));
    let file = moved.schema(SCHEMA);
    refused(&moved.command(&file, &[]).output().unwrap(), &line);
    let begun = Process::start(&mut serve(&file, &moved.to.url())).wait();
    assert!(begun.stderr.contains("is not complete"), "{begun:?}");

    sql("DROP TRIGGER spoil ON notes");
    assert!(moved.copied(&file, &[]).contains("1 of them were copied now"));
    for (change, back, table) in [
        ("UPDATE notes SET text = 'x' WHERE nid = '{}'", None, "notes"),
        (
            "UPDATE rollcall_owner SET version = version + 1",
            Some("UPDATE rollcall_owner SET version = version - 1"),
            "rollcall_owner",
        ),
        (
            "UPDATE rollcall_digest SET root = root + 1",
            Some("UPDATE rollcall_digest SET root = root - 1"),
            "rollcall_digest",
        ),
        ("DELETE FROM rollcall_ack", None, "rollcall_ack"),
    ] {
        sql(&change.replace("{}", &key(3)));
        let result = moved.command(&file, &["--check"]).output().unwrap();
        refused(&result, &format!("owner {}, {table}: ", owner(1)));
        back.into_iter().for_each(&sql);
    }
}

#[test]
fn what_must_not_be_mixed_up_is_refused() {
    if !is_there() {
        return;
    }
    // Another deployment's database, which was served.
    let Move { from, to } = Move::new();
    let schema = fill(&from, 1, 1);
    let served = to.serve(&schema, WAIT, now(), Arc::default()).unwrap();
    served.write(owner(9), |txn| txn.advance(txn.state(), &[], now())).unwrap();
    drop(served);
    let moved = Move { from, to };
    let file = moved.schema(SCHEMA);
    refused(&moved.command(&file, &[]).output().unwrap(), "holds data already: copy into an empty one");

    // A copy of one deployment that was broken off, and then another: nothing is touched.
    let begun = Move::new();
    fill(&begun.from, 2, 1);
    let stopped = copied(&begun, &schema, |step| step.owners < 2);
    assert!(matches!(stopped, Err(CopyError::Interrupted)), "{stopped:?}");
    let mixed = Move { from: Store::of(Engine::Sqlite), to: begun.to };
    fill(&mixed.from, 3, 1);
    let file = mixed.schema(SCHEMA);
    refused(&mixed.command(&file, &[]).output().unwrap(), "it is another deployment's");

    // A schema that the source does not have, and files of other releases.
    let other = mixed.schema(&SCHEMA.replace("title = \"text\"", "title = \"text\"\nnew = \"text\""));
    refused(&mixed.command(&other, &[]).output().unwrap(), "add column lists.new (text)");
    let file = mixed.schema(SCHEMA);
    for (change, result) in [(-1, "one of an older release"), (2, "is from a newer release of rollcall")] {
        let conn = rusqlite::Connection::open(mixed.from.path()).unwrap();
        let sql = "UPDATE rollcall_meta SET value = value + ?1 WHERE name = 'migrations'";
        conn.execute(sql, [change]).unwrap();
        refused(&mixed.command(&file, &[]).output().unwrap(), result);
    }
    let nothing = Move::new();
    refused(&nothing.command(&file, &[]).output().unwrap(), "there is no database");
    drop(sqlite::Connections::open(&nothing.from.path(), WAIT, 1).unwrap());
    refused(
        &nothing.command(&file, &[]).output().unwrap(),
        "does not fit the schema as it is; serve it once",
    );
}

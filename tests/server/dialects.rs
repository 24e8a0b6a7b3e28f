//! The other sync protocols, request by request. Their real clients are tested beside `clients/adapters`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rollcall::config::Settings;
use rollcall::dialects::{self, Dialect};
use rollcall::schema::Schema;
use rollcall_testkit::app::{Answer, Device, Server, key};
use serde_json::{Value, json};

fn lists(numbers: impl IntoIterator<Item = u64>) -> Value {
    numbers.into_iter().map(|n| json!({ "lid": key(n), "title": format!("list {n}") })).collect()
}

async fn add(server: &Server, device: &Device, numbers: impl IntoIterator<Item = u64>) {
    server.sync(device, json!({ "add": { "lists": lists(numbers) } })).await.ok();
}

/// Lets the server forget what the owner deleted so far.
fn forget_the_past(server: &Server) {
    server.sql("UPDATE rollcall_owner SET horizon = version");
}

/// Goal: none is served unless it is named. Method: a server without dialects.
#[tokio::test]
async fn a_dialect_is_served_only_if_it_is_named() {
    let paths = [
        (Dialect::Electric, "/v1/shape?table=lists&offset=-1"),
        (Dialect::ChangeTracking, "/lists/sync"),
        (Dialect::PowerSync, "/write-checkpoint2.json"),
    ];
    for chosen in Dialect::ALL {
        let server = Server::with(|settings| settings.dialects.dialects = vec![chosen]);
        let phone = server.device("anna", "phone");
        for (dialect, path) in paths {
            let status = server.get(path).of(&phone).send().await.status;
            assert_eq!(status, if dialect == chosen { 200 } else { 404 }, "{path} with {}", chosen.name());
        }
        let typed = server.get("/openapi.json").send().await.ok();
        assert_eq!(typed["paths"].get("/v1/shape").is_some(), chosen == Dialect::Electric);
        assert_eq!(typed["paths"].get("/sync").is_some(), chosen == Dialect::ChangeTracking);
        assert_eq!(typed["paths"].get("/sync/stream").is_some(), chosen == Dialect::PowerSync);
        let tags: Vec<_> = typed["tags"].as_array().unwrap().iter().map(|tag| &tag["name"]).collect();
        for dialect in Dialect::ALL {
            assert_eq!(tags.contains(&&Value::from(dialect.tag())), dialect == chosen, "{tags:?}");
        }
    }
}

/// Goal: a name that a dialect needs is refused at the start, by name.
#[test]
fn names_that_a_dialect_needs_are_refused() {
    let refused = |dialect: Dialect, schema: &str| {
        let mut settings = Settings::default();
        settings.dialects.dialects = vec![dialect];
        dialects::check(&settings, &Schema::parse(schema).unwrap()).err().map(|fault| fault.to_string())
    };
    for table in ["devices", "console", "sync"] {
        let schema = format!("[table.{table}]\nkey = \"id\"\n[table.{table}.columns]\nname = \"text\"\n");
        let fault = refused(Dialect::ChangeTracking, &schema).unwrap();
        assert!(fault.contains("change-tracking") && fault.contains(table), "{fault}");
        assert_eq!(refused(Dialect::Electric, &schema), None);
    }
    for (schema, name) in [
        ("[table.ps_notes]\nkey = \"id\"\n[table.ps_notes.columns]\nname = \"text\"\n", "ps_notes"),
        ("[table.notes]\nkey = \"nid\"\n[table.notes.columns]\nID = \"text\"\n", "\"ID\""),
    ] {
        let fault = refused(Dialect::PowerSync, schema).unwrap();
        assert!(fault.contains("powersync") && fault.contains(name), "{fault}");
        assert_eq!(refused(Dialect::ChangeTracking, schema), None);
    }
    let mut settings = Settings::default();
    settings.dialects.dialects = vec![Dialect::Electric];
    settings.dialects.electric_wait_s = settings.limits.request_s;
    let fault =
        dialects::check(&settings, &Schema::parse(rollcall_testkit::app::SCHEMA).unwrap()).unwrap_err();
    assert!(fault.to_string().contains("electric-wait-s"), "{fault}");
}

/// What a client of Electric keeps.
#[derive(Default)]
struct Shape {
    rows: BTreeMap<String, Value>,
    handle: Option<String>,
    offset: String,
    requests: usize,
}

impl Shape {
    fn new() -> Self {
        Self { offset: "-1".into(), ..Self::default() }
    }

    async fn request(&mut self, server: &Server, device: &Device, more: &str) -> Answer {
        let handle = self.handle.as_ref().map(|handle| format!("&handle={handle}")).unwrap_or_default();
        let path = format!("/v1/shape?table=lists&offset={}{handle}{more}", self.offset);
        self.requests += 1;
        server.get(&path).of(device).send().await
    }

    /// Reads until there is no more; returns the operations.
    async fn pull(&mut self, server: &Server, device: &Device, more: &str) -> Vec<String> {
        let mut operations = Vec::new();
        loop {
            let answer = self.request(server, device, more).await;
            assert_eq!(answer.status, 200, "{}", answer.json());
            self.handle = answer.header("electric-handle").map(str::to_owned);
            self.offset = answer.header("electric-offset").unwrap().to_owned();
            let schema: Value = serde_json::from_str(answer.header("electric-schema").unwrap()).unwrap();
            assert_eq!(schema["lid"], json!({ "type": "uuid", "not_null": true, "pk_index": 0 }));
            for message in answer.json().as_array().unwrap() {
                let Some(operation) = message["headers"]["operation"].as_str() else { continue };
                operations.push(operation.to_owned());
                let key = message["key"].as_str().unwrap().to_owned();
                if operation == "delete" {
                    self.rows.remove(&key);
                } else {
                    self.rows.insert(key, message["value"].clone());
                }
            }
            let is_up_to_date = answer.header("electric-up-to-date").is_some();
            let last = answer.json().as_array().unwrap().last().cloned().unwrap_or_default();
            assert_eq!(last["headers"]["control"] == "up-to-date", is_up_to_date);
            if is_up_to_date {
                return operations;
            }
        }
    }
}

#[tokio::test]
async fn a_shape_has_all_rows_and_then_what_changes() {
    let server = Server::with(|settings| settings.sync.changes_rows_max = 3);
    let (phone, tablet) = (server.device("anna", "phone"), server.device("anna", "tablet"));
    add(&server, &phone, 0..8).await;
    let mut shape = Shape::new();
    assert_eq!(shape.pull(&server, &tablet, "").await, ["insert"; 8]);
    assert_eq!(shape.requests, 3, "pages of three rows");
    let first = &shape.rows[&format!("\"public\".\"lists\"/\"{}\"", key(0))];
    assert_eq!(first["title"], "list 0");
    assert!(first["last_update"].as_str().unwrap().ends_with("+00"), "{first}");

    let edit = json!({ "update": { "lists": [{ "lid": key(1), "title": "other" }] }, "delete": { "lists": [key(2)] } });
    server.sync(&phone, edit).await.ok();
    server
        .sync(&phone, json!({ "add": { "nodes": [{ "id": key(50), "name": "of another table" }] } }))
        .await
        .ok();
    let mut operations = shape.pull(&server, &tablet, "").await;
    operations.sort();
    assert_eq!(operations, ["delete", "update"]);
    assert_eq!(shape.rows.len(), 7);
    assert!(shape.pull(&server, &tablet, "").await.is_empty());

    let answer = server.get("/v1/shape?table=lists&offset=-1&columns=title,lid").of(&tablet).send().await;
    assert_eq!(answer.json()[0]["value"].as_object().unwrap().keys().collect::<Vec<_>>(), ["title", "lid"]);
    let answer = server.get("/v1/shape?table=lists&offset=now").of(&tablet).send().await;
    assert_eq!(answer.json().as_array().unwrap().len(), 1, "nothing of the past");
}

/// Goal: a row deleted between two pages is deleted on the device, and none is left out. Method: a page of one row, then
/// edits.
#[tokio::test]
async fn a_shape_that_changes_between_two_pages_loses_nothing() {
    let server = Server::with(|settings| settings.sync.changes_rows_max = 1);
    let (phone, tablet) = (server.device("anna", "phone"), server.device("anna", "tablet"));
    add(&server, &phone, 0..4).await;
    let mut shape = Shape::new();
    let answer = shape.request(&server, &tablet, "").await;
    let got = answer.json()[0]["value"]["lid"].as_str().unwrap().to_owned();
    shape.handle = answer.header("electric-handle").map(str::to_owned);
    shape.offset = answer.header("electric-offset").unwrap().to_owned();
    shape.rows.insert(answer.json()[0]["key"].as_str().unwrap().to_owned(), Value::Null);
    server.sync(&phone, json!({ "delete": { "lists": [got] } })).await.ok();
    add(&server, &phone, [9]).await;
    shape.pull(&server, &tablet, "").await;
    shape.pull(&server, &tablet, "").await;
    let rows: Vec<_> = shape.rows.values().map(|row| row["title"].as_str().unwrap()).collect();
    assert_eq!(rows, ["list 1", "list 2", "list 3", "list 9"]);
}

#[tokio::test]
async fn an_offset_of_no_use_is_must_refetch_with_another_handle() {
    let server = Server::new();
    let phone = server.device("anna", "phone");
    add(&server, &phone, 0..3).await;
    let mut shape = Shape::new();
    shape.pull(&server, &phone, "").await;
    server.sync(&phone, json!({ "delete": { "lists": [key(1)] } })).await.ok();
    let usable = (shape.handle.clone(), shape.offset.clone());

    // Forgotten, of another owner, ahead of the server, of another shape.
    let stranger = server.device("ben", "phone");
    add(&server, &stranger, 5..15).await;
    let others = server.get("/v1/shape?table=lists&offset=-1").of(&stranger).send().await;
    let other_handle = others.header("electric-handle").map(str::to_owned);
    let columns = server.get("/v1/shape?table=lists&offset=-1&columns=lid").of(&phone).send().await;
    let other_columns = columns.header("electric-handle").map(str::to_owned);
    for (what, handle, offset) in [
        ("another owner", other_handle, usable.1.clone()),
        ("other columns", other_columns, usable.1.clone()),
        ("ahead", usable.0.clone(), "4000_0".into()),
        ("no handle of ours", Some("8a5b3f6f0c1d2e3f-6".into()), usable.1.clone()),
    ] {
        let mut shape = Shape { handle, offset, ..Shape::new() };
        let answer = shape.request(&server, &phone, "").await;
        assert_eq!(answer.status, 409, "{what}");
        assert_eq!(answer.json(), json!([{ "headers": { "control": "must-refetch" } }]), "{what}");
        let new = answer.header("electric-handle").unwrap();
        assert_ne!(Some(new), shape.handle.as_deref(), "{what}");
        (shape.handle, shape.offset) = (Some(new.into()), "-1".into());
        assert_eq!(shape.pull(&server, &phone, "").await, ["insert"; 2], "{what}");
    }
    assert_eq!(shape.pull(&server, &phone, "").await, ["delete"], "what is of use still is");
    (shape.handle, shape.offset) = usable;
    forget_the_past(&server);
    let server = server.restarted();
    let answer = shape.request(&server, &phone, "").await;
    assert_eq!(answer.status, 409, "forgotten");
    assert_ne!(answer.header("electric-handle"), shape.handle.as_deref());
}

/// Goal: a live request ends with the change, and without one after its time; another table's change does not end it.
#[tokio::test]
async fn a_live_request_waits_for_a_change() {
    let server = Arc::new(Server::with(|settings| settings.dialects.electric_wait_s = 3));
    let phone = server.device("anna", "phone");
    add(&server, &phone, 0..3).await;
    let mut shape = Shape::new();
    shape.pull(&server, &phone, "").await;
    let began = std::time::Instant::now();
    let writer = {
        let (server, phone) = (Arc::clone(&server), phone.clone());
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(200)).await;
            server.sync(&phone, json!({ "add": { "nodes": [{ "id": key(50), "name": "x" }] } })).await.ok();
            tokio::time::sleep(Duration::from_millis(300)).await;
            add(&server, &phone, [7]).await;
        })
    };
    assert_eq!(shape.pull(&server, &phone, "&live=true&cursor=3").await, ["insert"]);
    assert!((400..2_500).contains(&began.elapsed().as_millis()), "{:?}", began.elapsed());
    writer.await.unwrap();
    let began = std::time::Instant::now();
    assert!(shape.pull(&server, &phone, "&live=true").await.is_empty());
    assert!(began.elapsed() >= Duration::from_millis(2_900), "{:?}", began.elapsed());
}

async fn tracked(server: &Server, device: &Device, path: &str) -> (u64, String, Option<u64>, Vec<Value>) {
    let told = server.get(path).of(device).send().await.ok();
    let sync = &told["Metadata"]["Sync"];
    let rows = told["Data"].as_array().unwrap().clone();
    let kind = sync["Type"].as_str().unwrap().to_owned();
    (sync["Version"].as_u64().unwrap(), kind, sync["ReasonCode"].as_u64(), rows)
}

#[tokio::test]
async fn change_tracking_returns_everything_and_then_net_changes() {
    let server = Server::new();
    let (phone, tablet) = (server.device("anna", "phone"), server.device("anna", "tablet"));
    add(&server, &phone, 0..3).await;
    server.sync(&phone, json!({ "add": { "nodes": [{ "id": key(50), "name": "node" }] } })).await.ok();
    let (version, kind, reason, rows) = tracked(&server, &tablet, "/lists/sync").await;
    assert_eq!((kind.as_str(), reason, rows.len()), ("Full", Some(0), 3));
    assert!(
        rows.iter().all(|row| row.get("$operation").is_none() && row.get("$table").is_none()),
        "{rows:?}"
    );
    assert_eq!(tracked(&server, &tablet, "/lists/sync?fromVersion=0").await.1, "Full");

    let edits = json!({
        "add": { "lists": lists([7, 8]), "nodes": [{ "id": key(51), "name": "x" }] },
        "update": { "lists": [{ "lid": key(1), "title": "other" }] },
        "delete": { "lists": [key(2)] },
    });
    server.sync(&phone, edits).await.ok();
    server.sync(&phone, json!({ "delete": { "lists": [key(8)] } })).await.ok();
    let path = format!("/lists/sync?fromVersion={version}");
    let (now, kind, reason, mut rows) = tracked(&server, &tablet, &path).await;
    assert_eq!((kind.as_str(), reason), ("Diff", None));
    rows.sort_by_key(|row| row["lid"].as_str().unwrap().to_owned());
    let told: Vec<_> =
        rows.iter().map(|row| (row["$operation"].as_str().unwrap(), row["lid"].as_str().unwrap())).collect();
    assert_eq!(
        told,
        [("U", key(1).as_str()), ("D", key(2).as_str()), ("I", key(7).as_str())],
        "net: {rows:?}"
    );
    assert_eq!(rows[1].as_object().unwrap().len(), 2, "a deleted row has its key alone");
    assert_eq!(rows[0]["title"], "other");
    let header = server.get("/lists/sync").of(&tablet).header("fromVersion", version).send().await.ok();
    assert_eq!(header["Metadata"]["Sync"], json!({ "Version": now, "Type": "Diff" }));

    // Several tables at once, as of one version.
    let (_, kind, _, rows) =
        tracked(&server, &tablet, &format!("/sync?tables=lists,nodes&fromVersion={version}")).await;
    let of = |table: &str| rows.iter().filter(|row| row["$table"] == table).count();
    assert_eq!((kind.as_str(), of("lists"), of("nodes")), ("Diff", 3, 1));
    let (_, kind, reason, rows) = tracked(&server, &tablet, "/sync").await;
    assert_eq!((kind.as_str(), reason, rows.len()), ("Full", Some(0), 5), "{rows:?}");

    // Too old, and ahead of the server: everything again, and why.
    assert_eq!(tracked(&server, &tablet, "/lists/sync?fromVersion=4000").await.2, Some(1));
    forget_the_past(&server);
    let server = server.restarted();
    let (_, kind, reason, rows) = tracked(&server, &tablet, &path).await;
    assert_eq!((kind.as_str(), reason, rows.len()), ("Full", Some(1), 3));
}

#[tokio::test]
async fn change_tracking_refuses_what_it_cannot_read() {
    let server = Server::new();
    let phone = server.device("anna", "phone");
    for (path, header, status) in [
        ("/lists/sync?fromVersion=x", None, 400),
        ("/lists/sync?since=3", None, 400),
        ("/lists/sync", Some("-1"), 400),
        ("/lists/sync?fromVersion=3", Some("4"), 400),
        ("/sync?tables=nothing", None, 400),
        ("/nothing/sync", None, 404),
    ] {
        let ask = server.get(path).of(&phone);
        let ask = header.into_iter().fold(ask, |ask, value| ask.header("fromVersion", value));
        assert_eq!(ask.send().await.status, status, "{path} {header:?}");
    }
    assert_eq!(server.get("/lists/sync").send().await.status, 401);
    assert_eq!(server.get("/nothing/sync").send().await.status, 404);
}

/// Goal: a long response is whole and well-formed, or breaks off. Method: more rows than several chunks, one reader.
#[tokio::test]
async fn a_long_table_is_one_whole_response() {
    let server = Server::with(|settings| settings.sync.page_entries_max = 100);
    let phone = server.device("anna", "phone");
    add(&server, &phone, 0..3_000).await;
    let (_, _, _, rows) = tracked(&server, &phone, "/lists/sync").await;
    assert_eq!(rows.len(), 3_000);
}

/// What an SDK keeps of a bucket: its rows, the sum of its operations, and the last one.
#[derive(Clone, Debug, Default)]
struct Bucket {
    name: String,
    rows: BTreeMap<String, Value>,
    sum: u32,
    after: u64,
}

impl Bucket {
    /// Streams one checkpoint, of which at most `lines_max` lines of data arrive; returns the operations.
    async fn pull(&mut self, server: &Server, device: &Device, lines_max: usize) -> Vec<String> {
        let buckets = match self.name.as_str() {
            "" => json!([]),
            name => json!([{ "name": name, "after": self.after.to_string() }]),
        };
        let body = json!({ "buckets": buckets, "client_id": "c", "raw_data": true });
        let answer = server.ask("POST", "/sync/stream").of(device).json(&body).send().await;
        assert_eq!(answer.status, 200, "{}", answer.json());
        let text = String::from_utf8(answer.bytes).unwrap();
        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let head = &lines[0]["checkpoint"];
        let bucket = &head["buckets"][0];
        let name = bucket["bucket"].as_str().unwrap();
        if name != self.name {
            *self = Self { name: name.into(), ..Self::default() };
        }
        let mut operations = Vec::new();
        let data = lines.iter().filter_map(|line| line.get("data"));
        for line in data.clone().take(lines_max) {
            assert_eq!(line["bucket"], name);
            for op in line["data"].as_array().unwrap() {
                operations.push(self.apply(op));
            }
            assert_eq!(line["next_after"], self.after.to_string());
        }
        if data.count() <= lines_max {
            assert_eq!(lines.last().unwrap()["checkpoint_complete"]["last_op_id"], head["last_op_id"]);
            assert_eq!(bucket["checksum"], self.sum, "the SDK would load everything again");
            self.after = head["last_op_id"].as_str().unwrap().parse().unwrap();
        }
        operations
    }

    fn apply(&mut self, op: &Value) -> String {
        self.after = op["op_id"].as_str().unwrap().parse().unwrap();
        self.sum = self.sum.wrapping_add(u32::try_from(op["checksum"].as_u64().unwrap()).unwrap());
        let kind = op["op"].as_str().unwrap();
        let row = format!("{}/{}", op["object_type"], op["object_id"]);
        match kind {
            "PUT" => {
                let row_data = serde_json::from_str(op["data"].as_str().unwrap()).unwrap();
                self.rows.insert(row, row_data);
            }
            "REMOVE" => drop(self.rows.remove(&row)),
            _ => assert_eq!(kind, "MOVE"),
        }
        kind.to_owned()
    }

    fn titles(&self) -> Vec<&str> {
        let mut titles: Vec<_> = self.rows.values().filter_map(|row| row["title"].as_str()).collect();
        titles.sort_unstable();
        titles
    }
}

#[tokio::test]
async fn a_bucket_has_all_rows_and_then_what_changes() {
    let server = Server::new();
    let (phone, tablet) = (server.device("anna", "phone"), server.device("anna", "tablet"));
    let mut bucket = Bucket::default();
    assert_eq!(bucket.pull(&server, &tablet, 9).await, ["MOVE"], "nothing yet, and the sum is right");
    let thing = json!({ "id": key(60), "flag": true, "whole": 7, "extra": { "a": [1] }, "exact": "1.50" });
    server.sync(&phone, json!({ "add": { "lists": lists([1, 2, 3]), "things": [thing] } })).await.ok();
    assert_eq!(bucket.pull(&server, &tablet, 9).await, ["PUT", "PUT", "PUT", "PUT", "MOVE"]);
    let thing = &bucket.rows[&format!("\"things\"/\"{}\"", key(60))];
    assert_eq!(
        (&thing["flag"], &thing["whole"], &thing["extra"], &thing["exact"]),
        (&json!(1), &json!(7), &json!("{\"a\":[1]}"), &json!("1.5")),
    );
    assert!(thing.get("id").is_none() && thing["last_update"].is_string(), "{thing}");

    let edit =
        json!({ "update": { "lists": [{ "lid": key(1), "title": "x" }] }, "delete": { "lists": [key(2)] } });
    server.sync(&phone, edit).await.ok();
    let mut operations = bucket.pull(&server, &tablet, 9).await;
    operations.sort();
    assert_eq!(operations, ["MOVE", "PUT", "REMOVE"]);
    assert_eq!(bucket.titles(), ["list 3", "x"]);
    assert!(bucket.pull(&server, &tablet, 9).await.is_empty());
    // A device that begins now has the same rows under a name of its own.
    let mut other = Bucket::default();
    other.pull(&server, &phone, 9).await;
    assert_eq!(other.rows, bucket.rows);
    let stranger = server.device("ben", "phone");
    bucket.pull(&server, &stranger, 9).await;
    assert!(bucket.rows.is_empty(), "another owner's bucket is no use");
}

/// Goal: a download that breaks off goes on where it was, and loses nothing that changes meanwhile. Method: a few lines at
/// a time, in the middle of a version, with edits in between.
#[tokio::test]
async fn a_download_that_breaks_off_goes_on() {
    let server = Server::new();
    let (phone, tablet) = (server.device("anna", "phone"), server.device("anna", "tablet"));
    add(&server, &phone, 0..1_800).await;
    add(&server, &phone, 1_800..3_000).await;
    let mut bucket = Bucket::default();
    let begun = bucket.pull(&server, &tablet, 1).await.len();
    assert!((100..=500).contains(&begun), "one line of {begun} operations");
    let first = bucket.rows.keys().next().unwrap().split('"').nth(3).unwrap().to_owned();
    // One that the device has is deleted, one that it lacks is edited, one is new.
    let edit = json!({
        "delete": { "lists": [first] },
        "update": { "lists": [{ "lid": key(1_700), "title": "edited" }] },
        "add": { "lists": lists([9_000]) },
    });
    server.sync(&phone, edit).await.ok();
    bucket.pull(&server, &tablet, 10).await; // the version that broke off, from its beginning, and some of the next
    while bucket.pull(&server, &tablet, 10).await.len() > 1 {}
    assert_eq!(bucket.rows.len(), 3_000);
    let mut whole = Bucket::default();
    whole.pull(&server, &tablet, usize::MAX).await;
    assert_eq!(whole.rows, bucket.rows);
}

/// Goal: a bucket that is of no use is loaded anew, under another name. Method: a forgotten past, another schema; a first
/// load below the horizon is of use still.
#[tokio::test]
async fn a_bucket_of_no_use_gets_another_name() {
    let server = Server::new();
    let phone = server.device("anna", "phone");
    add(&server, &phone, 0..3).await;
    add(&server, &phone, 10..900).await;
    let mut bucket = Bucket::default();
    bucket.pull(&server, &phone, usize::MAX).await;
    server.sync(&phone, json!({ "delete": { "lists": [key(1)] } })).await.ok();
    forget_the_past(&server);
    let server = server.restarted();
    let name = bucket.name.clone();
    bucket.pull(&server, &phone, usize::MAX).await;
    assert_ne!(bucket.name, name);
    assert_eq!(bucket.rows.len(), 892);
    // It begins below the horizon, where the oldest rows are, and goes on there.
    let mut new = Bucket::default();
    new.pull(&server, &phone, 1).await;
    let name = new.name.clone();
    server.sync(&phone, json!({ "delete": { "lists": [key(0), key(899)] } })).await.ok();
    new.pull(&server, &phone, usize::MAX).await;
    assert_eq!((new.name, new.rows.len()), (name, 890));
}

/// Goal: the SDK learns when its uploads have come back. Method: both calls, and the number of the next checkpoint.
#[tokio::test]
async fn a_checkpoint_reaches_what_was_requested() {
    let server = Server::new();
    let phone = server.device("anna", "phone");
    add(&server, &phone, 0..3).await;
    let version = server.version_of("anna");
    let token = format!("Token {}", phone.token);
    let legacy =
        server.get("/write-checkpoint2.json?client_id=c").header("authorization", &token).send().await.ok();
    assert_eq!(legacy, json!({ "data": { "write_checkpoint": version.to_string() } }));
    let request = |number: u64| {
        let body = json!({ "client_id": "c", "checkpoint_request_id": number.to_string() });
        server.ask("POST", "/sync/checkpoint-request").of(&phone).json(&body).send()
    };
    let number = |answer: Answer| {
        answer.ok()["data"]["checkpoint_request_id"].as_str().unwrap().parse::<u64>().unwrap()
    };
    assert_eq!(number(request(1).await), version, "at least the version");
    assert_eq!(number(request(version + 5).await), version + 5);
    let answer =
        server.ask("POST", "/sync/stream").of(&phone).json(&json!({ "client_id": "c" })).send().await;
    let head: Value =
        serde_json::from_slice(answer.bytes.split(|byte| *byte == b'\n').next().unwrap()).unwrap();
    assert_eq!(head["checkpoint"]["write_checkpoint"], (version + 5).to_string());
    for body in ["[]", r#"{"buckets": [{"name": "a", "after": "x"}]}"#] {
        let answer = server.ask("POST", "/sync/stream").of(&phone).body(body).send().await;
        assert_eq!(answer.status, 422, "{body}");
    }
    let many = json!({ "buckets": vec![json!({ "name": "a", "after": "1" }); 1_001] });
    assert_eq!(server.ask("POST", "/sync/stream").of(&phone).json(&many).send().await.status, 422);
}

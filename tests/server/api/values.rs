//! One row at fault costs that row, and other spellings are read: `fixtures/values`, case by case.

use serde_json::value::RawValue;

use super::*;

const SAMPLES: &str = include_str!("../../../fixtures/values/schema.toml");
const BAD: &str = include_str!("../../../fixtures/values/bad.json");
const LENIENT: &str = include_str!("../../../fixtures/values/lenient.json");

/// Something that a request has in one of its lists and that is at fault.
#[derive(Debug)]
struct Entry {
    name: String,
    /// `add`, `update`, `delete` or `get`.
    part: &'static str,
    /// JSON text; `KEY` is replaced by the row's key.
    text: String,
    code: String,
    /// The member at fault.
    column: Option<String>,
    /// The key in the response, if it is not `KEY`.
    key: Echo,
}

#[derive(Debug, Clone)]
enum Echo {
    Key,
    Text(String),
    Nothing,
}

/// Every case of `bad.json` at every place where it may occur.
fn entries() -> Vec<Entry> {
    let bad: Value = serde_json::from_str(BAD).unwrap();
    let list = |name: &str| bad[name].as_array().unwrap().clone();
    let text = |case: &Value, name: &str| case[name].as_str().unwrap().to_owned();
    let mut entries = Vec::new();
    let mut put = |case: &Value, part, entry: String, code: &str, column: Option<&str>, key: Echo| {
        let name = format!("{} ({})", text(case, "name"), column.unwrap_or("-"));
        let column = column.map(str::to_owned);
        entries.push(Entry { name, part, text: entry, code: code.into(), column, key });
    };
    for case in list("values").iter().chain(&list("members")) {
        let (column, json, code) = (text(case, "column"), text(case, "json"), text(case, "code"));
        let row = format!(r#"{{"id":"KEY","{column}":{json}}}"#);
        for part in ["add", "update", "delete"] {
            if part != "delete" || column == "last_update" || column == "_base" {
                put(case, part, row.clone(), &code, Some(&column), Echo::Key);
            }
        }
    }
    for case in &list("keys") {
        let (json, echoed) = (text(case, "json"), case["echoed"].as_str());
        let echo = echoed.map_or(Echo::Nothing, |echoed| Echo::Text(echoed.into()));
        for part in ["add", "update"] {
            let row = format!(r#"{{"text":"x","id":{json},"integer":7}}"#);
            put(case, part, row, "invalid_key", Some("id"), echo.clone());
        }
        put(case, "delete", format!(r#"{{"id":{json}}}"#), "invalid_key", Some("id"), echo.clone());
        let code = if json.starts_with('"') { "invalid_key" } else { "wrong_type" };
        put(case, "delete", json.clone(), code, None, echo.clone());
        put(case, "get", json, "invalid_key", None, echo);
    }
    for (name, parts) in [("rows", &["add", "update"][..]), ("deletions", &["delete"]), ("asked", &["get"])] {
        for case in &list(name) {
            for part in parts {
                put(case, part, text(case, "json"), &text(case, "code"), None, Echo::Nothing);
            }
        }
    }
    entries
}

/// A good entry of a part, that does something.
fn good(part: &str, key: &str) -> String {
    match part {
        "add" => format!(r#"{{"id":"{key}","text":"made","timestamp":"2013-05-01T15:42:50.343Z"}}"#),
        "update" => format!(r#"{{"id":"{key}","text":"changed {key}","integer":1}}"#),
        _ => format!("{key:?}"),
    }
}

/// A server with `samples`, and a device that has made so many rows from key 1 on.
async fn samples(rows: u64) -> (Server, Device) {
    let server = Server::of(SAMPLES, |_| {});
    let anna = server.device("anna", "phone");
    let rows: Vec<_> = (1..=rows).map(|n| json!({ "id": key(n), "text": "first" })).collect();
    server.sync(&anna, json!({ "add": { "samples": rows } })).await.ok();
    (server, anna)
}

async fn send(server: &Server, device: &Device, body: String) -> Answer {
    server.ask("POST", "/synchronise").of(device).body(body).send().await
}

/// Fails unless a verdict (or, under `get`, an entry of `rejected`) reports the expected fault.
#[track_caller]
fn check(entry: &Entry, result: &Value, place: usize, own: &str) {
    let Entry { name, part, code, column, .. } = entry;
    let error = &result["error"];
    assert_eq!(error["code"].as_str(), Some(code.as_str()), "{part} {name}: {result}");
    let row = format!("/{part}/samples/{place}");
    let at = column.as_ref().map_or(row.clone(), |column| format!("{row}/{column}"));
    assert_eq!(error["at"].as_str(), Some(at.as_str()), "{part} {name}: {result}");
    assert_eq!(error["column"].as_str(), column.as_deref(), "{part} {name}: {result}");
    let detail = error["detail"].as_str().unwrap();
    assert!(!detail.is_empty() && detail.len() < 250, "{part} {name}: {result}");
    if code == "reference_missing" || *part == "get" {
        return;
    }
    match &entry.key {
        Echo::Key => assert_eq!(result["id"].as_str(), Some(own), "{part} {name}: {result}"),
        Echo::Text(text) => assert_eq!(result["id"].as_str(), Some(text.as_str()), "{part} {name}: {result}"),
        Echo::Nothing => assert!(result.get("id").is_none(), "{part} {name}: {result}"),
    }
}

/// Goal: whatever is wrong with a row, its neighbours are accepted and it gets its verdict in its place.
/// Method: every case at every place, each between valid rows, and then with `atomic`.
#[tokio::test]
async fn one_row_at_fault_costs_that_row() {
    let (server, anna) = samples(9).await;
    let mut next = 1_000;
    let entries = entries();
    assert!(entries.len() > 300, "{}", entries.len());
    for entry in &entries {
        let Entry { part, name, .. } = entry;
        // Under update and delete the invalid row exists, so the response contains it.
        let own = if *part == "add" { key(next) } else { key(9) };
        let mut neighbours: Vec<String> = (next + 1..next + 4).map(key).collect();
        next += 10;
        if *part != "add" {
            let rows: Vec<_> = neighbours.iter().map(|key| json!({ "id": key })).collect();
            server.sync(&anna, json!({ "add": { "samples": rows } })).await.ok();
        }
        let mut items: Vec<String> = neighbours.iter().map(|key| good(part, key)).collect();
        items.insert(1, entry.text.replace("KEY", &own));
        let items = items.join(",");
        let before = server.commits();
        let body = format!(r#"{{"atomic":true,"{part}":{{"samples":[{items}]}}}}"#);
        let refused = send(&server, &anna, body).await;
        assert_eq!(refused.problem(), (422, "batch_rejected".into()), "{part} {name}: {}", refused.json());
        let rejections = refused.json()["rejections"].clone();
        assert_eq!(rejections.as_array().unwrap().len(), 1, "{part} {name}: {rejections}");
        assert_eq!(server.commits(), before, "{part} {name}: something was written");

        let body = format!(r#"{{"{part}":{{"samples":[{items}]}}}}"#);
        for dry_run in ["true", "null"] {
            let body = body.replacen('{', &format!(r#"{{"dry_run":{dry_run},"#), 1);
            let result = send(&server, &anna, body).await;
            assert_eq!(result.status, 200, "{part} {name}: {}", result.json());
            let result = result.json();
            if *part == "get" {
                let got = result["get"]["samples"].as_array().unwrap().len();
                assert_eq!((got, &result["missing"]), (3, &json!({})), "{name}: {result}");
                let rejected = result["rejected"]["samples"].as_array().unwrap();
                assert_eq!(rejected.len(), 1, "{name}: {result}");
                check(entry, &rejected[0], 1, &own);
                assert_eq!(&rejected[0]["error"], &rejections[0], "{name}");
                continue;
            }
            let list = &result[part]["samples"];
            let done = ["added", "updated", "deleted"]
                [["add", "update", "delete"].iter().position(|it| it == part).unwrap()];
            assert_eq!(
                verdicts(&result, part, "samples"),
                [done, "rejected", done, done],
                "{part} {name}: {list}"
            );
            check(entry, &list[1], 1, &own);
            assert_eq!(&list[1]["error"], &rejections[0], "{part} {name}");
            // The response contains the server's row wherever the key can be read.
            let holds = *part != "add" && matches!(entry.key, Echo::Key);
            assert_eq!(list[1].get("row").is_some(), holds, "{part} {name}: {list}");
            assert_eq!(list[1].get("last_update").is_some(), holds, "{part} {name}: {list}");
        }
        assert_eq!(server.row(&anna, "samples", &own).await.is_some(), *part != "add", "{part} {name}");
        neighbours.truncate(1);
    }
    let row = server.row(&anna, "samples", &key(9)).await.unwrap();
    assert_eq!(
        (&row["text"], &row["integer"]),
        (&json!("first"), &Value::Null),
        "nothing of a rejected row is applied"
    );
    server.check_whole();
}

/// Goal: a thousand valid rows are applied whatever is between them. Method: for each part, a thousand rows
/// with every invalid case of the part among them.
#[tokio::test]
async fn a_thousand_good_rows_are_taken_beside_every_bad_one() {
    const GOOD: u64 = 1_000;
    let (server, anna) = samples(0).await;
    for part in ["add", "update", "delete", "get"] {
        let mut bad = entries();
        bad.retain(|entry| entry.part == part);
        let every = GOOD as usize / bad.len();
        let (mut items, mut bad) = (Vec::new(), bad.iter());
        let mut places = Vec::new();
        for n in 1..=GOOD {
            if (n as usize).is_multiple_of(every)
                && let Some(entry) = bad.next()
            {
                places.push((items.len(), entry));
                items.push(entry.text.replace("KEY", &key(500_000 + n)));
            }
            items.push(good(part, &key(n)));
        }
        assert!(bad.next().is_none());
        let more = if part == "delete" { r#""confirm_deletes":1000,"# } else { "" };
        let body = format!(r#"{{{more}"{part}":{{"samples":[{}]}}}}"#, items.join(","));
        let result = send(&server, &anna, body).await.ok();
        if part == "get" {
            assert_eq!(result["get"]["samples"].as_array().unwrap().len(), 0);
            assert_eq!(result["missing"]["samples"].as_array().unwrap().len(), GOOD as usize);
            let rejected = result["rejected"]["samples"].as_array().unwrap();
            assert_eq!(rejected.len(), places.len());
            for ((place, entry), result) in places.iter().zip(rejected) {
                check(entry, result, *place, "");
            }
            continue;
        }
        let list = result[part]["samples"].as_array().unwrap();
        assert_eq!(list.len(), items.len());
        let rejected = list.iter().filter(|result| result["verdict"] == "rejected").count();
        assert_eq!(rejected, places.len(), "{part}");
        for (place, entry) in &places {
            let own = list[*place]["id"].as_str().unwrap_or_default().to_owned();
            check(entry, &list[*place], *place, &own);
        }
        let held = server.manifest(&anna).await["samples"].as_array().unwrap().len();
        assert_eq!(held, if part == "delete" { 0 } else { GOOD as usize }, "{part}");
    }
    server.check_whole();
}

/// The text of one column of the only row of a response.
fn column_of(answer: &Answer, column: &str) -> String {
    #[derive(serde::Deserialize)]
    struct Body<'a> {
        #[serde(borrow)]
        get: std::collections::HashMap<String, Vec<std::collections::HashMap<String, &'a RawValue>>>,
    }
    let body: Body<'_> = serde_json::from_slice(&answer.bytes).unwrap();
    body.get["samples"][0][column].get().to_owned()
}

/// Goal: a value with several formats is accepted in each and returned in one, and sending it again changes
/// nothing. Method: every case of `lenient.json`, in both precisions, created and changed.
#[tokio::test]
async fn other_spellings_come_back_in_the_one() {
    let lenient: Value = serde_json::from_str(LENIENT).unwrap();
    for (precision, member) in [("milliseconds", "returned"), ("seconds", "in_seconds")] {
        let server = Server::of(&SAMPLES.replace("\"milliseconds\"", &format!("{precision:?}")), |_| {});
        let anna = server.device("anna", "phone");
        for (n, case) in lenient["values"].as_array().unwrap().iter().enumerate() {
            let [name, column, json] = ["name", "column", "json"].map(|part| case[part].as_str().unwrap());
            let row = format!(r#"{{"id":"{}","{column}":{json}}}"#, key(n as u64 + 1));
            for (part, verdict) in [("add", "added"), ("update", "same")] {
                let result =
                    send(&server, &anna, format!(r#"{{"{part}":{{"samples":[{row}]}}}}"#)).await.ok();
                assert_eq!(verdicts(&result, part, "samples"), [verdict], "{precision} {name}: {result}");
            }
            let asked = json!({ "get": { "samples": [key(n as u64 + 1)] } });
            let answer = server.sync(&anna, asked).await;
            assert_eq!(column_of(&answer, column), case[member].as_str().unwrap(), "{precision} {name}");
        }
        // The feed returns the same.
        let feed = server.get("/changes").of(&anna).send().await;
        let text = String::from_utf8(feed.bytes).unwrap();
        for case in lenient["values"].as_array().unwrap() {
            let spelt = format!("{}:{}", case["column"], case[member].as_str().unwrap());
            assert!(text.contains(&spelt), "{precision} {}: {spelt}", case["name"]);
        }
    }
}

/// Goal: null for what may be left out is as if it were left out. Method: every member of a request and of a row.
#[tokio::test]
async fn null_for_an_optional_member_is_absence() {
    let (server, anna) = samples(1).await;
    let body = json!({
        "add": null, "update": { "samples": null, "no_such_table": null }, "delete": { "samples": null },
        "get": null, "base": null, "sent_at": null, "atomic": null, "dry_run": null, "pull": null,
        "keep_lock": null, "confirm_deletes": null,
    });
    let result = server.sync(&anna, body).await.ok();
    let empty = server.sync(&anna, json!({})).await.ok();
    assert_eq!(result, empty);
    let row = json!({ "id": key(2), "text": null, "last_update": null, "_base": null });
    let result = server.sync(&anna, json!({ "add": { "samples": [row] } })).await.ok();
    assert_eq!(verdicts(&result, "add", "samples"), ["added"]);
    let gone = json!({ "id": key(2), "last_update": null, "_base": null });
    let result = server.sync(&anna, json!({ "delete": { "samples": [gone] }, "update": null })).await.ok();
    assert_eq!(verdicts(&result, "delete", "samples"), ["deleted"]);
}

/// Goal: a device that begins at 0 receives everything, as if it had no cursor.
#[tokio::test]
async fn zero_is_the_beginning() {
    let (server, anna) = samples(3).await;
    let plain = server.get("/changes").of(&anna).send().await;
    let zero = server.get("/changes?since=0").of(&anna).send().await;
    assert_eq!(zero.ok()["type"], "full");
    assert_eq!(zero.bytes, plain.bytes);
    let lines = |query: &str| server.get(query).of(&anna).header("accept", "application/x-ndjson");
    assert_eq!(lines("/changes?since=0").send().await.bytes, lines("/changes").send().await.bytes);
    for batch in [
        json!({ "pull": true }),
        json!({}),
        json!({ "update": { "samples": [{ "id": key(1), "text": "b" }] } }),
    ] {
        let mut with = batch.clone();
        with["base"] = json!(0);
        with["dry_run"] = json!(true);
        let mut without = batch;
        without["dry_run"] = json!(true);
        let result = server.sync(&anna, with).await.ok();
        assert_eq!(result, server.sync(&anna, without).await.ok());
    }
    let result = server.sync(&anna, json!({ "base": 0, "pull": true })).await.ok();
    assert_eq!(
        (&result["changes"]["type"], result["changes"]["add"]["samples"].as_array().unwrap().len()),
        (&json!("full"), 3)
    );
}

/// Goal: rows at fault are rows, to every limit and to a key that makes a request one.
#[tokio::test]
async fn rows_at_fault_count_and_are_told_again() {
    let server = Server::of(SAMPLES, |settings| {
        settings.limits.rows_max = 3;
        settings.limits.get_keys_max = 2;
        settings.limits.batch_bytes_max = 20_000;
    });
    let anna = server.device("anna", "phone");
    let post = |body: &str| server.ask("POST", "/synchronise").of(&anna).body(body);
    let answer = post(r#"{"add":{"samples":[1,2,3,4]}}"#).send().await;
    assert_eq!(answer.fault(), (422, "too_many_rows".into(), "/add/samples/3".into()));
    let answer = post(r#"{"get":{"samples":[1,2,3]}}"#).send().await;
    assert_eq!(answer.fault(), (422, "too_many_rows".into(), "/get/samples/2".into()));
    // What a row at fault had been read to is forgotten with it.
    let long = "x".repeat(15_000);
    let row = |n: u64| format!(r#"{{"id":"{}","text":"{long}","integer":"x"}}"#, key(n));
    let body = format!(r#"{{"add":{{"samples":[{},{},{}]}}}}"#, row(1), row(2), row(3));
    let result = post(&body).send().await.ok();
    assert_eq!(verdicts(&result, "add", "samples"), ["rejected"; 3]);

    let body = format!(r#"{{"add":{{"samples":[{{"id":"{}"}},{{"id":"\ud83d"}}]}}}}"#, key(1));
    let first = post(&body).header("idempotency-key", "k").send().await;
    assert_eq!(verdicts(&first.ok(), "add", "samples"), ["added", "rejected"]);
    let again = post(&body).header("idempotency-key", "k").send().await;
    assert_eq!((again.header("idempotency-replayed"), &again.bytes), (Some("true"), &first.bytes));
    let other = body.replace("ud83d", "ud83e");
    let reused = post(&other).header("idempotency-key", "k").send().await;
    assert_eq!(reused.problem(), (422, "idempotency_key_reused".into()));
    let held = server.manifest(&anna).await;
    assert_eq!(held["samples"].as_array().unwrap().len(), 1);
}

/// Goal: a rejected parent is no parent. Its children get the verdict that they always got.
#[tokio::test]
async fn a_child_of_a_row_at_fault_names_nothing() {
    let (server, anna) = samples(0).await;
    let rows = json!([
        { "id": key(1), "parent": key(2) },
        { "id": key(2), "integer": "x" },
        { "id": key(3), "parent": key(1) },
        { "id": key(4) },
    ]);
    let result = server.sync(&anna, json!({ "add": { "samples": rows } })).await.ok();
    assert_eq!(verdicts(&result, "add", "samples"), ["rejected", "rejected", "rejected", "added"]);
    let list = result["add"]["samples"].as_array().unwrap();
    let codes: Vec<_> =
        list.iter().map(|result| result["error"]["code"].as_str().unwrap_or("none")).collect();
    assert_eq!(codes, ["reference_missing", "wrong_type", "reference_missing", "none"]);
    server.check_whole();
}

/// Goal: impossible names are unknown names of the contract, and faults outside of rows are refused with
/// their position. None of them is "no JSON".
#[tokio::test]
async fn half_an_emoji_outside_of_rows_is_refused_at_its_place() {
    let (server, anna) = samples(1).await;
    for (body, code, at) in [
        (r#"{"\ud83d":1}"#, "unknown_member", "/\u{fffd}"),
        (r#"{"add":{"\ud83d":[{}]}}"#, "unknown_table", "/add/\u{fffd}"),
        (r#"{"add":{"samples":[{"id":"\ud83d","\ude00":1}]}}"#, "unknown_column", "/add/samples/0/\u{fffd}"),
        (r#"{"add":{"samples":[{"integer":"x","nme":1}]}}"#, "unknown_column", "/add/samples/0/nme"),
        (r#"{"sent_at":"\ud83d"}"#, "invalid_value", "/sent_at"),
        (r#"{"base":1e999}"#, "invalid_value", "/base"),
        (r#"{"confirm_deletes":9223372036854775808}"#, "wrong_type", "/confirm_deletes"),
        (r#"{"confirm_deletes":18446744073709551616}"#, "wrong_type", "/confirm_deletes"),
    ] {
        let answer = refused(&server, server.ask("POST", "/synchronise").of(&anna).body(body), body).await;
        assert_eq!(answer.fault(), (422, code.into(), at.into()), "{body}: {}", answer.json());
    }
    let result =
        send(&server, &anna, r#"{"add":{"\ud83d":[]},"confirm_deletes":9223372036854775807}"#.into()).await;
    assert_eq!(result.status, 200);
    // Invalid JSON among invalid rows is still invalid JSON, and reported with its position.
    let body = "{\"add\":{\"samples\":[{\"id\":7},\n{\"id\":8},,]}}";
    let answer = refused(&server, server.ask("POST", "/synchronise").of(&anna).body(body), body).await;
    assert_eq!((answer.problem(), &answer.json()["line"]), ((400, "malformed_json".into()), &json!(2)));
    let body = b"{\"add\":{\"samples\":[{\"id\":7},\n\"\xff\"]}}".to_vec();
    let answer = refused(&server, server.ask("POST", "/synchronise").of(&anna).body(body), "UTF-8").await;
    assert_eq!(
        (answer.problem(), answer.json()["column"].clone()),
        ((400, "malformed_json".into()), json!(2))
    );
}

/// Goal: a refusal is short, whatever was sent. Method: names and values of a megabyte, wherever a problem repeats one.
#[tokio::test]
async fn a_problem_repeats_no_more_than_the_beginning() {
    let server = Server::new();
    let phone = server.device("anna", "phone");
    let long = "ü".repeat(500_000);
    for body in [
        json!({ &long: 1 }),
        json!({ "base": long }),
        json!({ "add": { &long: [{}] } }),
        json!({ "add": { "lists": [{ "lid": key(1), &long: 1 }] } }),
        json!({ "sent_at": long }),
        json!({ "atomic": long }),
        json!({ "atomic": true, "add": { "lists": [{ "lid": long, "title": "x" }] } }),
    ] {
        let refused = server.ask("POST", "/synchronise").of(&phone).json(&body).send().await;
        assert_eq!(refused.status, 422);
        assert!(refused.bytes.len() < 4_096, "{} bytes", refused.bytes.len());
    }
}

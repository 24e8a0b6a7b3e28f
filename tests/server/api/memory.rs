use std::sync::Arc;

use rollcall::http::Permit;
use serde_json::{Value, json};

use rollcall_testkit::app::{Server, key, verdicts};

/// A bound that a few hundred rows reach.
const BYTES_MAX: usize = 200_000;

fn small() -> Server {
    Server::with(|settings| {
        settings.limits.batch_bytes_max = BYTES_MAX;
        settings.limits.row_bytes_max = 10_000;
    })
}

/// Goal: what a body is once it is read stays within the bound, whatever it is made of. Method: bodies that are
/// small as they are sent, and would be many times as large as rows; each is refused, and nothing is written.
#[tokio::test]
async fn a_body_that_would_take_too_much_memory_is_refused() {
    let server = small();
    let phone = server.device("anna", "phone");
    let rows = |count: u64, columns: Value| -> Vec<Value> {
        let row = |number| {
            let mut row = columns.clone();
            row["id"] = json!(key(number));
            row
        };
        (0..count).map(row).collect()
    };
    // A row in memory has a value for each declared column, whether it was sent or not.
    let tiny = json!({ "add": { "things": rows(2_000, json!({})) } });
    let keys: Vec<String> = (0..4_000).map(key).collect();
    let texts = json!({ "add": { "things": rows(30, json!({ "text": "x".repeat(9_000) })) } });
    let wide = json!({ "add": { "things": rows(1, json!({ "extra": vec![0; 30_000] })) } });
    let members: serde_json::Map<String, Value> =
        (0..8_000).map(|number| (number.to_string(), json!(0))).collect();
    let many_members = json!({ "add": { "things": rows(1, json!({ "extra": members })) } });
    let mut deep = json!(0);
    for _ in 0..40 {
        deep = json!([deep]);
    }
    let deep = json!({ "add": { "things": rows(1, json!({ "extra": deep })) } });
    for (body, code) in [
        (tiny, "too_many_rows"),
        (json!({ "delete": { "things": keys } }), "too_many_rows"),
        (texts, "too_many_rows"),
    ] {
        let refused = server.sync(&phone, body).await;
        assert_eq!(refused.problem(), (422, code.into()), "{}", refused.json());
    }
    for (body, code) in [(wide, "row_too_large"), (many_members, "row_too_large"), (deep, "invalid_value")] {
        let result = server.sync(&phone, body).await.ok();
        assert_eq!(result["add"]["things"][0]["error"]["code"], code, "{result}");
    }
    let packed = server.ask("POST", "/synchronise").of(&phone).header("content-encoding", "gzip").body("{}");
    assert_eq!(packed.send().await.problem(), (415, "unsupported_media_type".into()));
    assert_eq!(server.manifest(&phone).await["things"], json!([]));
}

/// Goal: a small request for much data is bounded as well. Method: many large rows exist; all are requested
/// at once, and all are changed at once; then some at a time.
#[tokio::test]
async fn a_request_that_touches_too_much_is_refused() {
    let server = small();
    let phone = server.device("anna", "phone");
    let keys: Vec<String> = (0..60).map(key).collect();
    for keys in keys.chunks(10) {
        let row = |key: &String| json!({ "id": key, "text": "x".repeat(9_000) });
        let rows: Vec<Value> = keys.iter().map(row).collect();
        server.sync(&phone, json!({ "add": { "things": rows } })).await.ok();
    }
    let touch = |keys: &[String]| {
        let rows: Vec<Value> = keys.iter().map(|key| json!({ "id": key, "whole": 7 })).collect();
        json!({ "update": { "things": rows } })
    };
    let before = server.version_of("anna");
    for body in [json!({ "get": { "things": keys } }), touch(&keys)] {
        let refused = server.sync(&phone, body).await;
        assert_eq!(refused.problem(), (422, "too_many_rows".into()), "{}", refused.json());
    }
    assert_eq!(server.version_of("anna"), before);
    for keys in keys.chunks(10) {
        server.sync(&phone, touch(keys)).await.ok();
        let result = server.sync(&phone, json!({ "get": { "things": keys } })).await.ok();
        assert_eq!(result["get"]["things"].as_array().unwrap().len(), 10);
    }
}

/// Goal: a page of large rows ends before it takes too much, and the pages make a whole. Method: pages of 60 rows of
/// 9 KB, within 100 KB.
#[tokio::test]
async fn a_page_of_large_rows_ends_early() {
    let server = Server::with(|settings| settings.sync.changes_bytes_max = 100_000);
    let (phone, tablet) = (server.device("anna", "phone"), server.device("anna", "tablet"));
    let rows: Vec<Value> = (0..60).map(|n| json!({ "id": key(n), "text": "x".repeat(9_000) })).collect();
    server.sync(&phone, json!({ "add": { "things": rows } })).await.ok();
    let (mut path, mut pages, mut result) = ("/changes".to_owned(), 0, 0);
    loop {
        let page = server.get(&path).of(&tablet).send().await;
        assert!(page.bytes.len() < 130_000, "{} bytes", page.bytes.len());
        let page = page.ok();
        result += page["add"]["things"].as_array().unwrap().len();
        pages += 1;
        match page["next"].as_str() {
            Some(next) => path = format!("/changes?next={next}"),
            None => break,
        }
    }
    assert_eq!((result, pages), (60, 6));
}

const MIB: usize = 1024 * 1024;

/// A server with some 8 MiB for all requests together.
fn tight() -> Server {
    Server::with(|settings| {
        settings.limits.body_bytes_max = MIB;
        settings.limits.batch_bytes_max = MIB;
        settings.limits.row_bytes_max = MIB;
        settings.sync.changes_bytes_max = MIB;
        settings.memory.ready_bytes_max = 0;
        settings.auth.password_hashes_max = 1;
        settings.memory.memory_bytes_max = 19 * MIB + 8 * MIB;
    })
}

/// What others hold: as much as large requests may have.
fn filled(server: &Server) -> Permit {
    let others = server.app.memory.permit(None);
    let pieces = (0..1_000).take_while(|_| others.grow(64 * 1024).is_ok()).count();
    assert_eq!(pieces * 64 * 1024, 6 * MIB, "three quarters");
    others
}

/// Waits until requests hold this much: the writing thread releases its part a moment after the response.
async fn holds(server: &Server, bytes: usize) {
    let begun = std::time::Instant::now();
    while server.app.memory.used() != bytes {
        assert!(begun.elapsed().as_secs() < 10, "{} bytes are held, not {bytes}", server.app.memory.used());
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
}

/// Goal: if the memory is used up, large requests are refused before they use it, small ones succeed, and
/// everything continues once there is memory again. Method: other requests hold all that large requests may
/// have; every kind of large and small request; at the end nothing is held.
#[tokio::test]
async fn large_requests_wait_for_memory_and_small_ones_do_not() {
    let server = tight();
    let (phone, tablet) = (server.device("anna", "phone"), server.device("anna", "tablet"));
    let row = |n: u64, bytes: usize| json!({ "id": key(n), "text": "x".repeat(bytes) });
    let large = json!({ "add": { "things": [row(9, 700_000)] } });
    let small = json!({ "add": { "things": [row(1, 900)] }, "get": { "things": [key(1)] } });
    server.sync(&phone, json!({ "add": { "things": [row(2, 900_000)] } })).await.ok();
    server.sync(&phone, json!({ "add": { "things": [row(3, 900_000)] } })).await.ok();
    let wanted = json!({ "get": { "things": [key(2)] } });
    let asks = [
        server.ask("POST", "/synchronise").of(&phone).json(&large),
        server.ask("POST", "/synchronise").of(&phone).json(&large).header("idempotency-key", "k"),
        server.ask("POST", "/synchronise").of(&phone).json(&wanted),
        server.get("/changes").of(&tablet),
    ];
    let others = filled(&server);
    let (held, before) = (server.app.memory.used(), server.app.metrics.memory_refused.get());
    for ask in &asks {
        let refused = ask.clone().send().await;
        assert_eq!(refused.problem(), (503, "busy".into()), "{}", refused.json());
        assert_eq!(refused.header("retry-after"), Some("2"));
        holds(&server, held).await; // what was refused holds nothing
    }
    assert_eq!(server.app.metrics.memory_refused.get(), before + 4);
    let version = server.version_of("anna");
    server.sync(&phone, small).await.ok();
    assert_eq!(version + 1, server.version_of("anna"), "what was refused was not written");
    assert_eq!(server.manifest(&phone).await["things"].as_array().unwrap().len(), 3);
    server.get("/changes").of(&tablet).header("accept", "application/x-ndjson").send().await.ok();
    drop(others);
    for ask in &asks {
        ask.clone().send().await.ok();
    }
    holds(&server, 0).await;
}

/// Goal: a request that there is no memory for has no effect on the sync that it belongs to, nor waits for another's.
/// Method: the lock is held by the device that sends, and by another.
#[tokio::test]
async fn a_body_without_memory_ends_no_sync() {
    let server = tight();
    let (phone, tablet) = (server.device("anna", "phone"), server.device("anna", "tablet"));
    let large = json!({ "add": { "things": [{ "id": key(9), "text": "x".repeat(700_000) }] } });
    server.ask("POST", "/lock").of(&phone).send().await.ok();
    let others = filled(&server);
    for device in [&phone, &tablet] {
        let refused = server.sync(device, large.clone()).await;
        assert_eq!(refused.problem(), (503, "busy".into()), "{}", refused.json());
    }
    let lock = server.get("/lock").of(&phone).send().await.ok();
    assert_eq!(lock["mine"], json!(true), "{lock}");
    drop(others);
    server.sync(&phone, large).await.ok();
}

/// Goal: a body of many rows that takes many times its length once it is read is drawn for as it grows. Method: others
/// leave room for such a body, and not for its rows; a value of JSON with many members likewise.
#[tokio::test]
async fn rows_are_drawn_for_as_they_are_read() {
    let server = tight();
    let phone = server.device("anna", "phone");
    let rows: Vec<Value> = (0..1_500).map(|n| json!({ "id": key(n) })).collect();
    let members: serde_json::Map<String, Value> = (0..5_000).map(|n| (n.to_string(), json!(0))).collect();
    let bodies = [
        json!({ "add": { "things": rows } }),
        json!({ "add": { "things": [{ "id": key(7_000), "extra": members }] } }),
    ];
    for body in bodies {
        let bytes = body.to_string().len();
        let others = filled(&server);
        others.shrink(3 * bytes);
        let refused = server.sync(&phone, body.clone()).await;
        assert_eq!(refused.problem(), (503, "busy".into()), "{bytes} bytes: {}", refused.json());
        drop(others);
        server.sync(&phone, body).await.ok();
        holds(&server, 0).await;
    }
}

/// Goal: the response to a small request is bounded as well, before anything is written. Method: a text that
/// is six times as long in JSON.
#[tokio::test]
async fn an_answer_that_would_be_too_long_is_refused() {
    let server = tight();
    let phone = server.device("anna", "phone");
    for n in 0..2 {
        let text = "\u{1}".repeat(150_000);
        server.sync(&phone, json!({ "add": { "things": [{ "id": key(n), "text": text }] } })).await.ok();
    }
    let before = server.version_of("anna");
    let body = json!({
        "get": { "things": [key(0), key(1)] }, "add": { "lists": [{ "lid": key(5), "title": "x" }] },
    });
    let refused = server.sync(&phone, body).await;
    assert_eq!(refused.problem(), (422, "too_many_rows".into()), "{}", refused.json());
    assert_eq!(server.version_of("anna"), before);
    server.sync(&phone, json!({ "get": { "things": [key(0)] } })).await.ok();
    holds(&server, 0).await;
}

/// Goal: a response counts until it is sent. Method: it is kept, and dropped.
#[tokio::test]
async fn an_answer_counts_until_it_has_left() {
    use http_body_util::BodyExt as _;
    use tower::ServiceExt as _;
    let server = tight();
    let phone = server.device("anna", "phone");
    for n in 0..3 {
        let row = json!({ "id": key(n), "text": "x".repeat(200_000) });
        server.sync(&phone, json!({ "add": { "things": [row] } })).await.ok();
    }
    for (path, least) in [("/changes", 600_000), ("/fetch?lock=false", 100)] {
        let request = http::Request::get(path).header("authorization", format!("Bearer {}", phone.token));
        let request = request.body(http_body_util::Full::new(bytes::Bytes::new())).unwrap();
        let routes = warp::service(rollcall::http::routes(Arc::clone(&server.app)));
        let (head, body) = routes.oneshot(request).await.unwrap().into_parts();
        let held = server.app.memory.used();
        let bytes = body.collect().await.unwrap().to_bytes();
        assert!(held >= least && held >= bytes.len() && held < bytes.len() + 1_000, "{path}: {held}");
        drop(head);
        holds(&server, 0).await;
    }
}

/// Goal: a response contains the contents of a row once, however often the request names the row. Method:
/// stale edits of one large row, then the same with the row under `get` several times; the response's bytes
/// are counted.
#[tokio::test]
async fn a_row_is_told_once() {
    const LONG: usize = 20_000;
    let server = Server::new();
    let (phone, tablet) = (server.device("anna", "phone"), server.device("anna", "tablet"));
    let row = json!({ "id": key(1), "title": "x".repeat(LONG) });
    let base = server.sync(&phone, json!({ "add": { "ours": [row] } })).await.ok()["version"].clone();
    let row = json!({ "id": key(1), "title": "y".repeat(LONG) });
    server.sync(&phone, json!({ "base": base, "update": { "ours": [row] } })).await.ok();
    let mine = |n: u64| json!({ "id": key(1), "title": format!("mine {n}") });
    let edits: Vec<Value> = (0..200).map(mine).collect();
    let stale = json!({ "base": base, "update": { "ours": edits } });
    let answer = server.sync(&tablet, stale.clone()).await;
    assert_eq!(verdicts(&answer.ok(), "update", "ours"), ["kept"; 200]);
    assert!(answer.bytes.len() < LONG + 200 * 250, "{} bytes", answer.bytes.len());
    assert_eq!(answer.ok()["update"]["ours"][0]["row"]["title"], "y".repeat(LONG));
    let conflicts = server.get("/conflicts").of(&phone).send().await.ok();
    assert_eq!(conflicts["conflicts"].as_array().unwrap().len(), 1);
    assert_eq!(conflicts["conflicts"][0]["incoming"]["row"]["title"], "mine 199");
    assert_eq!(conflicts["conflicts"][0]["id"], answer.ok()["update"]["ours"][7]["conflict"]);

    let mut asked = stale;
    asked["get"] = json!({ "ours": [key(1), key(1), key(2), key(2)] });
    let answer = server.sync(&tablet, asked).await;
    assert!(answer.bytes.len() < LONG + 200 * 250, "{} bytes", answer.bytes.len());
    let result = answer.ok();
    assert_eq!(result["get"]["ours"].as_array().unwrap().len(), 1);
    assert_eq!(result["missing"]["ours"], json!([key(2), key(2)]));
    assert!(result["update"]["ours"].as_array().unwrap().iter().all(|result| result.get("row").is_none()));
}

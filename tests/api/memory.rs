use serde_json::{Value, json};

use crate::app::{Server, key};

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
    // A row has a place for each declared column, whether it comes or not.
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
        let told = server.sync(&phone, body).await.ok();
        assert_eq!(told["add"]["things"][0]["error"]["code"], code, "{told}");
    }
    let packed = server.ask("POST", "/synchronise").of(&phone).header("content-encoding", "gzip").body("{}");
    assert_eq!(packed.send().await.problem(), (415, "unsupported_media_type".into()));
    assert_eq!(server.manifest(&phone).await["things"], json!([]));
}

/// Goal: a small request for much is bounded as well. Method: many large rows are there; all are asked for at once,
/// and all are touched at once; then some at a time.
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
        let told = server.sync(&phone, json!({ "get": { "things": keys } })).await.ok();
        assert_eq!(told["get"]["things"].as_array().unwrap().len(), 10);
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
    let (mut path, mut pages, mut told) = ("/changes".to_owned(), 0, 0);
    loop {
        let page = server.get(&path).of(&tablet).send().await;
        assert!(page.bytes.len() < 130_000, "{} bytes", page.bytes.len());
        let page = page.ok();
        told += page["add"]["things"].as_array().unwrap().len();
        pages += 1;
        match page["next"].as_str() {
            Some(next) => path = format!("/changes?next={next}"),
            None => break,
        }
    }
    assert_eq!((told, pages), (60, 6));
}

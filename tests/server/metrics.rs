//! `GET /metrics`: what a server counts while it works.

use rollcall_testkit::app;

use app::{Server, key};
use rollcall::config::Secret;
use serde_json::json;

/// The value of the line that begins so.
async fn count(server: &Server, line: &str) -> f64 {
    let answer = server.get("/metrics").send().await;
    let text = String::from_utf8(answer.bytes).unwrap();
    let found = text.lines().find_map(|result| result.strip_prefix(line)?.strip_prefix(' ')?.parse().ok());
    found.unwrap_or_else(|| panic!("{line} is not in\n{text}"))
}

/// Goal: an operator can trust the figures. Method: two devices sync, one conflict, a refusal, a rehearsal.
#[tokio::test]
async fn what_happens_is_counted_once() {
    let server = Server::new();
    let (phone, tablet) = (server.device("anna", "phone"), server.device("anna", "tablet"));
    let before = count(&server, "rollcall_commits_total").await;
    let add =
        json!({ "add": { "lists": [{ "lid": key(1), "title": "x" }, { "lid": key(2), "title": "y" }] } });
    let result = server.sync(&phone, add.clone()).await.ok();
    assert_eq!(count(&server, "rollcall_commits_total").await, before + 1.0);
    assert_eq!(count(&server, "rollcall_verdicts_total{verdict=\"added\"}").await, 2.0);

    let mut rehearsed = add;
    rehearsed["dry_run"] = json!(true);
    server.sync(&phone, rehearsed).await.ok();
    assert_eq!(count(&server, "rollcall_verdicts_total{verdict=\"added\"}").await, 2.0, "a rehearsal");

    // The tablet never saw the row that it changes: a conflict, which it loses by its time.
    let base = result["version"].as_u64().unwrap() - 1;
    let late = json!({ "base": base, "update": { "lists": [{ "lid": key(1), "title": "z", "last_update": "2020-01-01T00:00:00.000Z" }] } });
    assert_eq!(server.sync(&tablet, late).await.ok()["update"]["lists"][0]["verdict"], "kept");
    assert_eq!(count(&server, "rollcall_verdicts_total{verdict=\"kept\"}").await, 1.0);
    assert_eq!(count(&server, "rollcall_conflicts_total{table=\"lists\",policy=\"newest\"}").await, 1.0);

    server.fetch(&phone, "").await.ok();
    assert_eq!(server.fetch(&tablet, "").await.status, 423);
    assert_eq!(count(&server, "rollcall_lock_wait_seconds_count{outcome=\"busy\"}").await, 1.0);
    assert_eq!(count(&server, "rollcall_lock_wait_seconds_count{outcome=\"taken\"}").await, 4.0);

    server.get("/changes").of(&tablet).send().await.ok();
    assert_eq!(count(&server, "rollcall_feed_rows_total").await, 2.0);
    assert!(count(&server, "rollcall_wal_bytes").await > 0.0);
}

#[tokio::test]
async fn a_token_keeps_the_counts_private() {
    let server = Server::with(|settings| {
        settings.operator.metrics_token = Some(Secret::from("sesame sesame 16"));
    });
    let phone = server.device("anna", "phone");
    assert_eq!(server.get("/metrics").send().await.problem(), (401, "unauthorized".into()));
    assert_eq!(server.get("/metrics").of(&phone).send().await.status, 401);
    let open = |token: &str| server.get("/metrics").header("authorization", format!("Bearer {token}"));
    assert_eq!(open("sesame sesame 17").send().await.status, 401);
    assert_eq!(open("sesame sesame 16").send().await.status, 200);
    assert!(!format!("{:?}", server.app.settings).contains("sesame"));
}

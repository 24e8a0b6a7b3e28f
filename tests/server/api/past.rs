//! What is stored of an owner apart from its live rows has its own bound.

use rollcall::storage::quota::RECORD_BYTES;

use super::*;

/// Two devices that have seen the same rows, and the bytes that the owner's past takes.
async fn two(server: &Server) -> (Device, Device) {
    let phone = server.device("anna", "phone");
    let tablet = server.device("anna", "tablet");
    let rows: Vec<Value> = (0..20).map(|n| json!({ "lid": key(n), "title": "first" })).collect();
    server.sync(&phone, json!({ "add": { "lists": rows } })).await.ok();
    (phone, tablet)
}

fn edit(n: u64, colour: &str, base: u64) -> Value {
    json!({ "base": base, "update": { "lists": [{ "lid": key(n), "colour": colour }] } })
}

/// Goal: a full past refuses conflicts, and nothing else. Method: stale edits until one is refused; then
/// every other kind of write; then the conflicts expire.
#[tokio::test]
async fn a_full_past_refuses_conflicts_and_nothing_else() {
    let server = Server::with(|settings| settings.limits.owner_past_bytes_max = 6_000);
    let (phone, tablet) = two(&server).await;
    let seen = server.version_of("anna");
    let long = "x".repeat(300);
    let mut noted = 0;
    let refusal = loop {
        server.sync(&phone, edit(noted, &long, server.version_of("anna"))).await.ok();
        server.turn(1_000);
        let stale = server.ask("POST", "/synchronise").of(&tablet).json(&edit(noted, "mine", seen));
        let before = server.dump();
        let result = stale.send().await;
        if result.status != 200 {
            assert_eq!(server.dump(), before, "nothing was written");
            break result;
        }
        noted += 1;
        assert!(noted < 20, "6 kB have room for some conflicts of 500 B");
    };
    assert_eq!(refusal.problem(), (507, "quota_exceeded".into()));
    assert!(noted > 5, "{noted}");
    let bytes = "SELECT coalesce(sum(octet_length(base)), 0) + coalesce(sum(octet_length(stored)), 0) \
                 + coalesce(sum(octet_length(incoming)), 0) FROM rollcall_conflict";
    assert!(server.number(bytes) + (noted * RECORD_BYTES) as i64 <= 6_000);

    // An edit, a new row, a deletion and a request under a key are as ever.
    let now = server.version_of("anna");
    server.sync(&tablet, edit(19, "mine", now)).await.ok();
    server.sync(&tablet, json!({ "add": { "lists": [{ "lid": key(50), "title": "new" }] } })).await.ok();
    let keyed = |body: Value| {
        server.ask("POST", "/synchronise").of(&phone).header("idempotency-key", "once").json(&body)
    };
    let add = json!({ "add": { "lists": [{ "lid": key(51), "title": "new" }] } });
    keyed(add.clone()).send().await.ok();
    let again = keyed(add).send().await;
    assert_eq!(again.header("idempotency-replayed"), Some("true"), "the answer at hand is kept");
    let keys: Vec<String> = (0..20).map(key).collect();
    let all = json!({ "delete": { "lists": keys }, "base": server.version_of("anna") });
    server.sync(&phone, all).await.ok();

    // Once the conflicts have gone, there is room.
    server.sql("DELETE FROM rollcall_conflict");
    let now = server.app.clock.now();
    let terms = rollcall::purge::terms(&server.app.settings.sync, 6_000, now);
    app::engine::pg::apart(|| rollcall::purge::run_all(&*server.app.storage, &terms, &mut |_, _| true))
        .unwrap();
    server.sync(&phone, edit(50, "mine", server.version_of("anna"))).await.ok();
    server.turn(1_000);
    server.sync(&tablet, edit(50, "late", seen)).await.ok();
    assert_eq!(server.number("SELECT count(*) FROM rollcall_conflict"), 1);
}

/// Goal: only a batch whose conflicts are all of deletions may go beyond the bound. Method: the past is full;
/// a deletion that loses goes alone, then beside an edit that loses.
#[tokio::test]
async fn a_deletion_in_a_full_past_takes_no_edit_with_it() {
    let server = Server::with(|settings| settings.limits.owner_past_bytes_max = 6_000);
    let (phone, tablet) = two(&server).await;
    let seen = server.version_of("anna");
    for n in 0..20 {
        server.sync(&phone, edit(n, &"x".repeat(300), server.version_of("anna"))).await.ok();
    }
    server.turn(1_000);
    let mut free = 0;
    while server.sync(&tablet, edit(free, "mine", seen)).await.status == 200 {
        free += 1;
        assert!(free < 18, "6 kB have room for some conflicts of 500 B");
    }
    // The deletions were made before the edits, so they lose.
    let deletion = |n: u64| json!({ "base": seen, "delete": { "lists": [{ "lid": key(n), "last_update": "2013-05-01T15:42:50.343Z" }] } });
    let alone = server.sync(&tablet, deletion(free)).await;
    alone.ok();
    assert_eq!(alone.json()["delete"]["lists"][0]["verdict"], "kept");
    assert!(alone.json()["delete"]["lists"][0]["conflict"].is_string());
    let mut both = deletion(free + 1);
    both["update"] = edit(free + 2, "mine", seen)["update"].clone();
    let before = server.dump();
    assert_eq!(server.sync(&tablet, both).await.problem(), (507, "quota_exceeded".into()));
    assert_eq!(server.dump(), before, "nothing was written");
}

/// Goal: history and then responses make room, and the size of the past stays below its bound. Method: the
/// same rows are edited again and again, under a key each time.
#[tokio::test]
async fn history_and_answers_make_room() {
    const MAX: i64 = 8_000;
    let server = Server::with(|settings| {
        settings.limits.owner_past_bytes_max = MAX as u64;
        settings.sync.idempotency_keys_max = 4;
    });
    let (phone, _) = two(&server).await;
    let count = |table: &str| server.number(&format!("SELECT count(*) FROM {table}"));
    let (mut history, mut answers) = (0, 0);
    for round in 0..60 {
        let body = edit(round % 20, &format!("{round:0200}"), server.version_of("anna"));
        let ask = server.ask("POST", "/synchronise").of(&phone).header("idempotency-key", round).json(&body);
        ask.send().await.ok();
        history = history.max(count("rollcall_history"));
        answers = answers.max(count("rollcall_answer"));
        let sums = "SELECT sum(past_tombstones * 200 + past_history + past_conflicts + past_answers) FROM rollcall_owner";
        let past = server.number(&format!("SELECT CAST(({sums}) AS bigint)"));
        assert!(past <= MAX, "{past} bytes after {round} edits");
    }
    assert_eq!(answers, 4, "history goes first");
    assert!((5..30).contains(&history), "{history} states");
    let oldest = server.number("SELECT min(version) FROM rollcall_history");
    assert!(oldest > 20, "the oldest went first: {oldest}");
}

/// Goal: an edit whose replaced state has no room goes without it. Method: a past with room for small states,
/// and edits of a row that is longer than that.
#[tokio::test]
async fn a_state_without_room_is_not_kept() {
    let server = Server::with(|settings| settings.limits.owner_past_bytes_max = 1_500);
    let (phone, _) = two(&server).await;
    for colour in ["a", "b"] {
        server.sync(&phone, edit(0, colour, server.version_of("anna"))).await.ok();
    }
    assert!(server.number("SELECT count(*) FROM rollcall_history") > 0, "small states have room");
    for colour in ["x".repeat(3_000).as_str(), "short"] {
        server.sync(&phone, edit(0, colour, server.version_of("anna"))).await.ok();
    }
    let long = "SELECT count(*) FROM rollcall_history WHERE octet_length(columns) > 1500";
    assert_eq!(server.number(long), 0);
}

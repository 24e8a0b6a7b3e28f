//! One device's own changes: late copies, edits within one unit of time, two phones with one token, and times that
//! rise faster than the clock.

use rollcall_testkit::feed as support;

use serde_json::{Value as Json, json};
use support::{Device, POLICIES, TABLES, World, key};

/// How requests are written.
#[derive(Clone, Copy, Debug)]
struct Style {
    seconds: bool,
    sent_at: bool,
    last_update: bool,
}

fn styles() -> impl Iterator<Item = Style> {
    (0..8).map(|bits| Style { seconds: bits & 1 > 0, sent_at: bits & 2 > 0, last_update: bits & 4 > 0 })
}

/// The name of an owner of its own.
fn owner(table: &str, style: Style) -> String {
    format!("{table}-{}-{}-{}", style.seconds, style.sent_at, style.last_update)
}

fn world(seconds: bool) -> World {
    let precision = if seconds { "seconds" } else { "milliseconds" };
    World::start(&format!("timestamps = \"{precision}\"\n{POLICIES}"))
}

/// A change of the one row, as a device writes it at this moment.
fn change(world: &World, style: Style, set: &str, table: &str, title: Option<&str>, base: &Json) -> Json {
    let mut row = json!({ "id": key(1) });
    if let Some(title) = title {
        row["title"] = json!(title);
        row["body"] = Json::Null;
    }
    if !base.is_null() {
        row["_base"] = base.clone();
    }
    if style.last_update {
        row["last_update"] = json!(world.hands.at(0));
    }
    let mut body = json!({ set: { table: [row] } });
    if style.sent_at {
        body["sent_at"] = json!(world.hands.at(0));
    }
    body
}

/// Sends a body that changes one row; returns the verdict, and the row's time.
#[track_caller]
fn send(world: &World, device: &Device, body: &Json) -> (String, Json, Json) {
    let answer = world.sync(device, body).ok();
    let result = ["add", "update", "delete"]
        .into_iter()
        .flat_map(|set| answer[set].as_object().unwrap().values())
        .flat_map(|list| list.as_array().unwrap())
        .next()
        .unwrap();
    (result["verdict"].as_str().unwrap().to_owned(), result["last_update"].clone(), result.clone())
}

fn title(world: &World, device: &Device, table: &str) -> Option<String> {
    let row = world.rows(device).remove(&(table.to_owned(), key(1)))?;
    row["title"].as_str().map(str::to_owned)
}

fn conflicts(world: &World, device: &Device) -> Vec<Json> {
    world.get(device, "/conflicts").ok()["conflicts"].as_array().unwrap().clone()
}

/// The titles in all conflicts, on the side that lost.
fn lost(world: &World, device: &Device) -> Vec<Json> {
    let loser = |noted: &Json| match noted["outcome"].as_str() {
        Some("overwritten") => noted["stored"]["row"]["title"].clone(),
        _ => noted["incoming"]["row"]["title"].clone(),
    };
    conflicts(world, device).iter().map(loser).collect()
}

/// Goal: a late copy of any request never undoes what the device did next, and is no conflict. Method: each request
/// once more, after every later one, under every policy and in every style.
#[test]
fn a_late_copy_never_undoes_the_next_change() {
    for seconds in [false, true] {
        let world = world(seconds);
        for style in styles().filter(|style| style.seconds == seconds) {
            for table in TABLES {
                let device = world.device(&owner(table, style), "phone");
                let result = |sent: &Json| send(&world, &device, sent);
                let write = |set: &str, title: Option<&str>, base: &Json| {
                    world.hands.advance_ms(1_500);
                    change(&world, style, set, table, title, base)
                };
                let (_, at, _) = result(&write("add", Some("0"), &Json::Null));
                let first = write("update", Some("1"), &at);
                let (verdict, at, _) = result(&first);
                assert_eq!(verdict, "updated");
                assert_eq!(result(&first).0, "same", "{table} {style:?}");
                let second = write("update", Some("2"), &at);
                let (verdict, at, _) = result(&second);
                assert_eq!(verdict, "updated");

                let (verdict, _, answer) = result(&first);
                assert_eq!(
                    (verdict.as_str(), &answer["row"]["title"]),
                    ("kept", &json!("2")),
                    "{table} {style:?}"
                );
                assert_eq!(answer.get("conflict"), None, "{table} {style:?}");
                assert_eq!(title(&world, &device, table).as_deref(), Some("2"));
                assert_eq!(result(&second).0, "same");

                let deletion = write("delete", None, &at);
                let (verdict, at, _) = result(&deletion);
                assert_eq!(verdict, "deleted");
                for late in [&first, &second] {
                    let (verdict, _, answer) = result(late);
                    assert_eq!(
                        (verdict.as_str(), answer.get("conflict")),
                        ("gone", None),
                        "{table} {style:?}"
                    );
                }
                assert_eq!(result(&deletion).0, "same");

                assert_eq!(result(&write("add", Some("3"), &at)).0, "added", "{table} {style:?}");
                for (late, verdict) in [(&deletion, "kept"), (&second, "kept")] {
                    let result = result(late);
                    assert_eq!(
                        (result.0.as_str(), result.2.get("conflict")),
                        (verdict, None),
                        "{table} {style:?}"
                    );
                }
                assert_eq!(title(&world, &device, table).as_deref(), Some("3"));
                assert!(conflicts(&world, &device).is_empty());
            }
        }
    }
}

/// Goal: edits of one device within one unit of time are all applied, though it sends only `last_update`.
/// Method: the core seed's own clients, on a table of each policy.
#[test]
fn all_edits_of_one_second_are_applied() {
    let world = world(true);
    for table in TABLES {
        let device = world.device(table, "phone");
        let at = world.hands.at(0);
        for n in 0..5 {
            let set = if n == 0 { "add" } else { "update" };
            let body =
                json!({ set: { table: [{ "id": key(1), "title": n.to_string(), "last_update": at }] } });
            let (verdict, ..) = send(&world, &device, &body);
            assert_eq!(verdict, if n == 0 { "added" } else { "updated" }, "{table} {n}");
            assert_eq!(send(&world, &device, &body).0, "same");
        }
        assert_eq!(title(&world, &device, table).as_deref(), Some("4"));
        // An old time means an old edit.
        let old = json!({ "update": { table: [{ "id": key(1), "title": "old", "last_update": world.hands.at(-1_000) }] } });
        let (verdict, _, result) = send(&world, &device, &old);
        assert_eq!((verdict.as_str(), result["conflict"].is_string()), ("kept", true));
        assert!(lost(&world, &device).contains(&json!("old")));
    }
}

/// Goal: with two phones and one token, no edit is lost without a record. Method: both change, or delete, the
/// row that both had seen, in either order of their clocks.
#[test]
fn two_phones_with_one_token_lose_nothing() {
    for seconds in [false, true] {
        let world = world(seconds);
        for style in styles().filter(|style| style.seconds == seconds) {
            for (table, deletes) in TABLES.into_iter().flat_map(|table| [(table, false), (table, true)]) {
                let device = world.device(&format!("{}-{deletes}", owner(table, style)), "phone");
                let (_, seen, _) =
                    send(&world, &device, &change(&world, style, "add", table, Some("0"), &Json::Null));
                world.hands.advance_ms(5_000);
                let edit = |title: Option<&str>| {
                    let set = if title.is_some() { "update" } else { "delete" };
                    world.hands.advance_ms(1_500);
                    change(&world, style, set, table, title, &seen)
                };
                let bodies = [edit(Some("one")), edit(if deletes { None } else { Some("two") })];
                for body in &bodies {
                    send(&world, &device, body);
                }
                let lost = lost(&world, &device);
                assert_eq!(lost, [json!("one")], "{table} {style:?}");
                assert_eq!(title(&world, &device, table).as_deref(), (!deletes).then_some("two"));

                // What the other phone makes of a state that was there before is kept apart too.
                let late = edit(Some("three"));
                send(&world, &device, &late);
                let there = title(&world, &device, table);
                let noted: Vec<_> = self::lost(&world, &device);
                let found = |what: &str| there.as_deref() == Some(what) || noted.contains(&json!(what));
                assert!(found("three") && found("one"), "{table} {style:?}: {there:?} {noted:?}");
            }
        }
    }
}

/// Goal: however fast one device edits, another's later edit wins by a right clock, and no time runs far ahead.
/// Method: 300 edits of a row in 2 s, and a partner's edit 3 s later.
#[test]
fn fast_edits_do_not_beat_a_later_one() {
    let world = world(true);
    let [a, b] = ["a", "b"].map(|name| world.device("anna", name));
    let edit = |title: &str| json!({ "update": { "newest": [{ "id": key(1), "title": title, "last_update": world.hands.at(0) }] } });
    let mut refused = None;
    let mut taken = 0;
    for n in 0..300 {
        let (verdict, at, result) = send(&world, &a, &edit(&format!("a {n}")));
        let ahead = rollcall::model::Timestamp::parse(at.as_str().unwrap()).unwrap().ms() - world.hands.ms();
        assert!(ahead <= 60_000, "{ahead}");
        if verdict == "rejected" {
            assert_eq!(result["error"]["code"], "too_many_edits");
            assert_eq!(result["error"]["retry_after_s"], 1);
            refused = Some(n);
        } else {
            taken += 1;
        }
        world.hands.advance_ms(7);
    }
    assert!((60..70).contains(&taken), "{taken} edits were taken");
    // The edit is taken once the time has come.
    world.hands.advance_ms(2_000);
    let again = edit(&format!("a {}", refused.unwrap()));
    assert_eq!(send(&world, &a, &again).0, "updated");
    world.hands.advance_ms(3_000);
    assert_eq!(send(&world, &b, &edit("b")).0, "updated");
    assert_eq!(title(&world, &b, "newest").as_deref(), Some("b"));
}

/// Goal: all edits of a row in one request are one state, with one time in all verdicts. Method: far more of them than
/// times could rise.
#[test]
fn all_edits_of_one_request_share_one_time() {
    let world = world(true);
    let device = world.device("anna", "phone");
    let row = |n: usize| json!({ "id": key(1), "title": n.to_string(), "last_update": world.hands.at(0) });
    let rows: Vec<_> = (0..100).map(row).collect();
    let answer = world.sync(&device, &json!({ "add": { "newest": rows }, "delete": { "newest": [] } })).ok();
    let result = answer["add"]["newest"].as_array().unwrap();
    assert_eq!(result.len(), 100);
    for result in result {
        assert_eq!(result["last_update"], "2024-05-01 12:00:00", "{result}");
    }
    assert_eq!(title(&world, &device, "newest").as_deref(), Some("99"));
    let at = &result[0]["last_update"];
    let next = json!({ "update": { "newest": [{ "id": key(1), "title": "next", "_base": at }] } });
    assert_eq!(send(&world, &device, &next).1, "2024-05-01 12:00:01");
}

/// Goal: both engines behave alike. Method: every test of this file once more, over PostgreSQL.
#[test]
fn again_on_postgres() {
    support::engine::run_again_on_postgres(module_path!());
}

//! True conflicts over the API: which side wins, what each device receives, what is stored of the loser and
//! how it comes back.

use rollcall_testkit::feed as support;

use std::sync::Arc;

use http::Method;
use rollcall::model::{DeviceId, Owner, RowKey, Timestamp, Value, Version};
use rollcall::reconcile::Incoming;
use rollcall::schema::{Policy, Schema, Table};
use rollcall::storage::{Storage, WantedConflicts};
use rollcall::synchronise::{self, Batch};
use serde_json::{Value as Json, json};
use support::engine::Store;
use support::{Copy, Device, Dice, NOON_MS, POLICIES, TABLES, World, key, open, terms};
use uuid::Uuid;

/// Two devices of one owner that both know a row of `table`, and a little later.
fn two(world: &World, table: &str) -> (Copy, Copy) {
    let owner = format!("{table}-{}", world.hands.ms());
    let [mut a, mut b] = ["a", "b"].map(|name| Copy::new(world.device(&owner, name)));
    let mut row = json!({ "id": key(1), "title": "base", "body": "base", "n": 10 });
    if table == "merge" {
        row["tags"] = json!(["base"]);
    }
    world.sync(&a.device, &json!({ "add": { table: [row] } })).ok();
    a.pull(world);
    b.pull(world);
    world.hands.advance_ms(10_000);
    (a, b)
}

fn edit(table: &str, columns: &Json) -> Json {
    let mut row = json!({ "id": key(1) });
    row.as_object_mut().unwrap().extend(columns.as_object().unwrap().clone());
    json!({ "update": { table: [row] } })
}

fn row(world: &World, copy: &Copy, table: &str) -> Option<Json> {
    world.rows(&copy.device).remove(&(table.to_owned(), key(1)))
}

fn conflicts(world: &World, device: &Device) -> Vec<Json> {
    world.get(device, "/conflicts").ok()["conflicts"].as_array().unwrap().clone()
}

/// All hold what the server holds.
#[track_caller]
fn agree(world: &World, copies: &mut [&mut Copy]) {
    for copy in copies {
        copy.pull(world);
        assert_eq!(copy.rows, world.rows(&copy.device));
    }
}

fn every_conflict() -> WantedConflicts {
    let most = usize::MAX;
    WantedConflicts {
        table: None,
        key: None,
        after: None,
        rows_max: most,
        entries_max: most,
        bytes_max: most,
    }
}

fn result(answer: &Json, set: &str, table: &str) -> Json {
    answer[set][table][0].clone()
}

#[test]
fn edits_of_different_columns_both_stay_under_merge() {
    let world = World::start(POLICIES);
    let (mut a, mut b) = two(&world, "merge");
    a.push(&world, &edit("merge", &json!({ "title": "a's" })));
    // The whole row, as most apps send it: the old title is in it.
    let whole = json!({ "title": "base", "body": "b's", "n": 10, "tags": ["base"] });
    let answer = b.push(&world, &edit("merge", &whole));
    let result = result(&answer, "update", "merge");
    assert_eq!((&result["verdict"], &result["row"]["title"]), (&json!("merged"), &json!("a's")));
    assert_eq!(result.get("conflict"), None, "nobody lost");
    agree(&world, &mut [&mut a, &mut b]);
    let row = row(&world, &a, "merge").unwrap();
    assert_eq!((&row["title"], &row["body"]), (&json!("a's"), &json!("b's")));
    assert!(conflicts(&world, &a.device).is_empty());
}

#[test]
fn every_column_rule_joins_what_both_changed() {
    let world = World::start(POLICIES);
    let (mut a, mut b) = two(&world, "merge");
    let set = json!({ "high": 5, "low": 5, "paid": "1.10", "tags": ["x", "y"] });
    a.push(&world, &edit("merge", &set));
    a.pull(&world);
    b.pull(&world);
    a.push(
        &world,
        &edit("merge", &json!({ "n": 15, "high": 7, "low": 4, "paid": "2.20", "tags": ["x", "a"] })),
    );
    let mine =
        json!({ "n": 11, "high": 9, "low": 3, "paid": "1.35", "tags": ["y", "x", "b"], "title": "mine" });
    let answer = b.push(&world, &edit("merge", &mine));
    let joined = &result(&answer, "update", "merge")["row"];
    let wanted =
        json!({ "n": 16, "high": 9, "low": 3, "paid": "2.45", "tags": ["x", "a", "b"], "title": "mine" });
    for (name, value) in wanted.as_object().unwrap() {
        assert_eq!(&joined[name], value, "{name}");
    }
    agree(&world, &mut [&mut a, &mut b]);
}

#[test]
fn the_same_column_goes_to_the_later_edit_and_the_other_is_kept_for_review() {
    let world = World::start(POLICIES);
    for later in [true, false] {
        let (mut a, mut b) = two(&world, "merge");
        let at = world.hands.at(-2_000);
        a.push(&world, &edit("merge", &json!({ "title": "a's", "body": "a's", "last_update": at })));
        let at = world.hands.at(if later { -1_000 } else { -3_000 });
        let answer = b.push(&world, &edit("merge", &json!({ "title": "b's", "n": 11, "last_update": at })));
        let result = result(&answer, "update", "merge");
        assert_eq!(result["verdict"], "merged");
        let row = row(&world, &a, "merge").unwrap();
        assert_eq!(
            (&row["title"], &row["body"], &row["n"]),
            (&json!(if later { "b's" } else { "a's" }), &json!("a's"), &json!(11))
        );
        let noted = conflicts(&world, &a.device);
        assert_eq!(noted.len(), 1);
        assert_eq!(result["conflict"], noted[0]["id"]);
        assert_eq!(noted[0]["outcome"], "merged");
        assert_eq!(noted[0]["base"]["title"], "base");
        assert_eq!(noted[0]["incoming"]["row"], json!({ "id": key(1), "title": "b's", "n": 11 }));
        agree(&world, &mut [&mut a, &mut b]);
        world.hands.advance_ms(1_000);
    }
}

/// Goal: a merged row that is sent again after a lost response undoes no edit and counts nothing twice; nor
/// does the next edit on top of it.
#[test]
fn a_merge_whose_answer_was_lost_is_not_undone_by_sending_again() {
    let world = World::start(POLICIES);
    for by_row in [false, true] {
        let (mut a, mut b) = two(&world, "merge");
        let seen = b.rows[&("merge".to_owned(), key(1))]["last_update"].clone();
        a.push(&world, &edit("merge", &json!({ "title": "a's", "n": 15 })));
        let after = |n: u64, body: &str, at_ms: i64| {
            let mut sent = edit(
                "merge",
                &json!({ "title": "base", "body": body, "n": n, "last_update": world.hands.at(at_ms) }),
            );
            if by_row {
                sent["update"]["merge"][0]["_base"] = seen.clone();
            } else {
                sent["base"] = json!(b.cursor);
            }
            sent
        };
        // Sent, and the response is lost: b continues from its earlier state.
        let first = world.sync(&b.device, &after(11, "b's", -5_000)).ok();
        assert_eq!(result(&first, "update", "merge")["verdict"], "merged");
        let version = world.version(&b.device);
        let again = world.sync(&b.device, &after(11, "b's", -5_000)).ok();
        let told_again = result(&again, "update", "merge");
        assert_eq!(told_again["verdict"], "same");
        assert_eq!(
            told_again["row"],
            result(&first, "update", "merge")["row"],
            "b does not hold the joined row"
        );
        assert_eq!(world.version(&b.device), version);

        let held = |n: i64, body: &str| {
            let row = row(&world, &a, "merge").unwrap();
            assert_eq!(
                (&row["title"], &row["body"], &row["n"]),
                (&json!("a's"), &json!(body), &json!(n)),
                "by row: {by_row}"
            );
        };
        if by_row {
            // Lost again, and b has edited meanwhile: its edits count once, a's stay.
            for (n, body) in [(12, "b's second"), (13, "b's third")] {
                world.sync(&b.device, &after(n, body, -4_000)).ok();
                held(n as i64 + 5, body);
            }
            // Only a part of the row: the rest stays as b had it.
            let part = edit("merge", &json!({ "n": 14, "_base": seen }));
            world.sync(&b.device, &part).ok();
            held(19, "b's third");
        } else {
            // The response arrives at last. b's cursor is still behind, since a wrote in between, and its
            // next edit is of the merged row.
            let mut next = after(17, "b's second", -4_000);
            next["update"]["merge"][0]["title"] = json!("a's");
            world.sync(&b.device, &next).ok();
            held(17, "b's second");
        }
        b.pull(&world);
        agree(&world, &mut [&mut a, &mut b]);
        world.hands.advance_ms(1_000);
    }
}

#[test]
fn without_the_ancestor_every_column_goes_to_the_later_edit() {
    let world = World::start(&POLICIES.replace("policy = \"merge\"", "policy = \"merge\"\nhistory = 1"));
    let (mut a, mut b) = two(&world, "merge");
    for n in 0..3 {
        a.push(&world, &edit("merge", &json!({ "title": format!("a's {n}"), "n": 20 + n })));
    }
    // With its ancestor this would be b's body alone.
    let whole = json!({ "title": "base", "body": "b's", "n": 11, "last_update": world.hands.at(0) });
    let answer = b.push(&world, &edit("merge", &whole));
    assert_eq!(
        result(&answer, "update", "merge")["verdict"],
        "kept",
        "the server's is the later, to the millisecond"
    );
    world.hands.advance_ms(1_000);
    let whole = json!({ "title": "base", "body": "b's", "n": 11, "last_update": world.hands.at(0) });
    let answer = b.push(&world, &edit("merge", &whole));
    let result = result(&answer, "update", "merge");
    assert!(result["conflict"].is_string());
    let row = row(&world, &a, "merge").unwrap();
    assert_eq!(
        (&row["title"], &row["n"]),
        (&json!("base"), &json!(11)),
        "nobody knows what either side added"
    );
    let noted = conflicts(&world, &a.device);
    assert!(noted.iter().all(|conflict| conflict["base"].is_null()));
    agree(&world, &mut [&mut a, &mut b]);
}

/// Goal: a row that was deleted and made again has no ancestor in its earlier life.
#[test]
fn an_earlier_life_is_no_ancestor() {
    let world = World::start(POLICIES);
    let (mut a, mut b) = two(&world, "merge");
    a.push(&world, &json!({ "delete": { "merge": [key(1)] } }));
    b.pull(&world);
    world.hands.advance_ms(1_000);
    let again = |title: &str| json!({ "add": { "merge": [{ "id": key(1), "title": title, "last_update": world.hands.at(0) }] } });
    a.push(&world, &again("a's"));
    world.hands.advance_ms(1_000);
    // "base" is what the row held in its first lifetime; to b, which saw it deleted, it is a new row
    // nevertheless.
    let answer = b.push(&world, &again("base"));
    assert!(result(&answer, "add", "merge")["conflict"].is_string());
    assert_eq!(row(&world, &a, "merge").unwrap()["title"], "base", "b's is the later");
    assert_eq!(conflicts(&world, &a.device)[0]["base"], Json::Null);
    agree(&world, &mut [&mut a, &mut b]);
}

/// What each policy makes of an edit against an edit: the title that stays, by who edited later.
#[test]
fn every_policy_has_its_winner_and_its_loser_comes_back() {
    let world = World::start(POLICIES);
    for table in TABLES {
        for later in ["a", "b"] {
            let (mut a, mut b) = two(&world, table);
            let at = |who| world.hands.at(if who == later { -1_000 } else { -2_000 });
            a.push(&world, &edit(table, &json!({ "title": "a's", "last_update": at("a") })));
            let base = b.rows[&(table.to_owned(), key(1))].clone();
            let answer = b.push(&world, &edit(table, &json!({ "title": "b's", "last_update": at("b") })));
            let result = result(&answer, "update", table);
            let b_wins = match table {
                "newest" | "merge" => later == "b",
                "client" => true,
                _ => false,
            };
            let (verdict, outcome) = match (table, b_wins) {
                ("merge", true) => ("merged", "merged"),
                (_, true) => ("updated", "overwritten"),
                (_, false) => ("kept", "kept"),
            };
            assert_eq!(result["verdict"], verdict, "{table}, later: {later}");
            assert_eq!(row(&world, &a, table).unwrap()["title"], if b_wins { "b's" } else { "a's" });
            agree(&world, &mut [&mut a, &mut b]);

            let noted = conflicts(&world, &a.device);
            assert_eq!(noted.len(), 1, "{table}");
            let conflict = &noted[0];
            assert_eq!(result["conflict"], conflict["id"]);
            assert_eq!((&conflict["table"], &conflict["key"]), (&json!(table), &json!(key(1))));
            assert_eq!((&conflict["policy"], &conflict["outcome"]), (&json!(table), &json!(outcome)));
            assert_eq!(conflict["base"]["title"], base["title"]);
            assert_eq!(
                (&conflict["stored"]["row"]["title"], &conflict["stored"]["device_id"]),
                (&json!("a's"), &json!(a.device.id))
            );
            assert_eq!(
                (&conflict["incoming"]["row"]["title"], &conflict["incoming"]["device_id"]),
                (&json!("b's"), &json!(b.device.id))
            );
            assert_eq!(conflict["incoming"]["last_update"], at("b"));
            assert_eq!(conflict.get("restored_at"), None);

            // For a merge the lost column comes back: the title, which both had changed and b later.
            let loser = if outcome == "kept" { "b's" } else { "a's" };
            let restore = format!("/conflicts/{}/restore", conflict["id"].as_str().unwrap());
            let before = world.version(&a.device);
            let restored = world.call(&a.device, Method::POST, &restore, &[], None).ok();
            assert_eq!(restored["verdict"], "updated");
            assert_eq!(restored["row"]["title"], loser);
            assert!(restored["conflict"]["restored_at"].is_string());
            assert_eq!(restored["version"], before + 1);
            assert!(conflicts(&world, &b.device)[0]["restored_at"].is_string());
            agree(&world, &mut [&mut a, &mut b]);
            world.hands.advance_ms(1_000);
        }
    }
}

#[test]
fn a_deleted_row_and_a_deletion_are_brought_back() {
    let world = World::start(POLICIES);
    // b edits what a deleted, and loses: the server's deletion stays.
    let (mut a, mut b) = two(&world, "server");
    a.push(&world, &json!({ "delete": { "server": [key(1)] } }));
    let answer = b.push(&world, &edit("server", &json!({ "body": "b's" })));
    assert_eq!(result(&answer, "update", "server")["verdict"], "gone");
    let conflict = conflicts(&world, &b.device).remove(0);
    assert_eq!((&conflict["outcome"], &conflict["stored"]["row"]), (&json!("kept"), &Json::Null));
    agree(&world, &mut [&mut a, &mut b]);
    assert_eq!(row(&world, &a, "server"), None);
    let restored = restore(&world, &a.device, &conflict);
    assert_eq!(restored["verdict"], "added");
    let back = row(&world, &a, "server").unwrap();
    assert_eq!(
        (&back["title"], &back["body"], &back["n"]),
        (&json!("base"), &json!("b's"), &json!(10)),
        "what b left out is as it was"
    );
    agree(&world, &mut [&mut a, &mut b]);

    // b deletes what a edited, and wins: a's row lost, and comes back.
    let (mut a, mut b) = two(&world, "client");
    a.push(&world, &edit("client", &json!({ "body": "a's" })));
    b.push(&world, &json!({ "delete": { "client": [key(1)] } }));
    let conflict = conflicts(&world, &b.device).remove(0);
    assert_eq!((&conflict["outcome"], &conflict["incoming"]["row"]), (&json!("overwritten"), &Json::Null));
    assert_eq!(restore(&world, &b.device, &conflict)["verdict"], "added");
    assert_eq!(row(&world, &a, "client").unwrap()["body"], "a's");
    agree(&world, &mut [&mut a, &mut b]);

    // b deletes what a edited, and loses: the deletion comes back.
    let (mut a, mut b) = two(&world, "manual");
    a.push(&world, &edit("manual", &json!({ "body": "a's" })));
    let answer = b.push(&world, &json!({ "delete": { "manual": [key(1)] } }));
    assert_eq!(result(&answer, "delete", "manual")["verdict"], "kept");
    agree(&world, &mut [&mut a, &mut b]);
    let conflict = conflicts(&world, &b.device).remove(0);
    let restored = restore(&world, &b.device, &conflict);
    assert_eq!((&restored["verdict"], restored.get("row")), (&json!("deleted"), None));
    agree(&world, &mut [&mut a, &mut b]);
    assert_eq!(restore(&world, &b.device, &conflict)["verdict"], "same");
    assert_eq!(row(&world, &a, "manual"), None);
}

fn restore(world: &World, device: &Device, conflict: &Json) -> Json {
    let path = format!("/conflicts/{}/restore", conflict["id"].as_str().unwrap());
    world.call(device, Method::POST, &path, &[], None).ok()
}

#[test]
fn a_loser_whose_parent_is_gone_is_refused() {
    let world = World::start(POLICIES);
    let [mut a, mut b] = ["a", "b"].map(|name| Copy::new(world.device("anna", name)));
    let body = json!({ "add": {
        "newest": [{ "id": key(7), "title": "parent" }, { "id": key(8), "title": "other" }],
        "children": [{ "cid": key(1), "name": "child", "parent": key(8) }],
    }});
    a.push(&world, &body);
    a.pull(&world);
    b.pull(&world);
    let child = |columns: Json| {
        let mut row = json!({ "cid": key(1) });
        row.as_object_mut().unwrap().extend(columns.as_object().unwrap().clone());
        json!({ "update": { "children": [row] } })
    };
    a.push(&world, &child(json!({ "name": "a's" })));
    b.push(&world, &child(json!({ "parent": key(7) }))); // loses: the table's policy is server
    a.push(&world, &json!({ "delete": { "newest": [key(7)] } }));
    let conflict = conflicts(&world, &a.device).remove(0);
    let path = format!("/conflicts/{}/restore", conflict["id"].as_str().unwrap());
    let before = world.dump();
    let problem = world.call(&a.device, Method::POST, &path, &[], None).problem(422, "batch_rejected");
    assert_eq!(problem["rejections"][0]["code"], "reference_missing");
    assert_eq!(world.dump(), before);
    assert!(conflicts(&world, &a.device)[0].get("restored_at").is_none());
}

#[test]
fn a_restore_needs_the_lock_and_leaves_it_as_it_was() {
    let world = World::start(POLICIES);
    let (mut a, mut b) = two(&world, "server");
    a.push(&world, &edit("server", &json!({ "title": "a's" })));
    b.push(&world, &edit("server", &json!({ "title": "b's" })));
    let conflict = conflicts(&world, &a.device).remove(0);
    let path = format!("/conflicts/{}/restore", conflict["id"].as_str().unwrap());
    world.call(&b.device, Method::POST, "/lock", &[], None).ok();
    world.call(&a.device, Method::POST, &path, &[], None).problem(423, "sync_in_progress");
    world.call(&b.device, Method::POST, &path, &[], None).ok();
    assert_eq!(world.get(&b.device, "/lock").ok()["mine"], true, "it had it before");
    world.call(&b.device, Method::DELETE, "/lock", &[], None);
    world.call(&a.device, Method::POST, &path, &[], None).ok();
    assert_eq!(world.get(&b.device, "/lock").ok()["held"], false);
}

#[test]
fn under_manual_the_device_settles_by_sending_again() {
    let world = World::start(POLICIES);
    let (mut a, mut b) = two(&world, "manual");
    a.push(&world, &edit("manual", &json!({ "title": "a's" })));
    let answer = b.push(&world, &edit("manual", &json!({ "title": "b's" })));
    let told_b = result(&answer, "update", "manual");
    assert_eq!((&told_b["verdict"], &told_b["row"]["title"]), (&json!("kept"), &json!("a's")));
    assert!(told_b["conflict"].is_string());
    // The user is prompted and joins both; the row is sent with the `_base` of the response.
    let settled = json!({ "title": "a's and b's", "_base": told_b["last_update"] });
    let answer = b.push(&world, &edit("manual", &settled));
    assert_eq!(result(&answer, "update", "manual")["verdict"], "updated");
    assert_eq!(result(&answer, "update", "manual").get("conflict"), None);
    agree(&world, &mut [&mut a, &mut b]);
    assert_eq!(conflicts(&world, &a.device).len(), 1);
}

#[test]
fn the_same_loser_sent_twice_is_one_conflict() {
    let world = World::start(POLICIES);
    for table in ["server", "manual", "newest"] {
        let (mut a, b) = two(&world, table);
        a.push(&world, &edit(table, &json!({ "title": "a's" })));
        let mut body = edit(table, &json!({ "title": "b's", "last_update": world.hands.at(-9_000) }));
        body["base"] = json!(b.cursor);
        let first = world.sync(&b.device, &body).ok();
        world.hands.advance_ms(1_000);
        let before = world.version(&b.device);
        let again = world.sync(&b.device, &body).ok();
        assert_eq!(result(&first, "update", table), result(&again, "update", table));
        assert_eq!(world.version(&b.device), before, "no version moves");
        assert_eq!(conflicts(&world, &a.device).len(), 1, "{table}");
        body["update"][table][0]["title"] = json!("b's other");
        world.sync(&b.device, &body).ok();
        assert_eq!(conflicts(&world, &a.device).len(), 2, "{table}: another loser");
    }
}

/// Goal: what a merge lost is recorded once however often it is sent, and another loss by the same device is
/// recorded too. Method: each is sent twice, without an idempotency key.
#[test]
fn a_loss_by_merge_sent_twice_is_one_conflict_and_another_loss_is_another() {
    let world = World::start(POLICIES);
    let (mut a, b) = two(&world, "merge");
    let seen = row(&world, &b, "merge").unwrap()["last_update"].clone();
    a.push(&world, &edit("merge", &json!({ "title": "a's" })));
    let lost = |title: &str| {
        let columns =
            json!({ "title": title, "body": "b's", "_base": seen, "last_update": world.hands.at(-5_000) });
        [(); 2].map(|()| result(&world.sync(&b.device, &edit("merge", &columns)).ok(), "update", "merge"))
    };
    let [first, again] = lost("b's first");
    assert_eq!((&first["verdict"], &again["verdict"]), (&json!("merged"), &json!("kept")));
    assert_eq!(first["conflict"], again["conflict"]);
    world.hands.advance_ms(1_000);
    let [second, again] = lost("b's second");
    assert_eq!((&second["verdict"], &second["conflict"]), (&json!("kept"), &again["conflict"]));
    let noted = conflicts(&world, &a.device);
    let titles: Vec<_> = noted.iter().map(|conflict| &conflict["incoming"]["row"]["title"]).collect();
    assert_eq!(titles, ["b's second", "b's first"]);
    assert!(noted.iter().all(|conflict| conflict["stored"]["row"]["title"] == "a's"));
    restore(&world, &a.device, &noted[0]);
    let row = row(&world, &a, "merge").unwrap();
    assert_eq!((&row["title"], &row["body"]), (&json!("b's second"), &json!("b's")));
}

#[test]
fn conflicts_come_in_pages_newest_first_and_to_their_owner_alone() {
    let world = World::start_with(POLICIES, |settings| settings.sync.conflicts_rows_max = 4);
    let [mut a, mut b] = ["a", "b"].map(|name| Copy::new(world.device("anna", name)));
    let other = world.device("zoe", "z");
    let of = |set: &str, table: &str, title: &str, keys: std::ops::Range<u64>| {
        let rows: Vec<_> = keys.map(|n| json!({ "id": key(n), "title": title })).collect();
        json!({ set: { table: rows } })
    };
    a.push(&world, &of("add", "server", "base", 0..7));
    a.push(&world, &of("add", "manual", "base", 0..3));
    a.pull(&world);
    b.pull(&world);
    a.push(&world, &of("update", "server", "a's", 0..7));
    a.push(&world, &of("update", "manual", "a's", 0..3));
    let before = b.cursor;
    b.push(&world, &of("update", "server", "b's", 0..6)); // all at one moment
    world.hands.advance_ms(1_000);
    b.cursor = before;
    b.push(&world, &of("update", "manual", "b's", 0..3));
    b.cursor = before;
    b.push(&world, &of("update", "server", "b's", 6..7));

    for limit in [1, 2, 3, 4, 100] {
        let mut path = format!("/conflicts?limit={limit}");
        let mut seen: Vec<Json> = Vec::new();
        loop {
            let page = world.get(&a.device, &path).ok();
            let list = page["conflicts"].as_array().unwrap();
            assert!(!list.is_empty() && list.len() <= limit.min(4));
            seen.extend(list.iter().cloned());
            match page["next"].as_str() {
                Some(next) => path = format!("/conflicts?limit={limit}&page={next}"),
                None => break,
            }
        }
        assert_eq!(seen.len(), 10, "limit {limit}");
        assert!(seen.is_sorted_by(|a, b| a["at"].as_str() >= b["at"].as_str()));
        let mut ids: Vec<_> = seen.iter().map(|it| it["id"].as_str().unwrap()).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), 10);
    }
    let count = |query: &str| world.get(&a.device, query).ok()["conflicts"].as_array().unwrap().len();
    assert_eq!(count("/conflicts?table=manual"), 3);
    assert_eq!(count(&format!("/conflicts?key={}", key(1))), 2);
    assert_eq!(count(&format!("/conflicts?table=server&key={}", key(1))), 1);
    assert_eq!(count("/conflicts?table=client"), 0);
    for bad in ["table=nope", "key=1", "limit=0", "page=x", "since=1"] {
        world.get(&a.device, &format!("/conflicts?{bad}")).problem(400, "invalid_request");
    }

    assert!(conflicts(&world, &other).is_empty());
    let id = conflicts(&world, &a.device)[0]["id"].clone();
    for path in [
        format!("/conflicts/{}/restore", id.as_str().unwrap()),
        "/conflicts/x/restore".into(),
        format!("/conflicts/{}/restore", key(9)),
    ] {
        let before = world.rows(&a.device);
        world.call(&other, Method::POST, &path, &[], None).problem(404, "not_found");
        assert_eq!(world.rows(&a.device), before);
    }
}

/// Goal: a page costs a bounded number of reads, whatever is requested, and pages leave nothing out. Method:
/// two tables have the same keys, and the conflicts of one are requested; two conflicts are read for each
/// page.
#[test]
fn a_page_that_ends_early_names_the_next_one() {
    let world = World::start_with(POLICIES, |settings| settings.sync.page_entries_max = 2);
    let [mut a, mut b] = ["a", "b"].map(|name| Copy::new(world.device("anna", name)));
    a.push(
        &world,
        &json!({ "add": { "server": [{ "id": key(1), "title": "base" }],
                                     "manual": [{ "id": key(1), "title": "base" }] } }),
    );
    a.pull(&world);
    b.pull(&world);
    a.push(&world, &edit("server", &json!({ "title": "a's" })));
    a.push(&world, &edit("manual", &json!({ "title": "a's" })));
    let before = b.cursor;
    // The newest conflicts are the other table's.
    for (table, losers) in [("server", 3), ("manual", 7)] {
        for n in 0..losers {
            world.hands.advance_ms(1_000);
            b.cursor = before;
            b.push(&world, &edit(table, &json!({ "title": format!("b's {n}") })));
        }
    }
    let list = |query: &str| {
        let (mut path, mut found, mut lengths) = (format!("/conflicts?{query}"), Vec::new(), Vec::new());
        loop {
            let page = world.get(&a.device, &path).ok();
            let list = page["conflicts"].as_array().unwrap();
            assert!(list.len() <= 2, "{query}: {}", list.len());
            lengths.push(list.len());
            found.extend(list.iter().map(|one| one["incoming"]["row"]["title"].clone()));
            match page["next"].as_str() {
                Some(next) => path = format!("/conflicts?{query}&page={next}"),
                None => return (found, lengths),
            }
        }
    };
    let (found, lengths) = list(&format!("table=server&key={}", key(1)));
    assert_eq!(found, ["b's 2", "b's 1", "b's 0"]);
    assert_eq!(lengths[..3], [0, 0, 0], "those of the other table were looked at: {lengths:?}");
    // By table alone there is an index, so nothing is passed over.
    assert_eq!(list("table=server").1, [2, 1]);
    assert_eq!(list("").0.len(), 10);
    assert_eq!(list(&format!("key={}", key(1))).0.len(), 10);
    assert_eq!(list(&format!("key={}", key(2))).1, [0]);
}

/// Goal: a page of large conflicts ends before it fills the memory. Method: each alone passes `changes_bytes_max`.
#[test]
fn a_page_of_large_conflicts_ends_with_the_one_that_passes_the_limit() {
    let world = World::start_with(POLICIES, |settings| settings.sync.changes_bytes_max = 1_000);
    let (mut a, mut b) = two(&world, "server");
    a.push(&world, &edit("server", &json!({ "title": "a's" })));
    let before = b.cursor;
    for n in 0..3 {
        world.hands.advance_ms(1_000);
        b.cursor = before;
        b.push(&world, &edit("server", &json!({ "title": format!("b's {n}"), "body": "x".repeat(2_000) })));
    }
    let mut path = "/conflicts".to_owned();
    for n in (0..3).rev() {
        let page = world.get(&a.device, &path).ok();
        assert_eq!(page["conflicts"].as_array().unwrap().len(), 1);
        assert_eq!(page["conflicts"][0]["incoming"]["row"]["title"], format!("b's {n}"));
        match page["next"].as_str() {
            Some(next) => path = format!("/conflicts?page={next}"),
            None => assert_eq!(n, 0, "the pages end before the conflicts do"),
        }
    }
}

/// Goal: an edit of a few bytes does not copy a long text that it is not about, and the loser comes back whole.
/// Method: under each policy two devices change a title beside a long text; the loser comes back into the row, and
/// once more after the row was deleted.
#[test]
fn a_long_text_that_nobody_lost_is_not_noted() {
    let world = World::start(POLICIES);
    for table in TABLES {
        let (mut a, mut b) = two(&world, table);
        let (long, longer) = ("x".repeat(20_000), "y".repeat(30_000));
        a.push(&world, &edit(table, &json!({ "body": long })));
        b.pull(&world);
        world.hands.advance_ms(1_000);
        a.push(&world, &edit(table, &json!({ "body": longer, "title": "a's" })));
        world.hands.advance_ms(1_000);
        b.push(&world, &edit(table, &json!({ "title": "b's" })));
        let noted = conflicts(&world, &b.device);
        assert_eq!(noted.len(), 1, "{table}");
        let conflict = &noted[0];
        assert!(conflict.to_string().len() < 2_000, "{table}: {} bytes", conflict.to_string().len());
        for side in [&conflict["stored"]["row"], &conflict["base"]] {
            assert!(side["title"].is_string() && side["n"] == 10 && side["body"].is_null(), "{side}");
        }
        let lost = match conflict["outcome"].as_str() {
            Some("kept") => &conflict["incoming"]["row"]["title"],
            _ => &conflict["stored"]["row"]["title"], // b's edit is the later one
        };
        for is_gone in [false, true] {
            if is_gone {
                b.pull(&world);
                b.push(&world, &json!({ "delete": { table: [key(1)] } }));
            }
            restore(&world, &a.device, conflict);
            let back = row(&world, &a, table).unwrap();
            assert_eq!((&back["body"], &back["title"]), (&json!(longer), lost), "{table}, gone: {is_gone}");
        }
        agree(&world, &mut [&mut a, &mut b]);
    }
}

/// Goal: a conflict with a deletion has what the row had. Method: an edit of one column loses to a deletion; the
/// long text that it did not send is in the base, and comes back with the edit.
#[test]
fn a_long_text_of_a_deleted_row_is_noted() {
    let world = World::start(POLICIES);
    for table in ["server", "manual"] {
        let (mut a, mut b) = two(&world, table);
        let long = "x".repeat(20_000);
        a.push(&world, &edit(table, &json!({ "body": long })));
        b.pull(&world);
        world.hands.advance_ms(1_000);
        a.push(&world, &json!({ "delete": { table: [key(1)] } }));
        world.hands.advance_ms(1_000);
        b.push(&world, &edit(table, &json!({ "title": "b's" })));
        let noted = conflicts(&world, &b.device);
        assert_eq!(noted.len(), 1, "{table}");
        assert_eq!(noted[0]["base"]["body"], json!(long), "{table}");
        restore(&world, &a.device, &noted[0]);
        let back = row(&world, &a, table).unwrap();
        assert_eq!((&back["body"], &back["title"]), (&json!(long), &json!("b's")), "{table}");
        agree(&world, &mut [&mut a, &mut b]);
    }
}

/// Goal: conflicts of a table that the app no longer declares do not hide those of the others.
#[test]
fn a_table_that_is_gone_takes_its_conflicts_with_it() {
    let mut store = Store::new();
    let both = Arc::new(Schema::parse(POLICIES).unwrap());
    let storage = open(&store, &both);
    let (owner, key) = (Owner(Uuid::now_v7()), RowKey(Uuid::now_v7()));
    let [a, b] = [1, 2].map(|n| DeviceId(Uuid::from_u128(n)));
    for (device, base) in [(a, None), (a, Some(Version(2))), (b, Some(Version(2)))] {
        let name = |table: &Table| {
            let mut values = vec![None; table.columns.len()];
            values[0] = Some(Value::Text(format!("{base:?} {device}")));
            (table.id, vec![Incoming { key, values, last_update: None, claimed_at: None, base: None }])
        };
        let tables = ["server", "manual"].map(|name| both.table(name).unwrap());
        let batch = Batch { add: tables.map(name).into(), base, ..Batch::default() };
        let terms = terms(device, Timestamp::from_ms(NOON_MS));
        storage.write(owner, |txn| synchronise::run(txn, &both, &batch, &terms)).unwrap();
    }
    let list = |storage: &dyn Storage, rows_max| {
        let wanted = WantedConflicts { rows_max, ..every_conflict() };
        storage.read(owner, |txn| txn.conflicts(&wanted)).unwrap().conflicts
    };
    let noted = list(&*storage, 9);
    assert_eq!(noted.len(), 2);
    drop(storage);

    let given_up = POLICIES.find("[table.manual]").unwrap()..POLICIES.find("[table.children]").unwrap();
    let mut left = POLICIES.to_owned();
    left.replace_range(given_up, "");
    store.look();
    store.sql("DROP TABLE manual");
    store.look_away();
    let storage = open(&store, &Arc::new(Schema::parse(&left).unwrap()));
    for rows_max in [1, 9] {
        assert_eq!(list(&*storage, rows_max).len(), 1);
    }
    for conflict in noted {
        let found = storage.read(owner, |txn| txn.conflict(conflict.id)).unwrap();
        assert_eq!(found.is_some(), conflict.policy == Policy::Server);
    }
}

/// Goal: a dry run returns what the real request would, and changes nothing. Method: both, one after the
/// other, over everything that a request may do; the relevant bytes of the database are compared.
#[test]
fn a_dry_run_tells_all_and_changes_nothing() {
    let world = World::start(POLICIES);
    let [mut a, mut b] = ["a", "b"].map(|name| Copy::new(world.device("anna", name)));
    for table in TABLES {
        let rows: Vec<_> = (1..6).map(|n| json!({ "id": key(n), "title": "base", "n": 10 })).collect();
        a.push(&world, &json!({ "add": { table: rows } }));
    }
    a.pull(&world);
    b.pull(&world);
    for table in TABLES {
        world.hands.advance_ms(1_000);
        let at = world.hands.at(if table == "newest" { 0 } else { -60_000 });
        let rows: Vec<_> =
            (1..3).map(|n| json!({ "id": key(n), "title": "a's", "n": 12, "last_update": at })).collect();
        a.push(&world, &json!({ "update": { table: rows }, "delete": { table: [key(3)] } }));
    }
    let mut body = json!({ "base": b.cursor, "pull": true, "get": {}, "add": {}, "update": {}, "delete": {},
        "sent_at": world.hands.at(-5_000) });
    for table in TABLES {
        body["add"][table] = json!([{ "id": key(20), "title": "new" }, { "id": key(21), "title": null }]);
        body["update"][table] =
            json!([{ "id": key(1), "title": "b's", "n": 11 }, { "id": key(3), "title": "b's" }]);
        body["delete"][table] = json!([key(2), key(4), key(99)]);
        body["get"][table] = json!([key(5), key(2), key(98)]);
    }
    for had_lock in [false, true] {
        if had_lock {
            world.call(&b.device, Method::POST, "/lock", &[], None).ok();
        }
        let before = world.dump();
        body["dry_run"] = json!(true);
        let rehearsed = world.sync(&b.device, &body).ok();
        assert_eq!(world.dump(), before, "a rehearsal left a trace");
        assert_eq!(world.get(&b.device, "/lock").ok()["held"], had_lock);
        let verdicts: Vec<_> =
            rehearsed["update"]["manual"].as_array().unwrap().iter().map(|it| &it["verdict"]).collect();
        assert_eq!(verdicts, ["kept", "gone"]);
        assert!(conflicts(&world, &a.device).is_empty(), "noted nowhere");

        let mut refused = body.clone();
        refused["atomic"] = json!(true);
        world.sync(&b.device, &refused).problem(422, "batch_rejected");
        assert_eq!(world.get(&b.device, "/lock").ok()["held"], had_lock);
        assert_eq!(world.dump(), before);
        if had_lock {
            body["dry_run"] = json!(false);
            let real = world.sync(&b.device, &body).ok();
            assert_eq!(real, rehearsed);
            assert_ne!(world.dump(), before);
            assert!(!conflicts(&world, &a.device).is_empty());
            let ids: Vec<_> = conflicts(&world, &a.device).iter().map(|it| it["id"].clone()).collect();
            let result: Vec<_> = ["add", "update", "delete"]
                .iter()
                .flat_map(|set| TABLES.map(|table| real[set][table].clone()))
                .flat_map(|list| list.as_array().unwrap().clone())
                .filter_map(|result| result.get("conflict").cloned())
                .collect();
            assert_eq!(result.len(), ids.len());
            assert!(result.iter().all(|id| ids.contains(id)));
        }
    }
}

/// Goal: under every policy all hold the same once it is quiet, whatever was edited at once, lost on the way
/// or sent again. Method: three devices and a seed.
#[test]
fn after_quiet_everybody_holds_the_same() {
    for seed in 0..12 {
        let world = World::start(POLICIES);
        let mut dice = Dice::new(seed);
        let mut copies = ["a", "b", "c"].map(|name| Copy::new(world.device("anna", name)));
        for copy in &mut copies {
            copy.pull(&world);
        }
        for _ in 0..40 {
            world.hands.advance_ms(1 + dice.below(500) as i64);
            let copy = &mut copies[dice.below(3) as usize];
            let table = TABLES[dice.below(5) as usize];
            let id = key(dice.below(4));
            let at = world.hands.at(-(dice.below(2_000) as i64));
            let held = copy.rows.get(&(table.to_owned(), id.clone())).cloned();
            let mut body = match (held, dice.below(4)) {
                (Some(_), 0) => json!({ "delete": { table: [{ "id": id, "last_update": at }] } }),
                (Some(held), part) => {
                    let mut row = if part == 1 { json!({ "id": id }) } else { held };
                    let column = ["title", "body"][dice.below(2) as usize];
                    row[column] = json!(format!("{}", dice.below(1_000)));
                    row["n"] = json!(dice.below(100));
                    row["last_update"] = json!(at);
                    json!({ "update": { table: [row] } })
                }
                (None, _) => {
                    json!({ "add": { table: [{ "id": id, "title": "new", "n": 1, "last_update": at }] } })
                }
            };
            body["pull"] = json!(dice.below(3) == 0);
            if dice.below(4) == 0 {
                // The response is lost; the same request is sent again at once.
                let mut lost = body.clone();
                lost["base"] = json!(copy.cursor);
                world.sync(&copy.device, &lost).ok();
            }
            copy.push(&world, &body);
            if dice.below(4) == 0 {
                copy.limit = 1 + dice.below(5) as usize;
                copy.pull(&world);
            }
        }
        for copy in &mut copies {
            copy.pull(&world);
            assert_eq!(copy.rows, world.rows(&copy.device), "seed {seed}");
        }
    }
}

/// Goal: both engines behave alike. Method: every test of this file once more, over PostgreSQL.
#[test]
fn again_on_postgres() {
    support::engine::run_again_on_postgres(module_path!());
}

/// Goal: nothing needs two owners in one database. Method: once more, over four databases as shards.
#[test]
fn again_over_shards() {
    support::engine::run_again_over_shards(module_path!());
}

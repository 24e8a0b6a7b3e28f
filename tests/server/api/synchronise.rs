//! Phase 2: `POST /synchronise`.

use super::*;

#[tokio::test]
async fn each_rule_has_its_verdict() {
    let (server, anna, _) = furnished().await;
    let tablet = server.device("anna", "tablet");
    let twin = |body: Value| server.ask("POST", "/synchronise.json").of(&tablet).json(&body).send();
    let (old, late) = ("2013-05-01T15:42:50.000Z", server.time(0));
    server.turn(10_000);
    let now = server.time(0);
    let cases = [
        // add
        (json!({ "add": { "lists": [{ "lid": key(10), "title": "new" }] } }), "added"),
        (json!({ "add": { "lists": [{ "lid": key(10), "title": "new" }] } }), "same"),
        (json!({ "add": { "lists": [{ "lid": key(10), "title": "newer" }] } }), "updated"),
        (json!({ "add": { "lists": [{ "lid": key(1), "title": "stale", "last_update": old }] } }), "kept"),
        (json!({ "add": { "lists": [{ "lid": key(1), "title": "tie", "last_update": late }] } }), "kept"),
        (json!({ "add": { "lists": [{ "lid": key(11) }] } }), "rejected"),
        (json!({ "add": { "lists": [{ "lid": key(11), "title": null }] } }), "rejected"),
        (json!({ "add": { "lists": [{ "lid": key(11), "title": "x".repeat(21) }] } }), "rejected"),
        (json!({ "add": { "items": [{ "iid": key(2), "title": "back?" }] } }), "gone"),
        (json!({ "add": { "items": [{ "iid": key(2), "title": "back?", "last_update": old }] } }), "gone"),
        (json!({ "add": { "items": [{ "iid": key(2), "title": "back", "last_update": now }] } }), "added"),
        // update
        (json!({ "update": { "lists": [{ "lid": key(12), "title": "upsert" }] } }), "added"),
        (json!({ "update": { "lists": [{ "lid": key(13), "colour": "blue" }] } }), "absent"),
        (json!({ "update": { "lists": [{ "lid": key(13), "title": "x", "_base": old }] } }), "absent"),
        (json!({ "update": { "lists": [{ "lid": key(1), "title": "Shopping" }] } }), "same"),
        (json!({ "update": { "lists": [{ "lid": key(1), "colour": "blue", "_base": late }] } }), "updated"),
        (json!({ "update": { "lists": [{ "lid": key(1), "title": null }] } }), "rejected"),
        // delete
        (json!({ "delete": { "lists": [key(13)] } }), "absent"),
        (json!({ "delete": { "lists": [key(1)] } }), "rejected"),
        (json!({ "delete": { "lists": [{ "lid": key(2), "last_update": old }] } }), "kept"),
        (json!({ "delete": { "lists": [{ "lid": key(2), "last_update": now }] } }), "deleted"),
        (json!({ "delete": { "lists": [key(2)] } }), "same"),
    ];
    for (body, expected) in cases {
        let result = twin(body.clone()).await.ok();
        let (operation, tables) = body.as_object().unwrap().iter().next().unwrap();
        let table = tables.as_object().unwrap().keys().next().unwrap();
        assert_eq!(verdicts(&result, operation, table), [expected], "{body}\n{result}");
        let one = &result[operation][table][0];
        assert_eq!(one["verdict"] == "rejected", one.get("error").is_some(), "{body}");
        assert_eq!(
            one["verdict"] == "absent",
            one.get("last_update").is_none() && one.get("error").is_none()
        );
        if expected == "kept" {
            assert!(one["row"]["title"].is_string(), "{result}");
        }
    }
    // Policies decide true conflicts.
    let both = json!({ "add": { "ours": [{ "id": key(1), "title": "a" }], "theirs": [{ "id": key(1), "title": "a" }] } });
    server.sync(&anna, both).await.ok();
    let late = server.time(1);
    let conflict = json!({ "update": {
        "ours": [{ "id": key(1), "title": "b", "_base": old, "last_update": late }],
        "theirs": [{ "id": key(1), "title": "b", "_base": old, "last_update": old }],
    } });
    let result = twin(conflict).await.ok();
    assert_eq!(verdicts(&result, "update", "ours"), ["kept"]);
    assert_eq!(verdicts(&result, "update", "theirs"), ["updated"]);
}

#[tokio::test]
async fn a_rejection_says_what_and_where() {
    let server = Server::with(|settings| settings.limits.row_bytes_max = 100);
    let anna = server.device("anna", "phone");
    let list = json!({ "lid": key(1), "title": "x" });
    let item = json!({ "iid": key(1), "title": "x", "list": key(1) });
    server.sync(&anna, json!({ "add": { "lists": [list], "items": [item] } })).await.ok();
    let body = json!({
        "add": { "lists": [
            { "lid": key(2), "title": "fine" },
            { "lid": key(3) },
            { "lid": key(4), "title": "x".repeat(21) },
            { "lid": key(5), "title": "ü".repeat(20) },
            { "lid": key(6), "title": "x", "colour": "x".repeat(100) },
        ] },
        "update": { "items": [{ "iid": key(1), "list": key(99) }, { "iid": key(1), "title": null }] },
        "delete": { "lists": [key(2), key(1)] },
    });
    let result = server.sync(&anna, body.clone()).await.ok();
    let errors = |operation: &str, table: &str| -> Vec<(usize, Value, Value)> {
        let list = result[operation][table].as_array().unwrap();
        let error = |(at, result): (usize, &Value)| {
            result.get("error").map(|error| (at, error["code"].clone(), error["at"].clone()))
        };
        list.iter().enumerate().filter_map(error).collect()
    };
    assert_eq!(
        errors("add", "lists"),
        [
            (1, json!("required_missing"), json!("/add/lists/1/title")),
            (2, json!("too_long"), json!("/add/lists/2/title")),
            (4, json!("row_too_large"), json!("/add/lists/4")),
        ]
    );
    assert_eq!(
        errors("update", "items"),
        [
            (0, json!("reference_missing"), json!("/update/items/0/list")),
            (1, json!("required_missing"), json!("/update/items/1/title")),
        ]
    );
    assert_eq!(errors("delete", "lists"), [(1, json!("still_referenced"), json!("/delete/lists/1"))]);
    assert_eq!(result["update"]["items"][0]["row"]["list"], json!(key(1)), "the row as it stays");

    // The same, atomic: everything is refused, with every reason.
    let mut atomic = body;
    atomic["atomic"] = json!(true);
    atomic["add"]["lists"][0]["lid"] = json!(key(20));
    let answer = refused(&server, server.ask("POST", "/synchronise").of(&anna).json(&atomic), "atomic").await;
    assert_eq!(answer.problem(), (422, "batch_rejected".into()));
    let result: Vec<_> =
        answer.json()["rejections"].as_array().unwrap().iter().map(|one| one["at"].clone()).collect();
    assert_eq!(
        result,
        [
            "/add/lists/1/title",
            "/add/lists/2/title",
            "/add/lists/4",
            "/update/items/0/list",
            "/update/items/1/title",
            "/delete/lists/1"
        ]
    );
}

#[tokio::test]
async fn references_are_settled_whatever_the_order_of_the_body() {
    let server = Server::new();
    let anna = server.device("anna", "phone");
    // A child table before its parent's, a child row before its parent's, three levels, in one request.
    let result = server
        .sync(
            &anna,
            json!({ "add": {
            "items": [{ "iid": key(1), "title": "x", "list": key(1) }],
            "nodes": [
                { "id": key(3), "parent": key(2) },
                { "id": key(2), "parent": key(1) },
                { "id": key(4), "parent": key(4) },
                { "id": key(1) },
                { "id": key(5), "parent": key(99) },
                { "id": key(6), "parent": key(5) },
            ],
            "lists": [{ "lid": key(1), "title": "x" }],
        } }),
        )
        .await
        .ok();
    assert_eq!(verdicts(&result, "add", "items"), ["added"]);
    assert_eq!(
        verdicts(&result, "add", "nodes"),
        ["added", "added", "added", "added", "rejected", "rejected"]
    );

    let result = server.sync(&anna, json!({ "delete": { "nodes": [key(1), key(2)] } })).await.ok();
    assert_eq!(verdicts(&result, "delete", "nodes"), ["rejected", "rejected"], "3 stays");
    assert_eq!(result["delete"]["nodes"][0]["error"]["code"], "still_referenced");
    let result = server
        .sync(&anna, json!({ "delete": { "lists": [key(1)], "nodes": [key(1), key(3), key(2), key(4)], "items": [key(1)] } }))
        .await
        .ok();
    assert_eq!(verdicts(&result, "delete", "nodes"), ["deleted"; 4]);
    assert_eq!(verdicts(&result, "delete", "lists"), ["deleted"]);

    // A parent that goes in the same request in which its child moves away.
    let rows = json!({ "add": { "nodes": [{ "id": key(10) }, { "id": key(11), "parent": key(10) }] } });
    server.sync(&anna, rows).await.ok();
    let result = server
        .sync(&anna, json!({ "update": { "nodes": [{ "id": key(11), "parent": null }] }, "delete": { "nodes": [key(10)] } }))
        .await
        .ok();
    assert_eq!(verdicts(&result, "delete", "nodes"), ["deleted"]);
    // A row that refers in the same request to a deleted one keeps it.
    let rows = json!({ "add": { "nodes": [{ "id": key(20) }, { "id": key(21) }] } });
    server.sync(&anna, rows).await.ok();
    let result = server
        .sync(&anna, json!({ "update": { "nodes": [{ "id": key(21), "parent": key(20) }] }, "delete": { "nodes": [key(20)] } }))
        .await
        .ok();
    assert_eq!(verdicts(&result, "delete", "nodes"), ["rejected"]);
}

/// Goal: rows that name each other, as those of a doubly linked list do, can be made and deleted.
#[tokio::test]
async fn rows_that_refer_to_each_other_come_and_go_together() {
    let server = Server::new();
    let anna = server.device("anna", "phone");
    let chain = json!({ "add": { "nodes": [
        { "id": key(1), "twin": key(2) },
        { "id": key(2), "parent": key(1), "twin": key(3) },
        { "id": key(3), "parent": key(2) },
        { "id": key(4), "parent": key(5) },
        { "id": key(5), "parent": key(4), "twin": key(99) },
    ] } });
    let result = server.sync(&anna, chain).await.ok();
    assert_eq!(verdicts(&result, "add", "nodes"), ["added", "added", "added", "rejected", "rejected"]);
    assert_eq!(result["add"]["nodes"][3]["error"]["code"], "reference_missing");

    let result = server.sync(&anna, json!({ "delete": { "nodes": [key(1), key(2)] } })).await.ok();
    assert_eq!(verdicts(&result, "delete", "nodes"), ["rejected", "rejected"], "3 names 2, and 2 names 1");
    let result =
        server.sync(&anna, json!({ "delete": { "nodes": [key(2), key(1), key(3), key(3)] } })).await.ok();
    assert_eq!(verdicts(&result, "delete", "nodes"), ["deleted", "deleted", "deleted", "same"]);
    assert_eq!(server.manifest(&anna).await["nodes"], json!([]));
}

/// Goal: rows that come or go together are those of one table. Method: two tables whose rows refer to rows of their own
/// table, with the same keys; a group of one table is settled, and a row of the other lacks, or keeps, its parent. In both
/// directions, since tables are settled one after the other.
#[tokio::test]
async fn a_group_of_one_table_vouches_for_no_row_of_another() {
    let table = |name: &str| {
        format!(
            "[table.{name}]\nkey = \"id\"\n[table.{name}.columns]\nnext = {{ type = \"uuid\", references = \"{name}\" }}\n"
        )
    };
    let server = Server::of(&(table("ones") + &table("twos")), |_| {});
    for (n, (whole, other)) in [("ones", "twos"), ("twos", "ones")].into_iter().enumerate() {
        let device = server.device(&format!("user{n}"), "phone");
        let ring = json!([{ "id": key(1), "next": key(2) }, { "id": key(2), "next": key(1) }]);
        let dangling = json!([{ "id": key(9), "next": key(1) }]);
        let result = server.sync(&device, json!({ "add": { (whole): ring, (other): dangling } })).await.ok();
        assert_eq!(verdicts(&result, "add", whole), ["added", "added"]);
        assert_eq!(verdicts(&result, "add", other), ["rejected"]);
        assert_eq!(result["add"][other][0]["error"]["code"], "reference_missing");

        let pair = json!([{ "id": key(1) }, { "id": key(2), "next": key(1) }]);
        server.sync(&device, json!({ "add": { (other): pair } })).await.ok();
        let gone = json!({ "delete": { (whole): [key(1), key(2)], (other): [key(1)] } });
        let result = server.sync(&device, gone).await.ok();
        assert_eq!(verdicts(&result, "delete", whole), ["deleted", "deleted"]);
        assert_eq!(verdicts(&result, "delete", other), ["rejected"], "2 still refers to it");
    }
}

#[tokio::test]
async fn a_key_may_come_more_than_once() {
    let server = Server::new();
    let anna = server.device("anna", "phone");
    let result = server
        .sync(&anna, json!({
            "add": { "lists": [{ "lid": key(1), "title": "a" }, { "lid": key(1), "title": "b" }, { "lid": key(1).to_uppercase(), "title": "b" }] },
            "update": { "lists": [{ "lid": key(1), "colour": "blue" }] },
            "delete": { "lists": [key(1), key(1)] },
            "get": { "lists": [key(1), key(1), key(2)] },
        }))
        .await
        .ok();
    assert_eq!(verdicts(&result, "add", "lists"), ["added", "updated", "same"]);
    assert_eq!(verdicts(&result, "update", "lists"), ["updated"]);
    assert_eq!(verdicts(&result, "delete", "lists"), ["deleted", "same"]);
    assert_eq!(
        (&result["get"]["lists"], &result["missing"]["lists"]),
        (&json!([]), &json!([key(1), key(1), key(2)]))
    );
    assert_eq!(server.manifest(&anna).await["lists"], json!([]));
    // All changes of a row in one request make one state, with one time.
    let times: Vec<_> = ["add", "update", "delete"]
        .iter()
        .flat_map(|operation| result[operation]["lists"].as_array().unwrap())
        .map(|result| result["last_update"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(times.len(), 6);
    assert!(times.iter().all(|time| *time == times[0]), "{times:?}");
}

#[tokio::test]
async fn versions_and_bases() {
    let server = Server::new();
    let (anna, tablet) = (server.device("anna", "phone"), server.device("anna", "tablet"));
    let add = |n: u64| json!({ "add": { "lists": [{ "lid": key(n), "title": "x" }] } });
    let first = server.sync(&anna, json!({})).await;
    assert_eq!(first.ok()["version"], first.version());
    let version = first.version();
    assert_eq!(server.sync(&anna, add(1)).await.version(), version + 1);
    assert_eq!(server.sync(&anna, add(1)).await.version(), version + 1, "the same again moves nothing");

    let with_base = |n: u64, base: u64| {
        let mut body = add(n);
        body["base"] = json!(base);
        body
    };
    let result = server.sync(&tablet, with_base(2, version + 1)).await;
    assert_eq!((result.ok()["version"].as_u64(), result.version()), (Some(version + 2), version + 2));
    let result = server.sync(&anna, with_base(3, version + 1)).await;
    assert_eq!(result.ok()["version"], version + 1, "it has not seen the tablet's row");
    assert_eq!(result.version(), version + 3);

    for base in [version + 4, version + (1 << 40), 1 << 52, u64::MAX] {
        let ask = server.ask("POST", "/synchronise").of(&anna).json(&with_base(9, base));
        let answer = refused(&server, ask, "base").await;
        assert_eq!(answer.problem(), (410, "cursor_expired".into()), "{base}");
        assert_eq!(answer.json()["version"], version + 3);
    }
    // After a restore from backup the epoch is another: for a fresh owner at once.
    server.sql("UPDATE rollcall_meta SET value = 1 WHERE name = 'epoch'");
    let carl = server.device("carl", "phone");
    let ask = server.ask("POST", "/synchronise").of(&carl).json(&with_base(1, 1));
    assert_eq!(refused(&server, ask, "epoch").await.problem(), (410, "cursor_expired".into()));
    assert_eq!(server.sync(&carl, json!({})).await.version(), (1 << 40) + 1);
}

#[tokio::test]
async fn most_of_a_table_is_not_deleted_unasked() {
    let server = Server::with(|settings| settings.sync.mass_delete_rows = 4);
    let anna = server.device("anna", "phone");
    let rows = |n: u64| (0..n).map(|n| json!({ "lid": key(n), "title": "x" })).collect::<Vec<_>>();
    let keys = |n: u64| (0..n).map(key).collect::<Vec<_>>();
    server.sync(&anna, json!({ "add": { "lists": rows(8), "ours": [{ "id": key(1) }] } })).await.ok();
    let delete = json!({ "delete": { "lists": keys(6), "ours": [key(1)] } });
    let ask = |body: &Value| server.ask("POST", "/synchronise").of(&anna).json(body);
    for confirmed in [None, Some(0), Some(6), Some(8), Some(1_000)] {
        let mut body = delete.clone();
        if let Some(confirmed) = confirmed {
            body["confirm_deletes"] = json!(confirmed);
        }
        let answer = refused(&server, ask(&body), "mass").await;
        assert_eq!(answer.fault(), (422, "mass_delete".into(), "/delete/lists".into()));
        let result = answer.json();
        assert_eq!(
            (&result["deletes"], &result["rows"], &result["confirm_deletes"]),
            (&json!(6), &json!(8), &json!(7))
        );
    }
    // Half of a table, few rows, keys that are not there, and the same key again and again are no mass.
    let mut absent = keys(4);
    absent.extend((100..120).map(key));
    absent.extend(keys(4));
    let result = server.sync(&anna, json!({ "delete": { "lists": absent } })).await.ok();
    assert_eq!(
        verdicts(&result, "delete", "lists").iter().filter(|verdict| **verdict == "deleted").count(),
        4
    );
    // Four of the eight are gone, and the other four are more than half with them.
    let ask_again = ask(&json!({ "delete": { "lists": keys(8) } }));
    let result = refused(&server, ask_again, "the rest").await.json();
    assert_eq!(
        (&result["deletes"], &result["rows"], &result["deleted_before"]),
        (&json!(4), &json!(4), &json!(4))
    );
    server.sync(&anna, json!({ "delete": { "lists": keys(8) }, "confirm_deletes": 4 })).await.ok();
    server
        .sync(
            &anna,
            json!({ "add": { "theirs": (0..8).map(|n| json!({ "id": key(n) })).collect::<Vec<_>>() } }),
        )
        .await
        .ok();
    let result =
        server.sync(&anna, json!({ "delete": { "theirs": keys(8) }, "confirm_deletes": 8 })).await.ok();
    assert_eq!(verdicts(&result, "delete", "theirs"), ["deleted"; 8]);
}

/// Goal: a device that takes its own loss for the user's will is stopped, however little it deletes at once. Method: 1,000
/// rows in requests of 50 under one hold of the lock; the server is started anew on the way, and what goes wrong with a
/// request is not counted.
#[tokio::test]
async fn many_small_deletions_are_a_mass_deletion() {
    let server = Server::new();
    let anna = server.device("anna", "phone");
    let rows: Vec<Value> = (0..1_000).map(|n| json!({ "lid": key(n), "title": "x" })).collect();
    server.sync(&anna, json!({ "add": { "lists": rows } })).await.ok();
    let delete = |from: u64, more: Value| {
        let keys: Vec<String> = (from..from + 50).map(key).collect();
        let mut body = json!({ "delete": { "lists": keys }, "keep_lock": true });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    let (mut server, mut gone) = (server, 0);
    for lot in 0..10 {
        let mut try_out = delete(gone, json!({ "dry_run": true }));
        server.sync(&anna, try_out.clone()).await.ok();
        try_out["dry_run"] = json!(false);
        try_out["atomic"] = json!(true);
        try_out["add"] = json!({ "lists": [{ "lid": "no key" }] });
        assert_eq!(server.sync(&anna, try_out).await.status, 422);
        server.sync(&anna, delete(gone, json!({}))).await.ok();
        gone += 50;
        if lot == 4 {
            server = server.restarted();
        }
    }
    let answer = server.sync(&anna, delete(gone, json!({}))).await;
    assert_eq!(answer.fault(), (422, "mass_delete".into(), "/delete/lists".into()));
    let result = answer.json();
    assert_eq!(
        (&result["deletes"], &result["rows"], &result["deleted_before"], &result["confirm_deletes"]),
        (&json!(50), &json!(500), &json!(500), &json!(50))
    );
    assert_eq!(server.sync(&anna, delete(gone, json!({ "confirm_deletes": 1_000 }))).await.status, 422);
    assert_eq!(server.sync(&anna, delete(gone, json!({ "confirm_deletes": 50 }))).await.status, 200);
    // Confirmed, it begins anew with the 450 that are left: 200 more are less than half of these.
    for lot in 0..4 {
        server.sync(&anna, delete(600 + lot * 50, json!({}))).await.ok();
    }
    assert_eq!(server.sync(&anna, delete(800, json!({}))).await.status, 422);
    server.turn(3_600_000);
    server.sync(&anna, delete(800, json!({}))).await.ok();
}

/// Goal: a count of deletions begins with the first row that is deleted. Method: a deletion that is rejected;
/// almost an hour later some that are not, and soon after as many again.
#[tokio::test]
async fn a_rejected_deletion_begins_no_count() {
    let server = Server::with(|settings| settings.sync.mass_delete_rows = 4);
    let anna = server.device("anna", "phone");
    let rows: Vec<Value> = (0..10).map(|n| json!({ "lid": key(n), "title": "x" })).collect();
    let child = json!({ "iid": key(50), "title": "x", "list": key(9) });
    server.sync(&anna, json!({ "add": { "lists": rows, "items": [child] } })).await.ok();
    let delete = |keys: std::ops::Range<u64>| {
        let keys: Vec<String> = keys.map(key).collect();
        server.sync(&anna, json!({ "delete": { "lists": keys } }))
    };
    let rejected = delete(9..10).await.json();
    assert_eq!(verdicts(&rejected, "delete", "lists"), ["rejected"]);
    server.turn(59 * 60_000);
    delete(0..4).await.ok();
    server.turn(2 * 60_000);
    assert_eq!(delete(4..8).await.fault(), (422, "mass_delete".into(), "/delete/lists".into()));
    // An hour after the first one it counts no longer.
    server.turn(58 * 60_000);
    delete(4..6).await.ok();
}

/// Goal: a table in which rows come and go is no loss. Method: as many rows as the guard allows at once are made and
/// deleted, again and again, beside some that stay.
#[tokio::test]
async fn rows_that_come_and_go_are_no_mass_deletion() {
    let server = Server::with(|settings| settings.sync.mass_delete_rows = 4);
    let anna = server.device("anna", "phone");
    let rows = |from: u64, to: u64| -> Vec<Value> {
        (from..to).map(|n| json!({ "lid": key(n), "title": "x" })).collect()
    };
    server.sync(&anna, json!({ "add": { "lists": rows(0, 3) } })).await.ok();
    server.sync(&anna, json!({ "delete": { "lists": [key(0)] } })).await.ok(); // a count begins
    for lot in 1..20 {
        let from = lot * 10;
        server.sync(&anna, json!({ "add": { "lists": rows(from, from + 4) } })).await.ok();
        let keys: Vec<String> = (from..from + 4).map(key).collect();
        server.sync(&anna, json!({ "delete": { "lists": keys } })).await.ok();
    }
    // But all at once are.
    server.sync(&anna, json!({ "add": { "lists": rows(900, 906) } })).await.ok();
    let keys: Vec<String> = (900..906).map(key).collect();
    assert_eq!(server.sync(&anna, json!({ "delete": { "lists": keys } })).await.status, 422);
}

#[tokio::test]
async fn a_full_owner_may_delete_and_edit_but_not_grow() {
    let server = Server::with(|settings| {
        settings.limits.owner_rows_max = 3;
        settings.limits.owner_bytes_max = 60;
    });
    let anna = server.device("anna", "phone");
    let rows = |range: std::ops::Range<u64>| {
        range.map(|n| json!({ "lid": key(n), "title": "x" })).collect::<Vec<_>>()
    };
    let ask = |body: &Value| server.ask("POST", "/synchronise").of(&anna).json(body);
    server.sync(&anna, json!({ "add": { "lists": rows(0..3) } })).await.ok();
    for body in [
        json!({ "add": { "lists": rows(3..4) } }),
        json!({ "add": { "lists": rows(3..9) }, "delete": { "lists": [key(0)] } }),
        json!({ "update": { "lists": [{ "lid": key(0), "colour": "x".repeat(60) }] } }),
    ] {
        let answer = refused(&server, ask(&body), "quota").await;
        assert_eq!(answer.problem(), (507, "quota_exceeded".into()), "{body}");
    }
    server.sync(&anna, json!({ "update": { "lists": [{ "lid": key(0), "title": "y" }] } })).await.ok();
    let swap = json!({ "add": { "lists": rows(3..4) }, "delete": { "lists": [key(0)] } });
    assert_eq!(verdicts(&server.sync(&anna, swap).await.ok(), "add", "lists"), ["added"]);
    server.sync(&anna, json!({ "delete": { "lists": [key(1), key(2), key(3)] } })).await.ok();
    server.sync(&anna, json!({ "add": { "lists": rows(10..13) } })).await.ok();
}

#[tokio::test]
async fn a_wrong_clock_is_measured_and_corrected() {
    let server = Server::new();
    let anna = server.device("anna", "phone");
    for (off, result, stored) in [
        (0, 0, -60_000),
        (-1_500, 1_500, -61_500),
        (3_600_000, -3_600_000, -60_000),
        (-7_200_000, 7_200_000, -60_000),
    ] {
        let body = json!({
            "sent_at": server.time(off),
            "add": { "lists": [{ "lid": key(off.unsigned_abs()), "title": "x", "last_update": server.time(off - 60_000) }] },
        });
        let report = server.sync(&anna, body).await.ok();
        assert_eq!(report["clock_offset_ms"], result);
        assert_eq!(report["add"]["lists"][0]["last_update"], server.time(stored), "{off}");
    }
    assert!(server.sync(&anna, json!({})).await.ok().get("clock_offset_ms").is_none());
    for far in ["0001-01-01 00:00:00", "9999-12-30 00:00:00", "2013-05-01T15:42:50+23:59"] {
        server.sync(&anna, json!({ "sent_at": far, "add": { "lists": [{ "lid": key(5), "title": far, "last_update": far }] } })).await.ok();
    }
    // No time is later than now, whatever the device sends.
    let body = json!({ "add": { "lists": [{ "lid": key(6), "title": "x", "last_update": "9999-01-01 00:00:00" }] } });
    assert_eq!(server.sync(&anna, body).await.ok()["add"]["lists"][0]["last_update"], server.time(0));
}

/// Goal: the stored values are those that were sent. Method: every type, sent by one device and read by
/// another.
#[tokio::test]
async fn every_type_comes_back_as_it_was_sent() {
    let server = Server::new();
    let (anna, tablet) = (server.device("anna", "phone"), server.device("anna", "tablet"));
    let row = json!({
        "id": key(1), "text": "grüße \u{1F600} \\ \" \u{7}", "whole": "9223372036854775807", "real": 0.1,
        "exact": "1234567890.0123456789", "flag": true, "other": key(2), "at": "2013-05-01T15:42:50.343Z",
        "day": "2013-05-01", "extra": { "a": [1, null, { "b": "c" }] }, "bytes": "AP8=", "made": "2013-05-01T00:00:00.000Z",
    });
    server.sync(&anna, json!({ "add": { "things": [row] } })).await.ok();
    let mut back = server.row(&tablet, "things", &key(1)).await.unwrap();
    back.as_object_mut().unwrap().remove("last_update");
    assert_eq!(back, row);
    let result = server.sync(&tablet, json!({ "update": { "things": [back] } })).await.ok();
    assert_eq!(verdicts(&result, "update", "things"), ["same"]);
    let empty = server.sync(&anna, json!({ "add": { "things": [{ "id": key(2) }] } })).await.ok();
    assert_eq!(empty["add"]["things"][0]["row"]["made"], server.time(0), "a default is told");
}

/// The core seed's rows and its own body, as they stand.
#[tokio::test]
async fn the_seeds_bodies_are_taken_as_they_stand() {
    let file = |name: &str| std::fs::read_to_string(format!("fixtures/wedding/{name}")).unwrap();
    let json_of = |name: &str| -> Value { serde_json::from_str(&file(name)).unwrap() };
    let server = Server::of(&file("schema.toml"), |_| {});
    let anna = server.device("anna", "phone");
    server.sync(&anna, json_of("rows.json")).await.ok();
    let sorted = |mut manifest: Value| {
        for entries in manifest.as_object_mut().unwrap().values_mut() {
            entries.as_array_mut().unwrap().sort_by_key(Value::to_string);
        }
        manifest
    };
    assert_eq!(sorted(server.manifest(&anna).await), sorted(json_of("fetch.json")));
    let body = json_of("synchronise.json");
    let first = server.sync(&anna, body.clone()).await;
    assert_eq!(verdicts(&first.ok(), "add", "budget"), ["added"; 4]);
    let again = server.sync(&anna, body).await;
    assert_eq!(verdicts(&again.ok(), "add", "budget"), ["same"; 4]);
    assert_eq!(again.version(), first.version());
}

/// Goal: the cost of a list does not grow with the square of its length. Method: a chain in completely wrong
/// order, in both directions; a minute is far more than one look at each row takes.
#[tokio::test]
async fn a_long_chain_in_the_wrong_order_is_settled() {
    let server = Server::new();
    let anna = server.device("anna", "phone");
    let started = Instant::now();
    let row = |n: u64| json!({ "id": key(n), "parent": (n > 0).then(|| key(n - 1)) });
    let result = server
        .sync(&anna, json!({ "add": { "nodes": (0..5_000).rev().map(row).collect::<Vec<_>>() } }))
        .await
        .ok();
    assert_eq!(verdicts(&result, "add", "nodes"), ["added"; 5_000]);
    let keys: Vec<_> = (0..5_000).map(key).collect();
    let result =
        server.sync(&anna, json!({ "delete": { "nodes": keys }, "confirm_deletes": 5_000 })).await.ok();
    assert_eq!(verdicts(&result, "delete", "nodes"), ["deleted"; 5_000]);
    assert!(started.elapsed() < Duration::from_secs(60), "{:?}", started.elapsed());
}

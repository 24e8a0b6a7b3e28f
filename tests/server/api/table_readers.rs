//! Tables that only members of some roles read: for all others they look empty.

use rollcall::model::Role;

use super::*;

/// `lists` for everybody, `items` for members who write, `nodes` for managers. An item names a list.
fn served() -> Server {
    let schema = app::SCHEMA
        .replace("[table.items]\n", "[table.items]\nread = \"write\"\n")
        .replace("[table.nodes]\n", "[table.nodes]\nread = \"manage\"\n");
    Server::of(&schema, |settings| {
        settings.dialects.dialects = rollcall::dialects::Dialect::ALL.to_vec();
    })
}

fn about(path: &str, owner: &str) -> String {
    format!("{path}{}owner={owner}", if path.contains('?') { '&' } else { '?' })
}

/// Anna's rows: one list, one item of it, two nodes. Also a conflict about the item and one about a node.
async fn furnished() -> (Server, Device, String) {
    let server = served();
    let (phone, tablet) = (server.device("anna", "phone"), server.device("anna", "tablet"));
    let rows = json!({ "add": {
        "lists": [{ "lid": key(1), "title": "shown" }],
        "items": [{ "iid": key(11), "title": "hidden item", "list": key(1) }],
        "nodes": [{ "id": key(21), "name": "hidden node" }, { "id": key(22), "name": "hidden other" }],
    } });
    server.sync(&phone, rows).await.ok();
    for title in ["hidden b", "hidden c"] {
        server.turn(10);
        let long_ago = "2020-01-01T00:00:00.000Z";
        let body = json!({ "update": {
            "items": [{ "iid": key(11), "title": title, "_base": long_ago }],
            "nodes": [{ "id": key(21), "name": title, "_base": long_ago }],
        } });
        server.sync(if title == "hidden b" { &tablet } else { &phone }, body).await.ok();
    }
    let owner = server.owner("anna").0.to_string();
    let conflicts = server.get("/conflicts").of(&phone).send().await.ok();
    assert!(conflicts["conflicts"].as_array().unwrap().len() >= 2, "{conflicts}");
    (server, phone, owner)
}

fn member(server: &Server, name: &str, role: Role) -> Device {
    let device = server.device(name, "phone");
    server.admit("anna", name, role);
    device
}

/// What a text of a response must not contain, by role: titles and keys of rows that the role does not read.
fn hidden_from(role: Role) -> Vec<String> {
    let nodes = ["hidden node".into(), "hidden other".into(), key(21), key(22)];
    let items = ["hidden item".into(), key(11)];
    match role {
        Role::Manage => Vec::new(),
        Role::Write => nodes.into(),
        Role::Read => [nodes.to_vec(), items.to_vec(), vec!["hidden b".into(), "hidden c".into()]].concat(),
    }
}

fn digest_counts(answer: &Value) -> [u64; 3] {
    let tables = answer.get("digests").unwrap_or(answer).get("tables").unwrap();
    ["lists", "items", "nodes"].map(|table| tables[table]["count"].as_u64().unwrap())
}

/// Goal: nothing of a hidden table is in any response. Method: every way to read an owner's rows, as each role, beside the
/// manager's requests that fill what is kept in memory; first and second time.
#[tokio::test]
async fn a_hidden_table_looks_empty_in_every_response() {
    let (server, anna, owner) = furnished().await;
    let members =
        [Role::Read, Role::Write, Role::Manage].map(|role| (role, member(&server, role.name(), role)));
    let version = server.version_of("anna");
    let get = json!({ "lists": [key(1)], "items": [key(11)], "nodes": [key(21), key(22), key(21)] });
    let requests: Vec<(&str, Option<Value>)> = vec![
        ("/fetch?lock=false", None),
        ("/fetch?lock=false&tables=nodes,items", None),
        ("/changes", None),
        ("/changes?limit=1", None),
        ("/changes?tables=nodes", None),
        ("/digests", None),
        ("/conflicts", None),
        ("/conflicts?table=nodes", None),
        ("/synchronise", Some(json!({ "get": get }))),
        ("/synchronise", Some(json!({ "pull": true }))),
        ("/synchronise", Some(json!({ "base": version, "get": get, "pull": true }))),
    ];
    for round in 0..2 {
        for (path, body) in &requests {
            for (role, device) in members.iter().rev().chain(&members) {
                let method = if body.is_some() { "POST" } else { "GET" };
                let mut ask = server.ask(method, &about(path, &owner)).of(device);
                if let Some(body) = body {
                    ask = ask.json(body);
                }
                let answer = ask.send().await;
                assert_eq!(answer.status, 200, "{path} {:?}", answer.problem());
                let mut shown = answer.json();
                shown.as_object_mut().unwrap().remove("missing"); // the keys as they were sent
                let text = shown.to_string();
                for hidden in hidden_from(*role) {
                    assert!(!text.contains(&hidden), "{role:?} {path} {round}: {hidden}: {text}");
                }
                if *role == Role::Manage && path.contains("nodes") {
                    assert!(text.contains(&key(21)), "{path}: {text}");
                }
            }
        }
    }
    for (role, device) in &members {
        let counts = match role {
            Role::Read => [1, 0, 0],
            Role::Write => [1, 1, 0],
            Role::Manage => [1, 1, 2],
        };
        let digests = server.get(&about("/digests", &owner)).of(device).send().await.ok();
        assert_eq!(digest_counts(&digests), counts, "{role:?}");
        let changes = server.get(&about("/changes", &owner)).of(device).send().await.ok();
        assert_eq!(digest_counts(&changes), counts, "{role:?}");
        let unchanged = about(&format!("/changes?since={version}"), &owner);
        for _ in 0..2 {
            let unchanged = server.get(&unchanged).of(device).send().await.ok();
            assert_eq!(digest_counts(&unchanged), counts, "{role:?}, from memory");
        }
        let report =
            server.ask("POST", &about("/synchronise", &owner)).of(device).json(&json!({ "pull": true }));
        assert_eq!(digest_counts(&report.send().await.ok()), counts, "{role:?}");
        let lines =
            server.get(&about("/changes", &owner)).of(device).header("accept", "application/x-ndjson");
        let text = String::from_utf8(lines.send().await.bytes.to_vec()).unwrap();
        assert!(hidden_from(*role).iter().all(|hidden| !text.contains(hidden)), "{role:?}: {text}");
    }
    drop(anna);
    server.check_whole();
}

/// Goal: two roles never share a response. Method: the manager's entity tag, sent by others.
#[tokio::test]
async fn an_entity_tag_is_of_what_one_may_read() {
    let (server, _, owner) = furnished().await;
    let [reader, writer, manager] =
        [Role::Read, Role::Write, Role::Manage].map(|role| member(&server, role.name(), role));
    let fetch = about("/fetch?lock=false", &owner);
    let tag = async |device: &Device| {
        let answer = server.get(&fetch).of(device).send().await;
        answer.header("etag").unwrap().to_owned()
    };
    let tags = [tag(&reader).await, tag(&writer).await, tag(&manager).await];
    for (index, device) in [&reader, &writer, &manager].into_iter().enumerate() {
        for (of, tag) in tags.iter().enumerate() {
            let answer = server.get(&fetch).of(device).header("if-none-match", tag).send().await;
            assert_eq!(answer.status == 304, index == of, "{index} {of}");
        }
    }
}

/// Goal: a write to a hidden table is a verdict for its row that says nothing of what is there, and no other row suffers.
#[tokio::test]
async fn a_write_to_a_hidden_table_is_rejected_and_learns_nothing() {
    let (server, anna, owner) = furnished().await;
    let writer = member(&server, "writer", Role::Write);
    let body = json!({
        "add": { "nodes": [{ "id": key(21), "name": "x" }, { "id": key(29), "name": "x" }],
                 "lists": [{ "lid": key(2), "title": "written" }] },
        "update": { "nodes": [{ "id": key(21), "name": "x" }, { "id": key(28), "name": "x" }] },
        "delete": { "nodes": [key(22), key(27), "no key"] },
    });
    let ask = || server.ask("POST", &about("/synchronise", &owner)).of(&writer);
    let report = ask().json(&body).send().await.ok();
    assert_eq!(verdicts(&report, "add", "lists"), ["added"]);
    for operation in ["add", "update", "delete"] {
        let rows = report[operation]["nodes"].as_array().unwrap();
        let shape = |row: &Value| {
            let mut row = row.clone();
            row.as_object_mut().unwrap().remove("id");
            row["error"].as_object_mut().unwrap().remove("at");
            row
        };
        assert_eq!(
            shape(&rows[0]),
            shape(&rows[1]),
            "{operation}: a row that is there is like one that is not"
        );
        assert_eq!(rows[0]["error"]["code"], "not_allowed", "{operation}");
        assert!(rows[0].get("row").is_none() && rows[0].get("last_update").is_none_or(Value::is_null));
    }
    // A row that refers to another keeps it, and is not named.
    let items = json!({ "delete": { "items": [key(11)] } });
    let reader_of_lists = json!({ "delete": { "lists": [key(1)] } });
    let refused = ask().json(&reader_of_lists).send().await.ok();
    assert_eq!(refused["delete"]["lists"][0]["error"]["code"], "still_referenced");
    assert_eq!(verdicts(&ask().json(&items).send().await.ok(), "delete", "items"), ["deleted"]);
    let rows = server.manifest(&anna).await;
    assert_eq!(rows["nodes"].as_array().unwrap().len(), 2);
    server.check_whole();
}

/// Goal: a row that refers to one that is to be deleted stays unnamed, if the sender may not read it.
#[tokio::test]
async fn a_hidden_row_that_refers_to_another_is_not_named() {
    let schema = app::SCHEMA.replace("[table.items]\n", "[table.items]\nread = \"manage\"\n");
    let server = Server::of(&schema, |_| {});
    let anna = server.device("anna", "phone");
    server
        .sync(
            &anna,
            json!({ "add": {
            "lists": [{ "lid": key(1), "title": "a" }],
            "items": [{ "iid": key(11), "title": "b", "list": key(1) }],
        } }),
        )
        .await
        .ok();
    let writer = member(&server, "writer", Role::Write);
    let owner = server.owner("anna").0.to_string();
    let body = json!({ "delete": { "lists": [key(1)] }, "get": { "items": [key(11)] } });
    let report = server.ask("POST", &about("/synchronise", &owner)).of(&writer).json(&body).send().await.ok();
    let error = &report["delete"]["lists"][0]["error"];
    assert_eq!(error["code"], "still_referenced");
    assert_eq!(error["detail"], "a row that you may not read refers to it");
    let named = server.sync(&anna, json!({ "delete": { "lists": [key(1)] } })).await.ok();
    assert!(named["delete"]["lists"][0]["error"]["detail"].as_str().unwrap().contains(&key(11)));
    server.check_whole();
}

/// Goal: a conflict in a hidden table cannot be found nor brought back.
#[tokio::test]
async fn a_conflict_of_a_hidden_table_does_not_exist() {
    let (server, anna, owner) = furnished().await;
    let writer = member(&server, "writer", Role::Write);
    let all = server.get("/conflicts").of(&anna).send().await.ok();
    let id = |table: &str| {
        let mut conflicts = all["conflicts"].as_array().unwrap().iter();
        conflicts.find(|one| one["table"] == table).unwrap()["id"].as_str().unwrap().to_owned()
    };
    let restore = async |id: &str| {
        let path = about(&format!("/conflicts/{id}/restore"), &owner);
        server.ask("POST", &path).of(&writer).send().await
    };
    let (hidden, unknown) = (restore(&id("nodes")).await, restore(&key(0xdead)).await);
    assert_eq!((hidden.status, &hidden.bytes), (unknown.status, &unknown.bytes));
    restore(&id("items")).await.ok();
    let listed = server.get(&about("/conflicts", &owner)).of(&writer).send().await.ok();
    assert!(listed["conflicts"].as_array().unwrap().iter().all(|one| one["table"] == "items"), "{listed}");
}

/// Goal: a role that reads other tables ends the cursors and the kept responses of before; one that reads the same tables
/// ends none.
#[tokio::test]
async fn another_role_ends_cursors_if_it_reads_other_tables() {
    let (server, anna, owner) = furnished().await;
    let ben = member(&server, "ben", Role::Write);
    let version = server.version_of("anna");
    let ask = |path: &str| server.get(&about(path, &owner)).of(&ben);
    let since = format!("/changes?since={version}");
    let sync = || {
        let body = json!({ "get": { "items": [key(11)] } });
        server.ask("POST", &about("/synchronise", &owner)).of(&ben).header("idempotency-key", "k").json(&body)
    };
    ask(&since).send().await.ok();
    let page = ask("/changes?limit=1").send().await.ok()["next"].as_str().unwrap().to_owned();
    assert_eq!(sync().send().await.ok()["get"]["items"].as_array().unwrap().len(), 1);

    let set_role = async |role: Role| {
        let path = format!("/owners/{owner}/members/{}", server.user_id("ben"));
        let answer = server.ask("PUT", &path).of(&anna).json(&json!({ "role": role.name() })).send().await;
        assert_eq!(answer.status, 204);
    };
    set_role(Role::Read).await;
    assert_eq!(ask(&since).send().await.problem(), (410, "cursor_expired".into()));
    assert_eq!(ask(&format!("/changes?next={page}")).send().await.problem(), (410, "cursor_expired".into()));
    let again = sync().send().await.ok();
    assert_eq!(
        again["missing"]["items"],
        json!([key(11)]),
        "a kept response shows no row that one may not read now"
    );
    let base = json!({ "base": version, "pull": true });
    let stale = server.ask("POST", &about("/synchronise", &owner)).of(&ben).json(&base).send().await;
    assert_eq!(stale.problem().0, 410);

    // Back again: what it missed meanwhile comes with everything else.
    let version = server.version_of("anna");
    ask(&format!("/changes?since={version}")).send().await.ok();
    set_role(Role::Write).await;
    assert_eq!(ask(&format!("/changes?since={version}")).send().await.problem().0, 410);
    let all = ask("/changes").send().await.ok();
    assert_eq!(all["add"]["items"].as_array().unwrap().len(), 1, "{all}");
    server.check_whole();
}

/// Goal: pages go on behind rows that are not shown, and name none of them. Method: more hidden rows than a page may read.
#[tokio::test]
async fn pages_go_on_behind_hidden_rows() {
    let schema = app::SCHEMA.replace("[table.nodes]\n", "[table.nodes]\nread = \"manage\"\n");
    let server = Server::of(&schema, |settings| settings.sync.page_entries_max = 10);
    let anna = server.device("anna", "phone");
    let nodes: Vec<_> = (0..35).map(|n| json!({ "id": key(100 + n), "name": "hidden" })).collect();
    server.sync(&anna, json!({ "add": { "nodes": nodes } })).await.ok();
    for n in 0..25 {
        let row = json!({ "add": { "nodes": [{ "id": key(200 + n), "name": "hidden" }] } });
        server.sync(&anna, row).await.ok();
    }
    server.sync(&anna, json!({ "add": { "lists": [{ "lid": key(1), "title": "shown" }] } })).await.ok();
    let ben = member(&server, "ben", Role::Read);
    let owner = server.owner("anna").0.to_string();
    let (mut query, mut pages, mut lists) = (String::new(), 0, Vec::new());
    loop {
        let page = server.get(&about(&format!("/changes{query}"), &owner)).of(&ben).send().await.ok();
        lists.extend(page["add"]["lists"].as_array().into_iter().flatten().cloned());
        pages += 1;
        let Some(next) = page["next"].as_str() else { break };
        let token = next.split('.').next().unwrap();
        let text = base64::Engine::decode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, token).unwrap();
        let text = String::from_utf8(text).unwrap();
        assert!((0..60).all(|n| !text.contains(&key(100 + n)) && !text.contains(&key(200 + n))), "{text}");
        query = format!("?next={next}");
        assert!(pages < 20);
    }
    assert_eq!(lists.len(), 1);
    assert!(pages > 1);
    let fetched = server.get(&about("/fetch?lock=false", &owner)).of(&ben).send().await.ok();
    assert_eq!((fetched["nodes"].clone(), fetched["lists"].as_array().unwrap().len()), (json!([]), 1));
}

//! Several users with the rows of one owner, in different roles.

use rollcall::model::Role;

use super::*;

/// Each request about the rows of an owner, to be named with `?owner=`.
const REQUESTS: &[(&str, &str)] = &[
    ("GET", "/fetch"),
    ("GET", "/fetch?lock=false"),
    ("GET", "/changes"),
    ("GET", "/digests"),
    ("GET", "/conflicts"),
    ("POST", "/conflicts/01901651-7d2e-7a3b-9c4d-5e6f708192a3/restore"),
    ("GET", "/lock"),
    ("POST", "/lock"),
    ("DELETE", "/lock?break=true"),
    ("GET", "/events"),
    ("POST", "/synchronise"),
];

fn about(path: &str, owner: &str) -> String {
    format!("{path}{}owner={owner}", if path.contains('?') { '&' } else { '?' })
}

fn ask(server: &Server, device: &Device, (method, path): (&str, &str), owner: &str) -> Ask {
    let ask = server.ask(method, &about(path, owner)).of(device);
    if path == "/synchronise" {
        return ask.json(&json!({ "add": { "lists": [{ "lid": key(77), "title": "new" }] } }));
    }
    ask
}

/// Goal: nobody learns whether an owner exists. Method: a stranger, one who was a member, and an owner that nobody has.
#[tokio::test]
async fn who_is_no_member_learns_nothing() {
    let (server, anna, ben) = furnished().await;
    let owner = server.owner("anna").0.to_string();
    let former = server.device("former", "phone");
    server.admit("anna", "former", Role::Write);
    for request in REQUESTS {
        let answer = ask(&server, &former, *request, &owner).send().await;
        assert_ne!(answer.status, 403, "{request:?}: {}", String::from_utf8_lossy(&answer.bytes));
    }
    server.ask("DELETE", &about("/lock", &owner)).of(&former).send().await;
    server.dismiss("anna", "former");
    for request in REQUESTS {
        let unknown = ask(&server, &ben, *request, &key(0xdead)).send().await;
        assert_eq!(unknown.problem(), (403, "not_a_member".into()), "{request:?}");
        for device in [&ben, &former] {
            let answer = refused(&server, ask(&server, device, *request, &owner), "no member").await;
            assert_eq!(bytes(&answer), bytes(&unknown), "{request:?}");
        }
    }
    // Nothing of it touched the owner, nor its lock.
    assert_eq!(server.get("/lock").of(&anna).send().await.ok(), json!({ "held": false }));
    server.fetch(&anna, "").await.ok();
    for owner in ["", "7", "0190163d8694739baea5966c26f8ad91", &format!("{owner}&owner={owner}")] {
        let answer = server.get(&about("/fetch", owner)).of(&ben).send().await;
        assert_eq!(answer.problem(), (400, "invalid_request".into()), "{owner}");
    }
}

/// Goal: a former member does not learn which device syncs. Method: another device holds the lock, and the server still has
/// the role in memory.
#[tokio::test]
async fn a_former_member_does_not_learn_who_holds_the_lock() {
    let (server, anna, _) = furnished().await;
    let owner = server.owner("anna").0.to_string();
    let former = server.device("former", "phone");
    server.ask("POST", "/lock").of(&anna).send().await.ok();
    for request in REQUESTS {
        server.admit("anna", "former", Role::Write);
        server.get(&about("/digests", &owner)).of(&former).send().await.ok();
        server.dismiss("anna", "former");
        let answer = ask(&server, &former, *request, &owner).send().await;
        assert_eq!(answer.problem(), (403, "not_a_member".into()), "{request:?}");
    }
}

/// Goal: a user has rows of their own and shares others, and neither are mixed up. Method: one device, two owners.
#[tokio::test]
async fn one_device_syncs_with_two_owners() {
    let (server, anna, ben) = furnished().await;
    let owner = server.owner("anna").0.to_string();
    server.admit("anna", "ben", Role::Write);
    let own = server.manifest(&ben).await;
    let shared = server.get(&about("/fetch?lock=false", &owner)).of(&ben).send().await;
    assert_eq!(shared.json(), server.manifest(&anna).await);
    assert_ne!(shared.json(), own);

    let add = json!({ "add": { "lists": [{ "lid": key(60), "title": "from Ben" }] } });
    let added = server.ask("POST", &about("/synchronise", &owner)).of(&ben).json(&add).send().await.ok();
    assert_eq!(verdicts(&added, "add", "lists"), ["added"]);
    assert_eq!(server.row(&anna, "lists", &key(60)).await.unwrap()["title"], "from Ben");
    assert_eq!(server.manifest(&ben).await, own);

    // The lock is the owner's.
    server.fetch(&anna, "").await.ok();
    assert_eq!(server.get(&about("/fetch", &owner)).of(&ben).send().await.status, 423);
    server.fetch(&ben, "").await.ok();
    // `Sync-For` is of the owner that the request names.
    let of = |user: &str, owner: &str| format!("{}.{owner}", server.user_id(user));
    let meant = |owned: String| server.get(&about("/digests", &owner)).of(&ben).header("sync-for", owned);
    meant(of("ben", &owner)).send().await.ok();
    let other = meant(of("ben", &server.owner("ben").0.to_string())).send().await;
    assert_eq!(other.problem(), (409, "other_user".into()));
    server.check_whole();
}

/// Goal: tokens and tags of one owner are of no use at another. Method: pages of two owners that are alike.
#[tokio::test]
async fn pages_and_tags_are_of_one_owner() {
    let server = Server::with(|settings| settings.sync.fetch_rows_max = 1);
    let (anna, ben) = (server.device("anna", "phone"), server.device("ben", "phone"));
    server.admit("anna", "ben", Role::Read);
    server.admit("ben", "anna", Role::Read); // the versions are the same
    let rows =
        json!({ "add": { "lists": [{ "lid": key(1), "title": "a" }, { "lid": key(2), "title": "b" }] } });
    for device in [&anna, &ben] {
        server.sync(device, rows.clone()).await.ok();
    }
    let owner = server.owner("anna").0.to_string();
    let first = server.get(&about("/fetch?lock=false", &owner)).of(&ben).send().await;
    let link = first.header("link").unwrap();
    assert!(link.contains(&format!("owner={owner}")), "{link}");
    let page = link.split("page=").nth(1).unwrap().split(['&', '>']).next().unwrap().to_owned();
    let next = server.get(&about(&format!("/fetch?lock=false&page={page}"), &owner)).of(&ben).send().await;
    assert_eq!(next.ok()["lists"][0]["lid"], key(2));
    let strange = server.fetch(&ben, &format!("?lock=false&page={page}")).await;
    assert_eq!(strange.problem(), (400, "invalid_request".into()));
    let own = server.fetch(&ben, "?lock=false").await;
    let own_page = own.header("link").unwrap().split("page=").nth(1).unwrap();
    let own_page = own_page.split(['&', '>']).next().unwrap();
    let strange =
        server.get(&about(&format!("/fetch?lock=false&page={own_page}"), &owner)).of(&ben).send().await;
    assert_eq!(strange.problem(), (400, "invalid_request".into()));

    let tag = own.header("etag").unwrap();
    let again = server.get("/fetch?lock=false").of(&ben).header("if-none-match", tag).send().await;
    assert_eq!(again.status, 304);
    let other =
        server.get(&about("/fetch?lock=false", &owner)).of(&ben).header("if-none-match", tag).send().await;
    assert_eq!(other.status, 200);
    let feed = server.get(&about("/changes?limit=1", &owner)).of(&ben).send().await.ok();
    let next = feed["next"].as_str().unwrap();
    server.get(&about(&format!("/changes?next={next}"), &owner)).of(&ben).send().await.ok();
    let strange = server.get(&format!("/changes?next={next}")).of(&ben).send().await;
    assert_eq!(strange.problem(), (400, "invalid_request".into()));
}

/// Goal: the page token in the response to a sync is of the owner that the request names. Method: a feed of two pages, begun
/// by a sync without and with an `Idempotency-Key`.
#[tokio::test]
async fn a_sync_with_a_shared_owner_goes_on_at_the_next_page() {
    let server = Server::with(|settings| settings.sync.changes_rows_max = 1);
    let (anna, ben) = (server.device("anna", "phone"), server.device("ben", "phone"));
    server.admit("anna", "ben", Role::Write);
    let rows =
        json!({ "add": { "lists": [{ "lid": key(1), "title": "a" }, { "lid": key(2), "title": "b" }] } });
    server.sync(&anna, rows).await.ok();
    let path = about("/synchronise", &server.owner("anna").0.to_string());
    let body = json!({ "pull": true, "add": { "lists": [{ "lid": key(3), "title": "c" }] } });
    for attempt in 0..3 {
        let sync = server.ask("POST", &path).of(&ben).json(&body);
        // The last one is a repetition, which gets the kept response.
        let sync = if attempt == 0 { sync } else { sync.header("idempotency-key", "k") };
        let synced = sync.send().await.ok();
        let next = synced["changes"]["next"].as_str().unwrap();
        let page = about(&format!("/changes?next={next}"), &server.owner("anna").0.to_string());
        server.get(&page).of(&ben).send().await.ok();
        let strange = server.get(&format!("/changes?next={next}")).of(&ben).send().await;
        assert_eq!(strange.problem(), (400, "invalid_request".into()));
    }
}

/// Goal: nothing that a reader sends is stored, none of it is a refused request, and a reader keeps no writer out.
#[tokio::test]
async fn a_reader_changes_nothing() {
    let (server, anna, _) = furnished().await;
    let owner = server.owner("anna").0.to_string();
    let reader = server.device("reader", "phone");
    server.admit("anna", "reader", Role::Read);
    let (rows, version) = (server.manifest(&anna).await, server.version_of("anna"));
    let fetched = server.get(&about("/fetch", &owner)).of(&reader).send().await;
    assert_eq!((fetched.header("sync-lock"), fetched.json()), (None, rows.clone()));
    let held = server.fetch(&anna, "").await.fence();

    let body = json!({
        "base": version, "pull": true,
        "add": { "lists": [{ "lid": key(60), "title": "new" }, { "lid": key(1), "title": "again" }] },
        "update": { "lists": [{ "lid": key(1), "title": "mine" }, { "lid": key(61), "title": "none" }] },
        "delete": { "lists": [key(1), key(2)], "items": [key(1)], "nodes": [key(1), key(2)] },
        "get": { "lists": [key(2)] },
    });
    let sent = server.ask("POST", &about("/synchronise", &owner)).of(&reader).json(&body).send().await;
    let report = sent.ok();
    for (operation, table, rows) in
        [("add", "lists", 2), ("update", "lists", 2), ("delete", "lists", 2), ("delete", "items", 1)]
    {
        assert_eq!(verdicts(&report, operation, table), vec!["rejected"; rows]);
        for row in report[operation][table].as_array().unwrap() {
            assert_eq!(row["error"]["code"], "not_allowed", "{row}");
        }
    }
    assert_eq!(report["get"]["lists"][0]["title"], "Chores");
    let atomic = json!({ "atomic": true, "delete": { "lists": [key(2)] } });
    let sent = server.ask("POST", &about("/synchronise", &owner)).of(&reader).json(&atomic).send().await;
    assert_eq!(sent.problem(), (422, "batch_rejected".into()));
    for request in [("POST", "/lock"), ("DELETE", "/lock"), ("DELETE", "/lock?break=true")] {
        let answer = refused(&server, ask(&server, &reader, request, &owner), "a reader").await;
        assert_eq!(answer.problem(), (403, "not_allowed".into()), "{request:?}");
    }
    let restore = ("POST", "/conflicts/01901651-7d2e-7a3b-9c4d-5e6f708192a3/restore");
    let answer = refused(&server, ask(&server, &reader, restore, &owner), "a reader").await;
    assert_eq!(answer.problem(), (403, "not_allowed".into()));
    // The writer kept its lock all along.
    let kept = server.ask("POST", "/synchronise").of(&anna).header("sync-lock", held).json(&json!({}));
    kept.send().await.ok();
    assert_eq!((server.manifest(&anna).await, server.version_of("anna")), (rows, version));
    server.check_whole();
}

/// Goal: members read a table that only managers write, and change the other ones. Method: each kind of change by a writer,
/// beside the same one of another table; then the writer becomes a manager.
#[tokio::test]
async fn a_table_that_only_managers_write() {
    let schema = app::SCHEMA.replace("[table.lists]\n", "[table.lists]\nwrite = \"manage\"\n");
    assert_ne!(schema, app::SCHEMA);
    let server = Server::of(&schema, |_| {});
    let (anna, ben) = (server.device("anna", "phone"), server.device("ben", "phone"));
    let owner = server.owner("anna").0.to_string();
    let made = json!({ "add": { "lists": [
        { "lid": key(1), "title": "Chores" }, { "lid": key(2), "title": "Old" }
    ] } });
    server.sync(&anna, made).await.ok();
    server.admit("anna", "ben", Role::Write);
    let body = json!({
        "add": { "lists": [{ "lid": key(3), "title": "new" }], "items": [{ "iid": key(1), "title": "x", "list": key(1) }] },
        "update": { "lists": [{ "lid": key(1), "title": "mine" }] },
        "delete": { "lists": [key(2)] },
        "get": { "lists": [key(1)] },
    });
    let sent = async || {
        let ask = server.ask("POST", &about("/synchronise", &owner)).of(&ben).json(&body);
        ask.send().await.ok()
    };
    let report = sent().await;
    for operation in ["add", "update", "delete"] {
        assert_eq!(verdicts(&report, operation, "lists"), ["rejected"], "{operation}");
        assert_eq!(report[operation]["lists"][0]["error"]["code"], "not_allowed", "{operation}");
    }
    assert_eq!(
        report["update"]["lists"][0]["row"]["title"], "Chores",
        "the present row comes with the verdict"
    );
    assert_eq!(verdicts(&report, "add", "items"), ["added"]);
    assert_eq!(report["get"]["lists"][0]["title"], "Chores");
    server.check_whole();
    server.admit("anna", "ben", Role::Manage);
    let report = sent().await;
    let got = ["add", "update", "delete"].map(|operation| verdicts(&report, operation, "lists").concat());
    assert_eq!(got, ["added", "updated", "deleted"]);
    server.check_whole();
}

/// Goal: what lost in a table that only managers write is brought back by managers alone.
#[tokio::test]
async fn a_conflict_of_a_table_that_only_managers_write() {
    let schema = app::SCHEMA.replace("[table.lists]\n", "[table.lists]\nwrite = \"manage\"\n");
    let server = Server::of(&schema, |_| {});
    let (phone, tablet) = (server.device("anna", "phone"), server.device("anna", "tablet"));
    let ben = server.device("ben", "phone");
    let owner = server.owner("anna").0.to_string();
    server.admit("anna", "ben", Role::Write);
    let row = |title: &str, base: &Value| json!({ "lid": key(1), "title": title, "_base": base });
    let made =
        server.sync(&phone, json!({ "add": { "lists": [{ "lid": key(1), "title": "a" }] } })).await.ok();
    let base = made["add"]["lists"][0]["last_update"].clone();
    server.turn(10);
    server.sync(&phone, json!({ "update": { "lists": [row("b", &base)] } })).await.ok();
    server.turn(10);
    server.sync(&tablet, json!({ "update": { "lists": [row("c", &base)] } })).await.ok();
    let conflicts = server.get(&about("/conflicts", &owner)).of(&ben).send().await.ok();
    let restore = format!("/conflicts/{}/restore", conflicts["conflicts"][0]["id"].as_str().unwrap());
    let version = server.version_of("anna");
    let answer = ask(&server, &ben, ("POST", &restore), &owner).send().await;
    assert_eq!(answer.problem(), (403, "not_allowed".into()));
    assert_eq!(server.version_of("anna"), version);
    ask(&server, &phone, ("POST", &restore), &owner).send().await.ok();
    server.check_whole();
}

/// Goal: a role holds from the moment that it changes, whatever is kept in memory. Method: each request before and after
/// each change, with responses from memory in between.
#[tokio::test]
async fn a_role_holds_from_the_moment_it_changes() {
    let (server, anna, _) = furnished().await;
    let owner = server.owner("anna").0.to_string();
    let carl = server.device("carl", "phone");
    let sync = |title: &str| {
        let body = json!({ "update": { "lists": [{ "lid": key(1), "title": title }] } });
        server.ask("POST", &about("/synchronise", &owner)).of(&carl).json(&body)
    };
    let read = |query: &str| server.get(&about(&format!("/fetch?lock=false{query}"), &owner)).of(&carl);
    assert_eq!(sync("a").send().await.problem(), (403, "not_a_member".into()));

    server.admit("anna", "carl", Role::Read);
    let tag = read("").send().await.header("etag").unwrap().to_owned();
    assert_eq!(read("").header("if-none-match", &tag).send().await.status, 304);
    assert_eq!(verdicts(&sync("b").send().await.ok(), "update", "lists"), ["rejected"]);
    server.admit("anna", "carl", Role::Write);
    assert_eq!(read("").header("if-none-match", &tag).send().await.status, 200);
    assert_eq!(verdicts(&sync("c").send().await.ok(), "update", "lists"), ["updated"]);
    server.turn(10);
    server.admit("anna", "carl", Role::Read);
    assert_eq!(verdicts(&sync("d").send().await.ok(), "update", "lists"), ["rejected"]);
    let tag = read("").send().await.header("etag").unwrap().to_owned();
    let (cursor, next) = (server.version_of("anna"), about("/changes?limit=1", &owner));
    let next = server.get(&next).of(&carl).send().await.ok()["next"].as_str().unwrap().to_owned();
    let since = |version: u64| server.get(&about(&format!("/changes?since={version}"), &owner)).of(&carl);
    since(cursor).send().await.ok();

    server.dismiss("anna", "carl");
    let goes_on = server.get(&about(&format!("/changes?next={next}"), &owner)).of(&carl);
    for ask in [sync("e"), read("").header("if-none-match", &tag), since(cursor), goes_on.clone()] {
        assert_eq!(ask.send().await.problem(), (403, "not_a_member".into()));
    }
    // Who comes back begins anew: rows may have gone and come in between.
    server.admit("anna", "carl", Role::Read);
    for ask in [since(cursor), goes_on] {
        assert_eq!(ask.send().await.problem(), (410, "cursor_expired".into()));
    }
    let based = json!({ "base": cursor, "pull": true });
    let based = server.ask("POST", &about("/synchronise", &owner)).of(&carl).json(&based).send().await;
    assert_eq!(based.problem(), (410, "cursor_expired".into()));
    let cursor = server.version_of("anna");
    since(cursor).send().await.ok();
    server.get(&format!("/changes?since={cursor}")).of(&anna).send().await.ok();
    assert_eq!(server.row(&anna, "lists", &key(1)).await.unwrap()["title"], "c");
}

/// Goal: a user who was added to another's owner can be taken out again, and reads nothing from then on.
#[tokio::test]
async fn who_has_no_owner_any_more_reads_nothing() {
    let (server, anna, _) = furnished().await;
    let guest = server.sharing("anna", "guest", "phone");
    server.fetch(&guest, "?lock=false").await.ok();
    server.dismiss("anna", "guest");
    for request in REQUESTS {
        let ask = server.ask(request.0, request.1).of(&guest);
        let ask = if request.1 == "/synchronise" { ask.json(&json!({})) } else { ask };
        assert_eq!(ask.send().await.problem(), (403, "not_a_member".into()), "{request:?}");
    }
    for path in ["/lists/sync", "/sync", "/v1/shape?table=lists&offset=-1"] {
        let answer = server.get(path).of(&guest).send().await;
        assert_eq!(answer.problem(), (403, "not_a_member".into()), "{path}");
    }
    // The account is there, all the same.
    server.get("/me").of(&guest).send().await.ok();
    let export = server.get("/account/export").of(&guest).send().await;
    let text = String::from_utf8(export.bytes).unwrap();
    let ops: Vec<_> = text.lines().map(|line| line.split(',').next().unwrap()).collect();
    assert_eq!((export.status, ops), (200, vec![r#"{"op":"account""#, r#"{"op":"left""#]));
    server.get("/devices").of(&guest).send().await.ok();
    server.fetch(&anna, "").await.ok();
    assert_eq!(server.ask("POST", "/logout").of(&guest).send().await.status, 204);
}

/// Goal: a device that was signed out keeps nobody waiting and no tombstone, at no owner of its user. Method: a device with
/// an installation holds the lock and a cursor at two owners, and is signed out in each way; an owner that it never used is
/// not written to.
#[tokio::test]
async fn a_signed_out_device_holds_nothing_at_any_owner() {
    const PASSWORDS: [&str; 2] = [PASSWORD, "battery staple"];
    for way in ["POST /logout", "DELETE /devices", "DELETE /devices/{id}", "POST /password"] {
        let (server, anna, ben) = furnished().await;
        let carl = server.device("carl", "phone");
        for owner in ["anna", "carl"] {
            server.admit(owner, "ben", Role::Write);
        }
        let lost = server.device("ben", "lost");
        let (shared, own) = (server.owner("anna"), server.owner("ben"));
        for (owner, user) in [(shared, "anna"), (own, "ben")] {
            let (path, cursor) = (owner.0.to_string(), server.version_of(user));
            for named in [true, false] {
                let ask = server.get(&about(&format!("/changes?since={cursor}"), &path)).of(&lost);
                let ask = if named { ask.header("sync-device", format!("{}.1", key(900))) } else { ask };
                ask.send().await.ok();
                // One of the two cursors is in memory only.
                if named {
                    let flushed = |app: &rollcall::http::App| app.acks.flush(&*app.storage, &mut || true);
                    app::engine::pg::apart(|| flushed(&server.app).unwrap());
                }
            }
            server.ask("POST", &about("/lock", &path)).of(&lost).send().await.ok();
        }
        assert_eq!(server.number("SELECT count(*) FROM rollcall_ack"), 2, "{way}");
        let unused = server.dump()["rollcall_owner"].len();

        let (method, path) = way.split_once(' ').unwrap();
        let by = if way == "POST /logout" { &lost } else { &ben };
        let ask = server.ask(method, &path.replace("{id}", &lost.id)).of(by);
        let change = json!({ "old": PASSWORDS[0], "new": PASSWORDS[1], "sign_out_others": true });
        let ask = if path == "/password" { ask.json(&change) } else { ask };
        assert_eq!(ask.send().await.status, 204, "{way}");

        assert_eq!(server.number("SELECT count(*) FROM rollcall_ack"), 0, "{way}");
        assert_eq!(server.dump()["rollcall_owner"].len(), unused, "{way}");
        for owner in [shared, own] {
            assert!(server.app.acks.noted(owner).is_empty(), "{way}");
        }
        for (device, owner) in [(&anna, shared), (&carl, server.owner("carl"))] {
            let fetch = server.get(&about("/fetch", &owner.0.to_string())).of(device).send().await;
            assert_eq!(fetch.status, 200, "{way}");
        }
        if way != "POST /logout" {
            server.fetch(&ben, "").await.ok();
        }
    }
}

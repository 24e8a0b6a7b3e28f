//! Owners that anyone may read.

use rollcall::model::Role;

use super::*;

fn served() -> Server {
    served_with(|_| {})
}

fn served_with(change: impl FnOnce(&mut Settings)) -> Server {
    let schema = app::SCHEMA.replace("[table.nodes]\n", "[table.nodes]\nread = \"write\"\n");
    Server::of(&schema, |settings| {
        settings.auth.public_owners = true;
        change(settings);
    })
}

/// An owner that Anna makes, with three lists and a node.
async fn furnished(server: &Server) -> (Device, String) {
    let anna = server.device("anna", "phone");
    let made = server.ask("POST", "/owners").of(&anna).json(&json!({ "name": "Prices" })).send().await;
    let owner = made.json()["owner"].as_str().unwrap().to_owned();
    let lists: Vec<_> = (1..=3).map(|n| json!({ "lid": key(n), "title": "shown" })).collect();
    let rows = json!({ "add": { "lists": lists, "nodes": [{ "id": key(21), "name": "hidden" }] } });
    let sync = server.ask("POST", &format!("/synchronise?owner={owner}")).of(&anna).json(&rows);
    sync.send().await.ok();
    (anna, owner)
}

async fn set_public(server: &Server, device: &Device, owner: &str, is_public: bool) -> Answer {
    let body = json!({ "public": is_public });
    server.ask("PATCH", &format!("/owners/{owner}")).of(device).json(&body).send().await
}

fn about(path: &str, owner: &str) -> String {
    format!("{path}{}owner={owner}", if path.contains('?') { '&' } else { '?' })
}

const READS: [&str; 4] = ["/fetch", "/fetch?lock=false&tables=lists", "/changes", "/digests"];

/// Goal: anyone reads a public owner, and nothing else of anybody. Method: each operation about an owner without a token and by
/// a stranger, of a public owner, of one that is not, and of none; before and after it is public.
#[tokio::test]
async fn anyone_reads_a_public_owner_and_nothing_else() {
    let server = served();
    let (anna, owner) = furnished(&server).await;
    let stranger = server.device("stranger", "phone");
    let other = server.owner("anna").0.to_string();
    let writes = [
        ("POST", "/synchronise"),
        ("GET", "/conflicts"),
        ("GET", "/lock"),
        ("POST", "/lock"),
        ("DELETE", "/lock"),
        ("GET", "/events"),
        ("POST", "/conflicts/01901651-7d2e-7a3b-9c4d-5e6f708192a3/restore"),
    ];
    let bytes = |answer: &Answer| (answer.status, answer.bytes.clone());
    for is_public in [false, true, false] {
        assert_eq!(set_public(&server, &anna, &owner, is_public).await.status, 204);
        for path in READS {
            let anonymous = server.get(&about(path, &owner)).send().await;
            let unknown = server.get(&about(path, &key(0xdead))).send().await;
            let private = server.get(&about(path, &other)).send().await;
            let none = server.get(path).send().await;
            assert_eq!(unknown.problem(), (401, "unauthorized".into()), "{path}");
            assert_eq!((bytes(&private), bytes(&none)), (bytes(&unknown), bytes(&unknown)), "{path}");
            let by_stranger = server.get(&about(path, &owner)).of(&stranger).send().await;
            let not_there = server.get(&about(path, &key(0xdead))).of(&stranger).send().await;
            assert_eq!(not_there.problem(), (403, "not_a_member".into()), "{path}");
            if !is_public {
                assert_eq!(bytes(&anonymous), bytes(&unknown), "{path}");
                assert_eq!(bytes(&by_stranger), bytes(&not_there), "{path}");
                continue;
            }
            assert_eq!((anonymous.status, by_stranger.status), (200, 200), "{path}");
            assert_eq!(anonymous.header("sync-lock"), None, "{path}");
            let text = String::from_utf8_lossy(&anonymous.bytes).into_owned();
            assert!(!text.contains("hidden") && !text.contains(&key(21)), "{path}: {text}");
            if path == "/changes" {
                assert_eq!(anonymous.json()["add"]["lists"].as_array().unwrap().len(), 3);
            }
        }
        for (method, path) in writes {
            let ask = || {
                let ask = server.ask(method, &about(path, &owner));
                if path == "/synchronise" { ask.json(&json!({ "pull": true })) } else { ask }
            };
            assert_eq!(ask().send().await.problem(), (401, "unauthorized".into()), "{method} {path}");
            let by_stranger = ask().of(&stranger).send().await.problem();
            assert_eq!(by_stranger, (403, "not_a_member".into()), "{method} {path}");
        }
    }
    server.check_whole();
}

/// Goal: caches can store what is public and nothing else, and ask whether it is current. Method: the headers of responses to
/// anyone and to a member; pages of one row, each a second time from memory.
#[tokio::test]
async fn what_is_public_can_be_cached() {
    let server = served_with(|settings| settings.sync.public_max_age_s = 7);
    let (anna, owner) = furnished(&server).await;
    set_public(&server, &anna, &owner, true).await;
    for (n, path) in ["/fetch", "/changes", "/changes?limit=1", "/changes?since=1"].into_iter().enumerate() {
        let path = about(path, &owner);
        let first = server.get(&path).send().await;
        assert_eq!(first.header("cache-control"), Some("public, max-age=7"), "{path}");
        assert!(first.header("vary").unwrap().to_lowercase().contains("authorization"), "{path}");
        let tag = first.header("etag").unwrap().to_owned();
        let again = server.get(&path).send().await;
        assert_eq!((again.status, &again.bytes, again.header("etag")), (200, &first.bytes, Some(&*tag)));
        let unchanged = server.get(&path).header("if-none-match", &tag).send().await;
        assert_eq!((unchanged.status, unchanged.bytes.len()), (304, 0), "{path}");
        assert_eq!(unchanged.header("cache-control"), Some("public, max-age=7"), "{path}");
        let by_member = server.get(&path).of(&anna).send().await;
        assert_eq!(by_member.header("cache-control"), Some("private, no-cache"), "{path}");
        let moved = json!({ "update": { "lists": [{ "lid": key(1), "title": format!("shown {n}") }] } });
        server.turn(10);
        server.ask("POST", &about("/synchronise", &owner)).of(&anna).json(&moved).send().await.ok();
        let moved = server.get(&path).header("if-none-match", &tag).send().await;
        assert_eq!(moved.status, 200, "{path}");
    }
    let (mut query, mut found) = ("?limit=1".to_owned(), Vec::new());
    loop {
        let page = server.get(&about(&format!("/changes{query}"), &owner)).send().await.ok();
        let again = server.get(&about(&format!("/changes{query}"), &owner)).send().await.ok();
        assert_eq!(page, again);
        found.extend(page["add"]["lists"].as_array().into_iter().flatten().map(|row| row["lid"].clone()));
        let Some(next) = page["next"].as_str() else { break };
        query = format!("?limit=1&next={next}");
    }
    assert_eq!(found.len(), 3);
}

/// Goal: who reads without being a member leaves no trace, and takes nothing from members. Method: the whole database before
/// and after reads that would acknowledge a cursor and name an installation.
#[tokio::test]
async fn a_public_read_leaves_no_trace() {
    let server = served();
    let (anna, owner) = furnished(&server).await;
    set_public(&server, &anna, &owner, true).await;
    let stranger = server.device("stranger", "phone");
    let version = server.get(&about("/changes", &owner)).send().await.version();
    let held = server.get(&about("/fetch", &owner)).of(&anna).send().await;
    assert!(held.header("sync-lock").is_some());
    let before = server.dump();
    for path in READS.iter().chain(&[&*format!("/changes?since={version}")]) {
        let path = about(path, &owner);
        server.get(&path).send().await.ok();
        let named = "01901651-7d2e-7a3b-9c4d-5e6f708192a3.7";
        let by_stranger = server.get(&path).of(&stranger).header("sync-device", named).send().await;
        assert_eq!((by_stranger.status, by_stranger.header("sync-device")), (200, None));
    }
    server.app.acks.flush(&*server.app.storage, &mut || true).unwrap();

    assert_eq!(server.dump(), before);
}

/// Goal: who manages an owner makes it public, on servers that have public owners. An address cannot read without end.
#[tokio::test]
async fn only_managers_make_it_public_where_that_is_allowed() {
    let server = served_with(|settings| settings.limits.public_requests_per_min = 2);
    let (anna, owner) = furnished(&server).await;
    let ben = server.device("ben", "phone");
    assert_eq!(set_public(&server, &ben, &owner, true).await.problem(), (403, "not_a_member".into()));
    let home = server.owner("anna").0.to_string();
    server.admit("anna", "ben", Role::Write);
    assert_eq!(set_public(&server, &ben, &home, true).await.problem(), (403, "not_allowed".into()));
    assert_eq!(set_public(&server, &anna, &owner, true).await.status, 204);
    let listed = server.get("/owners").of(&anna).send().await.ok();
    let public: Vec<_> =
        listed["owners"].as_array().unwrap().iter().filter(|one| one["public"] == true).collect();
    assert_eq!((public.len(), &public[0]["owner"]), (1, &json!(owner)));
    let read = || server.get(&about("/fetch", &owner)).send();
    assert_eq!((read().await.status, read().await.status), (200, 200));
    assert_eq!(read().await.problem(), (429, "too_many_attempts".into()));
    server.get(&about("/fetch", &owner)).of(&ben).send().await.ok();

    let closed = served_with(|settings| settings.auth.public_owners = false);
    let (anna, owner) = furnished(&closed).await;
    assert_eq!(set_public(&closed, &anna, &owner, true).await.problem(), (403, "not_allowed".into()));
    assert_eq!(set_public(&closed, &anna, &owner, false).await.status, 204);
    let neither = closed.ask("PATCH", &format!("/owners/{owner}")).of(&anna).json(&json!({})).send().await;
    assert_eq!(neither.problem().0, 422);
}

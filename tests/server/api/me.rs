//! Who the token belongs to, and what a client is refused whose store is another's.

use super::*;
use rollcall_testkit::contract::{document, operation_objects};

/// The user and the owner of a device, as it sends them.
async fn store_of(server: &Server, device: &Device) -> String {
    let me = server.get("/me").of(device).send().await.ok();
    format!("{}.{}", me["user"].as_str().unwrap(), me["owner"].as_str().unwrap())
}

#[tokio::test]
async fn a_token_tells_its_user_owner_and_device() {
    let server = Server::new();
    let (anna, tablet) = (server.device("anna", "Anna's phone"), server.device("anna", "Anna's tablet"));
    let carl = server.sharing("anna", "carl", "Carl's phone");
    let owner = server.owner("anna").0.to_string();
    let answer = server.get("/me").of(&anna).send().await;
    let me = answer.ok();
    assert_eq!(
        me,
        json!({ "user": owner, "owner": owner, "device": anna.id, "device_name": "Anna's phone" })
    );
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    assert_eq!(server.get("/me").of(&tablet).send().await.ok()["user"], me["user"]);
    let shared = server.get("/me").of(&carl).send().await.ok();
    assert_eq!(shared["owner"], me["owner"]);
    assert_ne!(shared["user"], me["user"], "who shares an owner is a user of their own");
    assert_eq!(server.get("/me").send().await.problem(), (401, "unauthorized".into()));
}

/// Goal: a token of another user neither reads nor writes, nor blocks anybody. Method: every operation that
/// has the header, with another user's store, while the device of the token holds the lock.
#[tokio::test]
async fn a_token_of_another_user_is_refused_before_anything_is_done() {
    let (server, anna, ben) = furnished().await;
    let carl = server.sharing("anna", "carl", "Carl's phone");
    let stores = [store_of(&server, &ben).await, store_of(&server, &carl).await];
    let doc = document();
    let mut asked = 0;
    for ((method, path), operation) in operation_objects(&doc) {
        if !operation.get("parameters").is_some_and(|all| all.to_string().contains("SyncFor")) {
            continue;
        }
        let path = path.replace("{table}", "lists").replace("{device_id}", &anna.id).replace("{id}", &key(1));
        for store in &stores {
            server.turn(60_000);
            let held = server.ask("POST", "/lock").of(&anna).send().await.ok();
            server.turn(10_000);
            let ask = server.ask(&method, &path).of(&anna).header("sync-for", store);
            let ask = if path.contains("synchronise") {
                ask.json(&json!({ "add": { "lists": [{ "lid": key(77), "title": "x" }] } }))
            } else {
                ask
            };
            let answer = refused(&server, ask, &path).await;
            assert_eq!(answer.problem(), (409, "other_user".into()), "{method} {path}");
            let lock = server.get("/lock").of(&ben).send().await.ok();
            assert_eq!(lock, json!({ "held": false }), "the lock of the store's owner was taken: {path}");
            let lock = server.get("/lock").of(&carl).send().await.ok();
            assert_eq!(lock["until"], held["expires_at"], "the lock was renewed or given back: {path}");
            asked += 1;
        }
    }
    assert_eq!(asked, 2 * 37, "every operation of a caller has the header");
    let own = store_of(&server, &anna).await;
    for spelt in [own.clone(), own.to_uppercase(), format!(" {own} ")] {
        server.fetch(&anna, "?lock=false").await.ok();
        let answer = server.get("/changes").of(&anna).header("sync-for", &spelt).send().await;
        assert_eq!(answer.status, 200, "{spelt:?}");
    }
}

#[tokio::test]
async fn a_store_that_cannot_be_read_is_refused_by_its_own_code() {
    let (server, anna, _) = furnished().await;
    let own = store_of(&server, &anna).await;
    let (user, owner) = own.split_once('.').unwrap();
    let plain = own.replace('-', "");
    for store in ["", ".", user, &format!("{user}."), &format!("{user} {owner}"), &plain, &format!("{own}.")]
    {
        let ask = server.get("/changes").of(&anna).header("sync-for", store);
        assert_eq!(ask.send().await.problem(), (400, "invalid_request".into()), "{store:?}");
    }
    let twice = server.get("/changes").of(&anna).header("sync-for", &own).header("sync-for", &own);
    assert_eq!(twice.send().await.problem(), (400, "invalid_request".into()));
    // Authentication comes first: a stranger does not learn whether the header is valid.
    let stranger = server.get("/changes").header("sync-for", "x");
    assert_eq!(stranger.send().await.problem(), (401, "unauthorized".into()));
}

/// Goal: a token that changes between a check and a call is noticed everywhere. Method: the same request,
/// first with the one user's token and then with the other's, both in the server's cache by then.
#[tokio::test]
async fn a_token_that_is_known_already_is_looked_at_too() {
    let (server, anna, ben) = furnished().await;
    let store = store_of(&server, &anna).await;
    for _ in 0..3 {
        let theirs = server.get("/changes").of(&ben).header("sync-for", &store).send().await;
        assert_eq!(theirs.problem(), (409, "other_user".into()));
        server.get("/changes").of(&anna).header("sync-for", &store).send().await.ok();
    }
}

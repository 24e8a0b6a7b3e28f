//! Installations that name themselves: `Sync-Device`.

use super::*;
use uuid::Uuid;

const ID: &str = "0190163d-8694-439b-aea5-966c26f8ad90";

/// A request of an installation.
fn of(ask: Ask, device: &Device, name: &str) -> Ask {
    ask.of(device).header("sync-device", name)
}

async fn sync_as(server: &Server, device: &Device, name: &str, body: Value) -> Answer {
    of(server.ask("POST", "/synchronise"), device, name).json(&body).send().await
}

async fn me(server: &Server, device: &Device, name: &str) -> (String, Option<String>) {
    let answer = of(server.get("/me"), device, name).send().await;
    (answer.ok()["device"].as_str().unwrap().to_owned(), answer.header("sync-device").map(str::to_owned))
}

fn counter(id: impl std::fmt::Display, counter: u64) -> String {
    format!("{id}.{counter}")
}

async fn conflicts(server: &Server, device: &Device) -> Vec<Value> {
    server.get("/conflicts").of(device).send().await.ok()["conflicts"].as_array().unwrap().clone()
}

fn add(title: &str) -> Value {
    json!({ "add": { "lists": [{ "lid": key(1), "title": title }] } })
}

fn edit(title: &str, base: &Value) -> Value {
    json!({ "update": { "lists": [{ "lid": key(1), "title": title, "_base": base }] } })
}

/// Goal: a phone that was set up from another's backup loses nothing and takes nothing. Method: one token, one
/// installation in two copies; the copy that has fallen behind edits, or deletes, what the first one edited.
#[tokio::test]
async fn a_copy_that_fell_behind_is_another_device() {
    for deletes in [false, true] {
        let server = Server::new();
        let anna = server.device("anna", "phone");
        let result = sync_as(&server, &anna, &counter(ID, 0), add("old")).await;
        assert_eq!(result.header("sync-device"), None);
        let base = result.ok()["add"]["lists"][0]["last_update"].clone();
        sync_as(&server, &anna, &counter(ID, 1), json!({})).await.ok();
        // Here the copy is made: both are at 2.
        server.turn(10_000);
        sync_as(&server, &anna, &counter(ID, 2), edit("first", &base)).await.ok();
        sync_as(&server, &anna, &counter(ID, 3), json!({})).await.ok();
        server.turn(10_000);
        let body = if deletes {
            json!({ "delete": { "lists": [{ "lid": key(1), "_base": base }] } })
        } else {
            edit("second", &base)
        };
        let result = sync_as(&server, &anna, &counter(ID, 2), body).await;
        let copy = result.header("sync-device").expect("a copy is told its name").to_owned();
        assert!(copy.ends_with(".2") && !copy.contains(ID), "{copy}");
        let lost = conflicts(&server, &anna).await;
        assert_eq!(lost.len(), 1, "deletes: {deletes}: {}", result.json());
        let (_, first) = (&lost[0]["incoming"], &lost[0]["stored"]["row"]["title"]);
        assert_eq!(first, "first", "{lost:?}");
        assert_eq!(lost[0]["stored"]["device_id"], json!(me(&server, &anna, &counter(ID, 4)).await.0));
        // It adopts the name, and is at peace from then on.
        let id = copy.split('.').next().unwrap().to_owned();
        let (device, adopted) = me(&server, &anna, &counter(&id, 3)).await;
        assert_eq!(adopted, None);
        assert_eq!(json!(device), lost[0]["incoming"]["device_id"]);
        assert_eq!(me(&server, &anna, &counter(ID, 2)).await.0, device, "and before it has adopted it, too");
        assert_eq!(sync_as(&server, &anna, &counter(&id, 3), json!({})).await.header("sync-device"), None);
    }
}

/// Goal: a request that was answered takes effect once, under whichever name a copy of the phone sends it
/// again. Method: the same key and body from the phone, from its copy before it adopts its name and after,
/// and once more, late.
#[tokio::test]
async fn a_copy_gets_the_answer_to_the_request_that_it_was_copied_with() {
    let server = Server::new();
    let anna = server.device("anna", "phone");
    let send = async |name: &str, key: &str, title: &str| {
        let ask = of(server.ask("POST", "/synchronise"), &anna, name).header("idempotency-key", key);
        ask.json(&add(title)).send().await
    };
    let is_replay = |answer: &Answer| answer.header("idempotency-replayed").is_some();
    let first = send(&counter(ID, 0), "a", "one").await;
    assert!(!is_replay(&first));
    sync_as(&server, &anna, &counter(ID, 1), json!({})).await.ok();
    sync_as(&server, &anna, &counter(ID, 2), json!({})).await.ok();
    let (_, adopted) = me(&server, &anna, &counter(ID, 0)).await;
    let copy = adopted.expect("it has fallen behind").split('.').next().unwrap().to_owned();
    let again = send(&counter(&copy, 0), "a", "one").await;
    assert!(is_replay(&again), "{}", again.json());
    assert_eq!(again.json(), first.json());

    // The copy's own request, and then a late copy of it from before it had its name.
    let own = send(&counter(ID, 0), "b", "two").await;
    assert!(!is_replay(&own));
    sync_as(&server, &anna, &counter(&copy, 3), json!({})).await.ok();
    assert!(is_replay(&send(&counter(ID, 0), "b", "two").await));
}

#[tokio::test]
async fn a_counter_may_come_again_and_only_a_synchronise_raises_it() {
    let server = Server::new();
    let anna = server.device("anna", "phone");
    let (first, _) = me(&server, &anna, &counter(ID, 5)).await;
    // Neither a read, nor a dry run, nor a refusal.
    of(server.get("/changes"), &anna, &counter(ID, 9)).send().await.ok();
    sync_as(&server, &anna, &counter(ID, 9), json!({ "dry_run": true })).await.ok();
    let refusal = json!({ "atomic": true, "add": { "lists": [{ "lid": key(3) }] } });
    assert_eq!(sync_as(&server, &anna, &counter(ID, 9), refusal).await.status, 422);
    assert_eq!(me(&server, &anna, &counter(ID, 0)).await, (first.clone(), None));
    for _ in 0..3 {
        sync_as(&server, &anna, &counter(ID, 5), add("x")).await.ok();
        assert_eq!(me(&server, &anna, &counter(ID, 5)).await, (first.clone(), None));
    }
    sync_as(&server, &anna, &counter(ID, 6), json!({})).await.ok();
    let (other, adopted) = me(&server, &anna, &counter(ID, 5)).await;
    assert_ne!(other, first);
    assert!(adopted.is_some());
    // Reads of the copy leave no trace: a third one that is as far behind is the same until one of them writes.
    assert_eq!(server.dump()["rollcall_installation"].len(), 1);
    let server = server.restarted();
    assert_eq!(me(&server, &anna, &counter(ID, 5)).await.0, other, "whatever is in memory");
    assert_eq!(me(&server, &anna, &counter(ID, 6)).await.0, first);
}

/// Goal: a lost response is also sent to a copy. Method: its first request arrives twice under a key.
#[tokio::test]
async fn a_copy_whose_answer_was_lost_gets_that_answer() {
    let server = Server::new();
    let anna = server.device("anna", "phone");
    sync_as(&server, &anna, &counter(ID, 0), add("x")).await.ok();
    sync_as(&server, &anna, &counter(ID, 1), json!({})).await.ok();
    let ask = of(server.ask("POST", "/synchronise"), &anna, &counter(ID, 0)).header("idempotency-key", "k");
    let ask = ask.json(&json!({ "add": { "lists": [{ "lid": key(2), "title": "y" }] } }));
    let first = ask.clone().send().await;
    let again = ask.send().await;
    assert_eq!(again.header("idempotency-replayed"), Some("true"));
    assert_eq!(again.header("sync-device"), first.header("sync-device"));
    assert!(first.header("sync-device").is_some());
    assert_eq!(again.bytes, first.bytes);
}

/// Goal: a request takes effect once, however late a copy of it arrives. Method: an answered request is sent
/// again after the installation has continued.
#[tokio::test]
async fn a_late_copy_of_a_request_finds_its_answer() {
    let server = Server::new();
    let anna = server.device("anna", "phone");
    let ask = of(server.ask("POST", "/synchronise"), &anna, &counter(ID, 0)).header("idempotency-key", "k");
    let ask = ask.json(&add("first"));
    let first = ask.clone().send().await;
    let base = &first.ok()["add"]["lists"][0]["last_update"];
    server.turn(5_000);
    sync_as(&server, &anna, &counter(ID, 1), edit("second", base)).await.ok();
    let late = ask.send().await;
    assert_eq!((late.header("idempotency-replayed"), &late.bytes), (Some("true"), &first.bytes));
    assert_eq!(server.row(&anna, "lists", &key(1)).await.unwrap()["title"], "second");
    assert!(conflicts(&server, &anna).await.is_empty());
}

/// Goal: the lock, keys and conflicts are an installation's own. Method: two installations with one token.
#[tokio::test]
async fn two_installations_with_one_token_are_two_devices() {
    let server = Server::new();
    let anna = server.device("anna", "phone");
    let (one, two) = (counter(ID, 0), counter(Uuid::from_u128(7), 0));
    of(server.get("/fetch"), &anna, &one).send().await.ok();
    let busy = of(server.get("/fetch"), &anna, &two).send().await;
    assert_eq!((busy.status, busy.json()["holder"].clone()), (423, json!("phone")));
    let lock = of(server.get("/lock"), &anna, &two).send().await.ok();
    assert_eq!(
        (&lock["mine"], &lock["holder"]["device_id"]),
        (&json!(false), &json!(me(&server, &anna, &one).await.0))
    );
    let result = sync_as(&server, &anna, &one, add("old")).await.ok();
    let base = result["add"]["lists"][0]["last_update"].clone();
    server.turn(5_000);
    sync_as(&server, &anna, &two, edit("two", &base)).await.ok();
    server.turn(5_000);
    sync_as(&server, &anna, &counter(ID, 1), edit("one", &base)).await.ok();
    assert_eq!(conflicts(&server, &anna).await.len(), 1);

    let listed = server.get("/devices").of(&anna).send().await.ok();
    let devices = listed["devices"].as_array().unwrap();
    assert_eq!(devices.len(), 1);
    assert_eq!((&devices[0]["device_id"], &devices[0]["current"]), (&json!(anna.id), &json!(true)));
    let installations = devices[0]["installations"].as_array().unwrap();
    assert_eq!(installations.len(), 2);
    assert!(installations.iter().all(|one| one["current"] == false), "{installations:?}");
    let listed = of(server.get("/devices"), &anna, &counter(ID, 2)).send().await.ok();
    let current = listed["devices"][0]["installations"].as_array().unwrap().clone();
    let current: Vec<_> = current.into_iter().filter(|one| one["current"] == true).collect();
    assert_eq!(current.len(), 1);
    assert_eq!(current[0]["device_id"], json!(me(&server, &anna, &counter(ID, 2)).await.0));
}

/// Goal: one that logs in again is the same device, and a device that is signed out takes its installations along.
#[tokio::test]
async fn installations_outlive_a_token_and_end_with_it() {
    let server = Server::new();
    let (phone, tablet) = (server.device("anna", "phone"), server.device("anna", "tablet"));
    let (before, _) = me(&server, &phone, &counter(ID, 0)).await;
    let result = sync_as(&server, &phone, &counter(ID, 0), add("old")).await.ok();
    of(server.get("/fetch"), &phone, &counter(ID, 1)).send().await.ok();
    assert_eq!(server.fetch(&tablet, "").await.status, 423);
    assert_eq!(server.ask("DELETE", &format!("/devices/{}", before)).of(&tablet).send().await.status, 404);
    let revoke = server.ask("DELETE", &format!("/devices/{}", phone.id)).of(&tablet);
    assert_eq!(revoke.send().await.status, 204);
    assert_eq!(of(server.get("/me"), &phone, &counter(ID, 1)).send().await.status, 401);
    server.fetch(&tablet, "").await.ok(); // its installation held the lock, and no longer does
    let devices = server.get("/devices").of(&tablet).send().await.ok();
    assert!(!devices.to_string().contains(&before), "{devices}");
    server.ask("DELETE", "/lock").of(&tablet).send().await;

    let again = server.device("anna", "phone again");
    assert_eq!(me(&server, &again, &counter(ID, 1)).await, (before.clone(), None));
    let base = &result["add"]["lists"][0]["last_update"];
    server.turn(5_000);
    let result = sync_as(&server, &again, &counter(ID, 1), edit("mine", base)).await.ok();
    assert_eq!(verdicts(&result, "update", "lists"), ["updated"]);
    assert!(conflicts(&server, &tablet).await.is_empty(), "its own edit");
    let behind = me(&server, &again, &counter(ID, 0)).await;
    assert!(behind.1.is_some(), "how far it had come is not forgotten with the token");
    let ben = server.device("ben", "phone");
    assert_ne!(me(&server, &ben, &counter(ID, 1)).await.0, before, "another user's is another device");
}

/// Goal: cursors of installations that never write, or no longer exist, keep tombstones no longer than they
/// should, and invented ids leave nothing. Method: the contents of the database and of the cache.
#[tokio::test]
async fn made_up_installations_leave_few_traces() {
    let server = Server::with(|settings| settings.limits.devices_per_user_max = 3);
    let anna = server.device("anna", "phone");
    let version = sync_as(&server, &anna, &counter(ID, 0), add("x")).await.version();
    for n in 0..20 {
        let name = counter(Uuid::from_u128(1_000 + n), 0);
        let path = format!("/changes?since={version}");
        of(server.get(&path), &anna, &name).send().await.ok();
        let body = json!({ "base": version, "pull": true });
        let ask =
            of(server.ask("POST", "/synchronise"), &anna, &name).header("idempotency-key", n).json(&body);
        ask.send().await.ok();
    }
    let owner = server.owner("anna");
    assert!(server.app.acks.noted(owner).len() <= 4, "three installations, and the token's device");
    assert_eq!(server.dump()["rollcall_installation"].len(), 3);
    // Those for which there is no room count as the token's device: none is kept out.
    let late = counter(Uuid::from_u128(2_000), 0);
    assert_eq!(me(&server, &anna, &late).await, (anna.id.clone(), None));
    of(server.get("/fetch"), &anna, &late).send().await.ok();
    sync_as(&server, &anna, &late, json!({ "get": {} })).await.ok();
    // After an hour it replaces the one that was silent longest.
    server.turn(3_600_000);
    sync_as(&server, &anna, &counter(ID, 1), json!({})).await.ok();
    assert_ne!(me(&server, &anna, &late).await.0, anna.id);
    sync_as(&server, &anna, &late, json!({})).await.ok();
    assert_eq!(server.dump()["rollcall_installation"].len(), 3);
    assert!(me(&server, &anna, &counter(ID, 0)).await.1.is_some(), "the one in use has stayed");
    let answers = &server.dump()["rollcall_answer"];
    let kept = answers.len();
    assert!(kept <= 20, "{kept}");
}

#[tokio::test]
async fn a_name_that_cannot_be_read_is_refused() {
    let (server, anna, _) = furnished().await;
    for name in ["", "x", ID, &format!("{ID}."), &format!("{ID}.x"), &format!("{ID}.9007199254740992")] {
        let ask = of(server.ask("POST", "/synchronise"), &anna, name).json(&json!({}));
        assert_eq!(refused(&server, ask, name).await.problem(), (400, "invalid_request".into()), "{name:?}");
    }
}

//! Owners, members and invitations.

use super::*;

fn post(server: &Server, device: &Device, path: &str, body: Value) -> Ask {
    server.ask("POST", path).of(device).json(&body)
}

/// The code of a new invitation.
async fn code(server: &Server, device: &Device, owner: &str, body: Value) -> String {
    let made = post(server, device, &format!("/owners/{owner}/invitations"), body).send().await;
    assert_eq!(made.status, 201, "{}", String::from_utf8_lossy(&made.bytes));
    made.json()["code"].as_str().unwrap().to_owned()
}

async fn accept(server: &Server, device: &Device, code: &str) -> Answer {
    post(server, device, "/invitations/accept", json!({ "code": code, "name": "me" })).send().await
}

async fn members(server: &Server, device: &Device, owner: &str) -> Vec<(String, String)> {
    let list = server.get(&format!("/owners/{owner}/members")).of(device).send().await.ok();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    list["members"].as_array().unwrap().iter().map(|one| (text(&one["user"]), text(&one["role"]))).collect()
}

/// Goal: a couple shares a list without an operator. Method: the whole way, from the new owner to its end.
#[tokio::test]
async fn from_a_new_owner_to_its_end() {
    let server = Server::new();
    let (anna, ben) = (server.device("anna", "phone"), server.device("ben", "phone"));
    let home = server.owner("anna").0.to_string();
    let list = server.get("/owners").of(&anna).send().await;
    let tag = list.header("etag").unwrap().to_owned();
    let owners = list.ok()["owners"].as_array().unwrap().clone();
    assert_eq!(owners.len(), 1);
    assert_eq!((&owners[0]["owner"], &owners[0]["role"]), (&json!(home), &json!("manage")));
    assert_eq!(owners[0]["home"], true);
    let again = server.get("/owners").of(&anna).header("if-none-match", &tag).send().await;
    assert_eq!(again.status, 304);

    let made = post(&server, &anna, "/owners", json!({ "name": " Our wedding " })).send().await;
    assert_eq!(made.status, 201);
    let owner = made.json()["owner"].as_str().unwrap().to_owned();
    let moved = server.get("/owners").of(&anna).header("if-none-match", &tag).send().await.ok();
    let shared = moved["owners"].as_array().unwrap().iter().find(|one| one["owner"] == json!(owner)).unwrap();
    assert_eq!((&shared["name"], &shared["home"]), (&json!("Our wedding"), &json!(false)));
    assert_eq!(shared, &made.json());

    let code = code(&server, &anna, &owner, json!({ "role": "write" })).await;
    let dump = format!("{:?}", server.dump());
    assert!(!dump.contains(&code), "the code is stored");
    let joined = accept(&server, &ben, &code).await.ok();
    assert_eq!((&joined["owner"], &joined["role"]), (&json!(owner), &json!("write")));
    let bens = server.user_id("ben").to_string();
    assert!(members(&server, &ben, &owner).await.contains(&(bens.clone(), "write".into())));
    // It was for one user.
    let carl = server.device("carl", "phone");
    assert_eq!(accept(&server, &carl, &code).await.problem(), (403, "invalid_invitation".into()));

    let add = json!({ "add": { "lists": [{ "lid": key(1), "title": "Guests" }] } });
    let path = format!("/synchronise?owner={owner}");
    post(&server, &ben, &path, add).send().await.ok();
    let fetch = format!("/fetch?lock=false&owner={owner}");
    assert_eq!(server.get(&fetch).of(&anna).send().await.ok()["lists"][0]["lid"], key(1));
    let listed = server.get("/owners").of(&ben).send().await.ok();
    assert_eq!(listed["owners"].as_array().unwrap().len(), 2);

    let named = server.ask("PATCH", &format!("/owners/{owner}")).of(&anna).json(&json!({ "name": "Guests" }));
    assert_eq!(named.send().await.status, 204);
    let home_stays = server.ask("DELETE", &format!("/owners/{home}")).of(&anna).send().await;
    assert_eq!(home_stays.problem(), (403, "not_allowed".into()));
    assert_eq!(server.ask("DELETE", &format!("/owners/{owner}")).of(&anna).send().await.status, 204);
    for device in [&anna, &ben] {
        assert_eq!(server.get(&fetch).of(device).send().await.problem(), (403, "not_a_member".into()));
        let left = server.get("/owners").of(device).send().await.ok();
        assert_eq!(left["owners"].as_array().unwrap().len(), 1);
    }
}

/// Goal: who may not decide decides nothing, and strangers learn nothing. Method: each request by each role, by one who
/// was a member, and about an owner that does not exist.
#[tokio::test]
async fn only_who_manages_an_owner_decides_about_it() {
    let (server, anna, stranger) = furnished().await;
    let owner = server.owner("anna").0.to_string();
    let mut devices = Vec::new();
    for (user, role) in [("reader", "read"), ("writer", "write"), ("former", "manage")] {
        let device = server.device(user, "phone");
        let code = code(&server, &anna, &owner, json!({ "role": role })).await;
        accept(&server, &device, &code).await.ok();
        devices.push(device);
    }
    let [reader, writer, former] = devices.try_into().unwrap_or_else(|_| unreachable!());
    let (annas, formers) = (server.user_id("anna"), server.user_id("former"));
    let one_more = code(&server, &former, &owner, json!({ "role": "read" })).await;
    let removed = server.ask("DELETE", &format!("/owners/{owner}/members/{formers}")).of(&anna);
    assert_eq!(removed.send().await.status, 204);
    assert_eq!(
        accept(&server, &stranger, &one_more).await.problem(),
        (403, "invalid_invitation".into()),
        "an invitation ends with its maker's role"
    );

    let requests = |owner: &str| {
        let role = json!({ "role": "read" });
        [
            server.ask("PATCH", &format!("/owners/{owner}")).json(&json!({ "name": "x" })),
            server.ask("DELETE", &format!("/owners/{owner}")),
            server.ask("PUT", &format!("/owners/{owner}/members/{annas}")).json(&role),
            server.ask("DELETE", &format!("/owners/{owner}/members/{annas}")),
            server.get(&format!("/owners/{owner}/invitations")),
            server.ask("POST", &format!("/owners/{owner}/invitations")).json(&role),
            server.ask("DELETE", &format!("/owners/{owner}/invitations/{}", key(1))),
        ]
    };
    for device in [&reader, &writer] {
        for ask in requests(&owner) {
            let answer = refused(&server, ask.of(device), "not a manager").await;
            assert!([(403, "not_allowed".to_owned())].contains(&answer.problem()), "{:?}", answer.problem());
        }
        members(&server, device, &owner).await;
    }
    for device in [&stranger, &former] {
        for (ask, of_none) in requests(&owner).into_iter().zip(requests(&key(0xdead))) {
            let (answer, none) = (ask.of(device).send().await, of_none.of(device).send().await);
            assert_eq!(answer.problem(), (403, "not_a_member".into()));
            assert_eq!(answer.bytes, none.bytes);
        }
        let list = server.get(&format!("/owners/{owner}/members?limit=no")).of(device).send().await;
        assert_eq!(list.problem(), (403, "not_a_member".into()));
    }
}

/// Goal: an owner always has a member who manages it, and who leaves is out at once.
#[tokio::test]
async fn the_last_manager_stays() {
    let (server, anna, _) = furnished().await;
    let owner = server.owner("anna").0.to_string();
    let ben = server.device("second", "phone");
    let code = code(&server, &anna, &owner, json!({ "role": "manage" })).await;
    let (annas, bens) = (server.user_id("anna"), server.user_id("second"));
    let leave = |device: &Device, user| {
        server.ask("DELETE", &format!("/owners/{owner}/members/{user}")).of(device).send()
    };
    let demote = |device: &Device, user| {
        let ask = server.ask("PUT", &format!("/owners/{owner}/members/{user}")).of(device);
        ask.json(&json!({ "role": "read" })).send()
    };
    assert_eq!(leave(&anna, annas).await.problem(), (409, "last_manager".into()));
    assert_eq!(demote(&anna, annas).await.problem(), (409, "last_manager".into()));
    accept(&server, &ben, &code).await.ok();
    assert_eq!(leave(&anna, server.user_id("ben")).await.problem(), (404, "not_found".into()));
    assert_eq!(demote(&ben, annas).await.status, 204);
    let held = server.fetch(&anna, "").await;
    assert_eq!((held.status, held.header("sync-lock")), (200, None), "who reads takes no lock");
    assert_eq!(leave(&ben, bens).await.problem(), (409, "last_manager".into()));
    assert_eq!(leave(&anna, annas).await.status, 204);
    assert_eq!(server.fetch(&anna, "").await.problem(), (403, "not_a_member".into()));
    assert_eq!(members(&server, &ben, &owner).await, [(bens.to_string(), "manage".to_owned())]);
}

/// Goal: a request whose response was lost can be sent again. Method: each is sent twice, one after the other and at the
/// same time; the last use of an invitation too.
#[tokio::test]
async fn what_is_sent_again_has_one_effect() {
    let server = Server::with(|settings| {
        settings.limits.owners_per_user_max = 3;
        settings.limits.invitation_attempts_per_hour = 0;
        settings.limits.logins_per_address_per_min = 0;
    });
    let (anna, ben, carl) =
        (server.device("anna", "phone"), server.device("ben", "phone"), server.device("carl", "phone"));
    let make = |device: &Device, name: &str, key: &str| {
        post(&server, device, "/owners", json!({ "name": name })).header("idempotency-key", key).send()
    };
    let made = make(&anna, "Trip", "k1").await;
    assert_eq!(made.status, 201);
    let owner = made.json()["owner"].as_str().unwrap().to_owned();
    let (again, other) = (make(&anna, "Trip", "k1").await.json(), make(&anna, "Other", "k2").await.json());
    assert_eq!(again, made.json());
    assert_ne!(other["owner"], owner.as_str());
    let count = async |device: &Device| server.get("/owners").of(device).send().await.ok()["owners"].clone();
    assert_eq!(count(&anna).await.as_array().unwrap().len(), 3);
    assert_eq!(make(&anna, "Fourth", "k3").await.problem(), (507, "quota_exceeded".into()));
    assert_eq!(make(&anna, "Trip", "k1").await.status, 201, "full, but it has been made");
    assert_ne!(
        make(&ben, "Trip", "k1").await.json()["owner"],
        owner.as_str(),
        "each user has keys of their own"
    );
    let bad = make(&anna, "Trip", "k 1").await;
    assert_eq!(bad.problem(), (400, "invalid_request".into()));

    for round in 0..8 {
        let code = code(&server, &anna, &owner, json!({ "role": "write" })).await;
        let (first, second) = tokio::join!(accept(&server, &ben, &code), accept(&server, &ben, &code));
        assert_eq!(first.ok()["role"], "write", "round {round}");
        assert_eq!(second.ok()["role"], "write", "round {round}");
        let owners = count(&ben).await;
        assert!(owners.as_array().unwrap().iter().any(|one| one["owner"] == owner.as_str()), "{owners}");
        assert_eq!(accept(&server, &ben, &code).await.status, 200);
        let stranger = accept(&server, &carl, &code).await;
        assert_eq!(stranger.problem(), (403, "invalid_invitation".into()));
        let open = server.get(&format!("/owners/{owner}/invitations")).of(&anna).send().await.ok();
        assert_eq!(open["invitations"], json!([]), "a used up one is not listed");
        let leave = format!("/owners/{owner}/members/{}", server.user_id("ben"));
        assert_eq!(server.ask("DELETE", &leave).of(&anna).send().await.status, 204);
        assert_eq!(accept(&server, &ben, &code).await.problem(), (403, "invalid_invitation".into()));
    }
    let gone = server.ask("DELETE", &format!("/owners/{owner}")).of(&anna).send().await;
    assert_eq!(gone.status, 204);
    assert_eq!(make(&anna, "Trip", "k1").await.problem(), (403, "not_a_member".into()));
}

/// Goal: nobody fills the database with owners, members and invitations, and what is wrong is named.
#[tokio::test]
async fn owners_members_and_invitations_are_bounded() {
    let server = Server::with(|settings| {
        settings.limits.owners_per_user_max = 2;
        settings.limits.members_per_owner_max = 2;
        settings.limits.invitations_per_owner_max = 2;
        settings.limits.invitation_attempts_per_hour = 3;
        settings.limits.logins_per_address_per_min = 0;
    });
    let anna = server.device("anna", "phone");
    let owner = server.owner("anna").0.to_string();
    let full = (507, "quota_exceeded".to_owned());
    post(&server, &anna, "/owners", json!({ "name": "second" })).send().await;
    let third = refused(&server, post(&server, &anna, "/owners", json!({ "name": "third" })), "third").await;
    assert_eq!(third.problem(), full);
    let codes = [
        code(&server, &anna, &owner, json!({ "role": "read", "uses": 2 })).await,
        code(&server, &anna, &owner, json!({ "role": "read", "expires_s": 60 })).await,
    ];
    let path = format!("/owners/{owner}/invitations");
    assert_eq!(post(&server, &anna, &path, json!({ "role": "read" })).send().await.problem(), full);
    let (ben, carl) = (server.device("ben", "phone"), server.device("carl", "phone"));
    accept(&server, &ben, &codes[0]).await.ok();
    accept(&server, &ben, &codes[0]).await.ok();
    assert_eq!(accept(&server, &carl, &codes[0]).await.problem(), full);
    let open = server.get(&path).of(&anna).send().await.ok();
    assert_eq!(open["invitations"][0]["uses_left"], 1, "a member who accepts again uses nothing up");
    server.turn(60_000);
    assert_eq!(accept(&server, &carl, &codes[1]).await.problem(), (403, "invalid_invitation".into()));
    accept(&server, &carl, "ri_none").await;
    assert_eq!(accept(&server, &carl, &codes[0]).await.problem(), (429, "too_many_attempts".into()));
    let id = open["invitations"][0]["id"].as_str().unwrap().to_owned();
    let revoke = || server.ask("DELETE", &format!("{path}/{id}")).of(&anna).send();
    assert_eq!((revoke().await.status, revoke().await.problem()), (204, (404, "not_found".into())));
    for body in [
        json!({ "role": "owner" }),
        json!({ "role": "read", "uses": 0 }),
        json!({ "role": "read", "expires_s": 720 * 3_600 + 1 }),
    ] {
        let answer = post(&server, &anna, &path, body).send().await;
        assert_eq!(answer.problem(), (422, "invalid_value".into()));
    }
    for name in ["", " ", "a\nb", &"x".repeat(101)] {
        let answer = post(&server, &anna, "/owners", json!({ "name": name })).send().await;
        assert_eq!(answer.problem(), (422, "invalid_value".into()), "{name:?}");
    }
}

/// Goal: nobody makes invitations without end, and what is refused counts for nothing. Method: as many as a user may
/// make, one that the owner has no room for in between, and the time that the response names.
#[tokio::test]
async fn a_user_makes_so_many_invitations_an_hour() {
    let server = Server::with(|settings| {
        settings.limits.invitations_per_hour = 3;
        settings.limits.invitations_per_owner_max = 2;
    });
    let (anna, ben) = (server.device("anna", "phone"), server.device("ben", "phone"));
    let owner = server.owner("anna").0.to_string();
    let path = format!("/owners/{owner}/invitations");
    let invite = |device: &Device| post(&server, device, &path, json!({ "role": "read" })).send();
    for _ in 0..2 {
        assert_eq!(invite(&anna).await.status, 201);
    }
    for _ in 0..3 {
        assert_eq!(invite(&anna).await.problem(), (507, "quota_exceeded".into()));
        assert_eq!(invite(&ben).await.problem(), (403, "not_a_member".into()));
    }
    let open = server.get(&path).of(&anna).send().await.ok();
    let id = open["invitations"][0]["id"].as_str().unwrap().to_owned();
    assert_eq!(server.ask("DELETE", &format!("{path}/{id}")).of(&anna).send().await.status, 204);
    assert_eq!(invite(&anna).await.status, 201);
    let refused = refused(&server, post(&server, &anna, &path, json!({ "role": "read" })), "a fourth").await;
    assert_eq!(refused.problem(), (429, "too_many_attempts".into()));
    let wait_s: i64 = refused.header("retry-after").unwrap().parse().unwrap();
    assert_eq!(wait_s, 1_200);
    server.turn(wait_s * 1_000);
    assert_eq!(invite(&anna).await.problem(), (507, "quota_exceeded".into()), "one may be made again");
}

/// Goal: "nothing changed" is never outdated. Method: each change of an owner, of its members and of the user's owners,
/// each between a list and the same request with its tag. Where one server has the database, an unchanged list reads
/// nothing of it.
#[tokio::test]
async fn an_unchanged_list_of_owners_is_unchanged() {
    let server = Server::new();
    let (anna, ben) = (server.device("anna", "phone"), server.device("ben", "phone"));
    let bens = server.user_id("ben");
    let home = server.owner("anna").0.to_string();
    let shared = post(&server, &anna, "/owners", json!({ "name": "shared" })).send().await.json();
    let shared = shared["owner"].as_str().unwrap().to_owned();
    let member = format!("/owners/{shared}/members/{bens}");
    let code = code(&server, &anna, &shared, json!({ "role": "write" })).await;
    let rows = json!({ "add": { "lists": [{ "lid": key(1), "title": "x" }] } });
    let changes = [
        post(&server, &ben, "/invitations/accept", json!({ "code": code })),
        post(&server, &ben, &format!("/synchronise?owner={shared}"), rows.clone()),
        server.ask("PUT", &member).of(&anna).json(&json!({ "role": "read" })),
        server.ask("PATCH", &format!("/owners/{shared}")).of(&anna).json(&json!({ "name": "ours" })),
        post(&server, &ben, "/synchronise", rows),
        server.ask("DELETE", &member).of(&anna),
        post(&server, &ben, "/owners", json!({ "name": "own" })),
    ];
    let list = || server.get("/owners").of(&ben);
    let mut tag = list().send().await.header("etag").unwrap().to_owned();
    for (number, change) in changes.into_iter().enumerate() {
        for _ in 0..2 {
            assert_eq!(
                list().header("if-none-match", &tag).send().await.status,
                304,
                "before change {number}"
            );
        }
        let done = change.send().await;
        assert!(done.status < 300, "{number}: {}", String::from_utf8_lossy(&done.bytes));
        let moved = list().header("if-none-match", &tag).send().await;
        assert_eq!(moved.status, 200, "change {number}");
        tag = moved.header("etag").unwrap().to_owned();
    }
    // What another owner does is of no matter.
    server.sync(&anna, json!({ "add": { "lists": [{ "lid": key(2), "title": "x" }] } })).await.ok();
    assert_eq!(list().header("if-none-match", &tag).send().await.status, 304);
    assert_ne!(home, shared);
    if is_sqlite() {
        let owner = server.owner("ben");
        server.app.storage.read(owner, |txn| Ok::<_, StorageError>(txn.state())).unwrap();
        let versions = [(owner, rollcall::model::Version(server.version_of("ben")))];
        assert!(server.app.storage.are_current(&versions), "a list needs the database");
        // Another process renames an owner: the next list has the new name.
        server.sql("UPDATE rollcall_owner SET name = 'else', version = version + 1");
        std::thread::sleep(Duration::from_millis(30));
        assert_eq!(list().header("if-none-match", &tag).send().await.status, 200);
    }
}

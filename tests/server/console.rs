//! `/console/api`: what an operator sees and may do. Every response is checked against `openapi.yaml`.

use rollcall_testkit::app;

use app::{Answer, Ask, Device, Server, key, verdicts};
use rollcall::config::{Secret, Settings};
use rollcall::model::Role;
use serde_json::{Value, json};

const TOKEN: &str = "open sesame, please";

const PATHS: [(&str, &str); 8] = [
    ("GET", "overview"),
    ("GET", "series"),
    ("GET", "owners"),
    ("GET", "owners/01900000-0000-7000-8000-000000000001"),
    ("GET", "owners/01900000-0000-7000-8000-000000000001/conflicts"),
    (
        "POST",
        "owners/01900000-0000-7000-8000-000000000001/conflicts/01900000-0000-7000-8000-000000000002/restore",
    ),
    ("DELETE", "owners/01900000-0000-7000-8000-000000000001/lock"),
    ("GET", "owners/01900000-0000-7000-8000-000000000001/why?table=lists&key=x&device=y"),
];

fn server() -> Server {
    server_with(|_| {})
}

fn server_with(change: impl FnOnce(&mut Settings)) -> Server {
    Server::with(|settings| {
        settings.operator.console_token = Some(Secret::from(TOKEN));
        change(settings);
    })
}

fn ask(server: &Server, method: &str, path: &str) -> Ask {
    server.ask(method, &format!("/console/api/{path}")).header("authorization", format!("Bearer {TOKEN}"))
}

async fn get(server: &Server, path: &str) -> Value {
    ask(server, "GET", path).send().await.ok()
}

fn list(number: u64, title: &str) -> Value {
    json!({ "add": { "lists": [{ "lid": key(number), "title": title }] } })
}

#[tokio::test]
async fn without_a_token_in_the_settings_there_is_no_console() {
    let server = Server::new();
    for (method, path) in PATHS {
        assert_eq!(ask(&server, method, path).send().await.problem(), (404, "not_found".into()), "{path}");
    }
}

/// Goal: only the operator gets in. Method: every path, without a token, with a device's, and with a wrong
/// one.
#[tokio::test]
async fn only_its_own_token_opens_it() {
    let server = server();
    let phone = server.device("anna", "phone");
    for (method, path) in PATHS {
        let bare = || server.ask(method, &format!("/console/api/{path}"));
        for ask in [bare(), bare().of(&phone), bare().header("authorization", "Bearer open sesame, pleasE")] {
            assert_eq!(ask.send().await.problem(), (401, "unauthorized".into()), "{method} {path}");
        }
        assert_ne!(ask(&server, method, path).send().await.status, 401, "{method} {path}");
    }
    assert_eq!(server.fetch(&Device { token: TOKEN.into(), ..phone }, "").await.status, 401);
    assert!(!format!("{:?}", server.app.settings).contains("sesame"));
}

#[tokio::test]
async fn guessing_is_slow() {
    let server = server_with(|settings| settings.limits.logins_per_address_per_min = 3);
    let wrong =
        || server.get("/console/api/overview").header("authorization", "Bearer something else entirely");
    for _ in 0..3 {
        get(&server, "overview").await;
        assert_eq!(wrong().send().await.status, 401);
    }
    for asked in [wrong(), ask(&server, "GET", "overview")] {
        let refused = asked.send().await;
        assert_eq!(refused.problem(), (429, "too_many_attempts".into()));
        assert!(refused.header("retry-after").is_some());
    }
    server.turn(60_000);
    get(&server, "overview").await;
}

#[tokio::test]
async fn a_short_token_is_refused_at_the_start_and_not_repeated() {
    let settings = {
        let mut settings = Settings::default();
        settings.operator.console_token = Some(Secret::from("hunter2"));
        settings
    };
    let refusal = rollcall::http::Bounds::from_settings(&settings).unwrap_err().to_string();
    assert_eq!(refusal, "--console-token must have at least 16 characters");
}

/// Goal: the figures are right and cost no scan of rows. Method: two owners, some rows, a deletion, a lock.
#[tokio::test]
async fn the_overview_counts_everyone() {
    let server = server();
    let (anna, ben) = (server.device("anna", "Anna's phone"), server.device("ben", "Ben's phone"));
    for number in 1..=3 {
        server.sync(&anna, list(number, "x")).await.ok();
    }
    server.sync(&anna, json!({ "delete": { "lists": [key(3)] } })).await.ok();
    server.sync(&ben, list(9, "y")).await.ok();
    server.fetch(&ben, "").await.ok();

    let result = get(&server, "overview").await;
    assert_eq!(
        (&result["owners"], &result["rows"], &result["engine"]),
        (&json!(2), &json!(3), &json!("sqlite"))
    );
    assert_eq!(result["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(result["tables"][1], json!({ "table": "lists", "rows": 3, "tombstones": null }));
    assert_eq!(result["tables"].as_array().unwrap().len(), server.app.schema.tables().len());
    assert!(result["totals"]["commits"].as_u64().unwrap() >= 5, "{result}");
    let locks = result["locks"].as_array().unwrap();
    assert_eq!(locks.len(), 1, "{locks:?}");
    assert_eq!(
        (&locks[0]["device"], &locks[0]["owner"]),
        (&json!("Ben's phone"), &json!(server.owner("ben").0))
    );

    // Totals are cached for a while, so that a page may poll every second.
    server.sync(&ben, list(10, "z")).await.ok();
    assert_eq!(get(&server, "overview").await["rows"], 3);
    server.app.console.count_tombstones(&*server.app.storage, server.app.clock.now(), &mut || true).unwrap();
    assert_eq!(get(&server, "overview").await["tables"][1]["tombstones"], 1);

    let series = get(&server, "series").await;
    assert_eq!(series["verdicts"]["added"].as_array().unwrap().last().unwrap(), 5);
    assert_eq!(series["step_s"], 10);
}

#[tokio::test]
async fn owners_come_in_pages_and_one_by_one() {
    let server = server();
    for user in ["anna", "ben", "cleo"] {
        let device = server.device(user, "phone");
        server.sync(&device, list(1, user)).await.ok();
    }
    let mut ids = ["anna", "ben", "cleo"].map(|user| server.owner(user).0.to_string());
    ids.sort();
    let mut found = Vec::new();
    let mut next = get(&server, "owners?limit=2").await;
    loop {
        found.extend(next["owners"].as_array().unwrap().iter().map(|owner| owner["owner"].clone()));
        let Some(after) = next["next"].as_str() else { break };
        next = get(&server, &format!("owners?limit=2&after={after}")).await;
    }
    assert_eq!(found, ids);

    // One device by cursor, one by manifest alone, one that is signed out since, one that never synced.
    let (phone, tablet) = (server.device("anna", "phone"), server.device("anna", "tablet"));
    let (lost, old) = (server.device("anna", "lost"), server.device("anna", "old"));
    let base = server.version_of("anna");
    for device in [&phone, &lost] {
        server.sync(device, json!({ "base": base, "pull": true })).await.ok();
    }
    server.fetch(&tablet, "").await.ok();
    server.sync(&tablet, list(2, "news")).await.ok();
    server.ask("DELETE", &format!("/devices/{}", lost.id)).of(&phone).send().await;
    server.fetch(&tablet, "").await.ok();
    let owner = server.owner("anna").0;
    let result = get(&server, &format!("owners/{owner}")).await;
    assert_eq!((&result["version"], &result["rows"]), (&json!(base + 1), &json!(2)));
    assert_eq!(result["tables"][1], json!({ "table": "lists", "rows": 2 }));
    assert_eq!(result["lock"]["device"], "tablet");
    let of = |id: &str| result["devices"].as_array().unwrap().iter().find(|device| device["device_id"] == id);
    let seen = of(&phone.id).unwrap();
    assert_eq!((&seen["acknowledged"], &seen["behind"]), (&json!(base), &json!(1)));
    assert_eq!((&seen["device"], &seen["seen_at"]), (&json!("phone"), &json!(server.time(0))));
    let unseen = of(&tablet.id).unwrap();
    assert_eq!((&unseen["acknowledged"], &unseen["signed_in"]), (&Value::Null, &json!(true)));
    assert!(of(&lost.id).is_none() && of(&old.id).is_some(), "{result}");

    // What is in memory is written from time to time: both count.
    server.app.acks.flush(&*server.app.storage, &mut || true).unwrap();
    let again = get(&server, &format!("owners/{owner}")).await;
    assert_eq!(again["devices"], result["devices"]);
    for unknown in ["01900000-0000-7000-8000-000000000001", "x"] {
        let refused = ask(&server, "GET", &format!("owners/{unknown}")).send().await;
        assert_eq!(refused.problem(), (404, "not_found".into()), "{unknown}");
    }
}

/// Goal: support can undo a loss and free a lock. Method: a conflict of Anna's, restored from the console.
#[tokio::test]
async fn conflicts_and_locks_can_be_settled_from_here() {
    let server = server();
    let (phone, tablet) = (server.device("anna", "phone"), server.device("anna", "tablet"));
    server.sync(&phone, list(1, "first")).await.ok();
    let base = server.version_of("anna");
    let known = json!({ "base": base, "update": { "lists": [{ "lid": key(1), "title": "phone's" }] } });
    server.sync(&phone, known).await.ok();
    let late = json!({ "base": base, "update": { "lists": [
        { "lid": key(1), "title": "tablet's", "last_update": "2020-01-01T00:00:00.000Z" }] } });
    assert_eq!(verdicts(&server.sync(&tablet, late).await.ok(), "update", "lists"), ["kept"]);

    let owner = server.owner("anna").0;
    let result = get(&server, &format!("owners/{owner}/conflicts")).await;
    let id = result["conflicts"][0]["id"].as_str().unwrap();
    let restore = || ask(&server, "POST", &format!("owners/{owner}/conflicts/{id}/restore"));
    server.fetch(&phone, "").await.ok();
    let busy: Answer = restore().send().await;
    assert_eq!((busy.problem(), &busy.json()["holder"]), ((423, "sync_in_progress".into()), &json!("phone")));

    let lock = ask(&server, "DELETE", &format!("owners/{owner}/lock")).send().await;
    assert_eq!(lock.status, 204);
    assert_eq!(server.get("/lock").of(&tablet).send().await.ok(), json!({ "held": false }));
    restore().send().await.ok();
    assert_eq!(server.row(&tablet, "lists", &key(1)).await.unwrap()["title"], "tablet's");
    assert_eq!(server.get("/lock").of(&tablet).send().await.ok(), json!({ "held": false }));
    server.check_whole();
    let other = server.device("ben", "phone");
    server.sync(&other, list(1, "ben's")).await.ok();
    let ben = server.owner("ben").0;
    let foreign = ask(&server, "POST", &format!("owners/{ben}/conflicts/{id}/restore")).send().await;
    assert_eq!(foreign.problem(), (404, "not_found".into()), "another owner's conflict");
}

/// Goal: an operator finds the owners of a user, and sees who else is a member. Method: an owner with a name and two members.
#[tokio::test]
async fn owners_are_found_by_the_email_of_a_member() {
    let server = server();
    let (anna, _) = (server.device("anna", "phone"), server.device("ben", "phone"));
    let made = server.ask("POST", "/owners").of(&anna).json(&json!({ "name": "Our list" })).send().await;
    let owner = made.json()["owner"].as_str().unwrap().to_owned();
    let home = server.owner("anna").0.to_string();
    server.admit("anna", "ben", Role::Read);

    let found = get(&server, "owners?email=%20Anna%40example.org").await["owners"].clone();
    let mut found: Vec<_> = found
        .as_array()
        .unwrap()
        .iter()
        .map(|one| (one["owner"].clone(), one["name"].clone(), one["role"].clone()))
        .collect();
    found.sort_by_key(|one| one.1.to_string());
    assert_eq!(
        found,
        [(json!(home), json!(""), json!("manage")), (json!(owner), json!("Our list"), json!("manage"))]
    );
    let bens = get(&server, "owners?email=ben@example.org").await["owners"].clone();
    assert_eq!(bens.as_array().unwrap().len(), 2, "{bens}");
    assert_eq!(get(&server, "owners?email=nobody@example.org").await, json!({ "owners": [] }));
    let both = ask(&server, "GET", &format!("owners?email=a@b.c&after={home}")).send().await;
    assert_eq!(both.problem(), (400, "invalid_request".into()));

    let listed = get(&server, "owners").await["owners"].clone();
    assert!(listed.as_array().unwrap().iter().any(|one| one["name"] == "Our list"), "{listed}");
    let shown = get(&server, &format!("owners/{home}")).await;
    let members = shown["members"].as_array().unwrap();
    let of = |email: &str| members.iter().find(|one| one["email"] == email).unwrap();
    assert_eq!(of("anna@example.org")["role"], "manage");
    assert_eq!((&of("ben@example.org")["role"], members.len()), (&json!("read"), 2));
}

/// Goal: the explanation fits what happened. Method: one row and one device through their lifetimes; the
/// sentences themselves are tested in `explain`.
#[tokio::test]
async fn why_a_row_is_not_on_a_device() {
    let server = server();
    let (phone, tablet) = (server.device("anna", "phone"), server.device("anna", "tablet"));
    let stranger = server.device("ben", "Ben's phone");
    let owner = server.owner("anna").0;
    let why = async |number: u64, device: &str| {
        let row = key(number);
        get(&server, &format!("owners/{owner}/why?table=lists&key={row}&device={device}")).await
    };
    server.sync(&phone, list(1, "x")).await.ok();
    let base = server.version_of("anna");
    server.sync(&tablet, json!({ "base": base, "pull": true })).await.ok();
    server.sync(&phone, list(2, "y")).await.ok();

    let result = why(2, &tablet.id).await;
    assert!(result["answer"].as_str().unwrap().contains("1 version behind"), "{result}");
    assert_eq!(result["facts"]["row"]["alive"], true);
    assert_eq!(result["facts"]["row"]["made_by"], phone.id.as_str());
    assert_eq!(
        result["facts"]["device"],
        json!({ "device": "tablet", "acknowledged": base, "seen_at": server.time(0) })
    );
    for (number, device, words) in [
        (1, &tablet.id, "has acknowledged version"),
        (7, &tablet.id, "never did"),
        (2, &stranger.id, "not a member of this owner"),
        (2, &phone.id, "This device itself"),
        (2, &key(99), "No device with this id"),
    ] {
        let result = why(number, device).await;
        assert!(result["answer"].as_str().unwrap().contains(words), "{words}: {result}");
    }
    assert_eq!(why(7, &key(99)).await["facts"], json!({ "row": null, "device": null }));
    server.sync(&phone, json!({ "delete": { "lists": [key(2)] } })).await.ok();
    let answer = why(2, &tablet.id).await["answer"].clone();
    assert!(answer.as_str().unwrap().contains("receives the deletion"), "{answer}");

    let invite = server.ask("POST", &format!("/owners/{owner}/invitations")).of(&phone);
    let invitation = invite.json(&json!({ "role": "read" })).send().await.json();
    let accept = server.ask("POST", "/invitations/accept").of(&stranger);
    let accepted = accept.json(&json!({ "code": invitation["code"], "name": "Ben" })).send().await;
    assert_eq!(accepted.status, 200, "{}", String::from_utf8_lossy(&accepted.bytes));
    let answer = why(1, &stranger.id).await["answer"].clone();
    assert!(answer.as_str().unwrap().contains("has never sent a cursor"), "a member's device: {answer}");

    for query in ["", "?table=nothing&key=x&device=y", "?table=lists&key=x", "?row=1"] {
        let refused = ask(&server, "GET", &format!("owners/{owner}/why{query}")).send().await;
        assert_eq!(refused.problem(), (400, "invalid_request".into()), "{query}");
    }
}

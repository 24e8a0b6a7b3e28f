//! A user takes everything along.

use rollcall::model::Role;

use super::*;

/// The lines of a user's export.
async fn lines(server: &Server, device: &Device) -> Vec<Value> {
    let export = server.get("/account/export").of(device).send().await;
    assert_eq!(export.status, 200, "{}", String::from_utf8_lossy(&export.bytes));
    let text = String::from_utf8(export.bytes).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The titles of the items of each owner, in the order of the export, after the owner's first line.
fn by_owner(lines: &[Value]) -> Vec<(&Value, Vec<&str>)> {
    let mut owners: Vec<(&Value, Vec<&str>)> = Vec::new();
    for line in lines {
        match line["op"].as_str().unwrap() {
            "account" | "owner" => owners.push((line, Vec::new())),
            "add" => owners.last_mut().unwrap().1.push(line["row"]["title"].as_str().unwrap()),
            _ => {}
        }
    }
    owners
}

/// Adds items to an owner.
async fn add(server: &Server, device: &Device, owner: Option<&str>, titles: &[&str]) {
    let rows: Vec<_> =
        titles.iter().zip(1..).map(|(title, n)| json!({ "iid": key(n), "title": title })).collect();
    let path = owner.map_or("/synchronise".into(), |owner| format!("/synchronise?owner={owner}"));
    let body = json!({ "add": { "items": rows } });
    server.ask("POST", &path).of(device).json(&body).send().await.ok();
}

/// Goal: an export has every owner of the user, and nothing of anybody else. Method: a home, an owner that the user made,
/// one that the user may only read, one that the user has left, and one of strangers.
#[tokio::test]
async fn an_export_has_every_owner_of_the_user() {
    let server = Server::new();
    let [anna, ben, carl] = ["anna", "ben", "carl"].map(|user| server.device(user, "phone"));
    add(&server, &anna, None, &["at home"]).await;
    let alone = lines(&server, &anna).await;
    assert_eq!(alone.iter().map(|line| &line["op"]).collect::<Vec<_>>(), ["account", "add", "end"]);
    assert_eq!((&alone[0]["owners"], &alone[0]["role"]), (&json!(1), &json!("manage")));

    let named = json!({ "name": "Our wedding" });
    let made = server.ask("POST", "/owners").of(&anna).json(&named).send().await.json()["owner"].clone();
    let made = made.as_str().unwrap().to_owned();
    add(&server, &anna, Some(&made), &["Guests", "Music"]).await;
    add(&server, &ben, None, &["Ben's"]).await;
    add(&server, &carl, None, &["Carl's"]).await;
    server.admit("ben", "anna", Role::Read);
    server.admit("carl", "anna", Role::Write);
    server.dismiss("carl", "anna");

    let export = lines(&server, &anna).await;
    assert_eq!(export.last().unwrap()["op"], "end");
    assert_eq!((&export[0]["owners"], &export[0]["owner"]), (&json!(3), &json!(server.owner("anna").0)));
    let ends = export.iter().filter(|line| line["op"] == "end").count();
    assert_eq!(ends, 3);
    let mut owners = by_owner(&export);
    assert_eq!(owners.remove(0).1, ["at home"]);
    owners.sort_by_key(|(first, _)| first["role"].as_str().unwrap().to_owned());
    let bens = server.owner("ben").0;
    let line = |owner: Value, name: &str, role: &str| json!({ "op": "owner", "owner": owner, "name": name, "role": role, "home": false });
    assert_eq!(*owners[0].0, line(json!(made), "Our wedding", "manage"));
    assert_eq!(owners[0].1, ["Guests", "Music"]);
    assert_eq!((owners[1].0, &owners[1].1), (&line(json!(bens), "", "read"), &vec!["Ben's"]));
}

/// Goal: many owners take no memory and no reader for long, and long ones come whole. Method: owners with more rows than a
/// page has entries.
#[tokio::test]
async fn an_export_of_many_owners_comes_in_steps() {
    let server = Server::with(|settings| settings.sync.page_entries_max = 3);
    let anna = server.device("anna", "phone");
    let titles: Vec<String> = (0..10).map(|n| format!("{n} {}", "x".repeat(5_000))).collect();
    let titles: Vec<&str> = titles.iter().map(String::as_str).collect();
    let mut owners = Vec::new();
    for n in 0..12 {
        let named = json!({ "name": format!("owner {n}") });
        let made = server.ask("POST", "/owners").of(&anna).json(&named).send().await.json();
        owners.push(made["owner"].as_str().unwrap().to_owned());
        add(&server, &anna, owners.last().map(String::as_str), &titles).await;
    }
    owners.sort();
    let export = lines(&server, &anna).await;
    let found = by_owner(&export);
    assert_eq!(found.len(), 13);
    for ((line, rows), owner) in found[1..].iter().zip(&owners) {
        assert_eq!((&line["owner"], rows), (&json!(owner), &titles));
    }
    assert_eq!(export.last().unwrap()["op"], "end");
}

/// Goal: no row comes out once the user has left, and the export still says where it ends. Method: the user leaves one of
/// two owners while the export is under way.
#[tokio::test]
async fn an_owner_that_the_user_leaves_ends_there() {
    use http_body_util::BodyExt as _;
    use tower::ServiceExt as _;

    let server = Server::with(|settings| settings.sync.page_entries_max = 3);
    let (anna, ben) = (server.device("anna", "phone"), server.device("ben", "phone"));
    let long: Vec<String> = (0..40).map(|n| format!("{n} {}", "x".repeat(50_000))).collect();
    let long: Vec<&str> = long.iter().map(String::as_str).collect();
    add(&server, &anna, None, &long).await;
    add(&server, &ben, None, &["Ben's"]).await;
    server.admit("ben", "anna", Role::Read);
    let request =
        http::Request::get("/account/export").header("authorization", format!("Bearer {}", anna.token));
    let request = request.body(http_body_util::Full::new(bytes::Bytes::new())).unwrap();
    let service = warp::service(rollcall::http::routes(Arc::clone(&server.app)));
    let mut body = service.oneshot(request).await.unwrap().into_body();
    let mut text = body.frame().await.unwrap().unwrap().into_data().unwrap().to_vec();
    server.dismiss("ben", "anna");
    while let Some(frame) = body.frame().await {
        text.extend_from_slice(&frame.unwrap().into_data().unwrap());
    }
    let lines: Vec<Value> =
        String::from_utf8(text).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((&lines[0]["owners"], lines.len()), (&json!(2), 44));
    assert_eq!(*lines.last().unwrap(), json!({ "op": "left", "owner": server.owner("ben").0 }));
    assert!(lines.iter().all(|line| line["row"]["title"] != "Ben's"));
}

/// Goal: an export lacks no row because it changed meanwhile. Method: rows are changed, added and deleted after the first part
/// has come.
#[tokio::test]
async fn rows_that_change_meanwhile_come_again() {
    use http_body_util::BodyExt as _;
    use tower::ServiceExt as _;

    let server = Server::with(|settings| settings.sync.page_entries_max = 3);
    let anna = server.device("anna", "phone");
    let long: Vec<String> = (0..40).map(|n| format!("{n} {}", "x".repeat(50_000))).collect();
    let long: Vec<&str> = long.iter().map(String::as_str).collect();
    add(&server, &anna, None, &long).await;
    let request =
        http::Request::get("/account/export").header("authorization", format!("Bearer {}", anna.token));
    let request = request.body(http_body_util::Full::new(bytes::Bytes::new())).unwrap();
    let service = warp::service(rollcall::http::routes(Arc::clone(&server.app)));
    let mut body = service.oneshot(request).await.unwrap().into_body();
    let mut text = body.frame().await.unwrap().unwrap().into_data().unwrap().to_vec();
    server.turn(10);
    let changed = json!({
        "add": { "items": [{ "iid": key(50), "title": "new" }] },
        "update": { "items": [{ "iid": key(40), "title": "changed" }] },
        "delete": { "items": [key(39)] },
    });
    server.sync(&anna, changed).await.ok();
    while let Some(frame) = body.frame().await {
        text.extend_from_slice(&frame.unwrap().into_data().unwrap());
    }
    let lines: Vec<Value> =
        String::from_utf8(text).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let last = |n: u64| {
        let of_row = lines.iter().rev().find(|line| line["row"]["iid"] == key(n) || line["key"] == key(n));
        of_row.unwrap_or_else(|| panic!("no line of row {n}"))
    };
    assert_eq!((&last(50)["op"], &last(50)["row"]["title"]), (&json!("add"), &json!("new")));
    assert_eq!((&last(40)["op"], &last(40)["row"]["title"]), (&json!("update"), &json!("changed")));
    assert_eq!(last(39)["op"], "delete");
    let end = lines.last().unwrap();
    assert_eq!((&end["op"], &end["type"]), (&json!("end"), &json!("full")));
    assert_eq!(end["version"], json!(server.version_of("anna")));
}

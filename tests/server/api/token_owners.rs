//! Owners that a provider's token names, beside those that have members here.

use rollcall::model::Owner;
use tempfile::TempDir;
use uuid::Uuid;

use super::*;

const SECRET: &[u8] = b"a secret of more than thirty-two bytes";

fn served() -> (Server, TempDir) {
    served_with(app::SCHEMA)
}

fn served_with(schema: &str) -> (Server, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let secret = dir.path().join("secret");
    std::fs::write(&secret, SECRET).unwrap();
    let server = Server::of(schema, |settings| {
        settings.auth.auth = AuthMode::Jwt;
        settings.auth.jwt_secret_file = Some(secret);
        settings.auth.jwt_owners_claim = Some("owners".into());
        settings.limits.owners_per_user_max = 5;
    });
    (server, dir)
}

/// A device with a token of the provider; `owners` is the claim, or null.
fn device(user: &str, owners: &Value) -> Device {
    let claims = json!({ "sub": user, "exp": i64::MAX / 1_000_000, "device_id": format!("{user}'s"), "owners": owners });
    let key = jsonwebtoken::EncodingKey::from_secret(SECRET);
    let token = jsonwebtoken::encode(&jsonwebtoken::Header::default(), &claims, &key).unwrap();
    Device { token, id: String::new(), name: String::new() }
}

fn sync(server: &Server, device: &Device, owner: &str, number: u64) -> Ask {
    let body = json!({ "add": { "lists": [{ "lid": key(number), "title": "x" }] } });
    server.ask("POST", &format!("/synchronise?owner={owner}")).of(device).json(&body)
}

async fn listed(server: &Server, device: &Device) -> Vec<(String, String, bool)> {
    let list = server.get("/owners").of(device).send().await.ok();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let owners = list["owners"].as_array().unwrap().iter();
    owners.map(|one| (text(&one["owner"]), text(&one["role"]), one["home"] == json!(true))).collect()
}

/// Goal: the app's own backend decides who has which owner. Method: tokens that name two owners in different roles, and
/// one of a user without any.
#[tokio::test]
async fn a_token_has_the_owners_that_it_names() {
    let (server, _dir) = served();
    let (shared, read_only) = (key(0xa1), key(0xa2));
    let anna = device("anna", &json!({ shared.clone(): "write", read_only.clone(): "read" }));
    let boss = device("boss", &json!([{ "owner": read_only, "role": "manage" }, shared]));
    let home = server.get("/me").of(&anna).send().await.ok()["owner"].as_str().unwrap().to_owned();

    sync(&server, &boss, &read_only, 1).send().await.ok();
    sync(&server, &anna, &shared, 2).send().await.ok();
    sync(&server, &anna, &home, 3).send().await.ok();
    let answer = sync(&server, &anna, &read_only, 4).send().await.ok();
    assert_eq!(verdicts(&answer, "add", "lists"), ["rejected"]);
    let fetched = server.get(&format!("/fetch?lock=false&owner={read_only}")).of(&anna).send().await.ok();
    assert_eq!(fetched["lists"][0]["lid"], key(1));

    let mut expected = vec![
        (home.clone(), "manage".to_owned(), true),
        (shared.clone(), "write".to_owned(), false),
        (read_only.clone(), "read".to_owned(), false),
    ];
    expected.sort_unstable();
    assert_eq!(listed(&server, &anna).await, expected);
    let tag = server.get("/owners").of(&anna).send().await.header("etag").unwrap().to_owned();
    let again = || server.get("/owners").of(&anna).header("if-none-match", &tag);
    assert_eq!(again().send().await.status, 304);
    sync(&server, &boss, &shared, 5).send().await.ok();
    let moved = again().send().await.ok();
    let version = server.get(&format!("/changes?owner={shared}")).of(&boss).send().await.version();
    let entry = moved["owners"].as_array().unwrap().iter().find(|one| one["owner"] == json!(shared)).unwrap();
    assert_eq!(entry["version"], version);

    // What the token does not name is like what does not exist.
    let stranger = device("stranger", &json!([]));
    let unknown = sync(&server, &stranger, &key(0xdead), 6).send().await;
    assert_eq!(unknown.problem(), (403, "not_a_member".into()));
    for (device, owner) in [(&stranger, &shared), (&stranger, &home), (&boss, &home)] {
        let answer = refused(&server, sync(&server, device, owner, 6), "not named").await;
        assert_eq!(answer.bytes, unknown.bytes);
        assert_eq!(server.get(&format!("/events?owner={owner}")).of(device).send().await.status, 403);
        let path = format!("/owners/{owner}/members");
        assert_eq!(server.get(&path).of(device).send().await.problem(), (403, "not_a_member".into()));
    }
    let too_many = device("many", &json!(["a", "b", "c", "d", "e", "f"]));
    let answer = server.get("/owners").of(&too_many).send().await;
    assert_eq!(answer.problem(), (401, "unauthorized".into()));
    assert!(answer.json()["detail"].as_str().unwrap().contains("owners_per_user_max"), "{}", answer.json());
}

/// Goal: both kinds stand beside each other on one server: a token without the claim goes by members, one with it by the
/// claim alone. Method: one user with both kinds of token.
#[tokio::test]
async fn tokens_with_and_without_owners_stand_beside_each_other() {
    let (server, _dir) = served();
    let (ben, carl) = (device("ben", &Value::Null), device("carl", &Value::Null));
    let made =
        server.ask("POST", "/owners").of(&ben).json(&json!({ "name": "Our list" })).send().await.json();
    let owner = made["owner"].as_str().unwrap().to_owned();
    let invitation = format!("/owners/{owner}/invitations");
    let code = server.ask("POST", &invitation).of(&ben).json(&json!({ "role": "write" })).send().await.json();
    let accept = json!({ "code": code["code"] });
    let named = device("carl", &json!([]));
    for (path, body) in [("/invitations/accept", &accept), ("/owners", &json!({ "name": "x" }))] {
        let answer = refused(&server, server.ask("POST", path).of(&named).json(body), path).await;
        assert_eq!(answer.problem(), (403, "not_allowed".into()), "{path}");
    }
    server.ask("POST", "/invitations/accept").of(&carl).json(&accept).send().await.ok();
    sync(&server, &carl, &owner, 1).send().await.ok();
    assert_eq!(listed(&server, &carl).await.len(), 2);
    assert_eq!(listed(&server, &named).await.len(), 1, "the home alone");
    assert_eq!(sync(&server, &named, &owner, 2).send().await.problem(), (403, "not_a_member".into()));

    // Members are of no matter to a token that names the owner: it keeps its role when the member is taken out.
    let boss = device("carl", &json!({ owner.clone(): "manage" }));
    let user = server.get("/me").of(&carl).send().await.ok()["user"].as_str().unwrap().to_owned();
    let removed = server.ask("DELETE", &format!("/owners/{owner}/members/{user}")).of(&ben).send().await;
    assert_eq!(removed.status, 204);
    assert_eq!(sync(&server, &carl, &owner, 3).send().await.problem(), (403, "not_a_member".into()));
    sync(&server, &boss, &owner, 4).send().await.ok();
    // Who manages by the token may delete the owner, and from then on nobody has it.
    assert_eq!(server.ask("DELETE", &format!("/owners/{owner}")).of(&boss).send().await.status, 204);
    for device in [&ben, &boss] {
        assert_eq!(sync(&server, device, &owner, 5).send().await.problem(), (403, "not_a_member".into()));
        assert_eq!(listed(&server, device).await.len(), 1);
    }
    let home = Owner(Uuid::try_parse(&listed(&server, &boss).await[0].0).unwrap());
    let kept = server.ask("DELETE", &format!("/owners/{}", home.0)).of(&boss).send().await;
    assert_eq!(kept.problem(), (403, "not_allowed".into()), "the home stays");
}

/// Goal: a token with a lesser role sees no table that this role may not read, nor a response that was kept for the other
/// token.
#[tokio::test]
async fn a_token_reads_what_its_role_may_read() {
    let schema = app::SCHEMA.replace("[table.nodes]\n", "[table.nodes]\nread = \"manage\"\n");
    let (server, _dir) = served_with(&schema);
    let shared = key(0xa1);
    let [manager, writer] = ["manage", "write"].map(|role| device("anna", &json!({ shared.clone(): role })));
    let row = json!({ "add": { "nodes": [{ "id": key(1), "name": "hidden" }] } });
    let sync = |device: &Device, body: &Value| {
        server.ask("POST", &format!("/synchronise?owner={shared}")).of(device).json(body)
    };
    sync(&manager, &row).send().await.ok();
    let get = json!({ "get": { "nodes": [key(1)] } });
    for (device, found) in [(&manager, 1), (&manager, 1), (&writer, 0), (&manager, 1)] {
        let report = sync(device, &get).header("idempotency-key", "k").send().await.ok();
        assert_eq!(report["get"]["nodes"].as_array().unwrap().len(), found);
    }
    for (device, found) in [(&manager, 1), (&writer, 0), (&manager, 1), (&writer, 0)] {
        for path in ["/fetch?lock=false", "/changes?since=0"] {
            let answer = server.get(&format!("{path}&owner={shared}")).of(device).send().await.ok();
            let rows = answer.get("add").unwrap_or(&answer)["nodes"].as_array().map_or(0, Vec::len);
            assert_eq!(rows, found, "{path}");
        }
    }
}

//! Users, devices and tokens, and what the server reports about itself.

use rollcall::erasure::{self, Emptied, ErasureTerms};

use super::*;

#[tokio::test]
async fn from_registration_to_log_out() {
    let server = Server::new();
    let post = |path: &str, body: Value| server.ask("POST", path).json(&body).send();
    let anna = json!({ "email": " Anna@Example.org", "password": PASSWORD });
    let made = post("/register", anna.clone()).await;
    assert_eq!((made.status, made.json()), (201, json!({ "email": "anna@example.org" })));
    assert_eq!(post("/register", anna).await.problem(), (409, "email_taken".into()));

    let log_in = |device: &str, id: Option<&str>| {
        let mut body = json!({ "email": "anna@example.org", "password": PASSWORD, "device": device });
        if let Some(id) = id {
            body["device_id"] = json!(id);
        }
        post("/login", body)
    };
    let device = |result: Value| Device {
        token: result["token"].as_str().unwrap().into(),
        id: result["device_id"].as_str().unwrap().into(),
        name: String::new(),
    };
    let phone = device(log_in("phone", None).await.ok());
    server.turn(1_000);
    let result = log_in("tablet", None).await.ok();
    assert_eq!(result["expires_at"], server.time(365 * 86_400_000));
    let tablet = device(result);
    let list = server.get("/devices").of(&phone).send().await.ok();
    let names: Vec<_> =
        list["devices"].as_array().unwrap().iter().map(|one| (&one["device"], &one["current"])).collect();
    assert_eq!(names, [(&json!("phone"), &json!(true)), (&json!("tablet"), &json!(false))]);

    let again = device(log_in("new name", Some(&phone.id)).await.ok());
    assert_eq!(again.id, phone.id);
    assert_eq!(server.fetch(&phone, "").await.status, 401, "its older token has ended");
    assert_eq!(server.fetch(&again, "").await.status, 200);

    let ben = server.device("ben", "phone");
    for id in [tablet.id.as_str(), "x", &key(1), "%20", "..%2f"] {
        let answer = server.ask("DELETE", &format!("/devices/{id}")).of(&ben).send().await;
        assert_eq!(answer.problem(), (404, "not_found".into()), "{id}");
    }
    assert_eq!(server.ask("DELETE", &format!("/devices/{}", tablet.id)).of(&again).send().await.status, 204);
    assert_eq!(server.fetch(&tablet, "").await.status, 401);
    assert_eq!(server.ask("POST", "/logout").of(&again).send().await.status, 204);
    assert_eq!(server.ask("POST", "/logout").of(&again).send().await.status, 401);
}

/// Goal: a password is replaced by who knows it, and the other devices go if that is wanted. Method: three devices, one
/// of which holds the lock.
#[tokio::test]
async fn a_password_is_replaced_by_who_knows_it() {
    let server = Server::new();
    let (phone, tablet, ben) =
        (server.device("anna", "phone"), server.device("anna", "tablet"), server.device("ben", "phone"));
    let change = |old: &str, new: &str, others: Value| {
        let body = json!({ "old": old, "new": new, "sign_out_others": others });
        server.ask("POST", "/password").of(&phone).json(&body).send()
    };
    let log_in = |password: &str| {
        let body = json!({ "email": "anna@example.org", "password": password, "device": "laptop" });
        server.ask("POST", "/login").json(&body).send()
    };
    for (new, at) in [("password1", "/new"), ("ANNA@example.org", "/new"), ("sho\u{301}rt", "/new")] {
        let refused = change(PASSWORD, new, json!(false)).await;
        assert_eq!(refused.fault(), (422, "invalid_value".into(), at.into()), "{new}");
    }
    assert_eq!(
        change("wrong horse", "battery staple", Value::Null).await.problem(),
        (403, "wrong_password".into())
    );
    assert_eq!(
        change(PASSWORD, "battery staple", json!(1)).await.fault(),
        (422, "wrong_type".into(), "/sign_out_others".into())
    );
    assert_eq!(log_in(PASSWORD).await.status, 200, "nothing was changed");

    assert_eq!(change(PASSWORD, "fru\u{308}hstu\u{308}ck", Value::Null).await.status, 204);
    assert_eq!(log_in(PASSWORD).await.status, 401);
    assert_eq!(log_in("fr\u{fc}hst\u{fc}ck").await.status, 200, "the same word in another form");
    server.fetch(&tablet, "").await.ok();
    assert_eq!(server.fetch(&phone, "").await.status, 423);
    assert_eq!(change("fr\u{fc}hst\u{fc}ck", "battery staple", json!(true)).await.status, 204);
    assert_eq!(server.fetch(&tablet, "").await.status, 401);
    server.fetch(&phone, "").await.ok();
    server.fetch(&ben, "").await.ok();

    assert_eq!(log_in("battery staple").await.status, 200);
    assert_eq!(server.get("/devices").of(&phone).send().await.ok()["devices"].as_array().unwrap().len(), 2);
    assert_eq!(server.ask("DELETE", "/devices").of(&phone).send().await.status, 204);
    let left = server.get("/devices").of(&phone).send().await.ok();
    assert_eq!(left["devices"].as_array().unwrap().len(), 1);
    assert_eq!(left["devices"][0]["current"], true);
    server.fetch(&ben, "").await.ok();
}

/// Goal: who forgot a password gets in again, and whoever else was in is out. Method: over both engines, a mail that was
/// sent, and one after which the server was started anew.
#[tokio::test]
async fn a_forgotten_password_is_replaced_by_a_mail() {
    let with_mail = |settings: &mut Settings| {
        settings.auth.mail.mail_command = vec!["a test".into()];
        settings.auth.mail.public_url = Some("https://app.example".into());
        settings.auth.mail.email_verification = Verification::Required;
    };
    let server = Server::with(with_mail);
    let (phone, ben) = (server.device("anna", "phone"), server.device("ben", "phone"));
    let post = |path: &str, body: Value| server.ask("POST", path).json(&body).send();
    let mail = |count: usize| {
        let began = std::time::Instant::now();
        loop {
            if let Some(mail) = server.mails.lock().unwrap().get(count - 1) {
                return mail.clone();
            }
            assert!(began.elapsed().as_secs() < 20, "no mail {count}");
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    };
    for email in ["anna@example.org", "nobody@example.org"] {
        let answer = post("/password/reset", json!({ "email": email })).await;
        assert_eq!((answer.status, answer.bytes.len()), (204, 0), "{email}");
    }
    assert_eq!(post("/password/reset", json!({ "email": "x" })).await.fault().2, "/email");
    let token = mail(1).token;
    server.fetch(&phone, "").await.ok();
    let confirm =
        |token: &str, new: &str| post("/password/reset/confirm", json!({ "token": token, "new": new }));
    assert_eq!(confirm(&token, "12345678").await.fault(), (422, "invalid_value".into(), "/new".into()));
    assert_eq!(confirm(&token, "battery staple").await.status, 204);
    assert_eq!(confirm(&token, "battery staple").await.problem(), (403, "invalid_token".into()));
    assert_eq!(server.fetch(&phone, "").await.status, 401);
    server.fetch(&ben, "").await.ok();
    let log_in = |email: &str, password: &str| {
        post("/login", json!({ "email": email, "password": password, "device": "phone" }))
    };
    assert_eq!(log_in("anna@example.org", PASSWORD).await.status, 401);
    log_in("anna@example.org", "battery staple").await.ok();

    let carl = "carl@example.org";
    assert_eq!(post("/register", json!({ "email": carl, "password": PASSWORD })).await.status, 201);
    let first = mail(2);
    assert_eq!((first.to.as_str(), first.kind), (carl, MailKind::EmailVerification));
    assert_eq!(log_in(carl, PASSWORD).await.problem(), (403, "email_not_verified".into()));
    let token = mail(3).token;
    let verify =
        |token: &str, password: &str| post("/email/verify", json!({ "token": token, "password": password }));
    assert_eq!(verify(&first.token, PASSWORD).await.problem(), (403, "invalid_token".into()));
    assert_eq!(verify(&token, "wrong horse").await.problem(), (403, "wrong_password".into()));
    assert_eq!(verify(&token, PASSWORD).await.status, 204);
    assert_eq!(verify(&token, PASSWORD).await.problem(), (403, "invalid_token".into()));
    log_in(carl, PASSWORD).await.ok();
    let counts = String::from_utf8(server.get("/metrics").send().await.bytes).unwrap();
    let line = "rollcall_mails_total{kind=\"password_reset\",outcome=\"sent\"} 1";
    assert!(counts.lines().any(|one| one == line), "{counts}");

    // A token outlives the server, and a password that is replaced by other means ends it.
    let token = server.reset_token("ben");
    let server = server.restarted();
    let confirm = |token: &str, new: &str| {
        server.ask("POST", "/password/reset/confirm").json(&json!({ "token": token, "new": new })).send()
    };
    assert_eq!(confirm(&token, "battery staple").await.status, 204);
    let token = server.reset_token("ben");
    let log_in = json!({ "email": "ben@example.org", "password": "battery staple", "device": "phone" });
    let phone = server.ask("POST", "/login").json(&log_in).send().await.ok()["token"].clone();
    let ben = Device { token: phone.as_str().unwrap().into(), ..ben };
    let change = json!({ "old": "battery staple", "new": "another password" });
    assert_eq!(server.ask("POST", "/password").of(&ben).json(&change).send().await.status, 204);
    assert_eq!(confirm(&token, "a thief's password").await.problem(), (403, "invalid_token".into()));
}

/// Goal: a user can take everything along, and nothing of anybody else. Method: the lines, against what the server holds.
#[tokio::test]
async fn an_export_has_the_user_the_tables_and_every_row() {
    let (server, anna, ben) = furnished().await;
    let answer = server.get("/account/export").of(&anna).send().await;
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/x-ndjson")));
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    assert!(answer.header("content-disposition").unwrap().starts_with("attachment"));
    let text = String::from_utf8(answer.bytes).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let (first, last) = (&lines[0], lines.last().unwrap());
    assert_eq!(
        (&first["op"], &first["email"], &last["op"]),
        (&json!("account"), &json!("anna@example.org"), &json!("end"))
    );
    assert_eq!(first["devices"][0]["device"], "Anna's phone");
    let tables: Vec<&str> =
        first["tables"].as_array().unwrap().iter().map(|table| table["name"].as_str().unwrap()).collect();
    let at = |name: &str| tables.iter().position(|table| *table == name).unwrap();
    assert!(at("lists") < at("items") && tables.len() == 6, "{tables:?}");
    let mut exported: Vec<(String, String)> = lines[1..lines.len() - 1]
        .iter()
        .map(|line| {
            let table = line["table"].as_str().unwrap();
            let key = &first["tables"][at(table)]["key"];
            (table.to_owned(), line["row"][key.as_str().unwrap()].as_str().unwrap().to_owned())
        })
        .collect();
    exported.sort();
    let manifest = server.manifest(&anna).await;
    let mut held: Vec<(String, String)> = Vec::new();
    for (table, entries) in manifest.as_object().unwrap() {
        let key = first["tables"][at(table)]["key"].as_str().unwrap();
        held.extend(
            entries.as_array().unwrap().iter().map(|row| (table.clone(), row[key].as_str().unwrap().into())),
        );
    }
    held.sort();
    assert_eq!(exported, held);
    assert!(!held.is_empty() && !text.contains(&ben.id) && !text.contains("ben@"), "{text}");
}

/// How long an erased owner stays marked.
const LATE_MS: i64 = 60_000;

/// Removes the rows of erased owners, as a server does; returns how many transactions that took.
fn remove_erased(
    server: &Server,
    rows_max: usize,
    emptied: &mut Emptied,
    go_on: &mut (dyn FnMut() -> bool + Send),
) -> usize {
    let terms = ErasureTerms { now: server.app.clock.now(), rows_max, late_ms: LATE_MS };
    let storage = Arc::clone(&server.app.storage);
    app::engine::pg::apart(|| {
        let steps = erasure::run(&*storage, terms, emptied, go_on).unwrap();
        drop(storage);
        steps
    })
}

/// Goal: an erased account leaves nothing behind, and nobody else loses anything. Method: two owners with rows, history,
/// conflicts and kept responses, one of whom is erased in steps of three rows with a restart in between; and every table
/// of the database.
#[tokio::test]
async fn an_erased_account_leaves_nothing_behind() {
    let (server, anna, ben) = furnished().await;
    let tablet = server.device("anna", "tablet");
    let owner = server.owner("anna");
    let once = server.ask("POST", "/synchronise").of(&anna).header("idempotency-key", "once");
    once.header("sync-device", format!("{}.1", key(500)))
        .json(&json!({ "update": { "lists": [{ "lid": key(1), "title": "new" }] } }))
        .send()
        .await
        .ok();
    let old = json!({ "update": { "lists": [{ "lid": key(1), "title": "lost", "_base": "2001-01-01T00:00:00.000Z" }] } });
    server.sync(&tablet, old).await.ok();
    let bens = server.manifest(&ben).await;
    let erase = |password: &str| {
        server.ask("POST", "/account/erase").of(&anna).json(&json!({ "password": password })).send()
    };
    assert_eq!(erase("wrong horse").await.problem(), (403, "wrong_password".into()));
    server.fetch(&anna, "?lock=false").await.ok();

    // The rows stay for a while: the thread that removes them stops at once.
    server.app.draining.set();
    assert_eq!(erase(PASSWORD).await.status, 204);
    let server = server.restarted();
    let gone = (410, "account_gone".to_owned());
    for path in ["/fetch", "/changes", "/devices", "/me", "/events"] {
        assert_eq!(server.get(path).of(&anna).send().await.problem(), gone, "{path}");
        assert_eq!(server.get(path).of(&tablet).send().await.problem(), gone, "{path}");
    }
    let log_in = json!({ "email": "anna@example.org", "password": PASSWORD, "device": "phone" });
    assert_eq!(server.ask("POST", "/login").json(&log_in).send().await.status, 401);
    assert_eq!(server.manifest(&ben).await, bens);

    let mut emptied = Emptied::new();
    let mut calls = 4; // one before the list is read, and one before each transaction
    let some = remove_erased(&server, 3, &mut emptied, &mut || {
        calls -= 1;
        calls >= 0
    });
    assert_eq!(some, 3, "there is more than that to remove");
    let server = server.restarted();
    assert_eq!(server.get("/fetch").of(&anna).send().await.problem(), gone);
    let steps = remove_erased(&server, 3, &mut emptied, &mut || true);
    assert!(steps > 1, "{steps}");
    // The owner stays marked, and is not visited again before it is late.
    assert_eq!((emptied.len(), remove_erased(&server, 3, &mut emptied, &mut || true)), (1, 0));
    server.check_whole();
    // As the dumps of either engine spell bytes, ids and texts.
    let id = |text: &str| text.parse::<uuid::Uuid>().unwrap();
    let mut names: Vec<String> = Vec::new();
    for id in [owner.0, id(&anna.id), id(&tablet.id), id(&key(500))] {
        names.extend([id.to_string(), id.simple().to_string(), format!("{:?}", id.as_bytes())]);
    }
    for text in ["anna@example.org", "Shopping", "tablet"] {
        names.extend([text.to_owned(), format!("{:?}", text.as_bytes())]);
    }
    let names: Vec<&str> = names.iter().map(|name| name.trim_matches(['[', ']'])).collect();
    let dump = server.dump();
    for (table, rows) in &dump {
        // Nothing but the owner's own id, which is the first three names, is there for a while.
        let names = if table == "rollcall_owner" { &names[3..] } else { &names[..] };
        for row in rows {
            assert!(!names.iter().any(|name| row.contains(name)), "{table}: {row}");
        }
    }
    let owners = &dump["rollcall_owner"];
    let is_named = |rows: &[String]| rows.iter().any(|row| names[..3].iter().any(|name| row.contains(name)));
    assert!(is_named(owners), "the search finds nothing: {owners:?}");
    assert_eq!(server.manifest(&ben).await, bens);

    // The hashes of tokens go after 30 days, and the owner leaves the list.
    server.turn(31 * 86_400_000);
    assert!(remove_erased(&server, 3, &mut emptied, &mut || true) > 0);
    assert!(emptied.is_empty());
    assert_eq!(server.get("/fetch").of(&anna).send().await.problem(), (401, "unauthorized".into()));
    let left = server.dump();
    assert!(!is_named(&left["rollcall_owner"]), "{left:?}");
    assert!(left.get("rollcall_gone").is_none_or(Vec::is_empty), "{left:?}");
    // The address is free again, and its new user begins with nothing.
    let anna = server.device("anna", "phone");
    assert_eq!(server.manifest(&anna).await["lists"], json!([]));
}

/// Goal: who shares rows does not lose them when another user goes.
#[tokio::test]
async fn an_erased_user_takes_no_row_from_who_shares_them() {
    let server = Server::new();
    let anna = server.device("anna", "phone");
    let carl = server.sharing("anna", "carl", "Carl's phone");
    server.sync(&anna, json!({ "add": { "lists": [{ "lid": key(1), "title": "ours" }] } })).await.ok();
    let erase = json!({ "password": PASSWORD });
    assert_eq!(server.ask("POST", "/account/erase").of(&anna).json(&erase).send().await.status, 204);
    remove_erased(&server, 100, &mut Emptied::new(), &mut || true);
    assert_eq!(server.get("/me").of(&anna).send().await.problem(), (410, "account_gone".into()));
    assert_eq!(server.row(&carl, "lists", &key(1)).await.unwrap()["title"], "ours");
    server.sync(&carl, json!({ "update": { "lists": [{ "lid": key(1), "title": "mine" }] } })).await.ok();
    server.check_whole();
}

/// Goal: a user sees when and from where each device was last used, also after a restart of the server, and
/// no request writes for it. Method: two devices, of which one continues; the writes of the database are
/// counted.
#[tokio::test]
async fn the_list_of_devices_tells_when_each_was_seen() {
    let server = Server::new();
    let (phone, tablet) = (server.device("anna", "phone"), server.device("anna", "tablet"));
    let begun = server.time(0);
    let minute = |time: &str| format!("{}:00.000Z", &time[..16]);
    let list = |server: &Server| server.get("/devices").of(&phone).send();
    let seen = |result: Value| -> Vec<(String, Value)> {
        let devices = result["devices"].as_array().unwrap().clone();
        devices
            .iter()
            .map(|one| (one["seen_at"].as_str().unwrap().to_owned(), one["seen_from"].clone()))
            .collect()
    };
    let commits = server.commits();
    server.turn(7_200_000);
    let mut result = seen(list(&server).await.ok());
    let later = minute(&server.time(0));
    let address = json!("0.0.0.0"); // no socket is involved
    result.sort_by_key(|(at, _)| at.clone());
    assert_eq!(result, [(minute(&begun), json!("127.0.0.1")), (later.clone(), address.clone())]);
    assert_eq!(server.commits(), commits, "a request has written for it");
    let local = server.app.accounts.local().unwrap();
    app::engine::pg::apart(|| local.sightings.flush(&mut || true).unwrap());

    let server = server.restarted();
    server.turn(60_000);
    let mut result = seen(server.get("/devices").of(&tablet).send().await.ok());
    let mut expected = [(later, address.clone()), (minute(&server.time(0)), address)];
    expected.sort_by_key(|(at, _)| at.clone());
    result.sort_by_key(|(at, _)| at.clone());
    assert_eq!(result, expected);
    // Those of other users are not listed.
    let ben = server.device("ben", "phone");
    let result = server.get("/devices").of(&ben).send().await.ok();
    assert_eq!(result["devices"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_bad_account_body_is_refused_at_its_member() {
    let server = Server::new();
    server.device("anna", "phone");
    let good = json!({ "email": "anna@example.org", "password": PASSWORD, "device": "phone" });
    let with = |member: &str, value: Value| {
        let mut body = good.clone();
        body[member] = value;
        body.to_string()
    };
    let cases = [
        (with("email", json!(7)), "wrong_type", "/email"),
        (with("email", Value::Null), "invalid_value", "/email"),
        (with("password", json!(["x"])), "wrong_type", "/password"),
        (with("device", json!("")), "invalid_value", "/device"),
        (with("device", json!({})), "wrong_type", "/device"),
        (with("device_id", json!("x")), "invalid_value", "/device_id"),
        (with("device_id", json!(1)), "wrong_type", "/device_id"),
        (with("a/b~", json!(1)), "unknown_member", "/a~1b~0"),
        (with("", json!(1)), "unknown_member", "/"),
        (with("", json!(1)), "unknown_member", "/"),
        ("[]".into(), "wrong_type", ""),
        ("null".into(), "wrong_type", ""),
        ("{}".into(), "invalid_value", "/email"),
        (good.to_string().replacen('{', "{\"email\":\"ben@example.org\",", 1), "unknown_member", "/email"),
    ];
    for (body, code, at) in cases {
        let answer = refused(&server, server.ask("POST", "/login").body(body.clone()), &body).await;
        assert_eq!(answer.fault(), (422, code.into(), at.into()), "{body}");
    }
    for (body, code, at) in [
        (r#"{"email":"nobody","password":"correct horse"}"#, "invalid_value", "/email"),
        (r#"{"email":"dora@example.org","password":"short"}"#, "invalid_value", "/password"),
        (
            r#"{"email":"dora@example.org","password":"correct horse","device":"x"}"#,
            "unknown_member",
            "/device",
        ),
        (
            r#"{"email":"dora@example.org","password":"correct horse","password":"battery staple"}"#,
            "unknown_member",
            "/password",
        ),
    ] {
        let answer = refused(&server, server.ask("POST", "/register").body(body), body).await;
        assert_eq!(answer.fault(), (422, code.into(), at.into()), "{body}");
    }
    for path in ["/login", "/register"] {
        let answer = refused(&server, server.ask("POST", path).body("{\n\"email\":}"), path).await;
        assert_eq!(answer.problem(), (400, "malformed_json".into()));
        assert_eq!((&answer.json()["line"], &answer.json()["column"]), (&json!(2), &json!(9)));
        assert_eq!(refused(&server, server.ask("POST", path), path).await.status, 411);
        let ask = server.ask("POST", path).body("{}").header("content-type", "text/plain");
        assert_eq!(refused(&server, ask, path).await.status, 415);
    }
    for (email, password) in [("anna@example.org", "wrong horse"), ("nobody@example.org", PASSWORD), ("", "")]
    {
        let body = json!({ "email": email, "password": password, "device": "x" });
        let answer = refused(&server, server.ask("POST", "/login").json(&body), email).await;
        assert_eq!(answer.problem(), (401, "unauthorized".into()));
    }
}

#[tokio::test]
async fn attempts_and_registration_have_their_limits() {
    let server = Server::with(|settings| {
        settings.limits.logins_per_account_per_min = 2;
        settings.auth.registration = Registration::Closed;
    });
    let body = json!({ "email": "x@example.org", "password": PASSWORD });
    let answer = refused(&server, server.ask("POST", "/register").json(&body), "closed").await;
    assert_eq!(answer.problem(), (403, "forbidden".into()));
    let mut body = body;
    body["device"] = json!("phone");
    for status in [401, 401, 429] {
        let answer = refused(&server, server.ask("POST", "/login").json(&body), "attempts").await;
        assert_eq!(answer.status, status);
        assert_eq!(answer.header("retry-after").is_some(), status == 429);
    }
}

#[tokio::test]
async fn where_a_provider_keeps_the_accounts_their_paths_are_not_there() {
    let dir = tempfile::tempdir().unwrap();
    let secret = dir.path().join("secret");
    std::fs::write(&secret, "a secret of more than thirty-two bytes").unwrap();
    let server = Server::with(|settings| {
        settings.auth.auth = AuthMode::Jwt;
        settings.auth.jwt_secret_file = Some(secret);
    });
    let device = format!("/devices/{}", key(1));
    for (method, path) in [
        ("POST", "/register"),
        ("POST", "/login"),
        ("POST", "/logout"),
        ("POST", "/password"),
        ("POST", "/password/reset"),
        ("POST", "/password/reset/confirm"),
        ("POST", "/email/verify"),
        ("POST", "/account/erase"),
        ("GET", "/devices"),
        ("DELETE", "/devices"),
        ("DELETE", &device),
    ] {
        let answer = refused(&server, server.ask(method, path).body("{}"), path).await;
        assert_eq!(answer.problem(), (404, "not_found".into()), "{path}");
    }
    assert_eq!(server.get("/limits").send().await.ok()["auth"], "jwt");
    let claims = json!({ "sub": "anna", "exp": i64::MAX / 1_000_000, "device_id": key(1) });
    let key = jsonwebtoken::EncodingKey::from_secret(b"a secret of more than thirty-two bytes");
    let token = jsonwebtoken::encode(&jsonwebtoken::Header::default(), &claims, &key).unwrap();
    let anna = Device { token, id: String::new(), name: String::new() };
    server.fetch(&anna, "").await.ok();
    server
        .sync(
            &anna,
            json!({ "add": { "lists": [{ "lid": "01900000-0000-7000-8000-0000000000aa", "title": "x" }] } }),
        )
        .await
        .ok();
    let forged = Device { token: format!("{}x", anna.token), ..anna };
    assert_eq!(server.fetch(&forged, "").await.problem(), (401, "unauthorized".into()));
}

#[tokio::test]
async fn users_who_share_an_owner_share_its_rows_and_its_lock() {
    let server = Server::new();
    let anna = server.device("anna", "phone");
    let carl = server.sharing("anna", "carl", "Carl's phone");
    server.fetch(&anna, "").await.ok();
    assert_eq!(server.fetch(&carl, "").await.json()["holder"], "phone");
    server.sync(&anna, json!({ "add": { "lists": [{ "lid": key(1), "title": "ours" }] } })).await.ok();
    assert_eq!(server.row(&carl, "lists", &key(1)).await.unwrap()["title"], "ours");
    let devices = server.get("/devices").of(&carl).send().await.ok();
    assert_eq!(devices["devices"].as_array().unwrap().len(), 1, "a user's devices are the user's own");
}

#[tokio::test]
async fn the_service_tells_about_itself() {
    let server = Server::new();
    for path in ["/healthz", "/readyz"] {
        assert_eq!(server.get(path).send().await.ok(), json!({ "status": "ok" }));
    }
    let mut expected = serde_json::to_value(&server.app.settings.limits).unwrap();
    let of_sync = serde_json::to_value(&server.app.settings.sync).unwrap();
    expected.as_object_mut().unwrap().extend(of_sync.as_object().unwrap().clone());
    expected["time_precision"] = json!("milliseconds");
    expected["auth"] = json!("local");
    expected["event_streams_per_owner_max"] = expected["event_streams_per_user_max"].clone(); // the former name
    assert_eq!(server.get("/limits").send().await.ok(), expected);
    let contract = server.get("/openapi.yaml").send().await;
    assert_eq!(contract.bytes, std::fs::read("openapi.yaml").unwrap());
    server.app.draining.set();
    assert_eq!(server.get("/readyz").send().await.problem(), (503, "shutting_down".into()));
    assert_eq!(server.get("/healthz").send().await.status, 200);
}

//! What must be refused, and leaves the database as it was.

use super::*;

/// Goal: every invalid batch is refused with the position of its fault. Method: one fault each, in a body
/// that would otherwise write.
#[tokio::test]
async fn a_body_at_fault_is_refused_where_the_fault_is() {
    let (server, anna, _) = furnished().await;
    let good = r#""add":{"lists":[{"lid":"01900000-0000-7000-8000-0000000000aa","title":"new"}]}"#;
    let cases: &[(&str, &str, &str)] = &[
        // The body as a whole.
        ("[]", "wrong_type", ""),
        ("null", "wrong_type", ""),
        ("7", "wrong_type", ""),
        ("\"add\"", "wrong_type", ""),
        // Members.
        (r#"{GOOD,"remove":{}}"#, "unknown_member", "/remove"),
        (r#"{GOOD,"Add":{}}"#, "unknown_member", "/Add"),
        (r#"{GOOD,"":1}"#, "unknown_member", "/"),
        (r#"{GOOD,"a/b~c":1}"#, "unknown_member", "/a~1b~0c"),
        (r#"{GOOD,"~1":1}"#, "unknown_member", "/~01"),
        (r#"{GOOD,"gr\u00fc\u00dfe \"\\":1}"#, "unknown_member", "/grüße \"\\"),
        (r#"{GOOD,"add":{}}"#, "unknown_member", "/add"),
        (r#"{GOOD,"atomic":false,"atomic":false}"#, "unknown_member", "/atomic"),
        (r#"{GOOD,"digests":true}"#, "unknown_member", "/digests"),
        (r#"{GOOD,"base":"1"}"#, "wrong_type", "/base"),
        (r#"{GOOD,"base":-1}"#, "wrong_type", "/base"),
        (r#"{GOOD,"base":1.5}"#, "wrong_type", "/base"),
        (r#"{GOOD,"base":[]}"#, "wrong_type", "/base"),
        (r#"{GOOD,"base":1e300}"#, "wrong_type", "/base"),
        (r#"{GOOD,"base":1e999}"#, "invalid_value", "/base"),
        (r#"{GOOD,"base":false}"#, "wrong_type", "/base"),
        (r#"{GOOD,"sent_at":7}"#, "wrong_type", "/sent_at"),
        (r#"{GOOD,"sent_at":"now"}"#, "wrong_type", "/sent_at"),
        (r#"{GOOD,"sent_at":"2013-05-01"}"#, "wrong_type", "/sent_at"),
        (r#"{GOOD,"atomic":"yes"}"#, "wrong_type", "/atomic"),
        (r#"{GOOD,"atomic":1}"#, "wrong_type", "/atomic"),
        (r#"{GOOD,"put_back":1}"#, "wrong_type", "/put_back"),
        (r#"{"put_back":true,"delete":{"lists":[]}}"#, "unknown_member", "/delete"),
        (r#"{GOOD,"confirm_deletes":-1}"#, "wrong_type", "/confirm_deletes"),
        (r#"{GOOD,"confirm_deletes":"all"}"#, "wrong_type", "/confirm_deletes"),
        // Sets and tables.
        (r#"{GOOD,"update":[]}"#, "wrong_type", "/update"),
        (r#"{GOOD,"delete":"all"}"#, "wrong_type", "/delete"),
        (r#"{GOOD,"get":7}"#, "wrong_type", "/get"),
        (r#"{GOOD,"update":{"lists":7}}"#, "wrong_type", "/update/lists"),
        (r#"{GOOD,"update":{"lists":"all"}}"#, "wrong_type", "/update/lists"),
        (r#"{GOOD,"update":{"lists":{"lid":1}}}"#, "wrong_type", "/update/lists"),
        (r#"{GOOD,"update":{"lists":[],"lists":[]}}"#, "unknown_member", "/update/lists"),
        (r#"{GOOD,"update":{"gifts":[{}]}}"#, "unknown_table", "/update/gifts"),
        (r#"{GOOD,"update":{"gifts":{"a":1}}}"#, "unknown_table", "/update/gifts"),
        (r#"{GOOD,"update":{"Lists":[{}]}}"#, "unknown_table", "/update/Lists"),
        (r#"{GOOD,"update":{"gifts/~":["x"]}}"#, "unknown_table", "/update/gifts~1~0"),
        (r#"{GOOD,"update":{"gifts":7}}"#, "wrong_type", "/update/gifts"),
        (r#"{GOOD,"update":{"rollcall_ledger":[{}]}}"#, "unknown_table", "/update/rollcall_ledger"),
        (
            r#"{GOOD,"update":{"lists\"; DROP TABLE lists; --":[{}]}}"#,
            "unknown_table",
            "/update/lists\"; DROP TABLE lists; --",
        ),
        (r#"{GOOD,"delete":{"gifts":["x"]}}"#, "unknown_table", "/delete/gifts"),
        (r#"{GOOD,"get":{"gifts":["x"]}}"#, "unknown_table", "/get/gifts"),
        // Rows: names that the contract lacks.
        (r#"{GOOD,"update":{"lists":[{"lid":KEY,"size":1}]}}"#, "unknown_column", "/update/lists/0/size"),
        (r#"{GOOD,"update":{"lists":[{"lid":KEY,"Title":"x"}]}}"#, "unknown_column", "/update/lists/0/Title"),
        (r#"{GOOD,"update":{"lists":[{"lid":KEY,"_owner":1}]}}"#, "unknown_column", "/update/lists/0/_owner"),
        (r#"{GOOD,"update":{"lists":[{"lid":KEY,"iid":KEY}]}}"#, "unknown_column", "/update/lists/0/iid"),
        (r#"{GOOD,"update":{"lists":[{"lid":KEY,"a/b~":1}]}}"#, "unknown_column", "/update/lists/0/a~1b~0"),
        (r#"{GOOD,"delete":{"lists":[{"lid":KEY,"title":"x"}]}}"#, "unknown_column", "/delete/lists/0/title"),
    ];
    for (body, code, at) in cases {
        let body = body.replace("GOOD", good).replace("KEY", &format!("{:?}", key(1)));
        let ask = server.ask("POST", "/synchronise").of(&anna).body(body.clone());
        let answer = refused(&server, ask, &body).await;
        assert_eq!(answer.fault(), (422, (*code).into(), (*at).into()), "{body}\n{}", answer.json());
    }
}

/// Goal: an invalid row is rejected with the position of its fault, and the others are accepted. Method: one
/// fault each, in a body that would otherwise write; `values.rs` has what the columns of other types cannot
/// hold.
#[tokio::test]
async fn a_row_at_fault_is_rejected_where_the_fault_is() {
    let (server, anna, _) = furnished().await;
    let cases: &[(&str, &str, &str)] = &[
        (r#"{GOOD,"update":{"lists":[7]}}"#, "wrong_type", "/update/lists/0"),
        (r#"{GOOD,"update":{"lists":[[]]}}"#, "wrong_type", "/update/lists/0"),
        (r#"{GOOD,"update":{"lists":[null]}}"#, "wrong_type", "/update/lists/0"),
        (r#"{GOOD,"update":{"lists":[KEY]}}"#, "wrong_type", "/update/lists/0"),
        (r#"{GOOD,"update":{"lists":[{"lid":KEY},[]]}}"#, "wrong_type", "/update/lists/1"),
        (
            r#"{GOOD,"update":{"lists":[{"lid":KEY,"title":"a","title":"b"}]}}"#,
            "invalid_value",
            "/update/lists/0/title",
        ),
        (r#"{GOOD,"update":{"lists":[{"lid":KEY,"lid":KEY}]}}"#, "invalid_value", "/update/lists/0/lid"),
        (
            r#"{GOOD,"update":{"lists":[{"lid":KEY,"last_update":null,"last_update":"2013-05-01 00:00:00"}]}}"#,
            "invalid_value",
            "/update/lists/0/last_update",
        ),
        (
            r#"{GOOD,"update":{"lists":[{"lid":KEY,"_base":null,"_base":null}]}}"#,
            "invalid_value",
            "/update/lists/0/_base",
        ),
        (
            r#"{GOOD,"update":{"lists":[{"lid":KEY,"last_update":7}]}}"#,
            "wrong_type",
            "/update/lists/0/last_update",
        ),
        (
            r#"{GOOD,"update":{"lists":[{"lid":KEY,"last_update":"soon"}]}}"#,
            "wrong_type",
            "/update/lists/0/last_update",
        ),
        (r#"{GOOD,"update":{"lists":[{"lid":KEY,"_base":false}]}}"#, "wrong_type", "/update/lists/0/_base"),
        (r#"{GOOD,"update":{"lists":[{}]}}"#, "invalid_key", "/update/lists/0"),
        (r#"{GOOD,"update":{"lists":[{"title":"x"}]}}"#, "invalid_key", "/update/lists/0"),
        (r#"{GOOD,"update":{"lists":[{"lid":null}]}}"#, "invalid_key", "/update/lists/0/lid"),
        (r#"{GOOD,"update":{"lists":[{"lid":7}]}}"#, "invalid_key", "/update/lists/0/lid"),
        (r#"{GOOD,"update":{"lists":[{"lid":[KEY]}]}}"#, "invalid_key", "/update/lists/0/lid"),
        (r#"{GOOD,"update":{"lists":[{"lid":""}]}}"#, "invalid_key", "/update/lists/0/lid"),
        (
            r#"{GOOD,"update":{"lists":[{"lid":"019000000000700080000000000000aa"}]}}"#,
            "invalid_key",
            "/update/lists/0/lid",
        ),
        (
            r#"{GOOD,"update":{"lists":[{"lid":"{01900000-0000-7000-8000-0000000000aa}"}]}}"#,
            "invalid_key",
            "/update/lists/0/lid",
        ),
        (
            r#"{GOOD,"update":{"lists":[{"lid":"urn:uuid:01900000-0000-7000-8000-0000000000aa"}]}}"#,
            "invalid_key",
            "/update/lists/0/lid",
        ),
        (
            r#"{GOOD,"update":{"lists":[{"lid":" 01900000-0000-7000-8000-0000000000a"}]}}"#,
            "invalid_key",
            "/update/lists/0/lid",
        ),
        (
            r#"{GOOD,"update":{"lists":[{"lid":"01900000-0000-7000-8000-0000000000ag"}]}}"#,
            "invalid_key",
            "/update/lists/0/lid",
        ),
        (r#"{GOOD,"delete":{"lists":[7]}}"#, "wrong_type", "/delete/lists/0"),
        (r#"{GOOD,"delete":{"lists":[null]}}"#, "wrong_type", "/delete/lists/0"),
        (r#"{GOOD,"delete":{"lists":[[]]}}"#, "wrong_type", "/delete/lists/0"),
        (r#"{GOOD,"delete":{"lists":[KEY,"all"]}}"#, "invalid_key", "/delete/lists/1"),
        (r#"{GOOD,"delete":{"lists":[{}]}}"#, "invalid_key", "/delete/lists/0"),
        (r#"{GOOD,"delete":{"lists":[{"lid":9}]}}"#, "invalid_key", "/delete/lists/0/lid"),
        (
            r#"{GOOD,"delete":{"lists":[{"lid":KEY,"last_update":[]}]}}"#,
            "wrong_type",
            "/delete/lists/0/last_update",
        ),
        (r#"{GOOD,"get":{"lists":[{"lid":KEY}]}}"#, "invalid_key", "/get/lists/0"),
        (r#"{GOOD,"get":{"lists":[KEY,"x"]}}"#, "invalid_key", "/get/lists/1"),
        (r#"{GOOD,"get":{"lists":[true]}}"#, "invalid_key", "/get/lists/0"),
    ];
    for (n, (body, code, at)) in cases.iter().enumerate() {
        let good = format!(r#""add":{{"lists":[{{"lid":"{}","title":"new"}}]}}"#, key(0x1000 + n as u64));
        let body = body.replace("GOOD", &good).replace("KEY", &format!("{:?}", key(1)));
        let result = server.ask("POST", "/synchronise").of(&anna).body(body.clone()).send().await.ok();
        assert_eq!(verdicts(&result, "add", "lists"), ["added"], "{body}: {result}");
        let mut rejected: Vec<&Value> = result["rejected"]["lists"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|result| &result["error"])
            .collect();
        for part in ["update", "delete"] {
            let list = result[part]["lists"].as_array().into_iter().flatten();
            let errors = list.filter(|result| result["verdict"] == "rejected").map(|result| &result["error"]);
            rejected.extend(errors.filter(|error| error["code"] != "still_referenced"));
        }
        assert_eq!(rejected.len(), 1, "{body}: {result}");
        assert_eq!(
            (&rejected[0]["code"], &rejected[0]["at"]),
            (&json!(code), &json!(at)),
            "{body}: {result}"
        );
    }
    server.check_whole();
}

#[tokio::test]
async fn a_value_of_another_type_is_rejected_at_its_column() {
    let (server, anna, _) = furnished().await;
    let uuid = key(1);
    let cases: &[(&str, &[Value])] = &[
        ("text", &[json!(1), json!(true), json!([]), json!({})]),
        (
            "whole",
            &[
                json!(1.5),
                json!("1.0"),
                json!(""),
                json!(true),
                json!(1e17),
                json!(u64::MAX),
                json!("9223372036854775808"),
                json!("+1"),
                json!([]),
            ],
        ),
        ("real", &[json!("1"), json!(false), json!([]), json!({})]),
        (
            "exact",
            &[json!("1,5"), json!("NaN"), json!(""), json!(true), json!([1]), json!({}), json!("1e400")],
        ),
        ("flag", &[json!(2), json!("true"), json!([]), json!({})]),
        ("other", &[json!(1), json!("x"), json!(uuid.replace('-', "")), json!({})]),
        (
            "at",
            &[json!(0.5), json!("2013-05-01"), json!("yesterday"), json!("2013-02-30 00:00:00"), json!([])],
        ),
        (
            "day",
            &[
                json!(0),
                json!("2013-5-1"),
                json!("2013-02-30"),
                json!("2013-05-01 00:00:00"),
                json!("0000-01-01"),
            ],
        ),
        ("bytes", &[json!(0), json!("AP8=="), json!("_-8="), json!([1, 2])]),
    ];
    for (column, values) in cases {
        for value in *values {
            let row = json!({ "id": uuid, *column: value });
            let before = server.dump();
            let result = server.sync(&anna, json!({ "add": { "things": [row] } })).await.ok();
            let error = &result["add"]["things"][0]["error"];
            assert_eq!(error["code"], "wrong_type", "{value}: {result}");
            assert_eq!(
                (&error["at"], &error["column"]),
                (&json!(format!("/add/things/0/{column}")), &json!(column))
            );
            assert_eq!(server.dump(), before, "{value}: something was written");
        }
    }
}

#[tokio::test]
async fn a_body_that_is_no_json_is_refused_with_line_and_column() {
    let (server, anna, _) = furnished().await;
    let cases: &[(&[u8], u64, u64)] = &[
        (b"", 1, 0),
        (b"   ", 1, 3),
        (b"{", 1, 1),
        (b"{\"add\":{}", 1, 9),
        (b"{\"add\":{}}}", 1, 11),
        (b"{\"add\":{}} {}", 1, 12),
        (b"{\n  \"add\": {\n    \"lists\": [,]\n  }\n}", 3, 15),
        (b"{'add':{}}", 1, 2),
        (b"{\"add\":{},}", 1, 11),
        (b"{\"add\":NaN}", 1, 8),
        (b"{\"base\":01}", 1, 10),
        (b"\xff\xfe{}", 1, 1),
        (b"\xef\xbb\xbf{}", 1, 1),
        (b"{\"a\xff\":1}", 1, 4),
        (b"{\"add\":{\"lists\":[{\"lid\":\"a\nb\"}]}}", 2, 0),
    ];
    for (body, line, column) in cases {
        let place = String::from_utf8_lossy(body);
        let ask = server.ask("POST", "/synchronise").of(&anna).body(*body);
        let answer = refused(&server, ask, &place).await;
        assert_eq!(answer.problem(), (400, "malformed_json".into()), "{place}");
        let result = answer.json();
        assert_eq!((&result["line"], &result["column"]), (&json!(line), &json!(column)), "{place}: {result}");
        assert!(result.get("at").is_none(), "{place}");
    }
    // Deeper than any stack, at every place where values may nest.
    for before in [
        "",
        r#"{"add":"#,
        r#"{"nonsense":"#,
        r#"{"add":{"things":[{"id":"k","extra":"#,
        r#"{"add":{"things":[{"exact":"#,
    ] {
        for bracket in ["[", "{\"a\":"] {
            let body = format!("{before}{}", bracket.repeat(100_000));
            refused(&server, server.ask("POST", "/synchronise").of(&anna).body(body), before).await;
        }
    }
}

#[tokio::test]
async fn a_request_beyond_a_limit_is_refused() {
    let server = Server::with(|settings| {
        settings.limits.body_bytes_max = 4_000;
        settings.limits.rows_max = 3;
        settings.limits.get_keys_max = 2;
        settings.limits.json_depth_max = 4;
    });
    let anna = server.device("anna", "phone");
    let post = || server.ask("POST", "/synchronise").of(&anna);
    let list = |n: u64| json!({ "lid": key(n), "title": "x" });

    let large = json!({ "add": { "lists": [{ "lid": key(1), "title": "x".repeat(4_000) }] } });
    let answer = refused(&server, post().json(&large), "large").await;
    assert_eq!(answer.problem(), (413, "body_too_large".into()));

    let batch = json!({ "add": { "lists": [list(1), list(2)] }, "update": { "lists": [list(1)] } });
    server.sync(&anna, batch).await.ok();
    for (batch, at) in [
        (json!({ "add": { "lists": [list(1), list(2), list(3), list(4)] } }), "/add/lists/3"),
        (
            json!({ "add": { "lists": [list(1), list(2), list(3)] }, "delete": { "items": [key(1)] } }),
            "/delete/items/0",
        ),
        (json!({ "get": { "items": [key(1)], "lists": [key(1), key(2)] } }), "/get/lists/1"),
    ] {
        let answer = refused(&server, post().json(&batch), at).await;
        assert_eq!(answer.fault(), (422, "too_many_rows".into(), at.into()));
    }

    let nested = |depth: usize| -> Value { (0..depth).fold(json!(1), |inner, _| json!([inner])) };
    let thing = |extra: Value| json!({ "add": { "things": [{ "id": key(1), "extra": extra }] } });
    server.sync(&anna, thing(nested(4))).await.ok();
    for deep in [nested(5), nested(100), json!({ "a": { "b": { "c": { "d": { "e": 1 } } } } })] {
        let result = server.sync(&anna, thing(deep)).await.ok();
        let error = &result["add"]["things"][0]["error"];
        assert_eq!((&error["code"], &error["at"]), (&json!("invalid_value"), &json!("/add/things/0/extra")));
    }
}

#[tokio::test]
async fn only_json_is_taken() {
    let (server, anna, _) = furnished().await;
    let body = r#"{"add":{"lists":[{"lid":"01900000-0000-7000-8000-0000000000aa","title":"new"}]}}"#;
    for (name, value) in [("content-type", "text/plain"), ("content-encoding", "gzip")] {
        let ask = server.ask("POST", "/synchronise").of(&anna).body(body).header(name, value);
        let answer = refused(&server, ask, value).await;
        assert_eq!(answer.problem(), (415, "unsupported_media_type".into()), "{value}");
    }
    let answer = refused(&server, server.ask("POST", "/synchronise").of(&anna), "no body").await;
    assert_eq!(answer.problem(), (411, "length_required".into()));
}

/// Goal: nobody learns of another owner's rows. Method: the same requests about another's keys, by a device
/// without such a row, and by one of a new owner about keys that never existed.
#[tokio::test]
async fn another_owners_keys_are_answered_as_unknown_ones() {
    let (server, _, ben) = furnished().await;
    let (unknown, theirs) = (key(0xffff), key(2)); // anna holds key(2), alive and as a tombstone; ben does not
    let batches = |asked: &str| {
        [
            json!({ "get": { "lists": [asked], "items": [asked], "nodes": [asked] } }),
            json!({ "delete": { "lists": [asked], "items": [asked] } }),
            json!({ "update": { "lists": [{ "lid": asked, "colour": "blue" }] } }),
            json!({ "update": { "lists": [{ "lid": asked, "title": "x", "_base": "2013-05-01 00:00:00" }] } }),
            json!({ "add": { "items": [{ "iid": key(50), "title": "x", "list": asked }] } }),
            json!({ "add": { "nodes": [{ "id": key(50), "parent": asked }] }, "atomic": true }),
        ]
    };
    let before = server.dump();
    for (batch, about) in batches(&unknown).iter().zip(batches(&theirs)) {
        let result = server.sync(&ben, batch.clone()).await;
        let about_theirs = server.sync(&ben, about).await;
        assert_eq!(about_theirs.status, result.status);
        let text = String::from_utf8(about_theirs.bytes.clone()).unwrap();
        assert_eq!(text.replace(&theirs, &unknown), String::from_utf8(result.bytes.clone()).unwrap());
        assert_eq!(about_theirs.headers, result.headers);
    }
    assert_eq!(server.dump(), before);
    // The same key may be two owners' row, and each writes its own.
    let result =
        server.sync(&ben, json!({ "add": { "lists": [{ "lid": theirs, "title": "mine" }] } })).await.ok();
    assert_eq!(verdicts(&result, "add", "lists"), ["added"]);
    let anna = server.device("anna", "tablet");
    assert_eq!(server.row(&anna, "lists", &theirs).await.unwrap()["title"], "Chores");
    assert_eq!(server.row(&ben, "lists", &theirs).await.unwrap()["title"], "mine");
}

#[tokio::test]
async fn what_is_no_good_token_is_told_nothing() {
    let (server, anna, _) = furnished().await;
    let gone = server.device("anna", "lost");
    server.ask("DELETE", &format!("/devices/{}", gone.id)).of(&anna).send().await;
    let forged = format!("rc_{}", "A".repeat(43));
    let swapped: String = anna.token.chars().rev().collect();
    let mut headers: Vec<Vec<String>> = vec![
        vec![],
        vec![format!("Bearer {}", gone.token)],
        vec![format!("Bearer {forged}")],
        vec![format!("Bearer {swapped}")],
        vec![format!("Bearer {}x", anna.token)],
        vec![format!("Bearer {}", anna.token.to_uppercase())],
        vec!["Bearer".into()],
        vec!["Bearer ".into()],
        vec![anna.token.clone()],
        vec![format!("Basic {}", anna.token)],
        vec![format!("Bearer {} {}", anna.token, anna.token)],
        vec![format!("Bearer {}", anna.token), format!("Bearer {}", anna.token)],
        vec![format!("Bearer {}", anna.token), format!("Bearer {forged}")],
        vec![format!("Bearer {}, Bearer {forged}", anna.token)],
    ];
    let calls = [
        ("GET", "/fetch"),
        ("GET", "/fetch.json?nonsense"),
        ("POST", "/synchronise"),
        ("POST", "/synchronise.json"),
        ("GET", "/lock"),
        ("POST", "/lock"),
        ("DELETE", "/lock?break=true"),
        ("POST", "/logout"),
        ("GET", "/devices"),
        ("DELETE", "/devices/x"),
    ];
    let mut checked = 0;
    for expired in [false, true] {
        if expired {
            server.turn(366 * 86_400_000);
            headers = vec![vec![format!("Bearer {}", anna.token)]];
        }
        for given in &headers {
            for (method, path) in calls {
                let mut ask = server.ask(method, path).body("{");
                for value in given {
                    ask = ask.header("authorization", value);
                }
                let answer = refused(&server, ask, path).await;
                assert_eq!(answer.problem(), (401, "unauthorized".into()), "{method} {path} {given:?}");
                assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
                assert!(answer.header("sync-lock").is_none());
                checked += 1;
            }
        }
    }
    assert_eq!(checked, 15 * calls.len());
}

#[tokio::test]
async fn a_garbled_query_or_header_is_refused() {
    let (server, anna, _) = furnished().await;
    for query in [
        "?tables=",
        "?tables=gifts",
        "?tables=lists,",
        "?tables=lists,gifts",
        "?tables=Lists",
        "?tables=lists;items",
        "?lock=yes",
        "?lock=",
        "?lock",
        "?lock=TRUE",
        "?page=",
        "?page=x",
        "?page=%00",
        "?page=MQ",
        "?page=MS4x",
        "?page=MS4wLng",
        "?page=MS45OS4",
        "?page=LTEuMC4",
        "?limit=5",
        "?tables=lists&limit=5",
        "?Lock=true",
        "?lock=false&lock=true",
        "?tables=lists&tables=items",
        "?lists",
        "?=",
        "?%ff=1",
        "?tables=%ff",
    ] {
        let answer = refused(&server, server.get(&format!("/fetch{query}")).of(&anna), query).await;
        assert_eq!(answer.problem(), (400, "invalid_request".into()), "{query}");
    }
    for query in ["?break=yes", "?break", "?brake=true", "?break=true&break=false"] {
        let answer = refused(&server, server.ask("DELETE", &format!("/lock{query}")).of(&anna), query).await;
        assert_eq!(answer.problem(), (400, "invalid_request".into()), "{query}");
    }
    let fence = server.fetch(&anna, "").await.fence();
    let other = u64::MAX.to_string();
    for (given, status, code) in [
        ("", 400, "invalid_request"),
        ("x", 400, "invalid_request"),
        ("-1", 400, "invalid_request"),
        ("1.5", 400, "invalid_request"),
        ("1 2", 400, "invalid_request"),
        ("99999999999999999999", 400, "invalid_request"),
        ("0", 409, "lock_lost"),
        (other.as_str(), 409, "lock_lost"),
    ] {
        let body = json!({ "add": { "lists": [{ "lid": key(77), "title": "x" }] } });
        for ask in [server.ask("POST", "/synchronise").json(&body), server.ask("POST", "/lock")] {
            let answer = refused(&server, ask.of(&anna).header("sync-lock", given), given).await;
            assert_eq!(answer.problem(), (status, code.into()), "{given:?}");
        }
    }
    let twice = server.ask("POST", "/lock").of(&anna).header("sync-lock", 0).header("sync-lock", fence);
    assert_ne!(refused(&server, twice, "two fences").await.status, 200);
}

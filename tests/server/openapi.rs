//! `openapi.yaml` held against itself and against the library.

use rollcall_testkit::app;
use rollcall_testkit::contract;

use std::collections::{BTreeMap, BTreeSet};

use app::Server;
use contract::{
    Exemplified, METHODS, codes_in_prose, document, exemplified, follow, members, operation_objects,
    operations, responses, typed, validator,
};
use http::StatusCode;
use rollcall::config::{Limits, Secret, SyncSettings};
use rollcall::http::problem::CODES;
use serde_json::{Value, json};

/// The general document, and those made from it: what must hold of any holds of all.
fn documents() -> [Value; 3] {
    [document(), typed("fixtures/wedding/schema.toml"), typed("fixtures/contract/odd.toml")]
}

/// Goal: the program has the contract that is in the repository. Method: the JSON that it embeds against the YAML.
#[test]
fn the_embedded_document_is_the_written_one() {
    assert_eq!(document(), contract::written());
}

/// Goal: no client meets an erased account unprepared. Method: what a device's token leads to has the header `Sync-For`, and
/// a 410 that can be that of an erased account.
#[test]
fn every_operation_of_a_device_documents_that_its_account_is_gone() {
    let doc = document();
    let (mut checked, mut missing) = (0, Vec::new());
    for ((method, path), operation) in operation_objects(&doc) {
        if !operation.get("parameters").is_some_and(|all| all.to_string().contains("SyncFor")) {
            continue;
        }
        checked += 1;
        let gone = operation["responses"].get("410").map(|gone| follow(&doc, gone));
        if !gone.is_some_and(|gone| gone.to_string().contains("account_gone")) {
            missing.push(format!("{method} {path}"));
        }
    }
    assert!(checked > 20, "only {checked} operations found");
    assert!(missing.is_empty(), "no account_gone: {missing:?}");
}

#[test]
fn every_reference_leads_somewhere() {
    fn count(doc: &Value, node: &Value) -> usize {
        let below = match node {
            Value::Object(members) => members.values().map(|value| count(doc, value)).sum(),
            Value::Array(items) => items.iter().map(|item| count(doc, item)).sum(),
            _ => 0,
        };
        follow(doc, node);
        below + usize::from(node.get("$ref").is_some())
    }
    for doc in documents() {
        assert!(count(&doc, &doc) > 0, "no references found: a changed spelling must not pass");
    }
}

/// Goal: an app author can copy any example. Method: each is validated against the schema beside it.
#[test]
fn every_body_parameter_and_header_has_examples_that_fit_its_schema() {
    for doc in documents() {
        let mut checked = 0;
        let mut faults = Vec::new();
        for Exemplified { place, schema, examples } in exemplified(&doc) {
            if examples.is_empty() {
                faults.push(format!("{place}: no example"));
            }
            let validator = validator(&doc, schema);
            for (name, example) in examples {
                checked += 1;
                let errors = validator.iter_errors(example);
                faults.extend(errors.map(|e| format!("{place}, {name}: {e} at {}", e.instance_path())));
            }
        }
        assert!(faults.is_empty(), "{}", faults.join("\n"));
        assert!(checked > 0, "no examples found: a changed layout must not pass");
    }
}

/// Some generators require a member with a `default`: descriptions explain what its absence means.
#[test]
fn what_may_be_left_out_has_no_default() {
    fn look(node: &Value) {
        match node {
            Value::Object(members) if members.get("type").is_some_and(Value::is_string) => {
                assert!(members.get("default").is_none_or(Value::is_object), "{node}");
                members.values().for_each(look);
            }
            Value::Object(members) => members.values().for_each(look),
            Value::Array(items) => items.iter().for_each(look),
            _ => {}
        }
    }
    for doc in documents() {
        look(&doc["paths"]);
        for kind in ["schemas", "parameters", "headers"] {
            look(&doc["components"][kind]);
        }
    }
}

#[test]
fn only_answers_that_have_no_body_lack_one() {
    for doc in documents() {
        for (place, status, response) in responses(&doc) {
            // Some generators take `default` for a success too, and some do not compile a range such as 4XX.
            assert!(status.parse::<u16>().is_ok(), "{place}: write the status");
            let bodiless = ["204", "304"].contains(&status);
            assert_eq!(response.get("content").is_none(), bodiless, "{place}");
        }
    }
}

/// Goal: the schema of a request is strict. Method: bodies that the server refuses.
#[test]
fn the_schema_refuses_what_the_server_refuses() {
    let doc = document();
    let validator = validator(&doc, &json!({ "$ref": "#/components/schemas/Batch" }));
    let refused = [
        json!([]),
        json!({ "remove": {} }),
        json!({ "add": [] }),
        json!({ "base": -1 }),
        json!({ "confirm_deletes": 9_223_372_036_854_775_808_u64 }),
        json!({ "add": { "budget": { "bid": "f426f326-1cfe-4669-9e74-3c063fba542a" } } }),
        json!({ "add": { "budget": ["f426f326-1cfe-4669-9e74-3c063fba542a"] } }),
        json!({ "update": { "budget": [{ "last_update": "yesterday" }] } }),
        json!({ "delete": { "budget": ["f426f3261cfe46699e743c063fba542a"] } }),
        json!({ "delete": { "budget": [7] } }),
        json!({ "delete": { "budget": [{ "bid": "no key" }] } }),
        json!({ "get": { "budget": [{ "bid": "f426f326-1cfe-4669-9e74-3c063fba542a" }] } }),
        json!({ "base": "3" }),
        json!({ "atomic": "yes" }),
        json!({ "put_back": 1 }),
        json!({ "confirm_deletes": -1 }),
    ];
    for body in refused {
        assert!(!validator.is_valid(&body), "{body}");
    }
}

/// Goal: the document and `ApiError` name the same problems. Method: a response's examples are its codes.
#[test]
fn the_problems_are_those_of_the_library() {
    for doc in documents() {
        the_problems_of(&doc);
    }
}

fn the_problems_of(doc: &Value) {
    let mut result = BTreeSet::new();
    for (place, status, response) in responses(doc) {
        let Some(media) = response["content"].get("application/problem+json") else { continue };
        let mut codes = BTreeSet::new();
        for (name, problem) in Exemplified::new(doc, place.clone(), media).examples {
            let code = problem["code"].as_str().unwrap();
            let given = u16::try_from(problem["status"].as_u64().unwrap()).unwrap();
            let title = StatusCode::from_u16(given).unwrap().canonical_reason();
            assert_eq!(name, code, "{place}: an example is named by its code");
            assert_eq!(problem["title"].as_str(), title, "{place}, {name}");
            assert_eq!(status, given.to_string(), "{place}, {name}");
            codes.insert(code);
            result.insert((given, code.to_owned()));
        }
        assert_eq!(codes, codes_in_prose(response["description"].as_str().unwrap()), "{place}");
    }
    let ours: BTreeSet<_> =
        CODES.iter().map(|(status, code)| (status.as_u16(), (*code).to_owned())).collect();
    assert_eq!(ours.len(), CODES.len(), "no code comes twice");
    assert_eq!(result, ours);

    let listed = doc["components"]["schemas"]["Code"]["enum"].as_array().unwrap();
    let listed: BTreeSet<_> = listed.iter().filter_map(Value::as_str).collect();
    assert_eq!(listed, CODES.iter().map(|(_, code)| *code).collect());
}

#[test]
fn the_limits_are_those_of_the_settings() {
    let doc = document();
    let schema = &doc["components"]["schemas"]["Limits"];
    // Former names are deprecated, and clients need not know them.
    let present = members(schema, "properties").filter(|(_, one)| one["deprecated"] != true);
    let result: BTreeSet<_> = present.map(|(name, _)| name.as_str()).collect();
    let required = schema["required"].as_array().unwrap();
    let required: BTreeSet<_> = required.iter().filter_map(Value::as_str).collect();
    let mut settings = serde_json::to_value(Limits::default()).unwrap();
    let of_sync = serde_json::to_value(SyncSettings::default()).unwrap();
    settings.as_object_mut().unwrap().extend(of_sync.as_object().unwrap().clone());
    let mut ours: BTreeSet<_> = settings.as_object().unwrap().keys().map(String::as_str).collect();
    ours.extend(["time_precision", "auth"]);
    assert_eq!(result, ours);
    assert_eq!(required, ours);

    let example =
        &doc["paths"]["/limits"]["get"]["responses"]["200"]["content"]["application/json"]["example"];
    for (name, default) in settings.as_object().unwrap() {
        assert_eq!(&example[name], default, "{name}: the example has the defaults");
    }
}

#[test]
fn the_second_names_are_the_same_calls() {
    let doc = document();
    let call = |method: &str, path: &str| {
        let mut operation = operation_objects(&doc)[&(method.to_owned(), path.to_owned())].clone();
        for own in ["operationId", "summary", "description"] {
            operation.remove(own);
        }
        operation
    };
    let mut twins = 0;
    for (method, path) in operations(&doc) {
        let Some(first) = path.strip_suffix(".json").filter(|first| doc["paths"].get(*first).is_some())
        else {
            continue;
        };
        assert_eq!(call(&method, &path), call(&method, first), "{method} {path}");
        twins += 1;
    }
    assert_eq!(twins, 2);
}

/// Goal: the document and the routes have the same operations. Method: every method on every path of the
/// document, with and without a token; [`app::Ask::send`] checks each response against the document.
#[tokio::test]
async fn the_routes_are_the_documents_operations() {
    let server = Server::with(|settings| {
        settings.operator.console_token = Some(Secret::from("sesame sesame 16"));
    });
    let phone = server.device("anna", "phone");
    let doc = document();
    let mut operations: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (method, path) in self::operations(&doc) {
        operations.entry(path).or_default().push(method);
    }
    for (template, methods) in &operations {
        let some = "01900000-0000-7000-8000-000000000001";
        let path = template.replace("{device_id}", some).replace("{id}", some).replace("{owner}", some);
        let path = path.replace("{table}", "lists").replace("{user}", some);
        assert!(!path.contains('{'), "{template}: say what stands there");
        for method in METHODS.map(str::to_uppercase).iter().map(String::as_str).chain(["CONNECT", "FROB"]) {
            for ask in [server.ask(method, &path), server.ask(method, &path).of(&phone).body("{")] {
                if method == "POST" && path == "/logout" && ask.has_token() {
                    continue; // it would end the token that the others need
                }
                let answer = ask.send().await;
                // `HEAD` is `GET` without the body, and not listed by itself.
                let declared: BTreeSet<_> = methods
                    .iter()
                    .map(String::as_str)
                    .chain(methods.iter().any(|method| method == "GET").then_some("HEAD"))
                    .collect();
                let served = declared.contains(method);
                let (status, code) = answer.problem();
                assert_eq!(served, status != 405, "{method} {template}: {status} {code}");
                if !served {
                    let allow: BTreeSet<_> = answer.header("allow").unwrap().split(", ").collect();
                    assert_eq!(allow, declared, "{method} {template}");
                } else if !path.contains(some) {
                    assert_ne!(status, 404, "{method} {template}: not served");
                }
            }
        }
    }
    assert_eq!(server.ask("POST", "/logout").of(&phone).send().await.status, 204);
    for path in [
        "/",
        "/fetch/x",
        "/fetch.xml",
        "/Fetch",
        "/sync.json",
        "/no_table/sync",
        "/lock.json",
        "/devices/a/b",
        "/v1/fetch",
        "//fetch",
    ] {
        assert_eq!(server.get(path).send().await.problem(), (404, "not_found".into()), "{path}");
    }
}

/// Goal: no route is left out of the document. Method: the paths that the source of the routes names.
#[test]
fn every_path_of_the_routes_is_in_the_document() {
    let source = [
        "http/routes.rs",
        "http/console_routes.rs",
        "http/owner_routes.rs",
        "dialects/change_tracking.rs",
        "dialects/electric/mod.rs",
        "dialects/powersync/mod.rs",
    ]
    .map(|file| std::fs::read_to_string(format!("src/{file}")).unwrap())
    .concat();
    let doc = document();
    let declared: BTreeSet<String> = operations(&doc)
        .into_iter()
        .map(|(_, path)| {
            path.split('/')
                .map(|part| if part.starts_with('{') { "*" } else { part })
                .collect::<Vec<_>>()
                .join("/")
        })
        .collect();
    let mut named = BTreeSet::new();
    for rest in source.split("warp::path!(").skip(1) {
        let parts = rest.split(')').next().unwrap().split('/');
        named.insert(parts.fold(String::new(), |path, part| {
            let part = part.trim();
            path + "/" + part.strip_prefix('"').map_or("*", |text| text.trim_end_matches('"'))
        }));
    }
    assert_eq!(named, declared);
    assert!(!source.contains("warp::path("), "write paths with path!, so that this test finds them");
}

/// Goal: other tests can rely on the validation of responses. Method: responses that break the contract.
#[test]
fn an_answer_that_breaks_the_contract_is_found() {
    let result = |status: u16, headers: &[(&str, &str)], body: Value| {
        let headers: http::HeaderMap = headers
            .iter()
            .map(|(name, value)| (name.parse::<http::HeaderName>().unwrap(), value.parse().unwrap()))
            .collect();
        let body = body.to_string();
        std::panic::catch_unwind(|| {
            contract::check_answer(&http::Method::GET, "/lock", status, &headers, body.as_bytes());
        })
    };
    let json_type = ("content-type", "application/json");
    let problem_type = ("content-type", "application/problem+json");
    let problem = |status: u16, code: &str| json!({ "type": "about:blank", "title": "x", "status": status, "code": code, "detail": "x" });
    result(200, &[json_type], json!({ "held": false })).unwrap();
    result(401, &[problem_type, ("www-authenticate", "Bearer")], problem(401, "unauthorized")).unwrap();
    for (what, outcome) in [
        ("a member missing", result(200, &[json_type], json!({}))),
        ("a member too many", result(200, &[json_type], json!({ "held": false, "extra": 1 }))),
        ("a member of another type", result(200, &[json_type], json!({ "held": "no" }))),
        ("another content type", result(200, &[problem_type], json!({ "held": false }))),
        ("a header too many", result(200, &[json_type, ("x-extra", "1")], json!({ "held": false }))),
        ("another status", result(418, &[problem_type], problem(418, "unauthorized"))),
        ("a status of another call", result(409, &[problem_type], problem(409, "lock_lost"))),
        ("a header missing", result(401, &[problem_type], problem(401, "unauthorized"))),
        (
            "another code",
            result(401, &[problem_type, ("www-authenticate", "Bearer")], problem(401, "forbidden")),
        ),
        (
            "another status within",
            result(401, &[problem_type, ("www-authenticate", "Bearer")], problem(403, "unauthorized")),
        ),
    ] {
        assert!(outcome.is_err(), "{what}: not found");
    }
}

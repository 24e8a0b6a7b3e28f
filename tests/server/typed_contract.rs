//! The contract made for a schema is a refinement of `openapi.yaml`: the same calls, and whatever fits the one
//! fits the other.

use rollcall_testkit::app;
use rollcall_testkit::contract;
use rollcall_testkit::instance;

use std::collections::{BTreeMap, BTreeSet};

use app::{Ask, Server};
use contract::{document, exemplified, follow, members, operation_objects, typed, validator};
use instance::Instances;
use serde_json::{Map, Value, json};

const WEDDING: &str = "fixtures/wedding/schema.toml";
const ODD: &str = "fixtures/contract/odd.toml";
const BOTH: [&str; 2] = [WEDDING, ODD];

fn component(name: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{name}") })
}

fn faults(doc: &Value, schema: &Value, instance: &Value) -> Vec<String> {
    let validator = validator(doc, schema);
    validator.iter_errors(instance).map(|error| format!("{error} at {}", error.instance_path())).collect()
}

/// An operation without the schemas of its bodies: everything that must not change.
fn outline(doc: &Value) -> BTreeMap<String, Value> {
    let mut result = BTreeMap::new();
    for ((method, path), operation) in operation_objects(doc) {
        let shared = doc["paths"][&path].get("parameters").and_then(Value::as_array);
        let own = operation.get("parameters").and_then(Value::as_array);
        let parameters: Vec<_> = shared
            .into_iter()
            .chain(own)
            .flatten()
            .map(|parameter| {
                let mut parameter = follow(doc, parameter).clone();
                parameter.as_object_mut().unwrap().remove("example");
                if parameter["name"] == "since" {
                    // Refined: a generated client sends a version that it received, and leaves it out at
                    // first.
                    parameter["schema"] = Value::Null;
                }
                if let Some(schema) = parameter["schema"].as_object_mut() {
                    schema.remove("enum");
                    schema.get_mut("items").map(|items| items.as_object_mut().unwrap().remove("enum"));
                }
                parameter
            })
            .collect();
        let mut responses = Map::new();
        for (status, response) in operation["responses"].as_object().unwrap() {
            let response = follow(doc, response);
            let headers: Vec<_> = members(response, "headers")
                .map(|(name, header)| {
                    let header = follow(doc, header);
                    json!([name, header["required"], header["schema"], header["description"]])
                })
                .collect();
            let media: Vec<_> = members(response, "content").map(|(kind, _)| kind).collect();
            let outline = json!([response["description"], headers, media]);
            responses.insert(status.clone(), outline);
        }
        let body = operation.get("requestBody").map(|body| {
            let body = follow(doc, body);
            json!([body["required"], members(body, "content").map(|(kind, _)| kind).collect::<Vec<_>>()])
        });
        let rest = ["operationId", "tags", "summary", "description", "security"];
        let rest = rest.map(|name| operation.get(name).cloned().unwrap_or(Value::Null));
        result.insert(format!("{method} {path}"), json!([rest, parameters, body, responses]));
    }
    result
}

#[test]
fn a_typed_document_has_the_same_calls() {
    let general = outline(&document());
    assert!(general.len() > 10);
    for schema in BOTH {
        assert_eq!(outline(&typed(schema)), general, "{schema}");
    }
}

/// Goal: who keeps the typed contract keeps the general one. Method: its examples, at the same places.
#[test]
fn examples_of_a_typed_document_fit_the_general_one() {
    let root = document();
    let general: Vec<_> =
        exemplified(&root).into_iter().map(|e| (e.place.clone(), e.schema.clone())).collect();
    for schema in BOTH {
        let doc = typed(schema);
        let found = exemplified(&doc);
        assert_eq!(found.len(), general.len());
        for (made, (place, wanted)) in found.iter().zip(&general) {
            assert_eq!(made.place, *place);
            for (name, example) in &made.examples {
                let faults = faults(&root, wanted, example);
                assert!(faults.is_empty(), "{schema}: {place}, {name}: {}", faults.join("\n"));
            }
        }
    }
}

/// The general type that corresponds to a type of a table.
const KINDS: [(&str, &str); 6] = [
    ("Entry", "ManifestEntry"),
    ("Row", "Row"),
    ("New", "GivenRow"),
    ("Patch", "GivenRow"),
    ("Deletion", "DatedDeletion"),
    ("Verdict", "Decision"),
];

/// Goal: the same for what nobody thought of. Method: instances made from the typed schemas, at random from a
/// fixed seed, are valid under the general ones.
#[test]
fn whatever_fits_a_typed_schema_fits_the_general_one() {
    let general = document();
    for schema in BOTH {
        let doc = typed(schema);
        let mut instances = Instances::of(&doc, 7);
        let mut seen = 0;
        for (name, _) in members(&doc["components"], "schemas") {
            let known = general["components"]["schemas"].get(name).map(|_| name.as_str());
            let of_table = || KINDS.iter().find(|(suffix, _)| name.ends_with(suffix)).map(|(_, of)| *of);
            let wanted = match (known, name.as_str()) {
                (_, "AddedRows" | "UpdatedRows") => "GivenRows",
                (Some(name), _) => name,
                (None, _) => of_table().unwrap_or_else(|| panic!("{name}: of what kind?")),
            };
            let (of_typed, of_general) =
                (validator(&doc, &component(name)), validator(&general, &component(wanted)));
            for _ in 0..50 {
                let instance = instances.make(&component(name));
                let result =
                    |faults: Vec<String>| format!("{schema}, {name}: {instance}: {}", faults.join("\n"));
                assert!(
                    of_typed.is_valid(&instance),
                    "{}",
                    result(faults(&doc, &component(name), &instance))
                );
                assert!(
                    of_general.is_valid(&instance),
                    "{}",
                    result(faults(&general, &component(wanted), &instance))
                );
                seen += 1;
            }
        }
        assert!(seen > 1_000, "{seen}");
    }
}

/// The one spelling of a set that a typed document has: no `{}` for none, deletions as objects.
fn typed_request(body: &mut Value, keys: &BTreeMap<String, String>) {
    for set in ["add", "update", "delete", "get"] {
        let Some(tables) = body.get_mut(set).and_then(Value::as_object_mut) else { continue };
        tables.retain(|_, rows| rows.is_array());
        if set == "delete" {
            for (table, rows) in tables {
                for row in rows.as_array_mut().unwrap().iter_mut().filter(|row| row.is_string()) {
                    *row = json!({ keys[table].clone(): row.take() });
                }
            }
        }
    }
}

fn keys_of(schema: &str) -> BTreeMap<String, String> {
    let schema = rollcall::schema::Schema::parse(&std::fs::read_to_string(schema).unwrap()).unwrap();
    schema.tables().iter().map(|table| (table.name.clone(), table.key.clone())).collect()
}

/// Goal: the typed contract holds all that the wedding planner sends and gets. Method: its bodies and the
/// examples of the general document, which are its own.
#[test]
fn the_wedding_planners_bodies_fit_its_contract() {
    let (general, doc, keys) = (document(), typed(WEDDING), keys_of(WEDDING));
    let read = |name: &str| -> Value {
        serde_json::from_slice(&std::fs::read(format!("fixtures/wedding/{name}.json")).unwrap()).unwrap()
    };
    let bodies = [("Manifest", read("fetch")), ("Batch", read("rows")), ("Batch", read("synchronise"))];
    for (of, mut body) in bodies {
        assert_eq!(faults(&general, &component(of), &body), [""; 0], "{of}");
        typed_request(&mut body, &keys);
        assert_eq!(faults(&doc, &component(of), &body), [""; 0], "{of}");
    }
    let mut checked = 0;
    for (result, made) in exemplified(&general).into_iter().zip(exemplified(&doc)) {
        assert_eq!(result.place, made.place);
        for (name, example) in result.examples {
            let mut example = example.clone();
            if result.place == "POST /synchronise, application/json" {
                typed_request(&mut example, &keys);
            }
            let faults = faults(&doc, made.schema, &example);
            let spelling = result.place.starts_with("POST /synchronise.json, application");
            assert!(faults.is_empty() || spelling, "{}, {name}: {}", result.place, faults.join("\n"));
            checked += 1;
        }
    }
    assert!(checked > 100, "{checked}");
}

#[test]
fn a_typed_schema_refuses_what_the_tables_do_not_have() {
    let doc = typed(WEDDING);
    let key = "f426f326-1cfe-4669-9e74-3c063fba542a";
    let refused = [
        json!({ "add": { "gifts": [] } }),
        json!({ "add": { "todo": [{ "title": "no key" }] } }),
        json!({ "add": { "todo": [{ "id": key, "price": 1 }] } }),
        json!({ "add": { "todo": [{ "id": key, "done": "yes" }] } }),
        json!({ "add": { "todo": [{ "id": key, "due": "tomorrow" }] } }),
        json!({ "add": { "todo": [{ "id": key, "title": "x".repeat(201) }] } }),
        json!({ "add": { "budget": [{ "bid": key }] } }),
        json!({ "update": { "budget": [{ "bid": key, "cost": null }] } }),
        json!({ "update": { "budget": [{ "bid": key, "cost": 1.5 }] } }),
        json!({ "delete": { "budget": [{ "id": key }] } }),
        json!({ "get": { "gifts": [key] } }),
    ];
    for body in refused {
        assert_ne!(faults(&doc, &component("Batch"), &body), [""; 0], "{body}");
    }
    let manifest = json!({ "todo": [{ "id": key, "last_update": "2013-05-01T15:42:50.343Z" }] });
    assert_ne!(
        faults(&doc, &component("Manifest"), &manifest),
        [""; 0],
        "the spelling of times is the schema's"
    );
}

#[test]
fn a_typed_document_tells_of_its_tables_alone() {
    let doc = typed(ODD);
    let text = doc.to_string().to_lowercase();
    for word in [
        "wedding",
        "budget",
        "invitation_categories",
        "party_size",
        "wishlist",
        "gift",
        "todo",
        "document holds for every schema",
    ] {
        assert!(!text.contains(word), "{word}");
    }
    assert_eq!(doc.to_string(), typed(ODD).to_string(), "the same each time");
    let names: BTreeSet<_> = members(&doc["components"], "schemas")
        .map(|(name, _)| name.replace('_', "").to_lowercase())
        .collect();
    assert_eq!(names.len(), members(&doc["components"], "schemas").count());
    let is_plain =
        |name: &str| name.starts_with(char::is_uppercase) && name.chars().all(char::is_alphanumeric);
    assert!(members(&doc["components"], "schemas").all(|(name, _)| is_plain(name)));
}

/// Goal: what the server says fits its typed contract. Method: the examples sent to it, and its other answers.
#[tokio::test]
async fn the_server_answers_as_its_typed_contract_says() {
    for path in BOTH {
        let doc = typed(path);
        let server = Server::of(&std::fs::read_to_string(path).unwrap(), |_| {});
        let phone = server.device("anna", "phone");
        let check = |ask: Ask, schema: &'static str| {
            let doc = &doc;
            async move {
                let answer = ask.send().await;
                assert_eq!(answer.status, 200, "{path}: {}", answer.json());
                assert_eq!(faults(doc, &component(schema), &answer.json()), [""; 0], "{}", answer.json());
                answer.json()
            }
        };
        check(server.get("/fetch").of(&phone), "Manifest").await;
        let batches = &doc["components"]["requestBodies"]["Batch"]["content"]["application/json"]["examples"];
        let mut edits = batches["edits"]["value"].clone();
        edits.as_object_mut().unwrap().remove("base");
        let report = check(server.ask("POST", "/synchronise").of(&phone).json(&edits), "Report").await;
        let added = report["add"].as_object().unwrap().values().next().unwrap();
        let known = ["added", "rejected"].map(Value::from);
        assert!(known.contains(&added[0]["verdict"]), "{report}");
        let mut pull = batches["pull"]["value"].clone();
        pull.as_object_mut().unwrap().remove("base");
        check(server.ask("POST", "/synchronise").of(&phone).json(&pull), "Report").await;
        check(server.get("/fetch?lock=false").of(&phone), "Manifest").await;
        check(server.get("/changes").of(&phone), "Changes").await;
        check(server.get("/digests").of(&phone), "OwnerDigests").await;
        check(server.get("/limits"), "Limits").await;
    }
}

#[tokio::test]
async fn the_server_gives_its_typed_contract() {
    let server = Server::of(&std::fs::read_to_string(ODD).unwrap(), |_| {});
    let first = server.get("/openapi.json").send().await;
    assert_eq!(first.status, 200);
    assert_eq!(first.json(), typed(ODD));
    let etag = first.header("etag").unwrap().to_owned();
    let again = server.get("/openapi.json").header("if-none-match", &etag).send().await;
    assert_eq!(again.status, 304);
    assert_eq!(again.header("etag"), Some(etag.as_str()));
    let other = server.get("/openapi.json").header("if-none-match", "W/\"0\"").send().await;
    assert_eq!(other.status, 200);
}

//! `openapi.yaml`, and the checks of responses against it.
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{LazyLock, Mutex};

use http::{HeaderMap, Method};
use jsonschema::Validator;
use rollcall::model::RowKey;
use serde_json::{Map, Value, json};

pub const METHODS: [&str; 8] = ["get", "put", "post", "delete", "options", "head", "patch", "trace"];

pub fn document() -> Value {
    rollcall::contract::general().unwrap()
}

/// `openapi.yaml` as a YAML reader reads it; the program embeds it as JSON.
pub fn written() -> Value {
    serde_saphyr::from_str(rollcall::contract::GENERAL).unwrap()
}

/// The document made for a schema file.
pub fn typed(schema: &str) -> Value {
    let text = std::fs::read_to_string(schema).unwrap();
    let schema = rollcall::schema::Schema::parse(&text).unwrap();
    rollcall::contract::typed(&schema, &rollcall::dialects::Dialect::ALL).unwrap()
}

/// Every operation as (method, path): `("GET", "/fetch")`. Sorted.
pub fn operations(doc: &Value) -> Vec<(String, String)> {
    operation_objects(doc).into_keys().collect()
}

pub fn operation_objects(doc: &Value) -> BTreeMap<(String, String), &Map<String, Value>> {
    let mut found = BTreeMap::new();
    for (path, item) in doc["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            if METHODS.contains(&method.as_str()) {
                found.insert((method.to_uppercase(), path.clone()), operation.as_object().unwrap());
            }
        }
    }
    found
}

/// The node itself, or what its `$ref` leads to.
pub fn follow<'a>(doc: &'a Value, mut node: &'a Value) -> &'a Value {
    while let Some(to) = node.get("$ref") {
        let pointer = to.as_str().unwrap().strip_prefix('#').unwrap_or_else(|| panic!("{to} leads outside"));
        node = doc.pointer(pointer).unwrap_or_else(|| panic!("{to} leads nowhere"));
    }
    node
}

/// The members of an object that may be absent.
pub fn members<'a>(holder: &'a Value, name: &str) -> impl Iterator<Item = (&'a String, &'a Value)> {
    holder.get(name).and_then(Value::as_object).into_iter().flatten()
}

/// The responses of every operation: place, status as the document writes it, response.
pub fn responses(doc: &Value) -> Vec<(String, &str, &Value)> {
    let mut found = Vec::new();
    for ((method, path), operation) in operation_objects(doc) {
        for (status, response) in operation["responses"].as_object().unwrap() {
            found.push((format!("{method} {path}, {status}"), status.as_str(), follow(doc, response)));
        }
    }
    found
}

/// What has a schema and ought to have examples: a body, a parameter or a header.
pub struct Exemplified<'a> {
    pub place: String,
    pub schema: &'a Value,
    pub examples: Vec<(String, &'a Value)>,
}

impl<'a> Exemplified<'a> {
    pub fn new(doc: &'a Value, place: String, holder: &'a Value) -> Self {
        let mut examples = Vec::new();
        if let Some(only) = holder.get("example") {
            examples.push(("example".to_owned(), only));
        }
        for (name, example) in members(holder, "examples") {
            examples.push((name.clone(), &follow(doc, example)["value"]));
        }
        Self { place, schema: &holder["schema"], examples }
    }
}

/// Every body, parameter and header that an operation uses.
pub fn exemplified(doc: &Value) -> Vec<Exemplified<'_>> {
    let mut found = Vec::new();
    for ((method, path), operation) in operation_objects(doc) {
        let shared = doc["paths"][&path].get("parameters").and_then(Value::as_array);
        let own = operation.get("parameters").and_then(Value::as_array);
        for parameter in shared.into_iter().chain(own).flatten() {
            let parameter = follow(doc, parameter);
            found.push(Exemplified::new(doc, format!("{method} {path}, {}", parameter["name"]), parameter));
        }
        if let Some(body) = operation.get("requestBody") {
            for (kind, media) in members(follow(doc, body), "content") {
                found.push(Exemplified::new(doc, format!("{method} {path}, {kind}"), media));
            }
        }
    }
    for (place, _, response) in responses(doc) {
        for (name, header) in members(response, "headers") {
            found.push(Exemplified::new(doc, format!("{place}, {name}"), follow(doc, header)));
        }
        for (kind, media) in members(response, "content") {
            found.push(Exemplified::new(doc, format!("{place}, {kind}"), media));
        }
    }
    found
}

/// A schema of OpenAPI 3.0 as JSON Schema draft 4. They differ only in `nullable` and in keywords that
/// validate nothing.
///
/// An object that lists its members and does not state whether others are allowed gets no others: clients
/// must accept new ones, but in an example such a member is a misspelling.
pub fn json_schema(schema: &Value) -> Value {
    let members = match schema {
        Value::Object(members) => members,
        Value::Array(schemas) => return schemas.iter().map(json_schema).collect(),
        other => return other.clone(),
    };
    let mut converted = Map::new();
    for (name, value) in members {
        let value = match (name.as_str(), value) {
            ("example" | "nullable" | "description", _) => continue,
            ("properties", Value::Object(named)) => {
                named.iter().map(|(name, schema)| (name.clone(), json_schema(schema))).collect()
            }
            ("enum" | "required" | "default", value) => value.clone(),
            (_, value) => json_schema(value),
        };
        converted.insert(name.clone(), value);
    }
    if members.get("nullable") == Some(&Value::Bool(true)) {
        converted.insert("type".into(), json!([members["type"], "null"]));
    }
    if members.contains_key("properties") && !members.contains_key("additionalProperties") {
        converted.insert("additionalProperties".into(), Value::Bool(false));
    }
    Value::Object(converted)
}

pub fn validator(doc: &Value, schema: &Value) -> Validator {
    let named: Map<_, _> = members(&doc["components"], "schemas")
        .map(|(name, schema)| (name.clone(), json_schema(schema)))
        .collect();
    let whole = json!({ "allOf": [json_schema(schema)], "components": { "schemas": named } });
    jsonschema::draft4::options()
        .should_validate_formats(true)
        .with_format("uuid", |text: &str| RowKey::parse(text).is_some())
        .build(&whole)
        .unwrap()
}

/// The codes in lines such as `code: busy, timeout` and `- code: busy, because`.
pub fn codes_in_prose(description: &str) -> BTreeSet<&str> {
    let mut found = BTreeSet::new();
    for line in description.lines() {
        if let Some(codes) = line.strip_prefix("code: ") {
            found.extend(codes.split(", "));
        } else if let Some(item) = line.strip_prefix("- code: ") {
            found.extend(item.split(',').next());
        }
    }
    found
}

static DOCUMENT: LazyLock<Value> = LazyLock::new(document);

/// The validator of each promised response body.
static VALIDATORS: LazyLock<Mutex<HashMap<String, &'static Validator>>> = LazyLock::new(Mutex::default);

/// Set by the layers around the routes and not by the routes.
const LAYERS: [&str; 1] = ["x-request-id"];

/// The document's spelling of a path, if it has the path.
fn template(path: &str) -> Option<&'static String> {
    let fits = |template: &str| {
        let (asked, known): (Vec<_>, Vec<_>) = (path.split('/').collect(), template.split('/').collect());
        asked.len() == known.len()
            && asked.iter().zip(known).all(|(asked, known)| known.starts_with('{') || *asked == known)
    };
    DOCUMENT["paths"].as_object().unwrap().keys().find(|template| fits(template))
}

/// Fails unless the document describes such a response to such a request: status, code, headers and body.
pub fn check_answer(method: &Method, path: &str, status: u16, headers: &HeaderMap, body: &[u8]) {
    let path = path.split('?').next().unwrap();
    let place = format!("{method} {path}, {status}");
    let item = template(path).map(|template| &DOCUMENT["paths"][template]);
    // `HEAD` is handled like `GET`; without the layers the body is still present.
    let method = if *method == Method::HEAD { &Method::GET } else { method };
    let operation = item.and_then(|item| item.get(method.as_str().to_lowercase()));
    let response = match (item, operation) {
        (_, Some(operation)) => operation["responses"]
            .get(status.to_string())
            .unwrap_or_else(|| panic!("{place}: not in the document: {}", String::from_utf8_lossy(body))),
        (Some(_), None) => {
            assert_eq!(status, 405, "{place}: the document has no such method");
            &DOCUMENT["components"]["responses"]["MethodNotAllowed"]
        }
        (None, None) => {
            assert_eq!(status, 404, "{place}: the document has no such path");
            &DOCUMENT["components"]["responses"]["NoSuchPath"]
        }
    };
    let response = follow(&DOCUMENT, response);
    check_headers(&place, response, headers);

    let result =
        |(kind, _): &(&String, _)| headers.get("content-type").is_some_and(|result| result == kind.as_str());
    let offered = || members(response, "content");
    let Some((kind, media)) = offered().find(result).or_else(|| offered().next()) else {
        assert!(body.is_empty(), "{place}: the document promises no body");
        return;
    };
    assert_eq!(headers["content-type"], kind.as_str(), "{place}");
    if !kind.ends_with("json") || kind.ends_with("ndjson") {
        return; // text, or many lines
    }
    let result: Value = serde_json::from_slice(body)
        .unwrap_or_else(|error| panic!("{place}: {error}: {}", String::from_utf8_lossy(body)));
    let key = media["schema"].to_string();
    let validator = *VALIDATORS
        .lock()
        .unwrap()
        .entry(key)
        .or_insert_with(|| Box::leak(Box::new(validator(&DOCUMENT, &media["schema"]))));
    let faults: Vec<_> =
        validator.iter_errors(&result).map(|error| format!("{error} at {}", error.instance_path())).collect();
    assert!(faults.is_empty(), "{place}: {}\n{result}", faults.join("\n"));
    if kind == "application/problem+json" {
        let codes = codes_in_prose(response["description"].as_str().unwrap());
        let code = result["code"].as_str().unwrap();
        assert!(codes.contains(code), "{place}: {code} is not among {codes:?}");
        assert_eq!(result["status"], status, "{place}");
    }
}

fn check_headers(place: &str, response: &Value, headers: &HeaderMap) {
    let mut promised =
        BTreeSet::from(["content-type", "content-length", "connection"].map(ToOwned::to_owned));
    for (name, header) in members(response, "headers") {
        let header = follow(&DOCUMENT, header);
        let name = name.to_lowercase();
        let Some(value) = headers.get(&name) else {
            let required = header["required"] == Value::Bool(true);
            assert!(!required || LAYERS.contains(&name.as_str()), "{place}: {name} is missing");
            continue;
        };
        let text = value.to_str().unwrap();
        let schema = follow(&DOCUMENT, &header["schema"]);
        let value =
            if schema["type"] == "integer" { json!(text.parse::<u64>().unwrap()) } else { json!(text) };
        assert!(validator(&DOCUMENT, schema).is_valid(&value), "{place}: {name}: {text}");
        promised.insert(name);
    }
    for name in headers.keys() {
        assert!(promised.contains(name.as_str()), "{place}: {name} is not in the document");
    }
}

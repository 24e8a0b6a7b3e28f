//! The contract of one schema: `openapi.yaml` with the declared tables in place of its open maps.
//!
//! Only the general document is written by hand. The document for an app's generator is derived from it: each
//! schema that stands for every table is replaced by one that names the tables, and the rest stays. So the
//! two cannot diverge, and `tests/server/typed_contract.rs` checks that whatever is valid for the typed
//! document is valid for the general one.
//!
//! The shapes are those that every tested generator supports and that work at run time: named properties, no
//! `oneOf`, no `default`, only `$ref` and plain types.

mod column;
mod examples;
mod names;
mod tables;

use std::collections::HashSet;

use serde_json::{Map, Value as Json, json};

use crate::dialects::Dialect;
use crate::model::Precision;
use crate::schema::Schema;

/// The general document, for every schema, unchanged.
pub const GENERAL: &str = include_str!("../../openapi.yaml");

/// The beginning of the paragraph about the general document.
const GENERAL_ONLY: &str = "This document holds for every schema";

/// The general document. Parsing it takes some milliseconds, so the result should be kept.
///
/// - Errors: none occur: `build.rs` has made the text from [`GENERAL`].
pub fn general() -> serde_json::Result<Json> {
    serde_json::from_str(include_str!(concat!(env!("OUT_DIR"), "/openapi.json")))
}

/// The contract of the declared tables, as OpenAPI 3.0.3. The same schema gives the same text.
///
/// - Shape: of the dialects it has only those of `dialects`, so that a generated client has nothing of the others.
/// - Errors: as [`general`].
pub fn typed(schema: &Schema, dialects: &[Dialect]) -> serde_json::Result<Json> {
    let mut document = general()?;
    Dialect::ALL
        .iter()
        .filter(|one| !dialects.contains(one))
        .for_each(|one| drop_tag(&mut document, one.tag()));
    let names = names::of_types(schema, &document);
    introduce(&mut document, schema);
    let schemas = &mut document["components"]["schemas"];
    tables::refine(schemas, schema, &names);
    times(schemas, schema.precision);
    requests(schemas);
    parameters(&mut document["components"]["parameters"], schema);
    examples::replace(&mut document, schema);
    while drop_unused(&mut document) {}
    Ok(document)
}

/// Drops a tag and its operations.
fn drop_tag(document: &mut Json, tag: &str) {
    let has_tag =
        |operation: &Json| operation["tags"].as_array().is_some_and(|tags| tags.iter().any(|one| one == tag));
    if let Some(paths) = document["paths"].as_object_mut() {
        for path in paths.values_mut().filter_map(Json::as_object_mut) {
            path.retain(|_, operation| !has_tag(operation));
        }
        // What is left of a path without operations is what they had in common.
        paths.retain(|_, path| {
            path.as_object().is_some_and(|path| path.keys().any(|name| name != "parameters"))
        });
    }
    if let Some(tags) = document["tags"].as_array_mut() {
        tags.retain(|one| one["name"] != tag);
    }
}

/// Describes for which tables the document is valid.
fn introduce(document: &mut Json, schema: &Schema) {
    let names: Vec<_> = schema.tables().iter().map(|table| format!("`{}`", table.name)).collect();
    let introduction = format!(
        "This document is made for one schema, with the tables {}. A column that is added to the schema is in \
         responses at once. A generated client ignores it until the client is generated again.\n\n\
         **Integers** beyond ±2^53 are sent as strings of digits, which the types here do not have. Keep such \
         numbers in a `decimal` or `text` column.",
        names.join(", ")
    );
    let info = &mut document["info"]["description"];
    let paragraphs = info.as_str().unwrap_or_default().split("\n\n");
    let kept: Vec<_> = paragraphs
        .map(|text| if text.starts_with(GENERAL_ONLY) { introduction.as_str() } else { text })
        .collect();
    *info = kept.join("\n\n").into();
}

/// The format of times in rows: the one of this schema.
fn times(schemas: &mut Json, precision: Precision) {
    let (returned, given, description) = match precision {
        // This format has no name, so it is described as a string.
        Precision::Seconds => (
            r"^\d{4}-\d{2}-\d{2} \d{2}:\d{2}:\d{2}$",
            None,
            "A time as a device sends it: `YYYY-MM-DD HH:MM:SS`, UTC, or RFC 3339 with any offset; finer parts are \
             cut off.",
        ),
        Precision::Milliseconds => (
            r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}\.\d{3}Z$",
            Some(r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d+)?(Z|[+-]\d{2}:\d{2})$"),
            "A time as a device sends it: RFC 3339 with any offset. Finer parts than ms are cut off.",
        ),
    };
    schemas["RowTime"]["pattern"] = returned.into();
    schemas["GivenTime"]["description"] = description.into();
    if let Some(given) = given {
        schemas["GivenTime"]["pattern"] = given.into();
        for name in ["RowTime", "GivenTime"] {
            schemas[name]["format"] = "date-time".into();
        }
    }
}

/// The requests of an app, as a generated client types them. The server accepts more: null for an optional
/// member, and 0 for the beginning. Leaving the member out means both. An optional nullable type would make
/// clients write each case twice.
fn requests(schemas: &mut Json) {
    let drop_null =
        |schema: &mut Json| schema.as_object_mut().and_then(|schema| schema.shift_remove("nullable"));
    for name in ["GivenTime", "AddedRows", "UpdatedRows", "Deletions", "AskedKeys"] {
        drop_null(&mut schemas[name]);
    }
    for name in ["Batch", "Login"] {
        for (_, member) in schemas[name]["properties"].as_object_mut().into_iter().flatten() {
            drop_null(member);
        }
    }
    schemas["Batch"]["properties"]["base"]["allOf"] = json!([schema_ref("Version")]);
}

/// Restricts query parameters to the declared names.
fn parameters(parameters: &mut Json, schema: &Schema) {
    parameters["Since"]["schema"] = schema_ref("Version");
    let names: Vec<_> = schema.tables().iter().map(|table| Json::from(table.name.as_str())).collect();
    parameters["Tables"]["schema"]["items"]["enum"] = names.clone().into();
    parameters["ConflictTable"]["schema"]["enum"] = names.into();
}

/// A reference to a schema.
fn schema_ref(name: &str) -> Json {
    json!({ "$ref": format!("#/components/schemas/{name}") })
}

/// Removes components without a reference; returns false once there are none.
fn drop_unused(document: &mut Json) -> bool {
    let mut used = HashSet::new();
    references(document, &mut used);
    let mut dropped = false;
    for (kind, named) in document["components"].as_object_mut().into_iter().flatten() {
        if kind != "securitySchemes"
            && let Some(named) = named.as_object_mut()
        {
            let before = named.len();
            named.retain(|name, _| used.contains(&format!("#/components/{kind}/{name}")));
            dropped |= named.len() < before;
        }
    }
    dropped
}

fn references(node: &Json, found: &mut HashSet<String>) {
    match node {
        Json::Object(members) => {
            if let Some(to) = members.get("$ref").and_then(Json::as_str) {
                found.insert(to.to_owned());
            }
            members.values().for_each(|value| references(value, found));
        }
        Json::Array(items) => items.iter().for_each(|item| references(item, found)),
        _ => {}
    }
}

/// Adds members after the existing ones.
fn extend(object: &mut Json, members: Map<String, Json>) {
    if let Some(object) = object.as_object_mut() {
        object.extend(members);
    }
}

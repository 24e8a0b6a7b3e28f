//! The contract of one schema: `openapi.yaml` with the declared tables in the place of its open maps.
//!
//! There is one document that people write. What an app's generator reads is made from it: each schema that
//! holds for every table gives way to one that names the tables, the rest stays as it is. So the two cannot
//! drift, and `tests/server/typed_contract.rs` holds that whatever fits the typed document fits the general one.
//!
//! The shapes are those that every generator tried here digests and that are right when the code runs:
//! named properties, no `oneOf`, no `default`, nothing but `$ref` and plain types.

mod column;
mod examples;
mod names;
mod tables;

use std::collections::HashSet;

use serde_json::{Map, Value as Json, json};

use crate::model::Precision;
use crate::schema::Schema;

/// The general document, for every schema, as it is written.
pub const GENERAL: &str = include_str!("../../openapi.yaml");

/// How the paragraph begins that speaks of the general document.
const GENERAL_ONLY: &str = "This document holds for every schema";

/// The general document. Some milliseconds of work: ask once.
///
/// - Errors: only if the file that this program was built with is no YAML.
pub fn general() -> Result<Json, serde_saphyr::Error> {
    serde_saphyr::from_str(GENERAL)
}

/// The contract of the declared tables, as OpenAPI 3.0.3. The same schema gives the same text.
///
/// - Errors: as [`general`].
pub fn typed(schema: &Schema) -> Result<Json, serde_saphyr::Error> {
    let mut document = general()?;
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

/// Says for which tables the document is.
fn introduce(document: &mut Json, schema: &Schema) {
    let names: Vec<_> = schema.tables().iter().map(|table| format!("`{}`", table.name)).collect();
    let told = format!(
        "This document is made for one schema, with the tables {}. A column that is added to the schema comes \
         in answers at once: a generated client goes on without it, and has it once it is made again.\n\n\
         **Integers** beyond ±2^53 travel as strings of digits, which the types here have not. Keep such numbers \
         in a `decimal` or `text` column.",
        names.join(", ")
    );
    let info = &mut document["info"]["description"];
    let paragraphs = info.as_str().unwrap_or_default().split("\n\n");
    let kept: Vec<_> =
        paragraphs.map(|text| if text.starts_with(GENERAL_ONLY) { told.as_str() } else { text }).collect();
    *info = kept.join("\n\n").into();
}

/// The spelling of times in rows: of the two, the one that this schema has.
fn times(schemas: &mut Json, precision: Precision) {
    let (told, given, spelling) = match precision {
        // No format has this spelling: it is a string, and says so.
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
    schemas["RowTime"]["pattern"] = told.into();
    schemas["GivenTime"]["description"] = spelling.into();
    if let Some(given) = given {
        schemas["GivenTime"]["pattern"] = given.into();
        for name in ["RowTime", "GivenTime"] {
            schemas[name]["format"] = "date-time".into();
        }
    }
}

/// What an app sends, as a generated client types it. The server takes more: null for a member that may be left out,
/// and 0 for the beginning. Leaving out says both; a type of nothing or a value, inside a member that may be left out,
/// makes clients spell nothing twice.
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

/// What a query may name, by its names.
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

/// Drops the components that nothing refers to any more; false once there are none.
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

/// Puts members after those that are there.
fn extend(object: &mut Json, members: Map<String, Json>) {
    if let Some(object) = object.as_object_mut() {
        object.extend(members);
    }
}

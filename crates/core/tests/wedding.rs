//! The wedding planner's fixtures agree with each other, and with the schema that they are for.
#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods)]

use rollcall_core::model::{RowKey, Timestamp, Value};
use rollcall_core::schema::{Schema, ValueSeed};
use serde::de::DeserializeSeed;
use serde_json::Value as Json;

fn file(name: &str) -> String {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/wedding");
    std::fs::read_to_string(format!("{folder}/{name}")).unwrap()
}

fn json(name: &str) -> Json {
    serde_json::from_str(&file(name)).unwrap()
}

fn schema() -> Schema {
    Schema::parse(&file("schema.toml")).unwrap_or_else(|error| panic!("{error}"))
}

/// Goal: the tables come as the post lists them. Method: by place in the text, since maps have no order.
#[test]
fn the_tables_are_those_of_the_posts_fetch_body_in_its_order() {
    let schema = schema();
    let fetch = file("fetch.json");
    let mut places: Vec<_> = json("fetch.json")
        .as_object()
        .unwrap()
        .keys()
        .map(|name| (fetch.find(&format!("{name:?}:")), name.clone()))
        .collect();
    places.sort();
    let listed: Vec<_> = places.into_iter().map(|(_, name)| name).collect();
    let declared: Vec<_> = schema.tables().iter().map(|table| table.name.clone()).collect();
    assert_eq!(declared, listed);
    for table in schema.tables() {
        let required = table.columns.iter().filter(|column| column.required).count();
        assert_eq!(required > 0, table.name == "budget", "{}", table.name);
    }
}

#[test]
fn rows_hold_every_entry_of_the_fetch_body_with_its_time() {
    let schema = schema();
    let (fetch, rows) = (json("fetch.json"), json("rows.json"));
    let mut entries = 0;
    for table in schema.tables() {
        let listed = fetch[&table.name].as_array().unwrap();
        let added = rows["add"][&table.name].as_array().unwrap();
        assert_eq!(listed.len(), added.len(), "{}", table.name);
        for (entry, row) in listed.iter().zip(added) {
            entries += 1;
            assert_eq!(entry.as_object().unwrap().len(), 2);
            for member in [table.key.as_str(), "last_update"] {
                assert_eq!(entry[member], row[member], "{}", table.name);
            }
            RowKey::parse(entry[&table.key].as_str().unwrap()).unwrap();
            let at = Timestamp::parse(entry["last_update"].as_str().unwrap()).unwrap();
            assert_eq!(at.format(schema.precision).to_string(), entry["last_update"]);
        }
    }
    assert_eq!(entries, 29);
    assert_eq!(rows["add"].as_object().unwrap().len(), 6);
}

/// Goal: every value fits its column, every row is complete. Method: the wire's own reader.
#[test]
fn every_value_is_of_its_columns_type() {
    let schema = schema();
    for (body, sets) in [("rows.json", &["add"][..]), ("synchronise.json", &["add", "update"])] {
        let json = json(body);
        for set in sets {
            for (name, rows) in json[set].as_object().unwrap() {
                let Some(rows) = rows.as_array() else {
                    assert_eq!(rows, &serde_json::json!({}), "{body} {name}");
                    continue;
                };
                let table = schema.table(name).unwrap();
                for row in rows {
                    let row = row.as_object().unwrap();
                    let own = [table.key.as_str(), "last_update"];
                    for member in row.keys().filter(|member| !own.contains(&member.as_str())) {
                        assert!(table.column(member).is_some(), "{body}: {name}.{member}");
                    }
                    for column in &table.columns {
                        let sent = row.get(&column.name).cloned().unwrap_or(Json::Null);
                        let seed = ValueSeed { column, precision: schema.precision, json_depth_max: 16 };
                        let value = seed.deserialize(sent).unwrap();
                        assert_eq!(column.over_length(&value), None, "{body}: {name}.{}", column.name);
                        assert!(!column.required || value != Value::Null, "{body}: {name}.{}", column.name);
                    }
                }
            }
        }
    }
}

#[test]
fn invitations_name_categories_that_are_there() {
    let rows = json("rows.json");
    let categories: Vec<_> = rows["add"]["invitation_categories"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| row["icid"].clone())
        .collect();
    for row in rows["add"]["invitations"].as_array().unwrap() {
        assert!(row["icid"].is_null() || categories.contains(&row["icid"]), "{row}");
    }
}

/// The traps that the post's own body sets, so that nobody tidies them away.
#[test]
fn the_synchronise_body_is_as_the_post_has_it() {
    let body = json("synchronise.json");
    let members: Vec<_> = body.as_object().unwrap().keys().cloned().collect();
    assert_eq!(members, ["add", "update", "delete", "get"]);
    assert_eq!(body["add"]["gifts"], serde_json::json!({}), "an empty set of a table that is not declared");
    assert_eq!(body["add"]["budget"][1], body["update"]["budget"][2], "a row both added and updated");
    let deleted = body["delete"]["budget"].as_array().unwrap();
    assert_eq!((deleted.len(), &deleted[0]), (5, &deleted[4]), "a key deleted more than once");
}

//! The schemas of rows and of sets of rows, by table.

use serde_json::{Map, Value as Json, json};

use super::column::{By, schema_of};
use super::{extend, schema_ref};
use crate::model::Role;
use crate::schema::{Column, Schema, Table};

/// The tables, and the first half of the names of their types.
struct Tables<'a> {
    declared: &'a Schema,
    names: &'a [String],
}

/// Replaces the schemas that stand for every table by those of the declared tables.
///
/// Lists of rows of any table (`/conflicts`) stay unchanged, since they would need a `oneOf`. Responses stay
/// open to new columns and tables; requests are closed, because the server refuses unknown members.
pub(super) fn refine(schemas: &mut Json, declared: &Schema, names: &[String]) {
    let tables = Tables { declared, names };
    let general = schemas.clone();
    for (table, name) in declared.tables().iter().zip(names) {
        extend(schemas, tables.types(table, name, &general));
    }
    let refs = |suffix: &'static str| move |name: &str| schema_ref(&format!("{name}{suffix}"));
    let keys = |_: &str| schema_ref("RowKey");

    tables.list(&mut schemas["Manifest"], refs("Entry"));
    tables.list(&mut schemas["Decisions"], refs("Verdict"));
    tables.list(&mut schemas["ChangedRows"], refs("Row"));
    tables.list(&mut schemas["Report"]["properties"]["get"], refs("Row"));
    tables.list(&mut schemas["Report"]["properties"]["missing"], keys);
    tables.list(&mut schemas["Report"]["properties"]["rejected"], |_| schema_ref("RejectedKey"));
    tables.list(&mut schemas["Changes"]["properties"]["delete"], keys);
    tables.list(&mut schemas["Deletions"], refs("Deletion"));
    tables.list(&mut schemas["AskedKeys"], keys);
    // New rows and partial rows have different types, so the one set of both becomes two.
    for (operation, set, suffix) in [("add", "AddedRows", "New"), ("update", "UpdatedRows", "Patch")] {
        let mut rows = general["GivenRows"].clone();
        tables.list(&mut rows, refs(suffix));
        schemas[set] = rows;
        schemas["Batch"]["properties"][operation]["allOf"] = json!([schema_ref(set)]);
    }
    for (set, what) in [
        ("AddedRows", "Whole new rows by table. A table without any is absent or empty."),
        ("UpdatedRows", "Rows by table, whole or in part. A table without any is absent or empty."),
        ("Deletions", "Rows to delete, by table. A table without any is absent or empty."),
        ("AskedKeys", "Keys of the rows to send back, by table. A table without any is absent or empty."),
    ] {
        schemas[set]["description"] = what.into();
        schemas[set]["additionalProperties"] = false.into();
    }
    let every = declared.tables().iter().map(|table| Json::from(table.name.as_str())).collect();
    tables.each(&mut schemas["TableDigests"], |_| schema_ref("TableDigest"));
    schemas["TableDigests"]["required"] = Json::Array(every);
}

impl Tables<'_> {
    /// Turns an open map into an object that names the tables.
    fn each(&self, map: &mut Json, value: impl Fn(&str) -> Json) {
        let tables = self.declared.tables().iter().zip(self.names);
        let named: Map<_, _> = tables.map(|(table, name)| (table.name.clone(), value(name))).collect();
        let Some(members) = map.as_object_mut() else { return };
        members.shift_remove("additionalProperties");
        members.insert("properties".into(), named.into());
    }

    fn list(&self, map: &mut Json, item: impl Fn(&str) -> Json) {
        self.each(map, |name| json!({ "type": "array", "items": item(name) }));
    }

    /// The types of one table.
    fn types(&self, table: &Table, name: &str, general: &Json) -> Map<String, Json> {
        let said = |what: &str| format!("{what} `{}`.", table.name);
        let key = [(table.key.clone(), schema_ref("RowKey"))];
        let columns = |by| {
            let typed = |column: &Column| (column.name.clone(), schema_of(column, by, self.declared));
            table.columns.iter().map(typed).collect::<Vec<_>>()
        };
        let names = |columns: &mut dyn Iterator<Item = &Column>| {
            let mut names = vec![Json::from(table.key.as_str())];
            names.extend(columns.map(|column| Json::from(column.name.as_str())));
            names
        };
        let every = names(&mut table.columns.iter());
        let needed =
            names(&mut table.columns.iter().filter(|column| column.required && column.default.is_none()));
        let only_key = names(&mut std::iter::empty());
        let mut types = Map::new();
        let mut add = |suffix: &str, from: &str, what: String, required: &[Json], columns: Vec<_>, by| {
            let members = key.iter().cloned().chain(columns);
            let mut schema = closed(&general[from], what, required, members, by);
            if suffix == "Verdict" {
                schema["properties"]["row"]["allOf"] = json!([schema_ref(&format!("{name}Row"))]);
            }
            types.insert(format!("{name}{suffix}"), schema);
        };
        add(
            "Entry",
            "ManifestEntry",
            said("The key and the time of a row of"),
            &only_key,
            vec![],
            By::Server,
        );
        let row = said("A whole row of") + readers(table);
        add("Row", "Row", row, &every, columns(By::Server), By::Server);
        let new = said("A new row of") + " Columns left out get their default, or null." + writers(table);
        add("New", "GivenRow", new, &needed, columns(By::App), By::App);
        let patch = said("An edit of a row of") + " Columns left out stay as they are." + writers(table);
        add("Patch", "GivenRow", patch, &only_key, columns(By::App), By::App);
        let deletion = said("A row to delete of") + " The key, and when the row was deleted.";
        add("Deletion", "DatedDeletion", deletion, &only_key, vec![], By::App);
        let verdict = said("What became of one row that the device sent for");
        add("Verdict", "Decision", verdict, &only_key, vec![], By::Server);
        types
    }
}

/// Which members read a table, if not all do.
fn readers(table: &Table) -> &'static str {
    match table.read {
        Role::Read => "",
        Role::Write => " For members who may only read, the table is empty.",
        Role::Manage => " For members who do not manage the owner, the table is empty.",
    }
}

/// Which members change a table's rows, if not all who may write do.
fn writers(table: &Table) -> &'static str {
    match table.write {
        Role::Manage => " Only members who manage the owner may send it.",
        _ => "",
    }
}

/// A general schema of rows with a table's own members in place of others: before its own, the key first.
fn closed(
    general: &Json,
    description: String,
    required: &[Json],
    members: impl Iterator<Item = (String, Json)>,
    by: By,
) -> Json {
    let mut properties: Map<String, Json> = members.collect();
    properties.extend(general["properties"].as_object().cloned().unwrap_or_default());
    let mut needed = required.to_vec();
    needed.extend(general["required"].as_array().cloned().unwrap_or_default());
    let mut schema = json!({
        "type": "object",
        "description": description,
        "required": needed,
        "properties": properties,
    });
    if by == By::App {
        schema["additionalProperties"] = false.into();
    }
    schema
}

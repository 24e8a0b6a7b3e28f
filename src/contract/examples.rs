//! Generates examples for the declared tables, in place of those of the wedding planner. They are always the
//! same.

use serde_json::{Map, Value as Json, json};

use super::column::{example, time};
use crate::model::Precision;
use crate::schema::{Schema, Table};

const DEVICES: [&str; 2] = ["0190163d-8694-739b-aea5-966c26f8ad90", "01901640-15d1-7b45-8a5b-1d2a3c4e5f60"];
const CONFLICT: &str = "5d8e1f72-6c4b-5a9d-8e3f-1b2c3d4e5f60";
const NOW: &str = "2013-05-02T10:31:02.118Z";
const EDITED: (u8, u8) = (17, 20);
const DELETED: (u8, u8) = (18, 5);

/// Replaces the examples of the general document.
pub(super) fn replace(document: &mut Json, schema: &Schema) {
    let Some(table) = schema.tables().first() else { return };
    let made = Examples { schema, table };
    let paths = &mut document["paths"];
    let json_of = |path: &str| format!("/{path}/get/responses/200/content/application~1json/example");
    if let Some(digests) = paths.pointer_mut(&json_of("~1digests")) {
        *digests = made.owner_digests();
    }
    if let Some(limits) = paths.pointer_mut(&json_of("~1limits")) {
        limits["time_precision"] = match schema.precision {
            Precision::Seconds => "seconds".into(),
            Precision::Milliseconds => "milliseconds".into(),
        };
    }
    let components = &mut document["components"];
    let some: Vec<_> = schema.tables().iter().take(2).map(|table| table.name.as_str()).collect();
    components["parameters"]["Tables"]["example"] = json!(some);
    components["parameters"]["ConflictTable"]["example"] = table.name.as_str().into();
    components["parameters"]["ConflictKey"]["example"] = made.key(0).into();
    components["parameters"]["WhyTable"]["example"] = table.name.as_str().into();
    components["parameters"]["WhyKey"]["example"] = made.key(0).into();
    components["headers"]["Link"]["example"] =
        format!("</fetch?tables={}&page=AwAAAAAAAAAB>; rel=\"next\"", some.join(",")).into();

    let batch = &mut components["requestBodies"]["Batch"];
    put(
        batch,
        &[
            ("edits", "Edits made offline, and a row to have", made.batch_edits()),
            ("pull", "A whole sync in one request", made.batch_pull()),
            ("nothing", "Nothing to say", json!({})),
        ],
    );
    let responses = &mut components["responses"];
    put(&mut responses["Manifest"], &[("all", "One row of each table", made.manifest())]);
    put(
        &mut responses["Report"],
        &[
            ("edits", "The answer to the edits", made.report_edits()),
            ("rejected", "A row that cannot be taken", made.report_rejected()),
            ("pull", "The answer to the whole sync", made.report_pull()),
        ],
    );
    put(
        &mut responses["Changes"],
        &[
            ("diff", "`?since=3`", made.changes(true)),
            ("first_page", "`?limit=1`, without `since`", made.changes(false)),
        ],
    );
    responses["Changes"]["content"]["application/x-ndjson"]["example"] = made.stream().into();
    put(
        &mut responses["Conflicts"],
        &[
            ("some", "An edit that lost", json!({ "conflicts": [made.conflict()] })),
            ("none", "Nobody has lost anything", json!({ "conflicts": [] })),
        ],
    );
    for name in ["ConsoleOverview", "ConsoleOwner"] {
        let tables = &mut responses[name]["content"]["application/json"]["example"]["tables"];
        if let Some(tables) = tables.as_array_mut() {
            tables.truncate(1);
            tables.iter_mut().for_each(|one| one["table"] = table.name.as_str().into());
        }
    }
    put(&mut responses["Restored"], &[("kept", "The edit that lost is made again", made.restored())]);
    made.problems(&mut components["examples"]);
}

fn put(holder: &mut Json, examples: &[(&str, &str, Json)]) {
    let named = |(name, summary, value): &(&str, &str, Json)| {
        ((*name).to_owned(), json!({ "summary": summary, "value": value }))
    };
    let named: Map<_, _> = examples.iter().map(named).collect();
    holder["content"]["application/json"]["examples"] = named.into();
}

/// Most examples use one table, the first.
struct Examples<'a> {
    schema: &'a Schema,
    table: &'a Table,
}

impl Examples<'_> {
    fn key(&self, row: usize) -> String {
        key(self.table, row)
    }

    fn at(&self, (hour, minute): (u8, u8)) -> String {
        time(self.schema.precision, hour, minute)
    }

    /// An object of the table's key and other members.
    fn keyed(&self, row: usize, others: Json) -> Json {
        let mut members = Map::from_iter([(self.table.key.clone(), self.key(row).into())]);
        if let Json::Object(others) = others {
            members.extend(others);
        }
        Json::Object(members)
    }

    /// An object with the table's name and a list.
    fn of(&self, list: Json) -> Json {
        Json::Object(Map::from_iter([(self.table.name.clone(), list)]))
    }

    fn columns(&self, at_most: usize) -> Json {
        let columns = self.table.columns.iter().take(at_most).map(|column| {
            let referred = || key(column.references.map_or(self.table, |to| self.schema.at(to)), 0);
            (column.name.clone(), example(column, self.schema.precision, referred))
        });
        Json::Object(columns.collect())
    }

    fn row(&self, row: usize) -> Json {
        let mut row = self.keyed(row, self.columns(usize::MAX));
        row["last_update"] = self.at((15, 42)).into();
        row
    }

    fn edit(&self, row: usize) -> Json {
        let mut edit = self.keyed(row, self.columns(1));
        edit["last_update"] = self.at(EDITED).into();
        edit["_base"] = self.at((15, 42)).into();
        edit
    }

    fn batch_edits(&self) -> Json {
        let new = self.keyed(1, self.columns(usize::MAX));
        let deletion = self.keyed(2, json!({ "last_update": self.at(DELETED), "_base": self.at((15, 42)) }));
        json!({
            "base": 3,
            "sent_at": NOW,
            "add": self.of(json!([new])),
            "update": self.of(json!([self.edit(0)])),
            "delete": self.of(json!([deletion])),
            "get": self.of(json!([self.key(3)])),
        })
    }

    fn report_edits(&self) -> Json {
        let kept = json!({
            "verdict": "kept",
            "last_update": self.at((15, 42)),
            "row": self.row(0),
            "conflict": CONFLICT,
        });
        json!({
            "add": self.of(json!([self.keyed(1, json!({ "verdict": "added", "last_update": self.at(EDITED) }))])),
            "update": self.of(json!([self.keyed(0, kept)])),
            "delete": self.of(json!([
                self.keyed(2, json!({ "verdict": "deleted", "last_update": self.at(DELETED) }))
            ])),
            "get": self.of(json!([self.row(3)])),
            "missing": {},
            "version": 4,
            "digests": self.digests(4),
            "clock_offset_ms": 120,
        })
    }

    fn report_rejected(&self) -> Json {
        let error = json!({
            "code": "row_too_large",
            "detail": "the row has more than 262144 bytes",
            "at": format!("/add/{}/0", self.table.name),
        });
        json!({
            "add": self.of(json!([self.keyed(1, json!({ "verdict": "rejected", "error": error }))])),
            "update": {},
            "delete": {},
            "get": {},
            "missing": self.of(json!([self.key(4)])),
            "version": 4,
            "digests": self.digests(4),
        })
    }

    fn batch_pull(&self) -> Json {
        json!({ "base": 3, "pull": true, "update": self.of(json!([self.edit(0)])) })
    }

    fn report_pull(&self) -> Json {
        let updated = json!({ "verdict": "updated", "last_update": self.at(EDITED) });
        let mut changes = self.changes(true);
        if let Some(changes) = changes.as_object_mut() {
            changes.shift_remove("digests");
        }
        json!({
            "add": {},
            "update": self.of(json!([self.keyed(0, updated)])),
            "delete": {},
            "get": {},
            "missing": {},
            "version": 4,
            "changes": changes,
            "digests": self.digests(4),
        })
    }

    fn changes(&self, diff: bool) -> Json {
        if diff {
            json!({
                "type": "diff",
                "version": 4,
                "more": false,
                "add": self.of(json!([self.row(5)])),
                "update": self.of(json!([self.row(3)])),
                "delete": self.of(json!([self.key(2)])),
                "digests": self.digests(4),
            })
        } else {
            json!({
                "type": "full",
                "version": 4,
                "more": true,
                "next": "LSA0IC0gMQ",
                "add": self.of(json!([self.row(0)])),
                "update": {},
                "delete": {},
            })
        }
    }

    /// The same as `changes(true)`, one line for each row.
    fn stream(&self) -> String {
        let table = self.table.name.as_str();
        let lines = [
            json!({ "op": "add", "table": table, "row": self.row(5) }),
            json!({ "op": "update", "table": table, "row": self.row(3) }),
            json!({ "op": "delete", "table": table, "key": self.key(2) }),
            json!({ "op": "end", "type": "diff", "version": 4, "digests": self.digests(4) }),
        ];
        lines.map(|line| format!("{line}\n")).concat()
    }

    fn manifest(&self) -> Json {
        let entry = |table| {
            let made = Examples { schema: self.schema, table };
            (table.name.clone(), json!([made.keyed(0, json!({ "last_update": self.at((15, 42)) }))]))
        };
        Json::Object(self.schema.tables().iter().map(entry).collect())
    }

    fn tables(&self) -> Json {
        let digest = |table: &Table| {
            let root =
                format!("{:016x}", 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(table.id.index() as u64 + 1));
            (table.name.clone(), json!({ "count": 4, "root": root }))
        };
        Json::Object(self.schema.tables().iter().map(digest).collect())
    }

    fn digests(&self, as_of: u64) -> Json {
        json!({ "as_of": as_of, "tables": self.tables() })
    }

    fn owner_digests(&self) -> Json {
        json!({ "seed": "4d7dbbaf8b10d4c720d3842f7fba4092", "as_of": 4, "tables": self.tables() })
    }

    fn conflict(&self) -> Json {
        let whole = self.keyed(0, self.columns(usize::MAX));
        json!({
            "id": CONFLICT,
            "at": NOW,
            "table": self.table.name,
            "key": self.key(0),
            "policy": self.table.policy.name(),
            "outcome": "kept",
            "base": whole,
            "stored": { "row": whole, "last_update": self.at((15, 42)), "device_id": DEVICES[1] },
            "incoming": {
                "row": self.keyed(0, self.columns(1)),
                "last_update": self.at(EDITED),
                "device_id": DEVICES[0],
            },
        })
    }

    fn restored(&self) -> Json {
        let mut conflict = self.conflict();
        conflict["restored_at"] = "2013-05-04T19:20:15.002Z".into();
        let mut row = self.row(0);
        row["last_update"] = self.at(DELETED).into();
        json!({
            "conflict": conflict,
            "verdict": "updated",
            "last_update": self.at(DELETED),
            "row": row,
            "version": 7,
        })
    }

    /// The problems that name a table or a row.
    fn problems(&self, examples: &mut Json) {
        let Table { name, .. } = self.table;
        let tables: Vec<_> = self.schema.tables().iter().map(|table| table.name.as_str()).take(20).collect();
        let there_are = format!("there is no such table; there are {}", tables.join(", "));
        let has_none = format!("{name} has no such column");
        let mass = format!(
            "The request would delete 60 of the 80 rows of {name}. Repeat it with \"confirm_deletes\": 60 if that is meant."
        );
        for (code, at, detail) in [
            ("unknown_table", "/add/no_such_table".to_owned(), Some(there_are)),
            ("unknown_column", format!("/add/{name}/0/no_such_column"), Some(has_none)),
            ("too_many_rows", format!("/add/{name}/5000"), None),
            ("mass_delete", format!("/delete/{name}"), Some(mass)),
        ] {
            let problem = &mut examples[code]["value"];
            problem["at"] = at.into();
            if let Some(detail) = detail {
                problem["detail"] = detail.into();
            }
        }
        examples["batch_rejected"]["value"]["rejections"] = json!([{
            "at": format!("/add/{name}/0"),
            "code": "row_too_large",
            "detail": "the row has more than 262144 bytes",
        }]);
    }
}

fn key(table: &Table, row: usize) -> String {
    format!("0190163e-{:04x}-7000-8000-{row:012x}", table.id.index() + 1)
}

//! Values that a column cannot hold, by the cases of `fixtures/values`: each costs its row, and no other.

use std::collections::{BTreeMap, BTreeSet};

use rollcall::device::{Columns, Http, JsonText, StoreError, SyncMode};
use rollcall::model::RowKey;
use serde_json::{Value as Json, json};
use uuid::Uuid;

use crate::real::Server;
use crate::support::{Phone, columns};

const SAMPLES: &str = include_str!("../../fixtures/values/schema.toml");
const BAD: &str = include_str!("../../fixtures/values/bad.json");

/// How many good rows there are beside the bad ones.
const GOOD: usize = 1_000;

/// The same table as an app has it that checks no value: every column holds any JSON.
const UNCHECKED: &str = r#"
[table.samples]
key = "id"
[table.samples.columns]
text = "json"
short = "json"
needed = "json"
integer = "json"
real = "json"
decimal = "json"
boolean = "json"
uuid = "json"
parent = "json"
timestamp = "json"
date = "json"
json = "json"
blob = "json"
"#;

/// A case of `bad.json` that a string of Rust can hold.
struct Case {
    name: String,
    column: String,
    code: String,
    value: Columns,
}

fn cases() -> Vec<Case> {
    let bad: Json = serde_json::from_str(BAD).unwrap();
    let text = |case: &Json, name: &str| case[name].as_str().unwrap().to_owned();
    let mut cases = Vec::new();
    for case in bad["values"].as_array().unwrap() {
        let (column, json) = (text(case, "column"), text(case, "json"));
        let Ok(value) = serde_json::from_str::<JsonText>(&json) else { continue };
        let value = Columns::from([(column.clone(), value)]);
        cases.push(Case { name: text(case, "name"), column, code: text(case, "code"), value });
    }
    assert!(cases.len() > 100, "{}", cases.len());
    cases
}

/// Puts a thousand good rows, and the bad ones between them. Returns the bad ones that the device took, by key.
fn fill(phone: &mut Phone, cases: &[Case]) -> BTreeMap<RowKey, usize> {
    let mut bad = BTreeMap::new();
    for place in 0..GOOD.max(cases.len()) {
        if place < GOOD {
            phone.add("samples", json!({ "text": format!("good {place}"), "needed": "here" }));
        }
        let Some(case) = cases.get(place) else { continue };
        let key = RowKey(Uuid::now_v7());
        let mut row = columns(json!({ "needed": "here" }));
        row.extend(case.value.clone());
        match phone.store.put("samples", key, &row) {
            Ok(()) => drop(bad.insert(key, place)),
            Err(StoreError::WrongValue { column, .. }) => assert_eq!(column, case.column, "{}", case.name),
            Err(error) => panic!("{}: {error}", case.name),
        }
    }
    bad
}

/// Syncs: every good row is accepted, and each bad one is rejected with its code and stays as it was made. Then
/// the bad rows are corrected and go up as well.
fn assert_rejected_alone(phone: &mut Phone, cases: &[Case], bad: &BTreeMap<RowKey, usize>) {
    let made: Vec<_> = bad.keys().map(|key| phone.store.get("samples", *key).unwrap().unwrap()).collect();
    let report = phone.sync();
    assert_eq!(report.tally.taken, GOOD as u64);
    let rejected: BTreeMap<RowKey, String> =
        report.tally.rejected.into_iter().map(|(_, key, reason)| (key, reason)).collect();
    assert!(rejected.keys().eq(bad.keys()), "{rejected:?}");
    for (row, (key, place)) in made.iter().zip(bad) {
        let Case { name, column, code, .. } = &cases[*place];
        assert!(!rejected[key].is_empty(), "{column}: {name}");
        let fault = &phone.remote.faults[&key.to_string()];
        assert_eq!((&fault["code"], &fault["column"]), (&json!(code), &json!(column)), "{name}");
        let kept = phone.store.get("samples", *key).unwrap().unwrap();
        assert_eq!(kept.contents, row.contents, "{column}: {name}");
    }
    let pending = phone.store.pending().unwrap();
    assert_eq!((pending.rows(), pending.rejected), (bad.len() as u64, bad.len() as u64));

    for (key, place) in bad {
        let column = &cases[*place].column;
        let good = if column == "needed" { json!("mended") } else { Json::Null };
        phone.put("samples", *key, json!({ column: good }));
    }
    let report = phone.sync();
    assert_eq!((report.tally.taken, report.tally.rejected.len()), (bad.len() as u64, 0));
    assert_eq!(phone.store.pending().unwrap().rows(), 0);
}

/// Goal: a bad value never keeps another row back, whatever the column's type. Method: an app that checks
/// nothing puts every case of the fixture among a thousand good rows.
#[test]
fn bad_rows_among_a_thousand_good_ones_cost_themselves() {
    let cases = cases();
    for way in [SyncMode::Cursor, SyncMode::Manifest] {
        let server = Server::declaring(SAMPLES, |_| {});
        let mut phone = Phone::declaring(&server, "phone", way, Box::new(Http::new(&server.url)), UNCHECKED);
        let bad = fill(&mut phone, &cases);
        let columns: BTreeSet<_> = bad.values().map(|place| cases[*place].column.as_str()).collect();
        // What a `json` column cannot hold is no JSON for the device either.
        assert!(bad.len() > 90 && columns.len() == 12, "{} cases of {columns:?} reach the server", bad.len());
        assert_rejected_alone(&mut phone, &cases, &bad);
    }
}

/// Goal: an app that declares its columns learns of a bad value when it writes it. Method: the same cases. The
/// device refuses each at once and writes nothing, except for those that only the server can judge.
#[test]
fn bad_values_of_declared_columns_are_refused_when_they_are_put() {
    let cases = cases();
    let server = Server::declaring(SAMPLES, |_| {});
    let mut phone =
        Phone::declaring(&server, "phone", SyncMode::Cursor, Box::new(Http::new(&server.url)), SAMPLES);
    let bad = fill(&mut phone, &cases);
    assert_eq!(phone.store.list("samples").unwrap().len(), GOOD + bad.len());
    let judged_there = ["too_long", "required_missing", "reference_missing"];
    for place in bad.values() {
        let Case { name, column, code, .. } = &cases[*place];
        assert!(judged_there.contains(&code.as_str()), "{column}: {name} was taken");
    }
    assert!(bad.len() >= 4, "{}", bad.len());
    assert_rejected_alone(&mut phone, &cases, &bad);
}

//! What a device receives about a row, for every order of writes before and after its cursor.

use rollcall_testkit::feed as support;

use std::collections::BTreeMap;
use std::sync::Arc;

use rollcall::changes::{self, Feed, FeedFilter};
use rollcall::model::{DeviceId, Owner, Precision, RowKey, Stored, Timestamp, Value, Version};
use rollcall::reconcile::{
    Context, Decision, Incoming, NetChange, Operation, RowHistory, net_change, settle,
};
use rollcall::schema::{Schema, TableId};
use rollcall::storage::{Storage, StorageError};
use rollcall::synchronise::{self, Batch, Refusal};
use serde::Deserialize;
use support::engine::{Engine, Store};
use support::{NOON_MS, open, terms};
use uuid::Uuid;

const SCHEMA: &str = "[table.rows]\nkey = \"id\"\n[table.rows.columns]\nn = \"integer\"\n";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    title: String,
    before: String,
    after: String,
    #[serde(rename = "told")]
    result: BTreeMap<String, Option<NetChange>>,
}

/// Every case, with its file.
fn cases() -> Vec<(String, Case)> {
    let mut cases = Vec::new();
    for entry in std::fs::read_dir("fixtures/net").unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|kind| kind != "json") {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let read: Vec<Case> =
            serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert!(!read.is_empty(), "{}", path.display());
        cases.extend(read.into_iter().map(|case| (path.display().to_string(), case)));
    }
    assert!(cases.len() > 60, "only {} cases found", cases.len());
    cases
}

/// The same device has the same id in every case.
fn device(name: &str) -> DeviceId {
    DeviceId(Uuid::new_v5(&Uuid::NAMESPACE_OID, name.as_bytes()))
}

fn writes(list: &str) -> impl Iterator<Item = (DeviceId, &str)> {
    list.split(',').filter(|write| !write.trim().is_empty()).map(|write| {
        let (by, operation) = write.trim().split_once(' ').unwrap();
        (device(by), operation)
    })
}

/// A write of one row; `n` differs each time, so that an update changes something.
fn write_of(operation: &str, key: RowKey, n: i64) -> (Operation, Incoming) {
    let operation = match operation {
        "insert" => Operation::Add,
        "update" => Operation::Update,
        "delete" => Operation::Delete,
        other => panic!("no operation {other:?}"),
    };
    let values = if operation == Operation::Delete { vec![] } else { vec![Some(Value::Integer(n))] };
    (operation, Incoming { key, values, last_update: None, claimed_at: None, base: None })
}

/// Whose cursor it is: none for `full`.
fn cursor(who: &str, at: Version) -> Option<Version> {
    (who != "full").then_some(at)
}

/// Goal: the rule is right. Method: the row's life through the pure rules, one version a write.
#[test]
fn every_case_holds_by_the_rule_alone() {
    let schema = Schema::parse(SCHEMA).unwrap();
    let table = &schema.tables()[0];
    let key = RowKey(Uuid::from_u128(7));
    for (file, case) in cases() {
        let mut version = Version::first(0);
        let mut row: Option<Stored> = None;
        let live = |list: &str, row: &mut Option<Stored>, version: &mut Version| {
            for (by, operation) in writes(list) {
                let context = Context {
                    device: by,
                    base: Some(*version),
                    put_back: false,
                    writing: version.next(),
                    now: Timestamp::from_ms(NOON_MS),
                    precision: Precision::Milliseconds,
                    row_bytes_max: 1_000,
                };
                let (operation, incoming) = write_of(operation, key, version.0.cast_signed());
                let settled =
                    settle(table, row.as_ref(), &RowHistory::default(), operation, &incoming, &context);
                let Ok(Decision { write: Some(written), .. }) = settled else {
                    panic!("{}: {} ({file})", case.title, list)
                };
                (*row, *version) = (Some(written), version.next());
            }
        };
        live(&case.before, &mut row, &mut version);
        let at = version;
        live(&case.after, &mut row, &mut version);
        let row = row.unwrap();
        for (who, result) in &case.result {
            let since = cursor(who, at);
            // A feed reads only what changed since the cursor.
            let changed = since.is_none_or(|since| row.version > since);
            let got = if changed { net_change(&row, since, device(who), Version(0)) } else { None };
            assert_eq!(got, *result, "{}: {who} ({file})", case.title);
        }
    }
}

/// Goal: what engines store of a row is enough for the rule. Method: the writes as requests of the devices,
/// every case under a key and an owner of its own; read whole, and again in pages of one row.
#[test]
fn every_case_holds_over_every_engine() {
    for engine in Engine::all() {
        let schema = Arc::new(Schema::parse(SCHEMA).unwrap());
        let store = Store::of(engine);
        let storage = open(&store, &schema);
        let engine = engine.name();
        for (file, case) in cases() {
            let (owner, key) = (Owner(Uuid::now_v7()), RowKey(Uuid::now_v7()));
            let mut version = live(&*storage, &schema, owner, key, &case.before, &case.title);
            let at = version;
            version = version.max(live(&*storage, &schema, owner, key, &case.after, &case.title));
            for (who, result) in &case.result {
                let since = cursor(who, at);
                let got = ask(&*storage, &schema, owner, since, device(who), version);
                let wanted: Vec<_> = result.iter().map(|net| (*net, key)).collect();
                assert_eq!(got, wanted, "{engine}: {}: {who} ({file})", case.title);
            }
        }
    }
}

fn live(
    storage: &dyn Storage,
    schema: &Schema,
    owner: Owner,
    key: RowKey,
    list: &str,
    title: &str,
) -> Version {
    let table = schema.tables()[0].id;
    for (by, operation) in writes(list) {
        let result = storage
            .write(owner, |txn| {
                let base = txn.state().version;
                let (operation, incoming) = write_of(operation, key, base.0.cast_signed());
                let set = vec![(table, vec![incoming])];
                let mut batch = Batch { base: Some(base), ..Batch::default() };
                match operation {
                    Operation::Add => batch.add = set,
                    Operation::Update => batch.update = set,
                    Operation::Delete => batch.delete = set,
                }
                let report = synchronise::run(txn, schema, &batch, &terms(by, Timestamp::from_ms(NOON_MS)))?;
                assert_eq!(report.current, base.next(), "{title}: {operation:?} wrote nothing");
                Ok::<_, Refusal>(report.version)
            })
            .unwrap();
        assert!(result > Version::first(0), "{title}");
    }
    storage.read(owner, |txn| Ok::<_, StorageError>(txn.state().version)).unwrap()
}

/// Reads a whole feed in one page and again row by row: both must return the same.
fn ask(
    storage: &dyn Storage,
    schema: &Schema,
    owner: Owner,
    since: Option<Version>,
    device: DeviceId,
    version: Version,
) -> Vec<(NetChange, RowKey)> {
    let tables: Vec<TableId> = schema.tables().iter().map(|table| table.id).collect();
    let result = |rows_max| {
        let mut result = Vec::new();
        let mut feed =
            storage.read(owner, |txn| Ok::<_, StorageError>(Feed::begin(txn.state(), since).unwrap()));
        while let Ok(next) = feed {
            assert_eq!(next.until, version);
            let (bytes_max, entries_max) = (usize::MAX, usize::MAX);
            let asked = FeedFilter { device, tables: &tables, rows_max, bytes_max, entries_max };
            let goes_on = storage
                .read(owner, |txn| {
                    changes::run(txn, next, &asked, &mut |net, _, key, _| {
                        result.push((net, key));
                        std::ops::ControlFlow::Continue(())
                    })
                })
                .unwrap();
            match goes_on.next {
                Some(goes_on) => feed = Ok(goes_on),
                None => break,
            }
        }
        result
    };
    let whole = result(100);
    assert_eq!(result(1), whole);
    whole
}

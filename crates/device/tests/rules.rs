//! The device's rules, by the cases in `fixtures/device`.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeMap;

use rollcall_core::model::{RowKey, Timestamp, Version};
use rollcall_core::reconcile::{Operation, Verdict};
use rollcall_core::schema::Schema;
use rollcall_device::decide::{
    Contents, CursorEvent, Entry, Epoch, Local, Outcome, Pages, RetryWhen, RowResult, Sent, State, absent,
    apply, apply_verdict, compare, cursor_after, past, retry_when,
};
use rollcall_device::{Columns, Row as DeviceRow};
use serde::Deserialize;
use serde_json::{Map, Value as Json};

#[derive(Deserialize)]
struct Case {
    title: String,
    #[serde(flatten)]
    rule: Rule,
}

#[derive(Deserialize)]
#[serde(tag = "rule", rename_all = "lowercase")]
enum Rule {
    Compare {
        pages: Pages,
        #[serde(default)]
        epoch: Epoch,
        server: BTreeMap<String, i64>,
        device: BTreeMap<String, Row>,
        plan: Plan,
        note: BTreeMap<String, Row>,
    },
    Absent {
        device: Row,
        #[serde(default)]
        epoch: Epoch,
        then: Option<Row>,
        contents: Contents,
    },
    Apply {
        device: Option<Row>,
        entry: EntryCase,
        #[serde(default)]
        epoch: Epoch,
        then: Option<Row>,
        contents: Contents,
    },
    Obey {
        device: Row,
        sent: SentCase,
        told: ResultCase,
        then: Option<Row>,
        contents: Contents,
    },
    Past {
        known: Option<Owner>,
        now: Owner,
        then: Epoch,
    },
    Send {
        columns: Vec<String>,
        device: Row,
        row: Map<String, Json>,
        changed: Vec<String>,
        then: Outgoing,
    },
    Rejected {
        error: Error,
        then: RetryWhen,
    },
    Cursor {
        cursor: Option<u64>,
        heard: CursorCase,
        then: Option<u64>,
    },
}

/// An owner of the server's, as far as a device knows.
#[derive(Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
struct Owner {
    epoch: Option<u64>,
    version: u64,
}

/// A row as it goes up.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Outgoing {
    operation: Operation,
    item: Map<String, Json>,
    put_back: bool,
}

/// Why a row was rejected.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Error {
    code: String,
    retry_after_s: Option<u64>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    state: State,
    last_update: Option<i64>,
    base: Option<i64>,
    edited_at: Option<i64>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Plan {
    add: Vec<String>,
    update: Vec<String>,
    delete: Vec<String>,
    put_back: Vec<String>,
    get: Vec<String>,
    drop: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum EntryCase {
    Row(i64),
    Deleted,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SentCase {
    operation: Operation,
    whole: bool,
    complete: bool,
    edited_since: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ResultCase {
    verdict: Verdict,
    last_update: Option<i64>,
    row: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum CursorCase {
    Page { version: u64, more: bool },
    Pushed { version: u64, complete: bool },
    Expired,
    Compared,
}

impl Row {
    fn local(self) -> Local {
        let at = |ms: Option<i64>| ms.map(Timestamp::from_ms);
        let (last_update, base) = (at(self.last_update), at(self.base));
        Local { state: self.state, last_update, base, edited_at: at(self.edited_at) }
    }
}

fn locals(rows: BTreeMap<String, Row>) -> BTreeMap<String, Local> {
    rows.into_iter().map(|(key, row)| (key, row.local())).collect()
}

fn texts(columns: Map<String, Json>) -> Columns {
    columns.into_iter().map(|(name, value)| (name, value.into())).collect()
}

fn check(rule: Rule, name: &str) {
    let outcome = |then: Option<Row>, contents| Outcome { local: then.map(Row::local), contents };
    match rule {
        Rule::Compare { pages, epoch, server, device, plan, note } => {
            let server = server.into_iter().map(|(key, ms)| (key, Timestamp::from_ms(ms))).collect();
            let got = compare(&server, &locals(device), epoch, pages);
            let lists = [(got.add, plan.add), (got.update, plan.update), (got.delete, plan.delete)];
            for (got, told) in lists.into_iter().chain([
                (got.put_back, plan.put_back),
                (got.get, plan.get),
                (got.drop, plan.drop),
            ]) {
                assert_eq!(got, told, "{name}");
            }
            assert_eq!(got.note.into_iter().collect::<BTreeMap<_, _>>(), locals(note), "{name}");
        }
        Rule::Past { known, now, then } => {
            let of = |owner: Owner| (owner.epoch, Version(owner.version));
            assert_eq!(past(known.map(of), of(now)), then, "{name}");
        }
        Rule::Absent { device, epoch, then, contents } => {
            assert_eq!(absent(&device.local(), epoch), outcome(then, contents), "{name}");
        }
        Rule::Apply { device, entry, epoch, then, contents } => {
            let entry = match entry {
                EntryCase::Row(ms) => Entry::Row(Timestamp::from_ms(ms)),
                EntryCase::Deleted => Entry::Deleted,
            };
            let got = apply(device.map(Row::local).as_ref(), entry, epoch);
            assert_eq!(got, outcome(then, contents), "{name}");
        }
        Rule::Obey { device, sent, told, then, contents } => {
            let SentCase { operation, whole, complete, edited_since } = sent;
            let last_update = told.last_update.map(Timestamp::from_ms);
            let told = RowResult { verdict: told.verdict, last_update, row: told.row };
            let got = apply_verdict(&device.local(), Sent { operation, whole, complete, edited_since }, told);
            assert_eq!(got, outcome(then, contents), "{name}");
        }
        Rule::Send { columns, device, row, changed, then } => {
            let lines = columns.iter().map(|column| format!("{column} = \"json\"\n"));
            let schema = format!(
                "[table.things]\nkey = \"id\"\n[table.things.columns]\n{}",
                lines.collect::<String>()
            );
            let schema = Schema::parse(&schema).unwrap();
            let table = schema.table("things").unwrap();
            let key = RowKey::parse(then.item["id"].as_str().unwrap()).unwrap();
            let mut mine = DeviceRow { local: device.local(), contents: texts(row), ..DeviceRow::new(key) };
            mine.changed = changed.into_iter().map(|column| (column, 1)).collect();
            let (operation, item) = mine.outgoing(table);
            assert_eq!((operation, item), (then.operation, texts(then.item)), "{name}");
            assert_eq!(mine.local.is_put_back(), then.put_back, "{name}");
        }
        Rule::Rejected { error, then } => {
            assert_eq!(retry_when(&error.code, error.retry_after_s), then, "{name}");
        }
        Rule::Cursor { cursor, heard, then } => {
            let heard = match heard {
                CursorCase::Page { version, more } => CursorEvent::Page { version: Version(version), more },
                CursorCase::Pushed { version, complete } => {
                    CursorEvent::Pushed { version: Version(version), complete }
                }
                CursorCase::Expired => CursorEvent::Expired,
                CursorCase::Compared => CursorEvent::Compared,
            };
            assert_eq!(cursor_after(cursor.map(Version), heard), then.map(Version), "{name}");
        }
    }
}

/// Goal: the rules hold for every written case. Method: one file a case, named when it fails.
#[test]
fn every_written_case_is_decided_as_told() {
    let mut cases = 0;
    for entry in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/device")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let text = std::fs::read(&path).unwrap();
        let case: Case =
            serde_json::from_slice(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        check(case.rule, &format!("{} ({})", case.title, path.display()));
        cases += 1;
    }
    assert!(cases >= 25, "only {cases} cases found: a moved folder must not pass");
}

/// Goal: no answer loses an edit that it has not judged. Method: every state against every verdict.
#[test]
fn an_edit_made_since_survives_every_verdict() {
    let verdicts = [
        Verdict::Added,
        Verdict::Updated,
        Verdict::Merged,
        Verdict::Deleted,
        Verdict::Same,
        Verdict::Kept,
        Verdict::Gone,
        Verdict::Absent,
        Verdict::Rejected,
    ];
    let at = Some(Timestamp::from_ms(20));
    for state in [State::Added, State::Edited] {
        for verdict in verdicts {
            for (operation, whole) in [
                (Operation::Add, true),
                (Operation::Update, false),
                (Operation::Update, true),
                (Operation::Delete, true),
            ] {
                for (last_update, row) in [(None, false), (at, false), (at, true)] {
                    let base = at.filter(|_| state == State::Edited);
                    let local = Local { state, last_update: base, base, edited_at: at };
                    let sent = Sent { operation, whole, complete: false, edited_since: true };
                    let outcome = apply_verdict(&local, sent, RowResult { verdict, last_update, row });
                    let case = format!("{state:?} {operation:?} {verdict:?}");
                    assert!(outcome.local.is_some_and(|local| local.is_dirty()), "{case}");
                    assert_ne!(outcome.contents, Contents::Theirs, "{case}");
                }
            }
        }
    }
}

//! What a batch costs: it grows with the batch, not with what the batch merely names. The assertions are
//! about counts of rows and bytes, which are the same on every machine.

use rollcall_testkit::counting;
use rollcall_testkit::feed as support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use counting::{Counting, Counts, tally};
use rollcall::model::{DeviceId, EarlierState, Owner, RowKey, Timestamp, Value, Version};
use rollcall::reconcile::{Incoming, RejectionCode, Resolution, Verdict};
use rollcall::schema::{Schema, TableId};
use rollcall::storage::{Conflict, Storage, WantedConflicts};
use rollcall::synchronise::{self, Batch, ItemResult, Refusal, Report, TableItemResults, Terms};
use support::engine::Store;
use support::{NOON_MS, open, terms};
use uuid::Uuid;

const TABLES: &str = r#"
[table.notes]
key = "id"
policy = "server"
[table.notes.columns]
title = "text"
body = "text"

[table.drafts]
key = "id"
policy = "client"
[table.drafts.columns]
title = "text"
body = "text"

[table.texts]
key = "id"
policy = "merge"
[table.texts.columns]
title = "text"
body = "text"

[table.lists]
key = "id"
policy = "merge"
[table.lists.columns]
items = { type = "json", merge = "union" }

[table.parents]
key = "id"
policy = "newest"
[table.parents.columns]
above = { type = "uuid", references = "parents" }

[table.children]
key = "id"
policy = "newest"
[table.children.columns]
parent = { type = "uuid", references = "parents" }
"#;

/// A row of this size is large.
const BIG: usize = 100_000;

/// One owner's rows in a database of its own.
struct Ground {
    store: Store,
    storage: Arc<dyn Storage>,
    schema: Arc<Schema>,
    owner: Owner,
}

fn device(n: u128) -> DeviceId {
    DeviceId(Uuid::from_u128(n))
}

fn key(n: u128) -> RowKey {
    RowKey(Uuid::from_u128(n + 1_000))
}

fn text(text: &str) -> Option<Value> {
    Some(Value::Text(text.into()))
}

fn named(n: u128) -> Option<Value> {
    Some(Value::Uuid(key(n).0))
}

/// An edit; its time is as good as now.
fn edit(n: u128, values: Vec<Option<Value>>) -> Incoming {
    Incoming { key: key(n), values, last_update: None, claimed_at: None, base: None }
}

/// The same of a device that last saw the first state.
fn stale(batch: Batch) -> Batch {
    Batch { base: Some(Version(2)), ..batch }
}

impl Ground {
    fn new() -> Self {
        let (mut store, schema) = (Store::new(), Arc::new(Schema::parse(TABLES).unwrap()));
        let storage = open(&store, &schema);
        store.look();
        Self { store, storage, schema, owner: Owner(Uuid::now_v7()) }
    }

    fn table(&self, name: &str) -> TableId {
        self.schema.table(name).unwrap().id
    }

    fn terms(&self, by: u128) -> Terms {
        let limits = rollcall::config::Limits::default();
        Terms {
            batch_bytes_max: limits.batch_bytes_max,
            row_bytes_max: limits.row_bytes_max,
            ..terms(device(by), Timestamp::from_ms(NOON_MS))
        }
    }

    fn run_as(&self, terms: &Terms, batch: &Batch) -> (Result<Report, Refusal>, Counts) {
        let mut counts = Counts::default();
        let report = self.storage.write(self.owner, |txn| {
            let mut txn = Counting::new(txn);
            let report = synchronise::run(&mut txn, &self.schema, batch, terms);
            counts = txn.counts;
            report
        });
        (report, counts)
    }

    fn run(&self, by: u128, batch: &Batch) -> (Report, Counts) {
        let (report, counts) = self.run_as(&self.terms(by), batch);
        (report.unwrap(), counts)
    }

    fn add(&self, by: u128, table: &str, rows: Vec<Incoming>) {
        self.run(by, &Batch { add: vec![(self.table(table), rows)], ..Batch::default() });
    }

    fn update(&self, table: &str, rows: Vec<Incoming>) -> Batch {
        Batch { update: vec![(self.table(table), rows)], ..Batch::default() }
    }

    fn delete(&self, table: &str, keys: impl IntoIterator<Item = u128>) -> Batch {
        let rows = keys.into_iter().map(|n| edit(n, Vec::new())).collect();
        Batch { delete: vec![(self.table(table), rows)], ..Batch::default() }
    }

    fn conflicts(&self) -> Vec<Conflict> {
        let most = usize::MAX;
        let wanted = WantedConflicts {
            table: None,
            key: None,
            after: None,
            rows_max: most,
            entries_max: most,
            bytes_max: most,
        };
        self.storage.read(self.owner, |txn| txn.conflicts(&wanted)).unwrap().conflicts
    }

    fn version(&self) -> Version {
        self.storage
            .read(self.owner, |txn| Ok::<_, rollcall::storage::StorageError>(txn.state().version))
            .unwrap()
    }

    /// Notes with large bodies: one device knows the first state, and another has made the second.
    fn notes(&self, count: u128) {
        self.fill("notes", count, None);
    }

    /// The same in any table with these columns; `body` is that of the second state, if it is another.
    fn fill(&self, table: &str, count: u128, body: Option<Value>) {
        let first = "x".repeat(BIG);
        self.add(1, table, (0..count).map(|n| edit(n, vec![text("first"), text(&first)])).collect());
        assert_eq!(self.version(), Version(2));
        for n in 0..count {
            let second = self.update(table, vec![edit(n, vec![text("second"), body.clone()])]);
            self.run(1, &Batch { base: Some(self.version()), ..second });
        }
    }

    /// Brings the loser of a conflict back; the row's body after that.
    fn restored_body(&self, id: Uuid) -> Option<Value> {
        let restored = self.storage.write(self.owner, |txn| {
            rollcall::conflicts::restore(&|| true, txn, &self.schema, id, &self.terms(2))
        });
        restored.unwrap().unwrap().row.unwrap().values.into_iter().nth(1)
    }
}

fn settled(sets: &[TableItemResults]) -> Vec<&synchronise::RowResult> {
    sets.iter().flat_map(|(_, list)| list).filter_map(ItemResult::settled).collect()
}

fn verdicts(sets: &[TableItemResults]) -> std::collections::BTreeMap<&'static str, usize> {
    tally(settled(sets).iter().map(|result| result.verdict.name()))
}

/// Goal: a row costs once, however often a batch names it, and its contents come back once. Method: some thousand stale
/// edits of one large row.
#[test]
fn a_row_costs_once_however_often_it_is_named() {
    let ground = Ground::new();
    ground.notes(1);
    let mentions = 1_500;
    let edits = (0..mentions).map(|n| edit(0, vec![text(&format!("mine {n}")), None])).collect();
    let (report, counts) = ground.run(2, &stale(ground.update("notes", edits)));
    assert_eq!(verdicts(&report.update), [("kept", mentions)].into());
    let result = settled(&report.update);
    assert_eq!(
        tally(result.iter().map(|result| result.conflict.unwrap())).len(),
        1,
        "one conflict, named by all"
    );
    let rows: Vec<_> = (0..mentions).filter(|place| result[*place].row.is_some()).collect();
    assert_eq!(rows, [0], "the row comes with its first verdict");
    assert!(report.weight() < BIG + mentions * 200, "{}", report.weight());
    let Counts { loaded, pasts, conflicts, conflict_bytes, put, .. } = counts;
    assert_eq!((loaded, pasts, conflicts), (1, 1, 1));
    assert!(conflict_bytes < 1_000 && put <= 1, "{counts:?}");
    let noted = ground.conflicts();
    assert_eq!(noted.len(), 1);
    assert_eq!(noted[0].incoming.values.as_ref().unwrap()[0], text(&format!("mine {}", mentions - 1)));
    assert_eq!(Some(noted[0].id), result[0].conflict);
}

/// Goal: what a device sent of a row in one request is one edit in the conflict. Method: columns that
/// lose one after the other, then one that wins.
#[test]
fn losses_of_one_row_are_one_conflict() {
    let ground = Ground::new();
    ground.notes(1);
    let edits = vec![edit(0, vec![text("mine"), None]), edit(0, vec![None, text("short")])];
    let (report, _) = ground.run(2, &stale(ground.update("notes", edits)));
    assert_eq!(verdicts(&report.update), [("kept", 2)].into());
    let noted = ground.conflicts();
    assert_eq!(noted.len(), 1);
    assert_eq!(noted[0].incoming.values, Some(vec![text("mine"), text("short")]));
    assert_eq!(noted[0].base.as_ref().unwrap()[0], text("first"));
    assert_eq!(noted[0].base.as_ref().unwrap()[1], text(&"x".repeat(BIG)));
    let base_bytes = ground.store.number("SELECT CAST(max(length(base)) AS bigint) FROM rollcall_conflict");
    assert!(base_bytes < 100, "{base_bytes} bytes: what both sides had is stored once");
    assert_eq!(noted[0].resolution, Resolution::Kept);
    // The same once more is the same loss.
    let edits = vec![edit(0, vec![text("mine"), None]), edit(0, vec![None, text("short")])];
    ground.run(2, &stale(ground.update("notes", edits)));
    assert_eq!(ground.conflicts(), noted);
}

/// Goal: each conflict of a long batch is noted once, by a statement for many. Method: more stale edits than
/// two statements hold.
#[test]
fn many_conflicts_are_noted_once_each() {
    let ground = Ground::new();
    let rows = 150;
    let all = |title: &str| (0..rows).map(|n| edit(n, vec![text(title), None])).collect::<Vec<_>>();
    ground.add(1, "notes", all("first"));
    ground.run(1, &Batch { base: Some(ground.version()), ..ground.update("notes", all("second")) });
    let (report, counts) = ground.run(2, &stale(ground.update("notes", all("mine"))));
    assert_eq!(verdicts(&report.update), [("kept", rows as usize)].into());
    assert_eq!(counts.conflicts, rows as usize);
    let noted = ground.conflicts();
    assert_eq!(noted.len(), rows as usize);
    let keys: std::collections::BTreeSet<RowKey> = noted.iter().map(|conflict| conflict.key).collect();
    assert!(keys.into_iter().eq((0..rows).map(key)));
}

/// Goal: everything that a request makes the server keep is weighed before it is kept. Method: long edits that lose to
/// short rows, each a conflict, more than the budget holds; then as many as it holds.
#[test]
fn conflicts_are_weighed_before_they_are_noted() {
    let ground = Ground::new();
    ground.fill("notes", 20, text("short"));
    let before = ground.version();
    let long = "y".repeat(10_000);
    let edits = |count| (0..count).map(|n| edit(n, vec![None, text(&long)])).collect();
    let terms = Terms { batch_bytes_max: 150_000, ..ground.terms(2) };
    let unseen = |batch| Batch { base: Some(Version(1)), ..batch };
    let (refused, counts) = ground.run_as(&terms, &unseen(ground.update("notes", edits(20))));
    assert!(matches!(refused, Err(Refusal::TooHeavy(_))), "{refused:?}");
    assert_eq!((counts.conflicts, counts.put), (0, 0));
    assert_eq!((ground.version(), ground.conflicts().len()), (before, 0));
    let (report, counts) = ground.run_as(&terms, &unseen(ground.update("notes", edits(10))));
    assert_eq!(verdicts(&report.unwrap().update), [("kept", 10)].into());
    assert_eq!(counts.conflicts, 10);
}

/// Goal: what nobody lost is copied for a few conflicts of a request, not for all, and every loser can be brought back.
/// Method: short edits of twenty long texts that lose, under two policies; what they leave in the database.
#[test]
fn what_nobody_lost_is_copied_for_a_few_conflicts() {
    for (table, base) in [("notes", Version(1)), ("texts", Version(2))] {
        let ground = Ground::new();
        ground.fill(table, 20, text(&"y".repeat(BIG)));
        let edits = (0..20).map(|n| edit(n, vec![None, text("mine")]));
        // Where the policy goes by time, the device made its edits earlier.
        let edits =
            edits.map(|edit| Incoming { last_update: Some(Timestamp::from_ms(NOON_MS - 60_000)), ..edit });
        let edits = ground.update(table, edits.collect());
        let (report, _) = ground.run(2, &Batch { base: Some(base), ..edits });
        let ids: Vec<Uuid> = settled(&report.update).iter().filter_map(|one| one.conflict).collect();
        assert_eq!(ids.len(), 20, "{table}");
        let copied = ground.store.number(
            "SELECT CAST(sum(length(coalesce(base, '')) + length(coalesce(stored, ''))) AS bigint) \
             FROM rollcall_conflict",
        );
        assert!(copied < 128 * 1024 + 20 * 200, "{table}: {copied} bytes");
        for conflict in ground.conflicts() {
            assert_eq!(conflict.incoming.values.unwrap()[1], text("mine"));
            assert_eq!(ground.restored_body(conflict.id), text("mine"), "{table}");
        }
    }
}

/// Goal: a text that a device lost is stored once, in the conflict, and the state that had it stays known. Method: long
/// texts that short edits replace; the history in the database and as the rules read it, with the conflict and without.
#[test]
fn a_lost_text_is_stored_once() {
    for table in ["drafts", "texts"] {
        let ground = Ground::new();
        ground.fill(table, 5, text(&"y".repeat(BIG)));
        let stored = "SELECT CAST(coalesce(sum(length(columns)), 0) AS bigint) FROM rollcall_history";
        let before = ground.store.number(stored);
        let edits = ground.update(table, (0..5).map(|n| edit(n, vec![None, text("mine")])).collect());
        let later = Timestamp::from_ms(NOON_MS + 60_000);
        let terms = Terms { now: later, received: later, ..ground.terms(2) };
        let report = ground.run_as(&terms, &Batch { base: Some(Version(2)), ..edits }).0.unwrap();
        assert!(settled(&report.update).iter().all(|one| one.conflict.is_some()), "{table}");
        let grown = ground.store.number(stored) - before;
        assert!(grown < 5 * 200, "{table}: the history has grown by {grown} bytes");
        let (name, table) = (table, ground.table(table));
        let earlier = || {
            ground.storage.read(ground.owner, |txn| {
                let row = txn.load(table, &[key(0)])?.remove(0);
                txn.earlier(table, key(0), row.as_ref())
            })
        };
        let states = earlier().unwrap();
        let body = |state: &EarlierState| state.values.get(1).cloned();
        assert!(body(&states[0]) == text(&"y".repeat(BIG)) && body(&states[1]) == text(&"x".repeat(BIG)));
        let id = settled(&report.update)[0].conflict.unwrap();
        assert!(ground.restored_body(id) == text(&"y".repeat(BIG)), "{name}");
        ground.store.sql("DELETE FROM rollcall_conflict");
        assert_eq!(earlier().unwrap().len(), 1, "the state after it, and no state without its text");
    }
}

/// Goal: edits of many deleted rows copy a few of them, and each comes back as a whole. Method: edits of one short column
/// that lose to deletions of rows with long texts; what they leave, and every row after it is brought back.
#[test]
fn edits_of_deleted_rows_copy_a_few_of_them() {
    let ground = Ground::new();
    ground.fill("notes", 5, None);
    let base = Some(ground.version());
    ground.run(1, &Batch { base, ..ground.delete("notes", 0..5) });
    let edits = ground.update("notes", (0..5).map(|n| edit(n, vec![text("mine"), None])).collect());
    let (report, _) = ground.run(2, &Batch { base, ..edits });
    assert_eq!(verdicts(&report.update), [("gone", 5)].into());
    let copied = ground.store.number("SELECT CAST(sum(length(base)) AS bigint) FROM rollcall_conflict");
    assert!(copied < 128 * 1024 + 5 * 200, "{copied} bytes");
    for result in settled(&report.update) {
        assert!(ground.restored_body(result.conflict.unwrap()) == text(&"x".repeat(BIG)));
    }
}

/// Goal: what is lost in the end is in a conflict, even if the same change lost itself before. Method: a deletion that is
/// too old, and the same one later, of a row with a long text; the text is brought back.
#[test]
fn a_deletion_that_lost_first_and_wins_later_notes_what_it_takes() {
    let ground = Ground::new();
    ground.fill("texts", 1, text(&"y".repeat(BIG)));
    let delete = |ms: Option<i64>| {
        let mut batch = ground.delete("texts", [0]);
        batch.delete[0].1[0].last_update = ms.map(Timestamp::from_ms);
        Batch { base: Some(Version(2)), ..batch }
    };
    let (report, _) = ground.run(2, &delete(Some(NOON_MS - 60_000)));
    assert_eq!(verdicts(&report.delete), [("kept", 1)].into());
    let later = Timestamp::from_ms(NOON_MS + 60_000);
    let terms = Terms { now: later, received: later, ..ground.terms(2) };
    let report = ground.run_as(&terms, &delete(None)).0.unwrap();
    assert_eq!(verdicts(&report.delete), [("deleted", 1)].into());
    assert_eq!(ground.conflicts().len(), 2);
    let id = settled(&report.delete)[0].conflict.unwrap();
    assert!(ground.restored_body(id) == text(&"y".repeat(BIG)));
}

/// Goal: a response contains the contents of a large row once. Method: a row that loses, and that is
/// requested several times.
#[test]
fn a_row_is_answered_once() {
    let ground = Ground::new();
    ground.notes(1);
    let notes = ground.table("notes");
    let get = vec![(notes, vec![key(0), key(7), key(0), key(7), key(0)])];
    let lost = stale(ground.update("notes", vec![edit(0, vec![text("mine"), None])]));
    let (report, _) = ground.run(2, &Batch { get: get.clone(), ..lost });
    assert_eq!(settled(&report.update)[0].row, None, "it stands under get");
    assert_eq!(settled(&report.update)[0].verdict, Verdict::Kept);
    assert_eq!(report.get.iter().map(|(_, rows)| rows.len()).sum::<usize>(), 1);
    assert_eq!(report.missing, [(notes, vec![key(7), key(7)])]);
    assert!(report.weight() < BIG + 2_000);
}

/// Goal: a response is weighed as it will be written. Method: a text that takes six times its length as JSON.
#[test]
fn an_answer_is_weighed_as_it_is_written() {
    let ground = Ground::new();
    let notes = ground.table("notes");
    for n in 0..8 {
        ground.add(1, "notes", vec![edit(n, vec![None, text(&"\u{1}".repeat(BIG))])]);
    }
    let get = |count| Batch { get: vec![(notes, (0..count).map(key).collect())], ..Batch::default() };
    let terms = Terms { batch_bytes_max: 8 * BIG, ..ground.terms(2) };
    let (refused, _) = ground.run_as(&terms, &get(7));
    assert!(matches!(refused, Err(Refusal::TooHeavy(_))), "{refused:?}");
    let (report, _) = ground.run_as(&terms, &get(1));
    assert_eq!(report.unwrap().get[0].1.len(), 1);
}

/// Goal: lists that are joined again and again are weighed as often. Method: stale edits of a long list that add
/// nothing, so that each is joined with the same list.
#[test]
fn joining_is_weighed_each_time() {
    let ground = Ground::new();
    let list = |count: usize| {
        let items: Vec<String> = (0..count).map(|n| n.to_string()).collect();
        Some(Value::Json(format!("[{}]", items.join(","))))
    };
    ground.add(1, "lists", vec![edit(0, vec![list(1)])]);
    ground.run(1, &stale(ground.update("lists", vec![edit(0, vec![list(20_000)])])));
    let edits = |count| (0..count).map(|_| edit(0, vec![list(2)])).collect();
    let (report, _) = ground.run(2, &stale(ground.update("lists", edits(5))));
    assert_eq!(verdicts(&report.update), [("kept", 5)].into());
    let (refused, counts) = ground.run_as(&ground.terms(2), &stale(ground.update("lists", edits(500))));
    assert!(matches!(refused, Err(Refusal::TooHeavy(_))), "{refused:?}");
    assert_eq!(counts.put, 0);
}

/// Goal: the rows that refer to a row are looked up once for each row, with as few rows as necessary. Method:
/// a parent that is deleted again and again, in a batch that has changed many of its children; sizes that
/// double.
#[test]
fn referrers_cost_as_much_as_the_batch() {
    let mut looked_at = Vec::new();
    for size in [50, 100, 200, 400] {
        let ground = Ground::new();
        ground.add(1, "parents", vec![edit(0, vec![None]), edit(1, vec![None])]);
        let children: Vec<_> = (0..2 * size).map(|n| edit(10 + n, vec![named(0)])).collect();
        ground.add(1, "children", children);
        // Half of the children move to the other parent, and the parent is deleted once for each of them.
        let moves = (0..size).map(|n| edit(10 + n, vec![named(1)])).collect();
        let update = ground.update("children", moves).update;
        let batch = Batch { update, ..ground.delete("parents", (0..size).map(|_| 0)) };
        let (report, counts) = ground.run(1, &batch);
        assert_eq!(verdicts(&report.delete), [("rejected", size as usize)].into());
        let codes = settled(&report.delete).into_iter().map(|result| result.rejection.as_ref().unwrap().code);
        assert!(codes.into_iter().all(|code| code == RejectionCode::StillReferenced));
        looked_at.push(counts.referring);
        assert!(counts.referring_asked <= 2, "{counts:?}");
        assert!(counts.referring as u128 <= size + 1, "{counts:?}");
    }
    assert!(looked_at.windows(2).all(|pair| pair[1] <= 2 * pair[0]), "{looked_at:?}");
}

/// Goal: the same where rows of one table are deleted together. Method: a chain in the wrong order, each row named
/// twice; and the same chain held by a row that stays.
#[test]
fn a_chain_that_is_deleted_costs_as_much_as_it_is_long() {
    for held in [false, true] {
        let ground = Ground::new();
        let size: u128 = 200;
        ground.add(1, "parents", vec![edit(0, vec![None])]);
        let chain = (1..size).map(|n| edit(n, vec![named(n - 1)])).collect();
        ground.add(1, "parents", chain);
        if held {
            ground.add(1, "children", vec![edit(5_000, vec![named(size - 1)])]);
        }
        let batch = ground.delete("parents", (0..size).chain(0..size));
        let (report, counts) = ground.run(1, &batch);
        let expected = if held {
            [("rejected", 2 * size as usize)].into()
        } else {
            [("deleted", size as usize), ("same", size as usize)].into()
        };
        assert_eq!(verdicts(&report.delete), expected);
        assert!(
            counts.referring_asked as u128 <= 2 * size && counts.referring as u128 <= 2 * size,
            "{counts:?}"
        );
    }
}

/// Goal: a child that the batch itself has made, moved or deleted counts as it is by then.
#[test]
fn referrers_are_those_of_the_batch() {
    let ground = Ground::new();
    ground.add(1, "parents", (0..4).map(|n| edit(n, vec![None])).collect());
    ground.add(1, "children", vec![edit(10, vec![named(0)]), edit(11, vec![named(1)])]);
    let children = ground.table("children");
    // One child moves from 0 to 2, one is deleted and leaves 1, one is made under 3.
    let batch = Batch {
        add: vec![(children, vec![edit(12, vec![named(3)])])],
        update: vec![(children, vec![edit(10, vec![named(2)])])],
        delete: vec![
            (children, vec![edit(11, Vec::new())]),
            (ground.table("parents"), (0..4).map(|n| edit(n, Vec::new())).collect()),
        ],
        ..Batch::default()
    };
    let (report, _) = ground.run(1, &batch);
    let result: Vec<_> = report.delete[1].1.iter().map(|result| result.verdict().name()).collect();
    assert_eq!(result, ["deleted", "deleted", "rejected", "rejected"]);
}

/// Goal: unwanted work ends between two rows, and leaves nothing. Method: a client that stops waiting after
/// each number of checks, until the work finishes earlier.
#[test]
fn what_nobody_waits_for_is_undone() {
    let ground = Ground::new();
    ground.add(1, "parents", (0..20).map(|n| edit(n, vec![None])).collect());
    let notes = (100..150).map(|n| edit(n, vec![text("a"), None])).collect();
    let batch = Batch {
        add: vec![(ground.table("notes"), notes)],
        get: vec![(ground.table("parents"), (0..20).map(key).collect())],
        ..ground.delete("parents", 0..20)
    };
    let (before, terms) = (ground.version(), ground.terms(1));
    let mut patience = 0;
    loop {
        let looks = AtomicUsize::new(0);
        let wanted = || looks.fetch_add(1, Ordering::SeqCst) < patience;
        let report = ground
            .storage
            .write(ground.owner, |txn| synchronise::run_while(&wanted, txn, &ground.schema, &batch, &terms));
        match report {
            Err(Refusal::Unwanted) => assert_eq!(ground.version(), before),
            Ok(_) => break,
            Err(other) => panic!("{other}"),
        }
        patience += 1;
    }
    assert!(patience > 70, "{patience} looks: one for each row");
    assert_eq!(ground.version(), before.next());
}

/// A request for rows of two tables.
fn asks(ground: &Ground, parents: &[u128], notes: &[u128], base: Option<u64>) -> Batch {
    let keys = |of: &[u128]| of.iter().copied().map(key).collect();
    let get = vec![(ground.table("parents"), keys(parents)), (ground.table("notes"), keys(notes))];
    Batch { get, base: base.map(Version), ..Batch::default() }
}

/// Goal: that a device knows a row ahead of its cursor is written once, and only where the row is there, was not there
/// at its cursor, and is not the device's own. Method: the rows that are written while devices ask.
#[test]
fn a_row_is_noted_as_known_once() {
    let ground = Ground::new();
    ground.add(1, "parents", (0..4).map(|n| edit(n, vec![None])).collect());
    ground.add(1, "notes", vec![edit(0, vec![text("a"), None])]);
    ground.run(1, &ground.delete("parents", [3]));
    let asks = |base| asks(&ground, &[0, 1, 0, 2, 3, 9], &[0], base);
    let put = |by, base| ground.run(by, &asks(Some(base))).1.put;
    assert_eq!(put(1, 1), 0, "its own");
    assert_eq!(put(2, 3), 0, "they were there at its cursor");
    assert_eq!(put(2, 2), 1, "one table's were");
    assert_eq!(put(3, 1), 4);
    assert_eq!(put(3, 1), 0, "as it knows by now");
    // A row that a request names and asks for is noted once.
    let stale =
        Batch { base: Some(Version(1)), ..ground.update("notes", vec![edit(0, vec![text("b"), None])]) };
    let (report, counts) = ground.run(4, &Batch { get: asks(None).get, ..stale });
    assert_eq!((verdicts(&report.update), counts.put), ([("kept", 1)].into(), 4));
}

/// Goal: many large rows are noted a few at a time. Method: more bytes of rows than are copied at once.
#[test]
fn large_rows_are_noted_some_at_a_time() {
    let ground = Ground::new();
    let body = "x".repeat(BIG);
    ground.add(1, "notes", (0..30).map(|n| edit(n, vec![None, text(&body)])).collect());
    let (_, counts) = ground.run(2, &asks(&ground, &[], &(0..30).collect::<Vec<_>>(), Some(1)));
    assert_eq!(counts.put, 30);
    assert!((10 * BIG..13 * BIG).contains(&counts.put_bytes_max), "{counts:?}");
}

/// Goal: without a cursor one mark is raised for all, and only for a row that is news: that is there, is another
/// device's, and was made after the mark. Method: how often it is raised while devices ask.
#[test]
fn the_mark_of_what_was_shown_is_raised_for_news_alone() {
    let ground = Ground::new();
    ground.add(1, "parents", (0..3).map(|n| edit(n, vec![None])).collect());
    let raised = |by, parents: &[u128]| ground.run(by, &asks(&ground, parents, &[], None)).1.shown_ahead;
    assert_eq!(raised(1, &[0, 1, 2]), 0, "its own");
    assert_eq!(raised(2, &[0, 1]), 1);
    assert_eq!(raised(2, &[0, 1, 2]), 0, "all are older than the mark");
    ground.add(1, "parents", vec![edit(3, vec![None])]);
    ground.run(1, &ground.delete("parents", [3]));
    assert_eq!(raised(2, &[0, 3]), 0, "it was deleted before anybody saw it");
    ground.add(2, "parents", vec![edit(4, vec![None])]);
    assert_eq!(raised(2, &[4]), 0, "its own");
    assert_eq!(raised(1, &[0, 4]), 1, "one of them is news");
}

/// Goal: both engines behave alike. Method: every test of this file once more, over PostgreSQL.
#[test]
fn again_on_postgres() {
    support::engine::run_again_on_postgres(module_path!());
}

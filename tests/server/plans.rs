//! What PostgreSQL reads for a request: it grows with the request, and not with what its owner has.
//!
//! Goal: no plan depends on statistics, which a table that grows fast does not have. Method: the plans themselves, and
//! the entries that were read while an owner grows, over tables that nothing ever analyses, or that were analysed while
//! they were empty. `ROLLCALL_PLANS_ROWS=40000 cargo test --test server plans:: -- --nocapture` is the long run, with times.

use rollcall_testkit::feed as support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use rollcall::model::{DeviceId, Owner, RowKey, Timestamp, Value, Version};
use rollcall::reconcile::Incoming;
use rollcall::schema::{Schema, TableId};
use rollcall::storage::postgres::statements::{self, Statements};
use rollcall::storage::{FeedPosition, Storage, StorageError};
use rollcall::synchronise::{self, Batch, Refusal};
use support::engine::{Engine, Store};
use support::{NOON_MS, open, terms};
use uuid::Uuid;

const SCHEMA: &str = r#"
[table.lists]
key = "id"
[table.lists.columns]
title = "text"

[table.items]
key = "id"
owner_column = "whose"
history = 2
[table.items.columns]
list = { type = "uuid", references = "lists" }
title = "text"
"#;

/// The state of the tables' statistics when a server begins.
const STATISTICS: [&str; 3] = ["", "ANALYZE", "VACUUM ANALYZE"];

fn ground() -> Option<(Store, Arc<Schema>)> {
    Engine::has_plans().then(|| {
        let (mut store, schema) = (Store::of(Engine::Postgres), Arc::new(Schema::parse(SCHEMA).unwrap()));
        drop(open(&store, &schema));
        store.look();
        (store, schema)
    })
}

/// Names a plan must have on one line that begins with `Index Cond`, for each statement.
fn expected(schema: &Schema) -> Vec<(String, Vec<&'static str>)> {
    let all = Statements::new(schema, &[1, 2]);
    let items = all.of(schema.table("items").unwrap().id);
    let list = items.referring.iter().flatten().next().unwrap();
    let lists = items.referring_each.iter().flatten().next().unwrap();
    let ledger = "((owner = $1) AND (tbl = $2) AND (key >= k.key) AND (key <= k.key))";
    let row = "((whose = $1) AND (id >= k.key) AND (id <= k.key))";
    let of = |sql: &str, conditions: &[&'static str]| (sql.to_owned(), conditions.to_vec());
    vec![
        of(&items.load, &[ledger, row]),
        of(&items.values, &[row]),
        of(&items.remove_one, &["((whose = $1) AND (id = $2))"]),
        of(list, &["((whose = $1) AND (list = $2))"]),
        of(lists, &["((whose = $1) AND (list >= k.key) AND (list <= k.key))"]),
        of(statements::LOCK_OWNER, &["(owner = $1)"]),
        of(statements::OWNER, &["(owner = $1)"]),
        of(statements::DIGESTS, &["(owner = $1)"]),
        of(statements::MANIFEST, &["((owner = $1) AND (tbl = $2) AND (key >= $3))"]),
        of(
            statements::CHANGES,
            &["((owner = $1) AND (ROW(version, tbl, key) > ROW($2, $3, $4)) AND (version <= $5))"],
        ),
        of(
            statements::SURPLUS_STATES,
            &["((owner = $1) AND (tbl = $2) AND (key >= k.key) AND (key <= k.key))"],
        ),
        of(statements::EARLIER, &["((owner = $1) AND (tbl = $2) AND (key = $3))"]),
        of(statements::ACKNOWLEDGED_BY_ALL, &["(owner = $1)"]),
        of(statements::FORGET_DAYS, &["((owner = $1) AND (day < $2))"]),
    ]
}

/// How many parameters a statement takes.
fn parameters(sql: &str) -> usize {
    (1..30).take_while(|at| sql.contains(&format!("${at}"))).count()
}

#[test]
fn every_plan_names_the_whole_key() {
    let Some((store, schema)) = ground() else { return };
    for statistics in STATISTICS {
        store.sql(statistics);
        store.sql("SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off; SET jit = off");
        for (sql, conditions) in expected(&schema) {
            let nulls = vec!["NULL"; parameters(&sql)].join(", ");
            store.sql(&format!("PREPARE one AS {sql}"));
            let plan = store.lines(&format!("EXPLAIN EXECUTE one({nulls})"));
            store.sql("DEALLOCATE one");
            for condition in conditions {
                let line = format!("Index Cond: {condition}");
                assert!(plan.iter().any(|of| of.trim() == line), "{statistics}: {sql}: {line} in {plan:#?}");
            }
            assert!(!plan.iter().any(|line| line.contains("Seq Scan on")), "{statistics}: {sql}: {plan:#?}");
        }
    }
}

/// An owner with one list, whose items come and go.
struct Growing {
    storage: Arc<dyn Storage>,
    schema: Arc<Schema>,
    owner: Owner,
    version: Version,
    time_ms: i64,
}

fn key(n: u128) -> RowKey {
    // In no order, as keys of devices are.
    RowKey(Uuid::from_u128(n.wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835)))
}

impl Growing {
    fn run(&mut self, by: u128, batch: &Batch) -> usize {
        self.time_ms += 1_000;
        let terms = terms(DeviceId(Uuid::from_u128(by)), Timestamp::from_ms(self.time_ms));
        let report = self.storage.write(self.owner, |txn| synchronise::run(txn, &self.schema, batch, &terms));
        let report = report.map_err(|refusal: Refusal| format!("{refusal:?}")).unwrap();
        let settled = [&report.add, &report.update, &report.delete].into_iter().flatten();
        let done = settled.flat_map(|(_, rows)| rows).filter(|row| {
            let verdict = row.settled().map(|result| result.verdict.name());
            matches!(verdict, Some("added" | "updated" | "deleted"))
        });
        let done = done.count();
        self.version = report.current;
        done + report.get.iter().map(|(_, rows)| rows.len()).sum::<usize>()
    }

    fn items(&self, numbers: std::ops::Range<u128>, title: &str) -> Vec<(TableId, Vec<Incoming>)> {
        let item = |n| Incoming {
            key: key(n),
            values: vec![Some(Value::Uuid(key(0).0)), Some(Value::Text(format!("{title} {n}")))],
            last_update: None,
            claimed_at: None,
            base: None,
        };
        vec![(self.schema.table("items").unwrap().id, numbers.map(item).collect())]
    }
}

/// One request over `rows` rows of an owner that has those of number 1 to `held`; returns how many rows it was about.
type Operation = fn(&mut Growing, held: u128, rows: u128) -> usize;

const OPERATIONS: [(&str, Operation); 6] = [
    ("update", |growing, held, rows| {
        let update = growing.items(held - rows + 1..held + 1, "changed");
        growing.run(1, &Batch { update, base: Some(growing.version), ..Batch::default() })
    }),
    ("delete", |growing, held, rows| {
        let delete = growing.items(held - rows + 1..held + 1, "");
        growing.run(1, &Batch { delete, base: Some(growing.version), ..Batch::default() })
    }),
    ("delete one", |growing, held, _| {
        let delete = growing.items(held..held + 1, "");
        growing.run(1, &Batch { delete, base: Some(growing.version), ..Batch::default() })
    }),
    ("get", |growing, held, rows| {
        let keys = (held - rows + 1..=held).map(key).collect();
        growing.run(
            1,
            &Batch { get: vec![(growing.schema.table("items").unwrap().id, keys)], ..Batch::default() },
        )
    }),
    ("pull", |growing, held, rows| {
        let (table, base) = (growing.schema.table("items").unwrap().id, growing.version);
        let update = growing.items(held - rows + 1..held + 1, "changed");
        growing.run(2, &Batch { update, base: Some(base), ..Batch::default() });
        growing
            .storage
            .read(growing.owner, |txn| {
                let (mut seen, until) = (0, txn.state().version);
                txn.changes(FeedPosition { version: base, within: None }, until, &mut |of, _, _| {
                    seen += usize::from(of == table);
                    true
                })?;
                Ok::<_, StorageError>(seen)
            })
            .unwrap()
    }),
    ("page of a fetch", |growing, held, rows| {
        let table = growing.schema.table("items").unwrap().id;
        let mut seen = 0;
        let rows = usize::try_from(rows.min(held)).unwrap();
        let read = growing
            .storage
            .read(growing.owner, |txn| txn.manifest(table, Some(key(held)), rows, &mut |_, _| seen += 1));
        read.map_err(|error: StorageError| error.to_string()).unwrap();
        seen
    }),
];

/// Index entries and rows that were read since the database was made.
const READ: &str = "SELECT (SELECT coalesce(sum(idx_tup_read), 0) FROM pg_stat_user_indexes \
     WHERE schemaname = 'public')::bigint + (SELECT coalesce(sum(seq_tup_read), 0) FROM pg_stat_user_tables \
     WHERE schemaname = 'public' AND relname NOT LIKE 'rollcall_meta')::bigint";

const READ_BY_INDEX: &str = "SELECT indexrelname || ' ' || idx_tup_read || ' in ' || idx_scan \
     FROM pg_stat_user_indexes WHERE idx_tup_read > 1000";

/// What was read, once every session has reported what it did.
fn read_by_now(store: &Store) -> i64 {
    let sessions = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()";
    let mut last = -1;
    loop {
        let now = if store.number(sessions) == 0 { store.number(READ) } else { -1 };
        if now >= 0 && now == last {
            return now;
        }
        last = now;
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn what_is_read_does_not_grow_with_the_owner() {
    if !Engine::all().contains(&Engine::Postgres) {
        return;
    }
    let rows_max: u128 = std::env::var("ROLLCALL_PLANS_ROWS").map_or(5_000, |rows| rows.parse().unwrap());
    let at_once = if rows_max > 10_000 { 500 } else { 100 };
    for (at, (name, operation)) in OPERATIONS.into_iter().enumerate() {
        let (store, schema) = ground().unwrap();
        store.sql("ALTER TABLE rollcall_ledger SET (autovacuum_enabled = off)");
        store.sql("ALTER TABLE items SET (autovacuum_enabled = off)");
        store.sql(STATISTICS[at % STATISTICS.len()]);
        let before = read_by_now(&store);
        let mut growing = Growing {
            storage: open(&store, &schema),
            schema,
            owner: Owner(Uuid::now_v7()),
            version: Version(0),
            time_ms: NOON_MS,
        };
        let list = Incoming {
            key: key(0),
            values: vec![Some(Value::Text("all".into()))],
            last_update: None,
            claimed_at: None,
            base: None,
        };
        let lists = growing.schema.table("lists").unwrap().id;
        growing.run(1, &Batch { add: vec![(lists, vec![list])], ..Batch::default() });
        let (mut held, mut touched, mut uploading) = (0, 1, Duration::ZERO);
        while held < rows_max {
            let begun = Instant::now();
            let add = growing.items(held + 1..held + at_once + 1, "new");
            let added = growing.run(1, &Batch { add, base: Some(growing.version), ..Batch::default() });
            uploading += begun.elapsed();
            assert_eq!(added as u128, at_once);
            held += at_once;
            touched += added + operation(&mut growing, held, 10.min(held));
        }
        drop(growing);
        let read = read_by_now(&store) - before;
        let each = read as f64 / touched as f64;
        let rate = rows_max as f64 / uploading.as_secs_f64();
        println!("{name}: {read} entries read for {touched} rows, {each:.1} a row; uploads {rate:.0} rows/s");
        assert!(
            each < ENTRIES_A_ROW,
            "{name}: {read} entries read for {touched} rows: {:#?}",
            store.lines(READ_BY_INDEX)
        );
    }
}

/// What a row takes at most: it is found in the ledger, its table, its parent and the history, and read once more.
const ENTRIES_A_ROW: f64 = 6.0;

//! The change feed over a real engine: nothing missed, nothing twice, no ghosts, no false "no changes".

mod long_reads;
use rollcall_testkit::feed as support;

use std::collections::{BTreeMap, HashSet};
use std::io::{BufRead as _, BufReader};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use http::Method;
use rollcall::changes::{self, Feed, FeedFilter};
use rollcall::model::{DeviceId, Owner, RowKey, Stored, Timestamp, Value, Version};
use rollcall::reconcile::{Incoming, NetChange};
use rollcall::schema::{Schema, TableId};
use rollcall::storage::{PurgeTerms, Purged, Storage, StorageError};
use rollcall::synchronise::{self, Batch, Refusal};
use serde_json::{Value as Json, json};
use support::engine::Store;
use support::{Answer, Copy, Device, Dice, NOON_MS, POLICIES, World, key, open, take, terms};
use uuid::Uuid;

const THREE: &str = "[table.one]\nkey = \"id\"\n[table.one.columns]\nn = \"integer\"\n\
    [table.two]\nkey = \"id\"\n[table.two.columns]\nn = \"integer\"\n\
    [table.three]\nkey = \"id\"\n[table.three.columns]\nn = \"integer\"\n";

/// What one reader holds and has received.
struct Reader {
    device: DeviceId,
    tables: Vec<TableId>,
    cursor: Option<Version>,
    rows: BTreeMap<(TableId, RowKey), (Version, Vec<Value>)>,
    result: HashSet<(TableId, RowKey, Version)>,
    pulls: usize,
}

impl Reader {
    /// Pulls one whole feed, in pages of random length.
    fn pull(&mut self, storage: &dyn Storage, owner: Owner, dice: &mut Dice) {
        let since = self.cursor;
        let mut feed = storage
            .read(owner, |txn| Ok::<_, StorageError>(Feed::begin(txn.state(), since).unwrap()))
            .unwrap();
        let until = feed.until;
        assert!(since.is_none_or(|since| until >= since), "the version fell");
        let mut last = since.unwrap_or(Version(0));
        loop {
            let (rows_max, entries_max) = (dice.below(30) as usize + 1, dice.below(60) as usize + 1);
            let (device, tables, bytes_max) = (self.device, &self.tables, usize::MAX);
            let asked = FeedFilter { device, tables, rows_max, bytes_max, entries_max };
            let mut page: Vec<(NetChange, TableId, RowKey, Stored)> = Vec::new();
            let read = storage
                .read(owner, |txn| {
                    page.clear();
                    let feed = feed.resume(txn.state()).unwrap();
                    changes::run(txn, feed, &asked, &mut |net, table, key, row| {
                        page.push((net, table, key, row.clone()));
                        std::ops::ControlFlow::Continue(())
                    })
                })
                .unwrap();
            assert!(page.len() <= rows_max && read.looked <= entries_max);
            let is_cut = page.len() == rows_max || read.looked == entries_max;
            assert!(read.next.is_none() || is_cut, "a short page in the middle");
            for (net, table, key, row) in page {
                assert!(self.tables.contains(&table));
                assert!(last <= row.version && row.version <= until, "out of order");
                assert!(since.is_none_or(|since| row.version > since), "told of before the cursor");
                last = row.version;
                assert!(self.result.insert((table, key, row.version)), "told twice at one version");
                match net {
                    NetChange::Delete => drop(self.rows.remove(&(table, key))),
                    NetChange::Add | NetChange::Update => {
                        self.rows.insert((table, key), (row.version, row.values.unwrap()));
                    }
                }
            }
            match read.next {
                Some(next) => feed = next,
                None => break,
            }
            if dice.below(4) == 0 {
                std::thread::sleep(Duration::from_millis(dice.below(10)));
            }
        }
        self.cursor = Some(until);
        self.pulls += 1;
    }
}

/// Goal: a cursor misses no row and gets none twice at one version, whatever writers do meanwhile. Method:
/// eight writers with slow transactions, four readers with pages and tables of their own, for
/// `ROLLCALL_FEED_S` seconds; at the end every reader holds what the server holds.
#[test]
fn eight_writers_and_four_readers_agree() {
    let seconds = std::env::var("ROLLCALL_FEED_S").map_or(5, |seconds| seconds.parse().unwrap());
    {
        let schema = Arc::new(Schema::parse(THREE).unwrap());
        let store = Store::new();
        let engine = store.engine.name();
        let storage = open(&store, &schema);
        let owner = Owner(Uuid::now_v7());
        let tables: Vec<TableId> = schema.tables().iter().map(|table| table.id).collect();
        let until = Instant::now() + Duration::from_secs(seconds);
        let (writes, quiet) = (AtomicUsize::new(0), AtomicBool::new(false));
        let readers = std::thread::scope(|scope| {
            let writers: Vec<_> = (0..8)
                .map(|seed| {
                    let (storage, schema, tables, writes) = (&storage, &schema, &tables, &writes);
                    scope.spawn(move || {
                        let mut dice = Dice::new(seed);
                        let device = DeviceId(Uuid::now_v7());
                        let mut last = Version(0);
                        while Instant::now() < until {
                            let version = write(&**storage, schema, tables, owner, device, &mut dice);
                            assert!(version >= last, "the version fell");
                            last = version;
                            writes.fetch_add(1, Ordering::Relaxed);
                            std::thread::sleep(Duration::from_millis(dice.below(20)));
                        }
                    })
                })
                .collect();
            let readers: Vec<_> = [&tables[..], &tables[..1], &tables[1..], &tables[..]]
                .into_iter()
                .enumerate()
                .map(|(seed, tables)| {
                    let (storage, quiet) = (&storage, &quiet);
                    scope.spawn(move || {
                        let mut dice = Dice::new(100 + seed as u64);
                        let mut reader = Reader {
                            device: DeviceId(Uuid::now_v7()),
                            tables: tables.to_vec(),
                            cursor: None,
                            rows: BTreeMap::new(),
                            result: HashSet::new(),
                            pulls: 0,
                        };
                        loop {
                            // Looked at before the pull: the last one begins after the last write.
                            let last = quiet.load(Ordering::SeqCst);
                            reader.pull(&**storage, owner, &mut dice);
                            if last {
                                return reader;
                            }
                            std::thread::sleep(Duration::from_millis(dice.below(30)));
                        }
                    })
                })
                .collect();
            for writer in writers {
                writer.join().unwrap();
            }
            quiet.store(true, Ordering::SeqCst);
            readers.into_iter().map(|reader| reader.join().unwrap()).collect::<Vec<_>>()
        });
        for (place, reader) in readers.iter().enumerate() {
            let held = held(&*storage, owner, &reader.tables);
            assert_eq!(reader.rows, held, "{engine}: reader {place}");
            assert!(!held.is_empty() && reader.pulls > 2, "{engine}: reader {place} proved nothing");
        }
        let result: usize = readers.iter().map(|reader| reader.result.len()).sum();
        let pulls: usize = readers.iter().map(|reader| reader.pulls).sum();
        let writes = writes.into_inner();
        println!("{engine}: {seconds} s, {writes} write transactions, {pulls} feeds, {result} rows told");
    }
}

/// One request of a writer over a few of a hundred keys; returns the version after it.
fn write(
    storage: &dyn Storage,
    schema: &Schema,
    tables: &[TableId],
    owner: Owner,
    device: DeviceId,
    dice: &mut Dice,
) -> Version {
    let wanted: Vec<_> = (0..=dice.below(6))
        .map(|_| (dice.below(3), dice.below(tables.len() as u64), dice.below(100), dice.below(1 << 40)))
        .collect();
    let dawdle_ms = dice.below(8);
    storage
        .write(owner, |txn| {
            let mut batch = Batch { base: Some(txn.state().version), ..Batch::default() };
            for (what, table, key, n) in &wanted {
                let table = tables[*table as usize];
                let key = RowKey(Uuid::from_u128(u128::from(*key)));
                let values = if *what == 0 { vec![] } else { vec![Some(Value::Integer(*n as i64))] };
                let set = vec![Incoming { key, values, last_update: None, claimed_at: None, base: None }];
                let sets = if *what == 0 { &mut batch.delete } else { &mut batch.add };
                sets.push((table, set));
            }
            let now = Timestamp::from_ms(NOON_MS);
            let report = synchronise::run(txn, schema, &batch, &terms(device, now))?;
            std::thread::sleep(Duration::from_millis(dawdle_ms));
            Ok::<_, Refusal>(report.current)
        })
        .unwrap()
}

/// What the server holds of some tables: by the manifest and by keys, not by the feed.
fn held(
    storage: &dyn Storage,
    owner: Owner,
    tables: &[TableId],
) -> BTreeMap<(TableId, RowKey), (Version, Vec<Value>)> {
    storage
        .read(owner, |txn| {
            let mut held = BTreeMap::new();
            for table in tables {
                let mut keys = Vec::new();
                txn.manifest(*table, None, usize::MAX, &mut |key, _| keys.push(key))?;
                for (key, row) in keys.iter().zip(txn.load(*table, &keys)?) {
                    let row = row.unwrap();
                    held.insert((*table, *key), (row.version, row.values.unwrap()));
                }
            }
            Ok::<_, StorageError>(held)
        })
        .unwrap()
}

/// A body that adds rows `keys` to a table.
fn adds(table: &str, keys: impl IntoIterator<Item = u64>) -> Json {
    let rows: Vec<_> =
        keys.into_iter().map(|n| json!({ "id": key(n), "title": format!("row {n}") })).collect();
    json!({ "add": { table: rows } })
}

fn edits(table: &str, keys: impl IntoIterator<Item = u64>, title: &str) -> Json {
    let rows: Vec<_> = keys.into_iter().map(|n| json!({ "id": key(n), "title": title })).collect();
    json!({ "update": { table: rows } })
}

fn deletes(table: &str, keys: impl IntoIterator<Item = u64>) -> Json {
    let keys: Vec<_> = keys.into_iter().map(key).collect();
    json!({ "delete": { table: keys }, "confirm_deletes": keys.len() })
}

/// Forgets every tombstone, as a purge does once all are old.
fn purge(world: &World, device: &Device) -> Purged {
    let late = Timestamp::from_ms(world.hands.ms() + 400 * 86_400_000);
    let terms = PurgeTerms {
        now: late,
        tombstones_before: late,
        devices_before: late,
        conflicts_before: Timestamp::from_ms(0),
        responses_before: Timestamp::from_ms(0),
        past_bytes_max: 0,
    };
    world.app.storage.write(device.owner, |txn| txn.purge(&terms, 1_000)).unwrap()
}

#[test]
fn a_row_pushed_ahead_of_the_cursor_leaves_no_ghost() {
    let world = World::start(POLICIES);
    let [mut a, mut b, mut c] = ["a", "b", "c"].map(|name| Copy::new(world.device("anna", name)));
    a.push(&world, &adds("newest", 0..1));
    a.pull(&world);
    c.pull(&world);
    c.push(&world, &adds("newest", 1..2));
    let before = a.cursor;
    a.push(&world, &adds("newest", 2..3));
    assert_eq!(a.cursor, before, "the cursor passed what c had written");
    b.pull(&world);
    b.push(&world, &deletes("newest", 2..3));

    let result = world.get(&a.device, &format!("/changes?since={}", a.cursor.unwrap())).ok();
    assert_eq!(result["delete"], json!({ "newest": [key(2)] }));
    let result = world.get(&c.device, &format!("/changes?since={}", c.cursor.unwrap())).ok();
    assert_eq!(result["delete"], json!({}), "c never knew the row");
    for copy in [&mut a, &mut b, &mut c] {
        copy.pull(&world);
        assert_eq!(copy.rows, world.rows(&copy.device));
    }
}

/// Goal: the same for a row that a device received ahead of its cursor without having written it: it sent the
/// same, or lost, or was rejected, or requested it by key.
#[test]
fn a_row_told_ahead_of_the_cursor_leaves_no_ghost() {
    let world = World::start(POLICIES);
    for (title, table, body, verdict) in [
        (
            "the same row",
            "newest",
            json!({ "add": { "newest": [{ "id": key(1), "title": "row 1" }] } }),
            "same",
        ),
        (
            "the server's row won",
            "server",
            json!({ "add": { "server": [{ "id": key(1), "title": "mine" }] } }),
            "kept",
        ),
        (
            "the user is asked",
            "manual",
            json!({ "add": { "manual": [{ "id": key(1), "title": "mine" }] } }),
            "kept",
        ),
        ("rejected", "newest", json!({ "add": { "newest": [{ "id": key(1), "title": null }] } }), "rejected"),
        ("asked for", "newest", json!({ "get": { "newest": [key(1)] } }), ""),
    ] {
        for with_base in [true, false] {
            let owner = format!("{}-{with_base}", title.replace([' ', '\''], "-"));
            let [mut a, mut b] = ["a", "b"].map(|name| Copy::new(world.device(&owner, name)));
            a.push(&world, &adds("client", 0..1));
            a.pull(&world);
            b.push(&world, &adds(table, 1..2));
            let mut body = body.clone();
            if with_base {
                body["base"] = json!(a.cursor);
            } else if verdict == "kept" {
                continue; // without a base this is no conflict
            }
            let before = world.version(&a.device);
            let result = world.sync(&a.device, &body).ok();
            assert_eq!(world.version(&a.device), before, "{title}: nothing changed");
            if verdict.is_empty() {
                assert_eq!(result["get"][table][0]["id"], key(1));
                a.rows.insert((table.into(), key(1)), result["get"][table][0].clone());
            } else {
                assert_eq!(result["add"][table][0]["verdict"], verdict, "{title}");
                let cursor = a.cursor;
                a.learn(&world.schema, &body, &result);
                a.cursor = cursor;
            }
            assert!(a.rows.contains_key(&(table.to_owned(), key(1))), "{title}: a knows the row");
            b.push(&world, &deletes(table, 1..2));
            a.pull(&world);
            assert_eq!(a.rows, world.rows(&a.device), "{title}, base: {with_base}");
        }
    }
}

/// Goal: nor does a row that a device got by `get` without a base, whatever lives the row has had since.
#[test]
fn a_row_that_was_got_without_a_base_leaves_no_ghost_in_any_life() {
    let world = World::start(POLICIES);
    for lifetimes in 1..4 {
        let [mut a, mut b, c] =
            ["a", "b", "c"].map(|name| Copy::new(world.device(&format!("owner-{lifetimes}"), name)));
        a.push(&world, &adds("client", 0..1));
        a.pull(&world);
        b.push(&world, &adds("newest", 1..3));
        let result = world.sync(&a.device, &json!({ "get": { "newest": [key(1)] } })).ok();
        a.rows.insert(("newest".into(), key(1)), result["get"]["newest"][0].clone());
        for life in 0..lifetimes {
            if life > 0 {
                b.push(&world, &adds("newest", 1..2));
            }
            b.push(&world, &deletes("newest", 1..2));
        }
        // No device received this one.
        b.push(&world, &adds("newest", 7..8));
        b.push(&world, &deletes("newest", 7..8));
        let result = world.get(&a.device, &format!("/changes?since={}", a.cursor.unwrap())).ok();
        assert_eq!(result["delete"], json!({ "newest": [key(1)] }), "{lifetimes} lives");
        a.pull(&world);
        assert_eq!(a.rows, world.rows(&c.device), "{lifetimes} lives");
    }
}

/// Goal: what a pull reads in the writer's turn is bounded, and so is a page of the feed and a stretch of its lines,
/// however many tombstones there are that do not concern the device; and no row is left out. Method: a table
/// is filled and emptied between two syncs of a device; the entries that are looked at are counted.
#[test]
fn tombstones_that_nobody_is_told_of_are_walked_in_bounded_pages() {
    const ENTRIES_MAX: u64 = 50;
    let world = World::start_with(POLICIES, |settings| settings.sync.page_entries_max = ENTRIES_MAX as usize);
    let [mut a, mut b] = ["a", "b"].map(|name| Copy::new(world.device("anna", name)));
    a.push(&world, &adds("newest", 0..1));
    b.pull(&world);
    world.sync(&a.device, &adds("newest", 1..301)).ok();
    world.sync(&a.device, &deletes("newest", 1..301)).ok();
    world.sync(&a.device, &edits("newest", 0..1, "the last change")).ok();

    let looked = || world.app.metrics.feed_entries.get();
    let mut before = looked();
    let mut cost = || {
        let now = looked();
        now - std::mem::replace(&mut before, now)
    };
    let asked =
        json!({ "pull": true, "base": b.cursor, "update": { "newest": [{ "id": key(0), "body": "b's" }] } });
    let result = world.sync(&b.device, &asked).ok();
    assert_eq!(cost(), ENTRIES_MAX);
    assert_eq!((&result["changes"]["more"], &result["changes"]["delete"]), (&json!(true), &json!({})));
    assert_eq!(result["version"], json!(b.cursor), "a cursor must not pass what is still to be told");
    let (mut page, mut pages) = (result["changes"].clone(), 1);
    while let Some(next) = page["next"].as_str() {
        page = world.get(&b.device, &format!("/changes?next={next}")).ok();
        assert!(cost() <= ENTRIES_MAX);
        pages += 1;
    }
    assert_eq!(pages, 300 / ENTRIES_MAX);
    // Nothing was returned ahead of the cursor, so nobody needs to learn what was created and deleted since.
    assert_eq!((&page["delete"], &page["more"]), (&json!({}), &json!(false)));

    let lines = [("accept", "application/x-ndjson")];
    let since = format!("/changes?since={}", b.cursor.unwrap());
    let result = world.call(&b.device, Method::GET, &since, &lines, None);
    assert_eq!(result.status, 200);
    let lines: Vec<Json> = result.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((lines.len(), &lines[1]["op"]), (2, &json!("end")), "{}", result.text());
    b.pull(&world);
    assert_eq!(b.rows, world.rows(&b.device));
}

/// Goal: nor does a row of a pull's first page, though the device begins anew at its cursor, against the rules.
#[test]
fn a_row_of_a_pull_that_was_not_whole_leaves_no_ghost() {
    let world = World::start_with(POLICIES, |settings| settings.sync.changes_rows_max = 3);
    let [mut a, mut b] = ["a", "b"].map(|name| Copy::new(world.device("anna", name)));
    a.push(&world, &adds("newest", 0..1));
    a.pull(&world);
    b.push(&world, &adds("newest", 1..8));
    let result = world.sync(&a.device, &json!({ "pull": true, "base": a.cursor })).ok();
    assert_eq!(result["changes"]["more"], true);
    take(&world.schema, &mut a.rows, &result["changes"]);
    assert!(a.rows.contains_key(&("newest".to_owned(), key(1))));
    b.push(&world, &deletes("newest", 1..2));
    a.pull(&world);
    assert_eq!(a.rows, world.rows(&a.device));
}

#[test]
fn a_row_told_on_page_one_and_deleted_before_page_two_goes_with_the_next_pull() {
    let world = World::start(POLICIES);
    let (mut a, mut b) = (Copy::new(world.device("anna", "a")), Copy::new(world.device("anna", "b")));
    for since in [false, true] {
        if since {
            a.pull(&world);
        }
        b.push(&world, &adds("newest", if since { 10..14 } else { 0..4 }));
        let gone = if since { 10 } else { 0 };
        (a.limit, b.cursor) = (2, None);
        let mut pages = 0;
        a.pull_with(&world, || {
            pages += 1;
            if pages == 1 {
                b.push(&world, &deletes("newest", gone..=gone));
            }
        });
        assert!(pages > 0);
        assert!(a.rows.contains_key(&("newest".into(), key(gone))), "it was there when it was told");
        a.pull(&world);
        assert_eq!(a.rows, world.rows(&a.device));
    }
}

/// Goal: whatever happens between two pages, the next pull mends it. Method: changes, deletions and rows
/// made again after every single page, at random.
#[test]
fn what_happens_between_pages_comes_with_the_next_pull() {
    let world = World::start(POLICIES);
    let b = world.device("anna", "b");
    world.sync(&b, &adds("newest", 0..30)).ok();
    let mut dice = Dice::new(3);
    let mut a = Copy::new(world.device("anna", "a"));
    for round in 0..8 {
        a.limit = dice.below(6) as usize + 1;
        a.pull_with(&world, || {
            let n = dice.below(40);
            match dice.below(3) {
                0 => world.sync(&b, &deletes("newest", n..=n)).ok(),
                1 => world.sync(&b, &edits("newest", n..=n, &format!("round {round}"))).ok(),
                _ => {
                    world.hands.advance_ms(10);
                    let row = json!({ "id": key(n), "title": "again", "last_update": world.hands.at(0) });
                    world.sync(&b, &json!({ "add": { "newest": [row] } })).ok()
                }
            };
        });
        a.pull(&world);
        assert_eq!(a.rows, world.rows(&b), "round {round}");
    }
}

#[test]
fn a_purge_between_pages_ends_the_feed() {
    for from_a_cursor in [false, true] {
        let world = World::start(POLICIES);
        let (a, b) = (world.device("anna", "a"), world.device("anna", "b"));
        world.sync(&b, &adds("newest", 0..4)).ok();
        let since = if from_a_cursor { format!("since={}&", world.version(&b)) } else { String::new() };
        world.sync(&b, &adds("newest", 5..8)).ok();
        let page = world.get(&a, &format!("/changes?{since}limit=1")).ok();
        let next = format!("/changes?next={}", page["next"].as_str().unwrap());
        world.get(&a, &next).ok();
        world.sync(&b, &deletes("newest", 5..6)).ok();
        world.get(&a, &next).ok();
        assert_eq!(purge(&world, &b).tombstones, 1);
        let problem = world.get(&a, &next).problem(410, "cursor_expired");
        let now = json!(world.version(&b));
        assert_eq!((&problem["version"], &problem["horizon"]), (&now, &now));
    }
}

#[test]
fn cursors_that_mean_nothing_here_are_gone() {
    let world = World::start(POLICIES);
    let (a, b) = (world.device("anna", "a"), world.device("anna", "b"));
    let fresh = world.get(&a, "/changes?since=1").ok();
    assert_eq!((&fresh["type"], &fresh["version"]), (&json!("diff"), &json!(1)), "a fresh owner is at 1");
    world.sync(&b, &adds("newest", 0..2)).ok();
    let old = world.version(&b);
    world.sync(&b, &deletes("newest", 0..1)).ok();
    let now = world.version(&b);
    world.get(&a, &format!("/changes?since={old}")).ok();
    let expired = |since: u64| {
        let problem = world.get(&a, &format!("/changes?since={since}")).problem(410, "cursor_expired");
        assert_eq!(problem["version"], now);
        let body = json!({ "base": since, "add": { "newest": [{ "id": key(9), "title": "x" }] } });
        let before = world.dump();
        world.sync(&a, &body).problem(410, "cursor_expired");
        assert_eq!(world.dump(), before);
        problem
    };
    expired(now + 1); // ahead
    expired(1 << 40 | 1); // another epoch
    expired(u64::MAX);
    let first = world.get(&a, "/changes?since=0").ok();
    assert_eq!((&first["type"], &first["version"]), (&json!("full"), &json!(now)), "0 is the beginning");
    purge(&world, &b);
    assert_eq!(expired(old)["horizon"], now); // purged
    assert_eq!(world.get(&a, &format!("/changes?since={now}")).ok()["version"], now);
    for garbage in
        ["since=x", "since=-1", "since=", "limit=0", "limit=x", "next=x", "next=", "tables=nope", "page=1"]
    {
        world.get(&a, &format!("/changes?{garbage}")).problem(400, "invalid_request");
    }
}

#[test]
fn pull_tells_what_others_wrote_and_not_what_was_just_sent() {
    let world = World::start(POLICIES);
    let [mut a, mut b] = ["a", "b"].map(|name| Copy::new(world.device("anna", name)));
    a.push(&world, &adds("newest", 0..2));
    a.pull(&world);
    b.pull(&world);
    b.push(&world, &adds("newest", 2..4));
    b.push(&world, &deletes("newest", 0..1));
    let base = a.cursor;

    // Without pull the cursor stays: others wrote in between.
    let result = a.push(&world, &adds("newest", 4..5));
    assert_eq!(result.get("changes"), None);
    assert_eq!(a.cursor, base);

    // With it everything is returned, and the cursor moves past its own write too.
    let mut body = adds("newest", 5..6);
    body["pull"] = json!(true);
    let result = a.push(&world, &body);
    let changes = &result["changes"];
    assert_eq!((&changes["type"], &changes["more"]), (&json!("diff"), &json!(false)));
    assert_eq!(changes.get("digests"), None);
    let added: Vec<_> =
        changes["add"]["newest"].as_array().unwrap().iter().map(|row| row["id"].clone()).collect();
    assert_eq!(added, [key(2), key(3), key(4)], "its earlier write is told, the one of this request is not");
    assert_eq!(changes["delete"], json!({ "newest": [key(0)] }));
    assert_eq!(result["version"], world.version(&a.device));
    assert_eq!(result["digests"]["as_of"], result["version"]);
    assert_eq!(a.rows, world.rows(&a.device));

    // If nothing else happens, its own write moves its cursor.
    let result = a.push(&world, &adds("newest", 6..7));
    assert_eq!(result["version"], world.version(&a.device));
    let result = a.push(&world, &json!({ "pull": true }));
    let changes = &result["changes"];
    assert_eq!(
        (&changes["add"], &changes["update"], &changes["delete"]),
        (&json!({}), &json!({}), &json!({}))
    );

    // Without a base everything is returned, including the row just sent: what is not mentioned is dropped.
    let mut body = adds("newest", 7..8);
    body["pull"] = json!(true);
    let result = world.sync(&a.device, &body).ok();
    assert_eq!(result["changes"]["type"], "full");
    assert_eq!(result["changes"]["add"]["newest"].as_array().unwrap().len(), world.rows(&a.device).len());
}

#[test]
fn a_pull_that_is_not_whole_goes_on_and_moves_no_cursor() {
    let world = World::start_with(POLICIES, |settings| settings.sync.changes_rows_max = 3);
    let [mut a, mut b] = ["a", "b"].map(|name| Copy::new(world.device("anna", name)));
    a.push(&world, &adds("newest", 0..1));
    a.pull(&world);
    b.push(&world, &adds("newest", 1..8));
    let mut body = adds("newest", 8..10);
    body["pull"] = json!(true);
    let result = a.push(&world, &body);
    assert_eq!(result["version"], json!(a.cursor), "not everything was told");
    assert_ne!(result["version"], world.version(&a.device));
    assert_eq!(
        (&result["changes"]["more"], result["changes"]["version"].as_u64()),
        (&json!(true), Some(world.version(&a.device)))
    );
    let mut page = result["changes"].clone();
    let mut seen: Vec<Json> = Vec::new();
    loop {
        seen.extend(page["add"]["newest"].as_array().into_iter().flatten().map(|row| row["id"].clone()));
        take(&world.schema, &mut a.rows, &page);
        match page["next"].as_str() {
            Some(next) => page = world.get(&a.device, &format!("/changes?next={next}")).ok(),
            None => break,
        }
    }
    assert_eq!(page["version"], world.version(&a.device));
    assert_eq!(seen, (1..8).map(|n| json!(key(n))).collect::<Vec<_>>(), "its own rows are on no later page");
    assert_eq!(a.rows, world.rows(&a.device));

    // A device without a stored cursor starts again, and misses nothing.
    let c = world.device("anna", "c");
    let result = world.sync(&c, &json!({ "pull": true })).ok();
    assert_eq!((&result["changes"]["more"], &result["version"]), (&json!(true), &json!(1)));
    let since = world.get(&c, "/changes?since=1").ok();
    assert_eq!(since["add"]["newest"][0]["id"], json!(key(0)));
}

/// The lines of a stream, and the last one apart: without it the stream is not whole.
fn lines(body: &[u8]) -> (Vec<Json>, Option<Json>) {
    let mut lines: Vec<Json> =
        body.lines().map(|line| serde_json::from_str(&line.unwrap()).unwrap()).collect();
    let end = lines.pop_if(|line| line["op"] == "end");
    (lines, end)
}

#[test]
fn the_stream_tells_what_the_pages_tell() {
    let world = World::start(POLICIES);
    let (a, b) = (world.device("anna", "a"), world.device("anna", "b"));
    world.sync(&b, &adds("newest", 0..700)).ok();
    let since = world.version(&b);
    world.sync(&b, &edits("newest", 0..5, "edited")).ok();
    world.sync(&b, &adds("merge", 1_000..1_650)).ok();
    world.sync(&b, &deletes("newest", 600..700)).ok();
    for query in [
        String::new(),
        format!("since={since}"),
        format!("since={since}&tables=newest"),
        format!("since={}", world.version(&b)),
    ] {
        let answer = world.call(
            &a,
            Method::GET,
            &format!("/changes?{query}"),
            &[("accept", "application/x-ndjson")],
            None,
        );
        assert_eq!(answer.header("content-type"), Some("application/x-ndjson"));
        assert_eq!(answer.header("sync-version"), Some(&*world.version(&b).to_string()));
        let (lines, end) = lines(&answer.body);
        let end = end.expect("the last line");
        let mut place = 0;
        let mut path = format!("/changes?{query}&limit=77");
        loop {
            let page = world.get(&a, &path).ok();
            let mut counted = 0;
            let mut result: BTreeMap<(String, String), Vec<Json>> = BTreeMap::new();
            for op in ["add", "update", "delete"] {
                for (table, rows) in page[op].as_object().unwrap() {
                    counted += rows.as_array().unwrap().len();
                    result.insert((op.into(), table.clone()), rows.as_array().unwrap().clone());
                }
            }
            let mut streamed: BTreeMap<(String, String), Vec<Json>> = BTreeMap::new();
            for line in &lines[place..place + counted] {
                let op = line["op"].as_str().unwrap();
                let what = if op == "delete" { &line["key"] } else { &line["row"] };
                let list = streamed.entry((op.into(), line["table"].as_str().unwrap().into())).or_default();
                list.push(what.clone());
            }
            assert_eq!(streamed, result, "{query}");
            place += counted;
            assert_eq!(page["type"], end["type"]);
            assert_eq!(page["version"], end["version"]);
            match page["next"].as_str() {
                Some(next) => path = format!("/changes?next={next}&limit=77"),
                None => {
                    assert_eq!(page["digests"], end["digests"]);
                    break;
                }
            }
        }
        assert_eq!(place, lines.len(), "{query}");
    }
    let refused =
        world.call(&a, Method::GET, "/changes?since=77777", &[("accept", "application/x-ndjson")], None);
    refused.problem(410, "cursor_expired");
}

/// Goal: both engines behave alike. Method: every test of this file once more, over PostgreSQL.
#[test]
fn again_on_postgres() {
    support::engine::run_again_on_postgres(module_path!());
}

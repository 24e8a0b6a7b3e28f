//! Searches by key: every bound of each, against a model that has no index.

use rollcall::storage::FeedPosition;

use super::*;

/// Keys of the rows of `parents`: with gaps, neighbours, and both ends of what a key may be.
const HELD: [u128; 7] = [0, 2, 4, 5, 8, 9, u128::MAX];
/// Of these the deleted ones.
const BURIED: [u128; 2] = [4, 9];
/// Keys to search for: the stored ones, and their neighbours on both sides.
const ASKED: [u128; 12] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, u128::MAX];

fn furnish(ground: &Ground) {
    ground.write(owner(1), &HELD.map(|n| (n, "x")));
    for n in BURIED {
        ground.bury(owner(1), n);
    }
    // Rows of another owner never interfere.
    ground.write(owner(2), &ASKED.map(|n| (n, "y")));
}

fn live() -> Vec<RowKey> {
    HELD.iter().filter(|n| !BURIED.contains(n)).map(|n| key(*n)).collect()
}

/// Goal: a key is found exactly if it is stored, whatever was searched for before it. Method: every list of
/// one to three keys, since an engine may use one search for the next.
#[test]
fn load_finds_what_is_held_and_nothing_else() {
    on_every_engine(|ground| {
        furnish(ground);
        let table = ground.table("parents");
        let lists = ASKED.iter().flat_map(|a| {
            let two = ASKED.iter().flat_map(move |b| {
                std::iter::once(vec![*a, *b]).chain(ASKED.iter().map(move |c| vec![*a, *b, *c]))
            });
            std::iter::once(vec![*a]).chain(two)
        });
        let lists: Vec<Vec<u128>> = lists.collect();
        ground
            .storage
            .read(owner(1), |txn| {
                for list in &lists {
                    let keys: Vec<RowKey> = list.iter().map(|n| key(*n)).collect();
                    let found = txn.load(table, &keys)?;
                    let result: Vec<Option<bool>> =
                        found.iter().map(|row| row.as_ref().map(Stored::is_tombstone)).collect();
                    let expected: Vec<Option<bool>> =
                        list.iter().map(|n| HELD.contains(n).then(|| BURIED.contains(n))).collect();
                    assert_eq!(result, expected, "{list:?}");
                }
                Ok::<_, StorageError>(())
            })
            .unwrap();
    });
}

/// Goal: pages of the manifest leave out no row and repeat none. Method: every beginning, every length.
#[test]
fn pages_begin_and_end_where_they_should() {
    on_every_engine(|ground| {
        furnish(ground);
        let table = ground.table("parents");
        let beginnings = std::iter::once(None).chain(ASKED.iter().map(|n| Some(key(*n))));
        ground
            .storage
            .read(owner(1), |txn| {
                for after in beginnings.clone() {
                    let rest: Vec<RowKey> =
                        live().into_iter().filter(|key| after.is_none_or(|after| *key > after)).collect();
                    for places in 0..=rest.len() + 2 {
                        let mut result = Vec::new();
                        txn.manifest(table, after, places, &mut |key, _| result.push(key))?;
                        assert_eq!(result, rest[..places.min(rest.len())], "{after:?} {places}");
                        let nth = txn.nth_after(table, after, places as u64)?;
                        let expected = places.checked_sub(1).and_then(|place| rest.get(place)).copied();
                        assert_eq!(nth, expected, "{after:?} {places}");
                    }
                }
                Ok::<_, StorageError>(())
            })
            .unwrap();
    });
}

/// Goal: a feed that continues after any row returns each later row once. Method: changes of several versions
/// and tables, from every position to every end.
#[test]
fn changes_begin_and_end_where_they_should() {
    on_every_engine(|ground| {
        let (parents, children) = (ground.table("parents"), ground.table("children"));
        let mut all = Vec::new();
        for (n, keys) in [(1, [1, 4, 6]), (2, [2, 5, 7]), (3, [3, 8, 9])] {
            ground
                .storage
                .write(owner(1), |txn| {
                    let version = txn.state().version.next();
                    let rows = keys.map(|n| (key(n), parent(version, "x")));
                    txn.put(parents, &by_reference(&rows))?;
                    let rows = keys.map(|n| (key(n), child(version, None, None)));
                    txn.put(children, &by_reference(&rows))?;
                    advance(txn, version)?;
                    let of = |table: TableId| keys.map(|n| (version, table, key(n)));
                    all.extend(of(children).into_iter().chain(of(parents)));
                    Ok::<_, StorageError>(())
                })
                .unwrap();
            assert_eq!(all.len(), n * 6);
        }
        ground.write(owner(2), &[(1, "y"), (4, "y")]);
        let result = |after: FeedPosition, until: Version| {
            let mut result = Vec::new();
            ground
                .storage
                .read(owner(1), |txn| {
                    txn.changes(after, until, &mut |table, key, row| {
                        result.push((row.version, table, key));
                        true
                    })
                })
                .unwrap();
            result
        };
        let newest = ground.state(owner(1)).version;
        let everything = result(FeedPosition { version: Version(0), within: None }, newest);
        // The order of the tables is the engine's; it is the same in every version, and the same each time.
        assert_eq!(everything.len(), all.len());
        let mut sorted = everything.clone();
        sorted.sort_by_key(|(version, table, key)| (*version, *table != everything[0].1, *key));
        assert_eq!(everything, sorted);
        all.sort_unstable();
        sorted.sort_unstable();
        assert_eq!(sorted, all);

        let versions: Vec<Version> = (0..=newest.0 + 1).map(Version).collect();
        for until in &versions {
            let below = |rows: &[(Version, TableId, RowKey)]| -> Vec<_> {
                rows.iter().filter(|(version, ..)| version <= until).copied().collect()
            };
            for (place, (version, table, key)) in everything.iter().enumerate() {
                let mark = FeedPosition { version: *version, within: Some((*table, *key)) };
                assert_eq!(result(mark, *until), below(&everything[place + 1..]), "{mark:?} {until}");
            }
            for version in &versions {
                let rest: Vec<_> = everything.iter().filter(|(of, ..)| of > version).copied().collect();
                let mark = FeedPosition { version: *version, within: None };
                assert_eq!(result(mark, *until), below(&rest), "{mark:?} {until}");
            }
        }
    });
}

/// Goal: references are found exactly. Method: parents with none, one and several children, and neighbours of theirs.
#[test]
fn referring_finds_as_many_as_there_are() {
    on_every_engine(|ground| {
        let (parents, children) = (ground.table("parents"), ground.table("children"));
        let of = |parent: u128| match parent {
            1 => vec![10, 11, 12],
            3 => vec![20],
            u128::MAX => vec![30, u128::MAX],
            _ => Vec::new(),
        };
        for who in [1, 2] {
            ground
                .storage
                .write(owner(who), |txn| {
                    let version = txn.state().version.next();
                    let rows = [0, 1, 2, 3, 4, u128::MAX].map(|n| (key(n), parent(version, "x")));
                    txn.put(parents, &by_reference(&rows))?;
                    for parent in [1, 3, u128::MAX] {
                        let rows: Vec<_> = of(parent)
                            .iter()
                            .map(|n| (key(*n), child(version, Some(parent), None)))
                            .collect();
                        txn.put(children, &by_reference(&rows))?;
                    }
                    advance(txn, version)
                })
                .unwrap();
        }
        for parent in [0, 1, 2, 3, 4, 5, u128::MAX - 1, u128::MAX] {
            for most in 0..5 {
                let mut found = ground
                    .storage
                    .read(owner(1), |txn| txn.referring(children, 0, key(parent), most))
                    .unwrap();
                found.sort_unstable();
                let expected: Vec<RowKey> = of(parent).iter().map(|n| key(*n)).collect();
                assert_eq!(found.len(), expected.len().min(most), "{parent} {most}");
                assert!(found.iter().all(|key| expected.contains(key)), "{parent} {most}");
            }
        }
        // All parents at once, each with a bound of its own.
        let parents = [3, u128::MAX, 5, 1, 0].map(key);
        for shift in 0..4 {
            let asked: Vec<_> =
                parents.iter().enumerate().map(|(n, parent)| (*parent, (n + shift) % 4)).collect();
            let found = ground.storage.read(owner(1), |txn| txn.referring_each(children, 0, &asked)).unwrap();
            assert_eq!(found.len(), asked.len());
            for ((parent, most), found) in asked.iter().zip(found) {
                let expected: Vec<RowKey> = of(parent.0.as_u128()).iter().map(|n| key(*n)).collect();
                assert_eq!(found.len(), expected.len().min(*most), "{parent} {most}");
                assert!(found.iter().all(|key| expected.contains(key)), "{parent} {most}");
            }
        }
    });
}

/// Goal: no query of conflicts reads more of them than a page returns. Method: PostgreSQL itself counts the
/// entries of each index; each query runs often enough for a generic plan.
#[test]
fn conflicts_are_found_by_an_index_whatever_is_asked() {
    const TIMES: i64 = 8;
    const AT_ONCE: i64 = 25;
    if !Engine::has_plans() {
        return;
    }
    let mut store = Store::of(Engine::Postgres);
    let storage = start(&store).unwrap();
    let parents = Schema::parse(SCHEMA).unwrap().table("parents").unwrap().id;
    storage.write(owner(1), |_| Ok::<_, StorageError>(())).unwrap();
    store.look();
    // Every second conflict is of one table, and every tenth of one key.
    store.sql(&format!(
        "INSERT INTO rollcall_conflict (owner, id, at, tbl, key, policy, resolution, stored_at, stored_by, incoming_at, \
         incoming_by) SELECT '{}', md5('c' || n)::uuid, n, t.id, lpad(to_hex(n % 10), 32, '0')::uuid, 'newest', 'kept', \
         0, '{}', 0, '{}' FROM generate_series(1, 20000) n \
         JOIN rollcall_table t ON (t.name = 'parents') = (n % 2 = 0) AND t.name <> 'things'",
        owner(1).0,
        device(1).0,
        device(2).0
    ));
    store.sql("ANALYZE rollcall_conflict");
    let (table, key) = (Some(parents), Some(key(4)));
    for (table, key) in [(None, None), (table, None), (None, key), (table, key)] {
        let after = Some((Timestamp::from_ms(10_000), Uuid::nil()));
        let wanted = WantedConflicts { table, key, after, rows_max: 5, entries_max: 100, bytes_max: 1 << 20 };
        for _ in 0..TIMES {
            let page = storage.read(owner(1), |txn| txn.conflicts(&wanted)).unwrap();
            assert_eq!(page.conflicts.len(), 5, "{table:?} {key:?}");
            assert!(page.conflicts.iter().all(|one| key.is_none_or(|key| one.key == key)));
            assert!(page.conflicts.iter().all(|one| table.is_none_or(|table| one.table == table)));
        }
    }
    drop(storage); // a connection's counts are known once it has ended
    let count = "SELECT coalesce(sum(idx_tup_read) FILTER (WHERE indexrelname = 'rollcall_conflict_at'), 0)::bigint, \
         coalesce(sum(idx_tup_read) FILTER (WHERE indexrelname = 'rollcall_conflict_of_table'), 0)::bigint, \
         coalesce(sum(idx_tup_read) FILTER (WHERE indexrelname = 'rollcall_conflict_of_key'), 0)::bigint, \
         (SELECT seq_tup_read FROM pg_stat_user_tables WHERE relname = 'rollcall_conflict') \
         FROM pg_stat_user_indexes";
    let begun = std::time::Instant::now();
    loop {
        let [all, of_table, of_key, one_by_one] = store.numbers::<4>(count);
        assert!(
            all <= TIMES * AT_ONCE
                && of_table <= TIMES * AT_ONCE
                && of_key <= 2 * TIMES * AT_ONCE
                && one_by_one == 0,
            "{all} {of_table} {of_key} {one_by_one}"
        );
        if [all, of_table, of_key].iter().all(|read| *read >= TIMES * 5) {
            return;
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "{all} {of_table} {of_key} {one_by_one}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

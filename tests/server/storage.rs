//! The contract of `rollcall_core::storage`, on every engine.

use rollcall_testkit::engine;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use rollcall::model::{
    Claim, DeviceId, EarlierState, Lifetime, Owner, RowKey, Stored, Timestamp, Value, Version,
};
use rollcall::schema::{Schema, TableId};
use rollcall::storage::accounts::{Device, User};
use rollcall::storage::{
    Leases, Outcome, OwnerState, ReadTxn, Storage, StorageError, WantedConflicts, WriteTxn,
};
use uuid::Uuid;

use engine::{Engine, Store};

mod census;
mod due;
mod group;
mod history;
mod hooks;
mod members;
mod pages;
mod plans;
mod quota;
mod searches;
mod upgrades;

const SCHEMA: &str = r#"
[table.children]
key = "id"
[table.children.columns]
parent = { type = "uuid", references = "parents" }
next = { type = "uuid", references = "children" }

[table.parents]
key = "id"
[table.parents.columns]
title = "text"

[table.things]
key = "id"
[table.things.columns]
text = "text"
whole = "integer"
real = "real"
exact = "decimal"
flag = "boolean"
other = "uuid"
at = "timestamp"
day = "date"
extra = "json"
bytes = "blob"
"#;

/// Long enough for a turn on a busy machine with a slow disk.
const BUSY_WAIT: Duration = Duration::from_secs(60);

/// Runs a case on each engine; a failure names the engine.
fn on_every_engine(case: impl Fn(&Ground)) {
    on_every_engine_waiting(BUSY_WAIT, case);
}

/// - `busy_wait`: how long a writer waits for its turn.
fn on_every_engine_waiting(busy_wait: Duration, case: impl Fn(&Ground)) {
    for engine in Engine::all() {
        let store = Store::of(engine);
        let storage = start_waiting(&store, busy_wait).unwrap();
        let ground = Ground { store, storage, schema: Schema::parse(SCHEMA).unwrap() };
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| case(&ground))) {
            eprintln!("on the engine {}", engine.name());
            std::panic::resume_unwind(panic);
        }
    }
}

fn start(store: &Store) -> Result<Arc<dyn Storage>, String> {
    start_waiting(store, BUSY_WAIT)
}

fn start_waiting(store: &Store, busy_wait: Duration) -> Result<Arc<dyn Storage>, String> {
    let schema = Arc::new(Schema::parse(SCHEMA).unwrap());
    store.serve(&schema, busy_wait, Timestamp::from_ms(0), Arc::default())
}

fn first_fence(storage: &dyn Storage) -> Option<u64> {
    match storage.leases() {
        Leases::InMemory(fence) => Some(fence.0),
        Leases::Shared(_) => None,
    }
}

struct Ground {
    storage: Arc<dyn Storage>,
    store: Store,
    schema: Schema,
}

impl Ground {
    fn table(&self, name: &str) -> TableId {
        self.schema.table(name).unwrap().id
    }

    /// Writes live parents with these keys and titles, under the next version.
    fn write(&self, owner: Owner, rows: &[(u128, &str)]) -> Version {
        let table = self.table("parents");
        self.storage
            .write(owner, |txn| {
                let version = txn.state().version.next();
                let rows: Vec<_> = rows.iter().map(|(n, title)| (key(*n), parent(version, title))).collect();
                txn.put(table, &by_reference(&rows))?;
                advance(txn, version)?;
                Ok::<_, StorageError>(version)
            })
            .unwrap()
    }

    fn bury(&self, owner: Owner, n: u128) -> Version {
        let table = self.table("parents");
        self.storage
            .write(owner, |txn| {
                let version = txn.state().version.next();
                txn.put(table, &[(key(n), &tombstone(version))])?;
                let mut state = OwnerState { version, ..txn.state() };
                state.past.tombstones += 1;
                txn.advance(state, &[], Timestamp::from_ms(0))?;
                Ok::<_, StorageError>(version)
            })
            .unwrap()
    }

    fn titles(&self, owner: Owner) -> Vec<(RowKey, String)> {
        self.storage.read(owner, |txn| Ok::<_, StorageError>(self.titles_in(txn))).unwrap()
    }

    fn titles_in(&self, txn: &mut dyn ReadTxn) -> Vec<(RowKey, String)> {
        let table = self.table("parents");
        let mut keys = Vec::new();
        txn.manifest(table, None, usize::MAX, &mut |key, _| keys.push(key)).unwrap();
        let rows = txn.load(table, &keys).unwrap();
        keys.into_iter().zip(rows).map(|(key, row)| (key, title_of(&row.unwrap()))).collect()
    }

    fn state(&self, owner: Owner) -> OwnerState {
        self.storage.read(owner, |txn| Ok::<_, StorageError>(txn.state())).unwrap()
    }

    fn load(&self, owner: Owner, table: &str, keys: &[u128]) -> Vec<Option<Stored>> {
        let keys: Vec<_> = keys.iter().map(|n| key(*n)).collect();
        self.storage.read(owner, |txn| txn.load(self.table(table), &keys)).unwrap()
    }
}

fn owner(n: u128) -> Owner {
    Owner(Uuid::from_u128(n))
}

fn key(n: u128) -> RowKey {
    RowKey(Uuid::from_u128(n))
}

fn device(n: u128) -> DeviceId {
    DeviceId(Uuid::from_u128(n))
}

fn row(version: Version, values: Option<Vec<Value>>) -> Stored {
    Stored {
        version,
        created: version,
        last_update: Timestamp::from_ms(1_000),
        made_at: None,
        claim: Claim::default(),
        made_by: device(1),
        changed_by: device(1),
        lifetimes: Vec::new(),
        aware_devices: Vec::new(),
        values,
    }
}

fn parent(version: Version, title: &str) -> Stored {
    row(version, Some(vec![Value::Text(title.into())]))
}

fn tombstone(version: Version) -> Stored {
    row(version, None)
}

fn child(version: Version, parent: Option<u128>, next: Option<u128>) -> Stored {
    let reference = |n: Option<u128>| n.map_or(Value::Null, |n| Value::Uuid(Uuid::from_u128(n)));
    row(version, Some(vec![reference(parent), reference(next)]))
}

fn title_of(row: &Stored) -> String {
    match &row.values.as_ref().unwrap()[..] {
        [Value::Text(title)] => title.clone(),
        other => panic!("{other:?}"),
    }
}

fn by_reference(rows: &[(RowKey, Stored)]) -> Vec<(RowKey, &Stored)> {
    rows.iter().map(|(key, row)| (*key, row)).collect()
}

fn count(txn: &mut dyn ReadTxn, table: TableId) -> Result<usize, StorageError> {
    let mut rows = 0;
    txn.manifest(table, None, usize::MAX, &mut |_, _| rows += 1)?;
    Ok(rows)
}

fn advance(txn: &mut dyn WriteTxn, version: Version) -> Result<(), StorageError> {
    let state = txn.state();
    txn.advance(OwnerState { version, ..state }, &[], Timestamp::from_ms(0))
}

#[test]
fn an_owner_never_seen_has_nothing_and_the_first_version() {
    on_every_engine(|ground| {
        let nothing = OwnerState::new(Version(1));
        let (things, children) = (ground.table("things"), ground.table("children"));
        for _ in 0..2 {
            assert_eq!(ground.state(owner(1)), nothing);
            assert_eq!(ground.load(owner(1), "things", &[1, 2]), [None, None]);
            ground
                .storage
                .read(owner(1), |txn| {
                    assert_eq!(count(txn, things)?, 0);
                    assert_eq!(txn.referring(children, 0, key(1), 9)?, []);
                    txn.manifest(things, None, 9, &mut |_, _| panic!("a row of nobody"))
                })
                .unwrap();
        }
        // A write that is undone does not make the owner; one that writes nothing may.
        let undone: Result<(), StorageError> = ground.storage.write(owner(1), |txn| {
            assert_eq!(OwnerState { seed: None, ..txn.state() }, nothing);
            Err(StorageError::Busy)
        });
        assert!(matches!(undone, Err(StorageError::Busy)));
        assert_eq!(ground.state(owner(1)), nothing);
        ground.storage.write(owner(1), |_| Ok::<_, StorageError>(())).unwrap();
        assert_eq!(OwnerState { seed: None, ..ground.state(owner(1)) }, nothing);
    });
}

/// Method: a reader begins, a writer commits, the reader reads again, in a fixed order.
#[test]
fn a_reader_sees_one_snapshot() {
    on_every_engine(|ground| {
        let first = ground.write(owner(1), &[(1, "old"), (2, "goes")]);
        let before = ground.titles(owner(1));
        ground
            .storage
            .read(owner(1), |txn| {
                assert_eq!(txn.state().version, first);
                let (result, done) = channel();
                std::thread::scope(|scope| {
                    scope.spawn(|| {
                        ground.write(owner(1), &[(1, "new"), (3, "comes")]);
                        ground.bury(owner(1), 2);
                        result.send(()).unwrap();
                    });
                    let waited = done.recv_timeout(Duration::from_secs(10));
                    waited.expect("a writer waits for a reader");
                });
                assert_eq!(txn.state().version, first);
                assert_eq!(ground.titles_in(txn), before);
                assert_eq!(count(txn, ground.table("parents"))?, 2);
                Ok::<_, StorageError>(())
            })
            .unwrap();
        let after = [(key(1), "new".to_owned()), (key(3), "comes".to_owned())];
        assert_eq!(ground.titles(owner(1)), after);
        assert_eq!(ground.state(owner(1)).version, first.next().next());
    });
}

/// Goal: an owner that writes without end leaves connections for the others, where several servers share the database.
/// Method: one write of it does not end, and more wait for it than there are connections; another owner reads and writes.
#[test]
fn an_owner_that_waits_for_itself_keeps_nobody_else_out() {
    if !Engine::all().contains(&Engine::Postgres) {
        return;
    }
    let store = Store::of(Engine::Postgres);
    let ground = Ground { storage: start(&store).unwrap(), store, schema: Schema::parse(SCHEMA).unwrap() };
    ground.write(owner(1), &[(1, "x")]);
    let (begun, (end, ended)) = (std::sync::Barrier::new(2), channel::<()>());
    let ended = std::sync::Mutex::new(ended);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            ground.storage.write(owner(1), |_| {
                begun.wait();
                let _ = ended.lock().unwrap().recv();
                Ok::<_, StorageError>(())
            })
        });
        begun.wait();
        let waiting: Vec<_> = (0..20)
            .map(|_| scope.spawn(|| ground.storage.write(owner(1), |_| Ok::<_, StorageError>(()))))
            .collect();
        std::thread::sleep(Duration::from_millis(500));
        let before = std::time::Instant::now();
        let others = ground.storage.write(owner(2), |_| Ok::<_, StorageError>(()));
        let read = ground.storage.read(owner(2), |txn| Ok::<_, StorageError>(txn.state()));
        let taken = before.elapsed();
        end.send(()).unwrap();
        assert!(others.is_ok() && read.is_ok(), "after {taken:?}");
        assert!(taken < BUSY_WAIT / 2, "{taken:?}");
        assert!(waiting.into_iter().map(|one| one.join().unwrap()).any(|done| done.is_ok()));
    });
}

#[test]
fn work_that_ends_badly_leaves_nothing() {
    on_every_engine(|ground| {
        let version = ground.write(owner(1), &[(1, "stays")]);
        let parents = ground.table("parents");
        let half = |txn: &mut dyn WriteTxn| -> Result<(), StorageError> {
            let next = txn.state().version.next();
            txn.put(parents, &[(key(1), &tombstone(next)), (key(2), &parent(next, "half"))])?;
            advance(txn, next)?;
            assert_eq!(txn.load(parents, &[key(2)])?[0].as_ref().map(title_of), Some("half".into()));
            assert_eq!(txn.state().version, next, "the work itself sees what it did");
            Ok(())
        };
        let untouched = |how: &str| {
            assert_eq!(ground.titles(owner(1)), [(key(1), "stays".to_owned())], "after {how}");
            assert_eq!(ground.state(owner(1)).version, version, "after {how}");
        };
        let error: Result<(), StorageError> = ground.storage.write(owner(1), |txn| {
            half(txn)?;
            Err(StorageError::Full("for the test".into()))
        });
        assert!(matches!(error, Err(StorageError::Full(_))));
        untouched("an error of the work");

        ground.storage.run_write(owner(1), &mut |txn| half(txn).map(|()| Outcome::Rollback)).unwrap();
        untouched("an undo");

        let error = ground.storage.run_write(owner(1), &mut |txn| {
            half(txn)?;
            Err(StorageError::Busy)
        });
        assert!(matches!(error, Err(StorageError::Busy)));
        untouched("an error of storage");

        let panicked = catch_unwind(AssertUnwindSafe(|| {
            ground.storage.write(owner(1), |txn| {
                half(txn)?;
                if true {
                    panic!("in the middle");
                }
                Ok::<_, StorageError>(())
            })
        }));
        assert!(panicked.is_err());
        untouched("a panic");

        let panicked = catch_unwind(AssertUnwindSafe(|| {
            ground.storage.read(owner(1), |txn| {
                count(txn, parents)?;
                if true {
                    panic!("in the middle");
                }
                Ok::<_, StorageError>(())
            })
        }));
        assert!(panicked.is_err());
        for n in 2..12 {
            ground.write(owner(1), &[(n, "next")]); // the connections are as good as before
            assert_eq!(ground.titles(owner(1)).len(), n as usize);
        }
    });
}

/// A reference that leads nowhere is the caller's fault; still nothing of it may stay.
#[test]
fn what_breaks_a_reference_is_undone() {
    on_every_engine(|ground| {
        ground.write(owner(1), &[(1, "x")]);
        let children = ground.table("children");
        let broken = ground.storage.write(owner(1), |txn| {
            let next = txn.state().version.next();
            txn.put(children, &[(key(1), &child(next, Some(99), None))])?;
            advance(txn, next)
        });
        assert!(matches!(broken, Err(StorageError::Engine(_))), "{broken:?}");
        assert_eq!(ground.load(owner(1), "children", &[1]), [None]);
        ground.write(owner(1), &[(2, "goes on")]);
    });
}

#[test]
fn owners_are_apart() {
    on_every_engine(|ground| {
        let (one, two) = (owner(1), owner(2));
        ground.write(one, &[(1, "one's"), (2, "one's")]);
        ground.write(two, &[(1, "two's")]);
        ground.bury(two, 3);
        assert_eq!(ground.titles(one), [(key(1), "one's".to_owned()), (key(2), "one's".to_owned())]);
        assert_eq!(ground.titles(two), [(key(1), "two's".to_owned())]);
        assert_eq!(ground.load(one, "parents", &[3]), [None]);
        assert_eq!((ground.state(one).version, ground.state(two).version), (Version(2), Version(3)));
        ground.bury(one, 1);
        assert_eq!(ground.titles(two), [(key(1), "two's".to_owned())]);

        // A reference to another owner's row is a reference to nothing.
        let children = ground.table("children");
        let stolen = ground.storage.write(two, |txn| {
            let next = txn.state().version.next();
            txn.put(children, &[(key(1), &child(next, Some(2), None))])
        });
        assert!(stolen.is_err());
        ground
            .storage
            .write(one, |txn| {
                let next = txn.state().version.next();
                txn.put(children, &[(key(1), &child(next, Some(2), None))])?;
                advance(txn, next)
            })
            .unwrap();
        let referring =
            |owner| ground.storage.read(owner, |txn| txn.referring(children, 0, key(2), 9)).unwrap();
        assert_eq!((referring(one), referring(two)), (vec![key(1)], vec![]));
        let held = |owner| ground.storage.read(owner, |txn| count(txn, ground.table("parents"))).unwrap();
        assert_eq!((held(one), held(two)), (1, 1));
    });
}

/// Goal: versions are numbered in the order of commits. Method: threads that each read the version and raise it.
#[test]
fn a_writer_holds_its_owner_alone() {
    on_every_engine(|ground| {
        std::thread::scope(|scope| {
            for thread in 0..4_u128 {
                scope.spawn(move || {
                    for round in 0..25 {
                        ground.write(owner(1), &[(thread * 100 + round, "x")]);
                    }
                });
            }
        });
        assert_eq!(ground.state(owner(1)).version, Version(101));
        let keys: Vec<_> = (0..4).flat_map(|thread| (0..25).map(move |round| thread * 100 + round)).collect();
        let mut versions: Vec<_> =
            ground.load(owner(1), "parents", &keys).into_iter().map(|row| row.unwrap().version).collect();
        versions.sort_unstable();
        assert_eq!(versions, (2..=101).map(Version).collect::<Vec<_>>());
    });
}

/// Goal: an owner whose row another session has written in spite of the lock, as when its shard moves, is
/// never overwritten. Method: a trigger raises its version once in the middle of a write.
#[test]
fn a_write_that_was_overtaken_runs_again() {
    // Citus takes no trigger; there it is seen when shards move.
    if !Engine::all().contains(&Engine::Postgres) || engine::pg::citus_url().is_some() {
        return;
    }
    let mut store = Store::of(Engine::Postgres);
    let storage = start(&store).unwrap();
    store.look();
    let ground = Ground { store, storage, schema: Schema::parse(SCHEMA).unwrap() };
    ground.write(owner(1), &[(1, "x")]);
    let before = ground.state(owner(1)).version;
    ground.store.sql(
        "CREATE SEQUENCE public.times;
        CREATE FUNCTION public.overtake() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF nextval('public.times') = 1 THEN
                UPDATE rollcall_owner SET version = version + 1 WHERE owner = NEW.owner;
            END IF;
            RETURN NEW;
        END $$;
        CREATE TRIGGER overtake AFTER INSERT ON rollcall_ledger FOR EACH ROW EXECUTE FUNCTION overtake()",
    );
    ground.write(owner(1), &[(2, "y")]);
    assert_eq!(ground.state(owner(1)).version, before.next());
    assert_eq!(ground.store.number("SELECT last_value FROM public.times"), 2, "it ran twice");
}

#[test]
fn a_writer_that_cannot_have_its_turn_is_told_so() {
    on_every_engine_waiting(Duration::from_secs(1), |ground| {
        let (begun, has_begun) = channel();
        let (end, may_end) = channel::<()>();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                ground.storage.write(owner(1), move |_| {
                    begun.send(()).unwrap();
                    may_end.recv().unwrap();
                    Ok::<_, StorageError>(())
                })
            });
            has_begun.recv().unwrap();
            let kept_out = ground.storage.write(owner(1), |_| Ok::<_, StorageError>(()));
            assert!(matches!(kept_out, Err(StorageError::Busy)), "{kept_out:?}");
            ground.state(owner(1)); // readers never wait
            ground.storage.ready().unwrap();
            end.send(()).unwrap();
        });
        ground.write(owner(1), &[(1, "x")]);
    });
}

#[test]
fn load_answers_in_the_order_asked() {
    on_every_engine(|ground| {
        ground.write(owner(1), &[(1, "a"), (2, "b"), (3, "c")]);
        let buried = ground.bury(owner(1), 2);
        let result: Vec<_> = ground
            .load(owner(1), "parents", &[3, 9, 2, 1, 3, 9])
            .into_iter()
            .map(|row| row.map(|row| if row.is_tombstone() { "buried".into() } else { title_of(&row) }))
            .collect();
        let expected = [Some("c"), None, Some("buried"), Some("a"), Some("c"), None];
        assert_eq!(result, expected.map(|title| title.map(str::to_owned)));
        let gone = ground.load(owner(1), "parents", &[2])[0].clone().unwrap();
        assert_eq!(gone, tombstone(buried));
        assert_eq!(ground.load(owner(1), "parents", &[]), []);
    });
}

#[test]
fn the_manifest_goes_by_key() {
    on_every_engine(|ground| {
        let numbers = [5, 1 << 127, 0, u128::MAX, 3, 2];
        ground.write(owner(1), &numbers.map(|n| (n, "x")));
        ground.bury(owner(1), 3);
        let mut expected: Vec<_> = numbers.iter().filter(|n| **n != 3).map(|n| key(*n)).collect();
        expected.sort_unstable();
        let table = ground.table("parents");
        let result = |after, rows_max| {
            let mut keys = Vec::new();
            ground
                .storage
                .read(owner(1), |txn| {
                    txn.manifest(table, after, rows_max, &mut |key, at| {
                        assert_eq!(at, Timestamp::from_ms(1_000));
                        keys.push(key);
                    })
                })
                .unwrap();
            keys
        };
        assert_eq!(result(None, usize::MAX), expected);
        for (place, after) in expected.iter().enumerate() {
            for rows_max in [0, 1, 2, 100] {
                let rest = &expected[place + 1..];
                assert_eq!(
                    result(Some(*after), rows_max),
                    rest[..rest.len().min(rows_max)],
                    "{place} {rows_max}"
                );
            }
        }
        assert_eq!(result(Some(key(3)), 100)[0], key(5), "after a key that is not there");
    });
}

#[test]
fn referring_finds_live_rows_by_key() {
    on_every_engine(|ground| {
        let (parents, children) = (ground.table("parents"), ground.table("children"));
        ground
            .storage
            .write(owner(1), |txn| {
                let v = txn.state().version.next();
                txn.put(parents, &[(key(1), &parent(v, "x")), (key(2), &parent(v, "x"))])?;
                let rows: Vec<_> =
                    (1..=5).map(|n| (key(n), child(v, Some(if n == 4 { 2 } else { 1 }), Some(1)))).collect();
                txn.put(children, &by_reference(&rows))?;
                txn.put(children, &[(key(5), &tombstone(v))])?;
                advance(txn, v)
            })
            .unwrap();
        let referring = |column, to: u128, most| {
            let mut keys =
                ground.storage.read(owner(1), |txn| txn.referring(children, column, key(to), most)).unwrap();
            keys.sort_unstable();
            keys
        };
        assert_eq!(referring(0, 1, 9), [key(1), key(2), key(3)]);
        assert_eq!(referring(0, 1, 2).len(), 2);
        assert_eq!(referring(0, 2, 9), [key(4)]);
        assert_eq!(referring(1, 1, 9), [1, 2, 3, 4].map(key));
        assert_eq!(referring(0, 3, 9), []);
        assert_eq!(referring(0, 1, 0), []);
    });
}

/// Rows that refer to each other within one table, in whatever order they are written and buried.
#[test]
fn rows_of_one_table_may_be_put_in_any_order() {
    on_every_engine(|ground| {
        let children = ground.table("children");
        for (number, order) in [[1, 2, 3], [3, 2, 1], [2, 3, 1], [1, 3, 2]].into_iter().enumerate() {
            let owner = owner(number as u128 + 1);
            ground
                .storage
                .write(owner, |txn| {
                    let v = txn.state().version.next();
                    let rows: Vec<_> =
                        order.iter().map(|n| (key(*n), child(v, None, Some(n % 3 + 1)))).collect();
                    txn.put(children, &by_reference(&rows))?;
                    advance(txn, v)
                })
                .unwrap_or_else(|error| panic!("{order:?}: {error}"));
            ground
                .storage
                .write(owner, |txn| {
                    let v = txn.state().version.next();
                    let rows: Vec<_> = order.iter().map(|n| (key(*n), tombstone(v))).collect();
                    txn.put(children, &by_reference(&rows))?;
                    advance(txn, v)
                })
                .unwrap_or_else(|error| panic!("bury {order:?}: {error}"));
        }
    });
}

#[test]
fn a_row_comes_back_as_it_was_put() {
    on_every_engine(|ground| {
        let things = ground.table("things");
        let full = vec![
            Value::Text("grüße \u{1F600}".into()),
            Value::Integer(i64::MIN),
            Value::Real(-0.1),
            Value::Decimal("-79228162514264337593543.9503".parse().unwrap()),
            Value::Boolean(true),
            Value::Uuid(Uuid::from_u128(7)),
            Value::Timestamp(Timestamp::from_ms(-1)),
            Value::Date(Timestamp::from_ms(0).date()),
            Value::Json(r#"{"a":[null,1]}"#.into()),
            Value::Blob(vec![0, 255]),
        ];
        let stored = |values| Stored {
            version: Version(9),
            created: Version(4),
            last_update: Timestamp::from_ms(-5),
            made_at: Some(Timestamp::from_ms(-6)),
            claim: Claim {
                at: Some(Timestamp::from_ms(7)),
                row_base: Some(Timestamp::from_ms(-8)),
                base: Some(Version(2)),
            },
            made_by: device(3),
            changed_by: device(4),
            lifetimes: vec![Lifetime { made: Version(1), deleted: Version(3) }],
            aware_devices: vec![device(5), device(6)],
            values,
        };
        let rows = [
            (key(1), stored(Some(full.clone()))),
            (key(2), stored(Some(vec![Value::Null; full.len()]))),
            (key(3), stored(None)),
            (
                key(4),
                stored(Some(
                    full.iter()
                        .map(|value| match value {
                            Value::Text(_) => Value::Text(String::new()),
                            Value::Blob(_) => Value::Blob(Vec::new()),
                            other => other.clone(),
                        })
                        .collect(),
                )),
            ),
        ];
        for _ in 0..2 {
            ground.storage.write(owner(1), |txn| txn.put(things, &by_reference(&rows))).unwrap();
            let back = ground.load(owner(1), "things", &[1, 2, 3, 4]);
            assert_eq!(
                back.into_iter().map(Option::unwrap).collect::<Vec<_>>(),
                rows.clone().map(|(_, row)| row)
            );
        }
        // A tombstone in place of a row, and a row in place of a tombstone.
        let swapped = [(key(1), rows[2].1.clone()), (key(3), rows[0].1.clone())];
        ground.storage.write(owner(1), |txn| txn.put(things, &by_reference(&swapped))).unwrap();
        assert_eq!(ground.load(owner(1), "things", &[1, 3]), swapped.map(|(_, row)| Some(row)));
    });
}

#[test]
fn a_restart_keeps_all_and_repeats_no_fence() {
    on_every_engine(|ground| {
        let state = OwnerState {
            horizon: Version(3),
            rows: 1,
            bytes: 12,
            shown_ahead: Version(5),
            ..OwnerState::new(Version(7))
        };
        let store = Store::of(ground.store.engine);
        let (mut fences, mut seeds) = (Vec::new(), Vec::new());
        for started in 0..4 {
            let storage = start(&store).unwrap();
            fences.extend(first_fence(&*storage));
            if started == 0 {
                let write = |txn: &mut dyn WriteTxn| {
                    txn.advance(state, &[], Timestamp::from_ms(0))?;
                    txn.show_ahead(state.shown_ahead)
                };
                storage.write(owner(1), write).unwrap();
            }
            let held = storage.read(owner(1), |txn| Ok::<_, StorageError>(txn.state())).unwrap();
            let due_at = Some(Timestamp::from_ms(Timestamp::DAY_MS));
            assert_eq!(OwnerState { seed: None, ..held }, OwnerState { due_at, ..state });
            seeds.push(held.seed);
        }
        assert!(seeds.iter().all(|seed| seed.is_some() && *seed == seeds[0]), "a seed of its own, for ever");
        assert!(fences.windows(2).all(|pair| pair[1] - pair[0] >= 1 << 20), "{fences:?}");
        assert!(fences.iter().all(|fence| (1..1 << 53).contains(fence)), "{fences:?}");
    });
}

#[test]
fn a_second_server_on_the_same_data_is_refused() {
    on_every_engine(|ground| {
        if ground.store.engine == Engine::Postgres {
            return start(&ground.store).map(drop).expect("servers may share a database");
        }
        let refused = start(&ground.store).err();
        assert!(refused.as_deref().is_some_and(|text| text.contains("another server")), "{refused:?}");
        ground.write(owner(1), &[(1, "goes on")]);
        // It was refused before it changed anything: the fences of the first stay its own.
        let store = Store::of(Engine::Sqlite);
        let first = start(&store).unwrap();
        let fence = first_fence(&*first).unwrap();
        assert!(start(&store).is_err());
        drop(first);
        let second = start(&store).unwrap();
        let apart = first_fence(&*second).unwrap() - fence;
        assert!((1 << 20..1 << 26).contains(&apart), "as far as the seconds between the two starts: {apart}");
    });
}

#[test]
fn accounts_can_be_kept_beside_a_running_server() {
    on_every_engine(|ground| {
        let beside = ground.store.accounts(BUSY_WAIT);
        let served = ground.storage.accounts();
        let user = |n: u128, email: &str| User {
            id: Uuid::from_u128(n),
            email: email.into(),
            password_hash: "hash".into(),
            owner: owner(n),
            is_home: true,
            created_at: Timestamp::from_ms(1),
            verified_at: None,
        };
        assert!(beside.add_user(&user(1, "anna@example.org")).unwrap());
        assert!(!served.add_user(&user(2, "anna@example.org")).unwrap());
        assert_eq!(served.user("anna@example.org").unwrap(), Some(user(1, "anna@example.org")));
        let phone = Device {
            id: device(1),
            user: Uuid::from_u128(1),
            owner: owner(1),
            name: "phone".into(),
            created_at: Timestamp::from_ms(2),
            expires_at: Timestamp::from_ms(3),
        };
        assert!(served.put_device(&phone, &[7; 32]).unwrap());
        assert_eq!(beside.device(&[7; 32]).unwrap(), Some(phone));
        ground.write(owner(1), &[(1, "stays")]);
        assert!(beside.remove_user("anna@example.org", Timestamp::from_ms(9)).unwrap());
        assert_eq!(served.device(&[7; 32]).unwrap(), None, "logged out at once");
        assert_eq!(served.users().unwrap(), []);
        assert_eq!(ground.titles(owner(1)).len(), 1, "the rows stay");
    });
}

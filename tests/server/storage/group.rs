//! Work of many owners at once: it may become durable together, and is each one's own.

use std::sync::Mutex;
use std::sync::mpsc::Sender;

use rollcall::storage::{StorageResult, WriteJob};

use super::*;

/// A job that reports how it ended.
struct Reporting<W> {
    work: W,
    report: Sender<StorageResult<()>>,
}

impl<W: FnMut(&mut dyn WriteTxn) -> StorageResult<Outcome> + Send> WriteJob for Reporting<W> {
    fn run(&mut self, txn: &mut dyn WriteTxn) -> StorageResult<Outcome> {
        (self.work)(txn)
    }

    fn finish(self: Box<Self>, result: StorageResult<()>) {
        let _ = self.report.send(result);
    }
}

fn enqueue<W>(ground: &Ground, owner: Owner, work: W) -> StorageResult<()>
where
    W: FnMut(&mut dyn WriteTxn) -> StorageResult<Outcome> + Send + 'static,
{
    let (report, reported) = channel();
    ground.storage.enqueue_write(owner, Box::new(Reporting { work, report }));
    reported.recv().expect("a job is told its result")
}

/// Goal: failed work leaves nothing and affects no other work; what was acknowledged is there, under versions
/// without a gap. Method: threads of eight owners, two for each, whose work ends in every way.
#[test]
fn work_of_many_owners_at_once_is_each_ones_own() {
    on_every_engine(|ground| {
        let (parents, children) = (ground.table("parents"), ground.table("children"));
        let moved = Arc::new(Mutex::new(Vec::new()));
        let result = Arc::clone(&moved);
        ground
            .storage
            .on_moved(Arc::new(move |owner, version| result.lock().unwrap().push((owner, version))));
        let kept: Vec<(Owner, u128, Version)> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..16_u128)
                .map(|thread| {
                    scope.spawn(move || {
                        let owner = owner(thread % 8 + 1);
                        let mut kept = Vec::new();
                        for round in 0..21 {
                            let n = thread * 1_000 + round;
                            let written = Arc::new(Mutex::new(Version(0)));
                            let noted = Arc::clone(&written);
                            let mut work = move |txn: &mut dyn WriteTxn| {
                                let next = txn.state().version.next();
                                let rows = [(key(n), parent(next, "x"))];
                                txn.put(parents, &by_reference(&rows))?;
                                advance(txn, next)?;
                                *noted.lock().unwrap() = next;
                                match (thread + round) % 7 {
                                    0 => Ok(Outcome::Rollback),
                                    1 => Err(StorageError::Busy),
                                    // Without the hook, whose backtrace takes longer than all the rest and holds the writer.
                                    2 if round % 3 == 0 => resume_unwind(Box::new("for the test")),
                                    3 if round % 3 == 0 => {
                                        let dangling = [(key(n), child(next, Some(999_999), None))];
                                        txn.put(children, &by_reference(&dangling))?;
                                        Ok(Outcome::Commit)
                                    }
                                    _ => Ok(Outcome::Commit),
                                }
                            };
                            // Every other thread waits itself, the others queue a job.
                            let ended = catch_unwind(AssertUnwindSafe(|| match thread % 2 {
                                0 => ground.storage.run_write(owner, &mut work),
                                _ => enqueue(ground, owner, work),
                            }));
                            let written = *written.lock().unwrap();
                            let is_kept = match (thread + round) % 7 {
                                0 => {
                                    assert!(matches!(ended, Ok(Ok(()))));
                                    false
                                }
                                1 => {
                                    assert!(matches!(ended, Ok(Err(StorageError::Busy))));
                                    false
                                }
                                2 if round % 3 == 0 => {
                                    // A job may panic on a thread that is not its sender's.
                                    assert!(!matches!(ended, Ok(Ok(()))), "{ended:?}");
                                    false
                                }
                                3 if round % 3 == 0 => {
                                    assert!(matches!(ended, Ok(Err(StorageError::Engine(_)))), "{ended:?}");
                                    false
                                }
                                _ => {
                                    assert!(matches!(ended, Ok(Ok(()))), "{ended:?}");
                                    true
                                }
                            };
                            if is_kept {
                                let held = ground.load(owner, "parents", &[n]);
                                assert_eq!(held[0].as_ref().map(|row| row.version), Some(written));
                                kept.push((owner, n, written));
                            }
                        }
                        kept
                    })
                })
                .collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        });
        for n in 1..=8 {
            let owner = owner(n);
            let mut versions: Vec<_> =
                kept.iter().filter(|kept| kept.0 == owner).map(|kept| kept.2).collect();
            versions.sort_unstable();
            let expected: Vec<_> = (2..2 + versions.len() as u64).map(Version).collect();
            assert_eq!(versions, expected, "no version was given twice, none is missing");
            assert_eq!(ground.state(owner).version, *versions.last().unwrap());
            assert_eq!(ground.titles(owner).len(), versions.len(), "and nothing else is there");
            let until = std::time::Instant::now() + Duration::from_secs(10);
            let heard = || -> Vec<_> {
                let moved = moved.lock().unwrap();
                moved.iter().filter(|moved| moved.0 == owner).map(|moved| moved.1).collect()
            };
            while heard().last() != expected.last() && std::time::Instant::now() < until {
                std::thread::yield_now();
            }
            if ground.store.engine == Engine::Sqlite {
                assert_eq!(heard(), expected);
            }
            // Commits of one owner in quick succession may be reported as one, but none late.
            assert!(heard().is_sorted() && heard().last() == expected.last(), "{:?}", heard());
        }
    });
}

/// Large writes must neither delay those that came before nor lose their own rows.
#[test]
fn work_with_many_rows_goes_well_beside_small_work() {
    on_every_engine(|ground| {
        let parents = ground.table("parents");
        std::thread::scope(|scope| {
            for thread in 0..6_u128 {
                scope.spawn(move || {
                    for round in 0..10 {
                        let owner = owner(thread);
                        if thread % 3 > 0 {
                            ground.write(owner, &[(round, "small")]);
                            continue;
                        }
                        let keys: Vec<_> = (0..300).map(|n| key(round * 1_000 + n)).collect();
                        ground
                            .storage
                            .write(owner, |txn| {
                                assert!(txn.load(parents, &keys)?.iter().all(Option::is_none));
                                let next = txn.state().version.next();
                                let rows: Vec<_> =
                                    keys.iter().map(|key| (*key, parent(next, "much"))).collect();
                                txn.put(parents, &by_reference(&rows))?;
                                advance(txn, next)
                            })
                            .unwrap();
                    }
                });
            }
        });
        for thread in 0..6 {
            let rows = if thread % 3 > 0 { 10 } else { 3_000 };
            assert_eq!(ground.titles(owner(thread)).len(), rows);
            assert_eq!(ground.state(owner(thread)).version, Version(11));
        }
    });
}

//! What an engine knows without I/O, and what it reports by itself.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use rollcall::storage::{PastBytes, PurgeTerms};

use super::*;

/// An engine that cannot know returns `None`; one that knows is right.
fn assert_known(ground: &Ground, owner: Owner, expected: OwnerState) {
    if let Some(known) = ground.storage.known_state(owner) {
        assert_eq!(known, expected);
    }
}

#[test]
fn what_is_known_of_an_owner_is_never_old() {
    on_every_engine(|ground| {
        assert_eq!(ground.storage.known_state(owner(1)), None, "nobody asked yet");
        for n in 1..20 {
            ground.write(owner(1), &[(n, "x")]);
            let known = ground.storage.known_state(owner(1));
            let state = ground.state(owner(1));
            assert!(known.is_none_or(|known| known == state), "after a write");
            assert_known(ground, owner(1), state);
            assert_known(ground, owner(2), ground.state(owner(2)));
        }
        let before = ground.state(owner(1));
        ground
            .storage
            .run_write(owner(1), &mut |txn| {
                let next = txn.state().version.next();
                advance(txn, next)?;
                assert_known(ground, owner(1), before);
                Ok(Outcome::Rollback)
            })
            .unwrap();
        assert_known(ground, owner(1), before);
        assert_eq!(ground.state(owner(1)), before);
        if ground.store.engine == Engine::Sqlite {
            assert_eq!(ground.storage.known_state(owner(1)), Some(before), "it answers from memory");
        }
    });
}

/// Goal: the cached state is neither older than what was acknowledged nor older than what anyone has read.
/// Method: a thread writes, one reads, one queries the cache; the last records first what must be known by
/// then.
#[test]
fn what_is_known_keeps_up_with_writers_and_readers() {
    on_every_engine(|ground| {
        let seen = AtomicU64::new(0);
        let done = AtomicBool::new(false);
        let mut known = 0;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for round in 0..150 {
                    let version = ground.write(owner(1), &[(round % 7, "x")]);
                    seen.fetch_max(version.0, Ordering::SeqCst);
                }
                done.store(true, Ordering::SeqCst);
            });
            scope.spawn(|| {
                while !done.load(Ordering::SeqCst) {
                    seen.fetch_max(ground.state(owner(1)).version.0, Ordering::SeqCst);
                }
            });
            while !done.load(Ordering::SeqCst) {
                let least = seen.load(Ordering::SeqCst);
                if let Some(state) = ground.storage.known_state(owner(1)) {
                    known += 1;
                    assert!(state.version.0 >= least, "{} is known, {least} was seen", state.version);
                    seen.fetch_max(state.version.0, Ordering::SeqCst);
                }
            }
        });
        assert!(known > 0 || ground.store.engine != Engine::Sqlite, "it never knew anything");
    });
}

/// A command that works on the same data in a process of its own.
#[test]
fn what_is_known_is_not_what_was_before_another_process_wrote() {
    on_every_engine(|ground| {
        ground.write(owner(1), &[(1, "x"), (2, "y")]);
        let version = ground.bury(owner(1), 1);
        let before = ground.state(owner(1));
        assert_known(ground, owner(1), before);
        let late = Timestamp::from_ms(i64::MAX);
        let terms = PurgeTerms {
            now: late,
            tombstones_before: late,
            devices_before: late,
            conflicts_before: late,
            responses_before: late,
            past_bytes_max: 0,
        };
        let beside = ground.store.forgetful(BUSY_WAIT);
        let purged = beside.forget(owner(1), &terms, 10).unwrap();
        assert_eq!(purged.tombstones, 1);
        let until = Instant::now() + Duration::from_millis(10);
        let past = PastBytes { tombstones: 0, ..before.past };
        let after = OwnerState { horizon: version, past, due_at: None, ..before };
        loop {
            let now = Instant::now();
            let known = ground.storage.known_state(owner(1));
            assert!(known.is_none_or(|known| known == after || known == before && now <= until));
            if now > until + Duration::from_millis(5) {
                break;
            }
        }
        assert_eq!(ground.state(owner(1)), after);
        assert_known(ground, owner(1), after);
        // A writer notices without a moment's delay.
        let user = User {
            id: Uuid::from_u128(1),
            email: "anna@example.org".into(),
            password_hash: "hash".into(),
            owner: owner(1),
            is_home: true,
            created_at: Timestamp::from_ms(1),
            verified_at: None,
        };
        assert!(ground.store.accounts(BUSY_WAIT).add_user(&user).unwrap());
        ground.write(owner(2), &[(1, "x")]);
        assert_eq!(ground.storage.known_state(owner(1)), None, "of all that was known nothing is sure");
        assert_known(ground, owner(2), ground.state(owner(2)));
    });
}

#[test]
fn a_move_is_told_once_it_is_durable_and_in_order() {
    on_every_engine(|ground| {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let ledger = Arc::clone(&heard);
        let storage = Arc::downgrade(&ground.storage);
        ground.storage.on_moved(Arc::new(move |owner, version| {
            let storage = storage.upgrade().unwrap();
            let held = storage.read(owner, |txn| Ok::<_, StorageError>(txn.state().version)).unwrap();
            assert!(held >= version, "told of {version} while a reader sees {held}");
            ledger.lock().unwrap().push((owner, version));
        }));
        ground.storage.on_moved(Arc::new(|_, _| panic!("a listener that fails harms nobody")));
        let mut expected = Vec::new();
        for n in 1..4 {
            expected.push((owner(n), ground.write(owner(n), &[(1, "x")])));
        }
        expected.push((owner(1), ground.bury(owner(1), 1)));
        // None of these moves a version.
        ground.storage.write(owner(1), |_| Ok::<_, StorageError>(())).unwrap();
        ground
            .storage
            .run_write(owner(1), &mut |txn| {
                let next = txn.state().version.next();
                advance(txn, next)?;
                Ok(Outcome::Rollback)
            })
            .unwrap();
        let acknowledged = Timestamp::from_ms(1);
        ground.storage.write(owner(1), |txn| txn.acknowledge(device(1), Version(2), acknowledged)).unwrap();
        ground.storage.write(owner(9), |txn| txn.acknowledge(device(1), Version(1), acknowledged)).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..10).map(|_| ground.write(owner(5), &[(1, "x")])).max());
            }
        });
        expected.extend((2..=41).map(|version| (owner(5), Version(version))));
        let until = Instant::now() + Duration::from_secs(10);
        while heard.lock().unwrap().last() != expected.last() && Instant::now() < until {
            std::thread::yield_now();
        }
        let heard = heard.lock().unwrap();
        if ground.store.engine == Engine::Sqlite {
            return assert_eq!(*heard, expected);
        }
        // Commits of one owner in quick succession may be reported as one.
        let mut rest = expected.iter();
        assert!(heard.iter().all(|result| rest.any(|expected| expected == result)), "{heard:?}");
        assert_eq!(heard[..4], expected[..4]);
    });
}

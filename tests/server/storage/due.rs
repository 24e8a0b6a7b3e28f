//! Which owners a purge looks at.

use rollcall::purge;
use rollcall::storage::{DueOwner, PurgeTerms, Purged, StorageResult};
use rollcall_testkit::rng::Rng;

use super::quota::{Play, on_every_engine_seen};
use super::*;

const DAY_MS: i64 = Timestamp::DAY_MS;

fn purging(now: Timestamp) -> PurgeTerms {
    let days_ago = |days: i64| now.shifted(-days * DAY_MS);
    PurgeTerms {
        now,
        tombstones_before: days_ago(6),
        devices_before: days_ago(9),
        conflicts_before: days_ago(3),
        responses_before: days_ago(1),
        past_bytes_max: 1 << 30,
    }
}

fn due(ground: &Ground, now: Timestamp) -> Vec<DueOwner> {
    ground.storage.owners().due(now, None, 100).unwrap()
}

/// The owners that a purge looks at, in order.
fn seen_by_purge(ground: &Ground, terms: &PurgeTerms) -> Vec<Owner> {
    let mut seen = Vec::new();
    let each = &mut |owner, _: Purged| {
        if seen.last() != Some(&owner) {
            seen.push(owner);
        }
        true
    };
    purge::run(&*ground.storage, terms, each).unwrap();
    seen
}

/// Goal: a purge that looks only at what is due forgets all that is old enough. Method: random writes, acknowledgements
/// and jumps in time; after a day of rest a purge of what is due, and then one of all owners, which finds nothing left.
#[test]
fn a_purge_of_what_is_due_leaves_nothing_old() {
    on_every_engine(|ground| {
        let mut forgotten = Purged::default();
        for seed in 1..=6 {
            let now = Timestamp::from_ms(30_000 * DAY_MS);
            let mut play = Play { ground, owner: owner(seed), rng: Rng(seed as u64), now };
            for round in 0..25 {
                for _ in 0..play.rng.below(4) {
                    play.step();
                }
                if play.rng.often(40) {
                    let by = device(u128::from(1 + play.rng.below(3)));
                    let (version, now) = (ground.state(play.owner).version, play.now);
                    let read_to = Version(1 + play.rng.below(version.0));
                    ground.storage.write(play.owner, |txn| txn.acknowledge(by, read_to, now)).unwrap();
                }
                let days = 1 + play.rng.below(5) as i64;
                play.now = play.now.shifted(days * DAY_MS + play.rng.below(DAY_MS as u64) as i64);
                let terms = purging(play.now);
                forgotten += purge::run(&*ground.storage, &terms, &mut |_, _| true).unwrap();
                let left = purge::run_all(&*ground.storage, &terms, &mut |_, _| true).unwrap();
                assert!(left.is_nothing(), "seed {seed} round {round}: {left:?}");
            }
        }
        assert!(forgotten.tombstones > 10 && forgotten.records > 10, "{forgotten:?}");
    });
}

/// Goal: an owner is due a day after a write, then when the next thing is old enough, and never once nothing is left.
#[test]
fn an_owner_is_due_as_long_as_something_ages() {
    on_every_engine(|ground| {
        let start = Timestamp::from_ms(30_000 * DAY_MS);
        let at = |days: i64| start.shifted(days * DAY_MS);
        let write = |days: i64| {
            let table = ground.table("parents");
            let written: StorageResult<()> = ground.storage.write(owner(1), |txn| {
                let version = txn.state().version.next();
                txn.put(table, &[(key(1), &tombstone(version))])?;
                let mut state = OwnerState { version, ..txn.state() };
                state.past.tombstones = 1;
                txn.advance(state, &[], at(days))
            });
            written.unwrap();
        };
        let acknowledge = |days: i64| {
            let version = ground.state(owner(1)).version;
            let now = at(days);
            ground.storage.write(owner(1), |txn| txn.acknowledge(device(1), version, now)).unwrap();
        };
        assert_eq!(due(ground, at(999)), []);
        assert_eq!(seen_by_purge(ground, &purging(at(0))), []);
        write(0);
        assert_eq!(due(ground, at(1).shifted(-1)), []);
        assert_eq!(due(ground, at(1)), [(at(1), owner(1))]);
        assert_eq!(seen_by_purge(ground, &purging(at(2))), [owner(1)]);
        // The deletion is of a day that ends at 1, and stays for 6 more.
        assert_eq!(due(ground, at(999)), [(at(7), owner(1))]);
        acknowledge(4);
        assert_eq!(due(ground, at(999)), [(at(5), owner(1))]);
        assert_eq!(seen_by_purge(ground, &purging(at(6))), [owner(1)]);
        assert_eq!(seen_by_purge(ground, &purging(at(7).shifted(-1))), []);
        assert_eq!(seen_by_purge(ground, &purging(at(7))), [owner(1)]);
        assert_eq!(ground.state(owner(1)).past.tombstones, 0, "forgotten on the day");
        // What is known of the device goes after 9 days of silence.
        assert_eq!(due(ground, at(999)), [(at(13), owner(1))]);
        assert_eq!(seen_by_purge(ground, &purging(at(14))), [owner(1)]);
        assert_eq!(due(ground, at(999)), []);
    });
}

/// Goal: other settings are kept for owners that were due by the old ones. Method: a shorter age.
#[test]
fn other_terms_look_at_every_owner_once() {
    on_every_engine(|ground| {
        let now = Timestamp::from_ms(30_000 * DAY_MS);
        for n in 1..=3 {
            ground.write(owner(n), &[(1, "x")]);
        }
        // All are due at the same time; pages of one name each of them once.
        let mut pages = Vec::new();
        while let [one] = ground.storage.owners().due(now, pages.last().copied(), 1).unwrap()[..] {
            pages.push(one);
        }
        assert_eq!(pages, [1, 2, 3].map(|n| (Timestamp::from_ms(DAY_MS), owner(n))));
        assert_eq!(seen_by_purge(ground, &purging(now)).len(), 3);
        assert_eq!(seen_by_purge(ground, &purging(now)), []);
        let shorter = PurgeTerms { conflicts_before: now, ..purging(now) };
        assert_eq!(seen_by_purge(ground, &shorter), [owner(1), owner(2), owner(3)]);
        assert_eq!(seen_by_purge(ground, &shorter), []);
        // One that is interrupted is not done.
        purge::run(&*ground.storage, &purging(now), &mut |_, _| false).unwrap();
        assert_eq!(seen_by_purge(ground, &purging(now)).len(), 3);
    });
}

/// Goal: owners that rest cost a purge nothing. Method: a million of them, and three that are due.
#[test]
fn a_purge_reads_nothing_of_a_million_owners_at_rest() {
    on_every_engine_seen(|ground| {
        let now = Timestamp::from_ms(30_000 * DAY_MS);
        for n in 1..=3 {
            ground.write(owner(n), &[(1, "x")]);
        }
        let seed = |n: &str| match ground.store.engine {
            Engine::Sqlite => (
                format!("unhex(printf('%032x', {n} + 4096))"),
                "WITH RECURSIVE every(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM every WHERE n < 1000000)",
                "randomblob(16)",
                "every",
            ),
            Engine::Postgres => (
                format!("lpad(to_hex({n} + 4096), 32, '0')::uuid"),
                "",
                "decode(md5(n::text), 'hex')",
                "generate_series(1, 1000000) AS every(n)",
            ),
        };
        let (id, with, seed, every) = seed("n");
        ground.store.sql(&format!(
            "{with} INSERT INTO rollcall_owner (owner, version, horizon, live_rows, live_bytes, seed, due_at) \
             SELECT {id}, 1, 1, 0, 0, {seed}, CASE WHEN n % 2 = 0 THEN {} END FROM {every}",
            now.shifted(DAY_MS).ms()
        ));
        ground.storage.owners().set_due_by(purging(now).fingerprint()).unwrap();
        assert_eq!(seen_by_purge(ground, &purging(now)), [owner(1), owner(2), owner(3)]);
        assert_eq!(seen_by_purge(ground, &purging(now)), []);
        assert_eq!(ground.storage.owners().due(now.shifted(DAY_MS), None, 7).unwrap().len(), 7);
    });
}

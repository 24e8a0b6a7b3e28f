//! Earlier states of rows.

use rollcall::storage::Replaced;

use super::*;

/// Goal: a table with `history = N` remembers exactly N earlier states of each row, the newest, each as it was.
#[test]
fn as_many_states_are_remembered_as_the_table_says() {
    on_every_engine(|ground| {
        let parents = ground.table("parents");
        for states_max in 1..4 {
            let whose = owner(states_max as u128);
            for n in 1..7_u64 {
                let at = |ms: u64| Timestamp::from_ms(ms as i64);
                let earlier = |version: u64| Stored {
                    last_update: at(version * 10),
                    made_at: version.is_multiple_of(2).then_some(at(version)),
                    claim: Claim {
                        at: version.is_multiple_of(3).then_some(at(version + 1)),
                        ..Claim::default()
                    },
                    ..parent(Version(version), &version.to_string())
                };
                let gone = tombstone(Version(n + 2));
                let remember = |txn: &mut dyn WriteTxn| {
                    let (first, second) = (earlier(n), earlier(n + 1));
                    txn.remember(
                        parents,
                        &[
                            Replaced { key: key(1), before: &first, after: &gone, recorded: None },
                            Replaced { key: key(2), before: &second, after: &gone, recorded: None },
                        ],
                        states_max,
                    )
                };
                ground.storage.write(whose, remember).unwrap();
                let known =
                    |row| ground.storage.read(whose, |txn| txn.earlier(parents, key(row), None)).unwrap();
                for (row, newest) in [(1, n), (2, n + 1)] {
                    let oldest = (newest + 1).saturating_sub(states_max as u64).max(row as u64);
                    let wanted: Vec<_> = (oldest..=newest)
                        .rev()
                        .map(|version| {
                            let Stored { last_update, made_at, claim, changed_by, values, version, .. } =
                                earlier(version);
                            let (claimed_at, values) = (claim.at, values.unwrap());
                            EarlierState { version, last_update, made_at, claimed_at, changed_by, values }
                        })
                        .collect();
                    assert_eq!(known(row), wanted, "{states_max} states after {n}");
                }
            }
        }
    });
}

/// Goal: a long value that stays takes room once, and is there in each state as long as the states after it are. Method: a
/// row of a long text is written again and again, then gets another text; then a state in between is lost.
#[test]
fn a_long_value_that_stays_takes_room_once() {
    on_every_engine(|ground| {
        let parents = ground.table("parents");
        let (long, other) = ("x".repeat(50_000), "y".repeat(50_000));
        let state = |version: u64, title: &str| Stored {
            last_update: Timestamp::from_ms(version as i64),
            ..parent(Version(version), title)
        };
        let replace = |before: &Stored, after: &Stored| {
            let one = [Replaced { key: key(1), before, after, recorded: None }];
            ground.storage.write(owner(1), |txn| txn.remember(parents, &one, 8)).unwrap();
        };
        let earlier = |stored: &Stored| {
            ground.storage.read(owner(1), |txn| txn.earlier(parents, key(1), Some(stored))).unwrap()
        };
        let title = |state: &EarlierState| (state.version.0, state.values[0].clone());
        let titled = |version: u64, title: &str| (version, Value::Text(title.into()));

        for version in 1..5 {
            replace(&state(version, &long), &state(version + 1, &long));
        }
        let bytes = ground.state(owner(1)).past.history;
        assert!(bytes < 4 * 400, "{bytes} bytes");
        let found: Vec<_> = earlier(&state(5, &long)).iter().map(title).collect();
        assert_eq!(found, [4, 3, 2, 1].map(|version| titled(version, &long)));
        // Another program wrote the row, and kept no state: those before are not guessed.
        assert_eq!(earlier(&state(5, &other)), []);

        replace(&state(5, &long), &state(6, &other));
        replace(&state(6, &other), &tombstone(Version(7)));
        let found: Vec<_> = earlier(&tombstone(Version(7))).iter().map(title).collect();
        let known = [titled(6, &other), titled(5, &long), titled(4, &long), titled(3, &long)];
        assert_eq!(found[..4], known);
        assert_eq!(found.len(), 6);
        assert!((100_000..105_000).contains(&ground.state(owner(1)).past.history));
    });
}

//! What an engine knows beyond one owner.

use rollcall::digest::Digest;

use super::*;

#[test]
fn a_census_counts_all_owners() {
    on_every_engine(|ground| {
        let census = ground.storage.census();
        assert_eq!(census.engine(), ground.store.engine.name());
        assert_eq!(census.totals().unwrap().owners, 0);
        let parents = ground.table("parents");
        for n in 1..=3 {
            ground.write(owner(n), &[(1, "x"), (2, "y")]);
            let counted = |txn: &mut dyn WriteTxn| {
                let state = OwnerState { rows: 2, bytes: 20, ..txn.state() };
                let digests = [(parents, Digest { count: 2, root: 7 })];
                txn.advance(state, &digests, Timestamp::from_ms(0))
            };
            ground.storage.write(owner(n), counted).unwrap();
        }
        ground.bury(owner(2), 1);
        ground.bury(owner(2), 2);

        let totals = census.totals().unwrap();
        assert_eq!((totals.owners, totals.rows, totals.bytes), (3, 6, 60));
        assert_eq!(totals.tables, [0, 6, 0], "in declared order");
        assert_eq!(census.tombstones(owner(2)).unwrap(), [0, 2, 0]);
        for nobody in [owner(1), owner(9)] {
            assert_eq!(census.tombstones(nobody).unwrap(), [0, 0, 0]);
        }

        let first = census.states(None, 2).unwrap();
        assert_eq!(first, [(owner(1), ground.state(owner(1))), (owner(2), ground.state(owner(2)))]);
        assert_eq!(census.states(Some(owner(2)), 2).unwrap(), [(owner(3), ground.state(owner(3)))]);
        assert_eq!(census.states(Some(owner(3)), 2).unwrap(), []);
    });
}

/// The newest time warns a server whose clock is behind its data.
#[test]
fn a_census_knows_the_newest_time() {
    on_every_engine(|ground| {
        let census = ground.storage.census();
        assert_eq!(census.newest_time().unwrap(), None);
        let day = Timestamp::DAY_MS;
        let write = |who: u128, ms: i64| {
            let at = Timestamp::from_ms(ms);
            let dated = |txn: &mut dyn WriteTxn| {
                let state = OwnerState { version: txn.state().version.next(), ..txn.state() };
                txn.advance(state, &[], at)
            };
            ground.storage.write(owner(who), dated).unwrap();
        };
        write(1, 20_000 * day + 5_000);
        write(2, 19_000 * day);
        assert_eq!(census.newest_time().unwrap(), Some(Timestamp::from_ms(20_000 * day)), "the day is known");
        let seen = Timestamp::from_ms(20_000 * day + 7_000);
        let cursor = |txn: &mut dyn WriteTxn| txn.acknowledge(device(1), Version(1), seen);
        ground.storage.write(owner(2), cursor).unwrap();
        assert_eq!(census.newest_time().unwrap(), Some(seen));
    });
}

#[test]
fn a_census_knows_the_devices_of_an_owner() {
    on_every_engine(|ground| {
        let (census, accounts) = (ground.storage.census(), ground.storage.accounts());
        // Two users who share an owner, and one who does not.
        for (n, of) in [(1, 1), (2, 1), (3, 3)] {
            let user = User {
                id: Uuid::from_u128(n),
                email: format!("user{n}@example.org"),
                password_hash: "hash".into(),
                owner: owner(of),
                is_home: true,
                created_at: Timestamp::from_ms(1),
                verified_at: None,
            };
            assert!(accounts.add_user(&user).unwrap());
            let phone = Device {
                id: device(n),
                user: user.id,
                owner: owner(of),
                name: format!("phone {n}"),
                created_at: Timestamp::from_ms(2),
                expires_at: Timestamp::from_ms(3),
            };
            assert!(accounts.put_device(&phone, &[n as u8; 32]).unwrap());
        }
        let mut names: Vec<String> =
            census.signed_in(owner(1)).unwrap().into_iter().map(|device| device.name).collect();
        names.sort();
        assert_eq!(names, ["phone 1", "phone 2"]);
        assert_eq!(census.signed_in(owner(2)).unwrap(), []);
        assert_eq!(census.device(device(3)).unwrap().map(|device| device.owner), Some(owner(3)));
        assert_eq!(census.device(device(9)).unwrap(), None);

        ground.write(owner(1), &[(1, "x")]);
        assert_eq!(census.acknowledged(owner(1)).unwrap(), []);
        let (seen, at) = (ground.state(owner(1)).version, Timestamp::from_ms(5));
        ground.storage.write(owner(1), |txn| txn.acknowledge(device(1), seen, at)).unwrap();
        assert_eq!(census.acknowledged(owner(1)).unwrap(), [(device(1), seen, at)]);
        assert_eq!(census.acknowledged(owner(3)).unwrap(), []);
    });
}

//! A PostgreSQL database of an earlier release keeps its contents. (SQLite: `crates/sqlite/src/migrate.rs`.)

use rollcall::model::Role;
use rollcall::reconcile::Resolution;
use rollcall::schema::Policy;
use rollcall::storage::{Conflict, PurgeTerms, ResponsesMax, Side, StoredResponse};

use super::*;

const MIGRATIONS: &str = "crates/postgres/src/migrations";

/// What takes each step back, from the second on: no row is lost by it, only what the step added.
const UNDONE: [&str; 11] = [
    "ALTER TABLE rollcall_ledger DROP COLUMN made_at, DROP COLUMN claimed_at, DROP COLUMN row_base, DROP COLUMN base;
     ALTER TABLE rollcall_history DROP COLUMN made_at, DROP COLUMN claimed_at;
     ALTER TABLE rollcall_conflict DROP COLUMN stored_made_at;
     ALTER TABLE rollcall_owner DROP COLUMN shown_ahead",
    "DROP TABLE rollcall_installation",
    "DROP INDEX rollcall_conflict_of_table, rollcall_conflict_of_key",
    "DROP TABLE rollcall_delete_window",
    "ALTER TABLE rollcall_device DROP COLUMN seen_at, DROP COLUMN seen_from",
    "DROP INDEX rollcall_history_version;
     ALTER TABLE rollcall_owner DROP COLUMN past_tombstones, DROP COLUMN past_history, DROP COLUMN past_conflicts,
       DROP COLUMN past_answers, DROP COLUMN past_version",
    "ALTER TABLE rollcall_owner DROP COLUMN dated",
    "ALTER TABLE rollcall_user DROP COLUMN verified_at, DROP COLUMN reset_hash, DROP COLUMN reset_until,
       DROP COLUMN verify_hash, DROP COLUMN verify_until",
    "DROP TABLE rollcall_gone, rollcall_erasure",
    "DROP TABLE rollcall_member, rollcall_invitation, rollcall_membership, rollcall_lookup;
     CREATE TABLE rollcall_erasure (owner UUID NOT NULL PRIMARY KEY, since BIGINT NOT NULL);
     ALTER TABLE rollcall_owner DROP COLUMN name, DROP COLUMN members_at, DROP COLUMN public, DROP COLUMN erased_at;
     ALTER TABLE rollcall_user DROP COLUMN home;
     ALTER TABLE rollcall_device DROP CONSTRAINT rollcall_device_pkey;
     ALTER TABLE rollcall_device DROP CONSTRAINT rollcall_device_id_key;
     ALTER TABLE rollcall_device ADD PRIMARY KEY (id)",
    "ALTER TABLE rollcall_owner DROP COLUMN due_at",
];

/// The step that keeps the sums of what an owner's past takes.
const SUMMED: usize = 7;

/// Everything that an earlier release could write, read through the contract.
type Seen = (OwnerState, Vec<Option<Stored>>, Vec<Option<String>>, Option<Device>);

fn seen(ground: &Ground, storage: &dyn Storage) -> Seen {
    let read = storage.read(owner(1), |txn| {
        let rows = txn.load(ground.table("parents"), &[key(1), key(2), key(3)])?;
        let answer =
            txn.stored_response(device(1), "once")?.map(|given| String::from_utf8(given.body).unwrap());
        let conflict = txn.conflict(Uuid::from_u128(9))?.map(|conflict| format!("{conflict:?}"));
        // Tables that an earlier release did not have exist, and are empty.
        assert!(txn.delete_windows(device(1))?.is_empty() && txn.installations()?.is_empty());
        // Whatever an earlier release left is due for a purge.
        let state = OwnerState { due_at: None, ..txn.state() };
        Ok::<_, StorageError>((state, rows, vec![answer, conflict]))
    });
    let (state, rows, records) = read.unwrap();
    let accounts = storage.accounts();
    assert!(accounts.sightings(Uuid::from_u128(5)).unwrap().is_empty());
    (state, rows, records, accounts.device(&[7; 32]).unwrap())
}

/// Method: a database with a row, a tombstone, a conflict, a stored response and a device; its migrations are
/// undone one after the other, from the last, and a server starts on what is left each time.
#[test]
fn databases_of_earlier_releases_are_taken_over() {
    let files = std::fs::read_dir(MIGRATIONS).unwrap().count();
    assert_eq!(files, UNDONE.len() + 1, "each migration is undone here");
    if !Engine::all().contains(&Engine::Postgres) {
        return;
    }
    let mut store = Store::of(Engine::Postgres);
    let storage = start(&store).unwrap();
    store.look();
    let ground = Ground { store, storage, schema: Schema::parse(SCHEMA).unwrap() };
    ground.write(owner(1), &[(1, "one"), (2, "two")]);
    ground.bury(owner(1), 2);
    ground
        .storage
        .write(owner(1), |txn| {
            txn.note_conflict(&conflict_of(&ground))?;
            let at = Timestamp::from_ms(5_000);
            let answer =
                StoredResponse { body_hash: [1; 32], body: b"{}".to_vec(), version: txn.state().version, at };
            txn.store_response(device(1), "once", &answer, ResponsesMax { responses: 9, bytes: 1_000 })
        })
        .unwrap();
    let user = User {
        id: Uuid::from_u128(5),
        email: "anna@example.org".into(),
        password_hash: "hash".into(),
        owner: owner(1),
        is_home: true,
        created_at: Timestamp::from_ms(1),
        verified_at: None,
    };
    let phone = Device {
        id: device(1),
        user: user.id,
        owner: owner(1),
        name: "phone".into(),
        created_at: Timestamp::from_ms(1),
        expires_at: Timestamp::from_ms(1_000_000),
    };
    // One who shares what there is, and two who share an owner that nothing was written for.
    let guest = |n: u128, of: u128| User {
        id: Uuid::from_u128(n),
        email: format!("user{n}@example.org"),
        owner: owner(of),
        is_home: false,
        created_at: Timestamp::from_ms(n as i64),
        ..user.clone()
    };
    let accounts = ground.storage.accounts();
    assert!(accounts.add_user(&user).unwrap() && accounts.put_device(&phone, &[7; 32]).unwrap());
    for (n, of) in [(6, 1), (7, 2), (8, 2)] {
        assert!(accounts.add_user(&guest(n, of)).unwrap());
    }
    let before = seen(&ground, &*ground.storage);
    assert!(before.1[0].is_some() && before.1[1].as_ref().is_some_and(Stored::is_tombstone));
    assert!(before.2.iter().all(Option::is_some) && before.3.is_some(), "{before:?}");

    for steps in (1..files).rev() {
        for undone in UNDONE[steps - 1..].iter().rev() {
            ground.store.sql(undone);
        }
        ground.store.sql(&format!("UPDATE rollcall_meta SET value = {steps} WHERE name = 'migrations'"));
        let taken_over = start(&ground.store).unwrap();
        let (state, ..) = seen(&ground, &*taken_over);
        // What was there is not counted; what a write adds or takes away is, and the count in the background adds up.
        let has_sums = steps >= SUMMED;
        assert_eq!(state.past.is_counted, has_sums, "after {steps} steps");
        assert!(has_sums || (state.past.bytes(), state.past.excess(1, 1)) == (None, 0));
        count(&*taken_over);
        assert_eq!(seen(&ground, &*taken_over), before, "after {steps} steps");
        for of in [owner(1), owner(2)] {
            assert_members(&*taken_over, of);
        }
        let count = "SELECT value FROM rollcall_meta WHERE name = 'migrations'";
        assert_eq!(ground.store.number(count), files as i64);
    }
    ground.write(owner(1), &[(3, "three")]);
    assert_eq!(ground.titles(owner(1)).len(), 2);
}

/// The first user of the owner manages it, the second was added and may write, and both are found.
fn assert_members(storage: &dyn Storage, of: Owner) {
    let accounts = storage.accounts();
    let first = if of == owner(1) { 5 } else { 7 };
    let (state, members) =
        storage.read(of, |txn| Ok::<_, StorageError>((txn.state(), txn.members(None, 9)?))).unwrap();
    let roles: Vec<_> = members.iter().map(|member| (member.user.as_u128(), member.role)).collect();
    assert_eq!(roles, [(first, Role::Manage), (first + 1, Role::Write)]);
    assert_eq!(state.members_at, state.version, "so that both roles are read");
    for (n, is_home) in [(first, true), (first + 1, false)] {
        let listed = accounts.owners_of(Uuid::from_u128(n)).unwrap();
        assert_eq!((listed.len(), listed[0].owner, listed[0].is_home), (1, of, is_home));
    }
    assert_eq!(accounts.user("user8@example.org").unwrap().map(|user| user.is_home), Some(false));
}

/// Counts as a purge does.
fn count(storage: &dyn Storage) {
    let long_ago = Timestamp::from_ms(i64::MIN / 2);
    let terms = PurgeTerms {
        now: Timestamp::from_ms(0),
        tombstones_before: long_ago,
        devices_before: long_ago,
        conflicts_before: long_ago,
        responses_before: long_ago,
        past_bytes_max: 1 << 30,
    };
    rollcall::purge::run(storage, &terms, &mut |_, _| true).unwrap();
}

fn conflict_of(ground: &Ground) -> Conflict {
    let side = |title: &str| Side {
        values: Some(vec![Some(Value::Text(title.into()))]),
        last_update: Timestamp::from_ms(1_000),
        device: device(1),
    };
    Conflict {
        id: Uuid::from_u128(9),
        at: Timestamp::from_ms(2_000),
        table: ground.table("parents"),
        key: key(1),
        policy: Policy::Newest,
        resolution: Resolution::Kept,
        base: None,
        stored: side("mine"),
        stored_made_at: None,
        incoming: side("theirs"),
        restored_at: None,
    }
}

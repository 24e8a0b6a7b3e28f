//! Members of owners, and what finds users: the same on every engine.

use rollcall::model::Role;
use rollcall::storage::{Invitation, Member, StorageResult};

use super::*;

const NOW: Timestamp = Timestamp::from_ms(1_000_000);

/// A database of PostgreSQL to look into; `None` where there is none.
fn postgres() -> Option<Ground> {
    Engine::all().contains(&Engine::Postgres).then(|| {
        let mut store = Store::of(Engine::Postgres);
        let storage = start(&store).unwrap();
        store.look();
        Ground { store, storage, schema: Schema::parse(SCHEMA).unwrap() }
    })
}

fn person(n: u128) -> Uuid {
    Uuid::from_u128(n)
}

fn user(n: u128, of: Owner) -> User {
    User {
        id: person(n),
        email: format!("user{n}@example.org"),
        password_hash: "hash".into(),
        owner: of,
        is_home: true,
        created_at: NOW,
        verified_at: None,
    }
}

fn phone(n: u128, of: &User) -> Device {
    Device {
        id: device(n),
        user: of.id,
        owner: of.owner,
        name: format!("phone {n}"),
        created_at: NOW,
        expires_at: NOW.shifted(1_000),
    }
}

fn member(n: u128, role: Role, joined_ms: i64) -> Member {
    let (since, joined_at) = (Version(n as u64), Timestamp::from_ms(joined_ms));
    Member { user: person(n), role, since, name: format!("member {n}"), joined_at }
}

fn invitation(n: u8, made_by: u128) -> Invitation {
    Invitation {
        id: person(n.into()),
        code: [n; 32],
        role: Role::Read,
        made_by: person(made_by),
        made_at: Timestamp::from_ms(n.into()),
        expires_at: NOW,
        uses_left: 3,
    }
}

fn members_of(ground: &Ground, of: u128) -> Vec<(u128, Role)> {
    let members = ground.storage.read(owner(of), |txn| txn.members(None, 99)).unwrap();
    members.iter().map(|member| (member.user.as_u128(), member.role)).collect()
}

#[test]
fn members_and_invitations_are_one_owners_and_read_back_as_written() {
    on_every_engine(|ground| {
        let (anna, bert, cora) =
            (member(1, Role::Manage, 30), member(2, Role::Write, 20), member(3, Role::Write, 10));
        let write = |of: u128, work: &mut (dyn FnMut(&mut dyn WriteTxn) -> StorageResult<()> + Send)| {
            ground.storage.write(owner(of), |txn| work(txn)).unwrap();
        };
        write(1, &mut |txn| {
            [&cora, &anna, &bert].into_iter().try_for_each(|one| txn.put_member(one))?;
            txn.name_owner("wedding")?;
            txn.put_invitation(&invitation(2, 1))?;
            txn.put_invitation(&invitation(1, 2))
        });
        write(2, &mut |txn| txn.put_member(&bert));
        let undone = ground.storage.write(owner(1), |txn| {
            txn.remove_member(anna.user)?;
            Err::<(), _>(StorageError::Busy)
        });
        assert!(undone.is_err());
        let read = ground.storage.read(owner(1), |txn| {
            assert_eq!(txn.member(bert.user)?, Some(bert.clone()));
            assert_eq!(txn.member(person(9))?, None);
            assert_eq!(txn.members(None, 2)?, [anna.clone(), bert.clone()]);
            assert_eq!(txn.members(Some(bert.user), 2)?, std::slice::from_ref(&cora));
            assert_eq!(txn.member_count()?, 3);
            assert_eq!(txn.first_of(Role::Write, person(9))?, Some(cora.clone()));
            assert_eq!(txn.first_of(Role::Write, cora.user)?, Some(bert.clone()));
            assert_eq!(txn.first_of(Role::Manage, anna.user)?, None);
            assert_eq!(txn.owner_name()?, "wedding");
            assert_eq!(txn.invitations()?, [invitation(1, 2), invitation(2, 1)]);
            Ok::<_, StorageError>(())
        });
        read.unwrap();
        assert_eq!(members_of(ground, 2), [(2, Role::Write)]);
        write(1, &mut |txn| {
            let changed = Member { role: Role::Read, since: Version(77), ..bert.clone() };
            txn.put_member(&changed)?;
            assert_eq!(txn.member(bert.user)?, Some(changed));
            assert!(txn.remove_member(cora.user)? && !txn.remove_member(cora.user)?);
            txn.put_invitation(&Invitation { uses_left: 2, ..invitation(1, 2) })?;
            assert_eq!(txn.invitations()?[0].uses_left, 2);
            assert!(txn.remove_invitation(person(1))? && !txn.remove_invitation(person(1))?);
            Ok(())
        });
        assert_eq!(members_of(ground, 1), [(1, Role::Manage), (2, Role::Read)]);
        assert_eq!(members_of(ground, 2), [(2, Role::Write)], "another owner's");
        let nobody = ground
            .storage
            .read(owner(3), |txn| Ok::<_, StorageError>((txn.member_count()?, txn.owner_name()?)));
        assert_eq!(nobody.unwrap(), (0, String::new()));
    });
}

/// Goal: everything that goes by an owner's version or state sees a change of its members.
#[test]
fn the_state_says_when_members_changed() {
    on_every_engine(|ground| {
        ground.write(owner(1), &[(1, "one")]);
        let before = ground.state(owner(1));
        assert_eq!((before.members_at, before.is_public, before.erased_at), (Version(0), false, None));
        let version = ground.storage.write(owner(1), |txn| rollcall::members::moved(txn, NOW)).unwrap();
        let after = ground.state(owner(1));
        assert_eq!((after.version, after.members_at), (version, version));
        assert_eq!(version, before.version.next());
        assert_eq!((after.rows, after.bytes, after.seed), (before.rows, before.bytes, before.seed));
        let set = ground.storage.write(owner(1), |txn| {
            let state = txn.state();
            let version = state.version.next();
            txn.advance(OwnerState { version, is_public: true, erased_at: Some(NOW), ..state }, &[], NOW)
        });
        set.unwrap();
        let erased = ground.state(owner(1));
        assert_eq!((erased.is_public, erased.erased_at, erased.members_at), (true, Some(NOW), version));
        ground.write(owner(1), &[(2, "two")]);
        let written = ground.state(owner(1));
        assert_eq!((written.members_at, written.erased_at), (version, Some(NOW)), "other writes leave it");
    });
}

#[test]
fn the_first_user_of_an_owner_manages_it_and_others_may_write() {
    on_every_engine(|ground| {
        let accounts = ground.storage.accounts();
        let (anna, bert) = (user(1, owner(1)), User { is_home: false, ..user(2, owner(1)) });
        assert!(accounts.add_user(&anna).unwrap());
        assert_eq!(ground.state(owner(1)).members_at, Version(0), "nobody can have read what was not theirs");
        assert!(accounts.add_user(&bert).unwrap());
        let joined = ground.state(owner(1));
        assert!(joined.members_at > Version(0) && joined.members_at == joined.version);
        assert_eq!(members_of(ground, 1), [(1, Role::Manage), (2, Role::Write)]);
        assert_eq!(accounts.user(&bert.email).unwrap(), Some(bert.clone()));
        assert_eq!(accounts.user(&anna.email).unwrap(), Some(anna.clone()));

        // Bert is let into another owner, whose member he is listed as once both say so.
        accounts.list_owner(bert.id, owner(2), true).unwrap();
        let listed = |of: &User| accounts.owners_of(of.id).unwrap();
        assert_eq!(listed(&bert).len(), 1, "a list grants nothing");
        ground.storage.write(owner(2), |txn| txn.put_member(&member(2, Role::Read, 5))).unwrap();
        ground.storage.write(owner(2), |txn| txn.name_owner("club")).unwrap();
        let [first, second] = <[_; 2]>::try_from(listed(&bert)).unwrap();
        assert_eq!((first.owner, first.role, first.is_home), (owner(1), Role::Write, false));
        assert_eq!((second.owner, second.role, second.name.as_str()), (owner(2), Role::Read, "club"));
        assert_eq!((first.version, second.version), (joined.version, ground.state(owner(2)).version));
        let home = listed(&anna);
        assert_eq!((home[0].owner, home[0].role, home[0].is_home), (owner(1), Role::Manage, true));
        let erase = |txn: &mut dyn WriteTxn| {
            let state = txn.state();
            txn.advance(OwnerState { version: state.version.next(), erased_at: Some(NOW), ..state }, &[], NOW)
        };
        ground.storage.write(owner(2), |txn| erase(txn)).unwrap();
        assert_eq!(listed(&bert).len(), 1, "an erased owner is no longer there");

        // Anna goes: Bert, who joined after her, manages.
        ground.storage.write(owner(1), |txn| txn.put_invitation(&invitation(7, 1))).unwrap();
        assert!(accounts.remove_user(&anna.email, NOW).unwrap());
        assert!(!accounts.remove_user(&anna.email, NOW).unwrap());
        assert_eq!(members_of(ground, 1), [(2, Role::Manage)]);
        let invitations = ground.storage.read(owner(1), |txn| txn.invitations()).unwrap();
        assert_eq!(invitations, [], "void without the one who made them");
        assert!(ground.state(owner(1)).members_at > joined.members_at);
        assert!(accounts.owners_of(anna.id).unwrap().is_empty());
        assert!(
            accounts.add_user(&User { id: person(9), ..anna.clone() }).unwrap(),
            "the email is free again"
        );
    });
}

#[test]
fn a_user_without_rows_has_a_list_too() {
    on_every_engine(|ground| {
        let accounts = ground.storage.accounts();
        let anna = user(1, Owner(person(1)));
        assert!(accounts.add_user(&anna).unwrap());
        let listed = accounts.owners_of(anna.id).unwrap();
        assert_eq!((listed.len(), listed[0].version, listed[0].is_home), (1, Version::first(0), true));
        assert_eq!(accounts.owners_of(person(2)).unwrap(), []);
    });
}

#[test]
fn what_finds_a_device_goes_with_it() {
    on_every_engine(|ground| {
        let (accounts, census) = (ground.storage.accounts(), ground.storage.census());
        let (anna, bert) = (user(1, Owner(person(1))), user(2, Owner(person(2))));
        assert!(accounts.add_user(&anna).unwrap() && accounts.add_user(&bert).unwrap());
        assert!(accounts.put_device(&phone(5, &anna), &[1; 32]).unwrap());
        assert!(!accounts.put_device(&phone(5, &bert), &[2; 32]).unwrap(), "another user's");
        assert_eq!(accounts.device(&[2; 32]).unwrap(), None);
        assert!(accounts.put_device(&phone(5, &anna), &[3; 32]).unwrap());
        assert_eq!(accounts.device(&[1; 32]).unwrap(), None, "its older token ended");
        assert_eq!(accounts.device(&[3; 32]).unwrap(), Some(phone(5, &anna)));
        assert_eq!(census.device(device(5)).unwrap(), Some(phone(5, &anna)));
        assert!(!accounts.remove_device(bert.id, device(5)).unwrap());
        assert!(accounts.remove_device(anna.id, device(5)).unwrap());
        assert_eq!((accounts.device(&[3; 32]).unwrap(), census.device(device(5)).unwrap()), (None, None));
        assert!(accounts.put_device(&phone(5, &bert), &[4; 32]).unwrap(), "the id is free again");
        assert!(accounts.remove_user(&bert.email, NOW).unwrap());
        assert_eq!((accounts.device(&[4; 32]).unwrap(), census.device(device(5)).unwrap()), (None, None));
    });
}

#[test]
fn an_invitation_is_found_by_its_code_until_it_expires() {
    on_every_engine(|ground| {
        let accounts = ground.storage.accounts();
        for n in [1, 2] {
            let one = invitation(n, 1);
            accounts.list_invitation(&one.code, owner(1), one.expires_at).unwrap();
            ground.storage.write(owner(1), |txn| txn.put_invitation(&one)).unwrap();
        }
        assert_eq!(accounts.invited_to(&[1; 32]).unwrap(), Some(owner(1)));
        assert_eq!(accounts.invited_to(&[9; 32]).unwrap(), None);
        ground.storage.write(owner(1), |txn| txn.remove_invitation(person(1))).unwrap();
        accounts.unlist_invitation(&[1; 32]).unwrap();
        assert_eq!(accounts.invited_to(&[1; 32]).unwrap(), None);
        assert_eq!(accounts.forget_expired(NOW, 9).unwrap(), 0);
        assert_eq!(accounts.forget_expired(NOW.shifted(1), 9).unwrap(), 1);
        assert_eq!(accounts.invited_to(&[2; 32]).unwrap(), None);
        assert_eq!(ground.storage.read(owner(1), |txn| txn.invitations()).unwrap(), []);
    });
}

/// Goal: look-ups do not pile up. Method: users and devices that come and go.
#[test]
fn no_look_up_outlives_what_it_leads_to() {
    let Some(ground) = postgres() else { return };
    let accounts = ground.storage.accounts();
    let (anna, bert) = (user(1, Owner(person(1))), user(2, Owner(person(2))));
    assert!(accounts.add_user(&anna).unwrap() && accounts.add_user(&bert).unwrap());
    for n in 0..3 {
        assert!(accounts.put_device(&phone(5, &anna), &[n; 32]).unwrap());
        assert!(accounts.put_device(&phone(6, &bert), &[n + 9; 32]).unwrap());
    }
    let lookups = || ground.store.number("SELECT count(*) FROM rollcall_lookup");
    assert_eq!(lookups(), 6, "an email, a device and a token each");
    assert!(accounts.remove_device(anna.id, device(5)).unwrap());
    assert!(accounts.remove_user(&bert.email, NOW).unwrap());
    assert_eq!(lookups(), 1, "Anna's email");
    assert_eq!(ground.store.number("SELECT count(*) FROM rollcall_membership"), 1);
}

/// Goal: a registration that broke off does not keep its email, and a slow one does not end in two users of one email.
/// Method: a claim that nothing followed; one whose user is there already; one that another claim took over.
#[test]
fn a_claim_that_nothing_followed_is_taken_over() {
    let Some(ground) = postgres() else { return };
    let accounts = ground.storage.accounts();
    let name = |email: &str| format!("sha256('\\x01'::bytea || convert_to('{email}', 'UTF8'))");
    let (anna, bert) = (user(1, Owner(person(1))), user(2, Owner(person(2))));
    let claim = format!("INSERT INTO rollcall_lookup VALUES ({}, 1, '{}', 5)", name(&anna.email), person(99));
    ground.store.sql(&claim);
    assert_eq!(accounts.user(&anna.email).unwrap(), None, "a claim is no user");
    assert!(accounts.add_user(&anna).unwrap());
    assert_eq!(accounts.user(&anna.email).unwrap(), Some(anna.clone()));
    assert!(!accounts.add_user(&User { id: person(3), ..anna.clone() }).unwrap());
    assert!(accounts.add_user(&anna).unwrap(), "a second try of the same is no other user");

    // One whose user is there, and who had no time to say so.
    assert!(accounts.add_user(&bert).unwrap());
    ground
        .store
        .sql(&format!("UPDATE rollcall_lookup SET claimed_at = 5 WHERE name = {}", name(&bert.email)));
    assert!(!accounts.add_user(&User { id: person(3), ..bert.clone() }).unwrap());
    assert_eq!(accounts.user(&bert.email).unwrap(), Some(bert.clone()));
    // Whatever the look-up says, the user's row must agree.
    let elsewhere = "UPDATE rollcall_lookup SET id = '00000000-0000-0000-0000-000000000001' WHERE name =";
    ground.store.sql("ALTER TABLE rollcall_user DROP CONSTRAINT rollcall_user_email_key");
    ground.store.sql(&format!("{elsewhere} {}", name(&bert.email)));
    let anew = start(&ground.store).unwrap();
    assert_eq!(anew.accounts().user(&bert.email).unwrap(), None);
}

/// Goal: servers of the release before work beside this one. Method: what they write, which has no look-ups, and how they
/// find users; once the tables are distributed none of them is there.
#[test]
fn what_servers_of_the_release_before_write_is_found() {
    let Some(ground) = postgres() else { return };
    let accounts = ground.storage.accounts();
    let write = |n: u128| {
        let (id, email, phone) = (person(n), format!("user{n}@example.org"), device(n).0);
        let token = format!("{n:02x}").repeat(32);
        ground.store.sql(&format!(
            "INSERT INTO rollcall_user (id, email, password_hash, owner, created_at) VALUES ('{id}', '{email}', 'hash', '{id}', {now});
             INSERT INTO rollcall_device (id, user_id, name, token_hash, created_at, expires_at)
             VALUES ('{phone}', '{id}', 'phone {n}', '\\x{token}', {now}, {until})",
            now = NOW.ms(),
            until = NOW.ms() + 1_000,
        ));
        user(n, Owner(id))
    };
    let (anna, bert) = (write(1), write(2));
    assert_eq!(accounts.user(&anna.email).unwrap(), Some(anna.clone()), "by email");
    assert_eq!(accounts.device(&[2; 32]).unwrap(), Some(phone(2, &bert)), "by token");
    assert_eq!(accounts.device(&[1; 32]).unwrap(), Some(phone(1, &anna)));
    assert_eq!(accounts.owners_of(bert.id).unwrap().len(), 1);
    assert_eq!(members_of(&ground, 2), [(2, Role::Manage)]);
    let cora = write(3);
    assert!(!accounts.add_user(&User { id: person(4), ..cora.clone() }).unwrap());
    assert!(!accounts.put_device(&Device { id: device(3), ..phone(3, &anna) }, &[9; 32]).unwrap());
    // A server of the release before adds a user whom this release has added.
    let theirs = "INSERT INTO rollcall_user (id, email, password_hash, owner, created_at)
        VALUES ('00000000-0000-0000-0000-0000000000aa', 'user1@example.org', 'hash', '00000000-0000-0000-0000-0000000000aa', 1)
        ON CONFLICT (email) DO UPDATE SET email = excluded.email WHERE rollcall_user.id = excluded.id";
    ground.store.sql(theirs);
    assert_eq!(accounts.users().unwrap().len(), 3);
}

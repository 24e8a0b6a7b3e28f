//! The rules of membership over a database: who may change what, and what follows from it.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::sync::Arc;
use std::time::Duration;

use rollcall_core::members::{self, Actor, Changed, MemberRefusal};
use rollcall_core::model::{Owner, Role, Timestamp, Version};
use rollcall_core::schema::Schema;
use rollcall_core::storage::{Invitation, Storage, StorageError, WriteTxn};
use rollcall_sqlite::{Connections, Sqlite};
use uuid::Uuid;

const NOW: Timestamp = Timestamp::from_ms(1_000_000);
const ANNA: Actor = actor(1);
const BERT: Actor = actor(2);
const CORA: Actor = actor(3);
const STRANGER: Actor = actor(9);

const fn actor(n: u128) -> Actor {
    Actor { user: Uuid::from_u128(n), claimed: None }
}

/// A database with one owner, whom Anna manages.
struct Club {
    storage: Arc<dyn Storage>,
    _folder: tempfile::TempDir,
}

const CLUB: Owner = Owner(Uuid::from_u128(77));

fn invitation(n: u8, role: Role, uses_left: u32) -> Invitation {
    Invitation {
        id: Uuid::from_u128(n.into()),
        code: [n; 32],
        role,
        made_by: ANNA.user,
        made_at: NOW,
        expires_at: NOW.shifted(1_000),
        uses_left,
    }
}

impl Club {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("club.db");
        let connections = Connections::open(&path, Duration::from_secs(5), 2).unwrap();
        let schema =
            Arc::new(Schema::parse("[table.t]\nkey = \"id\"\n[table.t.columns]\nx = \"text\"").unwrap());
        let storage = Sqlite::serve(&path, connections, schema, NOW, Arc::new(())).unwrap();
        let club = Self { storage: Arc::new(storage), _folder: folder };
        club.write(|txn| members::join(txn, ANNA.user, NOW).map(Ok)).unwrap();
        club
    }

    /// With Bert, who may write, and Cora, who reads.
    fn full() -> Self {
        let club = Self::new();
        for (actor, role) in [(BERT, Role::Write), (CORA, Role::Read)] {
            let n = actor.user.as_u128() as u8;
            club.write(|txn| members::invite(txn, ANNA, &invitation(n, role, 1), 9, NOW)).unwrap();
            let accepted = club.accept(n, actor).unwrap();
            assert_eq!(accepted, role);
        }
        club
    }

    fn write<T: Send>(
        &self,
        mut work: impl FnMut(&mut dyn WriteTxn) -> Changed<T> + Send,
    ) -> Result<T, MemberRefusal> {
        self.storage.write(CLUB, |txn| work(txn)).unwrap()
    }

    fn accept(&self, code: u8, actor: Actor) -> Result<Role, MemberRefusal> {
        self.write(|txn| members::accept(txn, &[code; 32], actor.user, "name", 9, NOW))
    }

    fn set(&self, by: Actor, who: Actor, role: Role) -> Result<usize, MemberRefusal> {
        let alike = |before: Role, after: Role| (before == Role::Read) == (after == Role::Read);
        self.write(|txn| members::set_role(txn, by, who.user, role, alike, NOW)).map(|ended| ended.len())
    }

    fn remove(&self, by: Actor, who: Actor) -> Result<usize, MemberRefusal> {
        self.write(|txn| members::remove(txn, by, who.user, NOW)).map(|ended| ended.len())
    }

    /// The owner's version, that of its members, and the members with their roles.
    fn state(&self) -> (Version, Version, Vec<(u128, Role)>) {
        let read = self.storage.read(CLUB, |txn| {
            let members = txn.members(None, 99)?;
            let roles = members.iter().map(|member| (member.user.as_u128(), member.role)).collect();
            Ok::<_, StorageError>((txn.state().version, txn.state().members_at, roles))
        });
        read.unwrap()
    }

    fn since(&self, actor: Actor) -> Version {
        self.storage.read(CLUB, |txn| txn.member(actor.user)).unwrap().unwrap().since
    }
}

#[test]
fn only_a_manager_changes_members_and_a_refusal_writes_nothing() {
    let club = Club::full();
    let before = club.state();
    assert_eq!(before.2, [(1, Role::Manage), (2, Role::Write), (3, Role::Read)]);
    for (by, refusal) in [
        (BERT, MemberRefusal::NotAllowed),
        (CORA, MemberRefusal::NotAllowed),
        (STRANGER, MemberRefusal::NotAMember),
        (Actor { claimed: Some(Role::Write), ..ANNA }, MemberRefusal::NotAllowed),
    ] {
        assert_eq!(club.set(by, CORA, Role::Manage), Err(refusal));
        assert_eq!(
            club.remove(by, ANNA).err(),
            if by.user == ANNA.user { Some(MemberRefusal::LastManager) } else { Some(refusal) }
        );
        assert_eq!(
            club.write(|txn| members::invite(txn, by, &invitation(8, Role::Read, 1), 9, NOW)),
            Err(refusal)
        );
        assert_eq!(club.write(|txn| members::revoke(txn, by, Uuid::nil())), Err(refusal));
        assert_eq!(club.write(|txn| members::describe(txn, by, Some("x"), Some(true), NOW)), Err(refusal));
        assert_eq!(club.write(|txn| members::erase(txn, by, NOW)), Err(refusal));
    }
    assert_eq!(club.state(), before);
    let by_claim = Actor { claimed: Some(Role::Manage), ..STRANGER };
    assert_eq!(club.set(by_claim, CORA, Role::Write), Ok(0), "a token that names the role");
}

#[test]
fn a_change_of_roles_moves_the_version_and_ends_cursors_where_it_changes_what_is_read() {
    let club = Club::full();
    let (version, _, _) = club.state();
    assert_eq!(club.set(ANNA, BERT, Role::Write), Ok(0));
    assert_eq!(club.state().0, version, "the same role again changes nothing");
    let joined = club.since(BERT);
    assert_eq!(club.set(ANNA, BERT, Role::Manage), Ok(0));
    let (moved, members_at, _) = club.state();
    assert_eq!((moved, members_at), (version.next(), version.next()));
    assert_eq!(club.since(BERT), joined, "both roles read alike");
    assert_eq!(club.set(ANNA, BERT, Role::Read), Ok(0));
    assert_eq!(club.since(BERT), club.state().0);
    assert_eq!(club.set(ANNA, STRANGER, Role::Read), Err(MemberRefusal::NoSuchMember));
}

/// Goal: invitations take a bounded place, and one that is used up is kept as long as there is room.
#[test]
fn invitations_that_are_used_up_make_room_for_new_ones() {
    let club = Club::new();
    let invite = |n: u8, now| {
        let made =
            Invitation { made_at: now, expires_at: now.shifted(1_000), ..invitation(n, Role::Read, 1) };
        club.write(|txn| members::invite(txn, ANNA, &made, 3, now))
    };
    for n in 10..13 {
        assert_eq!(invite(n, NOW.shifted(i64::from(n))), Ok(Vec::new()));
    }
    let later = NOW.shifted(20);
    assert_eq!(invite(13, later), Err(MemberRefusal::TooManyInvitations));
    club.accept(11, actor(4)).unwrap();
    club.accept(10, actor(5)).unwrap();
    assert_eq!(invite(13, later), Ok(vec![[10; 32]]), "the oldest that is used up");
    assert_eq!(club.accept(11, actor(4)), Ok(Role::Read), "sent again");
    assert_eq!(invite(14, later.shifted(1)), Ok(vec![[11; 32]]));
    assert_eq!(invite(15, later), Err(MemberRefusal::TooManyInvitations), "12, 13 and 14 are open");
    let mut expired = invite(15, NOW.shifted(5_000)).unwrap();
    expired.sort_unstable();
    assert_eq!(expired, [[12; 32], [13; 32], [14; 32]]);
}

#[test]
fn an_owner_that_was_left_or_deleted_is_not_made_anew() {
    let club = Club::full();
    let found = |by: Actor| club.write(|txn| members::found(txn, by.user, "again", NOW));
    let before = club.state();
    assert_eq!((found(ANNA), found(CORA)), (Ok(Role::Manage), Ok(Role::Read)), "it stays as it is");
    assert_eq!(found(STRANGER), Err(MemberRefusal::NotAMember));
    assert_eq!(club.state(), before);
    club.remove(BERT, BERT).unwrap();
    assert_eq!(found(BERT), Err(MemberRefusal::NotAMember));
    club.write(|txn| members::erase(txn, ANNA, NOW)).unwrap();
    assert_eq!(found(ANNA), Err(MemberRefusal::NotAMember));
}

#[test]
fn an_owner_always_has_somebody_who_manages_it() {
    let club = Club::full();
    assert_eq!(club.remove(ANNA, ANNA), Err(MemberRefusal::LastManager));
    assert_eq!(club.set(ANNA, ANNA, Role::Write), Err(MemberRefusal::LastManager));
    assert_eq!(club.set(ANNA, CORA, Role::Manage), Ok(0));
    assert_eq!(club.set(CORA, ANNA, Role::Write), Ok(2), "with her two invitations, which are used up");
    assert_eq!(club.remove(CORA, CORA), Err(MemberRefusal::LastManager));
    assert_eq!(club.remove(BERT, BERT), Ok(0), "a member may leave");
    assert_eq!(club.remove(BERT, BERT), Err(MemberRefusal::NotAMember));
    assert_eq!(club.state().2, [(1, Role::Write), (3, Role::Manage)]);
    // An account that goes takes nobody's rows along: who stands longest manages.
    club.write(|txn| members::leave(txn, CORA.user, NOW).map(Ok)).unwrap();
    assert_eq!(club.state().2, [(1, Role::Manage)]);
}

#[test]
fn an_invitation_takes_as_many_users_as_it_says_and_ends_with_its_maker() {
    let club = Club::full();
    club.write(|txn| members::invite(txn, ANNA, &invitation(20, Role::Write, 2), 9, NOW)).unwrap();
    let version = club.state().0;
    assert_eq!(club.accept(20, CORA), Ok(Role::Read), "a member already");
    assert_eq!(club.state().0, version);
    assert_eq!(club.accept(20, actor(4)), Ok(Role::Write));
    assert_eq!(club.since(actor(4)), club.state().0, "no cursor of before is of use");
    assert_eq!(club.accept(20, actor(4)), Ok(Role::Write), "sent again");
    assert_eq!(club.accept(20, actor(5)), Ok(Role::Write));
    let version = club.state().0;
    assert_eq!(club.accept(20, actor(5)), Ok(Role::Write), "the last use, sent again");
    assert_eq!(club.accept(20, actor(6)), Err(MemberRefusal::NoSuchInvitation));
    assert_eq!(club.state().0, version);
    let used_up = invitation(20, Role::Write, 0).id;
    assert_eq!(club.write(|txn| members::revoke(txn, ANNA, used_up)), Err(MemberRefusal::NoSuchInvitation));
    club.remove(ANNA, actor(5)).unwrap();
    assert_eq!(club.accept(20, actor(5)), Err(MemberRefusal::NoSuchInvitation), "a former member");
    assert_eq!(club.accept(99, actor(6)), Err(MemberRefusal::NoSuchInvitation));

    club.set(ANNA, BERT, Role::Manage).unwrap();
    let by_bert = |n| Invitation { made_by: BERT.user, ..invitation(n, Role::Manage, 5) };
    club.write(|txn| members::invite(txn, BERT, &by_bert(21), 9, NOW)).unwrap();
    club.write(|txn| members::invite(txn, BERT, &by_bert(22), 9, NOW)).unwrap();
    assert_eq!(club.write(|txn| members::revoke(txn, ANNA, by_bert(22).id)), Ok([22; 32]));
    assert_eq!(
        club.write(|txn| members::revoke(txn, ANNA, by_bert(22).id)),
        Err(MemberRefusal::NoSuchInvitation)
    );
    assert_eq!(club.set(ANNA, BERT, Role::Write), Ok(1), "void when its maker no longer manages");
    assert_eq!(club.accept(21, actor(6)), Err(MemberRefusal::NoSuchInvitation));
}

#[test]
fn members_and_invitations_are_bounded_and_old_invitations_expire() {
    let club = Club::full();
    for n in 30..33 {
        club.write(|txn| members::invite(txn, ANNA, &invitation(n, Role::Read, 9), 3, NOW)).unwrap();
    }
    let one_more = |at| club.write(|txn| members::invite(txn, ANNA, &invitation(34, Role::Read, 9), 3, at));
    assert_eq!(one_more(NOW), Err(MemberRefusal::TooManyInvitations));
    let accept = |max, at| club.write(|txn| members::accept(txn, &[30; 32], STRANGER.user, "", max, at));
    assert_eq!(accept(3, NOW), Err(MemberRefusal::TooManyMembers));
    assert_eq!(accept(4, NOW.shifted(1_000)), Err(MemberRefusal::NoSuchInvitation), "it has expired");
    assert!(accept(4, NOW).is_ok());
    assert_eq!(one_more(NOW.shifted(1_000)).unwrap().len(), 3, "expired ones make room");
}

#[test]
fn an_owner_is_named_made_public_and_erased_by_those_who_manage_it() {
    let club = Club::full();
    let describe = |name, public| club.write(|txn| members::describe(txn, ANNA, name, public, NOW)).unwrap();
    let (version, members_at, _) = club.state();
    let named = describe(Some("club"), None);
    assert_eq!((named, club.state().1), (version.next(), members_at), "roles hold");
    assert_eq!(describe(Some("club"), Some(false)), named, "nothing changed");
    let public = describe(None, Some(true));
    assert_eq!(club.state().1, public, "who may read is another matter");
    let erased = club.write(|txn| members::erase(txn, ANNA, NOW)).unwrap();
    let state = club.storage.read(CLUB, |txn| Ok::<_, StorageError>(txn.state())).unwrap();
    assert_eq!(
        (state.version, state.members_at, state.is_public, state.erased_at),
        (erased, erased, false, Some(NOW))
    );
    assert_eq!(club.set(ANNA, BERT, Role::Read), Err(MemberRefusal::NotAMember));
    assert_eq!(club.remove(BERT, BERT), Err(MemberRefusal::NotAMember));
    assert_eq!(club.accept(2, STRANGER), Err(MemberRefusal::NoSuchInvitation));
}

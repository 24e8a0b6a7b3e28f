//! What `GET /owners` returned a while ago, so that an unchanged list needs no database.
//!
//! A list is unchanged if each of its owners has the same version as then, and its user has joined no other owner since.
//! A role, a name, and who is a member, are changed by writes of the owner, which move its version. Whether a version is
//! current the engine knows ([`Storage::are_current`](crate::storage::Storage::are_current)), or it says that it does not:
//! so there is no such response over PostgreSQL, where other servers write.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use uuid::Uuid;

use crate::accounts::{Caller, TokenOwners};
use crate::broken;
use crate::model::{Owner, Version};
use crate::storage::Membership;

/// Most owners of all lists together, 24 bytes each.
const OWNERS_MAX: usize = 262_144;

/// The lists by user.
#[derive(Default)]
pub(super) struct OwnerLists(Mutex<Lists>);

#[derive(Default)]
struct Lists {
    by_user: HashMap<Uuid, OwnerList>,
    owners: usize,
    /// How often a user joined an owner.
    joins: u64,
}

/// One list: its tag, and the versions of its owners.
#[derive(Clone)]
pub(super) struct OwnerList {
    pub tag: String,
    pub versions: Arc<[(Owner, Version)]>,
    home: Owner,
    token_owners: Option<Arc<TokenOwners>>,
}

/// How often users had joined owners, before a list is read.
#[derive(Clone, Copy)]
pub(super) struct Joins(u64);

impl OwnerList {
    /// The list of a caller.
    pub fn new(caller: &Caller, tag: String, owners: &[Membership]) -> Self {
        let versions = owners.iter().map(|one| (one.owner, one.version)).collect();
        Self { tag, versions, home: caller.default_owner, token_owners: caller.token_owners.clone() }
    }
}

impl OwnerLists {
    /// The list that was last returned to a caller, if the caller's token has the same owners.
    pub fn find(&self, caller: &Caller) -> Option<OwnerList> {
        let lists = self.0.lock();
        let list = lists.by_user.get(&caller.user)?;
        let is_alike = list.home == caller.default_owner && list.token_owners == caller.token_owners;
        is_alike.then(|| list.clone())
    }

    /// Taken before a list is read.
    pub fn stamp(&self) -> Joins {
        Joins(self.0.lock().joins)
    }

    /// Keeps a list, unless a user may have joined an owner since it was read.
    pub fn note(&self, since: Joins, user: Uuid, list: OwnerList) {
        let mut lists = self.0.lock();
        if lists.joins != since.0 || list.versions.len() > OWNERS_MAX {
            return;
        }
        lists.forget(user);
        if lists.owners + list.versions.len() > OWNERS_MAX {
            lists.by_user.clear();
            lists.owners = 0;
        }
        lists.owners += list.versions.len();
        lists.by_user.insert(user, list);
    }

    /// A user has joined an owner. Called after the commit, and before the response that acknowledges it.
    pub fn joined(&self, user: Uuid) {
        let mut lists = self.0.lock();
        if !broken::is("joined_owner_unseen") {
            lists.joins += 1;
            lists.forget(user);
        }
    }
}

impl Lists {
    fn forget(&mut self, user: Uuid) {
        if let Some(list) = self.by_user.remove(&user) {
            self.owners -= list.versions.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::accounts::Rights;
    use crate::model::{DeviceId, Role};

    fn caller(user: u128) -> Caller {
        let (owner, device) = (Owner(Uuid::from_u128(user)), DeviceId(Uuid::from_u128(user)));
        Caller {
            owner,
            default_owner: owner,
            token_owners: None,
            rights: Rights::HOME,
            device,
            device_name: String::new(),
            token_device: device,
            installation: None,
            user: Uuid::from_u128(user),
        }
    }

    fn list(caller: &Caller, owners: usize) -> OwnerList {
        let one = |number: usize| Membership {
            owner: Owner(Uuid::from_u128(number as u128)),
            name: String::new(),
            role: Role::Read,
            version: Version(1),
            is_public: false,
            is_home: false,
        };
        OwnerList::new(caller, "tag".into(), &(0..owners).map(one).collect::<Vec<_>>())
    }

    #[test]
    fn a_list_that_was_read_before_a_join_is_not_kept() {
        let (lists, anna, ben) = (OwnerLists::default(), caller(1), caller(2));
        let before = lists.stamp();
        lists.note(before, anna.user, list(&anna, 3));
        lists.note(before, ben.user, list(&ben, 3));
        assert!(lists.find(&anna).is_some() && lists.find(&ben).is_some());
        let elsewhere = Caller { default_owner: ben.owner, ..anna.clone() };
        assert!(lists.find(&elsewhere).is_none(), "a token with another home");
        lists.joined(anna.user);
        lists.note(before, anna.user, list(&anna, 3));
        assert!(lists.find(&anna).is_none() && lists.find(&ben).is_some());
    }

    #[test]
    fn lists_are_bounded() {
        let lists = OwnerLists::default();
        for user in 0..300 {
            let caller = caller(user);
            lists.note(lists.stamp(), caller.user, list(&caller, 2_000));
            assert!(lists.find(&caller).is_some());
        }
        let held = lists.0.lock();
        assert!(held.owners <= OWNERS_MAX && held.by_user.len() * 2_000 == held.owners);
    }
}

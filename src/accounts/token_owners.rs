//! The owners that a provider's token names.

use super::Rights;
use crate::broken;
use crate::model::{Owner, Role};

/// The owners of a token with the user's roles, and the home. The token has no others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenOwners {
    /// By id, each once.
    roles: Vec<(Owner, Role)>,
}

impl TokenOwners {
    /// `None` if an owner is named twice, with different roles. A home that is not named is managed.
    pub(super) fn new(home: Owner, mut roles: Vec<(Owner, Role)>) -> Option<Self> {
        if !roles.iter().any(|(owner, _)| *owner == home) {
            roles.push((home, Role::Manage));
        }
        roles.sort_unstable();
        roles.dedup();
        let is_twice = roles.windows(2).any(|two| matches!(two, [(one, _), (next, _)] if one == next));
        (!is_twice).then_some(Self { roles })
    }

    /// The owners with the user's roles, by id.
    pub fn roles(&self) -> &[(Owner, Role)] {
        &self.roles
    }

    /// What the token may do with an owner.
    pub(super) fn rights(&self, owner: Owner) -> Rights {
        let place = self.roles.binary_search_by_key(&owner, |(owner, _)| *owner);
        let role = place.ok().and_then(|place| self.roles.get(place));
        let of_others = if broken::is("members_beside_token") { Rights::UNKNOWN } else { Rights::NONE };
        role.map_or(of_others, |(_, role)| Rights::of_token(*role))
    }
}

use serde::{Deserialize, Serialize};

/// What a member of an owner may do. Each role includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Reads rows.
    Read,
    /// Reads and writes rows.
    Write,
    /// Reads and writes rows, and decides who is a member.
    Manage,
}

impl Role {
    /// Every role, the least first.
    pub const ALL: [Self; 3] = [Self::Read, Self::Write, Self::Manage];

    /// As requests, responses and the schema file spell it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Manage => "manage",
        }
    }

    /// The role of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.name() == name)
    }

    /// The number that databases keep: 1, 2 or 3.
    pub const fn number(self) -> i64 {
        match self {
            Self::Read => 1,
            Self::Write => 2,
            Self::Manage => 3,
        }
    }

    /// The role of a number that a database keeps.
    pub fn of_number(number: i64) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.number() == number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_reads_back_as_it_is_kept_and_spelt() {
        for role in Role::ALL {
            assert_eq!(Role::of_number(role.number()), Some(role));
            assert_eq!(Role::named(role.name()), Some(role));
        }
        assert!(Role::Read < Role::Write && Role::Write < Role::Manage);
        assert_eq!((Role::of_number(0), Role::of_number(4), Role::named("owner")), (None, None, None));
    }
}

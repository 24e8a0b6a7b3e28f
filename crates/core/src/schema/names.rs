//! Which names tables and columns may have: those that JSON clients, SQLite and PostgreSQL all accept.

use std::collections::HashMap;

/// Names that PostgreSQL uses in every table.
const POSTGRES_OWN: [&str; 6] = ["tableoid", "xmin", "cmin", "xmax", "cmax", "ctid"];

/// What is wrong with a name for a table, a key or a column, and how to correct it.
pub(super) fn fault(name: &str) -> Option<String> {
    if name.starts_with('_') {
        return Some(format!("names that begin with \"_\" are reserved; rename {name:?}"));
    }
    owner_fault(name)
}

/// The same for the SQL column with the owner. It is never on the wire, so it may begin with `_`.
pub(super) fn owner_fault(name: &str) -> Option<String> {
    let plain = name.trim_start_matches('_').starts_with(|first: char| first.is_ascii_alphabetic())
        && name.len() <= 63
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    if !plain {
        return Some(format!(
            "{name:?} is not a name: use a letter, then at most 62 letters, digits and \"_\""
        ));
    }
    reserved(name)
}

/// What is wrong with a name for a key: a result contains it beside other members.
pub(super) fn key_fault(name: &str) -> Option<String> {
    ["verdict", "row", "error", "conflict"]
        .contains(&name)
        .then(|| format!("a verdict has a member {name:?} of its own; rename the key"))
}

fn reserved(name: &str) -> Option<String> {
    let lower = name.to_ascii_lowercase();
    if let Some(prefix) = ["rollcall_", "sqlite_"].into_iter().find(|prefix| lower.starts_with(prefix)) {
        return Some(format!("names that begin with {prefix:?} are reserved; rename {name:?}"));
    }
    if lower == "last_update" {
        return Some("\"last_update\" is part of every row already; leave it out or rename it".to_owned());
    }
    if POSTGRES_OWN.contains(&lower.as_str()) {
        return Some(format!("PostgreSQL has a column {lower:?} of its own in every table; rename {name:?}"));
    }
    None
}

/// The names in use, compared as SQL does: without regard to case.
#[derive(Default)]
pub(super) struct Taken(HashMap<String, String>);

impl Taken {
    /// Adds a name; the error contains the equal name that is in use, and what it names.
    pub(super) fn take(&mut self, name: &str, what: &str) -> Result<(), String> {
        match self.0.insert(name.to_ascii_lowercase(), format!("{what} {name:?}")) {
            None => Ok(()),
            Some(first) => Err(first),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_every_engine_takes_pass() {
        for name in ["a", "brideOrGroom", "expense_title", "x_", "Z9", &"n".repeat(63)] {
            assert_eq!(fault(name), None, "{name}");
        }
        for name in ["_owner", "__o", "couple_id"] {
            assert_eq!(owner_fault(name), None, "{name}");
        }
    }

    #[test]
    fn all_others_are_refused() {
        let long = "n".repeat(64);
        for name in ["", "9a", "a-b", "a b", "é", "a\"", &long] {
            assert!(fault(name).is_some_and(|fault| fault.contains("is not a name")), "{name}");
        }
        for name in ["_a", "_", "rollcall_x", "SQLITE_x", "Last_Update", "ctid", "XMIN"] {
            assert!(fault(name).is_some(), "{name}");
        }
        for name in ["", "_", "_9", "rollcall_owner", "last_update", "a-b"] {
            assert!(owner_fault(name).is_some(), "{name}");
        }
    }
}

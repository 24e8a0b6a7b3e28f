//! Names of types, derived from names of tables.

use std::collections::HashSet;

use serde_json::Value as Json;

use crate::schema::Schema;

/// The types of a table: the second half of each name, so that no name is a reserved word.
pub(super) const SUFFIXES: [&str; 6] = ["Entry", "Row", "New", "Patch", "Deletion", "Verdict"];

/// The first half of the names of each table's types, in declared order.
///
/// No two types get names that differ only in case or underscores, because generators change these: the later
/// table, or one that equals a type of the contract itself, gets a number.
pub(super) fn of_types(schema: &Schema, document: &Json) -> Vec<String> {
    let own = document["components"]["schemas"].as_object().into_iter().flatten();
    let mut taken: HashSet<String> = own.map(|(name, _)| folded(name)).collect();
    let mut names = Vec::new();
    for table in schema.tables() {
        let plain = pascal(&table.name);
        let mut name = plain.clone();
        let mut number = 2;
        while SUFFIXES.iter().any(|suffix| taken.contains(&folded(&format!("{name}{suffix}")))) {
            name = format!("{plain}{number}");
            number += 1;
        }
        taken.extend(SUFFIXES.map(|suffix| folded(&format!("{name}{suffix}"))));
        names.push(name);
    }
    names
}

/// Converts `invitation_categories` to `InvitationCategories`. Table names are ASCII letters, digits and
/// underscores.
fn pascal(name: &str) -> String {
    let words = name.split('_').filter(|word| !word.is_empty());
    words.map(|word| word[..1].to_ascii_uppercase() + &word[1..]).collect()
}

fn folded(name: &str) -> String {
    name.replace('_', "").to_ascii_lowercase()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_type_has_a_name_of_its_own() {
        let tables =
            ["a_b", "ab", "aB_", "class", "ab2", "manifest", "Z9", "x_", "brideOrGroom", "budget_row"];
        let text: String = tables.map(|name| format!("[table.{name}]\nkey = \"id\"\n")).concat();
        let schema = Schema::parse(&text.replace("[table.aB_]", "[table.a__b]")).unwrap();
        let document = json!({ "components": { "schemas": { "ManifestEntry": {}, "Row": {} } } });
        assert_eq!(
            of_types(&schema, &document),
            ["AB", "Ab2", "AB3", "Class", "Ab22", "Manifest2", "Z9", "X", "BrideOrGroom", "BudgetRow"]
        );
    }
}

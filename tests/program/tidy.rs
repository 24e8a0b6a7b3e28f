//! The sources, read as text: a boundary that no test watches moves.

use std::collections::BTreeSet;
use std::path::Path;

/// One file: its path, and its code without comments, blank lines and tests.
struct Source {
    path: String,
    code: Vec<String>,
}

impl Source {
    fn is_in(&self, place: &str) -> bool {
        self.path == format!("{place}.rs") || self.path.starts_with(&format!("{place}/"))
    }

    /// What the code names that begins with `prefix`: for `crate::`, the modules.
    fn named_after(&self, prefix: &str) -> BTreeSet<&str> {
        let mut found = BTreeSet::new();
        for line in &self.code {
            for (at, _) in line.match_indices(prefix) {
                let rest = &line[at + prefix.len()..];
                let end = rest.find(|c: char| !is_word(c)).unwrap_or(rest.len());
                found.insert(&rest[..end]);
            }
        }
        found
    }

    /// Whether the code has the word, not as a part of another.
    fn names(&self, word: &str) -> bool {
        let whole = |line: &str, at: usize| {
            !line[..at].ends_with(is_word) && !line[at + word.len()..].starts_with(is_word)
        };
        self.code.iter().any(|line| line.match_indices(word).any(|(at, _)| whole(line, at)))
    }
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn sources() -> Vec<Source> {
    let mut found = Vec::new();
    ["src", "bench/src"].iter().for_each(|folder| collect(Path::new(folder), &mut found));
    for part in std::fs::read_dir("crates").unwrap() {
        collect(&part.unwrap().path().join("src"), &mut found);
    }
    assert!(found.len() > 30, "{} files found: a moved folder must not pass", found.len());
    found
}

fn collect(folder: &Path, found: &mut Vec<Source>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            let path = path.to_str().unwrap().replace('\\', "/");
            found.push(Source { code: code_of(&path, &text), path });
        }
    }
}

fn code_of(path: &str, text: &str) -> Vec<String> {
    let (code, tests) = text.split_once("\n#[cfg(test)]\n").unwrap_or((text, ""));
    let after = tests.split_once("\n}\n").map_or("", |(_, after)| after);
    assert!(after.is_empty(), "{path}: tests stand in one module, at the end");
    let without_comment = |line: &str| line.split("//").next().unwrap().trim_end().to_owned();
    // A URL in a string would be cut like a comment: the rest of the line is checked nevertheless.
    code.lines().map(without_comment).filter(|line| !line.is_empty()).collect()
}

/// Where certain words may occur. The dependencies of the crates keep the rules free of databases, clocks and
/// HTTP; this checks the rest.
#[test]
fn each_word_stands_where_it_belongs() {
    let rules: &[(&str, &[&str])] = &[
        // Only the clock reads the time of day.
        ("SystemTime", &["crates/clock"]),
        // Rules and lookups block; the server calls them off its reactor.
        ("async", &["src/http", "src/dialects", "src/cli", "bench"]),
        ("warp", &["src/http", "src/dialects", "bench"]),
        ("StatusCode", &["src/http", "src/dialects", "src/accounts/keys", "bench"]),
    ];
    for source in sources() {
        for (word, places) in rules {
            let belongs = places.iter().any(|place| source.is_in(place));
            assert!(belongs || !source.names(word), "{} names {word}", source.path);
        }
    }
}

/// The rules stand on the words alone: not on storage, and not on the phases that call them.
#[test]
fn the_rules_name_only_the_words() {
    let rules = sources().into_iter().filter(|source| source.is_in("crates/core/src/reconcile"));
    for source in rules {
        for module in source.named_after("crate::") {
            assert!(["model", "schema", "broken"].contains(&module), "{} names {module}", source.path);
        }
    }
}

/// Files past this usually hold a second noun.
const LINES_MAX: usize = 500;

#[test]
fn files_read_in_one_sitting() {
    let reasons: &[(&str, &str)] = &[];
    for source in sources() {
        let reason = reasons.iter().find(|(path, _)| *path == source.path);
        let lines = source.code.len();
        assert!(lines <= LINES_MAX || reason.is_some(), "{} has {lines} lines of code", source.path);
        assert!(lines > LINES_MAX || reason.is_none(), "{}: take it off the list", source.path);
    }
}

#[test]
fn nothing_panics_outside_of_tests() {
    for source in sources() {
        for line in &source.code {
            for word in [
                ".unwrap()",
                ".expect(",
                ".unwrap_err()",
                "panic!",
                "todo!",
                "unimplemented!",
                "unreachable!",
                "dbg!",
                "unsafe ",
            ] {
                assert!(!line.contains(word), "{}: {}", source.path, line.trim());
            }
            if !source.is_in("src/cli") && !source.is_in("bench") {
                assert!(!line.contains("println!"), "{}: {}", source.path, line.trim());
            }
        }
    }
}

/// Names come from the schema and values are bound: SQL is built only in the few files that quote.
#[test]
fn sql_is_built_where_names_are_quoted() {
    let builders = [
        "crates/sqlite/src/ddl.rs",
        "crates/sqlite/src/erase.rs",
        "crates/sqlite/src/statements.rs",
        "crates/sqlite/src/tables.rs",
        "crates/sqlite/src/whole.rs",
        "crates/core/src/storage/plan.rs",
        "crates/postgres/src/admin.rs",
        "crates/postgres/src/ddl.rs",
        "crates/postgres/src/erase.rs",
        "crates/postgres/src/statements.rs",
        "crates/postgres/src/tables.rs",
        "crates/postgres/src/whole.rs",
    ];
    for source in sources() {
        for line in &source.code {
            let is_sql = ["SELECT ", "INSERT ", "UPDATE ", "DELETE "].iter().any(|verb| line.contains(verb));
            let is_built = line.contains("format!(") && is_sql;
            assert!(
                !is_built || builders.contains(&source.path.as_str()),
                "{}: {}",
                source.path,
                line.trim()
            );
        }
    }
}

/// Nothing of the machine that a file was written on belongs into it.
#[test]
fn no_file_names_a_home_folder() {
    let mut looked_at = 0;
    let mut folders = ["src", "crates", "bench", "tests", "fixtures"].map(str::to_owned).to_vec();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path.to_str().unwrap().to_owned());
            } else if let Ok(text) = std::fs::read_to_string(&path) {
                looked_at += 1;
                for root in ["home", "root", "Users"] {
                    let root = format!("/{root}/");
                    assert!(!text.contains(&root), "{} names {root}", path.display());
                }
            }
        }
    }
    assert!(looked_at > 50);
}

//! The sources, read as text: a boundary that no test watches moves.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeSet;
use std::path::Path;

/// One file: its path below `src`, and its code without comments, blank lines and tests.
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
    collect(Path::new("src"), &mut found);
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
            let path = path.strip_prefix("src").unwrap().to_str().unwrap().replace('\\', "/");
            found.push(Source { code: code_of(&path, &text), path });
        }
    }
}

fn code_of(path: &str, text: &str) -> Vec<String> {
    let (code, tests) = text.split_once("\n#[cfg(test)]\n").unwrap_or((text, ""));
    let after = tests.split_once("\n}\n").map_or("", |(_, after)| after);
    assert!(after.is_empty(), "{path}: tests stand in one module, at the end");
    let without_comment = |line: &str| line.split("//").next().unwrap().trim_end().to_owned();
    // A URL in a string would be cut as a comment: what is left of the line is looked at all the same.
    code.lines().map(without_comment).filter(|line| !line.is_empty()).collect()
}

/// Arrows go one way: what each part of the crate may name of the others.
#[test]
fn modules_name_only_what_lies_below_them() {
    let rules: &[(&str, &[&str])] = &[
        ("model", &[]),
        ("broken", &[]),
        ("config", &[]),
        ("metrics", &[]),
        ("clock", &["model"]),
        ("schema", &["model", "schema"]),
        ("contract", &["model", "schema", "contract"]),
        ("reconcile", &["model", "schema"]),
        ("digest", &["model"]),
        ("storage", &["model", "schema", "reconcile", "digest", "metrics", "storage"]),
        ("fetch", &["model", "schema", "storage"]),
        ("changes", &["model", "schema", "reconcile", "storage"]),
        (
            "synchronise",
            &["model", "schema", "storage", "reconcile", "changes", "conflicts", "digest", "synchronise"],
        ),
        ("why", &["model"]),
        ("conflicts", &["model", "schema", "storage", "reconcile", "synchronise"]),
        ("purge", &["model", "config", "accounts", "storage"]),
        ("copy", &["model", "storage"]),
        ("accounts", &["model", "clock", "config", "storage", "accounts"]),
        ("locks", &["model", "clock", "accounts", "storage"]),
        (
            "http",
            &[
                "model",
                "clock",
                "config",
                "schema",
                "contract",
                "storage",
                "reconcile",
                "fetch",
                "synchronise",
                "changes",
                "conflicts",
                "digest",
                "purge",
                "accounts",
                "locks",
                "why",
                "metrics",
                "http",
            ],
        ),
        ("device", &["model", "clock", "schema", "reconcile", "device"]),
        // A benchmark loads rows and digests through the storage contract, not through a phase.
        ("cli/bench", &["model", "clock", "config", "schema", "storage", "digest", "http", "cli"]),
        (
            "cli",
            &[
                "device",
                "copy",
                "purge",
                "model",
                "clock",
                "config",
                "schema",
                "contract",
                "storage",
                "synchronise",
                "accounts",
                "metrics",
                "http",
                "cli",
            ],
        ),
    ];
    let sources = sources();
    for source in &sources {
        let Some((_, allowed)) = rules.iter().find(|(place, _)| source.is_in(place)) else {
            assert!(
                ["lib.rs", "main.rs"].contains(&source.path.as_str()),
                "{}: say what it may name",
                source.path
            );
            continue;
        };
        for module in source.named_after("crate::") {
            // Faults for the tests to find stand where they do harm.
            let allowed = allowed.contains(&module) || module == "broken";
            assert!(allowed, "{} names crate::{module}", source.path);
        }
    }
    for (place, _) in rules {
        assert!(
            sources.iter().any(|source| source.is_in(place)),
            "there is no {place}: take it off the list"
        );
    }
}

#[test]
fn what_is_pure_or_blocking_stays_so() {
    let rules: &[(&[&str], &[&str])] = &[
        (
            &["reconcile", "model", "schema", "contract", "device/decide", "why"],
            &[
                "warp",
                "tokio",
                "rusqlite",
                "hyper",
                "SystemTime",
                "Instant",
                "http",
                "async",
                "await",
                "parking_lot",
                "fs",
                "TcpStream",
                "TcpListener",
                "IpAddr",
                "env",
            ],
        ),
        (
            &["storage", "fetch", "synchronise"],
            &["http", "warp", "tokio", "hyper", "async", "await", "locks", "Clock"],
        ),
        (&["storage"], &["synchronise", "fetch", "settle"]),
        (&["fetch", "synchronise"], &["rusqlite", "sqlite", "SystemTime", "Instant", "StatusCode"]),
        (&["locks", "accounts"], &["warp", "tokio", "rusqlite", "hyper", "async", "await"]),
        (
            &["http", "cli", "accounts", "locks", "fetch", "synchronise", "config"],
            &["rusqlite", "r2d2", "SqlState", "NoTls"],
        ),
    ];
    for source in sources() {
        for (places, words) in rules {
            if places.iter().any(|place| source.is_in(place)) {
                for word in *words {
                    let exempt = *word == "rusqlite" && source.is_in("cli/bench/yardstick");
                    assert!(exempt || !source.names(word), "{} names {word}", source.path);
                }
            }
        }
        if source.path != "clock.rs" {
            assert!(!source.names("SystemTime"), "{}: only the clock reads the system's time", source.path);
        }
        // The benchmark's yardstick is SQLite without the engine.
        let knows =
            ["storage/sqlite", "device", "cli/bench/yardstick"].iter().any(|place| source.is_in(place));
        if !knows {
            assert!(!source.names("rusqlite"), "{}: only the engines know SQLite", source.path);
        }
    }
}

/// The rules are pure: the library, `serde` and their own parts are all they use.
#[test]
fn the_rules_use_nothing_but_the_library() {
    for source in sources().iter().filter(|source| source.is_in("reconcile")) {
        for line in source.code.iter().filter_map(|line| line.trim_start_matches("pub ").strip_prefix("use "))
        {
            let root = line.split("::").next().unwrap();
            assert!(
                [
                    "crate",
                    "super",
                    "std",
                    "serde",
                    "serde_json",
                    "rust_decimal",
                    "clock",
                    "merge",
                    "net",
                    "past",
                    "rules",
                    "times"
                ]
                .contains(&root),
                "{}: {line}",
                source.path
            );
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
            if !source.is_in("cli") {
                assert!(!line.contains("println!"), "{}: {}", source.path, line.trim());
            }
        }
    }
}

/// Names come from the schema and values are bound: whatever builds SQL stands in the few files that quote.
#[test]
fn sql_is_built_where_names_are_quoted() {
    let builders = [
        "storage/sqlite/ddl.rs",
        "storage/sqlite/statements.rs",
        "storage/sqlite/tables.rs",
        "storage/sqlite/whole.rs",
        "storage/plan.rs",
        "storage/postgres/admin.rs",
        "storage/postgres/ddl.rs",
        "storage/postgres/statements.rs",
        "storage/postgres/tables.rs",
        "storage/postgres/whole.rs",
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
    let mut folders = vec!["src".to_owned(), "tests".to_owned(), "fixtures".to_owned()];
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

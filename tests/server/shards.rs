//! Whether the tables and the SQL of the PostgreSQL engine can be sharded by owner as they stand.

use rollcall_testkit::engine;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use engine::{Engine, Store, pg};
use rollcall::model::{Claim, DeviceId, Owner, RowKey, Stored, Timestamp, Value};
use rollcall::schema::Schema;
use rollcall::storage::{OwnerState, Storage, StorageError};
use uuid::Uuid;

const SCHEMA: &str = r#"
[table.children]
key = "cid"
[table.children.columns]
parent = { type = "uuid", references = "parents" }
next = { type = "uuid", references = "children" }

[table.parents]
key = "pid"
owner_column = "whose"
[table.parents.columns]
title = "text"
"#;

/// Tables that no owner has: small, and copied to every shard.
const REFERENCE: [&str; 5] =
    ["rollcall_meta", "rollcall_table", "rollcall_column", "rollcall_user", "rollcall_device"];

fn serve(store: &Store) -> Arc<dyn Storage> {
    let schema = Arc::new(Schema::parse(SCHEMA).unwrap());
    store.serve(&schema, Duration::from_secs(10), Timestamp::from_ms(0), Arc::default()).unwrap()
}

/// Goal: an owner's rows can live on a node of their own. Method: the catalogue, once a server has made its tables.
#[test]
fn the_owner_leads_every_key() {
    if !Engine::all().contains(&Engine::Postgres) {
        return;
    }
    let mut store = Store::of(Engine::Postgres);
    drop(serve(&store));
    store.look();
    let reference = REFERENCE.map(|name| format!("'{name}'")).join(", ");
    let owned = "n.nspname = 'public' AND c.relkind = 'r' AND c.relname NOT IN";
    let leads = |keys: &str| {
        format!(
            "SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace {keys}
             WHERE {owned} ({reference}) AND a.attname NOT IN ('owner', '_owner', 'whose')"
        )
    };
    let unique = "JOIN pg_index i ON i.indrelid = c.oid AND (i.indisunique OR i.indisprimary)
                  JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = i.indkey[0]";
    let indexes = "JOIN pg_index i ON i.indrelid = c.oid
                   JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = i.indkey[0]";
    let foreign = "JOIN pg_constraint f ON f.conrelid = c.oid AND f.contype = 'f'
                   JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = f.conkey[1]";
    for (what, sql) in [
        ("a unique key without the owner first", leads(unique)),
        ("an index without the owner first", leads(indexes)),
        ("a foreign key without the owner first", leads(foreign)),
        (
            "a table without a primary key",
            format!(
                "SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                 WHERE {owned} ('') AND NOT EXISTS
                 (SELECT 1 FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary)"
            ),
        ),
        (
            "a sequence",
            "SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
             WHERE n.nspname = 'public' AND c.relkind = 'S'"
                .to_owned(),
        ),
        ("a trigger", "SELECT count(*) FROM pg_trigger t WHERE NOT t.tgisinternal".to_owned()),
        ("a deferrable constraint", "SELECT count(*) FROM pg_constraint f WHERE f.condeferrable".to_owned()),
    ] {
        assert_eq!(store.number(&sql), 0, "{what}");
    }
    let tables = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'";
    assert_eq!(store.number(tables), 17, "a table that this test does not know: is its owner first?");
}

/// Goal: no statement needs two shards. Method: every text of SQL in the engine's sources.
#[test]
fn every_statement_names_the_owner_and_nothing_that_shards_lack() {
    let mut statements = 0;
    for file in std::fs::read_dir("crates/postgres/src").unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "rs") {
            continue;
        }
        let source = std::fs::read_to_string(&path).unwrap().replace("\\\n", " ");
        for text in texts(&source) {
            let words: Vec<_> = text.split_whitespace().collect();
            let is_sql = ["SELECT", "INSERT", "UPDATE", "DELETE", "WITH"]
                .contains(words.first().unwrap_or(&""))
                && words.len() > 3;
            if !is_sql {
                continue;
            }
            statements += 1;
            check(&path, &text);
        }
    }
    assert!(statements > 50, "only {statements} statements found");
}

/// The literals of a source, with those of one `concat!` taken as one.
fn texts(source: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut rest = source;
    while let Some(at) = rest.find('"') {
        let in_concat = rest[..at].rfind("concat!(").is_some_and(|open| !rest[open..at].contains(";\n"));
        let body = &rest[at + 1..];
        let mut end = 0;
        while let Some(next) = body[end..].find(['"', '\\']) {
            end += next;
            if body.as_bytes()[end] == b'"' {
                break;
            }
            end += 2;
        }
        let text = body[..end].to_owned();
        match found.last_mut() {
            Some(last) if in_concat => *last = format!("{last} {text}"),
            _ => found.push(text),
        }
        rest = &body[end + 1..];
    }
    found
}

fn check(path: &Path, text: &str) {
    let lower = text.to_ascii_lowercase();
    for banned in ["nextval", "advisory", "temporary", "deferrable", "for each statement"] {
        assert!(!lower.contains(banned), "{}: {banned} in {text}", path.display());
    }
    assert!(
        !lower.contains("unnest") || lower.starts_with("select"),
        "{}: a write from unnest: {text}",
        path.display()
    );
    if let Some(update) = lower.split_once("on conflict").and_then(|(_, rest)| rest.split_once("where")) {
        assert!(!update.1.contains("now()"), "{}: now() in ON CONFLICT … WHERE: {text}", path.display());
    }
    let of_owners = [
        "rollcall_owner",
        "rollcall_ledger",
        "rollcall_digest",
        "rollcall_day",
        "rollcall_history",
        "rollcall_conflict",
        "rollcall_answer",
        "rollcall_ack",
        "rollcall_installation",
        "rollcall_delete_window",
        "{name}",
    ];
    // What whoever runs the server asks across owners, a page of owners, and the tables' own making.
    let across = [
        "create_",
        "max(day)",
        "max(at)",
        "count(*)",
        "group by tbl",
        "owner >= $1",
        "lease_until > ",
        "update {} set",
    ];
    if of_owners.iter().any(|table| lower.contains(table)) && !across.iter().any(|part| lower.contains(part))
    {
        let named =
            ["owner = $1", "{owner} = $1", "(owner,", "({owner},"].iter().any(|part| lower.contains(part));
        assert!(named, "{}: no owner in {text}", path.display());
    }
}

/// Goal: nothing needs two owners in one database. Method: four databases, an owner's by the hash of its id; the
/// same work as over one.
#[test]
fn four_databases_do_for_shards() {
    if !Engine::all().contains(&Engine::Postgres) {
        return;
    }
    let stores: Vec<_> = (0..4).map(|_| Store::of(Engine::Postgres)).collect();
    let shards: Vec<_> = stores.iter().map(serve).collect();
    let shard = |owner: Owner| &shards[usize::from(owner.0.as_bytes()[15]) % shards.len()];
    let parents = Schema::parse(SCHEMA).unwrap().table("parents").unwrap().id;
    let owners: Vec<_> = (0..40).map(|n| Owner(Uuid::from_u128(n * 7 + 1))).collect();
    for owner in &owners {
        for n in 0..3_u128 {
            shard(*owner)
                .write(*owner, |txn| {
                    let state = txn.state();
                    let version = state.version.next();
                    let row = Stored {
                        version,
                        created: version,
                        last_update: Timestamp::from_ms(1),
                        made_at: None,
                        claim: Claim::default(),
                        made_by: DeviceId(Uuid::nil()),
                        changed_by: DeviceId(Uuid::nil()),
                        lives: Vec::new(),
                        writers: Vec::new(),
                        values: Some(vec![Value::Text(owner.to_string())]),
                    };
                    txn.put(parents, &[(RowKey(Uuid::from_u128(n)), &row)])?;
                    txn.advance(
                        OwnerState { version, rows: state.rows + 1, ..state },
                        &[],
                        Timestamp::from_ms(0),
                    )
                })
                .unwrap();
        }
    }
    for owner in &owners {
        let mut keys = 0;
        let held = shard(*owner).read(*owner, |txn| {
            txn.manifest(parents, None, 9, &mut |_, _| keys += 1)?;
            Ok::<_, StorageError>(txn.state().rows)
        });
        assert_eq!((held.unwrap(), keys), (3, 3));
    }
    let held: Vec<usize> = shards.iter().map(|shard| shard.owners(None, 99).unwrap().len()).collect();
    assert_eq!(held.iter().sum::<usize>(), owners.len());
    assert!(held.iter().all(|owners| *owners > 0), "{held:?}");
}

#[test]
fn the_statements_for_citus_spread_every_table() {
    let schema = Schema::parse(SCHEMA).unwrap();
    let told = rollcall::storage::postgres::distribution(&schema);
    let place = |name: &str| told.iter().position(|(table, _)| table == name).unwrap();
    assert_eq!(told.len(), 17);
    assert!(place("parents") < place("children"), "a table comes after those that it refers to");
    assert!(told[place("parents")].1.contains("'\"parents\"', 'whose', colocate_with => 'rollcall_owner'"));
    assert!(REFERENCE.iter().all(|name| told[place(name)].1.contains("create_reference_table")));
    let _ = pg::binaries();
}

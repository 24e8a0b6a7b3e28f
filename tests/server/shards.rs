//! Whether the tables and the SQL of the PostgreSQL engine can be sharded by owner as they stand.

use rollcall_testkit::engine;

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

/// Tables that no owner has: small, never changed in service, and copied to every shard.
const REFERENCE: [&str; 3] = ["rollcall_meta", "rollcall_table", "rollcall_column"];

/// Tables of accounts, and what leads each of their keys: a user, or what a look-up is by. Where servers of the release
/// before may be at work, some keys lead with something else: see [`BEFORE`].
const ACCOUNTS: [(&str, &str); 5] = [
    ("rollcall_user", "id"),
    ("rollcall_device", "user_id"),
    ("rollcall_membership", "user_id"),
    ("rollcall_lookup", "name"),
    ("rollcall_gone", "token_hash"),
];

/// Constraints that are dropped as the tables are distributed.
const BEFORE: [&str; 3] =
    ["rollcall_user_email_key", "rollcall_device_id_key", "rollcall_device_token_hash_key"];

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
    let reference = REFERENCE.iter().chain(ACCOUNTS.iter().map(|(name, _)| name));
    let reference = reference.map(|name| format!("'{name}'")).collect::<Vec<_>>().join(", ");
    let owned = "n.nspname = 'public' AND c.relkind = 'r' AND c.relname NOT IN";
    let leads = |keys: &str| {
        format!(
            "SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace {keys}
             WHERE {owned} ({reference}) AND a.attname NOT IN ('owner', '_owner', 'whose')"
        )
    };
    let unique = "JOIN pg_index i ON i.indrelid = c.oid AND (i.indisunique OR i.indisprimary)
                  JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = i.indkey[0]";
    // A purge looks for what is due across owners, on each node by itself.
    let indexes =
        "JOIN pg_index i ON i.indrelid = c.oid AND i.indexrelid::regclass::text <> 'rollcall_owner_due'
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
    for (table, leads) in ACCOUNTS {
        let strange = format!(
            "SELECT count(*) FROM pg_class c {unique} JOIN pg_class k ON k.oid = i.indexrelid
             WHERE c.relname = '{table}' AND a.attname <> '{leads}' AND k.relname NOT IN ('{}')",
            BEFORE.join("', '")
        );
        assert_eq!(store.number(&strange), 0, "a unique key of {table} that does not begin with {leads}");
    }
    assert_eq!(store.number(tables), 22, "a table that this test does not know: is its owner first?");
}

/// Goal: no statement needs two shards, or what a cluster refuses. Method: every text of SQL in the engine's sources.
#[test]
fn every_statement_names_the_owner_and_nothing_that_shards_lack() {
    let mut statements = 0;
    for file in std::fs::read_dir("crates/postgres/src").unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "rs") {
            continue;
        }
        let source = std::fs::read_to_string(&path).unwrap().replace("\\\n", " ");
        let may_define = MAY_DEFINE.contains(&path.file_name().unwrap().to_str().unwrap());
        for text in texts(&expanded(&source)) {
            let words: Vec<_> = text.split_whitespace().collect();
            let first = words.first().unwrap_or(&"");
            let is_sql = ["SELECT", "INSERT", "UPDATE", "DELETE", "WITH"].contains(first)
                || DEFINES.contains(first) && !may_define;
            if is_sql && words.len() > 3 {
                statements += 1;
                assert_eq!(refused(&text), Vec::<&str>::new(), "{}: {text}", path.display());
            }
        }
    }
    assert!(statements > 50, "only {statements} statements found");
}

/// Goal: the rules find what a cluster refused, or what lost writes on it. Method: the statements that did.
#[test]
fn the_rules_find_what_a_cluster_refused() {
    for (text, rule) in [
        (
            "UPDATE rollcall_owner SET lease_since = CASE WHEN holder = $2 THEN lease_since ELSE \
             (extract(epoch FROM now()) * 1000)::bigint END WHERE owner = $1",
            CLOCK,
        ),
        ("UPDATE rollcall_owner SET holder = $2 WHERE owner = $1 RETURNING fence, now()", CLOCK),
        (
            "INSERT INTO rollcall_ack (owner, at) VALUES ($1, $2) ON CONFLICT (owner) DO UPDATE SET at = \
             coalesce(excluded.at, clock_timestamp())",
            CLOCK,
        ),
        // The clock of the node that has the rows, where a write goes by the coordinator's.
        ("SELECT lease_until, now() FROM rollcall_owner WHERE owner = $1", CLOCK),
        ("SELECT version FROM rollcall_owner WHERE owner = $1 FOR UPDATE", LOCK),
        ("UPDATE rollcall_owner SET fence = 1 WHERE owner = $1 OR holder = $2", OWNER),
        ("DELETE FROM rollcall_ledger WHERE (owner = $1 AND tbl = $2)", OWNER),
        ("DELETE FROM rollcall_ledger WHERE tbl = $1", OWNER),
        ("INSERT INTO rollcall_ack (device, owner) VALUES ($1, $2)", OWNER),
        ("SELECT version FROM rollcall_ledger WHERE tbl = $1", OWNER),
        ("UPDATE rollcall_device SET seen_at = $2 WHERE id = $1", ACCOUNT),
        ("DELETE FROM rollcall_user WHERE email = $1", ACCOUNT),
        ("INSERT INTO rollcall_ledger (owner, key) SELECT $1, k FROM unnest($2::uuid[]) AS k", UNNEST),
        (
            "UPDATE rollcall_owner SET fence = 2 WHERE owner = $1 RETURNING (SELECT max(day) FROM days)",
            RETURNS,
        ),
        ("CREATE TABLE IF NOT EXISTS cache (owner uuid)", DEFINITION),
        ("SELECT pg_advisory_lock($1) FROM rollcall_owner WHERE owner = $1", ABSENT),
    ] {
        assert_eq!(refused(text), [rule], "{text}");
    }
    let macros = "macro_rules! a {\n    () => {\n        \"now()\"\n    };\n}\nconst A: &str = \
                  concat!(\"UPDATE rollcall_owner SET x = \", a!(), \" WHERE owner = $1\");\n";
    assert!(texts(&expanded(macros)).iter().any(|text| refused(text) == [CLOCK]), "seen within a macro");
}

/// Where tables are made and changed, before a server serves.
const MAY_DEFINE: [&str; 4] = ["ddl.rs", "tables.rs", "migrate.rs", "admin.rs"];
const DEFINES: [&str; 4] = ["CREATE", "ALTER", "DROP", "TRUNCATE"];

const CLOCK: &str = "reads a clock, or what else gives another value each time";
const LOCK: &str = "locks an owner in a way that a shard that moves does not wait for";
const OWNER: &str = "does not name one owner where the planner looks for it";
const ACCOUNT: &str = "is over all users, and not over one or one look-up";
const UNNEST: &str = "writes what unnest gives";
const RETURNS: &str = "looks into another table for what it returns";
const DEFINITION: &str = "changes tables in service";
const ABSENT: &str = "needs what clusters lack";

/// A source with each of its own macros expanded.
fn expanded(source: &str) -> String {
    let (mut source, mut macros) = (source.to_owned(), Vec::new());
    while let Some(at) = source.find("macro_rules! ") {
        let definition = &source[at..];
        let end = definition.find("\n}\n").unwrap() + 3;
        let (name, rest) = definition["macro_rules! ".len()..end].split_once(' ').unwrap();
        let body = rest.split_once("() => {").unwrap().1.rsplit_once("};").unwrap().0;
        macros.push((format!("{name}!()"), body.trim().to_owned()));
        source.replace_range(at..at + end, "");
    }
    for _ in 0..macros.len() {
        for (name, body) in &macros {
            source = source.replace(name, body);
        }
    }
    source
}

/// The rules that a statement breaks.
fn refused(text: &str) -> Vec<&'static str> {
    let lower = text.split_whitespace().collect::<Vec<_>>().join(" ").to_ascii_lowercase();
    let has = |words: &[&str]| words.iter().any(|word| lower.contains(word));
    let writes = ["insert", "update", "delete"].iter().any(|word| lower.starts_with(word));
    let is_owners = has(&OF_OWNERS);
    let volatile = [" now()", "(now()", "clock_timestamp", "current_timestamp", "random(", "random_uuid"];
    let returned = lower.split_once(" returning ").map_or("", |(_, returned)| returned);
    let broken = [
        (CLOCK, is_owners && (has(&volatile) || lower.starts_with("now()"))),
        (LOCK, is_owners && has(&["for update", "for share", "for no key update"])),
        (OWNER, is_owners && !has(&ACROSS) && !(if writes { writes_one(&lower) } else { reads_one(&lower) })),
        (ACCOUNT, has(&OF_ACCOUNTS) && !has(&["pg_constraint"]) && !is_of_one_account(&lower)),
        (UNNEST, writes && has(&["unnest"])),
        (RETURNS, returned.contains("select")),
        (DEFINITION, DEFINES.iter().any(|word| text.starts_with(word))),
        (ABSENT, has(&["nextval", "advisory", "temporary", "deferrable", "for each statement"])),
    ];
    broken.into_iter().filter(|(_, is)| *is).map(|(rule, _)| rule).collect()
}

const OF_OWNERS: [&str; 13] = [
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
    "rollcall_member ",
    "rollcall_invitation",
    "{name}",
];

/// The operator's queries across owners, a page of owners, where an owner is, and the creation of tables.
const ACROSS: [&str; 15] = [
    "pg_dist_placement",
    "from rollcall_owner where erased_at is not null and owner > $1 order",
    "create_",
    "max(day) from rollcall_day",
    "max(at)",
    "count(*)",
    "group by tbl",
    "owner >= $1",
    "lease_until > $2 limit",
    "where due_at <= $1 and (due_at, owner) > ($2, $3)",
    "update {} set",
    // The owners of one user, in one statement that reads.
    "where m.owner = any($1) and m.user_id = $2",
    // The owners that a token names, in one statement that reads.
    "from rollcall_owner where owner = any($1)",
    // A copy that ends; no server runs.
    "insert into rollcall_membership (user_id, owner) select user_id, owner from rollcall_member",
    "insert into rollcall_lookup (name, kind, id, expires_at) select",
];

/// Accounts go by one user, or by the name of a look-up.
const OF_ACCOUNTS: [&str; 5] =
    ["rollcall_user", "rollcall_device", "rollcall_membership", "rollcall_lookup", "rollcall_gone"];

/// Whether a statement over accounts is of one user or one look-up, or one of those that need all: a copy that ends, and
/// what reads for the operator, beside servers of the release before, or to find what has expired.
fn is_of_one_account(sql: &str) -> bool {
    let all = [
        "delete from rollcall_membership",
        "delete from rollcall_lookup",
        "delete from rollcall_gone where until <= $1",
    ];
    let reads = [
        "order by email",
        "any($1)",
        "where email = $1",
        "token_hash = $1",
        "from rollcall_owner union all select id from rollcall_user limit 1",
        "select user_id from",
        "max(",
        "expires_at < $1 limit",
    ];
    let is_user = sql.contains("rollcall_user ") && sql.contains("where id = $1");
    let one = is_user || ["user_id = $1", "name = $1"].iter().any(|part| sql.contains(part));
    let is_read = sql.starts_with("select") && reads.iter().any(|part| sql.contains(part));
    one || is_read || sql.starts_with("insert") || all.contains(&sql)
}

fn reads_one(sql: &str) -> bool {
    ["owner = $1", "{owner} = $1"].iter().any(|part| sql.contains(part))
}

/// Whether a write names its owner first among its columns, or in an equality that nothing is beside but `AND`.
fn writes_one(sql: &str) -> bool {
    if sql.starts_with("insert") {
        return ["(owner,", "({owner},"].iter().any(|part| sql.contains(part));
    }
    let Some((_, condition)) = sql.split_once(" where ") else { return false };
    let (mut depth, mut outer) = (0, String::new());
    for c in condition.chars() {
        depth += match c {
            '(' => 1,
            ')' => -1,
            _ => 0,
        };
        if depth == 0 {
            outer.push(c);
        }
    }
    let outer = outer.split(" returning ").next().unwrap();
    let mut conjuncts = outer.split(" and ").map(str::trim);
    !outer.contains(" or ") && conjuncts.any(|one| ["owner = $1", "{owner} = $1"].contains(&one))
}

/// The literals of a source, with those of one `concat!` taken as one.
fn texts(source: &str) -> Vec<String> {
    let (mut found, mut from, mut last_concat) = (Vec::<String>::new(), 0, None);
    while let Some(at) = source[from..].find('"').map(|at| from + at) {
        let concat = source[..at].rfind("concat!(").filter(|open| !source[*open..at].contains(";\n"));
        // A nested one belongs to the outer one.
        let is_within = last_concat.is_some_and(|last: usize| !source[last..at].contains(";\n"));
        let mut end = at + 1;
        while let Some(next) = source[end..].find(['"', '\\']).map(|next| end + next) {
            end = next;
            if source.as_bytes()[end] == b'"' {
                break;
            }
            end += 2;
        }
        let text = &source[at + 1..end];
        match found.last_mut() {
            Some(last) if is_within => *last = format!("{last} {text}"),
            _ => {
                found.push(text.to_owned());
                last_concat = concat;
            }
        }
        from = end + 1;
    }
    found
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
                        lifetimes: Vec::new(),
                        aware_devices: Vec::new(),
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
    let held: Vec<usize> = shards.iter().map(|shard| shard.owners().page(None, 99).unwrap().len()).collect();
    assert_eq!(held.iter().sum::<usize>(), owners.len());
    assert!(held.iter().all(|owners| *owners > 0), "{held:?}");
}

#[test]
fn the_statements_for_citus_spread_every_table() {
    let schema = Schema::parse(SCHEMA).unwrap();
    let result = rollcall::storage::postgres::distribution(&schema);
    let place = |name: &str| result.iter().position(|(table, _)| table == name).unwrap();
    assert_eq!(result.len(), 26);
    assert!(place("parents") < place("children"), "a table comes after those that it refers to");
    assert!(result[place("parents")].1.contains("'\"parents\"', 'whose', colocate_with => 'rollcall_owner'"));
    assert!(REFERENCE.iter().all(|name| result[place(name)].1.contains("create_reference_table")));
    let _ = pg::binaries();
}

//! Schema files: what is refused, and how the database follows when a schema changes. The cases are files, so
//! that a new one needs no Rust: see `fixtures/schema/README.md`.

use rollcall_testkit::engine;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use engine::{Engine, Store, pg};
use rollcall::model::Timestamp;
use rollcall::schema::Schema;
use rollcall::storage::postgres::Postgres;
use rollcall::storage::sqlite::tables;
use rusqlite::Connection;
use rusqlite::types::ValueRef;

fn cases(folder: &str) -> Vec<(PathBuf, String)> {
    let mut paths: Vec<_> = std::fs::read_dir(Path::new("fixtures/schema").join(folder))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    paths.into_iter().map(|path| (path.clone(), std::fs::read_to_string(path).unwrap())).collect()
}

/// Goal: each fault is reported with its line, its place and its correction. Method: the file contains its
/// expectations in `#!` lines.
#[test]
fn every_faulty_schema_is_refused_as_its_file_says() {
    let mut wrong = String::new();
    let cases = cases("faults");
    for (path, text) in &cases {
        let expected: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("#! ")).collect();
        let result = match Schema::parse(text) {
            Ok(_) => "no fault".to_owned(),
            Err(error) => error.to_string(),
        };
        if result.lines().ne(expected.iter().copied()) {
            wrong.push_str(&format!("{}\n", path.display()));
            result.lines().for_each(|line| wrong.push_str(&format!("#! {line}\n")));
        }
    }
    assert!(wrong.is_empty(), "these files are told something else:\n{wrong}");
    assert!(cases.len() >= 25, "a moved folder must not pass");
}

/// The parts of one case file, each under a line `== name`.
fn part<'t>(text: &'t str, name: &str) -> Option<&'t str> {
    let start = text.find(&format!("== {name}\n"))? + name.len() + 3;
    let rest = &text[start..];
    Some(rest.find("\n== ").map_or(rest, |end| &rest[..end]))
}

fn database() -> Connection {
    let conn = Connection::open_in_memory().unwrap();
    conn.execute_batch(
        "PRAGMA foreign_keys = ON; PRAGMA trusted_schema = OFF;
         CREATE TABLE rollcall_owner (id INTEGER PRIMARY KEY) STRICT;
         INSERT INTO rollcall_owner VALUES (1), (2);",
    )
    .unwrap();
    conn
}

/// A query's rows, a line each, columns separated by `|`.
fn rows(conn: &Connection, sql: &str) -> String {
    let mut statement = conn.prepare(sql).unwrap_or_else(|error| panic!("{error}: {sql}"));
    let width = statement.column_count();
    let mut found = statement.query([]).unwrap();
    let mut result = String::new();
    while let Some(row) = found.next().unwrap() {
        let line: Vec<_> = (0..width)
            .map(|at| match row.get_ref(at).unwrap() {
                ValueRef::Null => "null".to_owned(),
                ValueRef::Integer(value) => value.to_string(),
                ValueRef::Real(value) => value.to_string(),
                ValueRef::Text(text) => String::from_utf8(text.to_vec()).unwrap(),
                ValueRef::Blob(bytes) => bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
            })
            .collect();
        result.push_str(&line.join("|"));
        result.push('\n');
    }
    result
}

fn dump(conn: &Connection) -> String {
    rows(conn, "SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY name")
}

fn now() -> Timestamp {
    Timestamp::parse("2013-05-01T15:42:50.343Z").unwrap()
}

fn schema(path: &Path, text: &str) -> Schema {
    Schema::parse(text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn apply(conn: &Connection, schema: &Schema) {
    tables::apply(&tables::plan(conn, schema).unwrap(), conn, now()).unwrap();
}

/// Goal: a schema that changes is followed without losing anything, or refused with every difference.
/// Method: the old schema makes the tables, SQL fills them, the new one is planned and carried out.
#[test]
fn every_change_of_a_schema_ends_as_its_file_says() {
    let mut wrong = String::new();
    let cases = cases("evolution");
    for (path, text) in &cases {
        let conn = database();
        for old in ["old", "between"].into_iter().filter_map(|name| part(text, name)) {
            apply(&conn, &schema(path, old));
        }
        conn.execute_batch(part(text, "sql").unwrap_or_default())
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let before = dump(&conn);

        let new = schema(path, part(text, "new").unwrap());
        let plan = tables::plan(&conn, &new).unwrap();
        let result: String = plan.describe().iter().map(|line| format!("{line}\n")).collect();
        if result.trim() != part(text, "plan").unwrap().trim() {
            wrong.push_str(&format!("{}\n== plan\n{result}", path.display()));
        }
        assert_eq!(dump(&conn), before, "{}: planning changed something", path.display());
        let applied = tables::apply(&plan, &conn, now());
        if !plan.refusals().is_empty() {
            assert!(applied.is_err(), "{}", path.display());
            assert_eq!(dump(&conn), before, "{}: a refused plan changed something", path.display());
        } else {
            applied.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            let again = tables::plan(&conn, &new).unwrap();
            assert!(again.is_empty(), "{}: {:?}", path.display(), again.describe());
        }
        assert!(conn.is_autocommit(), "{}: a transaction was left open", path.display());
        for check in
            ["PRAGMA foreign_key_check", "SELECT * FROM pragma_integrity_check WHERE integrity_check <> 'ok'"]
        {
            assert_eq!(rows(&conn, check), "", "{}: {check}", path.display());
        }
        if let Some(query) = part(text, "query") {
            let found = rows(&conn, query);
            if found.trim() != part(text, "rows").unwrap_or_default().trim() {
                wrong.push_str(&format!("{}\n== rows\n{found}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "these cases end otherwise:\n{wrong}");
    assert!(cases.len() >= 20, "a moved folder must not pass");
}

/// The part about PostgreSQL, or the part about both engines.
fn part_of_postgres<'t>(text: &'t str, name: &str) -> Option<&'t str> {
    part(text, &format!("{name} on postgres")).or_else(|| part(text, name))
}

/// SQL of a case in PostgreSQL's words: owners are UUIDs there, and so are keys.
fn in_postgres(sql: &str) -> String {
    let mut sql = sql.to_owned();
    for owner in 1..=2 {
        let id = format!("('{owner:032x}', ");
        sql = sql.replace(&format!("({owner}, "), &id);
    }
    let mut parts = sql.split("x'");
    let mut result = parts.next().unwrap().to_owned();
    for part in parts {
        let (key, rest) = part.split_once('\'').unwrap();
        result.push_str(&format!("'{key:0>32}'{rest}"));
    }
    result
}

/// A query's rows in the form of [`rows`], keys in full if they are longer than two digits.
fn rows_of_postgres(client: &mut pg::Client, sql: &str) -> String {
    let result = client.simple_query(sql).unwrap_or_else(|error| panic!("{error}: {sql}"));
    let mut lines = String::new();
    for row in result {
        let postgres::SimpleQueryMessage::Row(row) = row else { continue };
        let values: Vec<_> = (0..row.len())
            .map(|at| match row.get(at) {
                None => "null".to_owned(),
                Some(text) => match uuid::Uuid::try_parse(text) {
                    Ok(id) if id.as_u128() < 256 => format!("{:02x}", id.as_u128()),
                    _ => text.to_owned(),
                },
            })
            .collect();
        lines.push_str(&format!("{}\n", values.join("|")));
    }
    lines
}

/// Goal: a schema that changes is followed on PostgreSQL as on SQLite. Method: the same cases, through a server's start.
#[test]
fn every_change_of_a_schema_ends_so_on_postgres() {
    if !Engine::all().contains(&Engine::Postgres) {
        return;
    }
    let store = Store::of(Engine::Postgres);
    let mut client = pg::Client::connect(&store.url(), postgres::NoTls).unwrap();
    let serve = |path: &Path, text: &str| {
        store.serve(&Arc::new(schema(path, text)), Duration::from_secs(5), now(), Arc::default()).map(drop)
    };
    let plan = |new: &Schema| {
        let plan = Postgres::compare(&store.address(), new, &engine::terms(Duration::from_secs(5))).unwrap();
        plan.describe().iter().map(|line| format!("{line}\n")).collect::<String>()
    };
    let mut wrong = String::new();
    let cases = cases("evolution");
    for (path, text) in &cases {
        client
            .batch_execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public; SET timezone = 'UTC'")
            .unwrap();
        for old in ["old", "between"].into_iter().filter_map(|name| part(text, name)) {
            serve(path, old).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        }
        let sql = in_postgres(part_of_postgres(text, "sql").unwrap_or_default());
        client.batch_execute(&sql).unwrap_or_else(|error| panic!("{}: {error}: {sql}", path.display()));

        let new = part(text, "new").unwrap();
        let result = plan(&schema(path, new));
        if result.trim() != part_of_postgres(text, "plan").unwrap().trim() {
            wrong.push_str(&format!("{}\n== plan on postgres\n{result}", path.display()));
        }
        let refusals: Vec<_> = result.lines().filter_map(|line| line.strip_prefix("refused: ")).collect();
        match serve(path, new) {
            Ok(()) => {
                assert!(refusals.is_empty(), "{}: carried out, though refused", path.display());
                assert_eq!(plan(&schema(path, new)), "", "{}", path.display());
            }
            Err(error) => {
                assert!(!refusals.is_empty(), "{}: {error}", path.display());
                assert!(refusals.iter().all(|line| error.contains(line)), "{}: {error}", path.display());
                assert_eq!(
                    plan(&schema(path, new)),
                    result,
                    "{}: a refused plan changed something",
                    path.display()
                );
            }
        }
        // A query of SQLite's own catalogue cannot be used here.
        let query = part_of_postgres(text, "query")
            .filter(|sql| !sql.contains("sqlite_") && !sql.contains("pragma_"));
        if let Some(query) = query {
            let found = rows_of_postgres(&mut client, query);
            if found.trim() != part_of_postgres(text, "rows").unwrap_or_default().trim() {
                wrong.push_str(&format!("{}\n== rows on postgres\n{found}\n", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "these cases end otherwise on PostgreSQL:\n{wrong}");
}

/// The wedding planner's tables are made on the first start, and the second finds nothing to do.
#[test]
fn a_second_start_plans_nothing() {
    let text = std::fs::read_to_string("fixtures/wedding/schema.toml").unwrap();
    let schema = schema(Path::new("wedding"), &text);
    let conn = database();
    let plan = tables::plan(&conn, &schema).unwrap();
    assert_eq!(plan.describe().len(), 6);
    // Inside the caller's transaction, which may still undo it all.
    let before = dump(&conn);
    conn.execute_batch("BEGIN IMMEDIATE").unwrap();
    tables::apply(&plan, &conn, now()).unwrap();
    assert!(!conn.is_autocommit());
    conn.execute_batch("ROLLBACK").unwrap();
    assert_eq!(dump(&conn), before);
    tables::apply(&plan, &conn, now()).unwrap();
    let after = dump(&conn);
    let again = tables::plan(&conn, &schema).unwrap();
    assert!(again.is_empty(), "{:?}", again.describe());
    tables::apply(&again, &conn, now()).unwrap();
    assert_eq!(dump(&conn), after);
}

/// Two owners may hold the same key, and an owner's rows can refer to that owner's alone.
#[test]
fn the_owner_leads_every_key() {
    let text = "[table.lists]\nkey = \"id\"\n[table.todo]\nkey = \"id\"\n\
                columns.list = { type = \"uuid\", references = \"lists\" }";
    let conn = database();
    apply(&conn, &schema(Path::new("todo"), text));
    conn.execute_batch(
        "INSERT INTO lists (_owner, id) VALUES (1, x'01'), (2, x'01'), (1, x'02');
         INSERT INTO todo (_owner, id, list) VALUES (1, x'aa', x'02');",
    )
    .unwrap();
    let of_another = conn.execute("INSERT INTO todo (_owner, id, list) VALUES (2, x'aa', x'02')", []);
    assert!(of_another.unwrap_err().to_string().contains("FOREIGN KEY"));
    let of_nobody = conn.execute("INSERT INTO lists (_owner, id) VALUES (3, x'01')", []);
    assert!(of_nobody.unwrap_err().to_string().contains("FOREIGN KEY"));
    let plan = rows(&conn, "EXPLAIN QUERY PLAN SELECT id FROM todo WHERE _owner = 1 AND list = x'02'");
    assert!(plan.contains("rollcall_ref_todo.list"), "{plan}");
}

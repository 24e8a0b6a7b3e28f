//! A user takes everything from one server to another.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Output;

use rollcall_testkit::pg;
use rollcall_testkit::process::{Process, call, log_in, rollcall};
use serde_json::{Value, json};

const SCHEMA: &str = "fixtures/wedding/schema.toml";
const PASSWORD: &str = "something borrowed";

fn served(database: &str) -> Process {
    let mut command = rollcall();
    command.args(["serve", "--schema", SCHEMA, "--listen", "127.0.0.1:0", "--log", "warn"]);
    Process::start(command.args(["--database", database]))
}

fn ran(args: &[&str]) -> Output {
    rollcall().args(args).output().unwrap()
}

#[track_caller]
fn printed(args: &[&str]) -> String {
    let output = ran(args);
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn key(n: u32) -> String {
    format!("0191d2a0-7c1e-7c55-8d2f-{n:012x}")
}

/// Runs a test over a database of each engine that is here.
fn on_both_engines(test: impl Fn(&str, &Path)) {
    let folder = tempfile::tempdir().unwrap();
    test(&format!("sqlite:{}", folder.path().join("app.db").display()), folder.path());
    let folder = tempfile::tempdir().unwrap();
    if let Some(database) = pg::cluster().map(pg::Cluster::database) {
        test(&database.url, folder.path());
    }
}

/// Adds todos to an owner, or to that of the token.
fn add(address: SocketAddr, token: &str, owner: Option<&str>, titles: &[&str]) {
    let todo = |(n, title): (u32, &&str)| json!({ "id": key(n), "notes": title });
    let rows: Vec<_> = (1..).zip(titles).map(todo).collect();
    let path = owner.map_or("/synchronise".into(), |owner| format!("/synchronise?owner={owner}"));
    let answer =
        call(address, &format!("POST {path}"), Some(token), Some(&json!({ "add": { "todo": rows } })));
    assert_eq!(answer.status, 200, "{}", answer.text());
}

/// Makes an owner; returns its id.
fn make_owner(address: SocketAddr, token: &str, name: &str) -> String {
    let made = call(address, "POST /owners", Some(token), Some(&json!({ "name": name })));
    made.json()["owner"].as_str().unwrap().to_owned()
}

/// Lets the user of `token` join an owner.
fn admit(address: SocketAddr, manager: &str, owner: &str, role: &str, token: &str) {
    let path = format!("POST /owners/{owner}/invitations");
    let code = call(address, &path, Some(manager), Some(&json!({ "role": role }))).json()["code"].clone();
    let accept = json!({ "code": code, "name": "me" });
    assert_eq!(call(address, "POST /invitations/accept", Some(token), Some(&accept)).status, 200);
}

/// Registers a user; returns the token of a device.
fn register(address: SocketAddr, email: &str) -> String {
    let account = json!({ "email": email, "password": PASSWORD });
    assert_eq!(call(address, "POST /register", None, Some(&account)).status, 201);
    log_in(address, email, PASSWORD, "phone")
}

/// Goal: an operator can hand out what a user has while the server runs. Method: the command's lines and those of the user's
/// own request, with an owner of which the user may only read, and more rows than a page has.
#[test]
fn the_operators_export_is_the_users() {
    on_both_engines(|database, _| {
        let mut server = served(database);
        let address = server.address();
        let (anna, ben) = (register(address, "anna@example.com"), register(address, "ben@example.com"));
        add(address, &anna, None, &["Order the cake", "Call the band"]);
        let long = "x".repeat(150_000);
        let team = make_owner(address, &ben, "Our team");
        add(address, &ben, Some(&team), &[long.as_str(); 12]);
        admit(address, &ben, &team, "read", &anna);

        let asked = call(address, "GET /account/export", Some(&anna), None);
        let export = ["account", "export", "Anna@example.com", "--schema", SCHEMA, "--database", database];
        let printed = printed(&export);
        let lines = |text: &str| -> Vec<Value> {
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
        };
        assert_eq!(lines(&printed), lines(asked.text()));
        assert_eq!(lines(&printed).len(), 1 + 2 + 1 + 1 + 12 + 1);
        let unknown =
            ran(&["account", "export", "carl@example.com", "--schema", SCHEMA, "--database", database]);
        assert!(String::from_utf8_lossy(&unknown.stderr).contains("there is no user carl@example.com"));
    });
}

/// Goal: an export has nothing of a table that the user may not read. Method: a table for managers, in an owner that the user
/// may write; the command's lines and those of the user's own request.
#[test]
fn an_export_has_no_table_that_is_hidden_from_the_user() {
    on_both_engines(|database, folder| {
        let schema = folder.join("schema.toml");
        let fixture = std::fs::read_to_string(SCHEMA).unwrap();
        std::fs::write(&schema, fixture.replace("[table.todo]\n", "[table.todo]\nread = \"manage\"\n"))
            .unwrap();
        let schema = schema.to_str().unwrap();
        let mut command = rollcall();
        command.args(["serve", "--schema", schema, "--listen", "127.0.0.1:0", "--log", "warn"]);
        let mut server = Process::start(command.args(["--database", database]));
        let address = server.address();
        let (anna, ben) = (register(address, "anna@example.com"), register(address, "ben@example.com"));
        let team = make_owner(address, &ben, "Our team");
        add(address, &ben, Some(&team), &["a secret"]);
        admit(address, &ben, &team, "write", &anna);
        let asked = call(address, "GET /account/export", Some(&anna), None);
        let export =
            |email| printed(&["account", "export", email, "--schema", schema, "--database", database]);
        for text in [asked.text(), &export("anna@example.com")] {
            assert!(text.contains("Our team") && !text.contains("a secret"), "{text}");
        }
        assert!(export("ben@example.com").contains("a secret"));
    });
}

/// Goal: a command changes no table. Method: an export with another schema file.
#[test]
fn an_export_with_another_schema_changes_nothing() {
    on_both_engines(|database, folder| {
        let mut server = served(database);
        register(server.address(), "anna@example.com");
        let other = folder.join("other.toml");
        std::fs::write(&other, "[table.strange]\nkey = \"id\"\n[table.strange.columns]\ntitle = \"text\"\n")
            .unwrap();
        let export = [
            "account",
            "export",
            "anna@example.com",
            "--schema",
            other.to_str().unwrap(),
            "--database",
            database,
        ];
        for _ in 0..2 {
            let refused = ran(&export);
            let error = String::from_utf8_lossy(&refused.stderr);
            assert!(
                !refused.status.success() && error.contains("serve it once") && error.contains("strange"),
                "{error}"
            );
        }
    });
}

/// The rows of an export by the name of their owner, without what differs from server to server.
fn rows(export: &str) -> std::collections::BTreeMap<String, Vec<String>> {
    let mut owners = std::collections::BTreeMap::<String, Vec<String>>::new();
    let mut name = String::new();
    for line in export.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        match line["op"].as_str().unwrap() {
            "account" | "owner" => {
                name = line["name"].as_str().unwrap().to_owned();
                owners.entry(name.clone()).or_default();
            }
            "add" => owners.get_mut(&name).unwrap().push(format!("{} {}", line["table"], line["row"])),
            _ => {}
        }
    }
    owners.values_mut().for_each(|rows| rows.sort());
    owners
}

/// Writes the export of Anna to a file; returns it.
fn exported(database: &str, file: &Path) -> String {
    let text =
        printed(&["account", "export", "anna@example.com", "--schema", SCHEMA, "--database", database]);
    std::fs::write(file, &text).unwrap();
    text
}

/// Rows with each type of value and with references, in two owners.
fn furnish(address: SocketAddr, anna: &str) -> String {
    let rows = json!({ "add": {
        "invitations": [{ "iid": key(1), "icid": key(2), "guest": "Aunt Ada", "party_size": 2 }],
        "invitation_categories": [{ "icid": key(2), "title": "Family" }],
        "todo": [{ "id": key(3), "title": "Cake", "due": "2026-09-05", "done": true, "reminder": "2026-09-01T08:00:00.250Z" }],
    } });
    let sent = call(address, "POST /synchronise", Some(anna), Some(&rows));
    assert!(sent.status == 200 && !sent.text().contains("rejected"), "{}", sent.text());
    let wedding = make_owner(address, anna, "Our wedding");
    add(address, anna, Some(&wedding), &["Guests", "Music"]);
    wedding
}

/// Goal: what comes in is what went out. Method: export, another server of each engine, import while it runs, and export; a dry
/// run before and a second import after, which change nothing; a device that reads in between.
#[test]
fn an_export_goes_in_again_and_is_the_same() {
    on_both_engines(|database, folder| {
        let source = format!("sqlite:{}", folder.join("source.db").display());
        let (file, again) = (folder.join("anna.ndjson"), folder.join("again.ndjson"));
        let mut server = served(&source);
        let from = server.address();
        let (anna, ben) = (register(from, "anna@example.com"), register(from, "ben@example.com"));
        furnish(from, &anna);
        let team = make_owner(from, &ben, "Our team");
        add(from, &ben, Some(&team), &["Ben's"]);
        admit(from, &ben, &team, "read", &anna);
        let before = exported(&source, &file);

        let mut server = served(database);
        let address = server.address();
        let anna = register(address, "anna@example.com");
        assert!(call(address, "GET /fetch?lock=false", Some(&anna), None).text().contains(r#""todo":[]"#));
        let import = |more: &[&str]| {
            let mut command = rollcall();
            command.args([
                "import",
                file.to_str().unwrap(),
                "--user",
                "anna@example.com",
                "--schema",
                SCHEMA,
            ]);
            let output = command.args(["--database", database]).args(more).output().unwrap();
            assert!(output.status.success(), "{output:?}");
            String::from_utf8(output.stdout).unwrap()
        };
        let dry = import(&["--dry-run"]);
        assert!(dry.contains("dry run, 3 added") && dry.contains("dry run, 2 added"), "{dry}");
        assert_eq!(rows(&exported(database, &again)), [(String::new(), Vec::new())].into());

        let first = import(&[]);
        assert!(first.contains("(Our wedding) into ") && first.contains(": 3 added"), "{first}");
        assert!(first.contains("(Our team): left out, since the user did not manage it"), "{first}");
        let manifest = call(address, "GET /fetch?lock=false", Some(&anna), None);
        assert!(manifest.text().contains(&key(1)), "the server does not see the import");
        let owners = call(address, "GET /owners", Some(&anna), None).json();
        assert_eq!(owners["owners"].as_array().unwrap().len(), 2, "{owners}");

        let all = import(&["--others", "all"]);
        assert!(all.contains("(Our team) into ") && all.contains(": 3 same"), "{all}");
        let after = exported(database, &again);
        assert_eq!(rows(&after), rows(&before));
        assert_eq!(import(&["--others", "all"]), all.replace("1 added", "1 same"));
        assert_eq!(exported(database, &again), after);
        assert!(!folder.join("anna.ndjson.rejected").exists());
    });
}

/// Goal: what cannot come in is named, and scripts notice. Method: a server whose tables have other bounds, and one with other
/// types.
#[test]
fn rows_that_do_not_fit_are_named() {
    on_both_engines(|database, folder| {
        let source = format!("sqlite:{}", folder.join("source.db").display());
        let file = folder.join("anna.ndjson");
        let mut server = served(&source);
        let from = server.address();
        furnish(from, &register(from, "anna@example.com"));
        exported(&source, &file);

        let fixture = std::fs::read_to_string(SCHEMA).unwrap();
        let strict = folder.join("strict.toml");
        std::fs::write(
            &strict,
            fixture.replace(
                r#"title = { type = "text", max_length = 200 }"#,
                r#"title = { type = "text", max_length = 3 }"#,
            ),
        )
        .unwrap();
        let strict = strict.to_str().unwrap();
        let serve = |schema: &str| {
            let mut command = rollcall();
            command.args(["serve", "--schema", schema, "--listen", "127.0.0.1:0", "--log", "warn"]);
            Process::start(command.args(["--database", database]))
        };
        let mut server = serve(strict);
        register(server.address(), "anna@example.com");
        let import = |schema: &str| {
            ran(&[
                "import",
                file.to_str().unwrap(),
                "--user",
                "anna@example.com",
                "--schema",
                schema,
                "--database",
                database,
            ])
        };
        let output = import(strict);
        let (said, error) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(!output.status.success() && said.contains("2 added, 1 rejected"), "{output:?}");
        assert!(error.contains("1 rows were rejected") && error.contains("anna.ndjson.rejected"), "{error}");
        let rejected = std::fs::read_to_string(folder.join("anna.ndjson.rejected")).unwrap();
        let rejected: Value = serde_json::from_str(&rejected).unwrap();
        assert_eq!((&rejected["code"], &rejected["column"]), (&json!("too_long"), &json!("title")));
        assert_eq!(rejected["row"]["title"], "Cake");

        let mut export = std::fs::read_to_string(&file).unwrap();
        export = export.replacen(r#""name":"due","type":"date""#, r#""name":"until","type":"date""#, 1);
        std::fs::write(&file, export).unwrap();
        let output = import(strict);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(
            !output.status.success() && error.contains("todo.until: this server has no such column"),
            "{error}"
        );
    });
}

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

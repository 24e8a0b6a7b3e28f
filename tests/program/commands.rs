//! The program as a newcomer meets it: its help, its output, its exit codes.

use rollcall_testkit::process;
use rollcall_testkit::shells;

use std::collections::BTreeMap;
use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use process::{Answer, Client, Process, TOO_LONG, bearer, call, log_in, rollcall};
use serde_json::{Value, json};
use shells::{BASH, ZSH, is_installed, pasting};
use tempfile::TempDir;

const PASSWORD: &str = "something borrowed";

fn wedding(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/wedding").join(name)
}

fn fixture(name: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(wedding(name)).unwrap()).unwrap()
}

/// Runs the program to its end in `folder`.
fn run(folder: &Path, args: &[&str], input: &str) -> Output {
    let mut command = rollcall();
    command.args(args).current_dir(folder);
    finish(&mut command, input)
}

fn finish(command: &mut Command, input: &str) -> Output {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes()); // not everyone reads it
    child.wait_with_output().unwrap()
}

/// The output of a command that succeeded.
fn good(output: Output) -> String {
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{stderr}");
    assert_eq!(stderr, "");
    String::from_utf8(output.stdout).unwrap()
}

/// The error of a command that failed: exit code 1, and `error:` once.
fn bad(output: Output) -> String {
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert_eq!(stderr.matches("error:").count(), 1, "{stderr}");
    stderr.strip_prefix("error: ").unwrap_or_else(|| panic!("{stderr:?}")).trim_end().to_owned()
}

/// A folder with the wedding's schema in it.
fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(wedding("schema.toml"), folder.path().join("schema.toml")).unwrap();
    folder
}

const SERVE: [&str; 7] =
    ["serve", "--schema", "schema.toml", "--database", "sqlite:app.db", "--listen", "127.0.0.1:0"];

/// A server in `folder`, and where it listens.
fn serve(folder: &Path, more: &[&str]) -> (Process, SocketAddr) {
    let mut server = Process::start(rollcall().args(SERVE).args(more).current_dir(folder));
    let address = server.address();
    (server, address)
}

fn stop(server: Process) -> String {
    server.terminate();
    let ended = server.wait();
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    ended.stderr
}

/// Goal: `--help` alone explains the program. Method: the words that a reader looks for, and no flag without
/// its variable.
#[test]
fn help_says_what_each_command_needs() {
    let folder = folder();
    let help = |args: &[&str]| good(run(folder.path(), &[args, &["--help"]].concat(), ""));
    for (args, words) in [
        (
            &[][..],
            &["serve", "demo", "account", "schema", "openapi", "Try it", "Run it", "ROLLCALL_LISTEN"][..],
        ),
        (
            &["serve"],
            &["--schema <FILE>", "--database <URL>", "--listen <IP:PORT>", "SIGTERM", "listening on"],
        ),
        (&["demo"], &["--listen <IP:PORT>", "--keep", "rollcall-demo.db", "current folder"]),
        (&["account"], &["add", "list", "remove"]),
        (&["account", "add"], &["<EMAIL>", "--share-with <EMAIL>", "standard input", "--database"]),
        (&["account", "list"], &["--database <URL>", "ROLLCALL_DATABASE"]),
        (&["account", "remove"], &["<EMAIL>", "--database", "the rows stay"]),
        (&["schema"], &["check"]),
        (&["openapi"], &["--schema <FILE>", "OpenAPI 3.0.3"]),
        (&["schema", "check"], &["--schema <FILE>", "--database", "nothing is changed"]),
    ] {
        let text = help(args);
        for word in words {
            assert!(text.contains(word), "{args:?}: no {word:?} in\n{text}");
        }
        assert!(text.lines().all(|line| line.chars().count() <= 100), "{args:?}:\n{text}");
    }

    let text = help(&["serve"]);
    let mut flags = 0;
    for (flag, about) in
        text.split("\n      --").skip(1).map(|part| part.split_at(part.find([' ', '\n']).unwrap()))
    {
        flags += 1;
        let variable = format!("[env: ROLLCALL_{}", flag.to_uppercase().replace('-', "_"));
        // A list is one flag for each, and one variable for all.
        let plural = variable.strip_suffix('Y').map_or(format!("{variable}S="), |stem| format!("{stem}IES="));
        // The value of a secret is hidden.
        let named = [format!("{variable}="), format!("{variable}]"), plural];
        assert!(named.iter().any(|name| about.contains(name)), "{flag}: {about}");
        assert!(!flag.contains('_'), "{flag}");
    }
    assert!(flags > 30, "{text}");
    for heading in ["Options:", "Syncing:", "Limits:", "HTTP:", "Accounts and tokens:"] {
        assert!(text.contains(&format!("\n{heading}\n")), "{heading}");
    }
}

/// Goal: the log contains what an operator wants to know, without colours in a file, and a clean stop leaves
/// nothing behind.
#[test]
fn serve_prints_its_line_answers_and_stops() {
    let folder = folder();
    for (starts, tables_made) in [(1, true), (2, false)] {
        let (server, address) = serve(folder.path(), &[]);
        assert_eq!(call(address, "GET /healthz", None, None).json(), json!({ "status": "ok" }));
        assert_eq!(call(address, "GET /readyz", None, None).status, 200);
        assert_eq!(call(address, "GET /fetch", None, None).status, 401);
        let log = stop(server);
        let version = env!("CARGO_PKG_VERSION");
        for word in [version, "app.db", "tables=6", "auth=local", "registration=open", &address.to_string()] {
            assert!(log.contains(word), "start {starts}: no {word:?} in\n{log}");
        }
        assert_eq!(log.contains("create table todo"), tables_made, "{log}");
        assert!(log.contains("stopped"), "{log}");
        assert!(!log.contains('\u{1b}'), "colours, and nobody looks: {log:?}");
        let log = std::fs::metadata(folder.path().join("app.db-wal"));
        assert!(log.is_err() || log.unwrap().len() == 0, "start {starts}: the one file is not everything");
    }
    let (server, _) = serve(folder.path(), &["--log-format", "json"]);
    let log = stop(server);
    for line in log.lines() {
        serde_json::from_str::<Value>(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    }
    assert!(log.lines().count() > 1);
}

/// Goal: a request that is in progress at SIGTERM gets its response. Method: a body that is still arriving.
#[test]
fn a_running_request_ends_well_after_sigterm() {
    let folder = folder();
    let (server, address) = serve(folder.path(), &[]);
    let user = json!({ "email": "anna@example.com", "password": PASSWORD });
    assert_eq!(call(address, "POST /register", None, Some(&user)).status, 201);

    let body = json!({ "email": "anna@example.com", "password": PASSWORD, "device": "phone" }).to_string();
    let headers = [
        "content-type: application/json",
        "expect: 100-continue",
        &format!("content-length: {}", body.len()),
    ]
    .map(str::to_owned);
    let mut client = Client::connect(address).unwrap();
    client.send("POST /login", &headers, None).unwrap();
    client.wait_for_continue(); // somebody reads the body by now

    server.terminate();
    let begun = Instant::now();
    while TcpStream::connect(address).is_ok() {
        assert!(begun.elapsed() < TOO_LONG, "it goes on accepting");
        std::thread::sleep(Duration::from_millis(5));
    }
    client.send_raw(&body).unwrap();
    let answer = client.answer().unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(answer.json()["token"].is_string());
    let ended = server.wait();
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
}

/// Runs `serve` with all that it needs; `flags` may override it.
fn serve_with(folder: &Path, flags: &[(&str, &str)]) -> Output {
    let needed = [("--schema", "schema.toml"), ("--database", "sqlite:app.db"), ("--listen", "127.0.0.1:0")];
    let all: BTreeMap<_, _> = needed.into_iter().chain(flags.iter().copied()).collect();
    let args: Vec<_> = all.into_iter().flat_map(|(name, value)| [name, value]).collect();
    run(folder, &[&["serve"], &args[..]].concat(), "")
}

/// The error of a `serve` that cannot start; it must contain each of `words`.
fn refusal(folder: &Path, flags: &[(&str, &str)], words: &[&str]) -> String {
    let said = bad(serve_with(folder, flags));
    for word in words {
        assert!(said.contains(word), "{flags:?}: no {word:?} in {said:?}");
    }
    said
}

#[test]
fn a_wrong_command_line_is_told_what_is_right() {
    let folder = folder();
    let misused = |output: Output, words: &[&str]| {
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{said}");
        for word in words {
            assert!(said.contains(word), "no {word:?} in {said:?}");
        }
    };
    for database in ["app.db", "sqlite:", "sqlite::memory:", "sqlite:file:app.db", "mysql://app"] {
        misused(serve_with(folder.path(), &[("--database", database)]), &[database, "such as sqlite:app.db"]);
    }
    for listen in ["8080", ":8080", "localhost", "127.0.0.1:80000"] {
        misused(serve_with(folder.path(), &[("--listen", listen)]), &[listen, "such as 127.0.0.1:7878"]);
    }
    misused(serve_with(folder.path(), &[("--rows-max", "many")]), &["many", "--rows-max <N>"]);
    misused(run(folder.path(), &["serve"], ""), &["--schema <FILE>", "--database <URL>"]);
    misused(run(folder.path(), &[], ""), &["Try it"]);

    for (flag, value, word) in [
        ("--log", "rollcall=loud", "--log"),
        ("--cors-origin", "app.example", "app.example"),
        ("--auth", "jwt", "jwt"),
    ] {
        // These begin to start: the log's first lines are right.
        let output = serve_with(folder.path(), &[(flag, value)]);
        let said = String::from_utf8(output.stderr).unwrap();
        let last = said.lines().last().unwrap();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(last.starts_with("error: ") && last.contains(word), "{flag}: {said}");
    }
}

#[test]
fn a_schema_or_an_address_that_will_not_do_leaves_nothing_behind() {
    let folder = folder();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    write("broken.toml", "[table.budget\n");
    write("faulty.toml", "[table.budget]\nkey = \"bid\"\ncolumns = { cost = \"money\" }\n");
    let schema = |name: &str, words: &[&str]| {
        drop(refusal(folder.path(), &[("--schema", name)], &[&[name], words].concat()))
    };
    schema("none.toml", &["cannot read", "No such file"]);
    schema("broken.toml", &["line 1"]);
    schema("faulty.toml", &["line 3", "money"]);

    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let said = refusal(folder.path(), &[("--listen", &address)], &["cannot listen on", &address, "in use"]);
    assert!(!said.contains('\n'), "{said}");
    assert!(!folder.path().join("app.db").exists());
}

/// Goal: every problem with the database is reported in one line that names it and its remedy.
#[test]
fn a_database_that_will_not_do_is_named() {
    use std::os::unix::fs::PermissionsExt;
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    let database = |file: &str, word: &str| {
        let database = format!("sqlite:{file}");
        let flags = [("--database", database.as_str()), ("--busy-wait-ms", "50")];
        let said = refusal(folder.path(), &flags, &[file, word]);
        assert!(!said.contains('\n'), "{said}");
    };
    std::fs::write(at("text.db"), "this is a letter, and no database at all").unwrap();
    database("text.db", "not a database");
    let letter = at("text.db").metadata().unwrap().permissions();
    assert_ne!(letter.mode() & 0o777, 0o600, "a file that is no database keeps its mode");
    database("none/app.db", "there is no folder none");
    std::fs::create_dir(at("folder.db")).unwrap();
    database("folder.db", "is a folder");

    let (server, _) = serve(folder.path(), &[]);
    database("app.db", "another server");
    stop(server);

    let conn = rusqlite::Connection::open(at("app.db")).unwrap();
    conn.execute_batch("BEGIN EXCLUSIVE").unwrap();
    database("app.db", "locked by another program");
    conn.execute_batch("ROLLBACK; UPDATE rollcall_meta SET value = value + 90 WHERE name = 'migrations'")
        .unwrap();
    database("app.db", "newer release");
    conn.execute_batch("UPDATE rollcall_meta SET value = value - 90 WHERE name = 'migrations'").unwrap();
    drop(conn);

    std::fs::write(at("less.toml"), "timestamps = \"seconds\"\n[table.todo]\nkey = \"id\"\n").unwrap();
    refusal(folder.path(), &[("--schema", "less.toml")], &["would lose data", "todo.title", "budget"]);
}

/// Goal: a server whose clock is behind its data warns, and writes no old times. Method: the data is from a
/// month ahead; the end of the lock shows which time the server uses.
#[test]
fn a_clock_that_is_behind_the_data_is_warned_of() {
    const DAY_MS: i64 = 86_400_000;
    let folder = folder();
    let until = |more: &[&str]| {
        let (server, address) = serve(folder.path(), more);
        let account = json!({ "email": "anna@example.com", "password": PASSWORD });
        call(address, "POST /register", None, Some(&account)); // the first time
        let token = log_in(address, "anna@example.com", PASSWORD, "phone");
        let row = json!({ "add": { "todo": [{ "id": uuid::Uuid::now_v7().to_string(), "title": "x" }] } });
        let report = call(address, "POST /synchronise", Some(&token), Some(&row)).json();
        let stored = report["add"]["todo"][0]["last_update"].as_str().unwrap().to_owned();
        let log = stop(server);
        (stored, log.contains("behind the data"))
    };
    let (today, warns) = until(&[]);
    assert!(!warns);
    let conn = rusqlite::Connection::open(folder.path().join("app.db")).unwrap();
    conn.execute("UPDATE rollcall_day SET day = day + 30", []).unwrap();
    drop(conn);
    let day = |spelt: &str| {
        let at = rollcall::model::Timestamp::parse(spelt).unwrap();
        at.ms().div_euclid(DAY_MS)
    };
    let (ahead, warns) = until(&[]);
    assert!(warns && day(&ahead) == day(&today) + 30, "{today} {ahead}");
    let (trusted, warns) = until(&["--clock-behind-s", "0"]);
    assert!(!warns && day(&trusted) <= day(&today) + 1, "{today} {trusted}");
}

#[test]
fn a_disk_that_only_reads_is_named() {
    use std::os::unix::fs::PermissionsExt;
    let folder = folder();
    stop(serve(folder.path(), &[]).0);
    let allow = |name: &str, mode| {
        std::fs::set_permissions(folder.path().join(name), std::fs::Permissions::from_mode(mode)).unwrap();
    };
    for name in ["app.db", "app.db.lock"] {
        allow(name, 0o444);
    }
    allow("", 0o555);
    let may_write_all_the_same = std::fs::write(folder.path().join("probe"), "").is_ok();
    let said = (!may_write_all_the_same).then(|| bad(run(folder.path(), &SERVE, "")));
    allow("", 0o755);
    match said {
        Some(said) => assert!(said.contains("app.db") && said.contains("read-only"), "{said}"),
        None => println!("left out: this user may write whatever the permissions say"),
    }
}

/// Accounts come and go while a server runs on the same database.
#[test]
fn accounts_come_and_go_under_a_running_server() {
    let folder = folder();
    let path = folder.path();
    let account = |args: &[&str], input: &str| {
        run(path, &[&["account"], args, &["--database", "sqlite:app.db"]].concat(), input)
    };
    // There is no database yet: a mistyped path must not look like an empty server.
    assert!(bad(account(&["list"], "")).contains("there is no database app.db"));
    assert!(bad(account(&["remove", "anna@example.com"], "")).contains("there is no database app.db"));
    assert!(!path.join("app.db").exists());

    let (server, address) = serve(path, &["--registration", "closed", "--token-known-s", "1"]);
    let register = json!({ "email": "eve@example.com", "password": PASSWORD });
    assert_eq!(call(address, "POST /register", None, Some(&register)).status, 403);
    let added = good(account(&["add", "Anna@Example.com"], &format!("{PASSWORD}\n")));
    assert!(added.starts_with("added anna@example.com, owner "), "{added}");
    let shared = ["add", "ben@example.com", "--share-with", "ANNA@example.com"];
    good(account(&shared, &format!("{PASSWORD}\r\n")));
    good(account(&["add", "carol@example.com"], PASSWORD));
    for (args, input, word) in [
        (&["password", "anna@example.com"][..], "password1", "commonest"),
        (&["password", "nobody@example.com"], PASSWORD, "no user nobody@example.com"),
        (&["add", "anna@example.com"], PASSWORD, "taken"),
        (&["add", "dan@example.com"], "short", "8"),
        (&["add", "dan@example.com"], "", "8"),
        (&["add", "dan"], PASSWORD, "email"),
        (
            &["add", "dan@example.com", "--share-with", "nobody@example.com"],
            PASSWORD,
            "no user nobody@example.com",
        ),
        (&["remove", "nobody@example.com"], "", "no user nobody@example.com"),
    ] {
        let said = bad(account(args, input));
        assert!(said.contains(word) && !said.contains('\n'), "{args:?}: {said}");
    }

    let listed = good(account(&["list"], ""));
    let owner = |email: &str| {
        let line = listed.lines().find(|line| line.starts_with(email)).unwrap();
        line.split('\t').nth(1).unwrap().to_owned()
    };
    assert_eq!(listed.lines().count(), 3, "{listed}");
    assert_eq!(owner("anna@example.com"), owner("ben@example.com"));
    assert_ne!(owner("anna@example.com"), owner("carol@example.com"));

    let [anna, ben, carol] = ["anna@example.com", "ben@example.com", "carol@example.com"]
        .map(|email| log_in(address, email, PASSWORD, "phone"));
    let batch =
        json!({ "add": { "todo": [{ "id": "0191d2a0-7c1e-7c55-8d2f-5a3b1c9e7f10", "title": "cake" }] } });
    assert_eq!(call(address, "POST /synchronise", Some(&anna), Some(&batch)).status, 200);
    let todo = |token: &str| call(address, "GET /fetch?tables=todo&lock=false", Some(token), None);
    assert_eq!(todo(&ben).json()["todo"].as_array().unwrap().len(), 1);
    assert_eq!(todo(&carol).json()["todo"], json!([]));

    assert_eq!(good(account(&["remove", "ben@example.com"], "")), "removed ben@example.com\n");
    // Another process did it: the server, which had the token in its cache, checks again after
    // `token_known_s`.
    let removed = Instant::now();
    while todo(&ben).status == 200 {
        assert!(removed.elapsed() < Duration::from_secs(20), "the token lives on");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(todo(&ben).status, 401);
    assert_eq!(todo(&anna).json()["todo"].as_array().unwrap().len(), 1, "the rows stay");

    let set = good(account(&["password", "Carol@Example.com"], "battery staple\n"));
    assert_eq!(set, "replaced the password of carol@example.com, and logged out all of their devices\n");
    let replaced = Instant::now();
    while todo(&carol).status == 200 {
        assert!(replaced.elapsed() < Duration::from_secs(20), "the token lives on");
        std::thread::sleep(Duration::from_millis(20));
    }
    let login = json!({ "email": "carol@example.com", "password": PASSWORD, "device": "phone" });
    assert_eq!(call(address, "POST /login", None, Some(&login)).status, 401);
    log_in(address, "carol@example.com", "battery staple", "phone");
    stop(server);
}

#[test]
fn schema_check_says_what_a_server_would_do() {
    let folder = folder();
    let check = |schema: &str, database: Option<&str>| {
        let database: Vec<_> = database.into_iter().flat_map(|database| ["--database", database]).collect();
        run(folder.path(), &[&["schema", "check", "--schema", schema][..], &database].concat(), "")
    };
    let names = || {
        let names = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name());
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    };
    let before = names();
    let result = good(check("schema.toml", None));
    assert!(
        result.contains("budget: key bid, 7 columns") && result.contains("schema.toml: good"),
        "{result}"
    );
    let result = good(check("schema.toml", Some("sqlite:app.db")));
    assert!(result.contains("create table budget"), "{result}");
    assert_eq!(names(), before, "it only looks");

    stop(serve(folder.path(), &[]).0);
    let mut before = names();
    before.retain(|name| name != "app.db-wal" && name != "app.db-shm"); // left by an unlucky stop, and swept up
    let result = good(check("schema.toml", Some("sqlite:app.db")));
    assert!(result.contains("fits app.db as it is"), "{result}");

    let text = std::fs::read_to_string(folder.path().join("schema.toml")).unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    write("more.toml", &text.replace("colour = \"text\"", "colour = \"text\"\nicon = \"text\""));
    write("less.toml", &text.replace("colour = \"text\"\n", ""));
    write("text.db", "this is a letter, and no database at all");
    let before = [before, vec!["less.toml".into(), "more.toml".into(), "text.db".into()]].concat();
    let result = good(check("more.toml", Some("sqlite:app.db")));
    assert!(result.contains("add column invitation_categories.icon (text)"), "{result}");
    let output = check("less.toml", Some("sqlite:app.db"));
    assert!(String::from_utf8_lossy(&output.stdout).contains("refused: invitation_categories.colour"));
    assert!(bad(output).contains("nothing was changed"));
    assert!(bad(check("text.db", None)).contains("text.db"));
    let said = bad(check("schema.toml", Some("sqlite:text.db")));
    assert!(said.contains("text.db") && said.contains("not a database"), "{said}");
    let mut before = before;
    before.sort();
    assert_eq!(names(), before, "it only looks");

    let conn = rusqlite::Connection::open(folder.path().join("app.db")).unwrap();
    conn.execute_batch("UPDATE rollcall_meta SET value = value + 90 WHERE name = 'migrations'").unwrap();
    drop(conn);
    let said = bad(check("schema.toml", Some("sqlite:app.db")));
    assert!(said.contains("newer release"), "{said}");
}

/// Every flag is a variable as well; a flag wins.
#[test]
fn variables_do_for_flags() {
    let folder = folder();
    let mut command = rollcall();
    command.arg("serve").current_dir(folder.path());
    for (name, value) in [
        ("ROLLCALL_SCHEMA", "schema.toml"),
        ("ROLLCALL_DATABASE", "sqlite:env.db"),
        ("ROLLCALL_LISTEN", "127.0.0.1:0"),
        ("ROLLCALL_LEASE_MS", "1234"),
        ("ROLLCALL_ROWS_MAX", "7"),
        ("ROLLCALL_REGISTRATION", "closed"),
        ("ROLLCALL_CORS_ORIGINS", "https://a.example,https://b.example"),
        ("ROLLCALL_LOG_FORMAT", "json"),
    ] {
        command.env(name, value);
    }
    let mut server = Process::start(command.args(["--rows-max", "9"]));
    let address = server.address();
    assert!(folder.path().join("env.db").exists());
    let limits = call(address, "GET /limits", None, None).json();
    for result in ["\"lease_ms\":1234", "\"rows_max\":9"] {
        assert!(limits.to_string().contains(result), "{limits}");
    }
    let user = json!({ "email": "anna@example.com", "password": PASSWORD });
    assert_eq!(call(address, "POST /register", None, Some(&user)).status, 403);
    let origin = "origin: https://b.example".to_owned();
    let answer = Client::connect(address).unwrap().call("GET /limits", &[origin], None).unwrap();
    assert_eq!(answer.header("access-control-allow-origin"), Some("https://b.example"));
    serde_json::from_str::<Value>(stop(server).lines().next().unwrap()).unwrap();

    let listed = finish(
        rollcall()
            .args(["account", "list"])
            .env("ROLLCALL_DATABASE", "sqlite:env.db")
            .current_dir(folder.path()),
        "",
    );
    assert_eq!(good(listed), "");
    let mut check = rollcall();
    check
        .args(["schema", "check"])
        .env("ROLLCALL_SCHEMA", "schema.toml")
        .env("ROLLCALL_DATABASE", "sqlite:env.db");
    assert!(good(finish(check.current_dir(folder.path()), "")).contains("fits env.db"));
}

/// A demo that runs, and what it printed to paste.
struct Demo {
    server: Process,
    address: SocketAddr,
    /// By number: the lines of a step. Step 0 sets the variables.
    steps: Vec<String>,
}

impl Demo {
    fn start(folder: &Path, more: &[&str]) -> Self {
        let mut command = rollcall();
        command.args(["demo", "--listen", "127.0.0.1:0"]).args(more).current_dir(folder);
        let mut server = Process::start(&mut command);
        let address = server.address();
        let mut steps: Vec<String> = Vec::new();
        let mut sums = 0;
        while sums < 2 {
            let line = server.line().expect("the demo says what to paste");
            if line.starts_with(|c: char| c.is_ascii_digit()) {
                steps.push(String::new());
            } else if let Some(step) = steps.last_mut() {
                step.push_str(&line);
                step.push('\n');
            }
            sums += usize::from(line.ends_with("| cksum"));
        }
        assert_eq!(steps.len(), 5, "{steps:?}");
        Self { server, address, steps }
    }

    fn token(&self, device: char) -> String {
        let begin = format!("{device}='Authorization: Bearer ");
        let line = self.steps[0].lines().find_map(|line| line.strip_prefix(&begin)).unwrap();
        line.strip_suffix('\'').unwrap().to_owned()
    }

    /// Pastes everything into a shell, as a newcomer would; returns what each step printed.
    fn paste(&self, shell: &[&str], folder: &Path) -> Vec<String> {
        let phone = log_in(self.address, "ben@example.com", PASSWORD, "page");
        let steps = self.steps.iter().enumerate();
        let script: Vec<_> = steps
            .map(|(step, lines)| format!("echo '=== {step}'\n{lines}{}", self.meanwhile(&phone)))
            .collect();
        let output = finish(pasting(shell).current_dir(folder), &script.concat());
        assert!(output.status.success(), "{shell:?}: {}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).unwrap();
        text.split("=== ").skip(1).map(|part| part.split_once('\n').unwrap().1.to_owned()).collect()
    }

    /// What ten minutes between two steps bring, beside an open page: leases end, and a phone of the page writes.
    fn meanwhile(&self, phone: &str) -> String {
        let url = format!("http://{}", self.address);
        let row = json!({ "add": { "todo": [{ "id": uuid::Uuid::now_v7(), "title": "Call the florist" }] } });
        format!(
            r#"
for device in "$A" "$B"; do curl -s -X DELETE -H "$device" {url}/lock > lock.out; done
curl -sf -H 'Authorization: Bearer {phone}' -H "$JSON" --data '{row}' {url}/synchronise > page.out
"#
        )
    }

    /// The same calls without curl, where there is none.
    fn call_without_curl(&self, folder: &Path) -> Vec<String> {
        println!("no curl or no bash here: the demo's calls are made without them");
        let [a, b] = ['A', 'B'].map(|device| self.token(device));
        let fetch = |path: &str, token: &str| call(self.address, &format!("GET /{path}"), Some(token), None);
        let send = |body: &str, token: &str| {
            let mut client = Client::connect(self.address).unwrap();
            client.call("POST /synchronise.json", &[bearer(token)], Some(body)).unwrap()
        };
        let body = std::fs::read_to_string(folder.join("rollcall-demo-synchronise.json")).unwrap();
        let (_, rest) = self.steps[3].split_once("--data '").unwrap();
        let (asked, _) = rest.split_once('\'').unwrap();
        let whole = |answer: &Answer| format!("HTTP/1.1 {} \n\n{}\n", answer.status, answer.text());
        let text = |answer: Answer| format!("{}\n", answer.text());
        vec![
            String::new(),
            text(fetch("fetch.json", &a)) + &whole(&fetch("fetch.json", &b)),
            text(send(&body, &a)),
            text(fetch("fetch.json?tables=budget&lock=false", &b)) + &text(send(asked, &b)),
            text(fetch("fetch.json?lock=false", &a)) + &text(fetch("fetch.json?lock=false", &b)),
        ]
    }

    fn try_out(&self, shell: &[&str], folder: &Path) -> Vec<String> {
        let can_paste = is_installed(shell[0]) && is_installed("curl");
        if can_paste { self.paste(shell, folder) } else { self.call_without_curl(folder) }
    }
}

fn parse(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// A manifest with its rows in order.
fn sorted(mut roll_call: Value) -> Value {
    for rows in roll_call.as_object_mut().unwrap().values_mut() {
        rows.as_array_mut().unwrap().sort_by_key(Value::to_string);
    }
    roll_call
}

/// Goal: the demo shows what it promises. Method: its own lines, pasted.
#[test]
fn the_demo_works_as_printed() {
    let folder = tempfile::tempdir().unwrap();
    let demo = Demo::start(folder.path(), &[]);
    let result = demo.try_out(&BASH, folder.path());

    let (listed, refused) = result[1].split_once('\n').unwrap();
    assert_eq!(sorted(parse(listed)), sorted(fixture("fetch.json")), "step 1 is the seed's manifest");
    let (head, problem) = refused.split_once("\r\n\r\n").or_else(|| refused.split_once("\n\n")).unwrap();
    assert!(head.starts_with("HTTP/1.1 423 "), "{head}");
    let problem = parse(problem);
    assert_eq!((&problem["code"], &problem["holder"]), (&json!("sync_in_progress"), &json!("Clara's phone")));

    let report = parse(&result[2]);
    let sent = fixture("synchronise.json");
    for set in ["add", "update", "delete"] {
        let count = |body: &Value| body[set]["budget"].as_array().unwrap().len();
        assert_eq!(count(&report), count(&sent), "{set}: a verdict for each row");
    }
    let verdicts = |set: &str| -> Vec<&str> {
        let rows = report[set]["budget"].as_array().unwrap();
        rows.iter().map(|row| row["verdict"].as_str().unwrap()).collect()
    };
    assert_eq!(verdicts("add"), ["added"; 4]);
    assert_eq!(verdicts("update"), ["added", "added", "same", "same", "same"]);
    assert_eq!(verdicts("delete"), ["absent"; 5]);
    let asked = sent["get"]["budget"].as_array().unwrap().len();
    let found = |member: &str| report[member]["budget"].as_array().unwrap().len();
    assert_eq!(found("get") + found("missing"), asked);

    let (listed, rows) = result[3].split_once('\n').unwrap();
    let (listed, rows) = (parse(listed), parse(rows));
    let listed: Vec<_> = listed["budget"].as_array().unwrap().iter().map(|row| &row["bid"]).collect();
    let rows = rows["get"]["budget"].as_array().unwrap();
    assert_eq!(
        (rows.len(), listed.len()),
        (6, fixture("fetch.json")["budget"].as_array().unwrap().len() + 6)
    );
    for row in
        sent["add"]["budget"].as_array().unwrap().iter().chain(sent["update"]["budget"].as_array().unwrap())
    {
        let held = rows.iter().find(|held| held["bid"] == row["bid"]).unwrap_or_else(|| panic!("{row}"));
        for (name, value) in row.as_object().unwrap() {
            assert_eq!(&held[name], value, "{row}");
        }
        assert!(listed.contains(&&row["bid"]));
    }

    let sums: Vec<_> = result[4].lines().collect();
    assert_eq!(sums.len(), 2, "{sums:?}");
    assert_eq!(sums[0], sums[1], "both hold the same rows");

    // Again with the existing data, then from the beginning.
    let [token] = ['A'].map(|device| demo.token(device));
    let version = |address, token: &str| {
        call(address, "GET /fetch?lock=false", Some(token), None).number("sync-version")
    };
    let before = version(demo.address, &token);
    stop(demo.server);
    let demo = Demo::start(folder.path(), &["--keep"]);
    assert_eq!(version(demo.address, &token), before, "the token of the last run still works");
    let result = demo.try_out(&ZSH, folder.path());
    let report = parse(&result[2]);
    let update = report["update"]["budget"].as_array().unwrap();
    assert!(update.iter().all(|row| row["verdict"] == "same"), "{report}");
    assert_eq!(version(demo.address, &demo.token('B')), before, "the same rows moved nothing");
    stop(demo.server);

    let demo = Demo::start(folder.path(), &[]);
    let roll_call = call(demo.address, "GET /fetch.json", Some(&demo.token('A')), None);
    assert_eq!(sorted(roll_call.json()), sorted(fixture("fetch.json")));
    assert_eq!(call(demo.address, "GET /fetch", Some(&token), None).status, 401, "a token of the old data");
    stop(demo.server);
}

#[test]
fn a_second_demo_finds_its_own_port() {
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let asked = taken.local_addr().unwrap();
    let mut command = rollcall();
    command.args(["demo", "--listen", &asked.to_string()]).current_dir(first.path());
    let mut demo = Process::start(&mut command);
    let address = demo.address();
    assert_ne!(address, asked);
    assert_eq!(call(address, "GET /readyz", None, None).status, 200);
    // In the same folder there is only one: it would take the data away under the other.
    assert!(bad(run(first.path(), &["demo", "--listen", "127.0.0.1:0"], "")).contains("another server"));
    assert_eq!(call(address, "GET /readyz", None, None).status, 200);
    let other = Demo::start(second.path(), &[]);
    stop(other.server);
    stop(demo);
}

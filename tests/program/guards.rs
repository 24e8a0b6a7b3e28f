//! What the program does for its own safety: its files, its limits, its audit lines. On the real program.

use rollcall_testkit::process;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use process::{Process, bearer, call, log_in, rollcall};
use serde_json::{Value, json};
use tempfile::TempDir;

const PASSWORD: &str = "something borrowed";
const SCHEMA: &str = "[table.notes]\nkey = \"id\"\n[table.notes.columns]\ntext = \"text\"\n";
const NOBODY: u32 = 65_534;

fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("schema.toml"), SCHEMA).unwrap();
    folder
}

fn serve_command(folder: &Path, database: &str, more: &[&str]) -> Command {
    let mut command = rollcall();
    command.args(["serve", "--schema", "schema.toml", "--listen", "127.0.0.1:0", "--log-format", "json"]);
    command.args(["--database", &format!("sqlite:{database}")]).args(more).current_dir(folder);
    command
}

fn serve(folder: &Path, database: &str, more: &[&str]) -> (Process, SocketAddr) {
    let mut server = Process::start(&mut serve_command(folder, database, more));
    let address = server.address();
    (server, address)
}

/// Stops a server; returns the lines of its log, each of which must be JSON.
fn stop(server: Process) -> Vec<Value> {
    server.terminate();
    let ended = server.wait();
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    let line = |line: &str| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    ended.stderr.lines().map(line).collect()
}

fn said(lines: &[Value], word: &str) -> usize {
    lines.iter().filter(|line| line.to_string().contains(word)).count()
}

/// Why a server does not start.
fn refusal(folder: &Path, database: &str) -> String {
    let output = serve_command(folder, database, &[]).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let text = String::from_utf8(output.stderr).unwrap();
    text.lines().last().unwrap().strip_prefix("error: ").unwrap_or_else(|| panic!("{text}")).to_owned()
}

fn mode(path: &Path) -> u32 {
    path.metadata().unwrap().mode() & 0o777
}

fn with_password(mut command: Command) -> Output {
    let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = piped.spawn().unwrap();
    let _ = child.stdin.take().unwrap().write_all(PASSWORD.as_bytes());
    child.wait_with_output().unwrap()
}

fn add_account(folder: &Path, database: &str) -> Output {
    let mut command = rollcall();
    command.args(["account", "add", "anna@example.org", "--database", &format!("sqlite:{database}")]);
    command.current_dir(folder);
    with_password(command)
}

/// A program under another umask or limit, which a shell sets first.
fn within(shell: &str, command: &Command) -> Command {
    let mut within = Command::new("sh");
    within
        .args(["-c", &format!("{shell}; exec \"$0\" \"$@\"")])
        .arg(command.get_program())
        .args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => within.env(name, value),
            None => within.env_remove(name),
        };
    }
    if let Some(folder) = command.get_current_dir() {
        within.current_dir(folder);
    }
    within
}

/// Goal: only the server's user can read the password hashes. Method: the files of a server, of a command and
/// of a backup, made under a umask that forbids nothing and one that forbids all.
#[test]
fn the_files_of_a_database_are_the_servers_own() {
    for umask in ["umask 000", "umask 777"] {
        let folder = folder();
        let at = |name: &str| folder.path().join(name);
        let mut server = Process::start(&mut within(umask, &serve_command(folder.path(), "app.db", &[])));
        let address = server.address();
        let user = json!({ "email": "anna@example.org", "password": PASSWORD });
        assert_eq!(call(address, "POST /register", None, Some(&user)).status, 201);
        for name in ["app.db", "app.db-wal", "app.db-shm", "app.db.lock"] {
            assert_eq!(format!("{:04o}", mode(&at(name))), "0600", "{umask}: {name}");
        }
        let mut backup = rollcall();
        backup.args(["backup", "--database", "sqlite:app.db", "--to", "copy.db"]).current_dir(folder.path());
        assert!(within(umask, &backup).output().unwrap().status.success());
        assert_eq!(mode(&at("copy.db")), 0o600, "{umask}");
        let lines = stop(server);
        assert_eq!(said(&lines, "--database-mode"), 0, "{lines:?}");

        let mut account = rollcall();
        account.args(["account", "add", "b@example.org", "--database", "sqlite:new.db"]);
        account.current_dir(folder.path());
        assert!(with_password(within(umask, &account)).status.success());
        assert_eq!(mode(&at("new.db")), 0o600, "{umask}");
    }
}

#[test]
fn files_of_an_older_release_are_tightened_and_one_line_says_so() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    stop(serve(folder.path(), "app.db", &[]).0);
    std::fs::write(at("app.db.before-restore-2025-01-01"), "").unwrap();
    let files = ["app.db", "app.db.lock", "app.db.before-restore-2025-01-01"];
    for name in files {
        std::fs::set_permissions(at(name), std::fs::Permissions::from_mode(0o644)).unwrap();
    }
    let lines = stop(serve(folder.path(), "app.db", &[]).0);
    assert_eq!(said(&lines, "--database-mode"), 1, "{lines:?}");
    assert_eq!(files.map(|name| mode(&at(name))), [0o600; 3]);
    let lines = stop(serve(folder.path(), "app.db", &[]).0);
    assert_eq!(said(&lines, "--database-mode"), 0, "{lines:?}");

    let (server, _) = serve(folder.path(), "app.db", &["--database-mode", "0660"]);
    assert_eq!(["app.db", "app.db-wal", "app.db-shm"].map(|name| mode(&at(name))), [0o660; 3]);
    stop(server);
    let refused = serve_command(folder.path(), "app.db", &["--database-mode", "0644"]).output().unwrap();
    assert!(String::from_utf8(refused.stderr).unwrap().contains("every user of the machine"));
}

/// Goal: one file has one server, by whichever name. Method: other names of a file that is served, and of one that is
/// not.
#[test]
fn another_name_of_a_database_leads_to_no_second_server() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    std::fs::create_dir(at("other")).unwrap();
    let (server, address) = serve(folder.path(), "app.db", &[]);
    assert_eq!(call(address, "GET /readyz", None, None).status, 200);

    symlink("../app.db", at("other/link.db")).unwrap();
    assert!(refusal(folder.path(), "other/link.db").contains("another server uses the database"));
    std::fs::hard_link(at("app.db"), at("other/hard.db")).unwrap();
    let because = refusal(folder.path(), "other/hard.db");
    assert!(because.contains("has 2 names (hard links)"), "{because}");
    let account = add_account(folder.path(), "other/hard.db");
    assert!(!account.status.success(), "{account:?}");
    assert!(String::from_utf8(account.stderr).unwrap().contains("hard links"));
    // The link is all that is left: one name, and still the file that is served.
    std::fs::remove_file(at("app.db")).unwrap();
    if cfg!(target_os = "linux") {
        assert!(refusal(folder.path(), "other/hard.db").contains("another server uses the database"));
    }
    std::fs::rename(at("other/hard.db"), at("app.db")).unwrap();
    stop(server);

    std::fs::hard_link(at("app.db"), at("second.db")).unwrap();
    assert!(refusal(folder.path(), "app.db").contains("hard links"));
    std::fs::remove_file(at("second.db")).unwrap();
    let (server, _) = serve(folder.path(), "other/link.db", &[]);
    assert!(refusal(folder.path(), "app.db").contains("another server uses the database"));
    let names = std::fs::read_dir(at("other")).unwrap().map(|entry| entry.unwrap().file_name());
    let beside_link = names.filter(|name| name.to_string_lossy().starts_with("link.db")).count();
    assert_eq!(beside_link, 1, "what is beside a database is beside the file and not beside a link to it");
    stop(server);
    // A link to nothing makes the file where it leads to.
    symlink("../new.db", at("other/to-nothing.db")).unwrap();
    stop(serve(folder.path(), "other/to-nothing.db", &[]).0);
    assert!(at("new.db").is_file() && at("new.db.lock").is_file());
}

/// A restore that was killed after it had given the old database a second name must not make the first one
/// unusable.
#[test]
fn what_a_killed_restore_left_does_not_stop_a_server() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    stop(serve(folder.path(), "app.db", &[]).0);
    std::fs::hard_link(at("app.db"), at("app.db.before-restore-2026-01-01")).unwrap();
    stop(serve(folder.path(), "app.db", &[]).0);
    assert!(!at("app.db.before-restore-2026-01-01").exists());
}

/// Goal: a command that root runs leaves the files to the server's user, and one that another user runs
/// explains why it cannot. Method: a file that belongs to `nobody`, and one of root's; only root can create
/// them.
#[test]
fn the_owner_of_a_database_stays_its_owner() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    stop(serve(folder.path(), "app.db", &[]).0);
    let is_root = at("app.db").metadata().unwrap().uid() == 0;
    if !is_root || chown(at("app.db"), Some(NOBODY), Some(NOBODY)).is_err() {
        println!("left out: only root can give files away");
        return;
    }
    let run = |uid: Option<u32>, args: &[&str]| {
        let mut command = rollcall();
        command.args(args).current_dir(folder.path());
        if let Some(uid) = uid {
            command.uid(uid).gid(uid);
        }
        with_password(command)
    };
    let owner = |name: &str| (at(name).metadata().unwrap().uid(), at(name).metadata().unwrap().gid());
    let database = ["--database", "sqlite:app.db"];
    assert!(run(None, &[&["account", "add", "anna@example.org"], &database[..]].concat()).status.success());
    let backup = run(None, &[&["backup", "--to", "copy.db"], &database[..]].concat());
    assert!(backup.status.success(), "{backup:?}");
    assert_eq!(owner("copy.db"), (NOBODY, NOBODY));
    let restore = [&["restore", "--from", "copy.db", "--replace"], &database[..]].concat();
    assert!(run(None, &restore).status.success());
    assert_eq!(owner("app.db"), (NOBODY, NOBODY));
    assert_eq!(mode(&at("app.db")), 0o600);

    // The reverse. The program must be where `nobody` may run it.
    let everybody = std::fs::Permissions::from_mode(0o777);
    std::fs::set_permissions(folder.path(), everybody).unwrap();
    let may_run = Command::new(rollcall_testkit::process::program()).arg("--version").uid(NOBODY).output();
    if !may_run.is_ok_and(|ran| ran.status.success()) {
        println!("left out: another user may not run the program where it lies");
        return;
    }
    chown(at("app.db"), Some(0), Some(0)).unwrap();
    for args in [&restore[..], &["account", "list", "--database", "sqlite:app.db"]] {
        let refused = run(Some(NOBODY), args);
        assert_eq!(refused.status.code(), Some(1), "{refused:?}");
        let because = String::from_utf8(refused.stderr).unwrap();
        assert!(because.contains("belongs to root, but this command runs as"), "{because}");
        assert!(because.contains("sudo -u root"), "{because}");
    }
    assert_eq!(owner("app.db"), (0, 0));
}

/// The response of a server to bytes that are no ordinary request.
fn raw(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn a_request_for_a_tunnel_is_refused_and_nothing_panics() {
    let folder = folder();
    let (server, address) = serve(folder.path(), "app.db", &[]);
    for request in ["CONNECT example.org:443", "CONNECT [::1]:443", "CONNECT /fetch"] {
        let answer =
            raw(address, &format!("{request} HTTP/1.1\r\nhost: example.org\r\nconnection: close\r\n\r\n"));
        assert!(answer.starts_with("HTTP/1.1 400 "), "{request}: {answer}");
        let is_problem =
            answer.contains("application/problem+json") && answer.contains("\"code\":\"invalid_request\"");
        assert!(is_problem || !request.contains("example"), "{request}: {answer}");
    }
    let front_page = ("GET http://example.org", "HTTP/1.1 200 ");
    for (request, status) in
        [("OPTIONS *", "HTTP/1.1 4"), ("GET http://example.org/fetch", "HTTP/1.1 4"), front_page]
    {
        let answer = raw(address, &format!("{request} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"));
        assert!(answer.starts_with(status), "{request}: {answer}");
    }
    let lines = stop(server); // each is JSON: no raw line of a panic
    assert_eq!(said(&lines, "panic"), 0, "{lines:?}");
    assert_eq!(said(&lines, "\"ERROR\""), 0, "{lines:?}");
}

/// The limit of open files of a running program, as Linux reports it.
fn open_files(server: &Process) -> Option<String> {
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", server.id())).ok()?;
    limits.lines().find(|line| line.starts_with("Max open files")).map(str::to_owned)
}

#[test]
fn the_limit_of_open_files_is_raised_or_warned_of() {
    let folder = folder();
    let start = |limits: &str, more: &[&str]| {
        let mut server = Process::start(&mut within(limits, &serve_command(folder.path(), "app.db", more)));
        server.address();
        server
    };
    let server = start("ulimit -Sn 256", &["--connections-max", "64"]);
    if let Some(limits) = open_files(&server) {
        let words: Vec<&str> = limits.split_whitespace().collect();
        assert_eq!(words[3], words[4], "{limits}");
    }
    assert_eq!(said(&stop(server), "LimitNOFILE"), 0);
    let server = start("ulimit -n 300", &["--connections-max", "64"]);
    assert_eq!(said(&stop(server), "LimitNOFILE"), 0);
    let lines = stop(start("ulimit -n 300", &[]));
    assert_eq!(said(&lines, "LimitNOFILE"), 1, "{lines:?}");
}

#[test]
fn passwords_that_cross_a_network_in_the_clear_are_warned_of() {
    let folder = folder();
    let warned = |more: &[&str]| {
        let mut command = rollcall();
        command.args([
            "serve",
            "--schema",
            "schema.toml",
            "--database",
            "sqlite:app.db",
            "--log-format",
            "json",
        ]);
        let mut server = Process::start(command.args(more).current_dir(folder.path()));
        server.address();
        said(&stop(server), "without TLS")
    };
    assert_eq!(warned(&["--listen", "0.0.0.0:0"]), 1);
    assert_eq!(warned(&["--listen", "127.0.0.1:0"]), 0);
    assert_eq!(warned(&["--listen", "0.0.0.0:0", "--trusted-proxy", "10.0.0.0/8"]), 0);
}

/// Goal: a log that grows since another program reads is seen before the disk is full. Method: a reader that does not
/// end, beside writes of more than the log may have.
#[test]
fn a_log_that_another_program_keeps_is_warned_of() {
    let folder = folder();
    let (server, address) = serve(folder.path(), "app.db", &["--wal-bytes-warn", "1000000"]);
    let user = json!({ "email": "anna@example.org", "password": PASSWORD });
    assert_eq!(call(address, "POST /register", None, Some(&user)).status, 201);
    let token = log_in(address, "anna@example.org", PASSWORD, "phone");
    let reader = rusqlite::Connection::open(folder.path().join("app.db")).unwrap();
    reader.execute_batch("BEGIN; SELECT count(*) FROM rollcall_meta").unwrap();
    for n in 0..20 {
        let row = json!({ "id": format!("01900000-0000-7000-8000-{n:012}"), "text": "x".repeat(100_000) });
        let sent =
            call(address, "POST /synchronise", Some(&token), Some(&json!({ "add": { "notes": [row] } })));
        assert_eq!(sent.status, 200, "{}", sent.text());
    }
    let metrics = call(address, "GET /metrics", None, None);
    let bytes =
        metrics.text().lines().find_map(|line| line.strip_prefix("rollcall_wal_bytes ")).unwrap().to_owned();
    assert!(bytes.parse::<u64>().unwrap() > 1_000_000, "{bytes}");
    std::thread::sleep(std::time::Duration::from_secs(7)); // it checks every 5 s
    drop(reader);
    let lines = stop(server);
    assert_eq!(said(&lines, "the write-ahead log grows"), 1, "{lines:?}");
}

/// Goal: the log shows who logged in, who was refused and why, and contains no secret. Method: one of each,
/// and all lines are searched for every secret that was sent.
#[test]
fn every_change_of_who_may_come_in_leaves_a_line() {
    let folder = folder();
    let (server, address) = serve(folder.path(), "app.db", &["--trusted-proxy", "127.0.0.0/8"]);
    let user = json!({ "email": "anna@example.org", "password": PASSWORD });
    assert_eq!(call(address, "POST /register", None, Some(&user)).status, 201);
    assert_eq!(call(address, "POST /register", None, Some(&user)).status, 409);
    let phone = log_in(address, "anna@example.org", PASSWORD, "phone");
    let tablet = log_in(address, "anna@example.org", PASSWORD, "tablet");
    let attempt = |email: &str, password: &str| {
        let body = json!({ "email": email, "password": password, "device": "x" }).to_string();
        let mut client = process::Client::connect(address).unwrap();
        client.call("POST /login", &["x-forwarded-for: 203.0.113.9".to_owned()], Some(&body)).unwrap().status
    };
    assert_eq!(attempt("my-password-typed-here", "x"), 401);
    assert_eq!(attempt("nobody@example.org", "wrong-password-1"), 401);
    for _ in 0..5 {
        assert_eq!(attempt("anna@example.org", "wrong-password-2"), 401);
    }
    assert_eq!(attempt("anna@example.org", PASSWORD), 429);
    let devices = call(address, "GET /devices", Some(&phone), None).json();
    let of_tablet =
        devices["devices"].as_array().unwrap().iter().find(|each| each["device"] == "tablet").unwrap();
    let id = of_tablet["device_id"].as_str().unwrap().to_owned();
    assert_eq!(call(address, &format!("DELETE /devices/{id}"), Some(&phone), None).status, 204);
    assert_eq!(call(address, "POST /logout", Some(&phone), None).status, 204);
    let lines = stop(server);
    let audit: Vec<&Value> = lines.iter().filter(|line| line["target"] == "audit").collect();
    let result: Vec<(&str, &str, &str)> = audit
        .iter()
        .map(|line| {
            let text = |name: &str| line[name].as_str().unwrap_or("");
            assert!(line["span"]["id"].is_string() || line["spans"].is_array(), "{line}: of which request");
            (text("event"), text("from"), text("why"))
        })
        .collect();
    let here = "127.0.0.1";
    let there = "203.0.113.9";
    let wrong = ("log_in", there, "wrong password");
    assert_eq!(
        result,
        [
            ("registration", here, ""),
            ("registration", here, "the email is taken"),
            ("log_in", here, ""),
            ("log_in", here, ""),
            ("log_in", there, "unknown account"),
            ("log_in", there, "unknown account"),
            wrong,
            wrong,
            wrong,
            wrong,
            wrong,
            ("log_in", there, "too many failed log-ins for the account from the address"),
            ("revocation", here, ""),
            ("log_out", here, ""),
        ]
    );
    let user = audit[0]["user"].as_str().unwrap();
    assert!([2, 3, 6, 11, 12, 13].iter().all(|place| audit[*place]["user"] == user), "{audit:?}");
    assert_eq!(audit[12]["device"], id.as_str());
    for secret in [PASSWORD, &phone, &tablet, "wrong-password", "my-password", "@example.org"] {
        assert_eq!(said(&lines, secret), 0, "{secret} is in the log");
    }
    assert_eq!(bearer("x"), "authorization: Bearer x");
}

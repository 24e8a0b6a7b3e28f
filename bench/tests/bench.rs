//! `rollcall-bench` as somebody who measures uses it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use rollcall_testkit::pg;

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// Longer than anything here takes on a busy machine.
const TOO_LONG: Duration = Duration::from_secs(60);

/// A benchmark whose files stay in `folder`.
fn bench(folder: &TempDir, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rollcall-bench"));
    command.arg("--quick").arg("--cache").arg(folder.path()).args(args);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// The files of a folder.
fn files(folder: &TempDir) -> Vec<String> {
    let entries = std::fs::read_dir(folder.path()).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// Goal: the benchmark works on every machine. Method: all scenarios at small sizes. The speed means nothing
/// here: tests run concurrently.
#[test]
fn every_scenario_is_told_with_a_ratio() {
    let folder = tempfile::tempdir().unwrap();
    let ended = bench(&folder, &["--json", "-"]).output().unwrap();
    let errors = String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.success(), "{errors}");
    let report: Value = serde_json::from_slice(&ended.stdout).unwrap();
    let lines = report["scenarios"].as_array().unwrap();
    let letters: Vec<&str> = lines.iter().map(|line| line["scenario"].as_str().unwrap()).collect();
    assert_eq!(letters.concat(), "aaaabbbccddddefgi");
    lines.iter().for_each(|line| is_whole(line, &errors));
    let kept = files(&folder);
    assert!(kept.iter().all(|name| name.starts_with("rollcall-bench-40000-")), "{kept:?}");

    // The large database exists now, and a table is the usual output.
    let began = std::fs::metadata(folder.path().join(database(&kept))).unwrap().created();
    let ended = bench(&folder, &["--scenario", "g"]).output().unwrap();
    let table = String::from_utf8(ended.stdout).unwrap();
    assert!(table.contains("g cold start") && table.contains("ratio"), "{table}");
    assert!(!table.contains("a upload"), "{table}");
    let again = std::fs::metadata(folder.path().join(database(&files(&folder)))).unwrap().created();
    assert_eq!(again.ok(), began.ok());
}

#[track_caller]
fn is_whole(line: &Value, announced: &str) {
    for figure in ["ratio", "median_ms", "p99_ms", "per_second", "yardstick_per_second"] {
        let value = line[figure].as_f64().unwrap_or_else(|| panic!("no {figure} in {line}"));
        assert!(value > 0.0 && value.is_finite(), "{figure} in {line}");
    }
    assert!(line["bytes_down_per_request"].as_u64().unwrap() > 0, "{line}");
    assert!(announced.contains(line["variant"].as_str().unwrap()), "{line} was not announced");
}

/// Goal: the same over PostgreSQL. Method: twice over one database, which keeps what the first run wrote.
#[test]
fn servers_over_postgresql_are_told_with_a_ratio() {
    let folder = tempfile::tempdir().unwrap();
    let ended = bench(&folder, &["--scenario", "h"]).output().unwrap();
    let errors = String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.code() == Some(1) && errors.contains("h needs a PostgreSQL database"), "{errors}");
    let Some(database) = pg::cluster().map(pg::Cluster::database) else { return };
    for _ in 0..2 {
        let args = ["--scenario", "h", "--json", "-", "--postgres", &database.url];
        let ended = bench(&folder, &args).output().unwrap();
        let errors = String::from_utf8_lossy(&ended.stderr);
        assert!(ended.status.success(), "{errors}");
        let report: Value = serde_json::from_slice(&ended.stdout).unwrap();
        let lines = report["scenarios"].as_array().unwrap();
        assert_eq!(lines.len(), 2, "{report}");
        for (line, connections) in lines.iter().zip([16.0, 48.0]) {
            is_whole(line, &errors);
            assert_eq!(line["connections"], connections, "{line}");
            assert!(line["server_cpu_ms_per_request"].as_f64().unwrap() > 0.0, "{line}");
        }
    }
}

fn database(files: &[String]) -> &String {
    files.iter().find(|name| name.ends_with(".db")).unwrap()
}

/// Goal: Ctrl-C leaves nothing behind. Method: stopped once a server runs.
#[test]
fn an_interrupted_benchmark_takes_its_processes_and_files_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut child = bench(&folder, &["--scenario", "e", "--runs", "1000"]).spawn().unwrap();
    let began = Instant::now();
    let server = loop {
        assert!(began.elapsed() < TOO_LONG, "no server was started");
        if let Some(server) = child_of(child.id()) {
            break server;
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let result = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(result.success());
    let ended = child.wait().unwrap();
    assert_eq!(ended.code(), Some(130));
    while is_running(server) {
        assert!(began.elapsed() < TOO_LONG, "the server goes on");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(files(&folder), Vec::<String>::new());
}

/// A process that the benchmark has started.
fn child_of(id: u32) -> Option<u32> {
    let text = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children")).ok()?;
    text.split_whitespace().next()?.parse().ok()
}

/// Whether the process exists, and is more than an unreaped entry.
fn is_running(id: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

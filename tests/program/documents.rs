//! The documents: links lead somewhere, shell blocks work in bash and in zsh, and generated pages are
//! current.

use rollcall_testkit::markdown;
use rollcall_testkit::shells;

use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc::channel;
use std::time::Duration;

use markdown::{Block, Mark, Page};
use serde_json::Value;
use shells::{BASH, ZSH, is_installed, pasting};

fn checkout() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The README and everything below `docs`.
fn documents() -> Vec<Page> {
    let mut paths = markdown::files(&checkout().join("docs"));
    paths.push(checkout().join("README.md"));
    assert!(paths.len() > 30, "{} pages found: a moved folder must not pass", paths.len());
    paths.iter().map(|path| Page::read(path)).collect()
}

/// Goal: no link is broken. Method: every Markdown file of the checkout, its relative links, and the headings that they
/// name.
#[test]
fn every_link_leads_somewhere() {
    let mut paths = markdown::files(checkout());
    paths.retain(|path| !["target", "node_modules", ".git"].iter().any(|name| has_part(path, name)));
    let (mut links, mut broken) = (0, Vec::new());
    for page in paths.iter().map(|path| Page::read(path)) {
        for link in page.links().filter(|link| !link.contains("://") && !link.starts_with("mailto:")) {
            links += 1;
            let (file, anchor) = link.split_once('#').unwrap_or((&link, ""));
            let target = match file {
                "" => page.path.clone(),
                file => page.path.parent().unwrap().join(file),
            };
            let is_there = target.exists()
                && (anchor.is_empty() || Page::read(&target).anchors().contains(&anchor.to_owned()));
            if !is_there {
                broken.push(format!("{}: {link}", page.name(checkout())));
            }
        }
    }
    assert!(broken.is_empty(), "these links lead nowhere:\n{}", broken.join("\n"));
    assert!(links > 200, "{links} links found");
}

fn has_part(path: &Path, name: &str) -> bool {
    path.strip_prefix(checkout()).unwrap().components().any(|part| part.as_os_str() == name)
}

/// Goal: no page names a file that has moved. Method: every path in backticks of the README and the documents.
#[test]
fn every_named_path_is_there() {
    let folders = [
        "src/",
        "crates/",
        "bench/",
        "tests/",
        "testkit/",
        "fixtures/",
        "clients/",
        "examples/",
        "docs/",
        ".ci/",
    ];
    let (mut paths, mut gone) = (0, Vec::new());
    for page in documents() {
        for code in page.inline_code() {
            let named = code.split_whitespace().next().unwrap_or_default();
            if folders.iter().any(|folder| named.starts_with(folder)) {
                paths += 1;
                let here = checkout().join(named);
                let is_module = here.with_extension("rs").exists() || here.join("mod.rs").exists();
                if !here.exists() && !is_module {
                    gone.push(format!("{}: {named}", page.name(checkout())));
                }
            }
        }
    }
    assert!(gone.is_empty(), "these are not there:\n{}", gone.join("\n"));
    assert!(paths > 30, "{paths} paths found");
}

/// Goal: a reader finds the page that answers a question. Method: the README is short enough; each page
/// begins with a title and a question; the index names every page.
#[test]
fn each_page_answers_one_question_and_is_in_the_index() {
    let index = Page::read(&checkout().join("docs/README.md"));
    let listed: Vec<PathBuf> = index.links().filter_map(|link| resolve(&index, &link)).collect();
    for page in documents() {
        let name = page.name(checkout());
        if name == "README.md" {
            assert!(page.lines().len() <= 200, "README.md has {} lines", page.lines().len());
            continue;
        }
        assert!(page.lines()[0].starts_with("# "), "{name} begins with its title");
        let question: Vec<_> =
            page.lines().iter().skip(2).take_while(|line| !line.is_empty()).cloned().collect();
        assert!(question.join(" ").ends_with('?'), "{name} begins with its question: {question:?}");
        let is_listed = name == "docs/README.md" || listed.contains(&page.path.canonicalize().unwrap());
        assert!(is_listed, "docs/README.md does not name {name}");
    }
}

fn resolve(page: &Page, link: &str) -> Option<PathBuf> {
    let file = link.split('#').next().unwrap();
    page.path.parent().unwrap().join(file).canonicalize().ok()
}

/// Goal: the reference of settings and commands is the program's own. Method: the program prints both pages.
#[test]
fn the_reference_is_what_the_program_prints() {
    for page in ["settings", "cli"] {
        let output =
            Command::new(rollcall_testkit::process::program()).args(["reference", page]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let path = format!("docs/reference/{page}.md");
        let held = std::fs::read_to_string(checkout().join(&path)).unwrap_or_default();
        let is_same = held == String::from_utf8(output.stdout).unwrap();
        assert!(
            is_same,
            "{path} differs from the program; write it again: cargo run -- reference {page} > {path}"
        );
    }
}

/// The contract of the wedding planner.
fn contract() -> Value {
    let mut program = Command::new(env!("CARGO_BIN_EXE_rollcall"));
    let output =
        program.args(["openapi", "--schema"]).arg(checkout().join("fixtures/wedding/schema.toml")).output();
    serde_json::from_slice(&output.unwrap().stdout).unwrap()
}

/// Goal: a client author finds every verdict and every code. Method: those of the contract, each in a row of the page.
#[test]
fn every_verdict_and_code_has_its_row() {
    let contract = contract();
    let page = Page::read(&checkout().join("docs/reference/verdicts-and-problems.md"));
    let has_row = |cell: &str| page.lines().iter().any(|line| line.starts_with('|') && line.contains(cell));
    let mut seen = 0;
    for list in ["Verdict/enum", "Code/enum", "Rejection/properties/code/enum"] {
        for name in contract.pointer(&format!("/components/schemas/{list}")).unwrap().as_array().unwrap() {
            seen += 1;
            let name = name.as_str().unwrap();
            assert!(has_row(&format!("`{name}`")), "{} has no row for {name}", page.name(checkout()));
        }
    }
    assert!(seen > 40, "{seen}");
}

/// Goal: the overview of the API leaves nothing out. Method: the paths of the contract; the console has one row.
#[test]
fn every_path_is_in_the_overview() {
    let contract = contract();
    let page = Page::read(&checkout().join("docs/reference/http.md"));
    let named = page.inline_code();
    let paths = contract["paths"].as_object().unwrap();
    assert!(paths.len() > 25, "{}", paths.len());
    for path in paths.keys().filter(|path| !path.starts_with("/console/")) {
        let is_named = named.iter().any(|code| code.ends_with(path.as_str()));
        assert!(is_named, "{} does not name {path}", page.name(checkout()));
    }
}

#[test]
fn shell_blocks_work_in_bash() {
    run_every_page(&BASH);
}

#[test]
fn shell_blocks_work_in_zsh() {
    run_every_page(&ZSH);
}

/// Runs the blocks of each page in order, in a folder of its own.
fn run_every_page(shell: &[&str]) {
    let missing: Vec<_> =
        [shell[0], "curl", "python3", "openssl"].into_iter().filter(|name| !is_installed(name)).collect();
    if !missing.is_empty() {
        let is_required = std::env::var("ROLLCALL_TEST_SHELLS").is_ok_and(|value| value == "required");
        assert!(!is_required, "not installed: {missing:?}");
        println!("left out: {missing:?} is not installed");
        return;
    }
    let (mut ran, mut answers) = (0, 0);
    for page in documents() {
        let blocks = page.blocks();
        let name = page.name(checkout());
        for block in blocks.iter().filter(|block| block.is_shell()) {
            assert_eq!(
                block.language, "sh",
                "{name}:{}: a shell block is `sh`, so that it is run",
                block.line
            );
            if let Mark::NotRun(reason) = &block.mark {
                assert!(reason.split(' ').count() > 1, "{name}:{}: say why it is not run", block.line);
            }
        }
        if blocks.iter().any(Block::is_run) {
            let trial = Trial::new(shell, &name, &blocks);
            ran += blocks.iter().filter(|block| block.is_run()).count();
            answers += trial.check(&blocks);
        }
    }
    assert!(ran > 25 && answers > 10, "{ran} blocks ran, {answers} answers compared");
}

/// Where a page is tried out.
struct Trial<'a> {
    shell: &'a [&'a str],
    page: &'a str,
    folder: tempfile::TempDir,
    /// The port in a page, and the free port that replaces it.
    ports: [(&'static str, String); 3],
}

impl<'a> Trial<'a> {
    /// A folder that looks like a checkout, with the files that the page shows.
    fn new(shell: &'a [&'a str], page: &'a str, blocks: &[Block]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let ports = PORTS.map(|port| (port, free_port()));
        let trial = Self { shell, page, folder, ports };
        for place in ["work", "rollcall"] {
            let place = trial.folder.path().join(place);
            std::fs::create_dir_all(place.join("target/release")).unwrap();
            symlink(rollcall_testkit::process::program(), place.join("target/release/rollcall")).unwrap();
            for name in ["fixtures", "examples", "clients"] {
                symlink(checkout().join(name), place.join(name)).unwrap();
            }
        }
        for block in blocks.iter().filter(|block| !block.is_shell()) {
            if let Some(file) = &block.file {
                std::fs::write(trial.folder.path().join("work").join(file), trial.here(&block.text)).unwrap();
            }
        }
        trial
    }

    /// The text with ports that are free here.
    fn here(&self, text: &str) -> String {
        self.ports.iter().fold(text.to_owned(), |text, (port, free)| text.replace(port, free))
    }

    /// All blocks as one script that prints a line before each.
    fn script(&self, blocks: &[Block]) -> String {
        let mut script = String::from(
            "set +m\n\
             listens() { for n in $(seq 300); do grep -q -e 'listening on' -e 'Serving HTTP' $1 && return 0; sleep 0.1; done; \
             cat $1; return 1; }\n",
        );
        for (at, block) in blocks.iter().enumerate().filter(|(_, block)| block.is_run()) {
            let text = self.here(&block.text);
            script += &match block.mark {
                Mark::Background => {
                    format!("{{\n{text}}} > server-{at}.log 2>&1 < /dev/null &\nlistens server-{at}.log\n")
                }
                _ => format!("echo '=== {at}'\n{text}"),
            };
        }
        script
    }

    /// Runs the page; returns how many outputs were as shown.
    fn check(&self, blocks: &[Block]) -> usize {
        let output = self.run(&self.script(blocks));
        let said = String::from_utf8(output.stdout).unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{} in {}:\n{said}\n{errors}", self.page, self.shell[0]);
        let printed = |block: usize| {
            let mut parts = said.split("=== ").filter_map(|part| part.split_once('\n'));
            parts.find(|(at, _)| *at == block.to_string()).map_or("", |(_, text)| text)
        };
        let (mut answers, mut text) = (0, String::new());
        for (at, block) in blocks.iter().enumerate() {
            if block.is_run() {
                text += printed(at);
            } else if block.mark == Mark::Answer {
                answers += 1;
                let missing = missing_part(&self.here(&block.text), &text);
                let place = format!("{}:{} in {}", self.page, block.line, self.shell[0]);
                assert_eq!(missing, None, "{place}: this is not what was printed:\n{text}");
                text.clear();
            }
        }
        answers
    }

    fn run(&self, script: &str) -> Output {
        let work = self.folder.path().join("work");
        let mut command = pasting(self.shell);
        command.current_dir(&work).env("HOME", &work).env("PYTHONUNBUFFERED", "1");
        let address = format!("127.0.0.1:{}", self.ports[0].1);
        command.env("ROLLCALL_LISTEN", address).process_group(0);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let group = Group(child.id());
        let (ended, waits) = channel::<()>();
        let id = child.id();
        std::thread::spawn(move || {
            if waits.recv_timeout(Duration::from_secs(120)).is_err() {
                Group(id).end();
            }
        });
        child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let _ = ended.send(());
        drop(group);
        output
    }
}

/// The processes of one page. Dropping it ends them.
struct Group(u32);

impl Group {
    fn end(&self) {
        let group = format!("-{}", self.0);
        let _ = Command::new("kill").args(["-TERM", "--", &group]).stderr(Stdio::null()).status();
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.end();
    }
}

/// The ports that the pages name.
const PORTS: [&str; 3] = ["7878", "7879", "8000"];

/// A free port whose digits are not taken for one of the pages'.
fn free_port() -> String {
    loop {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
        if !PORTS.iter().any(|named| port.contains(named)) {
            return port;
        }
    }
}

/// The first part of an output, between two `…`, that was not printed in this order. White space and times
/// are ignored.
fn missing_part(answer: &str, printed: &str) -> Option<String> {
    let printed = comparable(printed);
    let mut rest = printed.as_str();
    for part in answer.split('…').map(comparable).filter(|part| !part.is_empty()) {
        match rest.find(&part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return Some(part),
        }
    }
    None
}

fn comparable(text: &str) -> String {
    let packed: Vec<char> = text.chars().filter(|c| !c.is_whitespace()).collect();
    let mut plain = String::new();
    let mut at = 0;
    while at < packed.len() {
        let time = length_of_time(&packed[at..]);
        if time > 0 {
            plain.push_str("TIME");
            at += time;
        } else {
            plain.push(packed[at]);
            at += 1;
        }
    }
    plain
}

/// How many characters a time at the beginning has, such as `2013-05-0115:36:06` or `2013-05-01T15:36:06.123Z`.
fn length_of_time(text: &[char]) -> usize {
    let fits = |shape: &str| {
        let shape: Vec<char> = shape.chars().collect();
        let is = |(c, wanted): (&char, &char)| if *wanted == '0' { c.is_ascii_digit() } else { c == wanted };
        text.len() >= shape.len() && text.iter().zip(&shape).all(is)
    };
    let shapes = ["0000-00-00T00:00:00.000Z", "0000-00-0000:00:00"];
    shapes.iter().find(|shape| fits(shape)).map_or(0, |shape| shape.len())
}

#[test]
fn an_answer_is_compared_part_by_part() {
    let printed = "{\"at\":\"2026-11-30 20:46:20\", \"rows\":[1,2,3]}";
    assert_eq!(missing_part("{\"at\":\"2013-05-01 10:00:00\",\"rows\":[1,…3]}", printed), None);
    assert_eq!(missing_part("{\"rows\":[1,…4]}", printed).as_deref(), Some("{\"rows\":[1,"));
    assert_eq!(missing_part("\"rows\":[…4]}", printed).as_deref(), Some("4]}"));
    assert_eq!(missing_part("3]}…\"rows\"", printed).as_deref(), Some("\"rows\""));
}

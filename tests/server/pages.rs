//! The web pages as they are served, and what their files must not do.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use http::Response;
use rollcall::http::Peer;
use rollcall::http::pages::{DemoAccounts, DemoPhone, Pages, pages};
use warp::Filter;

const PAGES: &str = "src/http/pages";

/// Both pages, the demo alone, the console alone, none.
fn shown(demo: bool, console: bool) -> Pages {
    let phone = |device: &str| DemoPhone {
        email: "anna@example.com".into(),
        password: "something borrowed".into(),
        device: device.into(),
    };
    let accounts = || DemoAccounts {
        owner: "someone".into(),
        phones: vec![phone("one"), phone("two")],
        guest: phone("guest"),
    };
    Pages { demo: demo.then(accounts), console }
}

struct Ask<'a> {
    method: &'a str,
    path: &'a str,
    host: &'a str,
    from: &'a str,
    known: Option<&'a str>,
}

fn get(path: &str) -> Ask<'_> {
    Ask { method: "GET", path, host: "127.0.0.1:7878", from: "127.0.0.1", known: None }
}

impl Ask<'_> {
    async fn of(self, shown: Pages) -> Response<Bytes> {
        let filter = pages(shown)
            .or(warp::any()
                .map(|| warp::reply::with_status("another route", warp::http::StatusCode::NOT_FOUND)));
        let from: IpAddr = self.from.parse().unwrap();
        let mut ask = warp::test::request()
            .method(self.method)
            .path(self.path)
            .header("host", self.host)
            .extension(Peer(from));
        if let Some(tag) = self.known {
            ask = ask.header("if-none-match", tag);
        }
        ask.reply(&filter).await
    }
}

fn header<'a>(answer: &'a Response<Bytes>, name: &str) -> &'a str {
    answer.headers().get(name).map_or("", |value| value.to_str().unwrap())
}

/// What a text names between quotes that begins with a path of the page: `href="/demo/…"`.
fn addresses(text: &str, page: &str) -> Vec<String> {
    let begin = format!("/{page}/");
    text.split('"').filter(|part| part.starts_with(&begin)).map(str::to_owned).collect()
}

/// What a module imports, as paths relative to its own.
fn imports(path: &str, text: &str) -> Vec<String> {
    let folder = path.rsplit_once('/').unwrap().0;
    let quoted = text.lines().filter_map(|line| {
        let line = line.trim_start();
        let is_import =
            line.starts_with("import ") || line.starts_with("export ") || line.starts_with("} from ");
        let from = line.split_once("from ").map(|(_, from)| from).or_else(|| line.strip_prefix("import "))?;
        let quoted = from.trim().trim_end_matches(';').trim_matches(['"', '\'']);
        (is_import && quoted.starts_with('.')).then(|| quoted.to_owned())
    });
    quoted
        .map(|relative| {
            let mut parts: Vec<&str> = folder.split('/').collect();
            for part in relative.split('/') {
                match part {
                    "." => {}
                    ".." => {
                        parts.pop();
                    }
                    part => parts.push(part),
                }
            }
            parts.join("/")
        })
        .collect()
}

/// Goal: a page loads completely. Method: the page, the files that it names, and their imports, each
/// requested.
#[tokio::test]
async fn a_page_and_all_that_it_is_made_of_are_served() {
    for page in ["demo", "console"] {
        let html = get(&format!("/{page}")).of(shown(true, true)).await;
        assert_eq!(html.status(), 200);
        assert_eq!(header(&html, "content-type"), "text/html; charset=utf-8");
        assert_eq!(header(&html, "cache-control"), "no-cache");
        assert_eq!(header(&html, "referrer-policy"), "no-referrer");
        let policy = header(&html, "content-security-policy");
        for rule in ["default-src 'none'", "script-src 'self'", "style-src 'self'", "frame-ancestors 'none'"]
        {
            assert!(policy.contains(rule), "{policy}");
        }
        assert!(!policy.contains("unsafe") && !policy.contains("http"), "{policy}");

        let text = String::from_utf8(html.body().to_vec()).unwrap();
        assert!(!text.contains("@build"), "{page}: the folder of the build is filled in");
        let mut left = addresses(&text, page);
        let mut seen = Vec::new();
        while let Some(path) = left.pop() {
            if seen.contains(&path) {
                continue;
            }
            let answer = get(&path).of(shown(true, true)).await;
            assert_eq!(answer.status(), 200, "{path}");
            assert!(header(&answer, "cache-control").contains("immutable"), "{path}");
            let kind = match path.rsplit_once('.').unwrap().1 {
                "js" => "text/javascript; charset=utf-8",
                "css" => "text/css; charset=utf-8",
                "svg" => "image/svg+xml",
                other => panic!("{path}: {other}"),
            };
            assert_eq!(header(&answer, "content-type"), kind, "{path}");
            if kind.contains("javascript") {
                left.extend(imports(&path, std::str::from_utf8(answer.body()).unwrap()));
            }
            seen.push(path);
        }
        assert!(seen.len() > 5, "{page}: {seen:?}");
    }
}

/// Goal: a visitor of the server's address learns what it is and where to continue.
#[tokio::test]
async fn the_front_page_names_the_program_and_its_contract() {
    for console in [false, true] {
        let answer = get("/").of(shown(false, console)).await;
        assert_eq!(
            (answer.status().as_u16(), header(&answer, "content-type")),
            (200, "text/html; charset=utf-8")
        );
        let text = String::from_utf8(answer.body().to_vec()).unwrap();
        for part in ["rollcall ", env!("CARGO_PKG_VERSION"), "href=\"openapi.json\"", "href=\"openapi.yaml\""]
        {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert_eq!(text.contains("href=\"console\""), console, "{text}");
    }
    assert_eq!(Ask { method: "POST", ..get("/") }.of(shown(false, false)).await.status(), 405);
    assert_eq!(get("/").of(shown(true, false)).await.status(), 303, "the demo goes to its phones");
}

#[tokio::test]
async fn a_page_that_is_known_is_not_sent_again() {
    let first = get("/demo").of(shown(true, false)).await;
    let tag = header(&first, "etag").to_owned();
    let again = Ask { known: Some(&tag), ..get("/demo/") }.of(shown(true, false)).await;
    assert_eq!((again.status().as_u16(), again.body().len()), (304, 0));
    assert_eq!(header(&again, "etag"), tag);
    let other = Ask { known: Some("W/\"other\""), ..get("/demo") }.of(shown(true, false)).await;
    assert_eq!(other.status(), 200);
}

/// Goal: a server has only the configured pages. Method: every kind of path, on four servers.
#[tokio::test]
async fn pages_are_there_only_where_they_were_asked_for() {
    let html = get("/demo").of(shown(true, true)).await;
    let text = String::from_utf8(html.body().to_vec()).unwrap();
    let script = addresses(&text, "demo").into_iter().find(|path| path.ends_with("main.js")).unwrap();
    for (path, demo, console) in [
        ("/demo", true, false),
        ("/demo/", true, false),
        ("/demo/account.json", true, false),
        (script.as_str(), true, false),
        ("/console", false, true),
        ("/console/", false, true),
        (&script.replacen("/demo/", "/console/", 1).replace("/demo/", "/shared/"), false, false),
        (&script.replacen("/demo/", "/console/", 1), false, false),
        (&script.replace("main.js", "none.js"), false, false),
        (&script.replace("main.js", "../mod.rs"), false, false),
        ("/demo/0000000000000000/demo/main.js", false, false),
        ("/demo/demo/main.js", false, false),
        ("/demo/index.html", false, false),
        ("/console/account.json", false, false),
        ("/demonstration", false, false),
        ("/shared/base.css", false, false),
        ("/fetch", false, false),
        ("//demo", false, false),
    ] {
        for (with_demo, with_console) in [(true, true), (true, false), (false, true), (false, false)] {
            let is_there = (demo && with_demo) || (console && with_console);
            let status = get(path).of(shown(with_demo, with_console)).await.status();
            assert_eq!(status == 200, is_there, "{path}: {status}");
            let post = Ask { method: "POST", ..get(path) }.of(shown(with_demo, with_console)).await;
            assert_eq!(post.status() == 405, is_there, "POST {path}");
        }
    }
    let root = get("/").of(shown(true, true)).await;
    assert_eq!((root.status().as_u16(), header(&root, "location")), (303, "/demo"));
}

/// Goal: nobody else gets the demo's password. Method: other machines, and names that resolve to this one.
#[tokio::test]
async fn the_demos_account_is_told_on_this_machine_alone() {
    for host in ["127.0.0.1:7878", "localhost:7878", "localhost", "[::1]:7878", "[::1]"] {
        let answer = Ask { host, ..get("/demo/account.json") }.of(shown(true, false)).await;
        assert_eq!(answer.status(), 200, "{host}");
        assert_eq!(header(&answer, "cache-control"), "no-store");
    }
    for (from, host) in [
        ("127.0.0.1", "rebound.example:7878"),
        ("127.0.0.1", "127.0.0.1.example"),
        ("127.0.0.1", ""),
        ("192.0.2.7", "127.0.0.1:7878"),
        ("2001:db8::1", "localhost"),
        ("0.0.0.0", "localhost"),
    ] {
        let answer = Ask { from, host, ..get("/demo/account.json") }.of(shown(true, false)).await;
        assert_eq!(answer.status(), 404, "{from} {host}");
    }
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { sources(&path, found) } else { found.push(path) }
    }
}

/// Longer than this, a module holds a second noun.
const LINES_MAX: usize = 300;

/// Goal: what users write is never run, and no page leaves its server. Method: words that would do it.
#[test]
fn the_pages_files_are_small_and_do_nothing_unsafe() {
    let table = std::fs::read_to_string(format!("{PAGES}/files.rs")).unwrap();
    let mut found = Vec::new();
    for folder in ["demo", "console", "shared"] {
        sources(&Path::new(PAGES).join(folder), &mut found);
    }
    assert!(found.len() > 20, "{} files found: a moved folder must not pass", found.len());
    for path in found {
        let text = std::fs::read_to_string(&path).unwrap();
        let name = path.strip_prefix(PAGES).unwrap().to_str().unwrap().replace('\\', "/");
        assert!(table.contains(&format!("\"{name}\"")), "{name} is not in files.rs");
        assert!(text.lines().count() <= LINES_MAX, "{name} has {} lines", text.lines().count());
        for word in [
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "DOMParser",
            "createContextualFragment",
            "eval(",
            "new Function",
            "javascript:",
            "@import",
            "url(",
        ] {
            assert!(!text.contains(word), "{name} has {word}");
        }
        if name.ends_with(".html") {
            for word in ["style=", "<style", " onclick", " onload", "<script>"] {
                assert!(!text.contains(word), "{name} has {word}");
            }
        }
        let addresses = text.replace("http://www.w3.org/2000/svg", "");
        assert!(!addresses.contains("http://") && !addresses.contains("https://"), "{name} names an address");
    }
}

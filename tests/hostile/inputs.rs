//! For any bytes, the readers of bodies, page tokens, access tokens and schema files never panic, and refuse
//! as documented.
//!
//! The inputs are mutations of valid ones, from a seed: bits, bytes, numbers and words changed, pieces cut,
//! doubled, or taken from another input. Coverage is not measured; `.ci/fuzz` runs the same readers under a
//! coverage-guided fuzzer. ROLLCALL_FUZZ_INPUTS is the number of inputs for all readers together (20,000),
//! ROLLCALL_FUZZ_SEED the seed.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::json;

use crate::app::{Server, key};
use crate::contract::document;
use crate::readers::{self, begin_with};
use crate::requests;

fn number(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable).map_or(otherwise, |text| text.parse().unwrap())
}

fn inputs() -> u64 {
    number("ROLLCALL_FUZZ_INPUTS", 20_000)
}

/// Pieces that readers take for something.
const WORDS: [&str; 40] = [
    "null",
    "true",
    "false",
    "{}",
    "[]",
    "{",
    "}",
    "[",
    "]",
    "\"",
    ":",
    ",",
    "\\u0000",
    "\\ud800",
    "\u{feff}",
    "\u{0}",
    "-",
    "-0",
    "1e999",
    "9007199254740993",
    "18446744073709551616",
    "-9223372036854775809",
    "0.1",
    "1e-999",
    "2024-02-30T25:61:61Z",
    "9999-12-31T23:59:60Z",
    "-000001-01-01T00:00:00Z",
    "00000000-0000-0000-0000-000000000000",
    "ffffffff-ffff-ffff-ffff-ffffffffffff",
    "last_update",
    "_base",
    "add",
    "delete",
    "lists",
    "things",
    ".",
    "=",
    "\n",
    "[table.x]",
    "references",
];

/// Makes inputs out of others.
struct Mutator {
    seed: u64,
    corpus: Vec<Vec<u8>>,
}

impl Mutator {
    fn of(corpus: Vec<Vec<u8>>) -> Self {
        assert!(!corpus.is_empty());
        Self { seed: number("ROLLCALL_FUZZ_SEED", 0x5eed) | 1, corpus }
    }

    fn below(&mut self, end: usize) -> usize {
        // xorshift64*
        self.seed ^= self.seed >> 12;
        self.seed ^= self.seed << 25;
        self.seed ^= self.seed >> 27;
        usize::try_from(self.seed.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33).unwrap() % end.max(1)
    }

    fn range(&mut self, length: usize) -> std::ops::Range<usize> {
        let start = self.below(length + 1);
        let most = if self.below(4) == 0 { length } else { 12 };
        start..(start + self.below(most + 1)).min(length)
    }

    fn next(&mut self) -> Vec<u8> {
        let at = self.below(self.corpus.len());
        let mut input = self.corpus[at].clone();
        for _ in 0..=self.below(5) {
            let at = self.below(input.len() + 1);
            match self.below(9) {
                0 if at < input.len() => input[at] ^= 1 << self.below(8),
                1 if at < input.len() => input[at] = u8::try_from(self.below(256)).unwrap(),
                2 => drop(input.drain(self.range(input.len()))),
                3 => {
                    let range = self.range(input.len());
                    let piece = input[range].to_vec();
                    let times = 1 + self.below(3);
                    input.splice(at..at, piece.repeat(times));
                }
                4 => {
                    let other = self.below(self.corpus.len());
                    let range = self.range(self.corpus[other].len());
                    let piece = self.corpus[other][range].to_vec();
                    input.splice(at..at, piece);
                }
                5 => input.truncate(at),
                // A number or a text in place of another: the shape stays, which reaches deeper code.
                6 | 7 => {
                    let is_part = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.".contains(byte);
                    let start = input[..at].iter().rposition(|byte| !is_part(byte)).map_or(0, |at| at + 1);
                    let end =
                        input[at..].iter().position(|byte| !is_part(byte)).map_or(input.len(), |to| at + to);
                    let word = WORDS[self.below(WORDS.len())];
                    input.splice(start..end, word.bytes());
                }
                _ => {
                    let word = WORDS[self.below(WORDS.len())];
                    input.splice(at..at, word.bytes());
                }
            }
        }
        input.truncate(1 << 16);
        input
    }
}

/// Feeds a reader; it names each outcome. Fails at a panic, with the input.
fn feed(what: &str, share: u64, corpus: Vec<Vec<u8>>, read: impl Fn(&[u8]) -> String) {
    // Valid inputs must be accepted, or the mutations would never pass the first check.
    for input in &corpus {
        assert_eq!(read(input), "taken", "{what}: {}", String::from_utf8_lossy(input));
    }
    let mut mutator = Mutator::of(corpus);
    let mut outcomes = BTreeMap::<String, u64>::new();
    let count = (inputs() / share).max(200);
    for n in 0..count {
        let input = mutator.next();
        let outcome = catch_unwind(AssertUnwindSafe(|| read(&input)))
            .unwrap_or_else(|_| panic!("{what}: input {n} makes it panic: {}", input.escape_ascii()));
        *outcomes.entry(outcome).or_default() += 1;
    }
    println!("{what}: {count} inputs: {outcomes:?}");
    assert!(outcomes.len() > 1, "{what}: all came to the same");
}

#[test]
fn bodies() {
    feed("batch", 2, begin_with("body"), readers::body);
    feed("log-in", 20, begin_with("login"), readers::login);
}

/// Tokens as a whole; and their parts, mutated before they are encoded, under a good signature.
#[test]
fn tokens() {
    feed("token", 10, begin_with("token"), readers::token);
    let [mut header, mut claims] = [0, 1].map(|line| {
        let whole = begin_with("claims").remove(0);
        Mutator::of(vec![whole.split(|byte| *byte == b'\n').nth(line).unwrap().to_vec()])
    });
    let right = [header.corpus[0].clone(), claims.corpus[0].clone()];
    assert_eq!(readers::claims(&right.join(&b"\n"[..])), "taken");
    let mut outcomes = BTreeMap::<String, u64>::new();
    for n in 0..inputs() / 10 {
        let mut parts = right.clone();
        match n % 4 {
            0 => parts[0] = header.next(),
            _ => parts[1] = claims.next(),
        }
        *outcomes.entry(readers::claims(&parts.join(&b"\n"[..]))).or_default() += 1;
    }
    println!("claims: {outcomes:?}");
    assert!(outcomes.len() > 1);
}

#[test]
fn schema_files() {
    feed("schema file", 10, begin_with("schema"), readers::schema_file);
}

#[test]
fn addresses() {
    feed("address", 20, begin_with("address"), readers::address);
}

/// Goal: what failed once stays mended. Method: the inputs that `.ci/fuzz` found.
#[test]
fn what_failed_once_holds() {
    for folder in std::fs::read_dir("fixtures/fuzz").unwrap().map(|entry| entry.unwrap().path()) {
        if !folder.is_dir() {
            continue;
        }
        let name = folder.file_name().unwrap().to_str().unwrap();
        for input in std::fs::read_dir(&folder).unwrap() {
            let path = input.unwrap().path();
            println!("{}", path.display());
            let input = std::fs::read(&path).unwrap();
            drop(if name == "request" { answer(&input) } else { readers::reader(name)(&input) });
        }
    }
}

/// Goal: no request makes a server fail. Method: whole requests as bytes, whose every part is mutated.
#[test]
fn whole_requests() {
    for input in requests::begin_with() {
        assert_ne!(answer(&input), requests::NO_REQUEST, "{}", input.escape_ascii());
    }
    let count = inputs() / 20;
    let outcomes = std::thread::spawn(move || {
        let mut mutator = Mutator::of(requests::begin_with());
        let mut outcomes = BTreeMap::<String, u64>::new();
        for _ in 0..count {
            let input = mutator.next();
            let result = catch_unwind(AssertUnwindSafe(|| requests::answer(&input)));
            let result = result.unwrap_or_else(|_| panic!("a server fails: {}", input.escape_ascii()));
            *outcomes.entry(result).or_default() += 1;
        }
        outcomes
    });
    let outcomes = outcomes.join().unwrap();
    println!("whole requests: {outcomes:?}");
    assert!(outcomes.contains_key("200") && outcomes.contains_key("400"), "{outcomes:?}");
}

/// On a thread of its own, as the server takes its thread for the only one there is.
fn answer(input: &[u8]) -> String {
    std::thread::scope(|scope| scope.spawn(|| requests::answer(input)).join()).unwrap()
}

/// A forged page token is the client's fault: these caused a 500 once.
#[tokio::test]
async fn page_marks_that_no_page_gave() {
    let server = Server::with(|settings| settings.sync.fetch_rows_max = 1);
    let anna = server.device("anna", "phone");
    let rows =
        json!({ "add": { "lists": [{ "lid": key(1), "title": "a" }, { "lid": key(2), "title": "b" }] } });
    let version = server.sync(&anna, rows).await.version();
    for mark in [
        format!("{version}.1.1.01900000-0000-7000-8800-000000000001"),
        format!("{version}.1.2.{}", key(1)),
        format!("{version}.1.1.{}", key(2)),
        format!("{version}.1.18446744073709551615.{}", key(1)),
    ] {
        for lock in [true, false] {
            let query = format!("?lock={lock}&page={}", URL_SAFE_NO_PAD.encode(&mark));
            assert_eq!(
                server.fetch(&anna, &query).await.problem(),
                (400, "invalid_request".into()),
                "{mark}"
            );
        }
    }
}

/// Page tokens are sent in a URL, so they go through the routes: every response is checked against the
/// contract.
#[test]
fn marks() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let server = Server::with(|settings| settings.sync.fetch_rows_max = 1);
    let anna = server.device("anna", "phone");
    runtime.block_on(async {
        let rows =
            json!({ "add": { "lists": [{ "lid": key(1), "title": "a" }, { "lid": key(2), "title": "b" }] } });
        let version = server.sync(&anna, rows).await.version();
        let etag = server.fetch(&anna, "?lock=false").await.header("etag").unwrap().to_owned();
        assert!(!document().is_null());
        let of = |text: String| text.into_bytes();
        let kinds: [(&str, Vec<Vec<u8>>); 6] = [
            (
                "/fetch?lock=false&page=",
                vec![of(format!("{version}.1.1.{}", key(1))), of(format!("{version}.0.0."))],
            ),
            (
                "/changes?next=",
                vec![
                    of(format!("- {version} - {version} lists {} lists,items", key(1))),
                    of(format!("{version} {version} {version} {version} - - lists")),
                ],
            ),
            ("/conflicts?page=", vec![of(format!("1750000000000 {}", key(1)))]),
            ("/changes?since=", vec![of(version.to_string())]),
            ("if-none-match", vec![of(etag)]),
            ("last-event-id", vec![of(version.to_string())]),
        ];
        let mut outcomes = BTreeMap::<(&str, u16), u64>::new();
        for (kind, corpus) in kinds {
            let mut mutator = Mutator::of(corpus.clone());
            let count = (inputs() / 40).max(50);
            for n in 0..count {
                let input = if n == 0 { corpus[0].clone() } else { mutator.next() };
                let query = |text: &str| serde_urlencoded::to_string([("", text)]).unwrap()[1..].to_owned();
                let ask = match kind {
                    "/changes?since=" => {
                        server.get(&format!("{kind}{}", query(&String::from_utf8_lossy(&input))))
                    }
                    kind if kind.starts_with('/') => {
                        // As it is, and within its coding.
                        let raw = n % 8 == 7;
                        let text = if raw {
                            query(&String::from_utf8_lossy(&input))
                        } else {
                            URL_SAFE_NO_PAD.encode(&input)
                        };
                        server.get(&format!("{kind}{text}"))
                    }
                    header => {
                        let visible: String = input.iter().map(|byte| char::from(byte % 95 + 32)).collect();
                        let path = if header == "last-event-id" { "/events" } else { "/fetch?lock=false" };
                        server.get(path).header(header, visible)
                    }
                };
                let status = ask.of(&anna).send().await.status;
                assert!(
                    [200, 304, 400, 409, 410].contains(&status),
                    "{kind}: {status}: {}",
                    input.escape_ascii()
                );
                *outcomes.entry((kind, status)).or_default() += 1;
            }
        }
        println!("marks: {outcomes:?}");
        for kind in ["/fetch?lock=false&page=", "/changes?next=", "/conflicts?page=", "/changes?since="] {
            assert!(
                outcomes.contains_key(&(kind, 200)) && outcomes.contains_key(&(kind, 400)),
                "{kind}: {outcomes:?}"
            );
        }
    });
}

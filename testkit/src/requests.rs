//! Whole requests, as bytes, to the real routes over a database in memory: no server fails, whatever is sent.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use rollcall::accounts::{Accounts, LocalAccounts, LocalSettings, LogIn};
use rollcall::clock::Clock;
use rollcall::config::Settings;
use rollcall::http::{App, routes, threads};
use rollcall::model::Timestamp;
use rollcall::schema::Schema;
use rollcall::storage::Storage;
use rollcall::storage::sqlite::{Connections, Sqlite};
use serde_json::{Value as Json, json};
use tempfile::TempDir;
use tower::ServiceExt;

use crate::readers::SCHEMA;

/// The statuses that a server may send for an arbitrary request.
const STATUSES: [u16; 19] =
    [200, 201, 204, 304, 400, 401, 404, 405, 409, 410, 411, 413, 415, 422, 423, 429, 431, 403, 406];

/// The outcome of an input that is no request.
pub const NO_REQUEST: &str = "no request";

type Serve = Box<dyn Fn(Request<Full<Bytes>>) -> (u16, Bytes)>;

struct Server {
    serve: Serve,
    token: String,
    now_ms: Arc<AtomicI64>,
    asked: u64,
    _dir: TempDir,
}

thread_local! {
    static SERVER: RefCell<Option<Server>> = const { RefCell::new(None) };
}

/// A database is made anew after so many requests: an owner may only have so many rows, and a search must end.
const LIFE: u64 = 20_000;

impl Server {
    fn start() -> Self {
        threads::simulate(|| Duration::ZERO);
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let now_ms = Arc::new(AtomicI64::new(1_750_000_000_000));
        let result = Arc::clone(&now_ms);
        let clock = Clock::from_fn(move || Timestamp::from_ms(result.load(Ordering::SeqCst)));
        let mut settings = Settings::default();
        settings.sync.fetch_rows_max = 3;
        settings.sync.changes_rows_max = 3;
        settings.limits.rows_max = 20;
        let schema = Arc::new(Schema::parse(SCHEMA).unwrap());
        let path = dir.path().join("server.db");
        let connections = Connections::open(&path, Duration::from_secs(5), 2).unwrap();
        let storage =
            Sqlite::serve(&path, connections, Arc::clone(&schema), clock.now(), Arc::new(())).unwrap();
        let storage: Arc<dyn Storage> = Arc::new(storage);
        let local = LocalSettings::new(&settings.auth, &settings.limits);
        let cheap = argon2::Params::new(8, 1, 1, None).unwrap();
        let accounts = LocalAccounts::new(storage.accounts(), clock.clone(), local, cheap).unwrap();
        accounts.enrol("anna@example.org", "correct horse", None).unwrap();
        let (email, password, device) = ("anna@example.org", "correct horse", "phone");
        let asked = LogIn { email, password, device, device_id: None };
        let token = accounts.log_in(asked, [127, 0, 0, 1].into()).unwrap().token;
        let accounts = Accounts::Local(Box::new(accounts));
        let app = App::new(schema, storage, accounts, clock, settings, Arc::default()).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let filter = routes(app);
        let serve = move |request: Request<Full<Bytes>>| {
            runtime.block_on(async {
                let is_stream = request.uri().path() == "/events";
                let answer = warp::service(filter.clone()).oneshot(request).await.unwrap();
                let (head, body) = answer.into_parts();
                // A stream of events never ends.
                let body = if is_stream && head.status == 200 {
                    Bytes::new()
                } else {
                    body.collect().await.unwrap().to_bytes()
                };
                (head.status.as_u16(), body)
            })
        };
        Self { serve: Box::new(serve), token, now_ms, asked: 0, _dir: dir }
    }
}

/// Sends the request in the input: a line with method and path, lines of headers, an empty line, the body.
/// `{…}` in the path is replaced by its contents in the encoding of page tokens. Returns the status, or that
/// the input is no request.
pub fn answer(input: &[u8]) -> String {
    SERVER.with_borrow_mut(|server| {
        if server.as_ref().is_none_or(|server| server.asked >= LIFE) {
            *server = None;
            *server = Some(Server::start());
        }
        let server = server.as_mut().unwrap();
        let Some(request) = request(input, &server.token) else { return NO_REQUEST.into() };
        server.asked += 1;
        server.now_ms.fetch_add(1_000, Ordering::SeqCst);
        let (status, body) = (server.serve)(request);
        let result = || format!("{status} {}", String::from_utf8_lossy(&body));
        assert!(STATUSES.contains(&status), "{}", result());
        if status >= 400 {
            let problem: Json = serde_json::from_slice(&body).unwrap_or_default();
            assert!(problem["code"].is_string() && problem["status"] == status, "{}", result());
        }
        status.to_string()
    })
}

fn request(input: &[u8], token: &str) -> Option<Request<Full<Bytes>>> {
    let end = input.windows(2).position(|two| two == b"\n\n").unwrap_or(input.len());
    let head = std::str::from_utf8(&input[..end]).ok()?;
    let body = input.get(end + 2..).unwrap_or_default();
    let mut lines = head.lines();
    let (method, path) = lines.next()?.split_once(' ')?;
    if path.starts_with("/login") || path.starts_with("/register") || path.starts_with("/logout") {
        return None; // they cost much, or end the token; they have readers of their own
    }
    let path = match path.split_once('{').and_then(|(before, rest)| Some((before, rest.split_once('}')?))) {
        Some((before, (mark, after))) => format!("{before}{}{after}", URL_SAFE_NO_PAD.encode(mark)),
        None => path.to_owned(),
    };
    let mut asked = Request::builder().method(method).uri(path);
    for line in lines {
        let (name, value) = line.split_once(": ")?;
        if !name.eq_ignore_ascii_case("prefer") {
            asked = asked.header(name, value); // a requested wait would use the real clock
        }
    }
    asked = asked.header("authorization", format!("Bearer {token}"));
    asked = asked.header("content-length", body.len());
    asked.body(Full::new(Bytes::copy_from_slice(body))).ok()
}

/// Valid inputs to begin with.
pub fn begin_with() -> Vec<Vec<u8>> {
    let key = |n: u8| format!("01900000-0000-7000-8000-0000000000{n:02x}");
    let rows = json!({ "add": { "lists": [{ "lid": key(1), "title": "a" }, { "lid": key(2), "title": "b" }],
        "things": [{ "id": key(3), "other": key(1), "whole": 1 }] }, "base": 1, "pull": true });
    let edits = json!({ "update": { "things": [{ "id": key(3), "whole": 2, "_base": "2025-06-15T15:06:40Z",
        "last_update": "2025-06-15T15:06:41Z" }] }, "delete": { "lists": [key(1)] }, "get": { "lists": [key(2)] } });
    let json = "content-type: application/json";
    let texts = [
        format!("POST /synchronise\n{json}\nidempotency-key: k1\n\n{rows}"),
        format!("POST /synchronise.json\n{json}\nsync-lock: 1\n\n{edits}"),
        "GET /fetch?tables=lists,things&lock=false\nif-none-match: \"1\"\n\n".into(),
        format!("GET /fetch?lock=false&page={{3.1.1.{}}}\n\n", key(1)),
        "GET /changes?since=1&limit=2\naccept: application/x-ndjson\n\n".into(),
        format!("GET /changes?next={{- 3 - 3 lists {} lists,things}}\n\n", key(1)),
        format!("GET /conflicts?page={{1750000000000 {}}}\n\n", key(1)),
        format!("POST /conflicts/{}/restore\n\n", key(1)),
        "POST /lock\n\n".into(),
        "DELETE /lock?break=true\n\n".into(),
        "GET /digests\n\n".into(),
        "GET /events\nlast-event-id: 3\n\n".into(),
        "GET /openapi.json\naccept-encoding: gzip, br;q=0.5\n\n".into(),
    ];
    texts.map(String::into_bytes).to_vec()
}

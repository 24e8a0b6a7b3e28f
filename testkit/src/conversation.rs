//! Conversations of named devices with one server: `fixtures/sync`, whose README describes their format.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rollcall::accounts::{Accounts, LocalAccounts, LocalSettings, LogIn};
use rollcall::clock::Clock;
use rollcall::config::Settings;
use rollcall::digest::Digest;
use rollcall::http::{App, routes};
use rollcall::model::{Owner, Timestamp, Version};
use rollcall::schema::Schema;
use rollcall::storage::StorageError;
use serde::Deserialize;
use serde_json::{Map, Value as Json, json};
use uuid::Uuid;

pub use crate::engine;

use engine::Store;
use engine::pg::apart;

pub const FOLDER: &str = "fixtures/sync";

/// When every conversation begins.
const BEGIN: &str = "2024-05-01T12:00:00Z";

/// One file of `fixtures/sync`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Conversation {
    pub title: String,
    /// Another schema file, beside this one.
    #[serde(default = "own_schema")]
    schema: String,
    /// Settings by their names; the others are the defaults.
    #[serde(default)]
    settings: BTreeMap<String, Json>,
    /// Each device with its user.
    devices: BTreeMap<String, String>,
    /// Each user who shares the rows of another, with that other.
    #[serde(default)]
    shares: BTreeMap<String, String>,
    steps: Vec<Step>,
    /// The rows that the server must hold in the end: by user, by table.
    end: BTreeMap<String, BTreeMap<String, Held>>,
}

fn own_schema() -> String {
    "schema.toml".into()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Step {
    /// For who reads it.
    #[serde(default)]
    #[allow(dead_code)]
    note: String,
    advance_ms: Option<i64>,
    /// How often the step is repeated; once by default.
    times: Option<usize>,
    /// Forgets old data, as the server does from time to time.
    #[serde(default)]
    purge: bool,
    device: Option<String>,
    /// `"GET /fetch?lock=false"`
    request: Option<String>,
    #[serde(default)]
    headers: BTreeMap<String, Json>,
    body: Option<Json>,
    /// A file beside this one, sent byte for byte.
    body_file: Option<String>,
    /// What happens while the request waits for the lock, as it must.
    #[serde(default)]
    while_waiting: Vec<Step>,
    expect: Option<Expect>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Expect {
    status: u16,
    #[serde(default)]
    headers: BTreeMap<String, Json>,
    body: Option<Json>,
    /// A file beside this one that the body must equal, order of rows aside.
    body_file: Option<String>,
}

/// The rows of a table, or only how many.
#[derive(Deserialize)]
#[serde(untagged)]
enum Held {
    Count(usize),
    Rows(Vec<Map<String, Json>>),
}

/// A server with everybody logged in.
struct ConversationRunner {
    app: Arc<App>,
    now_ms: Arc<AtomicI64>,
    /// How often anybody looked at the clock: who waits for the lock does all the time.
    looks: Arc<AtomicU64>,
    /// By device: user and token.
    tokens: BTreeMap<String, (String, String)>,
    owners: BTreeMap<String, Owner>,
    /// What `$set:` caught.
    caught: BTreeMap<String, Json>,
    store: Store,
}

struct Answer {
    status: u16,
    headers: http::HeaderMap,
    text: String,
    body: Json,
}

type Checked<T = ()> = Result<T, String>;

impl Conversation {
    pub fn read(path: &Path) -> Checked<Self> {
        let text = std::fs::read(path).map_err(|error| error.to_string())?;
        serde_json::from_slice(&text).map_err(|error| error.to_string())
    }

    /// Runs the conversation; an error names the step that failed.
    pub async fn run(&self) -> Checked {
        let mut talk = apart(|| ConversationRunner::begin(self))?;
        for (place, step) in self.steps.iter().enumerate() {
            for time in 0..step.times.unwrap_or(1) {
                let at =
                    |error| format!("step {}, time {} ({}): {error}", place + 1, time + 1, step.result());
                talk.step(step).await.map_err(at)?;
            }
        }
        for (user, tables) in &self.end {
            talk.check_end(user, tables).await.map_err(|error| format!("in the end, {user}: {error}"))?;
        }
        Ok(())
    }
}

impl Step {
    fn result(&self) -> String {
        match (&self.device, &self.request, self.advance_ms) {
            (Some(device), Some(request), _) => format!("{device}, {request}"),
            (_, _, Some(ms)) => format!("{ms} ms pass"),
            _ if self.purge => "purge".into(),
            _ => "neither a request, advance_ms nor purge".into(),
        }
    }
}

impl ConversationRunner {
    fn begin(conversation: &Conversation) -> Checked<Self> {
        let result = |error: &dyn std::fmt::Display| error.to_string();
        let schema = std::fs::read_to_string(Path::new(FOLDER).join(&conversation.schema))
            .map_err(|error| format!("{}: {error}", conversation.schema))?;
        let schema = Arc::new(Schema::parse(&schema).map_err(|error| result(&error))?);
        let flags = conversation.settings.iter().map(|(name, value)| {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            format!("--{}={value}", name.replace('_', "-"))
        });
        let settings = Settings::from_flags(flags).map_err(|error| result(&error))?;

        let begin = Timestamp::parse(BEGIN).unwrap();
        let now_ms = Arc::new(AtomicI64::new(begin.ms()));
        let looks = Arc::new(AtomicU64::new(0));
        let clock = {
            let (now_ms, looks) = (Arc::clone(&now_ms), Arc::clone(&looks));
            Clock::from_fn(move || {
                looks.fetch_add(1, Ordering::SeqCst);
                Timestamp::from_ms(now_ms.load(Ordering::SeqCst))
            })
        };
        let store = Store::new();
        let wait = Duration::from_secs(5);
        let storage = store.serve(&schema, wait, begin, Arc::default()).map_err(|error| result(&error))?;
        store.set_now(begin.ms());

        let unlimited = LocalSettings {
            logins_per_account_per_min: 0,
            logins_per_account_per_hour: 0,
            logins_per_address_per_min: 0,
            ..of(&settings)
        };
        let cheap = argon2::Params::new(8, 1, 1, None).unwrap();
        let local = LocalAccounts::new(storage.accounts(), clock.clone(), unlimited, cheap).unwrap();
        let mut owners = BTreeMap::new();
        let users = conversation.devices.values().chain(conversation.shares.values());
        let (own, shared): (Vec<_>, Vec<_>) =
            users.partition(|user| !conversation.shares.contains_key(*user));
        for user in own.into_iter().chain(shared) {
            if owners.contains_key(user) {
                continue;
            }
            let owner = conversation.shares.get(user).map(|with| {
                owners
                    .get(with)
                    .copied()
                    .ok_or_else(|| format!("{user} shares with {with}, who shares in turn"))
            });
            let enrolled = local.enrol(&email(user), PASSWORD, owner.transpose()?).unwrap();
            owners.insert(user.clone(), enrolled.owner);
        }
        store.spread_members();
        let tokens = conversation.devices.iter().map(|(device, user)| {
            let asked = LogIn { email: &email(user), password: PASSWORD, device, device_id: None };
            let token = local.log_in(asked, IpAddr::V4(Ipv4Addr::LOCALHOST)).unwrap().token;
            (device.clone(), (user.clone(), token))
        });
        let tokens = tokens.collect();
        let app =
            App::new(schema, storage, Accounts::Local(Box::new(local)), clock, settings, Arc::default())
                .map_err(|error| result(&error))?;
        Ok(Self { app, now_ms, looks, tokens, owners, caught: BTreeMap::new(), store })
    }

    async fn step(&mut self, step: &Step) -> Checked {
        match step {
            Step {
                advance_ms: Some(ms), purge: false, device: None, request: None, expect: None, ..
            } => {
                let was = self.now_ms.fetch_add(*ms, Ordering::SeqCst);
                self.store.set_now(was + ms);
                Ok(())
            }
            Step { advance_ms: None, purge: true, device: None, request: None, expect: None, .. } => {
                apart(|| self.purge())
            }
            Step {
                advance_ms: None,
                purge: false,
                device: Some(device),
                request: Some(request),
                expect: Some(expect),
                ..
            } => self.exchange(device, request, step, expect).await,
            _ => Err("write either advance_ms, or purge, or device, request and expect".into()),
        }
    }

    fn purge(&self) -> Checked {
        let App { storage, settings, clock, acks, .. } = &*self.app;
        let result = |error: StorageError| error.to_string();
        acks.flush(&**storage, &mut || true).map_err(result)?;
        rollcall::purge::run(
            &**storage,
            &rollcall::purge::terms(&settings.sync, settings.limits.owner_past_bytes_max, clock.now()),
            &mut |_, _| true,
        )
        .map_err(result)?;
        Ok(())
    }

    async fn exchange(&mut self, device: &str, request: &str, step: &Step, expect: &Expect) -> Checked {
        let (user, _) = self.tokens.get(device).ok_or_else(|| format!("there is no device {device}"))?;
        let owner = self.owners[user];
        let body = match (&step.body, &step.body_file) {
            (None, None) => None,
            (Some(body), None) => Some(self.filled(body)?.to_string()),
            (None, Some(file)) => Some(beside(file)?),
            _ => return Err("write body or body_file, not both".into()),
        };
        let mut headers = Vec::new();
        for (name, value) in &step.headers {
            let value = self.filled(value)?;
            headers.push((name.clone(), value.as_str().map_or_else(|| value.to_string(), str::to_owned)));
        }
        let request = self.with_names(request)?;
        let (before, answer) = if step.while_waiting.is_empty() {
            (self.version(owner), self.ask(device, &request, &headers, body.as_deref()).await?)
        } else {
            let looks = self.looks.load(Ordering::SeqCst);
            let waiting = tokio::spawn(self.ask(device, &request, &headers, body.as_deref()));
            // More attempts than a request takes that does not wait.
            let begun = Instant::now();
            // Waiting for the database's leases uses its clock.
            let by_database = self.app.locks.is_remote();
            while if by_database {
                begun.elapsed() < Duration::from_millis(400)
            } else {
                self.looks.load(Ordering::SeqCst) < looks + 10
            } {
                if waiting.is_finished() {
                    return Err("it was to wait for the lock, and did not".into());
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            for step in &step.while_waiting {
                let at = |error| format!("meanwhile ({}): {error}", step.result());
                Box::pin(self.step(step)).await.map_err(at)?;
            }
            (self.version(owner), waiting.await.map_err(|error| error.to_string())??)
        };

        let got = || format!("\n  got {} {:?}\n  {}", answer.status, answer.headers, answer.text);
        self.compare(&answer, expect).map_err(|error| format!("{error}{}", got()))?;
        let sent = body.and_then(|body| serde_json::from_str(&body).ok()).unwrap_or(Json::Null);
        self.check_always(&answer, &request, &sent, owner, (before, self.version(owner)))
            .map_err(|error| format!("it must always hold that {error}{}", got()))
    }

    /// Sends a request like a device.
    fn ask(
        &self,
        device: &str,
        request: &str,
        headers: &[(String, String)],
        body: Option<&str>,
    ) -> impl Future<Output = Checked<Answer>> + Send + use<> {
        let (method, path) = request.split_once(' ').unwrap_or(("GET", request));
        let mut asked = warp::test::request().method(method).path(path);
        if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("authorization")) {
            asked = asked.header("authorization", format!("Bearer {}", self.tokens[device].1));
        }
        for (name, value) in headers {
            asked = asked.header(name, value);
        }
        if let Some(body) = body {
            asked = asked.header("content-type", "application/json").body(body);
        }
        let routes = routes(Arc::clone(&self.app));
        async move {
            let answer = asked.reply(&routes).await;
            let text = String::from_utf8(answer.body().to_vec()).map_err(|error| error.to_string())?;
            let body = if text.is_empty() {
                Ok(Json::Null)
            } else if answer.headers().get("content-type").is_some_and(|kind| kind == "application/x-ndjson")
            {
                text.lines().map(serde_json::from_str::<Json>).collect::<Result<_, _>>().map(Json::Array)
            } else {
                serde_json::from_str(&text)
            };
            Ok(Answer {
                status: answer.status().as_u16(),
                headers: answer.headers().clone(),
                body: body.map_err(|error| format!("the answer is no JSON: {error}: {text}"))?,
                text,
            })
        }
    }

    fn version(&self, owner: Owner) -> Version {
        apart(|| self.app.storage.read(owner, |txn| Ok::<_, StorageError>(txn.state().version)).unwrap())
    }

    /// Replaces texts of the file: `#1` is a key, `$name` a captured value.
    fn filled(&self, value: &Json) -> Checked<Json> {
        Ok(match value {
            Json::String(text) if key(text).is_some() => json!(key(text)),
            Json::String(text) if text.starts_with('$') => self.look_up(&text[1..])?,
            Json::Array(items) => {
                Json::Array(items.iter().map(|item| self.filled(item)).collect::<Checked<_>>()?)
            }
            Json::Object(members) => {
                let members = members.iter().map(|(name, value)| Ok((name.clone(), self.filled(value)?)));
                Json::Object(members.collect::<Checked<_>>()?)
            }
            other => other.clone(),
        })
    }

    fn look_up(&self, name: &str) -> Checked<Json> {
        self.caught.get(name).cloned().ok_or_else(|| format!("nothing was caught as ${name}"))
    }

    /// A request line; in it `$name` and `#7` are replaced wherever they stand.
    fn with_names(&self, request: &str) -> Checked<String> {
        let mut line = String::new();
        let mut rest = request;
        while let Some(at) = rest.find(['$', '#']) {
            line.push_str(&rest[..at]);
            let word = &rest[at + 1..];
            let end = word.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(word.len());
            let stands_for = match rest.as_bytes()[at] {
                b'#' => json!(key(&rest[at..=at + end]).ok_or("a # in a request is for a key")?),
                _ => self.look_up(&word[..end])?,
            };
            line.push_str(&stands_for.as_str().map_or_else(|| stands_for.to_string(), str::to_owned));
            rest = &word[end..];
        }
        line.push_str(rest);
        Ok(line)
    }

    fn compare(&mut self, answer: &Answer, expect: &Expect) -> Checked {
        if answer.status != expect.status {
            return Err(format!("expected status {}", expect.status));
        }
        for (name, expected) in &expect.headers {
            // Versions and fences are numbers in bodies, so a captured header is one too.
            let header = answer.headers.get(name).map(|value| {
                let text = value.to_str().unwrap_or_default();
                text.parse::<u64>().map_or_else(|_| json!(text), |number| json!(number))
            });
            self.matches(header.as_ref(), expected, name)?;
        }
        if let Some(file) = &expect.body_file {
            let expected: Json = serde_json::from_str(&beside(file)?).map_err(|error| error.to_string())?;
            if unordered(&answer.body) != unordered(&expected) {
                return Err(format!("expected the body to be that of {file}"));
            }
        }
        match &expect.body {
            Some(expected) => self.matches(Some(&answer.body), expected, "body"),
            None => Ok(()),
        }
    }

    /// Whether something is as expected: members that are not expected may be there, list items may not.
    fn matches(&mut self, got: Option<&Json>, expected: &Json, at: &str) -> Checked {
        let fail = || {
            Err(format!("{at}: expected {expected}, got {}", got.map_or("nothing".into(), Json::to_string)))
        };
        if let Json::String(text) = expected {
            if text == "$absent" {
                return if got.is_none() { Ok(()) } else { fail() };
            }
            let Some(got) = got else { return fail() };
            if text == "$any" {
                return Ok(());
            }
            if text == "$time" {
                let is_time = got.as_str().is_some_and(|text| Timestamp::parse(text).is_ok());
                return if is_time { Ok(()) } else { fail() };
            }
            if let Some(name) = text.strip_prefix("$set:") {
                self.caught.insert(name.to_owned(), got.clone());
                return Ok(());
            }
            if let Some(name) = text.strip_prefix("$next:") {
                let link =
                    got.as_str().and_then(|link| link.strip_suffix(">; rel=\"next\"")?.strip_prefix('<'));
                let Some(query) = link.filter(|link| link.starts_with('?')) else { return fail() };
                self.caught.insert(name.to_owned(), json!(format!("/fetch{query}")));
                return Ok(());
            }
            // A number in a header is text.
            let expected = self.filled(expected)?;
            let text_of = |value: &Json| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            let same = match got {
                Json::String(got) => *got == text_of(&expected),
                got => text_of(got) == text_of(&expected),
            };
            return if same { Ok(()) } else { fail() };
        }
        match (got, expected) {
            (Some(Json::Object(got)), Json::Object(expected)) if expected.is_empty() => {
                if got.is_empty() {
                    Ok(())
                } else {
                    fail()
                }
            }
            (Some(Json::Object(got)), Json::Object(expected)) => {
                for (name, expected) in expected {
                    self.matches(got.get(name), expected, &format!("{at}/{name}"))?;
                }
                Ok(())
            }
            (Some(Json::Array(got)), Json::Array(expected)) if got.len() == expected.len() => {
                for (place, (got, expected)) in got.iter().zip(expected).enumerate() {
                    self.matches(Some(got), expected, &format!("{at}/{place}"))?;
                }
                Ok(())
            }
            (Some(got), expected) if got == expected => Ok(()),
            _ => fail(),
        }
    }

    /// What holds after every step, whatever it was.
    fn check_always(
        &self,
        answer: &Answer,
        request: &str,
        sent: &Json,
        owner: Owner,
        (before, after): (Version, Version),
    ) -> Checked {
        let must = |holds: bool, what: &str| if holds { Ok(()) } else { Err(what.to_owned()) };
        let kind = answer.headers.get("content-type").and_then(|kind| kind.to_str().ok());
        let good = (200..300).contains(&answer.status) || answer.status == 304;
        must(after >= before, "versions rise")?;
        if !good {
            must(kind == Some("application/problem+json"), "a refusal is a problem document")?;
            must(answer.body["status"] == json!(answer.status), "a problem tells its status")?;
            for member in ["type", "title", "code", "detail"] {
                let result = answer.body[member].as_str().is_some_and(|text| !text.is_empty());
                must(result, &format!("a problem has a {member}"))?;
            }
            return must(before == after, "a refused request writes nothing");
        }
        let (method, path) = request.split_once(' ').unwrap_or(("GET", request));
        let replayed = answer.headers.contains_key("idempotency-replayed");
        let rehearsed = sent["dry_run"] == json!(true);
        if replayed || rehearsed {
            must(before == after, "what is sent again, or is only tried, writes nothing")?;
        }
        if path.starts_with("/changes") {
            self.check_changes(&answer.body)?;
        } else if !replayed && !rehearsed {
            let result = answer.headers.get("sync-version").map(http::HeaderValue::as_bytes);
            must(
                result.is_none_or(|result| result == after.0.to_string().as_bytes()),
                "Sync-Version is the version of the data",
            )?;
        }
        if method == "POST" && path.starts_with("/synchronise") {
            self.check_report(answer, sent, owner)?;
            if !replayed && !rehearsed && writes(&answer.body) != (before != after) {
                return Err(
                    "the version moves if a verdict says that something was written, and not else".into()
                );
            }
        } else if !path.ends_with("/restore") {
            must(before == after, "only synchronise and restore write rows")?;
        }
        if !replayed && !rehearsed {
            self.check_digests(&answer.body, owner)?;
        }
        Ok(())
    }

    /// What holds for every page of changes, and for every stream of them.
    fn check_changes(&self, body: &Json) -> Checked {
        let Json::Object(page) = body else { return Ok(()) };
        let more = page["more"] == json!(true);
        if more != page.contains_key("next") || (more && page.contains_key("digests")) {
            return Err("there is a next page just if there is more, and digests come with the last".into());
        }
        for set in ["add", "update", "delete"] {
            let tables = page[set].as_object().ok_or(format!("a page has {set}"))?;
            if tables.values().any(|rows| rows.as_array().is_none_or(Vec::is_empty)) {
                return Err(format!("{set} names the tables that have entries"));
            }
        }
        Ok(())
    }

    /// The digests in a response are those of the stored rows.
    fn check_digests(&self, body: &Json, owner: Owner) -> Checked {
        let Some(tables) = body["digests"]["tables"].as_object() else { return Ok(()) };
        let held = apart(|| {
            self.app.storage.read(owner, |txn| {
                let state = txn.state();
                let mut digests = Vec::new();
                for table in self.app.schema.tables() {
                    let mut digest = Digest::default();
                    txn.manifest(table.id, None, usize::MAX, &mut |key, at| {
                        digest.add(state.seed.map_or(0, |seed| seed.row(key, at)));
                    })?;
                    digests.push((table.name.clone(), digest));
                }
                Ok::<_, StorageError>((state.version, digests))
            })
        });
        let (version, held) = held.unwrap();
        if body["digests"]["as_of"] != json!(version) {
            return Err("digests are of the present version".into());
        }
        for (table, digest) in held {
            let result = json!({ "count": digest.count, "root": format!("{:016x}", digest.root) });
            if tables.get(&table) != Some(&result) {
                return Err(format!("the digest of {table} is that of its rows: {result}"));
            }
        }
        Ok(())
    }

    /// What holds for every report of phase 2.
    fn check_report(&self, answer: &Answer, sent: &Json, owner: Owner) -> Checked {
        for operation in ["add", "update", "delete"] {
            let result = answer.body[operation].as_object().ok_or(format!("the report has {operation}"))?;
            for table in self.app.schema.tables() {
                let rows = sent[operation].get(&table.name);
                if rows.is_some() != result.contains_key(&table.name) {
                    return Err(format!(
                        "{operation} names the tables that the request named: {}",
                        table.name
                    ));
                }
                let (Some(rows), Some(verdicts)) = (rows, result.get(&table.name)) else { continue };
                let key_of = |row: &Json| row.get(&table.key).unwrap_or(row).as_str().map(str::to_lowercase);
                let keys: Vec<_> = rows.as_array().into_iter().flatten().map(key_of).collect();
                let verdicts = verdicts.as_array().ok_or("verdicts are a list")?;
                let answered: Vec<_> = verdicts.iter().map(key_of).collect();
                if keys != answered {
                    return Err(format!("every row of {operation} {} has its verdict, in order", table.name));
                }
                for verdict in verdicts {
                    let result = verdict["verdict"].as_str().ok_or("every verdict is named")?;
                    if (result == "rejected") != verdict["error"]["code"].is_string() {
                        return Err("what is rejected, and that alone, has an error".into());
                    }
                    if result == "kept" && !verdict["row"].is_object() {
                        return Err("the row that won comes along".into());
                    }
                    if let Some(id) = verdict["conflict"].as_str().filter(|_| sent["dry_run"] != json!(true))
                    {
                        let id = Uuid::parse_str(id).map_err(|error| error.to_string())?;
                        let noted = apart(|| self.app.storage.read(owner, |txn| txn.conflict(id)).unwrap());
                        if noted.is_none_or(|noted| noted.table != table.id) {
                            return Err("a conflict that is told is noted".into());
                        }
                    }
                    let of_row = &verdict["row"]["last_update"];
                    if verdict["row"].is_object() && *of_row != verdict["last_update"] {
                        return Err("verdict and row tell the same last_update".into());
                    }
                }
            }
        }
        if let Some(page) = answer.body.get("changes") {
            self.check_changes(page)?;
        }
        let own = [&sent["base"], &answer.body["digests"]["as_of"]];
        if !own.contains(&&answer.body["version"]) {
            return Err("the device's version stays where it was, or is the present one".into());
        }
        Ok(())
    }

    /// Reads everything that a user's owner has, as a device would.
    async fn check_end(&mut self, user: &str, tables: &BTreeMap<String, Held>) -> Checked {
        let of_user = |(_, (of, _)): &(&String, &(String, String))| of == user;
        let device = self.tokens.iter().find(of_user).map(|(device, _)| device.clone());
        let device = device.ok_or("no device of this user takes part")?;
        self.ask(&device, "DELETE /lock?break=true", &[], None).await?;
        let mut manifest: BTreeMap<String, Vec<Json>> = BTreeMap::new();
        let mut page = Some("/fetch?lock=false".to_owned());
        while let Some(path) = page {
            let answer = self.ask(&device, &format!("GET {path}"), &[], None).await?;
            for (table, rows) in answer.body.as_object().ok_or("fetch answers with tables")? {
                manifest
                    .entry(table.clone())
                    .or_default()
                    .extend(rows.as_array().into_iter().flatten().cloned());
            }
            let link = answer.headers.get("link").and_then(|link| link.to_str().ok());
            let query = link.and_then(|link| Some(link.strip_prefix('<')?.split_once('>')?.0));
            page = query.map(|query| format!("/fetch{query}"));
        }
        if let Some(unknown) = tables.keys().find(|table| !manifest.contains_key(*table)) {
            return Err(format!("there is no table {unknown}"));
        }
        let schema = Arc::clone(&self.app.schema);
        for table in schema.tables() {
            let result = &manifest[&table.name];
            let keys: Vec<Json> = result.iter().map(|entry| entry[&table.key].clone()).collect();
            let body = json!({ "get": { &table.name: keys } }).to_string();
            let answer = self.ask(&device, "POST /synchronise", &[], Some(&body)).await?;
            let rows = answer.body["get"][&table.name].as_array().cloned().unwrap_or_default();
            let same = |(row, entry): (&Json, &Json)| {
                row[&table.key] == entry[&table.key] && row["last_update"] == entry["last_update"]
            };
            if rows.len() != result.len() || !rows.iter().zip(result).all(same) {
                return Err(format!("fetch and get do not agree on {}: {result:?}, {rows:?}", table.name));
            }
            match tables.get(&table.name) {
                Some(Held::Count(count)) if rows.len() == *count => {}
                Some(Held::Count(count)) => {
                    return Err(format!("{} has {} rows, not {count}", table.name, rows.len()));
                }
                expected => {
                    let none = Vec::new();
                    let expected = match expected {
                        Some(Held::Rows(expected)) => expected,
                        _ => &none,
                    };
                    self.compare_rows(&rows, expected, &table.name)?;
                }
            }
        }
        Ok(())
    }

    /// Whole rows: columns that the file leaves out are empty, `last_update` may be anything.
    fn compare_rows(&mut self, got: &[Json], expected: &[Map<String, Json>], table: &str) -> Checked {
        let expected = expected.iter().map(|row| {
            let mut whole = row.clone();
            let table = self.app.schema.table(table).map(|table| &table.columns);
            for column in table.into_iter().flatten() {
                whole.entry(column.name.clone()).or_insert(Json::Null);
            }
            Json::Object(whole)
        });
        let expected = Json::Array(expected.collect());
        self.matches(Some(&json!(got)), &expected, table)
    }
}

/// Whether a report has a verdict of a write.
fn writes(report: &Json) -> bool {
    let sets = ["add", "update", "delete"].into_iter().filter_map(|operation| report[operation].as_object());
    let verdicts = sets.flat_map(Map::values).filter_map(Json::as_array).flatten();
    verdicts
        .filter_map(|result| result["verdict"].as_str())
        .any(|verdict| ["added", "updated", "merged", "deleted"].contains(&verdict))
}

const PASSWORD: &str = "correct horse battery";

fn email(user: &str) -> String {
    format!("{}@example.com", user.replace(' ', "."))
}

fn of(settings: &Settings) -> LocalSettings {
    LocalSettings::new(&settings.auth, &settings.limits)
}

/// The key that `#7` is short for.
fn key(text: &str) -> Option<String> {
    let number: u32 = text.strip_prefix('#')?.parse().ok()?;
    Some(format!("00000000-0000-4000-8000-{number:012}"))
}

fn beside(file: &str) -> Checked<String> {
    std::fs::read_to_string(Path::new(FOLDER).join(file)).map_err(|error| format!("{file}: {error}"))
}

/// A manifest without the order of its rows.
fn unordered(body: &Json) -> Json {
    match body {
        Json::Object(tables) => {
            Json::Object(tables.iter().map(|(name, rows)| (name.clone(), unordered(rows))).collect())
        }
        Json::Array(rows) => {
            let mut rows = rows.clone();
            rows.sort_by_key(Json::to_string);
            Json::Array(rows)
        }
        other => other.clone(),
    }
}

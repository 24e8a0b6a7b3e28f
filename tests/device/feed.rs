//! A change feed in front of the real server, for as long as that has none: it compares the roll calls of
//! two versions. It also keeps idempotent answers and gives digests. Rules and rows are the server's own.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use parking_lot::Mutex;
use rollcall::device::answers::{key, parts};
use rollcall::device::{Answer, Http, NoAnswer, Remote, Request, Seed};
use rollcall::model::{RowKey, Timestamp};
use rollcall::schema::Schema;
use serde_json::{Map, Value as Json, json};

use crate::real::{SCHEMA, Server};

const SEED: &str = "000102030405060708090a0b0c0d0e0f";

type RollCall = BTreeMap<String, BTreeMap<RowKey, Timestamp>>;

/// What all devices' feeds share.
#[derive(Default)]
pub struct History {
    /// The roll call at each version.
    at: BTreeMap<u64, RollCall>,
    /// Answers by idempotency key, with the body that they answered.
    answers: HashMap<String, (Json, Answer)>,
    /// Cursors before this have expired.
    pub horizon: u64,
    /// Rows on a page.
    pub page_rows: usize,
    /// Answers that were said again.
    pub replayed: usize,
    /// Digests are wrong so many more times.
    pub lies: usize,
}

/// One device's way to the server.
pub struct Feed {
    http: Http,
    history: Arc<Mutex<History>>,
}

impl Feed {
    pub fn history() -> Arc<Mutex<History>> {
        Arc::new(Mutex::new(History { page_rows: 1_000, ..History::default() }))
    }

    pub fn new(server: &Server, history: &Arc<Mutex<History>>) -> Box<Self> {
        Box::new(Self { http: Http::new(&server.url), history: Arc::clone(history) })
    }

    /// The roll call now, and its version; written down.
    fn observe(&mut self, token: &str) -> Result<u64, NoAnswer> {
        let path = "fetch?lock=false".to_owned();
        let answer = self.http.ask(&authorized("GET", path, token, None))?;
        let version = answer.header("sync-version").unwrap().parse().unwrap();
        let body: Map<String, Json> = serde_json::from_slice(&answer.body).unwrap();
        let schema = Schema::parse(SCHEMA).unwrap();
        let tables = schema.tables().iter().map(|table| {
            let entries = body[&table.name].as_array().unwrap().iter();
            let rows = entries.map(|entry| parts(table, entry.as_object().unwrap().clone()).unwrap());
            (table.name.clone(), rows.map(|(key, at, _)| (key, at)).collect())
        });
        self.history.lock().at.insert(version, tables.collect());
        Ok(version)
    }

    /// A page of what changed between two versions; `from` is the row to go on at.
    fn changes(
        &mut self,
        since: Option<u64>,
        until: u64,
        from: usize,
        token: &str,
        without: &BTreeSet<RowKey>,
    ) -> Result<Json, NoAnswer> {
        let (mut upserts, mut deletes) = (Vec::new(), Vec::new());
        let page_rows = {
            let history = self.history.lock();
            let now = &history.at[&until];
            let empty = RollCall::new();
            let old = since.map_or(&empty, |since| &history.at[&since]);
            for (table, rows) in now {
                for (key, at) in rows {
                    if old.get(table).and_then(|old| old.get(key)) != Some(at) && !without.contains(key) {
                        upserts.push((table.clone(), *key));
                    }
                }
            }
            // Whoever knew a row in between is told that it is gone.
            let mut known = BTreeSet::new();
            for (_, then) in history.at.range(since.unwrap_or(until)..until) {
                known.extend(
                    then.iter().flat_map(|(table, rows)| rows.keys().map(|key| (table.clone(), *key))),
                );
            }
            deletes.extend(known.into_iter().filter(|(table, key)| !now[table].contains_key(key)));
            history.page_rows
        };
        let all = upserts.len();
        let page: Vec<_> = upserts.into_iter().skip(from).take(page_rows).collect();
        let more = from + page.len() < all;
        let mut body = json!({
            "type": if since.is_some() { "diff" } else { "full" },
            "version": until, "more": more, "add": {}, "update": {}, "delete": {},
        });
        if more {
            body["next"] = json!(format!("{}.{until}.{}", since.unwrap_or(0), from + page.len()));
        }
        let mut wanted: BTreeMap<String, Vec<RowKey>> = BTreeMap::new();
        for (table, key) in page {
            wanted.entry(table).or_default().push(key);
        }
        let asked = json!({ "get": wanted }).to_string().into_bytes();
        let answer = self.http.ask(&authorized("POST", "synchronise".into(), token, Some(asked)))?;
        let rows: Json = serde_json::from_slice(&answer.body).unwrap();
        body["add"] = rows["get"].clone();
        if !more {
            for (table, key) in deletes {
                let list = body["delete"].as_object_mut().unwrap().entry(table).or_insert_with(|| json!([]));
                list.as_array_mut().unwrap().push(json!(key));
            }
            body["digests"] = self.digests(until);
        }
        Ok(body)
    }

    fn digests(&self, version: u64) -> Json {
        let seed = Seed::parse(SEED).unwrap();
        let mut history = self.history.lock();
        let lies = history.lies > 0;
        history.lies = history.lies.saturating_sub(1);
        let tables: BTreeMap<_, _> = history.at[&version]
            .iter()
            .map(|(table, rows)| {
                let digest = seed.table(rows.iter().map(|(key, at)| (*key, *at)));
                let count = digest.count + u64::from(lies);
                (table.clone(), json!({ "count": count, "root": digest.root }))
            })
            .collect();
        json!({ "as_of": version, "tables": tables })
    }

    fn synchronise(&mut self, request: &Request, token: &str) -> Result<Answer, NoAnswer> {
        let mut body: Json = serde_json::from_slice(request.body.as_deref().unwrap_or(b"{}")).unwrap();
        // What names the request is all of it but the time of this sending.
        let mut fingerprint = body.clone();
        fingerprint.as_object_mut().unwrap().remove("sent_at");
        let header = |name| request.headers.iter().find(|(known, _)| *known == name);
        let idempotency = header("idempotency-key").unwrap().1.clone();
        {
            let mut history = self.history.lock();
            if let Some((known, answer)) = history.answers.get(&idempotency).cloned() {
                history.replayed += 1;
                if known == fingerprint {
                    return Ok(answer);
                }
                return Ok(problem(422, "idempotency_key_reused"));
            }
        }
        let base = body["base"].as_u64();
        if base.is_some_and(|base| base < self.history.lock().horizon) {
            return Ok(problem(410, "cursor_expired"));
        }
        let pull = body.as_object_mut().unwrap().remove("pull").is_some();
        let sent = Request { body: Some(body.to_string().into_bytes()), ..request.clone() };
        let mut answer = self.http.ask(&sent)?;
        let until = self.observe(token)?;
        if answer.status == 200 {
            let mut report: Json = serde_json::from_slice(&answer.body).unwrap();
            report["digests"] = self.digests(until);
            if pull {
                let wrote = |(_, item): (&String, &Json)| {
                    let list = item.as_array().unwrap().clone();
                    list.into_iter().filter_map(|item| {
                        let wrote =
                            ["added", "updated", "merged", "deleted"].contains(&item["verdict"].as_str()?);
                        let named = item.get("id").or(item.get("lid")).and_then(key)?;
                        wrote.then_some(named)
                    })
                };
                let members = ["add", "update"].into_iter();
                let own =
                    members.flat_map(|member| report[member].as_object().unwrap().iter().flat_map(wrote));
                let own = own.collect::<BTreeSet<_>>();
                let changes = self.changes(base, until, 0, token, &own)?;
                if changes["more"] == false {
                    report["version"] = json!(until);
                }
                report["changes"] = changes;
            }
            answer.body = report.to_string().into_bytes();
            self.history.lock().answers.insert(idempotency, (fingerprint, answer.clone()));
        }
        Ok(answer)
    }
}

impl Remote for Feed {
    fn ask(&mut self, request: &Request) -> Result<Answer, NoAnswer> {
        let token = request.headers.iter().find(|(name, _)| *name == "authorization");
        let token = token.map(|(_, value)| value.clone()).unwrap_or_default();
        let (path, query) = request.path.split_once('?').unwrap_or((&request.path, ""));
        match path {
            "digests" => {
                let until = self.observe(&token)?;
                let mut body = self.digests(until);
                body["seed"] = json!(SEED);
                Ok(good(&body))
            }
            "changes" => {
                let now = self.observe(&token)?;
                let parameters: HashMap<String, String> = serde_urlencoded::from_str(query).unwrap();
                if let Some(next) = parameters.get("next") {
                    let mut parts = next.split('.').map(|part| part.parse::<u64>().unwrap());
                    let mut part = || parts.next().unwrap();
                    let (since, until, from) = (part(), part(), part());
                    let since = Some(since).filter(|since| *since > 0);
                    return Ok(good(&self.changes(since, until, from as usize, &token, &BTreeSet::new())?));
                }
                let since = parameters.get("since").map(|since| since.parse::<u64>().unwrap());
                if since.is_some_and(|since| since < self.history.lock().horizon) {
                    return Ok(problem(410, "cursor_expired"));
                }
                Ok(good(&self.changes(since, now, 0, &token, &BTreeSet::new())?))
            }
            "synchronise" => self.synchronise(request, &token),
            _ => self.http.ask(request),
        }
    }
}

fn authorized(method: &'static str, path: String, token: &str, body: Option<Vec<u8>>) -> Request {
    Request { method, path, headers: vec![("authorization", token.to_owned())], body }
}

fn good(body: &Json) -> Answer {
    Answer { status: 200, headers: Vec::new(), body: body.to_string().into_bytes() }
}

fn problem(status: u16, code: &str) -> Answer {
    let body = json!({ "status": status, "code": code, "detail": code }).to_string().into_bytes();
    Answer { status, headers: Vec::new(), body }
}

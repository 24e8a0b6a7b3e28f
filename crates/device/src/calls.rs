//! The calls of the protocol, each repeated as long as that is right.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::json;
use uuid::Uuid;

use super::batch::Body;
use super::remote::{NoResponse, Remote, Request, Response};
use super::responses::{self, Changes, Limits, Report};
use super::retry::RetryPolicy;
use super::text::{Columns, JsonText};
use rollcall_core::model::{InstallationName, Precision, RowKey, Timestamp, Version};
use rollcall_core::schema::{Schema, TableId};

/// Why a call failed for good.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The server cannot be reached, or did not answer however often it was asked.
    #[error(transparent)]
    NoResponse(#[from] NoResponse),
    /// The server said no.
    #[error("{0}")]
    Refused(Box<Problem>),
    /// The server said what the contract does not know.
    #[error("the server's answer to {0} cannot be read: {1}")]
    Garbled(&'static str, String),
}

impl CallError {
    /// The code of the problem document, if there is one.
    pub fn code(&self) -> &str {
        match self {
            Self::Refused(problem) => &problem.code,
            _ => "",
        }
    }
}

/// A problem document.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Problem {
    /// As HTTP has it.
    pub status: u16,
    /// What to decide by.
    pub code: String,
    /// For people.
    pub detail: String,
    /// What is at fault in the request, as a JSON pointer.
    pub at: Option<String>,
    /// When to ask again.
    pub retry_after_s: Option<u64>,
    /// Of a mass deletion: what to confirm.
    pub confirm_deletes: Option<u64>,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the server refused ({} {}): {}", self.status, self.code, self.detail)?;
        self.at.as_ref().map_or(Ok(()), |at| write!(f, " [at {at}]"))
    }
}

/// What the roll call told.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// Every live row of every declared table; `None` if nothing changed since the `ETag` that was named.
    pub tables: Option<BTreeMap<TableId, BTreeMap<RowKey, Timestamp>>>,
    /// Of which version.
    pub version: Version,
    /// Under which hold of the lock.
    pub fence: Option<String>,
    /// Names this answer.
    pub etag: Option<String>,
}

/// A new token.
#[derive(Clone, Debug, Deserialize)]
pub struct Session {
    /// What every request carries.
    pub token: String,
    /// Which device it names.
    pub device_id: String,
}

/// What the last answers said of the server, and of the installation that asks.
#[derive(Clone, Copy, Debug, Default)]
pub struct ServerFacts {
    /// The epoch of the server's data.
    pub epoch: Option<u64>,
    /// How the installation is to name itself.
    pub installation: Option<InstallationName>,
}

/// How long the server may wait for the lock before it answers 423, s.
const LOCK_WAIT_S: u64 = 10;

/// A server, as the protocol sees it.
pub struct Calls<'a> {
    remote: &'a mut dyn Remote,
    retries: &'a mut RetryPolicy,
    token: Option<String>,
    /// The user and the owner whose rows the file holds.
    pub bound: Option<String>,
    /// How the installation names itself: as the last answer said, if it said so.
    pub installation: Option<InstallationName>,
    /// How often a request was repeated since no answer came.
    pub repeats: u64,
    /// The epoch of the data, as the last answer said that said it.
    pub epoch: Option<u64>,
}

impl<'a> Calls<'a> {
    /// Calls over `remote`, in the name of `token`.
    pub fn new(remote: &'a mut dyn Remote, retries: &'a mut RetryPolicy, token: Option<String>) -> Self {
        Self { remote, retries, token, bound: None, installation: None, repeats: 0, epoch: None }
    }

    /// `POST /register`
    pub fn register(&mut self, email: &str, password: &str) -> Result<(), CallError> {
        let body = json!({ "email": email, "password": password });
        self.send(|_| post("register", &body)).map(|_| ())
    }

    /// `POST /login`; `device_id` makes the new token the old device's.
    pub fn log_in(
        &mut self,
        email: &str,
        password: &str,
        device: &str,
        device_id: Option<&str>,
    ) -> Result<Session, CallError> {
        let mut body = json!({ "email": email, "password": password, "device": device });
        if let Some(id) = device_id {
            body["device_id"] = json!(id);
        }
        read("POST /login", &self.send(|_| post("login", &body))?)
    }

    /// `GET /me`: the user and the owner of the token, as `Sync-For` says them; `None` from a server that is older.
    pub fn me(&mut self) -> Result<Option<String>, CallError> {
        #[derive(Deserialize)]
        struct Body {
            user: Uuid,
            owner: Uuid,
        }
        match self.send(|_| get("me")) {
            Err(CallError::Refused(problem)) if problem.status == 404 => Ok(None),
            response => {
                let Body { user, owner } = read("GET /me", &response?)?;
                Ok(Some(format!("{user}.{owner}")))
            }
        }
    }

    /// What the last answers said of the server and of this installation.
    pub fn server_facts(&self) -> ServerFacts {
        ServerFacts { epoch: self.epoch, installation: self.installation }
    }

    /// An answer of `POST /synchronise` has been applied, and with it the counter was raised in the file.
    pub fn applied(&mut self) {
        self.installation = self.installation.map(InstallationName::next);
    }

    /// `GET /limits`, and how the server writes times.
    pub fn limits(&mut self) -> Result<(Limits, Precision), CallError> {
        #[derive(Deserialize)]
        struct Body {
            #[serde(flatten)]
            limits: Limits,
            time_precision: String,
        }
        let body: Body = read("GET /limits", &self.send(|_| get("limits"))?)?;
        let seconds = body.time_precision == "seconds";
        Ok((body.limits, if seconds { Precision::Seconds } else { Precision::Milliseconds }))
    }

    /// `GET /digests` for the owner's seed; `None` from a server that gives no digests.
    pub fn digest_seed(&mut self) -> Result<Option<String>, CallError> {
        #[derive(Deserialize)]
        struct Body {
            seed: String,
        }
        match self.send(|_| get("digests")) {
            Err(CallError::Refused(problem)) if problem.status == 404 => Ok(None),
            response => Ok(Some(read::<Body>("GET /digests", &response?)?.seed)),
        }
    }

    /// `GET /fetch`: the whole roll call, under the lock, however many pages it has.
    ///
    /// Errors: `version_moved` if somebody wrote between two pages; begin again.
    pub fn fetch(&mut self, schema: &Schema, known: Option<&str>) -> Result<Manifest, CallError> {
        let names: Vec<&str> = schema.tables().iter().map(|table| table.name.as_str()).collect();
        let mut path = format!("fetch?tables={}", names.join(","));
        let mut tables: BTreeMap<TableId, BTreeMap<RowKey, Timestamp>> = BTreeMap::new();
        let mut first: Option<Manifest> = None;
        loop {
            let response = self.send(|_| {
                let mut request = prefer_wait(get(&path));
                // Only the first page can be left out: the others are then as they were.
                if let (Some(known), None) = (known, &first) {
                    request.headers.push(("if-none-match", known.to_owned()));
                }
                request
            })?;
            let header = |name: &str| response.header(name).map(str::to_owned);
            let version = header("sync-version").and_then(|text| text.parse().ok()).map(Version);
            let version = version.ok_or_else(|| garbled("GET /fetch", "no Sync-Version"))?;
            let (fence, etag) = (header("sync-lock"), header("etag"));
            let told = first.get_or_insert(Manifest { tables: None, version, fence, etag });
            if response.status == 304 {
                return Ok(told.clone());
            }
            let mut page: BTreeMap<String, JsonText> = read("GET /fetch", &response)?;
            for table in schema.tables() {
                let entries = tables.entry(table.id).or_default();
                let Some(listed) = page.remove(&table.name) else { continue };
                let listed: Vec<Columns> = serde_json::from_str(listed.as_str())
                    .map_err(|error| garbled("GET /fetch", &error.to_string()))?;
                for row in listed {
                    let row = responses::parts(table, row);
                    let (key, at, _) = row.ok_or_else(|| garbled("GET /fetch", "not an entry"))?;
                    entries.insert(key, at);
                }
            }
            match response.header("link").and_then(next_query) {
                Some(query) => path = format!("fetch?{query}"),
                None => {
                    let mut told = told.clone();
                    told.tables = Some(tables);
                    return Ok(told);
                }
            }
        }
    }

    /// `POST /synchronise`. `body` gives the body of each attempt: it says when it was sent.
    ///
    /// A repeated attempt leaves the fence out: the first may have been answered, and have given the lock back.
    pub fn synchronise(
        &mut self,
        key: Uuid,
        fence: Option<&str>,
        mut body: impl FnMut() -> Body,
    ) -> Result<Report, CallError> {
        let response = self.send(|attempt| {
            let mut request = prefer_wait(post("synchronise", &body()));
            request.headers.push(("idempotency-key", key.to_string()));
            if let (Some(fence), 0) = (fence, attempt) {
                request.headers.push(("sync-lock", fence.to_owned()));
            }
            request
        })?;
        read("POST /synchronise", &response)
    }

    /// `GET /changes`: a page of what changed since a cursor, or of everything.
    pub fn changes(&mut self, since: Option<Version>, next: Option<&str>) -> Result<Changes, CallError> {
        let query = match (next, since) {
            (Some(next), _) => serde_urlencoded::to_string([("next", next)]).unwrap_or_default(),
            (None, Some(since)) => format!("since={since}"),
            (None, None) => String::new(),
        };
        let path = if query.is_empty() { "changes".into() } else { format!("changes?{query}") };
        read("GET /changes", &self.send(|_| get(&path))?)
    }

    /// `DELETE /lock`. Whether it works does not matter: leases end by themselves.
    pub fn give_lock_back(&mut self) {
        let request = Request { method: "DELETE", path: "lock".into(), headers: self.who(), body: None };
        let _ = self.remote.send(&request);
    }

    /// Asks until there is an answer that counts. `make` is told how many attempts have failed.
    fn send(&mut self, mut make: impl FnMut(u32) -> Request) -> Result<Response, CallError> {
        let (mut failed, mut waited_ms) = (0, 0);
        loop {
            let mut request = make(failed);
            request.headers.extend(self.who());
            let response = self.remote.send(&request);
            let (pause, error) = match response {
                Ok(response) if response.status < 400 => {
                    let adopted = response.header("sync-device").and_then(InstallationName::read);
                    self.installation = adopted.or(self.installation);
                    self.epoch =
                        response.header("sync-epoch").and_then(|text| text.parse().ok()).or(self.epoch);
                    return Ok(response);
                }
                Ok(response) => {
                    let problem = problem(&response);
                    let pause = match problem.status {
                        423 => {
                            self.retries.lock_pause_ms(waited_ms, problem.retry_after_s).inspect(|pause| {
                                waited_ms += pause;
                            })
                        }
                        429 | 500 | 502 | 503 | 504 => {
                            failed += 1;
                            self.retries.pause_ms(failed, problem.retry_after_s)
                        }
                        _ => None,
                    };
                    (pause, CallError::Refused(Box::new(problem)))
                }
                Err(error) => {
                    failed += 1;
                    (self.retries.pause_ms(failed, None), error.into())
                }
            };
            let Some(pause) = pause else { return Err(error) };
            self.repeats += 1;
            (self.retries.pause)(Duration::from_millis(pause));
        }
    }

    /// What every request says of who makes it.
    fn who(&self) -> Vec<(&'static str, String)> {
        let Some(token) = &self.token else { return Vec::new() };
        let bound = self.bound.iter().map(|bound| ("sync-for", bound.clone()));
        let installation = self.installation.iter().map(|named| ("sync-device", named.to_string()));
        bound.chain(installation).chain([("authorization", format!("Bearer {token}"))]).collect()
    }
}

fn get(path: &str) -> Request {
    Request { method: "GET", path: path.to_owned(), headers: Vec::new(), body: None }
}

fn post(path: &str, body: &impl Serialize) -> Request {
    let body = serde_json::to_vec(body).ok(); // no map here has a key that is no string, and every text was JSON
    Request { method: "POST", path: path.to_owned(), headers: Vec::new(), body }
}

fn prefer_wait(mut request: Request) -> Request {
    request.headers.push(("prefer", format!("wait={LOCK_WAIT_S}")));
    request
}

fn read<T: serde::de::DeserializeOwned>(call: &'static str, response: &Response) -> Result<T, CallError> {
    serde_json::from_slice(&response.body).map_err(|error| garbled(call, &error.to_string()))
}

fn garbled(call: &'static str, reason: &str) -> CallError {
    CallError::Garbled(call, reason.to_owned())
}

/// The problem that an answer is, also if a proxy wrote it.
fn problem(response: &Response) -> Problem {
    let mut problem: Problem = serde_json::from_slice(&response.body).unwrap_or_default();
    problem.status = response.status;
    let retry_after = response.header("retry-after").and_then(|text| text.trim().parse().ok());
    problem.retry_after_s = problem.retry_after_s.or(retry_after);
    if problem.code.is_empty() {
        problem.code = "unknown".into();
    }
    problem
}

/// The query of a `Link` to the next page. Only the query: the server does not know under which path a
/// proxy shows it.
fn next_query(link: &str) -> Option<String> {
    link.split(", <").find_map(|link| {
        let (target, relation) = link.trim_start_matches('<').split_once('>')?;
        let (_, query) = target.split_once('?')?;
        relation.contains("rel=\"next\"").then(|| query.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_page_is_found_in_a_link() {
        for link in ["<?page=MQ&lock=false>; rel=\"next\"", "</fetch?page=MQ&lock=false>; rel=\"next\""] {
            assert_eq!(next_query(link).as_deref(), Some("page=MQ&lock=false"));
        }
        assert_eq!(next_query("</fetch?page=MQ>; rel=\"prev\""), None);
        let both = "</a?x>; rel=\"prev\", </b?y>; rel=\"next\"";
        assert_eq!(next_query(both).as_deref(), Some("y"));
    }
}

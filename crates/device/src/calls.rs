//! The calls of the protocol, each repeated as long as that is useful.

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

/// Why a call finally failed.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The server is unreachable, or never responded.
    #[error(transparent)]
    NoResponse(#[from] NoResponse),
    /// The server refused the request.
    #[error("{0}")]
    Refused(Box<Problem>),
    /// The response does not follow the contract.
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
    /// The HTTP status.
    pub status: u16,
    /// The code for decisions.
    pub code: String,
    /// For people.
    pub detail: String,
    /// The position of the fault in the request, as a JSON pointer.
    pub at: Option<String>,
    /// When to try again.
    pub retry_after_s: Option<u64>,
    /// For a mass deletion: the number to confirm.
    pub confirm_deletes: Option<u64>,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the server refused ({} {}): {}", self.status, self.code, self.detail)?;
        self.at.as_ref().map_or(Ok(()), |at| write!(f, " [at {at}]"))
    }
}

/// A manifest.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// Every live row of every declared table; `None` if nothing changed since the given `ETag`.
    pub tables: Option<BTreeMap<TableId, BTreeMap<RowKey, Timestamp>>>,
    /// Its version.
    pub version: Version,
    /// The fence of the lock.
    pub fence: Option<String>,
    /// Its entity tag.
    pub etag: Option<String>,
}

/// A new token.
#[derive(Clone, Debug, Deserialize)]
pub struct Session {
    /// The token for every request.
    pub token: String,
    /// The id of the device.
    pub device_id: String,
}

/// What the last responses reported about the server, and about this installation.
#[derive(Clone, Copy, Debug, Default)]
pub struct ServerFacts {
    /// The epoch of the server's data.
    pub epoch: Option<u64>,
    /// The name that the installation must use.
    pub installation: Option<InstallationName>,
}

/// How long the server may wait for the lock before it responds with 423, s.
const LOCK_WAIT_S: u64 = 10;

/// The calls to a server.
pub struct Calls<'a> {
    remote: &'a mut dyn Remote,
    retries: &'a mut RetryPolicy,
    token: Option<String>,
    /// The owner of the rows, if it is not the user's own one.
    pub owner: Option<Uuid>,
    /// The user and the owner of the rows in the file.
    pub bound: Option<String>,
    /// The name of the installation, as the last response set it.
    pub installation: Option<InstallationName>,
    /// How often a request was repeated because no response arrived.
    pub repeats: u64,
    /// The epoch of the data, from the last response that reported it.
    pub epoch: Option<u64>,
}

impl<'a> Calls<'a> {
    /// Calls over `remote` with `token`.
    pub fn new(remote: &'a mut dyn Remote, retries: &'a mut RetryPolicy, token: Option<String>) -> Self {
        Self { remote, retries, token, owner: None, bound: None, installation: None, repeats: 0, epoch: None }
    }

    /// `POST /register`
    pub fn register(&mut self, email: &str, password: &str) -> Result<(), CallError> {
        let body = json!({ "email": email, "password": password });
        self.send(|_| post("register", &body)).map(|_| ())
    }

    /// `POST /login`; with `device_id` the new token belongs to the old device.
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

    /// `GET /me`: the user of the token and the owner of the rows, in the form of `Sync-For`; `None` from an older
    /// server.
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
                Ok(Some(format!("{user}.{}", self.owner.unwrap_or(owner))))
            }
        }
    }

    /// `GET /owners`: the highest epoch of the user's owners.
    pub fn epoch_of_owners(&mut self) -> Result<Option<u64>, CallError> {
        #[derive(Deserialize)]
        struct Body {
            owners: Vec<Entry>,
        }
        #[derive(Deserialize)]
        struct Entry {
            version: Version,
        }
        let bound = self.bound.take(); // the list is about no owner
        let response = self.send(|_| get("owners"));
        self.bound = bound;
        let Body { owners } = read("GET /owners", &response?)?;
        Ok(owners.iter().map(|one| u64::from(one.version.epoch())).max())
    }

    /// The path of a call about the owner's rows.
    fn of_owner(&self, path: &str) -> String {
        match self.owner {
            None => path.to_owned(),
            Some(owner) => format!("{path}{}owner={owner}", if path.contains('?') { '&' } else { '?' }),
        }
    }

    /// What the last responses reported about the server and this installation.
    pub fn server_facts(&self) -> ServerFacts {
        ServerFacts { epoch: self.epoch, installation: self.installation }
    }

    /// Called after a response of `POST /synchronise` was applied, which raised the counter in the file.
    pub fn applied(&mut self) {
        self.installation = self.installation.map(InstallationName::next);
    }

    /// `GET /limits`, and the format of times.
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

    /// `GET /digests` for the owner's seed; `None` from a server without digests.
    pub fn digest_seed(&mut self) -> Result<Option<String>, CallError> {
        #[derive(Deserialize)]
        struct Body {
            seed: String,
        }
        let path = self.of_owner("digests");
        match self.send(|_| get(&path)) {
            Err(CallError::Refused(problem)) if problem.status == 404 => Ok(None),
            response => Ok(Some(read::<Body>("GET /digests", &response?)?.seed)),
        }
    }

    /// `GET /fetch`: the whole manifest, under the lock, in any number of pages.
    ///
    /// Errors: `version_moved` if another device wrote between two pages; the caller must start again.
    pub fn fetch(&mut self, schema: &Schema, known: Option<&str>) -> Result<Manifest, CallError> {
        let names: Vec<&str> = schema.tables().iter().map(|table| table.name.as_str()).collect();
        let mut path = self.of_owner(&format!("fetch?tables={}", names.join(",")));
        let mut tables: BTreeMap<TableId, BTreeMap<RowKey, Timestamp>> = BTreeMap::new();
        let mut first: Option<Manifest> = None;
        loop {
            let response = self.send(|_| {
                let mut request = prefer_wait(get(&path));
                // Only the first page can be unchanged: then the others are unchanged too.
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

    /// `POST /synchronise`. `body` returns the body of each attempt, since it contains the time of sending.
    ///
    /// A repeated attempt has no fence: the first one may have succeeded and released the lock.
    pub fn synchronise(
        &mut self,
        key: Uuid,
        fence: Option<&str>,
        mut body: impl FnMut() -> Body,
    ) -> Result<Report, CallError> {
        let path = self.of_owner("synchronise");
        let response = self.send(|attempt| {
            let mut request = prefer_wait(post(&path, &body()));
            request.headers.push(("idempotency-key", key.to_string()));
            if let (Some(fence), 0) = (fence, attempt) {
                request.headers.push(("sync-lock", fence.to_owned()));
            }
            request
        })?;
        read("POST /synchronise", &response)
    }

    /// `GET /changes`: a page of the changes since a cursor, or of all rows.
    pub fn changes(&mut self, since: Option<Version>, next: Option<&str>) -> Result<Changes, CallError> {
        let query = match (next, since) {
            (Some(next), _) => serde_urlencoded::to_string([("next", next)]).unwrap_or_default(),
            (None, Some(since)) => format!("since={since}"),
            (None, None) => String::new(),
        };
        let path = if query.is_empty() { "changes".into() } else { format!("changes?{query}") };
        let path = self.of_owner(&path);
        read("GET /changes", &self.send(|_| get(&path))?)
    }

    /// `DELETE /lock`. Errors are ignored: leases expire.
    pub fn give_lock_back(&mut self) {
        let request =
            Request { method: "DELETE", path: self.of_owner("lock"), headers: self.who(), body: None };
        let _ = self.remote.send(&request);
    }

    /// Sends a request until a final response arrives. `make` receives the number of failed attempts.
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

    /// The headers that identify the sender.
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
    let body = serde_json::to_vec(body).ok(); // no map here has a key that is not a string, and every text was JSON
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

/// The problem of a response, which a proxy may have written.
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

/// The query of a `Link` to the next page. Only the query is used: the server does not know its path behind a
/// proxy.
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

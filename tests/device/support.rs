//! Devices for tests: a file, a way to the server that can be disturbed, and retries that does not wait.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rollcall::clock::Clock;
use rollcall::device::{
    Columns, Http, LogIn, NoResponse, Options, Remote, Request, Response, RetryPolicy, Store, SyncError,
    SyncMode, SyncReport, log_in, sync,
};
use rollcall::model::RowKey;
use serde_json::{Value as Json, json};
use uuid::Uuid;

use crate::real::{EMAIL, PASSWORD, SCHEMA, Server};

/// What happens to a request on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Arrives,
    /// It never reaches the server.
    LostBefore,
    /// The server handles the request, and its response is lost.
    LostAfter,
}

type Disturb = Box<dyn FnMut(&Request) -> Fate>;

/// A device with its user.
pub struct Phone {
    pub store: Store,
    pub path: PathBuf,
    pub remote: Disturbed,
    pub way: SyncMode,
}

/// A way to the server that a test can disturb, and that remembers what went over it.
pub struct Disturbed {
    inner: Box<dyn Remote>,
    pub disturb: Disturb,
    /// Called when a response has arrived, before the device receives it.
    pub answered: Box<dyn FnMut(&Request)>,
    pub log: Vec<(Request, u16)>,
    /// The verdicts on what was added, response by response.
    pub verdicts: Vec<String>,
    /// Why added rows were rejected, by key.
    pub faults: BTreeMap<String, Json>,
}

impl Remote for Disturbed {
    fn send(&mut self, request: &Request) -> Result<Response, NoResponse> {
        let fate = (self.disturb)(request);
        if fate == Fate::LostBefore {
            return Err(NoResponse("lost on the way there".into()));
        }
        let answer = self.inner.send(request)?;
        self.log.push((request.clone(), answer.status));
        let report: Json = serde_json::from_slice(&answer.body).unwrap_or_default();
        let added = report["add"].as_object().into_iter().flat_map(|tables| tables.values());
        for item in added.flat_map(|list| list.as_array().cloned().unwrap_or_default()) {
            self.verdicts.extend(item["verdict"].as_str().map(str::to_owned));
            if let (Some(key), error @ Json::Object(_)) = (item["id"].as_str(), &item["error"]) {
                self.faults.insert(key.to_owned(), error.clone());
            }
        }
        (self.answered)(request);
        if fate == Fate::LostAfter {
            return Err(NoResponse("lost on the way back".into()));
        }
        Ok(answer)
    }
}

impl Phone {
    /// A new device of the one user, over HTTP.
    pub fn new(server: &Server, name: &str, way: SyncMode) -> Self {
        Self::over(server, name, way, Box::new(Http::new(&server.url)))
    }

    /// A new device of the one user, over any way.
    pub fn over(server: &Server, name: &str, way: SyncMode, inner: Box<dyn Remote>) -> Self {
        Self::declaring(server, name, way, inner, SCHEMA)
    }

    pub fn declaring(
        server: &Server,
        name: &str,
        way: SyncMode,
        inner: Box<dyn Remote>,
        schema: &str,
    ) -> Self {
        Self::of(server, (EMAIL, name), way, inner, schema, None)
    }

    /// A device of a user who registers if need be, for the rows of another owner than the user's own.
    pub fn of_owner(server: &Server, who: (&str, &str), way: SyncMode, owner: Option<Uuid>) -> Self {
        Self::of(server, who, way, Box::new(Http::new(&server.url)), SCHEMA, owner)
    }

    fn of(
        server: &Server,
        (email, name): (&str, &str),
        way: SyncMode,
        inner: Box<dyn Remote>,
        schema: &str,
        owner: Option<Uuid>,
    ) -> Self {
        let path = server.dir.path().join(format!("{email} {name}.db"));
        let store = Store::create(&path, schema, Clock::system()).unwrap();
        owner.map_or(Ok(()), |owner| store.set_owner(owner)).unwrap();
        let disturb: Disturb = Box::new(|_| Fate::Arrives);
        let mut remote = Disturbed {
            inner,
            disturb,
            answered: Box::new(|_| {}),
            log: Vec::new(),
            verdicts: Vec::new(),
            faults: BTreeMap::new(),
        };
        let asked = |register| LogIn { email, password: PASSWORD, device: name, register };
        let known = log_in(&store, &mut remote, &mut retries(1), asked(false));
        known.or_else(|_| log_in(&store, &mut remote, &mut retries(1), asked(true))).unwrap();
        Self { store, path, remote, way }
    }

    /// The server has come back at another address.
    pub fn follow(&mut self, server: &Server) {
        self.remote.inner = Box::new(Http::new(&server.url));
    }

    /// The app dies and is started again: only the file is left.
    pub fn restart(&mut self) {
        self.store = Store::open(&self.path, Clock::system()).unwrap();
    }

    pub fn put(&mut self, table: &str, key: RowKey, row: Json) {
        self.store.put(table, key, &columns(row)).unwrap();
    }

    pub fn add(&mut self, table: &str, row: Json) -> RowKey {
        let key = RowKey(Uuid::now_v7());
        self.put(table, key, row);
        key
    }

    pub fn delete(&mut self, table: &str, key: RowKey) {
        self.store.delete(table, key).unwrap();
    }

    pub fn column(&self, table: &str, key: RowKey, column: &str) -> Option<Json> {
        self.store
            .get(table, key)
            .unwrap()
            .map(|row| serde_json::from_str(row.contents[column].as_str()).unwrap())
    }

    pub fn try_sync(&mut self, attempts: u32) -> Result<SyncReport, SyncError> {
        self.try_sync_with(&mut retries(attempts), Options::default())
    }

    pub fn try_sync_with(
        &mut self,
        retries: &mut RetryPolicy,
        options: Options,
    ) -> Result<SyncReport, SyncError> {
        let options = Options { mode: Some(self.way), ..options };
        sync(&mut self.store, &mut self.remote, retries, options, &mut |_| {})
    }

    pub fn sync(&mut self) -> SyncReport {
        self.try_sync(6).unwrap_or_else(|error| panic!("{}: {error}", self.path.display()))
    }

    /// Everything that the user sees, with the server's time of each row.
    pub fn sees(&self) -> Json {
        let tables = ["lists", "items"].map(|table| {
            let rows = self
                .store
                .list(table)
                .unwrap()
                .into_iter()
                .map(|row| json!([row.key, row.local.last_update.map(|at| at.ms()), row.contents]));
            Json::from(rows.collect::<Vec<_>>())
        });
        Json::from(tables.to_vec())
    }

    /// Requests that the server has answered since, as `POST synchronise 200`.
    pub fn took(&mut self) -> Vec<String> {
        let log = std::mem::take(&mut self.remote.log).into_iter();
        log.map(|(request, status)| {
            let path = request.path.split('?').next().unwrap().to_owned();
            format!("{} {path} {status}", request.method)
        })
        .collect()
    }
}

pub fn columns(row: Json) -> Columns {
    serde_json::from_value(row).unwrap()
}

/// RetryPolicy of so many attempts that never really waits.
pub fn retries(attempts_max: u32) -> RetryPolicy {
    RetryPolicy { attempts_max, pause: Box::new(|_| {}), random: Box::new(|| 0), ..RetryPolicy::default() }
}

/// A RetryPolicy that records how long it should wait.
pub fn noting_retries(attempts_max: u32) -> (RetryPolicy, Arc<Mutex<Vec<Duration>>>) {
    let noted = Arc::new(Mutex::new(Vec::new()));
    let pauses = Arc::clone(&noted);
    let pause = Box::new(move |pause| pauses.lock().push(pause));
    (RetryPolicy { pause, ..retries(attempts_max) }, noted)
}

/// Loses the request of that number, counted from 0, once.
pub fn losing(number: usize, fate: Fate) -> Disturb {
    let mut seen = 0;
    Box::new(move |_| {
        seen += 1;
        if seen == number + 1 { fate } else { Fate::Arrives }
    })
}

/// Both see the same rows, nothing waits, and a further sync finds nothing to do.
pub fn assert_agree(a: &mut Phone, b: &mut Phone) {
    for _ in 0..2 {
        a.sync();
        b.sync();
    }
    assert_eq!(a.sees(), b.sees());
    for phone in [a, b] {
        let before = phone.sees();
        let report = phone.sync();
        assert_eq!(
            (report.tally.taken, report.tally.received, report.tally.dropped),
            (0, 0, 0),
            "{report:?}"
        );
        assert_eq!(phone.sees(), before);
        assert_eq!(phone.store.pending().unwrap().rows(), 0);
        assert_eq!(phone.store.outstanding().unwrap(), None);
    }
}

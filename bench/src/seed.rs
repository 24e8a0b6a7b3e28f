//! Databases for measurements: an empty one with its people, and a large one that is loaded in bulk.
//!
//! Rows are loaded through the engine's own `put` and `advance`, 500 rows for each version, all owners in
//! turn. So tables, ledger and digests are what a server would have written, in whatever layout the engine
//! has; only the rules and HTTP are left out. [`check`] compares the result with a server's responses.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::Result;
use super::child::Listening;
use super::dataset::{Keys, Person, Row, TABLE, schema};
use super::driver;
use super::yardstick::layout;
use rollcall_clock::Clock;
use rollcall_core::digest::{Digest, Seed};
use rollcall_core::model::{Claim, RowKey, Stored, Timestamp};
use rollcall_core::storage::{OwnerState, Storage, StorageError};
use rollcall_postgres::{Address, Postgres, Terms};
use rollcall_sqlite::{Connections, Sqlite};

/// Raised when the loaded data changes.
const FORMAT: u32 = 1;
const ROWS_A_VERSION: u64 = 500;
const BUSY_WAIT: Duration = Duration::from_secs(5);
/// All other rows in the large database belong to these owners.
const OTHERS: u64 = 64;

/// The owners of the large database that are measured, by their number of rows.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// All rows.
    pub rows: u64,
}

impl Sizes {
    /// Four people with a 2,000th, a 200th, a 20th and a half of all rows.
    pub fn people(self) -> [(Person, u64); 4] {
        let share = |part: u64| (self.rows / part).max(10);
        [(Person(1), share(2_000)), (Person(2), share(200)), (Person(3), share(20)), (Person(4), share(2))]
    }

    /// A twentieth: what one device uploads, or fetches first.
    pub fn medium(self) -> (Person, u64) {
        self.people()[2]
    }

    /// Everybody, with how many rows each has.
    fn everybody(self) -> Vec<(Person, u64)> {
        let people = self.people();
        let left = self.rows.saturating_sub(people.iter().map(|(_, rows)| rows).sum());
        let others = (0..OTHERS).map(|other| (Person(100 + other), left / OTHERS));
        people.into_iter().chain(others).collect()
    }
}

/// Makes a database with the bench schema where these people are let in, and nothing is stored.
pub fn empty(path: &Path, people: &[Person]) -> Result<()> {
    let storage = open(path)?;
    for person in people {
        person.enrol(&*storage.accounts())?;
    }
    Ok(())
}

/// The same in a PostgreSQL database, which may hold others already. It waits, as that engine does.
pub fn let_in(address: &Address, people: &[Person]) -> Result<()> {
    let terms = terms();
    let connections = rollcall_postgres::Connections::open(address, &terms)?;
    let (schema, now) = (Arc::new(schema()?), Clock::system().now());
    let storage = Postgres::serve(address, connections, &terms, schema, now, Arc::new(()))?;
    people.iter().try_for_each(|person| person.enrol(&*storage.accounts()))
}

/// Beside servers, and in no hurry.
fn terms() -> Terms {
    Terms {
        connections_max: 2,
        for_accounts: 0,
        busy_wait: BUSY_WAIT,
        statement_max: Duration::from_secs(30),
        idle_max: Duration::from_secs(30),
        prepare: false,
    }
}

fn open(path: &Path) -> Result<Arc<dyn Storage>> {
    let connections = Connections::open(path, BUSY_WAIT, 1)?;
    Ok(Arc::new(Sqlite::serve(path, connections, Arc::new(schema()?), Clock::system().now(), Arc::new(()))?))
}

/// The name that the large database is kept under: another layout or another load has another.
fn name(folder: &Path, sizes: Sizes) -> Result<String> {
    let example = folder.join("example.db");
    empty(&example, &[])?;
    let layout = layout(&example)?;
    Ok(format!("rollcall-bench-{}-{FORMAT}-{layout}.db", sizes.rows))
}

/// Finds the large database in `cache`, or loads it there; without a cache, in `folder`.
///
/// Stops with an error once `stop` is set; `result` is called with the number of loaded rows.
pub fn large(
    folder: &Path,
    cache: Option<&Path>,
    sizes: Sizes,
    stop: &AtomicBool,
    result: &dyn Fn(u64),
) -> Result<PathBuf> {
    let path = cache.unwrap_or(folder).join(name(folder, sizes)?);
    if path.exists() {
        return Ok(path);
    }
    let unfinished = folder.join("loading.db");
    load(&unfinished, sizes, stop, result)?;
    std::fs::rename(&unfinished, &path)?;
    Ok(path)
}

struct Loading {
    person: Person,
    rows: u64,
    loaded: u64,
    digest: Digest,
}

fn load(path: &Path, sizes: Sizes, stop: &AtomicBool, result: &dyn Fn(u64)) -> Result<()> {
    let storage = open(path)?;
    let mut everybody: Vec<Loading> = sizes
        .everybody()
        .into_iter()
        .map(|(person, rows)| Loading { person, rows, loaded: 0, digest: Digest::default() })
        .collect();
    for each in &everybody {
        each.person.enrol(&*storage.accounts())?;
    }
    let mut done = 0;
    // The owner that is furthest behind comes next: all finish together, and no owner's rows are contiguous.
    while let Some(next) = everybody
        .iter_mut()
        .filter(|each| each.loaded < each.rows)
        .min_by_key(|each| (u128::from(each.loaded) << 32) / u128::from(each.rows))
    {
        if stop.load(Ordering::Relaxed) {
            return Err("interrupted".into());
        }
        let before = next.loaded;
        load_version(&*storage, next)?;
        done += next.loaded - before;
        result(done);
    }
    Ok(())
}

/// Loads the next rows of one person, as one version.
fn load_version(storage: &dyn Storage, loading: &mut Loading) -> Result<()> {
    let schema = schema()?;
    let table = schema.table(TABLE).ok_or("the table is not declared")?.id;
    let numbers = loading.loaded..loading.rows.min(loading.loaded + ROWS_A_VERSION);
    let rows: Vec<Row> = numbers.map(|number| Row::new(loading.person, Keys::V7, number, 0)).collect();
    let values = rows.iter().map(Row::values).collect::<Result<Vec<_>>>()?;
    let device = loading.person.device(0);
    let mut digest = loading.digest;
    storage.write(loading.person.owner(), |txn| {
        let state = txn.state();
        let version = state.version.next();
        let stored: Vec<(RowKey, Stored)> = rows
            .iter()
            .zip(&values)
            .map(|(row, values)| {
                let stored = Stored {
                    version,
                    created: version,
                    last_update: row.last_update,
                    made_at: None,
                    claim: Claim::default(),
                    made_by: device,
                    changed_by: device,
                    lifetimes: Vec::new(),
                    aware_devices: Vec::new(),
                    values: Some(values.clone()),
                };
                (row.key, stored)
            })
            .collect();
        let seed = state.seed.unwrap_or(Seed([0; 16]));
        digest = loading.digest;
        rows.iter().for_each(|row| digest.add(seed.row(row.key, row.last_update)));
        let weight = values.iter().flatten().map(|value| value.weight() as u64).sum::<u64>();
        let after = OwnerState {
            version,
            rows: state.rows + rows.len() as u64,
            bytes: state.bytes + weight,
            ..state
        };
        let lent: Vec<(RowKey, &Stored)> = stored.iter().map(|(key, stored)| (*key, stored)).collect();
        txn.put(table, &lent)?;
        txn.advance(after, &[(table, digest)], Timestamp::from_ms(rows[0].last_update.ms()))?;
        Ok::<_, StorageError>(())
    })?;
    loading.digest = digest;
    loading.loaded += rows.len() as u64;
    Ok(())
}

/// Fetches the manifest and the digests of the smaller owners from a server: both must describe the same
/// rows.
pub async fn check(server: &Listening, sizes: Sizes) -> Result<()> {
    let mut connection = driver::Connection::open(server.address).await?;
    for (person, rows) in sizes.people().into_iter().take(2) {
        let token = person.token(0);
        let result = connection.good(&driver::get("/digests", &token, &[]), 200, true).await?;
        let result: serde_json::Value = serde_json::from_slice(&result.body)?;
        let seed = result["seed"].as_str().and_then(read_seed).ok_or("no seed")?;
        let asked = driver::get("/fetch?lock=false", &token, &[]);
        let manifest = connection.good(&asked, 200, true).await?;
        let manifest: serde_json::Value = serde_json::from_slice(&manifest.body)?;
        let mut digest = Digest::default();
        for row in manifest[TABLE].as_array().into_iter().flatten() {
            let key = row["id"].as_str().and_then(RowKey::parse).ok_or("no key")?;
            let at = Timestamp::parse(row["last_update"].as_str().unwrap_or_default());
            digest.add(seed.row(key, at.map_err(|_| "no time")?));
        }
        let held = &result["tables"][TABLE];
        if held["root"] != format!("{:016x}", digest.root)
            || held["count"] != digest.count
            || digest.count != rows
        {
            return Err(format!("the loaded rows and the digest disagree: {held}, {digest:?}, {rows}").into());
        }
    }
    Ok(())
}

fn read_seed(text: &str) -> Option<Seed> {
    let mut seed = [0; 16];
    for (place, byte) in seed.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(place * 2..place * 2 + 2)?, 16).ok()?;
    }
    Some(Seed(seed))
}

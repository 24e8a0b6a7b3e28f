//! Possible layouts of the ledger in SQLite, and their costs: the figures in docs/project/performance.md.
//!
//! `cargo run --release -p rollcall-bench --example layouts [rows|log]` writes this many rows of one owner
//! (20,000 by default; 200,000 is nearer to a large database) in each layout, with keys by time (v7) and at
//! random (v4), and prints:
//! - inserts and updates in transactions of 500 rows: pages written to the log for each row, and rows a
//!   second;
//! - updates of 5 rows in a transaction: pages for each transaction;
//! - bytes of database for each row;
//! - milliseconds to read the manifest (key and time of each row, by key) and the whole feed (by version,
//!   with the application's columns), from memory.
//!
//! With `log` in place of a number it measures only the present layout, in a database of 100,000 rows of 64
//! owners: 16 jobs of 5 rows in each transaction, synced, as group commit makes them; by the largest size of
//! the log before it is moved into the database, and by the size of the connection's cache.
//!
//! Every layout supports what the protocol needs: rows by key, changes by version, the columns of the row.
//! The log is not synced, since an fsync costs each layout the same.

use std::time::Instant;

use rusqlite::{Connection, Result, ToSql, params};

const OWNER: i64 = 7;
const TABLE: i64 = 1;
const BATCH: usize = 500;

/// The columns of the application: some 200 bytes, as in `rollcall-bench`.
const COLUMNS: &str =
    "title TEXT, body TEXT, done INTEGER, position INTEGER, price TEXT, due TEXT, made INTEGER";

/// What the ledger stores of a row in addition to owner, table and key.
const ENTRY: &str = "version INTEGER, created INTEGER NOT NULL, last_update INTEGER NOT NULL, \
    deleted INTEGER NOT NULL, made_by INTEGER NOT NULL, changed_by INTEGER NOT NULL, lives BLOB, writers BLOB";

struct Layout {
    name: &'static str,
    tables: String,
    /// Parameters: owner, table, key, version, last_update, and the text of the body.
    put: Vec<String>,
    roll_call: String,
    feed: String,
}

#[expect(clippy::too_many_lines, reason = "a table")]
fn layouts() -> Vec<Layout> {
    let app_rowid =
        format!("CREATE TABLE app (owner INTEGER, key BLOB, {COLUMNS}, PRIMARY KEY (owner, key)) STRICT;");
    let app_clustered = format!(
        "CREATE TABLE app (owner INTEGER, key BLOB, {COLUMNS}, PRIMARY KEY (owner, key)) STRICT, WITHOUT ROWID;"
    );
    let put_app = "INSERT INTO app VALUES (?1, ?3, 'a short title here', ?6, 0, 1, '12.50', '2027-02-03', ?5)
        ON CONFLICT (owner, key) DO UPDATE SET body = excluded.body, made = excluded.made";
    let put_entry =
        "INSERT INTO ledger (owner, tbl, key, version, created, last_update, deleted, made_by, changed_by)
        VALUES (?1, ?2, ?3, ?4, ?4, ?5, 0, 1, 1) ON CONFLICT (owner, tbl, key) DO UPDATE SET
        version = excluded.version, last_update = excluded.last_update, changed_by = excluded.changed_by";
    let roll_call =
        "SELECT key, last_update FROM ledger WHERE owner = ?1 AND tbl = ?2 AND deleted = 0 ORDER BY key";
    let feed = "SELECT l.key, l.last_update, a.title, a.body, a.made FROM ledger l
        JOIN app a ON a.owner = l.owner AND a.key = l.key WHERE l.owner = ?1 AND l.version > ?2
        ORDER BY l.version, l.tbl, l.key";
    let tombstones = "CREATE INDEX tombstones ON ledger (owner, version) WHERE deleted = 1;";
    let separate = |name, app: &str, ledger: String| Layout {
        name,
        tables: format!("{app}{ledger}{tombstones}"),
        put: vec![put_entry.to_owned(), put_app.to_owned()],
        roll_call: roll_call.to_owned(),
        feed: feed.to_owned(),
    };
    let clustered = format!(
        "CREATE TABLE ledger (owner INTEGER, tbl INTEGER, key BLOB, {ENTRY}, PRIMARY KEY (owner, tbl, key))
         STRICT, WITHOUT ROWID;"
    );
    let by_rowid = format!(
        "CREATE TABLE ledger (owner INTEGER, tbl INTEGER, key BLOB, {ENTRY}, UNIQUE (owner, tbl, key)) STRICT;"
    );
    let version_index = "CREATE INDEX versions ON ledger (owner, version);";
    let inside = |name, without: &str, indexes: &str| {
        Layout {
        name,
        tables: format!(
            "CREATE TABLE app (owner INTEGER, key BLOB, {COLUMNS}, {ENTRY}, PRIMARY KEY (owner, key)) STRICT{without};
             {indexes} CREATE INDEX tombstones ON app (owner, version) WHERE deleted = 1;"
        ),
        put: vec![
            "INSERT INTO app VALUES (?1, ?3, 'a short title here', ?6, 0, 1, '12.50', '2027-02-03', ?5, \
             ?4, ?4, ?5, 0 * ?2, 1, 1, NULL, NULL)
             ON CONFLICT (owner, key) DO UPDATE SET body = excluded.body, made = excluded.made,
             version = excluded.version, last_update = excluded.last_update, changed_by = excluded.changed_by"
                .to_owned(),
        ],
        roll_call: "SELECT key, last_update FROM app WHERE owner = ?1 AND ?2 AND deleted = 0 ORDER BY key".to_owned(),
        feed: "SELECT key, last_update, title, body, made FROM app WHERE owner = ?1 AND version > ?2
               ORDER BY version, key"
            .to_owned(),
    }
    };
    vec![
        separate("ledger clustered by key; rows by rowid", &app_rowid, format!("{clustered}{version_index}")),
        separate("both clustered by key", &app_clustered, format!("{clustered}{version_index}")),
        separate("both by rowid", &app_rowid, format!("{by_rowid}{version_index}")),
        separate(
            "both by rowid; roll call from a covering index",
            &app_rowid,
            format!(
                "{by_rowid}{version_index}
                 CREATE INDEX roll_call ON ledger (owner, tbl, key, last_update) WHERE deleted = 0;"
            ),
        ),
        inside(
            "no ledger: version columns in the row, by rowid",
            "",
            "CREATE INDEX versions ON app (owner, version);",
        ),
        inside(
            "the same, roll call from a covering index",
            "",
            "CREATE INDEX versions ON app (owner, version);
             CREATE INDEX roll_call ON app (owner, key, last_update) WHERE deleted = 0;",
        ),
        inside(
            "no ledger: version columns in the row, clustered",
            ", WITHOUT ROWID",
            "CREATE INDEX versions ON app (owner, version);",
        ),
    ]
}

/// Numbers by chance, the same at every run.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

fn keys(rows: usize, by_time: bool) -> Vec<[u8; 16]> {
    let mut chance = Chance(1);
    let key = |n: usize| {
        let mut key = [0; 16];
        key[..8].copy_from_slice(&chance.next().to_be_bytes());
        key[8..].copy_from_slice(&chance.next().to_be_bytes());
        if by_time {
            key[..6].copy_from_slice(&(1_735_689_600_000 + n as u64 * 1_000).to_be_bytes()[2..]);
        }
        key
    };
    (0..rows).map(key).collect()
}

struct Database {
    conn: Connection,
    puts: Vec<String>,
    version: i64,
    body: String,
}

impl Database {
    /// One transaction; how many pages it wrote to the log.
    fn write(&mut self, keys: &[[u8; 16]]) -> Result<i64> {
        self.version += 1;
        self.conn.execute_batch("BEGIN IMMEDIATE")?;
        let mut sorted: Vec<_> = keys.iter().collect();
        sorted.sort_unstable(); // as the server writes them
        for key in sorted {
            for put in &self.puts {
                let at = self.version * 1_000;
                let mut put = self.conn.prepare_cached(put)?;
                let all: [&dyn ToSql; 6] = [&OWNER, &TABLE, key, &self.version, &at, &self.body];
                let named = put.parameter_count();
                put.execute(&all[..named])?;
            }
        }
        self.conn.execute_batch("COMMIT")?;
        // The pages in the log, which is emptied after each transaction.
        let (_, pages, _): (i64, i64, i64) =
            self.conn.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?))
            })?;
        self.conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
        Ok(pages)
    }

    fn write_all(&mut self, keys: &[[u8; 16]], batch: usize) -> Result<(f64, f64)> {
        let (mut pages, began) = (0, Instant::now());
        for keys in keys.chunks(batch) {
            pages += self.write(keys)?;
        }
        let seconds = began.elapsed().as_secs_f64();
        Ok((pages as f64 / keys.len() as f64, keys.len() as f64 / seconds))
    }

    fn read(&self, sql: &str, second: i64) -> Result<f64> {
        let mut best = f64::MAX;
        for _ in 0..3 {
            let began = Instant::now();
            let mut statement = self.conn.prepare_cached(sql)?;
            let mut rows = statement.query(params![OWNER, second])?;
            let mut bytes = 0;
            while let Some(row) = rows.next()? {
                bytes += row.get_ref(0)?.as_blob()?.len() as i64 + row.get::<_, i64>(1)?;
            }
            std::hint::black_box(bytes);
            best = best.min(began.elapsed().as_secs_f64() * 1e3);
        }
        Ok(best)
    }
}

/// What moving the log into the database costs, by how seldom it is done.
fn log() -> std::result::Result<(), Box<dyn std::error::Error>> {
    const JOBS: usize = 16;
    const COMMITS: usize = 150;
    println!("{JOBS} jobs of 5 rows a commit, {COMMITS} commits, v4 keys, 100,000 rows before");
    println!(
        "{:>8} {:>9} {:>9} {:>9} {:>10} {:>8}",
        "pages", "cache KiB", "jobs/s", "p50 ms", "worst ms", "KiB/job"
    );
    for pages in [1_000, 2_000, 4_000, 8_000, 16_000] {
        for cache in [2_000, 16_384] {
            let folder = std::env::temp_dir().join(format!("rollcall-log-{}", std::process::id()));
            std::fs::create_dir_all(&folder)?;
            let conn = Connection::open(folder.join("app.db"))?;
            conn.execute_batch(
                "PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF; PRAGMA cache_size = -64000",
            )?;
            let layout = layouts().swap_remove(0);
            conn.execute_batch(&layout.tables)?;
            let all = keys(100_000 + JOBS * COMMITS * 5, false);
            let (before, after) = all.split_at(100_000);
            let put = |job: usize, rows: &[[u8; 16]]| -> Result<()> {
                let (owner, version, body) = ((job % 64) as i64, job as i64, "word ".repeat(30));
                for key in rows {
                    for put in &layout.put {
                        let mut put = conn.prepare_cached(put)?;
                        let all: [&dyn ToSql; 6] = [&owner, &TABLE, key, &version, &version, &body];
                        let named = put.parameter_count();
                        put.execute(&all[..named])?;
                    }
                }
                Ok(())
            };
            conn.execute_batch("BEGIN")?;
            before.chunks(5).enumerate().try_for_each(|(job, rows)| put(job, rows))?;
            conn.execute_batch("COMMIT")?;
            conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
            conn.execute_batch(&format!(
                "PRAGMA synchronous = FULL; PRAGMA cache_size = -{cache}; PRAGMA wal_autocheckpoint = {pages}"
            ))?;
            let (written, mut took) = (bytes_written()?, Vec::new());
            for (commit, rows) in after.chunks(5 * JOBS).enumerate() {
                let began = Instant::now();
                conn.execute_batch("BEGIN IMMEDIATE")?;
                rows.chunks(5).enumerate().try_for_each(|(job, rows)| put(commit * JOBS + job, rows))?;
                conn.execute_batch("COMMIT")?;
                took.push(began.elapsed().as_secs_f64());
            }
            conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
            let jobs = (COMMITS * JOBS) as f64;
            let written = (bytes_written()? - written) as f64 / 1_024.0 / jobs;
            let speed = jobs / took.iter().sum::<f64>();
            took.sort_by(f64::total_cmp);
            let (median, worst) = (took[COMMITS / 2] * 1e3, took[COMMITS - 1] * 1e3);
            println!("{pages:>8} {cache:>9} {speed:>9.0} {median:>9.1} {worst:>10.1} {written:>8.0}");
            drop(conn);
            std::fs::remove_dir_all(&folder)?;
        }
    }
    Ok(())
}

/// The bytes that this process has written, as Linux counts them.
fn bytes_written() -> std::result::Result<u64, Box<dyn std::error::Error>> {
    let result = std::fs::read_to_string("/proc/self/io")?;
    let line = result.lines().find_map(|line| line.strip_prefix("wchar: "));
    Ok(line.ok_or("the system does not count what is written")?.trim().parse()?)
}

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let asked = std::env::args().nth(1);
    if asked.as_deref() == Some("log") {
        return log();
    }
    let rows = asked.map_or(Ok(20_000), |rows| rows.parse())?;
    println!("{rows} rows; pages of 4,096 bytes written to the log");
    println!(
        "{:<50} {:>4} {:>9} {:>9} {:>9} {:>9} {:>8} {:>7} {:>9} {:>8}",
        "layout", "keys", "insert", "rows/s", "update", "rows/s", "5 rows", "bytes", "roll call", "feed"
    );
    for layout in layouts() {
        for by_time in [true, false] {
            let folder = std::env::temp_dir().join(format!("rollcall-layouts-{}", std::process::id()));
            std::fs::create_dir_all(&folder)?;
            let conn = Connection::open(folder.join("app.db"))?;
            conn.execute_batch(
                "PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF; PRAGMA wal_autocheckpoint = 0;
                 PRAGMA cache_size = -64000;",
            )?;
            conn.execute_batch(&layout.tables)?;
            conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
            let mut database =
                Database { conn, puts: layout.put.clone(), version: 0, body: "word ".repeat(30) };
            let keys = keys(rows, by_time);
            let (inserted, insert_speed) = database.write_all(&keys, BATCH)?;
            let bytes: i64 = database.conn.query_row("PRAGMA page_count", [], |row| row.get(0))?;
            let (roll_call, feed) =
                (database.read(&layout.roll_call, TABLE)?, database.read(&layout.feed, 0)?);
            // People edit rows in no particular order.
            let mut chance = Chance(2);
            let mut any = |count: usize| -> Vec<[u8; 16]> {
                let mut any: Vec<_> = (0..count).map(|_| keys[chance.next() as usize % rows]).collect();
                any.sort_unstable();
                any.dedup();
                any
            };
            let (mut pages, mut updated, began) = (0, 0, Instant::now());
            for _ in 0..(rows / BATCH).min(40) {
                let some = any(BATCH);
                pages += database.write(&some)?;
                updated += some.len();
            }
            let update_speed = updated as f64 / began.elapsed().as_secs_f64();
            let few: i64 = (0..100).map(|_| database.write(&any(5))).sum::<Result<i64>>()?;
            println!(
                "{:<50} {:>4} {inserted:>9.2} {insert_speed:>9.0} {:>9.2} {update_speed:>9.0} {:>8.1} {:>7.0} \
                 {roll_call:>9.1} {feed:>8.1}",
                layout.name,
                if by_time { "v7" } else { "v4" },
                pages as f64 / updated as f64,
                few as f64 / 100.0,
                (bytes * 4_096) as f64 / rows as f64,
            );
            drop(database);
            std::fs::remove_dir_all(&folder)?;
        }
    }
    Ok(())
}

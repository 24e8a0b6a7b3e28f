//! Bare loops over SQLite: the engine's tables, statements, pragmas and bytes, on one thread. The
//! documentation of [`super`] lists what they leave out.

use std::path::Path;
use std::time::{Duration, Instant};

use rusqlite::types::ValueRef;
use rusqlite::{Connection, Statement, Transaction, TransactionBehavior, params};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::Result;
use crate::child::{Yield, usage};
use crate::dataset::{Keys, Person, Row, TABLE, schema};
use rollcall_core::model::{Precision, Timestamp};
use rollcall_sqlite::prepare_writer;
use rollcall_sqlite::statements::{self, Statements};

/// A buffer is released once it has this many bytes.
const LOT_BYTES: usize = 64 * 1024;

/// What is written, by which person and in what portions.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Writing {
    /// The first of the people who write
    #[arg(long)]
    first: u64,
    /// How many of them
    #[arg(long)]
    people: u64,
    /// Rows of each
    #[arg(long)]
    rows: u64,
    /// Rows of one person under one version
    #[arg(long)]
    batch: u64,
    /// Batches in one transaction
    #[arg(long)]
    group: usize,
    #[arg(long)]
    keys: Keys,
}

/// A connection as the engine makes it: what the pragmas cost, they cost both.
fn open(path: &Path) -> Result<Connection> {
    let conn = Connection::open(path)?;
    conn.busy_timeout(Duration::from_secs(5))?;
    conn.set_prepared_statement_cache_capacity(64);
    conn.pragma_update(None, "foreign_keys", true)?;
    conn.pragma_update(None, "trusted_schema", false)?;
    conn.pragma_update(None, "cell_size_check", true)?;
    conn.pragma_update(None, "mmap_size", 0)?;
    Ok(conn)
}

/// The engine's statements over the one table of the benchmark.
struct OfTable {
    id: i64,
    put: String,
    values: String,
}

impl OfTable {
    fn new(conn: &Connection) -> Result<Self> {
        let schema = schema()?;
        let table = schema.table(TABLE).ok_or("the table is not declared")?;
        let id = table_id(conn)?;
        let all = Statements::new(&schema, &vec![id; schema.tables().len()]);
        let own = all.of(table.id);
        Ok(Self { id, put: own.put.clone(), values: own.values.clone() })
    }
}

fn table_id(conn: &Connection) -> Result<i64> {
    Ok(conn.query_row("SELECT id FROM rollcall_table WHERE name = ?1", [TABLE], |row| row.get(0))?)
}

/// A short name for how tables lie in a database: another layout has another.
pub fn layout(path: &Path) -> Result<String> {
    let conn = Connection::open(path)?;
    let mut listed = conn.prepare("SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY name")?;
    let mut hash = Sha256::new();
    for sql in listed.query_map([], |row| row.get::<_, String>(0))? {
        hash.update(sql?);
    }
    Ok(hash.finalize().iter().take(4).map(|byte| format!("{byte:02x}")).collect())
}

/// A person in the database, and the state of its writes.
struct Writer {
    person: Person,
    owner: i64,
    device: i64,
    version: i64,
    written: u64,
}

/// Rows of one person, ready to be bound.
struct Batch {
    /// The writer's index.
    writer: usize,
    rows: Vec<Ready>,
}

struct Ready {
    row: Row,
    price: String,
    due: String,
}

/// Writes the rows, all people in turn. Each piece of work is one transaction.
pub fn write(path: &Path, writing: Writing) -> Result<Yield> {
    let mut conn = open(path)?;
    prepare_writer(&conn)?;
    let table = OfTable::new(&conn)?;
    let mut writers = (writing.first..writing.first + writing.people)
        .map(|number| Writer::new(&conn, Person(number)))
        .collect::<Result<Vec<_>>>()?;
    let (mut seconds, mut rows, mut next) = (Vec::new(), 0, 0);
    loop {
        let mut group = Vec::new();
        while group.len() < writing.group {
            let at = next % writers.len();
            if writers[at].written >= writing.rows {
                break; // all end in the same round
            }
            group.push(Batch::next(at, &mut writers[at], &writing));
            next += 1;
        }
        if group.is_empty() {
            break;
        }
        let began = Instant::now();
        let transaction = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
        for batch in &group {
            put(&transaction, &table, &mut writers[batch.writer], batch)?;
        }
        transaction.commit()?;
        seconds.push(began.elapsed().as_secs_f64());
        rows += group.iter().map(|batch| batch.rows.len() as u64).sum::<u64>();
    }
    Ok(Yield { seconds, rows, bytes: 0, usage: usage("self") })
}

impl Writer {
    fn new(conn: &Connection, person: Person) -> Result<Self> {
        let (owner, device) = (person.owner(), person.device(0));
        let seed = [7_u8; 16];
        Ok(Self {
            person,
            owner: conn
                .query_row(statements::ADD_OWNER, params![owner.0.as_bytes(), 1, seed], |row| row.get(0))?,
            device: conn.query_row(statements::ADD_DEVICE, [device.0.as_bytes()], |row| row.get(0))?,
            version: 1,
            written: 0,
        })
    }
}

impl Batch {
    fn next(place: usize, writer: &mut Writer, writing: &Writing) -> Self {
        let numbers = writer.written..writing.rows.min(writer.written + writing.batch);
        writer.written = numbers.end;
        let mut rows: Vec<Ready> = numbers
            .map(|number| Row::new(writer.person, writing.keys, number, 0))
            .map(|row| Ready { price: row.price_text(), due: row.due_text(), row })
            .collect();
        rows.sort_unstable_by_key(|ready| ready.row.key); // as the server writes them
        Self { writer: place, rows }
    }
}

fn put(transaction: &Transaction<'_>, table: &OfTable, writer: &mut Writer, batch: &Batch) -> Result<()> {
    let Writer { owner, device, .. } = *writer;
    writer.version += 1;
    let version = writer.version;
    let mut entry = transaction.prepare_cached(statements::PUT_ENTRY)?;
    let mut put = transaction.prepare_cached(&table.put)?;
    for Ready { row, price, due } in &batch.rows {
        let key = &row.key.0.as_bytes()[..];
        let at = row.last_update.ms();
        let (no_bytes, no_number) = (None::<&[u8]>, None::<i64>);
        entry.execute(params![
            owner, table.id, key, version, version, at, false, device, device, no_bytes, no_bytes, no_number,
            at, no_number, no_number
        ])?;
        put.execute(params![
            owner,
            key,
            row.title,
            row.body,
            row.done,
            row.position,
            price,
            due,
            row.made.ms()
        ])?;
    }
    let written = writer.written.cast_signed();
    transaction.prepare_cached(statements::DATE)?.execute(params![owner, 20_000, version - 1])?;
    // The root is a sum of hashes for the server; here it is any number.
    let root = version.wrapping_mul(0x1234_5678_9abc_def1);
    transaction.prepare_cached(statements::PUT_DIGEST)?.execute(params![owner, table.id, written, root])?;
    let mut advance = transaction.prepare_cached(statements::ADVANCE_OWNER)?;
    let none = None::<i64>;
    advance.execute(params![
        owner,
        version,
        1,
        written,
        written * 200,
        0,
        0,
        0,
        0,
        version,
        0,
        false,
        none,
        none
    ])?;
    Ok(())
}

/// Number of an owner, and its version.
fn owner(conn: &Connection, person: Person) -> Result<(i64, i64)> {
    let id = person.owner();
    Ok(conn.query_row(statements::OWNER, [id.0.as_bytes()], |row| Ok((row.get(0)?, row.get(1)?)))?)
}

/// Reads a manifest and serialises it like the server. Each piece of work is one whole manifest.
pub fn manifest(path: &Path, person: Person, times: u64) -> Result<Yield> {
    let mut conn = open(path)?;
    conn.pragma_update(None, "query_only", true)?;
    let table = table_id(&conn)?;
    let mut result = Yield { seconds: Vec::new(), rows: 0, bytes: 0, usage: usage("self") };
    let mut lot = Vec::with_capacity(2 * LOT_BYTES);
    for _ in 0..times {
        let began = Instant::now();
        let transaction = conn.transaction()?;
        let (owner, _) = owner(&transaction, person)?;
        let mut statement = transaction.prepare_cached(statements::MANIFEST)?;
        let mut rows = statement.query(params![owner, table, &[][..] as &[u8], i64::MAX])?;
        while let Some(row) = rows.next()? {
            lot.extend_from_slice(b"{\"id\":\"");
            write_key(&mut lot, row.get_ref(0)?)?;
            lot.extend_from_slice(b"\",\"last_update\":\"");
            write_time(&mut lot, row.get(1)?);
            lot.extend_from_slice(b"\"},");
            result.rows += 1;
            give_away(&mut lot, &mut result, LOT_BYTES);
        }
        give_away(&mut lot, &mut result, 0);
        result.seconds.push(began.elapsed().as_secs_f64());
    }
    result.usage = usage("self");
    Ok(result)
}

/// Reads what changed since a version, with the rows, and spells it as the server's lines. Each piece of work is
/// the whole feed.
pub fn changes(path: &Path, person: Person, since: u64, times: u64) -> Result<Yield> {
    let mut conn = open(path)?;
    conn.pragma_update(None, "query_only", true)?;
    let table = OfTable::new(&conn)?;
    let mut result = Yield { seconds: Vec::new(), rows: 0, bytes: 0, usage: usage("self") };
    let mut lot = Vec::with_capacity(2 * LOT_BYTES);
    for _ in 0..times {
        let began = Instant::now();
        let transaction = conn.transaction()?;
        let (owner, version) = owner(&transaction, person)?;
        let mut statement = transaction.prepare_cached(statements::CHANGES)?;
        let mut values = transaction.prepare_cached(&table.values)?;
        let after = since.cast_signed();
        let mut rows = statement.query(params![owner, after, i64::MAX, &[][..] as &[u8], version])?;
        while let Some(row) = rows.next()? {
            let verb = if row.get::<_, i64>(1)? > after { "add" } else { "update" };
            lot.extend_from_slice(b"{\"op\":\"");
            lot.extend_from_slice(verb.as_bytes());
            lot.extend_from_slice(b"\",\"table\":\"notes\",\"row\":{\"id\":\"");
            let key = row.get_ref("key")?;
            write_key(&mut lot, key)?;
            write_values(&mut lot, &mut values, owner, key.as_blob()?)?;
            lot.extend_from_slice(b",\"last_update\":\"");
            write_time(&mut lot, row.get(2)?);
            lot.extend_from_slice(b"\"}}\n");
            result.rows += 1;
            give_away(&mut lot, &mut result, LOT_BYTES);
        }
        give_away(&mut lot, &mut result, 0);
        result.seconds.push(began.elapsed().as_secs_f64());
    }
    result.usage = usage("self");
    Ok(result)
}

/// Where a server would send what it has.
fn give_away(lot: &mut Vec<u8>, result: &mut Yield, when: usize) {
    if lot.len() >= when {
        result.bytes += std::hint::black_box(&lot).len() as u64;
        lot.clear();
    }
}

fn write_key(lot: &mut Vec<u8>, key: ValueRef<'_>) -> Result<()> {
    let mut text = [0; uuid::fmt::Hyphenated::LENGTH];
    let key = Uuid::from_slice(key.as_blob()?)?;
    lot.extend_from_slice(key.hyphenated().encode_lower(&mut text).as_bytes());
    Ok(())
}

fn write_time(lot: &mut Vec<u8>, ms: i64) {
    lot.extend_from_slice(Timestamp::from_ms(ms).format(Precision::Milliseconds).as_str().as_bytes());
}

/// Begins after the key, within its quotes.
fn write_values(lot: &mut Vec<u8>, values: &mut Statement<'_>, owner: i64, key: &[u8]) -> Result<()> {
    let mut rows = values.query(params![owner, key])?;
    let row = rows.next()?.ok_or("a row is gone")?;
    lot.extend_from_slice(b"\",\"title\":");
    serde_json::to_writer(&mut *lot, row.get_ref(1)?.as_str()?)?;
    lot.extend_from_slice(b",\"body\":");
    serde_json::to_writer(&mut *lot, row.get_ref(2)?.as_str()?)?;
    lot.extend_from_slice(b",\"done\":");
    serde_json::to_writer(&mut *lot, &row.get::<_, bool>(3)?)?;
    lot.extend_from_slice(b",\"position\":");
    serde_json::to_writer(&mut *lot, &row.get::<_, i64>(4)?)?;
    lot.extend_from_slice(b",\"price\":");
    serde_json::to_writer(&mut *lot, row.get_ref(5)?.as_str()?)?;
    lot.extend_from_slice(b",\"due\":");
    serde_json::to_writer(&mut *lot, row.get_ref(6)?.as_str()?)?;
    lot.extend_from_slice(b",\"made\":\"");
    write_time(lot, row.get(7)?);
    lot.push(b'"');
    Ok(())
}

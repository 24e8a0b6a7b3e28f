//! A bare loop over PostgreSQL; the documentation of [`super`] lists what it leaves out.

use std::sync::Barrier;
use std::time::Instant;

use jiff::civil::Date;
use postgres::types::{ToSql, Type};
use postgres::{Client, Statement};
use rust_decimal::Decimal;
use uuid::Uuid;

use crate::Result;
use crate::child::{Yield, usage};
use crate::dataset::{Keys, Person, Row, TABLE, schema};
use rollcall_postgres::Address;
use rollcall_postgres::planned::PAIRED_MAX;

use super::spoken::Spoken;

/// Who syncs, how often, and over how many connections.
#[derive(Debug, clap::Args)]
pub struct Syncing {
    #[arg(long, env = "ROLLCALL_DATABASE", hide_env_values = true)]
    database: Address,
    /// The first of the people
    #[arg(long)]
    first: u64,
    /// How many of them
    #[arg(long)]
    people: u64,
    /// Syncs of each
    #[arg(long)]
    rounds: u64,
    /// New rows of each sync
    #[arg(long)]
    batch: u64,
    #[arg(long)]
    connections: u64,
}

/// Syncs everybody in turn, over all connections at once. Each piece of work is one sync; the time is that of the
/// whole, by each of them.
pub fn sync(syncing: &Syncing) -> Result<Yield> {
    let schema = schema()?;
    let table = schema.table(TABLE).ok_or("the table is not declared")?;
    let mut client = Spoken::connect(&syncing.database)?;
    let id = client.query_one("SELECT id FROM rollcall_table WHERE name = $1", &[&TABLE])?.get(0);
    let spoken = Spoken::of(&schema, table.id, id, syncing.batch as usize);
    let connections = syncing.connections.min(syncing.people);
    let ready = Barrier::new(connections as usize + 1);
    let seconds = std::thread::scope(|scope| {
        let talkers: Vec<_> = (0..connections)
            .map(|place| {
                let (ready, spoken) = (&ready, &spoken);
                scope.spawn(move || {
                    let people = (syncing.first + place..syncing.first + syncing.people)
                        .step_by(connections as usize)
                        .map(Person);
                    let talker = Talker::new(&syncing.database, spoken, id, people);
                    // All wait for all, well prepared or not.
                    ready.wait();
                    talker.and_then(|mut talker| talker.talk(syncing))
                })
            })
            .collect();
        ready.wait();
        let began = Instant::now();
        let ended: Vec<_> = talkers.into_iter().map(|talker| talker.join()).collect();
        let seconds = began.elapsed().as_secs_f64();
        ended.into_iter().try_for_each(|ended| ended.map_err(|_| "a connection's thread broke")?)?;
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>(seconds)
    })?;
    let syncs = syncing.people * syncing.rounds;
    Ok(Yield {
        seconds: vec![seconds / syncs as f64; syncs as usize],
        rows: syncs * syncing.batch,
        bytes: 0,
        usage: usage("self"),
    })
}

/// One connection, and the owners that it syncs.
struct Talker<'a> {
    client: Client,
    spoken: &'a Spoken,
    says: Prepared,
    table: i32,
    owners: Vec<Syncer>,
}

struct Syncer {
    person: Person,
    owner: Uuid,
    version: i64,
    /// What the other device has just written.
    others: Vec<Uuid>,
}

struct Prepared {
    now: Statement,
    lease: Statement,
    lock: Statement,
    load: Statement,
    digests: Statement,
    put_both: Statement,
    put_entries: Statement,
    put_rows: Statement,
    date: Statement,
    advance: Statement,
    changes: Statement,
    values: Statement,
}

/// A row's values as they are bound.
struct Ready {
    key: Uuid,
    row: Row,
    price: Decimal,
    due: Date,
    made: jiff::Timestamp,
}

type Bound<'b> = Vec<&'b (dyn ToSql + Sync)>;

impl<'a> Talker<'a> {
    fn new(
        address: &Address,
        spoken: &'a Spoken,
        table: i32,
        people: impl Iterator<Item = Person>,
    ) -> Result<Self> {
        let mut client = Spoken::connect(address)?;
        let mut prepare = |sql: &str| client.prepare(sql);
        let says = Prepared {
            now: prepare(&spoken.now)?,
            lease: prepare(&spoken.lease)?,
            lock: prepare(&spoken.lock)?,
            load: prepare(&spoken.load)?,
            digests: prepare(&spoken.digests)?,
            put_both: prepare(&spoken.put_both)?,
            put_entries: prepare(&spoken.put_entries)?,
            put_rows: prepare(&spoken.put_rows)?,
            date: prepare(&spoken.date)?,
            advance: prepare(&spoken.advance)?,
            changes: prepare(&spoken.changes)?,
            values: prepare(&spoken.values)?,
        };
        let mut owners = Vec::new();
        for person in people {
            let owner = person.owner().0;
            let made: [(&(dyn ToSql + Sync), Type); 3] =
                [(&owner, Type::UUID), (&1_i64, Type::INT8), (&&[7_u8; 16][..], Type::BYTEA)];
            client.query_typed(&spoken.add_owner, &made)?;
            owners.push(Syncer { person, owner, version: 1, others: Vec::new() });
        }
        Ok(Self { client, spoken, says, table, owners })
    }

    fn talk(&mut self, syncing: &Syncing) -> Result<()> {
        for round in 0..syncing.rounds {
            for place in 0..self.owners.len() {
                self.sync(place, round, syncing.batch)?;
            }
        }
        Ok(())
    }

    /// What [`Spoken`] lists, in its order.
    fn sync(&mut self, place: usize, round: u64, batch: u64) -> Result<()> {
        let Self { client, spoken, says, table, owners } = self;
        let Syncer { person, owner, version, others } = &mut owners[place];
        let rows = ready(*person, round, batch)?;
        let keys: Vec<Uuid> = rows.iter().map(|ready| ready.key).collect();
        let (device, table, owner) = (person.device(round % 2).0, *table, *owner);
        let (before, after) = (*version, *version + 1);

        client.query_one(&says.now, &[])?;
        client.query(&says.lease, &[&owner])?;
        client.batch_execute(&spoken.begin)?;
        client.query(&says.lock, &[&owner])?;
        client.query(&says.load, &[&owner, &table, &keys])?;
        client.query(&says.digests, &[&owner])?;
        let times: Vec<i64> = rows.iter().map(|ready| ready.row.last_update.ms()).collect();
        let (no_bytes, no_number) = (None::<&[u8]>, None::<i64>);
        let mut bound: Bound<'_> = vec![&owner, &table];
        for (ready, at) in rows.iter().zip(&times) {
            bound.extend([&ready.key as &(dyn ToSql + Sync), &after, &after, at, &false, &device, &device]);
            bound.extend([&no_bytes as &(dyn ToSql + Sync), &no_bytes, &no_number, at, &no_number, &before]);
        }
        let is_paired = rows.len() <= PAIRED_MAX;
        if !is_paired {
            client.execute(&says.put_entries, &bound)?;
            bound = vec![&owner];
        }
        for Ready { key, row, price, due, made } in &rows {
            bound.extend([key as &(dyn ToSql + Sync), &row.title, &row.body, &row.done, &row.position]);
            bound.extend([price as &(dyn ToSql + Sync), due, made]);
        }
        client.execute(if is_paired { &says.put_both } else { &says.put_rows }, &bound)?;
        if round == 0 {
            client.execute(&says.date, &[&owner, &20_000_i64, &before])?;
        }
        let held = ((round + 1) * batch).cast_signed();
        let root = after.wrapping_mul(0x1234_5678_9abc_def1);
        let bytes = held * 200;
        let (none, horizon, day) = (&0_i64, &1_i64, Some(20_000_i64));
        let mut bound: Bound<'_> =
            vec![&owner, horizon, none, none, none, none, &after, &before, &no_number, &after];
        bound.extend([&held as &(dyn ToSql + Sync), &bytes, &device, &day, none, &false, &no_number]);
        bound.extend([&table as &(dyn ToSql + Sync), &held, &root]);
        client.execute(&says.advance, &bound)?;
        let since = (before - 1).max(1);
        client.query(&says.changes, &[&owner, &since, &i32::MAX, &Uuid::nil(), &after, &1_000_i64])?;
        if !others.is_empty() {
            client.query(&says.values, &[&owner, others])?;
        }
        client.batch_execute(&spoken.commit)?;
        (*version, *others) = (after, keys);
        Ok(())
    }
}

fn ready(person: Person, round: u64, batch: u64) -> Result<Vec<Ready>> {
    let numbers = round * batch..(round + 1) * batch;
    let mut rows = numbers
        .map(|number| {
            let row = Row::new(person, Keys::V4, number, 0);
            let made = jiff::Timestamp::from_millisecond(row.made.ms())?;
            let (price, due) = (row.price_text().parse()?, row.due_text().parse()?);
            Ok(Ready { key: row.key.0, row, price, due, made })
        })
        .collect::<Result<Vec<_>>>()?;
    rows.sort_unstable_by_key(|ready| ready.key); // as the server writes them
    Ok(rows)
}

//! a: bulk upload. e: small syncs of many owners at once.

use bytes::Bytes;

use super::{commits, line};
use crate::Result;
use crate::child::{Listening, Yield, yardstick};
use crate::dataset::{Keys, Person, Row, TABLE};
use crate::driver::{self, Answer, Connection, talk_at_once};
use crate::lab::{Lab, Meter};
use crate::report::{Line, Sample};
use crate::seed;

/// The first of those who write; far from those of the large database.
const FIRST: u64 = 10_000;
const UPLOAD_ROWS: u64 = 500;

/// Devices that sync at once, rows that each pushes.
pub(super) const SMALL_OWNERS: u64 = 64;
pub(super) const SMALL_ROWS: u64 = 5;

/// a: rows in requests of 500, from one device and from four of different owners.
pub async fn uploads(lab: &mut Lab) -> Result<Vec<Line>> {
    let mut lines = Vec::new();
    for (keys, spelt) in [(Keys::V7, "v7"), (Keys::V4, "v4")] {
        for devices in [1, 4] {
            let plural = if devices == 1 { "" } else { "s" };
            let variant = format!("upload, {spelt} keys, {devices} device{plural}");
            let mut samples = Vec::new();
            for _ in 0..lab.runs() {
                lab.progress.begin(&format!("a {variant}"));
                samples.push(upload(lab, keys, devices).await?);
                lab.progress.step();
            }
            lines.push(line('a', &variant, "rows", "bare loop, 500 rows a transaction", &samples));
        }
    }
    Ok(lines)
}

async fn upload(lab: &Lab, keys: Keys, devices: u64) -> Result<Sample> {
    let rows = lab.sizes.medium().1 / devices;
    let people: Vec<Person> = (FIRST..FIRST + devices).map(Person).collect();
    let before = bare(lab, &people, rows, UPLOAD_ROWS, 1, keys).await?;
    let database = lab.fresh("upload");
    seed::empty(&database, &people)?;
    let server = lab.server(&database).await?;
    let each: Vec<_> = people
        .iter()
        .map(|person| {
            let mut bodies = (0..rows.div_ceil(UPLOAD_ROWS))
                .map(|batch| {
                    let numbers = batch * UPLOAD_ROWS..rows.min((batch + 1) * UPLOAD_ROWS);
                    let mut body = b"{\"add\":".to_vec();
                    write_rows(&mut body, *person, keys, numbers);
                    body.push(b'}');
                    driver::post("/synchronise", &person.token(0), &body)
                })
                .collect::<Vec<Bytes>>()
                .into_iter();
            move |_: Option<&Answer>| bodies.next()
        })
        .collect();
    let mut sample = writing(&server, each).await?;
    sample.rows = rows * devices;
    sample.speed = sample.rows as f64 / sample.seconds;
    holds(&server, people[0], rows).await?;
    server.end().await?;
    lab.discard(&database);

    let after = bare(lab, &people, rows, UPLOAD_ROWS, 1, keys).await?;
    sample.yardstick = 1.0 / seconds_a_piece(&before, &after, sample.rows);
    sample.beside(&after);
    Ok(sample)
}

/// e: 64 owners at once, two devices each in turn; every call pushes 5 new rows and pulls the other's 5.
pub async fn small_syncs(lab: &mut Lab) -> Result<Vec<Line>> {
    let variant = "small syncs, 64 owners, 5 rows";
    let mut samples = Vec::new();
    for _ in 0..lab.runs() {
        lab.progress.begin(&format!("e {variant}"));
        samples.push(small(lab).await?);
        lab.progress.step();
    }
    let beside = "bare loop in the server's group size (1 where it does not tell)";
    Ok(vec![line('e', variant, "syncs", beside, &samples)])
}

async fn small(lab: &Lab) -> Result<Sample> {
    let rounds = lab.times(100, 4);
    let rows = rounds * SMALL_ROWS;
    let people: Vec<Person> = (FIRST..FIRST + SMALL_OWNERS).map(Person).collect();
    let all_before = bare(lab, &people, rows, SMALL_ROWS, SMALL_OWNERS, Keys::V4).await?;
    let one_before = bare(lab, &people, rows, SMALL_ROWS, 1, Keys::V4).await?;
    let database = lab.fresh("small");
    seed::empty(&database, &people)?;
    let server = lab.server(&database).await?;
    let each: Vec<_> = people.iter().map(|person| small_talk(*person, rounds)).collect();
    let mut sample = writing(&server, each).await?;
    let syncs = rounds * SMALL_OWNERS;
    sample.rows = syncs * SMALL_ROWS;
    sample.speed = syncs as f64 / sample.seconds;
    holds(&server, people[0], rows).await?;
    server.end().await?;
    lab.discard(&database);

    let group = sample.commits.map_or(1, |commits| (1.0 / commits.max(1e-3)).round().max(1.0) as u64);
    let one_after = bare(lab, &people, rows, SMALL_ROWS, 1, Keys::V4).await?;
    let all_after = bare(lab, &people, rows, SMALL_ROWS, SMALL_OWNERS, Keys::V4).await?;
    let alone = 1.0 / seconds_a_piece(&one_before, &one_after, syncs);
    let together = 1.0 / seconds_a_piece(&all_before, &all_after, syncs);
    sample.yardstick = match group {
        1 => alone,
        SMALL_OWNERS => together,
        _ => {
            let same = bare(lab, &people, rows, SMALL_ROWS, group, Keys::V4).await?;
            1.0 / seconds_a_piece(&same, &same, syncs)
        }
    };
    sample.beside(&one_after);
    sample.extra.insert("group_of_yardstick", group as f64);
    sample.extra.insert("ratio_to_groups_of_1", sample.speed / alone);
    sample.extra.insert("ratio_to_groups_of_64", sample.speed / together);
    Ok(sample)
}

/// A yardstick runs before and after the server: a disk that others use is not the same for long.
pub(super) fn seconds_a_piece(before: &Yield, after: &Yield, pieces: u64) -> f64 {
    let seconds = before.seconds.iter().chain(&after.seconds).sum::<f64>();
    seconds / (2 * pieces) as f64
}

/// The requests of one owner's two devices, in turn.
pub(super) fn small_talk(
    person: Person,
    rounds: u64,
) -> impl FnMut(Option<&Answer>) -> Option<Bytes> + Send + 'static {
    let tokens = [person.token(0), person.token(1)];
    let rows: Vec<Vec<u8>> = (0..rounds)
        .map(|round| {
            let mut rows = Vec::new();
            write_rows(&mut rows, person, Keys::V4, round * SMALL_ROWS..(round + 1) * SMALL_ROWS);
            rows
        })
        .collect();
    // The first version of an owner that the server has not seen.
    let mut bases = [rollcall_core::model::Version::first(0).0; 2];
    let mut round = 0;
    move |before| {
        if let Some(version) = before.and_then(|answer| answer.version) {
            bases[(round + 1) % 2] = version; // of the device that spoke last
        }
        let rows = rows.get(round)?;
        let device = round % 2;
        round += 1;
        let mut body = format!("{{\"base\":{},\"pull\":true,\"add\":", bases[device]).into_bytes();
        body.extend_from_slice(rows);
        body.push(b'}');
        Some(driver::post("/synchronise", &tokens[device], &body))
    }
}

pub(super) fn write_rows(body: &mut Vec<u8>, person: Person, keys: Keys, numbers: std::ops::Range<u64>) {
    body.extend_from_slice(format!("{{\"{TABLE}\":[").as_bytes());
    let first = numbers.start;
    for number in numbers {
        if number > first {
            body.push(b',');
        }
        Row::new(person, keys, number, 0).write_json(body);
    }
    body.extend_from_slice(b"]}");
}

async fn writing<N>(server: &Listening, each: Vec<N>) -> Result<Sample>
where
    N: FnMut(Option<&Answer>) -> Option<Bytes> + Send + 'static,
{
    let before = commits(server).await?;
    let meter = Meter::begin(server);
    let (talk, took) = talk_at_once(server.address, 200, each).await?;
    let mut sample = meter.end(server);
    sample.seconds = took.as_secs_f64();
    sample.heard(&talk);
    let after = commits(server).await?;
    sample.commits = before.zip(after).map(|(before, after)| (after - before) / sample.requests as f64);
    Ok(sample)
}

/// Fast and wrong counts for nothing.
pub(super) async fn holds(server: &Listening, person: Person, rows: u64) -> Result<()> {
    let mut connection = Connection::open(server.address).await?;
    let result = connection.good(&driver::get("/digests", &person.token(0), &[]), 200, true).await?;
    let result: serde_json::Value = serde_json::from_slice(&result.body)?;
    if result["tables"][TABLE]["count"] != rows {
        return Err(format!("{rows} rows were sent, and the server holds {result}").into());
    }
    Ok(())
}

async fn bare(lab: &Lab, people: &[Person], rows: u64, batch: u64, group: u64, keys: Keys) -> Result<Yield> {
    let database = lab.fresh("bare");
    seed::empty(&database, people)?;
    let keys = if keys == Keys::V7 { "v7" } else { "v4" };
    let args = vec![
        "write".to_owned(),
        format!("--database={}", database.display()),
        format!("--first={}", people.first().map_or(0, |person| person.0)),
        format!("--people={}", people.len()),
        format!("--rows={rows}"),
        format!("--batch={batch}"),
        format!("--group={group}"),
        format!("--keys={keys}"),
    ];
    let result = yardstick(args, None).await?;
    lab.discard(&database);
    let sent = people.len() as u64 * rows;
    if result.rows != sent {
        return Err(format!("the bare loop wrote {} rows of {sent}", result.rows).into());
    }
    Ok(result)
}

//! b: the whole manifest. d: a few changes. f: first sync.

use std::path::Path;
use std::time::Instant;

use super::{line, same_bytes, version};
use crate::Result;
use crate::child::{Yield, yardstick};
use crate::dataset::{Keys, Person, Row, TABLE};
use crate::driver::{self, Connection, talk};
use crate::lab::{Lab, Meter};
use crate::report::{Line, Sample, median};

/// Rows that change between two fetches.
const EDITS: u64 = 10;

/// b: page by page on one connection, for owners of three sizes.
pub async fn roll_calls(lab: &mut Lab) -> Result<Vec<Line>> {
    let database = lab.large().await?;
    let mut lines = Vec::new();
    let times = [lab.times(40, 3), lab.times(10, 2), lab.times(2, 1)];
    for ((person, rows), times) in lab.sizes.people().into_iter().skip(1).zip(times) {
        let variant = format!("roll call of {rows}");
        let mut samples = Vec::new();
        for _ in 0..lab.runs() {
            lab.progress.begin(&format!("b {variant}"));
            samples.push(roll_call(lab, &database, person, rows, times).await?);
            lab.progress.step();
        }
        let beside = "bare scan, plus sending as many fixed bytes";
        lines.push(line('b', &variant, "roll calls", beside, &samples));
    }
    Ok(lines)
}

async fn roll_call(lab: &Lab, database: &Path, person: Person, rows: u64, times: u64) -> Result<Sample> {
    let server = lab.server(database).await?;
    version(&server, person).await?; // it has responded once
    let token = person.token(0);
    let mut connection = Connection::open(server.address).await?;
    let (mut pages, mut body_bytes, mut latencies) = (Vec::new(), 0, Vec::new());
    let meter = Meter::begin(&server);
    let mut bytes_down = 0;
    for _ in 0..times {
        pages.clear();
        let began = Instant::now();
        let mut next = Some("/fetch?lock=false".to_owned());
        while let Some(path) = next {
            let answer = connection.good(&driver::get(&path, &token, &[]), 200, false).await?;
            pages.push(answer.body_bytes);
            body_bytes += answer.body_bytes;
            bytes_down += answer.bytes;
            next = answer.next;
        }
        latencies.push(began.elapsed().as_secs_f64());
    }
    let mut sample = meter.end(&server);
    server.end().await?;
    sample.speed = 1.0 / median(&latencies);
    (sample.latencies, sample.requests) = (latencies, times);
    (sample.rows, sample.bytes_down) = (rows * times, bytes_down);

    let sending = send_fixed(lab, &pages, times).await?;
    let bare = bare(database, person, "manifest", times, None).await?;
    if bare.rows != rows * times {
        return Err(format!("the bare scan saw {} rows of {}", bare.rows, rows * times).into());
    }
    same_bytes(body_bytes, bare.bytes)?;
    let scanning = median(&bare.seconds);
    sample.yardstick = 1.0 / (scanning + sending);
    sample.beside(&bare);
    sample.extra.insert("scan_ms", scanning * 1e3);
    sample.extra.insert("send_ms", sending * 1e3);
    sample
        .extra
        .insert("rss_growth_mib", sample.rss_peak.saturating_sub(sample.rss_start) as f64 / 1_048_576.0);
    Ok(sample)
}

/// How long it takes to get ready bytes in the same pieces, s.
async fn send_fixed(lab: &Lab, pages: &[u64], times: u64) -> Result<f64> {
    let fixed = lab.fixed().await?;
    let mut connection = Connection::open(fixed.address).await?;
    let mut latencies = Vec::new();
    for _ in 0..=times {
        let began = Instant::now();
        for bytes in pages {
            connection.good(&driver::get(&format!("/bytes/{bytes}"), "none", &[]), 200, false).await?;
        }
        latencies.push(began.elapsed().as_secs_f64());
    }
    fixed.end().await?;
    Ok(median(&latencies[1..])) // the first one made the bytes
}

/// f: every row as lines, on one connection.
pub async fn first_sync(lab: &mut Lab) -> Result<Vec<Line>> {
    let database = lab.large().await?;
    let (person, rows) = lab.sizes.medium();
    let variant = format!("first sync of {rows}");
    let mut samples = Vec::new();
    for _ in 0..lab.runs() {
        lab.progress.begin(&format!("f {variant}"));
        samples.push(first(lab, &database, person, rows).await?);
        lab.progress.step();
    }
    Ok(vec![line('f', &variant, "rows", "bare scan of the same bytes", &samples)])
}

async fn first(lab: &Lab, database: &Path, person: Person, rows: u64) -> Result<Sample> {
    let times = lab.times(3, 1);
    let server = lab.server(database).await?;
    version(&server, person).await?;
    let connection = Connection::open(server.address).await?;
    let asked = driver::get("/changes", &person.token(0), &["accept: application/x-ndjson".to_owned()]);
    let mut left = times;
    let meter = Meter::begin(&server);
    let result = talk(connection, 200, move |_| {
        left = left.checked_sub(1)?;
        Some(asked.clone())
    })
    .await?;
    let mut sample = meter.end(&server);
    server.end().await?;
    sample.heard(&result);
    sample.rows = rows * times;
    sample.speed = rows as f64 / median(&sample.latencies);

    let bare = bare(database, person, "changes", times, Some(0)).await?;
    same_bytes(sample.bytes_down, bare.bytes)?;
    sample.yardstick = rows as f64 / median(&bare.seconds);
    sample.beside(&bare);
    Ok(sample)
}

/// d: ten rows changed, fetched again and again on one connection; for owners of four sizes.
pub async fn deltas(lab: &mut Lab) -> Result<Vec<Line>> {
    let database = lab.large().await?;
    let mut lines: Vec<Line> = Vec::new();
    for (person, rows) in lab.sizes.people() {
        let variant = format!("10 changes in {rows}");
        let mut samples = Vec::new();
        for _ in 0..lab.runs() {
            lab.progress.begin(&format!("d {variant}"));
            samples.push(delta(lab, &database, person, rows).await?);
            lab.progress.step();
        }
        let mut line = line('d', &variant, "requests", "bare read of the same rows", &samples);
        if let Some(smallest) = lines.first() {
            line.extra.insert("times_the_smallest", line.median_ms / smallest.median_ms);
        }
        lines.push(line);
    }
    Ok(lines)
}

async fn delta(lab: &Lab, database: &Path, person: Person, rows: u64) -> Result<Sample> {
    let times = lab.times(1_000, 20);
    let server = lab.server(database).await?;
    let since = version(&server, person).await?;
    let mut connection = Connection::open(server.address).await?;
    edit(&mut connection, person, rows, since).await?;
    let asked = driver::get(&format!("/changes?since={since}"), &person.token(1), &[]);
    let seen = connection.good(&asked, 200, true).await?;
    let result = String::from_utf8_lossy(&seen.body).matches("\"last_update\"").count() as u64;
    if result != EDITS {
        return Err(format!("{EDITS} rows were changed, and {result} are told").into());
    }
    let mut left = times;
    let meter = Meter::begin(&server);
    let heard = talk(connection, 200, move |_| {
        left = left.checked_sub(1)?;
        Some(asked.clone())
    })
    .await?;
    let mut sample = meter.end(&server);
    sample.heard(&heard);
    sample.rows = EDITS * times;
    sample.speed = 1.0 / median(&sample.latencies);
    server.end().await?;

    sample.extra.insert("send_ms", send_fixed(lab, &[seen.body_bytes], times).await? * 1e3);
    let bare = bare(database, person, "changes", times, Some(since)).await?;
    if bare.rows != EDITS * times {
        return Err(format!("the bare loop read {} rows of {}", bare.rows, EDITS * times).into());
    }
    sample.yardstick = 1.0 / median(&bare.seconds);
    sample.beside(&bare);
    Ok(sample)
}

/// Changes ten rows, spread over all that the person has.
async fn edit(connection: &mut Connection, person: Person, rows: u64, since: u64) -> Result<()> {
    let mut body = format!("{{\"base\":{since},\"update\":{{\"{TABLE}\":[").into_bytes();
    for edit in 0..EDITS {
        if edit > 0 {
            body.push(b',');
        }
        // No two versions are alike, so neither are two editions, and a later one is later.
        Row::new(person, Keys::V7, edit * (rows / EDITS), since).write_json(&mut body);
    }
    body.extend_from_slice(b"]}}");
    connection.good(&driver::post("/synchronise", &person.token(0), &body), 200, false).await?;
    Ok(())
}

async fn bare(database: &Path, person: Person, work: &str, times: u64, since: Option<u64>) -> Result<Yield> {
    let mut args = vec![
        work.to_owned(),
        format!("--database={}", database.display()),
        format!("--person={}", person.0),
        format!("--times={times}"),
    ];
    args.extend(since.map(|since| format!("--since={since}")));
    yardstick(args, None).await
}

//! c: nothing new. g: cold start.

use std::time::Instant;

use bytes::Bytes;

use super::{line, version};
use crate::Result;
use crate::dataset::Person;
use crate::driver::{self, Answer, Connection, talk_at_once};
use crate::lab::{Lab, Meter};
use crate::report::{Line, Sample, median};

/// Enough that the server never waits for the driver.
const CONNECTIONS: u64 = 8;

/// c: the manifest with its entity tag, and the feed from the newest version.
pub async fn unchanged(lab: &mut Lab) -> Result<Vec<Line>> {
    let mut lines = Vec::new();
    for (variant, is_fetch) in [("unchanged roll call, 304", true), ("unchanged feed", false)] {
        let mut samples = Vec::new();
        for _ in 0..lab.runs() {
            lab.progress.begin(&format!("c {variant}"));
            samples.push(nothing_new(lab, is_fetch).await?);
            lab.progress.step();
        }
        lines.push(line('c', variant, "requests", "fixed bytes behind the same accept loop", &samples));
    }
    Ok(lines)
}

async fn nothing_new(lab: &mut Lab, is_fetch: bool) -> Result<Sample> {
    let database = lab.large().await?;
    let (person, _) = lab.sizes.medium();
    let token = person.token(0);
    let server = lab.server(&database).await?;
    let mut connection = Connection::open(server.address).await?;
    let (asked, status) = if is_fetch {
        let whole = connection.good(&driver::get("/fetch?lock=false", &token, &[]), 200, false).await?;
        let known = format!("if-none-match: {}", whole.etag.ok_or("no tag")?);
        (driver::get("/fetch?lock=false", &token, &[known]), 304)
    } else {
        let since = version(&server, person).await?;
        (driver::get(&format!("/changes?since={since}"), &token, &[]), 200)
    };
    let answer = connection.good(&asked, status, false).await?;
    let meter = Meter::begin(&server);
    let (talk, took) = talk_at_once(server.address, status, repeat(lab, &asked)).await?;
    let mut sample = meter.end(&server);
    sample.seconds = took.as_secs_f64();
    sample.heard(&talk);
    sample.speed = sample.requests as f64 / sample.seconds;
    server.end().await?;

    let fixed = lab.fixed().await?;
    let path = if is_fetch { "/unchanged".to_owned() } else { format!("/bytes/{}", answer.body_bytes) };
    let asked = driver::get(&path, &token, &[]);
    Connection::open(fixed.address).await?.good(&asked, status, false).await?;
    let before = fixed.usage();
    let (talk, took) = talk_at_once(fixed.address, status, repeat(lab, &asked)).await?;
    let usage = fixed.usage();
    sample.yardstick = talk.latencies.len() as f64 / took.as_secs_f64();
    sample.yardstick_rss_peak = usage.rss_peak;
    sample.yardstick_cpu_s = usage.cpu_s - before.cpu_s;
    fixed.end().await?;
    Ok(sample)
}

/// The same request many times, on every connection.
fn repeat(
    lab: &Lab,
    request: &Bytes,
) -> Vec<impl FnMut(Option<&Answer>) -> Option<Bytes> + Send + 'static + use<>> {
    let times = lab.times(2_500, 50);
    let once = || {
        let (mut left, request) = (times, request.clone());
        move |_: Option<&Answer>| {
            left = left.checked_sub(1)?;
            Some(request.clone())
        }
    };
    (0..CONNECTIONS).map(|_| once()).collect()
}

/// g: from the start of the process to the first response with rows, over the large database.
pub async fn cold_starts(lab: &mut Lab) -> Result<Vec<Line>> {
    let database = lab.large().await?;
    let (person, _) = lab.sizes.people()[3];
    let server = lab.server(&database).await?;
    let since = version(&server, person).await?;
    server.end().await?;
    let variant = format!("cold start, {} rows", lab.sizes.rows);
    let mut samples = Vec::new();
    for _ in 0..lab.runs() {
        lab.progress.begin(&format!("g {variant}"));
        samples.push(start(lab, &database, person, since).await?);
        lab.progress.step();
    }
    let beside = "start of the fixed bytes, without a database";
    Ok(vec![line('g', &variant, "starts", beside, &samples)])
}

async fn start(lab: &Lab, database: &std::path::Path, person: Person, since: u64) -> Result<Sample> {
    let times = lab.times(10, 3);
    let mut sample = Sample { requests: times, ..Sample::default() };
    let asked = driver::get(&format!("/changes?since={since}"), &person.token(0), &[]);
    let (mut beside, mut listening) = (Vec::new(), Vec::new());
    for _ in 0..times {
        let began = Instant::now();
        let server = lab.server(database).await?;
        let answer = Connection::open(server.address).await?.good(&asked, 200, false).await?;
        sample.latencies.push(began.elapsed().as_secs_f64());
        listening.push(server.started_in.as_secs_f64());
        let usage = server.usage();
        sample.server_cpu_s += usage.cpu_s;
        sample.rss_peak = usage.rss_peak;
        sample.bytes_down += answer.bytes;
        server.end().await?;

        let began = Instant::now();
        let fixed = lab.fixed().await?;
        let asked = driver::get(&format!("/bytes/{}", answer.body_bytes), "none", &[]);
        Connection::open(fixed.address).await?.good(&asked, 200, false).await?;
        beside.push(began.elapsed().as_secs_f64());
        sample.yardstick_rss_peak = fixed.usage().rss_peak;
        fixed.end().await?;
    }
    sample.speed = 1.0 / median(&sample.latencies);
    sample.yardstick = 1.0 / median(&beside);
    sample.extra.insert("until_it_listens_ms", median(&listening) * 1e3);
    Ok(sample)
}

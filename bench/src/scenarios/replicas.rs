//! h: small syncs of many owners at once, over one server and over three on one PostgreSQL.

use super::line;
use super::writes::{SMALL_OWNERS, SMALL_ROWS, holds, seconds_a_piece, small_talk};
use crate::Result;
use crate::child::{Yield, yardstick};
use crate::dataset::Person;
use crate::driver::talk_over;
use crate::lab::{Lab, Meter};
use crate::report::{Line, Sample};
use crate::seed;
use rollcall::config::PostgresSettings;
use rollcall_clock::Clock;
use rollcall_postgres::Address;

/// h: like e, on another database, and with several servers.
pub async fn small_syncs(lab: &mut Lab) -> Result<Vec<Line>> {
    let Some(address) = lab.options.postgres.clone() else {
        return Err("h needs a PostgreSQL database: --postgres postgres://USER@HOST/DATABASE".into());
    };
    let mut lines = Vec::new();
    for replicas in [1, 3] {
        let plural = if replicas == 1 { "" } else { "s" };
        let variant = format!("small syncs over PostgreSQL, {replicas} server{plural}");
        let mut samples = Vec::new();
        for _ in 0..lab.runs() {
            lab.progress.begin(&format!("h {variant}"));
            samples.push(small(lab, &address, replicas).await?);
            lab.progress.step();
        }
        let beside = "bare loop of the same statements over as many connections";
        lines.push(line('h', &variant, "syncs", beside, &samples));
    }
    Ok(lines)
}

async fn small(lab: &Lab, address: &Address, replicas: u64) -> Result<Sample> {
    let rounds = lab.times(60, 4);
    let connections = replicas * u64::from(PostgresSettings::default().database_connections_max);
    // Owners that no earlier run used: its rows are still there.
    let first = Clock::system().now().ms().unsigned_abs() * 1_000;
    let people: Vec<Person> = (first..first + SMALL_OWNERS).map(Person).collect();
    let (to, those) = (address.clone(), people.clone());
    tokio::task::spawn_blocking(move || seed::let_in(&to, &those)).await??;
    let before = bare(address, first + SMALL_OWNERS, rounds, connections).await?;

    let mut servers = Vec::new();
    for place in 0..replicas {
        servers.push(lab.replica(address.url(), place).await?);
    }
    let addresses: Vec<_> = servers.iter().map(|server| server.address).collect();
    let each: Vec<_> = people.iter().map(|person| small_talk(*person, rounds)).collect();
    let meters: Vec<Meter> = servers.iter().map(Meter::begin).collect();
    let (talk, took) = talk_over(&addresses, 200, each).await?;
    let samples: Vec<Sample> =
        meters.into_iter().zip(&servers).map(|(meter, server)| meter.end(server)).collect();
    let mut sample = Sample {
        seconds: took.as_secs_f64(),
        server_cpu_s: samples.iter().map(|sample| sample.server_cpu_s).sum(),
        rss_start: samples.iter().map(|sample| sample.rss_start).sum(),
        rss_peak: samples.iter().map(|sample| sample.rss_peak).sum(),
        ..samples.into_iter().next().unwrap_or_default()
    };
    sample.heard(&talk);
    holds(&servers[0], people[0], rounds * SMALL_ROWS).await?;
    for server in servers {
        server.end().await?;
    }

    let after = bare(address, first + 2 * SMALL_OWNERS, rounds, connections).await?;
    let syncs = rounds * SMALL_OWNERS;
    sample.rows = syncs * SMALL_ROWS;
    sample.speed = syncs as f64 / sample.seconds;
    sample.yardstick = 1.0 / seconds_a_piece(&before, &after, syncs);
    sample.beside(&after);
    sample.extra.insert("connections", connections as f64);
    sample.extra.insert("cpu_ms_of_the_loop", after.usage.cpu_s * 1e3 / syncs as f64);
    Ok(sample)
}

async fn bare(address: &Address, first: u64, rounds: u64, connections: u64) -> Result<Yield> {
    let args = vec![
        "sync".to_owned(),
        format!("--first={first}"),
        format!("--people={SMALL_OWNERS}"),
        format!("--rounds={rounds}"),
        format!("--batch={SMALL_ROWS}"),
        format!("--connections={connections}"),
    ];
    yardstick(args, Some(address.url())).await
}

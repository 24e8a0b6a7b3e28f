//! Whole histories from a seed: owners, devices with clocks of their own, a bad network, crashes, purges,
//! restores. The real server without its socket, the reference device as its client, under a clock of the test.
//!
//! Goal: what `docs/project/testing.md` promises holds after every operation. Method: `ops` draws a history, `world` runs it,
//! `oracle` and `requests` hold what is there against what was there before. A history that breaks a promise is
//! made as short as it can be, and printed: put into a file in `fixtures/simulation` it is run for ever after.
//!
//! `ROLLCALL_SIM_SEEDS` (how many histories), `ROLLCALL_SIM_OPS` (how long each is), `ROLLCALL_SEED` (run just
//! this one), `ROLLCALL_SOAK_S` (go on for so long).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use rollcall_testkit::engine;
mod guests;
mod link;
mod ops;
mod oracle;
mod postgres;
mod requests;
use rollcall_testkit::rng;
use rollcall_testkit::seeds;
mod server;
use rollcall_testkit::shown;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use ops::{Op, history};
use seeds::number;
use world::World;

/// In a debug build everything is some ten times slower.
const SEEDS: u64 = if cfg!(debug_assertions) { 4 } else { 200 };
const OPS: u64 = if cfg!(debug_assertions) { 400 } else { 5_000 };

/// What a run cost.
#[derive(Default)]
struct Spent {
    ops: u64,
    requests: u64,
    syncs: u64,
}

/// Runs a history; where a promise breaks: at which operation, and which.
fn run(ops: &[Op], thorough: bool) -> Result<Spent, (usize, String)> {
    let mut world = World::new();
    world.thorough = thorough;
    for (at, op) in ops.iter().enumerate() {
        let done = catch_unwind(AssertUnwindSafe(|| world.run(op)));
        let done = done.unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            Err(format!("nothing panics: {}", text.unwrap_or_default()))
        });
        done.map_err(|what| (at, format!("{what}\n  at operation {at}: {op:?}")))?;
    }
    Ok(Spent { ops: ops.len() as u64, requests: world.requests, syncs: world.syncs })
}

/// Leaves out whatever the failure does not need.
fn shrunk(ops: &[Op], failure: (usize, String), until: Instant) -> (Vec<Op>, String) {
    let kind = |what: &str| what.split(':').next().unwrap_or_default().to_owned();
    let wanted = kind(&failure.1);
    let (mut ops, mut what) = (ops[..=failure.0].to_vec(), failure.1);
    let mut lot = ops.len() / 2;
    while lot > 0 && Instant::now() < until {
        let mut at = 0;
        while at < ops.len() && Instant::now() < until {
            let mut fewer = ops.clone();
            fewer.drain(at..(at + lot).min(ops.len()));
            match run(&fewer, true) {
                Err((last, result)) if kind(&result) == wanted => {
                    fewer.truncate(last + 1);
                    (ops, what) = (fewer, result);
                }
                _ => at += lot,
            }
        }
        lot /= 2;
    }
    (ops, what)
}

fn check(ops: &[Op], name: &str) -> Spent {
    match run(ops, false) {
        Ok(spent) => spent,
        Err(failure) => {
            println!("{name} breaks a promise: {}", failure.1);
            let until = Instant::now() + Duration::from_secs(number("ROLLCALL_SHRINK_S").unwrap_or(60));
            let (ops, what) = shrunk(ops, failure, until);
            panic!("{name}: {what}\n{}", serde_json::to_string(&ops).unwrap());
        }
    }
}

#[test]
fn every_history_keeps_the_promises() {
    let length = number("ROLLCALL_SIM_OPS").unwrap_or(OPS) as usize;
    let begun = Instant::now();
    let runs = seeds::each(number("ROLLCALL_SIM_SEEDS").unwrap_or(SEEDS), |seed| {
        check(&history(seed, length), &format!("ROLLCALL_SEED={seed}"))
    });
    let sum = |of: fn(&Spent) -> u64| runs.iter().map(of).sum::<u64>();
    let [total, requests, syncs] = [sum(|run| run.ops), sum(|run| run.requests), sum(|run| run.syncs)];
    let (runs, seconds) = (runs.len(), begun.elapsed().as_secs_f64());
    println!("{total} operations of {runs} seeds, {syncs} syncs, {requests} requests, in {seconds:.0} s");
    assert!(total > 0);
}

/// Goal: what broke once stays mended. Method: the shrunk histories.
#[test]
fn every_history_that_broke_once_holds() {
    let mut found = 0;
    for entry in std::fs::read_dir("fixtures/simulation").unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|ext| ext == "json") {
            let ops: Vec<Op> = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
            check(&ops, &path.display().to_string());
            found += 1;
        }
    }
    assert!(found > 0, "no histories found: a moved folder must not pass");
}

/// Goal: both engines keep the promises. Method: a few histories over PostgreSQL, which takes some ten times as long.
#[test]
fn again_on_postgres() {
    engine::run_again(module_path!(), &[("ROLLCALL_SIM_SEEDS", "2"), ("ROLLCALL_SIM_OPS", "200")]);
}

//! Runs of many seeds, on every core: so many, or one alone (`ROLLCALL_SEED`), or new ones for a time
//! (`ROLLCALL_SOAK_S`).

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// A number from the environment.
pub fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} must be a number")))
}

/// Runs each seed; returns the results, in no particular order. After a run that panics no other begins, and
/// this function panics.
pub fn each<T: Send>(seeds: u64, run: impl Fn(u64) -> T + Sync) -> Vec<T> {
    let only = number("ROLLCALL_SEED");
    let soak = number("ROLLCALL_SOAK_S").map(Duration::from_secs);
    let begun = Instant::now();
    let first =
        only.unwrap_or_else(|| if soak.is_some() { uuid::Uuid::new_v4().as_u64_pair().1 >> 20 } else { 1 });
    let (next, failed, result) = (AtomicU64::new(0), AtomicBool::new(false), Mutex::new(Vec::new()));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    println!("seeds from {first}, {threads} threads");
    std::thread::scope(|scope| {
        let work = || loop {
            let number = next.fetch_add(1, Ordering::SeqCst);
            let more = match (only, soak) {
                (Some(_), _) => number == 0,
                (None, Some(soak)) => begun.elapsed() < soak,
                (None, None) => number < seeds,
            };
            if !more || failed.load(Ordering::SeqCst) {
                return;
            }
            match catch_unwind(AssertUnwindSafe(|| run(first + number))) {
                Ok(one) => result.lock().push(one),
                Err(panic) => {
                    failed.store(true, Ordering::SeqCst);
                    resume_unwind(panic);
                }
            }
        };
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        for worker in workers {
            if let Err(panic) = worker.join() {
                resume_unwind(panic);
            }
        }
    });
    result.into_inner()
}

//! Runs blocking work on separate threads, so that the reactor stays free.
//!
//! A test that simulates whole systems has one thread, on which everything happens in an order that a seed
//! determines, under a clock that stands still while any work runs. There such work is one step of that
//! thread, and [`simulate`] sets how long it takes.

use std::cell::RefCell;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::sleep;

type Pace = Box<dyn FnMut() -> Duration>;

thread_local! {
    static PACE: RefCell<Option<Pace>> = const { RefCell::new(None) };
}

/// From now on this thread runs its blocking work itself, all at once, after the time that `pace` returns.
/// Only for a single-threaded runtime of a test.
pub fn simulate(pace: impl FnMut() -> Duration + 'static) {
    PACE.set(Some(Box::new(pace)));
}

/// Whether this thread runs blocking work itself.
pub(super) fn are_simulated() -> bool {
    PACE.with_borrow(Option::is_some)
}

/// Runs work on another thread; it continues even if its result is not awaited.
pub(super) fn spawn<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    match PACE.with_borrow_mut(|pace| pace.as_mut().map(|pace| pace())) {
        None => tokio::task::spawn_blocking(work),
        Some(takes) => tokio::spawn(async move {
            if !takes.is_zero() {
                sleep(takes).await; // a timer takes a millisecond even for no time at all
            }
            work()
        }),
    }
}

//! Where work runs that blocks: on threads of its own, so that the reactor stays free.
//!
//! A test that simulates whole systems has one thread, on which everything happens in an order that a seed decides,
//! under a clock that stands still while anything is at work. There such work is one step of that thread, and
//! [`simulate`] says how long it takes.

use std::cell::RefCell;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::sleep;

type Pace = Box<dyn FnMut() -> Duration>;

thread_local! {
    static PACE: RefCell<Option<Pace>> = const { RefCell::new(None) };
}

/// From now on work that this thread hands over is done by this thread itself, all at once, after the time that
/// `pace` gives. Only for a runtime of one thread that a test drives.
pub fn simulate(pace: impl FnMut() -> Duration + 'static) {
    PACE.set(Some(Box::new(pace)));
}

/// Whether this thread does such work itself.
pub(super) fn are_simulated() -> bool {
    PACE.with_borrow(Option::is_some)
}

/// Hands work over; it goes on whether anybody waits for it or not.
pub(super) fn spawn<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    match PACE.with_borrow_mut(|pace| pace.as_mut().map(|pace| pace())) {
        None => tokio::task::spawn_blocking(work),
        Some(takes) => tokio::spawn(async move {
            if !takes.is_zero() {
                sleep(takes).await; // a timer needs a millisecond to find that nothing is to be waited for
            }
            work()
        }),
    }
}

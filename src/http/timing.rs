//! `Server-Timing`: how a request spent its time, for the network tab of a browser and for clients that log
//! it.

use std::cell::Cell;
use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderValue;
use tokio::time::Instant;

tokio::task_local! {
    /// The time spent by the current request: handlers add to it in several places, and the outermost layer
    /// reports it.
    static SPENT: Spent;
}

/// How long a request has waited and worked so far.
#[derive(Default)]
struct Spent {
    lock: Cell<Duration>,
    work: Cell<Duration>,
}

/// Runs a request and returns its times as the value of `Server-Timing`.
///
/// - `lock`: waiting for the sync lock. `work`: work off the reactor including the queue, which is the
///   database, and checking a password. `total`: until the head of the response.
/// - Units: milliseconds, as the header requires. Times of zero are left out.
pub(super) async fn timed<T>(started: Instant, request: impl Future<Output = T>) -> (T, Option<HeaderValue>) {
    SPENT
        .scope(Spent::default(), async {
            let response = request.await;
            let header_text = SPENT.with(|spent| header_text(spent, started.elapsed()));
            (response, HeaderValue::from_maybe_shared(Bytes::from(header_text)).ok())
        })
        .await
}

fn header_text(spent: &Spent, total: Duration) -> String {
    let mut text = String::with_capacity(64);
    for (name, took) in [("lock", spent.lock.get()), ("work", spent.work.get()), ("total", total)] {
        if name == "total" || !took.is_zero() {
            let us = took.as_micros();
            let comma = if text.is_empty() { "" } else { ", " };
            // Writing to a `String` cannot fail.
            let _ = std::fmt::Write::write_fmt(
                &mut text,
                format_args!("{comma}{name};dur={}.{:02}", us / 1_000, us % 1_000 / 10),
            );
        }
    }
    text
}

/// Counts the time since `since` as waiting for the lock.
pub(super) fn waited_for_lock(since: Instant) {
    add(|spent| &spent.lock, since);
}

/// Counts the time since `since` as work.
pub(super) fn worked(since: Instant) {
    add(|spent| &spent.work, since);
}

fn add(part: impl FnOnce(&Spent) -> &Cell<Duration>, since: Instant) {
    // Without the layers, and for later parts of a body, the times are not collected.
    let _ = SPENT.try_with(|spent| {
        let part = part(spent);
        part.set(part.get() + since.elapsed());
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_took_nothing_is_left_out() {
        let spent = Spent::default();
        assert_eq!(header_text(&spent, Duration::from_micros(70)), "total;dur=0.07");
        spent.work.set(Duration::from_micros(12_345));
        assert_eq!(header_text(&spent, Duration::from_secs(2)), "work;dur=12.34, total;dur=2000.00");
    }

    #[tokio::test]
    async fn time_is_counted_where_it_is_spent() {
        let began = Instant::now();
        let (response, header) = timed(began, async {
            waited_for_lock(began);
            worked(began);
            7
        })
        .await;
        let header = header.as_ref().and_then(|value| value.to_str().ok()).unwrap_or_default();
        assert_eq!(response, 7);
        assert!(header.starts_with("lock;dur=") && header.contains(", work;dur="), "{header}");
        worked(began); // outside of a request this counts nothing
    }
}

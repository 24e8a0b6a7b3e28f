use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use governor::clock::Clock as Ticking;
use governor::middleware::NoOpMiddleware;
use governor::state::keyed::HashMapStateStore;
use governor::{Quota, RateLimiter};

use super::AccountError;
use crate::clock::{Clock, Tick};

/// After how many attempts what was forgotten anyway is dropped from memory.
const SWEEP_EVERY: u32 = 256;

/// How often each key may try: `per_min` at once, then one each `60 / per_min` seconds.
pub(super) struct Attempts<K: Hash + Eq + Clone> {
    limiter: Option<RateLimiter<K, HashMapStateStore<K>, Ticks, NoOpMiddleware<Duration>>>,
    ticks: Ticks,
    since_sweep: AtomicU32,
}

impl<K: Hash + Eq + Clone> Attempts<K> {
    /// `per_min` of 0 limits nothing.
    pub(super) fn new(per_min: u32, clock: Clock) -> Self {
        let ticks = Ticks(clock);
        let limiter = NonZeroU32::new(per_min)
            .map(|n| RateLimiter::hashmap_with_clock(Quota::per_minute(n), ticks.clone()));
        Self { limiter, ticks, since_sweep: AtomicU32::new(0) }
    }

    /// Counts an attempt, or says when the next may be made.
    pub(super) fn take(&self, key: &K) -> Result<(), AccountError> {
        let Some(limiter) = &self.limiter else { return Ok(()) };
        if self.since_sweep.fetch_add(1, Ordering::Relaxed) >= SWEEP_EVERY {
            self.since_sweep.store(0, Ordering::Relaxed);
            // A key that has all its attempts again is forgotten: memory holds one minute at most.
            limiter.retain_recent();
            limiter.shrink_to_fit();
        }
        limiter.check_key(key).map_err(|not_until| {
            let wait = not_until.wait_time_from(self.ticks.now());
            let whole_s = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
            AccountError::TooManyAttempts { retry_after_s: whole_s.max(1) }
        })
    }

    #[cfg(test)]
    fn held(&self) -> usize {
        self.limiter.as_ref().map_or(0, RateLimiter::len)
    }
}

/// What counts as one address: an IPv6 host has a whole /64 to itself and would never run out.
pub(super) fn one_address(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(v4) => IpAddr::V4(v4),
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
    }
}

/// Our monotonic clock as the limiter reads it.
#[derive(Clone)]
struct Ticks(Clock);

impl Ticking for Ticks {
    type Instant = Duration;

    fn now(&self) -> Duration {
        // The limiter counts nanoseconds in 64 bits and panics beyond: 300 years will do.
        const MAX_MS: u64 = 10_000_000_000_000;
        let ms = self.0.tick().ms_since(Tick::from_ms(0));
        Duration::from_millis(u64::try_from(ms).unwrap_or(0).min(MAX_MS))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]

    use std::sync::Arc;
    use std::sync::atomic::AtomicI64;

    use super::*;
    use crate::model::Timestamp;

    fn clock_at(ms: &Arc<AtomicI64>) -> Clock {
        let ms = Arc::clone(ms);
        Clock::from_fn(move || Timestamp::from_ms(ms.load(Ordering::SeqCst)))
    }

    fn wait_of(outcome: Result<(), AccountError>) -> u64 {
        match outcome {
            Err(AccountError::TooManyAttempts { retry_after_s }) => retry_after_s,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn waiting_as_long_as_told_is_enough() {
        let ms = Arc::new(AtomicI64::new(1_000_000));
        let attempts = Attempts::new(5, clock_at(&ms));
        for _ in 0..5 {
            attempts.take(&"anna").unwrap();
        }
        assert_eq!(wait_of(attempts.take(&"anna")), 12);
        attempts.take(&"bert").unwrap();
        ms.fetch_add(11_500, Ordering::SeqCst);
        assert_eq!(wait_of(attempts.take(&"anna")), 1);
        ms.fetch_add(1_000, Ordering::SeqCst);
        attempts.take(&"anna").unwrap();
        assert!(attempts.take(&"anna").is_err());
    }

    #[test]
    fn old_keys_are_forgotten() {
        let ms = Arc::new(AtomicI64::new(0));
        let attempts = Attempts::new(20, clock_at(&ms));
        for key in 0..10_000 {
            attempts.take(&key).unwrap();
            ms.fetch_add(100, Ordering::SeqCst);
        }
        assert!(attempts.held() < 1_000, "{}", attempts.held());
    }

    #[test]
    fn strange_clocks_and_a_limit_of_zero_do_no_harm() {
        let ms = Arc::new(AtomicI64::new(i64::MAX));
        let attempts = Attempts::new(1, clock_at(&ms));
        attempts.take(&1).unwrap();
        for at in [i64::MIN, 0, 1_000, i64::MAX] {
            ms.store(at, Ordering::SeqCst);
            let _ = attempts.take(&1);
        }
        let unlimited = Attempts::new(0, clock_at(&ms));
        assert!((0..1_000).all(|_| unlimited.take(&1).is_ok()));
    }

    #[test]
    fn an_ipv6_network_is_one_address() {
        let one = one_address("2001:db8:1:2:3::4".parse().unwrap());
        assert_eq!(one, one_address("2001:db8:1:2:ffff::".parse().unwrap()));
        assert_ne!(one, one_address("2001:db8:1:3::4".parse().unwrap()));
        assert_eq!(one_address("::ffff:192.0.2.1".parse().unwrap()), "192.0.2.1".parse::<IpAddr>().unwrap());
    }
}

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, RandomState};
use std::net::{IpAddr, Ipv6Addr};

use parking_lot::Mutex;

use super::AccountError;
use crate::clock::{Clock, Tick};
use crate::config::Limits;

/// Keys that one counter stores; some 32 bytes each. If there are more, the half that would expire first is
/// dropped.
const KEYS_MAX: usize = 65_536;

/// How often each key may try: `burst` times at once, then once in each `period / burst`.
///
/// An attempt is counted before it is made, so that a hundred concurrent attempts count as a hundred; a
/// harmless one is given back.
pub(super) struct Attempts {
    /// How much of a key's time one attempt takes, ms; 0 means no limit.
    each_ms: i64,
    burst: i64,
    moments: Moments,
}

impl Attempts {
    /// `burst` attempts in `period_ms`; 0 means no limit.
    pub(super) fn new(burst: u32, period_ms: i64, clock: Clock) -> Self {
        let each_ms = if burst == 0 { 0 } else { (period_ms / i64::from(burst)).max(1) };
        Self { each_ms, burst: i64::from(burst), moments: Moments::new(clock) }
    }

    /// Counts an attempt, or returns when the next one may be made.
    pub(super) fn take(&self, key: &impl Hash) -> Result<(), AccountError> {
        if self.each_ms == 0 {
            return Ok(());
        }
        // The key's moment is the time when all its attempts are available again.
        self.moments.change(key, |now, free_at| {
            let after = free_at.unwrap_or(now).max(now).saturating_add(self.each_ms);
            let wait_ms = after.saturating_sub(now) - self.burst * self.each_ms;
            if wait_ms > 0 {
                let whole_s = u64::try_from(wait_ms).unwrap_or(0).div_ceil(1_000);
                return (free_at, Err(AccountError::TooManyAttempts { retry_after_s: whole_s.max(1) }));
            }
            (Some(after), Ok(()))
        })
    }

    /// Gives a counted attempt back.
    pub(super) fn give_back(&self, key: &impl Hash) {
        if self.each_ms > 0 {
            self.moments.change(key, |_, free_at| (free_at.map(|at| at.saturating_sub(self.each_ms)), ()));
        }
    }

    #[cfg(test)]
    fn held(&self) -> usize {
        self.moments.inner.lock().by_key.len()
    }
}

/// How often each address reads without a token.
pub struct PublicReaders(Attempts);

impl PublicReaders {
    /// Nobody has read yet.
    pub fn new(limits: &Limits, clock: &Clock) -> Self {
        Self(Attempts::new(limits.public_requests_per_min, 60_000, clock.clone()))
    }

    /// Counts a request.
    ///
    /// Errors: `TooManyAttempts`.
    pub fn take(&self, from: IpAddr) -> Result<(), AccountError> {
        self.0.take(&network_of(from))
    }
}

/// Pairs of an account and something else that were valid until a moment ago.
pub(super) struct Recent {
    lasts_ms: i64,
    moments: Moments,
}

impl Recent {
    pub(super) fn new(lasts_ms: i64, clock: Clock) -> Self {
        Self { lasts_ms, moments: Moments::new(clock) }
    }

    pub(super) fn note(&self, key: &impl Hash) {
        self.moments.change(key, |now, _| (Some(now.saturating_add(self.lasts_ms)), ()));
    }

    pub(super) fn has(&self, key: &impl Hash) -> bool {
        self.moments.change(key, |now, until| (until, until.is_some_and(|until| until > now)))
    }
}

/// A moment for each of many keys, by the monotonic clock, forgotten once it has passed. Keys are stored as
/// keyed hashes: each takes the same room, and the memory does not reveal which accounts were tried.
struct Moments {
    clock: Clock,
    hasher: RandomState,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    by_key: HashMap<u64, i64>,
    /// The number of keys at which the next sweep is worth its time.
    sweep_at: usize,
}

impl Moments {
    fn new(clock: Clock) -> Self {
        Self { clock, hasher: RandomState::new(), inner: Mutex::default() }
    }

    /// Replaces a key's moment; `change` receives the present time and the stored moment.
    fn change<T>(&self, key: &impl Hash, change: impl FnOnce(i64, Option<i64>) -> (Option<i64>, T)) -> T {
        let key = self.hasher.hash_one(key);
        let now = self.clock.tick().ms_since(Tick::from_ms(0));
        let mut inner = self.inner.lock();
        let (moment, result) = change(now, inner.by_key.get(&key).copied());
        match moment.filter(|moment| *moment > now) {
            Some(moment) => {
                inner.by_key.insert(key, moment);
                inner.sweep(now);
            }
            None => {
                inner.by_key.remove(&key);
            }
        }
        result
    }
}

impl Inner {
    fn sweep(&mut self, now: i64) {
        if self.by_key.len() <= self.sweep_at.max(256) {
            return;
        }
        self.by_key.retain(|_, moment| *moment > now);
        if self.by_key.len() > KEYS_MAX {
            let mut moments: Vec<i64> = self.by_key.values().copied().collect();
            let middle = moments.len() / 2;
            let (_, middle, _) = moments.select_nth_unstable(middle);
            let middle = *middle;
            // Many keys may share the middle moment: as many of them stay as there is room for.
            let mut room = KEYS_MAX / 2;
            self.by_key.retain(|_, moment| {
                let stays = *moment > middle || (*moment == middle && room > 0);
                room -= usize::from(stays && *moment == middle);
                stays
            });
        }
        // At least as many attempts come before the next sweep as this one has visited.
        self.sweep_at = (self.by_key.len() * 2).min(KEYS_MAX);
    }
}

/// What counts as one address: an IPv4 address, or the /64 of one IPv6 customer.
pub fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64))),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]

    use std::sync::Arc;
    use std::sync::atomic::{AtomicI64, Ordering};

    use super::*;
    use crate::model::Timestamp;

    const MINUTE_MS: i64 = 60_000;

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
    fn waiting_as_long_as_the_refusal_says_is_enough() {
        let ms = Arc::new(AtomicI64::new(1_000_000));
        let attempts = Attempts::new(5, MINUTE_MS, clock_at(&ms));
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
    fn an_attempt_that_is_given_back_was_never_made() {
        let ms = Arc::new(AtomicI64::new(1_000_000));
        let attempts = Attempts::new(2, MINUTE_MS, clock_at(&ms));
        for _ in 0..100 {
            attempts.take(&"anna").unwrap();
            attempts.give_back(&"anna");
        }
        assert_eq!(attempts.held(), 0);
        attempts.give_back(&"anna");
        attempts.take(&"anna").unwrap();
        attempts.take(&"anna").unwrap();
        assert_eq!(wait_of(attempts.take(&"anna")), 30);
        attempts.give_back(&"anna");
        attempts.take(&"anna").unwrap();
        assert!(attempts.take(&"anna").is_err());
    }

    #[test]
    fn old_keys_are_forgotten() {
        let ms = Arc::new(AtomicI64::new(0));
        let attempts = Attempts::new(20, MINUTE_MS, clock_at(&ms));
        for key in 0..10_000 {
            attempts.take(&key).unwrap();
            ms.fetch_add(100, Ordering::SeqCst);
        }
        assert!(attempts.held() < 1_000, "{}", attempts.held());
    }

    /// Goal: strangers cannot fill the memory, and cannot make it drop a key near its limit. Method: three
    /// times as many keys as are stored, beside one that has used all its attempts.
    #[test]
    fn memory_is_bounded_whatever_the_keys() {
        let ms = Arc::new(AtomicI64::new(0));
        let attempts = Attempts::new(5, MINUTE_MS, clock_at(&ms));
        for _ in 0..5 {
            attempts.take(&"anna").unwrap();
        }
        for key in 0..3 * KEYS_MAX {
            attempts.take(&key).unwrap();
            assert!(attempts.held() <= KEYS_MAX + 1);
        }
        assert!(attempts.held() > KEYS_MAX / 4, "{}", attempts.held());
        assert!(attempts.take(&"anna").is_err());
    }

    #[test]
    fn strange_clocks_and_a_limit_of_zero_do_no_harm() {
        let ms = Arc::new(AtomicI64::new(i64::MAX));
        let attempts = Attempts::new(1, MINUTE_MS, clock_at(&ms));
        let _ = attempts.take(&1);
        for at in [i64::MIN, 0, 1_000, i64::MAX] {
            ms.store(at, Ordering::SeqCst);
            let _ = attempts.take(&1);
            attempts.give_back(&1);
        }
        let unlimited = Attempts::new(0, MINUTE_MS, clock_at(&ms));
        assert!((0..1_000).all(|_| unlimited.take(&1).is_ok()));
    }

    #[test]
    fn what_is_recent_ends() {
        let ms = Arc::new(AtomicI64::new(0));
        let recent = Recent::new(1_000, clock_at(&ms));
        recent.note(&"anna");
        assert!(recent.has(&"anna") && !recent.has(&"bert"));
        ms.store(999, Ordering::SeqCst);
        assert!(recent.has(&"anna"));
        ms.store(1_000, Ordering::SeqCst);
        assert!(!recent.has(&"anna"));
    }

    #[test]
    fn a_customer_of_ipv6_is_one_address() {
        let network = |address: &str| network_of(address.parse().unwrap());
        assert_eq!(network("2001:db8:1:2:3::4"), network("2001:db8:1:2:ffff::"));
        assert_ne!(network("2001:db8:1:2:3::4"), network("2001:db8:1:3::4"));
        assert_ne!(network("192.0.2.1"), network("192.0.2.2"));
        assert_eq!(network("::ffff:192.0.2.1"), "192.0.2.1".parse::<IpAddr>().unwrap());
    }
}

//! Decides when to try again, and after how long.

use std::time::Duration;

/// How a device retries and waits; tests use one that does not wait.
pub struct RetryPolicy {
    /// Most attempts at one request while the server is unreachable or responds with 429 or 5xx.
    pub attempts_max: u32,
    /// Longest time to wait for another device's sync, ms.
    pub lock_wait_max_ms: u64,
    /// Waits.
    pub pause: Box<dyn FnMut(Duration)>,
    /// Returns a random number.
    pub random: Box<dyn FnMut() -> u64>,
}

/// Bounds of the first pause between two attempts, and of any, ms.
const PAUSE_FIRST_MS: u64 = 250;
const PAUSE_MAX_MS: u64 = 30_000;
/// If the server wants a longer pause than this, the error is reported instead, ms.
const RETRY_AFTER_MAX_MS: u64 = 60_000;
/// Devices that one lock refused at the same time try again spread over this time, ms.
const SPREAD_MS: u64 = 1_000;

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            attempts_max: 6,
            lock_wait_max_ms: 120_000,
            pause: Box::new(std::thread::sleep),
            // Without randomness the pauses are merely not spread.
            random: Box::new(|| getrandom::u64().unwrap_or(0)),
        }
    }
}

impl RetryPolicy {
    /// The pause after the failed attempt of that number, from 1: exponential, with full jitter, but never
    /// shorter than the server's `Retry-After`. `None`: stop.
    pub fn pause_ms(&mut self, attempt: u32, retry_after_s: Option<u64>) -> Option<u64> {
        if attempt >= self.attempts_max {
            return None;
        }
        let most = PAUSE_FIRST_MS.saturating_mul(1 << attempt.min(20)).min(PAUSE_MAX_MS);
        match retry_after_s.map(|seconds| seconds.saturating_mul(1_000)) {
            None => Some(self.below(most)),
            Some(asked) if asked > RETRY_AFTER_MAX_MS => None,
            Some(asked) => Some(asked + self.below(SPREAD_MS)),
        }
    }

    /// The pause before the next attempt to take the lock. `waited_ms`: the total so far. `None`: stop.
    pub fn lock_pause_ms(&mut self, waited_ms: u64, retry_after_s: Option<u64>) -> Option<u64> {
        let asked = retry_after_s.unwrap_or(1).saturating_mul(1_000).min(RETRY_AFTER_MAX_MS);
        let pause = asked + self.below(SPREAD_MS);
        (waited_ms + pause <= self.lock_wait_max_ms).then_some(pause)
    }

    fn below(&mut self, most: u64) -> u64 {
        (self.random)() % (most + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn retries(random: u64) -> RetryPolicy {
        RetryPolicy { random: Box::new(move || random), pause: Box::new(|_| {}), ..RetryPolicy::default() }
    }

    #[test]
    fn pauses_grow_are_spread_and_end() {
        let most: Vec<_> = (1..=6)
            .map(|attempt| {
                // The largest value of a pause of up to 2^n · 250 ms.
                (0..=40_000).step_by(250).filter_map(|n| retries(n).pause_ms(attempt, None)).max()
            })
            .collect();
        assert_eq!(most, [Some(500), Some(1_000), Some(2_000), Some(4_000), Some(8_000), None]);
        assert_eq!(retries(0).pause_ms(3, None), Some(0));
    }

    #[test]
    fn what_the_server_asks_for_is_the_least() {
        assert_eq!(retries(0).pause_ms(1, Some(7)), Some(7_000));
        assert_eq!(retries(400).pause_ms(1, Some(7)), Some(7_400));
        assert_eq!(retries(0).pause_ms(1, Some(3_600)), None);
        assert_eq!(retries(500).lock_pause_ms(0, Some(15)), Some(15_500));
        assert_eq!(retries(0).lock_pause_ms(119_000, Some(2)), None);
        // At the bounds.
        assert_eq!(retries(0).pause_ms(1, Some(60)), Some(60_000));
        assert_eq!(retries(0).pause_ms(1, Some(61)), None);
        assert_eq!(retries(0).lock_pause_ms(0, None), Some(1_000));
        assert_eq!(retries(0).lock_pause_ms(0, Some(100)), Some(60_000));
        assert_eq!(retries(0).lock_pause_ms(110_000, Some(10)), Some(10_000));
    }
}

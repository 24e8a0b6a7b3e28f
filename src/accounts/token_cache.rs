//! Caches recently verified tokens and their callers, so that a device in the middle of a sync needs no
//! database access and no signature check.

use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use rollcall_core::cache::Cache;
use sha2::{Digest as _, Sha256};

use super::Caller;
use crate::clock::{Clock, Tick};
use crate::model::Timestamp;

/// SHA-256 of a token: the token itself is not stored.
pub(super) type Fingerprint = [u8; 32];

pub(super) fn fingerprint(token: &str) -> Fingerprint {
    Sha256::digest(token).into()
}

/// How long a cached token is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Validity {
    /// The time from which the token is refused.
    pub expires_at: Timestamp,
    /// The time from which it must be looked up again.
    pub until: Tick,
    /// The key set that verified it; 0 without keys.
    pub keys: u64,
}

/// Callers by the hash of their token.
///
/// - Bounds: holds at most `tokens_max` entries.
/// - A token that was revoked during its lookup is not cached: see [`TokenCache::stamp`].
pub(super) struct TokenCache {
    tokens: Mutex<Cache<Fingerprint, (Caller, Validity)>>,
    /// Incremented whenever tokens are revoked.
    taken_back: AtomicU64,
}

/// The state of the cache before a lookup.
#[derive(Clone, Copy)]
pub(super) struct CacheStamp(u64);

impl TokenCache {
    pub fn new(tokens_max: usize) -> Self {
        Self { tokens: Mutex::new(Cache::new(tokens_max)), taken_back: AtomicU64::new(0) }
    }

    /// The caller of a token, if it is cached and still valid.
    pub fn find(&self, token: &Fingerprint, clock: &Clock, keys: u64) -> Option<Caller> {
        let mut tokens = self.tokens.lock();
        let (caller, good) = tokens.get(token)?;
        good.is_good(clock, keys).then(|| caller.clone())
    }

    /// Taken before a token is looked up.
    pub fn stamp(&self) -> CacheStamp {
        CacheStamp(self.taken_back.load(Ordering::SeqCst))
    }

    /// Caches the result of a lookup that began at `since`.
    pub fn note(&self, token: Fingerprint, caller: &Caller, good: Validity, since: CacheStamp) {
        let mut tokens = self.tokens.lock();
        // Read under the lock that `forget` takes: either `forget` sees this token, or this call sees that it
        // ran.
        if self.taken_back.load(Ordering::SeqCst) == since.0 {
            tokens.insert(token, (caller.clone(), good));
        }
    }

    /// Removes one token.
    pub fn drop(&self, token: &Fingerprint) {
        self.tokens.lock().remove(token);
    }

    /// Removes the tokens of the callers that `is_gone` selects. Called after the store refuses them.
    pub fn forget(&self, is_gone: impl Fn(&Caller) -> bool) {
        let mut tokens = self.tokens.lock();
        self.taken_back.fetch_add(1, Ordering::SeqCst);
        tokens.retain(|(caller, _)| !is_gone(caller));
    }
}

impl Validity {
    fn is_good(&self, clock: &Clock, keys: u64) -> bool {
        clock.tick() < self.until && clock.now() < self.expires_at && self.keys == keys
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::accounts::Rights;
    use crate::model::{DeviceId, Owner};

    fn caller(number: u128) -> Caller {
        let (owner, device) = (Owner(Uuid::from_u128(1)), DeviceId(Uuid::from_u128(number)));
        Caller {
            owner,
            default_owner: owner,
            token_owners: None,
            rights: Rights::HOME,
            device,
            device_name: "phone".into(),
            token_device: device,
            installation: None,
            user: Uuid::from_u128(3),
        }
    }

    /// A clock at these two times.
    fn clock(now_ms: i64, tick_ms: i64) -> Clock {
        Clock::of(move || Timestamp::from_ms(now_ms), move || Tick::from_ms(tick_ms))
    }

    /// A clock that does not move.
    fn at(ms: i64) -> Clock {
        clock(ms, ms)
    }

    const GOOD: Validity =
        Validity { expires_at: Timestamp::from_ms(100), until: Tick::from_ms(50), keys: 7 };

    #[test]
    fn a_token_is_known_until_it_must_be_looked_up_again() {
        let cache = TokenCache::new(8);
        let token = fingerprint("a");
        assert_eq!(cache.find(&token, &at(0), 7), None);
        cache.note(token, &caller(1), GOOD, cache.stamp());
        assert_eq!(cache.find(&token, &at(49), 7), Some(caller(1)));
        let set_back = clock(-3_600_000, 49);
        assert_eq!(cache.find(&token, &set_back, 7), Some(caller(1)));
        let set_back = clock(-3_600_000, 50);
        assert_eq!(
            cache.find(&token, &set_back, 7),
            None,
            "the clock was set back, and time passed all the same"
        );
        assert_eq!(cache.find(&token, &at(50), 7), None);
        assert_eq!(cache.find(&token, &at(0), 8), None, "the keys are others");
        cache.note(token, &caller(1), Validity { until: Tick::from_ms(1_000), ..GOOD }, cache.stamp());
        assert!(cache.find(&token, &at(99), 7).is_some());
        assert_eq!(cache.find(&token, &at(100), 7), None, "it has expired");
    }

    #[test]
    fn what_was_taken_back_during_a_look_is_not_noted() {
        let cache = TokenCache::new(8);
        let (token, since) = (fingerprint("a"), cache.stamp());
        cache.forget(|each| each.device == caller(2).device);
        cache.note(token, &caller(1), GOOD, since);
        assert_eq!(cache.find(&token, &at(0), 7), None);
        cache.note(token, &caller(1), GOOD, cache.stamp());
        cache.note(fingerprint("b"), &caller(2), GOOD, cache.stamp());
        cache.forget(|each| each.device == caller(2).device);
        assert!(cache.find(&token, &at(0), 7).is_some());
        assert_eq!(cache.find(&fingerprint("b"), &at(0), 7), None);
    }

    /// Goal: memory is bounded, and a token in use stays. Method: many tokens come and go beside one that is
    /// used again and again.
    #[test]
    fn however_many_tokens_come_few_are_held() {
        let cache = TokenCache::new(8);
        let mine = fingerprint("mine");
        cache.note(mine, &caller(1), GOOD, cache.stamp());
        for number in 0..1_000 {
            cache.note(fingerprint(&number.to_string()), &caller(number), GOOD, cache.stamp());
            assert!(cache.find(&mine, &at(0), 7).is_some(), "{number}");
            assert!(cache.tokens.lock().len() <= 8);
        }
        let none = TokenCache::new(0);
        none.note(mine, &caller(1), GOOD, none.stamp());
        assert_eq!(none.find(&mine, &at(0), 7), None);
    }
}

//! The state of the console: access by token, and cached counts.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use http::HeaderMap;
use parking_lot::Mutex;

use super::app::App;
use super::handlers::caller::bearer;
use super::peer::Peer;
use super::problem::ApiError;
use crate::clock::Tick;
use crate::model::{Owner, Timestamp};
use crate::storage::census::Totals;
use crate::storage::{Storage, StorageResult};

/// How old the totals may be. Counting reads all owners, so a page that polls every second must not cause it.
const TOTALS_AGE: Duration = Duration::from_secs(30);

/// Addresses whose failures are counted separately within a minute; further ones share one count.
const ADDRESSES_MAX: usize = 4_096;

/// Owners that are looked up at a time.
const OWNERS_PER_PAGE: usize = 1_000;

/// What a running server caches for the console.
pub struct Console {
    /// When the server started.
    pub started_at: Timestamp,
    failures: Mutex<Failures>,
    totals: Mutex<Option<(Instant, Counted<Totals>)>>,
    tombstones: Mutex<Option<Counted<Vec<u64>>>>,
}

/// A count and its time.
#[derive(Clone, Debug)]
pub struct Counted<T> {
    /// When it was counted.
    pub at: Timestamp,
    /// The count.
    pub count: T,
}

/// Wrong tokens within one minute.
#[derive(Default)]
struct Failures {
    minute: i64,
    by_address: HashMap<IpAddr, u32>,
}

/// Proves that the caller has sent the console's token.
#[derive(Clone, Copy, Debug)]
pub(super) struct Operator;

impl Operator {
    /// Admits a caller with the right token.
    ///
    /// Errors: 404 without a console; 429 after an address has sent `logins_per_address_per_min` wrong tokens
    /// within a minute, even for the right one; otherwise 401.
    pub fn admit(app: &App, headers: &HeaderMap, Peer(from): Peer) -> Result<Self, ApiError> {
        let Some(token) = &app.settings.operator.console_token else { return Err(ApiError::no_such_path()) };
        let given = bearer(headers)?;
        let failures_max = app.settings.limits.logins_per_address_per_min;
        app.console.failures.lock().check(from, app.clock.tick(), failures_max, || token.is(given))?;
        Ok(Self)
    }
}

impl Failures {
    fn check(
        &mut self,
        from: IpAddr,
        now: Tick,
        failures_max: u32,
        is_right: impl FnOnce() -> bool,
    ) -> Result<(), ApiError> {
        let passed_ms = now.ms_since(Tick::from_ms(0));
        let minute = passed_ms.div_euclid(60_000);
        if self.minute != minute {
            *self = Self { minute, by_address: HashMap::new() };
        }
        let bucket = Peer(from).bucket();
        let known = self.by_address.contains_key(&bucket) || self.by_address.len() < ADDRESSES_MAX;
        let place = if known { bucket } else { IpAddr::V6(Ipv6Addr::UNSPECIFIED) };
        let failed = self.by_address.get(&place).copied().unwrap_or(0);
        if failures_max > 0 && failed >= failures_max {
            return Err(ApiError::TooManyAttempts {
                reason: "Too many wrong tokens. Try again later.",
                retry_after_s: 60 - passed_ms.rem_euclid(60_000).cast_unsigned() / 1_000,
            });
        }
        if is_right() {
            return Ok(());
        }
        *self.by_address.entry(place).or_default() += 1;
        Err(ApiError::Unauthorized { reason: "This is not the token of --console-token." })
    }
}

impl Console {
    /// An empty cache.
    pub fn new(started_at: Timestamp) -> Self {
        Self {
            started_at,
            failures: Mutex::default(),
            totals: Mutex::default(),
            tombstones: Mutex::default(),
        }
    }

    /// The totals of all owners, at most half a minute old. Concurrent callers wait for one count.
    pub fn totals(&self, storage: &dyn Storage, now: Timestamp) -> StorageResult<Counted<Totals>> {
        let mut kept = self.totals.lock();
        if let Some((counted, totals)) = &*kept
            && counted.elapsed() < TOTALS_AGE
        {
            return Ok(totals.clone());
        }
        let totals = Counted { at: now, count: storage.census().totals()? };
        *kept = Some((Instant::now(), totals.clone()));
        Ok(totals)
    }

    /// The last count of tombstones by table.
    pub fn tombstones(&self) -> Option<Counted<Vec<u64>>> {
        self.tombstones.lock().clone()
    }

    /// Counts the tombstones of every owner, one owner at a time, until `go_on` returns false.
    ///
    /// It reads an entry for each tombstone: meant for housekeeping, not for a request.
    pub fn count_tombstones(
        &self,
        storage: &dyn Storage,
        now: Timestamp,
        go_on: &mut dyn FnMut() -> bool,
    ) -> StorageResult<()> {
        let mut count: Vec<u64> = Vec::new();
        let mut after: Option<Owner> = None;
        loop {
            let owners = storage.owners().page(after, OWNERS_PER_PAGE)?;
            let Some(last) = owners.last() else { break };
            after = Some(*last);
            for owner in owners {
                if !go_on() {
                    return Ok(());
                }
                let own = storage.census().tombstones(owner)?;
                count.resize(own.len().max(count.len()), 0);
                count.iter_mut().zip(own).for_each(|(all, own)| *all += own);
            }
        }
        *self.tombstones.lock() = Some(Counted { at: now, count });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: guessing is slow, and a right token from an address that guesses is refused. Method: one minute
    /// and the next.
    #[test]
    fn an_address_may_fail_only_so_often() {
        let mut failures = Failures::default();
        let (here, there) = (IpAddr::from([192, 0, 2, 1]), IpAddr::from([192, 0, 2, 2]));
        let mut outcome = |from, ms, right| match failures.check(from, Tick::from_ms(ms), 2, || right) {
            Ok(()) => 200,
            Err(error) => error.status_and_code().0.as_u16(),
        };
        assert_eq!(
            [outcome(here, 0, false), outcome(here, 1, true), outcome(here, 2, false)],
            [401, 200, 401]
        );
        assert_eq!(
            [outcome(here, 3, false), outcome(here, 4, true), outcome(there, 5, true)],
            [429, 429, 200]
        );
        assert_eq!(outcome(here, 60_000, true), 200);
    }

    #[test]
    fn many_addresses_take_no_more_memory() {
        let mut failures = Failures::default();
        for number in 0..3 * ADDRESSES_MAX as u32 {
            let _ = failures.check(IpAddr::from(number.to_be_bytes()), Tick::from_ms(0), 5, || false);
        }
        assert_eq!(failures.by_address.len(), ADDRESSES_MAX + 1);
    }
}

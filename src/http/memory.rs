//! The memory budget of requests: each request reserves memory before it allocates.
//!
//! A request reserves memory for all that it makes the server hold: its body, the rows that are read from it,
//! the rows that are loaded for it, and its response until the last byte is sent. If the budget is used up,
//! the response is 503 `busy`, and the client sends the request again.
//!
//! Memory with a bound of its own is subtracted from the budget at the start: the response cache
//! (`ready_bytes_max`) and the memory for password hashes.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use serde::Serialize;

use super::bounds::BadSetting;
use super::problem::ApiError;
use crate::broken;
use crate::config::{AuthMode, Settings};
use crate::metrics::Metrics;
use crate::model::Owner;

/// A longer body is large: this is some 200 small rows, more than a device usually sends.
pub(super) const SMALL_BODY_BYTES: usize = 64 * 1024;

/// The memory of a request with a small body, beyond which it counts as large: its rows, what is loaded for
/// them, and the response.
const SMALL_BYTES: usize = 1024 * 1024;

/// The share of small requests: one part in this many, which large requests cannot use.
const SMALL_SHARE: usize = 4;

/// Memory of one password hash, bytes: Argon2 with the server's parameters.
const HASH_BYTES: usize = 19 * 1024 * 1024;

/// The memory budget of all requests.
///
/// - Bounds: together they never hold more than `bytes_max`. Large requests hold at most three quarters of
///   it, so slow bodies never block small requests. One owner holds at most half of what large requests may
///   have, or what one request may need if that is more.
pub struct Memory {
    bytes_max: usize,
    large_max: usize,
    owner_max: usize,
    used: Mutex<Used>,
    metrics: Arc<Metrics>,
}

#[derive(Default)]
struct Used {
    all: usize,
    large: usize,
    by_owner: HashMap<Owner, usize>,
}

impl Memory {
    /// The budget of the settings.
    ///
    /// Errors: [`BadSetting`] if the largest request within the limits could never be served.
    pub fn from_settings(settings: &Settings, metrics: Arc<Metrics>) -> Result<Arc<Self>, BadSetting> {
        let memory = &settings.memory;
        let hashes = match settings.auth.auth {
            AuthMode::Local => {
                let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
                settings.auth.password_hashes_max.clamp(1, cores).saturating_mul(HASH_BYTES)
            }
            AuthMode::Jwt => 0,
        };
        let apart = memory.ready_bytes_max.saturating_add(hashes);
        let bytes_max = memory.memory_bytes_max.saturating_sub(apart);
        let needed = request_bytes_max(settings);
        let large_max = bytes_max - bytes_max / SMALL_SHARE;
        if large_max < needed {
            let least = needed.saturating_mul(SMALL_SHARE).div_ceil(SMALL_SHARE - 1).saturating_add(apart);
            return Err(BadSetting::new(format!(
                "--memory-bytes-max must be at least {least}, or one request could need more than there is: raise it, \
                 or lower --body-bytes-max, --batch-bytes-max, --changes-bytes-max or --ready-bytes-max"
            )));
        }
        Ok(Self::new(bytes_max, needed, metrics))
    }

    /// - `bytes_max`: for all requests together.
    /// - `needed`: what one of them may need.
    pub fn new(bytes_max: usize, needed: usize, metrics: Arc<Metrics>) -> Arc<Self> {
        let large_max = bytes_max - bytes_max / SMALL_SHARE;
        let owner_max = (large_max / 2).max(needed).min(large_max);
        let memory = Arc::new(Self { bytes_max, large_max, owner_max, used: Mutex::default(), metrics });
        let seen = Arc::downgrade(&memory);
        memory.metrics.memory_bytes_max.set(i64::try_from(bytes_max).unwrap_or(i64::MAX));
        memory.metrics.at_scrape(move |metrics| {
            let bytes = seen.upgrade().map_or(0, |memory| memory.used.lock().all);
            metrics.memory_bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
        });
        memory
    }

    /// Creates the account of a request, with nothing reserved. `owner` is `None` for an unknown caller.
    pub fn permit(self: &Arc<Self>, owner: Option<Owner>) -> Permit {
        let held = Held { bytes: 0, is_large: false, small_max: SMALL_BYTES };
        Permit(Arc::new(Account { memory: Arc::clone(self), owner, held: Mutex::new(held) }))
    }

    /// The reserved bytes.
    pub fn used(&self) -> usize {
        self.used.lock().all
    }

    /// Reserves `bytes` more. A request that becomes large is then counted with all that it holds.
    fn draw(&self, owner: Option<Owner>, bytes: usize, large: usize) -> Result<(), ApiError> {
        let mut used = self.used.lock();
        let of_owner = owner.and_then(|owner| used.by_owner.get(&owner)).copied().unwrap_or(0);
        let fits = |used: usize, more: usize, max| used.checked_add(more).is_some_and(|sum| sum <= max);
        let has_room = fits(used.all, bytes, self.bytes_max)
            && (large == 0 || fits(used.large, large, self.large_max))
            && (owner.is_none() || fits(of_owner, bytes, self.owner_max));
        if !has_room && !broken::is("memory_unbounded") {
            drop(used);
            self.metrics.memory_refused.inc();
            return Err(ApiError::no_memory());
        }
        used.all += bytes;
        used.large += large;
        if let Some(owner) = owner {
            *used.by_owner.entry(owner).or_default() += bytes;
        }
        Ok(())
    }

    fn give_back(&self, owner: Option<Owner>, bytes: usize, is_large: bool) {
        let mut used = self.used.lock();
        used.all -= bytes;
        used.large -= if is_large { bytes } else { 0 };
        let Some(owner) = owner else { return };
        if let Some(of_owner) = used.by_owner.get_mut(&owner) {
            *of_owner -= bytes;
            if *of_owner == 0 {
                used.by_owner.remove(&owner);
            }
        }
    }
}

/// The most memory of one request, bytes: its body, and `batch_bytes_max` each for the rows that it sends,
/// for those that are loaded for it, and for its response; in addition a page of the feed, as rows and as
/// JSON.
fn request_bytes_max(settings: &Settings) -> usize {
    let limits = &settings.limits;
    let batch = limits.batch_bytes_max.saturating_mul(3);
    let page = settings.sync.changes_bytes_max.saturating_mul(2);
    limits.body_bytes_max.saturating_add(batch).saturating_add(page)
}

/// The memory that one request has reserved. All of it is released when the last clone is dropped.
#[derive(Clone)]
pub struct Permit(Arc<Account>);

struct Account {
    memory: Arc<Memory>,
    owner: Option<Owner>,
    held: Mutex<Held>,
}

struct Held {
    bytes: usize,
    is_large: bool,
    /// With more bytes the request is large.
    small_max: usize,
}

impl Permit {
    /// Reserves `bytes` more, before they are allocated.
    ///
    /// Errors: 503 `busy`; nothing more is reserved then.
    pub fn grow(&self, bytes: usize) -> Result<(), ApiError> {
        let Account { memory, owner, held } = &*self.0;
        let mut held = held.lock();
        let sum = held.bytes.saturating_add(bytes);
        let is_large = held.is_large || sum > held.small_max;
        let large = match (is_large, held.is_large) {
            (false, _) => 0,
            (true, true) => bytes,
            (true, false) => sum,
        };
        memory.draw(*owner, bytes, large)?;
        (held.bytes, held.is_large) = (sum, is_large);
        Ok(())
    }

    /// Sets the reservation to `bytes`.
    ///
    /// Errors: 503 `busy`; the reservation is then unchanged.
    pub fn settle(&self, bytes: usize) -> Result<(), ApiError> {
        let more = {
            let Account { memory, owner, held } = &*self.0;
            let mut held = held.lock();
            let rest = held.bytes.saturating_sub(bytes);
            memory.give_back(*owner, rest, held.is_large);
            held.bytes -= rest;
            bytes - held.bytes
        };
        if more > 0 { self.grow(more) } else { Ok(()) }
    }

    /// Reserves `bytes` while `work` runs.
    pub fn during<T>(&self, bytes: usize, work: impl FnOnce() -> T) -> Result<T, ApiError> {
        self.grow(bytes)?;
        let done = work();
        self.shrink(bytes);
        Ok(done)
    }

    /// Releases `bytes`.
    pub fn shrink(&self, bytes: usize) {
        let held = self.bytes();
        // Releasing never fails.
        let _ = self.settle(held.saturating_sub(bytes));
    }

    /// The reserved bytes of the request.
    pub fn bytes(&self) -> usize {
        self.0.held.lock().bytes
    }

    /// While the body arrives, a request is large as soon as its body is: it may take hours.
    ///
    /// `announced`: the body's length, if known.
    pub(super) fn begin_body(&self, announced: Option<u64>) {
        let mut held = self.0.held.lock();
        held.small_max = SMALL_BODY_BYTES;
        // Nothing is reserved yet, so nothing has to be counted again.
        held.is_large = announced.is_some_and(|bytes| bytes > SMALL_BODY_BYTES as u64);
    }

    /// The body has arrived: the request is now being processed, and ends soon.
    pub(super) fn end_body(&self) {
        self.0.held.lock().small_max = SMALL_BYTES;
    }

    /// Writes a value as JSON, and reserves memory while the text grows.
    ///
    /// Errors: 503 `busy`.
    pub fn json(&self, value: &impl Serialize) -> Result<Vec<u8>, ApiError> {
        let mut text = Text { bytes: Vec::new(), permit: self };
        match serde_json::to_writer(&mut text, value) {
            Ok(()) => Ok(text.bytes),
            Err(error) if error.is_io() => Err(ApiError::no_memory()),
            Err(error) => Err(ApiError::Internal(Box::new(error))),
        }
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        let held = self.held.get_mut();
        self.memory.give_back(self.owner, held.bytes, held.is_large);
    }
}

/// A text that reserves memory before it grows.
struct Text<'a> {
    bytes: Vec<u8>,
    permit: &'a Permit,
}

/// The initial memory of a text: most responses fit.
const TEXT_BYTES: usize = 512;

impl io::Write for Text<'_> {
    fn write(&mut self, more: &[u8]) -> io::Result<usize> {
        let needed = self.bytes.len() + more.len();
        if needed > self.bytes.capacity() {
            let room = self.bytes.capacity().saturating_mul(2).max(needed).max(TEXT_BYTES);
            self.permit.grow(room - self.bytes.capacity()).map_err(io::Error::other)?;
            self.bytes.reserve_exact(room - self.bytes.len());
        }
        self.bytes.extend_from_slice(more);
        Ok(more.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use uuid::Uuid;

    use super::*;

    const MIB: usize = 1024 * 1024;

    fn memory(mib: usize) -> Arc<Memory> {
        Memory::new(mib * MIB, MIB, Arc::default())
    }

    fn owner(number: u128) -> Option<Owner> {
        Some(Owner(Uuid::from_u128(number)))
    }

    #[test]
    fn what_is_drawn_is_given_back() {
        let memory = memory(16);
        let permit = memory.permit(owner(1));
        permit.grow(5 * MIB).unwrap();
        permit.settle(2 * MIB).unwrap();
        assert_eq!((memory.used(), permit.bytes()), (2 * MIB, 2 * MIB));
        permit.settle(3 * MIB).unwrap();
        let other = permit.clone();
        drop(permit);
        assert_eq!(memory.used(), 3 * MIB, "a clone holds it still");
        let text = other.json(&vec![0; 10_000]).unwrap();
        assert!(other.bytes() >= 3 * MIB + text.capacity());
        drop(other);
        let used = memory.used.lock();
        assert_eq!((used.all, used.large, used.by_owner.len()), (0, 0, 0));
    }

    /// Goal: slow bodies never block small requests. Method: as many large bodies as fit; then a small
    /// request of another owner.
    #[test]
    fn large_requests_leave_room_for_small_ones() {
        let memory = memory(16);
        let mut held = Vec::new();
        for n in 0..100 {
            let permit = memory.permit(owner(n));
            permit.begin_body(Some(8 * MIB as u64));
            if permit.grow(MIB / 4).is_ok() {
                held.push(permit);
            }
        }
        assert_eq!(held.len(), 12 * 4, "three quarters");
        let small = memory.permit(owner(200));
        small.begin_body(Some(100));
        small.grow(100).unwrap();
        small.end_body();
        small.grow(MIB - 100).unwrap();
        assert!(small.grow(1).is_err(), "it is a large one by now");
        assert_eq!(small.bytes(), MIB, "what was refused is not counted");
    }

    /// Goal: a body of unknown length uses nothing of the small requests' share once it is long.
    #[test]
    fn a_body_that_turns_large_is_counted_as_a_whole() {
        let memory = memory(16);
        let mut held = Vec::new();
        for n in 0..1_000 {
            let permit = memory.permit(owner(n));
            permit.begin_body(None);
            if permit.grow(SMALL_BODY_BYTES).is_ok() {
                held.push(permit);
            }
        }
        assert_eq!(held.len(), 256, "small bodies may have all of it");
        assert!(held.iter().all(|permit| permit.grow(1).is_err()));
        held.truncate(100);
        let before = memory.used();
        held[0].grow(1).unwrap();
        assert_eq!(memory.used.lock().large, SMALL_BODY_BYTES + 1);
        assert_eq!(memory.used(), before + 1);
    }

    #[test]
    fn one_owner_never_has_all() {
        let memory = memory(16);
        let mut held = Vec::new();
        loop {
            let permit = memory.permit(owner(1));
            permit.begin_body(Some(8 * MIB as u64));
            if permit.grow(MIB).is_err() {
                break;
            }
            held.push(permit);
        }
        assert_eq!(held.len(), 6, "half of what large requests may have");
        memory.permit(owner(2)).grow(2 * MIB).unwrap();
        memory.permit(None).grow(2 * MIB).unwrap();
    }

    #[test]
    fn a_budget_that_no_request_fits_in_is_refused() {
        let mut settings = Settings::default();
        assert!(Memory::from_settings(&settings, Arc::default()).is_ok());
        settings.memory.memory_bytes_max = 100 * MIB;
        let refusal = Memory::from_settings(&settings, Arc::default()).err().unwrap().to_string();
        let least = refusal.split(|c: char| !c.is_ascii_digit()).find(|digits| digits.len() > 5).unwrap();
        settings.memory.memory_bytes_max = least.parse().unwrap();
        assert!(Memory::from_settings(&settings, Arc::default()).is_ok(), "{refusal}");
        settings.memory.memory_bytes_max -= 2;
        assert!(Memory::from_settings(&settings, Arc::default()).is_err(), "{refusal}");
    }
}

//! The keys that verify provider tokens: a shared secret, or a set of public keys.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use rollcall_core::cache::Cache;
use serde_json::{Map, Value};

use super::jwks::{Jwks, Key};
use super::jws::{Algorithm, PublicKey, Token};
use super::token_cache::{Fingerprint, fingerprint};
use super::{AccountError, SetupError};
use crate::clock::{Clock, Tick};

/// Shortest HS256 secret, bytes: as long as the hash, as RFC 7518 requires.
pub(super) const SECRET_BYTES_MIN: usize = 32;
/// The provider is contacted at most this often, however many tokens no key fits.
const REFETCH_MS: i64 = 10_000;
/// Without any key nobody can log in, so the pause is shorter.
const FIRST_FETCH_MS: i64 = 5_000;
/// The longer pause after a token that was finally refused.
const SECOND_LOOK_MS: i64 = 60_000;
/// A key that the provider withdrew is trusted no longer than this.
const STALE_MS: i64 = 3_600_000;
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);
/// Largest key set, bytes: keys with their certificates take some 3 KB each.
const KEYS_BYTES_MAX: u64 = 1_048_576;
/// Most redirects of one fetch.
const REDIRECTS_MAX: usize = 3;
/// Requests that may wait for a running fetch. Others must try again later, since each occupies a thread.
const FETCH_WAITERS_MAX: usize = 16;
/// Tokens without a key that are stored.
const STRANGERS_MAX: usize = 8_192;

pub(super) const UNKNOWN_KEY: AccountError =
    AccountError::Unauthorized("The token is not signed by the identity provider.");

/// Reads the HS256 key from a file.
pub(super) fn secret(file: &Path) -> Result<Key, SetupError> {
    let shown = || file.display().to_string();
    let bytes = std::fs::read(file).map_err(|cause| SetupError::File { file: shown(), cause })?;
    // Editors end a file with a line break, which is not part of the secret.
    let secret = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
    let secret = secret.strip_suffix(b"\r").unwrap_or(secret);
    if secret.len() < SECRET_BYTES_MIN {
        return Err(SetupError::SecretTooShort { file: shown(), bytes: secret.len() });
    }
    Ok(Key::new(None, &[Algorithm::Hs256], PublicKey::secret(secret)))
}

/// The provider's public keys, which are fetched again when no key fits a token.
pub(super) struct KeySet {
    source: Source,
    clock: Clock,
    known: RwLock<Arc<FetchedKeys>>,
    /// Incremented with each set that differs from the one before.
    sets: AtomicU64,
    /// Locked during a fetch: one request fetches, and the others wait for its result.
    fetching: Mutex<LastFetch>,
    waiting: AtomicUsize,
    /// Tokens that no key fits, and when each was first seen.
    strangers: Mutex<Cache<Fingerprint, Tick>>,
}

#[derive(Default)]
struct FetchedKeys {
    keys: Jwks,
    /// As the provider sent them.
    bytes: Vec<u8>,
    /// When they were requested; `None` until the provider has responded.
    as_of: Option<Tick>,
}

#[derive(Default)]
struct LastFetch {
    /// When it ended; a successful one at the start does not count.
    at: Option<Tick>,
    failed: bool,
}

impl KeySet {
    /// When a token that no key fits was first seen.
    fn first_seen(&self, token: &str, now: Tick) -> Tick {
        let (token, mut strangers) = (fingerprint(token), self.strangers.lock());
        if let Some(seen) = strangers.get(&token) {
            return *seen;
        }
        strangers.insert(token, now);
        now
    }

    /// Fetches the keys once. Errors: a file without a usable key; a URL may respond later.
    pub(super) fn open(source: Source, clock: Clock) -> Result<Self, SetupError> {
        let fetched_at = clock.tick();
        let (known, last) = match source.fetch() {
            Ok((keys, bytes)) => (FetchedKeys { keys, bytes, as_of: Some(fetched_at) }, LastFetch::default()),
            Err(FetchError(reason)) => {
                if let Source::File(file) = &source {
                    return Err(SetupError::Keys(format!("{}: {reason}", file.display())));
                }
                tracing::warn!(reason, "cannot fetch the identity provider's keys yet: nobody can log in");
                (FetchedKeys::default(), LastFetch { at: Some(clock.tick()), failed: true })
            }
        };
        Ok(Self {
            source,
            clock,
            known: RwLock::new(Arc::new(known)),
            sets: AtomicU64::new(1),
            fetching: Mutex::new(last),
            waiting: AtomicUsize::new(0),
            strangers: Mutex::new(Cache::new(STRANGERS_MAX)),
        })
    }

    /// The number of the current key set; `None` if the keys must be fetched again.
    pub(super) fn in_force(&self) -> Option<u64> {
        // Read before the set itself: a token that is verified while the keys change counts as verified by
        // the old ones.
        let number = self.sets.load(Ordering::SeqCst);
        let as_of = self.known.read().as_of?;
        (self.clock.tick().ms_since(as_of) < STALE_MS).then_some(number)
    }

    /// The claims of a token, if a key of the provider signed it.
    ///
    /// Errors: `Unauthorized` if none of the keys fits that the provider had after the token was first seen;
    /// `KeysUnavailable` while they are unavailable. The provider may have just begun to use a new key, and
    /// another token may have used up the permitted fetch: with "unauthorized" the app would discard a valid
    /// token.
    pub(super) fn claims_of(&self, token: &Token<'_>) -> Result<Map<String, Value>, AccountError> {
        let known = Arc::clone(&self.known.read());
        let now = self.clock.tick();
        if let Some(claims) = known.keys.claims_of(token) {
            if known.as_of.is_none_or(|as_of| now.ms_since(as_of) < STALE_MS) {
                return Ok(claims);
            }
            // The keys are old, but usable while another request fetches.
            let Some(mut last) = self.fetching.try_lock() else { return Ok(claims) };
            self.refetch_if_due(&mut last);
            drop(last);
            let known = Arc::clone(&self.known.read());
            return known.keys.claims_of(token).ok_or(UNKNOWN_KEY);
        }
        // The key that the token names is known, and did not sign it.
        if known.keys.names(token.header.kid.as_deref()) {
            return Err(UNKNOWN_KEY);
        }
        let first_seen = self.first_seen(token.text, now);
        let is_judged = |known: &FetchedKeys| known.as_of.is_some_and(|as_of| as_of > first_seen);
        if is_judged(&known) && known.as_of.is_some_and(|as_of| now.ms_since(as_of) < SECOND_LOOK_MS) {
            return Err(UNKNOWN_KEY);
        }
        let _place = Waiter::enter(&self.waiting)?;
        let mut last = self.fetching.lock();
        // Another request may have fetched during the wait.
        let latest = Arc::clone(&self.known.read());
        if !Arc::ptr_eq(&latest, &known)
            && let Some(claims) = latest.keys.claims_of(token)
        {
            return Ok(claims);
        }
        let fetched = self.refetch_if_due(&mut last);
        let latest = Arc::clone(&self.known.read());
        if let Some(claims) = latest.keys.claims_of(token) {
            return Ok(claims);
        }
        if !last.failed && (fetched || is_judged(&latest)) {
            Err(UNKNOWN_KEY)
        } else {
            Err(AccountError::KeysUnavailable { retry_after_s: self.next_fetch_s(&last) })
        }
    }

    /// Fetches the keys if that is permitted now; returns whether the provider responded.
    fn refetch_if_due(&self, last: &mut LastFetch) -> bool {
        let fetched_at = self.clock.tick();
        if last.at.is_some_and(|at| fetched_at.ms_since(at) < self.interval_ms()) {
            return false;
        }
        match self.source.fetch() {
            Ok((keys, bytes)) => {
                let mut known = self.known.write();
                let is_new = known.bytes != bytes;
                *known = Arc::new(FetchedKeys { keys, bytes, as_of: Some(fetched_at) });
                drop(known);
                // Tokens that were verified by the same keys stay cached.
                if is_new {
                    self.sets.fetch_add(1, Ordering::SeqCst);
                }
                last.failed = false;
            }
            Err(FetchError(reason)) => {
                tracing::warn!(reason, "cannot fetch the identity provider's keys: the old ones stay valid");
                last.failed = true;
            }
        }
        // The pause begins at the end of the fetch; otherwise a slow provider would be contacted without a
        // pause.
        last.at = Some(self.clock.tick());
        !last.failed
    }

    fn interval_ms(&self) -> i64 {
        if self.known.read().as_of.is_some() { REFETCH_MS } else { FIRST_FETCH_MS }
    }

    fn next_fetch_s(&self, last: &LastFetch) -> u64 {
        let passed = last.at.map_or(0, |at| self.clock.tick().ms_since(at));
        let left_ms = self.interval_ms().saturating_sub(passed).clamp(1, REFETCH_MS);
        u64::try_from(left_ms).unwrap_or(1).div_ceil(1_000)
    }
}

/// One of the few requests that may wait for a fetch.
struct Waiter<'a>(&'a AtomicUsize);

impl<'a> Waiter<'a> {
    fn enter(waiting: &'a AtomicUsize) -> Result<Self, AccountError> {
        let before = waiting.fetch_add(1, Ordering::Relaxed);
        let place = Self(waiting); // counted until it is dropped
        if before < FETCH_WAITERS_MAX {
            Ok(place)
        } else {
            Err(AccountError::KeysUnavailable { retry_after_s: 1 })
        }
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The source of a key set.
pub(super) enum Source {
    File(PathBuf),
    Url { url: http::Uri, agent: ureq::Agent },
}

/// Why a key set is unavailable; for the log.
struct FetchError(String);

impl Source {
    /// Parses a path, or an http(s) URL.
    pub(super) fn parse(place: &str) -> Result<Self, SetupError> {
        if !place.contains("://") {
            return Ok(Self::File(place.into()));
        }
        let url: http::Uri =
            place.parse().map_err(|error| SetupError::Keys(format!("--jwt-keys is not a URL: {error}")))?;
        if !matches!(url.scheme_str(), Some("http" | "https")) || url.host().is_none() {
            return Err(SetupError::Keys("--jwt-keys takes a file, or an http(s) URL".into()));
        }
        let agent = ureq::Agent::config_builder()
            .timeout_global(Some(FETCH_TIMEOUT))
            .max_redirects(0) // redirects are followed below, since not every one is permitted
            .user_agent(concat!("rollcall/", env!("CARGO_PKG_VERSION")))
            .build()
            .new_agent();
        Ok(Self::Url { url, agent })
    }

    /// Fetches once, and returns the keys and their bytes; never call it on the reactor.
    fn fetch(&self) -> Result<(Jwks, Vec<u8>), FetchError> {
        let bytes = match self {
            Self::File(file) => {
                let size = std::fs::metadata(file).map_err(|error| FetchError(error.to_string()))?.len();
                if size > KEYS_BYTES_MAX {
                    return Err(FetchError(format!("the key set has more than {KEYS_BYTES_MAX} bytes")));
                }
                std::fs::read(file).map_err(|error| FetchError(error.to_string()))?
            }
            Self::Url { url, agent } => fetch_url(agent, url)?,
        };
        let keys = Jwks::read(&bytes).map_err(FetchError)?;
        Ok((keys, bytes))
    }
}

fn fetch_url(agent: &ureq::Agent, url: &http::Uri) -> Result<Vec<u8>, FetchError> {
    let mut url = url.clone();
    for _ in 0..=REDIRECTS_MAX {
        let mut response = agent.get(&url).call().map_err(|error| FetchError(error.to_string()))?;
        let status = response.status();
        if matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308) {
            let to = response.headers().get(http::header::LOCATION).and_then(|to| to.to_str().ok());
            url = redirected(&url, to.unwrap_or_default()).map_err(|reason| {
                FetchError(format!(
                    "the key set's URL redirects ({status}): {reason}. Set --jwt-keys to the new place"
                ))
            })?;
            continue;
        }
        if status != http::StatusCode::OK {
            return Err(FetchError(format!("the key set's URL answers {status}")));
        }
        let body = response.body_mut().with_config().limit(KEYS_BYTES_MAX);
        return body.read_to_vec().map_err(|error| FetchError(error.to_string()));
    }
    Err(FetchError(format!("the key set's URL redirects more than {REDIRECTS_MAX} times")))
}

/// The target of a redirect, if it may be followed: from https to https, or within this machine. Over plain
/// HTTP anybody on the network path could change the target.
fn redirected(from: &http::Uri, to: &str) -> Result<http::Uri, String> {
    let (scheme, authority) = (from.scheme_str().unwrap_or_default(), from.authority());
    let host = authority.map_or("", |authority| authority.as_str());
    let whole = match to {
        _ if to.contains("://") => to.to_owned(),
        _ if to.starts_with("//") => format!("{scheme}:{to}"),
        _ if to.starts_with('/') => format!("{scheme}://{host}{to}"),
        _ => {
            let folder = from.path().rsplit_once('/').map_or("", |(folder, _)| folder);
            format!("{scheme}://{host}{folder}/{to}")
        }
    };
    let target: http::Uri = whole.parse().map_err(|_| format!("{to:?} is no URL"))?;
    let is_local = |url: &http::Uri| {
        let host = url.host().unwrap_or_default().trim_matches(['[', ']']);
        host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
    };
    match (scheme, target.scheme_str()) {
        ("https", Some("https")) => Ok(target),
        ("http", Some("http")) if is_local(from) && is_local(&target) => Ok(target),
        _ => Err(format!("to {to:?}, and only from https to https one is followed")),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn redirects_lead_where_they_say_if_nobody_can_have_changed_them() {
        let from = |url: &str, to: &str| redirected(&url.parse().unwrap(), to).map(|url| url.to_string());
        let id = "https://id.example/a/keys.json";
        for (to, target) in [
            ("https://www.id.example/jwks", "https://www.id.example/jwks"),
            ("//cdn.example/jwks?v=2", "https://cdn.example/jwks?v=2"),
            ("/jwks", "https://id.example/jwks"),
            ("jwks", "https://id.example/a/jwks"),
        ] {
            assert_eq!(from(id, to).unwrap(), target);
        }
        assert_eq!(from("http://127.0.0.1:8/x", "http://localhost:9/y").unwrap(), "http://localhost:9/y");
        for (url, to) in [
            (id, "http://id.example/jwks"),
            (id, "ftp://id.example/jwks"),
            (id, "https://"),
            ("http://id.example/keys", "https://id.example/keys"),
            ("http://id.example/keys", "/jwks"),
            ("http://127.0.0.1:8/x", "http://10.0.0.1/y"),
        ] {
            assert!(from(url, to).is_err(), "{url} {to}");
        }
    }
}

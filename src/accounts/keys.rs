//! The keys that provider tokens are signed with: a shared secret, or a set of public keys.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use parking_lot::{Mutex, RwLock};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{AccountError, SetupError};
use crate::clock::Clock;
use crate::model::Timestamp;

/// Shortest HS256 secret, bytes: as long as the hash, as RFC 7518 asks.
pub(super) const SECRET_BYTES_MIN: usize = 32;
/// Key sets are asked for at most this often, however many tokens name unknown keys.
const REFETCH_MS: i64 = 60_000;
/// As long as there is no key at all, nobody can come in: ask more often.
const FIRST_FETCH_MS: i64 = 5_000;
/// A key that the provider withdrew is trusted no longer than this.
const STALE_MS: i64 = 3_600_000;
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);
/// Largest key set, bytes.
const KEYS_BYTES_MAX: u64 = 65_536;
/// Requests that may wait for a fetch under way; more are told to come back, as each holds a thread.
const FETCH_WAITERS_MAX: usize = 16;

const UNKNOWN_KEY: AccountError =
    AccountError::Unauthorized("The token's key is not the identity provider's.");

/// A key with the one algorithm it may be used for.
pub(super) struct Key {
    decoding: DecodingKey,
    validation: Validation,
}

impl Key {
    fn new(algorithm: Algorithm, decoding: DecodingKey) -> Self {
        let mut validation = Validation::new(algorithm);
        // Claims are checked in `jwt`: the library reads the system's clock, and takes a missing `iss`
        // or `aud` for a good one.
        validation.required_spec_claims.clear();
        validation.validate_exp = false;
        validation.validate_nbf = false;
        validation.validate_aud = false;
        Self { decoding, validation }
    }

    /// What a token says, if this key signed it with this key's algorithm; nothing else is checked.
    pub(super) fn claims_of(&self, token: &str) -> Option<Map<String, Value>> {
        jsonwebtoken::decode(token, &self.decoding, &self.validation).ok().map(|told| told.claims)
    }

    /// The HS256 key in a file.
    pub(super) fn secret(file: &Path) -> Result<Self, SetupError> {
        let shown = || file.display().to_string();
        let bytes = std::fs::read(file).map_err(|cause| SetupError::File { file: shown(), cause })?;
        // Editors end a file with a line break; no one means it to be part of the secret.
        let secret = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
        let secret = secret.strip_suffix(b"\r").unwrap_or(secret);
        if secret.len() < SECRET_BYTES_MIN {
            return Err(SetupError::SecretTooShort { file: shown(), bytes: secret.len() });
        }
        Ok(Self::new(Algorithm::HS256, DecodingKey::from_secret(secret)))
    }
}

/// The provider's public keys, fetched anew when a token names an unknown one.
pub(super) struct KeySet {
    source: Source,
    clock: Clock,
    known: RwLock<Arc<Known>>,
    /// How many sets of keys there were.
    sets: AtomicU64,
    /// Held while fetching, so that one request fetches and the others wait for its result.
    fetching: Mutex<LastFetch>,
    waiting: AtomicUsize,
}

#[derive(Default)]
struct Known {
    by_id: HashMap<String, Arc<Key>>,
    /// The key for tokens that name none: there must be no choice.
    only: Option<Arc<Key>>,
    /// When the provider told us; `None` as long as it has not.
    as_of: Option<Timestamp>,
}

impl Known {
    fn find(&self, kid: Option<&str>) -> Option<Arc<Key>> {
        match kid {
            Some(kid) => self.by_id.get(kid).cloned(),
            None => self.only.clone(),
        }
    }
}

#[derive(Default)]
struct LastFetch {
    /// When it ended; a good one at the start does not count.
    at: Option<Timestamp>,
    failed: bool,
}

impl KeySet {
    /// Asks for the keys once. Errors: a file without any; a URL may answer later.
    pub(super) fn open(source: Source, clock: Clock) -> Result<Self, SetupError> {
        let (known, last) = match source.fetch() {
            Ok(keys) => (Known { as_of: Some(clock.now()), ..keys }, LastFetch::default()),
            Err(FetchError(reason)) => {
                if let Source::File(file) = &source {
                    return Err(SetupError::Keys(format!("{}: {reason}", file.display())));
                }
                tracing::warn!(reason, "the identity provider's keys cannot be had yet: nobody can come in");
                (Known::default(), LastFetch { at: Some(clock.now()), failed: true })
            }
        };
        let known = RwLock::new(Arc::new(known));
        let (sets, waiting) = (AtomicU64::new(1), AtomicUsize::new(0));
        Ok(Self { source, clock, known, sets, fetching: Mutex::new(last), waiting })
    }

    /// The number of the set of keys that is in force; `None` if the provider is due to be asked again.
    pub(super) fn in_force(&self, now: Timestamp) -> Option<u64> {
        // Before the set itself: a token that is checked while the keys change counts as checked by the old ones.
        let number = self.sets.load(Ordering::SeqCst);
        let as_of = self.known.read().as_of?;
        (now.ms().saturating_sub(as_of.ms()) < STALE_MS).then_some(number)
    }

    /// The key that a token names, or the only one for a token that names none.
    ///
    /// Errors: `Unauthorized`, or `KeysUnavailable` if the provider could not be asked.
    pub(super) fn find(&self, kid: Option<&str>) -> Result<Arc<Key>, AccountError> {
        let known = Arc::clone(&self.known.read());
        if let Some(key) = known.find(kid) {
            let now = self.clock.now();
            if known.as_of.is_none_or(|as_of| now.ms().saturating_sub(as_of.ms()) < STALE_MS) {
                return Ok(key);
            }
            // Old, but good enough while someone else is asking.
            let Some(mut last) = self.fetching.try_lock() else { return Ok(key) };
            self.refetch_if_due(&mut last);
            drop(last);
            return self.known.read().find(kid).ok_or(UNKNOWN_KEY);
        }
        let _place = Waiter::enter(&self.waiting)?;
        let mut last = self.fetching.lock();
        if let Some(key) = self.known.read().find(kid) {
            return Ok(key); // someone else fetched it while we waited
        }
        self.refetch_if_due(&mut last);
        if let Some(key) = self.known.read().find(kid) {
            return Ok(key);
        }
        if last.failed {
            // The token may be good: "unauthorized" would make the app throw it away.
            Err(AccountError::KeysUnavailable { retry_after_s: self.next_fetch_s(&last) })
        } else {
            Err(UNKNOWN_KEY)
        }
    }

    fn refetch_if_due(&self, last: &mut LastFetch) {
        let now = self.clock.now();
        if last.at.is_some_and(|at| (0..self.interval_ms()).contains(&now.ms().saturating_sub(at.ms()))) {
            return;
        }
        match self.source.fetch() {
            Ok(keys) => {
                *self.known.write() = Arc::new(Known { as_of: Some(now), ..keys });
                self.sets.fetch_add(1, Ordering::SeqCst);
                last.failed = false;
            }
            Err(FetchError(reason)) => {
                tracing::warn!(reason, "the identity provider's keys cannot be had: the old ones stay");
                last.failed = true;
            }
        }
        // The end of the fetch counts, or a slow provider would be asked again without a pause.
        last.at = Some(self.clock.now());
    }

    fn interval_ms(&self) -> i64 {
        if self.known.read().as_of.is_some() { REFETCH_MS } else { FIRST_FETCH_MS }
    }

    fn next_fetch_s(&self, last: &LastFetch) -> u64 {
        let passed = last.at.map_or(0, |at| self.clock.now().ms().saturating_sub(at.ms()));
        let left_ms = self.interval_ms().saturating_sub(passed).clamp(1, REFETCH_MS);
        u64::try_from(left_ms).unwrap_or(1).div_ceil(1_000)
    }
}

/// One of the few that may wait for a fetch.
struct Waiter<'a>(&'a AtomicUsize);

impl<'a> Waiter<'a> {
    fn enter(waiting: &'a AtomicUsize) -> Result<Self, AccountError> {
        let before = waiting.fetch_add(1, Ordering::Relaxed);
        let place = Self(waiting); // counted: dropped, it is taken back
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

/// Where the key set is.
pub(super) enum Source {
    File(PathBuf),
    Url { url: String, agent: ureq::Agent },
}

/// Why a key set cannot be had; for the log.
struct FetchError(String);

impl Source {
    /// A path, or an http(s) URL.
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
            // A redirect would let whoever answers there choose where we ask.
            .max_redirects(0)
            .user_agent(concat!("rollcall/", env!("CARGO_PKG_VERSION")))
            .build()
            .new_agent();
        Ok(Self::Url { url: place.to_owned(), agent })
    }

    /// Asks once; never from the reactor.
    fn fetch(&self) -> Result<Known, FetchError> {
        let bytes = match self {
            Self::File(file) => {
                let size = std::fs::metadata(file).map_err(|error| FetchError(error.to_string()))?.len();
                if size > KEYS_BYTES_MAX {
                    return Err(FetchError(format!("the key set has more than {KEYS_BYTES_MAX} bytes")));
                }
                std::fs::read(file).map_err(|error| FetchError(error.to_string()))?
            }
            Self::Url { url, agent } => {
                let mut answer = agent.get(url).call().map_err(|error| FetchError(error.to_string()))?;
                if answer.status() != http::StatusCode::OK {
                    return Err(FetchError(format!("the key set's URL answers {}", answer.status())));
                }
                let body = answer.body_mut().with_config().limit(KEYS_BYTES_MAX);
                body.read_to_vec().map_err(|error| FetchError(error.to_string()))?
            }
        };
        read_keys(&bytes)
    }
}

#[derive(Deserialize)]
struct Jwks {
    keys: Vec<Value>,
}

/// The members of a JWK that matter here.
#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<String>,
    alg: Option<String>,
    #[serde(rename = "use")]
    purpose: Option<String>,
    key_ops: Option<Vec<String>>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

/// Reads a key set. Keys of other kinds are left out, as providers mix them in; none left is an error.
fn read_keys(bytes: &[u8]) -> Result<Known, FetchError> {
    let set: Jwks =
        serde_json::from_slice(bytes).map_err(|error| FetchError(format!("no JSON key set: {error}")))?;
    let mut all = Vec::new();
    let mut by_id = HashMap::new();
    for value in set.keys {
        let Some((kid, key)) = serde_json::from_value(value).ok().and_then(read_key) else {
            tracing::debug!("left out a key that is not for RS256, ES256 or EdDSA signatures");
            continue;
        };
        let key = Arc::new(key);
        all.push(Arc::clone(&key));
        if let Some(kid) = kid
            && by_id.insert(kid, key).is_some()
        {
            return Err(FetchError("two keys of the set have the same kid".into()));
        }
    }
    match all.as_slice() {
        [] => Err(FetchError("the set has no key for RS256, ES256 or EdDSA".into())),
        [only] => Ok(Known { only: Some(Arc::clone(only)), by_id, as_of: None }),
        _ => Ok(Known { only: None, by_id, as_of: None }),
    }
}

/// A key with the algorithm that its kind means; `None` if it is of no use here.
fn read_key(jwk: Jwk) -> Option<(Option<String>, Key)> {
    let signs = jwk.purpose.as_deref().is_none_or(|purpose| purpose == "sig")
        && jwk.key_ops.as_deref().is_none_or(|ops| ops.iter().any(|op| op == "verify"));
    if !signs {
        return None;
    }
    let bytes_of = |member: &Option<String>| URL_SAFE_NO_PAD.decode(member.as_deref()?).ok();
    // Sizes are checked here, because the library finds out late: it panics on a short Ed25519 key.
    let (algorithm, names, key) = match (jwk.kty.as_str(), jwk.crv.as_deref()) {
        ("RSA", _) => {
            let (n, e) = (bytes_of(&jwk.n)?, bytes_of(&jwk.e)?);
            let bits = n.iter().skip_while(|byte| **byte == 0).count() * 8;
            if !(2_048..=4_096).contains(&bits) || e.is_empty() || e.len() > 8 {
                return None;
            }
            (Algorithm::RS256, ["RS256", "RS256"], DecodingKey::from_rsa_raw_components(&n, &e))
        }
        ("EC", Some("P-256")) => {
            let (x, y) = (bytes_of(&jwk.x)?, bytes_of(&jwk.y)?);
            if x.len() != 32 || y.len() != 32 {
                return None;
            }
            let point: Vec<u8> = [&[4][..], &x, &y].concat(); // SEC 1, uncompressed
            (Algorithm::ES256, ["ES256", "ES256"], DecodingKey::from_ec_der(&point))
        }
        ("OKP", Some("Ed25519")) => {
            let x = bytes_of(&jwk.x)?;
            if x.len() != 32 {
                return None;
            }
            (Algorithm::EdDSA, ["EdDSA", "Ed25519"], DecodingKey::from_ed_der(&x))
        }
        _ => return None,
    };
    if !jwk.alg.as_deref().is_none_or(|alg| names.contains(&alg)) {
        return None;
    }
    // Fails for a point that is not on the curve; a signature of nothing is merely wrong.
    jsonwebtoken::crypto::verify("", b"", &key, algorithm).ok()?;
    Some((jwk.kid, Key::new(algorithm, key)))
}

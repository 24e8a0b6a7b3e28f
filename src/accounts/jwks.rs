//! A key set as identity providers publish it (RFC 7517). It is read leniently: an unusable key does not
//! affect the others.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::jws::{Algorithm, PublicKey, Token};

/// A key and its permitted algorithms.
pub(super) struct Key {
    /// The name by which tokens may refer to it.
    kid: Option<String>,
    algorithms: Vec<Algorithm>,
    public: PublicKey,
}

impl Key {
    /// Creates a key for these algorithms, which must be of one family.
    pub(super) fn new(kid: Option<String>, algorithms: &[Algorithm], public: PublicKey) -> Self {
        Self { kid, algorithms: algorithms.to_vec(), public }
    }

    /// The claims of a token, if this key signed it with a permitted algorithm; nothing else is checked.
    pub(super) fn claims_of(&self, token: &Token<'_>) -> Option<Map<String, Value>> {
        token.claims_by(&self.public, &self.algorithms)
    }
}

/// Most keys that are used of a set. A token that names none is checked with each of them, some 40 µs a key. Providers
/// have two to ten.
const KEYS_MAX: usize = 64;

/// Most lines in the log about keys of one set that are left out.
const LEFT_OUT_LINES_MAX: usize = 10;

/// The keys of an identity provider.
#[derive(Default)]
pub(super) struct Jwks(Vec<Arc<Key>>);

#[derive(Deserialize)]
struct Document {
    keys: Vec<Value>,
}

impl Jwks {
    /// Reads a key set. Unusable keys are left out, since providers include them, and keys beyond [`KEYS_MAX`].
    ///
    /// Errors: what is wrong with a set that has no usable key.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, String> {
        let set: Document =
            serde_json::from_slice(bytes).map_err(|error| format!("no JSON key set: {error}"))?;
        let (mut keys, listed, mut left_out) = (Vec::new(), set.keys.len(), 0);
        for value in set.keys {
            if keys.len() == KEYS_MAX {
                tracing::warn!(
                    listed,
                    used = KEYS_MAX,
                    "the identity provider lists more keys than are used"
                );
                break;
            }
            let kid = value.get("kid").map(ToString::to_string);
            match serde_json::from_value(value).map_err(|error| error.to_string()).and_then(read_key) {
                Ok(key) => keys.push(Arc::new(key)),
                Err(reason) => {
                    left_out += 1;
                    if left_out <= LEFT_OUT_LINES_MAX {
                        tracing::info!(kid, reason, "ignored a key of the identity provider's set");
                    }
                }
            }
        }
        if keys.is_empty() {
            return Err("the set has no key for RS256, PS256, ES256, ES384 or EdDSA and their kin".into());
        }
        Ok(Self(keys))
    }

    /// Whether the set has a key of that name.
    pub(super) fn names(&self, kid: Option<&str>) -> bool {
        kid.is_some() && self.0.iter().any(|key| key.kid.as_deref() == kid)
    }

    /// The claims of a token, if a key of the set signed it.
    ///
    /// The keys with its `kid` are tried, and those without a name. A provider may list a key twice, or two
    /// keys under one name; any key may have signed a token without a `kid`.
    pub(super) fn claims_of(&self, token: &Token<'_>) -> Option<Map<String, Value>> {
        let may_be = |key: &&Arc<Key>| match (&token.header.kid, &key.kid) {
            (Some(named), Some(kid)) => named == kid,
            _ => true,
        };
        self.0.iter().filter(may_be).find_map(|key| key.claims_of(token))
    }
}

/// The relevant members of a JWK.
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

/// The permitted algorithms of a type of key, by name. A key without `alg` may be used for each.
const RSA: &[(&str, Algorithm)] = &[
    ("RS256", Algorithm::Rs256),
    ("RS384", Algorithm::Rs384),
    ("RS512", Algorithm::Rs512),
    ("PS256", Algorithm::Ps256),
    ("PS384", Algorithm::Ps384),
    ("PS512", Algorithm::Ps512),
];
const P256: &[(&str, Algorithm)] = &[("ES256", Algorithm::Es256)];
const P384: &[(&str, Algorithm)] = &[("ES384", Algorithm::Es384)];
const ED25519: &[(&str, Algorithm)] = &[("EdDSA", Algorithm::EdDsa), ("Ed25519", Algorithm::EdDsa)];

/// Reads one key of a set; the error is why it is unusable.
fn read_key(jwk: Jwk) -> Result<Key, String> {
    if jwk.purpose.as_deref().is_some_and(|purpose| purpose != "sig") {
        return Err("it is not for signatures (use)".into());
    }
    if jwk.key_ops.as_deref().is_some_and(|ops| !ops.iter().any(|op| op == "verify")) {
        return Err("it is not for checking signatures (key_ops)".into());
    }
    let point = |bytes: usize| {
        let of_size = |member: Vec<u8>| Some(member).filter(|member| member.len() == bytes);
        let (x, y) = (bytes_of(&jwk.x).and_then(of_size), bytes_of(&jwk.y).and_then(of_size));
        x.zip(y).map(|(x, y)| [&[4][..], &x, &y].concat()) // SEC 1, uncompressed
    };
    let (known, key) = match (jwk.kty.as_str(), jwk.crv.as_deref()) {
        ("RSA", _) => {
            let (n, e) = bytes_of(&jwk.n).zip(bytes_of(&jwk.e)).ok_or("n or e is missing or no base64url")?;
            let bits = n.iter().skip_while(|byte| **byte == 0).count() * 8;
            if !(2_048..=4_096).contains(&bits) || e.is_empty() || e.len() > 8 {
                return Err(format!("an RSA key of {bits} bits; 2048 to 4096 are taken"));
            }
            (RSA, PublicKey::rsa(&n, &e))
        }
        ("EC", Some("P-256")) => (P256, PublicKey::P256(point(32).ok_or("x or y is not of 32 bytes")?)),
        ("EC", Some("P-384")) => (P384, PublicKey::P384(point(48).ok_or("x or y is not of 48 bytes")?)),
        ("OKP", Some("Ed25519")) => {
            let x = bytes_of(&jwk.x).filter(|x| x.len() == 32).ok_or("x is not of 32 bytes")?;
            (ED25519, PublicKey::Ed25519(x))
        }
        (kty, crv) => return Err(format!("kty {kty:?}, crv {crv:?} is not known here")),
    };
    let fits = |name: &&str| jwk.alg.as_deref().is_none_or(|alg| alg == *name);
    let algorithms: Vec<Algorithm> =
        known.iter().filter(|(name, _)| fits(name)).map(|(_, algorithm)| *algorithm).collect();
    if algorithms.is_empty() {
        return Err(format!("alg {:?} is not one of its kind", jwk.alg.unwrap_or_default()));
    }
    if !key.is_on_its_curve() {
        return Err("x and y are no point of the curve".into());
    }
    Ok(Key::new(jwk.kid, &algorithms, key))
}

/// Decodes base64url. Some providers add padding, or use the alphabet of plain base64.
fn bytes_of(member: &Option<String>) -> Option<Vec<u8>> {
    let text = member.as_deref()?.trim_end_matches('=').replace('+', "-").replace('/', "_");
    URL_SAFE_NO_PAD.decode(text).ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Goal: how long a token takes does not depend on how many keys a provider lists. Method: the set of a thousand keys,
    /// and of as many that cannot be used before a good one.
    #[test]
    fn no_more_keys_are_used_than_may_be() {
        let base_point = [vec![0x58], vec![0x66; 31]].concat();
        let good = |n: usize| {
            let x = URL_SAFE_NO_PAD.encode(&base_point);
            serde_json::json!({ "kty": "OKP", "crv": "Ed25519", "kid": n.to_string(), "x": x })
        };
        let read = |keys: Vec<Value>| Jwks::read(serde_json::json!({ "keys": keys }).to_string().as_bytes());
        let keys = read((0..1_000).map(good).collect()).unwrap();
        assert_eq!(keys.0.len(), KEYS_MAX);
        assert!(keys.names(Some("63")) && !keys.names(Some("64")), "the first ones are used");
        let mut bad: Vec<Value> = (0..1_000).map(|n| serde_json::json!({ "kty": n })).collect();
        assert!(read(bad.clone()).is_err());
        bad.push(good(7));
        assert_eq!(read(bad).unwrap().0.len(), 1);
    }
}

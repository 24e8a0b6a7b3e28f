//! Signed tokens in compact form (RFC 7515), and the signatures of RFC 7518 and 8037, which ring verifies.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::agreement::{self, ECDH_P256, ECDH_P384, EphemeralPrivateKey, agree_ephemeral};
use ring::signature::{
    self, EcdsaVerificationAlgorithm, RsaParameters, RsaPublicKeyComponents, UnparsedPublicKey,
};
use ring::{hmac, rand};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Map, Value};

/// The accepted signatures, and those with secrets that are refused by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
#[allow(missing_docs)] // the names of RFC 7518
pub(super) enum Algorithm {
    Hs256,
    Hs384,
    Hs512,
    Rs256,
    Rs384,
    Rs512,
    Ps256,
    Ps384,
    Ps512,
    Es256,
    Es384,
    #[serde(rename = "EdDSA")]
    EdDsa,
}

impl Algorithm {
    /// Whether it is made and verified with a secret.
    pub(super) fn is_of_secret(self) -> bool {
        matches!(self, Self::Hs256 | Self::Hs384 | Self::Hs512)
    }
}

/// The header of a token. Members that only matter by their presence are not read.
#[derive(Deserialize)]
pub(super) struct Header {
    pub(super) alg: Algorithm,
    pub(super) kid: Option<String>,
    jku: Option<IgnoredAny>,
    jwk: Option<IgnoredAny>,
    x5u: Option<IgnoredAny>,
    crit: Option<IgnoredAny>,
}

impl Header {
    /// Whether the token contains its own key, or a URL of one.
    pub(super) fn brings_a_key(&self) -> bool {
        self.jku.is_some() || self.jwk.is_some() || self.x5u.is_some()
    }

    /// Whether the token requires extensions that this server does not support.
    pub(super) fn demands_an_extension(&self) -> bool {
        self.crit.is_some()
    }
}

/// A parsed token. Nothing of it is verified.
pub(super) struct Token<'a> {
    /// The token as it was sent.
    pub(super) text: &'a str,
    pub(super) header: Header,
    /// The signed part: header and claims as they were sent.
    signed: &'a str,
    claims: &'a str,
    signature: Vec<u8>,
}

impl<'a> Token<'a> {
    /// Parses a token; `None` if it is invalid.
    pub(super) fn read(text: &'a str) -> Option<Self> {
        let (signed, signature) = text.rsplit_once('.')?;
        let (header, claims) = signed.split_once('.')?;
        let header = URL_SAFE_NO_PAD.decode(header).ok()?;
        // Members that are not read must be JSON too, and those that are read must not be duplicates.
        serde_json::from_slice::<Map<String, Value>>(&header).ok()?;
        let header = serde_json::from_slice(&header).ok()?;
        let signature = URL_SAFE_NO_PAD.decode(signature).ok()?;
        Some(Self { text, header, signed, claims, signature })
    }

    /// The claims of the token, if `key` signed it with a permitted algorithm; nothing else is checked.
    pub(super) fn claims_by(&self, key: &PublicKey, algorithms: &[Algorithm]) -> Option<Map<String, Value>> {
        let alg = self.header.alg;
        if !algorithms.contains(&alg) || !key.has_signed(alg, self.signed.as_bytes(), &self.signature) {
            return None;
        }
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(self.claims).ok()?).ok()
    }
}

/// A key that verifies signatures: a public key, or a secret.
pub(super) enum PublicKey {
    Secret(hmac::Key),
    Rsa(RsaPublicKeyComponents<Vec<u8>>),
    /// A point of P-256, uncompressed as in SEC 1.
    P256(Vec<u8>),
    /// A point of P-384, uncompressed as in SEC 1.
    P384(Vec<u8>),
    Ed25519(Vec<u8>),
}

impl PublicKey {
    /// The secret of HS256.
    pub(super) fn secret(secret: &[u8]) -> Self {
        Self::Secret(hmac::Key::new(hmac::HMAC_SHA256, secret))
    }

    /// An RSA key; both numbers are big-endian.
    pub(super) fn rsa(n: &[u8], e: &[u8]) -> Self {
        // Some providers write a leading zero.
        let whole = |number: &[u8]| number.iter().copied().skip_while(|byte| *byte == 0).collect();
        Self::Rsa(RsaPublicKeyComponents { n: whole(n), e: whole(e) })
    }

    /// Whether an elliptic-curve point is on its curve.
    ///
    /// ring checks a point only when it is used. A failed signature does not distinguish a bad key from a bad
    /// signature; a key agreement does.
    pub(super) fn is_on_its_curve(&self) -> bool {
        let (curve, point) = match self {
            Self::P256(point) => (&ECDH_P256, point),
            Self::P384(point) => (&ECDH_P384, point),
            Self::Secret(_) | Self::Rsa(_) | Self::Ed25519(_) => return true,
        };
        let peer = agreement::UnparsedPublicKey::new(curve, point);
        EphemeralPrivateKey::generate(curve, &rand::SystemRandom::new())
            .and_then(|own| agree_ephemeral(own, &peer, |_| ()))
            .is_ok()
    }

    fn has_signed(&self, alg: Algorithm, message: &[u8], signature: &[u8]) -> bool {
        match (self, alg) {
            (Self::Secret(key), Algorithm::Hs256) => hmac::verify(key, message, signature).is_ok(),
            (Self::Rsa(key), alg) => rsa(alg).is_some_and(|how| key.verify(how, message, signature).is_ok()),
            (Self::P256(point), Algorithm::Es256) => {
                is_signed_by(&signature::ECDSA_P256_SHA256_FIXED, point, message, signature)
            }
            (Self::P384(point), Algorithm::Es384) => {
                is_signed_by(&signature::ECDSA_P384_SHA384_FIXED, point, message, signature)
            }
            (Self::Ed25519(key), Algorithm::EdDsa) => {
                UnparsedPublicKey::new(&signature::ED25519, key).verify(message, signature).is_ok()
            }
            _ => false,
        }
    }
}

fn is_signed_by(
    how: &'static EcdsaVerificationAlgorithm,
    point: &[u8],
    message: &[u8],
    signature: &[u8],
) -> bool {
    UnparsedPublicKey::new(how, point).verify(message, signature).is_ok()
}

/// The RSA parameters of an algorithm.
fn rsa(alg: Algorithm) -> Option<&'static RsaParameters> {
    Some(match alg {
        Algorithm::Rs256 => &signature::RSA_PKCS1_2048_8192_SHA256,
        Algorithm::Rs384 => &signature::RSA_PKCS1_2048_8192_SHA384,
        Algorithm::Rs512 => &signature::RSA_PKCS1_2048_8192_SHA512,
        Algorithm::Ps256 => &signature::RSA_PSS_2048_8192_SHA256,
        Algorithm::Ps384 => &signature::RSA_PSS_2048_8192_SHA384,
        Algorithm::Ps512 => &signature::RSA_PSS_2048_8192_SHA512,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: the parts are those of RFC 7515. Method: the example of its appendix A.1.
    #[test]
    fn the_example_of_the_standard_is_read() {
        let token = "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9.\
                     eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.\
                     dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
        let secret = "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow";
        let key = PublicKey::secret(&URL_SAFE_NO_PAD.decode(secret).unwrap());
        let read = Token::read(token).unwrap();
        assert_eq!(read.claims_by(&key, &[Algorithm::Hs256]).unwrap()["iss"], "joe");
        assert!(read.claims_by(&key, &[Algorithm::Rs256]).is_none(), "an algorithm that the key is not for");
        assert!(read.claims_by(&PublicKey::secret(b"another"), &[Algorithm::Hs256]).is_none());
        assert!(Token::read(&token.replace("eyJ0eXAi", "eyJ0eXAi=")).is_none());
        for header in [r#"{"alg":"HS256","x":"\ud800"}"#, r#"{"alg":"HS256","alg":"HS256"}"#, "[]", "7"] {
            let text = format!("{}.e30.", URL_SAFE_NO_PAD.encode(header));
            assert!(Token::read(&text).is_none(), "{header}");
        }
        assert!(
            ["", ".", "..", "a.b.c", "eyJhbGciOiJub25lIn0.e30."]
                .iter()
                .all(|text| Token::read(text).is_none())
        );
    }
}

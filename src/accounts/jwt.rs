//! Tokens of the app's own identity provider: signed JWTs, verified according to RFC 8725.
//!
//! - A key permits the algorithms of its type, or the one that its `alg` names. A token cannot choose another
//!   one, and cannot contain or reference a key.
//! - Owner and device ids that are UUIDs are used unchanged. Any other text becomes a UUIDv5, so that every
//!   provider's ids work (see `derived`). So does a UUIDv5: otherwise a provider that lets users choose their
//!   ids would let them choose the derived id of another user.
//! - A token may name the owners that its user has, with a role at each (`--jwt-owners-claim`). Then it has these owners,
//!   and its home, and no others; members of this server do not matter. A token without the claim goes by members.
//! - A token cannot be revoked before it expires, so providers should make them short-lived.

use std::sync::Arc;

use serde_json::{Map, Value};
use uuid::Uuid;

use super::jwks::Key;
use super::jws::Token;
use super::keys::{self, KeySet, Source};
use super::token_cache::{TokenCache, Validity, fingerprint};
use super::{AccountError, Caller, Rights, SetupError, TokenOwners};
use crate::clock::{Clock, Tick};
use crate::config::AuthSettings;
use crate::model::{DeviceId, Owner, Role, Timestamp};

/// How far the provider's clock may deviate from the server's, s.
const LEEWAY_S: f64 = 60.0;
/// Characters of a device claim that are shown as the device's name.
const DEVICE_NAME_CHARS_MAX: usize = 100;

/// The namespace of all derived ids: a UUIDv4 for this purpose, which must never change.
const NAMESPACE: Uuid = Uuid::from_u128(0x8d0f_6f0e_52c1_4b6c_9d36_3f1a_f0c7_a1e5);

/// Identifies callers by the identity provider's tokens. [`JwtAccounts::authenticate`] blocks,
/// [`JwtAccounts::known`] does not.
pub struct JwtAccounts {
    keys: Keys,
    clock: Clock,
    issuer: Option<String>,
    audience: Option<String>,
    user_claim: String,
    owner_claim: Option<String>,
    owners_claim: Option<String>,
    owners_max: usize,
    device_claim: String,
    known: TokenCache,
}

enum Keys {
    /// The secret shared with the provider.
    Secret(Key),
    /// The provider's public keys.
    Set(KeySet),
}

impl Keys {
    /// The number of the current key set; `None` if it must be fetched again.
    fn in_force(&self) -> Option<u64> {
        match self {
            Self::Secret(_) => Some(0),
            Self::Set(keys) => keys.in_force(),
        }
    }
}

impl JwtAccounts {
    /// Reads the keys that the settings name.
    ///
    /// - `owners_max`: most owners that a token may name.
    ///
    /// Errors: not exactly one source of keys, a short secret, a file without a usable key, a key set without
    /// an issuer (providers sign for many apps with one set). An unreachable URL is only logged, and fetched
    /// again when the first token arrives.
    pub fn open(settings: &AuthSettings, owners_max: usize, clock: Clock) -> Result<Self, SetupError> {
        let optional = [settings.jwt_owner_claim.as_ref(), settings.jwt_owners_claim.as_ref()];
        let claims = [&settings.jwt_user_claim, &settings.jwt_device_claim];
        if optional.into_iter().flatten().chain(claims).any(String::is_empty) {
            return Err(SetupError::ClaimName);
        }
        let keys = match (&settings.jwt_secret_file, &settings.jwt_keys) {
            (Some(file), None) => Keys::Secret(keys::secret(file)?),
            (None, Some(place)) => {
                if settings.jwt_issuer.is_none() {
                    return Err(SetupError::IssuerMissing);
                }
                Keys::Set(KeySet::open(Source::parse(place)?, clock.clone())?)
            }
            _ => return Err(SetupError::OneKeySource),
        };
        Ok(Self {
            keys,
            clock,
            issuer: settings.jwt_issuer.clone(),
            audience: settings.jwt_audience.clone(),
            user_claim: settings.jwt_user_claim.clone(),
            owner_claim: settings.jwt_owner_claim.clone(),
            owners_claim: settings.jwt_owners_claim.clone(),
            owners_max,
            device_claim: settings.jwt_device_claim.clone(),
            known: TokenCache::new(settings.tokens_known_max),
        })
    }

    /// Identifies the caller of a token.
    ///
    /// - Bounds: a token is as long as the headers of a request may be.
    /// - Errors: `Unauthorized` for a token that is invalid or expired; `KeysUnavailable` if no known key
    ///   fits it, and the provider cannot be contacted now.
    pub fn authenticate(&self, token: &str) -> Result<Caller, AccountError> {
        let read = Token::read(token).ok_or(NO_JWT)?;
        if read.header.brings_a_key() {
            return Err(AccountError::Unauthorized("The token brings its own key."));
        }
        if read.header.demands_an_extension() {
            return Err(AccountError::Unauthorized("The token demands an extension."));
        }
        // Taken before the key is looked up: a verified token stays cached no longer than the key set that
        // was used.
        let (since, keys) = (self.known.stamp(), self.keys.in_force());
        let claims = match &self.keys {
            Keys::Secret(key) => key.claims_of(&read).ok_or(AccountError::Unauthorized(
                "The token is not signed with the secret of --jwt-secret-file.",
            ))?,
            // Public keys never sign this way, whichever keys the provider may have now.
            Keys::Set(_) if read.header.alg.is_of_secret() => return Err(keys::UNKNOWN_KEY),
            Keys::Set(keys) => keys.claims_of(&read)?,
        };
        let expires_at = self.check_times(&claims)?;
        self.check_issuer_and_audience(&claims)?;
        let caller = self.caller(&claims)?;
        if let Some(keys) = keys {
            // A signature stays valid: only its expiry and a change of keys can end it.
            let good = Validity { until: Tick::NEVER, expires_at, keys };
            self.known.note(fingerprint(token), &caller, good, since);
        }
        Ok(caller)
    }

    /// The caller of a token, if the token is cached.
    pub fn known(&self, token: &str) -> Option<Caller> {
        self.known.find(&fingerprint(token), &self.clock, self.keys.in_force()?)
    }

    /// Checks the token's times; returns the time from which it is refused.
    fn check_times(&self, claims: &Map<String, Value>) -> Result<Timestamp, AccountError> {
        // JWTs count seconds since 1970; an f64 holds them exactly, with fractions.
        let now_s = self.clock.now().ms() as f64 / 1_000.0;
        let Some(exp) = claims.get("exp").and_then(Value::as_f64) else {
            return Err(AccountError::Unauthorized("The token does not say when it expires."));
        };
        if exp + LEEWAY_S <= now_s {
            return Err(AccountError::Unauthorized("The token has expired."));
        }
        // A float beyond the range of times becomes the last one.
        let expires_at = Timestamp::from_ms(((exp + LEEWAY_S) * 1_000.0) as i64);
        match claims.get("nbf").map(Value::as_f64) {
            None => Ok(expires_at),
            Some(Some(nbf)) if nbf - LEEWAY_S <= now_s => Ok(expires_at),
            Some(_) => Err(AccountError::Unauthorized("The token is not good yet.")),
        }
    }

    fn check_issuer_and_audience(&self, claims: &Map<String, Value>) -> Result<(), AccountError> {
        let issuer = claims.get("iss").and_then(Value::as_str);
        if self.issuer.is_some() && issuer != self.issuer.as_deref() {
            return Err(AccountError::Unauthorized("The token is of another issuer."));
        }
        let named = |wanted: &str| match claims.get("aud") {
            Some(Value::String(one)) => one == wanted,
            Some(Value::Array(many)) => many.iter().any(|one| one.as_str() == Some(wanted)),
            _ => false,
        };
        match &self.audience {
            Some(wanted) if named(wanted) => Ok(()),
            Some(_) => Err(AccountError::Unauthorized("The token is for another audience.")),
            // RFC 7519, 4.1.3: a token for an audience is invalid for a server without a configured one.
            None if claims.contains_key("aud") => Err(AccountError::Unauthorized(
                "The token names an audience, and the server has none set (--jwt-audience).",
            )),
            None => Ok(()),
        }
    }

    fn caller(&self, claims: &Map<String, Value>) -> Result<Caller, AccountError> {
        let issuer = claims.get("iss").and_then(Value::as_str).unwrap_or_default();
        let Some(user) = id_claim(claims, &self.user_claim)? else {
            return Err(AccountError::Unauthorized("The token does not name its user."));
        };
        let named_owner = match &self.owner_claim {
            Some(claim) => id_claim(claims, claim)?,
            None => None,
        };
        let user_id = taken(&user).unwrap_or_else(|| derived(&[issuer, "user", &user]));
        let owner_id = |id: &str| taken(id).unwrap_or_else(|| derived(&[issuer, "owner", id]));
        let owner = named_owner.as_deref().map_or(user_id, owner_id);
        let named = self.owners_claim.as_ref().map(|claim| owners_claim(claims.get(claim), self.owners_max));
        let token_owners = named.transpose()?.flatten().map(|named| {
            // The home is named by the id that makes it, of the user or of the owner.
            let home = named_owner.as_deref().unwrap_or(&user);
            let id_of = |id: &str| if id == home { owner } else { owner_id(id) };
            let named = named.iter().map(|(id, role)| (Owner(id_of(id)), *role)).collect();
            TokenOwners::new(Owner(owner), named).map(Arc::new).ok_or(TWICE)
        });
        let token_owners = token_owners.transpose()?;
        let of_home = token_owners.as_ref().map(|named| named.rights(Owner(owner)));
        let owner_text = owner.hyphenated().to_string();
        let named_device = id_claim(claims, &self.device_claim)?;
        let device = match &named_device {
            Some(device) => {
                taken(device).unwrap_or_else(|| derived(&[issuer, "device", &owner_text, device]))
            }
            // Without a device claim a user has one device: two phones of the user share the lock, and the
            // later edit wins.
            None => derived(&[issuer, "only device", &owner_text, &user]),
        };
        Ok(Caller {
            owner: Owner(owner),
            default_owner: Owner(owner),
            rights: of_home.unwrap_or(Rights::of_token(Role::Manage)),
            token_owners,
            device: DeviceId(device),
            token_device: DeviceId(device),
            installation: None,
            device_name: shown(named_device.as_deref().unwrap_or_default()),
            user: user_id,
        })
    }
}

const NO_JWT: AccountError = AccountError::Unauthorized("The token is no JWT with an algorithm known here.");

/// The text of a claim with an id: a string, or an integer, which some providers use.
fn id_claim(claims: &Map<String, Value>, name: &str) -> Result<Option<String>, AccountError> {
    claims.get(name).map_or(Ok(None), id_text)
}

fn id_text(id: &Value) -> Result<Option<String>, AccountError> {
    let text = match id {
        Value::Null => return Ok(None),
        Value::String(text) => text.clone(),
        Value::Number(number) if number.is_i64() || number.is_u64() => number.to_string(),
        _ => {
            return Err(AccountError::Unauthorized("An id in the token is neither text nor a number."));
        }
    };
    if text.is_empty() {
        return Err(AccountError::Unauthorized("An id in the token is empty."));
    }
    Ok(Some(text))
}

const TWICE: AccountError =
    AccountError::Unauthorized("The token names an owner twice, with different roles.");

/// The owners of a claim, as ids with roles; `None` if the token has no such claim.
///
/// The claim is an object of roles by owner, or a list of owners: `{"owner": …, "role": …}`, or the id alone, which is
/// the role `write`.
fn owners_claim(
    claim: Option<&Value>,
    owners_max: usize,
) -> Result<Option<Vec<(String, Role)>>, AccountError> {
    let malformed = || {
        AccountError::Unauthorized(
            "The claim of --jwt-owners-claim is neither an object of roles (read, write, manage) by owner, nor a list \
             of owners.",
        )
    };
    let role = |role: &Value| role.as_str().and_then(Role::named).ok_or_else(malformed);
    let too_many = |count: usize| match count > owners_max {
        true => Err(AccountError::Unauthorized("The token names more owners than owners_per_user_max.")),
        false => Ok(()),
    };
    let named: Vec<(String, Role)> = match claim {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::Object(roles)) => {
            too_many(roles.len())?;
            let one = |(id, given): (&String, &Value)| Ok((id.clone(), role(given)?));
            roles.iter().map(one).collect::<Result<_, AccountError>>()?
        }
        Some(Value::Array(owners)) => {
            too_many(owners.len())?;
            let one = |one: &Value| match one {
                Value::Object(one) => {
                    let id = id_claim(one, "owner")?.ok_or_else(malformed)?;
                    Ok((id, role(one.get("role").unwrap_or(&Value::Null))?))
                }
                id => Ok((id_text(id)?.ok_or_else(malformed)?, Role::Write)),
            };
            owners.iter().map(one).collect::<Result<_, AccountError>>()?
        }
        Some(_) => return Err(malformed()),
    };
    match named.iter().any(|(id, _)| id.is_empty()) {
        true => Err(malformed()),
        false => Ok(Some(named)),
    }
}

/// A device claim as a device's name, which appears in responses and logs.
fn shown(device: &str) -> String {
    let name: String = device.chars().filter(|c| !c.is_control()).take(DEVICE_NAME_CHARS_MAX).collect();
    if name.is_empty() { "unnamed device".to_owned() } else { name }
}

/// The UUID of an id that can be used unchanged: with hyphens, not nil, not version 5.
fn taken(text: &str) -> Option<Uuid> {
    let id = if text.len() == 36 { Uuid::try_parse(text).ok()? } else { return None };
    (!id.is_nil() && id.get_version_num() != 5).then_some(id)
}

/// The UUIDv5 of a path of names. Each step is the namespace of the next, so different paths have different
/// ids.
///
/// - user: issuer, `user`, claim. owner: issuer, `owner`, claim.
/// - device: issuer, `device`, the owner's UUID, claim. No device claim: issuer, `only device`, the
///   owner's UUID, the user's claim.
fn derived(path: &[&str]) -> Uuid {
    path.iter().fold(NAMESPACE, |space, name| Uuid::new_v5(&space, name.as_bytes()))
}

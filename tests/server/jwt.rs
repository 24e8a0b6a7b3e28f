//! Tokens of an identity provider: which ones are accepted, and the many that must not be.

use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use proptest::prelude::*;
use rollcall::accounts::{AccountError, Caller, JwtAccounts, Rights, SetupError};
use rollcall::clock::{Clock, Tick};
use rollcall::config::{AuthMode, AuthSettings};
use rollcall::model::{DeviceId, Owner, Role, Timestamp};
use serde_json::{Value, json};
use tempfile::TempDir;
use uuid::Uuid;

const SECRET: &[u8] = b"a secret of more than thirty-two bytes";
const ISSUER: &str = "https://id.example.org/";
/// Most owners that a token may name.
const OWNERS_MAX: usize = 4;
const MINUTE_MS: i64 = 60_000;
const NOW_MS: i64 = 1_700_000_000_000;

/// The key of `fixtures/jwt` with that name, and its algorithm.
fn signing_key(name: &str) -> (Algorithm, EncodingKey) {
    let der = std::fs::read(format!("fixtures/jwt/{name}.der")).unwrap();
    match name.rsplit('-').next().unwrap() {
        "rsa" => (Algorithm::RS256, EncodingKey::from_rsa_der(&der)),
        "ec" => (Algorithm::ES256, EncodingKey::from_ec_der(&der)),
        "ed" => (Algorithm::EdDSA, EncodingKey::from_ed_der(&der)),
        other => panic!("{other}"),
    }
}

/// The public key as a provider publishes it; its name is its `kid`.
fn jwk(name: &str) -> Value {
    let (algorithm, key) = signing_key(name);
    let mut jwk = serde_json::to_value(Jwk::from_encoding_key(&key, algorithm).unwrap()).unwrap();
    jwk["kid"] = json!(name);
    jwk["use"] = json!("sig");
    jwk
}

fn jwks(names: &[&str]) -> Value {
    json!({ "keys": names.iter().map(|name| jwk(name)).collect::<Vec<_>>() })
}

fn header(algorithm: Algorithm, kid: &str) -> Header {
    Header { kid: Some(kid.into()), ..Header::new(algorithm) }
}

fn sign_with(header: &Header, claims: &Value, key: &EncodingKey) -> String {
    jsonwebtoken::encode(header, claims, key).unwrap()
}

fn sign(name: &str, claims: &Value) -> String {
    let (algorithm, key) = signing_key(name);
    sign_with(&header(algorithm, name), claims, &key)
}

fn sign_hs(claims: &Value) -> String {
    sign_with(&Header::new(Algorithm::HS256), claims, &EncodingKey::from_secret(SECRET))
}

/// A token with any header and any signature.
fn assemble(header: &Value, claims: &Value, signature: &str) -> String {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    format!("{}.{}.{signature}", part(header), part(claims))
}

fn file_with(content: &[u8]) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("keys");
    std::fs::write(&path, content).unwrap();
    (dir, path)
}

fn settings() -> AuthSettings {
    AuthSettings { auth: AuthMode::Jwt, ..AuthSettings::default() }
}

struct Jwt {
    accounts: JwtAccounts,
    now_ms: Arc<AtomicI64>,
    tick_ms: Arc<AtomicI64>,
    /// A key file must be there as long as the server runs.
    _dir: Option<TempDir>,
}

impl Jwt {
    fn open(settings: &AuthSettings) -> Self {
        let now_ms = Arc::new(AtomicI64::new(NOW_MS));
        let tick_ms = Arc::new(AtomicI64::new(0));
        let (now, tick) = (Arc::clone(&now_ms), Arc::clone(&tick_ms));
        let clock = Clock::of(
            move || Timestamp::from_ms(now.load(Ordering::SeqCst)),
            move || Tick::from_ms(tick.load(Ordering::SeqCst)),
        );
        Self {
            accounts: JwtAccounts::open(settings, OWNERS_MAX, clock).unwrap(),
            now_ms,
            tick_ms,
            _dir: None,
        }
    }

    fn with_secret(change: impl FnOnce(&mut AuthSettings)) -> Self {
        let (_dir, file) = file_with(SECRET);
        let mut settings = AuthSettings { jwt_secret_file: Some(file), ..settings() };
        change(&mut settings);
        Self::open(&settings)
    }

    fn with_keys(set: &Value) -> Self {
        let (dir, file) = file_with(set.to_string().as_bytes());
        Self { _dir: Some(dir), ..Self::with_keys_at(file.to_str().unwrap()) }
    }

    fn with_keys_at(place: &str) -> Self {
        let (keys, issuer) = (Some(place.to_owned()), Some(ISSUER.to_owned()));
        Self::open(&AuthSettings { jwt_keys: keys, jwt_issuer: issuer, ..settings() })
    }

    /// Time passes.
    fn turn(&self, ms: i64) {
        self.tick_ms.fetch_add(ms, Ordering::SeqCst);
        self.set_clock(ms);
    }

    /// Somebody sets the time of day.
    fn set_clock(&self, ms: i64) {
        self.now_ms.fetch_add(ms, Ordering::SeqCst);
    }

    fn takes(&self, token: &str) -> Caller {
        self.accounts.authenticate(token).unwrap()
    }

    #[track_caller]
    fn refuses(&self, token: &str) -> &'static str {
        match self.accounts.authenticate(token) {
            Err(AccountError::Unauthorized(reason)) => reason,
            other => panic!("{other:?}"),
        }
    }

    /// The token is refused, or postponed until the provider may be contacted again.
    #[track_caller]
    fn never_takes(&self, token: &str) {
        let outcome = self.accounts.authenticate(token);
        let expected =
            matches!(outcome, Err(AccountError::Unauthorized(_) | AccountError::KeysUnavailable { .. }));
        assert!(expected, "{outcome:?}");
    }

    /// Neither takes nor refuses the token; when to show it again, s.
    #[track_caller]
    fn cannot_tell(&self, token: &str) -> u64 {
        match self.accounts.authenticate(token) {
            Err(AccountError::KeysUnavailable { retry_after_s }) => retry_after_s,
            other => panic!("{other:?}"),
        }
    }
}

/// Good claims, changed; null takes one away.
fn claims(changes: Value) -> Value {
    let mut claims =
        json!({"iss": ISSUER, "sub": "auth0|anna", "device_id": "phone-1", "exp": NOW_MS / 1_000 + 600});
    for (name, value) in changes.as_object().unwrap() {
        if value.is_null() {
            claims.as_object_mut().unwrap().remove(name);
        } else {
            claims[name] = value.clone();
        }
    }
    claims
}

fn good() -> Value {
    claims(json!({}))
}

/// A provider's HTTP server on the loopback: its response, and the number of its requests.
struct Provider {
    url: String,
    asked: Arc<AtomicUsize>,
    answer: Arc<Mutex<Vec<u8>>>,
}

impl Provider {
    fn of(set: &Value) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/keys.json", listener.local_addr().unwrap());
        let provider = Self { url, asked: Arc::default(), answer: Arc::default() };
        provider.answers("200 OK", "", set.to_string().as_bytes());
        let (asked, answer) = (Arc::clone(&provider.asked), Arc::clone(&provider.answer));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut head = Vec::new();
                let mut byte = [0];
                while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap_or(0) == 1 {
                    head.push(byte[0]);
                }
                asked.fetch_add(1, Ordering::SeqCst);
                let bytes = answer.lock().unwrap().clone();
                let _ = stream.write_all(&bytes); // a client that has read enough closes the connection
            }
        });
        provider
    }

    fn answers(&self, status: &str, headers: &str, body: &[u8]) {
        let length = body.len();
        let head =
            format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {length}\r\nConnection: close\r\n\r\n");
        *self.answer.lock().unwrap() = [head.as_bytes(), body].concat();
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

#[test]
fn every_algorithm_is_taken_from_its_own_key_only() {
    let names = ["provider-rsa", "provider-ec", "provider-ed"];
    let jwt = Jwt::with_keys(&jwks(&names));
    let callers: Vec<Caller> = names.iter().map(|name| jwt.takes(&sign(name, &good()))).collect();
    assert!(callers.windows(2).all(|pair| pair[0] == pair[1]), "the same person whatever the key");
    for name in names {
        // A stranger's key of the same kind, and the provider's other keys, under this key's name.
        let stranger = name.replace("provider", "stranger");
        for other in names.into_iter().chain([stranger.as_str()]).filter(|other| *other != name) {
            let (algorithm, key) = signing_key(other);
            jwt.refuses(&sign_with(&header(algorithm, name), &good(), &key));
        }
    }

    let secret = Jwt::with_secret(|_| ());
    secret.takes(&sign_hs(&good()));
    for algorithm in [Algorithm::HS384, Algorithm::HS512] {
        secret.refuses(&sign_with(&Header::new(algorithm), &good(), &EncodingKey::from_secret(SECRET)));
    }
    let other = EncodingKey::from_secret(b"another secret of thirty-two bytes and more");
    secret.refuses(&sign_with(&Header::new(Algorithm::HS256), &good(), &other));
    for name in names {
        secret.refuses(&sign(name, &good()));
    }
}

#[test]
fn a_public_key_is_no_secret_and_no_signature_is_none() {
    let keys = Jwt::with_keys(&jwks(&["provider-rsa"]));
    let public = jwk("provider-rsa");
    let modulus = public["n"].as_str().unwrap();
    // What an attacker would try as the secret: the key as published, in several forms.
    let guesses = [
        URL_SAFE_NO_PAD.decode(modulus).unwrap(),
        modulus.as_bytes().to_vec(),
        public.to_string().into_bytes(),
        Vec::new(),
    ];
    for guess in guesses {
        let key = EncodingKey::from_secret(&guess);
        keys.refuses(&sign_with(&header(Algorithm::HS256, "provider-rsa"), &good(), &key));
    }
    for jwt in [&keys, &Jwt::with_secret(|_| ())] {
        for alg in ["none", "None", "NONE", "", "HS256", "RS256", "PS256"] {
            for signature in ["", "AAAA"] {
                jwt.refuses(&assemble(&json!({"alg": alg, "kid": "provider-rsa"}), &good(), signature));
                jwt.never_takes(&assemble(&json!({"alg": alg}), &good(), signature));
            }
        }
        jwt.refuses(&assemble(&json!({}), &good(), ""));
    }
    // Other claims under a good signature.
    let token = sign("provider-rsa", &good());
    let forged = assemble(&json!({}), &claims(json!({"sub": "auth0|bert"})), "");
    let mut parts: Vec<&str> = token.split('.').collect();
    parts[1] = forged.split('.').nth(1).unwrap();
    keys.refuses(&parts.join("."));
}

#[test]
fn a_token_cannot_bring_or_point_to_its_key() {
    let evil = Provider::of(&jwks(&["stranger-ed"]));
    let jwt = Jwt::with_keys(&jwks(&["provider-ed"]));
    let base = header(Algorithm::EdDSA, "provider-ed");
    let headers = [
        Header { jku: Some(evil.url.clone()), ..base.clone() },
        Header { x5u: Some(evil.url.clone()), ..base.clone() },
        Header { jwk: Some(serde_json::from_value(jwk("stranger-ed")).unwrap()), ..base.clone() },
        Header { crit: Some(vec!["b64".into()]), ..base.clone() },
    ];
    for header in headers {
        // Even under a good signature: a provider that does so is not set up as we think.
        for name in ["stranger-ed", "provider-ed"] {
            jwt.refuses(&sign_with(&header, &good(), &signing_key(name).1));
        }
    }
    assert_eq!(evil.asked(), 0);
}

#[test]
fn times_are_checked_with_a_minute_of_leeway() {
    let jwt = Jwt::with_secret(|_| ());
    let now_s = NOW_MS / 1_000;
    let with = |changes: Value| sign_hs(&claims(changes));
    jwt.takes(&with(json!({"exp": now_s - 59})));
    jwt.refuses(&with(json!({"exp": now_s - 60})));
    jwt.takes(&with(json!({"exp": now_s as f64 + 0.5})));
    jwt.takes(&with(json!({"nbf": now_s + 60})));
    jwt.refuses(&with(json!({"nbf": now_s + 61})));
    jwt.takes(&with(json!({"exp": 1e300, "nbf": -1e300})));
    for exp in [Value::Null, json!("9999999999"), json!(true), json!([]), json!(-1), json!(0)] {
        jwt.refuses(&with(json!({"exp": exp})));
    }
    for nbf in [json!("0"), json!({}), json!(1e300)] {
        jwt.refuses(&with(json!({"nbf": nbf})));
    }
    let token = with(json!({}));
    jwt.takes(&token);
    jwt.turn(660_000);
    assert_eq!(jwt.refuses(&token), "The token has expired.");
}

#[test]
fn issuer_and_audience_are_required_where_they_are_set() {
    let jwt = Jwt::with_secret(|settings| {
        settings.jwt_issuer = Some(ISSUER.into());
        settings.jwt_audience = Some("wedding".into());
    });
    let with = |changes: Value| sign_hs(&claims(changes));
    jwt.takes(&with(json!({"aud": "wedding"})));
    jwt.takes(&with(json!({"aud": ["other", "wedding"]})));
    let auds = [
        Value::Null,
        json!("other"),
        json!(["other", 1]),
        json!([]),
        json!({"wedding": 1}),
        json!("Wedding"),
    ];
    for aud in auds {
        jwt.refuses(&with(json!({"aud": aud})));
    }
    for iss in [Value::Null, json!("https://evil.example.org/"), json!([ISSUER]), json!("")] {
        jwt.refuses(&with(json!({"aud": "wedding", "iss": iss})));
    }
    // With no audience set, a token made for someone is not for us; with no issuer set, any will do.
    let open = Jwt::with_secret(|_| ());
    assert!(open.refuses(&with(json!({"aud": "wedding"}))).contains("--jwt-audience"));
    open.takes(&with(json!({"iss": null})));
}

#[test]
fn ids_of_every_kind_become_stable_owners_and_devices() {
    let jwt = Jwt::with_secret(|settings| settings.jwt_owner_claim = Some("couple".into()));
    let caller = |changes: Value| jwt.takes(&sign_hs(&claims(changes)));
    let uuid = "0198a7d6-6c3a-7d1e-9f10-2b8f3f1c5a77";
    let other = "5f1c9ae0-9f9c-4a52-8e6b-0a6d0a3b1f2e";

    let taken = caller(json!({"sub": uuid, "device_id": other}));
    assert_eq!((taken.owner.to_string(), taken.device.to_string()), (uuid.into(), other.into()));
    assert_eq!((taken.user.to_string(), taken.device_name.as_str()), (uuid.into(), other));
    assert_eq!(caller(json!({"sub": uuid.to_uppercase()})).owner, taken.owner);
    assert_eq!(caller(json!({"couple": other})).owner.to_string(), other);

    // The mapping is part of the data: if it changed, nobody would find their rows again.
    let anna = caller(json!({}));
    assert_eq!(anna.owner.to_string(), "22f95dc7-36e6-5a0e-b59e-039ce6ab4fc3");
    assert_eq!(anna.device.to_string(), "01b44e60-7ff9-5d53-a82f-a401b86b6727");
    assert_eq!(anna.device_name, "phone-1");
    assert_eq!(anna.user, anna.owner.0);
    let shares = caller(json!({"couple": other}));
    assert_eq!((shares.user, shares.owner.to_string()), (anna.user, other.into()), "whatever they share");
    assert_eq!(anna, caller(json!({"jti": "the next token"})));

    let owners = [
        json!({}),
        json!({"sub": "auth0|bert"}),
        json!({"iss": "https://elsewhere.example.org/"}),
        json!({"iss": null}),
        json!({"couple": "auth0|anna"}),
        json!({"couple": 17}),
        json!({"sub": uuid}),
        json!({"sub": uuid.replace('-', "")}),
        json!({"sub": format!("{{{uuid}}}")}),
        json!({"sub": "00000000-0000-0000-0000-000000000000"}),
        // The derived id of another user, chosen as one's own.
        json!({"sub": anna.owner.to_string()}),
    ];
    let distinct: HashSet<Owner> = owners.iter().map(|changes| caller(changes.clone()).owner).collect();
    assert_eq!(distinct.len(), owners.len());
    assert!(!distinct.contains(&Owner(Uuid::nil())));

    // The devices of a couple, named or not: each is one of its own.
    let devices = [
        json!({"couple": 17}),
        json!({"couple": 17, "device_id": "phone-2"}),
        json!({"couple": 17, "device_id": null}),
        json!({"couple": 17, "device_id": null, "sub": "auth0|bert"}),
        json!({"couple": 18}),
    ];
    let distinct: HashSet<DeviceId> = devices.iter().map(|changes| caller(changes.clone()).device).collect();
    assert_eq!(distinct.len(), devices.len());
    let unnamed = caller(json!({"device_id": null}));
    assert_eq!(unnamed, caller(json!({"device_id": null, "jti": "the next token"})));
    assert_eq!(unnamed.device_name, "unnamed device");
    assert_eq!(caller(json!({"device_id": "ü\n".repeat(120)})).device_name, "ü".repeat(100));

    for value in [json!(""), json!(1.5), json!(true), json!([uuid]), json!({})] {
        for claim in ["sub", "couple", "device_id"] {
            jwt.refuses(&sign_hs(&claims(json!({ claim: value }))));
        }
    }
    jwt.refuses(&sign_hs(&claims(json!({"sub": null}))));

    // However long an id is, it is somebody's.
    let long = caller(json!({"sub": "x".repeat(4_000), "device_id": "y".repeat(4_000)}));
    assert_ne!(long.owner, caller(json!({"sub": "x".repeat(4_001)})).owner);
    assert_eq!(long.device_name, "y".repeat(100));
}

#[test]
fn claims_go_by_the_names_that_the_settings_give() {
    let jwt = Jwt::with_secret(|settings| {
        settings.jwt_user_claim = "uid".into();
        settings.jwt_device_claim = "sid".into();
    });
    let token = sign_hs(&claims(json!({"sub": null, "uid": 7, "sid": "session"})));
    assert_eq!(jwt.takes(&token).device_name, "session");
    jwt.refuses(&sign_hs(&good()));
}

/// Goal: a token has the owners of its claim, in every form of it, and no others. Method: each form, and what is none.
#[test]
fn a_claim_names_the_owners_with_roles() {
    let jwt = Jwt::with_secret(|settings| settings.jwt_owners_claim = Some("owners".into()));
    let (one, two) = (Uuid::from_u128(1 << 100), Uuid::from_u128(2 << 100));
    let of = |owners: Value| jwt.takes(&sign_hs(&claims(json!({ "owners": owners }))));
    let home = jwt.takes(&sign_hs(&good())).owner;
    let roles = |caller: &Caller| {
        let named = caller.token_owners.clone().unwrap();
        named.roles().iter().copied().filter(|(owner, _)| *owner != home).collect::<Vec<_>>()
    };
    for owners in [
        json!({ one.to_string(): "read", two.to_string(): "write" }),
        json!([{ "owner": two, "role": "write" }, { "owner": one, "role": "read" }]),
        json!([two, { "owner": one, "role": "read" }]),
        json!([two, two, { "owner": one, "role": "read", "more": 1 }]),
    ] {
        let caller = of(owners.clone());
        assert_eq!(roles(&caller), [(Owner(one), Role::Read), (Owner(two), Role::Write)], "{owners}");
        assert_eq!((caller.owner, caller.rights), (home, Rights::of_token(Role::Manage)));
        assert_eq!(caller.about(Owner(one)).rights, Rights::of_token(Role::Read));
        assert_eq!(caller.about(Owner(Uuid::from_u128(3 << 100))).rights, Rights::NONE);
        assert_eq!(caller.about(Owner(one)).about(home).rights, Rights::of_token(Role::Manage));
    }
    // An id that is no UUID names the owner that the same id in the claim of one owner names.
    let by_name = roles(&of(json!(["team-7"])));
    let single = Jwt::with_secret(|settings| settings.jwt_owner_claim = Some("team".into()));
    let team = single.takes(&sign_hs(&claims(json!({ "team": "team-7" })))).owner;
    assert_eq!(by_name, [(team, Role::Write)]);
    // The home has the role that the claim gives it.
    let read_only = of(json!({ "auth0|anna": "read" }));
    assert_eq!((read_only.rights.role, roles(&read_only)), (Role::Read, vec![]));
    assert_eq!(roles(&of(json!([]))), []);
    for none in [json!({}), json!({ "owners": null })] {
        assert_eq!(jwt.takes(&sign_hs(&claims(none))).token_owners, None);
    }

    for bad in [
        json!("x"),
        json!(7),
        json!({ "x": "owner" }),
        json!({ "x": null }),
        json!({ "": "read" }),
        json!([""]),
        json!([null]),
        json!([["x"]]),
        json!([1.5]),
        json!([{ "owner": "x" }]),
        json!([{ "role": "read" }]),
        json!([{ "owner": "x", "role": "admin" }]),
        json!([{ "owner": one, "role": "read" }, one]),
        json!([{ "owner": "x", "role": "read" }, "x"]),
        json!(["a", "b", "c", "d", "e"]),
    ] {
        let reason = jwt.refuses(&sign_hs(&claims(json!({ "owners": bad }))));
        assert!(reason.contains("owner") || reason.contains("An id"), "{bad}: {reason}");
    }
    of(json!(["a", "b", "c", "d"]));
}

#[test]
fn garbage_and_huge_tokens_are_refused() {
    let jwt = Jwt::with_keys(&jwks(&["provider-ed", "provider-rsa"]));
    for token in ["", ".", "..", "...", "a.b.c", "rc_0000", "Bearer x", "\0", "é.é.é", "e30.e30.e30"] {
        jwt.refuses(token);
    }
    let padded = |n: usize| sign("provider-ed", &claims(json!({"padding": "x".repeat(n)})));
    // The length of a token is limited by the headers' limits: one with many groups has 8 KiB and more.
    for bytes in [5_500, 7_000, 40_000] {
        assert!(padded(bytes).len() > bytes);
        jwt.takes(&padded(bytes));
        assert!(jwt.accounts.known(&padded(bytes)).is_some());
    }
    jwt.refuses(&"x".repeat(10_000_000));
    // One bit flipped anywhere.
    let token = sign("provider-ed", &good());
    for at in 0..token.len() {
        let mut bytes = token.clone().into_bytes();
        bytes[at] ^= 1;
        let changed = String::from_utf8(bytes).unwrap();
        assert!(jwt.accounts.authenticate(&changed).is_err(), "{at}: {changed}");
    }
}

/// Goal: nobody can make the server flood the provider, and nobody is finally refused because of keys that
/// may be old. Method: 10,000 unknown key ids from four threads.
#[test]
fn a_flood_of_unknown_keys_asks_the_provider_once_in_ten_seconds() {
    let provider = Provider::of(&jwks(&["provider-ed"]));
    let jwt = Jwt::with_keys_at(&provider.url);
    assert_eq!(provider.asked(), 1, "at the start");
    let flood = |round: u32| {
        let (refused, put_off) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (jwt, refused, put_off) = (&jwt, &refused, &put_off);
                scope.spawn(move || {
                    for n in 0..2_500 {
                        let kid = format!("{round}-{thread}-{n}");
                        let token = assemble(&json!({"alg": "EdDSA", "kid": kid}), &good(), "AAAA");
                        match jwt.accounts.authenticate(&token) {
                            Err(AccountError::Unauthorized(_)) => refused.fetch_add(1, Ordering::SeqCst),
                            Err(AccountError::KeysUnavailable { retry_after_s: 1..=10 }) => {
                                put_off.fetch_add(1, Ordering::SeqCst)
                            }
                            other => panic!("{other:?}"),
                        };
                    }
                });
            }
        });
        (refused.into_inner(), put_off.into_inner())
    };
    let (refused, put_off) = flood(0);
    assert!(refused >= 1 && refused + put_off == 10_000, "{refused} {put_off}");
    assert_eq!(provider.asked(), 2);
    jwt.takes(&sign("provider-ed", &good()));
    jwt.turn(9_999);
    assert_eq!(flood(1).0, 0, "no key that came since is known");
    assert_eq!(provider.asked(), 2);
    jwt.turn(1);
    flood(2);
    assert_eq!(provider.asked(), 3);
}

/// Goal: a device whose token is no good learns so, however many others there are. Method: many strangers within
/// the pause between two questions; after the next one each is refused, without a question of its own.
#[test]
fn whoever_was_put_off_is_refused_once_the_provider_was_asked() {
    let provider = Provider::of(&jwks(&["provider-ed"]));
    let jwt = Jwt::with_keys_at(&provider.url);
    let strangers: Vec<String> = (0..500)
        .map(|n| sign_with(&header(Algorithm::ES256, &n.to_string()), &good(), &signing_key("stranger-ec").1))
        .collect();
    jwt.refuses(&strangers[0]);
    jwt.turn(1);
    for stranger in &strangers[1..] {
        assert_eq!(jwt.cannot_tell(stranger), 10);
    }
    assert_eq!(provider.asked(), 2);
    jwt.turn(10_000);
    for stranger in strangers.iter().rev() {
        jwt.refuses(stranger);
    }
    assert_eq!(provider.asked(), 3);
    // A token that was finally refused causes another fetch, but rarely.
    jwt.turn(MINUTE_MS - 1);
    jwt.refuses(&strangers[7]);
    assert_eq!(provider.asked(), 3);
    jwt.turn(1);
    jwt.refuses(&strangers[7]);
    assert_eq!(provider.asked(), 4);
}

/// Goal: a stranger's token cannot cause the refusal of a valid one. Method: the stranger uses up the
/// permitted fetch, the provider changes its keys, and a token arrives that the new key signed: with a name
/// of its own, or where no key has one.
#[test]
fn a_rotation_right_after_a_strangers_token_refuses_nobody() {
    for has_names in [true, false] {
        let set = |name: &str| {
            let mut key = jwk(name);
            if !has_names {
                key.as_object_mut().unwrap().remove("kid");
            }
            json!({ "keys": [key] })
        };
        let provider = Provider::of(&set("provider-ed"));
        let jwt = Jwt::with_keys_at(&provider.url);
        jwt.refuses(&sign("stranger-ec", &good()));
        provider.answers("200 OK", "", set("provider-ec").to_string().as_bytes());
        jwt.turn(3_000);
        let good = sign("provider-ec", &good());
        assert_eq!(jwt.cannot_tell(&good), 7);
        jwt.set_clock(-3_600_000); // the pause is counted by no clock that somebody sets
        assert_eq!(jwt.cannot_tell(&good), 7);
        jwt.turn(7_000);
        jwt.takes(&good);
    }
}

#[test]
fn a_new_key_is_found_and_a_withdrawn_one_dropped() {
    let provider = Provider::of(&jwks(&["provider-ed"]));
    let jwt = Jwt::with_keys_at(&provider.url);
    let lasting = claims(json!({"exp": NOW_MS / 1_000 + 90_000}));
    let (old, new) = (sign("provider-ed", &lasting), sign("provider-ec", &lasting));
    jwt.takes(&old);
    jwt.refuses(&new);
    provider.answers("200 OK", "", jwks(&["provider-ed", "provider-ec"]).to_string().as_bytes());
    jwt.turn(1);
    jwt.cannot_tell(&new);
    jwt.turn(MINUTE_MS);
    jwt.takes(&new);
    jwt.takes(&old);
    assert_eq!(provider.asked(), 3);
    // No token needs an unknown key, and a withdrawn key is still trusted for an hour at most, whatever the
    // clock shows.
    provider.answers("200 OK", "", jwks(&["provider-ec"]).to_string().as_bytes());
    jwt.set_clock(-2 * 60 * MINUTE_MS);
    jwt.turn(60 * MINUTE_MS - 1);
    jwt.takes(&old);
    assert!(jwt.accounts.known(&old).is_some());
    assert_eq!(provider.asked(), 3);
    jwt.turn(1);
    assert!(jwt.accounts.known(&old).is_none());
    jwt.refuses(&old);
    jwt.takes(&new);
    assert_eq!(provider.asked(), 4);
}

#[test]
fn a_provider_that_fails_costs_nobody_who_is_in() {
    let provider = Provider::of(&jwks(&["provider-ed"]));
    let jwt = Jwt::with_keys_at(&provider.url);
    let (known, unknown) = (sign("provider-ed", &good()), sign("provider-ec", &good()));
    let redirect = "Location: http://192.0.2.1/keys.json\r\n";
    let with_ec = jwks(&["provider-ec"]).to_string();
    let huge = format!("{}{with_ec}", " ".repeat(1_048_576));
    let answers: [(&str, &str, &str); 7] = [
        ("500 Internal Server Error", "", &with_ec),
        ("302 Found", redirect, ""),
        ("204 No Content", "", ""),
        ("201 Created", "", &with_ec),
        ("200 OK", "", "<html>sorry</html>"),
        ("200 OK", "", "{\"keys\": []}"),
        ("200 OK", "", &huge),
    ];
    for (n, (status, headers, body)) in answers.into_iter().enumerate() {
        provider.answers(status, headers, body.as_bytes());
        for _ in 0..10 {
            let outcome = jwt.accounts.authenticate(&unknown);
            assert!(
                matches!(outcome, Err(AccountError::KeysUnavailable { retry_after_s: 10 })),
                "{outcome:?}"
            );
            jwt.takes(&known);
        }
        assert_eq!(provider.asked(), n + 2, "{status}");
        jwt.turn(10_000);
    }
    provider.answers("200 OK", "", with_ec.as_bytes());
    jwt.takes(&sign("provider-ec", &good()));
}

#[test]
fn a_redirect_is_followed_and_a_circle_is_not() {
    let elsewhere = Provider::of(&jwks(&["provider-ec"]));
    let provider = Provider::of(&json!({}));
    provider.answers("301 Moved Permanently", &format!("Location: {}\r\n", elsewhere.url), b"");
    let jwt = Jwt::with_keys_at(&provider.url);
    jwt.takes(&sign("provider-ec", &good()));
    assert_eq!((provider.asked(), elsewhere.asked()), (1, 1));
    provider.answers("302 Found", "Location: keys.json\r\n", b"");
    jwt.cannot_tell(&sign("provider-ed", &good()));
    assert_eq!(provider.asked(), 5, "four times at most");
}

#[test]
fn the_server_starts_without_its_provider_and_finds_it_later() {
    let provider = Provider::of(&json!("not yet"));
    let jwt = Jwt::with_keys_at(&provider.url);
    let token = sign("provider-ed", &good());
    provider.answers("200 OK", "", jwks(&["provider-ed"]).to_string().as_bytes());
    jwt.turn(4_999);
    let outcome = jwt.accounts.authenticate(&token);
    assert!(matches!(outcome, Err(AccountError::KeysUnavailable { retry_after_s: 1 })), "{outcome:?}");
    assert_eq!(provider.asked(), 1);
    jwt.turn(1);
    jwt.takes(&token);
}

#[test]
fn a_key_file_may_be_replaced_while_the_server_runs() {
    let (_dir, file) = file_with(jwks(&["provider-ed"]).to_string().as_bytes());
    let jwt = Jwt::with_keys_at(file.to_str().unwrap());
    std::fs::write(&file, jwks(&["provider-ed", "provider-rsa"]).to_string()).unwrap();
    jwt.takes(&sign("provider-rsa", &good()));
}

#[test]
fn a_token_without_a_key_id_is_taken_if_there_is_no_choice() {
    let mut nameless = jwk("provider-ec");
    nameless.as_object_mut().unwrap().retain(|member, _| member != "kid" && member != "alg");
    let (algorithm, key) = signing_key("provider-ec");
    let token = sign_with(&Header::new(algorithm), &good(), &key);
    for (set, is_taken) in [
        (json!({"keys": [nameless]}), true),
        (jwks(&["provider-ec"]), true),
        (jwks(&["provider-ec", "provider-ed"]), true),
        (jwks(&["provider-rsa", "provider-ed"]), false),
        (jwks(&["stranger-ec"]), false),
    ] {
        assert_eq!(Jwt::with_keys(&set).accounts.authenticate(&token).is_ok(), is_taken, "{set}");
    }
    // And the other way round: a token names its key, and the set does not.
    let named = sign("provider-ec", &good());
    for (set, is_taken) in [
        (json!({"keys": [nameless]}), true),
        (json!({"keys": [jwk("provider-ed"), nameless]}), true),
        (json!({"keys": [jwk("stranger-ec"), nameless]}), true),
        (jwks(&["stranger-ec"]), false),
    ] {
        assert_eq!(Jwt::with_keys(&set).accounts.authenticate(&named).is_ok(), is_taken, "{set}");
    }
}

/// Goal: an unusable key does not affect the rest of its set. Method: keys listed twice, two of one name,
/// unusual spellings.
#[test]
fn keys_that_are_listed_twice_or_spelt_oddly_are_taken() {
    let (ed, ec, rsa) = (jwk("provider-ed"), jwk("provider-ec"), jwk("provider-rsa"));
    let with = |base: &Value, changes: Value| {
        let mut key = base.clone();
        for (name, value) in changes.as_object().unwrap() {
            key[name] = value.clone();
        }
        key
    };
    let one_name = [
        with(&ed, json!({"kid": "k"})),
        with(&ec, json!({"kid": "k"})),
        with(&jwk("stranger-ec"), json!({"kid": "k"})),
    ];
    let jwt = Jwt::with_keys(&json!({ "keys": [ed, ed, rsa, one_name[0], one_name[1], one_name[2], ed] }));
    jwt.takes(&sign("provider-ed", &good()));
    jwt.takes(&sign("provider-rsa", &good()));
    for name in ["provider-ed", "provider-ec"] {
        let (algorithm, key) = signing_key(name);
        jwt.takes(&sign_with(&header(algorithm, "k"), &good(), &key));
        jwt.refuses(&sign_with(&header(algorithm, "provider-rsa"), &good(), &key));
    }

    let n = rsa["n"].as_str().unwrap();
    for odd in [
        with(&rsa, json!({"n": format!("{n}==")})),
        with(&rsa, json!({"n": n.replace('-', "+").replace('_', "/"), "e": "AQAB="})),
        with(&rsa, json!({"use": null, "alg": null, "key_ops": null, "crv": null})),
        with(&rsa, json!({"x5c": ["MIIB"], "x5t": "abc", "ext": true, "nbf": 1})),
    ] {
        Jwt::with_keys(&json!({ "keys": [odd] })).takes(&sign("provider-rsa", &good()));
    }
}

/// Goal: every permitted algorithm of an RSA key is accepted, unless the key names one. Method: every
/// algorithm against a key that names it, one that names none and one that names another.
#[test]
fn an_rsa_key_is_good_for_its_algorithm_or_for_all() {
    let key = signing_key("provider-rsa").1;
    let all = [
        (Algorithm::RS256, "RS256"),
        (Algorithm::RS384, "RS384"),
        (Algorithm::RS512, "RS512"),
        (Algorithm::PS256, "PS256"),
        (Algorithm::PS384, "PS384"),
        (Algorithm::PS512, "PS512"),
    ];
    let with_alg = |alg: Value| {
        let mut jwk = jwk("provider-rsa");
        jwk["alg"] = alg;
        Jwt::with_keys(&json!({ "keys": [jwk] }))
    };
    for (algorithm, _) in all {
        let token = sign_with(&header(algorithm, "provider-rsa"), &good(), &key);
        with_alg(Value::Null).takes(&token);
        for (other, name) in all {
            let is_taken = with_alg(json!(name)).accounts.authenticate(&token).is_ok();
            assert_eq!(is_taken, other == algorithm, "{algorithm:?} by a key for {name}");
        }
    }
}

/// Goal: keys of the curve P-384 are taken. Method: one as RFC 7518's kin have it, made with OpenSSL.
#[test]
fn a_key_of_p384_is_taken() {
    let der = std::fs::read("fixtures/jwt/provider-p384.der").unwrap();
    let key = EncodingKey::from_ec_der(&der);
    let mut public = serde_json::to_value(Jwk::from_encoding_key(&key, Algorithm::ES384).unwrap()).unwrap();
    let token = sign_with(&Header::new(Algorithm::ES384), &good(), &key);
    Jwt::with_keys(&json!({ "keys": [public] })).takes(&token);
    public["alg"] = json!("ES256");
    let jwt = Jwt::with_keys(&json!({ "keys": [public, jwk("provider-ec")] }));
    jwt.refuses(&token);
}

#[test]
fn keys_of_no_use_are_left_out_and_do_no_harm() {
    let (ed, rsa, ec) = (jwk("provider-ed"), jwk("provider-rsa"), jwk("provider-ec"));
    let changed = |base: &Value, changes: Value| {
        let mut key = base.clone();
        key["kid"] = json!("bad");
        for (name, value) in changes.as_object().unwrap() {
            key[name] = value.clone();
        }
        key
    };
    let useless = [
        json!({"kty": "oct", "kid": "bad", "k": URL_SAFE_NO_PAD.encode(SECRET)}),
        json!({"kty": "of the future", "kid": "bad"}),
        json!("not even an object"),
        changed(&rsa, json!({"use": "enc"})),
        changed(&rsa, json!({"alg": "RSA-OAEP"})),
        changed(&rsa, json!({"alg": "HS256"})),
        changed(&rsa, json!({"key_ops": ["encrypt"]})),
        changed(&rsa, json!({"n": "AQAB"})),
        changed(&rsa, json!({"n": "_".repeat(4_000)})),
        changed(&rsa, json!({"e": ""})),
        changed(&rsa, json!({"e": 65_537})),
        changed(&ed, json!({"x": "AQAB"})),
        changed(&ed, json!({"x": ""})),
        changed(&ed, json!({"x": "*"})),
        changed(&ed, json!({"x": null})),
        changed(&rsa, json!({"kty": 7})),
        changed(&ed, json!({"crv": "Ed448"})),
        changed(&ec, json!({"crv": "P-384"})),
        changed(&ec, json!({"x": ec["y"], "y": ec["x"]})),
        changed(&ec, json!({"y": "AA"})),
    ];
    for key in useless {
        let (_dir, file) = file_with(json!({ "keys": [key] }).to_string().as_bytes());
        let (place, issuer) = (file.to_str().unwrap().to_owned(), ISSUER.to_owned());
        let alone = AuthSettings { jwt_keys: Some(place), jwt_issuer: Some(issuer), ..settings() };
        let outcome = JwtAccounts::open(&alone, OWNERS_MAX, Clock::system());
        assert!(matches!(outcome, Err(SetupError::Keys(_))), "{key}");

        let jwt = Jwt::with_keys(&json!({ "keys": [key, ed] }));
        jwt.takes(&sign("provider-ed", &good()));
        let secret = EncodingKey::from_secret(SECRET);
        jwt.refuses(&sign_with(&header(Algorithm::HS256, "bad"), &good(), &secret));
        for name in ["provider-rsa", "provider-ec", "provider-ed"] {
            let (algorithm, key) = signing_key(name);
            jwt.never_takes(&sign_with(&header(algorithm, "bad"), &good(), &key));
        }
    }
}

#[test]
fn settings_that_cannot_be_right_are_refused_at_start() {
    let result = |change: &dyn Fn(&mut AuthSettings)| {
        let mut settings = settings();
        change(&mut settings);
        JwtAccounts::open(&settings, OWNERS_MAX, Clock::system())
            .err()
            .map(|error| error.to_string())
            .unwrap_or_default()
    };
    let (_a, short) = file_with(b"only thirty-one bytes of secret\n");
    let (_b, secret) = file_with(b"exactly thirty-two bytes, a line\r\n");
    let (_c, keys) = file_with(jwks(&["provider-ed"]).to_string().as_bytes());
    let keys = keys.to_str().unwrap();

    assert_eq!(result(&|s| s.jwt_secret_file = Some(secret.clone())), "");
    assert!(result(&|_| ()).contains("--jwt-secret-file"));
    let both = result(&|s| (s.jwt_secret_file, s.jwt_keys) = (Some(secret.clone()), Some(keys.into())));
    assert!(both.contains("either"), "{both}");
    let too_short = result(&|s| s.jwt_secret_file = Some(short.clone()));
    assert!(too_short.contains("31 bytes") && !too_short.contains("only thirty"), "{too_short}");
    assert!(result(&|s| s.jwt_secret_file = Some("no such file".into())).contains("no such file"));
    assert!(result(&|s| s.jwt_keys = Some(keys.into())).contains("--jwt-issuer"));
    let claim = result(&|s| (s.jwt_secret_file, s.jwt_user_claim) = (Some(secret.clone()), String::new()));
    assert!(claim.contains("claim"), "{claim}");
    for place in ["ftp://example.org/keys", "file:///keys", "https://", "no such file", "http://a b/"] {
        let with = |s: &mut AuthSettings| {
            (s.jwt_keys, s.jwt_issuer) = (Some(place.to_owned()), Some(ISSUER.to_owned()));
        };
        assert_ne!(result(&with), "", "{place}");
    }
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(|b| json!(b)),
        any::<i64>().prop_map(|n| json!(n)),
        any::<f64>().prop_map(|n| json!(n)),
        ".{0,40}".prop_map(|s| json!(s)),
    ];
    leaf.prop_recursive(2, 8, 4, |inner| prop::collection::vec(inner, 0..4).prop_map(|many| json!(many)))
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_text_makes_authenticate_panic(text in ".{0,300}", part in "[A-Za-z0-9_-]{0,60}") {
        let jwt = Jwt::with_secret(|_| ());
        for token in [text.clone(), format!("{part}.{text}.{part}"), format!("{part}.{part}.{part}")] {
            prop_assert!(jwt.accounts.authenticate(&token).is_err());
        }
    }

    #[test]
    fn no_header_makes_authenticate_panic(
        members in prop::collection::btree_map("(kid|typ|jwk|jku|crit|x5c|enc|zip|.{0,5})", any_json(), 0..6),
        alg in "(EdDSA|HS256|none|.{0,5})",
    ) {
        let jwt = Jwt::with_secret(|_| ());
        let mut header = json!(members);
        header["alg"] = json!(alg);
        prop_assert!(jwt.accounts.authenticate(&assemble(&header, &good(), "c2lnbmF0dXJl")).is_err());
    }

    /// Claims that the provider signed may still be anything.
    #[test]
    fn no_claims_make_authenticate_panic(
        members in prop::collection::btree_map("(exp|nbf|iat|iss|aud|sub|device_id|couple|.{0,5})", any_json(), 0..8),
    ) {
        let jwt = Jwt::with_secret(|settings| settings.jwt_owner_claim = Some("couple".into()));
        let _ = jwt.accounts.authenticate(&sign_hs(&json!(members)));
    }

    #[test]
    fn no_key_set_makes_us_panic(
        kty in "(RSA|EC|OKP)", crv in "(P-256|Ed25519)",
        members in prop::collection::btree_map("(n|e|x|y|kid|alg|use|key_ops)", "[A-Za-z0-9_-]{0,90}", 0..8),
        body in any_json(),
    ) {
        let mut key = json!(members);
        key["kty"] = json!(kty);
        key["crv"] = json!(crv);
        for set in [json!({ "keys": [key] }), json!({ "keys": body }), body] {
            let (_dir, file) = file_with(set.to_string().as_bytes());
            let (place, issuer) = (file.to_str().unwrap().to_owned(), ISSUER.to_owned());
            let settings = AuthSettings { jwt_keys: Some(place), jwt_issuer: Some(issuer), ..settings() };
            let _ = JwtAccounts::open(&settings, OWNERS_MAX, Clock::system());
        }
    }
}

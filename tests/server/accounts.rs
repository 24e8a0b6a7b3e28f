//! Accounts that the server keeps itself.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};

use argon2::Params;
use proptest::prelude::*;
use rollcall::accounts::mailing::MailTerms;
use rollcall::accounts::{
    AccountError, Accounts, Caller, LocalAccounts, LocalSettings, LogIn, NewToken, PasswordChange, Rights,
};
use rollcall::clock::Clock;
use rollcall::config::{AuthSettings, Limits, Registration, Verification};
use rollcall::http::ApiError;
use rollcall::mail::{Hook, HookError, Mail};
use rollcall::model::{DeviceId, Owner, Role, Timestamp, Version};
use rollcall::storage::accounts::{
    Device, Erasure, KeptDevices, MailKind, MailToken, MailTokenUse, Seen, Sighting, Standing, TokenHash,
    User,
};
use rollcall::storage::members::{CodeHash, Membership};
use rollcall::storage::{AccountStore, StorageError, StorageResult};
use sha2::{Digest, Sha256};
use uuid::Uuid;

const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// What another caller does in between.
type Meanwhile = Box<dyn FnOnce(&Memory) + Send>;

/// A simple model of the accounts as the contract describes them.
#[derive(Default)]
struct Memory {
    users: Mutex<Vec<User>>,
    devices: Mutex<Vec<(Device, TokenHash)>>,
    mail_tokens: Mutex<Vec<MailToken>>,
    /// How many users were looked up.
    looked_up: std::sync::atomic::AtomicUsize,
    /// What another one does just before the next device is put.
    meanwhile: Mutex<Option<Meanwhile>>,
    sightings: Mutex<std::collections::HashMap<DeviceId, Sighting>>,
    /// How many sightings were written, one after the other.
    written: std::sync::atomic::AtomicUsize,
}

impl AccountStore for Memory {
    fn add_user(&self, user: &User) -> StorageResult<bool> {
        let mut users = self.users.lock().unwrap();
        let free = users.iter().all(|other| other.email != user.email);
        if free {
            users.push(user.clone());
        }
        Ok(free)
    }

    fn user(&self, email: &str) -> StorageResult<Option<User>> {
        self.looked_up.fetch_add(1, Ordering::SeqCst);
        Ok(self.users.lock().unwrap().iter().find(|user| user.email == email).cloned())
    }

    fn users(&self) -> StorageResult<Vec<User>> {
        Ok(self.users.lock().unwrap().clone())
    }

    fn user_of(&self, id: Uuid) -> StorageResult<Option<User>> {
        Ok(self.users.lock().unwrap().iter().find(|user| user.id == id).cloned())
    }

    fn set_password_hash(&self, user: Uuid, was: &str, hash: &str) -> StorageResult<()> {
        let mut users = self.users.lock().unwrap();
        for each in users.iter_mut().filter(|each| each.id == user && each.password_hash == was) {
            each.password_hash = hash.to_owned();
        }
        Ok(())
    }

    fn replace_password(&self, user: Uuid, hash: &str, keep: KeptDevices) -> StorageResult<Vec<DeviceId>> {
        self.users.lock().unwrap().iter_mut().filter(|each| each.id == user).for_each(|each| {
            each.password_hash = hash.to_owned();
        });
        match keep {
            KeptDevices::All => Ok(Vec::new()),
            KeptDevices::One(device) => self.remove_other_devices(user, device),
            KeptDevices::None => self.remove_other_devices(user, DeviceId(Uuid::nil())),
        }
    }

    fn erase_user(&self, user: &User, at: Timestamp, _: Timestamp) -> StorageResult<Vec<DeviceId>> {
        let devices = self.devices(user.id)?.into_iter().map(|device| device.id).collect();
        self.remove_user(&user.email, at)?;
        Ok(devices)
    }

    fn is_gone(&self, _: &TokenHash, _: Timestamp) -> StorageResult<bool> {
        Ok(false)
    }

    fn forget_gone(&self, _: Timestamp) -> StorageResult<()> {
        Ok(())
    }

    fn erasures(&self, _: Option<Owner>, _: usize) -> StorageResult<Vec<Erasure>> {
        Ok(Vec::new())
    }

    fn end_erasure(&self, _: Owner) -> StorageResult<()> {
        Ok(())
    }

    fn put_mail_token(&self, token: &MailToken) -> StorageResult<()> {
        let mut tokens = self.mail_tokens.lock().unwrap();
        tokens.retain(|other| (other.user, other.kind) != (token.user, token.kind));
        tokens.push(*token);
        Ok(())
    }

    fn mail_token(&self, kind: MailKind, user: Uuid, hash: &TokenHash) -> StorageResult<Option<MailToken>> {
        let tokens = self.mail_tokens.lock().unwrap();
        let is_it = |token: &&MailToken| (token.user, token.kind, token.hash) == (user, kind, *hash);
        Ok(tokens.iter().find(is_it).copied())
    }

    fn use_mail_token(&self, used: &MailTokenUse<'_>) -> StorageResult<Option<Vec<DeviceId>>> {
        let mut tokens = self.mail_tokens.lock().unwrap();
        let before = tokens.len();
        tokens.retain(|token| token != used.token);
        if tokens.len() == before {
            return Ok(None);
        }
        let mut users = self.users.lock().unwrap();
        let user = users.iter_mut().find(|user| user.id == used.token.user).unwrap();
        user.verified_at.get_or_insert(used.at);
        if let Some(hash) = used.password_hash {
            user.password_hash = hash.to_owned();
        }
        drop(users);
        self.remove_other_devices(used.token.user, DeviceId(Uuid::nil())).map(Some)
    }

    fn remove_other_devices(&self, user: Uuid, keep: DeviceId) -> StorageResult<Vec<DeviceId>> {
        let mut devices = self.devices.lock().unwrap();
        let goes = |device: &Device| device.user == user && device.id != keep;
        let removed = devices.iter().map(|(device, _)| device).filter(|d| goes(d)).map(|d| d.id).collect();
        devices.retain(|(device, _)| !goes(device));
        Ok(removed)
    }

    fn remove_user(&self, email: &str, _: Timestamp) -> StorageResult<bool> {
        let Some(user) = self.user(email)? else { return Ok(false) };
        self.users.lock().unwrap().retain(|each| each.id != user.id);
        self.devices.lock().unwrap().retain(|(device, _)| device.user != user.id);
        Ok(true)
    }

    fn put_device(&self, device: &Device, token: &TokenHash) -> StorageResult<bool> {
        let meanwhile = self.meanwhile.lock().unwrap().take();
        if let Some(act) = meanwhile {
            act(self);
        }
        let mut devices = self.devices.lock().unwrap();
        match devices.iter_mut().find(|(known, _)| known.id == device.id) {
            Some((known, _)) if known.user != device.user => return Ok(false),
            Some(known) => {
                *known = (Device { created_at: known.0.created_at, ..device.clone() }, *token);
            }
            None => devices.push((device.clone(), *token)),
        }
        Ok(true)
    }

    fn sightings(&self, user: Uuid) -> StorageResult<Vec<(DeviceId, Sighting)>> {
        let own = self.devices(user)?;
        let sightings = self.sightings.lock().unwrap();
        Ok(own.iter().filter_map(|one| Some((one.id, *sightings.get(&one.id)?))).collect())
    }

    fn owners_of(&self, _: Uuid) -> StorageResult<Vec<Membership>> {
        Ok(Vec::new())
    }

    fn named_owners(&self, _: &[(Owner, Role)]) -> StorageResult<Vec<Membership>> {
        Ok(Vec::new())
    }

    fn standing(&self, _: Uuid, _: Owner) -> StorageResult<Standing> {
        Ok(Standing { members_at: Version(0), is_erased: false, role: None })
    }

    fn list_owner(&self, _: Uuid, _: Owner, _: bool) -> StorageResult<()> {
        Ok(())
    }

    fn list_invitation(&self, _: &CodeHash, _: Owner, _: Timestamp) -> StorageResult<()> {
        Ok(())
    }

    fn invited_to(&self, _: &CodeHash) -> StorageResult<Option<Owner>> {
        Ok(None)
    }

    fn unlist_invitation(&self, _: &CodeHash) -> StorageResult<()> {
        Ok(())
    }

    fn forget_expired(&self, _: Timestamp, _: usize) -> StorageResult<usize> {
        Ok(0)
    }

    fn note_sightings(&self, seen: &[Seen]) -> StorageResult<()> {
        self.written.fetch_add(seen.len(), std::sync::atomic::Ordering::SeqCst);
        self.sightings.lock().unwrap().extend(seen.iter().map(|(_, device, seen)| (*device, *seen)));
        Ok(())
    }

    fn device(&self, token: &TokenHash) -> StorageResult<Option<Device>> {
        let devices = self.devices.lock().unwrap();
        Ok(devices.iter().find(|(_, hash)| hash == token).map(|(device, _)| device.clone()))
    }

    fn devices(&self, user: Uuid) -> StorageResult<Vec<Device>> {
        let devices = self.devices.lock().unwrap();
        let mut own: Vec<_> =
            devices.iter().map(|(device, _)| device).filter(|d| d.user == user).cloned().collect();
        own.sort_by_key(|device| (device.created_at, device.id));
        Ok(own)
    }

    fn remove_device(&self, user: Uuid, device: DeviceId) -> StorageResult<bool> {
        let mut devices = self.devices.lock().unwrap();
        let before = devices.len();
        devices.retain(|(each, _)| each.id != device || each.user != user);
        Ok(devices.len() < before)
    }
}

/// Accounts over memory, at no cost for passwords, with a clock to turn.
struct Local {
    accounts: LocalAccounts,
    memory: Arc<Memory>,
    now_ms: Arc<AtomicI64>,
}

fn unlimited() -> LocalSettings {
    LocalSettings {
        registration: Registration::Open,
        token_days: 30,
        logins_per_account_per_min: 0,
        logins_per_account_per_hour: 0,
        logins_per_address_per_min: 0,
        password_hashes_max: 2,
        password_queue_max: 16,
        devices_max: 100,
        mails_per_account_per_hour: 0,
        mails_per_hour: 0,
        verification: Verification::Off,
        mail: MailTerms {
            public_url: Some("https://app.example/".into()),
            reset_ms: 1_800_000,
            verification_ms: 3_600_000,
        },
        tokens_known_max: 100,
        token_known_s: 5,
    }
}

impl Local {
    fn with(settings: LocalSettings) -> Self {
        let memory = Arc::new(Memory::default());
        let now_ms = Arc::new(AtomicI64::new(1_700_000_000_000));
        let cheap = Params::new(8, 1, 1, None).unwrap();
        let accounts = LocalAccounts::new(memory.clone(), clock_of(&now_ms), settings, cheap).unwrap();
        Self { accounts, memory, now_ms }
    }

    /// Anna and Bert, without limits.
    fn new() -> Self {
        let local = Self::with(unlimited());
        local.accounts.register("anna@example.org", "correct horse", HERE).unwrap();
        local.accounts.register("bert@example.org", "battery staple", HERE).unwrap();
        local
    }

    fn turn(&self, ms: i64) {
        self.now_ms.fetch_add(ms, Ordering::SeqCst);
    }

    fn anna(&self, device: &str, device_id: Option<DeviceId>) -> NewToken {
        let asked = LogIn { email: "anna@example.org", password: "correct horse", device, device_id };
        self.accounts.log_in(asked, HERE).unwrap()
    }

    fn bert(&self, device_id: Option<DeviceId>) -> NewToken {
        let asked = LogIn { email: "bert@example.org", password: "battery staple", device: "his", device_id };
        self.accounts.log_in(asked, HERE).unwrap()
    }

    fn attempt(&self, email: &str, password: &str, from: IpAddr) -> Result<NewToken, AccountError> {
        self.accounts.log_in(LogIn { email, password, device: "phone", device_id: None }, from)
    }

    fn caller(&self, token: &NewToken) -> Caller {
        self.accounts.authenticate(&token.token).unwrap()
    }

    /// Authenticates like a request: from the cache, or by a lookup that is then cached.
    fn is_in(&self, token: &NewToken) -> bool {
        self.accounts.known(&token.token).is_some() || self.accounts.authenticate(&token.token).is_ok()
    }

    fn hash(&self, email: &str) -> String {
        self.memory.user(email).unwrap().unwrap().password_hash
    }
}

fn clock_of(now_ms: &Arc<AtomicI64>) -> Clock {
    let now_ms = Arc::clone(now_ms);
    Clock::from_fn(move || Timestamp::from_ms(now_ms.load(Ordering::SeqCst)))
}

fn invalid_member<T: std::fmt::Debug>(outcome: Result<T, AccountError>) -> &'static str {
    match outcome {
        Err(AccountError::Invalid { member, .. }) => member,
        other => panic!("{other:?}"),
    }
}

fn wait_s<T: std::fmt::Debug>(outcome: Result<T, AccountError>) -> u64 {
    match outcome {
        Err(AccountError::TooManyAttempts { retry_after_s }) => retry_after_s,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_device_that_logs_in_is_known_by_its_token() {
    let local = Local::new();
    let token = local.anna("  Anna's phone ", None);
    let anna = local.memory.user("anna@example.org").unwrap().unwrap();
    let expected = Caller {
        owner: anna.owner,
        default_owner: anna.owner,
        token_owners: None,
        rights: Rights::HOME,
        device: token.device_id,
        device_name: "Anna's phone".into(),
        token_device: token.device_id,
        installation: None,
        user: anna.id,
    };
    assert_eq!(local.caller(&token), expected);
    assert_ne!(local.caller(&local.bert(None)).owner, anna.owner);
    assert!(!format!("{token:?}").contains(&token.token), "a token is never printed");
}

#[test]
fn a_wrong_password_and_an_unknown_account_are_answered_alike() {
    let local = Local::new();
    let too_long = "x".repeat(2_000);
    let answers: HashSet<String> = [
        ("anna@example.org", "wrong horse"),
        ("nobody@example.org", "correct horse"),
        ("anna@example.org", "battery staple"),
        ("anna@example.org", ""),
        ("anna@example.org", too_long.as_str()),
        ("nobody@example.org", too_long.as_str()),
        ("no email", "correct horse"),
        ("", ""),
    ]
    .into_iter()
    .map(|(email, password)| format!("{:?}", local.attempt(email, password, HERE).unwrap_err()))
    .collect();
    assert_eq!(answers.len(), 1, "{answers:?}");
}

#[test]
fn an_email_is_one_account_however_it_is_typed() {
    let local = Local::new();
    let again = local.accounts.register(" ANNA@Example.org\n", "another one", HERE);
    assert!(matches!(again, Err(AccountError::EmailTaken)));
    assert!(local.attempt("Anna@example.ORG ", "correct horse", HERE).is_ok());
    let carl = local.accounts.register("Carl@Example.org", "correct horse", HERE);
    assert_eq!(carl.unwrap(), "carl@example.org");
}

#[test]
fn what_cannot_be_an_account_is_refused_by_its_member() {
    let local = Local::new();
    let long = format!("{}@example.org", "x".repeat(255 - 12));
    for email in ["", "anna", "@example.org", "anna@", "a@b@c", "an na@example.org", "a\0@example.org", &long]
    {
        let outcome = local.accounts.register(email, "correct horse", HERE);
        assert_eq!(invalid_member(outcome), "email", "{email:?}");
    }
    assert!(local.accounts.register(&long[1..], "correct horse", HERE).is_ok(), "254 bytes");
    for password in ["", "1234567", &"x".repeat(1_025)] {
        let outcome = local.accounts.register("dora@example.org", password, HERE);
        assert_eq!(invalid_member(outcome), "password", "{} bytes", password.len());
    }
    for password in ["12 45 78", &"x".repeat(1_024)] {
        let email = format!("p{}@example.org", password.len());
        local.accounts.register(&email, password, HERE).unwrap();
        assert!(local.attempt(&email, password, HERE).is_ok(), "{} bytes", password.len());
    }
    for device in ["", "   ", &"ü".repeat(101), "two\nlines"] {
        let asked = LogIn { email: "anna@example.org", password: "correct horse", device, device_id: None };
        assert_eq!(invalid_member(local.accounts.log_in(asked, HERE)), "device", "{device:?}");
    }
    local.anna(&"ü".repeat(100), None);
}

#[test]
fn tokens_have_256_bits_are_unique_and_only_their_hash_is_kept() {
    let local = Local::new();
    let tokens: HashSet<String> = (0..50).map(|_| local.anna("phone", None).token).collect();
    assert_eq!(tokens.len(), 50);
    let devices = local.memory.devices.lock().unwrap();
    for token in &tokens {
        let text = token.strip_prefix("rc_").unwrap();
        assert_eq!(text.len(), 43, "256 bits in base64 without padding");
        assert!(text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_'), "{text}");
        let hash: TokenHash = Sha256::digest(token.as_bytes()).into();
        assert!(devices.iter().any(|(_, kept)| *kept == hash));
        assert!(!format!("{devices:?}").contains(text));
    }
    assert!(local.hash("anna@example.org").starts_with("$argon2id$v=19$"));
}

#[test]
fn a_token_ends_on_its_day() {
    let local = Local::new();
    let token = local.anna("phone", None);
    let caller = local.caller(&token);
    local.turn(30 * 86_400_000 - 1);
    assert!(local.is_in(&token));
    assert_eq!(local.accounts.devices(&caller).unwrap().len(), 1);
    local.turn(1);
    assert_eq!(local.now_ms.load(Ordering::SeqCst), token.expires_at.ms());
    assert!(matches!(local.accounts.authenticate(&token.token), Err(AccountError::Unauthorized(_))));
    assert!(local.accounts.devices(&caller).unwrap().is_empty());
    local.anna("phone", None);
    let kept = local.memory.devices(caller.user).unwrap();
    assert_eq!(kept.len(), 1, "the next log-in clears away what has expired");
}

#[test]
fn a_device_signed_out_stays_out_and_the_others_stay_in() {
    let local = Local::new();
    let (phone, tablet, his) = (local.anna("phone", None), local.anna("tablet", None), local.bert(None));
    let caller = local.caller(&phone);
    let devices = local.accounts.devices(&caller).unwrap();
    let names: HashSet<&str> = devices.iter().map(|device| device.name.as_str()).collect();
    assert_eq!(names, HashSet::from(["phone", "tablet"]));

    let of_another = local.accounts.revoke(&caller, his.device_id);
    assert!(matches!(of_another, Err(AccountError::NoSuchDevice)));
    local.accounts.revoke(&caller, tablet.device_id).unwrap();
    assert!(matches!(local.accounts.revoke(&caller, tablet.device_id), Err(AccountError::NoSuchDevice)));
    assert_eq!([&phone, &tablet, &his].map(|token| local.is_in(token)), [true, false, true]);

    local.accounts.log_out(&caller).unwrap();
    local.accounts.log_out(&caller).unwrap();
    assert_eq!([&phone, &tablet, &his].map(|token| local.is_in(token)), [false, false, true]);
}

#[test]
fn a_device_keeps_its_identity_but_never_takes_that_of_another_user() {
    let local = Local::new();
    let first = local.anna("phone", None);
    let again = local.anna("renamed", Some(first.device_id));
    assert_eq!(again.device_id, first.device_id);
    assert!(!local.is_in(&first), "the older token ends");
    let caller = local.caller(&again);
    assert_eq!(caller.device_name, "renamed");

    let his = local.bert(Some(first.device_id));
    assert_ne!(his.device_id, first.device_id);
    assert_eq!(local.caller(&again), caller);

    local.accounts.log_out(&caller).unwrap();
    assert_eq!(local.anna("phone", Some(first.device_id)).device_id, first.device_id, "also after a log-out");
    assert!(!local.anna("phone", Some(DeviceId(Uuid::nil()))).device_id.0.is_nil(), "nil is nobody");
}

#[test]
fn a_user_has_at_most_a_hundred_devices_and_the_oldest_make_room() {
    let local = Local::new();
    let his = local.bert(None);
    let tokens: Vec<NewToken> = (0..103)
        .map(|_| {
            local.turn(1);
            local.anna("script", None)
        })
        .collect();
    let out = tokens.iter().take_while(|token| !local.is_in(token)).count();
    let still_in = tokens.iter().filter(|token| local.is_in(token)).count();
    assert_eq!((out, still_in), (3, 100));
    assert!(local.is_in(&his));
}

/// Goal: a cached token needs no lookup, and lives no longer than configured. Method: another process removes
/// its device, as `rollcall account remove` does.
#[test]
fn a_token_taken_back_by_another_process_is_refused_within_the_bound() {
    let local = Local::new();
    let (hers, his) = (local.anna("phone", None), local.bert(None));
    assert!(local.accounts.known(&hers.token).is_none(), "nobody has asked yet");
    let caller = local.caller(&hers);
    assert!(local.is_in(&his));
    assert_eq!(local.accounts.known(&hers.token), Some(caller.clone()));
    assert!(local.memory.remove_device(caller.user, caller.device).unwrap());
    local.turn(4_999);
    assert!(local.is_in(&hers), "another process did it");
    local.turn(1);
    assert!(!local.is_in(&hers));
    assert!(local.is_in(&his), "looked up again");
    assert!(local.accounts.remove(" Bert@example.org").unwrap());
    assert!(!local.is_in(&his), "this process did it");
    assert!(!local.accounts.remove("bert@example.org").unwrap());
}

#[test]
fn a_token_in_memory_expires_all_the_same() {
    let local = Local::with(LocalSettings { token_days: 0, token_known_s: 3_600, ..unlimited() });
    local.accounts.register("anna@example.org", "correct horse", HERE).unwrap();
    let none = local.anna("phone", None);
    assert!(local.accounts.authenticate(&none.token).is_err());
    let local = Local::with(LocalSettings { token_days: 1, token_known_s: 864_000, ..unlimited() });
    local.accounts.register("anna@example.org", "correct horse", HERE).unwrap();
    let hers = local.anna("phone", None);
    assert!(local.accounts.authenticate(&hers.token).is_ok());
    local.turn(86_399_999);
    assert!(local.accounts.known(&hers.token).is_some());
    local.turn(1);
    assert!(local.accounts.known(&hers.token).is_none());
    assert!(!local.is_in(&hers));
}

#[test]
fn log_ins_are_limited_by_account_and_by_address() {
    let local = Local::with(LocalSettings::new(&AuthSettings::default(), &Limits::default()));
    local.accounts.register("anna@example.org", "correct horse", HERE).unwrap();
    let from = |last: u8| IpAddr::V4(Ipv4Addr::new(192, 0, 2, last));
    let refused = |outcome| assert!(matches!(outcome, Err(AccountError::Unauthorized(_))), "{outcome:?}");

    // One account from one address. The right password waits too, or guessing would pay.
    for _ in 0..5 {
        refused(local.attempt(" ANNA@example.org", "guess guess", from(9)));
    }
    assert_eq!(wait_s(local.attempt("anna@example.org", "correct horse", from(9))), 12);
    local.attempt("anna@example.org", "correct horse", from(8)).unwrap();
    local.turn(12_000);
    local.attempt("anna@example.org", "correct horse", from(9)).unwrap();

    // Many accounts from one address; registrations count with them.
    for n in 0..19 {
        refused(local.attempt(&format!("{n}@example.org"), "guess guess", from(77)));
    }
    local.accounts.register("zoe@example.org", "correct horse", from(77)).unwrap();
    assert_eq!(wait_s(local.attempt("x@example.org", "guess guess", from(77))), 3);
    assert_eq!(wait_s(local.accounts.register("y@example.org", "correct horse", from(77))), 3);
    refused(local.attempt("x@example.org", "guess guess", from(78)));
    local.turn(3_000);
    refused(local.attempt("x@example.org", "guess guess", from(77)));
}

/// Goal: strangers who guess passwords do not lock a user out. Method: a botnet that has used up what an account may
/// fail in an hour, against devices and addresses that the account knows and one that it does not.
#[test]
fn strangers_do_not_lock_a_user_out() {
    let limits = Limits { logins_per_address_per_min: 0, ..Limits::default() };
    let local = Local::with(LocalSettings::new(&AuthSettings::default(), &limits));
    for email in ["anna@example.org", "bert@example.org"] {
        local.accounts.register(email, "correct horse", HERE).unwrap();
    }
    let home: IpAddr = "2001:db8:1:2:aaaa::1".parse().unwrap();
    let moved: IpAddr = "2001:db8:1:2:bbbb::9".parse().unwrap();
    let elsewhere: IpAddr = "198.51.100.7".parse().unwrap();
    let hers = local.attempt("anna@example.org", "correct horse", home).unwrap();
    let his = local.attempt("bert@example.org", "correct horse", elsewhere).unwrap();
    let anna = |password: &str, from: IpAddr, token: Option<&str>| {
        let asked = LogIn { email: "anna@example.org", password, device: "phone", device_id: None };
        local.accounts.log_in_with(asked, from, token)
    };
    let stranger = |n: u32| IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + n));

    // 20 wrong ones from 20 addresses, and the account is blocked: a known and an unknown one alike.
    for email in ["anna@example.org", "nobody@example.org"] {
        let mut refusals = 0;
        for n in 0..40 {
            match local.attempt(email, "guess guess", stranger(n)) {
                Err(AccountError::Unauthorized(_)) => assert!(n < 20, "{email} {n}"),
                Err(AccountError::TooManyAttempts { retry_after_s }) => {
                    assert!((1..=180).contains(&retry_after_s));
                    refusals += 1;
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(refusals, 20, "{email}");
    }
    assert_eq!(wait_s(anna("correct horse", elsewhere, None)), 180);
    // Neither of these is anything that a stranger could show.
    for token in ["", "rc_", "rc_0123456789012345678901234567890123456789012", &his.token] {
        assert_eq!(wait_s(anna("correct horse", elsewhere, Some(token))), 180, "{token:?}");
    }
    // An address from where she logged in, by its /64, and a device of hers wherever it is.
    anna("correct horse", moved, None).unwrap();
    anna("correct horse", elsewhere, Some(&hers.token)).unwrap();

    // A client at her address cannot lock her device out either, and her token allows no more guesses than
    // that.
    for _ in 0..5 {
        assert!(matches!(anna("guess guess", home, None), Err(AccountError::Unauthorized(_))));
    }
    assert_eq!(wait_s(anna("correct horse", home, None)), 12);
    for n in 0..5 {
        let outcome = anna("guess guess", stranger(1_000 + n), Some(&hers.token));
        assert!(matches!(outcome, Err(AccountError::Unauthorized(_))), "{outcome:?}");
    }
    assert_eq!(wait_s(anna("correct horse", stranger(2_000), Some(&hers.token))), 12);
    local.turn(12_000);
    anna("correct horse", stranger(2_000), Some(&hers.token)).unwrap();

    // An expired token proves as much. And the account becomes available to everybody again.
    local.turn(366 * 86_400_000);
    assert!(local.accounts.authenticate(&hers.token).is_err());
    for n in 0..20 {
        assert!(local.attempt("anna@example.org", "guess guess", stranger(n)).is_err());
    }
    assert_eq!(wait_s(anna("correct horse", moved, None)), 180, "that log-in was a year ago");
    anna("correct horse", moved, Some(&hers.token)).unwrap();
    local.turn(180_000);
    anna("correct horse", "203.0.113.5".parse().unwrap(), None).unwrap();
}

#[test]
fn log_ins_that_succeed_are_never_too_many_for_an_account() {
    let limits = Limits { logins_per_address_per_min: 0, ..Limits::default() };
    let local = Local::with(LocalSettings::new(&AuthSettings::default(), &limits));
    local.accounts.register("anna@example.org", "correct horse", HERE).unwrap();
    for n in 0..100 {
        let from = IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + n / 2));
        local.attempt("anna@example.org", "correct horse", from).unwrap();
    }
}

#[test]
fn a_closed_registration_leaves_accounts_to_whoever_runs_the_server() {
    let local = Local::with(LocalSettings { registration: Registration::Closed, ..unlimited() });
    let outcome = local.accounts.register("anna@example.org", "correct horse", HERE);
    assert!(matches!(outcome, Err(AccountError::RegistrationClosed)));
    let anna = local.accounts.enrol("Anna@example.org", "correct horse", None).unwrap();
    local.accounts.enrol("bert@example.org", "battery staple", Some(anna.owner)).unwrap();
    let (hers, his) = (local.anna("phone", None), local.bert(None));
    assert_eq!(local.caller(&hers).owner, local.caller(&his).owner, "a couple shares its rows");

    assert!(local.accounts.set_password("anna@example.org", "new password").unwrap());
    assert!(!local.accounts.set_password("nobody@example.org", "new password").unwrap());
    assert!(!local.is_in(&hers), "a new password signs all devices out");
    assert!(local.is_in(&his));
    assert!(local.attempt("anna@example.org", "correct horse", HERE).is_err());
    assert!(local.attempt("anna@example.org", "new password", HERE).is_ok());
}

/// Goal: who replaces a password has signed out everybody who knew the old one. Method: the password is replaced between
/// the check of the old one and the writing of the device.
#[test]
fn a_log_in_with_the_old_password_that_is_under_way_is_taken_back() {
    let local = Local::new();
    let hers = local.anna("phone", None);
    let anna = local.caller(&hers).user;
    let theirs = local.hash("bert@example.org");
    local.memory.meanwhile.lock().unwrap().replace(Box::new(move |memory| {
        memory.replace_password(anna, &theirs, KeptDevices::None).unwrap();
    }));
    let outcome = local.attempt("anna@example.org", "correct horse", HERE);
    assert!(matches!(outcome, Err(AccountError::Unauthorized(_))), "{outcome:?}");
    assert_eq!(local.memory.devices(anna).unwrap(), []);

    // Another log-in that makes the hash of the same password stronger is no reason.
    let stronger = Params::new(16, 2, 1, None).unwrap();
    let later =
        LocalAccounts::new(local.memory.clone(), clock_of(&local.now_ms), unlimited(), stronger).unwrap();
    local.memory.meanwhile.lock().unwrap().replace(Box::new(move |memory| {
        let mut users = memory.users.lock().unwrap();
        let salted_anew =
            users.iter().find(|user| user.email == "carl@example.org").unwrap().password_hash.clone();
        users.iter_mut().find(|user| user.id == anna).unwrap().password_hash = salted_anew;
    }));
    later.register("carl@example.org", "battery staple", HERE).unwrap();
    local.attempt("anna@example.org", "battery staple", HERE).unwrap();
}

#[test]
fn a_token_is_good_for_as_few_guesses_of_its_password_as_a_log_in() {
    let local = Local::with(LocalSettings { logins_per_account_per_min: 3, ..unlimited() });
    local.accounts.register("anna@example.org", "correct horse", HERE).unwrap();
    let caller = local.caller(&local.anna("phone", None));
    let change = |old| {
        let change = PasswordChange { old, new: "battery staple", signs_out_others: true };
        local.accounts.change_password(&caller, change, HERE)
    };
    for _ in 0..3 {
        assert!(matches!(change("guess guess"), Err(AccountError::WrongPassword)));
    }
    assert_eq!(wait_s(change("correct horse")), 20);
    local.turn(20_000);
    assert_eq!(change("correct horse").unwrap(), []);
}

/// Accounts whose mails arrive at the other end.
fn mailing(settings: LocalSettings) -> (Local, std::sync::mpsc::Receiver<Mail>) {
    let (sender, mails) = std::sync::mpsc::channel();
    let hook = Hook::Other(Box::new(move |mail| {
        sender.send(mail.clone()).unwrap();
        Ok(())
    }));
    let local = Local::with(settings);
    let Local { accounts, memory, now_ms } = local;
    (Local { accounts: accounts.sending_by(hook, 16).unwrap(), memory, now_ms }, mails)
}

/// The next mail, which the other thread sends.
fn next(mails: &std::sync::mpsc::Receiver<Mail>) -> Mail {
    mails.recv_timeout(std::time::Duration::from_secs(20)).unwrap()
}

/// Goal: nobody learns by a reset which addresses have an account. Method: while the thread that sends is held up, what a
/// request does is counted: users looked up, and jobs put into the queue.
#[test]
fn a_reset_is_the_same_work_whether_there_is_an_account_or_not() {
    let (go_on, gate) = std::sync::mpsc::channel::<()>();
    let (sender, mails) = std::sync::mpsc::channel();
    let hook = Hook::Other(Box::new(move |mail| {
        sender.send(mail.to.clone()).unwrap();
        gate.recv().map_err(|_| HookError::Start(std::io::ErrorKind::BrokenPipe.into()))
    }));
    let Local { accounts, memory, .. } = Local::with(unlimited());
    let accounts = accounts.sending_by(hook, 16).unwrap();
    accounts.register("anna@example.org", "correct horse", HERE).unwrap();
    accounts.ask_for_reset("anna@example.org", HERE).unwrap();
    assert_eq!(mails.recv_timeout(std::time::Duration::from_secs(20)).unwrap(), "anna@example.org");
    // The thread is in the middle of the first mail.
    let work_of = |email: &str| {
        let before = (memory.looked_up.load(Ordering::SeqCst), accounts.mails_waiting());
        let outcome = format!("{:?}", accounts.ask_for_reset(email, HERE));
        (outcome, memory.looked_up.load(Ordering::SeqCst) - before.0, accounts.mails_waiting() - before.1)
    };
    let expected = ("Ok(())".to_owned(), 0, 1);
    for email in ["anna@example.org", "nobody@example.org", " ANNA@example.org", "Nobody@example.org"] {
        assert_eq!(work_of(email), expected, "{email}");
    }
    (0..3).for_each(|_| go_on.send(()).unwrap());
    for _ in 0..2 {
        assert_eq!(mails.recv_timeout(std::time::Duration::from_secs(20)).unwrap(), "anna@example.org");
    }
    let began = std::time::Instant::now();
    while accounts.mails_waiting() > 0 && began.elapsed().as_secs() < 20 {
        std::thread::yield_now();
    }
    assert!(mails.try_recv().is_err(), "a mail to an address without an account");
}

#[test]
fn a_token_of_a_mail_replaces_a_password_once_and_signs_every_device_out() {
    let (local, mails) = mailing(unlimited());
    local.accounts.register("anna@example.org", "correct horse", HERE).unwrap();
    local.accounts.register("bert@example.org", "battery staple", HERE).unwrap();
    let (hers, his) = (local.anna("phone", None), local.bert(None));
    let ask = || {
        local.accounts.ask_for_reset("anna@example.org", HERE).unwrap();
        next(&mails)
    };
    let reset = |mail: &Mail, new: &str| local.accounts.reset_password(&mail.token, new, HERE);
    let is_invalid = |outcome: Result<_, AccountError>| matches!(outcome, Err(AccountError::InvalidToken));
    let (first, second) = (ask(), ask());
    assert_eq!((first.to.as_str(), first.kind), ("anna@example.org", MailKind::PasswordReset));
    assert_eq!(second.link.as_deref(), Some(&*format!("https://app.example/reset#{}", second.token)));
    assert!(!format!("{first:?}").contains(&first.token), "a token is never printed");
    assert!(is_invalid(reset(&first, "a new password")), "a newer mail ends the older one");
    assert!(
        local.accounts.verify_email(&second.token, "correct horse", HERE).is_err(),
        "it is of another kind"
    );
    assert_eq!(invalid_member(reset(&second, "password1")), "new");
    assert!(local.is_in(&hers), "nothing was changed");

    let (user, devices) = reset(&second, "a new password").unwrap();
    assert_eq!((user.email.as_str(), devices), ("anna@example.org", vec![hers.device_id]));
    assert!(!local.is_in(&hers) && local.is_in(&his));
    assert!(is_invalid(reset(&second, "another password")), "it is good once");
    assert!(local.attempt("anna@example.org", "correct horse", HERE).is_err());
    local.attempt("anna@example.org", "a new password", HERE).unwrap();

    let late = ask();
    local.turn(1_800_000);
    assert!(is_invalid(reset(&late, "another password")), "it has expired");
    for token in ["", "rp_", "rc_q7Zb1mXo0VvQ2cT9yJ3kR5wLd8NfHs4uAeGi6PxMzYE"] {
        assert!(is_invalid(local.accounts.reset_password(token, "another password", HERE)), "{token:?}");
    }
}

/// Goal: who owns a mailbox gets the account, whoever registered it.
#[test]
fn an_address_is_verified_by_who_reads_its_mail_and_knows_the_password() {
    let (local, mails) = mailing(LocalSettings { verification: Verification::Required, ..unlimited() });
    let log_in = |password: &str| local.attempt("anna@example.org", password, HERE);
    let not_verified =
        |outcome: Result<NewToken, AccountError>| matches!(outcome, Err(AccountError::EmailNotVerified));
    local.accounts.register("anna@example.org", "correct horse", HERE).unwrap();
    let first = next(&mails);
    assert_eq!(first.link.as_deref(), Some(&*format!("https://app.example/verify#{}", first.token)));
    assert!(
        matches!(log_in("wrong horse"), Err(AccountError::Unauthorized(_))),
        "who guesses learns nothing"
    );
    assert!(not_verified(log_in("correct horse")));
    let second = next(&mails);
    let verify = |password: &str| local.accounts.verify_email(&second.token, password, HERE);
    assert!(matches!(verify("wrong horse"), Err(AccountError::WrongPassword)));
    assert!(not_verified(log_in("correct horse")));
    let last = next(&mails);
    assert!(matches!(verify("correct horse"), Err(AccountError::InvalidToken)), "a newer mail has ended it");
    local.accounts.verify_email(&last.token, "correct horse", HERE).unwrap();
    log_in("correct horse").unwrap();

    // A stranger was quicker. The owner of the mailbox cannot verify that account, and takes it by a reset.
    local.accounts.register("carl@example.org", "a stranger's own", HERE).unwrap();
    let of_stranger = next(&mails);
    assert!(local.accounts.verify_email(&of_stranger.token, "carl's guess", HERE).is_err());
    local.accounts.ask_for_reset("carl@example.org", HERE).unwrap();
    local.accounts.reset_password(&next(&mails).token, "carl's own one", HERE).unwrap();
    assert!(local.attempt("carl@example.org", "a stranger's own", HERE).is_err());
    local.attempt("carl@example.org", "carl's own one", HERE).unwrap();
    // The operator vouches for whom it adds.
    local.accounts.enrol("dora@example.org", "correct horse", None).unwrap();
    local.attempt("dora@example.org", "correct horse", HERE).unwrap();
}

#[test]
fn mails_to_an_address_and_to_all_are_limited_with_an_account_or_without() {
    let (local, mails) =
        mailing(LocalSettings { mails_per_account_per_hour: 2, mails_per_hour: 6, ..unlimited() });
    local.accounts.register("anna@example.org", "correct horse", HERE).unwrap();
    let ask = |email: &str| local.accounts.ask_for_reset(email, HERE);
    for email in ["anna@example.org", "nobody@example.org"] {
        ask(email).unwrap();
        ask(&email.to_uppercase()).unwrap();
        assert_eq!(wait_s(ask(email)), 1_800, "{email}");
    }
    ask("a@example.org").unwrap();
    ask("b@example.org").unwrap();
    assert_eq!(wait_s(ask("c@example.org")), 600);
    assert_eq!(invalid_member(ask("no email")), "email");
    assert_eq!((next(&mails).to, next(&mails).to), ("anna@example.org".into(), "anna@example.org".into()));
    local.turn(600_000);
    ask("c@example.org").unwrap();
    let none = Local::new();
    assert!(matches!(none.accounts.ask_for_reset("anna@example.org", HERE), Err(AccountError::NoMail)));
}

#[test]
fn a_log_in_strengthens_an_old_hash() {
    let local = Local::new();
    let stronger = Params::new(16, 2, 1, None).unwrap();
    let clock = clock_of(&local.now_ms);
    let later = LocalAccounts::new(local.memory.clone(), clock, unlimited(), stronger).unwrap();
    let asked = |password| LogIn { email: "anna@example.org", password, device: "x", device_id: None };
    assert!(later.log_in(asked("wrong horse"), HERE).is_err());
    assert!(local.hash("anna@example.org").contains("m=8,t=1"), "a wrong password changes nothing");
    later.log_in(asked("correct horse"), HERE).unwrap();
    let hash = local.hash("anna@example.org");
    assert!(hash.contains("m=16,t=2"), "{hash}");
    later.log_in(asked("correct horse"), HERE).unwrap();
    local.anna("phone", None);
    assert_eq!(local.hash("anna@example.org"), hash, "once is enough, and never back to less");
}

#[test]
fn every_account_error_has_its_place_in_the_contract() {
    let cases = [
        (AccountError::Unauthorized("no"), 401, "unauthorized"),
        (AccountError::RegistrationClosed, 403, "forbidden"),
        (AccountError::EmailTaken, 409, "email_taken"),
        (AccountError::WrongPassword, 403, "wrong_password"),
        (AccountError::AccountGone, 410, "account_gone"),
        (AccountError::InvalidToken, 403, "invalid_token"),
        (AccountError::EmailNotVerified, 403, "email_not_verified"),
        (AccountError::NoMail, 404, "not_found"),
        (AccountError::TooManyAttempts { retry_after_s: 3 }, 429, "too_many_attempts"),
        (AccountError::Invalid { member: "email", reason: "no" }, 422, "invalid_value"),
        (AccountError::NoSuchDevice, 404, "not_found"),
        (AccountError::KeysUnavailable { retry_after_s: 3 }, 503, "busy"),
        (AccountError::Storage(StorageError::Busy), 503, "busy"),
        (AccountError::Internal("no".into()), 500, "internal"),
    ];
    for (error, status, code) in cases {
        let result = format!("{error:?}");
        let (got_status, got_code) = ApiError::from(error).status_and_code();
        assert_eq!((got_status.as_u16(), got_code), (status, code), "{result}");
    }
    let invalid = AccountError::Invalid { member: "password", reason: "no" };
    assert!(matches!(ApiError::from(invalid), ApiError::InvalidBody { at, .. } if at == "/password"));
}

/// Goal: when and from where a device was seen is known at once, and costs hardly a write. Method: a device
/// sends a request every minute for a day, from home and then from elsewhere; another device joins; the
/// server is restarted.
#[test]
fn a_device_that_was_seen_is_written_down_now_and_then() {
    let local = Local::new();
    let token = local.anna("phone", None);
    let anna = local.accounts.authenticate(&token.token).unwrap();
    let [home, elsewhere] = [7, 9].map(|n| IpAddr::from([203, 0, 113, n]));
    let written = || local.memory.written.load(Ordering::SeqCst);
    let flush = || local.accounts.sightings.flush(&mut || true).unwrap();
    let seen = || local.accounts.sightings.of_user(anna.user).unwrap()[&anna.token_device];
    let now = || Timestamp::from_ms(local.now_ms.load(Ordering::SeqCst));
    local.turn(60_000 - local.now_ms.load(Ordering::SeqCst) % 60_000);
    for _ in 0..24 * 60 {
        local.turn(59_999);
        local.accounts.sightings.note(anna.user, anna.token_device, home, now());
        assert_eq!(seen(), Sighting { at: Timestamp::from_ms(now().ms() - 59_999), from: home });
        local.turn(1);
        flush();
    }
    assert!((23..=25).contains(&written()), "{} writes in a day", written());
    let before = written();
    local.accounts.sightings.note(anna.user, anna.token_device, elsewhere, now());
    flush();
    flush();
    assert_eq!((written() - before, seen().from), (1, elsewhere), "another address is written at once");

    let clock = clock_of(&local.now_ms);
    let cheap = Params::new(8, 1, 1, None).unwrap();
    let later = LocalAccounts::new(local.memory.clone(), clock, unlimited(), cheap).unwrap();
    assert_eq!(later.sightings.of_user(anna.user).unwrap()[&anna.token_device], seen());
    local.accounts.log_out(&anna).unwrap();
    assert!(local.accounts.sightings.of_user(anna.user).unwrap().is_empty());
    // Nothing is written when the server has to stop.
    local.anna("tablet", None);
    let before = written();
    local.accounts.sightings.flush(&mut || false).unwrap();
    assert_eq!(written(), before);
}

#[test]
fn accounts_are_kept_here_by_default() {
    let memory = Arc::new(Memory::default());
    let accounts =
        Accounts::open(&AuthSettings::default(), &Limits::default(), memory, Clock::system()).unwrap();
    let local = accounts.local().unwrap();
    local.register("anna@example.org", "correct horse", HERE).unwrap();
    let asked =
        LogIn { email: "anna@example.org", password: "correct horse", device: "phone", device_id: None };
    let token = local.log_in(asked, HERE).unwrap();
    assert_eq!(accounts.authenticate(&token.token).unwrap().device, token.device_id);
    assert!(matches!(accounts.authenticate("rc_x"), Err(AccountError::Unauthorized(_))));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_token_makes_authenticate_panic(text in ".{0,100}", tail in "[A-Za-z0-9_-]{43}") {
        let local = Local::with(unlimited());
        for token in [text.clone(), format!("rc_{text}"), format!("rc_{tail}")] {
            prop_assert!(local.accounts.authenticate(&token).is_err());
        }
    }

    #[test]
    fn no_text_makes_an_account_call_panic(
        email in "(.{0,40}|[a-z]{1,9}@[a-z]{1,9})", password in ".{0,40}", device in ".{0,20}",
    ) {
        let local = Local::with(unlimited());
        let asked = LogIn { email: &email, password: &password, device: &device, device_id: None };
        let registered = local.accounts.register(&email, &password, HERE).is_ok();
        match local.accounts.log_in(asked, HERE) {
            Ok(_) => prop_assert!(registered),
            Err(AccountError::Invalid { member, .. }) => prop_assert_eq!(member, "device"),
            Err(error) => prop_assert!(!registered, "{error:?}"),
        }
    }
}

//! Which installation of an app a request comes from, by its header `Sync-Device: <uuid>.<counter>`.
//!
//! A token is copied with everything else when a phone is set up from another phone's backup. So an installation names
//! itself, and counts the requests of its own that were answered. Of two copies of one installation, one falls behind:
//! the counter that it sends is lower than one that the server has seen. It is then known as another installation,
//! always the same one, and adopts that name from the answer.
//!
//! - A counter may come again, since an answer may be lost; it may not go back.
//! - Only `POST /synchronise` notes an installation and its counter, in its own transaction. Until then, what an
//!   installation has seen counts as seen by the device of its token, so that requests that only read leave nothing.
//! - A user has at most `devices_per_user_max` installations of one owner. A new one takes the place of the one that was
//!   longest silent, if that was silent for an hour; else the device of the token stands for it. So nobody is kept
//!   out, and a client that makes up a new id for each request leaves few traces.

use parking_lot::Mutex;
use rollcall_core::cache::Cache;
use uuid::Uuid;

use super::Caller;
use crate::broken;
use crate::model::{DeviceId, InstallationName, Owner, Timestamp};
use crate::storage::{Installation, StorageResult, WriteTxn};

/// A caller that is an installation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallerInstallation {
    /// As the request named it.
    pub sent: InstallationName,
    /// As which it is known: another id than the request's if that one has come further.
    pub id: Uuid,
    /// Whether it has synchronised before.
    pub is_noted: bool,
}

/// Copies of copies that are looked for. More do not come up: each would have to be behind all the others.
const COPIES_MAX: usize = 16;

/// Silence after which an installation makes room for a new one, ms.
const SILENT_MS: i64 = 3_600_000;

/// The device as which the server knows an installation of a user: the same whichever token it comes with.
pub fn device_of(user: Uuid, id: Uuid) -> DeviceId {
    let of_user = Uuid::new_v5(&user, b"installation");
    DeviceId(Uuid::new_v5(&of_user, id.hyphenated().encode_lower(&mut Uuid::encode_buffer()).as_bytes()))
}

/// The id of an installation that has fallen behind the one whose id it sends.
pub fn copy_of(id: Uuid) -> Uuid {
    Uuid::new_v5(&id, b"clone")
}

impl Caller {
    /// What the client is to call its installation from now on, if that is not what it calls it.
    pub fn adopts(&self) -> Option<InstallationName> {
        let known = self.installation.filter(|known| known.id != known.sent.id)?;
        Some(InstallationName { id: known.id, ..known.sent })
    }

    /// The devices as which the server may have answered an earlier copy of this request: the caller's own, the one
    /// that the request names, and the copies between them. A late copy of a request carries the counter of its own time.
    pub fn may_have_sent(&self) -> impl Iterator<Item = DeviceId> {
        let (user, own) = (self.user, self.device);
        let named = self.installation.map(|known| known.sent.id);
        let copies = std::iter::successors(named, |id| Some(copy_of(*id))).take(COPIES_MAX);
        let copies = copies.map(move |id| device_of(user, id)).take_while(move |device| *device != own);
        std::iter::once(own).chain(copies)
    }

    /// The installations that had the caller's token before it, if it is new. A phone that was set up from a backup has
    /// the unanswered request of the phone that was backed up, and may send it under the name that it has adopted.
    pub fn may_be_copied_from(&self, txn: &mut dyn WriteTxn) -> StorageResult<Vec<DeviceId>> {
        if self.installation.is_none_or(|known| known.is_noted) {
            return Ok(Vec::new());
        }
        let of_token = |one: &Installation| {
            (one.user, one.token_device) == (self.user, self.token_device) && one.device != self.device
        };
        Ok(txn.installations()?.into_iter().filter(of_token).map(|one| one.device).collect())
    }

    /// The device whose cursor it is that this caller shows.
    pub fn seen_as(&self) -> DeviceId {
        match self.installation {
            Some(known) if !known.is_noted => self.token_device,
            _ => self.device,
        }
    }

    /// The same caller, as the installation that it says it is.
    pub fn as_sent(&self, sent: InstallationName) -> Self {
        self.known_as(sent, sent.id, false)
    }

    /// The same caller, once its installation is noted.
    pub fn noted(&self) -> Self {
        let installation = self.installation.map(|known| CallerInstallation { is_noted: true, ..known });
        Self { installation, ..self.clone() }
    }

    /// The same caller as the token alone names it.
    fn of_token(&self) -> Self {
        Self { device: self.token_device, installation: None, ..self.clone() }
    }

    fn known_as(&self, sent: InstallationName, id: Uuid, is_noted: bool) -> Self {
        let installation = Some(CallerInstallation { sent, id, is_noted });
        Self { device: device_of(self.user, id), installation, ..self.clone() }
    }
}

/// What is looked up to know an installation.
pub trait Lookup {
    /// The highest counter of an installation, if it was noted.
    fn counter(&mut self, device: DeviceId) -> StorageResult<Option<u64>>;

    /// All of the owner.
    fn all(&mut self) -> StorageResult<Vec<Installation>>;
}

/// A look from within a transaction.
struct Within<'a, 't>(&'a mut (dyn WriteTxn + 't));

impl Lookup for Within<'_, '_> {
    fn counter(&mut self, device: DeviceId) -> StorageResult<Option<u64>> {
        self.0.counter(device)
    }

    fn all(&mut self) -> StorageResult<Vec<Installation>> {
        self.0.installations()
    }
}

/// Who a caller is that names its installation.
///
/// - `max`: installations that a user may have among those of one owner.
pub fn resolve(
    caller: &Caller,
    sent: InstallationName,
    lookup: &mut dyn Lookup,
    max: usize,
    now: Timestamp,
) -> StorageResult<Caller> {
    let mut id = sent.id;
    for _ in 0..COPIES_MAX {
        match lookup.counter(device_of(caller.user, id))? {
            Some(highest) if highest > sent.counter && !broken::is("clone_unnoticed") => id = copy_of(id),
            Some(_) => return Ok(caller.known_as(sent, id, true)),
            None if room(caller.user, &lookup.all()?, max, now) == Room::None => break,
            None => return Ok(caller.known_as(sent, id, false)),
        }
    }
    Ok(caller.of_token())
}

/// Whether there is room for one more installation of a user.
#[derive(Debug, PartialEq, Eq)]
enum Room {
    Free,
    InPlaceOf(DeviceId),
    None,
}

fn room(user: Uuid, all: &[Installation], max: usize, now: Timestamp) -> Room {
    let own = || all.iter().filter(|one| one.user == user);
    if own().count() < max {
        return Room::Free;
    }
    match own().min_by_key(|one| (one.seen_at, one.device)) {
        Some(oldest) if oldest.seen_at <= now.shifted(-SILENT_MS) => Room::InPlaceOf(oldest.device),
        _ => Room::None,
    }
}

/// What became of noting a caller's counter.
#[derive(Debug, PartialEq)]
pub enum CounterOutcome {
    /// The caller is who it was taken for. The cursors of these devices hold nothing back any more.
    Well(Vec<DeviceId>),
    /// By now it is known as another: its request is to be begun anew as that one's.
    Other(Box<Caller>),
}

/// Notes how far the caller's installation has come, as a part of its request's transaction.
///
/// Two copies may come at once, over two servers: only here, where the owner is held alone, it shows which one is behind.
pub fn note(
    txn: &mut dyn WriteTxn,
    caller: &Caller,
    max: usize,
    now: Timestamp,
) -> StorageResult<CounterOutcome> {
    let Some(known) = caller.installation else { return Ok(CounterOutcome::Well(Vec::new())) };
    let Caller { user, device, token_device, .. } = *caller;
    let one = Installation { device, user, token_device, counter: known.sent.counter, seen_at: now };
    if txn.raise_installation(&one)? {
        return Ok(CounterOutcome::Well(Vec::new()));
    }
    let resolved = resolve(caller, known.sent, &mut Within(&mut *txn), max, now)?;
    if resolved.device != device {
        return Ok(CounterOutcome::Other(Box::new(resolved)));
    }
    // It is new. What it saw before was noted as seen by the device of its token.
    let mut done = vec![token_device];
    txn.forget_device(token_device)?;
    if let Room::InPlaceOf(silent) = room(user, &txn.installations()?, max, now) {
        txn.forget_installation(silent)?;
        done.push(silent);
    }
    txn.add_installation(&one)?;
    Ok(CounterOutcome::Well(done))
}

/// Counters in memory, for a server that has its database to itself: then nobody else can raise one.
pub struct Counters(Mutex<Seen>);

struct Seen {
    highest: Cache<(Owner, DeviceId), u64>,
    /// Rises whenever anything is forgotten: what was looked up before may be old by then.
    moves: u64,
}

/// Counters that are kept: about 5 MB.
const COUNTERS_MAX: usize = 65_536;

/// A moment before a look into the database.
#[derive(Clone, Copy)]
pub struct CacheStamp(u64);

impl Default for Counters {
    fn default() -> Self {
        Self(Mutex::new(Seen { highest: Cache::new(COUNTERS_MAX), moves: 0 }))
    }
}

impl Counters {
    /// The highest counter of an installation, if that is in memory.
    pub fn find(&self, owner: Owner, device: DeviceId) -> Option<u64> {
        self.0.lock().highest.get(&(owner, device)).copied()
    }

    /// To be asked before a counter is looked up.
    pub fn stamp(&self) -> CacheStamp {
        CacheStamp(self.0.lock().moves)
    }

    /// Keeps what a look that began at `since` found.
    pub fn found(&self, owner: Owner, device: DeviceId, counter: u64, since: CacheStamp) {
        let mut seen = self.0.lock();
        if seen.moves == since.0 {
            seen.keep(owner, device, counter);
        }
    }

    /// Keeps a counter that was just made durable.
    pub fn raised(&self, owner: Owner, device: DeviceId, counter: u64) {
        self.0.lock().keep(owner, device, counter);
    }

    /// Forgets an installation.
    pub fn forget(&self, owner: Owner, device: DeviceId) {
        let mut seen = self.0.lock();
        seen.highest.remove(&(owner, device));
        seen.moves += 1;
    }
}

impl Seen {
    fn keep(&mut self, owner: Owner, device: DeviceId, counter: u64) {
        let key = (owner, device);
        let highest = self.highest.get(&key).map_or(counter, |highest| counter.max(*highest));
        self.moves += u64::from(self.highest.insert(key, highest));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const USER: Uuid = Uuid::from_u128(1);
    const ID: Uuid = Uuid::from_u128(0xa);

    struct Held(Vec<Installation>);

    impl Lookup for Held {
        fn counter(&mut self, device: DeviceId) -> StorageResult<Option<u64>> {
            Ok(self.0.iter().find(|one| one.device == device).map(|one| one.counter))
        }

        fn all(&mut self) -> StorageResult<Vec<Installation>> {
            Ok(self.0.clone())
        }
    }

    fn caller() -> Caller {
        let token_device = DeviceId(Uuid::from_u128(3));
        Caller {
            owner: Owner(Uuid::from_u128(2)),
            user: USER,
            device: token_device,
            device_name: "phone".into(),
            token_device,
            installation: None,
        }
    }

    fn held(id: Uuid, counter: u64, seen_ms: i64) -> Installation {
        Installation {
            device: device_of(USER, id),
            user: USER,
            token_device: caller().token_device,
            counter,
            seen_at: Timestamp::from_ms(seen_ms),
        }
    }

    fn resolved(known: &[Installation], counter: u64, max: usize, now_ms: i64) -> Caller {
        let (sent, now) = (InstallationName { id: ID, counter }, Timestamp::from_ms(now_ms));
        resolve(&caller(), sent, &mut Held(known.to_vec()), max, now).unwrap()
    }

    /// The mapping is part of the data: were it to change, no installation would know its rows.
    #[test]
    fn ids_are_derived_for_ever_in_the_same_way() {
        let id = Uuid::from_u128(0x0190_163d_8694_739b_aea5_966c_26f8_ad90);
        assert_eq!(device_of(USER, id).to_string(), "fbdc717e-d20e-5de3-903e-928093f9fc96");
        assert_eq!(copy_of(id).to_string(), "db25392f-6f4f-509e-a881-e1fc6da60599");
        assert_ne!(device_of(Uuid::from_u128(9), id), device_of(USER, id));
    }

    #[test]
    fn one_that_falls_behind_is_another_and_always_the_same() {
        let copy = copy_of(ID);
        let known = [held(ID, 7, 0)];
        for counter in [7, 8] {
            let same = resolved(&known, counter, 100, 0);
            assert_eq!((same.device, same.adopts()), (device_of(USER, ID), None));
        }
        let behind = resolved(&known, 6, 100, 0);
        assert_eq!(behind.device, device_of(USER, copy));
        assert_eq!(behind.adopts(), Some(InstallationName { id: copy, counter: 6 }));
        assert_eq!(behind.seen_as(), caller().token_device, "it has not synchronised yet");
        let known = [held(ID, 7, 0), held(copy, 6, 0)];
        assert_eq!(resolved(&known, 6, 100, 0).device, behind.device, "its answer was lost");
        assert_eq!(resolved(&known, 6, 100, 0).seen_as(), behind.device);
        assert_eq!(resolved(&known, 5, 100, 0).device, device_of(USER, copy_of(copy)), "a third one");
    }

    #[test]
    fn a_user_is_never_kept_out_and_never_has_more_than_may_be() {
        let others: Vec<_> = (0..3).map(|n| held(Uuid::from_u128(100 + n), 1, 1_000 * n as i64)).collect();
        assert_eq!(resolved(&others, 0, 4, 0).device, device_of(USER, ID));
        let full = resolved(&others, 0, 3, SILENT_MS - 1);
        assert_eq!((full.device, full.installation), (caller().token_device, None));
        assert_eq!(resolved(&others, 0, 3, SILENT_MS).device, device_of(USER, ID));
        assert_eq!(room(USER, &others, 3, Timestamp::from_ms(SILENT_MS)), Room::InPlaceOf(others[0].device));
        // Others who share the rows have places of their own.
        let of_another: Vec<_> =
            others.iter().map(|one| Installation { user: Uuid::from_u128(9), ..*one }).collect();
        assert_eq!(room(USER, &of_another, 3, Timestamp::from_ms(0)), Room::Free);
        let mut known = others;
        known.push(held(ID, 5, 0));
        assert_eq!(resolved(&known, 5, 3, 0).device, device_of(USER, ID), "who is known needs no place");
    }

    #[test]
    fn a_counter_that_was_forgotten_meanwhile_is_not_kept() {
        let counters = Counters::default();
        let (owner, device) = (Owner(Uuid::from_u128(2)), device_of(USER, ID));
        let since = counters.stamp();
        counters.raised(owner, device, 7);
        counters.found(owner, device, 3, since);
        assert_eq!(counters.find(owner, device), Some(7));
        counters.forget(owner, device);
        counters.found(owner, device, 3, since);
        assert_eq!(counters.find(owner, device), None);
        for n in 0..2 * COUNTERS_MAX as u128 {
            counters.raised(owner, DeviceId(Uuid::from_u128(n)), 1);
        }
        assert!(counters.0.lock().highest.len() <= COUNTERS_MAX);
    }
}

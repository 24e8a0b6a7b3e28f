//! Identifies the installation of an app that sends a request, by its header `Sync-Device: <uuid>.<counter>`.
//!
//! When a phone is set up from another phone's backup, the token is copied with everything else. So an
//! installation names itself, and counts its requests that were answered. Of two copies of one installation,
//! one falls behind: it sends a lower counter than the server has seen. The server then knows it under
//! another id, always the same one, and it adopts that name from the response.
//!
//! - A counter may be sent again, since a response may be lost; it must not decrease.
//! - Only `POST /synchronise` stores an installation and its counter, in its own transaction. Before that, an
//!   installation's cursor counts for the device of its token, so that requests which only read store
//!   nothing.
//! - A user has at most `devices_per_user_max` installations of one owner. A new one replaces the one that
//!   was silent longest, if that was silent for an hour; otherwise the device of the token represents it. So
//!   nobody is locked out, and a client that invents a new id for each request stores little.

use parking_lot::Mutex;
use rollcall_core::cache::Cache;
use uuid::Uuid;

use super::Caller;
use crate::broken;
use crate::model::{DeviceId, InstallationName, Owner, Timestamp};
use crate::storage::{Installation, StorageResult, WriteTxn};

/// The installation of a caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallerInstallation {
    /// The name in the request.
    pub sent: InstallationName,
    /// The id under which the server knows it: another id than the request's if that one has a higher
    /// counter.
    pub id: Uuid,
    /// Whether it has synchronised before.
    pub is_noted: bool,
}

/// Most copies of copies that are tried. More do not occur: each would have to be behind all the others.
const COPIES_MAX: usize = 16;

/// Silence after which an installation may be replaced by a new one, ms.
const SILENT_MS: i64 = 3_600_000;

/// The device under which the server knows an installation of a user, whichever token it uses.
pub fn device_of(user: Uuid, id: Uuid) -> DeviceId {
    let of_user = Uuid::new_v5(&user, b"installation");
    DeviceId(Uuid::new_v5(&of_user, id.hyphenated().encode_lower(&mut Uuid::encode_buffer()).as_bytes()))
}

/// The id of an installation that has fallen behind the one whose id it sends.
pub fn copy_of(id: Uuid) -> Uuid {
    Uuid::new_v5(&id, b"clone")
}

impl Caller {
    /// The name that the client must adopt for its installation, if it differs from the one it sent.
    pub fn adopts(&self) -> Option<InstallationName> {
        let known = self.installation.filter(|known| known.id != known.sent.id)?;
        Some(InstallationName { id: known.id, ..known.sent })
    }

    /// The devices for which the server may have answered an earlier copy of this request: the caller's own,
    /// the one that the request names, and the copies between them. A late copy of a request has the counter
    /// of its own time.
    pub fn may_have_sent(&self) -> impl Iterator<Item = DeviceId> {
        let (user, own) = (self.user, self.device);
        let named = self.installation.map(|known| known.sent.id);
        let copies = std::iter::successors(named, |id| Some(copy_of(*id))).take(COPIES_MAX);
        let copies = copies.map(move |id| device_of(user, id)).take_while(move |device| *device != own);
        std::iter::once(own).chain(copies)
    }

    /// For a new installation: the other installations with the caller's token. A phone that was set up from
    /// a backup has the unanswered request of the original phone, and may send it under the name that it has
    /// adopted.
    pub fn may_be_copied_from(&self, txn: &mut dyn WriteTxn) -> StorageResult<Vec<DeviceId>> {
        if self.installation.is_none_or(|known| known.is_noted) {
            return Ok(Vec::new());
        }
        let of_token = |one: &Installation| {
            (one.user, one.token_device) == (self.user, self.token_device) && one.device != self.device
        };
        Ok(txn.installations()?.into_iter().filter(of_token).map(|one| one.device).collect())
    }

    /// The device whose cursor this caller acknowledges.
    pub fn seen_as(&self) -> DeviceId {
        match self.installation {
            Some(known) if !known.is_noted => self.token_device,
            _ => self.device,
        }
    }

    /// The same caller, as the installation that the request names.
    pub fn as_sent(&self, sent: InstallationName) -> Self {
        self.known_as(sent, sent.id, false)
    }

    /// The same caller, once its installation is stored.
    pub fn noted(&self) -> Self {
        let installation = self.installation.map(|known| CallerInstallation { is_noted: true, ..known });
        Self { installation, ..self.clone() }
    }

    /// The same caller, as the token alone identifies it.
    fn of_token(&self) -> Self {
        Self { device: self.token_device, installation: None, ..self.clone() }
    }

    fn known_as(&self, sent: InstallationName, id: Uuid, is_noted: bool) -> Self {
        let installation = Some(CallerInstallation { sent, id, is_noted });
        Self { device: device_of(self.user, id), installation, ..self.clone() }
    }
}

/// The lookups that are needed to identify an installation.
pub trait Lookup {
    /// The highest counter of an installation, if it is stored.
    fn counter(&mut self, device: DeviceId) -> StorageResult<Option<u64>>;

    /// All installations of the owner.
    fn all(&mut self) -> StorageResult<Vec<Installation>>;
}

/// Lookups within a transaction.
struct Within<'a, 't>(&'a mut (dyn WriteTxn + 't));

impl Lookup for Within<'_, '_> {
    fn counter(&mut self, device: DeviceId) -> StorageResult<Option<u64>> {
        self.0.counter(device)
    }

    fn all(&mut self) -> StorageResult<Vec<Installation>> {
        self.0.installations()
    }
}

/// Identifies a caller that names its installation.
///
/// - `max`: the most installations of a user for one owner.
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

/// Whether a user may have one more installation.
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

/// The result of storing a caller's counter.
#[derive(Debug, PartialEq)]
pub enum CounterOutcome {
    /// The caller is the expected one. These devices no longer keep tombstones.
    Well(Vec<DeviceId>),
    /// The caller is another installation now: its request must be started again as that one.
    Other(Box<Caller>),
}

/// Stores the caller's counter, as a part of its request's transaction.
///
/// Two copies may arrive at two servers at once. Only here, where the owner is locked, it is certain which
/// one is behind.
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
    // It is new. Its cursor was stored for the device of its token until now.
    let mut done = vec![token_device];
    txn.forget_device(token_device)?;
    if let Room::InPlaceOf(silent) = room(user, &txn.installations()?, max, now) {
        txn.forget_installation(silent)?;
        done.push(silent);
    }
    txn.add_installation(&one)?;
    Ok(CounterOutcome::Well(done))
}

/// A cache of counters, for a server that has its database to itself: then nobody else can raise one.
pub struct Counters(Mutex<Seen>);

struct Seen {
    highest: Cache<(Owner, DeviceId), u64>,
    /// Incremented whenever a counter is removed: an earlier lookup may then be outdated.
    moves: u64,
}

/// Counters in the cache: about 5 MB.
const COUNTERS_MAX: usize = 65_536;

/// The state of the cache before a lookup.
#[derive(Clone, Copy)]
pub struct CacheStamp(u64);

impl Default for Counters {
    fn default() -> Self {
        Self(Mutex::new(Seen { highest: Cache::new(COUNTERS_MAX), moves: 0 }))
    }
}

impl Counters {
    /// The highest counter of an installation, if it is cached.
    pub fn find(&self, owner: Owner, device: DeviceId) -> Option<u64> {
        self.0.lock().highest.get(&(owner, device)).copied()
    }

    /// Taken before a counter is looked up.
    pub fn stamp(&self) -> CacheStamp {
        CacheStamp(self.0.lock().moves)
    }

    /// Caches the result of a lookup that began at `since`.
    pub fn found(&self, owner: Owner, device: DeviceId, counter: u64, since: CacheStamp) {
        let mut seen = self.0.lock();
        if seen.moves == since.0 {
            seen.keep(owner, device, counter);
        }
    }

    /// Caches a counter that was just committed.
    pub fn raised(&self, owner: Owner, device: DeviceId, counter: u64) {
        self.0.lock().keep(owner, device, counter);
    }

    /// Removes an installation.
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
    use crate::accounts::Rights;

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
            default_owner: Owner(Uuid::from_u128(2)),
            token_owners: None,
            rights: Rights::HOME,
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

    /// The mapping is part of the data: if it changed, no installation would know its rows.
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
        // Other users who share the rows have installations of their own.
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

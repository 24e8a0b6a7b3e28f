//! Caches response bodies by owner and version.

use std::collections::{HashMap, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::Stream;
use parking_lot::Mutex;

use crate::changes::Feed;
use crate::fetch::PageToken;
use crate::model::{Owner, Version};
use crate::schema::TableId;

/// About how many bytes a body takes in addition to its contents, and an owner in addition to its bodies.
const ENTRY_BYTES: usize = 256;
const OWNER_BYTES: usize = 256;

/// The request of a cached body, and how many tables look empty to the caller.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum CacheKey {
    /// A page of the manifest of these tables.
    Manifest(Vec<TableId>, Option<PageToken>, usize),
    /// Changes since the newest version: an empty page.
    Unchanged(usize),
    /// A page of the change feed for those who are no members, by its request.
    PublicChanges(PublicChanges),
}

/// Which page of the change feed of a public owner.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct PublicChanges {
    pub since: Option<Version>,
    pub tables: Vec<TableId>,
    pub rows_max: usize,
    pub next: Option<Feed>,
}

/// The bytes of one body. They are counted until its last sender is done.
pub(crate) struct CachedBody {
    pub chunks: Vec<Bytes>,
    pub bytes: usize,
    /// Where the next page begins.
    pub next: Option<PageToken>,
    reserved: Reservation,
}

/// Response bodies in memory. Those of owners without recent requests are evicted first.
///
/// - Bounds: the bytes of all bodies, including those that are still being recorded or sent, stay below
///   `bytes_max`. A body without room is not cached. One owner's bodies use at most half of it.
/// - A body belongs to one version: it is found under that version only, and is removed when the owner's
///   version changes.
pub(crate) struct ResponseCache {
    bytes_max: usize,
    reserved: Arc<AtomicUsize>,
    owners: Mutex<Owners>,
}

#[derive(Default)]
struct Owners {
    by_owner: HashMap<Owner, OwnerBodies>,
    /// Every owner above once, the next one to evict first.
    queue: VecDeque<Owner>,
}

struct OwnerBodies {
    version: Version,
    bodies: HashMap<CacheKey, Arc<CachedBody>>,
    /// Used since the owner was last at the front of the queue.
    was_used: bool,
    _reserved: Reservation,
}

impl ResponseCache {
    pub fn new(bytes_max: usize) -> Self {
        Self { bytes_max, reserved: Arc::default(), owners: Mutex::default() }
    }

    /// The most bytes of one owner's bodies; larger ones need not be recorded.
    pub fn owner_bytes_max(&self) -> usize {
        self.bytes_max / 2
    }

    /// The body for a request at a version.
    pub fn find(&self, owner: Owner, version: Version, key: &CacheKey) -> Option<Arc<CachedBody>> {
        let mut owners = self.owners.lock();
        let kept = owners.by_owner.get_mut(&owner).filter(|kept| kept.version == version)?;
        let body = kept.bodies.get(key).cloned()?;
        kept.was_used = true;
        Some(body)
    }

    /// Begins to record a body.
    pub fn begin(self: &Arc<Self>) -> BodyRecorder {
        let reserved = Some(Reservation { sum: Arc::clone(&self.reserved), bytes: 0 });
        let mut recorder = BodyRecorder { cache: Arc::clone(self), chunks: Vec::new(), bytes: 0, reserved };
        recorder.count(OWNER_BYTES + ENTRY_BYTES);
        recorder
    }

    /// Removes the bodies of other versions.
    pub fn moved(&self, owner: Owner, version: Version) {
        if let Some(kept) = self.owners.lock().by_owner.get_mut(&owner)
            && kept.version != version
        {
            kept.bodies.clear();
        }
    }

    /// Reserves bytes, and evicts others for them; `false` if evicting everything is not enough.
    fn reserve(&self, bytes: usize) -> bool {
        let within = |sum: usize| sum.checked_add(bytes).filter(|sum| *sum <= self.bytes_max);
        while self.reserved.fetch_update(Ordering::SeqCst, Ordering::SeqCst, within).is_err() {
            if !self.owners.lock().forget_one() {
                return false;
            }
        }
        true
    }

    fn keep(&self, owner: Owner, version: Version, key: CacheKey, mut body: CachedBody) {
        let mut owners = self.owners.lock();
        let Owners { by_owner, queue } = &mut *owners;
        let kept = by_owner.entry(owner).or_insert_with(|| {
            queue.push_back(owner);
            let reserved = body.reserved.split(OWNER_BYTES);
            OwnerBodies { version, bodies: HashMap::new(), was_used: false, _reserved: reserved }
        });
        if kept.version > version {
            return; // a newer version was cached meanwhile; drop this one
        }
        let others: usize = kept.bodies.values().map(|other| other.bytes).sum();
        // A device that requests its tables one by one, and then all at once, starts again.
        if kept.version < version || others + body.bytes > self.owner_bytes_max() {
            kept.bodies.clear();
        }
        kept.version = version;
        kept.bodies.insert(key, Arc::new(body));
    }

    #[cfg(test)]
    fn bytes(&self) -> usize {
        self.reserved.load(Ordering::SeqCst)
    }
}

impl Owners {
    /// Evicts the owner without a request for longest; `false` if there is none.
    fn forget_one(&mut self) -> bool {
        while let Some(owner) = self.queue.pop_front() {
            match self.by_owner.get_mut(&owner) {
                Some(kept) if kept.was_used => {
                    kept.was_used = false;
                    self.queue.push_back(owner);
                }
                _ => {
                    self.by_owner.remove(&owner);
                    return true;
                }
            }
        }
        false
    }
}

/// Records a body while it is sent. Dropping it discards the recording.
pub(crate) struct BodyRecorder {
    cache: Arc<ResponseCache>,
    chunks: Vec<Bytes>,
    bytes: usize,
    /// `None` after there was no room.
    reserved: Option<Reservation>,
}

impl BodyRecorder {
    /// Records the next bytes.
    pub fn add(&mut self, chunk: &Bytes) {
        self.count(chunk.len());
        if self.reserved.is_some() {
            self.bytes += chunk.len();
            self.chunks.push(chunk.clone());
        }
    }

    /// Caches what was recorded, if there was room for all of it.
    pub fn keep(self, owner: Owner, version: Version, key: CacheKey, next: Option<PageToken>) {
        let Self { cache, chunks, bytes, reserved } = self;
        if let Some(reserved) = reserved {
            cache.keep(owner, version, key, CachedBody { chunks, bytes, next, reserved });
        }
    }

    fn count(&mut self, bytes: usize) {
        let Some(reserved) = &mut self.reserved else { return };
        if self.bytes + bytes <= self.cache.owner_bytes_max() && self.cache.reserve(bytes) {
            reserved.bytes += bytes;
        } else {
            (self.reserved, self.chunks) = (None, Vec::new());
        }
    }
}

/// A number of reserved bytes, released on drop.
struct Reservation {
    sum: Arc<AtomicUsize>,
    bytes: usize,
}

impl Reservation {
    /// Splits a part off as a reservation of its own.
    fn split(&mut self, bytes: usize) -> Self {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        Self { sum: Arc::clone(&self.sum), bytes }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.sum.fetch_sub(self.bytes, Ordering::SeqCst);
    }
}

/// Sends the bytes of a cached body.
pub(crate) struct CachedStream {
    body: Arc<CachedBody>,
    sent: usize,
}

impl CachedStream {
    pub fn new(body: Arc<CachedBody>) -> Self {
        Self { body, sent: 0 }
    }
}

impl Stream for CachedStream {
    type Item = Result<Bytes, std::convert::Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = self.body.chunks.get(self.sent).cloned();
        self.sent += 1;
        Poll::Ready(next.map(Ok))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn owner(number: u128) -> Owner {
        Owner(Uuid::from_u128(number))
    }

    fn make(cache: &Arc<ResponseCache>, number: u128, version: u64, bytes: usize) {
        let mut recorder = cache.begin();
        recorder.add(&Bytes::from(vec![b'x'; bytes / 2]));
        recorder.add(&Bytes::from(vec![b'y'; bytes - bytes / 2]));
        recorder.keep(owner(number), Version(version), CacheKey::Unchanged(0), None);
    }

    fn found(cache: &ResponseCache, number: u128, version: u64) -> bool {
        cache.find(owner(number), Version(version), &CacheKey::Unchanged(0)).is_some()
    }

    #[test]
    fn an_answer_is_found_at_its_version_alone() {
        let cache = Arc::new(ResponseCache::new(10_000));
        make(&cache, 1, 5, 100);
        assert!(found(&cache, 1, 5) && !found(&cache, 1, 4) && !found(&cache, 1, 6) && !found(&cache, 2, 5));
        let other = CacheKey::Manifest(Vec::new(), None, 0);
        assert!(cache.find(owner(1), Version(5), &other).is_none());
        make(&cache, 1, 4, 100);
        assert!(found(&cache, 1, 5), "one that took long does not push out a newer one");
        cache.moved(owner(1), Version(6));
        assert!(!found(&cache, 1, 5));
        assert_eq!(cache.bytes(), OWNER_BYTES);
    }

    /// Goal: the bound holds, and an owner in use stays. Method: many owners come and go beside one that is
    /// used again and again.
    #[test]
    fn answers_stay_below_the_bound() {
        let cache = Arc::new(ResponseCache::new(10_000));
        make(&cache, 0, 1, 1_000);
        for number in 1..200 {
            make(&cache, number, 1, 50 + usize::try_from(number).unwrap() * 7);
            assert!(found(&cache, 0, 1), "{number}");
            assert!(cache.bytes() <= 10_000, "{number}: {}", cache.bytes());
        }
        make(&cache, 500, 1, 5_001);
        assert!(!found(&cache, 500, 1), "one owner does not fill it");
        assert!(cache.bytes() <= 10_000);
        assert!(found(&cache, 0, 1));
    }

    #[test]
    fn what_is_being_sent_still_counts() {
        let cache = Arc::new(ResponseCache::new(10_000));
        make(&cache, 1, 1, 4_000);
        let sent = cache.find(owner(1), Version(1), &CacheKey::Unchanged(0)).unwrap();
        make(&cache, 2, 1, 4_000);
        make(&cache, 3, 1, 4_000); // evicts both, and still finds no room beside what is being sent
        assert!(cache.bytes() <= 10_000, "{}", cache.bytes());
        assert!(cache.bytes() >= 4_000);
        drop(sent);
        make(&cache, 3, 1, 4_000);
        assert!(found(&cache, 3, 1));
        let before = cache.bytes();
        drop(cache.begin());
        assert_eq!(cache.bytes(), before, "what was only begun leaves nothing");
    }
}

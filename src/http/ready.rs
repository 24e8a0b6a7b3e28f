//! Answers that are ready: the bytes of what an owner's devices asked for last, by version.

use std::collections::{HashMap, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::Stream;
use parking_lot::Mutex;

use crate::fetch::Mark;
use crate::model::{Owner, Version};
use crate::schema::TableId;

/// What an answer takes beside its bytes, and an owner beside its answers, about.
const ENTRY_BYTES: usize = 256;
const OWNER_BYTES: usize = 256;

/// What an answer is to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Question {
    /// A page of the roll call of these tables.
    RollCall(Vec<TableId>, Option<Mark>),
    /// What changed since the newest version: nothing.
    Unchanged,
}

/// The bytes of one answer; they count until the last one who sends them is done.
pub(super) struct Answer {
    pub chunks: Vec<Bytes>,
    pub bytes: usize,
    /// Where the next page begins.
    pub next: Option<Mark>,
    counted: Counted,
}

/// Answers kept in memory, those of owners who ask again longest.
///
/// - Bounds: the bytes of all answers, those that are still being made or sent too, stay below `bytes_max`.
///   What has no room is not kept. One owner's never fill it.
/// - An answer is of one version: it is found under no other, and goes when the owner's version moves.
pub(super) struct Ready {
    bytes_max: usize,
    counted: Arc<AtomicUsize>,
    owners: Mutex<Owners>,
}

#[derive(Default)]
struct Owners {
    by_owner: HashMap<Owner, Kept>,
    /// Every owner above once, the next to go first.
    queue: VecDeque<Owner>,
}

struct Kept {
    version: Version,
    answers: HashMap<Question, Arc<Answer>>,
    /// Asked for since it last stood first in the queue.
    asked_for: bool,
    _counted: Counted,
}

impl Ready {
    pub fn new(bytes_max: usize) -> Self {
        Self { bytes_max, counted: Arc::default(), owners: Mutex::default() }
    }

    /// The largest sum of answers that one owner may have here; what will take more is not worth beginning.
    pub fn owner_bytes_max(&self) -> usize {
        self.bytes_max / 2
    }

    /// The answer to a question at a version.
    pub fn find(&self, owner: Owner, version: Version, question: &Question) -> Option<Arc<Answer>> {
        let mut owners = self.owners.lock();
        let kept = owners.by_owner.get_mut(&owner).filter(|kept| kept.version == version)?;
        let answer = kept.answers.get(question).cloned()?;
        kept.asked_for = true;
        Some(answer)
    }

    /// Begins to gather an answer.
    pub fn begin(self: &Arc<Self>) -> Making {
        let counted = Some(Counted { sum: Arc::clone(&self.counted), bytes: 0 });
        let mut making = Making { ready: Arc::clone(self), chunks: Vec::new(), bytes: 0, counted };
        making.count(OWNER_BYTES + ENTRY_BYTES);
        making
    }

    /// Forgets what is of another version.
    pub fn moved(&self, owner: Owner, version: Version) {
        if let Some(kept) = self.owners.lock().by_owner.get_mut(&owner)
            && kept.version != version
        {
            kept.answers.clear();
        }
    }

    /// Takes room for bytes, and forgets others for it; `false` if there is not enough to forget.
    fn reserve(&self, bytes: usize) -> bool {
        let within = |sum: usize| sum.checked_add(bytes).filter(|sum| *sum <= self.bytes_max);
        while self.counted.fetch_update(Ordering::SeqCst, Ordering::SeqCst, within).is_err() {
            if !self.owners.lock().forget_one() {
                return false;
            }
        }
        true
    }

    fn keep(&self, owner: Owner, version: Version, question: Question, mut answer: Answer) {
        let mut owners = self.owners.lock();
        let Owners { by_owner, queue } = &mut *owners;
        let kept = by_owner.entry(owner).or_insert_with(|| {
            queue.push_back(owner);
            let counted = answer.counted.split(OWNER_BYTES);
            Kept { version, answers: HashMap::new(), asked_for: false, _counted: counted }
        });
        if kept.version > version {
            return; // it took long, and is of yesterday
        }
        let others: usize = kept.answers.values().map(|other| other.bytes).sum();
        // A device that asks for its tables one by one, and then for all, begins anew.
        if kept.version < version || others + answer.bytes > self.owner_bytes_max() {
            kept.answers.clear();
        }
        kept.version = version;
        kept.answers.insert(question, Arc::new(answer));
    }

    #[cfg(test)]
    fn bytes(&self) -> usize {
        self.counted.load(Ordering::SeqCst)
    }
}

impl Owners {
    /// Forgets the owner who did not ask for longest; `false` if there is none.
    fn forget_one(&mut self) -> bool {
        while let Some(owner) = self.queue.pop_front() {
            match self.by_owner.get_mut(&owner) {
                Some(kept) if kept.asked_for => {
                    kept.asked_for = false;
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

/// An answer that is being gathered while it goes out. Dropped, it leaves nothing.
pub(super) struct Making {
    ready: Arc<Ready>,
    chunks: Vec<Bytes>,
    bytes: usize,
    /// `None` once there was no room.
    counted: Option<Counted>,
}

impl Making {
    /// The next bytes of the answer.
    pub fn add(&mut self, chunk: &Bytes) {
        self.count(chunk.len());
        if self.counted.is_some() {
            self.bytes += chunk.len();
            self.chunks.push(chunk.clone());
        }
    }

    /// Keeps what was gathered, if there was room for it.
    pub fn keep(self, owner: Owner, version: Version, question: Question, next: Option<Mark>) {
        let Self { ready, chunks, bytes, counted } = self;
        if let Some(counted) = counted {
            ready.keep(owner, version, question, Answer { chunks, bytes, next, counted });
        }
    }

    fn count(&mut self, bytes: usize) {
        let Some(counted) = &mut self.counted else { return };
        if self.bytes + bytes <= self.ready.owner_bytes_max() && self.ready.reserve(bytes) {
            counted.bytes += bytes;
        } else {
            (self.counted, self.chunks) = (None, Vec::new());
        }
    }
}

/// Bytes that count while this lives.
struct Counted {
    sum: Arc<AtomicUsize>,
    bytes: usize,
}

impl Counted {
    /// Counts a part on its own.
    fn split(&mut self, bytes: usize) -> Self {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        Self { sum: Arc::clone(&self.sum), bytes }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.sum.fetch_sub(self.bytes, Ordering::SeqCst);
    }
}

/// The bytes of an answer on their way.
pub(super) struct Sending {
    answer: Arc<Answer>,
    sent: usize,
}

impl Sending {
    pub fn new(answer: Arc<Answer>) -> Self {
        Self { answer, sent: 0 }
    }
}

impl Stream for Sending {
    type Item = Result<Bytes, std::convert::Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = self.answer.chunks.get(self.sent).cloned();
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

    fn make(ready: &Arc<Ready>, number: u128, version: u64, bytes: usize) {
        let mut making = ready.begin();
        making.add(&Bytes::from(vec![b'x'; bytes / 2]));
        making.add(&Bytes::from(vec![b'y'; bytes - bytes / 2]));
        making.keep(owner(number), Version(version), Question::Unchanged, None);
    }

    fn found(ready: &Ready, number: u128, version: u64) -> bool {
        ready.find(owner(number), Version(version), &Question::Unchanged).is_some()
    }

    #[test]
    fn an_answer_is_found_at_its_version_alone() {
        let ready = Arc::new(Ready::new(10_000));
        make(&ready, 1, 5, 100);
        assert!(found(&ready, 1, 5) && !found(&ready, 1, 4) && !found(&ready, 1, 6) && !found(&ready, 2, 5));
        let other = Question::RollCall(Vec::new(), None);
        assert!(ready.find(owner(1), Version(5), &other).is_none());
        make(&ready, 1, 4, 100);
        assert!(found(&ready, 1, 5), "one that took long does not push out a newer one");
        ready.moved(owner(1), Version(6));
        assert!(!found(&ready, 1, 5));
        assert_eq!(ready.bytes(), OWNER_BYTES);
    }

    /// Goal: the bound holds, whatever comes, and who asks stays. Method: many owners pass by one that asks
    /// again and again.
    #[test]
    fn answers_stay_below_the_bound() {
        let ready = Arc::new(Ready::new(10_000));
        make(&ready, 0, 1, 1_000);
        for number in 1..200 {
            make(&ready, number, 1, 50 + usize::try_from(number).unwrap() * 7);
            assert!(found(&ready, 0, 1), "{number}");
            assert!(ready.bytes() <= 10_000, "{number}: {}", ready.bytes());
        }
        make(&ready, 500, 1, 5_001);
        assert!(!found(&ready, 500, 1), "one owner does not fill it");
        assert!(ready.bytes() <= 10_000);
        assert!(found(&ready, 0, 1));
    }

    #[test]
    fn what_is_being_sent_still_counts() {
        let ready = Arc::new(Ready::new(10_000));
        make(&ready, 1, 1, 4_000);
        let sent = ready.find(owner(1), Version(1), &Question::Unchanged).unwrap();
        make(&ready, 2, 1, 4_000);
        make(&ready, 3, 1, 4_000); // pushes out both, and still finds no room beside what is being sent
        assert!(ready.bytes() <= 10_000, "{}", ready.bytes());
        assert!(ready.bytes() >= 4_000);
        drop(sent);
        make(&ready, 3, 1, 4_000);
        assert!(found(&ready, 3, 1));
        let before = ready.bytes();
        drop(ready.begin());
        assert_eq!(ready.bytes(), before, "what was only begun leaves nothing");
    }
}

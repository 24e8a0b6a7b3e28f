//! What an owner's past takes: tombstones, earlier states of rows, conflicts and stored responses; and how
//! room is made if it exceeds `owner_past_bytes_max`.

use super::StorageResult;
use crate::broken;
use crate::model::{DeviceId, RowKey, Timestamp, Version};

/// About how many bytes a tombstone takes, with its entries in indexes.
pub const TOMBSTONE_BYTES: u64 = 200;

/// About how many bytes an earlier state, a conflict or a stored response takes in addition to its columns or
/// its body. The engines' statements add the same number.
pub const RECORD_BYTES: u64 = 200;

/// What an owner's past takes, as sums that each write updates.
///
/// An owner of an earlier release was never counted. Its sums contain only what was written and forgotten
/// since, and may be negative. A count in the background adds the rest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PastBytes {
    /// Whether the sums are complete.
    pub is_counted: bool,
    /// Tombstones; each counts as [`TOMBSTONE_BYTES`].
    pub tombstones: i64,
    /// Earlier states of rows, bytes.
    pub history: i64,
    /// Conflicts, bytes.
    pub conflicts: i64,
    /// Stored responses, bytes.
    pub responses: i64,
}

impl PastBytes {
    /// The past of an owner without any write.
    pub const NOTHING: Self =
        Self { is_counted: true, tombstones: 0, history: 0, conflicts: 0, responses: 0 };

    /// The total, bytes; `None` until it is counted.
    pub fn bytes(&self) -> Option<u64> {
        let rest = self.history.saturating_add(self.responses).max(0).cast_unsigned();
        self.is_counted.then(|| self.lasting().saturating_add(rest))
    }

    /// The number of tombstones, or more; `None` until they are counted.
    pub fn tombstones_max(&self) -> Option<u64> {
        self.is_counted.then(|| self.tombstones.max(0).cast_unsigned())
    }

    /// What is forgotten by age only: tombstones and conflicts, bytes.
    pub fn lasting(&self) -> u64 {
        let tombstones = self.tombstones.max(0).cast_unsigned().saturating_mul(TOMBSTONE_BYTES);
        tombstones.saturating_add(self.conflicts.max(0).cast_unsigned())
    }

    /// By how many bytes the past exceeds `max` once `more` bytes are added; 0 while it is not counted, and
    /// with a `max` of 0, which means no bound.
    pub fn excess(&self, more: u64, max: u64) -> u64 {
        match self.bytes() {
            Some(bytes) if max > 0 => bytes.saturating_add(more).saturating_sub(max),
            _ => 0,
        }
    }

    /// The corrected sums: a count found `counted` when the sums were `before`. What was written in between
    /// counts too.
    pub fn corrected(&self, before: &Self, counted: &Self) -> Self {
        let sum = |now: i64, before: i64, counted: i64| counted.saturating_add(now.saturating_sub(before));
        Self {
            is_counted: true,
            tombstones: sum(self.tombstones, before.tombstones, counted.tombstones),
            history: sum(self.history, before.history, counted.history),
            conflicts: sum(self.conflicts, before.conflicts, counted.conflicts),
            responses: sum(self.responses, before.responses, counted.responses),
        }
    }
}

/// What of an owner's past may go to make room, in the order in which it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forgettable {
    /// Earlier states of rows.
    History,
    /// Stored responses.
    Responses,
}

impl Forgettable {
    const IN_ORDER: [Self; 2] = [Self::History, Self::Responses];

    fn sum_of(self, sums: &mut PastBytes) -> &mut i64 {
        match self {
            Self::History => &mut sums.history,
            Self::Responses => &mut sums.responses,
        }
    }
}

/// Where an entry stands among those of its kind, the oldest first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PastMark {
    /// An earlier state: ordered by version, table and key.
    State {
        /// The version that made the state.
        version: Version,
        /// The engine's number of its table.
        table: i32,
        /// Its row.
        key: RowKey,
    },
    /// A stored response: ordered by time, version, device and key.
    Response {
        /// When it was sent.
        at: Timestamp,
        /// The owner's version at the response.
        version: Version,
        /// The device that it is stored for.
        device: DeviceId,
        /// The `Idempotency-Key` of its request.
        key: String,
    },
}

/// One owner's past, as an engine stores it.
pub trait Past {
    /// What it takes now.
    fn sums(&mut self) -> &mut PastBytes;

    /// The oldest entries of a kind in their order, and how many bytes each takes; at most `entries_max`.
    fn oldest(&mut self, kind: Forgettable, entries_max: usize) -> StorageResult<Vec<(PastMark, i64)>>;

    /// Forgets all entries of a kind up to this one, by one statement. The sums are the caller's.
    fn forget_up_to(&mut self, last: &PastMark) -> StorageResult<()>;
}

/// Entries that are read before they are forgotten.
const ENTRIES_AT_ONCE: usize = 1_000;

/// Forgets until `more` bytes fit below `max`: the oldest history first, then stored responses.
///
/// - Bounds: forgets at most `entries_max` entries; returns how many.
/// - Nothing is forgotten for an owner that is not counted yet, or with a `max` of 0.
pub fn make_room(past: &mut dyn Past, more: u64, max: u64, entries_max: usize) -> StorageResult<usize> {
    let mut gone = 0;
    for kind in Forgettable::IN_ORDER {
        loop {
            let excess = past.sums().excess(more, max);
            let entries = (entries_max - gone).min(ENTRIES_AT_ONCE);
            if excess == 0 || entries == 0 || broken::is("past_unbounded") {
                return Ok(gone);
            }
            let forgotten = forget(past, kind, excess, entries)?;
            gone += forgotten;
            if forgotten == 0 {
                break;
            }
        }
    }
    Ok(gone)
}

/// Makes room as [`make_room`] does; returns whether there is enough.
pub fn fits(past: &mut dyn Past, more: u64, max: u64, entries_max: usize) -> StorageResult<bool> {
    make_room(past, more, max, entries_max)?;
    Ok(past.sums().excess(more, max) == 0)
}

/// Forgets the oldest entries of a kind, at most `entries_max`, and no more than it takes to free `bytes`; returns how many
/// went.
fn forget(past: &mut dyn Past, kind: Forgettable, bytes: u64, entries_max: usize) -> StorageResult<usize> {
    let found = past.oldest(kind, entries_max)?;
    let (entries, freed) = enough(found.iter().map(|(_, size)| *size), bytes);
    let Some((last, _)) = entries.checked_sub(1).and_then(|last| found.get(last)) else { return Ok(0) };
    past.forget_up_to(last)?;
    *kind.sum_of(past.sums()) -= freed;
    Ok(entries)
}

/// How many entries of a list must go, the first of it first, to free `bytes`, and how many bytes those take.
fn enough(sizes: impl Iterator<Item = i64>, bytes: u64) -> (usize, i64) {
    let (mut entries, mut freed) = (0, 0_i64);
    for size in sizes {
        if freed.max(0).cast_unsigned() >= bytes {
            break;
        }
        (entries, freed) = (entries + 1, freed.saturating_add(size));
    }
    (entries, freed)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use uuid::Uuid;

    use super::*;

    /// A past whose entries are sizes, the oldest first.
    struct Held {
        sums: PastBytes,
        history: Vec<i64>,
        responses: Vec<i64>,
    }

    fn held(history: &[i64], responses: &[i64]) -> Held {
        let sums = PastBytes {
            history: history.iter().sum(),
            responses: responses.iter().sum(),
            ..PastBytes::NOTHING
        };
        Held { sums, history: history.to_vec(), responses: responses.to_vec() }
    }

    impl Held {
        fn sizes(&mut self, kind: Forgettable) -> &mut Vec<i64> {
            match kind {
                Forgettable::History => &mut self.history,
                Forgettable::Responses => &mut self.responses,
            }
        }
    }

    /// An entry's place is its version.
    impl Past for Held {
        fn sums(&mut self) -> &mut PastBytes {
            &mut self.sums
        }

        fn oldest(&mut self, kind: Forgettable, entries_max: usize) -> StorageResult<Vec<(PastMark, i64)>> {
            let mark = |n: usize| match kind {
                Forgettable::History => {
                    PastMark::State { version: Version(n as u64), table: 0, key: RowKey(Uuid::nil()) }
                }
                Forgettable::Responses => PastMark::Response {
                    at: Timestamp::from_ms(0),
                    version: Version(n as u64),
                    device: DeviceId(Uuid::nil()),
                    key: String::new(),
                },
            };
            let sizes = self.sizes(kind).iter().take(entries_max).enumerate();
            Ok(sizes.map(|(n, size)| (mark(n), *size)).collect())
        }

        fn forget_up_to(&mut self, last: &PastMark) -> StorageResult<()> {
            let (kind, last) = match last {
                PastMark::State { version, .. } => (Forgettable::History, version),
                PastMark::Response { version, .. } => (Forgettable::Responses, version),
            };
            self.sizes(kind).drain(..=last.0 as usize);
            Ok(())
        }
    }

    #[test]
    fn the_oldest_history_goes_first_and_then_answers() {
        let mut past = held(&[10, 20, 30], &[40, 50]);
        assert_eq!(make_room(&mut past, 0, 150, 9).unwrap(), 0, "it fits as it is");
        assert_eq!(make_room(&mut past, 15, 150, 9).unwrap(), 2);
        assert_eq!((&past.history[..], &past.responses[..]), (&[30][..], &[40, 50][..]));
        assert_eq!(make_room(&mut past, 0, 60, 9).unwrap(), 2);
        assert!(fits(&mut past, 10, 60, 9).unwrap() && !fits(&mut past, 61, 60, 0).unwrap());
        assert_eq!((&past.history[..], &past.responses[..]), (&[][..], &[50][..]));
    }

    #[test]
    fn what_goes_by_age_alone_stays() {
        let mut past = held(&[10], &[10]);
        past.sums.conflicts = 100;
        assert_eq!(make_room(&mut past, 0, 50, 9).unwrap(), 2);
        assert_eq!(past.sums.bytes(), Some(100));
        past.sums.tombstones = 2;
        assert_eq!(past.sums.lasting(), 100 + 2 * TOMBSTONE_BYTES);
    }

    #[test]
    fn no_more_entries_go_than_may() {
        let mut past = held(&[1; 3_000], &[]);
        assert_eq!(make_room(&mut past, 0, 1, 2_500).unwrap(), 2_500);
        assert_eq!(past.history.len(), 500);
    }

    #[test]
    fn an_owner_that_is_not_counted_loses_nothing() {
        let mut past = held(&[100], &[]);
        past.sums.is_counted = false;
        assert_eq!(make_room(&mut past, 9, 1, 9).unwrap(), 0);
        past.sums.is_counted = true;
        assert_eq!(make_room(&mut past, 9, 0, 9).unwrap(), 0, "0 is no bound");
        assert_eq!(make_room(&mut past, 9, 1, 9).unwrap(), 1);
    }

    #[test]
    fn what_was_written_beside_a_count_counts_too() {
        let sums = |history| PastBytes { history, ..PastBytes::default() };
        let counted = sums(-4).corrected(&sums(-10), &sums(500));
        assert_eq!(counted, PastBytes { is_counted: true, ..sums(506) });
    }
}

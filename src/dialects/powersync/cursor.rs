//! The ids and checksums of operations.
//!
//! An id is a version times 1,024, less what is still to come of that version. The checksum of an operation is the
//! difference of two numbers that follow from its id and from the id before it. So the sum that a client must have
//! follows from the last id alone: the server keeps nothing of a client, the client finds a lost or repeated operation,
//! and a download that broke off goes on where it was.

use crate::model::Version;

/// How many bits of an id tell the operations of one version apart. A version has 53 bits, an id 63.
const PLACE_BITS: u32 = 10;
const PLACE_MAX: u64 = (1 << PLACE_BITS) - 1;

/// The id of an operation: how far a client has come with it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct OpId(pub u64);

/// What a client has, by the id of its last operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Position {
    Nothing,
    /// Everything up to a version.
    Complete(Version),
    /// Everything up to the version before, and some operations of this one.
    Within(Version, u64),
}

impl OpId {
    /// The last operation of everything up to `version`.
    pub fn complete(version: Version) -> Self {
        Self(version.0 << PLACE_BITS)
    }

    /// The operation at a place from 1 among those of `version`. Those beyond 1,023 share the last id.
    pub fn within(version: Version, place: u64) -> Self {
        Self((version.0.saturating_sub(1) << PLACE_BITS) | place.min(PLACE_MAX))
    }

    /// What a client has whose last operation this is.
    pub fn position(self) -> Position {
        let version = self.0 >> PLACE_BITS;
        match (self.0, self.0 & PLACE_MAX) {
            (0, _) => Position::Nothing,
            (_, 0) => Position::Complete(Version(version)),
            (_, place) => Position::Within(Version(version + 1), place),
        }
    }

    /// The checksum of this operation after the one before.
    pub fn checksum_after(self, before: Self) -> u32 {
        self.sum().wrapping_sub(before.sum())
    }

    /// The sum of the checksums of all operations up to this one.
    pub fn sum(self) -> u32 {
        if self.0 == 0 { 0 } else { mixed(self.0) }
    }
}

/// Spreads a number over 32 bits, so that neighbours have nothing in common (the finish of SplitMix64).
fn mixed(number: u64) -> u32 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((number ^ (number >> 31)) >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_rise_with_the_feed_and_say_where_to_go_on() {
        let (five, six) = (Version(5), Version(6));
        let ids = [
            OpId(0),
            OpId::complete(five),
            OpId::within(six, 1),
            OpId::within(six, PLACE_MAX),
            OpId::complete(six),
            OpId::within(Version::first(3), 1),
            OpId::complete(Version((1 << 53) - 1)),
        ];
        assert!(ids.is_sorted_by(|one, next| one < next), "{ids:?}");
        assert_eq!(OpId::within(six, 5_000), OpId::within(six, PLACE_MAX), "many share the last id");
        assert!(i64::try_from(ids[6].0).is_ok(), "SQLite holds it");
        let positions = ids[..5].iter().map(|id| id.position());
        assert!(positions.eq([
            Position::Nothing,
            Position::Complete(five),
            Position::Within(six, 1),
            Position::Within(six, PLACE_MAX),
            Position::Complete(six),
        ]));
    }

    /// Goal: whatever way a client came to an id, its sum is the same; one lost or doubled operation changes it.
    #[test]
    fn the_sum_follows_from_the_last_id() {
        let path = [OpId::within(Version(2), 1), OpId::within(Version(9), 1), OpId::within(Version(9), 2)];
        let end = OpId::complete(Version(9));
        let mut last = OpId(0);
        let mut sums = Vec::new();
        for id in path.into_iter().chain([end]) {
            sums.push(id.checksum_after(last));
            last = id;
        }
        let sum = |sums: &[u32]| sums.iter().fold(0_u32, |sum, one| sum.wrapping_add(*one));
        assert_eq!(sum(&sums), end.sum());
        assert_eq!(end.checksum_after(OpId(0)), end.sum(), "at once");
        for lost in 0..sums.len() {
            let mut some = sums.clone();
            let one = some.remove(lost);
            assert_ne!(sum(&some), end.sum(), "lost {lost}");
            assert_ne!(sum(&sums).wrapping_add(one), end.sum(), "doubled {lost}");
        }
    }
}

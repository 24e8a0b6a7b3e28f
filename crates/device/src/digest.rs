//! Proof that both sides are equal: a count and a sum for each table.

use std::collections::BTreeMap;

use sha2::{Digest as _, Sha256};

use super::responses::Digest;
use super::store::{Store, StoreResult};
use rollcall_core::model::{RowKey, Timestamp};

/// The owner's secret for digests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seed([u8; 16]);

impl Seed {
    /// Parses 32 hex digits.
    pub fn parse(text: &str) -> Option<Self> {
        if text.len() != 32 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        u128::from_str_radix(text, 16).ok().map(|number| Self(number.to_be_bytes()))
    }

    /// The digest of one row: the first 8 bytes of SHA-256 of seed, key and `last_update` in ms.
    pub fn row(&self, key: RowKey, last_update: Timestamp) -> u64 {
        let mut hash = Sha256::new();
        hash.update(self.0);
        hash.update(key.0.as_bytes());
        hash.update(last_update.ms().to_be_bytes());
        let bytes = hash.finalize();
        bytes.iter().take(8).fold(0, |sum, byte| (sum << 8) | u64::from(*byte))
    }

    /// The digest of a table: the number of rows, and the sum of their digests modulo 2^64.
    pub fn table(&self, rows: impl Iterator<Item = (RowKey, Timestamp)>) -> Digest {
        let (mut count, mut sum) = (0, 0_u64);
        for (key, last_update) in rows {
            count += 1;
            sum = sum.wrapping_add(self.row(key, last_update));
        }
        Digest { count, root: format!("{sum:016x}") }
    }
}

impl Store {
    /// The server's digests, if the device's knowledge of the server is right. A waiting edit counts as the
    /// state that the server holds of the row.
    pub fn digests(&self, seed: &Seed) -> StoreResult<BTreeMap<String, Digest>> {
        let mut digests = BTreeMap::new();
        for table in self.schema().tables() {
            let locals = self.locals(table)?;
            let held = locals.iter().filter_map(|(key, local)| Some((*key, local.last_update?)));
            digests.insert(table.name.clone(), seed.table(held));
        }
        Ok(digests)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// The vector was computed by another program, Python's hashlib.
    #[test]
    fn a_digest_is_what_any_sha256_says() {
        let seed = Seed::parse("000102030405060708090a0b0c0d0e0f").unwrap();
        let key = RowKey::parse("f426f326-1cfe-4669-9e74-3c063fba542a").unwrap();
        let at = Timestamp::from_ms(1_367_422_970_000);
        assert_eq!(format!("{:016x}", seed.row(key, at)), VECTOR);
        assert_eq!(seed.table([(key, at)].into_iter()), Digest { count: 1, root: VECTOR.into() });
        assert_eq!(seed.table([].into_iter()).root, "0000000000000000");
        assert_eq!(Seed::parse("0001"), None);
    }

    const VECTOR: &str = "2af359017aea76d1";
}

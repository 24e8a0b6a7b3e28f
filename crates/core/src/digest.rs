//! Proof that both sides hold the same rows: a count and a sum of hashes for each table.
//!
//! The sum is updated row by row, in any order. Only the owner's devices know the seed, so nobody else can
//! construct a collision. `fixtures/digests` has vectors for client authors.

use std::fmt;

use sha2::{Digest as _, Sha256};

use crate::model::{RowKey, Timestamp};

/// An owner's secret: 16 random bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Seed(pub [u8; 16]);

/// A summary of a table in 16 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Digest {
    /// Live rows.
    pub count: u64,
    /// The sum of their hashes, modulo 2^64.
    pub root: u64,
}

impl Seed {
    /// The hash of one state of one row: the first 8 bytes, big-endian, of
    /// SHA-256(seed ‖ key ‖ `last_update` in ms as 64 bits, big-endian).
    pub fn row(&self, key: RowKey, last_update: Timestamp) -> u64 {
        let mut hash = Sha256::new();
        hash.update(self.0);
        hash.update(key.0.as_bytes());
        hash.update(last_update.ms().to_be_bytes());
        let mut first = [0; 8];
        first.copy_from_slice(&hash.finalize()[..8]);
        u64::from_be_bytes(first)
    }
}

impl fmt::Display for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Seed(…)")
    }
}

impl Digest {
    /// Adds a row.
    pub fn add(&mut self, hash: u64) {
        self.count = self.count.wrapping_add(1);
        self.root = self.root.wrapping_add(hash);
    }

    /// Removes a row that was added before.
    pub fn remove(&mut self, hash: u64) {
        self.count = self.count.wrapping_sub(1);
        self.root = self.root.wrapping_sub(hash);
    }
}

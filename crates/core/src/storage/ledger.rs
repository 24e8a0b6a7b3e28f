//! The parts of a ledger entry that engines keep as bytes, and the days that date versions.

use uuid::Uuid;

use crate::model::{DeviceId, Life, Timestamp, Version};

/// The day that a moment falls on, counted from 1970.
pub fn day(at: Timestamp) -> i64 {
    at.days_since(Timestamp::from_ms(0))
}

/// Earlier lives of a row, from how an entry of the ledger keeps them.
pub fn lives(bytes: &[u8]) -> Vec<Life> {
    let version = |bytes: &[u8]| Version(bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)));
    bytes
        .chunks_exact(16)
        .map(|life| Life { made: version(&life[..8]), deleted: version(&life[8..]) })
        .collect()
}

/// How an entry of the ledger keeps earlier lives: made and deleted, 8 bytes each, big-endian.
pub fn lives_bytes(lives: &[Life]) -> Option<Vec<u8>> {
    let bytes = lives.iter().flat_map(|life| [life.made.0.to_be_bytes(), life.deleted.0.to_be_bytes()]);
    (!lives.is_empty()).then(|| bytes.flatten().collect())
}

/// Other devices that know a row, from how an entry of the ledger keeps them.
pub fn writers(bytes: &[u8]) -> Vec<DeviceId> {
    bytes.chunks_exact(16).filter_map(|id| Uuid::from_slice(id).ok()).map(DeviceId).collect()
}

/// How an entry of the ledger keeps other devices: 16 bytes each.
pub fn writers_bytes(writers: &[DeviceId]) -> Option<Vec<u8>> {
    (!writers.is_empty()).then(|| writers.iter().flat_map(|writer| *writer.0.as_bytes()).collect())
}

//! The parts of a ledger entry that engines store as bytes, and the days that date versions.

use uuid::Uuid;

use crate::model::{DeviceId, Lifetime, Timestamp, Version};

/// The day of a time, counted from 1970.
pub fn day(at: Timestamp) -> i64 {
    at.days_since(Timestamp::from_ms(0))
}

/// Decodes a row's earlier lifetimes.
pub fn lifetimes(bytes: &[u8]) -> Vec<Lifetime> {
    let version = |bytes: &[u8]| Version(bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)));
    bytes
        .chunks_exact(16)
        .map(|life| Lifetime { made: version(&life[..8]), deleted: version(&life[8..]) })
        .collect()
}

/// Encodes a row's earlier lifetimes: created and deleted, 8 bytes each, big-endian.
pub fn lifetimes_bytes(lifetimes: &[Lifetime]) -> Option<Vec<u8>> {
    let bytes = lifetimes.iter().flat_map(|life| [life.made.0.to_be_bytes(), life.deleted.0.to_be_bytes()]);
    (!lifetimes.is_empty()).then(|| bytes.flatten().collect())
}

/// Decodes the other devices that know a row.
pub fn aware_devices(bytes: &[u8]) -> Vec<DeviceId> {
    bytes.chunks_exact(16).filter_map(|id| Uuid::from_slice(id).ok()).map(DeviceId).collect()
}

/// Encodes the other devices that know a row: 16 bytes each.
pub fn aware_devices_bytes(aware_devices: &[DeviceId]) -> Option<Vec<u8>> {
    (!aware_devices.is_empty())
        .then(|| aware_devices.iter().flat_map(|device| *device.0.as_bytes()).collect())
}

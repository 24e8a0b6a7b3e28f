//! When and from where devices were last seen, so that a user can recognise a foreign device.
//!
//! It is coarse: the time to the minute, and the last address. A request only stores it in memory. The server
//! writes changes from time to time, each device at most once an hour unless its address has changed. A crash
//! loses what was not written.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use uuid::Uuid;

use crate::model::{DeviceId, Timestamp};
use crate::storage::accounts::Seen;
use crate::storage::{AccountStore, Sighting, StorageResult};

/// Devices in memory, some 100 bytes each. Further ones are not stored until the next write.
const DEVICES_MAX: usize = 65_536;

/// The precision of the time.
const MINUTE_MS: i64 = 60_000;

/// Written again after this time, even if the address is the same.
const WRITTEN_MS: i64 = 3_600_000;

/// Devices that one transaction writes.
const WRITTEN_AT_ONCE: usize = 500;

/// When and from where devices were last seen.
pub struct Sightings {
    store: Arc<dyn AccountStore>,
    devices: Mutex<HashMap<DeviceId, DeviceSighting>>,
}

/// The sighting of one device.
#[derive(Clone, Copy)]
struct DeviceSighting {
    user: Uuid,
    seen: Sighting,
    /// What this server last wrote about it.
    written: Option<Sighting>,
}

impl DeviceSighting {
    fn is_due(&self) -> bool {
        self.written.is_none_or(|written| {
            let is_old = self.seen.at.ms() - written.at.ms() >= WRITTEN_MS;
            is_old || written.from != self.seen.from
        })
    }
}

impl Sightings {
    pub(super) fn new(store: Arc<dyn AccountStore>) -> Self {
        Self { store, devices: Mutex::default() }
    }

    /// Records a request of a device, in memory only.
    pub fn note(&self, user: Uuid, device: DeviceId, from: IpAddr, now: Timestamp) {
        let seen = Sighting { at: Timestamp::from_ms(now.ms() - now.ms().rem_euclid(MINUTE_MS)), from };
        let mut devices = self.devices.lock();
        if let Some(noted) = devices.get_mut(&device) {
            noted.seen = seen;
        } else if devices.len() < DEVICES_MAX {
            devices.insert(device, DeviceSighting { user, seen, written: None });
        }
    }

    /// Removes a device whose token has ended.
    pub(super) fn forget(&self, device: DeviceId) {
        self.devices.lock().remove(&device);
    }

    /// When and from where each of a user's devices was last seen, as far as this server knows. Sightings of
    /// another server are known once that has written them.
    pub fn of_user(&self, user: Uuid) -> StorageResult<HashMap<DeviceId, Sighting>> {
        let mut found: HashMap<_, _> = self.store.sightings(user)?.into_iter().collect();
        let own = self.store.devices(user)?;
        let devices = self.devices.lock();
        for device in own {
            if let Some(noted) = devices.get(&device.id) {
                let seen = found.entry(device.id).or_insert(noted.seen);
                if noted.seen.at >= seen.at {
                    *seen = noted.seen;
                }
            }
        }
        Ok(found)
    }

    /// Writes what is due, until `go_on` returns false.
    ///
    /// Errors: what could not be written is due again the next time.
    pub fn flush(&self, go_on: &mut dyn FnMut() -> bool) -> StorageResult<()> {
        let due = |(device, noted): (&DeviceId, &DeviceSighting)| {
            noted.is_due().then_some((noted.user, *device, noted.seen))
        };
        let due: Vec<Seen> = self.devices.lock().iter().filter_map(due).collect();
        for lot in due.chunks(WRITTEN_AT_ONCE) {
            if !go_on() {
                return Ok(());
            }
            self.store.note_sightings(lot)?;
            let mut devices = self.devices.lock();
            for (_, device, seen) in lot {
                devices.entry(*device).and_modify(|noted| noted.written = Some(*seen));
            }
            if devices.len() >= DEVICES_MAX {
                devices.retain(|_, noted| noted.is_due()); // makes room for others
            }
        }
        Ok(())
    }
}

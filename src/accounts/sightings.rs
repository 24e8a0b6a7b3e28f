//! When and where devices were seen last, so that a user can tell a device that is not their own.
//!
//! It is coarse: the time to the minute, the address as it was last. A request only notes it in memory; the server
//! writes down now and then what has changed, each device at most once in an hour unless its address is another. A crash
//! loses what was not written.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use uuid::Uuid;

use crate::model::{DeviceId, Timestamp};
use crate::storage::{AccountStore, Sighting, StorageResult};

/// Devices that are kept in memory, some 100 bytes each. Of more nothing is noted until the next writing.
const DEVICES_MAX: usize = 65_536;

/// How exact the time is.
const MINUTE_MS: i64 = 60_000;

/// What is written anew though the address is the same: what is older.
const WRITTEN_MS: i64 = 3_600_000;

/// Devices whose sightings one transaction writes.
const WRITTEN_AT_ONCE: usize = 500;

/// What is known of the devices' whereabouts.
pub struct Sightings {
    store: Arc<dyn AccountStore>,
    devices: Mutex<HashMap<DeviceId, DeviceSighting>>,
}

/// What is noted of one device.
#[derive(Clone, Copy)]
struct DeviceSighting {
    seen: Sighting,
    /// What was written of it last, by this server.
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

    /// Notes that a device has made a request. It is in memory alone, and quick.
    pub fn note(&self, device: DeviceId, from: IpAddr, now: Timestamp) {
        let seen = Sighting { at: Timestamp::from_ms(now.ms() - now.ms().rem_euclid(MINUTE_MS)), from };
        let mut devices = self.devices.lock();
        if let Some(noted) = devices.get_mut(&device) {
            noted.seen = seen;
        } else if devices.len() < DEVICES_MAX {
            devices.insert(device, DeviceSighting { seen, written: None });
        }
    }

    /// Forgets a device whose token has ended.
    pub(super) fn forget(&self, device: DeviceId) {
        self.devices.lock().remove(&device);
    }

    /// When and where each of a user's devices was seen last, as far as this server knows. What another server saw it
    /// knows once that has written it down.
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

    /// Writes down what is due, until `go_on` says no.
    ///
    /// Errors: what could not be written is due the next time.
    pub fn flush(&self, go_on: &mut dyn FnMut() -> bool) -> StorageResult<()> {
        let due =
            |(device, noted): (&DeviceId, &DeviceSighting)| noted.is_due().then_some((*device, noted.seen));
        let due: Vec<(DeviceId, Sighting)> = self.devices.lock().iter().filter_map(due).collect();
        for lot in due.chunks(WRITTEN_AT_ONCE) {
            if !go_on() {
                return Ok(());
            }
            self.store.note_sightings(lot)?;
            let mut devices = self.devices.lock();
            for (device, seen) in lot {
                devices.entry(*device).and_modify(|noted| noted.written = Some(*seen));
            }
            if devices.len() >= DEVICES_MAX {
                devices.retain(|_, noted| noted.is_due()); // room for others
            }
        }
        Ok(())
    }
}

//! Releases what devices hold at the owners of their user, once they are signed out.

use super::App;
use crate::accounts::Caller;
use crate::broken;
use crate::locks::LockResult;
use crate::model::{DeviceId, Owner};
use crate::storage::StorageResult;

impl App {
    /// Ends the streams of devices of the caller's user that were signed out. At every owner of the user it releases the
    /// lock that such a device holds, and forgets its cursor, which would keep tombstones. The installations of the
    /// devices' tokens are released with them.
    ///
    /// It does not fail, since the devices are signed out already: what it cannot release is logged, and ends later by
    /// itself. A lock ends with its lease, and a cursor after `device_days`.
    pub fn release(&self, caller: &Caller, devices: &[DeviceId]) {
        let listed = self.storage.accounts().owners_of(caller.user).unwrap_or_else(|error| {
            tracing::warn!(%error, "could not read the owners of a user whose devices were signed out");
            Vec::new()
        });
        let mut owners: Vec<_> = listed.iter().map(|one| one.owner).collect();
        if broken::is("released_at_home_alone") {
            owners.clear();
        }
        if !owners.contains(&caller.default_owner) {
            owners.push(caller.default_owner);
        }
        self.release_at(caller, owners, devices);
    }

    /// The same at these owners.
    pub fn release_at(&self, caller: &Caller, owners: impl IntoIterator<Item = Owner>, devices: &[DeviceId]) {
        devices.iter().for_each(|device| self.events.signed_out(caller.user, *device));
        for owner in owners {
            let with_installations = self.forget_devices(owner, devices).unwrap_or_else(|error| {
                tracing::warn!(%error, %owner, "could not forget the cursors of signed-out devices");
                devices.to_vec()
            });
            if let Err(error) = self.release_lock(caller, owner, &with_installations) {
                tracing::warn!(%error, %owner, "could not release the lock of a signed-out device");
            }
        }
    }

    /// Forgets the cursors of devices, and of the installations of their tokens. Returns all of them.
    ///
    /// An owner at which none of them has a cursor is only read: a user may have thousands of owners.
    fn forget_devices(&self, owner: Owner, signed_out: &[DeviceId]) -> StorageResult<Vec<DeviceId>> {
        let installations = self.storage.read(owner, |txn| txn.installations())?;
        let of_tokens = installations.into_iter().filter(|one| signed_out.contains(&one.token_device));
        let devices: Vec<_> = of_tokens.map(|one| one.device).chain(signed_out.iter().copied()).collect();
        devices.iter().for_each(|device| self.acks.forget(owner, *device));
        let stored = self.storage.census().acknowledged(owner)?;
        if stored.iter().any(|(device, ..)| devices.contains(device)) {
            self.storage
                .write(owner, |txn| devices.iter().try_for_each(|device| txn.forget_device(*device)))?;
        }
        Ok(devices)
    }

    fn release_lock(&self, caller: &Caller, owner: Owner, devices: &[DeviceId]) -> LockResult<()> {
        match self.locks.holder(owner)? {
            Some(lease) if devices.contains(&lease.device) => {
                self.locks.give_back(&Caller { owner, device: lease.device, ..caller.clone() })
            }
            _ => Ok(()),
        }
    }
}

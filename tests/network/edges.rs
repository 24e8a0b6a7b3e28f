//! What must not be lost where the server's past, or a phone, is not the one that it was.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use rollcall::device::{Request, Store};
use rollcall::model::Owner;
use rollcall::reconcile::Operation;
use serde_json::Value as Json;

use crate::truth::{Check, Id, must};
use crate::world::{DEVICES, Device, SLOTS, TABLES, World, slot_key, store};

impl World {
    /// Records what devices hold clean and the server has, before the server loses it: it must not be lost.
    pub fn owe(&self) {
        let files: Vec<(Owner, Store)> =
            self.devices.iter().map(|device| (device.owner, store(device))).collect();
        let late = self.late.lock();
        let is_being_deleted = |owner: Owner, name: &str, id: Id| {
            let comes_late = late.get(&(owner, id)).is_some_and(|until| *until > self.now());
            comes_late || files.iter().any(|(of, file)| *of == owner && deletes(file, name, id))
        };
        let mut truth = self.database.truth.lock();
        // A copy of a guest counts for nothing: its user may be no member when the row is missed.
        for (owner, file) in &files[..DEVICES] {
            let Some(data) = truth.owners.get(owner) else { continue };
            let mut owed = Vec::new();
            for (name, id) in self.slots() {
                let held = file.get(name, id.1).unwrap().filter(|row| !row.local.is_dirty());
                let there = data.rows.get(&id).filter(|row| !row.is_tombstone());
                let (Some(held), Some(there)) = (held, there) else { continue };
                if held.local.last_update == Some(there.last_update) && !is_being_deleted(*owner, name, id) {
                    owed.push((*owner, id));
                }
            }
            truth.owed.extend(owed);
        }
    }

    /// What was recorded is on the server, or waits on a device with a reason.
    pub fn check_owed(&self) -> Check {
        let truth = self.database.truth.lock();
        truth.owed.iter().try_for_each(|(owner, id)| {
            let row = truth.owners.get(owner).and_then(|data| data.rows.get(id));
            let name = &self.schema.at(id.0).name;
            let waits = self.devices.iter().filter(|device| device.owner == *owner).any(|device| {
                let held = store(device).get(name, id.1).unwrap();
                held.is_some_and(|row| row.local.is_dirty() && row.error.is_some())
            });
            must(waits || row.is_some_and(|row| !row.is_tombstone()), || {
                format!("no row is lost that nobody deleted: {name} {} of {owner:?}, now {row:?}", id.1)
            })
        })
    }

    /// A device gets the file and the token of another, with all that waits in it, and loses its own.
    pub fn copy_phone(&self, from: usize, to: usize) {
        let (from, to) = (&self.devices[from], &self.devices[to]);
        let number = self.copies.fetch_add(1, Ordering::SeqCst);
        let path = self.dir.path().join(format!("device-{}-{number}", to.number));
        let file = rusqlite::Connection::open(from.path()).unwrap();
        file.execute("VACUUM INTO ?1", [path.to_str().unwrap()]).unwrap();
        to.become_copy(from, path);
        // What a sync of the other has settled before its end is judged there, when it ends.
        let copy = store(to);
        to.tokens.lock().retain(|(table, slot), _| {
            let row = copy.get(TABLES[*table], slot_key(*table, *slot)).unwrap();
            row.is_some_and(|row| row.local.is_dirty())
        });
        self.forgive(to.owner);
    }

    /// Rows that only a dead phone had are lost with it.
    fn forgive(&self, owner: Owner) {
        let ours = self.devices[..DEVICES].iter().filter(|device| device.owner == owner);
        let files: Vec<Store> = ours.map(|device| store(device)).collect();
        let mut truth = self.database.truth.lock();
        let owed = std::mem::take(&mut truth.owed);
        let is_there = |id: &Id| {
            let name = &self.schema.at(id.0).name;
            let row = truth.owners.get(&owner).and_then(|data| data.rows.get(id));
            row.is_some_and(|row| !row.is_tombstone())
                || files.iter().any(|file| file.get(name, id.1).unwrap().is_some())
        };
        let owed = owed.into_iter().filter(|(of, id)| *of != owner || is_there(id)).collect();
        truth.owed = owed;
    }

    /// Records the deletions in a request whose copy arrives later, by `until` at the latest. If the server
    /// has lost by then that it handled the request, they count again.
    pub fn note_late_deletions(&self, device: &Arc<Device>, request: &Request, until: i64) {
        let body: Json =
            serde_json::from_slice(request.body.as_deref().unwrap_or_default()).unwrap_or_default();
        for (name, items) in body["delete"].as_object().into_iter().flatten() {
            let table = self.schema.table(name).unwrap();
            for item in items.as_array().into_iter().flatten() {
                let key = rollcall::device::responses::key(&item[&table.key]).unwrap();
                let mut late = self.late.lock();
                let known = late.entry((device.owner, (table.id, key))).or_default();
                *known = until.max(*known);
            }
        }
    }

    /// Every row that there may be.
    fn slots(&self) -> impl Iterator<Item = (&'static str, Id)> {
        TABLES.iter().enumerate().flat_map(|(place, name)| {
            let id = self.schema.table(name).unwrap().id;
            (0..SLOTS).map(move |slot| (*name, (id, slot_key(place, slot))))
        })
    }
}

/// Whether a user deleted the row, and the device has still to send that, or has sent it and not settled.
fn deletes(file: &Store, name: &str, id: Id) -> bool {
    let outstanding = file.outstanding().unwrap();
    let sent = outstanding.iter().flat_map(|sending| &sending.sent);
    let mut sent = sent.filter(|sent| sent.table == name && sent.key == id.1);
    sent.any(|sent| sent.operation == Operation::Delete)
        || file.deleted(name).unwrap().iter().any(|row| row.key == id.1)
}

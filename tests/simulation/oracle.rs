//! What must hold of one owner's data on the server, whatever happened: read through the storage contract,
//! held against what it was before.

use std::collections::{BTreeMap, BTreeSet};

use rollcall::model::{DeviceId, Owner, RowKey, Stored, Timestamp, Value, Version};
use rollcall::reconcile::Operation;
use rollcall::schema::{Policy, Schema, TableId};
use rollcall::storage::{FeedPosition, OwnerState, Storage, StorageError};
use serde_json::Value as Json;
use uuid::Uuid;

use crate::ops::SLOTS;

pub type Check<T = ()> = Result<T, String>;
pub type Id = (TableId, RowKey);
type Rows = BTreeMap<Id, Stored>;
/// Of each table: how many rows, and the sum of their digests.
type Digests = Vec<(u64, u64)>;

pub fn must(holds: bool, what: impl FnOnce() -> String) -> Check {
    if holds { Ok(()) } else { Err(what()) }
}

/// The same keys for every owner: whose row is meant must come from the token alone.
pub fn slot_key(table: usize, slot: usize) -> RowKey {
    RowKey(Uuid::from_u128(0x0190_0000_0000_7000_8000_0000_0000_0000 + (table * 256 + slot) as u128))
}

/// One row as a request names it.
pub struct Named {
    pub id: Id,
    pub operation: Operation,
    pub last_update: Option<Timestamp>,
    pub base: Option<Timestamp>,
    /// Column by column, as sent.
    pub columns: serde_json::Map<String, Json>,
}

/// What an owner's data was when it was last looked at.
#[derive(Clone)]
pub struct Shadow {
    pub owner: Owner,
    pub rows: Rows,
    pub version: Version,
    /// Every token that was ever in a row.
    pub seen: BTreeSet<String>,
    /// The last hold of the lock that was given out.
    pub fence: u64,
}

impl Shadow {
    pub fn new(owner: Owner) -> Self {
        Self { owner, rows: Rows::new(), version: Version(0), seen: BTreeSet::new(), fence: 0 }
    }

    /// What is on the server under these keys.
    fn load(&self, storage: &dyn Storage, ids: &BTreeSet<Id>) -> Check<(OwnerState, Rows, Digests)> {
        let mut by_table: BTreeMap<TableId, Vec<RowKey>> = BTreeMap::new();
        ids.iter().for_each(|(table, key)| by_table.entry(*table).or_default().push(*key));
        let looked = storage.read(self.owner, |txn| {
            let mut rows = Rows::new();
            for (table, keys) in &by_table {
                for (key, row) in keys.iter().zip(txn.load(*table, keys)?) {
                    rows.extend(row.map(|row| ((*table, *key), row)));
                }
            }
            let digests = txn.digests()?.iter().map(|digest| (digest.count, digest.root)).collect();
            Ok::<_, StorageError>((txn.state(), rows, digests))
        });
        looked.map_err(|error| format!("the server's data can be read: {error}"))
    }

    /// Every row of the owner, by the other way that the engine has.
    fn all(&self, storage: &dyn Storage) -> Check<Rows> {
        let mut rows = Rows::new();
        let from = FeedPosition { version: Version(0), within: None };
        let read = storage.read(self.owner, |txn| {
            txn.changes(from, Version(1 << 53), &mut |table, key, row| {
                rows.insert((table, key), row.clone());
                true
            })
        });
        read.map_err(|error: StorageError| format!("the server's data can be read: {error}"))?;
        Ok(rows)
    }

    /// Looks after a request of `device` that may have written the rows that it names, and nothing else.
    /// Gives the rows as they were that changed.
    pub fn after_request(
        &mut self,
        storage: &dyn Storage,
        schema: &Schema,
        device: DeviceId,
        named: &[Named],
    ) -> Check<BTreeMap<Id, Option<Stored>>> {
        let ids: BTreeSet<Id> = named.iter().map(|named| named.id).collect();
        let (state, rows, digests) = self.load(storage, &ids)?;
        let mut changed = BTreeMap::new();
        for id in &ids {
            let (before, after) = (self.rows.get(id), rows.get(id));
            if before.map(plain) == after.map(plain) {
                continue;
            }
            let after = after.ok_or_else(|| format!("no request makes the server forget a row: {id:?}"))?;
            self.check_change(schema, device, before, after, state, named, *id)?;
            changed.insert(*id, before.cloned());
        }
        let rises = state.version.0 == self.version.0 + u64::from(!changed.is_empty());
        must(self.version.0 == 0 || rises, || {
            format!(
                "a request raises the version by one if it changes rows, here {}: {} to {}",
                changed.len(),
                self.version,
                state.version
            )
        })?;
        for id in changed.keys() {
            let row = &rows[id];
            self.note_tokens(row);
            self.rows.insert(*id, row.clone());
        }
        self.version = state.version;
        self.check_whole(storage, state, &digests)?;
        Ok(changed)
    }

    #[allow(clippy::too_many_arguments)]
    fn check_change(
        &self,
        schema: &Schema,
        device: DeviceId,
        before: Option<&Stored>,
        after: &Stored,
        state: OwnerState,
        named: &[Named],
        id: Id,
    ) -> Check {
        let result = || format!("{id:?} was {before:?}, is {after:?}");
        must(after.version == state.version && state.version > self.version, || {
            format!("what is written has the owner's new version {}: {}", state.version, result())
        })?;
        must(after.changed_by == device, || format!("the sender is who changed it: {}", result()))?;
        let Some(before) = before else { return Ok(()) };
        must(after.last_update > before.last_update, || format!("last_update rises: {}", result()))?;
        if before.is_tombstone() && !after.is_tombstone() {
            let by = |named: &&Named| named.id == id && named.operation != Operation::Delete;
            let meant = named.iter().filter(by).any(|named| {
                named.last_update.is_some() || named.base.is_some_and(|base| base == before.last_update)
            });
            let client = schema.at(id.0).policy == Policy::Client;
            must(meant || client, || format!("a deleted row returns only if it is meant to: {}", result()))?;
        }
        Ok(())
    }

    /// What holds at any time: counts, digests, versions.
    fn check_whole(&self, storage: &dyn Storage, state: OwnerState, digests: &[(u64, u64)]) -> Check {
        if let Some(known) = storage.known_state(self.owner) {
            must(known == state, || format!("what the engine knows is true: {known:?}, is {state:?}"))?;
        }
        let live = self.rows.values().filter(|row| !row.is_tombstone()).count() as u64;
        must(state.rows == live, || format!("live rows are counted: {live}, not {}", state.rows))?;
        let Some(seed) = state.seed else { return Ok(()) };
        let mut wanted = vec![(0_u64, 0_u64); digests.len()];
        for ((table, key), row) in self.rows.iter().filter(|(_, row)| !row.is_tombstone()) {
            let (count, root) = &mut wanted[table.index()];
            *count += 1;
            *root = root.wrapping_add(seed.row(*key, row.last_update));
        }
        must(wanted == digests, || format!("digests are the sum of the rows: {wanted:?}, not {digests:?}"))
    }

    /// Looks at everything, after something that must not have changed any row.
    pub fn nothing_changed(&mut self, storage: &dyn Storage, schema: &Schema) -> Check {
        let (state, rows) = self.compared(storage, schema)?;
        must(self.version.0 == 0 || state.version == self.version, || {
            format!("no version moves by itself: {} to {}", self.version, state.version)
        })?;
        for (id, before) in &self.rows {
            let after = rows.get(id);
            must(after.map(plain) == Some(plain(before)), || {
                format!("no row changes by itself: {id:?} was {before:?}, is {after:?}")
            })?;
        }
        must(rows.len() == self.rows.len(), || {
            let new: Vec<_> = rows.keys().filter(|id| !self.rows.contains_key(id)).collect();
            format!("no row appears by itself: {new:?}")
        })?;
        self.version = state.version;
        Ok(())
    }

    /// Looks at everything after a change of members: it moves the version, and no row.
    pub fn after_members(&mut self, storage: &dyn Storage, schema: &Schema) -> Check {
        let (state, ..) = self.load(storage, &BTreeSet::new())?;
        must(state.version >= self.version, || {
            format!("versions rise: {} to {}", self.version, state.version)
        })?;
        self.version = state.version;
        self.nothing_changed(storage, schema)
    }

    /// Looks at everything after a purge: tombstones may be gone, below the horizon.
    pub fn after_purge(&mut self, storage: &dyn Storage, schema: &Schema) -> Check {
        let (state, rows) = self.compared(storage, schema)?;
        let gone: Vec<(Id, Stored)> = self
            .rows
            .iter()
            .filter(|(id, _)| !rows.contains_key(id))
            .map(|(id, row)| (*id, row.clone()))
            .collect();
        for (id, row) in gone {
            must(row.is_tombstone(), || format!("a purge forgets no live row: {id:?} {row:?}"))?;
            must(row.version <= state.horizon, || {
                format!("the horizon {} is above what was forgotten: {id:?} {row:?}", state.horizon)
            })?;
            self.rows.remove(&id);
        }
        self.nothing_changed(storage, schema)
    }

    /// Takes what is there for what should be there: after a restore, or another schema.
    pub fn reload(&mut self, storage: &dyn Storage, schema: &Schema) -> Check<Version> {
        let (state, rows) = self.compared(storage, schema)?;
        let before = std::mem::replace(&mut self.version, state.version);
        rows.values().for_each(|row| self.note_tokens(row));
        self.rows = rows;
        Ok(before)
    }

    /// Everything of the owner, which both ways of reading show alike.
    fn compared(&self, storage: &dyn Storage, schema: &Schema) -> Check<(OwnerState, Rows)> {
        let slots = |table: &rollcall::schema::Table| {
            let id = table.id;
            (0..SLOTS).map(move |slot| (id, slot_key(id.index(), slot)))
        };
        let ids: BTreeSet<Id> = schema.tables().iter().flat_map(slots).collect();
        let (state, rows, _) = self.load(storage, &ids)?;
        let all = self.all(storage)?;
        must(rows == all, || format!("both ways of reading show the same: {rows:?}\n{all:?}"))?;
        for (id, row) in &rows {
            must(row.version <= state.version && row.created <= row.version, || {
                format!("no row is newer than its owner: {id:?} {row:?}, {}", state.version)
            })?;
        }
        Ok((state, rows))
    }

    /// The rows as they are to everybody.
    pub fn plain_rows(&self) -> Rows {
        self.rows.iter().map(|(id, row)| (*id, plain(row))).collect()
    }

    fn note_tokens(&mut self, row: &Stored) {
        if let Some(Value::Text(title)) = row.values.as_ref().and_then(|values| values.first()) {
            self.seen.insert(title.clone());
        }
    }
}

/// A row but for who else knows it: that is no state of it.
fn plain(row: &Stored) -> Stored {
    Stored { aware_devices: Vec::new(), ..row.clone() }
}

//! Several databases as one, with an owner's rows in one of them by the hash of its id: a transaction over
//! two owners, or a lookup of an owner in another database, finds nothing. Tables without an owner are small,
//! and stored in the first database; Citus has a copy of them on every node.

use std::sync::Arc;

use rollcall::model::{DeviceId, Fence, Owner, Timestamp};
use rollcall::storage::{
    AccountStore, Census, DueOwner, LeaseListener, LeaseState, LeaseStore, LeaseTerms, Leases, OwnerState,
    Owners, ReadWork, Storage, StorageResult, VersionListener, WriteWork,
};

pub struct Shards(pub Vec<Arc<dyn Storage>>);

/// The first `most` of what all shards return.
fn first_of<T: Ord>(
    lists: impl Iterator<Item = StorageResult<Vec<T>>>,
    most: usize,
) -> StorageResult<Vec<T>> {
    let mut all = lists.collect::<StorageResult<Vec<_>>>()?.into_iter().flatten().collect::<Vec<T>>();
    all.sort();
    all.truncate(most);
    Ok(all)
}

impl Owners for Shards {
    fn page(&self, after: Option<Owner>, owners_max: usize) -> StorageResult<Vec<Owner>> {
        first_of(self.0.iter().map(|shard| shard.owners().page(after, owners_max)), owners_max)
    }

    fn due(
        &self,
        now: Timestamp,
        after: Option<DueOwner>,
        owners_max: usize,
    ) -> StorageResult<Vec<DueOwner>> {
        first_of(self.0.iter().map(|shard| shard.owners().due(now, after, owners_max)), owners_max)
    }

    fn due_by(&self) -> StorageResult<Option<i64>> {
        self.0[0].owners().due_by()
    }

    fn set_due_by(&self, fingerprint: i64) -> StorageResult<()> {
        self.0[0].owners().set_due_by(fingerprint)
    }
}

/// Which of the databases has the owner's rows.
pub fn place(owner: Owner, shards: usize) -> usize {
    owner.0.as_bytes().iter().map(|byte| usize::from(*byte)).sum::<usize>() % shards
}

impl Shards {
    fn of(&self, owner: Owner) -> &dyn Storage {
        &*self.0[place(owner, self.0.len())]
    }
}

impl Storage for Shards {
    fn run_read(&self, owner: Owner, work: ReadWork<'_>) -> StorageResult<()> {
        self.of(owner).run_read(owner, work)
    }

    fn run_write(&self, owner: Owner, work: WriteWork<'_>) -> StorageResult<()> {
        self.of(owner).run_write(owner, work)
    }

    fn known_state(&self, owner: Owner) -> Option<OwnerState> {
        self.of(owner).known_state(owner)
    }

    fn on_moved(&self, listener: VersionListener) {
        self.0.iter().for_each(|shard| shard.on_moved(Arc::clone(&listener)));
    }

    fn ready(&self) -> StorageResult<()> {
        self.0.iter().try_for_each(|shard| shard.ready())
    }

    fn owners(&self) -> &dyn Owners {
        self
    }

    fn erase(&self, owner: Owner, rows_max: usize) -> StorageResult<bool> {
        self.0[0].erase(owner, rows_max)
    }

    fn accounts(&self) -> Arc<dyn AccountStore> {
        self.0[0].accounts()
    }

    fn census(&self) -> &dyn Census {
        self.0[0].census()
    }

    fn leases(&self) -> Leases {
        let leases = self.0.iter().map(|shard| match shard.leases() {
            Leases::Shared(store) => store,
            Leases::InMemory(_) => panic!("no shard keeps leases to itself"),
        });
        Leases::Shared(Arc::new(ShardedLeases(leases.collect())))
    }
}

struct ShardedLeases(Vec<Arc<dyn LeaseStore>>);

impl ShardedLeases {
    fn of(&self, owner: Owner) -> &dyn LeaseStore {
        &*self.0[place(owner, self.0.len())]
    }
}

impl LeaseStore for ShardedLeases {
    fn look(&self, owner: Owner) -> StorageResult<Option<LeaseState>> {
        self.of(owner).look(owner)
    }

    fn held_now(&self, leases_max: usize) -> StorageResult<Vec<(Owner, LeaseState)>> {
        let mut held = Vec::new();
        for shard in &self.0 {
            held.extend(shard.held_now(leases_max)?);
        }
        held.truncate(leases_max);
        Ok(held)
    }

    fn take(
        &self,
        owner: Owner,
        device: DeviceId,
        name: &str,
        fence: Option<Fence>,
        terms: LeaseTerms,
    ) -> StorageResult<Option<LeaseState>> {
        self.of(owner).take(owner, device, name, fence, terms)
    }

    fn renew(&self, owner: Owner, device: DeviceId, terms: LeaseTerms, below_ms: i64) -> StorageResult<()> {
        self.of(owner).renew(owner, device, terms, below_ms)
    }

    fn cut(&self, owner: Owner, lease_ms: i64) -> StorageResult<()> {
        self.of(owner).cut(owner, lease_ms)
    }

    fn give_back(&self, owner: Owner, device: DeviceId) -> StorageResult<()> {
        self.of(owner).give_back(owner, device)
    }

    fn on_changed(&self, listener: LeaseListener) {
        self.0.iter().for_each(|shard| shard.on_changed(Arc::clone(&listener)));
    }

    fn break_open(&self, owner: Owner) -> StorageResult<()> {
        self.of(owner).break_open(owner)
    }
}

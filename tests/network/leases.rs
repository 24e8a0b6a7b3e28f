//! Leases as the rows of a shared database keep them: the same statements as those of `storage::postgres`, over a map.

use std::collections::BTreeMap;

use rollcall::model::{DeviceId, Fence, Owner, Timestamp};
use rollcall::storage::{LeaseState, LeaseTerms};

/// The lease of every owner that ever had one. Times are by the database's clock.
#[derive(Clone, Default)]
pub struct Leases {
    held: BTreeMap<Owner, LeaseState>,
    /// Fences of owners that come new begin above this.
    fences: u64,
}

impl Leases {
    pub fn look(&self, owner: Owner, now: Timestamp) -> Option<LeaseState> {
        self.held.get(&owner).map(|lease| LeaseState { now, ..lease.clone() })
    }

    /// The same within a transaction, which makes its owner's row first.
    pub fn of_write(&self, owner: Owner, now: Timestamp) -> LeaseState {
        self.look(owner, now).unwrap_or_else(|| nobodys(self.fences, now))
    }

    pub fn held_now(&self, leases_max: usize, now: Timestamp) -> Vec<(Owner, LeaseState)> {
        let all = self.held.iter().map(|(owner, lease)| (*owner, LeaseState { now, ..lease.clone() }));
        all.filter(|(_, lease)| lease.is_running()).take(leases_max).collect()
    }

    pub fn take(
        &mut self,
        owner: Owner,
        (device, name): (DeviceId, &str),
        fence: Option<Fence>,
        terms: LeaseTerms,
        now: Timestamp,
    ) -> Option<LeaseState> {
        let held = self.of_write(owner, now);
        let own = held.holder == Some(device) && held.until.is_some();
        let is_free = own || held.holder.is_none() || held.until.is_none_or(|until| until <= now);
        if !is_free || fence.is_some_and(|fence| !own || held.fence != fence) {
            return None;
        }
        let goes_on = own && held.until.is_some_and(|until| now.ms() < until.ms() + terms.lease_ms);
        let since = if goes_on { held.since.min(now) } else { now };
        let taken = LeaseState {
            fence: if own { held.fence } else { Fence(held.fence.0 + 1) },
            holder: Some(device),
            holder_name: name.to_owned(),
            since,
            until: Some(now.shifted(terms.lease_ms).min(since.shifted(terms.hold_ms))),
            now,
        };
        self.held.insert(owner, taken.clone());
        Some(taken)
    }

    pub fn renew(
        &mut self,
        owner: Owner,
        device: DeviceId,
        terms: LeaseTerms,
        below_ms: i64,
        now: Timestamp,
    ) {
        let Some(held) = self.held.get_mut(&owner).filter(|held| held.holder == Some(device)) else { return };
        if held.until.is_some_and(|until| now < until && until < now.shifted(below_ms.min(1 << 40))) {
            let latest = held.since.shifted(terms.hold_ms.min(1 << 40));
            held.until = held.until.max(Some(now.shifted(terms.lease_ms).min(latest)));
        }
    }

    pub fn cut(&mut self, owner: Owner, lease_ms: i64, now: Timestamp) {
        if let Some(until) = self.held.get_mut(&owner).and_then(|held| held.until.as_mut()) {
            *until = (*until).min(now.shifted(lease_ms));
        }
    }

    /// After a restore, number `restores`: fences continue above those that may have been given out after the
    /// restored time.
    pub fn begin_epoch(&mut self, restores: u64) {
        self.fences = restores << 32;
        for held in self.held.values_mut() {
            held.fence = Fence((held.fence.0 + (1 << 20)).max(self.fences));
            (held.holder, held.until) = (None, None);
        }
    }

    /// Returns whether that ended a lease.
    pub fn give_back(&mut self, owner: Owner, device: DeviceId) -> bool {
        let held = self.held.get_mut(&owner).filter(|held| held.holder == Some(device));
        held.and_then(|held| held.until.take()).is_some()
    }

    pub fn break_open(&mut self, owner: Owner) {
        if let Some(held) = self.held.get_mut(&owner) {
            (held.fence, held.holder, held.until) = (Fence(held.fence.0 + 1), None, None);
        }
    }
}

fn nobodys(fences: u64, now: Timestamp) -> LeaseState {
    LeaseState {
        fence: Fence(fences),
        holder: None,
        holder_name: String::new(),
        since: now,
        until: None,
        now,
    }
}

//! Limits how many callers use an engine's connections at once; the others wait.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::{StorageError, StorageResult};
use crate::model::Owner;

/// Admits a limited number of callers at once.
///
/// All work shares a pool of connections. Work that may take long goes through a gate that is smaller than
/// the pool, so that connections remain free for short work that must not wait: accounts and tokens.
pub struct Gate {
    free: Mutex<u32>,
    freed: Condvar,
    wait: Duration,
}

/// A place inside the gate. Dropping it admits the next caller.
pub struct Inside<'a>(&'a Gate);

impl Gate {
    /// - `permits`: how many callers may be inside, at least one.
    /// - `wait`: how long a caller waits for a place.
    pub fn new(permits: u32, wait: Duration) -> Self {
        Self { free: Mutex::new(permits.max(1)), freed: Condvar::new(), wait }
    }

    /// Waits for a place.
    ///
    /// Errors: [`StorageError::Busy`] if no place becomes free in time.
    pub fn enter(&self) -> StorageResult<Inside<'_>> {
        #[expect(clippy::disallowed_methods, reason = "a bound on waiting decides nothing about a row")]
        let until = Instant::now() + self.wait;
        let mut free = self.free.lock();
        while *free == 0 {
            if self.freed.wait_until(&mut free, until).timed_out() && *free == 0 {
                return Err(StorageError::Busy);
            }
        }
        *free -= 1;
        Ok(Inside(self))
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        *self.0.free.lock() += 1;
        self.0.freed.notify_one();
    }
}

/// How many writes of one owner have a connection: one works, the next waits in the database for the first to
/// end.
const WRITES_AT_ONCE: u32 = 2;

/// A gate for the writes of each owner. The database runs one write of an owner at a time. If all of them
/// waited there, one owner would occupy all connections.
pub struct OwnerGates {
    gates: Mutex<HashMap<Owner, (Arc<Gate>, usize)>>,
    wait: Duration,
}

/// A write that waits at its owner's gate, or is inside.
struct Present<'a> {
    gates: &'a OwnerGates,
    owner: Owner,
}

impl OwnerGates {
    /// `wait`: how long a write waits for those before it.
    pub fn new(wait: Duration) -> Self {
        Self { gates: Mutex::default(), wait }
    }

    /// Runs work of an owner when its turn has come.
    ///
    /// Errors: [`StorageError::Busy`] if that takes too long, otherwise the work's own.
    pub fn run<T>(&self, owner: Owner, work: impl FnOnce() -> StorageResult<T>) -> StorageResult<T> {
        let gate = {
            let mut gates = self.gates.lock();
            let (gate, present) =
                gates.entry(owner).or_insert_with(|| (Arc::new(Gate::new(WRITES_AT_ONCE, self.wait)), 0));
            *present += 1;
            Arc::clone(gate)
        };
        let _present = Present { gates: self, owner };
        let _inside = gate.enter()?;
        work()
    }
}

impl Drop for Present<'_> {
    /// Memory is used for the owners who write now, not for all owners.
    fn drop(&mut self) {
        let mut gates = self.gates.gates.lock();
        if let Some((_, present)) = gates.get_mut(&self.owner) {
            *present -= 1;
            if *present == 0 {
                gates.remove(&self.owner);
            }
        }
    }
}

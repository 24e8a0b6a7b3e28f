//! A share of an engine's connections: as many may work at once, the others wait.

use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::{StorageError, StorageResult};

/// Lets at most so many in at once.
///
/// Connections are a pool for everything. What may take long goes through a gate that is smaller than the pool, so
/// that some of them are always there for what is short and must not wait: accounts and tokens.
pub(super) struct Gate {
    free: Mutex<u32>,
    freed: Condvar,
    wait: Duration,
}

/// Somebody inside. Dropped, it lets the next one in.
pub(super) struct Inside<'a>(&'a Gate);

impl Gate {
    /// - `places`: how many may be inside, at least one.
    /// - `wait`: how long the next one waits.
    pub fn new(places: u32, wait: Duration) -> Self {
        Self { free: Mutex::new(places.max(1)), freed: Condvar::new(), wait }
    }

    /// Waits for a place.
    ///
    /// Errors: [`StorageError::Busy`] if none became free in time.
    pub fn enter(&self) -> StorageResult<Inside<'_>> {
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

//! What an engine reports about its own work.

use std::time::Duration;

/// Receives events of an engine. The methods are called on the engine's threads: they must be fast and must
/// not block.
///
/// `()` ignores every event.
pub trait EngineObserver: Send + Sync {
    /// One commit made the work of `jobs` jobs durable.
    fn committed(&self, jobs: usize) {
        _ = jobs;
    }

    /// `jobs` jobs wait for the database's writer now.
    fn queued(&self, jobs: usize) {
        _ = jobs;
    }

    /// The database's writer was held for `held`, by one large write or by small ones together.
    fn held(&self, held: Duration) {
        _ = held;
    }

    /// A job was refused because the writer had too many of them or took too long.
    fn refused(&self) {}
}

impl EngineObserver for () {}

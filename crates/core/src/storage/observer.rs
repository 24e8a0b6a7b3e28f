//! What an engine reports of its own work.

use std::time::Duration;

/// Receives what an engine does, as it happens. Called on the engine's threads: it must be quick, and must not block.
///
/// `()` ignores everything.
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

    /// A job was refused since the writer had too many of them or took too long.
    fn refused(&self) {}
}

impl EngineObserver for () {}

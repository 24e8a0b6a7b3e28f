//! rollcall: the sync server for apps that work offline.

pub mod clock;
pub mod digest;
pub mod model;
pub mod reconcile;
pub mod schema;
pub mod storage;

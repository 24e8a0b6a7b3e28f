//! rollcall: the sync server for apps that work offline.

pub mod accounts;
pub mod changes;
pub mod clock;
pub mod config;
pub mod conflicts;
pub mod device;
pub mod digest;
pub mod fetch;
pub mod http;
pub mod locks;
pub mod model;
pub mod purge;
pub mod reconcile;
pub mod schema;
pub mod storage;
pub mod synchronise;

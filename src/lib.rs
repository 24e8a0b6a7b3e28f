//! rollcall: the sync server for apps that work offline.
//!
//! A device keeps its own copy of its owner's rows. When there is a network it agrees with the server in two
//! calls, [`fetch`] (which rows are there, and when each last changed) and [`synchronise`] (what the device
//! made of them, and what became of each); or in one, with the changes since its last sync sent along
//! ([`changes`]). What becomes of a row is decided in [`reconcile`], by rules that know neither clock nor disk.
//!
//! In reading order: the words ([`model`], [`schema`]), the contract made of
//! them ([`contract`]), the rules, the calls, what they stand on ([`storage`],
//! [`locks`], [`accounts`]), and how they are served ([`http`], [`cli`]). [`device`] is the other side of the
//! wire. `docs/project/architecture.md` follows one sync from socket to disk.

pub use rollcall_clock as clock;
pub use rollcall_core::{broken, changes, conflicts, digest, fetch, model, reconcile, schema, synchronise};
pub use rollcall_device as device;

pub mod contract;
mod error_chain;
pub mod explain;

pub mod accounts;
pub mod copy;
pub mod locks;
pub mod purge;

pub mod cli;
pub mod config;
pub mod http;
pub mod metrics;

/// The contract of storage, and the engines that keep it.
pub mod storage {
    pub use rollcall_core::storage::*;
    pub use rollcall_postgres as postgres;
    pub use rollcall_sqlite as sqlite;
}

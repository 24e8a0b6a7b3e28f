//! rollcall: the sync server for apps that work offline.
//!
//! A device keeps its own copy of its owner's rows. When a network is available it synchronises in two calls:
//! [`fetch`] (which rows exist, and when each last changed) and [`synchronise`] (its changes, and their
//! results). One call is enough if it includes the changes since its last sync ([`changes`]). [`reconcile`]
//! decides about each row, by rules that use neither clock nor disk.
//!
//! In reading order: the terms ([`model`], [`schema`]), the contract that is derived from them
//! ([`contract`]), the rules, the calls, what they are built on ([`storage`], [`locks`], [`accounts`]), and
//! how they are served ([`http`], [`cli`]). [`device`] is the other side of the protocol.
//! `docs/project/architecture.md` follows one sync from socket to disk.

pub use rollcall_clock as clock;
pub use rollcall_core::{
    broken, changes, conflicts, digest, fetch, members, model, reconcile, schema, synchronise,
};
pub use rollcall_device as device;

pub mod contract;
mod error_chain;
pub mod explain;

pub mod accounts;
pub mod copy;
pub mod erasure;
pub mod export;
pub mod import;
pub mod locks;
pub mod mail;
pub mod purge;

pub mod cli;
pub mod config;
pub mod dialects;
pub mod http;
pub mod metrics;

/// The storage contract, and the engines that implement it.
pub mod storage {
    pub use rollcall_core::storage::*;
    pub use rollcall_postgres as postgres;
    pub use rollcall_sqlite as sqlite;
}

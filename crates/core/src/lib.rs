//! The part of rollcall that decides: the rules, the phases of a sync, and the contract of storage.
//!
//! Nothing here has a clock, a disk or a network: the time comes in as an argument, the rows through [`storage`].
//!
//! In reading order: the words ([`model`], [`schema`]), the rules ([`reconcile`]), the two calls of a sync
//! ([`fetch`] and [`synchronise`]), the change feed ([`changes`]), what is kept of edits that lost
//! ([`conflicts`]), and what all of it stands on ([`storage`]).

pub mod broken;
pub mod cache;
pub mod model;
pub mod schema;

pub mod digest;
pub mod reconcile;

pub mod changes;
pub mod conflicts;
pub mod fetch;
pub mod members;
pub mod synchronise;

pub mod storage;

//! What the tests of rollcall share.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)] // it is for tests
#![allow(clippy::new_without_default, clippy::should_implement_trait)] // it has no other users

pub mod app;
pub mod audit;
pub mod contract;
pub mod conversation;
pub mod counting;
pub mod disk;
pub mod engine;
pub mod feed;
pub mod forward;
pub mod instance;
pub mod journal;
pub mod markdown;
pub mod pg;
pub mod pg_line;
pub mod pg_pooler;
pub mod pg_shards;
pub mod process;
pub mod readers;
pub mod requests;
pub mod rng;
pub mod seeds;
pub mod shells;
pub mod shown;
pub mod test_server;

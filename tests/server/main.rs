//! The server's responses: every part of it, in this process, over real databases.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::too_many_lines)]

mod accounts;
mod api;
mod batch_costs;
mod conflicts;
mod console;
mod conversations;
mod copy;
mod dialects;
mod events;
mod feed;
mod housekeeping;
mod import;
mod jwt;
mod late;
mod locks;
mod metrics;
mod net;
mod openapi;
mod pages;
mod pg_faults;
mod plans;
mod proof;
mod retries;
mod schema;
mod serving;
mod shards;
mod storage;
mod streams;
mod typed_contract;
mod wire;

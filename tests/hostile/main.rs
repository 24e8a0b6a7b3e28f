//! Malicious clients, and clients of other owners: what they receive, and that no other client notices.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::too_many_lines)]

use rollcall_testkit::app;
use rollcall_testkit::contract;
use rollcall_testkit::process;
use rollcall_testkit::readers;
use rollcall_testkit::requests;

mod clients;
mod costs;
mod inputs;
mod small_machine;
mod tenants;

/// Counts for `costs`, which runs in a process of its own.
#[global_allocator]
static MEMORY: peak_alloc::PeakAlloc = peak_alloc::PeakAlloc;

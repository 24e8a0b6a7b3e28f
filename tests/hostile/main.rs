//! Those who mean harm, or another's rows: what they are told, and that nobody else notices.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../support/app.rs"]
mod app;
#[path = "../support/contract.rs"]
mod contract;
#[path = "../support/process.rs"]
mod process;
#[path = "../support/readers.rs"]
mod readers;
#[path = "../support/requests.rs"]
mod requests;

mod clients;
mod costs;
mod inputs;
mod small_machine;
mod tenants;

/// Counts for `costs`, which runs in a process of its own.
#[global_allocator]
static MEMORY: peak_alloc::PeakAlloc = peak_alloc::PeakAlloc;

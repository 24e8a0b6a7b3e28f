//! The program as its users start it: processes, signals, files, command lines.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::too_many_lines)]

mod backup;
mod citus;
mod commands;
mod disk_faults;
mod documents;
mod guards;
mod kill;
mod life;
mod moving;
mod pg_admin;
mod pg_start;
mod replicas;
mod tidy;

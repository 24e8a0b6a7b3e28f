//! The yardsticks of the server, each a process of the same executable, so that CPU and memory are measured
//! in the same way.
//!
//! - **Bare loops** (`write`, `manifest`, `changes`): the engine's own tables, statements, pragmas and
//!   durability (WAL, `synchronous=FULL`), the same rows in transactions of the same size, statements
//!   prepared once, one thread. They have no HTTP, no JSON input, no lookup before a write, no rule, no lock,
//!   no token and no digest (the digest's row is written, but no hash is computed), store no earlier states
//!   and send no response. Only the transactions are timed, not the construction of rows. What is read is
//!   serialised as the same JSON, into a reused buffer of 64 KiB.
//! - **A bare loop over PostgreSQL** (`sync`): the statements of a server for a small sync, in their order,
//!   prepared once, over as many connections as the servers have together, with one of them at a time for
//!   each owner. It has no HTTP and no JSON, applies no rule and ignores the results.
//! - **Fixed bytes** (`fixed`): a warp filter that responds with as many prepared bytes as the server did,
//!   behind the server's own accept loop and layers. It does everything that HTTP costs, but reads no
//!   database and uses no token, no lock and no version.

mod bare;
mod fixed;
mod postgres;
mod spoken;

use std::path::PathBuf;

pub(super) use bare::layout;
use clap::{Args, Subcommand};

use super::dataset::Person;
use crate::Done;

/// The parts of a benchmark that it starts itself
#[derive(Debug, Args)]
pub struct Yardstick {
    #[command(subcommand)]
    work: Work,
}

#[derive(Debug, Subcommand)]
enum Work {
    /// Serve fixed bytes
    Fixed {
        #[arg(long)]
        log: String,
    },
    /// Write rows
    Write {
        #[arg(long)]
        database: PathBuf,
        #[command(flatten)]
        writing: bare::Writing,
    },
    /// Sync small changes over PostgreSQL
    Sync {
        #[command(flatten)]
        syncing: Box<postgres::Syncing>,
    },
    /// Read a roll call
    Manifest {
        #[arg(long)]
        database: PathBuf,
        #[arg(long)]
        person: u64,
        #[arg(long)]
        times: u64,
    },
    /// Read a feed
    Changes {
        #[arg(long)]
        database: PathBuf,
        #[arg(long)]
        person: u64,
        #[arg(long)]
        since: u64,
        #[arg(long)]
        times: u64,
    },
}

impl Yardstick {
    /// Works, and prints what it measured as JSON.
    pub fn run(self) -> Done {
        let result = match self.work {
            Work::Fixed { log } => return fixed::run(log),
            Work::Write { database, writing } => bare::write(&database, writing),
            Work::Sync { syncing } => postgres::sync(&syncing),
            Work::Manifest { database, person, times } => bare::manifest(&database, Person(person), times),
            Work::Changes { database, person, since, times } => {
                bare::changes(&database, Person(person), since, times)
            }
        };
        println!("{}", serde_json::to_string(&result.map_err(|error| error.to_string())?)?);
        Ok(())
    }
}

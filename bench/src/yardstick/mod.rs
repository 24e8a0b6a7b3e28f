//! What the server is held against, as a process of the same executable, so that CPU and memory are measured
//! alike.
//!
//! - **Bare loops** (`write`, `manifest`, `changes`): the engine's own tables, statements, pragmas and durability
//!   (WAL, `synchronous=FULL`), the same rows in transactions of the same size, statements prepared once, one
//!   thread. They do no HTTP, read no JSON, look nothing up before they write, apply no rule, know no lock, no
//!   token and no digest (the digest's row is written, its hashes are not made), keep no earlier states and
//!   answer nobody. Only the transactions count, not the making of rows. What is read they spell as the same
//!   JSON, into a buffer of 64 KiB that is used again.
//! - **A bare loop over PostgreSQL** (`sync`): the very texts that a server says for a small sync, in their order,
//!   prepared once, over as many connections as the servers have together, an owner's by one of them at a time.
//!   It does no HTTP, reads and writes no JSON, applies no rule and looks at nothing that it is answered.
//! - **Fixed bytes** (`fixed`): a warp filter that answers with as many ready bytes as the server did, behind
//!   the server's own accept loop and layers. It does everything that HTTP costs and reads no database, knows no
//!   token, no lock and no version.

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

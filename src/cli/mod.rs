//! The command line: one file a command.

mod account;
mod backup;
mod bench;
mod copy;
mod database;
mod demo;
mod device;
mod distribute;
mod epoch;
mod files;
mod housekeeping;
mod interrupt;
mod log;
mod openapi;
mod progress;
mod purge;
mod schema;
mod serve;

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

/// What a command ends in. The error is for people: it is printed as it stands.
type Done = Result<(), Box<dyn std::error::Error>>;

/// The sync server for offline-first apps: two plain HTTP calls, SQLite inside
#[derive(Debug, Parser)]
#[command(name = "rollcall", version, arg_required_else_help = true, after_help = BEGIN)]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

/// Where to begin, under the help of the program.
const BEGIN: &str = "\
Try it:  rollcall demo
Run it:  rollcall serve --schema schema.toml --database sqlite:app.db

Every setting is also an environment variable, named in the help of serve: --listen is ROLLCALL_LISTEN.";

#[derive(Debug, Subcommand)]
enum Command {
    Serve(Box<serve::Serve>),
    Demo(demo::Demo),
    #[command(subcommand)]
    Account(account::Account),
    Purge(purge::Purge),
    Backup(backup::Backup),
    Restore(backup::Restore),
    Copy(copy::Copy),
    Epoch(epoch::Epoch),
    Distribute(distribute::Distribute),
    #[command(subcommand)]
    Device(device::Device),
    #[command(subcommand)]
    Schema(schema::SchemaCommand),
    Openapi(openapi::Openapi),
    Bench(Box<bench::Bench>),
    #[command(hide = true)]
    BenchYardstick(bench::Yardstick),
}

/// Runs the program.
pub fn main() -> ExitCode {
    let mut matches = CommandLine::command().mut_subcommand("serve", serve::shorten_help).get_matches();
    let line = CommandLine::from_arg_matches_mut(&mut matches).unwrap_or_else(|error| error.exit());
    let done = match line.command {
        Command::Serve(serve) => serve.run(),
        Command::Demo(demo) => demo.run(),
        Command::Account(account) => account.run(),
        Command::Purge(purge) => purge.run(),
        Command::Backup(backup) => backup.run(),
        Command::Restore(restore) => restore.run(),
        Command::Copy(copy) => copy.run(),
        Command::Epoch(epoch) => epoch.run(),
        Command::Distribute(distribute) => distribute.run(),
        Command::Device(device) => device.run(),
        Command::Schema(schema) => schema.run(),
        Command::Openapi(openapi) => openapi.run(),
        Command::Bench(bench) => bench.run(),
        Command::BenchYardstick(yardstick) => yardstick.run(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<interrupt::Interrupted>() => {
            eprintln!("{error}");
            ExitCode::from(130)
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

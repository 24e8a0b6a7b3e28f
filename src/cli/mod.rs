//! The command line: one file for each command.

mod account;
mod account_export;
mod backup;
mod copy;
mod database;
mod demo;
mod device;
mod distribute;
mod epoch;
mod files;
mod housekeeping;
mod import;
mod interrupt;
mod log;
mod openapi;
mod progress;
mod purge;
mod reference;
mod schema;
mod serve;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

pub use interrupt::{Interrupted, StopSignals};
pub use log::{Log, log_to_stderr};

/// The result of a command. Its error is for people, and is printed unchanged.
pub type Done = Result<(), Box<dyn std::error::Error>>;

/// The sync server for offline-first apps: two plain HTTP calls, SQLite inside
#[derive(Debug, Parser)]
#[command(name = "rollcall", version, arg_required_else_help = true, help_template = HELP, after_help = BEGIN)]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

/// The template of the program's help; `command` inserts the commands by subject before `BEGIN`.
const HELP: &str = "{about-with-newline}\n{usage-heading} {usage}{after-help}\n\nOptions:\n{options}";

/// Every visible command, by subject.
const SUBJECTS: [(&str, &[&str]); 3] = [
    ("Begin", &["demo", "serve"]),
    ("Build an app", &["schema", "openapi", "device"]),
    ("Operate a server", &["account", "import", "backup", "restore", "purge", "copy", "epoch", "distribute"]),
];

/// How to begin, at the end of the program's help.
const BEGIN: &str = "\
Try it:  rollcall demo
Run it:  rollcall serve --schema schema.toml --database sqlite:app.db

Every setting is also an environment variable, named in the help of serve: --listen is ROLLCALL_LISTEN.
`rollcall COMMAND -h` lists the flags of a command, `rollcall COMMAND --help` explains each.";

#[derive(Debug, Subcommand)]
enum Command {
    Serve(Box<serve::Serve>),
    Demo(demo::Demo),
    #[command(subcommand)]
    Account(account::Account),
    Import(Box<import::Import>),
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
    #[command(hide = true)]
    Reference(reference::Reference),
}

/// The definition of the command line.
fn command() -> clap::Command {
    let program = CommandLine::command().mut_subcommand("serve", serve::shorten_help);
    let commands = by_subject(&program);
    program.after_help(format!("{commands}{BEGIN}"))
}

/// The commands with their descriptions, one paragraph for each subject.
fn by_subject(program: &clap::Command) -> String {
    let mut text = String::new();
    for (subject, names) in SUBJECTS {
        text.push_str(&format!("{subject}:\n"));
        for command in names.iter().filter_map(|name| program.find_subcommand(name)) {
            let about = command.get_about().map(ToString::to_string).unwrap_or_default();
            text.push_str(&format!("  {:<11} {about}\n", command.get_name()));
        }
        text.push('\n');
    }
    text
}

/// Runs the program with these arguments; the first one is its name.
pub fn run(args: impl IntoIterator<Item = impl Into<OsString> + Clone>) -> ExitCode {
    let mut matches = command().get_matches_from(args);
    let line = CommandLine::from_arg_matches_mut(&mut matches).unwrap_or_else(|error| error.exit());
    let done = match line.command {
        Command::Serve(serve) => serve.run(),
        Command::Demo(demo) => demo.run(),
        Command::Account(account) => account.run(),
        Command::Import(import) => import.run(),
        Command::Purge(purge) => purge.run(),
        Command::Backup(backup) => backup.run(),
        Command::Restore(restore) => restore.run(),
        Command::Copy(copy) => copy.run(),
        Command::Epoch(epoch) => epoch.run(),
        Command::Distribute(distribute) => distribute.run(),
        Command::Device(device) => device.run(),
        Command::Schema(schema) => schema.run(),
        Command::Openapi(openapi) => openapi.run(),
        Command::Reference(reference) => reference.run(),
    };
    exit_code(done)
}

/// Prints the error of a command; returns the exit code, which is 130 after an interrupt.
pub fn exit_code(done: Done) -> ExitCode {
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Calls `each` with every visible command and its full name.
    fn walk(command: &clap::Command, name: &str, each: &mut dyn FnMut(&str, &clap::Command)) {
        each(name, command);
        for below in command.get_subcommands().filter(|below| !below.is_hide_set()) {
            walk(below, &format!("{name} {}", below.get_name()), each);
        }
    }

    /// Goal: the program's help contains each command exactly once.
    #[test]
    fn every_command_has_one_subject() {
        let program = command();
        let shown = program.get_subcommands().filter(|command| !command.is_hide_set());
        let mut shown: Vec<_> = shown.map(clap::Command::get_name).collect();
        let mut listed: Vec<_> = SUBJECTS.iter().flat_map(|(_, names)| *names).copied().collect();
        shown.sort_unstable();
        listed.sort_unstable();
        assert_eq!(listed, shown);
    }

    /// Goal: the help of each command fits a screen, and every text is an imperative. Method: `-h` has fewer
    /// than 60 lines of 100 columns; no text begins with an article or with a verb in the third person.
    #[test]
    fn short_help_fits_a_screen_and_every_text_is_an_order() {
        let mut texts = 0;
        walk(&command(), "rollcall", &mut |name, command| {
            let short = command.clone().term_width(100).render_help().to_string();
            assert!(short.lines().count() < 60, "{name}:\n{short}");
            let abouts = command.get_about().into_iter();
            let helps = command.get_arguments().filter_map(clap::Arg::get_help);
            for text in abouts.chain(helps).map(ToString::to_string).filter(|_| name != "rollcall") {
                texts += 1;
                let first = text.split([' ', ';', ',']).next().unwrap_or_default().to_owned();
                let is_noun = ["The", "A", "An", "Which", "What", "Where", "How", "Whether", "Who"]
                    .contains(&first.as_str());
                let is_other_mood =
                    first.ends_with('s') && !["Pass", "Address", "Process"].contains(&first.as_str());
                assert!(!is_noun && !is_other_mood, "{name}: {text:?} is no order");
            }
        });
        assert!(texts > 100, "{texts}");
    }
}

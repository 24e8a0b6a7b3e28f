//! The `rollcall` program: parses and runs the command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    rollcall::cli::run(std::env::args_os())
}

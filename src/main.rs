//! The `rollcall` program: parse the command line, call it.

use std::process::ExitCode;

fn main() -> ExitCode {
    rollcall::cli::run(std::env::args_os())
}

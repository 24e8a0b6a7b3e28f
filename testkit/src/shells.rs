//! The shells that readers of the documents paste into.

use std::process::{Command, Stdio};

/// Reads standard input, and ends with the first command that fails.
pub const BASH: [&str; 5] = ["bash", "--noprofile", "--norc", "-e", "-s"];
/// The same, as at a prompt: `#` begins no comment, and a pattern that fits no file is an error.
pub const ZSH: [&str; 7] = ["zsh", "-f", "-i", "-e", "-o", "no_check_jobs", "-s"];

/// Whether the program can be run here.
pub fn is_installed(program: &str) -> bool {
    let asked =
        Command::new("sh").args(["-c", "command -v \"$1\"", "sh", program]).stdout(Stdio::null()).status();
    asked.is_ok_and(|status| status.success())
}

/// A shell that finds `rollcall`, and neither a proxy nor a setting of the machine it runs on.
pub fn pasting(shell: &[&str]) -> Command {
    let mut command = Command::new(shell[0]);
    for (name, _) in std::env::vars() {
        if name.to_lowercase().ends_with("_proxy") || name.starts_with("ROLLCALL_") {
            command.env_remove(name);
        }
    }
    let program = crate::process::program().parent().unwrap().display().to_string();
    let path = std::env::var("PATH").unwrap_or_default();
    command.args(&shell[1..]).env("PATH", format!("{program}:{path}"));
    command
}

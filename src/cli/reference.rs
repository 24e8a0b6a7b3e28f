use std::fmt::Write as _;
use std::io::Write as _;

use clap::builder::StyledStr;
use clap::{Args, Command, ValueEnum};

use super::{Done, SUBJECTS, command};

/// Print a page of the documents that is made from the program: docs/reference/settings.md or cli.md
#[derive(Debug, Args)]
pub(super) struct Reference {
    /// Print this page
    page: Page,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Page {
    /// Every setting of `rollcall serve`
    Settings,
    /// Every command and flag
    Cli,
}

impl Reference {
    pub fn run(self) -> Done {
        let program = command();
        let page = match self.page {
            Page::Settings => settings(&program),
            Page::Cli => cli(&program),
        };
        Ok(std::io::stdout().lock().write_all(page.as_bytes())?)
    }
}

const SETTINGS: &str = "\
# Settings

Which settings does a server have, and what is the default of each?

<!-- Made by the program. To write it again: cargo run -- reference settings > docs/reference/settings.md -->

A setting comes from its flag, else from its variable, else it is the default. `N` in a description is the number that
you give. A number in parentheses is the status of a request that is refused, which
[verdicts and problems](verdicts-and-problems.md) explains. The settings under [Syncing](#syncing) and
[Limits](#limits) are also in `GET /limits`, for apps to read, by a name such as `lease_ms`.

The pages about [memory](../operate/memory.md), [PostgreSQL](../operate/postgresql.md) and
[proxies](../operate/proxies.md) say which of them to set together.
";

const CLI: &str = "\
# Command line

Which commands does the program have, and which flags does each take?

<!-- Made by the program. To write it again: cargo run -- reference cli > docs/reference/cli.md -->

`rollcall COMMAND --help` prints the same. A flag that has a variable may be left out where the variable is set. A
command ends with 0 when it did its work, with 1 and a line `error: …` on standard error when it could not, with 2 when
the command line is wrong, and with 130 when Ctrl-C ended it.
";

/// The settings of `serve` as a table for each heading of its help.
fn settings(program: &Command) -> String {
    let mut page = SETTINGS.to_owned();
    let mut last = None;
    for arg in program.find_subcommand("serve").into_iter().flat_map(Command::get_arguments) {
        let heading = arg.get_help_heading().unwrap_or("The server");
        if last != Some(heading) {
            let _ = write!(
                page,
                "\n## {heading}\n\n| flag | variable | default | purpose |\n| --- | --- | --- | --- |\n"
            );
            last = Some(heading);
        }
        let _ = writeln!(page, "| {} | {} | {} | {} |", flag(arg), variable(arg), default(arg), about(arg));
    }
    page
}

/// Every command with its usage, its description and its flags.
fn cli(program: &Command) -> String {
    let mut page = CLI.to_owned();
    page.push_str("\n| command | does |\n| --- | --- |\n");
    let commands =
        SUBJECTS.iter().flat_map(|(_, names)| *names).filter_map(|name| program.find_subcommand(name));
    let commands: Vec<_> =
        commands.flat_map(|command| family(command, &format!("rollcall {}", command.get_name()))).collect();
    for (name, command) in commands.iter().filter(|(_, command)| is_leaf(command)) {
        let anchor = name.replace(' ', "-");
        let _ = writeln!(page, "| [`{name}`](#{anchor}) | {} |", cell(&plain(command.get_about())));
    }
    for (name, command) in commands {
        let _ = write!(page, "\n## {name}\n\n{}.\n", prose(&plain(command.get_about())));
        let long = plain(command.get_long_about());
        if let Some((_, more)) = long.split_once("\n\n") {
            let _ = write!(page, "\n{}\n", prose(more.trim_end()));
        }
        if is_leaf(command) {
            let usage = command.clone().bin_name(&name).render_usage().to_string();
            let _ = write!(page, "\n```text\n{}\n```\n", usage.trim_start_matches("Usage: ").trim_end());
            arguments(&mut page, command);
        }
    }
    page
}

/// A command and its subcommands, each with its full name, in the order of the help.
fn family<'a>(command: &'a Command, name: &str) -> Vec<(String, &'a Command)> {
    let mut family = vec![(name.to_owned(), command)];
    for below in command.get_subcommands().filter(|below| !below.is_hide_set()) {
        family.extend(self::family(below, &format!("{name} {}", below.get_name())));
    }
    family
}

/// Whether a command does something itself instead of grouping others.
fn is_leaf(command: &Command) -> bool {
    command.get_subcommands().all(Command::is_hide_set)
}

fn arguments(page: &mut String, command: &Command) {
    // The settings of a server have a page of their own.
    let (own, settings): (Vec<_>, Vec<_>) =
        command.get_arguments().partition(|arg| arg.get_help_heading().is_none());
    if !own.is_empty() {
        page.push_str("\n| argument | does | variable | default |\n| --- | --- | --- | --- |\n");
    }
    for arg in own {
        let _ = writeln!(page, "| {} | {} | {} | {} |", flag(arg), about(arg), variable(arg), default(arg));
    }
    if !settings.is_empty() {
        page.push_str("\nIt also takes every flag of [the settings](settings.md).\n");
    }
}

fn flag(arg: &clap::Arg) -> String {
    let values: Vec<_> =
        arg.get_value_names().unwrap_or_default().iter().map(|name| format!("{name}")).collect();
    let takes_value = arg.get_action().takes_values();
    match arg.get_long() {
        Some(long) if takes_value => format!("`--{long} {}`", cell(&values.join(" "))),
        Some(long) => format!("`--{long}`"),
        None => format!("`{}`", cell(&values.join(" "))),
    }
}

fn variable(arg: &clap::Arg) -> String {
    arg.get_env().map(|name| format!("`{}`", name.to_string_lossy())).unwrap_or_default()
}

fn default(arg: &clap::Arg) -> String {
    let values: Vec<_> = arg.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
    let is_shown = arg.get_action().takes_values() && !values.is_empty();
    if is_shown { format!("`{}`", grouped(&values.join(","))) } else { String::new() }
}

/// A number with a comma before every three digits; other text unchanged.
fn grouped(text: &str) -> String {
    if text.len() < 5 || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return text.to_owned();
    }
    let mut grouped = String::new();
    for (at, digit) in text.chars().enumerate() {
        if at > 0 && (text.len() - at).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

fn about(arg: &clap::Arg) -> String {
    let long = plain(arg.get_long_help().or(arg.get_help()));
    let mut paragraphs = long.split("\n\n").map(|paragraph| paragraph.replace('\n', " "));
    let mut text = paragraphs.next().unwrap_or_default().trim_end_matches('.').to_owned();
    for more in paragraphs {
        text = format!("{text}. {}", more.trim().trim_end_matches('.'));
    }
    let choices: Vec<_> =
        arg.get_possible_values().iter().map(|choice| format!("`{}`", choice.get_name())).collect();
    let is_choice = arg.get_action().takes_values() && !choices.is_empty();
    if is_choice {
        text = format!("{text}. One of {}", choices.join(", "));
    }
    cell(&text) + "."
}

fn plain(text: Option<&StyledStr>) -> String {
    text.map(ToString::to_string).unwrap_or_default()
}

/// Escapes text for a cell of a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

/// Help text as paragraphs; indented ones are examples.
fn prose(text: &str) -> String {
    let mut paragraphs: Vec<String> = Vec::new();
    let mut example = String::new();
    for paragraph in text.split("\n\n").chain([""]) {
        match paragraph.strip_prefix("  ") {
            Some(line) => example = format!("{example}{line}\n"),
            None => {
                if !example.is_empty() {
                    paragraphs.push(format!("```text\n{}```", std::mem::take(&mut example)));
                }
                paragraphs.push(paragraph.to_owned());
            }
        }
    }
    paragraphs.join("\n\n").trim_end().to_owned()
}

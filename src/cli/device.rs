use std::io::{BufRead, ErrorKind, IsTerminal, Write as _};
use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use uuid::Uuid;

use super::Done;
use crate::clock::Clock;
use crate::device::calls::CallError;
use crate::device::decide::State;
use crate::device::{
    self, Columns, Http, LeftEdit, LogIn, Options, Progress, Proof, RetryPolicy, Store, SyncError, SyncMode,
    SyncReport,
};
use crate::model::RowKey;

/// Attempts at one request before a command stops.
const ATTEMPTS_MAX: u32 = 4;

/// How a sync finds out what others changed.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum By {
    /// List what the server holds, compare, send and ask. Needs no memory, costs a list.
    Manifest,
    /// Ask for what changed since the cursor. Costs what changed.
    Cursor,
}

impl From<By> for SyncMode {
    fn from(by: By) -> Self {
        match by {
            By::Manifest => Self::Manifest,
            By::Cursor => Self::Cursor,
        }
    }
}

/// Act as a device: keep a user's rows in a file, edit them offline, sync them
///
/// Try it beside `rollcall demo`:
///
///   rollcall device init --file phone.db --schema schema.toml --server http://127.0.0.1:7878
///
///   rollcall device login --file phone.db anna@example.com
///
///   rollcall device put --file phone.db todo new '{"title": "Book the band"}'
///
///   rollcall device sync --file phone.db
#[derive(Debug, Subcommand)]
#[command(verbatim_doc_comment)]
pub(super) enum Device {
    /// Make the file of a new device
    Init {
        #[command(flatten)]
        file: FileArg,

        /// Read the tables from this file, the server's own
        #[arg(long, env = "ROLLCALL_SCHEMA", value_name = "FILE")]
        schema: PathBuf,

        /// Sync with the server at this address
        #[arg(long, env = "ROLLCALL_SERVER", value_name = "URL", default_value = "http://127.0.0.1:7878")]
        server: String,

        /// Keep the rows of this owner, of which the user is a member; by default, of the user's own
        #[arg(long, value_name = "ID")]
        owner: Option<Uuid>,
    },
    /// Log in; ask for the password, or read it from standard input
    Login {
        #[command(flatten)]
        file: FileArg,

        /// Log in the user with this email address
        #[arg(required_unless_present = "token")]
        email: Option<String>,

        /// Give the device this name
        #[arg(long, value_name = "NAME", default_value = "rollcall device")]
        device: String,

        /// Register the user first
        #[arg(long)]
        register: bool,

        /// Read a token of your identity provider from standard input instead
        #[arg(long, conflicts_with_all = ["email", "register"])]
        token: bool,
    },
    /// Add a row, or change columns of one
    Put {
        #[command(flatten)]
        file: FileArg,

        /// Use this table
        table: String,

        /// Change the row with this key; `new` adds one
        key: String,

        /// Set these columns, such as '{"title": "Book the band"}'
        row: String,
    },
    /// Delete a row
    Delete {
        #[command(flatten)]
        file: FileArg,

        /// Use this table
        table: String,

        /// Delete the row with this key
        key: String,
    },
    /// Print rows, one JSON object a line
    ///
    /// Where all tables are printed, each line begins with the name of its table.
    List {
        #[command(flatten)]
        file: FileArg,

        /// Print this table alone
        table: Option<String>,
    },
    /// Send the edits that wait, and get what others changed
    Sync {
        #[command(flatten)]
        file: FileArg,

        /// Find out what others changed in this way; the default is by cursor where the server can
        #[arg(long)]
        by: Option<By>,

        /// Confirm that one request deletes N rows
        #[arg(long, value_name = "N")]
        confirm_deletes: Option<u64>,
    },
    /// Print the edits that were not sent when the user's membership ended, one JSON object a line
    Left {
        #[command(flatten)]
        file: FileArg,

        /// Forget them afterwards
        #[arg(long)]
        forget: bool,
    },
    /// Print which edits wait, and how far the last sync came
    Status {
        #[command(flatten)]
        file: FileArg,
    },
}

#[derive(Debug, Args)]
pub(super) struct FileArg {
    /// Keep the device in this file
    #[arg(long, env = "ROLLCALL_DEVICE", value_name = "FILE", default_value = "device.db")]
    file: PathBuf,
}

impl FileArg {
    fn open(&self) -> Result<Store, Box<dyn std::error::Error>> {
        let in_file = |error| format!("{}: {error}", self.file.display());
        Ok(Store::open(&self.file, Clock::system()).map_err(in_file)?)
    }
}

impl Device {
    pub fn run(self) -> Done {
        match self {
            Self::Init { file, schema, server, owner } => init(&file, &schema, &server, owner),
            Self::Login { file, email: Some(email), device, register, .. } => {
                log_in(&file.open()?, &email, &device, register)
            }
            Self::Login { file, .. } => {
                let mut token = String::new();
                std::io::stdin().lock().read_line(&mut token)?;
                let store = file.open()?;
                let mut retries = RetryPolicy { attempts_max: ATTEMPTS_MAX, ..RetryPolicy::default() };
                device::take_token(&store, &mut server(&store)?, &mut retries, token.trim())?;
                Ok(())
            }
            Self::Put { file, table, key, row } => put(&mut file.open()?, &table, &key, &row),
            Self::Delete { file, table, key } => {
                file.open()?.delete(&table, parse_key(&key)?)?;
                Ok(())
            }
            Self::List { file, table } => list(&file.open()?, table.as_deref()),
            Self::Sync { file, by, confirm_deletes } => {
                sync(&mut file.open()?, Options { mode: by.map(SyncMode::from), confirm_deletes })
            }
            Self::Left { file, forget } => left(&file.open()?, forget),
            Self::Status { file } => status(&file.open()?),
        }
    }
}

fn init(file: &FileArg, schema: &std::path::Path, server: &str, owner: Option<Uuid>) -> Done {
    let text = std::fs::read_to_string(schema)
        .map_err(|error| format!("cannot read {}: {error}", schema.display()))?;
    let path = file.file.display();
    let store =
        Store::create(&file.file, &text, Clock::system()).map_err(|error| format!("{path}: {error}"))?;
    store.set_server(server)?;
    owner.map_or(Ok(()), |owner| store.set_owner(owner))?;
    println!("made {path}: {} tables, server {server}", store.schema().tables().len());
    Ok(())
}

fn server(store: &Store) -> Result<Http, Box<dyn std::error::Error>> {
    Ok(Http::new(&store.server()?.ok_or("the file names no server")?))
}

fn log_in(store: &Store, email: &str, device: &str, register: bool) -> Done {
    let password = if std::io::stdin().is_terminal() {
        rpassword::prompt_password("Password: ")?
    } else {
        let mut line = String::new();
        std::io::stdin().lock().read_line(&mut line)?;
        line.trim_end_matches(['\r', '\n']).to_owned()
    };
    let log_in = LogIn { email, password: &password, device, register };
    device::log_in(store, &mut server(store)?, &mut RetryPolicy::default(), log_in)?;
    println!("logged in as {email}, device {device:?}");
    Ok(())
}

fn parse_key(text: &str) -> Result<RowKey, String> {
    RowKey::parse(text).ok_or_else(|| format!("{text:?} is no key: expected a UUID of 36 characters"))
}

fn put(store: &mut Store, table: &str, key: &str, row: &str) -> Done {
    let columns: Columns =
        serde_json::from_str(row).map_err(|error| format!("the row is no JSON object: {error}"))?;
    let key = if key == "new" { RowKey(Uuid::now_v7()) } else { parse_key(key)? };
    store.put(table, key, &columns)?;
    println!("{key}");
    Ok(())
}

fn list(store: &Store, table: Option<&str>) -> Done {
    let tables = match table {
        Some(name) => vec![store.table(name)?],
        None => store.schema().tables().iter().collect(),
    };
    let mut out = std::io::stdout().lock();
    for one in tables {
        for row in store.list(&one.name)? {
            let waits = match row.local.state {
                State::Clean => "",
                _ => "\t(waits)",
            };
            let name = if table.is_some() { String::new() } else { format!("{}\t", one.name) };
            match writeln!(out, "{name}{}{waits}", row.shown(one)?) {
                // The reader has closed the pipe, as `head` does.
                Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(()),
                written => written?,
            }
        }
    }
    Ok(())
}

fn sync(store: &mut Store, options: Options) -> Done {
    let mut remote = server(store)?;
    let shows = std::io::stderr().is_terminal();
    let mut shown = false;
    let mut progress = |step| {
        // Only a sync that takes long reports its progress.
        let line = match step {
            Progress::Listed(rows) if rows >= 5_000 => format!("the server holds {rows} rows"),
            Progress::Left(rows, gets) if rows + gets > 0 => format!("{rows} rows to send, {gets} to get"),
            Progress::Received(rows) if rows >= 5_000 => format!("{rows} rows received"),
            Progress::Repairing => "the copy differs from the server's: comparing everything".into(),
            _ => return,
        };
        if shows {
            shown = true;
            eprint!("\r\x1b[K{line}");
        }
    };
    // A user is waiting: a few seconds show whether the network works.
    let mut retries = RetryPolicy { attempts_max: ATTEMPTS_MAX, ..RetryPolicy::default() };
    let done = device::sync(store, &mut remote, &mut retries, options, &mut progress);
    if shown {
        eprintln!();
    }
    match done {
        Ok(report) => print_report(store, &report),
        Err(SyncError::Call(error @ CallError::NoResponse(_))) => {
            let rows = store.pending()?.rows();
            Err(format!("{error}\n{rows} rows wait for the next sync; nothing is lost").into())
        }
        Err(SyncError::Call(CallError::Refused(problem))) if problem.confirm_deletes.is_some() => {
            let confirm = problem.confirm_deletes.unwrap_or_default();
            Err(format!("{problem}\nif that is meant: rollcall device sync --confirm-deletes {confirm}")
                .into())
        }
        Err(error) => Err(error.into()),
    }
}

fn print_report(store: &Store, report: &SyncReport) -> Done {
    let tally = &report.tally;
    let mode = match report.mode {
        Some(SyncMode::Cursor) => "by cursor",
        _ => "by manifest",
    };
    println!("synced {mode}: {} sent, {} received, {} dropped", tally.taken, tally.received, tally.dropped);
    if report.resumed {
        println!("the response to an earlier sync had been lost; it has arrived now");
    }
    for (table, key) in &tally.lost {
        println!("{table} {key}: the server's row won over your edit");
    }
    for (table, key, reason) in &tally.rejected {
        println!("{table} {key}: rejected, {reason}");
    }
    let waiting = store.pending()?.rows();
    if waiting > 0 {
        println!("{waiting} rows still wait");
    }
    match &report.proof {
        Proof::Unsaid => {}
        Proof::Equal => println!("proved equal to the server's"),
        Proof::Repaired => println!("the copy differed from the server's, and was repaired"),
        Proof::Unequal(tables) => {
            return Err(format!("the copy of {} still differs from the server's", tables.join(", ")).into());
        }
    }
    Ok(())
}

fn left(store: &Store, forget: bool) -> Done {
    let mut out = std::io::stdout().lock();
    for edit in store.left()? {
        let LeftEdit { table, key, operation, columns } = edit;
        let line = serde_json::json!({ "table": table, "key": key, "edit": operation, "columns": columns });
        writeln!(out, "{line}")?;
    }
    out.flush()?;
    if forget {
        store.forget_left()?;
    }
    Ok(())
}

fn status(store: &Store) -> Done {
    println!("server\t{}", store.server()?.unwrap_or_else(|| "none".into()));
    match store.who()? {
        Some((email, device)) => println!("user\t{email}, device {device:?}"),
        None => println!("user\tnot logged in"),
    }
    if let Some(owner) = store.owner()? {
        println!("owner\t{owner}");
    }
    println!("last sync\t{}", store.last_sync()?.unwrap_or_else(|| "never".into()));
    println!("cursor\t{}", store.cursor()?.map_or_else(|| "none".into(), |cursor| cursor.to_string()));
    let waiting = store.pending()?;
    println!("waiting\t{} added, {} edited, {} deleted", waiting.added, waiting.edited, waiting.deleted);
    if let Some(sending) = store.outstanding()? {
        let rows = sending.sent.len();
        println!("unanswered\t{rows} rows, which the server may have; the next sync will show");
    }
    let left = store.left()?.len();
    if left > 0 {
        println!("left\t{left} edits that were not sent before the membership ended: rollcall device left");
    }
    for (table, key, reason) in store.rejected()? {
        println!("rejected\t{table} {key}: {reason}");
    }
    Ok(())
}

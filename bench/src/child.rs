//! The measured processes: this executable, as a server or as a yardstick, or another build of the server;
//! and what the system reports about them. Each ends with its handle.

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

use super::Result;

/// Of `/proc/<pid>/stat`: the kernel counts CPU time for people in hundredths of a second, everywhere.
const TICKS_PER_S: f64 = 100.0;

/// A process that listens.
pub struct Listening {
    // Dropped with this: killed by its own id, and waited for by the runtime.
    child: Child,
    pub address: SocketAddr,
    /// The time from its start until it printed its address.
    pub started_in: Duration,
}

/// The system's figures of a process.
#[derive(Clone, Copy, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct Usage {
    /// CPU time since its start, s; in steps of 10 ms.
    pub cpu_s: f64,
    /// Most memory it ever had, bytes.
    pub rss_peak: u64,
    /// Memory it has now, bytes.
    pub rss: u64,
}

/// The argument that makes this executable the server.
pub const AS_SERVER: &str = "rollcall";

/// The server: an executable, or this one.
fn server(program: Option<&Path>, args: &[String]) -> Result<Command> {
    match program {
        Some(program) => Ok(bare(program, args)),
        None => this(&[&[AS_SERVER.to_owned()], args].concat()),
    }
}

fn this(args: &[String]) -> Result<Command> {
    Ok(bare(&std::env::current_exe()?, args))
}

/// An executable with these arguments, and with none of the settings that the environment may hold.
fn bare(program: &Path, args: &[String]) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("ROLLCALL_") {
            command.env_remove(name);
        }
    }
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
    command
}

/// The arguments of a server, except its database.
fn serve(folder: &Path, log_filter: &str) -> Result<Vec<String>> {
    let schema = folder.join("schema.toml");
    std::fs::write(&schema, super::dataset::SCHEMA)?;
    Ok(vec![
        "serve".to_owned(),
        format!("--schema={}", schema.display()),
        "--listen=127.0.0.1:0".into(),
        format!("--log={log_filter}"),
        // All devices of the benchmark come from one address.
        "--connections-per-address-max=4096".into(),
    ])
}

/// Where a database's address goes that may hold a password: everybody on the machine can read arguments.
const DATABASE: &str = "ROLLCALL_DATABASE";

impl Listening {
    /// Starts it and waits until it listens. Its log goes into a file, as that of a server in use would.
    async fn spawned(mut command: Command, log: &Path) -> Result<Self> {
        let began = Instant::now();
        let mut child = command.stderr(File::create(log)?).spawn()?;
        let stdout = child.stdout.take().ok_or("no standard output")?;
        let line = BufReader::new(stdout).lines().next_line().await?.unwrap_or_default();
        let started_in = began.elapsed();
        match line.strip_prefix("listening on http://").map(str::parse) {
            Some(Ok(address)) => Ok(Self { child, address, started_in }),
            _ => {
                let _ = child.kill().await;
                let said = std::fs::read_to_string(log).unwrap_or_default();
                Err(format!("the server does not start: {line}{said}").into())
            }
        }
    }

    /// The server itself, over a database.
    pub async fn server(
        program: Option<&Path>,
        database: &Path,
        folder: &Path,
        log_filter: &str,
    ) -> Result<Self> {
        let mut args = serve(folder, log_filter)?;
        args.push(format!("--database=sqlite:{}", database.display()));
        Self::spawned(server(program, &args)?, &folder.join("server.log")).await
    }

    /// One of several servers over a PostgreSQL database.
    pub async fn replica(
        program: Option<&Path>,
        url: &str,
        folder: &Path,
        log_filter: &str,
        place: u64,
    ) -> Result<Self> {
        let mut command = server(program, &serve(folder, log_filter)?)?;
        command.env(DATABASE, url);
        Self::spawned(command, &folder.join(format!("server-{place}.log"))).await
    }

    /// Fixed bytes behind the server's own accept loop.
    pub async fn fixed(folder: &Path, log_filter: &str) -> Result<Self> {
        let args = ["yardstick".to_owned(), "fixed".into(), format!("--log={log_filter}")];
        Self::spawned(this(&args)?, &folder.join("fixed.log")).await
    }

    /// The system's present figures of it.
    pub fn usage(&self) -> Usage {
        self.child.id().map(|id| usage(&id.to_string())).unwrap_or_default()
    }

    /// From now on its most memory is counted anew: a start takes more than some requests, for passwords.
    pub fn forget_peak(&self) {
        if let Some(id) = self.child.id() {
            // Where the system cannot, the peak of the start stays in the figure.
            let _ = std::fs::write(format!("/proc/{id}/clear_refs"), "5");
        }
    }

    /// Ends it.
    pub async fn end(mut self) -> Result<()> {
        self.child.kill().await?;
        Ok(())
    }
}

/// What a yardstick measured of itself.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub struct Yield {
    /// How long each piece of work took, s.
    pub seconds: Vec<f64>,
    pub rows: u64,
    pub bytes: u64,
    pub usage: Usage,
}

/// Runs a yardstick to its end; over a PostgreSQL database, if it takes one.
pub async fn yardstick(args: Vec<String>, url: Option<&str>) -> Result<Yield> {
    let args: Vec<String> = std::iter::once("yardstick".to_owned()).chain(args).collect();
    let mut command = this(&args)?;
    url.iter().for_each(|url| {
        command.env(DATABASE, url);
    });
    let child = command.stderr(Stdio::piped()).spawn()?;
    let ended = child.wait_with_output().await?;
    if !ended.status.success() {
        return Err(format!("the yardstick failed: {}", String::from_utf8_lossy(&ended.stderr)).into());
    }
    Ok(serde_json::from_slice(&ended.stdout)?)
}

/// The system's figures of a process, `self` or its id; nothing without `/proc`.
pub fn usage(process: &str) -> Usage {
    let read = |file: &str| std::fs::read_to_string(format!("/proc/{process}/{file}")).unwrap_or_default();
    let stat = read("stat");
    // The name is in parentheses and may contain anything.
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let fields: Vec<&str> = after_name.split_whitespace().collect();
    let ticks = |place: usize| fields.get(place).and_then(|field| field.parse::<f64>().ok()).unwrap_or(0.0);
    let status = read("status");
    let kib = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0)
    };
    Usage {
        cpu_s: (ticks(11) + ticks(12)) / TICKS_PER_S,
        rss_peak: kib("VmHWM:") * 1_024,
        rss: kib("VmRSS:") * 1_024,
    }
}

/// A folder of this run; gone with its handle, whatever is in it.
pub struct Scratch(PathBuf);

impl Scratch {
    pub fn new(within: &Path) -> Result<Self> {
        let path = within.join(format!("rollcall-bench-{}", uuid::Uuid::now_v7().simple()));
        std::fs::create_dir_all(&path)?;
        Ok(Self(path))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

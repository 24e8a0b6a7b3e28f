//! Poolers in transaction mode: PgBouncer if installed, and one of the tests' own that uses another
//! connection for each transaction, which PgBouncer does only by chance.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::{Arc, LazyLock, Mutex, Weak};
use std::time::{Duration, Instant};

use postgres::Config;
use postgres::config::Host;

use crate::pg;
use crate::pg_line::Stream;

/// The pooler that the tests of this process go through: `rotating` or `pgbouncer`.
pub fn wanted() -> Option<String> {
    std::env::var("ROLLCALL_TEST_POOLER").ok()
}

/// The way to a database through a pooler.
pub struct Way {
    pub url: String,
    /// Its connections end with it.
    _free: Option<Arc<Free>>,
}

impl Way {
    pub fn to(url: String) -> Self {
        Self { url, _free: None }
    }
}

/// A database by way of that pooler.
pub fn way(pooler: &str, url: &str) -> Way {
    let server: Config = url.parse().unwrap();
    let (user, name) = (server.get_user().unwrap(), server.get_dbname().unwrap());
    let (address, free) = match pooler {
        "rotating" => {
            let free = Arc::<Free>::default();
            (rotating(server.clone(), Arc::downgrade(&free)), Some(free))
        }
        "pgbouncer" => {
            static PORT: LazyLock<(u16, Mutex<Child>)> = LazyLock::new(bouncer);
            (format!("127.0.0.1:{}", PORT.0), None)
        }
        other => panic!("there is no pooler {other:?}"),
    };
    Way { url: format!("postgres://{user}@{address}/{name}"), _free: free }
}

/// Connections that are free before one is used again.
const FREE_MIN: usize = 3;

/// A connection to the server, and what the server reported about itself at the start.
struct Backend {
    stream: Stream,
    greeting: Vec<u8>,
}

type Free = Mutex<VecDeque<Backend>>;

fn rotating(server: Config, free: Weak<Free>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let (server, free) = (server.clone(), Weak::clone(&free));
            std::thread::spawn(move || {
                // Its clients come and go.
                let _ = serve(client, &server, &free);
            });
        }
    });
    address
}

fn serve(client: TcpStream, server: &Config, free: &Weak<Free>) -> io::Result<()> {
    client.set_nodelay(true)?;
    let mut client = Stream::Tcp(client);
    let startup = client.startup()?;
    if startup.windows(8).any(|word| word == b"options\0") {
        let refusal = b"SFATAL\0C08P01\0Munsupported startup parameter: options\0\0";
        return client.write_all(&message(b'E', refusal));
    }
    let first = connect(server)?;
    client.write_all(&first.greeting)?;
    let put_back = |backend| {
        if let Some(free) = free.upgrade() {
            let mut free = free.lock().unwrap();
            free.push_back(backend);
            if free.len() > FREE_MIN {
                free.pop_front();
            }
        }
    };
    put_back(first);
    let mut held: Option<Backend> = None;
    loop {
        let mut unit = Vec::new();
        loop {
            let message = client.message()?;
            unit.extend_from_slice(&message);
            match message[0] {
                b'X' => return Ok(()),
                b'Q' | b'S' => break,
                _ => {}
            }
        }
        let mut backend = match held.take() {
            Some(backend) => backend,
            None => {
                let rested = free.upgrade().and_then(|free| {
                    let mut free = free.lock().unwrap();
                    if free.len() < FREE_MIN { None } else { free.pop_front() }
                });
                rested.map_or_else(|| connect(server), Ok)?
            }
        };
        backend.stream.write_all(&unit)?;
        let ended = loop {
            let message = backend.stream.message()?;
            client.write_all(&message)?;
            if message[0] == b'Z' {
                break message[5] == b'I';
            }
        };
        if ended {
            put_back(backend);
        } else {
            held = Some(backend);
        }
    }
}

fn connect(server: &Config) -> io::Result<Backend> {
    let mut stream = Stream::to(server)?;
    let (user, name) = (server.get_user().unwrap(), server.get_dbname().unwrap());
    let asked = format!("user\0{user}\0database\0{name}\0client_encoding\0UTF8\0\0");
    let length = u32::try_from(asked.len() + 8).unwrap().to_be_bytes();
    stream.write_all(&[&length[..], &[0, 3, 0, 0], asked.as_bytes()].concat())?;
    let mut greeting = Vec::new();
    loop {
        let message = stream.message()?;
        assert_ne!(message[0], b'E', "{}", String::from_utf8_lossy(&message));
        greeting.extend_from_slice(&message);
        if message[0] == b'Z' {
            return Ok(Backend { stream, greeting });
        }
    }
}

fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).unwrap().to_be_bytes();
    [&[kind][..], &length, body].concat()
}

/// Where PgBouncer is, if it is here.
pub fn bouncer_program() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Not every user has Debian's folder for it in the PATH.
    let folders = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]);
    folders.map(|folder| folder.join("pgbouncer")).find(|program| program.is_file())
}

/// Starts PgBouncer in front of this process's cluster; it ends with the process.
fn bouncer() -> (u16, Mutex<Child>) {
    let server: Config = pg::cluster().unwrap().database().url.parse().unwrap();
    let host = match server.get_hosts().first() {
        Some(Host::Unix(folder)) => folder.display().to_string(),
        Some(Host::Tcp(name)) => name.clone(),
        None => panic!("the server is nowhere"),
    };
    let (user, port) = (server.get_user().unwrap(), server.get_ports().first().copied().unwrap_or(5432));
    let own = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let folder = tempfile::Builder::new().prefix("rcbouncer").tempdir().unwrap().keep();
    let settings = format!(
        "[databases]\n* = host={host} port={port} user={user}\n[pgbouncer]\nlisten_addr = 127.0.0.1\n\
         listen_port = {own}\nunix_socket_dir =\nauth_type = any\npool_mode = transaction\n\
         max_client_conn = 1000\ndefault_pool_size = 4\n"
    );
    let file = folder.join("pgbouncer.ini");
    std::fs::write(&file, settings).unwrap();
    let user = pg::unprivileged(&folder);
    for path in [&folder, &file] {
        pg::give(path, user);
    }
    let mut command = pg::kept(&bouncer_program().unwrap(), &folder);
    command.arg(&file).env("REMOVED", &folder).stderr(Stdio::null());
    pg::as_user(&mut command, user);
    let keeper = command.spawn().unwrap();
    let begun = Instant::now();
    while TcpStream::connect(("127.0.0.1", own)).is_err() {
        assert!(begun.elapsed() < Duration::from_secs(30), "PgBouncer does not start");
        std::thread::sleep(Duration::from_millis(20));
    }
    (own, Mutex::new(keeper))
}

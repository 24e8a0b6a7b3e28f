//! A line between rollcall and PostgreSQL that knows where one message ends and the next begins, and disturbs what
//! passes as a test wishes. Errors come from PostgreSQL itself, so that its session is as after any other error.
use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use postgres::Config;
use postgres::config::Host;

/// What happens to one statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// PostgreSQL responds with an error of that code.
    Error(&'static str),
    /// The connection breaks, and PostgreSQL never sees it.
    LostBefore,
    /// PostgreSQL executes it, and the connection breaks before its response.
    LostAfter,
    /// The connection breaks, and PostgreSQL sees it a while later.
    Late,
    /// PostgreSQL executes it, and reports an error of that code nevertheless, as a cluster may for a COMMIT.
    ErrorAfter(&'static str),
    /// PostgreSQL ends the session, as it does when it is stopped.
    Terminated,
}

/// A line to a PostgreSQL, with a port of its own.
pub struct Line {
    url: String,
    shared: Arc<Shared>,
}

struct Shared {
    server: Config,
    plan: Mutex<Plan>,
    /// Connections that were made over the line.
    connections: AtomicUsize,
    /// Statements that ran over it.
    statements: AtomicUsize,
}

/// A statement that met with a fault.
#[derive(Clone, Debug)]
pub struct Struck {
    pub sql: String,
    /// Whether it was in a transaction that only reads.
    pub reading: bool,
}

#[derive(Default)]
struct Plan {
    fault: Option<Fault>,
    /// Statements until it strikes.
    left: usize,
    /// The statement that it struck.
    struck: Option<Struck>,
    /// Bytes in PostgreSQL's responses, and the bytes of the same length that the client reads instead.
    replaced: Option<(Vec<u8>, Vec<u8>)>,
}

impl Line {
    /// A line to the database that `url` names.
    pub fn to(url: &str) -> Self {
        let server: Config = url.parse().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let user = server.get_user().unwrap();
        let password = server.get_password().map(|text| format!(":{}", String::from_utf8_lossy(text)));
        let name = server.get_dbname().unwrap();
        let url = format!("postgres://{user}{}@{address}/{name}", password.unwrap_or_default());
        let shared = Arc::new(Shared {
            server,
            plan: Mutex::default(),
            connections: AtomicUsize::new(0),
            statements: AtomicUsize::new(0),
        });
        let lines = Arc::clone(&shared);
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let shared = Arc::clone(&lines);
                std::thread::spawn(move || {
                    // A line that breaks is what the tests are about.
                    let _ = shared.carry(client);
                });
            }
        });
        Self { url, shared }
    }

    /// The same database, over this line.
    pub fn url(&self) -> String {
        self.url.clone()
    }

    /// The statement of that number from now, counted from 1, meets with the fault.
    pub fn disturb(&self, fault: Fault, statement: usize) {
        let mut plan = self.shared.plan.lock().unwrap();
        *plan = Plan { fault: Some(fault), left: statement, ..Plan::default() };
    }

    /// How many connections were made over it.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// How many statements ran over it; to prepare one is none.
    pub fn statements(&self) -> usize {
        self.shared.statements.load(Ordering::SeqCst)
    }

    /// Replaces bytes in PostgreSQL's responses by others of the same length.
    pub fn replace(&self, bytes: &[u8], by: &[u8]) {
        assert_eq!(bytes.len(), by.len());
        self.shared.plan.lock().unwrap().replaced = Some((bytes.to_vec(), by.to_vec()));
    }

    /// Ends the disturbance; returns the statement that it affected.
    pub fn calm(&self) -> Option<Struck> {
        std::mem::take(&mut *self.shared.plan.lock().unwrap()).struck
    }
}

impl Shared {
    /// The fault that this statement meets with.
    fn strikes(&self, sql: &str, reading: bool) -> Option<Fault> {
        let mut plan = self.plan.lock().unwrap();
        let at_commit = |fault: &Fault| matches!(fault, Fault::Late | Fault::ErrorAfter(_));
        let fault = plan.fault.filter(|fault| !at_commit(fault) || sql == "COMMIT")?;
        // Notifications between servers are not part of a request.
        if plan.struck.is_some() || sql.starts_with("LISTEN") || sql.contains("pg_notify") {
            return None;
        }
        plan.left -= 1;
        if plan.left > 0 {
            return None;
        }
        plan.struck = Some(Struck { sql: sql.to_owned(), reading });
        Some(fault)
    }

    /// What the client reads in place of a response.
    fn read(&self, mut message: Vec<u8>) -> Vec<u8> {
        if let Some((bytes, by)) = &self.plan.lock().unwrap().replaced {
            for at in 0..message.len().saturating_sub(bytes.len() - 1) {
                if message[at..].starts_with(bytes) {
                    message[at..at + by.len()].copy_from_slice(by);
                }
            }
        }
        message
    }

    fn carry(self: Arc<Self>, client: TcpStream) -> io::Result<()> {
        client.set_nodelay(true)?;
        let mut client = Stream::Tcp(client);
        let server = Stream::to(&self.server)?;
        let startup = client.startup()?;
        self.connections.fetch_add(1, Ordering::SeqCst);
        let mut to_server = server.again()?;
        to_server.write_all(&startup)?;
        let silent = Arc::new(AtomicBool::new(false));
        let (mut answers, mut asks, is_silent) = (server, client.again()?, Arc::clone(&silent));
        let shared = Arc::clone(&self);
        std::thread::spawn(move || {
            while let Ok(message) = answers.message() {
                let said = !is_silent.load(Ordering::SeqCst);
                let ends = message[0] == b'Z';
                if said && asks.write_all(&shared.read(message)).is_err() || !said && ends {
                    break;
                }
            }
            asks.end();
            answers.end();
        });
        let ended = self.ask(&mut client, &mut to_server, &silent);
        client.end();
        to_server.end();
        ended
    }

    /// Passes statements on until the connection ends.
    fn ask(&self, client: &mut Stream, server: &mut Stream, silent: &AtomicBool) -> io::Result<()> {
        let (mut prepared, mut unit, mut sql) = (HashMap::new(), Vec::new(), None);
        let mut reading = false;
        loop {
            let message = client.message()?;
            let text = |from: usize| {
                let end = message[from..].iter().position(|byte| *byte == 0).map_or(from, |at| from + at);
                (String::from_utf8_lossy(&message[from..end]).into_owned(), end + 1)
            };
            match message[0] {
                b'Q' => {
                    sql = Some(text(5).0);
                    self.statements.fetch_add(1, Ordering::SeqCst);
                }
                b'P' => {
                    let (name, from) = text(5);
                    let asked = text(from).0;
                    prepared.insert(name, asked.clone());
                    sql = Some(asked);
                }
                b'B' => {
                    let (_, from) = text(5);
                    sql = prepared.get(&text(from).0).cloned();
                    let is_news = sql.as_ref().is_some_and(|sql| sql.contains("pg_notify"));
                    self.statements.fetch_add(usize::from(!is_news), Ordering::SeqCst);
                }
                _ => {}
            }
            unit.extend_from_slice(&message);
            // A message that ends a statement, or is complete in itself.
            if !matches!(message[0], b'Q' | b'S' | b'p' | b'X' | b'd' | b'c' | b'f') {
                continue;
            }
            let asked = sql.take();
            match asked.as_deref() {
                Some(sql) if sql.starts_with("BEGIN") => reading = sql.contains("READ ONLY"),
                Some("COMMIT" | "ROLLBACK") => reading = false,
                _ => {}
            }
            let fault = asked.as_deref().and_then(|sql| self.strikes(sql, reading));
            match (fault, asked) {
                (None, _) => server.write_all(&unit)?,
                (Some(Fault::LostBefore), _) => return Ok(()),
                (Some(Fault::LostAfter), _) => {
                    silent.store(true, Ordering::SeqCst);
                    server.write_all(&unit)?;
                    // The other thread ends the connection.
                    while client.message().is_ok() {}
                    return Ok(());
                }
                (Some(Fault::Late), _) => {
                    silent.store(true, Ordering::SeqCst);
                    client.end();
                    std::thread::sleep(Duration::from_millis(150));
                    server.write_all(&unit)?;
                    std::thread::sleep(Duration::from_millis(150));
                    return Ok(());
                }
                (Some(Fault::Error(code)), asked) => {
                    server.write_all(&failing(code, &asked.unwrap_or_default()))?
                }
                (Some(Fault::ErrorAfter(code)), asked) => {
                    server.write_all(&query(&format!("{}; {}", asked.unwrap_or_default(), raise(code))))?;
                }
                (Some(Fault::Terminated), _) => {
                    let ended =
                        "DO $$ BEGIN PERFORM pg_terminate_backend(pg_backend_pid()), pg_sleep(9); END $$";
                    server.write_all(&query(ended))?;
                }
            }
            unit.clear();
        }
    }
}

/// A failing statement in place of another. One that ends a transaction ends it, failing or not.
fn failing(code: &str, sql: &str) -> Vec<u8> {
    let first = if matches!(sql, "COMMIT" | "ROLLBACK") { "ROLLBACK; " } else { "" };
    query(&format!("{first}{}", raise(code)))
}

fn raise(code: &str) -> String {
    format!("DO $$ BEGIN RAISE EXCEPTION 'made for the test' USING ERRCODE = '{code}'; END $$")
}

fn query(sql: &str) -> Vec<u8> {
    let length = u32::try_from(sql.len() + 5).unwrap().to_be_bytes();
    [b"Q", &length[..], sql.as_bytes(), &[0]].concat()
}

/// One end of a line.
pub enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Stream {
    /// A connection to the first host that is named.
    pub fn to(server: &Config) -> io::Result<Self> {
        let port = server.get_ports().first().copied().unwrap_or(5432);
        match server.get_hosts().first() {
            Some(Host::Unix(folder)) => {
                UnixStream::connect(folder.join(format!(".s.PGSQL.{port}"))).map(Self::Unix)
            }
            Some(Host::Tcp(name)) => {
                let stream = TcpStream::connect((name.as_str(), port))?;
                stream.set_nodelay(true)?;
                Ok(Self::Tcp(stream))
            }
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn again(&self) -> io::Result<Self> {
        match self {
            Self::Tcp(stream) => stream.try_clone().map(Self::Tcp),
            Self::Unix(stream) => stream.try_clone().map(Self::Unix),
        }
    }

    fn end(&self) {
        // It may have ended already.
        let _ = match self {
            Self::Tcp(stream) => stream.shutdown(Shutdown::Both),
            Self::Unix(stream) => stream.shutdown(Shutdown::Both),
        };
    }

    /// A client's first message, after requests for TLS or GSSAPI.
    pub fn startup(&mut self) -> io::Result<Vec<u8>> {
        loop {
            let message = self.piece(0)?;
            match message[4..8] {
                [4, 210, 22, 47 | 48] => self.write_all(b"N")?,
                _ => return Ok(message),
            }
        }
    }

    /// A message with its type, as all are but the first.
    pub fn message(&mut self) -> io::Result<Vec<u8>> {
        self.piece(1)
    }

    /// What begins with so many bytes and then its length.
    fn piece(&mut self, before: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; before + 4];
        self.read_exact(&mut bytes)?;
        let length = u32::from_be_bytes(bytes[before..].try_into().unwrap()) as usize;
        bytes.resize(before + length, 0);
        self.read_exact(&mut bytes[before + 4..])?;
        Ok(bytes)
    }
}

impl Read for Stream {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(bytes),
            Self::Unix(stream) => stream.read(bytes),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write(bytes),
            Self::Unix(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

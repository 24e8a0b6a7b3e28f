//! The program as its users meet it: the real binary as a process, and HTTP over a plain socket.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;

/// Far longer than anything here should take: a test that waits so long has found a hang.
pub const TOO_LONG: Duration = Duration::from_secs(60);

/// The executable, which cargo has built beside the tests.
pub fn program() -> PathBuf {
    let built = std::env::var_os("CARGO_BIN_EXE_rollcall").map(PathBuf::from);
    // Cargo does not tell a manually started test where the program is: two folders above the test.
    built.unwrap_or_else(|| {
        let test = std::env::current_exe().expect("a test knows where it is");
        test.parent().and_then(Path::parent).expect("it is in a folder").join("rollcall")
    })
}

/// The program, with only the flags of the test as settings.
pub fn rollcall() -> Command {
    let mut command = Command::new(program());
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("ROLLCALL_") {
            command.env_remove(name);
        }
    }
    command
}

/// A running program. Dropping it kills it.
pub struct Process {
    child: Child,
    lines: Receiver<String>,
    stderr: Option<JoinHandle<String>>,
}

/// A program that ended, and what it wrote beyond the lines that were read before.
#[derive(Debug)]
pub struct Ended {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Process {
    pub fn start(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let (result, lines) = channel();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                let _ = result.send(line);
            }
        });
        let mut errors = child.stderr.take().unwrap();
        let stderr = std::thread::spawn(move || {
            let mut text = Vec::new();
            let _ = errors.read_to_end(&mut text);
            String::from_utf8_lossy(&text).into_owned()
        });
        Self { child, lines, stderr: Some(stderr) }
    }

    /// The number that the system knows it by.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The next line of standard output; `None` at its end.
    pub fn line(&self) -> Option<String> {
        match self.lines.recv_timeout(TOO_LONG) {
            Ok(line) => Some(line),
            Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => None,
            Err(std::sync::mpsc::RecvTimeoutError::Timeout) => panic!("the program says nothing"),
        }
    }

    /// The server's address, once it has printed it.
    pub fn address(&mut self) -> SocketAddr {
        match self.line() {
            Some(line) => match line.strip_prefix("listening on http://") {
                Some(address) => address.parse().unwrap(),
                None => panic!("the server says {line:?}"),
            },
            None => panic!("the server does not start: {}", self.stderr()),
        }
    }

    /// Sends SIGTERM, by process id: other servers may run on the machine.
    pub fn terminate(&self) {
        let result = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status();
        assert!(result.unwrap().success(), "the server is gone already");
    }

    /// Sends it a signal, such as `-STOP`.
    pub fn signal(&self, name: &str) {
        let result = Command::new("kill").args([name, &self.child.id().to_string()]).status();
        assert!(result.unwrap().success(), "the server is gone already");
    }

    /// Stops it by SIGSTOP, and waits until none of its threads runs any more. On a busy machine they run on for a while
    /// after the signal was sent.
    pub fn freeze(&self) {
        self.signal("-STOP");
        let threads = format!("/proc/{}/task", self.child.id());
        let runs = |thread: std::io::Result<std::fs::DirEntry>| {
            let stat = thread.and_then(|thread| std::fs::read_to_string(thread.path().join("stat")));
            // The state comes after the name, which is in brackets.
            stat.is_ok_and(|stat| stat.rsplit(") ").next().is_some_and(|rest| !rest.starts_with('T')))
        };
        let until = Instant::now() + TOO_LONG;
        // Other systems have no such folder.
        while std::fs::read_dir(&threads).is_ok_and(|mut threads| threads.any(runs)) {
            assert!(Instant::now() < until, "the server does not stop");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Sends SIGKILL; returns what it logged.
    pub fn kill(mut self) -> String {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.stderr()
    }

    /// Waits for its end.
    pub fn wait(mut self) -> Ended {
        let (result, ended) = channel();
        let waited = std::thread::scope(|scope| {
            let id = self.child.id();
            scope.spawn(move || {
                if ended.recv_timeout(TOO_LONG).is_err() {
                    let _ = Command::new("kill").args(["-KILL", &id.to_string()]).status();
                }
            });
            let status = self.child.wait().unwrap();
            let _ = result.send(());
            status
        });
        let stdout: Vec<String> = self.lines.iter().collect();
        Ended { status: waited, stdout: stdout.join("\n"), stderr: self.stderr() }
    }

    fn stderr(&mut self) -> String {
        self.stderr.take().map(|read| read.join().unwrap()).unwrap_or_default()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One HTTP connection, kept open.
pub struct Client {
    stream: BufReader<TcpStream>,
}

/// A complete response.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Client {
    pub fn connect(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, TOO_LONG)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(TOO_LONG))?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// Sends a request. `headers` are whole lines; `body` is JSON.
    pub fn send(&mut self, request: &str, headers: &[String], body: Option<&str>) -> io::Result<()> {
        let mut text = format!("{request} HTTP/1.1\r\nhost: rollcall\r\n");
        for header in headers {
            text.push_str(header);
            text.push_str("\r\n");
        }
        if let Some(body) = body {
            text.push_str(&format!("content-type: application/json\r\ncontent-length: {}\r\n", body.len()));
        }
        text.push_str("\r\n");
        text.push_str(body.unwrap_or_default());
        self.stream.get_mut().write_all(text.as_bytes())
    }

    /// Sends what belongs to a request that was begun.
    pub fn send_raw(&mut self, text: &str) -> io::Result<()> {
        self.stream.get_mut().write_all(text.as_bytes())
    }

    /// Waits until the server invites the body.
    pub fn wait_for_continue(&mut self) {
        for expected in ["HTTP/1.1 100 Continue\r\n", "\r\n"] {
            let mut line = String::new();
            self.stream.read_line(&mut line).unwrap();
            assert_eq!(line, expected);
        }
    }

    /// Reads the response.
    pub fn answer(&mut self) -> io::Result<Answer> {
        let cut = || io::Error::from(io::ErrorKind::UnexpectedEof);
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        let status = line.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or_else(cut)?;
        let mut headers = Vec::new();
        loop {
            let mut line = String::new();
            if self.stream.read_line(&mut line)? == 0 {
                return Err(cut());
            }
            match line.trim_end().split_once(':') {
                Some((name, value)) => headers.push((name.to_ascii_lowercase(), value.trim().to_owned())),
                None => break,
            }
        }
        let mut answer = Answer { status, headers, body: Vec::new() };
        if status != 204 && status != 304 {
            match answer.header("content-length") {
                Some(length) => answer.body = self.bytes(length.parse().unwrap())?,
                None => answer.body = self.chunks()?,
            }
        }
        Ok(answer)
    }

    fn bytes(&mut self, length: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// Reads a body that comes in chunks.
    fn chunks(&mut self) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let mut line = String::new();
            self.stream.read_line(&mut line)?;
            let length = usize::from_str_radix(line.trim_end(), 16).expect("neither a length nor chunks");
            body.append(&mut self.bytes(length)?);
            self.bytes(2)?;
            if length == 0 {
                return Ok(body);
            }
        }
    }

    pub fn call(&mut self, request: &str, headers: &[String], body: Option<&str>) -> io::Result<Answer> {
        self.send(request, headers, body)?;
        self.answer()
    }
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// A header that is a number.
    pub fn number(&self, name: &str) -> u64 {
        self.header(name).unwrap_or_else(|| panic!("no {name} in {self:?}")).parse().unwrap()
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }
}

/// One request on a connection of its own. It must get a response.
pub fn call(address: SocketAddr, request: &str, token: Option<&str>, body: Option<&Value>) -> Answer {
    let headers: Vec<_> = token.map(bearer).into_iter().collect();
    let body = body.map(Value::to_string);
    Client::connect(address).unwrap().call(request, &headers, body.as_deref()).unwrap()
}

/// The header line that a token goes in.
pub fn bearer(token: &str) -> String {
    format!("authorization: Bearer {token}")
}

/// Logs a device in; returns its token.
pub fn log_in(address: SocketAddr, email: &str, password: &str, device: &str) -> String {
    let body = serde_json::json!({ "email": email, "password": password, "device": device });
    let answer = call(address, "POST /login", None, Some(&body));
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()["token"].as_str().unwrap().to_owned()
}

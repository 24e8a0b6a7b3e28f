//! A lean HTTP/1.1 client: it shares the machine with the server, so its own cost reduces the server's speed.
//! Requests are prepared bytes; of a response only the measured parts are read.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::Result;

/// One kept connection.
pub struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
    begin: usize,
    end: usize,
}

/// The measured parts of a response.
#[derive(Debug, Default)]
pub struct Answer {
    pub status: u16,
    /// Bytes of the whole response, including the head.
    pub bytes: u64,
    /// Of the body alone.
    pub body_bytes: u64,
    /// The body, if requested.
    pub body: Vec<u8>,
    pub etag: Option<String>,
    /// The path and query of the next page.
    pub next: Option<String>,
    pub version: Option<u64>,
    length: Option<usize>,
    chunked: bool,
}

/// What a connection did.
#[derive(Debug, Default)]
pub struct Talk {
    pub latencies: Vec<Duration>,
    pub bytes_up: u64,
    pub bytes_down: u64,
}

/// A request without a body.
pub fn get(path: &str, token: &str, headers: &[String]) -> Bytes {
    request("GET", path, token, headers, &[])
}

/// A request with JSON.
pub fn post(path: &str, token: &str, body: &[u8]) -> Bytes {
    let headers = ["content-type: application/json".to_owned(), format!("content-length: {}", body.len())];
    request("POST", path, token, &headers, body)
}

fn request(method: &str, path: &str, token: &str, headers: &[String], body: &[u8]) -> Bytes {
    let mut text = format!("{method} {path} HTTP/1.1\r\nhost: bench\r\nauthorization: Bearer {token}\r\n");
    for header in headers {
        text.push_str(header);
        text.push_str("\r\n");
    }
    text.push_str("\r\n");
    [text.as_bytes(), body].concat().into()
}

impl Connection {
    pub async fn open(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: vec![0; 128 * 1024], begin: 0, end: 0 })
    }

    /// Sends a request and reads its response to the end; the body is kept if `keep` is set.
    pub async fn call(&mut self, request: &[u8], keep: bool) -> Result<Answer> {
        self.stream.write_all(request).await?;
        let mut answer = self.head().await?;
        let before = answer.bytes;
        if answer.chunked {
            self.chunks(&mut answer, keep).await?;
        } else if let Some(length) = answer.length {
            self.take(&mut answer, length, keep).await?;
            answer.body_bytes = answer.bytes - before;
        }
        Ok(answer)
    }

    /// The same, for a response that must have that status.
    pub async fn good(&mut self, request: &[u8], status: u16, keep: bool) -> Result<Answer> {
        let answer = self.call(request, keep).await?;
        if answer.status == status {
            return Ok(answer);
        }
        let asked = String::from_utf8_lossy(&request[..request.len().min(60)]).into_owned();
        let asked = asked.lines().next().unwrap_or_default().to_owned();
        // Sent again only to learn the reason.
        let result = self.call(request, true).await?;
        let words = String::from_utf8_lossy(&result.body[..result.body.len().min(400)]).into_owned();
        Err(format!("{asked}: {} instead of {status}: {words}", answer.status).into())
    }

    async fn fill(&mut self) -> Result<()> {
        if self.begin == self.end {
            (self.begin, self.end) = (0, 0);
        } else if self.end == self.buffer.len() {
            self.buffer.copy_within(self.begin..self.end, 0);
            (self.begin, self.end) = (0, self.end - self.begin);
        }
        let read = self.stream.read(&mut self.buffer[self.end..]).await?;
        if read == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        self.end += read;
        Ok(())
    }

    async fn head(&mut self) -> Result<Answer> {
        let mut looked_at = 0;
        loop {
            let held = &self.buffer[self.begin..self.end];
            let from = looked_at.min(held.len());
            if let Some(at) = held[from..].windows(4).position(|four| four == b"\r\n\r\n") {
                let length = from + at + 4;
                let answer = read_head(&held[..length])?;
                self.begin += length;
                return Ok(answer);
            }
            looked_at = held.len().saturating_sub(3);
            self.fill().await?;
        }
    }

    async fn take(&mut self, answer: &mut Answer, mut length: usize, keep: bool) -> Result<()> {
        while length > 0 {
            if self.begin == self.end {
                self.fill().await?;
            }
            let part = length.min(self.end - self.begin);
            if keep {
                answer.body.extend_from_slice(&self.buffer[self.begin..self.begin + part]);
            }
            self.begin += part;
            answer.bytes += part as u64;
            length -= part;
        }
        Ok(())
    }

    async fn chunks(&mut self, answer: &mut Answer, keep: bool) -> Result<()> {
        loop {
            let line = self.line(answer).await?;
            let size = usize::from_str_radix(line.split(';').next().unwrap_or_default().trim(), 16)?;
            self.take(answer, size, keep).await?;
            answer.body_bytes += size as u64;
            self.line(answer).await?;
            if size == 0 {
                return Ok(());
            }
        }
    }

    /// A line of the chunked coding, without its end.
    async fn line(&mut self, answer: &mut Answer) -> Result<String> {
        loop {
            let held = &self.buffer[self.begin..self.end];
            if let Some(at) = held.iter().position(|byte| *byte == b'\n') {
                let line = String::from_utf8_lossy(&held[..at]).trim_end().to_owned();
                self.begin += at + 1;
                answer.bytes += at as u64 + 1;
                return Ok(line);
            }
            self.fill().await?;
        }
    }
}

fn read_head(head: &[u8]) -> Result<Answer> {
    let text = std::str::from_utf8(head)?;
    let mut lines = text.split("\r\n");
    let status = lines.next().and_then(|line| line.get(9..12)?.parse().ok());
    let mut answer =
        Answer { status: status.ok_or("not an HTTP answer")?, bytes: head.len() as u64, ..Answer::default() };
    for line in lines {
        let Some((name, value)) = line.split_once(':') else { continue };
        let value = value.trim();
        match name {
            "content-length" => answer.length = Some(value.parse()?),
            "transfer-encoding" => answer.chunked = value.eq_ignore_ascii_case("chunked"),
            "etag" => answer.etag = Some(value.to_owned()),
            "sync-version" => answer.version = value.parse().ok(),
            "link" => {
                let target = value.strip_prefix('<').and_then(|rest| rest.split_once('>'));
                answer.next = target.map(|(query, _)| format!("/fetch{query}"));
            }
            _ => {}
        }
    }
    if answer.status == 304 || answer.status == 204 {
        answer.length = None;
    }
    Ok(answer)
}

/// Sends requests over one connection until `next` returns none; it receives the previous response.
pub async fn talk(
    mut connection: Connection,
    status: u16,
    mut next: impl FnMut(Option<&Answer>) -> Option<Bytes>,
) -> Result<Talk> {
    let mut talk = Talk::default();
    let mut before = None;
    while let Some(request) = next(before.as_ref()) {
        let sent = Instant::now();
        let answer = connection.good(&request, status, false).await?;
        talk.latencies.push(sent.elapsed());
        talk.bytes_up += request.len() as u64;
        talk.bytes_down += answer.bytes;
        before = Some(answer);
    }
    Ok(talk)
}

/// All connections' talks, begun at once; with the time until the last one ended.
pub async fn talk_at_once<N>(address: SocketAddr, status: u16, each: Vec<N>) -> Result<(Talk, Duration)>
where
    N: FnMut(Option<&Answer>) -> Option<Bytes> + Send + 'static,
{
    talk_over(&[address], status, each).await
}

/// The same, over several servers in turn.
pub async fn talk_over<N>(addresses: &[SocketAddr], status: u16, each: Vec<N>) -> Result<(Talk, Duration)>
where
    N: FnMut(Option<&Answer>) -> Option<Bytes> + Send + 'static,
{
    let mut connections = Vec::new();
    for (_, address) in each.iter().zip(addresses.iter().cycle()) {
        connections.push(Connection::open(*address).await?);
    }
    let began = Instant::now();
    let mut talks = tokio::task::JoinSet::new();
    for (connection, next) in connections.into_iter().zip(each) {
        talks.spawn(talk(connection, status, next));
    }
    let mut all = Talk::default();
    while let Some(ended) = talks.join_next().await {
        let talk = ended??;
        all.latencies.extend(talk.latencies);
        all.bytes_up += talk.bytes_up;
        all.bytes_down += talk.bytes_down;
    }
    Ok((all, began.elapsed()))
}

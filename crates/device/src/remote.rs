//! The way to the server. Everything above it works over any [`Remote`]: tests and simulations need no socket.

use std::time::Duration;

use ureq::http;

/// One request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// `GET`, `POST` or `DELETE`.
    pub method: &'static str,
    /// With its query, without a slash in front: `fetch?page=…`.
    pub path: String,
    /// Names in lower case.
    pub headers: Vec<(&'static str, String)>,
    /// JSON.
    pub body: Option<Vec<u8>>,
}

/// One answer, whatever its status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// As HTTP has it.
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    /// JSON, or nothing.
    pub body: Vec<u8>,
}

impl Answer {
    /// The value of a header; `name` in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// There was no answer. Whether the server has seen the request cannot be known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the server cannot be reached: {0}")]
pub struct NoAnswer(pub String);

/// Takes a request to the server.
pub trait Remote {
    /// Sends one request and waits for its answer. Neither repeats nor interprets anything.
    fn ask(&mut self, request: &Request) -> Result<Answer, NoAnswer>;
}

/// Longer than a request may take on the server (30 s) after the longest wait for the lock (20 s).
const ANSWER_S: u64 = 75;
const CONNECT_S: u64 = 10;
/// Largest answer, bytes: a page of the roll call has some 4 MB, 5,000 large rows have more.
const ANSWER_BYTES_MAX: u64 = 1 << 30;

/// A server by its URL.
pub struct Http {
    url: String,
    agent: ureq::Agent,
}

impl Http {
    /// The server at `url`, such as `https://sync.example.com`.
    pub fn new(url: &str) -> Self {
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_connect(Some(Duration::from_secs(CONNECT_S)))
            .timeout_global(Some(Duration::from_secs(ANSWER_S)))
            // The token must not follow a redirect to wherever.
            .max_redirects(0)
            .user_agent(concat!("rollcall-device/", env!("CARGO_PKG_VERSION")))
            .build()
            .new_agent();
        Self { url: url.trim_end_matches('/').to_owned(), agent }
    }
}

impl Remote for Http {
    fn ask(&mut self, request: &Request) -> Result<Answer, NoAnswer> {
        let failed = |error: &dyn std::fmt::Display| NoAnswer(error.to_string());
        let mut asked =
            http::Request::builder().method(request.method).uri(format!("{}/{}", self.url, request.path));
        for (name, value) in &request.headers {
            asked = asked.header(*name, value);
        }
        let answer = match &request.body {
            Some(body) => {
                let asked = asked.header("content-type", "application/json").body(body.as_slice());
                self.agent.run(asked.map_err(|error| failed(&error))?)
            }
            None => self.agent.run(asked.body(()).map_err(|error| failed(&error))?),
        };
        let mut answer = answer.map_err(|error| failed(&error))?;
        let headers = answer
            .headers()
            .iter()
            .filter_map(|(name, value)| Some((name.as_str().to_owned(), value.to_str().ok()?.to_owned())));
        let (status, headers) = (answer.status().as_u16(), headers.collect());
        let body = answer.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_vec();
        Ok(Answer { status, headers, body: body.map_err(|error| failed(&error))? })
    }
}

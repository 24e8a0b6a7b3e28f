//! The transport to the server. Everything above it works with any [`Remote`]: tests and simulations need no
//! socket.

use std::time::Duration;

use ureq::http;

/// One request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// `GET`, `POST` or `DELETE`.
    pub method: &'static str,
    /// With its query, without a leading slash: `fetch?page=…`.
    pub path: String,
    /// Names in lower case.
    pub headers: Vec<(&'static str, String)>,
    /// JSON.
    pub body: Option<Vec<u8>>,
}

/// One response, whatever its status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// The HTTP status.
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    /// JSON, or nothing.
    pub body: Vec<u8>,
}

impl Response {
    /// The value of a header; `name` in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// No response arrived. It is unknown whether the server has seen the request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the server cannot be reached: {0}")]
pub struct NoResponse(pub String);

/// Sends requests to a server.
pub trait Remote {
    /// Sends one request and waits for its response. It neither repeats nor interprets anything.
    fn send(&mut self, request: &Request) -> Result<Response, NoResponse>;
}

/// Longer than a request may take on the server (30 s) after the longest wait for the lock (20 s).
const RESPONSE_TIMEOUT_S: u64 = 75;
const CONNECT_S: u64 = 10;
/// Largest response, bytes: a page of the manifest has some 4 MB, 5,000 large rows have more.
const RESPONSE_BYTES_MAX: u64 = 1 << 30;

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
            .timeout_global(Some(Duration::from_secs(RESPONSE_TIMEOUT_S)))
            // The token must not be sent to the target of a redirect.
            .max_redirects(0)
            .user_agent(concat!("rollcall-device/", env!("CARGO_PKG_VERSION")))
            .build()
            .new_agent();
        Self { url: url.trim_end_matches('/').to_owned(), agent }
    }
}

impl Remote for Http {
    fn send(&mut self, request: &Request) -> Result<Response, NoResponse> {
        let failed = |error: &dyn std::fmt::Display| NoResponse(error.to_string());
        let mut asked =
            http::Request::builder().method(request.method).uri(format!("{}/{}", self.url, request.path));
        for (name, value) in &request.headers {
            asked = asked.header(*name, value);
        }
        let response = match &request.body {
            Some(body) => {
                let asked = asked.header("content-type", "application/json").body(body.as_slice());
                self.agent.run(asked.map_err(|error| failed(&error))?)
            }
            None => self.agent.run(asked.body(()).map_err(|error| failed(&error))?),
        };
        let mut response = response.map_err(|error| failed(&error))?;
        let headers = response
            .headers()
            .iter()
            .filter_map(|(name, value)| Some((name.as_str().to_owned(), value.to_str().ok()?.to_owned())));
        let (status, headers) = (response.status().as_u16(), headers.collect());
        let body = response.body_mut().with_config().limit(RESPONSE_BYTES_MAX).read_to_vec();
        Ok(Response { status, headers, body: body.map_err(|error| failed(&error))? })
    }
}

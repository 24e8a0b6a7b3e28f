//! The limits of the accept loop and of the layers, checked once at start.

use std::net::IpAddr;
use std::time::Duration;

use http::header::{HeaderName, ORIGIN};
use http::{HeaderMap, HeaderValue, Uri};

use crate::config::{Network, Secret, Settings};
use crate::dialects::BrowserHeaders;

/// The longest time of a setting: a longer one could overflow when it is added to an instant.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);

/// The part of [`Settings`] that the server itself applies, in its final types. Fields without a comment have
/// the meaning of the setting with the same name.
#[derive(Clone, Debug)]
#[allow(missing_docs)] // the settings of the same name are documented
pub struct Bounds {
    pub request: Duration,
    pub body: Duration,
    pub header_read: Duration,
    pub drain: Duration,
    /// How long a body may arrive slowly before `body_bytes_per_s_min` applies.
    pub body_grace: Duration,
    /// 0 means no minimum.
    pub body_bytes_per_s_min: usize,
    pub body_bytes_max: usize,
    pub header_bytes_max: usize,
    pub headers_max: usize,
    pub connections_max: usize,
    pub connections_per_address_max: usize,
    pub trusted_proxies: Vec<Network>,
    /// The web origins that may use the API.
    pub origins: Origins,
    /// The headers that they may send in addition to those of the API.
    pub request_headers: RequestHeaders,
    /// The headers of the dialects that are served.
    pub dialect_headers: BrowserHeaders,
}

impl Bounds {
    /// Reads the bounds from the settings.
    ///
    /// - Bounds: a time of more than a year counts as a year.
    /// - Errors: [`BadSetting`] for a limit of 0 that would allow no response, and for an origin that no
    ///   browser sends.
    pub fn from_settings(settings: &Settings) -> Result<Self, BadSetting> {
        let limits = &settings.limits;
        let at_least_one = [
            ("request-s", limits.request_s == 0),
            ("body-s", limits.body_s == 0),
            ("header-read-s", limits.header_read_s == 0),
            ("body-bytes-max", limits.body_bytes_max == 0),
            ("header-bytes-max", limits.header_bytes_max == 0),
            ("headers-max", limits.headers_max == 0),
            ("connections-max", limits.connections_max == 0),
            ("connections-per-address-max", limits.connections_per_address_max == 0),
        ];
        if let Some((flag, _)) = at_least_one.iter().find(|(_, is_zero)| *is_zero) {
            return Err(BadSetting(format!("--{flag} must be at least 1")));
        }
        let operator = &settings.operator;
        let secrets =
            [("metrics-token", &operator.metrics_token), ("console-token", &operator.console_token)];
        for (flag, secret) in secrets {
            if secret.as_ref().is_some_and(|secret| !secret.is_long_enough()) {
                let chars_min = Secret::CHARS_MIN;
                return Err(BadSetting(format!("--{flag} must have at least {chars_min} characters")));
            }
        }
        let seconds = |s| Duration::from_secs(s).min(LONGEST);
        Ok(Self {
            request: seconds(limits.request_s),
            body: seconds(limits.body_s),
            header_read: seconds(limits.header_read_s),
            drain: seconds(limits.drain_s),
            body_grace: Duration::from_secs(5),
            body_bytes_per_s_min: limits.body_bytes_per_s_min,
            body_bytes_max: limits.body_bytes_max,
            header_bytes_max: limits.header_bytes_max,
            headers_max: limits.headers_max,
            connections_max: limits.connections_max,
            connections_per_address_max: limits.connections_per_address_max,
            trusted_proxies: settings.http.trusted_proxies.clone(),
            origins: Origins::parse(&settings.http.cors_origins)?,
            request_headers: RequestHeaders::parse(&settings.http.cors_headers)?,
            dialect_headers: BrowserHeaders::of(&settings.dialects.dialects),
        })
    }

    /// Whether `address` is a trusted proxy.
    pub(super) fn trusts(&self, address: IpAddr) -> bool {
        self.trusted_proxies.iter().any(|network| network.contains(address))
    }
}

/// A setting that the server cannot start with; the text names the flag.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadSetting(String);

impl BadSetting {
    /// Creates the error with that text.
    pub(crate) fn new(text: String) -> Self {
        Self(text)
    }
}

/// The web origins that may use the API from a browser.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origins {
    /// No other origin.
    None,
    /// Every origin: the API uses no cookies, so a foreign page has no token to send.
    Any,
    /// The listed origins.
    Listed(Vec<HeaderValue>),
}

impl Origins {
    /// Reads the origins of the settings.
    ///
    /// - Shape: `scheme://host` or `scheme://host:port`, as browsers write them, or `*` alone. Any scheme is
    ///   allowed: apps in a web view use `capacitor://localhost` and the like. Pages from files and sandboxes
    ///   send `null` or `file://`.
    /// - Errors: [`BadSetting`] for a text that no browser sends, since an origin that can never match would
    ///   look like a broken server.
    pub fn parse(given: &[String]) -> Result<Self, BadSetting> {
        match given {
            [] => Ok(Self::None),
            [star] if star == "*" => Ok(Self::Any),
            _ => given.iter().map(|origin| origin_value(origin)).collect::<Result<_, _>>().map(Self::Listed),
        }
    }

    /// The value of `Access-Control-Allow-Origin` for this request.
    pub(super) fn allowed(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        match self {
            Self::None => None,
            Self::Any => Some(HeaderValue::from_static("*")),
            Self::Listed(origins) => {
                let from = headers.get(ORIGIN)?;
                origins.contains(from).then(|| from.clone())
            }
        }
    }
}

/// Headers that a page of another origin may send in addition to those of the API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RequestHeaders {
    /// Any header.
    Any,
    /// The listed headers.
    Listed(Vec<HeaderName>),
}

impl RequestHeaders {
    /// Reads header names of the settings, or `*` alone.
    ///
    /// - Errors: [`BadSetting`] for an invalid name of a header.
    pub fn parse(given: &[String]) -> Result<Self, BadSetting> {
        match given {
            [star] if star == "*" => Ok(Self::Any),
            _ => {
                let name = |name: &String| {
                    HeaderName::try_from(name.as_str()).ok().filter(|_| name != "*").ok_or_else(|| {
                        BadSetting(format!("--cors-headers {name:?} is no name of a header, such as baggage"))
                    })
                };
                given
                    .iter()
                    .filter(|name| !name.is_empty())
                    .map(name)
                    .collect::<Result<_, _>>()
                    .map(Self::Listed)
            }
        }
    }
}

/// One origin as a header value.
fn origin_value(origin: &str) -> Result<HeaderValue, BadSetting> {
    let refuse =
        |why: &str| BadSetting(format!("--cors-origin {origin:?} {why}, such as https://app.example"));
    if let "null" | "file://" = origin {
        return HeaderValue::from_str(origin).map_err(|error| BadSetting(error.to_string()));
    }
    if origin == "*" {
        return Err(BadSetting("--cors-origin \"*\" stands alone: it allows every origin already".into()));
    }
    let Some((scheme, authority)) = origin.split_once("://") else {
        return Err(refuse("is no origin: write scheme and host"));
    };
    if authority.contains(['/', '?', '#', '@', '*']) {
        return Err(refuse("holds more than an origin: write scheme, host and perhaps a port"));
    }
    if origin.chars().any(|c| c.is_ascii_uppercase()) {
        return Err(refuse("will never match: browsers write origins in lower case"));
    }
    if matches!((scheme, authority.rsplit_once(':')), ("https", Some((_, "443"))) | ("http", Some((_, "80"))))
    {
        return Err(refuse("will never match: browsers leave the usual port out"));
    }
    let whole = origin.parse::<Uri>().ok().filter(|uri| uri.host().is_some_and(|host| !host.is_empty()));
    let value = HeaderValue::from_str(origin).ok().filter(|_| whole.is_some());
    value.ok_or_else(|| refuse("is no origin: write scheme and host"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn parse(given: &[&str]) -> Result<Origins, BadSetting> {
        Origins::parse(&given.iter().map(|origin| (*origin).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn origins_that_browsers_send_are_taken() {
        assert_eq!(parse(&[]), Ok(Origins::None));
        assert_eq!(parse(&["*"]), Ok(Origins::Any));
        let listed = [
            "https://app.example",
            "http://localhost:5173",
            "capacitor://localhost",
            "http://[::1]:8080",
            "null",
            "file://",
        ];
        let values = listed.iter().map(|origin| HeaderValue::from_static(origin)).collect();
        assert_eq!(parse(&listed), Ok(Origins::Listed(values)));
    }

    #[test]
    fn origins_that_can_never_match_are_refused_by_name() {
        for bad in [
            "",
            "app.example",
            "https://",
            "https://app.example/",
            "https://app.example/path",
            "https://App.example",
            "https://app.example:443",
            "https://*.example",
            "https://user@app.example",
            "https://app example",
            "NULL",
            "file://x/y",
        ] {
            let refusal = parse(&["https://ok.example", bad]).unwrap_err().to_string();
            assert!(refusal.contains(&format!("{bad:?}")), "{bad:?}: {refusal}");
        }
        assert!(parse(&["*", "https://app.example"]).is_err());
    }

    #[test]
    fn headers_are_names_or_any() {
        let parse = |given: &[&str]| {
            RequestHeaders::parse(&given.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>())
        };
        assert_eq!(parse(&["*"]), Ok(RequestHeaders::Any));
        let listed = RequestHeaders::Listed(vec![HeaderName::from_static("x-trace"), http::header::RANGE]);
        assert_eq!(parse(&["X-Trace", "range"]), Ok(listed));
        assert_eq!(parse(&[""]), Ok(RequestHeaders::Listed(Vec::new())));
        for bad in [&["*", "x-trace"][..], &["a b"], &["x:"]] {
            assert!(parse(bad).unwrap_err().to_string().contains("--cors-headers"), "{bad:?}");
        }
    }

    #[test]
    fn a_limit_that_would_answer_nothing_is_refused() {
        let mut settings = Settings::default();
        settings.limits.connections_max = 0;
        let refusal = Bounds::from_settings(&settings).unwrap_err().to_string();
        assert_eq!(refusal, "--connections-max must be at least 1");
        settings.limits.connections_max = usize::MAX;
        settings.limits.request_s = u64::MAX;
        assert_eq!(Bounds::from_settings(&settings).unwrap().request, LONGEST);
    }
}

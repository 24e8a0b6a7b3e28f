//! The web pages that the binary serves: a front page, a demo with two phones, and a console for the operator.
//!
//! They are not part of the contract: apps do not use them. A server has the demo and the console only if
//! that is configured. So they come before the routes, and `openapi.yaml` does not list them.

mod files;

use std::convert::Infallible;
use std::fmt::Write as _;
use std::sync::Arc;

use http::header::{
    CACHE_CONTROL, CONTENT_TYPE, ETAG, HOST, HeaderMap, HeaderName, HeaderValue, IF_NONE_MATCH,
};
use http::header::{CONTENT_SECURITY_POLICY, LOCATION, REFERRER_POLICY};
use http::{Method, Response, StatusCode};
use serde::Serialize;
use sha2::{Digest, Sha256};
use warp::path::FullPath;
use warp::reject::{self, Rejection};
use warp::{Filter, Reply};

use self::files::{FILES, File};
use super::app::App;
use super::etag;
use super::peer::{Peer, peer};
use super::problem::ApiError;
use super::routes::routes;

/// Scripts and styles from this server only, nothing inline, and no evaluation of text.
const POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; \
     base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; \
     trusted-types 'none'",
);

const OPENER_POLICY: HeaderName = HeaderName::from_static("cross-origin-opener-policy");

/// The placeholder in a page for the folder of this build's files.
const FOLDER: &str = "@build";

/// The pages of one server.
#[derive(Default)]
pub struct Pages {
    /// The accounts of the demo page.
    pub demo: Option<DemoAccounts>,
    /// Whether the console exists.
    pub console: bool,
}

/// The accounts of the demo's phones. Only the page gets them, on the machine of the demo.
#[derive(Clone, Debug, Serialize)]
pub struct DemoAccounts {
    /// The owner of the rows; phones with rows of another owner start again.
    pub owner: String,
    /// One account for each phone.
    pub phones: Vec<DemoPhone>,
    /// The account of another user, who has rows of their own.
    pub guest: DemoPhone,
}

/// One phone of the demo.
#[derive(Clone, Debug, Serialize)]
pub struct DemoPhone {
    /// The email of the account, which shares its owner with the others.
    pub email: String,
    /// Its password.
    pub password: String,
    /// The name of the device.
    pub device: String,
}

/// Every route of the server, after those of its pages.
pub fn routes_and_pages(
    app: Arc<App>,
    shown: Pages,
) -> impl Filter<Extract = (impl Reply,), Error = Infallible> + Clone + Send + Sync + 'static {
    pages(shown).or(routes(app))
}

/// The routes of the pages, which come before those of the API.
pub fn pages(
    pages: Pages,
) -> impl Filter<Extract = (impl Reply,), Error = Rejection> + Clone + Send + Sync + 'static {
    let built = Arc::new(Built { pages, build: build() });
    warp::method().and(warp::path::full()).and(warp::header::headers_cloned()).and(peer()).and_then(
        move |method: Method, path: FullPath, headers: HeaderMap, peer: Peer| {
            let response = built.response(&method, path.as_str(), &headers, peer);
            async move { response.ok_or_else(reject::not_found) }
        },
    )
}

/// A name that changes with any of the files.
fn build() -> String {
    let mut hash = Sha256::new();
    for File { path, bytes, .. } in FILES {
        hash.update(path);
        hash.update(bytes.len().to_be_bytes());
        hash.update(bytes);
    }
    hash.finalize().iter().take(8).fold(String::new(), |mut name, byte| {
        let _ = write!(name, "{byte:02x}"); // writing to a String cannot fail
        name
    })
}

struct Built {
    pages: Pages,
    build: String,
}

impl Built {
    /// The response, unless the path belongs to no page.
    fn response(
        &self,
        method: &Method,
        path: &str,
        headers: &HeaderMap,
        peer: Peer,
    ) -> Option<warp::reply::Response> {
        let response = self.get(path, headers, peer)?;
        if !matches!(*method, Method::GET | Method::HEAD) {
            return Some(ApiError::MethodNotAllowed { allow: "GET, HEAD".into() }.into_response());
        }
        Some(response)
    }

    fn get(&self, path: &str, headers: &HeaderMap, peer: Peer) -> Option<warp::reply::Response> {
        if let Some(accounts) = &self.pages.demo {
            match path {
                "/" => return Some(see_other("/demo")),
                "/demo/account.json" => return is_local(headers, peer).then(|| account_json(accounts)),
                _ => {}
            }
        }
        if path == "/" {
            return Some(front_page(self.pages.console));
        }
        let (page, below) = path.strip_prefix('/')?.split_once('/').unwrap_or((path.get(1..)?, ""));
        let is_there =
            (page == "demo" && self.pages.demo.is_some()) || (page == "console" && self.pages.console);
        if !is_there {
            return None;
        }
        if below.is_empty() {
            return Some(self.page(file(&format!("{page}/index.html"))?, headers));
        }
        let name = below.strip_prefix(self.build.as_str())?.strip_prefix('/')?;
        let of_page = ["shared", page].contains(&name.split('/').next()?);
        let file = file(name).filter(|_| of_page || page == "demo" && name.starts_with("client/"))?;
        Some(self.asset(file, headers))
    }

    /// A page itself. It is requested again each time, so that it names the files of the present build.
    fn page(&self, file: &File, headers: &HeaderMap) -> warp::reply::Response {
        let html = String::from_utf8_lossy(file.bytes).replace(FOLDER, &self.build);
        let mut response = self.unless_known(headers, file, || html.into());
        response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        response.headers_mut().insert(CONTENT_SECURITY_POLICY, POLICY);
        response.headers_mut().insert(OPENER_POLICY, HeaderValue::from_static("same-origin"));
        response
    }

    /// A file of a page. Its path contains the build's name, so it never changes.
    fn asset(&self, file: &'static File, headers: &HeaderMap) -> warp::reply::Response {
        let mut response = self.unless_known(headers, file, || file.bytes.into());
        let forever = HeaderValue::from_static("public, max-age=31536000, immutable");
        response.headers_mut().insert(CACHE_CONTROL, forever);
        response
    }

    fn unless_known(
        &self,
        headers: &HeaderMap,
        file: &File,
        body: impl FnOnce() -> bytes::Bytes,
    ) -> warp::reply::Response {
        let tag = format!("W/\"{}\"", self.build);
        let is_known = etag::matches(headers.get_all(IF_NONE_MATCH), &tag);
        let mut response = if is_known { Response::default() } else { Response::new(body().into()) };
        if is_known {
            *response.status_mut() = StatusCode::NOT_MODIFIED;
        }
        if let Ok(tag) = HeaderValue::try_from(tag) {
            response.headers_mut().insert(ETAG, tag);
        }
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(file.kind));
        response.headers_mut().insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
        response
    }
}

/// Shows what the server is and its links. The links are relative: a proxy may serve the server under another
/// path.
fn front_page(has_console: bool) -> warp::reply::Response {
    let console =
        if has_console { "<li><a href=\"console\">Console</a> for the operator</li>\n" } else { "" };
    let html = format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n<title>rollcall</title>\n\
         <h1>rollcall {version}</h1>\n<p>The sync server for offline-first apps. It is running.</p>\n<ul>\n\
         <li><a href=\"openapi.json\">API of the tables served here</a>, as OpenAPI 3.0.3</li>\n\
         <li><a href=\"openapi.yaml\">API of every rollcall server</a>, with the documentation of each call</li>\n\
         <li><a href=\"readyz\">Health</a>: whether the server can reach its database</li>\n{console}</ul>\n",
        version = env!("CARGO_PKG_VERSION")
    );
    let mut response = Response::new(html.into());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response.headers_mut().insert(CONTENT_SECURITY_POLICY, POLICY);
    response.headers_mut().insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    response
}

fn file(path: &str) -> Option<&'static File> {
    FILES.iter().find(|file| file.path == path)
}

/// Whether the browser runs on this machine and uses a name of this machine: otherwise a foreign page could
/// read the response by a name that resolves to this machine.
fn is_local(headers: &HeaderMap, peer: Peer) -> bool {
    let host = headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let name = host.rsplit_once(':').map_or(host, |(name, port)| {
        if port.bytes().all(|byte| byte.is_ascii_digit()) { name } else { host }
    });
    peer.0.is_loopback() && ["localhost", "127.0.0.1", "[::1]"].contains(&name)
}

fn account_json(accounts: &DemoAccounts) -> warp::reply::Response {
    let mut response = warp::reply::json(accounts).into_response();
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn see_other(location: &'static str) -> warp::reply::Response {
    let mut response = Response::default();
    *response.status_mut() = StatusCode::SEE_OTHER;
    response.headers_mut().insert(LOCATION, HeaderValue::from_static(location));
    response
}

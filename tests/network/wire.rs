//! A device's way to the servers: HTTP/1.1 over sockets of the simulated network.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use rollcall::device::{NoResponse, Request, Response};
use rollcall::model::Fence;
use tokio::time::{sleep, timeout};
use turmoil::net::TcpStream;

use crate::guests::Standing;
use crate::rng::Rng;
use crate::truth::{Check, must};
use crate::world::{Device, PORT, SERVERS, World};

/// How long a server may take until it acts on a request that has arrived.
const LATE_MS: i64 = 20_000;

/// The statuses that a server may send a device over such a network.
const STATUSES: [u16; 10] = [200, 204, 304, 404, 408, 409, 410, 422, 423, 503];

/// What it may send besides, for a request about members.
const MEMBERS: [u16; 3] = [201, 403, 429];

type Connection = SendRequest<Full<Bytes>>;

pub struct Wire {
    pub world: Arc<World>,
    pub device: Arc<Device>,
    pub rng: Rng,
    server: usize,
    open: Option<Connection>,
}

impl Wire {
    pub fn new(world: &Arc<World>, device: &Arc<Device>, mut rng: Rng) -> Self {
        let server = rng.below(SERVERS as u64) as usize;
        Self { world: Arc::clone(world), device: Arc::clone(device), rng, server, open: None }
    }

    /// Sends a request and waits for its response; sometimes a copy of it arrives at another server, or late,
    /// or both.
    pub async fn ask(&mut self, request: &Request) -> Result<Response, NoResponse> {
        self.world.requests.fetch_add(1, Ordering::SeqCst);
        if let Some(key) = header(request, "idempotency-key") {
            let fence = header(request, "sync-lock").and_then(|fence| fence.parse().ok()).map(Fence);
            let mut truth = self.world.database.truth.lock();
            truth.guests.extend(self.device.guest.map(|user| (key.to_owned(), user)));
            truth.sent.entry(key.to_owned()).or_default().insert(fence);
        }
        let is_quiet = self.world.is_quiet();
        if !is_quiet && self.rng.often(40) {
            self.copy(request);
        }
        if self.open.is_none() || self.rng.often(60) {
            (self.open, self.server) = (None, self.rng.below(SERVERS as u64) as usize);
        }
        let patience = if is_quiet { 10_000 } else { 500 + self.rng.below(8_000) };
        let (server, standing) = (self.server, self.world.standing(&self.device));
        let asked = timeout(Duration::from_millis(patience), send(&mut self.open, server, request)).await;
        let answer = asked.unwrap_or_else(|_| Err("no answer in time".into()));
        match answer {
            Ok(answer) => {
                tell(&self.world, &self.device, server, request, &answer.status.to_string());
                self.world.explain(exchange(request, &answer));
                self.world.note(check(&self.world, &self.device, standing, request, &answer));
                Ok(answer)
            }
            Err(error) => {
                tell(&self.world, &self.device, server, request, &error);
                self.open = None;
                Err(NoResponse(error))
            }
        }
    }

    /// The same request once more, by a way of its own.
    fn copy(&mut self, request: &Request) {
        let (world, device, request) = (Arc::clone(&self.world), Arc::clone(&self.device), request.clone());
        let (after, server) = (self.rng.below(6_000), self.rng.below(SERVERS as u64) as usize);
        world.note_late_deletions(&device, &request, world.now() + after as i64 + LATE_MS);
        tokio::spawn(async move {
            sleep(Duration::from_millis(after)).await;
            let mut open = None;
            let standing = world.standing(&device);
            let asked = timeout(Duration::from_secs(10), send(&mut open, server, &request)).await;
            if let Ok(Ok(answer)) = asked {
                tell(&world, &device, server, &request, &format!("{} (a copy)", answer.status));
                world.note(check(&world, &device, standing, &request, &answer));
            }
        });
    }
}

fn tell(world: &World, device: &Device, server: usize, request: &Request, outcome: &str) {
    let path = request.path.split('?').next().unwrap_or_default();
    // Two runs of a seed do not share the ids.
    let path = path.split('/').filter(|part| part.len() < 36).collect::<Vec<_>>().join("/");
    world.tell(format!(
        "device {} asks server {server}: {} /{path}: {outcome}",
        device.number, request.method
    ));
}

fn header<'a>(request: &'a Request, name: &str) -> Option<&'a str> {
    request.headers.iter().find(|(known, _)| *known == name).map(|(_, value)| value.as_str())
}

async fn send(open: &mut Option<Connection>, server: usize, request: &Request) -> Result<Response, String> {
    let failed = |error: &dyn std::fmt::Display| error.to_string();
    if open.is_none() {
        let stream =
            TcpStream::connect((format!("server-{server}"), PORT)).await.map_err(|error| failed(&error))?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(|error| failed(&error))?;
        tokio::spawn(connection);
        *open = Some(sender);
    }
    let Some(sender) = open else { return Err("not connected".into()) };
    let mut asked = http::Request::builder()
        .method(request.method)
        .uri(format!("/{}", request.path))
        .header("host", format!("server-{server}"));
    for (name, value) in &request.headers {
        asked = asked.header(*name, value);
    }
    if request.body.is_some() {
        asked = asked.header("content-type", "application/json");
    }
    let body = Bytes::from(request.body.clone().unwrap_or_default());
    let asked = asked.body(Full::new(body)).map_err(|error| failed(&error))?;
    sender.ready().await.map_err(|error| failed(&error))?;
    let answer = sender.send_request(asked).await.map_err(|error| failed(&error))?;
    let (head, body) = answer.into_parts();
    let text = |value: &http::HeaderValue| value.to_str().unwrap_or_default().to_owned();
    let headers = head.headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect();
    let body = body.collect().await.map_err(|error| failed(&error))?.to_bytes().to_vec();
    Ok(Response { status: head.status.as_u16(), headers, body })
}

/// A request and its response, for people.
fn exchange(request: &Request, answer: &Response) -> String {
    let shown = |body: &[u8]| String::from_utf8_lossy(body).into_owned();
    let Request { method, path, headers, body } = request;
    let headers: Vec<_> = headers.iter().filter(|(name, _)| *name != "authorization").collect();
    let (sent, text) = (shown(body.as_deref().unwrap_or_default()), shown(&answer.body));
    format!("         {method} /{path} {headers:?} {sent}\n         {} {text}", answer.status)
}

/// What holds for every response.
fn check(world: &World, device: &Device, standing: Standing, request: &Request, answer: &Response) -> Check {
    let result = || format!("device {}:\n{}", device.number, exchange(request, answer));
    let is_about_members = ["owners/", "invitations/"].iter().any(|path| request.path.starts_with(path));
    let is_given = STATUSES.contains(&answer.status)
        || (is_about_members && MEMBERS.contains(&answer.status))
        || (device.guest.is_some() && answer.status == 403);
    world
        .check_standing(device, standing, request, answer)
        .map_err(|what| format!("{what}: {}", result()))?;
    must(is_given, || format!("every answer is one that a device can be given: {}", result()))?;
    if let Some(key) = header(request, "idempotency-key").filter(|_| answer.status == 200) {
        let truth = world.database.truth.lock();
        must(truth.has_given(key, &answer.body), || {
            format!("an answer tells what was committed: {:?}\n  {}", truth.answers.get(key), result())
        })?;
    }
    Ok(())
}

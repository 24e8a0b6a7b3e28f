//! One stream: a checkpoint, a wait for news, and so on.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use futures_util::StreamExt as _;
use parking_lot::Mutex;
use serde::Deserialize;
use tokio::sync::mpsc::Sender;
use tokio::time::{Instant, sleep, sleep_until};

use super::checkpoint::{Checkpoint, Sent};
use super::lines::token_expires_in;
use super::request::StreamRequest;
use super::requests::Noted;
use crate::accounts::Caller;
use crate::http::events::{End, Subscription};
use crate::http::handlers::caller::is_token_good;
use crate::http::handlers::events::version;
use crate::http::stream::{self, Body};
use crate::http::{ApiError, App, Permit};
use crate::model::Timestamp;

/// What a token is said to last that does not say it itself, s.
const TOKEN_S: u32 = 24 * 3_600;

/// Where the server was busy, the next attempt is after this.
const BUSY_PAUSE: Duration = Duration::from_secs(2);

/// A stream, and what its client waits for.
pub(super) struct Session {
    app: Arc<App>,
    caller: Caller,
    token: String,
    client_id: Option<String>,
    subscription: Subscription,
    sent: Arc<Mutex<Sent>>,
    /// What was noted of the client before the last checkpoint was read.
    noted: Noted,
}

/// Why a stream is over.
struct Over;

impl Session {
    pub fn new(
        app: Arc<App>,
        caller: Caller,
        token: String,
        request: StreamRequest,
        subscription: Subscription,
    ) -> Self {
        let StreamRequest { buckets, client_id } = request;
        let sent = Arc::new(Mutex::new(Sent { given: buckets, ..Sent::default() }));
        Self { app, caller, token, client_id, subscription, sent, noted: Noted::default() }
    }

    /// Begins the next checkpoint.
    pub async fn next_lines(&mut self) -> Result<(Body, Permit), ApiError> {
        // Before the data is read: what a client waits for is in the checkpoint then.
        self.noted = self.app.dialects.checkpoint_requests.of(self.caller.owner, self.client_id.as_deref());
        let (app, caller) = (Arc::clone(&self.app), self.caller.clone());
        let checkpoint = Checkpoint::new(app, caller, self.noted.number, Arc::clone(&self.sent));
        let permit = self.app.memory.permit(Some(self.caller.owner));
        let ((), body) = stream::respond(&self.app.readers, &permit, checkpoint).await?;
        Ok((body, permit))
    }

    /// Sends checkpoints, the first of which has begun, until the client leaves or the stream is over.
    pub async fn run(mut self, first: (Body, Permit), to: Sender<Bytes>) {
        let mut lines = Some(first);
        loop {
            if let Some(lines) = lines.take()
                && let Err(error) = send(lines, &to).await
            {
                tracing::debug!(%error, "a checkpoint of the write-ahead log failed");
                return;
            }
            if self.sign_of_life(&to).await.is_err() || self.wait(&to).await.is_err() {
                return;
            }
            match self.next_lines().await {
                Ok(begun) => lines = Some(begun),
                // The next attempt has the same checkpoint.
                Err(error) if error.status_and_code().0.is_server_error() => {
                    tracing::debug!(%error, "a checkpoint of the write-ahead log waits for readers");
                    sleep(BUSY_PAUSE).await;
                    self.noted = Noted { count: u64::MAX, ..self.noted };
                }
                Err(error) => return tracing::debug!(%error, "a stream ends"),
            }
        }
    }

    /// Waits until a checkpoint is due.
    async fn wait(&mut self, to: &Sender<Bytes>) -> Result<(), Over> {
        let period = Duration::from_secs(self.app.settings.dialects.powersync_keepalive_s.max(1));
        let mut beat = Instant::now() + period;
        let draining = self.app.draining.clone();
        loop {
            let pending = self.subscription.pending();
            match pending.ended {
                None => {}
                Some(End::Unauthorized) => return self.expire(to).await,
                Some(_) => return Err(Over),
            }
            let sent = self.sent.lock().version;
            let noted =
                self.app.dialects.checkpoint_requests.of(self.caller.owner, self.client_id.as_deref());
            if pending.version > sent || noted.count != self.noted.count {
                return Ok(());
            }
            tokio::select! {
                biased;
                () = draining.begun() => return Err(Over),
                () = to.closed() => return Err(Over),
                () = self.subscription.changed() => {}
                () = sleep_until(beat) => {
                    beat = Instant::now() + period;
                    if !is_token_good(&self.app, &self.token, &self.caller).await {
                        return self.expire(to).await;
                    }
                    self.sign_of_life(to).await?;
                    // This server may not have been notified yet of what another server wrote.
                    if self.app.locks.is_remote() {
                        return Ok(());
                    }
                    if self.app.storage.known_state(self.caller.owner).is_none()
                        && version(&self.app, &self.caller).await.ok() > sent
                    {
                        return Ok(());
                    }
                }
            }
        }
    }

    async fn sign_of_life(&self, to: &Sender<Bytes>) -> Result<(), Over> {
        let left = seconds_left(&self.token, self.app.clock.now());
        to.send(Bytes::from(token_expires_in(left))).await.map_err(|_| Over)
    }

    /// Has the client get another token.
    async fn expire(&self, to: &Sender<Bytes>) -> Result<(), Over> {
        let _ = to.send(Bytes::from(token_expires_in(0))).await; // it may have left
        Err(Over)
    }
}

/// Passes the lines of a checkpoint on.
async fn send((body, permit): (Body, Permit), to: &Sender<Bytes>) -> io::Result<()> {
    let left = || io::Error::from(io::ErrorKind::BrokenPipe);
    match body {
        Body::Buffered(lines) => {
            permit.settle(lines.len()).map_err(io::Error::other)?;
            to.send(Bytes::from(lines)).await.map_err(|_| left())
        }
        Body::Streaming(mut coming) => {
            while let Some(chunk) = coming.next().await {
                to.send(chunk?).await.map_err(|_| left())?;
            }
            Ok(())
        }
    }
}

#[derive(Deserialize)]
struct Claims {
    exp: Option<f64>,
}

/// How long a token lasts: a JWT says it itself.
fn seconds_left(token: &str, now: Timestamp) -> u32 {
    let claims = token.split('.').nth(1).and_then(|part| URL_SAFE_NO_PAD.decode(part).ok());
    let claims = claims.and_then(|json| serde_json::from_slice::<Claims>(&json).ok());
    let Some(exp) = claims.and_then(|claims| claims.exp) else { return TOKEN_S };
    let now = Duration::from_millis(u64::try_from(now.ms()).unwrap_or(0)).as_secs_f64();
    (exp - now).clamp(0.0, f64::from(i32::MAX)) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jwt_says_how_long_it_lasts() {
        let token = |claims: &str| format!("e30.{}.sig", URL_SAFE_NO_PAD.encode(claims));
        let now = Timestamp::from_ms(1_000_000);
        for (token, left) in [
            (token(r#"{"exp": 1060, "sub": "x"}"#), 60),
            (token(r#"{"exp": 999.5}"#), 0),
            (token(r#"{"exp": 1e300}"#), i32::MAX as u32),
            (token("{}"), TOKEN_S),
            ("opaque".into(), TOKEN_S),
            ("a.b.c".into(), TOKEN_S),
        ] {
            assert_eq!(seconds_left(&token, now), left, "{token}");
        }
    }
}

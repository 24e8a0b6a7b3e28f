//! `GET /events?owner=all`: what moves of all owners of a user, in one stream.
//!
//! The parameter is necessary: a client that knows of one owner only takes every version of a stream for that owner's.
//! With it the client says that it reads which owner an event is about, and a server without such streams refuses it.
//!
//! - A commit of an owner costs a stream no statement. A change of the user's memberships costs one reading of the
//!   user's owners, and so does a heartbeat now and then: a notification of another server may be lost.
//! - The stream has no events of locks. A lease ends by its time, and 2,000 owners are 2,000 times to watch.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use serde::Serialize;
use serde_json::json;
use tokio::time::{Instant, sleep_until};

use super::caller::{Scope, is_token_good_for};
use super::events::{end_event, event_stream};
use super::owners::{OwnersBody, list_tag, memberships, owner_body};
use super::{ApiError, App, HandlerResult, off_reactor};
use crate::accounts::Caller;
use crate::http::events::{End, Subscription};
use crate::model::{Owner, Role, Version};
use crate::storage::Membership;

/// How long the list of owners is used for each owner in it, if nothing is reported: a user of 2,000 owners has it
/// read every 100 s, and one of a few at every heartbeat.
const LIST_HOLDS_MS: u64 = 50;

/// When to read the list again after the database did not return it, s.
const RETRY_S: u64 = 1;

/// Begins the stream. `seen` is the last event's id that the client has.
pub(super) async fn begin(app: Arc<App>, caller: Caller, token: String, seen: Option<&str>) -> HandlerResult {
    let subscription = app.events.listen_to_all(&caller)?;
    let period = Duration::from_secs(app.settings.limits.event_heartbeat_s.max(1));
    let beat = Instant::now() + period;
    let mut listening = Listening {
        app,
        caller,
        token,
        subscription,
        owners: BTreeMap::new(),
        waiting: BTreeMap::new(),
        read_at: None,
        first: None,
        beats_unread: 0,
        beat,
        period,
        over: false,
    };
    let list = listening.read().await?;
    let tag = list_tag(&list);
    if seen != Some(&*tag) {
        let data = as_json(&OwnersBody::new(&list));
        listening.first = Some(format!("event: owners\nid: {tag}\ndata: {data}\n\n"));
    }
    listening.owners = list.iter().map(|one| (one.owner, Known::of(one))).collect();
    let events = stream::unfold(listening, |mut listening| async move {
        let event = listening.next().await?;
        Some((Ok::<_, Infallible>(Bytes::from(event)), listening))
    });
    Ok(event_stream(events))
}

/// What the client knows of an owner.
#[derive(Clone, Copy)]
struct Known {
    role: Role,
    version: Version,
}

impl Known {
    fn of(one: &Membership) -> Self {
        Self { role: one.role, version: one.version }
    }
}

/// One stream: what of the user's owners was sent.
struct Listening {
    app: Arc<App>,
    caller: Caller,
    token: String,
    subscription: Subscription,
    owners: BTreeMap<Owner, Known>,
    /// Versions that are not sent before the list has been read.
    waiting: BTreeMap<Owner, Version>,
    /// When to read the list again before anything is sent; `None` if it is as the user's memberships are.
    read_at: Option<Instant>,
    first: Option<String>,
    /// Heartbeats since the list was read.
    beats_unread: u32,
    beat: Instant,
    period: Duration,
    over: bool,
}

impl Listening {
    /// The next part of the stream, once it is available; `None` after the last.
    async fn next(&mut self) -> Option<String> {
        if let Some(first) = self.first.take() {
            return Some(first);
        }
        while !self.over {
            if let Some(text) = self.pending().await {
                return Some(text);
            }
            let read_at = self.read_at;
            let draining = self.app.draining.clone();
            tokio::select! {
                biased;
                () = draining.begun() => return Some(self.end(End::ShuttingDown)),
                () = self.subscription.changed() => {}
                () = sleep_until(read_at.unwrap_or(self.beat)), if read_at.is_some() => {}
                () = sleep_until(self.beat) => return Some(self.heartbeat().await),
            }
        }
        None
    }

    /// The events to send now.
    async fn pending(&mut self) -> Option<String> {
        let pending = self.subscription.pending();
        if let Some(end) = pending.ended {
            return Some(self.end(end));
        }
        self.waiting.extend(pending.moved);
        if pending.members_changed {
            self.read_at = Some(Instant::now());
        }
        let mut text = String::new();
        if self.read_at.is_some_and(|at| at <= Instant::now()) {
            self.read_again(&mut text).await;
        }
        if self.read_at.is_none() {
            for (owner, version) in std::mem::take(&mut self.waiting) {
                // A version of an owner that the user left is dropped.
                if let Some(known) = self.owners.get_mut(&owner).filter(|known| known.version < version) {
                    known.version = version;
                    text.push_str(&version_event(owner, version));
                }
            }
        }
        (!text.is_empty()).then_some(text)
    }

    /// The user's owners. From now on no event of theirs is missed.
    async fn read(&self) -> Result<Vec<Membership>, ApiError> {
        loop {
            let (app, caller) = (Arc::clone(&self.app), self.caller.clone());
            let list = off_reactor(move || memberships(&app, &caller)).await?;
            // What moved between the reading and here would be missed of an owner that is new.
            if !self.subscription.follow(list.iter().map(|one| one.owner).collect()) {
                return Ok(list);
            }
        }
    }

    /// Reads the list, and writes what of it is new to the client.
    async fn read_again(&mut self, text: &mut String) {
        let list = match self.read().await {
            Ok(list) => list,
            Err(error) => {
                tracing::debug!(%error, "could not read the owners of a stream; it is tried again");
                self.read_at = Some(Instant::now() + Duration::from_secs(RETRY_S));
                return;
            }
        };
        self.read_at = None;
        let mut before = std::mem::take(&mut self.owners);
        for one in &list {
            let mut known = Known::of(one);
            match before.remove(&one.owner) {
                Some(was) if was.role != one.role => text.push_str(&member_event(one)),
                Some(was) if was.version < one.version => {
                    text.push_str(&version_event(one.owner, one.version));
                }
                Some(was) => known.version = was.version,
                None => text.push_str(&member_event(one)),
            }
            self.owners.insert(one.owner, known);
        }
        for owner in before.into_keys() {
            text.push_str(&format!("event: left\ndata: {}\n\n", json!({ "owner": owner })));
        }
    }

    async fn heartbeat(&mut self) -> String {
        self.beat = Instant::now() + self.period;
        if !is_token_good_for(&self.app, &self.token, &self.caller, Scope::Account).await {
            return self.end(End::Unauthorized);
        }
        self.beats_unread += 1;
        let holds_ms = LIST_HOLDS_MS.saturating_mul(self.owners.len() as u64);
        if self.period.saturating_mul(self.beats_unread) >= Duration::from_millis(holds_ms) {
            self.beats_unread = 0;
            self.read_at.get_or_insert_with(Instant::now);
        }
        ": heartbeat\n\n".to_owned()
    }

    fn end(&mut self, end: End) -> String {
        self.over = true;
        end_event(end)
    }
}

fn version_event(owner: Owner, version: Version) -> String {
    format!("event: version\ndata: {}\n\n", json!({ "owner": owner, "version": version }))
}

/// The user became a member, or has another role.
fn member_event(one: &Membership) -> String {
    format!("event: member\ndata: {}\n\n", as_json(&owner_body(one)))
}

fn as_json(data: &impl Serialize) -> String {
    // Structs of text and numbers cannot fail.
    serde_json::to_string(data).unwrap_or_default()
}

//! Notifications between the servers on one database: changed versions, taken and ended locks, sign-outs,
//! changes of members.
//!
//! A server notifies the others after its commit and not in the transaction, because PostgreSQL commits only
//! one transaction with a `NOTIFY` at a time, including the fsync. So a notification can be lost with its
//! server. It is only a hint: no response is based on it.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use postgres::Client;
use postgres::fallible_iterator::FallibleIterator;
use postgres::types::Type;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::address::Address;
use rollcall_core::model::{DeviceId, Fence, Owner, Timestamp, Version};
use rollcall_core::storage::accounts::{MemberChange, MemberListener, SignOutListener, SignedOut};
use rollcall_core::storage::{LeaseListener, LeaseState, VersionListener};

const LISTEN: &str = "LISTEN rollcall";
pub(super) const NOTIFY: &str = "SELECT pg_notify('rollcall', $1)";

/// PostgreSQL allows at most 8,000 bytes for a notification.
const MESSAGE_BYTES_MAX: usize = 6_000;

/// How soon a thread notices that the server is stopping, and how long it waits after a lost connection.
const PATIENCE: Duration = Duration::from_millis(500);

/// Owners whose last reported version is stored, so that versions are reported in order.
const OWNERS_MAX: usize = 32_768;

/// An event of an owner.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Event {
    Moved(Owner, Version),
    Taken { owner: Owner, fence: Fence, holder: DeviceId, name: String, since: i64, until: i64, now: i64 },
    Freed(Owner),
    SignedOut(SignedOut),
    Members(MemberChange),
}

/// The events that one server sends at once.
#[derive(Serialize, Deserialize)]
struct Message {
    from: Uuid,
    #[serde(rename = "news")] // as servers of earlier releases write it
    events: Vec<Event>,
}

/// Delivers events of this server and of the others to listeners.
pub(super) struct Notifier {
    address: Address,
    /// The id of this server, which ignores its own messages.
    id: Uuid,
    moved: RwLock<Vec<VersionListener>>,
    leases: RwLock<Vec<LeaseListener>>,
    sign_outs: RwLock<Vec<SignOutListener>>,
    members: RwLock<Vec<MemberListener>>,
    last_versions: Mutex<HashMap<Owner, Version>>,
    out: Mutex<Option<Sender<Event>>>,
    over: AtomicBool,
}

impl Notifier {
    pub fn new(address: Address) -> Arc<Self> {
        Arc::new(Self {
            address,
            id: Uuid::new_v4(),
            moved: RwLock::default(),
            leases: RwLock::default(),
            sign_outs: RwLock::default(),
            members: RwLock::default(),
            last_versions: Mutex::default(),
            out: Mutex::default(),
            over: AtomicBool::new(false),
        })
    }

    /// Adds a listener for changed versions.
    pub fn on_moved(self: &Arc<Self>, listener: VersionListener) {
        self.moved.write().push(listener);
        self.begin();
    }

    /// Adds a listener for leases that are taken or ended.
    pub fn on_leased(self: &Arc<Self>, listener: LeaseListener) {
        self.leases.write().push(listener);
        self.begin();
    }

    /// Adds a listener for sign-outs on other servers.
    pub fn on_signed_out(self: &Arc<Self>, listener: SignOutListener) {
        self.sign_outs.write().push(listener);
        self.begin();
    }

    /// Adds a listener for changes of members on other servers.
    pub fn on_members_changed(self: &Arc<Self>, listener: MemberListener) {
        self.members.write().push(listener);
        self.begin();
    }

    /// The message that notifies the other servers of a sign-out.
    pub fn message_of(&self, who: SignedOut) -> String {
        serialise(&Message { from: self.id, events: vec![Event::SignedOut(who)] })
    }

    /// The message that notifies the other servers of a change of members. A server of an earlier release cannot read
    /// it, so it has no other event.
    pub fn message_of_members(&self, change: MemberChange) -> String {
        serialise(&Message { from: self.id, events: vec![Event::Members(change)] })
    }

    /// Reports a durable version of this server.
    pub fn moved(&self, owner: Owner, version: Version) {
        self.publish(Event::Moved(owner, version));
    }

    /// Reports a lease that this server gave out.
    pub fn taken(&self, owner: Owner, lease: &LeaseState) {
        if let (Some(holder), Some(until)) = (lease.holder, lease.until) {
            let name = lease.holder_name.clone();
            let [since, until, now] = [lease.since, until, lease.now].map(Timestamp::ms);
            self.publish(Event::Taken { owner, fence: lease.fence, holder, name, since, until, now });
        }
    }

    /// Reports a lease that this server ended.
    pub fn freed(&self, owner: Owner) {
        self.publish(Event::Freed(owner));
    }

    /// Ends the threads.
    pub fn end(&self) {
        self.over.store(true, Ordering::SeqCst);
        self.out.lock().take();
    }

    fn publish(&self, events: Event) {
        self.deliver(&events);
        if let Some(out) = &*self.out.lock() {
            let _ = out.send(events);
        }
    }

    fn deliver(&self, events: &Event) {
        match events {
            Event::Moved(owner, version) => {
                let listeners = self.moved.read();
                if listeners.is_empty() {
                    return;
                }
                let mut last_versions = self.last_versions.lock();
                if last_versions.len() >= OWNERS_MAX {
                    last_versions.clear();
                }
                let last = last_versions.entry(*owner).or_insert(Version(0));
                if *version > *last {
                    *last = *version;
                    // Called under the mutex; otherwise a later version could be reported first.
                    listeners.iter().for_each(|listener| call_listener(|| listener(*owner, *version)));
                }
            }
            Event::Taken { owner, fence, holder, name, since, until, now } => {
                let lease = LeaseState {
                    fence: *fence,
                    holder: Some(*holder),
                    holder_name: name.clone(),
                    since: Timestamp::from_ms(*since),
                    until: Some(Timestamp::from_ms(*until)),
                    now: Timestamp::from_ms(*now),
                };
                let listeners = self.leases.read();
                listeners.iter().for_each(|listener| call_listener(|| listener(*owner, Some(&lease))));
            }
            Event::Freed(owner) => {
                let listeners = self.leases.read();
                listeners.iter().for_each(|listener| call_listener(|| listener(*owner, None)));
            }
            Event::SignedOut(who) => {
                self.sign_outs.read().iter().for_each(|listener| call_listener(|| listener(*who)));
            }
            Event::Members(change) => {
                self.members.read().iter().for_each(|listener| call_listener(|| listener(*change)));
            }
        }
    }

    /// Starts the threads when the first listener is added.
    fn begin(self: &Arc<Self>) {
        let mut out = self.out.lock();
        if out.is_some() || self.over.load(Ordering::SeqCst) {
            return;
        }
        let (sender, receiver) = channel();
        *out = Some(sender);
        let (talker, listener) = (Arc::clone(self), Arc::clone(self));
        std::thread::spawn(move || talker.send_events(&receiver));
        std::thread::spawn(move || listener.listen());
    }

    /// Sends events to the other servers, as many at once as have accumulated.
    fn send_events(&self, events: &Receiver<Event>) {
        let mut client: Option<Client> = None;
        let mut waiting = None;
        while let Some(first) = waiting.take().or_else(|| events.recv().ok()) {
            let mut message = Message { from: self.id, events: vec![first] };
            let mut payload = serialise(&message);
            while let Ok(next) = events.try_recv() {
                message.events.push(next);
                let longer = serialise(&message);
                if longer.len() > MESSAGE_BYTES_MAX {
                    waiting = message.events.pop();
                    break;
                }
                payload = longer;
            }
            if client.as_ref().is_none_or(Client::is_closed) {
                client = self.address.connect(PATIENCE, None).ok();
            }
            let sent = client.as_mut().map(|client| client.query_typed(NOTIFY, &[(&payload, Type::TEXT)]));
            if !matches!(sent, Some(Ok(_))) {
                client = None;
                tracing::debug!("could not notify the other servers");
            }
        }
    }

    fn listen(&self) {
        while !self.over.load(Ordering::SeqCst) {
            if let Err(error) = self.listen_once() {
                tracing::warn!(%error, "cannot receive notifications of the other servers; trying again");
                std::thread::sleep(PATIENCE);
            }
        }
    }

    fn listen_once(&self) -> Result<(), postgres::Error> {
        let mut client = self.address.connect(PATIENCE * 4, None)?;
        client.batch_execute(LISTEN)?;
        loop {
            let received = client.notifications().timeout_iter(PATIENCE).for_each(|message| {
                match serde_json::from_str::<Message>(message.payload()) {
                    Ok(message) if message.from == self.id => {}
                    Ok(message) => message.events.iter().for_each(|events| self.deliver(events)),
                    Err(error) => tracing::debug!(%error, "a notification that is not rollcall's"),
                }
                Ok(())
            });
            received?;
            if self.over.load(Ordering::SeqCst) {
                return Ok(());
            }
            if client.is_closed() {
                return client.batch_execute(LISTEN); // it returns the reason
            }
        }
    }
}

fn serialise(message: &Message) -> String {
    // Serialising a struct of strings and numbers cannot fail.
    serde_json::to_string(message).unwrap_or_default()
}

/// Calls a listener; its panic is only logged.
fn call_listener(call: impl FnOnce()) {
    if catch_unwind(AssertUnwindSafe(call)).is_err() {
        tracing::error!("a listener panicked");
    }
}

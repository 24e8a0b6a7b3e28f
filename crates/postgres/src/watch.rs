//! News between the servers on one database: whose version moved, whose lock changed hands, who was signed out.
//!
//! A server tells the others after its commit and not in the transaction: PostgreSQL lets only one transaction with
//! a `NOTIFY` in it commit at a time, fsync and all. So news can be lost with the server that has it, and is a hint:
//! nothing is answered from it.

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
use rollcall_core::storage::accounts::{SignOutListener, SignedOut};
use rollcall_core::storage::{LeaseListener, LeaseState, VersionListener};

const LISTEN: &str = "LISTEN rollcall";
pub(super) const NOTIFY: &str = "SELECT pg_notify('rollcall', $1)";

/// One note carries at most 8,000 bytes.
const NOTE_BYTES_MAX: usize = 6_000;

/// How soon a thread sees that the server is about to end, and how long it waits for a lost connection.
const PATIENCE: Duration = Duration::from_millis(500);

/// Owners whose last version told is remembered, so that versions are told in order.
const OWNERS_MAX: usize = 32_768;

/// Something that happened to an owner.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum News {
    Moved(Owner, Version),
    Taken { owner: Owner, fence: Fence, holder: DeviceId, name: String, since: i64, until: i64, now: i64 },
    Freed(Owner),
    SignedOut(SignedOut),
}

/// What one server tells the others in one go.
#[derive(Serialize, Deserialize)]
struct Note {
    from: Uuid,
    news: Vec<News>,
}

/// Who hears of news, of this server and of the others.
pub(super) struct Watch {
    address: Address,
    /// This server, which does not listen to itself.
    id: Uuid,
    moved: RwLock<Vec<VersionListener>>,
    leases: RwLock<Vec<LeaseListener>>,
    sign_outs: RwLock<Vec<SignOutListener>>,
    told: Mutex<HashMap<Owner, Version>>,
    out: Mutex<Option<Sender<News>>>,
    over: AtomicBool,
}

impl Watch {
    pub fn new(address: Address) -> Arc<Self> {
        Arc::new(Self {
            address,
            id: Uuid::new_v4(),
            moved: RwLock::default(),
            leases: RwLock::default(),
            sign_outs: RwLock::default(),
            told: Mutex::default(),
            out: Mutex::default(),
            over: AtomicBool::new(false),
        })
    }

    /// `told` hears of versions that move.
    pub fn on_moved(self: &Arc<Self>, listener: VersionListener) {
        self.moved.write().push(listener);
        self.begin();
    }

    /// `told` hears of leases that are given or end.
    pub fn on_leased(self: &Arc<Self>, listener: LeaseListener) {
        self.leases.write().push(listener);
        self.begin();
    }

    /// `told` hears of those whom other servers signed out.
    pub fn on_signed_out(self: &Arc<Self>, listener: SignOutListener) {
        self.sign_outs.write().push(listener);
        self.begin();
    }

    /// What to tell the others of a sign-out of this server's.
    pub fn note_of(&self, who: SignedOut) -> String {
        spelt(&Note { from: self.id, news: vec![News::SignedOut(who)] })
    }

    /// A version of this server's making is durable.
    pub fn moved(&self, owner: Owner, version: Version) {
        self.happened(News::Moved(owner, version));
    }

    /// This server gave out a lease.
    pub fn taken(&self, owner: Owner, lease: &LeaseState) {
        if let (Some(holder), Some(until)) = (lease.holder, lease.until) {
            let name = lease.holder_name.clone();
            let [since, until, now] = [lease.since, until, lease.now].map(Timestamp::ms);
            self.happened(News::Taken { owner, fence: lease.fence, holder, name, since, until, now });
        }
    }

    /// This server ended a lease.
    pub fn freed(&self, owner: Owner) {
        self.happened(News::Freed(owner));
    }

    /// Lets the threads end.
    pub fn end(&self) {
        self.over.store(true, Ordering::SeqCst);
        self.out.lock().take();
    }

    fn happened(&self, news: News) {
        self.hear(&news);
        if let Some(out) = &*self.out.lock() {
            let _ = out.send(news);
        }
    }

    fn hear(&self, news: &News) {
        match news {
            News::Moved(owner, version) => {
                let listeners = self.moved.read();
                if listeners.is_empty() {
                    return;
                }
                let mut told = self.told.lock();
                if told.len() >= OWNERS_MAX {
                    told.clear();
                }
                let last = told.entry(*owner).or_insert(Version(0));
                if *version > *last {
                    *last = *version;
                    // Under the mutex, or a later version could be told first.
                    listeners.iter().for_each(|listener| harmless(|| listener(*owner, *version)));
                }
            }
            News::Taken { owner, fence, holder, name, since, until, now } => {
                let lease = LeaseState {
                    fence: *fence,
                    holder: Some(*holder),
                    holder_name: name.clone(),
                    since: Timestamp::from_ms(*since),
                    until: Some(Timestamp::from_ms(*until)),
                    now: Timestamp::from_ms(*now),
                };
                let listeners = self.leases.read();
                listeners.iter().for_each(|listener| harmless(|| listener(*owner, Some(&lease))));
            }
            News::Freed(owner) => {
                let listeners = self.leases.read();
                listeners.iter().for_each(|listener| harmless(|| listener(*owner, None)));
            }
            News::SignedOut(who) => {
                self.sign_outs.read().iter().for_each(|listener| harmless(|| listener(*who)));
            }
        }
    }

    /// Begins to talk with the other servers, once somebody listens.
    fn begin(self: &Arc<Self>) {
        let mut out = self.out.lock();
        if out.is_some() || self.over.load(Ordering::SeqCst) {
            return;
        }
        let (sender, receiver) = channel();
        *out = Some(sender);
        let (talker, listener) = (Arc::clone(self), Arc::clone(self));
        std::thread::spawn(move || talker.talk(&receiver));
        std::thread::spawn(move || listener.listen());
    }

    /// Tells the others, as much at a time as has come up meanwhile.
    fn talk(&self, news: &Receiver<News>) {
        let mut client: Option<Client> = None;
        let mut waiting = None;
        while let Some(first) = waiting.take().or_else(|| news.recv().ok()) {
            let mut note = Note { from: self.id, news: vec![first] };
            let mut payload = spelt(&note);
            while let Ok(next) = news.try_recv() {
                note.news.push(next);
                let longer = spelt(&note);
                if longer.len() > NOTE_BYTES_MAX {
                    waiting = note.news.pop();
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
                tracing::debug!("could not tell the other servers what happened");
            }
        }
    }

    fn listen(&self) {
        while !self.over.load(Ordering::SeqCst) {
            if let Err(error) = self.listen_once() {
                tracing::warn!(%error, "cannot hear from the other servers; trying again");
                std::thread::sleep(PATIENCE);
            }
        }
    }

    fn listen_once(&self) -> Result<(), postgres::Error> {
        let mut client = self.address.connect(PATIENCE * 4, None)?;
        client.batch_execute(LISTEN)?;
        loop {
            let heard = client.notifications().timeout_iter(PATIENCE).for_each(|note| {
                match serde_json::from_str::<Note>(note.payload()) {
                    Ok(note) if note.from == self.id => {}
                    Ok(note) => note.news.iter().for_each(|news| self.hear(news)),
                    Err(error) => tracing::debug!(%error, "a note that is none of rollcall's"),
                }
                Ok(())
            });
            heard?;
            if self.over.load(Ordering::SeqCst) {
                return Ok(());
            }
            if client.is_closed() {
                return client.batch_execute(LISTEN); // which says why
            }
        }
    }
}

fn spelt(note: &Note) -> String {
    // A struct of strings and numbers always has a spelling.
    serde_json::to_string(note).unwrap_or_default()
}

/// A listener that fails harms nobody.
fn harmless(tell: impl FnOnce()) {
    if catch_unwind(AssertUnwindSafe(tell)).is_err() {
        tracing::error!("a listener panicked");
    }
}

use std::error::Error;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use sha2::{Digest, Sha256};

use crate::accounts::installations::{Counters, Lookup, resolve};
use crate::accounts::invitations::Invitations;
use crate::accounts::rights::{self, Rights, RightsError, Roles};
use crate::accounts::{Accounts, Caller, PublicReaders};
use crate::clock::Clock;
use crate::config::Settings;
use crate::contract;
use crate::dialects;
use crate::erasure::{self, ErasureTerms};
use crate::http::owner_lists::OwnerLists;
use crate::http::readers::Readers;
use crate::http::response_cache::ResponseCache;
use crate::http::{ApiError, BadSetting, Bounds, Console, Draining, Events, Memory};
use crate::locks::{LocalLocks, Locks, SharedLocks};
use crate::metrics::Metrics;
use crate::model::{DeviceId, InstallationName, Owner, Timestamp};
use crate::purge::Acks;
use crate::schema::Schema;
use crate::storage::accounts::MemberChange;
use crate::storage::readable::Readable;
use crate::storage::{Installation, LeaseTerms, Leases, OwnerState, ReadTxn, Storage, StorageResult};
use crate::synchronise::Terms;

/// All parts of a server that a request may need.
pub struct App {
    /// The declared tables.
    pub schema: Arc<Schema>,
    /// The storage engine.
    pub storage: Arc<dyn Storage>,
    /// The sync locks.
    pub locks: Arc<dyn Locks>,
    /// The cursors that devices have acknowledged.
    pub acks: Acks,
    /// Users, devices and their tokens.
    pub accounts: Accounts,
    /// The roles that were read a while ago.
    pub roles: Roles,
    /// What `GET /owners` returned a while ago.
    pub(super) owner_lists: OwnerLists,
    /// Invitations and their limits.
    pub invitations: Invitations,
    /// How often an address reads public owners without a token.
    pub public_readers: PublicReaders,
    /// The counters of installations, if no other server can raise them.
    pub counters: Option<Counters>,
    /// The server's clock.
    pub clock: Clock,
    /// The settings of this run.
    pub settings: Settings,
    /// The deadlines and sizes of this run.
    pub bounds: Arc<Bounds>,
    /// The counters and gauges.
    pub metrics: Arc<Metrics>,
    /// Cached values of the console.
    pub console: Console,
    /// The listeners of event streams.
    pub events: Arc<Events>,
    /// The cache of response bodies.
    pub(super) responses: Arc<ResponseCache>,
    /// The memory budget of requests.
    pub memory: Arc<Memory>,
    /// Limits long reads.
    pub(crate) readers: Arc<Readers>,
    /// Whether the server is stopping.
    pub draining: Draining,
    /// Held while rows of erased owners are removed.
    erasing: parking_lot::Mutex<erasure::Emptied>,
    /// What the dialects keep in memory.
    pub(crate) dialects: dialects::State,
    /// The contract of the declared tables, built on the first request.
    pub contract: OnceLock<Arc<Contract>>,
}

/// A document that is served unchanged.
pub struct Contract {
    /// The document.
    pub text: Bytes,
    /// Its entity tag.
    pub etag: String,
}

impl App {
    /// The limits and times of a device's request that arrived at `received`.
    pub fn terms(&self, device: DeviceId, rights: Rights, received: Timestamp) -> Terms {
        let limits = &self.settings.limits;
        Terms {
            device,
            role: rights.role,
            since: rights.seen_since(),
            received,
            now: self.clock.now(),
            row_bytes_max: limits.row_bytes_max,
            batch_bytes_max: limits.batch_bytes_max,
            owner_rows_max: limits.owner_rows_max,
            owner_bytes_max: limits.owner_bytes_max,
            owner_past_bytes_max: limits.owner_past_bytes_max,
            mass_delete_rows: self.settings.sync.mass_delete_rows,
            mass_delete_window_ms: i64::from(self.settings.sync.mass_delete_window_s) * 1_000,
            pull_rows_max: self.settings.sync.changes_rows_max,
            pull_entries_max: self.settings.sync.page_entries_max,
            pull_bytes_max: self.settings.sync.changes_bytes_max,
        }
    }

    /// The contract of the declared tables, built on the first call.
    pub fn contract(&self) -> Result<Arc<Contract>, ApiError> {
        if let Some(made) = self.contract.get() {
            return Ok(Arc::clone(made));
        }
        let text = contract::typed(&self.schema, &self.settings.dialects.dialects)
            .map_err(Box::<dyn Error + Send + Sync>::from)
            .and_then(|document| Ok(Bytes::from(serde_json::to_vec(&document)?)))
            .map_err(ApiError::Internal)?;
        let hash = Sha256::digest(&text);
        let hash: String = hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        let etag = format!("W/\"{hash}\"");
        Ok(Arc::clone(self.contract.get_or_init(|| Arc::new(Contract { text, etag }))))
    }

    /// The rights of a caller as of a transaction.
    ///
    /// Errors: 403 `not_a_member`.
    pub fn rights(&self, caller: &Caller, txn: &mut dyn ReadTxn) -> Result<Rights, ApiError> {
        let rights = rights::rights(&self.roles, caller, txn);
        rights.map_err(|error| match error {
            RightsError::NotAMember if caller.is_nobody() => ApiError::no_token(),
            error => error.into(),
        })
    }

    /// The caller with the rights that it has now.
    ///
    /// Errors: 403 `not_a_member`.
    pub fn with_rights(&self, caller: Caller) -> Result<Caller, ApiError> {
        let rights = rights::look_up(&self.roles, &caller, &*self.storage.accounts())?;
        Ok(Caller { rights, ..caller })
    }

    /// Reads for a caller over one snapshot, in which tables that it may not read look empty.
    ///
    /// Errors: 403 `not_a_member`.
    pub fn read_as<T>(
        &self,
        caller: &Caller,
        mut work: impl FnMut(&mut dyn ReadTxn, Sight) -> Result<T, ApiError>,
    ) -> Result<T, ApiError> {
        self.storage.read(caller.owner, |txn| {
            let rights = self.rights(caller, txn)?;
            let hidden = self.schema.hidden_from(rights.role);
            let sight = Sight { state: rights.seen(txn.state()), rights, hidden };
            match hidden {
                0 => work(txn, sight),
                _ => work(&mut Readable::new(txn, &self.schema, rights.role), sight),
            }
        })
    }

    /// Resolves a caller that names its installation.
    pub fn identify(&self, caller: &Caller, sent: InstallationName) -> StorageResult<Caller> {
        let mut lookup = Looking { app: self, owner: caller.owner };
        resolve(caller, sent, &mut lookup, self.settings.limits.devices_per_user_max, self.clock.now())
    }

    /// Updates the cache after a commit: the installation's counter, and the devices that no longer keep
    /// tombstones.
    pub fn note_installation(&self, caller: &Caller, forgotten: &[DeviceId]) {
        for device in forgotten {
            self.acks.forget(caller.owner, *device);
            self.counters.iter().for_each(|counters| counters.forget(caller.owner, *device));
        }
        if let (Some(counters), Some(known)) = (&self.counters, caller.installation) {
            counters.raised(caller.owner, caller.device, known.sent.counter);
        }
    }

    /// Reports that an owner's members are others, or have other roles, to the streams here and on other servers.
    pub fn members_changed(&self, change: MemberChange) {
        change.user.inspect(|user| self.owner_lists.joined(*user));
        self.events.members_changed(change);
        self.storage.accounts().notify_members_changed(change);
    }

    /// Removes the rows of erased owners on a thread of its own. What it does not come to, housekeeping does.
    pub fn erase_soon(self: &Arc<Self>) {
        let app = Arc::clone(self);
        tokio::task::spawn_blocking(move || {
            if let Err(error) = app.erase() {
                tracing::warn!(%error, "could not remove the rows of an erased account; trying again later");
            }
        });
    }

    /// Removes the rows of erased owners, until the server is about to stop. One thread does so at a time.
    pub fn erase(&self) -> StorageResult<()> {
        let Some(mut emptied) = self.erasing.try_lock() else { return Ok(()) };
        let mut go_on = || !self.draining.is_set();
        let limits = &self.settings.limits;
        let late_ms = limits.body_s.saturating_add(limits.request_s).saturating_mul(1_000);
        let late_ms = i64::try_from(late_ms).unwrap_or(i64::MAX);
        let terms = ErasureTerms { now: self.clock.now(), rows_max: limits.rows_max, late_ms };
        let steps = erasure::run(&*self.storage, terms, &mut emptied, &mut go_on)?;
        if steps > 0 {
            tracing::info!(steps, "removed the rows of erased accounts");
        }
        Ok(())
    }

    /// Puts the parts of a server together.
    ///
    /// Errors: [`BadSetting`] for a setting that can only be checked here.
    pub fn new(
        schema: Arc<Schema>,
        storage: Arc<dyn Storage>,
        accounts: Accounts,
        clock: Clock,
        settings: Settings,
        metrics: Arc<Metrics>,
    ) -> Result<Arc<Self>, BadSetting> {
        let terms = LeaseTerms::new(settings.sync.lease_ms, settings.sync.lock_hold_max_s);
        let locks: Arc<dyn Locks> = match storage.leases() {
            Leases::InMemory(first_fence) => LocalLocks::new(first_fence, terms, clock.clone()),
            Leases::Shared(store) => SharedLocks::new(store, terms, clock.clone()),
        };
        let bounds = Arc::new(Bounds::from_settings(&settings)?);
        dialects::check(&settings, &schema)?;
        let memory = Memory::from_settings(&settings, Arc::clone(&metrics))?;
        let dialects = dialects::State::new(&settings);
        let draining = Draining::default();
        let acks = Acks::default();
        let invitations = Invitations::new(&settings.limits, &clock);
        let public_readers = PublicReaders::new(&settings.limits, &clock);
        let counters = matches!(storage.leases(), Leases::InMemory(_)).then(Counters::default);
        let console = Console::new(clock.now());
        let events = Events::new(&settings.limits, Arc::clone(&metrics));
        let (of_versions, of_locks) = (Arc::clone(&events), Arc::clone(&events));
        let of_members = Arc::clone(&events);
        storage.accounts().on_members_changed(Arc::new(move |change| of_members.members_changed(change)));
        storage.on_moved(Arc::new(move |owner, version| of_versions.moved(owner, version)));
        locks.on_changed(Arc::new(move |owner, lease| of_locks.locked(owner, lease)));
        let contract = OnceLock::new();
        let responses = Arc::new(ResponseCache::new(settings.memory.ready_bytes_max));
        let moved = Arc::clone(&responses);
        storage.on_moved(Arc::new(move |owner, version| moved.moved(owner, version)));
        let busy_wait = Duration::from_millis(settings.limits.busy_wait_ms);
        let engine = Arc::downgrade(&storage); // it reports to the metrics and must not live as long
        metrics.at_scrape(move |metrics| {
            let bytes = engine.upgrade().map_or(0, |engine| engine.log_bytes());
            metrics.wal_bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
        });
        accounts.local().inspect(|local| local.count_mails(&metrics));
        let readers = Readers::new(settings.limits.readers_max, busy_wait);
        Ok(Arc::new(Self {
            schema,
            storage,
            locks,
            acks,
            accounts,
            roles: Roles::default(),
            owner_lists: OwnerLists::default(),
            invitations,
            public_readers,
            counters,
            clock,
            settings,
            bounds,
            metrics,
            console,
            events,
            responses,
            memory,
            readers,
            draining,
            erasing: parking_lot::Mutex::default(),
            dialects,
            contract,
        }))
    }
}

/// How a caller sees an owner in one snapshot.
#[derive(Clone, Copy, Debug)]
pub struct Sight {
    /// The owner's state as the caller may see it.
    pub state: OwnerState,
    /// What the caller may do.
    pub rights: Rights,
    /// How many tables look empty to it. Responses to callers that read different tables differ.
    pub hidden: usize,
}

/// Looks up installations, in the cache if possible.
struct Looking<'a> {
    app: &'a App,
    owner: Owner,
}

impl Lookup for Looking<'_> {
    fn counter(&mut self, device: DeviceId) -> StorageResult<Option<u64>> {
        let Self { app, owner } = *self;
        let Some(counters) = &app.counters else { return app.storage.counter(owner, device) };
        if let Some(known) = counters.find(owner, device) {
            return Ok(Some(known));
        }
        let since = counters.stamp();
        let found = app.storage.counter(owner, device)?;
        found.inspect(|counter| counters.found(owner, device, *counter, since));
        Ok(found)
    }

    fn all(&mut self) -> StorageResult<Vec<Installation>> {
        self.app.storage.read(self.owner, |txn| txn.installations())
    }
}

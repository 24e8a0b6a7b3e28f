//! One database for two servers: SQLite with leases beside it, as several servers share them, and a line from each
//! server that breaks.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rollcall::clock::Clock;
use rollcall::digest::Digest;
use rollcall::model::{
    DeviceId, EarlierState, Fence, Owner, Role, RowKey, Stored, Timestamp, Value, Version,
};
use rollcall::schema::{Schema, TableId};
use rollcall::storage::sqlite::{Connections, CopyError, Sqlite, backup, restore};
use rollcall::storage::{
    AccountStore, Census, ChangeSink, Conflict, ConflictPage, DeleteWindow, FeedPosition, Installation,
    Invitation, LeaseListener, LeaseState, LeaseStore, LeaseTerms, Leases as KeptLeases, Member, MemberReads,
    MemberWrites, Outcome, OwnerState, Owners, PastBytes, PurgeTerms, Purged, ReadTxn, ReadWork, Replaced,
    ResponsesMax, Storage, StorageError, StorageResult, StoredResponse, VersionListener, Walked,
    WantedConflicts, WriteTxn, WriteWork,
};
use rollcall_testkit::forward;
use uuid::Uuid;

use crate::leases::Leases;
use crate::rng::Rng;
use crate::truth::{Check, Data, Done, Rows, Truth, plain};

pub struct Database {
    /// The engine; `None` while the file is another one's.
    engine: Mutex<Option<Arc<dyn Storage>>>,
    folder: PathBuf,
    schema: Arc<Schema>,
    /// How often the file was put back.
    restores: AtomicU64,
    /// How often another file replaced it.
    swaps: AtomicU64,
    /// What there was when the copy was made.
    copied: Mutex<Option<(BTreeMap<Owner, Data>, Leases)>>,
    pub truth: Mutex<Truth>,
    /// What did not hold.
    pub broken: Mutex<Option<String>>,
    leases: Mutex<Leases>,
    clock: Clock,
    listeners: Mutex<BTreeMap<usize, Listeners>>,
    /// Set when no more faults are injected.
    calm: AtomicBool,
    rng: Mutex<Rng>,
}

#[derive(Default)]
struct Listeners {
    moved: Vec<VersionListener>,
    leased: Vec<LeaseListener>,
}

/// How long the engine may keep its caller waiting, by the machine's own clock. So long that a busy machine never
/// decides what a run does.
const PATIENCE: Duration = Duration::from_secs(600);

impl Database {
    pub fn open(folder: PathBuf, schema: &Arc<Schema>, clock: Clock, rng: Rng) -> Arc<Self> {
        let database = Self {
            engine: Mutex::default(),
            folder,
            schema: Arc::clone(schema),
            restores: AtomicU64::new(0),
            swaps: AtomicU64::new(0),
            copied: Mutex::default(),
            truth: Mutex::default(),
            broken: Mutex::default(),
            leases: Mutex::default(),
            clock,
            listeners: Mutex::default(),
            calm: AtomicBool::new(false),
            rng: Mutex::new(rng),
        };
        database.start();
        Arc::new(database)
    }

    fn file(&self) -> PathBuf {
        self.folder.join(format!("server-{}.db", self.swaps.load(Ordering::SeqCst)))
    }

    fn copy(&self) -> PathBuf {
        self.folder.join("copy.db")
    }

    fn start(&self) {
        let (path, schema, now) = (self.file(), Arc::clone(&self.schema), self.clock.now());
        let connections = Connections::open(&path, PATIENCE, 2).unwrap();
        let engine = Sqlite::serve(&path, connections, schema, now, Arc::new(())).unwrap();
        *self.engine.lock() = Some(Arc::new(engine));
    }

    /// The engine of now.
    pub fn engine(&self) -> Arc<dyn Storage> {
        self.engine.lock().clone().unwrap()
    }

    /// Makes a copy of everything.
    pub fn back_up(&self) {
        backup(&self.file(), &self.copy(), true, Duration::from_secs(5), &mut |_| true).unwrap();
        let owners = self.truth.lock().owners.clone();
        *self.copied.lock() = Some((owners, self.leases.lock().clone()));
    }

    /// How often the database was put back.
    pub fn restores(&self) -> u64 {
        self.restores.load(Ordering::SeqCst)
    }

    /// Whether there is a copy.
    pub fn has_copy(&self) -> bool {
        self.copied.lock().is_some()
    }

    /// Replaces the database by the copy, while no server runs. `unsaid`: no server or command is informed.
    pub fn put_back(&self, unsaid: bool) -> Check {
        self.listeners.lock().clear();
        drop(self.engine.lock().take());
        if unsaid {
            self.swap();
        } else {
            self.restore();
        }
        self.start();
        let (copied, mut leases) = self.copied.lock().clone().unwrap();
        leases.begin_epoch(1 + self.restores.fetch_add(1, Ordering::SeqCst));
        *self.leases.lock() = leases;
        let owners: Vec<Owner> = self.truth.lock().numbers.keys().copied().collect();
        owners.into_iter().try_for_each(|owner| {
            let (state, rows) = self.held(owner);
            self.truth.lock().restored(owner, copied.get(&owner), state, rows)
        })
    }

    fn restore(&self) {
        // A pool that was dropped may be opening its last connection still.
        let until = Instant::now() + PATIENCE;
        let now = self.clock.now();
        while let Err(error) = restore(&self.copy(), &self.file(), true, now, &mut |_| true) {
            assert!(matches!(error, CopyError::InUse(_)) && Instant::now() < until, "{error}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// A file copied back, beside which lies what the last server left there.
    fn swap(&self) {
        let old = self.file();
        self.swaps.fetch_add(1, Ordering::SeqCst); // a server with the old file still open does nothing to the new one
        let new = self.file();
        std::fs::copy(self.copy(), &new).unwrap();
        std::fs::copy(format!("{}.past", old.display()), format!("{}.past", new.display())).unwrap();
    }

    /// Ends all faults of its own.
    pub fn calm(&self) {
        self.calm.store(true, Ordering::SeqCst);
    }

    fn often(&self, in_thousand: u64) -> bool {
        !self.calm.load(Ordering::SeqCst) && self.rng.lock().often(in_thousand)
    }

    /// Records a failed check; the first one counts.
    pub fn note(&self, check: Check) {
        if let Err(what) = check {
            self.broken.lock().get_or_insert(what);
        }
    }

    /// Everything of an owner, as the engine has it.
    pub fn held(&self, owner: Owner) -> (OwnerState, Rows) {
        let from = FeedPosition { version: Version(0), within: None };
        let read = self.engine().read(owner, |txn| {
            let mut rows = Rows::new();
            txn.changes(from, Version(1 << 53), &mut |table, key, row| {
                rows.insert((table, key), row.clone());
                true
            })?;
            Ok::<_, StorageError>((txn.state(), rows))
        });
        read.unwrap()
    }

    /// Exactly the old data is forgotten.
    fn purged(&self, owner: Owner) -> Check {
        let (state, rows) = self.held(owner);
        let mut truth = self.truth.lock();
        let data = truth.owners.entry(owner).or_default();
        data.rows
            .retain(|id, row| !row.is_tombstone() || row.version > state.horizon || rows.contains_key(id));
        truth.check_held(owner, state, &rows)
    }

    /// Notifications go from the server where they arise to the others, or get lost on the way.
    fn tell(&self, from: usize, each: impl Fn(&Listeners)) {
        let lost = self.often(500);
        for (_, listeners) in self.listeners.lock().iter().filter(|(to, _)| **to == from || !lost) {
            each(listeners);
        }
    }
}

/// One server's way to the database, for one life of that server.
pub struct Line {
    database: Arc<Database>,
    engine: Arc<dyn Storage>,
    server: usize,
    /// The database cannot be reached.
    pub cut: AtomicBool,
}

impl Line {
    pub fn new(database: &Arc<Database>, server: usize) -> Arc<Self> {
        database.listeners.lock().insert(server, Listeners::default());
        let (database, engine) = (Arc::clone(database), database.engine());
        Arc::new(Self { database, engine, server, cut: AtomicBool::new(false) })
    }

    fn reach(&self) -> StorageResult<&Database> {
        if self.cut.load(Ordering::SeqCst) || self.database.often(3) {
            return Err(StorageError::Busy);
        }
        Ok(&self.database)
    }

    fn leases<T>(&self, work: impl FnOnce(&mut Leases, Timestamp) -> T) -> StorageResult<T> {
        let database = self.reach()?;
        Ok(work(&mut database.leases.lock(), database.clock.now()))
    }

    fn result(&self, owner: Owner, lease: Option<&LeaseState>) {
        self.database.tell(self.server, |to| to.leased.iter().for_each(|result| result(owner, lease)));
    }
}

/// As a server sees it: through a line of its own.
pub struct Shared(pub Arc<Line>);

impl Storage for Shared {
    fn run_read(&self, owner: Owner, work: ReadWork<'_>) -> StorageResult<()> {
        self.0.reach()?;
        self.0.engine.run_read(owner, work)
    }

    fn run_write(&self, owner: Owner, work: WriteWork<'_>) -> StorageResult<()> {
        let database = self.0.reach()?;
        let lease = database.leases.lock().of_write(owner, database.clock.now());
        // The connection may break as COMMIT is on its way: before it arrives, or after.
        let breaks = database.often(10).then(|| database.often(500));
        let mut done = None;
        self.0.engine.run_write(owner, &mut |txn| {
            let mut seen = Done::default();
            let outcome = work(&mut Watched { inner: txn, owner, database, lease: &lease, done: &mut seen })?;
            let kept = outcome == Outcome::Commit && breaks != Some(false);
            done = kept.then_some(seen);
            Ok(if kept { Outcome::Commit } else { Outcome::Rollback })
        })?;
        if let Some(done) = done {
            let (moved, purged) = (done.state.map(|state| state.version), done.purged);
            database.note(database.truth.lock().committed(owner, done, &lease));
            if purged {
                database.note(database.purged(owner));
            }
            if let Some(version) = moved {
                database.tell(self.0.server, |to| to.moved.iter().for_each(|result| result(owner, version)));
            }
        }
        if breaks.is_some() { Err(StorageError::OutcomeUnknown) } else { Ok(()) }
    }

    fn known_state(&self, _: Owner) -> Option<OwnerState> {
        None
    }

    fn on_moved(&self, listener: VersionListener) {
        let mut listeners = self.0.database.listeners.lock();
        listeners.entry(self.0.server).or_default().moved.push(listener);
    }

    fn ready(&self) -> StorageResult<()> {
        self.0.reach()?;
        self.0.engine.ready()
    }

    fn owners(&self) -> &dyn Owners {
        self.0.engine.owners()
    }

    fn erase(&self, owner: Owner, rows_max: usize) -> StorageResult<bool> {
        self.0.engine.erase(owner, rows_max)
    }

    fn accounts(&self) -> Arc<dyn AccountStore> {
        self.0.engine.accounts()
    }

    fn census(&self) -> &dyn Census {
        self.0.engine.census()
    }

    fn leases(&self) -> KeptLeases {
        KeptLeases::Shared(Arc::clone(&self.0) as _)
    }
}

impl LeaseStore for Line {
    fn look(&self, owner: Owner) -> StorageResult<Option<LeaseState>> {
        self.leases(|leases, now| leases.look(owner, now))
    }

    fn held_now(&self, leases_max: usize) -> StorageResult<Vec<(Owner, LeaseState)>> {
        self.leases(|leases, now| leases.held_now(leases_max, now))
    }

    fn take(
        &self,
        owner: Owner,
        device: DeviceId,
        name: &str,
        fence: Option<Fence>,
        terms: LeaseTerms,
    ) -> StorageResult<Option<LeaseState>> {
        let taken = self.leases(|leases, now| leases.take(owner, (device, name), fence, terms, now))?;
        if let Some(lease) = taken.as_ref().filter(|lease| lease.since == lease.now) {
            self.result(owner, Some(lease));
        }
        Ok(taken)
    }

    fn renew(&self, owner: Owner, device: DeviceId, terms: LeaseTerms, below_ms: i64) -> StorageResult<()> {
        self.leases(|leases, now| leases.renew(owner, device, terms, below_ms, now))
    }

    fn cut(&self, owner: Owner, lease_ms: i64) -> StorageResult<()> {
        self.leases(|leases, now| leases.cut(owner, lease_ms, now))
    }

    fn give_back(&self, owner: Owner, device: DeviceId) -> StorageResult<()> {
        if self.leases(|leases, _| leases.give_back(owner, device))? {
            self.result(owner, None);
        }
        Ok(())
    }

    fn on_changed(&self, listener: LeaseListener) {
        self.database.listeners.lock().entry(self.server).or_default().leased.push(listener);
    }

    fn break_open(&self, owner: Owner) -> StorageResult<()> {
        self.leases(|leases, _| leases.break_open(owner))?;
        self.result(owner, None);
        Ok(())
    }
}

/// A transaction, watched.
struct Watched<'a> {
    inner: &'a mut dyn WriteTxn,
    owner: Owner,
    database: &'a Database,
    lease: &'a LeaseState,
    done: &'a mut Done,
}

impl MemberReads for Watched<'_> {
    forward!(member_reads);
}

impl MemberWrites for Watched<'_> {
    forward!(invitation_writes);

    fn put_member(&mut self, member: &Member) -> StorageResult<()> {
        self.done.members.push((member.user, Some(member.role)));
        self.inner.put_member(member)
    }

    fn remove_member(&mut self, user: Uuid) -> StorageResult<bool> {
        self.done.members.push((user, None));
        self.inner.remove_member(user)
    }
}

impl ReadTxn for Watched<'_> {
    forward!(
        state manifest walk digests changes earlier stored_response counter installations delete_windows conflicts
        conflict count_past referring
    );

    fn load(&mut self, table: TableId, keys: &[RowKey]) -> StorageResult<Vec<Option<Stored>>> {
        let rows = self.inner.load(table, keys)?;
        let truth = self.database.truth.lock();
        let known = truth.owners.get(&self.owner).map(|data| &data.rows);
        for (key, row) in keys.iter().zip(&rows) {
            let id = (table, *key);
            let (there, here) = (row.as_ref(), known.and_then(|known| known.get(&id)));
            if there.map(|row| plain((&id, row))) != here.map(|row| plain((&id, row))) {
                self.done.surprise = Some(format!("{id:?} is {there:?}, was {here:?}"));
            }
        }
        Ok(rows)
    }
}

impl WriteTxn for Watched<'_> {
    forward!(
        show_ahead remember note_restored acknowledge forget_device put_delete_window raise_installation
        add_installation forget_installation make_room set_past
    );

    fn lease(&self) -> Option<&LeaseState> {
        Some(self.lease)
    }

    fn put(&mut self, table: TableId, rows: &[(RowKey, &Stored)]) -> StorageResult<()> {
        self.done.rows.extend(rows.iter().map(|(key, row)| ((table, *key), (*row).clone())));
        self.inner.put(table, rows)
    }

    fn advance(
        &mut self,
        state: OwnerState,
        digests: &[(TableId, Digest)],
        now: Timestamp,
    ) -> StorageResult<()> {
        self.done.state = Some(state);
        self.done.digests.extend_from_slice(digests);
        self.inner.advance(state, digests, now)
    }

    fn note_conflict(&mut self, conflict: &Conflict) -> StorageResult<()> {
        let title = conflict.incoming.values.as_ref().and_then(|values| values.first());
        if let Some(Some(Value::Text(title))) = title {
            self.done.noted.push(title.clone());
        }
        self.inner.note_conflict(conflict)
    }

    fn store_response(
        &mut self,
        device: DeviceId,
        key: &str,
        answer: &StoredResponse,
        most: ResponsesMax,
    ) -> StorageResult<()> {
        self.done.answer = Some((device, key.to_owned(), answer.body.clone()));
        self.inner.store_response(device, key, answer, most)
    }

    fn purge(&mut self, terms: &PurgeTerms, rows_max: usize) -> StorageResult<Purged> {
        self.done.purged = true;
        self.inner.purge(terms, rows_max)
    }
}

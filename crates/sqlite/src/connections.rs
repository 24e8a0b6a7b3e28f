use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use r2d2_sqlite::SqliteConnectionManager;
use rusqlite::{Connection, OpenFlags};

use uuid::Uuid;

use super::file::{self, Served, resolved};
use super::migrate::{self, migrate};
use super::owner_states::OwnerStateCache;
use super::past::Beside;
use super::statements::Statements;
use super::txn::{self, Txn};
use super::writer::{Done, Work, Writer};
use super::{OpenError, OwnerJob, accounts, mail_tokens};
use crate::failed;
use rollcall_core::broken;
use rollcall_core::members;
use rollcall_core::model::{DeviceId, Owner, Role, Timestamp, Version};
use rollcall_core::schema::Schema;
use rollcall_core::storage::accounts::{
    AccountStore, Device, Erasure, KeptDevices, MailKind, MailToken, MailTokenUse, Seen, Sighting, Standing,
    TokenHash, User,
};
use rollcall_core::storage::gate::Gate;
use rollcall_core::storage::members::{CodeHash, Membership};
use rollcall_core::storage::{
    EngineObserver, OwnerState, ReadTxn as _, StorageError, StorageResult, not_run,
};

/// The connections to one SQLite file: one for writing, a pool for reading.
pub struct Connections {
    /// SQLite allows one writer. So writers queue here and not inside SQLite, where they would poll.
    writer: Writer<OwnerJob>,
    readers: r2d2::Pool<SqliteConnectionManager>,
    /// Reads of an owner's rows pass this gate, so that the pool always has connections for accounts and
    /// tokens.
    gate: Gate,
    /// Locks the file for the server that opened it.
    pub(super) served: Option<Served>,
}

/// Connections that only accounts and tokens may use, by default.
const FOR_ACCOUNTS: u32 = 2;

/// Earlier libraries can corrupt a database in WAL mode (the WAL-reset race, fixed in 3.51.3).
const SQLITE_VERSION_MIN: i32 = 3_051_003;

/// Statements that a connection keeps prepared; a schema of 100 tables needs about 500.
const STATEMENTS_CACHED: usize = 512;

/// The page cache of the writer. The default of 2 MB is less than one group of jobs changes: pages that do
/// not fit are written to the log before the COMMIT, and again at the COMMIT.
const WRITER_CACHE_KIB: i64 = 16_384;

/// The log is moved into the database once it has this many pages, 16 MB. That costs two fsyncs and a write
/// for each changed page, however often it changed: `cargo run --release --example layouts log` has the
/// figures.
const LOG_PAGES: i64 = 4_000;

/// How much of the log's file is kept after it was moved into the database, bytes: four times its usual size
/// on a quiet machine.
const LOG_BYTES_KEPT: i64 = 4 * LOG_PAGES * 4_096;

impl Connections {
    /// Opens the file for its one server, like [`Self::open`]; `mode` is the mode of its files.
    ///
    /// - `for_accounts`: additional connections that only accounts and tokens use.
    /// - Errors: also [`OpenError::Served`], before the file is read.
    pub fn open_to_serve(
        path: &Path,
        mode: u32,
        busy_wait: Duration,
        readers_max: u32,
        for_accounts: u32,
    ) -> Result<Self, OpenError> {
        let path = &resolved(path);
        let served = Served::lock(path, mode)?;
        let opened = Self::open_with(path, busy_wait, readers_max, for_accounts)?;
        // Only now: a file that is not a database of rollcall keeps its mode.
        file::set_mode(path, mode);
        Ok(Self { served: Some(served), ..opened })
    }

    /// Opens or creates the file, and brings rollcall's own tables up to date.
    ///
    /// - A symbolic link is followed; a file with two names is refused.
    /// - A new file can be read and written by its owner only, whatever the umask.
    /// - `busy_wait`: how long a writer waits for its turn, and a reader for a connection.
    /// - Errors: [`OpenError`] contains the remedy.
    pub fn open(path: &Path, busy_wait: Duration, readers_max: u32) -> Result<Self, OpenError> {
        Self::open_with(path, busy_wait, readers_max, FOR_ACCOUNTS)
    }

    fn open_with(
        path: &Path,
        busy_wait: Duration,
        readers_max: u32,
        for_accounts: u32,
    ) -> Result<Self, OpenError> {
        if rusqlite::version_number() < SQLITE_VERSION_MIN {
            return Err(OpenError::SqliteTooOld(rusqlite::version().to_owned()));
        }
        let path = &resolved(path);
        file::has_one_name(path)?;
        if !path.exists() {
            // SQLite would create the file with the mode of the umask. It gives its other files the mode and
            // the owner of this one. If the file cannot be created, SQLite's own error is good enough.
            let _ = file::make(path, file::MODE);
        }
        let in_file = |error| OpenError::of(path, &error);
        let mut writer = Connection::open(path).map_err(in_file)?;
        prepare(&writer, busy_wait).and_then(|()| prepare_writer(&writer)).map_err(in_file)?;
        migrate(&mut writer, path)?;

        let manager = SqliteConnectionManager::file(path).with_init(move |reader| {
            prepare(reader, busy_wait)?;
            reader.pragma_update(None, "query_only", true)
        });
        let readers = r2d2::Pool::builder()
            .max_size(readers_max.max(1).saturating_add(for_accounts))
            .min_idle(Some(1))
            .connection_timeout(busy_wait)
            .build(manager)
            .map_err(OpenError::Pool)?;
        let gate = Gate::new(readers_max, busy_wait);
        Ok(Self { writer: Writer::new(writer, busy_wait), readers, gate, served: None })
    }

    /// Opens an existing file for inspection.
    pub fn look(path: &Path, busy_wait: Duration) -> Result<Connection, OpenError> {
        let path = &resolved(path);
        file::has_one_name(path)?;
        let in_file = |error| OpenError::of(path, &error);
        // A read-only connection would leave behind the files that it creates beside the database.
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let conn = Connection::open_with_flags(path, flags).map_err(in_file)?;
        prepare(&conn, busy_wait).map_err(in_file)?;
        conn.pragma_update(None, "query_only", true).map_err(in_file)?;
        migrate::done(&conn, path)?;
        Ok(conn)
    }

    /// Uses the writing connection before anyone else can.
    pub(super) fn preparing<T>(
        &mut self,
        work: impl FnOnce(&mut Connection) -> Result<T, OpenError>,
    ) -> Result<T, OpenError> {
        work(self.writer.conn())
    }

    /// Every owner after `after`, by id, at most `owners_max`.
    /// Uses the writing connection outside of any transaction.
    pub(super) fn outside<T>(&self, work: impl FnOnce(&mut Connection) -> T) -> StorageResult<T> {
        self.writer.outside(work)
    }

    /// Runs work in a transaction of its own.
    pub(super) fn writing<T>(
        &self,
        mut work: impl FnMut(&Connection) -> rusqlite::Result<T>,
    ) -> StorageResult<T> {
        let mut result = None;
        self.writer.run_alone(None, &mut |conn| {
            result = Some(work(conn).map_err(failed)?);
            Ok(Done::Keep)
        })?;
        result.ok_or_else(not_run)
    }

    /// Runs work of an owner in a transaction of its own.
    pub(super) fn writing_for(&self, owner: Owner, work: Work<'_>) -> StorageResult<()> {
        self.writer.run_alone(Some(owner), work)
    }

    /// Writes for an owner without touching its rows, where no schema is at hand. It may run again from the start.
    fn on_owner(
        &self,
        owner: Owner,
        work: &mut (dyn FnMut(&mut Txn<'_>) -> StorageResult<()> + Send),
    ) -> StorageResult<()> {
        let schema = Schema::empty();
        let statements = Statements::new(&schema, &[]);
        self.writing_for(owner, &mut |conn| {
            let mut txn = Txn::begin_write(conn, &schema, &statements, owner)?;
            let before = txn.state().version;
            work(&mut txn)?;
            Ok(Done::Move((owner, before, txn.finish()?)))
        })
    }

    /// The writing connection and its queue.
    pub(super) fn writer(&self) -> &Writer<OwnerJob> {
        &self.writer
    }

    pub(super) fn owner_states(&self) -> &OwnerStateCache {
        &self.writer.owner_states
    }

    /// An owner's current state, if it is known without a transaction.
    pub(super) fn known_state(&self, owner: Owner) -> Option<OwnerState> {
        self.writer.known_state(owner)
    }

    /// Whether these are known to be the current versions, without a transaction.
    pub(super) fn are_current(&self, versions: &[(Owner, Version)]) -> bool {
        self.writer.are_current(versions)
    }

    /// Reads a list of owners, and caches their versions.
    fn listing(
        &self,
        list: impl FnOnce(&Connection, Version) -> rusqlite::Result<Vec<Membership>>,
    ) -> StorageResult<Vec<Membership>> {
        let stamp = self.owner_states().stamp();
        let listed = self.looking_up(|conn| {
            let first = txn::first_version(conn)?;
            list(conn, first).map_err(failed)
        })?;
        self.owner_states().note_versions(stamp, listed.iter().map(|one| (one.owner, one.version)));
        Ok(listed)
    }

    /// Sets how many writers may wait; further ones are refused.
    #[must_use]
    pub fn queueing(mut self, writers_max: usize) -> Self {
        self.writer.queue_max = writers_max;
        self
    }

    /// Starts to record the number of writes beside the database.
    pub(super) fn note_past(&mut self, past: Beside) {
        self.writer.note_past(past);
    }

    /// Sets the observer of commits and of the queue.
    pub(super) fn observe(&mut self, observer: Arc<dyn EngineObserver>) {
        self.writer.observer = observer;
    }

    /// Uses a reading connection.
    pub(super) fn reading<T>(
        &self,
        work: impl FnOnce(&mut Connection) -> StorageResult<T>,
    ) -> StorageResult<T> {
        let _inside = if broken::is("no_reader_for_accounts") { None } else { Some(self.gate.enter()?) };
        self.looking_up(work)
    }

    /// Looks up an account, a token or an installation. It does not wait for long reads.
    pub(super) fn looking_up<T>(
        &self,
        work: impl FnOnce(&mut Connection) -> StorageResult<T>,
    ) -> StorageResult<T> {
        let mut reader = self.readers.get().map_err(|_| StorageError::Busy)?;
        work(&mut reader)
    }
}

impl AccountStore for Connections {
    fn add_user(&self, user: &User) -> StorageResult<bool> {
        // The first user of an owner has its home there, and moves no version of it.
        let first = User { is_home: true, ..user.clone() };
        let added = self.writing(|conn| {
            if accounts::user(conn, &user.email)?.is_some() {
                return Ok(Some(false));
            }
            let is_first = accounts::add_first_member(conn, &first)?;
            if is_first { accounts::add_user(conn, &first).map(Some) } else { Ok(None) }
        })?;
        if let Some(added) = added {
            return Ok(added);
        }
        let guest = User { is_home: false, ..user.clone() };
        let mut added = false;
        self.on_owner(user.owner, &mut |txn| {
            added = accounts::add_user(txn.conn, &guest).map_err(failed)?;
            if added { members::join(txn, guest.id, guest.created_at).map(drop) } else { Ok(()) }
        })?;
        Ok(added)
    }

    fn user(&self, email: &str) -> StorageResult<Option<User>> {
        self.looking_up(|conn| accounts::user(conn, email).map_err(failed))
    }

    fn users(&self) -> StorageResult<Vec<User>> {
        self.looking_up(|conn| accounts::users(conn).map_err(failed))
    }

    fn user_of(&self, id: Uuid) -> StorageResult<Option<User>> {
        self.looking_up(|conn| accounts::user_of(conn, id).map_err(failed))
    }

    fn set_password_hash(&self, user: Uuid, was: &str, hash: &str) -> StorageResult<()> {
        self.writing(|conn| accounts::set_password_hash(conn, user, was, hash))
    }

    fn replace_password(&self, user: Uuid, hash: &str, keep: KeptDevices) -> StorageResult<Vec<DeviceId>> {
        self.writing(|conn| accounts::replace_password(conn, user, hash, keep))
    }

    fn erase_user(&self, user: &User, at: Timestamp, until: Timestamp) -> StorageResult<Vec<DeviceId>> {
        let mut owners = self.looking_up(|conn| accounts::member_of(conn, user.id).map_err(failed))?;
        // The user's own owner comes last, in the transaction that removes the user.
        owners.retain(|owner| *owner != user.owner);
        owners.push(user.owner);
        let mut devices = Vec::new();
        for owner in owners {
            let mut found = Vec::new();
            self.on_owner(owner, &mut |txn| {
                found = accounts::forget_devices(txn.conn, owner, user.id).map_err(failed)?;
                members::depart(txn, user.id, at)?;
                let is_last = owner == user.owner;
                if is_last { accounts::erase_user(txn.conn, user.id, until).map_err(failed) } else { Ok(()) }
            })?;
            devices.append(&mut found);
        }
        devices.sort_unstable();
        devices.dedup();
        Ok(devices)
    }

    fn is_gone(&self, token: &TokenHash, now: Timestamp) -> StorageResult<bool> {
        self.looking_up(|conn| accounts::is_gone(conn, token, now).map_err(failed))
    }

    fn forget_gone(&self, now: Timestamp) -> StorageResult<()> {
        self.writing(|conn| accounts::forget_gone(conn, now))
    }

    fn erasures(&self, after: Option<Owner>, owners_max: usize) -> StorageResult<Vec<Erasure>> {
        self.looking_up(|conn| accounts::erasures(conn, after, owners_max).map_err(failed))
    }

    fn end_erasure(&self, owner: Owner) -> StorageResult<()> {
        self.writing(|conn| accounts::end_erasure(conn, owner))
    }

    fn put_mail_token(&self, token: &MailToken) -> StorageResult<()> {
        self.writing(|conn| mail_tokens::put(conn, token))
    }

    fn mail_token(&self, kind: MailKind, user: Uuid, hash: &TokenHash) -> StorageResult<Option<MailToken>> {
        self.looking_up(|conn| mail_tokens::find(conn, kind, user, hash).map_err(failed))
    }

    fn use_mail_token(&self, used: &MailTokenUse<'_>) -> StorageResult<Option<Vec<DeviceId>>> {
        self.writing(|conn| mail_tokens::spend(conn, used))
    }

    fn remove_other_devices(&self, user: Uuid, keep: DeviceId) -> StorageResult<Vec<DeviceId>> {
        self.writing(|conn| accounts::remove_other_devices(conn, user, keep))
    }

    fn remove_user(&self, email: &str, now: Timestamp) -> StorageResult<bool> {
        let Some(user) = self.user(email)? else { return Ok(false) };
        for owner in self.looking_up(|conn| accounts::member_of(conn, user.id).map_err(failed))? {
            self.on_owner(owner, &mut |txn| members::leave(txn, user.id, now).map(drop))?;
        }
        self.writing(|conn| accounts::remove_user(conn, email))
    }

    fn put_device(&self, device: &Device, token: &TokenHash) -> StorageResult<bool> {
        self.writing(|conn| accounts::put_device(conn, device, token))
    }

    fn device(&self, token: &TokenHash) -> StorageResult<Option<Device>> {
        self.looking_up(|conn| accounts::device(conn, token).map_err(failed))
    }

    fn devices(&self, user: Uuid) -> StorageResult<Vec<Device>> {
        self.looking_up(|conn| accounts::devices(conn, user).map_err(failed))
    }

    fn sightings(&self, user: Uuid) -> StorageResult<Vec<(DeviceId, Sighting)>> {
        self.looking_up(|conn| accounts::sightings(conn, user).map_err(failed))
    }

    fn note_sightings(&self, seen: &[Seen]) -> StorageResult<()> {
        self.writing(|conn| accounts::note_sightings(conn, seen))
    }

    fn owners_of(&self, user: Uuid) -> StorageResult<Vec<Membership>> {
        self.listing(|conn, first| accounts::owners_of(conn, user, first))
    }

    fn named_owners(&self, named: &[(Owner, Role)]) -> StorageResult<Vec<Membership>> {
        self.listing(|conn, first| accounts::named_owners(conn, named, first))
    }

    fn standing(&self, user: Uuid, owner: Owner) -> StorageResult<Standing> {
        self.looking_up(|conn| accounts::standing(conn, user, owner).map_err(failed))
    }

    /// The members of all owners are one table here, with an index by user.
    fn list_owner(&self, _: Uuid, _: Owner, _: bool) -> StorageResult<()> {
        Ok(())
    }

    /// The invitations of all owners are one table here, with an index by code.
    fn list_invitation(&self, _: &CodeHash, _: Owner, _: Timestamp) -> StorageResult<()> {
        Ok(())
    }

    fn invited_to(&self, code: &CodeHash) -> StorageResult<Option<Owner>> {
        self.looking_up(|conn| accounts::invited_to(conn, code).map_err(failed))
    }

    fn unlist_invitation(&self, _: &CodeHash) -> StorageResult<()> {
        Ok(())
    }

    fn forget_expired(&self, now: Timestamp, lookups_max: usize) -> StorageResult<usize> {
        self.writing(|conn| accounts::forget_invitations(conn, now, lookups_max))
    }

    fn remove_device(&self, user: Uuid, device: DeviceId) -> StorageResult<bool> {
        self.writing(|conn| accounts::remove_device(conn, user, device))
    }
}

/// Settings of a writing connection, in addition to those of every connection.
pub fn prepare_writer(conn: &Connection) -> rusqlite::Result<()> {
    // FULL makes an acknowledged write durable.
    conn.pragma_update(None, "journal_mode", "WAL")?;
    let synchronous = if broken::is("synchronous_normal") { "NORMAL" } else { "FULL" };
    conn.pragma_update(None, "synchronous", synchronous)?;
    conn.pragma_update(None, "cache_size", -WRITER_CACHE_KIB)?;
    // If another program reads for long, the log grows. This limit frees its disk space afterwards.
    conn.pragma_update(None, "journal_size_limit", LOG_BYTES_KEPT)?;
    conn.pragma_update(None, "wal_autocheckpoint", LOG_PAGES)
}

/// Settings of every connection, since SQLite stores none of them in the file.
pub(super) fn prepare(conn: &Connection, busy_wait: Duration) -> rusqlite::Result<()> {
    conn.busy_timeout(busy_wait)?;
    conn.set_prepared_statement_cache_capacity(STATEMENTS_CACHED);
    conn.pragma_update(None, "foreign_keys", true)?;
    conn.pragma_update(None, "trusted_schema", false)?;
    conn.pragma_update(None, "cell_size_check", true)?;
    conn.pragma_update(None, "mmap_size", 0)
}

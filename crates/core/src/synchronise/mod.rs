//! Phase 2: applies what the device sends, and returns results and rows.
//!
//! A batch is settled row by row over a working copy of its rows. Then each changed row is written once, in
//! its final state, and all under one new version.

mod batch;
mod budget;
mod deletions;
mod group;
mod losses;
mod quota;
mod references;
mod requested;
mod response_rows;
mod settler;
mod unreadable;
mod working_set;

use std::ops::ControlFlow;

use uuid::Uuid;

use crate::broken;
use crate::changes::{self, Expired, Feed};
use crate::digest::Digest;
use crate::model::{DeviceId, Role, RowKey, Stored, Timestamp, Value, Version};
use crate::reconcile::{Context, NetChange, Operation, Rejection, Skew, Verdict};
use crate::schema::{Schema, TableId};
use crate::storage::readable::hide_digests;
use crate::storage::{OwnerState, StorageError, WriteTxn};

pub use batch::{Batch, Part, SentKey, Set, UnreadableItem, ValueFault};
use budget::Budget;
pub use budget::StillWanted;
use deletions::Deletions;
use losses::{Losses, RecordedSides};
pub use quota::FORGOTTEN_MAX;
use settler::{DeviceClock, Settler};
pub use unreadable::{ItemResult, RejectedKeys, RejectedRow, TableItemResults, Unreadable, Why};
use working_set::WorkingSet;

/// The device of a batch, the times, and the limits.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// Who sends it.
    pub device: DeviceId,
    /// The sender's role. Each row of a table that it may not write is rejected.
    pub role: Role,
    /// A base from before that version has expired for the sender; 0 if there is none such.
    pub since: Version,
    /// The server's time when the request arrived. Time that the request waited afterwards does not count as
    /// clock skew.
    pub received: Timestamp,
    /// The server's time.
    pub now: Timestamp,
    /// Most bytes of one row.
    pub row_bytes_max: usize,
    /// Most live rows of the owner.
    pub owner_rows_max: u64,
    /// Most bytes of the owner's live rows.
    pub owner_bytes_max: u64,
    /// Most bytes of the owner's tombstones, earlier states, conflicts and stored responses; 0 means no
    /// bound.
    pub owner_past_bytes_max: u64,
    /// Deletions of one table below which the guard against mass deletion does nothing.
    pub mass_delete_rows: usize,
    /// How long a device's deletions are added up, ms.
    pub mass_delete_window_ms: i64,
    /// Most changed rows in the response.
    pub pull_rows_max: usize,
    /// Most entries of the ledger that are read for them.
    pub pull_entries_max: usize,
    /// Most bytes for each of: rows loaded, conflicts stored, rows in the response.
    pub batch_bytes_max: usize,
    /// Return no more changed rows once they have this many bytes.
    pub pull_bytes_max: usize,
}

impl Terms {
    /// Whether a table looks empty to the sender.
    fn hides(&self, schema: &Schema, table: TableId) -> bool {
        schema.hides(table, self.role)
    }

    /// The owner's state as the sender may see it.
    fn seen(&self, state: OwnerState) -> OwnerState {
        OwnerState { horizon: state.horizon.max(self.since), ..state }
    }
}

/// The result of a batch; its lists mirror the batch's, in the order sent.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// A verdict for each row under `add`.
    pub add: Vec<TableItemResults>,
    /// A verdict for each row under `update`.
    pub update: Vec<TableItemResults>,
    /// A verdict for each key under `delete`.
    pub delete: Vec<TableItemResults>,
    /// The live rows that were requested.
    pub get: Vec<(TableId, Vec<LiveRow>)>,
    /// The requested keys that name no live row.
    pub missing: Vec<(TableId, Vec<RowKey>)>,
    /// The requested keys that cannot be read.
    pub rejected: Vec<RejectedKeys>,
    /// The version that the device may store as its next base.
    pub version: Version,
    /// The owner's version now.
    pub current: Version,
    /// The digest of each table at that version, in declared order.
    pub digests: Vec<Digest>,
    /// What changed since the device's base, if requested, without what the batch itself wrote.
    pub changes: Option<Changes>,
    /// The server's time minus the device's, if the device sent its own.
    pub clock_offset_ms: Option<i64>,
}

impl Report {
    /// About how many bytes the response takes.
    pub fn weight(&self) -> usize {
        const NAMES: usize = 100; // a row's members, its key and its time
        let of = |values: &[Value]| NAMES + values.iter().map(Value::weight).sum::<usize>();
        let row = |row: &LiveRow| of(&row.values);
        let result =
            [&self.add, &self.update, &self.delete].into_iter().flatten().flat_map(|(_, result)| result);
        let got = self.get.iter().flat_map(|(_, rows)| rows);
        let missing = self.missing.iter().map(|(_, keys)| keys.len() * NAMES);
        let changed = self.changes.iter().flat_map(|changes| &changes.rows);
        let faults = result.clone().map(|result| match result {
            ItemResult::Unreadable(one) => one.key.weight() + one.fault.detail.len(),
            ItemResult::Settled(_) => 0,
        });
        let rejected = self.rejected.iter().flat_map(|(_, keys)| keys);
        faults.sum::<usize>()
            + rejected.map(|(_, one)| NAMES + one.key.weight() + one.fault.detail.len()).sum::<usize>()
            + result.map(|result| result.row().map_or(NAMES, row)).sum::<usize>()
            + got.map(row).sum::<usize>()
            + missing.sum::<usize>()
            + changed.map(|(.., stored)| of(stored.values.as_deref().unwrap_or_default())).sum::<usize>()
    }
}

/// A page of the change feed.
#[derive(Clone, Debug, PartialEq)]
pub struct Changes {
    /// The feed that it is a page of.
    pub feed: Feed,
    /// Where the next page continues, if this is not the last one.
    pub next: Option<Feed>,
    /// The rows that changed: how, in which table, under which key, and their present state.
    pub rows: Vec<(NetChange, TableId, RowKey, Stored)>,
    /// How many entries of the ledger were read for them.
    pub looked: usize,
}

/// The results of the rows of one table, in the order sent.
pub type TableResults = (TableId, Vec<RowResult>);

/// The result of one row.
#[derive(Clone, Debug, PartialEq)]
pub struct RowResult {
    /// The key of the row.
    pub key: RowKey,
    /// The outcome.
    pub verdict: Verdict,
    /// When the row (or its tombstone) last changed, if the server holds one.
    pub last_update: Option<Timestamp>,
    /// The server's row, if it differs from what the device sent. A response contains a large row once: with
    /// the first such result, or under `get` if the device requests it there.
    pub row: Option<LiveRow>,
    /// Why it was rejected.
    pub rejection: Option<Rejection>,
    /// The conflict that was recorded, if a change was lost. All losses of one row are one conflict, the last
    /// one.
    pub conflict: Option<Uuid>,
    /// Whether the device cannot know the whole row after this verdict.
    pub(super) echo: bool,
    /// Whether a change was lost.
    pub(super) lost: bool,
}

/// One live row.
#[derive(Clone, Debug, PartialEq)]
pub struct LiveRow {
    /// Its key.
    pub key: RowKey,
    /// When it last changed.
    pub last_update: Timestamp,
    /// One value for each declared column.
    pub values: Vec<Value>,
}

/// Why a batch was refused as a whole. Nothing of it was written.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// `base` is ahead of the owner's version, behind its horizon, or of another epoch.
    #[error("the base {} has expired", .0.given)]
    BaseExpired(Expired),
    /// It would delete most of a table, and the request does not confirm that.
    #[error("{deletes} of {rows} rows would be deleted")]
    MassDelete {
        /// The table that would shrink.
        table: TableId,
        /// Live rows of it that would be deleted.
        deletes: u64,
        /// Live rows of it now.
        rows: u64,
        /// Live rows of all tables that would be deleted.
        confirm: u64,
        /// Rows of the table that the device has deleted recently.
        before: u64,
    },
    /// It is atomic, and some rows are rejected.
    #[error("{} rows are rejected", .0.len())]
    Atomic(Vec<RejectedRow>),
    /// The owner would hold more rows than allowed.
    #[error("more than {0} rows")]
    TooManyRows(u64),
    /// The owner's rows would take more bytes than allowed.
    #[error("more than {0} bytes")]
    TooManyBytes(u64),
    /// What it makes the server load, store or return would take more bytes than allowed.
    #[error("more than {0} bytes of memory")]
    TooHeavy(usize),
    /// The server has no memory now for what it would have to load or return.
    #[error("no memory is left")]
    NoMemory,
    /// The records of conflicts and deletions would exceed `owner_past_bytes_max`.
    #[error("the owner's past would take more than {0} bytes")]
    PastFull(u64),
    /// No client waits for the response any more.
    #[error("nobody waits for the answer any more")]
    Unwanted,
    /// Storage failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// Applies a batch for one device, in the order add, update, delete, get.
///
/// - Shape: see [`Report`]. A batch that changes nothing moves no version.
/// - Errors: a [`Refusal`], upon which the caller rolls the transaction back.
/// - Source: the seed post, Step 2; `openapi.yaml`, path `/synchronise`.
pub fn run(txn: &mut dyn WriteTxn, schema: &Schema, batch: &Batch, terms: &Terms) -> Result<Report, Refusal> {
    run_while(&|| true, txn, schema, batch, terms)
}

/// Works like [`run`], and checks between rows whether a client still waits for the response.
///
/// Errors: [`Refusal::Unwanted`] if none does.
pub fn run_while(
    wanted: &dyn StillWanted,
    txn: &mut dyn WriteTxn,
    schema: &Schema,
    batch: &Batch,
    terms: &Terms,
) -> Result<Report, Refusal> {
    let state = terms.seen(txn.state());
    changes::check(state, batch.base).map_err(Refusal::BaseExpired)?;
    let skew = batch.sent_at.map(|sent_at| Skew::measure(sent_at, terms.received));
    let clock = DeviceClock { skew, sent_at: batch.sent_at, received: terms.received };
    let context = Context {
        device: terms.device,
        base: batch.base,
        put_back: batch.put_back,
        writing: state.version.next(),
        now: terms.now,
        precision: schema.precision,
        row_bytes_max: terms.row_bytes_max,
    };

    let mut budget = Budget::new(terms.batch_bytes_max, wanted);
    let mut rows = WorkingSet::load(txn, schema, batch, terms, &mut budget)?;
    let mut digests = txn.digests()?;
    let mut deletions = Deletions::count(txn, schema, &digests, batch, &rows, terms)?;
    deletions.guard(batch.confirm_deletes, terms.mass_delete_rows)?;
    // Every row is settled in memory first, so a refusal needs no write to be undone.
    let settler = Settler::new(txn, schema, (context, terms.role), clock, &mut rows, &mut budget);
    let (Settled { mut add, mut update, mut delete, rejected }, losses) = settle(settler, batch)?;
    // The rows of the response are weighed before anything is written.
    response_rows::put_rows(batch, [&mut add, &mut update, &mut delete], &rows, &mut budget)?;
    let may_read = |table: &TableId| !terms.hides(schema, *table);
    let requested = requested::load(txn, &rows, &batch.get, may_read, &mut budget)?;
    let recorded = losses.recorded_sides(schema, &rows, &context);
    let remembers =
        quota::make_room(txn, schema, &rows, (&losses, &recorded), (&context, terms, &mut budget))?;
    losses.note(txn, schema, &rows, &context, &budget)?;
    let recorded = remembers.then_some(&recorded);
    let current = write(txn, schema, &rows, &mut digests, (terms, &budget, recorded))?;
    deletions.note(txn, &digests, &rows, current, terms)?;
    let answered = [&add, &update, &delete].into_iter().flatten();
    let result = answered.flat_map(|(table, list)| list.iter().filter_map(|one| Some((*table, one.key()?))));
    requested::note_known(txn, &rows, result, &requested, batch.base, terms.device)?;
    let (get, missing) = requested::found_and_missing(requested);
    // A full feed replaces the device's copy, so it must include the rows just written.
    let exclude = (current > state.version && batch.base.is_some()).then_some(current);
    let changes = if batch.pull { Some(pull(txn, schema, batch, exclude, terms)?) } else { None };
    if changes.as_ref().is_some_and(|changes| changes.next.is_some() && !changes.rows.is_empty()) {
        // The device receives rows of the first page and keeps its cursor. It should continue with the page's
        // token.
        txn.show_ahead(current)?;
    }

    hide_digests(&mut digests, schema, terms.role);
    let version = cursor(batch.base, state.version, current, changes.as_ref());
    Ok(Report {
        add,
        update,
        delete,
        get,
        missing,
        rejected,
        version,
        current,
        digests,
        changes,
        clock_offset_ms: skew.map(Skew::offset_ms),
    })
}

/// What became of each item of a batch, in the order sent.
struct Settled {
    add: Vec<TableItemResults>,
    update: Vec<TableItemResults>,
    delete: Vec<TableItemResults>,
    rejected: Vec<RejectedKeys>,
}

/// Settles every item of a batch in memory.
///
/// Errors: [`Refusal::Atomic`] if the batch is to be applied as a whole and an item cannot be.
fn settle(mut settler: Settler<'_, '_>, batch: &Batch) -> Result<(Settled, Losses), Refusal> {
    let mut add = settler.edits(Operation::Add, &batch.add)?;
    let mut update = settler.edits(Operation::Update, &batch.update)?;
    let mut delete = settler.deletes(&batch.delete)?;
    let (losses, rows) = settler.finish([&mut add, &mut update, &mut delete].into_iter().flatten());
    let settled = Settled {
        add: batch.in_order(Part::Add, add, rows),
        update: batch.in_order(Part::Update, update, rows),
        delete: batch.in_order(Part::Delete, delete, rows),
        rejected: batch.rejected_keys(rows),
    };
    if batch.atomic {
        let Settled { add, update, delete, rejected } = &settled;
        let sets: [(Part, &[TableItemResults]); 3] =
            [(Part::Add, add), (Part::Update, update), (Part::Delete, delete)];
        let rejections = Report::rejections(sets, rejected);
        if !rejections.is_empty() {
            return Err(Refusal::Atomic(rejections));
        }
    }
    Ok((settled, losses))
}

/// The cursor that a device has after a batch: from `before` the owner has come to `current`.
///
/// A device that has not seen what others wrote in between must not skip it, so its cursor stays. Without a cursor
/// it stays at the first version of the epoch until the last page is delivered.
fn cursor(base: Option<Version>, before: Version, current: Version, changes: Option<&Changes>) -> Version {
    let is_complete = changes.is_some_and(|changes| changes.next.is_none());
    match base {
        Some(base) if base < before && !is_complete => base,
        None if changes.is_some() && !is_complete => Version::first(before.epoch()),
        _ => current,
    }
}

impl LiveRow {
    /// The row as a live row; `None` for a tombstone.
    fn of(key: RowKey, row: &Stored) -> Option<Self> {
        row.values.as_ref().map(|values| Self { key, last_update: row.last_update, values: values.clone() })
    }
}

/// Rows that are written between two checks whether a client still waits.
const WRITTEN_AT_A_TIME: usize = 500;

/// Writes the changed rows under one new version, adds them to `digests`, and returns the owner's version
/// after it.
///
/// `recorded`: the conflicts that have values of replaced states; `None` if there is no room for these states. Then
/// they are not stored.
fn write(
    txn: &mut dyn WriteTxn,
    schema: &Schema,
    rows: &WorkingSet,
    digests: &mut [Digest],
    (terms, budget, recorded): (&Terms, &Budget<'_>, Option<&RecordedSides>),
) -> Result<Version, Refusal> {
    let state = txn.state();
    let Some(growth) = rows.growth() else { return Ok(state.version) };
    let after = OwnerState {
        version: if broken::is("version_stuck") { state.version } else { state.version.next() },
        rows: state.rows.saturating_add_signed(growth.rows),
        bytes: state.bytes.saturating_add_signed(growth.bytes),
        ..state
    };
    // An owner above a limit that was lowered may still edit and delete, but not grow.
    if growth.rows > 0 && after.rows > terms.owner_rows_max {
        return Err(Refusal::TooManyRows(terms.owner_rows_max));
    }
    if growth.bytes > 0 && after.bytes > terms.owner_bytes_max {
        return Err(Refusal::TooManyBytes(terms.owner_bytes_max));
    }
    let remembered = recorded.into_iter().flat_map(|recorded| {
        schema.tables().iter().filter(|table| table.history > 0).map(move |table| (table, recorded))
    });
    for (table, recorded) in remembered {
        for rows in rows.replaced(table.id, recorded).chunks(WRITTEN_AT_A_TIME) {
            budget.check()?;
            txn.remember(table.id, rows, table.history)?;
        }
    }
    let mut put = |table: TableId, tombstones: bool| -> Result<(), Refusal> {
        for rows in rows.to_write(table, tombstones).chunks(WRITTEN_AT_A_TIME) {
            budget.check()?;
            txn.put(table, rows)?;
        }
        Ok(())
    };
    for table in schema.parents_first() {
        put(*table, false)?;
    }
    for table in schema.parents_first().iter().rev() {
        if !broken::is("tombstone_forgotten") {
            put(*table, true)?;
        }
    }
    let changed = match broken::is("digest_not_updated") {
        true => Vec::new(),
        false => rows.digests(state.seed, digests),
    };
    for (table, digest) in &changed {
        digests[table.index()] = *digest;
    }
    let mut past = txn.state().past; // includes the states that were just stored
    past.tombstones += growth.tombstones;
    txn.advance(OwnerState { past, ..after }, &changed, terms.now)?;
    Ok(after.version)
}

/// Reads what changed since the device's base, without what the batch wrote at the version `exclude`.
fn pull(
    txn: &mut dyn WriteTxn,
    schema: &Schema,
    batch: &Batch,
    exclude: Option<Version>,
    terms: &Terms,
) -> Result<Changes, Refusal> {
    let feed = Feed::begin(terms.seen(txn.state()), batch.base).map_err(Refusal::BaseExpired)?;
    let feed = Feed { exclude, ..feed };
    let tables = schema.tables().iter().map(|table| table.id);
    let tables: Vec<TableId> = tables.filter(|table| !terms.hides(schema, *table)).collect();
    let (rows_max, bytes_max) = (terms.pull_rows_max, terms.pull_bytes_max);
    let entries_max = terms.pull_entries_max;
    let requested =
        changes::FeedFilter { device: terms.device, tables: &tables, rows_max, bytes_max, entries_max };
    let mut rows = Vec::new();
    let page = changes::run(txn, feed, &requested, &mut |net, table, key, row| {
        rows.push((net, table, key, row.clone()));
        ControlFlow::Continue(())
    })?;
    Ok(Changes { feed, next: page.next, rows, looked: page.looked })
}

//! The rows of one owner, in batches.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::{Read, Seek};

use serde_json::value::RawValue;
use serde_json::{Value, json};
use uuid::Uuid;

use super::file::{ExportFile, Row};
use super::{Import, ImportError, Step, Watch};
use crate::http::wire::read_batch;
use crate::model::{DeviceId, Owner, Role, RowKey, Version};
use crate::reconcile::{RejectionCode, Verdict};
use crate::schema::Table;
use crate::storage::{Outcome, WriteTxn};
use crate::synchronise::{self, ItemResult, Refusal, Report, Terms, Why};

/// A batch ends with this many rows, or once they have this many bytes of JSON. A writer of the same owner waits some 20 ms
/// for it.
const BATCH_ROWS: usize = 500;
const BATCH_BYTES: usize = 1024 * 1024;

/// Where the rows of an owner go.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// The owner.
    pub owner: Owner,
    /// The user in whose role they are added; `None` for the operator.
    pub user: Option<Uuid>,
    /// Whether the owner is not there: a dry run makes none.
    pub is_new: bool,
}

/// Adds the rows of an owner, table by table, parents first. Returns how many have each verdict.
pub(super) fn import<R: Read + Seek>(
    import: &Import<'_>,
    file: &mut ExportFile<R>,
    section: usize,
    target: Target,
    step: &mut Step,
    watch: &mut dyn Watch,
) -> Result<BTreeMap<&'static str, u64>, ImportError> {
    let Some(source) = file.owners.get(section).map(|one| one.owner) else { return Ok(BTreeMap::new()) };
    let device = DeviceId(Uuid::new_v5(&target.owner.0, b"import"));
    let counts = BTreeMap::new();
    let mut sender = Sender {
        import,
        source,
        target,
        device,
        counts,
        step,
        watch,
        batch: Rows::default(),
        waiting: Vec::new(),
    };
    for id in import.schema.parents_first() {
        let table = import.schema.at(*id);
        file.rows(section, &table.name, &mut |_, row| {
            sender.batch.push(row);
            if sender.batch.is_full() { sender.send(table, true) } else { Ok(()) }
        })?;
        sender.send(table, true)?;
        sender.send_waiting(file, table)?;
    }
    Ok(sender.counts)
}

/// Rows of one table that are sent together.
#[derive(Default)]
struct Rows {
    rows: Vec<Row>,
    bytes: usize,
}

impl Rows {
    fn push(&mut self, row: Row) {
        self.bytes += row.text.len();
        self.rows.push(row);
    }

    fn is_full(&self) -> bool {
        self.rows.len() >= BATCH_ROWS || self.bytes >= BATCH_BYTES
    }

    /// The rows as the body of a request.
    fn body(table: &Table, rows: &[Row]) -> Result<Vec<u8>, serde_json::Error> {
        let mut body = format!("{{\"add\":{{{}:[", serde_json::to_string(&table.name)?).into_bytes();
        for (at, row) in rows.iter().enumerate() {
            if at > 0 {
                body.push(b',');
            }
            body.extend_from_slice(row.text.as_bytes());
        }
        body.extend_from_slice(b"]}}");
        Ok(body)
    }
}

struct Sender<'a> {
    import: &'a Import<'a>,
    source: Owner,
    target: Target,
    /// The author of the rows: the same one in each run, so that nothing new is noted of rows that are there already.
    device: DeviceId,
    counts: BTreeMap<&'static str, u64>,
    step: &'a mut Step,
    watch: &'a mut dyn Watch,
    batch: Rows,
    /// Rows that refer to a row of their own table which comes later in the file: key, and where the line begins.
    waiting: Vec<(RowKey, u64)>,
}

impl Sender<'_> {
    /// Sends the rows that have come together. Those that `may_wait` are kept if they refer to later rows of their table.
    fn send(&mut self, table: &Table, may_wait: bool) -> Result<(), ImportError> {
        let rows = std::mem::take(&mut self.batch).rows;
        if rows.is_empty() {
            return Ok(());
        }
        self.send_rows(table, &rows, may_wait)?;
        if self.watch.step(*self.step) { Ok(()) } else { Err(ImportError::Interrupted) }
    }

    /// Sends rows, and notes their results. Rows that are too many at once are sent in halves.
    fn send_rows(&mut self, table: &Table, rows: &[Row], may_wait: bool) -> Result<(), ImportError> {
        match (self.apply(table, rows)?, rows) {
            (Some(report), _) => self.note(table, rows, &report, may_wait),
            (None, [row]) => self.reject(
                table,
                row,
                None,
                json!(RejectionCode::RowTooLarge),
                None,
                "the row takes too much memory",
            ),
            (None, rows) => {
                let (first, rest) = rows.split_at(rows.len() / 2);
                self.send_rows(table, first, may_wait)?;
                self.send_rows(table, rest, may_wait)
            }
        }
    }

    /// Applies rows in one transaction; `None` if they take too much memory at once.
    fn apply(&self, table: &Table, rows: &[Row]) -> Result<Option<Report>, ImportError> {
        let Import { storage, schema, limits, is_dry_run, .. } = *self.import;
        let body = Rows::body(table, rows).map_err(|error| ImportError::Internal(error.to_string()))?;
        let Ok(batch) = read_batch(&body, schema, limits) else { return Ok(None) };
        let (target, terms) = (self.target, self.terms());
        let mut applied = Err(Refusal::Unwanted);
        storage.run_write(target.owner, &mut |txn| {
            applied = run(txn, target, &terms, |txn, terms| synchronise::run(txn, schema, &batch, terms));
            Ok(if applied.is_ok() && !is_dry_run { Outcome::Commit } else { Outcome::Rollback })
        })?;
        let owner = target.owner;
        let quota = |reason: String| Err(ImportError::Quota { owner, reason });
        match applied {
            Ok(report) => Ok(Some(report)),
            Err(Refusal::TooHeavy(_)) => Ok(None),
            Err(refusal @ (Refusal::TooManyRows(_) | Refusal::TooManyBytes(_) | Refusal::PastFull(_))) => {
                quota(refusal.to_string())
            }
            Err(Refusal::Storage(error)) => Err(error.into()),
            Err(Refusal::Unwanted) => Err(ImportError::NotAllowed(owner)),
            Err(refusal) => Err(ImportError::Internal(refusal.to_string())),
        }
    }

    fn terms(&self) -> Terms {
        let (limits, now) = (self.import.limits, self.import.clock.now());
        Terms {
            device: self.device,
            role: Role::Manage,
            since: Version(0),
            received: now,
            now,
            row_bytes_max: limits.row_bytes_max,
            batch_bytes_max: limits.batch_bytes_max,
            owner_rows_max: limits.owner_rows_max,
            owner_bytes_max: limits.owner_bytes_max,
            owner_past_bytes_max: limits.owner_past_bytes_max,
            mass_delete_rows: usize::MAX, // nothing is deleted
            mass_delete_window_ms: 0,
            pull_rows_max: 0,
            pull_entries_max: 0,
            pull_bytes_max: 0,
        }
    }

    /// Counts the results of rows, and reports those that were rejected.
    fn note(
        &mut self,
        table: &Table,
        rows: &[Row],
        report: &Report,
        may_wait: bool,
    ) -> Result<(), ImportError> {
        let results = report.add.iter().flat_map(|(_, results)| results);
        for (row, result) in rows.iter().zip(results) {
            let missing = missing_reference(result);
            if let (true, Some((key, column))) = (may_wait, missing)
                && !self.import.is_dry_run
                && table.columns.get(column).is_some_and(|column| column.references == Some(table.id))
            {
                self.waiting.push((key, row.at));
                continue;
            }
            match result.why() {
                Some(_) if self.import.is_dry_run && missing.is_some() => self.count(Verdict::Added.name()),
                Some(why) => {
                    let (code, column, detail) = reason_of(table, &why);
                    self.reject(table, row, result.key(), json!(code), column, detail)?;
                }
                None => self.count(result.verdict().name()),
            }
        }
        Ok(())
    }

    fn count(&mut self, verdict: &'static str) {
        *self.counts.entry(verdict).or_insert(0) += 1;
        self.step.done += 1;
    }

    fn reject(
        &mut self,
        table: &Table,
        row: &Row,
        key: Option<RowKey>,
        code: Value,
        column: Option<&str>,
        detail: &str,
    ) -> Result<(), ImportError> {
        self.count(Verdict::Rejected.name());
        let row = RawValue::from_string(row.text.clone()).ok();
        self.watch.rejected(&json!({
            "owner": self.source,
            "table": table.name,
            "key": key,
            "code": code,
            "column": column,
            "detail": detail,
            "row": row,
        }))?;
        Ok(())
    }

    /// Sends the rows of a table that wait for other rows of it, each after those that it refers to.
    fn send_waiting<R: Read + Seek>(
        &mut self,
        file: &mut ExportFile<R>,
        table: &Table,
    ) -> Result<(), ImportError> {
        let waiting = std::mem::take(&mut self.waiting);
        let places: HashMap<RowKey, u64> = waiting.iter().copied().collect();
        let mut met = HashSet::new();
        for (key, _) in &waiting {
            // A row comes after those that it refers to. Those of one chain stay together, since they may refer to each
            // other in a ring.
            let mut path = vec![(*key, false)];
            while let Some((key, is_left)) = path.pop() {
                let Some(at) = places.get(&key) else { continue };
                if is_left {
                    self.batch.push(file.row_at(*at)?);
                    if self.batch.rows.len() >= self.import.limits.rows_max {
                        self.send(table, false)?;
                    }
                    continue;
                }
                if !met.insert(key) {
                    continue;
                }
                path.push((key, true));
                path.extend(parents(table, &file.row_at(*at)?.text).map(|parent| (parent, false)));
            }
            if self.batch.is_full() {
                self.send(table, false)?;
            }
        }
        self.send(table, false)
    }
}

/// Runs work in the role that the user has in the transaction.
///
/// Errors: [`Refusal::Unwanted`] if the user is no member, or the owner was erased.
fn run(
    txn: &mut dyn WriteTxn,
    target: Target,
    terms: &Terms,
    work: impl FnOnce(&mut dyn WriteTxn, &Terms) -> Result<Report, Refusal>,
) -> Result<Report, Refusal> {
    if txn.state().erased_at.is_some() {
        return Err(Refusal::Unwanted);
    }
    let role = match target.user.filter(|_| !target.is_new) {
        None => Some(Role::Manage),
        Some(user) => txn.member(user)?.map(|member| member.role),
    };
    let role = role.filter(|role| *role >= Role::Write).ok_or(Refusal::Unwanted)?;
    work(txn, &Terms { role, ..*terms })
}

/// The row and the column of a result that names a row which is not there.
fn missing_reference(result: &ItemResult) -> Option<(RowKey, usize)> {
    let result = result.settled()?;
    let rejection = result.rejection.as_ref()?;
    (rejection.code == RejectionCode::ReferenceMissing).then_some((result.key, rejection.column?))
}

/// The code, the column and the words of a rejection.
fn reason_of<'a>(table: &'a Table, why: &'a Why) -> (RejectionCode, Option<&'a str>, &'a str) {
    match why {
        Why::Rule(rejection) => {
            let column = rejection.column.and_then(|at| table.columns.get(at));
            (rejection.code, column.map(|column| column.name.as_str()), &rejection.detail)
        }
        Why::Value(fault) => (fault.code, fault.member.as_deref(), &fault.detail),
    }
}

/// The rows of the same table that a row refers to.
fn parents(table: &Table, row: &str) -> impl Iterator<Item = RowKey> {
    let members: HashMap<Cow<'_, str>, &RawValue> = serde_json::from_str(row).unwrap_or_default();
    let own = table.references().filter(|(_, to)| *to == table.id);
    let keys = own.filter_map(|(column, _)| {
        let value = members.get(table.columns.get(column)?.name.as_str())?;
        serde_json::from_str::<Option<Uuid>>(value.get()).ok()?.map(RowKey)
    });
    keys.collect::<Vec<_>>().into_iter()
}
